//! The command line end to end: what was recorded is what the contact wrote.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use waystation_client::connect::Transport;

use super::support::LIMIT;
use super::support::relay::Relay;

const BIN: &str = env!("CARGO_BIN_EXE_waystation-client");
const SECRETS: [&str; 4] = ["incident_1", "group_1", "stream_a", "canary_sid"];

fn token(use_: &str) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let lane = |stream: &str, variant: &str, media: &str| json!({"stream": stream, "variant": variant, "media": media, "max_chunk_bytes": 1 << 24, "max_chunks": 64});
    let claims = json!({"iss": "core", "aud": "relay", "iat": now, "exp": now + 300, "jti": "j", "sid": "canary_sid",
        "use": use_, "incident": "incident_1", "group": "group_1",
        "lanes": [lane("stream_a", "audio_priority", "audio"), lane("stream_m", "evidence_master", "video")]});
    format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims.to_string()))
}

/// A recording of two lanes with three chunks each, 100 ms long.
fn recording(dir: &Path) {
    for lane in ["a", "m"] {
        std::fs::create_dir_all(dir.join(lane)).unwrap();
        for k in 0..3u8 {
            std::fs::write(dir.join(lane).join(format!("{k}.mp4")), vec![k + lane.as_bytes()[0]; 2000]).unwrap();
        }
    }
    let files = ["0.mp4", "1.mp4", "2.mp4"];
    let form = json!({"chunk_ms": 100, "lanes": [
        {"variant": "audio_priority", "media": "audio", "directory": "a", "files": files},
        {"variant": "evidence_master", "media": "video", "directory": "m", "files": files}]});
    std::fs::write(dir.join("recording.json"), form.to_string()).unwrap();
}

fn session(dir: &Path) {
    let session = json!({"incident": "incident_1", "group": "group_1", "sid": "canary_sid",
        "upload_capability": token("upload"), "fanout_capability": token("fanout"), "expires_at": "-",
        "streams": [{"stream": "stream_a", "variant": "audio_priority", "media": "audio"},
            {"stream": "stream_m", "variant": "evidence_master", "media": "video"}]});
    std::fs::write(dir.join("session.json"), session.to_string()).unwrap();
    std::fs::write(dir.join("key"), [9; 32]).unwrap();
}

fn command(dir: &Path, arguments: &[&str]) -> tokio::process::Command {
    let mut command = tokio::process::Command::new(BIN);
    command.current_dir(dir).args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.kill_on_drop(true);
    command
}

fn lines(output: &Output) -> Vec<Value> {
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    for secret in SECRETS {
        assert!(!text.contains(secret), "{secret} was printed");
    }
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test]
async fn capture_and_watch_agree_over_every_transport() {
    for (name, transport) in [("ws", Transport::Ws), ("h1", Transport::H1), ("h3", Transport::H3)] {
        let relay = Relay::start().await;
        let dir = tempfile::tempdir().unwrap();
        recording(&dir.path().join("rec"));
        session(dir.path());
        std::fs::write(dir.path().join("ca.der"), relay.certificate()).unwrap();
        let url = relay.url(transport);
        let common = ["--relay", &url, "--transport", name, "--ca-file", "ca.der", "--session-file", "session.json"];
        let rest = ["--group-key-file", "key", "--json"];
        let watch = [&["watch"], &common[..], &rest, &["--out", "seen", "--until-confirmed", "10"]].concat();
        let watching = command(dir.path(), &watch).spawn().unwrap();
        relay.until(|state| state.watches.len() == 1).await;
        // Ten chunks of a lane are more than three passes of the recording.
        let capture = [&["capture"], &common[..], &rest, &["--recording", "rec", "--seconds", "1", "--speed", "2"]];
        let capture = command(dir.path(), &capture.concat()).output();
        let captured = tokio::time::timeout(LIMIT, capture).await.unwrap().unwrap();
        assert!(captured.status.success(), "{captured:?}");
        let summary = lines(&captured).pop().unwrap();
        assert_eq!((&summary["event"], &summary["chunks"]), (&json!("summary"), &json!(20)));
        assert_eq!(summary["confirmed"], json!(20));
        let watched = tokio::time::timeout(LIMIT, watching.wait_with_output()).await.unwrap().unwrap();
        assert!(watched.status.success(), "{watched:?}");
        let events = lines(&watched);
        assert!(events.last().unwrap()["confirmed"].as_u64().unwrap() == 10);
        for k in 0..10u8 {
            let file = dir.path().join(format!("seen/audio_priority/{k:06}.mp4"));
            assert_eq!(std::fs::read(file).unwrap(), vec![k % 3 + b'a'; 2000], "{name}");
        }
        assert!(!dir.path().join("seen/evidence_master").exists(), "a master is not shown");
        for kind in ["first_byte", "complete", "state"] {
            let of_kind = events.iter().filter(|event| event["event"] == kind);
            // Over HTTP/3 a chunk's state may be there before its bytes, and so before its name inside.
            let indexes: BTreeSet<u64> = of_kind.filter_map(|event| event["index"].as_u64()).collect();
            assert_eq!(indexes, (1..=10).collect(), "{kind} over {name}");
        }
    }
}

#[tokio::test]
async fn what_is_not_confirmed_is_told_by_the_exit_code() {
    let relay = Relay::start().await;
    relay.with(|state| state.knobs.hold = true);
    let dir = tempfile::tempdir().unwrap();
    recording(&dir.path().join("rec"));
    session(dir.path());
    let url = relay.url(Transport::Ws);
    let arguments = ["capture", "--relay", &url, "--session-file", "session.json", "--group-key-file", "key"];
    let more = ["--recording", "rec", "--json", "--finish-timeout", "1", "--session-out", "contact.json"];
    let output = command(dir.path(), &[&arguments[..], &more].concat()).output();
    let output = tokio::time::timeout(LIMIT + Duration::from_secs(5), output).await.unwrap().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(lines(&output).pop().unwrap()["pending"], json!(6));
    assert!(dir.path().join("contact.json").exists());
    let missing = command(dir.path(), &["capture", "--relay", &url, "--group-key-file", "key", "--recording", "rec"]);
    let missing = { missing }.output().await.unwrap();
    assert_eq!(missing.status.code(), Some(2));
    assert!(String::from_utf8(missing.stderr).unwrap().contains("--session-file"));
}

#[tokio::test]
async fn a_link_holds_what_its_files_held_and_is_printed_once() {
    let dir = tempfile::tempdir().unwrap();
    let secret = URL_SAFE_NO_PAD.encode([5; 32]);
    std::fs::write(dir.path().join("grant"), format!("{secret}\n")).unwrap();
    std::fs::write(dir.path().join("key"), "09".repeat(32)).unwrap();
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(dir.path().join("tls.pem"), made.cert.pem()).unwrap();
    let base =
        ["link", "--page", "http://127.0.0.1:8081/", "--relay", "http://127.0.0.1:1/", "--group-key-file", "key"];
    let core = ["--core", "https://core.example/"];
    let there = ["--webtransport", "https://localhost:4433", "--webtransport-certificate", "tls.pem"];
    let output = command(dir.path(), &[&base[..], &core, &["--grant-file", "grant"], &there].concat()).output();
    let output = output.await.unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.starts_with("http://127.0.0.1:8081/#w1.") && text.lines().count() == 1);
    let link = waystation_client::Link::parse(&text).unwrap();
    assert_eq!((link.relay.as_str(), link.core.as_str()), ("http://127.0.0.1:1", "https://core.example"));
    let there = link.webtransport.clone().unwrap();
    let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, made.cert.der());
    assert_eq!((there.url.as_str(), &there.hashes[0][..]), ("https://localhost:4433", hash.as_ref()));
    assert_eq!(link.write("http://127.0.0.1:8081/").unwrap().as_str(), text.trim());

    // From standard input, and nothing else says more than what is wrong.
    let mut child = command(dir.path(), &[&base[..], &core, &["--grant-file", "-"]].concat());
    let mut child = child.stdin(Stdio::piped()).spawn().unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut child.stdin.take().unwrap(), secret.as_bytes()).await.unwrap();
    let output = child.wait_with_output().await.unwrap();
    let link = waystation_client::Link::parse(&String::from_utf8(output.stdout).unwrap()).unwrap();
    assert!(link.webtransport.is_none());
    for (core, grant) in
        [("http://core.example", "grant"), ("https://core.example", "key"), ("https://c.example", "none")]
    {
        let wrong = command(dir.path(), &[&base[..], &["--core", core, "--grant-file", grant]].concat()).output();
        let wrong = wrong.await.unwrap();
        assert_eq!((wrong.status.code(), wrong.stdout.len()), (Some(2), 0));
        let said = String::from_utf8(wrong.stderr).unwrap();
        assert!(!said.contains(&secret) && !said.contains("0909"), "{said}");
    }
}

#[tokio::test]
async fn a_link_and_the_arguments_it_stands_for_exclude_each_other() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("link"), "w1.nothing").unwrap();
    for (arguments, said) in [
        (&["watch", "--out", "o", "--link", "link", "--relay", "https://r"][..], "cannot be used with"),
        (&["watch", "--out", "o", "--link", "link"], "no link of this version"),
        (&["watch", "--out", "o"], "--group-key-file"),
        (&["watch", "--out", "o", "--group-key-file", "link", "--session-file", "none"], "session file"),
    ] {
        let output = command(dir.path(), arguments).output().await.unwrap();
        assert_eq!(output.status.code(), Some(2));
        assert!(String::from_utf8(output.stderr).unwrap().contains(said), "{said}");
    }
}
