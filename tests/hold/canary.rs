//! Nothing that names anybody, or lets anybody in, is in what the relay writes about its work.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::StreamExt as _;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use waystation_devcore::session::Session;
use waystation_proto::frame::{self, kind};
use waystation_proto::message::{StartAt, StartWord, Watch};
use waystation_proto::{Media, PROTOCOL, Variant, WATCH_SUBPROTOCOL};
use waystation_tests::{Chunk, Setup, http as plain};

use super::process::{Rig, until};
use super::way::Way;

const PAYLOAD: &str = "canary-payload-that-is-no-envelope";
const NAME: &str = "canary-file-name.mp4";
const SEGMENT: &str = "canary-segment";
/// An incident, a stream and a token that are nobody's.
const REFUSED: [&str; 3] = ["canary-incident", "canary-stream", "canary.broken.token"];

/// What must be nowhere.
fn canaries(rig: &Rig, session: &Session, chunks: &[Chunk]) -> Vec<(&'static str, String)> {
    let mut all = vec![
        ("upload capability", session.upload_capability.clone().unwrap()),
        ("fan-out capability", session.fanout_capability.clone().unwrap()),
        ("session", session.sid.clone().unwrap()),
        ("service token", rig.core.service_token().to_owned()),
        ("incident", session.incident.clone()),
        ("group", session.group.clone()),
        ("client address", "127.0.0.1".to_owned()),
        ("file name", NAME.to_owned()),
        ("segment", SEGMENT.to_owned()),
        ("payload", PAYLOAD.to_owned()),
        ("path", rig.dir.path().to_str().unwrap().to_owned()),
    ];
    // A token's signature names it as well as the whole.
    let signature = session.upload_capability.as_ref().unwrap().rsplit('.').next().unwrap().to_owned();
    all.push(("a part of the capability", signature));
    all.extend(session.streams.iter().map(|stream| ("stream", stream.stream.clone())));
    for proofline in session.streams.iter().filter_map(|stream| stream.proofline.as_ref()) {
        all.push(("Proofline token", proofline.upload.clone()));
        all.push(("Proofline session", proofline.relay_session_id.clone()));
    }
    all.extend(REFUSED.map(|text| ("refused", text.to_owned())));
    for chunk in chunks {
        all.push(("chunk reference", chunk.chunk_ref().to_string()));
        all.push(("digest", chunk.offer.sha256.to_hex()));
        all.push(("payload bytes", STANDARD.encode(&chunk.bytes[..30])));
        all.push(("payload bytes", chunk.bytes[..16].iter().map(|byte| format!("{byte:02x}")).collect()));
    }
    all
}

/// A contact that watches until the relay ends.
async fn watch(rig: &Rig, session: &Session) {
    let mut request = format!("ws://{}/watch", rig.plain).into_client_request().unwrap();
    request.headers_mut().insert("sec-websocket-protocol", WATCH_SUBPROTOCOL.parse().unwrap());
    let stream = TcpStream::connect(rig.plain).await.unwrap();
    let (mut socket, _) = tokio_tungstenite::client_async(request, stream).await.unwrap();
    let wanted = Watch {
        protocol: PROTOCOL,
        capability: session.fanout_capability.clone().unwrap(),
        lanes: None,
        from: Some(StartAt::Word(StartWord::Oldest)),
        cursor: None,
    };
    futures_util::SinkExt::send(
        &mut socket,
        tokio_tungstenite::tungstenite::Message::Binary(frame::encode_json(kind::WATCH, &wanted)),
    )
    .await
    .unwrap();
    assert!(socket.next().await.unwrap().unwrap().is_binary());
    tokio::spawn(async move { while let Some(Ok(_)) = socket.next().await {} });
}

/// Chunks that end confirmed, rejected, refused and altered: every path that might say too much.
async fn settle_some(rig: &Rig, session: &Session, capability: &str) -> Vec<Chunk> {
    let preview = session.streams.iter().find(|stream| stream.variant == Variant::LivePreview).unwrap();
    let mut fine = Chunk::sealed(session, Variant::AudioPriority, 1, 5000);
    (fine.offer.name, fine.offer.segment) = (NAME.to_owned(), Some(SEGMENT.to_owned()));
    rig.stage(&fine, capability).await;
    rig.until_at_core(&fine).await;
    let no_envelope = Chunk::of(&session.incident, &preview.stream, Media::Video, 1, PAYLOAD);
    rig.stage(&no_envelope, capability).await;
    rig.until_standing(&no_envelope, capability, "rejected", PAYLOAD.len() as u64).await;
    let foreign = Chunk::of(REFUSED[0], REFUSED[1], Media::Video, 1, PAYLOAD);
    assert!(rig.stage(&foreign, capability).await.status.is_client_error());
    assert!(rig.stage(&fine, REFUSED[2]).await.status.is_client_error());
    let mut altered = Chunk::sealed(session, Variant::LivePreview, 2, 5000);
    altered.bytes = vec![7; altered.bytes.len()].into();
    assert_eq!(rig.stage(&altered, capability).await.code(), "hash_mismatch");
    let token = &session.streams[0].proofline.as_ref().unwrap().upload;
    rig.stage(&Chunk::sealed(session, Variant::AudioPriority, 7, 500), token).await;
    vec![fine, no_envelope, foreign]
}

/// Chunks that wait for the core, or for their second half.
async fn leave_some(rig: &Rig, session: &Session, capability: &str) -> Vec<Chunk> {
    rig.core.faults().set_away(true);
    let mut chunks = vec![Chunk::sealed(session, Variant::EvidenceMaster, 1, 5000)];
    rig.stage(&chunks[0], capability).await;
    for (way, index) in Way::ALL.into_iter().zip(2..) {
        let half = Chunk::sealed(session, Variant::EvidenceMaster, index, 1 << 20);
        drop(way.begin(rig, &half, capability, 500_000).await);
        chunks.push(half);
    }
    chunks
}

/// Everything that a relay says to those who run it, and to a stranger.
async fn outputs(rig: &Rig, session: &Session) -> Vec<(&'static str, String)> {
    let files: String = ["staged", "receiving", "streams"].iter().flat_map(|folder| rig.files(folder)).collect();
    assert!(!files.is_empty());
    vec![
        ("waystation status", rig.until_status("core_unreachable").await),
        ("metrics", rig.ops("/metrics").await.1),
        ("readyz", rig.ops("/readyz").await.1),
        ("livez", rig.ops("/livez").await.1),
        ("status", rig.ops("/status").await.1),
        ("names on disk", files),
        ("an unknown path", rig.ops(&format!("/{}", session.incident)).await.1),
        ("a refusal", plain::get(rig.plain, &format!("/chunks/{}", session.incident)).await.1),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn neither_log_nor_metrics_nor_readiness_nor_names_on_disk_tell_of_anybody() {
    let mut rig = Rig::start(Setup::default()).await;
    let session = rig.session().await;
    let capability = session.upload_capability.clone().unwrap();
    watch(&rig, &session).await;
    let mut chunks = settle_some(&rig, &session, &capability).await;
    chunks.extend(leave_some(&rig, &session, &capability).await);
    let canaries = canaries(&rig, &session, &chunks);
    let mut outputs = outputs(&rig, &session).await;
    // What waits is logged a few times a second; recovery and the end of a run have their lines too.
    until(async || rig.log().contains("waits_for")).await;
    rig.kill().await;
    rig.begin().await;
    rig.terminate().await;
    assert!(rig.ended().await.success());

    let log = rig.log();
    assert!(log.contains("waits_for") && log.contains("draining") && log.lines().count() > 20, "too little: {log}");
    outputs.push(("log", log));
    for (output, text) in &outputs {
        for (what, canary) in &canaries {
            assert!(canary.len() >= 8, "{what} is too short to be looked for");
            assert!(!text.contains(canary.as_str()), "{what} in {output}: {text}");
        }
    }
}
