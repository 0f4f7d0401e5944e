//! One session that is watched by many contacts: every chunk must reach every contact, byte for
//! byte.

mod contact;
mod follower;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use waystation_proto::Variant;

use crate::Failure;
use crate::chunks::Maker;
use crate::link::{self, Link};
use crate::report::{self, Counted, Report};
use crate::rig::{Rig, Setup, Usage};
use crate::upload::{bytes, complain, upload_capability};
use contact::Contact;
use follower::Published;

/// Contacts that connect at the same time, before the run.
const CONTACTS_AT_ONCE: usize = 16;
/// Deliveries that stand still for this long after the last upload do not come any more.
const PATIENCE: Duration = Duration::from_secs(20);

/// Which way contacts receive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Transport {
    /// `/watch` over a WebSocket and TLS
    Wss,
    /// `/watch` over HTTP/3
    H3,
}

impl Transport {
    /// Its name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Wss => "wss",
            Self::H3 => "h3",
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
    #[arg(long, default_value = "256KiB", value_parser = bytes)]
    pub size: u64,
    /// Chunks a second; 0: the next one as soon as every contact has the last
    #[arg(long, default_value_t = 4.0)]
    pub rate: f64,
    /// How long
    #[arg(long, default_value_t = 10, conflicts_with = "chunks")]
    pub seconds: u64,
    /// How many chunks, instead
    #[arg(long)]
    pub chunks: Option<u32>,
    /// Which way contacts receive
    #[arg(long, value_enum, default_value = "wss")]
    pub transport: Transport,
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
    let rig = Rig::start(&Setup { directory: args.directory.clone(), toml: limits(&args) }).await?;
    let session = rig.session(&[Variant::LivePreview]).await?;
    let watch = session.fanout_capability.clone().ok_or(Failure::Wire("a session without a capability"))?;
    let published = Arc::new(Published::default());
    let connecting =
        stream::iter(0..args.contacts).map(|_| Contact::connect(&rig, args.transport, &watch, Arc::clone(&published)));
    let contacts: Vec<Contact> = connecting.buffer_unordered(CONTACTS_AT_ONCE).try_collect().await?;
    let stop = CancellationToken::new();
    let mut watching = JoinSet::new();
    for contact in contacts {
        watching.spawn(contact.run(stop.clone()));
    }
    let token = upload_capability(&session)?;
    let size = usize::try_from(args.size).map_err(|_| Failure::Wire("the size"))?;
    let link = Link::connect(&rig, link::Transport::H1, &token).await?;
    let mut uploader = Uploader { link, maker: Maker::new(&session, size)?, token, published: Arc::clone(&published) };
    let (before, began) = (rig.usage()?, Instant::now());
    let sent = uploader.run(&args, began).await?;
    published.until_delivered(sent * u64::from(args.contacts), PATIENCE).await;
    let usage = rig.usage()?;
    stop.cancel();
    let mut deliveries = Vec::new();
    while let Some(ended) = watching.join_next().await {
        deliveries.extend(ended.map_err(|_| Failure::Wire("a contact panicked"))?);
    }
    let counted = count(&published, &deliveries, sent * u64::from(args.contacts), (before, usage), began);
    let mut report = Report::new("fanout", args.size, args.contacts.into(), counted);
    report.transport = Some(args.transport.as_str());
    Ok(report)
}

fn count(
    published: &Published,
    deliveries: &[(u64, Instant)],
    expected: u64,
    (before, after): (Usage, Usage),
    began: Instant,
) -> Counted {
    let latency = |(index, at): &(u64, Instant)| at.saturating_duration_since(published.sent_at(*index).unwrap_or(*at));
    let last = deliveries.iter().map(|(_, at)| *at).max().unwrap_or(began);
    let chunks = deliveries.len() as u64;
    Counted {
        time: last - began,
        chunks,
        bytes: deliveries.iter().map(|(index, _)| published.length(*index)).sum(),
        latencies: deliveries.iter().map(latency).collect(),
        cpu: after.cpu.saturating_sub(before.cpu),
        max_rss: after.max_rss,
        lost: expected.saturating_sub(chunks),
    }
}

/// All contacts come from one address, belong to one group and share a capability, which has a
/// sixteenth of the group's seats.
fn limits(args: &Args) -> String {
    format!(
        "[limits]\nhandshakes_per_second = 10000\nrequests_per_client = 1000000\ncontacts_per_group = {}\n",
        16 * (u32::from(args.contacts) + 8)
    )
}

/// The one who is watched.
struct Uploader {
    link: Link,
    maker: Maker,
    token: String,
    published: Arc<Published>,
}

impl Uploader {
    /// Returns how many chunks were sent.
    async fn run(&mut self, args: &Args, began: Instant) -> Result<u64, Failure> {
        let until = args.chunks.is_none().then(|| began + Duration::from_secs(args.seconds));
        let mut sent = 0;
        while args.chunks.is_none_or(|most| sent < u64::from(most)) {
            if args.rate > 0.0 {
                let due = began + Duration::from_secs_f64(sent as f64 / args.rate);
                tokio::time::sleep_until(due.into()).await;
            }
            if until.is_some_and(|until| Instant::now() >= until) {
                break;
            }
            sent += 1;
            self.put().await?;
            if args.rate <= 0.0 {
                self.published.until_delivered(sent * u64::from(args.contacts), PATIENCE).await;
            }
        }
        Ok(sent)
    }

    async fn put(&mut self) -> Result<(), Failure> {
        let chunk = self.maker.next_chunk()?;
        self.published.announce(chunk.offer.index, chunk.bytes.clone());
        let verdict = self.link.put(&chunk, &self.token).await?;
        self.published.sent(chunk.offer.index, verdict.sent);
        if !verdict.confirmed {
            complain(verdict.refusal.as_deref().unwrap_or("without a reason"));
        }
        Ok(())
    }
}
