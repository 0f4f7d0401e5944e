//! TLS, when asked for: certificates from PEM files.

use std::path::Path;
use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// The certificate, the key or the authority can't be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the certificate or key file can't be used")]
pub(crate) struct Unusable;

/// Bytes of a TLS record. None can be read before it is whole, and one of 16 KiB, the most there may be, is more than TCP
/// sends before the first acknowledgement: a round trip more before a browser sees the first byte of a page.
const RECORD_BYTES: usize = 4 * 1024;

/// Serves with this certificate chain and key, and speaks one of these protocols.
pub(crate) fn acceptor(certificate: &Path, key: &Path, protocols: &[&[u8]]) -> Result<TlsAcceptor, Unusable> {
    let chain = certificates(certificate)?;
    let key = PrivateKeyDer::from_pem_file(key).map_err(|_| Unusable)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|_| Unusable)?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|_| Unusable)?;
    config.max_fragment_size = Some(RECORD_BYTES);
    config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Connects to servers that this authority vouches for.
pub(crate) fn connector(authority: &Path) -> Result<TlsConnector, Unusable> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(authority)? {
        roots.add(certificate).map_err(|_| Unusable)?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|_| Unusable)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, Unusable> {
    let read = CertificateDer::pem_file_iter(file).map_err(|_| Unusable)?;
    let chain = read.collect::<Result<Vec<_>, _>>().map_err(|_| Unusable)?;
    if chain.is_empty() { Err(Unusable) } else { Ok(chain) }
}
