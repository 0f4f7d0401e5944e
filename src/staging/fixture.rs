//! Chunks, and a disk that tells what was done, for the tests of this module.

use std::io;
use std::sync::{Arc, Mutex};

use crate::proto::claims::{Format, Grant, LaneGrant, Use};
use crate::proto::offer::Timestamp;
use crate::proto::{ChunkRef, Digest, GroupId, IncidentId, Media, Offer, SessionId, StreamId, Variant};
use crate::staging::disk::{BootId, Dir, Disk, File, StdDisk};
use crate::staging::{Meta, SealKey};

pub(super) fn key() -> SealKey {
    SealKey::new([42; 32])
}

/// The disk at `root`. A test beside this one may be between fork and exec, with a copy of the
/// descriptor that held the directory's lock a moment ago.
pub(super) fn disk_at(root: &std::path::Path) -> StdDisk {
    for _ in 0..500 {
        match StdDisk::open(root) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            opened => return opened.unwrap(),
        }
    }
    panic!("the directory stays locked");
}

pub(super) fn sha256(bytes: &[u8]) -> Digest {
    let mut digest = Digest([0; 32]);
    digest.0.copy_from_slice(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes).as_ref());
    digest
}

pub(super) fn grant() -> Grant {
    Grant {
        format: Format::Jwt,
        use_: Use::Upload,
        session: SessionId::new("session-1").unwrap(),
        incident: IncidentId::new("incident-1").unwrap(),
        group: Some(GroupId::new("group-1").unwrap()),
        lanes: vec![LaneGrant {
            stream: StreamId::new("stream-1").unwrap(),
            variant: Some(Variant::AudioPriority),
            media: vec![Media::Audio],
            max_chunk_bytes: 1 << 20,
            max_chunks: 1000,
        }],
        exp: 2_000,
        commit_exp: 90_000,
        jti: Some("jti-1".into()),
        client_key: None,
    }
}

/// The metadata of chunk `index`, whose bytes are `payload`.
pub(super) fn meta(index: u64, payload: &[u8]) -> Meta {
    let offer = Offer {
        incident: IncidentId::new("incident-1").unwrap(),
        stream: StreamId::new("stream-1").unwrap(),
        index,
        media: Media::Audio,
        started: Timestamp::parse("2026-06-10T12:00:00.5Z").unwrap(),
        ended: Timestamp::parse("2026-06-10T12:00:02Z").unwrap(),
        length: payload.len() as u64,
        sha256: sha256(payload),
        name: String::new(),
        role: None,
        group: None,
        segment: None,
        sequence: None,
        source: None,
        clock: None,
        profile: None,
        priority: None,
        attempt: 1,
        sig: None,
    };
    Meta {
        offer,
        variant: Variant::AudioPriority,
        capability: format!("token-canary-{index}"),
        grant: grant(),
        trust_verified: true,
        accepted_unix_ms: 1_781_092_800_123,
    }
}

pub(super) fn chunk(index: u64) -> ChunkRef {
    meta(index, b"x").offer.chunk_ref()
}

/// What was done, in order.
#[derive(Clone, Default)]
pub(super) struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    pub(super) fn note(&self, entry: &str) {
        self.0.lock().unwrap().push(entry.into());
    }

    pub(super) fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

/// A disk that notes each change when it is complete.
pub(super) struct Recording<D> {
    disk: D,
    log: Log,
}

impl<D: Disk> Recording<D> {
    pub(super) fn new(disk: D) -> Self {
        Self { disk, log: Log::default() }
    }

    pub(super) fn log(&self) -> Log {
        self.log.clone()
    }

    fn file(&self, dir: Dir, file: Box<dyn File>) -> Box<dyn File> {
        Box::new(RecordingFile { file, dir, log: self.log.clone() })
    }
}

struct RecordingFile {
    file: Box<dyn File>,
    dir: Dir,
    log: Log,
}

impl<D: Disk> Disk for Recording<D> {
    fn create(&self, dir: Dir, name: &str) -> io::Result<Box<dyn File>> {
        let file = self.disk.create(dir, name)?;
        self.log.note(&format!("create {}", dir.name()));
        Ok(self.file(dir, file))
    }
    fn open(&self, dir: Dir, name: &str, write: bool) -> io::Result<Box<dyn File>> {
        Ok(self.file(dir, self.disk.open(dir, name, write)?))
    }
    fn rename(&self, from: (Dir, &str), to: (Dir, &str)) -> io::Result<()> {
        self.disk.rename(from, to)?;
        self.log.note(&format!("rename {} to {}", from.0.name(), to.0.name()));
        Ok(())
    }
    fn remove(&self, dir: Dir, name: &str) -> io::Result<()> {
        self.disk.remove(dir, name)?;
        self.log.note(&format!("remove {}", dir.name()));
        Ok(())
    }
    fn sync_dir(&self, dir: Dir) -> io::Result<()> {
        self.disk.sync_dir(dir)?;
        self.log.note(&format!("sync {}", dir.name()));
        Ok(())
    }
    fn list(&self, dir: Dir) -> io::Result<Vec<String>> {
        self.disk.list(dir)
    }
    fn free_bytes(&self) -> io::Result<u64> {
        self.disk.free_bytes()
    }
    fn boot_id(&self) -> Option<BootId> {
        self.disk.boot_id()
    }
}

impl File for RecordingFile {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_at(offset, bytes)?;
        self.log.note(&format!("write {}", self.dir.name()));
        Ok(())
    }
    fn write_pieces_at(&self, offset: u64, pieces: &[&[u8]]) -> io::Result<()> {
        self.file.write_pieces_at(offset, pieces)?;
        self.log.note(&format!("write {}", self.dir.name()));
        Ok(())
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.file.read_at(offset, buf)
    }
    fn truncate(&self) -> io::Result<()> {
        self.file.truncate()?;
        self.log.note(&format!("truncate {}", self.dir.name()));
        Ok(())
    }
    fn size(&self) -> io::Result<u64> {
        self.file.size()
    }
    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()?;
        self.log.note(&format!("sync file of {}", self.dir.name()));
        Ok(())
    }
}
