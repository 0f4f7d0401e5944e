//! The least that a server could spend on the same deliveries on this machine: one that knows of no
//! sessions, no rights and no lanes, and writes the same bytes to each of its TLS connections.
//!
//! Processor seconds for a gigabyte differ between machines, and on one from hour to hour; what a relay
//! takes beside this, in the same run, differs less.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
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
#[derive(Default)]
struct Came {
    bytes: AtomicU64,
    moved: Notify,
}

/// Processor seconds of such a server for a gigabyte, to so many connections, one turn after the other.
///
/// # Errors
/// [`Failure`].
pub(super) async fn measure(
    rig: &Rig,
    (contacts, payload): (u16, u64),
    core: Option<usize>,
    time: Duration,
) -> Result<f64, Failure> {
    let own = std::env::current_exe().map_err(Failure::io("this program's own path"))?;
    let mut command = on_core(&own, core);
    command.args(["ceiling-server", "--payload", &payload.to_string()]).arg(rig.dir());
    let (server, said) = Program::launch("waystation-loadtest", command, rig.dir()).await?;
    let at = |key| text(&said, key)?.parse::<SocketAddr>().map_err(|_| BROKEN);
    let (public, mut control) = (at("public")?, TcpStream::connect(at("control")?).await.map_err(|_| BROKEN)?);
    let came = Arc::new(Came::default());
    let mut reading = JoinSet::new();
    for _ in 0..contacts {
        reading.spawn(read(link::tls_to(public, &rig.trust).await?, Arc::clone(&came)));
    }
    let (before, began, mut turns) = (usage(&server)?, Instant::now(), 0);
    while began.elapsed() < time {
        control.write_all(&[0]).await.map_err(|_| BROKEN)?;
        turns += 1;
        let all = turns * payload * u64::from(contacts);
        loop {
            let moved = came.moved.notified();
            if came.bytes.load(Ordering::Acquire) >= all {
                break;
            }
            tokio::time::timeout(super::PATIENCE, moved).await.map_err(|_| BROKEN)?;
        }
    }
    let spent = usage(&server)?.cpu.saturating_sub(before.cpu);
    Ok(spent.as_secs_f64() * 1e9 / came.bytes.load(Ordering::Acquire) as f64)
}

fn usage(server: &Program) -> Result<Usage, Failure> {
    Usage::of(server.pid()).map_err(Failure::io("the ceiling's process"))
}

async fn read(mut stream: Tls, came: Arc<Came>) {
    let mut buffer = vec![0; READ_BYTES];
    while let Ok(read) = stream.read(&mut buffer).await {
        if read == 0 {
            return;
        }
        came.bytes.fetch_add(read as u64, Ordering::Release);
        came.moved.notify_one();
    }
}
