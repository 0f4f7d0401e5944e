//! Crashes on a disk that keeps only what it must ([`super::sim`]).
//!
//! A seed is a history: chunks are begun, appended, resumed, committed in groups, removed; the
//! machine stops during any of it, also during recovery; what comes back is held against what
//! was answered. `SIM_SEED=n` replays one seed, `SIM_SEEDS=n` sets how many are run; without it there
//! are 25,000, which make 100,000 crashes.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex};

use super::committer::{Synced, publish, sync};
use super::disk::{Dir, Disk};
use super::fixture::{self, grant, key, meta, sha256};
use super::sim::{Crash, Rng, SimDisk};
use super::{Meta, Part, Recovered, StreamCapability, Vault};
use crate::clock::Clock;
use crate::proto::{ChunkRef, StreamId};

const SEEDS: u64 = 25_000;
/// Crashes of a seed, those during recovery not counted.
const LIVES: u64 = 4;
/// What a process does before it is stopped, if the crash does not come first.
const ACTIONS: usize = 32;
const CHUNKS: usize = 4;
const STREAMS: usize = 2;
const LONGEST: usize = 1400;

/// What was answered, and what may be found besides.
#[derive(Default)]
struct Book {
    /// Answered durable, or reported staged, and not removed: index and version.
    durable: BTreeMap<u64, u64>,
    /// Renamed without an answer, or removed: may be found.
    possible: BTreeMap<u64, BTreeSet<u64>>,
    /// Bytes acknowledged of partials nobody gave up: version and length.
    partial: BTreeMap<u64, (u64, u64)>,
    /// What a stream's capability may be.
    streams: BTreeMap<usize, BTreeSet<Option<u64>>>,
}

struct World {
    disk: SimDisk,
    rng: Rng,
    book: Book,
    /// Versions and tokens, each used once.
    next: u64,
    versions: BTreeMap<(u64, u64), Rc<Version>>,
    seen: Seen,
}

/// What the histories came to: a test that never got there proves nothing.
#[derive(Debug, Default, Clone, Copy)]
struct Seen {
    crashes: u64,
    crashes_in_recovery: u64,
    durable_after_crash: u64,
    unanswered_after_crash: u64,
    resumed_after_kill: u64,
    used_again: u64,
    operations: u64,
}

impl Seen {
    fn add(&mut self, other: &Self) {
        self.crashes += other.crashes;
        self.crashes_in_recovery += other.crashes_in_recovery;
        self.durable_after_crash += other.durable_after_crash;
        self.unanswered_after_crash += other.unanswered_after_crash;
        self.resumed_after_kill += other.resumed_after_kill;
        self.used_again += other.used_again;
        self.operations += other.operations;
    }
}

/// One process between two crashes.
struct Life {
    vault: Vault,
    open: BTreeMap<u64, (u64, Part)>,
    synced: Vec<(u64, u64, Synced)>,
    faulty: bool,
}

/// One version of a chunk: any two differ.
struct Version {
    meta: Meta,
    payload: Vec<u8>,
}

impl Version {
    fn new(index: u64, version: u64) -> Rc<Self> {
        let mut rng = Rng::new(index << 32 ^ version);
        let length = 1 + rng.below(LONGEST);
        let mut payload: Vec<u8> = (0..length.div_ceil(8)).flat_map(|_| rng.next().to_be_bytes()).collect();
        payload.truncate(length);
        let mut meta = meta(index, &payload);
        meta.offer.attempt = version;
        Rc::new(Self { meta, payload })
    }
}

fn chunk(index: u64) -> ChunkRef {
    static CHUNKS_BY_INDEX: LazyLock<[ChunkRef; CHUNKS]> =
        LazyLock::new(|| std::array::from_fn(|i| fixture::chunk(1 + i as u64)));
    CHUNKS_BY_INDEX[index as usize - 1]
}

fn stream(n: usize) -> StreamId {
    StreamId::new(&format!("stream-{n}")).unwrap()
}

impl World {
    fn new(seed: u64) -> Self {
        Self {
            disk: SimDisk::new(seed),
            rng: Rng::new(!seed),
            book: Book::default(),
            next: 1,
            versions: BTreeMap::new(),
            seen: Seen::default(),
        }
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn version(&mut self, index: u64, version: u64) -> Rc<Version> {
        Rc::clone(self.versions.entry((index, version)).or_insert_with(|| Version::new(index, version)))
    }

    fn open(&self) -> std::io::Result<(Vault, Recovered)> {
        Vault::open(Arc::new(self.disk.clone()), &key(), Clock::at_unix_ms(0))
    }

    /// Works until the machine stops.
    fn live(&mut self, vault: Vault) -> Crash {
        let mut life = Life { vault, open: BTreeMap::new(), synced: Vec::new(), faulty: self.rng.one_in(4) };
        if life.faulty {
            self.disk.fail_one_in(3 + self.rng.below(12));
        }
        self.disk.fail_directories(self.rng.one_in(16));
        self.disk.crash_after(self.rng.below(60) as u64);
        for _ in 0..ACTIONS {
            self.act(&mut life);
            if self.disk.is_dead() {
                break;
            }
        }
        self.disk.fail_directories(false);
        let how = if self.rng.one_in(3) { Crash::Kill } else { Crash::PowerCut };
        self.disk.crash(how);
        if how == Crash::PowerCut || life.faulty {
            self.book.partial.clear();
        }
        how
    }

    fn act(&mut self, life: &mut Life) {
        let index = 1 + self.rng.below(CHUNKS) as u64;
        match self.rng.below(16) {
            0..=2 => self.begin(life, index),
            3..=6 => self.append(life, index),
            7 => self.resume(life, index),
            8..=10 => self.sync(life),
            11 | 12 => self.publish(life),
            13 => self.remove(life, index),
            14 => self.give_up(life, index),
            _ => self.renew(life),
        }
    }

    fn begin(&mut self, life: &mut Life, index: u64) {
        let known = life.open.contains_key(&index) || self.book.durable.contains_key(&index);
        if known && !self.rng.one_in(8) {
            return;
        }
        let version = self.number();
        self.book.partial.remove(&index);
        let free = life.vault.inner().spares.free();
        if let Ok(part) = life.vault.create(chunk(index), &self.version(index, version).meta) {
            self.seen.used_again += (free - life.vault.inner().spares.free()) as u64;
            life.open.insert(index, (version, part));
        }
    }

    fn append(&mut self, life: &mut Life, index: u64) {
        let Some((version, part)) = life.open.get_mut(&index) else { return };
        let payload = &self.version(index, *version).payload;
        let at = usize::try_from(part.len()).unwrap();
        let rest = payload.len() - at;
        let n = if !self.rng.one_in(3) { rest } else { self.rng.below(rest + 1) };
        if part.append(&payload[at..at + n]).is_ok() && !part.is_empty() {
            self.book.partial.insert(index, (*version, part.len()));
        }
    }

    fn resume(&mut self, life: &mut Life, index: u64) {
        if let Ok(part) = life.vault.reopen(chunk(index)) {
            let version = self.check_part(index, &part);
            life.open.insert(index, (version, part));
        }
    }

    /// A partial is a beginning of some version of its chunk; which one is in its metadata.
    fn check_part(&self, index: u64, part: &Part) -> u64 {
        let mut of_chunk = self.versions.iter().filter(|((of, _), _)| *of == index);
        let ((_, version), known) = of_chunk.find(|(_, known)| part.is_of(&known.meta)).unwrap();
        let begun = &known.payload[..usize::try_from(part.len()).unwrap()];
        assert_eq!(part.digest(), sha256(begun), "altered bytes in a partial");
        *version
    }

    /// Any part that is whole; those that are superseded must be refused.
    fn sync(&mut self, life: &mut Life) {
        let Some((index, (version, part))) = life.open.extract_if(.., |_, (_, part)| part.is_whole()).next() else {
            return;
        };
        self.book.partial.remove(&index);
        if let Ok(synced) = sync(part) {
            life.synced.push((index, version, synced));
        }
    }

    fn publish(&mut self, life: &mut Life) {
        if life.synced.is_empty() {
            return;
        }
        let (names, group): (Vec<_>, Vec<_>) =
            life.synced.drain(..).map(|(index, version, synced)| ((index, version), synced)).unzip();
        for (index, version) in &names {
            self.book.possible.entry(*index).or_default().insert(*version);
        }
        for ((index, version), result) in names.into_iter().zip(publish(life.vault.inner(), group)) {
            if let Ok(durable) = result {
                assert_eq!(durable.chunk(), chunk(index));
                assert_eq!(self.book.durable.insert(index, version), None, "staged twice");
                self.book.possible.remove(&index);
            }
        }
        if !self.rng.one_in(4) {
            life.vault.empty_retired();
        }
    }

    fn remove(&mut self, life: &Life, index: u64) {
        if let Some(version) = self.book.durable.remove(&index) {
            self.book.possible.entry(index).or_default().insert(version);
            // Each way its file takes, and lulls.
            let vault = &life.vault;
            let _ = if self.rng.one_in(4) { vault.remove(chunk(index)) } else { vault.retire(chunk(index)) };
            if self.rng.one_in(2) {
                // As a group of other chunks would.
                publish(vault.inner(), Vec::new());
                vault.empty_retired();
            }
            if self.rng.one_in(8) {
                let _ = vault.drop_retired();
            }
        }
    }

    fn give_up(&mut self, life: &Life, index: u64) {
        self.book.partial.remove(&index);
        let _ = life.vault.remove_partial(chunk(index));
    }

    fn renew(&mut self, life: &Life) {
        let (n, token) = (self.rng.below(STREAMS), self.number());
        let possible = self.book.streams.entry(n).or_insert_with(|| [None].into());
        if self.rng.one_in(5) {
            possible.insert(None);
            let _ = life.vault.remove_stream_capability(&stream(n), 0);
            return;
        }
        possible.insert(Some(token));
        let record = StreamCapability::new(stream(n), format!("{token}"), grant());
        if life.vault.put_stream_capability(&record).is_ok() {
            *possible = [Some(token)].into();
        }
    }

    /// Recovers, sometimes through further crashes, and holds the result against the book.
    fn recover(&mut self, crash: Option<Crash>) -> Vault {
        while self.rng.one_in(4) {
            self.disk.crash_after(self.rng.below(8) as u64);
            let opened = self.open();
            if self.disk.is_dead() {
                self.seen.crashes_in_recovery += 1;
            } else {
                // The fuse was longer than the recovery: what is found next is checked below.
                opened.unwrap();
            }
            let how = if self.rng.one_in(2) { Crash::Kill } else { Crash::PowerCut };
            self.disk.crash(how);
            if how == Crash::PowerCut {
                self.book.partial.clear();
            }
        }
        let (vault, found) = self.open().unwrap();
        self.check_staged(&vault, &found);
        self.check_streams(&found);
        self.check_partial(&vault, &found, crash);
        assert_eq!(found.unreadable, 0, "something half is called staged");
        let counts = [found.partial.len(), found.staged.len(), found.streams.len(), found.damaged.len()];
        assert_eq!(Dir::ALL.map(|dir| self.disk.list(dir).unwrap().len()), counts, "leftovers");
        if self.rng.one_in(8) {
            drop(vault);
            let (vault, again) = self.open().unwrap();
            let recounted = [again.partial.len(), again.staged.len(), again.streams.len(), again.damaged.len()];
            assert_eq!(recounted, counts, "not idempotent");
            assert_eq!((again.unreadable, again.removed), (0, 0), "not idempotent");
            return vault;
        }
        vault
    }

    fn check_staged(&mut self, vault: &Vault, found: &Recovered) {
        let mut durable = BTreeMap::new();
        for (meta, file) in &found.staged {
            let (index, version) = (meta.offer.index, meta.offer.attempt);
            let known = self.version(index, version);
            assert!(*meta == known.meta, "altered metadata");
            let allowed = match self.book.durable.get(&index) {
                Some(answered) => {
                    self.seen.durable_after_crash += 1;
                    *answered == version
                }
                None => {
                    self.seen.unanswered_after_crash += 1;
                    self.book.possible.get(&index).is_some_and(|possible| possible.contains(&version))
                }
            };
            assert!(allowed, "chunk {index} version {version} must not be staged");
            let payload = &known.payload;
            let mut bytes = vec![0; payload.len() + 1];
            let n = vault.read(chunk(index)).unwrap().read_at(0, &mut bytes).unwrap();
            assert!(bytes[..n] == payload[..] && file.len == payload.len() as u64, "altered bytes");
            assert!(vault.verify(chunk(index)).unwrap());
            assert_eq!(durable.insert(index, version), None);
        }
        let lost = self.book.durable.keys().find(|index| !durable.contains_key(index));
        assert_eq!(lost, None, "answered durable and lost");
        self.book.durable = durable;
        self.book.possible.clear();
    }

    fn check_streams(&mut self, found: &Recovered) {
        for n in 0..STREAMS {
            let record = found.streams.iter().find(|record| record.stream == stream(n));
            let token = record.map(|record| record.capability.parse().unwrap());
            let possible = self.book.streams.entry(n).or_insert_with(|| [None].into());
            assert!(possible.contains(&token), "stream {n} has {token:?}, not one of {possible:?}");
            *possible = [token].into();
        }
    }

    fn check_partial(&mut self, vault: &Vault, found: &Recovered, crash: Option<Crash>) {
        for (meta, file) in &found.partial {
            let (index, version) = (meta.offer.index, meta.offer.attempt);
            assert_ne!(crash, Some(Crash::PowerCut), "a partial of another boot");
            assert!(*meta == self.version(index, version).meta);
            assert!(!self.book.durable.contains_key(&index), "partial and staged");
            if self.rng.one_in(2) {
                self.seen.resumed_after_kill += 1;
                let part = vault.reopen(chunk(index)).unwrap();
                assert_eq!((self.check_part(index, &part), part.len()), (version, file.len));
            }
        }
        for (index, (version, len)) in std::mem::take(&mut self.book.partial) {
            let held = self.book.durable.contains_key(&index)
                || found
                    .partial
                    .iter()
                    .any(|(meta, file)| meta.offer.index == index && meta.offer.attempt == version && file.len >= len);
            assert!(held, "a killed process lost acknowledged bytes of chunk {index}");
        }
    }
}

/// Says how to see it again.
struct Replay(u64);

impl Drop for Replay {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("replay: SIM_SEED={} cargo test -p waystation --lib crash_test", self.0);
        }
    }
}

fn run(seed: u64) -> Seen {
    let _replay = Replay(seed);
    let mut world = World::new(seed);
    let mut vault = world.recover(None);
    for _ in 0..LIVES {
        let how = world.live(vault);
        world.seen.crashes += 1;
        vault = world.recover(Some(how));
    }
    world.seen.operations = world.disk.operations();
    world.seen
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

#[test]
fn nothing_answered_durable_is_missing_or_altered_after_any_crash() {
    if let Some(seed) = setting("SIM_SEED") {
        run(seed);
        return;
    }
    let seeds = setting("SIM_SEEDS").unwrap_or(SEEDS);
    let (next, seen) = (AtomicU64::new(0), Mutex::new(Seen::default()));
    let threads = std::thread::available_parallelism().map_or(2, usize::from).max(2);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut mine = Seen::default();
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds {
                        break;
                    }
                    mine.add(&run(seed));
                }
                seen.lock().unwrap().add(&mine);
            });
        }
    });
    let seen = seen.into_inner().unwrap();
    println!("{seen:?}");
    assert_eq!(seen.crashes, seeds * LIVES);
    let reached = [
        seen.crashes_in_recovery,
        seen.durable_after_crash,
        seen.unanswered_after_crash,
        seen.resumed_after_kill,
        seen.used_again,
    ];
    assert!(seeds < 100 || reached.iter().all(|count| *count > seeds / 100), "the histories do not get far: {seen:?}");
}

/// The sync of a file fails, the process is killed before it can remove the file, and the kernel
/// has forgotten that the bytes were never written: the next process must not rely on them.
#[test]
fn bytes_of_a_failed_sync_are_written_anew() {
    let mut gone_on_with = 0;
    for seed in 0..100 {
        let _replay = Replay(seed);
        let mut world = World::new(seed);
        let known = world.version(1, 1);
        let (vault, _) = world.open().unwrap();
        let mut part = vault.create(chunk(1), &known.meta).unwrap();
        part.append(&known.payload).unwrap();
        world.disk.fail_files_one_in(1);
        world.disk.crash_after(1);
        assert!(sync(part).is_err());
        world.disk.fail_files_one_in(0);
        world.disk.crash(Crash::Kill);
        let (vault, found) = world.open().unwrap();
        if found.partial.is_empty() {
            continue;
        }
        gone_on_with += 1;
        let part = vault.reopen(chunk(1)).unwrap();
        assert!(publish(vault.inner(), vec![sync(part).unwrap()]).remove(0).is_ok());
        world.disk.crash(Crash::PowerCut);
        let (vault, found) = world.open().unwrap();
        assert_eq!((found.staged.len(), found.unreadable), (1, 0), "answered durable and lost");
        assert!(vault.verify(chunk(1)).unwrap());
    }
    assert!(gone_on_with > 20, "{gone_on_with}");
}
