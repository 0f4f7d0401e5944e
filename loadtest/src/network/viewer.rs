//! A contact's process: watches with the real client, compares every chunk with what was recorded, and
//! prints what comes of each, one line of JSON for each event.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use waystation_client::authority::{FixedAuthority, TokenForm};
use waystation_client::connect::Trust;
use waystation_client::session::Session;
use waystation_client::watch::{Config, Event, MAX_CHUNK, Watch};
use waystation_client::{Endpoint, GroupKey};
use waystation_proto::Variant;
use waystation_proto::message::StartWord;

use super::content;
use super::phone::{Plan, unix_ms};

type Error = Box<dyn std::error::Error + Send + Sync>;

/// `waystation-loadtest viewer`
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// What to watch, as JSON: the phone's own plan
    plan: PathBuf,
}

/// What a contact says. Times are milliseconds since the Unix epoch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "said", rename_all = "snake_case")]
pub enum Said {
    /// The relay has accepted the subscription.
    Watching,
    /// A chunk is whole and open, and is what was recorded.
    Whole {
        /// Its lane.
        variant: Variant,
        /// Its number.
        seq: u64,
        /// When.
        at_ms: f64,
    },
    /// Something came that was not recorded.
    Wrong,
    /// Chunks are left out.
    Omitted {
        /// Their lane, where it is known.
        variant: Option<Variant>,
        /// How many.
        count: u64,
    },
    /// The connection broke.
    Broke,
}

/// Watches until it is killed, or the recording is over.
pub async fn main(args: Args) -> ExitCode {
    match run(&args.plan).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr().lock(), "{error}");
            ExitCode::from(2)
        }
    }
}

async fn run(plan: &Path) -> Result<(), Error> {
    let plan: Plan = serde_json::from_slice(&std::fs::read(plan)?)?;
    let session = Session::read(&plan.session)?;
    let config = Config {
        relay: Endpoint::parse(&plan.relay, Trust::file(&plan.certificate)?)?,
        transport: plan.transport.client(),
        group_key: GroupKey::read(&plan.group_key)?,
        incident: session.incident.clone(),
        lanes: None,
        from: StartWord::Live,
        max_chunk: MAX_CHUNK,
    };
    let mut watch = Watch::start(config, Arc::new(FixedAuthority::new(session, TokenForm::Jwt, None)));
    while let Some(event) = watch.next().await {
        let said = match event {
            Event::Watching { .. } => Said::Watching,
            Event::Complete(whole) => {
                let at_ms = unix_ms();
                let variant = whole.label.variant;
                let seq = whole.lane_seq.filter(|seq| is_recorded(&plan, variant, *seq, &whole.plaintext));
                seq.map_or(Said::Wrong, |seq| Said::Whole { variant, seq, at_ms })
            }
            Event::Bad { .. } => Said::Wrong,
            Event::Omitted { variant, count, .. } => Said::Omitted { variant, count },
            Event::Disconnected { .. } => Said::Broke,
            _ => continue,
        };
        let mut out = std::io::stdout().lock();
        // Whoever listened has gone.
        let _ = writeln!(out, "{}", serde_json::to_string(&said)?).and_then(|()| out.flush());
    }
    Ok(())
}

fn is_recorded(plan: &Plan, variant: Variant, seq: u64, plaintext: &[u8]) -> bool {
    let lane = plan.lanes.iter().find(|lane| lane.variant == variant && seq < lane.to);
    lane.is_some_and(|lane| content::plaintext(plan.seed, variant, seq, lane.bytes) == plaintext)
}
