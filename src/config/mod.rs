//! The configuration: typed and checked; what is here can't be wrong.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;

mod keys;
mod load;
mod value;

pub use load::{MIN_SECRET_BYTES, Mistakes};

/// Every key with its default, commented: what `waystation config default` prints.
pub const DEFAULT_TOML: &str = include_str!("default.toml");

/// Everything the relay is told at start.
#[derive(Debug, Clone)]
pub struct Config {
    /// `[relay]`
    pub relay: Relay,
    /// `[listen]`
    pub listen: Listen,
    /// `[tls]`
    pub tls: Tls,
    /// `[core]`; `None`: no core is configured.
    pub core: Option<Core>,
    /// `[capability]`
    pub capability: Capability,
    /// `[staging]`
    pub staging: Staging,
    /// `[fanout]`
    pub fanout: Fanout,
    /// `[limits]`
    pub limits: Limits,
}

impl Config {
    /// Keys whose URL leads over a network without TLS.
    pub fn without_tls(&self) -> impl Iterator<Item = &'static str> {
        let core = self.core.as_ref().map(|core| core.url.as_str());
        let urls = [("core.url", core), ("capability.jwks_url", self.capability.jwks_url.as_deref())];
        urls.into_iter().filter(|(_, url)| url.is_some_and(in_the_clear)).map(|(key, _)| key)
    }
}

/// `http`, and not to this machine.
fn in_the_clear(url: &str) -> bool {
    let Ok(url) = url.parse::<http::Uri>() else { return false };
    let host = url.host().unwrap_or_default().trim_matches(['[', ']']);
    let here = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|at| at.is_loopback());
    url.scheme_str() == Some("http") && !here
}

/// `[relay]`: labels of this node; never printed.
#[derive(Clone)]
pub struct Relay {
    /// `id`
    pub id: String,
    /// `region`
    pub region: String,
    /// `ready`: the operator's switch behind `/readyz` and `/health/ready`.
    pub ready: bool,
}

impl std::fmt::Debug for Relay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Relay").field("ready", &self.ready).finish_non_exhaustive()
    }
}

/// `[listen]`
#[derive(Debug, Clone)]
pub struct Listen {
    /// TCP: HTTP/1.1, HTTP/2, WebSocket; UDP, same port: HTTP/3; TLS on both.
    pub public: Option<SocketAddr>,
    /// No TLS, for a reverse proxy.
    pub plain: Option<SocketAddr>,
    /// Peers whose `X-Forwarded-For` (last hop) is believed on `plain`.
    pub trusted_proxies: Vec<IpAddr>,
    /// `/livez`, `/readyz`, `/metrics`; never public.
    pub ops: SocketAddr,
    /// Origins allowed for CORS, WebSocket and WebTransport.
    pub allowed_origins: Vec<String>,
}

/// `[tls]`
#[derive(Debug, Clone)]
pub enum Tls {
    /// A certificate chain and its key, both PEM.
    Files {
        /// `certificate`
        certificate: PathBuf,
        /// `private_key`
        private_key: PathBuf,
    },
    /// `self_signed = true`: P-256, 13 days, made at start (WebTransport's limit is 14 days).
    SelfSigned {
        /// Where the certificate is written (PEM) so that a client can pin it, if anywhere:
        /// `certificate` beside `self_signed`.
        certificate_out: Option<PathBuf>,
    },
    /// Neither: `public` can't be served.
    None,
}

/// `[core]`
#[derive(Debug, Clone)]
pub struct Core {
    /// Base URL without a trailing `/`; http or https, path prefix kept.
    pub url: String,
    /// The service token of `service_token_file`, 32 bytes or more.
    pub service_token: SecretString,
    /// Trust anchors instead of the system's, PEM.
    pub ca_file: Option<PathBuf>,
    /// Longest wait for an answer after the last byte was sent.
    pub request_timeout: Duration,
    /// Calls a minute and limiter class; 0: learned from 429.
    pub max_requests_per_minute: u32,
}

/// `[capability]`
#[derive(Debug, Clone)]
pub struct Capability {
    /// Where the core's keys are fetched.
    pub jwks_url: Option<String>,
    /// The core's keys in a file, for a start while the core is away.
    pub jwks_file: Option<PathBuf>,
    /// `aud` of capabilities for this relay.
    pub audience: String,
    /// The core's HMAC secret: gives the relay the core's power to mint. Off by default.
    pub proofline_secret: Option<SecretString>,
}

/// `[staging]`
#[derive(Debug, Clone)]
pub struct Staging {
    /// The only place where the relay keeps state.
    pub directory: PathBuf,
    /// Bytes on disk in all, each chunk counted with its overhead.
    pub quota: u64,
    /// Largest chunk, in bytes.
    pub max_chunk: u64,
    /// How long an unconfirmed chunk is kept.
    pub keep_for: Duration,
    /// 32 bytes that seal metadata; not inside `directory`. Made at first start.
    pub seal_key_file: PathBuf,
}

/// `[fanout]`
#[derive(Debug, Clone)]
pub struct Fanout {
    /// How much source time a lane's window spans.
    pub window: Duration,
    /// A window whose capture device gives no sign stays this long.
    pub linger: Duration,
    /// Bytes of all windows.
    pub memory: u64,
    /// Bytes of one session's windows.
    pub memory_per_session: u64,
    /// Largest chunk shown, in bytes.
    pub max_chunk: u64,
    /// Whether a capability without roles is shown by media type.
    pub allow_unlabelled: bool,
    /// Without media and `ALIVE` for so long a capture device counts as silent.
    pub silent_after: Duration,
    /// Within which a revoked capability is known: the revocation list is fetched twice in it, and contacts with
    /// Proofline tokens are authorised again.
    pub reauthorize_every: Duration,
}

/// `[limits]`; each has its memory cost in `docs/limits.md`.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Open connections, all listeners and transports.
    pub connections: usize,
    /// New TLS and QUIC handshakes a second.
    pub handshakes_per_second: u32,
    /// Requests a minute from one address without a verified capability.
    pub requests_per_client: u32,
    /// Chunks being received in all.
    pub receiving_total: usize,
    /// Chunks being received of one session.
    pub in_flight_per_session: usize,
    /// Chunks being received from one address without a locally verified capability.
    pub in_flight_per_client: usize,
    /// Contacts of one capture group.
    pub contacts_per_group: usize,
    /// From a connection's first byte to a complete request head.
    pub header_timeout: Duration,
    /// Without any byte of a body, or any sign of a connection.
    pub idle_timeout: Duration,
}

impl Default for Fanout {
    fn default() -> Self {
        Self {
            window: Duration::from_secs(120),
            linger: Duration::from_secs(24 * 3600),
            memory: 512 << 20,
            memory_per_session: 32 << 20,
            max_chunk: 8 << 20,
            allow_unlabelled: true,
            silent_after: Duration::from_secs(15),
            reauthorize_every: Duration::from_secs(30),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 4096,
            handshakes_per_second: 200,
            requests_per_client: 600,
            receiving_total: 1024,
            in_flight_per_session: 16,
            in_flight_per_client: 64,
            contacts_per_group: 1024,
            header_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(30),
        }
    }
}
