//! What is sealed beside a chunk's bytes, and the capabilities of a stream.
//!
//! Whether a commit attempt was made at the core is not among it: after a restart every
//! recovered chunk is treated as possibly attempted, so the mark need not be durable.

use std::collections::BTreeMap;

use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
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

/// Signatures kept beside one capability; about 100 bytes each.
const MAX_SIGS: usize = 512;

/// A capability brought for a stream; it may forward chunks whose own one ran out.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamCapability {
    /// The stream.
    pub stream: StreamId,
    /// The capability, verbatim.
    pub capability: String,
    /// What it allows.
    pub grant: Grant,
    /// Which of the stream's files it lies in.
    #[serde(default)]
    pub slot: u8,
    /// Where it binds its holder's key: that holder's signatures over chunks that came with another
    /// capability, by index.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sigs: BTreeMap<u64, String>,
}

impl StreamCapability {
    /// A capability for one of its streams, in the first file.
    #[must_use]
    pub const fn new(stream: StreamId, capability: String, grant: Grant) -> Self {
        Self { stream, capability, grant, slot: 0, sigs: BTreeMap::new() }
    }

    /// The offer as this capability may bring it to the core; `None` if its grant does not cover it,
    /// or binds a key that did not sign it.
    #[must_use]
    pub fn carries(&self, offer: &Offer) -> Option<Offer> {
        self.grant.reaches(offer).ok()?;
        let Some(key) = &self.grant.client_key else { return Some(offer.clone()) };
        let theirs = self.sigs.get(&offer.index).and_then(|sig| URL_SAFE_NO_PAD.decode(sig).ok()?.try_into().ok());
        let key = UnparsedPublicKey::new(&ED25519, key);
        let sig = [offer.sig, theirs].into_iter().flatten().find(|sig| key.verify(&offer.signed_bytes(), sig).is_ok());
        sig.map(|sig| Offer { sig: Some(sig), ..offer.clone() })
    }

    /// Keeps its holder's signature over a chunk; `false` if it is here, or there are too many.
    pub(super) fn sign(&mut self, index: u64, sig: &[u8; 64]) -> bool {
        let sig = URL_SAFE_NO_PAD.encode(sig);
        let new = self.sigs.get(&index) != Some(&sig) && (self.sigs.len() < MAX_SIGS || self.sigs.contains_key(&index));
        if new {
            self.sigs.insert(index, sig);
        }
        new
    }

    /// What the same holder signed under a capability of before.
    pub(super) fn take_over_sigs(&mut self, other: &Self) {
        if self.grant.client_key == other.grant.client_key {
            let room = MAX_SIGS.saturating_sub(self.sigs.len());
            self.sigs.extend(other.sigs.iter().take(room).map(|(index, sig)| (*index, sig.clone())));
        }
    }

    /// Whether nothing of this stream that `other` carries is lost without it, once its signatures
    /// are taken over.
    pub(super) fn makes_needless(&self, other: &Self) -> bool {
        let (mine, theirs) = (self.grant.lane(&self.stream), other.grant.lane(&self.stream));
        let (Some(mine), Some(theirs)) = (mine, theirs) else { return false };
        let key = self.grant.client_key.is_none() || self.grant.client_key == other.grant.client_key;
        key && self.grant.commit_exp >= other.grant.commit_exp
            && (self.grant.group.is_none() || self.grant.group == other.grant.group)
            && mine.max_chunks >= theirs.max_chunks
            && mine.max_chunk_bytes >= theirs.max_chunk_bytes
            && theirs.media.iter().all(|media| mine.media.contains(media))
    }
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
        let stream = StreamCapability::new(meta.offer.stream.clone(), meta.capability.clone(), meta.grant.clone());
        let printed = format!("{meta:?} {stream:?}");
        assert!(!printed.contains(&meta.capability) && !printed.contains("stream-1"), "{printed}");
    }
}
