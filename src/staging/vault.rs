//! Chunks on disk by their reference: begin, go on, read, remove. [`super::layout`] states what
//! the stored bytes keep true.
//!
//! Every call blocks on the disk and is safe from many threads. No lock is held during I/O but
//! the one of a single partial while that partial is written.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aws_lc_rs::digest::{Context, SHA256};

use super::disk::{BootId, Dir, Disk, File};
use super::layout::{self, Kind};
use super::meta::{self, Meta, StreamCapability};
use super::part::{Part, Slot, partial_name};
use super::recover::{self, Recovered};
use super::seal::{Name, SealKey, Sealer};
use super::spares::Spares;
use crate::clock::Clock;
use crate::proto::{ChunkRef, StreamId};

/// How much is read at a time to verify a chunk.
const VERIFY_BYTES: usize = 64 * 1024;

/// The staging directory at work. Cheap to clone.
#[derive(Clone)]
pub struct Vault(Arc<Inner>);

pub(super) struct Inner {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) sealer: Sealer,
    pub(super) boot: Option<BootId>,
    /// Partials below `receiving/`; as many as there are files.
    partials: Mutex<HashMap<Name, Arc<Slot>>>,
    /// Readable chunks below `staged/` and those on their way there; as many as there are files.
    staged: Mutex<HashSet<Name>>,
    /// Generations and holders, each used once.
    numbers: AtomicU64,
    pub(super) spares: Spares,
    /// How often each staged chunk is open to be read.
    readers: Mutex<HashMap<Name, usize>>,
}

impl Inner {
    pub(super) fn next_number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn partials(&self) -> MutexGuard<'_, HashMap<Name, Arc<Slot>>> {
        self.partials.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn staged(&self) -> MutexGuard<'_, HashSet<Name>> {
        self.staged.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn readers(&self) -> MutexGuard<'_, HashMap<Name, usize>> {
        self.readers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a partial off the books, unless another one took its place.
    pub(super) fn forget_partial(&self, name: Name, slot: &Arc<Slot>) {
        let mut partials = self.partials();
        if partials.get(&name).is_some_and(|current| Arc::ptr_eq(current, slot)) {
            partials.remove(&name);
        }
    }
}

impl Vault {
    /// Recovers what is on `disk`: see [`super::recover`]. What is reported as staged is durable
    /// when this returns.
    ///
    /// # Errors
    /// From the disk.
    pub fn open(disk: Arc<dyn Disk>, key: &SealKey, clock: Clock) -> io::Result<(Self, Recovered)> {
        let sealer = Sealer::new(key, clock)?;
        let boot = disk.boot_id();
        if boot.is_none() {
            tracing::warn!(
                component = "staging",
                "this machine tells no boot id: what came of unfinished uploads is removed at each start"
            );
        }
        let scan = recover::scan(&*disk, &sealer, boot)?;
        let inner = Inner {
            disk,
            sealer,
            boot,
            partials: Mutex::new(scan.partials),
            staged: Mutex::new(scan.staged),
            numbers: AtomicU64::new(scan.next_number),
            spares: Spares::default(),
            readers: Mutex::default(),
        };
        Ok((Self(Arc::new(inner)), scan.recovered))
    }

    pub(super) fn inner(&self) -> &Arc<Inner> {
        &self.0
    }

    /// Begins a chunk. A partial of it that is here already is given up: its part is superseded
    /// and its bytes are removed.
    ///
    /// # Errors
    /// From the disk; `InvalidInput` if `meta` is of another chunk or longer than
    /// [`layout::MAX_SEALED_BYTES`].
    pub fn create(&self, chunk: ChunkRef, meta: &Meta) -> io::Result<Part> {
        if meta.offer.chunk_ref() != chunk {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let name = self.0.sealer.chunk_name(chunk);
        let part = Part::begin(Arc::clone(&self.0), name, meta)?;
        let before = self.0.partials().insert(name, Arc::clone(&part.slot));
        if let Some(before) = before {
            before.close();
            // If this fails the file stays until the next start, which keeps one of the two.
            let _ = self.0.disk.remove(Dir::Receiving, &before.file_name(name));
        }
        Ok(part)
    }

    /// Goes on with a partial: hashes what is there. A part that is still open on it is
    /// superseded.
    ///
    /// # Errors
    /// From the disk; `NotFound` if there is no partial; `InvalidData` if it can't be gone on
    /// with, so that the chunk must be begun again.
    pub fn reopen(&self, chunk: ChunkRef) -> io::Result<Part> {
        let name = self.0.sealer.chunk_name(chunk);
        let slot = self.0.partials().get(&name).cloned().ok_or(io::ErrorKind::NotFound)?;
        Part::resume(Arc::clone(&self.0), name, slot)
    }

    /// What is sealed beside a partial.
    ///
    /// # Errors
    /// From the disk; `NotFound`; `InvalidData`.
    pub fn partial_meta(&self, chunk: ChunkRef) -> io::Result<Meta> {
        let name = self.0.sealer.chunk_name(chunk);
        let slot = self.0.partials().get(&name).cloned().ok_or(io::ErrorKind::NotFound)?;
        let file = self.0.disk.open(Dir::Receiving, &slot.file_name(name), false)?;
        let header = layout::read_header(&*file, &self.0.sealer, Kind::Chunk, name)?;
        let (meta, _) = meta::decode(&header.plain).ok_or(io::ErrorKind::InvalidData)?;
        Ok(meta)
    }

    /// Removes a partial, if there is one. A part that is still open on it is superseded.
    ///
    /// # Errors
    /// From the disk; the file then stays until the next start.
    pub fn remove_partial(&self, chunk: ChunkRef) -> io::Result<()> {
        let name = self.0.sealer.chunk_name(chunk);
        let Some(slot) = self.0.partials().remove(&name) else { return Ok(()) };
        slot.close();
        absent_is_fine(self.0.disk.remove(Dir::Receiving, &slot.file_name(name)))
    }

    /// Opens a staged chunk's bytes. They stay readable after [`Vault::remove`].
    ///
    /// # Errors
    /// From the disk; `NotFound`; `InvalidData`.
    pub fn read(&self, chunk: ChunkRef) -> io::Result<Reader> {
        // Counted before it is opened: see `Vault::retire`.
        let reading = Reading::begin(&self.0, self.0.sealer.chunk_name(chunk));
        let file = self.open_staged(chunk)?.0;
        let payload_at = layout::payload_at(&*file)?;
        let len = file.size()?.checked_sub(payload_at).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Reader { file, payload_at, len, _reading: reading })
    }

    /// What is sealed beside a staged chunk.
    ///
    /// # Errors
    /// From the disk; `NotFound`; `InvalidData`.
    pub fn meta(&self, chunk: ChunkRef) -> io::Result<Meta> {
        let (file, name) = self.open_staged(chunk)?;
        let header = layout::read_header(&*file, &self.0.sealer, Kind::Chunk, name)?;
        let (meta, _) = meta::decode(&header.plain).ok_or(io::ErrorKind::InvalidData)?;
        Ok(meta)
    }

    /// Whether a staged chunk still has the length and SHA-256 it was accepted with. Recovery
    /// does not read payloads: ask before a recovered chunk is first sent.
    ///
    /// # Errors
    /// From the disk; `NotFound`. A header that does not open is `Ok(false)`.
    pub fn verify(&self, chunk: ChunkRef) -> io::Result<bool> {
        let meta = match self.meta(chunk) {
            Err(e) if e.kind() == io::ErrorKind::InvalidData => return Ok(false),
            other => other?,
        };
        let reader = self.read(chunk)?;
        let mut hash = Context::new(&SHA256);
        let mut buf = vec![0; VERIFY_BYTES];
        let mut at = 0;
        loop {
            let read = reader.read_at(at, &mut buf)?;
            if read == 0 {
                break;
            }
            hash.update(&buf[..read]);
            at += read as u64;
        }
        Ok(at == meta.offer.length && hash.finish().as_ref() == meta.offer.sha256.0)
    }

    /// Removes a staged chunk after its ending. Not synced: a removed chunk that a power cut
    /// brings back is only forwarded once more.
    ///
    /// # Errors
    /// From the disk. A chunk that is not there is fine.
    pub fn remove(&self, chunk: ChunkRef) -> io::Result<()> {
        let name = self.0.sealer.chunk_name(chunk);
        absent_is_fine(self.0.disk.remove(Dir::Staged, &name.to_hex()))?;
        self.0.staged().remove(&name);
        Ok(())
    }

    /// Puts a staged chunk aside whose bytes are no longer those of its digest. Not synced: one that a
    /// power cut brings back is found damaged again.
    ///
    /// # Errors
    /// From the disk.
    pub fn set_aside(&self, chunk: ChunkRef) -> io::Result<()> {
        let name = self.0.sealer.chunk_name(chunk);
        let text = name.to_hex();
        self.0.disk.rename((Dir::Staged, &text), (Dir::Damaged, &text))?;
        self.0.staged().remove(&name);
        Ok(())
    }

    /// Removes what was put aside.
    ///
    /// # Errors
    /// From the disk. A chunk that is not there is fine.
    pub fn remove_damaged(&self, chunk: ChunkRef) -> io::Result<()> {
        let name = self.0.sealer.chunk_name(chunk);
        absent_is_fine(self.0.disk.remove(Dir::Damaged, &name.to_hex()))
    }

    /// Keeps a capability of a stream, replacing the one before in its slot in one step; durable
    /// when this returns. The caller orders the calls for one stream.
    ///
    /// # Errors
    /// From the disk; the one before is kept, or both are gone on with: either may be recovered.
    pub fn put_stream_capability(&self, record: &StreamCapability) -> io::Result<()> {
        let name = self.0.sealer.stream_name(&record.stream, record.slot);
        let header = layout::write_header(&self.0.sealer, Kind::Stream, name, serde_json::to_vec(record)?)?;
        let temporary = partial_name(name, self.0.next_number());
        let file = self.0.disk.create(Dir::Streams, &temporary)?;
        let kept = file
            .write_at(0, &header)
            .and_then(|()| file.sync_data())
            .and_then(|()| self.0.disk.rename((Dir::Streams, &temporary), (Dir::Streams, &name.to_hex())));
        if kept.is_err() {
            let _ = self.0.disk.remove(Dir::Streams, &temporary);
        }
        kept?;
        self.0.disk.sync_dir(Dir::Streams)
    }

    /// Forgets a capability of a stream. Not synced: one that comes back has run out or is removed
    /// again.
    ///
    /// # Errors
    /// From the disk. A stream without one is fine.
    pub fn remove_stream_capability(&self, stream: &StreamId, slot: u8) -> io::Result<()> {
        let name = self.0.sealer.stream_name(stream, slot);
        absent_is_fine(self.0.disk.remove(Dir::Streams, &name.to_hex()))
    }

    /// Bytes the file system can still take.
    ///
    /// # Errors
    /// From the disk.
    pub fn free_bytes(&self) -> io::Result<u64> {
        self.0.disk.free_bytes()
    }

    fn open_staged(&self, chunk: ChunkRef) -> io::Result<(Box<dyn File>, Name)> {
        let name = self.0.sealer.chunk_name(chunk);
        Ok((self.0.disk.open(Dir::Staged, &name.to_hex(), false)?, name))
    }
}

impl std::fmt::Debug for Vault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Vault(…)")
    }
}

pub(super) fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// A staged chunk's bytes.
pub struct Reader {
    file: Box<dyn File>,
    payload_at: u64,
    len: u64,
    _reading: Reading,
}

/// Counts a reader while it is there.
struct Reading {
    inner: Arc<Inner>,
    name: Name,
}

impl Reading {
    fn begin(inner: &Arc<Inner>, name: Name) -> Self {
        *inner.readers().entry(name).or_insert(0) += 1;
        Self { inner: Arc::clone(inner), name }
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        let mut readers = self.inner.readers();
        if let Some(count) = readers.get_mut(&self.name) {
            *count -= 1;
            if *count == 0 {
                readers.remove(&self.name);
            }
        }
    }
}

impl Reader {
    /// Bytes of the chunk.
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.len
    }

    /// It has no bytes; never so for a chunk that was committed.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Reads into `buf` from `offset` of the chunk's bytes; how many, 0 at their end.
    ///
    /// # Errors
    /// From the disk.
    pub fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        if offset >= self.len {
            return Ok(0);
        }
        self.file.read_at(self.payload_at + offset, buf)
    }
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader").field("len", &self.len).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::staging::committer::{CommitError, publish, sync};
    use crate::staging::fixture::{chunk, disk_at, grant, key, meta, sha256};
    use crate::staging::part::Superseded;
    use crate::staging::recover::Found;

    fn open(root: &Path) -> (Vault, Recovered) {
        Vault::open(Arc::new(disk_at(root)), &key(), Clock::at_unix_ms(0)).unwrap()
    }

    fn write(vault: &Vault, index: u64, payload: &[u8]) -> Part {
        let mut part = vault.create(chunk(index), &meta(index, payload)).unwrap();
        part.append(payload).unwrap();
        part
    }

    fn stage(vault: &Vault, index: u64, payload: &[u8]) {
        let synced = sync(write(vault, index, payload)).unwrap();
        assert_eq!(publish(vault.inner(), vec![synced]).remove(0).unwrap().chunk(), chunk(index));
    }

    fn bytes(vault: &Vault, index: u64) -> Vec<u8> {
        let reader = vault.read(chunk(index)).unwrap();
        let mut out = vec![0; usize::try_from(reader.len()).unwrap() + 1];
        let n = reader.read_at(0, &mut out).unwrap();
        out.truncate(n);
        out
    }

    fn files(root: &Path, dir: Dir) -> Vec<String> {
        let entries = fs::read_dir(root.join(dir.name())).unwrap();
        entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn a_chunk_comes_back_after_a_restart() {
        let temp = tempfile::tempdir().unwrap();
        let (vault, found) = open(temp.path());
        assert!(found.staged.is_empty() && found.partial.is_empty());
        stage(&vault, 1, b"first");
        let big = vec![5; 700_000];
        stage(&vault, 2, &big);
        drop(vault);
        let (vault, mut found) = open(temp.path());
        found.staged.sort_by_key(|(meta, _)| meta.offer.index);
        assert!(found.staged[0].0 == meta(1, b"first") && found.staged[1].0 == meta(2, &big));
        assert_eq!(found.staged[0].1, Found { len: 5, footprint: 4096 });
        assert_eq!((bytes(&vault, 1), bytes(&vault, 2)), (b"first".to_vec(), big));
        assert!(vault.verify(chunk(1)).unwrap() && vault.meta(chunk(1)).unwrap() == meta(1, b"first"));
        let reader = vault.read(chunk(1)).unwrap();
        let mut buf = [0; 8];
        assert_eq!((reader.read_at(3, &mut buf).unwrap(), &buf[..2]), (2, &b"st"[..]));
        vault.remove(chunk(1)).unwrap();
        vault.remove(chunk(1)).unwrap();
        assert_eq!(reader.read_at(0, &mut buf).unwrap(), 5, "an open reader outlives the removal");
        assert_eq!(vault.read(chunk(1)).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn nothing_on_disk_says_who_or_what() {
        let temp = tempfile::tempdir().unwrap();
        let (vault, _) = open(temp.path());
        stage(&vault, 1, b"x");
        write(&vault, 2, b"x");
        vault.put_stream_capability(&of_stream("stream-1", "token-canary")).unwrap();
        for dir in Dir::ALL {
            for name in files(temp.path(), dir) {
                let content = fs::read(temp.path().join(dir.name()).join(&name)).unwrap();
                assert!(!name.contains(&chunk(1).to_string()) && !name.contains(&chunk(2).to_string()));
                for secret in ["canary", "stream-1", "incident-1", "group-1", "session-1", "audio"] {
                    assert!(!content.windows(secret.len()).any(|w| w == secret.as_bytes()), "{secret} in {dir:?}");
                }
            }
        }
    }

    #[test]
    fn a_partial_is_gone_on_with_in_the_same_boot() {
        let temp = tempfile::tempdir().unwrap();
        let (vault, _) = open(temp.path());
        let mut part = vault.create(chunk(1), &meta(1, b"abcdef")).unwrap();
        part.append(b"ab").unwrap();
        part.append(b"cd").unwrap();
        drop((part, vault));
        let (vault, found) = open(temp.path());
        assert_eq!((found.staged.len(), found.partial.len(), found.partial[0].1.len), (0, 1, 4));
        let mut part = vault.reopen(chunk(1)).unwrap();
        assert_eq!((part.len(), part.digest()), (4, sha256(b"abcd")));
        part.append(b"ef").unwrap();
        assert_eq!(part.append(b"g").unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert!(publish(vault.inner(), vec![sync(part).unwrap()]).remove(0).is_ok());
        assert_eq!(bytes(&vault, 1), b"abcdef");
        assert_eq!(vault.reopen(chunk(1)).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(files(temp.path(), Dir::Receiving).is_empty());
    }

    #[test]
    fn of_two_attempts_only_the_later_one_writes() {
        let temp = tempfile::tempdir().unwrap();
        let (vault, _) = open(temp.path());
        let mut first = vault.create(chunk(1), &meta(1, b"abcdef")).unwrap();
        first.append(b"ab").unwrap();
        let mut second = vault.reopen(chunk(1)).unwrap();
        assert!(Superseded::is(&first.append(b"XX").unwrap_err()));
        second.append(b"cdef").unwrap();
        let mut other = vault.create(chunk(1), &meta(1, b"other")).unwrap();
        assert!(matches!(sync(second), Err(CommitError::Superseded)));
        assert_eq!(files(temp.path(), Dir::Receiving).len(), 1, "the replaced bytes are gone");
        other.append(b"oth").unwrap();
        assert!(matches!(sync(other), Err(CommitError::NotWhole)));
        let mut other = vault.reopen(chunk(1)).unwrap();
        other.append(b"ER").unwrap();
        assert!(!other.is_whole());
        vault.remove_partial(chunk(1)).unwrap();
        vault.remove_partial(chunk(1)).unwrap();
        assert!(files(temp.path(), Dir::Receiving).is_empty());
    }

    #[test]
    fn staged_bytes_are_never_replaced() {
        let temp = tempfile::tempdir().unwrap();
        let (vault, _) = open(temp.path());
        stage(&vault, 1, b"first");
        assert!(matches!(sync(write(&vault, 1, b"other")), Err(CommitError::AlreadyStaged)));
        drop(vault);
        let (vault, _) = open(temp.path());
        assert!(matches!(sync(write(&vault, 1, b"other")), Err(CommitError::AlreadyStaged)));
        assert_eq!(bytes(&vault, 1), b"first");
        assert!(files(temp.path(), Dir::Receiving).is_empty());
        vault.remove(chunk(1)).unwrap();
        stage(&vault, 1, b"other");
    }

    #[test]
    fn damage_is_told_and_left_in_place() {
        let temp = tempfile::tempdir().unwrap();
        let (vault, _) = open(temp.path());
        for index in 1..=4 {
            stage(&vault, index, b"payload");
        }
        drop(vault);
        let staged = temp.path().join("staged");
        let path = |index| staged.join(open_name(index));
        let damage = |index, change: fn(&mut Vec<u8>)| {
            let mut content = fs::read(path(index)).unwrap();
            change(&mut content);
            fs::write(path(index), content).unwrap();
        };
        damage(1, |content| *content.last_mut().unwrap() ^= 1);
        damage(2, |content| content[30] ^= 1);
        damage(3, |content| content.truncate(content.len() - 1));
        fs::copy(path(4), staged.join("0".repeat(32))).unwrap();
        fs::write(staged.join("notes.txt"), b"x").unwrap();
        let (vault, found) = open(temp.path());
        assert_eq!((found.staged.len(), found.unreadable, found.removed), (2, 4, 0));
        assert!(!vault.verify(chunk(1)).unwrap() && !vault.verify(chunk(2)).unwrap());
        assert!(!vault.verify(chunk(3)).unwrap() && vault.verify(chunk(4)).unwrap());
        assert_eq!(fs::read_dir(&staged).unwrap().count(), 6);
        stage(&vault, 2, b"payload");
        assert!(vault.verify(chunk(2)).unwrap(), "what can't be read may be brought again");
    }

    fn open_name(index: u64) -> String {
        Sealer::new(&key(), Clock::at_unix_ms(0)).unwrap().chunk_name(chunk(index)).to_hex()
    }

    #[test]
    fn leftovers_are_removed_at_start() {
        let temp = tempfile::tempdir().unwrap();
        let (vault, _) = open(temp.path());
        stage(&vault, 1, b"payload");
        drop(vault.create(chunk(2), &meta(2, b"never begun")).unwrap());
        write(&vault, 3, b"payload");
        drop(vault);
        let receiving = temp.path().join("receiving");
        let partial = files(temp.path(), Dir::Receiving);
        let kept = partial.iter().find(|name| name.starts_with(&open_name(3))).unwrap();
        fs::copy(receiving.join(kept), receiving.join(format!("{}.0", open_name(3)))).unwrap();
        fs::copy(receiving.join(kept), receiving.join(format!("{}.1", open_name(1)))).unwrap();
        fs::write(temp.path().join("streams").join(format!("{}.9", "0".repeat(32))), b"half").unwrap();
        let (vault, found) = open(temp.path());
        assert_eq!((found.staged.len(), found.partial.len(), found.removed, found.unreadable), (1, 1, 4, 0));
        assert!(files(temp.path(), Dir::Receiving) == std::slice::from_ref(kept));
        drop(vault);
        assert_eq!(open(temp.path()).1.removed, 0);
    }

    #[test]
    fn the_newest_capability_of_a_stream_is_kept() {
        let temp = tempfile::tempdir().unwrap();
        let (vault, _) = open(temp.path());
        for token in ["old", "new"] {
            vault.put_stream_capability(&of_stream("a", token)).unwrap();
        }
        let beside = StreamCapability { slot: 3, sigs: [(7, "sig".into())].into(), ..of_stream("a", "beside") };
        vault.put_stream_capability(&beside).unwrap();
        vault.put_stream_capability(&of_stream("b", "other")).unwrap();
        vault.remove_stream_capability(&StreamId::new("b").unwrap(), 0).unwrap();
        drop(vault);
        let mut found = open(temp.path()).1.streams;
        found.sort_by_key(|found| found.slot);
        assert!(found == [of_stream("a", "new"), beside]);
    }

    fn of_stream(stream: &str, token: &str) -> StreamCapability {
        StreamCapability::new(StreamId::new(stream).unwrap(), token.into(), grant())
    }

    #[test]
    fn a_chunk_has_one_reference() {
        let temp = tempfile::tempdir().unwrap();
        let refused = open(temp.path()).0.create(chunk(2), &meta(1, b"x"));
        assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
