//! The ops listener: `/livez`, `/readyz`, `/metrics`, `/status`. Never public: its numbers are for
//! those who run the relay. It sees telemetry and closures, nothing else.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// Connections to the ops listener at once.
pub const MAX_CONNECTIONS: usize = 32;
/// From a connection's first byte to a request's head.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);

/// Makes a text when it is asked for.
pub type Text = Arc<dyn Fn() -> String + Send + Sync>;
/// Whether bytes can be taken, and a word list that says so.
pub type Readiness = Arc<dyn Fn() -> (bool, String) + Send + Sync>;

/// What the listener shows.
#[derive(Clone)]
pub struct Shows {
    /// OpenMetrics text.
    pub metrics: Text,
    /// JSON: what waits, why, since when, what to do.
    pub status: Text,
    /// JSON and whether it is a 200.
    pub ready: Readiness,
}

/// The bound listener.
pub struct Ops {
    listener: TcpListener,
    shows: Shows,
}

impl Ops {
    /// Binds it.
    ///
    /// # Errors
    /// The address is taken or not there.
    pub async fn bind(at: SocketAddr, shows: Shows) -> io::Result<Self> {
        Ok(Self { listener: TcpListener::bind(at).await?, shows })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// From the system.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `shutdown`.
    pub async fn serve(self, shutdown: CancellationToken) {
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        while let Some(accepted) = shutdown.run_until_cancelled(self.listener.accept()).await {
            let Ok((stream, _)) = accepted else {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            let Ok(place) = Arc::clone(&places).try_acquire_owned() else { continue };
            let shows = self.shows.clone();
            tokio::spawn(async move {
                let service = service_fn(move |request| {
                    let answer = answer(&shows, &request);
                    async move { Ok::<_, Infallible>(answer) }
                });
                let serving = hyper::server::conn::http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(HEADER_TIMEOUT)
                    .serve_connection(TokioIo::new(stream), service);
                // A peer that goes away is nothing to report.
                let _ = serving.await;
                drop(place);
            });
        }
    }
}

fn answer(shows: &Shows, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    const JSON: &str = "application/json";
    let get = request.method() == Method::GET || request.method() == Method::HEAD;
    let (status, kind, body) = match request.uri().path() {
        _ if !get => (StatusCode::METHOD_NOT_ALLOWED, JSON, "{}".into()),
        "/livez" => (StatusCode::OK, JSON, r#"{"status":"alive"}"#.into()),
        "/readyz" => {
            let (ready, body) = (shows.ready)();
            (if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, JSON, body)
        }
        "/metrics" => (StatusCode::OK, "application/openmetrics-text; version=1.0.0; charset=utf-8", (shows.metrics)()),
        "/status" => (StatusCode::OK, JSON, (shows.status)()),
        _ => (StatusCode::NOT_FOUND, JSON, "{}".into()),
    };
    let mut answer = Response::new(Full::new(Bytes::from(body)));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    headers.insert(header::CACHE_CONTROL, header::HeaderValue::from_static("no-store"));
    answer
}
