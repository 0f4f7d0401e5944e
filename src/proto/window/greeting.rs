//! Where a contact begins.

use super::contact::{Before, Contact, Position, UNTOLD, View};
use super::entry::Entry;
use super::lane::Lane;
use super::out::Out;
use super::{LANES, Window};
use crate::cursor::{Cursor, Delivered, LaneCursor, Owed};
use crate::frame::{encode_json, kind};
use crate::id::StreamId;
use crate::message::{Omitted, OmittedReason, Watching};

/// Where a contact wants to begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    /// With the newest chunk of each lane.
    Live,
    /// With the oldest.
    Oldest,
    /// At a chunk; the other lane at the same time.
    At(StreamId, u64),
    /// After what a cursor says was delivered.
    Cursor(Cursor),
}

impl Contact {
    /// A contact at its beginning. Its first poll hands out `WATCHING` and how the device is.
    #[must_use]
    pub fn new(window: &Window, view: View, start: Start, now: u64) -> Self {
        let mut contact = Self {
            lanes: [Position::default(), Position::default()],
            event: window.events.end(),
            quiet: UNTOLD,
            told: None,
            fetches: std::collections::VecDeque::new(),
            promised: Vec::new(),
            pending: Vec::new(),
            left_out: Vec::new(),
            view,
        };
        let body = Watching { node: window.rules.node.to_string(), window_start: window.oldest_start(&contact.view) };
        contact.pending.push(encode_json(kind::WATCHING, &body));
        match start {
            Start::Live => contact.begin_at(window, |window, view, lane| window.live(lane, view)),
            Start::Oldest => contact.begin_at(window, |window, view, lane| window.oldest(lane, view)),
            Start::At(stream, index) => contact.begin_at_chunk(window, &stream, index),
            Start::Cursor(cursor) => contact.resume(window, &cursor),
        }
        let mut out = Out::default();
        contact.tell_standing_capture(window, now, &mut out);
        contact.pending.append(&mut out.frames);
        contact
    }

    fn begin_at(&mut self, window: &Window, place: impl Fn(&Window, &View, usize) -> u64) {
        for lane in 0..LANES.len() {
            if self.view.lanes[lane] {
                self.lanes[lane].join(place(window, &self.view, lane), &window.lanes[lane]);
            }
        }
    }

    fn begin_at_chunk(&mut self, window: &Window, stream: &StreamId, index: u64) {
        let found = (0..LANES.len()).find_map(|lane| Some((lane, window.lanes[lane].find(stream, index)?)));
        let known = |lane: usize| window.lanes[lane].streams_from(0).any(|(_, known)| known.id == *stream);
        let Some((lane, (seq, first))) = found else {
            // A known stream that has not come so far yet: its next chunk is the one, or none.
            if (0..LANES.len()).any(known) {
                return self.begin_at(window, |window, view, lane| {
                    if known(lane) { window.lanes[lane].end() } else { window.live(lane, view) }
                });
            }
            self.leave_out(stream, index, index);
            return self.begin_at(window, |window, view, lane| window.oldest(lane, view));
        };
        if first > index {
            self.leave_out(stream, index, first - 1);
        }
        let starts = window.lanes[lane].entry(seq).map(|entry| {
            let length = entry.meta.ended.unix_ms().saturating_sub(entry.meta.started.unix_ms());
            entry.ends.saturating_sub(length)
        });
        self.begin_at(window, |window, view, other| match starts {
            _ if other == lane => seq,
            Some(starts) => {
                let mut entries = window.lanes[other].entries();
                let at = entries.find(|(_, entry)| entry.held() && entry.ends > starts);
                at.map_or_else(|| window.lanes[other].end(), |(seq, _)| seq)
            }
            None => window.oldest(other, view),
        });
    }

    fn leave_out(&mut self, stream: &StreamId, from: u64, to: u64) {
        if self.view.allows(stream) {
            let omitted = Omitted { stream: stream.clone(), from, to, reason: OmittedReason::Evicted };
            self.left_out.push((omitted.reason, to - from + 1));
            self.pending.push(encode_json(kind::OMITTED, &omitted));
        }
    }

    fn resume(&mut self, window: &Window, cursor: &Cursor) {
        let here = cursor.instance == window.instance;
        for lane in 0..LANES.len() {
            let (there, shown) = (&window.lanes[lane], self.view.lanes[lane]);
            let position = match &cursor.lanes[lane] {
                Some(at) if here && at.start <= at.next && at.next <= there.end() => Position {
                    start: at.start,
                    next: at.next,
                    redo: at.unfinished.iter().copied().filter(|_| shown).collect(),
                    had: at
                        .delivered
                        .iter()
                        .filter_map(|had| Some((there.ordinal_of(had.stream)?, had.clone())))
                        .collect(),
                    before: before(at, here),
                    ..Position::default()
                },
                // Nothing is known of it here; it begins anew when it is asked for.
                _ if !shown => continue,
                Some(at) => elsewhere(there, at),
                // The lane was not watched: nothing of it was delivered.
                None => Position { start: window.live(lane, &self.view), ..Position::default() },
            };
            let start = position.start;
            self.lanes[lane] = position;
            self.lanes[lane].join(start, there);
        }
        if here && cursor.event <= window.events.end() {
            self.event = cursor.event;
        }
    }
}

/// A place that speaks of another window: read by the streams' hashes.
fn elsewhere(there: &Lane, at: &LaneCursor) -> Position {
    Position { start: there.base, before: before(at, false), ..Position::default() }
}

/// What a contact had when it came; `here`: by this window's own word.
fn before(at: &LaneCursor, here: bool) -> Option<Box<Before>> {
    let owed = |had: &Delivered| if here { had.owed } else { Owed::All };
    let streams: Vec<_> = at.delivered.iter().map(|had| Delivered { owed: owed(had), ..had.clone() }).collect();
    (!streams.is_empty()).then(|| Box::new(Before { streams, here, followed: None, up_to_date: here }))
}

impl Window {
    /// The newest chunk of a lane of which a part can be shown, or else the newest that will be; its end if there is
    /// none.
    pub(super) fn live(&self, lane: usize, view: &View) -> u64 {
        let held = |entry: &Entry| entry.held() && view.allows(&entry.meta.stream);
        let newest = |is: &dyn Fn(&Entry) -> bool| self.lanes[lane].entries().rev().find(|(_, entry)| is(entry));
        let newest = newest(&|entry| held(entry) && entry.shows()).or_else(|| newest(&held));
        newest.map_or_else(|| self.lanes[lane].end(), |(seq, _)| seq)
    }

    fn oldest(&self, lane: usize, view: &View) -> u64 {
        let mut entries = self.lanes[lane].entries();
        let oldest = entries.find(|(_, entry)| entry.held() && view.allows(&entry.meta.stream));
        oldest.map_or_else(|| self.lanes[lane].end(), |(seq, _)| seq)
    }

    fn oldest_start(&self, view: &View) -> Option<crate::offer::Timestamp> {
        let lanes = (0..LANES.len()).filter(|lane| view.lanes[*lane]);
        let oldest = lanes.filter_map(|lane| self.lanes[lane].entry(self.oldest(lane, view)));
        oldest.min_by_key(|entry| entry.ends).map(|entry| entry.meta.started.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{contact, empty, json, meta, small};
    use super::super::{Out, Rules};
    use super::*;
    use crate::id::IncidentId;
    use crate::message;
    use crate::state::ContactState;

    #[test]
    fn a_lane_that_was_left_before_a_drop_is_not_shown_again() {
        let mut window = empty();
        for index in 1..=3 {
            small(&mut window, index, 0);
        }
        let view = |sound| View { lanes: [sound, true], streams: None };
        let begun = |contact: &mut Contact, window: &mut Window| {
            let mut out = Out::default();
            contact.poll(window, 0, &mut out);
            let chunks: Vec<message::ChunkBegins> = json(&out, kind::CHUNK);
            chunks.into_iter().map(|chunk| chunk.index).collect::<Vec<_>>()
        };
        let mut before = contact(&window);
        assert_eq!(begun(&mut before, &mut window), [1, 2, 3]);
        before.look(view(false), &window);
        let cursor = Cursor::decode(&before.cursor(&window)).unwrap();
        let mut back = Contact::new(&window, view(false), Start::Cursor(cursor), 0);
        assert_eq!(begun(&mut back, &mut window), [0; 0]);
        back.look(view(true), &window);
        assert_eq!(begun(&mut back, &mut window), [0; 0], "it had all of it");
        small(&mut window, 4, 0);
        assert_eq!(begun(&mut back, &mut window), [4]);
    }

    #[test]
    fn whoever_comes_live_begins_with_what_has_come_and_not_with_what_is_only_offered() {
        let mut window = empty();
        let offered = std::sync::Arc::new(meta("a", 3, 0, 100));
        let begin = |window: &mut Window, owner| window.begin(&offered, 3, owner, 0, Some(0)).unwrap();
        let live = |window: &mut Window| {
            let mut out = Out::default();
            let view = View { lanes: [true, true], streams: None };
            Contact::new(window, view, Start::Live, 0).poll(window, 0, &mut out);
            json::<message::ChunkBegins>(&out, kind::CHUNK).first().map(|chunk| chunk.index)
        };
        let place = begin(&mut window, 3);
        assert_eq!(live(&mut window), Some(3), "there is nothing else");
        let mut window = empty();
        small(&mut window, 1, 0);
        small(&mut window, 2, 0);
        let there = begin(&mut window, 3);
        assert_ne!(place, there);
        assert_eq!(live(&mut window), Some(2));
        window.push(there, 0, &[1], Some(0));
        assert_eq!(live(&mut window), Some(3));
    }

    #[test]
    fn a_verdict_that_came_before_a_contact_of_another_window_is_told() {
        let mut before = empty();
        for index in 1..=3 {
            small(&mut before, index, 0);
        }
        let mut there = contact(&before);
        there.poll(&mut before, 0, &mut Out::default());
        let cursor = Cursor::decode(&there.cursor(&before)).unwrap();

        // After a restart the last two are shown again, and one is confirmed before the contact is back.
        let rules = Rules {
            window_ms: 10_000_000,
            max_chunk: 100,
            silent_ms: 15_000,
            patience_ms: 30_000,
            node: "node".into(),
        };
        let mut window = Window::new(rules, IncidentId::new("i").unwrap(), 2);
        small(&mut window, 2, 0);
        small(&mut window, 3, 0);
        window.set_state(meta("a", 2, 0, 1).chunk, ContactState::Confirmed, None, None);
        let mut back = Contact::new(&window, View { lanes: [true, true], streams: None }, Start::Cursor(cursor), 0);
        let mut told = Vec::new();
        let mut poll = |window: &mut Window| {
            let mut out = Out::default();
            back.poll(window, 0, &mut out);
            assert!(json::<message::ChunkBegins>(&out, kind::CHUNK).is_empty(), "nothing is delivered twice");
            told.extend(json(&out, kind::STATE).into_iter().map(|state: message::ContactChunkState| state.index));
        };
        poll(&mut window);
        window.set_state(meta("a", 3, 0, 1).chunk, ContactState::Confirmed, None, None);
        poll(&mut window);
        assert_eq!(told, [2, 3]);
    }
}
