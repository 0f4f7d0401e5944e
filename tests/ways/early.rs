//! Bytes that come before the relay asks for them.

use bytes::BytesMut;
use waystation_proto::frame::{self, Piece, kind};
use waystation_proto::message::{OfferBody, Send};
use waystation_proto::{ChunkState, Variant};
use waystation_tests::peer::{Capture, Carrier, until_offset};
use waystation_tests::{Chunk, World};

/// The offer of a chunk and its first bytes, in one message.
fn begun(handle: u64, chunk: &Chunk, bytes: usize) -> bytes::Bytes {
    let mut message = BytesMut::from(&frame::encode_json(kind::OFFER, &OfferBody::new(handle, &chunk.offer))[..]);
    message.extend_from_slice(&Piece::encode(kind::CAPTURE_PIECE, handle, 0, &chunk.bytes[..bytes]));
    message.freeze()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_bytes_come_with_the_offer_on_every_carrier() {
    let world = World::new().await;
    let session = world.session().await;
    let capability = session.upload_capability.clone().unwrap();
    for (index, carrier) in (1..).step_by(2).zip(Carrier::ALL) {
        let chunk = Chunk::sealed(&session, Variant::AudioPriority, index, 20_000);
        let mut capture = Capture::open(&world, carrier, &[&capability]).await;
        capture.send(begun(1, &chunk, chunk.bytes.len())).await;
        assert_eq!(capture.told(1).await.state, Some(ChunkState::Confirmed), "{carrier:?}");

        // Part of it is held from before, and the sender does not know.
        let chunk = Chunk::sealed(&session, Variant::AudioPriority, index + 1, 20_000);
        let mut before = Capture::open(&world, carrier, &[&capability]).await;
        before.send(begun(1, &chunk, 9_000)).await;
        let send = frame::control::<Send>(&before.frame().await.unwrap()).unwrap();
        assert_eq!((send.offset, send.credit), (0, chunk.offer.length), "{carrier:?}: credit counts from the offset");
        until_offset(&world, &chunk, &capability, 9_000).await;
        drop(before);
        capture.send(begun(2, &chunk, 12_000)).await;
        let send = frame::control::<Send>(&capture.frame().await.unwrap()).unwrap();
        assert_eq!(send.offset, 9_000, "{carrier:?}");
        capture.piece(2, 12_000, &chunk.bytes[12_000..]).await;
        assert_eq!(capture.told(2).await.state, Some(ChunkState::Confirmed), "{carrier:?}");
    }
}
