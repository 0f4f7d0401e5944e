//! Faults on request, and being away.

use std::time::{Duration, Instant};

use serde_json::json;
use waystation_devcore::{Effect, Fault, FaultRoute};
use waystation_proto::Media;

use crate::support::{Bench, Chunk};

#[tokio::test]
async fn refusals_come_before_everything_and_are_counted() {
    let bench = Bench::start().await;
    let session = bench.session().await;
    let mut fault = Fault::refuse(FaultRoute::Commit, 429, "rate_limited").times(2);
    if let Effect::Refuse { retry_after_s, .. } = &mut fault.effect {
        *retry_after_s = Some(7);
    }
    bench.core.faults().add(fault);
    bench.core.faults().add(Fault::refuse(FaultRoute::Preflight, 500, "internal_error"));
    let chunk = Chunk::of(&session, 0, 1);
    for _ in 0..2 {
        let reply = bench.commit(&chunk).await;
        assert_eq!(reply.said(), "429 rate_limited");
        assert_eq!(reply.headers["retry-after"], "7");
    }
    assert_eq!(bench.commit(&chunk).await.said(), "201");
    for _ in 0..3 {
        assert_eq!(bench.preflight(&Chunk::of(&session, 0, 2)).await.said(), "500 internal_error");
    }
    bench.core.faults().clear();
    assert_eq!(bench.preflight(&Chunk::of(&session, 0, 2)).await.said(), "200");
    let stats = bench.core.stats().await;
    assert_eq!((stats.count("commit", "rate_limited"), stats.count("commit", "201")), (2, 1));
    assert_eq!((stats.count("preflight", "internal_error"), stats.calls_of("preflight")), (3, 4));
}

#[tokio::test]
async fn a_cut_stores_nothing_and_a_cut_after_the_commit_does() {
    let bench = Bench::start().await;
    let session = bench.session().await;
    let chunk = Chunk::of(&session, 0, 1);
    bench.core.faults().add(Fault::new(FaultRoute::Commit, Effect::Cut).times(1));
    assert!(bench.try_commit(&chunk).await.is_err());
    assert_eq!(bench.core.stats().await.stored_chunks, 0);
    bench.core.faults().add(Fault::new(FaultRoute::Commit, Effect::CutAfterCommit).times(1));
    assert!(bench.try_commit(&chunk).await.is_err());
    assert_eq!(bench.core.stats().await.stored_chunks, 1);
    assert_eq!(bench.commit(&chunk).await.said(), "409 duplicate_chunk");
    let outcomes: Vec<_> = bench.core.stats().await.commits.into_iter().map(|commit| commit.outcome).collect();
    assert_eq!(outcomes, ["cut", "duplicate_chunk"], "the first was cut before its fields were read");
}

#[tokio::test]
async fn a_cut_after_the_commit_leaves_refusals_alone() {
    let bench = Bench::start().await;
    let session = bench.session().await;
    bench.core.faults().add(Fault::new(FaultRoute::Commit, Effect::CutAfterCommit).for_media(Media::Audio));
    let wrong = Chunk::of(&session, 0, 1).with("sha256_hex", "0".repeat(64));
    assert_eq!(bench.commit(&wrong).await.said(), "400 hash_mismatch");
}

#[tokio::test]
async fn unreadable_answers_have_a_good_status() {
    let bench = Bench::start().await;
    let session = bench.session().await;
    for route in [FaultRoute::Commit, FaultRoute::Preflight, FaultRoute::Jwks] {
        bench.core.faults().add(Fault::new(route, Effect::InvalidResponse).times(1));
    }
    let chunk = Chunk::of(&session, 0, 1);
    for (reply, status) in [
        (bench.preflight(&chunk).await, 200),
        (bench.commit(&chunk).await, 201),
        (bench.get("/v1/relay/jwks").await, 200),
    ] {
        assert_eq!(reply.status, status);
        assert!(serde_json::from_slice::<serde_json::Value>(&reply.bytes).is_err());
    }
    assert_eq!(bench.core.stats().await.stored_chunks, 1);
}

#[tokio::test]
async fn one_media_type_or_stream_can_be_hit_alone() {
    let bench = Bench::start().await;
    let session = bench.session().await;
    bench
        .core
        .faults()
        .add(Fault::refuse(FaultRoute::Commit, 503, "upload_coordination_unavailable").for_media(Media::Video));
    bench
        .core
        .faults()
        .add(Fault::refuse(FaultRoute::Preflight, 409, "upload_in_progress").for_stream(&session.streams[0].stream));
    assert_eq!(bench.commit(&Chunk::of(&session, 1, 1)).await.said(), "503 upload_coordination_unavailable");
    assert_eq!(bench.commit(&Chunk::of(&session, 0, 1)).await.said(), "201");
    assert_eq!(bench.preflight(&Chunk::of(&session, 0, 2)).await.said(), "409 upload_in_progress");
    assert_eq!(bench.preflight(&Chunk::of(&session, 1, 2)).await.said(), "200");
}

#[tokio::test]
async fn faults_over_http() {
    let bench = Bench::start().await;
    let session = bench.session().await;
    let faults = json!({ "faults": [
        { "route": "commit", "effect": "delay", "ms": 60, "times": 1 },
        { "route": "commit", "effect": "refuse", "status": 507, "code": "upload_staging_quota_exceeded", "retry_after_s": 3, "times": 1, "media": "audio" },
    ]});
    assert_eq!(bench.account("PUT", "/devcore/faults", faults).await.said(), "200");
    let began = Instant::now();
    let reply = bench.commit(&Chunk::of(&session, 0, 1)).await;
    assert!(began.elapsed() >= Duration::from_millis(60));
    assert_eq!(reply.said(), "507 upload_staging_quota_exceeded");
    assert_eq!(bench.account("GET", "/devcore/faults", json!({})).await.json(), json!({ "faults": [] }));
    for wrong in [
        json!({ "faults": [{ "route": "commit", "effect": "unknown" }] }),
        json!({ "faults": [{ "route": "commit", "effect": "refuse", "status": 200, "code": "x" }] }),
        json!({ "faults": [{ "route": "other", "effect": "cut" }] }),
        json!({ "fault": [] }),
    ] {
        assert_eq!(
            bench.account("PUT", "/devcore/faults", wrong.clone()).await.said(),
            "400 invalid_faults",
            "{wrong}"
        );
    }
    assert_eq!(bench.relay("/devcore/stats", "").await.said(), "404 not_found");
    let stats = bench.account("GET", "/devcore/stats", json!({})).await.json();
    assert_eq!(stats["calls"]["commit"]["upload_staging_quota_exceeded"], 1);
    assert_eq!(bench.get("/devcore/stats").await.said(), "401 authentication_required");
}

#[tokio::test]
async fn away_cuts_what_is_there_and_what_comes_and_keeps_the_port() {
    let bench = Bench::start().await;
    let session = bench.session().await;
    bench.core.faults().add(Fault::new(FaultRoute::Commit, Effect::Delay { ms: 60_000 }).times(1));
    let chunk = Chunk::of(&session, 0, 1);
    let hanging = bench.try_commit(&chunk);
    let leaving = async {
        while !bench.core.faults().waiting().is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        bench.core.faults().set_away(true);
    };
    let (hung, ()) = tokio::join!(hanging, leaving);
    assert!(hung.is_err(), "a running call is cut");
    assert!(bench.try_commit(&chunk).await.is_err());
    bench.core.faults().set_away(false);
    assert_eq!(bench.commit(&chunk).await.said(), "201");

    assert_eq!(bench.account("PUT", "/devcore/faults", json!({ "away_ms": 200 })).await.said(), "200");
    let began = Instant::now();
    while bench.try_commit(&chunk).await.is_ok() {
        assert!(began.elapsed() < Duration::from_secs(5), "it goes away");
    }
    while bench.try_commit(&chunk).await.is_err() {
        assert!(began.elapsed() < Duration::from_secs(5), "it comes back");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn commits_are_seen_in_the_order_they_came() {
    let bench = Bench::start().await;
    let session = bench.session().await;
    for (lane, index) in [(2, 1), (0, 1), (1, 1), (0, 2)] {
        assert_eq!(bench.commit(&Chunk::of(&session, lane, index)).await.said(), "201");
    }
    let commits = bench.core.stats().await.commits;
    let order: Vec<_> = commits.iter().map(|commit| (commit.media.unwrap(), commit.index)).collect();
    assert_eq!(order, [(Media::Video, 1), (Media::Audio, 1), (Media::Video, 1), (Media::Audio, 2)]);
    assert!(commits.windows(2).all(|pair| pair[0].arrival < pair[1].arrival));
    assert_eq!(commits[0].stream, session.streams[2].stream);
}
