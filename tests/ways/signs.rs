//! What contacts hear of the capture device while nothing, or nothing of theirs, is shown.

use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use tokio_tungstenite::tungstenite::Message;
use waystation_proto::frame::{self, kind};
use waystation_proto::message::{CaptureEvent, CaptureWord, Hello, Sign};
use waystation_proto::{CAPTURE_SUBPROTOCOL, ChunkState, PROTOCOL, Variant};
use waystation_tests::contact::{Contact, Eye};
use waystation_tests::http::put;
use waystation_tests::peer::{Capture, Carrier};
use waystation_tests::wire::{Exchange, Http, Ws, soon, websocket};
use waystation_tests::{Chunk, Setup, World};

async fn world() -> World {
    let toml = "[fanout]\nsilent_after = \"10s\"\n".into();
    World::with(Setup { toml, ..Setup::default() }).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_contact_hears_when_the_phone_was_last_heard_and_when_it_fell_silent() {
    let world = world().await;
    let session = world.session().await;
    let (capability, fanout) = (session.upload_capability.clone().unwrap(), session.fanout_capability.clone().unwrap());
    let mut capture = Capture::open(&world, Carrier::Post(Http::H3), &[&capability]).await;
    let chunk = Chunk::sealed(&session, Variant::AudioPriority, 1, 3_000);
    assert_eq!(capture.bring(1, &chunk).await.state, Some(ChunkState::Confirmed));
    let mut contacts = Vec::new();
    for eye in [Eye::Ws(Ws::H1), Eye::Get(Http::H3)] {
        contacts.push(Contact::open(&world, eye, &fanout).await);
    }
    for contact in &mut contacts {
        let greeting: Sign = frame::control(&contact.until(kind::SIGN).await).unwrap();
        assert_eq!(greeting.last_sign, 0, "it gives signs");
        let quiet: Sign = frame::control(&contact.until(kind::SIGN).await).unwrap();
        assert!((5..10).contains(&quiet.last_sign), "{quiet:?}");
    }
    capture.send(frame::encode(kind::ALIVE, b"{}")).await;
    for contact in &mut contacts {
        let heard: Sign = frame::control(&contact.until(kind::SIGN).await).unwrap();
        assert_eq!(heard.last_sign, 0);
        let silent: CaptureEvent = frame::control(&contact.until(kind::CAPTURE).await).unwrap();
        assert_eq!((silent.event, silent.last_sign >= 10), (CaptureWord::Silent, true), "{silent:?}");
    }
    capture.send(frame::encode(kind::END, b"{\"reason\":\"stopped\"}")).await;
    for contact in &mut contacts {
        let ended: CaptureEvent = frame::control(&contact.until(kind::CAPTURE).await).unwrap();
        assert_eq!(ended.event, CaptureWord::Ended);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_of_a_master_that_still_comes_are_signs_and_after_the_end_they_are_not() {
    let world = world().await;
    let session = world.session().await;
    let (capability, fanout) = (session.upload_capability.clone().unwrap(), session.fanout_capability.clone().unwrap());
    let mut capture = Capture::open(&world, Carrier::Post(Http::H2), &[&capability]).await;
    let sound = Chunk::sealed(&session, Variant::AudioPriority, 1, 3_000);
    assert_eq!(capture.bring(1, &sound).await.state, Some(ChunkState::Confirmed));
    let mut contact = Contact::open(&world, Eye::Ws(Ws::H2), &fanout).await;
    contact.until(kind::COMPLETE).await;
    let begin = |index| {
        let chunk = Chunk::sealed(&session, Variant::EvidenceMaster, index, 100_000);
        let request = put(&chunk, &capability, 20).header("content-length", chunk.offer.length).body(()).unwrap();
        (chunk, request)
    };
    // Longer than the limit: a byte now and then of a chunk that no contact sees.
    let (master, request) = begin(1);
    let mut upload = Exchange::open(&world, Http::H3, request).await;
    for at in 0..24 {
        upload.send(master.bytes.slice(at..at + 1)).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    capture.send(frame::encode(kind::END, b"{\"reason\":\"stopped\"}")).await;
    let first: CaptureEvent = frame::control(&contact.until(kind::CAPTURE).await).unwrap();
    assert_eq!(first.event, CaptureWord::Ended, "it was never silent");
    upload.send(master.bytes.slice(24..)).await;
    assert_eq!(upload.answer().await.status, 201);
    let (late, request) = begin(2);
    let mut upload = Exchange::open(&world, Http::H1, request).await;
    upload.send(late.bytes.clone()).await;
    assert_eq!(upload.answer().await.status, 201);
    loop {
        match contact.frame().await.expect("ENDING").kind {
            kind::CAPTURE => panic!("what was left to send is no sign"),
            kind::ENDING => break,
            _ => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_phone_that_gives_signs_by_itself_is_not_asked_for_one() {
    // A ping is due after three seconds.
    let toml = "[limits]\nidle_timeout = \"9s\"\n".into();
    let world = World::with(Setup { toml, ..Setup::default() }).await;
    let session = world.session().await;
    let mut socket = websocket(&world, Ws::H1, "/capture", CAPTURE_SUBPROTOCOL).await.stream;
    let capabilities = vec![session.upload_capability.clone().unwrap()];
    let hello = Hello { protocol: PROTOCOL, capabilities, network: None };
    socket.send(Message::Binary(frame::encode_json(kind::HELLO, &hello))).await.unwrap();
    for _ in 0..16 {
        socket.send(Message::Binary(frame::encode(kind::ALIVE, b"{}"))).await.unwrap();
        while let Ok(message) = tokio::time::timeout(Duration::from_millis(250), socket.next()).await {
            assert!(matches!(message, Some(Ok(Message::Binary(_)))), "{message:?}");
        }
    }
    let asked = soon("a ping", async {
        loop {
            if let Message::Ping(_) = socket.next().await.unwrap().unwrap() {
                return;
            }
        }
    });
    asked.await;
}
