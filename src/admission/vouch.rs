//! Tokens the core vouched for: once it accepted a preflight or an authorisation, the very same
//! token is as good as verified until it expires, and costs no further calls. One that it refuses
//! later is vouched for no longer, by nobody: the core is asked before it is good for anything.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use aws_lc_rs::digest::{Context, SHA256};

use crate::capability::{Capability, Trust};
use crate::clock::Clock;
use crate::proto::reauthorize::Name;

/// Tokens remembered. About 64 bytes each.
const MAX_VOUCHED: usize = 16_384;

pub(super) struct Vouched {
    key: [u8; 32],
    known: Mutex<HashMap<Name, Word>>,
    clock: Clock,
}

/// What the core said of a token.
struct Word {
    /// When the token expires, in Unix seconds.
    exp: i64,
    /// When it last said yes, in the clock's milliseconds; `None`: it said no.
    yes: Option<u64>,
}

impl Vouched {
    pub(super) fn new(clock: &Clock) -> Self {
        let mut key = [0; 32];
        clock.fill_random(&mut key);
        Self { key, known: Mutex::default(), clock: clock.clone() }
    }

    /// The core accepted this token.
    pub(super) fn remember(&self, capability: &Capability, now: i64) {
        self.put(capability, Some(self.clock.now_ms()), now);
    }

    /// The core refused this token.
    pub(super) fn refuse(&self, capability: &Capability, now: i64) {
        self.put(capability, None, now);
    }

    /// The capability, verified if the core vouched for this very token, and claimed if it refused it.
    pub(super) fn apply(&self, mut capability: Capability, now: i64) -> Capability {
        let known = self.known();
        if let Some(word) = known.get(&self.name(&capability.token)).filter(|word| word.exp > now) {
            capability.trust = if word.yes.is_some() { Trust::Verified } else { Trust::Claimed };
        }
        capability
    }

    /// When the core last said yes to this token, as far as is known.
    pub(super) fn yes(&self, name: &Name) -> Option<u64> {
        self.known().get(name)?.yes
    }

    /// What a token is known by: a keyed hash.
    pub(super) fn name(&self, token: &str) -> Name {
        let mut hash = Context::new(&SHA256);
        hash.update(&self.key);
        hash.update(token.as_bytes());
        let mut name = [0; 32];
        name.copy_from_slice(hash.finish().as_ref());
        name
    }

    fn put(&self, capability: &Capability, yes: Option<u64>, now: i64) {
        let name = self.name(&capability.token);
        let mut known = self.known();
        if known.len() >= MAX_VOUCHED {
            known.retain(|_, word| word.exp > now);
        }
        if known.len() < MAX_VOUCHED || known.contains_key(&name) {
            known.insert(name, Word { exp: capability.grant.exp, yes });
        }
    }

    fn known(&self) -> MutexGuard<'_, HashMap<Name, Word>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
