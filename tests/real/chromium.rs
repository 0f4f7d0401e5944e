//! Chromium: a page that uploads with fetch and watches as a stream, over HTTP/3, and over WebSocket.

use serde_json::{Value, json};
use tokio::sync::{Mutex, MutexGuard};
use waystation_devcore::session::Session;
use waystation_proto::Variant;
use waystation_proto::frame::kind;
use waystation_tests::{Chunk, Setup, World};

use crate::program::{Program, bytes_of, described, master, merge, saw, states, upload};

/// One browser at a time in this process: each takes several hundred MiB.
pub(crate) static TURN: Mutex<()> = Mutex::const_new(());

/// A browser that serves a page, and a relay that allows its first origin.
struct Page {
    browser: Program,
    world: World,
    session: Session,
    _turn: MutexGuard<'static, ()>,
}

impl Page {
    async fn open() -> Self {
        let turn = TURN.lock().await;
        let mut browser = Program::browser();
        let origins = browser.named("origins").await;
        let allowed_origins = vec![origins["origin"].as_str().unwrap().to_owned()];
        let staging = "max_chunk = \"2MiB\"".to_owned();
        let world = World::with(Setup { allowed_origins, staging, ..Setup::default() }).await;
        let session = world.session().await;
        Self { browser, world, session, _turn: turn }
    }

    fn put(&self, mode: &str, chunk: &Chunk, more: Value) -> Value {
        let mut put = json!({
            "mode": mode, "capability": self.session.upload_capability, "file": bytes_of(&self.world, chunk),
            "chunk": described(chunk),
        });
        merge(&mut put, more);
        put
    }

    fn watch(&self, mode: &str, more: Value) -> Value {
        let mut watch = json!({ "mode": mode, "capability": self.session.fanout_capability });
        merge(&mut watch, more);
        watch
    }

    async fn told(mut self, more: Value) -> Self {
        let relay = format!("https://localhost:{}", self.world.public().port());
        let mut params = json!({ "relay": relay, "ca": self.world.certificate_file(), "puts": [] });
        merge(&mut params, more);
        self.browser = self.browser.told(params).await;
        self
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_uploads_plain_and_streaming_and_watches_and_a_page_elsewhere_can_not() {
    let page = Page::open().await;
    let chunks = [1, 2, 3].map(|index| Chunk::sealed(&page.session, Variant::LivePreview, index, 120_000));
    let modes = ["plain", "stream", "ws"];
    let puts: Vec<Value> = modes.iter().zip(&chunks).map(|(mode, chunk)| page.put(mode, chunk, json!({}))).collect();
    let watch = page.watch("fetch", json!({ "chunks": 3, "state": "confirmed", "from": "oldest" }));
    let page = page.told(json!({ "puts": puts, "watch": watch, "other": true })).await;
    let result = page.browser.done().await;

    for (mode, put) in modes.iter().zip(result["puts"].as_array().unwrap()) {
        assert_eq!((&put["mode"], &put["status"]), (&json!(mode), &json!(201)), "{put}");
    }
    for put in &result["puts"].as_array().unwrap()[..2] {
        assert_eq!(put["body"]["chunk"]["state"], "confirmed");
        assert!(put["node"].is_string(), "a page may read the header: {put}");
    }
    assert_eq!(result["puts"][2]["subprotocol"], "waystation.capture.v1");
    saw(&result["watch"], &chunks.each_ref());
    let of = |what: &str| result["requests"].as_array().unwrap().iter().filter(|one| one["type"] == what).count();
    assert!(of("Preflight") > 0 && of("Fetch") >= 3, "{}", result["requests"]);

    // Three uploads and the subscription; what the page may not read it can't tell from a failure.
    let refused = result["refused"].as_array().unwrap();
    assert_eq!(refused.len(), 4);
    assert!(refused.iter().all(|one| one["error"].is_string() && one["status"].is_null()), "{refused:?}");
    assert_eq!(page.world.core.stats().await.stored_chunks, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_holds_half_a_chunk_while_its_sender_has_stopped() {
    half_a_chunk("fetch").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_on_a_websocket_holds_half_a_chunk_while_its_sender_has_stopped() {
    half_a_chunk("ws").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_on_webtransport_holds_half_a_chunk_while_its_sender_has_stopped() {
    half_a_chunk("wt").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_on_webtransport_is_given_each_chunk_on_a_stream_of_its_own_and_told_why_it_ends() {
    let page = Page::open().await;
    let lanes = [(Variant::AudioPriority, 1), (Variant::LivePreview, 1), (Variant::AudioPriority, 2)];
    let chunks = lanes.map(|(lane, index)| Chunk::sealed(&page.session, lane, index, 150_000));
    let puts: Vec<Value> = chunks.iter().map(|chunk| page.put("plain", chunk, json!({}))).collect();
    let watch = page.watch("wt", json!({ "chunks": 3, "state": "confirmed", "from": "oldest" }));
    let page = page.told(json!({ "puts": puts, "watch": watch, "other": true })).await;
    let result = page.browser.done().await;
    saw(&result["watch"], &chunks.each_ref());
    let kinds: Vec<&str> = result["watch"]["kinds"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    let on = |stream: &str, kind: u64| kinds.contains(&format!("{stream} {kind}").as_str());
    for kind in [kind::CHUNK, kind::PIECE, kind::COMPLETE] {
        assert!(on("chunk", kind) && !on("control", kind), "{kind:#x}: {kinds:?}");
    }
    assert!(on("control", kind::WATCHING) && on("control", kind::STATE) && !on("chunk", kind::STATE), "{kinds:?}");
    // A page of another origin is told nothing but that there is no session.
    let elsewhere = result["refused"].as_array().unwrap().last().unwrap();
    assert!(elsewhere["error"].is_string() && elsewhere["status"].is_null(), "{elsewhere}");
}

async fn half_a_chunk(mode: &str) {
    let page = Page::open().await;
    let chunk = Chunk::sealed(&page.session, Variant::LivePreview, 1, 256 << 10);
    let half = chunk.bytes.len() / 2;
    let watch = page.watch(mode, json!({ "chunks": 1, "state": "confirmed" }));
    let mut page = page.told(json!({ "watch": watch })).await;
    page.browser.named("watching").await;

    let capability = page.session.upload_capability.as_deref().unwrap();
    let params = upload(&page.world, &chunk, capability, json!({ "stop_at": half }));
    let mut sender = Program::python("aioquic_put.py").told(params).await;
    sender.named("stopped").await;
    page.browser.event(|line| line["event"] == "piece" && line["received"] == half).await;
    sender.go_on().await;
    sender.done().await;
    let result = page.browser.done().await;
    saw(&result["watch"], &[&chunk]);
    let told = states(&result["watch"], &chunk);
    assert_eq!((told.first(), told.last()), (Some(&"arriving"), Some(&"confirmed")), "{told:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_early_refusal_does_not_hang_the_page() {
    let page = Page::open().await;
    let (small, large) = (master(&page.session, 1, 3 << 20), master(&page.session, 2, 12 << 20));
    let mut cases = Vec::new();
    for mode in ["plain", "stream"] {
        let wrong = |status: Value| json!({ "capability": "nonsense", "expect": [status] });
        cases.push((page.put(mode, &small, wrong(json!(401))), "capability_invalid"));
        cases.push((page.put(mode, &small, json!({ "expect": [413] })), "chunk_too_large"));
        // More than the relay reads of a refused body: fetch fails instead.
        cases.push((page.put(mode, &large, wrong(Value::Null)), ""));
    }
    let puts: Vec<&Value> = cases.iter().map(|(put, _)| put).collect();
    let page = page.told(json!({ "puts": puts })).await;
    let result = page.browser.done().await;
    for ((_, code), answer) in cases.iter().zip(result["puts"].as_array().unwrap()) {
        assert_eq!(answer["body"]["error"]["code"].as_str().unwrap_or_default(), *code, "{answer}");
        assert!(!code.is_empty() || answer["error"].as_str().unwrap().starts_with("TypeError"), "{answer}");
    }
    assert_eq!(page.world.core.stats().await.stored_chunks, 0);
}
