//! What somebody watches, without a socket and by virtual time.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::harness::context;
use crate::admission::Revocation;
use crate::capability::testing::{EXP, fanout_claims, mint, revoke, verifier};
use crate::capability::{Capability, Verifier};
use crate::clock::Clock;
use crate::config;
use crate::fanout::{ChunkMeta, GroupKey, Hub};
use crate::ingress::conn::Ctx;
use crate::proto::offer::Timestamp;
use crate::proto::{ChunkRef, Digest, GroupId, IncidentId, Media, SessionId, StreamId, Variant};
use crate::telemetry::Metrics;
use crate::telemetry::names::Transport;

/// How long before its end the capability is shown.
pub(in crate::ingress) const LEFT: Duration = Duration::from_secs(10);

pub(in crate::ingress) struct Watched {
    pub(in crate::ingress) clock: Clock,
    pub(in crate::ingress) hub: Hub,
    pub(in crate::ingress) ctx: Ctx,
    pub(in crate::ingress) capability: Capability,
    verifier: Verifier,
    metrics: Metrics,
}

impl Watched {
    pub(in crate::ingress) async fn new() -> Self {
        let clock = Clock::at_unix_ms((EXP - LEFT.as_secs() as i64) * 1000);
        let metrics = Metrics::new();
        let verifier = verifier(&clock, &metrics);
        let capability = verifier.read(&mint(&fanout_claims())).await.unwrap();
        let limits = config::Limits::default();
        let hub = Hub::new(&config::Fanout::default(), &limits, "node", clock.clone(), metrics.clone());
        Self { ctx: context(clock.clone(), Transport::H1), clock, hub, capability, verifier, metrics }
    }

    pub(in crate::ingress) fn stream() -> StreamId {
        StreamId::new("stream_1").unwrap()
    }

    /// A whole chunk of sound.
    pub(in crate::ingress) fn bring(&self, index: u64, length: usize) {
        let incident = IncidentId::new("incident_1").unwrap();
        let ends = self.clock.unix_ms() + 2_000 * i64::try_from(index).unwrap();
        let meta = ChunkMeta {
            chunk: ChunkRef::of(&incident, &Self::stream(), index),
            session: SessionId::new("uploader").unwrap(),
            stream: Self::stream(),
            variant: Variant::AudioPriority,
            media: Media::Audio,
            index,
            length: length as u64,
            sha256: Digest([1; 32]),
            started: Timestamp::from_unix_ms(ends - 2_000),
            ended: Timestamp::from_unix_ms(ends),
        };
        let group = GroupKey::Group(incident, GroupId::new("group_1").unwrap());
        let publication = self.hub.publish(&group, meta);
        publication.push(0, &Bytes::from(vec![7; length]));
        publication.complete();
    }

    pub(in crate::ingress) fn revocation(&self) -> Revocation {
        Revocation::of(&self.verifier, &Arc::clone(&self.capability.grant), &self.clock)
    }

    /// The core takes the capability back.
    pub(in crate::ingress) fn revoke(&self) {
        revoke(&self.verifier, "jti_2");
    }

    /// How many subscriptions ended for this reason.
    pub(in crate::ingress) fn endings(&self, reason: &str) -> usize {
        let line = format!("waystation_fanout_subscription_endings_total{{reason=\"{reason}\"}} 1");
        self.metrics.text().lines().filter(|found| **found == line).count()
    }
}
