//! What is known of every sealed chunk that is not confirmed, and what follows from what the relay
//! says. Pure: time is an argument, in milliseconds of any monotonic clock; randomness is a seed.

mod entry;
mod verdict;

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use waystation_proto::message::Error;
use waystation_proto::{ChunkState, Class, Offer};

use super::event::Label;
use super::policy::Turn;
use super::queue::{Moving, Queue, Rank, Room};
use super::rate::Rate;
use super::retry::Jitter;
use super::status::{Item, ItemState, Status};
use super::store::record::Note;
use crate::receipt::{Jwks, Keys, Proof};

use entry::Stage;
pub(crate) use entry::{Entry, New};

/// Attempts of one run; the number of the run stands above them, so that attempts only go up.
const ATTEMPTS_OF_A_RUN: u64 = 1 << 24;
/// What another relay holds is offered to this one only after this time: it is off the device.
const ELSEWHERE_MS: u64 = 60_000;
/// The core may have it; the relay is asked again so often.
const UNSETTLED_MS: u64 = 60_000;
/// Pause after something on the way answered in the relay's place: it may take the bytes each time.
const BETWEEN_MS: u64 = 15_000;
const BETWEEN_DOUBLINGS: u32 = 5;
/// Pause after a chunk's file could not be read; it doubles so often.
const UNREAD_MS: u64 = 1000;
const UNREAD_DOUBLINGS: u32 = 7;
/// A chunk on its way of which nothing was heard for so long is given up and queued again: longer
/// than a relay may take to answer.
const STALLED_MS: u64 = 180_000;

/// What the relay said of a chunk.
#[derive(Debug, Clone, Default)]
pub(crate) struct Verdict {
    pub(crate) state: Option<ChunkState>,
    pub(crate) receipt: Option<String>,
    pub(crate) error: Option<Error>,
    pub(crate) retry_after_s: Option<u64>,
    /// Nothing more will be said unless the chunk is offered again.
    pub(crate) last: bool,
}

/// Something that follows from an input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Effect {
    /// A chunk has a new state at the relay.
    State { id: u64, label: Label, state: ChunkState, code: Option<String>, receipt: Proof },
    /// A chunk has a new state in the queue.
    Item { label: Label, state: ItemState, code: Option<String> },
    /// What is to be remembered of a chunk changed.
    Note { id: u64, note: Note },
    /// The core confirmed a chunk: its bytes are no longer needed here.
    Free { id: u64 },
    /// A new capability is needed.
    Renew,
    /// The relay can't tell whether the core has a chunk: the core is to be asked.
    Reconcile { id: u64 },
    /// A confirmation can't be checked: the core's keys are to be fetched.
    FetchKeys,
    /// The core signed a receipt, for the first time: from now on a confirmation needs one.
    Signs,
}

/// A chunk to offer.
pub(crate) struct Give {
    pub(crate) id: u64,
    pub(crate) rank: Rank,
    pub(crate) offer: Offer,
    /// It was offered before: the relay may hold part of it.
    pub(crate) resume: bool,
    /// The relay said that it holds it whole.
    pub(crate) held: bool,
}

/// Chunks that are not confirmed, by what the relay said last.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Count {
    pub(crate) unsettled: u64,
    pub(crate) rejected: u64,
    pub(crate) expired: u64,
    pub(crate) failed: u64,
}

/// Whether the core signs what it stores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Signs {
    /// Nobody knows yet.
    Unknown,
    /// A receipt of its own was seen.
    Yes,
    /// It has keys, and itself named a stored chunk without a receipt; or can't be asked.
    No,
}

/// Every sealed chunk that is not confirmed.
pub(crate) struct Book {
    entries: BTreeMap<u64, Entry>,
    queue: Queue,
    rate: Rate,
    keys: Keys,
    /// Whether the core signs receipts, as far as that is known.
    signs: Signs,
    /// Confirmations that wait for the core's keys, with their receipts.
    doubted: BTreeMap<u64, Option<String>>,
    jitter: Jitter,
    /// Attempts of this run are higher.
    floor: u64,
    /// Which relay of the list is spoken to.
    relay: usize,
}

impl Book {
    /// An empty book for run number `epoch` of its queue.
    pub(crate) fn new(epoch: u64, seed: u64) -> Self {
        Self {
            entries: BTreeMap::new(),
            queue: Queue::default(),
            rate: Rate::default(),
            keys: Keys::default(),
            signs: Signs::Unknown,
            doubted: BTreeMap::new(),
            jitter: Jitter::new(seed),
            floor: epoch.saturating_mul(ATTEMPTS_OF_A_RUN),
            relay: 0,
        }
    }

    /// The core's keys, or that it has none. Receipts that waited for them are looked at.
    pub(crate) fn set_keys(&mut self, jwks: Option<Jwks>, now_ms: u64) -> Vec<Effect> {
        // What waits since before the first answer may be newer than that answer.
        let fresh = !matches!(self.keys, Keys::Awaited);
        let mut out = Vec::new();
        // A core that once signed is not believed to have stopped.
        if jwks.is_some() || (matches!(self.keys, Keys::Awaited) && self.signs != Signs::Yes) {
            self.keys = Keys::answered(jwks);
        }
        for (id, receipt) in std::mem::take(&mut self.doubted) {
            self.confirm(id, receipt, fresh, now_ms, &mut out);
            if self.entries.get(&id).is_some_and(|entry| entry.stage == Stage::Unsettled) {
                out.push(Effect::Reconcile { id });
            }
        }
        out
    }

    /// An earlier run saw a receipt of the core.
    pub(crate) const fn signs(&mut self) {
        self.signs = Signs::Yes;
    }

    /// Adds a sealed chunk: new, or as an earlier run left it. Whatever failed before is tried
    /// again; adding it twice changes nothing.
    pub(crate) fn add(&mut self, id: u64, new: New, now_ms: u64) {
        if !self.entries.contains_key(&id) {
            let entry = Entry::new(new, self.floor);
            let refused = entry.note.state == Some(ChunkState::Rejected);
            self.entries.insert(id, entry);
            if refused {
                self.stage(id, Stage::Refused);
            } else {
                self.wait(id, now_ms);
            }
        }
    }

    /// When chunks of each class may go.
    pub(crate) const fn hold(&mut self, turns: [Turn; Class::COUNT]) {
        self.queue.hold(turns);
    }

    /// The next chunk to offer.
    pub(crate) fn take(&mut self, now_ms: u64, room: Room) -> Option<Give> {
        let rate = self.rate.bytes_per_second(now_ms);
        let (item, rank) = self.queue.take(now_ms, rate, self.moving(), room)?;
        if !item.held {
            self.rate.started(now_ms);
        }
        let entry = self.entries.get_mut(&item.id)?;
        entry.stage = if item.held { Stage::Probing } else { Stage::Moving };
        entry.heard_ms = now_ms;
        let resume = entry.note.offered;
        let mut offer = (*entry.offer).clone();
        offer.attempt = entry.attempt;
        Some(Give { id: item.id, rank, offer, resume, held: item.held })
    }

    /// A chunk that was taken was given to the connection: from now on a relay may hold part of it.
    pub(crate) fn given(&mut self, id: u64) -> Option<Effect> {
        let entry = self.entries.get_mut(&id)?;
        entry.unread = 0;
        if std::mem::replace(&mut entry.note.offered, true) {
            return None;
        }
        Some(Effect::Note { id, note: entry.note })
    }

    /// A chunk that was taken could not be given away; it waits again, as if untouched.
    pub(crate) fn give_back(&mut self, id: u64, now_ms: u64) {
        self.wait(id, now_ms);
    }

    /// A chunk that was taken can't be read here. It is tried again, later each time; told once.
    pub(crate) fn unreadable(&mut self, id: u64, now_ms: u64) -> Option<Effect> {
        let entry = self.entries.get_mut(&id)?;
        let (label, before) = (entry.label, entry.unread);
        entry.unread += 1;
        self.wait(id, now_ms + (UNREAD_MS << before.min(UNREAD_DOUBLINGS)));
        let code = Some("file_unreadable".to_owned());
        (before == 0).then_some(Effect::Item { label, state: ItemState::Retrying, code })
    }

    /// Bytes of a chunk are on their way.
    pub(crate) fn moves(&mut self, id: u64, attempt: u64, now_ms: u64) {
        if let Some(entry) = self.entries.get_mut(&id).filter(|entry| entry.attempt == attempt) {
            entry.heard_ms = now_ms;
        }
    }

    /// Every byte of a chunk was sent.
    pub(crate) fn sent(&mut self, id: u64, attempt: u64, now_ms: u64) -> Option<Label> {
        let entry = self.entries.get_mut(&id).filter(|entry| entry.attempt == attempt)?;
        if !matches!(entry.stage, Stage::Moving | Stage::Probing) {
            return None;
        }
        (entry.stage, entry.heard_ms) = (Stage::Sent, now_ms);
        let (length, label) = (entry.offer.length, entry.label);
        self.rate.sent(length, self.moving().all() == 0, now_ms);
        Some(label)
    }

    /// The relay holds so many bytes of a chunk. More than ever before: the tries count anew.
    pub(crate) fn offset(&mut self, id: u64, attempt: u64, offset: u64, now_ms: u64) -> Option<Effect> {
        let entry = self.entries.get_mut(&id).filter(|entry| entry.attempt == attempt)?;
        entry.heard_ms = now_ms;
        if entry.reached(offset) { Some(Effect::Note { id, note: entry.note }) } else { None }
    }

    /// What a chunk is offered as.
    pub(crate) fn offer(&self, id: u64) -> Option<Offer> {
        self.entries.get(&id).map(|entry| (*entry.offer).clone())
    }

    /// One way of bringing a chunk broke off. No relay answered: it counts nothing.
    pub(crate) fn broken(&mut self, id: u64, attempt: u64, now_ms: u64) {
        if self.entries.get(&id).is_some_and(|entry| entry.attempt == attempt && entry.is_given()) {
            self.go_on(id, 0, now_ms);
        }
        self.rate.paused(self.moving().all() == 0, now_ms);
    }

    /// The connection is gone: everything given to it is to be offered again.
    pub(crate) fn disconnected(&mut self, now_ms: u64) {
        for id in self.ids(Entry::is_given) {
            self.again(id, 0, now_ms);
        }
        self.rate.paused(true, now_ms);
    }

    /// The next connection is to this relay of the list.
    pub(crate) fn at_relay(&mut self, relay: usize, now_ms: u64) {
        if relay != self.relay {
            self.relay = relay;
            self.ids(|entry| entry.stage == Stage::Waiting).into_iter().for_each(|id| self.wait(id, now_ms));
        }
    }

    /// A new capability is here: what waited for one goes on.
    pub(crate) fn renewed(&mut self, now_ms: u64) {
        self.ids(|entry| entry.stage == Stage::Parked).into_iter().for_each(|id| self.wait(id, now_ms));
    }

    /// The network changed, or somebody asked: what failed is tried again, and what waits for its
    /// next try goes now, whoever said to wait.
    pub(crate) fn retry_all(&mut self, now_ms: u64) -> Vec<Effect> {
        let mut out = Vec::new();
        for id in self.ids(|entry| matches!(entry.stage, Stage::Failed | Stage::Waiting)) {
            let Some(entry) = self.entries.get_mut(&id) else { continue };
            if entry.stage == Stage::Failed {
                (entry.note.failed, entry.note.retries) = (false, 0);
                out.push(Effect::Note { id, note: entry.note });
                out.push(Effect::Item { label: entry.label, state: ItemState::Queued, code: None });
            }
            self.wait(id, now_ms);
        }
        out
    }

    /// Gives up chunks of which nothing was heard for too long; what their attempts bring later
    /// changes nothing. A long master behind others is not stalled while any chunk is heard of.
    pub(crate) fn requeue_stalled(&mut self, now_ms: u64) {
        let last = self.entries.values().map(|entry| entry.heard_ms).max().unwrap_or(0);
        let silent = |since: u64| now_ms.saturating_sub(since) >= STALLED_MS;
        let stalled = |entry: &Entry| match entry.stage {
            Stage::Moving => silent(last),
            Stage::Probing | Stage::Sent => !entry.is_held() && silent(entry.heard_ms),
            _ => false,
        };
        for id in self.ids(stalled) {
            self.again(id, 0, now_ms);
        }
        for id in self.ids(|entry| entry.stage == Stage::Unsettled && now_ms >= entry.settle_ms) {
            self.again(id, 0, now_ms);
        }
    }

    pub(crate) fn next_due(&self, now_ms: u64) -> Option<u64> {
        self.queue.next_due(now_ms)
    }

    /// Chunks that are not ended.
    pub(crate) fn open(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values().filter(|entry| !entry.is_ended())
    }

    /// Chunks for which this device can do no more than wait for others.
    pub(crate) fn all_ended(&self) -> bool {
        self.open().next().is_none()
    }

    pub(crate) fn count(&self) -> Count {
        let mut count = Count::default();
        for entry in self.entries.values() {
            match (entry.note.state, entry.stage) {
                (Some(ChunkState::Unsettled), _) => count.unsettled += 1,
                (_, Stage::Refused) => count.rejected += 1,
                (Some(ChunkState::Expired), _) => count.expired += 1,
                (_, Stage::Failed) => count.failed += 1,
                _ => {}
            }
        }
        count
    }

    /// Every chunk for its owner. `idle`: nothing is sent now.
    pub(crate) fn items(&self, idle: bool) -> impl Iterator<Item = Item> {
        self.entries.values().map(move |entry| entry.item(idle))
    }

    /// Adds what is here to a status.
    pub(crate) fn add_to(&self, status: &mut Status, idle: bool) {
        for item in self.items(idle) {
            status.count(item.state);
            status.done_bytes += item.done;
        }
    }

    fn ids(&self, which: impl Fn(&Entry) -> bool) -> Vec<u64> {
        self.entries.iter().filter(|(_, entry)| which(entry)).map(|(id, _)| *id).collect()
    }

    fn moving(&self) -> Moving {
        let mut moving = Moving::default();
        for entry in self.entries.values() {
            match entry.stage {
                Stage::Moving => moving.bodies[entry.class.rank()] += 1,
                Stage::Probing => moving.probes += 1,
                _ => {}
            }
        }
        moving
    }
}
