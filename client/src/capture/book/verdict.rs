//! What follows from the relay's word on a chunk.

use super::*;
use crate::authority::Reconciled;
use crate::capture::retry::{self, Meaning};

impl Book {
    /// The relay spoke of a chunk. What an attempt brings that is no longer the chunk's changes
    /// nothing.
    pub(crate) fn verdict(&mut self, id: u64, attempt: u64, verdict: Verdict, now_ms: u64) -> Vec<Effect> {
        let mut out = Vec::new();
        let Some(entry) = self.entries.get_mut(&id).filter(|entry| entry.attempt == attempt) else { return out };
        if matches!(entry.stage, Stage::Doubted | Stage::Refused) {
            return out;
        }
        (entry.heard_ms, entry.bare) = (now_ms, false);
        // `receiving` alone may be what this end makes of the bytes that go.
        let of_relay = match &verdict.error {
            Some(error) => retry::meaning(error) != Meaning::Between,
            None => verdict.state.is_some_and(|state| state != ChunkState::Receiving),
        };
        if of_relay {
            entry.between = 0;
        }
        let code = verdict.error.as_ref().map(crate::wire::code_of);
        let mut verdict = verdict;
        if verdict.error.as_ref().is_some_and(|error| retry::meaning(error) == Meaning::Reconcile) {
            // A relay that did not bring it calls the core's "duplicate" a refusal.
            verdict.state = Some(ChunkState::Unsettled);
        }
        match verdict.state {
            Some(ChunkState::Confirmed) => {
                self.confirm(id, verdict.receipt, false, now_ms, &mut out);
                if self.entries.get(&id).is_some_and(|entry| entry.stage == Stage::Unsettled) {
                    out.push(Effect::Reconcile { id });
                }
                self.rate.paused(self.moving().all() == 0, now_ms);
                return out;
            }
            Some(state) => self.note(id, state, code.clone(), Proof::Absent, now_ms, &mut out),
            None => {}
        }
        let held = verdict.state.is_some_and(ChunkState::held);
        if verdict.state == Some(ChunkState::AwaitingCapability) {
            out.push(Effect::Renew);
        }
        let floor_ms = verdict.retry_after_s.map(|seconds| crate::http::bounded(seconds.max(1)) * 1000);
        match (&verdict.error, verdict.state) {
            // Both said their last word of this try.
            (_, Some(ChunkState::Unsettled)) => out.push(Effect::Reconcile { id }),
            (_, Some(ChunkState::Rejected)) => self.refused(id, code, &mut out),
            (_, Some(ChunkState::Expired)) => self.failed(id, code, floor_ms, now_ms, &mut out),
            // The relay holds it, and says what it waits for; it will tell, or is asked again.
            _ if held => self.held(id, &verdict, floor_ms, now_ms),
            (Some(error), _) => self.error(id, error, code, floor_ms, now_ms, &mut out),
            (None, _) if verdict.last => self.again(id, floor_ms.unwrap_or(1000), now_ms),
            (None, _) => {}
        }
        self.rate.paused(self.moving().all() == 0, now_ms);
        out
    }

    /// The core itself said what it has of an unsettled chunk.
    pub(crate) fn reconciled(&mut self, id: u64, core: Reconciled, now_ms: u64) -> Vec<Effect> {
        let mut out = Vec::new();
        let unsettled = |entry: &Entry| entry.note.state == Some(ChunkState::Unsettled);
        if !self.entries.get(&id).is_some_and(unsettled) {
            return out;
        }
        let code = || Some("duplicate_chunk_conflict".to_owned());
        match core {
            Reconciled::Stored { receipt: None } => {
                // The core's own word needs no receipt, and tells that it gives none.
                if self.signs == Signs::Unknown {
                    self.signs = Signs::No;
                }
                self.confirmed(id, Proof::Absent, now_ms, &mut out);
            }
            Reconciled::Stored { receipt } => self.confirm(id, receipt, false, now_ms, &mut out),
            Reconciled::Untold if self.signs != Signs::Yes => {
                // As long as no receipt was ever seen, a relay's word is all there is.
                self.signs = Signs::No;
                let bare = self.entries.get_mut(&id).is_some_and(|entry| std::mem::take(&mut entry.bare));
                if bare {
                    self.confirmed(id, Proof::Absent, now_ms, &mut out);
                }
            }
            Reconciled::Untold => {}
            Reconciled::Conflict => {
                self.note(id, ChunkState::Rejected, code(), Proof::Absent, now_ms, &mut out);
                self.refused(id, code(), &mut out);
            }
            // What a relay takes for stored is not: it is brought again.
            Reconciled::Missing => {
                self.note(id, ChunkState::Receiving, None, Proof::Absent, now_ms, &mut out);
                self.go_on(id, 0, now_ms);
            }
        }
        out
    }

    fn held(&mut self, id: u64, verdict: &Verdict, floor_ms: Option<u64>, now_ms: u64) {
        if verdict.last {
            self.again(id, floor_ms.unwrap_or(1000), now_ms);
        }
    }

    fn error(
        &mut self,
        id: u64,
        error: &Error,
        code: Option<String>,
        floor_ms: Option<u64>,
        now_ms: u64,
        out: &mut Vec<Effect>,
    ) {
        match retry::meaning(error) {
            Meaning::Failure => self.failed(id, code, floor_ms, now_ms, out),
            Meaning::GoOn if error.retry == waystation_proto::Retry::Never => self.go_on(id, 1000, now_ms),
            Meaning::GoOn => self.go_on(id, floor_ms.unwrap_or(0), now_ms),
            Meaning::Wait => self.again(id, floor_ms.unwrap_or(1000), now_ms),
            Meaning::Between => self.between(id, code, floor_ms, now_ms, out),
            Meaning::Renew => {
                self.again(id, 0, now_ms);
                self.stage(id, Stage::Parked);
                out.push(Effect::Renew);
            }
            // Taken for the state it stands for before it comes here.
            Meaning::Reconcile => {}
            Meaning::Refused => {
                self.note(id, ChunkState::Rejected, code.clone(), Proof::Absent, now_ms, out);
                self.refused(id, code, out);
            }
        }
    }

    /// Something on the way answered: later each time, since it may take the bytes each time; told once.
    fn between(&mut self, id: u64, code: Option<String>, floor_ms: Option<u64>, now_ms: u64, out: &mut Vec<Effect>) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let (label, before) = (entry.label, entry.between);
        entry.between += 1;
        if before == 0 {
            out.push(Effect::Item { label, state: ItemState::Retrying, code });
        }
        let pause = BETWEEN_MS << before.min(BETWEEN_DOUBLINGS);
        self.again(id, floor_ms.unwrap_or(0).max(pause), now_ms);
    }

    /// A try failed and counts.
    fn failed(&mut self, id: u64, code: Option<String>, floor_ms: Option<u64>, now_ms: u64, out: &mut Vec<Effect>) {
        let dice = self.jitter.roll();
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let label = entry.label;
        let delay = retry::delay_ms(entry.note.retries + 1, dice);
        let state = match delay {
            Some(_) => {
                entry.note.retries += 1;
                ItemState::Retrying
            }
            None => {
                entry.note.failed = true;
                ItemState::Failed
            }
        };
        out.push(Effect::Note { id, note: entry.note });
        out.push(Effect::Item { label, state, code });
        match delay {
            Some(delay) => self.again(id, delay.max(floor_ms.unwrap_or(0)), now_ms),
            None => {
                self.again(id, 0, now_ms);
                self.stage(id, Stage::Failed);
            }
        }
    }

    fn refused(&mut self, id: u64, code: Option<String>, out: &mut Vec<Effect>) {
        if let Some(entry) = self.entries.get(&id) {
            out.push(Effect::Item { label: entry.label, state: ItemState::Failed, code });
        }
        self.stage(id, Stage::Refused);
    }

    /// The core confirmed, says the relay, which is no authority: the receipt must agree, and be
    /// there where the core signs. What is not proven so is asked of the core.
    pub(super) fn confirm(
        &mut self,
        id: u64,
        receipt: Option<String>,
        keys_are_new: bool,
        now_ms: u64,
        out: &mut Vec<Effect>,
    ) {
        let Some(entry) = self.entries.get(&id) else { return };
        let check = |text: &str| self.keys.check(text, keys_are_new, |receipt| receipt.is_for(&entry.offer));
        let Some(proof) = receipt.as_deref().map_or_else(|| self.without_receipt(), check) else {
            // The bytes stay here until it can be checked.
            self.stage(id, Stage::Doubted);
            self.doubted.insert(id, receipt);
            return out.push(Effect::FetchKeys);
        };
        let missing = proof == Proof::Absent && (self.signs == Signs::Yes || self.may_sign());
        if proof == Proof::Invalid || missing {
            let code = if missing { "receipt_missing" } else { "receipt_invalid" };
            self.note(id, ChunkState::Unsettled, Some(code.into()), proof, now_ms, out);
            if let Some(entry) = self.entries.get_mut(&id) {
                entry.bare = missing;
            }
            return;
        }
        if proof == Proof::Verified && self.signs != Signs::Yes {
            self.signs = Signs::Yes;
            out.push(Effect::Signs);
        }
        self.confirmed(id, proof, now_ms, out);
    }

    /// What no receipt proves; none: that can't be told before it is known whether there are keys.
    fn without_receipt(&self) -> Option<Proof> {
        (self.signs != Signs::Unknown || !matches!(self.keys, Keys::Awaited)).then_some(Proof::Absent)
    }

    /// The core has keys, and nobody knows yet whether it signs with them.
    const fn may_sign(&self) -> bool {
        matches!((self.signs, &self.keys), (Signs::Unknown, Keys::Known(_)))
    }

    /// It is confirmed: nobody needs its bytes here.
    fn confirmed(&mut self, id: u64, proof: Proof, now_ms: u64, out: &mut Vec<Effect>) {
        self.note(id, ChunkState::Confirmed, None, proof, now_ms, out);
        self.entries.remove(&id);
        self.queue.remove(id);
        out.push(Effect::Free { id });
    }

    /// Writes a state down.
    pub(super) fn note(
        &mut self,
        id: u64,
        state: ChunkState,
        code: Option<String>,
        receipt: Proof,
        now_ms: u64,
        out: &mut Vec<Effect>,
    ) {
        let relay = self.relay;
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let before = entry.note;
        if entry.note.state != Some(state) {
            entry.note.state = Some(state);
            entry.quick = 0;
            out.push(Effect::State { id, label: entry.label, state, code, receipt });
        }
        entry.held_by = state.held().then_some(relay);
        if state.held() {
            entry.reached(entry.offer.length);
            entry.note.retries = 0;
        }
        if state == ChunkState::Expired {
            entry.accepted = 0;
        }
        match (state, entry.stage) {
            (ChunkState::Unsettled, _) => {
                entry.settle_ms = now_ms + UNSETTLED_MS;
                self.stage(id, Stage::Unsettled);
            }
            (ChunkState::Receiving, Stage::Probing) => entry.stage = Stage::Moving,
            (state, Stage::Probing | Stage::Moving) if state.held() => entry.stage = Stage::Sent,
            _ => {}
        }
        if let Some(entry) = self.entries.get(&id).filter(|entry| entry.note != before) {
            out.push(Effect::Note { id, note: entry.note });
        }
    }
}
