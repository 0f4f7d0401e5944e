//! What is left of a request's body that nobody wants.

use std::sync::Arc;

use futures_util::FutureExt as _;
use tokio::sync::oneshot;

use super::{RequestBody, Source};
use crate::ingress::conn::{Conn, Ctx};
use crate::telemetry::names::Transport;

/// Bytes of a refused request's body that are read so that its sender comes to read the answer.
const DRAIN_BYTES: u64 = 8 << 20;

impl RequestBody {
    /// Reads what is left of a body that nobody wants, apart from the answer: many clients read
    /// nothing before they have sent everything, and a reset would take the answer away from
    /// them. One that waits for `100 Continue` is not asked to send. After a refusal only so much
    /// is read. Says when it is over and whether all of it was read, if there is anything to read.
    pub(in crate::ingress) fn leave(&mut self, ctx: &Ctx, left: Leave) -> Option<oneshot::Receiver<bool>> {
        let mut rest = self.take();
        let ended = rest.end.is_some() || matches!(rest.source, Source::Nothing);
        if ended || (left.expects_continue && !rest.begun) {
            return None;
        }
        // Who only asks has sent all there is: no task is needed to see that.
        if matches!(rest.next().now_or_never(), Some(None)) {
            return None;
        }
        let (done, over) = oneshot::channel();
        let ctx = LeftOver { conn: Arc::clone(&ctx.conn), transport: ctx.transport };
        ctx.conn.service.tasks.clone().spawn(async move {
            let whole = ctx.read(rest, left.refused).await;
            if !whole {
                ctx.conn.service.dropped_body(ctx.transport);
            }
            let _ = done.send(whole);
        });
        Some(over)
    }
}

/// Why a body is not read by its handler.
#[derive(Debug, Clone, Copy)]
pub(in crate::ingress) struct Leave {
    /// The request was refused; else its bytes are here already.
    pub(in crate::ingress) refused: bool,
    /// The request has `Expect: 100-continue`.
    pub(in crate::ingress) expects_continue: bool,
}

/// Where a body that is left came from. It holds no ticket: the request is answered.
struct LeftOver {
    conn: Arc<Conn>,
    transport: Transport,
}

impl LeftOver {
    /// Reads a body to its end; `false` if it was too long or too slow for that.
    async fn read(&self, mut rest: RequestBody, refused: bool) -> bool {
        let service = &self.conn.service;
        let (clock, idle) = (&service.shared.clock, service.limits.idle_timeout);
        let mut left = if refused { DRAIN_BYTES } else { service.shared.max_chunk.saturating_add(DRAIN_BYTES) };
        let mut patience = Box::pin(clock.sleep(idle));
        loop {
            let next = tokio::select! {
                next = rest.next() => next,
                () = &mut patience => return false,
                () = service.cut.cancelled() => return false,
            };
            let Some(Ok(piece)) = next else { return true };
            left = left.saturating_sub(piece.len() as u64);
            if left == 0 {
                return false;
            }
            if !refused {
                patience = Box::pin(clock.sleep(idle));
            }
        }
    }
}
