//! What happened, for tests and load runs: counts per route and outcome, commits in the order they came.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use serde::Serialize;
use waystation_proto::Media;

/// Routes and outcomes counted apart; further ones are counted as `other`.
const MAX_OUTCOMES: usize = 512;
/// Commits remembered: about 200 bytes each. The oldest go first.
const MAX_COMMITS: usize = 100_000;

/// One commit call whose fields could be read.
#[derive(Clone, Serialize)]
pub struct Commit {
    /// Place in the order in which calls came, over all routes, from 1.
    pub arrival: u64,
    /// When it came, milliseconds since the Unix epoch.
    pub arrived_ms: i64,
    /// When it was answered.
    pub done_ms: i64,
    /// Media type; `None`: none of the four.
    pub media: Option<Media>,
    /// Stream.
    pub stream: String,
    /// Chunk index; 0 if it was no number.
    pub index: u64,
    /// Bytes of the file part.
    pub bytes: u64,
    /// `201`, `200`, `cut`, or the error code.
    pub outcome: String,
}

impl std::fmt::Debug for Commit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Commit")
            .field("arrival", &self.arrival)
            .field("media", &self.media)
            .field("index", &self.index)
            .field("outcome", &self.outcome)
            .finish_non_exhaustive()
    }
}

/// The counts at one moment.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Snapshot {
    /// Calls per route, then per outcome (`200`, `201`, `cut`, or the error code).
    pub calls: BTreeMap<String, BTreeMap<String, u64>>,
    /// Chunks stored, over all runs on this data directory.
    pub stored_chunks: u64,
    /// Their bytes.
    pub stored_bytes: u64,
    /// Commits answered 200 or 201 in this run.
    pub confirmed_chunks: u64,
    /// Bytes of those.
    pub confirmed_bytes: u64,
    /// The last 100,000 commits, in the order they came.
    pub commits: Vec<Commit>,
}

impl Snapshot {
    /// Calls of `route` that ended as `outcome`.
    #[must_use]
    pub fn count(&self, route: &str, outcome: &str) -> u64 {
        self.calls.get(route).and_then(|outcomes| outcomes.get(outcome)).copied().unwrap_or_default()
    }

    /// Calls of `route`.
    #[must_use]
    pub fn calls_of(&self, route: &str) -> u64 {
        self.calls.get(route).map(|outcomes| outcomes.values().sum()).unwrap_or_default()
    }
}

#[derive(Default)]
struct Counts {
    arrivals: u64,
    calls: BTreeMap<(&'static str, String), u64>,
    commits: VecDeque<Commit>,
    confirmed_chunks: u64,
    confirmed_bytes: u64,
}

/// Counts as they grow.
#[derive(Default)]
pub(crate) struct Stats(Mutex<Counts>);

impl Stats {
    /// A call came; its place in the order.
    pub(crate) fn arrival(&self) -> u64 {
        let mut counts = self.lock();
        counts.arrivals += 1;
        counts.arrivals
    }

    pub(crate) fn call(&self, route: &'static str, outcome: &str) {
        let mut counts = self.lock();
        let full = counts.calls.len() >= MAX_OUTCOMES;
        let mut key = (route, outcome.to_owned());
        if full && !counts.calls.contains_key(&key) {
            key.1 = "other".into();
        }
        *counts.calls.entry(key).or_default() += 1;
    }

    pub(crate) fn commit(&self, commit: Commit) {
        let mut counts = self.lock();
        if matches!(commit.outcome.as_str(), "200" | "201") {
            counts.confirmed_chunks += 1;
            counts.confirmed_bytes += commit.bytes;
        }
        if counts.commits.len() >= MAX_COMMITS {
            counts.commits.pop_front();
        }
        counts.commits.push_back(commit);
    }

    pub(crate) fn snapshot(&self, stored_chunks: u64, stored_bytes: u64) -> Snapshot {
        let counts = self.lock();
        let mut calls: BTreeMap<String, BTreeMap<String, u64>> = BTreeMap::new();
        for ((route, outcome), count) in &counts.calls {
            calls.entry((*route).to_owned()).or_default().insert(outcome.clone(), *count);
        }
        let mut commits: Vec<Commit> = counts.commits.iter().cloned().collect();
        commits.sort_by_key(|commit| commit.arrival);
        Snapshot {
            calls,
            stored_chunks,
            stored_bytes,
            confirmed_chunks: counts.confirmed_chunks,
            confirmed_bytes: counts.confirmed_bytes,
            commits,
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
