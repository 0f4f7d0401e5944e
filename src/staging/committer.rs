//! The only maker of [`Durable`]: group commit.
//!
//! A chunk goes through two steps. Several threads write what is not written yet and sync files,
//! each its own; one thread then takes every file that is synced by now, renames them into
//! `staged/`, syncs both directories once for all of them, and answers. While it waits for the
//! disk the next group gathers by itself.
//!
//! There is one such thread on purpose: a failed directory sync is reported once, so a second
//! group that had renamed meanwhile could take the next success for its own.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::disk::Dir;
use super::part::{Part, Superseded};
use super::seal::Name;
use super::vault::{Inner, Vault};
use super::whole::Whole;
use crate::proto::ChunkRef;

/// Threads that sync files. They only wait for the disk, and a journalling file system serves
/// those who wait together with one commit of its journal, so more than cores are worth it;
/// `docs/decisions/0003-one-file-per-chunk.md` has the measurement.
pub const SYNC_THREADS: usize = 8;
/// Chunks handed over and not yet answered, in all. Each costs an open file, under 4 KiB, and the
/// bytes that are not written yet (`incoming::WRITE_BUFFER` and a piece); who comes later waits in
/// order, and so does the sender whose bytes they are.
pub const IN_FLIGHT: usize = 256;

/// A chunk is whole, hashed and synced, in its file and in its directory. Only a [`Committer`]
/// makes this value: without it nothing may be called staged.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a chunk is staged because this value exists"]
pub struct Durable {
    chunk: ChunkRef,
    len: u64,
}

impl Durable {
    /// Which chunk.
    #[must_use]
    pub const fn chunk(&self) -> ChunkRef {
        self.chunk
    }

    /// Its bytes.
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.len
    }

    /// It has no bytes; never so.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// Why a chunk is not durable.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CommitError {
    /// Length or digest are not the offer's. The partial is kept.
    #[error("the bytes are not those of the offer")]
    NotWhole,
    /// A later attempt took the chunk over, or it was removed.
    #[error("superseded")]
    Superseded,
    /// It is staged already; those bytes stay. The partial is removed.
    #[error("already staged")]
    AlreadyStaged,
    /// The disk failed. The bytes are removed: after a failed sync nothing can prove them.
    #[error("disk: {0}")]
    Disk(#[source] io::Error),
    /// The committer ended before it answered.
    #[error("stopped")]
    Stopped,
}

/// Makes chunks durable, many at a time. Dropping it finishes what was handed over.
pub struct Committer {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

type Answer = oneshot::Sender<Result<Durable, CommitError>>;

/// Something under way, its answer and its room. Dropping it unanswered tells the caller
/// [`CommitError::Stopped`].
struct Job<T> {
    item: T,
    answer: Answer,
    room: OwnedSemaphorePermit,
}

struct Shared {
    inner: Arc<Inner>,
    room: Arc<Semaphore>,
    queue: Mutex<Queue>,
    /// There are parts, or the queue was closed.
    parts: Condvar,
    /// There are synced files, or the last sync thread is idle and the queue was closed.
    synced: Condvar,
}

#[derive(Default)]
struct Queue {
    parts: VecDeque<Job<Whole>>,
    synced: Vec<Job<Synced>>,
    /// Parts being synced.
    syncing: usize,
    closed: bool,
}

impl Committer {
    /// Starts the threads.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub fn start(vault: &Vault) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            inner: Arc::clone(vault.inner()),
            room: Arc::new(Semaphore::new(IN_FLIGHT)),
            queue: Mutex::default(),
            parts: Condvar::new(),
            synced: Condvar::new(),
        });
        // Made first, so that threads already started end with it if a later one does not start.
        let mut committer = Self { shared, threads: Vec::with_capacity(SYNC_THREADS + 1) };
        for _ in 0..SYNC_THREADS {
            committer.spawn("staging-sync", Shared::sync_files)?;
        }
        committer.spawn("staging-publish", Shared::publish_groups)?;
        Ok(committer)
    }

    fn spawn(&mut self, name: &str, run: fn(&Shared)) -> io::Result<()> {
        let shared = Arc::clone(&self.shared);
        self.threads.push(thread::Builder::new().name(name.into()).spawn(move || run(&shared))?);
        Ok(())
    }

    /// Makes a whole chunk durable. If the caller goes away while it waits for room, what is in the
    /// file is kept; later the commit takes its course unheard, and the chunk is found by the next
    /// start.
    ///
    /// # Errors
    /// See [`CommitError`].
    pub async fn commit(&self, whole: impl Into<Whole>) -> Result<Durable, CommitError> {
        let item = whole.into();
        let room = Arc::clone(&self.shared.room).acquire_owned().await.map_err(|_| CommitError::Stopped)?;
        let (answer, answered) = oneshot::channel();
        self.shared.queue().parts.push_back(Job { item, answer, room });
        self.shared.parts.notify_one();
        answered.await.unwrap_or(Err(CommitError::Stopped))
    }
}

impl Drop for Committer {
    fn drop(&mut self) {
        self.shared.queue().closed = true;
        self.shared.parts.notify_all();
        self.shared.synced.notify_all();
        for thread in self.threads.drain(..) {
            // A thread that panicked answered by dropping its job.
            let _ = thread.join();
        }
    }
}

impl std::fmt::Debug for Committer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Committer(…)")
    }
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The life of a sync thread.
    fn sync_files(&self) {
        while let Some(Job { item, answer, room }) = self.next_part() {
            let busy = Busy(self);
            match write(item).and_then(sync) {
                Ok(item) => self.queue().synced.push(Job { item, answer, room }),
                // A caller that went away needs no answer.
                Err(e) => drop(answer.send(Err(e))),
            }
            drop(busy);
        }
    }

    fn next_part(&self) -> Option<Job<Whole>> {
        let mut queue = self.queue();
        loop {
            if let Some(job) = queue.parts.pop_front() {
                queue.syncing += 1;
                return Some(job);
            }
            if queue.closed {
                return None;
            }
            queue = self.parts.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The life of the publishing thread.
    fn publish_groups(&self) {
        while let Some(group) = self.next_group() {
            let (items, answers): (Vec<_>, Vec<_>) =
                group.into_iter().map(|job| (job.item, (job.answer, job.room))).unzip();
            for (result, (answer, _room)) in publish(&self.inner, items).into_iter().zip(answers) {
                // A caller that went away needs no answer.
                let _ = answer.send(result);
            }
        }
    }

    fn next_group(&self) -> Option<Vec<Job<Synced>>> {
        let mut queue = self.queue();
        loop {
            if !queue.synced.is_empty() {
                return Some(std::mem::take(&mut queue.synced));
            }
            if queue.closed && queue.parts.is_empty() && queue.syncing == 0 {
                return None;
            }
            queue = self.synced.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Counts a sync under way.
struct Busy<'a>(&'a Shared);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.queue().syncing -= 1;
        self.0.synced.notify_one();
    }
}

/// The right to put a file below `staged/`; given back when dropped unused.
struct Place {
    inner: Arc<Inner>,
    name: Name,
    used: bool,
}

impl Place {
    fn take(inner: &Arc<Inner>, name: Name) -> Option<Self> {
        let free = inner.staged().insert(name);
        free.then(|| Self { inner: Arc::clone(inner), name, used: false })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.used {
            self.inner.staged().remove(&self.name);
        }
    }
}

/// A whole chunk whose file is synced and not yet below `staged/`.
pub(super) struct Synced {
    place: Place,
    file_name: String,
    chunk: ChunkRef,
    len: u64,
}

/// What is not written yet.
fn write(whole: Whole) -> Result<Part, CommitError> {
    whole.write().map_err(|e| if Superseded::is(&e) { CommitError::Superseded } else { CommitError::Disk(e) })
}

/// The first step: the file.
pub(super) fn sync(part: Part) -> Result<Synced, CommitError> {
    if !part.is_whole() {
        return Err(CommitError::NotWhole);
    }
    if !part.claim() {
        return Err(CommitError::Superseded);
    }
    part.inner.forget_partial(part.name, &part.slot);
    let file_name = part.slot.file_name(part.name);
    let Some(place) = Place::take(&part.inner, part.name) else {
        give_up(&part.inner, Dir::Receiving, &file_name);
        return Err(CommitError::AlreadyStaged);
    };
    if let Err(e) = part.sync_data() {
        give_up(&part.inner, Dir::Receiving, &file_name);
        return Err(CommitError::Disk(e));
    }
    Ok(Synced { place, file_name, chunk: part.chunk, len: part.len() })
}

/// The second step: the names of a group. The answers are in the order of `group`.
pub(super) fn publish(inner: &Inner, group: Vec<Synced>) -> Vec<Result<Durable, CommitError>> {
    let renamed: Vec<_> = group.into_iter().map(|synced| rename(inner, synced)).collect();
    let retired = inner.spares.mark();
    let directories = inner.disk.sync_dir(Dir::Staged).and_then(|()| inner.disk.sync_dir(Dir::Receiving));
    if directories.is_ok() {
        inner.spares.settle(retired);
    }
    let settle = |mut synced: Synced| match &directories {
        Ok(()) => {
            synced.place.used = true;
            Ok(Durable { chunk: synced.chunk, len: synced.len })
        }
        Err(e) => {
            give_up(inner, Dir::Staged, &synced.place.name.to_hex());
            Err(CommitError::Disk(same(e)))
        }
    };
    renamed.into_iter().map(|renamed| renamed.and_then(settle)).collect()
}

fn rename(inner: &Inner, synced: Synced) -> Result<Synced, CommitError> {
    let to = synced.place.name.to_hex();
    match inner.disk.rename((Dir::Receiving, &synced.file_name), (Dir::Staged, &to)) {
        Ok(()) => Ok(synced),
        Err(e) => {
            give_up(inner, Dir::Receiving, &synced.file_name);
            Err(CommitError::Disk(e))
        }
    }
}

/// Removes what failed. If that fails too the file stays until the next start, which removes it
/// or, where it is whole, stages it.
fn give_up(inner: &Inner, dir: Dir, name: &str) {
    let _ = inner.disk.remove(dir, name);
}

/// One error for a whole group.
fn same(error: &io::Error) -> io::Error {
    error.raw_os_error().map_or_else(|| error.kind().into(), io::Error::from_raw_os_error)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Instant;

    use super::*;
    use crate::clock::Clock;
    use crate::staging::Recovered;
    use crate::staging::disk::{Disk, StdDisk};
    use crate::staging::fixture::{Recording, chunk, disk_at, key, meta};
    use crate::staging::sim::SimDisk;

    fn open(disk: impl Disk) -> (Vault, Recovered) {
        Vault::open(Arc::new(disk), &key(), Clock::system()).unwrap()
    }

    fn whole(vault: &Vault, index: u64) -> Part {
        let mut part = vault.create(chunk(index), &meta(index, b"payload")).unwrap();
        part.append(b"payload").unwrap();
        part
    }

    #[tokio::test]
    async fn file_and_directories_are_synced_before_the_answer() {
        let temp = tempfile::tempdir().unwrap();
        let disk = Recording::new(StdDisk::open(temp.path()).unwrap());
        let log = disk.log();
        let (vault, _) = open(disk);
        let committer = Committer::start(&vault).unwrap();
        log.take();
        let durable = committer.commit(whole(&vault, 1)).await.unwrap();
        log.note("answered");
        assert_eq!((durable.chunk(), durable.len()), (chunk(1), 7));
        let expected = [
            "create receiving",
            "write receiving",
            "sync file of receiving",
            "rename receiving to staged",
            "sync staged",
            "sync receiving",
            "answered",
        ];
        assert_eq!(log.take(), expected);
    }

    /// Prints what the disk gives; `STAGING_COMMITS` sets how many commits are made.
    #[test]
    fn many_commits_share_a_directory_sync() {
        let commits: u64 = std::env::var("STAGING_COMMITS").map_or(512, |text| text.parse().unwrap());
        let temp = tempfile::tempdir().unwrap();
        let disk = Recording::new(StdDisk::open(temp.path()).unwrap());
        let log = disk.log();
        let (vault, _) = open(disk);
        let payload = vec![7; 64 * 1024];
        let template = meta(1, &payload);
        let committer = Committer::start(&vault).unwrap();
        log.take();
        let next = AtomicU64::new(1);
        let before = Instant::now();
        let work = || {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            loop {
                let mut meta = template.clone();
                meta.offer.index = next.fetch_add(1, Ordering::Relaxed);
                if meta.offer.index > commits {
                    return;
                }
                let mut part = vault.create(meta.offer.chunk_ref(), &meta).unwrap();
                part.append(&payload).unwrap();
                assert_eq!(runtime.block_on(committer.commit(part)).unwrap().len(), 65_536);
            }
        };
        thread::scope(|scope| (0..32).for_each(|_| drop(scope.spawn(work))));
        let time = before.elapsed();
        let syncs = log.take().iter().filter(|entry| *entry == "sync staged").count() as u64;
        println!("{commits} commits of 64 KiB in {time:?} with {syncs} directory syncs");
        assert!(syncs < commits, "each commit synced the directory by itself");
        drop((committer, vault));
        let before = Instant::now();
        let (_, found) = open(disk_at(temp.path()));
        println!("recovered in {:?}", before.elapsed());
        assert_eq!((found.staged.len() as u64, found.partial.len()), (commits, 0));
    }

    #[tokio::test]
    async fn a_failed_file_fails_alone() {
        let disk = SimDisk::new(1);
        let (vault, _) = open(disk.clone());
        let parts: Vec<_> = (1..=200).map(|index| whole(&vault, index)).collect();
        let committer = Committer::start(&vault).unwrap();
        disk.fail_files_one_in(4);
        let results = futures_util::future::join_all(parts.into_iter().map(|part| committer.commit(part))).await;
        disk.fail_files_one_in(0);
        let failed = results.iter().filter(|result| matches!(result, Err(CommitError::Disk(_)))).count();
        assert!((20..80).contains(&failed), "{failed} of 200 failed");
        assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 200 - failed);
        assert_eq!(disk.list(Dir::Staged).unwrap().len(), 200 - failed);
        assert!(disk.list(Dir::Receiving).unwrap().is_empty(), "what failed is removed");
        for (index, result) in (1..).zip(results) {
            match result {
                Ok(durable) => assert_eq!(durable.chunk(), chunk(index)),
                Err(_) => drop(committer.commit(whole(&vault, index)).await.unwrap()),
            }
        }
    }

    #[tokio::test]
    async fn a_failed_directory_fails_its_group() {
        let disk = SimDisk::new(1);
        let (vault, _) = open(disk.clone());
        let committer = Committer::start(&vault).unwrap();
        disk.fail_directories(true);
        let parts: Vec<_> = (1..=20).map(|index| whole(&vault, index)).collect();
        let results = futures_util::future::join_all(parts.into_iter().map(|part| committer.commit(part))).await;
        assert!(results.iter().all(|result| matches!(result, Err(CommitError::Disk(_)))));
        disk.fail_directories(false);
        assert!(disk.list(Dir::Staged).unwrap().is_empty() && disk.list(Dir::Receiving).unwrap().is_empty());
        assert!(committer.commit(whole(&vault, 1)).await.is_ok(), "it may be brought again");
    }

    #[tokio::test]
    async fn who_goes_away_breaks_nothing() {
        let disk = SimDisk::new(1);
        let (vault, _) = open(disk.clone());
        let committer = Arc::new(Committer::start(&vault).unwrap());
        let more_than_fit = 1..=3 * IN_FLIGHT as u64;
        let callers: Vec<_> = more_than_fit
            .map(|index| {
                let (committer, part) = (Arc::clone(&committer), whole(&vault, index));
                tokio::spawn(async move { committer.commit(part).await })
            })
            .collect();
        tokio::task::yield_now().await;
        let (gone, staying): (Vec<_>, Vec<_>) =
            callers.into_iter().enumerate().partition(|(position, _)| position % 2 == 0);
        gone.iter().for_each(|(_, caller)| caller.abort());
        for (_, caller) in staying {
            assert!(caller.await.unwrap().is_ok());
        }
        drop(committer);
        drop(vault);
        let (_, found) = open(disk);
        assert!(found.staged.len() >= 3 * IN_FLIGHT / 2, "each that stayed is there");
        assert_eq!(
            found.staged.len() + found.partial.len(),
            3 * IN_FLIGHT,
            "each other is staged or can be gone on with"
        );
    }

    #[tokio::test]
    async fn the_end_finishes_what_was_handed_over() {
        let disk = SimDisk::new(1);
        let (vault, _) = open(disk.clone());
        let committer = Committer::start(&vault).unwrap();
        let mut waiting = Box::pin(committer.commit(whole(&vault, 1)));
        assert!(futures_util::poll!(&mut waiting).is_pending() || disk.list(Dir::Staged).unwrap().len() == 1);
        drop(waiting);
        drop(committer);
        assert_eq!(disk.list(Dir::Staged).unwrap().len(), 1);
    }
}
