//! What a contact sees as the body of an answer, which is no messages: frames as they come.

use std::pin::pin;

use bytes::{Bytes, BytesMut};

use super::body::Stopped;
use super::conn::Ctx;
use super::frames::LINGER;
use super::watch::Watching;
use crate::fanout::Step;
use crate::proto::Code;

/// A frame under this is copied to others like it; one over it is worth a place of its own.
const SMALL: usize = 4 * 1024;

/// What a contact is sent over HTTP/3, poured out by the task that answers: no other task is woken for it.
pub(super) struct Pouring {
    ctx: Ctx,
    watching: Watching,
}

impl Pouring {
    pub(super) const fn new(ctx: Ctx, watching: Watching) -> Self {
        Self { ctx, watching }
    }

    /// To its end.
    pub(super) async fn pour(self, out: impl Sink) {
        pour(self.ctx, self.watching, out).await;
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
            code = revocation.heard(), if ending.is_none() => Err(code),
            () = ctx.drain.cancelled(), if ending.is_none() => Err(Code::Draining),
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
            Step::End(frames) => (frames, true),
        };
        let began = ctx.shared.clock.now_ms();
        let ended = async {
            tokio::select! {
                code = revocation.heard() => code,
                () = ctx.drain.cancelled() => Code::Draining,
            }
        };
        let sent = tokio::select! {
            biased;
            sent = all(&ctx, &mut out, frames, ended, &mut ending) => sent,
            () = ctx.cut.cancelled() => return,
        };
        match sent {
            Ok(()) => {}
            Err(Stopped::TooSlow) => return ctx.ticket.ended(ending.or(Some(Code::ContactTooSlow))),
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

/// Sends all of it. When the subscription `ended` meanwhile, what is left of it must be taken within
/// [`LINGER`]: it may be all that a slow contact is still to see.
async fn all(
    ctx: &Ctx,
    out: &mut impl Sink,
    frames: Vec<Bytes>,
    ended: impl Future<Output = Code>,
    ending: &mut Option<Code>,
) -> Result<(), Stopped> {
    let mut sending = pin!(async {
        for bytes in gathered(frames) {
            out.send(ctx, bytes).await?;
        }
        Ok(())
    });
    tokio::select! {
        biased;
        sent = &mut sending => return sent,
        code = ended, if ending.is_none() => *ending = Some(code),
    }
    ctx.within(LINGER, sending).await.unwrap_or(Err(Stopped::TooSlow))
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
