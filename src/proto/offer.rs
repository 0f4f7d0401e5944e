//! An offer: what is said of a chunk before its bytes.

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::code::Code;
use crate::id::{ChunkRef, Digest, GroupId, IncidentId, StreamId, length_prefix};
use crate::media::{Media, Priority, Profile, REFUSED_VARIANTS, Variant};

/// Longest free text of an offer (name, segment, source, clock), in bytes.
pub const MAX_TEXT_BYTES: usize = 255;

/// A point in time, kept as it was written: the core gets the client's own text.
#[derive(Clone, PartialEq, Eq)]
pub struct Timestamp {
    text: Box<str>,
    unix_ms: i64,
}

impl Timestamp {
    /// Reads RFC 3339, fraction allowed.
    ///
    /// # Errors
    /// [`Code::InvalidTime`].
    pub fn parse(text: &str) -> Result<Self, Code> {
        if text.len() > 64 {
            return Err(Code::InvalidTime);
        }
        let at = OffsetDateTime::parse(text, &Rfc3339).map_err(|_| Code::InvalidTime)?;
        let unix_ms = i64::try_from(at.unix_timestamp_nanos() / 1_000_000).map_err(|_| Code::InvalidTime)?;
        Ok(Self { text: text.into(), unix_ms })
    }

    /// Writes milliseconds since the Unix epoch as RFC 3339 in UTC.
    #[must_use]
    pub fn from_unix_ms(unix_ms: i64) -> Self {
        let at = OffsetDateTime::from_unix_timestamp_nanos(i128::from(unix_ms) * 1_000_000)
            .unwrap_or(OffsetDateTime::UNIX_EPOCH);
        let text = at.format(&Rfc3339).unwrap_or_default();
        Self { text: text.into(), unix_ms }
    }

    /// The text as it came.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Milliseconds since the Unix epoch, by the client's clock.
    #[must_use]
    pub const fn unix_ms(&self) -> i64 {
        self.unix_ms
    }
}

impl std::fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Timestamp(…)")
    }
}

impl serde::Serialize for Timestamp {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.text)
    }
}

impl<'de> serde::Deserialize<'de> for Timestamp {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(d)?;
        Self::parse(&text).map_err(|_| serde::de::Error::custom("not RFC 3339"))
    }
}

/// A checked offer (`wire.md`, "Native HTTP"; `docs/protocol.md` §4).
#[derive(Clone, PartialEq, Eq)]
pub struct Offer {
    /// Incident.
    pub incident: IncidentId,
    /// Stream.
    pub stream: StreamId,
    /// Chunk index in the stream, from 1.
    pub index: u64,
    /// Media type.
    pub media: Media,
    /// Start of the recorded stretch.
    pub started: Timestamp,
    /// Its end.
    pub ended: Timestamp,
    /// Bytes in all.
    pub length: u64,
    /// SHA-256 of the bytes.
    pub sha256: Digest,
    /// `original_filename` at the core; empty if none.
    pub name: String,
    /// The role the client claims; it may only narrow.
    pub role: Option<Variant>,
    /// Capture group, if the client names it; must be the capability's.
    pub group: Option<GroupId>,
    /// Source segment.
    pub segment: Option<String>,
    /// Source sequence, monotonic in the group.
    pub sequence: Option<u64>,
    /// Capture source.
    pub source: Option<String>,
    /// Source clock.
    pub clock: Option<String>,
    /// Quality profile.
    pub profile: Option<Profile>,
    /// Upload priority.
    pub priority: Option<Priority>,
    /// Which try to bring the bytes this is, from 1.
    pub attempt: u64,
    /// Ed25519 signature of the capture client over [`Offer::signed_bytes`].
    pub sig: Option<[u8; 64]>,
}

impl Offer {
    /// The chunk's name on the wire.
    #[must_use]
    pub fn chunk_ref(&self) -> ChunkRef {
        ChunkRef::of(&self.incident, &self.stream, self.index)
    }

    /// What `sig` signs: "waystation-offer-v1" and incident, stream, index, length, lower-case
    /// hex SHA-256, started, ended as strings, each preceded by its 4-byte length.
    #[must_use]
    pub fn signed_bytes(&self) -> Vec<u8> {
        let (index, length, sha256) = (self.index.to_string(), self.length.to_string(), self.sha256.to_hex());
        let parts = [
            "waystation-offer-v1",
            self.incident.as_str(),
            self.stream.as_str(),
            &index,
            &length,
            &sha256,
            self.started.as_str(),
            self.ended.as_str(),
        ];
        let mut out = Vec::with_capacity(256);
        for part in parts {
            out.extend_from_slice(&length_prefix(part));
            out.extend_from_slice(part.as_bytes());
        }
        out
    }

    /// The rules that hold between the fields, whatever way they came.
    ///
    /// # Errors
    /// The code of the first rule that is broken.
    pub fn check(&self) -> Result<(), Code> {
        if self.index == 0 {
            return Err(Code::InvalidChunkIndex);
        }
        if self.ended.unix_ms() < self.started.unix_ms() {
            return Err(Code::InvalidTime);
        }
        if self.length == 0 {
            return Err(Code::LengthMismatch);
        }
        if self.attempt == 0 {
            return Err(Code::InvalidAttempt);
        }
        let texts = [Some(&self.name), self.segment.as_ref(), self.source.as_ref(), self.clock.as_ref()];
        for text in texts.into_iter().flatten() {
            if text.len() > MAX_TEXT_BYTES || text.chars().any(char::is_control) {
                return Err(Code::InvalidChunkHeader);
            }
        }
        Ok(())
    }
}

impl std::fmt::Debug for Offer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Offer").field("media", &self.media).field("role", &self.role).finish_non_exhaustive()
    }
}

/// Reads a claimed role.
///
/// # Errors
/// [`Code::RoleRefused`] for the roles refused by name, [`Code::InvalidRole`] for unknown words.
pub fn parse_role(text: &str) -> Result<Variant, Code> {
    if REFUSED_VARIANTS.contains(&text) {
        return Err(Code::RoleRefused);
    }
    Variant::parse(text).ok_or(Code::InvalidRole)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_keep_their_text() {
        let t = Timestamp::parse("2026-06-10T14:00:00.123456789+02:00").unwrap();
        assert_eq!(t.as_str(), "2026-06-10T14:00:00.123456789+02:00");
        assert_eq!(t.unix_ms(), 1_781_092_800_123);
        assert_eq!(Timestamp::parse("yesterday"), Err(Code::InvalidTime));
        assert_eq!(Timestamp::from_unix_ms(1_781_092_800_123).as_str(), "2026-06-10T12:00:00.123Z");
    }

    #[test]
    fn refused_roles_have_their_own_code() {
        assert_eq!(parse_role("preview_only"), Err(Code::RoleRefused));
        assert_eq!(parse_role("whatever"), Err(Code::InvalidRole));
        assert_eq!(parse_role("live_preview"), Ok(Variant::LivePreview));
    }
}
