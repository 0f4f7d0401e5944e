//! Our JWT (`wire.md`, "Capability"), in the one profile that is allowed. Strict on purpose: one
//! spelling, two names of one algorithm, no header parameter that means anything else.
//! `docs/decisions/0001-own-jwt-reader.md` says why this is not a library's.

use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;

use crate::proto::Code;
use crate::proto::claims::{Grant, JWT_TYP, JwtClaims};

/// Bytes of an Ed25519 signature.
const SIGNATURE: usize = 64;

#[derive(Deserialize)]
struct Header {
    typ: String,
    alg: String,
    kid: String,
    /// Extensions that must be understood (RFC 7515 §4.1.11): none is.
    crit: Option<serde_json::Value>,
}

/// A token whose form is right and whose signature is not yet checked.
pub(super) struct Unverified<'a> {
    /// Names the key.
    pub(super) kid: String,
    signed: &'a str,
    claims: &'a str,
    signature: [u8; SIGNATURE],
}

/// Takes a token apart. Nothing it claims is looked at.
pub(super) fn parse(token: &str) -> Result<Unverified<'_>, Code> {
    let (signed, signature) = token.rsplit_once('.').ok_or(Code::CapabilityInvalid)?;
    let (header, claims) = signed.split_once('.').ok_or(Code::CapabilityInvalid)?;
    if claims.contains('.') {
        return Err(Code::CapabilityInvalid);
    }
    let header: Header = serde_json::from_slice(&decode(header)?).map_err(|_| Code::CapabilityInvalid)?;
    let known = header.typ == JWT_TYP && matches!(header.alg.as_str(), "Ed25519" | "EdDSA") && header.crit.is_none();
    if !known {
        return Err(Code::CapabilityInvalid);
    }
    let signature = decode(signature)?.try_into().map_err(|_| Code::CapabilityInvalid)?;
    Ok(Unverified { kid: header.kid, signed, claims, signature })
}

impl Unverified<'_> {
    /// Checks the signature, then the claims.
    pub(super) fn verify(&self, key: &[u8; 32], audience: &str, now: i64) -> Result<Grant, Code> {
        UnparsedPublicKey::new(&ED25519, key)
            .verify(self.signed.as_bytes(), &self.signature)
            .map_err(|_| Code::CapabilityInvalid)?;
        let claims: JwtClaims = serde_json::from_slice(&decode(self.claims)?).map_err(|_| Code::CapabilityInvalid)?;
        claims.into_grant(audience, now)
    }
}

fn decode(text: &str) -> Result<Vec<u8>, Code> {
    URL_SAFE_NO_PAD.decode(text).map_err(|_| Code::CapabilityInvalid)
}
