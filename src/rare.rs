//! What is waited for beside something that happens often. Looking at a timer or at a token that ends a
//! session costs little, but with a thousand contacts none of it is in the processor's caches when a
//! contact's turn comes; so each is looked at only when it has called.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use futures_util::task::AtomicWaker;

/// Something that is seldom ready, and is polled only after it has woken its task.
pub(crate) struct Rare<F> {
    inner: F,
    bell: Arc<Bell>,
}

struct Bell {
    rung: AtomicBool,
    task: AtomicWaker,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.rung.store(true, Ordering::Release);
        self.task.wake();
    }
}

impl<F> Rare<F> {
    pub(crate) fn new(inner: F) -> Self {
        Self { inner, bell: Arc::new(Bell { rung: AtomicBool::new(true), task: AtomicWaker::new() }) }
    }

    /// What is in it, to be changed: it is polled next.
    pub(crate) fn change(&mut self) -> &mut F {
        self.bell.rung.store(true, Ordering::Release);
        &mut self.inner
    }

    /// `poll`, if there may be something new.
    pub(crate) fn poll_by<T>(
        &mut self,
        cx: &mut Context<'_>,
        poll: impl FnOnce(&mut F, &mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        self.bell.task.register(cx.waker());
        if !self.bell.rung.swap(false, Ordering::AcqRel) {
            return Poll::Pending;
        }
        let waker = Waker::from(Arc::clone(&self.bell));
        let polled = poll(&mut self.inner, &mut Context::from_waker(&waker));
        if polled.is_ready() {
            // What is behind it has no reason to call again.
            self.bell.rung.store(true, Ordering::Release);
        }
        polled
    }
}

impl<F: Future + Unpin> Future for Rare<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        self.poll_by(cx, |inner, cx| Pin::new(inner).poll(cx))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use tokio::sync::mpsc;

    #[tokio::test]
    async fn it_is_polled_when_it_has_called_and_not_before() {
        let (tx, rx) = mpsc::channel(4);
        let mut rare = Rare::new((rx, 0));
        let look = |rare: &mut Rare<(mpsc::Receiver<u8>, u32)>, cx: &mut Context<'_>| {
            rare.poll_by(cx, |(rx, polls), cx| {
                *polls += 1;
                rx.poll_recv(cx)
            })
        };
        poll_fn(|cx| {
            for _ in 0..3 {
                assert!(look(&mut rare, cx).is_pending());
            }
            Poll::Ready(())
        })
        .await;
        assert_eq!(rare.inner.1, 1, "nothing called");
        tx.send(1).await.unwrap();
        tx.send(2).await.unwrap();
        assert_eq!(poll_fn(|cx| look(&mut rare, cx)).await, Some(1));
        assert_eq!(poll_fn(|cx| look(&mut rare, cx)).await, Some(2), "both, though the second called nobody");
        let waiting = tokio::spawn(async move { poll_fn(|cx| look(&mut rare, cx)).await });
        tokio::task::yield_now().await;
        tx.send(3).await.unwrap();
        assert_eq!(waiting.await.unwrap(), Some(3), "its task is woken");
    }
}
