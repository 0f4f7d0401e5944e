//! Native HTTP over HTTP/1.1: one `PUT /chunks/{ref}` for each chunk, each on a connection of its
//! own while it runs.
//!
//! A chunk that was offered before is asked about first (`HEAD`), and goes on from the relay's
//! offset. A chunk that the relay holds whole is asked for by a `PUT` of its empty rest, which
//! waits for the verdict as the first one did.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use waystation_proto::ChunkState;

use super::book::Verdict;
use super::link::{FromLink, Job, Link, ToLink};
use super::native::{self, MAX_OFFSETS, meanwhile};
use crate::connect::{ConnectError, Endpoint};
use crate::http::{self as wire, Broken, Client, Progress, Reply, Upload};

/// What is taken for a round trip: the kernel tells none, and has bytes that wait.
const ROUND_TRIP: Duration = Duration::from_millis(800);
/// A body that is not stalled moves: told so often.
const MOVES_EVERY: Duration = Duration::from_secs(10);
/// Bodies that move at once.
const BODIES: usize = 6;

/// Checks that the relay can be reached; connections are made as requests need them.
pub(crate) async fn connect(endpoint: &Endpoint, wait_s: u64) -> Result<Link, ConnectError> {
    drop(endpoint.stream(true).await?);
    let client = Arc::new(Client::new(endpoint));
    let mut link = Link::spawn(BODIES, move |jobs, news| run(client, wait_s, jobs, news));
    link.room.asked = 0;
    Ok(link)
}

async fn run(client: Arc<Client>, wait_s: u64, mut jobs: mpsc::Receiver<ToLink>, news: mpsc::Sender<FromLink>) {
    let mut running = JoinSet::new();
    loop {
        tokio::select! {
            job = jobs.recv() => match job {
                Some(ToLink::Job(job)) => {
                    running.spawn(bring(Arc::clone(&client), *job, wait_s, news.clone()));
                }
                // Each job brings its own capability.
                // Each request brings its own, and makes a connection if there is none.
                Some(ToLink::Capability(_) | ToLink::Moved) => {}
                Some(ToLink::End(_)) | None => return,
            },
            Some(_) = running.join_next() => {}
        }
    }
}

async fn bring(client: Arc<Client>, job: Job, wait_s: u64, news: mpsc::Sender<FromLink>) {
    let (id, attempt) = (job.id, job.offer.attempt);
    let last = match verdict(&client, &job, wait_s, &news).await {
        Ok(verdict) => FromLink::Verdict { id, attempt, verdict },
        Err(Broken) => FromLink::Broken { id, attempt },
    };
    // The session may be gone already; then nobody needs to know.
    let _ = news.send(last).await;
}

/// Brings what is missing and returns what the relay answered.
async fn verdict(client: &Client, job: &Job, wait_s: u64, news: &mpsc::Sender<FromLink>) -> Result<Verdict, Broken> {
    let mut offset = 0;
    if job.resume {
        let reply = client.send(native::head(job, false)?, Bytes::new()).await?;
        match native::held(&reply, job) {
            Ok(held) => offset = held,
            Err(verdict) => return Ok(*verdict),
        }
        let (id, attempt) = (job.id, job.offer.attempt);
        let _ = news.send(FromLink::Offset { id, attempt, offset }).await;
        if let Some(verdict) = native::staged(&reply) {
            let _ = news.send(FromLink::Verdict { id, attempt, verdict }).await;
        }
    }
    for _ in 0..MAX_OFFSETS {
        let reply = put(client, job, offset, wait_s, news).await?;
        match native::corrected(&reply, job, offset) {
            Some(other) => offset = other,
            None => return native::read(&reply, job),
        }
    }
    Err(Broken)
}

async fn put(
    client: &Client,
    job: &Job,
    offset: u64,
    wait_s: u64,
    news: &mpsc::Sender<FromLink>,
) -> Result<Reply, Broken> {
    let rest = job.bytes.slice(usize::try_from(offset).map_err(|_| Broken)?.min(job.bytes.len())..);
    let request = native::put(job, offset, wait_s, false)?;
    let (id, attempt) = (job.id, job.offer.attempt);
    if !rest.is_empty() {
        let verdict = Verdict { state: Some(ChunkState::Receiving), ..Verdict::default() };
        let _ = news.send(FromLink::Verdict { id, attempt, verdict }).await;
    }
    let progress = Arc::new(Progress::default());
    let (sent, taken) = oneshot::channel();
    let upload = Upload::new(rest, Arc::clone(&progress), Some(sent));
    let exchange = client.exchange(request, upload);
    let mut work = std::pin::pin!(wire::unless_stalled(exchange, &progress, Duration::from_secs(wait_s)));
    let mut taken = std::pin::pin!(async {
        // Nobody reads the body any more: its answer follows.
        if taken.await.is_err() {
            std::future::pending::<()>().await;
        }
    });
    loop {
        tokio::select! {
            reply = &mut work => return reply,
            () = &mut taken => break,
            () = tokio::time::sleep(MOVES_EVERY) => drop(news.send(FromLink::Moves { id, attempt }).await),
        }
    }
    let _ = news.send(FromLink::Sent { id, attempt }).await;
    let ask = async || client.send(native::head(job, false)?, Bytes::new()).await;
    tokio::select! {
        reply = &mut work => return reply,
        Some(verdict) = meanwhile::held(job, ROUND_TRIP, || Box::pin(ask())) => {
            let _ = news.send(FromLink::Verdict { id, attempt, verdict }).await;
        }
    }
    work.await
}
