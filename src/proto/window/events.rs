//! What happened in a group, by number: contacts remember how far they have read.

use std::collections::VecDeque;

use crate::message::CaptureWord;

/// Events kept of one group. A contact that falls further behind is told the state of everything
/// it has seen instead.
pub const MAX_EVENTS: usize = 1024;

/// A chunk's place in a group's window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// 0: `audio_priority`, 1: `live_preview`.
    pub lane: usize,
    /// Its number in the lane.
    pub seq: u64,
}

#[derive(Clone, Copy)]
pub(super) enum Event {
    /// A chunk's state changed, or it was withdrawn.
    Changed(Place),
    /// A chunk is whole.
    Completed(Place),
    /// The capture device's; with the seconds since its last sign of life.
    Capture(CaptureWord, u64),
}

/// Numbers start at 1, so that 0 is before every event.
pub(super) struct Events {
    base: u64,
    log: VecDeque<Event>,
}

impl Events {
    pub(super) const fn new() -> Self {
        Self { base: 1, log: VecDeque::new() }
    }

    /// The number of the oldest event.
    pub(super) const fn base(&self) -> u64 {
        self.base
    }

    /// The number of the next event.
    pub(super) fn end(&self) -> u64 {
        self.base + self.log.len() as u64
    }

    pub(super) fn get(&self, number: u64) -> Option<Event> {
        self.log.get(usize::try_from(number.checked_sub(self.base)?).ok()?).copied()
    }

    /// Adds one; returns the oldest and its number when it had to go.
    pub(super) fn push(&mut self, event: Event) -> Option<(u64, Event)> {
        self.log.push_back(event);
        if self.log.len() <= MAX_EVENTS {
            return None;
        }
        self.base += 1;
        self.log.pop_front().map(|event| (self.base - 1, event))
    }
}
