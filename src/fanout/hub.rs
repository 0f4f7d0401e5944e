//! All windows: finding a group, sharing the memory, letting go.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use dashmap::DashMap;

use super::cell::{Address, Cell, Seat, Sits, State, Wake};
use super::group::GroupKey;
use super::publication::Publication;
use super::{ChunkMeta, ChunkReader, Subscription, Wanted, WholeSubscription};
use crate::clock::Clock;
use crate::config;
use crate::proto::claims::{Grant, Use};
use crate::proto::memory::{Bound, Budget, Full};
use crate::proto::receipt::MAX_RECEIPT_BYTES;
use crate::proto::window::{Cause, Effect, Rules, Window, lane_of};
use crate::proto::{ChunkRef, Code, ContactState, StreamId, Variant};
use crate::telemetry::Metrics;

/// Groups known at once. Beyond, the unwatched one that has been quiet longest gives way; while
/// all are watched, contacts of further groups are refused and their chunks not shown.
pub const MAX_GROUPS: usize = 4096;
/// How often quiet groups are looked for, at most.
const SWEEP_MS: u64 = 60_000;

/// All windows. Cheap to clone.
#[derive(Clone)]
pub struct Hub(Arc<Inner>);

pub(super) struct Inner {
    rules: Rules,
    pub(super) allow_unlabelled: bool,
    contacts_per_group: usize,
    /// A group without a sign of life is kept this long; its window does not age meanwhile.
    linger_ms: u64,
    pub(super) clock: Clock,
    pub(super) metrics: Metrics,
    groups: Mutex<HashMap<GroupKey, Arc<Cell>>>,
    names: DashMap<ChunkRef, Weak<Cell>>,
    budget: Mutex<Budget<Address>>,
    last_owner: AtomicU64,
    swept_at: AtomicU64,
}

impl Hub {
    /// An empty hub.
    #[must_use]
    pub fn new(config: &config::Fanout, limits: &config::Limits, node: &str, clock: Clock, metrics: Metrics) -> Self {
        let rules = Rules {
            window_ms: i64::try_from(config.window.as_millis()).unwrap_or(i64::MAX),
            max_chunk: config.max_chunk,
            silent_ms: u64::try_from(config.silent_after.as_millis()).unwrap_or(u64::MAX),
            patience_ms: u64::try_from(limits.idle_timeout.as_millis()).unwrap_or(u64::MAX),
            node: node.into(),
        };
        Self(Arc::new(Inner {
            rules,
            allow_unlabelled: config.allow_unlabelled,
            contacts_per_group: limits.contacts_per_group,
            linger_ms: u64::try_from(config.linger.as_millis()).unwrap_or(u64::MAX),
            clock,
            metrics,
            groups: Mutex::new(HashMap::new()),
            names: DashMap::new(),
            budget: Mutex::new(Budget::new(config.memory, config.memory_per_session, Address::watched)),
            last_owner: AtomicU64::new(0),
            swept_at: AtomicU64::new(0),
        }))
    }

    /// A chunk begins to arrive. Never waits. A chunk over `fanout.max_chunk` is announced as
    /// omitted, and its publication swallows the bytes.
    #[must_use]
    pub fn publish(&self, group: &GroupKey, meta: ChunkMeta) -> Publication {
        self.open(group, meta, None)
    }

    /// The same for a chunk that came to an earlier process so many ms ago: that is no sign of
    /// life now.
    #[must_use]
    pub fn publish_again(&self, group: &GroupKey, meta: ChunkMeta, came_ms_ago: u64) -> Publication {
        self.open(group, meta, Some(came_ms_ago))
    }

    fn open(&self, group: &GroupKey, meta: ChunkMeta, came_ms_ago: Option<u64>) -> Publication {
        let owner = self.0.last_owner.fetch_add(1, Ordering::Relaxed) + 1;
        let shown = lane_of(meta.variant).is_some() && (self.0.allow_unlabelled || !group.unlabelled());
        Publication::open(&self.0, self.0.group(group), meta, owner, shown, came_ms_ago)
    }

    /// A chunk's state changed at the relay. Chunks that are not in a window are ignored.
    pub fn state(
        &self,
        chunk: ChunkRef,
        state: ContactState,
        receipt: Option<Arc<str>>,
        error: Option<(Code, Option<Box<str>>)>,
    ) {
        // The guard of the map is gone before the window is locked.
        let cell = self.0.names.get(&chunk).and_then(|cell| cell.upgrade());
        if let Some(cell) = cell {
            let receipt = receipt.filter(|receipt| receipt.len() <= MAX_RECEIPT_BYTES);
            self.0.state(&cell, chunk, state, receipt, error);
        }
    }

    /// What came of a chunk is gone here before the core had it: contacts are to drop it. Chunks
    /// that are not in a window are ignored.
    pub fn dropped(&self, chunk: ChunkRef) {
        let cell = self.0.names.get(&chunk).and_then(|cell| cell.upgrade());
        if let Some(cell) = cell {
            let mut state = cell.lock();
            let captures = state.window.captures();
            if state.window.drop_chunk(chunk) {
                cell.changed(&self.0, state, captures, Wake::All);
            }
        }
    }

    /// The capture device gave a sign of life.
    pub fn alive(&self, group: &GroupKey) {
        self.0.sign(group, Window::alive);
    }

    /// Media came that is not shown.
    pub fn seen(&self, group: &GroupKey) {
        self.0.sign(group, Window::seen);
    }

    /// The capture device said that the recording is over.
    pub fn ended(&self, group: &GroupKey) {
        self.0.sign(group, Window::ended);
    }

    /// Lets go of groups that have been quiet for `fanout.linger`, also while nobody calls. Runs until it is
    /// dropped.
    pub async fn let_go_of_quiet(self) {
        loop {
            self.0.clock.sleep(Duration::from_millis(SWEEP_MS)).await;
            self.0.sweep();
        }
    }

    /// Opens a subscription.
    ///
    /// # Errors
    /// `TooManyContacts`, `NotWatchable`, `CapabilityExpired`, `CapabilityWrongUse`.
    pub fn subscribe(&self, grant: &Arc<Grant>, wanted: Wanted) -> Result<Subscription, Code> {
        Subscription::open(&self.0, grant, wanted)
    }

    /// Opens a subscription to whole chunks of one stream (the drop-in route).
    ///
    /// # Errors
    /// As [`Hub::subscribe`].
    pub fn subscribe_whole(&self, grant: &Arc<Grant>, stream: &StreamId) -> Result<WholeSubscription, Code> {
        WholeSubscription::open(&self.0, grant, stream)
    }

    /// Reads one chunk, waiting for it if it is not there yet (`GET /chunks/{ref}`).
    ///
    /// # Errors
    /// `NotWatchable`, `ChunkNotInWindow` for a chunk that was here or is too large,
    /// `TooManyContacts`, `CapabilityExpired`, `CapabilityWrongUse`.
    pub fn read(&self, grant: &Arc<Grant>, chunk: ChunkRef) -> Result<ChunkReader, Code> {
        ChunkReader::open(&self.0, grant, chunk)
    }
}

impl Inner {
    /// Takes a seat in the group that a fan-out grant reaches.
    pub(super) fn seat(self: &Arc<Self>, grant: &Grant, sits: Sits) -> Result<Seat, Code> {
        self.may_watch(grant)?;
        let key = GroupKey::of_contact(grant)?;
        self.sweep();
        let mut groups = self.groups();
        let cell = self.find_or_add(&mut groups, &key).ok_or(Code::TooManyContacts)?;
        // Inside the groups' lock, so that a group is not let go between finding and sitting.
        let seat = Seat::take(self, cell, grant, sits, self.contacts_per_group);
        drop(groups);
        seat
    }

    /// What holds for every way to watch.
    pub(super) fn may_watch(&self, grant: &Grant) -> Result<(), Code> {
        if grant.expired(self.clock.unix_s()) {
            return Err(Code::CapabilityExpired);
        }
        if grant.use_ != Use::Fanout {
            return Err(Code::CapabilityWrongUse);
        }
        Ok(())
    }

    /// Whether a grant may reach a variant at all.
    pub(super) fn reaches(&self, grant: &Grant, variant: Variant) -> bool {
        let unlabelled =
            |media: &crate::proto::Media| self.allow_unlabelled && Variant::of_unlabelled(*media) == variant;
        let lane = |lane: &crate::proto::claims::LaneGrant| match lane.variant {
            Some(granted) => granted == variant,
            None => lane.media.iter().any(unlabelled),
        };
        variant.watchable() && (grant.lanes.is_empty() || grant.lanes.iter().any(lane))
    }

    /// The group, made if it is not there; `None`: no more fit.
    pub(super) fn group(&self, key: &GroupKey) -> Option<Arc<Cell>> {
        self.sweep();
        self.find_or_add(&mut self.groups(), key)
    }

    fn groups(&self) -> MutexGuard<'_, HashMap<GroupKey, Arc<Cell>>> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn budget(&self) -> MutexGuard<'_, Budget<Address>> {
        self.budget.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find_or_add(&self, groups: &mut HashMap<GroupKey, Arc<Cell>>, key: &GroupKey) -> Option<Arc<Cell>> {
        if let Some(cell) = groups.get(key) {
            return Some(cell.clone());
        }
        if groups.len() >= MAX_GROUPS {
            let quiet = groups.values().filter(|cell| !cell.watched());
            let quietest = quiet.min_by_key(|cell| cell.lock().window.last_sign())?.clone();
            self.let_go(groups, &quietest);
        }
        let mut instance = [0; 8];
        self.clock.fill_random(&mut instance);
        let window = Window::new(self.rules.clone(), key.incident().clone(), u64::from_le_bytes(instance));
        let cell = Arc::new(Cell::new(key.clone(), window));
        groups.insert(key.clone(), cell.clone());
        self.metrics.fanout.groups.set(count(groups.len()));
        Some(cell)
    }

    /// Empties a group and forgets it.
    fn let_go(&self, groups: &mut HashMap<GroupKey, Arc<Cell>>, cell: &Arc<Cell>) {
        let mut state = cell.lock();
        state.closed = true;
        state.window.clear(Cause::Linger);
        self.settle(cell, &mut state);
        drop(state);
        if let Entry::Occupied(entry) = groups.entry(cell.key.clone())
            && Arc::ptr_eq(entry.get(), cell)
        {
            entry.remove();
        }
        self.metrics.fanout.groups.set(count(groups.len()));
    }

    /// The last contact left: a group that never had a chunk is not kept for it.
    pub(super) fn let_go_if_unused(&self, cell: &Arc<Cell>) {
        let mut groups = self.groups();
        let unused = !cell.watched() && {
            let state = cell.lock();
            !state.closed && state.window.is_empty() && state.window.last_sign().is_none()
        };
        if unused {
            self.let_go(&mut groups, cell);
        }
    }

    /// Lets go of groups that have been quiet for `fanout.linger`; looks at most once a minute. A
    /// watched one is emptied and stays for its contacts.
    fn sweep(&self) {
        let now = self.clock.now_ms();
        let swept = self.swept_at.load(Ordering::Relaxed);
        if now < swept.saturating_add(SWEEP_MS)
            || self.swept_at.compare_exchange(swept, now, Ordering::Relaxed, Ordering::Relaxed).is_err()
        {
            return;
        }
        let linger = self.linger_ms;
        let mut groups = self.groups();
        let quiet: Vec<_> = groups
            .values()
            .filter(|cell| cell.lock().window.last_sign().is_some_and(|sign| now >= sign.saturating_add(linger)))
            .cloned()
            .collect();
        for cell in quiet {
            if cell.watched() {
                cell.change(self, Wake::All, |window| window.clear(Cause::Linger));
            } else {
                self.let_go(&mut groups, &cell);
            }
        }
    }

    fn sign(&self, key: &GroupKey, sign: impl FnOnce(&mut Window, u64)) {
        // A sign alone makes no group: nobody watches it and it has no chunk.
        let Some(cell) = self.groups().get(key).cloned() else { return };
        cell.change(self, Wake::Nobody, |window| sign(window, self.clock.now_ms()));
    }

    fn state(
        &self,
        cell: &Arc<Cell>,
        chunk: ChunkRef,
        state: ContactState,
        mut receipt: Option<Arc<str>>,
        error: Option<(Code, Option<Box<str>>)>,
    ) {
        loop {
            let mut here = cell.lock();
            let Some(place) = here.window.place(chunk) else { return };
            let Some(slot) = here.window.slot(place) else { return };
            let more = receipt.as_ref().map_or(0, |receipt| receipt.len() as u64);
            let charged = self.budget().charge_record(slot, more);
            match charged {
                Ok(()) => {
                    if !here.window.set_state(chunk, state, receipt, error) {
                        return self.budget().refund_record(slot, more);
                    }
                    let captures = here.window.captures();
                    return cell.changed(self, here, captures, Wake::News(place.lane));
                }
                Err(full) => {
                    drop(here);
                    if !self.make_room(full) {
                        // The state is told without its receipt, which no window has room for.
                        receipt = None;
                    }
                }
            }
        }
    }

    /// Lets go of what the account names; `false` if nothing could give way.
    pub(super) fn make_room(&self, full: Full<Address>) -> bool {
        let Some((slot, address)) = full.victim else { return false };
        let cause = match full.bound {
            Bound::Memory => Cause::Memory,
            Bound::Session => Cause::Session,
        };
        let mut evicted = false;
        if let Some(cell) = address.cell.upgrade() {
            let mut state = cell.lock();
            // Another thread may have let go of it already, and its place may be another's slot.
            if state.window.slot(address.place) == Some(slot) {
                evicted = state.window.evict(address.place, cause);
                self.settle(&cell, &mut state);
            }
            drop(state);
            cell.wake(Wake::Lane(address.place.lane));
        }
        if !evicted {
            self.budget().close(slot);
        }
        true
    }

    /// Does elsewhere what a change of a window asks for. Called inside its lock, so that the
    /// account never says less than what is held.
    pub(super) fn settle(&self, cell: &Arc<Cell>, state: &mut State) {
        let effects = state.window.take_effects();
        let mut budget = self.budget();
        for effect in effects {
            match effect {
                Effect::Release(slot) => budget.release(slot),
                Effect::Carry(from, to) => budget.carry(from, to),
                Effect::Close(slot) => budget.close(slot),
                Effect::Forget(chunk) => {
                    self.names.remove_if(&chunk, |_, known| known.as_ptr() == Arc::as_ptr(cell));
                }
                Effect::Evicted(cause) => self.metrics.fanout.evicted(cause),
                Effect::Withdrawn(reason) => self.metrics.fanout.withdrawn(reason),
            }
        }
        self.metrics.fanout.window_bytes.set(i64::try_from(budget.total()).unwrap_or(i64::MAX));
    }

    /// From now on a chunk's state is told in this group.
    pub(super) fn name(&self, chunk: ChunkRef, cell: &Arc<Cell>) {
        self.names.insert(chunk, Arc::downgrade(cell));
    }
}

fn count(len: usize) -> i64 {
    i64::try_from(len).unwrap_or(i64::MAX)
}
