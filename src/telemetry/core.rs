//! Metrics of calls to the core.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::names::{self, CoreLimiter, CoreOutcome, CoreRoute};
use crate::proto::budget::Limiter;
use crate::proto::outcome::{Doubt, Outcome, Route};

/// Seconds: from a core beside the relay to a large chunk over a thin link.
const SECONDS: [f64; 12] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0, 120.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Request {
    route: CoreRoute,
    outcome: CoreOutcome,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByRoute {
    route: CoreRoute,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByLimiter {
    limiter: CoreLimiter,
}

/// Calls to the core.
pub struct Core {
    requests: Family<Request, Counter>,
    seconds: Family<ByRoute, Histogram, fn() -> Histogram>,
    limited: Family<ByLimiter, Counter<f64, AtomicU64>>,
    budget: Family<ByLimiter, Gauge>,
    reachable: Gauge,
    commits_under_way: Gauge,
}

/// A commit under way, until it is dropped.
pub struct UnderWay(Gauge);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Core {
    pub(super) fn new(registry: &mut Registry) -> Self {
        let core = Self {
            requests: Family::default(),
            seconds: Family::new_with_constructor(|| Histogram::new(SECONDS)),
            limited: Family::default(),
            budget: Family::default(),
            reachable: Gauge::default(),
            commits_under_way: Gauge::default(),
        };
        core.reachable.set(1);
        registry.register(names::CORE_REQUESTS, "Calls to the core, by what became of them", core.requests.clone());
        registry.register(names::CORE_REQUEST_SECONDS, "From a call's start to its answer", core.seconds.clone());
        registry.register(names::CORE_LIMITED_SECONDS, "Pauses that the core asked for with 429", core.limited.clone());
        registry.register(
            names::CORE_BUDGET_PER_MINUTE,
            "Calls a minute that this relay allows itself; 0: no limit known",
            core.budget.clone(),
        );
        registry.register(names::CORE_REACHABLE, "1 unless the last call found no core", core.reachable.clone());
        registry.register(
            names::CORE_COMMITS_UNDER_WAY,
            "Commits whose answer is awaited; at 24 masters wait for a place, at 32 every chunk does",
            core.commits_under_way.clone(),
        );
        core.begin();
        core
    }

    /// What alerts watch begins at 0: an increase from nothing is none.
    fn begin(&self) {
        for route in CoreRoute::ALL {
            drop(self.requests.get_or_create(&Request { route: *route, outcome: CoreOutcome::Operator }));
        }
        for limiter in CoreLimiter::ALL {
            drop(self.limited.get_or_create(&ByLimiter { limiter: *limiter }));
        }
    }

    /// A commit begins.
    pub fn commit_begins(&self) -> UnderWay {
        self.commits_under_way.inc();
        UnderWay(self.commits_under_way.clone())
    }

    /// A call ended.
    pub fn called(&self, route: Route, outcome: &Outcome, took_ms: u64) {
        let route = CoreRoute::from(route);
        self.requests.get_or_create(&Request { route, outcome: outcome.into() }).inc();
        self.seconds.get_or_create(&ByRoute { route }).observe(took_ms as f64 / 1000.0);
    }

    /// The core asked for a pause that is `ms` longer than the one before.
    pub fn paused(&self, limiter: Limiter, ms: u64) {
        self.limited.get_or_create(&ByLimiter { limiter: limiter.into() }).inc_by(ms as f64 / 1000.0);
    }

    /// Calls a minute that a class has now.
    pub fn budget(&self, limiter: Limiter, per_minute: Option<u32>) {
        self.budget.get_or_create(&ByLimiter { limiter: limiter.into() }).set(per_minute.unwrap_or(0).into());
    }

    /// Whether the last call found a core.
    pub fn reachable(&self, yes: bool) {
        self.reachable.set(yes.into());
    }
}

impl From<Route> for CoreRoute {
    fn from(route: Route) -> Self {
        match route {
            Route::Preflight => Self::Preflight,
            Route::FanoutAuthorize => Self::FanoutAuthorize,
            Route::Commit => Self::Commit,
        }
    }
}

impl From<Limiter> for CoreLimiter {
    fn from(limiter: Limiter) -> Self {
        match limiter {
            Limiter::Stream => Self::Stream,
            Limiter::Upload => Self::Upload,
        }
    }
}

impl From<&Outcome> for CoreOutcome {
    fn from(outcome: &Outcome) -> Self {
        match outcome {
            Outcome::Accepted => Self::Accepted,
            Outcome::Confirmed(_) => Self::Confirmed,
            Outcome::Refused(_) => Self::Refused,
            Outcome::Renew(_) => Self::Renew,
            Outcome::Duplicate(_) => Self::Duplicate,
            Outcome::Blocked(_) => Self::Blocked,
            Outcome::Operator(_) => Self::Operator,
            Outcome::Limited(_) => Self::Limited,
            Outcome::Wait(_) => Self::Wait,
            Outcome::Ambiguous(Doubt::NotSent) => Self::NotSent,
            Outcome::Ambiguous(Doubt::Source) => Self::Source,
            Outcome::Ambiguous(Doubt::Lost) => Self::Lost,
            Outcome::Ambiguous(Doubt::Server(_)) => Self::Server,
            Outcome::Ambiguous(Doubt::Foreign(_)) => Self::Foreign,
            Outcome::Ambiguous(Doubt::Unreadable) => Self::Unreadable,
        }
    }
}
