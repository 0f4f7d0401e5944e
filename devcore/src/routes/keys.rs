//! What relays and clients verify with: public keys and the revocation list.

use serde_json::json;

use crate::answer::{Answer, Stop};
use crate::call::{After, Call};
use crate::faults::{FaultRoute, Subject};
use crate::json::Kind;
use crate::refusal;

/// Longest `jti`, in bytes.
const MAX_JTI_BYTES: usize = 200;

/// `GET /v1/relay/jwks`: no authentication.
pub(crate) async fn jwks(call: &Call) -> Result<Answer, Stop> {
    let after = call.strike(FaultRoute::Jwks, Subject::Any).await?;
    if call.core.options.hmac_only {
        return Err(refusal::NOT_FOUND.into());
    }
    After::apply(after, Answer::json(200, &call.core.keys.jwks()))
}

/// `GET /v1/relay/revocations`: no authentication; a `jti` says nothing of what it names.
pub(crate) async fn revocations(call: &Call) -> Result<Answer, Stop> {
    if call.core.options.hmac_only {
        return Err(refusal::NOT_FOUND.into());
    }
    let revoked = call.core.store.revoked(call.core.clock.unix_s()).await?;
    Ok(Answer::json(200, &json!({ "revoked": revoked })))
}

/// `POST /v1/relay/revocations`.
pub(crate) async fn revoke(call: &mut Call) -> Result<Answer, Stop> {
    if call.core.options.hmac_only {
        return Err(refusal::NOT_FOUND.into());
    }
    call.account()?;
    let body = call.object(&[("jti", Kind::Text)]).await?;
    let jti = body.word("jti").filter(|jti| jti.len() <= MAX_JTI_BYTES).ok_or(refusal::INVALID_JTI)?;
    call.core.revoke(jti).await?;
    Ok(Answer::json(201, &json!({ "revoked": jti })))
}
