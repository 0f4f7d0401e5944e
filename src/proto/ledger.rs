//! What the relay holds and what became of it: the states of every chunk, in one place, and the
//! steps between them. It refuses to go backwards.
//!
//! ```text
//! receiving ──▶ staged ⇄ forwarding ──▶ confirmed | rejected
//!                 │ ▲        │
//!                 ▼ │        ├──▶ awaiting_capability ──(a capability for its stream)──▶ staged
//!              expired       └──▶ unsettled ──▶ expired
//! ```
//!
//! Methods named `handle_*` take what happened; `take`, `tally` and `record` say what is. Time is
//! an argument: Unix milliseconds for what outlives the process, since a chunk must expire on
//! time after a restart too; they count on from the start without the calendar's jumps.

use std::collections::{BTreeSet, HashMap, VecDeque};

use crate::code::Code;
use crate::id::{ChunkRef, Digest};
use crate::media::Class;
use crate::mercy;
use crate::quota::Quota;
use crate::state::ChunkState;

mod forward;
mod keeping;
mod lanes;
mod record;
mod recovery;
mod tally;

pub use keeping::{PARTIAL_KEEP_MS, RECOVERED_KEEP_MS};
pub use lanes::MAX_LANES;
pub use record::{Decision, Ending, Limits, Owner, Reason, Record, StreamKey, Tally, Terms, Verdict};

use keeping::Aside;
use lanes::Lanes;

/// Ended chunks that are remembered, so that a resend is answered at once. About 400 bytes each.
pub const MAX_REMEMBERED: usize = 32_768;

/// Everything held here. Bounded by the quota: each chunk costs at least
/// [`crate::quota::OVERHEAD`].
#[derive(Debug)]
pub struct Ledger {
    records: HashMap<ChunkRef, Record>,
    quota: Quota<Owner>,
    limits: Limits,
    ready: mercy::Queue<Owner, ChunkRef>,
    delayed: BTreeSet<(u64, ChunkRef)>,
    remembered: VecDeque<ChunkRef>,
    lanes: Lanes,
    aside: Vec<Aside>,
    receiving: HashMap<Owner, usize>,
    receiving_total: usize,
    endings: [[u64; Ending::ALL.len()]; Class::COUNT],
    seq: u64,
    rate: u64,
}

impl Ledger {
    /// An empty one with `quota` bytes of room.
    #[must_use]
    pub fn new(quota: u64, limits: Limits) -> Self {
        Self {
            records: HashMap::new(),
            quota: Quota::new(quota),
            limits,
            ready: mercy::Queue::default(),
            delayed: BTreeSet::new(),
            remembered: VecDeque::new(),
            lanes: Lanes::default(),
            aside: Vec::new(),
            receiving: HashMap::new(),
            receiving_total: 0,
            endings: Default::default(),
            seq: 0,
            rate: 0,
        }
    }

    /// One chunk.
    #[must_use]
    pub fn record(&self, key: ChunkRef) -> Option<&Record> {
        self.records.get(&key)
    }

    /// The room.
    #[must_use]
    pub const fn quota(&self) -> &Quota<Owner> {
        &self.quota
    }

    /// Decides on an offer and reserves its room.
    ///
    /// # Errors
    /// `ChunkConflict`, `AttemptSuperseded`, `ReceivingFull`, `InFlightPerSession`,
    /// `StagingFull`, `SessionQuota`; nothing is reserved then.
    pub fn handle_offer(&mut self, key: ChunkRef, terms: Terms, now: i64) -> Result<Decision, Code> {
        let Some(record) = self.records.get(&key) else { return self.begin(key, terms, now, false) };
        let same = record.terms.digest == terms.digest && record.terms.length == terms.length;
        match record.state {
            ChunkState::Receiving if terms.attempt < record.terms.attempt => Err(Code::AttemptSuperseded),
            ChunkState::Receiving if same => self.take_over(key, terms),
            ChunkState::Receiving => self.begin_instead(key, terms, now),
            ChunkState::Rejected | ChunkState::Expired if !same || terms.attempt > record.terms.attempt => {
                self.begin_instead(key, terms, now)
            }
            _ if same => Ok(Decision::Have),
            _ => Err(Code::ChunkConflict),
        }
    }

    /// Whether `epoch` may still write.
    #[must_use]
    pub fn current(&self, key: ChunkRef, epoch: u64) -> bool {
        self.records.get(&key).is_some_and(|r| r.epoch == epoch && r.state == ChunkState::Receiving)
    }

    /// The current attempt holds `held` bytes now.
    pub fn handle_progress(&mut self, key: ChunkRef, epoch: u64, held: u64) {
        if let Some(record) = self.records.get_mut(&key)
            && record.epoch == epoch
            && record.state == ChunkState::Receiving
        {
            record.held = held;
        }
    }

    /// An attempt ended without completing the chunk; what came is kept.
    pub fn handle_attempt_ended(&mut self, key: ChunkRef, epoch: u64) {
        let Some(record) = self.records.get_mut(&key) else { return };
        if record.epoch == epoch && record.active {
            record.active = false;
            let owner = record.terms.owner;
            self.no_longer_receiving(owner);
        }
    }

    /// The bytes were not those of the digest: nothing of it is kept.
    pub fn handle_mismatch(&mut self, key: ChunkRef, epoch: u64) {
        self.end_receiving(key, epoch, Ending::Mismatched);
    }

    /// The disk failed: nothing of it can be believed.
    pub fn handle_disk_failure(&mut self, key: ChunkRef, epoch: u64) {
        self.end_receiving(key, epoch, Ending::Failed);
    }

    /// The client dropped what it was sending.
    ///
    /// # Errors
    /// [`Code::ChunkStaged`] from `staged` on: no request deletes it. [`Code::NotFound`].
    pub fn handle_delete(&mut self, key: ChunkRef) -> Result<(), Code> {
        let record = self.records.get(&key).ok_or(Code::NotFound)?;
        if record.state != ChunkState::Receiving {
            return Err(Code::ChunkStaged);
        }
        let epoch = record.epoch;
        self.end_receiving(key, epoch, Ending::Abandoned);
        Ok(())
    }

    /// What was only spooled, not to be staged (the drop-in route), is over.
    pub fn handle_spool_ended(&mut self, key: ChunkRef, epoch: u64, ending: Ending) {
        self.end_receiving(key, epoch, ending);
    }

    /// The bytes of `digest` are whole and durable: the chunk waits for its turn, whichever of its
    /// attempts brought them. False if it was dropped, or other bytes took its place.
    pub fn handle_staged(&mut self, key: ChunkRef, digest: Digest) -> bool {
        let of_it = |r: &&Record| r.state == ChunkState::Receiving && r.terms.digest == digest;
        let Some(epoch) = self.records.get(&key).filter(of_it).map(|record| record.epoch) else { return false };
        self.handle_attempt_ended(key, epoch);
        if let Some(record) = self.records.get_mut(&key) {
            record.state = ChunkState::Staged;
            record.held = record.terms.length;
            record.verified = true;
            record.until = keeping::until(ChunkState::Staged, record.since, self.limits.keep_ms);
        }
        self.enqueue(key);
        true
    }

    /// Endings counted since start.
    #[must_use]
    pub const fn endings(&self, class: Class, ending: Ending) -> u64 {
        self.endings[class.rank()][ending as usize]
    }

    /// Chunks being received now.
    #[must_use]
    pub const fn receiving(&self) -> usize {
        self.receiving_total
    }
}

// The steps.
impl Ledger {
    fn begin(&mut self, key: ChunkRef, terms: Terms, now: i64, replaces: bool) -> Result<Decision, Code> {
        self.room_to_receive(terms.owner)?;
        self.quota.reserve(terms.owner, terms.class, terms.length)?;
        let record = self.fresh(terms, now, ChunkState::Receiving);
        let epoch = record.epoch;
        self.records.insert(key, record);
        self.activate(key, terms.owner);
        Ok(Decision::Receive { epoch, held: 0, replaces })
    }

    /// Begins in the place of what is known of the chunk. An offer that is refused changes nothing:
    /// the bytes of the one before it are on the disk and keep their room, and its attempt its place.
    fn begin_instead(&mut self, key: ChunkRef, terms: Terms, now: i64) -> Result<Decision, Code> {
        let Some(old) = self.records.get(&key) else { return self.begin(key, terms, now, false) };
        let (before, active, partial) = (old.terms, old.active, old.state == ChunkState::Receiving);
        if active {
            self.no_longer_receiving(before.owner);
        }
        if partial {
            self.quota.release(before.owner, before.length);
        }
        let room = self.room_to_receive(terms.owner);
        let fits = room.and_then(|()| self.quota.reserve(terms.owner, terms.class, terms.length));
        if fits.is_ok() {
            self.quota.release(terms.owner, terms.length);
        }
        if partial {
            self.quota.recovered(before.owner, before.length);
        }
        if active {
            self.activate(key, before.owner);
        }
        fits?;
        self.forget(key);
        self.begin(key, terms, now, partial)
    }

    fn take_over(&mut self, key: ChunkRef, terms: Terms) -> Result<Decision, Code> {
        let active = self.records.get(&key).is_some_and(|record| record.active);
        if !active {
            self.room_to_receive(terms.owner)?;
        }
        self.seq += 1;
        let epoch = self.seq;
        let Some(record) = self.records.get_mut(&key) else { return Err(Code::InternalError) };
        let held = record.held;
        record.epoch = epoch;
        record.terms.attempt = terms.attempt;
        record.terms.expires = record.terms.expires.max(terms.expires);
        if !active {
            let owner = record.terms.owner;
            self.activate(key, owner);
        }
        Ok(Decision::Receive { epoch, held, replaces: false })
    }

    fn fresh(&mut self, terms: Terms, now: i64, state: ChunkState) -> Record {
        self.seq += 1;
        let first = self.lanes.is_first(terms.lane, terms.index);
        Record {
            terms,
            state,
            held: if state == ChunkState::Receiving { 0 } else { terms.length },
            first,
            epoch: self.seq,
            active: false,
            since: now,
            until: keeping::until(state, now, self.limits.keep_ms),
            tries: 0,
            ambiguous: false,
            verified: false,
            recovered: None,
            blocked: false,
            receipt: None,
            refusal: None,
            seq: self.seq,
            due: None,
        }
    }

    fn room_to_receive(&self, owner: Owner) -> Result<(), Code> {
        if self.receiving_total >= self.limits.receiving {
            return Err(Code::ReceivingFull);
        }
        if self.receiving.get(&owner).copied().unwrap_or(0) >= self.limits.per_session {
            return Err(Code::InFlightPerSession);
        }
        Ok(())
    }

    fn activate(&mut self, key: ChunkRef, owner: Owner) {
        if let Some(record) = self.records.get_mut(&key) {
            record.active = true;
        }
        *self.receiving.entry(owner).or_default() += 1;
        self.receiving_total += 1;
    }

    fn no_longer_receiving(&mut self, owner: Owner) {
        self.receiving_total = self.receiving_total.saturating_sub(1);
        if let Some(count) = self.receiving.get_mut(&owner) {
            *count -= 1;
            if *count == 0 {
                self.receiving.remove(&owner);
            }
        }
    }

    fn end_receiving(&mut self, key: ChunkRef, epoch: u64, ending: Ending) {
        if !self.current(key, epoch) {
            return;
        }
        if let Some(class) = self.records.get(&key).map(|record| record.terms.class) {
            self.endings[class.rank()][ending as usize] += 1;
        }
        self.forget(key);
    }

    /// Takes a record out with everything that hangs on it.
    fn forget(&mut self, key: ChunkRef) {
        let Some(epoch) = self.records.get(&key).map(|record| record.epoch) else { return };
        self.handle_attempt_ended(key, epoch);
        self.unqueue(key);
        if let Some(record) = self.records.remove(&key)
            && !record.state.ended()
        {
            self.quota.release(record.terms.owner, record.terms.length);
        }
        self.remembered.retain(|remembered| *remembered != key);
    }

    fn end(&mut self, key: ChunkRef, state: ChunkState, ending: Ending) {
        self.unqueue(key);
        let Some(record) = self.records.get_mut(&key) else { return };
        record.state = state;
        let terms = record.terms;
        self.endings[terms.class.rank()][ending as usize] += 1;
        self.quota.release(terms.owner, terms.length);
        self.remember(key);
    }

    fn remember(&mut self, key: ChunkRef) {
        self.remembered.push_back(key);
        if self.remembered.len() > MAX_REMEMBERED
            && let Some(oldest) = self.remembered.pop_front()
        {
            self.records.remove(&oldest);
        }
    }
}

#[cfg(test)]
#[path = "ledger_tests.rs"]
mod tests;
