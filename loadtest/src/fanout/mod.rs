//! One session that is watched by many contacts: every chunk must reach every contact, byte for
//! byte.

mod asking;
pub mod ceiling;
mod contact;
mod follower;
mod found;
mod session;
mod troubled;
mod uploader;
mod wire;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use waystation_client::session::Session;
use waystation_proto::{Media, Variant};

use crate::Failure;
use crate::link::Reading;
use crate::report::{Counted, Report};
use crate::rig::{Cores, Rig, Setup, Usage};
use crate::upload::bytes;
use contact::Contact;
use follower::{Published, key};
pub use found::Found;
use uploader::{Beside, Pace, Uploader};

/// Contacts that connect at the same time, before the run.
const CONTACTS_AT_ONCE: usize = 16;
/// Deliveries that stand still for this long after the last upload do not come any more.
const PATIENCE: Duration = Duration::from_secs(20);
/// Chunks a second while it is looked at how long they take, where nothing else was asked for.
const USUAL_RATE: f64 = 4.0;
/// What connecting leaves behind in the relay is gone after this.
const SETTLE: Duration = Duration::from_secs(3);
/// A share of the contacts that compares every byte; the others look at order and number.
const COMPARING: u16 = 8;
/// Another session uploads by itself and beside the fan-out in turns: what else the machine does concerns both.
const ROUNDS: u32 = 5;
/// Bytes of a chunk of another session, uploaded beside the fan-out.
const BESIDE_BYTES: usize = 1 << 20;

/// Which way contacts receive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Transport {
    /// `/watch` over a WebSocket and TLS
    Wss,
    /// `/watch` over HTTP/3, all that is sent on one stream
    H3,
    /// The same, and each chunk by a request of its own, the next one asked for ahead
    H3Chunks,
    /// `/watch` over WebTransport, each chunk on a stream of its own
    Wt,
}

impl Transport {
    /// Its name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Wss => "wss",
            Self::H3 => "h3",
            Self::H3Chunks => "h3-chunks",
            Self::Wt => "wt",
        }
    }
}

/// `waystation-loadtest fanout`
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Contacts, each with a connection of its own
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..))]
    pub contacts: u16,
    /// Bytes of a chunk's plaintext
    #[arg(long, alias = "size", default_value = "256KiB", value_parser = bytes)]
    pub payload: u64,
    /// Chunks a second; 0: the next one as soon as every contact has the last. Without: half of the time
    /// that for the processor's seconds, and half of it 4 a second for how long chunks take
    #[arg(long)]
    pub rate: Option<f64>,
    /// How long
    #[arg(long, default_value_t = 10, conflicts_with = "chunks")]
    pub seconds: u64,
    /// How many chunks, instead
    #[arg(long)]
    pub chunks: Option<u32>,
    /// Runs once for each of these numbers of contacts instead, one after the other
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..), conflicts_with = "troubled")]
    pub sweep: Vec<u16>,
    /// Directory for a plot of what contacts cost, over their number
    #[arg(long, requires = "sweep")]
    pub plots: Option<PathBuf>,
    /// Which way contacts receive
    #[arg(long, value_enum, default_value = "wss")]
    pub transport: Transport,
    /// Contacts only connect and are sent nothing: what they cost in memory
    #[arg(long)]
    pub idle: bool,
    /// How fast another session's uploads of 1 MiB are, by themselves and beside the fan-out
    #[arg(long)]
    pub uploads: bool,
    /// What the same deliveries over TLS cost a server that does nothing else, and how long they take it,
    /// measured before and after
    #[arg(long, conflicts_with_all = ["idle", "troubled"])]
    pub ceiling: bool,
    /// 100 contacts by themselves, then beside one at 48 kbit/s, one that stops reading and one that
    /// connects anew every second
    #[arg(long, conflicts_with_all = ["idle", "uploads", "rate", "chunks"])]
    pub troubled: bool,
    /// Let the relay run on every core
    #[arg(long)]
    pub unpinned: bool,
    /// Where the staging directory is made
    #[arg(long)]
    pub directory: Option<PathBuf>,
    /// One line of JSON
    #[arg(long)]
    pub json: bool,
}

/// Leaves one core to the relay; before anything else of this program runs.
pub fn prepare(args: &Args) {
    if !args.unpinned {
        Cores::leave_one();
    }
}

/// Runs it and says what it found.
pub async fn main(args: Args) -> ExitCode {
    let json = args.json;
    if args.troubled {
        return troubled::main(args).await;
    }
    if !args.sweep.is_empty() {
        return found::end(sweep(args).await, json);
    }
    found::end(run(args).await.map(|found| vec![found]), json)
}

/// Measures for each number of contacts, and before that what the uploads alone cost.
async fn sweep(args: Args) -> Result<Vec<Found>, Failure> {
    let mut all = Vec::new();
    let uploads = Box::pin(run(Args { contacts: 0, ceiling: false, ..args.clone() })).await?.report.cpu_s_per_gb;
    for contacts in &args.sweep {
        let mut found = Box::pin(run(Args { contacts: *contacts, ..args.clone() })).await?;
        let own = found.report.cpu_s_per_gb - uploads / f64::from(*contacts);
        found.contacts_s_per_gb = Some((own * 1000.0).round() / 1000.0);
        all.push(found);
    }
    if let Some(dir) = &args.plots {
        found::plot(&all, args.transport, dir)?;
    }
    Ok(all)
}

/// Measures.
///
/// # Errors
/// [`Failure`].
pub async fn run(args: Args) -> Result<Found, Failure> {
    let core = if args.unpinned { None } else { Cores::left() };
    let rig = Arc::new(Rig::start(&Setup { directory: args.directory.clone(), toml: limits(&args), core }).await?);
    let (how, time) = ((args.contacts, args.payload), Duration::from_secs(args.seconds) / 2);
    let ceiling = if args.ceiling && args.transport == Transport::Wss {
        Some(ceiling::measure(&rig, how, core, time).await?)
    } else {
        None
    };
    let session = rig.session(&[Variant::LivePreview]).await?;
    let published = Arc::new(Published::default());
    let empty = rig.usage()?;
    let contacts = connect(&args, &rig, &session, &published).await?;
    tokio::time::sleep(SETTLE).await;
    let idle = rig.usage()?;
    let stop = CancellationToken::new();
    let mut watching = JoinSet::new();
    for contact in contacts {
        watching.spawn(contact.run(stop.clone()));
    }
    let mut phases = Vec::new();
    let mut uploads = None;
    if !args.idle {
        let size = usize::try_from(args.payload).map_err(|_| Failure::Wire("the size"))?;
        let contacts = u64::from(args.contacts);
        let uploader = Uploader::connect(&rig, &session, size, Arc::clone(&published), contacts).await?;
        (phases, uploads) = upload(&args, &rig, uploader).await?;
    }
    stop.cancel();
    let ceiling = match ceiling {
        Some(before) => Some(before.with(ceiling::measure(&rig, how, core, time).await?)),
        None => None,
    };
    let mut deliveries = Vec::new();
    while let Some(ended) = watching.join_next().await {
        deliveries.extend(ended.map_err(|_| Failure::Wire("a contact panicked"))?);
    }
    let counted = count(&args, &published, &deliveries, &phases, rig.usage()?);
    let found = found(&args, counted, (empty, idle), core.is_some(), uploads);
    let (ceiling_s_per_gb, ceiling_p99_ms) =
        ceiling.map(|ceiling| (digits(ceiling.s_per_gb), digits(ceiling.p99_ms()))).unzip();
    Ok(Found { ceiling_s_per_gb, ceiling_p99_ms, ..found })
}

/// Connects so many contacts.
async fn connect(
    args: &Args,
    rig: &Rig,
    session: &Session,
    published: &Arc<Published>,
) -> Result<Vec<Contact>, Failure> {
    let way = (args.transport, Reading::Ahead);
    let one =
        |number: u16| Contact::connect(rig, way, session, Arc::clone(published), number.is_multiple_of(COMPARING));
    stream::iter(0..args.contacts).map(one).buffer_unordered(CONTACTS_AT_ONCE).try_collect().await
}

/// A part of the run.
struct Phase {
    /// Its chunks: from, and up to but without.
    chunks: (u64, u64),
    began: Instant,
    before: Usage,
    after: Usage,
    /// Whether it tells how long chunks take.
    timed: bool,
    /// Whether it tells what they cost.
    weighed: bool,
}

type Uploads = Option<[f64; 2]>;

/// All parts of the run, and beside which speed of other uploads.
async fn upload(args: &Args, rig: &Arc<Rig>, mut uploader: Uploader) -> Result<(Vec<Phase>, Uploads), Failure> {
    let whole = Duration::from_secs(args.seconds);
    let paces = match (args.rate, args.chunks) {
        (Some(rate), _) => vec![(Pace { rate, time: whole, chunks: args.chunks }, true, true)],
        (None, Some(_)) => vec![(Pace { rate: USUAL_RATE, time: whole, chunks: args.chunks }, true, true)],
        (None, None) => {
            let pace = |rate| Pace { rate, time: whole / 2, chunks: None };
            vec![(pace(0.0), false, true), (pace(USUAL_RATE), true, false)]
        }
    };
    let beside = if args.uploads { Some(Beside::connect(rig, BESIDE_BYTES).await?) } else { None };
    let mut uploads = None;
    let mut phases = Vec::new();
    for (pace, timed, weighed) in paces {
        let rounds = if beside.is_some() && timed { ROUNDS } else { 1 };
        let (pace, round) = (Pace { time: pace.time / rounds, ..pace }, whole / 2 / rounds);
        for _ in 0..rounds {
            let alone = match beside.as_ref().filter(|_| timed) {
                Some(beside) => beside.run(round).await?,
                None => 0.0,
            };
            let (before, began) = (rig.usage()?, Instant::now());
            let chunks = match beside.as_ref().filter(|_| timed) {
                None => uploader.run(pace).await?,
                Some(beside) => {
                    let (chunks, with) = tokio::join!(uploader.run(pace), beside.run(round));
                    let [alone_all, with_all] = uploads.get_or_insert([0.0; 2]);
                    *alone_all += alone / f64::from(rounds);
                    *with_all += with? / f64::from(rounds);
                    chunks?
                }
            };
            phases.push(Phase { chunks, began, before, after: rig.usage()?, timed, weighed });
        }
    }
    Ok((phases, uploads))
}

fn count(args: &Args, published: &Published, deliveries: &[(u64, Instant)], phases: &[Phase], last: Usage) -> Counted {
    let mut counted = Counted { max_rss: last.max_rss, ..Counted::default() };
    for phase in phases {
        let of = |key: &u64| (phase.chunks.0..phase.chunks.1).contains(&(key / 2));
        let here: Vec<_> = deliveries.iter().filter(|(key, _)| of(key)).collect();
        counted.lost +=
            ((phase.chunks.1 - phase.chunks.0) * u64::from(args.contacts)).saturating_sub(here.len() as u64);
        if phase.timed {
            let took = |index, at: &Instant| at.saturating_duration_since(published.sent_at(index).unwrap_or(*at));
            counted.latencies.extend(here.iter().map(|(index, at)| took(*index, at)));
        }
        if phase.weighed {
            let last = here.iter().map(|(_, at)| *at).max().unwrap_or(phase.began);
            counted.time += last - phase.began;
            counted.chunks += here.len() as u64;
            counted.bytes += match args.contacts {
                // Nobody watches: what is weighed is the upload.
                0 => (phase.chunks.0..phase.chunks.1).map(|index| published.length(key(Media::Video, index))).sum(),
                _ => here.iter().map(|(index, _)| published.length(*index)).sum::<u64>(),
            };
            counted.cpu += phase.after.cpu.saturating_sub(phase.before.cpu);
        }
    }
    counted
}

fn found(args: &Args, counted: Counted, idle: (Usage, Usage), pinned: bool, uploads: Uploads) -> Found {
    let max_rss = counted.max_rss;
    let mut report = Report::new("fanout", args.payload, args.contacts.into(), counted);
    report.transport = Some(args.transport.as_str());
    let grown = idle.1.rss.saturating_sub(idle.0.rss) as f64 / 1024.0 / f64::from(args.contacts.max(1));
    let kept = uploads.map(|[alone, with]| with / alone);
    Found {
        report,
        contacts: args.contacts.into(),
        payload: args.payload,
        pinned,
        idle_kib_per_contact: digits(grown),
        max_rss,
        uploads_mb_s: uploads.map(|both| both.map(digits)),
        uploads_kept: kept.map(digits),
        contacts_s_per_gb: None,
        ceiling_s_per_gb: None,
        ceiling_p99_ms: None,
    }
}

fn digits(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

/// All contacts come from one address, belong to one group and share a capability, which has a
/// sixteenth of the group's seats; one address has half of the connections.
fn limits(args: &Args) -> String {
    let contacts = u32::from(args.contacts);
    format!(
        "[limits]\nhandshakes_per_second = 10000\nrequests_per_client = 1000000\ncontacts_per_group = {}\n\
         connections = {}\n",
        16 * (contacts + 8),
        2 * (contacts + 64)
    )
}
