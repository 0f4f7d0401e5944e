//! A chunk's bytes as `PIECE` frames, written once and shared by every contact.
//!
//! Bytes are copied into slabs of one frame's size each. The frame at the end stays open while
//! nobody has read it, so that small buffers gather by themselves, and is sealed by the first
//! contact that comes to it, so that gathering never delays a byte.

use bytes::{BufMut, Bytes, BytesMut};

use crate::frame::{Piece, kind};
use crate::varint;

/// Most payload bytes of one frame: with its head it stays under 64 KiB.
pub const FRAME_PAYLOAD: usize = 64 * 1024 - HEAD_ROOM;
/// What a frame may cost besides its slab: its handle, its place in the list, the slab's own
/// book-keeping. In bytes.
pub const FRAME_OVERHEAD: u64 = 96;
/// Room left before a payload for the frame's head: type 1, length 4, handle 8, offset 8.
pub(super) const HEAD_ROOM: usize = 24;
/// Room in a slab for further heads, so that a slab read in small steps still takes its payload.
const SLACK: usize = 8 * HEAD_ROOM;

/// Bytes from a chunk's start.
pub(super) struct Body {
    handle: u64,
    length: u64,
    have: u64,
    frames: Vec<Bytes>,
    /// The open frame, behind room for its head, and the rest of its slab.
    tail: BytesMut,
    cost: u64,
}

impl Body {
    pub(super) fn new(handle: u64, length: u64) -> Self {
        Self { handle, length, have: 0, frames: Vec::new(), tail: BytesMut::new(), cost: 0 }
    }

    /// The same bytes under another handle, at the cost already counted: it takes no more frames
    /// and no larger slabs than before.
    pub(super) fn renamed(&mut self, handle: u64) -> Self {
        let mut body = Self::new(handle, self.length);
        let mut index = 0;
        while let Some(payload) = self.payload(index) {
            body.append(&payload);
            index += 1;
        }
        body.seal();
        body.tail = BytesMut::new();
        body.cost = self.cost;
        body
    }

    /// Bytes held from the start.
    pub(super) const fn have(&self) -> u64 {
        self.have
    }

    /// What it was charged, in bytes of memory.
    #[cfg(test)]
    pub(super) const fn cost(&self) -> u64 {
        self.cost
    }

    /// What `len` more bytes cost.
    pub(super) fn price(&self, len: usize) -> u64 {
        let fits = len.min(self.room());
        let (mut rest, mut have) = (len - fits, self.have + fits as u64);
        let mut price = FRAME_OVERHEAD;
        while rest > 0 {
            let payload = self.slab_payload(have);
            let taken = rest.min(payload);
            price += (payload + SLACK) as u64 + FRAME_OVERHEAD;
            have += taken as u64;
            rest -= taken;
        }
        price
    }

    /// Takes bytes that follow those it has.
    pub(super) fn append(&mut self, mut bytes: &[u8]) {
        self.cost += self.price(bytes.len());
        while !bytes.is_empty() {
            if self.room() == 0 {
                self.seal();
                self.tail = BytesMut::with_capacity(self.slab_payload(self.have) + SLACK);
            }
            let (now, later) = bytes.split_at(bytes.len().min(self.room()));
            if self.tail.is_empty() {
                self.tail.put_bytes(0, HEAD_ROOM);
            }
            self.tail.put_slice(now);
            self.have += now.len() as u64;
            bytes = later;
        }
    }

    /// The frame at `index`; seals what is open when asked for it.
    pub(super) fn frame(&mut self, index: usize) -> Option<&Bytes> {
        if index >= self.frames.len() {
            self.seal();
        }
        self.frames.get(index)
    }

    /// The payload of the frame at `index`.
    pub(super) fn payload(&mut self, index: usize) -> Option<Bytes> {
        self.piece(index).map(|piece| piece.bytes)
    }

    /// At most `most` bytes of the frame at `index`, from its byte `at`, as a frame of their own: head and
    /// bytes. `None` where nothing is left of it.
    pub(super) fn part(&mut self, index: usize, at: usize, most: usize) -> Option<(Bytes, Bytes)> {
        let piece = self.piece(index)?;
        let rest = piece.bytes.len().checked_sub(at).filter(|rest| *rest > 0)?;
        let bytes = piece.bytes.slice(at..at + rest.min(most));
        Some((Piece::head(kind::PIECE, piece.handle, piece.offset + at as u64, bytes.len()), bytes))
    }

    fn piece(&mut self, index: usize) -> Option<Piece> {
        let mut frame = self.frame(index)?.clone();
        varint::get(&mut frame)?;
        varint::get(&mut frame)?;
        Piece::decode(frame).ok()
    }

    /// Payload bytes that the open frame still takes.
    fn room(&self) -> usize {
        let left = self.tail.capacity() - self.tail.len();
        if self.tail.is_empty() {
            // A rest that only holds heads would make frames of a few bytes.
            if left > SLACK { (left - HEAD_ROOM).min(FRAME_PAYLOAD) } else { 0 }
        } else {
            left.min(FRAME_PAYLOAD + HEAD_ROOM - self.tail.len())
        }
    }

    fn slab_payload(&self, have: u64) -> usize {
        usize::try_from(self.length.saturating_sub(have)).unwrap_or(usize::MAX).clamp(1, FRAME_PAYLOAD)
    }

    fn seal(&mut self) {
        if self.tail.is_empty() {
            return;
        }
        let mut frame = self.tail.split();
        let payload = frame.len() - HEAD_ROOM;
        let head = Piece::head(kind::PIECE, self.handle, self.have - payload as u64, payload);
        let start = HEAD_ROOM - head.len();
        frame[start..HEAD_ROOM].copy_from_slice(&head);
        self.frames.push(frame.freeze().slice(start..));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::split_message;
    use proptest::prelude::*;

    fn pieces(body: &mut Body) -> Vec<Piece> {
        let mut out = Vec::new();
        while let Some(frame) = body.frame(out.len()) {
            let frame = split_message(frame.clone()).unwrap().remove(0);
            assert_eq!(frame.kind, kind::PIECE);
            out.push(Piece::decode(frame.body).unwrap());
        }
        out
    }

    #[test]
    fn unread_buffers_gather_and_read_ones_do_not_wait() {
        let mut body = Body::new(7, 4000);
        body.append(&[1; 1000]);
        body.append(&[2; 1000]);
        assert_eq!(pieces(&mut body).len(), 1, "nobody read in between");
        body.append(&[3; 1000]);
        assert_eq!(pieces(&mut body).len(), 2, "what came is there at once");
    }

    #[test]
    fn a_frame_may_go_in_parts() {
        let mut body = Body::new(7, 100_000);
        let all: Vec<u8> = (0..100_000u32).map(|at| at as u8).collect();
        body.append(&all);
        let (mut index, mut at, mut came) = (0, 0, Vec::new());
        while body.frame(index).is_some() {
            let Some((head, bytes)) = body.part(index, at, 7_000) else {
                (index, at) = (index + 1, 0);
                continue;
            };
            let frame = split_message([head, bytes.clone()].concat().into()).unwrap().remove(0);
            let piece = Piece::decode(frame.body).unwrap();
            assert_eq!((piece.handle, piece.offset), (7, came.len() as u64));
            assert!(piece.bytes.len() <= 7_000);
            came.extend_from_slice(&piece.bytes);
            at += bytes.len();
        }
        assert_eq!(came, all);
    }

    proptest! {
        #[test]
        fn any_cut_gives_the_same_bytes_in_order(
            cuts in prop::collection::vec((1usize..90_000, any::<bool>()), 1..12),
            rename in any::<bool>(),
        ) {
            let all: Vec<u8> = (0..cuts.iter().map(|cut| cut.0).sum::<usize>()).map(|i| (i % 251) as u8).collect();
            let mut body = Body::new(3, all.len() as u64);
            let mut at = 0;
            for (cut, read) in cuts {
                let before = body.cost();
                let price = body.price(cut);
                body.append(&all[at..at + cut]);
                prop_assert_eq!(body.cost(), before + price);
                at += cut;
                if read {
                    pieces(&mut body);
                }
            }
            prop_assert!(body.cost() >= at as u64);
            let mut body = if rename { body.renamed(4) } else { body };
            let mut offset = 0;
            for piece in pieces(&mut body) {
                prop_assert_eq!(piece.handle, if rename { 4 } else { 3 });
                prop_assert_eq!(piece.offset, offset);
                prop_assert!(piece.bytes.len() <= FRAME_PAYLOAD);
                prop_assert_eq!(&piece.bytes[..], &all[offset as usize..offset as usize + piece.bytes.len()]);
                offset += piece.bytes.len() as u64;
            }
            prop_assert_eq!(offset as usize, all.len());
        }
    }
}
