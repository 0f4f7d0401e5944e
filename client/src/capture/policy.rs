//! Which lanes are sent now, as the relay advises. Pure; `now` is in milliseconds of any monotonic
//! clock.
//!
//! Nothing is dropped: what is held back stays in the queue of the device and goes later. Sound and
//! the first chunk of each lane always go. A lane that the measured rate does not carry goes only
//! while nothing else is to be sent, so that the link is never idle; one for which the relay has
//! no room waits until it has.

use waystation_proto::message::Hint;
use waystation_proto::{Class, Variant};

/// How full the room of a class is when its chunks wait here, and when they may go again: above
/// and below the relay's own marks, since it knows better when it says more.
const FULL: (f32, f32) = (0.95, 0.8);
/// Advice older than this is no advice.
const STALE_MS: u64 = 600_000;
/// After lanes were taken back, others wait this long before they come back.
const SETTLE_MS: u64 = 5_000;
/// Lengths of a chunk that are taken from anybody.
const CHUNK_MS: (u64, u64) = (500, 10_000);

/// When a chunk of a lane may go.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Turn {
    /// In the order of mercy.
    #[default]
    Now,
    /// While nothing else waits or moves.
    Idle,
    /// Not before the relay has room.
    Later,
}

/// What changed, for the recorder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// These lanes are sent in their turn; the others are held back.
    Lanes(Vec<Variant>),
    /// Chunks should be this long, in milliseconds; none: as before.
    ChunkLength(Option<u64>),
}

/// The advice in force.
#[derive(Debug, Default)]
pub struct Policy {
    /// By variant: the relay advises against it.
    behind: [bool; LANES],
    /// By class: there is no room.
    full: [bool; Class::COUNT],
    chunk_ms: Option<u64>,
    heard: Option<u64>,
    narrowed: Option<u64>,
}

const LANES: usize = Variant::ALL.len();

impl Policy {
    /// The relay advises. A hint says everything that is in force.
    pub fn heard(&mut self, hint: &Hint, now: u64) -> Vec<Change> {
        let before = (self.kept(), self.chunk_ms);
        self.heard = Some(now);
        let behind = match &hint.lanes {
            None => [false; LANES],
            Some(lanes) => std::array::from_fn(|at| at > 0 && !lanes.contains(&Variant::ALL[at])),
        };
        if behind.iter().zip(self.behind).any(|(now, before)| *now && !before) {
            self.narrowed = Some(now);
            for (held, advised) in self.behind.iter_mut().zip(behind) {
                *held |= advised;
            }
        } else if self.narrowed.is_none_or(|at| now.saturating_sub(at) >= SETTLE_MS) {
            self.behind = behind;
        }
        if let Some(pressure) = hint.pressure {
            for (full, pressure) in self.full.iter_mut().zip(pressure).skip(1) {
                *full = pressure >= if *full { FULL.1 } else { FULL.0 };
            }
        }
        self.chunk_ms = hint.chunk_ms.map(|length| length.clamp(CHUNK_MS.0, CHUNK_MS.1));
        self.changed(before)
    }

    /// Another connection, which may be to another relay: what was advised is over.
    pub fn connected(&mut self) -> Vec<Change> {
        let before = (self.kept(), self.chunk_ms);
        *self = Self::default();
        self.changed(before)
    }

    /// When a chunk may go.
    #[must_use]
    pub fn turn(&self, variant: Variant, first: bool, now: u64) -> Turn {
        let fresh = self.heard.is_some_and(|at| now.saturating_sub(at) < STALE_MS);
        if !fresh || first || variant.class() == Class::Audio {
            Turn::Now
        } else if self.full[variant.class().rank()] {
            Turn::Later
        } else if self.behind[variant as usize] {
            Turn::Idle
        } else {
            Turn::Now
        }
    }

    /// When chunks of each class may go, but for first ones: of two lanes of a class the sooner.
    #[must_use]
    pub fn turns(&self, now: u64) -> [Turn; Class::COUNT] {
        let mut turns = [Turn::Later; Class::COUNT];
        for variant in Variant::ALL {
            let turn = &mut turns[variant.class().rank()];
            *turn = (*turn).min(self.turn(*variant, false, now));
        }
        turns
    }

    /// Suggested length of a chunk, in milliseconds.
    #[must_use]
    pub const fn chunk_ms(&self) -> Option<u64> {
        self.chunk_ms
    }

    /// The lanes that are sent in their turn.
    #[must_use]
    pub fn kept(&self) -> Vec<Variant> {
        let kept = |variant: &&Variant| !self.behind[**variant as usize] && !self.full[variant.class().rank()];
        Variant::ALL.iter().filter(kept).copied().collect()
    }

    fn changed(&self, before: (Vec<Variant>, Option<u64>)) -> Vec<Change> {
        let kept = self.kept();
        let lanes = (kept != before.0).then_some(Change::Lanes(kept));
        let length = (self.chunk_ms != before.1).then_some(Change::ChunkLength(self.chunk_ms));
        lanes.into_iter().chain(length).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Variant::{AudioPriority, EvidenceMaster, LivePreview, LocationContext, MetadataContext};
    use proptest::prelude::*;

    fn keep(lanes: &[Variant]) -> Hint {
        Hint { lanes: Some(lanes.to_vec()), ..Hint::default() }
    }

    fn room(master: f32) -> Hint {
        Hint { pressure: Some([0.99, 0.0, 0.0, master]), ..Hint::default() }
    }

    #[test]
    fn lanes_are_held_back_and_come_back() {
        let mut policy = Policy::default();
        assert_eq!(policy.turn(EvidenceMaster, false, 0), Turn::Now);
        let changes = policy.heard(&keep(&[AudioPriority, LivePreview]), 0);
        assert_eq!(changes, [Change::Lanes(vec![AudioPriority, LivePreview])]);
        assert_eq!(policy.turn(LivePreview, false, 0), Turn::Now);
        assert_eq!(policy.turn(EvidenceMaster, false, 0), Turn::Idle);
        assert_eq!(policy.turn(EvidenceMaster, true, 0), Turn::Now, "the first chunk of a lane always goes");
        assert!(policy.heard(&Hint::default(), 1_000).is_empty(), "not so soon");
        let back = policy.heard(&Hint::default(), SETTLE_MS);
        assert_eq!(back, [Change::Lanes(Variant::ALL.to_vec())]);
        assert_eq!(policy.turn(EvidenceMaster, false, SETTLE_MS), Turn::Now);
    }

    #[test]
    fn a_class_waits_when_all_its_lanes_do() {
        let mut policy = Policy::default();
        policy.heard(&keep(&[AudioPriority, LivePreview, LocationContext]), 0);
        assert_eq!(policy.turns(0), [Turn::Now, Turn::Now, Turn::Now, Turn::Idle]);
        policy.heard(&Hint { pressure: Some([0.0, 0.0, 0.0, 1.0]), ..keep(&[AudioPriority]) }, 0);
        assert_eq!(policy.turns(0), [Turn::Now, Turn::Idle, Turn::Idle, Turn::Later]);
    }

    #[test]
    fn sound_goes_whatever_is_said() {
        let mut policy = Policy::default();
        policy.heard(&keep(&[]), 0);
        assert_eq!(policy.turn(AudioPriority, false, 0), Turn::Now);
        policy.heard(&Hint { pressure: Some([1.0; 4]), ..keep(&[EvidenceMaster]) }, 0);
        assert_eq!(policy.turn(AudioPriority, false, 0), Turn::Now);
        assert_eq!(policy.kept(), [AudioPriority]);
    }

    #[test]
    fn without_room_there_is_nothing_to_try() {
        let mut policy = Policy::default();
        assert_eq!(policy.heard(&room(0.96), 0).len(), 1);
        assert_eq!(policy.turn(EvidenceMaster, false, 0), Turn::Later);
        assert_eq!(policy.turn(LocationContext, false, 0), Turn::Now);
        policy.heard(&room(0.85), 10);
        assert_eq!(policy.turn(EvidenceMaster, false, 10), Turn::Later);
        policy.heard(&room(0.7), 20);
        assert_eq!(policy.turn(EvidenceMaster, false, 20), Turn::Now);
    }

    #[test]
    fn advice_ends_with_its_connection_and_with_time() {
        let mut policy = Policy::default();
        policy.heard(&Hint { chunk_ms: Some(4_000), ..keep(&[AudioPriority]) }, 0);
        assert_eq!(policy.turn(LivePreview, false, STALE_MS - 1), Turn::Idle);
        assert_eq!(policy.turn(LivePreview, false, STALE_MS), Turn::Now);
        let over = policy.connected();
        assert_eq!(over, [Change::Lanes(Variant::ALL.to_vec()), Change::ChunkLength(None)]);
        assert!(policy.connected().is_empty());
    }

    #[test]
    fn the_length_of_chunks_is_told_when_it_changes_and_never_absurd() {
        let mut policy = Policy::default();
        let length = |chunk_ms| Hint { chunk_ms, ..Hint::default() };
        assert_eq!(policy.heard(&length(Some(4_000)), 0), [Change::ChunkLength(Some(4_000))]);
        assert!(policy.heard(&length(Some(4_000)), 0).is_empty());
        assert_eq!(policy.heard(&length(Some(0)), 0), [Change::ChunkLength(Some(CHUNK_MS.0))]);
        policy.heard(&length(Some(u64::MAX)), 0);
        assert_eq!(policy.chunk_ms(), Some(CHUNK_MS.1));
        assert_eq!(policy.heard(&length(None), 0), [Change::ChunkLength(None)]);
    }

    proptest! {
        #[test]
        fn whatever_is_said_sound_and_first_chunks_go_and_everything_comes_back(
            hints in prop::collection::vec(
                (prop::option::of(prop::collection::vec(0usize..LANES, 0..6)), any::<[f32; 4]>(), 0u64..20_000), 0..60,
            ),
        ) {
            let mut policy = Policy::default();
            let mut now = 0;
            for (lanes, pressure, passed) in hints {
                now += passed;
                let lanes = lanes.map(|lanes| lanes.into_iter().map(|at| Variant::ALL[at]).collect());
                let kept = policy.kept();
                let changes = policy.heard(&Hint { lanes, pressure: Some(pressure), ..Hint::default() }, now);
                let said = changes.iter().any(|change| matches!(change, Change::Lanes(_)));
                prop_assert_eq!(kept != policy.kept(), said, "each change is told");
                prop_assert_eq!(policy.turn(AudioPriority, false, now), Turn::Now);
                for variant in [LivePreview, LocationContext, MetadataContext, EvidenceMaster] {
                    prop_assert_eq!(policy.turn(variant, true, now), Turn::Now);
                }
            }
            let calm = Hint { pressure: Some([0.0; 4]), ..Hint::default() };
            policy.heard(&calm, now + SETTLE_MS);
            prop_assert!(Variant::ALL.iter().all(|one| policy.turn(*one, false, now + SETTLE_MS) == Turn::Now));
        }
    }
}
