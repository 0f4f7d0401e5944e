//! The account's routes of the public core: incidents, streams, relay sessions (contract A.1, A.8).

use serde_json::json;
use waystation_proto::Media;
use waystation_proto::claims::Use;

use crate::answer::{Answer, Stop};
use crate::call::Call;
use crate::capability::proofline::Mint;
use crate::clock::{random_id, rfc3339};
use crate::json::Kind;
use crate::limiter::Class;
use crate::refusal;
use crate::store::{IncidentState, NewStream, StreamRow};

/// `POST /v1/incidents`.
pub(crate) async fn new_incident(call: &mut Call) -> Result<Answer, Stop> {
    call.account()?;
    call.object(&[("label", Kind::Text)]).await?;
    let id = random_id("inc_");
    call.core.store.new_incident(id.clone()).await?;
    Ok(Answer::json(201, &json!({ "incident": { "id": id, "status": "open" } })))
}

/// `POST /v1/incidents/{incident}/close`.
pub(crate) async fn close_incident(call: &mut Call, incident: &str) -> Result<Answer, Stop> {
    call.account()?;
    call.object(&[]).await?;
    call.core.store.stream(incident, "").await?.known_incident()?;
    call.core.store.set_incident(incident, IncidentState::Closed).await?;
    Ok(Answer::json(200, &json!({ "incident": { "id": incident, "status": "closed" } })))
}

/// `POST /v1/incidents/{incident}/streams`.
pub(crate) async fn new_stream(call: &mut Call, incident: &str) -> Result<Answer, Stop> {
    call.account()?;
    let body = call.object(&[("media_type", Kind::Text), ("label", Kind::Text)]).await?;
    let media = Media::parse(body.text("media_type")).ok_or(refusal::INVALID_MEDIA_TYPE)?;
    let new = NewStream {
        id: random_id("str_"),
        incident: incident.to_owned(),
        group: None,
        variant: None,
        media,
        label: body.text("label").to_owned(),
        follows: None,
    };
    let stream = call.core.store.new_stream(new).await?;
    Ok(Answer::json(201, &json!({ "stream": stream_json(incident, &stream) })))
}

/// `POST /v1/incidents/{incident}/streams/{stream}/complete`.
pub(crate) async fn complete_stream(call: &mut Call, incident: &str, stream: &str) -> Result<Answer, Stop> {
    call.account()?;
    let body = call.object(&[("expected_chunk_count", Kind::Integer)]).await?;
    let expected = body.integer("expected_chunk_count").filter(|count| *count > 0);
    let expected = expected.ok_or(refusal::INVALID_EXPECTED_CHUNK_COUNT)?.unsigned_abs();
    let blobs = call.core.blobs.clone();
    let there = move |blob: &str| blobs.path(blob).exists();
    let stream = call.core.store.complete(incident, stream, expected, there).await?;
    Ok(Answer::json(200, &json!({ "stream": stream_json(incident, &stream) })))
}

/// `POST /v1/incidents/{incident}/streams/{stream}/fail`.
pub(crate) async fn fail_stream(call: &mut Call, incident: &str, stream: &str) -> Result<Answer, Stop> {
    call.account()?;
    let body = call.object(&[("failure_reason", Kind::Text)]).await?;
    let stream = call.core.store.fail(incident, stream, body.text("failure_reason").to_owned()).await?;
    Ok(Answer::json(200, &json!({ "stream": stream_json(incident, &stream) })))
}

/// `POST /v1/incidents/{incident}/streams/{stream}/relay-session`. The body is never read.
pub(crate) async fn relay_session(call: &mut Call, incident: &str, stream: &str) -> Result<Answer, Stop> {
    let core = &call.core;
    core.limit(Class::Stream, call.host)?;
    call.account()?;
    let target = core.store.stream(incident, stream).await?;
    let media = target.open_stream()?.media;
    let secret = core.capability_secret.token.as_ref().ok_or(refusal::CAPABILITY_NOT_CONFIGURED)?;
    let session = random_id("");
    let now_ms = core.clock.unix_ms();
    let ttl_ms = i64::try_from(core.options.capability_ttl.as_millis()).unwrap_or(i64::MAX);
    let expires_ms = now_ms.saturating_add(ttl_ms);
    let mint = |use_| {
        let mint = Mint {
            session: &session,
            use_,
            incident,
            stream,
            iat: now_ms.div_euclid(1000),
            exp: expires_ms.div_euclid(1000),
            max_chunk_bytes: core.options.max_upload_bytes,
            max_chunks: core.options.max_chunks,
            media: media.as_str(),
        };
        mint.sign(secret.as_str())
    };
    let answer = json!({ "relay_session": {
        "relay_session_id": session,
        "capability": mint(Use::Upload),
        "fanout_capability": mint(Use::Fanout),
        "role": "upload",
        "incident_id": incident,
        "stream_id": stream,
        "expires_at": rfc3339(expires_ms),
        "max_chunk_bytes": core.options.max_upload_bytes,
        "max_chunks": core.options.max_chunks,
        "allowed_media_types": [media],
    }});
    Ok(Answer::json(201, &answer))
}

/// A stream as answers show it.
pub(crate) fn stream_json(incident: &str, stream: &StreamRow) -> serde_json::Value {
    let mut json = json!({
        "id": stream.id,
        "incident_id": incident,
        "status": stream.state.as_str(),
        "media_type": stream.media,
        "media": stream.media,
        "label": stream.label,
    });
    if let Some(group) = &stream.group {
        json["group"] = group.as_str().into();
    }
    if let Some(variant) = stream.variant {
        json["variant"] = variant.as_str().into();
    }
    if let Some(follows) = &stream.follows {
        json["follows"] = follows.as_str().into();
    }
    json
}
