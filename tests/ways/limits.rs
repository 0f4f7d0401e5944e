//! Every limit is reached, says its code, is counted, and concerns nobody else.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use waystation_proto::frame::{self, Piece, kind};
use waystation_proto::{ChunkState, Variant};
use waystation_tests::contact::{Contact, Eye, get_watch};
use waystation_tests::http::put;
use waystation_tests::peer::{Capture, Carrier, Told, Upload, Way, bring, head, post};
use waystation_tests::wire::{Exchange, Http, Ws, ask, quic, soon, tls};
use waystation_tests::{Chunk, Setup, World};

async fn world(toml: &str) -> World {
    World::with(Setup { toml: toml.into(), ..Setup::default() }).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beyond_connections_the_relay_says_that_it_is_full() {
    let world = world("[limits]\nconnections = 2\n").await;
    let session = world.session().await;
    let capability = session.upload_capability.clone().unwrap();
    let chunk = Chunk::sealed(&session, Variant::AudioPriority, 1, 3_000);
    let (mut upload, _) = Upload::begin(&world, Way::Ws(Ws::H1), &chunk, &capability).await;
    let watching = Contact::open(&world, Eye::Get(Http::H3), session.fanout_capability.as_ref().unwrap()).await;
    for http in Http::ALL {
        let full = ask(&world, http, head(&chunk, &capability), "").await;
        assert_eq!(full.status, 503, "{http:?}");
        let told =
            Told::from(ask(&world, http, put(&chunk, &capability, 1).body(()).unwrap(), chunk.bytes.clone()).await);
        assert_eq!((told.status, told.code.as_str()), (503, "too_many_connections"), "{http:?}");
        assert_eq!(ask(&world, http, post(), "").await.code(), "too_many_connections", "{http:?}");
    }
    assert!(world.metric("waystation_connections_refused_total{reason=\"full\"}").await >= 6.0);
    // Who was in goes on, and a place that is left is free again.
    upload.send(chunk.bytes.clone()).await;
    assert_eq!(upload.told().await.state, Some(ChunkState::Confirmed));
    drop(watching);
    let free = async {
        while ask(&world, Http::H1, head(&chunk, &capability), "").await.status == 503 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    soon("a free place", free).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beyond_handshakes_per_second_no_handshake_begins() {
    let world = world("[limits]\nhandshakes_per_second = 1\n").await;
    let mut refused = (false, false);
    let tries = async {
        while refused != (true, true) {
            refused.0 |= tls(&world, b"http/1.1").await.is_err();
            refused.1 |= matches!(quic(&world).await, Err(quinn::ConnectionError::ConnectionClosed(_)));
        }
    };
    soon("a refusal", tries).await;
    assert!(world.metric("waystation_connections_refused_total{reason=\"handshake_rate\"}").await >= 2.0);
    let again = async {
        while tls(&world, b"h2").await.is_err() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    soon("a later handshake", again).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unverified_requests_of_an_address_are_limited_and_verified_ones_are_not() {
    let world = world("[limits]\nrequests_per_client = 3\n").await;
    let session = world.session().await;
    let capability = session.upload_capability.clone().unwrap();
    let chunk = Chunk::sealed(&session, Variant::AudioPriority, 1, 3_000);
    for _ in 0..3 {
        assert_eq!(bring(&world, Way::Http(Http::H1), &chunk, "a.b.c").await.code, "capability_invalid");
    }
    for http in Http::ALL {
        let request = put(&chunk, "a.b.c", 1).header("content-length", chunk.offer.length).body(()).unwrap();
        let answer = ask(&world, http, request, chunk.bytes.clone()).await;
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (429, "too_many_requests"), "{http:?}");
        assert!(answer.headers.contains_key("retry-after"));
    }
    for carrier in Carrier::ALL {
        let mut capture = Capture::raw(&world, carrier).await;
        capture.hello(&["a.b.c"]).await;
        assert_eq!(capture.bye().await, ("too_many_requests".into(), carrier.close(4429)), "{carrier:?}");
    }
    let counted = "waystation_requests_total{route=\"chunk_put\",status=\"4xx\",code=\"too_many_requests\"}";
    world.until_metric(counted, |times| times == 3.0).await;
    assert_eq!(bring(&world, Way::Http(Http::H2), &chunk, &capability).await.status, 201);
}

/// One upload is open; a second must hear `code`, and is taken when the first is done.
async fn second_is_refused(toml: &str, other_session: bool, status: u16, code: &str) {
    let world = world(toml).await;
    let first = world.session().await;
    let second = if other_session { world.session().await } else { first.clone() };
    let chunk = Chunk::sealed(&first, Variant::AudioPriority, 1, 3_000);
    let other = Chunk::sealed(&second, Variant::AudioPriority, 2, 3_000);
    let (open, capability) = (first.upload_capability.clone().unwrap(), second.upload_capability.clone().unwrap());
    let (mut upload, _) = Upload::begin(&world, Way::Ws(Ws::H1), &chunk, &open).await;
    for way in Way::ALL {
        let told = bring(&world, way, &other, &capability).await;
        assert_eq!(told.code, code, "{way:?}");
        assert!(told.status == 0 || told.status == status, "{told:?}");
    }
    let counted = format!("waystation_offers_refused_total{{code=\"{code}\"}}");
    world.until_metric(&counted, |times| times == Way::ALL.len() as f64).await;
    upload.send(chunk.bytes.clone()).await;
    assert_eq!(upload.told().await.state, Some(ChunkState::Confirmed));
    assert_eq!(bring(&world, Way::Http(Http::H3), &other, &capability).await.status, 201);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn so_many_chunks_are_received_at_once_in_all() {
    second_is_refused("[limits]\nreceiving_total = 1\n", true, 503, "receiving_full").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn so_many_chunks_are_received_at_once_of_one_session() {
    second_is_refused("[limits]\nin_flight_per_session = 1\n", false, 429, "in_flight_per_session").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn so_many_unverified_chunks_are_received_at_once_from_one_address() {
    let toml = "[limits]\nin_flight_per_client = 1\n".into();
    let world = World::with(Setup { toml, ..Setup::default() }).await;
    let (first, second) = (world.session().await, world.session().await);
    let token = |session: &waystation_devcore::session::Session| session.streams[0].proofline.clone().unwrap().upload;
    let chunk = Chunk::sealed(&first, Variant::AudioPriority, 1, 3_000);
    let other = Chunk::sealed(&second, Variant::AudioPriority, 1, 3_000);
    let (mut upload, _) = Upload::begin(&world, Way::Ws(Ws::H1), &chunk, &token(&first)).await;
    for way in Way::ALL {
        let told = bring(&world, way, &other, &token(&second)).await;
        assert_eq!(told.code, "in_flight_per_client", "{way:?}");
        assert!(matches!(told.status, 0 | 429));
    }
    let counted = "waystation_requests_total{route=\"chunk_put\",status=\"4xx\",code=\"in_flight_per_client\"}";
    world.until_metric(counted, |times| times == 3.0).await;
    // An address is no limit for a capability that verifies.
    let verified = Chunk::sealed(&second, Variant::EvidenceMaster, 1, 3_000);
    let told = bring(&world, Way::Http(Http::H1), &verified, second.upload_capability.as_ref().unwrap()).await;
    assert_eq!(told.status, 201);
    upload.send(chunk.bytes.clone()).await;
    assert_eq!(upload.told().await.state, Some(ChunkState::Confirmed));
    assert_eq!(bring(&world, Way::Http(Http::H3), &other, &token(&second)).await.status, 201);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn so_many_contacts_watch_a_group() {
    let world = world("[limits]\ncontacts_per_group = 1\n").await;
    let (session, other) = (world.session().await, world.session().await);
    let fanout = session.fanout_capability.clone().unwrap();
    let first = Contact::open(&world, Eye::Ws(Ws::H2), &fanout).await;
    for http in Http::ALL {
        let refused = ask(&world, http, get_watch(&fanout, ""), "").await;
        assert_eq!((refused.status.as_u16(), refused.code().as_str()), (429, "too_many_contacts"));
    }
    for ws in Ws::ALL {
        let mut refused = Contact::begin(&world, Eye::Ws(ws), &fanout, None).await;
        assert_eq!(refused.ending().await, "too_many_contacts");
    }
    let counted = "waystation_requests_total{route=\"watch\",status=\"4xx\",code=\"too_many_contacts\"}";
    world.until_metric(counted, |times| times == 3.0).await;
    Contact::open(&world, Eye::Get(Http::H1), other.fanout_capability.as_ref().unwrap()).await;
    drop(first);
    let free = async {
        loop {
            let mut exchange = Exchange::open(&world, Http::H2, get_watch(&fanout, "")).await;
            exchange.end().await;
            if exchange.head().await.status == 200 {
                return;
            }
        }
    };
    soon("a free seat", free).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_that_does_not_come_and_an_idle_connection_are_not_waited_for() {
    let world = world("[limits]\nheader_timeout = \"1s\"\nidle_timeout = \"2s\"\n").await;
    let mut half = tls(&world, b"http/1.1").await.unwrap();
    half.write_all(b"PUT /chunks/AAAAAAAAAAAAAAAAAAAAAA HTTP/1.1\r\nHost: x\r\nWaystation-").await.unwrap();
    let mut silent = tls(&world, b"h2").await.unwrap();
    let mut bytes = Vec::new();
    let _ = soon("the end", half.read_to_end(&mut bytes)).await;
    let said = String::from_utf8(std::mem::take(&mut bytes)).unwrap();
    assert!(said.starts_with("HTTP/1.1 408 ") && said.contains("\"header_timeout\""), "{said}");
    let _ = soon("the end", silent.read_to_end(&mut bytes)).await;
    world.until_metric("waystation_connections_refused_total{reason=\"header_timeout\"}", |times| times == 2.0).await;

    let mut idle = tls(&world, b"http/1.1").await.unwrap();
    idle.write_all(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ = soon("the end", idle.read_to_end(&mut answer)).await;
    assert!(answer.starts_with(b"HTTP/1.1 200"));
    world.until_metric("waystation_connections_refused_total{reason=\"idle\"}", |times| times == 1.0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_sender_that_lives_is_never_cut() {
    let world = std::sync::Arc::new(world("[limits]\nheader_timeout = \"2s\"\nidle_timeout = \"3s\"\n").await);
    let session = world.session().await;
    let mut all = tokio::task::JoinSet::new();
    for (index, way) in (1..).zip(Way::ALL) {
        let chunk = Chunk::sealed(&session, Variant::AudioPriority, index, 3_000);
        let (world, capability) = (world.clone(), session.upload_capability.clone().unwrap());
        all.spawn(async move {
            let (mut upload, _) = Upload::begin(&world, way, &chunk, &capability).await;
            // Three times as long as a dead one would be given.
            for piece in 0..18 {
                upload.send(chunk.bytes.slice(piece * 4..piece * 4 + 4)).await;
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
            upload.send(chunk.bytes.slice(72..)).await;
            (way, upload.told().await)
        });
    }
    while let Some(told) = all.join_next().await {
        let (way, told) = told.unwrap();
        assert_eq!(told.state, Some(ChunkState::Confirmed), "{way:?} {told:?}");
    }
}

/// One binary message as it is on the wire, masked with zeros.
fn message(payload: &[u8]) -> Vec<u8> {
    let mut wire = vec![0x82, 0x80 | 127];
    wire.extend_from_slice(&(payload.len() as u64).to_be_bytes());
    wire.extend_from_slice(&[0; 4]);
    wire.extend_from_slice(payload);
    wire
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_takes_longer_than_the_limit_is_no_silence() {
    let world = std::sync::Arc::new(world("[limits]\nidle_timeout = \"3s\"\n").await);
    let session = world.session().await;
    let mut all = tokio::task::JoinSet::new();
    let cases = Carrier::ALL.into_iter().flat_map(|carrier| [(carrier, false), (carrier, true)]);
    for (index, (carrier, dies)) in (1..).zip(cases) {
        let chunk = Chunk::sealed(&session, Variant::AudioPriority, index, 70 * 1024);
        let (world, capability) = (world.clone(), session.upload_capability.clone().unwrap());
        all.spawn(async move {
            let mut capture = Capture::open(&world, carrier, &[&capability]).await;
            capture.offer(1, &chunk).await;
            assert_eq!(capture.go(1).await.offset, 0);
            let piece = Piece::encode(kind::CAPTURE_PIECE, 1, 0, &chunk.bytes);
            let wire = if matches!(carrier, Carrier::Ws(_)) { message(&piece) } else { piece.to_vec() };
            // All of it takes three times as long as silence may; no pong can come in between.
            for (at, part) in wire.chunks(wire.len().div_ceil(18)).enumerate() {
                if dies && at == 9 {
                    break;
                }
                capture.bytes(part).await;
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
            if dies {
                let said = String::from_utf8_lossy(&capture.rest().await).into_owned();
                assert!(said.contains(r#"{"reason":"body_stalled""#), "{carrier:?}: {said:?}");
            } else {
                assert_eq!(capture.ended(1).await.state, Some(ChunkState::Confirmed), "{carrier:?}");
            }
        });
    }
    while let Some(done) = all.join_next().await {
        done.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chunk_that_stands_still_is_named_and_goes_on_where_it_was() {
    let world = world("[limits]\nidle_timeout = \"2s\"\n").await;
    let session = world.session().await;
    let capability = session.upload_capability.clone().unwrap();
    let chunk = Chunk::sealed(&session, Variant::AudioPriority, 1, 3_000);
    let mut capture = Capture::open(&world, Ws::H1, &[&capability]).await;
    capture.offer(1, &chunk).await;
    capture.go(1).await;
    capture.piece(1, 0, &chunk.bytes[..1_000]).await;
    let stalled = async {
        loop {
            // The client lives, and brings nothing of this chunk.
            capture.send(frame::encode(kind::ALIVE, b"{}")).await;
            if let Ok(state) = tokio::time::timeout(Duration::from_millis(200), capture.state(1)).await {
                return state;
            }
        }
    };
    let state = soon("a word on the chunk", stalled).await;
    assert_eq!(state.error.unwrap().code, "body_stalled");
    assert_eq!((state.chunk_ref, state.state), (Some(chunk.chunk_ref()), Some(ChunkState::Receiving)));
    capture.offer(2, &chunk).await;
    assert_eq!(capture.go(2).await.offset, 1_000);
    capture.piece(2, 1_000, &chunk.bytes[1_000..]).await;
    assert_eq!(capture.ended(2).await.state, Some(ChunkState::Confirmed));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_connection_has_so_many_offers_open() {
    const MOST: u64 = 1024;
    // The core limits a stream's chunks, so that it takes several recordings.
    const OF_A_STREAM: u64 = 64;
    let world = world("[limits]\nreceiving_total = 2000\nin_flight_per_session = 2000\n").await;
    let lanes = [Variant::AudioPriority, Variant::LivePreview, Variant::LocationContext, Variant::EvidenceMaster];
    let mut sessions = Vec::new();
    for _ in 0..=MOST / OF_A_STREAM / 4 {
        sessions.push(world.session().await);
    }
    let capabilities: Vec<&str> =
        sessions.iter().map(|session| session.upload_capability.as_deref().unwrap()).collect();
    let mut capture = Capture::open(&world, Ws::H1, &capabilities).await;
    let mut first = None;
    for handle in 0..MOST {
        let session = &sessions[(handle / OF_A_STREAM / 4) as usize];
        let chunk = Chunk::sealed(session, lanes[(handle % 4) as usize], handle / 4 % OF_A_STREAM + 1, 100);
        capture.offer(handle, &chunk).await;
        capture.go(handle).await;
        first.get_or_insert(chunk);
    }
    let more = Chunk::sealed(sessions.last().unwrap(), Variant::AudioPriority, 1, 100);
    capture.offer(MOST, &more).await;
    let refused = capture.state(MOST).await;
    let error = refused.error.unwrap();
    assert_eq!((error.code.as_str(), refused.state), ("too_many_offers", None));
    assert!(refused.retry_after_s.is_some());
    world.until_metric("waystation_capture_refused_total{code=\"too_many_offers\"}", |times| times == 1.0).await;
    // Those that are open go on, and one that ended makes room.
    let first = first.unwrap();
    capture.piece(0, 0, &first.bytes).await;
    assert_eq!(capture.ended(0).await.state, Some(ChunkState::Confirmed));
    let taken = async {
        let mut handle = MOST + 1;
        loop {
            capture.offer(handle, &more).await;
            let frame = capture.frame().await.expect("an answer");
            if frame.kind == kind::SEND {
                return;
            }
            handle += 1;
        }
    };
    soon("room for one more", taken).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chunk_over_the_limit_is_refused_and_its_sender_hears_it() {
    let staging = "max_chunk = \"1MiB\"\n".into();
    let world = World::with(Setup { staging, ..Setup::default() }).await;
    let session = world.session().await;
    let capability = session.upload_capability.clone().unwrap();
    let large = Chunk::sealed(&session, Variant::EvidenceMaster, 1, 4 << 20);
    for way in Way::ALL {
        let told = bring(&world, way, &large, &capability).await;
        assert_eq!(told.code, "chunk_too_large", "{way:?}");
        assert!(matches!(told.status, 0 | 413));
    }
    let counted = "waystation_requests_total{route=\"chunk_put\",status=\"4xx\",code=\"chunk_too_large\"}";
    world.until_metric(counted, |times| times == 3.0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_room_takes_no_master_and_still_takes_sound() {
    let staging = "quota = \"4MiB\"\nmax_chunk = \"1MiB\"\n".into();
    let world = World::with(Setup { staging, ..Setup::default() }).await;
    let (one, fresh) = (world.session().await, world.session().await);
    let mut others = Vec::new();
    for _ in 0..8 {
        others.push(world.session().await);
    }
    world.core.faults().set_away(true);
    let mut codes = Vec::new();
    // One session alone, then others.
    for index in 1..=20 {
        let alone = !codes.contains(&"session_quota".to_owned());
        let session = if alone { one.clone() } else { others.pop().unwrap() };
        let chunk = Chunk::sealed(&session, Variant::EvidenceMaster, index, 250_000);
        let request = put(&chunk, session.upload_capability.as_ref().unwrap(), 0).body(()).unwrap();
        let told = Told::from(ask(&world, Http::ALL[index as usize % 3], request, chunk.bytes.clone()).await);
        assert!(told.status == 503 || told.status == 507, "{told:?}");
        codes.push(told.code);
        if codes.last().is_some_and(|code| code == "staging_full") {
            break;
        }
    }
    assert_eq!(codes.last().unwrap(), "staging_full");
    assert!(codes.contains(&"session_quota".to_owned()), "{codes:?}");
    for code in ["staging_full", "session_quota"] {
        assert!(world.metric(&format!("waystation_offers_refused_total{{code=\"{code}\"}}")).await >= 1.0);
    }
    let sound = Chunk::sealed(&fresh, Variant::AudioPriority, 1, 100_000);
    let request = put(&sound, fresh.upload_capability.as_ref().unwrap(), 0).body(()).unwrap();
    let told = Told::from(ask(&world, Http::H2, request, sound.bytes.clone()).await);
    assert!(matches!(told.state, Some(ChunkState::Staged | ChunkState::Forwarding)), "{told:?}");
    world.core.faults().set_away(false);
    world.until_metric("waystation_staging_used_bytes", |bytes| bytes == 0.0).await;
}
