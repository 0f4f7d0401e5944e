//! What a core can be told before it starts.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::clock::Clock;

/// Where a secret comes from.
#[derive(Clone, Default, PartialEq, Eq)]
pub enum Secret {
    /// Made at the first start and kept in the data directory.
    #[default]
    Generated,
    /// This text, trimmed; at least 32 bytes.
    Text(String),
    /// This file's content, trimmed; at least 32 bytes.
    File(PathBuf),
    /// None: the routes that need it answer 503.
    Unset,
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Generated => "Generated",
            Self::Text(_) => "Text(…)",
            Self::File(_) => "File(…)",
            Self::Unset => "Unset",
        })
    }
}

/// Settings of one core.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Where metadata, bytes and keys are kept. Starting again on it goes on where the last run ended.
    pub data: PathBuf,
    /// Certificate chain and private key, PEM; both or none.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// A directory with the contact's page, and where to serve it: another origin than the core's.
    pub page: Option<(PathBuf, SocketAddr)>,
    /// 200 for a commit that is equal in identity, size and hash; else 409 for every duplicate.
    pub idempotent_commit: bool,
    /// The unchanged core: no JWT, no JWKS, no receipts, 409 for every duplicate.
    pub hmac_only: bool,
    /// Signed receipts in commit answers.
    pub receipts: bool,
    /// Calls a minute, peer and limiter class; 0 is no limit. The public core's default is 120.
    pub calls_per_minute: u32,
    /// Check everything, keep nothing: for load.
    pub keep_nothing: bool,
    /// Life of capabilities.
    pub capability_ttl: Duration,
    /// Highest chunk index a capability covers.
    pub max_chunks: u64,
    /// For how long after `exp` commits are taken (JWT only).
    pub commit_grace: Duration,
    /// Life of the capabilities that contacts get for their grants.
    pub contact_ttl: Duration,
    /// Life of contact grants.
    pub grant_ttl: Duration,
    /// Largest chunk, in bytes.
    pub max_upload_bytes: u64,
    /// Bytes of uploads that may be on their way at once.
    pub staging_quota_bytes: u64,
    /// Bytes the account may store.
    pub account_quota_bytes: u64,
    /// What relays show.
    pub service_token: Secret,
    /// What Proofline tokens are signed with.
    pub capability_secret: Secret,
    /// `aud` of capabilities.
    pub audience: String,
    /// `iss` of capabilities and receipts.
    pub issuer: String,
    /// Where time comes from.
    pub clock: Clock,
}

impl Options {
    /// The defaults, on a free port of the loopback address.
    #[must_use]
    pub fn new(data: impl Into<PathBuf>) -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            data: data.into(),
            tls: None,
            page: None,
            idempotent_commit: false,
            hmac_only: false,
            receipts: true,
            calls_per_minute: 0,
            keep_nothing: false,
            capability_ttl: Duration::from_secs(300),
            max_chunks: 64,
            commit_grace: Duration::from_secs(24 * 3600),
            contact_ttl: Duration::from_secs(300),
            grant_ttl: Duration::from_secs(7 * 24 * 3600),
            max_upload_bytes: 250 * 1024 * 1024,
            staging_quota_bytes: 1024 * 1024 * 1024,
            account_quota_bytes: 10 * 1024 * 1024 * 1024,
            service_token: Secret::Generated,
            capability_secret: Secret::Generated,
            audience: "waystation".into(),
            issuer: "waystation-devcore".into(),
            clock: Clock::system(),
        }
    }

    /// The public core as it is today: HMAC tokens only, 409 on every duplicate, 120 calls a minute.
    #[must_use]
    pub fn unchanged_core(data: impl Into<PathBuf>) -> Self {
        Self { hmac_only: true, receipts: false, calls_per_minute: 120, ..Self::new(data) }
    }

    /// Whether commit answers carry receipts.
    pub(crate) const fn signs_receipts(&self) -> bool {
        self.receipts && !self.hmac_only
    }

    /// Whether an equal commit is answered 200.
    pub(crate) const fn repeats_are_equal(&self) -> bool {
        self.idempotent_commit && !self.hmac_only
    }
}
