//! The client is gone and the core is away: what was staged waits, and ends as the core says or
//! when `keep_for` is over. Time is virtual.

use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use serde_json::Value;
use waystation::clock::Clock;
use waystation_devcore::Clock as CoreClock;
use waystation_devcore::session::Session;
use waystation_devcore::{Effect, Fault, FaultRoute};
use waystation_proto::{ChunkState, Variant};
use waystation_tests::{Chunk, Setup, World, http as plain};

use super::process::{at_core, files, until};

const START_MS: i64 = 1_800_000_000_000;
const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// A world whose relay and core live in virtual time.
async fn virtual_world(setup: Setup) -> World {
    World::with(Setup {
        clock: Clock::at_unix_ms(START_MS),
        core: Box::new(|options| options.clock = CoreClock::manual(START_MS)),
        ..setup
    })
    .await
}

/// Time passes for both.
fn pass(world: &World, time: Duration) {
    world.core.clock().advance(time);
    world.clock.advance(time);
}

/// Seconds go by until the relay has found the core again; then a few more for what is delayed.
/// Each leaves a call under way enough real time, since its time-out is virtual too.
async fn pass_until(world: &World, mut is: impl AsyncFnMut() -> bool) {
    for _ in 0..300 {
        if is().await {
            return;
        }
        pass(world, Duration::from_secs(1));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("it never came to it: {}", world.metrics().await);
}

fn staged(answer: &plain::Answer) {
    let chunk = answer.native().chunk.unwrap_or_else(|| panic!("{:?}", answer.body));
    assert_ne!(chunk.state, ChunkState::Confirmed);
    assert!(chunk.state.held(), "{}", chunk.state);
}

fn waiting(class: &str, reason: &str) -> String {
    format!("waystation_staged_chunks{{class=\"{class}\",reason=\"{reason}\"}}")
}

fn ending(class: &str, ending: &str) -> String {
    format!("waystation_chunk_endings_total{{class=\"{class}\",ending=\"{ending}\"}}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_core_that_is_back_after_ten_minutes_confirms_everything_without_the_client() {
    let world = virtual_world(Setup::default()).await;
    let session = world.session().await;
    let capability = session.upload_capability.clone().unwrap();
    let first = Chunk::sealed(&session, Variant::AudioPriority, 1, 3000);
    assert_eq!(plain::upload(world.plain(), &first, &capability, 30).await.status, 201);

    world.core.faults().set_away(true);
    let mut chunks = Vec::new();
    for stream in &session.streams {
        for index in 2..5 {
            let chunk = Chunk::sealed(&session, stream.variant, index, 20_000);
            staged(&plain::upload(world.plain(), &chunk, &capability, 0).await);
            chunks.push(chunk);
        }
    }
    // The capability, good for five minutes, runs out meanwhile; `commit_exp` does not.
    pass(&world, MINUTE * 10);
    assert_eq!(world.core.stats().await.stored_chunks, 1);
    world.until_metric(&waiting("audio", "core_unreachable"), |chunks| chunks == 3.0).await;
    assert!(
        world.metric("waystation_oldest_unconfirmed_seconds{class=\"audio\",reason=\"core_unreachable\"}").await
            >= 600.0
    );

    world.core.faults().set_away(false);
    let wanted = chunks.len() as u64 + 1;
    pass_until(&world, async || world.core.stats().await.stored_chunks == wanted).await;
    for chunk in &chunks {
        assert!(at_core(&world.core, chunk).await.unwrap() == chunk.bytes);
    }
    for (class, chunks) in [("audio", 4.0), ("preview", 3.0), ("context", 3.0), ("master", 3.0)] {
        world.until_metric(&ending(class, "confirmed"), |confirmed| confirmed == chunks).await;
    }
    until(async || files(&world.dir.path().join("staging/staged")).is_empty()).await;
}

/// A Proofline token for the session's audio stream, from the account: another relay session.
async fn another_holder(world: &World, session: &Session) -> String {
    let path = format!("/v1/incidents/{}/streams/{}/relay-session", session.incident, audio(session).stream);
    let request = Request::post(path)
        .header("host", "core")
        .header("authorization", format!("Bearer {}", world.core.account_token()))
        .body(Full::new(Bytes::from_static(b"{}")))
        .unwrap();
    let answer = plain::send(world.core.addr(), request).await;
    let answer: Value = serde_json::from_slice(&answer.body).unwrap();
    answer["relay_session"]["capability"].as_str().unwrap().to_owned()
}

fn audio(session: &Session) -> &waystation_devcore::session::Stream {
    session.streams.iter().find(|stream| stream.variant == Variant::AudioPriority).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expired_proofline_token_holds_a_chunk_until_a_second_holder_brings_another() {
    let setup = Setup { capability: Some(String::new()), ..Setup::default() };
    let world = virtual_world(setup).await;
    let session = world.session().await;
    let token = audio(&session).proofline.as_ref().unwrap().upload.clone();
    // The core vouches for the token, and is gone before the commit.
    world.core.faults().add(Fault::new(FaultRoute::Commit, Effect::Cut));
    let chunk = Chunk::sealed(&session, Variant::AudioPriority, 1, 5000);
    staged(&plain::upload(world.plain(), &chunk, &token, 0).await);
    world.core.faults().set_away(true);
    pass(&world, MINUTE * 10);
    let held = waiting("audio", "awaiting_capability");
    pass_until(&world, async || world.metric(&held).await == 1.0).await;

    world.core.faults().clear();
    world.core.faults().set_away(false);
    pass(&world, MINUTE);
    assert_eq!(world.metric(&held).await, 1.0, "a core that is back is not enough");
    assert_eq!(world.core.stats().await.stored_chunks, 0);

    let second = another_holder(&world, &session).await;
    let next = Chunk::sealed(&session, Variant::AudioPriority, 2, 5000);
    let mut answer = plain::upload(world.plain(), &next, &second, 0).await;
    // Nobody called the core meanwhile: whoever comes first finds it back.
    pass_until(&world, async || {
        if answer.native().chunk.is_none() {
            answer = plain::upload(world.plain(), &next, &second, 0).await;
        }
        answer.native().chunk.is_some()
    })
    .await;
    pass_until(&world, async || world.core.stats().await.stored_chunks == 2).await;
    assert!(at_core(&world.core, &chunk).await.unwrap() == chunk.bytes);
    world.until_metric(&ending("audio", "confirmed"), |confirmed| confirmed == 2.0).await;
    assert_eq!(world.metric("waystation_released_chunks_total").await, 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_must_ask_the_core_finds_it_back() {
    let setup = Setup { capability: Some(String::new()), ..Setup::default() };
    let world = virtual_world(setup).await;
    let session = world.session().await;
    let token = audio(&session).proofline.as_ref().unwrap().upload.clone();
    let chunk = Chunk::sealed(&session, Variant::AudioPriority, 1, 5000);
    let ready = async || plain::get(world.at.ops, "/readyz").await;
    assert!(ready().await.1.contains("asked_of_core"));

    world.core.faults().set_away(true);
    let refused = plain::upload(world.plain(), &chunk, &token, 30).await;
    assert_eq!((refused.status.as_u16(), refused.code().as_str()), (503, "core_unavailable"));
    let (status, text) = ready().await;
    assert_eq!(status, 503);
    assert!(text.contains("\"not_ready\"") && text.contains("\"away\""), "{text}");
    let at_once = plain::upload(world.plain(), &chunk, &token, 30).await;
    assert_eq!(at_once.code(), "core_unavailable");
    assert!(at_once.headers.contains_key("retry-after"));

    // With the back-off over nothing is known, and one call goes.
    world.core.faults().set_away(false);
    pass(&world, MINUTE);
    let (status, text) = ready().await;
    assert_eq!(status, 200);
    assert!(text.contains("\"degraded\"") && text.contains("\"unknown\""), "{text}");
    assert_eq!(plain::upload(world.plain(), &chunk, &token, 30).await.status, 201);
    let (status, text) = ready().await;
    assert_eq!(status, 200);
    assert!(text.contains("\"ready\"") && text.contains("\"answers\""), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_confirms_is_let_go_after_keep_for_and_announced_long_before() {
    let world = virtual_world(Setup::default()).await;
    let session = world.session().await;
    let capability = session.upload_capability.clone().unwrap();
    assert_eq!(world.metric("waystation_next_expiry_seconds").await, -1.0);
    let first = Chunk::sealed(&session, Variant::AudioPriority, 1, 3000);
    assert_eq!(plain::upload(world.plain(), &first, &capability, 30).await.status, 201);
    world.core.faults().set_away(true);
    let chunk = Chunk::sealed(&session, Variant::EvidenceMaster, 1, 3000);
    staged(&plain::upload(world.plain(), &chunk, &capability, 0).await);
    assert_eq!(world.metric("waystation_next_expiry_seconds").await, 7.0 * 86_400.0);

    // Far beyond a partial's day, and beyond what the capability covers.
    pass(&world, DAY * 6);
    let held = waiting("master", "awaiting_capability");
    pass_until(&world, async || world.metric(&held).await == 1.0).await;
    let announced = world.metric("waystation_next_expiry_seconds").await;
    assert!((86_000.0..=86_400.0).contains(&announced), "{announced}");
    assert_eq!(world.metric(&ending("master", "expired")).await, 0.0);
    pass(&world, Duration::from_secs(announced as u64 - 120));
    assert_eq!(world.metric("waystation_next_expiry_seconds").await, 120.0);
    assert_eq!(world.metric(&held).await, 1.0);

    pass(&world, MINUTE * 3);
    world.until_metric(&ending("master", "expired"), |expired| expired == 1.0).await;
    assert_eq!(world.metric("waystation_next_expiry_seconds").await, -1.0);
    until(async || files(&world.dir.path().join("staging/staged")).is_empty()).await;
}

/// The commit is stored and its answer lost; then the relay asks again.
async fn cut_after_the_commit(idempotent: bool) -> (World, Session, Chunk, plain::Answer) {
    let setup = Setup { core: Box::new(move |options| options.idempotent_commit = idempotent), ..Setup::default() };
    let world = World::with(setup).await;
    let session = world.session().await;
    world.core.faults().add(Fault::new(FaultRoute::Commit, Effect::CutAfterCommit).times(1));
    let chunk = Chunk::sealed(&session, Variant::AudioPriority, 1, 5000);
    let answer = plain::upload(world.plain(), &chunk, session.upload_capability.as_ref().unwrap(), 60).await;
    assert!(at_core(&world.core, &chunk).await.unwrap() == chunk.bytes);
    (world, session, chunk, answer)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_was_lost_ends_unsettled_where_the_core_says_duplicate() {
    let (world, session, chunk, answer) = cut_after_the_commit(false).await;
    assert_eq!(answer.code(), "chunk_unsettled");
    let told = answer.native();
    assert_eq!(told.chunk.unwrap().state, ChunkState::Unsettled);
    assert_eq!(serde_json::to_value(told.error.unwrap().retry).unwrap(), "reconcile");
    assert_eq!(world.metric(&waiting("audio", "unsettled")).await, 1.0);
    assert_eq!(world.metric(&ending("audio", "confirmed")).await, 0.0);
    assert_eq!(world.metric(&ending("audio", "rejected")).await, 0.0);
    // Its bytes stay: nobody knows yet.
    assert_eq!(files(&world.dir.path().join("staging/staged")).len(), 1);
    let again = plain::upload(world.plain(), &chunk, session.upload_capability.as_ref().unwrap(), 5).await;
    assert_eq!(again.code(), "chunk_unsettled");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_was_lost_ends_confirmed_where_the_core_knows_equal_bytes() {
    let (world, _, _, answer) = cut_after_the_commit(true).await;
    assert_eq!(answer.status, 201);
    assert_eq!(answer.native().chunk.unwrap().state, ChunkState::Confirmed);
    assert_eq!(world.core.stats().await.stored_chunks, 1);
    assert_eq!(world.metric(&ending("audio", "confirmed")).await, 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_that_the_disk_did_not_keep_are_put_aside_and_asked_for_again() {
    let mut world = virtual_world(Setup::default()).await;
    let session = world.session_with(|request| request.ttl_s = Some(3600)).await;
    let capability = session.upload_capability.clone().unwrap();
    world.core.faults().set_away(true);
    let mut chunk = Chunk::sealed(&session, Variant::AudioPriority, 1, 5000);
    staged(&plain::upload(world.plain(), &chunk, &capability, 0).await);
    world.stop_relay().await;
    let (staging, name) = (world.dir.path().join("staging"), files(&world.dir.path().join("staging/staged")).remove(0));
    let mut rotten = std::fs::read(staging.join("staged").join(&name)).unwrap();
    *rotten.last_mut().unwrap() ^= 1;
    std::fs::write(staging.join("staged").join(&name), &rotten).unwrap();
    world.core.faults().set_away(false);
    world.restart_relay().await;
    pass_until(&world, async || world.metric(&ending("audio", "damaged")).await == 1.0).await;
    assert_eq!(world.metric(&ending("audio", "rejected")).await, 0.0, "the core refused nothing");
    assert!(std::fs::read(staging.join("damaged").join(&name)).unwrap() == rotten, "kept aside");
    assert!(world.metric("waystation_staging_used_bytes").await > 5000.0, "and counted");

    let told = plain::upload(world.plain(), &chunk, &capability, 30).await;
    assert_eq!((told.status.as_u16(), told.code().as_str()), (503, "staging_failed"));
    let said = told.native().chunk.unwrap();
    assert_eq!((said.state, said.offset), (ChunkState::Expired, 0));
    chunk.offer.attempt = 2;
    // A first call to a core that was away may go into a connection that is gone; the next one waits its time.
    let again = async { plain::upload(world.plain(), &chunk, &capability, 30).await.status };
    let time = async {
        loop {
            tokio::time::sleep(Duration::from_millis(100)).await;
            pass(&world, Duration::from_secs(1));
        }
    };
    let status = tokio::select! { status = again => status, () = time => unreachable!() };
    assert_eq!(status, 201);
    assert!(at_core(&world.core, &chunk).await.unwrap() == chunk.bytes);

    // A restart knows it still; then its time is over.
    world.restart_relay().await;
    assert!(world.metric("waystation_staging_used_bytes").await > 5000.0);
    pass(&world, DAY * 8);
    until(async || files(&staging.join("damaged")).is_empty()).await;
    world.until_metric("waystation_staging_used_bytes", |used| used == 0.0).await;
}
