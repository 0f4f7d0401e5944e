//! The model of the path: its delivery rate, its least round trip, the share that is lost; and
//! from them how many bytes may be in flight.
//!
//! Pure: no clock, no socket, no randomness. Times are microseconds since the path's first use.
//! Order of calls: [`Model::handle_acked`] for each packet of an acknowledgement, then
//! [`Model::handle_batch_end`]; [`Model::handle_lost`] whenever packets are given up.
//!
//! The rate is sampled as BBR does (draft-ietf-ccwg-bbr, delivery rate): bytes delivered between
//! the sending of a packet and its acknowledgement, over the longer of the time they took to be
//! sent and the time they took to be acknowledged. Loss never shrinks the window; it widens it by
//! what has to be sent again. What keeps the queue short is the cap on bytes in flight.

use std::collections::VecDeque;

use super::peak::{Peak, Rate};

/// Microseconds.
pub(super) type Micros = u64;

/// Acknowledgements remembered to sample rates from; 24 bytes each. More than arrive in a round
/// trip of any path on which the window matters.
const MAX_MARKS: usize = 1024;
/// Rounds over which the best delivery rate counts.
const RATE_ROUNDS: u64 = 10;
/// How long the least round trip counts before it is looked for again.
const RTT_LIFE: Micros = 15_000_000;
/// So many late acknowledgements, one after the other, say that there is a queue.
const QUEUE_ACKS: u32 = 8;
/// A round trip so much longer than the least, and an eighth of it, has met a queue.
const QUEUE: Micros = 10_000;
/// Rounds whose least round trips say how it is now.
const RECENT_ROUNDS: usize = 3;
/// Packets in flight before anything is known: what the thinnest link's queue takes.
const INITIAL_PACKETS: u64 = 16;
/// The same as soon as the round trip is seen to be no longer than [`SHORT`]: the links that thin are far.
const SHORT_PACKETS: u64 = 24;
/// See [`SHORT_PACKETS`].
const SHORT: Micros = 250_000;
/// Fewest packets in flight: two for the peer's delayed acknowledgement, two under way.
const LEAST_PACKETS: u64 = 4;
/// A path of a shorter round trip is limited by when its peer acknowledges, not by what it carries.
const NEAR: Micros = 25_000;
/// Bytes in flight on such a path, where nobody meters what is written, however little it seemed to carry: at
/// most so many, and never more than it carries in twice [`NEAR`].
const NEAR_WINDOW: u64 = 64 * 1024;
/// Bytes in flight for each byte of rate × round trip while starting: a doubling every round.
const STARTUP_GAIN: f64 = 2.0;
/// The same when the rate is known, or while starting when there is a queue: a little more than the
/// path, so that a faster one is noticed.
const STEADY_GAIN: f64 = 1.15;
/// The same for the round in which the queue is let run empty to see the least round trip.
const DRAIN_GAIN: f64 = 0.75;
/// Part of rate × present round trip kept in flight when others fill the queue. It must stay
/// below 1, or the path's own queue would feed it.
const FAIR_SHARE: f64 = 0.4;
/// Growth of the rate in a round below which the start counts as stuck.
const STARTUP_GROWTH: f64 = 1.25;
/// Stuck rounds after which the start is over.
const STARTUP_PATIENCE: u32 = 3;
/// Most of what is lost that is made up for.
const MOST_LOSS: f64 = 0.2;
/// A share of losses that no radio link has for long: a full queue, which is eased.
const OVERLOAD_LOSS: f64 = 0.22;
/// Packets it takes to know such a share.
const OVERLOAD_PACKETS: u64 = 80;
/// Acknowledgements of the first flight that tell a rate.
const TRAIN: usize = 4;
/// The window while a full queue is eased, of what it would be.
const EASE: f64 = 0.7;
/// What a round's counts of acknowledged and lost bytes keep in the next.
const LOSS_MEMORY: f64 = 0.9;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Phase {
    /// Looking for the rate.
    Startup,
    /// Holding it.
    Steady,
    /// Letting the queue run empty until a packet sent after this time is acknowledged.
    Drain { until: Micros },
}

/// What was known when an acknowledgement had been read.
#[derive(Clone, Copy)]
struct Mark {
    at: Micros,
    delivered: u64,
    newest_sent: Micros,
}

/// Bytes acknowledged by one packet from the peer.
#[derive(Clone, Copy, Default)]
struct Batch {
    newest_sent: Option<Micros>,
    bytes: u64,
}

/// The model of one path.
#[derive(Clone)]
pub(super) struct Model {
    mtu: u64,
    phase: Phase,
    window: u64,
    /// What is allowed a near path beyond rate × round trip, at most.
    near_window: u64,
    delivered: u64,
    marks: VecDeque<Mark>,
    batch: Batch,
    rate: Peak,
    /// The least round trip and when it was seen.
    least_rtt: Option<(Micros, Micros)>,
    round: Round,
    recent_rtts: VecDeque<Micros>,
    stuck: Stuck,
    /// Acknowledgements, one after the other, that came late: what they acknowledge met a queue.
    late: u32,
    acked_share: f64,
    lost_share: f64,
}

/// A round trip: it ends when a packet is acknowledged that was sent after it began.
#[derive(Clone, Copy, Default)]
struct Round {
    number: u64,
    began: Micros,
    least_rtt: Option<Micros>,
    app_limited: bool,
}

/// Rounds in which the start made no progress.
#[derive(Clone, Copy, Default)]
struct Stuck {
    best: Rate,
    rounds: u32,
}

impl Model {
    /// A path of which nothing is known. `mtu` in bytes.
    pub(super) fn new(mtu: u64) -> Self {
        Self {
            mtu,
            phase: Phase::Startup,
            window: INITIAL_PACKETS * mtu,
            near_window: 0,
            delivered: 0,
            marks: VecDeque::new(),
            batch: Batch::default(),
            rate: Peak::over(RATE_ROUNDS),
            least_rtt: None,
            round: Round::default(),
            recent_rtts: VecDeque::with_capacity(RECENT_ROUNDS + 1),
            stuck: Stuck::default(),
            late: 0,
            acked_share: 0.0,
            lost_share: 0.0,
        }
    }

    /// The same for an end that writes whatever its streams take: chunks come to it whole, and a path
    /// that is [`NEAR`] takes them at once.
    pub(super) fn unmetered(mtu: u64) -> Self {
        Self { near_window: NEAR_WINDOW, ..Self::new(mtu) }
    }

    /// Bytes that may be in flight.
    pub(super) fn window(&self) -> u64 {
        self.window
    }

    /// Bytes that may be in flight before anything is known but the round trip.
    pub(super) fn initial_window(&self) -> u64 {
        let short = self.least_rtt().is_some_and(|rtt| rtt <= SHORT);
        self.mtu * if short { SHORT_PACKETS } else { INITIAL_PACKETS }
    }

    /// Bytes a second that arrive, at best of the last rounds; 0 before the first sample.
    pub(super) fn rate(&self) -> Rate {
        self.rate.get()
    }

    /// The least round trip.
    pub(super) fn least_rtt(&self) -> Option<Micros> {
        self.least_rtt.map(|(rtt, _)| rtt)
    }

    /// The share of bytes that is lost, 0 to 1, over the last rounds.
    pub(super) fn loss(&self) -> f64 {
        let all = self.acked_share + self.lost_share;
        if all > 0.0 { self.lost_share / all } else { 0.0 }
    }

    /// Another packet size.
    pub(super) fn handle_mtu(&mut self, mtu: u64) {
        self.mtu = mtu;
        self.window = self.window.max(LEAST_PACKETS * mtu);
    }

    /// A packet of `bytes`, sent at `sent`, is acknowledged.
    pub(super) fn handle_acked(&mut self, sent: Micros, bytes: u64) {
        self.delivered += bytes;
        self.acked_share += bytes as f64;
        self.batch.bytes += bytes;
        self.batch.newest_sent = self.batch.newest_sent.max(Some(sent));
    }

    /// Packets of `bytes` in all are given up.
    pub(super) fn handle_lost(&mut self, bytes: u64) {
        self.lost_share += bytes as f64;
        if self.phase == Phase::Startup {
            self.window += bytes;
        }
    }

    /// All packets of an acknowledgement were told. `app_limited`: nothing waited to be sent.
    pub(super) fn handle_batch_end(&mut self, now: Micros, app_limited: bool) {
        let batch = std::mem::take(&mut self.batch);
        let Some(sent) = batch.newest_sent else { return };
        self.note_rtt(now, now.saturating_sub(sent).max(1));
        self.round.app_limited |= app_limited;
        if let Some(rate) = self.sample(now, sent)
            && (!app_limited || rate > self.rate())
        {
            self.rate.note(self.round.number, rate);
        }
        if sent >= self.round.began {
            self.end_round(now);
        }
        self.mark(now, sent);
        if self.phase == Phase::Startup && !app_limited {
            self.window += batch.bytes;
        }
        self.set_window(now, sent);
    }

    fn note_rtt(&mut self, now: Micros, rtt: Micros) {
        self.round.least_rtt = Some(self.round.least_rtt.map_or(rtt, |least| least.min(rtt)));
        match self.least_rtt {
            None => {
                self.least_rtt = Some((rtt, now));
                self.window = self.window.max(self.initial_window());
            }
            Some((least, _)) if rtt <= least => self.least_rtt = Some((rtt, now)),
            Some(_) => {}
        }
        let least = self.least_rtt().unwrap_or(rtt);
        self.late = if rtt > least + least / 8 + QUEUE { self.late.saturating_add(1) } else { 0 };
    }

    /// The delivery rate between the sending of the newest acknowledged packet and now.
    fn sample(&mut self, now: Micros, sent: Micros) -> Option<Rate> {
        while self.marks.get(1).is_some_and(|mark| mark.at <= sent) {
            self.marks.pop_front();
        }
        let mark = *self.marks.front().filter(|mark| mark.at <= sent)?;
        let acknowledging = now.saturating_sub(mark.at);
        let sending = sent.saturating_sub(mark.newest_sent);
        // Nothing is delivered in less than a round trip: shorter is acknowledgements bunched up.
        let time = acknowledging.max(sending).max(self.least_rtt().unwrap_or(1)).max(1);
        Some((self.delivered - mark.delivered) as f64 * 1e6 / time as f64)
    }

    /// Before the first sample, which takes two round trips: the rate at which acknowledgements of the first flight
    /// come. Not a sample: a few that come bunched up make it too high, which here only caps less.
    fn train(&self, now: Micros) -> Rate {
        let Some(first) = self.marks.front().filter(|_| self.marks.len() >= TRAIN) else { return 0.0 };
        let sending = self.marks.back().map_or(0, |last| last.newest_sent - first.newest_sent);
        let time = now.saturating_sub(first.at).max(sending).max(1);
        (self.delivered - first.delivered) as f64 * 1e6 / time as f64
    }

    fn mark(&mut self, now: Micros, sent: Micros) {
        let newest_sent = self.marks.back().map_or(sent, |mark| mark.newest_sent.max(sent));
        self.marks.push_back(Mark { at: now, delivered: self.delivered, newest_sent });
        if self.marks.len() > MAX_MARKS {
            self.marks.pop_front();
        }
    }

    fn end_round(&mut self, now: Micros) {
        let ended = self.round;
        self.round = Round { number: ended.number, began: now, ..Round::default() };
        if let Some(rtt) = ended.least_rtt {
            self.recent_rtts.push_back(rtt);
            if self.recent_rtts.len() > RECENT_ROUNDS {
                self.recent_rtts.pop_front();
            }
        }
        self.acked_share *= LOSS_MEMORY;
        self.lost_share *= LOSS_MEMORY;
        // A round in which there was too little to send says nothing about the path.
        if ended.app_limited {
            return;
        }
        self.round.number += 1;
        self.rate.expire(self.round.number);
        if self.phase == Phase::Startup && self.startup_is_over(ended) {
            self.phase = Phase::Steady;
        }
    }

    fn startup_is_over(&mut self, ended: Round) -> bool {
        if self.rate() >= self.stuck.best * STARTUP_GROWTH {
            self.stuck = Stuck { best: self.rate(), rounds: 0 };
        } else {
            self.stuck.rounds += 1;
        }
        // A queue says the same earlier.
        let least = self.least_rtt().unwrap_or(0);
        let queued = ended.least_rtt.is_some_and(|rtt| rtt > least * 5 / 4 + 10_000);
        self.stuck.rounds >= STARTUP_PATIENCE || (queued && self.round.number > 2) || self.overloaded()
    }

    fn set_window(&mut self, now: Micros, sent: Micros) {
        let rate = if self.rate() > 0.0 { self.rate() } else { self.train(now) };
        let path = rate * self.least_rtt().unwrap_or(0) as f64 / 1e6;
        let ease = if self.overloaded() { EASE } else { 1.0 };
        let needed = ease * path / (1.0 - self.loss().min(MOST_LOSS));
        if needed <= 0.0 {
            return;
        }
        match self.phase {
            Phase::Startup => {
                let gain = if self.late >= QUEUE_ACKS { STEADY_GAIN } else { STARTUP_GAIN };
                let cap = (gain * needed) as u64 + LEAST_PACKETS * self.mtu;
                self.window = self.at_least(self.window.min(cap.max(self.initial_window())).max(self.near()));
            }
            Phase::Steady => {
                let share = FAIR_SHARE * self.rate() * self.recent_rtt() as f64 / 1e6;
                let window = (STEADY_GAIN * needed).max(share) as u64 + 2 * self.mtu;
                self.window = self.at_least(window.max(self.near()));
                self.look_for_least_rtt(now);
            }
            Phase::Drain { until } => {
                self.window = self.at_least((DRAIN_GAIN * needed) as u64);
                if sent >= until {
                    self.phase = Phase::Steady;
                }
            }
        }
    }

    /// So much is lost, over enough packets, that it is this path's own doing.
    fn overloaded(&self) -> bool {
        let known = self.acked_share + self.lost_share >= (OVERLOAD_PACKETS * self.mtu) as f64;
        known && self.loss() > OVERLOAD_LOSS
    }

    fn at_least(&self, window: u64) -> u64 {
        window.max(LEAST_PACKETS * self.mtu)
    }

    /// What a near path may have in flight whatever its round trip. The rate seen there is that of its peer's
    /// acknowledgements, which come up to [`NEAR`] late: twice that lets it grow. A thin link that is near has
    /// a low rate however it acknowledges, and 50 ms of queue from this at most; a full queue ends it.
    fn near(&self) -> u64 {
        if self.overloaded() || self.least_rtt().is_none_or(|rtt| rtt >= NEAR) {
            return 0;
        }
        self.near_window.min((2.0 * self.rate() * NEAR as f64 / 1e6) as u64)
    }

    /// The least round trip of the last few rounds, queues included; 0 before the first.
    pub(super) fn recent_rtt(&self) -> Micros {
        self.recent_rtts.iter().min().copied().unwrap_or(0)
    }

    /// The least round trip of long ago may be another path's. If the present one is near it, it
    /// holds; else the queue is let run empty and the least is taken anew.
    fn look_for_least_rtt(&mut self, now: Micros) {
        let Some((least, seen)) = self.least_rtt else { return };
        if now.saturating_sub(seen) <= RTT_LIFE {
            return;
        }
        let recent = self.recent_rtt().max(least);
        if recent <= least + least / 8 {
            self.least_rtt = Some((least, now));
        } else {
            self.least_rtt = Some((recent, now));
            self.phase = Phase::Drain { until: now + recent };
        }
    }
}
