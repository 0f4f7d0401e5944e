//! What a bearer may do: reads both token formats, checks what can be checked here.

use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::hmac;
use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use tokio::sync::watch;

use crate::clock::Clock;
use crate::config;
use crate::core::{Fetch, FetchError};
pub use crate::proto::capability::{Capability, Trust};
use crate::proto::claims::{Format, Grant, MAX_TOKEN_BYTES, Use};
use crate::proto::{Code, Offer};
use crate::telemetry::Metrics;
use crate::telemetry::names::{CapabilityFetch, CapabilitySource};

mod cache;
mod jwt;
mod keys;
mod proofline;
mod revocation;

use cache::Cache;
use keys::{KeySet, KeyStore};
use revocation::Revocations;

/// The keys are fetched so often even if no token asks for it, so that one the core has
/// withdrawn is not believed for ever.
const KEYS_EVERY: Duration = Duration::from_secs(600);
/// Largest `capability.jwks_file`, in bytes.
const MAX_JWKS_FILE: u64 = 64 * 1024;

/// Why tokens can't be read with this configuration.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SetupError {
    /// `capability.jwks_file` can't be read, or holds no usable key.
    #[error("capability.jwks_file can't be read, or holds no Ed25519 key with a kid")]
    JwksFile,
    /// `capability.proofline_secret_file` holds less than the core accepts.
    #[error("capability.proofline_secret_file holds fewer than 32 bytes")]
    ShortSecret,
}

/// Reads and checks tokens. Cheap to clone.
#[derive(Clone)]
pub struct Verifier(Arc<Inner>);

struct Inner {
    audience: String,
    proofline: Option<hmac::Key>,
    keys: Arc<KeyStore>,
    cache: Cache,
    revocations: Revocations,
    fetch: Fetch,
    clock: Clock,
    metrics: Metrics,
}

impl Verifier {
    /// Reads `jwks_file` and takes over the secret; fetches nothing yet.
    ///
    /// # Errors
    /// [`SetupError`].
    pub fn new(config: &config::Capability, fetch: Fetch, clock: Clock, metrics: Metrics) -> Result<Self, SetupError> {
        let first = config.jwks_file.as_deref().map(read_keys).transpose()?;
        let proofline = match &config.proofline_secret {
            None => None,
            Some(secret) => Some(proofline::key(secret).ok_or(SetupError::ShortSecret)?),
        };
        Ok(Self(Arc::new(Inner {
            audience: config.audience.clone(),
            proofline,
            keys: KeyStore::new(first, fetch.clone(), clock.clone(), metrics.clone()),
            cache: Cache::new(&clock),
            revocations: Revocations::new(),
            fetch,
            clock,
            metrics,
        })))
    }

    /// Reads a token. May fetch the core's keys once if the key is unknown.
    ///
    /// # Errors
    /// `CapabilityInvalid`, `CapabilityExpired`, `CapabilityWrongUse`, `CapabilityRevoked`,
    /// `CapabilityUnverifiable`.
    pub async fn read(&self, token: &str) -> Result<Capability, Code> {
        let inner = &*self.0;
        if token.len() > MAX_TOKEN_BYTES {
            inner.metrics.capability.read(None, Err(Code::CapabilityInvalid));
            return Err(Code::CapabilityInvalid);
        }
        let (format, read) = if proofline::is_one(token) {
            let read = proofline::read(token, inner.proofline.as_ref(), inner.clock.unix_s());
            (Format::Proofline, read.map(|(grant, trust)| (Arc::new(grant), trust)))
        } else {
            (Format::Jwt, self.read_jwt(token).await.map(|grant| (grant, Trust::Verified)))
        };
        let outcome = read.as_ref().map(|(_, trust)| *trust == Trust::Verified).map_err(|code| *code);
        inner.metrics.capability.read(Some(format), outcome);
        read.map(|(grant, trust)| Capability { token: token.into(), grant, trust })
    }

    async fn read_jwt(&self, token: &str) -> Result<Arc<Grant>, Code> {
        let inner = &*self.0;
        let name = inner.cache.name(token);
        let known = inner.cache.get(&name, inner.keys.generation(), inner.clock.unix_s());
        let grant = match known {
            Some(grant) => {
                inner.metrics.capability.hit();
                grant
            }
            None => {
                let parsed = jwt::parse(token)?;
                let (key, generation) = inner.keys.find(&parsed.kid).await?;
                let grant = Arc::new(parsed.verify(&key, &inner.audience, inner.clock.unix_s())?);
                inner.cache.put(name, generation, Arc::clone(&grant));
                grant
            }
        };
        if inner.revocations.holds(&grant) { Err(Code::CapabilityRevoked) } else { Ok(grant) }
    }

    /// Whether any token can be verified here, so that bytes can be taken while the core is away.
    #[must_use]
    pub fn verifies_locally(&self) -> bool {
        self.0.proofline.is_some() || self.0.keys.any()
    }

    /// Whether the core took this capability back, as far as this relay has heard.
    #[must_use]
    pub fn is_revoked(&self, grant: &Grant) -> bool {
        self.0.revocations.holds(grant)
    }

    /// Changes whenever the revocation list does: then ask [`Verifier::is_revoked`] of everything
    /// that is open.
    #[must_use]
    pub fn revocations(&self) -> watch::Receiver<u64> {
        self.0.revocations.changes()
    }

    /// Polls the revocation list twice in `within`, so that what is taken back is known here by then, and the
    /// keys each ten minutes; never ends. A core that is away ends nothing: the last list and the last
    /// keys stay good.
    pub async fn poll_revocations(&self, within: Duration) {
        let inner = &*self.0;
        let mut keys_at: Option<u64> = None;
        loop {
            let now = inner.clock.now_ms();
            if keys_at.is_none_or(|at| now.saturating_sub(at) >= KEYS_EVERY.as_millis() as u64) {
                keys_at = Some(now);
                inner.keys.refresh().await;
            }
            self.poll_once().await;
            inner.clock.sleep(within / 2).await;
        }
    }

    async fn poll_once(&self) {
        let inner = &*self.0;
        let outcome = match inner.fetch.revocations().await {
            Err(FetchError::NotConfigured) => return,
            Err(FetchError::NoAnswer) => CapabilityFetch::Failed,
            Err(FetchError::Absent) => {
                inner.revocations.clear();
                CapabilityFetch::Absent
            }
            Ok(json) if inner.revocations.adopt(&json) => CapabilityFetch::Ok,
            Ok(_) => CapabilityFetch::Unreadable,
        };
        inner.metrics.capability.fetched(CapabilitySource::Revocations, outcome);
        inner.metrics.capability.revoked(inner.revocations.len());
    }
}

/// Checks a grant against one request, in the core's order: use, session, incident, stream
/// (contract A.5). Expiry was checked when the token was read. A fan-out grant without lanes
/// reaches every stream of its group.
///
/// # Errors
/// `CapabilityWrongUse`, `CapabilityWrongBinding`.
pub fn check(grant: &Grant, use_: Use, session: Option<&str>, incident: &str, stream: &str) -> Result<(), Code> {
    if grant.use_ != use_ {
        return Err(Code::CapabilityWrongUse);
    }
    let every_stream = grant.use_ == Use::Fanout && grant.lanes.is_empty();
    let bound = session.is_none_or(|session| grant.session.as_str() == session)
        && grant.incident.as_str() == incident
        && (every_stream || grant.lanes.iter().any(|lane| lane.stream.as_str() == stream));
    if bound { Ok(()) } else { Err(Code::CapabilityWrongBinding) }
}

/// Checks an offer's signature where the capability binds a client key (`cnf`).
///
/// # Errors
/// `SignatureRequired`, `SignatureInvalid`.
pub fn verify_offer(grant: &Grant, offer: &Offer) -> Result<(), Code> {
    let Some(key) = &grant.client_key else { return Ok(()) };
    let sig = offer.sig.as_ref().ok_or(Code::SignatureRequired)?;
    UnparsedPublicKey::new(&ED25519, key).verify(&offer.signed_bytes(), sig).map_err(|_| Code::SignatureInvalid)
}

fn read_keys(path: &Path) -> Result<KeySet, SetupError> {
    let mut json = Vec::new();
    let file = std::fs::File::open(path).map_err(|_| SetupError::JwksFile)?;
    file.take(MAX_JWKS_FILE).read_to_end(&mut json).map_err(|_| SetupError::JwksFile)?;
    KeySet::parse(&json).ok_or(SetupError::JwksFile)
}

/// Reads any text as a token of either format, for fuzzing. No key is known, so none may pass.
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub fn fuzz_token(text: &str) {
    if let Ok(token) = jwt::parse(text) {
        assert!(token.verify(&[7; 32], "waystation", 0).is_err(), "no token is signed with this key");
    }
    let key = hmac::Key::new(hmac::HMAC_SHA256, &[7; 32]);
    assert!(proofline::read(text, Some(&key), 0).is_err(), "no token is signed with this secret");
    let _ = proofline::read(text, None, 0);
}

/// Reads any bytes as a key set and as a revocation list, for fuzzing.
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub fn fuzz_keys(json: &[u8]) {
    let _ = (KeySet::parse(json), Revocations::new().adopt(json));
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod vectors;
