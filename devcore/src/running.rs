//! A core from start to stop.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::net::TcpListener;

use crate::clock::Clock;
use crate::core::Core;
use crate::faults::Faults;
use crate::options::Options;
use crate::page::PageHost;
use crate::server::Server;
use crate::stats::Snapshot;
use crate::tls;

/// Why a core does not start. Names what, never a value.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The data directory can't be used.
    #[error("the data directory can't be used: {}", .0.kind())]
    Io(std::io::Error),
    /// The database can't be opened.
    #[error("the database can't be opened ({0:?})")]
    Database(Option<rusqlite::ErrorCode>),
    /// A secret can't be read or made.
    #[error("{0} can't be read or made: {1}")]
    Secret(&'static str, std::io::ErrorKind),
    /// A secret is shorter than 32 bytes.
    #[error("{0} is shorter than 32 bytes")]
    SecretTooShort(&'static str),
    /// The certificate or key can't be used.
    #[error("the certificate or key file can't be used")]
    Tls,
    /// The address can't be bound.
    #[error("the address can't be bound: {}", .0.kind())]
    Bind(std::io::Error),
    /// The page's directory can't be read, or holds more than it may.
    #[error("the page's directory can't be served: {}", .0.kind())]
    Page(std::io::Error),
    /// The revocation list can't be read.
    #[error("the revocation list can't be read")]
    Revocations,
}

/// Starts cores.
#[derive(Debug)]
pub struct Devcore;

impl Devcore {
    /// Opens the data directory, binds the listener, and serves.
    ///
    /// The order: secrets and database first, so that a core which can't keep anything never listens; the
    /// revocation list next, so that no call is answered without it; the listener last.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start(options: Options) -> Result<Running, StartError> {
        let tls = match &options.tls {
            Some((certificate, key)) => {
                Some(tls::acceptor(certificate, key, &[b"h2", b"http/1.1"]).map_err(|_| StartError::Tls)?)
            }
            None => None,
        };
        let page = match &options.page {
            Some((dir, listen)) => Some(PageHost::start(dir, *listen, options.tls.as_ref()).await?),
            None => None,
        };
        let listen = options.listen;
        let opened = tokio::task::spawn_blocking(move || Core::open(options)).await;
        let (core, database) = opened.map_err(|error| StartError::Io(std::io::Error::other(error)))??;
        core.load_revocations().await.map_err(|_| StartError::Revocations)?;
        let listener = TcpListener::bind(listen).await.map_err(StartError::Bind)?;
        let addr = listener.local_addr().map_err(StartError::Bind)?;
        let core = Arc::new(core);
        let secure = tls.is_some();
        let stop = core.background.stop.clone().drop_guard();
        core.background.tasks.spawn(Server { core: core.clone(), tls }.run(listener));
        tracing::info!("serving");
        Ok(Running { core, addr, secure, page, database, stop })
    }
}

/// A core that serves. Dropping it stops accepting and ends its connections.
#[derive(Debug)]
pub struct Running {
    core: Arc<Core>,
    addr: SocketAddr,
    secure: bool,
    page: Option<PageHost>,
    database: std::thread::JoinHandle<()>,
    stop: tokio_util::sync::DropGuard,
}

impl Running {
    /// The bound address.
    #[must_use]
    pub const fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The base URL, without a trailing slash.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http{}://{}", if self.secure { "s" } else { "" }, self.addr)
    }

    /// Where the contact's page is, with a slash behind; `None` if none is served.
    #[must_use]
    pub fn page_url(&self) -> Option<String> {
        self.page.as_ref().map(PageHost::url)
    }

    /// Bearer token of the account.
    #[must_use]
    pub fn account_token(&self) -> &str {
        self.core.account_token.as_str()
    }

    /// What relays show; empty if none is configured.
    #[must_use]
    pub fn service_token(&self) -> &str {
        self.core.service_token.token.as_ref().map_or("", |token| token.as_str())
    }

    /// What Proofline tokens are signed with; empty if none is configured.
    #[must_use]
    pub fn capability_secret(&self) -> &str {
        self.core.capability_secret.token.as_ref().map_or("", |token| token.as_str())
    }

    /// The files of account token, service token and capability secret, where they lie in files.
    #[must_use]
    pub fn secret_files(&self) -> [(&'static str, Option<PathBuf>); 3] {
        [
            ("account_token_file", self.core.account_token_file.clone()),
            ("service_token_file", self.core.service_token.file.clone()),
            ("capability_secret_file", self.core.capability_secret.file.clone()),
        ]
    }

    /// The data directory.
    #[must_use]
    pub fn data_dir(&self) -> &Path {
        &self.core.options.data
    }

    /// `aud` of its capabilities.
    #[must_use]
    pub fn audience(&self) -> &str {
        &self.core.options.audience
    }

    /// Faults on request.
    #[must_use]
    pub fn faults(&self) -> &Faults {
        &self.core.faults
    }

    /// Its clock; a manual one can be moved.
    #[must_use]
    pub fn clock(&self) -> &Clock {
        &self.core.clock
    }

    /// What happened so far. The stored totals are those of the data directory.
    pub async fn stats(&self) -> Snapshot {
        let (chunks, bytes) = self.core.store.totals().await.unwrap_or_default();
        self.core.stats.snapshot(chunks, bytes)
    }

    /// Sets the calls a minute, peer and class; 0 is no limit.
    pub fn set_calls_per_minute(&self, calls: u32) {
        self.core.set_calls_per_minute(calls);
    }

    /// Makes a new signing key; the old ones still verify. Returns its `kid`.
    ///
    /// # Errors
    /// The key file can't be written.
    pub fn rotate_signing_key(&self) -> std::io::Result<String> {
        self.core.keys.rotate()
    }

    /// Stops accepting, lets running calls end (5 s), and closes the database. Starting again on the same
    /// data directory goes on where this one ended.
    pub async fn stop(self) {
        let Self { core, page, database, stop, .. } = self;
        drop(stop);
        if let Some(page) = page {
            page.stop().await;
        }
        core.background.tasks.close();
        core.background.tasks.wait().await;
        // The last handle of the store ends the database's thread.
        drop(core);
        drop(tokio::task::spawn_blocking(move || database.join()).await);
        tracing::info!("stopped");
    }
}

impl std::fmt::Debug for Core {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Core").finish_non_exhaustive()
    }
}
