//! One of the connections of a bundle, and what it was given.

use std::collections::HashMap;

use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use crate::capture::link::ToLink;

/// One of the connections.
pub(super) struct Strand {
    pub(super) jobs: mpsc::Sender<ToLink>,
    pub(super) given: HashMap<u64, Given>,
    /// Since when nothing is known to have come, in milliseconds; none: it is heard.
    pub(super) silent_ms: Option<u64>,
    _task: AbortOnDropHandle<()>,
}

/// A chunk that a connection was given.
pub(super) struct Given {
    pub(super) attempt: u64,
    /// As [`crate::capture::queue::Rank::class`].
    pub(super) class: usize,
    /// It has bytes to bring.
    pub(super) moves: bool,
    /// All its bytes went out on this connection.
    pub(super) sent: bool,
}

impl Strand {
    pub(super) fn new(jobs: mpsc::Sender<ToLink>, task: AbortOnDropHandle<()>) -> Self {
        Self { jobs, given: HashMap::new(), silent_ms: None, _task: task }
    }

    pub(super) const fn is_silent(&self) -> bool {
        self.silent_ms.is_some()
    }

    /// Whether it brings a chunk, of this class if one is named.
    pub(super) fn brings(&self, class: Option<usize>) -> bool {
        self.given.values().any(|given| given.moves && class.is_none_or(|class| class == given.class))
    }

    /// Chunks of this class and higher ones that it brings.
    pub(super) fn moving(&self, class: usize) -> usize {
        self.given.values().filter(|given| given.moves && given.class <= class).count()
    }

    /// What it was given, if it still is this attempt.
    pub(super) fn given(&mut self, id: u64, attempt: u64) -> Option<&mut Given> {
        self.given.get_mut(&id).filter(|given| given.attempt == attempt)
    }
}
