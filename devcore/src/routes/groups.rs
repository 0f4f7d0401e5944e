//! Capture groups, their streams, and the JWTs for them: what our clients ask beside the public core's routes.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::json;
use waystation_proto::claims::{Confirmation, JWT_TYP, Jwk, JwtClaims, JwtLane, Use};
use waystation_proto::media::{Media, Variant};
use waystation_proto::offer::parse_role;
use waystation_proto::{Code, SessionId, StreamId};

use super::account::stream_json;
use crate::answer::{Answer, Stop};
use crate::call::Call;
use crate::clock::random_id;
use crate::core::Core;
use crate::json::{Kind, Object};
use crate::refusal::{self, Refusal};
use crate::store::NewStream;

/// Streams in one capability.
const MAX_LANES: usize = 64;
/// Longest life of a capability, in seconds.
const MAX_TTL_S: i64 = 7 * 24 * 3600;

const CAPABILITY: &[(&str, Kind)] = &[
    ("use", Kind::Text),
    ("streams", Kind::Texts),
    ("ttl_s", Kind::Integer),
    ("max_chunks", Kind::Integer),
    ("client_key", Kind::Text),
    ("sid", Kind::Text),
];

/// `POST /v1/incidents/{incident}/groups`.
pub(crate) async fn new_group(call: &mut Call, incident: &str) -> Result<Answer, Stop> {
    call.account()?;
    call.object(&[]).await?;
    let id = random_id("grp_");
    call.core.store.new_group(incident, id.clone()).await?;
    Ok(Answer::json(201, &json!({ "group": { "id": id } })))
}

/// `POST /v1/incidents/{incident}/groups/{group}/streams`.
pub(crate) async fn new_stream(call: &mut Call, incident: &str, group: &str) -> Result<Answer, Stop> {
    call.account()?;
    let body = call.object(&[("variant", Kind::Text), ("media", Kind::Text), ("follows", Kind::Text)]).await?;
    let variant = parse_role(body.text("variant")).map_err(|code| match code {
        Code::RoleRefused => refusal::ROLE_REFUSED,
        _ => refusal::INVALID_ROLE,
    })?;
    let media = Media::parse(body.text("media")).ok_or(refusal::INVALID_MEDIA_TYPE)?;
    let new = NewStream {
        id: random_id("str_"),
        incident: incident.to_owned(),
        group: Some(group.to_owned()),
        variant: Some(variant),
        media,
        label: String::new(),
        follows: body.word("follows").map(str::to_owned),
    };
    let stream = call.core.store.new_stream(new).await?;
    Ok(Answer::json(201, &json!({ "stream": stream_json(incident, &stream) })))
}

/// `POST /v1/incidents/{incident}/groups/{group}/capabilities`.
pub(crate) async fn capabilities(call: &mut Call, incident: &str, group: &str) -> Result<Answer, Stop> {
    if call.core.options.hmac_only {
        return Err(refusal::NOT_FOUND.into());
    }
    call.account()?;
    let body = call.object(CAPABILITY).await?;
    let core = &call.core;
    let asked = Asked::read(core, &body)?;
    core.store.open_group(incident, group).await?;
    let lanes = lanes(core, incident, group, &asked).await?;
    let now = core.clock.unix_s();
    let grace = i64::try_from(core.options.commit_grace.as_secs()).unwrap_or(i64::MAX);
    let exp = now.saturating_add(asked.ttl_s);
    let plain = core.claims(asked.use_, incident, group, asked.session.as_str(), exp).ok_or(refusal::NOT_FOUND)?;
    let claims = JwtClaims {
        lanes,
        commit_exp: (asked.use_ == Use::Upload).then(|| exp.saturating_add(grace)),
        cnf: asked.client_key.map(|key| Confirmation { jwk: Jwk::from_ed25519(&key, None) }),
        ..plain
    };
    if asked.use_ == Use::Fanout {
        core.store.lent(group, &claims.jti, exp, now).await?;
    }
    let capability = core.keys.sign(JWT_TYP, &claims).ok_or(refusal::INTERNAL_ERROR)?;
    let answer = json!({ "capability": capability, "expires_at": exp, "sid": claims.sid, "jti": claims.jti });
    Ok(Answer::json(201, &answer))
}

/// A request for a capability that keeps the rules.
struct Asked {
    use_: Use,
    streams: Vec<String>,
    ttl_s: i64,
    max_chunks: u64,
    client_key: Option<[u8; 32]>,
    session: SessionId,
}

impl Asked {
    fn read(core: &Core, body: &Object) -> Result<Self, Refusal> {
        let invalid = || refusal::INVALID_CAPABILITY_REQUEST;
        let use_ = match body.text("use") {
            "upload" => Use::Upload,
            "fanout" => Use::Fanout,
            _ => return Err(invalid()),
        };
        let streams = body.texts("streams").to_vec();
        if streams.len() > MAX_LANES || use_ == Use::Upload && streams.is_empty() {
            return Err(invalid());
        }
        let ttl = i64::try_from(core.options.capability_ttl.as_secs()).unwrap_or(MAX_TTL_S);
        let ttl_s = body.integer("ttl_s").unwrap_or(ttl);
        let max_chunks = body.integer("max_chunks").map_or(core.options.max_chunks, i64::unsigned_abs);
        if !(1..=MAX_TTL_S).contains(&ttl_s) || body.integer("max_chunks").is_some_and(|most| most < 1) {
            return Err(invalid());
        }
        let key =
            |text: &str| URL_SAFE_NO_PAD.decode(text).ok().and_then(|key| key.try_into().ok()).ok_or_else(invalid);
        let client_key = body.word("client_key").map(key).transpose()?;
        let session = body.word("sid").map_or_else(|| random_id(""), str::to_owned);
        let session = SessionId::new(&session).map_err(|_| invalid())?;
        Ok(Self { use_, streams, ttl_s, max_chunks, client_key, session })
    }
}

async fn lanes(core: &Core, incident: &str, group: &str, asked: &Asked) -> Result<Vec<JwtLane>, Refusal> {
    let mut lanes = Vec::with_capacity(asked.streams.len());
    for id in &asked.streams {
        let target = core.store.stream(incident, id).await?;
        let stream = target.open_stream()?;
        if stream.group.as_deref() != Some(group) {
            return Err(refusal::STREAM_NOT_FOUND);
        }
        let variant = stream.variant.ok_or(refusal::STREAM_NOT_FOUND)?;
        if asked.use_ == Use::Fanout && !variant.watchable() {
            return Err(refusal::INVALID_CAPABILITY_REQUEST);
        }
        lanes.push(JwtLane {
            stream: StreamId::new(id).map_err(|_| refusal::STREAM_NOT_FOUND)?,
            variant,
            media: stream.media,
            max_chunk_bytes: core.options.max_upload_bytes,
            max_chunks: asked.max_chunks,
        });
    }
    Ok(lanes)
}

/// The media type that a lane of this role carries.
pub(crate) const fn media_of(variant: Variant) -> Media {
    match variant {
        Variant::AudioPriority => Media::Audio,
        Variant::LivePreview | Variant::EvidenceMaster => Media::Video,
        Variant::LocationContext => Media::Location,
        Variant::MetadataContext => Media::Metadata,
    }
}
