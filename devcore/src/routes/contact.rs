//! What a contact asks for with its grant: short capabilities to watch, and what the core holds of the
//! lanes that contacts may see. A page calls these from another origin.

use http::header::{ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_MAX_AGE, AUTHORIZATION};
use http::{HeaderMap, HeaderValue};
use serde_json::{Value, json};
use waystation_proto::claims::{JWT_TYP, Use};
use waystation_proto::{ChunkRef, IncidentId, StreamId};

use super::grants::{hashed, known};
use crate::answer::{Answer, Stop};
use crate::call::Call;
use crate::limiter::Class;
use crate::refusal;
use crate::store::{Grant, Shown};

/// Chunks listed at once; also what is listed if nothing is asked for.
const MAX_PAGE: u32 = 500;
/// Characters of a grant's secret: 32 bytes as base64url.
const SECRET_CHARACTERS: usize = 43;

/// `OPTIONS` of every route that pages call.
pub(crate) fn preflight() -> Answer {
    Answer::nothing()
        .with(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST"))
        .with(ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static("Authorization, Content-Type"))
        .with(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"))
}

/// `POST /v1/contact/capability`.
pub(crate) async fn capability(call: &mut Call) -> Result<Answer, Stop> {
    let grant = grant(call).await?;
    call.object(&[]).await?;
    let core = &call.core;
    let now = core.clock.unix_s();
    let life = i64::try_from(core.options.contact_ttl.as_secs()).unwrap_or(i64::MAX);
    let exp = now.saturating_add(life).min(grant.expires);
    let claims = core.claims(Use::Fanout, &grant.incident, &grant.group, &grant.session, exp);
    let claims = claims.ok_or(refusal::INTERNAL_ERROR)?;
    let capability = core.keys.sign(JWT_TYP, &claims).ok_or(refusal::INTERNAL_ERROR)?;
    core.store.granted(&grant, claims.jti, exp, now).await?;
    let answer = json!({
        "capability": capability,
        "expires_at": exp,
        "incident": grant.incident,
        "group": grant.group,
        "signs_receipts": core.options.signs_receipts(),
    });
    Ok(Answer::json(200, &answer))
}

/// `GET /v1/contact/chunks?after=…&limit=…`: what is confirmed of the lanes that contacts may see.
pub(crate) async fn chunks(call: &Call) -> Result<Answer, Stop> {
    let grant = readable(call).await?;
    let (after, limit) = page(&call.query).ok_or(refusal::INVALID_PAGE)?;
    let shown = call.core.store.shown(&grant, after, limit).await?;
    let incident = IncidentId::new(&grant.incident).map_err(|_| refusal::INTERNAL_ERROR)?;
    let receipts = call.core.options.signs_receipts();
    let listed: Vec<Value> = shown.iter().filter_map(|one| listed(&incident, one, receipts)).collect();
    // A page whose incident was closed before it came learns here what it is to open.
    let mut answer = json!({ "chunks": listed, "incident": grant.incident, "signs_receipts": receipts });
    // Also where this is all there is by now: what comes later is asked for from here.
    if let Some(last) = shown.last() {
        answer["next"] = last.place.to_string().into();
    }
    Ok(Answer::json(200, &answer))
}

/// `GET /v1/contact/chunks/{ref}`: the stored bytes.
pub(crate) async fn bytes(call: &Call, name: &str) -> Result<Answer, Stop> {
    let grant = readable(call).await?;
    let name = ChunkRef::parse(name).map_err(|_| refusal::NOT_FOUND)?;
    let row = call.core.store.shown_chunk(&grant, name).await?.ok_or(refusal::NOT_FOUND)?;
    let file = tokio::fs::File::open(call.core.blobs.path(&row.blob)).await.map_err(|_| refusal::INTERNAL_ERROR)?;
    Ok(Answer::file(file, row.size))
}

/// The grant that the call shows, if it holds.
async fn grant(call: &Call) -> Result<Grant, Stop> {
    known(call)?;
    call.core.limit(Class::Contact, call.host)?;
    let secret = shown(&call.headers).ok_or(refusal::GRANT_UNKNOWN)?;
    let grant = call.core.store.grant(hashed(secret)).await?.ok_or(refusal::GRANT_UNKNOWN)?;
    if grant.revoked {
        return Err(refusal::GRANT_REVOKED.into());
    }
    if grant.expires <= call.core.clock.unix_s() {
        return Err(refusal::GRANT_EXPIRED.into());
    }
    Ok(grant)
}

/// The grant, where the incident is open or closed: one that is being deleted shows nothing any more.
async fn readable(call: &Call) -> Result<Grant, Stop> {
    let grant = grant(call).await?;
    call.core.store.stream(&grant.incident, "").await?.known_incident().map_err(|_| refusal::NOT_FOUND)?;
    Ok(grant)
}

fn shown(headers: &HeaderMap) -> Option<&str> {
    let secret = headers.get(AUTHORIZATION)?.to_str().ok()?.strip_prefix("Bearer ")?;
    (secret.len() == SECRET_CHARACTERS).then_some(secret)
}

/// `after` and `limit` of a query; members it does not know are skipped.
fn page(query: &str) -> Option<(u64, u32)> {
    let (mut after, mut limit) = (0, MAX_PAGE);
    for (name, value) in query.split('&').filter_map(|member| member.split_once('=')) {
        match name {
            "after" => after = value.parse::<u32>().ok()?.into(),
            "limit" => limit = value.parse::<u32>().ok().filter(|limit| *limit > 0)?.min(MAX_PAGE),
            _ => {}
        }
    }
    Some((after, limit))
}

fn listed(incident: &IncidentId, shown: &Shown, receipts: bool) -> Option<Value> {
    let row = &shown.chunk;
    let stream = StreamId::new(&row.stream).ok()?;
    let mut json = json!({
        "ref": ChunkRef::of(incident, &stream, row.index).to_string(),
        "stream": row.stream,
        "variant": shown.variant,
        "media": row.media,
        "index": row.index,
        "length": row.size,
        "sha256": row.sha256,
        "started": row.started,
        "ended": row.ended,
    });
    if let Some(receipt) = row.receipt.as_ref().filter(|_| receipts) {
        json["receipt"] = receipt.as_str().into();
    }
    Some(json)
}

/// What a page may read of every answer, refusals too: the bearer decides, not the page's origin.
pub(crate) fn readable_by_pages(answer: Answer) -> Answer {
    use http::header::{ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS};
    answer
        .with(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"))
        .with(ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static("Content-Length, Retry-After"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_bounded() {
        assert_eq!(page(""), Some((0, 500)));
        assert_eq!(page("after=7&limit=3&more=1"), Some((7, 3)));
        assert_eq!(page("limit=9999"), Some((0, 500)));
        for bad in ["limit=0", "limit=-1", "limit=", "after=x", "after=-1", "after=99999999999999999999"] {
            assert_eq!(page(bad), None, "{bad}");
        }
    }
}
