//! What only WebTransport has: streams for chunks, their resets, the session's own beginning and end.

use std::time::Duration;

use http::{HeaderMap, HeaderValue, StatusCode};
use waystation::clock::Clock;
use waystation_proto::frame::{self, kind};
use waystation_proto::message::{ChunkBegins, Fetch, Lanes, Withdrawn};
use waystation_proto::{Code, Variant, capsule};
use waystation_tests::contact::{Contact, Eye};
use waystation_tests::peer::{Upload, Way, bring};
use waystation_tests::session::Session;
use waystation_tests::wire::{Http, Ws, soon};
use waystation_tests::{Chunk, Setup, World};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_pages_of_listed_origins_open_sessions_and_only_of_watch() {
    let allowed_origins = vec!["https://page.example".to_owned()];
    let world = World::with(Setup { allowed_origins, ..Setup::default() }).await;
    let from = |origin: &'static str| HeaderMap::from_iter([(http::header::ORIGIN, HeaderValue::from_static(origin))]);
    let status = async |path: &str, headers: HeaderMap| Session::open(&world, path, headers).await.err();
    assert_eq!(status("/watch", from("https://page.example")).await, None);
    assert_eq!(status("/watch", HeaderMap::new()).await, None, "no browser, no origin");
    assert_eq!(status("/watch", from("https://other.example")).await, Some(StatusCode::FORBIDDEN));
    assert_eq!(status("/capture", HeaderMap::new()).await, Some(StatusCode::NOT_FOUND));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_says_nothing_or_nonsense_is_told_and_closed() {
    let world = World::new().await;
    let mut silent =
        Session::open(&world, "/watch", HeaderMap::new()).await.unwrap_or_else(|status| panic!("{status}"));
    let mut wrong = Contact::begin(&world, Eye::Wt, "nonsense", None).await;
    assert_eq!(wrong.ending().await, "capability_invalid");
    let closed = soon("the close", wrong.session().close()).await;
    assert_eq!(closed, capsule::close(4401, "capability_invalid"));
    let ending = soon("ENDING", silent.next()).await.expect("a last frame");
    assert_eq!(ending.kind, kind::ENDING);
    let closed = soon("the close", silent.close()).await;
    assert_eq!(closed, capsule::close(u32::from(Code::FirstMessageTimeout.close()), "first_message_timeout"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chunk_that_is_withdrawn_or_no_longer_wanted_has_its_stream_reset() {
    let world = World::new().await;
    let session = world.session().await;
    let (capability, fanout) = (session.upload_capability.clone().unwrap(), session.fanout_capability.clone().unwrap());
    let mut contact = Contact::open(&world, Eye::Wt, &fanout).await;
    let mut wrong = Chunk::sealed(&session, Variant::AudioPriority, 1, 20_000);
    wrong.bytes = vec![0; wrong.bytes.len()].into();
    let (mut upload, _) = Upload::begin(&world, Way::Http(Http::H1), &wrong, &capability).await;
    upload.send(wrong.bytes.slice(..10_000)).await;
    contact.until(kind::PIECE).await;
    upload.send(wrong.bytes.slice(10_000..)).await;
    assert_eq!(upload.told().await.code, "hash_mismatch");
    let withdrawn: Withdrawn = frame::control(&contact.until(kind::WITHDRAWN).await).unwrap();
    assert!(contact.chunks.contains_key(&withdrawn.handle));

    // A picture that is half here when the contact goes on with sound alone.
    let picture = Chunk::sealed(&session, Variant::LivePreview, 1, 90_000);
    let (mut upload, _) = Upload::begin(&world, Way::Http(Http::H1), &picture, &capability).await;
    upload.send(picture.bytes.slice(..40_000)).await;
    let begins = contact.begins().await;
    contact.until_so("half of it", |contact| contact.held(begins.handle) == 40_000).await;
    let lanes = Lanes { lanes: vec![Variant::AudioPriority] };
    contact.send(frame::encode_json(kind::LANES, &lanes)).await;
    let sound = Chunk::sealed(&session, Variant::AudioPriority, 2, 5_000);
    // Said after LANES on the same stream, it is answered after it.
    let gone = Fetch { stream: picture.offer.stream.clone(), index: 99 };
    contact.send(frame::encode_json(kind::FETCH, &gone)).await;
    contact.until(kind::OMITTED).await;
    upload.send(picture.bytes.slice(40_000..)).await;
    assert_eq!(upload.told().await.status, 201);
    assert_eq!(bring(&world, Way::Http(Http::H1), &sound, &capability).await.status, 201);
    let begins_sound = contact.begins().await;
    assert_eq!(begins_sound.index, 2);
    contact.until(kind::COMPLETE).await;
    assert_eq!(contact.bytes[&begins_sound.handle], sound.bytes);
    assert_eq!(contact.held(begins.handle), 40_000, "not one byte of a picture more");
    assert_eq!(contact.session().resets, [1, 2]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_asked_for_comes_whichever_lanes_are_shown() {
    let world = World::new().await;
    let session = world.session().await;
    let (capability, fanout) = (session.upload_capability.clone().unwrap(), session.fanout_capability.clone().unwrap());
    let mut contact = Contact::open(&world, Eye::Wt, &fanout).await;
    let picture = Chunk::sealed(&session, Variant::LivePreview, 1, 90_000);
    let (mut upload, _) = Upload::begin(&world, Way::Http(Http::H1), &picture, &capability).await;
    upload.send(picture.bytes.slice(..40_000)).await;
    let begins = contact.begins().await;
    contact.until_so("half of it", |contact| contact.held(begins.handle) == 40_000).await;
    // It is on its way already, and is asked for all the same; then its lane is left.
    let wanted = Fetch { stream: picture.offer.stream.clone(), index: 1 };
    contact.send(frame::encode_json(kind::FETCH, &wanted)).await;
    let lanes = Lanes { lanes: vec![Variant::AudioPriority] };
    contact.send(frame::encode_json(kind::LANES, &lanes)).await;
    let gone = Fetch { stream: picture.offer.stream.clone(), index: 99 };
    contact.send(frame::encode_json(kind::FETCH, &gone)).await;
    contact.until(kind::OMITTED).await;
    upload.send(picture.bytes.slice(40_000..)).await;
    assert_eq!(upload.told().await.status, 201);
    contact.until(kind::COMPLETE).await;
    assert_eq!(contact.bytes[&begins.handle], picture.bytes);
    assert!(contact.session().resets.is_empty());
}

/// A contact that does not read the picture it is sent.
async fn stuck(world: &World) -> (waystation_devcore::session::Session, Contact, Chunk, ChunkBegins) {
    let session = world.session().await;
    let (capability, fanout) = (session.upload_capability.clone().unwrap(), session.fanout_capability.clone().unwrap());
    let mut contact = Contact::open(world, Eye::Wt, &fanout).await;
    contact.session().unread = Some(Variant::LivePreview);
    // Far more than QUIC takes for a stream that nobody reads.
    let picture = Chunk::sealed(&session, Variant::LivePreview, 1, 6 << 20);
    assert_eq!(bring(world, Way::Http(Http::H1), &picture, &capability).await.status, 201);
    let begins = contact.begins().await;
    (session, contact, picture, begins)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_takes_nothing_is_told_why_and_closed() {
    let toml = "[limits]\nidle_timeout = \"2s\"\n".into();
    let world = World::with(Setup { toml, ..Setup::default() }).await;
    let (_, mut contact, picture, began) = stuck(&world).await;
    let code = Code::ContactTooSlow;
    assert_eq!(contact.ending().await, code.name());
    let closed = soon("the close", contact.session().close()).await;
    assert_eq!(closed, capsule::close(u32::from(code.close()), code.name()));
    assert!(contact.held(began.handle) < picture.bytes.len());
    let ended = "waystation_fanout_subscription_endings_total{reason=\"too_slow\"}";
    assert_eq!(world.metric(ended).await, 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_after_a_long_pause_has_all_its_time() {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let clock = Clock::at_unix_ms(now.as_millis() as i64);
    let world = World::with(Setup { clock: clock.clone(), ..Setup::default() }).await;
    let session = world.session().await;
    let (capability, fanout) = (session.upload_capability.clone().unwrap(), session.fanout_capability.clone().unwrap());
    let mut contacts = Vec::new();
    for _ in 0..6 {
        contacts.push(Contact::open(&world, Eye::Wt, &fanout).await);
    }
    // Longer than `limits.idle_timeout`.
    clock.advance(Duration::from_secs(40));
    let chunk = Chunk::sealed(&session, Variant::AudioPriority, 1, 200_000);
    assert_eq!(bring(&world, Way::Http(Http::H1), &chunk, &capability).await.status, 201);
    for contact in &mut contacts {
        contact.until(kind::COMPLETE).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cursor_counts_what_the_contact_has_and_can_be_used_on_another_transport() {
    let world = World::new().await;
    let session = world.session().await;
    let (capability, fanout) = (session.upload_capability.clone().unwrap(), session.fanout_capability.clone().unwrap());
    let mut contact = Contact::open(&world, Eye::Wt, &fanout).await;
    let chunk = Chunk::sealed(&session, Variant::AudioPriority, 1, 200_000);
    assert_eq!(bring(&world, Way::Http(Http::H2), &chunk, &capability).await.status, 201);
    let cursor: waystation_proto::message::Cursor = frame::control(&contact.until(kind::CURSOR).await).unwrap();
    // It is here already; the control stream is read first.
    contact.until_so("the chunk", |contact| contact.bytes.values().any(|held| *held == chunk.bytes)).await;
    drop(contact);
    let next = Chunk::sealed(&session, Variant::AudioPriority, 2, 9_000);
    assert_eq!(bring(&world, Way::Http(Http::H1), &next, &capability).await.status, 201);
    let mut back = Contact::resume(&world, Eye::Ws(Ws::H1), &fanout, &cursor.cursor).await;
    assert_eq!(back.begins().await.index, 2, "nothing twice, nothing left out");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_hands_out_sound_while_a_picture_waits() {
    let world = World::new().await;
    let (session, mut contact, picture, begins) = stuck(&world).await;
    let capability = session.upload_capability.clone().unwrap();
    for index in 1..=3 {
        let sound = Chunk::sealed(&session, Variant::AudioPriority, index, 100_000);
        assert_eq!(bring(&world, Way::Http(Http::H1), &sound, &capability).await.status, 201);
        let heard = contact.begins().await;
        contact.until(kind::COMPLETE).await;
        assert_eq!((heard.index, &contact.bytes[&heard.handle]), (index, &sound.bytes.to_vec()));
    }
    contact.session().unread = None;
    contact.until(kind::COMPLETE).await;
    assert_eq!(contact.bytes[&begins.handle], picture.bytes, "it was not cut, it waited");
}
