//! HTTP/1.1 requests to a relay or a core, and what HTTP/3 shares with them: a body that tells
//! how far it has been taken, and an answer read up to a bound.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Request, StatusCode};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::sync::oneshot;

use crate::connect::Endpoint;

/// Longest answer read, in bytes.
const MAX_ANSWER: usize = 256 * 1024;
/// Longest wait that somebody else may ask for, in seconds.
const MAX_RETRY_AFTER_S: u64 = 600;
/// Bytes handed to the transport at once.
pub(crate) const BODY_PIECE: usize = 16 * 1024;
/// Nothing moved for this long: the connection is taken for dead.
const STALL_LIMIT: Duration = Duration::from_secs(20);

/// The other end can't be reached, broke off, or answered without end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Broken;

/// An answer with its whole body.
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

/// How far a request's body has been taken by the transport.
#[derive(Default)]
pub(crate) struct Progress {
    taken: AtomicU64,
}

impl Progress {
    pub(crate) fn add(&self, bytes: usize) {
        self.taken.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }
}

/// A body of known length in pieces; tells when its last byte was taken.
pub(crate) struct Upload {
    left: Bytes,
    progress: Arc<Progress>,
    sent: Option<oneshot::Sender<()>>,
}

impl Upload {
    pub(crate) fn new(body: Bytes, progress: Arc<Progress>, sent: Option<oneshot::Sender<()>>) -> Self {
        Self { left: body, progress, sent }
    }

    /// The next piece; none after the last.
    pub(crate) fn next_piece(&mut self) -> Option<Bytes> {
        if self.left.is_empty() {
            self.finished();
            return None;
        }
        let piece = self.left.split_to(self.left.len().min(BODY_PIECE));
        self.progress.add(piece.len());
        if self.left.is_empty() {
            self.finished();
        }
        Some(piece)
    }

    fn finished(&mut self) {
        if let Some(sent) = self.sent.take() {
            // Nobody waits for it any more: then nobody needs to know.
            let _ = sent.send(());
        }
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Poll::Ready(self.get_mut().next_piece().map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.left.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left.len() as u64)
    }
}

/// HTTP/1.1 with kept connections.
#[derive(Clone)]
pub(crate) struct Client {
    inner: hyper_util::client::legacy::Client<HttpsConnector<HttpConnector>, Upload>,
    endpoint: Endpoint,
}

impl Client {
    pub(crate) fn new(endpoint: &Endpoint) -> Self {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        // A long answer may be silent; a dead peer is found by the kernel.
        tcp.set_keepalive(Some(Duration::from_secs(10)));
        tcp.set_keepalive_interval(Some(Duration::from_secs(4)));
        tcp.set_keepalive_retries(Some(2));
        tcp.set_connect_timeout(Some(Duration::from_secs(10)));
        let connector = hyper_rustls::HttpsConnectorBuilder::new()
            .with_tls_config(endpoint.trust().tls(&[]))
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp);
        let inner = hyper_util::client::legacy::Client::builder(TokioExecutor::new())
            .pool_idle_timeout(Duration::from_secs(20))
            .pool_max_idle_per_host(8)
            .build(connector);
        Self { inner, endpoint: endpoint.clone() }
    }

    /// One request and its whole answer, within a fixed time.
    pub(crate) async fn send(&self, request: Request<()>, body: Bytes) -> Result<Reply, Broken> {
        let progress = Arc::new(Progress::default());
        let upload = Upload::new(body, Arc::clone(&progress), None);
        unless_stalled(self.exchange(request, upload), &progress, Duration::ZERO).await
    }

    /// One request whose body tells how it goes. No limit of time: see [`unless_stalled`].
    pub(crate) async fn exchange(&self, request: Request<()>, body: Upload) -> Result<Reply, Broken> {
        let (head, incoming) = self.open(request, body).await?;
        let mut incoming = incoming;
        let mut out = BytesMut::new();
        while let Some(frame) = incoming.frame().await {
            if let Ok(data) = frame.map_err(|_| Broken)?.into_data() {
                gather(&mut out, data)?;
            }
        }
        Ok(Reply { status: head.status, headers: head.headers, body: out.freeze() })
    }

    /// One request; the answer's body is read as it comes.
    pub(crate) async fn open(
        &self,
        request: Request<()>,
        body: Upload,
    ) -> Result<(http::response::Parts, Incoming), Broken> {
        let (mut parts, ()) = request.into_parts();
        let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
        parts.uri = self.endpoint.url(path).parse().map_err(|_| Broken)?;
        let answer = self.inner.request(Request::from_parts(parts, body)).await.map_err(|_| Broken)?;
        Ok(answer.into_parts())
    }
}

/// Adds to an answer, up to the bound.
pub(crate) fn gather(out: &mut BytesMut, mut data: impl bytes::Buf) -> Result<(), Broken> {
    if out.len() + data.remaining() > MAX_ANSWER {
        return Err(Broken);
    }
    while data.has_remaining() {
        let chunk = data.chunk();
        out.extend_from_slice(chunk);
        let taken = chunk.len();
        data.advance(taken);
    }
    Ok(())
}

/// Gives up when neither the body moves nor an answer comes for [`STALL_LIMIT`] and `wait`, the
/// time the other end was asked to wait before it answers.
pub(crate) async fn unless_stalled<T>(
    work: impl Future<Output = Result<T, Broken>>,
    progress: &Progress,
    wait: Duration,
) -> Result<T, Broken> {
    let mut work = std::pin::pin!(work);
    let mut seen = progress.taken();
    loop {
        if let Ok(done) = tokio::time::timeout(STALL_LIMIT + wait, &mut work).await {
            return done;
        }
        let now = progress.taken();
        if now == seen {
            return Err(Broken);
        }
        seen = now;
    }
}

/// `Retry-After` in seconds; a date is not read.
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<u64> {
    let text = headers.get(http::header::RETRY_AFTER)?.to_str().ok()?.trim();
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    // What does not fit a number is longer than any bound.
    digits.then(|| bounded(text.parse().unwrap_or(u64::MAX)))
}

/// How long somebody asks to wait, in seconds, as far as it is followed.
pub(crate) const fn bounded(seconds: u64) -> u64 {
    if seconds > MAX_RETRY_AFTER_S { MAX_RETRY_AFTER_S } else { seconds }
}

/// The error of an answer; made up from the status where the body is none of ours, as a proxy's
/// is not.
pub(crate) fn error_of(status: StatusCode, body: &[u8]) -> waystation_proto::message::Error {
    use waystation_proto::Retry;
    if let Ok(waystation_proto::message::Answer { error: Some(error), .. }) = serde_json::from_slice(body) {
        return error;
    }
    let retry = match status.as_u16() {
        401 => Retry::Renew,
        408 | 425 | 429 | 500..=599 => Retry::Later,
        _ => Retry::Never,
    };
    waystation_proto::message::Error {
        code: format!("http_{}", status.as_u16()),
        message: String::new(),
        retry,
        core_code: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_asks_for_more_than_ten_minutes() {
        for (text, seconds) in [
            ("7", Some(7)),
            ("601", Some(600)),
            ("18446744073709551615", Some(600)),
            ("99999999999999999999999", Some(600)),
            ("-1", None),
            ("Wed, 21 Oct 2026 07:28:00 GMT", None),
        ] {
            let headers = HeaderMap::from_iter([(http::header::RETRY_AFTER, text.parse().unwrap())]);
            assert_eq!(retry_after(&headers), seconds, "{text}");
        }
    }
}
