//! A queue in use by a task: nothing of its disk blocks the task's thread.

use std::sync::{Arc, Mutex, PoisonError};

use super::record::State;
use super::{NotKept, Store, disk};

/// A queue that a task uses: what waits for the disk does so on another thread.
#[derive(Clone)]
pub(crate) struct Shared(Arc<Mutex<Store>>);

impl Shared {
    pub(crate) fn new(store: Store) -> Self {
        Self(Arc::new(Mutex::new(store)))
    }

    /// Looks at what is remembered.
    pub(crate) fn look<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(self.0.lock().unwrap_or_else(PoisonError::into_inner).state())
    }

    /// Lets another process have the directory. Nothing is written from then on.
    pub(crate) fn let_go(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).disk = Box::new(disk::Gone);
    }

    /// Works on the queue.
    ///
    /// # Errors
    /// Those of the work; [`NotKept::Disk`] if the process is ending.
    pub(crate) async fn work<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Store) -> Result<T, NotKept> + Send + 'static,
    ) -> Result<T, NotKept> {
        let store = Arc::clone(&self.0);
        let work = move || {
            let mut store = store.lock().unwrap_or_else(PoisonError::into_inner);
            let result = work(&mut store);
            if result.is_err() {
                store.abandon();
            }
            result
        };
        tokio::task::spawn_blocking(work).await.unwrap_or(Err(NotKept::Disk))
    }
}
