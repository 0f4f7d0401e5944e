//! For how long a chunk is kept, and what is let go when that is over.

use super::record::{Ending, Record, Terms};
use super::{Ledger, Owner};
use crate::code::Code;
use crate::id::ChunkRef;
use crate::state::ChunkState;

/// An abandoned partial is kept this long for its client to come back.
pub const PARTIAL_KEEP_MS: i64 = 24 * 3600 * 1000;

/// What an earlier process left is kept for at least this long after the start, whatever the
/// calendar says: it may not be set yet, and the core may take the chunk meanwhile.
pub const RECOVERED_KEEP_MS: i64 = 3600 * 1000;

/// When a chunk that was offered at `since` is let go: a partial after a day, since nothing was
/// promised for it; a whole one after `keep_ms` and never earlier.
pub(super) const fn until(state: ChunkState, since: i64, keep_ms: i64) -> i64 {
    let partial = matches!(state, ChunkState::Receiving) && PARTIAL_KEEP_MS < keep_ms;
    since.saturating_add(if partial { PARTIAL_KEEP_MS } else { keep_ms })
}

/// Damaged bytes that are kept aside. As many as the room allows: they count as used.
#[derive(Debug)]
pub(super) struct Aside {
    key: ChunkRef,
    owner: Owner,
    pub(super) length: u64,
    until: i64,
}

impl Ledger {
    /// Damaged bytes found on the disk at start.
    pub fn recover_damaged(&mut self, key: ChunkRef, terms: &Terms, since: i64) {
        self.set_aside(key, terms, until(ChunkState::Staged, since, self.limits.keep_ms));
    }

    /// Counts damaged bytes as used room until they are let go.
    pub(super) fn set_aside(&mut self, key: ChunkRef, terms: &Terms, until: i64) {
        // There is one file: bytes of the same chunk that were put aside before are gone.
        self.let_go_aside(|aside| aside.key == key);
        self.quota.recovered(terms.owner, terms.length);
        self.aside.push(Aside { key, owner: terms.owner, length: terms.length, until });
    }

    /// Lets damaged bytes go that were kept for long enough by both clocks; see
    /// [`Ledger::handle_time`].
    pub fn handle_time_aside(&mut self, now: i64, calendar: i64) -> Vec<ChunkRef> {
        self.let_go_aside(|aside| aside.until <= now.min(calendar))
    }

    fn let_go_aside(&mut self, over: impl Fn(&Aside) -> bool) -> Vec<ChunkRef> {
        let gone: Vec<_> = self.aside.extract_if(.., |aside| over(aside)).collect();
        for aside in &gone {
            self.quota.release(aside.owner, aside.length);
        }
        gone.into_iter().map(|aside| aside.key).collect()
    }

    /// Lets go what was kept for long enough: (chunk, was staged). `now` counts on from the
    /// calendar's time at the start, by a clock that never jumps; `calendar` is what the calendar
    /// says now. Of what an earlier process left both must say that its time is over.
    pub fn handle_time(&mut self, now: i64, calendar: i64) -> Vec<(ChunkRef, bool)> {
        let over: Vec<_> = self
            .records
            .iter()
            .filter(|(_, r)| match r.recovered {
                None => r.until <= now,
                Some(earliest) => r.until <= now.min(calendar) && earliest <= now,
            })
            .filter(|(_, r)| !r.state.ended() && r.state != ChunkState::Forwarding && !r.active)
            .map(|(key, r)| (*key, r.state != ChunkState::Receiving))
            .collect();
        for (key, staged) in &over {
            if *staged {
                if let Some(record) = self.records.get_mut(key) {
                    record.refusal = Some((Code::ChunkExpired, None));
                }
                self.end(*key, ChunkState::Expired, Ending::Expired);
            } else if let Some(epoch) = self.records.get(key).map(|r| r.epoch) {
                self.end_receiving(*key, epoch, Ending::Abandoned);
            }
        }
        over
    }

    /// When the next unconfirmed chunk expires, Unix ms.
    #[must_use]
    pub fn next_expiry(&self) -> Option<i64> {
        let when = |record: &Record| record.recovered.map_or(record.until, |earliest| earliest.max(record.until));
        self.records.values().filter(|record| record.state.held()).map(when).min()
    }
}
