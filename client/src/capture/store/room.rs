//! Room that is held for when the disk is full: a queue that can't write can't grow smaller either.

use std::io::{ErrorKind, Result};

use super::Store;

/// Noise, which no recording gets the room of.
pub(super) const FILE: &str = "upload_queue.room";

/// It is looked at every so many chunks that were not kept whether there is room again.
const LOOK_AT: u32 = 8;

/// The room of one queue.
#[derive(Default)]
pub(super) struct Room {
    /// [`FILE`] is there, whole.
    held: bool,
    /// It was taken, when so many bytes were kept: nothing new is kept before it is back, and it is
    /// not tried again before as many are gone.
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
                self.room.lent_at = Some(u64::MAX);
                self.hold_room();
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
        if bytes == 0 || self.room.held || !freed {
            return;
        }
        // What can't be compressed takes the room that it seems to take.
        let mut noise = vec![0; bytes];
        if (self.dice)(&mut noise) && self.disk.create(FILE, &noise).is_ok() {
            self.room = Room { held: true, ..Room::default() };
        }
    }
}

fn is_full(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io;

    use waystation_proto::Variant;

    use super::super::crash_test::sealed;
    use super::super::disk::Disk;
    use super::super::record::Record;
    use super::super::{NotKept, Store};
    use super::LOOK_AT;
    use crate::capture::local::LocalKey;

    /// A disk of so many bytes.
    struct Small(usize, BTreeMap<String, Vec<u8>>);

    impl Small {
        fn takes(&self, more: usize) -> io::Result<()> {
            let used: usize = self.1.values().map(Vec::len).sum();
            if used + more > self.0 { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
        }
    }

    impl Disk for Small {
        fn list(&mut self) -> io::Result<Vec<String>> {
            Ok(self.1.keys().cloned().collect())
        }

        fn read(&mut self, name: &str) -> io::Result<Vec<u8>> {
            self.1.get(name).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
        }

        fn create(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
            self.takes(bytes.len())?;
            self.1.insert(name.into(), bytes.into());
            Ok(())
        }

        fn append(&mut self, name: &str, bytes: &[u8], _sync: bool) -> io::Result<()> {
            self.takes(bytes.len())?;
            self.1.get_mut(name).ok_or(io::ErrorKind::NotFound)?.extend_from_slice(bytes);
            Ok(())
        }

        fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
            let bytes = self.1.remove(from).ok_or(io::ErrorKind::NotFound)?;
            self.1.insert(to.into(), bytes);
            Ok(())
        }

        fn remove(&mut self, name: &str) -> io::Result<()> {
            self.1.remove(name).map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
        }

        fn sync_names(&mut self) -> io::Result<()> {
            Ok(())
        }

        fn held_room(&self) -> usize {
            20_000
        }
    }

    fn store(bytes: usize) -> Store {
        let mut next = 0_u8;
        let dice = Box::new(move |out: &mut [u8]| {
            next += 1;
            out.fill(next);
            true
        });
        Store::open(Box::new(Small(bytes, BTreeMap::new())), LocalKey::new([1; 32]), dice, 1 << 30, "group").unwrap()
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
}
