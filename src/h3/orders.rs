//! What is asked of the answers of a connection: h3 keeps a request's stream to itself, so its priority,
//! and bytes that shall go out from where they lie, are left here and taken by the stream when it is written;
//! and the stream leaves here by what is known that its peer does not want it any more.

use std::collections::HashMap;
use std::future::pending;
use std::pin::Pin;
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
    stopped: Option<Stopped>,
}

type Stopped = Pin<Box<dyn Future<Output = Result<Option<quinn::VarInt>, quinn::StoppedError>> + Send>>;

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

    /// Ends when the peer says that it does not want this answer any more (STOP_SENDING). May be asked once.
    pub async fn stopped(&self, stream: StreamId) {
        let stopped = self.orders().get_mut(&stream).and_then(|order| order.stopped.take());
        if let Some(stopped) = stopped
            && let Ok(Some(_)) = stopped.await
        {
            return;
        }
        pending().await
    }

    pub(crate) fn watch(&self, stream: StreamId, stopped: Stopped) {
        self.orders().entry(stream).or_default().stopped = Some(stopped);
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
