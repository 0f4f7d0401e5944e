//! Which lanes have begun: only a lane's first chunk may jump the queue.

use std::collections::HashSet;

/// Lanes that are remembered as begun, at most. 8 bytes each.
pub const MAX_LANES: usize = 65_536;

/// Lanes in two generations. When the younger one is full, it becomes the older one, and what was
/// older is forgotten: a lane that brought nothing while [`MAX_LANES`] / 2 others did. Should it
/// come back, its next stream counts as its beginning, which costs one jump in the queue.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    young: HashSet<u64>,
    old: HashSet<u64>,
}

impl Lanes {
    /// Whether the chunk with this index in its stream is the lane's first.
    pub(super) fn is_first(&mut self, lane: u64, index: u64) -> bool {
        let known = self.young.contains(&lane) || self.old.remove(&lane);
        let first = index == 1 && !known;
        if known || first {
            self.keep(lane);
        }
        first
    }

    fn keep(&mut self, lane: u64) {
        if self.young.len() >= MAX_LANES / 2 && !self.young.contains(&lane) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(lane);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lane_begins_once_and_with_index_one() {
        let mut lanes = Lanes::default();
        assert!(!lanes.is_first(7, 2));
        assert!(lanes.is_first(7, 1));
        assert!(!lanes.is_first(7, 1), "the first chunk of its next stream");
        assert!(lanes.is_first(8, 1));
    }

    #[test]
    fn idle_lanes_are_forgotten_and_busy_ones_are_not() {
        let mut lanes = Lanes::default();
        let many = MAX_LANES as u64 * 3;
        for lane in 0..many {
            assert!(lanes.is_first(lane, 1), "a new lane begins however many there were");
            assert!(lane == 0 || !lanes.is_first(0, 2 + lane));
            assert!(lanes.young.len() + lanes.old.len() <= MAX_LANES);
        }
        assert!(!lanes.is_first(0, 1), "it brought chunks all the time");
        assert!(!lanes.is_first(many - 1, 1));
        assert!(lanes.is_first(1, 1), "it was silent for long");
    }
}
