//! The QUIC endpoint: its limits, and who may begin a handshake.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use aws_lc_rs::hmac;
use quinn::crypto::rustls::QuicServerConfig;
use quinn::{
    AckFrequencyConfig, ConnectionId, ConnectionIdGenerator, Endpoint, EndpointConfig, IdleTimeout, Incoming,
    ServerConfig, TransportConfig, VarInt,
};
use tokio::net::TcpListener;
use waystation_congestion::{Factory, Gauge};

use super::conn::{Conn, Listener};
use super::gate::Place;
use super::{Service, accept, h3, tls};
use crate::clock::Clock;
use crate::config;
use crate::telemetry::names::{Handshake, HandshakeFailure, RefusedConnection, Transport};

/// Requests a peer may have open on one connection; their bytes share its window.
const MAX_STREAMS: u32 = 100;
/// One-way streams of a peer: control and QPACK need three.
const MAX_UNI_STREAMS: u32 = 8;
/// What a peer may send on one stream before the relay took it: 80 Mbit/s at 100 ms.
const STREAM_WINDOW: u32 = 1024 * 1024;
/// The same for a whole connection: what a hostile one can make the relay hold.
const CONNECTION_WINDOW: u32 = 2 * 1024 * 1024;
/// What is held for a peer until it acknowledges; small, so that what a contact is sent next is
/// decided late.
pub(super) const SEND_WINDOW: u64 = 256 * 1024;
/// Datagrams of a peer that are held. None is read: WebTransport asks an end to be able to take them.
const DATAGRAMS: usize = 2 * 1024;
/// A round trip is thought to take this long before the first is seen: what may be lost of the
/// handshake is sent again after 75, 225 and 525 ms, two packets each time. On a slower link that costs those.
const INITIAL_RTT: Duration = Duration::from_millis(25);
/// In round trips: a packet sent before one that is acknowledged is given up after this. Sound that waits for
/// it is worth a packet sent twice.
const LOST_AFTER: f32 = 1.0;
/// A peer shall acknowledge what is little after this: losses in a short chunk are found by it.
const ACK_DELAY: Duration = Duration::from_millis(5);
/// Connections whose first packets wait to be looked at.
const MAX_INCOMING: usize = 1024;
/// Bytes such a connection may have waiting, and all of them together.
const INCOMING_BYTES: (u64, u64) = (64 * 1024, 8 << 20);
/// Unfinished handshakes from which on a peer must show that its address is its own: without
/// that, up to three times what it sent goes to an address it may only claim.
pub(super) const RETRY_FROM: usize = 64;
/// What the kernel may hold of arrived packets until they are read: 20 ms at 800 Mbit/s. It
/// grants less where the system's own limit is lower.
const UDP_BUFFER: usize = 2 << 20;
/// Port 0: tries until one port is free for TCP and UDP.
const PORT_TRIES: usize = 16;

/// The endpoint's configuration. Each connection gets its own [`transport`].
pub(super) fn config(certificate: &tls::Certificate) -> Result<ServerConfig, tls::Error> {
    let crypto = QuicServerConfig::try_from(certificate.quic()?).map_err(|_| tls::Error::Unusable)?;
    let mut config = ServerConfig::with_crypto(Arc::new(crypto));
    config
        // A phone that changes its network keeps its connection and its chunk.
        .migration(true)
        .max_incoming(MAX_INCOMING)
        .incoming_buffer_size(INCOMING_BYTES.0)
        .incoming_buffer_size_total(INCOMING_BYTES.1);
    Ok(config)
}

/// What one connection may do. `gauge` stays with it when its peer comes from another address.
fn transport(limits: &config::Limits, gauge: &Arc<Gauge>) -> TransportConfig {
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(MAX_STREAMS.into())
        .max_concurrent_uni_streams(MAX_UNI_STREAMS.into())
        .stream_receive_window(STREAM_WINDOW.into())
        .receive_window(CONNECTION_WINDOW.into())
        .send_window(SEND_WINDOW)
        .initial_rtt(INITIAL_RTT)
        .time_threshold(LOST_AFTER)
        .congestion_controller_factory(Arc::new(Factory::unmetered(Arc::clone(gauge))))
        .ack_frequency_config(Some(acknowledgements()))
        .datagram_receive_buffer_size(Some(DATAGRAMS))
        .max_idle_timeout(IdleTimeout::try_from(limits.idle_timeout).ok())
        .keep_alive_interval(Some(limits.idle_timeout / 3));
    transport
}

/// Asks a peer after the end of what it was sent, each time that may be lost unseen. Never ends.
pub(super) async fn ask_after(connection: &quinn::Connection, gauge: &Gauge) {
    loop {
        gauge.end().await;
        waystation_congestion::ask_for_acknowledgement(connection, CONNECTION_WINDOW);
    }
}

/// How often a peer shall acknowledge, if it knows how to be asked: what many are sent costs them and the
/// relay a packet back for every eleventh, and not for every second. After a pause it is as soon as ever.
fn acknowledgements() -> AckFrequencyConfig {
    let mut asked = AckFrequencyConfig::default();
    asked.ack_eliciting_threshold(VarInt::from_u32(10)).max_ack_delay(Some(ACK_DELAY));
    asked
}

/// Length of the names that the relay gives its connections, in bytes.
const NAME_BYTES: usize = 8;

/// What outlives a restart: with the same key the relay can reset the connections that an earlier
/// process had on this port, so that their peers need not wait for their idle time-out.
pub(super) fn endpoint(reset_key: &[u8; 32]) -> EndpointConfig {
    let mut config = EndpointConfig::new(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, reset_key)));
    config.cid_generator(|| Box::new(Names(Clock::system())));
    config
}

/// Names of connections: random, and none is taken for foreign. quinn's own generator knows only
/// the names of its own process, and would not answer a peer of the process before. Answers to
/// unknown names are fewer than 50 a second and smaller than what they answer.
struct Names(Clock);

impl ConnectionIdGenerator for Names {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut name = [0; NAME_BYTES];
        self.0.fill_random(&mut name);
        ConnectionId::new(&name)
    }

    fn cid_len(&self) -> usize {
        NAME_BYTES
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

/// Binds one port for TCP and UDP.
pub(super) fn bind_both(
    at: SocketAddr,
    endpoint: &EndpointConfig,
    config: &ServerConfig,
) -> io::Result<(TcpListener, Endpoint)> {
    let mut tries = if at.port() == 0 { PORT_TRIES } else { 1 };
    loop {
        let listener = accept::bind(at)?;
        tries -= 1;
        match UdpSocket::bind(listener.local_addr()?) {
            Ok(socket) => {
                let _ = socket2::SockRef::from(&socket).set_recv_buffer_size(UDP_BUFFER);
                let runtime = Arc::new(quinn::TokioRuntime);
                let endpoint = Endpoint::new(endpoint.clone(), Some(config.clone()), socket, runtime)?;
                return Ok((listener, endpoint));
            }
            Err(error) if tries == 0 || error.kind() != io::ErrorKind::AddrInUse => return Err(error),
            Err(_) => {}
        }
    }
}

/// Accepts connections until the relay drains.
pub(super) async fn run(service: Arc<Service>, endpoint: Endpoint, config: ServerConfig) {
    loop {
        let incoming = tokio::select! {
            biased;
            () = service.drain.cancelled() => break,
            incoming = endpoint.accept() => incoming,
        };
        let Some(incoming) = incoming else { return };
        admit(&service, incoming, &config);
    }
    // New connections are refused; those that are open go on.
    endpoint.set_server_config(None);
}

fn admit(service: &Arc<Service>, incoming: Incoming, config: &ServerConfig) {
    let metrics = &service.shared.metrics.ingress;
    let crowded = service.unfinished.load(Ordering::Relaxed) >= RETRY_FROM;
    if crowded && !incoming.remote_address_validated() && incoming.may_retry() {
        metrics.refuse_connection(RefusedConnection::Retried);
        let _ = incoming.retry();
        return;
    }
    let place = match service.admit(incoming.remote_address().ip()) {
        Ok(place) => place,
        Err(reason) => {
            metrics.refuse_connection(reason);
            return incoming.refuse();
        }
    };
    if place.courtesy {
        metrics.refuse_connection(RefusedConnection::Full);
    }
    let counted = Unfinished::new(&service.unfinished);
    let (service, config) = (Arc::clone(service), config.clone());
    service.tasks.clone().spawn(async move {
        let cut = service.cut.clone();
        tokio::select! {
            biased;
            () = cut.cancelled() => {}
            () = connect(service, (incoming, config), place, counted) => {}
        }
    });
}

fn connect(
    service: Arc<Service>,
    told: (Incoming, ServerConfig),
    place: Place,
    counted: Unfinished,
) -> impl Future<Output = ()> {
    // In a box of its own, which is let go: the connection may last for hours.
    let shaking = Box::pin(shake(service, told, place, counted));
    async move {
        let Some((conn, quic, gauge)) = shaking.await else { return };
        Box::pin(h3::serve(conn, quic.clone(), gauge)).await;
        quic.close(VarInt::from_u32(0x100), b"");
    }
}

/// The handshake; `None`: it failed, and is counted.
async fn shake(
    service: Arc<Service>,
    (incoming, mut config): (Incoming, ServerConfig),
    place: Place,
    counted: Unfinished,
) -> Option<(Arc<Conn>, quinn::Connection, Arc<Gauge>)> {
    let metrics = &service.shared.metrics.ingress;
    let started = service.shared.clock.now_ms();
    let gauge = Arc::new(Gauge::new());
    config.transport_config(Arc::new(transport(&service.limits, &gauge)));
    let Ok(connecting) = incoming.accept_with(Arc::new(config)) else {
        metrics.fail_handshake(Handshake::Quic, HandshakeFailure::Protocol);
        return None;
    };
    // The whole handshake is awaited: early data waits in the streams, at most a connection's window
    // of it, and nothing a replayed first flight says is acted upon.
    let shaken = tokio::select! {
        shaken = connecting => shaken,
        () = service.shared.clock.sleep(service.limits.header_timeout) => {
            metrics.fail_handshake(Handshake::Quic, HandshakeFailure::Timeout);
            return None;
        }
    };
    drop(counted);
    match shaken {
        Ok(quic) => {
            let conn = Conn::open_since(Arc::clone(&service), Listener::Quic, Transport::H3, place, started);
            Some((conn, quic, gauge))
        }
        Err(error) => {
            let class = match error {
                quinn::ConnectionError::TimedOut => HandshakeFailure::Timeout,
                quinn::ConnectionError::ApplicationClosed(_)
                | quinn::ConnectionError::LocallyClosed
                | quinn::ConnectionError::Reset => HandshakeFailure::Closed,
                _ => HandshakeFailure::Protocol,
            };
            metrics.fail_handshake(Handshake::Quic, class);
            None
        }
    }
}

/// Counts a handshake until it is done.
struct Unfinished(Arc<AtomicUsize>);

impl Unfinished {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(count))
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
