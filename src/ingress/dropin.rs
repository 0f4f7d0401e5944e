//! The drop-in routes (contract B.3 and B.4): the surface of the relay that this one replaces,
//! in its order of checks and with its codes.

use std::collections::HashMap;

use bytes::Bytes;
use http::StatusCode;
use http::header::{self, HeaderMap};
use http::request::Parts;
use serde::Serialize;
use serde_json::{Map, Value};

use super::body::RequestBody;
use super::conn::Ctx;
use super::multipart::{self, Event, Parser};
use super::respond::{self, Reply, Shape};
use super::sse;
use crate::admission::{Committed, DropIn, DropInEnd, DropInUpload, DropInWatch, Refusal};
use crate::proto::claims::MAX_TOKEN_BYTES;
use crate::proto::offer::Timestamp;
use crate::proto::{Code, Digest, IncidentId, Media, Offer, SessionId, StreamId};

/// The text fields, as the core names them (contract A.2).
const FIELDS: [&str; 11] = [
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
];
/// The one part that is not text.
const FILE: &str = "file";
/// Largest text field, in bytes.
const MAX_FIELD: usize = 65_536;
/// Most that is kept of a text field, in bytes: ids are at most 200, times and numbers less. With
/// capability and file name, which have limits of their own, a form costs 92 KiB before anybody
/// vouched for it.
const MAX_KEPT_FIELD: usize = 1024;
/// What a body may hold beside the file.
const MAX_OVERHEAD: u64 = 1 << 20;

/// `POST /upload/complete-chunk`
pub(super) async fn upload(ctx: &Ctx, parts: &Parts, body: &mut RequestBody) -> Reply {
    let end = try_upload(ctx, parts, body).await.unwrap_or_else(DropInEnd::from);
    let reply = match &end.outcome {
        Ok(committed) => committed_reply(committed),
        Err(refusal) => respond::refusal(Shape::DropIn, refusal),
    };
    // Contacts hear of it when `end` is dropped: after the answer is written.
    reply.map(|body| body.keeping(end))
}

#[derive(Serialize)]
struct UploadBody<'a> {
    relay_upload: &'a Map<String, Value>,
}

fn committed_reply(committed: &Committed) -> Reply {
    let status = if committed.status == 200 { StatusCode::OK } else { StatusCode::CREATED };
    let bare = Map::from_iter([("status".into(), "committed".into())]);
    let relay_upload = if committed.relay_upload.is_empty() { &bare } else { &committed.relay_upload };
    respond::json(status, &UploadBody { relay_upload })
}

async fn try_upload(ctx: &Ctx, parts: &Parts, body: &mut RequestBody) -> Result<DropInEnd, Refusal> {
    if !ctx.shared.core_configured {
        return Err(Code::RelayCoreNotConfigured.into());
    }
    if ctx.drain.is_cancelled() {
        return Err(Code::Draining.into());
    }
    let content_type = parts.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let boundary = multipart::boundary(content_type.unwrap_or_default()).map_err(|_| Code::InvalidMultipart)?;
    let left = ctx.shared.max_chunk + MAX_OVERHEAD;
    let mut form = Form { ctx, body, parser: Parser::new(&boundary), left };
    let fields = form.fields().await?;
    let upload = read_upload(&fields, ctx.shared.max_chunk)?;
    let mut staged = ctx.shared.admission.drop_in(upload, ctx.client).await?;
    form.file(&mut staged).await?;
    form.rest().await?;
    // In a task of its own: the bytes are all here, and an uploader that leaves now changes
    // nothing for the core and for contacts.
    let cut = ctx.cut.clone();
    let commit = ctx.tasks.spawn(async move { cut.run_until_cancelled(staged.commit()).await });
    match commit.await {
        Ok(Some(end)) => Ok(end),
        Ok(None) => Err(Code::Draining.into()),
        Err(_) => Err(Code::RelayInternalError.into()),
    }
}

/// The form as it comes.
struct Form<'a> {
    ctx: &'a Ctx,
    body: &'a mut RequestBody,
    parser: Parser,
    /// Bytes the body may still have.
    left: u64,
}

impl Form<'_> {
    async fn event(&mut self) -> Result<Event, Refusal> {
        loop {
            match self.parser.next().map_err(|_| Code::InvalidMultipart)? {
                Event::More => {}
                event => return Ok(event),
            }
            match self.ctx.unless_idle(self.body.next()).await {
                None => return Err(Code::BodyStalled.into()),
                Some(None) => self.parser.close(),
                Some(Some(Err(_))) => return Err(Code::InvalidMultipart.into()),
                Some(Some(Ok(bytes))) => {
                    self.left = self.left.checked_sub(bytes.len() as u64).ok_or(Code::InvalidMultipart)?;
                    self.parser.push(&bytes);
                }
            }
        }
    }

    /// Reads text fields up to the head of the file.
    async fn fields(&mut self) -> Result<HashMap<&'static str, String>, Refusal> {
        let mut fields = HashMap::new();
        loop {
            match self.event().await? {
                Event::Part(None) => self.skip().await?,
                Event::Part(Some(name)) if name == FILE => return Ok(fields),
                Event::Part(Some(name)) => {
                    let known = FIELDS.iter().find(|one| **one == name).ok_or(Code::UnexpectedField)?;
                    if fields.contains_key(known) {
                        return Err(Code::DuplicateField.into());
                    }
                    fields.insert(known, self.text(kept(known)).await?);
                }
                Event::End => return Err(Code::MissingFile.into()),
                Event::Data(_) | Event::PartEnd | Event::More => {}
            }
        }
    }

    /// A text field. Of one longer than any that could be good, only so much is kept as shows it.
    async fn text(&mut self, kept: usize) -> Result<String, Refusal> {
        let (mut text, mut length) = (Vec::new(), 0);
        while let Some(bytes) = self.data().await? {
            length += bytes.len();
            if length > MAX_FIELD {
                return Err(Code::MetadataTooLarge.into());
            }
            text.extend_from_slice(&bytes[..bytes.len().min(kept - text.len())]);
        }
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// The part's next bytes; `None` at its end.
    async fn data(&mut self) -> Result<Option<Bytes>, Refusal> {
        match self.event().await? {
            Event::Data(bytes) => Ok(Some(bytes)),
            _ => Ok(None),
        }
    }

    async fn skip(&mut self) -> Result<(), Refusal> {
        while self.data().await?.is_some() {}
        Ok(())
    }

    async fn file(&mut self, staged: &mut DropIn) -> Result<(), Refusal> {
        while let Some(bytes) = self.data().await? {
            staged.push(bytes).await?;
        }
        Ok(())
    }

    /// Reads on to the end of the form: nothing but nameless parts may follow the file.
    async fn rest(&mut self) -> Result<(), Refusal> {
        loop {
            match self.event().await? {
                Event::Part(None) => self.skip().await?,
                Event::Part(Some(name)) if name == FILE => return Err(Code::DuplicateFile.into()),
                Event::Part(Some(_)) => return Err(Code::MetadataAfterFile.into()),
                Event::End => return Ok(()),
                Event::Data(_) | Event::PartEnd | Event::More => {}
            }
        }
    }
}

/// Bytes of a field that are kept.
fn kept(field: &str) -> usize {
    match field {
        "capability" => MAX_TOKEN_BYTES + 1,
        "original_filename" => MAX_FIELD,
        _ => MAX_KEPT_FIELD,
    }
}

/// The fields in the contract's order: four ids, index, media, times, size, hash.
fn read_upload(fields: &HashMap<&'static str, String>, max_chunk: u64) -> Result<DropInUpload, Code> {
    let field = |name: &str| fields.get(name).map_or("", |text| text.trim());
    let missing = |_| Code::InvalidRelayRequest;
    let session = SessionId::new(field("relay_session_id")).map_err(missing)?;
    let capability = field("capability");
    if capability.is_empty() || capability.len() > MAX_TOKEN_BYTES {
        return Err(Code::InvalidRelayRequest);
    }
    let incident = IncidentId::new(field("incident_id")).map_err(missing)?;
    let stream = StreamId::new(field("stream_id")).map_err(missing)?;
    let index = field("chunk_index").parse::<u32>().ok().filter(|index| *index > 0).ok_or(Code::InvalidChunkIndex)?;
    let media = Media::parse(field("media_type")).ok_or(Code::InvalidMediaType)?;
    let started = Timestamp::parse(field("started_at")).map_err(|_| Code::InvalidStartedAt)?;
    let ended = Timestamp::parse(field("ended_at")).map_err(|_| Code::InvalidEndedAt)?;
    if ended.unix_ms() < started.unix_ms() {
        return Err(Code::InvalidEndedAt);
    }
    let length = field("byte_size").parse::<i64>().ok().filter(|size| *size > 0).ok_or(Code::InvalidByteSize)?;
    let length = length.unsigned_abs();
    if length > max_chunk {
        return Err(Code::UploadTooLarge);
    }
    let sha256 = Digest::from_hex(field("sha256_hex")).map_err(|_| Code::InvalidSha256Hex)?;
    let offer = Offer {
        incident,
        stream,
        index: u64::from(index),
        media,
        started,
        ended,
        length,
        sha256,
        name: field("original_filename").to_owned(),
        role: None,
        group: None,
        segment: None,
        sequence: None,
        source: None,
        clock: None,
        profile: None,
        priority: None,
        attempt: 1,
        sig: None,
    };
    // The file name is the core's to judge: the contract knows no rule for it here but its length.
    Ok(DropInUpload { session, capability: capability.to_owned(), offer })
}

/// `GET /fanout/subscribe`
pub(super) async fn subscribe(ctx: &Ctx, parts: &Parts) -> Reply {
    let opened = async {
        if !ctx.shared.core_configured {
            return Err(Refusal::from(Code::RelayCoreNotConfigured));
        }
        if ctx.drain.is_cancelled() {
            return Err(Code::Draining.into());
        }
        let watch = read_watch(&parts.headers)?;
        let (incident, stream) = (watch.incident.clone(), watch.stream.clone());
        let watching = ctx.shared.admission.drop_in_watch(watch, ctx.client).await?;
        Ok(sse::stream(ctx, watching, incident, stream))
    };
    opened.await.unwrap_or_else(|refusal| respond::refusal(Shape::DropIn, &refusal))
}

fn read_watch(headers: &HeaderMap) -> Result<DropInWatch, Code> {
    let one = |name: &str| {
        let value = headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
        value.filter(|value| !value.is_empty()).map(str::to_owned).ok_or(Code::InvalidRelayFanoutRequest)
    };
    Ok(DropInWatch {
        session: one("x-proofline-relay-session-id")?,
        capability: one("x-proofline-relay-fanout-capability")?,
        incident: one("x-proofline-relay-incident-id")?,
        stream: one("x-proofline-relay-stream-id")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn fields() -> HashMap<&'static str, String> {
        let values = [
            "relay_session_1",
            "token",
            "incident_1",
            " stream_1 ",
            "1",
            "audio",
            "2026-06-10T12:00:00.000000001Z",
            "2026-06-10T12:00:00.000000001Z",
            "336",
            "199cf56c520f620909824c7d35bdd2587e0b6819c0d531fd0efe6e155dd8f320",
            "audio_000001.enc",
        ];
        FIELDS.into_iter().zip(values.map(String::from)).collect()
    }

    #[test]
    fn fields_are_read_in_the_contracts_order() {
        let upload = read_upload(&fields(), 336).ok().unwrap();
        assert_eq!(upload.offer.stream.as_str(), "stream_1");
        assert_eq!(upload.offer.name, "audio_000001.enc");
        // Each case breaks its field and every one after it: the first is the one that is named.
        let broken = [
            ("relay_session_id", " ", Code::InvalidRelayRequest),
            ("capability", "", Code::InvalidRelayRequest),
            ("incident_id", "", Code::InvalidRelayRequest),
            ("stream_id", "a b", Code::InvalidRelayRequest),
            ("chunk_index", "0", Code::InvalidChunkIndex),
            ("media_type", "film", Code::InvalidMediaType),
            ("started_at", "then", Code::InvalidStartedAt),
            ("ended_at", "2025-01-01T00:00:00Z", Code::InvalidEndedAt),
            ("byte_size", "-1", Code::InvalidByteSize),
            ("byte_size", "337", Code::UploadTooLarge),
            ("sha256_hex", "ABC", Code::InvalidSha256Hex),
        ];
        for first in 0..broken.len() {
            let mut fields = fields();
            for (name, value, _) in broken[first..].iter().rev() {
                fields.insert(name, (*value).into());
            }
            assert_eq!(read_upload(&fields, 336).err(), Some(broken[first].2), "{}", broken[first].0);
        }
        for (index, code) in [("4294967296", Code::InvalidChunkIndex), ("1.0", Code::InvalidChunkIndex)] {
            let mut fields = fields();
            fields.insert("chunk_index", index.into());
            assert_eq!(read_upload(&fields, 336).err(), Some(code));
        }
        assert_eq!(read_upload(&HashMap::new(), 336).err(), Some(Code::InvalidRelayRequest));
    }

    #[test]
    fn subscriptions_need_all_four_headers() {
        let names = [
            "x-proofline-relay-session-id",
            "x-proofline-relay-fanout-capability",
            "x-proofline-relay-incident-id",
            "x-proofline-relay-stream-id",
        ];
        let mut headers = HeaderMap::new();
        for name in names {
            assert_eq!(read_watch(&headers).err(), Some(Code::InvalidRelayFanoutRequest));
            headers.insert(name, HeaderValue::from_static(" x "));
        }
        assert_eq!(read_watch(&headers).ok().unwrap().stream, "x");
    }
}
