//! Networks that let no UDP through, at the start or from now on.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use waystation_client::Capture;
use waystation_client::capture::Event;
use waystation_client::capture::status::{Network, NetworkKind};
use waystation_client::connect::{Transport, Trust};
use waystation_proto::Variant;

use super::support::authority::TestAuthority;
use super::support::proxy::Udp;
use super::support::relay::Relay;
use super::support::{AUDIO, LIMIT, MASTER, config, until};

/// The best of a few: a busy machine may be late, but not each time.
const TRIES: usize = 4;

struct Rig {
    relay: Relay,
    udp: Udp,
    capture: Capture,
    events: mpsc::Receiver<Event>,
    index: i64,
}

impl Rig {
    async fn start(shut: bool) -> Self {
        Self::over(Transport::Auto, shut).await
    }

    async fn over(transport: Transport, shut: bool) -> Self {
        let relay = Relay::start().await;
        let udp = Udp::before(&relay, shut).await;
        let trust = Trust::certificates(vec![relay.certificate().to_vec().into()]).unwrap();
        let mut config = config(&relay, transport, &[AUDIO, MASTER]);
        config.relays = vec![relay.secure_endpoint(trust)];
        let (capture, events) = Capture::start(config, Arc::new(TestAuthority::new(300, 64))).await.unwrap();
        Self { relay, udp, capture, events, index: 0 }
    }

    /// How long it takes until one more chunk is confirmed.
    async fn brings(&mut self) -> Duration {
        self.brings_of(Variant::AudioPriority, 2000).await
    }

    async fn brings_of(&mut self, variant: Variant, bytes: usize) -> Duration {
        let begun = Instant::now();
        self.capture.chunk(variant, vec![1; bytes], self.index, self.index).await.unwrap();
        self.index += 1;
        let mut watch = self.capture.control().watch();
        let all = self.index as u64;
        tokio::time::timeout(LIMIT, watch.wait_for(|status| status.complete == all)).await.unwrap().unwrap();
        begun.elapsed()
    }

    async fn network(&self, kind: NetworkKind) {
        self.capture.control().network(Network { kind, battery_low: false }).await;
    }
}

async fn best(mut attempt: impl AsyncFnMut() -> Duration) -> Duration {
    let mut best = Duration::MAX;
    for _ in 0..TRIES {
        best = best.min(attempt().await);
        if best < Duration::from_secs(1) {
            break;
        }
    }
    best
}

#[tokio::test]
async fn where_no_udp_passes_a_websocket_carries_on_within_a_second() {
    let taken = best(async || {
        let mut rig = Rig::start(true).await;
        let taken = rig.brings().await;
        assert!(rig.relay.with(|state| state.hellos == 1 && state.ports.is_empty()), "no QUIC");
        taken
    });
    let taken = taken.await;
    assert!(taken < Duration::from_secs(1), "{taken:?}");
}

#[tokio::test]
async fn on_a_network_where_no_udp_passes_any_more_a_websocket_carries_on_within_a_second() {
    let taken = best(async || {
        let mut rig = Rig::start(false).await;
        rig.brings().await;
        if rig.relay.with(|state| state.hellos) > 0 {
            // A machine so busy that QUIC lost the race.
            return Duration::MAX;
        }
        rig.udp.shut(true);
        rig.network(NetworkKind::Wifi).await;
        let taken = rig.brings().await;
        assert_eq!(rig.relay.with(|state| state.hellos), 1);
        taken
    });
    let taken = taken.await;
    assert!(taken < Duration::from_secs(1), "{taken:?}");
}

#[tokio::test]
async fn on_another_network_quic_is_tried_again_and_taken() {
    let mut rig = Rig::start(true).await;
    rig.brings().await;
    rig.udp.shut(false);
    rig.network(NetworkKind::Wifi).await;
    until(&mut rig.events, |event| matches!(event, Event::Connected { earlier } if *earlier > 0)).await;
    rig.brings().await;
    assert!(rig.relay.with(|state| !state.ports.is_empty()), "over QUIC");
}

#[tokio::test]
async fn what_is_lost_of_sound_goes_twice_the_next_time_and_of_a_master_once() {
    for (variant, twice) in [(Variant::AudioPriority, true), (Variant::EvidenceMaster, false)] {
        let mut rig = Rig::over(Transport::H3, false).await;
        rig.brings().await;
        // Those that look how large a packet may be are among them, and no loss.
        rig.udp.lose(4..10);
        rig.brings_of(variant, 60_000).await;
        assert_eq!(rig.udp.twice() > 0, twice, "{variant}: {}", rig.udp.twice());
    }
}
