//! The `PUT`s of one connection: those that wait for their turn, and how many are not answered yet.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::capture::link::Job;
use crate::capture::plan::{Next, Plan};
use crate::h3link::Receiving;
use waystation_congestion::Path;
use waystation_proto::Class;

/// One piece takes at most this long at the path's rate.
const PIECE_TIME: Duration = Duration::from_millis(50);
/// Bytes of one piece: a packet or two at least, and what keeps a fast link busy at most.
const PIECE_BYTES: (u64, u64) = (2 * 1024, 16 * 1024);
/// Chunks whose answers are waited for, in number and bytes. Beyond, an answer says what the relay
/// has instead of waiting for the core: a core that is away takes no streams and no memory here.
const MAX_UNANSWERED: usize = 32;
const MAX_UNANSWERED_BYTES: u64 = 32 << 20;
/// A chunk's bytes move: told so often.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// One `PUT` whose turn comes.
pub(super) struct Entry {
    pub(super) job: Arc<Job>,
    pub(super) offset: u64,
    /// Seconds that its answer may wait for the core.
    pub(super) wait_s: u64,
    /// Where the answer is waited for.
    pub(super) begun: Option<oneshot::Sender<Receiving>>,
    /// Told when all of it is sent.
    all: oneshot::Sender<()>,
    /// When it was last told that its bytes move.
    told: Instant,
}

#[derive(Default)]
pub(super) struct Waiting {
    pub(super) plan: Plan,
    /// By a number of its own for each `PUT`: an answered one has no part in the next of its chunk.
    pub(super) entries: HashMap<u64, Entry>,
    puts: u64,
    /// Requests without an answer, and the bytes of their chunks.
    pub(super) unanswered: (usize, u64),
}

impl Waiting {
    /// Takes in a `PUT`; the writer brings what is left from `offset` on, if anything is.
    pub(super) fn begin(
        &mut self,
        job: &Arc<Job>,
        offset: u64,
        wait_s: u64,
        begun: oneshot::Sender<Receiving>,
        all: oneshot::Sender<()>,
    ) -> (u64, u64) {
        let wait_s = if self.is_patient() { wait_s } else { 0 };
        self.puts += 1;
        self.unanswered.0 += 1;
        self.unanswered.1 += job.offer.length;
        if offset < job.offer.length {
            self.plan.offered(self.puts, job.rank, job.bytes.clone());
            self.plan.send(self.puts, offset, u64::MAX);
            let (job, begun, told) = (Arc::clone(job), Some(begun), Instant::now());
            self.entries.insert(self.puts, Entry { job, offset, wait_s, begun, all, told });
        }
        (self.puts, wait_s)
    }

    /// A piece, not the last one, was handed over. Its chunk, if it is time to tell that it moves.
    pub(super) fn handed(&mut self, handle: u64) -> Option<(u64, u64)> {
        self.plan.pause(handle, false);
        let entry = self.entries.get_mut(&handle).filter(|entry| entry.told.elapsed() >= TELL_EVERY)?;
        entry.told = Instant::now();
        Some((entry.job.id, entry.job.offer.attempt))
    }

    /// The last piece was handed over. Its chunk.
    pub(super) fn sent(&mut self, handle: u64) -> Option<(u64, u64)> {
        let entry = self.entries.remove(&handle)?;
        // Nobody waits for it if the answer is there.
        let _ = entry.all.send(());
        Some((entry.job.id, entry.job.offer.attempt))
    }

    pub(super) fn is_sound(&self, handle: u64) -> bool {
        self.entries.get(&handle).is_some_and(|entry| entry.job.rank.class() == Class::Audio.rank())
    }

    pub(super) fn end(&mut self, handle: u64, length: u64) {
        self.unanswered.0 -= 1;
        self.unanswered.1 -= length;
        self.plan.forget(handle);
        self.entries.remove(&handle);
    }

    /// Whether one more answer may be waited for until the core has spoken.
    const fn is_patient(&self) -> bool {
        self.unanswered.0 < MAX_UNANSWERED && self.unanswered.1 < MAX_UNANSWERED_BYTES
    }

    pub(super) fn next(&mut self, path: Path) -> Option<Next> {
        let quick = path.rate.saturating_mul(PIECE_TIME.as_millis() as u64) / 1000;
        self.plan.next_piece(quick.clamp(PIECE_BYTES.0, PIECE_BYTES.1) as usize)
    }
}
