//! The classes of contract A.6 that a chunk comes back from: doubt, limits, a capability that the
//! core no longer takes.

use std::time::Duration;

use waystation_devcore::session::Session;
use waystation_devcore::{Effect, Fault, FaultRoute};
use waystation_proto::{ChunkState, Code, ContactState, Retry, Variant};
use waystation_tests::{Chunk, World, http};

use crate::contact::Contact;
use crate::rig::{
    again, audio, calls, endings, fanout_jwt, head_state, held, jwt, long_session, slow_world, tick_until,
    tick_until_code, tick_until_state, told, upload_capability,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_core_that_fails_gets_the_whole_chunk_again() {
    let world = slow_world(|_| ()).await;
    let session = long_session(&world).await;
    let contact = Contact::watch(world.plain(), fanout_jwt(&session)).await;
    let failures = [(500, "internal_error"), (501, "odd"), (503, "busy"), (507, "another_quota"), (599, "odd")];
    for (at, (status, code)) in failures.into_iter().enumerate() {
        let chunk = audio(&session, at as u64 + 1);
        world.core.faults().add(Fault::refuse(FaultRoute::Commit, status, code).times(1));
        let said = told(&http::upload(world.plain(), &chunk, jwt(&session), 0).await);
        assert_eq!((said.code.as_str(), said.retry, said.core_code), ("confirmation_pending", Retry::Later, None));
        tick_until_state(&world, &chunk, jwt(&session), ChunkState::Confirmed).await;
        let shown = contact.states_until(&chunk, ContactState::Confirmed).await;
        assert!(!shown.contains(&ContactState::Rejected), "{code}: {shown:?}");
    }
    assert_eq!(calls(&world, "commit", "server_error").await, 5.0);
    assert_eq!(endings(&world, "audio", "confirmed").await, 5.0);
    assert_eq!(world.core.stats().await.stored_chunks, 5);
}

/// Loses the answer of one commit; returns the world after it.
async fn lost_answer(effect: Effect, idempotent: bool) -> (World, Session, Chunk, Contact) {
    let world = slow_world(move |options| options.idempotent_commit = idempotent).await;
    let session = long_session(&world).await;
    let contact = Contact::watch(world.plain(), fanout_jwt(&session)).await;
    let chunk = audio(&session, 1);
    world.core.faults().add(Fault::new(FaultRoute::Commit, effect).times(1));
    http::upload(world.plain(), &chunk, jwt(&session), 0).await;
    let last = if idempotent { ContactState::Confirmed } else { ContactState::Unsettled };
    let ended = async || contact.told(&chunk).iter().any(|one| one.state == last);
    tick_until(&world, Duration::from_millis(100), "the second answer", ended).await;
    (world, session, chunk, contact)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_answer_and_a_duplicate_leave_the_chunk_unsettled() {
    for (effect, outcome) in [(Effect::CutAfterCommit, "lost"), (Effect::InvalidResponse, "unreadable")] {
        let (world, session, chunk, contact) = lost_answer(effect, false).await;
        let said = told(&again(&world, &chunk, jwt(&session)).await);
        assert_eq!((said.code.as_str(), said.status, said.retry), ("chunk_unsettled", 409, Retry::Reconcile));
        assert_eq!(said.state, Some(ChunkState::Unsettled));
        let error = contact.told(&chunk).last().unwrap().error.clone().unwrap();
        assert_eq!((error.code.as_str(), error.retry), ("chunk_unsettled", Retry::Reconcile));
        assert_eq!((calls(&world, "commit", outcome).await, calls(&world, "commit", "duplicate").await), (1.0, 1.0));
        for ending in ["confirmed", "rejected", "expired"] {
            assert_eq!(endings(&world, "audio", ending).await, 0.0, "{ending}");
        }
        let (chunks, bytes, _) = held(&world, "audio", "unsettled").await;
        assert_eq!((chunks, bytes), (1.0, chunk.bytes.len() as f64));
        // Nobody asks the core again: only those with a right to it can settle this.
        world.clock.advance(Duration::from_secs(900));
        assert_eq!(head_state(&world, &chunk, jwt(&session)).await, "unsettled");
        assert_eq!(world.core.stats().await.calls_of("commit"), 2);
        assert_eq!(held(&world, "audio", "unsettled").await.2 as u64 / 900, 1, "its age is counted");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_answer_is_made_good_by_a_core_with_idempotent_commits() {
    for effect in [Effect::CutAfterCommit, Effect::InvalidResponse] {
        let (world, session, chunk, contact) = lost_answer(effect, true).await;
        let receipt = contact.told(&chunk).last().unwrap().receipt.clone();
        let answer = again(&world, &chunk, jwt(&session)).await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.native().chunk.unwrap().receipt, receipt);
        assert!(receipt.is_some());
        assert_eq!((endings(&world, "audio", "confirmed").await, world.core.stats().await.stored_chunks), (1.0, 1));
        assert_eq!(world.core.stats().await.calls_of("commit"), 2, "the last resend needed no call");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_before_anything_was_stored_costs_nothing() {
    for effect in [Effect::Cut, Effect::Delay { ms: 600_000 }] {
        let world = slow_world(|_| ()).await;
        let session = long_session(&world).await;
        let chunk = audio(&session, 1);
        world.core.faults().add(Fault::new(FaultRoute::Commit, effect).times(1));
        http::upload(world.plain(), &chunk, jwt(&session), 0).await;
        let taken = async || world.core.faults().waiting().is_empty();
        tick_until(&world, Duration::ZERO, "the fault", taken).await;
        // A core that says nothing is given up after request_timeout.
        tick_until_state(&world, &chunk, jwt(&session), ChunkState::Confirmed).await;
        assert_eq!(calls(&world, "commit", "confirmed").await, 1.0);
        let unsure = calls(&world, "commit", "lost").await + calls(&world, "commit", "not_sent").await;
        assert_eq!(unsure, 1.0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_429_pauses_commits_for_everybody_and_hints_the_capture_clients() {
    let world = slow_world(|_| ()).await;
    let (one, other) = (long_session(&world).await, long_session(&world).await);
    let contact = Contact::watch(world.plain(), fanout_jwt(&other)).await;
    let limited = Effect::Refuse { status: 429, code: "rate_limited".into(), retry_after_s: Some(20) };
    world.core.faults().add(Fault::new(FaultRoute::Commit, limited).times(1));
    let (first, second) = (audio(&one, 1), audio(&other, 1));
    http::upload(world.plain(), &first, jwt(&one), 0).await;
    let said = tick_until_code(&world, &first, jwt(&one), Code::CoreLimited).await;
    assert_eq!((said.status, said.retry, said.state), (503, Retry::Later, Some(ChunkState::Staged)));
    assert_eq!(said.core_code, None, "the relay's calls are not the client's doing");
    let said = told(&http::upload(world.plain(), &second, jwt(&other), 0).await);
    assert_eq!((said.code.as_str(), said.retry), ("core_limited", Retry::Later));
    assert!(crate::capture::hint(&world, jwt(&one)).await["core_limited_s"].as_u64().is_some_and(|s| s <= 20));
    let stats = world.core.stats().await;
    assert_eq!((stats.calls_of("commit"), held(&world, "audio", "core_limited").await.0), (1, 2.0));
    // Preflights are another class, and go on.
    let token = crate::rig::proofline(&one, Variant::LivePreview);
    let preview = Chunk::sealed(&one, Variant::LivePreview, 1, 3000);
    assert_eq!(http::upload(world.plain(), &preview, token, 0).await.code(), "core_limited");
    assert_eq!(world.core.stats().await.count("preflight", "200"), 1);

    world.clock.advance(Duration::from_secs(15));
    assert_eq!(world.core.stats().await.calls_of("commit"), 1);
    tick_until_state(&world, &first, jwt(&one), ChunkState::Confirmed).await;
    // The next one goes at the pace that was learned.
    tick_until_state(&world, &second, jwt(&other), ChunkState::Confirmed).await;
    contact.until(&second, ContactState::Confirmed).await;
    assert_eq!(world.metric("waystation_core_limited_seconds_total{limiter=\"upload\"}").await, 20.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_capability_that_the_core_no_longer_takes_is_replaced_by_any_other() {
    let refusals = [
        (401, "relay_capability_expired"),
        (403, "relay_capability_revoked"),
        // As a core says of every token after its secret was changed.
        (401, "relay_capability_invalid"),
        (403, "relay_capability_wrong_role"),
        (403, "relay_capability_wrong_binding"),
        (403, "relay_capability_limit_exceeded"),
    ];
    // One that ends later, and one that ends earlier than the one it replaces.
    for ((status, code), ttl_s) in refusals.into_iter().zip([3600, 60].into_iter().cycle()) {
        let world = World::new().await;
        let session = world.session().await;
        let contact = Contact::watch(world.plain(), fanout_jwt(&session)).await;
        let chunk = audio(&session, 1);
        world.core.faults().add(Fault::refuse(FaultRoute::Commit, status, code).times(1));
        http::upload(world.plain(), &chunk, jwt(&session), 0).await;
        let waits = "waystation_staged_chunks{class=\"audio\",reason=\"awaiting_capability\"}";
        world.until_metric(waits, |chunks| chunks == 1.0).await;
        let said = told(&again(&world, &chunk, jwt(&session)).await);
        assert_eq!((said.code.as_str(), said.status, said.retry), ("awaiting_capability", 503, Retry::Renew), "{code}");
        assert_eq!(said.state, Some(ChunkState::AwaitingCapability));
        assert_eq!(world.core.stats().await.calls_of("commit"), 1, "the refused one is not tried again");
        let shown = contact.states_until(&chunk, ContactState::NearLiveUnconfirmed).await;
        assert!(!shown.contains(&ContactState::Rejected), "{shown:?}");

        let second = upload_capability(&world, &session, ttl_s).await;
        // The token releases the chunk as soon as it is read. A core that took its time only later would have confirmed
        // it before this request looked, which is a 200.
        world.core.faults().add(Fault::new(FaultRoute::Commit, Effect::Delay { ms: 1000 }).times(1));
        assert_eq!(http::upload(world.plain(), &chunk, &second, 60).await.status, 201);
        contact.until(&chunk, ContactState::Confirmed).await;
        assert_eq!(world.metric("waystation_released_chunks_total").await, 1.0);
    }
}
