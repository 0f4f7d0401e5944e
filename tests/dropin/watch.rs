//! B.4: the subscription.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::Request;
use http_body_util::Full;
use serde_json::{Value, json};

use crate::core::Forced;
use crate::form::{Form, INCIDENT, SESSION, STREAM, token, token_with};
use crate::world::{World, subscription};

fn about(form: &Form, index: u64) -> Value {
    json!({"incident_id": INCIDENT, "stream_id": STREAM, "chunk_index": index, "media_type": "audio",
        "byte_size": form.file.len(), "sha256_hex": form.field("sha256_hex")})
}

fn with(mut base: Value, more: Value) -> Value {
    let more = more.as_object().unwrap().clone();
    base.as_object_mut().unwrap().extend(more);
    base
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b4_a_chunk_is_shown_whole_before_its_verdict_and_labelled() {
    let world = World::new().await;
    let mut watch = world.watch().await;
    assert_eq!(watch.headers["content-type"], "text/event-stream");
    assert_eq!(watch.headers["cache-control"], "no-store");
    assert_eq!(watch.headers["x-content-type-options"], "nosniff");
    let ready = json!({"status": "subscribed", "state": "near_live_unconfirmed", "incident_id": INCIDENT,
        "stream_id": STREAM});
    assert_eq!(watch.next().await.unwrap(), ("relay_ready".into(), ready));

    world.core.shut_gate();
    let form = Form::chunk(1, 300_000);
    let (at, request) = (world.plain(), form.request());
    let upload = tokio::spawn(async move { waystation_tests::http::send(at, request).await });
    let (name, data) = watch.next().await.unwrap();
    assert_eq!(name, "relay_chunk");
    let payload = STANDARD.decode(data["payload_b64"].as_str().unwrap()).unwrap();
    assert!(payload == form.file, "exactly the bytes");
    let expected = json!({"type": "relay_chunk", "state": "near_live_unconfirmed", "payload_b64": data["payload_b64"]});
    assert_eq!(data, with(about(&form, 1), expected));
    assert_eq!(world.core.stored_chunks(), 0, "before the core answered");
    world.core.open_gate();
    assert_eq!(upload.await.unwrap().status, 201);
    let expected = json!({"type": "relay_chunk_state", "state": "confirmed"});
    assert_eq!(watch.next().await.unwrap(), ("relay_chunk_state".into(), with(about(&form, 1), expected)));

    // It stays open, and shows the next one.
    let second = Form::chunk(2, 5);
    assert_eq!(world.upload(&second).await.status, 201);
    assert_eq!(watch.next().await.unwrap().1["chunk_index"], 2);
    assert_eq!(watch.next().await.unwrap().1["state"], "confirmed");
    assert!(!watch.raw.contains("\nid:") && !watch.raw.contains("\nretry:"));
    // Nothing is replayed to one that comes later.
    let mut late = world.watch().await;
    assert_eq!(late.next().await.unwrap().0, "relay_ready");
    assert_eq!(world.upload(&Form::chunk(3, 5)).await.status, 201);
    assert_eq!(late.next().await.unwrap().1["chunk_index"], 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b4_a_failed_commit_is_told_and_ends_the_stream() {
    for (forced, state, code, core_code, retryable) in [
        (Forced::error(409, "duplicate_chunk"), "rejected", "core_commit_rejected", Some("duplicate_chunk"), false),
        (
            Forced::error(500, "internal_error"),
            "terminal_failure",
            "core_commit_rejected",
            Some("internal_error"),
            true,
        ),
        (Forced::error(429, "rate_limited"), "terminal_failure", "core_commit_rejected", Some("rate_limited"), true),
        (Forced::Cut, "terminal_failure", "core_commit_unavailable", None, true),
        (Forced::Answer(201, "?".into(), vec![]), "terminal_failure", "core_commit_invalid_response", None, true),
    ] {
        let world = World::new().await;
        let mut watch = world.watch().await;
        world.core.force("/v1/relay/commit", forced);
        let form = Form::chunk(1, 100);
        assert!(!world.upload(&form).await.status.is_success());
        watch.next().await.unwrap();
        assert_eq!(watch.next().await.unwrap().0, "relay_chunk");
        let mut expected = with(
            about(&form, 1),
            json!({"type": "relay_chunk_state", "state": state, "error_code": code, "retryable": retryable,
                "terminal": true}),
        );
        if let Some(core_code) = core_code {
            expected = with(expected, json!({"core_error_code": core_code}));
        }
        assert_eq!(watch.next().await.unwrap(), ("relay_chunk_state".into(), expected));
        assert_eq!(watch.next().await, None, "{state}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b4_a_chunk_that_failed_is_shown_again_when_it_comes_again() {
    let world = World::new().await;
    let mut first = world.watch().await;
    world.core.force("/v1/relay/commit", Forced::error(500, "internal_error"));
    let form = Form::chunk(1, 100);
    assert_eq!(world.upload(&form).await.status, 503);
    while first.next().await.is_some() {}
    world.core.relent();
    let mut second = world.watch().await;
    second.next().await.unwrap();
    assert_eq!(world.upload(&form).await.status, 201);
    assert_eq!(second.next().await.unwrap().0, "relay_chunk");
    assert_eq!(second.next().await.unwrap().1["state"], "confirmed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b4_who_may_not_watch_is_told_in_the_contracts_words() {
    let world = World::new().await;
    for missing in 0..4 {
        let names = ["session-id", "fanout-capability", "incident-id", "stream-id"];
        let mut request = Request::get("/fanout/subscribe").header("host", "x");
        for (at, name) in names.iter().enumerate() {
            let value = if at == missing { " " } else { "value-canary" };
            request = request.header(format!("x-proofline-relay-{name}"), value);
        }
        let answer = world.send(request.body(Full::default()).unwrap()).await;
        assert_eq!((answer.status.as_u16(), answer.code()), (400, "invalid_relay_fanout_request".into()));
    }
    assert!(world.core.seen().is_empty());
    let expired = token_with("fanout", |claims| claims["exp"] = 1_781_092_801.into());
    let other = token_with("fanout", |claims| claims["incident_id"] = "other".into());
    for (capability, status, core_code) in [
        (token("upload"), 403, "relay_capability_wrong_role"),
        (expired, 401, "relay_capability_expired"),
        (other, 403, "relay_capability_wrong_binding"),
        ("nonsense".into(), 401, "relay_capability_invalid"),
    ] {
        let answer = world.try_watch(&capability).await.err().unwrap();
        assert_eq!((answer.status.as_u16(), answer.code()), (status, "core_fanout_rejected".into()));
        let body: Value = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!(body["core_error_code"], core_code);
    }
    world.core.force("/v1/relay/fanout-authorize", Forced::Cut);
    let answer = world.send(subscription(&token("fanout"))).await;
    assert_eq!((answer.status.as_u16(), answer.code()), (503, "core_fanout_unavailable".into()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b4_a_subscription_ends_with_its_capability_and_says_so() {
    let world = World::new().await;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let short = token_with("fanout", |claims| claims["exp"] = (now + 10).into());
    let mut watch = world.try_watch(&short).await.ok().unwrap();
    assert_eq!(watch.next().await.unwrap().0, "relay_ready");
    let end = json!({"type": "relay_end", "error_code": "capability_expired", "terminal": true});
    assert_eq!(watch.next().await.unwrap(), ("relay_end".into(), end));
    assert_eq!(watch.next().await, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b4_subscribers_are_bounded() {
    let world = World::with("", "[limits]\ncontacts_per_group = 1").await;
    let _first = world.watch().await;
    let answer = world.try_watch(&token("fanout")).await.err().unwrap();
    assert_eq!((answer.status.as_u16(), answer.code()), (429, "relay_fanout_limit_exceeded".into()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b4_no_event_names_the_session_or_a_token() {
    let world = World::new().await;
    let mut watch = world.watch().await;
    assert_eq!(world.upload(&Form::chunk(1, 100)).await.status, 201);
    for _ in 0..3 {
        watch.next().await.unwrap();
    }
    let (upload, fanout) = (token("upload"), token("fanout"));
    for part in upload.split('.').skip(1).chain(fanout.split('.').skip(1)).chain([SESSION]) {
        assert!(!watch.raw.contains(part));
    }
    assert!(!watch.raw.contains("service-token-canary") && !watch.raw.contains("original-canary"));
}
