//! How the capture device is: alive, silent, or done.

use super::Window;
use super::events::Event;
use crate::message::CaptureWord;

/// The capture device is silent after this long without media and without `ALIVE`.
pub const SILENT_MS: u64 = 15_000;

impl Window {
    /// The capture device gave a sign of life.
    pub fn alive(&mut self, now: u64) {
        self.sign(Some(now));
        if self.capture == Some(CaptureWord::Ended) {
            self.capture = None;
            self.tell(Event::Capture(CaptureWord::Back, 0));
        }
    }

    /// The capture device said that the recording is over.
    pub fn ended(&mut self, now: u64) {
        self.last_sign = Some(now);
        if self.capture != Some(CaptureWord::Ended) {
            self.capture = Some(CaptureWord::Ended);
            self.tell(Event::Capture(CaptureWord::Ended, 0));
        }
    }

    /// Time passed; `true` if contacts are to be told something.
    pub fn tick(&mut self, now: u64) -> bool {
        let abandoned = self.withdraw_abandoned(now);
        if self.silent_at().is_none_or(|at| now < at) {
            return abandoned;
        }
        self.capture = Some(CaptureWord::Silent);
        self.tell(Event::Capture(CaptureWord::Silent, self.since_sign(now)));
        true
    }

    /// When the capture device will count as silent, unless it does or the recording is over.
    #[must_use]
    pub fn silent_at(&self) -> Option<u64> {
        let since = self.last_sign().filter(|_| self.capture.is_none())?;
        Some(since.saturating_add(SILENT_MS))
    }

    /// Media of a lane that is not shown came: a sign of life as any other.
    pub fn seen(&mut self, now: u64) {
        self.sign(Some(now));
    }

    /// An earlier process had a sign of life `age` ms ago. It is none now: unless one comes, the
    /// device is silent since then.
    pub fn recall(&mut self, now: u64, age: u64) {
        let (at, before) = self.recalled.unwrap_or((now, u64::MAX));
        self.recalled = Some((at, before.min(age.saturating_sub(now - at.min(now)))));
    }

    pub(super) fn since_sign(&self, now: u64) -> u64 {
        let recalled = || self.recalled.map_or(0, |(at, age)| now.saturating_sub(at).saturating_add(age));
        self.last_sign.map_or_else(recalled, |sign| now.saturating_sub(sign)) / 1000
    }

    pub(super) fn sign(&mut self, now: Option<u64>) {
        let Some(now) = now else { return };
        self.last_sign = Some(now);
        if self.capture == Some(CaptureWord::Silent) {
            self.capture = None;
            self.tell(Event::Capture(CaptureWord::Back, 0));
        }
    }

    /// How many events of the capture device there were: those concern contacts of every lane.
    #[must_use]
    pub const fn captures(&self) -> u64 {
        self.captures
    }
}
