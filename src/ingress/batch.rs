//! What a contact is sent, in messages and writes.

use std::collections::VecDeque;

use bytes::Bytes;

use super::frames::Bundle;
use crate::proto::varint;

/// Frames are joined up to this for one message or one piece of a body, so that a thin link
/// always has something whole soon.
const JOIN: usize = 32 * 1024;
/// Messages that are there already go out in one write up to this: two of [`JOIN`], and the small
/// frames behind them.
const BATCH: usize = 2 * JOIN + 4 * 1024;

/// The messages that go out next: one, and those behind it that fit into the same write.
pub(super) fn batch(waiting: &mut VecDeque<Bundle>) -> Vec<Bundle> {
    let mut batch = Vec::new();
    let mut room = BATCH;
    while let Some(next) = waiting.pop_front_if(|next| batch.is_empty() || next.len() <= room) {
        room = room.saturating_sub(next.len());
        batch.push(next);
    }
    batch
}

/// Joins frames to messages of whole frames of about [`JOIN`] bytes, without copying them. A frame may
/// come in several parts (its head, then bytes shared with other contacts).
pub(super) fn joined(frames: Vec<Bytes>) -> Vec<Bundle> {
    let mut messages = Vec::new();
    let mut message = Bundle::default();
    let mut missing = 0;
    for part in frames {
        missing = rest_of_frame(missing, &part);
        message.push(part);
        if missing == 0 && message.len() >= JOIN {
            messages.push(std::mem::take(&mut message));
        }
    }
    if message.len() > 0 {
        messages.push(message);
    }
    messages
}

/// How many bytes of the frame that `part` ends in are still to come, when `missing` were before
/// it.
fn rest_of_frame(mut missing: usize, part: &[u8]) -> usize {
    let mut part = part;
    loop {
        if missing >= part.len() {
            return missing - part.len();
        }
        part = &part[missing..];
        let (Some(_), Some(len)) = (varint::get(&mut part), varint::get(&mut part)) else { return 0 };
        missing = usize::try_from(len).unwrap_or(usize::MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::super::pour::gathered;
    use super::*;
    use crate::proto::frame::{Decoder, Piece, kind, split_message};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn messages_hold_whole_frames_however_they_come(
            pieces in prop::collection::vec((0usize..50_000, any::<bool>()), 0..12),
        ) {
            let mut parts = Vec::new();
            let mut wire = Vec::new();
            for (size, split) in &pieces {
                let bytes = vec![7; *size];
                let whole = Piece::encode(kind::PIECE, 3, 9, &bytes);
                wire.extend_from_slice(&whole);
                if *split {
                    parts.push(Piece::head(kind::PIECE, 3, 9, *size));
                    parts.push(Bytes::from(bytes));
                } else {
                    parts.push(whole);
                }
            }
            let messages = joined(parts.clone());
            let messages: Vec<_> = messages.into_iter().map(|message| Bytes::from(message.into_parts().concat())).collect();
            prop_assert!(messages.iter().all(|message| split_message(message.clone()).is_ok()));
            prop_assert_eq!(messages.concat(), wire.clone());
            prop_assert_eq!(gathered(parts).concat(), wire.clone());
            let mut decoder = Decoder::default();
            decoder.push(&wire);
            while decoder.next_frame().unwrap().is_some() {}
            prop_assert!(!decoder.pending());
        }
    }
}
