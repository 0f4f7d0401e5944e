//! The drop-in routes' way (contract B.3, B.4): preflight, stage, hash, fan out whole, commit,
//! answer, forget. Nothing is retried in the background and nothing is kept.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest::{Context, SHA256};
use bytes::Bytes;
use serde_json::{Map, Value};

use super::{Admission, Refusal};
use crate::capability::{Capability, Trust};
use crate::core::{ChunkFields, CoreApi};
use crate::fanout::{ChunkMeta, GroupKey, Hub};
use crate::proto::budget::Call;
use crate::proto::ledger::Ending;
use crate::proto::message::WithdrawnReason;
use crate::proto::outcome::{Confirmed, Doubt, Outcome};
use crate::proto::{ChunkRef, Class, Code, ContactState, Offer, SessionId, Variant};
use crate::staging::{Expected, Spooled, Spooling};

mod slots;
mod watch;

pub(super) use slots::InProgress;
pub use watch::DropInWatch;

use slots::Slot;

/// How long a call waits for its place in the budget.
const BUDGET_WAIT: Duration = Duration::from_secs(30);
/// When to come back while nothing better is known.
const SOON: Duration = Duration::from_secs(5);
/// Bytes read from the disk at once for contacts.
const SHOW_BYTES: usize = 256 * 1024;

/// The text fields of a drop-in upload, parsed in the order of contract B.3.
pub struct DropInUpload {
    /// `relay_session_id`
    pub session: SessionId,
    /// `capability`
    pub capability: String,
    /// Everything else, as an offer.
    pub offer: Offer,
}

/// What the core said of a drop-in commit.
pub struct Committed {
    /// 200 or 201, the core's.
    pub status: u16,
    /// The allow-listed members of `relay_commit`; empty if the core sent none.
    pub relay_upload: Map<String, Value>,
}

/// How a drop-in upload ended. Contacts hear of it when this is dropped: after the answer is
/// written.
pub struct DropInEnd {
    /// What the uploader is told.
    pub outcome: Result<Committed, Refusal>,
    _told: Option<Told>,
}

impl From<Refusal> for DropInEnd {
    fn from(refusal: Refusal) -> Self {
        Self { outcome: Err(refusal), _told: None }
    }
}

/// A chunk that contacts see, and what they are told of it in the end. If nobody learns the
/// outcome, that is the outcome.
struct Told {
    hub: Hub,
    chunk: ChunkRef,
    state: ContactState,
    receipt: Option<Arc<str>>,
    error: Option<(Code, Option<Box<str>>)>,
}

impl Drop for Told {
    fn drop(&mut self) {
        self.hub.state(self.chunk, self.state, self.receipt.take(), self.error.take());
    }
}

/// A drop-in upload whose file is coming. Dropping it removes what came.
pub struct DropIn {
    admission: Admission,
    upload: DropInUpload,
    lane: Lane,
    way: Way,
    /// Bytes of the file that came.
    came: u64,
    _slot: Slot,
}

/// Where contacts find it.
struct Lane {
    group: GroupKey,
    variant: Variant,
    shown: bool,
}

enum Way {
    Spool(Box<Spooling>),
    /// This relay saw these bytes confirmed: what comes is hashed and let go.
    Known(Map<String, Value>, Context),
}

impl Admission {
    /// The drop-in upload (contract B.3), up to the file: slot, then the core's preflight.
    ///
    /// # Errors
    /// The drop-in codes: `RelayCoreNotConfigured`, `RelayChunkInProgress`,
    /// `RelaySessionInFlight`, `RelayClientInFlight`, `TooManyRequests`, `CorePreflightRejected`
    /// (with `core_code` and `status`), `CorePreflightUnavailable`, `RelayTempStagingQuota`.
    pub async fn drop_in(&self, upload: DropInUpload, client: IpAddr) -> Result<DropIn, Refusal> {
        let core = self.0.parts.core.as_ref().ok_or(Code::RelayCoreNotConfigured)?;
        let slot = self.0.drop_ins.slot(upload.session.as_str(), upload.offer.index, client)?;
        let capability = self.drop_in_bearer(&upload.capability, client).await?;
        let lane = self.drop_in_lane(&upload.offer, capability.as_ref());
        let class = lane.variant.class();
        let permit = budget(core, Call::Preflight, class.rank(), Code::CorePreflightUnavailable).await?;
        let outcome = core.preflight(permit, fields(&upload)).await;
        let known = self.0.drop_ins.answer(&upload.offer);
        let way = match (outcome, known) {
            (Outcome::Accepted, _) => {
                if let Some(capability) = capability.filter(|capability| capability.trust == Trust::Claimed) {
                    self.0.vouched.remember(&capability, self.0.parts.clock.unix_s());
                }
                Way::Spool(Box::new(self.spool(&upload, lane.variant)?))
            }
            (Outcome::Duplicate(_), Some(answer)) => Way::Known(answer, Context::new(&SHA256)),
            (outcome, _) => {
                return Err(said(&outcome, Code::CorePreflightRejected, Code::CorePreflightUnavailable));
            }
        };
        Ok(DropIn { admission: self.clone(), upload, lane, way, came: 0, _slot: slot })
    }

    /// What a token says, if it can be read. Whoever brings one that can't be verified here costs
    /// the core a call: that is limited by address.
    async fn drop_in_bearer(&self, token: &str, client: IpAddr) -> Result<Option<Capability>, Refusal> {
        let read = self.0.parts.verifier.read(token).await.ok();
        let read = read.map(|capability| self.0.vouched.apply(capability, self.0.parts.clock.unix_s()));
        let verified = read.as_ref().is_some_and(|capability| capability.trust == Trust::Verified);
        if !verified && !self.0.clients.may_ask(client) {
            let mut refusal = Refusal::from(Code::TooManyRequests);
            refusal.retry_after = Some(Duration::from_secs(10));
            return Err(refusal);
        }
        Ok(read)
    }

    /// A JWT names group and role; a Proofline token's stream is its own, by its media type.
    fn drop_in_lane(&self, offer: &Offer, capability: Option<&Capability>) -> Lane {
        let grant = capability.filter(|capability| capability.trust == Trust::Verified).map(|known| &known.grant);
        let label = grant.and_then(|grant| grant.lane(&offer.stream)).and_then(|lane| lane.variant);
        let variant = label.unwrap_or(Variant::of_unlabelled(offer.media));
        let own = || GroupKey::Stream(offer.incident.clone(), offer.stream.clone());
        let group = grant.map_or_else(own, |grant| GroupKey::of(grant, &offer.stream));
        Lane { group, variant, shown: variant.watchable() && (label.is_some() || self.0.allow_unlabelled) }
    }

    fn spool(&self, upload: &DropInUpload, variant: Variant) -> Result<Spooling, Code> {
        let offer = &upload.offer;
        let (session, length, sha256) = (upload.session.clone(), offer.length, offer.sha256);
        self.0.parts.staging.spool(&Expected { session, variant, length, sha256 }).map_err(drop_in_code)
    }
}

impl DropIn {
    /// Takes the next bytes of the file.
    ///
    /// # Errors
    /// `UploadTooLarge`, `RelayStagingFailed`.
    pub async fn push(&mut self, bytes: Bytes) -> Result<(), Refusal> {
        self.came += bytes.len() as u64;
        if self.came > self.admission.0.max_chunk {
            return Err(Code::UploadTooLarge.into());
        }
        // What is over its `byte_size` is read on, for its sender to come to the answer.
        if self.came <= self.upload.offer.length {
            match &mut self.way {
                Way::Known(_, hash) => hash.update(&bytes),
                Way::Spool(spooling) => spooling.push(bytes).await.map_err(drop_in_code)?,
            }
        }
        Ok(())
    }

    /// The file and the body ended: size, hash, fan-out, commit; then what came is removed. The
    /// errors are `ByteSizeMismatch`, `HashMismatch`, `CoreCommitRejected`,
    /// `CoreCommitUnavailable`, `CoreCommitInvalidResponse`, `RelayStagingFailed`.
    pub async fn commit(self) -> DropInEnd {
        let Self { admission, upload, lane, way, came, _slot } = self;
        if came != upload.offer.length {
            return Refusal::from(Code::ByteSizeMismatch).into();
        }
        let spooled = match way {
            Way::Known(_, hash) if hash.clone().finish().as_ref() != upload.offer.sha256.0 => {
                return Refusal::from(Code::HashMismatch).into();
            }
            Way::Known(relay_upload, _) => {
                return DropInEnd { outcome: Ok(Committed { status: 200, relay_upload }), _told: None };
            }
            Way::Spool(spooling) => match spooling.whole().await {
                Ok(spooled) => spooled,
                Err(code) => return Refusal::from(drop_in_code(code)).into(),
            },
        };
        let class = lane.variant.class();
        match admission.show_whole(&upload, lane, &spooled).await {
            Ok(told) => admission.commit_drop_in(&upload, class, spooled, told).await,
            Err(refusal) => refusal.into(),
        }
    }
}

impl Admission {
    /// Fans the whole chunk out, if it is one that contacts may see.
    async fn show_whole(&self, upload: &DropInUpload, lane: Lane, spooled: &Spooled) -> Result<Option<Told>, Refusal> {
        if !lane.shown {
            return Ok(None);
        }
        let offer = &upload.offer;
        let meta = ChunkMeta {
            chunk: offer.chunk_ref(),
            session: upload.session.clone(),
            stream: offer.stream.clone(),
            variant: lane.variant,
            media: offer.media,
            index: offer.index,
            length: offer.length,
            sha256: offer.sha256,
            started: offer.started.clone(),
            ended: offer.ended.clone(),
        };
        let publication = self.0.parts.hub.publish(&lane.group, meta);
        let mut at = 0;
        while at < offer.length && offer.length <= self.0.max_shown {
            let Ok(bytes) = spooled.read(at, SHOW_BYTES).await else {
                publication.withdraw(WithdrawnReason::Stalled);
                return Err(Code::RelayStagingFailed.into());
            };
            publication.push(at, &bytes);
            at += bytes.len() as u64;
        }
        publication.complete();
        Ok(Some(Told {
            hub: self.0.parts.hub.clone(),
            chunk: offer.chunk_ref(),
            state: ContactState::TerminalFailure,
            receipt: None,
            error: Some((Code::CoreCommitUnavailable, None)),
        }))
    }

    async fn commit_drop_in(
        &self,
        upload: &DropInUpload,
        class: Class,
        spooled: Spooled,
        mut told: Option<Told>,
    ) -> DropInEnd {
        let outcome = self.ask_commit(upload, class, &spooled).await;
        let outcome = match outcome {
            Ok(Confirmed { status, receipt, relay_commit, .. }) => {
                spooled.over(Ending::Confirmed);
                self.0.drop_ins.remember(&upload.offer, &relay_commit);
                if let Some(told) = &mut told {
                    (told.state, told.receipt, told.error) = (ContactState::Confirmed, receipt.map(Arc::from), None);
                }
                Ok(Committed { status, relay_upload: relay_commit })
            }
            Err(refusal) => {
                let status = refusal.status.unwrap_or_else(|| refusal.code.status());
                let failed = status == 429 || status >= 500;
                spooled.over(if failed { Ending::Abandoned } else { Ending::Rejected });
                if let Some(told) = &mut told {
                    told.state = if failed { ContactState::TerminalFailure } else { ContactState::Rejected };
                    told.error = Some((refusal.code, refusal.core_code.clone()));
                }
                Err(refusal)
            }
        };
        DropInEnd { outcome, _told: told }
    }

    async fn ask_commit(&self, upload: &DropInUpload, class: Class, spooled: &Spooled) -> Result<Confirmed, Refusal> {
        let core = self.0.parts.core.as_ref().ok_or(Code::RelayCoreNotConfigured)?;
        let permit = async {
            // One of a class at a time stands in the line, as a native session's chunks do: many
            // uploads here do not take its turns.
            let _turn = self.0.drop_ins.turn(class).await;
            budget(core, Call::Commit, class.rank(), Code::CoreCommitUnavailable).await
        };
        let permit = tokio::time::timeout(BUDGET_WAIT, permit).await;
        let permit = permit.unwrap_or_else(|_| Err(later(Code::CoreCommitUnavailable, SOON)))?;
        match core.commit(permit, fields(upload), spooled.body()).await {
            Outcome::Confirmed(confirmed) => Ok(confirmed),
            Outcome::Ambiguous(Doubt::Unreadable) => Err(Code::CoreCommitInvalidResponse.into()),
            outcome => Err(said(&outcome, Code::CoreCommitRejected, Code::CoreCommitUnavailable)),
        }
    }
}

fn fields(upload: &DropInUpload) -> ChunkFields<'_> {
    ChunkFields { session: upload.session.as_str(), capability: &upload.capability, offer: &upload.offer }
}

fn later(code: Code, time: Duration) -> Refusal {
    let mut refusal = Refusal::from(code);
    refusal.retry_after = Some(time.max(Duration::from_secs(1)));
    refusal
}

async fn budget(core: &CoreApi, call: Call, rank: usize, unavailable: Code) -> Result<crate::core::Permit, Refusal> {
    let paused = core.limited_for(call.limiter()).into_iter().chain(core.away_for()).max();
    if let Some(time) = paused.filter(|time| *time > BUDGET_WAIT) {
        return Err(later(unavailable, time));
    }
    let permit = core.permit_ranked(call, rank as u8);
    tokio::time::timeout(BUDGET_WAIT, permit).await.map_err(|_| later(unavailable, SOON))
}

/// A core's "no" in the existing relay's words: what has a status is passed on as a refusal, what
/// has none is "unavailable".
fn said(outcome: &Outcome, rejected: Code, unavailable: Code) -> Refusal {
    let Some(refusal) = outcome.refusal() else { return unavailable.into() };
    let mut out = Refusal::from(rejected);
    out.core_code = refusal.code.clone();
    out.status = Some(refusal.status);
    out.retry_after = refusal.retry_after_s.map(Duration::from_secs);
    out
}

/// Staging's codes in the existing relay's words.
const fn drop_in_code(code: Code) -> Code {
    match code {
        Code::StagingFull | Code::SessionQuota => Code::RelayTempStagingQuota,
        Code::InFlightPerSession => Code::RelaySessionInFlight,
        Code::ReceivingFull => Code::RelayClientInFlight,
        Code::BodyIncomplete => Code::ByteSizeMismatch,
        Code::HashMismatch => Code::HashMismatch,
        _ => Code::RelayStagingFailed,
    }
}
