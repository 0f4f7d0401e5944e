//! Proofline's HMAC token (contract A.5), read as its core reads it: the same order of checks,
//! the same leniency in base64.

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use secrecy::{ExposeSecret as _, SecretString};

use super::Trust;
use crate::proto::Code;
use crate::proto::claims::{Grant, PROOFLINE_PREFIX, ProoflineClaims};

/// Shortest secret the core accepts, in bytes after trimming.
const MIN_SECRET: usize = 32;

/// Go's `RawURLEncoding`: no padding, and the spare bits of the last character are ignored.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &alphabet::URL_SAFE,
    GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::RequireNone),
);

/// The core's secret, as a key. `None` if it is shorter than the core allows.
pub(super) fn key(secret: &SecretString) -> Option<hmac::Key> {
    let secret = secret.expose_secret().trim().as_bytes();
    (secret.len() >= MIN_SECRET).then(|| hmac::Key::new(hmac::HMAC_SHA256, secret))
}

/// Whether a token is of this format at all.
pub(super) fn is_one(token: &str) -> bool {
    token.strip_prefix(PROOFLINE_PREFIX).is_some_and(|rest| rest.starts_with('.'))
}

/// Reads a token. With the key its signature is checked; without, what it says is only claimed.
pub(super) fn read(token: &str, key: Option<&hmac::Key>, now: i64) -> Result<(Grant, Trust), Code> {
    let mut parts = token.split('.');
    let (Some(PROOFLINE_PREFIX), Some(claims), Some(signature), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(Code::CapabilityInvalid);
    };
    let signature = decode(signature)?;
    let trust = match key {
        None => Trust::Claimed,
        Some(key) => {
            let signed = &token.as_bytes()[..PROOFLINE_PREFIX.len() + 1 + claims.len()];
            hmac::verify(key, signed, &signature).map_err(|_| Code::CapabilityInvalid)?;
            Trust::Verified
        }
    };
    let claims: ProoflineClaims = serde_json::from_slice(&decode(claims)?).map_err(|_| Code::CapabilityInvalid)?;
    Ok((claims.into_grant(now)?, trust))
}

fn decode(text: &str) -> Result<Vec<u8>, Code> {
    let text: Vec<u8> = text.bytes().filter(|byte| !matches!(byte, b'\r' | b'\n')).collect();
    LENIENT.decode(text).map_err(|_| Code::CapabilityInvalid)
}
