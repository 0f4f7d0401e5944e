//! Files of ended chunks that later chunks are written into. To make and to remove a file costs the
//! file system as much as to write a small one, and some of them more the more were removed
//! lately (`docs/decisions/0010-files-are-used-again.md`).
//!
//! A file goes through three steps, and in each a crash leaves nothing that is believed:
//!
//! 1. It **waits**: renamed out of `staged/`, under a name in `receiving/` that no chunk has. Its
//!    bytes stay, since a power cut may bring its old name back.
//! 2. It is **settled**: both directories were synced since, so the old name is gone for good.
//! 3. It is **free**: emptied, and open. A new chunk takes it with a renaming.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::Vault;
use super::disk::{Dir, File};
use super::part::partial_name;
use super::seal::Name;
use super::vault::{Inner, absent_is_fine};
use crate::proto::ChunkRef;

/// Files kept, in all three steps. Each free one costs an open file; those that are not free yet
/// hold their bytes for a second at most.
pub const MAX_SPARES: usize = 64;

/// The files.
#[derive(Default)]
pub(super) struct Spares(Mutex<Files>);

#[derive(Default)]
struct Files {
    waiting: Vec<(u64, String)>,
    settled: Vec<String>,
    free: Vec<(String, Box<dyn File>)>,
    next: u64,
}

impl Files {
    const fn count(&self) -> usize {
        self.waiting.len() + self.settled.len() + self.free.len()
    }
}

/// What waited at some moment.
#[derive(Clone, Copy)]
pub(super) struct Mark(u64);

impl Spares {
    fn files(&self) -> MutexGuard<'_, Files> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether one more is worth keeping.
    pub(super) fn has_room(&self) -> bool {
        self.files().count() < MAX_SPARES
    }

    /// A file was renamed out of `staged/`.
    pub(super) fn wait(&self, name: String) {
        let mut files = self.files();
        let number = files.next;
        files.next += 1;
        files.waiting.push((number, name));
    }

    /// What waits now: the renamings that a sync which begins now covers.
    pub(super) fn mark(&self) -> Mark {
        Mark(self.files().next)
    }

    /// Both directories were synced since `mark`.
    pub(super) fn settle(&self, mark: Mark) {
        let mut files = self.files();
        let settled: Vec<_> = files.waiting.extract_if(.., |(number, _)| *number < mark.0).collect();
        files.settled.extend(settled.into_iter().map(|(_, name)| name));
    }

    /// Those that may be emptied. The caller empties each and adds it, or removes it.
    pub(super) fn take_settled(&self) -> Vec<String> {
        std::mem::take(&mut self.files().settled)
    }

    /// Those that hold bytes still. The caller removes them.
    pub(super) fn take_full(&self) -> Vec<String> {
        let mut files = self.files();
        let mut full = std::mem::take(&mut files.settled);
        full.extend(std::mem::take(&mut files.waiting).into_iter().map(|(_, name)| name));
        full
    }

    /// All of them, at the end.
    fn take_all(&self) -> Vec<String> {
        let mut all = self.take_full();
        all.extend(std::mem::take(&mut self.files().free).into_iter().map(|(name, _)| name));
        all
    }

    /// Which of those that wait has waited longest.
    pub(super) fn oldest(&self) -> Option<u64> {
        self.files().waiting.first().map(|(number, _)| *number)
    }

    /// Whether some hold bytes still.
    pub(super) fn any_full(&self) -> bool {
        let files = self.files();
        !(files.waiting.is_empty() && files.settled.is_empty())
    }

    /// An emptied file.
    pub(super) fn add(&self, name: String, file: Box<dyn File>) {
        self.files().free.push((name, file));
    }

    /// How many are free.
    #[cfg(test)]
    pub(super) fn free(&self) -> usize {
        self.files().free.len()
    }

    /// A free file, and its name below `receiving/`.
    pub(super) fn take(&self) -> Option<(String, Box<dyn File>)> {
        self.files().free.pop()
    }
}

impl Inner {
    /// An empty file below `receiving/`: a spare one, or a new one.
    pub(super) fn new_file(&self, name: &str) -> io::Result<Box<dyn File>> {
        if let Some((spare, file)) = self.spares.take() {
            if self.disk.rename((Dir::Receiving, &spare), (Dir::Receiving, name)).is_ok() {
                return Ok(file);
            }
            // If this fails too it stays until the next start.
            let _ = self.disk.remove(Dir::Receiving, &spare);
        }
        self.disk.create(Dir::Receiving, name)
    }
}

impl Vault {
    /// Removes a staged chunk after its ending, as [`Vault::remove`] does, and keeps its file.
    ///
    /// # Errors
    /// From the disk. A chunk that is not there is fine.
    pub fn retire(&self, chunk: ChunkRef) -> io::Result<()> {
        let inner = self.inner();
        if !inner.spares.has_room() {
            return self.remove(chunk);
        }
        let name = inner.sealer.chunk_name(chunk);
        let spare = partial_name(Name::NOBODYS, inner.next_number());
        let renamed = inner.disk.rename((Dir::Staged, &name.to_hex()), (Dir::Receiving, &spare));
        let is_there = !matches!(&renamed, Err(error) if error.kind() == io::ErrorKind::NotFound);
        absent_is_fine(renamed)?;
        inner.staged().remove(&name);
        if is_there {
            // Nobody can open it any more; who opened it before reads on.
            if inner.readers().contains_key(&name) {
                return inner.disk.remove(Dir::Receiving, &spare);
            }
            inner.spares.wait(spare);
        }
        Ok(())
    }

    /// Empties retired files whose old names are gone for good: new chunks may have them.
    pub(super) fn empty_retired(&self) {
        let inner = self.inner();
        for spare in inner.spares.take_settled() {
            let opened = inner.disk.open(Dir::Receiving, &spare, true);
            match opened.and_then(|file| file.truncate().map(|()| file)) {
                Ok(file) => inner.spares.add(spare, file),
                // If this fails too it stays until the next start.
                Err(_) => drop(inner.disk.remove(Dir::Receiving, &spare)),
            }
        }
    }

    /// Removes the retired files that hold bytes still.
    ///
    /// # Errors
    /// From the disk; what was not removed goes at the next start.
    pub(super) fn drop_retired(&self) -> io::Result<()> {
        self.remove_spares(&self.inner().spares.take_full())
    }

    /// Removes every file that is kept for a later chunk.
    ///
    /// # Errors
    /// From the disk; what was not removed goes at the next start.
    pub(super) fn drop_spares(&self) -> io::Result<()> {
        self.remove_spares(&self.inner().spares.take_all())
    }

    fn remove_spares(&self, names: &[String]) -> io::Result<()> {
        let mut done = Ok(());
        for name in names {
            done = done.and(self.inner().disk.remove(Dir::Receiving, name));
        }
        done
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use super::*;
    use crate::clock::Clock;
    use crate::staging::committer::{publish, sync};
    use crate::staging::fixture::{Log, Recording, chunk, disk_at, key, meta};
    use crate::staging::{Reader, Vault};

    fn open(root: &Path) -> (Vault, Log) {
        let disk = Recording::new(disk_at(root));
        let log = disk.log();
        (Vault::open(Arc::new(disk), &key(), Clock::at_unix_ms(0)).unwrap().0, log)
    }

    fn stage(vault: &Vault, index: u64, payload: &[u8]) {
        let mut part = vault.create(chunk(index), &meta(index, payload)).unwrap();
        part.append(payload).unwrap();
        drop(publish(vault.inner(), vec![sync(part).unwrap()]).remove(0).unwrap());
    }

    fn bytes(reader: &Reader) -> Vec<u8> {
        let mut out = vec![0; 100];
        let read = reader.read_at(0, &mut out).unwrap();
        out.truncate(read);
        out
    }

    fn files(root: &Path, dir: Dir) -> usize {
        std::fs::read_dir(root.join(dir.name())).unwrap().count()
    }

    #[test]
    fn a_file_is_used_again_once_its_old_name_is_gone_for_good() {
        let temp = tempfile::tempdir().unwrap();
        let (vault, log) = open(temp.path());
        stage(&vault, 1, b"a longer first one");
        vault.retire(chunk(1)).unwrap();
        vault.empty_retired();
        log.take();
        stage(&vault, 2, b"second");
        assert!(log.take().contains(&"create receiving".into()), "the first one's name may come back yet");
        vault.empty_retired();
        stage(&vault, 3, b"third");
        let done = log.take();
        assert!(!done.contains(&"create receiving".into()) && done[0] == "truncate receiving", "{done:?}");
        assert_eq!(bytes(&vault.read(chunk(3)).unwrap()), b"third", "nothing of the first one is behind it");
        assert!(vault.verify(chunk(2)).unwrap() && vault.verify(chunk(3)).unwrap());
        assert_eq!((files(temp.path(), Dir::Staged), files(temp.path(), Dir::Receiving)), (2, 0));
    }

    #[test]
    fn an_open_reader_keeps_its_bytes() {
        let temp = tempfile::tempdir().unwrap();
        let (vault, _) = open(temp.path());
        stage(&vault, 1, b"first");
        let reader = vault.read(chunk(1)).unwrap();
        vault.retire(chunk(1)).unwrap();
        for index in 2..6 {
            stage(&vault, index, b"other");
            vault.empty_retired();
        }
        assert_eq!(bytes(&reader), b"first");
        assert_eq!(files(temp.path(), Dir::Receiving), 0, "and its file is nobody's");
    }

    #[test]
    fn no_more_are_kept_than_the_bound_and_none_over_a_start() {
        let temp = tempfile::tempdir().unwrap();
        let (vault, _) = open(temp.path());
        for index in 1..=MAX_SPARES as u64 + 9 {
            stage(&vault, index, b"bytes");
        }
        for index in 1..=MAX_SPARES as u64 + 9 {
            vault.retire(chunk(index)).unwrap();
        }
        assert_eq!((files(temp.path(), Dir::Staged), files(temp.path(), Dir::Receiving)), (0, MAX_SPARES));
        drop(vault);
        let (vault, _) = open(temp.path());
        assert_eq!(files(temp.path(), Dir::Receiving), 0);
        for index in 1..=3 {
            stage(&vault, index, b"bytes");
            vault.retire(chunk(index)).unwrap();
            vault.empty_retired();
        }
        assert_eq!((vault.inner().spares.free(), files(temp.path(), Dir::Receiving)), (1, 2), "one was used again");
        vault.drop_spares().unwrap();
        assert_eq!(files(temp.path(), Dir::Receiving), 0);
        stage(&vault, 1, b"bytes");
        vault.retire(chunk(1)).unwrap();
        vault.drop_retired().unwrap();
        assert_eq!(files(temp.path(), Dir::Receiving), 0, "its bytes are gone");
    }
}
