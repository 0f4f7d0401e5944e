//! Verifies the core's receipts: the relay passes them on and is no authority itself.

use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use waystation_proto::claims::Jwk;
use waystation_proto::receipt::{MAX_RECEIPT_BYTES, RECEIPT_TYP, Receipt};

/// The core's public keys (RFC 7517), Ed25519 only; other keys are ignored.
#[derive(Clone, Default)]
pub struct Jwks {
    keys: Vec<(String, [u8; 32])>,
}

/// What is known of the core's keys.
#[derive(Debug, Clone, Default)]
pub enum Keys {
    /// The core was not reached yet.
    #[default]
    Awaited,
    /// It has none: it signs no receipts, or nobody can be asked.
    None,
    /// These.
    Known(Jwks),
}

impl Keys {
    /// What the core answered.
    #[must_use]
    pub fn answered(jwks: Option<Jwks>) -> Self {
        jwks.map_or(Self::None, Self::Known)
    }

    /// What a receipt proves of the chunk that `is_ours` knows. `None`: that can't be told before
    /// the keys are fetched; with keys that are `fresh`, asking again would change nothing.
    pub fn check(&self, receipt: &str, fresh: bool, is_ours: impl FnOnce(&Receipt) -> bool) -> Option<Proof> {
        let jwks = match self {
            Self::Awaited => return None,
            Self::None => return Some(Proof::Unchecked),
            Self::Known(jwks) => jwks,
        };
        match jwks.verify(receipt) {
            Ok(receipt) if is_ours(&receipt) => Some(Proof::Verified),
            Err(ReceiptError::UnknownKey) if !fresh => None,
            _ => Some(Proof::Invalid),
        }
    }
}

/// What became of the receipt that came with a confirmation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// None came.
    Absent,
    /// One came, and there are no keys to check it with.
    Unchecked,
    /// The core signed for exactly these bytes.
    Verified,
    /// It does not prove this chunk.
    Invalid,
}

/// Why a receipt proves nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReceiptError {
    /// It is not a compact JWS of the right type.
    #[error("not a receipt")]
    Malformed,
    /// Its key is not in the set: the set may be old.
    #[error("the receipt's key is not known")]
    UnknownKey,
    /// The signature does not verify.
    #[error("the receipt's signature does not verify")]
    Forged,
    /// It speaks of another chunk.
    #[error("the receipt is of another chunk")]
    WrongChunk,
}

#[derive(Deserialize)]
struct Set {
    keys: Vec<Jwk>,
}

#[derive(Deserialize)]
struct Header {
    #[serde(default)]
    typ: String,
    alg: String,
    kid: String,
}

impl Jwks {
    /// Reads a JWKS; `None` if it is none or holds no Ed25519 key with a name.
    #[must_use]
    pub fn parse(json: &[u8]) -> Option<Self> {
        let set: Set = serde_json::from_slice(json).ok()?;
        let key = |jwk: Jwk| Some((jwk.kid.clone()?, jwk.ed25519()?));
        let keys: Vec<_> = set.keys.into_iter().take(64).filter_map(key).collect();
        (!keys.is_empty()).then_some(Self { keys })
    }

    /// Checks the signature and reads the payload. Which chunk it speaks of is the caller's to
    /// compare.
    ///
    /// # Errors
    /// [`ReceiptError`]
    pub fn verify(&self, receipt: &str) -> Result<Receipt, ReceiptError> {
        use ReceiptError::{Forged, Malformed, UnknownKey};
        if receipt.len() > MAX_RECEIPT_BYTES {
            return Err(Malformed);
        }
        let (signed, signature) = receipt.rsplit_once('.').ok_or(Malformed)?;
        let (header, payload) = signed.split_once('.').ok_or(Malformed)?;
        let decode = |text: &str| URL_SAFE_NO_PAD.decode(text).map_err(|_| Malformed);
        let header: Header = serde_json::from_slice(&decode(header)?).map_err(|_| Malformed)?;
        if header.typ != RECEIPT_TYP || !matches!(header.alg.as_str(), "Ed25519" | "EdDSA") {
            return Err(Malformed);
        }
        let (_, key) = self.keys.iter().find(|(kid, _)| *kid == header.kid).ok_or(UnknownKey)?;
        let key = UnparsedPublicKey::new(&ED25519, key);
        key.verify(signed.as_bytes(), &decode(signature)?).map_err(|_| Forged)?;
        serde_json::from_slice(&decode(payload)?).map_err(|_| Malformed)
    }
}

impl std::fmt::Debug for Jwks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Jwks").field("keys", &self.keys.len()).finish()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::keys::ClientKey;

    /// Signs a receipt as a core would.
    pub(crate) fn issue(key: &ClientKey, kid: &str, payload: &serde_json::Value) -> String {
        let header = serde_json::json!({"typ": RECEIPT_TYP, "alg": "Ed25519", "kid": kid});
        let part = |value: &serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(&header), part(payload));
        let signature = key.sign(signed.as_bytes()).unwrap();
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    fn payload() -> serde_json::Value {
        serde_json::json!({"iss": "core", "iat": 1, "incident": "i", "stream": "s", "index": 1, "length": 3,
            "sha256": "00".repeat(32)})
    }

    pub(crate) fn jwks(key: &ClientKey, kid: &str) -> Jwks {
        let mut jwk = serde_json::to_value(key.jwk().unwrap()).unwrap();
        jwk["kid"] = kid.into();
        let other = serde_json::json!({"kty": "RSA", "kid": "rsa"});
        Jwks::parse(serde_json::json!({"keys": [other, jwk]}).to_string().as_bytes()).unwrap()
    }

    #[test]
    fn only_the_cores_signature_counts() {
        let (core, other) = (ClientKey::from_seed(&[1; 32]).unwrap(), ClientKey::from_seed(&[2; 32]).unwrap());
        let set = jwks(&core, "k1");
        let good = issue(&core, "k1", &payload());
        assert_eq!(set.verify(&good).unwrap().index, 1);
        assert!(matches!(set.verify(&issue(&other, "k1", &payload())), Err(ReceiptError::Forged)));
        assert!(matches!(set.verify(&issue(&core, "k2", &payload())), Err(ReceiptError::UnknownKey)));
        assert!(matches!(set.verify("a.b"), Err(ReceiptError::Malformed)));
        let (head, tail) = good.split_at(good.len() / 2);
        assert!(set.verify(&format!("{head}A{}", &tail[1..])).is_err());
    }
}
