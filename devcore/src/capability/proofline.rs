//! Proofline's token, byte for byte (contract A.5).

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::alphabet::URL_SAFE;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, URL_SAFE_NO_PAD};
use waystation_proto::claims::{PROOFLINE_PREFIX, PROOFLINE_VERSION, Use};

use super::Pass;
use crate::fields::Ids;
use crate::json::{Kind, Object};
use crate::refusal::{self, Refusal};

/// Go's `RawURLEncoding`, which is not strict: spare bits are ignored (and so are CR and LF, see [`decode`]).
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::RequireNone),
);

const CLAIMS: &[(&str, Kind)] = &[
    ("version", Kind::Text),
    ("relay_session_id", Kind::Text),
    ("role", Kind::Text),
    ("incident_id", Kind::Text),
    ("stream_id", Kind::Text),
    ("iat", Kind::Integer),
    ("exp", Kind::Integer),
    ("max_chunk_bytes", Kind::Integer),
    ("max_chunks", Kind::Integer),
    ("allowed_media_types", Kind::Texts),
];

/// What a new token says.
pub(crate) struct Mint<'a> {
    pub(crate) session: &'a str,
    pub(crate) use_: Use,
    pub(crate) incident: &'a str,
    pub(crate) stream: &'a str,
    pub(crate) iat: i64,
    pub(crate) exp: i64,
    pub(crate) max_chunk_bytes: u64,
    pub(crate) max_chunks: u64,
    pub(crate) media: &'a str,
}

impl Mint<'_> {
    /// Signs it. The payload has the order and spelling of the core's.
    pub(crate) fn sign(&self, secret: &str) -> String {
        let claims = waystation_proto::claims::ProoflineClaims {
            version: PROOFLINE_VERSION.into(),
            relay_session_id: self.session.into(),
            role: role(self.use_).into(),
            incident_id: self.incident.into(),
            stream_id: self.stream.into(),
            iat: self.iat,
            exp: self.exp,
            max_chunk_bytes: i64::try_from(self.max_chunk_bytes).unwrap_or(i64::MAX),
            max_chunks: i64::try_from(self.max_chunks).unwrap_or(i64::MAX),
            allowed_media_types: vec![self.media.into()],
        };
        let payload = serde_json::to_vec(&claims).unwrap_or_default();
        let signed = format!("{PROOFLINE_PREFIX}.{}", URL_SAFE_NO_PAD.encode(payload));
        let tag = hmac::sign(&key(secret), signed.as_bytes());
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(tag))
    }
}

/// Checks a token for `ids` and `wants` at `now` (Unix seconds), in the core's order.
pub(crate) fn verify(secret: &str, ids: &Ids, wants: Use, now: i64) -> Result<Pass, Refusal> {
    let claims = signed_claims(secret, &ids.capability).ok_or(refusal::CAPABILITY_INVALID)?;
    let (iat, exp) = (number(&claims, "iat"), number(&claims, "exp"));
    let (max_chunk_bytes, max_chunks) = (number(&claims, "max_chunk_bytes"), number(&claims, "max_chunks"));
    let media = claims.texts("allowed_media_types");
    let named =
        ["relay_session_id", "role", "incident_id", "stream_id"].iter().all(|name| !claims.text(name).is_empty());
    let limits = max_chunk_bytes > 0 && max_chunks > 0 && !media.is_empty();
    if claims.text("version") != PROOFLINE_VERSION || !named || iat <= 0 || exp <= iat || !limits {
        return Err(refusal::CAPABILITY_INVALID);
    }
    if now >= exp {
        return Err(refusal::CAPABILITY_EXPIRED);
    }
    if claims.text("role") != role(wants) {
        return Err(refusal::CAPABILITY_WRONG_ROLE);
    }
    let bound = claims.text("relay_session_id") == ids.session
        && claims.text("incident_id") == ids.incident
        && claims.text("stream_id") == ids.stream;
    if !bound {
        return Err(refusal::CAPABILITY_WRONG_BINDING);
    }
    Ok(Pass {
        max_chunk_bytes: max_chunk_bytes.unsigned_abs(),
        max_chunks: max_chunks.unsigned_abs(),
        media: media.to_vec(),
        client_key: None,
        group: None,
    })
}

/// The signature covers the text of prefix and payload, so it is checked before the payload is decoded.
fn signed_claims(secret: &str, token: &str) -> Option<Object> {
    let mut parts = token.split('.');
    let (prefix, payload, signature) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() || prefix != PROOFLINE_PREFIX {
        return None;
    }
    let signature = decode(signature)?;
    let signed = &token[..prefix.len() + 1 + payload.len()];
    hmac::verify(&key(secret), signed.as_bytes(), &signature).ok()?;
    Object::claims(&decode(payload)?, CLAIMS).ok()
}

fn decode(text: &str) -> Option<Vec<u8>> {
    let text: String = text.chars().filter(|c| !matches!(c, '\r' | '\n')).collect();
    LENIENT.decode(text).ok()
}

fn key(secret: &str) -> hmac::Key {
    hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes())
}

fn number(claims: &Object, name: &str) -> i64 {
    claims.integer(name).unwrap_or_default()
}

const fn role(use_: Use) -> &'static str {
    match use_ {
        Use::Upload => "upload",
        Use::Fanout => "fanout",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vectors;

    fn ids(token: &str, context: &serde_json::Value) -> Ids {
        let text = |name: &str| context[name].as_str().unwrap().to_owned();
        Ids {
            session: text("relay_session_id"),
            capability: token.to_owned(),
            incident: text("incident_id"),
            stream: text("stream_id"),
        }
    }

    #[test]
    fn every_capability_check_vector() {
        let vectors = vectors::load();
        let checks = vectors["capability_checks"].as_array().unwrap();
        assert_eq!(checks.len(), 23);
        for check in checks {
            let context = &check["context"];
            let wants = if context["role"] == "upload" { Use::Upload } else { Use::Fanout };
            let ids = ids(check["token"].as_str().unwrap(), context);
            let now = context["now_unix"].as_i64().unwrap();
            let said = match verify(check["secret"].as_str().unwrap(), &ids, wants, now) {
                Ok(_) => "accepted".to_owned(),
                Err(refusal) => format!("{} {}", refusal.status, refusal.code),
            };
            assert_eq!(said, check["expect_core_response"].as_str().unwrap(), "{}", check["name"]);
        }
    }

    #[test]
    fn minted_tokens_equal_the_vectors() {
        let vectors = vectors::load();
        for (name, vector) in vectors["capability_vectors"].as_object().unwrap() {
            let claims: serde_json::Value = serde_json::from_str(vector["payload_json"].as_str().unwrap()).unwrap();
            let text = |name: &str| claims[name].as_str().unwrap();
            let minted = Mint {
                session: text("relay_session_id"),
                use_: if text("role") == "upload" { Use::Upload } else { Use::Fanout },
                incident: text("incident_id"),
                stream: text("stream_id"),
                iat: claims["iat"].as_i64().unwrap(),
                exp: claims["exp"].as_i64().unwrap(),
                max_chunk_bytes: claims["max_chunk_bytes"].as_u64().unwrap(),
                max_chunks: claims["max_chunks"].as_u64().unwrap(),
                media: claims["allowed_media_types"][0].as_str().unwrap(),
            }
            .sign(vector["secret"].as_str().unwrap());
            assert_eq!(minted, vector["token"].as_str().unwrap(), "{name}");
        }
    }

    #[test]
    fn line_breaks_in_a_signature_are_ignored_as_go_does() {
        let vectors = vectors::load();
        let ok = &vectors["capability_checks"][0];
        let token = ok["token"].as_str().unwrap();
        let mut ids = ids(token, &ok["context"]);
        let now = ok["context"]["now_unix"].as_i64().unwrap();
        ids.capability.insert_str(token.len() - 3, "\r\n");
        assert!(verify(ok["secret"].as_str().unwrap(), &ids, Use::Upload, now).is_ok());
        ids.capability.push('=');
        assert!(verify(ok["secret"].as_str().unwrap(), &ids, Use::Upload, now).is_err());
    }
}
