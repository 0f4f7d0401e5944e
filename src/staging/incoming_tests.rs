//! Attempts that end, cross and take over: no byte that came is asked for twice without need.

use std::sync::Arc;

use super::*;
use crate::capability::{Capability, Trust};
use crate::clock::Clock;
use crate::config;
use crate::proto::claims::Grant;
use crate::proto::{ChunkState, Offer, Variant};
use crate::staging::fixture::{disk_at, grant, key, meta};
use crate::staging::{Offered, Staging};
use crate::telemetry::Metrics;

struct Fixture {
    staging: Staging,
    _dir: tempfile::TempDir,
}

fn fixture() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let config = config::Staging {
        directory: dir.path().into(),
        quota: 64 << 20,
        max_chunk: 8 << 20,
        keep_for: std::time::Duration::from_secs(3600),
        seal_key_file: dir.path().into(),
    };
    let disk = Arc::new(disk_at(dir.path()));
    let limits = config::Limits::default();
    let (staging, _) = Staging::open(disk, &key(), &config, &limits, Clock::system(), Metrics::new()).unwrap();
    Fixture { staging, _dir: dir }
}

impl Fixture {
    async fn offer(&self, offer: &Offer, attempt: u64) -> Offered {
        let offer = Offer { attempt, ..offer.clone() };
        self.staging.offer(offer, Variant::AudioPriority, &capability(grant())).await.unwrap()
    }

    async fn receive(&self, offer: &Offer, attempt: u64) -> Incoming {
        match self.offer(offer, attempt).await {
            Offered::Receive(incoming) => incoming,
            Offered::Have(standing) => panic!("{standing:?}"),
        }
    }

    fn state(&self, offer: &Offer) -> Option<ChunkState> {
        self.staging.standing(offer.chunk_ref()).map(|standing| standing.state)
    }
}

fn capability(grant: Grant) -> Capability {
    Capability { token: "token".into(), grant: Arc::new(grant), trust: Trust::Verified }
}

fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at % 251) as u8).collect()
}

#[tokio::test]
async fn a_takeover_goes_on_after_bytes_that_are_only_in_memory() {
    let (f, payload) = (fixture(), bytes(1000));
    let offer = meta(1, &payload).offer;
    let mut first = f.receive(&offer, 1).await;
    first.push(bytes::Bytes::copy_from_slice(&payload[..600])).await.unwrap();
    let mut second = f.receive(&offer, 2).await;
    assert_eq!(second.held(), 600);
    assert_eq!(second.held_bytes().await.unwrap(), &payload[..600], "those who watch get them too");
    assert_eq!(first.push(bytes::Bytes::copy_from_slice(&payload[600..])).await, Err(Code::AttemptSuperseded));
    drop(first);
    second.push(bytes::Bytes::copy_from_slice(&payload[600..])).await.unwrap();
    assert_eq!(second.finish().await.unwrap().state, ChunkState::Staged);
    assert_eq!(f.staging.read_whole(offer.chunk_ref()).await.unwrap(), payload);
}

#[tokio::test]
async fn a_takeover_goes_on_after_the_file_and_what_is_gathered_beside_it() {
    let (f, payload) = (fixture(), bytes(WRITE_BUFFER * 2));
    let offer = meta(1, &payload).offer;
    let mut first = f.receive(&offer, 1).await;
    first.push(bytes::Bytes::copy_from_slice(&payload[..WRITE_BUFFER])).await.unwrap();
    first.push(bytes::Bytes::copy_from_slice(&payload[WRITE_BUFFER..WRITE_BUFFER + 600])).await.unwrap();
    let second = f.receive(&offer, 2).await;
    assert_eq!(second.held(), WRITE_BUFFER as u64 + 600);
    // A reader that is given up in the middle takes the open file with it, not the bytes.
    {
        let mut reading = std::pin::pin!(second.held_bytes());
        let _ = futures_util::poll!(&mut reading);
    }
    drop(first);
    drop(second);
    let mut third = f.receive(&offer, 3).await;
    assert_eq!(third.held(), WRITE_BUFFER as u64 + 600);
    third.push(bytes::Bytes::copy_from_slice(&payload[WRITE_BUFFER + 600..])).await.unwrap();
    third.finish().await.unwrap();
    assert_eq!(f.staging.read_whole(offer.chunk_ref()).await.unwrap(), payload);
}

#[tokio::test]
async fn a_takeover_while_the_chunk_is_made_durable_finds_it_staged() {
    let f = fixture();
    for index in 1..=20 {
        let payload = bytes(700);
        let offer = meta(index, &payload).offer;
        let mut first = f.receive(&offer, 1).await;
        first.push(bytes::Bytes::copy_from_slice(&payload)).await.unwrap();
        let finishing = tokio::spawn(first.finish());
        // Somewhere between the last byte and the answer.
        for _ in 0..index {
            tokio::task::yield_now().await;
        }
        let standing = match f.offer(&offer, 2).await {
            Offered::Have(standing) => standing,
            Offered::Receive(second) => {
                assert_eq!(second.held(), 700);
                second.finish().await.unwrap()
            }
        };
        assert_eq!(standing.state, ChunkState::Staged);
        let _ = finishing.await.unwrap();
        assert_eq!(f.state(&offer), Some(ChunkState::Staged));
        assert_eq!(f.staging.read_whole(offer.chunk_ref()).await.unwrap(), payload);
    }
}

#[tokio::test]
async fn a_drop_while_the_chunk_is_made_durable_leaves_nothing() {
    let f = fixture();
    for index in 1..=20 {
        let payload = bytes(700);
        let offer = meta(index, &payload).offer;
        let mut first = f.receive(&offer, 1).await;
        first.push(bytes::Bytes::copy_from_slice(&payload)).await.unwrap();
        let finishing = tokio::spawn(first.finish());
        for _ in 0..index {
            tokio::task::yield_now().await;
        }
        let deleted = f.staging.delete(offer.chunk_ref()).await;
        let finished = finishing.await.unwrap();
        match deleted {
            Ok(()) => {
                assert!(finished.is_err() && f.state(&offer).is_none());
                assert!(f.staging.read_whole(offer.chunk_ref()).await.is_err());
            }
            Err(code) => {
                assert_eq!((code, f.state(&offer)), (Code::ChunkStaged, Some(ChunkState::Staged)));
                assert!(finished.is_ok());
            }
        }
    }
}

impl Fixture {
    fn partials(&self) -> usize {
        std::fs::read_dir(self._dir.path().join("receiving")).unwrap().count()
    }
}

#[tokio::test]
async fn a_delete_that_is_given_up_still_removes_the_file() {
    let (f, payload) = (fixture(), bytes(WRITE_BUFFER * 2));
    let offer = meta(1, &payload).offer;
    let mut incoming = f.receive(&offer, 1).await;
    incoming.push(bytes::Bytes::copy_from_slice(&payload[..WRITE_BUFFER])).await.unwrap();
    assert_eq!(f.partials(), 1);
    {
        // A write is under way, and the client leaves.
        let _writing = incoming.inner.as_ref().unwrap().slot.lock().await;
        let mut deleting = Box::pin(f.staging.delete(offer.chunk_ref()));
        assert!(futures_util::poll!(&mut deleting).is_pending());
    }
    drop(incoming);
    f.staging.flushed().await;
    assert_eq!(f.partials(), 0);
}

#[tokio::test]
async fn an_offer_of_other_bytes_that_is_given_up_goes_on_after_none_of_the_old() {
    let (f, payload) = (fixture(), bytes(WRITE_BUFFER * 2));
    let (offer, other) = (meta(1, &payload).offer, meta(1, b"other").offer);
    let mut incoming = f.receive(&offer, 1).await;
    incoming.push(bytes::Bytes::copy_from_slice(&payload[..WRITE_BUFFER])).await.unwrap();
    {
        let _writing = incoming.inner.as_ref().unwrap().slot.lock().await;
        let mut offering = Box::pin(f.offer(&other, 2));
        assert!(futures_util::poll!(&mut offering).is_pending());
    }
    drop(incoming);
    f.staging.flushed().await;
    let mut again = f.receive(&other, 3).await;
    assert_eq!(again.held(), 0);
    again.push(bytes::Bytes::from_static(b"other")).await.unwrap();
    assert_eq!(again.finish().await.unwrap().state, ChunkState::Staged);
}

#[tokio::test]
async fn a_disk_that_fails_is_not_counted_as_the_clients_fault() {
    use crate::proto::Class;
    use crate::proto::ledger::Ending;
    let f = fixture();
    let offer = meta(1, b"chunk").offer;
    let mut incoming = f.receive(&offer, 1).await;
    incoming.push(bytes::Bytes::from_static(b"chunk")).await.unwrap();
    std::fs::remove_dir_all(f._dir.path().join("receiving")).unwrap();
    assert_eq!(incoming.finish().await, Err(Code::StagingFailed));
    let count = |ending| f.staging.ledger().endings(Class::Audio, ending);
    assert_eq!((count(Ending::Failed), count(Ending::Mismatched)), (1, 0));
}

#[tokio::test]
async fn whatever_drops_the_bytes_is_told() {
    let (f, payload) = (fixture(), bytes(1000));
    let told = Arc::new(std::sync::Mutex::new(Vec::new()));
    let hears = Arc::clone(&told);
    f.staging.observe(Box::new(move |change| {
        if let crate::staging::Change::Dropped(chunk) = change {
            hears.lock().unwrap().push(chunk);
        }
    }));
    let offers = [meta(1, &payload).offer, meta(2, &payload).offer];
    let mut deleted = f.receive(&offers[0], 1).await;
    deleted.push(bytes::Bytes::copy_from_slice(&payload[..600])).await.unwrap();
    f.staging.delete(offers[0].chunk_ref()).await.unwrap();
    let mut wrong = f.receive(&offers[1], 1).await;
    wrong.push(bytes::Bytes::from(vec![0; 1000])).await.unwrap();
    assert_eq!(wrong.finish().await.unwrap_err(), Code::HashMismatch);
    assert_eq!(*told.lock().unwrap(), offers.map(|offer| offer.chunk_ref()));
}

/// Ends everything and opens the same directory again.
async fn reopened(f: Fixture) -> Fixture {
    f.staging.flushed().await;
    let Fixture { staging, _dir: dir } = f;
    drop(staging);
    let config = config::Staging {
        directory: dir.path().into(),
        quota: 64 << 20,
        max_chunk: 8 << 20,
        keep_for: std::time::Duration::from_secs(3600),
        seal_key_file: dir.path().into(),
    };
    let disk = Arc::new(disk_at(dir.path()));
    let limits = config::Limits::default();
    let (staging, _) = Staging::open(disk, &key(), &config, &limits, Clock::system(), Metrics::new()).unwrap();
    Fixture { staging, _dir: dir }
}

#[tokio::test]
async fn an_upload_is_known_by_name_before_its_first_byte_and_after_a_restart() {
    let (f, payload) = (fixture(), bytes(1000));
    let offer = meta(1, &payload).offer;
    let chunk = offer.chunk_ref();
    assert!(f.staging.offered(chunk).await.is_none());
    assert_eq!(f.receive(&offer, 3).await.keep().await, Ok(0));
    let f = reopened(f).await;
    let known = f.staging.offered(chunk).await.unwrap();
    assert!(known == Offer { attempt: 3, ..offer.clone() });

    let mut incoming = f.receive(&known, known.attempt).await;
    incoming.push(bytes::Bytes::copy_from_slice(&payload[..600])).await.unwrap();
    assert_eq!(incoming.keep().await, Ok(600));
    let f = reopened(f).await;
    let known = f.staging.offered(chunk).await.unwrap();
    let mut incoming = f.receive(&known, known.attempt).await;
    assert_eq!(incoming.held(), 600);
    incoming.push(bytes::Bytes::copy_from_slice(&payload[600..])).await.unwrap();
    assert_eq!(incoming.finish().await.unwrap().state, ChunkState::Staged);
    assert!(f.staging.offered(chunk).await.is_none(), "nothing more is to come");
    assert!(f.staging.kept_until(chunk).is_some());
}

#[tokio::test]
async fn a_pause_ends_the_attempt_and_the_offset_stays() {
    let (f, payload) = (fixture(), bytes(1000));
    let offer = meta(1, &payload).offer;
    let chunk = offer.chunk_ref();
    assert_eq!(f.staging.pause(chunk).await, Err(Code::NotFound));
    let mut first = f.receive(&offer, 1).await;
    first.push(bytes::Bytes::copy_from_slice(&payload[..300])).await.unwrap();
    // Its header is not on the disk yet: what was offered is known from the attempt.
    assert_eq!(f.staging.pause(chunk).await.unwrap().offset, 300);
    assert_eq!(first.push(bytes::Bytes::copy_from_slice(&payload[300..])).await, Err(Code::AttemptSuperseded));
    drop(first);
    assert_eq!(f.staging.pause(chunk).await.unwrap().offset, 300, "nobody is at it");
    let known = f.staging.offered(chunk).await.unwrap();
    let mut second = f.receive(&known, known.attempt).await;
    assert_eq!(second.held(), 300);
    second.push(bytes::Bytes::copy_from_slice(&payload[300..])).await.unwrap();
    // The last byte is here: whoever was at it, the chunk is staged.
    assert_eq!(f.staging.pause(chunk).await.unwrap().state, ChunkState::Staged);
    assert_eq!(second.finish().await, Err(Code::AttemptSuperseded));
    assert_eq!(f.staging.read_whole(chunk).await.unwrap(), payload);
}
