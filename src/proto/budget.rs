//! The budget of core calls (contract A.0, "Core rate limits"): how many calls of each limiter
//! class may go, and when the next one may. Pure: `now` is milliseconds of a monotonic clock.
//!
//! **What holds.** With a budget of N a minute, at most N calls go in any 60 s, wherever that
//! stretch begins: a token bucket of `burst` tokens that gains `rate` a minute, with
//! `burst + rate <= N`. The core counts in fixed windows that this relay can't see, so only a
//! bound on every window keeps it inside each of theirs. `docs/decisions/0002-call-budget.md`.
//!
//! **How to call it.** [`Budget::poll`] answers [`Poll::Go`], and then the call is spent, or when
//! to ask again. At most one caller per [`Call`] asks at a time (the others queue behind it);
//! one that stops asking says so with [`Budget::give_up`].

use crate::media::words;

/// The stretch in which the core counts, in milliseconds.
pub const WINDOW_MS: u64 = 60_000;
/// What a class is paced at if a 429 came although nearly nothing had been let through.
pub const FLOOR_PER_MINUTE: u32 = 10;
/// The pause after a 429 without a usable `Retry-After`, in seconds.
pub const DEFAULT_PAUSE_S: u64 = 30;
/// Re-authorisations a minute while no budget is known: a tenth of the core's default of 120.
const UNKNOWN_REAUTHORIZE_BUDGET: u32 = 120;
/// A call that waits behind preflights goes after this many of them at the latest: it gets 5 %.
const STREAK: u32 = 19;
/// How soon to ask again when only another caller's turn is awaited, in milliseconds.
const TURN_MS: u64 = 5;

words! {
    /// The core's limiter classes that a relay's calls fall into.
    Limiter {
        /// Preflight and fan-out authorisation.
        Stream = "stream",
        /// Commit.
        Upload = "upload",
    }
}

words! {
    /// What a call is for. Within one limiter class, earlier words go first.
    Call {
        /// A chunk's preflight.
        Preflight = "preflight",
        /// A contact's first authorisation.
        Authorize = "authorize",
        /// A contact's authorisation again: at most a tenth of the budget.
        Reauthorize = "reauthorize",
        /// A chunk's commit.
        Commit = "commit",
    }
}

impl Call {
    /// The class it is counted in.
    #[must_use]
    pub const fn limiter(self) -> Limiter {
        match self {
            Self::Preflight | Self::Authorize | Self::Reauthorize => Limiter::Stream,
            Self::Commit => Limiter::Upload,
        }
    }
}

/// Whether a call may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Poll {
    /// Now; it is spent.
    Go,
    /// Ask again at this time, in milliseconds.
    WaitUntil(u64),
}

/// Both classes, and who waits.
#[derive(Debug)]
pub struct Budget {
    paces: [Pace; 2],
    reauthorize: Bucket,
    waiting: [bool; 4],
    streak: u32,
}

impl Budget {
    /// `per_minute` calls a minute and class; 0: learned from the core's 429.
    #[must_use]
    pub fn new(per_minute: u32) -> Self {
        let ceiling = (per_minute > 0).then_some(per_minute);
        Self {
            paces: [Pace::new(ceiling), Pace::new(ceiling)],
            reauthorize: Bucket::of_tenth(ceiling.unwrap_or(UNKNOWN_REAUTHORIZE_BUDGET)),
            waiting: [false; 4],
            streak: 0,
        }
    }

    /// Asks for one call.
    pub fn poll(&mut self, now: u64, call: Call) -> Poll {
        let rank = call as usize;
        let pace = &mut self.paces[call.limiter() as usize];
        if pace.probe(now) && call.limiter() == Limiter::Stream {
            self.reauthorize.retune(Bucket::of_tenth(pace.per_minute().unwrap_or(UNKNOWN_REAUTHORIZE_BUDGET)));
        }
        if now < pace.paused_until {
            self.waiting[rank] = true;
            return Poll::WaitUntil(pace.paused_until);
        }
        if call == Call::Reauthorize {
            let own = self.reauthorize.ready_at(now);
            if own > now {
                // Held by its own tenth, it has no claim on a turn.
                self.waiting[rank] = false;
                return Poll::WaitUntil(own);
            }
        }
        let ready = pace.ready_at(now);
        let yields = self.yields(call);
        if ready > now || yields {
            self.waiting[rank] = true;
            return Poll::WaitUntil(if yields { ready.max(now + TURN_MS) } else { ready });
        }
        self.spend(now, call);
        Poll::Go
    }

    /// Whoever asked for `call` waits no more.
    pub fn give_up(&mut self, call: Call) {
        self.waiting[call as usize] = false;
    }

    /// A call that was let go was not made.
    pub fn refund(&mut self, now: u64, call: Call) {
        self.paces[call.limiter() as usize].refund(now);
        if call == Call::Reauthorize {
            self.reauthorize.refund(now);
        }
    }

    /// The core answered 429 to a call of this class: the class pauses for everybody, and goes on
    /// at what the core let through in the last minute.
    pub fn limited(&mut self, now: u64, limiter: Limiter, retry_after_s: Option<u64>) {
        let pace = &mut self.paces[limiter as usize];
        pace.limited(now, retry_after_s.unwrap_or(DEFAULT_PAUSE_S));
        if limiter == Limiter::Stream {
            self.reauthorize.retune(Bucket::of_tenth(pace.per_minute().unwrap_or(UNKNOWN_REAUTHORIZE_BUDGET)));
        }
    }

    /// When the class's pause ends, if it is paused at `now`.
    #[must_use]
    pub fn paused_until(&self, now: u64, limiter: Limiter) -> Option<u64> {
        let until = self.paces[limiter as usize].paused_until;
        (until > now).then_some(until)
    }

    /// The class's present budget, in calls a minute; `None`: none is known.
    #[must_use]
    pub fn per_minute(&self, limiter: Limiter) -> Option<u32> {
        self.paces[limiter as usize].per_minute()
    }

    /// Whether `call` lets another go first: one of higher rank, or one of lower rank that has
    /// waited through [`STREAK`] calls.
    fn yields(&self, call: Call) -> bool {
        let same = |other: &&Call| other.limiter() == call.limiter() && self.waiting[**other as usize];
        if self.streak >= STREAK {
            return call == Call::Preflight && Call::ALL.iter().filter(same).any(|other| *other > call);
        }
        Call::ALL.iter().filter(same).any(|other| *other < call)
    }

    fn spend(&mut self, now: u64, call: Call) {
        self.waiting[call as usize] = false;
        self.paces[call.limiter() as usize].spend(now);
        match call {
            Call::Preflight => {
                let behind = self.waiting[Call::Authorize as usize] || self.waiting[Call::Reauthorize as usize];
                self.streak = if behind { self.streak + 1 } else { 0 };
            }
            Call::Authorize => self.streak = 0,
            Call::Reauthorize => {
                self.streak = 0;
                self.reauthorize.spend(now);
            }
            Call::Commit => {}
        }
    }
}

/// How fast one class goes.
#[derive(Debug)]
struct Pace {
    ceiling: Option<u32>,
    learned: Option<u32>,
    bucket: Option<Bucket>,
    paused_until: u64,
    passed: Passed,
    probed_at: u64,
}

impl Pace {
    fn new(ceiling: Option<u32>) -> Self {
        let bucket = ceiling.map(Bucket::of_minute);
        Self { ceiling, learned: None, bucket, paused_until: 0, passed: Passed::default(), probed_at: 0 }
    }

    fn per_minute(&self) -> Option<u32> {
        match (self.ceiling, self.learned) {
            (Some(ceiling), Some(learned)) => Some(ceiling.min(learned)),
            (ceiling, learned) => learned.or(ceiling),
        }
    }

    fn ready_at(&mut self, now: u64) -> u64 {
        self.bucket.as_mut().map_or(now, |bucket| bucket.ready_at(now))
    }

    fn spend(&mut self, now: u64) {
        self.passed.add(now);
        if let Some(bucket) = &mut self.bucket {
            bucket.spend(now);
        }
    }

    fn refund(&mut self, now: u64) {
        self.passed.take_one(now);
        if let Some(bucket) = &mut self.bucket {
            bucket.refund(now);
        }
    }

    fn limited(&mut self, now: u64, retry_after_s: u64) {
        // The refused call was not let through.
        self.passed.take_one(now);
        let passed = self.passed.count(now).max(FLOOR_PER_MINUTE);
        let learned = self.learned.map_or(passed, |learned| learned.min(passed));
        self.paused_until = self.paused_until.max(now + retry_after_s * 1000);
        self.probed_at = self.paused_until;
        self.learn(now, learned);
    }

    /// After a minute without a 429 in which the budget was nearly used up, tries 5 % more.
    /// Whether the budget changed.
    fn probe(&mut self, now: u64) -> bool {
        let Some(learned) = self.learned else { return false };
        if now < self.probed_at + WINDOW_MS {
            return false;
        }
        self.probed_at = now;
        let used_up = self.passed.count(now).saturating_mul(4) >= learned.saturating_mul(3);
        if used_up {
            self.learn(now, learned.saturating_add((learned / 20).max(1)));
        }
        used_up
    }

    fn learn(&mut self, now: u64, learned: u32) {
        self.learned = Some(self.ceiling.map_or(learned, |ceiling| ceiling.min(learned)));
        let Some(per_minute) = self.per_minute() else { return };
        let next = Bucket::of_minute(per_minute);
        match &mut self.bucket {
            Some(bucket) => {
                bucket.refill(now);
                bucket.retune(next);
            }
            // What went before was not counted in tokens, so none are left.
            None => self.bucket = Some(Bucket { units: 0, at: now, ..next }),
        }
    }
}

/// A token bucket in whole numbers: a call costs `cost` units, and `per_ms` come in a millisecond.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    units: u64,
    capacity: u64,
    cost: u64,
    per_ms: u64,
    at: u64,
}

impl Bucket {
    /// At most `n` in any minute, about a tenth of them at once.
    fn of_minute(n: u32) -> Self {
        let burst = u64::from(n / 10).max(1);
        let rate = u64::from(n).saturating_sub(burst).max(1);
        Self::full(burst * WINDOW_MS, WINDOW_MS, rate)
    }

    /// At most a tenth of `n` in any minute, one by one.
    fn of_tenth(n: u32) -> Self {
        match u64::from(n / 10) {
            0 => Self::full(WINDOW_MS * 10, WINDOW_MS * 10, u64::from(n).max(1)),
            tenth => Self::full(WINDOW_MS, WINDOW_MS, (tenth - 1).max(1)),
        }
    }

    const fn full(capacity: u64, cost: u64, per_ms: u64) -> Self {
        Self { units: capacity, capacity, cost, per_ms, at: 0 }
    }

    fn refill(&mut self, now: u64) {
        let gained = now.saturating_sub(self.at).saturating_mul(self.per_ms);
        self.units = self.units.saturating_add(gained).min(self.capacity);
        self.at = self.at.max(now);
    }

    fn ready_at(&mut self, now: u64) -> u64 {
        self.refill(now);
        now + self.cost.saturating_sub(self.units).div_ceil(self.per_ms)
    }

    fn spend(&mut self, now: u64) {
        self.refill(now);
        self.units = self.units.saturating_sub(self.cost);
    }

    fn refund(&mut self, now: u64) {
        self.refill(now);
        self.units = self.units.saturating_add(self.cost).min(self.capacity);
    }

    /// Takes over another's measures; keeps what it holds, as far as it still fits.
    fn retune(&mut self, to: Self) {
        let units = (u128::from(self.units) * u128::from(to.cost) / u128::from(self.cost.max(1))) as u64;
        *self = Self { units: units.min(to.capacity), at: self.at, ..to };
    }
}

/// Calls of the last minute, by second.
#[derive(Debug)]
struct Passed {
    slots: [u32; 60],
    second: u64,
}

impl Default for Passed {
    fn default() -> Self {
        Self { slots: [0; 60], second: 0 }
    }
}

impl Passed {
    fn roll(&mut self, now: u64) {
        let second = now / 1000;
        for step in 1..=second.saturating_sub(self.second).min(60) {
            self.slots[((self.second + step) % 60) as usize] = 0;
        }
        self.second = self.second.max(second);
    }

    fn add(&mut self, now: u64) {
        self.roll(now);
        let slot = &mut self.slots[(self.second % 60) as usize];
        *slot = slot.saturating_add(1);
    }

    /// Forgets the newest.
    fn take_one(&mut self, now: u64) {
        self.roll(now);
        for back in 0..60 {
            let slot = &mut self.slots[((self.second + 60 - back) % 60) as usize];
            if *slot > 0 {
                *slot -= 1;
                return;
            }
        }
    }

    fn count(&mut self, now: u64) -> u32 {
        self.roll(now);
        self.slots.iter().fold(0, |sum, slot| sum.saturating_add(*slot))
    }
}

/// The longest wait before a core that was away is asked again, in milliseconds. One call goes each
/// time, so it can be short: contacts and the phone wait for the news.
pub const AWAY_LONGEST_MS: u64 = 8_000;
/// The longest wait of what the core answered and did not take, in milliseconds.
pub const RETRY_LONGEST_MS: u64 = 30_000;

/// How long to stay away after the `failures`-th failure in a row (from 1), in milliseconds:
/// 0.5 s doubled up to `longest_ms`, the upper half of it by chance. `random` is any random number.
#[must_use]
pub fn backoff_ms(failures: u32, longest_ms: u64, random: u64) -> u64 {
    const FIRST_MS: u64 = 500;
    let whole = (FIRST_MS << failures.clamp(1, 16)).min(longest_ms);
    whole / 2 + random % (whole / 2 + 1)
}

#[cfg(test)]
#[path = "budget_tests.rs"]
mod tests;
