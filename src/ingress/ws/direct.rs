//! The writing half of a session that writes by itself.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use super::super::body::Stopped;
use super::super::conn::Ctx;
use super::super::frames::{self, Bundle, Goodbye, Outlet};
use super::super::wswrite::{Replies, Writer};
use super::{Io, Own, gave_up};
use crate::clock::Clock;
use crate::proto::Code;
use crate::rare::Rare;

/// A session's own writing half.
pub(in crate::ingress) struct Direct {
    writer: Writer<Io>,
    chores: Rare<Chores>,
    /// Why it could not be written, if the peer took nothing for too long.
    stalled: Option<Code>,
}

impl Direct {
    pub(super) fn new(ctx: &Ctx, writer: Writer<Io>) -> Self {
        let (clock, ping_every) = (ctx.shared.clock.clone(), ctx.limits.idle_timeout / 3);
        let replies = Arc::clone(&writer.replies);
        let chores = Rare::new(Chores { replies, ping: sleep(&clock, ping_every), clock, ping_every });
        Self { writer, chores, stalled: None }
    }

    /// Sends the last frame and the close, as far as they are taken in time. Returns the code they carry, and
    /// the one it gave up with.
    pub(super) async fn farewell(mut self, ctx: &Ctx, goodbye: Goodbye) -> (Option<Code>, Option<Code>) {
        let told = match goodbye {
            Goodbye::Told(last, code) => {
                if !last.is_empty() {
                    self.writer.put([last.into()]);
                }
                Some(code)
            }
            Goodbye::Done | Goodbye::Left => None,
        };
        let closing = self.writer.close(told);
        let closed = match told {
            // A reason ends it now, however slow the contact is.
            Some(_) => ctx.within(frames::LINGER, closing).await,
            None => Some(closing.await),
        };
        let stalled =
            closed.map_or(Some(Code::ContactTooSlow), |closed| closed.err().and_then(|error| gave_up(&error)));
        (told, self.stalled.or(stalled))
    }
}

impl Outlet for Direct {
    async fn room(&mut self) -> Result<(), Stopped> {
        let Err(error) = self.writer.write().await else { return Ok(()) };
        self.stalled = gave_up(&error);
        Err(self.stalled.map_or(Stopped::Gone, |_| Stopped::TooSlow))
    }

    fn send(&mut self, batch: Vec<Bundle>) {
        self.writer.put(batch);
    }

    async fn chores(&mut self) {
        match poll_fn(|cx| self.chores.poll_by(cx, Chores::poll)).await {
            Own::Reply => self.writer.put([]),
            Own::Ping => self.writer.put_ping(),
        }
    }
}

/// What a session writes beside what it is for.
struct Chores {
    replies: Arc<Replies>,
    ping: Pin<Box<dyn Future<Output = ()> + Send>>,
    clock: Clock,
    ping_every: Duration,
}

impl Chores {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Own> {
        if self.replies.poll_some(cx).is_ready() {
            return Poll::Ready(Own::Reply);
        }
        ready!(self.ping.as_mut().poll(cx));
        self.ping = sleep(&self.clock, self.ping_every);
        Poll::Ready(Own::Ping)
    }
}

fn sleep(clock: &Clock, time: Duration) -> Pin<Box<dyn Future<Output = ()> + Send>> {
    let clock = clock.clone();
    Box::pin(async move { clock.sleep(time).await })
}
