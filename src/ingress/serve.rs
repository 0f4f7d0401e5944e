//! HTTP/1.1 and HTTP/2 on one stream of bytes, by hyper.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::io::{AsyncRead, AsyncWrite};

use super::body::{Heard, RequestBody};
use super::conn::{Conn, client_key};
use super::io::Late;
use super::respond::MAX_HEADER_BYTES;
use super::route;
use crate::telemetry::names::{RefusedConnection, Transport};

/// Streams a peer may have open on one HTTP/2 connection; their bytes share the connection's
/// window.
const MAX_STREAMS: u32 = 100;
/// What a peer may send on one stream before the relay took it: 40 Mbit/s at 100 ms.
const H2_STREAM_WINDOW: u32 = 512 * 1024;
/// The same for a whole connection: what a hostile one can make the relay hold.
const H2_CONNECTION_WINDOW: u32 = 1024 * 1024;
/// Larger frames than HTTP/2's 16 KiB: fewer pieces to hash and write.
const H2_FRAME: u32 = 64 * 1024;
/// What the relay holds for a peer that takes nothing, for each stream.
const H2_SEND_BUFFER: usize = 128 * 1024;
/// Fields of a head that hyper reads on HTTP/1.1 (100 by itself); more are answered 431 by hyper, in
/// its own words. Far over [`super::respond::MAX_FIELDS`], so that the relay's own answer is the rule.
const MAX_H1_FIELDS: usize = 1024;
/// What hyper reads ahead on HTTP/1.1; a head over it is answered 431 by hyper itself.
const H1_BUFFER: usize = 128 * 1024;
/// How long a peer may take to see that an idle connection is being closed.
const LINGER: Duration = Duration::from_secs(1);

/// Serves a connection to its end, its idleness, or the relay's.
pub(super) async fn serve<T>(conn: Arc<Conn>, io: T, peer: IpAddr)
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let builder = builder(&conn);
    let service = service_fn({
        let conn = Arc::clone(&conn);
        move |request| {
            let conn = Arc::clone(&conn);
            async move { Ok::<_, Infallible>(Box::pin(handle(conn, peer, request)).await) }
        }
    });
    let (io, late) = Late::new(io);
    let serving = builder.serve_connection_with_upgrades(TokioIo::new(io), service);
    let mut serving = std::pin::pin!(serving);
    let mut watchdog = std::pin::pin!(conn.watchdog());
    let mut draining = false;
    loop {
        tokio::select! {
            _ = serving.as_mut() => return,
            () = conn.cut.cancelled() => return,
            () = conn.service.drain.cancelled(), if !draining => {
                draining = true;
                serving.as_mut().graceful_shutdown();
            }
            reason = watchdog.as_mut() => {
                conn.service.shared.metrics.ingress.refuse_connection(reason);
                match reason {
                    RefusedConnection::Idle => serving.as_mut().graceful_shutdown(),
                    // Its next read, which polling brings about, answers and ends.
                    _ => late.store(true, Ordering::Relaxed),
                }
                let _ = tokio::time::timeout(LINGER, serving).await;
                return;
            }
        }
    }
}

fn builder(conn: &Conn) -> Builder<TokioExecutor> {
    let idle = conn.service.limits.idle_timeout;
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        // The watchdog knows requests of both versions, and the time before the version is known.
        .header_read_timeout(None)
        .half_close(false)
        .max_headers(MAX_H1_FIELDS)
        .max_buf_size(H1_BUFFER);
    builder
        .http2()
        .timer(TokioTimer::new())
        .enable_connect_protocol()
        .max_concurrent_streams(MAX_STREAMS)
        .initial_stream_window_size(H2_STREAM_WINDOW)
        .initial_connection_window_size(H2_CONNECTION_WINDOW)
        .max_frame_size(H2_FRAME)
        .max_send_buf_size(H2_SEND_BUFFER)
        .max_header_list_size(2 * MAX_HEADER_BYTES as u32)
        .keep_alive_interval(idle / 2)
        .keep_alive_timeout(idle / 2);
    builder
}

async fn handle(
    conn: Arc<Conn>,
    peer: IpAddr,
    request: Request<Incoming>,
) -> http::Response<super::body::ResponseBody> {
    let transport = if request.version() == http::Version::HTTP_2 { Transport::H2 } else { Transport::H1 };
    let client = client_key(peer, request.headers(), conn.listener, &conn.service.trusted_proxies);
    let heard = Heard::new(&conn, transport);
    route::handle(conn, transport, client, request.map(|body| RequestBody::hyper(body, heard))).await
}
