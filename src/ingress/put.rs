//! `PUT /chunks/{ref}`: the offer, then the bytes, then the core's verdict.

use std::time::Duration;

use http::StatusCode;
use http::header::{self, HeaderMap};
use http::request::Parts;

use super::bearer;
use super::body::RequestBody;
use super::conn::Ctx;
use super::respond::{self, Reply};
use crate::admission::{Admitted, Receiving, Refusal, Standing};
use crate::proto::{ChunkRef, ChunkState, Code, Offer, dictionary};

/// Takes the chunk and waits up to `wait_s` seconds for what the core says.
pub(super) async fn receive(
    ctx: &Ctx,
    name: &str,
    parts: &Parts,
    body: &mut RequestBody,
    wait_s: u64,
) -> Result<Reply, Refusal> {
    // What can be refused without looking anything up goes first.
    bearer::bearer(&parts.headers)?;
    let (offer, resume_at) = offer(&parts.headers)?;
    let chunk = offer.chunk_ref();
    if ChunkRef::parse(name) != Ok(chunk) {
        return Err(Code::RefMismatch.into());
    }
    if ctx.drain.is_cancelled() {
        return Err(Code::Draining.into());
    }
    let capability = bearer::capability(ctx, &parts.headers).await?;
    let standing = match ctx.shared.admission.offer(offer, &capability, ctx.client).await? {
        Admitted::Have(standing) => {
            // The body is not read before the answer: flow control spares the sender's link.
            if standing.state == ChunkState::Confirmed {
                return Ok(respond::chunk(StatusCode::OK, &standing));
            }
            standing
        }
        Admitted::Receive(receiving) => {
            let skip = match resume_at {
                // The whole chunk comes: what is held of it already is passed over.
                None => receiving.offset(),
                Some(offset) => at(chunk, &receiving, offset)?,
            };
            take(ctx, receiving, chunk, Body { skip, partly: false }, body).await?
        }
    };
    verdict(ctx, standing, wait_s).await.map(|standing| respond::chunk(StatusCode::CREATED, &standing))
}

/// Nothing is passed over if the body begins where the chunk is held to.
///
/// # Errors
/// `OffsetMismatch` with the offset that is held.
pub(super) fn at(chunk: ChunkRef, receiving: &Receiving, offset: u64) -> Result<u64, Refusal> {
    if offset == receiving.offset() {
        return Ok(0);
    }
    Err(stands_at(Code::OffsetMismatch, chunk, receiving.offset(), receiving.length()))
}

/// A refusal of a chunk that is being received.
pub(super) fn stands_at(code: Code, chunk: ChunkRef, offset: u64, length: u64) -> Refusal {
    let mut refusal = Refusal::from(code);
    refusal.standing = Some(receiving_at(chunk, offset, length));
    refusal
}

/// Where a chunk stands that is being received.
pub(super) fn receiving_at(chunk: ChunkRef, offset: u64, length: u64) -> Standing {
    Standing { chunk, state: ChunkState::Receiving, offset, length, receipt: None, trouble: None }
}

/// The offer of the headers, and where its body begins if it is not the whole chunk.
fn offer(headers: &HeaderMap) -> Result<(Offer, Option<u64>), Code> {
    let text = joined(headers, "waystation-chunk").ok_or(Code::InvalidChunkHeader)?;
    let digest = joined(headers, "repr-digest").ok_or(Code::InvalidDigest)?;
    let digest = dictionary::parse_digest(&digest)?;
    let body_length = number(headers, header::CONTENT_LENGTH.as_str())?;
    let Some(resume_at) = number(headers, "upload-offset")? else {
        return Ok((dictionary::parse_offer(&text, digest, body_length)?, None));
    };
    let offer = dictionary::parse_offer(&text, digest, None)?;
    if body_length.is_some_and(|rest| resume_at.checked_add(rest) != Some(offer.length)) {
        return Err(Code::LengthMismatch);
    }
    Ok((offer, Some(resume_at)))
}

/// A dictionary may be spread over several header lines (RFC 9651 §4.2).
pub(super) fn joined(headers: &HeaderMap, name: &str) -> Option<String> {
    let mut out = String::new();
    for value in headers.get_all(name) {
        if !out.is_empty() {
            out.push_str(", ");
        }
        out.push_str(value.to_str().ok()?);
    }
    (!out.is_empty()).then_some(out)
}

pub(super) fn number(headers: &HeaderMap, name: &str) -> Result<Option<u64>, Code> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    let digits = value.as_bytes();
    let plain = values.next().is_none() && !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    let text = if plain { value.to_str().ok() } else { None };
    text.and_then(|text| text.parse().ok()).map(Some).ok_or(Code::BadRequest)
}

/// What a body is of its chunk.
#[derive(Debug, Clone, Copy)]
pub(super) struct Body {
    /// So many of its first bytes are held already and passed over.
    pub(super) skip: u64,
    /// It may end before the chunk does.
    pub(super) partly: bool,
}

/// Moves the body into staging.
pub(super) async fn take(
    ctx: &Ctx,
    mut receiving: Receiving,
    chunk: ChunkRef,
    Body { mut skip, partly }: Body,
    body: &mut RequestBody,
) -> Result<Standing, Refusal> {
    let (mut offset, length) = (receiving.offset(), receiving.length());
    let at = |code, offset| stands_at(code, chunk, offset, length);
    loop {
        if offset == length && skip == 0 {
            // Every byte is here. The body's formal end (FIN on h3) is not waited for: it may be
            // lost with the connection, or never sent. What is here already would be too much.
            match body.at_once().await {
                Some(_) => return Err(Code::BodyTooLong.into()),
                None => break,
            }
        }
        let Some(read) = ctx.unless_idle(body.next()).await else {
            receiving.stalled();
            return Err(at(Code::BodyStalled, offset));
        };
        let mut bytes = match read {
            None => break,
            Some(Ok(bytes)) => bytes,
            Some(Err(_)) => return Err(at(Code::BodyIncomplete, offset)),
        };
        let passed = skip.min(bytes.len() as u64);
        skip -= passed;
        // `passed` is at most the piece's length.
        let bytes = bytes.split_off(passed as usize);
        if !bytes.is_empty() {
            offset += bytes.len() as u64;
            receiving.push(bytes).await?;
        }
    }
    if offset < length && !partly {
        return Err(at(Code::BodyIncomplete, offset));
    }
    if offset < length {
        let offset = receiving.keep().await?;
        return Ok(receiving_at(chunk, offset, length));
    }
    receiving.finish().await
}

/// Waits until the core confirmed or refused the chunk. Nothing else is a success, whatever the
/// relay holds (contract C15).
pub(super) async fn verdict(ctx: &Ctx, first: Standing, wait_s: u64) -> Result<Standing, Refusal> {
    let Some(mut follow) = ctx.shared.admission.follow(first.chunk) else {
        return said(first, true);
    };
    let mut wait = std::pin::pin!(ctx.shared.clock.sleep(Duration::from_secs(wait_s)));
    let mut standing = follow.now();
    loop {
        if standing.state.ended() || standing.state == ChunkState::Unsettled {
            return said(standing, false);
        }
        tokio::select! {
            changed = follow.changed() => standing = changed,
            // What the wait was for may have come in the same moment, or the core gone away.
            () = &mut wait => return said(follow.now(), true),
            // The chunk is staged: another relay's client would not have to send it again, and
            // this one asks again after the restart.
            () = ctx.drain.cancelled() => return said(follow.now(), true),
        }
    }
}

/// The answer to a standing; `waited` is whether the waiting ended without a verdict.
fn said(standing: Standing, waited: bool) -> Result<Standing, Refusal> {
    match standing.state {
        ChunkState::Confirmed => Ok(standing),
        _ => Err(unconfirmed(standing, waited)),
    }
}

/// Why a chunk is not confirmed.
pub(super) fn unconfirmed(standing: Standing, waited: bool) -> Refusal {
    let plain = match standing.state {
        ChunkState::Rejected => Code::CoreRejected,
        ChunkState::Expired => Code::ChunkExpired,
        ChunkState::Unsettled => Code::ChunkUnsettled,
        ChunkState::AwaitingCapability => Code::AwaitingCapability,
        ChunkState::Receiving | ChunkState::Staged | ChunkState::Forwarding | ChunkState::Confirmed => {
            Code::ConfirmationPending
        }
    };
    let trouble = standing.trouble.clone();
    // `unsettled` and `expired` have one meaning each; the rest is told by what stands in the way.
    let named = waited || matches!(standing.state, ChunkState::Rejected | ChunkState::Expired);
    let (code, core_code) = trouble.filter(|_| named).unwrap_or((plain, None));
    let mut refusal = Refusal::from(code);
    refusal.core_code = core_code;
    refusal.standing = Some(standing);
    refusal
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

    fn digest() -> String {
        dictionary::write_digest(&crate::proto::Digest([1; 32]))
    }

    #[test]
    fn a_whole_body_and_the_rest_of_one() {
        let digest = digest();
        let base = [("waystation-chunk", CHUNK), ("repr-digest", &digest), ("content-length", "100")];
        let (whole, at) = offer(&headers(&base)).unwrap();
        assert_eq!((whole.length, at), (100, None));

        let spread = CHUNK.split_once(", ").unwrap();
        let mut lines = base.to_vec();
        lines[0].1 = spread.0;
        lines.push(("waystation-chunk", spread.1));
        assert_eq!(offer(&headers(&lines)).unwrap().0, whole);

        let mut rest = base.to_vec();
        rest.push(("upload-offset", "20"));
        assert_eq!(offer(&headers(&rest)).unwrap_err(), Code::LengthRequired);
        rest.push(("waystation-chunk", "length=120"));
        let (resumed, at) = offer(&headers(&rest)).unwrap();
        assert_eq!((resumed.length, at), (120, Some(20)));
        rest.push(("waystation-chunk", "length=121"));
        assert_eq!(offer(&headers(&rest)).unwrap_err(), Code::LengthMismatch);
    }

    #[test]
    fn headers_that_are_missing_or_doubled_have_their_codes() {
        let digest = digest();
        let of = |pairs: &[(&'static str, &str)]| offer(&headers(pairs)).unwrap_err();
        assert_eq!(of(&[]), Code::InvalidChunkHeader);
        assert_eq!(of(&[("waystation-chunk", CHUNK)]), Code::InvalidDigest);
        assert_eq!(of(&[("waystation-chunk", CHUNK), ("repr-digest", &digest)]), Code::LengthRequired);
        let with = |name: &'static str, value: &str| {
            offer(&headers(&[
                ("waystation-chunk", CHUNK),
                ("repr-digest", &digest),
                ("content-length", "5"),
                (name, value),
            ]))
        };
        assert_eq!(with("upload-offset", "-1").unwrap_err(), Code::BadRequest);
        assert_eq!(with("upload-offset", "99999999999999999999").unwrap_err(), Code::BadRequest);
        assert_eq!(with("upload-offset", "18446744073709551615").unwrap_err(), Code::LengthRequired);
        assert_eq!(with("content-length", "6").unwrap_err(), Code::BadRequest);
    }

    fn standing(state: ChunkState, trouble: Option<Code>) -> Standing {
        Standing {
            chunk: ChunkRef([0; 16]),
            state,
            offset: 1,
            length: 1,
            receipt: None,
            trouble: trouble.map(|code| (code, None)),
        }
    }

    #[test]
    fn only_confirmed_is_a_success() {
        for state in ChunkState::ALL {
            let said = said(standing(*state, None), true);
            assert_eq!(said.is_ok(), *state == ChunkState::Confirmed, "{state}");
        }
        let code = |state, trouble| said(standing(state, trouble), true).err().unwrap().code;
        assert_eq!(code(ChunkState::Staged, None), Code::ConfirmationPending);
        assert_eq!(code(ChunkState::Staged, Some(Code::CoreUnavailable)), Code::CoreUnavailable);
        assert_eq!(code(ChunkState::AwaitingCapability, None), Code::AwaitingCapability);
        assert_eq!(code(ChunkState::Rejected, None), Code::CoreRejected);
        assert_eq!(code(ChunkState::Unsettled, None), Code::ChunkUnsettled);
    }

    proptest! {
        #[test]
        fn no_header_panics(values in prop::collection::vec(prop::collection::vec(0x20u8..=0xff, 0..60), 4)) {
            let names = ["waystation-chunk", "repr-digest", "content-length", "upload-offset"];
            let mut headers = HeaderMap::new();
            for (name, value) in names.into_iter().zip(&values) {
                if let Ok(value) = HeaderValue::from_bytes(value) {
                    headers.insert(name, value);
                }
            }
            let _ = offer(&headers);
        }
    }
}
