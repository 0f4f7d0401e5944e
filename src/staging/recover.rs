//! What may be believed of a staging directory at start.
//!
//! - Below `staged/`: a file whose header opens and whose length is the offer's is a chunk; it is
//!   reported only after the directories are synced, since the process before may have died
//!   between the renaming and the sync. Anything else is left in place and counted: it may be of
//!   another seal key.
//! - Below `receiving/`: a partial is kept if it was written in this boot, its header opens, it is
//!   no longer than the offer says, no staged chunk has its name and no later generation exists.
//!   Any other partial is removed: nothing was promised for it.
//! - Below `streams/`: a record whose header opens is reported; what was not finished is removed.
//! - Below `damaged/`: kept and counted as used room until they are let go.
//! - Names that staging does not write are left in place and counted.
//!
//! Doing it again changes nothing more.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::Arc;

use super::disk::{BootId, Dir, Disk};
use super::layout::{self, HeaderError, Kind};
use super::meta::{self, Meta, StreamCapability};
use super::part::{Slot, parse_partial_name};
use super::seal::{Name, Sealer};

/// What was found at start.
#[derive(Debug, Default)]
pub struct Recovered {
    /// Whole chunks; durable, yet their bytes were not read: [`super::Vault::verify`] them before
    /// the first sending. Each is to be treated as if a commit attempt may have been made.
    pub staged: Vec<(Meta, Found)>,
    /// Chunks that can be gone on with.
    pub partial: Vec<(Meta, Found)>,
    /// The newest capability of each stream.
    pub streams: Vec<StreamCapability>,
    /// Chunks that were put aside: their bytes are not those of their digest.
    pub damaged: Vec<Meta>,
    /// Files among those that can't be read; left in place.
    pub damaged_unreadable: u64,
    /// Files left in place that are none of the above: they can't be read, or not be removed.
    pub unreadable: u64,
    /// Of these the ones that are named as chunks and don't open.
    pub foreign: u64,
    /// Some file was sealed with this key.
    pub opened: bool,
    /// Files removed.
    pub removed: u64,
}

impl Recovered {
    /// Chunks are there and the key opens nothing at all: a file that rots is another matter.
    #[must_use]
    pub const fn sealed_with_another_key(&self) -> bool {
        self.foreign > 0 && !self.opened
    }
}

/// The file of a recovered chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// Bytes of the chunk that are there.
    pub len: u64,
    /// Bytes the whole chunk takes on disk, header and block rounding included.
    pub footprint: u64,
}

/// [`Recovered`] and what a vault starts with.
pub(super) struct Scan {
    pub(super) recovered: Recovered,
    pub(super) partials: HashMap<Name, Arc<Slot>>,
    pub(super) staged: HashSet<Name>,
    pub(super) next_number: u64,
}

struct Scanner<'a> {
    disk: &'a dyn Disk,
    sealer: &'a Sealer,
    boot: Option<BootId>,
    scan: Scan,
}

/// Reads the directories, removes what is worth nothing, syncs them.
pub(super) fn scan(disk: &dyn Disk, sealer: &Sealer, boot: Option<BootId>) -> io::Result<Scan> {
    let scan =
        Scan { recovered: Recovered::default(), partials: HashMap::new(), staged: HashSet::new(), next_number: 1 };
    let mut scanner = Scanner { disk, sealer, boot, scan };
    scanner.staged()?;
    scanner.receiving()?;
    scanner.streams()?;
    scanner.damaged()?;
    for dir in Dir::ALL {
        disk.sync_dir(dir)?;
    }
    Ok(scanner.scan)
}

impl Scanner<'_> {
    fn staged(&mut self) -> io::Result<()> {
        for text in self.disk.list(Dir::Staged)? {
            let found = Name::from_hex(&text).map(|name| (name, self.chunk(Dir::Staged, &text, name)));
            match found {
                Some((name, Ok(chunk))) if chunk.found.len == chunk.meta.offer.length => {
                    self.scan.staged.insert(name);
                    self.scan.recovered.staged.push((chunk.meta, chunk.found));
                }
                other => {
                    self.scan.recovered.unreadable += 1;
                    self.scan.recovered.foreign += u64::from(matches!(other, Some((_, Err(_)))));
                }
            }
        }
        Ok(())
    }

    fn receiving(&mut self) -> io::Result<()> {
        let mut newest_first = Vec::new();
        for text in self.disk.list(Dir::Receiving)? {
            match parse_partial_name(&text) {
                Some((name, generation)) => newest_first.push((generation, name, text)),
                None => self.scan.recovered.unreadable += 1,
            }
        }
        newest_first.sort_by_key(|(generation, ..)| Reverse(*generation));
        for (generation, name, text) in newest_first {
            self.number_is_used(generation);
            let taken = self.scan.staged.contains(&name) || self.scan.partials.contains_key(&name);
            match self.chunk(Dir::Receiving, &text, name) {
                Ok(chunk) if !taken && self.believed(&chunk) => {
                    self.scan.partials.insert(name, Arc::new(Slot::inherited(generation)));
                    self.scan.recovered.partial.push((chunk.meta, chunk.found));
                }
                _ => self.remove(Dir::Receiving, &text),
            }
        }
        Ok(())
    }

    fn believed(&self, chunk: &Chunk) -> bool {
        chunk.boot.is_some() && chunk.boot == self.boot && chunk.found.len <= chunk.meta.offer.length
    }

    fn streams(&mut self) -> io::Result<()> {
        for text in self.disk.list(Dir::Streams)? {
            if let Some((_, generation)) = parse_partial_name(&text) {
                self.number_is_used(generation);
                self.remove(Dir::Streams, &text);
                continue;
            }
            match Name::from_hex(&text).and_then(|name| self.stream(&text, name)) {
                Some(record) => self.scan.recovered.streams.push(record),
                None => self.scan.recovered.unreadable += 1,
            }
        }
        Ok(())
    }

    fn damaged(&mut self) -> io::Result<()> {
        for text in self.disk.list(Dir::Damaged)? {
            match Name::from_hex(&text).map(|name| self.chunk(Dir::Damaged, &text, name)) {
                Some(Ok(chunk)) => self.scan.recovered.damaged.push(chunk.meta),
                _ => self.scan.recovered.damaged_unreadable += 1,
            }
        }
        Ok(())
    }

    fn chunk(&mut self, dir: Dir, text: &str, name: Name) -> Result<Chunk, HeaderError> {
        let file = self.disk.open(dir, text, false)?;
        let header = layout::read_header(&*file, self.sealer, Kind::Chunk, name)?;
        self.scan.recovered.opened = true;
        let (meta, boot) = meta::decode(&header.plain).ok_or(HeaderError::Unreadable)?;
        let len = file.size()?.checked_sub(header.payload_at).ok_or(HeaderError::Unreadable)?;
        let footprint = layout::footprint(header.payload_at, meta.offer.length);
        Ok(Chunk { meta, boot, found: Found { len, footprint } })
    }

    fn stream(&mut self, text: &str, name: Name) -> Option<StreamCapability> {
        let file = self.disk.open(Dir::Streams, text, false).ok()?;
        let header = layout::read_header(&*file, self.sealer, Kind::Stream, name).ok()?;
        self.scan.recovered.opened = true;
        serde_json::from_slice(&header.plain).ok()
    }

    /// A file that can't be removed does not keep the relay from forwarding what is staged.
    fn remove(&mut self, dir: Dir, text: &str) {
        match self.disk.remove(dir, text) {
            Ok(()) => self.scan.recovered.removed += 1,
            Err(_) => self.scan.recovered.unreadable += 1,
        }
    }

    fn number_is_used(&mut self, number: u64) {
        self.scan.next_number = self.scan.next_number.max(number.saturating_add(1));
    }
}

struct Chunk {
    meta: Meta,
    boot: Option<BootId>,
    found: Found,
}
