//! The real program: started with a configuration file, killed, stopped, started again.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::Full;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use waystation_devcore::session::{self, Request as Ask, Session};
use waystation_devcore::{Devcore, Options, Running};
use waystation_tests::world::{self, PATIENCE};
use waystation_tests::{Chunk, Setup, http as plain};

/// A core in this process, and a relay in its own.
pub struct Rig {
    pub core: Running,
    pub dir: TempDir,
    pub public: SocketAddr,
    pub plain: SocketAddr,
    pub ops: SocketAddr,
    /// In front of the program, e.g. a tracer.
    pub wrapper: Vec<String>,
    relay: Option<Child>,
}

impl Rig {
    /// A core, and a relay that is not started yet.
    pub async fn prepare(setup: Setup) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut options = Options::new(dir.path().join("core"));
        (setup.core)(&mut options);
        let core = Devcore::start(options).await.unwrap();
        std::fs::write(dir.path().join("relay.toml"), world::config(dir.path(), &core, &setup)).unwrap();
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        Self { core, dir, public: nowhere, plain: nowhere, ops: nowhere, wrapper: Vec::new(), relay: None }
    }

    /// The same, started.
    pub async fn start(setup: Setup) -> Self {
        let mut rig = Self::prepare(setup).await;
        rig.begin().await;
        rig
    }

    /// Starts the relay on its directory.
    pub async fn begin(&mut self) {
        let log = std::fs::File::options().append(true).create(true).open(self.path("relay.log")).unwrap();
        let mut words = self.wrapper.clone();
        words.push(program().to_str().unwrap().to_owned());
        let mut relay = Command::new(&words[0])
            .args(&words[1..])
            .args(["serve", "--config", self.path("relay.toml").to_str().unwrap()])
            .env("WAYSTATION_LOG", "trace")
            .env("RUST_LOG", "trace")
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(relay.stdout.take().unwrap()).lines();
        let line = tokio::time::timeout(PATIENCE, lines.next_line()).await.expect("it says nothing").unwrap();
        let addresses: Value = serde_json::from_str(&line.unwrap_or_else(|| panic!("{}", self.log()))).unwrap();
        let at = |name: &str| addresses[name].as_str().unwrap().parse().unwrap();
        (self.public, self.plain, self.ops) = (at("public"), at("plain"), at("ops"));
        self.relay = Some(relay);
    }

    /// `kill -9`
    pub async fn kill(&mut self) {
        self.relay.take().unwrap().kill().await.unwrap();
    }

    /// Asks it to stop, as a service manager does.
    pub async fn terminate(&self) {
        let id = self.relay.as_ref().unwrap().id().unwrap().to_string();
        assert!(Command::new("sh").args(["-c", &format!("kill -TERM {id}")]).status().await.unwrap().success());
    }

    /// Waits for its end.
    pub async fn ended(&mut self) -> ExitStatus {
        let mut relay = self.relay.take().unwrap();
        tokio::time::timeout(PATIENCE, relay.wait()).await.expect("it does not stop").unwrap()
    }

    pub async fn session(&self) -> Session {
        session::open(&Ask::new(self.core.url(), self.core.account_token())).await.unwrap()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Everything it has logged, over all its lives.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("relay.log")).unwrap_or_default()
    }

    pub fn certificate(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_file(self.path("relay.pem")).unwrap()
    }

    /// Names in the staging directory's folders.
    pub fn files(&self, folder: &str) -> Vec<String> {
        files(&self.path("staging").join(folder))
    }

    /// `GET` of the ops listener.
    pub async fn ops(&self, path: &str) -> (StatusCode, String) {
        plain::get(self.ops, path).await
    }

    /// `/readyz`
    pub async fn ready(&self) -> (StatusCode, Value) {
        let (status, text) = self.ops("/readyz").await;
        (status, serde_json::from_str(&text).unwrap())
    }

    /// What `waystation status` prints.
    pub async fn status(&self) -> String {
        let output = Command::new(program()).args(["status", "--ops", &self.ops.to_string()]).output().await.unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap()
    }

    /// Waits until `waystation status` prints `text`; what it printed.
    pub async fn until_status(&self, text: &str) -> String {
        let mut printed = String::new();
        until(async || {
            printed = self.status().await;
            printed.contains(text)
        })
        .await;
        printed
    }

    /// Brings a chunk over `plain`; waits for no verdict.
    pub async fn stage(&self, chunk: &Chunk, capability: &str) -> plain::Answer {
        plain::upload(self.plain, chunk, capability, 0).await
    }

    /// State and offset of a chunk; `None` if the relay does not know it.
    pub async fn standing(&self, chunk: &Chunk, capability: &str) -> Option<(String, u64)> {
        let head = plain::ask(self.plain, Method::HEAD, chunk, capability).await;
        if head.status != StatusCode::OK {
            return None;
        }
        let text = |name: &str| head.headers[name].to_str().unwrap().to_owned();
        Some((text("waystation-state"), text("upload-offset").parse().unwrap()))
    }

    /// Waits until a chunk stands so.
    pub async fn until_standing(&self, chunk: &Chunk, capability: &str, state: &str, offset: u64) {
        until(async || self.standing(chunk, capability).await == Some((state.to_owned(), offset))).await;
    }

    /// Waits until the core has this chunk, byte for byte.
    pub async fn until_at_core(&self, chunk: &Chunk) {
        until(async || at_core(&self.core, chunk).await.is_some()).await;
        assert!(at_core(&self.core, chunk).await.unwrap() == chunk.bytes, "the core has other bytes");
    }
}

/// A chunk's bytes as the core has them.
pub async fn at_core(core: &Running, chunk: &Chunk) -> Option<Bytes> {
    let offer = &chunk.offer;
    let path = format!("/v1/incidents/{}/chunks/{}/{}", offer.incident.as_str(), offer.stream.as_str(), offer.index);
    let request = Request::get(path)
        .header("host", "core")
        .header("authorization", format!("Bearer {}", core.account_token()))
        .body(Full::default())
        .unwrap();
    let answer = plain::send(core.addr(), request).await;
    (answer.status == StatusCode::OK).then_some(answer.body)
}

/// Waits until `is` holds.
pub async fn until(mut is: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !is().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, waiting).await.is_ok(), "it never came to it");
}

/// Names in a directory.
pub fn files(directory: &Path) -> Vec<String> {
    let name = |entry: std::io::Result<std::fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
    std::fs::read_dir(directory).unwrap().map(name).collect()
}

/// The program beside this test; `./test` builds it before.
pub fn program() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let program = test.parent().unwrap().parent().unwrap().join("waystation");
    assert!(program.exists(), "build the programs first: cargo build --workspace --bins");
    program
}
