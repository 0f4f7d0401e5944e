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

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::clock::Clock;
    use crate::ingress::tests::harness::context;
    use crate::telemetry::names::Transport;

    fn sha256(bytes: &[u8]) -> (Algorithm, Vec<u8>) {
        (Algorithm::Sha256, aws_lc_rs::digest::digest(&SHA256, bytes).as_ref().to_vec())
    }

    #[tokio::test]
    async fn a_part_comes_back_as_it_came_once_it_agrees() {
        let ctx = context(Clock::system(), Transport::H1);
        let piece = |text: &'static str| Some(Bytes::from_static(text.as_bytes()));
        let coming = || RequestBody::pieces([piece("ab"), None, piece("cde")]);
        let (mut whole, place) = body(&ctx, &mut coming(), sha256(b"abcde"), 5).await.ok().unwrap();
        let mut came = Vec::new();
        while let Some(Ok(piece)) = whole.next().await {
            came.extend_from_slice(&piece);
        }
        assert_eq!((came.as_slice(), place.unwrap().num_permits()), (&b"abcde"[..], 5));
        let code = async |wanted: &[u8], most| body(&ctx, &mut coming(), sha256(wanted), most).await.err();
        assert_eq!(code(b"abcdf", 5).await, Some(Code::ChecksumMismatch));
        assert_eq!(code(b"abcde", 4).await, Some(Code::BodyTooLong));
    }

    #[tokio::test]
    async fn parts_that_wait_for_their_checksum_have_so_much_room() {
        let ctx = context(Clock::system(), Transport::H1);
        let half = Bytes::from(vec![1; MAX_CHECKED_BYTES / 2]);
        let bring = async || {
            let mut coming = RequestBody::pieces([Some(half.clone())]);
            body(&ctx, &mut coming, sha256(&half), u64::MAX).await
        };
        let first = bring().await.ok().unwrap();
        let second = bring().await.ok().unwrap();
        let mut one_more = RequestBody::pieces([Some(Bytes::from_static(b"x"))]);
        let refused = body(&ctx, &mut one_more, sha256(b"x"), 1).await.err();
        assert_eq!(refused, Some(Code::ReceivingFull));
        drop((first, second));
        assert!(bring().await.is_ok(), "room is given back");
    }
}
