//! How to reach a relay or a core: address, trust, and the three transports.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hyper_rustls::ConfigBuilderExt as _;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use waystation_congestion::Flights;

use crate::tcp::{self, Watch};

/// How long a connection may take to be made. A phone tries again at once after it.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// Which of the relay's ways in to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// HTTP/3, and a WebSocket where UDP does not get through.
    Auto,
    /// WebSocket; the kernel is asked for BBR.
    Ws,
    /// WebSocket, several at once if need be, with the kernel's own congestion control: what
    /// [`Transport::Ws`] comes to where there is no BBR.
    WsPlain,
    /// HTTP/3.
    H3,
    /// HTTP/1.1.
    H1,
}

/// Whom to believe on the other end.
#[derive(Clone)]
pub struct Trust {
    config: Arc<ClientConfig>,
    /// The same with a first flight that fits one packet; see [`Trust::brief`].
    brief: Arc<ClientConfig>,
}

/// An address with what it takes to connect to it.
#[derive(Clone)]
pub struct Endpoint {
    host: String,
    port: u16,
    tls: bool,
    trust: Trust,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The URL is not `https://host:port` or `http://host:port`.
    #[error("an address is https://host:port")]
    Url,
    /// The certificate file has no certificate.
    #[error("the certificate file can't be read")]
    Certificate,
    /// This transport needs TLS.
    #[error("this transport needs https")]
    NeedsTls,
    /// The other end can't be reached, or broke off.
    #[error("the other end can't be reached")]
    Unreachable,
    /// The other end is not the one to believe.
    #[error("the other end's certificate is not trusted")]
    Untrusted,
    /// The other end answered, but not with this protocol.
    #[error("the other end refused: {code}")]
    Refused {
        /// Its stable code, or the HTTP status.
        code: String,
        /// Seconds it asks to wait.
        retry_after_s: Option<u64>,
    },
}

impl ConnectError {
    /// Seconds that the other end asks to wait.
    pub(crate) const fn retry_after_s(&self) -> Option<u64> {
        match self {
            Self::Refused { retry_after_s, .. } => *retry_after_s,
            _ => None,
        }
    }
}

impl Trust {
    /// The certificates that the system trusts.
    ///
    /// # Errors
    /// [`ConnectError::Certificate`] if the system has none.
    pub fn system() -> Result<Self, ConnectError> {
        let native = |provider: CryptoProvider| {
            let builder = builder(provider.into())?.with_native_roots().map_err(|_| ConnectError::Certificate)?;
            Ok(Arc::new(builder.with_no_client_auth()))
        };
        Ok(Self { config: native(provider())?, brief: native(brief())? })
    }

    /// Exactly the certificates of a PEM or DER file: each both as the other end's own
    /// certificate and as one that issues.
    ///
    /// # Errors
    /// [`ConnectError::Certificate`]
    pub fn file(path: &Path) -> Result<Self, ConnectError> {
        Self::certificates(certificates(path)?)
    }

    /// Exactly these certificates.
    ///
    /// # Errors
    /// [`ConnectError::Certificate`]
    pub fn certificates(list: Vec<CertificateDer<'static>>) -> Result<Self, ConnectError> {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(list.iter().cloned());
        let provider = Arc::new(provider());
        let issued = rustls::client::WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone());
        let verifier = Arc::new(Pinned { list, issued: issued.build().ok(), provider: provider.clone() });
        let pinned = |provider: Arc<CryptoProvider>| {
            let builder = builder(provider)?.dangerous().with_custom_certificate_verifier(verifier.clone());
            Ok(Arc::new(builder.with_no_client_auth()))
        };
        Ok(Self { config: pinned(provider)?, brief: pinned(brief().into())? })
    }

    /// A TLS configuration that offers these protocols.
    #[must_use]
    pub fn tls(&self, alpn: &[&[u8]]) -> ClientConfig {
        with_alpn(&self.config, alpn)
    }
}

/// SHA-256 of the first certificate of a PEM or DER file, as a browser may be told to expect it.
///
/// # Errors
/// [`ConnectError::Certificate`]
pub fn certificate_hash(path: &Path) -> Result<[u8; 32], ConnectError> {
    let list = certificates(path)?;
    let first = list.first().ok_or(ConnectError::Certificate)?;
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, first);
    digest.as_ref().try_into().map_err(|_| ConnectError::Certificate)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, ConnectError> {
    let bytes = std::fs::read(path).map_err(|_| ConnectError::Certificate)?;
    let pem: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match pem {
        Ok(list) if !list.is_empty() => Ok(list),
        _ if bytes.starts_with(&[0x30]) => Ok(vec![bytes.into()]),
        _ => Err(ConnectError::Certificate),
    }
}

impl Trust {
    /// For QUIC. A relay that is known from before may be sent something at once (0-RTT): it does
    /// nothing with it before the handshake is complete, so a copy of it changes nothing.
    pub(crate) fn quic(&self) -> ClientConfig {
        let mut config = self.brief(&[b"h3"]);
        config.enable_early_data = true;
        config
    }

    /// For capture: without the key shares of post-quantum groups, so that a first flight is one
    /// packet and not two, each of which a bad link may lose. `docs/decisions/0014` weighs it.
    pub(crate) fn brief(&self, alpn: &[&[u8]]) -> ClientConfig {
        with_alpn(&self.brief, alpn)
    }
}

impl Endpoint {
    /// Reads `https://host:port` or `http://host:port`; nothing may follow.
    ///
    /// # Errors
    /// [`ConnectError::Url`]
    pub fn parse(url: &str, trust: Trust) -> Result<Self, ConnectError> {
        let uri: http::Uri = url.trim_end_matches('/').parse().map_err(|_| ConnectError::Url)?;
        let tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(ConnectError::Url),
        };
        let host = uri.host().ok_or(ConnectError::Url)?.trim_matches(['[', ']']).to_owned();
        if host.is_empty() || !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            return Err(ConnectError::Url);
        }
        let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
        Ok(Self { host, port, tls, trust })
    }

    /// `host:port`, as it stands in `Host` and `:authority`.
    #[must_use]
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// An absolute URL of a path there.
    #[must_use]
    pub fn url(&self, path: &str) -> String {
        format!("{}://{}{path}", if self.tls { "https" } else { "http" }, self.authority())
    }

    /// Whether TLS is used.
    #[must_use]
    pub const fn tls(&self) -> bool {
        self.tls
    }

    pub(crate) fn trust(&self) -> &Trust {
        &self.trust
    }

    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    pub(crate) async fn addresses(&self) -> Result<Vec<SocketAddr>, ConnectError> {
        let found = tokio::net::lookup_host((self.host.as_str(), self.port));
        let list: Vec<_> = found.await.map_err(|_| ConnectError::Unreachable)?.collect();
        if list.is_empty() { Err(ConnectError::Unreachable) } else { Ok(list) }
    }

    /// Connects by TCP, and TLS where the URL says so. `bbr`: ask the kernel for it.
    pub(crate) async fn stream(&self, bbr: bool) -> Result<Box<dyn Stream>, ConnectError> {
        tokio::time::timeout(CONNECT_LIMIT, self.stream_unbounded(bbr)).await.map_err(|_| ConnectError::Unreachable)?
    }

    async fn stream_unbounded(&self, bbr: bool) -> Result<Box<dyn Stream>, ConnectError> {
        let mut last = ConnectError::Unreachable;
        for address in self.addresses().await? {
            match tcp::connect(address, bbr).await {
                Ok(stream) if !self.tls => return Ok(Box::new(stream)),
                Ok(stream) => return self.handshake(stream).await,
                Err(_) => last = ConnectError::Unreachable,
            }
        }
        Err(last)
    }

    async fn handshake(&self, stream: TcpStream) -> Result<Box<dyn Stream>, ConnectError> {
        let name = ServerName::try_from(self.host.clone()).map_err(|_| ConnectError::Url)?;
        let config = Arc::new(self.trust.brief(&[b"http/1.1"]));
        match tokio_rustls::TlsConnector::from(config).connect(name, Flights::new(stream)).into_fallible().await {
            Ok(mut stream) => {
                stream.get_mut().0.done();
                Ok(Box::new(stream))
            }
            Err((error, mut flights)) => {
                flights.failed();
                Err(if is_certificate(&error) { ConnectError::Untrusted } else { ConnectError::Unreachable })
            }
        }
    }
}

impl std::fmt::Debug for Trust {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Trust(…)")
    }
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Endpoint").field("tls", &self.tls).finish_non_exhaustive()
    }
}

/// A byte stream, with or without TLS.
pub(crate) trait Stream: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin {
    /// What makes the kernel end it when what is sent is not acknowledged.
    fn watch(&self) -> Option<Watch>;
}

impl Stream for TcpStream {
    fn watch(&self) -> Option<Watch> {
        Watch::new(self)
    }
}

impl Stream for TlsStream<Flights<TcpStream>> {
    fn watch(&self) -> Option<Watch> {
        Watch::new(self.get_ref().0.get_ref())
    }
}

fn is_certificate(error: &std::io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    matches!(inner, Some(rustls::Error::InvalidCertificate(_)))
}

fn with_alpn(config: &ClientConfig, alpn: &[&[u8]]) -> ClientConfig {
    let mut config = config.clone();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    config
}

fn provider() -> CryptoProvider {
    rustls::crypto::aws_lc_rs::default_provider()
}

fn brief() -> CryptoProvider {
    use rustls::crypto::aws_lc_rs::kx_group::{SECP256R1, X25519};
    CryptoProvider { kx_groups: vec![X25519, SECP256R1], ..provider() }
}

fn builder(
    provider: Arc<CryptoProvider>,
) -> Result<rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier>, ConnectError> {
    ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|_| ConnectError::Certificate)
}

/// Pinning: believes exactly the certificates of a list, whatever name they carry, and what they
/// issue. A self-signed development certificate marked as CA is refused as an end entity by
/// webpki, so the comparison of bytes comes first. The handshake's signature is checked as ever.
#[derive(Debug)]
struct Pinned {
    list: Vec<CertificateDer<'static>>,
    issued: Option<Arc<rustls::client::WebPkiServerVerifier>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self.list.iter().any(|pinned| pinned == end_entity) {
            return Ok(ServerCertVerified::assertion());
        }
        let unknown = rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        let issued = self.issued.as_ref().ok_or(unknown)?;
        issued.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_a_scheme_and_no_path() {
        let trust = Trust::certificates(Vec::new()).unwrap();
        let parse = |url: &str| Endpoint::parse(url, trust.clone());
        assert_eq!(parse("https://localhost:8443").unwrap().url("/x"), "https://localhost:8443/x");
        assert_eq!(parse("https://[::1]:8443/").unwrap().authority(), "[::1]:8443");
        assert_eq!(parse("http://127.0.0.1").unwrap().authority(), "127.0.0.1:80");
        for bad in ["localhost:8443", "ftp://a", "https://a/b", "https://a?b", ""] {
            assert!(matches!(parse(bad), Err(ConnectError::Url)), "{bad}");
        }
    }
}
