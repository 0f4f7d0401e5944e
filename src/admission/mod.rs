//! The path of an offer: limits, capability, class, reservation; then bytes to staging and
//! fan-out at once. The only module that knows both.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::capability::{Capability, Trust, Verifier};
use crate::clock::Clock;
use crate::config;
use crate::core::CoreApi;
use crate::fanout::{GroupKey, Hub};
use crate::proto::budget::Limiter;
use crate::proto::claims::{Grant, Use};
use crate::proto::message::Hint;
use crate::proto::{ChunkRef, Code, ContactState};
use crate::staging::{Change, Staging};
use crate::telemetry::Metrics;

mod again;
mod clients;
mod drop_in;
mod follow;
mod hidden;
mod names;
mod offer;
mod pace;
mod present;
mod reauthorize;
mod receiving;
mod upload;
mod vouch;
mod watch;

pub use crate::staging::Standing;
pub use drop_in::{Committed, DropIn, DropInEnd, DropInUpload, DropInWatch};
pub use follow::Follow;
pub use receiving::{Admitted, Receiving};
pub use watch::Revocation;

use clients::Clients;
use hidden::Hidden;
use pace::Paces;
use reauthorize::Reauthorize;
use vouch::Vouched;

/// Why something is refused, with everything an adapter needs to say so on its transport.
#[derive(Debug, Clone)]
pub struct Refusal {
    /// The code; the error table gives status, text and retry.
    pub code: Code,
    /// The core's own code, if it is `[a-z0-9_]+` and the core refused.
    pub core_code: Option<Box<str>>,
    /// HTTP status instead of the table's: the core's, mapped.
    pub status: Option<u16>,
    /// When to come back.
    pub retry_after: Option<Duration>,
    /// What is held of the chunk.
    pub standing: Option<Standing>,
}

impl From<Code> for Refusal {
    fn from(code: Code) -> Self {
        Self { code, core_code: None, status: None, retry_after: None, standing: None }
    }
}

/// What admission is made of.
pub struct Parts {
    /// Who reads tokens.
    pub verifier: Verifier,
    /// The core, if one is configured.
    pub core: Option<CoreApi>,
    /// Where bytes go.
    pub staging: Staging,
    /// Who watches.
    pub hub: Hub,
    /// Time.
    pub clock: Clock,
    /// What is counted.
    pub metrics: Metrics,
}

/// The doorkeeper. Cheap to clone.
#[derive(Clone)]
pub struct Admission(Arc<Inner>);

struct Inner {
    parts: Parts,
    clients: Clients,
    vouched: Vouched,
    reauthorize: Arc<Reauthorize>,
    drop_ins: drop_in::InProgress,
    hidden: Hidden,
    paces: Paces,
    max_chunk: u64,
    max_shown: u64,
    allow_unlabelled: bool,
}

impl Admission {
    /// Joins staging and fan-out: every change of a chunk reaches its contacts.
    #[must_use]
    pub fn new(parts: Parts, config: &config::Config) -> Self {
        let hub = parts.hub.clone();
        parts.staging.observe(Box::new(move |change| {
            let standing = match change {
                Change::Now(standing) => standing,
                Change::Dropped(chunk) => return hub.dropped(chunk),
            };
            let ended = standing.state.ended() || standing.state == crate::proto::ChunkState::Unsettled;
            let error = standing.trouble.clone().filter(|_| ended && standing.receipt.is_none());
            hub.state(standing.chunk, ContactState::from(standing.state), standing.receipt.clone(), error);
        }));
        Self(Arc::new(Inner {
            clients: Clients::new(&config.limits),
            vouched: Vouched::new(&parts.clock),
            reauthorize: Reauthorize::new(config.fanout.reauthorize_every, parts.clock.clone(), parts.metrics.clone()),
            drop_ins: drop_in::InProgress::new(&config.limits),
            hidden: Hidden::default(),
            paces: Paces::new(&parts.clock),
            max_chunk: config.staging.max_chunk,
            max_shown: config.fanout.max_chunk,
            allow_unlabelled: config.fanout.allow_unlabelled,
            parts,
        }))
    }

    /// Reads and checks a bearer's capability. `client` is limited until one verifies.
    ///
    /// # Errors
    /// The capability codes, `TooManyRequests`.
    pub async fn capability(&self, token: &str, client: IpAddr) -> Result<Capability, Refusal> {
        let read = self.0.parts.verifier.read(token).await;
        let read = read.map(|capability| self.0.vouched.apply(capability, self.0.parts.clock.unix_s()));
        match read {
            Ok(capability) if capability.trust == Trust::Verified => Ok(capability),
            read => {
                if !self.0.clients.may_ask(client) {
                    let mut refusal = Refusal::from(Code::TooManyRequests);
                    refusal.retry_after = Some(Duration::from_secs(10));
                    return Err(refusal);
                }
                Ok(read?)
            }
        }
    }

    /// Where a chunk stands, for a bearer whose upload capability covers its stream.
    #[must_use]
    pub fn standing(&self, chunk: ChunkRef, capability: &Capability) -> Option<Standing> {
        self.owns(chunk, capability).then(|| self.0.parts.staging.standing(chunk)).flatten()
    }

    /// Follows a chunk that [`Admission::offer`] or [`Admission::standing`] named.
    #[must_use]
    pub fn follow(&self, chunk: ChunkRef) -> Option<Follow> {
        let staging = &self.0.parts.staging;
        staging.follow(chunk).map(|changes| Follow::new(chunk, staging.clone(), changes))
    }

    /// Ends a `receiving` attempt and drops its bytes (`DELETE`).
    ///
    /// # Errors
    /// `ChunkStaged` from `staged` on, `NotFound` for what the bearer does not own.
    pub async fn delete(&self, chunk: ChunkRef, capability: &Capability) -> Result<(), Refusal> {
        if !self.owns(chunk, capability) {
            return Err(Code::NotFound.into());
        }
        Ok(self.0.parts.staging.delete(chunk).await?)
    }

    /// The capture client is alive, if this is its capability.
    pub fn alive(&self, capability: &Capability) {
        for group in self.speaks_for(capability) {
            self.0.parts.hub.alive(&group);
        }
    }

    /// The capture client says that the recording is over, if this is its capability.
    pub fn ended(&self, capability: &Capability) {
        for group in self.speaks_for(capability) {
            self.0.parts.hub.ended(&group);
        }
    }

    /// The groups whose capture device a bearer is: contacts believe no one's word on it but that
    /// of a sound upload capability, verified here or vouched for by the core.
    fn speaks_for(&self, capability: &Capability) -> Vec<GroupKey> {
        let (grant, now) = (&capability.grant, self.0.parts.clock.unix_s());
        // The core may have vouched for it since it was presented.
        let trusted = self.0.vouched.apply(capability.clone(), now).trust == Trust::Verified;
        let sound = trusted && grant.use_ == Use::Upload && !grant.expired(now);
        if sound && !self.0.parts.verifier.is_revoked(grant) { groups(grant) } else { Vec::new() }
    }

    /// What every capture client should know now: how full the room is, whether the core is away.
    fn hint_for_all(&self) -> Hint {
        let core = self.0.parts.core.as_ref();
        // Where the core vouches for each offer, a pause of preflights is one of uploads.
        let pauses = |core: &CoreApi| Limiter::ALL.iter().filter_map(|limiter| core.limited_for(*limiter)).max();
        let limited = core.and_then(pauses);
        Hint {
            core_limited_s: limited.map(|time| time.as_secs().max(1)),
            core_away: core.and_then(CoreApi::away_for).map(|_| true),
            pressure: Some(self.0.parts.staging.pressure()),
            ..Hint::default()
        }
    }

    fn owns(&self, chunk: ChunkRef, capability: &Capability) -> bool {
        capability.trust == Trust::Verified && self.claims(chunk, capability)
    }

    /// Whether a capability says of itself that it covers the chunk's stream.
    fn claims(&self, chunk: ChunkRef, capability: &Capability) -> bool {
        let grant = &capability.grant;
        grant.use_ == Use::Upload
            && grant.lanes.iter().any(|lane| self.0.parts.staging.belongs(chunk, &grant.incident, &lane.stream))
    }
}

/// The groups that a grant speaks of: one, or for a Proofline token one for its stream.
fn groups(grant: &Grant) -> Vec<GroupKey> {
    let mut groups: Vec<_> = grant.lanes.iter().map(|lane| GroupKey::of(grant, &lane.stream)).collect();
    groups.dedup();
    groups
}
