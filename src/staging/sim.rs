//! A disk that keeps only what it must: every write that no sync covers may be kept, lost, torn
//! or turned to zeros by a power cut, in any order; every change of a name likewise, apart from
//! other names. Harsher than any file system in use.
//!
//! What it takes for granted: a completed sync holds; of the changes to one name each result is
//! one that the name had; a failed directory sync leaves the changes pending (journalling file
//! systems stop writing altogether instead). A failed file sync drops the writes and lets the
//! next sync succeed, as Linux does.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::disk::{BootId, Dir, Disk, File};

const SECTOR: usize = 512;
const ENOSPC: i32 = 28;
const EIO: i32 = 5;

/// SplitMix64: a seed is a whole history.
#[derive(Clone)]
pub(super) struct Rng(u64);

impl Rng {
    pub(super) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is not 0.
    pub(super) const fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    pub(super) const fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

/// How the machine stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Crash {
    /// `kill -9`: the page cache stays.
    Kill,
    /// The page cache is lost; a new boot follows.
    PowerCut,
}

/// The disk. Clones are the same disk.
#[derive(Clone)]
pub(super) struct SimDisk(Arc<Mutex<State>>);

struct State {
    rng: Rng,
    /// Raised by every crash: what was opened before is dead.
    life: u64,
    boot: u64,
    inodes: BTreeMap<u64, Inode>,
    /// For each name the inodes it had since the last sync, the durable one first.
    names: BTreeMap<(usize, String), Vec<Option<u64>>>,
    next_inode: u64,
    /// Operations until the crash; `None`: no crash is due.
    fuse: Option<u64>,
    dead: bool,
    /// One in so many writes, syncs and renames fails; 0: none.
    faults: usize,
    directory_faults: bool,
    /// One in so many file syncs fails; 0: none.
    file_faults: usize,
    operations: u64,
}

#[derive(Default)]
struct Inode {
    durable: Vec<u8>,
    cached: Vec<u8>,
    pending: Vec<Change>,
}

/// What no sync covers yet.
enum Change {
    Put(usize, Vec<u8>),
    Truncate,
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Put(offset, data) => put(bytes, *offset, data),
            Self::Truncate => bytes.clear(),
        }
    }

    /// Lets chance decide what becomes of it.
    fn tear(&self, rng: &mut Rng, bytes: &mut Vec<u8>) {
        match self {
            Self::Put(offset, data) => tear(rng, bytes, *offset, data),
            Self::Truncate if rng.one_in(2) => bytes.clear(),
            Self::Truncate => {}
        }
    }
}

const fn rank(dir: Dir) -> usize {
    match dir {
        Dir::Receiving => 0,
        Dir::Staged => 1,
        Dir::Streams => 2,
        Dir::Damaged => 3,
    }
}

/// What happens to an operation.
enum Fate {
    Done,
    /// The crash comes during it.
    Cut,
    Fails(i32),
}

fn cut() -> io::Error {
    io::Error::other("crashed")
}

fn put(bytes: &mut Vec<u8>, offset: usize, data: &[u8]) {
    if data.is_empty() {
        return;
    }
    let end = offset + data.len();
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    bytes[offset..end].copy_from_slice(data);
}

impl State {
    /// Counts an operation and says how it goes.
    fn step(&mut self, life: u64) -> io::Result<Fate> {
        if self.dead || life != self.life {
            return Err(cut());
        }
        self.operations += 1;
        if let Some(fuse) = &mut self.fuse {
            if *fuse == 0 {
                self.dead = true;
                return Ok(Fate::Cut);
            }
            *fuse -= 1;
        }
        if self.faults > 0 && self.rng.one_in(self.faults) {
            return Ok(Fate::Fails(if self.rng.one_in(2) { ENOSPC } else { EIO }));
        }
        Ok(Fate::Done)
    }

    fn lookup(&self, dir: Dir, name: &str) -> io::Result<u64> {
        let history = self.names.get(&(rank(dir), name.to_owned()));
        history.and_then(|h| *h.last()?).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn set(&mut self, dir: Dir, name: &str, inode: Option<u64>) {
        self.names.entry((rank(dir), name.to_owned())).or_insert_with(|| vec![None]).push(inode);
    }

    fn write(&mut self, inode: u64, offset: usize, data: &[u8]) {
        let inode = self.inodes.entry(inode).or_default();
        put(&mut inode.cached, offset, data);
        inode.pending.push(Change::Put(offset, data.to_vec()));
    }

    /// Lets chance decide what became of everything that no sync covers.
    fn cut_power(&mut self) {
        let rng = &mut self.rng;
        for inode in self.inodes.values_mut() {
            let mut pending = std::mem::take(&mut inode.pending);
            while !pending.is_empty() {
                let change = pending.swap_remove(rng.below(pending.len()));
                change.tear(rng, &mut inode.durable);
            }
            inode.cached = inode.durable.clone();
        }
        for history in self.names.values_mut() {
            *history = vec![history[rng.below(history.len())]];
        }
    }

    /// Frees what no name leads to.
    fn sweep(&mut self) {
        self.names.retain(|_, history| history.iter().any(Option::is_some));
        let named: Vec<u64> = self.names.values().flatten().copied().flatten().collect();
        self.inodes.retain(|id, _| named.contains(id));
    }
}

/// One write that no sync covers: kept, lost, zeros, cut at a byte, or some of its sectors.
fn tear(rng: &mut Rng, bytes: &mut Vec<u8>, offset: usize, data: &[u8]) {
    match rng.below(6) {
        0 => {}
        1 => put(bytes, offset, &vec![0; data.len()]),
        2 => put(bytes, offset, &data[..rng.below(data.len() + 1)]),
        3 => {
            let from = rng.below(data.len() + 1);
            put(bytes, offset + from, &data[from..]);
        }
        4 => {
            for (i, sector) in data.chunks(SECTOR).enumerate() {
                if rng.one_in(2) {
                    put(bytes, offset + i * SECTOR, sector);
                }
            }
        }
        _ => put(bytes, offset, data),
    }
}

impl SimDisk {
    pub(super) fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(State {
            rng: Rng::new(seed),
            life: 0,
            boot: 1,
            inodes: BTreeMap::new(),
            names: BTreeMap::new(),
            next_inode: 1,
            fuse: None,
            dead: false,
            faults: 0,
            directory_faults: false,
            file_faults: 0,
            operations: 0,
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The machine stops during the operation after the next `operations`.
    pub(super) fn crash_after(&self, operations: u64) {
        self.state().fuse = Some(operations);
    }

    /// One in `n` writes, syncs, creations and renames fails with ENOSPC or EIO; 0: none.
    pub(super) fn fail_one_in(&self, n: usize) {
        self.state().faults = n;
    }

    /// One in `n` file syncs fails with EIO; 0: none.
    pub(super) fn fail_files_one_in(&self, n: usize) {
        self.state().file_faults = n;
    }

    /// Every sync of a directory fails.
    pub(super) fn fail_directories(&self, fail: bool) {
        self.state().directory_faults = fail;
    }

    pub(super) fn is_dead(&self) -> bool {
        self.state().dead
    }

    pub(super) fn operations(&self) -> u64 {
        self.state().operations
    }

    /// The machine stops now, if it did not yet, and comes back.
    pub(super) fn crash(&self, how: Crash) {
        let mut state = self.state();
        state.life += 1;
        state.dead = false;
        state.fuse = None;
        state.faults = 0;
        if how == Crash::PowerCut {
            state.boot += 1;
            state.cut_power();
        }
        state.sweep();
    }
}

struct SimFile {
    disk: SimDisk,
    inode: u64,
    life: u64,
}

impl Disk for SimDisk {
    fn create(&self, dir: Dir, name: &str) -> io::Result<Box<dyn File>> {
        let mut state = self.state();
        let life = state.life;
        let fate = state.step(life)?;
        if let Fate::Fails(code) = fate {
            return Err(io::Error::from_raw_os_error(code));
        }
        if matches!(fate, Fate::Cut) && state.rng.one_in(2) {
            return Err(cut());
        }
        if state.lookup(dir, name).is_ok() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let inode = state.next_inode;
        state.next_inode += 1;
        state.inodes.insert(inode, Inode::default());
        state.set(dir, name, Some(inode));
        drop(state);
        if matches!(fate, Fate::Cut) { Err(cut()) } else { Ok(Box::new(SimFile { disk: self.clone(), inode, life })) }
    }

    fn open(&self, dir: Dir, name: &str, _write: bool) -> io::Result<Box<dyn File>> {
        let state = self.state();
        if state.dead {
            return Err(cut());
        }
        let inode = state.lookup(dir, name)?;
        Ok(Box::new(SimFile { disk: self.clone(), inode, life: state.life }))
    }

    fn rename(&self, from: (Dir, &str), to: (Dir, &str)) -> io::Result<()> {
        let mut state = self.state();
        let life = state.life;
        let fate = state.step(life)?;
        if let Fate::Fails(code) = fate {
            return Err(io::Error::from_raw_os_error(code));
        }
        let is_cut = matches!(fate, Fate::Cut);
        if is_cut && state.rng.one_in(2) {
            return Err(cut());
        }
        let inode = state.lookup(from.0, from.1)?;
        state.set(to.0, to.1, Some(inode));
        state.set(from.0, from.1, None);
        if is_cut { Err(cut()) } else { Ok(()) }
    }

    fn remove(&self, dir: Dir, name: &str) -> io::Result<()> {
        let mut state = self.state();
        let life = state.life;
        let fate = state.step(life)?;
        let is_cut = matches!(fate, Fate::Cut);
        if is_cut && state.rng.one_in(2) {
            return Err(cut());
        }
        state.lookup(dir, name)?;
        state.set(dir, name, None);
        if is_cut { Err(cut()) } else { Ok(()) }
    }

    fn sync_dir(&self, dir: Dir) -> io::Result<()> {
        let mut state = self.state();
        let life = state.life;
        let fate = state.step(life)?;
        if matches!(fate, Fate::Fails(_)) || state.directory_faults {
            return Err(io::Error::from_raw_os_error(EIO));
        }
        let is_cut = matches!(fate, Fate::Cut);
        if is_cut && state.rng.one_in(2) {
            return Err(cut());
        }
        for ((of, _), history) in &mut state.names {
            if *of == rank(dir) {
                history.drain(..history.len() - 1);
            }
        }
        if is_cut { Err(cut()) } else { Ok(()) }
    }

    fn list(&self, dir: Dir) -> io::Result<Vec<String>> {
        let mut state = self.state();
        if state.dead {
            return Err(cut());
        }
        let present = state.names.iter().filter(|((of, _), history)| *of == rank(dir) && history.last() != Some(&None));
        let mut names: Vec<String> = present.map(|((_, name), _)| name.clone()).collect();
        for i in (1..names.len()).rev() {
            let j = state.rng.below(i + 1);
            names.swap(i, j);
        }
        Ok(names)
    }

    fn free_bytes(&self) -> io::Result<u64> {
        Ok(u64::MAX)
    }

    fn boot_id(&self) -> Option<BootId> {
        Some(u128::from(self.state().boot).to_be_bytes())
    }
}

impl File for SimFile {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.disk.state();
        let fate = state.step(self.life)?;
        let offset = usize::try_from(offset).unwrap();
        let part = match fate {
            Fate::Done => bytes.len(),
            Fate::Cut | Fate::Fails(_) => state.rng.below(bytes.len() + 1),
        };
        state.write(self.inode, offset, &bytes[..part]);
        match fate {
            Fate::Done => Ok(()),
            Fate::Cut => Err(cut()),
            Fate::Fails(code) => Err(io::Error::from_raw_os_error(code)),
        }
    }

    fn truncate(&self) -> io::Result<()> {
        let mut state = self.disk.state();
        let fate = state.step(self.life)?;
        if let Fate::Fails(code) = fate {
            return Err(io::Error::from_raw_os_error(code));
        }
        let is_cut = matches!(fate, Fate::Cut);
        if is_cut && state.rng.one_in(2) {
            return Err(cut());
        }
        let inode = state.inodes.entry(self.inode).or_default();
        inode.cached.clear();
        inode.pending.push(Change::Truncate);
        if is_cut { Err(cut()) } else { Ok(()) }
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let state = self.disk.state();
        if state.dead || state.life != self.life {
            return Err(cut());
        }
        let bytes = state.inodes.get(&self.inode).map_or(&[][..], |inode| &inode.cached);
        let rest = bytes.get(usize::try_from(offset).unwrap()..).unwrap_or_default();
        let n = rest.len().min(buf.len());
        buf[..n].copy_from_slice(&rest[..n]);
        Ok(n)
    }

    fn size(&self) -> io::Result<u64> {
        let state = self.disk.state();
        if state.dead || state.life != self.life {
            return Err(cut());
        }
        Ok(state.inodes.get(&self.inode).map_or(0, |inode| inode.cached.len() as u64))
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut guard = self.disk.state();
        let state = &mut *guard;
        let fate = match state.step(self.life)? {
            Fate::Done if state.file_faults > 0 && state.rng.one_in(state.file_faults) => Fate::Fails(EIO),
            fate => fate,
        };
        let Some(inode) = state.inodes.get_mut(&self.inode) else { return Ok(()) };
        match fate {
            Fate::Done => {
                for change in inode.pending.drain(..) {
                    change.apply(&mut inode.durable);
                }
                Ok(())
            }
            // Some of it is written, the rest stays as it was.
            Fate::Cut => {
                let kept = state.rng.below(inode.pending.len() + 1);
                for change in inode.pending.drain(..kept) {
                    change.apply(&mut inode.durable);
                }
                Err(cut())
            }
            // The page cache keeps what the disk never got, and forgets that it must be written.
            Fate::Fails(code) => {
                for change in std::mem::take(&mut inode.pending) {
                    change.tear(&mut state.rng, &mut inode.durable);
                }
                Err(io::Error::from_raw_os_error(code))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Content = Option<Vec<u8>>;

    fn content(disk: &SimDisk, dir: Dir, name: &str) -> Content {
        let file = disk.open(dir, name, false).ok()?;
        let mut out = vec![0; usize::try_from(file.size().unwrap()).unwrap()];
        file.read_at(0, &mut out).unwrap();
        Some(out)
    }

    /// Every result of one unsynced history, over many seeds.
    fn results(history: impl Fn(&SimDisk)) -> Vec<(Content, Content)> {
        let result = |seed| {
            let disk = SimDisk::new(seed);
            history(&disk);
            disk.crash(Crash::PowerCut);
            (content(&disk, Dir::Receiving, "x"), content(&disk, Dir::Staged, "x"))
        };
        let mut results: Vec<_> = (0..2000).map(result).collect();
        results.sort();
        results.dedup();
        results
    }

    #[test]
    fn what_is_not_synced_may_be_anything() {
        let results = results(|disk| {
            let file = disk.create(Dir::Receiving, "x").unwrap();
            file.write_at(0, b"ab").unwrap();
            disk.rename((Dir::Receiving, "x"), (Dir::Staged, "x")).unwrap();
        });
        let states: [Content; 6] =
            [None, Some(vec![]), Some(b"\0\0".into()), Some(b"\0b".into()), Some(b"a".into()), Some(b"ab".into())];
        for state in states {
            assert!(results.iter().any(|(from, _)| *from == state) && results.iter().any(|(_, to)| *to == state));
        }
        assert!(results.contains(&(None, None)), "a renaming may lose both names");
        assert!(results.contains(&(Some(b"ab".into()), Some(b"ab".into()))), "or keep both");
    }

    #[test]
    fn what_is_synced_stays() {
        let results = results(|disk| {
            let file = disk.create(Dir::Receiving, "x").unwrap();
            file.write_at(0, b"ab").unwrap();
            file.sync_data().unwrap();
            disk.rename((Dir::Receiving, "x"), (Dir::Staged, "x")).unwrap();
            disk.sync_dir(Dir::Staged).unwrap();
            disk.sync_dir(Dir::Receiving).unwrap();
        });
        assert_eq!(results, [(None, Some(b"ab".into()))]);
    }

    #[test]
    fn a_kill_leaves_the_page_cache_and_a_failed_sync_lies_afterwards() {
        let disk = SimDisk::new(1);
        let file = disk.create(Dir::Receiving, "x").unwrap();
        disk.sync_dir(Dir::Receiving).unwrap();
        file.write_at(0, &[1; 4000]).unwrap();
        disk.fail_one_in(1);
        assert!(file.sync_data().is_err());
        disk.crash(Crash::Kill);
        assert!(file.sync_data().is_err(), "what was open before is dead");
        assert_eq!(content(&disk, Dir::Receiving, "x"), Some(vec![1; 4000]));
        disk.open(Dir::Receiving, "x", true).unwrap().sync_data().unwrap();
        let boot = disk.boot_id();
        disk.crash(Crash::PowerCut);
        assert_ne!(disk.boot_id(), boot);
        assert!((0..200).any(|seed| {
            let disk = SimDisk::new(seed);
            let file = disk.create(Dir::Receiving, "x").unwrap();
            disk.sync_dir(Dir::Receiving).unwrap();
            file.write_at(0, b"ab").unwrap();
            disk.fail_one_in(1);
            file.sync_data().unwrap_err();
            disk.fail_one_in(0);
            file.sync_data().unwrap();
            disk.crash(Crash::PowerCut);
            content(&disk, Dir::Receiving, "x") != Some(b"ab".into())
        }));
    }
}
