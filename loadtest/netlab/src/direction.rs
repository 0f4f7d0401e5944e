//! One direction: what becomes of a packet that is put on it.

use std::collections::VecDeque;

use crate::loss::Losses;
use crate::profile::Lane;
use crate::rng::Rng;
use crate::stats::Stats;

/// Seed of a fade model beside that of the packets.
const FADES: u64 = 0xDEAD_BEEF;

/// When a packet that is not dropped leaves the queue, and when it arrives; nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Passage {
    /// It goes on the air.
    pub departs: u64,
    /// It is at the other end.
    pub arrives: u64,
}

/// Queue, token bucket, loss and delay of one direction.
#[derive(Debug)]
pub struct Direction {
    lane: Lane,
    queue_bytes: u64,
    rng: Rng,
    losses: Losses,
    tokens: f64,
    filled_at: Option<u64>,
    last_departure: u64,
    last_arrival: u64,
    /// Departures that lie ahead, with their bytes.
    queued: VecDeque<(u64, u64)>,
    queued_bytes: u64,
    /// What happened so far.
    pub stats: Stats,
}

impl Direction {
    /// An empty one. The seed decides what is lost and how long each packet takes.
    #[must_use]
    pub fn new(lane: Lane, seed: u64) -> Self {
        Self {
            queue_bytes: lane.queue_bytes(),
            rng: Rng::new(seed),
            losses: Losses::new(lane.loss, seed ^ FADES),
            tokens: lane.burst,
            filled_at: None,
            last_departure: 0,
            last_arrival: 0,
            queued: VecDeque::new(),
            queued_bytes: 0,
            stats: Stats::default(),
            lane,
        }
    }

    /// Takes a packet of `size` bytes at `now`; `is_out` says whether nothing passes at a time.
    /// Every packet makes three draws, so that its fate depends on its number and the seed alone.
    pub fn admit(&mut self, now: u64, size: u64, is_out: impl Fn(u64) -> bool) -> Option<Passage> {
        self.stats.sent_packets += 1;
        self.stats.sent_bytes += size;
        let (first, second, third) = (self.rng.fraction(), self.rng.fraction(), self.rng.fraction());
        let departs = self.departure(now, size)?;
        // A lost packet has used its share of the link: it is lost on the air.
        let lost = self.losses.takes(departs, first, second);
        if is_out(departs) {
            self.stats.outage_packets += 1;
            self.stats.outage_bytes += size;
            return None;
        }
        if lost {
            self.stats.lost_packets += 1;
            self.stats.lost_bytes += size;
            return None;
        }
        let jitter = (third - 0.5) * self.lane.jitter.as_secs_f64();
        let delay = (self.lane.delay.as_secs_f64() + jitter).max(0.0);
        let arrives = (departs + (delay * 1e9) as u64).max(self.last_arrival);
        self.last_arrival = arrives;
        Some(Passage { departs, arrives })
    }

    /// When the packet leaves the queue; none if there is no room in it.
    fn departure(&mut self, now: u64, size: u64) -> Option<u64> {
        while let Some((_, bytes)) = self.queued.pop_front_if(|(departs, _)| *departs <= now) {
            self.queued_bytes -= bytes;
        }
        if self.lane.rate <= 0.0 {
            return Some(now);
        }
        if self.queued_bytes + size > self.queue_bytes {
            self.stats.tail_packets += 1;
            self.stats.tail_bytes += size;
            return None;
        }
        let bytes_per_ns = self.lane.rate / 8e9;
        let turn = now.max(self.last_departure);
        let since = turn - self.filled_at.unwrap_or(turn);
        self.tokens = (self.tokens + since as f64 * bytes_per_ns).min(self.lane.burst);
        let missing = (size as f64 - self.tokens).max(0.0);
        self.tokens = (self.tokens - size as f64).max(0.0);
        let departs = turn + (missing / bytes_per_ns) as u64;
        (self.filled_at, self.last_departure) = (Some(departs), departs);
        if departs > now {
            self.queued.push_back((departs, size));
            self.queued_bytes += size;
            self.stats.most_queued_bytes = self.stats.most_queued_bytes.max(self.queued_bytes);
        }
        Some(departs)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::profile::{Loss, Queue};

    const SECOND: u64 = 1_000_000_000;

    fn lane(rate: f64, queue: u64) -> Lane {
        Lane {
            rate,
            burst: 3000.0,
            queue: Queue::Bytes(queue),
            delay: Duration::from_millis(50),
            jitter: Duration::ZERO,
            loss: Loss::Random(0.0),
        }
    }

    #[test]
    fn a_packet_takes_its_time_on_the_wire_and_then_the_delay() {
        let mut link = Direction::new(lane(8000.0, 10_000), 1); // 1000 bytes a second
        let at = |passage: Option<Passage>| passage.map(|p| (p.departs, p.arrives));
        assert_eq!(at(link.admit(0, 1000, |_| false)), Some((0, SECOND / 20)), "the bucket is full at first");
        assert_eq!(at(link.admit(0, 2000, |_| false)), Some((0, SECOND / 20)));
        assert_eq!(at(link.admit(0, 1000, |_| false)), Some((SECOND, SECOND + SECOND / 20)));
        assert_eq!(at(link.admit(0, 500, |_| false)), Some((SECOND * 3 / 2, SECOND * 31 / 20)));
    }

    #[test]
    fn the_tail_is_dropped_when_the_queue_is_full_and_room_comes_back() {
        let mut link = Direction::new(lane(8000.0, 2500), 1);
        assert!(link.admit(0, 3000, |_| false).is_none(), "larger than the queue");
        for _ in 0..5 {
            assert!(link.admit(0, 1000, |_| false).is_some(), "three from the bucket, two wait");
        }
        assert!(link.admit(0, 1000, |_| false).is_none());
        assert!(link.admit(SECOND, 1000, |_| false).is_some(), "one has left");
        let stats = link.stats;
        assert_eq!((stats.sent_packets, stats.tail_packets, stats.tail_bytes), (8, 2, 4000));
        assert_eq!(stats.most_queued_bytes, 2000);
    }

    #[test]
    fn what_departs_in_an_outage_is_lost_also_if_it_came_before() {
        let mut link = Direction::new(lane(8000.0, 10_000), 1);
        assert!(link.admit(0, 3000, |_| false).is_some());
        let out = |at: u64| (SECOND..2 * SECOND).contains(&at);
        assert!(link.admit(0, 1000, out).is_none(), "departs at 1 s");
        assert!(link.admit(0, 1000, out).is_some(), "departs at 2 s");
        assert_eq!((link.stats.outage_packets, link.stats.lost_packets), (1, 0));
    }

    #[test]
    fn jitter_stays_in_its_range_and_keeps_the_order() {
        let mut link = Direction::new(Lane { jitter: Duration::from_millis(40), ..lane(0.0, 1) }, 7);
        let mut last = 0;
        for n in 0..1000 {
            let sent = n * SECOND;
            let arrives = link.admit(sent, 1000, |_| false).unwrap().arrives;
            assert!((30..=70).contains(&((arrives - sent) / 1_000_000)));
            assert!(arrives >= last);
            last = arrives;
        }
    }

    #[test]
    fn the_fate_of_a_packet_is_its_numbers_and_not_its_times() {
        let run = |seed: u64, apart: u64| {
            let mut link = Direction::new(Lane { loss: Loss::Random(0.3), ..lane(0.0, 1) }, seed);
            (0..2000).map(|n| link.admit(n * apart, 1000, |_| false).is_some()).collect::<Vec<_>>()
        };
        assert_eq!(run(5, 1000), run(5, 77_777));
        assert_ne!(run(5, 1000), run(6, 1000));
    }

    proptest! {
        #[test]
        fn no_more_passes_than_the_rate_and_one_bucket(
            packets in prop::collection::vec((0u64..20_000_000, 40u64..1500), 1..400),
            rate in 50_000u32..5_000_000,
        ) {
            let rate = f64::from(rate);
            let mut link = Direction::new(lane(rate, 20_000), 3);
            let (mut now, mut passed, mut last) = (0, 0, 0);
            for (wait, size) in packets {
                now += wait;
                if let Some(passage) = link.admit(now, size, |_| false) {
                    passed += size;
                    prop_assert!(passage.departs >= last, "the order is kept");
                    last = passage.departs;
                    let room = 3000.0 + last as f64 * rate / 8e9 + 2.0;
                    prop_assert!(passed as f64 <= room, "{passed} bytes by {last} ns");
                }
            }
            prop_assert!(link.stats.most_queued_bytes <= 20_000);
        }
    }
}
