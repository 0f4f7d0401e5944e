//! The seam between a capture session and a transport: what is asked of a connection and what it
//! tells. A connection is a task behind two bounded channels; it knows no policy. Racing several
//! transports later means another way to make a [`Link`], and nothing else.

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;
use waystation_proto::Offer;
use waystation_proto::message::Hint;

use super::book::Verdict;
use super::queue::{Rank, Room};
use crate::connect::{ConnectError, Endpoint, Transport};
use crate::token::Token;

/// Chunks that may be given to a link at once; also the length of its channel.
pub(crate) const MAX_GIVEN: usize = 256;
/// Bodies that move at once unless the relay allows fewer.
const BODIES: usize = 6;
/// Questions for chunks that the relay is thought to hold.
const PROBES: usize = 16;

/// A chunk to bring.
pub(crate) struct Job {
    pub(crate) id: u64,
    pub(crate) rank: Rank,
    pub(crate) offer: Offer,
    pub(crate) bytes: Bytes,
    /// The capability that covers it.
    pub(crate) token: Token,
    /// The relay may hold part of it.
    pub(crate) resume: bool,
}

/// What a session asks of its connection.
pub(crate) enum ToLink {
    /// Bring a chunk.
    Job(Box<Job>),
    /// Use a new capability too.
    Capability(Token),
    /// The recording is over; say so, send what is queued, close.
    End(String),
}

/// What a connection tells its session. `attempt` is that of the offer.
pub(crate) enum FromLink {
    /// Every byte of a chunk went to the network.
    Sent { id: u64, attempt: u64 },
    /// The relay spoke of a chunk.
    Verdict { id: u64, attempt: u64, verdict: Verdict },
    /// The relay holds so many bytes of a chunk.
    Offset { id: u64, attempt: u64, offset: u64 },
    /// One chunk's way broke off, the connection did not.
    Broken { id: u64, attempt: u64 },
    /// Advice.
    Hint(Hint),
    /// The connection is gone; nothing follows.
    Closed { code: Option<String>, retry_after_s: Option<u64> },
}

/// A connection that is ready for chunks. Dropping it closes it.
pub(crate) struct Link {
    pub(crate) jobs: mpsc::Sender<ToLink>,
    pub(crate) news: mpsc::Receiver<FromLink>,
    pub(crate) room: Room,
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
        Self { jobs, news, room: Room { bodies: BODIES.min(in_flight.max(1)), probes: PROBES }, task }
    }
}

/// Connects by one transport.
pub(crate) async fn connect(
    transport: Transport,
    endpoint: Endpoint,
    tokens: Vec<Token>,
    wait_s: u64,
) -> Result<Link, ConnectError> {
    match transport {
        Transport::Ws => super::ws::connect(&endpoint, &tokens).await,
        Transport::H1 => super::put::connect_h1(&endpoint, wait_s).await,
        Transport::H3 => super::put::connect_h3(&endpoint, wait_s).await,
    }
}
