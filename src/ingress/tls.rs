//! One certificate for TCP and QUIC: from files, followed when they change, or self-signed.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::{ClientHello, ResolvesServerCert, ServerSessionMemoryCache};
use rustls::sign::CertifiedKey;
use rustls::{CipherSuite, ServerConfig};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use time::OffsetDateTime;

use crate::clock::Clock;
use crate::config;

/// How long a self-signed certificate is good for: WebTransport takes at most 14 days.
const SELF_SIGNED_DAYS: i64 = 13;
/// QUIC sessions kept for their clients' return, the oldest forgotten first; two for each
/// connection, at about 400 bytes. One that is forgotten costs its client a full handshake.
const MAX_SESSIONS: usize = 16_384;
/// How often certificate files are looked at.
const LOOK_AT_FILES: Duration = Duration::from_secs(10);

/// Why there is no certificate. Never says a path: those are the operator's (contract C10).
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file can't be read or written.
    #[error("a certificate file can't be read or written: {0}")]
    File(std::io::ErrorKind),
    /// The files are not a certificate and its key.
    #[error("tls.certificate and tls.private_key are not a PEM chain and its key")]
    Unusable,
    /// `listen.public` is set and `[tls]` is empty.
    #[error("listen.public needs tls.certificate and tls.private_key, or tls.self_signed")]
    Missing,
}

/// The certificate in use.
pub(super) struct Certificate {
    current: Arc<Current>,
    files: Option<Files>,
}

#[derive(Clone)]
struct Files {
    certificate: PathBuf,
    private_key: PathBuf,
    seen: (Option<SystemTime>, Option<SystemTime>),
}

struct Current(ArcSwap<CertifiedKey>);

impl std::fmt::Debug for Current {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Current(…)")
    }
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

impl Certificate {
    /// Loads or makes it. Blocks on small files.
    pub(super) fn load(tls: &config::Tls, clock: &Clock) -> Result<Self, Error> {
        let (key, files) = match tls {
            config::Tls::None => return Err(Error::Missing),
            config::Tls::SelfSigned { certificate_out } => (self_signed(clock, certificate_out.as_deref())?, None),
            config::Tls::Files { certificate, private_key } => {
                let mut files =
                    Files { certificate: certificate.clone(), private_key: private_key.clone(), seen: (None, None) };
                files.seen = files.changed_at();
                (files.read()?, Some(files))
            }
        };
        Ok(Self { current: Arc::new(Current(ArcSwap::from_pointee(key))), files })
    }

    /// The configuration for QUIC. What a phone that comes back sends with its first flight is taken
    /// as early data; nothing is done with it before the handshake is complete (`quic::connect`).
    /// Each session is good for one return: it is kept here, and a replayed flight finds it taken.
    pub(super) fn quic(&self) -> Result<ServerConfig, Error> {
        let mut config = self.server(&[b"h3"])?;
        config.session_storage = ServerSessionMemoryCache::new(MAX_SESSIONS);
        // QUIC knows no other size; what is held is bounded by the connection's window.
        config.max_early_data_size = u32::MAX;
        Ok(config)
    }

    /// The configuration for TCP. Tickets let a phone come back without the full handshake; early
    /// data is not taken.
    pub(super) fn tcp(&self) -> Result<ServerConfig, Error> {
        let mut config = self.server(&[b"h2", b"http/1.1"])?;
        config.ticketer = aws_lc_rs::Ticketer::new().map_err(|_| Error::Unusable)?;
        Ok(config)
    }

    /// What both have, for `alpn` in the order the relay likes them. With a ticketer rustls would
    /// silently take no early data.
    fn server(&self, alpn: &[&[u8]]) -> Result<ServerConfig, Error> {
        let builder = ServerConfig::builder_with_provider(Arc::new(provider()));
        let builder = if alpn == [b"h3"] {
            builder.with_protocol_versions(&[&rustls::version::TLS13])
        } else {
            builder.with_safe_default_protocol_versions()
        };
        let resolver: Arc<dyn ResolvesServerCert> = self.current.clone();
        let mut config = builder.map_err(|_| Error::Unusable)?.with_no_client_auth().with_cert_resolver(resolver);
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        config.ignore_client_order = true;
        Ok(config)
    }

    /// Takes over new files when they change, until dropped. Files that do not fit together are
    /// looked at again later: the two are seldom replaced in one instant.
    pub(super) async fn follow(mut self, clock: Clock) {
        while let Some(mut files) = self.files.clone() {
            clock.sleep(LOOK_AT_FILES).await;
            let read = tokio::task::spawn_blocking(move || {
                let at = files.changed_at();
                if at == files.seen {
                    return None;
                }
                files.seen = at;
                Some((files.read(), files))
            });
            let Ok(Some((read, files))) = read.await else { continue };
            match read {
                Ok(key) => {
                    self.current.0.store(Arc::new(key));
                    self.files = Some(files);
                    tracing::info!(component = "ingress", operation = "certificate_reload", "certificate taken over");
                }
                Err(_) => tracing::warn!(
                    component = "ingress",
                    operation = "certificate_reload",
                    error_category = "invalid_config_value",
                    "new certificate files do not fit together; the old certificate stays"
                ),
            }
        }
    }
}

/// AES-128-GCM first: what is sent to many is enciphered for each of them, and no cipher costs less.
/// The rest in the library's order.
fn provider() -> CryptoProvider {
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites.sort_by_key(|suite| suite.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256);
    provider
}

impl Files {
    fn changed_at(&self) -> (Option<SystemTime>, Option<SystemTime>) {
        let at = |path: &Path| std::fs::metadata(path).and_then(|meta| meta.modified()).ok();
        (at(&self.certificate), at(&self.private_key))
    }

    fn read(&self) -> Result<CertifiedKey, Error> {
        let read = |path: &Path| std::fs::read(path).map_err(|error| Error::File(error.kind()));
        let (chain, key) = (read(&self.certificate)?, read(&self.private_key)?);
        let chain: Vec<_> =
            CertificateDer::pem_slice_iter(&chain).collect::<Result<_, _>>().map_err(|_| Error::Unusable)?;
        let key = PrivateKeyDer::from_pem_slice(&key).map_err(|_| Error::Unusable)?;
        certified(chain, key)
    }
}

fn certified(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Result<CertifiedKey, Error> {
    if chain.is_empty() {
        return Err(Error::Unusable);
    }
    CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider()).map_err(|_| Error::Unusable)
}

/// P-256, an end entity (a certificate marked as CA is refused by rustls clients), and nothing in
/// it that comes from this machine.
fn self_signed(clock: &Clock, out: Option<&Path>) -> Result<CertifiedKey, Error> {
    let names = ["localhost", "127.0.0.1", "::1"].map(String::from).to_vec();
    let mut params = rcgen::CertificateParams::new(names).map_err(|_| Error::Unusable)?;
    let now = OffsetDateTime::from_unix_timestamp(clock.unix_s()).map_err(|_| Error::Unusable)?;
    // An hour back, for clients whose clock is late; with it the span stays under 14 days.
    params.not_before = now - time::Duration::hours(1);
    params.not_after = now + time::Duration::days(SELF_SIGNED_DAYS);
    params.is_ca = rcgen::IsCa::NoCa;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::CommonName, "waystation");
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(|_| Error::Unusable)?;
    let certificate = params.self_signed(&key).map_err(|_| Error::Unusable)?;
    if let Some(path) = out {
        std::fs::write(path, certificate.pem()).map_err(|error| Error::File(error.kind()))?;
    }
    let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
    certified(vec![certificate.der().clone()], key)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write_pair(dir: &Path) -> config::Tls {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
        let tls = config::Tls::Files { certificate: dir.join("c.pem"), private_key: dir.join("k.pem") };
        std::fs::write(dir.join("c.pem"), made.cert.pem()).unwrap();
        std::fs::write(dir.join("k.pem"), made.signing_key.serialize_pem()).unwrap();
        tls
    }

    #[test]
    fn a_self_signed_certificate_can_be_pinned() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("pin.pem");
        let clock = Clock::system();
        let made = Certificate::load(&config::Tls::SelfSigned { certificate_out: Some(out.clone()) }, &clock).unwrap();
        let pinned = CertificateDer::from_pem_file(&out).unwrap();
        assert_eq!(made.current.0.load().cert[0], pinned);
        let mut roots = rustls::RootCertStore::empty();
        roots.add(pinned).unwrap();
        let tcp = made.tcp().unwrap();
        assert_eq!((tcp.alpn_protocols.len(), tcp.max_early_data_size), (2, 0));
        let first = tcp.crypto_provider().cipher_suites[0].suite();
        assert!(tcp.ignore_client_order && first == CipherSuite::TLS13_AES_128_GCM_SHA256);
        assert!(tcp.ticketer.enabled());
        let quic = made.quic().unwrap();
        assert!(quic.max_early_data_size == u32::MAX && !quic.ticketer.enabled() && quic.session_storage.can_cache());
    }

    #[tokio::test]
    async fn new_files_are_taken_over_and_bad_ones_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let tls = write_pair(dir.path());
        let clock = Clock::at_unix_ms(0);
        let loaded = Certificate::load(&tls, &clock).unwrap();
        let current = Arc::clone(&loaded.current);
        let first = current.0.load_full();
        let task = tokio::spawn(loaded.follow(clock.clone()));
        tokio::time::sleep(Duration::from_millis(20)).await;

        std::fs::write(dir.path().join("c.pem"), "not a certificate").unwrap();
        clock.advance(LOOK_AT_FILES);
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(Arc::ptr_eq(&first, &current.0.load_full()));

        write_pair(dir.path());
        for _ in 0..100 {
            clock.advance(LOOK_AT_FILES);
            tokio::time::sleep(Duration::from_millis(10)).await;
            if !Arc::ptr_eq(&first, &current.0.load_full()) {
                break;
            }
        }
        assert_ne!(first.cert, current.0.load_full().cert);
        task.abort();
    }

    #[test]
    fn what_is_missing_or_unfit_is_said_without_paths() {
        let clock = Clock::system();
        assert!(matches!(Certificate::load(&config::Tls::None, &clock), Err(Error::Missing)));
        let tls = config::Tls::Files { certificate: "/canary".into(), private_key: "/canary".into() };
        let error = Certificate::load(&tls, &clock).err().unwrap();
        assert!(!error.to_string().contains("canary"));
    }
}
