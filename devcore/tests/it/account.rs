//! Contract A.1 and A.8: what the account asks for itself.

use http::Request;
use serde_json::{Value, json};
use waystation_devcore::Secret;

use crate::support::{Bench, Chunk, Form, Reply, exchange, frame, sha256};

#[tokio::test]
async fn relay_sessions_in_their_order() {
    let bench = Bench::start().await;
    let session = bench.session().await;
    let path = |incident: &str, stream: &str| format!("/v1/incidents/{incident}/streams/{stream}/relay-session");
    let (incident, stream) = (session.incident.as_str(), session.streams[0].stream.as_str());
    let right = path(incident, stream);
    assert_eq!(bench.relay(&right, "").await.said(), "401 authentication_required");
    let bearer = format!("Bearer {}", bench.core.account_token());
    let both = Request::post(&right).header("host", "core").header("authorization", bearer).header("cookie", "a=b");
    let both = exchange(bench.core.addr(), both.body(bytes::Bytes::new()).unwrap()).await.unwrap();
    assert_eq!(both.said(), "400 ambiguous_credentials");
    assert_eq!(bench.account("POST", &path("none", "none"), json!({})).await.said(), "404 incident_not_found");
    let set = async |state: &str| {
        bench.account("PUT", &format!("/devcore/incidents/{incident}"), json!({ "state": state })).await;
    };
    set("deleting").await;
    assert_eq!(bench.account("POST", &path(incident, "none"), json!({})).await.said(), "409 incident_deleting");
    set("closed").await;
    assert_eq!(bench.account("POST", &path(incident, "none"), json!({})).await.said(), "409 incident_closed");
    set("open").await;
    assert_eq!(bench.account("POST", &path(incident, "none"), json!({})).await.said(), "404 stream_not_found");
    let made = bench.account("POST", &right, json!("the body is never read")).await;
    assert_eq!(made.said(), "201");
    let made = made.json()["relay_session"].clone();
    assert_eq!(made["relay_session_id"].as_str().unwrap().len(), 22);
    assert_eq!(made["expires_at"], "2026-06-10T12:05:00Z");
    assert_eq!(
        (&made["role"], &made["max_chunk_bytes"], &made["max_chunks"], &made["allowed_media_types"]),
        (&json!("upload"), &json!(262_144_000), &json!(64), &json!(["audio"]))
    );
    let again = bench.account("POST", &right, json!({})).await.json();
    assert_ne!(again["relay_session"]["relay_session_id"], made["relay_session_id"], "a new session each time");
    bench.account("POST", &format!("/v1/incidents/{incident}/streams/{stream}/fail"), json!({})).await;
    assert_eq!(bench.account("POST", &right, json!({})).await.said(), "409 stream_not_open");

    let bench = Bench::with(|options| options.capability_secret = Secret::Unset).await;
    let session = bench.session().await;
    assert!(session.streams[0].proofline.is_none());
    let right = path(&session.incident, &session.streams[0].stream);
    assert_eq!(bench.account("POST", &right, json!({})).await.said(), "503 relay_capability_not_configured");
}

#[tokio::test]
async fn streams_complete_with_exactly_their_chunks() {
    let bench = Bench::start().await;
    let session = bench.session().await;
    let end = async |lane: usize, what: &str, body: Value| {
        let path = format!("/v1/incidents/{}/streams/{}/{what}", session.incident, session.streams[lane].stream);
        bench.account("POST", &path, body).await.said()
    };
    let count = |count: i64| json!({ "expected_chunk_count": count });
    assert_eq!(end(0, "complete", count(0)).await, "400 invalid_expected_chunk_count");
    assert_eq!(end(0, "complete", json!({})).await, "400 invalid_expected_chunk_count");
    for index in [2, 1, 3] {
        assert_eq!(bench.commit(&Chunk::of(&session, 0, index)).await.said(), "201", "any order");
    }
    for index in [1, 3] {
        assert_eq!(bench.commit(&Chunk::of(&session, 1, index)).await.said(), "201");
    }
    assert_eq!(end(0, "complete", count(4)).await, "409 stream_chunks_incomplete");
    assert_eq!(end(1, "complete", count(2)).await, "409 stream_chunks_not_contiguous");
    assert_eq!(end(0, "complete", count(3)).await, "200");
    assert_eq!(end(0, "complete", count(3)).await, "409 stream_already_complete");
    assert_eq!(end(0, "fail", json!({})).await, "409 stream_already_complete");
    assert_eq!(end(1, "fail", json!({ "failure_reason": "gap" })).await, "200");
    assert_eq!(end(1, "complete", count(2)).await, "409 stream_failed");
    assert_eq!(bench.commit(&Chunk::of(&session, 0, 4)).await.said(), "409 stream_not_open");
    assert_eq!(bench.core.stats().await.stored_chunks, 5, "a failed stream keeps its chunks");

    assert_eq!(bench.commit(&Chunk::of(&session, 2, 1)).await.said(), "201");
    for blob in std::fs::read_dir(bench.dir.path().join("blobs")).unwrap() {
        std::fs::remove_file(blob.unwrap().path()).unwrap();
    }
    assert_eq!(end(2, "complete", count(1)).await, "409 stream_chunk_file_missing");
}

#[tokio::test]
async fn streams_are_made_as_asked() {
    let bench = Bench::start().await;
    let session = bench.session().await;
    let plain = format!("/v1/incidents/{}/streams", session.incident);
    let made = bench.account("POST", &plain, json!({ "media_type": "audio", "label": "x" })).await;
    assert_eq!(made.said(), "201");
    assert_eq!(made.json()["stream"]["status"], "open");
    assert_eq!(bench.account("POST", &plain, json!({ "media_type": "text" })).await.said(), "400 invalid_media_type");
    assert_eq!(bench.account("POST", &plain, json!({ "variant": "x" })).await.said(), "400 invalid_json");
    let grouped = format!("/v1/incidents/{}/groups/{}/streams", session.incident, session.group);
    for (body, said) in [
        (json!({ "variant": "preview_only", "media": "video" }), "400 role_refused"),
        (json!({ "variant": "other", "media": "video" }), "400 invalid_role"),
        (json!({ "variant": "live_preview", "media": "other" }), "400 invalid_media_type"),
        (json!({ "variant": "live_preview", "media": "video", "follows": "none" }), "400 invalid_follows"),
        (
            json!({ "variant": "live_preview", "media": "video", "follows": session.streams[0].stream }),
            "400 invalid_follows",
        ),
        (json!({ "variant": "live_preview", "media": "video", "follows": session.streams[1].stream }), "201"),
    ] {
        assert_eq!(bench.account("POST", &grouped, body.clone()).await.said(), said, "{body}");
    }
    bench.account("POST", &format!("/v1/incidents/{}/close", session.incident), json!({})).await;
    assert_eq!(bench.account("POST", &plain, json!({ "media_type": "audio" })).await.said(), "409 incident_closed");
    assert_eq!(bench.account("POST", "/v1/incidents/none/groups", json!({})).await.said(), "404 incident_not_found");
    assert_eq!(bench.account("POST", "/v1/incidents/none/close", json!({})).await.said(), "404 incident_not_found");
}

async fn direct(bench: &Bench, incident: &str, chunk: &Chunk, key: Option<&str>) -> Reply {
    let mut form = Form::default();
    for name in ["stream_id", "chunk_index", "media_type", "started_at", "ended_at", "sha256_hex", "original_filename"]
    {
        form = form.field(name, &chunk.text(name));
    }
    let body = form.file(chunk.filename, &chunk.bytes).finish();
    let mut request = Request::post(format!("/v1/incidents/{incident}/chunks"))
        .header("host", "core")
        .header("authorization", format!("Bearer {}", bench.core.account_token()))
        .header("content-type", "multipart/form-data; boundary=xyz");
    if let Some(key) = key {
        request = request.header("idempotency-key", key);
    }
    exchange(bench.core.addr(), request.body(body.into()).unwrap()).await.unwrap()
}

#[tokio::test]
async fn direct_uploads_are_idempotent_under_a_key() {
    let bench = Bench::start().await;
    let session = bench.session().await;
    let incident = session.incident.as_str();
    let chunk = Chunk::of(&session, 0, 1);
    for key in ["", "a b", &"a".repeat(256)] {
        assert_eq!(direct(&bench, incident, &chunk, Some(key)).await.said(), "400 invalid_idempotency_key");
    }
    let first = direct(&bench, incident, &chunk, Some("key-1")).await;
    assert_eq!(first.said(), "201");
    let again = direct(&bench, incident, &chunk, Some("key-1")).await;
    assert_eq!(again.said(), "200");
    assert_eq!(again.headers["idempotency-replayed"], "true");
    assert_eq!(again.json()["chunk"]["chunk_id"], first.json()["chunk"]["chunk_id"]);
    let other = Chunk::of(&session, 0, 2);
    assert_eq!(direct(&bench, incident, &other, Some("key-1")).await.said(), "409 idempotency_conflict");
    assert_eq!(direct(&bench, incident, &chunk, Some("key-2")).await.said(), "409 duplicate_chunk");
    assert_eq!(direct(&bench, incident, &chunk, None).await.said(), "409 duplicate_chunk");
    assert_eq!(direct(&bench, "none", &other, None).await.said(), "404 incident_not_found");
    assert_eq!(
        direct(&bench, incident, &other.clone().with("stream_id", " "), None).await.said(),
        "400 invalid_chunk_request"
    );
    assert_eq!(
        direct(&bench, incident, &other.with("sha256_hex", "0".repeat(64)), None).await.said(),
        "400 hash_mismatch"
    );
    let database = std::fs::read(bench.dir.path().join("core.sqlite-wal")).unwrap();
    assert!(!database.windows(5).any(|window| window == b"key-1"), "a raw key is never kept");
}

#[tokio::test]
async fn reconciling_tells_match_from_conflict() {
    let bench = Bench::start().await;
    let session = bench.session().await;
    let path = format!("/v1/incidents/{}/chunks/reconcile", session.incident);
    let ask = |chunk: &Chunk| {
        let mut body = chunk.json();
        for name in ["relay_session_id", "capability", "incident_id"] {
            body.as_object_mut().unwrap().remove(name);
        }
        body
    };
    let chunk = Chunk::of(&session, 0, 1).with("original_filename", "voice.enc");
    assert_eq!(bench.account("POST", &path, ask(&chunk)).await.said(), "404 chunk_not_found");
    let committed = bench.commit(&chunk).await.json();
    bench.account("POST", &format!("/v1/incidents/{}/close", session.incident), json!({})).await;
    let respelt = chunk.clone().with("ended_at", "2026-06-10T14:00:02.000+02:00");
    let matched = bench.account("POST", &path, ask(&respelt)).await;
    assert_eq!(matched.said(), "200", "also after closing");
    let matched = matched.json()["reconciliation"].clone();
    assert_eq!(matched["status"], "matched");
    assert_eq!(matched["chunk_id"], committed["relay_commit"]["chunk_id"]);
    assert_eq!(matched["receipt"], committed["relay_commit"]["receipt"]);
    let bytes = frame(&session.incident, &session.streams[0].stream, "audio", 1, b"other");
    let other =
        chunk.clone().carrying(bytes.clone()).with("original_filename", "").with("started_at", "2026-06-10T12:00:00Z");
    let conflict = bench.account("POST", &path, ask(&other)).await;
    assert_eq!(conflict.said(), "409 duplicate_chunk_conflict");
    assert_ne!(chunk.text("sha256_hex"), sha256(&bytes));
    assert_eq!(
        conflict.json()["reconciliation"],
        json!({ "status": "conflict", "mismatched_fields": ["started_at", "byte_size", "sha256_hex", "original_filename"] })
    );
    assert_eq!(bench.account("POST", &path, chunk.json()).await.said(), "400 invalid_json", "exactly eight names");
    assert_eq!(bench.relay(&path, "").await.said(), "401 authentication_required");
}
