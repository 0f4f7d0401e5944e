//! HTTP/3 requests on one QUIC connection.

use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use h3::server::{RequestResolver, RequestStream};
use http::{Method, Response};
use http_body::Body as _;
use waystation_congestion::Gauge;
use waystation_h3::{Connection, MAX_FRAME, Orders, RecvStream, SendStream};

use super::body::{Broken, Heard, PIECE, RequestBody, ResponseBody, Stopped};
use super::conn::{Conn, Ctx, client_key};
use super::dialect::Interim;
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
    let loss = Arc::new(Loss::default());
    let Ok(mut serving) = builder.build::<_, Bytes>(streams).await else { return };
    let mut watchdog = std::pin::pin!(conn.watchdog());
    let mut asking = std::pin::pin!(quic::ask_after(&quic, &gauge));
    let mut draining = false;
    loop {
        tokio::select! {
            accepted = serving.accept() => match accepted {
                // Resolved in its own task: one slow head must not hold up the connection.
                Ok(Some(resolver)) => {
                    let (conn, quic) = (Arc::clone(&conn), quic.clone());
                    let beside = (Arc::clone(&of_sessions), orders.clone(), Arc::clone(&loss));
                    conn.service.tasks.clone().spawn(Box::pin(request((conn, quic), resolver, beside)));
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

async fn request(
    (conn, quic): (Arc<Conn>, quinn::Connection),
    resolver: RequestResolver<Connection, Bytes>,
    (of_sessions, orders, loss): (Streams, Orders, Arc<Loss>),
) {
    let service = Arc::clone(&conn.service);
    let head = tokio::select! {
        head = resolver.resolve_request() => head,
        () = service.shared.clock.sleep(service.limits.header_timeout) => return,
        () = service.cut.cancelled() => return,
    };
    let Ok((request, stream)) = head else { return };
    let client = client_key(quic.remote_address().ip(), request.headers(), conn.listener, &[]);
    if webtransport::wanted(&request) {
        let session = webtransport::serve((Arc::clone(&conn), quic.clone()), client, request, stream, of_sessions);
        return tokio::select! {
            () = Box::pin(session) => {}
            _ = quic.closed() => {}
            () = service.cut.cancelled() => {}
        };
    }
    let (id, asked) = (stream.id(), Urgency::asked(request.headers()));
    let only_asks = request.method() == Method::GET;
    // Bytes are taken from whoever brings them, also if they do not wait for the answer.
    let unwanted = orders.clone();
    let unwanted = async { if only_asks { unwanted.stopped(id).await } else { std::future::pending().await } };
    let (send, recv) = stream.split();
    let heard = Heard::new(&conn, Transport::H3);
    let mut request = request.map(|()| RequestBody::h3(Incoming(recv), heard));
    let mut heads = Interim::along(&mut request);
    let answering = async {
        let mut send = send;
        let mut handling = Box::pin(route::handle(Arc::clone(&conn), Transport::H3, client, request));
        let mut reply = loop {
            tokio::select! {
                biased;
                head = Interim::next(&mut heads) => {
                    if !matches!(in_time(&conn, send.send_response(head)).await, Some(Ok(()))) {
                        return;
                    }
                }
                reply = handling.as_mut() => break reply,
            }
        };
        // An answer may last for hours.
        drop(handling);
        let of_chunk = reply.extensions().get::<Urgency>().copied();
        if of_chunk.is_some() {
            tell_loss(&quic, &loss, &mut reply);
        }
        if let Some(urgency) = asked.or(of_chunk) {
            orders.set(id, urgency.priority(id.into_inner()));
        }
        match reply.body_mut().pouring() {
            Some(pouring) => show(&conn, Stream { send, id, orders, conn: &conn }, reply, *pouring).await,
            None => answer(&conn, send, reply).await,
        }
    };
    tokio::select! {
        () = answering => {}
        () = unwanted => {}
        _ = quic.closed() => {}
        () = service.cut.cancelled() => {}
    }
}

/// Answers a contact with what it is to see.
async fn show(conn: &Conn, mut stream: Stream<'_>, reply: Reply, pouring: pour::Pouring) {
    let (parts, _open) = reply.into_parts();
    let head = Response::from_parts(parts, ());
    if matches!(in_time(conn, stream.send.send_response(head)).await, Some(Ok(()))) {
        Box::pin(pouring.pour(stream)).await;
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
