//! What contacts are given of a window, case by case.

use super::*;
use crate::frame::{self, kind};
use crate::message;

pub(super) fn meta(stream: &str, index: u64, ended_s: i64, length: u64) -> ChunkMeta {
    let incident = IncidentId::new("i").unwrap();
    let stream = StreamId::new(stream).unwrap();
    ChunkMeta {
        chunk: ChunkRef::of(&incident, &stream, index),
        session: SessionId::new("s").unwrap(),
        variant: Variant::AudioPriority,
        media: Media::Audio,
        index,
        length,
        sha256: Digest([7; 32]),
        started: Timestamp::from_unix_ms(ended_s * 1000 - 2000),
        ended: Timestamp::from_unix_ms(ended_s * 1000),
        stream,
    }
}

#[test]
fn what_is_fetched_is_withdrawn_with_its_word_and_brought_once_when_its_lane_comes_to_it() {
    for joins in [false, true] {
        let mut window = empty();
        let chunk = Arc::new(meta("a", 1, 0, 2));
        let place = window.begin(&chunk, 1, 1, 0, Some(0)).unwrap();
        window.push(place, 0, &[1], Some(0));
        let mut contact = Contact::new(&window, View { lanes: [false, true], streams: None }, Start::Live, 0);
        let poll = |contact: &mut Contact, window: &mut Window| {
            let mut out = Out::default();
            contact.poll(window, 0, &mut out);
            out
        };
        contact.fetch(&window, &chunk.stream, 1).unwrap();
        assert_eq!(json::<message::ChunkBegins>(&poll(&mut contact, &mut window), kind::CHUNK).len(), 1);
        if joins {
            contact.look(View { lanes: [true, true], streams: None }, &window);
            assert!(json::<message::ChunkBegins>(&poll(&mut contact, &mut window), kind::CHUNK).is_empty());
        }
        window.withdraw(place, 1, WithdrawnReason::Stalled);
        let out = poll(&mut contact, &mut window);
        assert_eq!(json::<message::Withdrawn>(&out, kind::WITHDRAWN).len(), 1, "{joins}");
        assert!(json::<message::Omitted>(&out, kind::OMITTED).is_empty(), "{joins}");
    }
}

pub(super) fn json<T: serde::de::DeserializeOwned>(out: &Out, kind: u64) -> Vec<T> {
    let frames = out.frames.iter().flat_map(|frame| frame::split_message(frame.clone()).unwrap());
    frames.filter(|frame| frame.kind == kind).map(|frame| frame::control(&frame).unwrap()).collect()
}

pub(super) fn small(window: &mut Window, index: u64, ended_s: i64) -> Place {
    let meta = Arc::new(meta("a", index, ended_s, 1));
    let place = window.begin(&meta, index, index, 0, Some(0)).unwrap();
    window.push(place, 0, &[1], Some(0));
    window.complete(place, Some(0));
    place
}

pub(super) fn empty() -> Window {
    let rules =
        Rules { window_ms: 10_000_000, max_chunk: 100, silent_ms: 15_000, patience_ms: 30_000, node: "node".into() };
    Window::new(rules, IncidentId::new("i").unwrap(), 1)
}

pub(super) fn contact(window: &Window) -> Contact {
    Contact::new(window, View { lanes: [true, true], streams: None }, Start::Oldest, 0)
}

#[test]
fn behind_the_events_the_state_of_everything_seen_is_told() {
    let mut window = empty();
    for index in 1..=5 {
        small(&mut window, index, 0);
    }
    let mut contact = contact(&window);
    contact.poll(&mut window, 0, &mut Out::default());
    for round in 0..MAX_EVENTS {
        let state = if round % 2 == 0 { ContactState::Unsettled } else { ContactState::NearLiveUnconfirmed };
        window.set_state(meta("a", 1, 0, 1).chunk, state, None, None);
    }
    window.set_state(meta("a", 2, 0, 1).chunk, ContactState::Confirmed, None, None);
    let mut out = Out::default();
    contact.poll(&mut window, 0, &mut out);
    let states: Vec<message::ContactChunkState> = json(&out, kind::STATE);
    let told: Vec<_> = states.iter().map(|state| (state.index, state.state)).collect();
    let waiting = ContactState::NearLiveUnconfirmed;
    assert_eq!(told, [(1, waiting), (2, ContactState::Confirmed), (3, waiting), (4, waiting), (5, waiting)]);
    out = Out::default();
    contact.poll(&mut window, 0, &mut out);
    assert!(out.frames.is_empty());
}

#[test]
fn of_many_changes_the_latest_is_told() {
    let mut window = empty();
    small(&mut window, 1, 0);
    let mut contact = contact(&window);
    contact.poll(&mut window, 0, &mut Out::default());
    for state in [ContactState::Unsettled, ContactState::NearLiveUnconfirmed, ContactState::Confirmed] {
        window.set_state(meta("a", 1, 0, 1).chunk, state, None, None);
    }
    for backwards in [ContactState::Rejected, ContactState::NearLiveUnconfirmed, ContactState::Withdrawn] {
        assert!(!window.set_state(meta("a", 1, 0, 1).chunk, backwards, None, None));
    }
    let mut out = Out::default();
    contact.poll(&mut window, 0, &mut out);
    let states: Vec<message::ContactChunkState> = json(&out, kind::STATE);
    assert_eq!(states.iter().map(|state| state.state).collect::<Vec<_>>(), [ContactState::Confirmed]);
}

#[test]
fn more_chunks_than_a_lane_follows_are_named_to_who_comes_late() {
    let mut window = empty();
    let mut contact = contact(&window);
    let all = MAX_CHUNKS as u64 + 600;
    for index in 1..=all {
        small(&mut window, index, 0);
    }
    let followed = window.lanes[0].end() - window.lanes[0].base;
    assert!(followed <= MAX_CHUNKS as u64);
    let mut named = Vec::new();
    loop {
        let mut out = Out::default();
        contact.poll(&mut window, 0, &mut out);
        if out.frames.is_empty() {
            break;
        }
        let omitted: Vec<message::Omitted> = json(&out, kind::OMITTED);
        named.extend(omitted.iter().flat_map(|omitted| omitted.from..=omitted.to));
        named.extend(json::<message::ChunkBegins>(&out, kind::CHUNK).iter().map(|chunk| chunk.index));
    }
    assert_eq!(named, (1..=all).collect::<Vec<_>>());
}

#[test]
fn streams_have_a_bound_too() {
    let mut window = empty();
    for stream in 0..MAX_STREAMS + 50 {
        let meta = Arc::new(meta(&format!("s{stream}"), 1, 0, 1));
        window.begin(&meta, 1, 1, 0, Some(0)).unwrap();
    }
    assert_eq!(window.lanes[0].streams_from(0).count(), MAX_STREAMS);
    let mut out = Out::default();
    contact(&window).poll(&mut window, 0, &mut out);
    assert!(json::<message::StreamJoins>(&out, kind::STREAM).len() >= MAX_OPEN, "as many as can be begun at once");
}

#[test]
fn a_record_that_gave_way_is_still_named() {
    let mut window = empty();
    let places = [1, 2, 3].map(|index| small(&mut window, index, 0));
    assert!(window.evict(places[1], Cause::Memory), "its bytes");
    assert!(window.evict(places[1], Cause::Memory), "its record");
    assert!(!window.evict(places[1], Cause::Memory));
    assert_eq!(window.place(meta("a", 2, 0, 1).chunk), None);
    let mut out = Out::default();
    contact(&window).poll(&mut window, 0, &mut out);
    let omitted: Vec<message::Omitted> = json(&out, kind::OMITTED);
    assert_eq!(omitted.iter().map(|omitted| (omitted.from, omitted.to)).collect::<Vec<_>>(), [(2, 2)]);
    assert_eq!(json::<message::ChunkBegins>(&out, kind::CHUNK).len(), 2);
}

fn preview(window: &mut Window, index: u64, now: u64) {
    let mut meta = meta("p", index, 2 * index as i64, 1);
    meta.variant = Variant::LivePreview;
    let place = window.begin(&Arc::new(meta), index, 100 + index, 0, Some(now)).unwrap();
    window.push(place, 0, &[1], Some(now));
    window.complete(place, Some(now));
}

#[test]
fn pictures_that_come_too_late_are_left_out_for_the_newest_and_sound_is_not() {
    let mut window = empty();
    preview(&mut window, 1, 0);
    let mut contact = contact(&window);
    for index in 2..=5 {
        preview(&mut window, index, index * 1000);
        small(&mut window, index, 2 * index as i64);
    }
    let now = 5000 + LATE_MS - 1;
    let mut out = Out::default();
    contact.poll(&mut window, now, &mut out);
    let omitted: Vec<message::Omitted> = json(&out, kind::OMITTED);
    assert_eq!(omitted.len(), 1, "one word for all of them");
    assert_eq!((omitted[0].from, omitted[0].to, omitted[0].reason), (2, 4, message::OmittedReason::Slow));
    let shown = |out: &Out, lane: Variant| -> Vec<u64> {
        let chunks: Vec<message::ChunkBegins> = json(out, kind::CHUNK);
        chunks.into_iter().filter(|chunk| chunk.variant == lane).map(|chunk| chunk.index).collect()
    };
    assert_eq!(shown(&out, Variant::LivePreview), [1, 5], "what was asked for of before, and the newest");
    assert_eq!(shown(&out, Variant::AudioPriority), [2, 3, 4, 5]);
    // It can still be asked for.
    contact.fetch(&window, &StreamId::new("p").unwrap(), 3).unwrap();
    let mut out = Out::default();
    contact.poll(&mut window, now, &mut out);
    assert_eq!(shown(&out, Variant::LivePreview), [3]);

    // One that is late and alone is shown: nothing newer is to be seen.
    preview(&mut window, 6, now);
    let mut out = Out::default();
    contact.poll(&mut window, now + 2 * LATE_MS, &mut out);
    assert_eq!(shown(&out, Variant::LivePreview), [6]);
}
