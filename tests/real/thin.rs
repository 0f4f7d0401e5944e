//! The contact's page behind a bad link, as in life: a browser at the link's far end; the page's host, core, relay and the
//! phone at the near one, over TLS, with a window full of sound and picture. How soon it says something, and is heard,
//! stands in `tests/clients/page_thin.mjs`.
//!
//! Links need root. Whoever is not root can't run this, and is told so.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio_util::sync::CancellationToken;
use waystation_client::authority::{FixedAuthority, TokenForm};
use waystation_client::capture::{Capture, Config, Event, LaneSpec, Storage};
use waystation_client::connect::{Transport, Trust};
use waystation_client::playback::{RecordedLane, Recording};
use waystation_client::session::Session;
use waystation_client::{Endpoint, GroupKey};
use waystation_netlab::{Error, Link, Profile, SERVER, Side};
use waystation_proto::{ChunkState, Variant};

use crate::chromium::TURN;
use crate::page::{program, root};
use crate::program::Program;

/// Chunks that were recorded before anybody watches: the relay's whole window of two minutes.
const WINDOW: u64 = 60;
const CHUNK: Duration = Duration::from_secs(2);
const LANES: [Variant; 2] = [Variant::AudioPriority, Variant::LivePreview];
/// More chunks, and a longer life, than any run needs.
const PLENTY: [&str; 4] = ["--max-chunks", "100000", "--capability-ttl", "24h"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_poor_link_the_page_soon_says_something_and_is_soon_heard() {
    if let Err(Error::NotRoot) = Link::possible() {
        std::io::Write::write_all(&mut std::io::stderr(), b"not run: an emulated link needs root\n").unwrap();
        return;
    }
    let _turn = TURN.lock().await;
    let seed = std::env::var("LINK_SEED").map_or(1, |seed| seed.parse().unwrap());
    let near = Near::start(seed).await;
    let (phone, link) = (near.phone(), near.contact_link().await);
    // Nobody vouches for this certificate; over QUIC a browser wants to be told so by address.
    let there = near.relay_url.trim_start_matches("https://");
    let args =
        [format!("--ignore-certificate-errors-spki-list={}", near.spki), format!("--origin-to-force-quic-on={there}")];
    let node = first(&near.link, Side::Client, Path::new("node"));
    let browser = Program::page_by(node);
    let result = browser.told(json!({ "scenario": "thin", "link": link, "key": "", "args": args })).await.done().await;
    std::io::Write::write_all(&mut std::io::stderr(), format!("poor3g, seed {seed}: {result}\n").as_bytes()).unwrap();
    drop(phone);
}

/// What runs at the near end. The programs end before the link.
struct Near {
    core: Value,
    page_url: String,
    relay_url: String,
    session: PathBuf,
    spki: String,
    _programs: Vec<Child>,
    link: Arc<Link>,
    dir: TempDir,
}

impl Near {
    async fn start(seed: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str| dir.path().join(name);
        let link = Arc::new(Link::start(&Profile::named("poor3g").unwrap(), seed, &Default::default()).unwrap());
        let spki = certificate(dir.path());
        let command = |name: &str| Command::from(first(&link, Side::Server, &program(name)));
        let any = format!("{SERVER}:0");
        let devcore = |what: &str| {
            let mut command = command("waystation-devcore");
            command.args([what, "--listen", &any, "--tls-cert"]).arg(file("tls.pem"));
            command.arg("--tls-key").arg(file("tls.key"));
            command
        };
        let mut core = devcore("serve");
        core.arg("--idempotent-commit").args(PLENTY).arg("--data").arg(file("core"));
        let mut page = devcore("page");
        page.arg("--page").arg(root().join("client/web/dist"));
        let ((core_process, core), (page_process, page)) = (serve(core).await, serve(page).await);
        let page_url = page["page_url"].as_str().unwrap().to_owned();
        std::fs::write(file("relay.toml"), toml(dir.path(), &core, &page_url)).unwrap();
        std::fs::write(file("group.key"), [0x5a; 32]).unwrap();
        let mut relay = command("waystation");
        relay.args(["serve", "--config"]).arg(file("relay.toml"));
        let (relay, bound) = serve(relay).await;
        let relay_url = format!("https://{}", bound["public"].as_str().unwrap());
        let session = file("session.json");
        let mut asked = command("waystation-devcore");
        asked.args(["session", "--core", core["url"].as_str().unwrap(), "--lanes", "audio_priority,live_preview"]);
        asked.args(["--ttl", "86400", "--max-chunks", "100000", "--ca-file"]).arg(file("tls.pem"));
        asked.arg("--account-token-file").arg(core["account_token_file"].as_str().unwrap());
        std::fs::write(&session, said(asked).await).unwrap();
        let _programs = vec![relay, page_process, core_process];
        Self { core, page_url, relay_url, session, spki, _programs, link, dir }
    }

    /// A grant for one contact, and the link with it.
    async fn contact_link(&self) -> String {
        let mut command = Command::from(self.link.command(Side::Server, program("waystation-client")));
        command.args(["link", "--page", &self.page_url, "--relay", &self.relay_url]);
        command.args(["--core", self.core["url"].as_str().unwrap(), "--account-token-file"]);
        command.arg(self.core["account_token_file"].as_str().unwrap());
        command.arg("--core-ca-file").arg(self.dir.path().join("tls.pem")).arg("--session-file").arg(&self.session);
        command.arg("--group-key-file").arg(self.dir.path().join("group.key"));
        String::from_utf8(said(command).await).unwrap().trim().to_owned()
    }

    /// A phone with a good link, which has filled the window when this returns, and records on.
    fn phone(&self) -> Phone {
        let (stop, link) = (CancellationToken::new(), Arc::clone(&self.link));
        let session = Session::read(&self.session).unwrap();
        let trust = Trust::file(&self.dir.path().join("tls.pem")).unwrap();
        let config = Config {
            relays: vec![Endpoint::parse(&self.relay_url, trust).unwrap()],
            transport: Transport::H3,
            group_key: GroupKey::read(&self.dir.path().join("group.key")).unwrap(),
            lanes: Recording::read(&recording()).unwrap().lanes.iter().filter(watched).map(spec).collect(),
            client_key: None,
            storage: Storage::Memory,
            manifest: false,
            wait_s: 30,
        };
        let (filled, is_filled) = std::sync::mpsc::channel();
        let stopped = stop.clone();
        let run = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(stopped.run_until_cancelled(record(config, session, filled)));
            Ok(())
        };
        let thread = std::thread::spawn(move || link.inside(Side::Server, run).unwrap());
        // The picture may take longer: the relay asks for less of it from a phone whose chunks come late.
        let mut safe = 0;
        while safe < WINDOW {
            safe = is_filled.recv_timeout(Duration::from_secs(60)).unwrap_or_else(|_| panic!("{safe} chunks of sound"));
        }
        Phone { stop, thread: Some(thread) }
    }
}

/// A command on one side of a link that goes before other processes, as the link does: a busy machine would be measured otherwise.
fn first(link: &Link, side: Side, program: &Path) -> std::process::Command {
    let mut command = link.command(side, "nice");
    command.args(["-n", "-12"]).arg(program);
    command
}

/// A thread that records until this is dropped.
struct Phone {
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Phone {
    fn drop(&mut self) {
        self.stop.cancel();
        let _ = self.thread.take().unwrap().join();
    }
}

/// Cuts a window of chunks that ended just now, says how many of sound the core has, and goes on in time.
async fn record(config: Config, session: Session, filled: std::sync::mpsc::Sender<u64>) {
    let authority = Arc::new(FixedAuthority::new(session, TokenForm::Jwt, None));
    let (capture, mut events) = Capture::start(config, authority).await.unwrap();
    let lanes: Vec<RecordedLane> =
        Recording::read(&recording()).unwrap().lanes.into_iter().filter(|l| watched(&l)).collect();
    let began = tokio::time::Instant::now();
    let chunk_ms = CHUNK.as_millis() as i64;
    let start_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64 - chunk_ms * WINDOW as i64;
    let cutting = async {
        for k in 0.. {
            if k >= WINDOW {
                tokio::time::sleep_until(began + CHUNK * (k - WINDOW + 1) as u32).await;
            }
            let from = start_ms + chunk_ms * k as i64;
            for lane in &lanes {
                capture.chunk(lane.variant, lane.chunk(k).await.unwrap(), from, from + chunk_ms).await.unwrap();
            }
        }
    };
    let hearing = async {
        let mut safe = BTreeSet::new();
        while let Some(event) = events.recv().await {
            if let Event::State { label, state: ChunkState::Confirmed, .. } = event
                && label.variant == Variant::AudioPriority
            {
                safe.insert(label.lane_seq);
                // Nobody listens any more once the window is full.
                let _ = filled.send(safe.len() as u64);
            }
        }
    };
    tokio::join!(cutting, hearing);
}

fn watched(lane: &&RecordedLane) -> bool {
    LANES.contains(&lane.variant)
}

fn spec(lane: &RecordedLane) -> LaneSpec {
    LaneSpec { variant: lane.variant, media: lane.media }
}

fn recording() -> PathBuf {
    root().join("client/recording")
}

/// A certificate for the near end, and what a browser is to be told of its key: nobody vouches for it.
fn certificate(dir: &Path) -> String {
    let names = vec!["localhost".to_owned(), SERVER.to_string()];
    let made = rcgen::generate_simple_self_signed(names).unwrap();
    std::fs::write(dir.join("tls.pem"), made.cert.pem()).unwrap();
    std::fs::write(dir.join("tls.key"), made.signing_key.serialize_pem()).unwrap();
    let key = rcgen::PublicKeyData::subject_public_key_info(&made.signing_key);
    STANDARD.encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &key))
}

fn toml(dir: &Path, core: &Value, page_url: &str) -> String {
    let (url, file) = (core["url"].as_str().unwrap(), |name: &str| dir.join(name));
    format!(
        "[listen]\npublic = \"{SERVER}:0\"\nops = \"127.0.0.1:0\"\nallowed_origins = [{:?}]\n\
         [tls]\ncertificate = {:?}\nprivate_key = {:?}\n\
         [core]\nurl = {url:?}\nca_file = {:?}\nservice_token_file = {}\n\
         [capability]\njwks_url = \"{url}/v1/relay/jwks\"\n\
         [staging]\ndirectory = {:?}\nseal_key_file = {:?}\n",
        page_url.trim_end_matches('/'),
        file("tls.pem"),
        file("tls.key"),
        file("tls.pem"),
        core["service_token_file"],
        file("staging"),
        file("seal.key"),
    )
}

/// Starts a program that says where it serves.
async fn serve(mut command: Command) -> (Child, Value) {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let line = tokio::time::timeout(Duration::from_secs(60), lines.next_line()).await.expect("it is silent");
    (child, serde_json::from_str(&line.unwrap().expect("it ended")).unwrap())
}

/// Runs a program to its end: what it printed.
async fn said(mut command: Command) -> Vec<u8> {
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output().await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}
