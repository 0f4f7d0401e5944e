//! What is lost of what is most urgent goes twice the next time. A packet that is lost twice costs two more round
//! trips, and on a thin link with a queue before it each of them is more than a second; a second copy costs a packet.
//! Which packets are meant is known by when they were sent: what is most urgent goes before nearly all that waits.

use std::collections::VecDeque;
use std::time::Instant;

/// Packets that go twice after a loss, at most: more are an outage's, or a full queue's.
pub(super) const MOST: u32 = 2;
/// How often what goes in the place of something lost is looked after in turn.
const ROUNDS: u8 = 4;
/// Sent packets, or batches of them, that are remembered.
const REMEMBERED: usize = 64;

/// When urgent bytes were sent. Pure.
#[derive(Debug, Clone, Default)]
pub(super) struct Urgent {
    /// The newest last.
    sent: VecDeque<Sent>,
    /// Urgent bytes that were not sent yet: written then, and which round of them.
    unsent: Option<(Instant, u8, u64)>,
}

#[derive(Debug, Clone, Copy)]
struct Sent {
    at: Instant,
    bytes: u64,
    /// 1 with urgent bytes, more with what goes in their place, 0 with anything else.
    round: u8,
}

impl Urgent {
    /// Urgent bytes are written, in packets of at most `packet` bytes.
    pub(super) fn written(&mut self, at: Instant, bytes: u64, packet: u64) {
        // The heads before them.
        let (from, _, unsent) = self.unsent.unwrap_or((at, 1, packet));
        self.unsent = Some((from, 1, unsent + bytes));
    }

    /// Packets are sent.
    pub(super) fn sent(&mut self, at: Instant, bytes: u64) {
        // A batch that was begun before them has none of them.
        let round = match &mut self.unsent {
            Some((from, round, unsent)) if *from <= at => {
                *unsent = unsent.saturating_sub(bytes);
                *round
            }
            _ => 0,
        };
        self.unsent = self.unsent.filter(|(_, _, unsent)| *unsent > 0);
        if self.sent.len() == REMEMBERED {
            self.sent.pop_front();
        }
        self.sent.push_back(Sent { at, bytes, round });
    }

    /// Packets of so many bytes are lost, the newest of which was `sent` then: how many of the next are to go twice.
    pub(super) fn lost(&mut self, at: Instant, sent: Instant, bytes: u64, packet: u64) -> u32 {
        // A mark of congestion is no loss.
        if bytes == 0 {
            return 0;
        }
        // What is told is when the newest was sent, and of how many bytes all are: they are taken for one run.
        let mut reach = bytes;
        let mut near = self.sent.iter().rev().skip_while(|one| one.at > sent).take_while(|one| {
            let within = reach > 0;
            reach = reach.saturating_sub(one.bytes);
            within
        });
        let Some(round) = near.find(|one| one.round > 0).map(|one| one.round) else { return 0 };
        if round > ROUNDS {
            return 0;
        }
        let again = bytes.div_ceil(packet.max(1)).min(MOST.into());
        self.unsent.get_or_insert((at, round + 1, again * packet));
        u32::try_from(again).unwrap_or(MOST)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    struct Rig(Instant, Urgent);

    impl Rig {
        fn new() -> Self {
            Self(Instant::now(), Urgent::default())
        }

        fn at(&self, ms: u64) -> Instant {
            self.0 + Duration::from_millis(ms)
        }

        fn written(&mut self, ms: u64, bytes: u64) {
            self.1.written(self.at(ms), bytes, 1000);
        }

        fn sent(&mut self, times: impl IntoIterator<Item = u64>) {
            times.into_iter().for_each(|ms| self.1.sent(self.at(ms), 1000));
        }

        fn lost(&mut self, ms: u64, sent: u64, bytes: u64) -> u32 {
            self.1.lost(self.at(ms), self.at(sent), bytes, 1000)
        }
    }

    #[test]
    fn what_was_sent_with_urgent_bytes_and_is_lost_goes_twice() {
        let mut rig = Rig::new();
        rig.sent([1]);
        assert_eq!(rig.lost(50, 1, 1000), 0, "nothing was urgent");
        rig.sent([100]);
        rig.written(110, 1500);
        // With the heads three packets.
        rig.sent((110..200).step_by(10));
        assert_eq!(rig.lost(300, 100, 1000), 0, "before it");
        assert_eq!(rig.lost(300, 170, 1000), 0, "after it");
        assert_eq!(rig.lost(300, 130, 0), 0, "a mark of congestion");
        assert_eq!(rig.lost(300, 130, 1000), 1);
    }

    #[test]
    fn a_loss_that_runs_past_it_counts_and_an_outage_takes_two() {
        for (sent, bytes, again) in [(140, 1000, 0), (140, 2000, 2), (150, 3000, 2), (160, 9000, 2)] {
            let mut rig = Rig::new();
            rig.written(110, 1500);
            rig.sent((110..200).step_by(10));
            assert_eq!(rig.lost(300, sent, bytes), again, "{sent}");
        }
    }

    #[test]
    fn what_goes_in_its_place_is_looked_after_for_a_while() {
        let mut rig = Rig::new();
        rig.written(0, 500);
        rig.sent([0, 0]);
        let mut rounds = 0;
        while rig.lost(100 * (rounds + 1), 100 * rounds, 1000) > 0 {
            rounds += 1;
            rig.sent([100 * rounds]);
            // What follows it is something else.
            rig.sent((1..9).map(|ms| 100 * rounds + ms));
            assert_eq!(rig.lost(100 * rounds + 50, 100 * rounds + 8, 1000), 0);
        }
        assert_eq!(rounds, u64::from(ROUNDS));
    }

    #[test]
    fn a_batch_that_was_begun_before_has_none_of_it() {
        let mut rig = Rig::new();
        rig.written(10, 500);
        rig.sent([9, 9, 9, 9, 12]);
        assert_eq!(rig.lost(100, 9, 1000), 0);
        assert_eq!(rig.lost(100, 12, 1000), 1);
    }

    #[test]
    fn so_many_are_remembered() {
        let mut rig = Rig::new();
        rig.written(0, 500);
        rig.sent(0..=REMEMBERED as u64 + 2);
        assert_eq!((rig.1.sent.len(), rig.lost(100, 1, 1000)), (REMEMBERED, 0));
    }
}
