//! A WebTransport session as a contact opens it, by hand over QUIC streams.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use h3::ext::Protocol;
use http::{HeaderMap, Method, Request, StatusCode};
use tokio_util::io::poll_read_buf;
use waystation_proto::frame::{self, Decoder, Frame, kind};
use waystation_proto::message::ChunkBegins;
use waystation_proto::{Variant, varint};

use crate::wire::admitted;
use crate::world::World;

/// How streams of a session begin: those of both directions, those of one.
const STREAMS: (u64, u64) = (0x41, 0x54);
/// The first of the codes with which an application resets its streams.
const FIRST_CODE: u64 = 0x52e4_a40f_a8db;

type Accepting = Pin<Box<dyn Future<Output = Result<quinn::RecvStream, quinn::ConnectionError>> + Send>>;

/// A session, and the stream on which its contact speaks.
pub struct Session {
    connection: quinn::Connection,
    control: quinn::SendStream,
    answers: Incoming,
    accepting: Accepting,
    chunks: Vec<Incoming>,
    /// Codes with which chunk streams were reset.
    pub resets: Vec<u64>,
    /// Chunks of this lane are left unread behind their `CHUNK`.
    pub unread: Option<Variant>,
    /// The stream of the session's CONNECT, and what keeps its connection.
    connect: h3::client::RequestStream<waystation_h3::BidiStream, Bytes>,
    _requests: h3::client::SendRequest<waystation_h3::Opener, Bytes>,
    _driver: h3::client::Connection<waystation_h3::Connection, Bytes>,
}

/// A stream that is read.
struct Incoming {
    stream: quinn::RecvStream,
    decoder: Decoder,
    /// What it must begin with, and how much of that came; streams that begin otherwise are HTTP/3's.
    head: Bytes,
    begun: BytesMut,
    lane: Option<Variant>,
}

impl Session {
    /// Opens a session; else the status of the refusal.
    pub async fn open(world: &World, path: &str, headers: HeaderMap) -> Result<Self, StatusCode> {
        let connection = admitted(world).await;
        // Its driver is never polled: it would take the streams of the session for its own.
        let streams = waystation_h3::Connection::new(connection.clone());
        let (driver, mut requests) = h3::client::new(streams).await.unwrap();
        let mut request = Request::builder()
            .method(Method::CONNECT)
            .uri(format!("https://localhost{path}"))
            .extension(Protocol::WEB_TRANSPORT)
            .body(())
            .unwrap();
        *request.headers_mut() = headers;
        let mut connect = requests.send_request(request).await.unwrap();
        let session = connect.id().into_inner();
        let answer = connect.recv_response().await.unwrap();
        if answer.status() != StatusCode::OK {
            return Err(answer.status());
        }
        let (mut control, answers) = connection.open_bi().await.unwrap();
        control.write_all(&head(STREAMS.0, session)).await.unwrap();
        Ok(Self {
            accepting: accepting(&connection),
            connection,
            control,
            answers: Incoming::new(answers, Bytes::new()),
            chunks: Vec::new(),
            resets: Vec::new(),
            unread: None,
            connect,
            _requests: requests,
            _driver: driver,
        })
    }

    /// Says something on the control stream.
    pub async fn send(&mut self, frame: &[u8]) {
        self.control.write_all(frame).await.unwrap();
    }

    /// The next frame, of the control stream first, then of the chunk that began first; `None` at the
    /// control stream's end.
    pub async fn next(&mut self) -> Option<Frame> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// The capsule with which the relay ends the session.
    pub async fn close(&mut self) -> Bytes {
        let mut said = BytesMut::new();
        while let Some(data) = self.connect.recv_data().await.unwrap() {
            said.extend_from_slice(bytes::Buf::chunk(&data));
        }
        said.freeze()
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Frame>> {
        match self.answers.poll_frame(cx) {
            Poll::Ready(Came::Frame(frame)) => return Poll::Ready(Some(frame)),
            Poll::Ready(_) => return Poll::Ready(None),
            Poll::Pending => {}
        }
        while let Poll::Ready(Ok(stream)) = self.accepting.as_mut().poll(cx) {
            self.chunks.push(Incoming::new(stream, head(STREAMS.1, self.connect.id().into_inner())));
            self.accepting = accepting(&self.connection);
        }
        let mut at = 0;
        while let Some(chunk) = self.chunks.get_mut(at) {
            if chunk.lane.is_some() && chunk.lane == self.unread {
                at += 1;
                continue;
            }
            match chunk.poll_frame(cx) {
                Poll::Ready(Came::Frame(frame)) if frame.kind == kind::CHUNK => {
                    chunk.lane = frame::control::<ChunkBegins>(&frame).ok().map(|begins| begins.variant);
                    return Poll::Ready(Some(frame));
                }
                Poll::Ready(Came::Frame(frame)) => return Poll::Ready(Some(frame)),
                Poll::Ready(Came::Other) | Poll::Pending => at += 1,
                Poll::Ready(came) => {
                    self.resets.extend(match came {
                        Came::Reset(code) => Some(code),
                        _ => None,
                    });
                    self.chunks.remove(at);
                }
            }
        }
        Poll::Pending
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.connection.close(0x100u32.into(), b"");
    }
}

enum Came {
    Frame(Frame),
    End,
    Reset(u64),
    /// It is not of the session.
    Other,
}

impl Incoming {
    fn new(stream: quinn::RecvStream, head: Bytes) -> Self {
        Self { stream, decoder: Decoder::default(), head, begun: BytesMut::new(), lane: None }
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Came> {
        loop {
            if self.begun.len() >= self.head.len() && !self.begun.starts_with(&self.head) {
                return Poll::Ready(Came::Other);
            }
            if let Some(frame) = self.decoder.next_frame().unwrap() {
                return Poll::Ready(Came::Frame(frame));
            }
            let mut read = BytesMut::new();
            match std::task::ready!(poll_read_buf(Pin::new(&mut self.stream), cx, &mut read)) {
                Ok(0) => {
                    assert!(!self.decoder.pending(), "a stream ends with a whole frame");
                    return Poll::Ready(Came::End);
                }
                Ok(_) => {
                    let missing = self.head.len().saturating_sub(self.begun.len()).min(read.len());
                    self.begun.extend_from_slice(&read.split_to(missing));
                    self.decoder.push(&read);
                }
                Err(error) => {
                    let reset = error.get_ref().and_then(|inner| inner.downcast_ref::<quinn::ReadError>());
                    return Poll::Ready(match reset {
                        Some(quinn::ReadError::Reset(code)) => Came::Reset(code.into_inner() - FIRST_CODE),
                        _ => Came::End,
                    });
                }
            }
        }
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
