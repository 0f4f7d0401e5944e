//! Who is woken when a window changes: each listener has a bell of one cache line, and ringing it is
//! all that is done for a contact until its turn comes.

use std::collections::HashMap;
use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;

use futures_util::task::AtomicWaker;

/// All who listen to one group.
#[derive(Default)]
pub(super) struct Bells(Mutex<Hung>);

#[derive(Default)]
struct Hung {
    bells: HashMap<u64, Arc<Bell>>,
    next: u64,
}

struct Bell {
    lanes: [bool; 2],
    rung: AtomicBool,
    task: AtomicWaker,
}

impl Bells {
    /// Rings for those who listen to any of these lanes.
    pub(super) fn ring(&self, lanes: [bool; 2]) {
        for bell in self.hung().bells.values().filter(|bell| (0..2).any(|lane| bell.lanes[lane] && lanes[lane])) {
            if !bell.rung.swap(true, Ordering::AcqRel) {
                bell.task.wake();
            }
        }
    }

    /// One more, who listens to these lanes.
    pub(super) fn listen(self: &Arc<Self>, lanes: [bool; 2]) -> Listener {
        let bell = Arc::new(Bell { lanes, rung: AtomicBool::new(false), task: AtomicWaker::new() });
        let mut hung = self.hung();
        let name = hung.next;
        hung.next += 1;
        hung.bells.insert(name, Arc::clone(&bell));
        Listener { bells: Arc::clone(self), name, bell }
    }

    fn hung(&self) -> MutexGuard<'_, Hung> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One who listens. Only one task waits for it.
pub(super) struct Listener {
    bells: Arc<Bells>,
    name: u64,
    bell: Arc<Bell>,
}

impl Listener {
    /// Whether something changed since [`Self::mark_unchanged`].
    pub(super) fn has_changed(&self) -> bool {
        self.bell.rung.load(Ordering::Acquire)
    }

    /// From here on.
    pub(super) fn mark_unchanged(&self) {
        self.bell.rung.store(false, Ordering::Release);
    }

    /// Waits until something changes. Cancel-safe.
    pub(super) async fn changed(&self) {
        poll_fn(|cx| {
            if !self.has_changed() {
                self.bell.task.register(cx.waker());
            }
            if self.has_changed() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let mut hung = self.bells.hung();
        hung.bells.remove(&self.name);
        if hung.bells.len() < hung.bells.capacity() / 4 {
            hung.bells.shrink_to_fit();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_bell_rings_for_its_lanes_until_it_is_heard() {
        let bells = Arc::new(Bells::default());
        let (audio, both) = (bells.listen([true, false]), bells.listen([true, true]));
        bells.ring([false, true]);
        assert!(!audio.has_changed());
        both.changed().await;
        both.changed().await;
        both.mark_unchanged();
        let waiting = tokio::spawn(async move {
            both.changed().await;
            both
        });
        tokio::task::yield_now().await;
        bells.ring([true, false]);
        let both = waiting.await.unwrap();
        assert!(audio.has_changed());
        drop((audio, both));
        assert!(bells.hung().bells.is_empty());
    }
}
