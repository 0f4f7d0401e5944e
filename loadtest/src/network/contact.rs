//! A contact behind the bad link, who watches a live recording that comes to the relay over a good one:
//! how late the sound is, and whether everything that was left out was named.

use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::Instant;
use waystation_netlab::{Profile, Side};
use waystation_proto::Variant;

use super::handset::Handset;
use super::output::{Line, percentile};
use super::site::{Chunks, Site};
use super::survival::{SOUND_S, live};
use super::viewer::Said;
use super::{Args, bars};
use crate::Failure;

/// Seconds of the recording.
const SECONDS: u64 = 120;
/// Nothing may be later than this after the last cut.
const PATIENCE: Duration = Duration::from_secs(60);

/// What one seed gave.
struct Run {
    /// Seconds from when each chunk of sound was cut to when the contact had opened it.
    delays: Vec<Option<f64>>,
    previews: u64,
    whole: u64,
    omitted: u64,
    wrong: u64,
    broke: u64,
}

impl Run {
    /// Pictures that neither came nor were named.
    const fn untold(&self) -> u64 {
        self.previews.saturating_sub(self.whole + self.omitted)
    }
}

pub(super) async fn measure(args: &Args, profile: &Profile) -> Result<Line, Failure> {
    let runs = args.each(|seed| one(args, profile, seed)).await?;
    let delays: Vec<Option<f64>> = runs.iter().flat_map(|run| run.delays.iter().copied()).collect();
    let p95 = percentile(&delays, 95);
    let sum = |of: fn(&Run) -> u64| runs.iter().map(of).sum::<u64>();
    let missing = delays.iter().filter(|delay| delay.is_none()).count() as u64;
    let lost = missing + sum(Run::untold) + sum(|run| run.wrong);
    let line = Line::default()
        .word("scenario", "contact")
        .word("profile", profile.name)
        .word("transport", args.transport.as_str())
        .count("seeds", runs.len() as u64)
        .count("sounds", delays.len() as u64)
        .figure("delay_p50_s", percentile(&delays, 50))
        .figure("delay_p95_s", p95)
        .bar("delay_bar", p95, Some(bars::contact_s(profile, args.transport, live(SECONDS)[0].bytes as u64)))
        .figure("delay_max_s", percentile(&delays, 100))
        .count("sounds_missing", missing)
        .count("previews_whole", sum(|run| run.whole))
        .count("previews_omitted", sum(|run| run.omitted))
        .count("previews_untold", sum(Run::untold))
        .count("broke", sum(|run| run.broke))
        .count("lost", lost)
        .all("all_delays_s", &delays);
    Ok(line.failing(lost > 0))
}

async fn one(args: &Args, profile: &Profile, seed: u64) -> Result<Run, Failure> {
    let [sound, picture, _] = live(args.seconds.unwrap_or(SECONDS));
    let lanes = [sound, picture];
    let mut setup = args.setup(profile, seed);
    // The relay asks for what it wants by itself.
    setup.link.congestion = Some("cubic".to_owned());
    let site = Site::start(setup, &lanes.map(|lane| lane.variant)).await?;
    let mut plan = site.plan(&lanes, PATIENCE);
    let mut viewer = Viewer::start(&site, &plan).await?;
    // The phone's link is a good one.
    plan.transport = super::transport::Transport::H3;
    let mut phone = Handset::start_at(Side::Server, &site, &plan).await?;
    let recorded = Duration::from_secs_f64(sound.to as f64 * SOUND_S);
    let whole = |viewer: &Viewer| {
        let of = |variant| viewer.whole_ms.keys().filter(|(of, _)| *of == variant).count() as u64;
        of(sound.variant) >= sound.to && of(picture.variant) + viewer.omitted >= picture.to
    };
    let watching = viewer.until(recorded + PATIENCE, whole);
    let recording = phone.until(recorded + PATIENCE, |phone| phone.all_confirmed_ms(sound.variant, sound.to).is_some());
    tokio::try_join!(watching, recording)?;
    phone.kill().await?;
    let delay = |seq| {
        let key = (sound.variant, seq);
        Some((viewer.whole_ms.get(&key)? - phone.cut_ms.get(&key)?) / 1000.0)
    };
    let whole = viewer.whole_ms.keys().filter(|(variant, _)| *variant == picture.variant).count() as u64;
    let (omitted, wrong, broke) = (viewer.omitted, viewer.wrong, viewer.broke);
    Ok(Run { delays: (0..sound.to).map(delay).collect(), previews: picture.to, whole, omitted, wrong, broke })
}

/// A contact at the client's end. Killed when dropped.
struct Viewer {
    _child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    /// When each chunk was whole and open.
    whole_ms: Chunks<f64>,
    /// Pictures that were left out.
    omitted: u64,
    /// Chunks that are not what was recorded, and sound that was left out.
    wrong: u64,
    broke: u64,
}

impl Viewer {
    /// Starts one, and waits until it watches.
    async fn start(site: &Site, plan: &super::phone::Plan) -> Result<Self, Failure> {
        let file = site.file("viewer.json");
        let text = serde_json::to_vec(plan).map_err(|_| Failure::Wire("a plan can't be written"))?;
        std::fs::write(&file, text).map_err(Failure::io("a plan"))?;
        let program = std::env::current_exe().map_err(Failure::io("this program's own path"))?;
        let log = std::fs::File::options().create(true).append(true).open(site.file("viewer.log"));
        let mut command = Command::from(site.link.command(Side::Client, program));
        command.arg("viewer").arg(file).stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
        command.stderr(log.map_err(Failure::io("a log file"))?);
        let mut child = command.spawn().map_err(Failure::io("a contact"))?;
        let out = child.stdout.take().ok_or(Failure::Wire("a contact without output"))?;
        let lines = BufReader::new(out).lines();
        let mut viewer = Self { _child: child, lines, whole_ms: Chunks::new(), omitted: 0, wrong: 0, broke: 0 };
        match viewer.next().await? {
            Some(Said::Watching) => Ok(viewer),
            _ => Err(Failure::NotStarted("a contact", site.last_words("viewer.log"))),
        }
    }

    async fn next(&mut self) -> Result<Option<Said>, Failure> {
        let line = self.lines.next_line().await.map_err(Failure::io("a contact"))?;
        let said = line.and_then(|line| serde_json::from_str(&line).ok());
        match &said {
            Some(Said::Whole { variant, seq, at_ms }) => {
                self.whole_ms.entry((*variant, *seq)).or_insert(*at_ms);
            }
            Some(Said::Omitted { variant: Some(Variant::LivePreview), count }) => self.omitted += count,
            Some(Said::Omitted { .. } | Said::Wrong) => self.wrong += 1,
            Some(Said::Broke) => self.broke += 1,
            Some(Said::Watching) | None => {}
        }
        Ok(said)
    }

    /// Listens until `is_done`, at most for `limit`.
    async fn until(&mut self, limit: Duration, is_done: impl Fn(&Self) -> bool) -> Result<(), Failure> {
        let end = Instant::now() + limit;
        while !is_done(self) {
            match tokio::time::timeout_at(end, self.next()).await {
                Ok(said) => match said? {
                    Some(_) => {}
                    None => return Ok(()),
                },
                Err(_) => return Ok(()),
            }
        }
        Ok(())
    }
}
