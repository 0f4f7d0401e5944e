//! A real relay in front of the test's core, and everything it says.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use waystation::clock::Clock;
use waystation::config::Config;
use waystation::relay::{Addresses, Relay};
use waystation_tests::http::{self as wire, Answer};

use crate::core::{Core, SERVICE_TOKEN};
use crate::form::{Form, INCIDENT, SESSION, STREAM, dressed, token};

pub const PATIENCE: Duration = Duration::from_secs(60);

/// A relay and its core.
pub struct World {
    pub core: Core,
    pub at: Addresses,
    pub dir: TempDir,
    pub toml: String,
    stop: CancellationToken,
}

impl World {
    pub async fn new() -> Self {
        Self::with("", "").await
    }

    /// With further lines of `[staging]`, and further sections.
    pub async fn with(staging: &str, more: &str) -> Self {
        log();
        let core = Core::start().await;
        let dir = tempfile::Builder::new().prefix("directory-canary-").tempdir().unwrap();
        let file = |name: &str| dir.path().join(name);
        std::fs::write(file("service-token"), SERVICE_TOKEN).unwrap();
        let toml = format!(
            "[relay]\nid = \"relayid-canary\"\nregion = \"region-canary\"\n\
             [listen]\npublic = \"127.0.0.1:0\"\nplain = \"127.0.0.1:0\"\nops = \"127.0.0.1:0\"\n\
             trusted_proxies = [\"127.0.0.1\"]\nallowed_origins = [\"https://page.example\"]\n\
             [tls]\nself_signed = true\ncertificate = {:?}\n\
             [core]\nurl = \"{}\"\nservice_token_file = {:?}\n\
             [staging]\ndirectory = {:?}\nseal_key_file = {:?}\n{staging}\n{more}",
            file("relay.pem"),
            core.url(),
            file("service-token"),
            file("staging-canary"),
            file("seal.key"),
        );
        let relay = Relay::bind(Config::parse(&toml, []).unwrap(), Clock::system()).await.unwrap();
        let (at, stop) = (relay.addresses(), CancellationToken::new());
        tokio::spawn(relay.run(stop.clone()));
        Self { core, at, dir, toml, stop }
    }

    pub fn plain(&self) -> SocketAddr {
        self.at.plain.unwrap()
    }

    pub async fn send(&self, request: Request<Full<Bytes>>) -> Answer {
        tokio::time::timeout(PATIENCE, wire::send(self.plain(), request)).await.unwrap()
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send(dressed(Request::get(path)).body(Full::default()).unwrap()).await
    }

    pub async fn upload(&self, form: &Form) -> Answer {
        self.send(form.request()).await
    }

    /// What the ops listener says.
    pub async fn ops(&self, path: &str) -> String {
        wire::get(self.at.ops, path).await.1
    }

    /// Names of what is below `receiving/` and `staged/`.
    pub fn files(&self) -> Vec<PathBuf> {
        let staging = self.dir.path().join("staging-canary");
        let below = |dir: &str| std::fs::read_dir(staging.join(dir)).unwrap().map(|entry| entry.unwrap().path());
        below("receiving").chain(below("staged")).collect()
    }

    /// Nothing of any upload is on the disk, and no room is taken.
    pub async fn until_nothing_is_kept(&self) {
        until("the spool is gone", || self.files().is_empty()).await;
        let metrics = self.ops("/metrics").await;
        for line in ["waystation_staging_used_bytes 0", "waystation_receiving_chunks 0"] {
            assert!(metrics.lines().any(|known| known == line), "{line}\n{metrics}");
        }
    }

    pub async fn watch(&self) -> Watch {
        let watch = self.try_watch(&token("fanout")).await;
        watch.unwrap_or_else(|answer| panic!("{} {:?}", answer.status, answer.body))
    }

    pub async fn try_watch(&self, capability: &str) -> Result<Watch, Answer> {
        Watch::open(self.plain(), subscription(capability)).await
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// The usual subscription.
pub fn subscription(capability: &str) -> Request<Full<Bytes>> {
    dressed(Request::get("/fanout/subscribe?query-canary=1"))
        .header("x-proofline-relay-session-id", SESSION)
        .header("x-proofline-relay-fanout-capability", capability)
        .header("x-proofline-relay-incident-id", INCIDENT)
        .header("x-proofline-relay-stream-id", STREAM)
        .body(Full::default())
        .unwrap()
}

/// Waits until something holds.
pub async fn until(what: &str, is: impl Fn() -> bool) {
    let waiting = async {
        while !is() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, waiting).await.is_ok(), "never: {what}");
}

/// A subscriber.
pub struct Watch {
    pub headers: http::HeaderMap,
    body: Incoming,
    text: String,
    /// Everything that came.
    pub raw: String,
}

impl Watch {
    async fn open(at: SocketAddr, request: Request<Full<Bytes>>) -> Result<Self, Answer> {
        let stream = TcpStream::connect(at).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let (parts, body) = sender.send_request(request).await.unwrap().into_parts();
        if parts.status == 200 {
            return Ok(Self { headers: parts.headers, body, text: String::new(), raw: String::new() });
        }
        let body = body.collect().await.unwrap().to_bytes();
        Err(Answer { status: parts.status, headers: parts.headers, body })
    }

    /// The next event, whatever is between; `None` at the end.
    pub async fn next(&mut self) -> Option<(String, Value)> {
        loop {
            if let Some((event, rest)) = self.text.split_once("\n\n") {
                let (event, rest) = (event.to_owned(), rest.to_owned());
                self.text = rest;
                if event == ":" {
                    continue;
                }
                let lines: Vec<&str> = event.lines().collect();
                let [name, data] = lines[..] else { panic!("{event}") };
                let data = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
                return Some((name.strip_prefix("event: ").unwrap().to_owned(), data));
            }
            let frame = tokio::time::timeout(PATIENCE, self.body.frame()).await.expect("no event came");
            let bytes = frame?.unwrap().into_data().unwrap();
            self.raw.push_str(std::str::from_utf8(&bytes).unwrap());
            self.text.push_str(std::str::from_utf8(&bytes).unwrap());
        }
    }
}

/// Everything the relays of this process logged, as the program would.
pub fn log() -> String {
    static LOG: OnceLock<Log> = OnceLock::new();
    let log = LOG.get_or_init(|| {
        let log = Log::default();
        let writer = log.clone();
        tracing_subscriber::fmt()
            .json()
            .flatten_event(true)
            .with_env_filter(tracing_subscriber::EnvFilter::new("off,waystation=trace"))
            .with_writer(move || writer.clone())
            .init();
        log
    });
    String::from_utf8(log.0.lock().unwrap().clone()).unwrap()
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
