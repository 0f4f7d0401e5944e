//! What a capability says, and the rules it must keep. Signatures are checked elsewhere
//! (`capability/`), on the bytes these claims were read from.

use serde::{Deserialize, Serialize};

use crate::code::Code;
use crate::id::{GroupId, IncidentId, SessionId, StreamId};
use crate::media::{Media, Variant};
use crate::offer::Offer;

/// `typ` of the header of our capabilities.
pub const JWT_TYP: &str = "waystation-capability+jwt";
/// First part of a Proofline token (contract A.5).
pub const PROOFLINE_PREFIX: &str = "proofline-relay-capability-v1";
/// `version` claim of a Proofline token.
pub const PROOFLINE_VERSION: &str = "proofline.relay-capability.v1";
/// Longest token read, in bytes.
pub const MAX_TOKEN_BYTES: usize = 16 * 1024;
/// `iat` may be this far ahead of the relay's clock, in seconds.
pub const MAX_IAT_AHEAD_S: i64 = 60;
/// `commit_exp` when the claim is absent: `exp` and this many seconds.
pub const DEFAULT_COMMIT_S: i64 = 24 * 3600;

/// What a capability is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Use {
    /// To bring chunks.
    Upload,
    /// To watch.
    Fanout,
}

/// Which of the two formats it came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// Our JWT.
    Jwt,
    /// Proofline's HMAC token.
    Proofline,
}

/// One stream a capability reaches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneGrant {
    /// The stream.
    pub stream: StreamId,
    /// Its role; `None` in a Proofline token.
    pub variant: Option<Variant>,
    /// Media types it may carry.
    pub media: Vec<Media>,
    /// Largest chunk, in bytes.
    pub max_chunk_bytes: u64,
    /// Highest chunk index: the core compares it with the index, it does not count (contract A.2).
    pub max_chunks: u64,
}

/// What a capability allows, after its rules were checked.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// Its format.
    pub format: Format,
    /// Its use.
    pub use_: Use,
    /// The relay session.
    pub session: SessionId,
    /// The incident.
    pub incident: IncidentId,
    /// The capture group; `None` in a Proofline token.
    pub group: Option<GroupId>,
    /// The streams it reaches; empty in a fan-out JWT: every watchable lane of the group.
    pub lanes: Vec<LaneGrant>,
    /// Unix seconds from which on it is expired; no leeway.
    pub exp: i64,
    /// Unix seconds until which the core takes commits of bytes accepted before `exp`.
    pub commit_exp: i64,
    /// `jti`, for revocation lists.
    pub jti: Option<String>,
    /// The capture client's Ed25519 key; then every offer must be signed.
    pub client_key: Option<[u8; 32]>,
}

impl std::fmt::Debug for Grant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // `jti` and the client's key name their holder.
        f.debug_struct("Grant").field("format", &self.format).field("use", &self.use_).finish_non_exhaustive()
    }
}

impl Grant {
    /// Expired at `now` (Unix seconds): equal is expired.
    #[must_use]
    pub const fn expired(&self, now: i64) -> bool {
        now >= self.exp
    }

    /// The stream's grant, if the capability reaches it.
    #[must_use]
    pub fn lane(&self, stream: &StreamId) -> Option<&LaneGrant> {
        self.lanes.iter().find(|lane| lane.stream == *stream)
    }

    /// Whether this upload capability covers `offer` at `now`, in the core's order: expiry, use,
    /// binding, limits (contract A.5, A.2 rows 13-14). Returns the effective role.
    ///
    /// # Errors
    /// The code of the first rule that is broken.
    pub fn covers(&self, offer: &Offer, now: i64) -> Result<Variant, Code> {
        if self.expired(now) {
            return Err(Code::CapabilityExpired);
        }
        self.reaches(offer)
    }

    /// The same but for expiry: what was accepted in time is committed by `commit_exp`.
    ///
    /// # Errors
    /// The code of the first rule that is broken.
    pub fn reaches(&self, offer: &Offer) -> Result<Variant, Code> {
        if self.use_ != Use::Upload {
            return Err(Code::CapabilityWrongUse);
        }
        if self.incident != offer.incident {
            return Err(Code::CapabilityWrongBinding);
        }
        if let (Some(claimed), Some(group)) = (&offer.group, &self.group)
            && claimed != group
        {
            return Err(Code::CapabilityWrongBinding);
        }
        let lane = self.lane(&offer.stream).ok_or(Code::CapabilityWrongBinding)?;
        let within =
            offer.length <= lane.max_chunk_bytes && offer.index <= lane.max_chunks && lane.media.contains(&offer.media);
        if !within {
            return Err(Code::CapabilityLimitExceeded);
        }
        let granted = lane.variant.unwrap_or_else(|| Variant::of_unlabelled(offer.media));
        Ok(granted.narrowed(offer.role))
    }

    /// Whether this fan-out capability lets its holder watch `variant` of `stream`.
    #[must_use]
    pub fn watches(&self, stream: &StreamId, variant: Variant) -> bool {
        variant.watchable() && (self.lanes.is_empty() || self.lane(stream).is_some())
    }
}

/// The payload of our JWT (`wire.md`, "Capability").
#[derive(Clone, Serialize, Deserialize)]
pub struct JwtClaims {
    /// Issuer: the core.
    pub iss: String,
    /// Audience: the relay's configured one is among them.
    pub aud: Audience,
    /// Issued at, Unix seconds.
    pub iat: i64,
    /// Expires, Unix seconds.
    pub exp: i64,
    /// Id, for revocation.
    pub jti: String,
    /// Relay session.
    pub sid: SessionId,
    /// What for.
    #[serde(rename = "use")]
    pub use_: Use,
    /// Incident.
    pub incident: IncidentId,
    /// Capture group.
    pub group: GroupId,
    /// Lanes.
    pub lanes: Vec<JwtLane>,
    /// Commits are taken until then.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub commit_exp: Option<i64>,
    /// The client's key (RFC 7800).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub cnf: Option<Confirmation>,
}

/// `aud`: one text or several (RFC 7519 §4.1.3).
#[derive(Clone, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Audience {
    /// One.
    One(String),
    /// Several.
    Many(Vec<String>),
}

impl Audience {
    /// Whether `wanted` is among them.
    #[must_use]
    pub fn has(&self, wanted: &str) -> bool {
        match self {
            Self::One(one) => one == wanted,
            Self::Many(many) => many.iter().any(|one| one == wanted),
        }
    }
}

/// One entry of `lanes`.
#[derive(Clone, Serialize, Deserialize)]
pub struct JwtLane {
    /// Stream.
    pub stream: StreamId,
    /// Role.
    pub variant: Variant,
    /// Media type.
    pub media: Media,
    /// Largest chunk, in bytes.
    pub max_chunk_bytes: u64,
    /// Highest index.
    pub max_chunks: u64,
}

/// `cnf` (RFC 7800 §3.2).
#[derive(Clone, Serialize, Deserialize)]
pub struct Confirmation {
    /// The key.
    pub jwk: Jwk,
}

/// An Ed25519 public key as a JWK (RFC 8037 §2). Other members are ignored.
#[derive(Clone, Serialize, Deserialize)]
pub struct Jwk {
    /// "OKP".
    pub kty: String,
    /// "Ed25519".
    #[serde(default)]
    pub crv: String,
    /// The key, base64url without padding.
    #[serde(default)]
    pub x: String,
    /// Its name.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub kid: Option<String>,
}

impl Jwk {
    /// The 32 bytes of an Ed25519 key; `None` for any other key.
    #[must_use]
    pub fn ed25519(&self) -> Option<[u8; 32]> {
        use base64::Engine as _;
        if self.kty != "OKP" || self.crv != "Ed25519" {
            return None;
        }
        base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(&self.x).ok()?.try_into().ok()
    }

    /// Writes an Ed25519 key.
    #[must_use]
    pub fn from_ed25519(key: &[u8; 32], kid: Option<String>) -> Self {
        use base64::Engine as _;
        Self {
            kty: "OKP".into(),
            crv: "Ed25519".into(),
            x: base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(key),
            kid,
        }
    }
}

impl JwtClaims {
    /// Checks what does not depend on a request.
    ///
    /// # Errors
    /// [`Code::CapabilityInvalid`], or [`Code::CapabilityExpired`] at `exp` and later.
    pub fn into_grant(self, audience: &str, now: i64) -> Result<Grant, Code> {
        let upload_without_lanes = self.use_ == Use::Upload && self.lanes.is_empty();
        let empty_lane = self.lanes.iter().any(|lane| lane.max_chunk_bytes == 0 || lane.max_chunks == 0);
        let commit_exp = self.commit_exp.unwrap_or(self.exp.saturating_add(DEFAULT_COMMIT_S));
        let sound = self.aud.has(audience)
            && self.iat <= now.saturating_add(MAX_IAT_AHEAD_S)
            && self.exp > self.iat
            && commit_exp >= self.exp
            && !self.jti.is_empty();
        if !sound || upload_without_lanes || empty_lane {
            return Err(Code::CapabilityInvalid);
        }
        let client_key = match &self.cnf {
            None => None,
            Some(cnf) => Some(cnf.jwk.ed25519().ok_or(Code::CapabilityInvalid)?),
        };
        if now >= self.exp {
            return Err(Code::CapabilityExpired);
        }
        let lane = |lane: JwtLane| LaneGrant {
            stream: lane.stream,
            variant: Some(lane.variant),
            media: vec![lane.media],
            max_chunk_bytes: lane.max_chunk_bytes,
            max_chunks: lane.max_chunks,
        };
        Ok(Grant {
            format: Format::Jwt,
            use_: self.use_,
            session: self.sid,
            incident: self.incident,
            group: Some(self.group),
            lanes: self.lanes.into_iter().map(lane).collect(),
            exp: self.exp,
            commit_exp,
            jti: Some(self.jti),
            client_key,
        })
    }
}

/// The payload of a Proofline token, in the order it is minted (contract A.5).
#[derive(Clone, Serialize, Deserialize)]
pub struct ProoflineClaims {
    /// [`PROOFLINE_VERSION`].
    pub version: String,
    /// Session.
    pub relay_session_id: String,
    /// `upload` or `fanout`; anything else is a wrong role, not a wrong token.
    pub role: String,
    /// Incident.
    pub incident_id: String,
    /// Stream.
    pub stream_id: String,
    /// Issued at; never compared with the clock.
    pub iat: i64,
    /// Expires.
    pub exp: i64,
    /// Largest chunk.
    pub max_chunk_bytes: i64,
    /// Highest index.
    pub max_chunks: i64,
    /// Media types.
    pub allowed_media_types: Vec<String>,
}

impl ProoflineClaims {
    /// Checks the claims in the core's order: claims, expiry, role.
    ///
    /// # Errors
    /// [`Code::CapabilityInvalid`], [`Code::CapabilityExpired`], [`Code::CapabilityWrongUse`].
    pub fn into_grant(self, now: i64) -> Result<Grant, Code> {
        let invalid = |_| Code::CapabilityInvalid;
        let sound = self.version == PROOFLINE_VERSION
            && !self.role.is_empty()
            && self.iat > 0
            && self.exp > self.iat
            && self.max_chunk_bytes > 0
            && self.max_chunks > 0
            && !self.allowed_media_types.is_empty();
        if !sound {
            return Err(Code::CapabilityInvalid);
        }
        let session = SessionId::new(&self.relay_session_id).map_err(invalid)?;
        let incident = IncidentId::new(&self.incident_id).map_err(invalid)?;
        let stream = StreamId::new(&self.stream_id).map_err(invalid)?;
        if now >= self.exp {
            return Err(Code::CapabilityExpired);
        }
        let use_ = match self.role.as_str() {
            "upload" => Use::Upload,
            "fanout" => Use::Fanout,
            _ => return Err(Code::CapabilityWrongUse),
        };
        let lane = LaneGrant {
            stream,
            variant: None,
            media: self.allowed_media_types.iter().filter_map(|text| Media::parse(text)).collect(),
            max_chunk_bytes: self.max_chunk_bytes.unsigned_abs(),
            max_chunks: self.max_chunks.unsigned_abs(),
        };
        Ok(Grant {
            format: Format::Proofline,
            use_,
            session,
            incident,
            group: None,
            lanes: vec![lane],
            exp: self.exp,
            commit_exp: self.exp,
            jti: None,
            client_key: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims() -> JwtClaims {
        serde_json::from_value(serde_json::json!({
            "iss": "core", "aud": "relay", "iat": 1000, "exp": 1300, "jti": "j", "sid": "s", "use": "upload",
            "incident": "i", "group": "g", "extra": true,
            "lanes": [{"stream": "a", "variant": "audio_priority", "media": "audio", "max_chunk_bytes": 10, "max_chunks": 2}],
        }))
        .unwrap()
    }

    fn offer() -> Offer {
        let header = r#"incident="i", stream="a", index=1, media="audio", started="2026-06-10T12:00:00Z", ended="2026-06-10T12:00:02Z""#;
        crate::dictionary::parse_offer(header, crate::Digest([0; 32]), Some(10)).unwrap()
    }

    #[test]
    fn times_have_no_leeway_but_iat() {
        assert!(claims().into_grant("relay", 1299).is_ok());
        assert_eq!(claims().into_grant("relay", 1300), Err(Code::CapabilityExpired));
        assert!(claims().into_grant("relay", 940).is_ok());
        assert_eq!(claims().into_grant("relay", 939), Err(Code::CapabilityInvalid));
        assert_eq!(claims().into_grant("other", 1000), Err(Code::CapabilityInvalid));
        assert_eq!(claims().into_grant("relay", 1000).unwrap().commit_exp, 1300 + DEFAULT_COMMIT_S);
    }

    #[test]
    fn an_offer_is_covered_in_the_cores_order() {
        let grant = claims().into_grant("relay", 1000).unwrap();
        assert_eq!(grant.covers(&offer(), 1000), Ok(Variant::AudioPriority));
        assert_eq!(grant.covers(&offer(), 1300), Err(Code::CapabilityExpired));
        let mut late = offer();
        late.index = 3;
        assert_eq!(grant.covers(&late, 1000), Err(Code::CapabilityLimitExceeded));
        let mut other = offer();
        other.stream = StreamId::new("b").unwrap();
        assert_eq!(grant.covers(&other, 1000), Err(Code::CapabilityWrongBinding));
        let mut watching = grant.clone();
        watching.use_ = Use::Fanout;
        assert_eq!(watching.covers(&other, 1000), Err(Code::CapabilityWrongUse));
    }

    #[test]
    fn a_bad_client_key_is_no_key_at_all() {
        let mut bad = claims();
        bad.cnf =
            Some(Confirmation { jwk: Jwk { kty: "RSA".into(), crv: String::new(), x: String::new(), kid: None } });
        assert_eq!(bad.into_grant("relay", 1000), Err(Code::CapabilityInvalid));
    }
}
