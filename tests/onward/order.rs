//! In which order chunks go out, as the core sees them come.

use std::time::Duration;

use waystation_devcore::session::Session;
use waystation_devcore::{Commit, Effect, Fault, FaultRoute};
use waystation_proto::{Media, Variant};
use waystation_tests::world::PATIENCE;
use waystation_tests::{Chunk, Setup, World, http};

use crate::rig::{jwt, tick_until, virtual_clock};

/// A world whose core takes `per_minute` commits, and a relay that keeps to it.
async fn paced(per_minute: u32) -> World {
    let setup = Setup {
        clock: virtual_clock(),
        max_requests_per_minute: per_minute,
        toml: "[limits]\nin_flight_per_session = 1024".into(),
        core: Box::new(|options| (options.max_chunks, options.receipts) = (10_000, false)),
        ..Setup::default()
    };
    World::with(setup).await
}

async fn session(world: &World) -> Session {
    world.session_with(|request| request.ttl_s = Some(3600)).await
}

fn chunk(session: &Session, variant: Variant, index: u64) -> Chunk {
    Chunk::sealed(session, variant, index, 200)
}

/// Stages chunks that stay: the call budget is spent and the clock stands.
async fn stage(world: &World, session: &Session, variant: Variant, indexes: std::ops::RangeInclusive<u64>) {
    for index in indexes {
        let answer = http::upload(world.plain(), &chunk(session, variant, index), jwt(session), 0).await;
        assert_eq!(answer.native().chunk.unwrap().offset, answer.native().chunk.unwrap().length);
    }
}

/// Moves the clock until the core has heard of `count` commits.
async fn commits(world: &World, count: usize) -> Vec<Commit> {
    let heard = async || world.core.stats().await.commits.len() >= count;
    tick_until(world, Duration::from_millis(100), "the commits", heard).await;
    world.core.stats().await.commits
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn audio_goes_next_past_500_waiting_masters_which_keep_their_share() {
    let world = paced(600).await;
    let (one, other) = (session(&world).await, session(&world).await);
    stage(&world, &one, Variant::EvidenceMaster, 1..=500).await;
    // What went at once were masters: the burst of the budget.
    let before = commits(&world, 60).await;
    assert!(before.iter().all(|commit| commit.media == Some(Media::Video)));
    settle(&world).await;
    let before = world.core.stats().await.commits.len();
    stage(&world, &other, Variant::AudioPriority, 1..=1).await;
    let after = commits(&world, before + 1).await;
    assert_eq!(after[before].media, Some(Media::Audio), "it goes next");

    settle(&world).await;
    let before = world.core.stats().await.commits.len();
    stage(&world, &other, Variant::AudioPriority, 2..=101).await;
    let after = commits(&world, before + 100).await;
    let masters = after[before..before + 100].iter().filter(|commit| commit.media == Some(Media::Video)).count();
    assert!((5..=8).contains(&masters), "{masters} of 100");
}

/// Until no commit is under way: of 500 masters those are gone that the core has heard of.
async fn settle(world: &World) {
    let settled = async {
        loop {
            let commits = world.core.stats().await.commits;
            let gone = commits.iter().filter(|commit| commit.media == Some(Media::Video)).count();
            if world.metric("waystation_staged_chunks{class=\"master\",reason=\"queued\"}").await == 500.0 - gone as f64
            {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, settled).await.is_ok(), "commits never end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_of_equal_classes_take_turns() {
    let world = paced(60).await;
    let sessions = [session(&world).await, session(&world).await, session(&world).await];
    // The first comes with everything before the others come at all. Firsts of lanes are out of
    // the way, and so is the burst.
    stage(&world, &sessions[0], Variant::LivePreview, 1..=40).await;
    stage(&world, &sessions[1], Variant::LivePreview, 2..=12).await;
    stage(&world, &sessions[2], Variant::LivePreview, 2..=12).await;
    let before = world.core.stats().await.commits.len();
    let heard = commits(&world, before + 30).await;
    let stream = |session: &Session| session.streams[1].stream.clone();
    for turn in heard[before..before + 30].chunks(3) {
        for session in &sessions {
            let of = turn.iter().filter(|commit| commit.stream == stream(session)).count();
            assert_eq!(of, 1, "each session has one of three turns");
        }
    }
    let own: Vec<u64> = heard.iter().filter(|c| c.stream == stream(&sessions[0])).map(|c| c.index).collect();
    assert!(own.is_sorted(), "within a session they go as they came: {own:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_core_full_of_masters_leaves_places_for_the_rest() {
    let world = World::new().await;
    let session = world.session().await;
    let delay = Fault::new(FaultRoute::Commit, Effect::Delay { ms: 60_000 });
    world.core.faults().add(delay.for_stream(&session.streams[2].stream));
    stage(&world, &session, Variant::EvidenceMaster, 1..=40).await;
    let answer = http::upload(world.plain(), &chunk(&session, Variant::AudioPriority, 1), jwt(&session), 60).await;
    assert_eq!(answer.status, 201, "{:?}", answer.body);
    assert!(world.core.stats().await.commits.iter().all(|commit| commit.media != Some(Media::Video)));
}
