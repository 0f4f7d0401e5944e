//! Metrics of what is held: the answer to "is evidence stuck, why, since when?".

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::names::{self, DiskStep, Recovered};
use crate::proto::ledger::{Ending, Reason};
use crate::proto::{Class, Code};

/// What waits: its class and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Waiting {
    class: &'static str,
    reason: &'static str,
}

impl Waiting {
    /// The labels.
    #[must_use]
    pub const fn new(class: Class, reason: Reason) -> Self {
        Self { class: class.as_str(), reason: reason.as_str() }
    }
}

/// A class and how a chunk of it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Ended {
    class: &'static str,
    ending: &'static str,
}

impl Ended {
    /// The labels.
    #[must_use]
    pub const fn new(class: Class, ending: Ending) -> Self {
        Self { class: class.as_str(), ending: ending.as_str() }
    }
}

/// A class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OfClass {
    class: &'static str,
}

impl OfClass {
    /// The label.
    #[must_use]
    pub const fn new(class: Class) -> Self {
        Self { class: class.as_str() }
    }
}

/// A stable error code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OfCode {
    code: &'static str,
}

impl OfCode {
    /// The label.
    #[must_use]
    pub const fn new(code: Code) -> Self {
        Self { code: code.name() }
    }
}

/// A step on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OfStep {
    /// Which.
    pub step: DiskStep,
}

/// Something found at start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OfRecovered {
    /// What.
    pub what: Recovered,
}

/// Seconds as a gauge.
pub type Seconds = Gauge<f64, AtomicU64>;

/// What is held.
pub struct Staging {
    /// Age of the oldest unconfirmed chunk.
    pub oldest_unconfirmed: Family<Waiting, Seconds>,
    /// Unconfirmed chunks.
    pub chunks: Family<Waiting, Gauge>,
    /// Their bytes.
    pub bytes: Family<Waiting, Gauge>,
    /// Time until the next unconfirmed chunk is let go; -1 when none is held.
    pub next_expiry: Seconds,
    /// How chunks ended.
    pub endings: Family<Ended, Counter>,
    /// Room used, with overhead.
    pub used: Gauge,
    /// Room in all.
    pub quota: Gauge,
    /// How full the room of a class is.
    pub pressure: Family<OfClass, Seconds>,
    /// Chunks being received.
    pub receiving: Gauge,
    /// Offers refused, by code.
    pub refused: Family<OfCode, Counter>,
    /// Disk errors.
    pub disk_errors: Family<OfStep, Counter>,
    /// What was found on the disk at start.
    pub recovered: Family<OfRecovered, Counter>,
    /// Chunks released by a later capability.
    pub released: Counter,
    /// Bytes of staged chunks that are in memory too.
    pub fresh: Gauge,
    /// How often the machine's calendar was set.
    pub clock_jumps: Counter,
}

impl Staging {
    pub(super) fn new(registry: &mut Registry) -> Self {
        let new = Self {
            oldest_unconfirmed: Family::default(),
            chunks: Family::default(),
            bytes: Family::default(),
            next_expiry: Seconds::default(),
            endings: Family::default(),
            used: Gauge::default(),
            quota: Gauge::default(),
            pressure: Family::default(),
            receiving: Gauge::default(),
            refused: Family::default(),
            disk_errors: Family::default(),
            recovered: Family::default(),
            released: Counter::default(),
            fresh: Gauge::default(),
            clock_jumps: Counter::default(),
        };
        registry.register(
            names::OLDEST_UNCONFIRMED,
            "Age of the oldest unconfirmed chunk.",
            new.oldest_unconfirmed.clone(),
        );
        registry.register(names::STAGED_CHUNKS, "Unconfirmed chunks held", new.chunks.clone());
        registry.register(names::STAGED_BYTES, "Bytes of unconfirmed chunks held", new.bytes.clone());
        registry.register(
            names::NEXT_EXPIRY,
            "Time until the next unconfirmed chunk is let go; -1: none held.",
            new.next_expiry.clone(),
        );
        registry.register(names::CHUNK_ENDINGS, "How chunks ended", new.endings.clone());
        registry.register(names::STAGING_USED, "Room used, with the overhead of each chunk", new.used.clone());
        registry.register(names::STAGING_QUOTA, "Room in all (staging.quota)", new.quota.clone());
        registry.register(names::STAGING_PRESSURE, "How full the room of a class is, 0 to 1", new.pressure.clone());
        registry.register(names::RECEIVING, "Chunks being received now", new.receiving.clone());
        registry.register(names::OFFERS_REFUSED, "Offers refused before their body", new.refused.clone());
        registry.register(names::DISK_ERRORS, "Errors of the staging disk", new.disk_errors.clone());
        registry.register(names::RECOVERED, "What was found on the disk at start", new.recovered.clone());
        registry.register(names::RELEASED, "Chunks released by a later capability", new.released.clone());
        registry.register(names::FRESH, "Bytes of staged chunks that are in memory too", new.fresh.clone());
        registry.register(
            names::CLOCK_JUMPS,
            "Times the machine's calendar was set by over a minute",
            new.clock_jumps.clone(),
        );
        new.begin();
        new
    }

    /// What alerts watch begins at 0: an increase from nothing is none.
    fn begin(&self) {
        for step in DiskStep::ALL {
            drop(self.disk_errors.get_or_create(&OfStep { step: *step }));
        }
        for what in Recovered::ALL {
            drop(self.recovered.get_or_create(&OfRecovered { what: *what }));
        }
        for (class, ending) in Class::ALL.iter().flat_map(|class| Ending::ALL.iter().map(|ending| (*class, *ending))) {
            drop(self.endings.get_or_create(&Ended::new(class, ending)));
        }
    }
}
