//! Wrong capabilities, through the whole relay: each is refused with its code, on HTTP and on a
//! WebSocket, and a right one is not.

use std::io::Write as _;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{Method, Request};
use http_body_util::Full;
use serde_json::{Value, json};
use waystation::clock::Clock;
use waystation_client::ClientKey;
use waystation_devcore::Secret;
use waystation_proto::frame::{self, kind};
use waystation_proto::message::CaptureState;
use waystation_proto::{ChunkState, Media, Variant};
use waystation_tests::contact::{Contact, Eye, get_watch};
use waystation_tests::http::{put, send};
use waystation_tests::peer::{Capture, Carrier, Told, Way, bring, request};
use waystation_tests::wire::{Exchange, Http, Ws, ask, soon};
use waystation_tests::{Chunk, Setup, World};

fn vectors(name: &str) -> Value {
    let path = format!("{}/../docs/protocol/{name}", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

pub(crate) async fn revoke(world: &World, jti: &str) {
    let request = Request::post("/v1/relay/revocations")
        .header("host", "core")
        .header("authorization", format!("Bearer {}", world.core.account_token()))
        .header("content-type", "application/json")
        .body(Full::from(json!({ "jti": jti }).to_string()))
        .unwrap();
    assert_eq!(send(world.core.addr(), request).await.status, 201);
}

/// Each vector asks over two connections: on a quick machine more a second than one address may begin.
const MANY: &str = "[limits]\nhandshakes_per_second = 10000\n";

/// What is asked with a token.
struct Case {
    name: String,
    token: String,
    upload: bool,
    incident: String,
    stream: String,
    /// Empty: it is accepted.
    code: String,
}

impl Case {
    /// The chunk that is offered, signed by the vectors' client key.
    fn chunk(&self) -> Chunk {
        let mut chunk = Chunk::of(&self.incident, &self.stream, Media::Audio, 7, vec![7; 336]);
        let key = ClientKey::from_seed(&[0x22; 32]).unwrap();
        chunk.offer.sig = key.sign(&chunk.offer.signed_bytes());
        chunk
    }

    async fn run(&self, world: &World) {
        let http = match http::HeaderValue::from_str(&self.token) {
            Err(_) => None,
            Ok(_) if self.upload => Some(self.put(world).await),
            Ok(_) => Some(self.get(world).await),
        };
        if let Some(code) = http {
            // On HTTP an empty token is none.
            let expected = if self.token.is_empty() { "capability_missing" } else { &self.code };
            assert_eq!(code, expected, "{} on HTTP", self.name);
        }
        let code = if self.upload { self.offer(world).await } else { self.watch(world).await };
        assert_eq!(code, self.code, "{} on a WebSocket", self.name);
    }

    async fn put(&self, world: &World) -> String {
        let chunk = self.chunk();
        let request = put(&chunk, &self.token, 0).header("content-length", chunk.offer.length).body(()).unwrap();
        let told = Told::from(ask(world, Http::H1, request, chunk.bytes.clone()).await);
        // Taken: what the core thinks of a made-up incident is another matter.
        if told.state.is_some() { String::new() } else { told.code }
    }

    async fn get(&self, world: &World) -> String {
        let mut exchange = Exchange::open(world, Http::H1, get_watch(&self.token, "")).await;
        exchange.end().await;
        let streaming = exchange.head().await;
        if streaming.status == 200 { String::new() } else { streaming.whole().await.code() }
    }

    async fn offer(&self, world: &World) -> String {
        let mut capture = Capture::raw(world, Ws::H1).await;
        capture.hello(&[&self.token]).await;
        let first = capture.frame().await.expect("a frame");
        if first.kind == kind::BYE {
            let body: Value = serde_json::from_slice(&first.body).unwrap();
            return body["reason"].as_str().unwrap().into();
        }
        capture.offer(1, &self.chunk()).await;
        loop {
            let frame = capture.frame().await.expect("an answer to the offer");
            match frame.kind {
                kind::SEND => return String::new(),
                kind::CAPTURE_STATE => {
                    let state: CaptureState = frame::control(&frame).unwrap();
                    let refused = state.error.filter(|_| state.state.is_none());
                    return refused.map_or_else(String::new, |error| error.code);
                }
                _ => {}
            }
        }
    }

    async fn watch(&self, world: &World) -> String {
        let mut contact = Contact::begin(world, Eye::Ws(Ws::H1), &self.token, None).await;
        let first = contact.frame().await.expect("a frame");
        let body: Value = serde_json::from_slice(&first.body).unwrap();
        if first.kind == kind::ENDING { body["reason"].as_str().unwrap().into() } else { String::new() }
    }
}

fn jwt_case(case: &Value) -> Case {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Case {
        name: text(&case["name"]),
        token: text(&case["token"]),
        upload: case["context"]["use"] == "upload",
        incident: text(&case["context"]["incident"]),
        stream: text(&case["context"]["stream"]),
        code: text(&case["expect_error"]),
    }
}

/// What no native request can ask: it names no session, and a contact names no stream.
const UNASKABLE: [&str; 2] = ["wrong session", "fan-out, a lane that is not named"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_vector_of_the_jwt_ends_with_its_code() {
    let vectors = vectors("capability-vectors.json");
    let mut jwks = tempfile::NamedTempFile::new().unwrap();
    jwks.write_all(vectors["core_key"]["jwks"].to_string().as_bytes()).unwrap();
    let cases = vectors["capability_checks"].as_array().unwrap();
    let moments: std::collections::BTreeSet<_> = cases.iter().map(|case| case["now"].as_i64().unwrap()).collect();
    let mut run = 0;
    for now in moments {
        // A minute before: time to hear what is revoked.
        let clock = Clock::at_unix_ms((now - 60) * 1000);
        let capability = Some(format!("jwks_file = {:?}\naudience = {}\n", jwks.path(), vectors["audience"]));
        let world =
            World::with(Setup { clock: clock.clone(), capability, toml: MANY.to_owned(), ..Setup::default() }).await;
        let heard = "waystation_capability_fetches_total{source=\"revocations\",outcome=\"ok\"}";
        world.until_metric(heard, |times| times >= 1.0).await;
        revoke(&world, "jti_revoked").await;
        clock.advance(Duration::from_secs(30));
        world.until_metric(heard, |times| times >= 2.0).await;
        clock.advance(Duration::from_secs(30));
        for case in cases.iter().filter(|case| case["now"] == now) {
            let case = jwt_case(case);
            if !UNASKABLE.contains(&case.name.as_str()) {
                case.run(&world).await;
                run += 1;
            }
        }
    }
    assert_eq!(run, cases.len() - UNASKABLE.len());
}

fn proofline_code(error: &Value) -> &'static str {
    match error.as_str() {
        None => "",
        Some("ErrExpired") => "capability_expired",
        Some("ErrWrongRole") => "capability_wrong_use",
        Some("ErrWrongBinding") => "capability_wrong_binding",
        Some(_) => "capability_invalid",
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_vector_of_the_contract_ends_with_its_code() {
    let vectors = vectors("proofline-vectors.json");
    let cases = vectors["capability_checks"].as_array().unwrap();
    let secret = cases[0]["secret"].as_str().unwrap();
    let moments: std::collections::BTreeSet<_> =
        cases.iter().map(|case| case["context"]["now_unix"].as_i64().unwrap()).collect();
    let (mut run, mut unaskable) = (0, 0);
    for now in moments {
        let held = secret.to_owned();
        let core = Box::new(move |options: &mut waystation_devcore::Options| {
            options.capability_secret = Secret::Text(held.clone());
        });
        let clock = Clock::at_unix_ms(now * 1000);
        let world =
            World::with(Setup { clock, proofline_secret: true, core, toml: MANY.to_owned(), ..Setup::default() }).await;
        for case in cases.iter().filter(|case| case["context"]["now_unix"] == now && case["secret"] == secret) {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let context = &case["context"];
            let upload = context["role"] == "upload";
            let asks = case["expect_error"] != "ErrWrongBinding"
                || (upload && context["relay_session_id"] == "relay_session_1");
            if !asks {
                unaskable += 1;
                continue;
            }
            run += 1;
            let case = Case {
                name: text(&case["name"]),
                token: text(&case["token"]),
                upload,
                incident: text(&context["incident_id"]),
                stream: text(&context["stream_id"]),
                code: proofline_code(&case["expect_error"]).into(),
            };
            case.run(&world).await;
        }
    }
    assert!(run >= 18 && unaskable <= 3, "{run} run, {unaskable} not");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_capability_is_good_for_its_use_alone() {
    let world = World::new().await;
    let session = world.session().await;
    let (upload, fanout) = (session.upload_capability.clone().unwrap(), session.fanout_capability.clone().unwrap());
    let chunk = Chunk::sealed(&session, Variant::AudioPriority, 1, 3_000);
    for way in Way::ALL {
        let told = bring(&world, way, &chunk, &fanout).await;
        assert_eq!(told.code, "capability_wrong_use", "{way:?}");
        assert!(matches!(told.status, 0 | 403));
    }
    for http in Http::ALL {
        let asked = ask(&world, http, get_watch(&upload, ""), "").await;
        assert_eq!((asked.status.as_u16(), asked.code().as_str()), (403, "capability_wrong_use"));
    }
    for ws in Ws::ALL {
        let mut contact = Contact::begin(&world, Eye::Ws(ws), &upload, None).await;
        assert_eq!(contact.ending().await, "capability_wrong_use");
    }
}

pub(crate) fn claims(token: &str) -> Value {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(token.split('.').nth(1).unwrap()).unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_revoked_is_refused_and_ends_what_is_open() {
    let toml = "[fanout]\nreauthorize_every = \"1s\"\n".into();
    let world = World::with(Setup { toml, ..Setup::default() }).await;
    let (session, other) = (world.session().await, world.session().await);
    let (upload, fanout) = (session.upload_capability.clone().unwrap(), session.fanout_capability.clone().unwrap());
    let mut open = Vec::new();
    for eye in Eye::ALL {
        open.push(Contact::open(&world, eye, &fanout).await);
    }
    let mut sending = Capture::open(&world, Ws::H1, &[&upload]).await;
    let taken = Chunk::sealed(&session, Variant::AudioPriority, 1, 3_000);
    assert_eq!(sending.bring(1, &taken).await.state, Some(ChunkState::Confirmed));
    let mut half = Capture::open(&world, Ws::H1, &[&upload]).await;
    let (arriving, never) = (
        Chunk::sealed(&session, Variant::AudioPriority, 2, 3_000),
        Chunk::sealed(&session, Variant::AudioPriority, 9, 9),
    );
    half.offer(1, &arriving).await;
    half.go(1).await;
    half.piece(1, 0, &arriving.bytes[..100]).await;
    let mut reading = Vec::new();
    for http in Http::ALL {
        let mut exchange = Exchange::open(&world, http, request(Method::GET, &arriving, &fanout)).await;
        exchange.end().await;
        reading.push(exchange.head().await);
    }
    let drop_in = Request::get("/fanout/subscribe")
        .header("host", "localhost")
        .header("x-proofline-relay-session-id", claims(&fanout)["sid"].as_str().unwrap())
        .header("x-proofline-relay-fanout-capability", &fanout)
        .header("x-proofline-relay-incident-id", &session.incident)
        .header("x-proofline-relay-stream-id", arriving.offer.stream.as_str())
        .body(())
        .unwrap();
    let mut subscription = Exchange::open(&world, Http::H1, drop_in).await;
    subscription.end().await;
    let subscription = subscription.head().await;
    assert_eq!(subscription.status, 200);
    let mut waiting = Exchange::open(&world, Http::H1, request(Method::GET, &never, &fanout)).await;
    waiting.end().await;
    let mut stays = Contact::open(&world, Eye::Ws(Ws::H1), other.fanout_capability.as_ref().unwrap()).await;
    for token in [&upload, &fanout] {
        revoke(&world, claims(token)["jti"].as_str().unwrap()).await;
    }
    for (eye, mut contact) in Eye::ALL.into_iter().zip(open) {
        assert_eq!(contact.ending().await, "capability_revoked", "{eye:?}");
    }
    for (http, mut reading) in Http::ALL.into_iter().zip(reading) {
        let mut last = None;
        while let Some(read) = soon("the end of the answer", reading.next()).await {
            last = Some(read.is_err());
            if last == Some(true) {
                break;
            }
        }
        assert_eq!(last, Some(true), "{http:?}: what was being read is cut off");
    }
    assert_eq!(waiting.answer().await.code(), "capability_revoked");
    let events = String::from_utf8(subscription.whole().await.body.to_vec()).unwrap();
    assert!(events.contains("relay_end") && events.contains("capability_revoked"), "{events}");
    let chunk = Chunk::sealed(&session, Variant::AudioPriority, 3, 3_000);
    for http in Http::ALL {
        let told = bring(&world, Way::Http(http), &chunk, &upload).await;
        assert_eq!((told.status, told.code.as_str()), (403, "capability_revoked"));
    }
    sending.offer(2, &chunk).await;
    assert_eq!(sending.state(2).await.error.unwrap().code, "capability_revoked", "each offer is asked of");
    let mut capture = Capture::raw(&world, Ws::H2).await;
    capture.hello(&[&upload]).await;
    assert_eq!(capture.bye().await, ("capability_revoked".into(), 4403));
    // Nobody else is concerned.
    let chunk = Chunk::sealed(&other, Variant::AudioPriority, 1, 3_000);
    assert_eq!(bring(&world, Way::Http(Http::H1), &chunk, other.upload_capability.as_ref().unwrap()).await.status, 201);
    assert_eq!(stays.begins().await.index, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bound_capability_takes_only_offers_that_its_client_signed() {
    let world = World::new().await;
    let (key, thief) = (ClientKey::from_seed(&[3; 32]).unwrap(), ClientKey::from_seed(&[4; 32]).unwrap());
    let public = key.jwk().unwrap().ed25519().unwrap();
    let session = world.session_with(|request| request.client_key = Some(public)).await;
    let capability = session.upload_capability.clone().unwrap();
    for (index, way) in (1..).zip(Way::ALL) {
        let mut chunk = Chunk::sealed(&session, Variant::AudioPriority, index, 3_000);
        assert_eq!(bring(&world, way, &chunk, &capability).await.code, "signature_required", "{way:?}");
        chunk.offer.sig = thief.sign(&chunk.offer.signed_bytes());
        assert_eq!(bring(&world, way, &chunk, &capability).await.code, "signature_invalid", "{way:?}");
        chunk.offer.sig = key.sign(&chunk.offer.signed_bytes());
        let told = bring(&world, way, &chunk, &capability).await;
        assert_eq!(told.state, Some(ChunkState::Confirmed), "{way:?} {told:?}");
    }
}

/// A capture connection says `END` and then `ALIVE`, and its words have been heard.
async fn says(world: &World, capability: &str, chunk: &Chunk) -> Capture {
    let mut capture = Capture::open(world, Ws::H1, &[capability]).await;
    capture.send(frame::encode(kind::END, b"{}")).await;
    capture.send(frame::encode(kind::ALIVE, b"{}")).await;
    // Frames are read in their order: when this is answered, the words before it are done.
    let mut wrong = chunk.clone();
    wrong.offer.length = u64::MAX >> 2;
    capture.offer(9, &wrong).await;
    assert!(capture.state(9).await.error.is_some());
    capture
}

/// What the contact hears of the capture device until the chunk begins.
async fn heard(contact: &mut Contact) -> usize {
    let mut words = 0;
    loop {
        match contact.frame().await.expect("a frame").kind {
            kind::CAPTURE => words += 1,
            kind::CHUNK => return words,
            _ => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_but_the_recorder_says_that_a_recording_is_over() {
    let world = World::new().await;
    let session = world.session().await;
    let (upload, fanout) = (session.upload_capability.clone().unwrap(), session.fanout_capability.clone().unwrap());
    let chunk = |index| Chunk::sealed(&session, Variant::AudioPriority, index, 3_000);
    let mut contact = Contact::open(&world, Eye::Ws(Ws::H1), &fanout).await;
    assert_eq!(bring(&world, Way::Http(Http::H1), &chunk(1), &upload).await.status, 201);
    assert_eq!(heard(&mut contact).await, 0);
    says(&world, &fanout, &chunk(2)).await;
    assert_eq!(bring(&world, Way::Http(Http::H1), &chunk(2), &upload).await.status, 201);
    assert_eq!(heard(&mut contact).await, 0, "a contact is no recorder");
    says(&world, &upload, &chunk(3)).await;
    assert_eq!(bring(&world, Way::Http(Http::H1), &chunk(3), &upload).await.status, 201);
    assert_eq!(heard(&mut contact).await, 2, "ended and back");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_nobody_vouched_for_says_nothing() {
    let world = World::new().await;
    let session = world.session().await;
    let token = session.streams[0].proofline.clone().unwrap();
    let chunk = |index| Chunk::sealed(&session, Variant::AudioPriority, index, 3_000);
    let mut contact = Contact::open(&world, Eye::Ws(Ws::H1), &token.fanout).await;
    let mut capture = says(&world, &token.upload, &chunk(9)).await;
    assert_eq!(capture.bring(1, &chunk(1)).await.state, Some(ChunkState::Confirmed));
    assert_eq!(heard(&mut contact).await, 0, "it was only claimed");
    capture.send(frame::encode(kind::END, b"{}")).await;
    let ended = contact.until(kind::CAPTURE).await;
    assert!(String::from_utf8_lossy(&ended.body).contains("ended"), "the core vouched for it meanwhile");
}

fn refused(frame: &frame::Frame) -> (u64, String) {
    assert_eq!(frame.kind, kind::REFUSED);
    let refused: waystation_proto::message::Refused = frame::control(frame).unwrap();
    (refused.capability, refused.error.code)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_token_among_good_ones_ends_nothing() {
    let world = World::new().await;
    let (session, other) = (world.session().await, world.session().await);
    let good = session.upload_capability.clone().unwrap();
    for (index, carrier) in (1..).zip(Carrier::ALL) {
        let mut capture = Capture::open(&world, carrier, &["a.b.c", &good]).await;
        assert_eq!(refused(&capture.frame().await.unwrap()), (0, "capability_invalid".into()));
        let again = message_of(kind::CAPABILITY, &json!({ "capability": "d.e.f" }));
        capture.send(again).await;
        assert_eq!(refused(&capture.frame().await.unwrap()), (2, "capability_invalid".into()));
        let chunk = Chunk::sealed(&session, Variant::AudioPriority, index, 3_000);
        assert_eq!(capture.bring(1, &chunk).await.state, Some(ChunkState::Confirmed), "{carrier:?}");
        // The offer that needed a bad one hears why, and not that it is for something else.
        capture.offer(2, &Chunk::sealed(&other, Variant::AudioPriority, 1, 3_000)).await;
        assert_eq!(capture.state(2).await.error.unwrap().code, "capability_invalid");
    }
    let counted = "waystation_capture_refused_total{code=\"capability_invalid\"}";
    world.until_metric(counted, |times| times == 3.0 * Carrier::ALL.len() as f64).await;
}

fn message_of(kind: u64, body: &Value) -> bytes::Bytes {
    frame::encode(kind, body.to_string().as_bytes())
}
