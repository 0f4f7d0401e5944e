//! `POST /capture`: what a request's bodies have of their own. What they share with a WebSocket is
//! tested on every carrier, in the other files.

use std::sync::Arc;
use std::time::Duration;

use waystation_proto::frame::{self, Piece, kind};
use waystation_proto::{ChunkState, Variant};
use waystation_tests::http::put;
use waystation_tests::peer::{Capture, Carrier, Told, post};
use waystation_tests::wire::{Exchange, Http, Joint, ask, soon};
use waystation_tests::{Chunk, Setup, World};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_control_stream_lives_by_what_is_put_beside_it_and_by_its_own_signs() {
    let toml = "[limits]\nidle_timeout = \"6s\"\n".into();
    let world = Arc::new(World::with(Setup { toml, ..Setup::default() }).await);
    let session = world.session().await;
    let mut both = tokio::task::JoinSet::new();
    for (index, http) in (1..).step_by(2).zip([Http::H2, Http::H3]) {
        let chunks = [index, index + 1].map(|index| Chunk::sealed(&session, Variant::AudioPriority, index, 3_000));
        both.spawn(control_stream(Arc::clone(&world), http, chunks, session.upload_capability.clone().unwrap()));
    }
    while let Some(done) = both.join_next().await {
        done.unwrap();
    }
}

/// One and a half times as long as silence may be: first media alone, then `ALIVE` alone; then neither.
async fn control_stream(world: Arc<World>, http: Http, chunks: [Chunk; 2], capability: String) {
    let mut joint = Joint::open(&world, http).await;
    let mut capture = Capture::over(joint.ask(post()).await).await;
    capture.greet(&[&capability]).await;
    let request = put(&chunks[0], &capability, 20).header("content-length", chunks[0].offer.length);
    let mut upload = joint.ask(request.body(()).unwrap()).await;
    for at in 0..18 {
        upload.send(chunks[0].bytes.slice(at * 10..at * 10 + 10)).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    upload.send(chunks[0].bytes.slice(180..)).await;
    upload.end().await;
    assert_eq!(Told::from(upload.answer().await).state, Some(ChunkState::Confirmed), "{http:?}");
    capture.offer(1, &chunks[0]).await;
    let told = capture.told(1).await;
    assert_eq!(told.state, Some(ChunkState::Confirmed), "{http:?}: bytes beside it are a sign: {told:?}");
    for _ in 0..18 {
        capture.send(frame::encode(kind::ALIVE, b"{}")).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    assert_eq!(capture.bring(2, &chunks[1]).await.state, Some(ChunkState::Confirmed), "{http:?}");
    assert_eq!(capture.bye().await, ("body_stalled".into(), 0), "{http:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_byte_at_a_time_is_read_like_any_other_cut() {
    let world = World::new().await;
    let session = world.session().await;
    let capability = session.upload_capability.clone().unwrap();
    let hello = format!("{{\"protocol\":1,\"capabilities\":[\"{capability}\"]}}");
    for (index, http) in (1..).zip(Http::ALL) {
        let mut capture = Capture::raw(&world, Carrier::Post(http)).await;
        for byte in frame::encode(kind::HELLO, hello.as_bytes()).chunks(7) {
            capture.send(byte.to_vec().into()).await;
        }
        assert_eq!(capture.frame().await.unwrap().kind, kind::WELCOME, "{http:?}");
        let chunk = Chunk::sealed(&session, Variant::LivePreview, index, 100);
        capture.offer(1, &chunk).await;
        capture.go(1).await;
        for byte in Piece::encode(kind::CAPTURE_PIECE, 1, 0, &chunk.bytes).chunks(1) {
            capture.send(byte.to_vec().into()).await;
        }
        assert_eq!(capture.ended(1).await.state, Some(ChunkState::Confirmed), "{http:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_ends_ends_the_session_in_order() {
    let world = World::new().await;
    let session = world.session().await;
    let capability = session.upload_capability.clone().unwrap();
    for http in Http::ALL {
        let mut before = Capture::raw(&world, Carrier::Post(http)).await;
        before.end().await;
        assert!(before.frame().await.is_none());
        assert_eq!(before.close, Some(0), "{http:?}: the answer ends in order");
        let mut after = Capture::open(&world, Carrier::Post(http), &[&capability]).await;
        after.send(frame::encode(kind::END, b"{\"reason\":\"stopped\"}")).await;
        after.end().await;
        assert!(after.frame().await.is_none());
        assert_eq!(after.close, Some(0), "{http:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_frame_of_another_kind_is_not_waited_for() {
    let world = World::new().await;
    for http in Http::ALL {
        let mut capture = Capture::raw(&world, Carrier::Post(http)).await;
        // The head of a piece whose bytes never come.
        capture.send(Piece::head(kind::CAPTURE_PIECE, 1, 0, 200_000)).await;
        assert_eq!(capture.bye().await, ("protocol_error".into(), 0), "{http:?}");
    }
    let counted = "waystation_requests_total{route=\"capture\",status=\"2xx\",code=\"protocol_error\"}";
    world.until_metric(counted, |times| times == 3.0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_from_elsewhere_opens_none() {
    let world = World::new().await;
    for http in Http::ALL {
        let mut request = post();
        request.headers_mut().insert("origin", "https://elsewhere.example".parse().unwrap());
        let answer = ask(&world, http, request, "").await;
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (403, "origin_not_allowed"), "{http:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_drains_lets_chunks_end_and_says_so() {
    let mut world = World::new().await;
    let session = world.session().await;
    let capability = session.upload_capability.clone().unwrap();
    let mut open = Vec::new();
    for (index, http) in (1..).zip(Http::ALL) {
        let mut capture = Capture::open(&world, Carrier::Post(http), &[&capability]).await;
        let chunk = Chunk::sealed(&session, Variant::AudioPriority, index, 3_000);
        capture.offer(1, &chunk).await;
        capture.go(1).await;
        capture.piece(1, 0, &chunk.bytes[..1_000]).await;
        // May come, and nothing of it does.
        let ahead = Chunk::sealed(&session, Variant::LivePreview, index, 3_000);
        capture.offer(2, &ahead).await;
        capture.go(2).await;
        open.push((http, chunk, capture));
    }
    let (tx, rx) = tokio::sync::oneshot::channel();
    let draining = tokio::spawn(async move {
        let _ = tx.send(());
        world.stop_relay().await
    });
    rx.await.unwrap();
    for (http, chunk, mut capture) in open {
        assert_eq!(capture.ended(2).await.error.unwrap().code, "draining", "{http:?}");
        let more = Chunk::sealed(&session, Variant::LivePreview, 9, 3_000);
        let refused = async {
            let mut handle = 3;
            while capture.go_or_refused(handle, &more).await != "draining" {
                handle += 1;
            }
        };
        soon("the drain", refused).await;
        capture.piece(1, 1_000, &chunk.bytes[1_000..]).await;
        assert_eq!(capture.bye().await, ("draining".into(), 0), "{http:?}");
    }
    draining.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_resets_its_stream_is_gone() {
    let toml = "[limits]\nin_flight_per_session = 1\n".into();
    let world = World::with(Setup { toml, ..Setup::default() }).await;
    let session = world.session().await;
    let capability = session.upload_capability.clone().unwrap();
    for (index, http) in (1..).zip(Http::ALL) {
        let mut capture = Capture::over(Exchange::open(&world, http, post()).await).await;
        capture.greet(&[&capability]).await;
        let chunk = Chunk::sealed(&session, Variant::AudioPriority, index, 3_000);
        capture.offer(1, &chunk).await;
        capture.go(1).await;
        drop(capture);
        // Its place is free again: another connection gets it.
        let free = async {
            loop {
                let mut capture = Capture::open(&world, Carrier::Post(http), &[&capability]).await;
                if capture.bring(1, &chunk).await.state == Some(ChunkState::Confirmed) {
                    return;
                }
            }
        };
        soon("the place", free).await;
    }
}
