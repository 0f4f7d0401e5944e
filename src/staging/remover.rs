//! Removes staged chunks after their ending, in a thread of its own: nobody waits for it, and one
//! thread in the directory does not stand in the way of those that stage.

use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::Vault;
use crate::clock::Clock;
use crate::proto::ChunkRef;

/// Chunks that wait to be removed. 16 bytes each; beyond, whoever ends a chunk removes it.
pub const MAX_REMOVALS: usize = 1024;

/// After so long without an ending the bytes of ended chunks are removed: their files are not worth
/// keeping any longer.
const LULL: Duration = Duration::from_secs(1);

/// The thread and its queue. Dropping it finishes what was handed over.
pub(super) struct Remover {
    queue: Option<SyncSender<ChunkRef>>,
    thread: Option<JoinHandle<()>>,
}

impl Remover {
    /// `failed` hears of each removal that the disk refused; the next start finds the chunk again.
    pub(super) fn start(vault: &Vault, clock: Clock, failed: impl Fn() + Send + 'static) -> io::Result<Self> {
        let (queue, ended) = sync_channel(MAX_REMOVALS);
        let vault = vault.clone();
        let run = move || Self::run(&vault, &clock, &ended, failed);
        let thread = thread::Builder::new().name("staging-remove".into()).spawn(run)?;
        Ok(Self { queue: Some(queue), thread: Some(thread) })
    }

    fn run(vault: &Vault, clock: &Clock, ended: &Receiver<ChunkRef>, failed: impl Fn()) {
        let mut oldest = (None, 0);
        loop {
            let next = if vault.inner().spares.any_full() {
                ended.recv_timeout(LULL)
            } else {
                ended.recv().map_err(|_| RecvTimeoutError::Disconnected)
            };
            let done = match next {
                Ok(chunk) => vault.retire(chunk).and(Self::drop_overdue(vault, clock, &mut oldest)),
                Err(RecvTimeoutError::Timeout) => vault.drop_retired(),
                Err(RecvTimeoutError::Disconnected) => vault.drop_spares(),
            };
            vault.empty_retired();
            if done.is_err() {
                failed();
            }
            if next == Err(RecvTimeoutError::Disconnected) {
                return;
            }
        }
    }

    /// While chunks end and none is staged, nothing settles: what waits goes all the same.
    fn drop_overdue(vault: &Vault, clock: &Clock, oldest: &mut (Option<u64>, u64)) -> io::Result<()> {
        let (now, waits) = (clock.now_ms(), vault.inner().spares.oldest());
        if waits.is_none() || waits != oldest.0 {
            *oldest = (waits, now);
        } else if now - oldest.1 >= LULL.as_millis() as u64 {
            *oldest = (None, now);
            return vault.drop_retired();
        }
        Ok(())
    }

    /// Hands a chunk over; `false` when there is no room.
    #[must_use]
    pub(super) fn remove(&self, chunk: ChunkRef) -> bool {
        let Some(queue) = &self.queue else { return false };
        queue.try_send(chunk).is_ok()
    }
}

impl Drop for Remover {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            // A thread that panicked left files that the next start finds.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::sync::mpsc::channel;

    use super::*;
    use crate::staging::Committer;
    use crate::staging::disk::Dir;
    use crate::staging::fixture::{chunk, disk_at, key, meta};

    fn vault(root: &std::path::Path) -> Vault {
        Vault::open(Arc::new(disk_at(root)), &key(), Clock::at_unix_ms(0)).unwrap().0
    }

    #[tokio::test]
    async fn what_was_handed_over_is_gone_when_it_ends() {
        let temp = tempfile::tempdir().unwrap();
        let vault = vault(temp.path());
        let committer = Committer::start(&vault).unwrap();
        for index in 1..=20 {
            let mut part = vault.create(chunk(index), &meta(index, b"payload")).unwrap();
            part.append(b"payload").unwrap();
            drop(committer.commit(part).await.unwrap());
        }
        let remover = Remover::start(&vault, Clock::at_unix_ms(0), || panic!("a removal failed")).unwrap();
        for index in 1..=20 {
            assert!(remover.remove(chunk(index)));
        }
        drop(remover);
        for dir in [Dir::Staged, Dir::Receiving] {
            assert_eq!(std::fs::read_dir(temp.path().join(dir.name())).unwrap().count(), 0, "{dir:?}");
        }
    }

    #[tokio::test]
    async fn bytes_go_also_while_chunks_end_and_none_is_staged() {
        let temp = tempfile::tempdir().unwrap();
        let vault = vault(temp.path());
        let committer = Committer::start(&vault).unwrap();
        for index in 1..=3 {
            let mut part = vault.create(chunk(index), &meta(index, b"payload")).unwrap();
            part.append(b"payload").unwrap();
            drop(committer.commit(part).await.unwrap());
        }
        let (clock, mut oldest) = (Clock::at_unix_ms(0), (None, 0));
        let waiting = || std::fs::read_dir(temp.path().join(Dir::Receiving.name())).unwrap().count();
        for (index, left) in [(1, 1), (2, 2), (3, 0)] {
            vault.retire(chunk(index)).unwrap();
            Remover::drop_overdue(&vault, &clock, &mut oldest).unwrap();
            assert_eq!(waiting(), left);
            clock.advance(LULL / 2);
        }
    }

    #[test]
    fn a_full_queue_says_so() {
        let temp = tempfile::tempdir().unwrap();
        let vault = vault(temp.path());
        // Its file can't be renamed to where no directory is: that fails, and is heard only when the
        // test lets it be.
        let name = vault.inner().sealer.chunk_name(chunk(1)).to_hex();
        std::fs::write(temp.path().join(Dir::Staged.name()).join(name), b"").unwrap();
        let receiving = temp.path().join(Dir::Receiving.name());
        std::fs::remove_dir(&receiving).unwrap();
        std::fs::write(receiving, b"").unwrap();
        let failures = Arc::new(AtomicU64::new(0));
        let (go, wait) = channel::<()>();
        let counted = Arc::clone(&failures);
        let remover = Remover::start(&vault, Clock::at_unix_ms(0), move || {
            let _ = wait.recv();
            counted.fetch_add(1, Ordering::Relaxed);
        })
        .unwrap();
        // One is with the thread, or about to be.
        let taken = (0..MAX_REMOVALS + 2).filter(|_| remover.remove(chunk(1))).count();
        assert!((MAX_REMOVALS..=MAX_REMOVALS + 1).contains(&taken), "{taken}");
        drop(go);
        drop(remover);
        assert_eq!(failures.load(Ordering::Relaxed), taken as u64);
    }
}
