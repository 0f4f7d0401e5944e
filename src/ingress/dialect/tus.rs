//! tus 1.0: the core protocol, creation, creation-with-upload, expiration and checksum.
//!
//! Its word for done is an offset that is the length. So the last byte of a chunk is said to be
//! missing until the core confirmed it, though every byte is kept: a client that sends that byte
//! again asks for the verdict.

use http::StatusCode;
use http::header::HeaderMap;
use http::request::Parts;

use super::{answered, checked, media_type, opens, over, said_of};
use crate::admission::{Admitted, Receiving, Refusal, Standing};
use crate::ingress::bearer;
use crate::ingress::body::RequestBody;
use crate::ingress::conn::Ctx;
use crate::ingress::native::Wait;
use crate::ingress::put::{self, Body};
use crate::ingress::respond::{self, Reply, Said, Shape};
use crate::proto::tus::Algorithm;
use crate::proto::{ChunkRef, ChunkState, Code, Offer, tus};

/// The media type of a part.
const PART: &str = "application/offset+octet-stream";

/// `POST /chunks`
pub(super) async fn create(ctx: &Ctx, parts: &Parts, body: &mut RequestBody) -> Reply {
    let wait = Wait::of(&parts.headers);
    answered(&wait, Shape::Tus, created(ctx, parts, body, wait.seconds).await)
}

async fn created(ctx: &Ctx, parts: &Parts, body: &mut RequestBody, wait_s: u64) -> Result<Reply, Refusal> {
    let headers = &parts.headers;
    opens(ctx, headers)?;
    let offer = offer(headers)?;
    let chunk = offer.chunk_ref();
    let with_upload = media_type(headers, PART).is_ok();
    let checksum = if with_upload { checked::checksum(headers)? } else { None };
    let capability = bearer::capability(ctx, headers).await?;
    let standing = match ctx.shared.admission.offer(offer, &capability, ctx.client).await? {
        Admitted::Have(standing) => over(standing)?,
        Admitted::Receive(receiving) if with_upload => {
            let (skip, most) = (receiving.offset(), receiving.length());
            take(ctx, receiving, chunk, skip, checksum.map(|checksum| (checksum, most)), body).await?
        }
        Admitted::Receive(receiving) => {
            let length = receiving.length();
            let offset = receiving.keep().await?;
            put::receiving_at(chunk, offset, length)
        }
    };
    let standing = if with_upload && standing.state != ChunkState::Receiving {
        verdict_or_pending(ctx, standing, wait_s).await?
    } else {
        standing
    };
    Ok(respond::said(Shape::Tus, StatusCode::CREATED, &Said { created: true, ..said_of(ctx, &standing) }))
}

/// A creation that brought everything succeeds as such: the last byte is what is left to send.
async fn verdict_or_pending(ctx: &Ctx, standing: Standing, wait_s: u64) -> Result<Standing, Refusal> {
    match put::verdict(ctx, standing, wait_s).await {
        Err(refusal) => match &refusal.standing {
            Some(standing) if !standing.state.ended() && standing.state != ChunkState::Unsettled => {
                Ok(standing.clone())
            }
            _ => Err(refusal),
        },
        confirmed => confirmed,
    }
}

/// The offer of the headers.
fn offer(headers: &HeaderMap) -> Result<Offer, Code> {
    let length = put::number(headers, "upload-length")?.ok_or(Code::LengthRequired)?;
    let metadata = headers.get("upload-metadata").and_then(|value| value.to_str().ok());
    tus::parse_metadata(metadata.ok_or(Code::InvalidUploadMetadata)?, length)
}

/// `PATCH /chunks/{ref}`
pub(super) async fn append(ctx: &Ctx, name: &str, parts: &Parts, body: &mut RequestBody) -> Reply {
    let wait = Wait::of(&parts.headers);
    answered(&wait, Shape::Tus, appended(ctx, name, parts, body, wait.seconds).await)
}

async fn appended(ctx: &Ctx, name: &str, parts: &Parts, body: &mut RequestBody, wait_s: u64) -> Result<Reply, Refusal> {
    let headers = &parts.headers;
    opens(ctx, headers)?;
    media_type(headers, PART)?;
    let offset = put::number(headers, "upload-offset")?.ok_or(Code::BadRequest)?;
    let checksum = checked::checksum(headers)?;
    let chunk = ChunkRef::parse(name).map_err(|_| Code::NotFound)?;
    let capability = bearer::capability(ctx, headers).await?;
    let (standing, asks) = match ctx.shared.admission.resume(chunk, &capability, ctx.client).await? {
        Admitted::Receive(receiving) => {
            let skip = put::at(chunk, &receiving, offset)?;
            let most = receiving.length() - offset;
            let standing = take(ctx, receiving, chunk, skip, checksum.map(|checksum| (checksum, most)), body).await?;
            let whole = standing.state != ChunkState::Receiving;
            (standing, whole)
        }
        Admitted::Have(standing) => {
            let standing = over(standing)?;
            let came = last_byte(ctx, &standing, offset, checksum, body).await?;
            let open = standing.state != ChunkState::Confirmed;
            (standing, came && open)
        }
    };
    let standing = if asks { put::verdict(ctx, standing, wait_s).await? } else { standing };
    Ok(respond::said(Shape::Tus, StatusCode::NO_CONTENT, &said_of(ctx, &standing)))
}

/// Every byte is here. Whether the last one came again: that asks for the verdict.
async fn last_byte(
    ctx: &Ctx,
    standing: &Standing,
    offset: u64,
    checksum: Option<(Algorithm, Vec<u8>)>,
    body: &mut RequestBody,
) -> Result<bool, Refusal> {
    let refused = |code: Code| {
        let mut refusal = Refusal::from(code);
        refusal.standing = Some(standing.clone());
        refusal
    };
    let most = match standing.length.checked_sub(offset) {
        Some(0) if standing.state == ChunkState::Confirmed => 0,
        Some(1) => 1,
        _ => return Err(refused(Code::OffsetMismatch)),
    };
    let mut checked_body;
    let mut body = body;
    if let Some(checksum) = checksum {
        // One byte at most: its place in memory is not worth holding.
        (checked_body, _) = checked::body(ctx, body, checksum, most).await.map_err(refused)?;
        body = &mut checked_body;
    }
    let mut came = 0;
    while came == 0 || came < most {
        match ctx.unless_idle(body.next()).await {
            None => return Err(refused(Code::BodyStalled)),
            Some(None) => break,
            Some(Some(Err(_))) => return Err(refused(Code::BodyIncomplete)),
            Some(Some(Ok(piece))) => came += piece.len() as u64,
        }
    }
    if came > most || body.at_once().await.is_some() {
        return Err(refused(Code::BodyTooLong));
    }
    Ok(came > 0)
}

async fn take(
    ctx: &Ctx,
    receiving: Receiving,
    chunk: ChunkRef,
    skip: u64,
    checksum: Option<((Algorithm, Vec<u8>), u64)>,
    body: &mut RequestBody,
) -> Result<Standing, Refusal> {
    let part = Body { skip, partly: true };
    let Some((checksum, most)) = checksum else { return put::take(ctx, receiving, chunk, part, body).await };
    let (offset, length) = (receiving.offset(), receiving.length());
    let checked = checked::body(ctx, body, checksum, most).await;
    let (mut body, _place) = checked.map_err(|code| put::stands_at(code, chunk, offset, length))?;
    put::take(ctx, receiving, chunk, part, &mut body).await
}
