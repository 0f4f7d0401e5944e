//! Both capabilities: Proofline's HMAC token and the Ed25519 JWT. Pure: keys and time are arguments.

pub(crate) mod jwt;
pub(crate) mod proofline;

use waystation_proto::claims::Use;

use crate::fields::{Chunk, Ids};
use crate::refusal::{self, Refusal};

/// What a capability is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    Preflight,
    Commit,
    Fanout,
}

impl Step {
    pub(crate) const fn wants(self) -> Use {
        match self {
            Self::Preflight | Self::Commit => Use::Upload,
            Self::Fanout => Use::Fanout,
        }
    }
}

/// What a capability allows on the stream it was shown for.
#[derive(Clone, Default)]
pub(crate) struct Pass {
    pub(crate) max_chunk_bytes: u64,
    pub(crate) max_chunks: u64,
    pub(crate) media: Vec<String>,
    /// Every commit must be signed by it.
    pub(crate) client_key: Option<[u8; 32]>,
    /// The capability names a group, no streams: the stream must be a watchable one of it.
    pub(crate) group: Option<String>,
}

impl Pass {
    /// Row 14 of A.2. The index is compared, not counted.
    pub(crate) fn covers(&self, chunk: &Chunk) -> Result<(), Refusal> {
        let media = self.media.iter().any(|media| media == chunk.media.as_str());
        if chunk.size > self.max_chunk_bytes || chunk.index > self.max_chunks || !media {
            return Err(refusal::CAPABILITY_LIMIT_EXCEEDED);
        }
        Ok(())
    }

    /// The client's signature over the chunk, where the capability binds a key (`wire.md`, `cnf` and `sig`).
    pub(crate) fn signed(&self, ids: &Ids, chunk: &Chunk, sig: &str) -> Result<(), Refusal> {
        use base64::Engine as _;
        let Some(key) = self.client_key else { return Ok(()) };
        let sig = base64::engine::general_purpose::URL_SAFE_NO_PAD
            .decode(sig)
            .map_err(|_| refusal::CAPABILITY_SIGNATURE_INVALID)?;
        aws_lc_rs::signature::UnparsedPublicKey::new(&aws_lc_rs::signature::ED25519, key)
            .verify(&signed_bytes(ids, chunk), &sig)
            .map_err(|_| refusal::CAPABILITY_SIGNATURE_INVALID)
    }
}

/// The bytes of [`waystation_proto::Offer::signed_bytes`], of a commit's fields: a commit has no offer,
/// and its identifiers may be such as an offer can't carry.
fn signed_bytes(ids: &Ids, chunk: &Chunk) -> Vec<u8> {
    let (index, size, sha256) = (chunk.index.to_string(), chunk.size.to_string(), chunk.sha256.to_hex());
    let parts =
        ["waystation-offer-v1", &ids.incident, &ids.stream, &index, &size, &sha256, &chunk.started, &chunk.ended];
    let mut out = Vec::with_capacity(256);
    for part in parts {
        out.extend_from_slice(&u32::try_from(part.len()).unwrap_or(u32::MAX).to_be_bytes());
        out.extend_from_slice(part.as_bytes());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signed_bytes_are_those_of_the_offer() {
        let header = r#"incident="i", stream="a", index=12, media="audio", started="2026-06-10T12:00:00Z", ended="2026-06-10T12:00:02Z""#;
        let offer =
            waystation_proto::dictionary::parse_offer(header, waystation_proto::Digest([7; 32]), Some(10)).unwrap();
        let ids = Ids { session: "s".into(), capability: "c".into(), incident: "i".into(), stream: "a".into() };
        let chunk = Chunk {
            index: 12,
            media: offer.media,
            started: offer.started.as_str().into(),
            ended: offer.ended.as_str().into(),
            size: 10,
            sha256: offer.sha256,
            filename: String::new(),
        };
        assert_eq!(signed_bytes(&ids, &chunk), offer.signed_bytes());
    }
}
