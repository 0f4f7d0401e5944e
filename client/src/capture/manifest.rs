//! The manifest: the last chunk of a recording, which says what belongs to it. Whoever opens the
//! recording can tell from it that nothing is missing, and nothing else was put in. Pure.

use serde_json::json;
use waystation_proto::{Media, Variant};

use super::store::record::State;

/// Its lane, and what that lane carries.
pub(super) const LANE: (Variant, Media) = (Variant::MetadataContext, Media::Metadata);

/// The manifest of everything that is sealed, as JSON: of each lane its chunks, its streams with
/// how many of them each has, and the chain: SHA-256 over the chain before (hexadecimal, at first
/// empty) and the SHA-256 of a chunk's envelope, one chunk after the other.
pub(super) fn write(state: &State) -> Vec<u8> {
    let lanes = state.lanes.iter().filter(|lane| lane.next_seq > 0).map(|lane| {
        let used = lane.streams.iter().filter(|stream| stream.used > 0);
        let streams: Vec<_> = used.map(|s| json!({"stream": s.stream, "chunks": s.used})).collect();
        json!({"variant": lane.variant, "media": lane.media, "chunks": lane.next_seq, "chain": lane.chain,
            "streams": streams})
    });
    let lanes: Vec<_> = lanes.collect();
    json!({"manifest": 1, "lanes": lanes, "lost": state.totals.lost}).to_string().into_bytes()
}

#[cfg(test)]
mod tests {
    use super::super::store::record::{LaneState, StreamState, chain};
    use super::*;
    use waystation_proto::id::{Digest, StreamId};

    #[test]
    fn it_names_what_was_sealed_and_its_order() {
        let link = chain(&chain("", &Digest([1; 32])), &Digest([2; 32]));
        let stream = |id: &str, used| StreamState { stream: StreamId::new(id).unwrap(), used };
        let lane = LaneState {
            variant: Variant::AudioPriority,
            media: Media::Audio,
            next_seq: 2,
            streams: vec![stream("a", 2), stream("b", 0)],
            chain: link.clone(),
        };
        let empty = LaneState { variant: Variant::LivePreview, next_seq: 0, streams: Vec::new(), ..lane.clone() };
        let state = State { lanes: vec![lane, empty], ..State::default() };
        let read: serde_json::Value = serde_json::from_slice(&write(&state)).unwrap();
        let expected = json!([{"variant": "audio_priority", "media": "audio", "chunks": 2, "chain": link,
            "streams": [{"stream": "a", "chunks": 2}]}]);
        assert_eq!((&read["lanes"], &read["lost"]), (&expected, &json!(0)));
        assert_ne!(link, chain(&chain("", &Digest([2; 32])), &Digest([1; 32])), "the order counts");
    }
}
