//! One offered chunk of a `/capture` connection, from the offer to its end.

use std::sync::Arc;

use tokio::sync::watch;

use super::lane::{Lane, WINDOW};
use super::tokens::Tokens;
use crate::admission::{Admitted, Receiving, Refusal, Standing};
use crate::ingress::conn::Ctx;
use crate::ingress::frames::Outbox;
use crate::ingress::respond;
use crate::proto::frame::{self, kind};
use crate::proto::message::{Credit, Send};
use crate::proto::{ChunkRef, ChunkState, Code, Offer};

/// A chunk may wait this many idle timeouts for its next byte while its connection lives: on a
/// thin link the lanes before it have the way.
const PATIENCE: u32 = 4;

/// What a chunk's task needs.
pub(super) struct Chunk {
    pub(super) ctx: Ctx,
    pub(super) handle: u64,
    pub(super) lane: Arc<Lane>,
    pub(super) out: Outbox,
    /// What the connection may do.
    pub(super) tokens: Tokens,
    /// How many chunks of the connection are being received.
    pub(super) receiving: watch::Sender<usize>,
}

impl Chunk {
    /// Offers it, takes its bytes, and says each of its states until it ended.
    pub(super) async fn run(self, offer: Offer) {
        let chunk = offer.chunk_ref();
        // It counts until its sender was told, too.
        let mut counted = None;
        let standing = match self.bring(offer, &mut counted).await {
            Ok(standing) => standing,
            Err(refusal) => {
                self.lane.close();
                self.ctx.shared.metrics.ingress.refuse_on_capture(refusal.code);
                self.out.send(respond::capture_refusal(self.handle, &refusal)).await;
                return;
            }
        };
        drop(counted);
        self.lane.close();
        self.follow(chunk, standing).await;
    }

    async fn bring(&self, offer: Offer, counted: &mut Option<Counted>) -> Result<Standing, Refusal> {
        let chunk = offer.chunk_ref();
        let capability = self.tokens.reaching(&offer, self.ctx.shared.clock.unix_s()).await?;
        let admitted = self.ctx.shared.admission.offer(offer, &capability, self.ctx.client).await?;
        match admitted {
            Admitted::Have(standing) => Ok(standing),
            Admitted::Receive(receiving) => {
                *counted = Some(Counted::new(&self.receiving));
                self.take(receiving).await.map_err(|refusal| self.known(chunk, refusal))
            }
        }
    }

    /// A refusal after `SEND` says what is held of the chunk: the client goes on from there.
    fn known(&self, chunk: ChunkRef, mut refusal: Refusal) -> Refusal {
        let now = || self.ctx.shared.admission.follow(chunk).map(|follow| follow.now());
        refusal.standing = refusal.standing.or_else(now);
        refusal
    }

    async fn take(&self, mut receiving: Receiving) -> Result<Standing, Refusal> {
        let (mut offset, length) = (receiving.offset(), receiving.length());
        let mut granted = offset + WINDOW.min(length - offset.min(length));
        let mut owed = 0;
        self.lane.open(offset, granted - offset)?;
        let send = Send { handle: self.handle, offset, credit: granted - offset };
        self.out.send(frame::encode_json(kind::SEND, &send)).await;
        let begins = offset;
        while offset < length {
            let patience = self.ctx.limits.idle_timeout * PATIENCE;
            let bytes = tokio::select! {
                biased;
                bytes = self.ctx.within(patience, self.lane.take()) => bytes,
                // What has not begun is brought to another relay.
                () = self.ctx.drain.cancelled(), if offset == begins => return Err(Code::Draining.into()),
            };
            let Some(bytes) = bytes else {
                receiving.stalled();
                return Err(Code::BodyStalled.into());
            };
            let len = bytes.len() as u64;
            receiving.push(bytes).await?;
            offset += len;
            owed += len;
            let more = owed.min(length - granted);
            if owed >= WINDOW / 4 && more > 0 {
                granted += more;
                owed = 0;
                self.lane.credit(more);
                let credit = Credit { handle: self.handle, bytes: more };
                self.out.send(frame::encode_json(kind::CREDIT, &credit)).await;
            }
        }
        receiving.finish().await
    }

    async fn follow(&self, chunk: ChunkRef, first: Standing) {
        let Some(mut follow) = self.ctx.shared.admission.follow(chunk) else {
            self.out.send(respond::capture_state(self.handle, &first)).await;
            return;
        };
        // What is true now may be later than `first`; the client hears both.
        let mut said = first;
        self.out.send(respond::capture_state(self.handle, &said)).await;
        let mut standing = follow.now();
        loop {
            if standing != said && standing.state != ChunkState::Receiving {
                if !self.out.send(respond::capture_state(self.handle, &standing)).await {
                    return;
                }
                said = standing;
            }
            if said.state.ended() {
                return;
            }
            standing = follow.changed().await;
        }
    }
}

/// Counts a chunk while it is being received.
struct Counted(watch::Sender<usize>);

impl Counted {
    fn new(count: &watch::Sender<usize>) -> Self {
        count.send_modify(|count| *count += 1);
        Self(count.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}
