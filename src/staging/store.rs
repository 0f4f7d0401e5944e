//! The async face of staging: the ledger says what may happen, the vault makes it so.
//!
//! The ledger's lock is held for look-ups only, never while a byte is read or written. Whoever
//! must know of a change hears it from [`Observer`], at once and in the caller's task.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, Hash, RandomState};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tokio::sync::{Notify, watch};
use tokio_util::task::TaskTracker;

use super::expiry::Calendar;
use super::fresh::Fresh;
use super::incoming::Incoming;
use super::remover::Remover;
use super::seldom::Seldom;
use super::slot::Slot;
use super::spool;
use super::tokens::Tokens;
use super::{Committer, Disk, Found, Meta, Recovered, SealKey, Vault};
use crate::clock::Clock;
use crate::config;
use crate::proto::capability::{Capability, Trust};
use crate::proto::claims::Grant;
use crate::proto::ledger::{Decision, Ledger, Limits, Owner, Reason, Record, StreamKey, Terms};
use crate::proto::{ChunkRef, ChunkState, Code, IncidentId, Offer, SessionId, StreamId, Variant};
use crate::telemetry::Metrics;
use crate::telemetry::names::DiskStep;
use crate::telemetry::names::Recovered as What;
use crate::telemetry::staging::{OfCode, OfRecovered, OfStep};

/// Metadata kept in memory, so that a chunk which goes out soon is not opened twice. About 2 KiB
/// each; the rest is read from the disk.
const MAX_METAS: usize = 4096;

/// Where a chunk stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// Its name on the wire.
    pub chunk: ChunkRef,
    /// Its state.
    pub state: ChunkState,
    /// Bytes held from its start.
    pub offset: u64,
    /// Bytes in all.
    pub length: u64,
    /// The core's receipt.
    pub receipt: Option<Arc<str>>,
    /// Why it is not confirmed, in the table's words: the core is away, it waits for a
    /// capability, the core refused it. `None` while nothing is wrong.
    pub trouble: Option<(Code, Option<Box<str>>)>,
}

/// What became of an offer.
pub enum Offered {
    /// Bring the bytes.
    Receive(Incoming),
    /// It is here.
    Have(Standing),
}

/// What is told of a chunk.
pub enum Change<'a> {
    /// A whole chunk stands like this now.
    Now(&'a Standing),
    /// What came of this one is dropped before it was whole and durable. Told while no attempt at it
    /// can begin.
    Dropped(ChunkRef),
}

/// Hears of every change of a whole chunk's state, and of what is dropped.
pub type Observer = Box<dyn Fn(Change<'_>) + Send + Sync>;

/// Staging. Cheap to clone.
#[derive(Clone)]
pub struct Staging(pub(super) Arc<Inner>);

pub(super) struct Inner {
    pub(super) vault: Vault,
    pub(super) committer: Committer,
    remover: Remover,
    pub(super) clock: Clock,
    pub(super) calendar: Calendar,
    pub(super) metrics: Metrics,
    pub(super) fresh: Fresh,
    pub(super) disk_failures: Seldom,
    pub(super) rejections: Seldom,
    ledger: Mutex<Ledger>,
    slots: Mutex<HashMap<ChunkRef, Arc<Slot>>>,
    follows: Mutex<HashMap<ChunkRef, watch::Sender<Standing>>>,
    metas: Mutex<HashMap<ChunkRef, Arc<Meta>>>,
    tokens: Mutex<Tokens>,
    /// Puts of stream capabilities, one at a time: the newest must win on the disk too.
    pub(super) puts: tokio::sync::Mutex<()>,
    gate: Mutex<Reason>,
    hasher: RandomState,
    observer: OnceLock<Observer>,
    pub(super) work: Notify,
    /// Attempts that ended and still have bytes to write.
    pub(super) closing: TaskTracker,
}

/// Why staging can't begin.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The directory or the disk.
    #[error("the staging directory can't be used: {}", .0.kind())]
    Disk(#[from] io::Error),
    /// Nothing in the directory opens with this key, and something is there.
    #[error("the seal key opens none of the chunks in the staging directory: is it the right one?")]
    WrongKey,
}

impl Staging {
    /// Opens the vault and takes over what it recovers. Returns the recovered chunks that were
    /// whole, so that the layer above can show them again.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(
        disk: Arc<dyn Disk>,
        key: &SealKey,
        config: &config::Staging,
        limits: &config::Limits,
        clock: Clock,
        metrics: Metrics,
    ) -> Result<(Self, Vec<Meta>), OpenError> {
        let (vault, recovered) = Vault::open(disk, key, clock.clone())?;
        if recovered.sealed_with_another_key() {
            return Err(OpenError::WrongKey);
        }
        let keep_ms = i64::try_from(config.keep_for.as_millis()).unwrap_or(i64::MAX);
        let limits = Limits { receiving: limits.receiving_total, per_session: limits.in_flight_per_session, keep_ms };
        let disk_errors = metrics.staging.disk_errors.clone();
        let failed = move || _ = disk_errors.get_or_create(&OfStep { step: DiskStep::Remove }).inc();
        let staging = Self(Arc::new(Inner {
            committer: Committer::start(&vault)?,
            remover: Remover::start(&vault, clock.clone(), failed)?,
            disk_failures: Seldom::default(),
            rejections: Seldom::default(),
            vault,
            ledger: Mutex::new(Ledger::new(config.quota, limits)),
            slots: Mutex::default(),
            follows: Mutex::default(),
            metas: Mutex::default(),
            tokens: Mutex::default(),
            puts: tokio::sync::Mutex::new(()),
            gate: Mutex::new(Reason::Queued),
            hasher: RandomState::new(),
            observer: OnceLock::new(),
            work: Notify::new(),
            closing: TaskTracker::new(),
            fresh: Fresh::new(metrics.staging.fresh.clone()),
            calendar: Calendar::new(&clock),
            clock,
            metrics,
        }));
        staging.0.metrics.staging.quota.set(i64::try_from(config.quota).unwrap_or(i64::MAX));
        let metas = staging.recover(recovered);
        Ok((staging, metas))
    }

    /// Sets who hears of changes. Once; later calls change nothing.
    pub fn observe(&self, observer: Observer) {
        let _ = self.0.observer.set(observer);
    }

    /// Decides on an offer whose capability is good, and reserves its room.
    ///
    /// # Errors
    /// The ledger's codes, and `StagingFailed`.
    pub async fn offer(&self, offer: Offer, variant: Variant, capability: &Capability) -> Result<Offered, Code> {
        let key = offer.chunk_ref();
        let terms = self.terms(&offer, variant, &capability.grant);
        let now = self.0.calendar.now_ms();
        let decision = self.ledger().handle_offer(key, terms, now);
        match decision {
            Err(code) => {
                self.0.metrics.staging.refused.get_or_create(&OfCode::new(code)).inc();
                Err(code)
            }
            Ok(Decision::Have) => {
                self.offered_again(&offer, capability).await;
                self.standing(key).map(Offered::Have).ok_or(Code::InternalError)
            }
            Ok(Decision::Receive { epoch, held, replaces }) => {
                let slot = self.slot(key);
                let meta = Arc::new(Meta {
                    offer,
                    variant,
                    capability: capability.token.to_string(),
                    grant: (*capability.grant).clone(),
                    trust_verified: capability.trust == Trust::Verified,
                    accepted_unix_ms: self.0.clock.unix_ms(),
                });
                slot.say(Arc::clone(&meta));
                let begin = Incoming::begin(self.clone(), slot, key, epoch, held, replaces, meta);
                // In a task of its own: a request that is given up must not leave half of it.
                match self.0.closing.spawn(begin).await.unwrap_or(Err(Code::InternalError)) {
                    Ok(incoming) => Ok(Offered::Receive(incoming)),
                    // The attempt before it brought the last byte just now.
                    Err(Code::AttemptSuperseded) => match self.standing(key) {
                        Some(standing) if standing.state != ChunkState::Receiving => Ok(Offered::Have(standing)),
                        _ => Err(Code::AttemptSuperseded),
                    },
                    Err(code) => Err(code),
                }
            }
        }
    }

    /// Where a chunk stands.
    #[must_use]
    pub fn standing(&self, chunk: ChunkRef) -> Option<Standing> {
        let gate = self.gate();
        self.ledger().record(chunk).map(|record| standing(chunk, record, gate))
    }

    /// Whether the chunk is one of this stream.
    #[must_use]
    pub fn belongs(&self, chunk: ChunkRef, incident: &IncidentId, stream: &StreamId) -> bool {
        let wanted = self.stream_key(incident, stream);
        self.ledger().record(chunk).is_some_and(|record| record.terms.stream == wanted)
    }

    /// Follows a chunk that is known here.
    #[must_use]
    pub fn follow(&self, chunk: ChunkRef) -> Option<watch::Receiver<Standing>> {
        // The ledger is asked under the followers' lock, so that no change falls in between.
        let mut follows = self.follows();
        let now = self.standing(chunk)?;
        if now.state.ended() {
            // Nothing changes any more, so nobody would ever let go of a sender kept here.
            return Some(watch::Sender::new(now).subscribe());
        }
        Some(follows.entry(chunk).or_insert_with(|| watch::Sender::new(now)).subscribe())
    }

    /// Drops a chunk that is being received.
    ///
    /// # Errors
    /// `ChunkStaged` from `staged` on, `NotFound`.
    pub async fn delete(&self, chunk: ChunkRef) -> Result<(), Code> {
        {
            let mut ledger = self.ledger();
            ledger.handle_delete(chunk)?;
            self.tell_dropped(&ledger, chunk);
        }
        let this = self.clone();
        // In a task of its own: its room is free, so the file must go also if the client left.
        let _ = self.0.closing.spawn(async move { this.forget_partial(chunk).await }).await;
        Ok(())
    }

    /// All bytes of a staged chunk, for those who watch after a restart.
    ///
    /// # Errors
    /// From the disk.
    pub async fn read_whole(&self, chunk: ChunkRef) -> io::Result<bytes::Bytes> {
        let vault = self.0.vault.clone();
        blocking(move || {
            let reader = vault.read(chunk)?;
            let mut out = vec![0; usize::try_from(reader.len()).map_err(|_| io::ErrorKind::InvalidData)?];
            let mut filled = 0;
            while filled < out.len() {
                match reader.read_at(filled as u64, &mut out[filled..])? {
                    0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                    read => filled += read,
                }
            }
            Ok(out.into())
        })
        .await
    }

    /// Whether the disk takes bytes: it says so itself, and has room for one more chunk.
    #[must_use]
    pub fn usable(&self) -> bool {
        self.0.vault.free_bytes().is_ok_and(|free| free > 1 << 20)
    }

    /// What chunks that could be sent wait for. Those who follow one are told why it waits.
    pub fn set_gate(&self, reason: Reason) {
        *self.0.gate.lock().unwrap_or_else(PoisonError::into_inner) = reason;
        for (chunk, follow) in self.follows().iter() {
            if let Some(now) = self.standing(*chunk) {
                follow.send_if_modified(|told| *told != now && std::mem::replace(told, now.clone()) != now);
            }
        }
    }

    /// What chunks that could be sent wait for.
    #[must_use]
    pub fn gate(&self) -> Reason {
        *self.0.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until everything that attempts brought before they ended is on the disk. For the end
    /// of the process, when no attempt can begin any more.
    pub async fn flushed(&self) {
        self.0.closing.close();
        self.0.closing.wait().await;
    }
}

// What the parts of staging share.
impl Staging {
    pub(super) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.0.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn slots(&self) -> MutexGuard<'_, HashMap<ChunkRef, Arc<Slot>>> {
        self.0.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn follows(&self) -> MutexGuard<'_, HashMap<ChunkRef, watch::Sender<Standing>>> {
        self.0.follows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn tokens(&self) -> MutexGuard<'_, Tokens> {
        self.0.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn metas(&self) -> MutexGuard<'_, HashMap<ChunkRef, Arc<Meta>>> {
        self.0.metas.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn slot(&self, chunk: ChunkRef) -> Arc<Slot> {
        Arc::clone(self.slots().entry(chunk).or_default())
    }

    /// The slot is no longer needed: the chunk is staged, dropped, or nobody brings it now.
    pub(super) fn drop_slot(&self, chunk: ChunkRef, slot: &Arc<Slot>) {
        self.drop_slot_if(chunk, slot, || true);
    }

    /// The same if `unused` says so while no attempt can take the slot.
    pub(super) fn drop_slot_if(&self, chunk: ChunkRef, slot: &Arc<Slot>, unused: impl FnOnce() -> bool) -> bool {
        let mut slots = self.slots();
        let unused = unused();
        if unused && slots.get(&chunk).is_some_and(|known| Arc::ptr_eq(known, slot)) {
            slots.remove(&chunk);
        }
        unused
    }

    pub(super) async fn forget_partial(&self, chunk: ChunkRef) {
        let slot = self.slots().remove(&chunk);
        if let Some(slot) = slot {
            slot.clear().await;
        }
        let vault = self.0.vault.clone();
        let removed = blocking(move || vault.remove_partial(chunk)).await;
        self.count(DiskStep::Remove, &removed);
    }

    /// Removes an ended chunk soon. Its reference is not used again, so nobody waits for it.
    pub(super) async fn remove_ended(&self, chunk: ChunkRef) {
        self.metas().remove(&chunk);
        self.0.fresh.take(chunk);
        if !self.0.remover.remove(chunk) {
            self.remove_staged(chunk).await;
        }
    }

    /// Removes a chunk whose reference may come again at once.
    pub(super) async fn remove_staged(&self, chunk: ChunkRef) {
        self.metas().remove(&chunk);
        self.0.fresh.take(chunk);
        let vault = self.0.vault.clone();
        let removed = blocking(move || vault.remove(chunk)).await;
        self.count(DiskStep::Remove, &removed);
    }

    /// Its bytes are no longer those of its digest: they are kept for whoever wants to look.
    pub(super) async fn set_aside(&self, chunk: ChunkRef) {
        self.metas().remove(&chunk);
        let vault = self.0.vault.clone();
        let moved = blocking(move || vault.set_aside(chunk)).await;
        self.count(DiskStep::Remove, &moved);
    }

    pub(super) async fn remove_damaged(&self, chunks: Vec<ChunkRef>) {
        for chunk in chunks {
            let vault = self.0.vault.clone();
            let removed = blocking(move || vault.remove_damaged(chunk)).await;
            self.count(DiskStep::Remove, &removed);
        }
    }

    pub(super) fn remember_meta(&self, chunk: ChunkRef, meta: Arc<Meta>) {
        let mut metas = self.metas();
        if metas.len() < MAX_METAS {
            metas.insert(chunk, meta);
        }
    }

    pub(super) fn known_meta(&self, chunk: ChunkRef) -> Option<Arc<Meta>> {
        self.metas().get(&chunk).cloned()
    }

    pub(super) fn count<T, E>(&self, step: DiskStep, result: &Result<T, E>) {
        if result.is_err() {
            self.0.metrics.staging.disk_errors.get_or_create(&OfStep { step }).inc();
            if let Some(times) = self.0.disk_failures.happened(self.0.clock.now_ms()) {
                tracing::error!(component = "staging", step = step.as_str(), times, "the staging disk failed");
            }
        }
    }

    /// Tells followers and the observer how a chunk stands now.
    pub(super) fn changed(&self, chunk: ChunkRef) {
        let Some(now) = self.standing(chunk) else { return };
        {
            let mut follows = self.follows();
            if let Some(follow) = follows.get(&chunk) {
                follow.send_replace(now.clone());
                if now.state.ended() || follow.receiver_count() == 0 {
                    follows.remove(&chunk);
                }
            }
        }
        if let Some(observer) = self.0.observer.get()
            && now.state != ChunkState::Receiving
        {
            observer(Change::Now(&now));
        }
    }

    /// Tells that what came of a chunk is dropped. The ledger's lock is held meanwhile: an attempt
    /// that begins next is not meant.
    pub(super) fn tell_dropped(&self, _ledger: &MutexGuard<'_, Ledger>, chunk: ChunkRef) {
        if let Some(observer) = self.0.observer.get() {
            observer(Change::Dropped(chunk));
        }
    }

    /// The same, of what many chunks have in common and few are asked about.
    pub(super) fn changed_if_followed(&self, chunk: ChunkRef) {
        let followed = self.follows().contains_key(&chunk);
        if followed {
            self.changed(chunk);
        }
    }

    fn hash(&self, kind: u8, value: impl Hash) -> u64 {
        self.0.hasher.hash_one((kind, value))
    }

    pub(super) fn token_hash(&self, token: &str) -> u64 {
        self.hash(4, token)
    }

    pub(super) fn owner(&self, session: &SessionId) -> Owner {
        Owner(self.hash(0, session))
    }

    pub(super) fn stream_key(&self, incident: &IncidentId, stream: &StreamId) -> StreamKey {
        StreamKey(self.hash(1, (incident, stream)))
    }

    pub(super) fn terms(&self, offer: &Offer, variant: Variant, grant: &Grant) -> Terms {
        let lane = match &grant.group {
            Some(group) => self.hash(2, (&grant.incident, group, variant)),
            None => self.hash(3, (&offer.incident, &offer.stream)),
        };
        Terms {
            owner: self.owner(&grant.session),
            stream: self.stream_key(&offer.incident, &offer.stream),
            lane,
            class: variant.class(),
            index: offer.index,
            length: offer.length,
            digest: offer.sha256,
            attempt: offer.attempt,
            expires: grant.commit_exp,
        }
    }

    fn recover(&self, recovered: Recovered) -> Vec<Meta> {
        let found = |what, n: u64| _ = self.0.metrics.staging.recovered.get_or_create(&OfRecovered { what }).inc_by(n);
        found(What::Staged, recovered.staged.len() as u64);
        found(What::Unreadable, recovered.unreadable + recovered.damaged_unreadable);
        found(What::Removed, recovered.removed);
        let (spooled, partial): (Vec<_>, Vec<_>) =
            recovered.partial.into_iter().partition(|(meta, _)| spool::is_one(&meta.offer));
        for (meta, _) in &spooled {
            let removed = self.0.vault.remove_partial(meta.offer.chunk_ref());
            self.count(DiskStep::Remove, &removed);
        }
        found(What::Removed, spooled.len() as u64);
        found(What::Partial, partial.len() as u64);
        let (mut ledger, now) = (self.ledger(), self.0.calendar.now_ms());
        let terms_of = |meta: &Meta| (meta.offer.chunk_ref(), self.terms(&meta.offer, meta.variant, &meta.grant));
        for (meta, Found { len, .. }) in &partial {
            let (key, terms) = terms_of(meta);
            ledger.recover_partial(key, terms, meta.accepted_unix_ms, now, *len);
        }
        let mut staged: Vec<Meta> = recovered.staged.into_iter().map(|(meta, _)| meta).collect();
        staged.sort_by_key(|meta| (meta.accepted_unix_ms, meta.offer.index));
        for meta in &staged {
            let (key, terms) = terms_of(meta);
            ledger.recover_staged(key, terms, meta.accepted_unix_ms, now);
        }
        for meta in &recovered.damaged {
            let (key, terms) = terms_of(meta);
            ledger.recover_damaged(key, &terms, meta.accepted_unix_ms);
        }
        drop(ledger);
        self.recover_capabilities(recovered.streams, &staged);
        staged
    }
}

pub(super) fn standing(chunk: ChunkRef, record: &Record, gate: Reason) -> Standing {
    let trouble = record.refusal.clone().or_else(|| {
        let code = match (record.state, gate) {
            (ChunkState::AwaitingCapability, _) => Code::AwaitingCapability,
            (ChunkState::Staged, _) if record.blocked => Code::AccountQuota,
            (ChunkState::Staged | ChunkState::Forwarding, Reason::CoreUnreachable) => Code::CoreUnavailable,
            (ChunkState::Staged | ChunkState::Forwarding, Reason::CoreLimited) => Code::CoreLimited,
            (ChunkState::Staged | ChunkState::Forwarding, Reason::ServiceToken) => Code::CoreRefusesRelay,
            _ => return None,
        };
        Some((code, None))
    });
    Standing {
        chunk,
        state: record.state,
        offset: record.held,
        length: record.terms.length,
        receipt: record.receipt.clone(),
        trouble,
    }
}

/// Runs a disk operation where it may block.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(_) => Err(io::Error::other("the operation did not finish")),
    }
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
