//! What a contact is told.

use waystation_proto::message::{CaptureWord, OmittedReason, WithdrawnReason};
use waystation_proto::{ContactState, Media, Variant};

use crate::receipt::Proof;

/// Which chunk, without an identifier of incident, group or stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Label {
    /// Its lane.
    pub variant: Variant,
    /// Its media type.
    pub media: Media,
    /// Ordinal of its stream among those of the lane that this contact has seen, from 0.
    pub stream_no: u64,
    /// Index in its stream, from 1.
    pub index: u64,
    /// Start of the recorded stretch, milliseconds since the Unix epoch, as the device says.
    pub started_ms: i64,
    /// Its end.
    pub ended_ms: i64,
    /// Bytes sealed.
    pub length: u64,
}

/// A chunk that came whole, is what the offer said, and opened.
#[derive(Clone, PartialEq, Eq)]
pub struct Whole {
    /// Which.
    pub label: Label,
    /// Running number in the lane, from 0, as the device sealed it.
    pub lane_seq: Option<u64>,
    /// The plaintext.
    pub plaintext: Vec<u8>,
    /// When its first byte came, milliseconds since the Unix epoch.
    pub first_byte_ms: i64,
    /// When its last byte came.
    pub last_byte_ms: i64,
}

impl std::fmt::Debug for Whole {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Whole").field("label", &self.label).field("lane_seq", &self.lane_seq).finish_non_exhaustive()
    }
}

/// Why a chunk is not shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bad {
    /// The relay says it is whole, and its bytes are not those of the digest.
    HashMismatch,
    /// Bytes are missing inside it, or too many came.
    Torn,
    /// It does not open: another key, or not what the device sealed.
    Sealed,
    /// Larger than this contact takes, or too many arrive at once.
    TooMuch,
}

/// Something happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The relay accepted the subscription.
    Watching {
        /// Start of the oldest chunk in the relay's window, milliseconds since the Unix epoch.
        window_start_ms: Option<i64>,
        /// How often that happened before.
        earlier: u64,
    },
    /// A chunk begins.
    Begins {
        /// Which.
        label: Label,
        /// Its state now.
        state: ContactState,
        /// It had begun before this contact came to it.
        replay: bool,
    },
    /// More bytes of a chunk are here.
    Progress {
        /// Which.
        label: Label,
        /// Bytes so far.
        received: u64,
        /// Running number in the lane, as the envelope says; proven only when it is complete.
        lane_seq: Option<u64>,
    },
    /// A chunk is whole and open.
    Complete(Whole),
    /// A chunk is not shown.
    Bad {
        /// Which.
        label: Label,
        /// Why.
        why: Bad,
    },
    /// A chunk's state, as the relay tells what the core said.
    State {
        /// Which; none if this contact never saw it begin.
        label: Option<Label>,
        /// Its state. Where a receipt proves nothing, `confirmed` is shown as `unsettled`.
        state: ContactState,
        /// The stable code of an error.
        code: Option<String>,
        /// What its receipt proves.
        receipt: Proof,
    },
    /// What arrived of a chunk is not that chunk: forget it.
    Withdrawn {
        /// Which.
        label: Label,
        /// Why.
        reason: WithdrawnReason,
    },
    /// Chunks were left out.
    Omitted {
        /// Their lane, if this contact knows their stream.
        variant: Option<Variant>,
        /// How many.
        count: u64,
        /// Why.
        reason: OmittedReason,
    },
    /// A lane goes on in its next stream.
    Stream {
        /// The lane.
        variant: Variant,
        /// Ordinal of the stream among those seen.
        stream_no: u64,
    },
    /// How the capture device is.
    Capture {
        /// What happened.
        event: CaptureWord,
        /// Seconds since its last sign of life.
        last_sign_s: u64,
    },
    /// How long the capture device has been quiet, from five seconds on; 0: it gives signs, again or since before
    /// this contact came.
    /// Whoever shows it counts on by itself until the next one.
    Sign {
        /// Seconds since its last sign of life.
        last_sign_s: u64,
    },
    /// Where this contact is; for a later subscription. Opaque.
    Cursor(String),
    /// The relay is not reached, or broke off; the next try is being made.
    Disconnected {
        /// A stable code, if the relay gave one.
        code: Option<String>,
    },
    /// A new capability is in use.
    Renewed,
    /// The subscription is over: "ended" when the recording is, or a stable code.
    Ending {
        /// Why.
        reason: String,
    },
}
