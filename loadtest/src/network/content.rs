//! What is recorded: bytes that a seed decides, so that whoever knows it can tell whether a chunk
//! was altered.

use waystation_netlab::rng::Rng;
use waystation_proto::Variant;

/// Plaintext of chunk `seq` of a lane. No two chunks are alike, and nothing compresses them.
#[must_use]
pub(super) fn plaintext(seed: u64, variant: Variant, seq: u64, bytes: usize) -> Vec<u8> {
    let lane = variant as u64 + 1;
    let mut rng = Rng::new(Rng::new(seed ^ (lane << 56)).next_u64() ^ seq);
    let mut out = Vec::with_capacity(bytes + 8);
    while out.len() < bytes {
        out.extend_from_slice(&rng.next_u64().to_le_bytes());
    }
    out.truncate(bytes);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_differ_by_seed_lane_and_number_and_can_be_made_again() {
        let make = |seed, variant, seq| plaintext(seed, variant, seq, 99);
        let one = make(1, Variant::AudioPriority, 0);
        assert_eq!((one.len(), &one), (99, &make(1, Variant::AudioPriority, 0)));
        for other in
            [make(2, Variant::AudioPriority, 0), make(1, Variant::LivePreview, 0), make(1, Variant::AudioPriority, 1)]
        {
            assert_ne!(one, other);
        }
    }
}
