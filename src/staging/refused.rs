//! Capabilities that the core takes no longer, as keyed hashes.

use std::collections::{HashMap, VecDeque};

use crate::proto::ledger::StreamKey;

/// Streams of which refused capabilities are remembered.
const MAX_STREAMS: usize = 16_384;
/// Refused capabilities remembered of one stream, 8 bytes each; the oldest goes first.
const MAX_REFUSED: usize = 16;

/// Of each stream the capabilities that the core refused: they release nothing. More than the last
/// one, since two that are presented in turn would otherwise carry whole bodies for ever.
#[derive(Default)]
pub(super) struct Refused(HashMap<StreamKey, VecDeque<u64>>);

impl Refused {
    pub(super) fn note(&mut self, stream: StreamKey, token: u64) {
        if self.0.len() >= MAX_STREAMS && !self.0.contains_key(&stream) {
            return;
        }
        let of_stream = self.0.entry(stream).or_default();
        if !of_stream.contains(&token) {
            if of_stream.len() >= MAX_REFUSED {
                of_stream.pop_front();
            }
            of_stream.push_back(token);
        }
    }

    pub(super) fn holds(&self, stream: StreamKey, token: u64) -> bool {
        self.0.get(&stream).is_some_and(|of_stream| of_stream.contains(&token))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_are_remembered_and_the_oldest_is_forgotten() {
        let mut refused = Refused::default();
        let stream = StreamKey(1);
        for token in 0..MAX_REFUSED as u64 {
            refused.note(stream, token);
            refused.note(stream, token);
        }
        assert!(refused.holds(stream, 0) && refused.holds(stream, 1), "not only the last");
        assert!(!refused.holds(StreamKey(2), 0));
        refused.note(stream, 99);
        assert!(!refused.holds(stream, 0) && refused.holds(stream, 99));
    }
}
