//! A partial's file and what is not written yet.

use std::sync::{Arc, PoisonError};

use aws_lc_rs::digest::{Context, SHA256};
use bytes::Bytes;
use tokio::sync::{Mutex, OwnedMutexGuard};

use super::fresh::Keeping;
use super::gathered::Gathered;
use super::part::digest_of;
use super::{Meta, Part};
use crate::proto::Digest;

/// Where the attempts at one chunk meet. It outlives the attempts that fill it. Its lock
/// goes along with a write: who comes after it, also after an attempt that was dropped in the
/// middle of one, finds the write done.
#[derive(Default)]
pub(super) struct Slot {
    state: Arc<Mutex<State>>,
    /// What the newest attempt said of the chunk.
    said: std::sync::Mutex<Option<Arc<Meta>>>,
}

pub(super) struct State {
    pub(super) part: Option<Part>,
    pub(super) gathered: Gathered,
    /// Of what is in the file and gathered. Bytes are hashed as they come, while they are at hand.
    pub(super) hash: Context,
    /// The same bytes for forwarding, while they are worth keeping.
    pub(super) kept: Option<Keeping>,
    /// Bytes of the chunk that come before `gathered`: those lie in the file, whether it is open
    /// here or not (a write that fails takes the open file with it).
    pub(super) written: u64,
}

impl Default for State {
    fn default() -> Self {
        Self { part: None, gathered: Gathered::default(), hash: Context::new(&SHA256), kept: None, written: 0 }
    }
}

impl State {
    pub(super) fn gather(&mut self, bytes: Bytes) {
        self.hash.update(&bytes);
        self.kept = self.kept.take().and_then(|mut kept| kept.push(&bytes).then_some(kept));
        self.gathered.push(bytes);
    }

    pub(super) fn digest(&self) -> Digest {
        digest_of(&self.hash)
    }

    pub(super) fn held(&self) -> u64 {
        self.written + self.gathered.len() as u64
    }
}

impl Slot {
    pub(super) async fn clear(&self) {
        *self.state.lock().await = State::default();
    }

    pub(super) async fn lock(&self) -> OwnedMutexGuard<State> {
        Arc::clone(&self.state).lock_owned().await
    }

    /// The newest attempt says this of the chunk.
    pub(super) fn say(&self, meta: Arc<Meta>) {
        *self.said.lock().unwrap_or_else(PoisonError::into_inner) = Some(meta);
    }

    pub(super) fn said(&self) -> Option<Arc<Meta>> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
