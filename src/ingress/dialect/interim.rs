//! Informational answers before the final one, where the transport can send them.

use http::request::Parts;
use http::{Request, Response};
use tokio::sync::mpsc;

/// Heads that wait to be sent at once.
const WAITING: usize = 4;

/// Where a request's informational answers go; it travels with the request. hyper has no way to send
/// them on HTTP/1.1 and 2, so there is none there.
#[derive(Clone)]
pub(in crate::ingress) struct Interim(mpsc::Sender<Response<()>>);

impl Interim {
    /// Goes along with a request that may be answered so; the transport's end.
    pub(in crate::ingress) fn along<B>(request: &mut Request<B>) -> Option<mpsc::Receiver<Response<()>>> {
        request.headers().get("upload-draft-interop-version")?;
        let (tx, rx) = mpsc::channel(WAITING);
        request.extensions_mut().insert(Self(tx));
        Some(rx)
    }

    /// The next head to send; never where none can come.
    pub(in crate::ingress) async fn next(heads: &mut Option<mpsc::Receiver<Response<()>>>) -> Response<()> {
        if let Some(heads) = heads
            && let Some(head) = heads.recv().await
        {
            return head;
        }
        std::future::pending().await
    }

    /// Sends one if this request's transport can, and has not been slow to.
    pub(super) fn send(parts: &Parts, head: Response<()>) {
        if let Some(Self(tx)) = parts.extensions.get() {
            let _ = tx.try_send(head);
        }
    }
}
