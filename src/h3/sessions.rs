//! Streams that a peer opens within a WebTransport session (draft-ietf-webtrans-http3, section 4.2).
//! Both they and requests are bidirectional; how a stream begins tells which it is, and h3 sees
//! requests alone.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf as _, BytesMut};
use futures_util::stream::{FuturesUnordered, Stream as _};
use quinn::VarInt;
use tokio::sync::mpsc;
use tokio_util::io::poll_read_buf;
use waystation_proto::varint;

use crate::adapter::{BidiStream, RecvStream};
use crate::frames::Frames;
use crate::orders::Orders;
use crate::send::SendStream;

/// How a stream of a session begins; its session's id follows.
const SESSION_STREAM: u64 = 0x41;
/// Streams of sessions that wait to be taken.
const MAX_WAITING: usize = 4;
/// `WT_BUFFERED_STREAM_REJECTED`: nobody takes streams of this session.
const REJECTED: u32 = 0x3994_bd84;

/// A bidirectional stream that the peer opened within a session, behind what it begins with.
pub struct SessionStream {
    /// The stream of the session's CONNECT.
    pub session: u64,
    /// To the peer.
    pub send: quinn::SendStream,
    /// From the peer.
    pub recv: RecvStream,
}

enum Sorted {
    Request(Box<BidiStream>),
    Session(Box<SessionStream>),
}

/// Streams of sessions as they come. In boxes: most connections have none, and each would keep room for 32 of them.
pub type SessionStreams = mpsc::Receiver<Box<SessionStream>>;

type Look = Pin<Box<dyn Future<Output = Sorted> + Send + Sync>>;

/// Tells streams of sessions from requests. A stream of which nothing came yet holds up no other.
pub(crate) struct Sorting {
    looking: FuturesUnordered<Look>,
    found: mpsc::Sender<Box<SessionStream>>,
    orders: Orders,
}

impl Sorting {
    pub(crate) fn new(orders: Orders) -> (Self, SessionStreams) {
        let (found, streams) = mpsc::channel(MAX_WAITING);
        (Self { looking: FuturesUnordered::new(), found, orders }, streams)
    }

    /// One more stream.
    pub(crate) fn look_at(&mut self, stream: (quinn::SendStream, quinn::RecvStream), quic: quinn::Connection) {
        self.looking.push(Box::pin(look(stream, quic, self.orders.clone())));
    }

    /// The next request.
    pub(crate) fn poll_request(&mut self, cx: &mut Context<'_>) -> Poll<BidiStream> {
        loop {
            match Pin::new(&mut self.looking).poll_next(cx) {
                Poll::Ready(Some(Sorted::Request(request))) => return Poll::Ready(*request),
                Poll::Ready(Some(Sorted::Session(stream))) => {
                    if let Err(refused) = self.found.try_send(stream) {
                        let mut stream = refused.into_inner();
                        let _ = stream.send.reset(VarInt::from_u32(REJECTED));
                    }
                }
                Poll::Ready(None) | Poll::Pending => return Poll::Pending,
            }
        }
    }
}

async fn look(
    (send, mut recv): (quinn::SendStream, quinn::RecvStream),
    quic: quinn::Connection,
    orders: Orders,
) -> Sorted {
    let mut buffer = BytesMut::new();
    loop {
        match beginning(&buffer) {
            Some(Some((session, head))) => {
                buffer.advance(head);
                let recv = RecvStream::begun(recv, buffer, Frames::unread(), quic, false);
                return Sorted::Session(Box::new(SessionStream { session, send, recv }));
            }
            Some(None) => {
                return request(
                    SendStream::of_answer(send, orders),
                    RecvStream::begun(recv, buffer, Frames::of_request(), quic, false),
                );
            }
            None => {}
        }
        let read = poll_fn(|cx| poll_read_buf(Pin::new(&mut recv), cx, &mut buffer)).await;
        if !matches!(read, Ok(1..)) {
            // What there is of it is h3's to judge.
            let ended = read.is_ok();
            return request(
                SendStream::of_answer(send, orders),
                RecvStream::begun(recv, buffer, Frames::of_request(), quic, ended),
            );
        }
    }
}

fn request(send: SendStream, recv: RecvStream) -> Sorted {
    Sorted::Request(Box::new(BidiStream::of(send, recv)))
}

/// What a stream's first bytes say: a session's id and how long its head is, or that it is none;
/// `None`: too few to tell.
fn beginning(bytes: &[u8]) -> Option<Option<(u64, usize)>> {
    let mut rest = bytes;
    if varint::get(&mut rest)? != SESSION_STREAM {
        return Some(None);
    }
    let session = varint::get(&mut rest)?;
    Some(Some((session, bytes.len() - rest.len())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_known_by_how_it_begins() {
        assert_eq!(beginning(&[]), None);
        assert_eq!(beginning(&[0x01]), Some(None), "HEADERS");
        assert_eq!(beginning(&[0x21, 0x00]), Some(None), "an unknown frame is h3's to skip");
        assert_eq!(beginning(&[0x40]), None);
        assert_eq!(beginning(&[0x40, 0x41]), None, "the session is not known yet");
        assert_eq!(beginning(&[0x40, 0x41, 0x04, 0xff]), Some(Some((4, 3))));
        assert_eq!(beginning(&[0x40, 0x41, 0x41, 0x00]), Some(Some((256, 4))));
    }
}
