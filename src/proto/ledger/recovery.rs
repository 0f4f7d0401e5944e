//! What was found on the disk at start.

use super::Ledger;
use super::keeping::RECOVERED_KEEP_MS;
use super::record::Terms;
use crate::id::ChunkRef;
use crate::state::ChunkState;

impl Ledger {
    /// A whole chunk found on the disk at start. Whether it was tried before is not known, so a
    /// "duplicate" will be read as an answer that was lost.
    /// `since` and `now` are the calendar's.
    pub fn recover_staged(&mut self, key: ChunkRef, terms: Terms, since: i64, now: i64) {
        let held = terms.length;
        self.recover(key, terms, (since, now), ChunkState::Staged, held);
        self.enqueue(key);
    }

    /// A partial found on the disk at start.
    pub fn recover_partial(&mut self, key: ChunkRef, terms: Terms, since: i64, now: i64, held: u64) {
        self.recover(key, terms, (since, now), ChunkState::Receiving, held);
    }

    fn recover(&mut self, key: ChunkRef, terms: Terms, (since, now): (i64, i64), state: ChunkState, held: u64) {
        // A calendar that was ahead then would keep it for as long as it was ahead.
        let mut record = self.fresh(terms, since.min(now), state);
        record.recovered = Some(now.saturating_add(RECOVERED_KEEP_MS));
        record.held = held;
        record.ambiguous = state == ChunkState::Staged;
        self.quota.recovered(terms.owner, terms.length);
        self.records.insert(key, record);
    }
}
