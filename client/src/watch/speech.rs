//! What is passed on, in order: a cursor when everything that it counts is.

use std::collections::VecDeque;

use waystation_proto::frame::Frame;
use waystation_proto::varint;

/// Cursors that wait for what they count; beyond, the newest takes the place of the one before.
const MAX_CURSORS: usize = 16;

/// Frames on their way to whoever watches.
#[derive(Default)]
pub(super) struct Speech {
    out: VecDeque<Frame>,
    /// Each with the number of the first telling that it does not count.
    cursors: VecDeque<(u64, Frame)>,
}

impl Speech {
    pub(super) fn pass(&mut self, frame: impl Into<Option<Frame>>) {
        self.out.extend(frame.into());
    }

    pub(super) fn say(&mut self, kind: u64, body: &impl serde::Serialize) {
        // What these types hold is written without an error.
        self.pass(Frame { kind, body: serde_json::to_vec(body).unwrap_or_default().into() });
    }

    pub(super) fn piece(&mut self, handle: u64, offset: u64, bytes: &[u8]) {
        let mut body = bytes::BytesMut::with_capacity(bytes.len() + 16);
        varint::put(&mut body, handle);
        varint::put(&mut body, offset);
        body.extend_from_slice(bytes);
        self.pass(Frame { kind: waystation_proto::frame::kind::PIECE, body: body.freeze() });
    }

    /// A cursor counts what was told of before `turn`.
    pub(super) fn cursor(&mut self, turn: u64, frame: Frame) {
        if self.cursors.len() >= MAX_CURSORS {
            self.cursors.pop_back();
        }
        self.cursors.push_back((turn, frame));
    }

    /// What was told of before `turn` is done with, and was said.
    pub(super) fn done_before(&mut self, turn: u64) {
        while let Some((_, frame)) = self.cursors.pop_front_if(|(counts, _)| *counts <= turn) {
            self.out.push_back(frame);
        }
    }

    pub(super) fn next(&mut self) -> Option<Frame> {
        self.out.pop_front()
    }
}
