//! Native HTTP (`docs/protocol.md`, section 5): the requests that bring a chunk and what their
//! answers say. Pure.

use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header};
use waystation_proto::message::{Answer, Error};
use waystation_proto::{ChunkState, dictionary};

use super::book::Verdict;
use super::link::Job;
use crate::http::{self as wire, Broken, Reply};

/// How often one `PUT` follows an `Upload-Offset` that the relay corrected.
pub(super) const MAX_OFFSETS: usize = 4;

/// `PUT` of a chunk's rest from `offset` on.
pub(super) fn put(job: &Job, offset: u64, wait_s: u64) -> Result<Request<()>, Broken> {
    let mut request = builder(Method::PUT, job)?
        .header(header::CONTENT_LENGTH, job.offer.length.saturating_sub(offset))
        .header("prefer", format!("wait={wait_s}"))
        .header("repr-digest", dictionary::write_digest(&job.offer.sha256))
        .header("waystation-chunk", dictionary::write_offer(&job.offer));
    if offset > 0 {
        request = request.header("upload-offset", offset);
    }
    request.body(()).map_err(|_| Broken)
}

/// `HEAD`: how much does the relay hold?
pub(super) fn head(job: &Job) -> Result<Request<()>, Broken> {
    builder(Method::HEAD, job)?.body(()).map_err(|_| Broken)
}

/// The offset that the answer to a `HEAD` names, or what else it says.
pub(super) fn held(reply: &Reply, job: &Job) -> Result<u64, Box<Verdict>> {
    match reply.status {
        StatusCode::NOT_FOUND => Ok(0),
        status if status.is_success() => Ok(upload_offset(&reply.headers).unwrap_or(0).min(job.offer.length)),
        _ => Err(Box::new(read(reply))),
    }
}

/// The offset to go on from, if the relay says another than the one it was sent.
pub(super) fn corrected(reply: &Reply, job: &Job, sent: u64) -> Option<u64> {
    let answer: Answer = serde_json::from_slice(&reply.body).ok()?;
    if answer.error?.code != "offset_mismatch" {
        return None;
    }
    let offset = answer.chunk.map(|chunk| chunk.offset).or_else(|| upload_offset(&reply.headers))?;
    (offset != sent && offset <= job.offer.length).then_some(offset)
}

/// What an answer to a `PUT` says of the chunk.
pub(super) fn read(reply: &Reply) -> Verdict {
    let answer: Option<Answer> = serde_json::from_slice(&reply.body).ok();
    let chunk = answer.and_then(|answer| answer.chunk);
    let done = matches!(reply.status, StatusCode::OK | StatusCode::CREATED);
    let error: Option<Error> = (!done).then(|| wire::error_of(reply.status, &reply.body));
    let state = chunk.as_ref().map(|chunk| chunk.state);
    // Only 200 and 201 say so; a body that says it beside another status is not believed.
    let state = if done { Some(ChunkState::Confirmed) } else { state.filter(|s| *s != ChunkState::Confirmed) };
    let receipt = chunk.and_then(|chunk| chunk.receipt);
    Verdict { state, receipt, error, retry_after_s: wire::retry_after(&reply.headers), last: true }
}

fn builder(method: Method, job: &Job) -> Result<http::request::Builder, Broken> {
    let mut bearer = HeaderValue::try_from(format!("Bearer {}", job.token.as_str())).map_err(|_| Broken)?;
    bearer.set_sensitive(true);
    let path = format!("/chunks/{}", job.offer.chunk_ref());
    Ok(Request::builder().method(method).uri(path).header(header::AUTHORIZATION, bearer))
}

fn upload_offset(headers: &HeaderMap) -> Option<u64> {
    headers.get("upload-offset")?.to_str().ok()?.trim().parse().ok()
}
