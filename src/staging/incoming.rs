//! One attempt to bring a chunk's bytes: hashed and gathered, written, and staged once durable.

use std::io;
use std::sync::Arc;

use aws_lc_rs::digest::{Context, SHA256};
use bytes::Bytes;
use tokio::sync::OwnedMutexGuard;

use super::gathered::Gathered;
use super::part::Superseded;
use super::slot::{Slot, State};
use super::store::{Staging, Standing, blocking};
use super::{CommitError, Meta, Part, Whole};
use crate::proto::{ChunkRef, Code};
use crate::telemetry::names::DiskStep;

/// Bytes gathered before they are written: what a killed process may lose of a partial.
pub const WRITE_BUFFER: usize = 256 * 1024;

/// Hears whether the hash agrees, before the chunk is made durable: contacts don't wait for a disk.
pub type Hashed = Box<dyn FnOnce(bool) + Send + Sync>;

/// An attempt. Dropping it ends it and keeps what came; if that is the whole chunk, it is staged
/// all the same: its client may be gone for good.
pub struct Incoming {
    inner: Option<Box<Attempt>>,
    held: u64,
    length: u64,
}

pub(super) struct Attempt {
    pub(super) staging: Staging,
    pub(super) slot: Arc<Slot>,
    pub(super) key: ChunkRef,
    pub(super) epoch: u64,
    pub(super) meta: Arc<Meta>,
    pub(super) hashed: Option<Hashed>,
    /// Forwarding will want the bytes.
    pub(super) forwarded: bool,
}

impl Incoming {
    pub(super) async fn begin(
        staging: Staging,
        slot: Arc<Slot>,
        key: ChunkRef,
        epoch: u64,
        held: u64,
        replaces: bool,
        meta: Arc<Meta>,
    ) -> Result<Self, Code> {
        let length = meta.offer.length;
        // From here on a drop ends the attempt, whatever is awaited.
        let mut incoming = Self {
            inner: Some(Box::new(Attempt { staging, slot, key, epoch, meta, hashed: None, forwarded: true })),
            held,
            length,
        };
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

    /// The attempt ends for now, with what came of the chunk. It is written down before anybody is
    /// told of it, were it only what was offered: the upload can be gone on with by its name, also
    /// after the process was killed. Says how many bytes are held.
    ///
    /// # Errors
    /// `AttemptSuperseded`, `StagingFailed`; `HashMismatch` if it was the last byte that came.
    pub async fn keep(mut self) -> Result<u64, Code> {
        if self.held == self.length {
            return self.finish().await.map(|standing| standing.offset);
        }
        let Some(attempt) = self.inner.take() else { return Err(Code::InternalError) };
        let closing = attempt.staging.0.closing.clone();
        closing.spawn(attempt.keep()).await.unwrap_or(Err(Code::InternalError))
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
        let closing = attempt.staging.0.closing.clone();
        closing.spawn(attempt.finish()).await.unwrap_or(Err(Code::InternalError))
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        let Some(attempt) = self.inner.take() else { return };
        // Outside a runtime (the process is ending) the disk has what was written.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let closing = attempt.staging.0.closing.clone();
        if self.held == self.length {
            closing.spawn_on(attempt.finish(), &runtime);
        } else {
            attempt.staging.ledger().handle_attempt_ended(attempt.key, attempt.epoch);
            closing.spawn_on(attempt.rest(), &runtime);
        }
    }
}

impl Attempt {
    /// Opens the partial if there is one. Returns how many bytes are held.
    async fn prepare(&self, held: u64, replaces: bool) -> Result<u64, Code> {
        let mut state = self.slot.lock().await;
        if replaces {
            *state = State::default();
            let (vault, key) = (self.staging.0.vault.clone(), self.key);
            let removed = blocking(move || vault.remove_partial(key)).await;
            self.staging.count(DiskStep::Remove, &removed);
        }
        // The lock was awaited: the attempt before this one may have staged the chunk meanwhile.
        if !self.staging.ledger().current(self.key, self.epoch) {
            return Err(Code::AttemptSuperseded);
        }
        // Bytes of the former attempt that are only gathered are as good as written.
        let nothing_on_disk = state.written == 0 && (held == 0 || !state.gathered.is_empty());
        if state.part.is_some() || nothing_on_disk {
            return Ok(state.held());
        }
        let (vault, key) = (self.staging.0.vault.clone(), self.key);
        match blocking(move || vault.reopen(key)).await {
            Ok(part) => {
                if part.len() != state.written {
                    state.gathered = Gathered::default();
                }
                (state.hash, state.kept) = (part.hash(), None);
                let gathered = std::mem::take(&mut state.gathered).take();
                gathered.into_iter().for_each(|piece| state.gather(piece));
                state.written = part.len();
                state.part = Some(part);
                Ok(state.held())
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidData) => {
                *state = State::default();
                Ok(0)
            }
            Err(_) => Err(self.failed(DiskStep::Write)),
        }
    }

    async fn held_bytes(&self, held: u64) -> Option<Bytes> {
        let mut state = self.slot.lock().await;
        let mut out = Vec::new();
        if let Some(part) = state.part.take() {
            let (part, read) = tokio::task::spawn_blocking(move || {
                let mut out = vec![0; usize::try_from(part.len()).unwrap_or(0)];
                let read = part.read_at(0, &mut out).map(|()| out);
                (part, read)
            })
            .await
            .ok()?;
            state.part = Some(part);
            out = read.ok()?;
        }
        state.gathered.copy_to(&mut out);
        (out.len() as u64 == held).then(|| out.into())
    }

    pub(super) async fn push(&self, bytes: Bytes, whole: bool) -> Result<(), Code> {
        let mut state = self.slot.lock().await;
        if !self.staging.ledger().current(self.key, self.epoch) {
            return Err(Code::AttemptSuperseded);
        }
        if self.forwarded && state.held() == 0 {
            state.kept = self.staging.0.fresh.begin(self.meta.offer.length);
        }
        state.gather(bytes);
        // The end is written by the committer, with the sync right behind it.
        if state.gathered.len() >= WRITE_BUFFER && !whole {
            self.write(state).await?;
        }
        Ok(())
    }

    /// Writes what is gathered. Goes on when nobody waits for it any more.
    pub(super) async fn write(&self, mut state: OwnedMutexGuard<State>) -> Result<OwnedMutexGuard<State>, Code> {
        let (vault, key) = (self.staging.0.vault.clone(), self.key);
        let meta = if state.part.is_none() { Some(Arc::clone(&self.meta)) } else { None };
        let written = blocking(move || {
            let pieces = state.gathered.take();
            // A write that fails leaves nothing to go on from but the file.
            let (hash, kept) = (std::mem::replace(&mut state.hash, Context::new(&SHA256)), state.kept.take());
            let mut part = match (state.part.take(), meta) {
                (Some(part), _) => part,
                (None, Some(meta)) => vault.create(key, &meta)?,
                (None, None) => return Err(io::ErrorKind::InvalidInput.into()),
            };
            part.append_hashed(&pieces, hash.clone())?;
            state.written = part.len();
            (state.hash, state.kept) = (hash, kept);
            state.part = Some(part);
            Ok(state)
        })
        .await;
        match written {
            Ok(state) => Ok(state),
            Err(error) if Superseded::is(&error) => Err(Code::AttemptSuperseded),
            Err(_) => Err(self.failed(DiskStep::Write)),
        }
    }

    /// Writes the rest, checks length and hash, makes it durable.
    async fn finish(mut self) -> Result<Standing, Code> {
        let outcome = self.try_finish().await;
        if let Err(code) = outcome {
            // After a failed sync nothing can prove the bytes: they are gone, as those are that
            // were not the digest's, and must come again. What a later attempt brings is its own.
            if self.drop_bytes(code) {
                self.staging.forget_partial(self.key).await;
            }
            return Err(code);
        }
        self.staging.drop_slot(self.key, &self.slot);
        self.staging.remember_meta(self.key, Arc::clone(&self.meta));
        self.staging.changed(self.key);
        self.staging.0.work.notify_waiters();
        self.staging.standing(self.key).ok_or(Code::InternalError)
    }

    /// Nothing of what came is kept; `false` if a later attempt has it.
    fn drop_bytes(&self, why: Code) -> bool {
        let mut ledger = self.staging.ledger();
        let current = ledger.current(self.key, self.epoch);
        if current {
            match why {
                Code::HashMismatch => ledger.handle_mismatch(self.key, self.epoch),
                _ => ledger.handle_disk_failure(self.key, self.epoch),
            }
            self.staging.tell_dropped(&ledger, self.key);
        }
        current
    }

    async fn try_finish(&mut self) -> Result<(), Code> {
        let slot = Arc::clone(&self.slot);
        let mut state = slot.lock().await;
        if !self.staging.ledger().current(self.key, self.epoch) {
            return Err(Code::AttemptSuperseded);
        }
        if state.part.is_none() && state.written > 0 {
            return Err(self.failed(DiskStep::Write));
        }
        let whole = state.held() == self.meta.offer.length && state.digest() == self.meta.offer.sha256;
        if let Some(hashed) = self.hashed.take() {
            hashed(whole);
        }
        if !whole {
            return Err(Code::HashMismatch);
        }
        // Begun under another capability: after a restart this one must be known too.
        if state.part.as_ref().is_some_and(|part| !part.is_sealed_with(&self.meta.capability)) {
            self.staging.keep_for(&self.meta).await;
        }
        let kept = state.kept.take();
        match self.staging.0.committer.commit(self.whole(&mut state)).await {
            Ok(_durable) => {}
            Err(CommitError::NotWhole) => return Err(Code::HashMismatch),
            Err(CommitError::Superseded) => return Err(Code::AttemptSuperseded),
            Err(_) => return Err(self.failed(DiskStep::Commit)),
        }
        *state = State::default();
        // Before the ledger knows: from then on forwarding may ask.
        if let Some(kept) = kept {
            self.staging.0.fresh.put(self.key, kept);
        }
        if self.staging.ledger().handle_staged(self.key, self.meta.offer.sha256) {
            return Ok(());
        }
        // Dropped, or replaced by other bytes, while the disk was at it: nobody heard `staged`.
        self.staging.0.fresh.take(self.key);
        self.staging.remove_staged(self.key).await;
        Err(Code::AttemptSuperseded)
    }

    /// Everything that came, for the committer.
    fn whole(&self, state: &mut State) -> Whole {
        let State { part, mut gathered, hash, .. } = std::mem::take(state);
        let bytes = gathered.take();
        match part {
            Some(part) => Whole::ending(part, bytes, hash),
            None => Whole::new(self.staging.0.vault.clone(), self.key, Arc::clone(&self.meta), bytes, hash),
        }
    }

    /// Everything written, as its file.
    pub(super) async fn whole_part(&self) -> Result<Part, Code> {
        let mut state = self.slot.lock().await;
        if !state.gathered.is_empty() {
            state = self.write(state).await?;
        }
        state.part.take().ok_or(Code::InternalError)
    }

    /// The attempt ended in the middle: what is gathered goes to the disk, and the file is closed
    /// unless another attempt has taken over.
    pub(super) async fn rest(self) {
        let mut state = self.slot.lock().await;
        // Asked again at the end: whoever takes over from then on gets a slot of its own.
        let taken_over = || self.staging.ledger().record(self.key).is_none_or(|r| r.epoch != self.epoch);
        if taken_over() {
            return;
        }
        if !state.gathered.is_empty() {
            // A failure is counted; the next attempt starts from what the file holds.
            match self.write(state).await {
                Ok(written) => state = written,
                Err(_) => state = self.slot.lock().await,
            }
        }
        if self.staging.drop_slot_if(self.key, &self.slot, || !taken_over()) {
            // Also what a push brought that was dropped before it could say so.
            self.staging.ledger().handle_progress(self.key, self.epoch, state.written);
            state.part = None;
        }
    }

    fn failed(&self, step: DiskStep) -> Code {
        self.staging.count::<(), ()>(step, &Err(()));
        Code::StagingFailed
    }
}

#[cfg(test)]
#[path = "incoming_tests.rs"]
mod tests;
