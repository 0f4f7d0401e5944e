//! Metrics of contacts and windows.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use super::names::{self, Eviction, Lane, Omission, Reauthorized, SubscriptionEnding, UnlabelledMedia, Withdrawal};
use crate::proto::Code;
use crate::proto::message::{OmittedReason, WithdrawnReason};
use crate::proto::window::Cause;

/// Contacts and windows.
pub struct Fanout {
    /// Open subscriptions.
    pub contacts: Gauge,
    /// Chunks that are asked for by themselves.
    pub readers: Gauge,
    /// Memory charged for all windows, in bytes.
    pub window_bytes: Gauge,
    /// Capture groups with a window or a contact.
    pub groups: Gauge,
    frames: [Counter; 2],
    bytes: [Counter; 2],
    omitted: Family<OmissionLabel, Counter>,
    withdrawn: Family<WithdrawalLabel, Counter>,
    evicted: Family<EvictionLabel, Counter>,
    endings: Family<EndingLabel, Counter>,
    unlabelled: Family<MediaLabel, Counter>,
    reauthorizations: Family<ReauthorizedLabel, Counter>,
    proofline: Gauge,
    overdue: Gauge,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LaneLabel {
    lane: Lane,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OmissionLabel {
    reason: Omission,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WithdrawalLabel {
    reason: Withdrawal,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EvictionLabel {
    cause: Eviction,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EndingLabel {
    reason: SubscriptionEnding,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReauthorizedLabel {
    outcome: Reauthorized,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MediaLabel {
    media: UnlabelledMedia,
}

impl Fanout {
    pub(super) fn new(registry: &mut Registry) -> Self {
        let by_lane = |family: &Family<LaneLabel, Counter>| {
            [Lane::AudioPriority, Lane::LivePreview].map(|lane| family.get_or_create(&LaneLabel { lane }).clone())
        };
        let (frames, bytes) = (Family::default(), Family::default());
        let new = Self {
            contacts: Gauge::default(),
            readers: Gauge::default(),
            window_bytes: Gauge::default(),
            groups: Gauge::default(),
            frames: by_lane(&frames),
            bytes: by_lane(&bytes),
            omitted: Family::default(),
            withdrawn: Family::default(),
            evicted: Family::default(),
            endings: Family::default(),
            unlabelled: Family::default(),
            reauthorizations: Family::default(),
            proofline: Gauge::default(),
            overdue: Gauge::default(),
        };
        registry.register(names::FANOUT_CONTACTS, "Open subscriptions", new.contacts.clone());
        registry.register(names::FANOUT_READERS, "Requests for single chunks that are open", new.readers.clone());
        registry.register(names::FANOUT_GROUPS, "Capture groups with a window or a contact", new.groups.clone());
        registry.register_with_unit(
            names::FANOUT_WINDOW,
            "Memory charged for all windows",
            Unit::Bytes,
            new.window_bytes.clone(),
        );
        registry.register(names::FANOUT_DELIVERED_FRAMES, "PIECE frames handed to contacts", frames);
        registry.register(names::FANOUT_DELIVERED_BYTES, "Bytes of PIECE frames handed to contacts", bytes);
        registry.register(names::FANOUT_OMITTED_CHUNKS, "Chunks left out for a contact", new.omitted.clone());
        registry.register(names::FANOUT_WITHDRAWN_CHUNKS, "Chunks withdrawn", new.withdrawn.clone());
        registry.register(names::FANOUT_EVICTED_CHUNKS, "Chunks that left a window", new.evicted.clone());
        registry.register(names::FANOUT_SUBSCRIPTION_ENDINGS, "Subscriptions that ended", new.endings.clone());
        registry.register(
            names::FANOUT_UNLABELLED_CHUNKS,
            "Chunks shown by media type, their capability naming no role",
            new.unlabelled.clone(),
        );
        new.register_reauthorizations(registry);
        new
    }

    fn register_reauthorizations(&self, registry: &mut Registry) {
        registry.register(
            names::FANOUT_RECHECKS,
            "Times the core was asked again about a contact's capability",
            self.reauthorizations.clone(),
        );
        registry.register(
            names::FANOUT_PROOFLINE_CAPABILITIES,
            "Capabilities with which somebody watches and about which the core is asked again",
            self.proofline.clone(),
        );
        registry.register(
            names::FANOUT_RECHECKS_OVERDUE,
            "Such capabilities to which the core has not said yes for longer than fanout.reauthorize_every",
            self.overdue.clone(),
        );
    }

    /// `PIECE` frames and their bytes went to a contact; `lane` as in
    /// [`LANES`](crate::proto::window::LANES).
    pub fn delivered(&self, lane: usize, frames: u64, bytes: u64) {
        if let (Some(frame_counter), Some(byte_counter)) = (self.frames.get(lane), self.bytes.get(lane))
            && frames > 0
        {
            frame_counter.inc_by(frames);
            byte_counter.inc_by(bytes);
        }
    }

    /// Chunks were left out for a contact.
    pub fn omitted(&self, reason: OmittedReason, chunks: u64) {
        let reason = match reason {
            OmittedReason::Evicted => Omission::Evicted,
            OmittedReason::Slow => Omission::Slow,
            OmittedReason::TooLarge => Omission::TooLarge,
            OmittedReason::Withdrawn => Omission::Withdrawn,
        };
        self.omitted.get_or_create(&OmissionLabel { reason }).inc_by(chunks);
    }

    /// A chunk was withdrawn.
    pub fn withdrawn(&self, reason: WithdrawnReason) {
        let reason = match reason {
            WithdrawnReason::HashMismatch => Withdrawal::HashMismatch,
            WithdrawnReason::Stalled => Withdrawal::Stalled,
            WithdrawnReason::Superseded => Withdrawal::Superseded,
        };
        self.withdrawn.get_or_create(&WithdrawalLabel { reason }).inc();
    }

    /// A chunk left a window.
    pub fn evicted(&self, cause: Cause) {
        let cause = match cause {
            Cause::Window => Eviction::Window,
            Cause::Memory => Eviction::Memory,
            Cause::Session => Eviction::Session,
            Cause::Chunks => Eviction::Chunks,
            Cause::Gap => Eviction::Gap,
            Cause::Linger => Eviction::Linger,
        };
        self.evicted.get_or_create(&EvictionLabel { cause }).inc();
    }

    /// A subscription ended with this reason; `None`: the recording ended.
    pub fn ending(&self, reason: Option<Code>) {
        self.count_ending(match reason {
            None => SubscriptionEnding::Ended,
            Some(Code::CapabilityExpired) => SubscriptionEnding::Expired,
            Some(Code::CapabilityRevoked) => SubscriptionEnding::Revoked,
            Some(Code::ContactTooSlow) => SubscriptionEnding::TooSlow,
            Some(Code::Draining) => SubscriptionEnding::Draining,
            Some(_) => SubscriptionEnding::Other,
        });
    }

    /// A contact left before its subscription ended.
    pub fn left(&self) {
        self.count_ending(SubscriptionEnding::Left);
    }

    /// A chunk is shown by its media type, its capability naming no role.
    pub fn unlabelled(&self, media: UnlabelledMedia) {
        self.unlabelled.get_or_create(&MediaLabel { media }).inc();
    }

    /// The core was asked again about a capability.
    pub fn reauthorized(&self, outcome: Reauthorized) {
        self.reauthorizations.get_or_create(&ReauthorizedLabel { outcome }).inc();
    }

    /// About so many capabilities the core is asked again, and so many wait for too long.
    pub fn reauthorizing(&self, capabilities: usize, overdue: usize) {
        self.proofline.set(i64::try_from(capabilities).unwrap_or(i64::MAX));
        self.overdue.set(i64::try_from(overdue).unwrap_or(i64::MAX));
    }

    fn count_ending(&self, reason: SubscriptionEnding) {
        self.endings.get_or_create(&EndingLabel { reason }).inc();
    }
}
