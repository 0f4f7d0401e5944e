//! The sending half of a stream: one that is dropped before its end is reset, never finished.

use std::future::Future as _;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use h3::quic::{self, ConnectionErrorIncoming, StreamErrorIncoming, StreamId, WriteBuf};
use quinn::VarInt;

use crate::adapter::{stream_id, varint};
use crate::errors::write_error;
use crate::orders::Orders;

/// `H3_INTERNAL_ERROR`: what a request's stream ends with unless it is finished.
const INTERNAL_ERROR: u32 = 0x102;

/// The sending half of a stream.
pub struct SendStream {
    stream: quinn::SendStream,
    writing: Option<WriteBuf<Bytes>>,
    /// The same memory as the rest of what `writing` carries behind its head.
    shared: Bytes,
    /// Where its priority is left, and what need not be copied.
    orders: Option<Orders>,
    /// Its priority was taken.
    ordered: bool,
    /// Whether dropping it now must tell the peer that this is not the end.
    guarded: bool,
}

impl SendStream {
    pub(crate) const fn new(stream: quinn::SendStream, guarded: bool) -> Self {
        Self { stream, writing: None, shared: Bytes::new(), orders: None, ordered: false, guarded }
    }

    pub(crate) fn of_request(stream: quinn::SendStream) -> Self {
        Self::new(stream, true)
    }

    pub(crate) fn of_answer(stream: quinn::SendStream, orders: Orders) -> Self {
        orders.watch(stream_id(stream.id()), Box::pin(stream.stopped()));
        let mut answer = Self::new(stream, true);
        answer.orders = Some(orders);
        answer
    }

    fn take_order(&mut self) {
        let id = stream_id(self.stream.id());
        let Some(priority) = self.orders.as_ref().filter(|_| !self.ordered).and_then(|orders| orders.priority(id))
        else {
            return;
        };
        // A stream that is closed already has nothing to order.
        let _ = self.stream.set_priority(priority);
        self.ordered = true;
    }

    /// Writes some of `data`. What others are sent too goes from where it lies, with the head before it.
    fn poll_some(&mut self, cx: &mut Context<'_>, data: &WriteBuf<Bytes>) -> Poll<Result<usize, quinn::WriteError>> {
        let head = data.chunk();
        let lies_here = std::ptr::eq(head, self.shared.as_ref());
        if self.shared.is_empty() || !(lies_here || data.remaining() == head.len() + self.shared.len()) {
            return Pin::new(&mut self.stream).poll_write(cx, head);
        }
        let head = if lies_here { Bytes::new() } else { Bytes::copy_from_slice(head) };
        let before = head.len();
        let mut parts = [head, self.shared.clone()];
        let parts = if before == 0 { &mut parts[1..] } else { &mut parts[..] };
        // Whoever waits for room is known to the stream: dropping this loses nothing.
        let written = ready!(pin!(self.stream.write_chunks(parts)).poll(cx))?.bytes;
        self.shared.advance(written.saturating_sub(before));
        Poll::Ready(Ok(written))
    }
}

impl quic::SendStream<Bytes> for SendStream {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        if self.writing.is_some() {
            self.take_order();
        }
        while let Some(mut data) = self.writing.take_if(|data| data.has_remaining()) {
            let polled = self.poll_some(cx, &data);
            if let Poll::Ready(Ok(written)) = &polled {
                data.advance(*written);
            }
            self.writing = Some(data);
            ready!(polled).map_err(write_error)?;
        }
        self.writing = None;
        self.shared = Bytes::new();
        Poll::Ready(Ok(()))
    }

    fn send_data<T: Into<WriteBuf<Bytes>>>(&mut self, data: T) -> Result<(), StreamErrorIncoming> {
        if self.writing.is_some() {
            let connection_error = ConnectionErrorIncoming::InternalError("a write is under way".into());
            return Err(StreamErrorIncoming::ConnectionErrorIncoming { connection_error });
        }
        self.writing = Some(data.into());
        let id = stream_id(self.stream.id());
        self.shared = self.orders.as_ref().and_then(|orders| orders.shared(id)).unwrap_or_default();
        Ok(())
    }

    fn poll_finish(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        self.guarded = false;
        Poll::Ready(self.stream.finish().map_err(|error| StreamErrorIncoming::Unknown(Box::new(error))))
    }

    fn reset(&mut self, reset_code: u64) {
        self.guarded = false;
        let _ = self.stream.reset(varint(reset_code));
    }

    fn send_id(&self) -> StreamId {
        stream_id(self.stream.id())
    }
}

impl Drop for SendStream {
    fn drop(&mut self) {
        self.take_order();
        if let Some(orders) = &self.orders {
            orders.forget(stream_id(self.stream.id()));
        }
        // quinn finishes a dropped stream, and a cut-off answer would look whole.
        if self.guarded {
            let _ = self.stream.reset(VarInt::from_u32(INTERNAL_ERROR));
        }
    }
}
