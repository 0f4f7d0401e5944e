//! One chunk as it arrives, for `GET /chunks/{ref}`.

use std::sync::Arc;

use bytes::Bytes;

use super::ChunkMeta;
use super::bells::Listener;
use super::cell::{Channel, Seat, Sits};
use super::hub::Inner;
use super::timer::Timer;
use crate::proto::claims::Grant;
use crate::proto::message::WithdrawnReason;
use crate::proto::window::{LANES, Pieces, PiecesEnd, lane_of};
use crate::proto::{ChunkRef, Code};

/// One chunk as it arrives.
pub struct ChunkReader {
    seat: Seat,
    pieces: Pieces,
    grant: Arc<Grant>,
    wake: Listener,
    timer: Timer,
    lane: usize,
}

impl ChunkReader {
    pub(super) fn open(hub: &Arc<Inner>, grant: &Arc<Grant>, chunk: ChunkRef) -> Result<Self, Code> {
        hub.may_watch(grant)?;
        if !LANES.into_iter().any(|variant| hub.reaches(grant, variant)) {
            return Err(Code::NotWatchable);
        }
        let seat = hub.seat(grant, Sits::Reader)?;
        let wake = seat.cell.listen(Channel::Any);
        let mut pieces = Pieces::new(chunk);
        seat.cell.tick(hub);
        {
            let state = seat.cell.lock();
            let meta = pieces.begins(&state.window);
            if meta.is_some_and(|meta| !grant.watches(&meta.stream, meta.variant)) {
                return Err(Code::NotWatchable);
            }
            if pieces.gone(&state.window) {
                return Err(Code::ChunkNotInWindow);
            }
        }
        Ok(Self { seat, pieces, grant: Arc::clone(grant), wake, timer: Timer::default(), lane: LANES.len() })
    }

    /// Waits until the chunk begins. Cancel-safe.
    ///
    /// # Errors
    /// `CapabilityExpired` when the grant ends first, `NotWatchable` when it does not reach the
    /// stream that the chunk turns out to be of.
    pub async fn begins(&mut self) -> Result<ChunkMeta, Code> {
        loop {
            self.wake.mark_unchanged();
            self.seat.cell.tick(&self.seat.hub);
            let due = self.due().ok_or(Code::CapabilityExpired)?;
            let meta = self.pieces.begins(&self.seat.cell.lock().window);
            if let Some(meta) = meta {
                self.lane = lane_of(meta.variant).ok_or(Code::NotWatchable)?;
                let reached = self.grant.watches(&meta.stream, meta.variant);
                // What happens on the other lane is nothing to it.
                self.wake = self.seat.cell.listen(Channel::Lane(self.lane));
                return if reached { Ok(meta.as_ref().clone()) } else { Err(Code::NotWatchable) };
            }
            self.wait(due).await;
        }
    }

    /// The next bytes; `None` after the last. An error must reset the transport: what was sent
    /// is not that chunk. Cancel-safe.
    ///
    /// # Errors
    /// `HashMismatch`, `BodyStalled`, `AttemptSuperseded`, `ChunkNotInWindow`, and
    /// `CapabilityExpired` when the grant ends before the chunk does.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Code> {
        loop {
            self.wake.mark_unchanged();
            self.seat.cell.tick(&self.seat.hub);
            let due = self.due().ok_or(Code::CapabilityExpired)?;
            let polled = self.pieces.poll(&mut self.seat.cell.lock().window);
            match polled {
                Ok(Some(piece)) => {
                    self.seat.hub.metrics.fanout.delivered(self.lane, 1, piece.len() as u64);
                    return Ok(Some(piece));
                }
                Ok(None) => self.wait(due).await,
                Err(PiecesEnd::Whole) => return Ok(None),
                Err(PiecesEnd::Gone) => return Err(Code::ChunkNotInWindow),
                Err(PiecesEnd::Withdrawn(WithdrawnReason::HashMismatch)) => return Err(Code::HashMismatch),
                Err(PiecesEnd::Withdrawn(WithdrawnReason::Stalled)) => return Err(Code::BodyStalled),
                Err(PiecesEnd::Withdrawn(WithdrawnReason::Superseded)) => return Err(Code::AttemptSuperseded),
            }
        }
    }

    /// When to look again though nothing comes, in milliseconds of the clock; `None`: the grant ended.
    fn due(&self) -> Option<u64> {
        let clock = &self.seat.hub.clock;
        let left = self.grant.exp.saturating_mul(1000).saturating_sub(clock.unix_ms());
        let ends = (left > 0).then(|| clock.now_ms().saturating_add_signed(left))?;
        Some(self.seat.cell.lock().window.abandoned_at().map_or(ends, |at| at.min(ends)))
    }

    async fn wait(&mut self, due: u64) {
        let clock = self.seat.hub.clock.clone();
        tokio::select! {
            () = self.wake.changed() => {}
            () = self.timer.until(&clock, due) => {}
        }
    }
}
