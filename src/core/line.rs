//! Who of those waiting for one kind of call is next: the order of mercy, and within a rank first
//! come, first served. Pure.

use std::collections::BTreeSet;

/// So many in a row at most while a lower rank waits: the lowest gets 5 %.
const STREAK: u32 = 19;

/// A place in the line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    rank: u8,
    number: u64,
}

/// Those who wait. As long as those who call `join` are bounded by the limits of admission, so is
/// the line.
#[derive(Debug, Default)]
pub(super) struct Line {
    waiting: BTreeSet<Place>,
    next: u64,
    streak: u32,
}

impl Line {
    /// Takes a place; rank 0 goes first.
    pub(super) fn join(&mut self, rank: u8) -> Place {
        let place = Place { rank, number: self.next };
        self.next += 1;
        self.waiting.insert(place);
        place
    }

    /// Gives a place up.
    pub(super) fn leave(&mut self, place: Place) {
        self.waiting.remove(&place);
    }

    /// Whose turn it is.
    pub(super) fn head(&self) -> Option<Place> {
        let (first, last) = (*self.waiting.first()?, self.waiting.last()?.rank);
        if self.streak < STREAK || first.rank == last {
            return Some(first);
        }
        self.waiting.range(Place { rank: last, number: 0 }..).next().copied()
    }

    /// The one at `place` got what it waited for.
    pub(super) fn served(&mut self, place: Place) {
        self.waiting.remove(&place);
        let passed_over = self.waiting.last().is_some_and(|last| last.rank > place.rank);
        self.streak = if passed_over { self.streak + 1 } else { 0 };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_go_in_order_and_equals_as_they_came() {
        let mut line = Line::default();
        let (master, late, early) = (line.join(7), line.join(1), line.join(0));
        let second = line.join(0);
        line.leave(late);
        for place in [early, second, master] {
            assert_eq!(line.head(), Some(place));
            line.served(place);
        }
        assert_eq!(line.head(), None);
    }

    #[test]
    fn the_last_rank_is_one_in_twenty() {
        let mut line = Line::default();
        for _ in 0..1000 {
            line.join(0);
            line.join(3);
            line.join(7);
        }
        let mut served = [0; 8];
        for _ in 0..400 {
            let place = line.head().unwrap();
            served[usize::from(place.rank)] += 1;
            line.served(place);
        }
        assert_eq!((served[0], served[3], served[7]), (380, 0, 20));
    }
}
