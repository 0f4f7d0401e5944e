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
//! time after a restart too.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use crate::code::Code;
use crate::id::{ChunkRef, Digest};
use crate::media::{Class, words};
use crate::mercy;
use crate::quota::Quota;
use crate::state::ChunkState;

/// Ended chunks that are remembered, so that a resend is answered at once. About 400 bytes each.
pub const MAX_REMEMBERED: usize = 32_768;
/// Lanes whose first chunk is remembered as such. 8 bytes each.
pub const MAX_LANES: usize = 65_536;
/// An abandoned partial is kept this long for its client to come back.
pub const PARTIAL_KEEP_MS: i64 = 24 * 3600 * 1000;

/// A session, as a keyed hash that says nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Owner(pub u64);

/// A stream of an incident, as a keyed hash that says nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamKey(pub u64);

words! {
    /// Why a chunk is not confirmed yet.
    Reason {
        /// The core does not answer.
        CoreUnreachable = "core_unreachable",
        /// The core asks this relay to slow down.
        CoreLimited = "core_limited",
        /// The core does not accept this relay's service token.
        ServiceToken = "service_token",
        /// Its capability ran out.
        AwaitingCapability = "awaiting_capability",
        /// The account's storage at the core is full.
        AccountQuota = "account_quota",
        /// The core may have it.
        Unsettled = "unsettled",
        /// It waits for its turn.
        Queued = "queued",
    }
}

words! {
    /// How a chunk's way through this relay ended.
    Ending {
        /// The core confirmed it.
        Confirmed = "confirmed",
        /// The core refused it.
        Rejected = "rejected",
        /// It stayed unconfirmed for `keep_for`.
        Expired = "expired",
        /// Its bytes were not those of its digest.
        Mismatched = "mismatched",
        /// Its client dropped it while it was being received, or never came back.
        Abandoned = "abandoned",
    }
}

/// What the ledger knows of an offer.
#[derive(Debug, Clone, Copy)]
pub struct Terms {
    /// Whose it is.
    pub owner: Owner,
    /// Its stream.
    pub stream: StreamKey,
    /// Its lane, as a keyed hash.
    pub lane: u64,
    /// Its class.
    pub class: Class,
    /// Its index in the stream.
    pub index: u64,
    /// Bytes.
    pub length: u64,
    /// SHA-256.
    pub digest: Digest,
    /// Attempt.
    pub attempt: u64,
    /// Unix seconds until which the core takes its commit.
    pub expires: i64,
}

/// One chunk.
#[derive(Debug, Clone)]
pub struct Record {
    /// What was offered.
    pub terms: Terms,
    /// Its state.
    pub state: ChunkState,
    /// Bytes held from its start.
    pub held: u64,
    /// It is the first of its lane.
    pub first: bool,
    /// Which attempt is the current one; older ones may write no more.
    pub epoch: u64,
    /// An attempt is bringing bytes now.
    pub active: bool,
    /// When it was offered, Unix ms.
    pub since: i64,
    /// When it is let go, Unix ms.
    pub until: i64,
    /// Commits tried.
    pub tries: u32,
    /// A commit may have reached the core without its answer reaching us.
    pub ambiguous: bool,
    /// Its bytes were written by this process, so their hash is known to be right.
    pub verified: bool,
    /// Blocked by the account's quota.
    pub blocked: bool,
    /// The core's receipt.
    pub receipt: Option<Arc<str>>,
    /// Why it was refused.
    pub refusal: Option<(Code, Option<Box<str>>)>,
    seq: u64,
    due: Option<u64>,
}

/// What is to be done with an offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Receive it, as attempt `epoch`.
    Receive {
        /// The attempt's number here.
        epoch: u64,
        /// Bytes of the same digest that are here.
        held: u64,
        /// A partial of another digest is to be removed first.
        replaces: bool,
    },
    /// It is here; see [`Ledger::record`].
    Have,
}

/// What the core said of a commit, as far as the ledger is concerned.
#[derive(Debug, Clone)]
pub enum Verdict {
    /// Stored.
    Confirmed(Option<Arc<str>>),
    /// Refused for good.
    Rejected(Code, Option<Box<str>>),
    /// The capability is no longer taken.
    CapabilityExpired,
    /// The core has a chunk under this identity.
    Duplicate,
    /// The account is full; tried again after this many ms.
    AccountFull(u64),
    /// Nothing was stored; again after this many ms.
    Retry(u64),
    /// It may have been stored; again after this many ms.
    Ambiguous(u64),
}

/// How many, how much, how old.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Chunks.
    pub chunks: u64,
    /// Bytes.
    pub bytes: u64,
    /// When the oldest was offered, Unix ms.
    pub oldest: Option<i64>,
}

/// Bounds on what is being received.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// In all.
    pub receiving: usize,
    /// Of one session.
    pub per_session: usize,
    /// How long an unconfirmed chunk is kept, ms.
    pub keep_ms: i64,
}

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
    lanes: HashSet<u64>,
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
            lanes: HashSet::new(),
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
            ChunkState::Receiving => {
                self.forget(key);
                self.begin(key, terms, now, true)
            }
            ChunkState::Rejected | ChunkState::Expired if !same || terms.attempt > record.terms.attempt => {
                self.forget(key);
                self.begin(key, terms, now, false)
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

    /// The chunk is whole and durable: it waits for its turn. False if another attempt took over.
    pub fn handle_staged(&mut self, key: ChunkRef, epoch: u64) -> bool {
        if !self.current(key, epoch) {
            return false;
        }
        self.handle_attempt_ended(key, epoch);
        if let Some(record) = self.records.get_mut(&key) {
            record.state = ChunkState::Staged;
            record.held = record.terms.length;
            record.verified = true;
        }
        self.enqueue(key);
        true
    }

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

    /// A capability for `stream` that is good until `expires`: what waited for one is released,
    /// and what it outlives is carried by it. Returns how many were released and how many are held
    /// that depend on it from now on, the released among them.
    pub fn handle_capability(&mut self, stream: StreamKey, expires: i64, unix_s: i64) -> (usize, usize) {
        if expires <= unix_s {
            return (0, 0);
        }
        let of_stream = |record: &Record| record.terms.stream == stream && record.terms.expires < expires;
        let keys: Vec<_> =
            self.records.iter().filter(|(_, r)| r.state.held() && of_stream(r)).map(|(key, _)| *key).collect();
        let (mut released, depend) = (0, keys.len());
        for key in keys {
            let Some(record) = self.records.get_mut(&key) else { continue };
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
        (released, depend)
    }

    /// Lets go what was kept for long enough: (chunk, was staged).
    pub fn handle_time(&mut self, now: i64) -> Vec<(ChunkRef, bool)> {
        let over: Vec<_> = self
            .records
            .iter()
            .filter(|(_, r)| r.until <= now && !r.state.ended() && r.state != ChunkState::Forwarding && !r.active)
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

    /// Remembers a confirmation that came another way (the drop-in route), so that a resend of
    /// the same bytes is answered at once.
    pub fn remember_confirmed(&mut self, key: ChunkRef, terms: Terms, now: i64) {
        if !self.records.contains_key(&key) {
            let record = self.fresh(terms, now, ChunkState::Confirmed);
            self.records.insert(key, record);
            self.remember(key);
            self.endings[terms.class.rank()][Ending::Confirmed as usize] += 1;
        }
    }

    /// The rate at which commits go out, in bytes a second: decides what a master's first chunk
    /// may jump.
    pub const fn handle_rate(&mut self, bytes_per_s: u64) {
        self.rate = bytes_per_s;
    }

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

    /// When the next unconfirmed chunk expires, Unix ms.
    #[must_use]
    pub fn next_expiry(&self) -> Option<i64> {
        self.records.values().filter(|record| record.state.held()).map(|record| record.until).min()
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
        let mut record = self.fresh(terms, now, ChunkState::Receiving);
        record.until = now.saturating_add(PARTIAL_KEEP_MS.min(self.limits.keep_ms));
        let epoch = record.epoch;
        self.records.insert(key, record);
        self.activate(key, terms.owner);
        Ok(Decision::Receive { epoch, held: 0, replaces })
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
        let first = terms.index == 1 && (self.lanes.len() < MAX_LANES) && self.lanes.insert(terms.lane);
        Record {
            terms,
            state,
            held: if state == ChunkState::Receiving { 0 } else { terms.length },
            first,
            epoch: self.seq,
            active: false,
            since: now,
            until: now.saturating_add(self.limits.keep_ms),
            tries: 0,
            ambiguous: false,
            verified: false,
            blocked: false,
            receipt: None,
            refusal: None,
            seq: self.seq,
            due: None,
        }
    }

    fn recover(&mut self, key: ChunkRef, terms: Terms, since: i64, state: ChunkState, held: u64) {
        let mut record = self.fresh(terms, since, state);
        record.held = held;
        record.ambiguous = state == ChunkState::Staged;
        self.quota.recovered(terms.owner, terms.length);
        self.records.insert(key, record);
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

    fn delay(&mut self, key: ChunkRef, now_ms: u64, after: u64) {
        let Some(record) = self.records.get_mut(&key) else { return };
        record.state = ChunkState::Staged;
        let due = now_ms.saturating_add(after);
        record.due = Some(due);
        self.delayed.insert((due, key));
    }

    fn wake_delayed(&mut self, now_ms: u64) {
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

    fn enqueue(&mut self, key: ChunkRef) {
        if let Some(record) = self.records.get(&key) {
            self.ready.push(&item(key, record), self.rate);
        }
    }

    fn unqueue(&mut self, key: ChunkRef) {
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

fn reason(record: &Record, queued: Reason) -> Reason {
    match record.state {
        ChunkState::AwaitingCapability => Reason::AwaitingCapability,
        ChunkState::Unsettled => Reason::Unsettled,
        _ if record.blocked => Reason::AccountQuota,
        _ => queued,
    }
}

#[cfg(test)]
#[path = "ledger_tests.rs"]
mod tests;
