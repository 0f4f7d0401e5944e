//! curl: `PUT` over HTTP/1.1 and HTTP/2, with what curl does of itself.

use serde_json::{Value, json};
use waystation_devcore::session::Session;
use waystation_proto::Variant;
use waystation_tests::world::PATIENCE;
use waystation_tests::{Chunk, Setup, World};

use crate::program::{Program, described, master, merge, said, upload};

const VERSIONS: [&str; 2] = ["1.1", "2"];

async fn curl(params: Value) -> Value {
    Program::curl("curl_put.sh").told(params).await.done().await
}

fn params(world: &World, chunk: &Chunk, session: &Session, http: &str, more: Value) -> Value {
    let mut params = upload(world, chunk, session.upload_capability.as_deref().unwrap(), json!({ "http": http }));
    merge(&mut params, more);
    params
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn curl_brings_a_chunk_over_both_versions_and_is_spared_a_repeat() {
    let world = World::new().await;
    let session = world.session().await;
    for (index, http) in (1..).zip(VERSIONS) {
        // Above 1 MiB: curl asks with Expect on HTTP/1.1 by itself.
        let chunk = Chunk::sealed(&session, Variant::EvidenceMaster, index, 1_500_000);
        let answer = curl(params(&world, &chunk, &session, http, json!({}))).await;
        assert_eq!((said(&answer).0, &answer["http"]), (201, &json!(http)), "{answer}");
        assert!(answer["body"]["chunk"]["receipt"].is_string());
        let again = curl(params(&world, &chunk, &session, http, json!({}))).await;
        assert_eq!(said(&again), (200, "", "confirmed", chunk.bytes.len() as u64));
    }
    assert_eq!(world.core.stats().await.stored_chunks, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn curl_goes_on_where_it_was_killed() {
    let world = World::new().await;
    let session = world.session().await;
    for (index, http) in (1..).zip(VERSIONS) {
        let chunk = Chunk::sealed(&session, Variant::LivePreview, index, 300_000);
        let (length, half) = (chunk.bytes.len() as u64, chunk.bytes.len() / 2);
        let mut offer = described(&chunk);
        merge(&mut offer, json!({ "length": length }));
        let piped = params(&world, &chunk, &session, http, json!({ "body": "stdin", "chunk": offer }));
        let mut sender = Program::curl("curl_put.sh").told(piped).await;
        sender.write(&chunk.bytes[..half]).await;

        let offset = Value::from(half.to_string());
        let head = || curl(params(&world, &chunk, &session, http, json!({ "method": "HEAD", "expect": [200, 404] })));
        let arrived = async {
            loop {
                let answer = head().await;
                if answer["headers"]["upload-offset"] == offset {
                    break answer;
                }
            }
        };
        let answer = tokio::time::timeout(PATIENCE, arrived).await.expect("half of it never arrived");
        assert_eq!(answer["headers"]["waystation-state"], "receiving");
        assert_eq!(answer["headers"]["upload-complete"], "?0");
        drop(sender);

        let rest = json!({ "offset": half, "headers": { "waystation-chunk": second_attempt(&chunk) } });
        let answer = curl(params(&world, &chunk, &session, http, rest)).await;
        assert_eq!(said(&answer), (201, "", "confirmed", length), "{answer}");
        assert_eq!(answer["sent"], chunk.bytes.len() - half);
        assert_eq!(head().await["headers"]["upload-complete"], "?1");
    }
}

/// Its dictionary, of a second attempt.
fn second_attempt(chunk: &Chunk) -> String {
    let mut offer = chunk.offer.clone();
    offer.attempt = 2;
    waystation_proto::dictionary::write_offer(&offer)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn curl_that_waits_for_100_continue_is_told_to_go_on_or_spared_the_body() {
    let world = World::new().await;
    let session = world.session().await;
    let waits = |more: Value| {
        let mut params = json!({ "continue": "always" });
        merge(&mut params, more);
        params
    };
    let chunk = Chunk::sealed(&session, Variant::LivePreview, 1, 50_000);
    let answer = curl(params(&world, &chunk, &session, "1.1", waits(json!({})))).await;
    assert_eq!((said(&answer).0, &answer["sent"]), (201, &json!(chunk.bytes.len())));

    let again = curl(params(&world, &chunk, &session, "1.1", waits(json!({})))).await;
    assert_eq!((said(&again).0, &again["sent"]), (200, &json!(0)), "a repeat costs no body");

    let chunk = Chunk::sealed(&session, Variant::LivePreview, 2, 50_000);
    let wrong = waits(json!({ "capability": "nonsense", "expect": [401] }));
    let refused = curl(params(&world, &chunk, &session, "1.1", wrong)).await;
    assert_eq!((said(&refused).1, &refused["sent"]), ("capability_invalid", &json!(0)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn curl_reads_an_early_refusal_while_it_sends_a_large_body() {
    let setup = Setup { staging: "max_chunk = \"16MiB\"".into(), ..Setup::default() };
    let world = World::with(setup).await;
    let session = world.session().await;
    for http in VERSIONS {
        // The relay reads the first to its end; of the second it reads a part.
        for (index, length) in [(1, 3 << 20), (2, 32 << 20)] {
            let chunk = master(&session, index, length);
            let more = json!({ "capability": "nonsense", "continue": "never", "expect": [401] });
            let answer = curl(params(&world, &chunk, &session, http, more)).await;
            assert_eq!(said(&answer), (401, "capability_invalid", "", 0), "{answer}");
            assert!(length < 16 << 20 || answer["sent"].as_u64().unwrap() < length as u64, "{answer}");
        }
        let chunk = master(&session, 3, 32 << 20);
        let more = json!({ "continue": "never", "expect": [413] });
        let answer = curl(params(&world, &chunk, &session, http, more)).await;
        assert_eq!(said(&answer), (413, "chunk_too_large", "", 0), "{answer}");
    }
    assert_eq!(world.core.stats().await.stored_chunks, 0);
}
