//! What a connection has to write, and in which order.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Message;
use waystation_proto::frame::{Piece, kind};

use crate::capture::plan::Plan;
use crate::wsio;

/// Bytes of one piece: on a link of 500 kbit/s a chunk of sound waits a quarter of a second for it.
pub(super) const PIECE_BYTES: usize = 16 * 1024;

/// What waits to be written: control frames first, then the plan's next piece.
pub(super) struct Outbox {
    pub(super) control: VecDeque<Bytes>,
    pub(super) plan: Plan,
    pub(super) max_piece: usize,
    /// Handles of this connection and the chunks they are.
    pub(super) chunks: HashMap<u64, (u64, u64)>,
    /// Bytes that may still go before their `SEND`, and which chunks have some of them.
    early: u64,
    begun: HashMap<u64, u64>,
    pub(super) closing: bool,
    /// A question, by its number.
    pub(super) ping: Option<u32>,
    pub(super) last_written: Instant,
}

pub(super) enum Write {
    Message(Message),
    Piece { message: Message, last: Option<(u64, u64)> },
    Close,
    Nothing,
}

impl Outbox {
    /// A connection's, which begins with `hello`; so many bytes may go unasked.
    pub(super) fn new(hello: Bytes, early: u64) -> Self {
        Self {
            control: VecDeque::from([hello]),
            plan: Plan::new(),
            max_piece: PIECE_BYTES,
            chunks: HashMap::new(),
            early,
            begun: HashMap::new(),
            closing: false,
            ping: None,
            last_written: Instant::now(),
        }
    }

    /// A chunk's first bytes need not wait for `SEND`, as far as there is room and the relay can't
    /// hold any.
    pub(super) fn begin(&mut self, handle: u64, length: u64) {
        let bytes = self.early.min(length);
        if bytes > 0 {
            self.early -= bytes;
            self.begun.insert(handle, bytes);
            self.plan.early(handle, bytes);
        }
    }

    /// The relay has spoken of a chunk.
    pub(super) fn answered(&mut self, handle: u64) {
        self.early += self.begun.remove(&handle).unwrap_or_default();
    }

    pub(super) fn next(&mut self) -> Write {
        if let Some(frame) = self.control.pop_front() {
            self.last_written = Instant::now();
            return Write::Message(wsio::binary(frame));
        }
        if let Some(question) = self.ping.take() {
            return Write::Message(Message::Ping(Bytes::copy_from_slice(&question.to_be_bytes())));
        }
        if let Some(next) = self.plan.next_piece(self.max_piece) {
            self.last_written = Instant::now();
            let message = Piece::encode(kind::CAPTURE_PIECE, next.handle, next.offset, &next.bytes);
            let last = if next.last { self.chunks.get(&next.handle).copied() } else { None };
            return Write::Piece { message: wsio::binary(message), last };
        }
        if self.closing { Write::Close } else { Write::Nothing }
    }
}
