//! Keys of the capture client: the group key that opens a recording, and the Ed25519 key that
//! signs offers. Neither can be printed, and both are wiped from memory when dropped.

use std::path::Path;
use std::sync::Arc;

use aws_lc_rs::hkdf;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use waystation_proto::claims::Jwk;
use waystation_proto::id::{Digest, StreamId, length_prefix};
use zeroize::Zeroizing;

/// First part of the HKDF info of a stream key.
const STREAM_KEY_LABEL: &str = "waystation-stream-key-v1";

/// No stream is called so; the key that it would have tells group keys apart.
const CHECK_NAME: &str = "waystation-group-key-check";

/// A key file that can't be used. Says nothing of what is in it.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file can't be read.
    #[error("the key file can't be read")]
    Read(#[source] std::io::Error),
    /// It is neither 32 bytes nor 64 hexadecimal digits.
    #[error("a key file holds 32 bytes, raw or as 64 hexadecimal digits")]
    Form,
    /// The key was refused by the cryptographic library.
    #[error("the key can't be used")]
    Refused,
}

/// The 32 bytes from which every stream key of a recording is derived.
#[derive(Clone)]
pub struct GroupKey(Arc<Zeroizing<[u8; 32]>>);

/// The AES-256 key of one stream.
pub struct StreamKey(pub(crate) Zeroizing<[u8; 32]>);

/// The Ed25519 key a capability is bound to (`cnf`); signs offers.
#[derive(Clone)]
pub struct ClientKey(Arc<Ed25519KeyPair>);

impl GroupKey {
    /// Takes 32 bytes.
    #[must_use]
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(Arc::new(Zeroizing::new(bytes)))
    }

    /// Reads a file of 32 raw bytes or 64 hexadecimal digits.
    ///
    /// # Errors
    /// [`KeyError`]
    pub fn read(path: &Path) -> Result<Self, KeyError> {
        read_32(path).map(|bytes| Self(Arc::new(bytes)))
    }

    /// The key itself, for a contact's link.
    pub(crate) fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Tells two keys apart, and nothing else of either.
    pub(crate) fn check(&self) -> Option<String> {
        let name = StreamId::new(CHECK_NAME).ok()?;
        let key = self.stream_key(&name)?;
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &key.0[..]);
        Some(Digest(digest.as_ref().try_into().ok()?).to_hex())
    }

    /// HKDF-SHA384 without salt. The info is the label and the stream's id, each preceded by its
    /// length as 4 bytes, big-endian, as everywhere on Waystation's wire.
    #[must_use]
    pub fn stream_key(&self, stream: &StreamId) -> Option<StreamKey> {
        let secret = hkdf::Salt::new(hkdf::HKDF_SHA384, &[]).extract(&self.0[..]);
        let (a, b) = (length_prefix(STREAM_KEY_LABEL), length_prefix(stream.as_str()));
        let info = [&a[..], STREAM_KEY_LABEL.as_bytes(), &b[..], stream.as_str().as_bytes()];
        let mut out = Zeroizing::new([0; 32]);
        secret.expand(&info, Length32).ok()?.fill(&mut out[..]).ok()?;
        Some(StreamKey(out))
    }
}

impl ClientKey {
    /// Takes the 32 bytes of an Ed25519 seed.
    ///
    /// # Errors
    /// [`KeyError::Refused`]
    pub fn from_seed(seed: &[u8; 32]) -> Result<Self, KeyError> {
        Ed25519KeyPair::from_seed_unchecked(seed).map(|pair| Self(Arc::new(pair))).map_err(|_| KeyError::Refused)
    }

    /// Reads a seed from a file of 32 raw bytes or 64 hexadecimal digits.
    ///
    /// # Errors
    /// [`KeyError`]
    pub fn read(path: &Path) -> Result<Self, KeyError> {
        Self::from_seed(&*read_32(path)?)
    }

    /// Signs; Ed25519 needs no randomness.
    #[must_use]
    pub fn sign(&self, message: &[u8]) -> Option<[u8; 64]> {
        self.0.sign(message).as_ref().try_into().ok()
    }

    /// The public half as a JWK, for the core.
    #[must_use]
    pub fn jwk(&self) -> Option<Jwk> {
        let key: [u8; 32] = self.0.public_key().as_ref().try_into().ok()?;
        Some(Jwk::from_ed25519(&key, None))
    }
}

impl std::fmt::Debug for GroupKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("GroupKey(…)")
    }
}

impl std::fmt::Debug for StreamKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("StreamKey(…)")
    }
}

impl std::fmt::Debug for ClientKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ClientKey(…)")
    }
}

/// How long HKDF's output is.
struct Length32;

impl hkdf::KeyType for Length32 {
    fn len(&self) -> usize {
        32
    }
}

pub(crate) fn read_32(path: &Path) -> Result<Zeroizing<[u8; 32]>, KeyError> {
    let bytes = Zeroizing::new(std::fs::read(path).map_err(KeyError::Read)?);
    if let Ok(raw) = <[u8; 32]>::try_from(&bytes[..]) {
        return Ok(Zeroizing::new(raw));
    }
    let text = std::str::from_utf8(&bytes).map_err(|_| KeyError::Form)?;
    let lower = Zeroizing::new(text.trim().to_ascii_lowercase());
    Digest::from_hex(&lower).map(|digest| Zeroizing::new(digest.0)).map_err(|_| KeyError::Form)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_key_depends_on_key_and_stream() {
        let (a, b) = (StreamId::new("a").unwrap(), StreamId::new("b").unwrap());
        let key = GroupKey::new([1; 32]);
        assert_eq!(key.stream_key(&a).unwrap().0, key.stream_key(&a).unwrap().0);
        assert_ne!(key.stream_key(&a).unwrap().0, key.stream_key(&b).unwrap().0);
        assert_ne!(key.stream_key(&a).unwrap().0, GroupKey::new([2; 32]).stream_key(&a).unwrap().0);
    }

    #[test]
    fn a_stream_key_is_what_another_implementation_gets() {
        // HMAC-SHA384 by hand, in another language.
        let key = GroupKey::new([42; 32]).stream_key(&StreamId::new("stream_1").unwrap()).unwrap();
        let expected = "c79051c48886db0e886bbbe5539e99d7f59ca6188a2996016d25ae22d9e6565b";
        assert_eq!(Digest(*key.0).to_hex(), expected);
    }

    #[test]
    fn key_files_are_raw_or_hex() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let stream = StreamId::new("s").unwrap();
        std::fs::write(&path, [0xab; 32]).unwrap();
        let raw = GroupKey::read(&path).unwrap().stream_key(&stream).unwrap();
        std::fs::write(&path, format!("{}\n", "AB".repeat(32))).unwrap();
        let hex = GroupKey::read(&path).unwrap().stream_key(&stream).unwrap();
        assert_eq!(raw.0, hex.0);
        std::fs::write(&path, "short").unwrap();
        assert!(matches!(GroupKey::read(&path), Err(KeyError::Form)));
    }

    #[test]
    fn keys_cannot_be_printed() {
        let text = format!("{:?} {:?}", GroupKey::new([7; 32]), ClientKey::from_seed(&[7; 32]).unwrap());
        assert_eq!(text, "GroupKey(…) ClientKey(…)");
    }
}
