//! tus and resumable uploads: adapters to the same admission that `PUT` has. The dialect is chosen by
//! its header; whoever names none speaks the native one.

use http::Method;
use http::header::{self, HeaderMap};
use http::request::Parts;

use super::bearer;
use super::body::RequestBody;
use super::conn::Ctx;
use super::native::{self, Wait};
use super::respond::{self, Reply, Said, Shape};
use crate::admission::{Refusal, Standing};
use crate::proto::{ChunkRef, ChunkState, Code};

mod checked;
mod ietf;
mod interim;
mod tus;

pub(super) use checked::MAX_CHECKED_BYTES;
pub(super) use interim::Interim;

/// A version of resumable uploads that is answered in kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Interop {
    /// draft-ietf-httpbis-resumable-upload-01.
    V3,
    /// -03.
    V5,
    /// -04 and -05.
    V6,
    /// -09 and later.
    V8,
}

impl Interop {
    /// Every one.
    #[cfg(test)]
    pub(super) const ALL: [Self; 4] = [Self::V3, Self::V5, Self::V6, Self::V8];

    fn parse(text: &[u8]) -> Option<Self> {
        match text {
            b"3" => Some(Self::V3),
            b"5" => Some(Self::V5),
            b"6" => Some(Self::V6),
            b"8" => Some(Self::V8),
            _ => None,
        }
    }

    /// Its number.
    pub(super) const fn number(self) -> u16 {
        match self {
            Self::V3 => 3,
            Self::V5 => 5,
            Self::V6 => 6,
            Self::V8 => 8,
        }
    }

    /// It knows `Upload-Length`.
    pub(super) const fn has_length(self) -> bool {
        matches!(self, Self::V6 | Self::V8)
    }

    /// Stock clients of this version take an offset that is the length for success, whatever
    /// `Upload-Complete` says: they are not told the length of a chunk that is whole and not confirmed.
    pub(super) const fn mistakes_length(self, pending: bool) -> bool {
        pending && matches!(self, Self::V6)
    }

    /// Its parts have a media type of their own.
    const fn has_media_type(self) -> bool {
        matches!(self, Self::V6 | Self::V8)
    }

    /// What a request that only asks, or ends, must not say.
    const fn not_in_questions(self) -> &'static [&'static str] {
        match self {
            Self::V3 => &["upload-offset", "upload-incomplete"],
            Self::V5 => &["upload-offset", "upload-complete"],
            Self::V6 => &["upload-offset", "upload-complete", "upload-length"],
            Self::V8 => &[],
        }
    }
}

/// What a request speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dialect {
    Native,
    Ietf(Interop),
    Tus,
}

impl Dialect {
    /// The dialect of a head. An unknown version of resumable uploads is none: what it wants is an
    /// upload all the same. One of tus is refused (tus 1.0, "Tus-Resumable").
    fn of(headers: &HeaderMap) -> Result<Self, Code> {
        let (tus, ietf) = (headers.get("tus-resumable"), headers.get("upload-draft-interop-version"));
        match (tus, ietf) {
            (Some(_), Some(_)) => Err(Code::UnsupportedUploadVersion),
            (Some(version), None) if version.as_bytes() == b"1.0.0" => Ok(Self::Tus),
            (Some(_), None) => Err(Code::UnsupportedTusVersion),
            (None, Some(version)) => Ok(Interop::parse(version.as_bytes()).map_or(Self::Native, Self::Ietf)),
            (None, None) => Ok(Self::Native),
        }
    }

    const fn shape(self) -> Shape {
        match self {
            Self::Native => Shape::Native,
            Self::Ietf(version) => Shape::Ietf(version, None),
            Self::Tus => Shape::Tus,
        }
    }
}

/// In whose words an error is said.
pub(super) fn shape(headers: &HeaderMap) -> Shape {
    match Dialect::of(headers) {
        Ok(dialect) => dialect.shape(),
        Err(Code::UnsupportedTusVersion) => Shape::Tus,
        Err(_) => Shape::Native,
    }
}

/// The method as tus has it for those who can't send `PATCH`.
pub(super) fn method(method: &Method, headers: &HeaderMap) -> Option<Method> {
    let named = headers.get("x-http-method-override")?;
    let tus = method == Method::POST && headers.contains_key("tus-resumable");
    tus.then(|| Method::from_bytes(named.as_bytes()).ok()).flatten()
}

/// Everything at `/chunks` (no name) and `/chunks/{ref}` but `OPTIONS`; `None` where the method is not served.
pub(super) async fn serve(ctx: &Ctx, name: Option<&str>, parts: &Parts, body: &mut RequestBody) -> Option<Reply> {
    let method = &parts.method;
    let dialect = match (Dialect::of(&parts.headers), name) {
        // Reading is not a matter of dialects.
        (_, Some(name)) if method == Method::GET => return Some(native::get(ctx, name, parts).await),
        (Ok(dialect), _) => dialect,
        (Err(code), _) => return Some(respond::refusal(shape(&parts.headers), &code.into())),
    };
    let reply = match (dialect, name, method.clone()) {
        (Dialect::Tus, None, Method::POST) => tus::create(ctx, parts, body).await,
        (Dialect::Tus, Some(name), Method::PATCH) => tus::append(ctx, name, parts, body).await,
        (Dialect::Tus, Some(name), Method::HEAD) => stands(ctx, Shape::Tus, name, parts).await,
        (Dialect::Ietf(version), None, Method::POST) => ietf::create(ctx, version, name, parts, body).await,
        (Dialect::Ietf(version), Some(_), Method::PUT) if ietf::creates(version, &parts.headers) => {
            ietf::create(ctx, version, name, parts, body).await
        }
        (Dialect::Ietf(version), Some(name), Method::PATCH) => ietf::append(ctx, version, name, parts, body).await,
        (Dialect::Ietf(version), Some(name), Method::HEAD) => ietf::head(ctx, version, name, parts).await,
        (Dialect::Ietf(version), Some(name), Method::DELETE) => ietf::delete(ctx, version, name, parts).await,
        (Dialect::Native | Dialect::Ietf(_), Some(name), Method::PUT) => native::put(ctx, name, parts, body).await,
        (Dialect::Native, Some(name), Method::HEAD) => native::head(ctx, name, parts).await,
        (Dialect::Native, Some(name), Method::DELETE) => native::delete(ctx, name, parts).await,
        // These belong to a dialect: which one, is what is missing.
        (Dialect::Native, None, Method::POST) | (Dialect::Native, Some(_), Method::PATCH) => {
            respond::refusal(Shape::Native, &Code::UnsupportedUploadVersion.into())
        }
        _ => return None,
    };
    Some(reply)
}

/// `HEAD` of a dialect. An attempt that is still under way ends: its sender asks because it lost
/// it, and the offset must be the one that the next part is taken at.
async fn stands(ctx: &Ctx, shape: Shape, name: &str, parts: &Parts) -> Reply {
    let standing = async {
        let chunk = ChunkRef::parse(name).map_err(|_| Code::NotFound)?;
        let capability = bearer::capability(ctx, &parts.headers).await?;
        let standing = ctx.shared.admission.pause(chunk, &capability, ctx.client).await?;
        over(standing)
    };
    match standing.await {
        Ok(standing) => {
            let said = Said { asked: true, ..said_of(ctx, &standing) };
            let status = if shape == Shape::Tus { http::StatusCode::OK } else { http::StatusCode::NO_CONTENT };
            respond::said(shape, status, &said)
        }
        Err(refusal) => respond::refusal(shape, &refusal),
    }
}

/// An upload that ended without being confirmed is none any more.
fn over(standing: Standing) -> Result<Standing, Refusal> {
    match standing.state {
        ChunkState::Rejected | ChunkState::Expired => Err(super::put::unconfirmed(standing, false)),
        _ => Ok(standing),
    }
}

fn said_of<'a>(ctx: &Ctx, standing: &'a Standing) -> Said<'a> {
    Said {
        standing,
        until: ctx.shared.admission.kept_until(standing.chunk),
        now: ctx.shared.clock.unix_ms(),
        max_size: ctx.shared.max_chunk,
        created: false,
        asked: false,
    }
}

/// What both `PATCH`es begin with: nothing is looked up before it.
fn opens(ctx: &Ctx, headers: &HeaderMap) -> Result<(), Code> {
    bearer::bearer(headers)?;
    if ctx.drain.is_cancelled() { Err(Code::Draining) } else { Ok(()) }
}

/// The media type of a request's body is this one, whatever its parameters.
fn media_type(headers: &HeaderMap, wanted: &str) -> Result<(), Code> {
    let said = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = said.split(';').next().unwrap_or_default().trim();
    if essence.eq_ignore_ascii_case(wanted) { Ok(()) } else { Err(Code::UnsupportedMediaType) }
}

/// An answer with what it says of waiting.
fn answered(wait: &Wait, shape: Shape, reply: Result<Reply, Refusal>) -> Reply {
    let mut reply = reply.unwrap_or_else(|refusal| respond::refusal(shape, &refusal));
    wait.applied(&mut reply);
    reply
}

#[cfg(test)]
mod tests;
