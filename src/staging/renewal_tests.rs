//! Which capability a chunk goes with, over time and over a restart.

use std::sync::Arc;

use super::*;
use crate::capability::Trust;
use crate::clock::Clock;
use crate::config;
use crate::proto::ledger::Verdict;
use crate::proto::{ChunkState, Class, Variant};
use crate::staging::fixture::{disk_at, grant, key, meta};
use crate::staging::{Job, Offered};
use crate::telemetry::Metrics;

struct Fixture {
    staging: Staging,
    clock: Clock,
    dir: tempfile::TempDir,
}

fn open(dir: &std::path::Path, clock: Clock) -> Staging {
    let config = config::Staging {
        directory: dir.into(),
        quota: 64 << 20,
        max_chunk: 8 << 20,
        keep_for: std::time::Duration::from_secs(1_000_000),
        seal_key_file: dir.into(),
    };
    let limits = config::Limits::default();
    Staging::open(Arc::new(disk_at(dir)), &key(), &config, &limits, clock, Metrics::new()).unwrap().0
}

fn fixture() -> Fixture {
    let (dir, clock) = (tempfile::tempdir().unwrap(), Clock::at_unix_ms(1_000_000));
    Fixture { staging: open(dir.path(), clock.clone()), clock, dir }
}

fn capability(token: &str, change: impl FnOnce(&mut crate::proto::claims::Grant)) -> Capability {
    let mut grant = grant();
    change(&mut grant);
    Capability { token: token.into(), grant: Arc::new(grant), trust: Trust::Verified }
}

impl Fixture {
    /// As a killed process leaves it.
    fn restart(self) -> Self {
        let Self { staging, clock, dir } = self;
        drop(staging);
        Self { staging: open(dir.path(), clock.clone()), clock, dir }
    }

    async fn offer(&self, index: u64, capability: &Capability, attempt: u64) -> Offered {
        let offer = Offer { attempt, ..meta(index, b"payload").offer };
        self.staging.present_for(capability, &offer.stream).await;
        self.staging.offer(offer, Variant::AudioPriority, capability).await.unwrap()
    }

    async fn stage(&self, index: u64, capability: &Capability) {
        let Offered::Receive(mut incoming) = self.offer(index, capability, 1).await else { panic!() };
        incoming.push(bytes::Bytes::from_static(b"payload")).await.unwrap();
        incoming.finish().await.unwrap();
    }

    async fn take(&self) -> Option<Job> {
        self.staging.take(Class::Master).await
    }

    fn state(&self, index: u64) -> ChunkState {
        self.staging.standing(meta(index, b"payload").offer.chunk_ref()).unwrap().state
    }

    fn at_s(&self, unix_s: i64) {
        let ahead = u64::try_from(unix_s * 1000 - self.clock.unix_ms()).unwrap();
        self.clock.advance(std::time::Duration::from_millis(ahead));
    }
}

#[tokio::test]
async fn a_chunk_goes_with_its_own_capability_while_that_is_good() {
    let f = fixture();
    f.stage(1, &capability("own", |_| ())).await;
    f.staging.present(&capability("longer", |g| g.commit_exp = 200_000)).await;
    let job = f.take().await.unwrap();
    assert_eq!(job.capability(), "own");
    job.settle(Verdict::Retry(0)).await;
    f.at_s(90_000);
    assert_eq!(f.take().await.unwrap().capability(), "longer", "its own ran out");
}

#[tokio::test]
async fn a_capability_that_does_not_cover_a_chunk_never_brings_it() {
    let f = fixture();
    f.stage(7, &capability("own", |_| ())).await;
    let narrow = [
        capability("few", |g| (g.commit_exp, g.lanes[0].max_chunks) = (200_000, 6)),
        capability("small", |g| (g.commit_exp, g.lanes[0].max_chunk_bytes) = (200_001, 6)),
        capability("bound", |g| (g.commit_exp, g.client_key) = (200_002, Some([7; 32]))),
    ];
    for one in &narrow {
        f.staging.present(one).await;
    }
    f.at_s(90_000);
    assert!(f.take().await.is_none());
    assert_eq!(f.state(7), ChunkState::AwaitingCapability);
    f.staging.present(&capability("wide", |g| g.commit_exp = 100_000)).await;
    assert_eq!(f.take().await.unwrap().capability(), "wide", "whichever lives longest, this one covers it");
}

#[tokio::test]
async fn a_refused_capability_gives_way_to_each_other_in_turn() {
    let f = fixture();
    f.stage(1, &capability("own", |_| ())).await;
    f.staging.present(&capability("few", |g| (g.commit_exp, g.lanes[0].max_chunks) = (200_000, 6))).await;
    f.staging.present(&capability("wide", |g| g.commit_exp = 100_000)).await;
    for token in ["own", "few", "wide"] {
        let job = f.take().await.unwrap();
        assert_eq!(job.capability(), token);
        job.settle(Verdict::CapabilityExpired).await;
    }
    assert!(f.take().await.is_none());
    assert_eq!(f.state(1), ChunkState::AwaitingCapability);
    f.staging.present(&capability("wide", |g| g.commit_exp = 100_000)).await;
    assert_eq!(f.state(1), ChunkState::AwaitingCapability, "a refused one releases nothing");
    f.staging.present(&capability("new", |g| g.commit_exp = 80_000)).await;
    assert_eq!(f.take().await.unwrap().capability(), "new");
}

#[tokio::test]
async fn a_chunk_that_was_finished_under_another_capability_knows_it_after_a_restart() {
    let f = fixture();
    let Offered::Receive(mut begun) = f.offer(1, &capability("first", |g| g.commit_exp = 1_500), 1).await else {
        panic!()
    };
    begun.push(bytes::Bytes::from_static(b"pay")).await.unwrap();
    drop(begun);
    f.staging.flushed().await;
    let second = capability("second", |_| ());
    let Offered::Receive(mut goes_on) = f.offer(1, &second, 2).await else { panic!() };
    assert_eq!(goes_on.held(), 3);
    goes_on.push(bytes::Bytes::from_static(b"load")).await.unwrap();
    goes_on.finish().await.unwrap();
    let f = f.restart();
    f.at_s(2_000);
    assert_eq!(f.take().await.unwrap().capability(), "second");
}

#[tokio::test]
async fn a_holder_with_a_key_of_its_own_signs_by_offering_again() {
    use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
    let pair = Ed25519KeyPair::from_seed_unchecked(&[3; 32]).unwrap();
    let client: [u8; 32] = pair.public_key().as_ref().try_into().unwrap();
    let f = fixture();
    f.stage(1, &capability("own", |g| g.commit_exp = 1_500)).await;
    f.at_s(1_500);
    assert!(f.take().await.is_none());
    let bound = capability("bound", |g| g.client_key = Some(client));
    f.staging.present(&bound).await;
    assert_eq!(f.state(1), ChunkState::AwaitingCapability, "nobody signed it for this one");
    let mut offer = meta(1, b"payload").offer;
    let sig: [u8; 64] = pair.sign(&offer.signed_bytes()).as_ref().try_into().unwrap();
    offer.sig = Some(sig);
    let answer = f.staging.offer(offer, Variant::AudioPriority, &bound).await.unwrap();
    assert!(matches!(answer, Offered::Have(standing) if standing.state == ChunkState::Staged));
    let f = f.restart();
    let job = f.take().await.unwrap();
    assert_eq!((job.capability(), job.offer().sig), ("bound", Some(sig)));
}
