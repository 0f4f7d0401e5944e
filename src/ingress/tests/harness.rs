//! A relay's public side on port 0, and clients of every version of HTTP.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls_pki_types::pem::PemObject as _;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;

use crate::admission::{Admission, Parts};
use crate::capability::Verifier;
use crate::clock::Clock;
use crate::config::{Config, Limits, Listen, Tls};
use crate::core::Fetch;
use crate::fanout::Hub;
use crate::ingress::conn::{Conn, Ctx, Listener};
use crate::ingress::ticket::Ticket;
use crate::ingress::{Bound, Drained, Ingress, Ready, Service, Shared};
use crate::staging::{SealKey, Staging, StdDisk};
use crate::telemetry::Metrics;
use crate::telemetry::names::{Route, Transport};
use waystation_h3::Connection;

/// No test waits longer for anything.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

pub(super) struct Relay {
    pub(super) public: SocketAddr,
    pub(super) plain: SocketAddr,
    pub(super) metrics: Metrics,
    pub(super) shutdown: CancellationToken,
    pub(super) served: JoinHandle<Drained>,
    pub(super) service: Arc<Service>,
    client_tls: rustls::ClientConfig,
    _dir: tempfile::TempDir,
}

pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Answer {
    pub(super) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    pub(super) fn code(&self) -> String {
        self.json()["error"]["code"].as_str().unwrap_or_default().into()
    }
}

/// Headers of a case.
pub(super) type Headers = &'static [(&'static str, &'static str)];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Via {
    /// HTTP/1.1 on the plain listener.
    Plain,
    H1,
    H2,
    H3,
}

pub(super) const ALL: [Via; 4] = [Via::Plain, Via::H1, Via::H2, Via::H3];

pub(super) fn limits() -> Limits {
    Limits { header_timeout: Duration::from_secs(10), idle_timeout: Duration::from_secs(10), ..Limits::default() }
}

/// An admission with a staging directory of its own and no core: what reaches it is refused or
/// unverifiable. The way through it is tested end to end.
fn admission(clock: &Clock, metrics: &Metrics) -> Admission {
    let dir = tempfile::tempdir().unwrap().keep();
    let text = format!(
        "[listen]\nplain = \"127.0.0.1:0\"\n[staging]\ndirectory = {:?}\nseal_key_file = {:?}\n",
        dir.join("staging"),
        dir.join("key")
    );
    let config = Config::parse(&text, []).unwrap();
    let disk = Arc::new(StdDisk::open(&config.staging.directory).unwrap());
    let key = SealKey::new([7; 32]);
    let (staging, _) =
        Staging::open(disk, &key, &config.staging, &config.limits, clock.clone(), metrics.clone()).unwrap();
    let fetch = Fetch::nothing(clock.clone());
    let verifier = Verifier::new(&config.capability, fetch, clock.clone(), metrics.clone()).unwrap();
    let hub = Hub::new(&config.fanout, &config.limits, "node-1", clock.clone(), metrics.clone());
    Admission::new(
        Parts { verifier, core: None, staging, hub, clock: clock.clone(), metrics: metrics.clone() },
        &config,
    )
}

fn shared(clock: Clock, metrics: Metrics) -> Shared {
    Shared {
        admission: admission(&clock, &metrics),
        node: "node-1".into(),
        clock,
        metrics,
        ready: Arc::new(|| Ready {
            uploads: "ready",
            core: "configured",
            temp_staging: "ok",
            relay_identity_configured: true,
            region_configured: false,
            ready: true,
        }),
        core_configured: true,
        max_chunk: 1 << 20,
        reset_key: [7; 32],
    }
}

/// A request's surroundings without a socket.
pub(in crate::ingress) fn context(clock: Clock, transport: Transport) -> Ctx {
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let listen =
        Listen { public: None, plain: None, trusted_proxies: Vec::new(), ops: any, allowed_origins: Vec::new() };
    let bound = Ingress::bind(&listen, &Tls::None, &limits(), shared(clock, Metrics::new())).unwrap();
    let place = bound.service.gate.enter(None).unwrap();
    let conn = Conn::open(bound.service, Listener::Public, transport, place);
    let ticket = Ticket::open(&conn, Route::Watch, transport);
    Ctx { conn, transport, client: any.ip(), ticket }
}

pub(super) async fn start(limits: Limits) -> Relay {
    start_with(limits, true, 1 << 20).await
}

pub(super) async fn start_with(limits: Limits, core_configured: bool, max_chunk: u64) -> Relay {
    let dir = tempfile::tempdir().unwrap();
    let pin = dir.path().join("pin.pem");
    let metrics = Metrics::new();
    let shared = Shared { core_configured, max_chunk, ..shared(Clock::system(), metrics.clone()) };
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let listen = Listen {
        public: Some(any),
        plain: Some(any),
        trusted_proxies: Vec::new(),
        ops: any,
        allowed_origins: vec!["https://page.example".into()],
    };
    let tls = Tls::SelfSigned { certificate_out: Some(pin.clone()) };
    let bound: Bound = Ingress::bind(&listen, &tls, &limits, shared).unwrap();
    let (public, plain) = (bound.public.unwrap(), bound.plain.unwrap());
    let (shutdown, service) = (CancellationToken::new(), Arc::clone(&bound.service));
    let served = tokio::spawn(bound.serve(shutdown.clone(), Duration::from_secs(2)));
    Relay { public, plain, metrics, shutdown, served, service, client_tls: client_tls(&pin), _dir: dir }
}

fn client_tls(pin: &Path) -> rustls::ClientConfig {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(rustls_pki_types::CertificateDer::from_pem_file(pin).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth()
}

pub(super) fn request(method: Method, path: &str, headers: &[(&str, &str)]) -> Request<()> {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap()
}

pub(super) fn get(path: &str) -> Request<()> {
    request(Method::GET, path, &[])
}

impl Relay {
    pub(super) async fn tls(&self, alpn: &[u8]) -> TlsStream<TcpStream> {
        let mut config = self.client_tls.clone();
        config.alpn_protocols = vec![alpn.to_vec()];
        let tcp = TcpStream::connect(self.public).await.unwrap();
        let name = "localhost".try_into().unwrap();
        tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, tcp).await.unwrap()
    }

    pub(super) async fn quic(&self) -> quinn::Connection {
        self.try_quic(b"h3").await.unwrap()
    }

    pub(super) async fn try_quic(&self, alpn: &[u8]) -> Result<quinn::Connection, quinn::ConnectionError> {
        let mut config = self.client_tls.clone();
        config.alpn_protocols = vec![alpn.to_vec()];
        let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(config).unwrap();
        let mut endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
        endpoint.set_default_client_config(quinn::ClientConfig::new(Arc::new(crypto)));
        endpoint.connect(self.public, "localhost").unwrap().await
    }

    /// Asks and reads the whole answer.
    pub(super) async fn ask(&self, via: Via, request: Request<()>, body: impl Into<Bytes>) -> Answer {
        let asking = self.ask_via(via, request, body.into());
        tokio::time::timeout(PATIENCE, asking).await.unwrap_or_else(|_| panic!("no answer via {via:?}"))
    }

    async fn ask_via(&self, via: Via, mut request: Request<()>, body: Bytes) -> Answer {
        let path = request.uri().path_and_query().unwrap().clone();
        match via {
            Via::Plain | Via::H1 => {
                request.headers_mut().insert("host", "localhost".parse().unwrap());
                let request = request.map(|()| Full::new(body));
                if via == Via::Plain {
                    let tcp = TcpStream::connect(self.plain).await.unwrap();
                    ask_h1(TokioIo::new(tcp), request).await
                } else {
                    ask_h1(TokioIo::new(self.tls(b"http/1.1").await), request).await
                }
            }
            Via::H2 => {
                *request.uri_mut() = format!("https://localhost{path}").parse().unwrap();
                let io = TokioIo::new(self.tls(b"h2").await);
                let (mut send, conn) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
                let conn = tokio::spawn(conn);
                let answer = collect(send.send_request(request.map(|()| Full::new(body))).await.unwrap()).await;
                drop(send);
                conn.abort();
                answer
            }
            Via::H3 => {
                *request.uri_mut() = format!("https://localhost{path}").parse().unwrap();
                self.ask_h3(request, body).await
            }
        }
    }

    async fn ask_h3(&self, request: Request<()>, body: Bytes) -> Answer {
        let quic = self.quic().await;
        let (mut driver, mut send) = h3::client::new(Connection::new(quic.clone())).await.unwrap();
        let driver = tokio::spawn(async move { std::future::poll_fn(|cx| driver.poll_close(cx)).await });
        let (mut up, mut down) = send.send_request(request).await.unwrap().split();
        let upload = tokio::spawn(async move {
            for piece in body.chunks(32 * 1024) {
                if up.send_data(Bytes::copy_from_slice(piece)).await.is_err() {
                    return;
                }
            }
            let _ = up.finish().await;
        });
        let head = down.recv_response().await.unwrap();
        let mut read = Vec::new();
        while let Some(mut data) = down.recv_data().await.unwrap() {
            read.extend_from_slice(&data.copy_to_bytes(data.remaining()));
        }
        upload.await.unwrap();
        driver.abort();
        quic.close(0x100u32.into(), b"");
        Answer { status: head.status(), headers: head.headers().clone(), body: read.into() }
    }

    /// Waits until the metrics' text has a line that begins so.
    pub(super) async fn counted(&self, line: &str) {
        let waiting = async {
            while !self.metrics.text().lines().any(|one| one.starts_with(line) && !one.ends_with(" 0")) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        if tokio::time::timeout(PATIENCE, waiting).await.is_err() {
            panic!("{line} never moved:\n{}", self.metrics.text());
        }
    }
}

async fn ask_h1<T>(io: T, request: Request<Full<Bytes>>) -> Answer
where
    T: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let (mut send, conn) = hyper::client::conn::http1::handshake(io).await.unwrap();
    let conn = tokio::spawn(conn);
    let answer = collect(send.send_request(request).await.unwrap()).await;
    drop(send);
    conn.abort();
    answer
}

pub(super) async fn collect(response: http::Response<hyper::body::Incoming>) -> Answer {
    let (parts, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    Answer { status: parts.status, headers: parts.headers, body }
}
