//! After a kill the relay's QUIC peers hear of it from the next process, not from a time-out.

use std::time::Duration;

use waystation::clock::Clock;
use waystation::config::Config;
use waystation::relay::{Addresses, Relay};
use waystation_tests::World;
use waystation_tests::wire::{soon, tls_config};

/// A relay in a runtime of its own, so that it can vanish without a word as a killed process does.
fn start(toml: &str) -> (tokio::runtime::Runtime, Addresses) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let toml = toml.to_owned();
    let (tx, rx) = std::sync::mpsc::channel();
    runtime.spawn(async move {
        let config = Config::parse(&toml, []).unwrap();
        let relay = loop {
            match Relay::bind(config.clone(), Clock::system()).await {
                Ok(relay) => break relay,
                // Port and lock are free when the last task of the one before is gone.
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        };
        tx.send(relay.addresses()).unwrap();
        relay.run(tokio_util::sync::CancellationToken::new()).await
    });
    let at = rx.recv_timeout(waystation_tests::world::PATIENCE).unwrap();
    (runtime, at)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_of_the_relay_before_is_reset_at_once() {
    let mut world = World::new().await;
    world.stop_relay().await;
    let toml = world.toml().to_owned();
    let (first, at) = tokio::task::spawn_blocking({
        let toml = toml.clone();
        move || start(&toml)
    })
    .await
    .unwrap();
    let public = at.public.unwrap();

    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(tls_config(&world, b"h3")).unwrap();
    let mut config = quinn::ClientConfig::new(std::sync::Arc::new(crypto));
    let mut transport = quinn::TransportConfig::default();
    // Far longer than this test: only a reset can end the connection in time.
    transport.max_idle_timeout(Some(Duration::from_secs(600).try_into().unwrap()));
    transport.keep_alive_interval(Some(Duration::from_millis(100)));
    config.transport_config(std::sync::Arc::new(transport));
    let mut endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    endpoint.set_default_client_config(config);
    let connection = soon("a connection", endpoint.connect(public, "localhost").unwrap()).await.unwrap();
    // Its streams of control came: the handshake is confirmed on both sides.
    soon("a stream", connection.accept_uni()).await.unwrap();

    first.shutdown_background();
    let pinned = toml.replace("public = \"127.0.0.1:0\"", &format!("public = \"{public}\""));
    let (second, again) = tokio::task::spawn_blocking(move || start(&pinned)).await.unwrap();
    assert_eq!(again.public, Some(public));
    let ended = soon("the reset", connection.closed()).await;
    assert!(matches!(ended, quinn::ConnectionError::Reset), "{ended:?}");
    second.shutdown_background();
}
