//! A contact over WebTransport, by hand over QUIC streams: what is said comes on one, each chunk on another.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use h3::ext::Protocol;
use http::{Method, Request};
use waystation_proto::varint;

use super::follower::Follower;
use super::wire::Frames;
use crate::Failure;
use crate::link;
use crate::rig::Rig;

/// How streams of a session begin (draft-ietf-webtrans-http3, sections 4.2 and 4.3): those of both
/// directions, those of one.
const STREAMS: (u64, u64) = (0x41, 0x54);

const BROKEN: Failure = Failure::Wire("a contact's session broke");

type Accepting = Pin<Box<dyn Future<Output = Result<quinn::RecvStream, quinn::ConnectionError>> + Send>>;

/// A session whose contact has said what it wants.
pub(super) struct Session {
    connection: quinn::Connection,
    told: Incoming,
    accepting: Accepting,
    /// What every stream of a chunk begins with.
    head: Bytes,
    chunks: Vec<Incoming>,
    _kept: Kept,
}

/// What keeps a session open.
struct Kept {
    _control: quinn::SendStream,
    _connect: h3::client::RequestStream<waystation_h3::BidiStream, Bytes>,
    _requests: h3::client::SendRequest<waystation_h3::Opener, Bytes>,
    _driver: h3::client::Connection<waystation_h3::Connection, Bytes>,
    _socket: quinn::Endpoint,
}

/// A stream that is read.
struct Incoming {
    stream: quinn::RecvStream,
    /// What is still to come before its frames.
    head: Bytes,
    /// It began otherwise, and is HTTP/3's own: it is kept, and not read.
    other: bool,
    frames: Frames,
}

enum Came {
    /// Bytes; whether the subscription goes on.
    Bytes(bool),
    End,
}

impl Session {
    /// Opens one, and says this on its first stream.
    pub(super) async fn open(rig: &Rig, path: &str, says: &[u8]) -> Result<Self, Failure> {
        let (socket, connection) = link::quic(rig).await?;
        // Its driver is never polled: it would take the session's streams for its own.
        let streams = waystation_h3::Connection::new(connection.clone());
        let mut builder = h3::client::builder();
        let (driver, mut requests) = builder.send_grease(false).build(streams).await.map_err(|_| BROKEN)?;
        let request = Request::builder().method(Method::CONNECT).uri(format!("https://{}{path}", rig.public));
        let request = request.extension(Protocol::WEB_TRANSPORT).body(()).map_err(|_| BROKEN)?;
        let mut connect = requests.send_request(request).await.map_err(|_| BROKEN)?;
        let session = connect.id().into_inner();
        if !connect.recv_response().await.map_err(|_| BROKEN)?.status().is_success() {
            return Err(Failure::Wire("the relay refused a session"));
        }
        let (mut control, answers) = connection.open_bi().await.map_err(|_| BROKEN)?;
        control.write_all(&head(STREAMS.0, session)).await.map_err(|_| BROKEN)?;
        control.write_all(says).await.map_err(|_| BROKEN)?;
        Ok(Self {
            told: Incoming::new(answers, Bytes::new()),
            accepting: accepting(&connection),
            head: head(STREAMS.1, session),
            chunks: Vec::new(),
            connection,
            _kept: Kept { _control: control, _connect: connect, _requests: requests, _driver: driver, _socket: socket },
        })
    }

    /// Takes what is there, on any stream. Returns whether the subscription goes on.
    pub(super) async fn step(&mut self, buffer: &mut [u8], follower: &mut Follower) -> Result<bool, Failure> {
        poll_fn(|cx| self.poll_step(cx, buffer, follower)).await
    }

    fn poll_step(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
        follower: &mut Follower,
    ) -> Poll<Result<bool, Failure>> {
        while let Poll::Ready(accepted) = self.accepting.as_mut().poll(cx) {
            self.chunks.push(Incoming::new(accepted.map_err(|_| BROKEN)?, self.head.clone()));
            self.accepting = accepting(&self.connection);
        }
        match self.told.poll_take(cx, buffer, follower)? {
            Poll::Ready(Came::Bytes(on)) => return Poll::Ready(Ok(on)),
            Poll::Ready(Came::End) => return Poll::Ready(Ok(false)),
            Poll::Pending => {}
        }
        let mut at = 0;
        while let Some(chunk) = self.chunks.get_mut(at) {
            match chunk.poll_take(cx, buffer, follower)? {
                Poll::Ready(Came::Bytes(on)) => return Poll::Ready(Ok(on)),
                Poll::Ready(Came::End) => drop(self.chunks.remove(at)),
                Poll::Pending => at += 1,
            }
        }
        Poll::Pending
    }
}

impl Incoming {
    fn new(stream: quinn::RecvStream, head: Bytes) -> Self {
        Self { stream, head, other: false, frames: Frames::default() }
    }

    fn poll_take(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
        follower: &mut Follower,
    ) -> Result<Poll<Came>, Failure> {
        while !self.other {
            let read = match self.stream.poll_read(cx, buffer) {
                Poll::Pending => break,
                // A chunk that was left out: the relay says so in words too.
                Poll::Ready(Ok(0) | Err(quinn::ReadError::Reset(_))) => return Ok(Poll::Ready(Came::End)),
                Poll::Ready(Err(_)) => return Err(BROKEN),
                Poll::Ready(Ok(read)) => read,
            };
            let begins = read.min(self.head.len());
            self.other = self.head.split_to(begins) != buffer[..begins];
            if !self.other && read > begins {
                return Ok(Poll::Ready(Came::Bytes(self.frames.take(&buffer[begins..read], follower)?)));
            }
        }
        Ok(Poll::Pending)
    }
}

fn accepting(connection: &quinn::Connection) -> Accepting {
    let connection = connection.clone();
    Box::pin(async move { connection.accept_uni().await })
}

fn head(kind: u64, session: u64) -> Bytes {
    let mut head = BytesMut::new();
    varint::put(&mut head, kind);
    varint::put(&mut head, session);
    head.freeze()
}
