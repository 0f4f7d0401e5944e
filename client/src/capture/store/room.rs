//! Room that is held for when the disk is full: a queue that can't write can't grow smaller either.

use std::io::{ErrorKind, Result};

use super::Store;

/// Zeros, which no recording gets the room of.
pub(super) const FILE: &str = "upload_queue.room";

impl Store {
    /// Does what makes the queue smaller in the end: on a full disk with the room that is held for it.
    pub(super) fn in_room(&mut self, mut work: impl FnMut(&mut Self) -> Result<()>) -> Result<()> {
        match work(self) {
            Err(error) if error.kind() == ErrorKind::StorageFull && self.has_room => {
                self.disk.remove(FILE)?;
                self.has_room = false;
                work(self)
            }
            done => done,
        }
    }

    /// Holds room again, if there is any.
    pub(super) fn hold_room(&mut self) {
        let bytes = self.disk.held_room();
        if !self.has_room && bytes > 0 {
            self.has_room = self.disk.create(FILE, &vec![0; bytes]).is_ok();
        }
    }
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
        for id in 0..kept {
            let (file, size) = store.envelope_file(&[8; 5_000]).unwrap();
            store.add(sealed(id, file, size));
            store.commit().unwrap();
            store.add(Record::Confirmed { id });
            store.commit().unwrap();
        }
        assert!(store.state().items.is_empty());
        assert!(store.has_room, "it is held again");
        keep(&mut store, kept, 5_000).unwrap();
    }
}
