//! Limits as a client meets them.

use waystation_proto::Variant;
use waystation_tests::world::Setup;
use waystation_tests::{Chunk, World, http};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chunk_larger_than_the_relay_takes_is_refused_before_its_bytes() {
    let world = World::with(Setup { staging: "max_chunk = \"4KiB\"".into(), ..Setup::default() }).await;
    let session = world.session().await;
    let capability = session.upload_capability.clone().unwrap();
    let large = Chunk::sealed(&session, Variant::AudioPriority, 1, 5000);
    let answer = http::upload(world.plain(), &large, &capability, 10).await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (413, "chunk_too_large"));
    let small = Chunk::sealed(&session, Variant::AudioPriority, 2, 2000);
    assert_eq!(http::upload(world.plain(), &small, &capability, 10).await.status, 201, "a smaller one passes");
}
