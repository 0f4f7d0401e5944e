//! Bytes of a connection, with what protocols lack: a timer for a peer that takes nothing, a sign of
//! life in every byte that comes, and an answer to a head that does not.

use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use crate::clock::Clock;

/// When a peer was last heard of.
pub(super) struct Sign {
    clock: Clock,
    last_ms: AtomicU64,
}

impl Sign {
    pub(super) fn new(clock: Clock) -> Arc<Self> {
        let last_ms = clock.now_ms().into();
        Arc::new(Self { clock, last_ms })
    }

    /// It is alive now.
    pub(super) fn give(&self) {
        self.last_ms.store(self.clock.now_ms(), Ordering::Relaxed);
    }

    /// For how long it has been silent.
    pub(super) fn silent_for(&self) -> Duration {
        Duration::from_millis(self.clock.now_ms().saturating_sub(self.last_ms.load(Ordering::Relaxed)))
    }
}

/// Ends a connection whose peer takes not one byte for `limit` while there is something to send.
/// Any progress starts the time anew, so a thin link is never cut.
pub(super) struct Stalling<T> {
    inner: T,
    limit: Duration,
    /// Runs while a write is blocked; made when one is for the first time.
    timer: Option<Pin<Box<Sleep>>>,
    blocked: bool,
    /// Told of every byte that is read: on a thin link a whole message takes longer than any limit.
    sign: Option<Arc<Sign>>,
}

impl<T> Stalling<T> {
    pub(super) fn new(inner: T, limit: Duration) -> Self {
        Self { inner, limit, timer: None, blocked: false, sign: None }
    }

    /// The same; bytes that are read are signs of life.
    pub(super) fn heard_by(self, sign: Arc<Sign>) -> Self {
        Self { sign: Some(sign), ..self }
    }

    fn watch<R>(&mut self, cx: &mut Context<'_>, polled: Poll<io::Result<R>>) -> Poll<io::Result<R>> {
        if polled.is_ready() {
            self.blocked = false;
            return polled;
        }
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(self.limit)));
        if !self.blocked {
            self.blocked = true;
            timer.as_mut().reset(Instant::now() + self.limit);
        }
        ready!(timer.as_mut().poll(cx));
        // Whoever has a last word to say is given as long again.
        self.blocked = false;
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Stalling<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.inner).poll_read(cx, buf);
        if let Some(sign) = &self.sign
            && buf.filled().len() > before
        {
            sign.give();
        }
        polled
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Stalling<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.watch(cx, polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        self.watch(cx, polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.inner).poll_flush(cx);
        self.watch(cx, polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.inner).poll_shutdown(cx);
        self.watch(cx, polled)
    }
}

/// What a peer hears whose first head did not come in time. hyper closes without a word, so this is
/// written below it.
const LATE: &str = concat!(
    "HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-type: application/json\r\n",
    "cache-control: no-store\r\nx-content-type-options: nosniff\r\ncontent-length: 95\r\n\r\n",
    r#"{"error":{"code":"header_timeout","message":"The request did not come in time.","retry":"now"}}"#
);

/// Says [`LATE`] on a connection that has begun a head of HTTP/1.1 and does not end it.
pub(super) struct Late<T> {
    inner: T,
    /// The watchdog's word; the next read answers.
    late: Arc<AtomicBool>,
    /// What came begins like a head of HTTP/1.1; nothing is said to one that said nothing, nor into
    /// HTTP/2.
    begun: bool,
    fresh: bool,
    said: usize,
}

impl<T> Late<T> {
    /// The connection, and what makes it answer and end at its next read.
    pub(super) fn new(inner: T) -> (Self, Arc<AtomicBool>) {
        let late = Arc::new(AtomicBool::new(false));
        (Self { inner, late: Arc::clone(&late), begun: false, fresh: true, said: 0 }, late)
    }
}

impl<T: AsyncWrite + Unpin> Late<T> {
    /// Writes the answer; then the connection reads as one whose peer has left.
    fn answer(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.begun && self.said < LATE.len() {
            self.said += ready!(Pin::new(&mut self.inner).poll_write(cx, &LATE.as_bytes()[self.said..]))?;
        }
        Pin::new(&mut self.inner).poll_flush(cx)
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncRead for Late<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.late.load(Ordering::Relaxed) {
            return self.answer(cx);
        }
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.inner).poll_read(cx, buf);
        if self.fresh
            && let Some(first) = buf.filled().get(before)
        {
            self.fresh = false;
            // No method of HTTP/1.1 that is served here begins like HTTP/2's preface, "PRI".
            self.begun = first.is_ascii_uppercase() && !buf.filled()[before..].starts_with(b"PR");
        }
        polled
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Late<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    #[test]
    fn the_answer_to_a_late_head_is_the_errors_own() {
        let (head, body) = LATE.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("content-length: {}", body.len())), "{} bytes", body.len());
        let code = crate::proto::Code::HeaderTimeout;
        assert!(head.starts_with(&format!("HTTP/1.1 {} ", code.status())));
        let error = crate::proto::message::Error::from(code);
        assert_eq!(serde_json::from_str::<serde_json::Value>(body).unwrap(), serde_json::json!({ "error": error }));
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_reads_nothing_is_cut_and_a_slow_one_is_not() {
        let limit = Duration::from_secs(30);
        let (near, mut far) = tokio::io::duplex(8);
        let mut near = Stalling::new(near, limit);
        let writer = tokio::spawn(async move { near.write_all(&[0; 64]).await });
        // A byte every 20 s: 64 bytes take far longer than the limit.
        let mut byte = [0];
        for _ in 0..64 {
            tokio::time::sleep(Duration::from_secs(20)).await;
            far.read_exact(&mut byte).await.unwrap();
        }
        writer.await.unwrap().unwrap();

        let (near, _far) = tokio::io::duplex(8);
        let mut near = Stalling::new(near, limit);
        let error = near.write_all(&[0; 64]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
