//! What a client reads from its own capability, without verifying it: when it runs out and how
//! far it reaches. The relay and the core do the verifying.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use waystation_proto::claims::{JwtClaims, MAX_TOKEN_BYTES, PROOFLINE_PREFIX, ProoflineClaims};
use waystation_proto::id::{SessionId, StreamId};
use zeroize::Zeroizing;

/// A capability and what it says of itself. Never printed; wiped when the last holder drops it.
#[derive(Clone)]
pub struct Token {
    text: Arc<Zeroizing<String>>,
    /// Unix seconds of its issue.
    pub issued: i64,
    /// Unix seconds from which on it is expired.
    pub expires: i64,
    /// Relay session, in our format.
    pub sid: Option<SessionId>,
    /// Streams it names with their highest index; empty: every lane (fan-out only).
    reach: Arc<[(StreamId, u64)]>,
}

/// A text that is no capability of either format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a capability")]
pub struct InvalidToken;

impl Token {
    /// Reads the claims of either format.
    ///
    /// # Errors
    /// [`InvalidToken`]
    pub fn parse(text: &str) -> Result<Self, InvalidToken> {
        if text.len() > MAX_TOKEN_BYTES {
            return Err(InvalidToken);
        }
        let payload = text.split('.').nth(1).ok_or(InvalidToken)?;
        let payload = Zeroizing::new(URL_SAFE_NO_PAD.decode(payload).map_err(|_| InvalidToken)?);
        let (issued, expires, sid, reach) = if text.starts_with(PROOFLINE_PREFIX) {
            let claims: ProoflineClaims = serde_json::from_slice(&payload).map_err(|_| InvalidToken)?;
            let stream = StreamId::new(&claims.stream_id).map_err(|_| InvalidToken)?;
            (claims.iat, claims.exp, None, vec![(stream, claims.max_chunks.unsigned_abs())])
        } else {
            let claims: JwtClaims = serde_json::from_slice(&payload).map_err(|_| InvalidToken)?;
            let reach = claims.lanes.into_iter().map(|lane| (lane.stream, lane.max_chunks)).collect();
            (claims.iat, claims.exp, Some(claims.sid), reach)
        };
        Ok(Self { text: Arc::new(Zeroizing::new(text.into())), issued, expires, sid, reach: reach.into() })
    }

    /// The text, for the wire only.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The highest index it allows for a stream; `None` if it does not name the stream.
    #[must_use]
    pub fn max_chunks(&self, stream: &StreamId) -> Option<u64> {
        self.reach.iter().find(|(named, _)| named == stream).map(|(_, max)| *max)
    }

    /// The streams it names.
    pub fn streams(&self) -> impl Iterator<Item = &StreamId> {
        self.reach.iter().map(|(stream, _)| stream)
    }

    /// Milliseconds since the Unix epoch at which two thirds of its life are over.
    #[must_use]
    pub fn renew_at_ms(&self) -> i64 {
        let life_ms = self.expires.saturating_sub(self.issued).saturating_mul(1000);
        self.issued.saturating_mul(1000).saturating_add(life_ms / 3 * 2)
    }

    /// Whether it is expired at this moment (milliseconds since the Unix epoch).
    #[must_use]
    pub const fn expired(&self, now_ms: i64) -> bool {
        now_ms >= self.expires.saturating_mul(1000)
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(…)")
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// An unsigned capability of our format: clients don't look at the signature.
    pub(crate) fn forge(streams: &[(&str, u64)], iat: i64, exp: i64) -> String {
        let lanes: Vec<_> = streams
            .iter()
            .map(|(stream, max)| {
                serde_json::json!({"stream": stream, "variant": "audio_priority", "media": "audio",
                    "max_chunk_bytes": 1 << 20, "max_chunks": max})
            })
            .collect();
        let payload = serde_json::json!({"iss": "core", "aud": "relay", "iat": iat, "exp": exp, "jti": "j",
            "sid": "s", "use": "upload", "incident": "i", "group": "g", "lanes": lanes});
        format!("e30.{}.e30", URL_SAFE_NO_PAD.encode(payload.to_string()))
    }

    #[test]
    fn both_formats_say_when_they_end_and_how_far_they_reach() {
        let token = Token::parse(&forge(&[("a", 8)], 1000, 1300)).unwrap();
        assert_eq!(token.renew_at_ms(), 1_200_000);
        assert_eq!(token.max_chunks(&StreamId::new("a").unwrap()), Some(8));
        assert_eq!(token.max_chunks(&StreamId::new("b").unwrap()), None);
        assert!(token.expired(1_300_000) && !token.expired(1_299_999));

        let vectors: serde_json::Value = serde_json::from_str(include_str!("../testdata/vectors.json")).unwrap();
        let text = vectors["capability_vectors"]["upload_basic"]["token"].as_str().unwrap();
        let token = Token::parse(text).unwrap();
        assert_eq!(token.expires, 1_781_093_100);
        assert_eq!(token.max_chunks(&StreamId::new("stream_1").unwrap()), Some(64));
    }

    #[test]
    fn a_token_cannot_be_printed_and_anything_else_is_refused() {
        assert_eq!(format!("{:?}", Token::parse(&forge(&[("a", 8)], 1, 2)).unwrap()), "Token(…)");
        for text in ["", "a.b.c", "e30.e30.e30", &"a".repeat(MAX_TOKEN_BYTES + 1)] {
            assert!(Token::parse(text).is_err());
        }
    }
}
