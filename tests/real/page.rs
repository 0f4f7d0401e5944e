//! The contact's page in Chromium, as it is committed: a relay, a core, a phone that plays the recording, and people who
//! watch. What must be seen stands in `tests/clients/page_scenarios.mjs`.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::MutexGuard;
use waystation::clock::Clock;
use waystation_tests::{Setup, World};

use crate::chromium::TURN;
use crate::program::Program;

/// What the recording is sealed with.
const GROUP_KEY: [u8; 32] = [0x5a; 32];
/// Chunks the core has, of four lanes, before the phone goes silent for ten minutes: less than a window.
const RECORDED: u64 = 24;

/// A browser that shows the page, and a relay that allows it.
struct Scene {
    browser: Program,
    world: World,
    _turn: MutexGuard<'static, ()>,
}

impl Scene {
    async fn open(scenario: &str, setup: Setup) -> Self {
        let turn = TURN.lock().await;
        let mut browser = Program::page();
        let origins = browser.named("origins").await;
        let allowed_origins = vec![origins["origin"].as_str().unwrap().to_owned()];
        let world = World::with(Setup { allowed_origins, ..setup }).await;
        std::fs::write(session_file(&world), serde_json::to_vec(&world.session().await).unwrap()).unwrap();
        std::fs::write(world.dir.path().join("group.key"), GROUP_KEY).unwrap();
        let params = json!({
            "scenario": scenario, "core": world.core.url(), "account_token": world.core.account_token(),
            "session_file": session_file(&world), "relay": format!("http://{}", world.plain()),
            "wt": { "url": format!("https://127.0.0.1:{}", world.public().port()), "hashes": [certificate_hash(&world)] },
            "key": URL_SAFE_NO_PAD.encode(GROUP_KEY), "shots": root().join("target/page/shots"),
        });
        let browser = browser.told(params).await;
        Self { browser, world, _turn: turn }
    }

    /// The phone: plays the recording as if it were recorded now, until it is killed.
    fn phone(&self) -> Child {
        let dir = self.world.dir.path();
        Command::new(program("waystation-client"))
            .args(["capture", "--json", "--transport", "h3", "--seconds", "600"])
            .args(["--relay", &format!("https://localhost:{}", self.world.public().port())])
            .args(["--core", &self.world.core.url()])
            .arg("--ca-file")
            .arg(self.world.certificate_file())
            .arg("--account-token-file")
            .arg(self.world.core.data_dir().join("account-token"))
            .arg("--session-file")
            .arg(session_file(&self.world))
            .arg("--group-key-file")
            .arg(dir.join("group.key"))
            .arg("--recording")
            .arg(root().join("client/recording"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap()
    }

    /// Waits until the scenario asks for this.
    async fn asked(&mut self, what: &str) {
        let asked = self.browser.event(|line| line["event"] == "do").await;
        assert_eq!(asked["what"], what);
    }

    async fn done(self) -> Value {
        self.browser.done().await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_contact_sees_and_hears_live_and_knows_what_is_safe() {
    let mut scene = Scene::open("live", Setup::default()).await;
    let mut phone = scene.phone();
    scene.asked("kill the capture client").await;
    phone.kill().await.unwrap();
    scene.browser.go_on().await;
    scene.done().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_opened_ten_minutes_after_the_phone_went_silent_shows_the_window() {
    let clock = Clock::at_unix_ms(Clock::system().unix_ms());
    // The relay is ten minutes ahead of the core then.
    let core = Box::new(|options: &mut waystation_devcore::Options| options.contact_ttl = Duration::from_secs(3600));
    let mut scene = Scene::open("later", Setup { clock: clock.clone(), core, ..Setup::default() }).await;
    scene.asked("record, kill the capture client, let ten minutes pass").await;
    let going = tokio::spawn(async move {
        let mut at = Instant::now();
        loop {
            tokio::time::sleep(Duration::from_millis(50)).await;
            // A busy machine sleeps longer: the relay's time goes with the core's.
            clock.advance(at.elapsed());
            at = Instant::now();
        }
    });
    let mut phone = scene.phone();
    while scene.world.core.stats().await.stored_chunks < RECORDED {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    phone.kill().await.unwrap();
    scene.world.clock.advance(Duration::from_secs(600));
    scene.browser.go_on().await;
    scene.done().await;
    going.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_way_that_ends_has_a_screen_and_forgetting_forgets() {
    let toml = "[fanout]\nreauthorize_every = \"1s\"\n".to_owned();
    let clock = waystation_devcore::Clock::manual(Clock::system().unix_ms());
    let hand = clock.clone();
    let core = Box::new(move |options: &mut waystation_devcore::Options| options.clock = clock.clone());
    let mut scene = Scene::open("screens", Setup { toml, core, ..Setup::default() }).await;
    scene.asked("record a little").await;
    let mut phone = scene.phone();
    scene.browser.go_on().await;
    scene.asked("let the grants run out").await;
    phone.kill().await.unwrap();
    hand.advance(Duration::from_secs(8 * 24 * 3600));
    scene.browser.go_on().await;
    scene.done().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_browser_without_media_source_plays_too_and_comes_back_after_a_cut() {
    let scene = Scene::open("plain", Setup::default()).await;
    let _phone = scene.phone();
    scene.done().await;
}

/// What a browser trusts the development certificate by.
fn certificate_hash(world: &World) -> String {
    URL_SAFE_NO_PAD.encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &world.certificate()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_webtransport_each_chunk_has_its_own_stream_and_nobody_opens_a_websocket() {
    let toml = "[fanout]\nreauthorize_every = \"1s\"\n".to_owned();
    let scene = Scene::open("webtransport", Setup { toml, ..Setup::default() }).await;
    let _phone = scene.phone();
    scene.done().await;
}

/// The demo as a newcomer starts it. What it started ends with it, which it must be told.
struct Demo {
    process: Child,
    _dir: tempfile::TempDir,
}

impl Demo {
    /// Starts it; the link that it prints.
    async fn start() -> (Self, String) {
        let dir = tempfile::tempdir().unwrap();
        let mut process = Command::new(program("waystation-loadtest"))
            .args(["demo", "--page", "--dir"])
            .arg(dir.path().join("demo"))
            .current_dir(root())
            .env_remove("DISPLAY")
            .env_remove("WAYLAND_DISPLAY")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let demo = Self { process, _dir: dir };
        let link = async {
            loop {
                let line = lines.next_line().await.unwrap().expect("it ended");
                if line.contains("/#w1.") {
                    return line;
                }
            }
        };
        let link = tokio::time::timeout(Duration::from_secs(60), link).await.expect("it prints no link");
        // It goes on printing.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        (demo, link.trim().to_owned())
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        let Some(id) = self.process.id() else { return };
        let _ = std::process::Command::new("kill").args(["-INT", &id.to_string()]).status();
        while let Ok(None) = self.process.try_wait() {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_demo_prints_a_link_on_which_somebody_sees_and_hears_it() {
    let _turn = TURN.lock().await;
    let (_demo, link) = Demo::start().await;
    let params = json!({ "scenario": "demo", "link": link, "key": "no secret" });
    Program::page().told(params).await.done().await;
}

fn session_file(world: &World) -> PathBuf {
    world.dir.path().join("session.json")
}

pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

pub(crate) fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let program = test.parent().unwrap().parent().unwrap().join(name);
    assert!(program.exists(), "build the programs first: cargo build --workspace --bins");
    program
}
