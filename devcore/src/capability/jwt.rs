//! Our capability: a compact JWS with Ed25519 (`wire.md`, "Capability").

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use waystation_proto::claims::{JWT_TYP, JwtClaims, MAX_TOKEN_BYTES};
use waystation_proto::{Code, StreamId};

use super::{Pass, Step};
use crate::fields::Ids;
use crate::refusal::{self, Refusal};

#[derive(Serialize, Deserialize)]
struct Header {
    typ: String,
    alg: String,
    kid: String,
}

/// Signs `payload` as a compact JWS.
pub(crate) fn sign(typ: &str, kid: &str, key: &Ed25519KeyPair, payload: &impl Serialize) -> String {
    let header = Header { typ: typ.into(), alg: "Ed25519".into(), kid: kid.into() };
    let part = |json: serde_json::Result<Vec<u8>>| URL_SAFE_NO_PAD.encode(json.unwrap_or_default());
    let signed = format!("{}.{}", part(serde_json::to_vec(&header)), part(serde_json::to_vec(payload)));
    let signature = URL_SAFE_NO_PAD.encode(key.sign(signed.as_bytes()));
    format!("{signed}.{signature}")
}

/// The claims of a token that one of `key`'s keys signed; nothing else of them is checked.
pub(crate) fn open(token: &str, key: impl Fn(&str) -> Option<[u8; 32]>) -> Option<JwtClaims> {
    if token.len() > MAX_TOKEN_BYTES {
        return None;
    }
    let (signed, signature) = token.rsplit_once('.')?;
    let (header, payload) = signed.split_once('.')?;
    let header: Header = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(header).ok()?).ok()?;
    if header.typ != JWT_TYP || !matches!(header.alg.as_str(), "Ed25519" | "EdDSA") {
        return None;
    }
    let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
    UnparsedPublicKey::new(&ED25519, key(&header.kid)?).verify(signed.as_bytes(), &signature).ok()?;
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).ok()?).ok()
}

/// Checks opened claims for `ids` and `step` at `now` (Unix seconds), in the order of A.5.
pub(crate) fn verify(claims: JwtClaims, audience: &str, ids: &Ids, step: Step, now: i64) -> Result<Pass, Refusal> {
    // A commit may come after `exp`: its bytes were accepted before. `commit_exp` is checked below.
    let at = if step == Step::Commit { now.min(claims.exp.saturating_sub(1)) } else { now };
    let grant = claims.into_grant(audience, at).map_err(|code| match code {
        Code::CapabilityExpired => refusal::CAPABILITY_EXPIRED,
        _ => refusal::CAPABILITY_INVALID,
    })?;
    if step == Step::Commit && now >= grant.commit_exp {
        return Err(refusal::CAPABILITY_EXPIRED);
    }
    if grant.use_ != step.wants() {
        return Err(refusal::CAPABILITY_WRONG_ROLE);
    }
    if grant.session.as_str() != ids.session || grant.incident.as_str() != ids.incident {
        return Err(refusal::CAPABILITY_WRONG_BINDING);
    }
    if step == Step::Fanout && grant.lanes.is_empty() {
        return Ok(Pass { group: grant.group.map(|group| group.as_str().to_owned()), ..Pass::default() });
    }
    let stream = StreamId::new(&ids.stream).map_err(|_| refusal::CAPABILITY_WRONG_BINDING)?;
    let lane = grant.lane(&stream).ok_or(refusal::CAPABILITY_WRONG_BINDING)?;
    Ok(Pass {
        max_chunk_bytes: lane.max_chunk_bytes,
        max_chunks: lane.max_chunks,
        media: lane.media.iter().map(|media| media.as_str().to_owned()).collect(),
        client_key: grant.client_key,
        group: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims(use_: &str) -> JwtClaims {
        serde_json::from_value(serde_json::json!({
            "iss": "core", "aud": ["relay", "other"], "iat": 1000, "exp": 1300, "jti": "j", "sid": "s", "use": use_,
            "incident": "i", "group": "g", "commit_exp": 2000,
            "lanes": [{"stream": "a", "variant": "audio_priority", "media": "audio", "max_chunk_bytes": 10, "max_chunks": 2}],
        }))
        .unwrap()
    }

    fn ids() -> Ids {
        Ids { session: "s".into(), capability: String::new(), incident: "i".into(), stream: "a".into() }
    }

    fn said(use_: &str, ids: &Ids, step: Step, now: i64) -> String {
        match verify(claims(use_), "relay", ids, step, now) {
            Ok(_) => "ok".into(),
            Err(refusal) => refusal.code.into_owned(),
        }
    }

    #[test]
    fn commits_are_taken_until_commit_exp() {
        assert_eq!(said("upload", &ids(), Step::Preflight, 1299), "ok");
        assert_eq!(said("upload", &ids(), Step::Preflight, 1300), "relay_capability_expired");
        assert_eq!(said("upload", &ids(), Step::Commit, 1999), "ok");
        assert_eq!(said("upload", &ids(), Step::Commit, 2000), "relay_capability_expired");
        assert_eq!(said("fanout", &ids(), Step::Fanout, 1300), "relay_capability_expired");
        assert_eq!(said("upload", &ids(), Step::Commit, 900), "relay_capability_invalid", "issued in the future");
    }

    #[test]
    fn expiry_goes_before_use_and_use_before_binding() {
        let wrong = Ids { stream: "b".into(), session: "t".into(), ..ids() };
        assert_eq!(said("fanout", &wrong, Step::Preflight, 1300), "relay_capability_expired");
        assert_eq!(said("fanout", &wrong, Step::Preflight, 1000), "relay_capability_wrong_role");
        assert_eq!(said("upload", &wrong, Step::Preflight, 1000), "relay_capability_wrong_binding");
        for ids in [
            Ids { session: "t".into(), ..ids() },
            Ids { incident: "j".into(), ..ids() },
            Ids { stream: "b".into(), ..ids() },
        ] {
            assert_eq!(said("upload", &ids, Step::Commit, 1000), "relay_capability_wrong_binding");
        }
    }

    #[test]
    fn only_ed25519_of_a_known_key_opens() {
        let pair = Ed25519KeyPair::generate().unwrap();
        let key: [u8; 32] = aws_lc_rs::signature::KeyPair::public_key(&pair).as_ref().try_into().unwrap();
        let token = sign(JWT_TYP, "k", &pair, &claims("upload"));
        let find = |kid: &str| (kid == "k").then_some(key);
        assert!(open(&token, find).is_some());
        assert!(open(&token, |_| None).is_none());
        assert!(open(&token, |_| Some([1; 32])).is_none());
        assert!(open(&sign("JWT", "k", &pair, &claims("upload")), find).is_none());
        let mut altered = token.into_bytes();
        let at = altered.iter().position(|b| *b == b'.').unwrap() + 5;
        altered[at] ^= 1;
        assert!(open(std::str::from_utf8(&altered).unwrap(), find).is_none());
        let payload = URL_SAFE_NO_PAD.encode(serde_json::to_vec(&claims("upload")).unwrap());
        let none = URL_SAFE_NO_PAD.encode(format!(r#"{{"typ":"{JWT_TYP}","alg":"none","kid":"k"}}"#));
        assert!(open(&format!("{none}.{payload}."), find).is_none());
    }
}
