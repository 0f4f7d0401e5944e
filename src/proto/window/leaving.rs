//! How chunks leave a window: withdrawn, too old, or for want of room.

use super::entry::Entry;
use super::events::{Event, Place};
use super::{Cause, Effect, Window};
use crate::id::ChunkRef;
use crate::message::{OmittedReason, WithdrawnReason};
use crate::state::ContactState;

impl Window {
    /// Lets go of a chunk's bytes, or of its record if it has none; `false`: there was nothing.
    pub fn evict(&mut self, place: Place, cause: Cause) -> bool {
        let there = self.lanes[place.lane].entry(place.seq).is_some();
        self.evict_for(place, cause);
        there
    }

    /// Lets go of everything; cursors name what is gone.
    pub fn clear(&mut self, cause: Cause) {
        for lane in 0..self.lanes.len() {
            let followed: Vec<u64> = self.lanes[lane].entries().map(|(seq, _)| seq).collect();
            for seq in followed {
                let place = Place { lane, seq };
                if self.lanes[lane].entry(seq).is_some_and(|entry| entry.body.is_some()) {
                    self.evict_for(place, cause);
                }
                self.bury(place);
            }
        }
    }

    /// The attempt `owner` went before the chunk was whole. Unless another one comes soon, the chunk
    /// is withdrawn; `true` if that may be.
    pub fn leave(&mut self, place: Place, owner: u64, now: u64) -> bool {
        let arrives = |entry: &&mut Entry| entry.owner == owner && entry.state == ContactState::Arriving;
        let Some(entry) = self.lanes[place.lane].entry_mut(place.seq).filter(arrives) else { return false };
        entry.left = Some(now);
        self.left = Some(self.left.map_or(now, |left| left.min(now)));
        true
    }

    /// What came of a chunk is gone at the relay, and the core does not have it: it is withdrawn,
    /// and a later attempt shows it anew. `true` if it was shown.
    pub fn drop_chunk(&mut self, chunk: ChunkRef) -> bool {
        let Some(place) = self.place(chunk) else { return false };
        let shown = self.lanes[place.lane].entry(place.seq).is_some_and(Entry::open_ended);
        if shown {
            self.withdraw_entry(place, WithdrawnReason::Stalled);
        }
        shown
    }

    /// When the first of the chunks that nobody brings any more will be withdrawn.
    #[must_use]
    pub fn abandoned_at(&self) -> Option<u64> {
        Some(self.left?.saturating_add(self.rules.patience_ms))
    }

    /// Withdraws what nobody brought for too long; `true` if anything was.
    pub(super) fn withdraw_abandoned(&mut self, now: u64) -> bool {
        if self.abandoned_at().is_none_or(|at| now < at) {
            return false;
        }
        let (mut over, mut next) = (Vec::new(), None);
        for lane in 0..self.lanes.len() {
            for (seq, entry) in self.lanes[lane].entries().filter(|(_, entry)| entry.state == ContactState::Arriving) {
                match entry.left {
                    Some(left) if now >= left.saturating_add(self.rules.patience_ms) => over.push(Place { lane, seq }),
                    Some(left) => next = Some(next.map_or(left, |next: u64| next.min(left))),
                    None => {}
                }
            }
        }
        self.left = next;
        for place in &over {
            self.withdraw_entry(*place, WithdrawnReason::Stalled);
        }
        !over.is_empty()
    }

    pub(super) fn withdraw_entry(&mut self, place: Place, reason: WithdrawnReason) {
        let number = self.events.end();
        let lane = &mut self.lanes[place.lane];
        let Some(entry) = lane.entry_mut(place.seq).filter(|entry| entry.withdrawn.is_none()) else { return };
        let waited = entry.open_ended();
        entry.withdraw(reason);
        entry.changed = number;
        let (ends, slot) = (entry.ends, entry.slot);
        if reason != WithdrawnReason::Stalled {
            entry.body = None;
            lane.unlist(ends, place.seq);
            self.effects.push(Effect::Release(slot));
        }
        lane.open_ended -= usize::from(waited);
        self.effects.push(Effect::Withdrawn(reason));
        self.tell(Event::Changed(place));
    }

    pub(super) fn evict_for(&mut self, place: Place, cause: Cause) {
        let lane = &mut self.lanes[place.lane];
        let Some(entry) = lane.entry_mut(place.seq) else { return };
        if entry.body.take().is_none() {
            return self.bury(place);
        }
        self.effects.push(Effect::Evicted(cause));
        entry.gone.get_or_insert(OmittedReason::Evicted);
        entry.whole = false;
        let (ends, slot, settled) = (entry.ends, entry.slot, !entry.open_ended() && entry.changed < self.events.base());
        lane.unlist(ends, place.seq);
        self.effects.push(Effect::Release(slot));
        if settled {
            self.bury(place);
        }
    }

    /// Leaves only the chunk's name.
    pub(super) fn bury(&mut self, place: Place) {
        let lane = &mut self.lanes[place.lane];
        let Some(entry) = lane.entry(place.seq) else { return };
        let latest = self.names.get(&entry.meta.chunk) == Some(&place);
        let reason = entry.gone.or(Some(OmittedReason::Evicted));
        let reason = reason.filter(|reason| latest || *reason != OmittedReason::Withdrawn);
        let Some(entry) = lane.bury(place.seq, reason) else { return };
        self.effects.push(Effect::Close(entry.slot));
        if latest {
            self.names.remove(&entry.meta.chunk);
            self.effects.push(Effect::Forget(entry.meta.chunk));
        }
    }

    pub(super) fn let_age(&mut self, lane: usize) {
        while let Some(seq) = self.lanes[lane].outlived(self.rules.window_ms) {
            self.evict_for(Place { lane, seq }, Cause::Window);
        }
        while let Some(seq) = self.lanes[lane].surplus() {
            let place = Place { lane, seq };
            if self.lanes[lane].entry(seq).is_some_and(|entry| entry.body.is_some()) {
                self.evict_for(place, Cause::Chunks);
            }
            self.bury(place);
        }
    }
}
