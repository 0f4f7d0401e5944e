//! Frames of `/capture` and `/watch`: type, body length, body (`wire.md`, "Frames").

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::code::Code;
use crate::varint;

/// Largest body of a control frame, in bytes: a `HELLO` with a capability for every lane fits.
pub const MAX_CONTROL_BYTES: usize = 64 * 1024;
/// Largest body of a `PIECE` frame, in bytes, with its two numbers.
pub const MAX_PIECE_BYTES: usize = 256 * 1024 + 16;

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $value:literal),+ $(,)?) => {
        /// Frame types.
        pub mod kind {
            $($(#[$doc])* pub const $name: u64 = $value;)+

            /// Whether a type is known here; unknown ones are skipped.
            #[must_use]
            pub const fn known(value: u64) -> bool {
                matches!(value, $($value)|+)
            }
        }
    };
}

kinds! {
    /// Capture client: first message.
    HELLO = 0x01,
    /// Capture client: a chunk's metadata.
    OFFER = 0x02,
    /// Capture client: bytes of an offered chunk.
    CAPTURE_PIECE = 0x03,
    /// Capture client: one more capability.
    CAPABILITY = 0x04,
    /// Capture client: still recording.
    ALIVE = 0x05,
    /// Capture client: recording ended.
    END = 0x06,
    /// To the capture client: its `HELLO` is accepted.
    WELCOME = 0x11,
    /// To the capture client: send from this offset, this much.
    SEND = 0x12,
    /// To the capture client: a chunk's state.
    CAPTURE_STATE = 0x13,
    /// To the capture client: more bytes may come.
    CREDIT = 0x14,
    /// To the capture client: advice.
    HINT = 0x15,
    /// To the capture client: the relay closes.
    BYE = 0x16,
    /// To the capture client: one of its capabilities is no good.
    REFUSED = 0x17,
    /// Contact: first message.
    WATCH = 0x21,
    /// Contact: a new capability.
    RENEW = 0x22,
    /// Contact: other lanes.
    LANES = 0x23,
    /// Contact: one chunk again.
    FETCH = 0x24,
    /// To the contact: its `WATCH` is accepted.
    WATCHING = 0x31,
    /// To the contact: a chunk begins.
    CHUNK = 0x32,
    /// To the contact: bytes of a chunk.
    PIECE = 0x33,
    /// To the contact: a chunk is whole.
    COMPLETE = 0x34,
    /// To the contact: what came is not that chunk.
    WITHDRAWN = 0x35,
    /// To the contact: a chunk's state.
    STATE = 0x36,
    /// To the contact: chunks left out.
    OMITTED = 0x37,
    /// To the contact: how the capture device is.
    CAPTURE = 0x38,
    /// To the contact: a lane's next stream.
    STREAM = 0x39,
    /// To the contact: the subscription ends.
    ENDING = 0x3a,
    /// To the contact: where it is.
    CURSOR = 0x3b,
    /// To the contact: how long ago the capture device gave a sign of life.
    SIGN = 0x3c,
}

/// One frame as it is on the wire, its body not yet looked into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Its type; see [`kind`].
    pub kind: u64,
    /// Its body.
    pub body: Bytes,
}

/// The body of a `PIECE`.
#[derive(Clone, PartialEq, Eq)]
pub struct Piece {
    /// Which chunk.
    pub handle: u64,
    /// Where in it.
    pub offset: u64,
    /// The bytes.
    pub bytes: Bytes,
}

impl std::fmt::Debug for Piece {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Piece").field("handle", &self.handle).field("offset", &self.offset).finish_non_exhaustive()
    }
}

impl Piece {
    /// Reads a `PIECE`'s body without copying the bytes.
    ///
    /// # Errors
    /// [`Code::ProtocolError`] if the two numbers are not there.
    pub fn decode(mut body: Bytes) -> Result<Self, Code> {
        let handle = varint::get(&mut body).ok_or(Code::ProtocolError)?;
        let offset = varint::get(&mut body).ok_or(Code::ProtocolError)?;
        Ok(Self { handle, offset, bytes: body })
    }

    /// Everything before the bytes: type, length, handle, offset. Followed by `len` bytes it is a
    /// whole frame; so one copy of the bytes serves every contact.
    #[must_use]
    pub fn head(kind: u64, handle: u64, offset: u64, len: usize) -> Bytes {
        let body = varint::len(handle) + varint::len(offset) + len;
        let mut out = BytesMut::with_capacity(32);
        varint::put(&mut out, kind);
        varint::put(&mut out, body as u64);
        varint::put(&mut out, handle);
        varint::put(&mut out, offset);
        out.freeze()
    }

    /// The whole frame in one buffer.
    #[must_use]
    pub fn encode(kind: u64, handle: u64, offset: u64, bytes: &[u8]) -> Bytes {
        let head = Self::head(kind, handle, offset, bytes.len());
        let mut out = BytesMut::with_capacity(head.len() + bytes.len());
        out.put(head);
        out.put_slice(bytes);
        out.freeze()
    }
}

/// Encodes a control frame.
#[must_use]
pub fn encode(kind: u64, body: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(varint::len(kind) + varint::len(body.len() as u64) + body.len());
    varint::put(&mut out, kind);
    varint::put(&mut out, body.len() as u64);
    out.put_slice(body);
    out.freeze()
}

/// Encodes a control frame with a JSON body.
#[must_use]
pub fn encode_json(kind: u64, body: &impl serde::Serialize) -> Bytes {
    encode(kind, &serde_json::to_vec(body).unwrap_or_default())
}

/// Largest body allowed for a type: checked before anything is buffered.
#[must_use]
pub const fn max_body(kind: u64) -> usize {
    match kind {
        kind::CAPTURE_PIECE | kind::PIECE => MAX_PIECE_BYTES,
        _ => MAX_CONTROL_BYTES,
    }
}

/// Takes frames out of bytes as they come, holding at most one incomplete frame.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: BytesMut,
}

impl Decoder {
    /// Adds bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame; `None` until more bytes come.
    ///
    /// # Errors
    /// [`Code::FrameTooLarge`] as soon as the length says so.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, Code> {
        let mut head = &self.buffer[..];
        let Some(kind) = varint::get(&mut head) else { return Ok(None) };
        let Some(len) = varint::get(&mut head) else { return Ok(None) };
        if len > max_body(kind) as u64 {
            return Err(Code::FrameTooLarge);
        }
        let (len, head_len) = (len as usize, self.buffer.len() - head.len());
        if head.len() < len {
            return Ok(None);
        }
        self.buffer.advance(head_len);
        Ok(Some(Frame { kind, body: self.buffer.split_to(len).freeze() }))
    }

    /// The type of the next frame, as soon as it is known.
    #[must_use]
    pub fn kind(&self) -> Option<u64> {
        varint::get(&mut &self.buffer[..])
    }

    /// Whether an incomplete frame is waiting for its rest.
    #[must_use]
    pub fn pending(&self) -> bool {
        !self.buffer.is_empty()
    }
}

/// Takes every frame out of one WebSocket message, which holds whole frames, without copying.
///
/// # Errors
/// [`Code::ProtocolError`] if the message ends inside a frame, [`Code::FrameTooLarge`].
pub fn split_message(mut message: Bytes) -> Result<Vec<Frame>, Code> {
    take_frames(&mut message, usize::MAX)
}

/// Takes so many frames out of one WebSocket message, and leaves those behind them.
///
/// # Errors
/// As [`split_message`].
pub fn take_frames(message: &mut Bytes, most: usize) -> Result<Vec<Frame>, Code> {
    let mut frames = Vec::new();
    while !message.is_empty() && frames.len() < most {
        let kind = varint::get(message).ok_or(Code::ProtocolError)?;
        let len = varint::get(message).ok_or(Code::ProtocolError)?;
        if len > max_body(kind) as u64 {
            return Err(Code::FrameTooLarge);
        }
        if len > message.len() as u64 {
            return Err(Code::ProtocolError);
        }
        frames.push(Frame { kind, body: message.split_to(len as usize) });
    }
    Ok(frames)
}

/// Reads a control body as JSON; unknown members are ignored.
///
/// # Errors
/// [`Code::ProtocolError`] if it is not that JSON.
pub fn control<'de, T: serde::Deserialize<'de>>(frame: &'de Frame) -> Result<T, Code> {
    serde_json::from_slice(&frame.body).map_err(|_| Code::ProtocolError)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_length_over_the_limit_is_refused_before_its_bytes() {
        let mut decoder = Decoder::default();
        let mut out = BytesMut::new();
        varint::put(&mut out, kind::HELLO);
        varint::put(&mut out, MAX_CONTROL_BYTES as u64 + 1);
        assert_eq!(decoder.kind(), None);
        decoder.push(&out);
        assert_eq!(decoder.kind(), Some(kind::HELLO));
        assert_eq!(decoder.next_frame(), Err(Code::FrameTooLarge));
        assert_eq!(split_message(out.freeze()), Err(Code::FrameTooLarge));
    }

    #[test]
    fn a_message_may_not_end_inside_a_frame() {
        let whole = encode(kind::ALIVE, b"{}");
        assert_eq!(split_message(whole.slice(..whole.len() - 1)), Err(Code::ProtocolError));
    }

    proptest! {
        #[test]
        fn frames_survive_any_cut(
            pieces in prop::collection::vec((0u64..100, 0u64..1 << 40, prop::collection::vec(any::<u8>(), 0..300)), 0..8),
            cut in 1usize..50,
        ) {
            let mut wire = BytesMut::new();
            for (handle, offset, bytes) in &pieces {
                wire.put(Piece::encode(kind::PIECE, *handle, *offset, bytes));
            }
            let wire = wire.freeze();
            let mut decoder = Decoder::default();
            let mut got = Vec::new();
            for part in wire.chunks(cut) {
                decoder.push(part);
                while let Some(frame) = decoder.next_frame().unwrap() {
                    got.push(Piece::decode(frame.body).unwrap());
                }
            }
            prop_assert!(!decoder.pending());
            prop_assert_eq!(got.len(), pieces.len());
            for (piece, (handle, offset, bytes)) in got.iter().zip(&pieces) {
                prop_assert_eq!(piece.handle, *handle);
                prop_assert_eq!(piece.offset, *offset);
                prop_assert_eq!(&piece.bytes[..], &bytes[..]);
            }
            let all = split_message(wire.clone()).unwrap();
            prop_assert_eq!(all.len(), pieces.len());
            let (mut rest, mut some) = (wire, Vec::new());
            while !rest.is_empty() {
                some.extend(take_frames(&mut rest, 2).unwrap());
            }
            prop_assert_eq!(some, all);
        }

        #[test]
        fn no_input_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = split_message(Bytes::from(bytes.clone()));
            let mut rest = Bytes::from(bytes.clone());
            while let Ok(frames) = take_frames(&mut rest, 3) && !frames.is_empty() {
                prop_assert!(frames.len() <= 3);
            }
            let mut decoder = Decoder::default();
            decoder.push(&bytes);
            while let Ok(Some(frame)) = decoder.next_frame() {
                let _ = Piece::decode(frame.body);
            }
        }
    }
}
