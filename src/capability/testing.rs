//! Tokens for tests: a fixed key, a clock, and a verifier that knows both.

use std::io::Write as _;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use super::Verifier;
use crate::clock::Clock;
use crate::config;
use crate::core::Fetch;
use crate::telemetry::Metrics;

/// 2026-06-10T12:01:00Z: one minute into the tokens below.
pub(crate) const NOW: i64 = 1_781_092_860;
pub(crate) const IAT: i64 = 1_781_092_800;
pub(crate) const EXP: i64 = 1_781_093_100;
pub(crate) const AUDIENCE: &str = "waystation-test";
pub(crate) const KID: &str = "test-1";
/// Of the core's test key. Test use only.
pub(crate) const CORE_SEED: [u8; 32] = [0x11; 32];
/// Of the capture client's test key. Test use only.
pub(crate) const CLIENT_SEED: [u8; 32] = [0x22; 32];

pub(crate) fn pair(seed: &[u8; 32]) -> Ed25519KeyPair {
    Ed25519KeyPair::from_seed_unchecked(seed).unwrap()
}

pub(crate) fn jwk(seed: &[u8; 32], kid: Option<&str>) -> Value {
    let mut jwk = json!({"kty": "OKP", "crv": "Ed25519", "x": b64(pair(seed).public_key().as_ref())});
    if let Some(kid) = kid {
        jwk["kid"] = kid.into();
    }
    jwk
}

pub(crate) fn jwks() -> Value {
    json!({"keys": [jwk(&CORE_SEED, Some(KID))]})
}

pub(crate) fn b64(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

pub(crate) fn header() -> Value {
    json!({"typ": "waystation-capability+jwt", "alg": "Ed25519", "kid": KID})
}

pub(crate) fn upload_claims() -> Value {
    json!({
        "iss": "https://core.example", "aud": AUDIENCE, "iat": IAT, "exp": EXP, "jti": "jti_1", "sid": "sid_1",
        "use": "upload", "incident": "incident_1", "group": "group_1",
        "lanes": [
            {"stream": "stream_1", "variant": "audio_priority", "media": "audio", "max_chunk_bytes": 1024, "max_chunks": 64},
            {"stream": "stream_2", "variant": "live_preview", "media": "video", "max_chunk_bytes": 262144, "max_chunks": 64},
        ],
    })
}

pub(crate) fn fanout_claims() -> Value {
    let mut claims = upload_claims();
    claims["use"] = "fanout".into();
    claims["jti"] = "jti_2".into();
    claims["lanes"] = json!([]);
    claims
}

/// Signs with the seed's key, whatever the header says.
pub(crate) fn sign(header: &Value, claims: &Value, seed: &[u8; 32]) -> String {
    let signed = format!("{}.{}", b64(header.to_string().as_bytes()), b64(claims.to_string().as_bytes()));
    let signature = pair(seed).sign(signed.as_bytes());
    format!("{signed}.{}", b64(signature.as_ref()))
}

/// A token that [`verifier`] accepts.
pub(crate) fn mint(claims: &Value) -> String {
    sign(&header(), claims, &CORE_SEED)
}

pub(crate) fn config(jwks_file: Option<&std::path::Path>, secret: Option<&str>) -> config::Capability {
    config::Capability {
        jwks_url: None,
        jwks_file: jwks_file.map(Into::into),
        audience: AUDIENCE.into(),
        proofline_secret: secret.map(Into::into),
    }
}

/// Knows the core's test key and fetches nothing.
pub(crate) fn verifier(clock: &Clock, metrics: &Metrics) -> Verifier {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(jwks().to_string().as_bytes()).unwrap();
    let config = config(Some(file.path()), None);
    Verifier::new(&config, Fetch::nothing(clock.clone()), clock.clone(), metrics.clone()).unwrap()
}

/// The core takes a capability back.
pub(crate) fn revoke(verifier: &Verifier, jti: &str) {
    assert!(verifier.0.revocations.adopt(json!({ "revoked": [jti] }).to_string().as_bytes()));
}

pub(crate) fn clock(unix_s: i64) -> Clock {
    Clock::at_unix_ms(unix_s * 1000)
}
