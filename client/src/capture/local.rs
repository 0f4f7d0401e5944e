//! Bytes at rest on the device, under a key of the device.
//!
//! A blob is `WSSEG001`, 16 random bytes, and AES-256-GCM ciphertext with its tag. The key is
//! HKDF-SHA384 of the local key over a label and the 16 bytes, so each blob has a key of its own
//! and its nonce may be zero.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::hkdf;
use zeroize::Zeroizing;

use crate::clock;
use crate::keys::KeyError;

const MAGIC: &[u8; 8] = b"WSSEG001";
const SEGMENT_LABEL: &[u8] = b"waystation-segment-v1";
/// Random bytes of a blob.
pub(crate) const SALT_BYTES: usize = 16;
/// What a blob adds to its content.
pub(crate) const OVERHEAD: usize = MAGIC.len() + SALT_BYTES + 16;

/// The 32 bytes under which a queue rests on this device. Never leaves it; wiped when dropped.
#[derive(Clone)]
pub struct LocalKey(Arc<Zeroizing<[u8; 32]>>);

/// Where the local key comes from: a phone's keystore, or a file ([`KeyFile`]).
pub trait LocalKeys: Send + Sync {
    /// The key. `fresh` says that there is no queue yet, so that a new key may be made; otherwise
    /// it must be the one the queue was made with.
    ///
    /// # Errors
    /// There is none; nothing on disk is touched then.
    fn local_key(&self, fresh: bool) -> Result<LocalKey, KeyError>;
}

/// A file of 32 bytes that its owner alone can read; made if there is none yet.
#[derive(Debug, Clone)]
pub struct KeyFile(PathBuf);

impl LocalKey {
    /// Takes 32 bytes.
    #[must_use]
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(Arc::new(Zeroizing::new(bytes)))
    }

    /// A new one.
    pub(crate) fn random() -> Option<Self> {
        clock::random().map(Self::new)
    }

    /// The cipher of one file.
    pub(crate) fn cipher(&self, label: &[u8], salt: &[u8; SALT_BYTES]) -> Option<LessSafeKey> {
        let secret = hkdf::Salt::new(hkdf::HKDF_SHA384, &[]).extract(&self.0[..]);
        let info = [label, salt];
        let key = secret.expand(&info, &AES_256_GCM).ok()?;
        Some(LessSafeKey::new(UnboundKey::from(key)))
    }

    /// Seals a file's content.
    pub(crate) fn seal(&self, salt: [u8; SALT_BYTES], content: &[u8]) -> Option<Vec<u8>> {
        let head = MAGIC.len() + SALT_BYTES;
        let mut out = Vec::with_capacity(content.len() + OVERHEAD);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&salt);
        out.extend_from_slice(content);
        let cipher = self.cipher(SEGMENT_LABEL, &salt)?;
        let nonce = Nonce::assume_unique_for_key([0; NONCE_LEN]);
        let tag = cipher.seal_in_place_separate_tag(nonce, Aad::from(MAGIC), &mut out[head..]).ok()?;
        out.extend_from_slice(tag.as_ref());
        Some(out)
    }

    /// Opens what [`Self::seal`] made.
    pub(crate) fn open(&self, blob: Vec<u8>) -> Option<Zeroizing<Vec<u8>>> {
        let mut blob = Zeroizing::new(blob);
        let rest = blob.strip_prefix(MAGIC)?;
        let (salt, _) = rest.split_first_chunk::<SALT_BYTES>()?;
        let cipher = self.cipher(SEGMENT_LABEL, salt)?;
        let nonce = Nonce::assume_unique_for_key([0; NONCE_LEN]);
        let content = MAGIC.len() + SALT_BYTES..;
        let length = cipher.open_within(nonce, Aad::from(MAGIC), &mut blob[..], content).ok()?.len();
        blob.truncate(length);
        Some(blob)
    }
}

impl LocalKeys for LocalKey {
    fn local_key(&self, _fresh: bool) -> Result<LocalKey, KeyError> {
        Ok(self.clone())
    }
}

impl KeyFile {
    /// Names the file.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    fn make(path: &Path) -> std::io::Result<()> {
        use std::os::unix::fs::OpenOptionsExt as _;
        let key: [u8; 32] = clock::random().ok_or_else(|| std::io::Error::other("no randomness"))?;
        let key = Zeroizing::new(key);
        let mut partial = path.as_os_str().to_owned();
        partial.push(".partial");
        let mut options = std::fs::OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&partial)?;
        file.write_all(&key[..])?;
        file.sync_all()?;
        std::fs::rename(&partial, path)?;
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        std::fs::File::open(parent)?.sync_all()
    }
}

impl LocalKeys for KeyFile {
    fn local_key(&self, fresh: bool) -> Result<LocalKey, KeyError> {
        if fresh && !self.0.exists() {
            Self::make(&self.0).map_err(KeyError::Read)?;
        }
        crate::keys::read_32(&self.0).map(|bytes| LocalKey(Arc::new(bytes)))
    }
}

impl std::fmt::Debug for LocalKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LocalKey(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blob_opens_only_with_its_key_and_as_it_was_sealed() {
        let key = LocalKey::new([1; 32]);
        let blob = key.seal([2; SALT_BYTES], b"plaintext").unwrap();
        assert_eq!(blob.len(), 9 + OVERHEAD);
        assert!(!blob.windows(5).any(|bytes| bytes == b"plain"));
        assert_eq!(*key.open(blob.clone()).unwrap(), b"plaintext");
        assert!(LocalKey::new([3; 32]).open(blob.clone()).is_none());
        for at in 0..blob.len() {
            let mut bad = blob.clone();
            bad[at] ^= 1;
            assert!(key.open(bad).is_none(), "byte {at}");
            assert!(key.open(blob[..at].to_vec()).is_none(), "cut at {at}");
        }
    }

    #[test]
    fn a_key_file_is_made_once_and_for_its_owner_alone() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let file = KeyFile::new(dir.path().join("key"));
        assert!(file.local_key(false).is_err(), "a queue that exists needs the key it was made with");
        let key = file.local_key(true).unwrap();
        assert_eq!(std::fs::metadata(dir.path().join("key")).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(*file.local_key(true).unwrap().0, *key.0);
        assert_eq!(format!("{key:?}"), "LocalKey(…)");
    }
}
