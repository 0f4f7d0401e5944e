//! The command line: `waystation-client capture`, `import`, `queue`, `watch` and `link`.

mod capture;
mod link;
mod output;
mod queue;
mod report;
mod session;
mod source;
mod watch;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};
use waystation_proto::{Code, Media, Variant};

use crate::connect::{ConnectError, Endpoint, Transport, Trust};

/// Largest piece of an imported file, in bytes: one is in memory, and the relay takes 250 MiB.
const MAX_PIECE_BYTES: u64 = 64 << 20;

/// Capture client and contact of Waystation.
#[derive(Debug, Parser)]
#[command(name = "waystation-client", version, about)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Play back a recording as if it were being recorded now.
    Capture(Box<CaptureArgs>),
    /// Put files into a queue, piece by piece, and bring them to the core.
    Import(Box<ImportArgs>),
    /// Look at a queue, or do something about it.
    #[command(subcommand)]
    Queue(QueueCommand),
    /// Receive and decrypt the near-live lanes of a recording.
    Watch(Box<WatchArgs>),
    /// Print the link that a contact opens. Whoever has it can watch: it is for one person.
    Link(Box<link::LinkArgs>),
}

/// How to talk to the relay.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum TransportArg {
    /// HTTP/3, and a WebSocket where UDP does not get through.
    Auto,
    /// WebSocket; the kernel is asked for BBR.
    Ws,
    /// WebSocket with the kernel's own congestion control.
    WsPlain,
    /// HTTP/3.
    H3,
    /// HTTP/1.1.
    H1,
}

#[derive(Debug, Args)]
struct RelayArgs {
    /// The relay, as https://host:port. Of several, the next is tried when one can't be reached;
    /// a contact uses the first.
    #[arg(long)]
    relay: Vec<String>,
    /// How to talk to it; a contact takes a WebSocket for `auto`.
    #[arg(long, value_enum, default_value = "auto")]
    transport: TransportArg,
    /// Trust exactly the certificates in this file (PEM or DER), and what they issue.
    #[arg(long)]
    ca_file: Option<PathBuf>,
}

/// Where streams and capabilities come from.
#[derive(Debug, Args)]
struct CoreArgs {
    /// The core, as http(s)://host:port: streams and capabilities come from it, and are renewed.
    /// `capture` makes a new incident there, unless --session-file names one.
    #[arg(long)]
    core: Option<String>,
    /// File with the account token for the core.
    #[arg(long, requires = "core")]
    account_token_file: Option<PathBuf>,
    /// Trust exactly the certificates in this file for the core.
    #[arg(long)]
    core_ca_file: Option<PathBuf>,
    /// Session file, as `waystation-devcore session` prints it or --session-out wrote it. With
    /// --core only its incident and group are used; without, all it holds, and nothing is renewed.
    #[arg(long, alias = "incident-file")]
    session_file: Option<PathBuf>,
    /// The core's public keys, to verify receipts where no core is asked for them.
    #[arg(long)]
    jwks: Option<PathBuf>,
    /// Use the core's own HMAC tokens, one for each stream.
    #[arg(long)]
    proofline: bool,
    /// Life to ask for in capabilities, in seconds; without: the core's choice. Needs --core.
    #[arg(long, requires = "core")]
    ttl: Option<u64>,
    /// Highest chunk index to ask for in capabilities, and so chunks of a stream; without: the
    /// core's choice. Needs --core.
    #[arg(long, requires = "core")]
    max_chunks: Option<u64>,
}

/// A capture session.
#[derive(Debug, Args)]
struct SessionArgs {
    #[command(flatten)]
    relay: RelayArgs,
    #[command(flatten)]
    core: CoreArgs,
    #[command(flatten)]
    queue: QueueArgs,
    /// File with the group key: 32 bytes, raw or as hexadecimal digits.
    #[arg(long)]
    group_key_file: PathBuf,
    /// File with the Ed25519 key that signs offers: 32 bytes, raw or as hexadecimal digits.
    #[arg(long)]
    client_key_file: Option<PathBuf>,
    /// Write a session file for a contact, as soon as the recording has its names.
    #[arg(long)]
    session_out: Option<PathBuf>,
    /// Seconds to wait for confirmation after the last chunk.
    #[arg(long, default_value_t = 60)]
    finish_timeout: u64,
    /// Seconds the relay may take to answer one request (HTTP transports).
    #[arg(long, default_value_t = 10)]
    wait: u64,
    /// Exit with 0 though chunks are unsettled.
    #[arg(long)]
    allow_unsettled: bool,
    /// End without a manifest.
    #[arg(long)]
    no_manifest: bool,
    /// JSON lines instead of progress.
    #[arg(long)]
    json: bool,
}

/// Where chunks wait.
#[derive(Debug, Args)]
struct QueueArgs {
    /// Keep the recording's queue in this directory instead of in memory, and go on with what an
    /// earlier run left there. One directory for each recording.
    #[arg(long)]
    queue: Option<PathBuf>,
    /// File with the local key of the queue; made if there is none. Without: `local.key` in the
    /// queue's directory.
    #[arg(long, requires = "queue")]
    queue_key_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct CaptureArgs {
    #[command(flatten)]
    session: SessionArgs,
    /// Directory of the recording.
    #[arg(long)]
    recording: PathBuf,
    /// Seconds of recording to play; longer than it is, it is looped.
    #[arg(long)]
    seconds: Option<u64>,
    /// How many times faster than recorded.
    #[arg(long, default_value_t = 1.0)]
    speed: f64,
}

#[derive(Debug, Args)]
struct ImportArgs {
    #[command(flatten)]
    session: SessionArgs,
    /// Files, in the order they are to have.
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Lane that they go to.
    #[arg(long, value_parser = parse_variant, default_value = "evidence_master")]
    variant: Variant,
    /// What they are.
    #[arg(long, value_parser = parse_media, default_value = "video")]
    media: Media,
    /// Bytes of a piece.
    #[arg(long, default_value_t = 4 << 20, value_parser = clap::value_parser!(u64).range(1..=MAX_PIECE_BYTES))]
    piece_bytes: u64,
}

#[derive(Debug, Subcommand)]
enum QueueCommand {
    /// Say what is in it; also while a session has it.
    Status(QueueAt),
    /// Bring what is left, also what failed, and end the recording.
    Retry(Box<SessionArgs>),
    /// Send nothing until it is resumed.
    Pause(QueueAt),
    /// Let the next session send again.
    Resume(QueueAt),
    /// Stop for good. Deletes nothing elsewhere.
    Cancel {
        #[command(flatten)]
        at: QueueAt,
        /// Delete what is left of it here.
        #[arg(long)]
        discard: bool,
    },
}

#[derive(Debug, Args)]
struct QueueAt {
    /// The queue's directory.
    queue: PathBuf,
    /// File with its local key; without: `local.key` in the directory.
    #[arg(long)]
    queue_key_file: Option<PathBuf>,
    /// A JSON line instead of text.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct WatchArgs {
    #[command(flatten)]
    relay: RelayArgs,
    #[command(flatten)]
    core: CoreArgs,
    /// File with the group key: 32 bytes, raw or as hexadecimal digits.
    #[arg(long, required_unless_present = "link")]
    group_key_file: Option<PathBuf>,
    /// File with a contact's link, or - for standard input: in place of --relay, --core,
    /// --session-file and --group-key-file.
    #[arg(long, conflicts_with_all = ["relay", "core", "session_file", "group_key_file", "jwks", "proofline"])]
    link: Option<PathBuf>,
    /// Directory for the decrypted chunks and the joined files.
    #[arg(long)]
    out: PathBuf,
    /// Variants to watch, comma separated; without: every one the capability reaches.
    #[arg(long, value_delimiter = ',', value_parser = parse_variant)]
    lanes: Vec<Variant>,
    /// Where to begin.
    #[arg(long, value_enum, default_value = "live")]
    from: FromArg,
    /// End when this many chunks are confirmed, and all that began are here.
    #[arg(long)]
    until_confirmed: Option<u64>,
    /// End when nothing happened for this many seconds.
    #[arg(long)]
    idle: Option<u64>,
    /// JSON lines instead of progress.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum FromArg {
    Live,
    Oldest,
}

/// Why a command can't begin or go on. Its text is for people and holds nothing secret.
#[derive(Debug, thiserror::Error)]
enum CliError {
    #[error("{0}")]
    Connect(#[from] ConnectError),
    #[error("{0}")]
    Start(#[from] crate::capture::StartError),
    #[error("{0}")]
    Chunk(#[from] crate::capture::ChunkError),
    #[error("{0}")]
    Key(#[from] crate::keys::KeyError),
    #[error("{0}")]
    Session(#[from] crate::session::SessionError),
    #[error("{0}")]
    Playback(#[from] crate::playback::PlaybackError),
    #[error("{0}")]
    Authority(#[from] crate::authority::AuthorityError),
    #[error("{0}")]
    Link(#[from] crate::link::InvalidLink),
    #[error("a file can't be read or written: {0}")]
    Io(#[from] std::io::Error),
    #[error("{0}")]
    Usage(&'static str),
}

/// Runs the command line and returns its exit code: 0 if all is well, 1 if chunks are missing, 2
/// if the command could not begin.
pub async fn run(cli: Cli) -> ExitCode {
    let result = match cli.command {
        Command::Capture(args) => capture::run(*args).await,
        Command::Import(args) => queue::import(*args).await,
        Command::Queue(command) => queue::run(command).await,
        Command::Watch(args) => watch::run(*args).await,
        Command::Link(args) => link::run(*args).await,
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            output::complain(&error);
            ExitCode::from(2)
        }
    }
}

impl RelayArgs {
    fn endpoints(&self) -> Result<Vec<Endpoint>, CliError> {
        if self.relay.is_empty() {
            return Err(CliError::Usage("give --relay"));
        }
        self.relay.iter().map(|url| endpoint(url, self.ca_file.as_deref())).collect()
    }

    fn endpoint(&self) -> Result<Endpoint, CliError> {
        self.endpoints()?.into_iter().next().ok_or(CliError::Usage("give --relay"))
    }

    const fn transport(&self) -> Transport {
        match self.transport {
            TransportArg::Auto => Transport::Auto,
            TransportArg::Ws => Transport::Ws,
            TransportArg::WsPlain => Transport::WsPlain,
            TransportArg::H3 => Transport::H3,
            TransportArg::H1 => Transport::H1,
        }
    }
}

fn endpoint(url: &str, ca_file: Option<&std::path::Path>) -> Result<Endpoint, CliError> {
    let trust = match ca_file {
        Some(path) => Trust::file(path)?,
        None if url.starts_with("http://") => Trust::certificates(Vec::new())?,
        None => Trust::system()?,
    };
    Ok(Endpoint::parse(url, trust)?)
}

fn parse_media(text: &str) -> Result<Media, String> {
    Media::parse(text).ok_or_else(|| "media is audio, video, location or metadata".to_owned())
}

fn parse_variant(text: &str) -> Result<Variant, String> {
    waystation_proto::offer::parse_role(text).map_err(|code: Code| code.spec().message.to_owned())
}

/// How a receipt's proof is printed.
const fn proof_word(proof: crate::receipt::Proof) -> &'static str {
    match proof {
        crate::receipt::Proof::Absent => "absent",
        crate::receipt::Proof::Unchecked => "unchecked",
        crate::receipt::Proof::Verified => "verified",
        crate::receipt::Proof::Invalid => "invalid",
    }
}

/// Ctrl-C, or the signal that a container stop sends.
async fn stopped() {
    let terminate = async {
        match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
            Ok(mut signal) => signal.recv().await,
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        result = tokio::signal::ctrl_c() => if result.is_err() { std::future::pending().await },
        _ = terminate => {}
    }
}
