//! Capsules (RFC 9297) on the stream of a WebTransport session's CONNECT: all that is said there is
//! that the session ends.

use bytes::{BufMut, Bytes, BytesMut};

use crate::varint;

/// `CLOSE_WEBTRANSPORT_SESSION` (draft-ietf-webtrans-http3, section 5).
const CLOSE: u64 = 0x2843;
/// Longest reason of a close, in bytes.
const MAX_REASON: usize = 1024;

/// The end of a session: a code and a reason for the page.
#[must_use]
pub fn close(code: u32, reason: &str) -> Bytes {
    let reason = reason.get(..MAX_REASON).unwrap_or(reason);
    let mut out = BytesMut::with_capacity(16 + reason.len());
    varint::put(&mut out, CLOSE);
    varint::put(&mut out, 4 + reason.len() as u64);
    out.put_u32(code);
    out.put_slice(reason.as_bytes());
    out.freeze()
}

/// Follows a peer's capsules. Nothing of them is kept but the head of the one that is coming.
#[derive(Debug, Default)]
pub struct Capsules {
    head: Vec<u8>,
    skip: u64,
}

impl Capsules {
    /// Takes bytes as they come; `true`: the session is closed.
    pub fn closed_by(&mut self, mut bytes: &[u8]) -> bool {
        while let Some((first, rest)) = bytes.split_first() {
            if self.skip > 0 {
                let step = usize::try_from(self.skip).unwrap_or(usize::MAX).min(bytes.len());
                self.skip -= step as u64;
                bytes = &bytes[step..];
                continue;
            }
            self.head.push(*first);
            bytes = rest;
            let mut head = &self.head[..];
            if let (Some(kind), Some(length)) = (varint::get(&mut head), varint::get(&mut head)) {
                if kind == CLOSE {
                    return true;
                }
                self.skip = length;
                self.head.clear();
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn capsule(kind: u64, length: usize) -> Vec<u8> {
        let mut out = Vec::new();
        varint::put(&mut out, kind);
        varint::put(&mut out, length as u64);
        out.extend(std::iter::repeat_n(0x28, length));
        out
    }

    #[test]
    fn a_close_says_code_and_reason() {
        assert_eq!(close(4403, "gone")[..], [&[0x68, 0x43, 8, 0, 0, 0x11, 0x33][..], b"gone"].concat());
        assert!(close(0, &"x".repeat(5000)).len() < 1040);
    }

    proptest! {
        #[test]
        fn only_a_close_closes_however_it_is_cut(
            others in prop::collection::vec((0u64..9000, 0usize..300), 0..5), cut in 1usize..50,
        ) {
            let others = others.into_iter().filter(|(kind, _)| *kind != CLOSE);
            let mut wire: Vec<u8> = others.flat_map(|(kind, length)| capsule(kind, length)).collect();
            let mut capsules = Capsules::default();
            prop_assert!(!wire.chunks(cut).any(|piece| capsules.closed_by(piece)));
            wire.extend_from_slice(&close(0, ""));
            let mut capsules = Capsules::default();
            prop_assert!(wire.chunks(cut).any(|piece| capsules.closed_by(piece)));
        }
    }
}
