//! The way of one chunk's bytes inside a `/capture` connection: from the reader, which must never
//! wait for a chunk, to the chunk's own task, which waits for the disk. Credit bounds what lies
//! between them.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use tokio::sync::Notify;

use crate::proto::Code;

/// Bytes of one chunk that may be on their way: 20 Mbit/s at 100 ms, for each chunk.
pub(super) const WINDOW: u64 = 256 * 1024;
/// Pieces smaller than this are joined, so that a peer that sends single bytes can't make the
/// queue cost more than its credit.
const SMALL: usize = 4 * 1024;

/// One chunk on its way.
#[derive(Default)]
pub(super) struct Lane {
    state: Mutex<State>,
    arrived: Notify,
}

#[derive(Default)]
struct State {
    phase: Phase,
    whole: VecDeque<Bytes>,
    tail: BytesMut,
}

#[derive(Default, Clone, Copy)]
enum Phase {
    /// Admission has not answered yet.
    #[default]
    Offered,
    /// `SEND` was said.
    Open { next: u64, credit: u64 },
    /// Nothing more is wanted; what was on its way is ignored.
    Closed,
}

impl Lane {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes are wanted from `offset` on, `credit` of them.
    pub(super) fn open(&self, offset: u64, credit: u64) {
        self.state().phase = Phase::Open { next: offset, credit };
    }

    /// Nothing more is wanted.
    pub(super) fn close(&self) {
        let mut state = self.state();
        *state = State { phase: Phase::Closed, ..State::default() };
    }

    /// More may come.
    pub(super) fn credit(&self, bytes: u64) {
        if let Phase::Open { credit, .. } = &mut self.state().phase {
            *credit += bytes;
        }
    }

    /// A `PIECE` came.
    pub(super) fn piece(&self, offset: u64, bytes: Bytes) -> Result<(), Code> {
        let mut state = self.state();
        match &mut state.phase {
            Phase::Offered => return Err(Code::ProtocolError),
            Phase::Closed => return Ok(()),
            Phase::Open { next, credit } => {
                let len = bytes.len() as u64;
                if offset != *next {
                    return Err(Code::OffsetMismatch);
                }
                *credit = credit.checked_sub(len).ok_or(Code::CreditExceeded)?;
                *next += len;
            }
        }
        if bytes.len() < SMALL {
            state.tail.extend_from_slice(&bytes);
        } else {
            state.flush_tail();
            state.whole.push_back(bytes);
        }
        drop(state);
        self.arrived.notify_one();
        Ok(())
    }

    /// The next bytes, in order. Cancel-safe.
    pub(super) async fn take(&self) -> Bytes {
        loop {
            if let Some(bytes) = self.state().pop() {
                return bytes;
            }
            // `notify_one` before this leaves a permit, so nothing that came is missed.
            self.arrived.notified().await;
        }
    }
}

impl State {
    fn flush_tail(&mut self) {
        if !self.tail.is_empty() {
            let tail = self.tail.split().freeze();
            self.whole.push_back(tail);
        }
    }

    fn pop(&mut self) -> Option<Bytes> {
        if self.whole.is_empty() {
            self.flush_tail();
        }
        self.whole.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn pieces_keep_to_their_order_and_their_credit() {
        let lane = Lane::default();
        assert_eq!(lane.piece(0, Bytes::from_static(b"x")), Err(Code::ProtocolError), "before SEND");
        lane.open(10, 4);
        assert_eq!(lane.piece(0, Bytes::from_static(b"x")), Err(Code::OffsetMismatch));
        assert_eq!(lane.piece(10, Bytes::from_static(b"abc")), Ok(()));
        assert_eq!(lane.piece(13, Bytes::from_static(b"de")), Err(Code::CreditExceeded));
        lane.credit(1);
        lane.close();
        assert_eq!(lane.piece(99, Bytes::from_static(b"late")), Ok(()), "what was on its way is ignored");
    }

    #[tokio::test]
    async fn a_waiting_taker_is_woken() {
        let lane = std::sync::Arc::new(Lane::default());
        lane.open(0, WINDOW);
        let taker = tokio::spawn({
            let lane = lane.clone();
            async move { lane.take().await }
        });
        tokio::task::yield_now().await;
        lane.piece(0, Bytes::from_static(b"now")).unwrap();
        assert_eq!(taker.await.unwrap(), "now");
    }

    proptest! {
        #[test]
        fn what_goes_in_comes_out_in_few_pieces(sizes in prop::collection::vec(1usize..9000, 1..40)) {
            let lane = Lane::default();
            let total: usize = sizes.iter().sum();
            lane.open(0, total as u64);
            let mut sent = Vec::new();
            for (i, size) in sizes.iter().enumerate() {
                let piece = vec![i as u8; *size];
                lane.piece(sent.len() as u64, Bytes::from(piece.clone())).unwrap();
                sent.extend(piece);
            }
            let mut state = lane.state();
            state.flush_tail();
            prop_assert!(state.whole.len() <= 2 * total / SMALL + 1);
            let got: Vec<u8> = std::iter::from_fn(|| state.pop()).flatten().collect();
            prop_assert_eq!(got, sent);
        }
    }
}
