//! A TLS handshake over TCP in as few packets as it can have.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes that are held at most; a flight of a handshake is a few kilobytes.
const MAX_HELD: usize = 16 * 1024;

/// What is written while a handshake lasts is held until an answer is waited for, and what its last flight
/// leaves goes with the first bytes behind it: a client's `Finished` with its request, a server's tickets
/// with its answer. Each packet fewer is one fewer that a bad link may lose, which costs a time-out.
#[derive(Debug)]
pub struct Flights<T> {
    inner: T,
    held: Vec<u8>,
    shaking: bool,
}

impl<T> Flights<T> {
    /// For a handshake that is about to begin.
    pub const fn new(inner: T) -> Self {
        Self { inner, held: Vec::new(), shaking: true }
    }

    /// What is written to.
    pub const fn get_ref(&self) -> &T {
        &self.inner
    }

    /// The handshake is done, or has failed: what is written from now on goes at once, and what was held with it.
    pub const fn done(&mut self) {
        self.shaking = false;
    }
}

impl<T: AsyncWrite + Unpin> Flights<T> {
    fn poll_release(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.held.is_empty() {
            let written = ready!(Pin::new(&mut self.inner).poll_write(cx, &self.held))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.held.drain(..written);
        }
        self.held = Vec::new();
        Poll::Ready(Ok(()))
    }

    /// What a handshake that failed has left: the alert that says why. It is given to the kernel if that takes
    /// it at once.
    pub fn failed(&mut self) {
        self.shaking = false;
        let _ = self.poll_release(&mut Context::from_waker(std::task::Waker::noop()));
    }

    const fn passes(&self) -> bool {
        !self.shaking && self.held.is_empty()
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncRead for Flights<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.inner).poll_read(cx, into) {
            Poll::Pending if !self.held.is_empty() => match self.poll_release(cx) {
                Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
                _ => Poll::Pending,
            },
            other => other,
        }
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Flights<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.held.len() + bytes.len() > MAX_HELD {
            ready!(self.poll_release(cx))?;
            return Pin::new(&mut self.inner).poll_write(cx, bytes);
        }
        if self.passes() {
            return Pin::new(&mut self.inner).poll_write(cx, bytes);
        }
        self.held.extend_from_slice(bytes);
        if !self.shaking
            && let Poll::Ready(Err(error)) = self.poll_release(cx)
        {
            return Poll::Ready(Err(error));
        }
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.passes() {
            return Pin::new(&mut self.inner).poll_write_vectored(cx, slices);
        }
        // All of them: rustls writes only once what it has to say of a handshake that failed.
        let bytes: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).collect();
        self.poll_write(cx, &bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.shaking {
            return Poll::Ready(Ok(()));
        }
        ready!(self.poll_release(cx))?;
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_release(cx))?;
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

    use super::*;

    async fn arrives(far: &mut DuplexStream) -> Vec<u8> {
        let mut bytes = vec![0; 64 * 1024];
        match tokio::time::timeout(Duration::from_millis(1), far.read(&mut bytes)).await {
            Ok(read) => bytes.truncate(read.unwrap()),
            Err(_) => bytes.clear(),
        }
        bytes
    }

    #[tokio::test(start_paused = true)]
    async fn a_flight_goes_when_its_answer_is_waited_for() {
        let (near, mut far) = duplex(1024);
        let mut near = Flights::new(near);
        near.write_all(b"hello").await.unwrap();
        near.write_all(b" and more").await.unwrap();
        near.flush().await.unwrap();
        assert_eq!(arrives(&mut far).await, b"");
        let (answer, came) = tokio::join!(near.read_u8(), async {
            let came = arrives(&mut far).await;
            far.write_u8(7).await.unwrap();
            came
        });
        assert_eq!((answer.unwrap(), came.as_slice()), (7, &b"hello and more"[..]));
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_of_a_handshake_goes_with_what_follows_it() {
        let (near, mut far) = duplex(1024);
        let mut near = Flights::new(near);
        near.write_all(b"finished").await.unwrap();
        near.flush().await.unwrap();
        near.done();
        assert_eq!(arrives(&mut far).await, b"", "nothing waits for an answer");
        near.write_all(b", request").await.unwrap();
        assert_eq!(arrives(&mut far).await, b"finished, request", "without a flush");
        near.write_all(b"body").await.unwrap();
        assert_eq!(arrives(&mut far).await, b"body");
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_kept_back_by_a_read_a_flush_or_the_end() {
        for end in ["read", "flush", "shutdown", "vectored"] {
            let (near, mut far) = duplex(1024);
            let mut near = Flights::new(near);
            near.write_all(b"tickets").await.unwrap();
            near.done();
            match end {
                "read" => _ = tokio::time::timeout(Duration::from_millis(1), near.read_u8()).await,
                "flush" => near.flush().await.unwrap(),
                "shutdown" => near.shutdown().await.unwrap(),
                _ => {
                    assert_eq!(near.write_vectored(&[io::IoSlice::new(b""), io::IoSlice::new(b"!")]).await.unwrap(), 1)
                }
            }
            assert!(arrives(&mut far).await.starts_with(b"tickets"), "{end}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_than_a_flight_is_held_and_all_of_it_comes_in_order() {
        let (near, mut far) = duplex(1000);
        let mut near = Flights::new(near);
        let sent: Vec<u8> = (0..100_000_u32).map(|n| n as u8).collect();
        let expected = sent.clone();
        let writing = tokio::spawn(async move {
            for (at, part) in sent.chunks(3_001).enumerate() {
                near.write_all(part).await.unwrap();
                assert!(near.held.len() <= MAX_HELD);
                if at == 20 {
                    near.done();
                }
            }
            near.shutdown().await.unwrap();
        });
        let mut came = Vec::new();
        far.read_to_end(&mut came).await.unwrap();
        writing.await.unwrap();
        assert!(came == expected);
    }
}
