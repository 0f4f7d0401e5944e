//! What is asked of the answers of a connection: h3 keeps a request's stream to itself, so its priority,
//! and bytes that shall go out from where they lie, are left here and taken by the stream when it is written.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use h3::quic::StreamId;

/// What is asked of answers. Clones share it.
#[derive(Clone, Default)]
pub struct Orders(Arc<Mutex<HashMap<StreamId, Order>>>);

#[derive(Default)]
struct Order {
    priority: Option<i32>,
    bytes: Option<Bytes>,
}

impl Orders {
    /// The answer on this stream has this priority: the higher goes first, in what is new as in what
    /// was lost. To be said before its first byte.
    pub fn set(&self, stream: StreamId, priority: i32) {
        self.orders().entry(stream).or_default().priority = Some(priority);
    }

    /// What this stream is handed next is a clone of `bytes`: it need not be copied. To be said just before,
    /// to h3's own stream.
    pub fn share(&self, stream: StreamId, bytes: Bytes) {
        self.orders().entry(stream).or_default().bytes = Some(bytes);
    }

    pub(crate) fn priority(&self, stream: StreamId) -> Option<i32> {
        self.orders().get_mut(&stream)?.priority.take()
    }

    pub(crate) fn shared(&self, stream: StreamId) -> Option<Bytes> {
        self.orders().get_mut(&stream)?.bytes.take()
    }

    /// The stream is gone.
    pub(crate) fn forget(&self, stream: StreamId) {
        self.orders().remove(&stream);
    }

    fn orders(&self) -> MutexGuard<'_, HashMap<StreamId, Order>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
