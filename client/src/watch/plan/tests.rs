//! The plan against a relay made of a list, with the real assembly behind it.

use std::collections::{BTreeMap, HashMap};

use proptest::prelude::*;
use waystation_proto::id::{IncidentId, StreamId};
use waystation_proto::message::Cursor;
use waystation_proto::offer::Timestamp;
use waystation_proto::{Digest, Media};

use super::*;
use crate::envelope::{self, Identity};
use crate::keys::GroupKey;
use crate::watch::assembly::Assembly;
use crate::watch::event::Event;

const MAX_CHUNK: u64 = 8 << 20;
const SOUND: Variant = Variant::AudioPriority;
const PICTURE: Variant = Variant::LivePreview;
const NONE: [u64; 0] = [];

fn incident() -> IncidentId {
    IncidentId::new("i").unwrap()
}

fn stream(variant: Variant) -> StreamId {
    StreamId::new(variant.as_str()).unwrap()
}

fn name(variant: Variant, index: u64) -> Name {
    (stream(variant), index)
}

/// A chunk as the relay has it.
#[derive(Clone)]
struct Held {
    begins: ChunkBegins,
    bytes: Bytes,
}

/// Attempt `attempt` of a chunk, sealed.
fn held(variant: Variant, index: u64, attempt: u8) -> Held {
    let media = if variant == SOUND { Media::Audio } else { Media::Video };
    let identity = Identity { incident: incident(), stream: stream(variant), media, index };
    let key = GroupKey::new([5; 32]).stream_key(&identity.stream).unwrap();
    let bytes = envelope::seal(&key, &identity, "test", [attempt; 12], &[attempt; 40]).unwrap();
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &bytes);
    let begins = ChunkBegins {
        handle: 0,
        stream: identity.stream,
        variant,
        media,
        index,
        length: bytes.len() as u64,
        sha256: Digest(digest.as_ref().try_into().unwrap()),
        started: Timestamp::from_unix_ms(0),
        ended: Timestamp::from_unix_ms(1),
        state: ContactState::Arriving,
        replay: false,
    };
    Held { begins, bytes }
}

fn offer(begins: &ChunkBegins) -> Box<Offer> {
    Box::new(Offer {
        incident: incident(),
        stream: begins.stream.clone(),
        index: begins.index,
        media: begins.media,
        started: begins.started.clone(),
        ended: begins.ended.clone(),
        length: begins.length,
        sha256: begins.sha256,
        name: String::new(),
        role: Some(begins.variant),
        group: None,
        segment: None,
        sequence: None,
        source: None,
        clock: None,
        profile: None,
        priority: None,
        attempt: 1,
        sig: None,
    })
}

struct World {
    plan: Plan,
    assembly: Assembly,
    now: Instant,
    /// Requests that are made, by number.
    asked: BTreeMap<u64, Name>,
    events: Vec<Event>,
    frames: Vec<Frame>,
    theirs: u64,
}

impl World {
    /// Nothing of a thousand packets is lost: everything is asked for once.
    fn new() -> Self {
        let mut this = Self {
            plan: Plan::new(MAX_CHUNK),
            assembly: Assembly::new(GroupKey::new([5; 32]), incident(), MAX_CHUNK),
            now: Instant::now(),
            asked: BTreeMap::new(),
            events: Vec::new(),
            frames: Vec::new(),
            theirs: 1000,
        };
        this.plan.loss = 0;
        this
    }

    fn settle(&mut self) {
        while let Some(order) = self.plan.order() {
            match order {
                Order::Ask(number, name) => assert!(self.asked.insert(number, name).is_none(), "numbers are used once"),
                Order::Drop(number) => assert!(self.asked.remove(&number).is_some(), "dropped once"),
            }
        }
        while let Some(frame) = self.plan.frame() {
            self.events.extend(self.assembly.frame(&frame, 0).unwrap());
            self.frames.push(frame);
        }
        self.plan.table.check();
        let pictures = self.asked.values().filter(|name| name.0 == stream(PICTURE)).count();
        assert!(self.asked.len() <= MAX_ASKED && pictures <= MAX_ASKED - KEPT_FOR_SOUND);
        assert!(self.plan.table.len() <= MAX_TOLD);
        let bad = self.events.iter().find(|event| matches!(event, Event::Bad { .. }));
        assert_eq!(bad, None);
    }

    fn tell(&mut self, kind: u64, body: &impl serde::Serialize) {
        let body = serde_json::to_vec(body).unwrap().into();
        self.plan.told(Frame { kind, body }, self.now).unwrap();
        self.settle();
    }

    /// Tells of a chunk; the relay's handle.
    fn begins(&mut self, held: &Held, replay: bool) -> u64 {
        self.theirs += 1;
        self.tell(kind::CHUNK, &ChunkBegins { handle: self.theirs, replay, ..held.begins.clone() });
        self.theirs
    }

    fn heard(&mut self, request: u64, news: News) {
        self.plan.heard(request, news, self.now).map_err(|Broken| "broken").unwrap();
        self.settle();
    }

    /// Answers a request from its head to its end.
    fn answer(&mut self, request: u64, held: &Held) {
        self.heard(request, News::Begins(offer(&held.begins), Some(0)));
        self.heard(request, News::Bytes(0, held.bytes.clone()));
        self.heard(request, News::Whole);
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.plan.due(self.now);
        self.settle();
    }

    /// Requests for a chunk.
    fn requests(&self, variant: Variant, index: u64) -> Vec<u64> {
        self.asked.iter().filter(|(_, of)| **of == name(variant, index)).map(|(number, _)| *number).collect()
    }

    fn whole(&self) -> Vec<(Variant, u64)> {
        let whole = |event: &Event| match event {
            Event::Complete(whole) => Some((whole.label.variant, whole.label.index)),
            _ => None,
        };
        self.events.iter().filter_map(whole).collect()
    }

    fn omitted(&self) -> Vec<(Option<Variant>, OmittedReason)> {
        let omitted = |event: &Event| match event {
            Event::Omitted { variant, reason, .. } => Some((*variant, *reason)),
            _ => None,
        };
        self.events.iter().filter_map(omitted).collect()
    }

    /// The order of what is said of chunks and of cursors.
    fn kinds(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.frames).into_iter().map(|frame| frame.kind).collect()
    }
}

fn cursor(text: &str) -> Cursor {
    Cursor { cursor: text.into() }
}

#[test]
fn a_late_contact_gets_every_chunk_of_the_window() {
    let mut world = World::new();
    let mut window = HashMap::new();
    for index in 1..=75 {
        for variant in [SOUND, PICTURE] {
            let held = held(variant, index, 1);
            let handle = world.begins(&held, true);
            world.tell(kind::COMPLETE, &Complete { handle });
            window.insert(name(variant, index), held);
        }
    }
    world.tell(kind::CURSOR, &cursor("all"));
    let (mut sound, mut peak) = (0, 0);
    // The next one of each lane is asked for too, and waits.
    while let Some((request, of)) = world.asked.iter().find(|(_, of)| of.1 <= 75).map(|(n, of)| (*n, of.clone())) {
        assert!(!world.events.contains(&Event::Cursor("all".into())), "it counts what is not here");
        peak = peak.max(world.asked.len());
        if of.0 == stream(SOUND) {
            sound += 1;
        } else if sound < 75 {
            assert!(world.requests(SOUND, sound + 1).len() == 1, "sound is asked for before pictures are");
        }
        world.answer(request, &window[&of]);
    }
    let mut whole = world.whole();
    whole.sort_by_key(|(variant, index)| (variant.as_str(), *index));
    let all: Vec<_> = [SOUND, PICTURE].into_iter().flat_map(|lane| (1..=75).map(move |index| (lane, index))).collect();
    assert_eq!((whole, world.omitted()), (all, vec![]));
    assert_eq!((peak, world.events.last()), (MAX_ASKED, Some(&Event::Cursor("all".into()))));
}

#[test]
fn sound_does_not_wait_for_pictures_nor_pictures_of_now_for_old_ones() {
    let mut world = World::new();
    for index in 1..=100 {
        world.begins(&held(PICTURE, index, 1), true);
    }
    assert_eq!(world.asked.len(), MAX_ASKED - KEPT_FOR_SOUND);
    world.begins(&held(SOUND, 1, 1), false);
    assert_eq!(world.requests(SOUND, 1).len(), 1, "asked for at once");
    world.begins(&held(PICTURE, 101, 1), false);
    assert_eq!(world.requests(PICTURE, 101), NONE);
    let oldest = world.requests(PICTURE, 1)[0];
    world.answer(oldest, &held(PICTURE, 1, 1));
    assert_eq!(world.requests(PICTURE, 101).len(), 1, "before those of before");
    let next = world.requests(PICTURE, 2)[0];
    world.answer(next, &held(PICTURE, 2, 1));
    assert_eq!(world.requests(PICTURE, 102).len(), 1, "the one that will be, too");
    let next = world.requests(PICTURE, 3)[0];
    world.answer(next, &held(PICTURE, 3, 1));
    let old: Vec<_> = world.asked.values().filter(|of| of.0 == stream(PICTURE) && of.1 <= 100).map(|of| of.1).collect();
    assert_eq!(old, (4..=21).collect::<Vec<_>>(), "the older first");
}

#[test]
fn large_chunks_wait_for_room_where_they_arrive() {
    let mut world = World::new();
    let large = |variant, index| {
        let mut held = held(variant, index, 1);
        held.begins.length = MAX_CHUNK;
        held
    };
    for index in 1..=30 {
        world.begins(&large(PICTURE, index), true);
    }
    let asked = |world: &World| world.asked.values().filter(|of| of.0 == stream(PICTURE) && of.1 <= 30).count();
    assert_eq!(asked(&world), 6, "three quarters of the room");
    world.begins(&large(SOUND, 1), false);
    assert_eq!(world.requests(SOUND, 1).len(), 1);
    // The next one was asked for when it was not known how large it is.
    world.begins(&large(SOUND, 2), false);
    let (next, large) = (world.requests(SOUND, 3)[0], large(SOUND, 3));
    world.heard(next, News::Begins(offer(&large.begins), Some(0)));
    assert_eq!(world.requests(SOUND, 3), NONE, "it waits");
    for gone in 1..=30 {
        let request = world.requests(PICTURE, gone)[0];
        world.heard(request, News::Failed(Failure::Absent));
    }
    assert_eq!(world.omitted(), [(Some(PICTURE), OmittedReason::Evicted); 30]);
    assert_eq!(world.requests(SOUND, 3).len(), 1);
}

#[test]
fn a_chunk_that_is_too_large_is_said_to_be_and_not_asked_for() {
    let mut world = World::new();
    let mut large = held(SOUND, 1, 1);
    large.begins.length = MAX_CHUNK + 1;
    world.plan.told(of(kind::CHUNK, &large.begins), world.now).map_err(|Broken| ()).unwrap();
    world.plan.told(of(kind::CURSOR, &cursor("1")), world.now).map_err(|Broken| ()).unwrap();
    let kinds: Vec<u64> = std::iter::from_fn(|| world.plan.frame()).map(|frame| frame.kind).collect();
    assert_eq!(kinds, [kind::CHUNK, kind::CURSOR]);
    let asked: Vec<_> = std::iter::from_fn(|| world.plan.order()).collect();
    assert_eq!(asked, [Order::Ask(0, name(SOUND, 2))]);
}

fn of(kind: u64, body: &impl serde::Serialize) -> Frame {
    Frame { kind, body: serde_json::to_vec(body).unwrap().into() }
}

#[test]
fn other_bytes_under_a_name_have_another_handle_and_nothing_of_the_old() {
    let mut world = World::new();
    let (first, second, third) = (held(SOUND, 2, 1), held(SOUND, 2, 2), held(SOUND, 2, 3));
    world.begins(&held(SOUND, 1, 1), false);
    // Asked for ahead, answered before it is told of, and told of as something else.
    let early = world.requests(SOUND, 2)[0];
    world.heard(early, News::Begins(offer(&first.begins), Some(0)));
    world.heard(early, News::Bytes(0, first.bytes.slice(..20)));
    world.kinds();
    world.begins(&second, false);
    assert_eq!(world.kinds(), [kind::WITHDRAWN, kind::CHUNK]);
    let asked = world.requests(SOUND, 2);
    assert_eq!((asked.len(), asked.contains(&early)), (1, false));
    // What was heard of the old one meanwhile counts for nothing.
    for news in [News::Bytes(20, first.bytes.slice(20..)), News::Whole, News::Failed(Failure::Absent)] {
        world.heard(early, news);
    }
    assert_eq!(world.kinds(), NONE);
    world.answer(asked[0], &second);
    assert_eq!(world.whole(), [(SOUND, 2)]);
    // The same again is known, something else is not.
    world.begins(&second, false);
    assert_eq!(world.requests(SOUND, 2), NONE);
    world.begins(&third, false);
    let request = world.requests(SOUND, 2)[0];
    world.answer(request, &third);
    assert_eq!(world.whole(), [(SOUND, 2), (SOUND, 2)]);
}

#[test]
fn a_cursor_waits_for_other_bytes_under_a_name_that_it_counts() {
    let mut world = World::new();
    for index in 1..=30 {
        world.begins(&held(PICTURE, index, 1), true);
    }
    world.tell(kind::CURSOR, &cursor("30"));
    world.begins(&held(PICTURE, 30, 2), true);
    while let Some((request, of)) = world.asked.iter().find(|(_, of)| of.1 < 30).map(|(n, of)| (*n, of.clone())) {
        world.answer(request, &held(PICTURE, of.1, 1));
    }
    assert_eq!((world.whole().len(), world.events.contains(&Event::Cursor("30".into()))), (29, false));
    let request = world.requests(PICTURE, 30)[0];
    world.answer(request, &held(PICTURE, 30, 2));
    assert_eq!(world.events.last(), Some(&Event::Cursor("30".into())));
}

#[test]
fn of_two_attempts_the_answer_to_a_later_request_is_the_newer() {
    let mut world = World::new();
    let (first, second) = (held(SOUND, 2, 1), held(SOUND, 2, 2));
    world.begins(&held(SOUND, 1, 1), false);
    let early = world.requests(SOUND, 2)[0];
    let theirs = world.begins(&first, false);
    world.kinds();
    // Made before it was told of: it may be older.
    world.heard(early, News::Begins(offer(&second.begins), Some(0)));
    assert_eq!(world.kinds(), NONE);
    let late = world.requests(SOUND, 2);
    assert!(late.len() == 1 && late[0] != early);
    // Made after.
    world.heard(late[0], News::Begins(offer(&second.begins), Some(0)));
    assert_eq!(world.kinds(), [kind::WITHDRAWN, kind::CHUNK]);
    assert_eq!(world.requests(SOUND, 2), late, "that request goes on");
    world.tell(kind::WITHDRAWN, &Withdrawn { handle: theirs, reason: WithdrawnReason::Superseded });
    world.begins(&second, false);
    assert_eq!(world.kinds(), NONE, "known already");
    world.heard(late[0], News::Bytes(0, second.bytes.clone()));
    world.heard(late[0], News::Whole);
    assert_eq!(world.whole(), [(SOUND, 2)]);
}

#[test]
fn a_cursor_comes_behind_the_word_of_what_it_counts() {
    for (last, word) in [
        (kind::WITHDRAWN, kind::WITHDRAWN),
        (kind::OMITTED, kind::OMITTED),
        (kind::COMPLETE, kind::COMPLETE),
        (0, kind::OMITTED),
    ] {
        let mut world = World::new();
        let held = held(SOUND, 1, 1);
        let handle = world.begins(&held, false);
        world.tell(kind::CURSOR, &cursor("1"));
        let request = world.requests(SOUND, 1)[0];
        let gone = Omitted { stream: stream(SOUND), from: 1, to: 1, reason: OmittedReason::Evicted };
        match last {
            kind::WITHDRAWN => world.tell(last, &Withdrawn { handle, reason: WithdrawnReason::Stalled }),
            kind::OMITTED => world.tell(last, &gone),
            kind::COMPLETE => world.answer(request, &held),
            _ => world.heard(request, News::Failed(Failure::Absent)),
        }
        let kinds: Vec<u64> = world.kinds().into_iter().filter(|kind| *kind != kind::PIECE).collect();
        assert_eq!(kinds, [kind::CHUNK, word, kind::CURSOR]);
    }
}

#[test]
fn the_last_of_all_indexes_has_no_next() {
    let mut world = World::new();
    world.begins(&held(SOUND, u64::MAX, 1), false);
    world.begins(&held(PICTURE, 1, 1), false);
    assert_eq!(world.asked.len(), 3, "the picture, its next, and this");
    let omitted = Omitted { stream: stream(PICTURE), from: 2, to: u64::MAX, reason: OmittedReason::Evicted };
    world.tell(kind::OMITTED, &omitted);
    assert_eq!(world.asked.len(), 2);
}

#[test]
fn a_relay_that_has_no_room_is_asked_again_later_and_for_ever() {
    let mut world = World::new();
    world.begins(&held(SOUND, 1, 1), false);
    let busy = |world: &mut World, after: Option<u64>| {
        let request = world.requests(SOUND, 1)[0];
        world.heard(request, News::Failed(Failure::Busy(after.map(Duration::from_secs))));
        assert_eq!(world.requests(SOUND, 1), NONE);
        let at = world.plan.due_at().unwrap();
        let pause = at - world.now;
        world.pass(pause - Duration::from_millis(1));
        assert_eq!(world.requests(SOUND, 1), NONE);
        world.pass(Duration::from_millis(1));
        assert_eq!(world.requests(SOUND, 1).len(), 1);
        u64::try_from(pause.as_millis()).unwrap()
    };
    let pauses: Vec<u64> = (0..12).map(|_| busy(&mut world, None)).collect();
    assert_eq!(pauses[..4], [250, 500, 1000, 1000]);
    assert!(pauses[4..].iter().all(|pause| *pause == 1000));
    assert_eq!([Some(3), Some(0), Some(3600)].map(|after| busy(&mut world, after)), [3000, 1000, 10_000]);
    let request = world.requests(SOUND, 1)[0];
    world.answer(request, &held(SOUND, 1, 1));
    assert_eq!(world.whole(), [(SOUND, 1)]);
}

#[test]
fn a_copy_that_is_refused_is_no_failure() {
    let mut world = World::new();
    world.plan.loss = THRICE_FROM;
    let sound = held(SOUND, 1, 1);
    world.begins(&sound, false);
    let copies = world.requests(SOUND, 1);
    assert_eq!(copies.len(), 3);
    world.heard(copies[0], News::Begins(offer(&sound.begins), Some(THRICE_FROM)));
    world.heard(copies[1], News::Failed(Failure::Busy(None)));
    world.heard(copies[2], News::Failed(Failure::Absent));
    assert_eq!(world.requests(SOUND, 1), copies[..1]);
    world.heard(copies[0], News::Bytes(0, sound.bytes.clone()));
    world.heard(copies[0], News::Whole);
    assert_eq!((world.whole(), world.omitted()), (vec![(SOUND, 1)], vec![]));
    // The relay has no room: no copies for a while.
    world.begins(&held(SOUND, 5, 1), false);
    assert_eq!(world.requests(SOUND, 5).len(), 1);
    world.pass(ALONE);
    world.begins(&held(SOUND, 9, 1), false);
    assert_eq!(world.requests(SOUND, 9).len(), 3);
}

#[test]
fn the_first_of_several_answers_counts_byte_by_byte() {
    let mut world = World::new();
    world.plan.loss = TWICE_FROM;
    let sound = held(SOUND, 1, 1);
    world.begins(&sound, false);
    let [one, other] = world.requests(SOUND, 1)[..] else { panic!() };
    for request in [one, other] {
        world.heard(request, News::Begins(offer(&sound.begins), None));
    }
    world.heard(one, News::Bytes(0, sound.bytes.slice(..30)));
    world.heard(other, News::Bytes(0, sound.bytes.slice(..50)));
    world.heard(one, News::Bytes(30, sound.bytes.slice(30..40)));
    world.heard(other, News::Bytes(50, sound.bytes.slice(50..)));
    world.heard(other, News::Whole);
    assert_eq!(world.whole(), [(SOUND, 1)]);
    assert!(!world.asked.contains_key(&one), "it is not wanted any more");
}

#[test]
fn what_breaks_off_is_asked_for_five_times() {
    let mut world = World::new();
    world.begins(&held(SOUND, 1, 1), false);
    for pause in [0, 250, 500, 1000] {
        let request = world.requests(SOUND, 1)[0];
        world.heard(request, News::Failed(Failure::Lost));
        assert_eq!(world.plan.due_at(), Some(world.now + Duration::from_millis(pause)));
        world.pass(Duration::from_millis(pause));
    }
    let request = world.requests(SOUND, 1)[0];
    assert!(world.plan.heard(request, News::Failed(Failure::Lost), world.now).is_err());
}

#[test]
fn what_does_not_begin_in_time_is_asked_for_again() {
    let mut world = World::new();
    world.begins(&held(SOUND, 1, 1), false);
    for _ in 0..20 {
        let request = world.requests(SOUND, 2)[0];
        world.pass(Duration::from_secs(120));
        world.heard(request, News::Failed(Failure::Absent));
        world.pass(Duration::ZERO);
    }
    // A relay that does not wait makes no storm.
    for _ in 0..20 {
        let request = world.requests(SOUND, 2)[0];
        world.heard(request, News::Failed(Failure::Absent));
        let pause = world.plan.due_at().unwrap() - world.now;
        world.pass(pause);
    }
    let request = world.requests(SOUND, 2)[0];
    world.heard(request, News::Failed(Failure::Absent));
    assert_eq!(world.plan.due_at(), Some(world.now + Duration::from_secs(1)));
}

#[test]
fn more_than_a_relay_holds_is_left_out_pictures_first() {
    let mut world = World::new();
    let (sound, pictures) = (MAX_TOLD as u64 - 2000, 2500);
    let mut one = held(SOUND, 1, 1);
    for index in 1..=sound {
        one.begins.index = index;
        world.plan.told(of(kind::CHUNK, &one.begins), world.now).map_err(|Broken| ()).unwrap();
    }
    let mut one = held(PICTURE, 1, 1);
    (one.begins.replay, one.begins.handle) = (true, 1);
    for index in 1..=pictures {
        one.begins.index = index;
        world.plan.told(of(kind::CHUNK, &one.begins), world.now).map_err(|Broken| ()).unwrap();
    }
    assert_eq!(world.plan.table.len(), MAX_TOLD);
    let omitted = std::iter::from_fn(|| world.plan.frame()).filter(|frame| frame.kind == kind::OMITTED);
    let omitted: Vec<Omitted> = omitted.map(|frame| frame::control(&frame).unwrap()).collect();
    assert!(omitted.iter().all(|omitted| omitted.stream == stream(PICTURE) && omitted.reason == OmittedReason::Slow));
    // Two are asked for ahead.
    assert_eq!(omitted.len() as u64, sound + pictures + 2 - MAX_TOLD as u64);
    let from: Vec<u64> = omitted.iter().map(|omitted| omitted.from).collect();
    assert_eq!(from, (from[0]..from[0] + from.len() as u64).collect::<Vec<_>>(), "the oldest that waits");
    world.plan.table.check();
}

#[test]
fn how_a_chunk_stands_is_told_behind_its_beginning() {
    let mut world = World::new();
    for index in 1..=30 {
        world.begins(&held(PICTURE, index, 1), true);
    }
    let told = |index, state| ContactChunkState { stream: stream(PICTURE), index, state, receipt: None, error: None };
    world.kinds();
    for state in [ContactState::NearLiveUnconfirmed, ContactState::Unsettled] {
        world.tell(kind::STATE, &told(30, state));
    }
    assert_eq!(world.kinds(), NONE);
    world.tell(kind::STATE, &told(1, ContactState::Unsettled));
    assert_eq!(world.kinds(), [kind::STATE], "that one is on its way");
    while world.requests(PICTURE, 30).is_empty() {
        let request = *world.asked.keys().next().unwrap();
        world.answer(request, &held(PICTURE, world.asked[&request].1, 1));
    }
    let kinds = world.kinds();
    let at = kinds.iter().position(|kind| *kind == kind::STATE).unwrap();
    assert_eq!((kinds[at - 1], kinds[at..].contains(&kind::CHUNK)), (kind::CHUNK, false));
}

#[test]
fn pictures_of_which_nothing_came_are_left_out_for_a_newer_one() {
    let mut world = World::new();
    let pictures: Vec<Held> = (1..=4).map(|index| held(PICTURE, index, 1)).collect();
    world.begins(&pictures[0], false);
    let request = world.requests(PICTURE, 1)[0];
    world.heard(request, News::Begins(offer(&pictures[0].begins), Some(0)));
    world.heard(request, News::Bytes(0, pictures[0].bytes.slice(..10)));
    world.begins(&pictures[1], false);
    world.begins(&pictures[2], false);
    assert_eq!(world.omitted(), [(Some(PICTURE), OmittedReason::Slow)]);
    assert_eq!((world.requests(PICTURE, 1).len(), world.requests(PICTURE, 2).len()), (1, 0));
    // Another attempt at an older one is not newer.
    world.begins(&held(PICTURE, 2, 2), false);
    assert_eq!((world.requests(PICTURE, 3).len(), world.omitted().len()), (1, 1));
}

#[test]
fn the_end_waits_for_what_was_told_unless_the_relay_brings_no_more() {
    for (reason, waits) in [("ended", true), ("capability_expired", false)] {
        let mut world = World::new();
        let chunk = held(SOUND, 1, 1);
        world.begins(&chunk, false);
        world.tell(kind::ENDING, &waystation_proto::message::Ending { reason: reason.into() });
        assert!(world.plan.over() && !world.kinds().contains(&kind::ENDING));
        let request = world.requests(SOUND, 1)[0];
        world.heard(request, News::Failed(Failure::Lost));
        assert_eq!(world.kinds().contains(&kind::ENDING), !waits, "{reason}");
        if waits {
            world.pass(Duration::ZERO);
            let request = world.requests(SOUND, 1)[0];
            world.answer(request, &chunk);
            assert_eq!(world.kinds().last(), Some(&kind::ENDING));
        }
    }
}

/// What happens.
#[derive(Debug, Clone)]
enum Step {
    /// The next chunk of a lane begins.
    Begin {
        sound: bool,
        replay: bool,
        told: bool,
    },
    /// The relay tells of something again, or late.
    Retell(usize),
    /// Another attempt takes a chunk's place.
    Supersede {
        which: usize,
        told: bool,
    },
    Omit(usize),
    Cursor,
    /// A request's answer goes on by so many bytes, or fails.
    Answer(usize, usize),
    Fail(usize, u8),
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (any::<bool>(), any::<bool>(), prop::bool::weighted(0.8))
            .prop_map(|(sound, replay, told)| Step::Begin { sound, replay, told }),
        2 => any::<usize>().prop_map(Step::Retell),
        1 => (any::<usize>(), any::<bool>()).prop_map(|(which, told)| Step::Supersede { which, told }),
        1 => any::<usize>().prop_map(Step::Omit),
        2 => Just(Step::Cursor),
        9 => (any::<usize>(), 1usize..200).prop_map(|(which, bytes)| Step::Answer(which, bytes)),
        2 => (any::<usize>(), 0u8..3).prop_map(|(which, why)| Step::Fail(which, why)),
        2 => (0u64..3000).prop_map(Step::Wait),
    ]
}

/// A relay that tells of its chunks in order, and answers each request with what it has then.
struct Model {
    world: World,
    chunks: Vec<Entry>,
    /// What each request's answer is about, and how far it is.
    answers: HashMap<u64, (Held, usize)>,
    /// Which attempts were told of before each cursor.
    cursors: Vec<BTreeMap<Name, u8>>,
    told: BTreeMap<Name, u8>,
    /// Which attempts are whole, withdrawn or left out.
    done: BTreeMap<Name, u8>,
    begun: HashMap<u64, (Name, u8)>,
    attempts: HashMap<Digest, u8>,
}

/// One of its chunks.
struct Entry {
    held: Held,
    replay: bool,
    attempt: u8,
    /// The relay's handle, once it is told of.
    handle: Option<u64>,
}

impl Entry {
    fn name(&self) -> Name {
        (self.held.begins.stream.clone(), self.held.begins.index)
    }
}

impl Model {
    fn new(loss: u64) -> Self {
        let mut world = World::new();
        world.plan.loss = loss;
        let (chunks, answers, cursors) = (Vec::new(), HashMap::new(), Vec::new());
        let (told, done, begun, attempts) = (BTreeMap::new(), BTreeMap::new(), HashMap::new(), HashMap::new());
        Self { world, chunks, answers, cursors, told, done, begun, attempts }
    }

    fn begin(&mut self, sound: bool, replay: bool, told: bool) {
        let variant = if sound { SOUND } else { PICTURE };
        let index = 1 + self.chunks.iter().filter(|entry| entry.held.begins.variant == variant).count() as u64;
        self.chunks.push(Entry { held: held(variant, index, 1), replay, attempt: 0, handle: None });
        self.attempt(self.chunks.len() - 1, told);
    }

    fn attempt(&mut self, at: usize, told: bool) {
        let entry = &mut self.chunks[at];
        entry.attempt += 1;
        entry.held = held(entry.held.begins.variant, entry.held.begins.index, entry.attempt);
        self.attempts.insert(entry.held.begins.sha256, entry.attempt);
        if told {
            self.tell(at);
        }
    }

    fn tell(&mut self, at: usize) {
        let entry = &mut self.chunks[at];
        self.told.insert(entry.name(), entry.attempt);
        entry.handle = Some(self.world.begins(&entry.held, entry.replay));
    }

    fn cursor(&mut self) {
        self.cursors.push(self.told.clone());
        let cursor = cursor(&(self.cursors.len() - 1).to_string());
        self.world.tell(kind::CURSOR, &cursor);
    }

    fn asked(&self, which: usize) -> Option<(u64, Name)> {
        let asked = &self.world.asked;
        asked.iter().nth(which % asked.len().max(1)).map(|(number, of)| (*number, of.clone()))
    }

    fn answer(&mut self, which: usize, bytes: usize) {
        let Some((request, of)) = self.asked(which) else { return };
        let Some((held, at)) = self.answers.get_mut(&request) else {
            let Some(entry) = self.chunks.iter().find(|entry| entry.name() == of) else { return };
            self.answers.insert(request, (entry.held.clone(), 0));
            let (offer, loss) = (offer(&entry.held.begins), self.world.plan.loss);
            return self.world.heard(request, News::Begins(offer, Some(loss)));
        };
        let (from, to) = (*at, (*at + bytes).min(held.bytes.len()));
        *at = to;
        let news = match held.bytes.slice(from..to) {
            bytes if bytes.is_empty() => News::Whole,
            bytes => News::Bytes(from as u64, bytes),
        };
        self.world.heard(request, news);
    }

    /// False when the subscription broke.
    fn take(&mut self, step: &Step) -> bool {
        let which = |which: usize, chunks: &[Entry]| which % chunks.len().max(1);
        match *step {
            Step::Begin { sound, replay, told } => self.begin(sound, replay, told),
            _ if self.chunks.is_empty() => {}
            Step::Retell(at) => self.tell(which(at, &self.chunks)),
            Step::Supersede { which: at, told } => {
                let at = which(at, &self.chunks);
                if let Some(handle) = self.chunks[at].handle.take_if(|_| told) {
                    let reason = WithdrawnReason::Superseded;
                    self.world.tell(kind::WITHDRAWN, &Withdrawn { handle, reason });
                }
                self.attempt(at, told);
            }
            Step::Omit(at) => {
                let (stream, index) = self.chunks[which(at, &self.chunks)].name();
                let omitted = Omitted { stream, from: index, to: index, reason: OmittedReason::Evicted };
                self.world.tell(kind::OMITTED, &omitted);
            }
            Step::Cursor => self.cursor(),
            Step::Answer(at, bytes) => self.answer(at, bytes),
            Step::Fail(at, why) => {
                let Some((request, _)) = self.asked(at) else { return true };
                let why = [Failure::Absent, Failure::Busy(None), Failure::Lost][usize::from(why)];
                if self.world.plan.heard(request, News::Failed(why), self.world.now).is_err() {
                    return false;
                }
                self.world.settle();
            }
            Step::Wait(ms) => self.world.pass(Duration::from_millis(ms)),
        }
        self.look();
        true
    }

    /// Looks at what was passed on: a cursor comes behind the last word of all that it counts.
    fn look(&mut self) {
        for frame in std::mem::take(&mut self.world.frames) {
            match frame.kind {
                kind::CHUNK => {
                    let told: ChunkBegins = frame::control(&frame).unwrap();
                    let was = self.begun.insert(told.handle, ((told.stream, told.index), self.attempts[&told.sha256]));
                    assert_eq!(was, None, "a handle is used once");
                }
                kind::COMPLETE => {
                    let done = self.begun.remove(&frame::control::<Complete>(&frame).unwrap().handle);
                    self.done.extend(done);
                }
                kind::WITHDRAWN => {
                    let done = self.begun.remove(&frame::control::<Withdrawn>(&frame).unwrap().handle);
                    self.done.extend(done);
                }
                kind::OMITTED => {
                    let omitted: Omitted = frame::control(&frame).unwrap();
                    let gone = |entry: &&Entry| entry.name() == (omitted.stream.clone(), omitted.from);
                    self.done.extend(self.chunks.iter().filter(gone).map(|entry| (entry.name(), entry.attempt)));
                }
                kind::CURSOR => {
                    let which: usize = frame::control::<Cursor>(&frame).unwrap().cursor.parse().unwrap();
                    for (name, attempt) in &self.cursors[which] {
                        assert!(self.done.get(name).is_some_and(|done| done >= attempt), "it overtook {name:?}");
                    }
                }
                _ => {}
            }
        }
    }

    /// Everything that is asked for comes, until nothing that was told of is missing.
    fn finish(&mut self) {
        self.cursor();
        let mut rounds = 0;
        while self.world.plan.table.all().any(|(_, chunk)| chunk.told.is_some()) {
            rounds += 1;
            assert!(rounds < 2000, "it never ends");
            for which in 0..MAX_ASKED {
                self.answer(which, 1000);
            }
            self.world.pass(Duration::from_secs(1));
        }
        self.look();
        let last = (self.cursors.len() - 1).to_string();
        assert_eq!(self.world.events.iter().rfind(|e| matches!(e, Event::Cursor(_))), Some(&Event::Cursor(last)));
    }
}

proptest! {
    #[test]
    fn whatever_happens_each_chunk_has_a_last_word_before_the_cursor_that_counts_it(
        steps in prop::collection::vec(step(), 0..120),
        backlog in 0usize..50,
        loss in prop::sample::select(vec![0, TWICE_FROM, THRICE_FROM]),
    ) {
        let mut model = Model::new(loss);
        for at in 0..backlog {
            model.begin(at % 2 == 0, true, true);
        }
        if steps.iter().all(|step| model.take(step)) {
            model.finish();
        }
    }

    #[test]
    fn no_frame_panics(kind in 0x30u64..0x3d, body in prop::collection::vec(any::<u8>(), 0..60)) {
        let _ = World::new().plan.told(Frame { kind, body: body.into() }, Instant::now());
    }
}
