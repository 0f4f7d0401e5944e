//! What is sealed beside a chunk's bytes, and the newest capability of a stream.
//!
//! Whether a commit attempt was made at the core is not among it: after a restart every
//! recovered chunk is treated as possibly attempted, so the mark need not be durable.

use serde::{Deserialize, Serialize};

use super::disk::BootId;
use crate::proto::claims::Grant;
use crate::proto::message::OfferBody;
use crate::proto::{Offer, StreamId, Variant};

/// All that is needed to forward a chunk after a restart.
#[derive(Clone, PartialEq, Eq)]
pub struct Meta {
    /// What was said of it.
    pub offer: Offer,
    /// Its effective role: the capability's, narrowed by the client's claim.
    pub variant: Variant,
    /// The capability it came with, verbatim.
    pub capability: String,
    /// What that capability allows.
    pub grant: Grant,
    /// The capability's signature was verified here; otherwise the core's preflight vouched for it.
    pub trust_verified: bool,
    /// When the offer was accepted, in milliseconds since the Unix epoch.
    pub accepted_unix_ms: i64,
}

impl std::fmt::Debug for Meta {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Meta").field("variant", &self.variant).finish_non_exhaustive()
    }
}

/// The newest capability brought for a stream; it may forward chunks whose own one ran out.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamCapability {
    /// The stream.
    pub stream: StreamId,
    /// The capability, verbatim.
    pub capability: String,
    /// What it allows.
    pub grant: Grant,
}

impl std::fmt::Debug for StreamCapability {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("StreamCapability(…)")
    }
}

/// The JSON under the seal. Unknown members are ignored, so that an older relay reads it too.
#[derive(Serialize, Deserialize)]
struct Stored {
    offer: OfferBody,
    variant: Variant,
    capability: String,
    grant: Grant,
    trust_verified: bool,
    accepted_unix_ms: i64,
    /// In which boot the file was begun.
    boot: Option<BootId>,
}

/// Writes what is sealed beside a chunk.
pub(crate) fn encode(meta: &Meta, boot: Option<BootId>) -> serde_json::Result<Vec<u8>> {
    serde_json::to_vec(&Stored {
        offer: OfferBody::new(0, &meta.offer),
        variant: meta.variant,
        capability: meta.capability.clone(),
        grant: meta.grant.clone(),
        trust_verified: meta.trust_verified,
        accepted_unix_ms: meta.accepted_unix_ms,
        boot,
    })
}

/// Reads it back; `None` if it is not what [`encode`] wrote.
pub(crate) fn decode(json: &[u8]) -> Option<(Meta, Option<BootId>)> {
    let stored: Stored = serde_json::from_slice(json).ok()?;
    let meta = Meta {
        offer: stored.offer.into_offer().ok()?,
        variant: stored.variant,
        capability: stored.capability,
        grant: stored.grant,
        trust_verified: stored.trust_verified,
        accepted_unix_ms: stored.accepted_unix_ms,
    };
    Some((meta, stored.boot))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::staging::fixture;

    #[test]
    fn everything_said_of_a_chunk_comes_back() {
        let mut meta = fixture::meta(7, b"bytes");
        meta.offer.name = "näme \"x\"".into();
        meta.offer.role = Some(Variant::EvidenceMaster);
        meta.offer.segment = Some("s".into());
        meta.offer.sequence = Some(u64::MAX);
        meta.offer.attempt = 3;
        meta.offer.sig = Some([200; 64]);
        meta.grant.client_key = Some([9; 32]);
        let json = encode(&meta, Some([5; 16])).unwrap();
        assert!(decode(&json).unwrap() == (meta, Some([5; 16])));
        assert!(decode(&json[..json.len() - 1]).is_none());
    }

    #[test]
    fn nothing_secret_is_printed() {
        let meta = fixture::meta(7, b"bytes");
        let stream = StreamCapability {
            stream: meta.offer.stream.clone(),
            capability: meta.capability.clone(),
            grant: meta.grant.clone(),
        };
        let printed = format!("{meta:?} {stream:?}");
        assert!(!printed.contains(&meta.capability) && !printed.contains("stream-1"), "{printed}");
    }
}
