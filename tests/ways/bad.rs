//! Bad input of every kind: a stable code that reaches the one who sent it, at nobody's cost.

use bytes::Bytes;
use http::{Method, Request};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_tungstenite::tungstenite::Message;
use waystation_proto::frame::{self, Piece, kind};
use waystation_proto::message::OfferBody;
use waystation_proto::{ChunkState, Variant};
use waystation_tests::contact::{Contact, Eye, get_watch};
use waystation_tests::http::{Answer, put};
use waystation_tests::peer::{Capture, Carrier, Told, Upload, Way, head};
use waystation_tests::wire::{Exchange, Http, Ws, ask, soon, tls, websocket};
use waystation_tests::{Chunk, Setup, World};

/// A sound `PUT` with its body, made bad by a case.
struct Put {
    request: Request<()>,
    body: Bytes,
}

impl Put {
    fn set(mut self, name: &'static str, value: &str) -> Self {
        self.request.headers_mut().insert(name, value.parse().unwrap());
        self
    }

    fn add(mut self, name: &'static str, value: &str) -> Self {
        self.request.headers_mut().append(name, value.parse().unwrap());
        self
    }

    fn without(mut self, name: &'static str) -> Self {
        self.request.headers_mut().remove(name);
        self
    }

    fn dictionary(self, from: &str, to: &str) -> Self {
        let text = self.request.headers()["waystation-chunk"].to_str().unwrap().to_owned();
        assert!(text.contains(from), "{text}");
        self.set("waystation-chunk", &text.replace(from, to))
    }

    fn at(mut self, path: &str) -> Self {
        *self.request.uri_mut() = path.parse().unwrap();
        self
    }

    fn method(mut self, method: Method) -> Self {
        *self.request.method_mut() = method;
        self
    }

    fn body(mut self, body: Vec<u8>) -> Self {
        self.body = body.into();
        self
    }
}

type Spoil = fn(Put) -> Put;

/// What is wrong, how it is made so, and what is answered.
const CASES: [(&str, Spoil, u16, &str); 27] = [
    ("another ref", |put| put.at("/chunks/AAAAAAAAAAAAAAAAAAAAAA"), 400, "ref_mismatch"),
    ("a ref that is none", |put| put.at("/chunks/x"), 400, "ref_mismatch"),
    ("no dictionary", |put| put.without("waystation-chunk"), 400, "invalid_chunk_header"),
    ("a broken dictionary", |put| put.set("waystation-chunk", "incident="), 400, "invalid_chunk_header"),
    (
        "a long dictionary",
        |put| put.add("waystation-chunk", &format!("x=\"{}\"", "y".repeat(5000))),
        400,
        "invalid_chunk_header",
    ),
    ("no digest", |put| put.without("repr-digest"), 400, "invalid_digest"),
    ("another digest's name", |put| put.set("repr-digest", "md5=:AAAA:"), 400, "invalid_digest"),
    ("a short digest", |put| put.set("repr-digest", "sha-256=:AAAA:"), 400, "invalid_digest"),
    ("index 0", |put| put.dictionary("index=1", "index=0"), 400, "invalid_chunk_index"),
    ("media that is none", |put| put.dictionary("media=\"audio\"", "media=\"film\""), 400, "invalid_media_type"),
    ("the end before the start", |put| put.dictionary("started=\"2026", "started=\"2027"), 400, "invalid_time"),
    ("an identifier with a space", |put| put.dictionary("incident=\"", "incident=\" "), 400, "invalid_identifier"),
    ("a role refused by name", |put| put.add("waystation-chunk", "role=\"preview_only\""), 400, "role_refused"),
    ("a role that is none", |put| put.add("waystation-chunk", "role=\"best\""), 400, "invalid_role"),
    ("attempt 0", |put| put.add("waystation-chunk", "attempt=0"), 400, "invalid_attempt"),
    ("lengths that disagree", |put| put.dictionary("length=", "length=1"), 400, "length_mismatch"),
    ("an offset that is none", |put| put.set("upload-offset", "x"), 400, "bad_request"),
    (
        "an offset that is not held",
        |put| put.set("upload-offset", "1").body(vec![0; 9_999]).set("content-length", "9999"),
        409,
        "offset_mismatch",
    ),
    ("a rest of another length", |put| put.set("upload-offset", "1"), 400, "length_mismatch"),
    ("no capability", |put| put.without("authorization"), 401, "capability_missing"),
    ("two capabilities", |put| put.add("authorization", "Bearer a.b.c"), 400, "bad_request"),
    ("a capability that is none", |put| put.set("authorization", "Bearer a.b.c"), 401, "capability_invalid"),
    (
        "a long capability",
        |put| put.set("authorization", &format!("Bearer {}", "a".repeat(17_000))),
        401,
        "capability_invalid",
    ),
    ("long headers", |put| put.add("x-long", &"y".repeat(33_000)), 431, "headers_too_large"),
    ("a method that is none", |put| put.method(Method::POST), 405, "method_not_allowed"),
    ("a core's path", |put| put.at("/v1/relay/commit"), 404, "not_found"),
    ("bytes of another chunk", |put| put.body(vec![0; 10_000]), 400, "hash_mismatch"),
];

fn sound(chunk: &Chunk, capability: &str) -> Put {
    let request = put(chunk, capability, 5).header("content-length", chunk.offer.length).body(()).unwrap();
    Put { request, body: chunk.bytes.clone() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_bad_request_has_its_code_on_every_version() {
    let world = World::new().await;
    let (session, other) = (world.session().await, world.session().await);
    let capability = session.upload_capability.clone().unwrap();
    // Somebody else is in the middle of something all the while.
    let theirs = Chunk::sealed(&other, Variant::LivePreview, 1, 90_000);
    let token = other.upload_capability.clone().unwrap();
    let (mut upload, _) = Upload::begin(&world, Way::Http(Http::H3), &theirs, &token).await;
    upload.send(theirs.bytes.slice(..40_000)).await;

    let stream = &session.streams[0];
    let chunk = Chunk::of(&session.incident, &stream.stream, stream.media, 1, vec![5; 10_000]);
    for http in Http::ALL {
        for (what, spoil, status, code) in CASES {
            let bad = spoil(sound(&chunk, &capability));
            let answer = ask(&world, http, bad.request, bad.body).await;
            assert_eq!((answer.status.as_u16(), answer.code().as_str()), (status, code), "{what} on {http:?}");
            assert_eq!(answer.headers["cache-control"], "no-store");
            assert_eq!(answer.headers["x-content-type-options"], "nosniff");
        }
        let asked = ask(&world, http, head(&chunk, &capability), "").await;
        assert_eq!(asked.status, 404, "nothing of it is kept");
    }
    assert_eq!(world.metric("waystation_receiving_chunks").await, 1.0);
    upload.send(theirs.bytes.slice(40_000..)).await;
    assert_eq!(upload.told().await.state, Some(ChunkState::Confirmed));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_of_another_length_is_named_and_what_came_is_kept() {
    let world = World::new().await;
    let session = world.session().await;
    let capability = session.upload_capability.clone().unwrap();
    for (index, http) in (1..).zip(Http::ALL) {
        let chunk = Chunk::sealed(&session, Variant::AudioPriority, index, 50_000);
        // The dictionary says the length, the body has no other frame than its own end.
        let open = |chunk: &Chunk| {
            let request = put(chunk, &capability, 5);
            let request = if http == Http::H1 { request.header("transfer-encoding", "chunked") } else { request };
            request.body(()).unwrap()
        };
        let mut short = Exchange::open(&world, http, open(&chunk)).await;
        short.send(chunk.bytes.slice(..20_000)).await;
        short.end().await;
        let told = Told::from(short.answer().await);
        assert_eq!((told.status, told.code.as_str()), (400, "body_incomplete"), "{http:?}");
        let asked = ask(&world, http, head(&chunk, &capability), "").await;
        assert_eq!(asked.headers["upload-offset"], "20000");

        let mut long = Exchange::open(&world, http, open(&chunk)).await;
        let mut more = chunk.bytes.to_vec();
        more.extend_from_slice(&[0; 60_000]);
        long.send(more).await;
        long.end().await;
        let told = Told::from(long.answer().await);
        assert_eq!((told.status, told.code.as_str()), (400, "body_too_long"), "{http:?}");
        let whole = ask(&world, http, open(&chunk), chunk.bytes.clone()).await;
        assert!(matches!(whole.status.as_u16(), 200 | 201), "{http:?} {:?}", whole.body);
    }
}

/// Bytes as they are, and the answer to them.
async fn raw(world: &World, text: String, body: &[u8]) -> String {
    let mut stream = tls(world, b"http/1.1").await.unwrap();
    stream.write_all(text.as_bytes()).await.unwrap();
    // A relay that has answered may have stopped reading.
    let _ = stream.write_all(body).await;
    let mut answer = Vec::new();
    let reading = async {
        let mut buffer = [0; 4096];
        while let Ok(read @ 1..) = stream.read(&mut buffer).await {
            answer.extend_from_slice(&buffer[..read]);
            let text = String::from_utf8_lossy(&answer);
            let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
            let length =
                head.to_ascii_lowercase().lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
            if body.len() >= length.unwrap_or(0) {
                return;
            }
        }
    };
    soon("an answer", reading).await;
    String::from_utf8(answer).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_two_readers_may_read_differently_are_refused() {
    let world = World::new().await;
    let cases = [
        ("no host", "", true),
        ("two hosts", "Host: a\r\nHost: b\r\n", true),
        ("two codings", "Host: a\r\nTransfer-Encoding: chunked, chunked\r\n", false),
        ("a coding twice", "Host: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", false),
        ("a coding that is none", "Host: a\r\nTransfer-Encoding: gzip, chunked\r\n", false),
        ("two lengths", "Host: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n", false),
        ("a length that is none", "Host: a\r\nContent-Length: x\r\n", false),
    ];
    for (what, headers, ours) in cases {
        let text = format!("PUT /chunks/AAAAAAAAAAAAAAAAAAAAAA HTTP/1.1\r\n{headers}\r\n");
        let answer = raw(&world, text, b"5\r\nhello\r\n0\r\n\r\n").await;
        // What hyper can't frame it refuses itself, without a body.
        assert!(answer.starts_with("HTTP/1.1 400 "), "{what}: {answer}");
        assert!(!ours || answer.contains("\"bad_request\""), "{what}: {answer}");
    }
    for text in ["hello\r\n\r\n", "PUT nowhere HTTP/9.9\r\n\r\n"] {
        assert!(raw(&world, text.into(), b"").await.starts_with("HTTP/1.1 400 "), "{text:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_sends_everything_before_it_reads_hears_the_refusal() {
    let staging = "max_chunk = \"1MiB\"\n".into();
    let world = World::with(Setup { staging, ..Setup::default() }).await;
    let session = world.session().await;
    let chunk = Chunk::sealed(&session, Variant::EvidenceMaster, 1, 6 << 20);
    let put = sound(&chunk, session.upload_capability.as_ref().unwrap());
    let mut text = format!("PUT {} HTTP/1.1\r\n", put.request.uri());
    for (name, value) in put.request.headers() {
        text += &format!("{name}: {}\r\n", value.to_str().unwrap());
    }
    let answer = raw(&world, text + "\r\n", &put.body).await;
    assert!(answer.starts_with("HTTP/1.1 413 ") && answer.contains("\"chunk_too_large\""), "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_frames_end_a_capture_by_name_and_lose_nothing() {
    let world = World::new().await;
    let session = world.session().await;
    let capability = session.upload_capability.clone().unwrap();
    let mut chunk = Chunk::sealed(&session, Variant::AudioPriority, 1, 90_000);
    let hello =
        frame::encode(kind::HELLO, format!("{{\"protocol\":1,\"capabilities\":[\"{capability}\"]}}").as_bytes());
    let alive = frame::encode(kind::ALIVE, b"{}");
    let piece = |handle, offset, length: usize| {
        Message::Binary(Piece::encode(kind::CAPTURE_PIECE, handle, offset, &vec![1; length]))
    };
    let again = frame::encode_json(kind::OFFER, &OfferBody::new(1, &chunk.offer));
    let nameless = frame::encode(kind::OFFER, b"{\"incident\":\"i\"}");
    let mut large = vec![0x01, 0x80, 0xff, 0xff, 0xff];
    large.extend_from_slice(&[0; 100]);
    let cases: [(&str, Message, &str, u16); 11] = [
        ("text", Message::text("hello"), "protocol_error", 4400),
        ("half a frame", Message::Binary(alive.slice(..alive.len() - 1)), "protocol_error", 4400),
        ("HELLO twice", Message::Binary(hello), "protocol_error", 4400),
        ("a handle twice", Message::Binary(again), "protocol_error", 4400),
        ("an offer without a handle", Message::Binary(nameless), "protocol_error", 4400),
        ("an unknown handle", piece(99, 0, 10), "unknown_handle", 4400),
        ("a gap", piece(1, 30_001, 10), "offset_mismatch", 4409),
        ("bytes twice", piece(1, 15, 10), "offset_mismatch", 4409),
        ("more than credit", piece(1, 30_000, 100_000), "credit_exceeded", 4400),
        ("a long frame", Message::Binary(large.into()), "frame_too_large", 4413),
        ("a long message", Message::Binary(vec![0; 600 * 1024].into()), "frame_too_large", 4413),
    ];
    for carrier in Carrier::ALL {
        let posted = matches!(carrier, Carrier::Post(_));
        for (what, message, reason, close) in cases.clone() {
            // A body has no messages that could be text or too long.
            if posted && matches!(what, "text" | "a long message") {
                continue;
            }
            let mut capture = Capture::open(&world, carrier, &[&capability]).await;
            capture.offer(1, &chunk).await;
            let go = capture.go(1).await;
            if go.offset == 0 {
                capture.piece(1, 0, &chunk.bytes[..30_000]).await;
            }
            if posted {
                capture.send(message.into_data()).await;
            } else {
                capture.message(message).await;
            }
            if posted && what == "half a frame" {
                capture.end().await;
            }
            assert_eq!(capture.bye().await, (reason.into(), carrier.close(close)), "{what} on {carrier:?}");
            chunk.offer.attempt += 1;
        }
    }
    let (mut upload, offset) = Upload::begin(&world, Way::Ws(Ws::H1), &chunk, &capability).await;
    assert_eq!(offset, 30_000, "what came before is kept");
    upload.send(chunk.bytes.slice(30_000..)).await;
    assert_eq!(upload.told().await.state, Some(ChunkState::Confirmed));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_offer_costs_its_chunk_alone() {
    let world = World::new().await;
    let session = world.session().await;
    let capability = session.upload_capability.clone().unwrap();
    for (index, carrier) in (1..).zip(Carrier::ALL) {
        let mut capture = Capture::open(&world, carrier, &[&capability]).await;
        let good = Chunk::sealed(&session, Variant::AudioPriority, index, 9_000);
        capture.offer(1, &good).await;
        capture.go(1).await;
        let spoil = [
            ("index", serde_json::json!(0), "invalid_chunk_index"),
            ("media", serde_json::json!("film"), "invalid_media_type"),
            ("sha256", serde_json::json!("AA"), "invalid_digest"),
            ("length", serde_json::json!(-1), "length_required"),
            ("role", serde_json::json!("gps_plaintext_live"), "role_refused"),
            ("stream", serde_json::json!("elsewhere"), "capability_wrong_binding"),
            ("index", serde_json::json!(65), "capability_limit_exceeded"),
        ];
        for (handle, (member, value, code)) in (2..).zip(spoil) {
            let mut body = serde_json::to_value(OfferBody::new(handle, &good.offer)).unwrap();
            body[member] = value;
            capture.send(frame::encode_json(kind::OFFER, &body)).await;
            let said = Told::from(capture.state(handle).await);
            assert_eq!((said.code.as_str(), said.state), (code, None), "{member} on {carrier:?}");
        }
        // Unknown frames mean nothing.
        capture.send(frame::encode(0x3fff, b"\x00\xff")).await;
        capture.piece(1, 0, &good.bytes).await;
        assert_eq!(capture.ended(1).await.state, Some(ChunkState::Confirmed));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_small_frames_at_once_are_taken_to_their_end() {
    const MANY: usize = 2_000;
    let world = World::new().await;
    let session = world.session().await;
    let capability = session.upload_capability.clone().unwrap();
    for (index, carrier) in (1..).zip(Carrier::ALL) {
        let chunk = Chunk::sealed(&session, Variant::AudioPriority, index, 9_000);
        let mut message = frame::encode(kind::ALIVE, b"{}").repeat(MANY);
        message.extend_from_slice(&frame::encode_json(kind::OFFER, &OfferBody::new(1, &chunk.offer)));
        let mut capture = Capture::open(&world, carrier, &[&capability]).await;
        capture.send(message.into()).await;
        capture.go(1).await;
        capture.piece(1, 0, &chunk.bytes).await;
        assert_eq!(capture.ended(1).await.state, Some(ChunkState::Confirmed), "{carrier:?}");
        let mut message = frame::encode(0x3fff, b"").repeat(MANY);
        message.extend_from_slice(&frame::encode_json(kind::HELLO, &serde_json::json!({"protocol": 1})));
        capture.send(message.into()).await;
        assert_eq!(capture.bye().await, ("protocol_error".into(), carrier.close(4400)), "{carrier:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_message_that_is_late_is_told_so() {
    let world = World::new().await;
    let mut all = Vec::new();
    for carrier in Carrier::ALL {
        all.push((carrier, Capture::raw(&world, carrier).await));
    }
    for (carrier, mut capture) in all {
        assert_eq!(capture.bye().await, ("first_message_timeout".into(), carrier.close(4408)), "{carrier:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_contacts_hear_why_and_others_watch_on() {
    let world = World::new().await;
    let session = world.session().await;
    let fanout = session.fanout_capability.clone().unwrap();
    let mut good = Contact::open(&world, Eye::Ws(Ws::H2), &fanout).await;
    for http in Http::ALL {
        for wanted in ["lanes=", "lanes=(\"film\")", "from=\"never\"", "from=3"] {
            let answer: Answer = ask(&world, http, get_watch(&fanout, wanted), "").await;
            assert_eq!(
                (answer.status.as_u16(), answer.code().as_str()),
                (400, "protocol_error"),
                "{wanted} on {http:?}"
            );
        }
    }
    for ws in Ws::ALL {
        for message in [
            Message::text("hello"),
            Message::Binary(frame::encode(kind::WATCH, b"{}")),
            Message::Binary(frame::encode(kind::LANES, b"{\"lanes\":[]}")),
        ] {
            let mut socket = websocket(&world, ws, "/watch", waystation_proto::WATCH_SUBPROTOCOL).await;
            futures_util::SinkExt::send(&mut socket.stream, message).await.unwrap();
            let last = soon("ENDING", futures_util::StreamExt::next(&mut socket.stream)).await.unwrap().unwrap();
            let frames = frame::split_message(last.into_data()).unwrap();
            assert_eq!(frames[0].kind, kind::ENDING);
            assert_eq!(&frames[0].body[..], br#"{"reason":"protocol_error"}"#);
        }
    }
    let chunk = Chunk::sealed(&session, Variant::AudioPriority, 1, 9_000);
    let told =
        waystation_tests::peer::bring(&world, Way::Ws(Ws::H1), &chunk, session.upload_capability.as_ref().unwrap())
            .await;
    assert_eq!(told.state, Some(ChunkState::Confirmed));
    assert_eq!(good.begins().await.index, 1);
}
