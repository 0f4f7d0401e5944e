//! What the core believes: tokens (A.5) and frames (A.7).

use std::collections::HashMap;

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;

use super::{Chunk, Refused, SECRET};

fn key() -> hmac::Key {
    hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes())
}

/// A token as A.1 mints it.
pub fn mint(claims: &Value) -> String {
    let signed = format!("proofline-relay-capability-v1.{}", URL_SAFE_NO_PAD.encode(claims.to_string()));
    let tag = hmac::sign(&key(), signed.as_bytes());
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(tag))
}

/// A.5, in its order.
pub(super) fn capability(
    token: &str,
    role: &str,
    session: &str,
    incident: &str,
    stream: &str,
) -> Result<Value, Refused> {
    const INVALID: Refused = (401, "relay_capability_invalid");
    let parts: Vec<&str> = token.split('.').collect();
    let ["proofline-relay-capability-v1", claims, tag] = parts[..] else { return Err(INVALID) };
    let tag = URL_SAFE_NO_PAD.decode(tag).map_err(|_| INVALID)?;
    let signed = &token[..token.rfind('.').unwrap()];
    hmac::verify(&key(), signed.as_bytes(), &tag).map_err(|_| INVALID)?;
    let claims = URL_SAFE_NO_PAD.decode(claims).map_err(|_| INVALID)?;
    let claims: Value = serde_json::from_slice(&claims).map_err(|_| INVALID)?;
    if claims["version"] != "proofline.relay-capability.v1" {
        return Err(INVALID);
    }
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    if now >= claims["exp"].as_u64().ok_or(INVALID)? {
        return Err((401, "relay_capability_expired"));
    }
    if claims["role"] != role {
        return Err((403, "relay_capability_wrong_role"));
    }
    for (name, value) in [("relay_session_id", session), ("incident_id", incident), ("stream_id", stream)] {
        if claims[name] != value {
            return Err((403, "relay_capability_wrong_binding"));
        }
    }
    Ok(claims)
}

/// A.7: magic, version, a header that names this chunk, and at least one byte behind it.
pub(super) fn is_frame(file: &[u8], chunk: &Chunk) -> bool {
    let Some(rest) = file.strip_prefix(b"PLPQENC1\n\x01") else { return false };
    let Some((length, rest)) = rest.split_at_checked(4) else { return false };
    let length = u32::from_be_bytes(length.try_into().unwrap()) as usize;
    let Some((mut header, payload)) = rest.split_at_checked(length) else { return false };
    let mut fields = HashMap::new();
    while let Some((name, after)) = prefixed(header, 2) {
        let Some((value, after)) = prefixed(after, 4) else { return false };
        fields.insert(name, value);
        header = after;
    }
    let says = |name: &str, value: &str| fields.get(name.as_bytes()).is_some_and(|known| *known == value.as_bytes());
    header.is_empty()
        && !payload.is_empty()
        && fields.len() == 11
        && says("incident_id", &chunk.incident)
        && says("stream_id", &chunk.stream)
        && says("media_type", &chunk.media)
        && says("chunk_index", &chunk.index.to_string())
}

fn prefixed(bytes: &[u8], width: usize) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_at_checked(width)?;
    let length = length.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte));
    rest.split_at_checked(length)
}
