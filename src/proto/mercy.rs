//! The order of mercy (design, promise 5): which waiting chunk goes next.
//!
//! First chunks in the order audio, preview, context, master; then audio, preview, context,
//! master. A master's first chunk jumps the later audio only if it takes under
//! [`FIRST_MASTER_MS`] at the measured rate. A class that waits is served at least every
//! [`SHARE`]th time, so the lowest gets its 5 %; that right is earned only while others are
//! served, so an audio chunk that arrives beside waiting masters goes next. Within a rank the
//! sessions take turns, and within a session the nearest expiry goes first.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::hash::Hash;

use crate::media::Class;

/// A waiting class gets at least one in this many turns: 5 %. Its right comes a turn early, since
/// every other turn may belong to a place that does not carry it.
pub const SHARE: u32 = 20;
/// A master's first chunk goes before later audio only if it takes less than this.
pub const FIRST_MASTER_MS: u64 = 2_000;

const FIRSTS: usize = Class::COUNT;
const RANKS: usize = Class::COUNT * 2;

/// What the order looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Item<S, K> {
    /// Whose it is.
    pub session: S,
    /// Which chunk.
    pub key: K,
    /// Its class.
    pub class: Class,
    /// It is the first of its lane.
    pub first: bool,
    /// Bytes.
    pub length: u64,
    /// When its capability stops being good for it, Unix seconds.
    pub expires: i64,
    /// Order of arrival.
    pub seq: u64,
}

/// Chunks waiting for a turn. Bounded by its owner: one entry for each chunk held.
#[derive(Debug)]
pub struct Queue<S, K> {
    ranks: [Rank<S, K>; RANKS],
    passed_over: [u32; Class::COUNT],
}

impl<S: Copy + Eq + Hash, K: Copy + Ord> Default for Queue<S, K> {
    fn default() -> Self {
        Self { ranks: std::array::from_fn(|_| Rank::default()), passed_over: [0; Class::COUNT] }
    }
}

impl<S: Copy + Eq + Hash, K: Copy + Ord> Queue<S, K> {
    /// Adds a chunk. `rate` is the measured rate of what drains the queue, in bytes a second;
    /// 0 when it is not known yet.
    pub fn push(&mut self, item: &Item<S, K>, rate: u64) {
        self.ranks[rank(item, rate)].push(item);
    }

    /// Takes the next chunk of a class not below `lowest`.
    pub fn pop(&mut self, lowest: Class) -> Option<K> {
        let rank =
            self.owed(lowest).or_else(|| (0..RANKS).find(|&r| class_of(r) <= lowest && !self.ranks[r].empty()))?;
        self.account(class_of(rank));
        self.ranks[rank].pop()
    }

    /// Takes a chunk out, wherever it waits; `rate` as it may have been pushed with.
    pub fn remove(&mut self, item: &Item<S, K>) {
        for rank in &mut self.ranks {
            rank.remove(item);
        }
    }

    /// Whether a chunk of a class not below `lowest` waits.
    #[must_use]
    pub fn waits(&self, lowest: Class) -> bool {
        (0..RANKS).any(|r| class_of(r) <= lowest && !self.ranks[r].empty())
    }

    /// The rank of the class that was passed over for longest, if its share is due.
    fn owed(&self, lowest: Class) -> Option<usize> {
        let class = Class::ALL
            .iter()
            .filter(|&&class| class <= lowest && self.passed_over[class.rank()] >= SHARE - 2)
            .max_by_key(|&&class| (self.passed_over[class.rank()], std::cmp::Reverse(class.rank())))?;
        [class.rank(), FIRSTS + class.rank()].into_iter().find(|&r| !self.ranks[r].empty())
    }

    fn account(&mut self, served: Class) {
        for class in Class::ALL {
            let c = class.rank();
            let waits = !self.ranks[c].empty() || !self.ranks[FIRSTS + c].empty();
            if *class == served || !waits {
                self.passed_over[c] = 0;
            } else {
                self.passed_over[c] += 1;
            }
        }
    }
}

const fn class_of(rank: usize) -> Class {
    Class::ALL[rank % Class::COUNT]
}

fn rank<S, K>(item: &Item<S, K>, rate: u64) -> usize {
    let quick = rate == 0 || item.length.saturating_mul(1000) / rate < FIRST_MASTER_MS;
    let jumps = item.first && (item.class != Class::Master || quick);
    if jumps { item.class.rank() } else { FIRSTS + item.class.rank() }
}

/// One rank: sessions take turns.
#[derive(Debug)]
struct Rank<S, K> {
    turns: VecDeque<S>,
    waiting: HashMap<S, BTreeSet<(i64, u64, K)>>,
}

impl<S, K> Default for Rank<S, K> {
    fn default() -> Self {
        Self { turns: VecDeque::new(), waiting: HashMap::new() }
    }
}

impl<S: Copy + Eq + Hash, K: Copy + Ord> Rank<S, K> {
    fn empty(&self) -> bool {
        self.waiting.is_empty()
    }

    fn push(&mut self, item: &Item<S, K>) {
        let waiting = self.waiting.entry(item.session).or_default();
        if waiting.is_empty() {
            self.turns.push_back(item.session);
        }
        waiting.insert((item.expires, item.seq, item.key));
    }

    fn pop(&mut self) -> Option<K> {
        let session = self.turns.pop_front()?;
        let waiting = self.waiting.get_mut(&session)?;
        let (_, _, key) = waiting.pop_first()?;
        if waiting.is_empty() {
            self.waiting.remove(&session);
        } else {
            self.turns.push_back(session);
        }
        Some(key)
    }

    fn remove(&mut self, item: &Item<S, K>) {
        let Some(waiting) = self.waiting.get_mut(&item.session) else { return };
        waiting.remove(&(item.expires, item.seq, item.key));
        if waiting.is_empty() {
            self.waiting.remove(&item.session);
            self.turns.retain(|session| *session != item.session);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn item(session: u64, key: u64, class: Class) -> Item<u64, u64> {
        Item { session, key, class, first: false, length: 100, expires: 0, seq: key }
    }

    fn drain(queue: &mut Queue<u64, u64>) -> Vec<u64> {
        std::iter::from_fn(|| queue.pop(Class::Master)).collect()
    }

    #[test]
    fn audio_goes_next_however_many_masters_wait_and_masters_get_their_share() {
        let mut queue = Queue::default();
        for key in 0..500 {
            queue.push(&item(1, key, Class::Master), 0);
        }
        for turn in 0..100 {
            assert!(queue.pop(Class::Master).is_some_and(|key| key < 500), "turn {turn}");
        }
        queue.push(&item(2, 1000, Class::Audio), 0);
        assert_eq!(queue.pop(Class::Master), Some(1000));
        for key in 2000..2200 {
            queue.push(&item(2, key, Class::Audio), 0);
        }
        let masters = (0..200).filter(|_| queue.pop(Class::Master).is_some_and(|key| key < 500)).count();
        assert!(masters >= 10, "{masters} of 200");
    }

    #[test]
    fn first_chunks_go_in_the_order_of_mercy() {
        let mut queue = Queue::default();
        let first = |key, class, length| Item { first: true, length, ..item(1, key, class) };
        queue.push(&first(4, Class::Master, 100), 1000);
        queue.push(&first(5, Class::Master, 3000), 1000);
        queue.push(&item(1, 6, Class::Audio), 1000);
        queue.push(&first(3, Class::Context, 100), 1000);
        queue.push(&first(2, Class::Preview, 100), 1000);
        queue.push(&first(1, Class::Audio, 100), 1000);
        assert_eq!(drain(&mut queue), [1, 2, 3, 4, 6, 5]);
    }

    #[test]
    fn sessions_take_turns_and_the_nearest_expiry_goes_first() {
        let mut queue = Queue::default();
        for key in 0..4 {
            queue.push(&item(1, key, Class::Master), 0);
        }
        queue.push(&Item { expires: -5, ..item(1, 9, Class::Master) }, 0);
        queue.push(&item(2, 10, Class::Master), 0);
        assert_eq!(drain(&mut queue), [9, 10, 0, 1, 2, 3]);
    }

    #[test]
    fn a_ceiling_leaves_lower_classes_waiting() {
        let mut queue = Queue::default();
        queue.push(&item(1, 1, Class::Master), 0);
        assert_eq!(queue.pop(Class::Context), None);
        assert!(!queue.waits(Class::Context) && queue.waits(Class::Master));
    }

    proptest! {
        #[test]
        fn every_chunk_comes_out_once_and_no_class_starves(
            chunks in prop::collection::vec((0u64..5, 0usize..4, any::<bool>(), 0u64..5000, any::<bool>()), 1..200),
        ) {
            let mut queue = Queue::default();
            let mut wanted = Vec::new();
            for (key, (session, class, first, length, removed)) in chunks.into_iter().enumerate() {
                let key = key as u64;
                let item = Item { first, length, ..item(session, key, Class::ALL[class]) };
                queue.push(&item, 1000);
                if removed { queue.remove(&item) } else { wanted.push((key, class)) }
            }
            let mut got = Vec::new();
            let mut unserved = [0u32; 4];
            while let Some(key) = queue.pop(Class::Master) {
                let class = wanted.iter().find(|(k, _)| *k == key).expect("not one of ours").1;
                got.push(key);
                for (c, unserved) in unserved.iter_mut().enumerate() {
                    let waits = wanted.iter().any(|(k, class)| *class == c && !got.contains(k));
                    *unserved = if c == class || !waits { 0 } else { *unserved + 1 };
                    prop_assert!(*unserved < SHARE + 3, "class {c} starves");
                }
            }
            got.sort_unstable();
            prop_assert_eq!(got, wanted.iter().map(|(key, _)| *key).collect::<Vec<_>>());
        }
    }
}
