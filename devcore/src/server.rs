//! The listener and its connections.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::answer::AnswerBody;
use crate::call::Call;
use crate::core::Core;
use crate::router;

/// Connections at once; further ones wait in the listener's queue.
const MAX_CONNECTIONS: usize = 4096;
/// HTTP/2 streams at once in one connection.
const MAX_STREAMS: u32 = 256;
/// HTTP/2 bytes on their way in one stream, and in one connection.
const STREAM_WINDOW: u32 = 1024 * 1024;
const CONNECTION_WINDOW: u32 = 8 * 1024 * 1024;
/// A connection without a request for so long is closed.
const IDLE: Duration = Duration::from_secs(120);
/// A TLS handshake takes no longer.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Calls that are running when the core stops may take so long.
const GRACE: Duration = Duration::from_secs(5);

/// What the listener runs on.
pub(crate) struct Server {
    pub(crate) core: Arc<Core>,
    pub(crate) tls: Option<TlsAcceptor>,
}

impl Server {
    /// Accepts until stopped.
    pub(crate) async fn run(self, listener: TcpListener) {
        let server = Arc::new(self);
        let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let Ok(permit) = room.clone().acquire_owned().await else { break };
            let accepted = tokio::select! {
                () = server.core.background.stop.cancelled() => break,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => {
                    let connection = server.clone().connection(stream, peer);
                    server.core.background.tasks.spawn(async move {
                        connection.await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::warn!(kind = ?error.kind(), "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    /// Serves one connection until it ends, is cut, or the core goes away.
    async fn connection(self: Arc<Self>, stream: TcpStream, peer: SocketAddr) {
        let mut away = self.core.faults.away();
        if *away.borrow_and_update() {
            cut(&stream);
            return;
        }
        // Small answers go out at once.
        drop(stream.set_nodelay(true));
        let cutting = CancellationToken::new();
        let serving = self.serve(stream, peer, &cutting);
        tokio::select! {
            () = serving => {}
            () = cutting.cancelled() => {}
            _ = away.wait_for(|away| *away) => {}
        }
    }

    async fn serve(&self, stream: TcpStream, peer: SocketAddr, cutting: &CancellationToken) {
        let Some(tls) = &self.tls else { return self.http(stream, peer, cutting).await };
        if let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE, tls.accept(stream)).await {
            self.http(stream, peer, cutting).await;
        }
    }

    async fn http<S>(&self, stream: S, peer: SocketAddr, cutting: &CancellationToken)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let ended = CancellationToken::new();
        let _ended = ended.clone().drop_guard();
        let mut builder = auto::Builder::new(Streams { tasks: self.core.background.tasks.clone(), ended });
        builder.http1().timer(TokioTimer::new()).header_read_timeout(IDLE);
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(MAX_STREAMS)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .keep_alive_interval(IDLE / 2)
            .keep_alive_timeout(IDLE / 4);
        let (core, token, asked) = (self.core.clone(), cutting.clone(), Arc::new(AtomicBool::new(false)));
        let first = asked.clone();
        let service = service_fn(move |request| {
            first.store(true, Ordering::Relaxed);
            answer(core.clone(), token.clone(), peer, request)
        });
        let connection = builder.serve_connection(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        tokio::select! {
            ended = connection.as_mut() => log_end(ended.is_err()),
            () = silent(&asked) => {}
            () = self.core.background.stop.cancelled() => {
                connection.as_mut().graceful_shutdown();
                if tokio::time::timeout(GRACE, connection).await.is_err() {
                    tracing::warn!("a connection was still busy when the core stopped");
                }
            }
        }
    }
}

/// Runs the streams of an HTTP/2 connection, which end with it: nothing outlives its handle.
#[derive(Clone)]
struct Streams {
    tasks: TaskTracker,
    ended: CancellationToken,
}

impl<F: Future<Output: Send> + Send + 'static> hyper::rt::Executor<F> for Streams {
    fn execute(&self, stream: F) {
        self.tasks.spawn(self.ended.clone().run_until_cancelled_owned(stream));
    }
}

/// Ends when no request has come in time: before the version is known, the connection has no timeout of its own.
async fn silent(asked: &AtomicBool) {
    tokio::time::sleep(IDLE).await;
    if asked.load(Ordering::Relaxed) {
        std::future::pending::<()>().await;
    }
}

fn log_end(failed: bool) {
    if failed {
        tracing::debug!("a connection ended in the middle of a request");
    }
}

/// Ends a connection with a reset, as a core that is gone would.
fn cut(stream: &TcpStream) {
    drop(stream.set_zero_linger());
}

async fn answer(
    core: Arc<Core>,
    cutting: CancellationToken,
    peer: SocketAddr,
    request: Request<Incoming>,
) -> Result<Response<AnswerBody>, Cut> {
    let (arrival, arrived_ms) = (core.stats.arrival(), core.clock.unix_ms());
    let (parts, body) = request.into_parts();
    let query = parts.uri.query().unwrap_or_default().to_owned();
    let call = Call { core, host: peer.ip(), headers: parts.headers, query, body, arrival, arrived_ms };
    let response = router::serve(call, parts.method, parts.uri.path().to_owned()).await;
    response.ok_or_else(|| {
        // The error ends this call; the token ends the connection, with the other calls on it.
        cutting.cancel();
        Cut
    })
}

/// The call gets no answer.
#[derive(Debug, thiserror::Error)]
#[error("cut on request")]
struct Cut;
