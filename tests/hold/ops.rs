//! What the relay says of itself to probes and to people, and what it tells them to do.

use http::StatusCode;
use waystation_proto::Variant;
use waystation_tests::{Chunk, Setup};

use super::process::Rig;

/// A rig that has the core's keys: one chunk went through.
async fn running(setup: Setup) -> (Rig, waystation_devcore::session::Session, String) {
    let rig = Rig::start(setup).await;
    let session = rig.session().await;
    let capability = session.upload_capability.clone().unwrap();
    let first = Chunk::sealed(&session, Variant::AudioPriority, 1, 3000);
    rig.stage(&first, &capability).await;
    rig.until_at_core(&first).await;
    (rig, session, capability)
}

async fn alive(rig: &Rig) {
    assert_eq!(rig.ops("/livez").await.0, StatusCode::OK, "being alive depends on nobody else");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_the_core_away_it_is_degraded_and_says_that_nothing_is_lost() {
    let (rig, session, capability) = running(Setup::default()).await;
    let text = rig.until_status("nothing waits").await;
    assert!(text.starts_with("relay ready   core answers   staging ok   capabilities verified_here\n"), "{text}");
    assert_eq!(rig.ready().await.0, StatusCode::OK);

    rig.core.faults().set_away(true);
    rig.stage(&Chunk::sealed(&session, Variant::AudioPriority, 2, 3000), &capability).await;
    let text = rig.until_status("core_unreachable: Nothing is lost. Check the core").await;
    assert!(text.starts_with("relay degraded   core "), "{text}");
    assert!(text.contains("the next one is let go in 167 h 59 min"), "{text}");
    let (status, ready) = rig.ready().await;
    assert_eq!((status, &ready["status"]), (StatusCode::OK, &"degraded".into()));
    alive(&rig).await;

    rig.core.faults().set_away(false);
    rig.until_status("nothing waits").await;
    assert_eq!(rig.ready().await.1["status"], "ready");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_the_service_token_refused_it_says_which_setting_to_check() {
    let mut rig = Rig::prepare(Setup::default()).await;
    std::fs::write(rig.path("service-token"), "not-the-token-that-the-core-knows-of").unwrap();
    rig.begin().await;
    let session = rig.session().await;
    let capability = session.upload_capability.clone().unwrap();
    let chunk = Chunk::sealed(&session, Variant::AudioPriority, 1, 3000);
    let answer = rig.stage(&chunk, &capability).await;
    assert!(answer.native().chunk.unwrap().state.held(), "the client is not to blame");
    let text =
        rig.until_status("service_token: The core does not accept this relay. Check core.service_token_file").await;
    assert!(text.contains("relay ready   core answers"), "{text}");
    let reason = "waystation_staged_chunks{class=\"audio\",reason=\"service_token\"} 1\n";
    assert!(rig.ops("/metrics").await.1.contains(reason));
    alive(&rig).await;

    // Mended by the operator, it goes out without anybody's help.
    std::fs::write(rig.path("service-token"), rig.core.service_token()).unwrap();
    rig.terminate().await;
    assert!(rig.ended().await.success());
    rig.begin().await;
    rig.until_at_core(&chunk).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_the_room_full_it_takes_nothing_more_and_says_why() {
    let setup = Setup { staging: "quota = \"1MiB\"\nmax_chunk = \"512KiB\"".into(), ..Setup::default() };
    let (rig, _, _) = running(setup).await;
    // Each session may hold twice what it leaves free, so it takes several to fill the room.
    let mut sessions = Vec::new();
    for _ in 0..10 {
        sessions.push(rig.session().await);
    }
    rig.core.faults().set_away(true);
    let audio = |session, index, length| Chunk::sealed(session, Variant::AudioPriority, index, length);
    let mut held = 0;
    for session in &sessions[1..] {
        for (index, length) in (1..).zip([300_000, 200_000, 100_000, 50_000, 20_000, 5000, 1, 1, 1]) {
            let answer = rig.stage(&audio(session, index, length), session.upload_capability.as_ref().unwrap()).await;
            held += u32::from(answer.native().chunk.is_some());
        }
    }
    let fresh = &sessions[0];
    let refused = rig.stage(&audio(fresh, 1, 10_000), fresh.upload_capability.as_ref().unwrap()).await;
    assert_eq!((refused.status.as_u16(), refused.code().as_str()), (507, "staging_full"));
    assert!(refused.headers.contains_key("retry-after"));

    let (status, ready) = rig.ready().await;
    assert_eq!((status, &ready["staging"]), (StatusCode::SERVICE_UNAVAILABLE, &"full".into()));
    let text = rig.status().await;
    assert!(text.starts_with("relay not_ready   core "), "{text}");
    assert!(text.contains("The room is full: offers are refused until the core takes chunks."), "{text}");
    assert!(text.contains("core_unreachable: Nothing is lost."), "{text}");
    alive(&rig).await;

    rig.core.faults().set_away(false);
    rig.until_status("nothing waits").await;
    assert_eq!(rig.core.stats().await.stored_chunks, u64::from(held) + 1);
    let taken = rig.stage(&audio(fresh, 1, 10_000), fresh.upload_capability.as_ref().unwrap()).await;
    assert!(taken.native().chunk.is_some(), "{:?}", taken.body);
    assert_eq!(rig.ready().await.0, StatusCode::OK);
}
