//! In which order the answers of a connection go out: h3 keeps a request's stream to itself, so its
//! priority is left here and taken by the stream when it is written.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use h3::quic::StreamId;

/// Priorities of answers that are not begun yet. Clones share them.
#[derive(Clone, Default)]
pub struct Orders(Arc<Mutex<HashMap<StreamId, i32>>>);

impl Orders {
    /// The answer on this stream has this priority: the higher goes first, in what is new as in what
    /// was lost. To be said before its first byte.
    pub fn set(&self, stream: StreamId, priority: i32) {
        self.orders().insert(stream, priority);
    }

    pub(crate) fn take(&self, stream: StreamId) -> Option<i32> {
        self.orders().remove(&stream)
    }

    fn orders(&self) -> MutexGuard<'_, HashMap<StreamId, i32>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
