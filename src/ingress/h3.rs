//! HTTP/3 requests on one QUIC connection.

use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use futures_util::future::BoxFuture;
use h3::server::{RequestResolver, RequestStream};
use http::{Method, Request, Response};
use http_body::Body as _;
use waystation_congestion::Gauge;
use waystation_h3::{BidiStream, Connection, MAX_FRAME, Orders, RecvStream, SendStream};

use super::Service;
use super::body::{Broken, Heard, PIECE, RequestBody, ResponseBody, Stopped};
use super::conn::{Conn, Ctx, client_key};
use super::dialect::{self, Interim};
use super::loss::Loss;
use super::pour;
use super::quic;
use super::respond::{self, Reply};
use super::route;
use super::urgency::Urgency;
use super::webtransport::{self, Streams};
use crate::proto::Code;
use crate::telemetry::names::{RefusedConnection, Transport};

/// The body of a request on HTTP/3.
pub(super) struct Incoming(RequestStream<RecvStream, Bytes>);

impl Incoming {
    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Broken>>> {
        loop {
            match ready!(self.0.poll_recv_data(cx)) {
                Err(_) => return Poll::Ready(Some(Err(Broken))),
                Ok(None) => return Poll::Ready(None),
                Ok(Some(mut data)) if data.has_remaining() => {
                    return Poll::Ready(Some(Ok(data.copy_to_bytes(data.remaining()))));
                }
                Ok(Some(_)) => {}
            }
        }
    }
}

/// Serves a connection to its end, its idleness, or the relay's.
pub(super) async fn serve(conn: Arc<Conn>, quic: quinn::Connection, gauge: Arc<Gauge>) {
    let mut builder = h3::server::builder();
    builder
        .max_field_section_size(MAX_FRAME)
        .enable_extended_connect(true)
        .enable_webtransport(true)
        .enable_datagram(true)
        .max_webtransport_sessions(webtransport::MAX_SESSIONS);
    let (streams, of_sessions, orders) = Connection::with_sessions(quic.clone());
    let of_sessions = Arc::new(Mutex::new(Some(of_sessions)));
    let shared = Shared { conn: Arc::clone(&conn), quic: quic.clone(), of_sessions, orders, loss: Arc::default() };
    let Ok(mut serving) = Box::pin(builder.build::<_, Bytes>(streams)).await else { return };
    let mut watchdog = std::pin::pin!(conn.watchdog());
    let mut asking = std::pin::pin!(quic::ask_after(&quic, &gauge));
    let mut draining = false;
    loop {
        tokio::select! {
            accepted = serving.accept() => match accepted {
                // Resolved in its own task: one slow head must not hold up the connection.
                Ok(Some(resolver)) => {
                    conn.service.tasks.spawn(request(shared.clone(), resolver));
                }
                Ok(None) => return,
                Err(_) => {
                    if matches!(quic.close_reason(), Some(quinn::ConnectionError::LocallyClosed)) {
                        conn.service.shared.metrics.ingress.refuse_connection(RefusedConnection::Broken);
                    }
                    return;
                }
            },
            () = conn.service.drain.cancelled(), if !draining => {
                draining = true;
                if serving.shutdown(0).await.is_err() {
                    return;
                }
            }
            () = asking.as_mut() => {}
            () = conn.cut.cancelled() => return,
            reason = watchdog.as_mut() => {
                return conn.service.shared.metrics.ingress.refuse_connection(reason);
            }
        }
    }
}

/// A connection, and what its requests have in common.
#[derive(Clone)]
struct Shared {
    conn: Arc<Conn>,
    quic: quinn::Connection,
    of_sessions: Streams,
    orders: Orders,
    loss: Arc<Loss>,
}

/// One request, to the end of its answer, which may last for hours: each part lies in a box of its own, and is let go.
fn request(shared: Shared, resolver: RequestResolver<Connection, Bytes>) -> impl Future<Output = ()> {
    let head = Box::pin(head(Arc::clone(&shared.conn.service), resolver));
    async move {
        let Some((request, stream)) = head.await else { return };
        let Shared { conn, quic, .. } = &shared;
        let client = client_key(quic.remote_address().ip(), request.headers(), conn.listener, &[]);
        let meant = dialect::method(request.method(), request.headers());
        let only_asks = meant.as_ref().unwrap_or(request.method()) == Method::GET;
        let (id, orders) = (stream.id(), shared.orders.clone());
        let answering: BoxFuture<'_, ()> = if webtransport::wanted(&request) {
            let of_sessions = Arc::clone(&shared.of_sessions);
            Box::pin(webtransport::serve((Arc::clone(conn), quic.clone()), client, request, stream, of_sessions))
        } else {
            Box::pin(respond_to(&shared, client, request, stream))
        };
        // Bytes are taken from whoever brings them, also if they do not wait for the answer.
        let unwanted = async { if only_asks { orders.stopped(id).await } else { std::future::pending().await } };
        tokio::select! {
            () = answering => {}
            () = unwanted => {}
            _ = quic.closed() => {}
            () = conn.service.cut.cancelled() => {}
        }
    }
}

type Asked = (Request<()>, RequestStream<BidiStream, Bytes>);

/// The head of a request, if it comes in time.
async fn head(service: Arc<Service>, resolver: RequestResolver<Connection, Bytes>) -> Option<Asked> {
    tokio::select! {
        head = resolver.resolve_request() => head.ok(),
        () = service.shared.clock.sleep(service.limits.header_timeout) => None,
        () = service.cut.cancelled() => None,
    }
}

/// Handles a request and answers it.
fn respond_to(
    shared: &Shared,
    client: IpAddr,
    request: Request<()>,
    stream: RequestStream<BidiStream, Bytes>,
) -> impl Future<Output = ()> {
    let Shared { conn, quic, orders, loss, .. } = shared;
    let (id, asked) = (stream.id(), Urgency::asked(request.headers()));
    let (mut send, recv) = stream.split();
    let heard = Heard::new(conn, Transport::H3);
    let mut request = request.map(|()| RequestBody::h3(Incoming(recv), heard));
    let mut heads = Interim::along(&mut request);
    let mut handling = Box::pin(route::handle(Arc::clone(conn), Transport::H3, client, request));
    async move {
        let mut reply = loop {
            tokio::select! {
                biased;
                head = Interim::next(&mut heads) => {
                    if !matches!(in_time(conn, send.send_response(head)).await, Some(Ok(()))) {
                        return;
                    }
                }
                reply = handling.as_mut() => break reply,
            }
        };
        drop(handling);
        let of_chunk = reply.extensions().get::<Urgency>().copied();
        if of_chunk.is_some() {
            tell_loss(quic, loss, &mut reply);
        }
        if let Some(urgency) = asked.or(of_chunk) {
            orders.set(id, urgency.priority(id.into_inner()));
        }
        match reply.body_mut().pouring() {
            Some(pouring) => {
                let stream = Stream { send, id, orders: orders.clone(), conn };
                Box::pin(show(conn, stream, reply, *pouring)).await;
            }
            None => Box::pin(answer(conn, send, reply)).await,
        }
    }
}

/// Answers a contact with what it is to see.
async fn show(conn: &Conn, mut stream: Stream<'_>, reply: Reply, pouring: pour::Pouring) {
    let (parts, _open) = reply.into_parts();
    let head = Box::pin(stream.send.send_response(Response::from_parts(parts, ())));
    if matches!(in_time(conn, head).await, Some(Ok(()))) {
        pouring.pour(stream).await;
    }
}

/// The stream of an answer. What it is sent is not copied, since others are sent it too.
struct Stream<'a> {
    send: RequestStream<SendStream, Bytes>,
    id: h3::quic::StreamId,
    orders: Orders,
    conn: &'a Conn,
}

impl pour::Sink for Stream<'_> {
    async fn send(&mut self, _: &Ctx, mut bytes: Bytes) -> Result<(), Stopped> {
        while !bytes.is_empty() {
            let piece = bytes.split_to(bytes.len().min(PIECE));
            self.orders.share(self.id, piece.clone());
            match in_time(self.conn, self.send.send_data(piece)).await {
                Some(Ok(())) => {}
                Some(Err(_)) => return Err(Stopped::Gone),
                None => return Err(Stopped::TooSlow),
            }
        }
        Ok(())
    }

    async fn gone(&self) {
        // Who stops the answer, or the connection, ends the request.
        std::future::pending().await
    }

    async fn finish(mut self, _: &Ctx) {
        let _ = in_time(self.conn, self.send.finish()).await;
    }

    fn cut(&self, _: &Ctx) {
        // The stream is reset when it is dropped.
    }
}

/// How many of a thousand packets to this contact were lost of late: one who knows asks for sound twice.
fn tell_loss(quic: &quinn::Connection, loss: &Loss, reply: &mut Reply) {
    let path = quic.stats().path;
    if let Some(permille) = loss.permille(path.sent_packets, path.lost_packets) {
        reply.headers_mut().insert(respond::LOSS, permille.into());
    }
}

/// Writes an answer. Unless it is finished, dropping the stream resets it.
pub(super) async fn answer(conn: &Conn, mut send: RequestStream<SendStream, Bytes>, reply: Reply) {
    let (parts, mut body) = reply.into_parts();
    let head = Response::from_parts(parts, ());
    if !matches!(in_time(conn, send.send_response(head)).await, Some(Ok(()))) {
        return;
    }
    while let Some(frame) = next_frame(&mut body).await {
        let Ok(mut bytes) = frame else { return };
        while !bytes.is_empty() {
            let piece = bytes.split_to(bytes.len().min(PIECE));
            match in_time(conn, send.send_data(piece)).await {
                Some(Ok(())) => {}
                Some(Err(_)) => return,
                None => return body.ended(Code::ContactTooSlow),
            }
        }
    }
    let _ = in_time(conn, send.finish()).await;
}

async fn next_frame(body: &mut ResponseBody) -> Option<Result<Bytes, super::body::Cut>> {
    let mut body = std::pin::Pin::new(body);
    let frame = std::future::poll_fn(|cx| body.as_mut().poll_frame(cx)).await?;
    Some(frame.map(|frame| frame.into_data().unwrap_or_default()))
}

/// `write`, unless the peer takes nothing for `idle_timeout`.
pub(super) async fn in_time<F: Future>(conn: &Conn, write: F) -> Option<F::Output> {
    tokio::select! {
        biased;
        written = write => Some(written),
        () = conn.service.shared.clock.sleep(conn.service.limits.idle_timeout) => None,
    }
}
