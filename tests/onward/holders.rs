//! Capabilities of several holders: each carries what it covers, and none harms what another
//! brought.

use std::time::Duration;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures_util::SinkExt as _;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use waystation::clock::Clock;
use waystation_devcore::session::Session;
use waystation_devcore::{Clock as CoreClock, Effect, Fault, FaultRoute};
use waystation_proto::frame::{self, kind};
use waystation_proto::{CAPTURE_SUBPROTOCOL, ChunkState, Code, Variant};
use waystation_tests::{Setup, World, http};

use crate::rig::{
    account, again, audio, endings, head_state, held, jwt, proofline, slow_world, tick_until, tick_until_code,
    tick_until_state, told,
};

/// An upload capability for all streams, with what `more` asks for.
async fn another(world: &World, session: &Session, more: Value) -> String {
    let streams: Vec<&str> = session.streams.iter().map(|stream| stream.stream.as_str()).collect();
    let mut ask = json!({ "use": "upload", "streams": streams });
    ask.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let path = format!("/v1/incidents/{}/groups/{}/capabilities", session.incident, session.group);
    account(world, &path, &ask).await["capability"].as_str().unwrap().to_owned()
}

/// Opens `/capture` with `first`.
async fn capture(world: &World, first: &str) -> WebSocketStream<TcpStream> {
    let mut request = format!("ws://{}/capture", world.plain()).into_client_request().unwrap();
    request.headers_mut().insert("sec-websocket-protocol", CAPTURE_SUBPROTOCOL.parse().unwrap());
    let tcp = TcpStream::connect(world.plain()).await.unwrap();
    let (mut socket, _) = tokio_tungstenite::client_async(request, tcp).await.unwrap();
    let hello = json!({ "protocol": 1, "capabilities": [first] });
    socket.send(Message::Binary(frame::encode(kind::HELLO, hello.to_string().as_bytes()))).await.unwrap();
    socket
}

/// Brings one more.
async fn bring(socket: &mut WebSocketStream<TcpStream>, token: &str) {
    let body = json!({ "capability": token });
    socket.send(Message::Binary(frame::encode(kind::CAPABILITY, body.to_string().as_bytes()))).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_longer_capability_that_does_not_cover_a_chunk_never_costs_it() {
    let world = slow_world(|_| ()).await;
    let session = world.session().await;
    world.core.faults().set_away(true);
    let chunks = [audio(&session, 1), audio(&session, 5)];
    for chunk in &chunks {
        http::upload(world.plain(), chunk, jwt(&session), 0).await;
    }
    tick_until_code(&world, &chunks[0], jwt(&session), Code::CoreUnavailable).await;
    // Others bring theirs meanwhile: one reaches fewer chunks, one is bound to a key that signed none.
    let stranger = Ed25519KeyPair::from_seed_unchecked(&[9; 32]).unwrap();
    world.core.faults().set_away(false);
    let few = another(&world, &session, json!({ "ttl_s": 3600, "max_chunks": 2 })).await;
    let key = URL_SAFE_NO_PAD.encode(stranger.public_key());
    let bound = another(&world, &session, json!({ "ttl_s": 7200, "client_key": key })).await;
    world.core.faults().set_away(true);
    let reads = "waystation_capability_reads_total{format=\"jwt\",result=\"verified\"}";
    let before = world.metric(reads).await;
    let mut socket = capture(&world, &few).await;
    bring(&mut socket, &bound).await;
    world.until_metric(reads, |count| count >= before + 2.0).await;
    assert_eq!(told(&again(&world, &chunks[0], &few).await).state.map(ChunkState::held), Some(true));
    world.core.faults().set_away(false);
    for chunk in &chunks {
        tick_until_state(&world, chunk, jwt(&session), ChunkState::Confirmed).await;
    }
    assert_eq!((endings(&world, "audio", "confirmed").await, endings(&world, "audio", "rejected").await), (2.0, 0.0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_holder_with_a_key_of_its_own_releases_what_it_offers_again_signed() {
    let world = World::new().await;
    let session = world.session().await;
    let mut chunk = audio(&session, 1);
    world.core.faults().add(Fault::refuse(FaultRoute::Commit, 401, "relay_capability_expired").times(1));
    http::upload(world.plain(), &chunk, jwt(&session), 0).await;
    let waits = "waystation_staged_chunks{class=\"audio\",reason=\"awaiting_capability\"}";
    world.until_metric(waits, |chunks| chunks == 1.0).await;

    let holder = Ed25519KeyPair::from_seed_unchecked(&[9; 32]).unwrap();
    let key = URL_SAFE_NO_PAD.encode(holder.public_key());
    let second = another(&world, &session, json!({ "client_key": key })).await;
    let mut socket = capture(&world, &second).await;
    bring(&mut socket, &second).await;
    assert_eq!(told(&again(&world, &chunk, &second).await).code, "signature_required");
    assert_eq!(held(&world, "audio", "awaiting_capability").await.0, 1.0, "the capability alone signs nothing");
    assert_eq!(world.core.stats().await.calls_of("commit"), 1);

    chunk.offer.sig = Some(holder.sign(&chunk.offer.signed_bytes()).as_ref().try_into().unwrap());
    // Released by the offer, it goes to the core while its body is read: so quick a core would make it 200.
    world.core.faults().add(Fault::new(FaultRoute::Commit, Effect::Delay { ms: 1000 }).times(1));
    assert_eq!(http::upload(world.plain(), &chunk, &second, 60).await.status, 201);
    assert_eq!(world.core.stats().await.stored_chunks, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_capability_frame_releases_a_chunk_where_the_core_must_vouch_for_it() {
    const START_MS: i64 = 1_800_000_000_000;
    let setup = Setup {
        clock: Clock::at_unix_ms(START_MS),
        core: Box::new(|options| options.clock = CoreClock::manual(START_MS)),
        capability: Some(String::new()),
        ..Setup::default()
    };
    let world = World::with(setup).await;
    let pass = |seconds| {
        world.core.clock().advance(Duration::from_secs(seconds));
        world.clock.advance(Duration::from_secs(seconds));
    };
    let session = world.session().await;
    let token = proofline(&session, Variant::AudioPriority);
    world.core.faults().add(Fault::new(FaultRoute::Commit, Effect::Cut));
    let chunk = audio(&session, 1);
    http::upload(world.plain(), &chunk, token, 0).await;
    world.core.faults().set_away(true);
    pass(600);
    let waits = async || held(&world, "audio", "awaiting_capability").await.0 == 1.0;
    tick_until(&world, Duration::from_secs(1), "awaiting_capability", waits).await;

    // The second holder says nothing but its capability, and the core is still away.
    let path = format!("/v1/incidents/{}/streams/{}/relay-session", session.incident, chunk.offer.stream.as_str());
    world.core.faults().set_away(false);
    let second = account(&world, &path, &json!({})).await;
    world.core.faults().set_away(true);
    let second = second["relay_session"]["capability"].as_str().unwrap();
    let _socket = capture(&world, second).await;
    world.core.faults().clear();
    world.core.faults().set_away(false);
    let confirmed = async || endings(&world, "audio", "confirmed").await == 1.0;
    tick_until(&world, Duration::from_millis(500), "the confirmation", confirmed).await;
    assert_eq!(head_state(&world, &chunk, second).await, "confirmed");
    let stats = world.core.stats().await;
    assert_eq!((stats.stored_chunks, world.metric("waystation_released_chunks_total").await), (1, 1.0));
}
