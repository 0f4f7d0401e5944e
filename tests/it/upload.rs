//! Bringing chunks: the way of one chunk, and what is said when it can't go.

use ::http::Method;
use waystation_proto::{ChunkState, Variant};
use waystation_tests::{Chunk, World, http};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chunk_is_confirmed_with_a_receipt_and_a_repeat_is_answered_at_once() {
    let world = World::new().await;
    let session = world.session().await;
    let capability = session.upload_capability.clone().unwrap();
    let chunk = Chunk::sealed(&session, Variant::AudioPriority, 1, 5000);
    let answer = http::upload(world.plain(), &chunk, &capability, 10).await;
    assert_eq!(answer.status, 201, "{:?}", answer.body);
    let told = answer.native().chunk.unwrap();
    let length = chunk.bytes.len() as u64;
    assert_eq!((told.state, told.offset, told.length), (ChunkState::Confirmed, length, length));
    assert!(told.receipt.is_some());

    let again = http::upload(world.plain(), &chunk, &capability, 10).await;
    assert_eq!(again.status, 200);
    assert_eq!(world.core.stats().await.stored_chunks, 1);
    let head = http::ask(world.plain(), Method::HEAD, &chunk, &capability).await;
    assert_eq!(head.headers["upload-complete"], "?1");
    assert_eq!(head.headers["waystation-state"], "confirmed");
}
