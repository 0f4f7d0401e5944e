//! The two commands and their flags.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use clap::{Args, Parser, ValueEnum};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;
use waystation_devcore::{Devcore, Options, PageHost, Secret, session};
use waystation_proto::claims::Jwk;
use waystation_proto::media::Variant;
use waystation_proto::offer::parse_role;

type Error = Box<dyn std::error::Error>;

/// Reference core API for trying, testing and load
#[derive(Parser)]
#[command(version)]
pub(crate) enum Command {
    /// Serves the core API
    Serve(Box<Serve>),
    /// Serves the contact's page alone, without a core
    Page(PageArgs),
    /// Makes incident, group, streams and capabilities at a running devcore, and prints them as JSON
    Session(SessionArgs),
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Switch {
    On,
    Off,
}

#[derive(Args)]
pub(crate) struct Serve {
    /// Address to listen on; port 0 takes a free one
    #[arg(long)]
    listen: SocketAddr,
    /// Where metadata, bytes and keys are kept
    #[arg(long)]
    data: PathBuf,
    /// Certificate chain, PEM
    #[arg(long, requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// Private key, PEM
    #[arg(long, requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Directory with the contact's page; it is served at an origin of its own
    #[arg(long, requires = "page_listen")]
    page: Option<PathBuf>,
    /// Address to serve the page on; port 0 takes a free one
    #[arg(long, requires = "page")]
    page_listen: Option<SocketAddr>,
    /// Answer an equal commit with 200 instead of 409
    #[arg(long)]
    idempotent_commit: bool,
    /// Be the unchanged core: no JWT, no JWKS, no receipts, 409 on every duplicate
    #[arg(long)]
    hmac_only: bool,
    /// Calls a minute, peer and limiter class; 0 is no limit
    #[arg(long, default_value_t = 0)]
    calls_per_minute: u32,
    /// Check everything, keep nothing
    #[arg(long)]
    keep_nothing: bool,
    /// Life of capabilities, as 300s, 5m or 1h
    #[arg(long, default_value = "300s", value_parser = duration)]
    capability_ttl: Duration,
    /// Life of the capabilities that contacts get for their grants
    #[arg(long, default_value = "300s", value_parser = duration)]
    contact_ttl: Duration,
    /// Life of contact grants
    #[arg(long, default_value = "168h", value_parser = duration)]
    grant_ttl: Duration,
    /// Highest chunk index of a capability
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..))]
    max_chunks: u64,
    /// Signed receipts in commit answers
    #[arg(long, value_enum, default_value = "on")]
    receipts: Switch,
    /// File with the relays' service token; without: service-token in the data directory, made if absent
    #[arg(long)]
    service_token_file: Option<PathBuf>,
    /// File with the secret of Proofline tokens; without: one in the data directory, made if absent
    #[arg(long)]
    capability_secret_file: Option<PathBuf>,
    /// Audience of JWT capabilities
    #[arg(long, default_value = "waystation")]
    audience: String,
}

#[derive(Args)]
pub(crate) struct PageArgs {
    /// Directory with the contact's page
    #[arg(long)]
    page: PathBuf,
    /// Address to listen on; port 0 takes a free one
    #[arg(long)]
    listen: SocketAddr,
    /// Certificate chain, PEM
    #[arg(long, requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// Private key, PEM
    #[arg(long, requires = "tls_cert")]
    tls_key: Option<PathBuf>,
}

#[derive(Args)]
pub(crate) struct SessionArgs {
    /// Base URL of the core
    #[arg(long)]
    core: String,
    /// File with the account token
    #[arg(long)]
    account_token_file: PathBuf,
    /// Lanes, by role
    #[arg(long, value_delimiter = ',', value_parser = role,
          default_value = "audio_priority,live_preview,evidence_master,location_context")]
    lanes: Vec<Variant>,
    /// Life of the JWT capabilities, in seconds
    #[arg(long)]
    ttl: Option<u32>,
    /// Highest chunk index of the JWT capabilities
    #[arg(long)]
    max_chunks: Option<u32>,
    /// The capture client's Ed25519 public key, as JWK or base64url
    #[arg(long)]
    client_key_file: Option<PathBuf>,
    /// Certificates that vouch for an https core, PEM
    #[arg(long)]
    ca_file: Option<PathBuf>,
}

impl Command {
    pub(crate) async fn run(self) -> Result<(), Error> {
        match self {
            Self::Serve(serve) => serve.run().await,
            Self::Page(page) => page.run().await,
            Self::Session(session) => session.run().await,
        }
    }
}

impl Serve {
    async fn run(self) -> Result<(), Error> {
        let stopped = stopped()?;
        let running = Devcore::start(self.options()).await?;
        let mut line = serde_json::json!({ "listen": running.addr(), "url": running.url() });
        if let Some(page) = running.page_url() {
            line["page_url"] = page.into();
        }
        for (name, file) in running.secret_files() {
            line[name] = serde_json::json!(file);
        }
        print(&line)?;
        stopped.await;
        running.stop().await;
        Ok(())
    }

    fn options(self) -> Options {
        Options {
            listen: self.listen,
            tls: self.tls_cert.zip(self.tls_key),
            page: self.page.zip(self.page_listen),
            idempotent_commit: self.idempotent_commit,
            hmac_only: self.hmac_only,
            receipts: self.receipts == Switch::On,
            calls_per_minute: self.calls_per_minute,
            keep_nothing: self.keep_nothing,
            capability_ttl: self.capability_ttl,
            contact_ttl: self.contact_ttl,
            grant_ttl: self.grant_ttl,
            max_chunks: self.max_chunks,
            service_token: self.service_token_file.map_or(Secret::Generated, Secret::File),
            capability_secret: self.capability_secret_file.map_or(Secret::Generated, Secret::File),
            audience: self.audience,
            ..Options::new(self.data)
        }
    }
}

impl PageArgs {
    async fn run(self) -> Result<(), Error> {
        let stopped = stopped()?;
        let host = PageHost::start(&self.page, self.listen, self.tls_cert.zip(self.tls_key).as_ref()).await?;
        print(&serde_json::json!({ "page_url": host.url() }))?;
        stopped.await;
        host.stop().await;
        Ok(())
    }
}

impl SessionArgs {
    async fn run(self) -> Result<(), Error> {
        let account_token = std::fs::read_to_string(self.account_token_file)?;
        let request = session::Request {
            lanes: self.lanes,
            ttl_s: self.ttl,
            max_chunks: self.max_chunks,
            client_key: self.client_key_file.as_deref().map(client_key).transpose()?,
            authority: self.ca_file,
            ..session::Request::new(self.core, account_token.trim())
        };
        print(&serde_json::to_value(session::open(&request).await?)?)
    }
}

/// Ends at Ctrl-C, or at the signal that ends a service; it listens from the call on.
fn stopped() -> Result<impl Future<Output = ()>, Error> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}

/// The one line on stdout.
fn print(line: &serde_json::Value) -> Result<(), Error> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}

/// Everything else that is said goes to stderr, as JSON. `RUST_LOG` sets the level of this program's own
/// words alone: the libraries below it print headers when they are asked to, and headers hold tokens.
pub(crate) fn log() {
    let level = std::env::var("RUST_LOG").ok().and_then(|text| text.parse::<LevelFilter>().ok());
    let filter = EnvFilter::new(format!("off,waystation_devcore={}", level.unwrap_or(LevelFilter::INFO)));
    tracing_subscriber::fmt().json().with_writer(std::io::stderr).with_env_filter(filter).init();
}

fn client_key(file: &Path) -> Result<[u8; 32], Error> {
    let text = std::fs::read_to_string(file)?;
    let of_jwk = serde_json::from_str::<Jwk>(&text).ok().and_then(|jwk| jwk.ed25519());
    let of_raw = || URL_SAFE_NO_PAD.decode(text.trim()).ok().and_then(|key| key.try_into().ok());
    of_jwk.or_else(of_raw).ok_or_else(|| "--client-key-file holds no Ed25519 public key".into())
}

fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u32 = digits.parse().map_err(|_| "as 300s, 5m or 1h".to_owned())?;
    let seconds = match &text[digits.len()..] {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return Err("as 300s, 5m or 1h".to_owned()),
    };
    match u64::from(number) * seconds {
        0 => Err("more than nothing".to_owned()),
        total => Ok(Duration::from_secs(total)),
    }
}

fn role(text: &str) -> Result<Variant, String> {
    parse_role(text).map_err(|code| code.spec().message.to_owned())
}
