//! The disk as an input: the few operations staging needs, so that a test can bring a disk that
//! loses, reorders and tears what was not synced.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Pieces handed to the kernel in one call; it takes at most 1,024.
const MAX_VECTOR: usize = 256;

/// The directories of the staging directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dir {
    /// Chunks whose bytes are coming.
    Receiving,
    /// Whole chunks.
    Staged,
    /// The capabilities of each stream.
    Streams,
    /// Chunks whose bytes are no longer those of their digest.
    Damaged,
}

impl Dir {
    /// Every directory.
    pub const ALL: [Self; 4] = [Self::Receiving, Self::Staged, Self::Streams, Self::Damaged];

    /// Its name below the staging directory.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Receiving => "receiving",
            Self::Staged => "staged",
            Self::Streams => "streams",
            Self::Damaged => "damaged",
        }
    }
}

/// Which boot of the machine this is. Bytes of the page cache outlive a process, not a boot.
pub type BootId = [u8; 16];

/// A staging directory. Errors are the operating system's and name no path.
pub trait Disk: Send + Sync + 'static {
    /// Makes a new, empty file; `AlreadyExists` if the name is taken.
    ///
    /// # Errors
    /// From the disk.
    fn create(&self, dir: Dir, name: &str) -> io::Result<Box<dyn File>>;

    /// Opens a file to read and, with `write`, to write.
    ///
    /// # Errors
    /// From the disk; `NotFound`.
    fn open(&self, dir: Dir, name: &str, write: bool) -> io::Result<Box<dyn File>>;

    /// Renames a file, over the one that has the new name if there is one. Durable after
    /// [`Disk::sync_dir`] of the target.
    ///
    /// # Errors
    /// From the disk; `NotFound`.
    fn rename(&self, from: (Dir, &str), to: (Dir, &str)) -> io::Result<()>;

    /// Removes a file's name. Durable after [`Disk::sync_dir`].
    ///
    /// # Errors
    /// From the disk; `NotFound`.
    fn remove(&self, dir: Dir, name: &str) -> io::Result<()>;

    /// Makes every earlier change of the directory's names durable.
    ///
    /// # Errors
    /// From the disk; what became of the changes is unknown then.
    fn sync_dir(&self, dir: Dir) -> io::Result<()>;

    /// The names in a directory, in any order.
    ///
    /// # Errors
    /// From the disk.
    fn list(&self, dir: Dir) -> io::Result<Vec<String>>;

    /// Bytes that may still be written, as the file system says.
    ///
    /// # Errors
    /// From the disk.
    fn free_bytes(&self) -> io::Result<u64>;

    /// Which boot this is; `None` where the system does not say.
    fn boot_id(&self) -> Option<BootId>;
}

/// An open file; it stays readable and writable after its name is gone.
pub trait File: Send + Sync {
    /// Writes all of `bytes` at `offset`. After an error any part of them may be there.
    ///
    /// # Errors
    /// From the disk.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Writes all of `pieces`, one behind the other, from `offset` on. After an error any part of
    /// them may be there.
    ///
    /// # Errors
    /// From the disk.
    fn write_pieces_at(&self, mut offset: u64, pieces: &[&[u8]]) -> io::Result<()> {
        for piece in pieces {
            self.write_at(offset, piece)?;
            offset += piece.len() as u64;
        }
        Ok(())
    }

    /// Reads into `buf` from `offset`; how many bytes, 0 at the end of the file.
    ///
    /// # Errors
    /// From the disk.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize>;

    /// Makes it empty. Durable after [`File::sync_data`].
    ///
    /// # Errors
    /// From the disk.
    fn truncate(&self) -> io::Result<()>;

    /// Its length, in bytes.
    ///
    /// # Errors
    /// From the disk.
    fn size(&self) -> io::Result<u64>;

    /// Makes every earlier write and the length durable.
    ///
    /// # Errors
    /// From the disk. The file may not be synced again then: a kernel reports a lost write once
    /// and calls the next sync a success.
    fn sync_data(&self) -> io::Result<()>;
}

/// Fills `buf` from `offset`.
///
/// # Errors
/// From the disk; `UnexpectedEof` if the file ends before.
pub fn read_exact_at(file: &dyn File, mut offset: u64, mut buf: &mut [u8]) -> io::Result<()> {
    while !buf.is_empty() {
        let read = file.read_at(offset, buf)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        buf = &mut buf[read..];
        offset += read as u64;
    }
    Ok(())
}

/// The staging directory on a real file system.
#[derive(Debug)]
pub struct StdDisk {
    root: PathBuf,
    /// Open, in the order of [`Dir::ALL`]: a directory is synced through its descriptor.
    dirs: [fs::File; 4],
    boot: Option<BootId>,
    /// Held locked for life: two relays on one directory would remove each other's chunks.
    _lock: fs::File,
}

impl StdDisk {
    /// Opens `root`, making it (0700) and its directories if they are missing.
    ///
    /// # Errors
    /// From the disk; `WouldBlock` if another process uses this directory.
    pub fn open(root: &Path) -> io::Result<Self> {
        let existed = root.exists();
        make_dir(root)?;
        let lock = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(root.join("lock"))?;
        lock.try_lock().map_err(io::Error::from)?;
        let mut dirs = Vec::with_capacity(Dir::ALL.len());
        for dir in Dir::ALL {
            let path = root.join(dir.name());
            make_dir(&path)?;
            dirs.push(fs::File::open(path)?);
        }
        fs::File::open(root)?.sync_all()?;
        if let (false, Some(parent)) = (existed, root.canonicalize()?.parent()) {
            fs::File::open(parent)?.sync_all()?;
        }
        let dirs = dirs.try_into().map_err(|_| io::Error::other("directories"))?;
        Ok(Self { root: root.to_owned(), dirs, boot: boot_id(), _lock: lock })
    }

    fn path(&self, dir: Dir, name: &str) -> PathBuf {
        self.root.join(dir.name()).join(name)
    }

    const fn dir(&self, dir: Dir) -> &fs::File {
        let [receiving, staged, streams, damaged] = &self.dirs;
        match dir {
            Dir::Receiving => receiving,
            Dir::Staged => staged,
            Dir::Streams => streams,
            Dir::Damaged => damaged,
        }
    }
}

/// `AlreadyExists` is fine: the directory is there.
fn make_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Linux's random id of this boot.
fn boot_id() -> Option<BootId> {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let hex: String = text.trim().chars().filter(|c| *c != '-').collect();
    u128::from_str_radix(&hex, 16).ok().filter(|id| *id != 0).map(u128::to_be_bytes)
}

impl Disk for StdDisk {
    fn create(&self, dir: Dir, name: &str) -> io::Result<Box<dyn File>> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(0o600);
        Ok(Box::new(StdFile(options.open(self.path(dir, name))?)))
    }

    fn open(&self, dir: Dir, name: &str, write: bool) -> io::Result<Box<dyn File>> {
        let file = OpenOptions::new().read(true).write(write).open(self.path(dir, name))?;
        Ok(Box::new(StdFile(file)))
    }

    fn rename(&self, from: (Dir, &str), to: (Dir, &str)) -> io::Result<()> {
        fs::rename(self.path(from.0, from.1), self.path(to.0, to.1))
    }

    fn remove(&self, dir: Dir, name: &str) -> io::Result<()> {
        fs::remove_file(self.path(dir, name))
    }

    fn sync_dir(&self, dir: Dir) -> io::Result<()> {
        self.dir(dir).sync_all()
    }

    fn list(&self, dir: Dir) -> io::Result<Vec<String>> {
        // A name that is no text is none of ours; its lossy form is no name of ours either.
        let name = |entry: io::Result<fs::DirEntry>| Ok(entry?.file_name().to_string_lossy().into_owned());
        fs::read_dir(self.root.join(dir.name()))?.map(name).collect()
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let stat = nix::sys::statvfs::fstatvfs(self.dir(Dir::Staged))?;
        Ok(stat.blocks_available().saturating_mul(stat.fragment_size()))
    }

    fn boot_id(&self) -> Option<BootId> {
        self.boot
    }
}

struct StdFile(fs::File);

impl File for StdFile {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn write_pieces_at(&self, mut offset: u64, mut pieces: &[&[u8]]) -> io::Result<()> {
        while !pieces.is_empty() {
            let some: Vec<_> = pieces.iter().take(MAX_VECTOR).map(|piece| io::IoSlice::new(piece)).collect();
            let at = i64::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
            let mut written = match nix::sys::uio::pwritev(&self.0, &some, at) {
                Err(nix::errno::Errno::EINTR) => 0,
                written => written?,
            };
            offset += written as u64;
            while let Some((first, rest)) = pieces.split_first().filter(|(first, _)| written >= first.len()) {
                written -= first.len();
                pieces = rest;
            }
            if let Some((first, rest)) = pieces.split_first().filter(|_| written > 0) {
                // The disk took a part of this one.
                let missing = &first[written..];
                self.write_at(offset, missing)?;
                offset += missing.len() as u64;
                pieces = rest;
            }
        }
        Ok(())
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.0.read_at(buf, offset) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                other => return other,
            }
        }
    }

    fn truncate(&self) -> io::Result<()> {
        self.0.set_len(0)
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn what_staging_makes_is_its_owners_alone() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().join("a/b");
        let disk = StdDisk::open(&root).unwrap();
        disk.create(Dir::Staged, "x").unwrap().write_at(0, b"bytes").unwrap();
        assert_eq!(mode(&root), 0o700);
        assert_eq!(mode(&root.join("staged")), 0o700);
        assert_eq!(mode(&root.join("staged/x")), 0o600);
    }

    #[test]
    fn many_pieces_are_written_one_behind_the_other() {
        let temp = tempfile::tempdir().unwrap();
        let disk = StdDisk::open(temp.path()).unwrap();
        let file = disk.create(Dir::Receiving, "x").unwrap();
        file.write_at(0, b"head").unwrap();
        let pieces: Vec<Vec<u8>> = (0..3 * MAX_VECTOR).map(|n| vec![n as u8; n % 5]).collect();
        file.write_pieces_at(4, &pieces.iter().map(|piece| &piece[..]).collect::<Vec<_>>()).unwrap();
        let all = [b"head".to_vec(), pieces.concat()].concat();
        let mut read = vec![0; all.len()];
        read_exact_at(&*file, 0, &mut read).unwrap();
        assert_eq!((file.size().unwrap(), read), (all.len() as u64, all));
    }

    #[test]
    fn one_directory_serves_one_relay() {
        let temp = tempfile::tempdir().unwrap();
        let first = StdDisk::open(temp.path()).unwrap();
        assert_eq!(StdDisk::open(temp.path()).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(first);
        drop(crate::staging::fixture::disk_at(temp.path()));
    }

    #[test]
    fn the_operations_do_what_they_say() {
        let temp = tempfile::tempdir().unwrap();
        let disk = StdDisk::open(temp.path()).unwrap();
        let file = disk.create(Dir::Receiving, "x").unwrap();
        file.write_at(3, b"abc").unwrap();
        file.sync_data().unwrap();
        assert_eq!(disk.create(Dir::Receiving, "x").err().unwrap().kind(), io::ErrorKind::AlreadyExists);
        disk.rename((Dir::Receiving, "x"), (Dir::Staged, "y")).unwrap();
        disk.sync_dir(Dir::Staged).unwrap();
        assert_eq!(disk.list(Dir::Staged).unwrap(), ["y"]);
        assert!(disk.list(Dir::Receiving).unwrap().is_empty());
        disk.remove(Dir::Staged, "y").unwrap();
        assert_eq!(disk.open(Dir::Staged, "y", false).err().unwrap().kind(), io::ErrorKind::NotFound);
        let mut buf = [1; 6];
        read_exact_at(&*file, 0, &mut buf).unwrap();
        assert_eq!((&buf, file.size().unwrap()), (b"\0\0\0abc", 6));
        assert_eq!(read_exact_at(&*file, 1, &mut buf).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert!(disk.free_bytes().unwrap() > 0);
        assert_eq!(disk.boot_id(), StdDisk::open(&temp.path().join("other")).unwrap().boot_id());
    }
}
