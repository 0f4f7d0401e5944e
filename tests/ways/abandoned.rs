//! Contacts hear of chunks that nobody brings any more, and a recording that is over ends.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::Method;
use waystation::clock::Clock;
use waystation_proto::frame::{self, kind};
use waystation_proto::message::{Withdrawn, WithdrawnReason};
use waystation_proto::{Variant, frame::encode_json};
use waystation_tests::contact::{Contact, Eye};
use waystation_tests::peer::{Capture, Upload, Way, bring};
use waystation_tests::wire::{Http, Ws};
use waystation_tests::{Chunk, Setup, World, http as plain};

async fn withdrawn(contact: &mut Contact) -> (u64, WithdrawnReason) {
    let withdrawn: Withdrawn = frame::control(&contact.until(kind::WITHDRAWN).await).unwrap();
    (withdrawn.handle, withdrawn.reason)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chunk_whose_sender_went_is_withdrawn_and_shown_anew_when_it_comes_back() {
    let toml = "[limits]\nidle_timeout = \"3s\"\n".into();
    let world = World::with(Setup { toml, ..Setup::default() }).await;
    let session = world.session().await;
    let (capability, fanout) = (session.upload_capability.clone().unwrap(), session.fanout_capability.clone().unwrap());
    let mut contact = Contact::open(&world, Eye::Get(Http::H1), &fanout).await;
    for (index, way) in (1..).zip([Way::Http(Http::H1), Way::Http(Http::H3), Way::Ws(Ws::H1)]) {
        let chunk = Chunk::sealed(&session, Variant::AudioPriority, index, 20_000);
        let (mut upload, _) = Upload::begin(&world, way, &chunk, &capability).await;
        upload.send(chunk.bytes.slice(..9_000)).await;
        let first = contact.begins().await;
        contact.until(kind::PIECE).await;
        upload.cut();
        assert_eq!(withdrawn(&mut contact).await, (first.handle, WithdrawnReason::Stalled), "{way:?}");
        assert_eq!(bring(&world, Way::Http(Http::H2), &chunk, &capability).await.status, 201);
        let second = contact.begins().await;
        assert_eq!((second.index, second.handle == first.handle), (index, false));
        contact.until(kind::COMPLETE).await;
        assert_eq!(contact.bytes[&second.handle], chunk.bytes);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chunk_that_is_deleted_is_withdrawn_at_once_and_holds_up_no_end() {
    let world = World::new().await;
    let session = world.session().await;
    let (capability, fanout) = (session.upload_capability.clone().unwrap(), session.fanout_capability.clone().unwrap());
    let mut contact = Contact::open(&world, Eye::Ws(Ws::H2), &fanout).await;
    let chunk = Chunk::sealed(&session, Variant::AudioPriority, 1, 20_000);
    let (mut upload, _) = Upload::begin(&world, Way::Http(Http::H2), &chunk, &capability).await;
    upload.send(chunk.bytes.slice(..9_000)).await;
    contact.until(kind::PIECE).await;
    assert_eq!(plain::ask(world.plain(), Method::DELETE, &chunk, &capability).await.status, 204);
    // The usual patience is longer than a test's.
    assert_eq!(withdrawn(&mut contact).await.1, WithdrawnReason::Stalled);
    let mut capture = Capture::open(&world, Ws::H1, &[&capability]).await;
    capture.send(encode_json(kind::END, &serde_json::json!({ "reason": "over" }))).await;
    assert_eq!(contact.ending().await, "ended");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_nobody_calls_keeps_no_window_for_longer_than_it_says() {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let clock = Clock::at_unix_ms(now.as_millis() as i64);
    let toml = "[fanout]\nlinger = \"1h\"\n".into();
    let world = World::with(Setup { toml, clock: clock.clone(), ..Setup::default() }).await;
    let session = world.session().await;
    let chunk = Chunk::sealed(&session, Variant::AudioPriority, 1, 20_000);
    let capability = session.upload_capability.clone().unwrap();
    assert_eq!(bring(&world, Way::Http(Http::H1), &chunk, &capability).await.status, 201);
    assert_eq!(world.metric("waystation_fanout_groups").await, 1.0);
    clock.advance(Duration::from_secs(3600 + 60));
    world.until_metric("waystation_fanout_groups", |groups| groups == 0.0).await;
    assert_eq!(world.metric("waystation_fanout_window_bytes").await, 0.0);
}
