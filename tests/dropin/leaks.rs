//! C1 to C14, C29, C30: what never comes out. One busy life of a relay, with a canary in every
//! input; one test for each rule, over everything that came out.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, Request};
use http_body_util::Full;
use waystation_tests::http::Answer;

use crate::core::{Forced, SERVICE_TOKEN};
use crate::form::{CLIENT, Form, INCIDENT, SESSION, STREAM, closing, dressed, part, post, token};
use crate::world::{World, log, subscription, until};

/// Everything that came out, by where.
struct Out(Vec<(String, Vec<u8>)>);

impl Out {
    async fn of_a_busy_life() -> Self {
        let world = World::new().await;
        let mut out = Self(Vec::new());
        for answer in answers(&world).await {
            out.headers(&answer.headers);
            // The authorised answer names the chunk to who brought it; nothing else does.
            let body = String::from_utf8(answer.body.to_vec()).unwrap();
            let body = if answer.status.is_success() { body.replace(INCIDENT, "").replace(STREAM, "") } else { body };
            out.0.push(("body".into(), body.into()));
        }
        out.disk(&world).await;
        for path in ["/metrics", "/readyz", "/livez", "/status"] {
            out.0.push((path.into(), world.ops(path).await.into()));
        }
        let log = log();
        assert!(log.contains("\"route_class\":\"upload\"") && log.contains("\"code\":\"hash_mismatch\""));
        assert!(log.contains("\"route_class\":\"subscribe\""));
        out.0.push(("log".into(), log.into()));
        out
    }

    fn headers(&mut self, headers: &HeaderMap) {
        assert_eq!(headers["cache-control"], "no-store", "C30");
        assert_eq!(headers["x-content-type-options"], "nosniff", "C30");
        let text: String = headers.iter().map(|(name, value)| format!("{name}: {value:?}\n")).collect();
        self.0.push(("headers".into(), text.into()));
    }

    /// Names and contents while a commit waits; of the contents, all but the ciphertext itself.
    async fn disk(&mut self, world: &World) {
        world.core.shut_gate();
        let form = Form::chunk(9, 5000);
        let (at, request) = (world.plain(), form.request());
        let before = world.core.calls("/v1/relay/commit");
        let upload = tokio::spawn(async move { waystation_tests::http::send(at, request).await });
        until("a commit waits", || world.core.calls("/v1/relay/commit") > before).await;
        let files = world.files();
        assert_eq!(files.len(), 1);
        for file in files {
            let name = file.file_name().unwrap().to_str().unwrap().to_owned();
            self.0.push(("file name".into(), name.into()));
            let content = std::fs::read(file).unwrap();
            let length = form.file.len();
            let at = content.windows(length).position(|window| window == form.file).expect("the ciphertext");
            self.0.push(("file".into(), [&content[..at], &content[at + length..]].concat()));
        }
        world.core.open_gate();
        assert_eq!(upload.await.unwrap().status, 201);
        world.until_nothing_is_kept().await;
    }

    fn nowhere(&self, canary: &str) {
        assert!(canary.len() > 3);
        let canary = canary.to_lowercase();
        for (place, bytes) in &self.0 {
            let text = String::from_utf8_lossy(bytes).to_lowercase();
            assert!(!text.contains(&canary), "{canary} in {place}");
        }
    }
}

/// Requests of every kind, good and bad.
async fn answers(world: &World) -> Vec<Answer> {
    let mut answers = Vec::new();
    for path in ["/path-canary?query-canary=1", "/i/viewer-canary", "/health/ready?query-canary", "/chunks/ref-canary"]
    {
        answers.push(world.get(path).await);
        answers.push(world.send(dressed(Request::post(path)).body(Full::from("body-canary")).unwrap()).await);
    }
    let form = Form::chunk(1, 1000);
    let mut wrong = form.clone();
    wrong.file = [&form.file[..form.file.len() - 1], b"?"].concat().into();
    let mut long = form.clone();
    long.file = [&form.file[..], b"payload-canary"].concat().into();
    for form in [
        wrong,
        long,
        form.clone().and("field-canary", "value-canary"),
        form.clone().and("stream_id", "again-canary"),
        form.clone().with("chunk_index", "index-canary"),
        form.clone().with("media_type", "media-canary"),
        form.clone().with("started_at", "time-canary"),
        form.clone().with("byte_size", "size-canary"),
        form.clone().with("sha256_hex", "hash-canary"),
        form.clone().with("capability", "token-canary"),
        form.clone().with("capability", &token("fanout")),
    ] {
        let answer = world.upload(&form).await;
        assert!(answer.status.is_client_error());
        answers.push(answer);
    }
    let body = [part("nameless-canary", None, b"x"), closing()].concat();
    answers.push(world.send(post().body(Full::new(body.into())).unwrap()).await);
    let told = r#"{"error":{"code":"core-code-canary","message":"message-canary /srv/path-canary"}}"#;
    for route in ["/v1/relay/preflight", "/v1/relay/commit"] {
        let header = vec![("retry-after", "5".into()), ("x-core", "core-header-canary".into())];
        world.core.force(route, Forced::Answer(409, told.into(), header));
        answers.push(world.upload(&form).await);
        world.core.relent();
    }
    for capability in [token("upload"), "token-canary".into()] {
        answers.push(world.send(subscription(&capability)).await);
    }
    let mut watch = world.watch().await;
    answers.push(world.upload(&form).await);
    assert_eq!(answers.last().unwrap().status, 201);
    for _ in 0..3 {
        watch.next().await.unwrap();
    }
    answers
}

async fn never(canaries: &[&str]) {
    let out = Out::of_a_busy_life().await;
    for canary in canaries {
        out.nowhere(canary);
    }
}

macro_rules! rules {
    ($($(#[$doc:meta])* $name:ident => $canaries:expr;)+) => {$(
        $(#[$doc])*
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            let canaries: Vec<String> = $canaries;
            never(&canaries.iter().map(String::as_str).collect::<Vec<_>>()).await;
        }
    )+};
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).into()).collect()
}

/// Each part of both tokens, and beginnings of them.
fn token_parts() -> Vec<String> {
    // `iat` differs by the second: what does not is the beginning of the claims.
    let (upload, fanout) = (token("upload"), token("fanout"));
    let beginnings = [&upload, &fanout].map(|token| token.split('.').nth(1).unwrap()[..60].to_owned());
    beginnings.into_iter().chain(words(&["proofline-relay-capability", "claim-canary", "token-canary"])).collect()
}

rules! {
    c1_no_capability_whole_or_in_part => token_parts();
    c2_no_service_token => words(&[SERVICE_TOKEN, "service-token-canary"]);
    c3_no_session_token_cookie_or_authorization => words(&["authorization-canary", "cookie-canary", "csrf-canary", "viewer-canary"]);
    c4_no_idempotency_key => words(&["idempotency-canary"]);
    c5_no_path_and_no_query => words(&["path-canary", "query-canary", "/i/viewer", "ref-canary"]);
    c6_no_body_field_value_or_file_name => words(&[
        "body-canary", "field-canary", "value-canary", "again-canary", "index-canary", "media-canary", "time-canary",
        "size-canary", "hash-canary", "original-canary", "part-canary", "nameless-canary", "preamble-canary",
        "epilogue-canary", "boundary-canary", "123456789z",
    ]);
    c7_no_uploaded_byte_in_any_encoding => {
        let hex: String = b"payload-canary".iter().map(|byte| format!("{byte:02x}")).collect();
        let base64 = (0..3).map(|shift| {
            let text = STANDARD.encode(&b"payload-canarypayload-canary"[shift..]);
            text[..12].to_owned()
        });
        base64.chain([hex, "payload-canary".into(), "plpqenc1".into()]).collect()
    };
    c8_no_plaintext_key_or_wrapped_key => words(&["plpqwk1", "raw_key", "wrapped_key", "plaintext", "media_key"]);
    c9_no_path_and_no_file_name => words(&["staging-canary", "directory-canary", "object-canary", "receiving/", "seal.key"]);
    c10_no_address_directory_id_or_region => words(&["127.0.0.1", "relayid-canary", "region-canary", "host-canary", "/tmp"]);
    c11_no_place => words(&["latitude", "longitude", "altitude", "heading", "location-canary"]);
    c12_no_raw_error_text => words(&["message-canary", "core-code-canary", "core-header-canary", "os error", "connection refused", "panicked"]);
    c13_no_identifier_and_no_client_address => words(&[INCIDENT, STREAM, SESSION, CLIENT, "203.0.113", "agent-canary"]);
    c14_no_forbidden_word => words(&["stored_path", "object_key", "authorization", "plaintext", "raw_key", "wrapped_key"]);
    /// Whatever is planted next is found without being named.
    no_canary_at_all => words(&["canary"]);
}
