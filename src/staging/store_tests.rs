//! What must hold whatever is dropped in the middle, presented in turn, or found on the disk.

use std::fs;
use std::path::Path;

use super::*;
use crate::capability::Trust;
use crate::proto::Class;
use crate::staging::fixture::{disk_at, grant, key, meta};

fn open(root: &Path) -> Result<Staging, OpenError> {
    let config = config::Staging {
        directory: root.into(),
        quota: 64 << 20,
        max_chunk: 8 << 20,
        keep_for: std::time::Duration::from_secs(3600),
        seal_key_file: root.into(),
    };
    let (disk, clock) = (Arc::new(disk_at(root)), Clock::at_unix_ms(100_000_000));
    let opened = Staging::open(disk, &key(), &config, &config::Limits::default(), clock, Metrics::new());
    opened.map(|(staging, _)| staging)
}

/// Good until so many Unix seconds; the clock stands at 100,000.
fn capability(token: &str, commit_exp: i64) -> Capability {
    let grant = Arc::new(Grant { commit_exp, ..grant() });
    Capability { token: token.into(), grant, trust: Trust::Verified }
}

async fn stage(staging: &Staging, index: u64, capability: &Capability) -> ChunkRef {
    let offer = meta(index, b"chunk").offer;
    let chunk = offer.chunk_ref();
    let offered = staging.offer(offer, Variant::AudioPriority, capability).await;
    let Ok(Offered::Receive(mut incoming)) = offered else { panic!("refused, or here") };
    incoming.push(bytes::Bytes::from_static(b"chunk")).await.unwrap();
    assert_eq!(incoming.finish().await.unwrap().state, ChunkState::Staged);
    chunk
}

fn files(root: &Path, dir: &str) -> Vec<std::path::PathBuf> {
    fs::read_dir(root.join(dir)).unwrap().map(|entry| entry.unwrap().path()).collect()
}

#[tokio::test]
async fn a_file_that_rots_or_is_a_stranger_does_not_stop_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let staging = open(dir.path()).unwrap();
    stage(&staging, 1, &capability("a", i64::MAX)).await;
    let rotten = files(dir.path(), "staged").remove(0);
    stage(&staging, 2, &capability("a", i64::MAX)).await;
    staging.flushed().await;
    drop(staging);
    let whole = files(dir.path(), "staged").into_iter().find(|path| *path != rotten).unwrap();
    fs::write(&rotten, b"rot").unwrap();
    drop(open(dir.path()).unwrap());
    fs::remove_file(&whole).unwrap();
    assert!(matches!(open(dir.path()), Err(OpenError::WrongKey)), "nothing here opens");
    fs::remove_file(&rotten).unwrap();
    for stray in ["staged/lost+found", "receiving/notes.txt", "streams/00112233445566778899aabbccddeeff"] {
        fs::write(dir.path().join(stray), b"stray").unwrap();
    }
    open(dir.path()).unwrap();
}

#[tokio::test]
async fn who_asks_for_what_ended_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let staging = open(dir.path()).unwrap();
    let chunk = stage(&staging, 1, &capability("a", i64::MAX)).await;
    let before = staging.follow(chunk).unwrap();
    let job = staging.take(Class::Master).await.unwrap();
    job.settle(crate::proto::ledger::Verdict::Confirmed(None)).await;
    assert_eq!(before.borrow().state, ChunkState::Confirmed);
    assert_eq!(staging.follow(chunk).unwrap().borrow().state, ChunkState::Confirmed);
    assert!(staging.follows().is_empty());
}

#[tokio::test]
async fn capabilities_that_were_refused_in_turn_carry_nothing_again() {
    let dir = tempfile::tempdir().unwrap();
    let staging = open(dir.path()).unwrap();
    let (first, second) = (capability("first", 200_000), capability("second", 300_000));
    let chunk = stage(&staging, 1, &first).await;
    for _ in 0..2 {
        let job = staging.take(Class::Master).await.unwrap();
        job.settle(crate::proto::ledger::Verdict::CapabilityExpired).await;
        staging.present(&second).await;
    }
    for presented in [&first, &second, &first] {
        staging.present(presented).await;
        assert_eq!(staging.standing(chunk).unwrap().state, ChunkState::AwaitingCapability);
        assert!(staging.take(Class::Master).await.is_none());
    }
    staging.present(&capability("third", 250_000)).await;
    assert_eq!(staging.take(Class::Master).await.unwrap().capability(), "third");
}

#[tokio::test]
async fn what_is_released_goes_on_although_the_request_was_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let staging = open(dir.path()).unwrap();
    let chunk = stage(&staging, 1, &capability("late", 90_000)).await;
    assert!(staging.take(Class::Master).await.is_none(), "its capability ran out");
    let mut followed = staging.follow(chunk).unwrap();
    let mut woken = Box::pin(staging.ready(Class::Master));
    assert!(futures_util::poll!(&mut woken).is_pending());
    {
        // The disk is busy with another one's, and the client leaves.
        let _held = staging.0.puts.lock().await;
        let newer = capability("newer", 200_000);
        let mut presenting = Box::pin(staging.present(&newer));
        assert!(futures_util::poll!(&mut presenting).is_pending());
    }
    assert!(followed.has_changed().unwrap());
    assert_eq!(followed.borrow_and_update().state, ChunkState::Staged);
    assert!(futures_util::poll!(&mut woken).is_ready());
    staging.flushed().await;
    assert_eq!(files(dir.path(), "streams").len(), 1, "and it is kept");
}
