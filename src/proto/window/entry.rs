//! One chunk of a lane, and the frames that every contact is given of it.

use std::sync::Arc;

use bytes::Bytes;

use super::ChunkMeta;
use super::body::Body;
use super::lane::{StreamTag, tag};
use crate::code::Code;
use crate::frame::{encode_json, kind};
use crate::message::{ChunkBegins, Complete, ContactChunkState, Error, OmittedReason, Withdrawn, WithdrawnReason};
use crate::state::ContactState;

/// Why a chunk is not confirmed: the relay's code and the core's own, if it gave one.
pub type Trouble = (Code, Option<Box<str>>);

/// A chunk that is followed: its bytes may be gone, its state is not.
pub(super) struct Entry {
    pub(super) meta: Arc<ChunkMeta>,
    pub(super) handle: u64,
    /// Its slot in the account of memory.
    pub(super) slot: u64,
    /// The attempt that may withdraw it.
    pub(super) owner: u64,
    /// Its stream's place in the chain, and its hash.
    pub(super) ordinal: u64,
    pub(super) tag: StreamTag,
    /// Its end on the lane's time axis.
    pub(super) ends: i64,
    /// Its bytes; also of a stalled chunk, for a later attempt to go on with.
    pub(super) body: Option<Body>,
    /// Why it is not shown.
    pub(super) gone: Option<OmittedReason>,
    pub(super) withdrawn: Option<WithdrawnReason>,
    /// When its first byte came; `None`: to an earlier process.
    pub(super) came: Option<u64>,
    /// An earlier attempt at it is followed here.
    pub(super) again: bool,
    /// When the last attempt at it went without an end.
    pub(super) left: Option<u64>,
    /// All bytes are here and the hash agrees.
    pub(super) whole: bool,
    pub(super) state: ContactState,
    receipt: Option<Arc<str>>,
    trouble: Option<Trouble>,
    /// Number of the last event that changed its state.
    pub(super) changed: u64,
    /// Number of the event that said it is whole.
    pub(super) completed: u64,
    begins: [Option<Bytes>; 2],
    states: Option<Bytes>,
    completes: Option<Bytes>,
}

impl Entry {
    pub(super) fn new(meta: Arc<ChunkMeta>, handle: u64, slot: u64, owner: u64, ordinal: u64, ends: i64) -> Self {
        Self {
            body: Some(Body::new(handle, meta.length)),
            tag: tag(&meta.stream),
            meta,
            handle,
            slot,
            owner,
            ordinal,
            ends,
            gone: None,
            withdrawn: None,
            came: None,
            again: false,
            left: None,
            whole: false,
            state: ContactState::Arriving,
            receipt: None,
            trouble: None,
            changed: 0,
            completed: 0,
            begins: [None, None],
            states: None,
            completes: None,
        }
    }

    /// Whether contacts can be shown it.
    pub(super) const fn held(&self) -> bool {
        self.gone.is_none()
    }

    /// Whether contacts can be shown a part of it: a chunk that is only offered may wait behind others.
    pub(super) fn shows(&self) -> bool {
        self.held() && self.body.as_ref().is_some_and(|body| body.have() > 0)
    }

    /// Whether its state waits for the core or for its own bytes.
    pub(super) const fn open_ended(&self) -> bool {
        matches!(self.state, ContactState::Arriving | ContactState::NearLiveUnconfirmed)
    }

    /// Takes a state; `false` if it says nothing new or goes backwards.
    pub(super) fn set_state(
        &mut self,
        state: ContactState,
        receipt: Option<Arc<str>>,
        trouble: Option<Trouble>,
    ) -> bool {
        let brings_receipt = state == self.state && receipt.is_some() && self.receipt.is_none();
        let onward = rank(state) > rank(self.state);
        let undecided = state != self.state && rank(state) == UNDECIDED && rank(self.state) == UNDECIDED;
        if self.withdrawn.is_some() || !(onward || undecided || brings_receipt) {
            return false;
        }
        self.state = state;
        self.receipt = receipt.or_else(|| self.receipt.take());
        self.trouble = trouble;
        self.forget_frames();
        true
    }

    /// The core refused it, or it was let go.
    pub(super) const fn failed(&self) -> bool {
        matches!(self.state, ContactState::Rejected | ContactState::TerminalFailure)
    }

    pub(super) fn withdraw(&mut self, reason: WithdrawnReason) {
        self.withdrawn = Some(reason);
        self.gone = Some(OmittedReason::Withdrawn);
        self.state = ContactState::Withdrawn;
        self.whole = false;
        self.forget_frames();
    }

    fn forget_frames(&mut self) {
        self.begins = [None, None];
        self.states = None;
    }

    /// `CHUNK`, with the state of this moment.
    pub(super) fn begins(&mut self, replay: bool) -> Bytes {
        let cached = &mut self.begins[usize::from(replay)];
        let (meta, handle, state) = (&self.meta, self.handle, self.state);
        cached
            .get_or_insert_with(|| {
                encode_json(
                    kind::CHUNK,
                    &ChunkBegins {
                        handle,
                        stream: meta.stream.clone(),
                        variant: meta.variant,
                        media: meta.media,
                        index: meta.index,
                        length: meta.length,
                        sha256: meta.sha256,
                        started: meta.started.clone(),
                        ended: meta.ended.clone(),
                        state,
                        replay,
                    },
                )
            })
            .clone()
    }

    /// `STATE`.
    pub(super) fn states(&mut self) -> Bytes {
        let (meta, state, receipt, trouble) = (&self.meta, self.state, &self.receipt, &self.trouble);
        self.states
            .get_or_insert_with(|| {
                let error = trouble.as_ref().map(|(code, core_code)| Error {
                    core_code: core_code.as_deref().map(str::to_owned),
                    ..Error::from(*code)
                });
                encode_json(
                    kind::STATE,
                    &ContactChunkState {
                        stream: meta.stream.clone(),
                        index: meta.index,
                        state,
                        receipt: receipt.as_deref().map(str::to_owned),
                        error,
                    },
                )
            })
            .clone()
    }

    /// `STATE` beside `CHUNK`, where it says more than `CHUNK` does.
    pub(super) fn states_beside(&mut self) -> Option<Bytes> {
        let more = self.receipt.is_some() || self.trouble.is_some() || !self.open_ended();
        more.then(|| self.states())
    }

    /// `COMPLETE`.
    pub(super) fn completes(&mut self) -> Bytes {
        let handle = self.handle;
        self.completes.get_or_insert_with(|| encode_json(kind::COMPLETE, &Complete { handle })).clone()
    }

    /// What a change of its state is told as: `WITHDRAWN` or `STATE`.
    pub(super) fn change(&mut self) -> Bytes {
        match self.withdrawn {
            Some(reason) => encode_json(kind::WITHDRAWN, &Withdrawn { handle: self.handle, reason }),
            None => self.states(),
        }
    }

    /// Its state and why, for whole-chunk subscribers.
    pub(super) fn standing(&self) -> (ContactState, Option<Trouble>) {
        (self.state, self.trouble.clone())
    }
}

/// The rank of what the core has not decided: these may change into each other.
const UNDECIDED: u8 = 1;

/// States only go up.
const fn rank(state: ContactState) -> u8 {
    match state {
        ContactState::Arriving => 0,
        ContactState::NearLiveUnconfirmed | ContactState::Unsettled => UNDECIDED,
        ContactState::Rejected | ContactState::TerminalFailure => 2,
        ContactState::Confirmed => 3,
        ContactState::Withdrawn => 4,
    }
}
