//! A line in the log at most once a minute, for what may come in waves.

use std::sync::{Mutex, PoisonError};

/// The shortest time between two lines, ms.
const EVERY_MS: u64 = 60_000;

/// When the last line was, and what came since.
#[derive(Default)]
pub(super) struct Seldom(Mutex<(Option<u64>, u64)>);

impl Seldom {
    /// It happened once more. `Some`: say so now, and that so many happened since the last line.
    pub(super) fn happened(&self, now_ms: u64) -> Option<u64> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.1 += 1;
        if state.0.is_some_and(|said| now_ms < said.saturating_add(EVERY_MS)) {
            return None;
        }
        state.0 = Some(now_ms);
        Some(std::mem::take(&mut state.1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wave_is_one_line_that_counts() {
        let seldom = Seldom::default();
        assert_eq!(seldom.happened(5), Some(1), "the first at once");
        assert!((6..100).all(|now| seldom.happened(now).is_none()));
        assert_eq!(seldom.happened(5 + EVERY_MS), Some(95));
    }
}
