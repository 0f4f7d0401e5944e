//! Tokens that verified a moment ago, so that each request does not pay for a signature again.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use aws_lc_rs::hmac;

use crate::clock::Clock;
use crate::proto::claims::Grant;

/// Most tokens remembered; with a grant of four lanes about 1 KiB each. The oldest goes first.
const MAX_TOKENS: usize = 4096;

/// A token's name in the cache: HMAC-SHA256 under a key of this process, so that neither the
/// token nor anything that could be compared elsewhere is held.
pub(super) type Name = [u8; 32];

/// What verified.
pub(super) struct Cache {
    key: hmac::Key,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    grants: HashMap<Name, (u64, Arc<Grant>)>,
    order: VecDeque<Name>,
}

impl Cache {
    pub(super) fn new(clock: &Clock) -> Self {
        let mut key = zeroize::Zeroizing::new([0; 32]);
        clock.fill_random(&mut *key);
        Self { key: hmac::Key::new(hmac::HMAC_SHA256, &*key), known: Mutex::default() }
    }

    pub(super) fn name(&self, token: &str) -> Name {
        let mut name = [0; 32];
        name.copy_from_slice(hmac::sign(&self.key, token.as_bytes()).as_ref());
        name
    }

    /// The grant that verified under this `generation` of keys and has not expired at `now`.
    pub(super) fn get(&self, name: &Name, generation: u64, now: i64) -> Option<Arc<Grant>> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let (under, grant) = known.grants.get(name)?;
        (*under == generation && !grant.expired(now)).then(|| Arc::clone(grant))
    }

    pub(super) fn put(&self, name: Name, generation: u64, grant: Arc<Grant>) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.grants.insert(name, (generation, grant)).is_none() {
            known.order.push_back(name);
        }
        while known.grants.len() > MAX_TOKENS
            && let Some(oldest) = known.order.pop_front()
        {
            known.grants.remove(&oldest);
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.known.lock().unwrap().grants.len()
    }
}
