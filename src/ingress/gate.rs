//! Who may come in: places for connections, shared by every listener, and the rate of handshakes.

use std::num::NonZeroU32;
use std::sync::Arc;

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Connections beyond `limits.connections` that are let in to be told `too_many_connections`.
/// Each costs one handshake and one answer; past these the socket is closed unread.
const MAX_COURTESY: usize = 32;

/// The places and the rate.
pub(super) struct Gate {
    places: Arc<Semaphore>,
    courtesy: Arc<Semaphore>,
    handshakes: Option<DefaultDirectRateLimiter>,
}

/// A place in the relay, given back when dropped.
pub(super) struct Place {
    _permit: OwnedSemaphorePermit,
    /// Whether it is only good for hearing that the relay is full.
    pub(super) courtesy: bool,
}

impl Gate {
    /// `handshakes_per_second` of 0 means no limit.
    pub(super) fn new(connections: usize, handshakes_per_second: u32) -> Self {
        Self {
            places: Arc::new(Semaphore::new(connections.min(Semaphore::MAX_PERMITS))),
            courtesy: Arc::new(Semaphore::new(MAX_COURTESY)),
            handshakes: NonZeroU32::new(handshakes_per_second).map(|rate| RateLimiter::direct(Quota::per_second(rate))),
        }
    }

    /// A place for a new connection; `None`: close it.
    pub(super) fn enter(&self) -> Option<Place> {
        if let Ok(permit) = Arc::clone(&self.places).try_acquire_owned() {
            return Some(Place { _permit: permit, courtesy: false });
        }
        let permit = Arc::clone(&self.courtesy).try_acquire_owned().ok()?;
        Some(Place { _permit: permit, courtesy: true })
    }

    /// Whether one more handshake may begin now.
    pub(super) fn may_shake_hands(&self) -> bool {
        self.handshakes.as_ref().is_none_or(|limiter| limiter.check().is_ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_places_are_for_hearing_no() {
        let gate = Gate::new(1, 0);
        let first = gate.enter().unwrap();
        assert!(!first.courtesy);
        let told: Vec<_> = (0..MAX_COURTESY).map(|_| gate.enter().unwrap()).collect();
        assert!(told.iter().all(|place| place.courtesy));
        assert!(gate.enter().is_none());
        drop(first);
        assert!(!gate.enter().unwrap().courtesy, "a place that was left is free again");
    }

    #[test]
    fn handshakes_have_a_rate() {
        let gate = Gate::new(1, 2);
        let begun = (0..10).filter(|_| gate.may_shake_hands()).count();
        assert_eq!(begun, 2);
    }
}
