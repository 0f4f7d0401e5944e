//! Every decoder of bytes from outside, as a plain function over bytes: for cargo-fuzz, and for the test on
//! stable that calls each with bent examples (`tests/rules/fuzz.rs`). A target panics if a decoder does, or if what was
//! read and written again reads differently.

use bytes::Bytes;
use waystation_proto::claims::{JwtClaims, ProoflineClaims};
use waystation_proto::cursor::Cursor;
use waystation_proto::frame::{self, Decoder, Frame, Piece, kind};
use waystation_proto::outcome::{self, Answer, Asked};
use waystation_proto::{Digest, dictionary, message, tus};

/// Frames: as a stream cut anywhere and as one message; both must agree.
pub fn frame(data: &[u8]) {
    let Some((cut, data)) = data.split_first() else { return };
    let mut decoder = Decoder::default();
    let mut streamed = Vec::new();
    let mut failed = false;
    for piece in data.chunks(usize::from(*cut).max(1)) {
        decoder.push(piece);
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => streamed.push((frame.kind, frame.body)),
                Ok(None) => break,
                Err(_) => failed = true,
            }
            if failed {
                break;
            }
        }
    }
    if let Ok(frames) = frame::split_message(Bytes::copy_from_slice(data)) {
        assert!(!failed && !decoder.pending(), "a message that reads whole reads whole as a stream");
        assert_eq!(frames.into_iter().map(|frame| (frame.kind, frame.body)).collect::<Vec<_>>(), streamed);
    }
    for (number, body) in streamed {
        let again = frame::encode(number, &body);
        let read = frame::split_message(again).unwrap_or_default();
        assert!(read.len() == 1 && read[0].kind == number && read[0].body == body, "a frame is written as it was read");
        if number == kind::PIECE {
            let _ = Piece::decode(body);
        }
    }
}

/// `Waystation-Chunk`, `Repr-Digest` and `Waystation-Watch`.
pub fn dictionary(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(offer) = dictionary::parse_offer(text, Digest([7; 32]), None) {
        let again = dictionary::parse_offer(&dictionary::write_offer(&offer), Digest([7; 32]), None);
        assert!(again.as_ref() == Ok(&offer), "an offer is written as it was read");
        assert_eq!(again.map(|offer| offer.chunk_ref()), Ok(offer.chunk_ref()));
    }
    if let Ok(digest) = dictionary::parse_digest(text) {
        assert!(dictionary::parse_digest(&dictionary::write_digest(&digest)) == Ok(digest));
    }
    let _ = dictionary::parse_watch(text);
}

/// `Upload-Metadata` and `Upload-Checksum` of tus.
pub fn tus(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(offer) = tus::parse_metadata(text, 5) {
        let again = tus::parse_metadata(&tus::write_metadata(&offer), 5);
        assert!(again == Ok(offer), "an offer is written as it was read");
    }
    let _ = tus::parse_checksum(text);
}

/// Control bodies: every message, from a kind in the first byte.
pub fn message(data: &[u8]) {
    let Some((kind, body)) = data.split_first() else { return };
    let frame = Frame { kind: u64::from(*kind), body: Bytes::copy_from_slice(body) };
    let _ = frame::control::<message::Hello>(&frame);
    let _ = frame::control::<message::Watch>(&frame);
    let _ = frame::control::<message::Lanes>(&frame);
    let _ = frame::control::<message::Fetch>(&frame);
    let _ = frame::control::<message::Capability>(&frame);
    let _ = frame::control::<message::End>(&frame);
    let _ = frame::control::<message::ChunkBegins>(&frame);
    if let Ok(body) = frame::control::<message::OfferBody>(&frame) {
        let handle = body.handle;
        if let Ok(offer) = body.into_offer() {
            let written = serde_json::to_vec(&message::OfferBody::new(handle, &offer)).unwrap_or_default();
            let again = serde_json::from_slice::<message::OfferBody>(&written).map(message::OfferBody::into_offer);
            assert!(again.is_ok_and(|again| again == Ok(offer)), "an offer is written as it was read");
        }
    }
}

/// The JWT: its claims, the token as a whole, and key sets.
pub fn claims(data: &[u8]) {
    if let Ok(claims) = serde_json::from_slice::<JwtClaims>(data)
        && let Ok(grant) = claims.into_grant("waystation", 1_781_092_860)
    {
        assert!(!grant.expired(1_781_092_859.min(grant.exp - 1)), "what is read is not expired before its end");
    }
    if let Ok(text) = std::str::from_utf8(data) {
        waystation::capability::fuzz_token(text);
    }
    waystation::capability::fuzz_keys(data);
}

/// Proofline's token and its claims.
pub fn proofline(data: &[u8]) {
    if let Ok(claims) = serde_json::from_slice::<ProoflineClaims>(data) {
        let _ = claims.into_grant(1_781_092_860);
    }
    if let Ok(text) = std::str::from_utf8(data) {
        waystation::capability::fuzz_token(&format!("proofline-relay-capability-v1.{text}"));
    }
}

/// The drop-in form; cut anywhere it must read the same.
pub fn multipart(data: &[u8]) {
    let Some((cut, data)) = data.split_first() else { return };
    let whole = waystation::ingress::fuzz_multipart("b", data, data.len().max(1));
    assert_eq!(whole, waystation::ingress::fuzz_multipart("b", data, usize::from(*cut).max(1)));
    if let Ok(text) = std::str::from_utf8(data) {
        waystation::ingress::fuzz_content_type(text);
    }
}

/// A staged file's header and what is sealed in it.
pub fn sealed(data: &[u8]) {
    waystation::staging::fuzz_sealed(data);
}

/// A contact's cursor.
pub fn cursor(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Some(cursor) = Cursor::decode(text) {
        assert!(
            Cursor::decode(&cursor.encode()).is_some_and(|again| again == cursor),
            "a cursor is written as it was read"
        );
    }
}

/// The core's answer: only 200 and 201 confirm, whatever stands in the body.
pub fn answer(data: &[u8]) {
    let [high, low, body @ ..] = data else { return };
    let status = 100 + u16::from_be_bytes([*high, *low]) % 500;
    let header = "incident=\"i\", stream=\"s\", index=1, media=\"audio\", started=\"2026-06-10T12:00:00Z\", \
                  ended=\"2026-06-10T12:00:02Z\", length=5";
    let Ok(offer) = dictionary::parse_offer(header, Digest([7; 32]), None) else { return };
    let asked =
        [Asked::Preflight(&offer), Asked::FanoutAuthorize { incident: "i", stream: "s" }, Asked::Commit(&offer)];
    for asked in asked {
        let read = outcome::read(asked, Answer { status, retry_after: None, body: Some(body) });
        let confirmed = matches!(read, outcome::Outcome::Confirmed(_));
        assert!(!confirmed || matches!(status, 200 | 201), "{status} confirms nothing");
    }
}
