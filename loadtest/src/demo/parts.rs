//! The four programs, and how each is started.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use tokio::process::Command;

use super::place::Place;
use super::process::{self, Process};
use super::{Args, Error};

/// Time for the last chunks to be confirmed after the last cut, and for all to end.
pub(super) const FINISH_SECONDS: u64 = 60;
/// Chunks of a stream in a longer run.
const FEW_CHUNKS: &str = "8";
/// Life of a capability in a longer run.
const SHORT_LIFE: &str = "20s";
/// Any free port, the first time.
const ANY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// devcore.
pub(super) struct Core<'a> {
    place: &'a Place,
    renewing: bool,
    address: SocketAddr,
    process: Option<Process>,
}

impl<'a> Core<'a> {
    pub(super) const fn new(place: &'a Place, renewing: bool) -> Self {
        Self { place, renewing, address: ANY, process: None }
    }

    /// Starts it; once more at the address it had.
    pub(super) async fn start(&mut self) -> Result<(), Error> {
        let mut command = Command::new(self.place.program("waystation-devcore"));
        command.args(["serve", "--idempotent-commit", "--listen", &self.address.to_string(), "--data"]);
        command.arg(self.place.file("core"));
        if self.renewing {
            command.args(["--max-chunks", FEW_CHUNKS, "--capability-ttl", SHORT_LIFE]);
        }
        let (process, line) =
            process::serve("waystation-devcore", &mut command, &self.place.file("logs/core.log")).await?;
        self.address = process::address(&line, "listen")?;
        self.process = Some(process);
        Ok(())
    }

    pub(super) async fn kill(&mut self) -> Result<(), Error> {
        match self.process.take() {
            Some(mut process) => process.kill().await,
            None => Ok(()),
        }
    }

    pub(super) const fn address(&self) -> SocketAddr {
        self.address
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Where devcore keeps the token of its one account.
    pub(super) fn account_token_file(&self) -> PathBuf {
        self.place.file("core/account-token")
    }
}

/// The relay.
pub(super) struct Relay<'a> {
    place: &'a Place,
    /// The page that a browser may come from.
    origin: Option<&'a str>,
    public: SocketAddr,
    plain: SocketAddr,
    ops: SocketAddr,
    process: Option<Process>,
}

impl<'a> Relay<'a> {
    pub(super) const fn new(place: &'a Place, origin: Option<&'a str>) -> Self {
        Self { place, origin, public: ANY, plain: ANY, ops: ANY, process: None }
    }

    /// Starts it; once more at the addresses it had.
    pub(super) async fn start(&mut self, core: &Core<'_>) -> Result<(), Error> {
        std::fs::write(self.config(), self.toml(core))?;
        self.start_again().await
    }

    /// Starts it with the configuration it has.
    pub(super) async fn start_again(&mut self) -> Result<(), Error> {
        let mut command = Command::new(self.place.program("waystation"));
        command.args(["serve", "--config"]).arg(self.config());
        let (process, line) = process::serve("waystation", &mut command, &self.place.file("logs/relay.log")).await?;
        (self.public, self.ops) = (process::address(&line, "public")?, process::address(&line, "ops")?);
        self.plain = process::address(&line, "plain")?;
        self.process = Some(process);
        Ok(())
    }

    /// Where browsers find it: on this machine they ask for no certificate.
    pub(super) fn plain_url(&self) -> String {
        format!("http://{}", self.plain)
    }

    /// Where it speaks TLS, and HTTP/3.
    pub(super) fn secure_url(&self) -> String {
        format!("https://{}", self.public)
    }

    pub(super) async fn kill(&mut self) -> Result<(), Error> {
        match self.process.take() {
            Some(mut process) => process.kill().await,
            None => Ok(()),
        }
    }

    /// From now on it is to listen where it listens now.
    pub(super) fn settle(&self, core: &Core<'_>) -> Result<(), Error> {
        Ok(std::fs::write(self.config(), self.toml(core))?)
    }

    /// What an operator types to ask it.
    pub(super) fn status_command(&self) -> String {
        format!("{} status --ops {}", Place::shown(&self.place.program("waystation")), self.ops)
    }

    fn config(&self) -> PathBuf {
        self.place.file("relay/waystation.toml")
    }

    fn toml(&self, core: &Core<'_>) -> String {
        let file = |name: &str| self.place.file(name);
        format!(
            "[listen]\npublic = \"{}\"\nops = \"{}\"\nplain = \"{}\"\nallowed_origins = {:?}\n\n\
             [tls]\ncertificate = {:?}\nprivate_key = {:?}\n\n\
             [core]\nurl = \"{}\"\nservice_token_file = {:?}\n\n\
             [capability]\njwks_url = \"{}/v1/relay/jwks\"\n\n\
             [staging]\ndirectory = {:?}\nseal_key_file = {:?}\n",
            self.public,
            self.ops,
            self.plain,
            Vec::from_iter(self.origin),
            self.place.certificate(),
            file("relay/tls.key"),
            core.url(),
            file("core/service-token"),
            core.url(),
            file("relay/staging"),
            file("relay/seal.key"),
        )
    }
}

/// Starts the capture client.
pub(super) fn capture(
    place: &Place,
    args: &Args,
    core: &Core<'_>,
    relay: &Relay<'_>,
    seconds: u64,
) -> Result<Process, Error> {
    let mut command = client("capture", place, args, core, relay);
    command.arg("--recording").arg(&args.recording).args(["--seconds", &seconds.to_string()]);
    command.arg("--session-out").arg(place.file("session.json"));
    command.args(["--finish-timeout", &patience(args).to_string()]);
    Process::start("waystation-client capture", &mut command, &place.file("logs/capture.log"))
}

/// Starts the contact.
///
/// It ends when it knows `chunks` confirmed: over HTTP a device says nothing when it ends, so that
/// otherwise only silence would tell.
pub(super) fn contact(
    place: &Place,
    args: &Args,
    core: &Core<'_>,
    relay: &Relay<'_>,
    chunks: u64,
) -> Result<Process, Error> {
    let mut command = client("watch", place, args, core, relay);
    command.arg("--session-file").arg(place.file("session.json"));
    command.arg("--out").arg(place.contact()).args(["--from", "oldest"]);
    command.args(["--until-confirmed", &chunks.to_string(), "--idle", &patience(args).to_string()]);
    Process::start("waystation-client watch", &mut command, &place.file("logs/contact.log"))
}

/// Seconds in which nothing need happen.
fn patience(args: &Args) -> u64 {
    30 + args.core_down.unwrap_or_default().as_secs()
}

fn client(what: &str, place: &Place, args: &Args, core: &Core<'_>, relay: &Relay<'_>) -> Command {
    let mut command = Command::new(place.program("waystation-client"));
    command.args([what, "--json", "--transport", args.transport.as_str()]);
    command.args(["--relay", &relay.secure_url(), "--core", &core.url()]);
    command.arg("--ca-file").arg(place.certificate());
    command.arg("--account-token-file").arg(core.account_token_file());
    command.arg("--group-key-file").arg(place.file("group.key"));
    command
}

/// How many chunks wait at the relay, as it tells its operator.
pub(super) async fn waiting(place: &Place, relay: &Relay<'_>) -> Result<u64, Error> {
    let mut command = Command::new(place.program("waystation"));
    let asked = command.args(["status", "--json", "--ops", &relay.ops.to_string()]).output().await?;
    let status: serde_json::Value = serde_json::from_slice(&asked.stdout)?;
    let rows = status["waiting"].as_array().ok_or("the relay's status can't be read")?;
    Ok(rows.iter().filter_map(|row| row["chunks"].as_u64()).sum())
}
