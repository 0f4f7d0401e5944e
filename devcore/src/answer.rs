//! The one place where an answer or a refusal becomes bytes.

use std::io;

use bytes::Bytes;
use futures_util::TryStreamExt as _;
use http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, HeaderName, RETRY_AFTER};
use http::{HeaderValue, Response, StatusCode};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use tokio_util::io::ReaderStream;

use crate::refusal::Refusal;

/// The body of every answer.
pub(crate) type AnswerBody = UnsyncBoxBody<Bytes, io::Error>;

/// Why a call gets no good answer.
pub(crate) enum Stop {
    Refuse(Refusal),
    /// The connection is closed without an answer.
    Cut,
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Self::Refuse(refusal)
    }
}

impl From<crate::store::Failed> for Stop {
    fn from(failed: crate::store::Failed) -> Self {
        Self::Refuse(failed.into())
    }
}

/// A good answer.
pub(crate) struct Answer {
    pub(crate) status: u16,
    content: Content,
    headers: Vec<(HeaderName, HeaderValue)>,
}

enum Content {
    Json(Bytes),
    Nothing,
    File(tokio::fs::File, u64),
}

impl Answer {
    pub(crate) fn json(status: u16, body: &serde_json::Value) -> Self {
        Self { status, content: Content::Json(body.to_string().into()), headers: Vec::new() }
    }

    /// 204: all that is said is in the headers.
    pub(crate) const fn nothing() -> Self {
        Self { status: 204, content: Content::Nothing, headers: Vec::new() }
    }

    /// A stored chunk's bytes.
    pub(crate) const fn file(file: tokio::fs::File, length: u64) -> Self {
        Self { status: 200, content: Content::File(file, length), headers: Vec::new() }
    }

    /// The same status with a body that is no JSON.
    pub(crate) fn unreadable(mut self) -> Self {
        self.content = Content::Json(Bytes::from_static(b"{\"relay_"));
        self
    }

    pub(crate) fn with(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    pub(crate) fn of_refusal(refusal: &Refusal) -> Self {
        let mut body = serde_json::json!({ "error": { "code": refusal.code, "message": refusal.message } });
        if let Some((name, value)) = &refusal.beside {
            body[name] = value.clone();
        }
        let answer = Self::json(refusal.status, &body);
        match refusal.retry_after_s {
            Some(seconds) => answer.with(RETRY_AFTER, HeaderValue::from(seconds)),
            None => answer,
        }
    }

    pub(crate) fn into_response(self) -> Response<AnswerBody> {
        let whole = |bytes| Full::new(bytes).map_err(|never| match never {}).boxed_unsync();
        let (kind, body) = match self.content {
            Content::Json(json) => (Some(("application/json", json.len() as u64)), whole(json)),
            Content::Nothing => (None, whole(Bytes::new())),
            Content::File(file, length) => {
                let stream = ReaderStream::with_capacity(file, 64 * 1024).map_ok(Frame::data);
                (Some(("application/octet-stream", length)), StreamBody::new(stream).boxed_unsync())
            }
        };
        let mut response = Response::new(body);
        *response.status_mut() = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let headers = response.headers_mut();
        if let Some((kind, length)) = kind {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
            headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
        }
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(http::header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        headers.extend(self.headers);
        response
    }
}
