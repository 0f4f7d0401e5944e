//! A phone as the one who measures sees it: a process at the client's end, and what it said.

use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use waystation_netlab::Side;
use waystation_proto::Variant;

use super::phone::{Plan, Said};
use super::plot::Way;
use super::site::{Chunks, Site};
use crate::Failure;

/// Time for a phone that has said its last word to end.
const LEAVING_LIMIT: Duration = Duration::from_secs(10);

/// A running phone. Killed when dropped.
pub(super) struct Handset {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    /// When its recording began.
    pub(super) began_ms: f64,
    /// When each chunk was cut.
    pub(super) cut_ms: Chunks<f64>,
    /// When it knew each chunk confirmed.
    pub(super) confirmed_ms: Chunks<f64>,
    /// When the relay told it of each chunk that it holds it whole.
    pub(super) held_ms: Chunks<f64>,
    /// What its way was like.
    pub(super) way: Way,
    /// Chunks that it could not keep.
    pub(super) refused: u64,
    /// It will say no more.
    pub(super) gone: bool,
}

impl Handset {
    /// Starts a phone at the client's end, and waits until it begins.
    pub(super) async fn start(site: &Site, plan: &Plan) -> Result<Self, Failure> {
        Self::start_at(Side::Client, site, plan).await
    }

    /// The same at either end.
    pub(super) async fn start_at(side: Side, site: &Site, plan: &Plan) -> Result<Self, Failure> {
        let file = site.file("plan.json");
        let text = serde_json::to_vec(plan).map_err(|_| Failure::Wire("a plan can't be written"))?;
        std::fs::write(&file, text).map_err(Failure::io("a plan"))?;
        let program = std::env::current_exe().map_err(Failure::io("this program's own path"))?;
        let log = std::fs::File::options().create(true).append(true).open(site.file("phone.log"));
        let mut command = Command::from(site.link.command(side, program));
        command.arg("phone").arg(file).stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
        command.stderr(log.map_err(Failure::io("a log file"))?);
        let mut child = command.spawn().map_err(Failure::io("a phone"))?;
        let out = child.stdout.take().ok_or(Failure::Wire("a phone without output"))?;
        let mut phone = Self {
            child,
            lines: BufReader::new(out).lines(),
            began_ms: 0.0,
            cut_ms: Chunks::new(),
            confirmed_ms: Chunks::new(),
            held_ms: Chunks::new(),
            way: Way::default(),
            refused: 0,
            gone: false,
        };
        match phone.next().await? {
            Some(Said::Began { at_ms }) => phone.began_ms = at_ms,
            _ => return Err(Failure::NotStarted("a phone", site.last_words("phone.log"))),
        }
        Ok(phone)
    }

    /// The next thing it says; none when it is gone.
    pub(super) async fn next(&mut self) -> Result<Option<Said>, Failure> {
        let line = self.lines.next_line().await.map_err(Failure::io("a phone"))?;
        let Some(said) = line.and_then(|line| serde_json::from_str(&line).ok()) else {
            self.gone = true;
            return Ok(None);
        };
        match &said {
            Said::Cut { variant, seq, at_ms } => drop(self.cut_ms.insert((*variant, *seq), *at_ms)),
            Said::State { variant, seq, state, at_ms } => self.note((*variant, *seq), state, *at_ms),
            Said::Path { rate, rtt_ms, loss_permille, at_ms } => {
                let seconds = (at_ms - self.began_ms) / 1000.0;
                self.way.rate.add(seconds, *rate as f64);
                self.way.rtt_ms.add(seconds, *rtt_ms);
                self.way.loss_permille.add(seconds, *loss_permille as f64);
            }
            Said::Refused { .. } => self.refused += 1,
            _ => {}
        }
        Ok(Some(said))
    }

    fn note(&mut self, key: (Variant, u64), state: &str, at_ms: f64) {
        if matches!(state, "staged" | "forwarding" | "confirmed") {
            self.held_ms.entry(key).or_insert(at_ms);
        }
        if state == "confirmed" {
            self.confirmed_ms.entry(key).or_insert(at_ms);
        }
    }

    /// Kills it and starts another on the same directory, which goes on where this one was.
    pub(super) async fn again(mut self, site: &Site, plan: &mut Plan) -> Result<Self, Failure> {
        self.kill().await?;
        while self.next().await?.is_some() {}
        for lane in &mut plan.lanes {
            let cut = self.cut_ms.keys().filter(|(variant, _)| *variant == lane.variant).map(|(_, seq)| seq + 1);
            lane.from = cut.max().unwrap_or(lane.from);
        }
        let next = Self::start(site, plan).await?;
        Ok(Self { child: next.child, lines: next.lines, gone: false, ..self })
    }

    /// Listens until `is_done`, at most for `limit`. False: the time was over, or the phone gone.
    pub(super) async fn until(&mut self, limit: Duration, is_done: impl Fn(&Self) -> bool) -> Result<bool, Failure> {
        let listening = async {
            while !is_done(self) {
                if self.next().await?.is_none() {
                    return Ok(false);
                }
            }
            Ok(true)
        };
        tokio::time::timeout(limit, listening).await.unwrap_or(Ok(false))
    }

    /// When the phone knew the last of these confirmed; none if it did not come to that.
    pub(super) fn all_confirmed_ms(&self, variant: Variant, count: u64) -> Option<f64> {
        let times = (0..count).map(|seq| self.confirmed_ms.get(&(variant, seq)).copied());
        times.collect::<Option<Vec<f64>>>()?.into_iter().reduce(f64::max)
    }

    /// Kills it (`kill -9`).
    pub(super) async fn kill(&mut self) -> Result<(), Failure> {
        self.child.kill().await.map_err(Failure::io("a phone"))
    }

    /// Lets it end by itself, for a moment.
    pub(super) async fn leave(mut self) {
        let leaving = async { while matches!(self.next().await, Ok(Some(_))) {} };
        let _ = tokio::time::timeout(LEAVING_LIMIT, leaving).await;
        let _ = self.kill().await;
    }
}
