//! Two smaller ways to watch: whole chunks of one stream, and one chunk as it arrives.

use std::sync::Arc;

use bytes::Bytes;

use super::events::{Event, Place};
use super::{ChunkMeta, Trouble, Window};
use crate::id::{ChunkRef, StreamId};
use crate::message::WithdrawnReason;
use crate::state::ContactState;

/// Whole chunks that a subscriber may be behind before it is let go.
pub const MAX_BEHIND: usize = 8;
/// Bytes that it may be behind, one chunk always allowed.
pub const MAX_BEHIND_BYTES: u64 = 32 << 20;

/// A subscriber to whole chunks of one stream, from now on.
pub struct Whole {
    stream: StreamId,
    from: u64,
    event: u64,
}

/// What a [`Whole`] sees.
pub enum WholeNext {
    /// A chunk, whole and hashed, and what reads it from the window.
    Chunk(Arc<ChunkMeta>, Pieces),
    /// What the core said of a chunk it saw.
    State(Arc<ChunkMeta>, ContactState, Option<Trouble>),
    /// It is too far behind: something is gone, or would be.
    Slow,
}

impl Whole {
    /// Begins with what happens next.
    #[must_use]
    pub fn new(window: &Window, stream: StreamId) -> Self {
        Self { stream, from: window.events.end(), event: window.events.end() }
    }

    /// What is next; `None`: nothing yet.
    pub fn poll(&mut self, window: &Window) -> Option<WholeNext> {
        if self.event < window.events.base() || self.behind(window) {
            return Some(WholeNext::Slow);
        }
        while let Some(event) = window.events.get(self.event) {
            self.event += 1;
            let next = match event {
                Event::Completed(place) => self.completed(place, window),
                Event::Changed(place) => self.changed(place, window),
                Event::Capture(..) => None,
            };
            if next.is_some() {
                return next;
            }
        }
        None
    }

    fn behind(&self, window: &Window) -> bool {
        let (mut chunks, mut bytes) = (0, 0);
        for number in self.event..window.events.end() {
            let Some(Event::Completed(place)) = window.events.get(number) else { continue };
            let Some(entry) = window.lanes[place.lane].entry(place.seq) else { continue };
            if entry.meta.stream == self.stream {
                chunks += 1;
                bytes += entry.meta.length;
            }
        }
        chunks > MAX_BEHIND || chunks > 1 && bytes > MAX_BEHIND_BYTES
    }

    fn completed(&self, place: Place, window: &Window) -> Option<WholeNext> {
        let entry = window.lanes[place.lane].entry(place.seq)?;
        if entry.meta.stream != self.stream || entry.withdrawn.is_some() {
            return None;
        }
        if entry.body.is_none() || !entry.whole {
            return Some(WholeNext::Slow);
        }
        let pieces = Pieces { place: Some(place), ..Pieces::new(entry.meta.chunk) };
        Some(WholeNext::Chunk(entry.meta.clone(), pieces))
    }

    fn changed(&self, place: Place, window: &Window) -> Option<WholeNext> {
        let entry = window.lanes[place.lane].entry(place.seq)?;
        let latest = entry.changed + 1 == self.event;
        let seen = entry.completed >= self.from && entry.withdrawn.is_none();
        if entry.meta.stream != self.stream || !latest || !seen || entry.open_ended() {
            return None;
        }
        let (state, trouble) = entry.standing();
        Some(WholeNext::State(entry.meta.clone(), state, trouble))
    }
}

/// One chunk, waited for and read as it arrives.
pub struct Pieces {
    chunk: ChunkRef,
    place: Option<Place>,
    piece: usize,
}

/// How a chunk that was read ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PiecesEnd {
    /// It is whole and its hash agrees.
    Whole,
    /// What came is not that chunk.
    Withdrawn(WithdrawnReason),
    /// Its bytes are not in the window, or no longer.
    Gone,
}

impl Pieces {
    /// Waits for `chunk`.
    #[must_use]
    pub const fn new(chunk: ChunkRef) -> Self {
        Self { chunk, place: None, piece: 0 }
    }

    /// What is said of the chunk, once it begins.
    pub fn begins(&mut self, window: &Window) -> Option<Arc<ChunkMeta>> {
        let there = |place: &Place| window.lanes[place.lane].entry(place.seq).is_some();
        let place = self.place.filter(there).or_else(|| window.place(self.chunk))?;
        let entry = window.lanes[place.lane].entry(place.seq)?;
        if self.place.is_none() && entry.withdrawn.is_some() {
            return None;
        }
        self.place = Some(place);
        Some(entry.meta.clone())
    }

    /// Whether the chunk began and can't be read any more.
    #[must_use]
    pub fn gone(&self, window: &Window) -> bool {
        let entry = self.place.and_then(|place| window.lanes[place.lane].entry(place.seq));
        entry.is_some_and(|entry| !entry.held())
    }

    /// The next bytes, or how it ended; `Ok(None)`: nothing more yet.
    ///
    /// # Errors
    /// [`PiecesEnd`], also for [`PiecesEnd::Whole`].
    pub fn poll(&mut self, window: &mut Window) -> Result<Option<Bytes>, PiecesEnd> {
        let Some(place) = self.place else { return Ok(None) };
        let entry = window.lanes[place.lane].entry_mut(place.seq).ok_or(PiecesEnd::Gone)?;
        if let Some(reason) = entry.withdrawn {
            return Err(PiecesEnd::Withdrawn(reason));
        }
        let body = entry.body.as_mut().ok_or(PiecesEnd::Gone)?;
        match body.payload(self.piece) {
            Some(piece) => {
                self.piece += 1;
                Ok(Some(piece))
            }
            None if entry.whole => Err(PiecesEnd::Whole),
            None => Ok(None),
        }
    }
}
