//! The drop-in routes' way (contract B.3, B.4): preflight, stage, hash, fan out whole, commit,
//! answer, forget. Nothing is retried in the background and nothing is kept.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Map, Value};

use super::{Admission, Refusal};
use crate::capability::{Capability, Trust};
use crate::config::Limits;
use crate::core::{ChunkFields, CoreApi, FanoutFields};
use crate::fanout::{ChunkMeta, GroupKey, Hub, WholeSubscription};
use crate::proto::budget::Call;
use crate::proto::claims::{Format, Grant, LaneGrant, Use};
use crate::proto::outcome::{Confirmed, Doubt, Outcome};
use crate::proto::{ChunkRef, Code, ContactState, Digest, Offer, SessionId, StreamId, Variant};
use crate::staging::{Incoming, Offered, SPOOL_PREFIX, Spooled};

/// Confirmed uploads whose answer is remembered for a resend. About 1 KiB each.
const MAX_REMEMBERED: usize = 4096;
/// How long a call waits for its place in the budget.
const BUDGET_WAIT: Duration = Duration::from_secs(30);

/// The text fields of a drop-in upload, parsed in the order of contract B.3.
pub struct DropInUpload {
    /// `relay_session_id`
    pub session: String,
    /// `capability`
    pub capability: String,
    /// Everything else, as an offer.
    pub offer: Offer,
}

/// The headers of a drop-in subscription.
pub struct DropInWatch {
    /// `X-Proofline-Relay-Session-ID`
    pub session: String,
    /// `X-Proofline-Relay-Fanout-Capability`
    pub capability: String,
    /// `X-Proofline-Relay-Incident-ID`
    pub incident: String,
    /// `X-Proofline-Relay-Stream-ID`
    pub stream: String,
}

/// What the core said of a drop-in commit.
pub struct Committed {
    /// 200 or 201, the core's.
    pub status: u16,
    /// The allow-listed members of `relay_commit`; empty if the core sent none.
    pub relay_upload: Map<String, Value>,
    /// Contacts hear of it when this is dropped: after the answer is written.
    _told: Option<Told>,
}

struct Told {
    hub: Hub,
    chunk: ChunkRef,
    receipt: Option<Arc<str>>,
}

impl Drop for Told {
    fn drop(&mut self) {
        self.hub.state(self.chunk, ContactState::Confirmed, self.receipt.take(), None);
    }
}

/// Uploads in flight, and answers remembered.
pub(super) struct InProgress {
    state: Arc<Mutex<State>>,
    per_session: usize,
    per_client: usize,
}

#[derive(Default)]
struct State {
    chunks: HashSet<(String, u64)>,
    sessions: HashMap<String, usize>,
    clients: HashMap<IpAddr, usize>,
    answers: HashMap<ChunkRef, (Digest, u64, Map<String, Value>)>,
    order: VecDeque<ChunkRef>,
}

/// A slot for one chunk; given back when dropped.
struct Slot {
    state: Arc<Mutex<State>>,
    session: String,
    index: u64,
    client: IpAddr,
}

impl InProgress {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            state: Arc::default(),
            per_session: limits.in_flight_per_session,
            per_client: limits.in_flight_per_client,
        }
    }

    fn slot(&self, session: &str, index: u64, client: IpAddr) -> Result<Slot, Code> {
        let mut state = lock(&self.state);
        if state.chunks.contains(&(session.to_owned(), index)) {
            return Err(Code::RelayChunkInProgress);
        }
        if state.sessions.get(session).is_some_and(|count| *count >= self.per_session) {
            return Err(Code::RelaySessionInFlight);
        }
        if state.clients.get(&client).is_some_and(|count| *count >= self.per_client) {
            return Err(Code::RelayClientInFlight);
        }
        state.chunks.insert((session.to_owned(), index));
        *state.sessions.entry(session.to_owned()).or_default() += 1;
        *state.clients.entry(client).or_default() += 1;
        Ok(Slot { state: Arc::clone(&self.state), session: session.to_owned(), index, client })
    }

    fn remember(&self, offer: &Offer, answer: &Map<String, Value>) {
        let mut state = lock(&self.state);
        let chunk = offer.chunk_ref();
        if state.answers.insert(chunk, (offer.sha256, offer.length, answer.clone())).is_none() {
            state.order.push_back(chunk);
        }
        if state.order.len() > MAX_REMEMBERED
            && let Some(oldest) = state.order.pop_front()
        {
            state.answers.remove(&oldest);
        }
    }

    fn answer(&self, offer: &Offer) -> Option<Map<String, Value>> {
        let state = lock(&self.state);
        let (digest, length, answer) = state.answers.get(&offer.chunk_ref())?;
        (*digest == offer.sha256 && *length == offer.length).then(|| answer.clone())
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut state = lock(&self.state);
        let session = std::mem::take(&mut self.session);
        leave(&mut state.sessions, &session);
        leave(&mut state.clients, &self.client);
        state.chunks.remove(&(session, self.index));
    }
}

fn leave<K: std::hash::Hash + Eq>(counts: &mut HashMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

fn lock(state: &Mutex<State>) -> std::sync::MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A drop-in upload whose file is coming. Dropping it removes what was staged.
pub struct DropIn {
    admission: Admission,
    upload: DropInUpload,
    way: Way,
    /// The file goes on past its `byte_size`.
    over: bool,
    _slot: Slot,
}

enum Way {
    Spool(Incoming),
    /// This relay saw these bytes confirmed: what comes is read and let go.
    Known(Map<String, Value>, u64),
}

impl Admission {
    /// The drop-in upload (contract B.3), up to the file: slot, then the core's preflight.
    ///
    /// # Errors
    /// The drop-in codes: `RelayCoreNotConfigured`, `RelayChunkInProgress`,
    /// `RelaySessionInFlight`, `RelayClientInFlight`, `CorePreflightRejected` (with `core_code`
    /// and `status`), `CorePreflightUnavailable`, `RelayTempStagingQuota`.
    pub async fn drop_in(&self, upload: DropInUpload, client: IpAddr) -> Result<DropIn, Refusal> {
        let core = self.0.parts.core.as_ref().ok_or(Code::RelayCoreNotConfigured)?;
        let slot = self.0.drop_ins.slot(&upload.session, upload.offer.index, client)?;
        let permit = budget(core, Call::Preflight, Code::CorePreflightUnavailable).await?;
        let outcome = core.preflight(permit, fields(&upload)).await;
        let known = self.0.drop_ins.answer(&upload.offer);
        let way = match (outcome, known) {
            (Outcome::Accepted, _) => Way::Spool(self.spool(&upload).await?),
            (Outcome::Duplicate(_), Some(answer)) => Way::Known(answer, 0),
            (outcome, _) => {
                return Err(said(&outcome, Code::CorePreflightRejected, Code::CorePreflightUnavailable));
            }
        };
        Ok(DropIn { admission: self.clone(), upload, way, over: false, _slot: slot })
    }

    /// Opens a drop-in subscription (contract B.4): the core is asked, always.
    ///
    /// # Errors
    /// `RelayCoreNotConfigured`, `CoreFanoutRejected`, `CoreFanoutUnavailable`, `RelayFanoutLimit`.
    pub async fn drop_in_watch(&self, watch: DropInWatch, _client: IpAddr) -> Result<WholeSubscription, Refusal> {
        let core = self.0.parts.core.as_ref().ok_or(Code::RelayCoreNotConfigured)?;
        let permit = budget(core, Call::Authorize, Code::CoreFanoutUnavailable).await?;
        let fields = FanoutFields {
            session: &watch.session,
            capability: &watch.capability,
            incident: &watch.incident,
            stream: &watch.stream,
        };
        match core.fanout_authorize(permit, fields).await {
            Outcome::Accepted => {}
            outcome => return Err(said(&outcome, Code::CoreFanoutRejected, Code::CoreFanoutUnavailable)),
        }
        // The core vouched for the token; what it says is read for its expiry and its group.
        let capability = self.0.parts.verifier.read(&watch.capability).await.map_err(|_| Code::CoreFanoutRejected)?;
        let stream = StreamId::new(&watch.stream).map_err(|_| Code::InvalidRelayFanoutRequest)?;
        self.0.parts.hub.subscribe_whole(&capability.grant, &stream).map_err(|code| match code {
            Code::TooManyContacts => Code::RelayFanoutLimit.into(),
            _ => Refusal::from(Code::CoreFanoutRejected),
        })
    }

    /// Room on the disk, under a made-up identity: a native upload of the same chunk is not
    /// disturbed, and nothing of this is ever forwarded by itself.
    async fn spool(&self, upload: &DropInUpload) -> Result<Incoming, Refusal> {
        let mut random = [0; 16];
        self.0.parts.clock.fill_random(&mut random);
        let name = format!("{SPOOL_PREFIX}{:032x}", u128::from_be_bytes(random));
        let stream = StreamId::new(&name).map_err(|_| Code::RelayInternalError)?;
        let session = SessionId::new(&upload.session).map_err(|_| Code::InvalidRelayRequest)?;
        let mut offer = upload.offer.clone();
        offer.stream = stream.clone();
        let grant = grant(&offer, session, stream);
        let capability = Capability { token: "".into(), grant: Arc::new(grant), trust: Trust::Verified };
        let variant = Variant::of_unlabelled(offer.media);
        match self.0.parts.staging.offer(offer, variant, &capability).await {
            Ok(Offered::Receive(incoming)) => Ok(incoming),
            Ok(Offered::Have(_)) => Err(Code::RelayInternalError.into()),
            Err(code) => Err(drop_in_code(code).into()),
        }
    }
}

fn grant(offer: &Offer, session: SessionId, stream: StreamId) -> Grant {
    Grant {
        format: Format::Proofline,
        use_: Use::Upload,
        session,
        incident: offer.incident.clone(),
        group: None,
        lanes: vec![LaneGrant {
            stream,
            variant: None,
            media: vec![offer.media],
            max_chunk_bytes: offer.length,
            max_chunks: offer.index,
        }],
        exp: i64::MAX,
        commit_exp: i64::MAX,
        jti: None,
        client_key: None,
    }
}

impl DropIn {
    /// Takes the next bytes of the file.
    ///
    /// # Errors
    /// `UploadTooLarge`, `RelayStagingFailed`, `RelayTempStagingQuota`.
    pub async fn push(&mut self, bytes: Bytes) -> Result<(), Refusal> {
        let length = self.upload.offer.length;
        match &mut self.way {
            Way::Known(_, came) => *came += bytes.len() as u64,
            Way::Spool(incoming) if self.over || bytes.len() as u64 > length - incoming.held() => self.over = true,
            Way::Spool(incoming) => incoming.push(bytes).await.map_err(drop_in_code)?,
        }
        Ok(())
    }

    /// The file and the body ended: size, hash, fan-out, commit; then what was staged is removed.
    /// Contacts hear the outcome when the returned value is dropped, after the answer is written.
    ///
    /// # Errors
    /// `ByteSizeMismatch`, `HashMismatch`, `CoreCommitRejected`, `CoreCommitUnavailable`,
    /// `CoreCommitInvalidResponse`, `RelayStagingFailed`.
    pub async fn commit(self) -> Result<Committed, Refusal> {
        let Self { admission, upload, way, over, _slot } = self;
        let incoming = match way {
            Way::Known(_, came) if came != upload.offer.length => return Err(Code::ByteSizeMismatch.into()),
            Way::Known(relay_upload, _) => return Ok(Committed { status: 200, relay_upload, _told: None }),
            Way::Spool(incoming) => incoming,
        };
        if over || incoming.held() != upload.offer.length {
            return Err(Code::ByteSizeMismatch.into());
        }
        let spooled = incoming.spooled().await.map_err(drop_in_code)?;
        let shown = admission.show_whole(&upload, &spooled).await?;
        admission.commit_drop_in(&upload, &spooled, shown).await
    }
}

impl Admission {
    /// Fans the whole chunk out, if it is one that contacts may see.
    async fn show_whole(&self, upload: &DropInUpload, spooled: &Spooled) -> Result<Option<ChunkRef>, Refusal> {
        let offer = &upload.offer;
        let variant = Variant::of_unlabelled(offer.media).narrowed(offer.role);
        if !variant.watchable() || !self.0.allow_unlabelled {
            return Ok(None);
        }
        let session = SessionId::new(&upload.session).map_err(|_| Code::InvalidRelayRequest)?;
        let group = self.drop_in_group(upload).await;
        let publication = self.0.parts.hub.publish(
            &group,
            ChunkMeta {
                chunk: offer.chunk_ref(),
                session,
                stream: offer.stream.clone(),
                variant,
                media: offer.media,
                index: offer.index,
                length: offer.length,
                sha256: offer.sha256,
                started: offer.started.clone(),
                ended: offer.ended.clone(),
            },
        );
        let mut at = 0;
        while at < offer.length && offer.length <= self.0.max_shown {
            let bytes = spooled.read(at, 256 * 1024).await.map_err(|_| Code::RelayStagingFailed)?;
            publication.push(at, &bytes);
            at += bytes.len() as u64;
        }
        publication.complete();
        Ok(Some(offer.chunk_ref()))
    }

    /// A JWT names its group; a Proofline token's stream is its own.
    async fn drop_in_group(&self, upload: &DropInUpload) -> GroupKey {
        match self.0.parts.verifier.read(&upload.capability).await {
            Ok(capability) if capability.trust == Trust::Verified => {
                GroupKey::of(&capability.grant, &upload.offer.stream)
            }
            _ => GroupKey::Stream(upload.offer.incident.clone(), upload.offer.stream.clone()),
        }
    }

    async fn commit_drop_in(
        &self,
        upload: &DropInUpload,
        spooled: &Spooled,
        shown: Option<ChunkRef>,
    ) -> Result<Committed, Refusal> {
        let core = self.0.parts.core.as_ref().ok_or(Code::RelayCoreNotConfigured)?;
        let outcome = match budget(core, Call::Commit, Code::CoreCommitUnavailable).await {
            Ok(permit) => core.commit(permit, fields(upload), spooled.body()).await,
            Err(_) => Outcome::Ambiguous(Doubt::NotSent),
        };
        if let Outcome::Confirmed(Confirmed { status, receipt, relay_commit }) = outcome {
            self.0.drop_ins.remember(&upload.offer, &relay_commit);
            let receipt = receipt.map(Arc::from);
            let told = shown.map(|chunk| Told { hub: self.0.parts.hub.clone(), chunk, receipt });
            return Ok(Committed { status, relay_upload: relay_commit, _told: told });
        }
        let refusal = match &outcome {
            Outcome::Ambiguous(Doubt::Unreadable) => Code::CoreCommitInvalidResponse.into(),
            outcome => said(outcome, Code::CoreCommitRejected, Code::CoreCommitUnavailable),
        };
        if let Some(chunk) = shown {
            let status = refusal.status.unwrap_or_else(|| refusal.code.status());
            let failed = status == 429 || status >= 500;
            let state = if failed { ContactState::TerminalFailure } else { ContactState::Rejected };
            self.0.parts.hub.state(chunk, state, None, Some((refusal.code, refusal.core_code.clone())));
        }
        Err(refusal)
    }
}

fn fields(upload: &DropInUpload) -> ChunkFields<'_> {
    ChunkFields { session: &upload.session, capability: &upload.capability, offer: &upload.offer }
}

async fn budget(core: &CoreApi, call: Call, unavailable: Code) -> Result<crate::core::Permit, Refusal> {
    let later = |time: Duration| {
        let mut refusal = Refusal::from(unavailable);
        refusal.retry_after = Some(time.max(Duration::from_secs(1)));
        refusal
    };
    let paused = core.limited_for(call.limiter()).into_iter().chain(core.away_for()).max();
    if let Some(time) = paused.filter(|time| *time > BUDGET_WAIT) {
        return Err(later(time));
    }
    tokio::time::timeout(BUDGET_WAIT, core.permit(call)).await.map_err(|_| later(Duration::from_secs(5)))
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
fn drop_in_code(code: Code) -> Code {
    match code {
        Code::StagingFull | Code::SessionQuota => Code::RelayTempStagingQuota,
        Code::InFlightPerSession => Code::RelaySessionInFlight,
        Code::ReceivingFull => Code::RelayClientInFlight,
        Code::BodyIncomplete => Code::ByteSizeMismatch,
        Code::HashMismatch => Code::HashMismatch,
        _ => Code::RelayStagingFailed,
    }
}
