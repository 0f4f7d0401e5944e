//! What was found on the disk at start.

use super::Ledger;
use super::record::Terms;
use crate::id::ChunkRef;
use crate::state::ChunkState;

impl Ledger {
    /// A whole chunk found on the disk at start. Whether it was tried before is not known, so a
    /// "duplicate" will be read as an answer that was lost.
    pub fn recover_staged(&mut self, key: ChunkRef, terms: Terms, since: i64) {
        let held = terms.length;
        self.recover(key, terms, since, ChunkState::Staged, held);
        self.enqueue(key);
    }

    /// A partial found on the disk at start.
    pub fn recover_partial(&mut self, key: ChunkRef, terms: Terms, since: i64, held: u64) {
        self.recover(key, terms, since, ChunkState::Receiving, held);
    }

    fn recover(&mut self, key: ChunkRef, terms: Terms, since: i64, state: ChunkState, held: u64) {
        let mut record = self.fresh(terms, since, state);
        record.held = held;
        record.ambiguous = state == ChunkState::Staged;
        self.quota.recovered(terms.owner, terms.length);
        self.records.insert(key, record);
    }
}
