//! A disk that may lose, tear or keep whatever no sync covers, and a process that ends at any
//! operation: the queue opens to all that was committed, with its bytes.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};

use waystation_proto::{ChunkState, Media, Variant};

use super::disk::Disk;
use super::record::{LaneState, Note, Record, State};
use super::*;
use crate::capture::retry::Jitter;

const GROUP: &str = "group";

#[derive(Clone, Default)]
struct Inode {
    bytes: Vec<u8>,
    /// So many of them survive a power cut.
    synced: usize,
}

/// Files by number, names by what a power cut leaves, and changes of names not yet synced.
#[derive(Clone, Default)]
struct Platters {
    files: BTreeMap<u64, Inode>,
    names: BTreeMap<String, u64>,
    synced: BTreeMap<String, u64>,
    changes: Vec<Vec<(String, Option<u64>)>>,
    next: u64,
    /// Operations until the process ends.
    left: u64,
}

impl Platters {
    fn step(&mut self) -> io::Result<()> {
        if self.left == 0 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.left -= 1;
        Ok(())
    }

    /// Changes names in one step.
    fn name(&mut self, change: &[(&str, Option<u64>)]) {
        let change: Vec<_> = change.iter().map(|(name, file)| ((*name).to_owned(), *file)).collect();
        change.iter().for_each(|(name, file)| Self::set(&mut self.names, name, *file));
        self.changes.push(change);
    }

    fn set(names: &mut BTreeMap<String, u64>, name: &str, file: Option<u64>) {
        match file {
            Some(file) => names.insert(name.into(), file),
            None => names.remove(name),
        };
    }

    /// What the next process finds: each unsynced change of a name was kept or not, each file has
    /// its synced bytes and some of the others, perhaps spoiled.
    fn crash(&mut self, power: bool, dice: &mut Jitter) {
        if power {
            self.names = self.synced.clone();
            for change in std::mem::take(&mut self.changes) {
                if dice.roll().is_multiple_of(2) {
                    change.iter().for_each(|(name, file)| Self::set(&mut self.names, name, *file));
                }
            }
            for file in self.files.values_mut() {
                let loose = file.bytes.len() - file.synced;
                file.bytes.truncate(file.synced + (dice.roll() as usize % (loose + 1)));
                let spoiled = dice.roll().is_multiple_of(3);
                file.bytes[file.synced..].iter_mut().filter(|_| spoiled).for_each(|byte| *byte = 0);
            }
        }
        self.synced = self.names.clone();
        self.changes.clear();
        self.files.values_mut().for_each(|file| file.synced = file.bytes.len());
        self.left = u64::MAX;
    }
}

#[derive(Clone, Default)]
struct Sim(Arc<Mutex<Platters>>);

impl Disk for Sim {
    fn list(&mut self) -> io::Result<Vec<String>> {
        Ok(self.0.lock().unwrap().names.keys().cloned().collect())
    }

    fn read(&mut self, name: &str) -> io::Result<Vec<u8>> {
        let disk = self.0.lock().unwrap();
        let file = disk.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(disk.files[file].bytes.clone())
    }

    fn create(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let mut disk = self.0.lock().unwrap();
        disk.step()?;
        assert!(!disk.names.contains_key(name), "{name} is there");
        let file = disk.next;
        disk.next += 1;
        disk.files.insert(file, Inode { bytes: bytes.into(), synced: 0 });
        disk.name(&[(name, Some(file))]);
        disk.step()?;
        let synced = bytes.len();
        disk.files.insert(file, Inode { bytes: bytes.into(), synced });
        Ok(())
    }

    fn append(&mut self, name: &str, bytes: &[u8], sync: bool) -> io::Result<()> {
        let mut disk = self.0.lock().unwrap();
        disk.step()?;
        let file = *disk.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        let half = bytes.len() / 2;
        disk.files.get_mut(&file).unwrap().bytes.extend_from_slice(&bytes[..half]);
        disk.step()?;
        let inode = disk.files.get_mut(&file).unwrap();
        inode.bytes.extend_from_slice(&bytes[half..]);
        if sync {
            disk.step()?;
            let inode = disk.files.get_mut(&file).unwrap();
            inode.synced = inode.bytes.len();
        }
        Ok(())
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        let mut disk = self.0.lock().unwrap();
        disk.step()?;
        let file = *disk.names.get(from).ok_or(io::ErrorKind::NotFound)?;
        disk.name(&[(from, None), (to, Some(file))]);
        Ok(())
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        let mut disk = self.0.lock().unwrap();
        disk.step()?;
        if !disk.names.contains_key(name) {
            return Err(io::ErrorKind::NotFound.into());
        }
        disk.name(&[(name, None)]);
        Ok(())
    }

    fn sync_names(&mut self) -> io::Result<()> {
        let mut disk = self.0.lock().unwrap();
        disk.step()?;
        disk.synced = disk.names.clone();
        disk.changes.clear();
        Ok(())
    }

    fn held_room(&self) -> usize {
        64
    }
}

fn open(disk: &Sim, seed: u64) -> Result<Store, OpenError> {
    let mut dice = Jitter::new(seed);
    let fill = move |out: &mut [u8]| {
        out.iter_mut().for_each(|byte| *byte = dice.roll() as u8);
        true
    };
    Store::open(Box::new(disk.clone()), LocalKey::new([1; 32]), Box::new(fill), 1 << 30, GROUP)
}

fn content(id: u64, sealed: bool) -> Vec<u8> {
    format!("{} of chunk {id}", if sealed { "the envelope" } else { "the plaintext" }).into_bytes()
}

pub(super) fn sealed(id: u64, file: String, size: u64) -> Record {
    let offer = format!(
        r#"incident="i", stream="s", index={}, media="audio", started="2026-06-10T12:00:00Z", ended="2026-06-10T12:00:02Z", length=9"#,
        id + 1
    );
    Record::Sealed { id, file, size, offer, sha256: "01".repeat(32), stream_no: 0 }
}

/// What was promised: of each chunk, whether it is sealed; and those that are confirmed.
#[derive(Clone, Default, PartialEq, Debug)]
struct Promised {
    chunks: BTreeMap<u64, bool>,
    confirmed: u64,
    next: u64,
}

/// Makes one random change. The second value is what holds if it was made.
fn change(store: &mut Store, now: &Promised, dice: &mut Jitter) -> (Result<(), NotKept>, Promised) {
    let mut then = now.clone();
    let some = |dice: &mut Jitter| now.chunks.keys().nth(dice.roll() as usize % now.chunks.len().max(1)).copied();
    let done = match (dice.roll() % 5, some(dice)) {
        (0, Some(id)) if !now.chunks[&id] => store.envelope_file(&content(id, true)).and_then(|(file, size)| {
            then.chunks.insert(id, true);
            store.add(sealed(id, file, size));
            store.commit()
        }),
        (1, Some(id)) => {
            then.chunks.remove(&id);
            then.confirmed += 1;
            store.add(Record::Confirmed { id });
            store.commit()
        }
        (2, Some(id)) => {
            let note = Note { done: dice.roll() % 9, state: Some(ChunkState::Receiving), ..Note::default() };
            store.add(Record::Noted { id, note });
            store.commit()
        }
        _ => keep(store, &mut then, 1 + dice.roll() % 3),
    };
    if done.is_err() {
        store.abandon();
    }
    (done, then)
}

fn keep(store: &mut Store, then: &mut Promised, count: u64) -> Result<(), NotKept> {
    let media = Media::Audio;
    let (variant, streams, chain) = (Variant::AudioPriority, Vec::new(), String::new());
    if store.state().lanes.is_empty() {
        store.add(Record::Lane { lane: LaneState { variant, media, next_seq: 0, streams, chain } });
    }
    for _ in 0..count {
        let id = then.next;
        let (file, size) = store.file(&content(id, false))?;
        then.chunks.insert(id, false);
        then.next += 1;
        store.add(Record::Kept { id, variant, lane_seq: id, file, size, started_ms: 0, ended_ms: 1 });
    }
    store.commit()
}

fn found(store: &mut Store) -> Promised {
    let state: State = store.state().clone();
    assert!(State::of(state.image()) == state, "an image makes the state it is of");
    for (id, item) in &state.items {
        let bytes = store.read(*id).expect("a chunk's bytes are there");
        assert_eq!(*bytes, content(*id, item.sealed.is_some()), "chunk {id}");
    }
    let chunks = state.items.iter().map(|(id, item)| (*id, item.sealed.is_some())).collect();
    assert_eq!(state.totals.lost, 0);
    assert_eq!(state.totals.chunks, state.next_id, "each is counted once");
    Promised { chunks, confirmed: state.totals.confirmed, next: state.next_id }
}

fn history(seed: u64) {
    let mut dice = Jitter::new(seed);
    let disk = Sim::default();
    disk.0.lock().unwrap().left = u64::MAX;
    let mut possible = vec![Promised::default()];
    for run in 0..6 {
        disk.0.lock().unwrap().left = if dice.roll().is_multiple_of(8) { u64::MAX } else { dice.roll() % 80 };
        if let Ok(mut store) = open(&disk, dice.roll()) {
            let mut now = found(&mut store);
            assert!(possible.contains(&now), "seed {seed}, run {run}: {now:?} is none of {possible:?}");
            possible = vec![now.clone()];
            for _ in 0..dice.roll() % 40 {
                let (done, then) = change(&mut store, &now, &mut dice);
                let ended = disk.0.lock().unwrap().left == 0;
                match done {
                    Ok(()) => (now, possible) = (then.clone(), vec![then]),
                    Err(_) if ended => {
                        possible.push(then);
                        break;
                    }
                    Err(why) => panic!("seed {seed}: {why:?}"),
                }
            }
        }
        let power = dice.roll().is_multiple_of(2);
        disk.0.lock().unwrap().crash(power, &mut dice);
    }
    // In the end nothing is left but what is named.
    let mut store = open(&disk, dice.roll()).unwrap();
    let last = found(&mut store);
    assert!(possible.contains(&last), "seed {seed}: {last:?} is none of {possible:?}");
    let spare =
        store.disk.list().unwrap().into_iter().filter(|name| !name.ends_with(LEFT) && name != room::FILE).count();
    assert_eq!(spare, last.chunks.len() + 1, "seed {seed}");
}

#[test]
fn whatever_a_crash_leaves_opens_to_what_was_promised() {
    if let Ok(seed) = std::env::var("QUEUE_SEED") {
        return history(seed.parse().expect("QUEUE_SEED is a number"));
    }
    for seed in 0..500 {
        if std::panic::catch_unwind(|| history(seed)).is_err() {
            panic!("replay with QUEUE_SEED={seed}");
        }
    }
}

#[test]
fn a_full_disk_loses_nothing_and_later_chunks_are_kept_again() {
    for left in 0..60 {
        let disk = Sim::default();
        disk.0.lock().unwrap().left = u64::MAX;
        let mut store = open(&disk, 1).unwrap();
        let mut now = Promised::default();
        keep(&mut store, &mut now, 2).unwrap();
        disk.0.lock().unwrap().left = left;
        let mut dice = Jitter::new(left);
        for _ in 0..20 {
            let (done, then) = change(&mut store, &now, &mut dice);
            now = if done.is_ok() { then } else { now };
        }
        disk.0.lock().unwrap().left = u64::MAX;
        keep(&mut store, &mut now, 1).unwrap();
        assert_eq!(found(&mut store), now, "after {left} operations");
        drop(store);
        let mut store = open(&disk, 2).unwrap();
        assert_eq!(found(&mut store), now, "after {left} operations, opened again");
    }
}

#[test]
fn a_queue_file_cut_at_any_byte_opens_to_an_earlier_state_or_is_left_alone() {
    let disk = Sim::default();
    disk.0.lock().unwrap().left = u64::MAX;
    let mut store = open(&disk, 1).unwrap();
    let image = disk.clone().read(QUEUE_FILE).unwrap().len();
    let (mut now, mut dice) = (Promised::default(), Jitter::new(5));
    let mut states = vec![(image, now.clone())];
    while states.len() < 12 {
        let (done, then) = change(&mut store, &now, &mut dice);
        done.unwrap();
        now = then;
        states.push((disk.clone().read(QUEUE_FILE).unwrap().len(), now.clone()));
    }
    let whole = disk.clone().read(QUEUE_FILE).unwrap();
    for cut in 0..=whole.len() {
        match read(&LocalKey::new([1; 32]), &whole[..cut]) {
            Ok(state) => {
                let chunks = state.items.iter().map(|(id, item)| (*id, item.sealed.is_some())).collect();
                let is = Promised { chunks, confirmed: state.totals.confirmed, next: state.next_id };
                let (_, earlier) = states.iter().rev().find(|(length, _)| *length <= cut).unwrap();
                assert_eq!(is, *earlier, "cut at {cut}");
            }
            Err(error) => assert!(matches!(error, OpenError::Damaged) && cut < image, "{error} at {cut}"),
        }
    }
}

#[test]
fn neither_another_key_nor_a_damaged_file_costs_anything() {
    let dir = tempfile::tempdir().unwrap();
    let take = |key: u8, group: &str| {
        let disk = disk::Directory::take(dir.path(), LOCK_FILE).unwrap();
        Store::open(Box::new(disk), LocalKey::new([key; 32]), Box::new(crate::clock::fill), 1 << 30, group)
    };
    let mut store = take(1, GROUP).unwrap();
    keep(&mut store, &mut Promised::default(), 2).unwrap();
    drop(store);
    let before = std::fs::read(dir.path().join(QUEUE_FILE)).unwrap();
    assert!(matches!(take(2, GROUP), Err(OpenError::WrongKey)));
    assert!(matches!(take(1, "other"), Err(OpenError::OtherGroupKey)));
    assert_eq!(std::fs::read(dir.path().join(QUEUE_FILE)).unwrap(), before);
    std::fs::write(dir.path().join(QUEUE_FILE), &before[..30]).unwrap();
    assert!(matches!(take(1, GROUP), Err(OpenError::Damaged)));
    std::fs::write(dir.path().join(QUEUE_FILE), &before).unwrap();
    assert_eq!(found(&mut take(1, GROUP).unwrap()).chunks.len(), 2);
    for entry in std::fs::read_dir(dir.path()).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        assert!(!bytes.windows(9).any(|part| part == b"plaintext"), "nothing is readable on disk");
    }
}

#[test]
fn the_file_is_written_anew_before_it_grows_without_end() {
    let disk = Sim::default();
    disk.0.lock().unwrap().left = u64::MAX;
    let mut store = open(&disk, 1).unwrap();
    keep(&mut store, &mut Promised::default(), 1).unwrap();
    for done in 0..20_000 {
        store.add(Record::Noted { id: 0, note: Note { done, ..Note::default() } });
        store.commit().unwrap();
        assert!(disk.clone().read(QUEUE_FILE).unwrap().len() < 2 * MAX_GROWTH as usize);
    }
    drop(store);
    assert_eq!(open(&disk, 2).unwrap().state().items[&0].note.done, 19_999);
}

#[test]
fn a_full_queue_says_so_and_takes_more_when_something_is_confirmed() {
    let disk = Box::new(disk::Memory::default());
    let dice = Box::new(crate::clock::fill);
    let mut store = Store::open(disk, LocalKey::new([1; 32]), dice, 250, GROUP).unwrap();
    let mut then = Promised::default();
    keep(&mut store, &mut then, 3).unwrap();
    assert_eq!(store.file(&[0; 100]).err(), Some(NotKept::Full));
    assert!(store.envelope_file(&[0; 100]).is_ok(), "what is kept can be sealed");
    store.abandon();
    store.add(Record::Confirmed { id: 0 });
    store.add(Record::Confirmed { id: 1 });
    store.commit().unwrap();
    assert!(store.file(&[0; 100]).is_ok());
}

#[test]
fn what_a_torn_queue_does_not_name_is_kept_whenever_the_process_ends() {
    for ends in 0..100 {
        let disk = Sim::default();
        disk.0.lock().unwrap().left = u64::MAX;
        let mut store = open(&disk, 1).unwrap();
        let mut now = Promised::default();
        keep(&mut store, &mut now, 2).unwrap();
        let cut = disk.clone().read(QUEUE_FILE).unwrap().len();
        let many = 70;
        (0..many).for_each(|_| keep(&mut store, &mut now, 1).unwrap());
        drop(store);
        {
            // The disk itself lost the end of the file, long after it was synced.
            let mut disk = disk.0.lock().unwrap();
            let file = disk.names[QUEUE_FILE];
            let queue = disk.files.get_mut(&file).unwrap();
            queue.bytes.truncate(cut + 10);
            queue.synced = cut + 10;
            disk.left = ends;
        }
        let opened = open(&disk, 2).is_ok();
        disk.0.lock().unwrap().crash(ends % 2 == 0, &mut Jitter::new(ends));
        let mut store = open(&disk, 3).unwrap();
        assert_eq!(found_some(&mut store), 2);
        let kept = store.disk.list().unwrap().iter().filter(|name| name.ends_with(LEFT)).count();
        assert_eq!(kept, many, "ended after {ends} operations, opened: {opened}");
    }
}

/// How many chunks are named; each has its bytes.
fn found_some(store: &mut Store) -> usize {
    let ids: Vec<u64> = store.state().items.keys().copied().collect();
    ids.iter().for_each(|id| drop(store.read(*id).expect("a chunk's bytes are there")));
    ids.len()
}
