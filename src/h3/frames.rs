//! What a peer's HTTP/3 frames may make the relay hold. h3 keeps every frame but `DATA` until it
//! is whole and gives the peer new credit while it reads, so a frame's declared length is what
//! bounds its memory: it is looked at before h3 sees the bytes.

use bytes::Buf as _;

use waystation_proto::varint;

/// `DATA`, which is handed on piece by piece.
const DATA: u64 = 0x0;
/// The type of a control stream.
const CONTROL: u64 = 0x0;
/// Largest frame beside `DATA`, in bytes: the head of a request that is large enough to be told
/// `headers_too_large`. Each stream of a peer costs so much.
pub const MAX_FRAME: u64 = 64 * 1024;

/// Where the bytes of one stream are.
pub(crate) struct Frames {
    place: Place,
    /// Bytes of a head that has not come in full: a type and a length, 8 bytes each at most.
    head: Vec<u8>,
}

#[derive(Clone, Copy)]
enum Place {
    /// Before the type of a one-way stream.
    Type,
    /// In a frame's head.
    Head,
    /// In a frame, so many bytes before its end.
    Body(u64),
    /// h3 keeps nothing of what comes: QPACK streams are not read, unknown ones are stopped.
    Unread,
}

impl Frames {
    /// Of a request's stream.
    pub(crate) const fn of_request() -> Self {
        Self { place: Place::Head, head: Vec::new() }
    }

    /// Of a one-way stream.
    pub(crate) const fn of_one_way() -> Self {
        Self { place: Place::Type, head: Vec::new() }
    }

    /// Of a stream that is not h3's.
    pub(crate) const fn unread() -> Self {
        Self { place: Place::Unread, head: Vec::new() }
    }

    /// Follows `bytes`; `false`: a frame declares more than may be held.
    pub(crate) fn allow(&mut self, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            match self.place {
                Place::Unread => return true,
                Place::Body(left) => {
                    let step = left.min(bytes.len() as u64);
                    bytes = &bytes[usize::try_from(step).unwrap_or(bytes.len())..];
                    self.place = if step == left { Place::Head } else { Place::Body(left - step) };
                }
                Place::Type | Place::Head => {
                    self.head.push(bytes[0]);
                    bytes = &bytes[1..];
                    if !self.step() {
                        return false;
                    }
                }
            }
        }
        true
    }

    /// One more byte of a head came.
    fn step(&mut self) -> bool {
        let mut head = &self.head[..];
        let Some(kind) = varint::get(&mut head) else { return true };
        if matches!(self.place, Place::Type) {
            self.place = if kind == CONTROL { Place::Head } else { Place::Unread };
        } else {
            let Some(length) = varint::get(&mut head) else { return true };
            debug_assert!(!head.has_remaining(), "bytes of a head come one by one");
            if kind != DATA && length > MAX_FRAME {
                return false;
            }
            self.place = if length == 0 { Place::Head } else { Place::Body(length) };
        }
        self.head.clear();
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(kind: u64, length: u64) -> Vec<u8> {
        let mut out = Vec::new();
        varint::put(&mut out, kind);
        varint::put(&mut out, length);
        out
    }

    #[test]
    fn a_frame_says_how_much_it_will_be() {
        assert!(Frames::of_request().allow(&frame(DATA, 1 << 40)), "DATA is not kept");
        assert!(Frames::of_request().allow(&frame(1, MAX_FRAME)));
        assert!(!Frames::of_request().allow(&frame(1, MAX_FRAME + 1)), "HEADERS");
        assert!(!Frames::of_request().allow(&frame(0x21, 1 << 40)), "an unknown frame");
        let settings = |length| [vec![0], frame(4, length)].concat();
        assert!(Frames::of_one_way().allow(&settings(MAX_FRAME)));
        assert!(!Frames::of_one_way().allow(&settings(1 << 40)));
        assert!(Frames::of_one_way().allow(&[vec![2], frame(4, 1 << 40)].concat()), "QPACK is not read");
    }

    proptest! {
        #[test]
        fn pieces_change_nothing(sizes in prop::collection::vec((0u64..3, 0u64..200), 1..8), cut in 1usize..9) {
            let mut stream = vec![0];
            for (kind, length) in sizes {
                stream.extend(frame(kind, length));
                stream.extend(std::iter::repeat_n(0xff, length as usize));
            }
            let mut frames = Frames::of_one_way();
            prop_assert!(stream.chunks(cut).all(|piece| frames.allow(piece)));
            prop_assert!(!frame(7, 1 << 40).chunks(cut).all(|piece| frames.allow(piece)));
        }
    }
}
