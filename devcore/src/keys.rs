//! Secrets and signing keys: made at the first start, kept in files only the owner reads.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use waystation_proto::claims::Jwk;

use crate::capability::jwt;
use crate::clock::{random, random_id};
use crate::options::Secret;
use crate::running::StartError;

/// Shortest secret, in bytes, as at the core.
const MIN_SECRET_BYTES: usize = 32;
/// Signing keys kept; the oldest goes when one more is made.
const MAX_SIGNING_KEYS: usize = 16;

/// A text that must not be printed.
#[derive(Clone)]
pub(crate) struct Token(String);

impl Token {
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// Equal, compared by digest and in constant time.
    pub(crate) fn is(&self, other: &str) -> bool {
        let digest = |text: &str| aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text.as_bytes());
        aws_lc_rs::constant_time::verify_slices_are_equal(digest(&self.0).as_ref(), digest(other).as_ref()).is_ok()
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(…)")
    }
}

/// A secret and the file it lies in, if it lies in one.
#[derive(Debug, Clone)]
pub(crate) struct Kept {
    pub(crate) token: Option<Token>,
    pub(crate) file: Option<PathBuf>,
}

/// Reads or makes the secret `name` in `dir`.
pub(crate) fn secret(dir: &Path, name: &'static str, from: &Secret) -> Result<Kept, StartError> {
    let (text, file) = match from {
        Secret::Unset => return Ok(Kept { token: None, file: None }),
        Secret::Text(text) => (text.clone(), None),
        Secret::File(file) => {
            (fs::read_to_string(file).map_err(|e| StartError::Secret(name, e.kind()))?, Some(file.clone()))
        }
        Secret::Generated => {
            let file = dir.join(name);
            if !file.exists() {
                let made = format!("{}\n", URL_SAFE_NO_PAD.encode(random::<32>()));
                write_private(&file, made.as_bytes()).map_err(|e| StartError::Secret(name, e.kind()))?;
            }
            (fs::read_to_string(&file).map_err(|e| StartError::Secret(name, e.kind()))?, Some(file))
        }
    };
    let text = text.trim();
    if text.len() < MIN_SECRET_BYTES {
        return Err(StartError::SecretTooShort(name));
    }
    Ok(Kept { token: Some(Token(text.to_owned())), file })
}

/// Writes a file that only the owner reads, whole or not at all.
fn write_private(path: &Path, content: &[u8]) -> io::Result<()> {
    let beside = path.with_extension("new");
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
    file.set_permissions(fs::Permissions::from_mode(0o600))?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    fs::File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
}

#[derive(Clone, Serialize, Deserialize)]
struct StoredKey {
    kid: String,
    seed: String,
}

struct SigningKey {
    stored: StoredKey,
    pair: Ed25519KeyPair,
    public: [u8; 32],
}

/// The Ed25519 keys that capabilities and receipts are signed with; the newest signs, all verify.
pub(crate) struct SigningKeys {
    file: PathBuf,
    keys: Mutex<Vec<SigningKey>>,
}

impl SigningKeys {
    /// Reads them from `dir`, or makes the first.
    pub(crate) fn open(dir: &Path) -> Result<Self, StartError> {
        let failed = |error: io::Error| StartError::Secret("signing-keys", error.kind());
        let file = dir.join("signing-keys");
        let keys = if file.exists() { read_keys(&file).map_err(failed)? } else { Vec::new() };
        let keys = Self { file, keys: Mutex::new(keys) };
        if keys.lock().is_empty() {
            keys.rotate().map_err(failed)?;
        }
        Ok(keys)
    }

    /// Makes a key that signs from now on. Returns its `kid`.
    pub(crate) fn rotate(&self) -> io::Result<String> {
        let mut keys = self.lock();
        let kid = random_id("k_");
        let mut seeds: Vec<StoredKey> = keys.iter().map(|key| key.stored.clone()).collect();
        seeds.push(StoredKey { kid: kid.clone(), seed: URL_SAFE_NO_PAD.encode(random::<32>()) });
        let from = seeds.len().saturating_sub(MAX_SIGNING_KEYS);
        write_private(&self.file, &serde_json::to_vec(&seeds[from..])?)?;
        *keys = read_keys(&self.file)?;
        Ok(kid)
    }

    /// Signs `payload` as a compact JWS with the newest key.
    pub(crate) fn sign(&self, typ: &str, payload: &impl Serialize) -> Option<String> {
        let keys = self.lock();
        keys.last().map(|key| jwt::sign(typ, &key.stored.kid, &key.pair, payload))
    }

    pub(crate) fn find(&self, kid: &str) -> Option<[u8; 32]> {
        self.lock().iter().find(|key| key.stored.kid == kid).map(|key| key.public)
    }

    /// The public halves, as a JWKS (RFC 7517 §5).
    pub(crate) fn jwks(&self) -> serde_json::Value {
        let keys: Vec<_> = self
            .lock()
            .iter()
            .map(|key| {
                let mut jwk = serde_json::json!(Jwk::from_ed25519(&key.public, Some(key.stored.kid.clone())));
                jwk["use"] = "sig".into();
                jwk["alg"] = "Ed25519".into();
                jwk
            })
            .collect();
        serde_json::json!({ "keys": keys })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<SigningKey>> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read_keys(file: &Path) -> io::Result<Vec<SigningKey>> {
    let stored: Vec<StoredKey> = serde_json::from_slice(&fs::read(file)?)?;
    let read = |stored: StoredKey| {
        let seed = URL_SAFE_NO_PAD.decode(&stored.seed).map_err(io::Error::other)?;
        let pair = Ed25519KeyPair::from_seed_unchecked(&seed).map_err(io::Error::other)?;
        let public = pair.public_key().as_ref().try_into().map_err(io::Error::other)?;
        Ok(SigningKey { stored, pair, public })
    };
    stored.into_iter().map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_private_and_stay() {
        let dir = tempfile::tempdir().unwrap();
        let first = secret(dir.path(), "service-token", &Secret::Generated).unwrap();
        let again = secret(dir.path(), "service-token", &Secret::Generated).unwrap();
        assert_eq!(first.token.as_ref().unwrap().as_str(), again.token.as_ref().unwrap().as_str());
        let mode = fs::metadata(first.file.unwrap()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(!format!("{:?}", first.token).contains(again.token.unwrap().as_str()));
        let short = secret(dir.path(), "service-token", &Secret::Text(" 0123456789abcdef0123456789abcde ".into()));
        assert!(matches!(short, Err(StartError::SecretTooShort("service-token"))));
    }

    #[test]
    fn signing_keys_stay_and_rotate() {
        let dir = tempfile::tempdir().unwrap();
        let keys = SigningKeys::open(dir.path()).unwrap();
        let first = keys.jwks();
        let kid = keys.rotate().unwrap();
        let again = SigningKeys::open(dir.path()).unwrap();
        assert_eq!(again.jwks(), keys.jwks());
        assert_eq!(again.jwks()["keys"][0], first["keys"][0]);
        assert!(again.find(&kid).is_some());
        for _ in 0..MAX_SIGNING_KEYS {
            again.rotate().unwrap();
        }
        assert_eq!(again.jwks()["keys"].as_array().unwrap().len(), MAX_SIGNING_KEYS);
    }
}
