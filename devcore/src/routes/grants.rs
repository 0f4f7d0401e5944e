//! Grants for contacts, as the account makes and revokes them: one per contact, handed over in a link.

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::json;

use crate::answer::{Answer, Stop};
use crate::call::Call;
use crate::clock::{random, random_id};
use crate::refusal;
use crate::store::Grant;

/// `POST /v1/incidents/{incident}/groups/{group}/grants`. The answer is the only place that shows the secret.
pub(crate) async fn new_grant(call: &mut Call, incident: &str, group: &str) -> Result<Answer, Stop> {
    known(call)?;
    call.account()?;
    call.object(&[]).await?;
    let now = call.core.clock.unix_s();
    let life = i64::try_from(call.core.options.grant_ttl.as_secs()).unwrap_or(i64::MAX);
    let grant = Grant {
        id: random_id("gnt_"),
        incident: incident.to_owned(),
        group: group.to_owned(),
        session: random_id(""),
        expires: now.saturating_add(life),
        revoked: false,
    };
    let secret = URL_SAFE_NO_PAD.encode(random::<32>());
    call.core.store.new_grant(grant.clone(), hashed(&secret), now).await?;
    let answer = json!({ "id": grant.id, "secret": secret, "created_at": now, "expires_at": grant.expires });
    Ok(Answer::json(201, &json!({ "grant": answer })))
}

/// `POST /v1/incidents/{incident}/groups/{group}/grants/{id}/revoke`.
pub(crate) async fn revoke(call: &mut Call, incident: &str, group: &str, id: &str) -> Result<Answer, Stop> {
    known(call)?;
    call.account()?;
    call.object(&[]).await?;
    call.core.revoke_grant(incident, group, id).await?;
    Ok(Answer::json(200, &json!({ "grant": { "id": id, "revoked": true } })))
}

/// The unchanged core has no such routes.
pub(super) fn known(call: &Call) -> Result<(), Stop> {
    if call.core.options.hmac_only { Err(refusal::NOT_FOUND.into()) } else { Ok(()) }
}

/// What is kept of a secret.
pub(super) fn hashed(secret: &str) -> [u8; 32] {
    digest::digest(&digest::SHA256, secret.as_bytes()).as_ref().try_into().unwrap_or_default()
}
