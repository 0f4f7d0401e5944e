//! Metrics of tokens and of what they are checked with.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::names::{self, CapabilityFetch, CapabilityFormat, CapabilityResult, CapabilitySource};
use crate::proto::Code;
use crate::proto::claims::Format;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Read {
    format: CapabilityFormat,
    result: CapabilityResult,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Fetched {
    source: CapabilitySource,
    outcome: CapabilityFetch,
}

/// Tokens read, keys and revocations fetched.
pub struct Capability {
    reads: Family<Read, Counter>,
    hits: Counter,
    fetches: Family<Fetched, Counter>,
    revoked: Gauge,
}

impl Capability {
    pub(super) fn new(registry: &mut Registry) -> Self {
        let capability = Self {
            reads: Family::default(),
            hits: Counter::default(),
            fetches: Family::default(),
            revoked: Gauge::default(),
        };
        registry.register(names::CAPABILITY_READS, "Capabilities read, by what came out", capability.reads.clone());
        registry.register(
            names::CAPABILITY_CACHE_HITS,
            "Capabilities whose signature was checked before",
            capability.hits.clone(),
        );
        registry.register(
            names::CAPABILITY_FETCHES,
            "Fetches of the core's keys and of its revocation list",
            capability.fetches.clone(),
        );
        registry.register(names::CAPABILITY_REVOKED, "Entries of the revocation list", capability.revoked.clone());
        capability
    }

    /// A token was read: `Ok(true)` if it verified, `Ok(false)` if it is only claimed.
    pub fn read(&self, format: Option<Format>, outcome: Result<bool, Code>) {
        let format = match format {
            Some(Format::Jwt) => CapabilityFormat::Jwt,
            Some(Format::Proofline) => CapabilityFormat::Proofline,
            None => CapabilityFormat::None,
        };
        let result = match outcome {
            Ok(true) => CapabilityResult::Verified,
            Ok(false) => CapabilityResult::Claimed,
            Err(Code::CapabilityExpired) => CapabilityResult::Expired,
            Err(Code::CapabilityWrongUse) => CapabilityResult::WrongUse,
            Err(Code::CapabilityRevoked) => CapabilityResult::Revoked,
            Err(Code::CapabilityUnverifiable) => CapabilityResult::Unverifiable,
            Err(_) => CapabilityResult::Invalid,
        };
        self.reads.get_or_create(&Read { format, result }).inc();
    }

    /// A token was known to verify.
    pub fn hit(&self) {
        self.hits.inc();
    }

    /// A fetch ended.
    pub fn fetched(&self, source: CapabilitySource, outcome: CapabilityFetch) {
        self.fetches.get_or_create(&Fetched { source, outcome }).inc();
    }

    /// The revocation list has so many entries.
    pub fn revoked(&self, entries: usize) {
        self.revoked.set(i64::try_from(entries).unwrap_or(i64::MAX));
    }
}
