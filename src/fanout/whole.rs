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
use crate::proto::window::{LANES, Pieces, PiecesEnd, Whole, WholeNext, lane_of};
use crate::proto::{Code, ContactState, StreamId};

/// A subscription that sees whole chunks only, for the drop-in route (contract B.4).
pub struct WholeSubscription {
    seat: Seat,
    whole: Whole,
    grant: Arc<Grant>,
    wake: Listener,
    timer: Timer,
    /// The chunk that was told last, as far as it is read.
    reading: Option<(usize, Pieces)>,
    ended: Option<Code>,
}

/// What a [`WholeSubscription`] sees.
pub enum WholeEvent {
    /// A chunk, whole and hashed; [`WholeSubscription::piece`] hands out its bytes.
    Chunk(ChunkMeta),
    /// Its verdict.
    State(ChunkMeta, ContactState, Option<(Code, Option<Box<str>>)>),
    /// Nothing more comes.
    End(Code),
}

impl WholeSubscription {
    pub(super) fn open(hub: &Arc<Inner>, grant: &Arc<Grant>, stream: &StreamId) -> Result<Self, Code> {
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
        Ok(Self { seat, whole, grant: Arc::clone(grant), wake, timer: Timer::default(), reading: None, ended: None })
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

    /// The next bytes of the chunk that was told last; `None` after them all. They stay in the window until
    /// they are asked for, and are counted there.
    ///
    /// # Errors
    /// `ContactTooSlow`: the window let go of the chunk meanwhile. What went of it is no chunk, and the
    /// subscription is over.
    pub fn piece(&mut self) -> Result<Option<Bytes>, Code> {
        let Some((lane, pieces)) = &mut self.reading else { return Ok(None) };
        let polled = pieces.poll(&mut self.seat.cell.lock().window);
        match polled {
            Ok(Some(piece)) => {
                self.seat.hub.metrics.fanout.delivered(*lane, 1, piece.len() as u64);
                Ok(Some(piece))
            }
            Err(PiecesEnd::Whole) => Ok(None),
            Ok(None) | Err(PiecesEnd::Gone | PiecesEnd::Withdrawn(_)) => {
                self.let_go(Code::ContactTooSlow);
                Err(Code::ContactTooSlow)
            }
        }
    }

    /// It ends here, for this reason, unless it has ended.
    pub fn let_go(&mut self, reason: Code) {
        if self.ended.is_none() {
            self.ended = Some(reason);
            self.reading = None;
            self.seat.hub.metrics.fanout.ending(Some(reason));
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
        let next = self.whole.poll(&self.seat.cell.lock().window);
        match next {
            None => Err(due),
            Some(WholeNext::Chunk(meta, pieces)) => {
                self.reading = Some((lane_of(meta.variant).unwrap_or(LANES.len()), pieces));
                Ok(WholeEvent::Chunk(meta.as_ref().clone()))
            }
            Some(WholeNext::State(meta, state, error)) => Ok(WholeEvent::State(meta.as_ref().clone(), state, error)),
            Some(WholeNext::Slow) => Ok(self.finish(Code::ContactTooSlow)),
        }
    }

    fn finish(&mut self, reason: Code) -> WholeEvent {
        self.let_go(reason);
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
