//! A contact with a link: its grant becomes capabilities, it watches, it is told when the grant is
//! revoked, and what it missed it gets from the core.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use http::Request;
use http_body_util::Full;
use serde_json::{Value, json};
use waystation_client::GroupKey;
use waystation_client::authority::{Authority as _, ContactAuthority, DevcoreAuthority, Grant, Wishes};
use waystation_client::connect::{Endpoint, Transport, Trust};
use waystation_client::link::Link;
use waystation_client::watch::{Config, Event, MAX_CHUNK, Watch};
use waystation_devcore::session::Session;
use waystation_proto::message::StartWord;
use waystation_proto::{ContactState, GroupId, IncidentId, Variant};
use waystation_tests::contact::{Contact, Eye};
use waystation_tests::http::{Answer, send};
use waystation_tests::peer::{Way, bring};
use waystation_tests::wire::{Http, soon};
use waystation_tests::{Chunk, Setup, World};

/// A relay that asks the core every second who was revoked.
async fn world(core: impl Fn(&mut waystation_devcore::Options) + Send + 'static) -> World {
    let toml = "[fanout]\nreauthorize_every = \"1s\"\n".into();
    World::with(Setup { toml, core: Box::new(core), ..Setup::default() }).await
}

/// What the account does at the core.
fn account(world: &World, session: &Session) -> DevcoreAuthority {
    let core = Endpoint::parse(&world.core.url(), Trust::certificates(Vec::new()).unwrap()).unwrap();
    let (incident, group) = (IncidentId::new(&session.incident).unwrap(), GroupId::new(&session.group).unwrap());
    DevcoreAuthority::of(&core, world.core.account_token().to_owned().into(), incident, group, Wishes::default())
}

/// The link as the contact gets it.
async fn link(world: &World, account: &DevcoreAuthority) -> (Grant, Link) {
    let grant = account.contact_grant().await.unwrap();
    let link = Link {
        relay: format!("http://{}", world.plain()),
        webtransport: None,
        core: world.core.url(),
        grant: grant.secret.clone(),
        key: GroupKey::new([42; 32]),
    };
    let text = link.write("https://page.example/").unwrap();
    (grant, Link::parse(&text).unwrap())
}

fn authority(link: &Link) -> ContactAuthority {
    let core = Endpoint::parse(&link.core, Trust::certificates(Vec::new()).unwrap()).unwrap();
    ContactAuthority::new(&core, link.grant.clone())
}

/// Watches as the link says, from the oldest chunk on.
async fn watch(link: &Link) -> Watch {
    let authority = authority(link);
    let config = Config {
        relay: Endpoint::parse(&link.relay, Trust::certificates(Vec::new()).unwrap()).unwrap(),
        transport: Transport::WsPlain,
        group_key: link.key.clone(),
        incident: authority.ids(None).await.unwrap().incident,
        lanes: None,
        from: StartWord::Oldest,
        max_chunk: MAX_CHUNK,
    };
    Watch::start(config, Arc::new(authority))
}

/// Takes events until one `is` it.
async fn until(watch: &mut Watch, what: &str, is: impl Fn(&Event) -> bool) -> Event {
    let waiting = async {
        loop {
            let event = watch.next().await.unwrap_or_else(|| panic!("the end came before {what}"));
            if is(&event) {
                return event;
            }
        }
    };
    soon(what, waiting).await
}

/// A call of the contact's page at the core.
async fn core(world: &World, link: &Link, path: &str) -> Answer {
    use secrecy::ExposeSecret as _;
    let request = Request::get(path)
        .header("host", "core")
        .header("authorization", format!("Bearer {}", link.grant.expose_secret()))
        .body(Full::default());
    send(world.core.addr(), request.unwrap()).await
}

async fn listed(world: &World, link: &Link) -> Vec<Value> {
    let answer = core(world, link, "/v1/contact/chunks").await;
    let json: Value = serde_json::from_slice(&answer.body).unwrap();
    json["chunks"].as_array().unwrap().clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_contact_watches_with_its_link_until_it_is_revoked() {
    let world = world(|_| ()).await;
    let session = world.session().await;
    let upload = session.upload_capability.clone().unwrap();
    let account = account(&world, &session);
    let (grant, link_of_one) = link(&world, &account).await;
    let (_, link_of_other) = link(&world, &account).await;
    let mut one = watch(&link_of_one).await;
    let mut other = watch(&link_of_other).await;
    let token = authority(&link_of_one).fanout_capability().await.unwrap();
    let mut raw = Vec::new();
    for eye in Eye::ALL {
        raw.push(Contact::open(&world, eye, token.as_str()).await);
    }
    let first = Chunk::sealed(&session, Variant::AudioPriority, 1, 30_000);
    assert_eq!(bring(&world, Way::Http(Http::H1), &first, &upload).await.status, 201);
    for watch in [&mut one, &mut other] {
        let Event::Complete(whole) = until(watch, "a chunk", |event| matches!(event, Event::Complete(_))).await else {
            unreachable!()
        };
        assert_eq!(whole.plaintext.len(), 30_000, "opened with the key of the link");
        let confirmed = |event: &Event| matches!(event, Event::State { state: ContactState::Confirmed, .. });
        until(watch, "the core's word", confirmed).await;
    }

    account.revoke(&grant.id).await.unwrap();
    for (eye, mut contact) in Eye::ALL.into_iter().zip(raw) {
        assert_eq!(contact.ending().await, "capability_revoked", "{eye:?}");
    }
    let ending = until(&mut one, "the end", |event| matches!(event, Event::Ending { .. })).await;
    assert!(matches!(ending, Event::Ending { reason } if reason == "capability_revoked"));
    assert!(soon("nothing more", one.next()).await.is_none(), "it does not come back");
    assert!(authority(&link_of_one).fanout_capability().await.is_err());
    assert_eq!(core(&world, &link_of_one, "/v1/contact/chunks").await.code(), "grant_revoked");

    // Nobody else notices.
    let second = Chunk::sealed(&session, Variant::AudioPriority, 2, 3_000);
    assert_eq!(bring(&world, Way::Http(Http::H1), &second, &upload).await.status, 201);
    let more = |event: &Event| matches!(event, Event::Complete(whole) if whole.label.index == 2);
    until(&mut other, "the next chunk", more).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn subscriptions_end_soon_after_their_incident_was_closed() {
    let world = world(|_| ()).await;
    let (session, other) = (world.session().await, world.session().await);
    let (_, link) = link(&world, &account(&world, &session)).await;
    let mut watch = watch(&link).await;
    let of_grant = authority(&link).fanout_capability().await.unwrap();
    let mut open = Vec::new();
    for eye in Eye::ALL {
        open.push(Contact::open(&world, eye, of_grant.as_str()).await);
        // The account's own capability to watch ends too.
        open.push(Contact::open(&world, eye, session.fanout_capability.as_deref().unwrap()).await);
    }
    let mut elsewhere = Contact::open(&world, Eye::ALL[0], other.fanout_capability.as_deref().unwrap()).await;

    let close = Request::post(format!("/v1/incidents/{}/close", session.incident))
        .header("host", "core")
        .header("authorization", format!("Bearer {}", world.core.account_token()))
        .header("content-type", "application/json")
        .body(Full::from("{}"));
    assert_eq!(send(world.core.addr(), close.unwrap()).await.status, 200);
    for mut contact in open {
        assert_eq!(contact.ending().await, "capability_revoked");
    }
    let ending = until(&mut watch, "the end", |event| matches!(event, Event::Ending { .. })).await;
    assert!(matches!(ending, Event::Ending { reason } if reason == "capability_revoked"));
    let refused = authority(&link).fanout_capability().await;
    assert!(refused.is_err(), "there is no other one");

    // Another incident's contact notices nothing.
    let chunk = Chunk::sealed(&other, Variant::AudioPriority, 1, 3_000);
    assert_eq!(bring(&world, Way::Http(Http::H1), &chunk, other.upload_capability.as_ref().unwrap()).await.status, 201);
    assert_eq!(elsewhere.begins().await.index, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscription_outlives_its_capabilities_on_one_connection() {
    let world = world(|options| options.contact_ttl = Duration::from_secs(4)).await;
    let session = world.session().await;
    let (_, link) = link(&world, &account(&world, &session)).await;
    let mut watch = watch(&link).await;
    for _ in 0..3 {
        let renewed = until(&mut watch, "a renewal", |event| {
            assert!(!matches!(event, Event::Disconnected { .. } | Event::Ending { .. }), "the connection stays");
            matches!(event, Event::Renewed)
        });
        renewed.await;
    }
    let chunk = Chunk::sealed(&session, Variant::LivePreview, 1, 3_000);
    let upload = session.upload_capability.as_ref().unwrap();
    assert_eq!(bring(&world, Way::Http(Http::H1), &chunk, upload).await.status, 201);
    until(&mut watch, "a chunk", |event| matches!(event, Event::Complete(_))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_left_the_window_is_had_from_the_core() {
    let world = world(|_| ()).await;
    let session = world.session().await;
    let upload = session.upload_capability.clone().unwrap();
    let account = account(&world, &session);
    let (_, link) = link(&world, &account).await;
    assert_eq!(listed(&world, &link).await, Vec::<Value>::new());
    let mut recorded = BTreeMap::new();
    for index in 1..=4 {
        for variant in [Variant::LivePreview, Variant::AudioPriority, Variant::EvidenceMaster] {
            let chunk = Chunk::sealed(&session, variant, index, 20_000);
            assert_eq!(bring(&world, Way::Http(Http::H1), &chunk, &upload).await.status, 201);
            if variant != Variant::EvidenceMaster {
                recorded.insert(chunk.chunk_ref().to_string(), chunk);
            }
        }
    }
    // The relay is gone, with its window; the core is not.
    let mut world = world;
    world.stop_relay().await;
    let list = listed(&world, &link).await;
    assert_eq!(list.len(), recorded.len());
    for entry in list {
        let name = entry["ref"].as_str().unwrap();
        let chunk = recorded.remove(name).expect("each once");
        let offer = &chunk.offer;
        let stated = json!([offer.stream, offer.index, offer.length, offer.sha256, offer.started, offer.ended]);
        let told = ["stream", "index", "length", "sha256", "started", "ended"].map(|member| entry[member].clone());
        assert_eq!(json!(told), stated);
        let held = core(&world, &link, &format!("/v1/contact/chunks/{name}")).await;
        assert_eq!(held.body, chunk.bytes);
        assert_eq!(digest(&SHA256, &held.body).as_ref(), offer.sha256.0);
    }
    assert!(recorded.is_empty());
}
