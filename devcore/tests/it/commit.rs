//! Contract A.3, row by row.

use bytes::Bytes;
use serde_json::json;
use waystation_devcore::{Options, Secret};

use crate::support::{Bench, Chunk, Form, NOON_S, claims, exchange, frame, sha256, token};

async fn send(bench: &Bench, body: Vec<u8>) -> String {
    exchange(bench.core.addr(), bench.commit_request(body)).await.unwrap().said()
}

#[tokio::test]
async fn the_gates_before_the_body() {
    let bench = Bench::with(|options| options.service_token = Secret::Unset).await;
    bench.core.set_calls_per_minute(1);
    assert_eq!(send(&bench, b"x".to_vec()).await, "503 relay_service_auth_not_configured");
    assert_eq!(send(&bench, b"x".to_vec()).await, "429 rate_limited");
    let bench = Bench::start().await;
    let mut request = bench.commit_request(b"x".to_vec());
    request.headers_mut().remove("x-proofline-relay-service-token");
    assert_eq!(exchange(bench.core.addr(), request).await.unwrap().said(), "401 relay_service_auth_required");
}

#[tokio::test]
async fn while_the_parts_are_read() {
    let bench = Bench::with(|options| {
        options.max_upload_bytes = 200_000;
        options.staging_quota_bytes = 150_000;
    })
    .await;
    let mut request = bench.commit_request(Form::default().finish());
    request.headers_mut().insert("content-type", "application/json".parse().unwrap());
    assert_eq!(exchange(bench.core.addr(), request).await.unwrap().said(), "400 invalid_multipart");
    assert_eq!(
        send(&bench, b"--xyz\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\nb".to_vec()).await,
        "400 invalid_multipart"
    );
    // Longer than file and fields may be together, in parts that are each fine.
    let many = (0..40).fold(Form::default(), |form, _| form.field("other", &"a".repeat(65_536)));
    assert_eq!(send(&bench, many.finish()).await, "413 upload_too_large");
    let quota = Form::default().file(None, &vec![0; 150_001]).field("a", &"a".repeat(65_537));
    assert_eq!(send(&bench, quota.finish()).await, "507 upload_staging_quota_exceeded");
    let field = Form::default().field("unknown", &"a".repeat(65_537)).file(None, b"a").file(None, b"b");
    assert_eq!(send(&bench, field.finish()).await, "400 invalid_field");
    let twice = Form::default().file(None, b"a").file(None, b"b");
    assert_eq!(send(&bench, twice.finish()).await, "400 duplicate_file");
    let fields_only = Form::default().field("stream_id", &"a".repeat(65_536));
    assert_eq!(send(&bench, fields_only.finish()).await, "400 missing_file");
    assert_eq!(std::fs::read_dir(bench.dir.path().join("blobs")).unwrap().count(), 0, "nothing is left behind");
}

#[tokio::test]
async fn a_file_over_the_limit() {
    let bench = Bench::with(|options| options.max_upload_bytes = 1000).await;
    assert_eq!(send(&bench, Form::default().file(None, &[0; 1001]).finish()).await, "413 upload_too_large");
}

#[tokio::test]
async fn every_row_after_the_parts() {
    let bench = Bench::with(|options| options.account_quota_bytes = 1000).await;
    let session = bench.session().await;
    let (incident, stream) = (session.incident.as_str(), session.streams[0].stream.as_str());
    assert_eq!(bench.commit(&Chunk::of(&session, 0, 1)).await.said(), "201");
    let secret = bench.core.capability_secret();
    let big = frame(incident, stream, "audio", 1, &[0; 2000]);

    let mut seen = Vec::new();
    let mut chunk = Chunk { fields: Vec::new(), bytes: b"no frame".to_vec(), filename: Some("x.enc") };
    let step = async |chunk: &Chunk, seen: &mut Vec<String>| seen.push(bench.commit(chunk).await.said());
    step(&chunk, &mut seen).await;
    for (name, value) in
        [("relay_session_id", "s"), ("capability", "bad"), ("incident_id", incident), ("stream_id", stream)]
    {
        chunk.set(name, value);
    }
    chunk.set("chunk_index", "2147483648");
    step(&chunk, &mut seen).await;
    chunk.set("chunk_index", "4");
    step(&chunk, &mut seen).await;
    chunk.set("media_type", "audio");
    step(&chunk, &mut seen).await;
    chunk.set("started_at", "2026-06-10T12:00:01+00:00");
    step(&chunk, &mut seen).await;
    chunk.set("ended_at", "2026-06-10T12:00:00Z");
    step(&chunk, &mut seen).await;
    chunk.set("ended_at", "2026-06-10T13:00:01+01:00");
    chunk.set("byte_size", "0");
    step(&chunk, &mut seen).await;
    chunk.set("byte_size", "7");
    chunk.set("sha256_hex", "A".repeat(64));
    step(&chunk, &mut seen).await;
    chunk.set("sha256_hex", sha256(b"other"));
    step(&chunk, &mut seen).await;
    let mut expired = claims("fanout", "other", stream);
    expired["iat"] = (NOON_S - 60).into();
    expired["exp"] = NOON_S.into();
    chunk.set("capability", token(secret, &expired));
    step(&chunk, &mut seen).await;
    chunk.set("capability", token(secret, &claims("fanout", "other", stream)));
    step(&chunk, &mut seen).await;
    chunk.set("capability", token(secret, &claims("upload", "other", stream)));
    step(&chunk, &mut seen).await;
    chunk.set("capability", token(secret, &claims("upload", incident, stream)));
    step(&chunk, &mut seen).await;
    chunk.set("chunk_index", "1");
    let set = async |state: &str| {
        bench.account("PUT", &format!("/devcore/incidents/{incident}"), json!({ "state": state })).await;
    };
    set("closed").await;
    step(&chunk, &mut seen).await;
    set("open").await;
    step(&chunk, &mut seen).await;
    chunk.set("byte_size", chunk.bytes.len().to_string());
    step(&chunk, &mut seen).await;
    chunk.set("sha256_hex", sha256(&chunk.bytes));
    step(&chunk, &mut seen).await;
    // Identity 1 is taken and 2,000 bytes are over the quota: a commit looks at the duplicate first.
    chunk = chunk.carrying(big);
    step(&chunk, &mut seen).await;
    chunk.set("chunk_index", "2");
    chunk = chunk.carrying(frame(incident, stream, "audio", 2, &[0; 2000]));
    step(&chunk, &mut seen).await;
    chunk = chunk.carrying(frame(incident, stream, "audio", 2, &[0; 20]));
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
            "401 relay_capability_invalid",
            "401 relay_capability_expired",
            "403 relay_capability_wrong_role",
            "403 relay_capability_wrong_binding",
            "403 relay_capability_limit_exceeded",
            "409 incident_closed",
            "400 byte_size_mismatch",
            "400 hash_mismatch",
            "400 invalid_envelope",
            "409 duplicate_chunk",
            "507 account_storage_quota_exceeded",
            "201",
        ]
    );
    let stats = bench.core.stats().await;
    assert_eq!(stats.stored_chunks, 2);
    let outcomes: Vec<_> = stats.commits.iter().map(|commit| commit.outcome.as_str()).collect();
    assert_eq!((outcomes[0], *outcomes.last().unwrap(), outcomes.len()), ("201", "201", 21));
    assert_eq!(std::fs::read_dir(bench.dir.path().join("blobs")).unwrap().count(), 2);
}

#[tokio::test]
async fn parts_come_in_any_order_and_the_last_value_wins() {
    let bench = Bench::start().await;
    let session = bench.session().await;
    let chunk = Chunk::of(&session, 0, 1);
    let mut form =
        Form::default().file(Some("/a/b/voice.enc"), &chunk.bytes).field("chunk_index", "99").field("unknown", "x");
    for (name, _) in chunk.fields.iter().rev() {
        form = form.field(name, &chunk.text(name));
    }
    assert_eq!(send(&bench, form.finish()).await, "201");
    let listed = bench.account("GET", &format!("/v1/incidents/{}/chunks", session.incident), json!({})).await.json();
    assert_eq!(listed["chunks"][0]["index"], 1);
    assert_eq!(listed["chunks"][0]["original_filename"], "voice.enc", "the file part's name stands in");
    assert_eq!(listed["chunks"][0]["started_at"], chunk.text("started_at"), "as written");
    let unnamed = Chunk::of(&session, 0, 2);
    assert_eq!(bench.commit(&unnamed).await.said(), "201");
    let listed = bench.account("GET", &format!("/v1/incidents/{}/chunks", session.incident), json!({})).await.json();
    assert_eq!(listed["chunks"][1]["original_filename"], "");
}

#[tokio::test]
async fn stored_bytes_come_back() {
    let bench = Bench::start().await;
    let session = bench.session().await;
    let stream = &session.streams[1].stream;
    let bytes = frame(&session.incident, stream, "video", 1, &vec![9; 3_000_000]);
    let chunk = Chunk::of(&session, 1, 1).carrying(bytes.clone());
    let reply = bench.commit(&chunk).await;
    assert_eq!(reply.said(), "201");
    assert_eq!(reply.json()["relay_commit"]["sha256_hex"], sha256(&bytes));
    let path = format!("/v1/incidents/{}/chunks/{stream}/1", session.incident);
    assert_eq!(bench.account("GET", &path, json!({})).await.bytes, Bytes::from(bytes));
    assert_eq!(bench.get(&path).await.said(), "401 authentication_required");
    assert_eq!(bench.account("GET", &format!("{path}0"), json!({})).await.said(), "404 chunk_not_found");
}

#[tokio::test]
async fn a_repeat_is_a_duplicate_or_the_same_answer() {
    for (idempotent, hmac_only) in [(false, false), (true, false), (true, true)] {
        let bench =
            Bench::with(|options| (options.idempotent_commit, options.hmac_only) = (idempotent, hmac_only)).await;
        let session = bench.session().await;
        let chunk = Chunk::under_proofline(&session, 0, 1);
        let first = bench.commit(&chunk).await;
        assert_eq!(first.said(), "201");
        let repeats = idempotent && !hmac_only;
        let again = bench.commit(&chunk).await;
        if repeats {
            assert_eq!(again.said(), "200");
            assert_eq!(again.json(), first.json(), "the same body, receipt and all");
            assert_eq!(bench.preflight(&chunk).await.said(), "200");
        } else {
            assert_eq!(again.said(), "409 duplicate_chunk");
            assert_eq!(bench.preflight(&chunk).await.said(), "409 duplicate_chunk");
        }
        let stream = session.streams[0].stream.as_str();
        let other = chunk.clone().carrying(frame(&session.incident, stream, "audio", 1, b"other"));
        assert_eq!(bench.commit(&other).await.said(), "409 duplicate_chunk");
        bench.account("POST", &format!("/v1/incidents/{}/close", session.incident), json!({})).await;
        let said = bench.commit(&chunk).await.said();
        assert_eq!(said, if repeats { "200" } else { "409 incident_closed" }, "what is stored stays confirmed");
        assert_eq!(bench.commit(&other).await.said(), "409 incident_closed");
    }
}

#[tokio::test]
async fn one_of_many_at_once_is_stored() {
    let bench = Bench::start().await;
    let session = bench.session().await;
    let chunk = Chunk::of(&session, 0, 1);
    let all = futures_util::future::join_all((0..8).map(|_| bench.commit(&chunk))).await;
    let mut said: Vec<_> = all.iter().map(|reply| reply.said()).collect();
    said.sort();
    assert_eq!(said[0], "201");
    assert!(said[1..].iter().all(|said| said == "409 duplicate_chunk"), "{said:?}");
    assert_eq!(std::fs::read_dir(bench.dir.path().join("blobs")).unwrap().count(), 1);
}

#[tokio::test]
async fn keeping_nothing_still_checks_everything() {
    let bench = Bench::with(|options| options.keep_nothing = true).await;
    let session = bench.session().await;
    let chunk = Chunk::of(&session, 0, 1);
    let reply = bench.commit(&chunk).await;
    assert_eq!(reply.said(), "201");
    assert!(reply.json()["relay_commit"]["receipt"].is_string());
    assert_eq!(bench.commit(&chunk).await.said(), "201", "nothing is kept, so nothing is a duplicate");
    assert_eq!(bench.commit(&chunk.clone().with("sha256_hex", "0".repeat(64))).await.said(), "400 hash_mismatch");
    assert_eq!(
        bench.commit(&chunk.clone().with("media_type", "video")).await.said(),
        "403 relay_capability_limit_exceeded"
    );
    assert_eq!(bench.commit(&chunk.carrying(b"no frame".to_vec())).await.said(), "400 invalid_envelope");
    let stats = bench.core.stats().await;
    assert_eq!((stats.stored_chunks, stats.confirmed_chunks), (0, 2));
    assert_eq!(std::fs::read_dir(bench.dir.path().join("blobs")).unwrap().count(), 0);
}

#[tokio::test]
async fn the_unchanged_core_knows_no_jwt_and_gives_no_receipt() {
    let bench = Bench::with(|options| {
        let unchanged = Options::unchanged_core(options.data.clone());
        *options = Options { clock: options.clock.clone(), ..unchanged };
    })
    .await;
    let session = bench.session().await;
    assert!(session.upload_capability.is_none() && session.fanout_capability.is_none());
    let reply = bench.commit(&Chunk::under_proofline(&session, 0, 1)).await;
    assert_eq!(reply.said(), "201");
    let body = reply.json();
    let names: Vec<_> = body["relay_commit"].as_object().unwrap().keys().cloned().collect();
    assert_eq!(
        names,
        [
            "byte_size",
            "chunk_id",
            "chunk_index",
            "created_at",
            "incident_id",
            "media_type",
            "sha256_hex",
            "status",
            "stream_id"
        ]
    );
    for path in ["/v1/relay/jwks", "/v1/relay/revocations"] {
        assert_eq!(bench.get(path).await.said(), "404 not_found");
    }
    let other = Bench::start().await.session().await;
    let foreign = Chunk::of(&other, 0, 1);
    assert_eq!(bench.commit(&foreign).await.said(), "401 relay_capability_invalid");
}

#[tokio::test]
async fn unknown_paths_and_methods_fall_through() {
    let bench = Bench::start().await;
    for path in ["/", "/v1/relay/preflight", "/v1/relay/commit/", "/v1", "/metrics", "//", "/v1/relay/jwks/x"] {
        assert_eq!(bench.get(path).await.said(), "404 not_found", "{path}");
    }
    assert_eq!(bench.relay("/v1/relay/nothing", "").await.said(), "404 not_found");
}
