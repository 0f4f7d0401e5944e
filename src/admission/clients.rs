//! Limits by address. A whole town may share one: they hold only until a capability is verified
//! (design, promise 4).

use std::collections::HashMap;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError};

use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};

use super::names::{Name, Names};
use crate::config::Limits;

/// Addresses remembered at once; a newcomer beyond them waits until others are forgotten.
const MAX_CLIENTS: usize = 65_536;

/// What each address asks for. Addresses are known by keyed hashes only.
pub(super) struct Clients {
    names: Names,
    requests: DefaultKeyedRateLimiter<Name>,
    in_flight: Arc<Mutex<HashMap<Name, usize>>>,
    most: usize,
}

/// A place for one chunk of an unverified client; given back when dropped.
pub(super) struct InFlight {
    map: Arc<Mutex<HashMap<Name, usize>>>,
    client: Name,
}

impl Clients {
    pub(super) fn new(limits: &Limits) -> Self {
        let a_minute = NonZeroU32::new(limits.requests_per_client).unwrap_or(NonZeroU32::MIN);
        Self {
            names: Names::default(),
            requests: RateLimiter::keyed(Quota::per_minute(a_minute)),
            in_flight: Arc::default(),
            most: limits.in_flight_per_client,
        }
    }

    /// One more request without a verified capability.
    pub(super) fn may_ask(&self, client: IpAddr) -> bool {
        if self.requests.len() >= MAX_CLIENTS {
            self.requests.retain_recent();
            if self.requests.len() >= MAX_CLIENTS {
                return false;
            }
        }
        self.requests.check_key(&self.names.client(client)).is_ok()
    }

    /// One more chunk whose capability could not be verified here.
    pub(super) fn may_send(&self, client: IpAddr) -> Option<InFlight> {
        let client = self.names.client(client);
        let mut map = self.in_flight.lock().unwrap_or_else(PoisonError::into_inner);
        let count = map.entry(client).or_default();
        if *count >= self.most {
            return None;
        }
        *count += 1;
        Some(InFlight { map: Arc::clone(&self.in_flight), client })
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let mut map = self.map.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = map.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                map.remove(&self.client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_its_rate_and_its_places() {
        let clients = Clients::new(&Limits { requests_per_client: 3, in_flight_per_client: 2, ..Limits::default() });
        let (a, b) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        assert_eq!((0..5).filter(|_| clients.may_ask(a)).count(), 3);
        assert!(clients.may_ask(b), "another address is not concerned");
        let held: Vec<_> = (0..2).map(|_| clients.may_send(a).unwrap()).collect();
        assert!(clients.may_send(a).is_none());
        drop(held);
        assert!(clients.may_send(a).is_some());
    }
}
