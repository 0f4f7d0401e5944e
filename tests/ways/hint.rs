//! What the relay tells a capture client so that it does better, as a frame and as a header.

use std::time::Duration;

use waystation_proto::{ChunkState, Variant};
use waystation_tests::http::put;
use waystation_tests::peer::{Capture, Carrier, Told, Way, bring, head};
use waystation_tests::wire::{Exchange, Http, Ws, ask};
use waystation_tests::{Chunk, Setup, World};

fn hint_of(answer: &waystation_tests::http::Answer) -> String {
    answer.headers.get("waystation-hint").map_or_else(String::new, |value| value.to_str().unwrap().into())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_hears_how_fast_its_bytes_come() {
    let world = World::new().await;
    let (session, other) = (world.session().await, world.session().await);
    let capability = session.upload_capability.clone().unwrap();
    let mut told = Vec::new();
    for carrier in [Carrier::Ws(Ws::H1), Carrier::Post(Http::H3)] {
        told.push(Capture::open(&world, carrier, &[&capability]).await);
    }
    let chunk = Chunk::sealed(&session, Variant::LivePreview, 1, 300_000);
    let request = put(&chunk, &capability, 20).header("content-length", chunk.offer.length).body(()).unwrap();
    let mut upload = Exchange::open(&world, Http::H2, request).await;
    for piece in chunk.bytes.chunks(10_000) {
        upload.send(piece.to_vec()).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    upload.end().await;
    let answer = upload.answer().await;
    let hint = hint_of(&answer);
    assert_eq!(Told::from(answer).state, Some(ChunkState::Confirmed));
    assert!(hint.contains("rate=") && hint.contains("pressure=("), "{hint}");
    // Not faster than it came; how much slower depends on the machine.
    let plausible = |rate: u64| (1..=130_000).contains(&rate);
    for mut capture in told {
        capture.until_hint(|hint| hint.rate.is_some_and(plausible)).await;
        assert_eq!(capture.hint.lanes, None);
    }
    let answer = ask(&world, Http::H3, head(&chunk, &capability), "").await;
    assert!(hint_of(&answer).contains("rate="), "{:?}", answer.headers);
    // It is nobody else's business.
    let foreign = ask(&world, Http::H3, head(&chunk, other.upload_capability.as_ref().unwrap()), "").await;
    assert!(hint_of(&foreign).contains("pressure=(") && !hint_of(&foreign).contains("rate="), "{:?}", foreign.headers);
    let contact = ask(&world, Http::H3, head(&chunk, session.fanout_capability.as_ref().unwrap()), "").await;
    let stranger = ask(&world, Http::H3, head(&chunk, "a.b.c"), "").await;
    assert_eq!((hint_of(&contact), hint_of(&stranger)), (String::new(), String::new()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_room_is_short_masters_are_to_wait_and_then_come_back() {
    let staging = "quota = \"4MiB\"\nmax_chunk = \"1MiB\"\n".into();
    let world = World::with(Setup { staging, ..Setup::default() }).await;
    let session = world.session().await;
    let capability = session.upload_capability.clone().unwrap();
    let mut capture = Capture::open(&world, Carrier::Post(Http::H2), &[&capability]).await;
    let sound = Chunk::sealed(&session, Variant::AudioPriority, 1, 3_000);
    assert_eq!(capture.bring(1, &sound).await.state, Some(ChunkState::Confirmed));
    let mut others = Vec::new();
    for _ in 0..8 {
        others.push(world.session().await);
    }
    world.core.faults().set_away(true);
    // Others fill the room.
    for other in others {
        for index in 1..=3 {
            let chunk = Chunk::sealed(&other, Variant::EvidenceMaster, index, 250_000);
            let request = put(&chunk, other.upload_capability.as_ref().unwrap(), 0).body(()).unwrap();
            ask(&world, Http::H1, request, chunk.bytes.clone()).await;
        }
    }
    let waits = |hint: &waystation_proto::message::Hint| {
        hint.lanes
            .as_ref()
            .is_some_and(|kept| kept.contains(&Variant::AudioPriority) && !kept.contains(&Variant::EvidenceMaster))
    };
    capture.until_hint(waits).await;
    let answer = ask(&world, Http::H3, head(&sound, &capability), "").await;
    assert!(hint_of(&answer).contains("lanes=(\"audio_priority\""), "{:?}", answer.headers);
    let more = Chunk::sealed(&session, Variant::AudioPriority, 2, 3_000);
    let request = put(&more, &capability, 0).body(()).unwrap();
    let taken = Told::from(ask(&world, Http::H2, request, more.bytes.clone()).await);
    assert!(matches!(taken.state, Some(ChunkState::Staged | ChunkState::Forwarding)), "{taken:?}");
    world.core.faults().set_away(false);
    capture.until_hint(|hint| hint.lanes.is_none()).await;
    assert_eq!(bring(&world, Way::Http(Http::H3), &more, &capability).await.state, Some(ChunkState::Confirmed));
}
