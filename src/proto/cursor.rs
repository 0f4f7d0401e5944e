//! Where a contact is, as text it can bring to another connection (`CURSOR`, `WATCH.cursor`).
//!
//! A cursor says both the places in this relay's window and, for another relay or a restarted
//! one, which chunks of the last streams came; streams are named by a short hash. It is opaque
//! to contacts, holds no secret and no identifier, and gives no right.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::{Buf, BufMut};

use crate::varint;

/// Longest cursor read, in characters.
pub const MAX_CURSOR_CHARS: usize = 1024;
/// Chunks of one lane that a cursor names as begun and not finished.
pub const MAX_UNFINISHED: usize = 16;
/// Streams of one lane of which a cursor says what was delivered: the last of their chain.
pub const MAX_DELIVERED: usize = 4;
const VERSION: u8 = 2;

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
    /// What was delivered, of the last streams in the order of their chain; at most [`MAX_DELIVERED`].
    pub delivered: Vec<Delivered>,
}

/// What was delivered of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivered {
    /// The stream, by its hash.
    pub stream: [u8; 8],
    /// The highest index delivered.
    pub index: u64,
    /// Which of the 64 indexes up to that were: the lowest bit is its own. Nothing is said of what is further back.
    pub had: u64,
    /// What is still to be named of what another window did not deliver, and this one does not have.
    pub owed: Owed,
}

/// Which holes of a stream are still to be named to who comes from another window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owed {
    /// None.
    Nothing,
    /// Those above the highest index delivered.
    Above,
    /// Those above and below it.
    All,
}

impl Delivered {
    /// Nothing yet, and nothing before this index concerns whoever begins.
    #[must_use]
    pub const fn from(stream: [u8; 8], index: u64) -> Self {
        Self { stream, index: index.saturating_sub(1), had: 0, owed: Owed::Nothing }
    }

    /// Whether this index was delivered, as far as that is said.
    #[must_use]
    pub fn has(&self, index: u64) -> bool {
        self.index.checked_sub(index).is_some_and(|back| back < 64 && self.had >> back & 1 == 1)
    }

    /// This index was delivered.
    pub fn add(&mut self, index: u64) {
        if index > self.index {
            let on = u32::try_from(index - self.index).unwrap_or(u32::MAX);
            (self.index, self.had) = (index, self.had.checked_shl(on).unwrap_or(0) | 1);
        } else if self.index - index < 64 {
            self.had |= 1 << (self.index - index);
        }
    }

    /// This index was taken back.
    pub fn remove(&mut self, index: u64) {
        if let Some(back) = self.index.checked_sub(index).filter(|back| *back < 64) {
            self.had &= !(1 << back);
        }
    }

    /// The indexes of the last 64 that were delivered, from the highest down.
    pub fn indexes(&self) -> impl Iterator<Item = u64> {
        let (index, had) = (self.index, self.had);
        (0..64).filter(move |back| had >> back & 1 == 1).map(move |back| index - back)
    }
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
            out.put_u8(1);
            varint::put(&mut out, lane.start);
            varint::put(&mut out, lane.next);
            varint::put(&mut out, lane.unfinished.len() as u64);
            for seq in &lane.unfinished {
                varint::put(&mut out, lane.next.saturating_sub(*seq));
            }
            varint::put(&mut out, lane.delivered.len() as u64);
            for delivered in &lane.delivered {
                out.put_slice(&delivered.stream);
                varint::put(&mut out, delivered.index);
                out.put_u64(delivered.had);
                out.put_u8(delivered.owed as u8);
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
    match input.try_get_u8().ok()? {
        0 => return Some(None),
        1 => {}
        _ => return None,
    }
    let start = varint::get(input)?;
    let next = varint::get(input)?;
    let mut unfinished = Vec::new();
    for _ in 0..count(input, MAX_UNFINISHED)? {
        unfinished.push(next.checked_sub(varint::get(input)?)?);
    }
    let mut delivered = Vec::new();
    for _ in 0..count(input, MAX_DELIVERED)? {
        delivered.push(stream(input)?);
    }
    Some(Some(LaneCursor { start, next, unfinished, delivered }))
}

fn count(input: &mut &[u8], most: usize) -> Option<usize> {
    usize::try_from(varint::get(input)?).ok().filter(|count| *count <= most)
}

fn stream(input: &mut &[u8]) -> Option<Delivered> {
    let mut stream = [0; 8];
    input.try_copy_to_slice(&mut stream).ok()?;
    let index = varint::get(input)?;
    let had = input.try_get_u64().ok()?;
    let owed = match input.try_get_u8().ok()? {
        0 => Owed::Nothing,
        1 => Owed::Above,
        2 => Owed::All,
        _ => return None,
    };
    // What it says to have had lies between 0 and its index.
    (index >= 63 || had >> (index + 1) == 0).then_some(Delivered { stream, index, had, owed })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_lane() -> impl Strategy<Value = Option<LaneCursor>> {
        let number = 0u64..1 << 40;
        let back = prop::collection::vec(0u64..1000, 0..=MAX_UNFINISHED);
        let owed = prop_oneof![Just(Owed::Nothing), Just(Owed::Above), Just(Owed::All)];
        let stream = (any::<[u8; 8]>(), 64u64..1 << 40, any::<u64>(), owed);
        let stream = stream.prop_map(|(stream, index, had, owed)| Delivered { stream, index, had, owed });
        let delivered = prop::collection::vec(stream, 0..=MAX_DELIVERED);
        let lane = (number, 1000u64..1 << 40, back, delivered);
        prop::option::of(lane.prop_map(|(start, next, back, delivered)| LaneCursor {
            start,
            next,
            unfinished: back.into_iter().map(|back| next - back).collect(),
            delivered,
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

        /// As a set would say it, but for what is too far back.
        #[test]
        fn what_was_delivered_is_remembered(ops in prop::collection::vec((1u64..200, prop::bool::weighted(0.8)), 0..200)) {
            let (mut delivered, mut set, mut highest) = (Delivered::from([0; 8], 1), std::collections::BTreeSet::new(), 0);
            for (index, comes) in ops {
                if comes {
                    delivered.add(index);
                    set.insert(index);
                    highest = index.max(highest);
                } else {
                    delivered.remove(index);
                    set.remove(&index);
                }
            }
            for index in 1..200 {
                let expected = set.contains(&index) && index + 64 > highest;
                prop_assert_eq!(delivered.has(index), expected, "{}", index);
            }
            let near: Vec<u64> = set.into_iter().rev().filter(|index| index + 64 > highest).collect();
            prop_assert_eq!(delivered.indexes().collect::<Vec<_>>(), near);
        }

        #[test]
        fn no_text_panics(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = Cursor::decode(&URL_SAFE_NO_PAD.encode(bytes));
        }
    }

    #[test]
    fn other_texts_are_no_cursors() {
        for text in ["", "A", "AgAA", "====", "Ag"] {
            assert_eq!(Cursor::decode(text), None);
        }
    }
}
