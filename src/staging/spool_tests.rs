use std::future::Future as _;
use std::path::Path;
use std::time::Duration;

use super::*;
use crate::clock::Clock;
use crate::config;
use crate::proto::ledger::Reason;
use crate::staging::StdDisk;
use crate::staging::disk::{BootId, Dir, Disk, File};
use crate::staging::fixture::{key, sha256};
use crate::telemetry::Metrics;

const PATIENCE: Duration = Duration::from_secs(30);

fn open(root: &Path, quota: u64) -> Staging {
    open_on(Arc::new(StdDisk::open(root).unwrap()), root, quota)
}

fn open_on(disk: Arc<dyn Disk>, root: &Path, quota: u64) -> Staging {
    let config = config::Staging {
        directory: root.into(),
        quota,
        max_chunk: quota,
        keep_for: Duration::from_secs(3600),
        seal_key_file: root.join("unused"),
    };
    Staging::open(disk, &key(), &config, &config::Limits::default(), Clock::system(), Metrics::new()).unwrap().0
}

fn expected(bytes: &[u8]) -> Expected {
    Expected {
        session: SessionId::new("session-canary").unwrap(),
        variant: Variant::AudioPriority,
        length: bytes.len() as u64,
        sha256: sha256(bytes),
    }
}

fn files(root: &Path) -> usize {
    ["receiving", "staged"].iter().map(|dir| std::fs::read_dir(root.join(dir)).unwrap().count()).sum()
}

async fn until(is: impl Fn() -> bool) {
    let waiting = async {
        while !is() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.expect("it never came to it");
}

/// Nothing is held, waits or is on the disk.
async fn until_gone(staging: &Staging, root: &Path) {
    {
        let ledger = staging.ledger();
        assert_eq!((ledger.receiving(), ledger.quota().used()), (0, 0));
        assert!(ledger.tally(Reason::Queued).is_empty());
    }
    until(|| files(root) == 0).await;
}

fn endings(staging: &Staging, ending: Ending) -> u64 {
    staging.ledger().endings(Variant::AudioPriority.class(), ending)
}

#[tokio::test]
async fn whole_bytes_are_read_back_and_go_with_the_last_handle() {
    let temp = tempfile::tempdir().unwrap();
    let staging = open(temp.path(), 10 << 20);
    let bytes: Vec<u8> = (0..700_000u32).map(|at| at as u8).collect();
    let mut spooling = staging.spool(&expected(&bytes)).unwrap();
    for piece in bytes.chunks(100_000) {
        spooling.push(bytes::Bytes::copy_from_slice(piece)).await.unwrap();
    }
    let spooled = spooling.whole().await.unwrap();
    assert_eq!(spooled.read(699_000, 5000).await.unwrap(), bytes[699_000..]);
    let body = spooled.body();
    assert!(staging.ledger().quota().used() >= 700_000);
    spooled.over(Ending::Confirmed);
    assert_eq!(staging.ledger().quota().used(), 0);
    assert_eq!(endings(&staging, Ending::Confirmed), 1);
    let came = http_body_util::BodyExt::collect(body).await.unwrap().to_bytes();
    assert_eq!(came, bytes);
    until_gone(&staging, temp.path()).await;
    assert_eq!(endings(&staging, Ending::Abandoned), 0);
}

#[tokio::test]
async fn nothing_stays_of_what_is_dropped_at_any_point() {
    let temp = tempfile::tempdir().unwrap();
    let staging = open(temp.path(), 10 << 20);
    let bytes = vec![7; 600_000];
    for came in [0, 1, 300_000, 599_999, 600_000] {
        let mut spooling = staging.spool(&expected(&bytes)).unwrap();
        for piece in bytes[..came].chunks(60_000) {
            spooling.push(bytes::Bytes::copy_from_slice(piece)).await.unwrap();
        }
        assert_eq!(spooling.came(), came as u64);
        drop(spooling);
        until_gone(&staging, temp.path()).await;
    }
    assert_eq!(endings(&staging, Ending::Abandoned), 5);
}

/// A disk that makes no file before it is told to.
struct Slow(StdDisk, Mutex<std::sync::mpsc::Receiver<()>>);

impl Disk for Slow {
    fn create(&self, dir: Dir, name: &str) -> io::Result<Box<dyn File>> {
        self.1.lock().unwrap().recv().unwrap();
        self.0.create(dir, name)
    }
    fn open(&self, dir: Dir, name: &str, write: bool) -> io::Result<Box<dyn File>> {
        self.0.open(dir, name, write)
    }
    fn rename(&self, from: (Dir, &str), to: (Dir, &str)) -> io::Result<()> {
        self.0.rename(from, to)
    }
    fn remove(&self, dir: Dir, name: &str) -> io::Result<()> {
        self.0.remove(dir, name)
    }
    fn sync_dir(&self, dir: Dir) -> io::Result<()> {
        self.0.sync_dir(dir)
    }
    fn list(&self, dir: Dir) -> io::Result<Vec<String>> {
        self.0.list(dir)
    }
    fn free_bytes(&self) -> io::Result<u64> {
        self.0.free_bytes()
    }
    fn boot_id(&self) -> Option<BootId> {
        self.0.boot_id()
    }
}

#[tokio::test]
async fn a_write_that_is_dropped_in_the_middle_leaves_no_file() {
    let temp = tempfile::tempdir().unwrap();
    let (go, wait) = std::sync::mpsc::channel();
    let slow = Slow(StdDisk::open(temp.path()).unwrap(), Mutex::new(wait));
    let staging = open_on(Arc::new(slow), temp.path(), 100 << 20);
    let bytes = vec![7; WRITE_BUFFER * 2];
    let mut spooling = staging.spool(&expected(&bytes)).unwrap();
    let slot = Arc::clone(&spooling.held.attempt.slot);
    {
        let mut push = std::pin::pin!(spooling.push(bytes::Bytes::copy_from_slice(&bytes[..WRITE_BUFFER])));
        let polled = std::future::poll_fn(|cx| std::task::Poll::Ready(push.as_mut().poll(cx))).await;
        assert!(polled.is_pending(), "the disk was not told to go on");
    }
    drop(spooling);
    // The removal has every chance to come too early.
    for _ in 0..100 {
        tokio::task::yield_now().await;
        tokio::task::spawn_blocking(|| ()).await.unwrap();
    }
    go.send(()).unwrap();
    // Free when the write is done; cleared and forgotten by the removal, which holds it last.
    until(|| Arc::strong_count(&slot) == 1).await;
    until_gone(&staging, temp.path()).await;
}

#[tokio::test]
async fn what_is_not_the_digest_or_too_short_is_refused_and_removed() {
    let temp = tempfile::tempdir().unwrap();
    let staging = open(temp.path(), 10 << 20);
    let mut wrong = staging.spool(&expected(b"abc")).unwrap();
    wrong.push(bytes::Bytes::copy_from_slice(b"abd")).await.unwrap();
    assert_eq!(wrong.whole().await.err(), Some(Code::HashMismatch));
    assert_eq!(endings(&staging, Ending::Mismatched), 1);
    let mut short = staging.spool(&expected(b"abc")).unwrap();
    short.push(bytes::Bytes::copy_from_slice(b"ab")).await.unwrap();
    assert_eq!(short.push(bytes::Bytes::copy_from_slice(b"cd")).await, Err(Code::BodyTooLong));
    assert_eq!(short.whole().await.err(), Some(Code::BodyIncomplete));
    until_gone(&staging, temp.path()).await;
}

#[tokio::test]
async fn room_is_reserved_before_a_byte_comes_and_given_back() {
    let temp = tempfile::tempdir().unwrap();
    let staging = open(temp.path(), 1 << 20);
    let big = Expected { length: 100_000, ..expected(b"x") };
    for _ in 0..2 {
        let mut held = Vec::new();
        let refused = loop {
            match staging.spool(&big) {
                Ok(spooling) => held.push(spooling),
                Err(code) => break code,
            }
        };
        assert!(matches!(refused, Code::StagingFull | Code::SessionQuota), "{refused}");
        assert!((1..=10).contains(&held.len()), "{}", held.len());
        drop(held);
        until_gone(&staging, temp.path()).await;
    }
}

#[tokio::test]
async fn what_a_crash_leaves_is_removed_at_the_next_start() {
    let temp = tempfile::tempdir().unwrap();
    let bytes = vec![7; WRITE_BUFFER + 10];
    let staging = open(temp.path(), 10 << 20);
    let mut spooling = staging.spool(&expected(&bytes)).unwrap();
    spooling.push(bytes::Bytes::copy_from_slice(&bytes[..WRITE_BUFFER])).await.unwrap();
    assert_eq!(files(temp.path()), 1);
    for entry in std::fs::read_dir(temp.path().join("receiving")).unwrap() {
        let content = std::fs::read(entry.unwrap().path()).unwrap();
        assert!(!content.windows(6).any(|window| window == b"canary"));
    }
    // As after a crash: nothing is dropped, and another process comes.
    let leftover = tempfile::tempdir().unwrap();
    for dir in ["receiving", "staged", "streams"] {
        std::fs::create_dir_all(leftover.path().join(dir)).unwrap();
        for entry in std::fs::read_dir(temp.path().join(dir)).unwrap() {
            let from = entry.unwrap().path();
            std::fs::copy(&from, leftover.path().join(dir).join(from.file_name().unwrap())).unwrap();
        }
    }
    assert_eq!(files(leftover.path()), 1);
    let next = open(leftover.path(), 10 << 20);
    until_gone(&next, leftover.path()).await;
}
