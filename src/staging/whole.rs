//! A chunk of which every byte came, on its way to the disk.

use std::io;
use std::sync::Arc;

use aws_lc_rs::digest::Context;
use bytes::Bytes;

use super::{Meta, Part, Vault};
use crate::proto::ChunkRef;

/// What a [`super::Committer`] makes durable. The bytes that are not written yet go along: a small
/// chunk is created, written and synced by one thread in one go.
pub struct Whole {
    file: File,
    /// What comes behind that which is in the file, and the hash of both.
    rest: Option<(Vec<Bytes>, Context)>,
}

enum File {
    Begun(Box<Part>),
    New(Vault, ChunkRef, Arc<Meta>),
}

impl From<Part> for Whole {
    fn from(part: Part) -> Self {
        Self { file: File::Begun(Box::new(part)), rest: None }
    }
}

impl Whole {
    /// A chunk that is still in memory.
    pub(super) fn new(vault: Vault, chunk: ChunkRef, meta: Arc<Meta>, bytes: Vec<Bytes>, hash: Context) -> Self {
        Self { file: File::New(vault, chunk, meta), rest: Some((bytes, hash)) }
    }

    /// A chunk whose last bytes are still in memory.
    pub(super) fn ending(part: Part, bytes: Vec<Bytes>, hash: Context) -> Self {
        Self { file: File::Begun(Box::new(part)), rest: Some((bytes, hash)) }
    }

    /// Writes what is not written yet. Blocks on the disk.
    pub(super) fn write(self) -> io::Result<Part> {
        let mut part = match self.file {
            File::Begun(part) => *part,
            File::New(vault, chunk, meta) => vault.create(chunk, &meta)?,
        };
        if let Some((bytes, hash)) = self.rest {
            part.append_hashed(&bytes, hash)?;
        }
        Ok(part)
    }
}
