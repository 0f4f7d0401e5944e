//! `h3::quic` over quinn. Our own, for the reasons in `docs/decisions/0005-own-h3-adapter.md`:
//! reads are joined, cancelling a read harms nothing, and a request's stream that is dropped
//! before its end is reset, never finished.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use h3::quic::{self, ConnectionErrorIncoming, StreamErrorIncoming, StreamId, WriteBuf};
use quinn::{ConnectionError, VarInt};
use tokio::io::{AsyncRead as _, ReadBuf};
use tokio_util::io::poll_read_buf;
use tokio_util::sync::ReusableBoxFuture;

use crate::errors::{connection_error, lost, read_error};
use crate::frames::Frames;
use crate::orders::Orders;
use crate::send::SendStream;
use crate::sessions::{SessionStreams, Sorting};

/// `H3_NO_ERROR`: the answer is complete, the rest of the request is not needed.
const NO_ERROR: u32 = 0x100;
/// `H3_EXCESSIVE_LOAD`: a frame would make the relay hold more than it lets a peer.
const EXCESSIVE_LOAD: u32 = 0x107;
/// Bytes read at once.
const GATHER: usize = 64 * 1024;
/// Spare room below which a new buffer is begun.
const MIN_READ: usize = 8 * 1024;
/// So many are read before there is room for more: a packet has fewer.
const FIRST: usize = 2 * 1024;

type Opened = Result<(quinn::SendStream, quinn::RecvStream), ConnectionError>;
type Pending<T> = Option<ReusableBoxFuture<'static, T>>;

/// A QUIC connection as h3 sees it.
pub struct Connection {
    opener: Opener,
    accepting_bi: Pending<Opened>,
    sorting: Option<Sorting>,
    accepting_uni: Pending<Result<quinn::RecvStream, ConnectionError>>,
}

/// The priority of the streams that an [`Opener`] and its clones open next: the higher goes first,
/// with what is new as with what was lost. 0 at first.
#[derive(Clone, Default)]
pub struct Priority(Arc<AtomicI32>);

impl Priority {
    /// Sets it.
    pub fn set(&self, priority: i32) {
        self.0.store(priority, Ordering::Relaxed);
    }
}

/// Opens streams towards the peer.
pub struct Opener {
    quic: quinn::Connection,
    priority: Priority,
    opening_bi: Pending<Opened>,
    opening_uni: Pending<Result<quinn::SendStream, ConnectionError>>,
}

impl Connection {
    /// Streams over this connection.
    pub fn new(quic: quinn::Connection) -> Self {
        let opener = Opener::new(quic, Priority::default());
        Self { opener, accepting_bi: None, sorting: None, accepting_uni: None }
    }

    /// The same for an end that serves WebTransport: streams that the peer opens within a session
    /// come out of the second value instead of going to h3. What nobody takes is reset.
    /// Answers are sent in the order that the third asks for.
    pub fn with_sessions(quic: quinn::Connection) -> (Self, SessionStreams, Orders) {
        let orders = Orders::default();
        let (sorting, streams) = Sorting::new(orders.clone());
        (Self { sorting: Some(sorting), ..Self::new(quic) }, streams, orders)
    }

    /// What the priority of requests is set with.
    pub fn priority(&self) -> Priority {
        self.opener.priority.clone()
    }
}

impl Clone for Opener {
    /// Another opener; what this one is waiting for stays with it.
    fn clone(&self) -> Self {
        Self::new(self.quic.clone(), self.priority.clone())
    }
}

impl Opener {
    fn new(quic: quinn::Connection, priority: Priority) -> Self {
        Self { quic, priority, opening_bi: None, opening_uni: None }
    }
}

/// Polls the future in `slot`, made by `make` if there is none, and leaves it there until it is
/// done: cancelling the caller loses nothing.
fn poll_slot<T, F>(slot: &mut Pending<T>, cx: &mut Context<'_>, make: impl FnOnce() -> F) -> Poll<T>
where
    F: Future<Output = T> + Send + 'static,
{
    let future = slot.get_or_insert_with(|| ReusableBoxFuture::new(make()));
    let output = ready!(future.poll(cx));
    *slot = None;
    Poll::Ready(output)
}

impl quic::Connection<Bytes> for Connection {
    type RecvStream = RecvStream;
    type OpenStreams = Opener;

    fn poll_accept_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<RecvStream, ConnectionErrorIncoming>> {
        let quic = &self.opener.quic;
        let make = || {
            let quic = quic.clone();
            async move { quic.accept_uni().await }
        };
        let stream = ready!(poll_slot(&mut self.accepting_uni, cx, make));
        let guarded = |stream| RecvStream::new(stream, Frames::of_one_way(), self.opener.quic.clone());
        Poll::Ready(stream.map(guarded).map_err(connection_error))
    }

    fn poll_accept_bidi(&mut self, cx: &mut Context<'_>) -> Poll<Result<BidiStream, ConnectionErrorIncoming>> {
        let quic = &self.opener.quic;
        loop {
            let make = || {
                let quic = quic.clone();
                async move { quic.accept_bi().await }
            };
            let accepted = poll_slot(&mut self.accepting_bi, cx, make).map_err(connection_error)?;
            match (accepted, &mut self.sorting) {
                (Poll::Ready(stream), None) => return Poll::Ready(Ok(BidiStream::new(stream, quic.clone()))),
                (Poll::Ready(stream), Some(sorting)) => sorting.look_at(stream, quic.clone()),
                (Poll::Pending, None) => return Poll::Pending,
                (Poll::Pending, Some(sorting)) => return sorting.poll_request(cx).map(Ok),
            }
        }
    }

    fn opener(&self) -> Opener {
        self.opener.clone()
    }
}

impl quic::OpenStreams<Bytes> for Opener {
    type BidiStream = BidiStream;
    type SendStream = SendStream;

    fn poll_open_bidi(&mut self, cx: &mut Context<'_>) -> Poll<Result<BidiStream, StreamErrorIncoming>> {
        let quic = &self.quic;
        let make = || {
            let quic = quic.clone();
            async move { quic.open_bi().await }
        };
        let stream = ready!(poll_slot(&mut self.opening_bi, cx, make));
        if let Ok((send, _)) = &stream {
            // A stream that is closed already has nothing to order.
            let _ = send.set_priority(self.priority.0.load(Ordering::Relaxed));
        }
        Poll::Ready(stream.map(|stream| BidiStream::new(stream, self.quic.clone())).map_err(lost))
    }

    fn poll_open_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<SendStream, StreamErrorIncoming>> {
        let quic = &self.quic;
        let make = || {
            let quic = quic.clone();
            async move { quic.open_uni().await }
        };
        let stream = ready!(poll_slot(&mut self.opening_uni, cx, make));
        Poll::Ready(stream.map(|stream| SendStream::new(stream, false)).map_err(lost))
    }

    fn close(&mut self, code: h3::error::Code, reason: &[u8]) {
        self.quic.close(varint(code.value()), reason);
    }
}

impl quic::OpenStreams<Bytes> for Connection {
    type BidiStream = BidiStream;
    type SendStream = SendStream;

    fn poll_open_bidi(&mut self, cx: &mut Context<'_>) -> Poll<Result<BidiStream, StreamErrorIncoming>> {
        self.opener.poll_open_bidi(cx)
    }

    fn poll_open_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<SendStream, StreamErrorIncoming>> {
        self.opener.poll_open_send(cx)
    }

    fn close(&mut self, code: h3::error::Code, reason: &[u8]) {
        self.opener.close(code, reason);
    }
}

/// A request's stream.
pub struct BidiStream {
    send: SendStream,
    recv: RecvStream,
}

impl BidiStream {
    fn new((send, recv): (quinn::SendStream, quinn::RecvStream), quic: quinn::Connection) -> Self {
        Self::of(SendStream::of_request(send), RecvStream::new(recv, Frames::of_request(), quic))
    }

    pub(crate) const fn of(send: SendStream, recv: RecvStream) -> Self {
        Self { send, recv }
    }
}

impl quic::BidiStream<Bytes> for BidiStream {
    type SendStream = SendStream;
    type RecvStream = RecvStream;

    fn split(self) -> (SendStream, RecvStream) {
        (self.send, self.recv)
    }
}

impl quic::RecvStream for BidiStream {
    type Buf = Bytes;

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, StreamErrorIncoming>> {
        self.recv.poll_data(cx)
    }

    fn stop_sending(&mut self, error_code: u64) {
        self.recv.stop_sending(error_code);
    }

    fn recv_id(&self) -> StreamId {
        self.recv.recv_id()
    }
}

impl quic::SendStream<Bytes> for BidiStream {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        self.send.poll_ready(cx)
    }

    fn send_data<T: Into<WriteBuf<Bytes>>>(&mut self, data: T) -> Result<(), StreamErrorIncoming> {
        self.send.send_data(data)
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        self.send.poll_finish(cx)
    }

    fn reset(&mut self, reset_code: u64) {
        self.send.reset(reset_code);
    }

    fn send_id(&self) -> StreamId {
        self.send.send_id()
    }
}

/// The receiving half of a stream.
pub struct RecvStream {
    stream: quinn::RecvStream,
    /// What is read lands here, and what was read to know the stream by.
    buffer: BytesMut,
    ended: bool,
    frames: Frames,
    quic: quinn::Connection,
}

impl RecvStream {
    fn new(stream: quinn::RecvStream, frames: Frames, quic: quinn::Connection) -> Self {
        Self::begun(stream, BytesMut::new(), frames, quic, false)
    }

    /// One of which something was read already, perhaps to its end.
    pub(crate) const fn begun(
        stream: quinn::RecvStream,
        buffer: BytesMut,
        frames: Frames,
        quic: quinn::Connection,
        ended: bool,
    ) -> Self {
        Self { stream, buffer, ended, frames, quic }
    }

    /// Everything that has arrived, up to [`GATHER`], at once; empty at the end. A stream on which little comes holds no
    /// room for more: each connection has three that are quiet for hours. One that brought more at once keeps its room.
    fn poll_gather(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
        if self.buffer.capacity() >= MIN_READ {
            self.ended = ready!(poll_read_buf(Pin::new(&mut self.stream), cx, &mut self.buffer))? == 0;
            return Poll::Ready(Ok(self.buffer.split().freeze()));
        }
        let mut room = [0; FIRST];
        let mut first = ReadBuf::new(&mut room);
        ready!(Pin::new(&mut self.stream).poll_read(cx, &mut first))?;
        if first.remaining() == 0 {
            // There may be more.
            self.buffer = BytesMut::with_capacity(GATHER);
        }
        self.ended = first.filled().is_empty();
        Poll::Ready(Ok(Bytes::copy_from_slice(first.filled())))
    }

    /// The peer declares a frame that is too large to be held: no connection is owed to it.
    fn too_much(&mut self) -> StreamErrorIncoming {
        self.ended = true;
        self.quic.close(VarInt::from_u32(EXCESSIVE_LOAD), b"frame too large");
        let connection_error = ConnectionErrorIncoming::ApplicationClose { error_code: EXCESSIVE_LOAD.into() };
        StreamErrorIncoming::ConnectionErrorIncoming { connection_error }
    }
}

impl quic::RecvStream for RecvStream {
    type Buf = Bytes;

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, StreamErrorIncoming>> {
        let bytes = if !self.buffer.is_empty() {
            self.buffer.split().freeze()
        } else if self.ended {
            return Poll::Ready(Ok(None));
        } else {
            ready!(self.poll_gather(cx)).map_err(read_error)?
        };
        if bytes.is_empty() {
            return Poll::Ready(Ok(None));
        }
        Poll::Ready(if self.frames.allow(&bytes) { Ok(Some(bytes)) } else { Err(self.too_much()) })
    }

    fn stop_sending(&mut self, error_code: u64) {
        self.ended = true;
        let _ = self.stream.stop(varint(error_code));
    }

    fn recv_id(&self) -> StreamId {
        stream_id(self.stream.id())
    }
}

impl Drop for RecvStream {
    fn drop(&mut self) {
        if !self.ended {
            let _ = self.stream.stop(VarInt::from_u32(NO_ERROR));
        }
    }
}

pub(crate) fn varint(value: u64) -> VarInt {
    VarInt::from_u64(value).unwrap_or(VarInt::MAX)
}

pub(crate) fn stream_id(id: quinn::StreamId) -> StreamId {
    match StreamId::try_from(u64::from(VarInt::from(id))) {
        Ok(id) => id,
        Err(_) => unreachable!("both are numbers of 62 bits"),
    }
}
