//! The capture client's queue against the real relay and core: recorded without a network, killed,
//! started again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;
use waystation_client::GroupKey;
use waystation_client::envelope::{self, Identity};
use waystation_devcore::{Effect, Fault, FaultRoute};
use waystation_proto::id::{IncidentId, StreamId};
use waystation_proto::{Media, Variant};
use waystation_tests::{World, http as plain};

/// For one run of the client, on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(100);
/// Nobody listens there.
const NOWHERE: &str = "http://127.0.0.1:9";
const LANES: [(&str, &str, usize); 3] =
    [("audio_priority", "audio", 6_000), ("live_preview", "video", 37_000), ("evidence_master", "video", 60_000)];

struct Phone {
    dir: tempfile::TempDir,
    world: World,
}

impl Phone {
    async fn new() -> Self {
        let (dir, world) = (tempfile::tempdir().unwrap(), World::new().await);
        let mut lanes = Vec::new();
        for (variant, media, length) in LANES {
            std::fs::create_dir_all(dir.path().join("rec").join(variant)).unwrap();
            let files: Vec<String> = (0..5).map(|k| format!("{k}.mp4")).collect();
            for (k, file) in files.iter().enumerate() {
                std::fs::write(dir.path().join("rec").join(variant).join(file), vec![k as u8 + 1; length]).unwrap();
            }
            lanes.push(json!({"variant": variant, "media": media, "directory": variant, "files": files}));
        }
        let form = json!({"chunk_ms": 2000, "lanes": lanes});
        std::fs::write(dir.path().join("rec/recording.json"), form.to_string()).unwrap();
        std::fs::write(dir.path().join("group.key"), [9; 32]).unwrap();
        std::fs::write(dir.path().join("account"), world.core.account_token()).unwrap();
        Self { dir, world }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The client at its work, connected or not.
    fn capture(&self, online: bool, seconds: u64, more: &[&str]) -> Command {
        let relay = if online { format!("https://{}", self.world.public()) } else { "https://127.0.0.1:9".into() };
        let core = if online { self.world.core.url() } else { NOWHERE.into() };
        let mut command = client();
        command.args(["capture", "--json", "--transport", "ws", "--relay", &relay, "--core", &core]);
        command.arg("--ca-file").arg(self.world.certificate_file());
        command.arg("--account-token-file").arg(self.path("account"));
        command.arg("--group-key-file").arg(self.path("group.key"));
        command.arg("--recording").arg(self.path("rec")).arg("--queue").arg(self.path("queue"));
        command.args(["--seconds", &seconds.to_string(), "--finish-timeout", "90"]).args(more);
        command
    }

    async fn status(&self) -> Option<Value> {
        let mut command = client();
        let asked = command.args(["queue", "status", "--json"]).arg(self.path("queue")).output().await.unwrap();
        serde_json::from_slice(&asked.stdout).ok()
    }

    /// Everything the core holds, opened: of each lane the chunks by their running number.
    async fn at_core(&self) -> BTreeMap<(Variant, u64), Vec<u8>> {
        let key = GroupKey::read(&self.path("group.key")).unwrap();
        let session: Value = serde_json::from_slice(&std::fs::read(self.path("contact.json")).unwrap()).unwrap();
        let incident = IncidentId::new(session["incident"].as_str().unwrap()).unwrap();
        let base = format!("/v1/incidents/{}/chunks", incident.as_str());
        let list = get(&self.world, &base).await;
        let list: Value = serde_json::from_slice(&list).unwrap();
        let mut out = BTreeMap::new();
        for chunk in list["chunks"].as_array().unwrap() {
            let stream = StreamId::new(chunk["stream"].as_str().unwrap()).unwrap();
            let (index, media) = (chunk["index"].as_u64().unwrap(), chunk["media"].as_str().unwrap());
            let path = format!("{base}/{}/{index}", stream.as_str());
            let frame = get(&self.world, &path).await;
            let media = Media::parse(media).unwrap();
            let stream_key = key.stream_key(&stream).unwrap();
            let identity = Identity { incident: incident.clone(), stream, media, index };
            let opened = envelope::open(&stream_key, &identity, &frame).unwrap();
            let (variant, seq) = opened.envelope_id.rsplit_once('.').unwrap();
            let named = (Variant::parse(variant).unwrap(), seq.parse().unwrap());
            assert!(out.insert(named, opened.plaintext).is_none(), "a chunk is there twice");
        }
        out
    }

    /// Every chunk of the recording is there once and as it was recorded, and the manifest says so.
    async fn all_is_there(&self, chunks: u64) {
        let mut held = self.at_core().await;
        let manifest = held.remove(&(Variant::MetadataContext, 0)).expect("the manifest is there");
        let manifest: Value = serde_json::from_slice(&manifest).unwrap();
        assert!(manifest["lanes"].as_array().unwrap().iter().all(|lane| lane["chunks"] == chunks), "{manifest}");
        assert_eq!(held.len() as u64, chunks * LANES.len() as u64);
        for ((variant, seq), bytes) in held {
            let (_, _, length) = LANES.iter().find(|(name, ..)| *name == variant.as_str()).unwrap();
            assert_eq!(bytes, vec![(seq % 5) as u8 + 1; *length], "{variant} {seq}");
        }
        let left = std::fs::read_dir(self.path("queue")).unwrap().count();
        assert_eq!(left, 4, "the queue's file, its lock, the room it holds and its key");
    }
}

/// What the core has for its account.
async fn get(world: &World, path: &str) -> Bytes {
    let bearer = format!("Bearer {}", world.core.account_token());
    let request = Request::get(path).header("host", "test").header("authorization", bearer);
    let answer = plain::send(world.core.addr(), request.body(Full::default()).unwrap()).await;
    assert_eq!(answer.status, 200);
    answer.body
}

fn client() -> Command {
    let test = std::env::current_exe().unwrap();
    let program: &Path = &test.parent().unwrap().parent().unwrap().join("waystation-client");
    assert!(program.exists(), "build the programs first: cargo build --workspace --bins");
    let mut command = Command::new(program);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_minutes_without_a_network_then_killed_then_connected_are_all_confirmed() {
    let phone = Phone::new().await;
    // 150 chunks of each lane, cut as fast as they are kept.
    let mut recording = phone.capture(false, 300, &["--speed", "100000"]).spawn().unwrap();
    let kept = async {
        while phone.status().await.is_none_or(|status| status["chunks"] != 450) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(PATIENCE, kept).await.expect("it records without a network");
    recording.kill().await.unwrap();
    let status = phone.status().await.unwrap();
    assert_eq!(
        (&status["complete"], &status["evidence_ready"], &status["failed"]),
        (&json!(0), &json!(false), &json!(0))
    );
    let contact = phone.path("contact.json");
    let mut command = phone.capture(true, 300, &["--session-out", contact.to_str().unwrap()]);
    let output = tokio::time::timeout(PATIENCE, command.output()).await.unwrap().unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let first: Vec<&Value> = lines.iter().filter(|line| line["event"] == "sent").take(2).collect();
    assert!(first.iter().all(|line| line["lane_seq"] == 0), "first segments first: {first:?}");
    assert!(lines.iter().any(|line| line["event"] == "evidence_ready"));
    let last = lines.last().unwrap();
    assert_eq!((&last["chunks"], &last["confirmed"], &last["manifest"]), (&json!(450), &json!(450), &json!(true)));
    phone.all_is_there(150).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_is_killed_again_and_again_loses_and_alters_nothing() {
    let phone = Phone::new().await;
    let contact = phone.path("contact.json");
    let more = ["--session-out", contact.to_str().unwrap(), "--speed", "20"];
    for kill_after in [1, 7, 2, 12, 5] {
        let mut child = phone.capture(true, 80, &more).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let some = async {
            let mut seen = 0;
            while let Some(line) = lines.next_line().await.unwrap() {
                seen += u64::from(line.contains("\"event\":\"cut\""));
                if seen == kill_after {
                    break;
                }
            }
        };
        tokio::time::timeout(PATIENCE, some).await.expect("it goes on");
        child.kill().await.unwrap();
    }
    let output = tokio::time::timeout(PATIENCE, phone.capture(true, 80, &more).output()).await.unwrap().unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let last: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert_eq!((&last["chunks"], &last["confirmed"], &last["lost"]), (&json!(120), &json!(120), &json!(0)));
    phone.all_is_there(40).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_is_imported_in_pieces_by_the_same_queue() {
    let phone = Phone::new().await;
    let content: Vec<u8> = (0..1_000_000u32).map(|n| (n % 251) as u8).collect();
    std::fs::write(phone.path("film.mp4"), &content).unwrap();
    let (relay, core) = (format!("https://{}", phone.world.public()), phone.world.core.url());
    let import = |online: bool| {
        let mut command = client();
        command.args([
            "import",
            "--json",
            "--transport",
            "h3",
            "--relay",
            if online { &relay } else { "https://127.0.0.1:9" },
        ]);
        command.args(["--core", if online { &core } else { NOWHERE }, "--piece-bytes", "300000"]);
        command.arg("--ca-file").arg(phone.world.certificate_file());
        command.arg("--account-token-file").arg(phone.path("account"));
        command.arg("--group-key-file").arg(phone.path("group.key"));
        command.arg("--session-out").arg(phone.path("contact.json"));
        command.arg("--queue").arg(phone.path("queue")).arg(phone.path("film.mp4"));
        command.args(["--finish-timeout", if online { "60" } else { "0" }]);
        command
    };
    let offline = tokio::time::timeout(PATIENCE, import(false).output()).await.unwrap().unwrap();
    assert_eq!(offline.status.code(), Some(1), "{offline:?}");
    let online = tokio::time::timeout(PATIENCE, import(true).output()).await.unwrap().unwrap();
    assert!(online.status.success(), "{online:?}");
    let named = phone.world.metric("waystation_capabilities_named_total{code=\"ok\"}").await;
    assert!(named > 0.0, "the token goes whole only until the relay knows it");
    let mut held = phone.at_core().await;
    held.remove(&(Variant::MetadataContext, 0)).expect("the manifest");
    let joined: Vec<u8> = held
        .into_iter()
        .flat_map(|((lane, _), bytes)| {
            assert_eq!(lane, Variant::EvidenceMaster);
            bytes
        })
        .collect();
    assert!(joined == content, "{} bytes", joined.len());
    let again = tokio::time::timeout(PATIENCE, import(true).output()).await.unwrap().unwrap();
    assert!(again.status.success(), "what is over stays so: {again:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_relay_can_not_tell_the_core_is_asked() {
    let phone = Phone::new().await;
    let fault = Fault::new(FaultRoute::Commit, Effect::CutAfterCommit).times(2);
    phone.world.core.faults().add(fault);
    let contact = phone.path("contact.json");
    let mut command = phone.capture(true, 8, &["--speed", "100", "--session-out", contact.to_str().unwrap()]);
    let output = tokio::time::timeout(PATIENCE, command.output()).await.unwrap().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    assert!(text.contains("\"state\":\"unsettled\""), "an answer was lost: {text}");
    phone.all_is_there(4).await;
}
