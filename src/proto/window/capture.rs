//! How the capture device is: alive, silent, or done.

use super::Window;
use super::events::Event;
use crate::message::CaptureWord;

/// From so long without media and without `ALIVE` on contacts hear how long ago the last sign was,
/// and again each time that has passed, until the device counts as silent.
pub const QUIET_MS: u64 = 5_000;

impl Window {
    /// The capture device gave a sign of life.
    pub fn alive(&mut self, now: u64) {
        self.sign(Some(now));
        if self.capture == Some(CaptureWord::Ended) {
            self.last_sign = Some(now);
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
        Some(since.saturating_add(self.rules.silent_ms))
    }

    /// Media of a lane that is not shown came: a sign of life as any other. After the recording's
    /// end it is what was left to send, and says nothing of the device.
    pub fn seen(&mut self, now: u64) {
        if self.capture != Some(CaptureWord::Ended) {
            self.sign(Some(now));
        }
    }

    /// How long the device has been quiet, in steps of [`QUIET_MS`]: 0 while there are signs, or
    /// while it counts as silent or done.
    pub(super) fn quiet_steps(&self, now: u64) -> u64 {
        let quiet = self.last_sign.filter(|_| self.capture.is_none()).map(|sign| now.saturating_sub(sign));
        quiet.unwrap_or(0) / QUIET_MS
    }

    /// When it will have been quiet for so many steps.
    pub(super) fn quiet_at(&self, steps: u64) -> Option<u64> {
        let sign = self.last_sign.filter(|_| self.capture.is_none())?;
        Some(sign.saturating_add(steps.saturating_mul(QUIET_MS)))
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
        if self.quiet_steps(now) > 0 {
            // Contacts of every lane were told of the pause, and are told of its end.
            self.captures += 1;
        }
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
