//! Native HTTP: one `PUT /chunks/{ref}` for each chunk, in parallel, over HTTP/3 or HTTP/1.1.
//!
//! A chunk that was offered before is asked about first (`HEAD`), and goes on from the relay's
//! offset. A chunk that the relay holds whole is asked for by a `PUT` of its empty rest, which
//! waits for the verdict as the first one did.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use waystation_proto::message::{Answer, Error};
use waystation_proto::{ChunkState, dictionary};

use super::book::Verdict;
use super::link::{FromLink, Job, Link, ToLink};
use crate::connect::{ConnectError, Endpoint};
use crate::h3link::H3;
use crate::http::{self as wire, Broken, Client, Progress, Reply, Upload};

/// Bodies that move at once.
const BODIES: usize = 6;
/// How often one `PUT` follows an `Upload-Offset` that the relay corrected.
const MAX_OFFSETS: usize = 4;

/// Either kind of connection.
#[derive(Clone)]
enum Way {
    H1(Arc<Client>),
    H3(Arc<H3>),
}

/// Checks that the relay can be reached; connections are made as requests need them.
pub(crate) async fn connect_h1(endpoint: &Endpoint, wait_s: u64) -> Result<Link, ConnectError> {
    drop(endpoint.stream().await?);
    let way = Way::H1(Arc::new(Client::new(endpoint)));
    Ok(Link::spawn(BODIES, move |jobs, news| run(way, wait_s, jobs, news)))
}

/// Makes the one connection that every request uses.
pub(crate) async fn connect_h3(endpoint: &Endpoint, wait_s: u64) -> Result<Link, ConnectError> {
    let way = Way::H3(Arc::new(H3::connect(endpoint).await?));
    Ok(Link::spawn(BODIES, move |jobs, news| run(way, wait_s, jobs, news)))
}

async fn run(way: Way, wait_s: u64, mut jobs: mpsc::Receiver<ToLink>, news: mpsc::Sender<FromLink>) {
    let mut running = JoinSet::new();
    loop {
        tokio::select! {
            job = jobs.recv() => match job {
                Some(ToLink::Job(job)) => {
                    running.spawn(bring(way.clone(), *job, wait_s, news.clone()));
                }
                // Each job brings its own capability.
                Some(ToLink::Capability(_)) => {}
                Some(ToLink::End(_)) | None => return,
            },
            Some(_) = running.join_next() => {}
            () = way.closed() => break,
        }
    }
    let _ = news.send(FromLink::Closed { code: None, retry_after_s: None }).await;
}

async fn bring(way: Way, job: Job, wait_s: u64, news: mpsc::Sender<FromLink>) {
    let (id, attempt) = (job.id, job.offer.attempt);
    let last = match verdict(&way, &job, wait_s, &news).await {
        Ok(verdict) => FromLink::Verdict { id, attempt, verdict },
        Err(Broken) => FromLink::Broken { id, attempt },
    };
    // The session may be gone already; then nobody needs to know.
    let _ = news.send(last).await;
}

/// Brings what is missing and returns what the relay answered.
async fn verdict(way: &Way, job: &Job, wait_s: u64, news: &mpsc::Sender<FromLink>) -> Result<Verdict, Broken> {
    let mut offset = 0;
    if job.resume {
        offset = match held(way, job).await? {
            Ok(offset) => offset,
            Err(verdict) => return Ok(verdict),
        };
        let (id, attempt) = (job.id, job.offer.attempt);
        let _ = news.send(FromLink::Offset { id, attempt, offset }).await;
    }
    for _ in 0..MAX_OFFSETS {
        let reply = put(way, job, offset, wait_s, news).await?;
        match corrected(&reply, job, offset) {
            Some(other) => offset = other,
            None => return Ok(read(&reply)),
        }
    }
    Err(Broken)
}

/// Asks how much the relay holds.
async fn held(way: &Way, job: &Job) -> Result<Result<u64, Verdict>, Broken> {
    let request = builder(Method::HEAD, job)?.body(()).map_err(|_| Broken)?;
    let progress = Progress::default();
    let upload = Upload::new(Bytes::new(), Arc::new(Progress::default()), None);
    let reply = wire::unless_stalled(way.exchange(request, upload), &progress, Duration::ZERO).await?;
    Ok(match reply.status {
        StatusCode::NOT_FOUND => Ok(0),
        status if status.is_success() => Ok(upload_offset(&reply.headers).unwrap_or(0).min(job.offer.length)),
        _ => Err(read(&reply)),
    })
}

async fn put(way: &Way, job: &Job, offset: u64, wait_s: u64, news: &mpsc::Sender<FromLink>) -> Result<Reply, Broken> {
    let rest = job.bytes.slice(usize::try_from(offset).map_err(|_| Broken)?.min(job.bytes.len())..);
    let mut request = builder(Method::PUT, job)?
        .header(header::CONTENT_LENGTH, rest.len())
        .header("prefer", format!("wait={wait_s}"))
        .header("repr-digest", dictionary::write_digest(&job.offer.sha256))
        .header("waystation-chunk", dictionary::write_offer(&job.offer));
    if offset > 0 {
        request = request.header("upload-offset", offset);
    }
    let request = request.body(()).map_err(|_| Broken)?;
    let (id, attempt) = (job.id, job.offer.attempt);
    if !rest.is_empty() {
        let verdict = Verdict { state: Some(ChunkState::Receiving), ..Verdict::default() };
        let _ = news.send(FromLink::Verdict { id, attempt, verdict }).await;
    }
    let progress = Arc::new(Progress::default());
    let (sent, taken) = oneshot::channel();
    let upload = Upload::new(rest, Arc::clone(&progress), Some(sent));
    let mut work =
        std::pin::pin!(wire::unless_stalled(way.exchange(request, upload), &progress, Duration::from_secs(wait_s)));
    tokio::select! {
        reply = &mut work => return reply,
        Ok(()) = taken => {}
    }
    let _ = news.send(FromLink::Sent { id, attempt }).await;
    work.await
}

/// The offset to go on from, if the relay says another than the one it was sent.
fn corrected(reply: &Reply, job: &Job, sent: u64) -> Option<u64> {
    let answer: Answer = serde_json::from_slice(&reply.body).ok()?;
    if answer.error?.code != "offset_mismatch" {
        return None;
    }
    let offset = answer.chunk.map(|chunk| chunk.offset).or_else(|| upload_offset(&reply.headers))?;
    (offset != sent && offset <= job.offer.length).then_some(offset)
}

fn read(reply: &Reply) -> Verdict {
    let answer: Option<Answer> = serde_json::from_slice(&reply.body).ok();
    let chunk = answer.and_then(|answer| answer.chunk);
    let done = matches!(reply.status, StatusCode::OK | StatusCode::CREATED);
    let error: Option<Error> = (!done).then(|| wire::error_of(reply.status, &reply.body));
    let state = chunk.as_ref().map(|chunk| chunk.state);
    // Only 200 and 201 say so; a body that says it beside another status is not believed.
    let state = if done { Some(ChunkState::Confirmed) } else { state.filter(|s| *s != ChunkState::Confirmed) };
    let receipt = chunk.and_then(|chunk| chunk.receipt);
    Verdict { state, receipt, error, retry_after_s: wire::retry_after(&reply.headers), last: true }
}

fn builder(method: Method, job: &Job) -> Result<http::request::Builder, Broken> {
    let mut bearer = HeaderValue::try_from(format!("Bearer {}", job.token.as_str())).map_err(|_| Broken)?;
    bearer.set_sensitive(true);
    let path = format!("/chunks/{}", job.offer.chunk_ref());
    Ok(Request::builder().method(method).uri(path).header(header::AUTHORIZATION, bearer))
}

fn upload_offset(headers: &HeaderMap) -> Option<u64> {
    headers.get("upload-offset")?.to_str().ok()?.trim().parse().ok()
}

impl Way {
    async fn exchange(&self, request: Request<()>, upload: Upload) -> Result<Reply, Broken> {
        match self {
            Self::H1(client) => client.exchange(request, upload).await,
            Self::H3(connection) => connection.exchange(request, upload).await,
        }
    }

    /// Waits until the connection is gone; HTTP/1.1 makes new ones as it needs them.
    async fn closed(&self) {
        match self {
            Self::H1(_) => std::future::pending().await,
            Self::H3(connection) => connection.closed().await,
        }
    }
}
