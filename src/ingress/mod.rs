//! Bytes in and out: HTTP/1.1, 2 and 3, WebSocket, and the drop-in routes. Transports are
//! adapters without rules of their own; what may happen is decided by [`crate::admission`].
//!
//! One handler answers every version of HTTP (`route`); a version brings only its connection
//! (`serve`, `h3`) and its way to carry a body (`body`). A code becomes a status, a close
//! code, a frame or an event in `respond` and nowhere else.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use ::http::HeaderValue;
use prometheus_client::metrics::counter::Counter;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admission::Admission;
use crate::clock::Clock;
use crate::config;
use crate::telemetry::Metrics;
use crate::telemetry::ingress::ByTransport;
use crate::telemetry::names::{RefusedConnection, Transport};

mod accept;
mod batch;
mod bearer;
mod body;
mod capture;
mod conn;
mod cors;
mod dialect;
mod dropin;
mod duplex;
mod frames;
mod gate;
mod h3;
mod health;
mod io;
mod loss;
mod multipart;
mod native;
mod pour;
mod put;
mod quic;
mod respond;
mod route;
mod serve;
mod sse;
mod ticket;
mod tls;
mod urgency;
mod watch;
mod webtransport;
mod ws;
mod wswrite;

#[cfg(test)]
mod tests;

pub use health::Ready;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub use multipart::{read_all as fuzz_multipart, read_content_type as fuzz_content_type};
pub use tls::Error as TlsError;

/// What ingress is given by the rest of the relay.
#[derive(Clone)]
pub struct Shared {
    /// Who decides.
    pub admission: Admission,
    /// Opaque id of this relay, for `Waystation-Node` and the frames that name it.
    pub node: Arc<str>,
    /// Time.
    pub clock: Clock,
    /// Counts.
    pub metrics: Metrics,
    /// What `/health/ready` says now.
    pub ready: Arc<dyn Fn() -> Ready + Send + Sync>,
    /// Whether `[core]` is set: the drop-in routes look at it before anything else.
    pub core_configured: bool,
    /// `staging.max_chunk`, in bytes.
    pub max_chunk: u64,
    /// Key of QUIC's stateless resets; the same after a restart.
    pub reset_key: [u8; 32],
}

/// Why ingress can't start.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// An address can't be bound.
    #[error("{listener} can't be bound: {kind}")]
    Address {
        /// `listen.public` or `listen.plain`.
        listener: &'static str,
        /// What the system said.
        kind: std::io::ErrorKind,
    },
    /// There is no certificate.
    #[error(transparent)]
    Certificate(#[from] TlsError),
    /// `relay.id` can't stand in a header.
    #[error("the node's opaque id is not visible ASCII")]
    Node,
}

/// Everything a connection needs of the relay.
struct Service {
    shared: Shared,
    limits: config::Limits,
    trusted_proxies: Vec<IpAddr>,
    origins: Vec<String>,
    node: HeaderValue,
    alt_svc: Option<HeaderValue>,
    gate: gate::Gate,
    /// Room for parts whose checksum is awaited.
    checked: Arc<tokio::sync::Semaphore>,
    /// QUIC handshakes under way.
    unfinished: Arc<AtomicUsize>,
    tasks: TaskTracker,
    /// No new work; what is in flight goes on.
    drain: CancellationToken,
    /// The end of what is in flight.
    cut: CancellationToken,
}

impl Service {
    /// A handshake and a place for a new connection to `listen.public`. An address of
    /// `listen.trusted_proxies` speaks for many, and only what is for all holds for it.
    fn admit(&self, from: IpAddr) -> Result<gate::Place, RefusedConnection> {
        let proxy = self.trusted_proxies.iter().any(|proxy| proxy.to_canonical() == from.to_canonical());
        let from = (!proxy).then_some(from);
        self.gate.may_shake_hands(from)?;
        self.gate.enter(from)
    }

    fn received(&self, transport: Transport) -> Counter {
        self.shared.metrics.ingress.received_bytes.get_or_create(&ByTransport { transport }).clone()
    }

    fn dropped_body(&self, transport: Transport) {
        self.shared.metrics.ingress.bodies_dropped.get_or_create(&ByTransport { transport }).inc();
    }
}

/// Listeners that are bound and not yet served.
pub struct Bound {
    /// Address of `listen.public`; the same port for TCP and UDP.
    pub public: Option<SocketAddr>,
    /// Address of `listen.plain`.
    pub plain: Option<SocketAddr>,
    service: Arc<Service>,
    tls: Option<PublicSide>,
    plain_listener: Option<TcpListener>,
}

struct PublicSide {
    listener: TcpListener,
    acceptor: TlsAcceptor,
    endpoint: quinn::Endpoint,
    quic: quinn::ServerConfig,
    certificate: tls::Certificate,
}

/// How draining went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drained {
    /// Connections and sessions that were cut at the deadline.
    pub cut: usize,
}

/// The relay's public side.
pub struct Ingress;

impl Ingress {
    /// Binds the listeners of the configuration. Nothing is accepted before [`Bound::serve`].
    ///
    /// # Errors
    /// [`BindError`]: an address is taken, or the certificate is missing or unfit.
    pub fn bind(
        listen: &config::Listen,
        tls: &config::Tls,
        limits: &config::Limits,
        shared: Shared,
    ) -> Result<Bound, BindError> {
        let public = listen.public.map(|at| Self::bind_public(at, tls, &shared)).transpose()?;
        let plain_listener = listen.plain.map(|at| accept::bind(at).map_err(refused("listen.plain"))).transpose()?;
        let port = public.as_ref().and_then(|side| side.listener.local_addr().ok()).map(|at| at.port());
        let alt_svc = port.and_then(|port| HeaderValue::from_str(&format!("h3=\":{port}\"; ma=86400")).ok());
        let service = Service {
            node: HeaderValue::from_str(&shared.node).map_err(|_| BindError::Node)?,
            limits: limits.clone(),
            trusted_proxies: listen.trusted_proxies.clone(),
            origins: listen.allowed_origins.clone(),
            alt_svc,
            gate: gate::Gate::new(limits.connections, limits.handshakes_per_second),
            checked: Arc::new(tokio::sync::Semaphore::new(dialect::MAX_CHECKED_BYTES)),
            unfinished: Arc::default(),
            tasks: TaskTracker::new(),
            drain: CancellationToken::new(),
            cut: CancellationToken::new(),
            shared,
        };
        Ok(Bound {
            public: public.as_ref().and_then(|side| side.listener.local_addr().ok()),
            plain: plain_listener.as_ref().and_then(|listener| listener.local_addr().ok()),
            service: Arc::new(service),
            tls: public,
            plain_listener,
        })
    }

    fn bind_public(at: SocketAddr, tls: &config::Tls, shared: &Shared) -> Result<PublicSide, BindError> {
        let certificate = tls::Certificate::load(tls, &shared.clock)?;
        let acceptor = TlsAcceptor::from(Arc::new(certificate.tcp()?));
        let quic = quic::config(&certificate)?;
        let endpoint = quic::endpoint(&shared.reset_key);
        let (listener, endpoint) = quic::bind_both(at, &endpoint, &quic).map_err(refused("listen.public"))?;
        Ok(PublicSide { listener, acceptor, endpoint, quic, certificate })
    }
}

fn refused(listener: &'static str) -> impl Fn(std::io::Error) -> BindError {
    move |error| BindError::Address { listener, kind: error.kind() }
}

impl Bound {
    /// Serves until `shutdown`, then lets what is in flight finish for at most `drain`. What is
    /// cut at the deadline loses no byte that was received.
    pub async fn serve(self, shutdown: CancellationToken, drain: Duration) -> Drained {
        let service = self.service;
        let mut loops = tokio::task::JoinSet::new();
        if let Some(listener) = self.plain_listener {
            loops.spawn(accept::run(Arc::clone(&service), listener, None));
        }
        let mut endpoint = None;
        if let Some(side) = self.tls {
            loops.spawn(accept::run(Arc::clone(&service), side.listener, Some(side.acceptor)));
            loops.spawn(quic::run(Arc::clone(&service), side.endpoint.clone(), side.quic));
            let (following, drain) = (side.certificate.follow(service.shared.clock.clone()), service.drain.clone());
            loops.spawn(async move {
                let _ = drain.run_until_cancelled(following).await;
            });
            endpoint = Some(side.endpoint);
        }
        shutdown.cancelled().await;
        service.drain.cancel();
        while loops.join_next().await.is_some() {}
        service.tasks.close();
        let in_time = tokio::select! {
            () = service.tasks.wait() => true,
            () = service.shared.clock.sleep(drain) => false,
        };
        let cut = if in_time { 0 } else { service.tasks.len() };
        service.cut.cancel();
        service.tasks.wait().await;
        if let Some(endpoint) = endpoint {
            endpoint.close(quinn::VarInt::from_u32(0x100), b"");
            // Peers hear of the close; a lost packet is theirs to time out.
            let _ = tokio::time::timeout(Duration::from_secs(1), endpoint.wait_idle()).await;
        }
        Drained { cut }
    }
}
