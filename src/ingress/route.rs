//! One handler for every version of HTTP: what is asked, whether the request is sound, who
//! answers.

use std::net::IpAddr;
use std::sync::Arc;

use http::header::{self, HeaderMap, HeaderValue};
use http::request::Parts;
use http::{Method, Request, Version};

use super::body::{Leave, RequestBody, ResponseBody};
use super::conn::{Conn, Ctx, Listener};
use super::respond::{self, MAX_FIELDS, MAX_HEADER_BYTES, Reply, Shape};
use super::ticket::Ticket;
use super::{capture, cors, dialect, dropin, health, watch, ws};
use crate::proto::{Code, dictionary};
use crate::telemetry::names::{Route, Transport};

/// What a path names. Everything else, a trailing slash too, is not found (contract B.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target<'a> {
    /// The server as a whole (RFC 9110, section 9.3.7): only `OPTIONS`.
    Server,
    Chunks,
    Chunk(&'a str),
    Capture,
    Watch,
    Live,
    Ready,
    Upload,
    Subscribe,
    Nothing,
}

impl<'a> Target<'a> {
    fn of(path: &'a str) -> Self {
        match path {
            "*" => Self::Server,
            "/chunks" => Self::Chunks,
            "/capture" => Self::Capture,
            "/watch" => Self::Watch,
            "/health/live" => Self::Live,
            "/health/ready" => Self::Ready,
            "/upload/complete-chunk" => Self::Upload,
            "/fanout/subscribe" => Self::Subscribe,
            _ => match path.strip_prefix("/chunks/") {
                Some(name) if !name.is_empty() && !name.contains('/') => Self::Chunk(name),
                _ => Self::Nothing,
            },
        }
    }

    const fn native(self) -> bool {
        matches!(self, Self::Server | Self::Chunks | Self::Chunk(_) | Self::Capture | Self::Watch)
    }

    fn shape(self, headers: &HeaderMap) -> Shape {
        match self {
            Self::Chunks | Self::Chunk(_) => dialect::shape(headers),
            _ if self.native() => Shape::Native,
            _ => Shape::DropIn,
        }
    }

    const fn allow(self) -> &'static str {
        match self {
            Self::Server => "OPTIONS",
            Self::Chunks => "POST, OPTIONS",
            Self::Chunk(_) => "GET, HEAD, PUT, PATCH, DELETE, OPTIONS",
            Self::Capture => "GET, POST, OPTIONS",
            Self::Watch => "GET, OPTIONS",
            Self::Upload => "POST",
            Self::Live | Self::Ready | Self::Subscribe | Self::Nothing => "GET",
        }
    }

    fn route(self, method: &Method) -> Route {
        match self {
            _ if self.native() && method == Method::OPTIONS => Route::Options,
            Self::Chunks if method == Method::POST => Route::ChunkPost,
            Self::Chunk(_) => match *method {
                Method::PUT => Route::ChunkPut,
                Method::PATCH => Route::ChunkPatch,
                Method::GET => Route::ChunkGet,
                Method::HEAD => Route::ChunkHead,
                Method::DELETE => Route::ChunkDelete,
                _ => Route::Other,
            },
            Self::Capture => Route::Capture,
            Self::Watch => Route::Watch,
            Self::Live => Route::HealthLive,
            Self::Ready => Route::HealthReady,
            Self::Upload => Route::Upload,
            Self::Subscribe => Route::Subscribe,
            Self::Server | Self::Chunks | Self::Nothing => Route::Other,
        }
    }
}

/// Answers one request.
pub(super) async fn handle(
    conn: Arc<Conn>,
    transport: Transport,
    client: IpAddr,
    request: Request<RequestBody>,
) -> Reply {
    let (mut parts, mut body) = request.into_parts();
    let path = parts.uri.path().to_owned();
    let target = Target::of(&path);
    if let Some(method) = dialect::method(&parts.method, &parts.headers) {
        parts.method = method;
    }
    let ticket = Ticket::open(&conn, target.route(&parts.method), transport);
    let ctx = Ctx { conn, transport, client, ticket };
    let mut reply = match sound(&ctx, &parts) {
        Err(code) => respond::refusal(target.shape(&parts.headers), &code.into()),
        Ok(()) => Box::pin(dispatch(&ctx, target, &mut parts, &mut body)).await,
    };
    let refused = !reply.status().is_success();
    let expects_continue = parts.headers.contains_key(header::EXPECT);
    let left = body.leave(&ctx, Leave { refused, expects_continue });
    if ctx.transport == Transport::H2 && !refused {
        // A whole success before the request's end is more than some clients can bear: curl 7.88
        // spins for ever, with a reset or without. The head goes at once, for those who can use it.
        reply = reply.map(|body| body.after(left));
    } else if ctx.transport == Transport::H3 && refused && parts.headers.contains_key(header::ORIGIN) {
        // A browser reads no answer before its body is sent, and does not notice that nobody takes
        // more of it: Chromium's fetch hangs for ever. A reset ends it.
        reply = reply.map(|body| body.until(left));
    }
    if parts.method == Method::HEAD {
        // hyper leaves a body out on HTTP/1.1 only; on HTTP/2 it would break the stream.
        reply = reply.map(|_| ResponseBody::whole(""));
    }
    dress(&ctx, target, &parts, &mut reply);
    let code = reply.extensions_mut().remove::<Code>();
    ctx.ticket.answered(reply.status().as_u16(), code);
    reply.map(|body| body.with_ticket(ctx.ticket))
}

async fn dispatch(ctx: &Ctx, target: Target<'_>, parts: &mut Parts, body: &mut RequestBody) -> Reply {
    let method = parts.method.clone();
    let upgrade = ws::wanted(parts);
    match (target, method) {
        (Target::Nothing, _) => respond::refusal(Shape::DropIn, &Code::NotFound.into()),
        (Target::Capture | Target::Watch, Method::OPTIONS) => cors::preflight(ctx, parts, target.allow()),
        (Target::Server | Target::Chunks | Target::Chunk(_), Method::OPTIONS) => {
            let mut reply = cors::preflight(ctx, parts, target.allow());
            respond::served(reply.headers_mut(), ctx.shared.max_chunk);
            reply
        }
        (Target::Chunks, _) => served(dialect::serve(ctx, None, parts, body).await, target, parts),
        (Target::Chunk(name), _) => served(dialect::serve(ctx, Some(name), parts, body).await, target, parts),
        (Target::Capture, _) if upgrade => capture::upgrade(ctx, parts),
        (Target::Watch, _) if upgrade => watch::upgrade(ctx, parts),
        (Target::Capture, Method::POST) => capture::post(ctx, parts, body),
        (Target::Capture, Method::GET) => ws::needed(),
        (Target::Watch, Method::GET) => watch::get(ctx, parts).await,
        (Target::Live, Method::GET) => health::live(),
        (Target::Ready, Method::GET) => health::ready(ctx),
        (Target::Upload, Method::POST) => dropin::upload(ctx, parts, body).await,
        (Target::Subscribe, Method::GET) => dropin::subscribe(ctx, parts).await,
        (target, _) => respond::not_allowed(target.shape(&parts.headers), target.allow()),
    }
}

/// The answer, if the method is served.
fn served(reply: Option<Reply>, target: Target<'_>, parts: &Parts) -> Reply {
    reply.unwrap_or_else(|| respond::not_allowed(target.shape(&parts.headers), target.allow()))
}

/// What hyper and h3 let pass and this relay does not: a head that is too large, and requests
/// that two readers may read differently (no or several hosts, doubled transfer codings).
pub(super) fn sound(ctx: &Ctx, parts: &Parts) -> Result<(), Code> {
    if ctx.conn.place.courtesy {
        return Err(Code::TooManyConnections);
    }
    let headers = &parts.headers;
    let size: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 32).sum();
    if size + parts.uri.path().len() + parts.uri.query().map_or(0, str::len) > MAX_HEADER_BYTES
        || headers.len() > MAX_FIELDS
    {
        return Err(Code::HeadersTooLarge);
    }
    let hosts = headers.get_all(header::HOST).iter().count();
    let one_host = match parts.version {
        Version::HTTP_11 => hosts == 1,
        Version::HTTP_10 => hosts <= 1,
        _ => hosts <= 1 && (hosts == 0 || same_host(parts)),
    };
    if !one_host || !sound_framing(headers) {
        return Err(Code::BadRequest);
    }
    Ok(())
}

fn same_host(parts: &Parts) -> bool {
    let authority = parts.uri.authority().map(http::uri::Authority::as_str);
    let host = parts.headers.get(header::HOST).map(HeaderValue::as_bytes);
    authority.is_none_or(|authority| host.is_some_and(|host| host.eq_ignore_ascii_case(authority.as_bytes())))
}

fn sound_framing(headers: &HeaderMap) -> bool {
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    let coding = codings.next();
    let one_chunked = coding.is_none_or(|value| value.as_bytes().eq_ignore_ascii_case(b"chunked"));
    let both = coding.is_some() && headers.contains_key(header::CONTENT_LENGTH);
    let lengths = headers.get_all(header::CONTENT_LENGTH).iter().count();
    one_chunked && codings.next().is_none() && !both && lengths <= 1
}

/// The headers that every answer carries.
fn dress(ctx: &Ctx, target: Target<'_>, parts: &Parts, reply: &mut Reply) {
    let close = ctx.conn.place.courtesy && parts.version <= Version::HTTP_11;
    let headers = reply.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if close {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    if ctx.conn.listener == Listener::Public
        && let Some(alt_svc) = &ctx.alt_svc
    {
        headers.insert(header::ALT_SVC, alt_svc.clone());
    }
    if target.native() {
        headers.insert(respond::NODE, ctx.node.clone());
        if let Some(session) = ctx.ticket.hinted()
            && let Ok(hint) = HeaderValue::from_str(&dictionary::write_hint(&ctx.shared.admission.hint(Some(session))))
        {
            headers.insert(respond::HINT, hint);
        }
        cors::dress(ctx, &parts.headers, headers);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_named_paths_are_served() {
        for path in [
            "/",
            "/health",
            "/health/live/",
            "/health/ready/",
            "/v1",
            "/v1/",
            "/v1/relay/preflight",
            "/metrics",
            "/admin",
            "/admin/",
            "/i/viewer-token",
            "/chunks/",
            "/chunks/a/b",
            "/watch/",
            "/capture/",
            "//watch",
            "/upload/complete-chunk/",
            "/WATCH",
        ] {
            assert_eq!(Target::of(path), Target::Nothing, "{path}");
        }
        assert_eq!(Target::of("/chunks/abc"), Target::Chunk("abc"));
    }

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn framing_that_two_readers_may_read_differently_is_refused() {
        assert!(sound_framing(&headers(&[])));
        assert!(sound_framing(&headers(&[("transfer-encoding", "Chunked")])));
        for bad in [
            &[("transfer-encoding", "chunked, chunked")][..],
            &[("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")],
            &[("transfer-encoding", "gzip, chunked")],
            &[("transfer-encoding", "chunked"), ("content-length", "1")],
            &[("content-length", "1"), ("content-length", "1")],
        ] {
            assert!(!sound_framing(&headers(bad)), "{bad:?}");
        }
    }
}
