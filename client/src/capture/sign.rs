//! When a sign of life is due. Pure.

use std::time::Duration;

use tokio::time::Instant;

/// `ALIVE` is sent when nothing else was for this long: contacts hear of 5 s without a sign.
pub(super) const AFTER: Duration = Duration::from_millis(4500);
/// At most, however dear the last one was: contacts hear of 15 s that the phone is silent, and what is
/// lost once or twice must be there before.
const AT_MOST: Duration = Duration::from_secs(9);
/// What a byte on the wire takes of that time: 100 bytes in 5 s, 20 bytes a second.
const A_BYTE: Duration = Duration::from_millis(50);

/// Signs of life that are paid for before the next one goes. On a path that loses much, what asks after a
/// lost one and brings it again is dearer than the sign itself.
#[derive(Debug, Clone, Copy)]
pub(super) struct Signs {
    /// When the last one went, and what was on the wire before it.
    last: Option<(Instant, u64)>,
}

impl Signs {
    pub(super) const fn new() -> Self {
        Self { last: None }
    }

    /// When the next is due. `written`: when something was last written, a sign or media; `wire`: bytes
    /// on the wire so far. It may be later when it is asked again.
    pub(super) fn due(&self, written: Instant, wire: u64) -> Instant {
        match self.last {
            Some((at, before)) if at == written => {
                let bytes = u32::try_from(wire.saturating_sub(before)).unwrap_or(u32::MAX);
                at + A_BYTE.saturating_mul(bytes).clamp(AFTER, AT_MOST)
            }
            // Media went since.
            _ => written + AFTER,
        }
    }

    /// One goes now.
    pub(super) const fn given(&mut self, now: Instant, wire: u64) {
        self.last = Some((now, wire));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(from: Instant, to: Instant) -> f64 {
        (to - from).as_secs_f64()
    }

    #[test]
    fn a_sign_is_due_before_contacts_hear_of_five_seconds() {
        let (t0, mut signs) = (Instant::now(), Signs::new());
        assert_eq!(signs.due(t0, 5000), t0 + AFTER);
        signs.given(t0 + AFTER, 5000);
        assert_eq!(signs.due(t0 + AFTER, 5078), t0 + 2 * AFTER);
    }

    #[test]
    fn what_a_lost_one_cost_puts_the_next_off() {
        let (t0, mut signs) = (Instant::now(), Signs::new());
        signs.given(t0, 5000);
        assert!((seconds(t0, signs.due(t0, 5130)) - 6.5).abs() < 1e-9);
        assert!((seconds(t0, signs.due(t0, 5170)) - 8.5).abs() < 1e-9, "asked again it is later");
        assert_eq!(signs.due(t0, 1_000_000), t0 + AT_MOST);
        assert_eq!(signs.due(t0, u64::MAX), t0 + AT_MOST);
    }

    #[test]
    fn media_is_a_sign_and_is_paid_for_by_nobody() {
        let (t0, mut signs) = (Instant::now(), Signs::new());
        signs.given(t0, 5000);
        let media = t0 + Duration::from_secs(1);
        assert_eq!(signs.due(media, 500_000), media + AFTER);
    }

    #[test]
    fn over_an_hour_signs_cost_no_more_than_they_may() {
        let (t0, mut signs) = (Instant::now(), Signs::new());
        let (mut now, mut wire) = (t0, 0);
        for n in 0_u64..600 {
            signs.given(now, wire);
            wire += 78 + if n % 3 == 0 { 100 } else { 0 };
            now = signs.due(now, wire);
        }
        let each = wire as f64 / seconds(t0, now) * 5.0;
        assert!((80.0..=100.0).contains(&each), "{each}");
    }
}
