//! Whole chunks only, for the drop-in route (contract B.4).

use std::sync::Arc;

use bytes::Bytes;

use super::ChunkMeta;
use super::bells::Listener;
use super::cell::{Channel, Seat, Sits};
use super::group::GroupKey;
use super::hub::Inner;
use super::timer::Timer;
use crate::proto::claims::Grant;
use crate::proto::window::{LANES, Whole, WholeNext};
use crate::proto::{Code, ContactState, StreamId};

/// A subscription that sees whole chunks only, for the drop-in route (contract B.4).
pub struct WholeSubscription {
    seat: Seat,
    whole: Whole,
    grant: Grant,
    wake: Listener,
    timer: Timer,
    ended: Option<Code>,
}

/// What a [`WholeSubscription`] sees.
pub enum WholeEvent {
    /// A chunk, whole and hashed, in pieces.
    Chunk(ChunkMeta, Vec<Bytes>),
    /// Its verdict.
    State(ChunkMeta, ContactState, Option<(Code, Option<Box<str>>)>),
    /// Nothing more comes.
    End(Code),
}

impl WholeSubscription {
    pub(super) fn open(hub: &Arc<Inner>, grant: &Grant, stream: &StreamId) -> Result<Self, Code> {
        hub.may_watch(grant)?;
        let lanes = || LANES.into_iter().filter(|variant| hub.reaches(grant, *variant));
        if GroupKey::of_contact(grant)? != GroupKey::of(grant, stream)
            || !lanes().any(|variant| grant.watches(stream, variant))
        {
            return Err(Code::NotWatchable);
        }
        let seat = hub.seat(grant, Sits::Contact)?;
        let wake = seat.cell.listen(Channel::Any);
        let whole = Whole::new(&seat.cell.lock().window, stream.clone());
        Ok(Self { seat, whole, grant: grant.clone(), wake, timer: Timer::default(), ended: None })
    }

    /// Waits for the next event. Cancel-safe. A subscriber that falls too far behind is ended
    /// with `ContactTooSlow`; after the end it only ends again.
    pub async fn next(&mut self) -> WholeEvent {
        loop {
            self.wake.mark_unchanged();
            let due = match self.poll() {
                Ok(event) => return event,
                Err(due) => due,
            };
            let clock = self.seat.hub.clock.clone();
            tokio::select! {
                () = self.wake.changed() => {}
                () = self.timer.until(&clock, due) => {}
            }
        }
    }

    fn poll(&mut self) -> Result<WholeEvent, u64> {
        if let Some(reason) = self.ended {
            return Ok(WholeEvent::End(reason));
        }
        let clock = &self.seat.hub.clock;
        let left = self.grant.exp.saturating_mul(1000).saturating_sub(clock.unix_ms());
        if left <= 0 {
            return Ok(self.finish(Code::CapabilityExpired));
        }
        let due = clock.now_ms().saturating_add_signed(left);
        let next = self.whole.poll(&mut self.seat.cell.lock().window);
        match next {
            None => Err(due),
            Some(WholeNext::Chunk(meta, pieces)) => {
                let bytes = pieces.iter().map(|piece| piece.len() as u64).sum();
                let lane = crate::proto::window::lane_of(meta.variant).unwrap_or(LANES.len());
                self.seat.hub.metrics.fanout.delivered(lane, pieces.len() as u64, bytes);
                Ok(WholeEvent::Chunk(meta.as_ref().clone(), pieces))
            }
            Some(WholeNext::State(meta, state, error)) => Ok(WholeEvent::State(meta.as_ref().clone(), state, error)),
            Some(WholeNext::Slow) => Ok(self.finish(Code::ContactTooSlow)),
        }
    }

    fn finish(&mut self, reason: Code) -> WholeEvent {
        self.ended = Some(reason);
        self.seat.hub.metrics.fanout.ending(Some(reason));
        WholeEvent::End(reason)
    }
}

impl Drop for WholeSubscription {
    fn drop(&mut self) {
        if self.ended.is_none() {
            self.seat.hub.metrics.fanout.left();
        }
    }
}
