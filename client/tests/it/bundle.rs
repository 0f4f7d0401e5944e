//! Several WebSockets as one, where a link goes, comes back, or lets no further one through.

use std::sync::Arc;
use std::time::{Duration, Instant};

use waystation_client::Capture;
use waystation_client::capture::status::{Network, NetworkKind};
use waystation_client::connect::Transport;
use waystation_proto::Variant;

use super::support::authority::TestAuthority;
use super::support::proxy::Proxy;
use super::support::relay::Relay;
use super::support::{MASTER, config};

/// Tries that one connection may take.
const TRIES: usize = 4;
const PATIENCE: Duration = Duration::from_secs(60);

/// A recording through a proxy; each connection gets 40 kB/s.
async fn recording(most: usize, chunks: &[usize]) -> (Relay, Proxy, Capture) {
    let relay = Relay::start().await;
    relay.with(|state| (state.knobs.credit, state.knobs.credit_after) = (4096, Duration::from_millis(100)));
    let proxy = Proxy::before(&relay, most).await;
    let mut config = config(&relay, Transport::WsPlain, &[MASTER]);
    config.relays = vec![proxy.endpoint()];
    let (capture, _events) = Capture::start(config, Arc::new(TestAuthority::new(300, 64))).await.unwrap();
    for (n, length) in (0..).zip(chunks) {
        capture.chunk(Variant::EvidenceMaster, vec![n as u8; *length], n * 2000, n * 2000 + 2000).await.unwrap();
    }
    (relay, proxy, capture)
}

/// More connections than one takes tries go silent; then the relay is as fast as it can be.
async fn one_for_all(moves: bool) {
    let (relay, proxy, capture) = recording(100, &[500_000; 10]).await;
    relay.until(|state| state.hellos > TRIES).await;
    let (before, old) = proxy.with(|seen| (seen.opened, seen.open));
    proxy.silence(before);
    // What the relay read of them so far is all that it will.
    relay.cut();
    relay.with(|state| (state.knobs.credit, state.knobs.credit_after) = (1 << 20, Duration::ZERO));
    let held = relay.with(|state| state.received);
    if moves {
        capture.control().network(Network { kind: NetworkKind::Wifi, battery_low: false }).await;
    }
    proxy.until(|seen| seen.opened > before && seen.open <= seen.opened - before).await;
    let made = proxy.with(|seen| seen.opened - before);
    assert!((1..=TRIES).contains(&made), "{made} connections in the place of {old}");
    let summary = capture.finish(PATIENCE, "stopped").await;
    assert_eq!((summary.confirmed, summary.pending), (10, 0));
    relay.with(|state| {
        let length: usize = state.chunks.values().map(|held| held.bytes.len()).sum();
        assert!(held > 0 && state.received == length, "no byte was taken twice");
    });
}

#[tokio::test]
async fn on_another_network_one_connection_is_made_for_all() {
    one_for_all(true).await;
}

#[tokio::test]
async fn where_nothing_is_heard_one_connection_is_made_for_all() {
    one_for_all(false).await;
}

#[tokio::test]
async fn what_silent_ones_were_to_bring_goes_over_to_one_that_is_heard() {
    let (relay, proxy, capture) = recording(3, &[200_000; 8]).await;
    relay.until(|state| state.hellos == 3).await;
    proxy.silence(2);
    relay.with(|state| (state.knobs.credit, state.knobs.credit_after) = (1 << 20, Duration::ZERO));
    let summary = capture.finish(PATIENCE, "stopped").await;
    assert_eq!((summary.confirmed, summary.pending), (8, 0));
    relay.with(|state| {
        let length: usize = state.chunks.values().map(|held| held.bytes.len()).sum();
        assert_eq!(state.received, length, "no byte was taken twice");
    });
}

#[tokio::test]
async fn where_the_first_word_is_late_another_connection_is_made() {
    for transport in [Transport::Ws, Transport::WsPlain] {
        let relay = Relay::start().await;
        relay.with(|state| state.knobs.mute = true);
        let config = config(&relay, transport, &[MASTER]);
        let (capture, _events) = Capture::start(config, Arc::new(TestAuthority::new(300, 64))).await.unwrap();
        capture.chunk(Variant::EvidenceMaster, vec![1; 40_000], 0, 2000).await.unwrap();
        relay.until(|state| state.hellos == 1).await;
        let begun = Instant::now();
        relay.until(|state| state.hellos == 2).await;
        assert!(begun.elapsed() < Duration::from_secs(4), "sooner than where it was heard: {transport:?}");
        let summary = capture.finish(PATIENCE, "stopped").await;
        assert_eq!((summary.confirmed, summary.pending), (1, 0), "{transport:?}");
    }
}

#[tokio::test]
async fn a_relay_that_is_slow_to_greet_is_asked_ever_more_seldom() {
    for transport in [Transport::Ws, Transport::WsPlain] {
        let relay = Relay::start().await;
        // Longer than the first is waited for, and the second, and not the third.
        relay.with(|state| state.knobs.greets_after = Duration::from_millis(3_200));
        let config = config(&relay, transport, &[MASTER]);
        let (capture, _events) = Capture::start(config, Arc::new(TestAuthority::new(300, 64))).await.unwrap();
        capture.chunk(Variant::EvidenceMaster, vec![1; 40_000], 0, 2000).await.unwrap();
        let summary = capture.finish(PATIENCE, "stopped").await;
        assert_eq!((summary.confirmed, summary.pending), (1, 0), "{transport:?}");
        assert_eq!(relay.with(|state| state.hellos), 3, "{transport:?}");
    }
}

#[tokio::test]
async fn a_relay_that_takes_no_more_connections_is_left_alone_as_long_as_it_asks() {
    // Six seconds and more for the one connection that there is.
    let (_relay, proxy, capture) = recording(1, &[40_000; 6]).await;
    let summary = capture.finish(PATIENCE, "stopped").await;
    assert_eq!((summary.confirmed, summary.reconnects), (6, 0));
    // Of the two that began at once one had the only place, and one more was tried beside it.
    assert_eq!(proxy.with(|seen| (seen.opened, seen.refused)), (3, 2));
}
