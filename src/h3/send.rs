//! The sending half of a stream: one that is dropped before its end is reset, never finished.

use std::pin::Pin;
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
    /// Where its priority is left, until it was taken.
    orders: Option<Orders>,
    /// Whether dropping it now must tell the peer that this is not the end.
    guarded: bool,
}

impl SendStream {
    pub(crate) const fn new(stream: quinn::SendStream, guarded: bool) -> Self {
        Self { stream, writing: None, orders: None, guarded }
    }

    pub(crate) fn of_request(stream: quinn::SendStream) -> Self {
        Self::new(stream, true)
    }

    pub(crate) fn of_answer(stream: quinn::SendStream, orders: Orders) -> Self {
        Self { stream, writing: None, orders: Some(orders), guarded: true }
    }

    fn take_order(&mut self) {
        let Some(priority) = self.orders.as_ref().and_then(|orders| orders.take(stream_id(self.stream.id()))) else {
            return;
        };
        // A stream that is closed already has nothing to order.
        let _ = self.stream.set_priority(priority);
        self.orders = None;
    }
}

impl quic::SendStream<Bytes> for SendStream {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        if self.writing.is_some() {
            self.take_order();
        }
        while let Some(data) = self.writing.as_mut().filter(|data| data.has_remaining()) {
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, data.chunk())).map_err(write_error)?;
            data.advance(written);
        }
        self.writing = None;
        Poll::Ready(Ok(()))
    }

    fn send_data<T: Into<WriteBuf<Bytes>>>(&mut self, data: T) -> Result<(), StreamErrorIncoming> {
        if self.writing.is_some() {
            let connection_error = ConnectionErrorIncoming::InternalError("a write is under way".into());
            return Err(StreamErrorIncoming::ConnectionErrorIncoming { connection_error });
        }
        self.writing = Some(data.into());
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
        // quinn finishes a dropped stream, and a cut-off answer would look whole.
        if self.guarded {
            let _ = self.stream.reset(VarInt::from_u32(INTERNAL_ERROR));
        }
    }
}
