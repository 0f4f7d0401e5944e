//! One chunk in the book, and its place in the queue.

use super::*;
use crate::capture::queue::Waiting;
use waystation_proto::Class;

/// Where a chunk is on its way, as far as this device acts on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    Waiting,
    /// Waits for a capability before it is offered again.
    Parked,
    /// Offered; bytes are to be sent.
    Moving,
    /// Offered; the relay is thought to hold it.
    Probing,
    /// Offered, and every byte is sent.
    Sent,
    /// Confirmed, says the relay; the receipt waits for the core's keys.
    Doubted,
    /// The core may have it. Ended for this device, unless the relay comes to know more.
    Unsettled,
    /// Every try failed; the next one is asked for by somebody.
    Failed,
    /// Refused for good.
    Refused,
}

/// A sealed chunk.
pub(crate) struct New {
    pub(crate) label: Label,
    pub(crate) offer: Offer,
    /// It goes after all others.
    pub(crate) manifest: bool,
    /// How far an earlier run brought it.
    pub(crate) note: Note,
}

/// One chunk.
pub(crate) struct Entry {
    pub(crate) label: Label,
    pub(crate) class: Class,
    pub(crate) offer: Arc<Offer>,
    pub(super) manifest: bool,
    pub(super) stage: Stage,
    pub(super) note: Note,
    pub(super) attempt: u64,
    /// Bytes that a relay holds, as it said last.
    pub(super) accepted: u64,
    /// Tries in a row that counted nothing.
    pub(super) quick: u32,
    /// A relay calls it confirmed, and brought no receipt.
    pub(super) bare: bool,
    /// How often in a row its file could not be read.
    pub(super) unread: u32,
    /// How often in a row something on the way answered in the relay's place.
    pub(super) between: u32,
    /// Unsettled: when the relay is asked again.
    pub(super) settle_ms: u64,
    /// When something was heard of it, or it was given away.
    pub(super) heard_ms: u64,
    /// The relay that holds it, if one does.
    pub(super) held_by: Option<usize>,
}

impl Entry {
    pub(super) fn new(new: New, floor: u64) -> Self {
        let New { label, offer, manifest, mut note } = new;
        if note.failed {
            (note.failed, note.retries) = (false, 0);
        }
        // The lowest class and the latest time: after everything else.
        let class = if manifest { Class::Master } else { label.variant.class() };
        let held_by = note.state.filter(|state| state.held()).map(|_| 0);
        Self {
            label,
            class,
            offer: Arc::new(offer),
            manifest,
            stage: Stage::Waiting,
            note,
            attempt: floor + 1,
            accepted: 0,
            quick: 0,
            bare: false,
            unread: 0,
            between: 0,
            settle_ms: 0,
            heard_ms: 0,
            held_by,
        }
    }

    /// It is with the connection.
    pub(super) const fn is_given(&self) -> bool {
        matches!(self.stage, Stage::Moving | Stage::Probing | Stage::Sent)
    }

    /// Whether this device waits for nothing that it could bring about.
    pub(crate) fn is_ended(&self) -> bool {
        let unsettled = self.note.state == Some(ChunkState::Unsettled) && self.stage != Stage::Doubted;
        unsettled || self.stage == Stage::Refused
    }

    /// A relay holds it whole.
    pub(super) fn is_held(&self) -> bool {
        self.note.state.is_some_and(ChunkState::held)
    }

    /// A relay says that it holds so many bytes; true if something is to be remembered. More than
    /// it said before: new bytes were accepted, and the tries count anew. Less: it lost some.
    pub(super) fn reached(&mut self, offset: u64) -> bool {
        let (before, offset) = (self.note, offset.min(self.offer.length));
        if offset > self.accepted {
            (self.note.retries, self.quick) = (0, 0);
        }
        self.accepted = offset;
        self.note.done = self.note.done.max(offset);
        self.note != before
    }

    /// For its owner.
    pub(super) fn item(&self, idle: bool) -> Item {
        let state = match self.stage {
            Stage::Failed | Stage::Refused => ItemState::Failed,
            _ if self.is_held() || self.stage == Stage::Doubted => ItemState::Uploading,
            _ if idle => ItemState::Paused,
            Stage::Moving | Stage::Probing | Stage::Sent => ItemState::Uploading,
            _ if self.note.retries > 0 || self.unread > 0 || self.between > 0 => ItemState::Retrying,
            _ => ItemState::Queued,
        };
        let (variant, lane_seq, retries) = (self.label.variant, self.label.lane_seq, self.note.retries);
        Item { variant, lane_seq, state, done: self.note.done, total: self.offer.length, retries }
    }
}

impl Book {
    pub(super) fn stage(&mut self, id: u64, stage: Stage) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.stage = stage;
            self.queue.remove(id);
        }
    }

    /// Offers it again, at the earliest after a pause, as a new attempt.
    pub(super) fn again(&mut self, id: u64, after_ms: u64, now_ms: u64) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.attempt += 1;
        }
        self.wait(id, now_ms + after_ms);
    }

    /// The same after a way that broke or an answer that counts nothing.
    pub(super) fn go_on(&mut self, id: u64, floor_ms: u64, now_ms: u64) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let pause = crate::capture::retry::quick_ms(entry.quick);
        entry.quick = entry.quick.saturating_add(1);
        self.again(id, pause.max(floor_ms), now_ms);
    }

    pub(super) fn wait(&mut self, id: u64, due_ms: u64) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        entry.stage = Stage::Waiting;
        let elsewhere = entry.held_by.is_some_and(|relay| relay != self.relay);
        self.queue.put(Waiting {
            id,
            class: entry.class,
            first: entry.label.lane_seq == 0 && !entry.manifest,
            started_ms: if entry.manifest { i64::MAX } else { entry.offer.started.unix_ms() },
            length: entry.offer.length,
            held: entry.is_held(),
            begun: entry.note.offered,
            due_ms: due_ms + if elsewhere { ELSEWHERE_MS } else { 0 },
        });
    }
}
