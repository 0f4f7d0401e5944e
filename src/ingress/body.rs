//! Bodies, alike for every version of HTTP: a request's bytes as they come, an answer's as they
//! go.

use std::any::Any;
use std::collections::VecDeque;
use std::future::{Future as _, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use ::h3::quic::RecvStream as _;
use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};
use prometheus_client::metrics::counter::Counter;
use tokio::sync::{mpsc, oneshot};

use super::conn::{Conn, Ctx};
use super::h3;
use super::io::Sign;
use super::pour::Pouring;
use super::ticket::Ticket;
use crate::telemetry::names::Transport;

mod leave;

pub(super) use leave::Leave;

/// Small pieces that are there already are joined up to this before anything handles them: each
/// one costs a hash update, a write and a wake-up of every contact.
pub(super) const GATHER: usize = 64 * 1024;
/// Largest piece of a streamed answer: with `idle_timeout` for each, even 1 kB/s is progress.
pub(super) const PIECE: usize = 16 * 1024;

/// The body broke off: the peer left or reset it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Broken;

/// A request's body.
pub(super) struct RequestBody {
    source: Source,
    begun: bool,
    end: Option<Result<(), Broken>>,
    /// None: what comes from here was counted before.
    heard: Option<Heard>,
}

/// What is told of each byte that comes.
#[derive(Clone)]
pub(super) struct Heard {
    received: Counter,
    sign: Arc<Sign>,
}

impl Heard {
    pub(super) fn new(conn: &Conn, transport: Transport) -> Self {
        Self { received: conn.service.received(transport), sign: Arc::clone(&conn.sign) }
    }

    fn bytes(&self, len: usize) {
        self.received.inc_by(len as u64);
        self.sign.give();
    }
}

enum Source {
    Nothing,
    Hyper(hyper::body::Incoming),
    H3(Box<h3::Incoming>),
    Stream(Box<waystation_h3::RecvStream>),
    /// Bytes that are here already. `None` stands for a pause.
    Pieces(VecDeque<Option<Bytes>>),
}

impl RequestBody {
    pub(super) fn hyper(incoming: hyper::body::Incoming, heard: Heard) -> Self {
        let source = if incoming.is_end_stream() { Source::Nothing } else { Source::Hyper(incoming) };
        Self { source, begun: false, end: None, heard: Some(heard) }
    }

    pub(super) fn h3(incoming: h3::Incoming, heard: Heard) -> Self {
        Self { source: Source::H3(Box::new(incoming)), begun: false, end: None, heard: Some(heard) }
    }

    /// The bytes of a stream that is no request.
    pub(super) fn stream(stream: waystation_h3::RecvStream, heard: Heard) -> Self {
        Self { source: Source::Stream(Box::new(stream)), begun: false, end: None, heard: Some(heard) }
    }

    /// What is left of it, for a task that outlives the handler; nothing is left here.
    pub(super) fn take(&mut self) -> Self {
        let rest = Self {
            source: std::mem::replace(&mut self.source, Source::Nothing),
            begun: self.begun,
            end: self.end,
            heard: self.heard.clone(),
        };
        self.end = self.end.or(Some(Ok(())));
        rest
    }

    /// A body of these pieces, which are counted already; `None` is a pause.
    pub(super) fn pieces(pieces: impl IntoIterator<Item = Option<Bytes>>) -> Self {
        let source = Source::Pieces(pieces.into_iter().collect());
        Self { source, begun: false, end: None, heard: None }
    }

    /// The next bytes, as soon as there are any; `None` at the end.
    pub(super) async fn next(&mut self) -> Option<Result<Bytes, Broken>> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// Bytes that are here already; waits for nothing.
    pub(super) async fn at_once(&mut self) -> Option<Bytes> {
        poll_fn(|cx| match self.poll_next(cx) {
            Poll::Ready(Some(Ok(bytes))) => Poll::Ready(Some(bytes)),
            _ => Poll::Ready(None),
        })
        .await
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Broken>>> {
        self.begun = true;
        let mut one = Bytes::new();
        let mut joined = BytesMut::new();
        while self.end.is_none() {
            match self.source.poll(cx) {
                Poll::Pending => break,
                Poll::Ready(None) => self.end = Some(Ok(())),
                Poll::Ready(Some(Err(broken))) => self.end = Some(Err(broken)),
                Poll::Ready(Some(Ok(piece))) => {
                    self.heard.iter().for_each(|heard| heard.bytes(piece.len()));
                    if one.is_empty() && joined.is_empty() {
                        one = piece;
                    } else {
                        if joined.is_empty() {
                            joined.reserve(GATHER);
                            joined.extend_from_slice(&std::mem::take(&mut one));
                        }
                        joined.extend_from_slice(&piece);
                    }
                    if one.len().max(joined.len()) >= GATHER / 2 {
                        break;
                    }
                }
            }
        }
        let piece = if joined.is_empty() { one } else { joined.freeze() };
        if !piece.is_empty() {
            return Poll::Ready(Some(Ok(piece)));
        }
        match self.end {
            None => Poll::Pending,
            Some(Ok(())) => Poll::Ready(None),
            Some(Err(broken)) => Poll::Ready(Some(Err(broken))),
        }
    }
}

impl Source {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Broken>>> {
        match self {
            Self::Nothing => Poll::Ready(None),
            Self::Hyper(incoming) => loop {
                match ready!(Pin::new(&mut *incoming).poll_frame(cx)) {
                    None => return Poll::Ready(None),
                    Some(Err(_)) => return Poll::Ready(Some(Err(Broken))),
                    Some(Ok(frame)) => match frame.into_data() {
                        Ok(data) if !data.is_empty() => return Poll::Ready(Some(Ok(data))),
                        // Trailers say nothing here.
                        _ => {}
                    },
                }
            },
            Self::H3(incoming) => incoming.poll_next(cx),
            Self::Stream(stream) => match ready!(stream.poll_data(cx)) {
                Err(_) => Poll::Ready(Some(Err(Broken))),
                Ok(bytes) => Poll::Ready(bytes.map(Ok)),
            },
            Self::Pieces(pieces) => match pieces.pop_front() {
                None => Poll::Ready(None),
                Some(Some(piece)) => Poll::Ready(Some(Ok(piece))),
                Some(None) => {
                    cx.waker().wake_by_ref();
                    Poll::Pending
                }
            },
        }
    }
}

/// An answer's body.
pub(super) struct ResponseBody {
    kind: Kind,
    /// Closed when the answer is written or given up.
    ticket: Option<Arc<Ticket>>,
    /// Something that must outlive the answer.
    keep: Option<Box<dyn Any + Send>>,
    /// The body waits for this.
    after: Option<oneshot::Receiver<bool>>,
    /// The end waits for this, and is none if it says no.
    until: Option<oneshot::Receiver<bool>>,
}

enum Kind {
    Whole(Bytes),
    Flow(mpsc::Receiver<Piece>),
    /// What a contact is sent, which whoever answers pours out itself.
    Contact(Option<Box<Pouring>>),
}

enum Piece {
    Bytes(Bytes),
    End,
}

/// The answer ends before its end: the transport must reset it.
#[derive(Debug, thiserror::Error)]
#[error("the answer was cut off")]
pub(super) struct Cut;

impl ResponseBody {
    pub(super) fn whole(bytes: impl Into<Bytes>) -> Self {
        Self { kind: Kind::Whole(bytes.into()), ticket: None, keep: None, after: None, until: None }
    }

    /// A streamed body and the end that feeds it. The body is cut off unless
    /// [`Outflow::finish`] is called.
    pub(super) fn flow() -> (Outflow, Self) {
        let (tx, rx) = mpsc::channel(1);
        (Outflow(tx), Self { kind: Kind::Flow(rx), ticket: None, keep: None, after: None, until: None })
    }

    /// What a contact is sent; only for an end that asks for [`Self::pouring`].
    pub(super) fn contact(pouring: Pouring) -> Self {
        let kind = Kind::Contact(Some(Box::new(pouring)));
        Self { kind, ticket: None, keep: None, after: None, until: None }
    }

    /// What is to be poured out instead of polling the body.
    pub(super) fn pouring(&mut self) -> Option<Box<Pouring>> {
        match &mut self.kind {
            Kind::Contact(pouring) => pouring.take(),
            _ => None,
        }
    }

    pub(super) fn keeping(mut self, keep: impl Any + Send) -> Self {
        self.keep = Some(Box::new(keep));
        self
    }

    /// The answer's head goes at once, its body only when the request's is over.
    pub(super) fn after(mut self, over: Option<oneshot::Receiver<bool>>) -> Self {
        self.after = over;
        self
    }

    /// The whole answer goes at once, its end only when the request's body was read; else the
    /// answer is cut off.
    pub(super) fn until(mut self, over: Option<oneshot::Receiver<bool>>) -> Self {
        self.until = over;
        self
    }

    /// The answer can't be written to its end, for this reason.
    pub(super) fn ended(&self, code: crate::proto::Code) {
        if let Some(ticket) = &self.ticket {
            ticket.ended(Some(code));
        }
    }

    pub(super) fn with_ticket(mut self, ticket: Arc<Ticket>) -> Self {
        self.ticket = Some(ticket);
        self
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        if let Some(over) = &mut self.after {
            let _ = ready!(Pin::new(over).poll(cx));
            self.after = None;
        }
        match &mut self.kind {
            Kind::Whole(bytes) if bytes.is_empty() => match &mut self.until {
                None => Poll::Ready(None),
                Some(over) => {
                    let read = ready!(Pin::new(over).poll(cx));
                    self.until = None;
                    Poll::Ready((read != Ok(true)).then_some(Err(Cut)))
                }
            },
            Kind::Whole(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Kind::Flow(pieces) => match ready!(pieces.poll_recv(cx)) {
                Some(Piece::Bytes(bytes)) => Poll::Ready(Some(Ok(Frame::data(bytes)))),
                Some(Piece::End) => {
                    self.kind = Kind::Whole(Bytes::new());
                    Poll::Ready(None)
                }
                None => Poll::Ready(Some(Err(Cut))),
            },
            Kind::Contact(_) => Poll::Ready(Some(Err(Cut))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.after.is_none() && self.until.is_none() && matches!(&self.kind, Kind::Whole(bytes) if bytes.is_empty())
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Kind::Flow(_) | Kind::Contact(_) => SizeHint::default(),
        }
    }
}

/// Feeds a streamed answer. One piece waits at most; the next waits for the peer.
pub(super) struct Outflow(mpsc::Sender<Piece>);

/// Why a streamed answer can't go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stopped {
    /// The peer left.
    Gone,
    /// The peer took nothing for `idle_timeout`.
    TooSlow,
}

impl super::pour::Sink for Outflow {
    async fn send(&mut self, ctx: &Ctx, bytes: Bytes) -> Result<(), Stopped> {
        Self::send(self, ctx, bytes).await
    }

    async fn gone(&self) {
        Self::gone(self).await;
    }

    async fn finish(self, ctx: &Ctx) {
        Self::finish(self, ctx).await;
    }

    fn cut(&self, ctx: &Ctx) {
        Self::cut(ctx);
    }
}

impl Outflow {
    /// Sends bytes, in pieces that each must be taken within `idle_timeout`. A peer that takes
    /// nothing is cut.
    pub(super) async fn send(&self, ctx: &Ctx, mut bytes: Bytes) -> Result<(), Stopped> {
        while !bytes.is_empty() {
            let piece = bytes.split_to(bytes.len().min(PIECE));
            match ctx.unless_idle(self.0.send(Piece::Bytes(piece))).await {
                Some(Ok(())) => {}
                Some(Err(_)) => return Err(Stopped::Gone),
                None => {
                    Self::cut(ctx);
                    return Err(Stopped::TooSlow);
                }
            }
        }
        Ok(())
    }

    /// The peer does not take what there is in time: it loses its connection on HTTP/1.1 and 2; on HTTP/3 its
    /// stream is reset when this is dropped.
    fn cut(ctx: &Ctx) {
        if ctx.transport != Transport::H3 {
            ctx.conn.cut.cancel();
        }
    }

    /// The answer is complete.
    pub(super) async fn finish(self, ctx: &Ctx) {
        let _ = ctx.unless_idle(self.0.send(Piece::End)).await;
    }

    /// Ends when the peer left.
    pub(super) async fn gone(&self) {
        self.0.closed().await;
    }
}

#[cfg(test)]
#[path = "body_tests.rs"]
mod tests;
