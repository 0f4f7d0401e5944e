//! When a sign of life is due. Pure.

use std::time::Duration;

use tokio::time::Instant;

/// `ALIVE` is sent when nothing else was for this long: contacts hear of 5 s without a sign.
pub(super) const AFTER: Duration = Duration::from_millis(4500);
/// At most, however dear the last ones were: contacts hear of 15 s that the phone is silent, and what is
/// lost more than once must be there before.
const AT_MOST: Duration = Duration::from_secs(9);
/// What a byte on the wire takes of that time: a little under 100 bytes in 5 s.
const A_BYTE: Duration = Duration::from_millis(51);
/// What is owed at most.
const MOST_OWED: Duration = Duration::from_secs(30);

/// Signs of life that are paid for before the next one goes. On a path that loses much, what asks after a
/// lost one and brings it again is dearer than the sign itself.
#[derive(Debug, Clone, Copy)]
pub(super) struct Signs {
    /// When the last one went, and what was on the wire before it.
    last: Option<(Instant, u64)>,
    /// What those before it cost and nobody waited for.
    owed: Duration,
}

impl Signs {
    pub(super) const fn new() -> Self {
        Self { last: None, owed: Duration::ZERO }
    }

    /// When the next is due. `written`: when something was last written, a sign or media; `wire`: bytes
    /// on the wire so far. It may be later when it is asked again.
    pub(super) fn due(&self, written: Instant, wire: u64) -> Instant {
        let dear = self.dear(written, wire).unwrap_or_default();
        written + dear.clamp(AFTER, AT_MOST)
    }

    /// One goes now, and `written` is when something was last written before it.
    pub(super) fn given(&mut self, written: Instant, wire: u64, now: Instant) {
        let dear = self.dear(written, wire).unwrap_or_default();
        self.owed = dear.saturating_sub(now.saturating_duration_since(written)).min(MOST_OWED);
        self.last = Some((now, wire));
    }

    /// For how long the last one and what was owed must be paid; none if media went since, which is paid
    /// for by nobody.
    fn dear(&self, written: Instant, wire: u64) -> Option<Duration> {
        let (_, before) = self.last.filter(|(at, _)| *at == written)?;
        let bytes = u32::try_from(wire.saturating_sub(before)).unwrap_or(u32::MAX);
        Some(A_BYTE.saturating_mul(bytes).saturating_add(self.owed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_sign_is_due_before_contacts_hear_of_five_seconds() {
        let (t0, mut signs) = (Instant::now(), Signs::new());
        assert_eq!(signs.due(t0, 5000), t0 + AFTER);
        signs.given(t0, 5000, t0 + AFTER);
        assert_eq!(signs.due(t0 + AFTER, 5078), t0 + 2 * AFTER);
    }

    #[test]
    fn what_lost_ones_cost_puts_the_next_off() {
        let (t0, mut signs) = (Instant::now(), Signs::new());
        signs.given(t0 - SECOND, 5000, t0);
        assert_eq!(signs.due(t0, 5100), t0 + 100 * A_BYTE);
        assert_eq!(signs.due(t0, 5150), t0 + 150 * A_BYTE, "asked again it is later");
        assert_eq!(signs.due(t0, 1_000_000), t0 + AT_MOST);
        assert_eq!(signs.due(t0, u64::MAX), t0 + AT_MOST);
        // It cost 15.3 s, of which 9 were waited.
        let next = t0 + AT_MOST;
        signs.given(t0, 5300, next);
        assert_eq!(signs.due(next, 5300), next + 300 * A_BYTE - AT_MOST);
        assert_eq!(signs.due(next, 5378), next + AT_MOST);
        signs.given(next, u64::MAX, next + AT_MOST);
        assert_eq!(signs.owed, MOST_OWED);
    }

    #[test]
    fn media_is_a_sign_and_is_paid_for_by_nobody() {
        let (t0, mut signs) = (Instant::now(), Signs::new());
        signs.given(t0 - SECOND, 5000, t0);
        let media = t0 + SECOND;
        assert_eq!(signs.due(media, 500_000), media + AFTER);
        signs.given(media, 500_000, media + AFTER);
        assert_eq!(signs.owed, Duration::ZERO);
    }

    #[test]
    fn over_an_hour_signs_cost_no_more_than_they_may() {
        let (t0, mut signs) = (Instant::now(), Signs::new());
        let (mut written, mut now, mut wire) = (t0, t0 + AFTER, 0);
        for n in 0_u64..600 {
            signs.given(written, wire, now);
            written = now;
            wire += 78 + if n % 5 == 0 { 400 } else { 0 };
            now = signs.due(written, wire);
        }
        let each = wire as f64 / (now - t0).as_secs_f64() * 5.0;
        assert!((95.0..=100.0).contains(&each), "{each}");
    }
}
