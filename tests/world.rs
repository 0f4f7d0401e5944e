//! A core and a relay, in this process.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use waystation::clock::Clock;
use waystation::config::Config;
use waystation::relay::{Addresses, Outcome, Relay};
use waystation_devcore::session::{self, Request, Session};
use waystation_devcore::{Devcore, Options, Running};

/// No test waits longer for anything that must come.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// What differs from the usual world.
pub struct Setup {
    /// Lines of TOML below the usual ones, e.g. `[limits]\nconnections = 3`.
    pub toml: String,
    /// Further lines of `[staging]`.
    pub staging: String,
    /// Instead of the usual lines of `[capability]`.
    pub capability: Option<String>,
    /// `listen.allowed_origins`.
    pub allowed_origins: Vec<String>,
    /// The relay's clock.
    pub clock: Clock,
    /// Whether the relay holds the core's HMAC secret.
    pub proofline_secret: bool,
    /// Changes the core's options.
    pub core: Box<dyn Fn(&mut Options) + Send>,
    /// Calls a minute that the relay is told of.
    pub max_requests_per_minute: u32,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            toml: String::new(),
            staging: String::new(),
            capability: None,
            allowed_origins: Vec::new(),
            clock: Clock::system(),
            proofline_secret: false,
            core: Box::new(|_| ()),
            max_requests_per_minute: 0,
        }
    }
}

/// A core and a relay.
pub struct World {
    /// The core.
    pub core: Running,
    /// Where the relay listens.
    pub at: Addresses,
    /// Its clock.
    pub clock: Clock,
    /// Everything that is on disk.
    pub dir: TempDir,
    toml: String,
    stop: CancellationToken,
    running: Option<JoinHandle<Outcome>>,
}

impl World {
    /// The usual world: devcore with receipts, a relay that verifies capabilities itself.
    pub async fn new() -> Self {
        Self::with(Setup::default()).await
    }

    /// A world that differs.
    pub async fn with(setup: Setup) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut options = Options::new(dir.path().join("core"));
        (setup.core)(&mut options);
        let core = Devcore::start(options).await.unwrap();
        let toml = config(dir.path(), &core, &setup);
        let (at, stop, running) = start(&toml, setup.clock.clone()).await;
        Self { core, at, clock: setup.clock, dir, toml, stop, running: Some(running) }
    }

    /// Ends the relay as SIGTERM would.
    pub async fn stop_relay(&mut self) -> Outcome {
        self.stop.cancel();
        self.running.take().unwrap().await.unwrap()
    }

    /// Ends the relay unless it has ended, and starts one on the same directory.
    pub async fn restart_relay(&mut self) {
        if self.running.is_some() {
            self.stop_relay().await;
        }
        let (at, stop, running) = start(&self.toml, self.clock.clone()).await;
        (self.at, self.stop, self.running) = (at, stop, Some(running));
    }

    /// Makes incident, group and the four streams.
    pub async fn session(&self) -> Session {
        self.session_with(|_| ()).await
    }

    /// The same, with changes to what is asked for.
    pub async fn session_with(&self, change: impl FnOnce(&mut Request)) -> Session {
        let mut request = Request::new(self.core.url(), self.core.account_token());
        change(&mut request);
        session::open(&request).await.unwrap()
    }

    /// The public listener.
    pub fn public(&self) -> SocketAddr {
        self.at.public.unwrap()
    }

    /// The listener without TLS.
    pub fn plain(&self) -> SocketAddr {
        self.at.plain.unwrap()
    }

    /// The development certificate, PEM.
    pub fn certificate_file(&self) -> PathBuf {
        self.dir.path().join("relay.pem")
    }

    /// The development certificate.
    pub fn certificate(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_file(self.certificate_file()).unwrap()
    }

    /// The relay's configuration file's text.
    pub fn toml(&self) -> &str {
        &self.toml
    }

    /// The metrics' text.
    pub async fn metrics(&self) -> String {
        crate::http::get(self.at.ops, "/metrics").await.1
    }

    /// One sample of the metrics, by its whole name with labels; 0 if it is not there.
    pub async fn metric(&self, name: &str) -> f64 {
        let text = self.metrics().await;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.parse().unwrap())
    }

    /// Waits until `is` holds for a sample.
    pub async fn until_metric(&self, name: &str, is: impl Fn(f64) -> bool) {
        let waiting = async {
            while !is(self.metric(name).await) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        assert!(tokio::time::timeout(PATIENCE, waiting).await.is_ok(), "{name} never came to it");
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn start(toml: &str, clock: Clock) -> (Addresses, CancellationToken, JoinHandle<Outcome>) {
    // The directory's lock is given back when the last task of the relay before is gone.
    let mut tries = 0;
    let relay = loop {
        match Relay::bind(Config::parse(toml, []).unwrap(), clock.clone()).await {
            Ok(relay) => break relay,
            Err(error) if tries == 100 => panic!("{error}"),
            Err(_) => tries += 1,
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let (at, stop) = (relay.addresses(), CancellationToken::new());
    let running = tokio::spawn(relay.run(stop.clone()));
    (at, stop, running)
}

/// The usual configuration. Sections of `setup.toml` must not repeat those that stand here, but
/// may use `[fanout]`, `[limits]` and `[relay]`.
pub fn config(dir: &Path, core: &Running, setup: &Setup) -> String {
    let file = |name: &str| dir.join(name);
    std::fs::write(file("service-token"), core.service_token()).unwrap();
    let usual = || format!("jwks_url = \"{}/v1/relay/jwks\"\n", core.url());
    let mut capability = setup.capability.clone().unwrap_or_else(usual);
    if setup.proofline_secret {
        std::fs::write(file("proofline-secret"), core.capability_secret()).unwrap();
        capability += &format!("proofline_secret_file = {:?}\n", file("proofline-secret"));
    }
    format!(
        "[listen]\npublic = \"127.0.0.1:0\"\nplain = \"127.0.0.1:0\"\nops = \"127.0.0.1:0\"\n\
         allowed_origins = {:?}\n\
         [tls]\nself_signed = true\ncertificate = {:?}\n\
         [core]\nurl = \"{}\"\nservice_token_file = {:?}\nmax_requests_per_minute = {}\n\
         [capability]\n{capability}\
         [staging]\ndirectory = {:?}\nseal_key_file = {:?}\n{}\n{}",
        setup.allowed_origins,
        file("relay.pem"),
        core.url(),
        file("service-token"),
        setup.max_requests_per_minute,
        file("staging"),
        file("seal.key"),
        setup.staging,
        setup.toml,
    )
}
