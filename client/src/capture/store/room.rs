//! Room that is held for when the disk is full: a queue that can't write can't grow smaller either.

use std::io::{ErrorKind, Result};

use super::{QUEUE_FILE, Store};

/// Noise, which no recording gets the room of.
pub(super) const FILE: &str = "upload_queue.room";

/// It is looked at every so many chunks that were not kept whether there is room again.
const LOOK_AT: u32 = 8;

/// The room of one queue.
#[derive(Default)]
pub(super) struct Room {
    /// [`FILE`] is there, whole.
    held: bool,
    /// It was taken, or there was none to hold, when so many bytes were kept: nothing new is kept
    /// before it is held, and that is not tried again before as many are gone.
    lent_at: Option<u64>,
    /// How often somebody asked meanwhile.
    asked: u32,
}

impl Store {
    /// Looks what an earlier process left of it.
    pub(super) fn find_room(&mut self) {
        let length = self.disk.read(FILE).map(|bytes| bytes.len());
        self.room.held = length.is_ok_and(|length| length == self.disk.held_room());
        if !self.room.held {
            let _ = self.disk.remove(FILE);
        }
    }

    /// Opens a queue whose file can't be written anew, since the disk is full: it stays as it is, and
    /// the first change writes it. A crash before that gives this opening's number to the next one
    /// too, which costs an answer of a relay that saw both. `whole`: no file that the queue does not
    /// name is worth anything.
    pub(super) fn open_full(&mut self, whole: bool) {
        if !whole {
            return;
        }
        // As behind a file written anew: all that was read is synced before anything is taken away.
        let synced = self.disk.append(QUEUE_FILE, &[], true).and_then(|()| self.disk.sync_names());
        if synced.and_then(|()| self.tidy()).is_ok() {
            // Where that made no room either, the first change tries it again.
            let _ = self.rewrite();
        }
    }

    /// Does what makes the queue smaller in the end: on a full disk with the room that is held for it.
    pub(super) fn in_room(&mut self, mut work: impl FnMut(&mut Self) -> Result<()>) -> Result<()> {
        match work(self) {
            Err(error) if is_full(&error) && self.room.held => {
                self.disk.remove(FILE)?;
                self.room = Room { held: false, lent_at: Some(self.state.size()), asked: 0 };
                work(self)
            }
            done => done,
        }
    }

    /// Whether the room is in use, for somebody who would keep something new: what it frees is not for
    /// a recording. Now and then it is looked whether the disk has room again.
    pub(super) fn lends_room(&mut self) -> bool {
        if self.room.lent_at.is_some() {
            self.room.asked += 1;
            if self.room.asked.is_multiple_of(LOOK_AT) {
                self.try_to_hold_room();
            }
        }
        self.room.lent_at.is_some()
    }

    /// Holds room again, if there may be some.
    pub(super) fn hold_room(&mut self) {
        let bytes = self.disk.held_room();
        let freed = self
            .room
            .lent_at
            .is_none_or(|then| self.state.size() + bytes as u64 <= then || self.state.items.is_empty());
        if bytes > 0 && !self.room.held && freed {
            self.try_to_hold_room();
        }
    }

    fn try_to_hold_room(&mut self) {
        // What can't be compressed takes the room that it seems to take.
        let mut noise = vec![0; self.disk.held_room()];
        if !(self.dice)(&mut noise) {
            return;
        }
        match self.disk.create(FILE, &noise) {
            Ok(()) => self.room = Room { held: true, ..Room::default() },
            // The last bytes of a disk are for what makes the queue smaller, held or not.
            Err(error) if is_full(&error) => self.room.lent_at = Some(self.state.size()),
            Err(_) => {}
        }
    }
}

pub(super) fn is_full(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io;
    use std::sync::{Arc, Mutex};

    use waystation_proto::Variant;

    use super::super::crash_test::sealed;
    use super::super::disk::Disk;
    use super::super::record::Record;
    use super::super::{NotKept, Store};
    use super::{FILE, LOOK_AT};
    use crate::capture::local::LocalKey;

    /// A disk of so many bytes. It outlives the queue on it.
    #[derive(Clone)]
    struct Small(usize, Arc<Mutex<Files>>);

    #[derive(Default)]
    struct Files {
        by_name: BTreeMap<String, Vec<u8>>,
        /// How often room was to be held.
        holds: usize,
    }

    impl Small {
        fn new(bytes: usize) -> Self {
            Self(bytes, Arc::default())
        }

        fn with<T>(&self, look: impl FnOnce(&mut Files) -> T) -> T {
            look(&mut self.1.lock().unwrap())
        }

        fn used(&self) -> usize {
            self.with(|files| files.by_name.values().map(Vec::len).sum())
        }

        fn takes(&self, more: usize) -> io::Result<()> {
            if self.used() + more > self.0 { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
        }

        /// Another program leaves so many bytes.
        fn fill(&mut self, left: usize) {
            let rest = self.0 - self.used() - left;
            self.create("other", &vec![0; rest]).unwrap();
        }
    }

    impl Disk for Small {
        fn list(&mut self) -> io::Result<Vec<String>> {
            Ok(self.with(|files| files.by_name.keys().cloned().collect()))
        }

        fn read(&mut self, name: &str) -> io::Result<Vec<u8>> {
            self.with(|files| files.by_name.get(name).cloned()).ok_or_else(|| io::ErrorKind::NotFound.into())
        }

        fn create(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
            self.with(|files| files.holds += usize::from(name == FILE));
            self.takes(bytes.len())?;
            self.with(|files| files.by_name.insert(name.into(), bytes.into()));
            Ok(())
        }

        fn append(&mut self, name: &str, bytes: &[u8], _sync: bool) -> io::Result<()> {
            self.takes(bytes.len())?;
            self.with(|files| files.by_name.get_mut(name).map(|file| file.extend_from_slice(bytes)))
                .ok_or_else(|| io::ErrorKind::NotFound.into())
        }

        fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
            self.with(|files| {
                let bytes = files.by_name.remove(from).ok_or(io::ErrorKind::NotFound)?;
                files.by_name.insert(to.into(), bytes);
                Ok(())
            })
        }

        fn remove(&mut self, name: &str) -> io::Result<()> {
            self.with(|files| files.by_name.remove(name).map(drop)).ok_or_else(|| io::ErrorKind::NotFound.into())
        }

        fn sync_names(&mut self) -> io::Result<()> {
            Ok(())
        }

        fn held_room(&self) -> usize {
            20_000
        }
    }

    fn store(bytes: usize) -> Store {
        open(&Small::new(bytes), 0)
    }

    /// Names of files begin behind `next`.
    fn open(disk: &Small, mut next: u8) -> Store {
        let dice = Box::new(move |out: &mut [u8]| {
            next += 1;
            out.fill(next);
            true
        });
        Store::open(Box::new(disk.clone()), LocalKey::new([1; 32]), dice, 1 << 30, "group").unwrap()
    }

    fn keep(store: &mut Store, id: u64, bytes: usize) -> Result<(), NotKept> {
        let (file, size) = store.file(&vec![7; bytes])?;
        let variant = Variant::AudioPriority;
        store.add(Record::Kept { id, variant, lane_seq: id, file, size, started_ms: 0, ended_ms: 1 });
        store.commit()
    }

    #[test]
    fn a_full_disk_takes_envelopes_and_is_emptied_by_what_is_confirmed() {
        let mut store = store(100_000);
        let mut kept = 0;
        while keep(&mut store, kept, 5_000).is_ok() {
            kept += 1;
        }
        assert!((12..16).contains(&kept), "{kept}: the rest is room for this");
        store.abandon();
        // Full to the last byte, as other programs leave a disk.
        let filled = (0..).take_while(|n| store.disk.create(&format!("other-{n}"), &[0; 64]).is_ok()).count();
        assert!(filled > 0);
        let mut lent = 0;
        for id in 0..kept {
            let (file, size) = store.envelope_file(&[8; 5_000]).unwrap();
            store.add(sealed(id, file, size));
            store.commit().unwrap();
            if store.room.lent_at.is_some() {
                let refused = store.file(&[7; 5_000]).is_err();
                assert!(refused || store.room.held, "a recording does not get it");
                store.abandon();
                lent += usize::from(refused);
            }
            store.add(Record::Confirmed { id });
            store.commit().unwrap();
        }
        assert!(lent > 3, "{lent}");
        assert!(store.state().items.is_empty());
        assert!(store.room.held, "it is held again");
        keep(&mut store, kept, 5_000).unwrap();
    }

    #[test]
    fn a_disk_that_has_room_again_takes_recordings_again() {
        let mut store = store(100_000);
        let others = (0..).take_while(|n| store.disk.create(&format!("other-{n}"), &[0; 500]).is_ok()).count();
        assert_eq!(store.file(&[7; 500]), Err(NotKept::Disk));
        store.envelope_file(&[8; 500]).unwrap();
        store.abandon();
        assert_eq!(store.file(&[7; 500]), Err(NotKept::Full), "this is not for a recording");
        (0..others).for_each(|n| store.disk.remove(&format!("other-{n}")).unwrap());
        let refused = (0..).take_while(|id| keep(&mut store, *id, 500).is_err()).count();
        assert!((1..=LOOK_AT as usize).contains(&refused), "{refused}");
        assert!(store.room.held);
    }

    /// A queue of some recordings, killed while its room was lent, on a disk with so many bytes left.
    fn killed(left: usize) -> Small {
        let mut disk = Small::new(200_000);
        let mut store = open(&disk, 0);
        (0..8).for_each(|id| keep(&mut store, id, 10_000).unwrap());
        disk.remove(FILE).unwrap();
        // An envelope that no record names yet.
        disk.create("000000000000000000000000000000ff", &[8; 1_000]).unwrap();
        disk.fill(left);
        disk
    }

    #[test]
    fn a_full_disk_is_opened_and_its_last_bytes_are_no_recordings() {
        for left in [0, 1, 4_000, 18_000] {
            let disk = killed(left);
            let mut store = open(&disk, 50);
            assert_eq!(store.state().items.len(), 8, "{left}");
            assert!(store.read(7).is_ok());
            assert!(!disk.with(|files| files.by_name.contains_key("000000000000000000000000000000ff")));
            assert_eq!(store.file(&[7; 10]), Err(NotKept::Full), "{left}: this is for what makes it smaller");
            // What is confirmed fits, and makes room; nothing big is tried before as much is gone.
            disk.with(|files| files.holds = 0);
            if left < 2 {
                // Not even that: somebody else has to give something back.
                disk.with(|files| files.by_name.get_mut("other").unwrap().truncate(1_000));
            }
            store.add(Record::Confirmed { id: 0 });
            store.commit().unwrap();
            assert_eq!((disk.with(|files| files.holds), store.room.held), (0, false), "{left}");
            for id in 1..8 {
                store.add(Record::Confirmed { id });
                store.commit().unwrap();
            }
            assert!(store.room.held, "{left}");
            assert!(disk.with(|files| files.holds) <= 2, "{left}");
            keep(&mut store, 9, 10).unwrap();
            drop(store);
            assert_eq!(open(&disk, 100).state().items.keys().collect::<Vec<_>>(), [&9]);
        }
    }

    #[test]
    fn room_is_not_tried_for_with_each_chunk_while_somebody_else_takes_what_is_freed() {
        let mut disk = killed(5_000);
        let mut store = open(&disk, 50);
        disk.with(|files| files.holds = 0);
        for id in 0..8 {
            store.add(Record::Confirmed { id });
            store.commit().unwrap();
            disk.remove("other").unwrap();
            disk.fill(5_000);
        }
        let tried = disk.with(|files| files.holds);
        assert!((1..=4).contains(&tried), "{tried} times for 80 kB in steps of 20 kB");
        let kept = (0..3 * LOOK_AT).filter(|_| store.file(&[7; 10]).is_ok()).count();
        assert_eq!((kept, disk.with(|files| files.holds) - tried), (0, 3), "and now and then when asked");
        disk.remove("other").unwrap();
        let refused = (0..).take_while(|id| keep(&mut store, 10 + id, 10).is_err()).count();
        assert!(refused < LOOK_AT as usize, "{refused}");
    }

    #[test]
    fn a_queue_begun_on_a_full_disk_is_there_once_something_fits() {
        let mut disk = Small::new(50_000);
        disk.fill(0);
        let mut store = open(&disk, 0);
        assert_eq!(store.file(&[7; 10]), Err(NotKept::Full));
        disk.remove("other").unwrap();
        while keep(&mut store, 0, 10).is_err() {
            store.abandon();
        }
        drop(store);
        assert_eq!(open(&disk, 50).state().items.len(), 1);
    }
}
