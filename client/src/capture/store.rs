//! The sealed bytes of every chunk that is not confirmed: in memory, or as files of a spool
//! directory. Ciphertext is made once; what is kept here is what every attempt sends.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use bytes::Bytes;

/// Bytes kept in memory at most.
const MAX_MEMORY: u64 = 512 << 20;
/// Bytes kept in a spool directory at most.
const MAX_SPOOL: u64 = 8 << 30;

/// Nothing more can be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NotKept;

/// Where sealed bytes wait.
pub(crate) struct Store {
    /// Files are named by a number that says nothing.
    spool: Option<PathBuf>,
    held: HashMap<u64, Held>,
    bytes: u64,
}

enum Held {
    Memory(Bytes),
    File(u64),
}

impl Store {
    /// Keeps in memory, or in `spool`, which is made if it is not there.
    pub(crate) async fn new(spool: Option<PathBuf>) -> std::io::Result<Self> {
        if let Some(directory) = &spool {
            tokio::fs::create_dir_all(directory).await?;
        }
        Ok(Self { spool, held: HashMap::new(), bytes: 0 })
    }

    pub(crate) async fn put(&mut self, id: u64, bytes: Bytes) -> Result<(), NotKept> {
        let (length, limit) = (bytes.len() as u64, if self.spool.is_some() { MAX_SPOOL } else { MAX_MEMORY });
        if self.bytes + length > limit {
            return Err(NotKept);
        }
        let held = match &self.spool {
            None => Held::Memory(bytes),
            Some(directory) => {
                tokio::fs::write(file(directory, id), &bytes).await.map_err(|_| NotKept)?;
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
                let bytes = tokio::fs::read(file(self.spool.as_ref()?, id)).await.ok()?;
                (bytes.len() as u64 == *length).then(|| bytes.into())
            }
        }
    }

    pub(crate) async fn free(&mut self, id: u64) {
        match self.held.remove(&id) {
            Some(Held::Memory(bytes)) => self.bytes -= bytes.len() as u64,
            Some(Held::File(length)) => {
                self.bytes -= length;
                if let Some(directory) = &self.spool {
                    // A file left behind costs room, nothing else.
                    let _ = tokio::fs::remove_file(file(directory, id)).await;
                }
            }
            None => {}
        }
    }
}

fn file(directory: &Path, id: u64) -> PathBuf {
    directory.join(format!("{id:08}.sealed"))
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
}
