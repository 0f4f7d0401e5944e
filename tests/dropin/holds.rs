//! C15 to C32: what must hold, where the other files of this test do not show it already.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use waystation::config::Config;

use crate::core::{Forced, SERVICE_TOKEN, sha256_hex};
use crate::form::{Form, INCIDENT, STREAM, token};
use crate::world::{World, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c15_no_success_before_the_core_has_answered() {
    let world = World::new().await;
    world.core.shut_gate();
    let (at, request) = (world.plain(), Form::chunk(1, 1000).request());
    let upload = tokio::spawn(async move { waystation_tests::http::send(at, request).await });
    until("the commit waits", || world.core.calls("/v1/relay/commit") == 1).await;
    // Longer than an early answer would take; a late one is what is wanted.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!upload.is_finished());
    world.core.open_gate();
    assert_eq!(upload.await.unwrap().status, 201);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c16_a_refusal_is_never_an_acceptance_not_even_under_a_202() {
    let world = World::new().await;
    let form = Form::chunk(1, 100);
    for forced in [
        Forced::Answer(202, "{}".into(), vec![]),
        Forced::Answer(204, String::new(), vec![]),
        Forced::Answer(200, r#"{"error":{"code":"no","message":"no"},"relay_commit":1}"#.into(), vec![]),
        Forced::Answer(201, r#"{"relay_commit":{"chunk_index":2}}"#.into(), vec![]),
        Forced::error(409, "duplicate_chunk"),
    ] {
        world.core.force("/v1/relay/commit", forced);
        let answer = world.upload(&form).await;
        assert!(!answer.status.is_success() && answer.status != 202, "{}", answer.status);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c17_three_routes_are_called_and_no_redirect_is_followed() {
    let world = World::new().await;
    let elsewhere = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let to = format!("http://{}/v1/relay/preflight", elsewhere.local_addr().unwrap());
    for status in [301, 302, 307, 308] {
        let header = vec![("location", to.clone())];
        world.core.force("/v1/relay/preflight", Forced::Answer(status, String::new(), header));
        assert_eq!(world.upload(&Form::chunk(1, 100)).await.status, 502);
    }
    let nobody = tokio::time::timeout(Duration::from_millis(300), elsewhere.accept()).await;
    assert!(nobody.is_err(), "the token went elsewhere");
    world.core.relent();
    let _watch = world.watch().await;
    assert_eq!(world.upload(&Form::chunk(1, 100)).await.status, 201);
    for seen in world.core.seen() {
        let known = ["/v1/relay/preflight", "/v1/relay/commit", "/v1/relay/fanout-authorize"];
        assert!(known.contains(&seen.path.as_str()), "{}", seen.path);
        let tokens = seen.headers.iter().filter(|(_, value)| value == SERVICE_TOKEN).count();
        assert_eq!(tokens, 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c18_the_core_has_exactly_the_bytes() {
    let world = World::new().await;
    for (index, length) in [(1, 1), (2, 16_384), (3, 262_144), (4, 900_001)] {
        let form = Form::chunk(index, length);
        assert_eq!(world.upload(&form).await.status, 201);
        let stored = world.core.stored(INCIDENT, STREAM, index).unwrap();
        assert_eq!(sha256_hex(&stored), form.field("sha256_hex"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c19_and_c22_a_mismatch_is_neither_forwarded_nor_shown() {
    let world = World::new().await;
    let mut watch = world.watch().await;
    watch.next().await.unwrap();
    let form = Form::chunk(1, 1000);
    let mut wrong = form.clone();
    wrong.file = [&form.file[..form.file.len() - 1], b"?"].concat().into();
    let mut short = form.clone();
    short.file = form.file.slice(1..);
    for form in [wrong, short] {
        assert_eq!(world.upload(&form).await.status, 400);
        world.until_nothing_is_kept().await;
    }
    assert_eq!(world.core.calls("/v1/relay/commit"), 0);
    // The next event is that of the next good chunk, and `confirmed` comes with the core's word.
    assert_eq!(world.upload(&Form::chunk(2, 10)).await.status, 201);
    let (name, data) = watch.next().await.unwrap();
    assert_eq!((name.as_str(), &data["chunk_index"]), ("relay_chunk", &2.into()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c23_a_core_that_fails_is_not_held_against_a_client() {
    let world = World::with("", "[limits]\nrequests_per_client = 200").await;
    let form = Form::chunk(1, 10);
    world.core.force("/v1/relay/preflight", Forced::error(500, "internal_error"));
    for _ in 0..20 {
        assert_eq!(world.upload(&form).await.status, 503);
    }
    world.core.relent();
    assert_eq!(world.upload(&form).await.status, 201);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_unknown_tokens_cost_the_core_are_limited_by_address() {
    let world = World::with("", "[limits]\nrequests_per_client = 3").await;
    let form = Form::chunk(1, 10).with("capability", "nonsense");
    for _ in 0..3 {
        assert_eq!(world.upload(&form).await.status, 401);
    }
    let answer = world.upload(&form).await;
    assert_eq!((answer.status.as_u16(), answer.code()), (429, "too_many_requests".into()));
    assert!(answer.headers.contains_key("retry-after"));
    assert_eq!(world.try_watch("nonsense").await.err().unwrap().status, 429);
    assert_eq!(world.core.seen().len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c26_c27_a_token_in_a_url_or_an_upload_token_opens_nothing() {
    let world = World::new().await;
    let path = format!("/fanout/subscribe?capability={}&incident_id={INCIDENT}", token("fanout"));
    assert_eq!(world.get(&path).await.status, 400);
    assert_eq!(world.try_watch(&token("upload")).await.err().unwrap().status, 403);
    assert!(world.try_watch(&token("fanout")).await.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c31_a_mistake_in_the_configuration_names_the_setting_and_not_its_value() {
    let world = World::new().await;
    for (from, to) in [
        ("[core]\n", "[core]\nrequest_timeout = \"duration-canary\"\n"),
        ("[relay]\n", "[relay]\nunknown_key = \"value-canary\"\n"),
        ("service-token\"", "missing-canary\""),
        ("url = \"http:", "url = \"scheme-canary:"),
    ] {
        let text = world.toml.replacen(from, to, 1);
        assert_ne!(text, world.toml);
        let mistakes = Config::parse(&text, []).expect_err(to).to_string();
        assert!(!mistakes.contains("canary") && !mistakes.is_empty(), "{mistakes}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_two_readers_may_read_differently_are_refused() {
    let world = World::new().await;
    for head in [
        "Host: a\r\nHost: b\r\nContent-Length: 5",
        "Host: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        "Host: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 5",
        "Host: a\r\nTransfer-Encoding: gzip, chunked",
        "Host: a\r\nContent-Length: 5\r\nContent-Length: 6",
        "Content-Length: 5",
    ] {
        let mut stream = TcpStream::connect(world.plain()).await.unwrap();
        let text = format!("POST /upload/complete-chunk HTTP/1.1\r\n{head}\r\nConnection: close\r\n\r\n0\r\n\r\n");
        stream.write_all(text.as_bytes()).await.unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 400", "{head}");
    }
    assert!(world.core.seen().is_empty());
}
