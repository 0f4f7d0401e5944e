//! `/watch` over WebTransport (draft-ietf-webtrans-http3, as browsers speak it): a session on the
//! HTTP/3 connection it came with. The contact opens one stream and speaks the frames of `/watch` on it; each
//! chunk comes to it on a stream of its own ([`courier`]).

use std::future::poll_fn;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use h3::ext::Protocol;
use h3::server::RequestStream;
use http::request::Parts;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use waystation_h3::{BidiStream, RecvStream, SendStream, SessionStream, SessionStreams};

use super::body::{Heard, RequestBody, Stopped};
use super::conn::{Conn, Ctx};
use super::duplex::Inflow;
use super::frames::{FIRST_MESSAGE, Reader};
use super::pour::{over, unless_over};
use super::respond::{self, Shape};
use super::ticket::Ticket;
use super::watch::{self, Command, Commands};
use super::{cors, h3 as http3, route};
use crate::admission::Revocation;
use crate::fanout::{Step, Subscription};
use crate::proto::Code;
use crate::proto::capsule::{self, Capsules};
use crate::telemetry::names::{Route, Transport};

mod courier;

use courier::Courier;

/// Sessions of one connection. A browser opens a connection for each.
pub(super) const MAX_SESSIONS: u64 = 1;
/// How long a contact may take to end its session when all was said, or to take the last of it.
const LINGER: Duration = Duration::from_secs(2);
/// Which draft is spoken: browsers of its time ask for it to be said.
const DRAFT: (&str, HeaderValue) = ("sec-webtransport-http3-draft", HeaderValue::from_static("draft02"));

/// Streams of the connection's session, until the session takes them.
pub(super) type Streams = Arc<Mutex<Option<SessionStreams>>>;

/// Whether a request asks for a session.
pub(super) fn wanted(request: &Request<()>) -> bool {
    request.method() == Method::CONNECT && request.extensions().get::<Protocol>() == Some(&Protocol::WEB_TRANSPORT)
}

/// Serves a session to its end.
pub(super) async fn serve(
    (conn, quic): (Arc<Conn>, quinn::Connection),
    client: IpAddr,
    request: Request<()>,
    stream: RequestStream<BidiStream, Bytes>,
    streams: Streams,
) {
    let (parts, ()) = request.into_parts();
    let ticket = Ticket::open(&conn, Route::Watch, Transport::H3);
    let ctx = Ctx { conn, transport: Transport::H3, client, ticket };
    let id = stream.id().into_inner();
    let (mut send, recv) = stream.split();
    let mut streams = match accept(&ctx, &parts, &streams) {
        Ok(streams) => streams,
        Err(code) => {
            let reply = respond::refusal(Shape::Native, &code.into());
            ctx.ticket.answered(reply.status().as_u16(), Some(code));
            return http3::answer(&ctx.conn, send, reply.map(|body| body.with_ticket(ctx.ticket.clone()))).await;
        }
    };
    let mut opened = Response::new(());
    opened.headers_mut().insert(DRAFT.0, DRAFT.1);
    opened.headers_mut().insert(respond::NODE, ctx.node.clone());
    if !matches!(http3::in_time(&ctx.conn, send.send_response(opened)).await, Some(Ok(()))) {
        return;
    }
    ctx.ticket.answered(StatusCode::OK.as_u16(), None);
    let mut left = std::pin::pin!(closed(recv));
    let told = tokio::select! {
        told = session(&ctx, quic, id, &mut streams) => told,
        () = &mut left => return,
    };
    let Some(end) = told else { return };
    // Its page closes the session when it has read the last frame; a close that came first would
    // take that frame away.
    if ctx.within(LINGER, &mut left).await.is_none() {
        close(&ctx, send, end).await;
    }
}

fn accept(ctx: &Ctx, parts: &Parts, streams: &Streams) -> Result<SessionStreams, Code> {
    route::sound(ctx, parts)?;
    if parts.uri.path() != "/watch" {
        return Err(Code::NotFound);
    }
    if cors::allowed(ctx, &parts.headers) == Some(false) {
        return Err(Code::OriginNotAllowed);
    }
    if ctx.drain.is_cancelled() {
        return Err(Code::Draining);
    }
    streams.lock().unwrap_or_else(PoisonError::into_inner).take().ok_or(Code::TooManyConnections)
}

/// Ends when the contact closed the session.
async fn closed(mut recv: RequestStream<RecvStream, Bytes>) {
    let mut capsules = Capsules::default();
    while let Ok(Some(mut data)) = recv.recv_data().await {
        if capsules.closed_by(&data.copy_to_bytes(data.remaining())) {
            return;
        }
    }
}

/// `CLOSE_WEBTRANSPORT_SESSION`, with the code that a WebSocket would close with.
async fn close(ctx: &Ctx, mut send: RequestStream<SendStream, Bytes>, end: End) {
    let (code, reason) = end.map_or((0, ""), |code| (u32::from(code.close()), code.name()));
    if matches!(http3::in_time(&ctx.conn, send.send_data(capsule::close(code, reason))).await, Some(Ok(()))) {
        let _ = http3::in_time(&ctx.conn, send.finish()).await;
    }
}

/// How a session ends: in order, or for a reason.
type End = Option<Code>;

/// The contact's stream, its subscription, and everything it is told; `None`: it left.
async fn session(ctx: &Ctx, quic: quinn::Connection, id: u64, streams: &mut SessionStreams) -> Option<End> {
    let first = async {
        loop {
            let stream = streams.recv().await?;
            if stream.session == id {
                return Some(stream);
            }
        }
    };
    let Some(control) = ctx.within(FIRST_MESSAGE, first).await else {
        ctx.ticket.ended(Some(Code::FirstMessageTimeout));
        return Some(Some(Code::FirstMessageTimeout));
    };
    let SessionStream { send, recv, .. } = *control?;
    // Others are refused from now on.
    streams.close();
    let mut courier = Courier::new(quic, id, send);
    let body = RequestBody::stream(recv, Heard::new(&ctx.conn, Transport::H3));
    let reader = Reader::Body(Inflow::patient(ctx.clone(), body));
    let (mut end, mut revocation) = match watch::open(ctx, reader).await {
        Ok(Some(((subscription, mut revocation), commands))) => {
            (bring(ctx, subscription, &mut revocation, commands, &mut courier).await?, Some(revocation))
        }
        Ok(None) => return None,
        Err(refusal) => {
            courier.take(vec![respond::ending(refusal.code)]);
            (Some(refusal.code), None)
        }
    };
    ctx.ticket.ended(end);
    courier.last();
    let over = async {
        match &mut revocation {
            Some(revocation) => over(ctx, revocation).await,
            None => std::future::pending().await,
        }
    };
    let settled = unless_over(ctx, settle(ctx, &mut courier), over, &mut end).await;
    match settled {
        Ok(()) => {
            if let Some(acked) = courier.finish() {
                ctx.within(LINGER, acked).await;
            }
        }
        Err(Stopped::TooSlow) => end = end.or(Some(Code::ContactTooSlow)),
        Err(Stopped::Gone) => return None,
    }
    ctx.ticket.ended(end);
    Some(end)
}

/// Brings what the subscription hands out until it ends; `None`: the contact left.
async fn bring(
    ctx: &Ctx,
    mut subscription: Box<Subscription>,
    revocation: &mut Revocation,
    mut commands: Commands,
    courier: &mut Courier,
) -> Option<End> {
    let mut ending = None;
    let mut went_ms = ctx.shared.clock.now_ms();
    loop {
        subscription.hold(courier.enough());
        let idle = idle(ctx, courier.waits(), went_ms);
        tokio::select! {
            worked = poll_fn(|cx| courier.poll_work(cx)) => {
                worked.ok()?;
                went_ms = ctx.shared.clock.now_ms();
            }
            step = subscription.next() => {
                if !courier.waits() {
                    // Nothing waited until now.
                    went_ms = ctx.shared.clock.now_ms();
                }
                match step {
                    Step::Frames(frames) => courier.take(frames),
                    Step::End(frames) => {
                        courier.take(frames);
                        return Some(ending.or(subscription.ended()));
                    }
                }
            }
            command = commands.recv(), if ending.is_none() => match command? {
                Command::Lanes(lanes) => {
                    subscription.lanes(lanes.lanes);
                    courier.only(&subscription.bringing());
                }
                Command::Fetch(fetch) => subscription.fetch(&fetch.stream, fetch.index),
                Command::Renew(capability) => {
                    if let Ok(next) = ctx.shared.admission.revocation(&capability)
                        && subscription.renew(&capability.grant).is_ok()
                    {
                        *revocation = next;
                    }
                }
                Command::End(code) => ending = Some(code),
            },
            code = over(ctx, revocation), if ending.is_none() => ending = Some(code),
            () = idle, if ending.is_none() => {
                courier.give_up();
                ending = Some(Code::ContactTooSlow);
            }
        }
        if let Some(code) = ending {
            subscription.end(code);
        }
    }
}

/// Ends when nothing that waits was taken for `idle_timeout`.
async fn idle(ctx: &Ctx, waits: bool, went_ms: u64) {
    if !waits {
        return std::future::pending().await;
    }
    let since = Duration::from_millis(ctx.shared.clock.now_ms().saturating_sub(went_ms));
    ctx.shared.clock.sleep(ctx.limits.idle_timeout.saturating_sub(since)).await;
}

/// Brings the last that is to be brought, some of it within each [`LINGER`].
async fn settle(ctx: &Ctx, courier: &mut Courier) -> Result<(), Stopped> {
    while !courier.done() {
        let work = poll_fn(|cx| courier.poll_work(cx));
        ctx.within(LINGER, work).await.unwrap_or(Err(Stopped::TooSlow))?;
    }
    Ok(())
}
