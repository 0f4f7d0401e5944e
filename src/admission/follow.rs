//! Following one chunk.

use tokio::sync::watch;

use super::Standing;

/// Follows one chunk's standing.
pub struct Follow {
    changes: watch::Receiver<Standing>,
}

impl Follow {
    pub(super) const fn new(changes: watch::Receiver<Standing>) -> Self {
        Self { changes }
    }

    /// As it is now.
    #[must_use]
    pub fn now(&self) -> Standing {
        self.changes.borrow().clone()
    }

    /// Waits for the next change; pending for ever after the chunk ended.
    pub async fn changed(&mut self) -> Standing {
        if self.changes.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
        self.changes.borrow_and_update().clone()
    }
}
