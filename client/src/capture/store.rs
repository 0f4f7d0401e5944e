//! The sealed bytes of every chunk that is not confirmed: in memory, or as files of a spool
//! directory. Ciphertext is made once; what is kept here is what every attempt sends.

use std::collections::HashMap;
use std::path::PathBuf;

use bytes::Bytes;
use tokio::io::AsyncWriteExt as _;

use crate::clock;

/// Bytes kept in memory at most.
const MAX_MEMORY: u64 = 512 << 20;
/// Bytes kept in a spool directory at most.
const MAX_SPOOL: u64 = 8 << 30;

/// Nothing more can be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NotKept;

/// Where sealed bytes wait.
pub(crate) struct Store {
    spool: Option<Spool>,
    held: HashMap<u64, Held>,
    bytes: u64,
}

/// A directory, and what the names of this session's files begin with: bytes that an earlier
/// session left there are the only copy of what it recorded.
struct Spool {
    directory: PathBuf,
    session: String,
}

enum Held {
    Memory(Bytes),
    File(u64),
}

impl Store {
    /// Keeps in memory, or in `spool`, which is made if it is not there.
    pub(crate) async fn new(spool: Option<PathBuf>) -> std::io::Result<Self> {
        let spool = match spool {
            Some(directory) => Some(Spool::new(directory).await?),
            None => None,
        };
        Ok(Self { spool, held: HashMap::new(), bytes: 0 })
    }

    pub(crate) async fn put(&mut self, id: u64, bytes: Bytes) -> Result<(), NotKept> {
        let (length, limit) = (bytes.len() as u64, if self.spool.is_some() { MAX_SPOOL } else { MAX_MEMORY });
        if self.bytes + length > limit {
            return Err(NotKept);
        }
        let held = match &self.spool {
            None => Held::Memory(bytes),
            Some(spool) => {
                spool.write(id, &bytes).await.map_err(|_| NotKept)?;
                Held::File(length)
            }
        };
        self.bytes += length;
        self.held.insert(id, held);
        Ok(())
    }

    pub(crate) async fn get(&self, id: u64) -> Option<Bytes> {
        match self.held.get(&id)? {
            Held::Memory(bytes) => Some(bytes.clone()),
            Held::File(length) => {
                let bytes = tokio::fs::read(self.spool.as_ref()?.file(id)).await.ok()?;
                (bytes.len() as u64 == *length).then(|| bytes.into())
            }
        }
    }

    pub(crate) async fn free(&mut self, id: u64) {
        match self.held.remove(&id) {
            Some(Held::Memory(bytes)) => self.bytes -= bytes.len() as u64,
            Some(Held::File(length)) => {
                self.bytes -= length;
                if let Some(spool) = &self.spool {
                    // A file left behind costs room, nothing else.
                    let _ = tokio::fs::remove_file(spool.file(id)).await;
                }
            }
            None => {}
        }
    }
}

impl Spool {
    async fn new(directory: PathBuf) -> std::io::Result<Self> {
        tokio::fs::create_dir_all(&directory).await?;
        let session: [u8; 8] = clock::random().ok_or_else(|| std::io::Error::other("no randomness"))?;
        Ok(Self { directory, session: format!("{:016x}", u64::from_be_bytes(session)) })
    }

    /// Names say nothing.
    fn file(&self, id: u64) -> PathBuf {
        self.directory.join(format!("{}-{id:08}.sealed", self.session))
    }

    /// Never over a file that is there.
    async fn write(&self, id: u64, bytes: &[u8]) -> std::io::Result<()> {
        let mut file = tokio::fs::OpenOptions::new().write(true).create_new(true).open(self.file(id)).await?;
        file.write_all(bytes).await?;
        file.flush().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_spool_gives_back_what_it_got_and_forgets_what_is_freed() {
        let dir = tempfile::tempdir().unwrap();
        let spool = dir.path().join("spool");
        let mut store = Store::new(Some(spool.clone())).await.unwrap();
        store.put(7, Bytes::from_static(b"sealed")).await.unwrap();
        assert_eq!(store.get(7).await.unwrap(), "sealed");
        assert_eq!(std::fs::read_dir(&spool).unwrap().count(), 1);
        store.free(7).await;
        assert!(store.get(7).await.is_none());
        assert_eq!((std::fs::read_dir(&spool).unwrap().count(), store.bytes), (0, 0));
    }

    #[tokio::test]
    async fn what_an_earlier_session_left_in_a_spool_stays() {
        let dir = tempfile::tempdir().unwrap();
        for bytes in ["first", "second"] {
            let mut store = Store::new(Some(dir.path().into())).await.unwrap();
            store.put(0, bytes.into()).await.unwrap();
            assert_eq!(store.put(0, "over it".into()).await, Err(NotKept));
            assert_eq!(store.get(0).await.unwrap(), bytes);
        }
        let read = |entry: std::io::Result<std::fs::DirEntry>| std::fs::read_to_string(entry.unwrap().path()).unwrap();
        let mut left: Vec<_> = std::fs::read_dir(&dir).unwrap().map(read).collect();
        left.sort();
        assert_eq!(left, ["first", "second"]);
    }
}
