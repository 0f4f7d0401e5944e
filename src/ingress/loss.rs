//! What share of what is sent on a connection is lost, of late.

use std::sync::{Mutex, PoisonError};

/// Packets it takes to say what share of them is lost.
const KNOWN_PACKETS: u64 = 40;
/// It is said of the last packets, of so many to twice as many: of 10 to 20 s of sound and pictures.
const SPAN_PACKETS: u64 = 250;

/// The counts of a connection when they were looked at.
#[derive(Debug, Default, Clone, Copy)]
struct Counts {
    sent: u64,
    lost: u64,
}

/// The share of one connection.
#[derive(Debug, Default)]
pub(super) struct Loss(Mutex<[Counts; 2]>);

impl Loss {
    /// How many of a thousand packets were lost of late, when so many were sent and lost in all; `None`: too
    /// few were sent to say.
    pub(super) fn permille(&self, sent: u64, lost: u64) -> Option<u64> {
        let mut marks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let [older, newer] = *marks;
        if sent.saturating_sub(newer.sent) >= SPAN_PACKETS {
            *marks = [newer, Counts { sent, lost }];
        }
        let packets = sent.saturating_sub(older.sent);
        (packets >= KNOWN_PACKETS).then(|| lost.saturating_sub(older.lost) * 1000 / packets)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks after every ten packets, `lost` of a hundred of which are lost.
    fn send(loss: &Loss, at: &mut Counts, packets: u64, lost: u64) -> Option<u64> {
        let mut said = None;
        for _ in 0..packets / 10 {
            at.sent += 10;
            at.lost += lost / 10;
            said = loss.permille(at.sent, at.lost);
        }
        said
    }

    #[test]
    fn little_says_nothing() {
        let (loss, mut at) = (Loss::default(), Counts::default());
        assert_eq!(send(&loss, &mut at, 30, 0), None);
        assert_eq!(send(&loss, &mut at, 20, 10), Some(40));
    }

    #[test]
    fn an_hour_ago_does_not_count() {
        let (loss, mut at) = (Loss::default(), Counts::default());
        assert_eq!(send(&loss, &mut at, 100_000, 0), Some(0));
        assert!(send(&loss, &mut at, 500, 20).unwrap() >= 80, "it begins");
        assert_eq!(send(&loss, &mut at, 500, 20), Some(200));
        assert_eq!(send(&loss, &mut at, 1000, 0), Some(0), "it is over");
    }

    #[test]
    fn who_looks_seldom_is_told_of_what_was_since() {
        let loss = Loss::default();
        assert_eq!(loss.permille(10_000, 0), Some(0));
        assert_eq!(loss.permille(20_000, 1000), Some(50), "of all since the last look but one");
        assert_eq!(loss.permille(20_100, 1000), Some(99));
        assert_eq!(loss.permille(5, 0), None, "counts that go back say nothing");
    }
}
