//! Which capabilities the core took back before their time.

use std::collections::HashSet;
use std::sync::Arc;

use arc_swap::ArcSwap;
use serde::Deserialize;
use tokio::sync::watch;

use crate::proto::claims::Grant;

/// Most ids kept; a list that is longer is not taken over (and `Fetch` bounds its bytes).
const MAX_REVOKED: usize = 65_536;

/// The list as it was last fetched.
pub(super) struct Revocations {
    revoked: ArcSwap<HashSet<Box<str>>>,
    changes: watch::Sender<u64>,
}

impl Revocations {
    pub(super) fn new() -> Self {
        Self { revoked: ArcSwap::default(), changes: watch::Sender::new(0) }
    }

    /// Takes over `{"revoked": [jti]}`. Whether it could be read; else the last list stays.
    pub(super) fn adopt(&self, json: &[u8]) -> bool {
        #[derive(Deserialize)]
        struct List {
            revoked: Vec<Box<str>>,
        }
        match serde_json::from_slice::<List>(json) {
            Ok(list) if list.revoked.len() <= MAX_REVOKED => {
                self.replace(list.revoked.into_iter().collect());
                true
            }
            _ => false,
        }
    }

    /// The core has no such list.
    pub(super) fn clear(&self) {
        self.replace(HashSet::new());
    }

    fn replace(&self, revoked: HashSet<Box<str>>) {
        if **self.revoked.load() != revoked {
            self.revoked.store(Arc::new(revoked));
            self.changes.send_modify(|changes| *changes += 1);
        }
    }

    pub(super) fn holds(&self, grant: &Grant) -> bool {
        grant.jti.as_deref().is_some_and(|jti| self.revoked.load().contains(jti))
    }

    pub(super) fn len(&self) -> usize {
        self.revoked.load().len()
    }

    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}
