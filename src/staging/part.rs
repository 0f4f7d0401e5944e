//! A chunk whose bytes are coming: its file, and the hash of what is in it.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use aws_lc_rs::digest::{Context, SHA256};
use bytes::Bytes;

use super::disk::{Dir, File};
use super::layout;
use super::meta::Meta;
use super::seal::Name;
use super::vault::Inner;
use crate::proto::{ChunkRef, Digest};

/// How much of a partial is read at a time when it is hashed again.
const REHASH_BYTES: usize = 64 * 1024;
/// The holder of a partial that no part may write any more.
const NOBODY: u64 = u64::MAX;

/// One partial file and who may write it.
pub(super) struct Slot {
    generation: u64,
    /// Held while that part writes: of two attempts at one chunk only the later one does.
    holder: Mutex<u64>,
    /// Written by a process before this one, whose failed sync, if there was one, is forgotten by
    /// the kernel: its bytes are written anew before they are relied on.
    inherited: AtomicBool,
}

impl Slot {
    pub(super) const fn new(generation: u64, holder: u64, inherited: bool) -> Self {
        Self { generation, holder: Mutex::new(holder), inherited: AtomicBool::new(inherited) }
    }

    /// A partial found at start; nobody writes it before it is opened again.
    pub(super) const fn inherited(generation: u64) -> Self {
        Self::new(generation, NOBODY, true)
    }

    /// Waits for the write that is under way, and lets `holder` write from now on.
    pub(super) fn hand_to(&self, holder: u64) {
        *self.holder.lock().unwrap_or_else(PoisonError::into_inner) = holder;
    }

    pub(super) fn close(&self) {
        self.hand_to(NOBODY);
    }

    pub(super) fn file_name(&self, name: Name) -> String {
        partial_name(name, self.generation)
    }
}

fn sha256(bytes: &[u8]) -> Digest {
    let mut hash = Context::new(&SHA256);
    hash.update(bytes);
    digest_of(&hash)
}

/// What a partial of `name` is called on disk.
pub(super) fn partial_name(name: Name, generation: u64) -> String {
    format!("{}.{generation:x}", name.to_hex())
}

/// Reads [`partial_name`] back.
pub(super) fn parse_partial_name(text: &str) -> Option<(Name, u64)> {
    let (name, generation) = text.split_once('.')?;
    let (name, generation) = (Name::from_hex(name)?, u64::from_str_radix(generation, 16).ok()?);
    (partial_name(name, generation) == text).then_some((name, generation))
}

/// What a hash has come to.
pub(super) fn digest_of(hash: &Context) -> Digest {
    let mut digest = Digest([0; 32]);
    digest.0.copy_from_slice(hash.clone().finish().as_ref());
    digest
}

/// A later attempt took this chunk over, or it was removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("superseded")]
pub struct Superseded;

impl Superseded {
    /// Whether `error` says so.
    #[must_use]
    pub fn is(error: &io::Error) -> bool {
        error.get_ref().is_some_and(|inner| inner.is::<Self>())
    }
}

/// One attempt to write a chunk's bytes down. Dropping it keeps what came; it can be opened again
/// with [`super::Vault::reopen`].
pub struct Part {
    pub(super) inner: Arc<Inner>,
    pub(super) name: Name,
    pub(super) slot: Arc<Slot>,
    pub(super) chunk: ChunkRef,
    holder: u64,
    file: Box<dyn File>,
    /// Not yet written: it goes out with the first bytes.
    header: Option<Vec<u8>>,
    payload_at: u64,
    expected: (u64, Digest),
    /// SHA-256 of the capability that its header names.
    sealed_with: Digest,
    len: u64,
    hash: Context,
}

impl Part {
    /// A part of a file that is still empty.
    pub(super) fn begin(inner: Arc<Inner>, name: Name, meta: &Meta) -> io::Result<Self> {
        let plain = super::meta::encode(meta, inner.boot)?;
        let header = layout::write_header(&inner.sealer, layout::Kind::Chunk, name, plain)?;
        let (generation, holder) = (inner.next_number(), inner.next_number());
        let file = inner.new_file(&partial_name(name, generation))?;
        Ok(Self {
            chunk: meta.offer.chunk_ref(),
            expected: (meta.offer.length, meta.offer.sha256),
            sealed_with: sha256(meta.capability.as_bytes()),
            payload_at: header.len() as u64,
            header: Some(header),
            slot: Arc::new(Slot::new(generation, holder, false)),
            len: 0,
            hash: Context::new(&SHA256),
            inner,
            name,
            holder,
            file,
        })
    }

    /// Takes a partial over and hashes what is there.
    pub(super) fn resume(inner: Arc<Inner>, name: Name, slot: Arc<Slot>) -> io::Result<Self> {
        let holder = inner.next_number();
        slot.hand_to(holder);
        let file = inner.disk.open(Dir::Receiving, &slot.file_name(name), true)?;
        let header = layout::read_header(&*file, &inner.sealer, layout::Kind::Chunk, name)?;
        let (meta, _) = super::meta::decode(&header.plain).ok_or(io::ErrorKind::InvalidData)?;
        let mut part = Self {
            chunk: meta.offer.chunk_ref(),
            expected: (meta.offer.length, meta.offer.sha256),
            sealed_with: sha256(meta.capability.as_bytes()),
            payload_at: header.payload_at,
            header: None,
            len: 0,
            hash: Context::new(&SHA256),
            inner,
            name,
            slot,
            holder,
            file,
        };
        part.rehash()?;
        Ok(part)
    }

    /// Reads the file from its start: the payload into the hash and, if an earlier process wrote
    /// it, everything back onto itself, so that the next sync can't pass over lost bytes.
    fn rehash(&mut self) -> io::Result<()> {
        let rewrite = self.slot.inherited.load(Ordering::Relaxed);
        let mut buf = vec![0; REHASH_BYTES];
        let mut at = 0;
        loop {
            let read = self.file.read_at(at, &mut buf)?;
            if read == 0 {
                break;
            }
            if rewrite {
                self.file.write_at(at, &buf[..read])?;
            }
            let header = usize::try_from(self.payload_at.saturating_sub(at)).unwrap_or(usize::MAX).min(read);
            self.hash.update(&buf[header..read]);
            at += read as u64;
        }
        self.len = at.checked_sub(self.payload_at).ok_or(io::ErrorKind::InvalidData)?;
        if self.len > self.expected.0 {
            return Err(io::ErrorKind::InvalidData.into());
        }
        self.slot.inherited.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// Fills `buf` with bytes written before, from `offset` of the chunk on.
    ///
    /// # Errors
    /// From the disk; `UnexpectedEof` past what is written.
    pub fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        super::disk::read_exact_at(&*self.file, self.payload_at + offset, buf)
    }

    /// Writes the next bytes down. After an error nothing of them counts; they may be appended
    /// again.
    ///
    /// # Errors
    /// From the disk; [`Superseded`]; `InvalidInput` for more bytes than the offer says.
    pub fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write(&[bytes])?;
        self.hash.update(bytes);
        Ok(())
    }

    /// The same for bytes in several pieces: one write, header included, and no copy. `hash` is that
    /// of everything up to their end.
    ///
    /// # Errors
    /// As [`Part::append`].
    pub(super) fn append_hashed(&mut self, pieces: &[Bytes], hash: Context) -> io::Result<()> {
        self.write(&pieces.iter().map(|piece| &piece[..]).collect::<Vec<_>>())?;
        self.hash = hash;
        Ok(())
    }

    fn write(&mut self, pieces: &[&[u8]]) -> io::Result<()> {
        let bytes: usize = pieces.iter().map(|piece| piece.len()).sum();
        if bytes as u64 > self.expected.0 - self.len {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let holder = self.slot.holder.lock().unwrap_or_else(PoisonError::into_inner);
        if *holder != self.holder {
            return Err(io::Error::other(Superseded));
        }
        if bytes == 0 && self.header.is_none() {
            return Ok(());
        }
        match &self.header {
            None => self.file.write_pieces_at(self.payload_at + self.len, pieces)?,
            Some(header) => self.file.write_pieces_at(0, &[&[&header[..]], pieces].concat())?,
        }
        drop(holder);
        self.header = None;
        self.len += bytes as u64;
        Ok(())
    }

    /// The hash of the bytes written so far.
    pub(super) fn hash(&self) -> Context {
        self.hash.clone()
    }

    /// Bytes of the chunk written so far.
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.len
    }

    /// No byte came yet.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// SHA-256 of the bytes written so far.
    #[must_use]
    pub fn digest(&self) -> Digest {
        digest_of(&self.hash)
    }

    /// Length and digest are the offer's: it may be committed.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.len == self.expected.0 && self.digest() == self.expected.1
    }

    /// Bytes the whole chunk will take on disk, header and block rounding included.
    #[must_use]
    pub const fn footprint(&self) -> u64 {
        layout::footprint(self.payload_at, self.expected.0)
    }

    /// Whether this is the capability that the file names.
    pub(super) fn is_sealed_with(&self, capability: &str) -> bool {
        self.sealed_with == sha256(capability.as_bytes())
    }

    /// Which chunk it is.
    #[must_use]
    pub const fn chunk(&self) -> ChunkRef {
        self.chunk
    }

    /// Whether it brings the bytes that `meta` speaks of.
    #[cfg(test)]
    pub(super) fn is_of(&self, meta: &Meta) -> bool {
        self.expected == (meta.offer.length, meta.offer.sha256)
    }

    /// Ends the right of every part to write this file; `false` if this one had lost it already.
    pub(super) fn claim(&self) -> bool {
        let mut holder = self.slot.holder.lock().unwrap_or_else(PoisonError::into_inner);
        let mine = *holder == self.holder;
        if mine {
            *holder = NOBODY;
        }
        mine
    }

    pub(super) fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

impl std::fmt::Debug for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Part").field("len", &self.len).finish_non_exhaustive()
    }
}
