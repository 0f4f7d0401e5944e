//! The contact over each transport: cut-through, checks, breaks, renewal.

use std::sync::Arc;
use std::time::{Duration, Instant};

use waystation_client::connect::Transport;
use waystation_client::receipt::Proof;
use waystation_client::watch::{Bad, Config, Event, MAX_CHUNK, Watch};
use waystation_client::{Capture, GroupKey};
use waystation_proto::frame::{Piece, kind};
use waystation_proto::id::StreamId;
use waystation_proto::message::{
    Complete, ContactChunkState, Cursor, Ending, Omitted, OmittedReason, StartWord, Withdrawn, WithdrawnReason,
};
use waystation_proto::offer::Timestamp;
use waystation_proto::{Code, ContactState, Media, Offer, Variant};

use super::support::authority::{TestAuthority, receipt};
use super::support::relay::{Relay, begins, sha2_of::sha256};
use super::support::{AUDIO, LIMIT, config as capture_config, group_key, incident};

const ALL: [Transport; 3] = [Transport::Ws, Transport::H1, Transport::H3];

fn authority() -> Arc<TestAuthority> {
    Arc::new(TestAuthority::new(300, 64))
}

fn config(relay: &Relay, transport: Transport, key: GroupKey) -> Config {
    Config {
        relay: relay.endpoint(transport),
        transport,
        group_key: key,
        incident: incident(),
        lanes: None,
        from: StartWord::Oldest,
        max_chunk: MAX_CHUNK,
    }
}

async fn until(watch: &mut Watch, wanted: impl Fn(&Event) -> bool) -> Event {
    let search = async {
        loop {
            let event = watch.next().await.expect("the subscription is over");
            if wanted(&event) {
                return event;
            }
        }
    };
    tokio::time::timeout(LIMIT, search).await.expect("the event does not come")
}

fn sealed(index: u64, plaintext: &[u8]) -> (Offer, Vec<u8>) {
    let stream = StreamId::new("stream_0").unwrap();
    let identity = waystation_client::envelope::Identity {
        incident: incident(),
        stream: stream.clone(),
        media: Media::Audio,
        index,
    };
    let key = group_key().stream_key(&stream).unwrap();
    let name = format!("audio_priority.{}", index - 1);
    let frame = waystation_client::envelope::seal(&key, &identity, &name, [index as u8; 12], plaintext).unwrap();
    let header = format!(
        r#"incident="incident_1", stream="stream_0", index={index}, media="audio", started="2026-06-10T12:00:00Z", ended="2026-06-10T12:00:02Z", role="audio_priority""#
    );
    let offer = waystation_proto::dictionary::parse_offer(&header, sha256(&frame), Some(frame.len() as u64)).unwrap();
    (offer, frame.to_vec())
}

#[tokio::test]
async fn a_contact_sees_what_is_recorded_while_it_is_recorded() {
    for transport in ALL {
        let relay = Relay::start().await;
        relay.with(|state| state.knobs.receipts = Some("k1".into()));
        let authority = authority();
        let mut watch = Watch::start(config(&relay, transport, group_key()), authority.clone());
        until(&mut watch, |event| matches!(event, Event::Watching { .. })).await;
        let (capture, _events) =
            Capture::start(capture_config(&relay, Transport::Ws, &[AUDIO]), authority).await.unwrap();
        for k in 0..3u8 {
            capture.chunk(Variant::AudioPriority, vec![k; 50_000], i64::from(k), i64::from(k) + 1).await.unwrap();
            // What the core says may overtake the bytes.
            let (mut whole, mut stands) = (None, None);
            while whole.is_none() || stands.is_none() {
                match until(&mut watch, |event| matches!(event, Event::Complete(_) | Event::State { .. })).await {
                    Event::State { state, receipt, .. } => stands = Some((state, receipt)),
                    Event::Complete(complete) => whole = Some((complete.plaintext, complete.lane_seq)),
                    _ => unreachable!(),
                }
            }
            assert_eq!(whole, Some((vec![k; 50_000], Some(u64::from(k)))), "{transport:?}");
            assert_eq!(stands, Some((ContactState::Confirmed, Proof::Verified)));
        }
        assert_eq!(capture.finish(LIMIT, "stopped").await.confirmed, 3);
    }
}

#[tokio::test]
async fn half_a_chunk_is_shown_as_it_comes_and_may_be_withdrawn() {
    for transport in ALL {
        let relay = Relay::start().await;
        let (offer, bytes) = sealed(1, &[5; 200_000]);
        relay.with(|state| {
            state.publish(kind::CHUNK, &begins(&offer, 7));
            state.log.push(Piece::encode(kind::PIECE, 7, 0, &bytes[..120_000]));
        });
        let mut watch = Watch::start(config(&relay, transport, group_key()), authority());
        until(&mut watch, |event| matches!(event, Event::Progress { received: 120_000, .. })).await;
        relay.with(|state| {
            state.publish(kind::WITHDRAWN, &Withdrawn { handle: 7, reason: WithdrawnReason::Stalled });
            state.publish(kind::COMPLETE, &Complete { handle: 7 });
            state.publish(kind::ENDING, &Ending { reason: "ended".into() });
        });
        let next = watch.next().await.unwrap();
        assert!(matches!(next, Event::Withdrawn { reason: WithdrawnReason::Stalled, .. }), "{next:?}");
        assert!(matches!(watch.next().await, Some(Event::Ending { .. })), "nothing of it is shown as whole");
        assert!(watch.next().await.is_none());
    }
}

#[tokio::test]
async fn what_is_not_what_was_offered_is_not_shown() {
    let relay = Relay::start().await;
    let chunk = |index: u64| sealed(index, &[index as u8; 1000]);
    relay.with(|state| {
        let (offer, bytes) = chunk(1);
        let mut altered = bytes.clone();
        altered[500] ^= 1;
        state.publish(kind::CHUNK, &begins(&offer, 1));
        state.log.push(Piece::encode(kind::PIECE, 1, 0, &altered));
        state.publish(kind::COMPLETE, &Complete { handle: 1 });
        // A hole.
        let (offer, bytes) = chunk(2);
        state.publish(kind::CHUNK, &begins(&offer, 2));
        state.log.push(Piece::encode(kind::PIECE, 2, 10, &bytes[10..]));
        // The relay's own invention: its digest fits, its seal does not.
        let (mut offer, mut bytes) = chunk(3);
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        offer.sha256 = sha256(&bytes);
        state.publish(kind::CHUNK, &begins(&offer, 3));
        state.log.push(Piece::encode(kind::PIECE, 3, 0, &bytes));
        state.publish(kind::COMPLETE, &Complete { handle: 3 });
        // Another chunk's bytes under this name.
        let (mut offer, _) = chunk(4);
        let (_, bytes) = chunk(5);
        offer.sha256 = sha256(&bytes);
        state.publish(kind::CHUNK, &begins(&offer, 4));
        state.log.push(Piece::encode(kind::PIECE, 4, 0, &bytes));
        state.publish(kind::COMPLETE, &Complete { handle: 4 });
        // Too long.
        let (mut offer, _) = chunk(6);
        offer.length = MAX_CHUNK + 1;
        state.publish(kind::CHUNK, &begins(&offer, 6));
        state.publish(kind::ENDING, &Ending { reason: "ended".into() });
    });
    let mut watch = Watch::start(config(&relay, Transport::Ws, group_key()), authority());
    let mut bad = Vec::new();
    while let Some(event) = watch.next().await {
        match event {
            Event::Bad { why, .. } => bad.push(why),
            Event::Complete(_) => panic!("shown"),
            _ => {}
        }
    }
    assert_eq!(bad, [Bad::HashMismatch, Bad::Torn, Bad::Sealed, Bad::Sealed, Bad::TooMuch]);
}

#[tokio::test]
async fn pieces_may_overlap_and_chunks_may_interleave() {
    let relay = Relay::start().await;
    let ((a, a_bytes), (b, b_bytes)) = (sealed(1, &[1; 3000]), sealed(2, &[2; 3000]));
    relay.with(|state| {
        state.publish(kind::CHUNK, &begins(&a, 1));
        state.publish(kind::CHUNK, &begins(&b, 2));
        for at in (0..a_bytes.len()).step_by(100) {
            let from = at.saturating_sub(30);
            state.log.push(Piece::encode(kind::PIECE, 1, from as u64, &a_bytes[from..(at + 100).min(a_bytes.len())]));
            state.log.push(Piece::encode(kind::PIECE, 2, at as u64, &b_bytes[at..(at + 100).min(b_bytes.len())]));
        }
        state.publish(kind::COMPLETE, &Complete { handle: 2 });
        state.publish(kind::COMPLETE, &Complete { handle: 1 });
    });
    let mut watch = Watch::start(config(&relay, Transport::H1, group_key()), authority());
    for wanted in [[2; 3000], [1; 3000]] {
        let Event::Complete(whole) = until(&mut watch, |event| matches!(event, Event::Complete(_))).await else {
            unreachable!()
        };
        assert_eq!(whole.plaintext, wanted);
    }
}

#[tokio::test]
async fn a_break_goes_on_at_the_cursor_and_shows_nothing_twice() {
    for transport in ALL {
        let relay = Relay::start().await;
        let chunk = |state: &mut super::support::relay::State, index: u64| {
            let (offer, bytes) = sealed(index, &[index as u8; 1000]);
            state.publish(kind::CHUNK, &begins(&offer, index));
            state.log.push(Piece::encode(kind::PIECE, index, 0, &bytes));
            state.publish(kind::COMPLETE, &Complete { handle: index });
        };
        relay.with(|state| {
            chunk(state, 1);
            state.publish(kind::CURSOR, &Cursor { cursor: "4".into() });
            chunk(state, 2);
        });
        let mut watch = Watch::start(config(&relay, transport, group_key()), authority());
        let complete = |event: &Event| matches!(event, Event::Complete(_));
        until(&mut watch, complete).await;
        until(&mut watch, complete).await;
        relay.cut();
        until(&mut watch, |event| matches!(event, Event::Watching { earlier: 1, .. })).await;
        relay.with(|state| chunk(state, 3));
        let Event::Complete(whole) = until(&mut watch, complete).await else { unreachable!() };
        assert_eq!(whole.label.index, 3, "chunk 2 came again and was told apart over {transport:?}");
        assert_eq!(relay.with(|state| state.watches.clone()), ["", "4"]);
    }
}

#[tokio::test]
async fn a_relay_without_a_seat_is_asked_again_when_it_says_and_not_left() {
    let relay = Relay::start().await;
    let (offer, bytes) = sealed(1, &[1; 1000]);
    relay.with(|state| {
        state.knobs.crowded_until = Some(Instant::now() + Duration::from_millis(1500));
        state.publish(kind::CHUNK, &begins(&offer, 1));
        state.log.push(Piece::encode(kind::PIECE, 1, 0, &bytes));
        state.publish(kind::COMPLETE, &Complete { handle: 1 });
    });
    let mut watch = Watch::start(config(&relay, Transport::H3, group_key()), authority());
    let or_gone = |event: &Event| matches!(event, Event::Complete(_) | Event::Disconnected { .. });
    let event = until(&mut watch, or_gone).await;
    assert!(matches!(event, Event::Complete(_)), "{event:?}");
    let (watches, unseated) = relay.with(|state| (state.watches.len(), state.unseated));
    // Two copies of this chunk and the next one, and each of them a second later.
    assert!(watches == 1 && (1..=8).contains(&unseated), "{watches} subscriptions, {unseated} refusals");
}

#[tokio::test]
async fn a_chunk_that_is_not_wanted_any_more_is_stopped_at_the_relay() {
    let relay = Relay::start().await;
    let (offer, bytes) = sealed(1, &[1; 100_000]);
    let mut at = 20_000;
    relay.with(|state| {
        state.publish(kind::CHUNK, &begins(&offer, 1));
        state.log.push(Piece::encode(kind::PIECE, 1, 0, &bytes[..at]));
    });
    let mut watch = Watch::start(config(&relay, Transport::H3, group_key()), authority());
    until(&mut watch, |event| matches!(event, Event::Progress { received: 20_000, .. })).await;
    relay.with(|state| {
        let reason = OmittedReason::Evicted;
        state.publish(kind::OMITTED, &Omitted { stream: offer.stream.clone(), from: 1, to: 1, reason });
    });
    until(&mut watch, |event| matches!(event, Event::Omitted { .. })).await;
    // The relay finds it out when it goes on, on the stream of each of two copies.
    let mut every = tokio::time::interval(Duration::from_millis(50));
    let going_on = async {
        while relay.with(|state| state.stopped) < 2 {
            relay.with(|state| state.log.push(Piece::encode(kind::PIECE, 1, at as u64, &bytes[at..at + 100])));
            at += 100;
            every.tick().await;
        }
    };
    tokio::time::timeout(LIMIT, going_on).await.expect("the relay goes on bringing it");
}

#[tokio::test]
async fn a_capability_is_renewed_before_its_end() {
    for transport in ALL {
        let relay = Relay::start().await;
        let authority = Arc::new(TestAuthority::new(3, 64));
        relay.with(|state| state.publish(kind::CURSOR, &Cursor { cursor: "1".into() }));
        let mut watch = Watch::start(config(&relay, transport, group_key()), authority.clone());
        let renewed = tokio::time::timeout(Duration::from_secs(3), until(&mut watch, |e| *e == Event::Renewed)).await;
        assert!(renewed.is_ok(), "{transport:?}");
        if transport == Transport::Ws {
            relay.until(|state| state.renewals == 1).await;
            assert_eq!(relay.with(|state| state.watches.len()), 1);
        } else {
            relay.until(|state| state.watches == ["", "1"]).await;
            let again =
                |event: &Event| matches!(event, Event::Watching { earlier: 1, .. } | Event::Disconnected { .. });
            let next = until(&mut watch, again).await;
            assert!(matches!(next, Event::Watching { .. }), "a renewal is no break over {transport:?}");
        }
    }
}

#[tokio::test]
async fn an_ending_with_a_reason_is_final_or_not_as_its_code_says() {
    let relay = Relay::start().await;
    let authority = authority();
    let mut watch = Watch::start(config(&relay, Transport::Ws, group_key()), authority.clone());
    until(&mut watch, |event| matches!(event, Event::Watching { .. })).await;
    relay.with(|state| {
        state.publish(kind::CURSOR, &Cursor { cursor: "2".into() });
        state.publish(kind::ENDING, &Ending { reason: Code::CapabilityExpired.name().into() });
    });
    until(&mut watch, |event| matches!(event, Event::Watching { earlier: 1, .. })).await;
    assert_eq!(authority.minted(), 2);
    let reason = Code::CapabilityRevoked.name();
    relay.with(|state| state.publish(kind::ENDING, &Ending { reason: reason.into() }));
    let ending = until(&mut watch, |event| matches!(event, Event::Ending { .. })).await;
    assert_eq!(ending, Event::Ending { reason: reason.into() });
    assert!(watch.next().await.is_none());
}

#[tokio::test]
async fn confirmed_needs_a_receipt_of_what_came() {
    let relay = Relay::start().await;
    let ((offer, bytes), (other, _)) = (sealed(1, &[1; 1000]), sealed(2, &[2; 900]));
    let told = |receipt: String| ContactChunkState {
        stream: offer.stream.clone(),
        index: 1,
        state: ContactState::Confirmed,
        receipt: Some(receipt),
        error: None,
    };
    relay.with(|state| {
        state.publish(kind::CHUNK, &begins(&offer, 1));
        state.log.push(Piece::encode(kind::PIECE, 1, 0, &bytes));
        state.publish(kind::COMPLETE, &Complete { handle: 1 });
        state.publish(kind::STATE, &told(receipt(&other, "k1")));
        let altered = Offer { length: 1, ended: Timestamp::from_unix_ms(0), ..offer.clone() };
        state.publish(kind::STATE, &told(receipt(&altered, "k1")));
        state.publish(kind::STATE, &told(receipt(&offer, "k1")));
    });
    let mut watch = Watch::start(config(&relay, Transport::Ws, group_key()), authority());
    let mut states = Vec::new();
    while states.len() < 2 {
        if let Event::State { state, receipt, .. } = until(&mut watch, |e| matches!(e, Event::State { .. })).await {
            states.push((state, receipt));
        }
    }
    let (not, yes) = ((ContactState::Unsettled, Proof::Invalid), (ContactState::Confirmed, Proof::Verified));
    assert_eq!(states, [not, yes], "told once until it changes");
}
