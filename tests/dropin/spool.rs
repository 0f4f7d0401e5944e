//! C20 where it is hardest: an uploader that leaves at any point, and a relay that goes away.

use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::core::Forced;
use crate::form::{BOUNDARY, Form, INCIDENT, STREAM, part};
use crate::world::{World, until};

/// The request as bytes, with a length that never comes.
fn wire(form: &Form) -> (Vec<u8>, usize) {
    let fields: Vec<u8> = form.fields.iter().flat_map(|(name, value)| part(name, None, value.as_bytes())).collect();
    let file = part("file", Some("x"), &form.file);
    let head = format!(
        "POST /upload/complete-chunk HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary={BOUNDARY}\r\n\
         Content-Length: 10000000\r\n\r\n"
    );
    let file_at = head.len() + fields.len() + file.len() - form.file.len() - 2;
    ([head.into_bytes(), fields, file].concat(), file_at)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_uploader_that_leaves_in_the_middle_leaves_nothing_and_the_core_is_not_told() {
    let world = World::new().await;
    let form = Form::chunk(1, 700_000);
    let (bytes, file_at) = wire(&form);
    // Before the first byte of the file, within it, at its last byte, and behind it: the whole
    // file is here then, and still nobody may commit it.
    let cuts = [file_at, file_at + 1, file_at + 400_000, file_at + form.file.len(), bytes.len()];
    for (asked, cut) in cuts.into_iter().enumerate() {
        let mut stream = TcpStream::connect(world.plain()).await.unwrap();
        stream.write_all(&bytes[..cut]).await.unwrap();
        until("the core was asked", || world.core.calls("/v1/relay/preflight") == asked + 1).await;
        drop(stream);
        let left = format!("waystation_chunk_endings_total{{class=\"audio\",ending=\"abandoned\"}} {}", asked + 1);
        while !world.ops("/metrics").await.lines().any(|line| line == left) {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        world.until_nothing_is_kept().await;
    }
    assert_eq!(world.core.calls("/v1/relay/commit"), 0, "also not by itself, later");
    assert_eq!(world.upload(&form).await.status, 201);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_uploader_that_leaves_during_the_commit_changes_nothing() {
    let world = World::new().await;
    let mut watch = world.watch().await;
    world.core.shut_gate();
    let form = Form::chunk(1, 1000);
    let (at, request) = (world.plain(), form.request());
    let upload = tokio::spawn(async move { waystation_tests::http::send(at, request).await });
    until("the commit waits", || world.core.calls("/v1/relay/commit") == 1).await;
    upload.abort();
    assert!(upload.await.is_err());
    world.core.open_gate();
    assert_eq!(watch.next().await.unwrap().0, "relay_ready");
    assert_eq!(watch.next().await.unwrap().0, "relay_chunk");
    let (name, data) = watch.next().await.unwrap();
    assert_eq!((name.as_str(), &data["state"]), ("relay_chunk_state", &"confirmed".into()));
    assert_eq!(world.core.stored(INCIDENT, STREAM, 1).unwrap(), form.file);
    world.until_nothing_is_kept().await;
    assert_eq!(world.upload(&form).await.status, 200, "the resend is answered");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_core_that_refuses_before_it_read_the_file_leaves_nothing() {
    let world = World::new().await;
    let form = Form::chunk(1, 900_000);
    for status in [400, 409, 507, 500] {
        world.core.force("/v1/relay/commit", Forced::error(status, "some_code"));
        assert!(!world.upload(&form).await.status.is_success());
        world.until_nothing_is_kept().await;
    }
}
