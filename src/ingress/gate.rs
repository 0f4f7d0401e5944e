//! Who may come in: places for connections, shared by every listener, and the rate of handshakes;
//! and how much of both one address may have, so that none shuts the others out.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError};

use governor::{DefaultDirectRateLimiter, DefaultKeyedRateLimiter, Quota, RateLimiter};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::conn::network;
use crate::telemetry::names::RefusedConnection;

/// Connections beyond `limits.connections` that are let in to be told `too_many_connections`.
/// Each costs one handshake and one answer; past these the socket is closed unread.
const MAX_COURTESY: usize = 32;

/// One address has half of the places and half of the handshakes, since a carrier puts a town of
/// phones behind one; and never fewer than these, where the whole is small.
const LEAST_SHARE: (usize, u32) = (64, 20);

/// The places and the rate.
pub(super) struct Gate {
    places: Arc<Semaphore>,
    courtesy: Arc<Semaphore>,
    handshakes: Option<Handshakes>,
    /// Places that each address has taken, by its keyed hash: as many entries as places at most.
    taken: Arc<Mutex<HashMap<u64, usize>>>,
    share: usize,
    hasher: RandomState,
}

struct Handshakes {
    all: DefaultDirectRateLimiter,
    /// By 16 bits of the address' keyed hash, which bounds it: 65,536 entries of 32 bytes.
    each: DefaultKeyedRateLimiter<u16>,
}

/// A place in the relay, given back when dropped.
pub(super) struct Place {
    _permit: OwnedSemaphorePermit,
    _share: Option<Share>,
    /// Whether it is only good for hearing that the relay is full.
    pub(super) courtesy: bool,
}

/// One of the places of an address, given back when dropped.
struct Share {
    taken: Arc<Mutex<HashMap<u64, usize>>>,
    address: u64,
}

impl Gate {
    /// `handshakes_per_second` of 0 means no limit.
    pub(super) fn new(connections: usize, handshakes_per_second: u32) -> Self {
        let handshakes = NonZeroU32::new(handshakes_per_second).map(|rate| {
            let share = NonZeroU32::new(rate.get().div_ceil(2).max(LEAST_SHARE.1)).unwrap_or(rate);
            Handshakes {
                all: RateLimiter::direct(Quota::per_second(rate)),
                each: RateLimiter::keyed(Quota::per_second(share)),
            }
        });
        Self {
            places: Arc::new(Semaphore::new(connections.min(Semaphore::MAX_PERMITS))),
            courtesy: Arc::new(Semaphore::new(MAX_COURTESY)),
            handshakes,
            taken: Arc::default(),
            share: connections.div_ceil(2).max(LEAST_SHARE.0),
            hasher: RandomState::new(),
        }
    }

    /// A place for a new connection from this address, or why to close it. `None` stands for a
    /// proxy, which speaks for many.
    pub(super) fn enter(&self, from: Option<IpAddr>) -> Result<Place, RefusedConnection> {
        let share = match from {
            Some(from) => Some(self.share_of(self.name(from)).ok_or(RefusedConnection::AddressShare)?),
            None => None,
        };
        if let Ok(permit) = Arc::clone(&self.places).try_acquire_owned() {
            return Ok(Place { _permit: permit, _share: share, courtesy: false });
        }
        let permit = Arc::clone(&self.courtesy).try_acquire_owned().map_err(|_| RefusedConnection::Full)?;
        Ok(Place { _permit: permit, _share: share, courtesy: true })
    }

    /// Whether one more handshake may begin now, and if not, why.
    pub(super) fn may_shake_hands(&self, from: Option<IpAddr>) -> Result<(), RefusedConnection> {
        let Some(handshakes) = &self.handshakes else { return Ok(()) };
        // Its own share first: what an address is refused takes nothing from the others.
        if let Some(from) = from {
            let share = handshakes.each.check_key(&(self.name(from) as u16));
            share.map_err(|_| RefusedConnection::AddressShare)?;
        }
        handshakes.all.check().map_err(|_| RefusedConnection::HandshakeRate)
    }

    fn share_of(&self, address: u64) -> Option<Share> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let count = taken.entry(address).or_default();
        if *count >= self.share {
            return None;
        }
        *count += 1;
        Some(Share { taken: Arc::clone(&self.taken), address })
    }

    fn name(&self, address: IpAddr) -> u64 {
        self.hasher.hash_one(network(address))
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = taken.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
    const B: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2));

    #[test]
    fn the_last_places_are_for_hearing_no() {
        let gate = Gate::new(1, 0);
        let first = gate.enter(Some(A)).unwrap();
        assert!(!first.courtesy);
        let told: Vec<_> = (0..MAX_COURTESY).map(|_| gate.enter(Some(A)).unwrap()).collect();
        assert!(told.iter().all(|place| place.courtesy));
        assert_eq!(gate.enter(Some(A)).err(), Some(RefusedConnection::Full));
        drop((first, told));
        assert!(!gate.enter(Some(A)).unwrap().courtesy, "a place that was left is free again");
        assert!(gate.taken.lock().unwrap().is_empty(), "and nothing remains of the address");
    }

    #[test]
    fn handshakes_have_a_rate() {
        let gate = Gate::new(1, 2);
        let begun = (0..10).filter(|_| gate.may_shake_hands(Some(A)).is_ok()).count();
        assert_eq!(begun, 2);
        assert_eq!(gate.may_shake_hands(Some(B)), Err(RefusedConnection::HandshakeRate));
    }

    #[test]
    fn no_address_takes_all_places_or_all_handshakes() {
        let gate = Gate::new(200, 60);
        let taken: Vec<_> = (0..200).map_while(|_| gate.enter(Some(A)).ok()).collect();
        assert_eq!(taken.len(), 100);
        assert_eq!(gate.enter(Some(A)).err(), Some(RefusedConnection::AddressShare));
        assert!(!gate.enter(Some(B)).unwrap().courtesy);
        assert!(!gate.enter(None).unwrap().courtesy, "a proxy speaks for many");
        let begun = (0..60).filter(|_| gate.may_shake_hands(Some(A)).is_ok()).count();
        assert_eq!((begun, gate.may_shake_hands(Some(A))), (30, Err(RefusedConnection::AddressShare)));
        assert_eq!((0..30).filter(|_| gate.may_shake_hands(Some(B)).is_ok()).count(), 30);
        let small = Gate::new(LEAST_SHARE.0, 0);
        let alone: Vec<_> = (0..LEAST_SHARE.0).map_while(|_| small.enter(Some(A)).ok()).collect();
        assert_eq!(alone.len(), LEAST_SHARE.0, "a small relay is not halved");
    }

    #[test]
    fn a_network_of_ipv6_is_one_address() {
        let gate = Gate::new(200, 0);
        let from = |host: u16| IpAddr::from([0x2001, 0xdb8, 1, 2, 3, 4, 5, host]);
        let taken: Vec<_> = (0..200).map_while(|host| gate.enter(Some(from(host))).ok()).collect();
        assert_eq!(taken.len(), 100);
    }
}
