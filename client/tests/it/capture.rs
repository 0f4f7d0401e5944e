//! Capture over each transport: resume, order, renewal, states.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use waystation_client::capture::{Event, Summary};
use waystation_client::connect::{Transport, Trust};
use waystation_client::envelope::{self, Identity};
use waystation_client::receipt::Proof;
use waystation_client::{Capture, ClientKey};
use waystation_proto::{ChunkState, Code, Variant};

use super::support::authority::TestAuthority;
use super::support::relay::Relay;
use super::support::{AUDIO, LIMIT, MASTER, config, files, group_key, incident, queue, until};

const ALL: [Transport; 4] = [Transport::Ws, Transport::WsPlain, Transport::H1, Transport::H3];

fn authority() -> Arc<TestAuthority> {
    Arc::new(TestAuthority::new(300, 64))
}

async fn finish(capture: Capture) -> Summary {
    capture.finish(LIMIT, "stopped").await
}

#[tokio::test]
async fn every_transport_brings_what_was_recorded() {
    for transport in ALL {
        let relay = Relay::start().await;
        relay.with(|state| state.knobs.receipts = Some("k1".into()));
        let (capture, mut events) =
            Capture::start(config(&relay, transport, &[AUDIO, MASTER]), authority()).await.unwrap();
        let recorded = [vec![1; 5000], vec![2; 300_000]];
        capture.chunk(Variant::AudioPriority, recorded[0].clone(), 1000, 3000).await.unwrap();
        capture.chunk(Variant::EvidenceMaster, recorded[1].clone(), 1000, 3000).await.unwrap();
        let confirmed = |event: &Event| matches!(event, Event::State { state: ChunkState::Confirmed, .. });
        let Event::State { receipt, .. } = until(&mut events, confirmed).await else { unreachable!() };
        assert_eq!(receipt, Proof::Verified, "{transport:?}");
        let summary = finish(capture).await;
        assert_eq!((summary.chunks, summary.confirmed), (2, 2), "{transport:?}");
        relay.with(|state| {
            for held in state.chunks.values() {
                let offer = &held.offer;
                let identity = Identity {
                    incident: incident(),
                    stream: offer.stream.clone(),
                    media: offer.media,
                    index: offer.index,
                };
                let key = group_key().stream_key(&offer.stream).unwrap();
                let opened = envelope::open(&key, &identity, &held.bytes).unwrap();
                let lane = usize::from(offer.role == Some(Variant::EvidenceMaster));
                assert_eq!(opened.plaintext, recorded[lane]);
            }
        });
    }
}

#[tokio::test]
async fn a_cut_in_the_middle_goes_on_from_the_relays_offset() {
    for transport in ALL {
        let relay = Relay::start().await;
        relay.with(|state| state.knobs.cut_at = Some(100_000));
        let (capture, _events) = Capture::start(config(&relay, transport, &[MASTER]), authority()).await.unwrap();
        capture.chunk(Variant::EvidenceMaster, vec![9; 400_000], 0, 2000).await.unwrap();
        let summary = finish(capture).await;
        assert_eq!((summary.confirmed, summary.chunks), (1, 1), "{transport:?}");
        relay.with(|state| {
            let length: usize = state.chunks.values().map(|held| held.bytes.len()).sum();
            assert_eq!(state.received, length, "no byte was taken twice over {transport:?}");
            let attempts: Vec<u64> = state.offers.iter().map(|offer| offer.attempt).collect();
            assert!(attempts.len() >= 2 && attempts.is_sorted_by(|a, b| a < b), "{attempts:?}");
            let first = &state.offers[0].sha256;
            assert!(state.offers.iter().all(|offer| offer.sha256 == *first), "sealed once");
        });
    }
}

#[tokio::test]
async fn what_the_relay_holds_is_not_sent_again_after_a_restart() {
    for transport in ALL {
        let relay = Relay::start().await;
        relay.with(|state| state.knobs.hold = true);
        let (capture, mut events) = Capture::start(config(&relay, transport, &[AUDIO]), authority()).await.unwrap();
        for k in 0..5 {
            capture.chunk(Variant::AudioPriority, vec![k; 3000], 0, 2000).await.unwrap();
        }
        relay.until(|state| state.whole.len() == 5).await;
        if transport == Transport::Ws {
            let staged = |event: &Event| matches!(event, Event::State { state: ChunkState::Staged, .. });
            for _ in 0..5 {
                until(&mut events, staged).await;
            }
        }
        let received = relay.with(|state| state.received);
        relay.cut();
        tokio::time::sleep(Duration::from_millis(50)).await;
        relay.release();
        let summary = finish(capture).await;
        assert_eq!(summary.confirmed, 5, "{transport:?}");
        assert_eq!(relay.with(|state| state.received), received, "{transport:?}");
    }
}

#[tokio::test]
async fn sound_overtakes_a_master_that_is_half_sent() {
    let relay = Relay::start().await;
    // 32 KiB at a time and 20 ms each: the master takes over half a second.
    relay.with(|state| (state.knobs.credit, state.knobs.credit_after) = (32 * 1024, Duration::from_millis(20)));
    let config = config(&relay, Transport::Ws, &[AUDIO, MASTER]);
    let (capture, _events) = Capture::start(config, authority()).await.unwrap();
    capture.chunk(Variant::EvidenceMaster, vec![1; 1_000_000], 0, 2000).await.unwrap();
    relay.until(|state| state.received > 50_000).await;
    capture.chunk(Variant::AudioPriority, vec![2; 5000], 0, 2000).await.unwrap();
    assert_eq!(finish(capture).await.confirmed, 2);
    let whole: Vec<String> = relay.with(|state| state.whole.iter().map(|(lane, _)| lane.clone()).collect());
    assert_eq!(whole, ["audio_priority", "evidence_master"]);
}

#[tokio::test]
async fn lanes_roll_and_capabilities_are_renewed_before_their_end() {
    for transport in [Transport::Ws, Transport::H1] {
        let relay = Relay::start().await;
        let authority = Arc::new(TestAuthority::new(3, 4));
        let (capture, _events) = Capture::start(config(&relay, transport, &[AUDIO]), authority.clone()).await.unwrap();
        for k in 0..30 {
            capture.chunk(Variant::AudioPriority, vec![k; 1000], i64::from(k), i64::from(k) + 1).await.unwrap();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let summary = finish(capture).await;
        assert_eq!((summary.confirmed, summary.rolls), (30, 7), "{transport:?}");
        assert!(summary.renewals >= 7);
        let given = authority.given.lock().unwrap().clone();
        for (n, (_, follows)) in given.iter().enumerate().skip(1) {
            assert_eq!(follows.as_deref(), Some(given[n - 1].0.as_str()), "a chain");
        }
        relay.with(|state| {
            assert!(state.chunks.values().all(|held| held.offer.index <= 4));
            if transport == Transport::Ws {
                assert_eq!(state.hellos, 1, "renewed on the same connection");
                assert!(state.capabilities >= 7);
            }
        });
    }
}

#[tokio::test]
async fn recording_begins_without_core_and_relay() {
    let relay = Relay::start().await;
    let authority = authority();
    authority.away.store(true, Ordering::SeqCst);
    let (capture, mut events) =
        Capture::start(config(&relay, Transport::Ws, &[AUDIO]), authority.clone()).await.unwrap();
    assert_eq!(capture.chunk(Variant::AudioPriority, vec![1; 10], 0, 1).await, Ok(0));
    until(&mut events, |event| matches!(event, Event::Authority { .. })).await;
    assert_eq!(capture.chunk(Variant::AudioPriority, vec![2; 10], 1, 2).await, Ok(1));
    authority.away.store(false, Ordering::SeqCst);
    assert_eq!(finish(capture).await.confirmed, 2);
}

#[tokio::test]
async fn each_kind_of_refusal_is_followed() {
    for transport in ALL {
        let relay = Relay::start().await;
        let authority = authority();
        relay.with(|state| {
            let codes = [Code::BodyStalled, Code::TooManyRequests, Code::CapabilityExpired];
            state.knobs.refuse.extend(codes);
        });
        let (capture, _events) = Capture::start(config(&relay, transport, &[AUDIO]), authority.clone()).await.unwrap();
        capture.chunk(Variant::AudioPriority, vec![1; 2000], 0, 2000).await.unwrap();
        relay.until(|state| state.whole.len() == 1).await;
        assert!(authority.minted() >= 2, "renewed because it was asked for");
        relay.with(|state| state.knobs.refuse.extend([Code::ChunkTooLarge, Code::ChunkConflict]));
        capture.chunk(Variant::AudioPriority, vec![2; 2000], 2000, 4000).await.unwrap();
        relay.until(|state| state.knobs.refuse.len() == 1).await;
        capture.chunk(Variant::AudioPriority, vec![3; 2000], 4000, 6000).await.unwrap();
        let summary = finish(capture).await;
        let endings = (summary.confirmed, summary.rejected, summary.unsettled, summary.pending);
        assert_eq!(endings, (1, 1, 1, 0), "{transport:?}");
    }
}

#[tokio::test]
async fn a_receipt_decides_where_there_is_one() {
    for (key, proof) in [("k1", Proof::Verified), ("k2", Proof::Verified), ("forged", Proof::Invalid)] {
        let relay = Relay::start().await;
        let authority = authority();
        relay.with(|state| state.knobs.receipts = Some(key.into()));
        let (capture, mut events) =
            Capture::start(config(&relay, Transport::Ws, &[AUDIO]), authority.clone()).await.unwrap();
        until(&mut events, |event| matches!(event, Event::Connected { .. })).await;
        if key == "k2" {
            // The core changes its key while recording goes on.
            *authority.key_id.lock().unwrap() = "k2".into();
        }
        capture.chunk(Variant::AudioPriority, vec![1; 2000], 0, 2000).await.unwrap();
        let last =
            |event: &Event| matches!(event, Event::State { state: ChunkState::Confirmed | ChunkState::Unsettled, .. });
        let Event::State { state, receipt, .. } = until(&mut events, last).await else { unreachable!() };
        assert_eq!(receipt, proof, "{key}");
        assert_eq!(state == ChunkState::Confirmed, proof == Proof::Verified);
        let summary = finish(capture).await;
        assert_eq!(summary.confirmed + summary.unsettled, 1);
    }
}

#[tokio::test]
async fn once_the_core_signed_a_relays_bare_word_frees_nothing_also_after_a_restart() {
    let (relay, dir) = (Relay::start().await, tempfile::tempdir().unwrap());
    let authority = authority();
    relay.with(|state| state.knobs.receipts = Some("k1".into()));
    let mut config = config(&relay, Transport::H1, &[AUDIO]);
    config.storage = queue(dir.path());
    let (capture, mut events) = Capture::start(config.clone(), authority.clone()).await.unwrap();
    capture.chunk(Variant::AudioPriority, vec![1; 2000], 0, 2000).await.unwrap();
    let ended = |event: &Event| matches!(event, Event::State { state, .. } if state.ended());
    until(&mut events, ended).await;
    capture.close().await;
    relay.with(|state| state.knobs.receipts = None);
    let (capture, mut events) = Capture::start(config, authority.clone()).await.unwrap();
    capture.chunk(Variant::AudioPriority, vec![2; 2000], 2000, 4000).await.unwrap();
    let said =
        |event: &Event| matches!(event, Event::State { state: ChunkState::Confirmed | ChunkState::Unsettled, .. });
    let Event::State { state, code, .. } = until(&mut events, said).await else { unreachable!() };
    assert_eq!((state, code.as_deref()), (ChunkState::Unsettled, Some("receipt_missing")));
    let summary = finish(capture).await;
    assert_eq!((summary.confirmed, summary.unsettled, files(dir.path())), (1, 1, 1));
    assert!(authority.reconciled.load(Ordering::SeqCst) >= 1, "the core is asked");
}

#[tokio::test]
async fn nothing_is_freed_while_receipts_can_not_be_checked() {
    for transport in ALL {
        let (relay, dir) = (Relay::start().await, tempfile::tempdir().unwrap());
        relay.with(|state| state.knobs.receipts = Some("k1".into()));
        let authority = authority();
        authority.keys_away.store(true, Ordering::SeqCst);
        let mut config = config(&relay, transport, &[AUDIO]);
        config.storage = queue(dir.path());
        let (capture, mut events) = Capture::start(config, authority.clone()).await.unwrap();
        capture.chunk(Variant::AudioPriority, vec![1; 2000], 0, 2000).await.unwrap();
        until(&mut events, |event| matches!(event, Event::Sent(_))).await;
        relay.until(|state| state.whole.len() == 1).await;
        let ended = |event: &Event| matches!(event, Event::State { state, .. } if state.ended());
        let early = tokio::time::timeout(Duration::from_millis(300), until(&mut events, ended)).await;
        assert!(early.is_err(), "{early:?} over {transport:?}");
        assert_eq!(files(dir.path()), 1, "{transport:?}");
        authority.keys_away.store(false, Ordering::SeqCst);
        let Event::State { receipt, .. } = until(&mut events, ended).await else { unreachable!() };
        assert_eq!(receipt, Proof::Verified, "{transport:?}");
        assert_eq!(finish(capture).await.confirmed, 1);
        assert_eq!(relay.with(|state| state.offers.len()), 1, "it was not offered again over {transport:?}");
    }
}

#[tokio::test]
async fn end_is_said_when_all_is_done_and_the_spool_is_empty_then() {
    let relay = Relay::start().await;
    let dir = tempfile::tempdir().unwrap();
    relay.with(|state| state.knobs.hold = true);
    let mut config = config(&relay, Transport::Ws, &[AUDIO]);
    config.storage = queue(dir.path());
    let (capture, _events) = Capture::start(config, authority()).await.unwrap();
    capture.chunk(Variant::AudioPriority, vec![1; 2000], 0, 2000).await.unwrap();
    relay.until(|state| state.whole.len() == 1).await;
    assert_eq!(files(dir.path()), 1, "kept until confirmed");
    assert_eq!(relay.with(|state| state.ends), 0);
    relay.release();
    assert_eq!(finish(capture).await.confirmed, 1);
    relay.until(|state| state.ends == 1).await;
    assert_eq!(files(dir.path()), 0);
}

#[tokio::test]
async fn a_deadline_ends_a_session_that_can_not_finish() {
    let relay = Relay::start().await;
    relay.with(|state| state.knobs.hold = true);
    let (capture, _events) = Capture::start(config(&relay, Transport::Ws, &[AUDIO]), authority()).await.unwrap();
    capture.chunk(Variant::AudioPriority, vec![1; 2000], 0, 2000).await.unwrap();
    relay.until(|state| state.whole.len() == 1).await;
    let summary = capture.finish(Duration::from_millis(100), "stopped").await;
    assert_eq!((summary.confirmed, summary.pending), (0, 1));
}

#[tokio::test]
async fn exactly_the_given_certificate_is_believed() {
    let (relay, other) = (Relay::start().await, Relay::start().await);
    for (shown, believed) in [(&relay, true), (&other, false)] {
        let trust = Trust::certificates(vec![shown.certificate().to_vec().into()]).unwrap();
        let mut config = config(&relay, Transport::Ws, &[AUDIO]);
        config.relays = vec![relay.secure_endpoint(trust)];
        let (_capture, mut events) = Capture::start(config, authority()).await.unwrap();
        let first = until(&mut events, |e| matches!(e, Event::Connected { .. } | Event::Disconnected { .. })).await;
        assert_eq!(matches!(first, Event::Connected { .. }), believed, "{first:?}");
        let mut config = super::support::config(&relay, Transport::H3, &[AUDIO]);
        config.relays = vec![relay.endpoint_believing(shown)];
        let (_capture, mut events) = Capture::start(config, authority()).await.unwrap();
        let first = until(&mut events, |e| matches!(e, Event::Connected { .. } | Event::Disconnected { .. })).await;
        assert_eq!(matches!(first, Event::Connected { .. }), believed, "{first:?}");
    }
}

#[tokio::test]
async fn where_udp_does_not_get_through_a_websocket_does() {
    let relay = Relay::start().await;
    let trust = Trust::certificates(vec![relay.certificate().to_vec().into()]).unwrap();
    let mut config = config(&relay, Transport::Auto, &[AUDIO]);
    // TLS over TCP is served there, and nothing listens for QUIC.
    config.relays = vec![relay.secure_endpoint(trust)];
    let (capture, _events) = Capture::start(config, authority()).await.unwrap();
    capture.chunk(Variant::AudioPriority, vec![1; 2000], 0, 2000).await.unwrap();
    let summary = finish(capture).await;
    assert_eq!((summary.confirmed, summary.reconnects), (1, 0));
}

#[tokio::test]
async fn an_offset_corrected_in_the_middle_of_a_body_is_gone_on_from_in_another_request() {
    for transport in [Transport::H1, Transport::H3] {
        let relay = Relay::start().await;
        relay.with(|state| state.knobs.late = true);
        let (capture, _events) = Capture::start(config(&relay, transport, &[AUDIO]), authority()).await.unwrap();
        capture.chunk(Variant::AudioPriority, vec![7; 600_000], 0, 2000).await.unwrap();
        let summary = finish(capture).await;
        assert_eq!((summary.confirmed, summary.reconnects), (1, 0), "{transport:?}");
        assert!(!relay.with(|state| state.knobs.late));
    }
}

#[tokio::test]
async fn a_core_that_is_away_does_not_use_up_the_connection() {
    let relay = Relay::start().await;
    relay.with(|state| (state.knobs.hold, state.knobs.patient) = (true, true));
    let mut config = config(&relay, Transport::H3, &[AUDIO]);
    config.wait_s = 100;
    let (capture, _events) = Capture::start(config, authority()).await.unwrap();
    for n in 0..120 {
        capture.chunk(Variant::AudioPriority, vec![n as u8; 500], n * 2000, n * 2000 + 2000).await.unwrap();
    }
    // More than a connection has streams, and every one of them would wait.
    relay.until(|state| state.whole.len() == 120).await;
    let waiting = relay.with(|state| state.waits.iter().filter(|wait| **wait > 0).count());
    assert!((1..=32).contains(&waiting), "{waiting}");
    relay.with(|state| state.knobs.hold = false);
    relay.release();
    assert_eq!(finish(capture).await.confirmed, 120);
}

#[tokio::test]
async fn small_chunks_go_with_their_offers_while_the_core_is_away() {
    for transport in [Transport::Ws, Transport::WsPlain] {
        let relay = Relay::start().await;
        relay.with(|state| (state.knobs.hold, state.knobs.early) = (true, 65_536));
        let (capture, _events) =
            Capture::start(config(&relay, transport, &[AUDIO, MASTER]), authority()).await.unwrap();
        for n in 0..40 {
            capture.chunk(Variant::AudioPriority, vec![n as u8; 500], n * 2000, n * 2000 + 2000).await.unwrap();
            capture.chunk(Variant::EvidenceMaster, vec![n as u8; 900], n * 2000, n * 2000 + 2000).await.unwrap();
        }
        relay.until(|state| state.whole.len() == 80).await;
        relay.with(|state| state.knobs.hold = false);
        relay.release();
        assert_eq!(finish(capture).await.confirmed, 80, "{transport:?}");
    }
}

#[tokio::test]
async fn so_many_bytes_go_before_the_relay_asks_for_them() {
    let relay = Relay::start().await;
    relay.with(|state| (state.knobs.early, state.knobs.quiet, state.knobs.credit) = (65_536, true, 1 << 20));
    let (capture, _events) = Capture::start(config(&relay, Transport::Ws, &[AUDIO]), authority()).await.unwrap();
    for n in 0..3 {
        capture.chunk(Variant::AudioPriority, vec![n as u8; 100_000], n * 2000, n * 2000 + 2000).await.unwrap();
    }
    relay.until(|state| state.received == 65_536).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    drop(capture);
    assert_eq!(relay.with(|state| state.received), 65_536, "and no more");
}

#[tokio::test]
async fn several_chunks_make_several_plain_websockets() {
    let relay = Relay::start().await;
    relay.with(|state| state.knobs.hold = true);
    let config = config(&relay, Transport::WsPlain, &[MASTER]);
    let (capture, mut events) = Capture::start(config, authority()).await.unwrap();
    for n in 0..12 {
        capture.chunk(Variant::EvidenceMaster, vec![n as u8; 40_000], n * 2000, n * 2000 + 2000).await.unwrap();
    }
    relay.until(|state| state.whole.len() == 12).await;
    relay.with(|state| state.knobs.hold = false);
    drop(until(&mut events, |event| matches!(event, Event::State { state: ChunkState::Staged, .. })).await);
    let summary = capture.finish(Duration::from_millis(100), "stopped").await;
    assert_eq!((summary.chunks, summary.reconnects), (12, 0));
}

#[tokio::test]
async fn offers_are_signed_with_the_clients_key() {
    for transport in [Transport::Ws, Transport::H3] {
        let relay = Relay::start().await;
        let mut config = config(&relay, transport, &[AUDIO]);
        let key = ClientKey::from_seed(&[3; 32]).unwrap();
        config.client_key = Some(key.clone());
        let (capture, _events) = Capture::start(config, authority()).await.unwrap();
        capture.chunk(Variant::AudioPriority, vec![1; 100], 0, 2000).await.unwrap();
        assert_eq!(finish(capture).await.confirmed, 1);
        let offer = relay.with(|state| state.offers[0].clone());
        let public = key.jwk().unwrap().ed25519().unwrap();
        let verified = UnparsedPublicKey::new(&ED25519, public).verify(&offer.signed_bytes(), &offer.sig.unwrap());
        assert!(verified.is_ok(), "{transport:?}");
    }
}

#[tokio::test]
async fn a_silent_recording_says_that_it_lives() {
    let relay = Relay::start().await;
    let (_capture, mut events) = Capture::start(config(&relay, Transport::Ws, &[AUDIO]), authority()).await.unwrap();
    until(&mut events, |event| matches!(event, Event::Connected { .. })).await;
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(6)).await;
    tokio::time::resume();
    relay.until(|state| state.alive >= 1).await;
}

#[tokio::test]
async fn a_relay_that_is_not_there_costs_nothing() {
    for transport in ALL {
        let relay = Relay::start().await;
        let gone = Relay::start().await;
        let mut config = config(&relay, transport, &[AUDIO]);
        config.relays = vec![gone.endpoint(transport)];
        drop(gone);
        let (capture, mut events) = Capture::start(config, authority()).await.unwrap();
        capture.chunk(Variant::AudioPriority, vec![1; 100], 0, 2000).await.unwrap();
        if transport != Transport::H3 {
            until(&mut events, |event| matches!(event, Event::Disconnected { .. })).await;
        }
        let summary = capture.finish(Duration::from_millis(600), "stopped").await;
        assert_eq!((summary.pending, summary.lost), (1, 0), "kept, not lost, over {transport:?}");
    }
}

#[tokio::test]
async fn a_pending_confirmation_is_asked_for_without_the_bytes() {
    for transport in [Transport::H1, Transport::H3] {
        let relay = Relay::start().await;
        relay.with(|state| state.knobs.hold = true);
        let mut config = config(&relay, transport, &[AUDIO]);
        config.wait_s = 0;
        let (capture, mut events) = Capture::start(config, authority()).await.unwrap();
        capture.chunk(Variant::AudioPriority, vec![1; 5000], 0, 2000).await.unwrap();
        let staged = |event: &Event| matches!(event, Event::State { state: ChunkState::Staged, .. });
        until(&mut events, staged).await;
        relay.release();
        assert_eq!(finish(capture).await.confirmed, 1, "{transport:?}");
        relay.with(|state| {
            let length = state.chunks.values().map(|held| held.bytes.len()).sum::<usize>();
            assert_eq!((state.received, state.offers.len()), (length, 2), "{transport:?}");
        });
    }
}
