//! A session of frames, whatever carries them: a WebSocket (`ws`) or the two bodies of one
//! request (`duplex`).

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::body::Stopped;
use super::conn::Ctx;
use super::io::Sign;
use super::{duplex, ws};
use crate::proto::Code;
use crate::proto::frame::Frame;

/// The first message, which authenticates, must be here by then.
pub(super) const FIRST_MESSAGE: Duration = Duration::from_secs(5);
/// Frames of a peer that are taken out of what it sent at once; those behind them wait as they came, in fewer bytes.
pub(super) const MAX_AT_ONCE: usize = 256;
/// Small frames that wait are sent in one message up to this.
const JOIN: usize = 32 * 1024;
/// How long a peer may take to read the last frame.
pub(super) const LINGER: Duration = Duration::from_secs(2);

/// How a session ended.
pub(super) enum Goodbye {
    /// The peer left.
    Left,
    /// What was asked for is over.
    Done,
    /// The relay ends it: the last frame, unless it is sent already, and the code of the close.
    Told(Bytes, Code),
}

/// What a session may hold.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room {
    /// Bytes read ahead from a socket.
    pub(super) read_buffer: usize,
    /// Messages that may wait to be written.
    pub(super) messages: usize,
}

/// Holds a session to its end: `writer` is the task that empties the outbox, and says with which
/// code it gave up if it did.
pub(super) async fn hold<S, F>(
    ctx: Ctx,
    reader: Reader,
    out: Outbox,
    writer: AbortOnDropHandle<Option<Code>>,
    session: S,
) where
    S: FnOnce(Ctx, Reader, Outbox) -> F,
    F: Future<Output = Goodbye>,
{
    let (last, rest) = (out.clone(), reader.rest());
    let goodbye = session(ctx.clone(), reader, out).await;
    let lingers = !matches!(goodbye, Goodbye::Left);
    let told = farewell(goodbye, last).await;
    let written = writer.await.ok().flatten();
    // Closing while bytes are unread resets the connection, and the last frame may be lost with
    // them.
    if lingers && written.is_none() {
        let _ = ctx.within(LINGER, rest).await;
    }
    ctx.ticket.ended(told.or(written));
}

/// Sends the last frame and the close. Returns the code they carry.
async fn farewell(goodbye: Goodbye, out: Outbox) -> Option<Code> {
    let code = match goodbye {
        Goodbye::Told(last, code) => {
            if !last.is_empty() {
                out.send(last).await;
            }
            Some(code)
        }
        Goodbye::Done | Goodbye::Left => None,
    };
    let _ = out.0.send(Out::Close(code)).await;
    code
}

/// One message of whole frames, in parts that other sessions may share.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Bundle {
    parts: Vec<Bytes>,
    len: usize,
}

impl Bundle {
    /// Adds to its end.
    pub(super) fn push(&mut self, part: Bytes) {
        self.len += part.len();
        self.parts.push(part);
    }

    /// Its bytes.
    pub(super) const fn len(&self) -> usize {
        self.len
    }

    pub(super) fn into_parts(self) -> Vec<Bytes> {
        self.parts
    }
}

impl From<Bytes> for Bundle {
    fn from(whole: Bytes) -> Self {
        Self { len: whole.len(), parts: vec![whole] }
    }
}

/// What goes out.
pub(super) enum Out {
    /// Whole frames.
    Message(Bytes),
    /// Messages that go out in one write.
    Batch(Vec<Bundle>),
    /// The end, and why if it is not in order.
    Close(Option<Code>),
}

/// Where a session's frames go: bounded, and the peer's slowness is felt here.
#[derive(Clone)]
pub(super) struct Outbox(mpsc::Sender<Out>);

impl Outbox {
    /// One that holds so many messages, and the end that empties it.
    pub(super) fn new(messages: usize) -> (Self, mpsc::Receiver<Out>) {
        let (tx, rx) = mpsc::channel(messages);
        (Self(tx), rx)
    }

    /// Sends a message of whole frames; `false` when the connection is gone.
    pub(super) async fn send(&self, message: Bytes) -> bool {
        self.0.send(Out::Message(message)).await.is_ok()
    }

    /// Ends when the connection is gone.
    pub(super) async fn closed(&self) {
        self.0.closed().await;
    }
}

/// Where a contact's frames go.
pub(super) trait Outlet: Send {
    /// Waits until what was sent is taken. Cancel-safe.
    fn room(&mut self) -> impl Future<Output = Result<(), Stopped>> + Send;

    /// Sends messages of whole frames, once there is room, in one write if they are small enough.
    fn send(&mut self, batch: Vec<Bundle>);

    /// Ends when there is something else to write, which then waits for [`Outlet::room`]. Cancel-safe.
    fn chores(&mut self) -> impl Future<Output = ()> + Send;
}

impl Outlet for Outbox {
    async fn room(&mut self) -> Result<(), Stopped> {
        self.0.reserve().await.map(drop).map_err(|_| Stopped::Gone)
    }

    fn send(&mut self, batch: Vec<Bundle>) {
        // There is room: nobody else sends while a session lasts. A connection that is gone is found next.
        let _ = self.0.try_send(Out::Batch(batch));
    }

    async fn chores(&mut self) {
        std::future::pending().await
    }
}

/// Joins small messages that wait already: one message holds whole frames, however many. What
/// comes next and can't be joined is left in `held`.
pub(super) fn join(first: Bytes, rx: &mut mpsc::Receiver<Out>, held: &mut Option<Out>) -> Bytes {
    let mut joined = BytesMut::new();
    let mut len = first.len();
    while len < JOIN {
        match rx.try_recv() {
            Ok(Out::Message(next)) if len + next.len() <= 2 * JOIN => {
                if joined.is_empty() {
                    joined.extend_from_slice(&first);
                }
                joined.extend_from_slice(&next);
                len = joined.len();
            }
            Ok(other) => {
                *held = Some(other);
                break;
            }
            Err(_) => break,
        }
    }
    if joined.is_empty() { first } else { joined.freeze() }
}

/// The reading half.
pub(super) enum Reader {
    /// Messages of a WebSocket.
    Socket(ws::Messages),
    /// The body of a request.
    Body(duplex::Inflow),
}

impl Reader {
    /// The next frames, those that came together; `None` when the peer left. Cancel-safe, and a
    /// peer that gives no sign for `idle_timeout` is found whatever else the caller waits for.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<Frame>>, Code> {
        match self {
            Self::Socket(messages) => messages.next().await,
            Self::Body(inflow) => inflow.next().await,
        }
    }

    /// The first frames, which must come at once and begin with one of `kind`.
    pub(super) async fn first(&mut self, kind: u64) -> Result<Option<Vec<Frame>>, Code> {
        let ctx = self.ctx().clone();
        if let Self::Body(inflow) = self {
            inflow.begins_with(kind);
        }
        let first = ctx.within(FIRST_MESSAGE, async {
            loop {
                match self.next().await {
                    Ok(Some(frames)) if frames.is_empty() => {}
                    other => return other,
                }
            }
        });
        match first.await {
            None => Err(Code::FirstMessageTimeout),
            Some(Ok(Some(frames))) if frames.first().is_none_or(|frame| frame.kind != kind) => Err(Code::ProtocolError),
            Some(other) => other,
        }
    }

    /// What the peer's signs of life are told to.
    pub(super) fn sign(&self) -> Option<Arc<Sign>> {
        match self {
            Self::Socket(messages) => Some(Arc::clone(&messages.sign)),
            Self::Body(_) => None,
        }
    }

    const fn ctx(&self) -> &Ctx {
        match self {
            Self::Socket(messages) => &messages.ctx,
            Self::Body(inflow) => &inflow.ctx,
        }
    }

    /// Ends when the peer has sent everything; what it sends until then is dropped.
    pub(super) fn rest(&self) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        match self {
            Self::Socket(messages) => Box::pin(messages.rest()),
            Self::Body(inflow) => Box::pin(inflow.rest()),
        }
    }
}
