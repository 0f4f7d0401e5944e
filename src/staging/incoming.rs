//! One attempt to bring a chunk's bytes: gathered, written while hashed, and staged once durable.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::Mutex;

use super::gathered::Gathered;
use super::part::Superseded;
use super::store::{Staging, Standing, blocking};
use super::{CommitError, Meta, Part};
use crate::proto::{ChunkRef, Code};
use crate::telemetry::names::DiskStep;

/// Bytes gathered before they are written: what a killed process may lose of a partial.
pub const WRITE_BUFFER: usize = 256 * 1024;

/// Prefix of the made-up streams that bytes are spooled under when they are not to be kept: what a
/// crash leaves of them is removed at the next start.
pub const SPOOL_PREFIX: &str = "drop-in-spool-";

/// A partial's file and what is not written yet. It outlives the attempts that fill it.
#[derive(Default)]
pub(super) struct Slot(Mutex<State>);

#[derive(Default)]
struct State {
    part: Option<Part>,
    gathered: Gathered,
}

impl Slot {
    pub(super) async fn clear(&self) {
        *self.0.lock().await = State::default();
    }
}

/// Hears whether the hash agrees, before the chunk is made durable: contacts don't wait for a disk.
pub type Hashed = Box<dyn FnOnce(bool) + Send + Sync>;

/// An attempt. Dropping it ends it and keeps what came; if that is the whole chunk, it is staged
/// all the same: its client may be gone for good.
pub struct Incoming {
    inner: Option<Box<Attempt>>,
    held: u64,
    length: u64,
}

struct Attempt {
    staging: Staging,
    slot: Arc<Slot>,
    key: ChunkRef,
    epoch: u64,
    meta: Meta,
    hashed: Option<Hashed>,
}

impl Incoming {
    pub(super) async fn begin(
        staging: Staging,
        slot: Arc<Slot>,
        key: ChunkRef,
        epoch: u64,
        held: u64,
        replaces: bool,
        meta: Meta,
    ) -> Result<Self, Code> {
        let length = meta.offer.length;
        // From here on a drop ends the attempt, whatever is awaited.
        let mut incoming =
            Self { inner: Some(Box::new(Attempt { staging, slot, key, epoch, meta, hashed: None })), held, length };
        let Some(attempt) = &incoming.inner else { return Err(Code::InternalError) };
        incoming.held = 0;
        let held = attempt.prepare(held, replaces).await?;
        attempt.staging.ledger().handle_progress(key, epoch, held);
        incoming.held = held;
        Ok(incoming)
    }

    /// Sets who hears whether the hash agrees.
    pub fn on_hashed(&mut self, hashed: Hashed) {
        if let Some(attempt) = &mut self.inner {
            attempt.hashed = Some(hashed);
        }
    }

    /// Bytes held from the start.
    #[must_use]
    pub const fn held(&self) -> u64 {
        self.held
    }

    /// Bytes in all.
    #[must_use]
    pub const fn length(&self) -> u64 {
        self.length
    }

    /// The bytes that are on the disk already, for those who watch; a new attempt after a restart
    /// has them, and nobody else.
    pub async fn held_bytes(&self) -> Option<Bytes> {
        let attempt = self.inner.as_ref()?;
        attempt.held_bytes(self.held).await
    }

    /// Takes the next bytes. Waits while the disk is behind.
    ///
    /// # Errors
    /// `BodyTooLong`, `AttemptSuperseded`, `StagingFailed`.
    pub async fn push(&mut self, bytes: Bytes) -> Result<(), Code> {
        let attempt = self.inner.as_ref().ok_or(Code::AttemptSuperseded)?;
        if bytes.len() as u64 > self.length - self.held {
            return Err(Code::BodyTooLong);
        }
        let held = self.held + bytes.len() as u64;
        attempt.push(bytes, held == self.length).await?;
        self.held = held;
        let mut ledger = attempt.staging.ledger();
        ledger.handle_progress(attempt.key, attempt.epoch, self.held);
        Ok(())
    }

    /// The body ended. Goes on in a task of its own, so that a client which leaves now changes
    /// nothing.
    ///
    /// # Errors
    /// `BodyIncomplete`, `HashMismatch`, `AttemptSuperseded`, `StagingFailed`.
    pub async fn finish(mut self) -> Result<Standing, Code> {
        if self.held < self.length {
            return Err(Code::BodyIncomplete);
        }
        let Some(attempt) = self.inner.take() else { return Err(Code::InternalError) };
        tokio::spawn(attempt.finish()).await.unwrap_or(Err(Code::InternalError))
    }
}

impl Incoming {
    /// Takes the bytes back instead of staging them (the drop-in route keeps nothing): the
    /// partial is removed when the returned value is dropped.
    ///
    /// # Errors
    /// `BodyIncomplete`, `HashMismatch`, `AttemptSuperseded`, `StagingFailed`.
    pub async fn spooled(mut self) -> Result<Spooled, Code> {
        if self.held < self.length {
            return Err(Code::BodyIncomplete);
        }
        let Some(attempt) = self.inner.take() else { return Err(Code::InternalError) };
        let spool = Spool { staging: attempt.staging.clone(), key: attempt.key };
        let part = attempt.whole_part().await?;
        if !part.is_whole() {
            return Err(Code::HashMismatch);
        }
        Ok(Spooled { part: Arc::new(part), _spool: Arc::new(spool) })
    }
}

/// Whole, hashed bytes that are not staged and go when this does.
#[derive(Clone)]
pub struct Spooled {
    part: Arc<Part>,
    _spool: Arc<Spool>,
}

struct Spool {
    staging: Staging,
    key: ChunkRef,
}

impl Drop for Spool {
    fn drop(&mut self) {
        let (staging, key) = (self.staging.clone(), self.key);
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            // NotFound only if it was let go already.
            runtime.spawn(async move { staging.delete(key).await });
        }
    }
}

impl Spooled {
    /// Bytes from `offset` on, at most `most`.
    ///
    /// # Errors
    /// From the disk.
    pub async fn read(&self, offset: u64, most: usize) -> io::Result<Bytes> {
        let part = Arc::clone(&self.part);
        blocking(move || {
            let left = usize::try_from(part.len().saturating_sub(offset)).unwrap_or(usize::MAX);
            let mut out = vec![0; left.min(most)];
            part.read_at(offset, &mut out)?;
            Ok(out.into())
        })
        .await
    }

    /// All of it as a request body.
    #[must_use]
    pub fn body(&self) -> super::JobBody {
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
}

impl Drop for Incoming {
    fn drop(&mut self) {
        let Some(attempt) = self.inner.take() else { return };
        // Outside a runtime (the process is ending) the disk has what was written.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        if self.held == self.length {
            runtime.spawn(attempt.finish());
        } else {
            attempt.staging.ledger().handle_attempt_ended(attempt.key, attempt.epoch);
            runtime.spawn(attempt.rest());
        }
    }
}

impl Attempt {
    /// Opens the partial if there is one. Returns how many bytes are held.
    async fn prepare(&self, held: u64, replaces: bool) -> Result<u64, Code> {
        let mut state = self.slot.0.lock().await;
        if replaces {
            *state = State::default();
            let (vault, key) = (self.staging.0.vault.clone(), self.key);
            let removed = blocking(move || vault.remove_partial(key)).await;
            self.staging.count(DiskStep::Remove, &removed);
        }
        // Without a file, what is gathered begins at the chunk's first byte.
        if held == 0 || state.part.is_some() || !state.gathered.is_empty() {
            return Ok(state.part.as_ref().map_or(0, Part::len) + state.gathered.len() as u64);
        }
        let (vault, key) = (self.staging.0.vault.clone(), self.key);
        match blocking(move || vault.reopen(key)).await {
            Ok(part) => {
                let there = part.len();
                state.part = Some(part);
                state.gathered = Gathered::default();
                Ok(there)
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidData) => Ok(0),
            Err(_) => Err(self.failed(DiskStep::Write)),
        }
    }

    async fn held_bytes(&self, held: u64) -> Option<Bytes> {
        let mut state = self.slot.0.lock().await;
        let part = state.part.take()?;
        let (part, read) = tokio::task::spawn_blocking(move || {
            let mut out = vec![0; usize::try_from(part.len()).ok()?];
            let read = part.read_at(0, &mut out).map(|()| out);
            Some((part, read))
        })
        .await
        .ok()??;
        state.part = Some(part);
        let mut out = read.ok()?;
        state.gathered.copy_to(&mut out);
        (out.len() as u64 == held).then(|| out.into())
    }

    async fn push(&self, bytes: Bytes, whole: bool) -> Result<(), Code> {
        let mut state = self.slot.0.lock().await;
        if !self.staging.ledger().current(self.key, self.epoch) {
            return Err(Code::AttemptSuperseded);
        }
        state.gathered.push(bytes);
        // The end is written by `finish`, with the hash and the commit right behind it.
        if state.gathered.len() >= WRITE_BUFFER && !whole {
            self.write(&mut state).await?;
        }
        Ok(())
    }

    /// Writes what is gathered, hashing it on the way.
    async fn write(&self, state: &mut State) -> Result<(), Code> {
        let pieces = state.gathered.take();
        let (part, vault, key) = (state.part.take(), self.staging.0.vault.clone(), self.key);
        let meta = if part.is_none() { Some(self.meta.clone()) } else { None };
        let written = blocking(move || {
            let mut part = match (part, meta) {
                (Some(part), _) => part,
                (None, Some(meta)) => vault.create(key, &meta)?,
                (None, None) => return Err(io::ErrorKind::InvalidInput.into()),
            };
            part.append_pieces(&pieces.iter().map(|piece| &piece[..]).collect::<Vec<_>>())?;
            Ok(part)
        })
        .await;
        match written {
            Ok(part) => {
                state.part = Some(part);
                Ok(())
            }
            Err(error) if Superseded::is(&error) => Err(Code::AttemptSuperseded),
            Err(_) => Err(self.failed(DiskStep::Write)),
        }
    }

    /// Writes the rest, checks length and hash, makes it durable.
    async fn finish(mut self) -> Result<Standing, Code> {
        let outcome = self.try_finish().await;
        if let Err(code) = outcome {
            match code {
                Code::AttemptSuperseded => {}
                Code::HashMismatch => {
                    self.staging.ledger().handle_mismatch(self.key, self.epoch);
                    self.staging.forget_partial(self.key).await;
                }
                // After a failed sync nothing can prove the bytes: they are gone, and must come again.
                _ => {
                    self.staging.ledger().handle_mismatch(self.key, self.epoch);
                    self.staging.forget_partial(self.key).await;
                }
            }
            return Err(code);
        }
        self.staging.drop_slot(self.key, &self.slot);
        self.staging.remember_meta(self.key, self.meta.clone());
        self.staging.changed(self.key);
        self.staging.0.work.notify_waiters();
        self.staging.standing(self.key).ok_or(Code::InternalError)
    }

    async fn try_finish(&mut self) -> Result<(), Code> {
        let slot = Arc::clone(&self.slot);
        let mut state = slot.0.lock().await;
        if !self.staging.ledger().current(self.key, self.epoch) {
            return Err(Code::AttemptSuperseded);
        }
        if !state.gathered.is_empty() {
            self.write(&mut state).await?;
        }
        let part = state.part.take().ok_or(Code::InternalError)?;
        let whole = part.is_whole();
        if let Some(hashed) = self.hashed.take() {
            hashed(whole);
        }
        if !whole {
            return Err(Code::HashMismatch);
        }
        match self.staging.0.committer.commit(part).await {
            Ok(_durable) => {}
            Err(CommitError::NotWhole) => return Err(Code::HashMismatch),
            Err(CommitError::Superseded) => return Err(Code::AttemptSuperseded),
            Err(_) => return Err(self.failed(DiskStep::Commit)),
        }
        let staged = self.staging.ledger().handle_staged(self.key, self.epoch);
        if staged { Ok(()) } else { Err(Code::AttemptSuperseded) }
    }

    /// Everything written, as its file.
    async fn whole_part(&self) -> Result<Part, Code> {
        let mut state = self.slot.0.lock().await;
        if !state.gathered.is_empty() {
            self.write(&mut state).await?;
        }
        state.part.take().ok_or(Code::InternalError)
    }

    /// The attempt ended in the middle: what is gathered goes to the disk, and the file is closed
    /// unless another attempt has taken over.
    async fn rest(self) {
        let mut state = self.slot.0.lock().await;
        let taken_over = || self.staging.ledger().record(self.key).is_none_or(|r| r.epoch != self.epoch);
        if taken_over() {
            return;
        }
        if !state.gathered.is_empty() {
            // A failure is counted; the next attempt starts from what the file holds.
            let _ = self.write(&mut state).await;
        }
        if !taken_over() {
            state.part = None;
            self.staging.drop_slot(self.key, &self.slot);
        }
    }

    fn failed(&self, step: DiskStep) -> Code {
        self.staging.count::<(), ()>(step, &Err(()));
        Code::StagingFailed
    }
}
