//! Chunks, asked for or brought by the account itself (contract A.8).

use aws_lc_rs::digest;
use http::{HeaderName, HeaderValue};
use serde_json::{Value, json};

use super::form::Form;
use super::keeping::Keeping;
use crate::answer::{Answer, Stop};
use crate::call::Call;
use crate::fields::{Chunk, Claimed, instant};
use crate::json::Kind;
use crate::refusal::{self, Refusal};
use crate::store::{ChunkRow, Inserted, Keyed};

const DIRECT: &[&str] =
    &["stream_id", "chunk_index", "media_type", "started_at", "ended_at", "sha256_hex", "original_filename"];

const RECONCILE: &[(&str, Kind)] = &[
    ("stream_id", Kind::Text),
    ("chunk_index", Kind::Integer),
    ("media_type", Kind::Text),
    ("started_at", Kind::Text),
    ("ended_at", Kind::Text),
    ("byte_size", Kind::Integer),
    ("sha256_hex", Kind::Text),
    ("original_filename", Kind::Text),
];

/// `POST /v1/incidents/{incident}/chunks`.
pub(crate) async fn upload(call: &mut Call, incident: &str) -> Result<Answer, Stop> {
    call.account()?;
    let key = idempotency_key(call)?;
    let mut form = Form::read(call, DIRECT).await?;
    let core = &call.core;
    let file = form.file.take().ok_or(refusal::MISSING_FILE)?;
    let stream = form.text("stream_id").trim();
    if stream.is_empty() {
        return Err(refusal::INVALID_CHUNK_REQUEST.into());
    }
    let mut claimed = Claimed::of_form(|name| form.text(name));
    // This route has no byte_size field: the file's length is the size.
    claimed.size = i64::try_from(file.length).ok();
    if claimed.filename.is_empty() {
        claimed.filename = &file.filename;
    }
    let chunk = claimed.check(core.options.max_upload_bytes)?;
    let keeping = Keeping { core, incident, stream, chunk: &chunk };
    let keyed = key.map(|key| Keyed { key, fingerprint: fingerprint(stream, &chunk) });
    let target = core.store.target(incident, stream, chunk.index).await?;
    target.known_incident()?;
    if let Some(keyed) = keyed.clone()
        && let Some(row) = core.store.replay(incident, keyed).await?
    {
        keeping.check_file(&file)?;
        let replayed = HeaderName::from_static("idempotency-replayed");
        return Ok(uploaded(200, incident, &row).with(replayed, HeaderValue::from_static("true")));
    }
    target.open_for(chunk.media)?;
    keeping.check_file(&file)?;
    if target.chunk.is_some() {
        return Err(refusal::DUPLICATE_CHUNK.into());
    }
    core.store.fits(&target, chunk.size)?;
    match keeping.keep(file, keyed).await? {
        Inserted::New(row) => Ok(uploaded(201, incident, &row)),
        Inserted::There(_) => Err(refusal::DUPLICATE_CHUNK.into()),
    }
}

/// Hashed: a raw key is never kept.
fn idempotency_key(call: &Call) -> Result<Option<[u8; 32]>, Refusal> {
    let Some(value) = call.headers.get("idempotency-key") else { return Ok(None) };
    let bytes = value.as_bytes();
    let visible = bytes.iter().all(|b| (0x21..=0x7e).contains(b));
    if bytes.is_empty() || bytes.len() > 255 || !visible {
        return Err(refusal::INVALID_IDEMPOTENCY_KEY);
    }
    Ok(digest::digest(&digest::SHA256, bytes).as_ref().try_into().ok())
}

fn fingerprint(stream: &str, chunk: &Chunk) -> [u8; 32] {
    let (index, size, sha256) = (chunk.index.to_string(), chunk.size.to_string(), chunk.sha256.to_hex());
    let mut hash = digest::Context::new(&digest::SHA256);
    for part in [stream, &index, chunk.media.as_str(), &chunk.started, &chunk.ended, &size, &sha256, &chunk.filename] {
        hash.update(&(part.len() as u64).to_be_bytes());
        hash.update(part.as_bytes());
    }
    hash.finish().as_ref().try_into().unwrap_or_default()
}

fn uploaded(status: u16, incident: &str, row: &ChunkRow) -> Answer {
    let mut chunk = listed(row);
    chunk["incident_id"] = incident.into();
    Answer::json(status, &json!({ "chunk": chunk }))
}

/// `GET /v1/incidents/{incident}/chunks`.
pub(crate) async fn list(call: &Call, incident: &str) -> Result<Answer, Stop> {
    call.account()?;
    call.core.store.stream(incident, "").await?.known_incident()?;
    let chunks: Vec<Value> = call.core.store.list(incident).await?.iter().map(listed).collect();
    Ok(Answer::json(200, &json!({ "chunks": chunks })))
}

fn listed(row: &ChunkRow) -> Value {
    json!({
        "chunk_id": row.id,
        "stream": row.stream,
        "index": row.index,
        "media": row.media,
        "started_at": row.started,
        "ended_at": row.ended,
        "byte_size": row.size,
        "sha256_hex": row.sha256,
        "original_filename": row.filename,
        "created_at": row.created,
    })
}

/// `GET /v1/incidents/{incident}/chunks/{stream}/{index}`: the stored bytes.
pub(crate) async fn bytes(call: &Call, incident: &str, stream: &str, index: &str) -> Result<Answer, Stop> {
    call.account()?;
    let index = index.parse::<u32>().map_err(|_| refusal::CHUNK_NOT_FOUND)?;
    let target = call.core.store.target(incident, stream, index.into()).await?;
    target.known_incident()?;
    let row = target.chunk.ok_or(refusal::CHUNK_NOT_FOUND)?;
    let file = tokio::fs::File::open(call.core.blobs.path(&row.blob)).await.map_err(|_| refusal::INTERNAL_ERROR)?;
    Ok(Answer::file(file, row.size))
}

/// `POST /v1/incidents/{incident}/chunks/reconcile`.
pub(crate) async fn reconcile(call: &mut Call, incident: &str) -> Result<Answer, Stop> {
    call.account()?;
    let body = call.object(RECONCILE).await?;
    let stream = body.word("stream_id").ok_or(refusal::INVALID_CHUNK_REQUEST)?;
    let chunk = Claimed::of_json(&body).check(u64::MAX)?;
    let target = call.core.store.target(incident, stream, chunk.index).await?;
    target.known_incident()?;
    let row = target.chunk.ok_or(refusal::CHUNK_NOT_FOUND)?;
    let mismatched = mismatched(&chunk, &row);
    if !mismatched.is_empty() {
        let mut conflict = refusal::DUPLICATE_CHUNK_CONFLICT;
        conflict.beside = Some(("reconciliation", json!({ "status": "conflict", "mismatched_fields": mismatched })));
        return Err(conflict.into());
    }
    let mut reconciliation = json!({
        "status": "matched",
        "identity": { "incident_id": incident, "stream_id": stream, "chunk_index": row.index },
        "chunk_id": row.id,
        "byte_size": row.size,
        "sha256_hex": row.sha256,
        "created_at": row.created,
    });
    if let Some(receipt) = row.receipt.filter(|_| call.core.options.signs_receipts()) {
        reconciliation["receipt"] = receipt.into();
    }
    Ok(Answer::json(200, &json!({ "reconciliation": reconciliation })))
}

/// Times are compared as points in time: their spelling may differ.
fn mismatched(chunk: &Chunk, row: &ChunkRow) -> Vec<&'static str> {
    let fields = [
        ("media_type", chunk.media.as_str() == row.media),
        ("started_at", instant(&chunk.started) == instant(&row.started)),
        ("ended_at", instant(&chunk.ended) == instant(&row.ended)),
        ("byte_size", chunk.size == row.size),
        ("sha256_hex", chunk.sha256.to_hex() == row.sha256),
        ("original_filename", chunk.filename == row.filename),
    ];
    fields.into_iter().filter(|(_, equal)| !equal).map(|(name, _)| name).collect()
}
