//! The capture client's process: cuts chunks as a plan says, and prints what becomes of them, one
//! line of JSON for each event. Knows the core through its session file alone, so that nothing but
//! the relay's protocol goes over the link.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::time::Instant;
use waystation_client::authority::{FixedAuthority, TokenForm};
use waystation_client::capture::local::KeyFile;
use waystation_client::capture::status::{Network, NetworkKind};
use waystation_client::capture::{Capture, Config, Event, Label, LaneSpec, Storage};
use waystation_client::connect::Trust;
use waystation_client::session::Session;
use waystation_client::{Endpoint, GroupKey};
use waystation_proto::Variant;

use super::content;
use super::transport::Transport;

type Error = Box<dyn std::error::Error + Send + Sync>;

/// Seconds that the relay may take before it answers a `PUT`.
const WAIT_S: u64 = 30;

/// `waystation-loadtest phone`
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// What to do, as JSON
    plan: PathBuf,
}

/// What a phone records and where it sends it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Plan {
    /// The relay's URL.
    pub relay: String,
    /// The relay's certificate.
    pub certificate: PathBuf,
    /// How to talk to it.
    pub transport: Transport,
    /// Say that the network is a cellular one.
    pub cellular: bool,
    /// Session file.
    pub session: PathBuf,
    /// Group key.
    pub group_key: PathBuf,
    /// Directory that a phone started again goes on with; none: memory.
    pub keep: Option<PathBuf>,
    /// Decides the recorded bytes.
    pub seed: u64,
    /// What is recorded.
    pub lanes: Vec<Recorded>,
    /// How long it may take until all is confirmed, after the last cut.
    pub finish_s: u64,
}

/// One lane's chunks.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Recorded {
    /// The lane.
    pub variant: Variant,
    /// Plaintext of each.
    pub bytes: usize,
    /// Recorded time of each; 0: all are there at the start.
    pub every_ms: u64,
    /// First one to cut: those before were cut by the phone that was killed.
    pub from: u64,
    /// One after the last.
    pub to: u64,
}

/// What a phone says. Times are milliseconds since the Unix epoch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "said", rename_all = "snake_case")]
pub enum Said {
    /// The recording begins: nothing was sent before.
    Began {
        /// When.
        at_ms: f64,
    },
    /// A chunk was cut and is kept.
    Cut {
        /// Its lane.
        variant: Variant,
        /// Its number.
        seq: u64,
        /// When.
        at_ms: f64,
    },
    /// A chunk was not kept.
    Refused {
        /// Its lane.
        variant: Variant,
        /// Its number.
        seq: u64,
    },
    /// The relay says something new of a chunk.
    State {
        /// Its lane.
        variant: Variant,
        /// Its number.
        seq: u64,
        /// The state's word.
        state: String,
        /// When.
        at_ms: f64,
    },
    /// The relay was reached, or lost.
    Link {
        /// Whether it is reached now.
        up: bool,
        /// When.
        at_ms: f64,
    },
    /// What the way to the relay is like.
    Path {
        /// Bytes a second that arrive at best.
        rate: u64,
        /// The round trip of late.
        rtt_ms: f64,
        /// Part of the bytes that is lost, in thousandths.
        loss_permille: u64,
        /// When.
        at_ms: f64,
    },
    /// The last word: everything has ended, or time is up.
    Ended {
        /// Chunks cut.
        chunks: u64,
        /// Chunks confirmed.
        confirmed: u64,
    },
}

/// Runs a phone to its end.
pub async fn main(args: Args) -> ExitCode {
    match run(&args.plan).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            let _ = writeln!(std::io::stderr().lock(), "{error}");
            ExitCode::from(2)
        }
    }
}

async fn run(plan: &Path) -> Result<bool, Error> {
    let mut plan: Plan = serde_json::from_slice(&std::fs::read(plan)?)?;
    let session = Session::read(&plan.session)?;
    let config = config(&plan, &session)?;
    let authority = Arc::new(FixedAuthority::new(session, TokenForm::Jwt, None));
    let (began, began_ms) = (Instant::now(), unix_ms());
    say(&Said::Began { at_ms: began_ms });
    let (capture, events) = Capture::start(config, authority).await?;
    if plan.cellular {
        capture.control().network(Network { kind: NetworkKind::Cellular, battery_low: false }).await;
    }
    let telling = tokio::spawn(tell(events));
    for lane in &mut plan.lanes {
        // The queue knows what was cut by the phone before this one.
        lane.from = lane.from.max(capture.next_seq(lane.variant)).min(lane.to);
    }
    if !capture.was_finished() {
        record(&capture, &plan, began, began_ms).await;
    }
    let summary = capture.finish(Duration::from_secs(plan.finish_s), "stopped").await;
    telling.await?;
    say(&Said::Ended { chunks: summary.chunks, confirmed: summary.confirmed });
    Ok(summary.confirmed == summary.chunks)
}

fn config(plan: &Plan, session: &Session) -> Result<Config, Error> {
    let media = |variant| session.streams.iter().find(|stream| stream.variant == variant).map(|stream| stream.media);
    let lane = |lane: &Recorded| {
        let media = media(lane.variant).ok_or("the session has no such lane")?;
        Ok::<_, Error>(LaneSpec { variant: lane.variant, media })
    };
    Ok(Config {
        relays: vec![Endpoint::parse(&plan.relay, Trust::file(&plan.certificate)?)?],
        transport: plan.transport.client(),
        group_key: GroupKey::read(&plan.group_key)?,
        lanes: plan.lanes.iter().map(lane).collect::<Result<_, _>>()?,
        client_key: None,
        storage: plan.keep.as_ref().map_or(Storage::Memory, |directory| {
            let key = directory.with_extension("key");
            Storage::directory(directory, Arc::new(KeyFile::new(key)))
        }),
        manifest: false,
        wait_s: WAIT_S,
    })
}

/// A chunk's place in the recording.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Due {
    at_ms: u64,
    lane: usize,
    seq: u64,
}

/// Every chunk in the order of cutting.
fn cuts(lanes: &[Recorded]) -> Vec<Due> {
    let of_lane = |(lane, recorded): (usize, &Recorded)| {
        let (from, every_ms) = (recorded.from, recorded.every_ms);
        (from..recorded.to).map(move |seq| Due { at_ms: (seq - from + 1) * every_ms, lane, seq })
    };
    let mut cuts: Vec<Due> = lanes.iter().enumerate().flat_map(of_lane).collect();
    cuts.sort_unstable();
    cuts
}

async fn record(capture: &Capture, plan: &Plan, began: Instant, began_ms: f64) {
    for Due { at_ms, lane, seq } in cuts(&plan.lanes) {
        let Recorded { variant, bytes, every_ms, .. } = plan.lanes[lane];
        tokio::time::sleep_until(began + Duration::from_millis(at_ms)).await;
        let plaintext = content::plaintext(plan.seed, variant, seq, bytes);
        // Chunks that are all there at the start were recorded before, in their order.
        let ended_ms = began_ms as i64 + if every_ms == 0 { seq } else { at_ms } as i64;
        let started_ms = ended_ms - every_ms as i64;
        let kept = capture.chunk(variant, plaintext, started_ms, ended_ms).await;
        say(&match kept {
            Ok(_) => Said::Cut { variant, seq, at_ms: began_ms + at_ms as f64 },
            Err(_) => Said::Refused { variant, seq },
        });
    }
}

async fn tell(mut events: mpsc::Receiver<Event>) {
    while let Some(event) = events.recv().await {
        match event {
            Event::State { label: Label { variant, lane_seq, .. }, state, .. } => {
                say(&Said::State { variant, seq: lane_seq, state: state.to_string(), at_ms: unix_ms() });
            }
            Event::Connected { .. } => say(&Said::Link { up: true, at_ms: unix_ms() }),
            Event::Disconnected { .. } => say(&Said::Link { up: false, at_ms: unix_ms() }),
            Event::Path(path) => say(&Said::Path {
                rate: path.rate,
                rtt_ms: path.rtt.as_secs_f64() * 1000.0,
                loss_permille: path.loss_permille,
                at_ms: unix_ms(),
            }),
            _ => {}
        }
    }
}

fn say(said: &Said) {
    let mut out = std::io::stdout().lock();
    if let Ok(line) = serde_json::to_string(said) {
        // Whoever listened has gone: the phone goes on, and ends with its plan.
        let _ = writeln!(out, "{line}").and_then(|()| out.flush());
    }
}

/// The wall clock: phone, relay and core share one machine.
pub(super) fn unix_ms() -> f64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_secs_f64() * 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_cut_when_they_end_and_lanes_are_mixed() {
        let lane = |variant, every_ms, from, to| Recorded { variant, bytes: 1, every_ms, from, to };
        let lanes = [
            lane(Variant::AudioPriority, 2000, 3, 5),
            lane(Variant::EvidenceMaster, 0, 0, 2),
            lane(Variant::LivePreview, 3000, 0, 1),
        ];
        let order: Vec<_> = cuts(&lanes).iter().map(|due| (due.at_ms, due.lane, due.seq)).collect();
        assert_eq!(order, [(0, 1, 0), (0, 1, 1), (2000, 0, 3), (3000, 2, 0), (4000, 0, 4)]);
    }

    #[test]
    fn what_is_said_reads_back() {
        let said = [
            Said::Began { at_ms: 1.5 },
            Said::State { variant: Variant::LivePreview, seq: 3, state: "confirmed".into(), at_ms: 2.25 },
            Said::Ended { chunks: 3, confirmed: 2 },
        ];
        for one in said {
            let line = serde_json::to_string(&one).unwrap();
            assert_eq!(serde_json::from_str::<Said>(&line).unwrap(), one, "{line}");
        }
    }
}
