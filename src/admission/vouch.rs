//! Tokens the core vouched for: once it accepted a preflight or an authorisation, the very same
//! token is as good as verified until it expires, and costs no further calls.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use aws_lc_rs::digest::{Context, SHA256};

use crate::capability::{Capability, Trust};
use crate::clock::Clock;

/// Tokens remembered. About 64 bytes each.
const MAX_VOUCHED: usize = 16_384;

pub(super) struct Vouched {
    key: [u8; 32],
    until: Mutex<HashMap<[u8; 32], i64>>,
}

impl Vouched {
    pub(super) fn new(clock: &Clock) -> Self {
        let mut key = [0; 32];
        clock.fill_random(&mut key);
        Self { key, until: Mutex::default() }
    }

    /// The core accepted this token.
    pub(super) fn remember(&self, capability: &Capability, now: i64) {
        let mut until = self.until.lock().unwrap_or_else(PoisonError::into_inner);
        if until.len() >= MAX_VOUCHED {
            until.retain(|_, exp| *exp > now);
        }
        if until.len() < MAX_VOUCHED {
            until.insert(self.name(&capability.token), capability.grant.exp);
        }
    }

    /// The capability, verified if the core vouched for this very token.
    pub(super) fn apply(&self, mut capability: Capability, now: i64) -> Capability {
        if capability.trust == Trust::Claimed {
            let until = self.until.lock().unwrap_or_else(PoisonError::into_inner);
            if until.get(&self.name(&capability.token)).is_some_and(|exp| *exp > now) {
                capability.trust = Trust::Verified;
            }
        }
        capability
    }

    fn name(&self, token: &str) -> [u8; 32] {
        let mut hash = Context::new(&SHA256);
        hash.update(&self.key);
        hash.update(token.as_bytes());
        let mut name = [0; 32];
        name.copy_from_slice(hash.finish().as_ref());
        name
    }
}
