//! `PLPQENC1` frames (contract A.7): what a chunk's bytes are, from the device to the core.
//!
//! A frame is the magic, a version, a header of eleven fields in a fixed order, and AES-256-GCM
//! ciphertext with its tag; the header is the associated data. The key is that of the stream
//! ([`crate::keys::GroupKey::stream_key`]), the nonce is random. The header carries the chunk's
//! identity, so a frame that is moved to another place does not open.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use bytes::{BufMut, Bytes, BytesMut};
use waystation_proto::Media;
use waystation_proto::id::{IncidentId, StreamId};

use crate::keys::StreamKey;

/// Magic and version.
const PREFIX: &[u8; 10] = b"PLPQENC1\n\x01";
/// Longest header the core reads, in bytes.
const MAX_HEADER: usize = 16_384;
/// Bytes of a nonce.
pub const NONCE_BYTES: usize = 12;
/// Bytes of the tag after the ciphertext.
const TAG_BYTES: usize = 16;

const SCHEME: &str = "proofline-pq-envelope-v1";
const SUITE: &str = "proofline-pq-mlkem768-hkdfsha384-aes256gcm-v1";
const FIELDS: [&str; 11] = [
    "scheme",
    "suite_id",
    "digest",
    "envelope_id",
    "incident_id",
    "stream_id",
    "media_type",
    "chunk_index",
    "payload_type",
    "payload_aead",
    "payload_nonce",
];

/// Which chunk a frame is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Incident.
    pub incident: IncidentId,
    /// Stream.
    pub stream: StreamId,
    /// Media type.
    pub media: Media,
    /// Index, from 1.
    pub index: u64,
}

/// Why a frame can't be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// There is nothing to seal: the core refuses empty bodies.
    #[error("the chunk is empty")]
    Empty,
    /// The header would be longer than the core reads.
    #[error("the header is too long")]
    HeaderTooLong,
    /// The cipher failed.
    #[error("the cipher failed")]
    Cipher,
}

/// Why a frame is not opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// It is not a `PLPQENC1` frame as the core accepts it.
    #[error("not an envelope")]
    Malformed,
    /// Its header names another chunk.
    #[error("the envelope is of another chunk")]
    WrongIdentity,
    /// Key, header or ciphertext are not those it was sealed with.
    #[error("the envelope does not open")]
    Forged,
}

/// What a header says, before anything is proven.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Header<'a> {
    /// Free text of whoever sealed it.
    pub envelope_id: &'a str,
    incident: &'a str,
    stream: &'a str,
    media: &'a str,
    index: &'a str,
    nonce: [u8; NONCE_BYTES],
    header: &'a [u8],
    body: &'a [u8],
}

/// An opened frame.
pub struct Opened {
    /// Free text of whoever sealed it; proven with the rest.
    pub envelope_id: String,
    /// The plaintext.
    pub plaintext: Vec<u8>,
}

/// Seals a plaintext once. `nonce` must never be used again with this key.
///
/// # Errors
/// [`SealError`]
pub fn seal(
    key: &StreamKey,
    identity: &Identity,
    envelope_id: &str,
    nonce: [u8; NONCE_BYTES],
    plaintext: &[u8],
) -> Result<Bytes, SealError> {
    if plaintext.is_empty() {
        return Err(SealError::Empty);
    }
    let header = write_header(identity, envelope_id, &nonce)?;
    let mut out = BytesMut::with_capacity(PREFIX.len() + 4 + header.len() + plaintext.len() + TAG_BYTES);
    out.put_slice(PREFIX);
    out.put_u32(u32::try_from(header.len()).map_err(|_| SealError::HeaderTooLong)?);
    out.put_slice(&header);
    let body = out.len();
    out.put_slice(plaintext);
    let tag = cipher(key)
        .ok_or(SealError::Cipher)?
        .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::from(&header[..]), &mut out[body..])
        .map_err(|_| SealError::Cipher)?;
    out.put_slice(tag.as_ref());
    Ok(out.freeze())
}

/// Opens a frame that must be of the chunk `expected`.
///
/// # Errors
/// [`OpenError`]
pub fn open(key: &StreamKey, expected: &Identity, frame: &[u8]) -> Result<Opened, OpenError> {
    let header = peek(frame)?;
    if !header.is_of(expected) {
        return Err(OpenError::WrongIdentity);
    }
    let mut plaintext = header.body.to_vec();
    let length = cipher(key)
        .ok_or(OpenError::Forged)?
        .open_in_place(Nonce::assume_unique_for_key(header.nonce), Aad::from(header.header), &mut plaintext)
        .map_err(|_| OpenError::Forged)?
        .len();
    plaintext.truncate(length);
    Ok(Opened { envelope_id: header.envelope_id.into(), plaintext })
}

/// Reads the header as the core does; proves nothing.
///
/// # Errors
/// [`OpenError::Malformed`]
pub fn peek(frame: &[u8]) -> Result<Header<'_>, OpenError> {
    let rest = frame.strip_prefix(PREFIX).ok_or(OpenError::Malformed)?;
    let (length, rest) = rest.split_first_chunk::<4>().ok_or(OpenError::Malformed)?;
    let length = u32::from_be_bytes(*length) as usize;
    if length == 0 || length > MAX_HEADER || rest.len() <= length {
        return Err(OpenError::Malformed);
    }
    let (header, body) = rest.split_at(length);
    let mut left = header;
    let mut values = [&[][..]; FIELDS.len()];
    for (value, name) in values.iter_mut().zip(FIELDS) {
        *value = take_field(&mut left, name)?;
    }
    let [scheme, suite, digest, envelope_id, incident, stream, media, index, payload, aead, nonce] = values;
    let fixed = scheme == SCHEME.as_bytes()
        && suite == SUITE.as_bytes()
        && digest == b"SHA-384"
        && payload == b"chunk"
        && aead == b"AES-256-GCM";
    if !left.is_empty() || !fixed {
        return Err(OpenError::Malformed);
    }
    Ok(Header {
        envelope_id: text(envelope_id)?,
        incident: text(incident)?,
        stream: text(stream)?,
        media: text(media)?,
        index: text(index)?,
        nonce: nonce.try_into().map_err(|_| OpenError::Malformed)?,
        header,
        body,
    })
}

impl Header<'_> {
    /// Whether it names exactly this chunk.
    #[must_use]
    pub fn is_of(&self, identity: &Identity) -> bool {
        self.incident == identity.incident.as_str()
            && self.stream == identity.stream.as_str()
            && self.media == identity.media.as_str()
            && identity.index > 0
            && self.index == identity.index.to_string()
    }
}

impl std::fmt::Debug for Header<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Header(…)")
    }
}

impl std::fmt::Debug for Opened {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Opened(…)")
    }
}

fn cipher(key: &StreamKey) -> Option<LessSafeKey> {
    UnboundKey::new(&AES_256_GCM, &key.0[..]).ok().map(LessSafeKey::new)
}

fn write_header(identity: &Identity, envelope_id: &str, nonce: &[u8]) -> Result<Vec<u8>, SealError> {
    let index = identity.index.to_string();
    let values: [&[u8]; FIELDS.len()] = [
        SCHEME.as_bytes(),
        SUITE.as_bytes(),
        b"SHA-384",
        envelope_id.as_bytes(),
        identity.incident.as_str().as_bytes(),
        identity.stream.as_str().as_bytes(),
        identity.media.as_str().as_bytes(),
        index.as_bytes(),
        b"chunk",
        b"AES-256-GCM",
        nonce,
    ];
    let mut out = Vec::with_capacity(384);
    for (name, value) in FIELDS.iter().zip(values) {
        out.put_u16(u16::try_from(name.len()).map_err(|_| SealError::HeaderTooLong)?);
        out.put_slice(name.as_bytes());
        out.put_u32(u32::try_from(value.len()).map_err(|_| SealError::HeaderTooLong)?);
        out.put_slice(value);
    }
    if out.len() > MAX_HEADER { Err(SealError::HeaderTooLong) } else { Ok(out) }
}

fn take_field<'a>(left: &mut &'a [u8], name: &str) -> Result<&'a [u8], OpenError> {
    let (size, rest) = left.split_first_chunk::<2>().ok_or(OpenError::Malformed)?;
    let (got, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(*size))).ok_or(OpenError::Malformed)?;
    let (size, rest) = rest.split_first_chunk::<4>().ok_or(OpenError::Malformed)?;
    let (value, rest) = rest.split_at_checked(u32::from_be_bytes(*size) as usize).ok_or(OpenError::Malformed)?;
    *left = rest;
    if got == name.as_bytes() { Ok(value) } else { Err(OpenError::Malformed) }
}

fn text(bytes: &[u8]) -> Result<&str, OpenError> {
    std::str::from_utf8(bytes).map_err(|_| OpenError::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;
    use zeroize::Zeroizing;

    fn vectors() -> Value {
        serde_json::from_str::<Value>(include_str!("../testdata/vectors.json")).unwrap()["pq_payload_frame"].take()
    }

    fn hex(value: &Value) -> Vec<u8> {
        let text = value.as_str().unwrap();
        (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
    }

    fn identity(value: &Value) -> Identity {
        Identity {
            incident: IncidentId::new(value["incident_id"].as_str().unwrap()).unwrap(),
            stream: StreamId::new(value["stream_id"].as_str().unwrap()).unwrap(),
            media: Media::parse(value["media_type"].as_str().unwrap()).unwrap(),
            index: value["chunk_index"].as_u64().unwrap(),
        }
    }

    #[test]
    fn every_header_is_written_and_read_as_the_core_has_it() {
        for vector in vectors()["frames"].as_array().unwrap() {
            let identity = identity(&vector["identity"]);
            let frame = hex(&vector["frame_hex"]);
            let header = peek(&frame).unwrap();
            assert!(header.is_of(&identity));
            assert_eq!(header.body, hex(&vector["ciphertext_hex"]));
            let nonce = hex(&vector["payload_nonce_hex"]);
            let written = write_header(&identity, vector["envelope_id"].as_str().unwrap(), &nonce).unwrap();
            assert_eq!(written, hex(&vector["header_hex"]), "{}", vector["name"]);
        }
    }

    #[test]
    fn the_vector_with_a_real_body_seals_and_opens() {
        let vectors = vectors();
        let vector = vectors["frames"].as_array().unwrap().iter().find(|v| v["test_only_cek_hex"].is_string()).unwrap();
        let key = StreamKey(Zeroizing::new(hex(&vector["test_only_cek_hex"]).try_into().unwrap()));
        let (identity, frame) = (identity(&vector["identity"]), hex(&vector["frame_hex"]));
        let plaintext = vector["test_only_plaintext"].as_str().unwrap();
        assert_eq!(open(&key, &identity, &frame).unwrap().plaintext, plaintext.as_bytes());
        let nonce = hex(&vector["payload_nonce_hex"]).try_into().unwrap();
        assert_eq!(seal(&key, &identity, "env_test_001", nonce, plaintext.as_bytes()).unwrap(), frame);
    }

    #[test]
    fn what_the_core_refuses_is_refused() {
        let vectors = vectors();
        let rejected = vectors["rejected"].as_array().unwrap();
        assert_eq!(rejected.len(), 13);
        for vector in rejected {
            let frame = hex(&vector["frame_hex"]);
            let fine = peek(&frame).is_ok_and(|header| header.is_of(&identity(&vector["identity"])));
            assert!(!fine, "{}", vector["name"]);
        }
    }

    proptest! {
        #[test]
        fn a_frame_opens_only_as_what_it_was_sealed(
            plaintext in prop::collection::vec(any::<u8>(), 1..2000),
            index in 1u64..1 << 40,
            nonce in any::<[u8; 12]>(),
            flip in any::<prop::sample::Index>(),
        ) {
            let key = StreamKey(Zeroizing::new([3; 32]));
            let identity = Identity {
                incident: IncidentId::new("i").unwrap(),
                stream: StreamId::new("s").unwrap(),
                media: Media::Video,
                index,
            };
            let frame = seal(&key, &identity, "e", nonce, &plaintext).unwrap();
            let opened = open(&key, &identity, &frame).unwrap();
            prop_assert_eq!(&opened.plaintext, &plaintext);
            prop_assert_eq!(opened.envelope_id, "e");
            let other = Identity { index: index + 1, ..identity.clone() };
            prop_assert_eq!(open(&key, &other, &frame).unwrap_err(), OpenError::WrongIdentity);
            let mut bad = frame.to_vec();
            let at = flip.index(bad.len());
            bad[at] ^= 1;
            prop_assert!(open(&key, &identity, &bad).is_err());
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = peek(&bytes);
            let mut framed = PREFIX.to_vec();
            framed.extend_from_slice(&bytes);
            let _ = peek(&framed);
        }
    }
}
