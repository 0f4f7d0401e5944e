//! Names of sessions and addresses in limiters: keyed hashes, so that no map holds who came
//! (promise 7). The key is this process's own; nothing can be compared elsewhere or later.

use std::hash::{BuildHasher as _, Hash, RandomState};
use std::net::IpAddr;

/// A name under the process's key. Two that collide share a limit, once in 2^64.
pub(super) type Name = u64;

/// Who makes names. Each has a key of its own.
#[derive(Default)]
pub(super) struct Names(RandomState);

impl Names {
    /// Of a client's address.
    pub(super) fn client(&self, client: IpAddr) -> Name {
        self.of(("client", client))
    }

    /// Of anything else; the caller says what it is in the value.
    pub(super) fn of(&self, value: impl Hash) -> Name {
        self.0.hash_one(value)
    }
}
