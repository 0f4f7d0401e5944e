//! What goes over the line to the core, and how: exactly the contract's fields, few connections,
//! bounded memory, no redirect.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use http::Response;
use http_body_util::Full;
use waystation_devcore::session::Session;
use waystation_proto::media::{Priority, Profile};
use waystation_proto::{ChunkState, ContactState, Media, Variant};
use waystation_tests::{Chunk, World, http as client};

use crate::contact::Contact;
use crate::fake::{Before, FakeCore, Seen, json, until, yes};
use crate::rig::{fanout_jwt, jwt, proofline, proofline_fanout, told};

const FIELDS: [&str; 11] = [
    "relay_session_id",
    "capability",
    "incident_id",
    "stream_id",
    "chunk_index",
    "media_type",
    "started_at",
    "ended_at",
    "byte_size",
    "sha256_hex",
    "original_filename",
];

/// A chunk about which everything is said that can be said.
fn talkative(session: &Session, variant: Variant, index: u64) -> Chunk {
    let mut chunk = Chunk::sealed(session, variant, index, 3000);
    let offer = &mut chunk.offer;
    offer.name = "a name.enc".into();
    offer.role = Some(variant);
    offer.segment = Some("canary-segment".into());
    offer.sequence = Some(77_777);
    offer.source = Some("canary-source".into());
    offer.clock = Some("canary-clock".into());
    offer.profile = Some(Profile::AudioPriority);
    offer.priority = Some(Priority::NearLive);
    chunk
}

fn header_names(seen: &Seen) -> BTreeSet<&str> {
    seen.headers.keys().map(http::HeaderName::as_str).collect()
}

async fn parts(seen: &Seen) -> Vec<(String, Option<String>, bytes::Bytes)> {
    let boundary = multer::parse_boundary(seen.headers["content-type"].to_str().unwrap()).unwrap();
    let body = futures_util::stream::iter([Ok::<_, std::io::Error>(seen.body.clone())]);
    let mut multipart = multer::Multipart::new(body, boundary);
    let mut parts = Vec::new();
    while let Some(field) = multipart.next_field().await.unwrap() {
        let (name, file) = (field.name().unwrap().to_owned(), field.file_name().map(Into::into));
        parts.push((name, file, field.bytes().await.unwrap()));
    }
    parts
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_carries_exactly_the_fields_of_the_contract() {
    let (world, core) = (World::new().await, FakeCore::start(yes).await);
    let relay = Before::core(&world, &core.url(), "").await;
    let session = world.session().await;
    let chunk = talkative(&session, Variant::AudioPriority, 3);
    assert_eq!(client::upload(relay.plain, &chunk, jwt(&session), 60).await.status, 201);
    let seen = &core.seen()[0];
    let headers = ["content-length", "content-type", "host", "user-agent", "x-proofline-relay-service-token"];
    assert_eq!(header_names(seen), BTreeSet::from(headers));
    assert_eq!(seen.headers["x-proofline-relay-service-token"], world.core.service_token());
    assert_eq!(seen.headers["content-length"], seen.body.len().to_string());

    let parts = parts(seen).await;
    let names: Vec<&str> = parts.iter().map(|(name, ..)| name.as_str()).collect();
    assert_eq!(names, [&FIELDS[..], &["file"]].concat(), "these, once each, the file last");
    assert!(parts.iter().all(|(_, filename, _)| filename.is_none()), "a file name would be stored");
    let sha256 = chunk.offer.sha256.to_hex();
    let (index, size) = ("3", chunk.bytes.len().to_string());
    let values = [
        session.sid.as_deref().unwrap(),
        jwt(&session),
        &session.incident,
        &session.streams[0].stream,
        index,
        "audio",
        chunk.offer.started.as_str(),
        chunk.offer.ended.as_str(),
        &size,
        &sha256,
        "a name.enc",
    ];
    for ((name, _, got), wanted) in parts.iter().zip(values) {
        assert_eq!(got, wanted.as_bytes(), "{name}");
    }
    assert_eq!(parts[11].2, chunk.bytes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_preflight_and_an_authorisation_carry_exactly_the_fields_of_the_contract() {
    let (world, core) = (World::new().await, FakeCore::start(yes).await);
    let relay = Before::core(&world, &core.url(), "").await;
    let session = world.session().await;
    let chunk = talkative(&session, Variant::AudioPriority, 3);
    let mut nameless = talkative(&session, Variant::LivePreview, 1);
    nameless.offer.name = String::new();
    for (chunk, lane) in [(&chunk, Variant::AudioPriority), (&nameless, Variant::LivePreview)] {
        assert_eq!(client::upload(relay.plain, chunk, proofline(&session, lane), 60).await.status, 201);
    }
    Contact::watch(relay.plain, proofline_fanout(&session, Variant::AudioPriority)).await;
    let of = |path: &str| core.seen().into_iter().filter(|seen| seen.path == path).collect::<Vec<_>>();
    let fields = |seen: &Seen| {
        let body: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(&seen.body).unwrap();
        body.keys().cloned().collect::<BTreeSet<_>>()
    };
    let owned = |names: &[&str]| names.iter().map(ToString::to_string).collect::<BTreeSet<_>>();
    let preflights = of("/v1/relay/preflight");
    assert_eq!((fields(&preflights[0]), fields(&preflights[1])), (owned(&FIELDS), owned(&FIELDS[..10])));
    assert_eq!(fields(&of("/v1/relay/fanout-authorize")[0]), owned(&FIELDS[..4]));
    for seen in core.seen() {
        assert!(header_names(&seen).is_subset(&BTreeSet::from([
            "content-length",
            "content-type",
            "host",
            "user-agent",
            "x-proofline-relay-service-token",
        ])));
        assert!(!seen.body.windows(6).any(|part| part == b"canary"), "{} says too much", seen.path);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn receipts_are_passed_on_verbatim_unless_they_are_too_long() {
    let receipt = "any.Text-the_core~likes+/=";
    let says = move |seen: &Seen| {
        let long = String::from_utf8_lossy(&seen.body).contains("name=\"chunk_index\"\r\n\r\n2\r\n");
        let receipt = if long { "x".repeat(2049) } else { receipt.to_owned() };
        json(200, serde_json::json!({ "relay_commit": { "receipt": receipt } }).to_string())
    };
    let (world, core) = (World::new().await, FakeCore::start(says).await);
    let relay = Before::core(&world, &core.url(), "").await;
    let session = world.session().await;
    let contact = Contact::watch(relay.plain, fanout_jwt(&session)).await;
    for (index, wanted) in [(1, Some(receipt)), (2, None)] {
        let chunk = Chunk::sealed(&session, Variant::AudioPriority, index, 3000);
        let answer = client::upload(relay.plain, &chunk, jwt(&session), 60).await;
        assert_eq!(answer.native().chunk.unwrap().receipt.as_deref(), wanted);
        let told = contact.until(&chunk, ContactState::Confirmed).await;
        assert_eq!(told.last().unwrap().receipt.as_deref(), wanted);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redirect_is_not_followed_and_the_service_token_stays_at_home() {
    let (world, elsewhere) = (World::new().await, FakeCore::start(yes).await);
    let target = elsewhere.url();
    let says = move |seen: &Seen| {
        let location = format!("{target}{}", seen.path);
        Response::builder().status(307).header("location", location).body(Full::default()).unwrap()
    };
    let core = FakeCore::start(says).await;
    let relay = Before::core(&world, &core.url(), "").await;
    let session = world.session().await;
    let chunk = Chunk::sealed(&session, Variant::AudioPriority, 1, 3000);
    let said = told(&client::upload(relay.plain, &chunk, jwt(&session), 0).await);
    assert_eq!(said.code, "confirmation_pending");
    assert!(matches!(said.state, Some(ChunkState::Staged | ChunkState::Forwarding)), "{:?}", said.state);
    let foreign = "waystation_core_requests_total{route=\"commit\",outcome=\"foreign\"}";
    until("two tries", async || relay.metric(foreign).await >= 2.0).await;
    let preview = Chunk::sealed(&session, Variant::LivePreview, 1, 3000);
    let token = proofline(&session, Variant::LivePreview);
    assert_eq!(client::upload(relay.plain, &preview, token, 0).await.code(), "core_unavailable");
    assert_eq!(elsewhere.connections(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_connection_is_tried_until_there_is_a_core() {
    let world = World::new().await;
    let at = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let relay = Before::core(&world, &format!("http://{at}"), "").await;
    let session = world.session().await;
    let chunk = Chunk::sealed(&session, Variant::AudioPriority, 1, 3000);
    let said = told(&client::upload(relay.plain, &chunk, jwt(&session), 1).await);
    assert_eq!(said.code, "core_unavailable");
    // It is tried again about when the answer's second is over.
    assert!(matches!(said.state, Some(ChunkState::Staged | ChunkState::Forwarding)), "{:?}", said.state);
    let waits = "waystation_staged_chunks{class=\"audio\",reason=\"core_unreachable\"}";
    until("it is staged, and waits for the core", async || relay.metric(waits).await == 1.0).await;
    assert!(relay.metric("waystation_core_requests_total{route=\"commit\",outcome=\"not_sent\"}").await >= 1.0);
    let core = FakeCore::at(at, usize::MAX >> 3, yes).await;
    let state = async || client::upload(relay.plain, &chunk, jwt(&session), 1).await.status == 200;
    until("the confirmation", state).await;
    assert_eq!(core.seen().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_core_that_says_nothing_is_given_up_after_request_timeout() {
    let (world, core) = (World::new().await, FakeCore::stuck(yes).await);
    let relay = Before::core(&world, &core.url(), "request_timeout = \"1s\"").await;
    let session = world.session().await;
    let chunk = Chunk::sealed(&session, Variant::AudioPriority, 1, 3000);
    client::upload(relay.plain, &chunk, jwt(&session), 0).await;
    let lost = "waystation_core_requests_total{route=\"commit\",outcome=\"lost\"}";
    until("the end of the waiting", async || relay.metric(lost).await == 1.0).await;
    core.go_on();
    assert_eq!(client::upload(relay.plain, &chunk, jwt(&session), 60).await.status, 201);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_are_reused() {
    let (world, core) = (World::new().await, FakeCore::start(yes).await);
    let relay = Before::core(&world, &core.url(), "").await;
    let session = world.session_with(|request| request.max_chunks = Some(1000)).await;
    for index in 1..=30 {
        let chunk = Chunk::sealed(&session, Variant::AudioPriority, index, 3000);
        assert_eq!(client::upload(relay.plain, &chunk, jwt(&session), 60).await.status, 201);
    }
    assert!(core.connections() <= 2, "{} for 30 chunks, one after the other", core.connections());
    let many = (31..=230).map(|index| Chunk::sealed(&session, Variant::AudioPriority, index, 3000));
    let many: Vec<_> = many.collect();
    let answers = many.iter().map(|chunk| client::upload(relay.plain, chunk, jwt(&session), 60));
    for answer in futures_util::future::join_all(answers).await {
        assert_eq!(answer.status, 201, "{:?}", answer.body);
    }
    // 32 places; a connection that is opened while another comes back is kept or dropped.
    assert!(core.connections() < 100, "{} for 200 chunks at once", core.connections());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commits_under_way_are_bounded_and_masters_take_not_all_places() {
    for (variant, places) in [(Variant::EvidenceMaster, 24), (Variant::AudioPriority, 32)] {
        let (world, core) = (World::new().await, FakeCore::stuck(yes).await);
        let relay = Before::core(&world, &core.url(), "").await;
        let session = world.session().await;
        for index in 1..=40 {
            let chunk = Chunk::sealed(&session, variant, index, 300);
            client::upload(relay.plain, &chunk, jwt(&session), 0).await;
        }
        until("all places taken", async || core.begun() == places).await;
        let under_way = relay.metric("waystation_core_commits_under_way").await;
        assert_eq!((core.begun(), under_way), (places, places as f64));
        core.go_on();
        until("all of them", async || core.seen().len() == 40).await;
        until("the end", async || relay.metric("waystation_core_commits_under_way").await == 0.0).await;
    }
}

/// Resident bytes of this process, which holds the relay.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_chunks_stream_from_the_disk() {
    const SIZE: usize = 24 << 20;
    // It takes the heads and reads no body: what the relay has read ahead stays in its memory.
    let (world, core) = (World::new().await, FakeCore::stuck(yes).await);
    let relay = Before::core(&world, &core.url(), "").await;
    let session = world.session().await;
    let before = resident();
    for index in 1..=6 {
        let bytes = vec![index as u8; SIZE];
        let chunk = Chunk::of(&session.incident, &session.streams[2].stream, Media::Video, index, bytes);
        assert!(client::upload(relay.plain, &chunk, jwt(&session), 0).await.native().chunk.is_some());
    }
    until("six commits", async || core.begun() == 6).await;
    let grown = resident().saturating_sub(before);
    // Receiving them leaves some behind too; it is far from holding them.
    assert!(grown < 3 * SIZE as u64, "{grown} bytes more with six chunks of {SIZE} under way");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_anybody_could_give_confirms_nothing() {
    let asked = Arc::new(AtomicUsize::new(0));
    let says = {
        let asked = Arc::clone(&asked);
        move |_: &Seen| match asked.fetch_add(1, Ordering::SeqCst) {
            0 => json(200, "{}"),
            1 => json(200, r#"{"error":{}}"#),
            _ => json(409, r#"{"error":{"code":"duplicate_chunk","message":"duplicate"}}"#),
        }
    };
    let (world, core) = (World::new().await, FakeCore::start(says).await);
    let relay = Before::core(&world, &core.url(), "").await;
    let session = world.session().await;
    let chunk = Chunk::sealed(&session, Variant::AudioPriority, 1, 3000);
    let answer = client::upload(relay.plain, &chunk, jwt(&session), 60).await;
    assert_eq!(answer.code(), "chunk_unsettled", "a portal may have said it");
    assert_eq!(asked.load(Ordering::SeqCst), 3);
    assert_eq!(relay.metric("waystation_chunk_endings_total{class=\"audio\",ending=\"confirmed\"}").await, 0.0);
}
