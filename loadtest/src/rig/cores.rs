//! Which cores a run uses: one for the relay, so that its processor seconds are those of one core and
//! nothing else runs there, and the others for everything else.

use std::sync::OnceLock;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

static LEFT: OnceLock<usize> = OnceLock::new();

/// The division of cores.
#[derive(Debug)]
pub struct Cores;

impl Cores {
    /// From now on this thread, and what it starts, leaves one core free; only if there are several.
    pub fn leave_one() {
        let Ok(mut own) = sched_getaffinity(None) else { return };
        let Some(first) = (0..CpuSet::MAX_CPU).find(|core| own.is_set(*core)) else { return };
        if own.count() < 2 {
            return;
        }
        own.unset(first);
        if sched_setaffinity(None, &own).is_ok() {
            // A second time it is the same: the first call left it.
            let _ = LEFT.set(first);
        }
    }

    /// The core that was left free.
    #[must_use]
    pub fn left() -> Option<usize> {
        LEFT.get().copied()
    }
}
