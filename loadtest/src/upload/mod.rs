//! Sessions that bring chunks, each the next one as soon as the core has confirmed the last.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use tokio::task::JoinSet;
use waystation_client::session::Session;
use waystation_proto::Variant;
use waystation_proto::offer::parse_role;

use crate::Failure;
use crate::chunks::Maker;
use crate::link::{Link, Transport};
use crate::report::{self, Counted, Report};
use crate::rig::{Rig, Setup};

/// Sessions made at the same time, before the run.
const SESSIONS_AT_ONCE: usize = 4;

/// `waystation-loadtest upload`
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Sessions that upload at the same time, each with a connection of its own
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..))]
    pub sessions: u16,
    /// Bytes of a chunk's plaintext
    #[arg(long, default_value = "1MiB", value_parser = bytes)]
    pub size: u64,
    /// How long
    #[arg(long, default_value_t = 10, conflicts_with = "chunks")]
    pub seconds: u64,
    /// How many chunks in all, instead
    #[arg(long)]
    pub chunks: Option<u32>,
    /// Which way in
    #[arg(long, value_enum, default_value = "h1")]
    pub transport: Transport,
    /// The chunks' variant role; contacts could watch `live_preview` and `audio_priority`
    #[arg(long, default_value = "evidence_master", value_parser = role)]
    pub role: Variant,
    /// Where the staging directory is made
    #[arg(long)]
    pub directory: Option<PathBuf>,
    /// One line of JSON
    #[arg(long)]
    pub json: bool,
}

/// Runs it and says what it found.
pub async fn main(args: Args) -> ExitCode {
    let json = args.json;
    report::end(run(args).await, json)
}

/// Measures.
///
/// # Errors
/// [`Failure`].
pub async fn run(args: Args) -> Result<Report, Failure> {
    let rig = Rig::start(&Setup { directory: args.directory.clone(), toml: LIMITS.into(), core: None }).await?;
    let opened = stream::iter(0..args.sessions).map(|_| Uploader::open(&rig, &args));
    let uploaders: Vec<Uploader> = opened.buffer_unordered(SESSIONS_AT_ONCE).try_collect().await?;
    let (before, began) = (rig.usage()?, Instant::now());
    let budget = Budget::new(&args, began);
    let mut running = JoinSet::new();
    for uploader in uploaders {
        running.spawn(uploader.run(Arc::clone(&budget)));
    }
    let mut counted = Counted::default();
    let mut sent = 0;
    while let Some(ended) = running.join_next().await {
        let tally = ended.map_err(|_| Failure::Wire("a session panicked"))??;
        sent += tally.sent;
        counted.bytes += tally.bytes;
        counted.latencies.extend(tally.latencies);
    }
    let usage = rig.usage()?;
    counted.time = began.elapsed();
    counted.cpu = usage.cpu.saturating_sub(before.cpu);
    counted.max_rss = usage.max_rss;
    counted.chunks = counted.latencies.len() as u64;
    // Confirmed is what the core itself counted and the uploader was told.
    counted.lost = sent - rig.confirmed().await?.min(counted.chunks);
    let mut report = Report::new("upload", args.size, args.sessions.into(), counted);
    report.transport = Some(args.transport.as_str());
    Ok(report)
}

/// All sessions come from one address, and not one of them is a stranger for long.
const LIMITS: &str = "[limits]\nhandshakes_per_second = 10000\nrequests_per_client = 1000000\n";

/// What a session may still send.
struct Budget {
    until: Option<Instant>,
    chunks: AtomicI64,
}

impl Budget {
    fn new(args: &Args, began: Instant) -> Arc<Self> {
        let until = args.chunks.is_none().then(|| began + Duration::from_secs(args.seconds));
        Arc::new(Self { until, chunks: AtomicI64::new(args.chunks.map_or(i64::MAX, i64::from)) })
    }

    fn take(&self) -> bool {
        self.until.is_none_or(|until| Instant::now() < until) && self.chunks.fetch_sub(1, Ordering::Relaxed) > 0
    }
}

#[derive(Default)]
struct Tally {
    sent: u64,
    bytes: u64,
    latencies: Vec<Duration>,
}

/// One session with its connection.
struct Uploader {
    link: Link,
    maker: Maker,
    token: String,
}

impl Uploader {
    async fn open(rig: &Rig, args: &Args) -> Result<Self, Failure> {
        let session = rig.session(&[args.role]).await?;
        let token = upload_capability(&session)?;
        let size = usize::try_from(args.size).map_err(|_| Failure::Wire("the size"))?;
        let link = Link::connect(rig, args.transport, &token).await?;
        Ok(Self { link, maker: Maker::new(&session, size)?, token })
    }

    async fn run(mut self, budget: Arc<Budget>) -> Result<Tally, Failure> {
        let mut tally = Tally::default();
        while budget.take() {
            let chunk = self.maker.next_chunk()?;
            let began = Instant::now();
            tally.sent += 1;
            let verdict = self.link.put(&chunk, &self.token).await?;
            if verdict.confirmed {
                tally.latencies.push(began.elapsed());
                tally.bytes += chunk.bytes.len() as u64;
            } else {
                complain(verdict.refusal.as_deref().unwrap_or("without a reason"));
            }
        }
        Ok(tally)
    }
}

/// What uploaders present.
///
/// # Errors
/// [`Failure::Wire`] if the session has none.
pub fn upload_capability(session: &Session) -> Result<String, Failure> {
    session.upload_capability.clone().ok_or(Failure::Wire("a session without a capability"))
}

/// Says at once why a chunk is lost; the report only counts.
pub fn complain(refusal: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr().lock(), "not confirmed: {refusal}");
}

/// Reads `1024`, `64KiB`, `1MiB`.
///
/// # Errors
/// A text for the user.
pub fn bytes(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit: u64 = match &text[digits.len()..] {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        _ => return Err("as 1024, 64KiB or 1MiB".to_owned()),
    };
    let number = digits.parse::<u64>().ok().filter(|number| *number > 0);
    number.and_then(|number| number.checked_mul(unit)).ok_or_else(|| "as 1024, 64KiB or 1MiB".to_owned())
}

fn role(text: &str) -> Result<Variant, String> {
    parse_role(text).map_err(|code| code.spec().message.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_binary_units() {
        assert_eq!(bytes("64KiB"), Ok(65_536));
        assert_eq!(bytes("8MiB"), Ok(8 << 20));
        assert_eq!(bytes("7"), Ok(7));
        for bad in ["", "0", "KiB", "1KB", "-1", "1 MiB", "99999999999999999999MiB"] {
            assert!(bytes(bad).is_err(), "{bad}");
        }
    }
}
