//! What waits to be written.

use bytes::{Bytes, BytesMut};

/// A piece as large as this is kept as it is until it is written.
const KEPT_PIECE: usize = 8 * 1024;

/// Bytes that are not written yet, in the pieces in which they came: what is large is not copied
/// before the disk takes it.
#[derive(Default)]
pub(super) struct Gathered {
    pieces: Vec<Bytes>,
    /// Small pieces, joined: each one that is kept by itself costs an entry and the read buffer
    /// that it lies in.
    small: BytesMut,
    len: usize,
}

impl Gathered {
    pub(super) fn push(&mut self, bytes: Bytes) {
        self.len += bytes.len();
        if bytes.len() < KEPT_PIECE {
            self.small.extend_from_slice(&bytes);
        } else {
            self.flush_small();
            self.pieces.push(bytes);
        }
    }

    pub(super) const fn len(&self) -> usize {
        self.len
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn flush_small(&mut self) {
        if !self.small.is_empty() {
            self.pieces.push(std::mem::take(&mut self.small).freeze());
        }
    }

    /// Everything, in order; nothing is gathered then.
    pub(super) fn take(&mut self) -> Vec<Bytes> {
        self.flush_small();
        std::mem::take(self).pieces
    }

    pub(super) fn copy_to(&self, out: &mut Vec<u8>) {
        self.pieces.iter().for_each(|piece| out.extend_from_slice(piece));
        out.extend_from_slice(&self.small);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn pieces_of_any_size_keep_their_order(
            sizes in proptest::collection::vec(prop_oneof![0..200_usize, KEPT_PIECE - 1..KEPT_PIECE + 2], 0..12),
        ) {
            let mut gathered = Gathered::default();
            let mut all = Vec::new();
            for (number, size) in sizes.into_iter().enumerate() {
                let piece = vec![number as u8; size];
                all.extend_from_slice(&piece);
                gathered.push(piece.into());
                prop_assert_eq!(gathered.len(), all.len());
            }
            let mut copy = Vec::new();
            gathered.copy_to(&mut copy);
            prop_assert_eq!(&copy, &all);
            prop_assert_eq!(gathered.take().concat(), all);
            prop_assert!(gathered.is_empty() && gathered.take().is_empty());
        }
    }

    #[test]
    fn a_large_piece_is_not_copied() {
        let mut gathered = Gathered::default();
        let large = Bytes::from(vec![1; KEPT_PIECE]);
        let at = large.as_ptr();
        gathered.push(large);
        assert_eq!(gathered.take()[0].as_ptr(), at);
    }
}
