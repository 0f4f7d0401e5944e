//! Native HTTP over one QUIC connection: each chunk is a `PUT` on a stream of its own, and one
//! writer sends them all, in the order of mercy.
//!
//! The writer opens a chunk's stream when its turn comes, writes a little, and asks the plan
//! again; how much may lie written and not acknowledged is the gauge's concern. So a chunk of
//! sound overtakes a master that is half sent after a few packets, and what is lost goes again
//! before what was not sent yet.

mod names;
mod puts;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;
use waystation_congestion::{Beat, Owes, Path, Pulse};
use waystation_proto::ChunkState;

use super::book::Verdict;
use super::control::{self, Say};
use super::link::{Beside, Dial, FromLink, Job, Link, ToLink};
use super::native::{self, MAX_OFFSETS};
use super::plan::Next;
use super::sign::Line;
use crate::connect::ConnectError;
use crate::h3link::{CAPTURE_KEEP_ALIVE, Early, H3, Sending};
use crate::http::{Broken, Reply};
use names::Names;
use puts::{Entry, Waiting};

/// Chunks given to the connection at once: the next one's bytes are at hand when the last one's
/// are written.
const BODIES: usize = 4;
/// The relay may take this long beyond what it was asked to wait.
const GRACE: Duration = Duration::from_secs(20);
/// How often the connection is looked at.
const TICK: Duration = Duration::from_millis(100);
/// The path is told at every so many looks.
const PATH_EVERY: u32 = 2;
/// A handshake that was begun together with the first requests must be done by then.
pub(super) const EARLY_LIMIT: Duration = Duration::from_secs(3);

/// Makes the one connection that every request uses. `early`: requests may go before the
/// handshake is complete.
pub(crate) async fn connect(dial: Dial, early: bool) -> Result<Link, ConnectError> {
    let (connection, early) = match early {
        true => H3::connect_early(&dial.relay).await?,
        false => (H3::connect(&dial.relay, CAPTURE_KEEP_ALIVE).await?, None),
    };
    Ok(Link::spawn(BODIES, move |jobs, news| run(connection, early, dial, jobs, news)))
}

pub(super) struct Shared {
    pub(super) connection: H3,
    wait_s: u64,
    waiting: Mutex<Waiting>,
    /// The capabilities that the relay knows by name on this connection.
    pub(super) names: Names,
    wake: Notify,
    written: Mutex<Instant>,
    pub(super) news: mpsc::Sender<FromLink>,
}

async fn run(
    connection: H3,
    early: Option<Early>,
    mut dial: Dial,
    mut jobs: mpsc::Receiver<ToLink>,
    news: mpsc::Sender<FromLink>,
) {
    let wait_s = dial.wait_s;
    let (say, sayings) = mpsc::channel(control::SAYINGS);
    let shared = Arc::new(Shared {
        connection,
        wait_s,
        waiting: Mutex::default(),
        names: Names::default(),
        wake: Notify::new(),
        written: Mutex::new(Instant::now()),
        news: news.clone(),
    });
    let mut control =
        AbortOnDropHandle::new(tokio::spawn(control::run(Arc::clone(&shared), dial.tokens.clone(), sayings)));
    let _writer = AbortOnDropHandle::new(tokio::spawn(write(Arc::clone(&shared))));
    let mut running = JoinSet::new();
    let (mut pulse, mut beside) = (Pulse::default(), Beside::default());
    let mut tick = tokio::time::interval(TICK);
    let mut seen = Seen::default();
    let mut refused = std::pin::pin!(refused(early));
    loop {
        tokio::select! {
            job = jobs.recv() => match job {
                Some(ToLink::Job(job)) => drop(running.spawn(Arc::clone(&shared).bring(Arc::new(*job)))),
                // Each job brings its own capability; another connection may need this one.
                Some(ToLink::Capability(token)) => {
                    // A full channel belongs to a stream that is gone; its HELLO brings the token.
                    let _ = say.try_send(Say::Capability(token.clone()));
                    dial.add(token);
                }
                Some(ToLink::Moved) => {
                    shared.connection.rebind();
                    shared.connection.nudge(true);
                }
                Some(ToLink::End(reason)) => {
                    let _ = say.try_send(Say::End(reason));
                    let _ = (&mut control).await;
                    return;
                }
                None => return,
            },
            Some(_) = running.join_next() => {}
            _ = tick.tick() => {
                look(&mut pulse, &shared, &dial, &mut beside);
                seen.tell(&shared);
            }
            Some(better) = beside.ready() => drop(news.send(FromLink::Better(Box::new(better))).await),
            () = &mut refused => break,
            () = shared.connection.closed() => break,
        }
    }
    let _ = news.send(FromLink::Closed { code: None, retry_after_s: None }).await;
}

/// Waits until the relay did not take what was sent early; for ever if it did.
async fn refused(early: Option<Early>) {
    if let Some(early) = early
        && tokio::time::timeout(EARLY_LIMIT, early).await != Ok(true)
    {
        return;
    }
    std::future::pending().await
}

/// What was last told of the path, and how many looks ago.
#[derive(Default)]
struct Seen {
    path: Path,
    looks: u32,
}

impl Seen {
    /// Tells the path as it is now, if it is another than before. News go first: where there is no
    /// place for it now, the next look has it.
    fn tell(&mut self, shared: &Shared) {
        self.looks += 1;
        let path = shared.connection.gauge().path();
        if self.looks >= PATH_EVERY && path != self.path && shared.news.try_send(FromLink::Path(path)).is_ok() {
            *self = Self { path, looks: 0 };
        }
    }
}

/// Looks whether the connection is alive, and helps it.
fn look(pulse: &mut Pulse, shared: &Shared, dial: &Dial, beside: &mut Beside) {
    let gauge = shared.connection.gauge();
    let owes = gauge.owes(shared.with_quietly(|waiting| waiting.unanswered.0 > 0));
    match pulse.look(gauge.silence(owes), gauge.path().rtt, owes) {
        Beat::Rest => {}
        Beat::Poke => shared.connection.nudge(true),
        Beat::Ask => shared.connection.nudge(false),
        Beat::Stalls => {
            // The route may be another by now, and a NAT may have forgotten the old port.
            shared.connection.rebind();
            shared.connection.nudge(true);
        }
        Beat::Flows => beside.stop(),
    }
    if pulse.stalls() {
        beside.begin(dial.clone().connect(false));
    }
}

impl Shared {
    /// What the next sign of life depends on.
    pub(super) fn line(&self) -> Line {
        let written = *self.written.lock().unwrap_or_else(PoisonError::into_inner);
        let silence = self.connection.gauge().silence(Owes::Sign).unwrap_or_default();
        Line { written, wire: self.connection.wire_bytes(), silence }
    }

    /// Something is written now, at the time that is returned.
    pub(super) fn wrote(&self) -> Instant {
        let now = Instant::now();
        *self.written.lock().unwrap_or_else(PoisonError::into_inner) = now;
        now
    }

    fn with<T>(&self, change: impl FnOnce(&mut Waiting) -> T) -> T {
        let out = change(&mut self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
        self.wake.notify_one();
        out
    }

    async fn bring(self: Arc<Self>, job: Arc<Job>) {
        let (id, attempt) = (job.id, job.offer.attempt);
        let last = match self.verdict(&job).await {
            Ok(verdict) => FromLink::Verdict { id, attempt, verdict },
            Err(Broken) => FromLink::Broken { id, attempt },
        };
        // The session may be gone already; then nobody needs to know.
        let _ = self.news.send(last).await;
    }

    /// Brings what is missing and returns what the relay answered.
    async fn verdict(&self, job: &Arc<Job>) -> Result<Verdict, Broken> {
        let mut offset = 0;
        if job.resume {
            let asking = self.connection.ask(native::head(job)?);
            match native::held(&limited(GRACE, asking).await?, job) {
                Ok(held) => offset = held,
                Err(verdict) => return Ok(*verdict),
            }
            let (id, attempt) = (job.id, job.offer.attempt);
            let _ = self.news.send(FromLink::Offset { id, attempt, offset }).await;
        }
        for _ in 0..MAX_OFFSETS {
            let reply = self.put(job, offset).await?;
            if native::asks_for_the_token(&reply) {
                self.names.end();
                continue;
            }
            self.names.learn(&job.token, reply.status);
            match native::corrected(&reply, job, offset) {
                Some(other) => offset = other,
                None => return native::read(&reply, job),
            }
        }
        Err(Broken)
    }

    async fn put(&self, job: &Arc<Job>, offset: u64) -> Result<Reply, Broken> {
        let limit = Duration::from_secs(self.wait_s) + GRACE;
        let (begun, receiving) = oneshot::channel();
        let (handle, wait_s) = self.with(|waiting| waiting.begin(job, offset, self.wait_s, begun));
        let put = Put { shared: self, handle, length: job.offer.length };
        if offset >= job.offer.length {
            return limited(limit, self.connection.ask(native::put(job, offset, wait_s, self.names.has(&job.token))?))
                .await;
        }
        let mut reply = std::pin::pin!(receiving.await.map_err(|_| Broken)?.reply());
        // As long as bytes wait the connection's own silence counts; then the relay's promise.
        loop {
            match tokio::time::timeout(limit, &mut reply).await {
                Ok(reply) => return reply,
                Err(_) if self.with_quietly(|waiting| waiting.plan.holds(put.handle)) => {}
                Err(_) => return Err(Broken),
            }
        }
    }
}

/// A `PUT` that is under way. When it goes, whatever came of it, nothing more of it is sent.
struct Put<'a> {
    shared: &'a Shared,
    handle: u64,
    length: u64,
}

impl Drop for Put<'_> {
    fn drop(&mut self) {
        self.shared.with(|waiting| waiting.end(self.handle, self.length));
    }
}

async fn limited<T>(limit: Duration, work: impl Future<Output = Result<T, Broken>>) -> Result<T, Broken> {
    tokio::time::timeout(limit, work).await.map_err(|_| Broken)?
}

/// A piece that was handed over, with the stream to go on with.
type Handed = (Next, Option<Sending>);

/// Sends pieces as long as there are any. The one place that writes bodies.
async fn write(shared: Arc<Shared>) {
    let mut streams: HashMap<u64, Sending> = HashMap::new();
    // Pieces that the relay does not take now: it holds up one chunk, and no other.
    let mut blocked = FuturesUnordered::new();
    loop {
        let woken = shared.wake.notified();
        let next = shared.next(&mut streams);
        match next {
            Some(next) => {
                let stream = streams.remove(&next.handle);
                let mut work = Box::pin(shared.piece(stream, next));
                match futures_util::poll!(&mut work) {
                    Poll::Ready(handed) => shared.handed(handed, &mut streams).await,
                    Poll::Pending => blocked.push(work),
                }
                shared.connection.gauge().room().await;
            }
            None => tokio::select! {
                () = woken => {}
                Some(handed) = blocked.next(), if !blocked.is_empty() => shared.handed(handed, &mut streams).await,
            },
        }
    }
}

impl Shared {
    /// As [`Shared::with`], for the writer, which needs no waking.
    fn with_quietly<T>(&self, change: impl FnOnce(&mut Waiting) -> T) -> T {
        change(&mut self.waiting.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The next piece; its chunk waits until it is handed over.
    fn next(&self, streams: &mut HashMap<u64, Sending>) -> Option<Next> {
        let path = self.connection.gauge().path();
        self.with_quietly(|waiting| {
            streams.retain(|id, _| waiting.entries.contains_key(id));
            let next = waiting.next(path)?;
            waiting.plan.pause(next.handle, true);
            Some(next)
        })
    }

    async fn piece(&self, stream: Option<Sending>, next: Next) -> Handed {
        let bytes = next.bytes.clone();
        let handing = async {
            let mut sending = match stream {
                Some(stream) => stream,
                None => self.begin(next.handle).await?,
            };
            self.wrote();
            sending.send(bytes).await?;
            if next.last {
                sending.finish().await?;
            }
            Ok::<Sending, Broken>(sending)
        };
        let sending = handing.await.ok();
        (next, sending)
    }

    async fn handed(&self, (next, sending): Handed, streams: &mut HashMap<u64, Sending>) {
        let handle = next.handle;
        match sending {
            Some(_) if next.last => self.sent(handle).await,
            Some(sending) => {
                streams.insert(handle, sending);
                self.with_quietly(|waiting| waiting.plan.pause(handle, false));
            }
            // The answer, or its absence, tells the rest.
            None => self.with_quietly(|waiting| waiting.plan.forget(handle)),
        }
    }

    /// Opens the stream of a chunk whose turn has come.
    async fn begin(&self, handle: u64) -> Result<Sending, Broken> {
        let found = self.with_quietly(|waiting| {
            let entry = waiting.entries.get_mut(&handle)?;
            Some((Arc::clone(&entry.job), entry.offset, entry.wait_s, entry.begun.take()?))
        });
        let (job, offset, wait_s, begun) = found.ok_or(Broken)?;
        let (sending, receiving) = self
            .connection
            .begin(native::put(&job, offset, wait_s, self.names.has(&job.token))?, job.rank.priority())
            .await?;
        begun.send(receiving).map_err(|_| Broken)?;
        let verdict = Verdict { state: Some(ChunkState::Receiving), ..Verdict::default() };
        let _ = self.news.send(FromLink::Verdict { id: job.id, attempt: job.offer.attempt, verdict }).await;
        Ok(sending)
    }

    async fn sent(&self, handle: u64) {
        let of = |entry: &Entry| (entry.job.id, entry.job.offer.attempt);
        if let Some((id, attempt)) = self.with_quietly(|waiting| waiting.entries.get(&handle).map(of)) {
            let _ = self.news.send(FromLink::Sent { id, attempt }).await;
        }
    }
}
