//! A lane: what came, in the order it began, over a chain of streams.

use std::collections::{BTreeSet, VecDeque};

use sha2::{Digest as _, Sha256};

use super::ChunkMeta;
use super::entry::Entry;
use crate::cursor::{Delivered, MAX_DELIVERED};
use crate::id::StreamId;
use crate::message::OmittedReason;

/// Chunks followed in one lane; 2-second chunks of more than an hour. Beyond, the oldest is let go.
pub const MAX_CHUNKS: usize = 2048;
/// Streams remembered in one lane.
pub const MAX_STREAMS: usize = 256;
/// What is left of chunks at the front of a lane, one by one, before only their streams' highest
/// index is remembered.
const MAX_LEADING_TOMBS: usize = 256;

/// The first 8 bytes of a hash of a stream's id: what a cursor says of it.
pub(super) type StreamTag = [u8; 8];

/// The tag of a stream.
pub(super) fn tag(stream: &StreamId) -> StreamTag {
    let hash = Sha256::new().chain_update("waystation-cursor-v1").chain_update(stream.as_str()).finalize();
    let mut out = StreamTag::default();
    out.copy_from_slice(&hash[..8]);
    out
}

/// A place in a lane.
pub(super) enum Slot {
    /// A chunk that is followed.
    Live(Box<Entry>),
    /// What is left of one: its name and why it is left out. `None`: a later attempt brings it.
    Tomb(StreamId, u64, Option<OmittedReason>),
}

/// A stream of the chain.
pub(super) struct Stream {
    pub(super) id: StreamId,
    pub(super) tag: StreamTag,
    /// Lowest and highest index seen.
    pub(super) first: u64,
    pub(super) last: u64,
    /// Highest index whose place in the lane is forgotten.
    pub(super) forgotten: Option<u64>,
    /// Added to its times, after the source's clock went back.
    shift: i64,
}

#[derive(Default)]
pub(super) struct Lane {
    /// Sequence number of the first slot.
    pub(super) base: u64,
    slots: VecDeque<Slot>,
    leading_tombs: usize,
    /// Number of the first stream of `streams` in the chain.
    streams_base: u64,
    streams: VecDeque<Stream>,
    /// Chunks with bytes, by their end.
    by_end: BTreeSet<(i64, u64)>,
    newest: Option<i64>,
    /// Chunks whose state waits for something, by stream number.
    pub(super) open_ended: usize,
}

impl Lane {
    /// The sequence number of the next chunk.
    pub(super) fn end(&self) -> u64 {
        self.base + self.slots.len() as u64
    }

    pub(super) fn slot(&self, seq: u64) -> Option<&Slot> {
        self.slots.get(usize::try_from(seq.checked_sub(self.base)?).ok()?)
    }

    pub(super) fn entry(&self, seq: u64) -> Option<&Entry> {
        match self.slot(seq)? {
            Slot::Live(entry) => Some(entry),
            Slot::Tomb(..) => None,
        }
    }

    pub(super) fn entry_mut(&mut self, seq: u64) -> Option<&mut Entry> {
        match self.slots.get_mut(usize::try_from(seq.checked_sub(self.base)?).ok()?)? {
            Slot::Live(entry) => Some(entry),
            Slot::Tomb(..) => None,
        }
    }

    /// Every chunk that is followed, oldest first.
    pub(super) fn entries(&self) -> impl DoubleEndedIterator<Item = (u64, &Entry)> {
        let base = self.base;
        self.slots.iter().enumerate().filter_map(move |(at, slot)| match slot {
            Slot::Live(entry) => Some((base + at as u64, &**entry)),
            Slot::Tomb(..) => None,
        })
    }

    /// The number of the first slot of this stream with this index or a later one.
    pub(super) fn find(&self, stream: &StreamId, index: u64) -> Option<(u64, u64)> {
        let names = self.slots.iter().map(|slot| match slot {
            Slot::Live(entry) => (&entry.meta.stream, entry.meta.index),
            Slot::Tomb(stream, index, _) => (stream, *index),
        });
        let mut numbered = (self.base..).zip(names);
        numbered.find(|(_, name)| name.0 == stream && name.1 >= index).map(|(seq, name)| (seq, name.1))
    }

    /// What is between the indexes of this stream that are followed here and those that were `delivered` elsewhere,
    /// from the lowest of the latter on: first and last of each hole. What is forgotten is no hole.
    pub(super) fn holes(&self, stream: &Stream, delivered: &Delivered) -> Vec<(u64, u64)> {
        let mut here: Vec<(u64, u64)> = self
            .slots
            .iter()
            .filter_map(|slot| match slot {
                Slot::Live(entry) if entry.meta.stream == stream.id => Some(entry.meta.index),
                Slot::Tomb(of, index, _) if *of == stream.id => Some(*index),
                _ => None,
            })
            .chain(delivered.indexes())
            .map(|index| (index, index))
            .chain(stream.forgotten.map(|last| (stream.first, last)))
            .collect();
        here.sort_unstable();
        let (mut holes, mut next) = (Vec::new(), delivered.indexes().last().unwrap_or(delivered.index) + 1);
        for (from, to) in here {
            if next < from {
                holes.push((next, from - 1));
            }
            next = next.max(to + 1);
        }
        holes
    }

    /// What of the last streams lies before a place: whoever begins there is not concerned by it.
    pub(super) fn delivered_before(&self, seq: u64) -> Vec<(u64, Delivered)> {
        let from = (self.streams_base + self.streams.len() as u64).saturating_sub(MAX_DELIVERED as u64);
        let mut all: Vec<_> =
            self.streams_from(from).map(|(at, stream)| (at, Delivered::from(stream.tag, 1))).collect();
        let before = usize::try_from(seq.saturating_sub(self.base)).unwrap_or(usize::MAX);
        for slot in self.slots.iter().take(before) {
            let (at, index) = match slot {
                Slot::Live(entry) => (all.iter().position(|(_, had)| had.stream == entry.tag), entry.meta.index),
                Slot::Tomb(of, index, _) => (self.streams_from(from).position(|(_, stream)| stream.id == *of), *index),
            };
            if let Some(at) = at {
                all[at].1.add(index);
            }
        }
        all.retain(|(_, had)| had.had != 0);
        all
    }

    pub(super) fn push(&mut self, entry: Entry) -> u64 {
        let seq = self.end();
        if entry.body.is_some() {
            self.by_end.insert((entry.ends, seq));
        }
        self.open_ended += usize::from(entry.open_ended());
        self.slots.push_back(Slot::Live(Box::new(entry)));
        seq
    }

    /// The entry's bytes are no longer in the window.
    pub(super) fn unlist(&mut self, ends: i64, seq: u64) {
        self.by_end.remove(&(ends, seq));
    }

    /// The next chunk whose end is more than `window` before the newest.
    pub(super) fn outlived(&self, window: i64) -> Option<u64> {
        let (ends, seq) = *self.by_end.first()?;
        (ends < self.newest?.saturating_sub(window)).then_some(seq)
    }

    /// The oldest slot, once there are more than [`MAX_CHUNKS`].
    pub(super) fn surplus(&self) -> Option<u64> {
        (self.slots.len() > MAX_CHUNKS).then_some(self.base + self.leading_tombs as u64)
    }

    /// Leaves only a chunk's name in its place.
    pub(super) fn bury(&mut self, seq: u64, reason: Option<OmittedReason>) -> Option<Box<Entry>> {
        let at = usize::try_from(seq.checked_sub(self.base)?).ok()?;
        let Slot::Live(entry) = self.slots.get(at)? else { return None };
        let tomb = Slot::Tomb(entry.meta.stream.clone(), entry.meta.index, reason);
        let Slot::Live(entry) = std::mem::replace(&mut self.slots[at], tomb) else { return None };
        self.unlist(entry.ends, seq);
        self.open_ended -= usize::from(entry.open_ended());
        while matches!(self.slots.get(self.leading_tombs), Some(Slot::Tomb(..))) {
            self.leading_tombs += 1;
        }
        while self.leading_tombs > MAX_LEADING_TOMBS || self.slots.len() > MAX_CHUNKS && self.leading_tombs > 0 {
            self.forget_front();
        }
        Some(entry)
    }

    fn forget_front(&mut self) {
        self.leading_tombs -= 1;
        self.base += 1;
        if let Some(Slot::Tomb(stream, index, Some(_))) = self.slots.pop_front()
            && let Some(known) = self.streams.iter_mut().rev().find(|known| known.id == stream)
        {
            known.forgotten = known.forgotten.max(Some(index));
        }
    }

    /// The number of a chunk's stream in the chain; new streams join at the end.
    pub(super) fn ordinal(&mut self, meta: &ChunkMeta) -> u64 {
        if let Some(at) = self.streams.iter().rposition(|stream| stream.id == meta.stream) {
            return self.streams_base + at as u64;
        }
        if self.streams.len() == MAX_STREAMS {
            self.streams.pop_front();
            self.streams_base += 1;
        }
        self.streams.push_back(Stream {
            tag: tag(&meta.stream),
            id: meta.stream.clone(),
            first: meta.index,
            last: 0,
            forgotten: None,
            shift: 0,
        });
        self.streams_base + self.streams.len() as u64 - 1
    }

    pub(super) fn stream(&self, ordinal: u64) -> Option<&Stream> {
        self.streams.get(usize::try_from(ordinal.checked_sub(self.streams_base)?).ok()?)
    }

    /// The number of the stream with this tag.
    pub(super) fn ordinal_of(&self, tag: StreamTag) -> Option<u64> {
        self.streams_from(0).find(|(_, stream)| stream.tag == tag).map(|(ordinal, _)| ordinal)
    }

    /// The tag of a stream that is remembered.
    pub(super) fn tag_of(&self, id: &StreamId) -> Option<StreamTag> {
        self.streams.iter().rev().find(|stream| stream.id == *id).map(|stream| stream.tag)
    }

    /// The streams from number `from` on.
    pub(super) fn streams_from(&self, from: u64) -> impl Iterator<Item = (u64, &Stream)> {
        let skipped = usize::try_from(from.saturating_sub(self.streams_base)).unwrap_or(usize::MAX);
        (self.streams_base..).zip(&self.streams).skip(skipped)
    }

    /// Puts a chunk on the lane's time axis and returns its end there. The source's clock may
    /// lie: one chunk moves the axis by at most `window`, and a clock that went back goes on
    /// where the axis is.
    pub(super) fn place_in_time(&mut self, meta: &ChunkMeta, ordinal: u64, window: i64) -> i64 {
        let Some(at) = ordinal.checked_sub(self.streams_base).and_then(|at| usize::try_from(at).ok()) else { return 0 };
        let Some(stream) = self.streams.get_mut(at) else { return 0 };
        let onward = meta.index > stream.last;
        stream.first = stream.first.min(meta.index);
        stream.last = stream.last.max(meta.index);
        let ended = meta.ended.unix_ms().saturating_add(stream.shift);
        let newest = *self.newest.get_or_insert(ended);
        let edge = newest.saturating_sub(window);
        if ended < edge && !onward {
            return edge;
        }
        let ends = if ended < edge {
            let length = meta.ended.unix_ms().saturating_sub(meta.started.unix_ms()).clamp(0, window);
            let ends = newest.saturating_add(length);
            stream.shift = ends.saturating_sub(meta.ended.unix_ms());
            ends
        } else {
            ended.min(newest.saturating_add(window))
        };
        self.newest = Some(newest.max(ends));
        ends
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::window::tests::meta;

    fn place(lane: &mut Lane, stream: &str, index: u64, ended_s: i64) -> i64 {
        let meta = meta(stream, index, ended_s, 10);
        let ordinal = lane.ordinal(&meta);
        lane.place_in_time(&meta, ordinal, 120_000) / 1000
    }

    #[test]
    fn a_lying_clock_moves_the_axis_by_one_window_at_most() {
        let mut lane = Lane::default();
        assert_eq!(place(&mut lane, "a", 1, 1000), 1000);
        assert_eq!(place(&mut lane, "a", 2, 999_999), 1120);
        assert_eq!(place(&mut lane, "a", 3, 1004), 1004, "honest times are inside the window again");
    }

    #[test]
    fn a_clock_that_went_back_goes_on_where_the_axis_is() {
        let mut lane = Lane::default();
        assert_eq!(place(&mut lane, "a", 1, 10_000), 10_000);
        assert_eq!(place(&mut lane, "a", 2, 50), 10_002, "chunks last 2 s");
        assert_eq!(place(&mut lane, "a", 3, 52), 10_004);
        assert_eq!(place(&mut lane, "b", 1, 10_006), 10_006, "another stream keeps its own time");
    }

    #[test]
    fn a_late_chunk_is_at_the_edge() {
        let mut lane = Lane::default();
        place(&mut lane, "a", 500, 10_000);
        assert_eq!(place(&mut lane, "a", 3, 50), 10_000 - 120);
    }
}
