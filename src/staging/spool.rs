//! Bytes that go through the disk and are never staged: the drop-in routes keep nothing (contract
//! C20).
//!
//! A spool lies below `receiving/` like any partial, but under a made-up identity: a native
//! upload of the same chunk is not disturbed, and nothing on the disk says, even sealed, what it
//! is. It goes with its last handle, however the request ends; what a crash leaves is removed at
//! the next start.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use super::incoming::{Attempt, WRITE_BUFFER};
use super::slot::Slot;
use super::store::{Staging, blocking};
use super::{JobBody, Meta, Part};
use crate::proto::claims::{Format, Grant, Use};
use crate::proto::ledger::{Decision, Ending, Terms};
use crate::proto::offer::Timestamp;
use crate::proto::{Code, Digest, IncidentId, Media, Offer, SessionId, StreamId, Variant};
use crate::telemetry::names::DiskStep;
use crate::telemetry::staging::OfCode;

/// Prefix of the made-up identities.
const SPOOL_PREFIX: &str = "drop-in-spool-";

/// Whether a partial found at start is a spool: no client can offer a chunk whose incident and
/// stream are both made up here.
pub(super) fn is_one(offer: &Offer) -> bool {
    offer.stream.as_str().starts_with(SPOOL_PREFIX) && offer.stream.as_str() == offer.incident.as_str()
}

/// What is known of the bytes before they come.
pub struct Expected {
    /// Whose share of the room it takes.
    pub session: SessionId,
    /// Its class of room.
    pub variant: Variant,
    /// Bytes.
    pub length: u64,
    /// SHA-256.
    pub sha256: Digest,
}

/// Bytes on their way through the disk. Dropping it removes them.
pub struct Spooling {
    held: Held,
    came: u64,
    length: u64,
}

/// Whole, hashed bytes; removed with the last clone and the last body made of it.
#[derive(Clone)]
pub struct Spooled {
    part: Arc<Part>,
    held: Arc<Held>,
}

/// The room and the file.
struct Held {
    attempt: Attempt,
    ending: Mutex<Ending>,
    /// The room is given back already.
    let_go: AtomicBool,
}

impl Staging {
    /// Reserves room for bytes that are not to be staged.
    ///
    /// # Errors
    /// `ReceivingFull`, `InFlightPerSession`, `StagingFull`, `SessionQuota`.
    pub fn spool(&self, expected: &Expected) -> Result<Spooling, Code> {
        let meta = self.made_up(expected).ok_or(Code::InternalError)?;
        let key = meta.offer.chunk_ref();
        let terms = Terms {
            owner: self.owner(&expected.session),
            stream: self.stream_key(&meta.offer.incident, &meta.offer.stream),
            lane: 0,
            class: expected.variant.class(),
            index: meta.offer.index,
            length: expected.length,
            digest: expected.sha256,
            attempt: 1,
            expires: i64::MAX,
        };
        let decision = self.ledger().handle_offer(key, terms, self.0.calendar.now_ms());
        let epoch = match decision {
            Ok(Decision::Receive { epoch, .. }) => epoch,
            Ok(Decision::Have) => return Err(Code::InternalError),
            Err(code) => {
                self.0.metrics.staging.refused.get_or_create(&OfCode::new(code)).inc();
                return Err(code);
            }
        };
        let slot = Arc::<Slot>::default();
        let attempt =
            Attempt { staging: self.clone(), slot, key, epoch, meta: Arc::new(meta), hashed: None, forwarded: false };
        let held = Held { attempt, ending: Mutex::new(Ending::Abandoned), let_go: AtomicBool::new(false) };
        Ok(Spooling { held, came: 0, length: expected.length })
    }

    /// What the header of the file says: nothing of whose it is.
    fn made_up(&self, expected: &Expected) -> Option<Meta> {
        let mut random = [0; 16];
        self.0.clock.fill_random(&mut random);
        let name = format!("{SPOOL_PREFIX}{:032x}", u128::from_be_bytes(random));
        let (incident, stream) = (IncidentId::new(&name).ok()?, StreamId::new(&name).ok()?);
        let never = || Timestamp::from_unix_ms(0);
        let offer = Offer {
            incident: incident.clone(),
            stream,
            // Not 1: it is nobody's first chunk.
            index: 2,
            media: Media::Metadata,
            started: never(),
            ended: never(),
            length: expected.length,
            sha256: expected.sha256,
            name: String::new(),
            role: None,
            group: None,
            segment: None,
            sequence: None,
            source: None,
            clock: None,
            profile: None,
            priority: None,
            attempt: 1,
            sig: None,
        };
        let grant = Grant {
            format: Format::Proofline,
            use_: Use::Upload,
            session: SessionId::new(&name).ok()?,
            incident,
            group: None,
            lanes: Vec::new(),
            exp: i64::MAX,
            commit_exp: i64::MAX,
            jti: None,
            client_key: None,
        };
        let (variant, accepted_unix_ms) = (expected.variant, self.0.clock.unix_ms());
        Some(Meta { offer, variant, capability: String::new(), grant, trust_verified: false, accepted_unix_ms })
    }
}

impl Spooling {
    /// Bytes that came.
    #[must_use]
    pub const fn came(&self) -> u64 {
        self.came
    }

    /// Takes the next bytes. Waits while the disk is behind.
    ///
    /// # Errors
    /// `BodyTooLong`, `StagingFailed`.
    pub async fn push(&mut self, bytes: Bytes) -> Result<(), Code> {
        if bytes.len() as u64 > self.length - self.came {
            return Err(Code::BodyTooLong);
        }
        let came = self.came + bytes.len() as u64;
        self.held.attempt.push(bytes, came == self.length).await?;
        self.came = came;
        Ok(())
    }

    /// The bytes ended.
    ///
    /// # Errors
    /// `BodyIncomplete`, `HashMismatch`, `StagingFailed`; what came is removed then.
    pub async fn whole(self) -> Result<Spooled, Code> {
        if self.came < self.length {
            return Err(Code::BodyIncomplete);
        }
        let part = self.held.attempt.whole_part().await?;
        if !part.is_whole() {
            self.held.ends(Ending::Mismatched);
            return Err(Code::HashMismatch);
        }
        Ok(Spooled { part: Arc::new(part), held: Arc::new(self.held) })
    }
}

impl Spooled {
    /// Bytes from `offset` on, at most `most`.
    ///
    /// # Errors
    /// From the disk.
    pub async fn read(&self, offset: u64, most: usize) -> io::Result<Bytes> {
        let this = self.clone();
        blocking(move || {
            let left = usize::try_from(this.part.len().saturating_sub(offset)).unwrap_or(usize::MAX);
            let mut out = vec![0; left.min(most)];
            this.part.read_at(offset, &mut out)?;
            Ok(out.into())
        })
        .await
    }

    /// All of it as a request body.
    #[must_use]
    pub fn body(&self) -> JobBody {
        let this = self.clone();
        let stream = futures_util::stream::unfold((this, 0u64), |(this, at)| async move {
            if at >= this.part.len() {
                return None;
            }
            let read = this.read(at, WRITE_BUFFER).await;
            let next = read.as_ref().map_or(u64::MAX, |bytes| at + bytes.len() as u64);
            Some((read.map(http_body::Frame::data), (this, next)))
        });
        http_body_util::combinators::BoxBody::new(http_body_util::StreamBody::new(stream))
    }

    /// It is over: the room is given back now, although a connection may hold the body a moment
    /// longer.
    pub fn over(self, ending: Ending) {
        self.held.ends(ending);
        self.held.give_back();
    }
}

impl Held {
    fn ends(&self, ending: Ending) {
        *self.ending.lock().unwrap_or_else(PoisonError::into_inner) = ending;
    }

    fn give_back(&self) {
        if !self.let_go.swap(true, Ordering::Relaxed) {
            let ending = *self.ending.lock().unwrap_or_else(PoisonError::into_inner);
            let (key, epoch) = (self.attempt.key, self.attempt.epoch);
            self.attempt.staging.ledger().handle_spool_ended(key, epoch, ending);
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.give_back();
        // Outside a runtime the process is ending: the next start removes the file.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let Attempt { staging, slot, key, .. } = &self.attempt;
        let (staging, slot, key) = (staging.clone(), Arc::clone(slot), *key);
        let closing = staging.0.closing.clone();
        let removal = async move {
            // Waits for a write that nobody waits for any more: it may be what makes the file.
            slot.clear().await;
            let vault = staging.0.vault.clone();
            let removed = blocking(move || vault.remove_partial(key)).await;
            staging.count(DiskStep::Remove, &removed);
        };
        closing.spawn_on(removal, &runtime);
    }
}

#[cfg(test)]
#[path = "spool_tests.rs"]
mod tests;
