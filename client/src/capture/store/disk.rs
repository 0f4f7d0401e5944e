//! The directory of a queue, as far as the queue needs one: real, or in memory.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

/// What a queue does to its directory. Names are flat.
pub(crate) trait Disk: Send {
    /// Every name.
    fn list(&mut self) -> io::Result<Vec<String>>;
    /// A whole file.
    fn read(&mut self, name: &str) -> io::Result<Vec<u8>>;
    /// A new file; its bytes are synced, its name is not.
    fn create(&mut self, name: &str, bytes: &[u8]) -> io::Result<()>;
    /// Adds to a file, and syncs its bytes if asked.
    fn append(&mut self, name: &str, bytes: &[u8], sync: bool) -> io::Result<()>;
    /// Gives a file the name of another, in one step.
    fn rename(&mut self, from: &str, to: &str) -> io::Result<()>;
    /// Takes a file away.
    fn remove(&mut self, name: &str) -> io::Result<()>;
    /// Syncs every name that came, changed or went.
    fn sync_names(&mut self) -> io::Result<()>;
    /// Bytes to hold for when it is full; none where it can't be.
    fn held_room(&self) -> usize {
        0
    }
}

/// Room that a queue holds on its disk: an envelope of some seconds of picture, or the queue's file
/// with some thousand chunks.
const HELD_ROOM: usize = 2 << 20;

/// A directory, held by one process at a time.
pub(crate) struct Directory {
    path: PathBuf,
    /// The file that is appended to.
    open: Option<(String, File)>,
    /// Locked as long as it is open.
    _lock: File,
}

impl Directory {
    /// Makes the directory if need be, and takes it.
    ///
    /// # Errors
    /// `WouldBlock` if another process has it.
    pub(crate) fn take(path: &Path, lock: &str) -> io::Result<Self> {
        use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(false).mode(0o600).open(path.join(lock))?;
        file.try_lock().map_err(io::Error::from)?;
        Ok(Self { path: path.into(), open: None, _lock: file })
    }

    fn forget(&mut self, name: &str) {
        self.open.take_if(|(open, _)| open == name);
    }
}

impl Disk for Directory {
    fn list(&mut self) -> io::Result<Vec<String>> {
        let name = |entry: io::Result<std::fs::DirEntry>| entry.map(|entry| entry.file_name().into_string().ok());
        std::fs::read_dir(&self.path)?.filter_map(|entry| name(entry).transpose()).collect()
    }

    fn read(&mut self, name: &str) -> io::Result<Vec<u8>> {
        std::fs::read(self.path.join(name))
    }

    fn create(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        use std::os::unix::fs::OpenOptionsExt as _;
        self.forget(name);
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create_new(true).mode(0o600).open(self.path.join(name))?;
        let written = file.write_all(bytes).and_then(|()| file.sync_all());
        if written.is_err() {
            // Half a file only takes room.
            let _ = std::fs::remove_file(self.path.join(name));
        }
        written
    }

    fn append(&mut self, name: &str, bytes: &[u8], sync: bool) -> io::Result<()> {
        let file = match self.open.take() {
            Some((open, file)) if open == name => file,
            _ => OpenOptions::new().append(true).open(self.path.join(name))?,
        };
        let (_, file) = self.open.insert((name.to_owned(), file));
        file.write_all(bytes)?;
        if sync { file.sync_data() } else { Ok(()) }
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        self.forget(from);
        self.forget(to);
        std::fs::rename(self.path.join(from), self.path.join(to))
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.forget(name);
        std::fs::remove_file(self.path.join(name))
    }

    fn sync_names(&mut self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }

    fn held_room(&self) -> usize {
        HELD_ROOM
    }
}

/// Files in memory, for a session that need not outlive its process.
#[derive(Default)]
pub(crate) struct Memory(BTreeMap<String, Vec<u8>>);

impl Disk for Memory {
    fn list(&mut self) -> io::Result<Vec<String>> {
        Ok(self.0.keys().cloned().collect())
    }

    fn read(&mut self, name: &str) -> io::Result<Vec<u8>> {
        self.0.get(name).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn create(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.0.insert(name.into(), bytes.into());
        Ok(())
    }

    fn append(&mut self, name: &str, bytes: &[u8], _sync: bool) -> io::Result<()> {
        self.0.get_mut(name).ok_or(io::ErrorKind::NotFound)?.extend_from_slice(bytes);
        Ok(())
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        let bytes = self.0.remove(from).ok_or(io::ErrorKind::NotFound)?;
        self.0.insert(to.into(), bytes);
        Ok(())
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.0.remove(name).map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn sync_names(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The directory of a session that let go of it.
pub(crate) struct Gone;

impl Disk for Gone {
    fn list(&mut self) -> io::Result<Vec<String>> {
        Err(io::ErrorKind::NotFound.into())
    }

    fn read(&mut self, _name: &str) -> io::Result<Vec<u8>> {
        Err(io::ErrorKind::NotFound.into())
    }

    fn create(&mut self, _name: &str, _bytes: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::NotFound.into())
    }

    fn append(&mut self, _name: &str, _bytes: &[u8], _sync: bool) -> io::Result<()> {
        Err(io::ErrorKind::NotFound.into())
    }

    fn rename(&mut self, _from: &str, _to: &str) -> io::Result<()> {
        Err(io::ErrorKind::NotFound.into())
    }

    fn remove(&mut self, _name: &str) -> io::Result<()> {
        Err(io::ErrorKind::NotFound.into())
    }

    fn sync_names(&mut self) -> io::Result<()> {
        Err(io::ErrorKind::NotFound.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_held_by_one_at_a_time_and_keeps_what_it_got() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("queue");
        let mut disk = Directory::take(&path, "lock").unwrap();
        let second = Directory::take(&path, "lock").err().unwrap();
        assert_eq!(second.kind(), io::ErrorKind::WouldBlock);
        disk.create("a", b"one").unwrap();
        assert!(disk.create("a", b"over it").is_err());
        disk.append("a", b" two", true).unwrap();
        disk.append("a", b" three", false).unwrap();
        disk.rename("a", "b").unwrap();
        disk.append("b", b" four", true).unwrap();
        disk.sync_names().unwrap();
        drop(disk);
        let mut disk = Directory::take(&path, "lock").unwrap();
        assert_eq!(disk.read("b").unwrap(), b"one two three four");
        disk.remove("b").unwrap();
        assert_eq!(disk.list().unwrap(), ["lock"]);
    }
}
