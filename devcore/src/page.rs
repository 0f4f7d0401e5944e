//! The static host of the contact's page: an origin of its own, apart from core and relay. It serves what
//! lay in one directory when it started, from memory: a path that is no name of a file is nothing.

use std::collections::HashMap;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::header::{
    ACCEPT_ENCODING, ALLOW, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_SECURITY_POLICY, CONTENT_TYPE,
    HeaderName, REFERRER_POLICY, VARY, X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::running::StartError;
use crate::tls;

/// Files of one page, and the bytes of all of them: they are kept in memory.
const MAX_FILES: usize = 256;
const MAX_BYTES: u64 = 16 * 1024 * 1024;
/// Connections at once; further ones wait in the listener's queue.
const MAX_CONNECTIONS: usize = 256;
/// A connection that asks for nothing, or a handshake that does not end, is closed after this time.
const IDLE: Duration = Duration::from_secs(30);
/// An answer that is not taken in is given up.
const LONGEST: Duration = Duration::from_secs(300);

/// What a browser lets a page do that says nothing of it: nothing. What the page says of itself in its `index.html` is
/// sent in this one's place, with [`FRAMED`] behind; a worker has no policy but the one of its own answer.
const NOTHING: &str = "default-src 'none'; base-uri 'none'; form-action 'none'";
/// Who may frame it, which only a header can say.
const FRAMED: &str = "; frame-ancestors 'none'";
/// Where `index.html` says what the page may do.
const POLICY_IS: &str = "<meta http-equiv=\"Content-Security-Policy\" content=\"";
/// It watches and listens; it needs no sensor and no device.
const PERMISSIONS: &str = "autoplay=(self), fullscreen=(self), screen-wake-lock=(self), camera=(), microphone=(), \
     geolocation=(), display-capture=(), payment=(), usb=(), serial=(), hid=(), midi=(), accelerometer=(), \
     gyroscope=(), magnetometer=()";

/// Headers of every answer.
const HEADERS: [(HeaderName, &str); 6] = [
    (HeaderName::from_static("permissions-policy"), PERMISSIONS),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    (REFERRER_POLICY, "no-referrer"),
    (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (CACHE_CONTROL, "no-cache"),
];

/// A host that serves. Dropping it stops it.
#[derive(Debug)]
pub struct PageHost {
    addr: SocketAddr,
    secure: bool,
    tasks: TaskTracker,
    stop: tokio_util::sync::DropGuard,
}

impl PageHost {
    /// Reads the files of `dir`, which may come to 256 and 16 MiB, and serves them; over TLS with a
    /// certificate chain and key.
    ///
    /// # Errors
    /// [`StartError::Page`], [`StartError::Tls`], [`StartError::Bind`].
    pub async fn start(dir: &Path, listen: SocketAddr, tls: Option<&(PathBuf, PathBuf)>) -> Result<Self, StartError> {
        let dir = dir.to_owned();
        let read = tokio::task::spawn_blocking(move || read(&dir)).await.map_err(io::Error::other);
        let files = Arc::new(read.and_then(|files| files).map_err(StartError::Page)?);
        let acceptor = |(certificate, key): &(PathBuf, PathBuf)| tls::acceptor(certificate, key, &[b"h2", b"http/1.1"]);
        let tls = tls.map(acceptor).transpose().map_err(|_| StartError::Tls)?;
        let listener = TcpListener::bind(listen).await.map_err(StartError::Bind)?;
        let addr = listener.local_addr().map_err(StartError::Bind)?;
        let (secure, stopped, tasks) = (tls.is_some(), CancellationToken::new(), TaskTracker::new());
        let host = Host { files, tls, stopped: stopped.clone(), tasks: tasks.clone() };
        tasks.spawn(host.run(listener));
        Ok(Self { addr, secure, tasks, stop: stopped.drop_guard() })
    }

    /// The page's address, as its origin has it, with a slash behind.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http{}://{}/", if self.secure { "s" } else { "" }, self.addr)
    }

    /// The bound address.
    #[must_use]
    pub const fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Stops, and ends its connections.
    pub async fn stop(self) {
        let Self { tasks, stop, .. } = self;
        drop(stop);
        tasks.close();
        tasks.wait().await;
    }
}

/// One file.
#[derive(Clone)]
struct File {
    kind: &'static str,
    bytes: Bytes,
    /// The same, if that is less: on a thin link the page is seconds sooner there.
    gzip: Option<Bytes>,
}

impl File {
    fn new(name: &str, bytes: Vec<u8>) -> io::Result<Self> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(&bytes)?;
        let gzip = encoder.finish()?;
        let gzip = (gzip.len() < bytes.len()).then(|| gzip.into());
        Ok(Self { kind: kind_of(name), bytes: bytes.into(), gzip })
    }
}

/// What is served.
struct Files {
    by_path: HashMap<String, File>,
    policy: HeaderValue,
}

/// The policy that a page says of itself, and what only a header can say.
fn policy(index: Option<&File>) -> io::Result<HeaderValue> {
    let text = String::from_utf8_lossy(index.map_or(&[], |file| &file.bytes));
    let own = text.split_once(POLICY_IS).and_then(|(_, rest)| rest.split_once('"')).map_or(NOTHING, |(own, _)| own);
    HeaderValue::from_str(&format!("{own}{FRAMED}")).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// What the listener runs on.
struct Host {
    files: Arc<Files>,
    tls: Option<TlsAcceptor>,
    stopped: CancellationToken,
    tasks: TaskTracker,
}

impl Host {
    async fn run(self, listener: TcpListener) {
        let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let accept = async { (room.clone().acquire_owned().await, listener.accept().await) };
            match self.stopped.run_until_cancelled(accept).await {
                None => break,
                Some((Ok(permit), Ok((stream, _)))) => {
                    let connection = connection(stream, self.tls.clone(), self.files.clone());
                    let connection = tokio::time::timeout(LONGEST, connection);
                    let stopped = self.stopped.clone();
                    self.tasks.spawn(async move {
                        stopped.run_until_cancelled(connection).await;
                        drop(permit);
                    });
                }
                Some(_) => {
                    tracing::warn!("a connection to the page could not be accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }
}

async fn connection(stream: TcpStream, tls: Option<TlsAcceptor>, files: Arc<Files>) {
    // Small answers go out at once.
    drop(stream.set_nodelay(true));
    let Some(tls) = tls else { return http(stream, files).await };
    if let Ok(Ok(stream)) = tokio::time::timeout(IDLE, tls.accept(stream)).await {
        http(stream, files).await;
    }
}

async fn http<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(stream: S, files: Arc<Files>) {
    let service = service_fn(|request: Request<hyper::body::Incoming>| {
        let response = answer(&files, request.method(), request.uri().path(), takes_gzip(request.headers()));
        async { Ok::<_, std::convert::Infallible>(response) }
    });
    // All of a page's files come over one connection.
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(IDLE);
    builder.http2().timer(TokioTimer::new()).keep_alive_interval(IDLE).keep_alive_timeout(IDLE);
    if builder.serve_connection(TokioIo::new(stream), service).await.is_err() {
        tracing::debug!("a connection to the page ended early");
    }
}

/// Whether gzip is named and not refused.
fn takes_gzip(headers: &HeaderMap) -> bool {
    let named = headers.get(ACCEPT_ENCODING).and_then(|value| value.to_str().ok()).unwrap_or_default();
    named.split(',').any(|coding| {
        let (name, quality) = coding.split_once(';').unwrap_or((coding, "q=1"));
        let quality = quality.trim().strip_prefix("q=").and_then(|quality| quality.parse::<f32>().ok());
        name.trim().eq_ignore_ascii_case("gzip") && quality.is_some_and(|quality| quality > 0.0)
    })
}

fn answer(files: &Files, method: &Method, path: &str, gzip: bool) -> Response<Full<Bytes>> {
    let readable = matches!(*method, Method::GET | Method::HEAD);
    let file = files.by_path.get(path).filter(|_| readable);
    let status = match file {
        Some(_) => StatusCode::OK,
        None if readable => StatusCode::NOT_FOUND,
        None => StatusCode::METHOD_NOT_ALLOWED,
    };
    let small = file.and_then(|file| file.gzip.as_ref()).filter(|_| gzip);
    let (kind, bytes) =
        file.map_or((kind_of("txt"), Bytes::from_static(b"nothing here\n")), |file| (file.kind, file.bytes.clone()));
    let bytes = small.cloned().unwrap_or(bytes);
    let length = bytes.len();
    let mut response = Response::new(Full::new(if *method == Method::HEAD { Bytes::new() } else { bytes }));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.extend(HEADERS.map(|(name, value)| (name, HeaderValue::from_static(value))));
    headers.insert(CONTENT_SECURITY_POLICY, files.policy.clone());
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    headers.insert(VARY, HeaderValue::from_static("accept-encoding"));
    if small.is_some() {
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    if status == StatusCode::METHOD_NOT_ALLOWED {
        headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    }
    response
}

/// The files below `dir` by their paths; `index.html` also as that of its folder. What is hidden or a
/// link is left out.
fn read(dir: &Path) -> io::Result<Files> {
    let mut files = HashMap::new();
    let (mut folders, mut total) = (vec![(dir.to_owned(), "/".to_owned())], 0);
    while let Some((folder, below)) = folders.pop() {
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            if name.starts_with('.') {
                continue;
            }
            let (kind, path) = (entry.file_type()?, format!("{below}{name}"));
            if kind.is_dir() {
                folders.push((entry.path(), format!("{path}/")));
            } else if kind.is_file() {
                total += entry.metadata()?.len();
                if files.len() >= MAX_FILES || total > MAX_BYTES {
                    return Err(io::ErrorKind::FileTooLarge.into());
                }
                let file = File::new(&name, std::fs::read(entry.path())?)?;
                if name == "index.html" {
                    files.insert(below.clone(), file.clone());
                }
                files.insert(path, file);
            }
        }
    }
    let policy = policy(files.get("/index.html"))?;
    Ok(Files { by_path: files, policy })
}

/// The content type of a file by the end of its name.
fn kind_of(name: &str) -> &'static str {
    match name.rsplit('.').next().unwrap_or_default() {
        "html" => "text/html; charset=utf-8",
        "js" | "mjs" => "text/javascript; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "txt" => "text/plain; charset=utf-8",
        "json" | "map" => "application/json",
        "webmanifest" => "application/manifest+json",
        "svg" => "image/svg+xml",
        "png" => "image/png",
        "ico" => "image/x-icon",
        "woff2" => "font/woff2",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_smaller_compressed_goes_so_to_whoever_takes_it() {
        let dir = tempfile::tempdir().unwrap();
        let (text, noise) = ("words ".repeat(500), b"x".to_vec());
        std::fs::write(dir.path().join("app.js"), &text).unwrap();
        std::fs::write(dir.path().join("x.png"), &noise).unwrap();
        let files = read(dir.path()).unwrap();
        let length = |response: &Response<Full<Bytes>>| response.headers()[CONTENT_LENGTH].to_str().unwrap().to_owned();
        let small = answer(&files, &Method::GET, "/app.js", true);
        assert_eq!(small.headers()[CONTENT_ENCODING], "gzip");
        assert!(length(&small).parse::<usize>().unwrap() < text.len() / 10);
        let plain = answer(&files, &Method::GET, "/app.js", false);
        assert_eq!((length(&plain), plain.headers().get(CONTENT_ENCODING)), (text.len().to_string(), None));
        let as_is = answer(&files, &Method::GET, "/x.png", true);
        assert_eq!((length(&as_is), as_is.headers().get(CONTENT_ENCODING)), ("1".to_owned(), None));
        for (named, takes) in
            [("gzip, br", true), ("br;q=1, GZIP;q=0.5", true), ("gzip;q=0", false), ("br", false), ("", false)]
        {
            let headers = HeaderMap::from_iter([(ACCEPT_ENCODING, HeaderValue::from_str(named).unwrap())]);
            assert_eq!(takes_gzip(&headers), takes, "{named}");
        }
    }

    #[test]
    fn too_much_is_no_page() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a.bin"), vec![0; 1024]).unwrap();
        assert_eq!(read(dir.path()).unwrap().by_path.len(), 1);
        std::fs::File::create(dir.path().join("b.bin")).unwrap().set_len(MAX_BYTES).unwrap();
        assert!(read(dir.path()).is_err(), "too many bytes");
        std::fs::remove_file(dir.path().join("b.bin")).unwrap();
        for i in 0..MAX_FILES {
            std::fs::write(dir.path().join(format!("{i}.txt")), "").unwrap();
        }
        assert!(read(dir.path()).is_err(), "too many files");
        assert!(read(&dir.path().join("none")).is_err());
    }
}
