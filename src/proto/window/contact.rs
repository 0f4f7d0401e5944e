//! A contact's place in a window, and what it is given next.
//!
//! A contact costs its place: two lanes of at most [`MAX_OPEN`] chunks begun and not finished,
//! and at most [`MAX_FETCHES`] chunks asked for again. A poll costs what it hands out.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;

use super::entry::Entry;
use super::events::{Event, Place};
use super::lane::{Lane, StreamTag};
use super::out::Out;
use super::{ChunkMeta, LANES, SETTLE_MS, Window};
use crate::cursor::{Cursor, Delivered, LaneCursor, MAX_DELIVERED, MAX_UNFINISHED, Owed};
use crate::frame::kind;
use crate::id::StreamId;
use crate::message::{CaptureEvent, CaptureWord, Fetch, OmittedReason, Sign};

/// Chunks of a lane that a contact has begun and not finished.
pub const MAX_OPEN: usize = MAX_UNFINISHED;
/// Chunks asked for again that wait to be sent.
pub const MAX_FETCHES: usize = 16;

/// Answers to a contact that wait until it takes something: 64 KiB at most. One that asks on
/// without reading is let go.
pub(super) const MAX_PENDING: usize = 256;

/// What a contact may see.
#[derive(Debug, Clone)]
pub struct View {
    /// Which lanes, in the order of [`LANES`].
    pub lanes: [bool; 2],
    /// Which streams; `None`: all.
    pub streams: Option<Vec<StreamId>>,
}

impl View {
    pub(super) fn allows(&self, stream: &StreamId) -> bool {
        self.streams.as_ref().is_none_or(|streams| streams.contains(stream))
    }

    fn shows(&self, lane: usize, stream: &StreamId) -> bool {
        self.lanes[lane] && self.allows(stream)
    }
}

/// Nothing was said of the device yet.
pub(super) const UNTOLD: u64 = u64::MAX;

/// A contact.
pub struct Contact {
    pub(super) view: View,
    pub(super) lanes: [Position; 2],
    pub(super) event: u64,
    /// How long the device was quiet when this contact last heard of it, in steps; at first [`UNTOLD`].
    pub(super) quiet: u64,
    /// The last word it was told of the device.
    pub(super) told: Option<CaptureWord>,
    pub(super) fetches: VecDeque<Open>,
    /// What was asked for again and comes with its lane, as long as that is shown.
    pub(super) promised: Vec<Open>,
    /// Answers that wait for the next poll.
    pub(super) pending: Vec<Bytes>,
    /// Chunks left out that are still to be counted.
    pub(super) left_out: Vec<(OmittedReason, u64)>,
}

/// A place in a lane.
#[derive(Default)]
pub(super) struct Position {
    pub(super) start: u64,
    pub(super) next: u64,
    /// The lane's end when the contact came to it: what began before is a replay. `None`: it never
    /// came.
    pub(super) joined: Option<u64>,
    pub(super) open: Vec<Open>,
    /// Chunks before `next` to begin again, after a resume.
    pub(super) redo: VecDeque<u64>,
    /// The streams announced: from, and up to but without.
    pub(super) streams: Option<(u64, u64)>,
    /// What it was told to the end, of the last streams in the order of their numbers.
    pub(super) had: Vec<(u64, Delivered)>,
    /// What it had when it came, where it had anything.
    pub(super) before: Option<Box<Before>>,
}

impl Position {
    /// Goes to `at`, never back.
    pub(super) fn join(&mut self, at: u64, lane: &Lane) {
        if self.joined.is_none() {
            self.start = at;
            if self.had.is_empty() {
                self.had = lane.delivered_before(at);
            }
        }
        self.next = self.next.max(at);
        self.joined = Some(lane.end());
    }

    /// What it had of this chunk's stream; `None`: that is too far back.
    pub(super) fn had_of(&mut self, entry: &Entry) -> Option<&mut Delivered> {
        self.had_at(entry.ordinal, entry.tag, entry.meta.index)
    }

    /// What it had of a stream, which begins with this index if it had nothing.
    pub(super) fn had_at(&mut self, ordinal: u64, tag: StreamTag, first: u64) -> Option<&mut Delivered> {
        if let Some(at) = self.had.iter().position(|(_, had)| had.stream == tag) {
            return Some(&mut self.had[at].1);
        }
        let had = self.brought(tag).cloned().unwrap_or_else(|| Delivered::from(tag, first));
        let at = self.had.partition_point(|(other, _)| *other < ordinal);
        self.had.insert(at, (ordinal, had));
        let over = self.had.len() > MAX_DELIVERED;
        self.had.drain(..usize::from(over));
        self.had.get_mut(at.checked_sub(usize::from(over))?).map(|(_, had)| had)
    }

    /// What it has of a stream, wherever that came from.
    pub(super) fn brought(&self, tag: StreamTag) -> Option<&Delivered> {
        let before = self.before.iter().flat_map(|before| &before.streams);
        self.had.iter().map(|(_, had)| had).chain(before).find(|had| had.stream == tag)
    }

    /// Whether another window brought what is no more than a name here.
    pub(super) fn had_elsewhere(&self, lane: &Lane, stream: &StreamId, index: u64) -> bool {
        let Some(before) = self.before.as_ref().filter(|before| !before.here) else { return false };
        let tag = lane.tag_of(stream);
        before.streams.iter().any(|had| Some(had.stream) == tag && had.has(index))
    }

    /// What was delivered, for another connection.
    fn delivered(&self) -> Vec<Delivered> {
        let before = || self.before.iter().flat_map(|before| &before.streams);
        let here = |tag: StreamTag| self.had.iter().any(|(_, had)| had.stream == tag);
        let mut all: Vec<Delivered> = before().filter(|had| !here(had.stream)).cloned().collect();
        all.extend(self.had.iter().map(|(_, had)| {
            let owed = before().find(|before| before.stream == had.stream).map_or(Owed::Nothing, |before| before.owed);
            Delivered { owed, ..had.clone() }
        }));
        all.drain(..all.len().saturating_sub(MAX_DELIVERED));
        all
    }
}

/// What a contact had when it came.
pub(super) struct Before {
    pub(super) streams: Vec<Delivered>,
    /// By this window's own word: what it had is told by the places, and only holes are to be named.
    pub(super) here: bool,
    /// The number of the last stream that follows them, of those whose holes it was told.
    pub(super) followed: Option<u64>,
    /// The first chunk that began after it came was looked at: from then on it sees all streams begin.
    pub(super) up_to_date: bool,
}

pub(super) struct Open {
    pub(super) place: Place,
    pub(super) meta: Arc<ChunkMeta>,
    /// Its next frame, and how much of that went already.
    pub(super) frame: usize,
    pub(super) at: usize,
    /// Its `CHUNK` was handed out.
    pub(super) begun: bool,
}

impl Open {
    pub(super) fn new(place: Place, meta: &Arc<ChunkMeta>) -> Self {
        Self { place, meta: Arc::clone(meta), frame: 0, at: 0, begun: false }
    }
}

impl Contact {
    /// Hands out what is next: control, then `audio_priority`, then `live_preview`, then what was
    /// asked for again.
    pub fn poll(&mut self, window: &mut Window, now: u64, out: &mut Out) {
        out.frames.append(&mut self.pending);
        self.read_events(window, now, out);
        self.tell_sign(window, now, out);
        for lane in 0..LANES.len() {
            if self.view.lanes[lane] && !out.control_only && !out.held[lane] {
                self.fill(lane, window, now, out);
            }
        }
        if !out.control_only {
            self.refetch(window, out);
        }
        out.counts.omitted.append(&mut self.left_out);
    }

    /// Whether the recording is over and nothing more will come of it.
    #[must_use]
    pub fn settled(&self, window: &Window, now: u64) -> bool {
        let lane_settled = |lane: usize| {
            let (here, there) = (&self.lanes[lane], &window.lanes[lane]);
            !self.view.lanes[lane]
                || here.next >= there.end() && here.open.is_empty() && here.redo.is_empty() && there.open_ended == 0
        };
        window.capture == Some(CaptureWord::Ended)
            && window.last_sign.is_none_or(|sign| now >= sign.saturating_add(SETTLE_MS))
            && self.event >= window.events.end()
            && self.fetches.is_empty()
            && (0..LANES.len()).all(lane_settled)
    }

    /// When [`Contact::settled`] should be asked again, if only time is missing.
    #[must_use]
    pub fn settles_at(&self, window: &Window) -> Option<u64> {
        let sign = window.last_sign.filter(|_| window.capture == Some(CaptureWord::Ended))?;
        self.settled(window, u64::MAX).then(|| sign.saturating_add(SETTLE_MS))
    }

    /// Another view from now on. A lane that joins begins with its newest chunk, or where the
    /// contact left it if that is later. What was asked for again comes whether its lane is shown or not.
    pub fn look(&mut self, view: View, window: &Window) {
        for lane in 0..LANES.len() {
            if self.view.lanes[lane] && !view.lanes[lane] {
                self.keep_promises(lane, window);
            }
            let here = &mut self.lanes[lane];
            here.open.retain(|open| view.allows(&open.meta.stream));
            if view.lanes[lane] && !self.view.lanes[lane] {
                here.join(window.live(lane, &view), &window.lanes[lane]);
            } else if !view.lanes[lane] {
                here.open.clear();
                here.redo.clear();
            }
        }
        self.fetches.retain(|open| view.allows(&open.meta.stream));
        self.view = view;
    }

    /// Where it is, for another connection to go on.
    #[must_use]
    pub fn cursor(&self, window: &Window) -> String {
        let lane = |lane: usize| {
            let here = &self.lanes[lane];
            let unfinished = here.open.iter().map(|open| open.place.seq).chain(here.redo.iter().copied()).collect();
            let delivered = here.delivered();
            here.joined.map(|_| LaneCursor { start: here.start, next: here.next, unfinished, delivered })
        };
        Cursor { instance: window.instance, event: self.event, lanes: [lane(0), lane(1)] }.encode()
    }

    /// The handles of the chunks that it was told of and is still to be brought, on whichever lanes.
    #[must_use]
    pub fn bringing(&self, window: &Window) -> Vec<u64> {
        let open = self.lanes.iter().flat_map(|lane| &lane.open).chain(&self.fetches).filter(|open| open.begun);
        let entries = open.filter_map(|open| window.lanes[open.place.lane].entry(open.place.seq));
        entries.map(|entry| entry.handle).collect()
    }

    /// Whether it was told of a chunk's beginning, or that it is left out.
    fn saw(&self, place: Place) -> bool {
        let here = &self.lanes[place.lane];
        self.view.lanes[place.lane] && (here.start..here.next).contains(&place.seq) && !here.redo.contains(&place.seq)
    }

    fn read_events(&mut self, window: &mut Window, now: u64, out: &mut Out) {
        let end = window.events.end();
        if self.event < window.events.base() {
            self.resync(window, now, out);
        } else {
            for number in self.event..end {
                match window.events.get(number) {
                    Some(Event::Changed(place)) => self.changed(place, Some(number), window, out),
                    Some(Event::Capture(word, last_sign)) => self.tell_capture(word, last_sign, window, out),
                    Some(Event::Completed(_)) | None => {}
                }
            }
        }
        self.event = end;
    }

    /// Tells the state of everything it has seen, after it fell behind the events.
    fn resync(&mut self, window: &mut Window, now: u64, out: &mut Out) {
        for lane in 0..LANES.len() {
            let from = self.lanes[lane].start.max(window.lanes[lane].base);
            for seq in from..self.lanes[lane].next {
                self.changed(Place { lane, seq }, None, window, out);
            }
        }
        let back = self.told.is_some_and(|word| word != CaptureWord::Back);
        if window.capture.is_none() && back {
            self.tell_capture(CaptureWord::Back, window.since_sign(now), window, out);
        }
        self.tell_standing_capture(window, now, out);
    }

    /// A chunk changed with this event; of several, the latest speaks for all.
    fn changed(&mut self, place: Place, event: Option<u64>, window: &mut Window, out: &mut Out) {
        // What it fetches it was told of too, wherever its lane began.
        let fetched = |open: &Open| open.place == place && open.begun;
        if !self.saw(place) && !self.fetches.iter().any(fetched) {
            return;
        }
        let Some(entry) = window.lanes[place.lane].entry_mut(place.seq) else { return };
        let latest = window.names.get(&entry.meta.chunk) == Some(&place);
        if event.is_some_and(|number| number != entry.changed) || !self.view.allows(&entry.meta.stream) {
            return;
        }
        let frame = entry.change();
        if entry.withdrawn.is_some() {
            // Another attempt at it is news, unless that was told already.
            if let Some(had) = self.lanes[place.lane].had_of(entry).filter(|_| latest) {
                had.remove(entry.meta.index);
            }
            self.lanes[place.lane].open.retain(|open| open.place != place);
            // One of which nothing came yet is named as left out: its handle says nothing to whoever asked.
            self.fetches.retain(|open| open.place != place || !open.begun);
        }
        out.frames.push(frame);
    }

    /// When there will be something to say of the device's quiet.
    #[must_use]
    pub fn sign_due(&self, window: &Window) -> Option<u64> {
        window.quiet_at(self.quiet.saturating_add(1))
    }

    /// `SIGN` to whoever came just now, and when the device has been quiet for one more step, or is no
    /// longer. Silence and the end are told by `CAPTURE`.
    fn tell_sign(&mut self, window: &Window, now: u64, out: &mut Out) {
        let steps = window.quiet_steps(now);
        if steps != self.quiet && window.capture.is_none() && window.last_sign.is_some() {
            let last_sign = if steps == 0 { 0 } else { window.since_sign(now) };
            out.json(kind::SIGN, &Sign { last_sign });
        }
        self.quiet = steps;
    }

    /// `CAPTURE`, if the device is silent or the recording over.
    pub(super) fn tell_standing_capture(&mut self, window: &Window, now: u64, out: &mut Out) {
        if let Some(word) = window.capture {
            self.tell_capture(word, window.since_sign(now), window, out);
        }
    }

    fn tell_capture(&mut self, event: CaptureWord, last_sign: u64, window: &Window, out: &mut Out) {
        let newest = |lane: usize| {
            let mut entries = window.lanes[lane].entries().rev();
            entries.find(|(_, entry)| self.view.shows(lane, &entry.meta.stream)).map(|(_, entry)| entry)
        };
        let newest = (0..LANES.len()).filter_map(newest).max_by_key(|entry| entry.ends);
        let last_chunk = newest.map(|entry| Fetch { stream: entry.meta.stream.clone(), index: entry.meta.index });
        out.json(kind::CAPTURE, &CaptureEvent { event, last_sign, last_chunk });
        self.told = Some(event);
    }
}
