//! The unchanged core: HMAC tokens alone, 120 calls a minute for each class.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::json;
use tokio::task::JoinSet;
use waystation::clock::Clock;
use waystation_devcore::session::Session;
use waystation_devcore::{Clock as CoreClock, Options};
use waystation_proto::{Media, Variant};
use waystation_tests::{Chunk, Setup, World, http};

use crate::contact::Contact;
use crate::rig::{account, proofline, virtual_clock};

const STEP: Duration = Duration::from_millis(100);
/// Virtual seconds that are recorded.
const SECONDS: u64 = 90;
/// Each lane cuts a chunk every two seconds.
const EVERY_STEPS: u64 = 20;
const CONTACTS: usize = 100;

async fn unchanged_core() -> World {
    let clock = virtual_clock();
    let start = clock.unix_ms();
    let setup = Setup {
        clock,
        max_requests_per_minute: 120,
        // They all come from this machine's one address.
        toml: "[limits]\nin_flight_per_client = 1024\nrequests_per_client = 1000000".into(),
        core: Box::new(move |options| {
            *options = Options { clock: CoreClock::manual(start), ..Options::unchanged_core(options.data.clone()) };
            options.calls_per_minute = 0;
        }),
        ..Setup::default()
    };
    World::with(setup).await
}

/// Every contact brings a token of its own.
async fn contact_tokens(world: &World, sessions: &[Session; 2]) -> Vec<String> {
    let mut tokens = Vec::new();
    for at in 0..CONTACTS {
        let session = &sessions[at % 2];
        let path = format!("/v1/incidents/{}/streams/{}/relay-session", session.incident, session.streams[0].stream);
        let made = account(world, &path, &json!({})).await;
        tokens.push(made["relay_session"]["fanout_capability"].as_str().unwrap().to_owned());
    }
    tokens
}

/// Watches, and comes back when it is told to.
async fn watch(at: std::net::SocketAddr, token: String, clock: Clock, watching: Arc<AtomicUsize>) {
    loop {
        match Contact::try_watch(at, &token).await {
            Ok(contact) => {
                watching.fetch_add(1, Ordering::SeqCst);
                std::future::pending::<()>().await;
                drop(contact);
            }
            Err((status, code)) => {
                assert_eq!((status, code.as_str()), (503, "core_limited"));
                clock.sleep(Duration::from_secs(5)).await;
            }
        }
    }
}

fn cut(session: &Session, variant: Variant, index: u64) -> Chunk {
    let mut chunk = Chunk::sealed(session, variant, index, 500);
    // A Proofline token names no role; what the client claims may narrow it.
    chunk.offer.role = Some(variant);
    chunk
}

/// Cuts one chunk of each lane of each recording; they are staged when this ends.
async fn cut_all(world: &World, sessions: &[Session; 2], index: u64) {
    let lanes = sessions.iter().flat_map(|session| session.streams.iter().map(move |stream| (session, stream.variant)));
    let uploads = futures_util::future::join_all(lanes.map(|(session, variant)| async move {
        let chunk = cut(session, variant, index);
        let answer = http::upload(world.plain(), &chunk, proofline(session, variant), 0).await;
        assert!(answer.native().chunk.is_some(), "{:?}", answer.body);
    }));
    // The first of each lane waits for its preflight, and so for the clock.
    tokio::select! {
        _ = uploads => {}
        () = async {
            loop {
                tokio::time::sleep(Duration::from_millis(50)).await;
                step(world).await;
            }
        } => {}
    }
}

/// A tenth of a second passes for everybody, and what it let go is on its way.
async fn step(world: &World) {
    world.core.clock().advance(STEP);
    world.clock.advance(STEP);
    for _ in 0..5 {
        http::get(world.at.ops, "/livez").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_recordings_and_a_hundred_contacts_fit_into_120_calls_a_minute() {
    let world = unchanged_core().await;
    let sessions = [world.session().await, world.session().await];
    let tokens = contact_tokens(&world, &sessions).await;
    world.core.set_calls_per_minute(120);

    let (watching, mut contacts) = (Arc::new(AtomicUsize::new(0)), JoinSet::new());
    for token in tokens {
        contacts.spawn(watch(world.plain(), token, world.clock.clone(), Arc::clone(&watching)));
    }
    let mut cut_at = HashMap::new();
    for at in 0..SECONDS * 10 {
        if at % EVERY_STEPS == 0 {
            cut_at.insert(at / EVERY_STEPS + 1, world.clock.unix_ms());
            cut_all(&world, &sessions, at / EVERY_STEPS + 1).await;
        }
        step(&world).await;
    }
    let stats = world.core.stats().await;
    let audio: Vec<_> = stats.commits.iter().filter(|commit| commit.media == Some(Media::Audio)).collect();
    assert!(audio.len() as u64 >= 2 * (SECONDS / 2 - 3), "{} audio chunks went out", audio.len());
    let longest = audio.iter().map(|commit| commit.arrived_ms - cut_at[&commit.index]).max().unwrap();
    assert!(longest <= 5000, "an audio chunk waited {longest} ms");
    let masters = |commit: &&waystation_devcore::Commit| sessions.iter().any(|s| s.streams[2].stream == commit.stream);
    let masters = stats.commits.iter().filter(masters).count();
    assert!(masters * 20 >= stats.commits.len(), "{masters} masters of {}", stats.commits.len());
    assert_eq!(watching.load(Ordering::SeqCst), CONTACTS, "every contact watches");
    assert_eq!(stats.count("commit", "rate_limited") + stats.count("preflight", "rate_limited"), 0);
    assert_eq!(stats.count("fanout_authorize", "rate_limited"), 0);
    // One for each token; those of contacts again while they watch, within a tenth of the calls.
    assert_eq!(stats.calls_of("preflight"), 8);
    let again = stats.calls_of("fanout_authorize") - CONTACTS as u64;
    assert!((1..=SECONDS.div_ceil(60) * 12 + 1).contains(&again), "{again} were asked again");
    for limiter in ["stream", "upload"] {
        let budget = format!("waystation_core_budget_per_minute{{limiter=\"{limiter}\"}}");
        assert_eq!(world.metric(&budget).await, 120.0);
    }
    assert!(contacts.try_join_next().is_none(), "no contact ended");
}
