//! Informational answers before the final one, where the transport can send them.

use http::Response;
use http::request::Parts;
use tokio::sync::mpsc;

/// Heads that wait to be sent at once.
const WAITING: usize = 4;

/// Where a request's informational answers go; it travels with the request. hyper has no way to send
/// them on HTTP/1.1 and 2, so there is none there.
#[derive(Clone)]
pub(in crate::ingress) struct Interim(mpsc::Sender<Response<()>>);

impl Interim {
    /// The handler's end and the transport's.
    pub(in crate::ingress) fn channel() -> (Self, mpsc::Receiver<Response<()>>) {
        let (tx, rx) = mpsc::channel(WAITING);
        (Self(tx), rx)
    }

    /// Sends one if this request's transport can, and has not been slow to.
    pub(super) fn send(parts: &Parts, head: Response<()>) {
        if let Some(Self(tx)) = parts.extensions.get() {
            let _ = tx.try_send(head);
        }
    }
}
