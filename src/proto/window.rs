//! The near-live window of one capture group, and the cursors of those who watch it.
//!
//! A [`Window`] holds two lanes, each the chunks of a chain of streams in the order they began.
//! Bytes are kept once, as frames that all contacts share. A [`Contact`] is a place in each lane;
//! [`Contact::poll`] hands out what lies between that place and the end, control first, then
//! `audio_priority`, then `live_preview`. Nothing is queued for a contact: what it can no longer
//! be given is named to it as omitted when it comes there.
//!
//! Pure, as everything in this crate: `now` is milliseconds of a monotonic clock. What the caller
//! has to do elsewhere (give memory back, forget a chunk's name, count) comes out of
//! [`Window::take_effects`].

use std::collections::HashMap;
use std::sync::Arc;

use crate::id::{ChunkRef, Digest, IncidentId, SessionId, StreamId};
use crate::media::{Media, Variant};
use crate::message::{CaptureWord, OmittedReason, WithdrawnReason};
use crate::offer::Timestamp;
use crate::state::ContactState;

#[cfg(test)]
mod any_order_tests;
#[cfg(test)]
mod any_order_world;
mod body;
mod capture;
#[cfg(test)]
mod capture_tests;
mod contact;
mod delivery;
mod entry;
mod events;
mod fetching;
mod greeting;
mod lane;
mod leaving;
mod out;
mod pieces;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod thin_tests;

pub use body::{FRAME_OVERHEAD, FRAME_PAYLOAD};
pub use capture::QUIET_MS;
pub use contact::{Contact, MAX_FETCHES, MAX_OPEN, View};
pub use delivery::LATE_MS;
pub use entry::Trouble;
pub use events::{MAX_EVENTS, Place};
pub use greeting::Start;
pub use lane::{MAX_CHUNKS, MAX_STREAMS};
pub use out::{Counts, Out, STEP_MEDIA};
pub use pieces::{MAX_BEHIND, MAX_BEHIND_BYTES, Pieces, PiecesEnd, Whole, WholeNext};

use entry::Entry;
use events::{Event, Events};
use lane::Lane;

/// The lanes of a group, in the order in which contacts are given their bytes.
pub const LANES: [Variant; 2] = [Variant::AudioPriority, Variant::LivePreview];
/// What a chunk is charged besides its bytes, while its state is followed.
pub const RECORD_COST: u64 = 2048;
/// A recording that ended is over for contacts this long after its last sign, so that chunks
/// still on their way are seen.
pub const SETTLE_MS: u64 = 5_000;

/// Which lane a variant is; `None`: it is not shown.
#[must_use]
pub fn lane_of(variant: Variant) -> Option<usize> {
    LANES.iter().position(|lane| *lane == variant)
}

/// What is said of a chunk when its first byte comes.
#[derive(Debug, Clone)]
pub struct ChunkMeta {
    /// Its name on the wire.
    pub chunk: ChunkRef,
    /// The uploader's session: whose share of the memory it uses.
    pub session: SessionId,
    /// Stream.
    pub stream: StreamId,
    /// Effective role; watchable.
    pub variant: Variant,
    /// Media type.
    pub media: Media,
    /// Index.
    pub index: u64,
    /// Bytes in all.
    pub length: u64,
    /// SHA-256.
    pub sha256: Digest,
    /// Start.
    pub started: Timestamp,
    /// End.
    pub ended: Timestamp,
}

/// What holds for a window.
#[derive(Debug, Clone)]
pub struct Rules {
    /// Source time a lane spans, in milliseconds.
    pub window_ms: i64,
    /// Largest chunk shown, in bytes.
    pub max_chunk: u64,
    /// Without a sign of life for so long the capture device counts as silent, in milliseconds.
    pub silent_ms: u64,
    /// How long a chunk may be without an attempt at it before it is withdrawn, in milliseconds.
    pub patience_ms: u64,
    /// This relay's opaque id, for `WATCHING`.
    pub node: Arc<str>,
}

/// Why a chunk's bytes or its record left the window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// Source time moved on.
    Window,
    /// The memory of all windows is full.
    Memory,
    /// The session's share is full.
    Session,
    /// More chunks than a lane follows.
    Chunks,
    /// Bytes before its first are not here, so it can't be shown.
    Gap,
    /// The group gave no sign for a day.
    Linger,
}

/// What a window has of a chunk that an attempt will bring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opened {
    /// The same bytes, as far as they came.
    Here(Place),
    /// Nothing: the first byte begins it.
    Fresh,
    /// A newer attempt brings other bytes: these are not wanted.
    Stale,
}

/// What the caller does after it changed a window.
#[derive(Debug, PartialEq, Eq)]
pub enum Effect {
    /// The bytes of this slot are gone; its record stays.
    Release(u64),
    /// The bytes of the first slot belong to the second.
    Carry(u64, u64),
    /// Nothing is left of this slot.
    Close(u64),
    /// This name leads nowhere any more.
    Forget(ChunkRef),
    /// A chunk left before its time was up, or with it.
    Evicted(Cause),
    /// A chunk was withdrawn.
    Withdrawn(WithdrawnReason),
}

/// One group's lanes.
pub struct Window {
    rules: Rules,
    incident: IncidentId,
    instance: u64,
    lanes: [Lane; 2],
    names: HashMap<ChunkRef, Place>,
    events: Events,
    last_handle: u64,
    last_sign: Option<u64>,
    /// No sign came yet, and one came to an earlier process: now, and how many ms before.
    recalled: Option<(u64, u64)>,
    capture: Option<CaptureWord>,
    /// How many capture events there were.
    captures: u64,
    /// When the first of the chunks that nobody brings any more was left.
    left: Option<u64>,
    effects: Vec<Effect>,
}

impl Window {
    /// An empty window. `instance` is random: cursors of another instance are read by identity.
    #[must_use]
    pub fn new(rules: Rules, incident: IncidentId, instance: u64) -> Self {
        Self {
            rules,
            incident,
            instance,
            lanes: [Lane::default(), Lane::default()],
            names: HashMap::new(),
            events: Events::new(),
            last_handle: 0,
            last_sign: None,
            recalled: None,
            capture: None,
            captures: 0,
            left: None,
            effects: Vec::new(),
        }
    }

    /// What is to be done elsewhere; empty afterwards.
    #[must_use]
    pub fn take_effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    /// Nothing was ever published here that is still followed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.names.is_empty() && self.lanes.iter().all(|lane| lane.end() == 0)
    }

    /// When the last sign of life came, or it was recalled that one had come before.
    #[must_use]
    pub fn last_sign(&self) -> Option<u64> {
        self.last_sign.or(self.recalled.map(|(at, _)| at))
    }

    /// Where a chunk lies, if it is followed.
    #[must_use]
    pub fn place(&self, chunk: ChunkRef) -> Option<Place> {
        self.names.get(&chunk).copied()
    }

    /// The place of the next chunk of this lane.
    #[must_use]
    pub fn next_place(&self, lane: usize) -> Place {
        Place { lane, seq: self.lanes[lane].end() }
    }

    /// An attempt `owner` will bring this chunk; newer attempts have higher numbers. Goes on with
    /// what is here of the same bytes; withdraws other bytes under the same name. With
    /// [`Window::begin`], [`Window::price`] and [`Window::push`] it makes the way of a chunk's bytes.
    pub fn open(&mut self, meta: &ChunkMeta, owner: u64) -> Opened {
        let Some(place) = self.place(meta.chunk) else { return Opened::Fresh };
        let Some(entry) = self.lanes[place.lane].entry_mut(place.seq) else { return Opened::Fresh };
        if entry.withdrawn.is_some() {
            return Opened::Fresh;
        }
        if (entry.meta.sha256, entry.meta.length, entry.meta.variant) == (meta.sha256, meta.length, meta.variant) {
            if entry.failed() {
                // It comes again: who was told that it failed, or came later, sees it anew.
                return Opened::Fresh;
            }
            entry.owner = entry.owner.max(owner);
            entry.left = None;
            return Opened::Here(place);
        }
        if entry.owner > owner {
            return Opened::Stale;
        }
        self.withdraw_entry(place, WithdrawnReason::Superseded);
        Opened::Fresh
    }

    /// The chunk's first byte is here, or it can't be shown: it takes its place in the lane.
    /// `slot` is its place in the account, where [`RECORD_COST`] was charged; `offset` is where
    /// its bytes begin. `sign` is when that was a sign of life, if it was one, here and below: what
    /// an earlier process received is none.
    pub fn begin(
        &mut self,
        meta: &Arc<ChunkMeta>,
        owner: u64,
        slot: u64,
        offset: u64,
        sign: Option<u64>,
    ) -> Option<Place> {
        let lane = lane_of(meta.variant)?;
        let ordinal = self.lanes[lane].ordinal(meta);
        let ends = self.lanes[lane].place_in_time(meta, ordinal, self.rules.window_ms);
        self.last_handle += 1;
        let mut entry = Entry::new(meta.clone(), self.last_handle, slot, owner, ordinal, ends);
        (entry.came, entry.again) = (sign, self.names.contains_key(&meta.chunk));
        self.carry_kept(&mut entry);
        if meta.length > self.rules.max_chunk {
            entry.gone = Some(OmittedReason::TooLarge);
        } else if entry.body.as_ref().is_none_or(|body| offset > body.have()) {
            entry.gone = Some(OmittedReason::Evicted);
            self.effects.push(Effect::Evicted(Cause::Gap));
        }
        if entry.gone.is_some() {
            entry.body = None;
            self.effects.push(Effect::Release(slot));
        }
        let place = Place { lane, seq: self.lanes[lane].push(entry) };
        self.names.insert(meta.chunk, place);
        self.sign(sign);
        self.let_age(lane);
        Some(place)
    }

    /// What `len` bytes at `offset` would cost; `None`: they are not wanted.
    #[must_use]
    pub fn price(&self, place: Place, offset: u64, len: usize) -> Option<u64> {
        let entry = self.lanes[place.lane].entry(place.seq).filter(|entry| entry.held())?;
        let body = entry.body.as_ref()?;
        let end = offset.saturating_add(len as u64).min(entry.meta.length);
        let more = usize::try_from(end.checked_sub(body.have())?).ok().filter(|more| *more > 0)?;
        Some(if offset > body.have() { 0 } else { body.price(more) })
    }

    /// Bytes at `offset`, paid for. What is here already is skipped; what leaves a gap ends the
    /// chunk for contacts.
    pub fn push(&mut self, place: Place, offset: u64, bytes: &[u8], sign: Option<u64>) {
        self.sign(sign);
        let Some(entry) = self.lanes[place.lane].entry_mut(place.seq).filter(|entry| entry.held()) else { return };
        let Some(body) = &mut entry.body else { return };
        let Some(skip) = body.have().checked_sub(offset) else { return self.evict_for(place, Cause::Gap) };
        let left = usize::try_from(entry.meta.length - body.have()).unwrap_or(usize::MAX);
        let Some(rest) = usize::try_from(skip).ok().and_then(|skip| bytes.get(skip..)) else { return };
        if !rest.is_empty() && left > 0 {
            body.append(&rest[..rest.len().min(left)]);
        }
    }

    /// The chunk is whole and its hash agrees.
    pub fn complete(&mut self, place: Place, sign: Option<u64>) {
        self.sign(sign);
        let Some(entry) = self.lanes[place.lane].entry_mut(place.seq) else { return };
        if entry.held() && !entry.whole {
            if entry.body.as_ref().is_some_and(|body| body.have() == entry.meta.length) {
                entry.whole = true;
                entry.completed = self.events.end();
                self.tell(Event::Completed(place));
            } else {
                self.evict_for(place, Cause::Gap);
            }
        }
        self.set_state_at(place, ContactState::NearLiveUnconfirmed, None, None);
    }

    /// The chunk is not what it was said to be; only its latest attempt can say so.
    pub fn withdraw(&mut self, place: Place, owner: u64, reason: WithdrawnReason) {
        let owned = self.lanes[place.lane].entry(place.seq).is_some_and(|entry| entry.owner == owner);
        if owned {
            self.withdraw_entry(place, reason);
        }
    }

    /// A followed chunk's slot in the account.
    #[must_use]
    pub fn slot(&self, place: Place) -> Option<u64> {
        self.lanes[place.lane].entry(place.seq).map(|entry| entry.slot)
    }

    /// A chunk's state changed; `false`: it is not followed, or that says nothing new.
    pub fn set_state(
        &mut self,
        chunk: ChunkRef,
        state: ContactState,
        receipt: Option<Arc<str>>,
        trouble: Option<Trouble>,
    ) -> bool {
        match self.place(chunk).filter(|_| state != ContactState::Withdrawn) {
            Some(place) => self.set_state_at(place, state, receipt, trouble),
            None => false,
        }
    }

    /// Adds an event. A chunk that waited for its last event to be old is buried with it.
    fn tell(&mut self, event: Event) {
        self.captures += u64::from(matches!(event, Event::Capture(..)));
        if let Some((number, Event::Changed(place))) = self.events.push(event)
            && let Some(entry) = self.lanes[place.lane].entry(place.seq)
            && entry.changed == number
            && entry.body.is_none()
            && !entry.open_ended()
        {
            self.bury(place);
        }
    }

    fn set_state_at(
        &mut self,
        place: Place,
        state: ContactState,
        receipt: Option<Arc<str>>,
        trouble: Option<Trouble>,
    ) -> bool {
        let number = self.events.end();
        let lane = &mut self.lanes[place.lane];
        let Some(entry) = lane.entry_mut(place.seq) else { return false };
        let waited = entry.open_ended();
        let new = entry.set_state(state, receipt, trouble);
        if new {
            entry.changed = number;
            let waits = entry.open_ended();
            lane.open_ended = lane.open_ended + usize::from(waits) - usize::from(waited);
            self.tell(Event::Changed(place));
        }
        new
    }

    /// Gives an entry the bytes that a stalled attempt at the same chunk left.
    fn carry_kept(&mut self, entry: &mut Entry) {
        let Some(place) = self.place(entry.meta.chunk) else { return };
        let lane = &mut self.lanes[place.lane];
        let Some(old) = lane.entry_mut(place.seq) else { return };
        let same = (old.meta.sha256, old.meta.length) == (entry.meta.sha256, entry.meta.length);
        if let Some(mut body) = old.body.take_if(|_| same && old.withdrawn.is_some()) {
            entry.body = Some(body.renamed(entry.handle));
            self.effects.push(Effect::Carry(old.slot, entry.slot));
            let ends = old.ends;
            lane.unlist(ends, place.seq);
        }
    }
}
