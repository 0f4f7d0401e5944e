//! When a sign of life is due. Pure.

use std::time::Duration;

use tokio::time::Instant;

/// `ALIVE` is sent when nothing else was for this long: contacts hear of 5 s without a sign.
pub(super) const AFTER: Duration = Duration::from_millis(4500);
/// At most, however dear the last ones were: contacts hear of 15 s that the phone is silent, and a sign that
/// an outage took must be there before.
const AT_MOST: Duration = Duration::from_millis(7500);
/// What a byte on the wire takes of that time: a little under 100 bytes in 5 s.
const A_BYTE: Duration = Duration::from_millis(51);
/// What one sign is charged with at most: what else is sent between two of them, a capability or what looks
/// for another path, is not its own.
const MOST_BYTES: u64 = 300;
/// What is owed at most.
const MOST_OWED: Duration = Duration::from_secs(10);
/// Nothing is acknowledged for this long: this is an outage, and signs go as soon as they may.
const OUTAGE: Duration = Duration::from_secs(1);

/// Signs of life that are paid for before the next one goes. On a path that loses much, what asks after a
/// lost one and brings it again is dearer than the sign itself.
#[derive(Debug, Clone, Copy)]
pub(super) struct Signs {
    /// When the last one went, and what was on the wire before it.
    last: Option<(Instant, u64)>,
    /// What those before it cost and nobody waited for.
    owed: Duration,
}

/// What is known of the connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Line {
    /// When something was last written, a sign or media.
    pub(super) written: Instant,
    /// Bytes on the wire so far.
    pub(super) wire: u64,
    /// For how long what is owed was not acknowledged.
    pub(super) silence: Duration,
}

impl Signs {
    pub(super) const fn new() -> Self {
        Self { last: None, owed: Duration::ZERO }
    }

    /// When the next is due. It may be later, or sooner, when it is asked again.
    pub(super) fn due(&self, line: Line) -> Instant {
        line.written + self.dear(line).unwrap_or_default().clamp(AFTER, AT_MOST)
    }

    /// One goes now; `line` is as it was before.
    pub(super) fn given(&mut self, line: Line, now: Instant) {
        let dear = self.dear(line).unwrap_or_default();
        self.owed = dear.saturating_sub(now.saturating_duration_since(line.written)).min(MOST_OWED);
        self.last = Some((now, line.wire));
    }

    /// For how long the last one and what was owed must be paid; none in an outage, and none if media went
    /// since, which is paid for by nobody.
    fn dear(&self, line: Line) -> Option<Duration> {
        let (_, before) = self.last.filter(|(at, _)| *at == line.written && line.silence < OUTAGE)?;
        let bytes = line.wire.saturating_sub(before).min(MOST_BYTES) as u32;
        Some(A_BYTE * bytes + self.owed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    const fn line(written: Instant, wire: u64) -> Line {
        Line { written, wire, silence: Duration::ZERO }
    }

    #[test]
    fn a_sign_is_due_before_contacts_hear_of_five_seconds() {
        let (t0, mut signs) = (Instant::now(), Signs::new());
        assert_eq!(signs.due(line(t0, 5000)), t0 + AFTER);
        signs.given(line(t0, 5000), t0 + AFTER);
        assert_eq!(signs.due(line(t0 + AFTER, 5078)), t0 + 2 * AFTER);
    }

    #[test]
    fn what_lost_ones_cost_puts_the_next_off() {
        let (t0, mut signs) = (Instant::now(), Signs::new());
        signs.given(line(t0 - SECOND, 5000), t0);
        assert_eq!(signs.due(line(t0, 5100)), t0 + 100 * A_BYTE);
        assert_eq!(signs.due(line(t0, 5130)), t0 + 130 * A_BYTE, "asked again it is later");
        assert_eq!(signs.due(line(t0, 5200)), t0 + AT_MOST);
        // It cost 10.2 s, of which 7.5 were waited.
        let next = t0 + AT_MOST;
        signs.given(line(t0, 5200), next);
        assert_eq!(signs.due(line(next, 5278)), next + 278 * A_BYTE - AT_MOST);
        // What is not its own is not charged: a renewed capability, a new path.
        assert_eq!(signs.due(line(next, u64::MAX)), next + AT_MOST);
        signs.given(line(next, u64::MAX), next + AT_MOST);
        assert_eq!(signs.owed, MOST_OWED);
    }

    #[test]
    fn in_an_outage_signs_go_as_soon_as_they_may_and_nothing_is_owed_for_it() {
        let (t0, mut signs) = (Instant::now(), Signs::new());
        signs.given(line(t0 - SECOND, 5000), t0);
        let away = Line { silence: OUTAGE, ..line(t0, 5200) };
        assert_eq!(signs.due(away), t0 + AFTER);
        signs.given(away, t0 + AFTER);
        assert_eq!(signs.owed, Duration::ZERO);
    }

    #[test]
    fn media_is_a_sign_and_is_paid_for_by_nobody() {
        let (t0, mut signs) = (Instant::now(), Signs::new());
        signs.given(line(t0 - SECOND, 5000), t0);
        let media = t0 + SECOND;
        assert_eq!(signs.due(line(media, 500_000)), media + AFTER);
        signs.given(line(media, 500_000), media + AFTER);
        assert_eq!(signs.owed, Duration::ZERO);
    }

    #[test]
    fn over_an_hour_signs_cost_no_more_than_they_may() {
        let (t0, mut signs) = (Instant::now(), Signs::new());
        let (mut written, mut now, mut wire) = (t0, t0 + AFTER, 0);
        for n in 0_u64..600 {
            signs.given(line(written, wire), now);
            written = now;
            wire += 78 + if n % 4 == 0 { 200 } else { 0 };
            now = signs.due(line(written, wire));
        }
        let each = wire as f64 / (now - t0).as_secs_f64() * 5.0;
        assert!((95.0..=100.0).contains(&each), "{each}");
    }
}
