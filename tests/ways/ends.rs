//! What the two ends of a connection tell each other beside what is carried: they ask after the end of what they
//! sent, and say why a handshake fails.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls_pki_types::CertificateDer;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;
use waystation_client::authority::{DevcoreAuthority, Wishes};
use waystation_client::capture::{Capture, Config, Event, LaneSpec, Storage};
use waystation_client::connect::{Endpoint, Transport, Trust};
use waystation_client::keys::GroupKey;
use waystation_proto::{Media, Variant};
use waystation_tests::World;
use waystation_tests::wire::{soon, tls, tls_config};

/// One way. On a path without any nothing is asked: acknowledgements come first.
const DELAY: Duration = Duration::from_millis(150);

/// A way of some length to `to` for one client, by the address that is returned.
async fn far(to: SocketAddr) -> (SocketAddr, [AbortOnDropHandle<()>; 2]) {
    let [front, back] = [UdpSocket::bind("127.0.0.1:0").await.unwrap(), UdpSocket::bind("127.0.0.1:0").await.unwrap()];
    back.connect(to).await.unwrap();
    let (at, client) = (front.local_addr().unwrap(), Arc::new(Mutex::new(None)));
    let [front, back] = [front, back].map(Arc::new);
    let there = carry(Arc::clone(&front), Arc::clone(&back), {
        let client = Arc::clone(&client);
        move |from| {
            *client.lock().unwrap() = Some(from);
            Some(to)
        }
    });
    let here = carry(back, front, move |_| *client.lock().unwrap());
    (at, [there, here])
}

fn carry(
    from: Arc<UdpSocket>,
    by: Arc<UdpSocket>,
    to: impl Fn(SocketAddr) -> Option<SocketAddr> + Send + 'static,
) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(tokio::spawn(async move {
        let mut datagram = [0; 2048];
        while let Ok((len, sender)) = from.recv_from(&mut datagram).await {
            let (datagram, by, to) = (datagram[..len].to_vec(), Arc::clone(&by), to(sender));
            tokio::spawn(async move {
                tokio::time::sleep(DELAY).await;
                if let Some(to) = to {
                    let _ = by.send_to(&datagram, to).await;
                }
            });
        }
    }))
}

/// A phone that believes this certificate of the relay, and the core's.
pub async fn capture(
    world: &World,
    relay: SocketAddr,
    believed: CertificateDer<'static>,
    transport: Transport,
) -> (Capture, mpsc::Receiver<Event>) {
    let trust = |certificate| Trust::certificates(vec![certificate]).unwrap();
    let config = Config {
        relays: vec![Endpoint::parse(&format!("https://{relay}"), trust(believed)).unwrap()],
        transport,
        group_key: GroupKey::new([42; 32]),
        lanes: vec![LaneSpec { variant: Variant::AudioPriority, media: Media::Audio }],
        client_key: None,
        storage: Storage::Memory,
        manifest: false,
        wait_s: 5,
    };
    let core = Endpoint::parse(&world.core.url(), trust(world.certificate())).unwrap();
    let account = world.core.account_token().to_owned().into();
    let authority = DevcoreAuthority::new(&core, account, Wishes::default());
    Capture::start(config, Arc::new(authority)).await.unwrap()
}

/// `MAX_DATA` is what asks; neither end has another reason for it here.
async fn until_asked(connection: &quinn::Connection) {
    soon("a packet that asks", async {
        while connection.stats().frame_rx.max_data == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_relay_asks_after_what_it_sent_last() {
    let world = World::new().await;
    let (relay, _way) = far(world.public()).await;
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(tls_config(&world, b"h3")).unwrap();
    let mut endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    endpoint.set_default_client_config(quinn::ClientConfig::new(Arc::new(crypto)));
    // The names that it gives the connection, and its settings, are the last that it has to say.
    let connection = soon("a handshake", endpoint.connect(relay, "localhost").unwrap()).await.unwrap();
    until_asked(&connection).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_capture_client_asks_after_what_it_sent_last() {
    // For its core alone: the relay is one that takes everything and says nothing.
    let world = World::new().await;
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let key = rustls_pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()).into();
    let certificate = made.cert.der().clone();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)
        .unwrap();
    tls.alpn_protocols = vec![b"h3".to_vec()];
    let served = quinn::crypto::rustls::QuicServerConfig::try_from(tls).unwrap();
    let served = quinn::ServerConfig::with_crypto(Arc::new(served));
    let silent = quinn::Endpoint::server(served, "127.0.0.1:0".parse().unwrap()).unwrap();
    let (relay, _way) = far(silent.local_addr().unwrap()).await;

    let (capture, _events) = capture(&world, relay, certificate, Transport::H3).await;
    capture.chunk(Variant::AudioPriority, vec![7; 3000], 0, 2000).await.unwrap();
    let connection = soon("the client", silent.accept()).await.unwrap().await.unwrap();
    until_asked(&connection).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handshake_over_tcp_that_fails_says_why_at_both_ends() {
    let world = World::new().await;
    let error = tls(&world, b"gopher/1").await.expect_err("a refusal");
    let reason = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let wanted = rustls::Error::AlertReceived(rustls::AlertDescription::NoApplicationProtocol);
    assert_eq!(reason, Some(&wanted), "{error}");
    let failed = "waystation_handshakes_failed_total{handshake=\"tls\",class=\"protocol\"}";
    world.until_metric(failed, |times| times == 1.0).await;
    // A phone that does not trust the relay says so.
    let other = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let (capture, _events) = capture(&world, world.public(), other.cert.der().clone(), Transport::Ws).await;
    capture.chunk(Variant::AudioPriority, vec![7; 3000], 0, 2000).await.unwrap();
    world.until_metric(failed, |times| times > 1.0).await;
}
