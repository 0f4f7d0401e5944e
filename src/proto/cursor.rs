//! Where a contact is, as text it can bring to another connection (`CURSOR`, `WATCH.cursor`).
//!
//! A cursor says both the places in this relay's window and, for another relay or a restarted
//! one, which chunk of which stream came last; streams are named by a short hash. It is opaque
//! to contacts, holds no secret and no identifier, and gives no right.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::{Buf, BufMut};

use crate::varint;

/// Longest cursor read, in characters.
pub const MAX_CURSOR_CHARS: usize = 1024;
/// Chunks of one lane that a cursor names as begun and not finished.
pub const MAX_UNFINISHED: usize = 16;
const VERSION: u8 = 1;

/// A contact's place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    /// The window it speaks of.
    pub instance: u64,
    /// The next event.
    pub event: u64,
    /// The places in `audio_priority` and `live_preview`; `None`: not watched yet.
    pub lanes: [Option<LaneCursor>; 2],
}

/// The place in a lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaneCursor {
    /// The first chunk that concerns the contact.
    pub start: u64,
    /// The next chunk to begin.
    pub next: u64,
    /// Chunks before `next` that were begun and not finished; at most [`MAX_UNFINISHED`].
    pub unfinished: Vec<u64>,
    /// The last chunk delivered, with everything before it: stream by hash, and index.
    pub last: Option<([u8; 8], u64)>,
}

impl Cursor {
    /// Writes it as base64url without padding.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut out = Vec::with_capacity(96);
        out.put_u8(VERSION);
        out.put_u64(self.instance);
        varint::put(&mut out, self.event);
        for lane in &self.lanes {
            let Some(lane) = lane else {
                out.put_u8(0);
                continue;
            };
            out.put_u8(if lane.last.is_some() { 2 } else { 1 });
            varint::put(&mut out, lane.start);
            varint::put(&mut out, lane.next);
            varint::put(&mut out, lane.unfinished.len() as u64);
            for seq in &lane.unfinished {
                varint::put(&mut out, lane.next.saturating_sub(*seq));
            }
            if let Some((tag, index)) = lane.last {
                out.put_slice(&tag);
                varint::put(&mut out, index);
            }
        }
        URL_SAFE_NO_PAD.encode(out)
    }

    /// Reads one; `None` for anything that no relay of this version wrote.
    #[must_use]
    pub fn decode(text: &str) -> Option<Self> {
        if text.len() > MAX_CURSOR_CHARS {
            return None;
        }
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let mut input = &bytes[..];
        if input.try_get_u8().ok()? != VERSION {
            return None;
        }
        let instance = input.try_get_u64().ok()?;
        let event = varint::get(&mut input)?;
        let lanes = [lane(&mut input)?, lane(&mut input)?];
        input.is_empty().then_some(Self { instance, event, lanes })
    }
}

fn lane(input: &mut &[u8]) -> Option<Option<LaneCursor>> {
    let form = input.try_get_u8().ok()?;
    if form == 0 {
        return Some(None);
    }
    let start = varint::get(input)?;
    let next = varint::get(input)?;
    let count = usize::try_from(varint::get(input)?).ok().filter(|count| *count <= MAX_UNFINISHED)?;
    let mut unfinished = Vec::with_capacity(count);
    for _ in 0..count {
        unfinished.push(next.checked_sub(varint::get(input)?)?);
    }
    let last = match form {
        1 => None,
        2 => {
            let mut tag = [0; 8];
            input.try_copy_to_slice(&mut tag).ok()?;
            Some((tag, varint::get(input)?))
        }
        _ => return None,
    };
    Some(Some(LaneCursor { start, next, unfinished, last }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_lane() -> impl Strategy<Value = Option<LaneCursor>> {
        let number = 0u64..1 << 40;
        let back = prop::collection::vec(0u64..1000, 0..=MAX_UNFINISHED);
        let lane = (number.clone(), 1000u64..1 << 40, back, prop::option::of((any::<[u8; 8]>(), number)));
        prop::option::of(lane.prop_map(|(start, next, back, last)| LaneCursor {
            start,
            next,
            unfinished: back.into_iter().map(|back| next - back).collect(),
            last,
        }))
    }

    proptest! {
        #[test]
        fn round_trips(instance: u64, event in 0u64..1 << 40, a in any_lane(), b in any_lane()) {
            let cursor = Cursor { instance, event, lanes: [a, b] };
            let text = cursor.encode();
            prop_assert!(text.len() <= MAX_CURSOR_CHARS);
            prop_assert_eq!(Cursor::decode(&text), Some(cursor));
        }

        #[test]
        fn no_text_panics(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = Cursor::decode(&URL_SAFE_NO_PAD.encode(bytes));
        }
    }

    #[test]
    fn other_texts_are_no_cursors() {
        for text in ["", "A", "AgAA", "====", "AQ"] {
            assert_eq!(Cursor::decode(text), None);
        }
    }
}
