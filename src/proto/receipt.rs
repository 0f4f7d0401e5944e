//! The core's receipt: a compact JWS over what it stored. The relay passes it on unread; clients
//! and contacts verify it, since the relay is no authority (design, "Words").

use serde::{Deserialize, Serialize};

use crate::id::{Digest, IncidentId, StreamId};
use crate::offer::Offer;

/// `typ` of a receipt's header.
pub const RECEIPT_TYP: &str = "waystation-receipt+jwt";
/// Longest receipt passed on, in bytes.
pub const MAX_RECEIPT_BYTES: usize = 2048;

/// The payload of a receipt. Header: `typ` [`RECEIPT_TYP`], `alg` `Ed25519`, `kid` of the JWKS.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// The core, as in `iss` of its capabilities.
    pub iss: String,
    /// When it was stored, Unix seconds.
    pub iat: i64,
    /// Incident.
    pub incident: IncidentId,
    /// Stream.
    pub stream: StreamId,
    /// Index.
    pub index: u64,
    /// Bytes.
    pub length: u64,
    /// SHA-256 of the bytes, lower-case hex.
    pub sha256: Digest,
}

impl Receipt {
    /// Whether it speaks of exactly this chunk.
    #[must_use]
    pub fn is_for(&self, offer: &Offer) -> bool {
        self.incident == offer.incident
            && self.stream == offer.stream
            && self.index == offer.index
            && self.length == offer.length
            && self.sha256 == offer.sha256
    }
}
