//! Who may call the core now: the budget of [`crate::proto::budget`] with a queue in front, and
//! what is known of the core's being there.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};

use super::line::{Line, Place};
use crate::clock::Clock;
use crate::proto::budget::{AWAY_LONGEST_MS, Budget, Call, Limiter, Poll, RETRY_LONGEST_MS, backoff_ms};
use crate::proto::outcome::Outcome;
use crate::telemetry::Metrics;

/// What the last call tells of the core.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// Nobody has called yet.
    Unknown,
    /// It answers.
    Answers,
    /// It does not; one call is tried at this time of the relay's clock, in milliseconds.
    Away {
        /// When the next call may go.
        until_ms: u64,
    },
}

/// Leave for one call. Dropped unused, it gives the call back.
pub struct Permit {
    gate: Arc<Gate>,
    call: Call,
    used: bool,
}

/// The gate before every call.
pub(super) struct Gate {
    state: Mutex<State>,
    /// Somebody's turn came, or something became possible earlier than was said.
    sooner: Notify,
    reach: watch::Sender<Reach>,
    clock: Clock,
    metrics: Metrics,
}

struct State {
    budget: Budget,
    /// One for each kind of call: only its head asks the budget.
    lines: [Line; 4],
    failures: u32,
    away_until: u64,
    /// Answers to commits in a row that did nothing for anybody.
    troubles: u32,
    troubled_until: u64,
}

/// After so many answers in a row that do nothing for anybody commits wait, and one goes each
/// back-off: each costs a whole body. One that the core takes between them shows that it is not
/// the core.
const TROUBLES: u32 = 8;

impl Gate {
    pub(super) fn new(per_minute: u32, clock: Clock, metrics: Metrics) -> Arc<Self> {
        let gate = Self {
            state: Mutex::new(State {
                budget: Budget::new(per_minute),
                lines: Default::default(),
                failures: 0,
                away_until: 0,
                troubles: 0,
                troubled_until: 0,
            }),
            sooner: Notify::new(),
            reach: watch::Sender::new(Reach::Unknown),
            clock,
            metrics,
        };
        gate.show_budget(&gate.state());
        Arc::new(gate)
    }

    /// Waits for leave to make one call; among those who wait for the same kind, rank 0 goes
    /// first. Cancel-safe.
    pub(super) async fn permit(self: &Arc<Self>, call: Call, rank: u8) -> Permit {
        let place = self.state().lines[call as usize].join(rank);
        let _waiting = Waiting { gate: self, call, place };
        // Whoever was at the head may have lost it.
        self.sooner.notify_waiters();
        loop {
            let sooner = self.sooner.notified();
            tokio::pin!(sooner);
            sooner.as_mut().enable();
            match self.poll(call, place) {
                None => sooner.await,
                Some(Poll::Go) => return Permit { gate: Arc::clone(self), call, used: false },
                Some(Poll::WaitUntil(at)) => {
                    let wait = Duration::from_millis(at.saturating_sub(self.clock.now_ms()).max(1));
                    tokio::select! {
                        () = self.clock.sleep(wait) => {}
                        () = sooner => {}
                    }
                }
            }
        }
    }

    /// `None`: it is somebody else's turn. While the core is away, one call goes each back-off,
    /// whatever the budget allows.
    fn poll(&self, call: Call, place: Place) -> Option<Poll> {
        let now = self.clock.now_ms();
        let mut state = self.state();
        if state.lines[call as usize].head() != Some(place) {
            return None;
        }
        if state.failures > 0 && now < state.away_until {
            return Some(Poll::WaitUntil(state.away_until));
        }
        let troubled = call == Call::Commit && state.troubles >= TROUBLES;
        if troubled && now < state.troubled_until {
            return Some(Poll::WaitUntil(state.troubled_until));
        }
        let poll = state.budget.poll(now, call);
        if poll == Poll::Go && troubled {
            self.trouble(&mut state, now);
        }
        if poll == Poll::Go && state.failures > 0 {
            // Doubled already: if this one fails too, nothing else has to change.
            state.failures = state.failures.saturating_add(1);
            state.away_until = now + backoff_ms(state.failures, AWAY_LONGEST_MS, self.clock.random_below(u64::MAX));
            self.reach.send_replace(Reach::Away { until_ms: state.away_until });
        }
        if poll == Poll::Go {
            state.lines[call as usize].served(place);
            self.show_budget(&state);
        }
        Some(poll)
    }

    /// Learns from what a call brought.
    pub(super) fn settle(&self, call: Call, outcome: &Outcome) {
        let now = self.clock.now_ms();
        let mut state = self.state();
        if let Outcome::Limited(refusal) = outcome {
            let limiter = call.limiter();
            let before = state.budget.paused_until(now, limiter).unwrap_or(now);
            state.budget.limited(now, limiter, refusal.retry_after_s);
            let after = state.budget.paused_until(now, limiter).unwrap_or(now);
            self.metrics.core.paused(limiter, after.saturating_sub(before));
            self.show_budget(&state);
        }
        let source = matches!(outcome, Outcome::Ambiguous(crate::proto::outcome::Doubt::Source));
        if call == Call::Commit && outcome.troubled() {
            // Those that were under way together are one trouble.
            if state.troubles < TROUBLES {
                self.trouble(&mut state, now);
            }
        } else if call == Call::Commit && !source && !outcome.away() {
            state.troubles = 0;
            self.sooner.notify_waiters();
        }
        if outcome.away() {
            // Calls that were under way together fail together: that is one failure.
            if state.failures == 0 || now >= state.away_until {
                state.failures = state.failures.saturating_add(1);
                state.away_until = now + backoff_ms(state.failures, AWAY_LONGEST_MS, self.clock.random_below(u64::MAX));
                self.reach.send_replace(Reach::Away { until_ms: state.away_until });
                self.metrics.core.reachable(false);
            }
        } else if !source {
            state.failures = 0;
            self.reach.send_if_modified(|reach| std::mem::replace(reach, Reach::Answers) != Reach::Answers);
            self.metrics.core.reachable(true);
            self.sooner.notify_waiters();
        }
    }

    fn trouble(&self, state: &mut State, now: u64) {
        state.troubles = state.troubles.saturating_add(1);
        let failures = (state.troubles + 1).saturating_sub(TROUBLES);
        state.troubled_until = now + backoff_ms(failures, RETRY_LONGEST_MS, self.clock.random_below(u64::MAX));
    }

    /// Whether commits wait because the core, or what answers in its place, does nothing for
    /// anybody.
    pub(super) fn troubled(&self) -> bool {
        self.state().troubles >= TROUBLES
    }

    pub(super) fn reach(&self) -> watch::Receiver<Reach> {
        self.reach.subscribe()
    }

    pub(super) fn limited_for(&self, limiter: Limiter) -> Option<Duration> {
        let now = self.clock.now_ms();
        self.state().budget.paused_until(now, limiter).map(|until| Duration::from_millis(until - now))
    }

    pub(super) fn away_for(&self) -> Option<Duration> {
        let now = self.clock.now_ms();
        let state = self.state();
        (state.failures > 0).then(|| Duration::from_millis(state.away_until.saturating_sub(now)))
    }

    fn show_budget(&self, state: &State) {
        for limiter in Limiter::ALL {
            self.metrics.core.budget(*limiter, state.budget.per_minute(*limiter));
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place in a line. When it goes, by leave or by being dropped, nobody yields to it any more,
/// and the next one looks.
struct Waiting<'a> {
    gate: &'a Gate,
    call: Call,
    place: Place,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut state = self.gate.state();
        state.lines[self.call as usize].leave(self.place);
        state.budget.give_up(self.call);
        drop(state);
        self.gate.sooner.notify_waiters();
    }
}

impl Permit {
    /// What it is for.
    #[must_use]
    pub fn call(&self) -> Call {
        self.call
    }

    /// The call is made.
    pub(super) fn spend(mut self) -> Call {
        self.used = true;
        self.call
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if !self.used {
            self.gate.state().budget.refund(self.gate.clock.now_ms(), self.call);
            self.gate.sooner.notify_waiters();
        }
    }
}
