//! Each refusal code of contract A.3: what the relay does, what the uploader and the contact are
//! told, and which ending is counted. One table for each class of A.6; what the core holds against
//! a capability (rows 13 and 14 of A.2) ends no chunk: see `retries`.

use std::time::Duration;

use waystation_devcore::{Effect, Fault, FaultRoute};
use waystation_proto::{ChunkState, Code, ContactState, Retry};
use waystation_tests::{World, http};

use crate::contact::Contact;
use crate::rig::{
    again, audio, calls, endings, fanout_jwt, head_state, held, jwt, long_session, slow_world, tick_until_code,
    tick_until_state, told,
};

/// Rows 3, 6, 8-13 and 15-18 that end a chunk.
const TERMINAL: [(u16, &str); 22] = [
    (400, "invalid_multipart"),
    (413, "upload_too_large"),
    (400, "invalid_field"),
    (400, "duplicate_file"),
    (400, "missing_file"),
    (400, "invalid_relay_request"),
    (400, "invalid_chunk_index"),
    (400, "invalid_media_type"),
    (400, "invalid_started_at"),
    (400, "invalid_ended_at"),
    (400, "invalid_time_range"),
    (400, "invalid_byte_size"),
    (400, "invalid_sha256_hex"),
    (404, "incident_not_found"),
    (409, "incident_deleting"),
    (409, "incident_closed"),
    (404, "stream_not_found"),
    (409, "stream_not_open"),
    (400, "stream_media_type_mismatch"),
    (400, "byte_size_mismatch"),
    (400, "hash_mismatch"),
    (400, "invalid_envelope"),
];

fn refuse(status: u16, code: &str, retry_after_s: Option<u64>) -> Fault {
    Fault::new(FaultRoute::Commit, Effect::Refuse { status, code: code.into(), retry_after_s })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_final_refusal_ends_the_chunk_and_is_told_with_the_cores_code() {
    let world = World::new().await;
    let session = world.session().await;
    let contact = Contact::watch(world.plain(), fanout_jwt(&session)).await;
    for (at, (status, code)) in TERMINAL.into_iter().enumerate() {
        let chunk = audio(&session, at as u64 + 1);
        world.core.faults().add(refuse(status, code, None).times(1));
        let said = told(&http::upload(world.plain(), &chunk, jwt(&session), 60).await);
        assert_eq!((said.code.as_str(), said.status, said.retry), ("core_rejected", 409, Retry::Never), "{code}");
        assert_eq!((said.core_code.as_deref(), said.state), (Some(code), Some(ChunkState::Rejected)));
        let shown = contact.until(&chunk, ContactState::Rejected).await;
        let error = shown.last().unwrap().error.clone().unwrap();
        assert_eq!((error.code.as_str(), error.core_code.as_deref()), ("core_rejected", Some(code)));
        assert_eq!(head_state(&world, &chunk, jwt(&session)).await, "rejected");
        assert_eq!(endings(&world, "audio", "rejected").await, at as f64 + 1.0);
    }
    let stats = world.core.stats().await;
    assert_eq!((stats.calls_of("commit"), stats.stored_chunks), (22, 0), "no refused chunk was sent again");
    assert_eq!(calls(&world, "commit", "refused").await, 22.0);
    assert_eq!(held(&world, "audio", "queued").await.0, 0.0, "nothing is kept of them");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_chunk_goes_again_only_as_a_higher_attempt() {
    let world = World::new().await;
    let session = world.session().await;
    let mut chunk = audio(&session, 1);
    world.core.faults().add(refuse(409, "stream_not_open", None).times(1));
    assert_eq!(http::upload(world.plain(), &chunk, jwt(&session), 60).await.code(), "core_rejected");
    assert_eq!(http::upload(world.plain(), &chunk, jwt(&session), 60).await.code(), "core_rejected");
    assert_eq!(world.core.stats().await.calls_of("commit"), 1);
    chunk.offer.attempt = 2;
    assert_eq!(http::upload(world.plain(), &chunk, jwt(&session), 60).await.status, 201);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wait_is_kept_for_as_long_as_the_core_says_and_then_tried_again() {
    let world = slow_world(|_| ()).await;
    let session = long_session(&world).await;
    let contact = Contact::watch(world.plain(), fanout_jwt(&session)).await;
    let waits = [
        (409, "upload_in_progress", Some(40)),
        (503, "upload_coordination_unavailable", Some(40)),
        (503, "rate_limit_unavailable", None),
        (507, "upload_staging_quota_exceeded", None),
    ];
    for (at, (status, code, after)) in waits.into_iter().enumerate() {
        let chunk = audio(&session, at as u64 + 1);
        world.core.faults().add(refuse(status, code, after).times(1));
        let said = told(&http::upload(world.plain(), &chunk, jwt(&session), 0).await);
        assert_eq!((said.code.as_str(), said.retry), ("confirmation_pending", Retry::Later), "{code}");
        assert_eq!(said.retry_after, Some(5));
        world.until_metric(&wait_counter(), |count| count == at as f64 + 1.0).await;
        let before = world.core.stats().await.calls_of("commit");
        if after.is_some() {
            world.clock.advance(Duration::from_secs(39));
            assert_eq!(again(&world, &chunk, jwt(&session)).await.code(), "confirmation_pending");
            assert_eq!(world.core.stats().await.calls_of("commit"), before, "not before Retry-After");
        }
        assert_eq!(held(&world, "audio", "queued").await.0, 1.0);
        let answer = tick_until_state(&world, &chunk, jwt(&session), ChunkState::Confirmed).await;
        assert_eq!(answer.status, 200);
        let shown = contact.states_until(&chunk, ContactState::Confirmed).await;
        assert!(!shown.contains(&ContactState::Rejected), "{shown:?}");
        assert_eq!(endings(&world, "audio", "confirmed").await, at as f64 + 1.0);
    }
}

fn wait_counter() -> String {
    "waystation_core_requests_total{route=\"commit\",outcome=\"wait\"}".into()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_operator_must_mend_is_not_held_against_the_uploader() {
    let codes = [
        (401, "relay_service_auth_required"),
        (503, "relay_service_auth_not_configured"),
        (503, "relay_capability_not_configured"),
        (404, "not_found"),
    ];
    let world = slow_world(|_| ()).await;
    let session = long_session(&world).await;
    let contact = Contact::watch(world.plain(), fanout_jwt(&session)).await;
    for (at, (status, code)) in codes.into_iter().enumerate() {
        let chunk = audio(&session, at as u64 + 1);
        world.core.faults().add(refuse(status, code, None));
        http::upload(world.plain(), &chunk, jwt(&session), 0).await;
        let said = tick_until_code(&world, &chunk, jwt(&session), Code::CoreRefusesRelay).await;
        assert_eq!((said.status, said.retry, said.core_code), (503, Retry::Later, None), "{code}");
        assert!(matches!(said.state, Some(ChunkState::Staged | ChunkState::Forwarding)));
        let (chunks, bytes, _) = held(&world, "audio", "service_token").await;
        assert_eq!((chunks, bytes), (1.0, chunk.bytes.len() as f64));
        world.core.faults().clear();
        tick_until_state(&world, &chunk, jwt(&session), ChunkState::Confirmed).await;
        let shown = contact.states_until(&chunk, ContactState::Confirmed).await;
        assert!(!shown.contains(&ContactState::Rejected), "{shown:?}");
    }
    assert_eq!(endings(&world, "audio", "confirmed").await, 4.0);
    assert_eq!(held(&world, "audio", "service_token").await.0, 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_account_keeps_the_chunk_and_is_asked_again_in_ten_minutes() {
    let world = slow_world(|_| ()).await;
    let session = long_session(&world).await;
    let contact = Contact::watch(world.plain(), fanout_jwt(&session)).await;
    let (full, free) = (audio(&session, 1), audio(&session, 2));
    world.core.faults().add(refuse(507, "account_storage_quota_exceeded", None).times(1));
    http::upload(world.plain(), &full, jwt(&session), 0).await;
    let said = tick_until_code(&world, &full, jwt(&session), Code::AccountQuota).await;
    assert_eq!((said.status, said.retry, said.state), (507, Retry::Later, Some(ChunkState::Staged)));
    let (chunks, bytes, _) = held(&world, "audio", "account_quota").await;
    assert_eq!((chunks, bytes), (1.0, full.bytes.len() as f64));

    // It blocks nobody else.
    http::upload(world.plain(), &free, jwt(&session), 0).await;
    contact.until(&free, ContactState::Confirmed).await;
    assert_eq!(contact.told(&full).last().unwrap().state, ContactState::NearLiveUnconfirmed);
    assert_eq!(world.core.stats().await.calls_of("commit"), 2);
    world.clock.advance(Duration::from_secs(600));
    contact.until(&full, ContactState::Confirmed).await;
    assert_eq!(held(&world, "audio", "account_quota").await, (0.0, 0.0, 0.0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_duplicate_that_is_not_this_relays_doing_is_a_refusal_to_reconcile() {
    let world = World::new().await;
    let session = world.session().await;
    let contact = Contact::watch(world.plain(), fanout_jwt(&session)).await;
    let chunk = audio(&session, 1);
    world.core.faults().add(refuse(409, "duplicate_chunk", None).times(1));
    let said = told(&http::upload(world.plain(), &chunk, jwt(&session), 60).await);
    assert_eq!((said.code.as_str(), said.status, said.retry), ("duplicate_chunk", 409, Retry::Reconcile));
    assert_eq!((said.core_code.as_deref(), said.state), (Some("duplicate_chunk"), Some(ChunkState::Rejected)));
    let error = contact.until(&chunk, ContactState::Rejected).await.last().unwrap().error.clone().unwrap();
    assert_eq!((error.code.as_str(), error.retry), ("duplicate_chunk", Retry::Reconcile));
    assert_eq!(endings(&world, "audio", "rejected").await, 1.0);
}
