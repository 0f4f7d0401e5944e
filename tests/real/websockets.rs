//! Python `websockets`: `/capture` and `/watch`, with their subprotocols.

use serde_json::{Value, json};
use waystation_proto::Variant;
use waystation_tests::{Chunk, Setup, World};

use crate::program::{Program, bytes_of, described, merge, relay, saw, states};

fn capture(world: &World, capability: &str, chunks: &[&Chunk], more: Value) -> Value {
    let chunks: Vec<Value> =
        chunks.iter().map(|chunk| json!({ "file": bytes_of(world, chunk), "chunk": described(chunk) })).collect();
    let mut params = relay(world);
    merge(&mut params, json!({ "capabilities": [capability], "chunks": chunks }));
    merge(&mut params, more);
    params
}

async fn captured(params: Value) -> Value {
    Program::python("ws_capture.py").told(params).await.done().await
}

fn watch(world: &World, capability: Option<&str>, more: Value) -> Value {
    let mut params = relay(world);
    merge(&mut params, json!({ "capability": capability }));
    merge(&mut params, more);
    params
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn python_captures_several_lanes_on_one_websocket() {
    let world = World::new().await;
    let session = world.session().await;
    let capability = session.upload_capability.as_deref().unwrap();
    let chunks = [Variant::AudioPriority, Variant::LivePreview, Variant::EvidenceMaster, Variant::LocationContext]
        .map(|variant| Chunk::sealed(&session, variant, 1, 150_000));
    let all: Vec<&Chunk> = chunks.iter().collect();
    let result = captured(capture(&world, capability, &all, json!({}))).await;
    assert_eq!(result["subprotocol"], "waystation.capture.v1");
    assert_eq!(result["welcome"]["protocol"], 1);
    for (chunk, told) in chunks.iter().zip(result["chunks"].as_array().unwrap()) {
        assert_eq!(told["sent"], chunk.bytes.len());
        assert_eq!(told["states"].as_array().unwrap().last().unwrap(), "confirmed");
        assert!(told["receipt"].is_string(), "{told}");
    }
    assert_eq!(result["closed"]["code"], 1000, "{result}");
    assert_eq!(world.core.stats().await.stored_chunks, 4);

    // A repeat on a new connection is answered without a byte.
    let again = captured(capture(&world, capability, &all, json!({}))).await;
    assert!(again["chunks"].as_array().unwrap().iter().all(|told| told["sent"] == 0), "{again}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_python_contact_holds_half_a_chunk_while_its_sender_has_stopped() {
    let world = World::new().await;
    let session = world.session().await;
    let chunk = Chunk::sealed(&session, Variant::LivePreview, 1, 256 << 10);
    let half = chunk.bytes.len() / 2;
    let fanout = session.fanout_capability.as_deref();
    let params = watch(&world, fanout, json!({ "chunks": 1, "state": "confirmed" }));
    let mut contact = Program::python("ws_watch.py").told(params).await;
    assert_eq!(contact.named("open").await["subprotocol"], "waystation.watch.v1");
    contact.named("0x31").await;

    let upload = session.upload_capability.as_deref().unwrap();
    let params = capture(&world, upload, &[&chunk], json!({ "stop_at": half }));
    let mut sender = Program::python("ws_capture.py").told(params).await;
    sender.named("stopped").await;
    contact.event(|line| line["event"] == "piece" && line["received"] == half).await;
    sender.go_on().await;
    sender.done().await;
    let seen = contact.done().await;
    saw(&seen, &[&chunk]);
    let told = states(&seen, &chunk);
    assert_eq!((told.first(), told.last()), (Some(&"arriving"), Some(&"confirmed")), "{told:?}");

    let late = watch(&world, fanout, json!({ "from": { "stream": chunk.offer.stream.as_str(), "index": 1 } }));
    let seen = Program::python("ws_watch.py").told(late).await.done().await;
    saw(&seen, &[&chunk]);
    assert_eq!(states(&seen, &chunk), ["confirmed"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn python_is_told_why_a_websocket_ends() {
    let world = World::new().await;
    let session = world.session().await;
    let chunk = Chunk::sealed(&session, Variant::LivePreview, 1, 1000);
    let params = watch(&world, Some("nonsense"), json!({}));
    let (_, seen) = Program::python("ws_watch.py").told(params).await.end().await;
    assert_eq!((&seen["ending"]["reason"], &seen["ok"]), (&json!("capability_invalid"), &json!(false)), "{seen}");
    assert_eq!(seen["closed"]["code"], 4401);

    let params = capture(&world, "nonsense", &[&chunk], json!({}));
    let (_, told) = Program::python("ws_capture.py").told(params).await.end().await;
    assert_eq!(
        (&told["bye"]["reason"], &told["closed"]["code"]),
        (&json!("capability_invalid"), &json!(4401)),
        "{told}"
    );

    let fanout = session.fanout_capability.as_deref().unwrap();
    let params = capture(&world, fanout, &[&chunk], json!({}));
    let (_, told) = Program::python("ws_capture.py").told(params).await.end().await;
    assert_eq!(told["chunks"][0]["error"]["code"], "capability_wrong_use", "{told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_that_is_not_in_the_list_gets_no_websocket() {
    let allowed_origins = vec!["https://view.example".to_owned()];
    let world = World::with(Setup { allowed_origins, ..Setup::default() }).await;
    let session = world.session().await;
    let chunk = Chunk::sealed(&session, Variant::AudioPriority, 1, 3000);
    let upload = session.upload_capability.as_deref().unwrap();
    captured(capture(&world, upload, &[&chunk], json!({ "origin": "https://view.example" }))).await;

    let fanout = session.fanout_capability.as_deref();
    let from = |origin: &str| watch(&world, fanout, json!({ "from": "oldest", "origin": origin }));
    saw(&Program::python("ws_watch.py").told(from("https://view.example")).await.done().await, &[&chunk]);
    let (_, refused) = Program::python("ws_watch.py").told(from("https://elsewhere.example")).await.end().await;
    assert!(refused["error"].as_str().unwrap().contains("HTTP 403"), "{refused}");
}
