//! Which chunk goes next: the order of mercy (design, promise 5) on the device. Pure: no clock,
//! no I/O; `now` is in milliseconds of any monotonic clock.
//!
//! 1. First chunks of the lanes: audio, preview, context, master. A master's first chunk goes
//!    before later audio only if it takes under two seconds at the measured rate.
//! 2. Then audio, preview, context, master; within a class the oldest first.
//!
//! Room for bytes on the move is kept by class, so that masters never fill it: see [`Room`].

use std::collections::BTreeMap;

use waystation_proto::Class;

use super::policy::Turn;

/// A master's first chunk keeps its early place if it takes less than this.
const FIRST_MASTER_LIMIT_MS: u64 = 2000;

/// Place in the order; the smallest goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank {
    /// 0-3 first chunks by class, 4-7 later ones by class.
    level: u8,
    /// Start of the recorded stretch, milliseconds since the Unix epoch.
    started_ms: i64,
    /// Order of cutting.
    id: u64,
}

impl Rank {
    /// The class it belongs to, as [`Class::rank`].
    #[must_use]
    pub const fn class(self) -> usize {
        (self.level % 4) as usize
    }

    /// The same order for a transport that takes numbers, where the highest goes first. Of more
    /// than 16 million chunks it knows the order within that many.
    #[must_use]
    pub const fn priority(self) -> i32 {
        -((self.level as i32) << 24) - (self.id & 0xff_ffff) as i32
    }
}

/// A chunk that waits to be offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiting {
    /// The caller's name for it; counts up in the order of cutting.
    pub id: u64,
    /// Its class.
    pub class: Class,
    /// It is the first of its lane.
    pub first: bool,
    /// Start of the recorded stretch, milliseconds since the Unix epoch.
    pub started_ms: i64,
    /// Bytes.
    pub length: u64,
    /// The relay is known to hold it whole: offering it moves no bytes.
    pub held: bool,
    /// It was offered before: what the relay holds of it is asked first, and no bytes move meanwhile.
    pub begun: bool,
    /// Not to be offered before this moment.
    pub due_ms: u64,
}

/// Chunks that were begun go on one after the other, but each is asked about first, which takes a round trip: so many
/// are asked about while the bytes of another move. On a WebSocket an offer takes as long.
pub(super) const ASKED: usize = 2;

/// A relay waits two minutes for the first byte of what it was offered. What takes longer than this is not offered ahead
/// of its turn, also where as much of other lanes goes before it.
const SOON_MS: u64 = 20_000;
/// Bytes per second that are reckoned with while no rate is known.
const SLOW: u64 = 12_500;

/// How many chunks are on their way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Moving {
    /// Offered, and their bytes are not all sent; by class, as [`Class::rank`].
    pub bodies: [usize; 4],
    /// Asked about only: the relay is thought to hold them.
    pub probes: usize,
}

/// How many may be on their way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Bodies whose bytes move. The connection sends in the order of mercy, so a body of a lower
    /// class stands still while one of a higher class is sent: only those of the same and of
    /// higher classes count against a chunk. Beside them each lower class has at most one that
    /// stands still, and masters always one place, and so their share.
    pub bodies: usize,
    /// So many more of those that were begun: they are only asked about, as long as another's bytes move. None on
    /// a connection whose questions and bytes are one.
    pub asked: usize,
    /// The same for fresh ones that take less than 20 s: the connection offers them, and begins none before
    /// its turn.
    pub ahead: bool,
    /// Probes.
    pub probes: usize,
}

/// The waiting chunks.
#[derive(Debug, Default)]
pub struct Queue {
    items: BTreeMap<u64, Waiting>,
    turns: [Turn; Class::COUNT],
}

impl Queue {
    /// Adds a chunk, or changes what is known of it.
    pub fn put(&mut self, item: Waiting) {
        self.items.insert(item.id, item);
    }

    /// Takes a chunk out.
    pub fn remove(&mut self, id: u64) {
        self.items.remove(&id);
    }

    /// From now on chunks of each class go when this says, but for first ones and what the relay
    /// holds.
    pub const fn hold(&mut self, turns: [Turn; Class::COUNT]) {
        self.turns = turns;
    }

    fn in_turn(&self, item: &Waiting, moving: Moving) -> bool {
        item.first
            || item.held
            || match self.turns[item.class.rank()] {
                Turn::Now => true,
                Turn::Idle => moving == Moving { probes: moving.probes, ..Moving::default() },
                Turn::Later => false,
            }
    }

    /// How many wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether none waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// When the next chunk that is not yet due becomes so.
    #[must_use]
    pub fn next_due(&self, now_ms: u64) -> Option<u64> {
        self.items.values().map(|item| item.due_ms).filter(|due| *due > now_ms).min()
    }

    /// Takes out the chunk to offer now, if there is one and room for it. `rate` is the measured
    /// upload rate in bytes per second, if there is one.
    pub fn take(&mut self, now_ms: u64, rate: Option<u64>, moving: Moving, room: Room) -> Option<(Waiting, Rank)> {
        let due = || self.items.values().filter(|item| item.due_ms <= now_ms && self.in_turn(item, moving));
        // One that takes too long to be offered ahead is passed by no other of its class.
        let mut waits: [Option<Rank>; Class::COUNT] = [None; Class::COUNT];
        for item in due().filter(|item| !item.held && !item.begun && !room.has_place(item, rate, moving)) {
            let (first, rank) = (&mut waits[item.class.rank()], rank(item, rate));
            *first = Some(first.map_or(rank, |first| first.min(rank)));
        }
        let passes =
            |item: &Waiting, rank| item.held || item.begun || waits[item.class.rank()].is_none_or(|first| rank < first);
        let open = due().filter(|item| room.has_place(item, rate, moving)).map(|item| (item, rank(item, rate)));
        let best = open.filter(|(item, rank)| passes(item, *rank)).map(|(item, rank)| (rank, item.id)).min()?;
        let item = self.items.remove(&best.1)?;
        Some((item, best.0))
    }
}

impl Moving {
    /// Bodies in all.
    #[must_use]
    pub fn all(&self) -> usize {
        self.bodies.iter().sum()
    }
}

impl Room {
    /// With no more than this many bodies.
    #[must_use]
    pub fn at_most(self, bodies: usize) -> Self {
        let asked = if bodies == 0 { 0 } else { self.asked.min(self.bodies.saturating_sub(bodies)) };
        Self { bodies: self.bodies.min(bodies), asked, ..self }
    }

    fn has_place(self, item: &Waiting, rate: Option<u64>, moving: Moving) -> bool {
        if item.held {
            return moving.probes < self.probes;
        }
        let (class, all) = (item.class.rank(), self.bodies + self.asked);
        let soon = || item.length.saturating_mul(1000) / rate.unwrap_or(SLOW).max(1) < SOON_MS;
        let bodies = if item.begun || (self.ahead && soon()) { all } else { self.bodies };
        let ahead: usize = moving.bodies[..=class].iter().sum();
        let lower = moving.bodies.len() - 1 - class;
        if item.class == Class::Master && moving.bodies[class] == 0 && bodies > 0 {
            return true;
        }
        // What was begun of a lower class takes no place from what is fresh of a higher one, nor does the master's own
        // place, which it has whatever else moves.
        let own = moving.bodies[Class::Master.rank()].min(1);
        ahead < bodies && moving.all() - own < all + lower
    }
}

/// A chunk's place in the order.
#[must_use]
pub fn rank(item: &Waiting, rate: Option<u64>) -> Rank {
    let quick = match rate {
        Some(rate) => item.length.saturating_mul(1000) / rate.max(1) < FIRST_MASTER_LIMIT_MS,
        None => false,
    };
    let early = item.first && (item.class != Class::Master || quick);
    let level = item.class.rank() as u8 + if early { 0 } else { 4 };
    Rank { level, started_ms: item.started_ms, id: item.id }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const WIDE: Room = Room { bodies: 100, asked: 0, ahead: false, probes: 100 };
    const BUSY: [usize; 4] = [1, 0, 0, 0];

    fn item(id: u64, class: Class, first: bool) -> Waiting {
        Waiting { id, class, first, started_ms: id as i64, length: 1000, held: false, begun: false, due_ms: 0 }
    }

    fn drain(queue: &mut Queue, rate: Option<u64>) -> Vec<u64> {
        std::iter::from_fn(|| queue.take(0, rate, Moving::default(), WIDE).map(|(item, _)| item.id)).collect()
    }

    #[test]
    fn what_was_begun_is_asked_about_and_what_is_fresh_offered_while_another_moves() {
        let cases = [(false, 1, 1), (true, 1, 3), (true, 2, 4), (true, 9, 4), (true, 0, 0)];
        for (begun, ahead, allowed, given) in cases
            .into_iter()
            .flat_map(|(either, allowed, given)| [(either, false, allowed, given), (false, either, allowed, given)])
        {
            let room = Room { bodies: 4, asked: ASKED, ahead, probes: 0 };
            let (mut queue, mut moving) = (Queue::default(), Moving::default());
            (0..9).for_each(|id| queue.put(Waiting { begun, ..item(id, Class::Audio, false) }));
            while queue.take(0, None, moving, room.at_most(allowed)).is_some() {
                moving.bodies[Class::Audio.rank()] += 1;
            }
            assert_eq!(moving.all(), given, "begun {begun}, {allowed} allowed");
        }
    }

    #[test]
    fn what_takes_long_is_not_passed_by_what_is_short() {
        let room = Room { bodies: 1, asked: ASKED, ahead: true, probes: 0 };
        let mut queue = Queue::default();
        queue.put(Waiting { length: SOON_MS / 1000 * SLOW, ..item(1, Class::Preview, false) });
        (2..9).for_each(|id| queue.put(item(id, Class::Preview, false)));
        queue.put(Waiting { begun: true, ..item(9, Class::Preview, false) });
        let moving = Moving { bodies: [0, 1, 0, 0], probes: 0 };
        assert_eq!(queue.take(0, None, moving, room).unwrap().0.id, 9, "what was begun is only asked about");
        assert!(queue.take(0, None, moving, room).is_none());
        assert_eq!(queue.take(0, None, Moving::default(), room).unwrap().0.id, 1);
        assert_eq!(queue.take(0, None, moving, room).unwrap().0.id, 2);
    }

    #[test]
    fn what_takes_long_is_not_offered_ahead_and_a_master_has_its_place_beside_what_is() {
        let room = Room { bodies: 1, asked: ASKED, ahead: true, probes: 0 };
        let long = |rate| SOON_MS / 1000 * rate;
        for (rate, length, given) in [(None, long(SLOW) - 1, 3), (None, long(SLOW), 1), (Some(2 * SLOW), long(SLOW), 3)]
        {
            let (mut queue, mut moving) = (Queue::default(), Moving::default());
            (0..9).for_each(|id| queue.put(Waiting { length, ..item(id, Class::Preview, false) }));
            while queue.take(0, rate, moving, room).is_some() {
                moving.bodies[Class::Preview.rank()] += 1;
            }
            assert_eq!(moving.all(), given);
            queue = Queue::default();
            queue.put(item(9, Class::Audio, false));
            queue.put(item(10, Class::Master, false));
            assert_eq!(queue.take(0, rate, moving, room).unwrap().0.id, 9);
            moving.bodies[Class::Audio.rank()] += 1;
            assert_eq!(queue.take(0, rate, moving, room).unwrap().0.id, 10);
        }
    }

    #[test]
    fn sound_has_a_place_beside_whatever_was_offered_ahead_and_a_master() {
        let room = Room { bodies: 2, asked: ASKED, ahead: true, probes: 0 };
        let (mut queue, mut moving) = (Queue::default(), Moving::default());
        for (id, class) in (0..).zip([1, 1, 2, 2, 1, 1, 3, 0]) {
            queue.put(item(id, Class::ALL[class], false));
            assert_eq!(queue.take(0, None, moving, room).map(|(item, _)| item.id), Some(id));
            moving.bodies[class] += 1;
        }
    }

    #[test]
    fn first_chunks_then_classes_then_age() {
        use Class::{Audio, Context, Master, Preview};
        let mut queue = Queue::default();
        for (id, class, first) in [
            (1, Master, true),
            (2, Context, true),
            (3, Preview, true),
            (4, Audio, true),
            (5, Master, false),
            (6, Preview, false),
            (7, Audio, false),
            (8, Audio, false),
        ] {
            queue.put(item(id, class, first));
        }
        assert_eq!(drain(&mut queue, Some(1_000_000)), [4, 3, 2, 1, 7, 8, 6, 5]);
    }

    #[test]
    fn a_masters_first_chunk_that_takes_long_lets_audio_pass() {
        for (rate, order) in [(Some(500), [1, 2]), (Some(501), [2, 1]), (None, [1, 2])] {
            let mut queue = Queue::default();
            queue.put(item(1, Class::Audio, false));
            queue.put(item(2, Class::Master, true));
            assert_eq!(drain(&mut queue, rate), order, "{rate:?}");
        }
    }

    #[test]
    fn sound_finds_a_place_beside_masters_and_masters_always_have_one() {
        let room = Room { bodies: 1, asked: 0, ahead: false, probes: 1 };
        let mut queue = Queue::default();
        queue.put(item(1, Class::Master, false));
        queue.put(item(2, Class::Audio, false));
        queue.put(item(3, Class::Preview, false));
        let busy = |bodies| Moving { bodies, probes: 0 };
        let mut take = |bodies| queue.take(0, None, busy(bodies), room).map(|(item, _)| item.id);
        assert_eq!(take([0, 0, 0, 1]), Some(2), "it overtakes a master that is half sent");
        assert_eq!(take([1, 0, 0, 1]), None, "one chunk's bytes move");
        assert_eq!(take([1, 0, 0, 0]), Some(1), "the masters' share");
        assert_eq!(take([0, 0, 0, 0]), Some(3));
        let none = room.at_most(0);
        queue.put(item(4, Class::Master, false));
        assert!(queue.take(0, None, Moving::default(), none).is_none(), "nothing moves without a network");
    }

    #[test]
    fn what_the_relay_holds_takes_no_place_of_bytes() {
        let mut queue = Queue::default();
        queue.put(Waiting { held: true, ..item(1, Class::Master, false) });
        let moving = Moving { bodies: [9; 4], probes: 0 };
        assert!(queue.take(0, None, moving, Room { bodies: 4, asked: 0, ahead: false, probes: 1 }).is_some());
    }

    #[test]
    fn what_is_held_back_waits_and_is_there_later() {
        let one_moves = Moving { bodies: BUSY, ..Moving::default() };
        let mut queue = Queue::default();
        queue.put(item(1, Class::Preview, false));
        queue.put(item(2, Class::Master, false));
        queue.hold([Turn::Now, Turn::Idle, Turn::Now, Turn::Later]);
        assert!(queue.take(0, None, one_moves, WIDE).is_none(), "something moves");
        assert_eq!(queue.take(0, None, Moving::default(), WIDE).unwrap().0.id, 1, "the link is never idle");
        assert!(queue.take(0, None, Moving::default(), WIDE).is_none(), "there is no room for it");
        queue.put(item(3, Class::Master, true));
        assert_eq!(queue.take(0, None, one_moves, WIDE).unwrap().0.id, 3, "the first chunk of a lane goes");
        queue.hold([Turn::Now; 4]);
        assert_eq!(queue.take(0, None, one_moves, WIDE).unwrap().0.id, 2, "nothing was dropped");
    }

    #[test]
    fn nothing_goes_before_it_is_due() {
        let mut queue = Queue::default();
        queue.put(Waiting { due_ms: 50, ..item(1, Class::Audio, false) });
        assert!(queue.take(49, None, Moving::default(), WIDE).is_none());
        assert_eq!(queue.next_due(49), Some(50));
        assert!(queue.take(50, None, Moving::default(), WIDE).is_some());
    }

    fn any_item() -> impl Strategy<Value = Waiting> {
        (0usize..4, any::<bool>(), 0i64..100, 1u64..1 << 24).prop_map(|(class, first, started_ms, length)| Waiting {
            id: 0,
            class: Class::ALL[class],
            first,
            started_ms,
            length,
            held: false,
            begun: false,
            due_ms: 0,
        })
    }

    proptest! {
        #[test]
        fn what_is_fresh_has_a_place_whatever_was_begun_behind_it(
            bodies in 1usize..4,
            begun in prop::collection::vec((0usize..4, any::<bool>()), 0..60),
            class in 0usize..4,
            ahead: bool,
        ) {
            let (mut queue, mut moving) = (Queue::default(), Moving::default());
            let room = Room { bodies: 4, asked: ASKED, ahead, probes: 0 }.at_most(bodies);
            for (id, (class, begun)) in (0..).zip(begun) {
                queue.put(Waiting { begun, ..item(id, Class::ALL[class], false) });
                if let Some((taken, _)) = queue.take(0, None, moving, room) {
                    moving.bodies[taken.class.rank()] += 1;
                }
            }
            prop_assert!(moving.all() <= room.bodies + room.asked + 4, "{moving:?}");
            let ahead: usize = moving.bodies[..=class].iter().sum();
            let fresh = item(1000, Class::ALL[class], false);
            // One of each class between them and it may stand still.
            prop_assert!(ahead > 0 || room.has_place(&fresh, None, moving), "{fresh:?} {moving:?}");
        }

        #[test]
        fn no_more_move_than_there_is_room_for(
            bodies in 0usize..4,
            classes in prop::collection::vec(0usize..4, 0..60),
        ) {
            let (mut queue, mut moving) = (Queue::default(), Moving::default());
            let room = Room { bodies, asked: 0, ahead: false, probes: 0 };
            for (id, class) in (0..).zip(classes) {
                queue.put(item(id, Class::ALL[class], false));
                if let Some((taken, _)) = queue.take(0, None, moving, room) {
                    moving.bodies[taken.class.rank()] += 1;
                }
                prop_assert!(moving.all() <= if bodies == 0 { 0 } else { bodies + 4 }, "{moving:?}");
                prop_assert!(moving.bodies[0] <= bodies);
            }
        }

        #[test]
        fn a_transport_is_given_the_same_order(
            items in prop::collection::vec(any_item(), 2..40),
            rate in prop::option::of(1u64..1 << 24),
        ) {
            // Cut in the order of their times, as a recorder does.
            let mut started: Vec<i64> = items.iter().map(|item| item.started_ms).collect();
            started.sort_unstable();
            let items = (0..).zip(items).zip(started);
            let ranks: Vec<Rank> =
                items.map(|((id, item), started_ms)| super::rank(&Waiting { id, started_ms, ..item }, rate)).collect();
            for (a, b) in ranks.iter().flat_map(|a| ranks.iter().map(move |b| (a, b))) {
                prop_assert_eq!(a.cmp(b), b.priority().cmp(&a.priority()), "{:?} {:?}", a, b);
            }
        }

        #[test]
        fn no_later_chunk_of_a_class_goes_before_an_earlier_one(
            items in prop::collection::vec(any_item(), 0..40),
            rate in prop::option::of(1u64..1 << 24),
        ) {
            let mut queue = Queue::default();
            let mut items = items;
            for (id, item) in items.iter_mut().enumerate() {
                item.id = id as u64;
                queue.put(*item);
            }
            let order: Vec<Waiting> = drain(&mut queue, rate).into_iter().map(|id| items[id as usize]).collect();
            prop_assert_eq!(order.len(), items.len());
            for pair in order.windows(2) {
                let (a, b) = (pair[0], pair[1]);
                if !a.first && !b.first {
                    prop_assert!((a.class, a.started_ms, a.id) < (b.class, b.started_ms, b.id));
                }
                if b.first && b.class != Class::Master {
                    prop_assert!(a.first, "a first chunk goes before later ones");
                }
                if b.class == Class::Audio && !b.first && a.class == Class::Master {
                    let rate = rate.unwrap_or(0);
                    prop_assert!(a.first && a.length * 1000 / rate.max(1) < FIRST_MASTER_LIMIT_MS);
                }
            }
        }
    }
}
