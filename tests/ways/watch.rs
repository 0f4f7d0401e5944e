//! What contacts see, alike on every transport.

use std::time::{Duration, Instant};

use http::{Method, Request};
use tokio::sync::mpsc;
use waystation::clock::Clock;
use waystation_devcore::session::Session;
use waystation_devcore::{Effect, Fault, FaultRoute};
use waystation_proto::frame::{self, kind};
use waystation_proto::message::{StreamJoins, Withdrawn, WithdrawnReason};
use waystation_proto::{ContactState, Variant};
use waystation_tests::contact::{Contact, Eye, get_watch};
use waystation_tests::peer::{Upload, Way, bring, request};
use waystation_tests::wire::{Exchange, Http, Ws, ask, soon};
use waystation_tests::{Chunk, Setup, World};

/// What a contact must hold of the half chunk, in bytes, and how soon.
const HALF: (usize, Duration) = (120 * 1024, Duration::from_millis(100));
/// A machine that is busy with something else may be late; of so many times one must be in time.
const TRIES: u64 = 3;

async fn contacts(world: &World, capability: &str) -> Vec<Contact> {
    let mut contacts = Vec::new();
    for eye in Eye::ALL {
        contacts.push(Contact::open(world, eye, capability).await);
    }
    contacts
}

/// Tells when a contact holds enough of each chunk.
async fn watch_halves(eye: usize, mut contact: Contact, tx: mpsc::UnboundedSender<(usize, u64, Instant)>) {
    let mut told = std::collections::HashSet::new();
    loop {
        contact.until(kind::PIECE).await;
        let now = Instant::now();
        for (handle, held) in &contact.bytes {
            if held.len() >= HALF.0 && told.insert(*handle) {
                let _ = tx.send((eye, contact.chunks[handle].index, now));
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_a_chunk_is_with_every_contact_at_once() {
    let world = World::new().await;
    let session = world.session().await;
    let capability = session.upload_capability.clone().unwrap();
    let (tx, mut rx) = mpsc::unbounded_channel();
    let mut watching = tokio::task::JoinSet::new();
    for (eye, contact) in contacts(&world, session.fanout_capability.as_ref().unwrap()).await.into_iter().enumerate() {
        watching.spawn(watch_halves(eye, contact, tx.clone()));
    }
    let mut index = 0;
    for way in Way::ALL {
        let mut best = [Duration::MAX; Eye::ALL.len()];
        for _ in 0..TRIES {
            index += 1;
            let stream = &session.streams.iter().find(|stream| stream.variant == Variant::LivePreview).unwrap();
            let bytes = vec![index as u8; 256 * 1024];
            let chunk = Chunk::of(&session.incident, &stream.stream, stream.media, index, bytes);
            let (mut upload, _) = Upload::begin(&world, way, &chunk, &capability).await;
            upload.send(chunk.bytes.slice(..128 * 1024)).await;
            let sent = Instant::now();
            for _ in Eye::ALL {
                let (eye, of, at) = soon("half a chunk", rx.recv()).await.unwrap();
                assert_eq!(of, index);
                best[eye] = best[eye].min(at.saturating_duration_since(sent));
            }
            upload.cut();
            if best.iter().all(|delay| *delay <= HALF.1) {
                break;
            }
        }
        println!("{way:?}: {best:?}");
        assert!(best.iter().all(|delay| *delay <= HALF.1), "{way:?} to {:?}: {best:?}", Eye::ALL);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_contact_starts_in_the_window_with_the_latest_states() {
    let world = World::new().await;
    let session = world.session().await;
    let (capability, fanout) = (session.upload_capability.clone().unwrap(), session.fanout_capability.clone().unwrap());
    let chunks: Vec<_> = (1..=3).map(|index| Chunk::sealed(&session, Variant::AudioPriority, index, 60_000)).collect();
    assert_eq!(bring(&world, Way::Http(Http::H1), &chunks[0], &capability).await.status, 201);
    world.core.faults().set_away(true);
    let (mut second, _) = Upload::begin(&world, Way::Ws(Ws::H2), &chunks[1], &capability).await;
    second.send(chunks[1].bytes.clone()).await;
    world.until_metric("waystation_staged_chunks{class=\"audio\",reason=\"core_unreachable\"}", |n| n == 1.0).await;
    let (mut third, _) = Upload::begin(&world, Way::Http(Http::H3), &chunks[2], &capability).await;
    third.send(chunks[2].bytes.slice(..30_000)).await;
    world.until_metric("waystation_receiving_chunks", |n| n == 1.0).await;

    let mut late = contacts(&world, &fanout).await;
    for contact in &mut late {
        for (chunk, state) in
            chunks.iter().zip([ContactState::Confirmed, ContactState::NearLiveUnconfirmed, ContactState::Arriving])
        {
            let begins = contact.begins().await;
            assert_eq!((begins.index, begins.state), (chunk.offer.index, state));
            assert_eq!((begins.sha256, begins.replay), (chunk.offer.sha256, true));
        }
        let whole = |held: usize, n: usize| held == chunks[n].bytes.len();
        contact
            .until_so("what has come", |contact| {
                let held =
                    |index| contact.chunks.values().find(|c| c.index == index).map_or(0, |c| contact.held(c.handle));
                whole(held(1), 0) && whole(held(2), 1) && held(3) == 30_000
            })
            .await;
    }
    world.core.faults().set_away(false);
    third.send(chunks[2].bytes.slice(30_000..)).await;
    assert_eq!(third.told().await.status, 201);
    for mut contact in late {
        contact
            .until_so("both verdicts", |contact| {
                let confirmed =
                    |((_, index), state): (&(String, u64), &waystation_proto::message::ContactChunkState)| {
                        *index > 1 && state.state == ContactState::Confirmed && state.receipt.is_some()
                    };
                let complete = || contact.chunks.values().all(|c| contact.held(c.handle) == c.length as usize);
                contact.states.iter().filter(|state| confirmed(*state)).count() == 2 && complete()
            })
            .await;
        for begins in contact.chunks.values() {
            assert_eq!(contact.bytes[&begins.handle], chunks[begins.index as usize - 1].bytes);
        }
    }
}

async fn withdrawn(contact: &mut Contact) -> (u64, WithdrawnReason) {
    let withdrawn: Withdrawn = frame::control(&contact.until(kind::WITHDRAWN).await).unwrap();
    (withdrawn.handle, withdrawn.reason)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_of_another_hash_are_withdrawn_and_the_right_ones_taken() {
    let world = World::new().await;
    let session = world.session().await;
    let capability = session.upload_capability.clone().unwrap();
    let mut contacts = contacts(&world, session.fanout_capability.as_ref().unwrap()).await;
    for (index, way) in (1..).zip(Way::ALL) {
        let right = Chunk::sealed(&session, Variant::AudioPriority, index, 20_000);
        let mut wrong = right.clone();
        wrong.bytes = vec![0; right.bytes.len()].into();
        let (mut upload, _) = Upload::begin(&world, way, &wrong, &capability).await;
        upload.send(wrong.bytes.slice(..10_000)).await;
        let mut first = Vec::new();
        for contact in &mut contacts {
            let begins = contact.begins().await;
            assert_eq!((begins.index, begins.sha256), (index, right.offer.sha256));
            contact.until(kind::PIECE).await;
            first.push(begins.handle);
        }
        upload.send(wrong.bytes.slice(10_000..)).await;
        let told = upload.told().await;
        assert_eq!((told.code.as_str(), told.state), ("hash_mismatch", None), "{way:?}");
        assert!(matches!(told.status, 0 | 400));
        for (contact, first) in contacts.iter_mut().zip(first) {
            assert_eq!(withdrawn(contact).await, (first, WithdrawnReason::HashMismatch));
        }
        bring(&world, way, &right, &capability).await;
        for contact in &mut contacts {
            let second = contact.begins().await;
            assert_eq!(second.index, index);
            contact.until(kind::COMPLETE).await;
            assert_eq!(contact.bytes[&second.handle], right.bytes);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_sender_is_cut_and_what_came_of_it_withdrawn() {
    let toml = "[limits]\nidle_timeout = \"3s\"\n".into();
    let world = World::with(Setup { toml, ..Setup::default() }).await;
    let session = world.session().await;
    let (capability, fanout) = (session.upload_capability.clone().unwrap(), session.fanout_capability.clone().unwrap());
    // Each is read from at once: who answers no ping is dead too.
    let mut eyes = tokio::task::JoinSet::new();
    for eye in Eye::ALL {
        let mut contact = Contact::open(&world, eye, &fanout).await;
        eyes.spawn(async move {
            for _ in Way::ALL {
                assert_eq!(withdrawn(&mut contact).await.1, WithdrawnReason::Stalled);
            }
        });
    }
    let mut ways = tokio::task::JoinSet::new();
    for (index, way) in (1..).zip(Way::ALL) {
        let chunk = Chunk::sealed(&session, Variant::AudioPriority, index, 20_000);
        let (mut upload, _) = Upload::begin(&world, way, &chunk, &capability).await;
        upload.send(chunk.bytes.slice(..9_000)).await;
        ways.spawn(async move { (way, upload.left().await) });
    }
    while let Some(told) = ways.join_next().await {
        let (way, told) = told.unwrap();
        assert_eq!(told.code, "body_stalled", "{way:?}");
        assert!(matches!(told.status, 0 | 408));
    }
    while let Some(eye) = eyes.join_next().await {
        eye.unwrap();
    }
    for index in 1..=Way::ALL.len() as u64 {
        let chunk = Chunk::sealed(&session, Variant::AudioPriority, index, 20_000);
        let head = waystation_tests::http::ask(world.plain(), Method::HEAD, &chunk, &capability).await;
        assert_eq!(head.headers["upload-offset"], "9000", "what came is kept");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_newer_digest_replaces_is_superseded() {
    let world = World::new().await;
    let session = world.session().await;
    let capability = session.upload_capability.clone().unwrap();
    let mut contacts = contacts(&world, session.fanout_capability.as_ref().unwrap()).await;
    let old = Chunk::sealed(&session, Variant::LivePreview, 1, 90_000);
    let (mut upload, _) = Upload::begin(&world, Way::Http(Http::H2), &old, &capability).await;
    upload.send(old.bytes.slice(..40_000)).await;
    for contact in &mut contacts {
        contact
            .until_so("what came of the first", |contact| contact.bytes.values().any(|held| held.len() == 40_000))
            .await;
    }
    let new = Chunk::sealed(&session, Variant::LivePreview, 1, 80_000);
    assert_eq!(bring(&world, Way::Http(Http::H3), &new, &capability).await.status, 201);
    for contact in &mut contacts {
        assert_eq!(withdrawn(contact).await.1, WithdrawnReason::Superseded);
        let begins = contact.begins().await;
        assert_eq!((begins.index, begins.sha256), (1, new.offer.sha256));
        contact.until(kind::COMPLETE).await;
        assert_eq!(contact.bytes[&begins.handle], new.bytes);
    }
    upload.send(old.bytes.slice(40_000..)).await;
    assert_eq!(upload.left().await.code, "attempt_superseded");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscription_ends_at_exp_and_says_so() {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let clock = Clock::at_unix_ms(now.as_millis() as i64);
    let world = World::with(Setup { clock: clock.clone(), ..Setup::default() }).await;
    // Below `idle_timeout`, which the same clock counts. The core has a clock of its own, that runs.
    let session = world.session_with(|request| request.ttl_s = Some(10)).await;
    let contacts = contacts(&world, session.fanout_capability.as_ref().unwrap()).await;
    let left = u64::try_from(session.expires_at.unwrap() * 1000 - clock.unix_ms()).unwrap();
    clock.advance(Duration::from_millis(left - 1000));
    tokio::time::sleep(Duration::from_millis(50)).await;
    clock.advance(Duration::from_secs(3));
    for (eye, mut contact) in Eye::ALL.into_iter().zip(contacts) {
        assert_eq!(contact.ending().await, "capability_expired", "{eye:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lane_is_followed_across_streams_and_others_are_never_shown() {
    let world = World::new().await;
    let session = world
        .session_with(|request| {
            request.lanes =
                vec![Variant::LivePreview, Variant::LivePreview, Variant::EvidenceMaster, Variant::LocationContext];
        })
        .await;
    let mut next = session.clone();
    next.streams.remove(0);
    let capability = session.upload_capability.clone().unwrap();
    let mut contacts = contacts(&world, session.fanout_capability.as_ref().unwrap()).await;
    let chunks = [
        Chunk::sealed(&session, Variant::EvidenceMaster, 1, 9_000),
        Chunk::sealed(&session, Variant::LivePreview, 1, 9_000),
        Chunk::sealed(&session, Variant::LocationContext, 1, 900),
        Chunk::sealed(&next, Variant::LivePreview, 1, 8_000),
        Chunk::sealed(&next, Variant::LivePreview, 2, 8_000),
    ];
    for (chunk, way) in chunks.iter().zip(Way::ALL) {
        let told = bring(&world, way, chunk, &capability).await;
        assert_eq!(told.code, "", "{way:?}");
    }
    let last = chunks[4].offer.stream.as_str().to_owned();
    for contact in &mut contacts {
        let joins: StreamJoins = loop {
            let joins: StreamJoins = frame::control(&contact.until(kind::STREAM).await).unwrap();
            if joins.stream == chunks[3].offer.stream {
                break joins;
            }
        };
        assert_eq!((joins.variant, joins.follows.as_ref()), (Variant::LivePreview, Some(&chunks[1].offer.stream)));
        let key = (last.clone(), 2);
        contact
            .until_so("the last chunk's verdict", |contact| {
                // Where chunks have streams of their own a verdict may come before its chunk.
                contact.chunks.len() == 3
                    && contact.states.get(&key).is_some_and(|state| state.state == ContactState::Confirmed)
            })
            .await;
        let mut seen: Vec<_> =
            contact.chunks.values().map(|begins| (begins.handle, begins.stream.clone(), begins.index)).collect();
        seen.sort_by_key(|(handle, ..)| *handle);
        let seen: Vec<_> = seen.into_iter().map(|(_, stream, index)| (stream, index)).collect();
        let shown: Vec<_> =
            [1, 3, 4].map(|n: usize| (chunks[n].offer.stream.clone(), chunks[n].offer.index)).into_iter().collect();
        assert_eq!(seen, shown);
    }
    let fanout = session.fanout_capability.as_ref().unwrap();
    for http in Http::ALL {
        let asked = ask(&world, http, get_watch(fanout, "lanes=(\"evidence_master\")"), "").await;
        assert_eq!((asked.status.as_u16(), asked.code().as_str()), (403, "not_watchable"));
    }
    for ws in Ws::ALL {
        let mut contact = Contact::begin(&world, Eye::Ws(ws), fanout, Some(vec![Variant::EvidenceMaster])).await;
        assert_eq!(contact.ending().await, "not_watchable");
    }
}

fn read(chunk: &Chunk, capability: &str, wait: u32) -> Request<()> {
    let mut read = request(Method::GET, chunk, capability);
    read.headers_mut().insert("prefer", format!("wait={wait}").parse().unwrap());
    read
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_chunk_is_waited_for_and_streamed() {
    let world = World::new().await;
    let session = world.session().await;
    let (capability, fanout) = (session.upload_capability.clone().unwrap(), session.fanout_capability.clone().unwrap());
    for (index, http) in (1..).zip(Http::ALL) {
        let chunk = Chunk::sealed(&session, Variant::AudioPriority, index, 100_000);
        let mut reading = Exchange::open(&world, http, read(&chunk, &fanout, 25)).await;
        reading.end().await;
        let (mut upload, _) = Upload::begin(&world, Way::Http(http), &chunk, &capability).await;
        upload.send(chunk.bytes.slice(..50_000)).await;
        let mut streaming = reading.head().await;
        assert_eq!(
            (streaming.status.as_u16(), &streaming.headers["content-length"]),
            (200, &chunk.offer.length.into())
        );
        let mut got = Vec::new();
        while got.len() < 50_000 {
            got.extend_from_slice(&soon("bytes", streaming.next()).await.unwrap().unwrap());
        }
        upload.send(chunk.bytes.slice(50_000..)).await;
        assert_eq!(upload.told().await.status, 201);
        got.extend_from_slice(&streaming.whole().await.body);
        assert_eq!(got, chunk.bytes);

        let mut wrong = Chunk::sealed(&session, Variant::AudioPriority, index + 10, 100_000);
        wrong.bytes = vec![0; wrong.bytes.len()].into();
        let mut reading = Exchange::open(&world, http, read(&wrong, &fanout, 25)).await;
        reading.end().await;
        let (mut upload, _) = Upload::begin(&world, Way::Http(http), &wrong, &capability).await;
        upload.send(wrong.bytes.slice(..60_000)).await;
        let mut streaming = reading.head().await;
        upload.send(wrong.bytes.slice(60_000..)).await;
        assert_eq!(upload.told().await.code, "hash_mismatch");
        let mut got = 0;
        let cut = loop {
            match soon("the end", streaming.next()).await {
                None => break false,
                Some(Err(())) => break true,
                Some(Ok(bytes)) => got += bytes.len(),
            }
        };
        assert!(cut && got < wrong.bytes.len(), "{http:?}: a body that is not the chunk looks whole");
        let master = Chunk::sealed(&session, Variant::EvidenceMaster, index, 1_000);
        assert_eq!(bring(&world, Way::Http(http), &master, &capability).await.status, 201);
        let refused = ask(&world, http, read(&master, &fanout, 20), "").await;
        assert_eq!((refused.status.as_u16(), refused.code().as_str()), (403, "not_watchable"));
        let never = Chunk::sealed(&session, Variant::AudioPriority, index + 20, 1_000);
        let refused = ask(&world, http, read(&never, &fanout, 1), "").await;
        assert_eq!((refused.status.as_u16(), refused.code().as_str()), (404, "chunk_not_in_window"));
    }
}

/// The lane's Proofline tokens, which only the core can vouch for: to watch, and to upload to the
/// group of those who watch so.
fn proofline(session: &Session) -> (String, String) {
    let sound = session.streams.iter().find(|stream| stream.variant == Variant::AudioPriority).unwrap();
    let tokens = sound.proofline.clone().unwrap();
    (tokens.fanout, tokens.upload)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renewal_that_the_core_thinks_over_holds_up_nothing() {
    let world = World::new().await;
    let session = world.session().await;
    let (first, upload) = proofline(&session);
    let mut contact = Contact::open(&world, Eye::Ws(Ws::H1), &first).await;
    // Another token for the same stream, which the core has not vouched for yet, and will not soon.
    let thinks = Fault::new(FaultRoute::FanoutAuthorize, Effect::Delay { ms: 600_000 });
    world.core.faults().add(thinks.times(1));
    let stream = session.streams.iter().find(|stream| stream.variant == Variant::AudioPriority).unwrap();
    let path = format!("/v1/incidents/{}/streams/{}/relay-session", session.incident, stream.stream);
    let request = Request::post(path)
        .header("host", "core")
        .header("authorization", format!("Bearer {}", world.core.account_token()))
        .body(http_body_util::Full::from("{}"))
        .unwrap();
    let made = waystation_tests::http::send(world.core.addr(), request).await;
    let made: serde_json::Value = serde_json::from_slice(&made.body).unwrap();
    let second = made["relay_session"]["fanout_capability"].as_str().unwrap();
    assert_ne!(second, first);
    let renew = serde_json::json!({ "capability": second }).to_string();
    contact.send(frame::encode(kind::RENEW, renew.as_bytes())).await;
    let asked = async {
        while !world.core.faults().waiting().is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    soon("the core being asked", asked).await;
    // The core still thinks; chunks come and go, and commands are heard.
    let chunk = Chunk::sealed(&session, Variant::AudioPriority, 1, 3_000);
    assert_eq!(bring(&world, Way::Http(Http::H1), &chunk, &upload).await.status, 201);
    let begins = contact.begins().await;
    contact.until_so("all of it", |contact| contact.held(begins.handle) == chunk.bytes.len()).await;
    let fetch = serde_json::json!({ "stream": chunk.offer.stream, "index": 1 }).to_string();
    contact.send(frame::encode(kind::FETCH, fetch.as_bytes())).await;
    assert_eq!(contact.begins().await.index, 1, "it was sent again");
}
