//! The durable queue: what was recorded and is not confirmed, and what is known of it.
//!
//! A queue is a directory: `upload_queue.enc` ([`log`]), one file for each chunk, and a lock.
//! Everything but the lock is encrypted under the local key ([`super::local`]); the names of the
//! chunks' files are random. Invariants of the stored bytes, after a kill or a power cut at any
//! instant:
//!
//! 1. `upload_queue.enc` is there from the first opening that it fits on, whole up to its last record that was
//!    synced: it is written under another name, synced, renamed, and the directory synced; from
//!    then on it is only appended to. What follows its last whole record is left out.
//! 2. A record is synced before anybody acts on it: before a chunk is called kept, before a byte
//!    of an envelope goes to a network, before a file is taken away. Only notes of how far a chunk
//!    is ([`record::Note`]) are not waited for; losing some costs a question to the relay.
//! 3. A file that a synced record names is there, synced, with its name, and never written to
//!    again: it is made before the record, and taken away only after the record that no longer
//!    names it.
//! 4. So a chunk has one envelope for ever: whichever of its two files the last whole record
//!    names counts, and the other is taken away at the next opening.
//! 5. A file that no record names holds nothing that was promised to anybody. Where the tail of
//!    `upload_queue.enc` was torn it may be more than that: before the file is written anew it is
//!    renamed to end in `.left`, and kept; nothing is taken away then. So is a file that does not
//!    open. Where there are [`MAX_LEFT`] of them already no further ones are made of what is torn.
//! 6. A file of noise holds room that no recording gets. Where the disk is full it is taken away for what
//!    the queue needs to grow smaller: an envelope, which goes out, and the record of what is
//!    confirmed, whose files go after it. Then it is made again; until it is, nothing new is kept.
//! 7. An append that fails may have written something: the whole queue is written anew before the
//!    next change, under 1.

pub(crate) mod disk;
mod log;
pub(crate) mod record;
mod room;
mod shared;

#[cfg(test)]
mod crash_test;

use std::collections::HashSet;

use zeroize::Zeroizing;

use self::disk::Disk;
use self::log::{Unreadable, Writer};
use self::record::{Record, State};
use super::local::{LocalKey, OVERHEAD, SALT_BYTES};

pub(crate) use self::shared::Shared;

/// The queue's own file.
pub(crate) const QUEUE_FILE: &str = "upload_queue.enc";
const NEW_QUEUE_FILE: &str = "upload_queue.new";
/// Locked by the process that has the queue.
pub(crate) const LOCK_FILE: &str = "upload_queue.lock";
/// How the name of a file ends that nobody names and that may be worth something.
const LEFT: &str = ".left";

/// Bytes that chunks may take on disk, unless told otherwise.
pub const MAX_QUEUE_BYTES: u64 = 8 << 30;
/// Bytes that chunks may take in memory.
pub(crate) const MAX_MEMORY_BYTES: u64 = 512 << 20;
/// Chunks in one queue; each costs about 2 KiB of memory.
const MAX_ITEMS: usize = 65_536;
/// Chunks taken away with one change: it has to fit a record.
const MAX_DISCARDED: usize = 1024;
/// Files kept that no record names, beside those of one more torn queue.
const MAX_LEFT: usize = 1024;
/// The queue's file is written anew when it has grown by this and has doubled.
const MAX_GROWTH: u64 = 256 << 10;

/// Why nothing was kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NotKept {
    /// The queue's own limit.
    Full,
    /// The disk failed or is full.
    Disk,
}

/// Why a chunk's bytes can't be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unread {
    /// There is no such file.
    Gone,
    /// What is there does not open.
    Spoiled,
    /// The disk does not give it now.
    Disk,
}

/// Why a queue can't be opened. Nothing in it was changed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error("another process has this queue")]
    Busy,
    /// It opens with another local key.
    #[error("the queue does not open with this key")]
    WrongKey,
    /// It was recorded with another group key.
    #[error("the queue is of another group key")]
    OtherGroupKey,
    /// It is no queue, or of a newer program.
    #[error("the queue's file can't be read")]
    Damaged,
    /// The disk failed.
    #[error("the queue's directory can't be used: {0}")]
    Disk(#[from] std::io::Error),
}

impl From<Unreadable> for OpenError {
    fn from(why: Unreadable) -> Self {
        match why {
            Unreadable::WrongKey => Self::WrongKey,
            Unreadable::Damaged => Self::Damaged,
        }
    }
}

/// Random bytes; false if there are none.
pub(crate) type Dice = Box<dyn FnMut(&mut [u8]) -> bool + Send>;

/// Changes that are made together.
#[derive(Default)]
struct Batch {
    records: Vec<Record>,
    /// Files that the records name.
    made: Vec<String>,
    /// Files that nobody will name after them.
    spare: Vec<String>,
    durable: bool,
}

/// An open queue.
pub(crate) struct Store {
    disk: Box<dyn Disk>,
    key: LocalKey,
    dice: Dice,
    max_bytes: u64,
    state: State,
    writer: Option<Writer>,
    /// Bytes of the queue's file: now, and when it was written anew.
    length: u64,
    image: u64,
    batch: Batch,
    /// Files of changes that may not have been made; taken away with the queue's next file.
    doubtful: Vec<String>,
    /// Bytes in files of the batch.
    pending: u64,
    room: room::Room,
}

impl Store {
    /// Opens a queue, or makes one if there is none, and writes its file anew.
    pub(crate) fn open(
        mut disk: Box<dyn Disk>,
        key: LocalKey,
        dice: Dice,
        max_bytes: u64,
        group_key: &str,
    ) -> Result<Self, OpenError> {
        let (mut state, torn) = load(&mut *disk, &key)?;
        let fresh = state.epoch == 0 && state.group_key.is_empty();
        if !fresh && state.group_key != group_key {
            return Err(OpenError::OtherGroupKey);
        }
        let epoch = if fresh { 0 } else { state.epoch + 1 };
        state.apply(Record::Opened { epoch, group_key: group_key.into() });
        let (batch, doubtful, pending, room) = (Batch::default(), Vec::new(), 0, room::Room::default());
        let (writer, length, image) = (None, 0, 0);
        let mut store =
            Self { disk, key, dice, max_bytes, state, writer, length, image, batch, doubtful, pending, room };
        store.find_room();
        store.forget_missing()?;
        if torn {
            // As long as the torn file is there: a crash between the two finds it torn again.
            store.leave_unnamed()?;
        }
        match store.in_room(Self::rewrite) {
            Err(error) if room::is_full(&error) => store.open_full(!fresh && !torn),
            written => written.and_then(|()| if fresh || torn { Ok(()) } else { store.tidy() })?,
        }
        store.hold_room();
        Ok(store)
    }

    /// What is remembered; changes that are not committed are not in it.
    pub(crate) const fn state(&self) -> &State {
        &self.state
    }

    /// Puts bytes into a file of their own; the record that names it is the caller's to add.
    pub(crate) fn file(&mut self, content: &[u8]) -> Result<(String, u64), NotKept> {
        let size = (content.len() + OVERHEAD) as u64;
        let used = self.state.size() + self.pending;
        if self.lends_room()
            || used + size > self.max_bytes
            || self.state.items.len() + self.batch.made.len() >= MAX_ITEMS
        {
            return Err(NotKept::Full);
        }
        self.put_file(content, |store, name, blob| store.disk.create(name, blob))
    }

    /// The same for an envelope, which takes the place of a plaintext that is kept already.
    pub(crate) fn envelope_file(&mut self, content: &[u8]) -> Result<(String, u64), NotKept> {
        self.put_file(content, |store, name, blob| store.in_room(|store| store.disk.create(name, blob)))
    }

    fn put_file(
        &mut self,
        content: &[u8],
        create: impl FnOnce(&mut Self, &str, &[u8]) -> std::io::Result<()>,
    ) -> Result<(String, u64), NotKept> {
        let (mut name, mut salt) = ([0; 16], [0; SALT_BYTES]);
        if !((self.dice)(&mut name) && (self.dice)(&mut salt)) {
            return Err(NotKept::Disk);
        }
        let name = format!("{:032x}", u128::from_be_bytes(name));
        let blob = self.key.seal(salt, content).ok_or(NotKept::Disk)?;
        create(self, &name, &blob).map_err(|_| NotKept::Disk)?;
        self.pending += blob.len() as u64;
        self.batch.made.push(name.clone());
        Ok((name, blob.len() as u64))
    }

    /// Adds a change that others rely on.
    pub(crate) fn add(&mut self, record: Record) {
        let spare = match &record {
            Record::Sealed { id, .. } | Record::Confirmed { id } | Record::Lost { id } => self.state.items.get(id),
            _ => None,
        };
        self.batch.spare.extend(spare.map(|item| item.file.clone()));
        self.batch.durable |= record.is_waited_for();
        self.batch.records.push(record);
    }

    /// Makes the changes added since the last time: all, or after a crash perhaps none.
    ///
    /// # Errors
    /// None of them was made.
    pub(crate) fn commit(&mut self) -> Result<(), NotKept> {
        let batch = std::mem::take(&mut self.batch);
        self.pending = 0;
        if batch.records.is_empty() {
            return Ok(());
        }
        let written = match batch.spare.is_empty() {
            true => self.write(&batch),
            false => self.in_room(|store| store.write(&batch).inspect_err(|_| store.writer = None)),
        };
        if written.is_err() {
            // Part of it may be on disk: the next change begins with a new file. The files made
            // stay until then, since a crash before it may bring back records that name them.
            self.writer = None;
            self.doubtful.extend(batch.made);
            return written.map_err(|_| NotKept::Disk);
        }
        batch.records.into_iter().for_each(|record| self.state.apply(record));
        for name in &batch.spare {
            // A file left behind only takes room, until the next opening.
            let _ = self.disk.remove(name);
        }
        if !batch.spare.is_empty() {
            self.hold_room();
        }
        if self.length > self.image * 2 + MAX_GROWTH && self.rewrite().is_err() {
            self.writer = None;
        }
        Ok(())
    }

    /// Forgets changes that were added and not committed.
    fn abandon(&mut self) {
        self.pending = 0;
        for name in std::mem::take(&mut self.batch).made {
            let _ = self.disk.remove(&name);
        }
    }

    /// A chunk's bytes: its envelope, or its plaintext while it has none.
    pub(crate) fn read(&mut self, id: u64) -> Result<Zeroizing<Vec<u8>>, Unread> {
        let item = self.state.items.get(&id).ok_or(Unread::Gone)?;
        let blob = self.disk.read(&item.file).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Unread::Gone,
            _ => Unread::Disk,
        })?;
        self.key.open(blob).ok_or(Unread::Spoiled)
    }

    /// Gives up a chunk whose file is gone or does not open. What is there is never taken away: it
    /// gets another name.
    pub(crate) fn lose(&mut self, id: u64, why: Unread) -> Result<(), NotKept> {
        let item = self.state.items.get(&id).filter(|_| why == Unread::Spoiled);
        if let Some(name) = item.map(|item| item.file.clone()) {
            let renamed = self.disk.rename(&name, &format!("{name}{LEFT}"));
            renamed.and_then(|()| self.disk.sync_names()).map_err(|_| NotKept::Disk)?;
        }
        self.add(Record::Lost { id });
        Ok(())
    }

    /// Takes every chunk's file away: the queue's owner asked for it.
    pub(crate) fn discard(&mut self) -> Result<(), NotKept> {
        let ids: Vec<u64> = self.state.items.keys().copied().collect();
        for some in ids.chunks(MAX_DISCARDED) {
            some.iter().for_each(|id| self.add(Record::Lost { id: *id }));
            self.commit()?;
        }
        Ok(())
    }

    fn write(&mut self, batch: &Batch) -> std::io::Result<()> {
        if self.writer.is_none() {
            self.rewrite()?;
        }
        if !batch.made.is_empty() {
            self.disk.sync_names()?;
        }
        let writer = self.writer.as_mut().ok_or(std::io::ErrorKind::Other)?;
        let mut bytes = Vec::new();
        writer.put(&batch.records, &mut bytes).ok_or(std::io::ErrorKind::InvalidData)?;
        self.disk.append(QUEUE_FILE, &bytes, batch.durable)?;
        self.length += bytes.len() as u64;
        Ok(())
    }

    /// Writes the queue's file anew.
    fn rewrite(&mut self) -> std::io::Result<()> {
        let mut salt = [0; SALT_BYTES];
        let begun = if (self.dice)(&mut salt) { Writer::begin(&self.key, salt) } else { None };
        let (mut writer, mut bytes) = begun.ok_or(std::io::ErrorKind::Other)?;
        for record in self.state.image() {
            writer.put(&[record], &mut bytes).ok_or(std::io::ErrorKind::InvalidData)?;
        }
        // What an earlier try left under this name.
        let _ = self.disk.remove(NEW_QUEUE_FILE);
        self.disk.create(NEW_QUEUE_FILE, &bytes)?;
        self.disk.rename(NEW_QUEUE_FILE, QUEUE_FILE)?;
        self.disk.sync_names()?;
        (self.length, self.image) = (bytes.len() as u64, bytes.len() as u64);
        self.writer = Some(writer);
        for name in std::mem::take(&mut self.doubtful) {
            let _ = self.disk.remove(&name);
        }
        Ok(())
    }

    /// A chunk whose file somebody took away can't be sent any more.
    fn forget_missing(&mut self) -> std::io::Result<()> {
        let there: HashSet<String> = self.disk.list()?.into_iter().collect();
        let missing = self.state.items.iter().filter(|(_, item)| !there.contains(&item.file));
        let missing: Vec<u64> = missing.map(|(id, _)| *id).collect();
        missing.into_iter().for_each(|id| self.state.apply(Record::Lost { id }));
        Ok(())
    }

    /// Chunks' files that no record names.
    fn unnamed(&mut self) -> std::io::Result<Vec<String>> {
        let named: HashSet<&String> = self.state.items.values().map(|item| &item.file).collect();
        let ours = |name: &String| name.len() == 32 && name.bytes().all(|b| b.is_ascii_hexdigit());
        Ok(self.disk.list()?.into_iter().filter(|name| ours(name) && !named.contains(name)).collect())
    }

    /// Gives files that may be worth something another name, where there is room for them; the
    /// others stay as they are until the next opening.
    fn leave_unnamed(&mut self) -> std::io::Result<()> {
        let left = self.disk.list()?.iter().filter(|name| name.ends_with(LEFT)).count();
        if left < MAX_LEFT {
            for name in self.unnamed()? {
                self.disk.rename(&name, &format!("{name}{LEFT}"))?;
            }
        }
        self.disk.sync_names()
    }

    /// Takes away what a crash left.
    fn tidy(&mut self) -> std::io::Result<()> {
        for name in self.unnamed()? {
            self.disk.remove(&name)?;
        }
        Ok(())
    }
}

/// Reads a queue as it is, changing nothing. The default where there is none.
fn load(disk: &mut dyn Disk, key: &LocalKey) -> Result<(State, bool), OpenError> {
    match disk.read(QUEUE_FILE) {
        Ok(bytes) => {
            let read = log::read(key, &bytes)?;
            Ok((State::of(read.records), read.torn))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok((State::default(), false)),
        Err(error) => Err(error.into()),
    }
}

/// What a queue's file says.
pub(crate) fn read(key: &LocalKey, bytes: &[u8]) -> Result<State, OpenError> {
    Ok(State::of(log::read(key, bytes)?.records))
}
