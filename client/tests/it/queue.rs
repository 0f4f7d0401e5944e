//! The durable queue: restarts, networks, pauses, endings.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::Value;
use waystation_client::Capture;
use waystation_client::capture::policy::Change;
use waystation_client::capture::status::{ItemState, Network, NetworkKind, SessionState, Status};
use waystation_client::capture::{ChunkError, Event, StartError, Summary};
use waystation_client::connect::Transport;
use waystation_client::envelope::{self, Identity};
use waystation_proto::message::Hint;
use waystation_proto::{ChunkState, Variant};

use super::support::authority::TestAuthority;
use super::support::relay::Relay;
use super::support::{AUDIO, LIMIT, MASTER, config, files, group_key, incident, queue, until};

const ALL: [Transport; 3] = [Transport::Ws, Transport::H1, Transport::H3];

fn authority() -> Arc<TestAuthority> {
    Arc::new(TestAuthority::new(300, 64))
}

async fn finish(capture: Capture) -> Summary {
    capture.finish(LIMIT, "stopped").await
}

async fn status(capture: &Capture, is: impl Fn(&Status) -> bool) -> Status {
    let mut watch = capture.control().watch();
    let waiting = watch.wait_for(|status| is(status));
    *tokio::time::timeout(LIMIT, waiting).await.expect("it does not come to be").unwrap()
}

#[tokio::test]
async fn what_was_recorded_without_any_network_goes_on_after_a_restart() {
    for transport in ALL {
        let (relay, dir) = (Relay::start().await, tempfile::tempdir().unwrap());
        let authority = authority();
        authority.away.store(true, Ordering::SeqCst);
        let mut config = config(&relay, transport, &[AUDIO, MASTER]);
        config.storage = queue(dir.path());
        let (capture, _events) = Capture::start(config.clone(), authority.clone()).await.unwrap();
        for k in 0..3u8 {
            let seq = capture.chunk(Variant::AudioPriority, vec![k; 500], i64::from(k), i64::from(k)).await;
            assert_eq!(seq, Ok(u64::from(k)));
            capture.chunk(Variant::EvidenceMaster, b"a picture of it".repeat(100), 0, 2000).await.unwrap();
        }
        let busy = Capture::start(config.clone(), authority.clone()).await.err().unwrap();
        assert!(busy.to_string().contains("another process"), "{busy}");
        capture.close().await;
        for entry in std::fs::read_dir(dir.path()).unwrap() {
            let bytes = std::fs::read(entry.unwrap().path()).unwrap();
            assert!(!bytes.windows(7).any(|part| part == b"picture"), "nothing is readable on disk");
        }
        authority.away.store(false, Ordering::SeqCst);
        let (capture, _events) = Capture::start(config.clone(), authority.clone()).await.unwrap();
        assert_eq!((capture.next_seq(Variant::AudioPriority), capture.next_seq(Variant::LivePreview)), (3, 0));
        assert_eq!(capture.chunk(Variant::AudioPriority, vec![3; 500], 3, 4).await, Ok(3));
        let summary = finish(capture).await;
        assert_eq!((summary.chunks, summary.confirmed, files(dir.path())), (7, 7, 0), "{transport:?}");
        relay.with(|state| assert!(state.chunks.values().all(|held| held.offer.index <= 4)));
        let Err(StartError::Over(status)) = Capture::start(config, authority).await else { panic!("it is over") };
        assert_eq!((status.session, status.complete, status.evidence_ready), (SessionState::Completed, 7, true));
    }
}

#[tokio::test]
async fn a_restart_in_the_middle_of_a_chunk_sends_no_byte_again() {
    for transport in ALL {
        let (relay, dir) = (Relay::start().await, tempfile::tempdir().unwrap());
        match transport {
            Transport::Auto | Transport::Ws | Transport::WsPlain => {
                relay.with(|state| state.knobs.credit_after = Duration::from_millis(300))
            }
            Transport::H1 | Transport::H3 => relay.with(|state| state.knobs.cut_at = Some(100_000)),
        }
        let mut config = config(&relay, transport, &[MASTER]);
        config.storage = queue(dir.path());
        let authority = authority();
        let (capture, _events) = Capture::start(config.clone(), authority.clone()).await.unwrap();
        capture.chunk(Variant::EvidenceMaster, vec![7; 400_000], 0, 2000).await.unwrap();
        relay.until(|state| state.received >= 60_000).await;
        capture.close().await;
        relay.with(|state| state.knobs.credit_after = Duration::ZERO);
        let (capture, _events) = Capture::start(config, authority.clone()).await.unwrap();
        assert_eq!(finish(capture).await.confirmed, 1, "{transport:?}");
        relay.with(|state| {
            let length: usize = state.chunks.values().map(|held| held.bytes.len()).sum();
            assert_eq!(state.received, length, "{transport:?}");
            assert!(state.offers.windows(2).all(|pair| pair[0].sha256 == pair[1].sha256), "sealed once");
            assert!(state.offers.windows(2).all(|pair| pair[0].attempt < pair[1].attempt), "attempts go on");
        });
        let asked = authority.asked.lock().unwrap().clone();
        assert!(asked[0].is_none());
        let kept = asked[1].as_ref().expect("the second run brings the names of the first");
        assert_eq!(kept.sid.as_ref().map(|sid| sid.as_str()), Some("sid"), "and its relay session");
    }
}

#[tokio::test]
async fn nothing_is_sent_without_a_network_and_everything_at_once_with_one() {
    let relay = Relay::start().await;
    let (capture, _events) = Capture::start(config(&relay, Transport::Ws, &[AUDIO]), authority()).await.unwrap();
    let control = capture.control();
    for none in [(NetworkKind::None, false), (NetworkKind::Wifi, true)] {
        control.network(Network { kind: none.0, battery_low: none.1 }).await;
        let seq = capture.chunk(Variant::AudioPriority, vec![1; 500], 0, 2000).await.unwrap();
        let now = status(&capture, |status| status.paused == 1).await;
        assert_eq!((now.complete, now.failed, now.retrying), (seq, 0, 0));
        assert_eq!(control.items().await[0].state, ItemState::Paused);
        assert_eq!(relay.with(|state| state.offers.len()) as u64, seq);
        control.network(Network { kind: NetworkKind::Cellular, battery_low: false }).await;
        status(&capture, |status| status.complete == seq + 1).await;
    }
    assert_eq!(finish(capture).await.confirmed, 2);
}

#[tokio::test]
async fn the_queue_follows_the_relays_advice_and_comes_back() {
    for transport in [Transport::Ws, Transport::H3] {
        let relay = Relay::start().await;
        let (capture, mut events) =
            Capture::start(config(&relay, transport, &[AUDIO, MASTER]), authority()).await.unwrap();
        // The first of a lane goes whatever is advised.
        capture.chunk(Variant::EvidenceMaster, vec![2; 500], 0, 5000).await.unwrap();
        status(&capture, |status| status.complete == 1).await;
        let full = Hint { pressure: Some([0.0, 0.0, 0.0, 1.0]), chunk_ms: Some(1000), ..Hint::default() };
        relay.with(|state| state.hints.push(full.clone()));
        until(&mut events, |event| *event == Event::Hint(full.clone())).await;
        until(&mut events, |event| *event == Event::Advice(Change::ChunkLength(Some(1000)))).await;
        capture.chunk(Variant::EvidenceMaster, vec![2; 500], 0, 5000).await.unwrap();
        capture.chunk(Variant::AudioPriority, vec![1; 500], 0, 2000).await.unwrap();
        status(&capture, |status| status.complete == 2 && status.queued == 1).await;
        let begun = relay.with(|state| state.begun.clone());
        assert_eq!(begun.last(), Some(&("audio_priority".to_owned(), 1)), "{transport:?}");
        relay.with(|state| state.hints.push(Hint { pressure: Some([0.0; 4]), ..Hint::default() }));
        assert_eq!(finish(capture).await.confirmed, 3, "{transport:?}");
    }
}

#[tokio::test]
async fn a_low_battery_ends_the_connection_and_what_is_under_way_goes_on_later() {
    for transport in [Transport::Ws, Transport::H3] {
        let relay = Relay::start().await;
        relay.with(|state| (state.knobs.hold, state.knobs.patient) = (true, true));
        let (capture, mut events) = Capture::start(config(&relay, transport, &[AUDIO]), authority()).await.unwrap();
        capture.chunk(Variant::AudioPriority, vec![1; 500], 0, 2000).await.unwrap();
        until(&mut events, |event| *event == Event::EvidenceReady).await;
        let control = capture.control();
        control.network(Network { kind: NetworkKind::Cellular, battery_low: true }).await;
        relay.until(|state| state.open == 0).await;
        control.network(Network { kind: NetworkKind::Cellular, battery_low: false }).await;
        relay.release();
        assert_eq!(finish(capture).await.confirmed, 1, "{transport:?}");
        assert_eq!(relay.with(|state| state.opened), 2, "{transport:?}");
    }
}

#[tokio::test]
async fn on_another_network_the_connection_goes_on_from_another_port_at_once() {
    let relay = Relay::start().await;
    let (capture, _events) = Capture::start(config(&relay, Transport::H3, &[AUDIO]), authority()).await.unwrap();
    capture.chunk(Variant::AudioPriority, vec![1; 500], 0, 2000).await.unwrap();
    status(&capture, |status| status.complete == 1).await;
    capture.control().network(Network { kind: NetworkKind::Wifi, battery_low: false }).await;
    capture.chunk(Variant::AudioPriority, vec![1; 500], 0, 2000).await.unwrap();
    status(&capture, |status| status.complete == 2).await;
    assert_eq!(relay.with(|state| state.ports.len()), 2);
    assert_eq!(finish(capture).await.reconnects, 0, "it is the same connection");
}

#[tokio::test]
async fn one_chunk_moves_on_cellular_and_two_on_wifi() {
    let kinds = [(NetworkKind::Cellular, 1), (NetworkKind::Wifi, 2)];
    for (transport, (kind, most)) in
        [Transport::Ws, Transport::WsPlain].into_iter().flat_map(|way| kinds.map(|kind| (way, kind)))
    {
        let relay = Relay::start().await;
        relay.with(|state| (state.knobs.credit, state.knobs.credit_after) = (8 * 1024, Duration::from_millis(5)));
        let (capture, _events) = Capture::start(config(&relay, transport, &[AUDIO]), authority()).await.unwrap();
        capture.control().network(Network { kind, battery_low: false }).await;
        for k in 0..6 {
            capture.chunk(Variant::AudioPriority, vec![1; 50_000], k, k).await.unwrap();
        }
        let (seen, offered) = (std::cell::Cell::new(0), std::cell::Cell::new(0));
        relay
            .until(|state| {
                seen.set(seen.get().max(state.begun.len() - state.whole.len()));
                offered.set(offered.get().max(state.offers.len() - state.whole.len()));
                state.whole.len() == 6
            })
            .await;
        assert!((1..=most).contains(&seen.get()), "{} at once on {kind:?}", seen.get());
        // Several WebSockets on Wi-Fi bring one each.
        let ahead = offered.get() > most;
        assert!(ahead || (transport, most) == (Transport::WsPlain, 2), "the next is offered meanwhile on {kind:?}");
        let order: Vec<u64> = relay.with(|state| state.begun.iter().map(|(_, index)| *index).collect());
        assert_eq!(order, [1, 2, 3, 4, 5, 6], "the first before all others, then upwards");
        assert_eq!(finish(capture).await.confirmed, 6);
    }
}

#[tokio::test]
async fn a_master_has_its_place_beside_a_backlog_of_sound_on_cellular() {
    for transport in [Transport::Ws, Transport::WsPlain] {
        let relay = Relay::start().await;
        relay.with(|state| (state.knobs.credit, state.knobs.credit_after) = (8 * 1024, Duration::from_millis(5)));
        let (capture, _events) =
            Capture::start(config(&relay, transport, &[AUDIO, MASTER]), authority()).await.unwrap();
        capture.control().network(Network { kind: NetworkKind::Cellular, battery_low: false }).await;
        for k in 0..10 {
            capture.chunk(Variant::AudioPriority, vec![1; 50_000], k, k).await.unwrap();
        }
        for k in 0..2 {
            capture.chunk(Variant::EvidenceMaster, vec![2; 50_000], k, k).await.unwrap();
        }
        assert_eq!(finish(capture).await.confirmed, 12);
        let begun = relay.with(|state| state.begun.clone());
        // The first of a lane goes before all others; the second has nothing but its lane's share.
        let at = |variant: &str, index| begun.iter().position(|chunk| *chunk == (variant.to_owned(), index)).unwrap();
        assert!(at("evidence_master", 2) < at("audio_priority", 10), "{transport:?}: {begun:?}");
    }
}

#[tokio::test]
async fn what_the_core_refuses_stays_here_and_is_asked_for_again() {
    for restart in [false, true] {
        let (relay, dir) = (Relay::start().await, tempfile::tempdir().unwrap());
        let authority = Arc::new(TestAuthority::new(300, 2));
        let mut config = config(&relay, Transport::Ws, &[AUDIO]);
        config.storage = queue(dir.path());
        authority.refuses.store(true, Ordering::SeqCst);
        let (mut capture, mut events) = Capture::start(config.clone(), authority.clone()).await.unwrap();
        for k in 0..3 {
            capture.chunk(Variant::AudioPriority, vec![1; 500], k, k).await.unwrap();
        }
        let told = |event: &Event| matches!(event, Event::Held { .. } | Event::Lost { .. });
        let held = Event::Held { variant: Variant::AudioPriority, code: "no_stream".into() };
        assert_eq!(until(&mut events, told).await, held);
        assert_eq!((status(&capture, |status| status.queued == 3).await.lost, files(dir.path())), (0, 3));
        authority.refuses.store(false, Ordering::SeqCst);
        if restart {
            let summary = finish(capture).await;
            assert_eq!((summary.pending, summary.lost), (3, 0), "the session is not over");
            (capture, events) = Capture::start(config, authority).await.unwrap();
        } else {
            capture.control().retry().await;
        }
        assert_eq!(finish(capture).await.confirmed, 3);
        while let Ok(event) = events.try_recv() {
            assert!(!told(&event), "{event:?}");
        }
    }
}

#[tokio::test]
async fn a_portal_on_the_way_ends_neither_a_chunk_nor_the_session() {
    let (relay, dir) = (Relay::start().await, tempfile::tempdir().unwrap());
    relay.with(|state| state.knobs.portal = Some(403));
    let mut config = config(&relay, Transport::H1, &[AUDIO]);
    config.storage = queue(dir.path());
    let authority = authority();
    let (capture, _events) = Capture::start(config.clone(), authority.clone()).await.unwrap();
    capture.chunk(Variant::AudioPriority, vec![1; 500], 0, 2000).await.unwrap();
    relay.until(|state| state.turned_away > 0).await;
    let summary = capture.finish(Duration::from_millis(100), "stopped").await;
    assert_eq!((summary.pending, summary.rejected, files(dir.path())), (1, 0, 1));
    assert_eq!(summary.failed, 0, "no relay refused it");
    relay.with(|state| state.knobs.portal = None);
    let (capture, _events) = Capture::start(config, authority).await.expect("the session is not over");
    capture.control().retry().await;
    assert_eq!(finish(capture).await.confirmed, 1);
}

#[tokio::test]
async fn a_pause_outlives_a_restart() {
    let (relay, dir) = (Relay::start().await, tempfile::tempdir().unwrap());
    let mut config = config(&relay, Transport::Ws, &[AUDIO]);
    config.storage = queue(dir.path());
    let (capture, _events) = Capture::start(config.clone(), authority()).await.unwrap();
    capture.control().pause().await;
    capture.chunk(Variant::AudioPriority, vec![1; 500], 0, 2000).await.unwrap();
    status(&capture, |status| status.paused == 1 && status.session == SessionState::Paused).await;
    capture.close().await;
    let (hellos, authority) = (relay.with(|state| state.hellos), authority());
    let (capture, _events) = Capture::start(config, authority.clone()).await.unwrap();
    assert_eq!(capture.control().status().chunks, 1, "it shows at once what is there");
    let now = status(&capture, |status| status.paused == 1 && authority.minted() > 0).await;
    assert_eq!((now.session, now.paused), (SessionState::Paused, 1));
    assert_eq!(relay.with(|state| (state.hellos, state.offers.len())), (hellos, 0));
    capture.control().resume().await;
    let summary = finish(capture).await;
    assert_eq!((summary.chunks, summary.confirmed), (1, 1));
}

#[tokio::test]
async fn canceling_stops_and_deletes_only_what_it_is_told_to() {
    for discard in [false, true] {
        let (relay, dir) = (Relay::start().await, tempfile::tempdir().unwrap());
        relay.with(|state| state.knobs.hold = true);
        let mut config = config(&relay, Transport::Ws, &[AUDIO]);
        config.storage = queue(dir.path());
        let (capture, _events) = Capture::start(config.clone(), authority()).await.unwrap();
        capture.chunk(Variant::AudioPriority, vec![1; 500], 0, 2000).await.unwrap();
        relay.until(|state| state.whole.len() == 1).await;
        capture.control().cancel(discard).await;
        assert_eq!(capture.chunk(Variant::AudioPriority, vec![2; 500], 0, 2000).await, Err(ChunkError::Over));
        relay.until(|state| state.ends == 1).await;
        assert_eq!(relay.with(|state| state.chunks.len()), 1, "nothing is deleted elsewhere");
        assert_eq!(files(dir.path()), usize::from(!discard));
        let Err(StartError::Over(status)) = Capture::start(config, authority()).await else { panic!("it is over") };
        assert_eq!(status.session, SessionState::Canceled);
    }
}

#[tokio::test]
async fn the_next_relay_is_tried_when_one_is_not_there_or_goes_away() {
    let (gone, relay) = (Relay::start().await, Relay::start().await);
    let mut config = config(&relay, Transport::Ws, &[AUDIO]);
    config.relays.insert(0, gone.endpoint(Transport::Ws));
    drop(gone);
    let (capture, mut events) = Capture::start(config, authority()).await.unwrap();
    capture.chunk(Variant::AudioPriority, vec![1; 500], 0, 2000).await.unwrap();
    until(&mut events, |event| matches!(event, Event::Disconnected { .. })).await;
    assert_eq!(finish(capture).await.confirmed, 1);
}

/// Whoever waits for the core's answer to a request is not to wait for it to know that a relay has the chunk.
#[tokio::test]
async fn evidence_ready_does_not_wait_for_the_core_over_any_transport() {
    for transport in ALL {
        let relay = Relay::start().await;
        relay.with(|state| (state.knobs.hold, state.knobs.patient) = (true, true));
        let mut config = config(&relay, transport, &[AUDIO]);
        // Longer than the test may take.
        config.wait_s = 60;
        let (capture, mut events) = Capture::start(config, authority()).await.unwrap();
        capture.chunk(Variant::AudioPriority, vec![1; 500], 0, 2000).await.unwrap();
        let told =
            |event: &Event| matches!(event, Event::EvidenceReady | Event::State { state: ChunkState::Staged, .. });
        let (first, second) = (until(&mut events, told).await, until(&mut events, told).await);
        assert_ne!(first, second, "{transport:?}");
        relay.release();
        let confirmed = |event: &Event| matches!(event, Event::State { state: ChunkState::Confirmed, .. });
        until(&mut events, confirmed).await;
        let offers = relay.with(|state| state.offers.len());
        assert_eq!((offers, finish(capture).await.confirmed), (1, 1), "{transport:?}");
    }
}

#[tokio::test]
async fn evidence_ready_is_said_with_the_first_chunk_at_a_relay_and_after_a_restart() {
    let (relay, dir) = (Relay::start().await, tempfile::tempdir().unwrap());
    relay.with(|state| state.knobs.hold = true);
    let authority = authority();
    let mut config = config(&relay, Transport::Ws, &[AUDIO]);
    config.storage = queue(dir.path());
    let (capture, mut events) = Capture::start(config.clone(), authority.clone()).await.unwrap();
    capture.chunk(Variant::AudioPriority, vec![1; 500], 0, 2000).await.unwrap();
    capture.chunk(Variant::AudioPriority, vec![2; 500], 0, 2000).await.unwrap();
    let mut ready = 0;
    for _ in 0..2 {
        let staged =
            |event: &Event| matches!(event, Event::EvidenceReady | Event::State { state: ChunkState::Staged, .. });
        while until(&mut events, staged).await == Event::EvidenceReady {
            ready += 1;
        }
    }
    status(&capture, |status| status.evidence_ready && status.uploading == 2).await;
    capture.close().await;
    while let Ok(event) = events.try_recv() {
        ready += usize::from(event == Event::EvidenceReady);
    }
    assert_eq!(ready, 1, "once in a run");
    authority.away.store(true, Ordering::SeqCst);
    let (_capture, mut events) = Capture::start(config, authority).await.unwrap();
    until(&mut events, |event| *event == Event::EvidenceReady).await;
}

#[tokio::test]
async fn the_manifest_goes_last_and_says_what_belongs_to_the_recording() {
    for transport in ALL {
        let relay = Relay::start().await;
        let mut config = config(&relay, transport, &[AUDIO, MASTER]);
        config.manifest = true;
        let (capture, _events) = Capture::start(config, Arc::new(TestAuthority::new(300, 2))).await.unwrap();
        for k in 0..3 {
            capture.chunk(Variant::AudioPriority, vec![1; 500], k, k).await.unwrap();
            capture.chunk(Variant::EvidenceMaster, vec![2; 90_000], k, k).await.unwrap();
        }
        let summary = finish(capture).await;
        assert_eq!((summary.chunks, summary.confirmed, summary.manifest), (6, 6, Some(true)), "{transport:?}");
        relay.with(|state| {
            assert_eq!(state.begun.last().unwrap().0, "metadata_context", "{transport:?}");
            let held = state.chunks.values().find(|h| h.offer.role == Some(Variant::MetadataContext)).unwrap();
            let offer = &held.offer;
            let (media, index) = (offer.media, offer.index);
            let identity = Identity { incident: incident(), stream: offer.stream.clone(), media, index };
            let key = group_key().stream_key(&offer.stream).unwrap();
            let opened = envelope::open(&key, &identity, &held.bytes).unwrap();
            let manifest: Value = serde_json::from_slice(&opened.plaintext).unwrap();
            let mut named = BTreeMap::new();
            for lane in manifest["lanes"].as_array().unwrap() {
                assert_eq!(lane["chunks"], 3);
                for stream in lane["streams"].as_array().unwrap() {
                    named.insert(stream["stream"].as_str().unwrap().to_owned(), stream["chunks"].as_u64().unwrap());
                }
            }
            let mut there: BTreeMap<String, u64> = BTreeMap::new();
            for held in state.chunks.values().filter(|held| held.offer.role != Some(Variant::MetadataContext)) {
                *there.entry(held.offer.stream.as_str().into()).or_default() += 1;
            }
            assert_eq!(named, there, "{transport:?}");
        });
    }
}

#[tokio::test]
async fn what_an_earlier_recording_left_is_no_sign_of_life() {
    for killed in [false, true] {
        let (relay, dir) = (Relay::start().await, tempfile::tempdir().unwrap());
        relay.with(|state| state.knobs.hold = true);
        let authority = authority();
        let mut config = config(&relay, Transport::Ws, &[AUDIO]);
        config.storage = queue(dir.path());
        let (capture, mut events) = Capture::start(config.clone(), authority.clone()).await.unwrap();
        capture.chunk(Variant::AudioPriority, vec![1; 500], 0, 2000).await.unwrap();
        until(&mut events, |event| matches!(event, Event::State { state: ChunkState::Staged, .. })).await;
        if killed {
            capture.close().await;
        } else {
            assert_eq!(capture.finish(Duration::from_millis(100), "stopped").await.pending, 1);
        }
        let said = relay.with(|state| std::mem::take(&mut state.alive));
        assert_eq!(said, 1, "with HELLO: it was recording");

        let (capture, mut events) = Capture::start(config, authority).await.unwrap();
        until(&mut events, |event| matches!(event, Event::Connected { .. })).await;
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(6)).await;
        tokio::time::resume();
        // Time for what would be said by now.
        tokio::time::sleep(Duration::from_millis(600)).await;
        assert_eq!(relay.with(|state| state.alive), 0, "killed: {killed}");
        if killed {
            capture.chunk(Variant::AudioPriority, vec![2; 500], 2000, 4000).await.unwrap();
            relay.until(|state| state.alive >= 1).await;
        }
        relay.release();
        assert_eq!(finish(capture).await.pending, 0);
    }
}
