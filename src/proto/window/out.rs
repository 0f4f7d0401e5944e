//! What a poll hands out.

use bytes::Bytes;

use super::body::{FRAME_PAYLOAD, HEAD_ROOM};
use crate::frame::{encode_json, kind};
use crate::id::StreamId;
use crate::message::{Omitted, OmittedReason};

/// Media bytes of one poll: a chunk of 256 KiB with its envelope and the heads of its frames goes in one.
pub const STEP_MEDIA: usize = 260 * 1024;
/// The same over a thin link, so that sound which comes meanwhile waits for no more than this: 1.4 s at
/// 48 kbit/s.
pub(super) const THIN_STEP: usize = 8 * 1024;

/// What a poll handed out.
#[derive(Default)]
pub struct Out {
    /// Frames, in order.
    pub frames: Vec<Bytes>,
    /// What to count.
    pub counts: Counts,
    media: usize,
    pub(super) control_only: bool,
    /// Lanes of which nothing is handed out now.
    pub(super) held: [bool; 2],
    /// The contact's link takes less than there is.
    pub(super) thin: bool,
    /// The contact asks for the bytes of each chunk by itself.
    pub(super) bare: bool,
}

/// What is counted of a poll.
#[derive(Default, Debug, Clone, PartialEq, Eq)]
pub struct Counts {
    /// `PIECE` frames, by lane.
    pub frames: [u64; 2],
    /// Their bytes, by lane.
    pub bytes: [u64; 2],
    /// Chunks left out, with their reasons.
    pub omitted: Vec<(OmittedReason, u64)>,
    /// Chunks finished or left out: the place moved.
    pub finished: u64,
}

impl Out {
    /// For a last poll: nothing is begun and no media handed out.
    #[must_use]
    pub fn control_only() -> Self {
        Self { control_only: true, ..Self::default() }
    }

    /// For a transport that has enough of these lanes.
    #[must_use]
    pub const fn holding(mut self, lanes: [bool; 2]) -> Self {
        self.held = lanes;
        self
    }

    /// For a contact whose link takes less than there is: of the preview only the newest chunk is
    /// begun, and pieces are small.
    #[must_use]
    pub fn thin() -> Self {
        Self { thin: true, ..Self::default() }
    }

    /// Whether nothing was left out of this poll for want of room.
    #[must_use]
    pub const fn roomy(&self) -> bool {
        !self.thin && self.media + FRAME_PAYLOAD + HEAD_ROOM <= STEP_MEDIA
    }

    /// For a contact that asks for the bytes of each chunk by itself.
    #[must_use]
    pub fn bare() -> Self {
        Self { bare: true, ..Self::default() }
    }

    /// Whether this is about what a thin link is given in one step, or more.
    #[must_use]
    pub const fn ample(&self) -> bool {
        self.media >= THIN_STEP / 2
    }

    pub(super) fn full(&self, more: usize) -> bool {
        self.media > 0 && self.media + more > if self.thin { THIN_STEP } else { STEP_MEDIA }
    }

    /// A piece in two parts: its head, and bytes that others share.
    pub(super) fn parts(&mut self, lane: usize, head: Bytes, bytes: Bytes) {
        self.media += head.len() + bytes.len();
        self.counts.frames[lane] += 1;
        self.counts.bytes[lane] += (head.len() + bytes.len()) as u64;
        self.frames.extend([head, bytes]);
    }

    pub(super) fn piece(&mut self, lane: usize, frame: &Bytes) {
        self.media += frame.len();
        self.counts.frames[lane] += 1;
        self.counts.bytes[lane] += frame.len() as u64;
        self.frames.push(frame.clone());
    }

    pub(super) fn json(&mut self, kind: u64, body: &impl serde::Serialize) {
        self.frames.push(encode_json(kind, body));
    }

    pub(super) fn omitted(&mut self, omitted: &Omitted) {
        self.counts.omitted.push((omitted.reason, omitted.to - omitted.from + 1));
        self.counts.finished += 1;
        self.json(kind::OMITTED, omitted);
    }
}

/// Chunks left out one after the other are told as one.
#[derive(Default)]
pub(super) struct Omissions(Option<Omitted>);

impl Omissions {
    pub(super) fn add(&mut self, stream: &StreamId, index: u64, reason: OmittedReason, out: &mut Out) {
        if let Some(last) = &mut self.0
            && last.stream == *stream
            && last.reason == reason
            && last.to + 1 == index
        {
            last.to = index;
            return;
        }
        self.flush(out);
        self.0 = Some(Omitted { stream: stream.clone(), from: index, to: index, reason });
    }

    pub(super) fn flush(&mut self, out: &mut Out) {
        if let Some(omitted) = self.0.take() {
            out.omitted(&omitted);
        }
    }
}
