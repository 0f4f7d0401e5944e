//! Resumable uploads (draft-ietf-httpbis-resumable-upload), interop versions 3, 5, 6 and 8.

use http::StatusCode;
use http::header::{self, HeaderMap};
use http::request::Parts;

use super::{Interim, Interop, answered, media_type, opens, said_of, stands};
use crate::admission::{Admitted, Receiving, Refusal, Standing};
use crate::ingress::bearer;
use crate::ingress::body::RequestBody;
use crate::ingress::conn::Ctx;
use crate::ingress::native::{self, Wait};
use crate::ingress::put::{self, Body};
use crate::ingress::respond::{self, Reply, Said, Shape};
use crate::proto::{ChunkRef, ChunkState, Code, Offer, dictionary};

/// The numbers and the flag of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Asked {
    /// Its content is the end of the chunk; `None` where it does not say, and the length decides.
    complete: Option<bool>,
    offset: Option<u64>,
    /// Of the whole chunk.
    length: Option<u64>,
    /// Of its content.
    content: Option<u64>,
}

impl Asked {
    fn of(version: Interop, headers: &HeaderMap) -> Result<Self, Code> {
        Ok(Self {
            complete: complete(version, headers),
            offset: put::number(headers, "upload-offset")?,
            length: if version.has_length() { put::number(headers, "upload-length")? } else { None },
            content: put::number(headers, header::CONTENT_LENGTH.as_str())?,
        })
    }

    /// What is said of lengths, from `offset` on, fits a chunk of this length.
    fn fits(&self, offset: u64, length: u64) -> bool {
        let end = self.content.map(|content| offset.saturating_add(content));
        let ends = match self.complete {
            Some(true) => end.is_none_or(|end| end == length),
            _ => end.is_none_or(|end| end <= length),
        };
        ends && self.length.is_none_or(|said| said == length)
    }

    /// The length of the whole chunk, where the request alone says it.
    fn whole(&self) -> Option<u64> {
        self.length.or(self.content.filter(|_| self.complete == Some(true)))
    }
}

/// `Upload-Complete`, or what version 3 has for it. Other values are as none.
fn complete(version: Interop, headers: &HeaderMap) -> Option<bool> {
    let (name, yes) = match version {
        Interop::V3 => ("upload-incomplete", false),
        _ => ("upload-complete", true),
    };
    let value = headers.get(name)?.to_str().ok()?;
    match value.split(';').next().unwrap_or_default().trim() {
        "?1" => Some(yes),
        "?0" => Some(!yes),
        _ => None,
    }
}

/// Whether a `PUT` invites to an upload that can be gone on with; else it is as any other.
pub(super) fn creates(version: Interop, headers: &HeaderMap) -> bool {
    complete(version, headers).is_some()
}

/// `POST /chunks`, or `PUT /chunks/{ref}`.
pub(super) async fn create(
    ctx: &Ctx,
    version: Interop,
    name: Option<&str>,
    parts: &Parts,
    body: &mut RequestBody,
) -> Reply {
    let wait = Wait::of(&parts.headers);
    let created = created(ctx, version, name, parts, body, wait.seconds).await;
    answered(&wait, Shape::Ietf(version, None), created)
}

async fn created(
    ctx: &Ctx,
    version: Interop,
    name: Option<&str>,
    parts: &Parts,
    body: &mut RequestBody,
    wait_s: u64,
) -> Result<Reply, Refusal> {
    let headers = &parts.headers;
    opens(ctx, headers)?;
    let asked = Asked::of(version, headers)?;
    if asked.offset.is_some() {
        return Err(Code::BadRequest.into());
    }
    let offer = offer(headers, &asked)?;
    let (chunk, length) = (offer.chunk_ref(), offer.length);
    if name.is_some_and(|name| ChunkRef::parse(name) != Ok(chunk)) {
        return Err(Code::RefMismatch.into());
    }
    if !asked.fits(0, length) {
        return Err(Code::LengthMismatch.into());
    }
    let capability = bearer::capability(ctx, headers).await?;
    let standing = match ctx.shared.admission.offer(offer, &capability, ctx.client).await? {
        // The content is not read before the answer: flow control spares the sender's link.
        Admitted::Have(standing) => standing,
        Admitted::Receive(receiving) => {
            let begins = put::receiving_at(chunk, receiving.offset(), length);
            Interim::send(parts, respond::interim(version, &said_of(ctx, &begins)));
            let part = Body { skip: receiving.offset(), partly: asked.complete != Some(true) };
            put::take(ctx, receiving, chunk, part, body).await?
        }
    };
    settled(ctx, version, &asked, standing, wait_s, true).await
}

/// The offer of the headers; its length may be said in three places, which must agree.
fn offer(headers: &HeaderMap, asked: &Asked) -> Result<Offer, Code> {
    let text = put::joined(headers, "waystation-chunk").ok_or(Code::InvalidChunkHeader)?;
    let digest = put::joined(headers, "repr-digest").ok_or(Code::InvalidDigest)?;
    dictionary::parse_offer(&text, dictionary::parse_digest(&digest)?, asked.whole())
}

/// `PATCH /chunks/{ref}`
pub(super) async fn append(ctx: &Ctx, version: Interop, name: &str, parts: &Parts, body: &mut RequestBody) -> Reply {
    let wait = Wait::of(&parts.headers);
    let provided = put::number(&parts.headers, "upload-offset").ok().flatten();
    let appended = appended(ctx, version, name, parts, body, wait.seconds).await;
    answered(&wait, Shape::Ietf(version, provided), appended)
}

async fn appended(
    ctx: &Ctx,
    version: Interop,
    name: &str,
    parts: &Parts,
    body: &mut RequestBody,
    wait_s: u64,
) -> Result<Reply, Refusal> {
    opens(ctx, &parts.headers)?;
    if version.has_media_type() {
        media_type(&parts.headers, "application/partial-upload")?;
    }
    let asked = Asked::of(version, &parts.headers)?;
    let offset = asked.offset.ok_or(Code::BadRequest)?;
    let chunk = ChunkRef::parse(name).map_err(|_| Code::NotFound)?;
    let capability = bearer::capability(ctx, &parts.headers).await?;
    let standing = match ctx.shared.admission.resume(chunk, &capability, ctx.client).await? {
        Admitted::Have(standing) => {
            nothing_more(ctx, &asked, &standing, body).await?;
            standing
        }
        Admitted::Receive(receiving) => take(ctx, receiving, chunk, &asked, offset, body).await?,
    };
    settled(ctx, version, &asked, standing, wait_s, false).await
}

async fn take(
    ctx: &Ctx,
    receiving: Receiving,
    chunk: ChunkRef,
    asked: &Asked,
    offset: u64,
    body: &mut RequestBody,
) -> Result<Standing, Refusal> {
    let skip = put::at(chunk, &receiving, offset)?;
    if !asked.fits(offset, receiving.length()) {
        return Err(put::stands_at(Code::LengthMismatch, chunk, offset, receiving.length()));
    }
    put::take(ctx, receiving, chunk, Body { skip, partly: asked.complete != Some(true) }, body).await
}

/// Every byte is here: an append is empty then, and may ask for the verdict.
async fn nothing_more(ctx: &Ctx, asked: &Asked, standing: &Standing, body: &mut RequestBody) -> Result<(), Refusal> {
    let refused = |code: Code| {
        let mut refusal = Refusal::from(code);
        refusal.standing = Some(standing.clone());
        refusal
    };
    if asked.offset != Some(standing.length) {
        return Err(refused(Code::OffsetMismatch));
    }
    let empty = match asked.content {
        Some(content) => content == 0,
        None => !matches!(ctx.unless_idle(body.next()).await, Some(Some(Ok(_)))),
    };
    let confirmed = standing.state == ChunkState::Confirmed;
    if confirmed && (!empty || asked.complete == Some(false)) {
        return Err(refused(Code::UploadCompleted));
    }
    if !empty || asked.length.is_some_and(|length| length != standing.length) {
        return Err(refused(Code::LengthMismatch));
    }
    Ok(())
}

/// The answer to what came: the core's verdict if that was its end, else how far the upload is.
async fn settled(
    ctx: &Ctx,
    version: Interop,
    asked: &Asked,
    standing: Standing,
    wait_s: u64,
    created: bool,
) -> Result<Reply, Refusal> {
    let shape = Shape::Ietf(version, asked.offset);
    let whole = standing.state != ChunkState::Receiving;
    let before = standing.state == ChunkState::Confirmed;
    let ended = standing.state.ended() || standing.state == ChunkState::Unsettled;
    let standing = if whole && (asked.complete != Some(false) || ended) {
        put::verdict(ctx, standing, wait_s).await?
    } else {
        standing
    };
    let status = match (standing.state, version) {
        (ChunkState::Confirmed, _) if before => StatusCode::OK,
        (ChunkState::Confirmed, _) => StatusCode::CREATED,
        (_, Interop::V8) if !created => StatusCode::NO_CONTENT,
        _ => StatusCode::CREATED,
    };
    Ok(respond::said(shape, status, &Said { created, ..said_of(ctx, &standing) }))
}

/// `HEAD /chunks/{ref}`
pub(super) async fn head(ctx: &Ctx, version: Interop, name: &str, parts: &Parts) -> Reply {
    match question(version, &parts.headers) {
        Ok(()) => stands(ctx, Shape::Ietf(version, None), name, parts).await,
        Err(code) => respond::refusal(Shape::Ietf(version, None), &code.into()),
    }
}

/// `DELETE /chunks/{ref}`: ends what is `receiving`; from `staged` on nothing does.
pub(super) async fn delete(ctx: &Ctx, version: Interop, name: &str, parts: &Parts) -> Reply {
    let deleted = async {
        question(version, &parts.headers)?;
        native::deleted(ctx, name, parts).await
    };
    match deleted.await {
        Ok(()) => respond::deleted(version),
        Err(refusal) => respond::refusal(Shape::Ietf(version, None), &refusal),
    }
}

/// Earlier versions demand that what has no content does not speak of any.
fn question(version: Interop, headers: &HeaderMap) -> Result<(), Code> {
    let says = version.not_in_questions().iter().any(|name| headers.contains_key(*name));
    if says { Err(Code::BadRequest) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use proptest::prelude::*;

    const CHUNK: &str = r#"incident="i", stream="s", index=1, media="audio", started="2026-06-10T12:00:00Z", ended="2026-06-10T12:00:02Z""#;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    #[test]
    fn completeness_has_two_names_and_other_values_are_as_none() {
        let of = |version, pairs: &[(&'static str, &str)]| complete(version, &headers(pairs));
        for version in [Interop::V5, Interop::V6, Interop::V8] {
            assert_eq!(of(version, &[("upload-complete", "?1")]), Some(true));
            assert_eq!(of(version, &[("upload-complete", " ?0;x=1")]), Some(false));
            assert_eq!(of(version, &[("upload-incomplete", "?0")]), None);
        }
        assert_eq!(of(Interop::V3, &[("upload-incomplete", "?0")]), Some(true));
        assert_eq!(of(Interop::V3, &[("upload-incomplete", "?1")]), Some(false));
        assert_eq!(of(Interop::V3, &[("upload-complete", "?1")]), None);
        for odd in ["1", "true", "?2", "", "\"?1\""] {
            assert_eq!(of(Interop::V8, &[("upload-complete", odd)]), None, "{odd}");
        }
    }

    #[test]
    fn lengths_must_agree_wherever_they_are_said() {
        let asked = |complete, content, length| Asked { complete, offset: None, length, content };
        let cases = [
            // (what is said, from, fits a chunk of 100)
            (asked(Some(true), Some(100), None), 0, true),
            (asked(Some(true), Some(60), None), 40, true),
            (asked(Some(true), Some(60), Some(100)), 40, true),
            (asked(Some(true), None, None), 40, true),
            (asked(Some(true), Some(59), None), 40, false),
            (asked(Some(true), Some(61), None), 40, false),
            (asked(Some(false), Some(60), None), 40, true),
            (asked(Some(false), Some(10), None), 40, true),
            (asked(Some(false), Some(61), None), 40, false),
            (asked(None, Some(61), None), 40, false),
            (asked(None, Some(0), Some(101)), 40, false),
            (asked(None, Some(u64::MAX), None), u64::MAX, false),
        ];
        for (asked, from, fits) in cases {
            assert_eq!(asked.fits(from, 100), fits, "{asked:?} from {from}");
        }
    }

    #[test]
    fn a_creation_finds_its_length_in_one_of_three_places() {
        let digest = dictionary::write_digest(&crate::proto::Digest([1; 32]));
        let of = |version, more: &[(&'static str, &str)]| {
            let mut all = vec![("waystation-chunk", CHUNK), ("repr-digest", &digest)];
            all.extend(more);
            let headers = headers(&all);
            Asked::of(version, &headers).and_then(|asked| offer(&headers, &asked)).map(|offer| offer.length)
        };
        let (whole, part) = (("upload-complete", "?1"), ("upload-complete", "?0"));
        assert_eq!(of(Interop::V8, &[whole, ("content-length", "100")]), Ok(100));
        assert_eq!(of(Interop::V8, &[part, ("content-length", "10"), ("upload-length", "100")]), Ok(100));
        assert_eq!(of(Interop::V8, &[part, ("content-length", "10")]), Err(Code::LengthRequired));
        assert_eq!(of(Interop::V5, &[part, ("upload-length", "100")]), Err(Code::LengthRequired), "not in its words");
        assert_eq!(of(Interop::V5, &[part, ("waystation-chunk", "length=100")]), Ok(100));
        let both = [part, ("upload-length", "100"), ("waystation-chunk", "length=99")];
        assert_eq!(of(Interop::V6, &both), Err(Code::LengthMismatch));
        assert_eq!(of(Interop::V6, &[whole, ("upload-length", "x")]), Err(Code::BadRequest));
        assert_eq!(of(Interop::V6, &[("upload-offset", "-1")]), Err(Code::BadRequest));
    }

    #[test]
    fn questions_say_nothing_of_content_in_the_versions_that_forbid_it() {
        let of = |version, name: &'static str| question(version, &headers(&[(name, "1")]));
        for name in ["upload-offset", "upload-complete", "upload-length"] {
            assert_eq!(of(Interop::V6, name), Err(Code::BadRequest));
            assert_eq!(of(Interop::V8, name), Ok(()));
        }
        assert_eq!(of(Interop::V3, "upload-incomplete"), Err(Code::BadRequest));
        assert_eq!(of(Interop::V5, "upload-complete"), Err(Code::BadRequest));
        assert_eq!(of(Interop::V5, "upload-length"), Ok(()));
    }

    proptest! {
        #[test]
        fn no_header_panics(values in prop::collection::vec(prop::collection::vec(0x20u8..=0xff, 0..40), 4)) {
            let names = ["upload-complete", "upload-incomplete", "upload-offset", "upload-length"];
            let mut headers = HeaderMap::new();
            for (name, value) in names.into_iter().zip(&values) {
                if let Ok(value) = HeaderValue::from_bytes(value) {
                    headers.insert(name, value);
                }
            }
            for version in Interop::ALL {
                let _ = Asked::of(version, &headers);
                let _ = question(version, &headers);
            }
        }
    }
}
