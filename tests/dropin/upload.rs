//! B.3: the upload, its order of checks and its words.

use bytes::Bytes;
use http_body_util::Full;
use serde_json::{Value, json};

use crate::core::Forced;
use crate::form::{BOUNDARY, Form, INCIDENT, SESSION, STREAM, closing, part, post, token, token_with};
use crate::world::World;

async fn raw(world: &World, body: Vec<u8>) -> (u16, String) {
    let answer = world.send(post().body(Full::new(body.into())).unwrap()).await;
    (answer.status.as_u16(), answer.code())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b3_a_chunk_is_committed_with_the_cores_words_and_nothing_is_kept() {
    let world = World::new().await;
    let form = Form::chunk(1, 700_000);
    let answer = world.upload(&form).await;
    assert_eq!(answer.status, 201, "{:?}", answer.body);
    let body: Value = serde_json::from_slice(&answer.body).unwrap();
    let expected = json!({"relay_upload": {"status": "committed", "chunk_id": "chk_1", "incident_id": INCIDENT,
        "stream_id": STREAM, "chunk_index": 1, "media_type": "audio", "byte_size": form.file.len(),
        "sha256_hex": form.field("sha256_hex"), "created_at": "2026-06-10T12:00:03Z"}});
    assert_eq!(body, expected, "an allow-listed copy");
    assert_eq!(world.core.stored(INCIDENT, STREAM, 1).unwrap(), form.file);
    // The core sees the eleven fields as they came, and no more.
    for seen in world.core.seen() {
        let mut names: Vec<_> = seen.fields.iter().map(|(name, _)| name.as_str()).collect();
        names.sort_unstable();
        let mut known: Vec<_> = form.fields.iter().map(|(name, _)| name.as_str()).collect();
        known.sort_unstable();
        assert_eq!(names, known, "{}", seen.path);
        for (name, value) in &form.fields {
            assert_eq!(seen.field(name), Some(value.as_str()), "{name}");
        }
        let headers: String = seen.headers.iter().map(|(name, value)| format!("{name}: {value}\n")).collect();
        let headers = headers.replace(crate::core::SERVICE_TOKEN, "");
        assert!(!headers.contains("canary") && !headers.contains(crate::form::CLIENT), "{headers}");
    }
    world.until_nothing_is_kept().await;
    let metrics = world.ops("/metrics").await;
    assert!(metrics.contains("waystation_chunk_endings_total{class=\"audio\",ending=\"confirmed\"} 1"), "{metrics}");
}

/// The contract has no rule for it but a field's length.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b3_any_file_name_goes_to_the_core_as_it_came() {
    let world = World::new().await;
    for (index, name) in (1..).zip(["n".repeat(60_000), "a\tb\r\n--c\u{1}\"ü".to_owned(), String::new()]) {
        let form = Form::chunk(index, 100).with("original_filename", &name);
        let answer = world.upload(&form).await;
        assert_eq!(answer.status, 201, "{:?}", answer.body);
        for seen in world.core.seen().iter().filter(|seen| seen.field("chunk_index") == Some(&index.to_string())) {
            assert_eq!(seen.field("original_filename").unwrap_or_default(), name, "{}", seen.path);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b3_forms_are_refused_by_their_first_mistake_before_the_core_is_asked() {
    let world = World::new().await;
    let form = Form::chunk(1, 100);
    let file = part("file", Some("x"), &form.file);
    let fields: Vec<u8> = form.fields.iter().flat_map(|(name, value)| part(name, None, value.as_bytes())).collect();
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("unexpected_field", [part("field-canary", None, b"x"), fields.clone(), file.clone(), closing()].concat()),
        ("duplicate_field", [fields.clone(), part("incident_id", None, b"x"), file.clone(), closing()].concat()),
        ("metadata_too_large", [part("incident_id", None, &[b'x'; 65_537]), file.clone(), closing()].concat()),
        // 65,536 bytes are a field, though no identifier.
        ("invalid_relay_request", [part("incident_id", None, &[b'x'; 65_536]), file.clone(), closing()].concat()),
        ("missing_file", [fields.clone(), closing()].concat()),
        ("missing_file", closing()),
        ("invalid_relay_request", [file.clone(), fields.clone(), closing()].concat()),
        ("invalid_multipart", Vec::new()),
        ("invalid_multipart", b"nothing of the kind".to_vec()),
        ("invalid_multipart", fields.clone()),
        ("invalid_multipart", [part(&"n".repeat(9000), None, b"x"), file.clone(), closing()].concat()),
    ];
    for (code, body) in cases {
        assert_eq!(raw(&world, body).await, (400, code.into()));
    }
    for content_type in ["", "application/json", "multipart/mixed; boundary=x", "multipart/form-data"] {
        let request = http::Request::post("/upload/complete-chunk").header("host", "x");
        let request = request.header("content-type", content_type).body(Full::new(Bytes::from(form.bytes()))).unwrap();
        assert_eq!(world.send(request).await.code(), "invalid_multipart");
    }
    assert!(world.core.seen().is_empty());
    world.until_nothing_is_kept().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b3_metadata_is_checked_in_the_contracts_order() {
    let world = World::new().await;
    let mut form = Form::chunk(1, 100);
    // From the last check to the first: each new mistake hides the ones before.
    let too_large = (300u64 << 20).to_string();
    let mistakes = [
        ("sha256_hex", "ABC", 400, "invalid_sha256_hex"),
        ("byte_size", too_large.as_str(), 413, "upload_too_large"),
        ("byte_size", "0", 400, "invalid_byte_size"),
        ("ended_at", "2020-01-01T00:00:00Z", 400, "invalid_ended_at"),
        ("started_at", "then", 400, "invalid_started_at"),
        ("media_type", "film", 400, "invalid_media_type"),
        ("chunk_index", "0", 400, "invalid_chunk_index"),
        ("stream_id", " ", 400, "invalid_relay_request"),
    ];
    for (name, value, status, code) in mistakes {
        form = form.with(name, value);
        let answer = world.upload(&form).await;
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (status, code), "{name}");
    }
    assert!(world.core.seen().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b3_what_follows_the_file_and_what_the_file_is_not_is_refused_after_the_preflight() {
    let world = World::new().await;
    let form = Form::chunk(1, 100);
    let fields: Vec<u8> = form.fields.iter().flat_map(|(name, value)| part(name, None, value.as_bytes())).collect();
    let file = part("file", Some("x"), &form.file);
    let with = |end: Vec<u8>| [fields.clone(), file.clone(), end].concat();
    let nameless = format!("--{BOUNDARY}\r\nX-Part: nameless-canary\r\n\r\nnameless-canary\r\n").into_bytes();
    for (code, body) in [
        ("metadata_after_file", with([part("incident_id", None, b"x"), closing()].concat())),
        ("duplicate_file", with([file.clone(), closing()].concat())),
        ("invalid_multipart", with(format!("--{BOUNDARY}").into_bytes())),
        ("invalid_multipart", with(Vec::new())),
    ] {
        assert_eq!(raw(&world, body).await, (400, code.into()));
        world.until_nothing_is_kept().await;
    }
    let mut longer = form.clone();
    longer.file = [&form.file[..], b"x"].concat().into();
    let mut shorter = form.clone();
    shorter.file = form.file.slice(..form.file.len() - 1);
    let mut other = form.clone();
    other.file = [&form.file[..form.file.len() - 1], b"x"].concat().into();
    for (code, form) in [("byte_size_mismatch", longer), ("byte_size_mismatch", shorter), ("hash_mismatch", other)] {
        let answer = world.upload(&form).await;
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (400, code));
        world.until_nothing_is_kept().await;
    }
    assert_eq!(world.core.calls("/v1/relay/commit"), 0);
    // A nameless part is nobody's, before and after the file.
    let body = [nameless.clone(), fields.clone(), file.clone(), nameless, closing()].concat();
    assert_eq!(raw(&world, body).await.0, 201);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b3_a_file_over_the_limit_is_413() {
    let world = World::with("max_chunk = \"4KiB\"\nquota = \"64MiB\"", "").await;
    let mut form = Form::chunk(1, 1000);
    form.file = vec![7; 5000].into();
    let answer = world.upload(&form).await;
    assert_eq!((answer.status.as_u16(), answer.code()), (413, "upload_too_large".into()));
    world.until_nothing_is_kept().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b3_the_cores_refusals_pass_with_their_status_and_code() {
    let world = World::new().await;
    let form = Form::chunk(1, 100);
    let expired = token_with("upload", |claims| claims["exp"] = 1_781_092_801.into());
    let other = token_with("upload", |claims| claims["stream_id"] = "other".into());
    for (token, status, core_code) in [
        ("nonsense".to_owned(), 401, "relay_capability_invalid"),
        (expired, 401, "relay_capability_expired"),
        (token("fanout"), 403, "relay_capability_wrong_role"),
        (other, 403, "relay_capability_wrong_binding"),
    ] {
        let answer = world.upload(&form.clone().with("capability", &token)).await;
        assert_eq!((answer.status.as_u16(), answer.code()), (status, "core_preflight_rejected".into()));
        let body: Value = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!(body["core_error_code"], core_code);
    }
    let refusals = [
        (400, "invalid_envelope", 400),
        (404, "incident_not_found", 404),
        (409, "stream_not_open", 409),
        (413, "upload_too_large", 413),
        (507, "account_storage_quota_exceeded", 507),
        (500, "internal_error", 503),
        (418, "odd_code", 502),
    ];
    for (route, code) in
        [("/v1/relay/preflight", "core_preflight_rejected"), ("/v1/relay/commit", "core_commit_rejected")]
    {
        for (status, core_code, mapped) in refusals {
            world.core.force(route, Forced::error(status, core_code));
            let answer = world.upload(&form).await;
            assert_eq!((answer.status.as_u16(), answer.code().as_str()), (mapped, code), "{core_code}");
            let body: Value = serde_json::from_slice(&answer.body).unwrap();
            assert_eq!(body["core_error_code"], core_code);
            world.core.relent();
            world.until_nothing_is_kept().await;
        }
    }
    world.core.close_incident(INCIDENT);
    assert_eq!(world.upload(&form).await.status, 409);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b3_an_answer_that_is_none_is_unavailable_or_invalid() {
    let form = Form::chunk(1, 100);
    for (route, forced, status, code) in [
        ("/v1/relay/preflight", Forced::Cut, 503, "core_preflight_unavailable"),
        ("/v1/relay/commit", Forced::Cut, 503, "core_commit_unavailable"),
        ("/v1/relay/commit", Forced::Answer(201, "not json".into(), vec![]), 502, "core_commit_invalid_response"),
        ("/v1/relay/commit", Forced::Answer(201, "[]".into(), vec![]), 502, "core_commit_invalid_response"),
    ] {
        // Each with a relay of its own: a core that was away is not asked at once again.
        let world = World::new().await;
        world.core.force(route, forced);
        let answer = world.upload(&form).await;
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (status, code));
        world.until_nothing_is_kept().await;
        assert_eq!(world.core.stored_chunks(), 0);
    }
    let world = World::new().await;
    world.core.force("/v1/relay/commit", Forced::Answer(200, "{}".into(), vec![]));
    let answer = world.upload(&form).await;
    let body: Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!((answer.status.as_u16(), body), (200, json!({"relay_upload": {"status": "committed"}})));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b3_retry_after_is_passed_on_and_a_duplicate_is_told() {
    let world = World::new().await;
    let form = Form::chunk(1, 100);
    let body = json!({"error": {"code": "upload_in_progress", "message": "no"}}).to_string();
    world.core.force("/v1/relay/commit", Forced::Answer(409, body, vec![("retry-after", "7".into())]));
    let answer = world.upload(&form).await;
    assert_eq!((answer.status.as_u16(), answer.headers["retry-after"].to_str().unwrap()), (409, "7"));
    world.core.relent();

    assert_eq!(world.upload(&form).await.status, 201);
    let again = world.upload(&form).await;
    assert_eq!(again.status, 200, "this relay saw these bytes confirmed");
    let mut altered = form.clone();
    altered.file = [&form.file[..form.file.len() - 1], b"x"].concat().into();
    assert_eq!(world.upload(&altered).await.code(), "hash_mismatch");
    let other = Form::chunk(1, 101);
    let answer = world.upload(&other).await;
    let body: Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!((answer.status.as_u16(), &body["core_error_code"]), (409, &json!("duplicate_chunk")));
    assert_eq!(world.core.stored(INCIDENT, STREAM, 1).unwrap(), form.file);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b3_in_flight_limits_come_before_the_core() {
    let limits = "[limits]\nin_flight_per_session = 2\nin_flight_per_client = 3";
    let world = World::with("", limits).await;
    world.core.shut_gate();
    let spawn = |form: Form| {
        let at = world.plain();
        tokio::spawn(async move { waystation_tests::http::send(at, form.request()).await.status.as_u16() })
    };
    let mut waiting = Vec::new();
    for index in 1..=2 {
        waiting.push(spawn(Form::chunk(index, 100)));
        crate::world::until("a commit waits", || world.core.calls("/v1/relay/commit") == index as usize).await;
    }
    let asked = world.core.seen().len();
    let same = world.upload(&Form::chunk(1, 100)).await;
    assert_eq!((same.status.as_u16(), same.code()), (409, "relay_chunk_in_progress".into()));
    let third = world.upload(&Form::chunk(3, 100)).await;
    assert_eq!((third.status.as_u16(), third.code()), (429, "relay_session_in_flight_limit_exceeded".into()));
    assert!(third.headers.contains_key("retry-after"));
    assert_eq!(world.core.seen().len(), asked);
    let elsewhere = Form::chunk(1, 100)
        .with("relay_session_id", &format!("{SESSION}-b"))
        .with("capability", &token_with("upload", |claims| claims["relay_session_id"] = format!("{SESSION}-b").into()));
    waiting.push(spawn(elsewhere.clone().with("chunk_index", "5")));
    crate::world::until("a third commit waits", || world.core.calls("/v1/relay/commit") == 3).await;
    let fourth = world.upload(&elsewhere).await;
    assert_eq!((fourth.status.as_u16(), fourth.code()), (429, "relay_client_in_flight_limit_exceeded".into()));
    world.core.open_gate();
    let statuses = futures_util::future::join_all(waiting).await;
    assert_eq!(statuses.into_iter().map(Result::unwrap).collect::<Vec<_>>()[..2], [201, 201]);
    world.until_nothing_is_kept().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b3_without_room_it_is_507() {
    let world = World::with("quota = \"4MiB\"\nmax_chunk = \"1MiB\"", "").await;
    world.core.shut_gate();
    let spawn = |index| {
        let (at, request) = (world.plain(), Form::chunk(index, 900_000).request());
        tokio::spawn(async move { waystation_tests::http::send(at, request).await })
    };
    // No commit is answered: what ends first was refused.
    let (first, _, others) = futures_util::future::select_all((1..=6).map(spawn)).await;
    let refused = first.unwrap();
    assert_eq!((refused.status.as_u16(), refused.code()), (507, "relay_temp_staging_quota_exceeded".into()));
    assert!(refused.headers.contains_key("retry-after"));
    world.core.open_gate();
    let answers = futures_util::future::join_all(others).await;
    assert!(answers.into_iter().any(|answer| answer.unwrap().status == 201));
    world.until_nothing_is_kept().await;
}
