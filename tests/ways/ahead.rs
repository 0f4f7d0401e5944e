//! The contact that asks for each chunk by itself, over plain HTTP/3 requests.

use std::collections::BTreeSet;
use std::sync::Arc;

use waystation_client::GroupKey;
use waystation_client::authority::{DevcoreAuthority, Wishes};
use waystation_client::connect::{Endpoint, Transport, Trust};
use waystation_client::watch::{Config, Event, MAX_CHUNK, Watch};
use waystation_devcore::session::Session;
use waystation_proto::message::StartWord;
use waystation_proto::{GroupId, IncidentId, Variant};
use waystation_tests::peer::{Way, bring};
use waystation_tests::wire::{Http, soon};
use waystation_tests::{Chunk, Setup, World};

/// Watches everything that the window holds.
fn watch(world: &World, session: &Session) -> Watch {
    let core = Endpoint::parse(&world.core.url(), Trust::certificates(Vec::new()).unwrap()).unwrap();
    let (incident, group) = (IncidentId::new(&session.incident).unwrap(), GroupId::new(&session.group).unwrap());
    let account = world.core.account_token().to_owned().into();
    let authority = DevcoreAuthority::of(&core, account, incident.clone(), group, Wishes::default());
    let trust = Trust::certificates(vec![world.certificate()]).unwrap();
    let config = Config {
        relay: Endpoint::parse(&format!("https://{}", world.public()), trust).unwrap(),
        transport: Transport::H3,
        group_key: GroupKey::new([42; 32]),
        incident,
        lanes: None,
        from: StartWord::Oldest,
        max_chunk: MAX_CHUNK,
    };
    Watch::start(config, Arc::new(authority))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_contact_that_comes_late_gets_every_chunk_of_a_long_window() {
    const EACH: u64 = 75;
    let toml = "[fanout]\nwindow = \"5m\"\n".into();
    let world = World::with(Setup { toml, ..Setup::default() }).await;
    let session = world.session_with(|request| request.max_chunks = Some(200)).await;
    let capability = session.upload_capability.clone().unwrap();
    let mut held = BTreeSet::new();
    for index in 1..=EACH {
        for variant in [Variant::AudioPriority, Variant::LivePreview] {
            let chunk = Chunk::sealed(&session, variant, index, 30_000);
            let told = bring(&world, Way::Http(Http::H1), &chunk, &capability).await;
            assert_eq!((told.status, told.code.as_str()), (201, ""), "{index}");
            held.insert((variant.as_str(), index));
        }
    }
    let mut watch = watch(&world, &session);
    let mut whole = BTreeSet::new();
    while whole.len() < held.len() {
        match soon("a chunk", watch.next()).await.expect("the subscription goes on") {
            Event::Complete(complete) => {
                assert_eq!(complete.plaintext.len(), 30_000);
                let name = (complete.label.variant.as_str(), complete.label.index);
                assert!(whole.insert(name), "{name:?} came twice");
            }
            other @ (Event::Bad { .. } | Event::Omitted { .. } | Event::Disconnected { .. } | Event::Ending { .. }) => {
                panic!("{other:?} after {} chunks", whole.len())
            }
            _ => {}
        }
    }
    assert_eq!(whole, held);
    // What is new comes like before.
    for variant in [Variant::AudioPriority, Variant::LivePreview] {
        let chunk = Chunk::sealed(&session, variant, EACH + 1, 30_000);
        assert_eq!(bring(&world, Way::Http(Http::H1), &chunk, &capability).await.status, 201);
        loop {
            let event = soon("the next chunk", watch.next()).await.expect("the subscription goes on");
            if matches!(event, Event::Complete(whole) if (whole.label.variant, whole.label.index) == (variant, EACH + 1))
            {
                break;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_is_given_up_while_it_waits_frees_its_seat() {
    let world = World::new().await;
    let session = world.session().await;
    let capability = session.upload_capability.clone().unwrap();
    let mut watch = watch(&world, &session);
    for index in [1, 5, 9, 13] {
        // Each time the contact was asking for the next one, which does not come.
        let chunk = Chunk::sealed(&session, Variant::AudioPriority, index, 30_000);
        assert_eq!(bring(&world, Way::Http(Http::H1), &chunk, &capability).await.status, 201);
        while !matches!(soon("the next chunk", watch.next()).await.unwrap(), Event::Complete(_)) {}
    }
    // The next chunk's request with its copies.
    world.until_metric("waystation_fanout_readers", |readers| readers <= 3.0).await;
}
