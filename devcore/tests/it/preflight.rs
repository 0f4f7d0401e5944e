//! Contract A.2, row by row: at each step everything later is broken as well, so that only the order
//! decides which refusal comes.

use serde_json::json;
use waystation_devcore::Secret;

use crate::support::{Bench, Chunk, NOON_S, claims, exchange, token};

const PATH: &str = "/v1/relay/preflight";

#[tokio::test]
async fn the_gates_before_the_body() {
    let bench = Bench::with(|options| options.service_token = Secret::Unset).await;
    bench.core.set_calls_per_minute(1);
    assert_eq!(bench.relay(PATH, "nonsense").await.said(), "503 relay_service_auth_not_configured");
    assert_eq!(bench.relay(PATH, "nonsense").await.said(), "429 rate_limited");

    let bench = Bench::start().await;
    let with_tokens = |tokens: &[&str]| {
        let mut request = bench.relay_request(PATH, "nonsense");
        request.headers_mut().remove("x-proofline-relay-service-token");
        for token in tokens {
            request.headers_mut().append("x-proofline-relay-service-token", token.parse().unwrap());
        }
        exchange(bench.core.addr(), request)
    };
    let right = bench.core.service_token();
    for tokens in [&[][..], &[""], &["wrong"], &[right, right], &[bench.core.account_token()]] {
        assert_eq!(with_tokens(tokens).await.unwrap().said(), "401 relay_service_auth_required");
    }
    assert_eq!(with_tokens(&[right]).await.unwrap().said(), "400 invalid_json");
    assert_eq!(bench.account("POST", PATH, json!({})).await.said(), "401 relay_service_auth_required");
}

#[tokio::test]
async fn the_body_as_such() {
    let bench = Bench::start().await;
    let long = format!("{{\"capability\":\"{}\"", "a".repeat(65_536));
    for (body, said) in [
        (long.as_str(), "413 request_too_large"),
        (r#"{"unknown":1}"#, "400 invalid_json"),
        (r#"{"variant":"audio_priority"}"#, "400 invalid_json"),
        (r#"{"chunk_index":"1"}"#, "400 invalid_json"),
        (r#"{"chunk_index":1.0}"#, "400 invalid_json"),
        ("{}{}", "400 invalid_json"),
        ("[]", "400 invalid_json"),
        ("", "400 invalid_relay_request"),
        ("null", "400 invalid_relay_request"),
        (r#"{"relay_session_id":" ","capability":"c","incident_id":"i","stream_id":"s"}"#, "400 invalid_relay_request"),
        (r#"{"RELAY_SESSION_ID":"r","capability":"c","incident_id":"i","stream_id":"s"}"#, "400 invalid_chunk_index"),
    ] {
        assert_eq!(bench.relay(PATH, body).await.said(), said, "{body:.60}");
    }
}

#[tokio::test]
async fn every_row_after_the_body() {
    let bench = Bench::with(|options| {
        options.max_upload_bytes = 200_000;
        options.account_quota_bytes = 1000;
    })
    .await;
    let session = bench.session().await;
    let (incident, stream) = (session.incident.as_str(), session.streams[0].stream.as_str());
    let secret = bench.core.capability_secret();
    let made = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut claims = claims("upload", incident, stream);
        change(&mut claims);
        token(secret, &claims)
    };
    // Stored first: identity 1 is taken until the last step.
    assert_eq!(bench.commit(&Chunk::of(&session, 0, 1)).await.said(), "201");

    let mut chunk = Chunk::of(&session, 0, 1);
    for (name, _) in chunk.fields.clone() {
        chunk.fields.retain(|(known, _)| *known != name);
    }
    let mut seen = Vec::new();
    let step = async |chunk: &Chunk, seen: &mut Vec<String>| seen.push(bench.preflight(chunk).await.said());
    step(&chunk, &mut seen).await;
    chunk.set("relay_session_id", "s");
    chunk.set("capability", "nonsense");
    chunk.set("incident_id", incident);
    chunk.set("stream_id", stream);
    step(&chunk, &mut seen).await;
    chunk.set("chunk_index", 4);
    step(&chunk, &mut seen).await;
    chunk.set("media_type", "video");
    step(&chunk, &mut seen).await;
    chunk.set("started_at", "2026-06-10T12:00:01Z");
    step(&chunk, &mut seen).await;
    chunk.set("ended_at", "2026-06-10T12:00:00Z");
    step(&chunk, &mut seen).await;
    chunk.set("ended_at", "2026-06-10T12:00:01Z");
    step(&chunk, &mut seen).await;
    chunk.set("byte_size", 200_001);
    step(&chunk, &mut seen).await;
    chunk.set("sha256_hex", "0".repeat(64));
    step(&chunk, &mut seen).await;
    chunk.set("byte_size", 200_000);
    step(&chunk, &mut seen).await;
    // An expired fan-out token of another session, then a fan-out token of another session, then its role is right.
    chunk.set(
        "capability",
        made(&|c| {
            c["role"] = "fanout".into();
            c["relay_session_id"] = "other".into();
            c["iat"] = (NOON_S - 60).into();
            c["exp"] = NOON_S.into();
        }),
    );
    step(&chunk, &mut seen).await;
    chunk.set(
        "capability",
        made(&|c| {
            c["role"] = "fanout".into();
            c["relay_session_id"] = "other".into();
        }),
    );
    step(&chunk, &mut seen).await;
    chunk.set("capability", made(&|c| c["relay_session_id"] = "other".into()));
    step(&chunk, &mut seen).await;
    chunk.set("capability", made(&|_| {}));
    step(&chunk, &mut seen).await;
    chunk.set("byte_size", 100_000);
    step(&chunk, &mut seen).await;
    chunk.set("chunk_index", 1);
    step(&chunk, &mut seen).await;
    // The claims' media type comes right in a second token; the stream's own is still another.
    chunk.set("capability", made(&|c| c["allowed_media_types"] = json!(["video"])));
    let set = async |state: &str| {
        let path = format!("/devcore/incidents/{incident}");
        assert_eq!(bench.account("PUT", &path, json!({ "state": state })).await.said(), "200");
    };
    set("deleting").await;
    step(&chunk, &mut seen).await;
    set("closed").await;
    step(&chunk, &mut seen).await;
    set("open").await;
    step(&chunk, &mut seen).await;
    chunk.set("capability", made(&|_| {}));
    chunk.set("media_type", "audio");
    step(&chunk, &mut seen).await;
    chunk.set("byte_size", 500);
    step(&chunk, &mut seen).await;
    chunk.set("chunk_index", 2);
    step(&chunk, &mut seen).await;

    assert_eq!(
        seen,
        [
            "400 invalid_relay_request",
            "400 invalid_chunk_index",
            "400 invalid_media_type",
            "400 invalid_started_at",
            "400 invalid_ended_at",
            "400 invalid_time_range",
            "400 invalid_byte_size",
            "400 invalid_sha256_hex",
            "413 upload_too_large",
            "401 relay_capability_invalid",
            "401 relay_capability_expired",
            "403 relay_capability_wrong_role",
            "403 relay_capability_wrong_binding",
            "403 relay_capability_limit_exceeded",
            "403 relay_capability_limit_exceeded",
            "403 relay_capability_limit_exceeded",
            "409 incident_deleting",
            "409 incident_closed",
            "400 stream_media_type_mismatch",
            "507 account_storage_quota_exceeded",
            "409 duplicate_chunk",
            "200",
        ]
    );
}

#[tokio::test]
async fn unknown_incidents_and_ended_streams() {
    let bench = Bench::start().await;
    let session = bench.session().await;
    let secret = bench.core.capability_secret();
    let under = |incident: &str, stream: &str| {
        let mut claims = claims("upload", incident, stream);
        claims["allowed_media_types"] = json!(["audio", "video"]);
        Chunk::of(&session, 0, 1)
            .with("relay_session_id", "s")
            .with("capability", token(secret, &claims))
            .with("incident_id", incident)
            .with("stream_id", stream)
    };
    let (incident, stream) = (session.incident.as_str(), session.streams[0].stream.as_str());
    assert_eq!(bench.preflight(&under("none", stream)).await.said(), "404 incident_not_found");
    assert_eq!(bench.preflight(&under(incident, "none")).await.said(), "404 stream_not_found");
    assert_eq!(bench.preflight(&under(incident, stream)).await.said(), "200");
    let path = format!("/v1/incidents/{incident}/streams/{stream}/fail");
    assert_eq!(bench.account("POST", &path, json!({ "failure_reason": "x" })).await.said(), "200");
    let other_media = under(incident, stream).with("media_type", "video");
    assert_eq!(bench.preflight(&other_media).await.said(), "409 stream_not_open");
}

#[tokio::test]
async fn without_a_secret_the_capability_is_not_looked_at() {
    let bench = Bench::with(|options| {
        options.capability_secret = Secret::Unset;
        options.hmac_only = true;
        options.max_upload_bytes = 100;
    })
    .await;
    let session = bench.session().await;
    let chunk = Chunk::of(&session, 0, 1).with("relay_session_id", "s").with("capability", "nonsense");
    assert_eq!(bench.preflight(&chunk).await.said(), "413 upload_too_large");
    let small = chunk.with("byte_size", 100);
    assert_eq!(bench.preflight(&small).await.said(), "503 relay_capability_not_configured");
}

#[tokio::test]
async fn an_accepted_answer_says_what_the_contract_says() {
    let bench = Bench::start().await;
    let session = bench.session().await;
    let chunk = Chunk::under_proofline(&session, 0, 64);
    let reply = bench.preflight(&chunk).await;
    assert_eq!(
        reply.json(),
        json!({ "relay_preflight": {
            "status": "accepted", "incident_id": session.incident, "stream_id": session.streams[0].stream,
            "chunk_index": 64, "media_type": "audio", "max_chunk_bytes": 262_144_000, "max_chunks": 64,
        }})
    );
    let beyond = Chunk::under_proofline(&session, 0, 65);
    assert_eq!(bench.preflight(&beyond).await.said(), "403 relay_capability_limit_exceeded");
}

#[tokio::test]
async fn windows_are_of_a_minute_and_per_class() {
    let bench = Bench::with(|options| options.calls_per_minute = 6).await;
    // The session took four calls of the class `stream`.
    let session = bench.session().await;
    let chunk = Chunk::of(&session, 0, 1);
    assert_eq!(bench.preflight(&chunk).await.said(), "200");
    assert_eq!(bench.preflight(&chunk).await.said(), "200");
    let refused = bench.preflight(&chunk).await;
    assert_eq!(refused.said(), "429 rate_limited");
    assert_eq!(refused.headers["retry-after"], "60");
    assert_eq!(bench.commit(&chunk).await.said(), "201", "another class");
    bench.core.clock().advance(std::time::Duration::from_millis(59_999));
    assert_eq!(bench.relay("/v1/relay/fanout-authorize", "x").await.said(), "429 rate_limited", "the same class");
    bench.core.clock().advance(std::time::Duration::from_millis(1));
    assert_eq!(bench.relay("/v1/relay/fanout-authorize", "x").await.said(), "400 invalid_json");
}
