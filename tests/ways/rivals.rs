//! Two at one chunk: the same bytes, other bytes, a later attempt.

use waystation_proto::{ChunkState, Variant};
use waystation_tests::peer::{Capture, Upload, Way, bring, until_offset};
use waystation_tests::wire::{Http, Ws};
use waystation_tests::{Chunk, World};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_bytes_conflict_from_staged_on_and_replace_before() {
    let world = World::new().await;
    let session = world.session().await;
    let capability = session.upload_capability.clone().unwrap();
    for (index, way) in (1..).zip(Way::ALL) {
        let of = || Chunk::sealed(&session, Variant::EvidenceMaster, index, 50_000);
        let (first, second, third) = (of(), of(), of());
        assert_ne!(first.offer.sha256, second.offer.sha256);
        let (mut upload, _) = Upload::begin(&world, way, &first, &capability).await;
        upload.send(first.bytes.slice(..20_000)).await;
        until_offset(&world, &first, &capability, 20000).await;
        // Not staged yet: the other digest replaces it.
        let told = bring(&world, way, &second, &capability).await;
        assert_eq!((told.state, told.code.as_str()), (Some(ChunkState::Confirmed), ""), "{way:?}");
        upload.send(first.bytes.slice(20_000..)).await;
        assert_eq!(upload.told().await.code, "attempt_superseded", "{way:?}");
        // Confirmed: it does not.
        let told = bring(&world, way, &third, &capability).await;
        assert_eq!(told.code, "chunk_conflict", "{way:?}");
        assert!(matches!(told.status, 0 | 409));
        let again = bring(&world, way, &second, &capability).await;
        assert!(matches!(again.status, 0 | 200) && again.state == Some(ChunkState::Confirmed));
    }
    world.core.faults().set_away(true);
    let of = || Chunk::sealed(&session, Variant::EvidenceMaster, 60, 50_000);
    let (held, other) = (of(), of());
    let mut capture = Capture::open(&world, Ws::H1, &[&capability]).await;
    capture.offer(1, &held).await;
    capture.go(1).await;
    capture.piece(1, 0, &held.bytes).await;
    assert!(matches!(capture.state(1).await.state, Some(ChunkState::Staged | ChunkState::Forwarding)));
    for way in Way::ALL {
        assert_eq!(bring(&world, way, &other, &capability).await.code, "chunk_conflict", "staged, {way:?}");
    }
    world.core.faults().set_away(false);
    assert_eq!(capture.ended(1).await.state, Some(ChunkState::Confirmed));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_later_attempt_takes_over_at_once_and_an_earlier_one_does_not() {
    let world = World::new().await;
    let session = world.session().await;
    let capability = session.upload_capability.clone().unwrap();
    for (turn, way) in Way::ALL.into_iter().enumerate() {
        let mut chunk = Chunk::sealed(&session, Variant::LivePreview, turn as u64 + 1, 90_000);
        chunk.offer.attempt = 2;
        let (mut first, _) = Upload::begin(&world, way, &chunk, &capability).await;
        first.send(chunk.bytes.slice(..30_000)).await;
        until_offset(&world, &chunk, &capability, 30000).await;
        let mut earlier = chunk.clone();
        earlier.offer.attempt = 1;
        assert_eq!(bring(&world, way, &earlier, &capability).await.code, "attempt_superseded", "{way:?}");
        // The first is alive and has stopped for a moment only.
        chunk.offer.attempt = 3;
        let later = Way::ALL[(turn + 2) % Way::ALL.len()];
        let (mut second, offset) = Upload::begin(&world, later, &chunk, &capability).await;
        assert_eq!(offset, 30_000, "{later:?} after {way:?}");
        second.send(chunk.bytes.slice(30_000..60_000)).await;
        until_offset(&world, &chunk, &capability, 60000).await;
        first.send(chunk.bytes.slice(30_000..31_000)).await;
        assert_eq!(first.left().await.code, "attempt_superseded", "{way:?}");
        second.send(chunk.bytes.slice(60_000..)).await;
        assert_eq!(second.told().await.state, Some(ChunkState::Confirmed), "{later:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_chunk_over_every_way_at_the_same_time_is_stored_once() {
    let world = std::sync::Arc::new(World::new().await);
    let session = world.session().await;
    let capability = session.upload_capability.clone().unwrap();
    let chunk = Chunk::sealed(&session, Variant::AudioPriority, 1, 200_000);
    let mut all = tokio::task::JoinSet::new();
    for way in Way::ALL {
        let (world, chunk, capability) = (world.clone(), chunk.clone(), capability.clone());
        all.spawn(async move { bring(&world, way, &chunk, &capability).await });
    }
    while let Some(told) = all.join_next().await {
        let told = told.unwrap();
        let fine = told.state == Some(ChunkState::Confirmed) || told.code == "attempt_superseded";
        assert!(fine, "{told:?}");
    }
    let again = bring(&world, Way::Http(Http::H3), &chunk, &capability).await;
    assert_eq!(again.status, 200);
    assert_eq!(world.core.stats().await.stored_chunks, 1);
}
