//! The core away and back, for both capability forms and both kinds of core.

use std::time::Duration;

use waystation_devcore::Options;
use waystation_proto::{ChunkState, Code, ContactState, Retry, Variant};
use waystation_tests::{Chunk, Setup, World, http};

use crate::contact::Contact;
use crate::fake::Before;
use crate::rig::{
    again, endings, fanout_jwt, head_state, held, jwt, long_session, proofline, proofline_fanout, tick_until,
    tick_until_code, tick_until_state, told, virtual_clock,
};

async fn world(unchanged_core: bool, proofline_secret: bool) -> World {
    let setup = Setup {
        clock: virtual_clock(),
        proofline_secret,
        core: Box::new(move |options| {
            if unchanged_core {
                *options = Options::unchanged_core(options.data.clone());
                options.calls_per_minute = 0;
            }
        }),
        ..Setup::default()
    };
    World::with(setup).await
}

const LANES: [(Variant, &str); 4] = [
    (Variant::AudioPriority, "audio"),
    (Variant::LivePreview, "preview"),
    (Variant::LocationContext, "context"),
    (Variant::EvidenceMaster, "master"),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_verified_capability_bytes_are_taken_while_the_core_is_away() {
    let world = world(false, false).await;
    let session = long_session(&world).await;
    let contact = Contact::watch(world.plain(), fanout_jwt(&session)).await;
    // The core's keys are fetched while it is there.
    let first = Chunk::sealed(&session, Variant::AudioPriority, 1, 3000);
    assert_eq!(http::upload(world.plain(), &first, jwt(&session), 60).await.status, 201);

    world.core.faults().set_away(true);
    let mut chunks = Vec::new();
    for (variant, class) in LANES {
        for index in 2..=3 {
            let chunk = Chunk::sealed(&session, variant, index, 3000);
            http::upload(world.plain(), &chunk, jwt(&session), 0).await;
            let said = tick_until_code(&world, &chunk, jwt(&session), Code::CoreUnavailable).await;
            assert_eq!((said.status, said.retry, said.state), (503, Retry::Later, Some(ChunkState::Staged)), "{class}");
            chunks.push(chunk);
        }
        let bytes: usize = chunks.iter().rev().take(2).map(|chunk| chunk.bytes.len()).sum();
        let (count, held_bytes, _) = held(&world, class, "core_unreachable").await;
        assert_eq!((count, held_bytes), (2.0, bytes as f64), "{class}");
    }
    world.clock.advance(Duration::from_secs(300));
    let (_, _, oldest) = held(&world, "audio", "core_unreachable").await;
    assert!((300.0..400.0).contains(&oldest), "{oldest}");
    assert_eq!(world.metric("waystation_core_reachable").await, 0.0);
    let (status, ready) = http::get(world.at.ops, "/readyz").await;
    assert!(status == 200 && ready.contains("degraded"), "{ready}");
    contact.until(&chunks[0], ContactState::NearLiveUnconfirmed).await;

    world.core.faults().set_away(false);
    for chunk in &chunks {
        tick_until_state(&world, chunk, jwt(&session), ChunkState::Confirmed).await;
    }
    let states = contact.states_until(&chunks[0], ContactState::Confirmed).await;
    assert!(states.is_sorted(), "{states:?}");
    assert_eq!(world.metric("waystation_core_reachable").await, 1.0);
    let stats = world.core.stats().await;
    assert_eq!((stats.stored_chunks, endings(&world, "audio", "confirmed").await), (9, 3.0));
    assert_eq!(stats.calls_of("preflight"), 0, "a verified capability needs none");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_one_nothing_is_taken_and_the_reason_is_said() {
    for unchanged_core in [true, false] {
        let world = world(unchanged_core, false).await;
        let session = world.session().await;
        assert_eq!(session.upload_capability.is_none(), unchanged_core);
        let chunk = Chunk::sealed(&session, Variant::AudioPriority, 1, 3000);
        let token = proofline(&session, Variant::AudioPriority);
        world.core.faults().set_away(true);
        for _ in 0..3 {
            // The first finds it out, the others are told at once.
            let said = told(&http::upload(world.plain(), &chunk, token, 0).await);
            assert_eq!((said.code.as_str(), said.status, said.retry), ("core_unavailable", 503, Retry::Later));
            assert!(said.state.is_none() && said.retry_after.is_some());
        }
        let refused = Contact::try_watch(world.plain(), proofline_fanout(&session, Variant::AudioPriority)).await;
        assert_eq!(refused.err().unwrap(), (503, "core_unavailable".into()));
        assert_eq!(world.metric("waystation_staging_used_bytes").await, 0.0, "nothing is held");
        let (status, ready) = http::get(world.at.ops, "/readyz").await;
        assert_eq!(
            (status.as_u16(), ready.contains("degraded")),
            if unchanged_core { (503, false) } else { (200, true) }
        );

        world.core.faults().set_away(false);
        let back = async || again(&world, &chunk, token).await.native().chunk.is_some();
        tick_until(&world, Duration::from_millis(250), "the core", back).await;
        tick_until_state(&world, &chunk, token, ChunkState::Confirmed).await;
        assert_eq!(world.core.stats().await.count("preflight", "200"), 1, "one for the token, not for each chunk");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_the_secret_a_proofline_token_is_as_good() {
    let world = world(true, true).await;
    let session = world.session().await;
    let token = proofline(&session, Variant::AudioPriority);
    let contact = Contact::watch(world.plain(), proofline_fanout(&session, Variant::AudioPriority)).await;
    world.core.faults().set_away(true);
    let chunk = Chunk::sealed(&session, Variant::AudioPriority, 1, 3000);
    http::upload(world.plain(), &chunk, token, 0).await;
    let said = tick_until_code(&world, &chunk, token, Code::CoreUnavailable).await;
    assert_eq!(said.state, Some(ChunkState::Staged));
    world.core.faults().set_away(false);
    tick_until_state(&world, &chunk, token, ChunkState::Confirmed).await;
    contact.until(&chunk, ContactState::Confirmed).await;
    let stats = world.core.stats().await;
    assert_eq!((stats.calls_of("preflight"), stats.stored_chunks), (0, 1));
    // The unchanged core keeps no second copy, and this relay asks for none.
    assert_eq!(http::upload(world.plain(), &chunk, token, 0).await.status, 200);
    assert_eq!(world.core.stats().await.calls_of("commit"), stats.calls_of("commit"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn evidence_that_outlives_a_proofline_token_waits_for_a_new_one() {
    let world = world(true, true).await;
    let session = world.session().await;
    let token = proofline(&session, Variant::AudioPriority);
    let chunk = Chunk::sealed(&session, Variant::AudioPriority, 1, 3000);
    world.core.faults().set_away(true);
    http::upload(world.plain(), &chunk, token, 0).await;
    tick_until_code(&world, &chunk, token, Code::CoreUnavailable).await;
    world.clock.advance(Duration::from_secs(301));
    let waits = async || held(&world, "audio", "awaiting_capability").await.0 == 1.0;
    tick_until(&world, Duration::from_secs(1), "awaiting_capability", waits).await;
    let (_, bytes, oldest) = held(&world, "audio", "awaiting_capability").await;
    assert!(bytes == chunk.bytes.len() as f64 && oldest >= 300.0);
    assert_eq!(told(&again(&world, &chunk, token).await).code, "capability_expired");
    assert_eq!(head_state(&world, &chunk, token).await, "", "an expired token asks for nothing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_chunks_wait_in_memory_too_and_large_ones_on_the_disk_alone() {
    let world = world(false, false).await;
    let session = long_session(&world).await;
    let chunk = |index, length| Chunk::sealed(&session, Variant::EvidenceMaster, index, length);
    let (tried, small, large) = (chunk(1, 3000), chunk(2, 4000), chunk(3, 1300 * 1024));
    world.core.faults().set_away(true);
    http::upload(world.plain(), &tried, jwt(&session), 0).await;
    world.until_metric("waystation_core_reachable", |reachable| reachable == 0.0).await;
    for chunk in [&small, &large] {
        http::upload(world.plain(), chunk, jwt(&session), 0).await;
    }
    let memory = "waystation_staging_memory_bytes";
    assert_eq!(world.metric(memory).await, small.bytes.len() as f64);
    world.core.faults().set_away(false);
    for chunk in [&tried, &small, &large] {
        tick_until_state(&world, chunk, jwt(&session), ChunkState::Confirmed).await;
    }
    assert_eq!((world.metric(memory).await, world.core.stats().await.stored_chunks), (0.0, 3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_without_a_core_takes_nothing_and_says_so() {
    let world = World::new().await;
    let session = world.session().await;
    let chunk = Chunk::sealed(&session, Variant::AudioPriority, 1, 3000);
    let relay = Before::without_a_core(&world).await;
    let said = told(&http::upload(relay.plain, &chunk, jwt(&session), 0).await);
    assert_eq!((said.code.as_str(), said.status, said.retry), ("not_ready", 503, Retry::Later));
    assert!(said.state.is_none() && said.retry_after.is_some());
    assert_eq!(relay.metric("waystation_staging_used_bytes").await, 0.0, "nothing is held");
    let (status, ready) = http::get(relay.ops, "/readyz").await;
    assert_eq!(status.as_u16(), 503);
    assert!(ready.contains("\"not_ready\"") && ready.contains("\"unconfigured\""), "{ready}");
}
