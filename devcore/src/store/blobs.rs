//! Bytes on disk. A blob is written beside, synced, and put in place under a random name before its
//! metadata is inserted; a crash in between leaves a file that no row names, removed at the next start.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::BytesMut;

use crate::clock::random_id;

/// Bytes gathered before they are written.
const GATHER_BYTES: usize = 1024 * 1024;

/// The folder of blobs.
#[derive(Clone)]
pub(crate) struct Blobs {
    dir: Arc<Path>,
    staged_bytes: Arc<AtomicU64>,
    quota_bytes: u64,
}

/// The uploads on their way take more than they may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct QuotaExceeded;

impl Blobs {
    pub(crate) fn open(dir: &Path, quota_bytes: u64) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        Ok(Self { dir: dir.into(), staged_bytes: Arc::default(), quota_bytes })
    }

    /// Removes what no row names.
    pub(crate) fn sweep(&self, known: impl Fn(&str) -> bool) -> io::Result<usize> {
        let mut removed = 0;
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            if !entry.file_name().to_str().is_some_and(&known) {
                fs::remove_file(entry.path())?;
                removed += 1;
            }
        }
        Ok(removed)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// An upload that keeps its bytes (`keep`) or only counts them against the quota.
    pub(crate) fn stage(&self, keep: bool) -> Staged {
        Staged { blobs: self.clone(), counted: 0, keep, gathered: BytesMut::new(), file: None, name: random_id("b_") }
    }
}

/// An upload on its way. Dropped before [`Staged::put`], it leaves nothing.
pub(crate) struct Staged {
    blobs: Blobs,
    counted: u64,
    keep: bool,
    gathered: BytesMut,
    file: Option<File>,
    name: String,
}

impl Staged {
    /// Counts `length` bytes against the quota.
    pub(crate) fn reserve(&mut self, length: u64) -> Result<(), QuotaExceeded> {
        let before = self.blobs.staged_bytes.fetch_add(length, Ordering::AcqRel);
        self.counted += length;
        if before + length > self.blobs.quota_bytes { Err(QuotaExceeded) } else { Ok(()) }
    }

    /// Takes bytes that were reserved.
    pub(crate) async fn push(&mut self, piece: &[u8]) -> io::Result<()> {
        if !self.keep {
            return Ok(());
        }
        self.gathered.extend_from_slice(piece);
        if self.gathered.len() < GATHER_BYTES {
            return Ok(());
        }
        let (mut file, gathered, path) = (self.file.take(), std::mem::take(&mut self.gathered), self.beside());
        let written = blocking(move || {
            write(&mut file, &path, &gathered)?;
            Ok(file)
        });
        self.file = written.await?;
        Ok(())
    }

    /// Syncs the bytes and puts them in place. Returns the blob's name. Nothing is ever overwritten.
    pub(crate) async fn put(mut self) -> io::Result<String> {
        let (mut file, gathered) = (self.file.take(), std::mem::take(&mut self.gathered));
        let (beside, place, dir) = (self.beside(), self.blobs.path(&self.name), self.blobs.dir.clone());
        blocking(move || {
            write(&mut file, &beside, &gathered)?;
            if let Some(file) = &file {
                file.sync_all()?;
            }
            fs::hard_link(&beside, &place)?;
            fs::remove_file(&beside)?;
            File::open(&dir)?.sync_all()
        })
        .await?;
        Ok(std::mem::take(&mut self.name))
    }

    fn beside(&self) -> PathBuf {
        self.blobs.path(&format!("upload-{}", self.name))
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        self.blobs.staged_bytes.fetch_sub(self.counted, Ordering::AcqRel);
        if self.keep && !self.name.is_empty() {
            // Mostly there is no such file yet; what can't be removed now is swept at the next start.
            drop(fs::remove_file(self.beside()));
        }
    }
}

fn write(file: &mut Option<File>, path: &Path, bytes: &[u8]) -> io::Result<()> {
    if file.is_none() {
        *file = Some(File::options().write(true).create_new(true).open(path)?);
    }
    file.as_mut().map_or(Ok(()), |file| file.write_all(bytes))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn bytes_are_put_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(dir.path(), 10 * 1024 * 1024).unwrap();
        let bytes = vec![7; 3 * GATHER_BYTES + 5];
        let mut staged = blobs.stage(true);
        for piece in bytes.chunks(100_000) {
            staged.reserve(piece.len() as u64).unwrap();
            staged.push(piece).await.unwrap();
        }
        let name = staged.put().await.unwrap();
        assert_eq!(fs::read(blobs.path(&name)).unwrap(), bytes);

        let mut dropped = blobs.stage(true);
        dropped.push(&bytes).await.unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
        drop(dropped);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert_eq!(blobs.staged_bytes.load(Ordering::Acquire), 0);
        assert_eq!(blobs.sweep(|known| known != name).unwrap(), 1);
    }

    #[test]
    fn the_quota_counts_what_is_on_its_way() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(dir.path(), 10).unwrap();
        let (mut a, mut b) = (blobs.stage(false), blobs.stage(false));
        assert_eq!(a.reserve(6), Ok(()));
        assert_eq!(b.reserve(5), Err(QuotaExceeded));
        drop(b);
        let mut c = blobs.stage(false);
        assert_eq!(c.reserve(4), Ok(()));
    }
}
