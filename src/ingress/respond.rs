//! The only place where a code becomes a status, a close code, a frame or an event.

use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::{Response, StatusCode};
use serde::Serialize;

use super::body::ResponseBody;
use super::dialect::Interop;
use crate::admission::{Refusal, Standing};
use crate::proto::frame::{self, kind};
use crate::proto::message::{self, Answer, Bye, CaptureState, Ending, Refused};
use crate::proto::{Code, ContactState, Retry};

mod dialects;

pub(super) use dialects::{Said, deleted, interim, said, served};

/// Largest head of a request that is looked into: a capability of 16 KiB and a chunk's dictionary
/// fit twice.
pub(super) const MAX_HEADER_BYTES: usize = 32 * 1024;
/// Fields of a head, on every version of HTTP; a request of this protocol has about ten, a browser
/// adds twenty.
pub(super) const MAX_FIELDS: usize = 128;
/// `Retry-After` where nobody knows better, in seconds.
const DEFAULT_RETRY_S: u64 = 5;

/// `Waystation-Node`
pub(super) const NODE: HeaderName = HeaderName::from_static("waystation-node");
/// `Waystation-Hint`
pub(super) const HINT: HeaderName = HeaderName::from_static("waystation-hint");
/// `Waystation-Chunk`
pub(super) const CHUNK: HeaderName = HeaderName::from_static("waystation-chunk");
/// `Waystation-Loss`
pub(super) const LOSS: HeaderName = HeaderName::from_static("waystation-loss");
/// `Waystation-State`
pub(super) const STATE: HeaderName = HeaderName::from_static("waystation-state");
/// `Upload-Offset`
pub(super) const UPLOAD_OFFSET: HeaderName = HeaderName::from_static("upload-offset");
/// `Upload-Complete`
pub(super) const UPLOAD_COMPLETE: HeaderName = HeaderName::from_static("upload-complete");
/// `Preference-Applied`
pub(super) const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");

/// An answer on its way.
pub(super) type Reply = Response<ResponseBody>;

/// Whose words: the kinds of answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// `wire.md`, "Native HTTP".
    Native,
    /// Contract B.1.
    DropIn,
    /// Resumable uploads of this interop version; with the offset that the request named, if it did.
    Ietf(Interop, Option<u64>),
    /// tus 1.0.
    Tus,
}

/// Seconds to wait, where a refusal asks for it.
pub(super) fn retry_after_s(refusal: &Refusal) -> Option<u64> {
    match refusal.retry_after {
        Some(wait) => Some(ceil_s(wait)),
        None => (refusal.code.retry() == Retry::Later).then_some(DEFAULT_RETRY_S),
    }
}

fn ceil_s(wait: Duration) -> u64 {
    wait.as_secs() + u64::from(wait.subsec_nanos() > 0)
}

/// An error as native answers, frames and events carry it.
pub(super) fn error(code: Code, core_code: Option<&str>) -> message::Error {
    let mut error = message::Error::from(code);
    error.core_code = core_code.filter(|text| plain(text)).map(Into::into);
    error
}

/// The core's codes are `[a-z0-9_]+` (contract A.0); anything else stays here.
fn plain(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

/// An answer with a JSON body.
pub(super) fn json(status: StatusCode, body: &impl Serialize) -> Reply {
    let mut reply = Response::new(ResponseBody::whole(serde_json::to_vec(body).unwrap_or_default()));
    *reply.status_mut() = status;
    reply.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    reply
}

/// An answer without a body.
pub(super) fn empty(status: StatusCode) -> Reply {
    let mut reply = Response::new(ResponseBody::whole(Bytes::new()));
    *reply.status_mut() = status;
    reply
}

/// A native answer about a chunk.
pub(super) fn chunk(status: StatusCode, standing: &Standing) -> Reply {
    json(status, &Answer { chunk: Some(of(standing)), error: None })
}

fn of(standing: &Standing) -> message::Chunk {
    message::Chunk {
        chunk_ref: standing.chunk,
        state: standing.state,
        offset: standing.offset,
        length: standing.length,
        receipt: standing.receipt.as_deref().map(Into::into),
    }
}

#[derive(Serialize)]
struct DropInError<'a> {
    error: DropInErrorBody<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    core_error_code: Option<&'a str>,
}

#[derive(Serialize)]
struct DropInErrorBody<'a> {
    code: &'a str,
    message: &'a str,
}

/// A refusal as an answer.
pub(super) fn refusal(shape: Shape, refusal: &Refusal) -> Reply {
    let spec = refusal.code.spec();
    let status = StatusCode::from_u16(refusal.status.unwrap_or(spec.status)).unwrap_or(StatusCode::BAD_GATEWAY);
    let core_code = refusal.core_code.as_deref();
    let mut reply = match shape {
        Shape::Native | Shape::Ietf(..) | Shape::Tus => {
            let error = Some(error(refusal.code, core_code));
            json(status, &Answer { chunk: refusal.standing.as_ref().map(of), error })
        }
        Shape::DropIn => {
            let core_error_code = core_code.filter(|text| plain(text));
            let error = DropInErrorBody { code: spec.name, message: spec.message };
            json(status, &DropInError { error, core_error_code })
        }
    };
    if let Some(seconds) = retry_after_s(refusal) {
        reply.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    }
    dialects::refused(&mut reply, shape, refusal);
    if shape != Shape::DropIn && status == StatusCode::UNAUTHORIZED {
        reply.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    reply.extensions_mut().insert(refusal.code);
    reply
}

/// 405 with what is allowed.
pub(super) fn not_allowed(shape: Shape, allow: &'static str) -> Reply {
    let mut reply = self::refusal(shape, &Code::MethodNotAllowed.into());
    reply.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allow));
    reply
}

/// `BYE`, the last frame to a capture client.
pub(super) fn bye(refusal: &Refusal) -> Bytes {
    let retry_after_s = retry_after_s(refusal);
    frame::encode_json(kind::BYE, &Bye { reason: refusal.code.name().into(), retry_after_s })
}

/// `ENDING`, the last frame to a contact.
pub(super) fn ending(code: Code) -> Bytes {
    frame::encode_json(kind::ENDING, &Ending { reason: code.name().into() })
}

/// `STATE` to a capture client, of a chunk that is here.
pub(super) fn capture_state(handle: u64, standing: &Standing) -> Bytes {
    let error = standing.trouble.as_ref().map(|(code, core_code)| error(*code, core_code.as_deref()));
    let state = CaptureState {
        handle,
        chunk_ref: Some(standing.chunk),
        state: Some(standing.state),
        receipt: standing.receipt.as_deref().map(Into::into),
        error,
        retry_after_s: None,
    };
    frame::encode_json(kind::CAPTURE_STATE, &state)
}

/// `STATE` to a capture client, of an offer that is refused.
pub(super) fn capture_refusal(handle: u64, refusal: &Refusal) -> Bytes {
    let state = CaptureState {
        handle,
        chunk_ref: refusal.standing.as_ref().map(|standing| standing.chunk),
        state: refusal.standing.as_ref().map(|standing| standing.state),
        receipt: refusal.standing.as_ref().and_then(|standing| standing.receipt.as_deref().map(Into::into)),
        error: Some(error(refusal.code, refusal.core_code.as_deref())),
        retry_after_s: retry_after_s(refusal),
    };
    frame::encode_json(kind::CAPTURE_STATE, &state)
}

/// `REFUSED` to a capture client: the capability it presented as this one is no good.
pub(super) fn capability_refusal(number: u64, refusal: &Refusal) -> Bytes {
    let refused = Refused {
        capability: number,
        error: error(refusal.code, refusal.core_code.as_deref()),
        retry_after_s: retry_after_s(refusal),
    };
    frame::encode_json(kind::REFUSED, &refused)
}

/// The failure fields of a `relay_chunk_state` (contract B.4).
#[derive(Serialize)]
pub(super) struct Failure {
    error_code: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    core_error_code: Option<Box<str>>,
    retryable: bool,
    terminal: bool,
}

/// How a chunk ended, in the drop-in route's words: `None` while it has not. With a failure the
/// subscription ends too.
pub(super) fn drop_in_state(
    state: ContactState,
    error: Option<(Code, Option<Box<str>>)>,
) -> Option<(&'static str, Option<Failure>)> {
    let (word, retryable) = match state {
        ContactState::Confirmed => return Some(("confirmed", None)),
        ContactState::Rejected => ("rejected", false),
        ContactState::TerminalFailure | ContactState::Unsettled => ("terminal_failure", true),
        ContactState::Arriving | ContactState::NearLiveUnconfirmed | ContactState::Withdrawn => return None,
    };
    let (code, core_code) = error.unwrap_or((Code::CoreCommitUnavailable, None));
    let core_error_code = core_code.filter(|text| plain(text));
    Some((word, Some(Failure { error_code: code.name(), core_error_code, retryable, terminal: true })))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_an_answer_in_both_shapes() {
        for code in Code::ALL {
            for shape in [Shape::Native, Shape::DropIn, Shape::Ietf(Interop::V8, None), Shape::Tus] {
                let reply = refusal(shape, &(*code).into());
                assert_eq!(reply.status().as_u16(), code.status());
                let later = code.retry() == Retry::Later;
                assert_eq!(reply.headers().contains_key(header::RETRY_AFTER), later, "{code}");
            }
            assert!((4400..4600).contains(&code.close()));
        }
    }

    #[test]
    fn no_answer_holds_a_word_that_answers_must_not() {
        let banned = ["stored_path", "object_key", "Authorization", "plaintext", "raw_key", "wrapped_key", "latitude"];
        for code in Code::ALL {
            let text = serde_json::to_string(&error(*code, None)).unwrap();
            assert!(!banned.iter().any(|word| text.contains(word)), "{text}");
        }
    }

    #[test]
    fn a_mapped_refusal_keeps_the_cores_status_and_only_a_plain_code() {
        let mut mapped = Refusal::from(Code::CorePreflightRejected);
        mapped.status = Some(401);
        mapped.core_code = Some("relay_capability_expired".into());
        assert_eq!(refusal(Shape::DropIn, &mapped).status(), 401);
        assert_eq!(error(mapped.code, Some("/etc/passwd")).core_code, None);
        assert_eq!(error(mapped.code, Some("not_found")).core_code.as_deref(), Some("not_found"));
    }

    #[test]
    fn waits_are_rounded_up() {
        let mut slow = Refusal::from(Code::CoreLimited);
        slow.retry_after = Some(Duration::from_millis(1001));
        assert_eq!(retry_after_s(&slow), Some(2));
    }
}
