//! The real programs, started for one run: a core that checks everything and keeps nothing, and a
//! relay with a certificate of its own.

mod cores;
pub mod program;
mod usage;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use rustls_pki_types::CertificateDer;
use serde_json::Value;
use tempfile::TempDir;
use tokio::process::Command;
use waystation_client::Endpoint;
use waystation_client::connect::Trust;
use waystation_client::session::Session;
use waystation_proto::Variant;

pub use cores::Cores;
pub use program::Program;
pub use usage::Usage;

use crate::Failure;

/// Chunks that a stream may have: more than any run brings.
const MAX_CHUNKS: &str = "100000000";
/// Life of a run's capabilities, in seconds.
const TTL_S: &str = "86400";

/// What differs between runs.
#[derive(Debug, Clone, Default)]
pub struct Setup {
    /// Where the staging directory is made; the system's directory for temporary files if absent.
    pub directory: Option<PathBuf>,
    /// Further lines of the relay's configuration, below the usual ones.
    pub toml: String,
    /// The relay runs on this core alone.
    pub core: Option<usize>,
}

/// A core and a relay. They end when this is dropped, and their files go.
#[derive(Debug)]
pub struct Rig {
    // In this order they end: the relay before its core, the files last.
    relay: Program,
    _core: Program,
    /// The relay's public listener, TCP and UDP.
    pub public: SocketAddr,
    /// The relay's ops listener.
    pub ops: SocketAddr,
    /// Believes the relay's certificate and no other.
    pub trust: Trust,
    core_url: String,
    account_token: PathBuf,
    dir: TempDir,
}

impl Rig {
    /// Starts both.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn start(setup: &Setup) -> Result<Self, Failure> {
        let above = setup.directory.clone().unwrap_or_else(std::env::temp_dir);
        let dir = tempfile::Builder::new().prefix("waystation-load-").tempdir_in(above);
        let dir = dir.map_err(Failure::io("the directory"))?;
        let data = dir.path().join("core");
        let serve = ["serve", "--listen", "127.0.0.1:0", "--keep-nothing", "--max-chunks", MAX_CHUNKS, "--data"];
        let (core, said) = Program::start("waystation-devcore", &serve, &data, dir.path()).await?;
        let core_url = text(&said, "url")?;
        let certificate = certificate(dir.path(), &["localhost", "127.0.0.1"])?;
        let config = dir.path().join("relay.toml");
        std::fs::write(&config, toml(dir.path(), &core_url, &text(&said, "service_token_file")?, &setup.toml))
            .map_err(Failure::io("the configuration"))?;
        let (relay, bound) = relay(&config, dir.path(), setup.core).await?;
        let trust = Trust::certificates(vec![certificate]).map_err(|_| Failure::Wire("the certificate is none"))?;
        Ok(Self {
            relay,
            _core: core,
            public: address(&bound, "public")?,
            ops: address(&bound, "ops")?,
            trust,
            core_url,
            account_token: text(&said, "account_token_file")?.into(),
            dir,
        })
    }

    /// Makes incident, group, one stream for each lane, and capabilities for them.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn session(&self, lanes: &[Variant]) -> Result<Session, Failure> {
        let lanes: Vec<_> = lanes.iter().map(|lane| lane.as_str()).collect();
        let lanes = lanes.join(",");
        let ask = ["session", "--core", &self.core_url, "--lanes", &lanes, "--ttl", TTL_S, "--max-chunks", MAX_CHUNKS];
        let ask = [&ask[..], &["--account-token-file"]].concat();
        let line = Program::ask("waystation-devcore", &ask, &self.account_token).await?;
        serde_json::from_str(&line).map_err(|_| Failure::Wire("the core made no session"))
    }

    /// Chunks that the core has confirmed, by its own count.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn confirmed(&self) -> Result<u64, Failure> {
        let token = std::fs::read_to_string(&self.account_token).map_err(Failure::io("the account token"))?;
        let stats = crate::link::plain_get(&self.core_url, "/devcore/stats", token.trim()).await?;
        let stats: Value = serde_json::from_slice(&stats).map_err(|_| Failure::Wire("the core's counts"))?;
        stats["confirmed_chunks"].as_u64().ok_or(Failure::Wire("the core's counts"))
    }

    /// What the relay has used so far.
    ///
    /// # Errors
    /// [`Failure::Io`] if it is gone.
    pub fn usage(&self) -> Result<Usage, Failure> {
        Usage::of(self.relay.pid()).map_err(Failure::io("the relay's process"))
    }

    /// The relay as a client names it.
    ///
    /// # Errors
    /// [`Failure::Wire`] never, as long as the address is one.
    pub fn endpoint(&self) -> Result<Endpoint, Failure> {
        let url = format!("https://{}", self.public);
        Endpoint::parse(&url, self.trust.clone()).map_err(|_| Failure::Wire("the relay's address"))
    }

    /// Where the run's files are.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }
}

/// A command that runs on this core alone, where there is one to say.
pub(crate) fn on_core(program: &Path, core: Option<usize>) -> Command {
    let Some(core) = core else { return Command::new(program) };
    let mut command = Command::new("taskset");
    command.args(["--cpu-list", &core.to_string()]).arg(program);
    command
}

async fn relay(config: &Path, dir: &Path, core: Option<usize>) -> Result<(Program, Value), Failure> {
    let mut command = on_core(&program::path("waystation")?, core);
    command.args(["serve", "--config"]).arg(config);
    Program::launch("waystation", command, dir).await
}

/// Makes a certificate for these names: `tls.pem` and `tls.key` in `dir`.
pub(crate) fn certificate(dir: &Path, names: &[&str]) -> Result<CertificateDer<'static>, Failure> {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let made = rcgen::generate_simple_self_signed(names).map_err(|_| Failure::Wire("no certificate was made"))?;
    let write = |name, pem: String| std::fs::write(dir.join(name), pem).map_err(Failure::io("the certificate"));
    write("tls.pem", made.cert.pem())?;
    write("tls.key", made.signing_key.serialize_pem())?;
    Ok(made.cert.der().clone())
}

fn toml(dir: &Path, core_url: &str, service_token: &str, more: &str) -> String {
    let file = |name: &str| dir.join(name);
    format!(
        "[listen]\npublic = \"127.0.0.1:0\"\nplain = \"127.0.0.1:0\"\nops = \"127.0.0.1:0\"\n\
         [tls]\ncertificate = {:?}\nprivate_key = {:?}\n\
         [core]\nurl = {core_url:?}\nservice_token_file = {service_token:?}\n\
         [capability]\njwks_url = \"{core_url}/v1/relay/jwks\"\n\
         [staging]\ndirectory = {:?}\nseal_key_file = {:?}\n{more}",
        file("tls.pem"),
        file("tls.key"),
        file("staging"),
        file("seal.key"),
    )
}

pub(crate) fn text(said: &Value, key: &str) -> Result<String, Failure> {
    said[key].as_str().map(str::to_owned).ok_or(Failure::Wire("a program did not say where its files are"))
}

pub(crate) fn address(said: &Value, key: &str) -> Result<SocketAddr, Failure> {
    said[key].as_str().and_then(|text| text.parse().ok()).ok_or(Failure::Wire("the relay did not say where it listens"))
}
