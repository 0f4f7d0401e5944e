//! What a capture session tells its user.

use waystation_proto::message::Hint;
use waystation_proto::{ChunkState, Variant};

use super::policy::Change;
use super::status::{ItemState, SessionState};
use crate::receipt::Proof;
pub use waystation_congestion::Path;

/// Which chunk, without an identifier of incident, group or stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Label {
    /// Its lane.
    pub variant: Variant,
    /// Running number in the lane, from 0.
    pub lane_seq: u64,
    /// Ordinal of its stream in the lane, from 0.
    pub stream_no: u64,
    /// Index in its stream, from 1.
    pub index: u64,
    /// Start of the recorded stretch, milliseconds since the Unix epoch.
    pub started_ms: i64,
    /// Bytes sealed.
    pub length: u64,
}

/// Something happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A chunk was sealed and waits.
    Cut(Label),
    /// Its last byte went to the network.
    Sent(Label),
    /// The relay says something new of it.
    State {
        /// Which chunk.
        label: Label,
        /// Its state.
        state: ChunkState,
        /// The stable code of an error.
        code: Option<String>,
        /// What its receipt proves.
        receipt: Proof,
    },
    /// A chunk has a new state in the queue, which is not just a consequence of the relay's.
    Item {
        /// Which chunk.
        label: Label,
        /// Its state.
        state: ItemState,
        /// The stable code of an error.
        code: Option<String>,
    },
    /// A relay holds a chunk whole, for the first time; said again whenever the queue is opened.
    EvidenceReady,
    /// The recording has its names at the core.
    Named,
    /// The session changed its state.
    Session(SessionState),
    /// Chunks of a lane stay on the device for now, with their bytes; told once.
    Held {
        /// The lane.
        variant: Variant,
        /// Why: `no_stream` (the core gives the lane no further one: asked again on a network
        /// change, on request and at the next start), or `file_unreadable` (tried again).
        code: String,
    },
    /// A chunk can't be sent: its file is gone, or does not open.
    Lost {
        /// Its lane.
        variant: Variant,
        /// Running number in the lane.
        lane_seq: u64,
    },
    /// The relay is reached.
    Connected {
        /// How often that happened before.
        earlier: u64,
    },
    /// The relay is not reached, or broke off; the next try is being made.
    Disconnected {
        /// A stable code, if the relay gave one.
        code: Option<String>,
    },
    /// A new upload capability is in use.
    Renewed,
    /// A lane went on to its next stream.
    Rolled {
        /// The lane.
        variant: Variant,
        /// Ordinal of the new stream.
        stream_no: u64,
    },
    /// The authority gave nothing.
    Authority {
        /// Why.
        error: String,
    },
    /// What the way to the relay is like now; told when it changed, over QUIC alone.
    Path(Path),
    /// Advice of the relay.
    Hint(Hint),
    /// What follows from it for the recorder.
    Advice(Change),
}

/// How a session ended, over all runs of its queue.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    /// Chunks cut, without the manifest.
    pub chunks: u64,
    /// Confirmed by the core.
    pub confirmed: u64,
    /// The core may have them.
    pub unsettled: u64,
    /// Refused for good.
    pub rejected: u64,
    /// Unconfirmed for too long at the relay, and not brought there again.
    pub expired: u64,
    /// Not ended when the deadline came.
    pub pending: u64,
    /// Of those, failed for now.
    pub failed: u64,
    /// Gone before they were sent: the file is missing, or does not open.
    pub lost: u64,
    /// Whether the manifest is confirmed; none: there is none.
    pub manifest: Option<bool>,
    /// How often the connection was made again, in this run.
    pub reconnects: u64,
    /// How often a new capability was used, in this run.
    pub renewals: u64,
    /// How often a lane went on to its next stream, in this run.
    pub rolls: u64,
    /// Bytes of all sealed chunks.
    pub bytes: u64,
    /// Events that nobody took in time; recording does not wait for its viewer.
    pub events_missed: u64,
}
