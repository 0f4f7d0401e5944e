//! What the ledger knows of a chunk, and the words it speaks in.

use std::sync::Arc;

use crate::code::Code;
use crate::id::Digest;
use crate::media::{Class, words};
use crate::state::ChunkState;

/// A session, as a keyed hash that says nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Owner(pub u64);

/// A stream of an incident, as a keyed hash that says nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamKey(pub u64);

words! {
    /// Why a chunk is not confirmed yet.
    Reason {
        /// The core does not answer.
        CoreUnreachable = "core_unreachable",
        /// The core asks this relay to slow down.
        CoreLimited = "core_limited",
        /// The core does not accept this relay's service token.
        ServiceToken = "service_token",
        /// Its capability ran out.
        AwaitingCapability = "awaiting_capability",
        /// The account's storage at the core is full.
        AccountQuota = "account_quota",
        /// The core may have it.
        Unsettled = "unsettled",
        /// It waits for its turn.
        Queued = "queued",
    }
}

words! {
    /// How a chunk's way through this relay ended.
    Ending {
        /// The core confirmed it.
        Confirmed = "confirmed",
        /// The core refused it.
        Rejected = "rejected",
        /// It stayed unconfirmed for `keep_for`.
        Expired = "expired",
        /// Its bytes were not those of its digest.
        Mismatched = "mismatched",
        /// The disk failed while it was received: its client must bring it again.
        Failed = "failed",
        /// Its client dropped it while it was being received, or never came back.
        Abandoned = "abandoned",
        /// Its bytes on the disk were no longer those of its digest.
        Damaged = "damaged",
    }
}

/// What the ledger knows of an offer.
#[derive(Debug, Clone, Copy)]
pub struct Terms {
    /// Whose it is.
    pub owner: Owner,
    /// Its stream.
    pub stream: StreamKey,
    /// Its lane, as a keyed hash.
    pub lane: u64,
    /// Its class.
    pub class: Class,
    /// Its index in the stream.
    pub index: u64,
    /// Bytes.
    pub length: u64,
    /// SHA-256.
    pub digest: Digest,
    /// Attempt.
    pub attempt: u64,
    /// Unix seconds until which the core takes its commit.
    pub expires: i64,
}

/// One chunk.
#[derive(Debug, Clone)]
pub struct Record {
    /// What was offered.
    pub terms: Terms,
    /// Its state.
    pub state: ChunkState,
    /// Bytes held from its start.
    pub held: u64,
    /// It is the first of its lane.
    pub first: bool,
    /// Which attempt is the current one; older ones may write no more.
    pub epoch: u64,
    /// An attempt is bringing bytes now.
    pub active: bool,
    /// When it was offered, in the ms of [`Ledger::handle_time`](super::Ledger::handle_time).
    pub since: i64,
    /// When it is let go, in the same.
    pub until: i64,
    /// Commits tried.
    pub tries: u32,
    /// A commit may have reached the core without its answer reaching us.
    pub ambiguous: bool,
    /// Its bytes were written by this process, so their hash is known to be right.
    pub verified: bool,
    /// It was offered to an earlier process, and when is known by the calendar alone: it is not let
    /// go before this.
    pub recovered: Option<i64>,
    /// Blocked by the account's quota.
    pub blocked: bool,
    /// The core's receipt.
    pub receipt: Option<Arc<str>>,
    /// Why it was refused.
    pub refusal: Option<(Code, Option<Box<str>>)>,
    pub(super) seq: u64,
    pub(super) due: Option<u64>,
}

/// What is to be done with an offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Receive it, as attempt `epoch`.
    Receive {
        /// The attempt's number here.
        epoch: u64,
        /// Bytes of the same digest that are here.
        held: u64,
        /// A partial of another digest is to be removed first.
        replaces: bool,
    },
    /// It is here; see [`Ledger::record`](super::Ledger::record).
    Have,
}

/// What the core said of a commit, as far as the ledger is concerned.
#[derive(Debug, Clone)]
pub enum Verdict {
    /// Stored.
    Confirmed(Option<Arc<str>>),
    /// Not sent: its bytes are no longer those of its digest.
    Damaged,
    /// Refused for good.
    Rejected(Code, Option<Box<str>>),
    /// The capability is no longer taken.
    CapabilityExpired,
    /// The core has a chunk under this identity.
    Duplicate,
    /// The account is full; tried again after this many ms.
    AccountFull(u64),
    /// Nothing was stored; again after this many ms.
    Retry(u64),
    /// It may have been stored; again after this many ms.
    Ambiguous(u64),
}

/// How many, how much, how old.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Chunks.
    pub chunks: u64,
    /// Bytes.
    pub bytes: u64,
    /// When the oldest was offered, Unix ms.
    pub oldest: Option<i64>,
}

/// Bounds on what is being received.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// In all.
    pub receiving: usize,
    /// Of one session.
    pub per_session: usize,
    /// How long an unconfirmed chunk is kept, ms.
    pub keep_ms: i64,
}
