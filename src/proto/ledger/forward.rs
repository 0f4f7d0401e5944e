//! The way to the core and back: which chunk goes next, what became of it, and what releases one
//! that waits for a capability.

use super::record::{Ending, Record, StreamKey, Verdict};
use super::{Ledger, Owner};
use crate::code::Code;
use crate::id::ChunkRef;
use crate::media::Class;
use crate::mercy;
use crate::state::ChunkState;

impl Ledger {
    /// The next chunk to commit, of a class not below `lowest`. Chunks whose capability is no
    /// longer good go to `awaiting_capability` on the way and are returned in `stranded`.
    pub fn take(&mut self, now_ms: u64, unix_s: i64, lowest: Class, stranded: &mut Vec<ChunkRef>) -> Option<ChunkRef> {
        self.wake_delayed(now_ms);
        while let Some(key) = self.ready.pop(lowest) {
            let Some(record) = self.records.get_mut(&key) else { continue };
            if record.state != ChunkState::Staged {
                continue;
            }
            if record.terms.expires <= unix_s {
                record.state = ChunkState::AwaitingCapability;
                stranded.push(key);
                continue;
            }
            record.state = ChunkState::Forwarding;
            record.tries = record.tries.saturating_add(1);
            return Some(key);
        }
        None
    }

    /// Whether a chunk of a class not below `lowest` could be taken now.
    pub fn waits(&mut self, now_ms: u64, lowest: Class) -> bool {
        self.wake_delayed(now_ms);
        self.ready.waits(lowest)
    }

    /// When the next delayed chunk is due, in the ms of [`Ledger::take`].
    #[must_use]
    pub fn next_due(&self) -> Option<u64> {
        self.delayed.first().map(|(due, _)| *due)
    }

    /// What became of a commit. Returns the chunk's new state.
    pub fn handle_verdict(&mut self, key: ChunkRef, verdict: Verdict, now_ms: u64) -> Option<ChunkState> {
        let record = self.records.get_mut(&key)?;
        if record.state != ChunkState::Forwarding {
            return None;
        }
        match verdict {
            Verdict::Confirmed(receipt) => {
                record.receipt = receipt;
                self.end(key, ChunkState::Confirmed, Ending::Confirmed);
            }
            Verdict::Rejected(code, core_code) => {
                record.refusal = Some((code, core_code));
                self.end(key, ChunkState::Rejected, Ending::Rejected);
            }
            Verdict::Damaged => {
                record.refusal = Some((Code::StagingFailed, None));
                record.held = 0;
                let (terms, until) = (record.terms, record.until);
                self.end(key, ChunkState::Expired, Ending::Damaged);
                self.set_aside(key, &terms, until);
            }
            Verdict::Duplicate if record.ambiguous => {
                record.state = ChunkState::Unsettled;
                record.refusal = Some((Code::ChunkUnsettled, None));
            }
            Verdict::Duplicate => {
                record.refusal = Some((Code::DuplicateChunk, Some("duplicate_chunk".into())));
                self.end(key, ChunkState::Rejected, Ending::Rejected);
            }
            Verdict::CapabilityExpired => {
                record.state = ChunkState::AwaitingCapability;
                record.terms.expires = i64::MIN;
            }
            Verdict::AccountFull(after) => {
                record.blocked = true;
                self.delay(key, now_ms, after);
            }
            Verdict::Retry(after) => self.delay(key, now_ms, after),
            Verdict::Ambiguous(after) => {
                record.ambiguous = true;
                self.delay(key, now_ms, after);
            }
        }
        self.records.get(&key).map(|record| record.state)
    }

    /// What is held of `stream` and can be committed for a shorter time than until `expires`: what a
    /// capability that is good until then may carry on.
    #[must_use]
    pub fn shorter(&self, stream: StreamKey, expires: i64) -> Vec<ChunkRef> {
        let of_stream = |record: &Record| record.terms.stream == stream && record.terms.expires < expires;
        self.records.iter().filter(|(_, r)| r.state.held() && of_stream(r)).map(|(key, _)| *key).collect()
    }

    /// A capability that is good until `expires` covers these chunks: what waited for one is
    /// released, and what it outlives is carried by it. Returns how many were released.
    pub fn handle_capability(&mut self, keys: &[ChunkRef], expires: i64, unix_s: i64) -> usize {
        if expires <= unix_s {
            return 0;
        }
        let mut released = 0;
        for key in keys.iter().copied() {
            let Some(record) = self.records.get_mut(&key) else { continue };
            if !record.state.held() || record.terms.expires >= expires {
                continue;
            }
            // Its place among the ready ones depends on when it expires; a delayed one stays delayed.
            self.ready.remove(&item(key, record));
            record.terms.expires = expires;
            if record.state == ChunkState::AwaitingCapability {
                record.state = ChunkState::Staged;
                record.due = None;
                released += 1;
            }
            if record.state == ChunkState::Staged && record.due.is_none() {
                self.enqueue(key);
            }
        }
        released
    }

    /// The rate at which commits go out, in bytes a second: decides what a master's first chunk
    /// may jump.
    pub const fn handle_rate(&mut self, bytes_per_s: u64) {
        self.rate = bytes_per_s;
    }
}

// The steps.
impl Ledger {
    pub(super) fn delay(&mut self, key: ChunkRef, now_ms: u64, after: u64) {
        let Some(record) = self.records.get_mut(&key) else { return };
        record.state = ChunkState::Staged;
        let due = now_ms.saturating_add(after);
        record.due = Some(due);
        self.delayed.insert((due, key));
    }

    pub(super) fn wake_delayed(&mut self, now_ms: u64) {
        while let Some((due, key)) = self.delayed.first().copied() {
            if due > now_ms {
                break;
            }
            self.delayed.remove(&(due, key));
            if let Some(record) = self.records.get_mut(&key) {
                record.due = None;
                record.blocked = false;
            }
            self.enqueue(key);
        }
    }

    pub(super) fn enqueue(&mut self, key: ChunkRef) {
        if let Some(record) = self.records.get(&key) {
            self.ready.push(&item(key, record), self.rate);
        }
    }

    pub(super) fn unqueue(&mut self, key: ChunkRef) {
        let Some(record) = self.records.get(&key) else { return };
        self.ready.remove(&item(key, record));
        if let Some(due) = record.due {
            self.delayed.remove(&(due, key));
        }
    }
}

fn item(key: ChunkRef, record: &Record) -> mercy::Item<Owner, ChunkRef> {
    mercy::Item {
        session: record.terms.owner,
        key,
        class: record.terms.class,
        first: record.first,
        length: record.terms.length,
        expires: record.terms.expires,
        seq: record.seq,
    }
}
