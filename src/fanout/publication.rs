//! The uploader's side: one chunk on its way to contacts.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use super::ChunkMeta;
use super::cell::{Address, Cell, State, Wake};
use super::group::GroupKey;
use super::hub::Inner;
use crate::proto::Media;
use crate::proto::memory::Full;
use crate::proto::message::WithdrawnReason;
use crate::proto::window::{Cause, Opened, Place, RECORD_COST, Window, lane_of};
use crate::telemetry::names::UnlabelledMedia;

/// One chunk on its way to contacts. Dropping it leaves the chunk arriving for a while, for a later
/// attempt to go on; [`Publication::withdraw`] says that it will not.
pub struct Publication {
    hub: Arc<Inner>,
    /// `None`: no more groups fit.
    cell: Option<Arc<Cell>>,
    meta: Arc<ChunkMeta>,
    owner: u64,
    /// Its bytes came to an earlier process: no sign of life now.
    again: bool,
    progress: Mutex<Progress>,
}

#[derive(Clone, Copy)]
enum Progress {
    /// No byte came yet.
    Waiting,
    /// It has its place.
    Begun(Place),
    /// It is not shown: another lane, no room at all, or a newer attempt brings other bytes.
    Dark,
}

impl Publication {
    /// `came_ms_ago` is set if its bytes came to an earlier process.
    pub(super) fn open(
        hub: &Arc<Inner>,
        cell: Option<Arc<Cell>>,
        meta: ChunkMeta,
        owner: u64,
        shown: bool,
        came_ms_ago: Option<u64>,
    ) -> Self {
        let opened = cell.as_ref().map_or(Opened::Stale, |cell| {
            let mut state = cell.lock();
            let captures = state.window.captures();
            let whom = if shown { concerned(&state.window, &meta) } else { Wake::Nobody };
            // An offer is a sign of life too: the group is not let go before its first byte.
            match (hub.clock.now_ms(), came_ms_ago) {
                (now, None) => state.window.seen(now),
                (now, Some(age)) => state.window.recall(now, age),
            }
            let opened = if shown { state.window.open(&meta, owner) } else { Opened::Stale };
            cell.changed(hub, state, captures, whom);
            opened
        });
        let progress = match opened {
            Opened::Here(place) => Progress::Begun(place),
            Opened::Fresh => Progress::Waiting,
            Opened::Stale => Progress::Dark,
        };
        let (hub, meta, again) = (hub.clone(), Arc::new(meta), came_ms_ago.is_some());
        Self { hub, cell, meta, owner, again, progress: Mutex::new(progress) }
    }

    /// Bytes at `offset`; those that contacts have already are skipped.
    pub fn push(&self, offset: u64, bytes: &Bytes) {
        let sign = self.sign();
        let Some(cell) = &self.cell else { return };
        let Some(place) = self.begun(cell, offset, sign) else { return };
        loop {
            let mut state = cell.lock();
            let captures = state.window.captures();
            match self.charge(&state, place, offset, bytes.len()) {
                Ok(()) => {
                    state.window.push(place, offset, bytes, sign);
                    return cell.changed(&self.hub, state, captures, Wake::Lane(place.lane));
                }
                Err(full) => {
                    drop(state);
                    if !self.hub.make_room(full) {
                        return self.give_up(cell, place);
                    }
                }
            }
        }
    }

    /// The chunk is whole and its hash agrees.
    pub fn complete(&self) {
        let sign = self.sign();
        let Some(cell) = &self.cell else { return };
        // Nothing was pushed: the bytes came before this window, so the chunk can't be shown.
        let Some(place) = self.begun(cell, self.meta.length, sign) else { return };
        cell.change(&self.hub, Wake::Whole(place.lane), |window| window.complete(place, sign));
    }

    /// The chunk is not what it was said to be.
    pub fn withdraw(&self, reason: WithdrawnReason) {
        let (Some(cell), Progress::Begun(place)) = (&self.cell, self.progress()) else { return };
        cell.change(&self.hub, Wake::Lane(place.lane), |window| window.withdraw(place, self.owner, reason));
    }

    /// When its bytes are a sign of life, if they are one.
    fn sign(&self) -> Option<u64> {
        (!self.again).then(|| self.hub.clock.now_ms())
    }

    fn leave(&self) {
        let (Some(cell), Progress::Begun(place)) = (&self.cell, self.progress()) else { return };
        let mut state = cell.lock();
        let captures = state.window.captures();
        if state.window.leave(place, self.owner, self.hub.clock.now_ms()) {
            cell.changed(&self.hub, state, captures, Wake::Lane(place.lane));
        }
    }

    fn progress(&self) -> Progress {
        *self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The chunk's place; takes it with the first byte.
    fn begun(&self, cell: &Arc<Cell>, offset: u64, sign: Option<u64>) -> Option<Place> {
        let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        if let Progress::Begun(place) = *progress {
            return Some(place);
        }
        let waiting = matches!(*progress, Progress::Waiting);
        let Some(lane) = lane_of(self.meta.variant).filter(|_| waiting) else {
            if let Some(now) = sign {
                cell.change(&self.hub, Wake::Nobody, |window| window.seen(now));
            }
            return None;
        };
        let place = self.begin(cell, lane, offset, sign);
        *progress = place.map_or(Progress::Dark, Progress::Begun);
        place
    }

    fn begin(&self, cell: &Arc<Cell>, lane: usize, offset: u64, sign: Option<u64>) -> Option<Place> {
        loop {
            let mut state = cell.lock();
            if state.closed {
                return None;
            }
            let captures = state.window.captures();
            let whom = concerned(&state.window, &self.meta);
            // An attempt beside this one may have begun the same chunk.
            match state.window.open(&self.meta, self.owner) {
                Opened::Here(place) => return Some(place),
                Opened::Fresh => {}
                Opened::Stale => return None,
            }
            let address = Address { cell: Arc::downgrade(cell), place: state.window.next_place(lane) };
            let opened = self.hub.budget().open(&self.meta.session, address, RECORD_COST);
            match opened {
                Ok(slot) => {
                    let place = state.window.begin(&self.meta, self.owner, slot, offset, sign);
                    self.hub.name(self.meta.chunk, cell);
                    cell.changed(&self.hub, state, captures, whom);
                    self.count_unlabelled(&cell.key);
                    return place;
                }
                Err(full) => {
                    cell.changed(&self.hub, state, captures, whom);
                    if !self.hub.make_room(full) {
                        return None;
                    }
                }
            }
        }
    }

    fn charge(&self, state: &State, place: Place, offset: u64, len: usize) -> Result<(), Full<Address>> {
        let price = state.window.price(place, offset, len).filter(|price| *price > 0);
        match (price, state.window.slot(place)) {
            (Some(price), Some(slot)) => self.hub.budget().charge(slot, price),
            _ => Ok(()),
        }
    }

    /// Not even an empty window has room for these bytes.
    fn give_up(&self, cell: &Arc<Cell>, place: Place) {
        cell.change(&self.hub, Wake::Lane(place.lane), |window| window.evict(place, Cause::Memory));
    }

    fn count_unlabelled(&self, key: &GroupKey) {
        match self.meta.media {
            Media::Audio if key.unlabelled() => self.hub.metrics.fanout.unlabelled(UnlabelledMedia::Audio),
            Media::Video if key.unlabelled() => self.hub.metrics.fanout.unlabelled(UnlabelledMedia::Video),
            _ => {}
        }
    }
}

impl Drop for Publication {
    fn drop(&mut self) {
        self.leave();
    }
}

/// Whom it concerns that this chunk begins: those who watch its lane, and those who watch the one on which an earlier
/// attempt at it is withdrawn.
fn concerned(window: &Window, meta: &ChunkMeta) -> Wake {
    let lane = lane_of(meta.variant);
    let elsewhere = window.place(meta.chunk).is_some_and(|place| Some(place.lane) != lane);
    if elsewhere { Wake::All } else { lane.map_or(Wake::Nobody, Wake::Lane) }
}
