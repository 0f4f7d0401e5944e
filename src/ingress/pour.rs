//! What a contact sees as the body of an answer, which is no messages: frames as they come.

use std::pin::pin;

use bytes::{Bytes, BytesMut};

use super::body::Stopped;
use super::conn::Ctx;
use super::frames::LINGER;
use super::native::Reading;
use super::watch::Watching;
use crate::admission::Revocation;
use crate::fanout::Step;
use crate::proto::Code;

/// A frame under this is copied to others like it; one over it is worth a place of its own.
const SMALL: usize = 4 * 1024;

/// What a contact is sent over HTTP/3, poured out by the task that answers: no other task is woken for it.
pub(super) enum Pouring {
    /// What it watches.
    Watch(Ctx, Watching),
    /// A chunk that it asked for by itself.
    Chunk(Reading),
}

impl Pouring {
    /// To its end.
    pub(super) async fn pour(self, out: impl Sink) {
        match self {
            Self::Watch(ctx, watching) => Box::pin(pour(ctx, watching, out)).await,
            Self::Chunk(reading) => Box::pin(reading.pour(out)).await,
        }
    }
}

/// Where a streamed answer goes.
pub(super) trait Sink: Send {
    /// Sends bytes, which must be taken within `idle_timeout` piece by piece.
    fn send(&mut self, ctx: &Ctx, bytes: Bytes) -> impl Future<Output = Result<(), Stopped>> + Send;

    /// Ends when the peer left, if that is known while nothing is sent.
    fn gone(&self) -> impl Future<Output = ()> + Send;

    /// The answer is complete.
    fn finish(self, ctx: &Ctx) -> impl Future<Output = ()> + Send;

    /// Ends what the peer does not take in time.
    fn cut(&self, ctx: &Ctx);
}

/// Sends what a contact sees until it ends or leaves.
pub(super) async fn pour(ctx: Ctx, watching: Watching, mut out: impl Sink) {
    let (mut subscription, mut revocation) = watching;
    let mut ending = None;
    loop {
        let next = tokio::select! {
            step = subscription.next() => Ok(step),
            () = out.gone() => return,
            () = ctx.cut.cancelled() => return,
            code = over(&ctx, &mut revocation), if ending.is_none() => Err(code),
        };
        let step = match next {
            Ok(step) => step,
            Err(code) => {
                ending = Some(code);
                subscription.end(code);
                ctx.ticket.ended(Some(code));
                continue;
            }
        };
        let (frames, last) = match step {
            Step::Frames(frames) => (frames, false),
            Step::End(frames) => {
                ending = ending.or(subscription.ended());
                (frames, true)
            }
        };
        let began = ctx.shared.clock.now_ms();
        let sending = all(&ctx, &mut out, frames);
        let sent = tokio::select! {
            biased;
            sent = unless_over(&ctx, sending, over(&ctx, &mut revocation), &mut ending) => sent,
            () = ctx.cut.cancelled() => return,
        };
        match sent {
            Ok(()) => {}
            Err(Stopped::TooSlow) => {
                let code = ending.unwrap_or(Code::ContactTooSlow);
                out.cut(&ctx);
                subscription.let_go(code);
                return ctx.ticket.ended(Some(code));
            }
            Err(Stopped::Gone) => return,
        }
        if let Some(code) = ending {
            subscription.end(code);
            ctx.ticket.ended(Some(code));
        }
        subscription.took(ctx.shared.clock.now_ms().saturating_sub(began));
        if last {
            return out.finish(&ctx).await;
        }
    }
}

/// Ends when the subscription is over though there is more to see, with the reason.
pub(super) async fn over(ctx: &Ctx, revocation: &mut Revocation) -> Code {
    tokio::select! {
        biased;
        code = revocation.heard() => code,
        () = ctx.drain.cancelled() => Code::Draining,
    }
}

/// Writes to the end. When the subscription is `over` meanwhile, or was before, what is left must be taken
/// within [`LINGER`]: it may be all that a slow contact is still to see.
pub(super) async fn unless_over<T>(
    ctx: &Ctx,
    writing: impl Future<Output = Result<T, Stopped>>,
    over: impl Future<Output = Code>,
    ending: &mut Option<Code>,
) -> Result<T, Stopped> {
    let mut writing = pin!(writing);
    if ending.is_none() {
        tokio::select! {
            biased;
            written = &mut writing => return written,
            code = over => *ending = Some(code),
        }
    }
    ctx.within(LINGER, writing).await.unwrap_or(Err(Stopped::TooSlow))
}

async fn all(ctx: &Ctx, out: &mut impl Sink, frames: Vec<Bytes>) -> Result<(), Stopped> {
    for bytes in gathered(frames) {
        out.send(ctx, bytes).await?;
    }
    Ok(())
}

/// For a body, which is no messages: small frames joined to one buffer, large ones as they are.
pub(super) fn gathered(frames: Vec<Bytes>) -> Vec<Bytes> {
    let mut out = Vec::new();
    let mut small = BytesMut::new();
    for part in frames {
        if part.len() < SMALL {
            small.extend_from_slice(&part);
            continue;
        }
        if !small.is_empty() {
            out.push(small.split().freeze());
        }
        out.push(part);
    }
    if !small.is_empty() {
        out.push(small.freeze());
    }
    out
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::super::tests::watched::{LEFT, Watched};
    use super::*;
    use crate::fanout::Wanted;
    use crate::proto::ChunkRef;

    /// A peer that takes nothing at all, and stays.
    struct Stuck;

    impl Sink for Stuck {
        async fn send(&mut self, _: &Ctx, _: Bytes) -> Result<(), Stopped> {
            std::future::pending().await
        }

        async fn gone(&self) {
            std::future::pending().await
        }

        async fn finish(self, _: &Ctx) {}

        fn cut(&self, _: &Ctx) {}
    }

    #[tokio::test]
    async fn who_is_stuck_ends_with_its_capability_its_revocation_and_the_relay() {
        for (reason, code) in
            [("expired", Code::CapabilityExpired), ("revoked", Code::CapabilityRevoked), ("draining", Code::Draining)]
        {
            let watched = Watched::new().await;
            watched.bring(1, 100_000);
            let subscription = watched.hub.subscribe(&watched.capability.grant, Wanted::default()).unwrap();
            let watching = (Box::new(subscription), watched.revocation());
            let pouring = tokio::spawn(pour(watched.ctx.clone(), watching, Stuck));
            tokio::task::yield_now().await;
            match code {
                Code::CapabilityExpired => watched.clock.advance(LEFT),
                Code::CapabilityRevoked => watched.revoke(),
                _ => watched.ctx.drain.cancel(),
            }
            tokio::task::yield_now().await;
            assert!(!pouring.is_finished(), "it has a little time for what it was handed");
            watched.clock.advance(LINGER);
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
            assert!(pouring.is_finished(), "{reason}");
            assert_eq!((watched.endings(reason), watched.ctx.ticket.code()), (1, Some(code)));
        }
    }

    /// A chunk that begins to come, of so many bytes.
    async fn reading(watched: &Watched, length: usize) -> Reading {
        watched.bring(1, length);
        let grant = &watched.capability.grant;
        let chunk = ChunkRef::of(&grant.incident, &Watched::stream(), 1);
        let mut reader = watched.hub.read(grant, chunk).unwrap();
        reader.begins().await.unwrap();
        Reading { ctx: watched.ctx.clone(), reader, revocation: watched.revocation(), left: length as u64 }
    }

    #[tokio::test]
    async fn a_chunk_for_who_is_stuck_ends_with_its_capability_its_revocation_and_the_relay() {
        for code in [Some(Code::CapabilityExpired), Some(Code::CapabilityRevoked), None] {
            let watched = Watched::new().await;
            let pouring = tokio::spawn(reading(&watched, 100_000).await.pour(Stuck));
            tokio::task::yield_now().await;
            assert!(!pouring.is_finished());
            match code {
                Some(Code::CapabilityExpired) => watched.clock.advance(LEFT),
                Some(_) => watched.revoke(),
                None => watched.ctx.cut.cancel(),
            }
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
            assert!(pouring.is_finished(), "{code:?}");
            assert_eq!(watched.ctx.ticket.code(), code);
        }
    }

    /// A peer that takes what it is sent, and whether it was told that it is all.
    struct Takes(Arc<Mutex<(Vec<u8>, bool)>>);

    impl Sink for Takes {
        async fn send(&mut self, _: &Ctx, bytes: Bytes) -> Result<(), Stopped> {
            self.0.lock().unwrap().0.extend_from_slice(&bytes);
            Ok(())
        }

        async fn gone(&self) {
            std::future::pending().await
        }

        async fn finish(self, _: &Ctx) {
            self.0.lock().unwrap().1 = true;
        }

        fn cut(&self, _: &Ctx) {}
    }

    #[tokio::test]
    async fn a_chunk_is_poured_whole_and_then_it_is_said_that_it_is() {
        let (watched, took) = (Watched::new().await, Arc::<Mutex<_>>::default());
        reading(&watched, 100_000).await.pour(Takes(Arc::clone(&took))).await;
        assert!(*took.lock().unwrap() == (vec![7; 100_000], true));
    }
}
