//! JSON bodies of control frames and of HTTP answers (`wire.md`). Unknown members are ignored.

use serde::{Deserialize, Serialize};

use crate::code::{Code, Retry};
use crate::id::{ChunkRef, Digest, GroupId, IncidentId, StreamId};
use crate::media::{Media, Priority, Profile, Variant};
use crate::offer::{Offer, Timestamp, parse_role};
use crate::state::{ChunkState, ContactState};

/// An error as it goes over the wire.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Error {
    /// Stable code.
    pub code: String,
    /// Text for people.
    pub message: String,
    /// What may be done next.
    pub retry: Retry,
    /// The core's own code, when it refused and its code is `[a-z0-9_]+`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub core_code: Option<String>,
}

impl From<Code> for Error {
    fn from(code: Code) -> Self {
        let spec = code.spec();
        Self { code: spec.name.into(), message: spec.message.into(), retry: spec.retry, core_code: None }
    }
}

/// `chunk` of an HTTP answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chunk {
    /// Its name on the wire.
    #[serde(rename = "ref")]
    pub chunk_ref: ChunkRef,
    /// Its state here.
    pub state: ChunkState,
    /// Bytes held, from its start.
    pub offset: u64,
    /// Bytes in all.
    pub length: u64,
    /// The core's receipt, verbatim.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub receipt: Option<String>,
}

/// The body of a native HTTP answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The chunk, where there is one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub chunk: Option<Chunk>,
    /// The error, where there is one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub error: Option<Error>,
}

/// `0x01 HELLO`.
#[derive(Clone, Serialize, Deserialize)]
pub struct Hello {
    /// Protocol version.
    pub protocol: u32,
    /// Upload capabilities, one or more.
    pub capabilities: Vec<String>,
    /// "wifi", "cellular" or whatever the platform says; advice only.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub network: Option<String>,
}

/// `0x02 OFFER`: a handle and the dictionary of `Waystation-Chunk` as JSON, with `sha256`.
#[derive(Clone, Serialize, Deserialize)]
pub struct OfferBody {
    /// The client's number for this chunk on this connection.
    pub handle: u64,
    /// Incident.
    pub incident: IncidentId,
    /// Stream.
    pub stream: StreamId,
    /// Index from 1.
    pub index: u64,
    /// Media type.
    pub media: Media,
    /// Start.
    pub started: Timestamp,
    /// End.
    pub ended: Timestamp,
    /// Bytes in all.
    pub length: u64,
    /// SHA-256, lower-case hex.
    pub sha256: Digest,
    /// File name.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub name: String,
    /// Claimed role.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub role: Option<String>,
    /// Group.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub group: Option<GroupId>,
    /// Segment.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub segment: Option<String>,
    /// Sequence.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub sequence: Option<u64>,
    /// Source.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub source: Option<String>,
    /// Clock.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub clock: Option<String>,
    /// Quality profile.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub profile: Option<Profile>,
    /// Upload priority.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub priority: Option<Priority>,
    /// Attempt, from 1.
    #[serde(default = "one")]
    pub attempt: u64,
    /// Signature, base64url without padding.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub sig: Option<String>,
}

const fn one() -> u64 {
    1
}

impl OfferBody {
    /// Writes an offer as a frame's body.
    #[must_use]
    pub fn new(handle: u64, offer: &Offer) -> Self {
        use base64::Engine as _;
        Self {
            handle,
            incident: offer.incident.clone(),
            stream: offer.stream.clone(),
            index: offer.index,
            media: offer.media,
            started: offer.started.clone(),
            ended: offer.ended.clone(),
            length: offer.length,
            sha256: offer.sha256,
            name: offer.name.clone(),
            role: offer.role.map(|role| role.as_str().into()),
            group: offer.group.clone(),
            segment: offer.segment.clone(),
            sequence: offer.sequence,
            source: offer.source.clone(),
            clock: offer.clock.clone(),
            profile: offer.profile,
            priority: offer.priority,
            attempt: offer.attempt,
            sig: offer.sig.map(|sig| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(sig)),
        }
    }

    /// The checked offer.
    ///
    /// # Errors
    /// The code of the first rule that is broken.
    pub fn into_offer(self) -> Result<Offer, Code> {
        use base64::Engine as _;
        let sig = match self.sig {
            None => None,
            Some(text) => {
                let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD
                    .decode(text)
                    .map_err(|_| Code::SignatureInvalid)?;
                Some(bytes.try_into().map_err(|_| Code::SignatureInvalid)?)
            }
        };
        let offer = Offer {
            incident: self.incident,
            stream: self.stream,
            index: self.index,
            media: self.media,
            started: self.started,
            ended: self.ended,
            length: self.length,
            sha256: self.sha256,
            name: self.name,
            role: self.role.as_deref().map(parse_role).transpose()?,
            group: self.group,
            segment: self.segment,
            sequence: self.sequence,
            source: self.source,
            clock: self.clock,
            profile: self.profile,
            priority: self.priority,
            attempt: self.attempt,
            sig,
        };
        offer.check()?;
        Ok(offer)
    }
}

/// `0x04 CAPABILITY` and `0x22 RENEW`.
#[derive(Clone, Serialize, Deserialize)]
pub struct Capability {
    /// The token.
    pub capability: String,
}

/// `0x06 END`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct End {
    /// Why the recording ended: "stopped", "battery", …; shown to nobody, advice only.
    #[serde(default)]
    pub reason: String,
}

/// `0x11 WELCOME`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Welcome {
    /// Protocol version.
    pub protocol: u32,
    /// Opaque id of the relay: which one holds the offset.
    pub node: String,
    /// What this relay takes.
    pub limits: Limits,
}

/// Head of the answer that opens `/capture`: bytes of chunks offered for the first time that may
/// come before their `SEND` (`docs/protocol.md`, 7.2).
pub const EARLY_BYTES: &str = "waystation-early-bytes";

/// `limits` of `WELCOME`.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Limits {
    /// Largest chunk, in bytes.
    pub max_chunk: u64,
    /// Largest `PIECE` body, in bytes.
    pub max_piece: u64,
    /// Offers that may be open on this connection.
    pub offers: u32,
    /// Chunks of a session that may be received at once.
    pub in_flight: u32,
    /// Capabilities that a connection knows by name ([`crate::known`]); a relay that says nothing
    /// of it wants them whole.
    #[serde(default)]
    pub known: u32,
}

/// `0x12 SEND`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Send {
    /// The offer's handle.
    pub handle: u64,
    /// Where to go on.
    pub offset: u64,
    /// How many bytes may come before the next `CREDIT`.
    pub credit: u64,
}

/// `0x13 STATE` to a capture client. `ref` and `state` are absent when the offer was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaptureState {
    /// The offer's handle.
    pub handle: u64,
    /// The chunk.
    #[serde(rename = "ref", skip_serializing_if = "Option::is_none", default)]
    pub chunk_ref: Option<ChunkRef>,
    /// Its state.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub state: Option<ChunkState>,
    /// The core's receipt.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub receipt: Option<String>,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub error: Option<Error>,
    /// Seconds to wait before offering again, where `error.retry` is `later`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub retry_after_s: Option<u64>,
}

/// `0x14 CREDIT`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credit {
    /// The offer's handle.
    pub handle: u64,
    /// How many more bytes may come.
    pub bytes: u64,
}

/// `0x15 HINT`: everything in it is advice.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Hint {
    /// Seconds for which the core asked this relay to slow down.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub core_limited_s: Option<u64>,
    /// The core does not answer.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub core_away: Option<bool>,
    /// How full the room for each class is, 0 to 1, in the order of mercy.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub pressure: Option<[f32; 4]>,
    /// The measured rate of the session's uplink, in bytes per second.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub rate: Option<u64>,
    /// Keep only these lanes for now; absent: all.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub lanes: Option<Vec<Variant>>,
    /// Cut chunks so long, in milliseconds of recording; absent: as usual.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub chunk_ms: Option<u64>,
}

/// `0x16 BYE`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bye {
    /// A stable code.
    pub reason: String,
    /// Seconds to wait before coming back.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub retry_after_s: Option<u64>,
}

/// `0x17 REFUSED`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// Which capability of this connection, in the order they were presented, from 0.
    pub capability: u64,
    /// Why.
    pub error: Error,
    /// Seconds to wait before presenting it again, where `error.retry` is `later`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub retry_after_s: Option<u64>,
}

/// Where a contact wants to begin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum StartAt {
    /// "live" or "oldest".
    Word(StartWord),
    /// At a chunk.
    At {
        /// Its stream.
        stream: StreamId,
        /// Its index.
        index: u64,
    },
}

/// The words of [`StartAt`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StartWord {
    /// With the newest chunk of each lane.
    Live,
    /// With the oldest in the window.
    Oldest,
}

/// `0x21 WATCH`.
#[derive(Clone, Serialize, Deserialize)]
pub struct Watch {
    /// Protocol version.
    pub protocol: u32,
    /// A fan-out capability.
    pub capability: String,
    /// Which variants; absent: every watchable lane.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub lanes: Option<Vec<Variant>>,
    /// Where to begin; absent: live.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub from: Option<StartAt>,
    /// A `CURSOR` of an earlier subscription; goes before `from`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub cursor: Option<String>,
}

/// `0x23 LANES`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Lanes {
    /// Which variants from now on.
    pub lanes: Vec<Variant>,
}

/// `0x24 FETCH`, and wherever one chunk is named.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fetch {
    /// Stream.
    pub stream: StreamId,
    /// Index.
    pub index: u64,
}

/// `0x31 WATCHING`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Watching {
    /// Opaque id of the relay.
    pub node: String,
    /// Start of the oldest chunk in the window; absent: the window is empty.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub window_start: Option<Timestamp>,
}

/// `0x32 CHUNK`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkBegins {
    /// The relay's number for this chunk.
    pub handle: u64,
    /// Stream.
    pub stream: StreamId,
    /// Variant.
    pub variant: Variant,
    /// Media type.
    pub media: Media,
    /// Index.
    pub index: u64,
    /// Bytes in all.
    pub length: u64,
    /// SHA-256.
    pub sha256: Digest,
    /// Start.
    pub started: Timestamp,
    /// End.
    pub ended: Timestamp,
    /// State at this moment.
    pub state: ContactState,
    /// It had begun before this contact came to it.
    pub replay: bool,
}

/// `0x34 COMPLETE`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Complete {
    /// The chunk's handle.
    pub handle: u64,
}

/// `0x35 WITHDRAWN`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Withdrawn {
    /// The chunk's handle.
    pub handle: u64,
    /// Why.
    pub reason: WithdrawnReason,
}

/// Why a chunk is withdrawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WithdrawnReason {
    /// The bytes are not those of the digest.
    HashMismatch,
    /// No byte came for too long.
    Stalled,
    /// A newer attempt brings other bytes.
    Superseded,
}

/// `0x36 STATE` to a contact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContactChunkState {
    /// Stream.
    pub stream: StreamId,
    /// Index.
    pub index: u64,
    /// State.
    pub state: ContactState,
    /// The core's receipt.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub receipt: Option<String>,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub error: Option<Error>,
}

/// `0x37 OMITTED`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Omitted {
    /// Stream.
    pub stream: StreamId,
    /// First index left out.
    pub from: u64,
    /// Last index left out.
    pub to: u64,
    /// Why.
    pub reason: OmittedReason,
}

/// Why chunks are left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OmittedReason {
    /// The window has moved on.
    Evicted,
    /// The contact's link is too thin.
    Slow,
    /// Larger than `fanout.max_chunk`.
    TooLarge,
    /// It was withdrawn before this contact came to it.
    Withdrawn,
}

/// `0x38 CAPTURE`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaptureEvent {
    /// What happened.
    pub event: CaptureWord,
    /// Seconds since the last sign of life.
    pub last_sign: u64,
    /// The newest chunk, if any.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub last_chunk: Option<Fetch>,
}

/// The words of [`CaptureEvent`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CaptureWord {
    /// Neither media nor `ALIVE` for a while.
    Silent,
    /// A sign of life after silence.
    Back,
    /// The device said so.
    Ended,
}

/// `0x3c SIGN`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sign {
    /// Seconds since the last sign of life, 5 and more; 0: there is one again, or was one in the last five seconds
    /// before the contact came.
    pub last_sign: u64,
}

/// `0x39 STREAM`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamJoins {
    /// The stream.
    pub stream: StreamId,
    /// Its variant.
    pub variant: Variant,
    /// The stream of the lane before it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub follows: Option<StreamId>,
}

/// `0x3a ENDING`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ending {
    /// A stable code, or "ended" when the recording is over.
    pub reason: String,
}

/// `0x3b CURSOR`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// Opaque; for `WATCH.cursor`.
    pub cursor: String,
}
