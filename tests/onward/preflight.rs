//! Each refusal code of contract A.2 and A.4: a capability that can't be verified here is asked of
//! the core before a byte is taken.

use waystation_devcore::{Effect, Fault, FaultRoute};
use waystation_proto::{Retry, Variant};
use waystation_tests::{Chunk, World, http};

use crate::contact::Contact;
use crate::rig::{Told, calls, proofline, proofline_fanout, told};

/// Status and code of the core; status, code and retry word of the relay; how the call is counted.
type Row = (u16, &'static str, u16, &'static str, Retry, &'static str);

const PREFLIGHT: [Row; 33] = [
    (413, "request_too_large", 413, "core_rejected", Retry::Never, "refused"),
    (400, "invalid_json", 400, "core_rejected", Retry::Never, "refused"),
    (400, "invalid_relay_request", 400, "core_rejected", Retry::Never, "refused"),
    (400, "invalid_chunk_index", 400, "core_rejected", Retry::Never, "refused"),
    (400, "invalid_media_type", 400, "core_rejected", Retry::Never, "refused"),
    (400, "invalid_started_at", 400, "core_rejected", Retry::Never, "refused"),
    (400, "invalid_ended_at", 400, "core_rejected", Retry::Never, "refused"),
    (400, "invalid_time_range", 400, "core_rejected", Retry::Never, "refused"),
    (400, "invalid_byte_size", 400, "core_rejected", Retry::Never, "refused"),
    (400, "invalid_sha256_hex", 400, "core_rejected", Retry::Never, "refused"),
    (413, "upload_too_large", 413, "core_rejected", Retry::Never, "refused"),
    (401, "relay_capability_invalid", 401, "core_rejected", Retry::Never, "refused"),
    (403, "relay_capability_wrong_role", 403, "core_rejected", Retry::Never, "refused"),
    (403, "relay_capability_wrong_binding", 403, "core_rejected", Retry::Never, "refused"),
    (403, "relay_capability_limit_exceeded", 403, "core_rejected", Retry::Never, "refused"),
    (404, "incident_not_found", 404, "core_rejected", Retry::Never, "refused"),
    (409, "incident_deleting", 409, "core_rejected", Retry::Never, "refused"),
    (409, "incident_closed", 409, "core_rejected", Retry::Never, "refused"),
    (404, "stream_not_found", 404, "core_rejected", Retry::Never, "refused"),
    (409, "stream_not_open", 409, "core_rejected", Retry::Never, "refused"),
    (400, "stream_media_type_mismatch", 400, "core_rejected", Retry::Never, "refused"),
    (418, "odd", 502, "core_rejected", Retry::Never, "refused"),
    (401, "relay_capability_expired", 401, "capability_expired", Retry::Renew, "renew"),
    (403, "relay_capability_revoked", 401, "capability_expired", Retry::Renew, "renew"),
    (409, "duplicate_chunk", 409, "duplicate_chunk", Retry::Reconcile, "duplicate"),
    (507, "account_storage_quota_exceeded", 507, "account_quota", Retry::Later, "blocked"),
    (401, "relay_service_auth_required", 503, "core_refuses_relay", Retry::Later, "operator"),
    (503, "relay_service_auth_not_configured", 503, "core_refuses_relay", Retry::Later, "operator"),
    (503, "relay_capability_not_configured", 503, "core_refuses_relay", Retry::Later, "operator"),
    (404, "not_found", 503, "core_refuses_relay", Retry::Later, "operator"),
    (503, "rate_limit_unavailable", 503, "core_limited", Retry::Later, "wait"),
    (500, "internal_error", 503, "core_unavailable", Retry::Later, "server_error"),
    (429, "rate_limited", 503, "core_limited", Retry::Later, "limited"),
];

/// Whether the core's code is the client's business.
fn core_code<'c>(word: &str, code: &'c str) -> Option<&'c str> {
    matches!(word, "refused" | "renew" | "duplicate" | "blocked").then_some(code)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_preflight_takes_no_byte_and_is_told_by_its_class() {
    let world = World::new().await;
    let session = world.session().await;
    let chunk = Chunk::sealed(&session, Variant::AudioPriority, 1, 3000);
    let token = proofline(&session, Variant::AudioPriority);
    for (status, code, answer_status, answer_code, retry, word) in PREFLIGHT {
        let before = calls(&world, "preflight", word).await;
        let refusal = Effect::Refuse { status, code: code.into(), retry_after_s: (status == 429).then_some(33) };
        world.core.faults().add(Fault::new(FaultRoute::Preflight, refusal).times(1));
        let said: Told = told(&http::upload(world.plain(), &chunk, token, 0).await);
        assert_eq!((said.status, said.code.as_str(), said.retry), (answer_status, answer_code, retry), "{code}");
        assert_eq!((said.core_code.as_deref(), said.state), (core_code(word, code), None), "{code}");
        assert_eq!(said.retry_after.is_some(), retry == Retry::Later, "{code}");
        assert_eq!(calls(&world, "preflight", word).await, before + 1.0, "{code}");
    }
    // After the 429 the class pauses: nobody asks the core any more, and the uploader hears for how long.
    let said = told(&http::upload(world.plain(), &chunk, token, 0).await);
    assert_eq!(said.code, "core_limited");
    assert!((20..=33).contains(&said.retry_after.unwrap()), "{:?}", said.retry_after);
    let advice = crate::capture::hint(&world, token).await;
    assert!((15..=33).contains(&advice["core_limited_s"].as_u64().unwrap()), "{advice}");
    let stats = world.core.stats().await;
    assert_eq!((stats.calls_of("preflight"), stats.calls_of("commit")), (33, 0));
    assert_eq!(world.metric("waystation_staging_used_bytes").await, 0.0, "nothing is held");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_authorisation_is_told_to_the_contact() {
    let world = World::new().await;
    let session = world.session().await;
    let token = proofline_fanout(&session, Variant::AudioPriority);
    let rows = [
        (400, "invalid_relay_fanout_request", (400, "core_rejected")),
        (401, "relay_capability_invalid", (401, "core_rejected")),
        (403, "relay_capability_wrong_role", (403, "core_rejected")),
        (404, "incident_not_found", (404, "core_rejected")),
        (409, "incident_closed", (409, "core_rejected")),
        (409, "stream_not_open", (409, "core_rejected")),
        (401, "relay_capability_expired", (401, "capability_expired")),
        (401, "relay_service_auth_required", (503, "core_refuses_relay")),
        (503, "relay_capability_not_configured", (503, "core_refuses_relay")),
        (500, "internal_error", (503, "core_unavailable")),
        (429, "rate_limited", (503, "core_limited")),
    ];
    for (status, code, (answer_status, answer_code)) in rows {
        world.core.faults().add(Fault::refuse(FaultRoute::FanoutAuthorize, status, code).times(1));
        let refused = Contact::try_watch(world.plain(), token).await.err();
        assert_eq!(refused, Some((answer_status, answer_code.to_owned())), "{code}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_authorised_token_is_not_asked_about_for_each_contact() {
    let world = World::new().await;
    let session = world.session().await;
    let token = proofline_fanout(&session, Variant::AudioPriority);
    let mut contacts = Vec::new();
    for _ in 0..10 {
        contacts.push(Contact::watch(world.plain(), token).await);
    }
    assert_eq!(world.core.stats().await.calls_of("fanout_authorize"), 1);
}
