//! When to ask after the end of what was sent. Pure.
//!
//! A packet is known to be lost when one sent after it is acknowledged. Behind the last one there is
//! none, and QUIC waits for its time-out, a round trip and more, before it sends one that asks
//! (RFC 9002 §6.2); what is lost again is waited for again. On a path that loses much, small packets that ask
//! for an acknowledgement follow at once: each loss is found in little more than a round trip.

use std::time::{Duration, Instant};

use super::Path;

/// Packets of fewer bytes are not asked after: those that ask, acknowledgements, a sign of life. The few
/// others are QUIC's own time-out's.
const SMALL: u64 = 100;
/// It is asked where at least this part is lost, in thousandths.
const LOSSY: u64 = 20;
/// As long as fewer packets were acknowledged nobody knows what is lost, and it is asked [`TWICE`].
const KNOWN: u32 = 40;
/// See [`KNOWN`].
const TWICE: u32 = 2;
/// So often in a round trip. A packet is given up an eighth of one later than its acknowledgement
/// was due, so that the second that asks settles it.
const TIMES: u32 = 6;
/// Not more often, however near the path.
const LEAST: Duration = Duration::from_millis(5);
/// Over so many round trips. What is not acknowledged by then is not lost but away; and what is counted
/// as open for ever, since a batch's last packet was small, is asked after no longer.
const BORNE: u32 = 2;

/// The end of what is on its way.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tail {
    /// Bytes of packets that are not small and neither acknowledged nor given up.
    open: u64,
    /// There was nothing more to send at the last acknowledgement.
    dry: bool,
    heard: Instant,
    /// The last packet, or the last that asked.
    moved: Instant,
    /// Packets acknowledged.
    seen: u32,
    /// It was asked so often since the last packet.
    asked: u32,
}

impl Tail {
    pub(super) const fn new(now: Instant) -> Self {
        Self { open: 0, dry: false, heard: now, moved: now, seen: 0, asked: 0 }
    }

    /// Packets of so many bytes went together.
    pub(super) fn sent(&mut self, now: Instant, bytes: u64) {
        if bytes < SMALL {
            return;
        }
        if self.open == 0 {
            self.heard = now;
        }
        self.open += bytes;
        (self.moved, self.asked) = (now, 0);
    }

    /// A packet is acknowledged.
    pub(super) fn acked(&mut self, bytes: u64) {
        self.seen = self.seen.saturating_add(1);
        if bytes >= SMALL {
            self.open = self.open.saturating_sub(bytes);
        }
    }

    /// Packets of so many bytes together are given up.
    pub(super) fn lost(&mut self, bytes: u64) {
        if bytes >= SMALL {
            self.open = self.open.saturating_sub(bytes);
        }
    }

    /// An acknowledgement was read to its end, and leaves so many bytes in flight. `dry`: there was
    /// nothing more to send.
    pub(super) fn batch_end(&mut self, now: Instant, in_flight: u64, dry: bool) {
        (self.open, self.dry, self.heard) = (self.open.min(in_flight), dry, now);
    }

    /// One that asks is sent.
    pub(super) fn asked(&mut self, now: Instant) {
        (self.moved, self.asked) = (now, self.asked + 1);
    }

    /// When to ask next; `None`: not before something changes.
    pub(super) fn due(&self, path: Path) -> Option<Instant> {
        let most = if path.loss_permille >= LOSSY {
            BORNE * TIMES
        } else if self.seen < KNOWN {
            TWICE
        } else {
            0
        };
        if !self.dry || self.open < SMALL || self.asked >= most || path.rtt.is_zero() {
            return None;
        }
        let due = self.moved + (path.rtt / TIMES).max(LEAST);
        (due <= self.heard + BORNE * path.rtt).then_some(due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn path(rtt_ms: u64, loss_permille: u64) -> Path {
        Path { rate: 250_000, rtt: Duration::from_millis(rtt_ms), loss_permille }
    }

    #[test]
    fn the_last_packets_of_a_lossy_path_are_asked_after_until_they_are_there() {
        let t0 = Instant::now();
        let mut tail = Tail::new(t0);
        tail.sent(t0, 1200);
        assert_eq!(tail.due(path(240, 150)), None, "more may be behind it");
        tail.sent(t0 + 10 * MS, 1200);
        tail.acked(1200);
        tail.batch_end(t0 + 240 * MS, 1200, true);
        assert_eq!(tail.due(path(240, 150)), Some(t0 + 50 * MS));
        tail.asked(t0 + 240 * MS);
        assert_eq!(tail.due(path(240, 150)), Some(t0 + 280 * MS));
        tail.lost(1200);
        tail.batch_end(t0 + 270 * MS, 0, true);
        assert_eq!(tail.due(path(240, 150)), None);
        tail.sent(t0 + 270 * MS, 1200);
        assert_eq!(tail.due(path(240, 150)), Some(t0 + 310 * MS), "and what is sent again as well");
        tail.acked(1200);
        tail.batch_end(t0 + 510 * MS, 45, true);
        assert_eq!(tail.due(path(240, 150)), None, "what asks is not asked after");
    }

    #[test]
    fn where_little_is_lost_the_time_out_does() {
        let t0 = Instant::now();
        let mut tail = Tail::new(t0);
        let mut asked = 0;
        for _ in 0..100 {
            tail.sent(t0, 1200);
            tail.batch_end(t0, 1200, true);
            while tail.due(path(240, 0)).is_some() {
                tail.asked(t0);
                asked += 1;
            }
            tail.acked(1200);
            tail.batch_end(t0, 0, true);
        }
        assert_eq!(asked, KNOWN * TWICE, "as long as nothing is known");
    }

    #[test]
    fn a_path_that_is_away_is_not_asked() {
        let t0 = Instant::now();
        let mut tail = Tail::new(t0);
        tail.batch_end(t0, 0, true);
        let mut now = t0 + 3600 * 1000 * MS;
        tail.sent(now, 800);
        let begun = now;
        let mut asked = 0;
        while let Some(due) = tail.due(path(240, 150)) {
            now = due;
            tail.asked(now);
            asked += 1;
        }
        assert_eq!(asked, 12);
        assert!(now <= begun + 480 * MS);
    }

    #[test]
    fn what_asks_keeps_no_question_alive() {
        let t0 = Instant::now();
        let mut tail = Tail::new(t0);
        tail.batch_end(t0, 0, true);
        // The last of a batch is small, and so is never counted as acknowledged.
        tail.sent(t0, 2 * 1200 + 99);
        tail.acked(1200);
        tail.acked(1200);
        let mut asked = 0;
        for ms in (0..10_000).step_by(20) {
            tail.batch_end(t0 + ms * MS, 6 * 45, true);
            if tail.due(path(240, 150)).is_some() {
                tail.asked(t0 + ms * MS);
                asked += 1;
            }
        }
        assert_eq!(asked, 0);
        for _ in 0..2 {
            tail.sent(t0, 1299);
            tail.acked(1200);
        }
        for ms in (0..10_000).step_by(20) {
            tail.batch_end(t0 + ms * MS, 6 * 45, true);
            if tail.due(path(240, 150)).is_some() {
                tail.asked(t0 + ms * MS);
                asked += 1;
            }
        }
        assert_eq!(asked, BORNE * TIMES);
    }

    #[test]
    fn signs_of_life_and_acknowledgements_ask_for_nothing() {
        let t0 = Instant::now();
        let mut tail = Tail::new(t0);
        tail.batch_end(t0, 0, true);
        tail.sent(t0, 60);
        assert_eq!(tail.due(path(240, 150)), None);
        tail.sent(t0, 1000);
        tail.batch_end(t0 + MS, 60, true);
        assert_eq!(tail.open, 60, "never more than is in flight");
    }
}
