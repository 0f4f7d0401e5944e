//! The way of one chunk's bytes inside a `/capture` connection: from the reader, which must never
//! wait for a chunk, to the chunk's own task, which waits for the disk. Credit bounds what lies
//! between them.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

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
    /// Room of the connection that early pieces take until admission has answered.
    early: Option<OwnedSemaphorePermit>,
}

#[derive(Clone, Copy)]
enum Phase {
    /// Admission has not answered yet; so far came early.
    Offered { next: u64 },
    /// `SEND` was said. What was sent before the client heard it goes on from `early`.
    Open { next: u64, credit: u64, early: Option<u64> },
    /// Nothing more is wanted; what was on its way is ignored.
    Closed,
}

impl Default for Phase {
    fn default() -> Self {
        Self::Offered { next: 0 }
    }
}

impl Lane {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes are wanted from `offset` on, `credit` of them. What came early counts.
    ///
    /// # Errors
    /// `CreditExceeded`: more came early than there is.
    pub(super) fn open(&self, offset: u64, credit: u64) -> Result<(), Code> {
        let mut state = self.state();
        state.early = None;
        let came = if let Phase::Offered { next } = state.phase { next } else { 0 };
        let credit = credit.checked_sub(came.saturating_sub(offset)).ok_or(Code::CreditExceeded)?;
        state.skip(offset.min(came));
        state.phase = Phase::Open { next: came.max(offset), credit, early: Some(came) };
        Ok(())
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

    /// A `PIECE` came; before `SEND` it takes of the connection's `early` room.
    pub(super) fn piece(&self, offset: u64, mut bytes: Bytes, early: &Arc<Semaphore>) -> Result<(), Code> {
        let mut state = self.state();
        let State { phase, early: taken, .. } = &mut *state;
        match phase {
            Phase::Closed => return Ok(()),
            Phase::Offered { next } => {
                if offset != *next {
                    return Err(Code::OffsetMismatch);
                }
                let room = u32::try_from(bytes.len()).map_err(|_| Code::CreditExceeded)?;
                let room = Arc::clone(early).try_acquire_many_owned(room).map_err(|_| Code::CreditExceeded)?;
                match taken {
                    Some(taken) => taken.merge(room),
                    None => *taken = Some(room),
                }
                *next += bytes.len() as u64;
            }
            Phase::Open { next, credit, early } => {
                if offset == *next {
                    *early = None;
                } else if Some(offset) == *early && offset < *next {
                    // It is held already, or part of it is.
                    *early = Some(offset + bytes.len() as u64);
                    bytes.advance(bytes.len().min(usize::try_from(*next - offset).unwrap_or(usize::MAX)));
                } else {
                    return Err(Code::OffsetMismatch);
                }
                let len = bytes.len() as u64;
                *credit = credit.checked_sub(len).ok_or(Code::CreditExceeded)?;
                *next += len;
            }
        }
        // What waits for an answer keeps nothing else of its message.
        if bytes.len() < SMALL || state.early.is_some() {
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
    /// Drops the first bytes of what came.
    fn skip(&mut self, mut bytes: u64) {
        self.flush_tail();
        while let Some(first) = self.whole.front_mut() {
            let drop = first.len().min(usize::try_from(bytes).unwrap_or(usize::MAX));
            bytes -= drop as u64;
            first.advance(drop);
            if !first.is_empty() {
                return;
            }
            self.whole.pop_front();
        }
    }

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
    use crate::ingress::conn::EARLY;
    use proptest::prelude::*;

    #[test]
    fn pieces_keep_to_their_order_and_their_credit() {
        let (lane, early, far) = (Lane::default(), room(), EARLY as u64);
        lane.open(far + 10, 4).unwrap();
        assert_eq!(lane.piece(1, Bytes::from_static(b"x"), &early), Err(Code::OffsetMismatch));
        assert_eq!(lane.piece(far + 11, Bytes::from_static(b"x"), &early), Err(Code::OffsetMismatch));
        assert_eq!(lane.piece(far + 10, Bytes::from_static(b"abc"), &early), Ok(()));
        assert_eq!(lane.piece(0, Bytes::from_static(b"x"), &early), Err(Code::OffsetMismatch), "nothing came early");
        assert_eq!(lane.piece(far + 13, Bytes::from_static(b"de"), &early), Err(Code::CreditExceeded));
        lane.credit(1);
        lane.close();
        assert_eq!(lane.piece(99, Bytes::from_static(b"late"), &early), Ok(()), "what was on its way is ignored");
    }

    #[test]
    fn what_comes_before_send_has_so_much_room_in_all() {
        let (first, second, early) = (Lane::default(), Lane::default(), room());
        assert_eq!(
            first.piece(1, Bytes::from_static(b"x"), &early),
            Err(Code::OffsetMismatch),
            "from the first byte on"
        );
        assert_eq!(first.piece(0, vec![0; EARLY - 1].into(), &early), Ok(()));
        assert_eq!(second.piece(0, Bytes::from_static(b"ab"), &early), Err(Code::CreditExceeded));
        assert_eq!(second.piece(0, Bytes::from_static(b"a"), &early), Ok(()));
        first.open(0, WINDOW).unwrap();
        assert_eq!(early.available_permits(), EARLY - 1);
        assert_eq!(second.open(0, 0), Err(Code::CreditExceeded), "a chunk of no bytes");
        second.close();
        assert_eq!(early.available_permits(), EARLY);
    }

    #[tokio::test]
    async fn what_came_early_is_passed_over_as_far_as_it_was_held() {
        for held in 0..12 {
            let (lane, early) = (Lane::default(), room());
            lane.piece(0, Bytes::from_static(b"abcd"), &early).unwrap();
            lane.open(held, 12 - held).unwrap();
            // These were on their way when SEND was said; then the client hears it.
            lane.piece(4, Bytes::from_static(b"ef"), &early).unwrap();
            lane.piece(6, Bytes::from_static(b"gh"), &early).unwrap();
            let from = held.max(8);
            lane.piece(from, Bytes::from(&b"abcdefghijkl"[from as usize..]), &early).unwrap();
            let mut got = Vec::new();
            while got.len() < 12 - held as usize {
                got.extend(lane.take().await);
            }
            assert_eq!(got, b"abcdefghijkl"[held as usize..], "held to {held}");
        }
    }

    fn room() -> Arc<Semaphore> {
        Arc::new(Semaphore::new(EARLY))
    }

    #[tokio::test]
    async fn a_waiting_taker_is_woken() {
        let lane = Arc::new(Lane::default());
        lane.open(0, WINDOW).unwrap();
        let taker = tokio::spawn({
            let lane = lane.clone();
            async move { lane.take().await }
        });
        tokio::task::yield_now().await;
        lane.piece(0, Bytes::from_static(b"now"), &room()).unwrap();
        assert_eq!(taker.await.unwrap(), "now");
    }

    proptest! {
        #[test]
        fn what_goes_in_comes_out_in_few_pieces(sizes in prop::collection::vec(1usize..9000, 1..40)) {
            let lane = Lane::default();
            let total: usize = sizes.iter().sum();
            lane.open(0, total as u64).unwrap();
            let mut sent = Vec::new();
            for (i, size) in sizes.iter().enumerate() {
                let piece = vec![i as u8; *size];
                lane.piece(sent.len() as u64, Bytes::from(piece.clone()), &room()).unwrap();
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
