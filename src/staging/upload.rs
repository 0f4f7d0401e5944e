//! Uploads that are gone on with by their name alone: what was offered is looked up here.

use std::sync::Arc;

use super::Meta;
use super::incoming::{Attempt, Incoming};
use super::store::{Staging, Standing, blocking};
use crate::proto::ledger::Decision;
use crate::proto::{ChunkRef, ChunkState, Code, Offer};

impl Staging {
    /// What was offered of a chunk that is being received, as the attempt that goes on with it.
    pub async fn offered(&self, chunk: ChunkRef) -> Option<Offer> {
        let (meta, attempt) = self.receiving(chunk).await?;
        Some(Offer { attempt, ..meta.offer.clone() })
    }

    /// What was offered of a chunk that is not ended.
    pub async fn offered_once(&self, chunk: ChunkRef) -> Option<Offer> {
        if let Some(offer) = self.offered(chunk).await {
            return Some(offer);
        }
        let open = self.standing(chunk).is_some_and(|standing| standing.state.held());
        let meta = if open { self.meta_of(chunk).await.ok() } else { None };
        meta.map(|meta| meta.offer.clone())
    }

    /// Ends the attempt that is under way, if one is, and says where the chunk stands then: the
    /// offset stays that until somebody goes on.
    ///
    /// # Errors
    /// `StagingFailed`; `NotFound`, also of one whose last byte came and proved it another.
    pub async fn pause(&self, chunk: ChunkRef) -> Result<Standing, Code> {
        // An attempt that ended may have bytes to write still, and is in nobody's way then.
        let open = self.slots().contains_key(&chunk);
        if open && let Some((meta, _)) = self.receiving(chunk).await {
            self.take_over(chunk, meta).await?;
        }
        self.standing(chunk).ok_or(Code::NotFound)
    }

    /// Until when an unconfirmed chunk is kept, in milliseconds since the Unix epoch.
    #[must_use]
    pub fn kept_until(&self, chunk: ChunkRef) -> Option<i64> {
        self.ledger().record(chunk).filter(|record| !record.state.ended()).map(|record| record.until)
    }

    async fn take_over(&self, chunk: ChunkRef, meta: Arc<Meta>) -> Result<(), Code> {
        let now = self.0.calendar.now_ms();
        let decision = {
            let mut ledger = self.ledger();
            let Some(terms) = ledger.record(chunk).map(|record| record.terms) else { return Err(Code::NotFound) };
            match ledger.handle_offer(chunk, terms, now) {
                // Nobody is at it, and there is no place for one who only asks.
                Err(Code::ReceivingFull | Code::InFlightPerSession) => return Ok(()),
                decision => decision?,
            }
        };
        // It became whole meanwhile.
        let Decision::Receive { epoch, held, replaces } = decision else { return Ok(()) };
        let begin = Incoming::begin(self.clone(), self.slot(chunk), chunk, epoch, held, replaces, meta);
        let taken = async { begin.await?.keep().await };
        match self.0.closing.spawn(taken).await.unwrap_or(Err(Code::InternalError)) {
            // By the last byte, or by somebody who goes on.
            Err(Code::AttemptSuperseded | Code::HashMismatch) | Ok(_) => Ok(()),
            Err(code) => Err(code),
        }
    }

    /// What was offered of a chunk that is being received, and the number of its newest attempt.
    async fn receiving(&self, chunk: ChunkRef) -> Option<(Arc<Meta>, u64)> {
        let said = self.slots().get(&chunk).and_then(|slot| slot.said());
        let meta = match said {
            Some(meta) => meta,
            None => {
                let vault = self.0.vault.clone();
                Arc::new(blocking(move || vault.partial_meta(chunk)).await.ok()?)
            }
        };
        let ledger = self.ledger();
        let record = ledger.record(chunk).filter(|record| record.state == ChunkState::Receiving)?;
        // Of several offers at once only the one counts that the ledger took.
        let same = record.terms.digest == meta.offer.sha256 && record.terms.length == meta.offer.length;
        same.then_some((meta, record.terms.attempt))
    }
}

impl Attempt {
    /// Writes down what came, were it only what was offered, and ends the attempt.
    pub(super) async fn keep(self) -> Result<u64, Code> {
        let state = self.slot.lock().await;
        if !self.staging.ledger().current(self.key, self.epoch) {
            return Err(Code::AttemptSuperseded);
        }
        let named = state.part.is_some() || state.written > 0;
        let written = if named && state.gathered.is_empty() { Ok(state) } else { self.write(state).await };
        self.staging.ledger().handle_attempt_ended(self.key, self.epoch);
        match written {
            Ok(state) => {
                let held = state.held();
                drop(state);
                self.rest().await;
                Ok(held)
            }
            Err(code) => {
                self.rest().await;
                Err(code)
            }
        }
    }
}
