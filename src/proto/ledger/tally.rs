//! What is held, counted.

use std::collections::HashMap;

use super::Ledger;
use super::record::{Reason, Record, Tally};
use crate::media::Class;
use crate::state::ChunkState;

impl Ledger {
    /// What is held and unconfirmed, by class and reason. `queued` is what a chunk that could be
    /// sent waits for: its turn, or the core.
    #[must_use]
    pub fn tally(&self, queued: Reason) -> HashMap<(Class, Reason), Tally> {
        let mut out: HashMap<_, Tally> = HashMap::new();
        for record in self.records.values().filter(|record| record.state.held()) {
            let tally = out.entry((record.terms.class, reason(record, queued))).or_default();
            tally.chunks += 1;
            tally.bytes += record.terms.length;
            tally.oldest = Some(tally.oldest.map_or(record.since, |oldest| oldest.min(record.since)));
        }
        out
    }
}

fn reason(record: &Record, queued: Reason) -> Reason {
    match record.state {
        ChunkState::AwaitingCapability => Reason::AwaitingCapability,
        ChunkState::Unsettled => Reason::Unsettled,
        _ if record.blocked => Reason::AccountQuota,
        _ => queued,
    }
}
