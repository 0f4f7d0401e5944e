//! What the relay tells a capture client so that it does better: how fast its bytes come, which
//! lanes that carries, and how long chunks should be. Pure; `now` is in milliseconds.
//!
//! The rate is taken over the time in which bytes were coming. A lane is advised against only when
//! all three hold: with it the lanes offer more per second of recording than the rate carries,
//! its chunks come later and later, and a lane before it in the order of mercy is being sent. It
//! comes back, one lane at a time, when there has been room for a while. Sound is never advised
//! against.

use crate::media::{Class, Variant};

/// Time of coming over which the rate is taken; older figures fade by half each time it is passed.
const WINDOW_MS: u64 = 10_000;
/// Less of it than this says nothing.
const LEAST_MS: u64 = 500;
/// A longer pause is an outage, not a rate.
const GAP_MS: u64 = 2_000;
/// Recorded time over which a lane's own rate is taken; it fades alike.
const SOURCE_MS: u64 = 30_000;
/// A lane without an offer for so long is not being sent.
const ACTIVE_MS: u64 = 60_000;
/// A lane whose chunks come so much later than its best ones is falling behind.
const LAG_MS: i64 = 4_000;
/// What the lanes may take of the rate in thousandths: to stay, and to come back.
const SHARE: (u64, u64) = (950, 750);
/// There must have been room for so long before a lane comes back.
const SETTLE_MS: u64 = 10_000;
/// How full the room of a class is when its lanes should wait, and when they may come back.
const FULL: (f32, f32) = (0.9, 0.7);
/// Suggested lengths of chunks.
const CHUNK_MS: [u64; 3] = [2_000, 4_000, 8_000];
/// What a chunk costs beside its contents, in bytes: envelope, offer, answers.
const CHUNK_COST: u64 = 1_000;

const LANES: usize = Variant::ALL.len();

/// One lane as its offers show it.
#[derive(Debug, Default, Clone, Copy)]
struct Source {
    bytes: u64,
    ms: u64,
    seen: Option<u64>,
    lag: i64,
    least_lag: i64,
}

/// What is known of one session. Of constant size.
#[derive(Debug)]
pub struct Pace {
    open: u32,
    last: Option<u64>,
    bytes: u64,
    busy_ms: u64,
    sources: [Source; LANES],
    /// So many variants in the order of mercy the rate carries.
    carried: usize,
    room_since: Option<u64>,
    full: [bool; Class::COUNT],
}

/// What to tell the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advice {
    /// Measured rate, in bytes per second.
    pub rate: Option<u64>,
    /// Keep only these lanes; `None`: all.
    pub lanes: Option<Vec<Variant>>,
    /// Cut chunks so long; `None`: as they are cut.
    pub chunk_ms: Option<u64>,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            open: 0,
            last: None,
            bytes: 0,
            busy_ms: 0,
            sources: [Source::default(); LANES],
            carried: LANES,
            room_since: None,
            full: [false; Class::COUNT],
        }
    }
}

impl Pace {
    /// A chunk's bytes are awaited.
    pub const fn opened(&mut self) {
        self.open += 1;
    }

    /// No more of them are. While none are awaited, time does not count.
    pub const fn closed(&mut self) {
        self.open = self.open.saturating_sub(1);
        if self.open == 0 {
            self.last = None;
        }
    }

    /// Bytes came. The first after a pause took a time that nobody knows.
    pub fn came(&mut self, now: u64, bytes: u64) {
        let gap = self.last.map(|last| now.saturating_sub(last)).filter(|gap| *gap <= GAP_MS);
        self.last = Some(now);
        let Some(gap) = gap else { return };
        self.bytes += bytes;
        self.busy_ms += gap;
        while self.busy_ms > WINDOW_MS {
            self.busy_ms /= 2;
            self.bytes /= 2;
        }
    }

    /// A chunk is on offer: `length` bytes of `recorded_ms`, `lag_ms` after its end by two clocks
    /// that need not agree.
    pub fn offered(&mut self, now: u64, variant: Variant, length: u64, recorded_ms: u64, lag_ms: i64) {
        let source = &mut self.sources[variant as usize];
        source.least_lag = if source.seen.is_none() { lag_ms } else { source.least_lag.min(lag_ms) };
        source.lag = lag_ms;
        source.seen = Some(now);
        source.bytes = source.bytes.saturating_add(length);
        source.ms = source.ms.saturating_add(recorded_ms);
        while source.ms > SOURCE_MS {
            source.ms /= 2;
            source.bytes /= 2;
        }
    }

    /// Bytes per second; none while too little was seen.
    #[must_use]
    pub fn rate(&self) -> Option<u64> {
        (self.busy_ms >= LEAST_MS).then(|| self.bytes.saturating_mul(1000) / self.busy_ms)
    }

    /// What to tell now. `pressure` is how full the room of each class is, `limited` whether the
    /// core asks for fewer calls.
    pub fn advise(&mut self, now: u64, pressure: [f32; Class::COUNT], limited: bool) -> Advice {
        let rate = self.rate();
        if let Some(rate) = rate {
            self.carry(now, rate);
        }
        for (full, pressure) in self.full.iter_mut().zip(pressure) {
            *full = pressure >= if *full { FULL.1 } else { FULL.0 };
        }
        let kept: Vec<Variant> = Variant::ALL
            .iter()
            .enumerate()
            .filter(|(at, variant)| *at == 0 || (*at < self.carried && !self.full[variant.class().rank()]))
            .map(|(_, variant)| *variant)
            .collect();
        let chunk_ms = self.chunk_ms(now, &kept, limited);
        Advice { rate, lanes: (kept.len() < LANES).then_some(kept), chunk_ms }
    }

    /// Decides how many lanes the rate carries: fewer at once, more only after a while.
    fn carry(&mut self, now: u64, rate: u64) {
        let stays = self.fitting(now, rate.saturating_mul(SHARE.0) / 1000);
        if stays < self.carried {
            let behind = &self.sources[stays];
            if behind.lag - behind.least_lag > LAG_MS {
                (self.carried, self.room_since) = (stays, None);
            }
            return;
        }
        if self.carried == LANES || self.fitting(now, rate.saturating_mul(SHARE.1) / 1000) <= self.carried {
            self.room_since = None;
            return;
        }
        let since = *self.room_since.get_or_insert(now);
        if now.saturating_sub(since) >= SETTLE_MS {
            self.carried += 1;
            // Its old lag says nothing any more.
            let back = &mut self.sources[self.carried - 1];
            back.least_lag = back.lag;
            // Lanes that nobody sends need no time of their own.
            while self.carried < LANES && self.sources[self.carried].ms == 0 {
                self.carried += 1;
            }
            self.room_since = None;
        }
    }

    /// How many lanes fit into a budget of bytes per second, in the order of mercy.
    fn fitting(&self, now: u64, budget: u64) -> usize {
        let (mut taken, mut before) = (0u64, false);
        for (at, source) in self.sources.iter().enumerate() {
            let active = source.active(now);
            if active || at >= self.carried {
                taken = taken.saturating_add(source.rate());
                if before && source.ms > 0 && taken > budget {
                    return at;
                }
            }
            before |= active && at < self.carried;
        }
        LANES
    }

    /// The shortest length at which what chunks cost beside their contents is a tenth of the rate.
    fn chunk_ms(&self, now: u64, kept: &[Variant], limited: bool) -> Option<u64> {
        let lanes = kept.iter().filter(|variant| self.sources[**variant as usize].active(now)).count() as u64;
        let rate = self.rate().unwrap_or(u64::MAX).max(1);
        let needed = (lanes * CHUNK_COST * 10).saturating_mul(1000) / rate;
        let least = if limited { CHUNK_MS[1] } else { CHUNK_MS[0] };
        let length = CHUNK_MS.into_iter().find(|length| *length >= needed.max(least)).unwrap_or(CHUNK_MS[2]);
        (length > CHUNK_MS[0]).then_some(length)
    }
}

impl Source {
    /// Bytes per second of recording.
    fn rate(&self) -> u64 {
        self.bytes.saturating_mul(1000).checked_div(self.ms).unwrap_or(0)
    }

    fn active(&self, now: u64) -> bool {
        self.seen.is_some_and(|seen| now.saturating_sub(seen) < ACTIVE_MS)
    }
}

#[cfg(test)]
#[path = "hint_tests.rs"]
mod tests;
