use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::*;
use crate::clock::Clock;
use crate::config;
use crate::proto::claims::{Format, Grant, LaneGrant, Use};
use crate::proto::frame::{Frame, Piece, control, kind, split_message};
use crate::proto::message::{self, CaptureWord, OmittedReason, StartAt, StartWord, WithdrawnReason};
use crate::proto::offer::Timestamp;
use crate::proto::{ChunkRef, Code, ContactState, Digest, GroupId, IncidentId, Media, SessionId, StreamId, Variant};
use crate::telemetry::Metrics;

const START_MS: i64 = 1_781_092_800_000;

fn stream(name: &str) -> StreamId {
    StreamId::new(name).unwrap()
}

fn incident() -> IncidentId {
    IncidentId::new("incident-canary").unwrap()
}

fn group() -> GroupKey {
    GroupKey::Group(incident(), GroupId::new("group-canary").unwrap())
}

fn grant(exp_in_s: i64) -> Arc<Grant> {
    Arc::new(Grant {
        format: Format::Jwt,
        use_: Use::Fanout,
        session: SessionId::new("contact").unwrap(),
        incident: incident(),
        group: Some(GroupId::new("group-canary").unwrap()),
        lanes: Vec::new(),
        exp: START_MS / 1000 + exp_in_s,
        commit_exp: START_MS / 1000 + exp_in_s,
        jti: None,
        client_key: None,
    })
}

fn lane_grant(name: &str, variant: Option<Variant>) -> LaneGrant {
    LaneGrant { stream: stream(name), variant, media: vec![Media::Audio], max_chunk_bytes: 1 << 20, max_chunks: 100 }
}

fn meta(name: &str, variant: Variant, index: u64, length: u64) -> ChunkMeta {
    let second = i64::try_from(index).unwrap() * 2000;
    ChunkMeta {
        chunk: ChunkRef::of(&incident(), &stream(name), index),
        session: SessionId::new("uploader").unwrap(),
        stream: stream(name),
        variant,
        media: if variant == Variant::AudioPriority { Media::Audio } else { Media::Video },
        index,
        length,
        sha256: Digest([1; 32]),
        started: Timestamp::from_unix_ms(START_MS + second - 2000),
        ended: Timestamp::from_unix_ms(START_MS + second),
    }
}

fn audio(index: u64, length: u64) -> ChunkMeta {
    meta("audio", Variant::AudioPriority, index, length)
}

struct World {
    hub: Hub,
    clock: Clock,
    metrics: Metrics,
}

impl World {
    fn new() -> Self {
        Self::with(config::Fanout::default(), 1024)
    }

    fn with(config: config::Fanout, contacts: usize) -> Self {
        let (clock, metrics) = (Clock::at_unix_ms(START_MS), Metrics::new());
        let limits = config::Limits { contacts_per_group: contacts, ..config::Limits::default() };
        Self { hub: Hub::new(&config, &limits, "node", clock.clone(), metrics.clone()), clock, metrics }
    }

    fn subscribe(&self, wanted: Wanted) -> Subscription {
        self.hub.subscribe(&grant(600), wanted).unwrap()
    }

    fn whole(&self, meta: ChunkMeta) {
        let length = usize::try_from(meta.length).unwrap();
        let publication = self.hub.publish(&group(), meta);
        publication.push(0, &Bytes::from(vec![5; length]));
        publication.complete();
    }

    fn metric(&self, line: &str) -> u64 {
        let text = self.metrics.text();
        let found = text.lines().find_map(|found| found.strip_prefix(&format!("waystation_{line} ")));
        found.map_or(0, |value| value.parse().unwrap())
    }
}

fn from(word: StartWord) -> Wanted {
    Wanted { from: Some(StartAt::Word(word)), ..Wanted::default() }
}

fn frames(step: &Step) -> Vec<Frame> {
    let (Step::Frames(frames) | Step::End(frames)) = step;
    frames.iter().flat_map(|frame| split_message(frame.clone()).unwrap()).collect()
}

/// Everything that is there without waiting.
async fn drain(subscription: &mut Subscription) -> Vec<Frame> {
    let mut out = Vec::new();
    while let Ok(step) = tokio::time::timeout(Duration::from_millis(20), subscription.next()).await {
        out.extend(frames(&step));
        if matches!(step, Step::End(_)) {
            break;
        }
    }
    out
}

fn kinds(frames: &[Frame]) -> Vec<u64> {
    frames.iter().map(|frame| frame.kind).collect()
}

fn all<T: serde::de::DeserializeOwned>(frames: &[Frame], kind: u64) -> Vec<T> {
    let of_kind = frames.iter().filter(|frame| frame.kind == kind);
    of_kind.map(|frame| serde_json::from_slice(&frame.body).unwrap()).collect()
}

fn begun(frames: &[Frame]) -> Vec<(String, u64, bool)> {
    let chunks: Vec<message::ChunkBegins> = all(frames, kind::CHUNK);
    chunks.into_iter().map(|chunk| (chunk.stream.as_str().to_owned(), chunk.index, chunk.replay)).collect()
}

fn ending(frames: &[Frame]) -> String {
    control::<message::Ending>(frames.last().filter(|frame| frame.kind == kind::ENDING).unwrap()).unwrap().reason
}

#[tokio::test]
async fn bytes_are_seen_before_the_chunk_is_whole_and_are_shared() {
    let world = World::new();
    let (mut one, mut two) = (world.subscribe(Wanted::default()), world.subscribe(Wanted::default()));
    for both in [&mut one, &mut two] {
        assert_eq!(kinds(&drain(both).await), [kind::WATCHING]);
    }
    let publication = world.hub.publish(&group(), audio(1, 300_000));
    let half = Bytes::from(vec![9; 150_000]);
    publication.push(0, &half);
    let Step::Frames(mine) = one.next().await else { panic!() };
    let Step::Frames(theirs) = two.next().await else { panic!() };
    let pieces = |frames: &[Bytes]| -> Vec<Bytes> { frames.iter().filter(|f| f[0] == 0x33).cloned().collect() };
    let (mine, theirs) = (pieces(&mine), pieces(&theirs));
    assert_eq!((mine.len(), theirs.len()), (3, 3));
    assert!(mine.iter().zip(&theirs).all(|(a, b)| a.as_ptr() == b.as_ptr()), "kept once");
    let got: usize =
        mine.iter().map(|f| Piece::decode(split_message(f.clone()).unwrap().remove(0).body).unwrap().bytes.len()).sum();
    assert_eq!(got, 150_000);
    publication.push(100_000, &Bytes::from(vec![9; 200_000]));
    publication.complete();
    let rest = drain(&mut one).await;
    assert_eq!(kinds(&rest).iter().filter(|kind| **kind == kind::COMPLETE).count(), 1);
    let got: usize =
        rest.iter().filter(|f| f.kind == kind::PIECE).map(|f| Piece::decode(f.body.clone()).unwrap().bytes.len()).sum();
    assert_eq!(got, 150_000, "what was here is skipped");
    assert_eq!(world.metric("fanout_contacts"), 2);
    assert!(world.metric("fanout_delivered_bytes_total{lane=\"audio_priority\"}") > 450_000);
    assert!(world.metric("fanout_window_bytes") > 300_000);
}

#[tokio::test]
async fn whoever_comes_is_greeted_and_told_how_the_device_is_before_anything_else() {
    let world = World::new();
    let publication = world.hub.publish(&group(), audio(1, 300_000));
    publication.push(0, &Bytes::from(vec![9; 150_000]));
    let mut late = world.subscribe(Wanted::default());
    let first = frames(&late.next().await);
    assert_eq!(kinds(&first), [kind::WATCHING, kind::SIGN]);
    assert_eq!(control::<message::Sign>(&first[1]).unwrap().last_sign, 0);
    assert!(drain(&mut late).await.iter().any(|frame| frame.kind == kind::PIECE), "the window at once behind it");
}

#[tokio::test(start_paused = true)]
async fn many_are_told_at_once_of_what_came_together() {
    let world = World::new();
    let mut grant = grant(600);
    let mut contacts: Vec<_> = (0..100)
        .map(|number| {
            Arc::make_mut(&mut grant).session = SessionId::new(&format!("contact-{}", number / 50)).unwrap();
            world.hub.subscribe(&grant, Wanted::default()).unwrap()
        })
        .collect();
    let mut one = contacts.pop().unwrap();
    drain(&mut one).await;
    let waiting = tokio::spawn(async move { (one.next().await, one) });
    tokio::task::yield_now().await;
    let publication = world.hub.publish(&group(), audio(1, 2_000));
    publication.push(0, &Bytes::from(vec![5; 1_000]));
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    assert!(!waiting.is_finished(), "it waits for what comes right behind");
    publication.push(1_000, &Bytes::from(vec![5; 1_000]));
    let before = tokio::time::Instant::now();
    publication.complete();
    let (step, mut one) = waiting.await.unwrap();
    let kinds: Vec<_> = frames(&step).iter().map(|frame| frame.kind).collect();
    assert_eq!(before.elapsed(), Duration::ZERO, "nothing more comes of a chunk that is whole");
    assert_eq!(kinds.iter().filter(|kind| **kind == kind::PIECE).count(), 1, "{kinds:?}");
    assert!(kinds.contains(&kind::CHUNK) && kinds.contains(&kind::COMPLETE), "{kinds:?}");
    // Many small ones right behind it wait for each other, with what comes on the other lane.
    let waiting = tokio::spawn(async move { one.next().await });
    tokio::task::yield_now().await;
    let next = world.hub.publish(&group(), meta("video", Variant::LivePreview, 1, 2_000));
    next.push(0, &Bytes::from(vec![5; 1_000]));
    for index in 2..5 {
        world.whole(audio(index, 100));
    }
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    assert!(!waiting.is_finished(), "they were woken just now");
    let begun = begun(&frames(&waiting.await.unwrap()));
    assert_eq!(begun.len(), 4, "{begun:?}");
    assert!(before.elapsed() <= Duration::from_millis(4), "{:?}", before.elapsed());
}

#[tokio::test]
async fn control_goes_before_audio_and_audio_before_preview() {
    let world = World::new();
    let mut contact = world.subscribe(Wanted::default());
    world.whole(audio(1, 1000));
    drain(&mut contact).await;
    world.whole(meta("video", Variant::LivePreview, 1, 400_000));
    world.whole(audio(2, 1000));
    world.hub.state(audio(1, 0).chunk, ContactState::Confirmed, Some("receipt".into()), None);
    let step = frames(&contact.next().await);
    let states: Vec<message::ContactChunkState> = all(&step, kind::STATE);
    assert_eq!(step[0].kind, kind::STATE);
    assert_eq!((states[0].index, states[0].state), (1, ContactState::Confirmed));
    assert_eq!(states[0].receipt.as_deref(), Some("receipt"));
    assert_eq!(begun(&step), [("audio".to_owned(), 2, false), ("video".to_owned(), 1, false)]);
    let media: usize = step.iter().filter(|f| f.kind == kind::PIECE).map(|f| f.body.len()).sum();
    assert!(media <= 260 * 1024 && media > 180_000, "{media}");
    let rest = drain(&mut contact).await;
    assert!(kinds(&rest).contains(&kind::COMPLETE));
}

#[tokio::test]
async fn a_late_contact_starts_where_it_asks_with_the_latest_states() {
    let world = World::new();
    for index in 1..=5 {
        world.whole(audio(index, 100));
    }
    world.hub.state(audio(2, 0).chunk, ContactState::Confirmed, Some("r2".into()), None);
    let mut live = world.subscribe(Wanted::default());
    assert_eq!(begun(&drain(&mut live).await), [("audio".to_owned(), 5, true)]);
    let mut oldest = world.subscribe(from(StartWord::Oldest));
    let got = drain(&mut oldest).await;
    assert_eq!(begun(&got).len(), 5);
    let chunks: Vec<message::ChunkBegins> = all(&got, kind::CHUNK);
    assert_eq!(chunks[1].state, ContactState::Confirmed);
    assert_eq!(chunks[0].state, ContactState::NearLiveUnconfirmed);
    let states: Vec<message::ContactChunkState> = all(&got, kind::STATE);
    assert_eq!(states.len(), 1);
    assert_eq!(states[0].receipt.as_deref(), Some("r2"));
    let watching: Vec<message::Watching> = all(&got, kind::WATCHING);
    assert_eq!(watching[0].window_start, Some(audio(1, 1).started));
    let at = Wanted { from: Some(StartAt::At { stream: stream("audio"), index: 4 }), ..Wanted::default() };
    assert_eq!(begun(&drain(&mut world.subscribe(at)).await).len(), 2);
}

#[tokio::test]
async fn a_cursor_resumes_without_duplicate_or_hole() {
    let world = World::new();
    let mut contact = world.subscribe(from(StartWord::Oldest));
    world.whole(audio(1, 100));
    let half = world.hub.publish(&group(), audio(2, 100));
    half.push(0, &Bytes::from_static(&[1; 50]));
    let got = drain(&mut contact).await;
    let cursors: Vec<message::Cursor> = all(&got, kind::CURSOR);
    drop(contact);
    half.push(50, &Bytes::from_static(&[1; 50]));
    half.complete();
    world.whole(audio(3, 100));
    world.hub.state(audio(1, 0).chunk, ContactState::Confirmed, None, None);
    let wanted = Wanted { cursor: Some(cursors[0].cursor.clone()), ..Wanted::default() };
    let got = drain(&mut world.subscribe(wanted)).await;
    assert_eq!(begun(&got), [("audio".to_owned(), 2, true), ("audio".to_owned(), 3, true)]);
    let states: Vec<message::ContactChunkState> = all(&got, kind::STATE);
    assert!(states.iter().any(|state| state.index == 1 && state.state == ContactState::Confirmed), "missed while away");
    assert_eq!(world.metric("fanout_subscription_endings_total{reason=\"left\"}"), 2);
}

#[tokio::test]
async fn a_cursor_of_a_relay_that_restarted_goes_by_identity() {
    let before = World::new();
    let mut contact = before.subscribe(from(StartWord::Oldest));
    before.whole(audio(1, 100));
    before.whole(audio(2, 100));
    let cursors: Vec<message::Cursor> = all(&drain(&mut contact).await, kind::CURSOR);
    let cursor = cursors.last().unwrap().cursor.clone();
    let after = World::new();
    let mut contact = after.subscribe(Wanted { cursor: Some(cursor), ..Wanted::default() });
    after.whole(audio(2, 100));
    after.whole(audio(5, 100));
    after.whole(audio(6, 100));
    after.whole(audio(9, 100));
    let got = drain(&mut contact).await;
    assert_eq!(begun(&got), [5, 6, 9].map(|index| ("audio".to_owned(), index, false)));
    let holes: Vec<message::Omitted> = all(&got, kind::OMITTED);
    let holes: Vec<_> = holes.iter().map(|hole| (hole.from, hole.to, hole.reason)).collect();
    assert_eq!(holes, [(3, 4, OmittedReason::Evicted), (7, 8, OmittedReason::Evicted)]);
    // The phone may still bring what is missing from here on.
    after.whole(audio(11, 100));
    let got = drain(&mut contact).await;
    assert_eq!((begun(&got).len(), all::<message::Omitted>(&got, kind::OMITTED).len()), (1, 0));
    let mut garbage = after.subscribe(Wanted { cursor: Some("garbage".into()), ..Wanted::default() });
    assert_eq!(begun(&drain(&mut garbage).await).len(), 5, "from the oldest");
}

#[tokio::test]
async fn what_is_asked_for_and_withdrawn_before_it_begins_is_named() {
    let world = World::new();
    let mut contact = world.subscribe(from(StartWord::Oldest));
    world.whole(audio(1, 100));
    drain(&mut contact).await;
    contact.lanes(vec![Variant::LivePreview]);
    let bad = world.hub.publish(&group(), audio(2, 100));
    bad.push(0, &Bytes::from_static(&[1; 60]));
    world.whole(audio(3, 100));
    contact.lanes(vec![Variant::AudioPriority, Variant::LivePreview]);
    assert_eq!(begun(&drain(&mut contact).await), [("audio".to_owned(), 3, true)]);
    contact.fetch(&stream("audio"), 2);
    bad.withdraw(WithdrawnReason::HashMismatch);
    let got = drain(&mut contact).await;
    let omitted: Vec<message::Omitted> = all(&got, kind::OMITTED);
    assert_eq!(omitted.iter().map(|one| (one.from, one.to)).collect::<Vec<_>>(), [(2, 2)]);
}

#[tokio::test]
async fn what_is_withdrawn_is_told_and_a_newer_attempt_is_a_new_chunk() {
    let world = World::new();
    let mut contact = world.subscribe(from(StartWord::Oldest));
    let bad = world.hub.publish(&group(), audio(1, 100));
    bad.push(0, &Bytes::from_static(&[1; 60]));
    drain(&mut contact).await;
    bad.withdraw(WithdrawnReason::HashMismatch);
    let got = drain(&mut contact).await;
    let withdrawn: Vec<message::Withdrawn> = all(&got, kind::WITHDRAWN);
    assert_eq!(withdrawn[0].reason, WithdrawnReason::HashMismatch);
    let mut late = world.subscribe(from(StartWord::Oldest));
    let unseen = world.hub.publish(&group(), audio(2, 100));
    unseen.push(0, &Bytes::from_static(&[1; 60]));
    unseen.withdraw(WithdrawnReason::HashMismatch);
    let omitted: Vec<message::Omitted> = all(&drain(&mut late).await, kind::OMITTED);
    assert_eq!((omitted[0].from, omitted[0].reason), (2, OmittedReason::Withdrawn));
    world.whole(audio(1, 100));
    let again: Vec<message::ChunkBegins> = all(&drain(&mut contact).await, kind::CHUNK);
    assert_eq!(again[0].index, 1);
    assert_ne!(again[0].handle, withdrawn[0].handle);
    let mut other = audio(1, 100);
    other.sha256 = Digest([2; 32]);
    world.whole(other);
    let got = drain(&mut contact).await;
    let withdrawn: Vec<message::Withdrawn> = all(&got, kind::WITHDRAWN);
    assert_eq!((withdrawn[0].handle, withdrawn[0].reason), (again[0].handle, WithdrawnReason::Superseded));
    assert_eq!(begun(&got).len(), 1);
    assert_eq!(world.metric("fanout_withdrawn_chunks_total{reason=\"hash_mismatch\"}"), 2);
    assert_eq!(world.metric("fanout_withdrawn_chunks_total{reason=\"superseded\"}"), 1);
    assert_eq!(world.metric("fanout_omitted_chunks_total{reason=\"withdrawn\"}"), 2);
}

#[tokio::test]
async fn a_stalled_chunk_goes_on_under_a_new_handle_with_the_bytes_it_had() {
    let world = World::new();
    let mut contact = world.subscribe(from(StartWord::Oldest));
    let first = world.hub.publish(&group(), audio(1, 100));
    first.push(0, &Bytes::from_static(&[7; 60]));
    drain(&mut contact).await;
    first.withdraw(WithdrawnReason::Stalled);
    let second = world.hub.publish(&group(), audio(1, 100));
    second.push(60, &Bytes::from_static(&[7; 40]));
    second.complete();
    first.withdraw(WithdrawnReason::Stalled);
    let got = drain(&mut contact).await;
    assert_eq!(all::<message::Withdrawn>(&got, kind::WITHDRAWN).len(), 1, "an older attempt withdraws nothing");
    let bytes: usize =
        got.iter().filter(|f| f.kind == kind::PIECE).map(|f| Piece::decode(f.body.clone()).unwrap().bytes.len()).sum();
    assert_eq!(bytes, 100);
    assert!(kinds(&got).contains(&kind::COMPLETE));
    assert_eq!(world.metric("fanout_withdrawn_chunks_total{reason=\"stalled\"}"), 1);
}

#[tokio::test]
async fn what_can_not_be_shown_is_named() {
    let world = World::with(config::Fanout { max_chunk: 1000, ..config::Fanout::default() }, 10);
    let mut contact = world.subscribe(from(StartWord::Oldest));
    world.whole(audio(1, 1001));
    let resumed = world.hub.publish(&group(), audio(2, 100));
    resumed.push(60, &Bytes::from_static(&[7; 40]));
    resumed.complete();
    let staged = world.hub.publish(&group(), audio(3, 100));
    staged.complete();
    let got = drain(&mut contact).await;
    let omitted: Vec<message::Omitted> = all(&got, kind::OMITTED);
    assert_eq!(omitted.len(), 2);
    assert_eq!((omitted[0].from, omitted[0].to, omitted[0].reason), (1, 1, OmittedReason::TooLarge));
    assert_eq!((omitted[1].from, omitted[1].to, omitted[1].reason), (2, 3, OmittedReason::Evicted));
    world.hub.state(audio(1, 0).chunk, ContactState::Confirmed, None, None);
    let states: Vec<message::ContactChunkState> = all(&drain(&mut contact).await, kind::STATE);
    assert_eq!((states[0].index, states[0].state), (1, ContactState::Confirmed), "what is not shown is followed");
    assert_eq!(world.metric("fanout_omitted_chunks_total{reason=\"too_large\"}"), 1);
    assert_eq!(world.metric("fanout_evicted_chunks_total{cause=\"gap\"}"), 2);
}

#[tokio::test]
async fn source_time_moves_the_window_and_silence_does_not() {
    let world = World::new();
    for index in 1..=70 {
        world.whole(audio(index, 10));
    }
    world.clock.advance(Duration::from_secs(3 * 3600));
    let grant = grant(600 + 24 * 3600);
    let mut contact = world.hub.subscribe(&grant, from(StartWord::Oldest)).unwrap();
    let got = drain(&mut contact).await;
    let chunks = begun(&got);
    assert_eq!((chunks.first().unwrap().1, chunks.last().unwrap().1), (10, 70), "120 s of 2 s chunks");
    assert_eq!(world.metric("fanout_evicted_chunks_total{cause=\"window\"}"), 9);
    let capture: Vec<message::CaptureEvent> = all(&got, kind::CAPTURE);
    assert_eq!((capture[0].event, capture[0].last_sign), (CaptureWord::Silent, 3 * 3600));
    assert_eq!(capture[0].last_chunk.as_ref().map(|chunk| chunk.index), Some(70));
}

#[tokio::test]
async fn a_quiet_group_is_let_go_after_its_linger() {
    let world = World::with(config::Fanout { linger: Duration::from_secs(7200), ..config::Fanout::default() }, 10);
    world.whole(audio(1, 100));
    world.clock.advance(Duration::from_secs(7100));
    let other = || drop(world.hub.publish(&GroupKey::Group(incident(), GroupId::new("other").unwrap()), audio(1, 1)));
    other();
    let grant = grant(600 + 24 * 3600);
    let mut contact = world.hub.subscribe(&grant, from(StartWord::Oldest)).unwrap();
    assert_eq!(begun(&drain(&mut contact).await).len(), 1, "who comes late still sees it");
    world.clock.advance(Duration::from_secs(200));
    other();
    assert_eq!(world.metric("fanout_window_bytes"), 0);
    assert_eq!(world.metric("fanout_evicted_chunks_total{cause=\"linger\"}"), 1);
    assert_eq!(world.metric("fanout_groups"), 2, "a watched one is emptied and stays");
    drop(contact);
    world.clock.advance(Duration::from_secs(100));
    other();
    assert_eq!(world.metric("fanout_groups"), 1);
}

#[tokio::test]
async fn a_quiet_group_is_let_go_though_nobody_calls() {
    let world = World::with(config::Fanout { linger: Duration::from_secs(7200), ..config::Fanout::default() }, 10);
    world.whole(audio(1, 100));
    let letting = tokio::spawn(world.hub.clone().let_go_of_quiet());
    for (minute, groups) in (1..=121).map(|minute| (minute, u64::from(minute < 120))) {
        tokio::task::yield_now().await;
        world.clock.advance(Duration::from_secs(60));
        tokio::task::yield_now().await;
        assert_eq!(world.metric("fanout_groups"), groups, "after {minute} minutes");
    }
    assert_eq!(world.metric("fanout_window_bytes"), 0);
    letting.abort();
}

#[tokio::test]
async fn memory_takes_first_from_what_nobody_watches() {
    let config = config::Fanout { memory: 400_000, memory_per_session: 390_000, ..config::Fanout::default() };
    let world = World::with(config, 10);
    let elsewhere = GroupKey::Group(incident(), GroupId::new("unwatched").unwrap());
    let mut contact = world.subscribe(from(StartWord::Oldest));
    world.whole(audio(1, 180_000));
    for (name, index, length) in [("unwatched", 1, 70_000), ("unwatched", 2, 70_000), ("little", 1, 10_000)] {
        let mut meta = meta(name, Variant::LivePreview, index, length);
        meta.session = SessionId::new(name).unwrap();
        let publication = world.hub.publish(&elsewhere, meta);
        publication.push(0, &Bytes::from(vec![1; length as usize]));
        publication.complete();
    }
    world.whole(audio(2, 70_000));
    let got = drain(&mut contact).await;
    assert_eq!(begun(&got).len(), 2, "the watched session held more, and nothing of it gave way");
    assert!(all::<message::Omitted>(&got, kind::OMITTED).is_empty());
    assert_eq!(world.metric("fanout_evicted_chunks_total{cause=\"memory\"}"), 1);
}

#[tokio::test]
async fn memory_wins_and_takes_from_the_session_furthest_over_its_share() {
    let config = config::Fanout { memory: 400_000, memory_per_session: 390_000, ..config::Fanout::default() };
    let world = World::with(config, 10);
    let mut contact = world.subscribe(from(StartWord::Oldest));
    world.whole(audio(1, 100_000));
    drain(&mut contact).await;
    world.whole(audio(2, 100_000));
    let mut small = meta("small", Variant::LivePreview, 1, 50_000);
    small.session = SessionId::new("small").unwrap();
    world.whole(small.clone());
    let mut next = meta("small", Variant::LivePreview, 2, 100_000);
    next.session = small.session;
    world.whole(next);
    for index in 3..=5 {
        world.whole(audio(index, 100_000));
        assert!(world.metric("fanout_window_bytes") <= 400_000);
    }
    assert_eq!(world.metric("fanout_evicted_chunks_total{cause=\"memory\"}"), 3);
    let got = drain(&mut contact).await;
    let omitted: Vec<message::Omitted> = all(&got, kind::OMITTED);
    assert!(
        omitted.iter().all(|omitted| omitted.reason == OmittedReason::Evicted && omitted.stream == stream("audio"))
    );
    let named: Vec<u64> = omitted.iter().flat_map(|omitted| omitted.from..=omitted.to).collect();
    let shown: Vec<u64> = begun(&got).into_iter().filter(|chunk| chunk.0 == "audio").map(|chunk| chunk.1).collect();
    let mut every: Vec<u64> = named.iter().chain(&shown).copied().collect();
    every.sort_unstable();
    assert_eq!(every, [2, 3, 4, 5], "named {named:?}, shown {shown:?}");
    let session = World::with(config::Fanout { memory_per_session: 250_000, ..config::Fanout::default() }, 10);
    for index in 1..=3 {
        session.whole(audio(index, 100_000));
    }
    assert_eq!(session.metric("fanout_evicted_chunks_total{cause=\"session\"}"), 1);
}

#[tokio::test]
async fn a_lane_goes_on_with_the_next_stream() {
    let world = World::new();
    let mut contact = world.subscribe(Wanted::default());
    world.whole(meta("a1", Variant::AudioPriority, 1, 10));
    world.whole(meta("a2", Variant::AudioPriority, 1, 10));
    world.whole(meta("a1", Variant::AudioPriority, 2, 10));
    let got = drain(&mut contact).await;
    let streams: Vec<message::StreamJoins> = all(&got, kind::STREAM);
    assert_eq!(streams.len(), 2);
    assert_eq!((streams[1].stream.as_str(), streams[1].follows.as_ref().unwrap().as_str()), ("a2", "a1"));
    assert_eq!(begun(&got).len(), 3);
}

#[tokio::test]
async fn silence_is_told_once_and_so_is_its_end() {
    let world = World::new();
    let mut contact = world.subscribe(Wanted::default());
    world.whole(audio(1, 10));
    drain(&mut contact).await;
    world.clock.advance(Duration::from_secs(14));
    let quiet: Vec<message::Sign> = all(&drain(&mut contact).await, kind::SIGN);
    assert_eq!(quiet, [message::Sign { last_sign: 14 }]);
    world.clock.advance(Duration::from_secs(1));
    let capture: Vec<message::CaptureEvent> = all(&drain(&mut contact).await, kind::CAPTURE);
    assert_eq!((capture.len(), capture[0].event, capture[0].last_sign), (1, CaptureWord::Silent, 15));
    world.clock.advance(Duration::from_secs(60));
    assert!(drain(&mut contact).await.is_empty());
    world.hub.alive(&group());
    let capture: Vec<message::CaptureEvent> = all(&drain(&mut contact).await, kind::CAPTURE);
    assert_eq!((capture.len(), capture[0].event), (1, CaptureWord::Back));
}

#[tokio::test]
async fn a_recording_that_ended_ends_the_subscription_when_its_states_did() {
    let world = World::new();
    let mut contact = world.subscribe(Wanted::default());
    world.whole(audio(1, 10));
    world.hub.ended(&group());
    let got = drain(&mut contact).await;
    assert_eq!(all::<message::CaptureEvent>(&got, kind::CAPTURE)[0].event, CaptureWord::Ended);
    world.clock.advance(Duration::from_secs(60));
    assert!(drain(&mut contact).await.is_empty(), "the core has not answered");
    world.hub.state(audio(1, 0).chunk, ContactState::Confirmed, None, None);
    let got = drain(&mut contact).await;
    assert_eq!(ending(&got), "ended");
    assert_eq!(got[got.len() - 2].kind, kind::STATE);
    assert!(matches!(contact.next().await, Step::End(frames) if frames.is_empty()));
    assert_eq!(world.metric("fanout_subscription_endings_total{reason=\"ended\"}"), 1);
}

#[tokio::test]
async fn a_capability_ends_its_subscription_unless_it_is_renewed() {
    let world = World::new();
    let mut contact = world.hub.subscribe(&grant(60), Wanted::default()).unwrap();
    let mut other = world.hub.subscribe(&grant(60), Wanted::default()).unwrap();
    drain(&mut contact).await;
    let mut elsewhere = grant(120);
    Arc::make_mut(&mut elsewhere).group = Some(GroupId::new("elsewhere").unwrap());
    assert_eq!(contact.renew(&elsewhere), Err(Code::CapabilityWrongBinding));
    contact.renew(&grant(120)).unwrap();
    world.clock.advance(Duration::from_secs(60));
    assert!(drain(&mut contact).await.is_empty());
    assert_eq!(ending(&drain(&mut other).await), "capability_expired");
    assert_eq!(contact.renew(&grant(60)), Err(Code::CapabilityExpired));
    world.clock.advance(Duration::from_secs(60));
    assert_eq!(ending(&drain(&mut contact).await), "capability_expired");
    assert_eq!(world.hub.subscribe(&grant(60), Wanted::default()).err(), Some(Code::CapabilityExpired));
    assert_eq!(world.metric("fanout_subscription_endings_total{reason=\"expired\"}"), 2);
}

#[tokio::test]
async fn an_end_with_a_reason_is_the_last_step() {
    let world = World::new();
    for (code, label) in [
        (Code::Draining, "draining"),
        (Code::CapabilityRevoked, "revoked"),
        (Code::ContactTooSlow, "too_slow"),
        (Code::InternalError, "other"),
    ] {
        let mut contact = world.subscribe(Wanted::default());
        contact.end(code);
        let Step::End(last) = contact.next().await else { panic!() };
        assert_eq!(ending(&frames(&Step::End(last))), code.name());
        assert_eq!(world.metric(&format!("fanout_subscription_endings_total{{reason=\"{label}\"}}")), 1);
    }
}

#[tokio::test]
async fn a_grant_is_not_exceeded() {
    let world = World::with(config::Fanout::default(), 1);
    let mut narrow = grant(600);
    Arc::make_mut(&mut narrow).lanes = vec![lane_grant("audio", Some(Variant::AudioPriority))];
    let video = Wanted { lanes: Some(vec![Variant::LivePreview]), ..Wanted::default() };
    assert_eq!(world.hub.subscribe(&narrow, video).err(), Some(Code::NotWatchable));
    let master = Wanted { lanes: Some(vec![Variant::EvidenceMaster]), ..Wanted::default() };
    assert_eq!(world.hub.subscribe(&grant(600), master).err(), Some(Code::NotWatchable));
    let upload = Arc::new(Grant { use_: Use::Upload, ..Grant::clone(&grant(600)) });
    assert_eq!(world.hub.subscribe(&upload, Wanted::default()).err(), Some(Code::CapabilityWrongUse));
    let mut contact = world.hub.subscribe(&narrow, from(StartWord::Oldest)).unwrap();
    assert_eq!(world.hub.subscribe(&narrow, Wanted::default()).err(), Some(Code::TooManyContacts));
    world.whole(audio(1, 10));
    world.whole(meta("audio-2", Variant::AudioPriority, 1, 10));
    world.whole(meta("video", Variant::LivePreview, 1, 10));
    world.whole(meta("master", Variant::EvidenceMaster, 1, 10));
    let got = drain(&mut contact).await;
    assert_eq!(begun(&got), [("audio".to_owned(), 1, false)]);
    assert!(!got.iter().any(|frame| String::from_utf8_lossy(&frame.body).contains("audio-2")));
    contact.fetch(&stream("audio-2"), 1);
    let omitted: Vec<message::Omitted> = all(&drain(&mut contact).await, kind::OMITTED);
    assert_eq!(omitted.len(), 1, "what it may not see is as what is not here");
    drop(contact);
    assert!(world.hub.subscribe(&narrow, Wanted::default()).is_ok(), "the seat is free again");
}

#[tokio::test]
async fn one_capability_does_not_take_every_seat() {
    let world = World::new();
    let mut greedy: Vec<_> =
        (0..1024).map_while(|_| world.hub.subscribe(&grant(600), Wanted::default()).ok()).collect();
    assert_eq!(greedy.len(), 64);
    assert_eq!(world.hub.subscribe(&grant(600), Wanted::default()).err(), Some(Code::TooManyContacts));
    let other = Arc::new(Grant { jti: Some("other".into()), ..Grant::clone(&grant(600)) });
    assert!(world.hub.subscribe(&other, Wanted::default()).is_ok());
    greedy.pop();
    assert!(world.hub.subscribe(&grant(600), Wanted::default()).is_ok(), "the seat is free again");
}

#[tokio::test]
async fn who_asks_for_each_chunk_has_seats_for_those_beside_the_contacts() {
    let world = World::new();
    world.whole(audio(1, 10));
    let contacts: Vec<_> = (0..64).map(|_| world.subscribe(Wanted::default())).collect();
    let chunk = |index| ChunkRef::of(&incident(), &stream("audio"), index);
    let readers: Vec<_> = (0..1024).map_while(|_| world.hub.read(&grant(600), chunk(1)).ok()).collect();
    assert_eq!(readers.len(), 512, "eight for each seat");
    assert_eq!(world.hub.read(&grant(600), chunk(1)).err(), Some(Code::TooManyContacts));
    assert_eq!((world.metric("fanout_contacts"), world.metric("fanout_readers")), (64, 512));
    drop(readers);
    assert!(world.hub.read(&grant(600), chunk(1)).is_ok());
    drop(contacts);
    assert_eq!((world.metric("fanout_contacts"), world.metric("fanout_readers")), (0, 0));
}

#[tokio::test]
async fn who_asks_for_each_chunk_is_sent_none_beside_however_slow_the_link() {
    let world = World::new();
    let mut contact = world.subscribe(Wanted { bare: true, ..from(StartWord::Oldest) });
    for _ in 0..3 {
        contact.took(60_000);
        world.whole(meta("video", Variant::LivePreview, 1, 100_000));
        world.whole(audio(1, 100_000));
        let got = drain(&mut contact).await;
        assert!(got.iter().all(|frame| frame.kind != kind::PIECE));
    }
    let got = world.metric("fanout_delivered_bytes_total{lane=\"live_preview\"}");
    assert_eq!(got, 0);
}

#[tokio::test]
async fn who_asks_on_and_reads_nothing_is_let_go() {
    let world = World::new();
    let mut contact = world.subscribe(Wanted::default());
    drain(&mut contact).await;
    for index in 1..=10_000 {
        contact.fetch(&stream("audio"), index);
    }
    let got = drain(&mut contact).await;
    assert_eq!(all::<message::Omitted>(&got, kind::OMITTED).len(), 256);
    assert_eq!(ending(&got), "contact_too_slow");
}

#[tokio::test]
async fn after_renewal_nothing_of_the_old_capability_counts() {
    let world = World::new();
    let narrow =
        Arc::new(Grant { lanes: vec![lane_grant("audio", Some(Variant::AudioPriority))], ..Grant::clone(&grant(600)) });
    let mut contact = world.hub.subscribe(&narrow, Wanted::default()).unwrap();
    drain(&mut contact).await;
    contact.renew(&grant(60)).unwrap();
    world.clock.advance(Duration::from_secs(60));
    assert_eq!(ending(&drain(&mut contact).await), "capability_expired", "wide lanes until their own end");
}

#[tokio::test]
async fn what_an_earlier_process_received_is_no_sign_of_life() {
    let world = World::new();
    let again = world.hub.publish_again(&group(), audio(1, 10), 60_000);
    again.push(0, &Bytes::from(vec![5; 10]));
    again.complete();
    let mut contact = world.subscribe(from(StartWord::Oldest));
    assert!(!kinds(&drain(&mut contact).await).contains(&kind::CAPTURE), "it may come back soon");
    world.clock.advance(Duration::from_secs(15));
    let told: Vec<message::CaptureEvent> = all(&drain(&mut contact).await, kind::CAPTURE);
    assert_eq!((told.len(), told[0].event, told[0].last_sign), (1, message::CaptureWord::Silent, 75));
    world.hub.publish_again(&group(), audio(2, 10), 1_000).complete();
    assert!(!kinds(&drain(&mut contact).await).contains(&kind::CAPTURE), "nor is it back");
    world.whole(audio(3, 10));
    let told: Vec<message::CaptureEvent> = all(&drain(&mut contact).await, kind::CAPTURE);
    assert_eq!(told[0].event, message::CaptureWord::Back);
}

#[tokio::test]
async fn lanes_can_be_left_and_joined_and_chunks_fetched_again() {
    let world = World::new();
    let audio_only = Wanted { lanes: Some(vec![Variant::AudioPriority]), ..Wanted::default() };
    let mut contact = world.subscribe(audio_only);
    world.whole(audio(1, 10));
    for index in 1..=3 {
        world.whole(meta("video", Variant::LivePreview, index, 10));
    }
    assert_eq!(begun(&drain(&mut contact).await), [("audio".to_owned(), 1, false)]);
    contact.lanes(vec![Variant::AudioPriority, Variant::LivePreview]);
    assert_eq!(begun(&drain(&mut contact).await), [("video".to_owned(), 3, true)]);
    contact.fetch(&stream("video"), 1);
    let got = drain(&mut contact).await;
    assert_eq!(begun(&got), [("video".to_owned(), 1, true)]);
    assert_eq!(kinds(&got), [kind::CHUNK, kind::PIECE, kind::COMPLETE]);
    for index in 1..=3 {
        for _ in 0..20 {
            contact.fetch(&stream("video"), index);
        }
    }
    contact.fetch(&stream("video"), 9);
    let got = drain(&mut contact).await;
    assert_eq!(begun(&got).len(), 3, "asked for twice is sent once");
    let omitted: Vec<message::Omitted> = all(&got, kind::OMITTED);
    assert_eq!((omitted.len(), omitted[0].from, omitted[0].reason), (1, 9, OmittedReason::Evicted));
    for index in 4..=30 {
        world.whole(meta("video", Variant::LivePreview, index, 10));
    }
    drain(&mut contact).await;
    for index in 1..=17 {
        contact.fetch(&stream("video"), index);
    }
    let omitted: Vec<message::Omitted> = all(&drain(&mut contact).await, kind::OMITTED);
    assert_eq!((omitted.len(), omitted[0].from, omitted[0].reason), (1, 17, OmittedReason::Slow));
    assert_eq!(world.metric("fanout_omitted_chunks_total{reason=\"slow\"}"), 1);
    assert_eq!(world.metric("fanout_omitted_chunks_total{reason=\"evicted\"}"), 1);
    contact.lanes(vec![Variant::AudioPriority]);
    world.whole(meta("video", Variant::LivePreview, 31, 10));
    assert!(drain(&mut contact).await.iter().all(|frame| frame.kind == kind::CURSOR));
}

#[tokio::test]
async fn a_token_without_roles_is_shown_by_media_type_if_allowed() {
    let mut token = grant(600);
    let claims = Arc::make_mut(&mut token);
    (claims.group, claims.format) = (None, Format::Proofline);
    claims.lanes = vec![lane_grant("audio", None)];
    let key = GroupKey::of(&token, &stream("audio"));
    for allow_unlabelled in [true, false] {
        let world = World::with(config::Fanout { allow_unlabelled, ..config::Fanout::default() }, 10);
        let subscribed = world.hub.subscribe(&token, Wanted::default());
        let publication = world.hub.publish(&key, audio(1, 10));
        publication.push(0, &Bytes::from_static(&[1; 10]));
        publication.complete();
        if allow_unlabelled {
            assert_eq!(begun(&drain(&mut subscribed.unwrap()).await).len(), 1);
        } else {
            assert_eq!(subscribed.err(), Some(Code::NotWatchable));
        }
        let counted = world.metric("fanout_unlabelled_chunks_total{media=\"audio\"}");
        assert_eq!(counted, u64::from(allow_unlabelled));
    }
    let world = World::new();
    let mut video = meta("video", Variant::LivePreview, 1, 10);
    video.media = Media::Video;
    world.hub.publish(&key, video).push(0, &Bytes::from_static(&[1; 10]));
    assert_eq!(world.metric("fanout_unlabelled_chunks_total{media=\"video\"}"), 1);
}

#[tokio::test]
async fn whole_chunks_come_after_their_hash_and_a_slow_reader_is_told() {
    let world = World::new();
    world.whole(audio(1, 10));
    let mut reader = world.hub.subscribe_whole(&grant(600), &stream("audio")).unwrap();
    let publication = world.hub.publish(&group(), audio(2, 10));
    publication.push(0, &Bytes::from_static(&[3; 10]));
    assert!(tokio::time::timeout(Duration::from_millis(10), reader.next()).await.is_err(), "not whole yet");
    publication.complete();
    let WholeEvent::Chunk(meta) = reader.next().await else { panic!() };
    assert_eq!((meta.index, reader.piece()), (2, Ok(Some(Bytes::from_static(&[3; 10])))));
    assert_eq!(reader.piece(), Ok(None));
    world.hub.state(audio(1, 0).chunk, ContactState::Confirmed, None, None);
    world.hub.state(meta.chunk, ContactState::Rejected, None, Some((Code::CoreCommitRejected, Some("quota".into()))));
    let WholeEvent::State(meta, state, error) = reader.next().await else { panic!() };
    assert_eq!((meta.index, state), (2, ContactState::Rejected));
    assert_eq!(error, Some((Code::CoreCommitRejected, Some("quota".into()))));
    world.whole(self::meta("video", Variant::LivePreview, 1, 10));
    for index in 3..=11 {
        world.whole(audio(index, 10));
    }
    assert!(matches!(reader.next().await, WholeEvent::End(Code::ContactTooSlow)));
    let mut reader = world.hub.subscribe_whole(&grant(600), &stream("audio")).unwrap();
    world.clock.advance(Duration::from_secs(600));
    assert!(matches!(reader.next().await, WholeEvent::End(Code::CapabilityExpired)));
}

#[tokio::test]
async fn a_whole_chunk_is_read_from_the_window_and_not_kept_beside_it() {
    let world = World::with(config::Fanout { memory_per_session: 1 << 20, ..config::Fanout::default() }, 10);
    let mut reader = world.hub.subscribe_whole(&grant(600), &stream("audio")).unwrap();
    world.whole(audio(1, 300_000));
    assert!(matches!(reader.next().await, WholeEvent::Chunk(meta) if meta.index == 1));
    assert!(reader.piece().unwrap().is_some_and(|piece| piece.len() < 1 << 16));
    for index in 2..=4 {
        world.whole(audio(index, 300_000));
    }
    assert_eq!(reader.piece(), Err(Code::ContactTooSlow), "its bytes gave way to newer ones");
    assert!(matches!(reader.next().await, WholeEvent::End(Code::ContactTooSlow)));
    assert_eq!(world.metric("fanout_subscription_endings_total{reason=\"too_slow\"}"), 1);
}

#[tokio::test]
async fn who_reads_a_chunk_that_comes_anew_on_another_lane_is_told_at_once() {
    let world = World::new();
    let before = world.hub.publish(&group(), audio(1, 10));
    before.push(0, &Bytes::from_static(&[1; 4]));
    let mut reader = world.hub.read(&grant(600), audio(1, 10).chunk).unwrap();
    reader.begins().await.unwrap();
    assert!(reader.next().await.unwrap().is_some());
    let told = tokio::spawn(async move { reader.next().await });
    tokio::task::yield_now().await;
    // What happens on the other lane is nothing to it.
    world.whole(meta("preview", Variant::LivePreview, 1, 10));
    tokio::task::yield_now().await;
    assert!(!told.is_finished());
    let _again = world.hub.publish(&group(), ChunkMeta { variant: Variant::LivePreview, ..audio(1, 20) });
    let told = tokio::time::timeout(Duration::from_secs(5), told).await.expect("it is woken").unwrap();
    assert_eq!(told, Err(Code::AttemptSuperseded));
}

#[tokio::test]
async fn one_chunk_is_waited_for_and_read_as_it_arrives() {
    let world = World::new();
    let chunk = audio(1, 10).chunk;
    let mut reader = world.hub.read(&grant(600), chunk).unwrap();
    assert!(tokio::time::timeout(Duration::from_millis(10), reader.begins()).await.is_err());
    let publication = world.hub.publish(&group(), audio(1, 10));
    publication.push(0, &Bytes::from_static(&[1; 4]));
    assert_eq!(reader.begins().await.unwrap().index, 1);
    assert_eq!(reader.next().await, Ok(Some(Bytes::from_static(&[1; 4]))));
    publication.push(4, &Bytes::from_static(&[2; 6]));
    assert_eq!(reader.next().await, Ok(Some(Bytes::from_static(&[2; 6]))));
    assert!(tokio::time::timeout(Duration::from_millis(10), reader.next()).await.is_err(), "the hash is not known yet");
    publication.complete();
    assert_eq!(reader.next().await, Ok(None));
    let bad = world.hub.publish(&group(), audio(2, 10));
    bad.push(0, &Bytes::from_static(&[1; 4]));
    let mut reader = world.hub.read(&grant(600), audio(2, 10).chunk).unwrap();
    reader.begins().await.unwrap();
    bad.withdraw(WithdrawnReason::HashMismatch);
    assert_eq!(reader.next().await, Err(Code::HashMismatch));
    let mut waiting = world.hub.read(&grant(600), audio(3, 10).chunk).unwrap();
    world.clock.advance(Duration::from_secs(600));
    assert_eq!(waiting.begins().await.err(), Some(Code::CapabilityExpired));
    let large = World::with(config::Fanout { max_chunk: 5, ..config::Fanout::default() }, 10);
    large.whole(audio(1, 10));
    assert_eq!(large.hub.read(&grant(600), chunk).err(), Some(Code::ChunkNotInWindow));
    let mut narrow = grant(6000);
    Arc::make_mut(&mut narrow).lanes = vec![lane_grant("other", Some(Variant::AudioPriority))];
    assert_eq!(world.hub.read(&narrow, chunk).err(), Some(Code::NotWatchable));
}

#[tokio::test]
async fn an_older_attempt_neither_takes_over_nor_withdraws() {
    let world = World::new();
    let mut contact = world.subscribe(from(StartWord::Oldest));
    let older = world.hub.publish(&group(), audio(1, 10));
    let mut other = audio(1, 10);
    other.sha256 = Digest([2; 32]);
    let newer = world.hub.publish(&group(), other);
    newer.push(0, &Bytes::from_static(&[2; 5]));
    older.push(0, &Bytes::from_static(&[1; 10]));
    older.complete();
    older.withdraw(WithdrawnReason::HashMismatch);
    newer.push(5, &Bytes::from_static(&[2; 5]));
    newer.complete();
    let got = drain(&mut contact).await;
    assert_eq!(kinds(&got).iter().filter(|kind| **kind == kind::COMPLETE).count(), 1);
    assert!(all::<message::Withdrawn>(&got, kind::WITHDRAWN).is_empty());
    let chunks: Vec<message::ChunkBegins> = all(&got, kind::CHUNK);
    assert_eq!(chunks[0].sha256, Digest([2; 32]));
}

#[tokio::test]
async fn groups_have_a_bound_and_the_quietest_unwatched_gives_way() {
    let world = World::new();
    let key = |number: usize| GroupKey::Group(incident(), GroupId::new(&format!("g{number}")).unwrap());
    let publish = |number: usize| {
        let mut meta = audio(1, 10);
        meta.stream = stream(&format!("s{number}"));
        meta.chunk = ChunkRef::of(&incident(), &meta.stream, 1);
        world.hub.publish(&key(number), meta).push(0, &Bytes::from_static(&[1; 10]));
    };
    let watching = |number: usize| {
        Arc::new(Grant { group: GroupId::new(&format!("g{number}")).ok(), ..Grant::clone(&grant(600)) })
    };
    let mut seats = vec![world.hub.subscribe(&watching(0), Wanted::default()).unwrap()];
    for number in 0..MAX_GROUPS {
        publish(number);
        world.clock.advance(Duration::from_millis(1));
    }
    assert_eq!(world.metric("fanout_groups"), MAX_GROUPS as u64);
    assert_eq!(world.metric("fanout_evicted_chunks_total{cause=\"linger\"}"), 0);
    publish(MAX_GROUPS);
    assert_eq!(world.metric("fanout_groups"), MAX_GROUPS as u64);
    assert_eq!(world.metric("fanout_evicted_chunks_total{cause=\"linger\"}"), 1);
    assert_eq!(begun(&drain(&mut seats[0]).await).len(), 1, "a watched group stays");
    for number in 1..MAX_GROUPS {
        seats.push(world.hub.subscribe(&watching(number), Wanted::default()).unwrap());
    }
    let refused = world.hub.subscribe(&watching(MAX_GROUPS), Wanted::default());
    assert_eq!(refused.err(), Some(Code::TooManyContacts));
    publish(MAX_GROUPS);
    drop(seats);
    assert_eq!(world.metric("fanout_contacts"), 0);
    assert!(world.metric("fanout_groups") < MAX_GROUPS as u64, "groups that only had contacts are gone");
}

#[test]
fn what_a_contact_costs_is_fixed_and_small() {
    assert!(size_of::<Subscription>() <= 1024, "{}", size_of::<Subscription>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_contacts_and_one_that_reads_nothing_get_everything_in_order() {
    let world = Arc::new(World::new());
    let _sleeper = world.subscribe(Wanted::default());
    let mut contacts = tokio::task::JoinSet::new();
    for contact in 0..1000 {
        let own = Arc::new(Grant { jti: Some(contact.to_string()), ..Grant::clone(&grant(600)) });
        let mut contact = world.hub.subscribe(&own, Wanted::default()).unwrap();
        contacts.spawn(async move {
            let mut indexes = Vec::new();
            loop {
                let step = contact.next().await;
                for frame in frames(&step) {
                    if frame.kind == kind::COMPLETE {
                        indexes.push(control::<message::Complete>(&frame).unwrap().handle);
                    }
                }
                if matches!(step, Step::End(_)) {
                    return indexes;
                }
            }
        });
    }
    for index in 1..=10 {
        let publication = world.hub.publish(&group(), audio(index, 4000));
        for part in 0..4 {
            publication.push(part * 1000, &Bytes::from(vec![2; 1000]));
            tokio::task::yield_now().await;
        }
        publication.complete();
        world.hub.state(audio(index, 0).chunk, ContactState::Confirmed, None, None);
    }
    world.hub.ended(&group());
    world.clock.advance(Duration::from_secs(5));
    while let Some(indexes) = contacts.join_next().await {
        assert_eq!(indexes.unwrap(), (1..=10).collect::<Vec<u64>>());
    }
    assert_eq!(world.metric("fanout_contacts"), 1);
}

#[path = "abandoned_tests.rs"]
mod abandoned;
