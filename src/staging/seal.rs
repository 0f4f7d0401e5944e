//! The seal: what staging keeps beside a chunk's bytes is encrypted with a key that lies
//! elsewhere, and names on disk are keyed, so that a stolen disk says neither who nor what.

use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::{hkdf, hmac};
use zeroize::Zeroizing;

use super::disk::Dir;
use crate::clock::Clock;
use crate::proto::{ChunkRef, StreamId};

/// Length of a seal key, in bytes.
pub const KEY_BYTES: usize = 32;

const SEAL_INFO: &[u8] = b"waystation-staging-seal-v1";
const NAME_INFO: &[u8] = b"waystation-staging-name-v1";
const RESET_INFO: &[u8] = b"waystation-quic-reset-v1";

/// The key that seals what lies beside the chunks. Wiped when dropped.
#[derive(Clone)]
pub struct SealKey(Zeroizing<[u8; KEY_BYTES]>);

/// Why there is no seal key. No variant tells a path.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// The key would be stolen with what it seals.
    #[error("the seal key file lies inside the staging directory")]
    InsideStaging,
    /// A new key could not open what is there.
    #[error("the seal key file is missing, and the staging directory holds chunks sealed with it")]
    MissingForChunks,
    /// The file is not 32 bytes long.
    #[error("the seal key file does not hold exactly 32 bytes")]
    WrongLength,
    /// From the disk.
    #[error("the seal key file can't be read or written: {0}")]
    Io(#[from] io::Error),
}

impl SealKey {
    /// Takes the key's bytes.
    #[must_use]
    pub fn new(bytes: [u8; KEY_BYTES]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// Reads the key, or makes one (0600, synced with its directory) at the first start.
    ///
    /// # Errors
    /// See [`KeyError`].
    pub fn load_or_create(path: &Path, staging_directory: &Path, clock: &Clock) -> Result<Self, KeyError> {
        let place = resolve(path)?;
        if place.starts_with(resolve(staging_directory)?) {
            return Err(KeyError::InsideStaging);
        }
        match Self::load(&place) {
            Err(KeyError::Io(e)) if e.kind() == io::ErrorKind::NotFound => {}
            other => return other,
        }
        if holds_chunks(staging_directory)? {
            return Err(KeyError::MissingForChunks);
        }
        Self::create(&place, clock)?;
        // Read back: if another process was first, its key counts.
        Self::load(&place)
    }

    /// An opaque name of whoever holds this key: 12 characters, the same after a restart.
    #[must_use]
    pub fn node(&self) -> String {
        use base64::Engine as _;
        let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, &*self.0);
        let tag = aws_lc_rs::hmac::sign(&key, b"waystation-node-v1");
        base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(&tag.as_ref()[..9])
    }

    /// The key of QUIC's stateless resets: the same after a restart, so that a relay which lost its
    /// connections can say so to their peers.
    ///
    /// # Errors
    /// [`KeyError::Io`] if it can't be derived.
    pub fn reset_key(&self) -> Result<[u8; KEY_BYTES], KeyError> {
        let unspecified = |_| io::Error::other("key derivation");
        let prk = hkdf::Salt::new(hkdf::HKDF_SHA256, &[]).extract(&*self.0);
        let mut key = [0; KEY_BYTES];
        let okm = prk.expand(&[RESET_INFO], hkdf::HKDF_SHA256).map_err(unspecified)?;
        okm.fill(&mut key).map_err(unspecified)?;
        Ok(key)
    }

    fn load(path: &Path) -> Result<Self, KeyError> {
        let mut bytes = Zeroizing::new(Vec::with_capacity(KEY_BYTES + 1));
        fs::File::open(path)?.take(KEY_BYTES as u64 + 1).read_to_end(&mut bytes)?;
        let key: [u8; KEY_BYTES] = bytes.as_slice().try_into().map_err(|_| KeyError::WrongLength)?;
        Ok(Self::new(key))
    }

    /// The key appears under its name only when it is whole and synced.
    fn create(path: &Path, clock: &Clock) -> io::Result<()> {
        let mut key = Zeroizing::new([0; KEY_BYTES]);
        clock.fill_random(&mut *key);
        let mut suffix = [0; 8];
        clock.fill_random(&mut suffix);
        let mut temporary = path.to_owned().into_os_string();
        temporary.push(format!(".{:016x}", u64::from_be_bytes(suffix)));
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        let linked =
            file.write_all(&*key).and_then(|()| file.sync_all()).and_then(|()| match fs::hard_link(&temporary, path) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
                other => other,
            });
        fs::remove_file(&temporary)?;
        linked?;
        path.parent().map_or(Ok(()), |parent| fs::File::open(parent)?.sync_all())
    }
}

impl std::fmt::Debug for SealKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SealKey(…)")
    }
}

/// The canonical path, also of something that does not exist yet.
fn resolve(path: &Path) -> io::Result<PathBuf> {
    match path.canonicalize() {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        other => return other,
    }
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Ok(resolve(parent)?.join(name))
}

fn holds_chunks(staging_directory: &Path) -> io::Result<bool> {
    match fs::read_dir(staging_directory.join(Dir::Staged.name())) {
        Ok(mut entries) => Ok(entries.next().is_some()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

/// What a file is called on disk: a keyed hash, never an identifier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Name(pub(crate) [u8; 16]);

impl Name {
    /// No chunk and no stream is called so: a file under it opens with no key.
    pub(super) const NOBODYS: Self = Self([0; 16]);

    /// 32 characters `[0-9a-f]`.
    pub(crate) fn to_hex(self) -> String {
        format!("{:032x}", u128::from_be_bytes(self.0))
    }

    pub(crate) fn from_hex(text: &str) -> Option<Self> {
        let plain = text.len() == 32 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        u128::from_str_radix(text, 16).ok().filter(|_| plain).map(|n| Self(n.to_be_bytes()))
    }
}

/// The keys derived from a [`SealKey`], at work.
pub(crate) struct Sealer {
    aead: LessSafeKey,
    names: hmac::Key,
    clock: Clock,
}

/// Sealed bytes and the nonce that opens them.
pub(crate) struct Sealed {
    pub(crate) nonce: [u8; NONCE_LEN],
    pub(crate) bytes: Vec<u8>,
}

impl Sealer {
    pub(crate) fn new(key: &SealKey, clock: Clock) -> io::Result<Self> {
        let unspecified = |_| io::Error::other("key derivation");
        let prk = hkdf::Salt::new(hkdf::HKDF_SHA256, &[]).extract(&*key.0);
        let aead: UnboundKey = prk.expand(&[SEAL_INFO], &AES_256_GCM).map_err(unspecified)?.into();
        let mut name_key = Zeroizing::new([0; 32]);
        let okm = prk.expand(&[NAME_INFO], hkdf::HKDF_SHA256).map_err(unspecified)?;
        okm.fill(&mut *name_key).map_err(unspecified)?;
        let names = hmac::Key::new(hmac::HMAC_SHA256, &*name_key);
        Ok(Self { aead: LessSafeKey::new(aead), names, clock })
    }

    pub(crate) fn chunk_name(&self, chunk: ChunkRef) -> Name {
        self.name(b"chunk", &chunk.0)
    }

    /// Of one of the files that a stream's capabilities lie in.
    pub(crate) fn stream_name(&self, stream: &StreamId, slot: u8) -> Name {
        match slot {
            0 => self.name(b"stream", stream.as_str().as_bytes()),
            // No identifier holds a line's end.
            slot => self.name(b"stream", format!("{}\n{slot}", stream.as_str()).as_bytes()),
        }
    }

    /// `what` is of a closed set without common prefixes, so the two inputs can't run together.
    fn name(&self, what: &[u8], of: &[u8]) -> Name {
        let mut context = hmac::Context::with_key(&self.names);
        context.update(what);
        context.update(of);
        let mut name = [0; 16];
        name.copy_from_slice(&context.sign().as_ref()[..16]);
        Name(name)
    }

    /// Encrypts under a random nonce: at 2^32 seals of one key a repetition has odds of 2^-33.
    pub(crate) fn seal(&self, associated: &[u8], mut plain: Vec<u8>) -> io::Result<Sealed> {
        let mut nonce = [0; NONCE_LEN];
        self.clock.fill_random(&mut nonce);
        let unique = Nonce::assume_unique_for_key(nonce);
        self.aead
            .seal_in_place_append_tag(unique, Aad::from(associated), &mut plain)
            .map_err(|_| io::Error::other("seal"))?;
        Ok(Sealed { nonce, bytes: plain })
    }

    /// What was sealed; `None` if it is not what this key sealed with `associated`.
    pub(crate) fn open(&self, associated: &[u8], mut sealed: Sealed) -> Option<Vec<u8>> {
        let nonce = Nonce::assume_unique_for_key(sealed.nonce);
        let length = self.aead.open_in_place(nonce, Aad::from(associated), &mut sealed.bytes).ok()?.len();
        sealed.bytes.truncate(length);
        Some(sealed.bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn sealer(key: u8) -> Sealer {
        Sealer::new(&SealKey::new([key; 32]), Clock::at_unix_ms(0)).unwrap()
    }

    #[test]
    fn a_key_is_made_once_and_kept() {
        let temp = tempfile::tempdir().unwrap();
        let (path, staging) = (temp.path().join("keys/seal"), temp.path().join("staging"));
        fs::create_dir(temp.path().join("keys")).unwrap();
        let clock = Clock::system();
        let made = SealKey::load_or_create(&path, &staging, &clock).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(temp.path().join("keys")).unwrap().count(), 1, "nothing temporary is left");
        let read = SealKey::load_or_create(&path, &staging, &clock).unwrap();
        assert_eq!(*made.0, *read.0);
        assert_ne!(*made.0, [0; 32]);
        fs::write(&path, [1; 33]).unwrap();
        assert!(matches!(SealKey::load_or_create(&path, &staging, &clock), Err(KeyError::WrongLength)));
    }

    #[test]
    fn a_key_is_never_inside_the_directory_it_seals() {
        let temp = tempfile::tempdir().unwrap();
        let staging = temp.path().join("staging");
        fs::create_dir(&staging).unwrap();
        std::os::unix::fs::symlink(&staging, temp.path().join("alias")).unwrap();
        fs::write(staging.join("real"), [1; 32]).unwrap();
        std::os::unix::fs::symlink(staging.join("real"), temp.path().join("link")).unwrap();
        for path in ["staging/seal", "alias/seal", "staging/../staging/seal", "link"] {
            let refused = SealKey::load_or_create(&temp.path().join(path), &staging, &Clock::system());
            assert!(matches!(refused, Err(KeyError::InsideStaging)), "{path}");
        }
    }

    #[test]
    fn a_missing_key_is_not_replaced_while_chunks_need_it() {
        let temp = tempfile::tempdir().unwrap();
        let staging = temp.path().join("staging");
        fs::create_dir_all(staging.join("staged")).unwrap();
        fs::write(staging.join("staged/chunk"), b"x").unwrap();
        let refused = SealKey::load_or_create(&temp.path().join("seal"), &staging, &Clock::system());
        assert!(matches!(refused, Err(KeyError::MissingForChunks)));
        assert!(!temp.path().join("seal").exists());
    }

    #[test]
    fn only_the_same_key_and_place_open_a_seal() {
        let sealed = || {
            let Sealed { nonce, bytes } = sealer(1).seal(b"place", b"canary".to_vec()).unwrap();
            assert!(!bytes.windows(6).any(|w| w == b"canary"));
            Sealed { nonce, bytes }
        };
        assert_eq!(sealer(1).open(b"place", sealed()).unwrap(), b"canary");
        assert!(sealer(2).open(b"place", sealed()).is_none());
        assert!(sealer(1).open(b"elsewhere", sealed()).is_none());
        let mut bent = sealed();
        bent.bytes[0] ^= 1;
        assert!(sealer(1).open(b"place", bent).is_none());
    }

    #[test]
    fn names_are_keyed_and_separate() {
        let chunk = ChunkRef([7; 16]);
        let stream = StreamId::new("stream_1").unwrap();
        assert_eq!(sealer(1).chunk_name(chunk), sealer(1).chunk_name(chunk));
        assert_ne!(sealer(1).chunk_name(chunk), sealer(2).chunk_name(chunk));
        assert_ne!(sealer(1).chunk_name(chunk), sealer(1).stream_name(&stream, 0));
        assert_ne!(sealer(1).stream_name(&stream, 1), sealer(1).stream_name(&stream, 0));
        let name = sealer(1).stream_name(&stream, 0);
        assert_eq!(Name::from_hex(&name.to_hex()), Some(name));
        for bad in ["", "+0000000000000000000000000000000", "A0000000000000000000000000000000", "lock"] {
            assert_eq!(Name::from_hex(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_reset_key_outlives_a_process_and_says_nothing_of_the_seal() {
        let of = |key: u8| SealKey::new([key; 32]).reset_key().unwrap();
        assert_eq!(of(1), of(1));
        assert_ne!(of(1), of(2));
        assert_ne!(of(1), [1; 32]);
    }

    #[test]
    fn a_key_can_not_be_printed() {
        assert_eq!(format!("{:?}", SealKey::new([65; 32])), "SealKey(…)");
    }
}
