//! Native HTTP over one QUIC connection: each chunk is a `PUT` on a stream of its own, and one
//! writer sends them all, in the order of mercy.
//!
//! The writer opens a chunk's stream when its turn comes, writes a little, and asks the plan
//! again; how much may lie written and not acknowledged is the gauge's concern. So a chunk of
//! sound overtakes a master that is half sent after a few packets, and what is lost goes again
//! before what was not sent yet.

mod names;
mod puts;
mod writer;

use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;
use waystation_congestion::{Beat, Owes, Path, Pulse};

use super::book::Verdict;
use super::control::{self, Say};
use super::link::{Beside, Dial, FromLink, Job, Link, ToLink};
use super::native::{self, MAX_OFFSETS, meanwhile};
use super::sign::Line;
use crate::connect::ConnectError;
use crate::h3link::{CAPTURE_KEEP_ALIVE, Early, H3, Receiving};
use crate::http::{Broken, Reply};
use names::Names;
use puts::Waiting;

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

/// A connection that stalls is waited for this long at most once another is there.
const MOST_GRACE: Duration = Duration::from_secs(1);
/// A link that brings fewer bytes a second is thin: a large packet takes 50 ms and more.
const THIN: u64 = 25_000;

/// Makes the one connection that every request uses. `early`: requests may go before the
/// handshake is complete.
pub(crate) async fn connect(dial: Dial, early: bool) -> Result<Link, ConnectError> {
    if !early {
        return connect_after(dial, Duration::ZERO, 0).await;
    }
    let (connection, early) = H3::connect_early(&dial.relay).await?;
    Ok(Link::spawn(BODIES, move |jobs, news| run(connection, early, dial, jobs, news)))
}

/// Makes a connection beside one that stalls, which is left a `grace` once this one is there. No request goes on this
/// one meanwhile: on a thin link it would go before what the other one has to send again. `rate`: bytes a second that the
/// path brought.
pub(super) async fn connect_after(dial: Dial, grace: Duration, rate: u64) -> Result<Link, ConnectError> {
    let connection = if (1..THIN).contains(&rate) {
        H3::connect_thinly(&dial.relay).await?
    } else {
        H3::connect(&dial.relay, CAPTURE_KEEP_ALIVE).await?
    };
    tokio::time::sleep(grace).await;
    Ok(Link::spawn(BODIES, move |jobs, news| run(connection, None, dial, jobs, news)))
}

pub(super) struct Shared {
    pub(super) connection: H3,
    wait_s: u64,
    waiting: Mutex<Waiting>,
    /// The capabilities that the relay knows by name on this connection.
    pub(super) names: Names,
    wake: Notify,
    written: Mutex<Instant>,
    recording: Arc<AtomicBool>,
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
        recording: Arc::clone(&dial.recording),
        news: news.clone(),
    });
    let mut control =
        AbortOnDropHandle::new(tokio::spawn(control::run(Arc::clone(&shared), dial.tokens.clone(), sayings)));
    let _writer = AbortOnDropHandle::new(tokio::spawn(writer::write(Arc::clone(&shared))));
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
                    shared.connection.gauge().elsewhere();
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
                // What is only asked about is owed like its bytes.
                look(&mut pulse, &shared, !running.is_empty(), &dial, &mut beside);
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
fn look(pulse: &mut Pulse, shared: &Shared, chunks: bool, dial: &Dial, beside: &mut Beside) {
    let gauge = shared.connection.gauge();
    let owes = gauge.owes(chunks);
    match pulse.look(gauge.silence(owes), gauge.path().rtt, owes) {
        Beat::Rest => {}
        Beat::Poke => shared.connection.nudge(true),
        Beat::Ask => shared.connection.nudge(false),
        Beat::Stalls => shared.connection.nudge(true),
        Beat::Flows => beside.stop(),
    }
    if pulse.stalls() {
        // Where no chunks went of late, or on another network, it says little.
        let rate = if owes == Owes::Bytes { gauge.path().rate } else { 0 };
        beside.begin(dial.clone().beside(grace(owes, gauge.path().rtt), rate));
    }
}

/// How long a connection that stalls may be late behind the one that is made beside it: one that was
/// heard is asked several times in a round trip, and answers one after.
fn grace(owes: Owes, round_trip: Duration) -> Duration {
    if owes == Owes::Trust { Duration::ZERO } else { round_trip.min(MOST_GRACE) }
}

impl Shared {
    /// Whether signs of life are given.
    pub(super) fn records(&self) -> bool {
        self.recording.load(Ordering::Relaxed)
    }

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

    /// As [`Shared::with`], for the writer, which needs no waking.
    fn with_quietly<T>(&self, change: impl FnOnce(&mut Waiting) -> T) -> T {
        change(&mut self.waiting.lock().unwrap_or_else(PoisonError::into_inner))
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
            let asking = self.connection.ask(native::head(job, false)?);
            let reply = limited(GRACE, asking).await?;
            match native::held(&reply, job) {
                Ok(held) => offset = held,
                Err(verdict) => return Ok(*verdict),
            }
            let (id, attempt) = (job.id, job.offer.attempt);
            let _ = self.news.send(FromLink::Offset { id, attempt, offset }).await;
            // The answer to what follows waits for the core.
            if let Some(verdict) = native::staged(&reply) {
                let _ = self.news.send(FromLink::Verdict { id, attempt, verdict }).await;
            }
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
        let (all, sent) = oneshot::channel();
        let (handle, wait_s) = self.with(|waiting| waiting.begin(job, offset, self.wait_s, begun, all));
        let put = Put { shared: self, handle, length: job.offer.length };
        if offset >= job.offer.length {
            return limited(limit, self.connection.ask(native::put(job, offset, wait_s, self.names.has(&job.token))?))
                .await;
        }
        tokio::select! {
            reply = self.answer(receiving, put.handle, limit) => reply,
            never = self.ask_meanwhile(job, sent) => match never {},
        }
    }

    async fn answer(
        &self,
        receiving: oneshot::Receiver<Receiving>,
        handle: u64,
        limit: Duration,
    ) -> Result<Reply, Broken> {
        let mut reply = std::pin::pin!(receiving.await.map_err(|_| Broken)?.reply());
        // As long as bytes wait the connection's own silence counts; then the relay's promise.
        loop {
            match tokio::time::timeout(limit, &mut reply).await {
                Ok(reply) => return reply,
                Err(_) if self.with_quietly(|waiting| waiting.plan.holds(handle)) => {}
                Err(_) => return Err(Broken),
            }
        }
    }

    /// Asks what the relay has, once all is sent, until the answer is there.
    async fn ask_meanwhile(&self, job: &Job, sent: oneshot::Receiver<()>) -> Infallible {
        if sent.await.is_ok() {
            let ask = async || self.connection.ask(native::head(job, self.names.has(&job.token))?).await;
            let round_trip = self.connection.gauge().path().rtt;
            if let Some(verdict) = meanwhile::held(job, round_trip, || Box::pin(ask())).await {
                let (id, attempt) = (job.id, job.offer.attempt);
                let _ = self.news.send(FromLink::Verdict { id, attempt, verdict }).await;
            }
        }
        std::future::pending().await
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
