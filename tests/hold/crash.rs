//! The relay's process is killed, or asked to stop, in the middle of things.

use http::StatusCode;
use waystation_proto::Variant;
use waystation_tests::{Chunk, Setup};

use super::process::Rig;
use super::way::{Stuck, Way};

/// What a killed process may have in memory of a partial.
const WRITE_BUFFER: u64 = 256 * 1024;
const LENGTH: usize = 1 << 20;
/// Neither a multiple of a piece nor of a write.
const HALF: usize = 600_001;

const LANES: [(Way, Variant); 3] =
    [(Way::H1, Variant::EvidenceMaster), (Way::Ws, Variant::LivePreview), (Way::H3, Variant::AudioPriority)];

/// A rig with half a chunk over each transport.
async fn half_way(length: usize, half: usize) -> (Rig, String, Vec<(Way, Chunk, Stuck)>) {
    let rig = Rig::start(Setup::default()).await;
    let session = rig.session().await;
    let capability = session.upload_capability.clone().unwrap();
    let mut halves = Vec::new();
    for (way, variant) in LANES {
        let chunk = Chunk::sealed(&session, variant, 1, length);
        let stuck = way.begin(&rig, &chunk, &capability, half).await;
        halves.push((way, chunk, stuck));
    }
    (rig, capability, halves)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_in_the_middle_of_an_upload_costs_at_most_what_was_not_written() {
    let (mut rig, capability, halves) = half_way(LENGTH, HALF).await;
    rig.kill().await;
    rig.begin().await;
    for (way, chunk, stuck) in halves {
        drop(stuck);
        let (state, offset) = rig.standing(&chunk, &capability).await.expect("the partial is gone");
        assert_eq!(state, "receiving", "{way:?}");
        assert!(offset <= HALF as u64 && HALF as u64 - offset < WRITE_BUFFER, "{way:?} goes on at {offset}");
        way.complete(&rig, &chunk, &capability, offset).await;
        rig.until_at_core(&chunk).await;
    }
    assert_eq!(rig.core.stats().await.stored_chunks, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_graceful_stop_loses_no_byte_that_was_accepted() {
    // Less than is written at once: all of it is in memory only.
    const SMALL_HALF: usize = 100_001;
    let (mut rig, capability, halves) = half_way(200_000, SMALL_HALF).await;
    let session = rig.session().await;
    let whole = Chunk::sealed(&session, Variant::AudioPriority, 1, 5000);
    rig.core.faults().set_away(true);
    let token = session.upload_capability.clone().unwrap();
    assert!(rig.stage(&whole, &token).await.native().chunk.unwrap().state.held());

    rig.terminate().await;
    super::process::until(async || {
        let (status, ready) = rig.ready().await;
        (status, &ready["status"], &ready["relay"])
            == (StatusCode::SERVICE_UNAVAILABLE, &"not_ready".into(), &"draining".into())
    })
    .await;
    assert!(rig.ended().await.success());

    rig.core.faults().set_away(false);
    rig.begin().await;
    rig.until_at_core(&whole).await;
    for (way, chunk, stuck) in halves {
        drop(stuck);
        let found = rig.standing(&chunk, &capability).await;
        assert_eq!(found, Some(("receiving".into(), SMALL_HALF as u64)), "{way:?}");
        way.complete(&rig, &chunk, &capability, SMALL_HALF as u64).await;
        rig.until_at_core(&chunk).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_staged_is_confirmed_after_a_kill_without_its_client() {
    let mut rig = Rig::start(Setup::default()).await;
    let session = rig.session().await;
    let capability = session.upload_capability.clone().unwrap();
    // Brings the keys, so that the relay goes on by itself.
    let first = Chunk::sealed(&session, Variant::AudioPriority, 1, 5000);
    rig.stage(&first, &capability).await;
    rig.until_at_core(&first).await;

    rig.core.faults().set_away(true);
    let mut staged = Vec::new();
    for index in 2..6 {
        for variant in [Variant::AudioPriority, Variant::EvidenceMaster] {
            let chunk = Chunk::sealed(&session, variant, index, 30_000);
            let answer = rig.stage(&chunk, &capability).await;
            assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "only the core confirms");
            let told = answer.native().chunk.unwrap();
            assert!(told.state.held(), "{:?}", told.state);
            staged.push(chunk);
        }
    }
    // Each with the last answer just written.
    rig.kill().await;
    assert_eq!(rig.files("staged").len(), staged.len());
    rig.core.faults().set_away(false);
    rig.begin().await;
    for chunk in &staged {
        rig.until_at_core(chunk).await;
        rig.until_standing(chunk, &capability, "confirmed", chunk.bytes.len() as u64).await;
    }
    super::process::until(async || rig.files("staged").is_empty()).await;
}
