//! Native HTTP (`docs/protocol.md`, section 5): the requests that bring a chunk and what their
//! answers say. Pure.

pub(super) mod meanwhile;

use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header};
use waystation_proto::known::{CapabilityName, KNOWN_SCHEME};
use waystation_proto::message::{Answer, Chunk};
use waystation_proto::{ChunkState, Code, dictionary};

use super::book::Verdict;
use super::link::Job;
use crate::http::{self as wire, Broken, Reply};

/// How often one `PUT` follows an `Upload-Offset` that the relay corrected.
pub(super) const MAX_OFFSETS: usize = 4;

/// `PUT` of a chunk's rest from `offset` on. `known`: the relay knows the capability by name.
pub(super) fn put(job: &Job, offset: u64, wait_s: u64, known: bool) -> Result<Request<()>, Broken> {
    let mut request = builder(Method::PUT, job, known)?
        .header(header::CONTENT_LENGTH, job.offer.length.saturating_sub(offset))
        .header("prefer", format!("wait={wait_s}"))
        .header("repr-digest", dictionary::write_digest(&job.offer.sha256))
        .header("waystation-chunk", dictionary::write_offer(&job.offer));
    if offset > 0 {
        request = request.header("upload-offset", offset);
    }
    request.body(()).map_err(|_| Broken)
}

/// `HEAD`: how much does the relay hold? `known`: as for [`put`].
pub(super) fn head(job: &Job, known: bool) -> Result<Request<()>, Broken> {
    builder(Method::HEAD, job, known)?.body(()).map_err(|_| Broken)
}

/// The offset that the answer to a `HEAD` names, or what else it says. It has no body that could
/// tell whose it is: none of them counts as a failed try, and what is refused is refused again, in
/// words, when the bytes are offered.
pub(super) fn held(reply: &Reply, job: &Job) -> Result<u64, Box<Verdict>> {
    match reply.status {
        StatusCode::NOT_FOUND => Ok(0),
        status if status.is_success() => match upload_offset(&reply.headers) {
            Some(offset) if offset <= job.offer.length => Ok(offset),
            // Not an answer of a relay; nothing follows from it.
            _ => Err(later(reply)),
        },
        StatusCode::UNAUTHORIZED => Err(Box::new(refused(reply))),
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS => Err(later(reply)),
        status if status.is_client_error() => Ok(0),
        _ => Err(later(reply)),
    }
}

/// The state of a chunk that the relay holds whole, by the answer to a `HEAD`: nothing of it
/// ends a chunk, and what else is said is told by the answer to the `PUT`.
pub(super) fn staged(reply: &Reply) -> Option<Verdict> {
    let said = reply.headers.get("waystation-state").filter(|_| reply.status.is_success())?.to_str().ok()?;
    let state = ChunkState::parse(said).filter(|state| state.held() && *state != ChunkState::Unsettled)?;
    Some(Verdict { state: Some(state), ..Verdict::default() })
}

/// Nothing is known; it is asked again.
fn later(reply: &Reply) -> Box<Verdict> {
    let retry_after_s = wire::retry_after(&reply.headers);
    Box::new(Verdict { retry_after_s, last: true, ..Verdict::default() })
}

/// The relay does not know the capability by its name: the next request brings it whole.
pub(super) fn asks_for_the_token(reply: &Reply) -> bool {
    reply.status == StatusCode::UNAUTHORIZED
        && wire::error_of(reply.status, &reply.body).code == Code::CapabilityNotKnown.spec().name
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

/// What an answer to a `PUT` says of the chunk. Only `200` and `201` confirm, and only in the
/// relay's own words for this chunk: anybody on the way can say `200`.
pub(super) fn read(reply: &Reply, job: &Job) -> Result<Verdict, Broken> {
    if !matches!(reply.status, StatusCode::OK | StatusCode::CREATED) {
        return Ok(refused(reply));
    }
    let answer: Answer = serde_json::from_slice(&reply.body).map_err(|_| Broken)?;
    let ours = |chunk: &Chunk| chunk.chunk_ref == job.offer.chunk_ref() && chunk.state == ChunkState::Confirmed;
    let chunk = answer.chunk.filter(ours).ok_or(Broken)?;
    Ok(Verdict { state: Some(chunk.state), receipt: chunk.receipt, last: true, ..Verdict::default() })
}

/// What an answer says that brings an error.
fn refused(reply: &Reply) -> Verdict {
    let answer: Option<Answer> = serde_json::from_slice(&reply.body).ok();
    let state = answer.and_then(|answer| answer.chunk).map(|chunk| chunk.state);
    Verdict {
        // A body that says `confirmed` beside such a status is not believed.
        state: state.filter(|state| *state != ChunkState::Confirmed),
        error: Some(wire::error_of(reply.status, &reply.body)),
        retry_after_s: wire::retry_after(&reply.headers),
        last: true,
        ..Verdict::default()
    }
}

fn builder(method: Method, job: &Job, known: bool) -> Result<http::request::Builder, Broken> {
    let token = job.token.as_str();
    let bearer = match known {
        true => format!("{KNOWN_SCHEME} {}", CapabilityName::of(token)),
        false => format!("Bearer {token}"),
    };
    let mut bearer = HeaderValue::try_from(bearer).map_err(|_| Broken)?;
    bearer.set_sensitive(true);
    let path = format!("/chunks/{}", job.offer.chunk_ref());
    Ok(Request::builder().method(method).uri(path).header(header::AUTHORIZATION, bearer))
}

fn upload_offset(headers: &HeaderMap) -> Option<u64> {
    headers.get("upload-offset")?.to_str().ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::queue::{Waiting, rank};
    use crate::token::{Token, tests::forge};
    use waystation_proto::{Class, Digest};

    fn job() -> Job {
        let header = r#"incident="i", stream="s", index=1, media="audio", started="2026-06-10T12:00:00Z", ended="2026-06-10T12:00:02Z""#;
        let offer = dictionary::parse_offer(header, Digest([1; 32]), Some(100)).unwrap();
        let (class, first, started_ms) = (Class::Audio, true, 0);
        let rank =
            rank(&Waiting { id: 0, class, first, started_ms, length: 100, held: false, begun: false, due_ms: 0 }, None);
        let token = Token::parse(&forge(&[("s", 64)], 0, 1000)).unwrap();
        Job {
            id: 0,
            rank,
            offer,
            bytes: bytes::Bytes::from_static(&[0; 100]),
            most: 1,
            token,
            resume: true,
            held: false,
        }
    }

    fn reply(status: u16, headers: &[(&'static str, &str)], body: &str) -> Reply {
        let headers = headers.iter().map(|(k, v)| (header::HeaderName::from_static(k), v.parse().unwrap())).collect();
        Reply { status: StatusCode::from_u16(status).unwrap(), headers, body: body.to_owned().into() }
    }

    #[test]
    fn only_the_relays_own_words_for_this_chunk_confirm_it() {
        let job = job();
        let said = |name: &str, state: &str| {
            serde_json::json!({"chunk": {"ref": name, "state": state, "offset": 100, "length": 100}}).to_string()
        };
        let name = job.offer.chunk_ref().to_string();
        let other = waystation_proto::Offer { index: 2, ..job.offer.clone() }.chunk_ref().to_string();
        for status in [200, 201] {
            let verdict = read(&reply(status, &[], &said(&name, "confirmed")), &job).unwrap();
            assert_eq!(verdict.state, Some(ChunkState::Confirmed));
            for body in ["", "<html>welcome</html>", "{}", &said(&name, "staged"), &said(&other, "confirmed")] {
                assert!(read(&reply(status, &[], body), &job).is_err(), "{body}");
            }
        }
        let beside = read(&reply(503, &[], &said(&name, "confirmed")), &job).unwrap();
        assert_eq!(beside.state, None);
    }

    #[test]
    fn an_offset_that_is_not_named_is_none() {
        let job = job();
        assert_eq!(held(&reply(200, &[("upload-offset", "60")], ""), &job).ok(), Some(60));
        assert_eq!(held(&reply(404, &[], ""), &job).ok(), Some(0));
        for headers in [&[][..], &[("upload-offset", "x")], &[("upload-offset", "101")]] {
            let nothing = held(&reply(200, headers, ""), &job).unwrap_err();
            assert!(nothing.state.is_none() && nothing.error.is_none() && nothing.last, "{headers:?}");
        }
    }

    #[test]
    fn no_answer_to_a_question_counts_as_a_failed_try() {
        let job = job();
        for status in [302, 408, 425, 429, 500, 502, 503, 504] {
            let verdict = held(&reply(status, &[("retry-after", "7")], ""), &job).unwrap_err();
            assert!(verdict.error.is_none() && verdict.state.is_none() && verdict.last, "{status}");
            assert_eq!(verdict.retry_after_s, Some(7), "{status}");
        }
        let renew = held(&reply(401, &[], ""), &job).unwrap_err();
        assert_eq!(renew.error.unwrap().retry, waystation_proto::Retry::Renew);
        assert_eq!(held(&reply(403, &[], ""), &job).ok(), Some(0), "the offer is answered in words");
    }
}
