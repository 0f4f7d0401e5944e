//! A lane's chunks that wait for their place: not sealed yet.

use std::collections::VecDeque;

use crate::capture::Config;
use crate::capture::lane::Lane;
use crate::capture::queue::{self, Waiting};
use crate::capture::store::record::{LaneState, Record, State};

/// A lane, and its chunks that are not sealed, oldest first.
pub(super) struct LaneQueue {
    pub(super) lane: Lane,
    pub(super) next_seq: u64,
    pub(super) unsealed: VecDeque<Unsealed>,
    /// Its owner was told that they stay here, and that some of them can't be read.
    pub(super) told: bool,
    pub(super) told_unread: bool,
}

/// A chunk that waits for its place.
#[derive(Clone, Copy)]
pub(super) struct Unsealed {
    pub(super) id: u64,
    pub(super) lane_seq: u64,
    pub(super) started_ms: i64,
    pub(super) ended_ms: i64,
    /// How often it could not be read, and the calendar time before which it is not tried again.
    pub(super) unread: u32,
    pub(super) not_before_ms: i64,
}

impl LaneQueue {
    pub(super) fn new(lane: Lane, next_seq: u64) -> Self {
        Self { lane, next_seq, unsealed: Default::default(), told: false, told_unread: false }
    }

    /// Chunks wait for a stream that nobody gives now.
    pub(super) fn is_stuck(&self) -> bool {
        !self.unsealed.is_empty() && self.lane.is_over()
    }

    /// What was refused is asked for again.
    pub(super) fn ask_again(&mut self) {
        self.told = false;
        self.lane.ask_again();
        self.unsealed.iter_mut().for_each(|chunk| chunk.not_before_ms = 0);
    }

    /// The lane as nobody used it yet.
    pub(super) fn record(&self) -> Record {
        let (variant, media) = (self.lane.variant, self.lane.media);
        Record::Lane { lane: LaneState { variant, media, next_seq: 0, streams: Vec::new(), chain: String::new() } }
    }

    /// A chunk waits, and there is a place for it.
    pub(super) fn is_ready(&self, now_ms: i64) -> bool {
        self.lane.has_place() && self.due(now_ms).is_some()
    }

    /// The oldest chunk that may be tried now.
    pub(super) fn due(&self, now_ms: i64) -> Option<usize> {
        self.unsealed.iter().position(|chunk| chunk.not_before_ms <= now_ms)
    }

    /// Where it was: in the order of cutting.
    pub(super) fn put_back(&mut self, chunk: Unsealed) {
        let at = self.unsealed.partition_point(|other| other.id < chunk.id);
        self.unsealed.insert(at, chunk);
    }

    pub(super) fn rank(&self, now_ms: i64) -> Option<queue::Rank> {
        let chunk = self.unsealed.get(self.due(now_ms)?)?;
        let (class, first) = (self.lane.variant.class(), chunk.lane_seq == 0);
        let started_ms = chunk.started_ms;
        Some(queue::rank(
            &Waiting { id: chunk.id, class, first, started_ms, length: 0, held: false, begun: false, due_ms: 0 },
            None,
        ))
    }
}

impl Unsealed {
    pub(super) const fn new(id: u64, lane_seq: u64, started_ms: i64, ended_ms: i64) -> Self {
        Self { id, lane_seq, started_ms, ended_ms, unread: 0, not_before_ms: 0 }
    }
}

/// The lanes of an earlier run, and those that are new.
pub(super) fn lanes(state: &State, config: &Config) -> Vec<LaneQueue> {
    let streams = |lane: &LaneState| {
        let streams = lane.streams.iter().map(|stream| (stream.stream.clone(), stream.used));
        Lane::restored(lane.variant, lane.media, streams.collect::<Vec<_>>())
    };
    let known = state.lanes.iter().map(|lane| (streams(lane), lane.next_seq));
    let new = config.lanes.iter().filter(|spec| state.lane(spec.variant).is_none());
    let new = new.map(|spec| (Lane::new(spec.variant, spec.media), 0));
    known.chain(new).map(|(lane, next_seq)| LaneQueue::new(lane, next_seq)).collect()
}
