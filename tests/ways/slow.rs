//! Contacts whose link takes less than there is.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use waystation::clock::Clock;
use waystation_devcore::session::Session;
use waystation_proto::frame::{self, kind};
use waystation_proto::message::{Ending, StartAt, StartWord, Watch};
use waystation_proto::{PROTOCOL, Variant, WATCH_SUBPROTOCOL};
use waystation_tests::contact::{Contact, Eye};
use waystation_tests::peer::{Way, bring};
use waystation_tests::wire::{Ws, soon, tls_config};
use waystation_tests::{Chunk, Setup, World};

use crate::capability::{claims, revoke};

/// What the contact's kernel takes before it reads, in bytes.
const BUFFER: u32 = 16 * 1024;
const CHUNKS: u64 = 24;
const LENGTH: usize = 128 * 1024;

/// A contact that watches from the oldest chunk on, and has read nothing yet.
async fn open(world: &World, capability: &str) -> WebSocketStream<TlsStream<TcpStream>> {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(BUFFER).unwrap();
    let tcp = socket.connect(world.public()).await.unwrap();
    let tls = tokio_rustls::TlsConnector::from(Arc::new(tls_config(world, b"http/1.1")));
    let tls = tls.connect("localhost".try_into().unwrap(), tcp).await.unwrap();
    let mut request = "wss://localhost/watch".into_client_request().unwrap();
    request.headers_mut().insert("sec-websocket-protocol", WATCH_SUBPROTOCOL.parse().unwrap());
    let (mut socket, _) = tokio_tungstenite::client_async(request, tls).await.unwrap();
    let (lanes, from) = (Some(vec![Variant::AudioPriority]), Some(StartAt::Word(StartWord::Oldest)));
    let watch = Watch { protocol: PROTOCOL, capability: capability.into(), lanes, from, cursor: None };
    socket.send(Message::Binary(frame::encode_json(kind::WATCH, &watch))).await.unwrap();
    socket
}

async fn recorded() -> (World, String) {
    let toml = "[limits]\nidle_timeout = \"2s\"\n".into();
    let world = World::with(Setup { toml, ..Setup::default() }).await;
    let session = world.session().await;
    let capability = record(&world, &session).await;
    (world, capability)
}

/// More than a contact's buffers take. What a contact of it shows.
async fn record(world: &World, session: &Session) -> String {
    let capability = session.upload_capability.clone().unwrap();
    for index in 1..=CHUNKS {
        let chunk = Chunk::sealed(session, Variant::AudioPriority, index, LENGTH);
        assert_eq!(bring(world, Way::Ws(Ws::H1), &chunk, &capability).await.code, "");
    }
    session.fanout_capability.clone().unwrap()
}

/// Waits until a contact that reads nothing is given no more: what it was handed can't be written.
async fn stuck(world: &World) {
    let mut before = 0.0;
    loop {
        let handed = world.metric("waystation_fanout_delivered_bytes_total{lane=\"audio_priority\"}").await;
        if handed > 0.0 && handed == before {
            return;
        }
        before = handed;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn now_ms() -> i64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as i64
}

fn endings(reason: &str) -> String {
    format!("waystation_fanout_subscription_endings_total{{reason=\"{reason}\"}}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_contact_that_always_has_more_to_read_than_it_can_is_not_cut() {
    let (world, capability) = recorded().await;
    let mut contact = open(&world, &capability).await;
    let mut complete = 0;
    while complete < CHUNKS {
        let message = soon("a message", contact.next()).await.expect("it is not cut").unwrap();
        if let Message::Binary(bytes) = message {
            let frames = frame::split_message(bytes).unwrap();
            assert!(frames.iter().all(|frame| frame.kind != kind::ENDING), "after {complete} chunks");
            complete += frames.iter().filter(|frame| frame.kind == kind::COMPLETE).count() as u64;
            // In all four times as long as a dead one would be given.
            tokio::time::sleep(Duration::from_millis(80)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_contact_that_reads_nothing_is_let_go_and_others_do_not_notice() {
    let (world, capability) = recorded().await;
    let _contact = open(&world, &capability).await;
    let mut other = Contact::open(&world, Eye::Ws(Ws::H1), &capability).await;
    for _ in 0..CHUNKS {
        other.until(kind::COMPLETE).await;
    }
    let told = "waystation_websocket_sessions_ended_total{route=\"watch\",code=\"contact_too_slow\"}";
    world.until_metric(told, |times| times == 1.0).await;
    assert_eq!(world.metric(&endings("too_slow")).await, 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_contact_that_is_let_go_and_reads_again_reads_why() {
    // The relay's clock stands: the contact has as long as it needs for the last words.
    let toml = "[limits]\nidle_timeout = \"500ms\"\n".into();
    let world = World::with(Setup { toml, clock: Clock::at_unix_ms(now_ms()), ..Setup::default() }).await;
    let session = world.session().await;
    let capability = record(&world, &session).await;
    let mut contact = open(&world, &capability).await;
    stuck(&world).await;
    // It is dead for the relay three times over.
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    let (mut reason, mut complete) = (None, 0);
    let close = loop {
        match soon("a message", contact.next()).await.expect("a close").unwrap() {
            Message::Binary(bytes) => {
                for frame in frame::split_message(bytes).unwrap() {
                    assert!(reason.is_none(), "ENDING is the last frame");
                    complete += u64::from(frame.kind == kind::COMPLETE);
                    if frame.kind == kind::ENDING {
                        reason = Some(frame::control::<Ending>(&frame).unwrap().reason);
                    }
                }
            }
            Message::Close(close) => break close.unwrap(),
            _ => {}
        }
    };
    assert_eq!((reason.as_deref(), close.reason.as_str()), (Some("contact_too_slow"), "contact_too_slow"));
    assert!(complete < CHUNKS, "it is told no more than what it was handed");
    world.until_metric(&endings("too_slow"), |times| times == 1.0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_contact_that_is_stuck_is_heard_when_it_goes() {
    let world = World::new().await;
    let session = world.session().await;
    let capability = record(&world, &session).await;
    let mut contact = open(&world, &capability).await;
    stuck(&world).await;
    contact.send(Message::Close(None)).await.unwrap();
    // Long before it would be let go because it takes nothing.
    world.until_metric("waystation_fanout_contacts", |contacts| contacts == 0.0).await;
    assert_eq!(world.metric(&endings("too_slow")).await, 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_contact_that_is_stuck_ends_at_exp() {
    let clock = Clock::at_unix_ms(now_ms());
    let world = World::with(Setup { clock: clock.clone(), ..Setup::default() }).await;
    let session = world.session_with(|request| request.ttl_s = Some(20)).await;
    let capability = record(&world, &session).await;
    let _contact = open(&world, &capability).await;
    stuck(&world).await;
    let left = u64::try_from(session.expires_at.unwrap() * 1000 - clock.unix_ms()).unwrap();
    clock.advance(Duration::from_millis(left));
    // It has two seconds for what it was handed, and the relay is given five.
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        clock.advance(Duration::from_millis(500));
    }
    world.until_metric(&endings("expired"), |times| times == 1.0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_contact_that_is_stuck_ends_when_it_is_revoked() {
    let toml = "[fanout]\nreauthorize_every = \"1s\"\n".into();
    let world = World::with(Setup { toml, ..Setup::default() }).await;
    let session = world.session().await;
    let capability = record(&world, &session).await;
    let _contact = open(&world, &capability).await;
    stuck(&world).await;
    revoke(&world, claims(&capability)["jti"].as_str().unwrap()).await;
    world.until_metric(&endings("revoked"), |times| times == 1.0).await;
}
