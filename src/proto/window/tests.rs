//! Any interleaving of publishing, forgetting and watching, against what a contact must see.

use std::collections::{BTreeMap, HashSet};

use proptest::prelude::*;

use super::out::THIN_STEP;
use super::*;
use crate::cursor::Cursor;
use crate::frame::{self, Frame, Piece, kind};
use crate::memory::{Bound, Budget, Full};
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

/// Small, so that records have to give way too.
const LIMIT: u64 = 300_000;
const PER_SESSION: u64 = 250_000;

/// A window with its account, driven as the hub drives it.
struct World {
    window: Window,
    budget: Budget<Place>,
    attempts: Vec<Attempt>,
    confirmed: HashSet<(String, u64)>,
    /// Everything that began, with its handle.
    begun: Vec<(Place, (String, u64), u64)>,
    now: u64,
}

struct Attempt {
    meta: Arc<ChunkMeta>,
    owner: u64,
    at: u64,
    place: Option<Place>,
}

/// The byte of a chunk at an offset: what must arrive.
fn byte(stream: &str, index: u64, digest: u8, offset: u64) -> u8 {
    let seed = stream.bytes().fold(u64::from(digest), |seed, b| seed * 31 + u64::from(b));
    (seed + index * 7 + offset * 13 + offset / 251) as u8
}

impl World {
    fn new() -> Self {
        let rules = Rules {
            window_ms: 12_000,
            max_chunk: 200_000,
            silent_ms: 15_000,
            patience_ms: 30_000,
            node: "node".into(),
        };
        Self {
            window: Window::new(rules, IncidentId::new("i").unwrap(), 42),
            budget: Budget::new(LIMIT, PER_SESSION, |_| false),
            attempts: Vec::new(),
            confirmed: HashSet::new(),
            begun: Vec::new(),
            now: 0,
        }
    }

    fn settle(&mut self) {
        for effect in self.window.take_effects() {
            match effect {
                Effect::Release(slot) => self.budget.release(slot),
                Effect::Carry(from, to) => self.budget.carry(from, to),
                Effect::Close(slot) => self.budget.close(slot),
                Effect::Forget(_) | Effect::Evicted(_) | Effect::Withdrawn(_) => {}
            }
        }
        assert!(self.budget.total() <= LIMIT);
        let entries = || self.window.lanes.iter().flat_map(|lane| lane.entries().map(|(_, entry)| entry));
        let held: u64 = entries().filter_map(|entry| entry.body.as_ref()).map(|body| body.have()).sum();
        let charged: u64 = entries().map(|entry| RECORD_COST + entry.body.as_ref().map_or(0, |body| body.cost())).sum();
        assert!(held <= self.budget.total(), "what is held is charged");
        assert_eq!(self.budget.total(), charged, "what is gone is not");
    }

    fn make_room(&mut self, full: Full<Place>) {
        let (slot, place) = full.victim.expect("one chunk always fits");
        let cause = if full.bound == Bound::Memory { Cause::Memory } else { Cause::Session };
        assert_eq!(self.window.slot(place), Some(slot));
        assert!(self.window.evict(place, cause));
        self.settle();
    }

    fn publish(&mut self, stream: usize, index: u64, length: u64, digest: u8) {
        let name = ["a1", "a2", "v1"][stream];
        let mut meta = meta(name, index, index as i64 * 2 + stream as i64, length);
        meta.sha256 = Digest([digest; 32]);
        meta.session = SessionId::new(["s1", "s2", "s2"][stream]).unwrap();
        if stream == 2 {
            meta.variant = Variant::LivePreview;
        }
        let owner = self.attempts.len() as u64 + 1;
        let place = match self.window.open(&meta, owner) {
            Opened::Here(place) => Some(place),
            Opened::Fresh | Opened::Stale => None,
        };
        self.settle();
        self.attempts.push(Attempt { meta: Arc::new(meta), owner, at: 0, place });
    }

    fn push(&mut self, attempt: usize, len: u64, skip: u64) {
        let Some(attempt) = pick(self.attempts.len(), attempt) else { return };
        let (meta, owner, at) = {
            let a = &mut self.attempts[attempt];
            a.at = (a.at + skip).min(a.meta.length);
            let at = a.at;
            a.at = (at + len).min(a.meta.length);
            (a.meta.clone(), a.owner, at)
        };
        let len = len.min(meta.length - at);
        let digest = meta.sha256.0[0];
        let bytes: Vec<u8> = (at..at + len).map(|at| byte(meta.stream.as_str(), meta.index, digest, at)).collect();
        let Some(place) = self.begun(attempt, &meta, owner, at) else { return };
        loop {
            let price = self.window.price(place, at, bytes.len()).unwrap_or(0);
            let slot = self.window.slot(place).unwrap_or(0);
            match self.budget.charge(slot, price) {
                Ok(()) => break,
                Err(full) => self.make_room(full),
            }
        }
        self.window.push(place, at, &bytes, Some(self.now));
        self.settle();
    }

    fn begun(&mut self, attempt: usize, meta: &Arc<ChunkMeta>, owner: u64, at: u64) -> Option<Place> {
        if let Some(place) = self.attempts[attempt].place {
            return Some(place);
        }
        let place = match self.window.open(meta, owner) {
            Opened::Here(place) => Some(place),
            Opened::Stale => None,
            Opened::Fresh => loop {
                let place = self.window.next_place(lane_of(meta.variant).unwrap());
                match self.budget.open(&meta.session, place, RECORD_COST) {
                    Ok(slot) => break self.window.begin(meta, owner, slot, at, Some(self.now)),
                    Err(full) => self.make_room(full),
                }
            },
        };
        self.settle();
        if let Some(place) = place
            && let Some(entry) = self.window.lanes[place.lane].entry(place.seq)
            && self.begun.iter().all(|begun| begun.0 != place)
        {
            self.begun.push((place, (meta.stream.as_str().to_owned(), meta.index), entry.handle));
        }
        self.attempts[attempt].place = place;
        place
    }

    fn complete(&mut self, attempt: usize) {
        let Some(attempt) = pick(self.attempts.len(), attempt) else { return };
        let (meta, owner, at) =
            (self.attempts[attempt].meta.clone(), self.attempts[attempt].owner, self.attempts[attempt].at);
        if at == meta.length
            && let Some(place) = self.begun(attempt, &meta, owner, at)
        {
            self.window.complete(place, Some(self.now));
            self.settle();
        }
    }

    fn withdraw(&mut self, attempt: usize, reason: WithdrawnReason) {
        let Some(attempt) = pick(self.attempts.len(), attempt) else { return };
        if let Some(place) = self.attempts[attempt].place {
            self.window.withdraw(place, self.attempts[attempt].owner, reason);
            self.settle();
        }
    }

    fn state(&mut self, attempt: usize, state: ContactState) {
        let Some(attempt) = pick(self.attempts.len(), attempt) else { return };
        let meta = self.attempts[attempt].meta.clone();
        if state == ContactState::Confirmed {
            self.confirmed.insert((meta.stream.as_str().to_owned(), meta.index));
        }
        self.window.set_state(meta.chunk, state, None, None);
        self.settle();
    }
}

fn pick(len: usize, at: usize) -> Option<usize> {
    (len > 0).then(|| at % len)
}

/// What one contact was told, over all its connections.
struct Seen {
    contact: Contact,
    lanes: [bool; 2],
    /// Chunks it must hear of are those from these places on.
    from: [u64; 2],
    chunks: BTreeMap<u64, Told>,
    omitted: HashSet<(String, u64)>,
    /// Left out for newer ones.
    slow: HashSet<(String, u64)>,
    /// Everything it was told to exist.
    named: HashSet<(String, u64)>,
    fetched: HashSet<(String, u64)>,
    /// Asked for on this connection while it was there.
    owed: HashSet<(String, u64)>,
    /// The last cursor that it was sent, and the chunks that were told to their end by then: later ones may come
    /// again.
    cursor: Option<(String, HashSet<u64>)>,
    /// How it was told that the device is.
    capture: Option<CaptureWord>,
    /// The chunk of each lane that began last on this connection.
    newest: [u64; 2],
    /// It left a lane and may come back: of what passed meanwhile it may hear states.
    left: bool,
}

#[derive(Debug)]
struct Told {
    name: (String, u64),
    length: u64,
    digest: u8,
    have: u64,
    end: Option<&'static str>,
}

impl Seen {
    fn new(world: &World, lanes: [bool; 2], start: Start) -> Self {
        let contact = Contact::new(&world.window, View { lanes, streams: None }, start, world.now);
        Self {
            from: [contact.lanes[0].next, contact.lanes[1].next],
            contact,
            lanes,
            chunks: BTreeMap::new(),
            omitted: HashSet::new(),
            slow: HashSet::new(),
            named: HashSet::new(),
            fetched: HashSet::new(),
            owed: HashSet::new(),
            cursor: None,
            capture: None,
            newest: [0; 2],
            left: false,
        }
    }

    fn poll(&mut self, world: &mut World, turn: Turn) -> bool {
        let mut out = if turn.thin { Out::thin() } else { Out::default() }.holding(turn.held);
        self.contact.poll(&mut world.window, world.now, &mut out);
        let frames = frame::split_message(out.frames.concat().into()).unwrap();
        let media: usize = frames.iter().filter(|frame| frame.kind == kind::PIECE).map(|frame| frame.body.len()).sum();
        assert!(media <= if turn.thin { THIN_STEP + 32 } else { STEP_MEDIA });
        for frame in &frames {
            self.hear(frame, world);
        }
        if turn.cursor {
            let ended = self.chunks.iter().filter(|(_, told)| told.end.is_some()).map(|(handle, _)| *handle).collect();
            self.cursor = Some((self.contact.cursor(&world.window), ended));
        }
        !frames.is_empty()
    }

    fn hear(&mut self, frame: &Frame, world: &World) {
        match frame.kind {
            kind::CHUNK => {
                let chunk: message::ChunkBegins = frame::control(frame).unwrap();
                let name = (chunk.stream.as_str().to_owned(), chunk.index);
                let told =
                    Told { length: chunk.length, digest: chunk.sha256.0[0], have: 0, end: None, name: name.clone() };
                assert!(self.lanes[lane_of(chunk.variant).unwrap()] || self.fetched.contains(&name));
                assert!(chunk.state != ContactState::Confirmed || world.confirmed.contains(&name));
                self.named.insert(name.clone());
                if !self.fetched.contains(&name) {
                    let newest = &mut self.newest[lane_of(chunk.variant).unwrap()];
                    assert!(chunk.handle > *newest, "begun out of order");
                    *newest = chunk.handle;
                }
                let before = self.chunks.insert(chunk.handle, told);
                assert!(before.is_none() || self.fetched.contains(&name), "begun twice");
            }
            kind::PIECE => {
                let piece = Piece::decode(frame.body.clone()).unwrap();
                let told = self.chunks.get_mut(&piece.handle).expect("a piece of what was begun");
                assert_eq!((piece.offset, told.end), (told.have, None));
                for (at, got) in piece.bytes.iter().enumerate() {
                    assert_eq!(*got, byte(&told.name.0, told.name.1, told.digest, piece.offset + at as u64));
                }
                told.have += piece.bytes.len() as u64;
                assert!(told.have <= told.length);
            }
            kind::COMPLETE => {
                let complete: message::Complete = frame::control(frame).unwrap();
                let told = self.chunks.get_mut(&complete.handle).unwrap();
                assert_eq!((told.have, told.end.replace("complete")), (told.length, None));
            }
            kind::WITHDRAWN => {
                let withdrawn: message::Withdrawn = frame::control(frame).unwrap();
                if let Some(told) = self.chunks.get_mut(&withdrawn.handle) {
                    told.end = Some("withdrawn");
                }
            }
            kind::OMITTED => {
                let omitted: message::Omitted = frame::control(frame).unwrap();
                for index in omitted.from..=omitted.to {
                    let name = (omitted.stream.as_str().to_owned(), index);
                    self.named.insert(name.clone());
                    if omitted.reason == message::OmittedReason::Slow {
                        self.slow.insert(name.clone());
                    }
                    self.omitted.insert(name);
                }
            }
            kind::CAPTURE => {
                let capture: message::CaptureEvent = frame::control(frame).unwrap();
                self.capture = Some(capture.event).filter(|word| *word != CaptureWord::Back);
            }
            kind::STATE => {
                let state: message::ContactChunkState = frame::control(frame).unwrap();
                let name = (state.stream.as_str().to_owned(), state.index);
                assert!(self.named.contains(&name) || self.left, "a state of what was never named");
                assert!(state.state != ContactState::Confirmed || world.confirmed.contains(&name));
            }
            _ => {}
        }
    }

    /// A new connection. What was begun and not finished when the cursor was sent, or began later, begins again.
    fn resume(&mut self, world: &mut World) {
        let Some((cursor, ended)) = self.cursor.clone() else { return };
        self.chunks.retain(|handle, told| told.end.is_some() && ended.contains(handle));
        self.capture = None;
        self.newest = [0; 2];
        self.owed.clear();
        let cursor = Cursor::decode(&cursor).unwrap();
        let start = Start::Cursor(cursor.clone());
        self.contact = Contact::new(&world.window, View { lanes: self.lanes, streams: None }, start, world.now);
        // Of a lane that joined after the cursor nothing came yet.
        for (lane, _) in cursor.lanes.iter().enumerate().filter(|(_, at)| at.is_none()) {
            self.from[lane] = self.contact.lanes[lane].next;
        }
    }

    /// Asks for one chunk.
    fn fetch(&mut self, world: &World, name: (String, u64)) {
        let had = self.chunks.values().any(|told| told.name == name && told.end == Some("complete"));
        let chunk = ChunkRef::of(&world.window.incident, &StreamId::new(&name.0).unwrap(), name.1);
        let place = world.window.place(chunk);
        let here = place.and_then(|place| world.window.lanes[place.lane].entry(place.seq)).is_some_and(Entry::held);
        let asked = self.contact.fetch(&world.window, &StreamId::new(&name.0).unwrap(), name.1);
        if asked.is_ok() && here && !had {
            self.owed.insert(name.clone());
        }
        self.fetched.insert(name);
    }

    /// It asks for other lanes. What it leaves in the middle ends without a word, unless it asked for it; a lane
    /// that joins begins where the window says.
    fn look(&mut self, world: &World, lanes: [bool; 2]) {
        self.contact.look(View { lanes, streams: None }, &world.window);
        let (before, owed) = (std::mem::replace(&mut self.lanes, lanes), &self.owed);
        self.left |= (0..2).any(|lane| before[lane] && !lanes[lane]);
        let lane = |name: &(String, u64)| usize::from(name.0 == "v1");
        self.chunks.retain(|_, told| told.end.is_some() || lanes[lane(&told.name)] || owed.contains(&told.name));
        for lane in 0..2 {
            if lanes[lane] && !before[lane] {
                self.from[lane] = self.contact.lanes[lane].next;
            }
        }
    }

    /// Everything of its lanes was told: to its end, as far as it is here, or as left out.
    fn check(&self, world: &World) {
        assert_eq!(self.capture, world.window.capture);
        let mine = |place: &Place| self.lanes[place.lane] && place.seq >= self.from[place.lane];
        for (place, name, handle) in world.begun.iter().filter(|begun| mine(&begun.0)) {
            let told = self.chunks.get(handle);
            let ended = told.and_then(|told| told.end);
            let omitted = self.omitted.contains(name);
            let again = world.begun.iter().any(|other| other.1 == *name && other.2 > *handle);
            let fine = match world.window.lanes[place.lane].entry(place.seq) {
                None => ended.is_some() || omitted || told.is_none() && again,
                Some(entry) if entry.withdrawn.is_some() => {
                    ended == Some("withdrawn") || told.is_none() && (again || omitted)
                }
                Some(entry) if !entry.held() => ended == Some("complete") || omitted,
                // A picture that was late, and only that.
                Some(_) if place.lane == 1 && told.is_none() && self.slow.contains(name) => true,
                Some(entry) if entry.whole => ended == Some("complete"),
                Some(entry) => told.is_some_and(|told| Some(told.have) == entry.body.as_ref().map(|body| body.have())),
            };
            assert!(fine, "{name:?} {place:?} told {told:?} omitted {:?}", self.omitted);
        }
        for name in &self.owed {
            let came = self.chunks.values().any(|told| told.name == *name);
            assert!(came || self.omitted.contains(name), "{name:?} was asked for: {:?}", self.chunks);
        }
        for told in self.chunks.values() {
            let open = told.end.is_none();
            let place = world.window.lanes.iter().any(|lane| {
                lane.entries()
                    .any(|(_, e)| e.held() && (e.meta.stream.as_str(), e.meta.index) == (&told.name.0, told.name.1))
            });
            assert!(!open || place || self.omitted.contains(&told.name), "left open without a word: {told:?}");
        }
    }
}

/// How a contact is polled.
#[derive(Debug, Clone, Copy)]
struct Turn {
    thin: bool,
    held: [bool; 2],
    /// It is sent a cursor.
    cursor: bool,
}

impl Turn {
    /// Everything goes.
    const ALL: Self = Self { thin: false, held: [false; 2], cursor: true };
}

#[derive(Debug, Clone)]
enum Op {
    Publish(usize, u64, u64, u8),
    Push(usize, u64),
    Gap(usize, u64),
    All(usize),
    Complete(usize),
    Withdraw(usize, WithdrawnReason),
    State(usize, ContactState),
    Join([bool; 2], u8, u64),
    Poll(usize, Turn),
    Capture(CaptureWord),
    Resume(usize),
    Look(usize, [bool; 2]),
    Fetch(usize, usize, u64),
    Wait(u64),
}

fn op() -> impl Strategy<Value = Op> {
    let length = prop_oneof![6 => 1u64..3000, 1 => 90_000u64..210_000];
    let reason = prop_oneof![
        Just(WithdrawnReason::HashMismatch),
        Just(WithdrawnReason::Stalled),
        Just(WithdrawnReason::Superseded)
    ];
    let state = prop_oneof![
        Just(ContactState::NearLiveUnconfirmed),
        Just(ContactState::Confirmed),
        Just(ContactState::Rejected),
        Just(ContactState::Unsettled),
        Just(ContactState::TerminalFailure)
    ];
    let lanes = prop_oneof![Just([true, true]), Just([true, false]), Just([false, true])];
    let held = prop_oneof![4 => Just([false, false]), 1 => Just([false, true]), 1 => Just([true, false])];
    let turn = (prop::bool::weighted(0.3), held, any::<bool>());
    let turn = turn.prop_map(|(thin, held, cursor)| Turn { thin, held, cursor });
    let capture = prop_oneof![3 => Just(CaptureWord::Back), 1 => Just(CaptureWord::Ended)];
    prop_oneof![
        5 => (0usize..3, 1u64..14, length, 0u8..6).prop_map(|(s, i, l, d)| Op::Publish(s, i, l, d / 5)),
        5 => (0usize..40, 1u64..2000).prop_map(|(a, l)| Op::Push(a, l)),
        1 => (0usize..40, 1u64..500).prop_map(|(a, l)| Op::Gap(a, l)),
        5 => (0usize..40).prop_map(Op::All),
        3 => (0usize..40).prop_map(Op::Complete),
        2 => (0usize..40, reason).prop_map(|(a, r)| Op::Withdraw(a, r)),
        2 => (0usize..40, state).prop_map(|(a, s)| Op::State(a, s)),
        1 => (0usize..6, lanes.clone()).prop_map(|(c, l)| Op::Look(c, l)),
        2 => (lanes, 0u8..3, 1u64..14).prop_map(|(l, s, i)| Op::Join(l, s, i)),
        6 => (0usize..6, turn).prop_map(|(c, t)| Op::Poll(c, t)),
        1 => capture.prop_map(Op::Capture),
        1 => (0usize..6).prop_map(Op::Resume),
        1 => (0usize..6, 0usize..3, 1u64..14).prop_map(|(c, s, i)| Op::Fetch(c, s, i)),
        1 => (1u64..20_000).prop_map(Op::Wait),
    ]
}

fn run(ops: Vec<Op>) {
    let mut world = World::new();
    let mut contacts: Vec<Seen> = Vec::new();
    for op in ops {
        match op {
            Op::Publish(stream, index, length, digest) => world.publish(stream, index, length, digest),
            Op::Push(attempt, len) => world.push(attempt, len, 0),
            Op::Gap(attempt, skip) => world.push(attempt, 100, skip),
            Op::All(attempt) => world.push(attempt, u64::MAX / 2, 0),
            Op::Complete(attempt) => world.complete(attempt),
            Op::Withdraw(attempt, reason) => world.withdraw(attempt, reason),
            Op::State(attempt, state) => world.state(attempt, state),
            Op::Join(lanes, start, index) if contacts.len() < 6 => {
                let start = match start {
                    0 => Start::Live,
                    1 => Start::Oldest,
                    _ => Start::At(StreamId::new("a1").unwrap(), index),
                };
                contacts.push(Seen::new(&world, lanes, start));
            }
            Op::Join(..) => {}
            Op::Poll(contact, turn) => {
                if let Some(contact) = pick(contacts.len(), contact) {
                    contacts[contact].poll(&mut world, turn);
                }
            }
            Op::Capture(CaptureWord::Ended) => world.window.ended(world.now),
            Op::Capture(_) => world.window.alive(world.now),
            Op::Resume(contact) => {
                if let Some(contact) = pick(contacts.len(), contact) {
                    contacts[contact].resume(&mut world);
                }
            }
            Op::Look(contact, lanes) => {
                if let Some(contact) = pick(contacts.len(), contact) {
                    contacts[contact].look(&world, lanes);
                }
            }
            Op::Fetch(contact, stream, index) => {
                if let Some(contact) = pick(contacts.len(), contact) {
                    contacts[contact].fetch(&world, (["a1", "a2", "v1"][stream].to_owned(), index));
                }
            }
            Op::Wait(ms) => {
                world.now += ms;
                world.window.tick(world.now);
            }
        }
    }
    for contact in &mut contacts {
        for _ in 0..200 {
            if !contact.poll(&mut world, Turn::ALL) {
                break;
            }
        }
        assert!(!contact.poll(&mut world, Turn::ALL), "a poll that never ends");
        contact.check(&world);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn a_contact_sees_everything_once_and_in_order_or_is_told(ops in prop::collection::vec(op(), 1..120)) {
        run(ops);
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

#[test]
fn what_a_stalled_chunk_cost_goes_on_with_its_bytes() {
    let mut world = World::new();
    world.publish(0, 1, 5000, 0);
    world.push(0, 3000, 0);
    world.withdraw(0, WithdrawnReason::Stalled);
    world.publish(0, 1, 5000, 0);
    world.push(1, 3000, 3000);
    let place = world.attempts[1].place.unwrap();
    assert!(world.budget.total() > 5000 + 2 * RECORD_COST);
    assert!(world.window.evict(place, Cause::Memory));
    world.settle();
    assert_eq!(world.budget.total(), 2 * RECORD_COST);
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
