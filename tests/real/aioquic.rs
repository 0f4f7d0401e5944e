//! aioquic: `PUT` and streaming `/watch` over HTTP/3.

use serde_json::{Value, json};
use waystation_devcore::session::Session;
use waystation_proto::frame::kind;
use waystation_proto::{Digest, Variant, dictionary};
use waystation_tests::{Chunk, World};

use crate::program::{Program, master, merge, relay, said, saw, states, upload};

async fn put(params: Value) -> Value {
    Program::python("aioquic_put.py").told(params).await.done().await
}

fn watch(world: &World, session: &Session, more: Value) -> Value {
    let mut params = relay(world);
    merge(&mut params, json!({ "capability": session.fanout_capability }));
    merge(&mut params, more);
    params
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_put_over_http_3_is_confirmed_and_a_repeat_answered() {
    let world = World::new().await;
    let session = world.session().await;
    let capability = session.upload_capability.as_deref().unwrap();
    let chunk = Chunk::sealed(&session, Variant::LivePreview, 1, 200_000);
    let length = chunk.bytes.len() as u64;

    let answer = put(upload(&world, &chunk, capability, json!({}))).await;
    assert_eq!(said(&answer), (201, "", "confirmed", length));
    assert!(answer["body"]["chunk"]["receipt"].is_string());
    assert!(answer["headers"]["waystation-node"].is_string());
    assert_eq!(answer["headers"]["cache-control"], "no-store");
    let again = put(upload(&world, &chunk, capability, json!({}))).await;
    assert_eq!(said(&again), (200, "", "confirmed", length));
    let stats = world.core.stats().await;
    assert_eq!((stats.stored_chunks, stats.stored_bytes), (1, length));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_hash_over_http_3_is_refused_and_the_right_one_is_taken_then() {
    let world = World::new().await;
    let session = world.session().await;
    let capability = session.upload_capability.as_deref().unwrap();
    let chunk = Chunk::sealed(&session, Variant::AudioPriority, 1, 40_000);
    let other = dictionary::write_digest(&Digest([7; 32]));
    let wrong = json!({ "headers": { "repr-digest": other }, "expect": [400] });
    assert_eq!(said(&put(upload(&world, &chunk, capability, wrong)).await).1, "hash_mismatch");
    assert_eq!(world.core.stats().await.stored_chunks, 0);
    assert_eq!(said(&put(upload(&world, &chunk, capability, json!({}))).await).0, 201);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_over_http_3_arrives_although_the_body_is_large() {
    let world = World::new().await;
    let session = world.session().await;
    // Below and above what the relay reads of a body that it refused.
    for (index, length) in [(1, 3 << 20), (2, 12 << 20)] {
        let chunk = master(&session, index, length);
        for (capability, status, code) in [
            ("nonsense", 401, "capability_invalid"),
            (session.fanout_capability.as_deref().unwrap(), 403, "capability_wrong_use"),
        ] {
            let answer = put(upload(&world, &chunk, capability, json!({ "expect": [status] }))).await;
            assert_eq!(said(&answer), (status, code, "", 0));
        }
    }
    assert_eq!(world.core.stats().await.stored_chunks, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_contact_on_http_3_holds_half_a_chunk_while_its_sender_has_stopped() {
    let world = World::new().await;
    let session = world.session().await;
    let capability = session.upload_capability.as_deref().unwrap();
    let chunk = Chunk::sealed(&session, Variant::LivePreview, 1, 256 << 10);
    let half = chunk.bytes.len() / 2;

    let params = watch(&world, &session, json!({ "chunks": 1, "state": "confirmed" }));
    let mut contact = Program::python("aioquic_watch.py").told(params).await;
    contact.named("0x31").await;
    let params = upload(&world, &chunk, capability, json!({ "stop_at": half }));
    let mut sender = Program::python("aioquic_put.py").told(params).await;
    sender.named("stopped").await;
    contact.event(|line| line["event"] == "piece" && line["received"] == half).await;

    sender.go_on().await;
    assert_eq!(said(&sender.done().await).0, 201);
    let seen = contact.done().await;
    saw(&seen, &[&chunk]);
    let told = states(&seen, &chunk);
    assert_eq!((told.first(), told.last()), (Some(&"arriving"), Some(&"confirmed")), "{told:?}");
    assert!(told.contains(&"near_live_unconfirmed"), "{told:?}");
    assert_eq!(seen["chunks"][0]["replay"], false);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_contact_on_http_3_gets_the_window_with_the_newest_states() {
    let world = World::new().await;
    let session = world.session().await;
    let capability = session.upload_capability.as_deref().unwrap();
    let chunks = [1, 2].map(|index| Chunk::sealed(&session, Variant::AudioPriority, index, 6000));
    for chunk in &chunks {
        assert_eq!(said(&put(upload(&world, chunk, capability, json!({}))).await).0, 201);
    }
    let params = watch(&world, &session, json!({ "from": "oldest", "lanes": ["audio_priority"], "chunks": 2 }));
    let seen = Program::python("aioquic_watch.py").told(params).await.done().await;
    saw(&seen, &[&chunks[0], &chunks[1]]);
    for chunk in &chunks {
        assert_eq!(states(&seen, chunk), ["confirmed"]);
    }
    assert!(seen["chunks"].as_array().unwrap().iter().all(|chunk| chunk["replay"] == true));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_contact_on_http_3_without_the_right_is_told_so() {
    let world = World::new().await;
    let session = world.session().await;
    let params = watch(&world, &session, json!({ "capability": session.upload_capability }));
    let (ok, refused) = Program::python("aioquic_watch.py").told(params).await.end().await;
    assert!(!ok);
    assert_eq!(
        (&refused["status"], &refused["refusal"]["error"]["code"]),
        (&json!(403), &json!("capability_wrong_use"))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_contact_on_webtransport_sees_chunks_and_their_verdicts() {
    let world = World::new().await;
    let session = world.session().await;
    let capability = session.upload_capability.as_deref().unwrap();
    let chunks = [(Variant::AudioPriority, 1), (Variant::LivePreview, 1)];
    let chunks = chunks.map(|(lane, index)| Chunk::sealed(&session, lane, index, 200_000));
    let wanted = json!({ "from": "oldest", "chunks": 2, "state": "confirmed" });
    let watching = Program::python("aioquic_session.py").told(watch(&world, &session, wanted)).await;
    for chunk in &chunks {
        assert_eq!(said(&put(upload(&world, chunk, capability, json!({}))).await).0, 201);
    }
    let result = watching.done().await;
    saw(&result, &chunks.each_ref());
    assert_eq!(result["kinds"]["chunk"], json!([kind::CHUNK, kind::PIECE, kind::COMPLETE]));
}
