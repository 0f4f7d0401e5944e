//! Whose request it is: the one token of `Authorization`, or the name of one that the connection
//! knows.

use std::sync::{Arc, Mutex, PoisonError};

use http::header::{self, HeaderMap};

use super::conn::Ctx;
use crate::admission::Refusal;
use crate::capability::Capability;
use crate::proto::Code;
use crate::proto::claims::{MAX_TOKEN_BYTES, Use};
use crate::proto::known::{self, CapabilityName, KNOWN_SCHEME};

/// What `Authorization` holds.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Bearer<'a> {
    /// The token itself.
    Token(&'a str),
    /// The name of one that came over this connection.
    Known(CapabilityName),
}

/// The upload capabilities that were taken on one connection. Each is looked at anew whenever it
/// is named: it may have run out or been revoked.
#[derive(Default)]
pub(super) struct Known(Mutex<known::Known<Arc<str>>>);

impl Known {
    /// A capability was taken on this connection.
    pub(super) fn learn(&self, capability: &Capability) {
        // Contacts are many, idle, and name theirs once.
        if capability.grant.use_ == Use::Upload {
            let name = CapabilityName::of(&capability.token);
            self.0.lock().unwrap_or_else(PoisonError::into_inner).learn(name, Arc::clone(&capability.token));
        }
    }

    fn token(&self, name: CapabilityName) -> Option<Arc<str>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }
}

/// The bearer's capability.
pub(super) async fn capability(ctx: &Ctx, headers: &HeaderMap) -> Result<Capability, Refusal> {
    let known;
    let token = match bearer(headers)? {
        Bearer::Token(token) => token,
        Bearer::Known(name) => {
            let found = ctx.conn.known.token(name).ok_or(Code::CapabilityNotKnown);
            ctx.shared.metrics.ingress.name_capability(found.as_ref().err().copied());
            known = found?;
            &known
        }
    };
    let capability = ctx.shared.admission.capability(token, ctx.client).await?;
    ctx.conn.known.learn(&capability);
    if let Some(session) = ctx.shared.admission.hinted(&capability) {
        ctx.ticket.hint_to(session);
    }
    Ok(capability)
}

/// The one token of `Authorization: Bearer`, or the one name of `Authorization: Waystation-Known`.
pub(super) fn bearer(headers: &HeaderMap) -> Result<Bearer<'_>, Code> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let value = values.next().ok_or(Code::CapabilityMissing)?;
    if values.next().is_some() {
        return Err(Code::BadRequest);
    }
    let value = value.to_str().map_err(|_| Code::CapabilityInvalid)?;
    let (scheme, token) = value.split_once(' ').ok_or(Code::CapabilityMissing)?;
    let token = token.trim_matches(' ');
    if scheme.eq_ignore_ascii_case(KNOWN_SCHEME) {
        return CapabilityName::parse(token).map(Bearer::Known).map_err(|_| Code::CapabilityNotKnown);
    }
    if !scheme.eq_ignore_ascii_case("bearer") || token.is_empty() {
        return Err(Code::CapabilityMissing);
    }
    if token.len() > MAX_TOKEN_BYTES {
        return Err(Code::CapabilityInvalid);
    }
    Ok(Bearer::Token(token))
}

#[cfg(test)]
mod tests {
    use http::header::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn of(values: &[&str]) -> Result<String, Code> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(header::AUTHORIZATION, value.parse().unwrap());
        }
        bearer(&headers).map(|bearer| match bearer {
            Bearer::Token(token) => token.to_owned(),
            Bearer::Known(name) => format!("the one named {name}"),
        })
    }

    #[test]
    fn one_bearer_token_or_name_is_needed() {
        assert_eq!(of(&["Bearer abc"]), Ok("abc".into()));
        assert_eq!(of(&["bearer  abc "]), Ok("abc".into()));
        assert_eq!(of(&[]), Err(Code::CapabilityMissing));
        assert_eq!(of(&["Bearer"]), Err(Code::CapabilityMissing));
        assert_eq!(of(&["Bearer "]), Err(Code::CapabilityMissing));
        assert_eq!(of(&["Basic abc"]), Err(Code::CapabilityMissing));
        assert_eq!(of(&["Bearer a", "Bearer b"]), Err(Code::BadRequest));
        assert_eq!(of(&[&format!("Bearer {}", "a".repeat(MAX_TOKEN_BYTES + 1))]), Err(Code::CapabilityInvalid));
        let name = CapabilityName::of("abc");
        assert_eq!(of(&[&format!("waystation-known {name}")]), Ok(format!("the one named {name}")));
        assert_eq!(of(&["Waystation-Known abc"]), Err(Code::CapabilityNotKnown));
        assert_eq!(of(&["Waystation-Known"]), Err(Code::CapabilityMissing));
    }

    proptest! {
        #[test]
        fn no_header_panics(value in prop::collection::vec(0x20u8..=0xff, 0..80)) {
            if let Ok(value) = HeaderValue::from_bytes(&value) {
                let mut all = HeaderMap::new();
                all.insert(header::AUTHORIZATION, value);
                let _ = bearer(&all);
            }
        }
    }
}
