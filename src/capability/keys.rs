//! The core's public keys: fetched again when a token names an unknown one, at most once in 30 s
//! whoever asks; a fetch that fails changes nothing.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use serde::Deserialize;

use crate::clock::Clock;
use crate::core::{Fetch, FetchError};
use crate::proto::Code;
use crate::proto::claims::Jwk;
use crate::telemetry::Metrics;
use crate::telemetry::names::{CapabilityFetch, CapabilitySource};

/// Between two fetches, whatever tokens come (`wire.md`, "Capability").
const BETWEEN_FETCHES_MS: u64 = 30_000;
/// Most keys kept of a set; a core has two while it rotates.
const MAX_KEYS: usize = 64;

/// Ed25519 keys by `kid`.
#[derive(PartialEq, Eq)]
pub(super) struct KeySet(HashMap<String, [u8; 32]>);

impl KeySet {
    /// Reads a JWKS (RFC 7517 §5); keys of other kinds and uses are skipped. `None` if there is
    /// no usable key: that is a mistake somewhere, and no reason to forget the ones known.
    pub(super) fn parse(json: &[u8]) -> Option<Self> {
        #[derive(Deserialize)]
        struct Set {
            keys: Vec<serde_json::Value>,
        }
        let set: Set = serde_json::from_slice(json).ok()?;
        let keys: HashMap<_, _> = set.keys.into_iter().filter_map(usable).take(MAX_KEYS).collect();
        (!keys.is_empty()).then_some(Self(keys))
    }

    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.0.len()
    }
}

fn usable(key: serde_json::Value) -> Option<(String, [u8; 32])> {
    let allows = |member: &str, words: &[&str]| {
        key.get(member).is_none_or(|value| value.as_str().is_some_and(|text| words.contains(&text)))
    };
    if !allows("use", &["sig"]) || !allows("alg", &["Ed25519", "EdDSA"]) {
        return None;
    }
    let jwk = Jwk::deserialize(&key).ok()?;
    Some((jwk.kid.clone()?, jwk.ed25519()?))
}

/// The keys known now, and where more come from.
pub(super) struct KeyStore {
    current: ArcSwapOption<Current>,
    fetch: Fetch,
    fetching: Arc<tokio::sync::Mutex<Fetching>>,
    clock: Clock,
    metrics: Metrics,
}

struct Current {
    keys: KeySet,
    generation: u64,
}

#[derive(Default)]
struct Fetching {
    last_ms: Option<u64>,
    /// The last fetch tells which keys there are, and not only that the core is away.
    told: bool,
}

impl KeyStore {
    /// Starts with `first`, from a file.
    pub(super) fn new(first: Option<KeySet>, fetch: Fetch, clock: Clock, metrics: Metrics) -> Arc<Self> {
        Arc::new(Self {
            current: ArcSwapOption::from_pointee(first.map(|keys| Current { keys, generation: 1 })),
            fetch,
            fetching: Arc::default(),
            clock,
            metrics,
        })
    }

    /// Whether any key is known.
    pub(super) fn any(&self) -> bool {
        self.current.load().is_some()
    }

    /// Counts the changes of the set: what was verified under another count must be again.
    pub(super) fn generation(&self) -> u64 {
        self.current.load().as_ref().map_or(0, |current| current.generation)
    }

    /// The key of that name, fetched if need be, and the generation of the set it is from.
    pub(super) async fn find(self: &Arc<Self>, kid: &str) -> Result<([u8; 32], u64), Code> {
        if let Some(key) = self.have(kid) {
            return Ok(key);
        }
        let told = self.refresh().await;
        self.have(kid).ok_or(if told { Code::CapabilityInvalid } else { Code::CapabilityUnverifiable })
    }

    /// Fetches the set, unless that was done in the last 30 s. Whoever comes meanwhile waits for
    /// the same fetch. Whether the newest fetch told which keys there are.
    pub(super) async fn refresh(self: &Arc<Self>) -> bool {
        let mut fetching = Arc::clone(&self.fetching).lock_owned().await;
        let now = self.clock.now_ms();
        if fetching.last_ms.is_some_and(|last| now < last + BETWEEN_FETCHES_MS) {
            return fetching.told;
        }
        fetching.last_ms = Some(now);
        // A task of its own: the one who asked may go away, the others still wait for it.
        let store = Arc::clone(self);
        let task = tokio::spawn(async move {
            fetching.told = store.fetch_once().await;
            fetching.told
        });
        task.await.unwrap_or(false)
    }

    async fn fetch_once(&self) -> bool {
        let (outcome, told) = match self.fetch.jwks().await {
            Err(FetchError::NotConfigured) => return self.any(),
            Err(FetchError::Absent) => (CapabilityFetch::Absent, false),
            Err(FetchError::NoAnswer) => (CapabilityFetch::Failed, false),
            Ok(json) => match KeySet::parse(&json) {
                None => (CapabilityFetch::Unreadable, false),
                Some(set) => {
                    self.adopt(set);
                    (CapabilityFetch::Ok, true)
                }
            },
        };
        self.metrics.capability.fetched(CapabilitySource::Keys, outcome);
        told
    }

    fn adopt(&self, set: KeySet) {
        let before = self.current.load();
        if before.as_ref().is_none_or(|current| current.keys != set) {
            let generation = before.as_ref().map_or(1, |current| current.generation + 1);
            self.current.store(Some(Arc::new(Current { keys: set, generation })));
        }
    }

    fn have(&self, kid: &str) -> Option<([u8; 32], u64)> {
        let current = self.current.load();
        let current = current.as_ref()?;
        current.keys.0.get(kid).map(|key| (*key, current.generation))
    }
}
