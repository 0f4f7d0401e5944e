//! What a browser may do from which page: the native routes only; the drop-in routes never had
//! it.

use http::StatusCode;
use http::header::{self, HeaderMap, HeaderValue};
use http::request::Parts;

use super::conn::Ctx;
use super::respond::{self, Reply, Shape};
use crate::proto::Code;

const METHODS: HeaderValue = HeaderValue::from_static("GET, HEAD, PUT, POST, PATCH, DELETE");
const REQUEST_HEADERS: HeaderValue = HeaderValue::from_static(
    "Authorization, Content-Type, Prefer, Repr-Digest, Tus-Resumable, Upload-Checksum, Upload-Complete, \
     Upload-Draft-Interop-Version, Upload-Incomplete, Upload-Length, Upload-Metadata, Upload-Offset, \
     Waystation-Chunk, Waystation-Watch, X-HTTP-Method-Override, X-Request-ID",
);
const EXPOSED: HeaderValue = HeaderValue::from_static(
    "Accept-Patch, Location, Preference-Applied, Repr-Digest, Retry-After, Tus-Checksum-Algorithm, Tus-Extension, \
     Tus-Max-Size, Tus-Resumable, Tus-Version, Upload-Complete, Upload-Draft-Interop-Version, Upload-Expires, \
     Upload-Incomplete, Upload-Length, Upload-Limit, Upload-Offset, Waystation-Chunk, Waystation-Hint, \
     Waystation-Loss, Waystation-Node, Waystation-State",
);
/// How long a browser may keep a preflight's answer, in seconds.
const MAX_AGE: HeaderValue = HeaderValue::from_static("600");

/// The request's origin, if it names one: whether the list has it.
pub(super) fn allowed(ctx: &Ctx, headers: &HeaderMap) -> Option<bool> {
    let origin = headers.get(header::ORIGIN)?;
    Some(ctx.origins.iter().any(|one| one.as_bytes() == origin.as_bytes()))
}

/// `OPTIONS` of a native route.
pub(super) fn preflight(ctx: &Ctx, parts: &Parts, allow: &'static str) -> Reply {
    if allowed(ctx, &parts.headers) == Some(false) {
        return respond::refusal(Shape::Native, &Code::OriginNotAllowed.into());
    }
    let mut reply = respond::empty(StatusCode::NO_CONTENT);
    let headers = reply.headers_mut();
    headers.insert(header::ALLOW, HeaderValue::from_static(allow));
    if parts.headers.contains_key(header::ORIGIN) {
        headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, METHODS);
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, REQUEST_HEADERS);
        headers.insert(header::ACCESS_CONTROL_MAX_AGE, MAX_AGE);
    }
    reply
}

/// What tells a browser that its page may read the answer. A page elsewhere gets the answer
/// without it: the bearer decides what is done, the origin only who may read.
pub(super) fn dress(ctx: &Ctx, request: &HeaderMap, reply: &mut HeaderMap) {
    if ctx.origins.is_empty() {
        return;
    }
    reply.append(header::VARY, HeaderValue::from_static("Origin"));
    if allowed(ctx, request) == Some(true)
        && let Some(origin) = request.get(header::ORIGIN)
    {
        reply.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
        reply.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
    }
}
