//! A core that answers as a test says and keeps what it was asked; and a relay in front of it.
//! Capabilities come from a real core.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::{CancellationToken, DropGuard};
use waystation::clock::Clock;
use waystation::config::Config;
use waystation::relay::Relay;
use waystation_tests::world::{PATIENCE, config};
use waystation_tests::{Setup, World};

/// A call as the core saw it.
#[derive(Clone)]
pub struct Seen {
    /// Path.
    pub path: String,
    /// Headers.
    pub headers: HeaderMap,
    /// Body.
    pub body: Bytes,
}

type Says = Arc<dyn Fn(&Seen) -> Response<Full<Bytes>> + Send + Sync>;

/// Serves until it is dropped.
pub struct FakeCore {
    /// Where.
    pub at: SocketAddr,
    shared: Arc<Shared>,
    _tasks: JoinSet<()>,
}

struct Shared {
    connections: AtomicUsize,
    begun: AtomicUsize,
    seen: Mutex<Vec<Seen>>,
    /// Calls that may be read on; a call without one stays unread and unanswered.
    leave: Semaphore,
    says: Says,
}

impl FakeCore {
    /// One that reads and answers everything.
    pub async fn start(says: impl Fn(&Seen) -> Response<Full<Bytes>> + Send + Sync + 'static) -> Self {
        Self::at("127.0.0.1:0".parse().unwrap(), Semaphore::MAX_PERMITS, says).await
    }

    /// One that reads no call's body until [`FakeCore::go_on`].
    pub async fn stuck(says: impl Fn(&Seen) -> Response<Full<Bytes>> + Send + Sync + 'static) -> Self {
        Self::at("127.0.0.1:0".parse().unwrap(), 0, says).await
    }

    /// One at this address.
    pub async fn at(
        at: SocketAddr,
        leave: usize,
        says: impl Fn(&Seen) -> Response<Full<Bytes>> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind(at).await.unwrap();
        let at = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            connections: AtomicUsize::new(0),
            begun: AtomicUsize::new(0),
            seen: Mutex::default(),
            leave: Semaphore::new(leave),
            says: Arc::new(says),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(Arc::clone(&shared).accept(listener));
        Self { at, shared, _tasks: tasks }
    }

    /// Lets every call go on.
    pub fn go_on(&self) {
        self.shared.leave.add_permits(Semaphore::MAX_PERMITS / 2);
    }

    /// Base URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.at)
    }

    /// TCP connections that were accepted, the one of the revocation list among them.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// Calls whose head came.
    pub fn begun(&self) -> usize {
        self.shared.begun.load(Ordering::SeqCst)
    }

    /// Calls that came whole.
    pub fn seen(&self) -> Vec<Seen> {
        self.shared.seen.lock().unwrap().clone()
    }
}

impl Shared {
    async fn accept(self: Arc<Self>, listener: TcpListener) {
        let mut served = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            self.connections.fetch_add(1, Ordering::SeqCst);
            let shared = Arc::clone(&self);
            let service = service_fn(move |request| Arc::clone(&shared).answer(request));
            served.spawn(async move {
                let connection = hyper::server::conn::http1::Builder::new();
                let _ = connection.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    }

    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, hyper::Error> {
        if request.method() == http::Method::GET {
            // The revocation list: this core has none.
            return Ok(json(404, ""));
        }
        self.begun.fetch_add(1, Ordering::SeqCst);
        self.leave.acquire().await.unwrap().forget();
        let (head, body) = request.into_parts();
        let body = body.collect().await?.to_bytes();
        let seen = Seen { path: head.uri.path().into(), headers: head.headers, body };
        self.seen.lock().unwrap().push(seen.clone());
        Ok((self.says)(&seen))
    }
}

/// An answer with a JSON body.
pub fn json(status: u16, body: impl Into<String>) -> Response<Full<Bytes>> {
    Response::builder().status(status).body(Full::from(body.into())).unwrap()
}

/// Yes to everything, as far as this relay looks.
pub fn yes(seen: &Seen) -> Response<Full<Bytes>> {
    match seen.path.as_str() {
        "/v1/relay/commit" => json(201, r#"{"relay_commit":{"status":"committed"}}"#),
        "/v1/relay/preflight" => json(200, r#"{"relay_preflight":{"status":"accepted"}}"#),
        _ => json(200, r#"{"relay_fanout":{"status":"authorized"}}"#),
    }
}

/// A relay that takes capabilities of `world`'s core and calls the core at `url`.
pub struct Before {
    /// Its plain listener.
    pub plain: SocketAddr,
    /// Its ops listener.
    pub ops: SocketAddr,
    _stop: DropGuard,
    _dir: tempfile::TempDir,
}

impl Before {
    /// Starts it; `more` are further lines of `[core]`.
    pub async fn core(world: &World, url: &str, more: &str) -> Self {
        Self::start(world, &format!("url = \"{url}\"\n{more}")).await
    }

    /// Starts one that has no core at all.
    pub async fn without_a_core(world: &World) -> Self {
        Self::start(world, "").await
    }

    /// `core` are the lines instead of `core.url`.
    async fn start(world: &World, core: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let setup = Setup { toml: "[limits]\nin_flight_per_session = 1024".into(), ..Setup::default() };
        let toml = config(dir.path(), &world.core, &setup);
        let toml = toml.replace(&format!("[core]\nurl = \"{}\"", world.core.url()), &format!("[core]\n{core}"));
        let relay = Relay::bind(Config::parse(&toml, []).unwrap(), Clock::system()).await.unwrap();
        let (at, stop) = (relay.addresses(), CancellationToken::new());
        tokio::spawn(relay.run(stop.clone()));
        Self { plain: at.plain.unwrap(), ops: at.ops, _stop: stop.drop_guard(), _dir: dir }
    }

    /// One sample of the metrics.
    pub async fn metric(&self, name: &str) -> f64 {
        let text = waystation_tests::http::get(self.ops, "/metrics").await.1;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.parse().unwrap())
    }
}

/// Waits until `done` holds.
pub async fn until(what: &str, done: impl AsyncFn() -> bool) {
    let waiting = async {
        while !done().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, waiting).await.is_ok(), "{what} never came");
}
