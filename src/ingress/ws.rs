//! WebSocket: the upgrade on HTTP/1.1 and HTTP/2, and the two halves of the socket.

use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use http::{Method, StatusCode};
use hyper::ext::Protocol;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use prometheus_client::metrics::counter::Counter;
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_util::task::AbortOnDropHandle;

use super::conn::Ctx;
use super::cors;
use super::frames::{self, Goodbye, Out, Outbox, Reader, Room};
use super::io::{Sign, Stalling};
use super::respond::{self, Reply, Shape};
use super::wswrite::{Listening, Writer};
use crate::admission::Refusal;
use crate::proto::Code;
use crate::proto::frame::{self, Frame, MAX_PIECE_BYTES};
use crate::rare::Rare;
use crate::telemetry::ingress::{ByEnding, ByRoute, CodeLabel};
use crate::telemetry::names::Transport;

mod direct;

use direct::Direct;

/// Largest message: one full `PIECE` and some control frames beside it.
const MAX_MESSAGE: usize = MAX_PIECE_BYTES + 128 * 1024;
/// Answers of the library that reads, which are the only thing it writes.
const REPLY_BUFFER: usize = 1024;
type Io = Stalling<TokioIo<Upgraded>>;
type Socket = WebSocketStream<Listening<Io>>;

/// Whether a request asks for a WebSocket: `Upgrade` on HTTP/1.1, extended CONNECT on HTTP/2.
pub(super) fn wanted(parts: &Parts) -> bool {
    if parts.method == Method::CONNECT {
        return parts.extensions.get::<Protocol>().is_some_and(|protocol| protocol.as_str() == "websocket");
    }
    parts.method == Method::GET && has_token(&parts.headers, &header::UPGRADE, "websocket")
}

fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    list(headers, name).any(|one| one.eq_ignore_ascii_case(token))
}

fn list<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let lines = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(str::trim).filter(|one| !one.is_empty())
}

/// A WebSocket is needed on this route.
pub(super) fn needed() -> Reply {
    let mut refusal = Refusal::from(Code::BadRequest);
    refusal.status = Some(StatusCode::UPGRADE_REQUIRED.as_u16());
    let mut reply = respond::refusal(Shape::Native, &refusal);
    reply.headers_mut().insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    reply
}

/// Checks the upgrade and starts `session` on it.
pub(super) fn start<S, F>(ctx: &Ctx, parts: &mut Parts, subprotocol: &'static str, room: Room, session: S) -> Reply
where
    S: FnOnce(Ctx, Reader, Outbox) -> F + Send + 'static,
    F: Future<Output = Goodbye> + Send,
{
    begin(ctx, parts, subprotocol, room, move |ctx, reader, writer| async move {
        let (out, rx) = Outbox::new(room.messages);
        let writer = AbortOnDropHandle::new(tokio::spawn(write(ctx.clone(), writer, rx, reader.sign())));
        frames::hold(ctx, reader, out, writer, session).await;
    })
}

/// The same for a session that writes by itself: what it is sent next is decided when what was sent is
/// written, and no other task is woken for it.
pub(super) fn start_direct<S, F>(
    ctx: &Ctx,
    parts: &mut Parts,
    subprotocol: &'static str,
    room: Room,
    session: S,
) -> Reply
where
    S: FnOnce(Ctx, Reader, Direct) -> F + Send + 'static,
    F: Future<Output = (Goodbye, Direct)> + Send,
{
    begin(ctx, parts, subprotocol, room, move |ctx, reader, writer| async move {
        let rest = reader.rest();
        let (goodbye, direct) = session(ctx.clone(), reader, Direct::new(&ctx, writer)).await;
        let lingers = !matches!(goodbye, Goodbye::Left);
        let (told, stalled) = direct.farewell(&ctx, goodbye).await;
        if lingers && stalled.is_none() {
            let _ = ctx.within(frames::LINGER, rest).await;
        }
        ctx.ticket.ended(told.or(stalled));
    })
}

fn begin<S, F>(ctx: &Ctx, parts: &mut Parts, subprotocol: &'static str, room: Room, session: S) -> Reply
where
    S: FnOnce(Ctx, Reader, Writer<Io>) -> F + Send + 'static,
    F: Future<Output = ()> + Send,
{
    let (reply, upgrade) = match accept(ctx, parts, subprotocol) {
        Ok(accepted) => accepted,
        Err(code) => return respond::refusal(Shape::Native, &code.into()),
    };
    let (ctx, cut) = (ctx.clone(), ctx.cut.clone());
    let tasks = ctx.tasks.clone();
    tasks.spawn(async move {
        let mut cut = Rare::new(Box::pin(cut.cancelled()));
        tokio::select! {
            biased;
            () = &mut cut => {}
            () = Box::pin(run(ctx, upgrade, room, session)) => {}
        }
    });
    reply
}

fn accept(ctx: &Ctx, parts: &mut Parts, subprotocol: &'static str) -> Result<(Reply, OnUpgrade), Code> {
    if cors::allowed(ctx, &parts.headers) == Some(false) {
        return Err(Code::OriginNotAllowed);
    }
    if ctx.drain.is_cancelled() {
        return Err(Code::Draining);
    }
    let version = parts.headers.get(header::SEC_WEBSOCKET_VERSION).map(HeaderValue::as_bytes);
    if version != Some(b"13") {
        return Err(Code::BadRequest);
    }
    if !list(&parts.headers, &header::SEC_WEBSOCKET_PROTOCOL).any(|one| one == subprotocol) {
        return Err(Code::UnsupportedProtocol);
    }
    let mut reply = if parts.method == Method::CONNECT {
        respond::empty(StatusCode::OK)
    } else {
        let key = parts.headers.get(header::SEC_WEBSOCKET_KEY).ok_or(Code::BadRequest)?;
        if !has_token(&parts.headers, &header::CONNECTION, "upgrade") || key.len() != 24 {
            return Err(Code::BadRequest);
        }
        let accept = HeaderValue::from_str(&derive_accept_key(key.as_bytes())).map_err(|_| Code::BadRequest)?;
        let mut reply = respond::empty(StatusCode::SWITCHING_PROTOCOLS);
        reply.headers_mut().insert(header::SEC_WEBSOCKET_ACCEPT, accept);
        reply.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        reply.headers_mut().insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        reply
    };
    let upgrade = parts.extensions.remove::<OnUpgrade>().ok_or(Code::BadRequest)?;
    reply.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(subprotocol));
    Ok((reply, upgrade))
}

async fn run<S, F>(ctx: Ctx, upgrade: OnUpgrade, room: Room, session: S)
where
    S: FnOnce(Ctx, Reader, Writer<Io>) -> F,
    F: Future<Output = ()>,
{
    // In a box of its own, which is let go: the session may last for hours.
    let Some((reader, writer)) = Box::pin(halves(&ctx, upgrade, room)).await else { return };
    let _open = Open::new(&ctx);
    Box::pin(session(ctx.clone(), reader, writer)).await;
    let ending = ByEnding { route: ctx.ticket.route, code: CodeLabel(ctx.ticket.code()) };
    ctx.shared.metrics.ingress.websocket_sessions_ended.get_or_create(&ending).inc();
}

/// The two halves of the socket, once the upgrade is done.
async fn halves(ctx: &Ctx, upgrade: OnUpgrade, room: Room) -> Option<(Reader, Writer<Io>)> {
    let upgraded = ctx.within(ctx.limits.header_timeout, upgrade).await?.ok()?;
    let config = WebSocketConfig::default()
        .read_buffer_size(room.read_buffer)
        .write_buffer_size(0)
        .max_write_buffer_size(REPLY_BUFFER)
        .max_message_size(Some(MAX_MESSAGE))
        .max_frame_size(Some(MAX_MESSAGE));
    let sign = Sign::new(ctx.shared.clock.clone());
    let io = Stalling::new(TokioIo::new(upgraded), ctx.limits.idle_timeout).heard_by(Arc::clone(&sign));
    let (listening, writer) = Listening::split(io);
    let socket: Socket = WebSocketStream::from_raw_socket(listening, Role::Server, Some(config)).await;
    Some((Reader::Socket(Messages::new(ctx.clone(), socket, sign)), writer))
}

/// Counts a session while it is open.
struct Open(Ctx);

impl Open {
    fn new(ctx: &Ctx) -> Self {
        ctx.shared.metrics.ingress.websocket_sessions.get_or_create(&ByRoute { route: ctx.ticket.route }).inc();
        Self(ctx.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let route = ByRoute { route: self.0.ticket.route };
        self.0.shared.metrics.ingress.websocket_sessions.get_or_create(&route).dec();
    }
}

/// Writes what comes, and a ping when the peer gave no sign of life by itself. Ends with a code if the
/// peer took nothing for too long.
async fn write(
    ctx: Ctx,
    mut writer: Writer<Io>,
    mut rx: mpsc::Receiver<Out>,
    heard: Option<Arc<Sign>>,
) -> Option<Code> {
    let ping_every = ctx.limits.idle_timeout / 3;
    let mut ping = Box::pin(ctx.shared.clock.sleep(ping_every));
    let replies = Arc::clone(&writer.replies);
    let mut held = None;
    loop {
        let out = match held.take() {
            Some(out) => Ok(out),
            None => tokio::select! {
                out = rx.recv() => Ok(out?),
                () = replies.some() => Err(Own::Reply),
                () = &mut ping => Err(Own::Ping),
            },
        };
        let sent = match out {
            Err(Own::Reply) => writer.replies().await,
            Err(Own::Ping) => {
                let silent = heard.as_ref().map_or(ping_every, |heard| heard.silent_for());
                let rest = ping_every.saturating_sub(silent);
                ping = Box::pin(ctx.shared.clock.sleep(if rest.is_zero() { ping_every } else { rest }));
                if rest.is_zero() { writer.ping().await } else { Ok(()) }
            }
            Ok(Out::Message(first)) => {
                let message = frames::join(first, &mut rx, &mut held);
                writer.messages([message.into()]).await
            }
            Ok(Out::Batch(batch)) => writer.messages(batch).await,
            Ok(Out::Close(code)) => {
                let _ = writer.close(code).await;
                return None;
            }
        };
        if let Err(error) = sent {
            return gave_up(&error);
        }
    }
}

fn gave_up(error: &std::io::Error) -> Option<Code> {
    (error.kind() == std::io::ErrorKind::TimedOut).then_some(Code::ContactTooSlow)
}

/// What is written by itself.
enum Own {
    Reply,
    Ping,
}

/// The messages of a socket.
pub(super) struct Messages {
    pub(super) ctx: Ctx,
    stream: Arc<tokio::sync::Mutex<Socket>>,
    /// When the peer last gave a sign of life: any byte is one. A message may take minutes on a thin
    /// link, and no pong comes in the middle of it.
    pub(super) sign: Arc<Sign>,
    received: Counter,
    /// Of the last message, what was not taken yet.
    rest: Bytes,
}

impl Messages {
    fn new(ctx: Ctx, stream: Socket, sign: Arc<Sign>) -> Self {
        let received = ctx.received(Transport::Ws);
        Self { stream: Arc::new(tokio::sync::Mutex::new(stream)), sign, received, ctx, rest: Bytes::new() }
    }

    /// Frames of the next message; `None` when the peer left.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<Frame>>, Code> {
        loop {
            if !self.rest.is_empty() {
                let frames = frame::take_frames(&mut self.rest, frames::MAX_AT_ONCE);
                return frames.inspect_err(|_| self.rest.clear()).map(Some);
            }
            let idle = self.ctx.limits.idle_timeout;
            let left = idle.saturating_sub(self.sign.silent_for());
            let next = async { self.stream.lock().await.next().await };
            let Some(message) = self.ctx.within(left, next).await else {
                if self.sign.silent_for() < idle {
                    continue;
                }
                return Err(Code::BodyStalled);
            };
            // What was read while nobody waited for it counts from now.
            self.sign.give();
            match message {
                None => return Ok(None),
                Some(Ok(Message::Close(_))) => {
                    // Its echo; the writing half sends it.
                    let _ = self.stream.lock().await.flush().await;
                    return Ok(None);
                }
                Some(Ok(Message::Binary(bytes))) => {
                    self.received.inc_by(bytes.len() as u64);
                    self.rest = bytes;
                    if self.rest.is_empty() {
                        return Ok(Some(Vec::new()));
                    }
                }
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                Some(Ok(Message::Text(_)) | Err(Error::Protocol(_) | Error::Utf8(_))) => {
                    return Err(Code::ProtocolError);
                }
                Some(Err(Error::Capacity(_))) => return Err(Code::FrameTooLarge),
                Some(Err(_)) => return Ok(None),
            }
        }
    }

    /// Ends when the peer has closed, or is gone.
    pub(super) fn rest(&self) -> impl Future<Output = ()> + Send + use<> {
        let stream = Arc::clone(&self.stream);
        async move { while let Some(Ok(_)) = stream.lock().await.next().await {} }
    }
}
