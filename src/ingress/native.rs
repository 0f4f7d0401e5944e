//! `/chunks/{ref}` but for `PUT`, and what its methods share.

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use http::{Response, StatusCode};

use super::bearer::capability;
use super::body::{RequestBody, ResponseBody, Stopped};
use super::conn::Ctx;
use super::pour::{Pouring, Sink};
use super::put;
use super::respond::{self, Reply, Shape};
use super::urgency::Urgency;
use crate::admission::{Refusal, Revocation};
use crate::fanout::{ChunkMeta, ChunkReader};
use crate::proto::{ChunkRef, ChunkState, Code, IncidentId, Offer, dictionary};
use crate::telemetry::names::Transport;

/// Waits asked for with `Prefer: wait=N`: default and longest, in seconds.
const WAIT_S: (u64, u64) = (30, 120);

/// Bytes of a chunk that wait for its hash: no fewer, since a last byte in a packet of its own would be one
/// more that can be lost.
const LAST: usize = 8 * 1024;

/// `PUT /chunks/{ref}`
pub(super) async fn put(ctx: &Ctx, name: &str, parts: &Parts, body: &mut RequestBody) -> Reply {
    let wait = Wait::of(&parts.headers);
    let mut reply = match put::receive(ctx, name, parts, body, wait.seconds).await {
        Ok(reply) => reply,
        Err(refusal) => respond::refusal(Shape::Native, &refusal),
    };
    wait.applied(&mut reply);
    reply
}

/// `HEAD /chunks/{ref}`: where the chunk stands, for a bearer whose capability covers it.
pub(super) async fn head(ctx: &Ctx, name: &str, parts: &Parts) -> Reply {
    let standing = async {
        let chunk = ChunkRef::parse(name).map_err(|_| Code::NotFound)?;
        let capability = capability(ctx, &parts.headers).await?;
        ctx.shared.admission.standing(chunk, &capability).ok_or(Refusal::from(Code::NotFound))
    };
    let standing = match standing.await {
        Ok(standing) => standing,
        Err(refusal) => return respond::refusal(Shape::Native, &refusal),
    };
    let mut reply = respond::empty(StatusCode::OK);
    let headers = reply.headers_mut();
    headers.insert(respond::UPLOAD_OFFSET, standing.offset.into());
    // Complete is what the core confirmed, nothing less (contract C15).
    let complete = if standing.state == ChunkState::Confirmed { "?1" } else { "?0" };
    headers.insert(respond::UPLOAD_COMPLETE, HeaderValue::from_static(complete));
    headers.insert(respond::STATE, HeaderValue::from_static(standing.state.as_str()));
    reply
}

/// `DELETE /chunks/{ref}`: ends an attempt; from `staged` on nothing does.
pub(super) async fn delete(ctx: &Ctx, name: &str, parts: &Parts) -> Reply {
    match deleted(ctx, name, parts).await {
        Ok(()) => respond::empty(StatusCode::NO_CONTENT),
        Err(refusal) => respond::refusal(Shape::Native, &refusal),
    }
}

/// The same, in no words yet.
pub(super) async fn deleted(ctx: &Ctx, name: &str, parts: &Parts) -> Result<(), Refusal> {
    let chunk = ChunkRef::parse(name).map_err(|_| Code::NotFound)?;
    let capability = capability(ctx, &parts.headers).await?;
    ctx.shared.admission.delete(chunk, &capability).await
}

/// `GET /chunks/{ref}`: waits for that chunk and streams it as it arrives.
pub(super) async fn get(ctx: &Ctx, name: &str, parts: &Parts) -> Reply {
    let wait = Wait::of(&parts.headers);
    let mut reply = match read(ctx, name, parts, &wait).await {
        Ok(reply) => reply,
        Err(refusal) => respond::refusal(Shape::Native, &refusal),
    };
    wait.applied(&mut reply);
    reply
}

async fn read(ctx: &Ctx, name: &str, parts: &Parts, wait: &Wait) -> Result<Reply, Refusal> {
    let chunk = ChunkRef::parse(name).map_err(|_| Code::NotFound)?;
    let capability = capability(ctx, &parts.headers).await?;
    let mut reader = ctx.shared.admission.read(chunk, &capability).await?;
    let mut revocation = ctx.shared.admission.revocation(&capability)?;
    let begins = ctx.within(std::time::Duration::from_secs(wait.seconds), reader.begins());
    let meta = tokio::select! {
        meta = begins => match meta {
            Some(meta) => meta?,
            None => {
                // It may have come meanwhile, on a lane that is not shown.
                ctx.shared.admission.may_be_shown(chunk, &capability)?;
                return Err(Code::ChunkNotInWindow.into());
            }
        },
        code = revocation.heard() => return Err(code.into()),
        () = ctx.drain.cancelled() => return Err(Code::Draining.into()),
    };
    let mut reply = Response::new(ResponseBody::whole(Bytes::new()));
    let headers = reply.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::CONTENT_LENGTH, meta.length.into());
    if let Ok(digest) = HeaderValue::from_str(&dictionary::write_digest(&meta.sha256)) {
        headers.insert(HeaderName::from_static("repr-digest"), digest);
    }
    if let Ok(chunk) = HeaderValue::from_str(&dictionary::write_offer(&offer(&capability.grant.incident, &meta))) {
        headers.insert(respond::CHUNK, chunk);
    }
    reply.extensions_mut().insert(Urgency::of_lane(meta.variant));
    let reading = Reading { ctx: ctx.clone(), reader, revocation, left: meta.length };
    *reply.body_mut() = if ctx.transport == Transport::H3 {
        ResponseBody::contact(Pouring::Chunk(reading))
    } else {
        let (out, body) = ResponseBody::flow();
        ctx.tasks.spawn(reading.pour(out));
        body
    };
    Ok(reply)
}

/// A chunk on its way to a contact that asked for it.
pub(super) struct Reading {
    pub(super) ctx: Ctx,
    pub(super) reader: ChunkReader,
    pub(super) revocation: Revocation,
    /// Bytes that are to come.
    pub(super) left: u64,
}

impl Reading {
    /// Copies it to the contact. A chunk that turns out to be another cuts the answer off: what
    /// was sent is not that chunk; so does a capability that is taken back. Its last bytes wait for the hash,
    /// since with it a body of known length is complete.
    pub(super) async fn pour(self, mut out: impl Sink) {
        let Self { ctx, mut reader, mut revocation, mut left } = self;
        let mut last = Bytes::new();
        loop {
            let next = tokio::select! {
                next = reader.next() => next,
                () = out.gone() => return,
                () = ctx.cut.cancelled() => return,
                code = revocation.heard() => return ctx.ticket.ended(Some(code)),
            };
            let (bytes, ends) = match next {
                Ok(Some(mut bytes)) => {
                    left = left.saturating_sub(bytes.len() as u64);
                    if left == 0 && !bytes.is_empty() {
                        // A copy, so that what waits to be acknowledged keeps no more than itself.
                        last = Bytes::copy_from_slice(&bytes.split_off(bytes.len() - bytes.len().min(LAST)));
                    }
                    (bytes, false)
                }
                Ok(None) => (std::mem::take(&mut last), true),
                Err(code) => return ctx.ticket.ended(Some(code)),
            };
            let sent = tokio::select! {
                biased;
                sent = out.send(&ctx, bytes) => sent,
                () = ctx.cut.cancelled() => return,
                code = revocation.heard() => return ctx.ticket.ended(Some(code)),
            };
            match sent {
                Ok(()) if ends => return out.finish(&ctx).await,
                Ok(()) => {}
                Err(Stopped::TooSlow) => {
                    out.cut(&ctx);
                    return ctx.ticket.ended(Some(Code::ContactTooSlow));
                }
                Err(Stopped::Gone) => return,
            }
        }
    }
}

/// What the contact is told of a chunk that it asked for by its name alone.
fn offer(incident: &IncidentId, meta: &ChunkMeta) -> Offer {
    Offer {
        incident: incident.clone(),
        stream: meta.stream.clone(),
        index: meta.index,
        media: meta.media,
        started: meta.started.clone(),
        ended: meta.ended.clone(),
        length: meta.length,
        sha256: meta.sha256,
        name: String::new(),
        role: Some(meta.variant),
        group: None,
        segment: None,
        sequence: None,
        source: None,
        clock: None,
        profile: None,
        priority: None,
        attempt: 1,
        sig: None,
    }
}

/// How long an answer may wait (`Prefer: wait=N`, RFC 7240).
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Wait {
    /// Seconds.
    pub(super) seconds: u64,
    asked: bool,
}

impl Wait {
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let asked = headers
            .get_all("prefer")
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .find_map(wait_of);
        match asked {
            Some(seconds) => Self { seconds: seconds.min(WAIT_S.1), asked: true },
            None => Self { seconds: WAIT_S.0, asked: false },
        }
    }

    pub(super) fn applied(&self, reply: &mut Reply) {
        if self.asked
            && let Ok(value) = HeaderValue::from_str(&format!("wait={}", self.seconds))
        {
            reply.headers_mut().insert(respond::PREFERENCE_APPLIED, value);
        }
    }
}

fn wait_of(preference: &str) -> Option<u64> {
    let preference = preference.split(';').next()?;
    let (name, value) = preference.split_once('=')?;
    if !name.trim().eq_ignore_ascii_case("wait") {
        return None;
    }
    value.trim().trim_matches('"').parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn headers(name: &'static str, values: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(name, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    #[test]
    fn waits_have_a_default_and_an_end() {
        let of = |values: &[&str]| Wait::of(&headers("prefer", values)).seconds;
        assert_eq!(of(&[]), 30);
        assert_eq!(of(&["wait=5"]), 5);
        assert_eq!(of(&["respond-async, wait=0"]), 0);
        assert_eq!(of(&["respond-async", "Wait=\"7\"; x=1"]), 7);
        assert_eq!(of(&["wait=9999"]), 120);
        assert_eq!(of(&["wait=-1"]), 30);
        assert_eq!(of(&["wait"]), 30);
    }

    proptest! {
        #[test]
        fn no_header_panics(value in prop::collection::vec(0x20u8..=0xff, 0..80)) {
            if let Ok(value) = HeaderValue::from_bytes(&value) {
                let mut all = HeaderMap::new();
                all.insert("prefer", value);
                let _ = Wait::of(&all);
            }
        }
    }
}
