//! The HTTP client behind every call: one pool of connections, bounded answers, no redirects, and
//! a clock that runs only while nothing moves.

use std::future::Future;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::RETRY_AFTER;
use http::{Request, Response, Uri};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use hyper_rustls::{ConfigBuilderExt as _, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use tokio::net::TcpStream;
use tower_service::Service;

use super::body::Outgoing;
use crate::clock::Clock;

/// To a TCP connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Sent bytes that nobody acknowledges for so long mean a dead path.
const UNACKNOWLEDGED: Duration = Duration::from_secs(60);
/// Shorter than the core's idle timeout of 120 s, so that reuse rarely meets a closed connection.
const POOL_IDLE: Duration = Duration::from_secs(60);
/// Idle connections kept to one host.
const POOL_MAX_IDLE: usize = 32;
/// Bytes of a body that may wait in this process and, apart from that, unsent in the kernel. What
/// waits there looks sent; with more of it, a thin link would eat up the time for the answer.
const UNSENT: usize = 128 * 1024;
/// Sent with every request. No version: it is nobody's business.
const USER_AGENT: &str = "waystation";

/// Why a client can't be built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// `core.ca_file` can't be read, or holds no certificate.
    #[error("core.ca_file can't be read, or holds no PEM certificate")]
    CaFile,
    /// `https` is asked for and nothing is trusted.
    #[error("this machine has no trust anchors; set core.ca_file")]
    NoTrustAnchors,
    /// A URL that is neither http nor https, or carries a user name.
    #[error("a URL of the core is neither http nor https, or carries a user name")]
    Url,
    /// The TLS library refuses its own defaults.
    #[error("TLS can't be set up")]
    Tls,
}

/// Connections to the core and to where its keys are. Cheap to clone; clones share the pool.
#[derive(Clone)]
pub struct Client {
    inner: legacy::Client<HttpsConnector<Tuned>, Outgoing>,
    trusts: bool,
}

/// An answer, bounded.
pub(super) struct Reply {
    pub(super) status: u16,
    /// `Retry-After`, if there was exactly one.
    pub(super) retry_after: Option<String>,
    /// `None`: too long, or broken off.
    pub(super) body: Option<Bytes>,
}

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure {
    /// No connection came about.
    Connect,
    /// It broke, or nothing moved for too long.
    Broken,
}

impl Client {
    /// A client that trusts `ca_file` (PEM), or the machine's anchors if there is none.
    ///
    /// # Errors
    /// [`BuildError`].
    pub fn new(ca_file: Option<&Path>) -> Result<Self, BuildError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|_| BuildError::Tls)?;
        let (tls, trusts) = match ca_file {
            Some(path) => (builder.with_root_certificates(anchors(path)?), true),
            None => match builder.clone().with_native_roots() {
                Ok(builder) => (builder, true),
                // A core on plain HTTP needs none; https is refused in `base`.
                Err(_) => (builder.with_root_certificates(RootCertStore::empty()), false),
            },
        };
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls.with_no_client_auth())
            .https_or_http()
            .enable_all_versions()
            .wrap_connector(Tuned::new());
        let inner = legacy::Client::builder(TokioExecutor::new())
            .pool_idle_timeout(POOL_IDLE)
            .pool_max_idle_per_host(POOL_MAX_IDLE)
            .pool_timer(TokioTimer::new())
            .timer(TokioTimer::new())
            .http1_max_buf_size(UNSENT)
            .http2_max_send_buf_size(UNSENT)
            .http2_keep_alive_interval(Duration::from_secs(20))
            .http2_keep_alive_timeout(Duration::from_secs(20))
            .build(connector);
        Ok(Self { inner, trusts })
    }

    /// Checks a URL that this client is to call.
    ///
    /// # Errors
    /// [`BuildError::Url`], [`BuildError::NoTrustAnchors`].
    pub(super) fn uri(&self, text: &str) -> Result<Uri, BuildError> {
        let uri: Uri = text.parse().map_err(|_| BuildError::Url)?;
        let plain = uri.authority().is_some_and(|authority| !authority.as_str().contains('@'));
        match uri.scheme_str() {
            Some("http") if plain => Ok(uri),
            Some("https") if plain && self.trusts => Ok(uri),
            Some("https") if plain => Err(BuildError::NoTrustAnchors),
            _ => Err(BuildError::Url),
        }
    }

    /// Sends a request and reads its answer. Gives up once `quiet` has passed since the last byte
    /// of the request was taken by the connection: a slow body is never cut, a stuck one is, and
    /// the answer has `quiet` from the body's end.
    pub(super) async fn exchange(
        &self,
        mut request: Request<Outgoing>,
        clock: &Clock,
        quiet: Duration,
        max_answer: usize,
    ) -> Result<Reply, Failure> {
        request.headers_mut().insert(http::header::USER_AGENT, http::HeaderValue::from_static(USER_AGENT));
        let progress = request.body().progress();
        progress.moved(clock.now_ms());
        let reply = tokio::select! {
            reply = self.ask(request, max_answer) => reply,
            () = progress.stalls(clock, quiet) => Err(Failure::Broken),
        };
        // An answer that came before the body's end makes the rest of the body pointless.
        progress.abandon();
        reply
    }

    async fn ask(&self, request: Request<Outgoing>, max_answer: usize) -> Result<Reply, Failure> {
        let classify = |error: legacy::Error| if error.is_connect() { Failure::Connect } else { Failure::Broken };
        let answer = self.inner.request(request).await.map_err(classify)?;
        Ok(reply(answer, max_answer).await)
    }
}

async fn reply(answer: Response<Incoming>, max_answer: usize) -> Reply {
    let status = answer.status().as_u16();
    let mut values = answer.headers().get_all(RETRY_AFTER).iter();
    let retry_after = match (values.next(), values.next()) {
        (Some(one), None) => one.to_str().ok().map(Into::into),
        _ => None,
    };
    let body = Limited::new(answer.into_body(), max_answer).collect().await.ok();
    Reply { status, retry_after, body: body.map(http_body_util::Collected::to_bytes) }
}

fn anchors(path: &Path) -> Result<RootCertStore, BuildError> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path).map_err(|_| BuildError::CaFile)? {
        let certificate = certificate.map_err(|_| BuildError::CaFile)?;
        roots.add(certificate).map_err(|_| BuildError::CaFile)?;
    }
    if roots.is_empty() { Err(BuildError::CaFile) } else { Ok(roots) }
}

/// TCP connections that hold little unsent.
#[derive(Clone)]
struct Tuned(HttpConnector);

impl Tuned {
    fn new() -> Self {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
        tcp.set_keepalive(Some(Duration::from_secs(30)));
        tcp.set_tcp_user_timeout(Some(UNACKNOWLEDGED));
        Self(tcp)
    }
}

impl Service<Uri> for Tuned {
    type Response = TokioIo<TcpStream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_ready(cx).map_err(io::Error::other)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connecting = self.0.call(uri);
        Box::pin(async move {
            let stream = connecting.await.map_err(io::Error::other)?;
            // Without it the connection still works, only its timing is coarser.
            let _ = socket2::SockRef::from(stream.inner()).set_tcp_notsent_lowat(UNSENT as u32);
            Ok(stream)
        })
    }
}
