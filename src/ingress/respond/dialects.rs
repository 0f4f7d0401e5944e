//! The same answers as tus and resumable uploads say them: their headers, their problem types.

use std::time::{Duration, SystemTime};

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Response, StatusCode};
use serde::Serialize;

use super::{Reply, STATE, Shape, UPLOAD_COMPLETE, UPLOAD_OFFSET, empty, json};
use crate::admission::{Refusal, Standing};
use crate::ingress::dialect::Interop;
use crate::proto::message::Answer;
use crate::proto::{ChunkState, Code, tus};

const INTEROP: HeaderName = HeaderName::from_static("upload-draft-interop-version");
const UPLOAD_INCOMPLETE: HeaderName = HeaderName::from_static("upload-incomplete");
const UPLOAD_LENGTH: HeaderName = HeaderName::from_static("upload-length");
const UPLOAD_LIMIT: HeaderName = HeaderName::from_static("upload-limit");
const UPLOAD_EXPIRES: HeaderName = HeaderName::from_static("upload-expires");
const TUS_RESUMABLE: HeaderName = HeaderName::from_static("tus-resumable");
const TUS_VERSION: HeaderName = HeaderName::from_static("tus-version");
const ACCEPT_PATCH: HeaderName = HeaderName::from_static("accept-patch");

const TUS_1: HeaderValue = HeaderValue::from_static("1.0.0");
const PATCHES: HeaderValue = HeaderValue::from_static("application/partial-upload, application/offset+octet-stream");

/// Everything an answer may say of an upload.
#[derive(Debug, Clone, Copy)]
pub(in crate::ingress) struct Said<'a> {
    /// Where it stands.
    pub(in crate::ingress) standing: &'a Standing,
    /// Until when it is kept, Unix ms.
    pub(in crate::ingress) until: Option<i64>,
    /// What time it is, Unix ms.
    pub(in crate::ingress) now: i64,
    /// Largest chunk.
    pub(in crate::ingress) max_size: u64,
    /// It was created by this request.
    pub(in crate::ingress) created: bool,
    /// It was asked where it stands, and nothing else.
    pub(in crate::ingress) asked: bool,
}

/// An answer that is none of an error.
pub(in crate::ingress) fn said(shape: Shape, status: StatusCode, said: &Said<'_>) -> Reply {
    let standing = said.standing;
    let mut reply = match shape {
        // What a whole upload gets is what a `PUT` gets.
        Shape::Ietf(..) if standing.state == ChunkState::Confirmed && !said.asked => super::chunk(status, standing),
        _ => empty(status),
    };
    let headers = reply.headers_mut();
    if said.created {
        location(headers, standing);
    }
    match shape {
        Shape::Ietf(version, _) => ietf(headers, version, said),
        _ => tus_1(headers, said),
    }
    reply
}

fn ietf(headers: &mut HeaderMap, version: Interop, said: &Said<'_>) {
    let (standing, open) = (said.standing, said.standing.state != ChunkState::Confirmed);
    state(headers, version, standing);
    if said.asked && version.has_length() && !version.mistakes_length(open && standing.offset == standing.length) {
        headers.insert(UPLOAD_LENGTH, standing.length.into());
    }
    if said.asked {
        headers.insert(STATE, HeaderValue::from_static(standing.state.as_str()));
    }
    if let Some(limit) = limit(version, said, open) {
        headers.insert(UPLOAD_LIMIT, limit);
    }
}

/// Offset and completeness, which is what the core confirmed and nothing less (contract C15).
fn state(headers: &mut HeaderMap, version: Interop, standing: &Standing) {
    headers.insert(INTEROP, version.number().into());
    headers.insert(UPLOAD_OFFSET, standing.offset.into());
    let complete = standing.state == ChunkState::Confirmed;
    let (name, yes) = match version {
        Interop::V3 => (UPLOAD_INCOMPLETE, !complete),
        _ => (UPLOAD_COMPLETE, complete),
    };
    headers.insert(name, HeaderValue::from_static(if yes { "?1" } else { "?0" }));
}

/// `Upload-Limit`, of the versions that have it.
fn limit(version: Interop, said: &Said<'_>, open: bool) -> Option<HeaderValue> {
    let age = match version {
        Interop::V3 | Interop::V5 => return None,
        Interop::V6 => "expires",
        Interop::V8 => "max-age",
    };
    let left = said.until.filter(|_| open).map(|until| until.saturating_sub(said.now).max(0) / 1000);
    let left = left.map(|seconds| format!(", {age}={seconds}")).unwrap_or_default();
    HeaderValue::from_str(&format!("max-size={}{left}", said.max_size)).ok()
}

fn tus_1(headers: &mut HeaderMap, said: &Said<'_>) {
    let (standing, open) = (said.standing, said.standing.state != ChunkState::Confirmed);
    headers.insert(TUS_RESUMABLE, TUS_1);
    headers.insert(UPLOAD_OFFSET, tus_offset(standing).into());
    if said.asked {
        headers.insert(UPLOAD_LENGTH, standing.length.into());
        headers.insert(STATE, HeaderValue::from_static(standing.state.as_str()));
    }
    let until = said.until.filter(|_| open).and_then(|until| u64::try_from(until).ok());
    let until = until.and_then(|until| SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(until)));
    if let Some(until) = until.and_then(|until| HeaderValue::from_str(&httpdate::fmt_http_date(until)).ok()) {
        headers.insert(UPLOAD_EXPIRES, until);
    }
}

/// What tus is told is here: offset = length is its word for done, so the last byte is said to be
/// missing until the core confirmed the chunk (contract C15).
fn tus_offset(standing: &Standing) -> u64 {
    match standing.state {
        ChunkState::Confirmed => standing.length,
        _ => standing.offset.min(standing.length.saturating_sub(1)),
    }
}

fn location(headers: &mut HeaderMap, standing: &Standing) {
    if let Ok(value) = HeaderValue::from_str(&format!("/chunks/{}", standing.chunk)) {
        headers.insert(header::LOCATION, value);
    }
}

/// The upload is no more.
pub(in crate::ingress) fn deleted(version: Interop) -> Reply {
    let mut reply = empty(StatusCode::NO_CONTENT);
    reply.headers_mut().insert(INTEROP, version.number().into());
    reply
}

/// `104 (Upload Resumption Supported)`: the upload can be gone on with from here on.
pub(in crate::ingress) fn interim(version: Interop, said: &Said<'_>) -> Response<()> {
    let mut head = Response::new(());
    *head.status_mut() = StatusCode::from_u16(104).unwrap_or(StatusCode::PROCESSING);
    let headers = head.headers_mut();
    headers.insert(INTEROP, version.number().into());
    location(headers, said.standing);
    if let Some(limit) = limit(version, said, true) {
        headers.insert(UPLOAD_LIMIT, limit);
    }
    head
}

/// What `OPTIONS` says of both dialects.
pub(in crate::ingress) fn served(headers: &mut HeaderMap, max_size: u64) {
    headers.insert(ACCEPT_PATCH, PATCHES);
    if let Ok(limit) = HeaderValue::from_str(&format!("max-size={max_size}")) {
        headers.insert(UPLOAD_LIMIT, limit);
    }
    headers.insert(TUS_RESUMABLE, TUS_1);
    headers.insert(TUS_VERSION, TUS_1);
    headers.insert("tus-extension", HeaderValue::from_static("creation,creation-with-upload,expiration,checksum"));
    headers.insert("tus-checksum-algorithm", HeaderValue::from_static(tus::ALGORITHMS));
    headers.insert("tus-max-size", max_size.into());
}

/// A problem of RFC 9457 that resumable uploads name, with the native members beside it.
#[derive(Serialize)]
struct Problem {
    #[serde(rename = "type")]
    kind: String,
    title: &'static str,
    #[serde(rename = "expected-offset", skip_serializing_if = "Option::is_none")]
    expected: Option<u64>,
    #[serde(rename = "provided-offset", skip_serializing_if = "Option::is_none")]
    provided: Option<u64>,
    #[serde(flatten)]
    native: Answer,
}

/// Adds what a dialect says of a refusal beside its native body.
pub(super) fn refused(reply: &mut Reply, shape: Shape, refusal: &Refusal) {
    match shape {
        Shape::Native | Shape::DropIn => return,
        Shape::Tus => {
            let headers = reply.headers_mut();
            headers.insert(TUS_RESUMABLE, TUS_1);
            if refusal.code == Code::UnsupportedTusVersion {
                headers.insert(TUS_VERSION, TUS_1);
            }
            if let Some(standing) = &refusal.standing {
                headers.insert(UPLOAD_OFFSET, tus_offset(standing).into());
            }
        }
        Shape::Ietf(version, provided) => {
            if let Some((kind, title)) = problem(version, refusal.code) {
                *reply = problem_reply(reply.status(), (kind, title), refusal, provided);
            }
            let headers = reply.headers_mut();
            headers.insert(INTEROP, version.number().into());
            if let Some(standing) = &refusal.standing {
                state(headers, version, standing);
                location(headers, standing);
            }
        }
    }
    if refusal.code == Code::UnsupportedMediaType {
        reply.headers_mut().insert(ACCEPT_PATCH, PATCHES);
    }
}

fn problem_reply(
    status: StatusCode,
    (kind, title): (&'static str, &'static str),
    refusal: &Refusal,
    provided: Option<u64>,
) -> Reply {
    let mismatch = refusal.code == Code::OffsetMismatch;
    let standing = refusal.standing.as_ref();
    let problem = Problem {
        kind: format!("https://iana.org/assignments/http-problem-types#{kind}"),
        title,
        expected: standing.filter(|_| mismatch).map(|standing| standing.offset),
        provided: provided.filter(|_| mismatch),
        native: Answer { chunk: standing.map(super::of), error: Some(super::error(refusal.code, None)) },
    };
    let mut reply = json(status, &problem);
    reply.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    reply
}

/// The problem type of a code, in the versions that have it.
const fn problem(version: Interop, code: Code) -> Option<(&'static str, &'static str)> {
    match (version, code) {
        (Interop::V6 | Interop::V8, Code::OffsetMismatch) => {
            Some(("mismatching-upload-offset", "offset from request does not match offset of resource"))
        }
        (Interop::V6 | Interop::V8, Code::UploadCompleted) => Some(("completed-upload", "upload is already completed")),
        (Interop::V8, Code::LengthMismatch | Code::BodyTooLong) => {
            Some(("inconsistent-upload-length", "inconsistent length values for upload"))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::refusal;
    use super::*;
    use crate::proto::ChunkRef;
    use http_body_util::BodyExt as _;

    fn standing(state: ChunkState, offset: u64) -> Standing {
        Standing { chunk: ChunkRef([0; 16]), state, offset, length: 100, receipt: None, trouble: None }
    }

    fn of(standing: &Standing) -> Said<'_> {
        Said { standing, until: Some(90_000), now: 30_500, max_size: 1000, created: false, asked: true }
    }

    fn headers(shape: Shape, said_of: &Said<'_>) -> Vec<(String, String)> {
        let reply = said(shape, StatusCode::NO_CONTENT, said_of);
        let of = |(name, value): (&HeaderName, &HeaderValue)| (name.to_string(), value.to_str().unwrap().to_owned());
        let mut all: Vec<_> = reply.headers().iter().map(of).collect();
        all.sort();
        all
    }

    fn list(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn each_version_says_where_an_upload_stands_in_its_own_words() {
        let half = standing(ChunkState::Receiving, 50);
        let of_version = |version| headers(Shape::Ietf(version, None), &of(&half));
        let node = ("waystation-state", "receiving");
        assert_eq!(
            of_version(Interop::V3),
            list(&[("upload-draft-interop-version", "3"), ("upload-incomplete", "?1"), ("upload-offset", "50"), node])
        );
        assert_eq!(
            of_version(Interop::V5),
            list(&[("upload-complete", "?0"), ("upload-draft-interop-version", "5"), ("upload-offset", "50"), node])
        );
        let (length, offset) = (("upload-length", "100"), ("upload-offset", "50"));
        for (version, number, limit) in
            [(Interop::V6, "6", "max-size=1000, expires=59"), (Interop::V8, "8", "max-size=1000, max-age=59")]
        {
            let version_header = ("upload-draft-interop-version", number);
            let wanted = [("upload-complete", "?0"), version_header, length, ("upload-limit", limit), offset, node];
            assert_eq!(of_version(version), list(&wanted));
        }
        assert_eq!(
            headers(Shape::Tus, &of(&half)),
            list(&[
                ("tus-resumable", "1.0.0"),
                ("upload-expires", "Thu, 01 Jan 1970 00:01:30 GMT"),
                length,
                offset,
                node
            ])
        );
    }

    #[test]
    fn nothing_says_done_before_the_core_confirmed() {
        for state in ChunkState::ALL {
            let whole = standing(*state, 100);
            let confirmed = *state == ChunkState::Confirmed;
            for version in Interop::ALL {
                let all = headers(Shape::Ietf(version, None), &of(&whole));
                let has = |name: &str, value: &str| all.contains(&(name.to_owned(), value.to_owned()));
                assert!(has("upload-offset", "100"), "the full offset is said");
                let done = has("upload-complete", "?1") || has("upload-incomplete", "?0");
                assert_eq!(done, confirmed, "{state} {version:?}");
            }
            // Stock clients of this version take offset = length for success.
            let all = headers(Shape::Ietf(Interop::V6, None), &of(&whole));
            assert_eq!(all.iter().any(|(name, _)| name == "upload-length"), confirmed);
            let all = headers(Shape::Tus, &of(&whole));
            let offset = if confirmed { "100" } else { "99" };
            assert!(all.contains(&("upload-offset".into(), offset.into())), "{state}");
            assert_eq!(all.iter().any(|(name, _)| name == "upload-expires"), !confirmed);
        }
    }

    #[tokio::test]
    async fn problems_have_their_types_where_the_version_has_them() {
        for version in Interop::ALL {
            for (code, kind, since) in [
                (Code::OffsetMismatch, "mismatching-upload-offset", 6),
                (Code::UploadCompleted, "completed-upload", 6),
                (Code::LengthMismatch, "inconsistent-upload-length", 8),
            ] {
                let mut refused = Refusal::from(code);
                refused.standing = Some(standing(ChunkState::Receiving, 50));
                let reply = refusal(Shape::Ietf(version, Some(70)), &refused);
                assert_eq!(reply.status().as_u16(), code.status());
                assert_eq!(reply.headers()["upload-offset"], "50");
                let media = reply.headers()["content-type"].to_str().unwrap().to_owned();
                let body = reply.into_body().collect().await.ok().unwrap().to_bytes();
                let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
                assert_eq!(body["error"]["code"], code.name(), "the native members are there too");
                assert_eq!(body["chunk"]["offset"], 50);
                let is = version.number() >= since;
                assert_eq!(media == "application/problem+json", is, "{version:?} {code}");
                let wanted = format!("https://iana.org/assignments/http-problem-types#{kind}");
                assert_eq!(body["type"] == wanted.as_str(), is);
                let offsets = (&body["expected-offset"], &body["provided-offset"]);
                if is && code == Code::OffsetMismatch {
                    assert_eq!(offsets, (&50.into(), &70.into()));
                } else {
                    assert!(offsets.0.is_null() && offsets.1.is_null());
                }
            }
        }
        let reply = refusal(Shape::Tus, &Code::UnsupportedTusVersion.into());
        assert_eq!((reply.status().as_u16(), &reply.headers()["tus-version"]), (412, &TUS_1));
        assert_eq!(refusal(Shape::Tus, &Code::ChecksumMismatch.into()).status().as_u16(), 460);
    }

    #[test]
    fn the_interim_answer_names_the_upload_and_its_version() {
        let fresh = standing(ChunkState::Receiving, 0);
        let head = interim(Interop::V8, &of(&fresh));
        assert_eq!(head.status().as_u16(), 104);
        assert_eq!(head.headers()["location"], "/chunks/AAAAAAAAAAAAAAAAAAAAAA");
        assert_eq!(head.headers()["upload-draft-interop-version"], "8");
        assert!(!head.headers().contains_key("upload-offset"));
    }
}
