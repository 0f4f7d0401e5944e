//! A part that comes with a checksum: nothing of it is passed on before it is known to be right.

use std::collections::VecDeque;

use aws_lc_rs::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY, SHA256};
use http::HeaderMap;
use tokio::sync::OwnedSemaphorePermit;

use crate::ingress::body::RequestBody;
use crate::ingress::conn::Ctx;
use crate::proto::Code;
use crate::proto::tus::{self, Algorithm};

/// Bytes of parts with a checksum that are held at once, of all requests.
pub(in crate::ingress) const MAX_CHECKED_BYTES: usize = 64 * 1024 * 1024;

/// `Upload-Checksum`, if there is one.
pub(super) fn checksum(headers: &HeaderMap) -> Result<Option<(Algorithm, Vec<u8>)>, Code> {
    let Some(value) = headers.get("upload-checksum") else { return Ok(None) };
    tus::parse_checksum(value.to_str().map_err(|_| Code::UnsupportedChecksum)?).map(Some)
}

/// The body again, once it came whole and is what the checksum says; and its place in memory. `most` bytes are
/// taken at most.
pub(super) async fn body(
    ctx: &Ctx,
    body: &mut RequestBody,
    (algorithm, wanted): (Algorithm, Vec<u8>),
    most: u64,
) -> Result<(RequestBody, Option<OwnedSemaphorePermit>), Code> {
    let mut hash = Context::new(match algorithm {
        Algorithm::Sha1 => &SHA1_FOR_LEGACY_USE_ONLY,
        Algorithm::Sha256 => &SHA256,
    });
    let (mut pieces, mut place, mut came) = (VecDeque::new(), None::<OwnedSemaphorePermit>, 0);
    loop {
        let piece = match ctx.unless_idle(body.next()).await {
            None => return Err(Code::BodyStalled),
            Some(Some(Err(_))) => return Err(Code::BodyIncomplete),
            Some(None) => break,
            Some(Some(Ok(piece))) => piece,
        };
        came += piece.len() as u64;
        if came > most {
            return Err(Code::BodyTooLong);
        }
        let bytes = u32::try_from(piece.len()).map_err(|_| Code::ReceivingFull)?;
        let more = ctx.checked.clone().try_acquire_many_owned(bytes).map_err(|_| Code::ReceivingFull)?;
        match &mut place {
            Some(place) => place.merge(more),
            None => place = Some(more),
        }
        hash.update(&piece);
        pieces.push_back(Some(piece));
    }
    if hash.finish().as_ref() != wanted {
        return Err(Code::ChecksumMismatch);
    }
    Ok((RequestBody::pieces(pieces), place))
}
