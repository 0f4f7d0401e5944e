//! Contacts with Proofline tokens are authorised again while they watch, on every transport: only
//! the core's refusal ends anything.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::Request;
use waystation::clock::Clock;
use waystation_devcore::session::Session;
use waystation_devcore::{Effect, Fault, FaultRoute};
use waystation_proto::Variant;
use waystation_tests::contact::{Contact, Eye, get_watch};
use waystation_tests::peer::{Upload, Way, bring};
use waystation_tests::wire::{Exchange, Http, Streaming, Ws, ask, soon};
use waystation_tests::{Chunk, Setup, World};

use crate::capability::{claims, revoke};

/// Every second, of a budget whose tenth is ten calls a second.
async fn world(proofline_secret: bool) -> World {
    let toml = "[fanout]\nreauthorize_every = \"1s\"\n".into();
    World::with(Setup { toml, proofline_secret, max_requests_per_minute: 6000, ..Setup::default() }).await
}

/// The sound lane's tokens: to watch, and to upload.
fn tokens(session: &Session) -> (String, String) {
    let sound = session.streams.iter().find(|stream| stream.variant == Variant::AudioPriority).unwrap();
    let tokens = sound.proofline.clone().unwrap();
    (tokens.fanout, tokens.upload)
}

fn times(outcome: &str) -> String {
    format!("waystation_fanout_rechecks_total{{outcome=\"{outcome}\"}}")
}

/// The drop-in route, and what it said.
struct Events(Streaming, String);

impl Events {
    async fn open(world: &World, session: &Session, token: &str) -> Self {
        let payload = URL_SAFE_NO_PAD.decode(token.split('.').nth(1).unwrap()).unwrap();
        let claims: serde_json::Value = serde_json::from_slice(&payload).unwrap();
        let request = Request::get("/fanout/subscribe")
            .header("host", "localhost")
            .header("x-proofline-relay-session-id", claims["relay_session_id"].as_str().unwrap())
            .header("x-proofline-relay-fanout-capability", token)
            .header("x-proofline-relay-incident-id", session.incident.as_str())
            .header("x-proofline-relay-stream-id", claims["stream_id"].as_str().unwrap())
            .body(())
            .unwrap();
        let mut exchange = Exchange::open(world, Http::H1, request).await;
        exchange.end().await;
        let streaming = exchange.head().await;
        assert_eq!(streaming.status, 200);
        Self(streaming, String::new())
    }

    async fn until(&mut self, text: &str) {
        while !self.1.contains(text) {
            let more = soon(text, self.0.next()).await.unwrap_or_else(|| panic!("no {text} in {}", self.1)).unwrap();
            self.1.push_str(std::str::from_utf8(&more).unwrap());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_the_core_takes_back_ends_what_is_watched_with_it_and_nothing_else_does() {
    let world = world(false).await;
    let session = world.session().await;
    let (fanout, upload) = tokens(&session);
    let mut contacts = Vec::new();
    for eye in Eye::ALL {
        contacts.push(Contact::open(&world, eye, &fanout).await);
    }
    let mut events = Events::open(&world, &session, &fanout).await;
    let mut other = Contact::open(&world, Eye::Ws(Ws::H1), session.fanout_capability.as_ref().unwrap()).await;
    world.until_metric(&times("authorized"), |times| times >= 2.0).await;
    assert_eq!(world.metric("waystation_fanout_proofline_capabilities").await, 1.0, "one, however many hold it");

    // Failing, away: nobody is let go.
    world.core.faults().add(Fault::refuse(FaultRoute::FanoutAuthorize, 500, "internal_error").times(1));
    world.until_metric(&times("unanswered"), |times| times >= 1.0).await;
    world.core.faults().set_away(true);
    world.until_metric(&times("unanswered"), |times| times >= 2.0).await;
    world.until_metric("waystation_fanout_rechecks_overdue", |overdue| overdue == 1.0).await;
    world.core.faults().set_away(false);
    let before = world.metric(&times("authorized")).await;
    world.until_metric(&times("authorized"), |times| times > before).await;
    world.until_metric("waystation_fanout_rechecks_overdue", |overdue| overdue == 0.0).await;
    let chunk = Chunk::sealed(&session, Variant::AudioPriority, 1, 9_000);
    assert_eq!(bring(&world, Way::Http(Http::H1), &chunk, &upload).await.status, 201);
    for contact in &mut contacts {
        assert_eq!(contact.begins().await.index, 1);
    }
    events.until("relay_chunk").await;
    assert_eq!(world.metric(&times("refused")).await, 0.0);

    let refusal = Fault::refuse(FaultRoute::FanoutAuthorize, 403, "relay_capability_revoked");
    world.core.faults().add(refusal);
    for (eye, contact) in Eye::ALL.into_iter().zip(&mut contacts) {
        assert_eq!(contact.ending().await, "capability_revoked", "{eye:?}");
    }
    events.until("\"error_code\":\"capability_revoked\",\"terminal\":true").await;
    assert_eq!(world.metric(&times("refused")).await, 1.0);
    world.until_metric("waystation_fanout_proofline_capabilities", |held| held == 0.0).await;
    // It is good for nothing any more, although this relay knew it.
    let again = ask(&world, Http::H1, get_watch(&fanout, ""), "").await;
    assert_eq!(again.status, 401);
    // Whoever watches with a JWT is not asked about, and watches on.
    let chunk = Chunk::sealed(&session, Variant::LivePreview, 1, 9_000);
    let jwt = session.upload_capability.as_ref().unwrap();
    assert_eq!(bring(&world, Way::Http(Http::H1), &chunk, jwt).await.status, 201);
    assert_eq!(other.begins().await.index, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_the_relay_verifies_itself_is_the_cores_to_take_back_too() {
    let world = world(true).await;
    let session = world.session().await;
    let (fanout, upload) = tokens(&session);
    let mut contact = Contact::open(&world, Eye::Ws(Ws::H2), &fanout).await;
    let closed = Fault::refuse(FaultRoute::FanoutAuthorize, 409, "incident_closed");
    world.core.faults().add(closed);
    assert_eq!(contact.ending().await, "core_rejected");
    let again = ask(&world, Http::H2, get_watch(&fanout, ""), "").await;
    assert_eq!((again.status.as_u16(), again.code().as_str()), (409, "core_rejected"));
    // The core changed its mind.
    world.core.faults().clear();
    let mut contact = Contact::open(&world, Eye::Ws(Ws::H1), &fanout).await;
    world.until_metric(&times("authorized"), |times| times >= 2.0).await;
    // Being limited, which slows everything for a minute, is no refusal either.
    let limited = Effect::Refuse { status: 429, code: "rate_limited".into(), retry_after_s: Some(1) };
    world.core.faults().add(Fault::new(FaultRoute::FanoutAuthorize, limited).times(1));
    world.until_metric(&times("unanswered"), |times| times >= 1.0).await;
    let chunk = Chunk::sealed(&session, Variant::AudioPriority, 1, 9_000);
    let (mut sending, _) = Upload::begin(&world, Way::Http(Http::H1), &chunk, &upload).await;
    sending.send(chunk.bytes.slice(..5_000)).await;
    assert_eq!(contact.begins().await.index, 1);
    assert_eq!(world.metric(&times("refused")).await, 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_taken_back_just_after_the_relay_asked_is_over_within_the_time_that_is_set() {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let clock = Clock::at_unix_ms(now.as_millis() as i64);
    let toml = "[fanout]\nreauthorize_every = \"30s\"\n[limits]\nidle_timeout = \"10m\"\n".into();
    let world = World::with(Setup { toml, clock: clock.clone(), ..Setup::default() }).await;
    // The list is read, and the time stands until it is read again.
    let read = "waystation_capability_fetches_total{source=\"revocations\",outcome=\"ok\"}";
    world.until_metric(read, |times| times == 1.0).await;
    let session = world.session().await;
    let (proofline, jwt) = (tokens(&session).0, session.fanout_capability.clone().unwrap());
    let mut contacts = Vec::new();
    for eye in Eye::ALL {
        for token in [&proofline, &jwt] {
            contacts.push((eye, Contact::open(&world, eye, token).await));
        }
    }
    revoke(&world, claims(&jwt)["jti"].as_str().unwrap()).await;
    world.core.faults().add(Fault::refuse(FaultRoute::FanoutAuthorize, 403, "relay_capability_revoked"));
    clock.advance(Duration::from_secs(30));
    for (eye, contact) in &mut contacts {
        assert_eq!(contact.ending().await, "capability_revoked", "{eye:?}");
    }
}
