//! When one more connection beside others is worth it: as long as each that was added brought more.
//! On a link that is full it brings nothing but loss; on one that loses, each brings its own. Pure.

/// A connection is judged so long after it was added, in milliseconds: its slow start is over.
const SETTLED_MS: u64 = 1500;
/// And after so long another one is tried whatever was seen: links change.
const AGAIN_MS: u64 = 30_000;
/// Looks that make up one measurement.
const LOOKS: usize = 3;

/// What all connections together bring.
#[derive(Default)]
pub(super) struct Growth {
    /// The latest looks: when, and bytes written by then.
    looks: [Option<(u64, u64)>; LOOKS],
    added_ms: u64,
    /// Bytes per second before the last one was added.
    before: u64,
}

impl Growth {
    /// `written` bytes went out by now, over all connections.
    pub(super) fn look(&mut self, now_ms: u64, written: u64) {
        self.looks.rotate_left(1);
        self.looks[LOOKS - 1] = Some((now_ms, written));
    }

    /// Whether another one beside `links` is worth it: the last one brought at least half a share.
    pub(super) fn wants_more(&self, now_ms: u64, links: u64) -> bool {
        let needed = self.before + self.before / (2 * links.max(1));
        let since = now_ms - self.added_ms;
        since >= AGAIN_MS || since >= SETTLED_MS && self.rate().is_some_and(|rate| rate >= needed)
    }

    /// Another one was added.
    pub(super) fn added(&mut self, now_ms: u64) {
        (self.added_ms, self.before) = (now_ms, self.rate().unwrap_or_default());
    }

    fn rate(&self) -> Option<u64> {
        let ((from_ms, first), (to_ms, last)) = (self.looks[0]?, self.looks[LOOKS - 1]?);
        Some(last.saturating_sub(first) * 1000 / (to_ms - from_ms).max(1))
    }
}

#[cfg(test)]
mod tests {
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
}
