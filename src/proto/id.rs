//! Names of things. Their `Debug` never shows the text: identifiers are not for logs (promise 7).

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest as _, Sha256};

/// Longest identifier accepted, in bytes. Proofline's are 22 to 40.
pub const MAX_ID_BYTES: usize = 200;

/// A text that can't be an identifier: empty, longer than [`MAX_ID_BYTES`], or not visible ASCII.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an identifier")]
pub struct InvalidId;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(std::sync::Arc<str>);

        impl $name {
            /// Takes a text of 1 to [`MAX_ID_BYTES`] visible ASCII characters.
            ///
            /// # Errors
            /// [`InvalidId`] for anything else.
            pub fn new(text: &str) -> Result<Self, InvalidId> {
                let visible = text.bytes().all(|b| (0x21..=0x7e).contains(&b));
                if text.is_empty() || text.len() > MAX_ID_BYTES || !visible {
                    return Err(InvalidId);
                }
                Ok(Self(text.into()))
            }

            /// The text, for the wire and for the core; never for a log.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($name), "(…)"))
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.serialize_str(&self.0)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(d)?;
                Self::new(&text).map_err(serde::de::Error::custom)
            }
        }
    };
}

id!(
    /// One incident.
    IncidentId
);
id!(
    /// One capture group: one recording of an incident.
    GroupId
);
id!(
    /// One stream: the core's unit of consecutive chunks; a lane is a chain of them.
    StreamId
);
id!(
    /// One relay session (`sid`), named by the core.
    SessionId
);

/// The name of a chunk on the wire: 16 bytes that say nothing of what they name.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChunkRef(pub [u8; 16]);

impl ChunkRef {
    /// `wire.md`, "Chunk reference": the first 16 bytes of SHA-256 over "waystation-chunk-v1",
    /// incident, stream and decimal index, each preceded by its length as 4 bytes, big-endian.
    #[must_use]
    pub fn of(incident: &IncidentId, stream: &StreamId, index: u64) -> Self {
        let mut hash = Sha256::new();
        let index = index.to_string();
        for part in ["waystation-chunk-v1", incident.as_str(), stream.as_str(), &index] {
            hash.update(length_prefix(part));
            hash.update(part);
        }
        let mut out = [0; 16];
        out.copy_from_slice(&hash.finalize()[..16]);
        Self(out)
    }

    /// Reads the 22 characters of base64url without padding.
    ///
    /// # Errors
    /// [`InvalidId`] for anything else.
    pub fn parse(text: &str) -> Result<Self, InvalidId> {
        if text.len() != 22 {
            return Err(InvalidId);
        }
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| InvalidId)?;
        bytes.try_into().map(Self).map_err(|_| InvalidId)
    }
}

impl fmt::Display for ChunkRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&URL_SAFE_NO_PAD.encode(self.0))
    }
}

impl fmt::Debug for ChunkRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ChunkRef(…)")
    }
}

impl serde::Serialize for ChunkRef {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for ChunkRef {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(d)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

/// SHA-256 of a chunk's bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// Reads 64 characters `[0-9a-f]`.
    ///
    /// # Errors
    /// [`InvalidId`] for anything else; upper case is refused as the core refuses it.
    pub fn from_hex(text: &str) -> Result<Self, InvalidId> {
        let bytes = text.as_bytes();
        if bytes.len() != 64 {
            return Err(InvalidId);
        }
        let nibble = |b: u8| match b {
            b'0'..=b'9' => Ok(b - b'0'),
            b'a'..=b'f' => Ok(b - b'a' + 10),
            _ => Err(InvalidId),
        };
        let mut out = [0; 32];
        for (i, pair) in bytes.chunks_exact(2).enumerate() {
            out[i] = nibble(pair[0])? << 4 | nibble(pair[1])?;
        }
        Ok(Self(out))
    }

    /// Lower-case hex, as the core writes it.
    #[must_use]
    pub fn to_hex(&self) -> String {
        let mut out = String::with_capacity(64);
        for b in self.0 {
            out.push(char::from_digit(u32::from(b >> 4), 16).unwrap_or('0'));
            out.push(char::from_digit(u32::from(b & 15), 16).unwrap_or('0'));
        }
        out
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Digest(…)")
    }
}

impl serde::Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.to_hex())
    }
}

impl<'de> serde::Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(d)?;
        Self::from_hex(&text).map_err(serde::de::Error::custom)
    }
}

/// The length of `part` as 4 bytes, big-endian: how `wire.md` separates strings under a hash or
/// a signature.
#[must_use]
pub fn length_prefix(part: &str) -> [u8; 4] {
    u32::try_from(part.len()).unwrap_or(u32::MAX).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ref_round_trips_and_separates_its_parts() {
        let incident = IncidentId::new("incident_1").unwrap();
        let stream = StreamId::new("stream_1").unwrap();
        let r = ChunkRef::of(&incident, &stream, 1);
        assert_eq!(ChunkRef::parse(&r.to_string()), Ok(r));
        let shifted = ChunkRef::of(&IncidentId::new("incident_1s").unwrap(), &StreamId::new("tream_1").unwrap(), 1);
        assert_ne!(r, shifted);
        assert_ne!(r, ChunkRef::of(&incident, &stream, 11));
    }

    #[test]
    fn a_ref_has_one_spelling() {
        assert!(ChunkRef::parse("AAAAAAAAAAAAAAAAAAAAAA").is_ok());
        assert!(ChunkRef::parse("AAAAAAAAAAAAAAAAAAAAAB").is_err(), "spare bits set");
        assert!(ChunkRef::parse("AAAAAAAAAAAAAAAAAAAAAA==").is_err());
        assert!(ChunkRef::parse("").is_err());
    }

    #[test]
    fn ids_and_digests_refuse_what_they_cannot_be() {
        assert!(StreamId::new("").is_err());
        assert!(StreamId::new("a b").is_err());
        assert!(StreamId::new("a\n").is_err());
        assert!(StreamId::new(&"a".repeat(MAX_ID_BYTES + 1)).is_err());
        assert!(Digest::from_hex(&"A".repeat(64)).is_err());
        let d = Digest([0xa5; 32]);
        assert_eq!(Digest::from_hex(&d.to_hex()), Ok(d));
    }

    #[test]
    fn nothing_prints_an_identifier() {
        let id = IncidentId::new("canary").unwrap();
        assert!(!format!("{id:?}").contains("canary"));
    }
}
