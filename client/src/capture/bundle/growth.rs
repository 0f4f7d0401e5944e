//! When one more connection beside others is worth it: as long as each that was added brought more.
//! On a link that is full it brings nothing but loss; on one that loses, each brings its own. Pure.

use crate::capture::retry::Pause;

/// A connection is judged so long after it was added, in milliseconds: its slow start is over.
const SETTLED_MS: u64 = 1500;
/// And after so long another one is tried whatever was seen: links change.
const AGAIN_MS: u64 = 30_000;
/// Looks that make up one measurement.
const LOOKS: usize = 3;
/// Pause after one more came to nothing, and the longest: a handshake costs a link that is thin
/// more than it costs the relay.
const PAUSE_MS: (u64, u64) = (2_000, 64_000);

/// What all connections together bring.
pub(super) struct Growth {
    /// The latest looks: when, and bytes written by then.
    looks: [Option<(u64, u64)>; LOOKS],
    added_ms: u64,
    /// Bytes per second before the last one was added.
    before: u64,
    /// The last one was not refused, nor did it break off before it was settled.
    stays: bool,
    pause: Pause,
}

impl Default for Growth {
    fn default() -> Self {
        let pause = Pause::new(PAUSE_MS.0, PAUSE_MS.1);
        Self { looks: [None; LOOKS], added_ms: 0, before: 0, stays: false, pause }
    }
}

impl Growth {
    /// `written` bytes went out by now, over all connections.
    pub(super) fn look(&mut self, now_ms: u64, written: u64) {
        self.looks.rotate_left(1);
        self.looks[LOOKS - 1] = Some((now_ms, written));
        if self.stays && now_ms - self.added_ms >= SETTLED_MS {
            self.pause.over();
        }
    }

    /// Whether another one beside `links` is worth it: the last one brought at least half a share,
    /// or none could be added for long.
    pub(super) fn wants_more(&self, now_ms: u64, links: u64) -> bool {
        let needed = self.before + self.before / (2 * links.max(1));
        let since = now_ms - self.added_ms;
        let worth = since >= AGAIN_MS || since >= SETTLED_MS && self.rate().is_some_and(|rate| rate >= needed);
        worth && self.pause.is_over(now_ms)
    }

    /// Another one was added.
    pub(super) fn added(&mut self, now_ms: u64) {
        (self.added_ms, self.before, self.stays) = (now_ms, self.rate().unwrap_or_default(), true);
    }

    /// One could not be made, or broke off; the relay may ask for a pause.
    pub(super) fn failed(&mut self, now_ms: u64, asked_s: Option<u64>) {
        self.stays = false;
        self.pause.failed(now_ms, asked_s);
    }

    /// One that brought nothing went: another may take its place at once.
    pub(super) fn lost(&mut self, now_ms: u64) {
        (self.added_ms, self.before) = (self.added_ms.min(now_ms.saturating_sub(SETTLED_MS)), 0);
    }

    /// One is left: what the others brought says nothing of it.
    pub(super) fn begins(&mut self, now_ms: u64) {
        (self.looks, self.added_ms, self.before) = ([None; LOOKS], now_ms, 0);
    }

    fn rate(&self) -> Option<u64> {
        let ((from_ms, first), (to_ms, last)) = (self.looks[0]?, self.looks[LOOKS - 1]?);
        Some(last.saturating_sub(first) * 1000 / (to_ms - from_ms).max(1))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Connections after so many seconds, each of which brings `each`, all together at most `all`.
    fn links(each: u64, all: u64, seconds: u64) -> u64 {
        let (mut growth, mut links, mut written) = (Growth::default(), 1, 0);
        growth.added(0);
        for now_ms in (0..seconds * 1000).step_by(500) {
            growth.look(now_ms, written);
            if growth.wants_more(now_ms, links) {
                growth.added(now_ms);
                links += 1;
            }
            written += (each * links).min(all) / 2;
        }
        links
    }

    #[test]
    fn there_are_more_as_long_as_each_brings_its_own() {
        assert_eq!(links(10_000, u64::MAX, 15), 10, "each its own");
        assert_eq!(links(32_000, 32_000, 30), 2, "one fills the link, and the second shows it");
        assert_eq!(links(32_000, 64_000, 30), 3);
        assert_eq!(links(32_000, 32_000, 70), 4, "another try every half minute");
        assert_eq!(links(0, 0, 4), 3, "what brings nothing may hang");
    }

    /// When another one was tried, on a link where each would bring its own; `becomes` of try `n`:
    /// it stays so many milliseconds, and what is asked for in the end.
    fn tries(seconds: u64, mut becomes: impl FnMut(usize) -> (u64, Option<u64>)) -> Vec<(u64, Option<u64>)> {
        let (mut growth, mut tries, mut open) = (Growth::default(), Vec::new(), Vec::new());
        for now_ms in (0..seconds * 1000).step_by(500) {
            open.retain(|(until_ms, asked_s)| {
                let stays = now_ms < *until_ms;
                if !stays {
                    growth.failed(now_ms, *asked_s);
                }
                stays
            });
            growth.look(now_ms, now_ms * (1 + open.len() as u64));
            if growth.wants_more(now_ms, 1 + open.len() as u64) {
                let (stays_ms, asked_s) = becomes(tries.len());
                tries.push((now_ms, asked_s));
                match stays_ms {
                    0 => growth.failed(now_ms, asked_s),
                    stays_ms => {
                        growth.added(now_ms);
                        open.push((now_ms + stays_ms, asked_s));
                    }
                }
            }
        }
        tries
    }

    #[test]
    fn a_relay_that_takes_no_more_is_seldom_tried() {
        let at = |tries: &[(u64, Option<u64>)]| tries.iter().map(|(now_ms, _)| now_ms / 500).collect::<Vec<_>>();
        let refused = tries(600, |_| (0, None));
        assert_eq!(at(&refused[..6]), [3, 7, 15, 31, 63, 127], "half seconds, each pause twice the last");
        assert!(refused.len() <= 15, "{}", refused.len());
        let closed = tries(600, |_| (500, None));
        assert!(closed.len() <= 15, "taken and closed again is the same: {}", closed.len());
        let asked = tries(600, |_| (0, Some(120)));
        assert_eq!(asked.len(), 5);
        // One that stays makes up for those that did not.
        let mended = tries(60, |n| (if n < 3 { 0 } else { u64::MAX / 2 }, None));
        assert!(at(&mended[3..7]).windows(2).all(|pair| pair[1] - pair[0] == 3), "{mended:?}");
    }

    proptest! {
        #[test]
        fn no_try_comes_before_the_pause_that_the_last_one_left(
            asked in prop::collection::vec(prop::option::of(0u64..u64::MAX), 40),
            stays in prop::collection::vec(prop_oneof![Just(0u64), 500u64..5_000], 40),
        ) {
            let tries = tries(1_500, |n| (stays[n % 40], asked[n % 40]));
            for pair in tries.windows(2) {
                let ((before_ms, asked_s), (now_ms, _)) = (pair[0], pair[1]);
                prop_assert!(now_ms - before_ms >= SETTLED_MS.min(PAUSE_MS.0));
                if stays[tries.iter().position(|one| one.0 == before_ms).unwrap() % 40] == 0 {
                    let least = asked_s.map_or(0, crate::http::bounded) * 1000;
                    prop_assert!(now_ms - before_ms >= least.max(PAUSE_MS.0));
                }
            }
            let refused = stays.iter().take(tries.len()).filter(|stays| **stays == 0).count() as u64;
            prop_assert!(tries.len() as u64 <= 2 + 1_500_000 / SETTLED_MS, "{refused}");
        }
    }
}
