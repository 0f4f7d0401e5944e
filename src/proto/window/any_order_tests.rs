//! Any interleaving of publishing, forgetting, restarting and watching, against what a contact must see.

use std::collections::{BTreeMap, HashSet};

use proptest::prelude::*;

use super::any_order_world::{Name, STREAMS, World, byte, lane, pick};
use super::out::THIN_STEP;
use super::*;
use crate::cursor::Cursor;
use crate::frame::{self, Frame, Piece, kind};
use crate::message;

/// What one contact was told, over all its connections.
struct Seen {
    contact: Contact,
    lanes: [bool; 2],
    /// Chunks it must hear of are those from these places on.
    from: [u64; 2],
    chunks: BTreeMap<u64, Told>,
    omitted: HashSet<Name>,
    /// Left out for newer ones.
    slow: HashSet<Name>,
    /// Everything it was told to exist.
    named: HashSet<Name>,
    fetched: HashSet<Name>,
    /// Asked for on this connection while it was there.
    owed: HashSet<Name>,
    /// The last cursor that it was sent.
    cursor: Option<Snapshot>,
    /// Told of by windows before this one, as far as its cursor knows: to the end, and left out.
    had: HashSet<Name>,
    left_out: HashSet<Name>,
    /// What it had of an earlier window, and was withdrawn in this one.
    taken_back: HashSet<u64>,
    /// Of earlier windows, and none of its: begun before it came, or of another lane.
    unconcerned: HashSet<Name>,
    /// How it was told that the device is.
    capture: Option<CaptureWord>,
    /// The chunk of each lane that began last on this connection.
    newest: [u64; 2],
    /// It came back to a window to which it had come from an earlier one: that is forgotten by then.
    came_back: bool,
    /// It left a lane and may come back: of what passed meanwhile it may hear states.
    left: bool,
}

/// What there was when a cursor was sent: what ended later may come again.
#[derive(Debug, Clone)]
struct Snapshot {
    text: String,
    instance: u64,
    ended: HashSet<u64>,
    had: HashSet<Name>,
    left_out: HashSet<Name>,
}

#[derive(Debug)]
struct Told {
    name: Name,
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
            had: HashSet::new(),
            left_out: HashSet::new(),
            taken_back: HashSet::new(),
            unconcerned: HashSet::new(),
            capture: None,
            newest: [0; 2],
            left: false,
            came_back: false,
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
            let ended = || self.chunks.iter().filter(|(_, told)| told.end.is_some());
            // Of several attempts at a chunk the last one counts.
            let last: BTreeMap<&Name, &Told> = self.chunks.values().map(|told| (&told.name, told)).collect();
            let whole = last.into_values().filter(|told| told.end == Some("complete")).map(|told| told.name.clone());
            self.cursor = Some(Snapshot {
                text: self.contact.cursor(&world.window),
                instance: world.instance,
                ended: ended().map(|(handle, _)| *handle).collect(),
                had: whole.chain(self.had.iter().cloned()).collect(),
                left_out: self.omitted.clone(),
            });
        }
        !frames.is_empty()
    }

    fn hear(&mut self, frame: &Frame, world: &World) {
        match frame.kind {
            kind::CHUNK => {
                let chunk: message::ChunkBegins = frame::control(frame).unwrap();
                let name = (chunk.stream.as_str().to_owned(), chunk.index);
                let again = world.begun.iter().any(|begun| begun.1 == name && begun.2 < chunk.handle);
                // A lane that it left begins anew in another window.
                let unsaid = self.is_far(&name) || self.too_many(lane(&name.0));
                let anew = again || self.left || self.came_back || self.fetched.contains(&name) || unsaid;
                assert!(!self.had.remove(&name) || anew, "brought by two windows");
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
                // Another attempt at it is news, also where an earlier window brought it.
                let of = world.begun.iter().find(|begun| begun.2 == withdrawn.handle);
                if of.is_some_and(|begun| self.had.remove(&begun.1)) {
                    self.taken_back.insert(withdrawn.handle);
                }
            }
            kind::OMITTED => {
                let omitted: message::Omitted = frame::control(frame).unwrap();
                self.check_omitted(&omitted, world);
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
                let named = self.named.contains(&name) || self.unconcerned.contains(&name);
                assert!(named || self.left, "a state of what was never named");
                assert!(state.state != ContactState::Confirmed || world.confirmed.contains(&name));
            }
            _ => {}
        }
    }

    /// The relay goes.
    fn lose(&mut self, world: &World) {
        let mine = |place: &Place| self.lanes[place.lane] && place.seq >= self.from[place.lane];
        let others = world.begun.iter().filter(|begun| !mine(&begun.0)).map(|begun| begun.1.clone());
        self.unconcerned.extend(others);
    }

    /// A new connection. What was begun and not finished when the cursor was sent, or began later, begins again.
    fn resume(&mut self, world: &World, start: Start) {
        let Some(snapshot) = self.cursor.clone() else {
            *self = Self::new(world, self.lanes, start);
            return;
        };
        let here = snapshot.instance == world.instance;
        self.came_back = here && world.instance > 1;
        self.chunks.retain(|handle, told| here && told.end.is_some() && snapshot.ended.contains(handle));
        if !here {
            (self.had, self.left_out, self.from) = (snapshot.had, snapshot.left_out, [0; 2]);
            self.taken_back.clear();
        }
        self.capture = None;
        self.newest = [0; 2];
        self.owed.clear();
        let cursor = Cursor::decode(&snapshot.text).unwrap();
        let start = Start::Cursor(cursor.clone());
        self.contact = Contact::new(&world.window, View { lanes: self.lanes, streams: None }, start, world.now);
        // Of a lane that joined after the cursor nothing came yet.
        for (lane, _) in cursor.lanes.iter().enumerate().filter(|(_, at)| at.is_none()) {
            self.from[lane] = self.contact.lanes[lane].next;
        }
    }

    /// Asks for one chunk.
    fn fetch(&mut self, world: &World, name: Name) {
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
        self.chunks.retain(|_, told| told.end.is_some() || lanes[lane(&told.name.0)] || owed.contains(&told.name));
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
            let followed = |place: Place| world.window.lanes[place.lane].entry(place.seq).is_some();
            let before = || world.begun.iter().any(|b| b.1 == *name && b.2 < *handle && followed(b.0));
            let elsewhere = told.is_none()
                && (self.had.contains(name) && !before()
                    || self.taken_back.contains(handle)
                    || self.left_out.contains(name)
                    || self.unconcerned.contains(name));
            assert!(fine || elsewhere, "{name:?} {place:?} told {told:?} omitted {:?}", self.omitted);
        }
        self.check_holes(world);
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

impl Seen {
    /// What it had of an earlier window, and of this one not yet, is not said to be gone, unless it asks for it.
    fn check_omitted(&self, omitted: &message::Omitted, world: &World) {
        for index in omitted.from..=omitted.to {
            let name = (omitted.stream.as_str().to_owned(), index);
            let anew = world.begun.iter().filter(|begun| begun.1 == name).count() > 1;
            let unknown = self.left || self.came_back || self.fetched.contains(&name) || self.is_far(&name) || anew;
            let wrong = omitted.reason == message::OmittedReason::Evicted && self.had.contains(&name) && !unknown;
            assert!(!wrong || self.too_many(lane(&name.0)), "{name:?} is here, and said to be gone");
        }
    }

    /// Whether more streams of a lane were delivered than a cursor speaks of.
    fn too_many(&self, of: usize) -> bool {
        let streams: HashSet<&str> = self.had.iter().map(|name| name.0.as_str()).collect();
        streams.into_iter().filter(|stream| lane(stream) == of).count() > crate::cursor::MAX_DELIVERED
    }

    /// Whether a cursor says nothing of this: it is too far back.
    fn is_far(&self, name: &Name) -> bool {
        let told = self.had.iter().chain(&self.named).chain(&self.unconcerned);
        told.filter(|other| other.0 == name.0).any(|other| other.1 >= name.1 + 64)
    }

    /// Of a stream of which an earlier window delivered something, and this one more: what came between and is not
    /// here was left out by name.
    fn check_holes(&self, world: &World) {
        for stream in STREAMS {
            let had: Vec<u64> = self.had.iter().filter(|name| name.0 == stream).map(|name| name.1).collect();
            let Some(highest) = had.iter().max().filter(|_| !self.too_many(lane(stream))) else { continue };
            let lowest = had.iter().filter(|index| **index + 64 > *highest).min().unwrap();
            let more = |name: &&Name| name.0 == stream && name.1 > *highest;
            let omitted = self.left_out.iter().filter(more).map(|name| name.1).max().unwrap_or(0);
            let told = self.chunks.values().map(|told| &told.name).filter(more).filter(|name| name.1 > omitted);
            let told: Vec<&Name> = told.collect();
            let far = self.is_far(&(stream.to_owned(), *highest));
            if self.left || far || told.is_empty() || told.iter().any(|name| self.fetched.contains(*name)) {
                continue;
            }
            let begun = || world.begun.iter().map(|begun| &begun.1);
            let first = begun().filter(more).map(|name| name.1).min().unwrap();
            for index in *lowest..first {
                let name = (stream.to_owned(), index);
                let known =
                    self.had.contains(&name) || self.omitted.contains(&name) || self.unconcerned.contains(&name);
                assert!(known || begun().any(|other| *other == name), "{name:?} passed in silence: {:?}", self.had);
            }
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
    Leave(usize),
    Drop(usize),
    Clear,
    Restart,
    Wait(u64),
}

fn op() -> impl Strategy<Value = Op> {
    let stream = prop_oneof![8 => 0usize..3, 1 => 3usize..8];
    let index = prop_oneof![12 => 1u64..14, 1 => 66u64..76];
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
        5 => (stream.clone(), index.clone(), length, 0u8..6).prop_map(|(s, i, l, d)| Op::Publish(s, i, l, d / 5)),
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
        1 => (0usize..6, stream, index).prop_map(|(c, s, i)| Op::Fetch(c, s, i)),
        1 => (0usize..40).prop_map(Op::Leave),
        1 => (0usize..40).prop_map(Op::Drop),
        1 => prop_oneof![1 => Just(Op::Clear), 3 => Just(Op::Restart)],
        1 => (1u64..40_000).prop_map(Op::Wait),
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
                    contacts[contact].resume(&world, Start::Oldest);
                }
            }
            Op::Look(contact, lanes) => {
                if let Some(contact) = pick(contacts.len(), contact) {
                    contacts[contact].look(&world, lanes);
                }
            }
            Op::Fetch(contact, stream, index) => {
                if let Some(contact) = pick(contacts.len(), contact) {
                    contacts[contact].fetch(&world, (STREAMS[stream].to_owned(), index));
                }
            }
            Op::Leave(attempt) => world.leave(attempt),
            Op::Drop(attempt) => world.drop_chunk(attempt),
            Op::Clear => world.clear(),
            Op::Restart => {
                contacts.iter_mut().for_each(|contact| contact.lose(&world));
                world.restart();
                contacts.iter_mut().for_each(|contact| contact.resume(&world, Start::Live));
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
