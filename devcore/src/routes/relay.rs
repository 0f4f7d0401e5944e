//! The three routes of a relay (contract A.2, A.3, A.4), in the order given there.

use serde_json::json;
use waystation_proto::Media;

use super::form::Form;
use super::keeping::Keeping;
use crate::answer::{Answer, Stop};
use crate::call::{After, Call};
use crate::capability::{Pass, Step};
use crate::faults::{FaultRoute, Subject};
use crate::fields::{Claimed, Ids, PREFLIGHT};
use crate::json::Kind;
use crate::limiter::Class;
use crate::refusal::{self, Refusal};
use crate::stats;
use crate::store::{ChunkRow, Inserted, Target};

/// The text fields of a commit; `sig` is ours.
const COMMIT: &[&str] = &[
    "relay_session_id",
    "capability",
    "incident_id",
    "stream_id",
    "chunk_index",
    "media_type",
    "started_at",
    "ended_at",
    "byte_size",
    "sha256_hex",
    "original_filename",
    "sig",
];

const FANOUT: &[(&str, Kind)] = &[
    ("relay_session_id", Kind::Text),
    ("capability", Kind::Text),
    ("incident_id", Kind::Text),
    ("stream_id", Kind::Text),
];

/// `POST /v1/relay/preflight`.
pub(crate) async fn preflight(call: &mut Call) -> Result<Answer, Stop> {
    let route = FaultRoute::Preflight;
    let before = call.strike(route, Subject::Any).await?;
    call.core.limit(Class::Stream, call.host)?;
    call.core.service(&call.headers)?;
    let body = call.object(PREFLIGHT).await?;
    let subject =
        Subject::Chunk { media: Media::parse(body.text("media_type")), stream: body.text("stream_id").trim() };
    let after = call.strike(route, subject).await?.or(before);

    let core = &call.core;
    let ids = Ids::read(|name| body.text(name)).ok_or(refusal::INVALID_RELAY_REQUEST)?;
    let chunk = Claimed::of_json(&body).check(core.options.max_upload_bytes)?;
    let pass = core.authorize(&ids, Step::Preflight)?;
    pass.covers(&chunk)?;
    let target = core.store.target(&ids.incident, &ids.stream, chunk.index).await?;
    let keeping = Keeping { core, incident: &ids.incident, stream: &ids.stream, chunk: &chunk };
    if repeated(&keeping, &target).is_none() {
        target.open_for(chunk.media)?;
        core.store.fits(&target, chunk.size)?;
        if target.chunk.is_some() {
            return Err(refusal::DUPLICATE_CHUNK.into());
        }
    }
    let answer = json!({ "relay_preflight": {
        "status": "accepted",
        "incident_id": ids.incident,
        "stream_id": ids.stream,
        "chunk_index": chunk.index,
        "media_type": chunk.media,
        "max_chunk_bytes": pass.max_chunk_bytes,
        "max_chunks": pass.max_chunks,
    }});
    After::apply(after, Answer::json(200, &answer))
}

/// `POST /v1/relay/commit`.
pub(crate) async fn commit(call: &mut Call) -> Result<Answer, Stop> {
    let mut noted = None;
    let result = noted_commit(call, &mut noted).await;
    if let Some(mut commit) = noted {
        commit.done_ms = call.core.clock.unix_ms();
        commit.outcome = match &result {
            Ok(answer) => answer.status.to_string(),
            Err(Stop::Refuse(refusal)) => refusal.code.clone().into_owned(),
            Err(Stop::Cut) => "cut".to_owned(),
        };
        call.core.stats.commit(commit);
    }
    result
}

async fn noted_commit(call: &mut Call, noted: &mut Option<stats::Commit>) -> Result<Answer, Stop> {
    let route = FaultRoute::Commit;
    let before = call.strike(route, Subject::Any).await?;
    call.core.limit(Class::Upload, call.host)?;
    call.core.service(&call.headers)?;
    let form = Form::read(call, COMMIT).await?;
    *noted = Some(note(call, &form));
    let subject =
        Subject::Chunk { media: Media::parse(form.text("media_type")), stream: form.text("stream_id").trim() };
    let after = call.strike(route, subject).await?.or(before);
    After::apply(after, commit_form(call, form).await?)
}

fn note(call: &Call, form: &Form) -> stats::Commit {
    stats::Commit {
        arrival: call.arrival,
        arrived_ms: call.arrived_ms,
        done_ms: 0,
        media: Media::parse(form.text("media_type")),
        stream: form.text("stream_id").trim().to_owned(),
        index: form.text("chunk_index").parse().unwrap_or_default(),
        bytes: form.file.as_ref().map_or(0, |file| file.length),
        outcome: String::new(),
    }
}

/// Rows 8-18 of A.3.
async fn commit_form(call: &Call, mut form: Form) -> Result<Answer, Refusal> {
    let core = &call.core;
    let file = form.file.take().ok_or(refusal::MISSING_FILE)?;
    let ids = Ids::read(|name| form.text(name)).ok_or(refusal::INVALID_RELAY_REQUEST)?;
    let mut claimed = Claimed::of_form(|name| form.text(name));
    if claimed.filename.is_empty() {
        claimed.filename = &file.filename;
    }
    let chunk = claimed.check(core.options.max_upload_bytes)?;
    let pass = core.authorize(&ids, Step::Commit)?;
    pass.covers(&chunk)?;
    pass.signed(&ids, &chunk, form.text("sig"))?;

    let target = core.store.target(&ids.incident, &ids.stream, chunk.index).await?;
    let keeping = Keeping { core, incident: &ids.incident, stream: &ids.stream, chunk: &chunk };
    if repeated(&keeping, &target).is_none() {
        target.open_for(chunk.media)?;
    }
    keeping.check_file(&file)?;
    if let Some(row) = &target.chunk {
        return already_there(&keeping, row);
    }
    core.store.fits(&target, chunk.size)?;
    match keeping.keep(file, None).await? {
        Inserted::New(row) => Ok(committed(201, &keeping, &row)),
        Inserted::There(row) => already_there(&keeping, &row),
    }
}

/// The stored chunk, if this core answers a repeat as the first time and this is one. Such a repeat is not
/// held against an incident or stream closed since: the chunk is stored, and to say otherwise would be wrong.
fn repeated<'t>(keeping: &Keeping<'_>, target: &'t Target) -> Option<&'t ChunkRow> {
    let row = target.chunk.as_ref()?;
    (keeping.core.options.repeats_are_equal() && keeping.equals(row)).then_some(row)
}

fn already_there(keeping: &Keeping<'_>, row: &ChunkRow) -> Result<Answer, Refusal> {
    if keeping.core.options.repeats_are_equal() && keeping.equals(row) {
        return Ok(committed(200, keeping, row));
    }
    Err(refusal::DUPLICATE_CHUNK)
}

fn committed(status: u16, keeping: &Keeping<'_>, row: &ChunkRow) -> Answer {
    let mut commit = json!({
        "status": "committed",
        "chunk_id": row.id,
        "incident_id": keeping.incident,
        "stream_id": row.stream,
        "chunk_index": row.index,
        "media_type": row.media,
        "byte_size": row.size,
        "sha256_hex": row.sha256,
        "created_at": row.created,
    });
    if let Some(receipt) = row.receipt.as_deref().filter(|_| keeping.core.options.signs_receipts()) {
        commit["receipt"] = receipt.into();
    }
    Answer::json(status, &json!({ "relay_commit": commit }))
}

/// `POST /v1/relay/fanout-authorize`.
pub(crate) async fn fanout_authorize(call: &mut Call) -> Result<Answer, Stop> {
    let route = FaultRoute::FanoutAuthorize;
    let before = call.strike(route, Subject::Any).await?;
    call.core.limit(Class::Stream, call.host)?;
    call.core.service(&call.headers)?;
    let body = call.object(FANOUT).await?;
    let after =
        call.strike(route, Subject::Chunk { media: None, stream: body.text("stream_id").trim() }).await?.or(before);

    let core = &call.core;
    let ids = Ids::read(|name| body.text(name)).ok_or(refusal::INVALID_RELAY_FANOUT_REQUEST)?;
    let pass = core.authorize(&ids, Step::Fanout)?;
    let target = core.store.stream(&ids.incident, &ids.stream).await?;
    in_group(&pass, &target)?;
    target.open_stream()?;
    let answer = json!({ "relay_fanout": {
        "status": "authorized", "incident_id": ids.incident, "stream_id": ids.stream,
    }});
    After::apply(after, Answer::json(200, &answer))
}

/// A capability for a whole group reaches its watchable streams.
fn in_group(pass: &Pass, target: &Target) -> Result<(), Refusal> {
    let (Some(group), Some(stream)) = (&pass.group, &target.stream) else { return Ok(()) };
    let watchable = stream.variant.is_some_and(waystation_proto::Variant::watchable);
    if stream.group.as_ref() == Some(group) && watchable { Ok(()) } else { Err(refusal::CAPABILITY_WRONG_BINDING) }
}
