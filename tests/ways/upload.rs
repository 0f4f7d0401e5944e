//! A chunk's way in, alike on every transport.

use http::Method;
use waystation_client::receipt::Jwks;
use waystation_devcore::{Effect, Fault, FaultRoute};
use waystation_proto::message::CaptureState;
use waystation_proto::{ChunkState, Variant};
use waystation_tests::peer::{Capture, Told, Upload, Way, bring, head, request, until_offset};
use waystation_tests::wire::{Exchange, Http, Ws, ask};
use waystation_tests::{Chunk, World};

/// The core's public keys, got from the core and not from the relay.
async fn keys(world: &World) -> Jwks {
    let (_, json) = waystation_tests::http::get(world.core.addr(), "/v1/relay/jwks").await;
    Jwks::parse(json.as_bytes()).unwrap()
}

fn confirmed(keys: &Jwks, chunk: &Chunk, told: &Told) {
    assert_eq!((told.state, told.code.as_str()), (Some(ChunkState::Confirmed), ""), "{told:?}");
    let receipt = keys.verify(told.receipt.as_deref().unwrap()).unwrap();
    assert_eq!((receipt.index, receipt.length), (chunk.offer.index, chunk.offer.length));
    assert_eq!((&receipt.stream, receipt.sha256), (&chunk.offer.stream, chunk.offer.sha256));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_way_ends_confirmed_and_a_repeat_needs_no_body() {
    let world = World::new().await;
    let session = world.session().await;
    let capability = session.upload_capability.clone().unwrap();
    let keys = keys(&world).await;
    for (index, way) in (1..).zip(Way::ALL) {
        let chunk = Chunk::sealed(&session, Variant::LivePreview, index, 300_000);
        let told = bring(&world, way, &chunk, &capability).await;
        confirmed(&keys, &chunk, &told);
        assert!(matches!(told.status, 0 | 201), "{way:?}: {told:?}");
        for again in Way::ALL {
            let told = match (again, again.carrier()) {
                (Way::Http(http), _) => {
                    // Not one byte of the body is sent, and it is not ended.
                    let request = waystation_tests::http::put(&chunk, &capability, 20)
                        .header("content-length", chunk.offer.length)
                        .body(())
                        .unwrap();
                    let streaming = Exchange::open(&world, http, request).await.head().await;
                    assert_eq!(streaming.status, 200, "{way:?} then {again:?}");
                    continue;
                }
                (_, carrier) => {
                    let mut capture = Capture::open(&world, carrier.unwrap(), &[&capability]).await;
                    capture.offer(9, &chunk).await;
                    Told::from(capture.state(9).await)
                }
            };
            confirmed(&keys, &chunk, &told);
        }
    }
    assert_eq!(world.core.stats().await.stored_chunks, Way::ALL.len() as u64);
    assert_eq!(world.core.stats().await.calls_of("commit"), Way::ALL.len() as u64, "a repeat costs the core nothing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_came_before_a_break_is_gone_on_with_over_any_other_way() {
    let world = World::new().await;
    let session = world.session().await;
    let capability = session.upload_capability.clone().unwrap();
    let keys = keys(&world).await;
    let total = Way::ALL.len();
    for (turn, from) in Way::ALL.into_iter().enumerate() {
        let mut chunk = Chunk::sealed(&session, Variant::EvidenceMaster, turn as u64 + 1, 700_000);
        let part = chunk.bytes.len() / 3;
        let mut came = 0;
        // Three ways for one chunk: the first two break off in its middle.
        for (step, way) in [from, Way::ALL[(turn + 1) % total]].into_iter().enumerate() {
            chunk.offer.attempt = step as u64 + 1;
            let (mut upload, offset) = Upload::begin(&world, way, &chunk, &capability).await;
            assert_eq!(offset, came as u64, "{way:?} after {from:?}");
            upload.send(chunk.bytes.slice(came..came + part)).await;
            came += part;
            until_offset(&world, &chunk, &capability, came).await;
            upload.cut();
        }
        chunk.offer.attempt = 3;
        let way = Way::ALL[(turn + 2) % total];
        let (mut upload, offset) = Upload::begin(&world, way, &chunk, &capability).await;
        assert_eq!(offset, came as u64, "{way:?} in the end");
        upload.send(chunk.bytes.slice(came..)).await;
        confirmed(&keys, &chunk, &upload.told().await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn head_and_delete_say_the_same_on_every_version() {
    let world = World::new().await;
    let (session, other) = (world.session().await, world.session().await);
    let capability = session.upload_capability.clone().unwrap();
    for (index, http) in (1..).zip(Http::ALL) {
        let chunk = Chunk::sealed(&session, Variant::EvidenceMaster, index, 200_000);
        let foreign = ask(&world, http, head(&chunk, &other.upload_capability.clone().unwrap()), "").await;
        assert_eq!(foreign.status, 404);
        let (mut upload, _) = Upload::begin(&world, Way::Http(http), &chunk, &capability).await;
        upload.send(chunk.bytes.slice(..50_000)).await;
        until_offset(&world, &chunk, &capability, 50_000).await;
        let stands = ask(&world, http, head(&chunk, &capability), "").await;
        assert_eq!(
            (&stands.headers["waystation-state"], &stands.headers["upload-complete"]),
            (&"receiving".parse().unwrap(), &"?0".parse().unwrap())
        );
        let foreign = ask(&world, http, head(&chunk, &other.upload_capability.clone().unwrap()), "").await;
        assert_eq!(foreign.status, 404, "a chunk that is there looks like one that is not");
        let foreign =
            ask(&world, http, request(Method::DELETE, &chunk, &other.upload_capability.clone().unwrap()), "").await;
        assert_eq!((foreign.status.as_u16(), foreign.code().as_str()), (404, "not_found"));

        let gone = ask(&world, http, request(Method::DELETE, &chunk, &capability), "").await;
        assert_eq!(gone.status, 204);
        assert_eq!(ask(&world, http, head(&chunk, &capability), "").await.status, 404);
        upload.send(chunk.bytes.slice(50_000..)).await;
        assert_eq!(upload.told().await.code, "attempt_superseded");

        assert_eq!(bring(&world, Way::Http(http), &chunk, &capability).await.status, 201);
        let kept = ask(&world, http, request(Method::DELETE, &chunk, &capability), "").await;
        assert_eq!((kept.status.as_u16(), kept.code().as_str()), (409, "chunk_staged"));
        let stands = ask(&world, http, head(&chunk, &capability), "").await;
        assert_eq!(stands.headers["upload-complete"], "?1");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_staged_on_nothing_is_deleted_and_the_wait_ends_with_the_state_of_its_end() {
    let world = World::new().await;
    let session = world.session().await;
    let capability = session.upload_capability.clone().unwrap();
    world.core.faults().set_away(true);
    let chunk = Chunk::sealed(&session, Variant::AudioPriority, 1, 5000);
    let mut capture = Capture::open(&world, Ws::H1, &[&capability]).await;
    capture.offer(1, &chunk).await;
    capture.go(1).await;
    capture.piece(1, 0, &chunk.bytes).await;
    let staged: CaptureState = capture.state(1).await;
    assert!(matches!(staged.state, Some(ChunkState::Staged | ChunkState::Forwarding)), "{staged:?}");
    let kept = ask(&world, Http::H2, request(Method::DELETE, &chunk, &capability), "").await;
    assert_eq!((kept.status.as_u16(), kept.code().as_str()), (409, "chunk_staged"));

    // The core is seen to be away only while the wait goes on.
    let asked = |wait| {
        let request =
            waystation_tests::http::put(&chunk, &capability, wait).header("content-length", chunk.offer.length);
        Exchange::open(&world, Http::H3, request.body(()).unwrap())
    };
    let answer = asked(3).await.answer().await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (503, "core_unavailable"));
    assert_eq!(answer.headers["preference-applied"], "wait=3");
    assert!(answer.headers.contains_key("retry-after"));
    world.core.faults().set_away(false);
    let answer = asked(25).await.answer().await;
    assert_eq!(answer.status, 201, "{:?}", answer.body);
    assert_eq!(capture.ended(1).await.state, Some(ChunkState::Confirmed));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_whole_body_without_its_formal_end_is_staged_at_once() {
    let world = World::new().await;
    let session = world.session().await;
    let capability = session.upload_capability.clone().unwrap();
    for (index, http) in (1..).zip(Http::ALL) {
        let chunk = Chunk::sealed(&session, Variant::AudioPriority, index, 5000);
        let request = waystation_tests::http::put(&chunk, &capability, 20);
        let request = match http {
            Http::H1 => request.header("transfer-encoding", "chunked"),
            _ => request.header("content-length", chunk.offer.length),
        };
        let mut exchange = Exchange::open(&world, http, request.body(()).unwrap()).await;
        exchange.send(chunk.bytes.clone()).await;
        // Neither the last chunk, nor END_STREAM, nor FIN.
        assert_eq!(exchange.head().await.status, 201, "{http:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_capability_that_the_core_refused_costs_one_commit_and_another_releases() {
    let world = World::new().await;
    let session = world.session_with(|request| request.ttl_s = Some(120)).await;
    let capability = session.upload_capability.clone().unwrap();
    let expired = Effect::Refuse { status: 401, code: "relay_capability_expired".into(), retry_after_s: None };
    world.core.faults().add(Fault::new(FaultRoute::Commit, expired));
    let chunk = Chunk::sealed(&session, Variant::AudioPriority, 1, 5000);
    for wait in [5, 1, 1, 1] {
        let request = waystation_tests::http::put(&chunk, &capability, wait).body(()).unwrap();
        let told = Told::from(ask(&world, Http::H2, request, chunk.bytes.clone()).await);
        assert_eq!((told.status, told.code.as_str()), (503, "awaiting_capability"));
    }
    assert_eq!(world.core.stats().await.calls_of("commit"), 1);
    world.core.faults().clear();
    assert_eq!(world.metric("waystation_released_chunks_total").await, 0.0);

    // One that runs out sooner does, without the chunk's bytes.
    let path = format!("/v1/incidents/{}/groups/{}/capabilities", session.incident, session.group);
    let ask_for = serde_json::json!({"use": "upload", "streams": [chunk.offer.stream], "ttl_s": 60});
    let minting = http::Request::post(path)
        .header("host", "core")
        .header("authorization", format!("Bearer {}", world.core.account_token()))
        .header("content-type", "application/json")
        .body(http_body_util::Full::from(ask_for.to_string()))
        .unwrap();
    let minted = waystation_tests::http::send(world.core.addr(), minting).await;
    assert_eq!(minted.status, 201, "{:?}", minted.body);
    let minted: serde_json::Value = serde_json::from_slice(&minted.body).unwrap();
    let other = minted["capability"].as_str().unwrap();
    let mut capture = Capture::open(&world, Ws::H2, &[other]).await;
    capture.offer(1, &chunk).await;
    assert_eq!(capture.ended(1).await.state, Some(ChunkState::Confirmed));
    assert_eq!(world.metric("waystation_released_chunks_total").await, 1.0);
}
