//! A client of server-sent events on the drop-in route, with the core's own tokens.

use serde_json::{Value, json};
use waystation_devcore::session::Session;
use waystation_proto::Variant;
use waystation_tests::peer::{Way, bring};
use waystation_tests::wire::Http;
use waystation_tests::{Chunk, World};

use crate::program::Program;

fn subscription(world: &World, session: &Session, capability: &str, relay_session: &str, more: Value) -> Value {
    let mut params = json!({
        "url": format!("http://{}", world.plain()),
        "headers": {
            "x-proofline-relay-session-id": relay_session,
            "x-proofline-relay-fanout-capability": capability,
            "x-proofline-relay-incident-id": session.incident,
            "x-proofline-relay-stream-id": session.streams[0].stream,
        },
    });
    crate::program::merge(&mut params, more);
    params
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_source_sees_each_chunk_and_the_cores_word() {
    let world = World::new().await;
    let session = world.session().await;
    let tokens = session.streams[0].proofline.clone().unwrap();
    let more = json!({ "confirmed": 3 });
    let params = subscription(&world, &session, &tokens.fanout, &tokens.relay_session_id, more);
    let mut client = Program::sse().told(params).await;
    client.named("relay_ready").await;
    let mut wanted = Vec::new();
    for index in 1..=3 {
        let chunk = Chunk::sealed(&session, Variant::AudioPriority, index, 70_000);
        assert_eq!(bring(&world, Way::Http(Http::H1), &chunk, &tokens.upload).await.status, 201);
        wanted.push(json!({ "index": index, "length": chunk.bytes.len(), "sha256": chunk.offer.sha256 }));
    }
    let seen = client.done().await;
    assert_eq!(seen["type"], "text/event-stream");
    assert_eq!(seen["chunks"], json!(wanted), "exactly the bytes, in order");
    let confirmed: Vec<Value> = (1..=3).map(|index| json!({ "index": index, "state": "confirmed" })).collect();
    assert_eq!(seen["states"], json!(confirmed));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_source_is_told_why_it_gets_nothing() {
    let world = World::new().await;
    let session = world.session().await;
    let tokens = session.streams[0].proofline.clone().unwrap();
    let params = subscription(&world, &session, &tokens.upload, &tokens.relay_session_id, json!({ "confirmed": 1 }));
    let (ok, seen) = Program::sse().told(params).await.end().await;
    assert!(!ok && seen["error"].as_str().unwrap().starts_with("403"), "{seen}");
    assert_eq!(seen["chunks"], json!([]));
}
