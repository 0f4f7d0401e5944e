//! The writing half of a WebSocket. A server's frames are not masked, so that what many contacts are
//! sent is the same memory for all of them: headers and bodies go out side by side, in one write, and
//! TLS reads them where they lie. The library that reads the other half writes nothing itself: its
//! answers (pong, and the echo of a close) wait in [`Replies`] for their turn between two messages.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::task::AtomicWaker;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, ReadHalf, WriteHalf};
use tokio_tungstenite::tungstenite::protocol::frame::coding::{CloseCode, Control, Data, OpCode};
use tokio_tungstenite::tungstenite::protocol::frame::{CloseFrame, Frame, FrameHeader};

use super::frames::Bundle;
use crate::proto::Code;

/// Replies that wait for a peer which takes nothing, in bytes; a further ping then has no answer.
const MAX_REPLIES: usize = 1024;
/// Slices handed over in one write.
const SLICES: usize = 64;
/// Longest body of a frame whose length is in its second byte (RFC 6455 §5.2).
const SHORT: u8 = 125;

/// What the reading half answers by itself.
#[derive(Default)]
pub(super) struct Replies {
    waiting: Mutex<Waiting>,
    /// Only one task writes.
    news: AtomicWaker,
}

#[derive(Default)]
struct Waiting {
    bytes: Vec<u8>,
    /// A close is among them, or was.
    closed: bool,
}

impl Replies {
    /// Ends when there is something to write.
    pub(super) async fn some(&self) {
        poll_fn(|cx| self.poll_some(cx)).await;
    }

    /// The same.
    pub(super) fn poll_some(&self, cx: &Context<'_>) -> Poll<()> {
        self.news.register(cx.waker());
        if self.lock().bytes.is_empty() { Poll::Pending } else { Poll::Ready(()) }
    }

    fn take(&self) -> Bytes {
        std::mem::take(&mut self.lock().bytes).into()
    }

    fn closed(&self) -> bool {
        self.lock().closed
    }

    /// Takes whole frames; `false` if too many wait.
    fn put(&self, frames: &[u8]) -> bool {
        let mut waiting = self.lock();
        if waiting.bytes.len() + frames.len() > MAX_REPLIES {
            return false;
        }
        waiting.bytes.extend_from_slice(frames);
        waiting.closed |= closes(frames);
        drop(waiting);
        self.news.wake();
        true
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a close is among these control frames, which are short and not masked.
fn closes(mut frames: &[u8]) -> bool {
    while let [first, len, rest @ ..] = frames {
        if first & 0x0f == u8::from(OpCode::Control(Control::Close)) {
            return true;
        }
        frames = rest.get(usize::from(len & SHORT)..).unwrap_or_default();
    }
    false
}

/// The half of a connection that the library reads; what it writes are replies.
pub(super) struct Listening<T> {
    inner: ReadHalf<T>,
    replies: Arc<Replies>,
}

impl<T: AsyncRead + AsyncWrite> Listening<T> {
    /// The two halves, and what goes from the first to the second.
    pub(super) fn split(inner: T) -> (Self, Writer<T>) {
        let (read, write) = tokio::io::split(inner);
        let replies = Arc::new(Replies::default());
        let writer = Writer { inner: write, replies: Arc::clone(&replies), queue: VecDeque::new(), written: true };
        (Self { inner: read, replies }, writer)
    }
}

impl<T: AsyncRead> AsyncRead for Listening<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl<T> AsyncWrite for Listening<T> {
    /// Never in part. Where no more fit, the library tries again when it reads next.
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.replies.put(buf) { Poll::Ready(Ok(buf.len())) } else { Poll::Pending }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Writes messages.
pub(super) struct Writer<T> {
    inner: WriteHalf<T>,
    pub(super) replies: Arc<Replies>,
    queue: VecDeque<Bytes>,
    /// All of it, and flushed.
    written: bool,
}

impl<T: AsyncWrite> Writer<T> {
    /// Messages, in as few writes as possible.
    pub(super) async fn messages(&mut self, messages: impl IntoIterator<Item = Bundle>) -> io::Result<()> {
        self.put(messages);
        self.write().await
    }

    /// The same, for [`Writer::write`] to write.
    pub(super) fn put(&mut self, messages: impl IntoIterator<Item = Bundle>) {
        self.reply();
        for message in messages {
            self.push(header(OpCode::Data(Data::Binary), message.len()));
            message.into_parts().into_iter().for_each(|part| self.push(part));
        }
    }

    /// What waits of replies.
    pub(super) async fn replies(&mut self) -> io::Result<()> {
        self.reply();
        self.write().await
    }

    /// A ping.
    pub(super) async fn ping(&mut self) -> io::Result<()> {
        self.put_ping();
        self.write().await
    }

    /// The same, for [`Writer::write`] to write.
    pub(super) fn put_ping(&mut self) {
        self.reply();
        self.push(header(OpCode::Control(Control::Ping), 0));
    }

    /// A close, unless the peer was first: then it is owed its echo alone.
    pub(super) async fn close(&mut self, code: Option<Code>) -> io::Result<()> {
        self.reply();
        if !self.replies.closed() {
            let close = match code {
                Some(code) => CloseFrame { code: code.close().into(), reason: code.name().into() },
                None => CloseFrame { code: CloseCode::Normal, reason: "".into() },
            };
            let body = Frame::close(Some(close)).into_payload();
            self.push(header(OpCode::Control(Control::Close), body.len()));
            self.push(body);
        }
        self.write().await
    }

    fn push(&mut self, part: Bytes) {
        self.written = false;
        self.queue.push_back(part);
    }

    fn reply(&mut self) {
        let replies = self.replies.take();
        if !replies.is_empty() {
            self.push(replies);
        }
    }

    /// Writes what was put, to its end. Cancel-safe.
    pub(super) async fn write(&mut self) -> io::Result<()> {
        poll_fn(|cx| self.poll_write(cx)).await
    }

    /// The same. The slices live no longer than a call: a contact that waits keeps no room for them.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.written {
            return Poll::Ready(Ok(()));
        }
        while !self.queue.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES];
            for (slice, part) in slices.iter_mut().zip(&self.queue) {
                *slice = IoSlice::new(part);
            }
            let count = SLICES.min(self.queue.len());
            let written = ready!(Pin::new(&mut self.inner).poll_write_vectored(cx, &slices[..count]))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.wrote(written);
        }
        ready!(Pin::new(&mut self.inner).poll_flush(cx))?;
        self.written = true;
        Poll::Ready(Ok(()))
    }

    fn wrote(&mut self, mut bytes: usize) {
        while let Some(part) = self.queue.front_mut() {
            if bytes < part.len() {
                let _ = part.split_to(bytes);
                break;
            }
            bytes -= part.len();
            self.queue.pop_front();
        }
    }
}

fn header(opcode: OpCode, len: usize) -> Bytes {
    let header = FrameHeader { opcode, ..FrameHeader::default() };
    let mut out = BytesMut::with_capacity(10).writer();
    // Memory takes it.
    let _ = header.format(len as u64, &mut out);
    out.into_inner().freeze()
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::{SinkExt as _, StreamExt as _};
    use tokio::io::AsyncReadExt as _;
    use tokio_tungstenite::WebSocketStream;
    use tokio_tungstenite::tungstenite::Message;
    use tokio_tungstenite::tungstenite::protocol::Role;

    type Socket<T> = WebSocketStream<T>;

    async fn pair()
    -> (Socket<tokio::io::DuplexStream>, Socket<Listening<tokio::io::DuplexStream>>, Writer<tokio::io::DuplexStream>)
    {
        let (near, far) = tokio::io::duplex(1 << 20);
        let (listening, writer) = Listening::split(near);
        let client = WebSocketStream::from_raw_socket(far, Role::Client, None).await;
        (client, WebSocketStream::from_raw_socket(listening, Role::Server, None).await, writer)
    }

    #[tokio::test]
    async fn a_client_reads_messages_of_any_length_and_parts() {
        let (mut client, _server, mut writer) = pair().await;
        for len in [1, 125, 126, 65_535, 65_536, 300_000] {
            let whole: Bytes = (0..len).map(|at| at as u8).collect::<Vec<_>>().into();
            let mut message = Bundle::default();
            whole.chunks(5_000).for_each(|part| message.push(Bytes::copy_from_slice(part)));
            let again = message.clone();
            writer.messages([message, again]).await.unwrap();
            for _ in 0..2 {
                assert_eq!(client.next().await.unwrap().unwrap(), Message::Binary(whole.clone()));
            }
        }
    }

    #[tokio::test]
    async fn a_wait_that_is_given_up_loses_and_repeats_nothing() {
        let (near, mut far) = tokio::io::duplex(16);
        let (_listening, mut writer) = Listening::split(near);
        let whole: Vec<u8> = (0..1_000u32).map(|at| at as u8).collect();
        for cut in [1, 7, 15, 16, 17, 400] {
            let mut message = Bundle::default();
            whole.chunks(cut).for_each(|part| message.push(Bytes::copy_from_slice(part)));
            writer.put([message]);
            let mut wire = Vec::new();
            while futures_util::poll!(std::pin::pin!(writer.write())).is_pending() {
                // The runtime may have asked for a pause though there is room.
                tokio::select! {
                    biased;
                    read = far.read_buf(&mut wire) => assert!(read.unwrap() > 0),
                    () = tokio::task::yield_now() => {}
                }
            }
            while wire.len() < 4 + whole.len() {
                far.read_buf(&mut wire).await.unwrap();
            }
            assert_eq!((wire[0], wire[1], &wire[4..]), (0x82, 126, &whole[..]), "in parts of {cut}");
        }
    }

    #[tokio::test]
    async fn replies_come_between_messages_and_a_flood_of_pings_costs_nothing_more() {
        let (mut client, mut server, mut writer) = pair().await;
        client.send(Message::Ping(Bytes::from_static(b"there?"))).await.unwrap();
        assert_eq!(server.next().await.unwrap().unwrap(), Message::Ping(Bytes::from_static(b"there?")));
        let (reading, ()) = tokio::join!(
            tokio::time::timeout(std::time::Duration::from_millis(50), server.next()),
            writer.replies.some(),
        );
        assert!(reading.is_err(), "nothing else came");
        writer.messages([Bundle::from(Bytes::from_static(b"frames"))]).await.unwrap();
        assert_eq!(client.next().await.unwrap().unwrap(), Message::Pong(Bytes::from_static(b"there?")));
        assert_eq!(client.next().await.unwrap().unwrap(), Message::Binary(Bytes::from_static(b"frames")));
        for _ in 0..200 {
            client.send(Message::Ping(Bytes::from(vec![7; 125]))).await.unwrap();
            assert!(matches!(server.next().await, Some(Ok(Message::Ping(_)))));
        }
        assert!(writer.replies.lock().bytes.len() <= MAX_REPLIES);
        writer.close(None).await.unwrap();
        while !matches!(client.next().await, Some(Ok(Message::Close(_)))) {}
    }

    #[tokio::test]
    async fn one_close_is_sent_whoever_was_first() {
        let (mut client, mut server, mut writer) = pair().await;
        client.send(Message::Close(None)).await.unwrap();
        assert!(matches!(server.next().await, Some(Ok(Message::Close(None)))));
        let _ = server.flush().await;
        writer.close(Some(Code::Draining)).await.unwrap();
        assert_eq!(client.next().await.unwrap().unwrap(), Message::Close(None), "its own, and no other");
        drop((server, writer));
        assert!(client.next().await.is_none_or(|end| end.is_err()));

        let (mut client, mut server, mut writer) = pair().await;
        writer.close(Some(Code::Draining)).await.unwrap();
        let Some(Ok(Message::Close(Some(close)))) = client.next().await else { panic!("a close") };
        assert_eq!((u16::from(close.code), close.reason.as_str()), (Code::Draining.close(), "draining"));
        client.flush().await.unwrap();
        assert!(matches!(server.next().await, Some(Ok(Message::Close(_)))));
        assert!(server.next().await.is_none_or(|end| end.is_err()), "the reading half ends");
    }
}
