//! What forwarding sees of staging: the next chunk to commit, its bytes, and where its verdict goes.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http_body::Frame;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};

use super::store::{Staging, blocking};
use super::{Meta, Reader};
use crate::proto::ledger::Verdict;
use crate::proto::{ChunkRef, ChunkState, Class, Offer};
use crate::telemetry::names::DiskStep;

/// Bytes read from the disk at once.
const READ_BYTES: usize = 512 * 1024;
/// How long an attempt whose end nobody told is left alone, ms.
const UNTOLD_MS: u64 = 1_000;

/// A chunk's bytes as a request body.
pub type JobBody = BoxBody<Bytes, io::Error>;

/// One chunk on its way to the core. Unless it is settled, dropping it says that nothing is known
/// of the attempt: it is tried again, and a "duplicate" then is an answer that was lost.
pub struct Job {
    staging: Staging,
    key: ChunkRef,
    meta: Arc<Meta>,
    capability: String,
    session: String,
    verified: bool,
    settled: bool,
}

impl Staging {
    /// Waits until a chunk of a class not below `lowest` could be taken.
    pub async fn ready(&self, lowest: Class) {
        loop {
            let mut woken = std::pin::pin!(self.0.work.notified());
            // Registered before the ledger is asked: what comes in between is not missed.
            woken.as_mut().enable();
            let now = self.0.clock.now_ms();
            let due = {
                let mut ledger = self.ledger();
                if ledger.waits(now, lowest) {
                    return;
                }
                ledger.next_due()
            };
            match due {
                None => woken.await,
                Some(due) => tokio::select! {
                    () = &mut woken => {}
                    () = self.0.clock.sleep(Duration::from_millis(due.saturating_sub(now).max(1))) => {}
                },
            }
        }
    }

    /// Takes the next chunk of a class not below `lowest`, in the order of mercy.
    pub async fn take(&self, lowest: Class) -> Option<Job> {
        loop {
            let mut stranded = Vec::new();
            let key = self.ledger().take(self.0.clock.now_ms(), self.0.clock.unix_s(), lowest, &mut stranded);
            for chunk in stranded {
                self.stranded(chunk).await;
            }
            let key = key?;
            if let Some(job) = self.job(key).await {
                self.changed(key);
                return Some(job);
            }
        }
    }

    async fn job(&self, key: ChunkRef) -> Option<Job> {
        let mut meta = match self.meta_of(key).await {
            Ok(meta) => meta,
            Err(error) => {
                self.unreadable(key, &error).await;
                return None;
            }
        };
        let (capability, session) = match self.other_capability(&meta) {
            Ok(None) => (meta.capability.clone(), meta.grant.session.clone()),
            Ok(Some((other, offer))) => {
                meta = Arc::new(Meta { offer, ..(*meta).clone() });
                (other.capability.clone(), other.grant.session.clone())
            }
            Err(()) => {
                self.ledger().handle_verdict(key, Verdict::CapabilityExpired, self.0.clock.now_ms());
                self.changed(key);
                return None;
            }
        };
        let verified = self.ledger().record(key).is_some_and(|record| record.verified);
        let session = session.as_str().to_owned();
        Some(Job { staging: self.clone(), key, meta, capability, session, verified, settled: false })
    }

    /// What was offered can't be read back. The disk may come back to itself; until then the next
    /// chunk goes.
    async fn unreadable(&self, key: ChunkRef, error: &io::Error) {
        let damaged = error.kind() == io::ErrorKind::InvalidData;
        if damaged {
            self.set_aside(key).await;
        }
        let verdict = if damaged { Verdict::Damaged } else { Verdict::Retry(60_000) };
        self.ledger().handle_verdict(key, verdict, self.0.clock.now_ms());
        self.changed(key);
    }

    /// A chunk's capability is no longer good: another that is known carries it on, or it waits.
    async fn stranded(&self, chunk: ChunkRef) {
        if self.rescue(chunk).await {
            self.0.work.notify_waiters();
        }
        self.changed(chunk);
    }

    /// The rate at which commits go out.
    pub fn set_rate(&self, bytes_per_s: u64) {
        self.ledger().handle_rate(bytes_per_s);
    }

    /// How many commits of this chunk were tried.
    fn tries(&self, key: ChunkRef) -> u32 {
        self.ledger().record(key).map_or(0, |record| record.tries)
    }
}

impl Job {
    /// What was offered.
    #[must_use]
    pub fn offer(&self) -> &Offer {
        &self.meta.offer
    }

    /// The capability it goes with, verbatim: its own, or another of its stream.
    #[must_use]
    pub fn capability(&self) -> &str {
        &self.capability
    }

    /// That capability's session.
    #[must_use]
    pub fn session(&self) -> &str {
        &self.session
    }

    /// Commits tried, this one included.
    #[must_use]
    pub fn tries(&self) -> u32 {
        self.staging.tries(self.key)
    }

    /// Its bytes: from memory the first time if they are there still. What was found on the disk at start is hashed first: a disk may rot.
    ///
    /// # Errors
    /// From the disk; `InvalidData` if the bytes are not those of the digest any more.
    pub async fn body(&self) -> io::Result<JobBody> {
        if let Some(bytes) = self.staging.0.fresh.take(self.key) {
            return Ok(whole(bytes));
        }
        let (vault, key, verified) = (self.staging.0.vault.clone(), self.key, self.verified);
        let opened = blocking(move || {
            if !verified && !vault.verify(key)? {
                return Err(io::ErrorKind::InvalidData.into());
            }
            let reader = vault.read(key)?;
            let first = read(&reader, 0)?;
            Ok((reader, first))
        })
        .await;
        let corrupt = matches!(&opened, Err(error) if error.kind() == io::ErrorKind::InvalidData);
        self.staging.count(if corrupt { DiskStep::Corrupt } else { DiskStep::Read }, &opened);
        let (reader, first) = opened?;
        if first.len() as u64 == self.meta.offer.length {
            return Ok(whole(first));
        }
        Ok(BoxBody::new(StreamBody::new(rest(Arc::new(reader), first))))
    }

    /// What the core said.
    pub async fn settle(mut self, verdict: Verdict) {
        self.settled = true;
        // A refused chunk may come again at once, under the same names on the disk: what is there
        // goes before anybody hears of it.
        let gone = match &verdict {
            Verdict::Rejected(..) | Verdict::Damaged => true,
            Verdict::Duplicate => self.staging.ledger().record(self.key).is_some_and(|record| !record.ambiguous),
            _ => false,
        };
        if matches!(verdict, Verdict::Damaged) {
            self.staging.set_aside(self.key).await;
        } else if gone {
            self.staging.remove_staged(self.key).await;
        }
        let refused = matches!(verdict, Verdict::CapabilityExpired);
        let state = self.staging.ledger().handle_verdict(self.key, verdict, self.staging.0.clock.now_ms());
        if refused {
            self.staging.refuse(&self.meta, &self.capability);
            return self.staging.stranded(self.key).await;
        }
        self.staging.changed(self.key);
        if state == Some(ChunkState::Rejected)
            && let Some(times) = self.staging.0.rejections.happened(self.staging.0.clock.now_ms())
        {
            tracing::warn!(component = "staging", times, "rejected: the core refused chunks");
        }
        match state {
            Some(state) if state.ended() && !gone => self.staging.remove_ended(self.key).await,
            Some(ChunkState::Staged) => self.staging.0.work.notify_waiters(),
            _ => {}
        }
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        if !self.settled {
            let now = self.staging.0.clock.now_ms();
            self.staging.ledger().handle_verdict(self.key, Verdict::Ambiguous(UNTOLD_MS), now);
            self.staging.changed(self.key);
            self.staging.0.work.notify_waiters();
        }
    }
}

fn whole(bytes: Bytes) -> JobBody {
    Full::new(bytes).map_err(|never| match never {}).boxed()
}

fn read(reader: &Reader, offset: u64) -> io::Result<Bytes> {
    let left = usize::try_from(reader.len() - offset).unwrap_or(usize::MAX);
    let mut out = vec![0; left.min(READ_BYTES)];
    let mut filled = 0;
    while filled < out.len() {
        match reader.read_at(offset + filled as u64, &mut out[filled..])? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => filled += read,
        }
    }
    Ok(out.into())
}

/// The body, one read ahead of the connection.
fn rest(reader: Arc<Reader>, first: Bytes) -> impl stream::Stream<Item = io::Result<Frame<Bytes>>> {
    stream::unfold((reader, 0u64, Some(first)), |(reader, at, ready)| async move {
        if at >= reader.len() {
            return None;
        }
        let piece = match ready {
            Some(piece) => Ok(piece),
            None => {
                let reader = Arc::clone(&reader);
                blocking(move || read(&reader, at)).await
            }
        };
        match piece {
            Ok(piece) => {
                let next = at + piece.len() as u64;
                Some((Ok(Frame::data(piece)), (reader, next, None)))
            }
            Err(error) => {
                let end = reader.len();
                Some((Err(error), (reader, end, None)))
            }
        }
    })
}
