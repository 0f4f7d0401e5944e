//! What is lost of what is most urgent goes twice the next time. A packet that is lost twice costs two more round
//! trips, and on a thin link with a queue before it each of them is more than a second; a second copy costs a packet.
//! Which packets are meant is known by when they were sent: what is most urgent goes before all that waits.

use std::collections::VecDeque;
use std::time::Instant;

/// Packets that go twice after a loss, at most: more are an outage's, or a full queue's.
const MOST: u64 = 2;
/// Times at which urgent bytes were sent that are remembered.
const SPANS: usize = 4;

/// When urgent bytes were sent. Pure.
#[derive(Debug, Clone, Default)]
pub(super) struct Urgent {
    /// From when to when, without a pause; the newest last.
    spans: VecDeque<(Instant, Instant)>,
    /// Urgent bytes that were not sent yet.
    unsent: u64,
}

impl Urgent {
    /// Urgent bytes are written, in packets of at most `packet` bytes.
    pub(super) fn written(&mut self, at: Instant, bytes: u64, packet: u64) {
        if self.unsent == 0 {
            if self.spans.len() == SPANS {
                self.spans.pop_front();
            }
            self.spans.push_back((at, at));
            // The heads before them.
            self.unsent = packet;
        }
        self.unsent += bytes;
    }

    /// A packet is sent.
    pub(super) fn sent(&mut self, at: Instant, bytes: u64) {
        if let Some((_, until)) = self.spans.back_mut().filter(|_| self.unsent > 0) {
            *until = at;
            self.unsent = self.unsent.saturating_sub(bytes);
        }
    }

    /// Packets are lost, the newest of which was `sent` then: how many of the next are to go twice.
    pub(super) fn lost(&mut self, at: Instant, sent: Instant, bytes: u64, packet: u64) -> u32 {
        if !self.spans.iter().any(|(from, until)| (*from..=*until).contains(&sent)) {
            return 0;
        }
        let again = bytes.div_ceil(packet.max(1)).min(MOST);
        self.written(at, again * packet, 0);
        u32::try_from(again).unwrap_or(0)
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

        fn sent(&mut self, times: &[u64]) {
            times.iter().for_each(|ms| self.1.sent(self.at(*ms), 1000));
        }

        fn lost(&mut self, ms: u64, sent: u64, bytes: u64) -> u32 {
            self.1.lost(self.at(ms), self.at(sent), bytes, 1000)
        }
    }

    #[test]
    fn what_was_sent_with_urgent_bytes_and_is_lost_goes_twice() {
        let mut rig = Rig::new();
        rig.sent(&[1]);
        assert_eq!(rig.lost(100, 1, 1000), 0, "nothing was urgent");
        rig.written(110, 1500);
        // With the heads three packets.
        rig.sent(&[110, 120, 130, 140]);
        assert_eq!(rig.lost(200, 100, 1000), 0, "before it");
        assert_eq!(rig.lost(200, 140, 1000), 0, "after it");
        assert_eq!(rig.lost(200, 130, 1000), 1);
        rig.sent(&[210, 220]);
        assert_eq!(rig.lost(300, 210, 9000), 2, "the copies too, and no more of an outage");
        rig.sent(&[300, 300, 310]);
        assert_eq!(rig.lost(400, 310, 1000), 0, "that was something else");
    }

    #[test]
    fn a_few_of_the_last_are_remembered() {
        let mut rig = Rig::new();
        for at in [0, 10, 20, 30, 40] {
            rig.written(at, 1000);
            rig.sent(&[at + 1, at + 2]);
        }
        assert_eq!(rig.lost(50, 1, 1000), 0);
        assert_eq!(rig.lost(50, 11, 1000), 1);
    }
}
