//! The least that a server could spend on the same deliveries on this machine: one that knows of no
//! sessions, no rights and no lanes, and writes the same bytes to each of its TLS connections.
//!
//! Processor seconds for a gigabyte differ between machines, and on one from hour to hour; what a relay
//! takes beside this, in the same run, differs less.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::Failure;
use crate::link::{self, Tls};
use crate::report::percentile;
use crate::rig::{Program, Rig, Usage, on_core, text};

const BROKEN: Failure = Failure::Wire("a connection of the ceiling broke");
/// Bytes read at once, as a contact does.
const READ_BYTES: usize = 64 * 1024;

/// `waystation-loadtest ceiling-server`
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Bytes that each connection gets for each byte on the control connection
    #[arg(long)]
    payload: usize,
    /// Where `tls.pem` and `tls.key` are
    dir: PathBuf,
}

/// Serves until it is killed.
pub async fn main(args: Args) -> ExitCode {
    match serve(&args).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "{error}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(args: &Args) -> Result<(), Failure> {
    let bind = || async { TcpListener::bind("127.0.0.1:0").await.map_err(Failure::io("the ceiling")) };
    let (listener, control) = (bind().await?, bind().await?);
    let at = |listener: &TcpListener| listener.local_addr().map(|at| at.to_string()).unwrap_or_default();
    let said = serde_json::json!({ "public": at(&listener), "control": at(&control) });
    writeln!(std::io::stdout(), "{said}").map_err(Failure::io("the ceiling's output"))?;
    let acceptor = acceptor(&args.dir)?;
    let (turn, turns) = watch::channel(0_u64);
    let payload = Bytes::from(vec![0x5a; args.payload]);
    tokio::spawn(async move {
        let Ok((mut control, _)) = control.accept().await else { return };
        while control.read_u8().await.is_ok() {
            turn.send_modify(|turn| *turn += 1);
        }
    });
    loop {
        let (stream, _) = listener.accept().await.map_err(Failure::io("the ceiling"))?;
        tokio::spawn(send(acceptor.clone(), stream, turns.clone(), payload.clone()));
    }
}

/// One connection: the payload for each turn.
async fn send(acceptor: TlsAcceptor, stream: TcpStream, mut turns: watch::Receiver<u64>, payload: Bytes) {
    let _ = stream.set_nodelay(true);
    let Ok(mut stream) = acceptor.accept(stream).await else { return };
    let mut sent = 0;
    loop {
        let turn = *turns.borrow_and_update();
        while sent < turn {
            sent += 1;
            if stream.write_all(&payload).await.is_err() || stream.flush().await.is_err() {
                return;
            }
        }
        if turns.changed().await.is_err() {
            return;
        }
    }
}

/// TLS 1.3 with the cipher that the relay takes first.
fn acceptor(dir: &Path) -> Result<TlsAcceptor, Failure> {
    let none = |_| Failure::Wire("the certificate is none");
    let certificate = CertificateDer::from_pem_file(dir.join("tls.pem")).map_err(none)?;
    let key = PrivateKeyDer::from_pem_file(dir.join("tls.key")).map_err(none)?;
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.cipher_suites.retain(|suite| suite.suite() == rustls::CipherSuite::TLS13_AES_128_GCM_SHA256);
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .and_then(|config| config.with_no_client_auth().with_single_cert(vec![certificate], key))
        .map_err(|_| Failure::Wire("the certificate is none"))?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// What has arrived at all connections.
struct Came {
    payload: u64,
    /// When the turn began.
    began: Mutex<Instant>,
    /// How long each connection waited for a turn's last byte.
    took: Mutex<Vec<Duration>>,
    whole: AtomicU64,
    moved: Notify,
}

/// What such a server does.
#[derive(Debug, Clone, Default)]
pub(super) struct Ceiling {
    /// Processor seconds for a gigabyte, one turn after the other.
    pub(super) s_per_gb: f64,
    /// How long turns take at a pace that leaves pauses.
    pub(super) took: Vec<Duration>,
}

impl Ceiling {
    /// The mean of two, and what took long in either.
    pub(super) fn with(mut self, other: Self) -> Self {
        self.s_per_gb = f64::midpoint(self.s_per_gb, other.s_per_gb);
        self.took.extend(other.took);
        self
    }

    pub(super) fn p99_ms(&self) -> f64 {
        let mut sorted = self.took.clone();
        sorted.sort_unstable();
        percentile(&sorted, 99)
    }
}

/// Measures such a server: half of the time one turn after the other, and half of it at the usual pace.
///
/// # Errors
/// [`Failure`].
pub(super) async fn measure(
    rig: &Rig,
    (contacts, payload): (u16, u64),
    core: Option<usize>,
    time: Duration,
) -> Result<Ceiling, Failure> {
    let own = std::env::current_exe().map_err(Failure::io("this program's own path"))?;
    let mut command = on_core(&own, core);
    command.args(["ceiling-server", "--payload", &payload.to_string()]).arg(rig.dir());
    let (server, said) = Program::launch("waystation-loadtest", command, rig.dir()).await?;
    let at = |key| text(&said, key)?.parse::<SocketAddr>().map_err(|_| BROKEN);
    let (public, control) = (at("public")?, TcpStream::connect(at("control")?).await.map_err(|_| BROKEN)?);
    let _ = control.set_nodelay(true);
    let came = Arc::new(Came {
        payload,
        began: Mutex::new(Instant::now()),
        took: Mutex::default(),
        whole: AtomicU64::new(0),
        moved: Notify::new(),
    });
    let mut reading = JoinSet::new();
    for _ in 0..contacts {
        reading.spawn(read(link::tls_to(public, &rig.trust).await?, Arc::clone(&came)));
    }
    let mut turns = Turns { control, came: Arc::clone(&came), contacts: contacts.into(), made: 0 };
    let (before, began) = (usage(&server)?, Instant::now());
    while began.elapsed() < time / 2 {
        turns.make().await?;
    }
    let spent = usage(&server)?.cpu.saturating_sub(before.cpu);
    let bytes = turns.made * payload * u64::from(contacts);
    came.took().clear();
    let mut pace = tokio::time::interval(Duration::from_secs_f64(1.0 / super::USUAL_RATE));
    while began.elapsed() < time {
        pace.tick().await;
        turns.make().await?;
    }
    let took = std::mem::take(&mut *came.took());
    Ok(Ceiling { s_per_gb: spent.as_secs_f64() * 1e9 / bytes as f64, took })
}

/// Lets the server write, once for each connection.
struct Turns {
    control: TcpStream,
    came: Arc<Came>,
    contacts: u64,
    made: u64,
}

impl Turns {
    /// Makes one, and waits until it has arrived everywhere.
    async fn make(&mut self) -> Result<(), Failure> {
        *self.came.began.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        self.control.write_all(&[0]).await.map_err(|_| BROKEN)?;
        self.made += 1;
        loop {
            let moved = self.came.moved.notified();
            if self.came.whole.load(Ordering::Acquire) >= self.made * self.contacts {
                return Ok(());
            }
            tokio::time::timeout(super::PATIENCE, moved).await.map_err(|_| BROKEN)?;
        }
    }
}

impl Came {
    fn took(&self) -> std::sync::MutexGuard<'_, Vec<Duration>> {
        self.took.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One connection has a turn's last byte.
    fn whole(&self) {
        let began = *self.began.lock().unwrap_or_else(PoisonError::into_inner);
        self.took().push(began.elapsed());
        self.whole.fetch_add(1, Ordering::Release);
        self.moved.notify_one();
    }
}

fn usage(server: &Program) -> Result<Usage, Failure> {
    Usage::of(server.pid()).map_err(Failure::io("the ceiling's process"))
}

async fn read(mut stream: Tls, came: Arc<Came>) {
    let mut buffer = vec![0; READ_BYTES];
    let mut missing = came.payload;
    while let Ok(read @ 1..) = stream.read(&mut buffer).await {
        // No turn begins before all have the last.
        missing = missing.saturating_sub(read as u64);
        if missing == 0 {
            came.whole();
            missing = came.payload;
        }
    }
}
