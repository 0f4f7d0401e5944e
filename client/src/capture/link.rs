//! The seam between a capture session and a transport: what is asked of a connection and what it
//! tells. A connection is a task behind two bounded channels; it knows no policy. One that stalls
//! makes another beside itself, and offers that to the session unless it answers first.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;
use waystation_proto::frame::{self, kind};
use waystation_proto::message::{Hello, Hint};
use waystation_proto::{Offer, PROTOCOL};

use super::book::Verdict;
use super::ear::Takes;
use super::queue::{ASKED, Rank, Room};
use super::ws::Part;
use crate::connect::{ConnectError, Endpoint, Transport};
use crate::race;
use crate::token::Token;
use waystation_congestion::Path;

/// Chunks that may be given to a link at once; also the length of its channel.
pub(crate) const MAX_GIVEN: usize = 256;
/// Bodies that move at once unless the relay allows fewer.
const BODIES: usize = 6;
/// Questions for chunks that the relay is thought to hold.
const PROBES: usize = 16;

/// Capabilities that a connection remembers to bring to the next.
const MAX_TOKENS: usize = 64;
/// The same in bytes: they fit a control frame.
const MAX_HELLO_BYTES: usize = 48 * 1024;
/// QUIC is tried again so long after it did not come through, and twice as long after each
/// further time, up to the second value.
const QUIC_AGAIN: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(600));

/// A chunk to bring.
pub(crate) struct Job {
    pub(crate) id: u64,
    pub(crate) rank: Rank,
    pub(crate) offer: Offer,
    pub(crate) bytes: Bytes,
    /// Chunks of its class and higher ones whose bytes may move at once, as the network allows.
    pub(crate) most: usize,
    /// The capability that covers it.
    pub(crate) token: Token,
    /// The relay may hold part of it.
    pub(crate) resume: bool,
    /// The relay said that it holds it whole.
    pub(crate) held: bool,
}

/// What a session asks of its connection.
pub(crate) enum ToLink {
    /// Bring a chunk.
    Job(Box<Job>),
    /// Use a new capability too.
    Capability(Token),
    /// The device is on another network: the way there may be dead without a word.
    Moved,
    /// The recording is over; say so, send what is queued, close.
    End(String),
}

/// What a connection tells its session. `attempt` is that of the offer.
pub(crate) enum FromLink {
    /// Every byte of a chunk went to the network.
    Sent { id: u64, attempt: u64 },
    /// The relay spoke of a chunk.
    Verdict { id: u64, attempt: u64, verdict: Verdict },
    /// Bytes of a chunk go to the network; told now and then.
    Moves { id: u64, attempt: u64 },
    /// The relay holds so many bytes of a chunk.
    Offset { id: u64, attempt: u64, offset: u64 },
    /// One chunk's way broke off, the connection did not.
    Broken { id: u64, attempt: u64 },
    /// What the way is like.
    Path(Path),
    /// Advice.
    Hint(Hint),
    /// The relay takes so many bodies at once from one connection.
    Bodies(usize),
    /// Another connection, better than this one: it came through where this one stalls, or is
    /// QUIC where this one is not. The session takes it in this one's place.
    Better(Box<Link>),
    /// One of several, to whoever looks after them: nothing comes back on it.
    Stalls,
    /// The same: it is heard again.
    Flows,
    /// The connection is gone; nothing follows.
    Closed { code: Option<String>, retry_after_s: Option<u64> },
}

/// A connection that is ready for chunks. Dropping it closes it.
pub(crate) struct Link {
    pub(crate) jobs: mpsc::Sender<ToLink>,
    pub(crate) news: mpsc::Receiver<FromLink>,
    pub(crate) room: Room,
    /// Bodies that it moves at once at most, whatever the relay allows.
    most: usize,
    pub(crate) task: AbortOnDropHandle<()>,
}

impl Link {
    /// Spawns a connection's task.
    pub(crate) fn spawn<F>(
        in_flight: usize,
        run: impl FnOnce(mpsc::Receiver<ToLink>, mpsc::Sender<FromLink>) -> F,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (jobs, asked) = mpsc::channel(MAX_GIVEN);
        let (tell, news) = mpsc::channel(MAX_GIVEN);
        let task = AbortOnDropHandle::new(tokio::spawn(run(asked, tell)));
        let bodies = BODIES.min(in_flight.max(1));
        let room = Room { bodies, asked: ASKED, ahead: false, probes: PROBES };
        Self { jobs, news, room, most: BODIES, task }
    }

    /// The relay takes no more bodies than this at once.
    pub(crate) fn allow(&mut self, bodies: usize) {
        self.room.bodies = self.most.min(bodies.max(1));
    }

    /// It moves so many bodies at once until the relay says how many it takes.
    pub(super) const fn carries(&mut self, bodies: usize) {
        (self.most, self.room.bodies) = (bodies, bodies);
    }

    /// It begins no chunk before its turn: the next ones may be offered while another's bytes move.
    pub(super) const fn offers_ahead(&mut self) {
        self.room.ahead = true;
    }

    /// The same, but QUIC is tried again now and then, and offered when it is through.
    fn looking_for(self, quic: Dial) -> Self {
        let look: BoxFuture<'static, Self> = Box::pin(look(quic.clone()));
        self.looking(quic, look, Vec::new())
    }

    /// The same, with a look that was begun: it knows no capability that came `later`.
    fn looking(self, mut quic: Dial, mut look: BoxFuture<'static, Self>, mut later: Vec<Token>) -> Self {
        let Self { jobs, mut news, room, most, task } = self;
        let mut outer = Self::spawn(usize::MAX, move |mut asked, tell| async move {
            let _task = task;
            loop {
                tokio::select! {
                    job = asked.recv() => {
                        let Some(job) = job else { return };
                        match &job {
                            ToLink::Capability(token) => {
                                quic.add(token.clone());
                                later.push(token.clone());
                                later.drain(..later.len().saturating_sub(MAX_TOKENS));
                            }
                            ToLink::Moved => {
                                look = Box::pin(look_now(quic.clone()));
                                later.clear();
                            }
                            ToLink::Job(_) | ToLink::End(_) => {}
                        }
                        if jobs.send(job).await.is_err() {
                            return;
                        }
                    }
                    told = news.recv() => {
                        let Some(told) = told else { return };
                        // Another WebSocket in this one's place goes on looking for QUIC.
                        let told = match told {
                            FromLink::Better(link) => {
                                let look = std::mem::replace(&mut look, Box::pin(std::future::pending()));
                                FromLink::Better(Box::new(link.looking(quic.clone(), look, later.clone())))
                            }
                            told => told,
                        };
                        if tell.send(told).await.is_err() {
                            return;
                        }
                    }
                    better = &mut look => {
                        for token in later.drain(..) {
                            let _ = better.jobs.send(ToLink::Capability(token)).await;
                        }
                        let _ = tell.send(FromLink::Better(Box::new(better))).await;
                        look = Box::pin(std::future::pending());
                    }
                }
            }
        });
        (outer.room, outer.most) = (room, most);
        outer
    }
}

/// What a connection begins with: what the relay may believe, and a sign of life of who records. One that takes the place of another in
/// silence was made because the last sign did not come through.
pub(super) fn greeting(tokens: &[Token], recording: bool) -> Bytes {
    let capabilities = tokens.iter().map(|token| token.as_str().into()).collect();
    let hello = frame::encode_json(kind::HELLO, &Hello { protocol: PROTOCOL, capabilities, network: None });
    if recording { [hello, frame::encode(kind::ALIVE, b"{}")].concat().into() } else { hello }
}

/// How long QUIC may take when a WebSocket is ready already.
const GRACE: Duration = Duration::from_millis(300);
/// A WebSocket's head start is given to QUIC: it needs half as many round trips anyway.
const HEAD_START: Duration = Duration::from_millis(150);

/// How to reach a relay.
#[derive(Clone)]
pub(crate) struct Dial {
    pub(crate) transport: Transport,
    pub(crate) relay: Endpoint,
    /// What `HELLO` brings.
    pub(crate) tokens: Vec<Token>,
    /// Seconds that the relay may take before it answers a `PUT`.
    pub(crate) wait_s: u64,
    /// Bytes of chunks that all WebSockets made with it wrote.
    pub(crate) written: Arc<AtomicU64>,
    /// How long answers take on a WebSocket.
    pub(crate) takes: Takes,
    /// The device is recording, or was in this run: only then there are signs of life. A run that brings what an earlier one
    /// left would say that a recording which is over goes on.
    pub(crate) recording: Arc<AtomicBool>,
}

impl Dial {
    /// Connects. `early`: a relay known from before may be sent chunks before the handshake is
    /// complete.
    pub(crate) async fn connect(self, early: bool) -> Result<Link, ConnectError> {
        match self.transport {
            Transport::Auto => {
                let quic = Box::pin(super::h3::connect(self.clone(), early));
                self.race(quic, HEAD_START, GRACE).await
            }
            Transport::Ws if crate::tcp::has_bbr() => super::ws::connect(self, Part::Alone).await,
            Transport::Ws | Transport::WsPlain => super::bundle::connect(self).await,
            Transport::H1 => super::put::connect(&self.relay, self.wait_s).await,
            Transport::H3 => super::h3::connect(self, early).await,
        }
    }

    /// Connects beside a connection over QUIC that stalls. What that one asks all the while may be
    /// answered a little after the handshake is: `grace` is left to it, since what goes on needs neither
    /// to ask what the relay has nor to send again what is on its way. `rate`: bytes a second that the path brought.
    pub(super) async fn beside(self, grace: Duration, rate: u64) -> Result<Link, ConnectError> {
        let dial = self.clone();
        let quic = Box::pin(super::h3::connect_after(dial, grace, rate));
        match self.transport {
            // A WebSocket has had its head start.
            Transport::Auto => self.race(quic, Duration::ZERO, grace).await,
            _ => quic.await,
        }
    }

    /// QUIC and TCP at once; QUIC is taken unless it is late.
    async fn race(
        self,
        quic: impl Future<Output = Result<Link, ConnectError>>,
        head_start: Duration,
        grace: Duration,
    ) -> Result<Link, ConnectError> {
        let mut tcp = Self { transport: Transport::Ws, ..self };
        let other = async move {
            tokio::time::sleep(head_start).await;
            let link = Box::pin(tcp.clone().connect(false)).await?;
            // What QUIC is replaced by when it stalls is raced again.
            tcp.transport = Transport::Auto;
            Ok(link.looking_for(tcp))
        };
        race::prefer(quic, other, grace).await
    }

    /// One more capability; the newest are kept, as many as one `HELLO` brings.
    pub(crate) fn add(&mut self, token: Token) {
        self.tokens.push(token);
        let bytes = |tokens: &[Token]| tokens.iter().map(|token| token.as_str().len()).sum::<usize>();
        while self.tokens.len() > MAX_TOKENS || (self.tokens.len() > 1 && bytes(&self.tokens) > MAX_HELLO_BYTES) {
            self.tokens.remove(0);
        }
    }
}

/// Another network may let QUIC through.
async fn look_now(quic: Dial) -> Link {
    match Box::pin(super::h3::connect(quic.clone(), false)).await {
        Ok(link) => link,
        Err(_) => look(quic).await,
    }
}

/// Tries QUIC now and then until it is through.
async fn look(quic: Dial) -> Link {
    let mut pause = QUIC_AGAIN.0;
    loop {
        tokio::time::sleep(pause).await;
        if let Ok(link) = Box::pin(super::h3::connect(quic.clone(), false)).await {
            return link;
        }
        pause = (2 * pause).min(QUIC_AGAIN.1);
    }
}

/// Another connection in the making, beside one that stalls.
#[derive(Default)]
pub(crate) struct Beside(Option<AbortOnDropHandle<Result<Link, ConnectError>>>);

impl Beside {
    /// Begins, unless one is in the making.
    pub(crate) fn begin(&mut self, making: impl Future<Output = Result<Link, ConnectError>> + Send + 'static) {
        if self.0.is_none() {
            // Boxed: making a connection may end in a task that makes connections.
            let making: BoxFuture<'static, _> = Box::pin(making);
            self.0 = Some(AbortOnDropHandle::new(tokio::spawn(making)));
        }
    }

    /// Whether one is in the making.
    pub(crate) const fn is_begun(&self) -> bool {
        self.0.is_some()
    }

    /// The old one goes on.
    pub(crate) fn stop(&mut self) {
        self.0 = None;
    }

    /// Waits for it; for ever while none is in the making. One that failed is none: the next is
    /// begun by whoever still needs it.
    pub(crate) async fn ready(&mut self) -> Option<Link> {
        self.made().await.ok()
    }

    /// The same, with the reason why there is none.
    pub(crate) async fn made(&mut self) -> Result<Link, ConnectError> {
        match &mut self.0 {
            Some(making) => {
                let made = making.await;
                self.0 = None;
                made.unwrap_or(Err(ConnectError::Unreachable))
            }
            None => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_begins_with_a_sign_of_life() {
        let kinds = |recording| {
            let frames = frame::split_message(greeting(&[], recording)).unwrap();
            frames.iter().map(|frame| frame.kind).collect::<Vec<_>>()
        };
        assert_eq!(kinds(true), [kind::HELLO, kind::ALIVE]);
        assert_eq!(kinds(false), [kind::HELLO], "nothing is recorded");
    }
}
