//! Stock clients of tus and of resumable uploads: they upload, are interrupted and go on, and report success when
//! the core has the chunk and not before.

use http::Method;
use serde_json::{Value, json};
use waystation_devcore::session::Session;
use waystation_proto::Variant;
use waystation_tests::http::ask;
use waystation_tests::world::PATIENCE;
use waystation_tests::{Chunk, World};

use crate::program::{Program, merge, said, upload};

/// A stock client, and what it is told beside the upload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Client {
    /// tus-js-client with this protocol.
    TusJs(&'static str),
    Tuspy,
    /// A client after the draft's text, of this interop version.
    Ietf(u8),
}

const ALL: [Client; 6] = [
    Client::TusJs("tus-v1"),
    Client::TusJs("ietf-draft-03"),
    Client::TusJs("ietf-draft-05"),
    Client::Tuspy,
    Client::Ietf(6),
    Client::Ietf(8),
];

impl Client {
    async fn begin(self, world: &World, session: &Session, chunk: &Chunk, more: Value) -> Program {
        let mut params = upload(world, chunk, session.upload_capability.as_deref().unwrap(), json!({}));
        let program = match self {
            Self::TusJs(protocol) => {
                merge(&mut params, json!({ "protocol": protocol }));
                Program::tus_js()
            }
            Self::Tuspy => Program::python("tuspy_upload.py"),
            Self::Ietf(version) => {
                merge(&mut params, json!({ "version": version }));
                Program::python("ietf_upload.py")
            }
        };
        merge(&mut params, more);
        program.told(params).await
    }
}

fn chunk(session: &Session, index: u64) -> Chunk {
    Chunk::sealed(session, Variant::LivePreview, index, 300_000)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stock_clients_upload_whole_and_in_parts() {
    let world = World::new().await;
    let session = world.session().await;
    let mut index = 0;
    for client in ALL {
        for more in
            [json!({}), json!({ "part": 70_000 }), json!({ "part": 70_000, "with_upload": true, "checksum": true })]
        {
            index += 1;
            let chunk = chunk(&session, index);
            let result = client.begin(&world, &session, &chunk, more.clone()).await.done().await;
            assert_eq!(result["path"], format!("/chunks/{}", chunk.chunk_ref()), "{client:?} {more}");
            assert_eq!(world.core.stats().await.stored_chunks, index, "{client:?} {more}: success is the core's");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stock_clients_go_on_after_a_pause_a_kill_and_a_restart_of_the_relay() {
    let mut world = World::new().await;
    let session = world.session().await;
    let parts = json!({ "part": 70_000, "pause_at": 140_000 });
    for (client, index) in ALL.into_iter().zip((1..).step_by(3)) {
        let [paused, killed, restarted] = [0, 1, 2].map(|more| chunk(&session, index + more));
        let mut program = client.begin(&world, &session, &paused, parts.clone()).await;
        assert_eq!(program.named("paused").await["accepted"], 140_000, "{client:?}");
        program.go_on().await;
        program.done().await;

        for (chunk, restart) in [(&killed, false), (&restarted, true)] {
            let mut program = client.begin(&world, &session, chunk, parts.clone()).await;
            let at = program.named("paused").await;
            drop(program);
            if restart {
                world.restart_relay().await;
            }
            let before = received(&world).await;
            let again = client.begin(&world, &session, chunk, json!({ "upload_url": at["path"] })).await;
            again.done().await;
            // No byte that the relay holds is sent again.
            assert_eq!(received(&world).await - before, chunk.bytes.len() as f64 - 140_000.0, "{client:?}");
        }
    }
    assert_eq!(world.core.stats().await.stored_chunks, 18);
}

async fn received(world: &World) -> f64 {
    world.metric("waystation_received_bytes_total{transport=\"h1\"}").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_stock_client_reports_success_while_the_core_is_away() {
    let world = World::new().await;
    let session = world.session().await;
    for (client, index) in ALL.into_iter().zip(1..) {
        world.core.faults().set_away(true);
        let chunk = chunk(&session, index);
        let asked = async || {
            world
                .metric("waystation_requests_total{route=\"chunk_patch\",status=\"5xx\",code=\"core_unavailable\"}")
                .await
        };
        let before = asked().await;
        let held = json!({ "wait": 1, "retries": 200, "part": 200_000 });
        let mut program = client.begin(&world, &session, &chunk, held).await;
        // It was told no twice, by then with every byte at the relay; a result would be read here too.
        if client == Client::Tuspy {
            let told = async {
                while asked().await < before + 2.0 {
                    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                }
            };
            tokio::time::timeout(PATIENCE, told).await.expect("it never asked again");
        } else {
            for _ in 0..3 {
                let retry = program.named("retry").await;
                assert_eq!(retry["status"], 503, "{client:?}");
            }
        }
        assert_eq!(world.core.stats().await.stored_chunks, index - 1);
        world.core.faults().set_away(false);
        program.done().await;
        assert_eq!(world.core.stats().await.stored_chunks, index, "{client:?}: success is the core's");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn curl_is_interrupted_and_continues_by_patch() {
    let world = World::new().await;
    let session = world.session().await;
    let versions = [("1.1", 3), ("1.1", 5), ("2", 6), ("2", 8)];
    for ((http, version), index) in versions.into_iter().zip(1..) {
        let chunk = chunk(&session, index);
        let half = chunk.bytes.len() / 2;
        let (flag, yes) = if version == 3 { ("upload-incomplete", "?0") } else { ("upload-complete", "?1") };
        let mut offer = chunk.offer.clone();
        offer.attempt = 1;
        let with = |more: Value| {
            let mut params =
                upload(&world, &chunk, session.upload_capability.as_deref().unwrap(), json!({ "http": http }));
            let mut headers = json!({ "upload-draft-interop-version": version.to_string() });
            merge(&mut headers, more["headers"].clone());
            merge(&mut params, more);
            params["headers"] = headers;
            params
        };
        let said_of = waystation_proto::dictionary::write_offer(&offer);
        let begun = with(json!({ "body": "stdin", "headers": { "waystation-chunk": said_of, flag: yes } }));
        let mut sender = Program::curl("curl_put.sh").told(begun).await;
        sender.write(&chunk.bytes[..half]).await;
        // The native question changes nothing; curl is killed once its half is here.
        let arrived = async {
            loop {
                let answer =
                    ask(world.plain(), Method::HEAD, &chunk, session.upload_capability.as_deref().unwrap()).await;
                if answer.headers.get("upload-offset").is_some_and(|offset| *offset == *half.to_string()) {
                    break;
                }
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, arrived).await.expect("half of it never arrived");
        drop(sender);

        let gone = json!({ "waystation-chunk": null, "repr-digest": null, "content-type": null });
        let asked = with(json!({ "method": "HEAD", "expect": [204], "headers": gone }));
        let stands = Program::curl("curl_put.sh").told(asked).await.done().await;
        assert_eq!(stands["headers"]["upload-offset"], half.to_string());
        let mut patch = gone.clone();
        merge(&mut patch, json!({ "content-type": "application/partial-upload", flag: yes }));
        let rest = with(json!({ "method": "PATCH", "offset": half, "headers": patch }));
        let answer = Program::curl("curl_put.sh").told(rest).await.done().await;
        assert_eq!(
            (said(&answer), &answer["headers"][flag]),
            ((201, "", "confirmed", chunk.offer.length), &json!(yes))
        );
        assert_eq!(answer["sent"], chunk.bytes.len() - half, "{http} {version}");
    }
    assert_eq!(world.core.stats().await.stored_chunks, 4);
}
