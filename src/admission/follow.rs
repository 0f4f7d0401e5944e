//! Following one chunk.

use tokio::sync::watch;

use super::Standing;
use crate::proto::ChunkRef;
use crate::staging::Staging;

/// Follows one chunk's standing.
pub struct Follow {
    chunk: ChunkRef,
    staging: Staging,
    changes: watch::Receiver<Standing>,
}

impl Follow {
    pub(super) const fn new(chunk: ChunkRef, staging: Staging, changes: watch::Receiver<Standing>) -> Self {
        Self { chunk, staging, changes }
    }

    /// As it is now: also what is not told as a change, as a core that went away is.
    #[must_use]
    pub fn now(&self) -> Standing {
        self.staging.standing(self.chunk).unwrap_or_else(|| self.changes.borrow().clone())
    }

    /// Waits for the next change; pending for ever after the chunk ended.
    pub async fn changed(&mut self) -> Standing {
        if self.changes.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
        self.changes.mark_unchanged();
        self.now()
    }
}
