//! One HTTP/3 connection to a relay: requests in parallel, each with its own stream.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use h3::client::{RequestStream, SendRequest};
use h3::error::Code;
use http::{Request, Response};
use quinn::Runtime as _;
use quinn::crypto::rustls::QuicClientConfig;
use tokio_util::task::AbortOnDropHandle;
use waystation_h3::{Opener, Priority};

use crate::connect::{ConnectError, Endpoint};
use crate::http::{Broken, Reply, gather};
use crate::race;
use crate::repeat::{Needed, Repeating, Tries};
use waystation_congestion::{self as congestion, Gauge};

/// A round trip is thought to take this long before the first is seen: a lost handshake packet is
/// sent again after three of it. On a link that is slower yet it costs a packet or two.
const INITIAL_RTT: Duration = Duration::from_millis(120);
/// Bytes of a packet before the path showed that it takes more: what every path with IPv6 takes.
const INITIAL_MTU: u16 = 1232;
/// Two steps from there to the largest packet that is looked for, 1452 bytes. Each is a packet of padding,
/// and a finer search finds little more.
const MTU_STEP: u16 = 60;
/// A connection on which nothing comes back for this long is dead. Longer than outages, since a
/// connection that lives on needs neither a handshake nor a question where it was.
const IDLE_LIMIT: Duration = Duration::from_secs(60);
/// A sign after so much silence from a capture client, which says `ALIVE` anyway: NATs of mobile
/// networks forget a quiet flow after 30 s and more.
pub(crate) const CAPTURE_KEEP_ALIVE: Duration = Duration::from_secs(15);
const _: () = assert!(CAPTURE_KEEP_ALIVE.as_secs() < 30);
/// The same from a contact, which says nothing else: a relay that is gone is found out by it.
pub(crate) const WATCH_KEEP_ALIVE: Duration = Duration::from_secs(2);
/// The same in keep-alives: a contact has nothing else to find a dead relay by.
const IDLE_FACTOR: u32 = 4;
/// Bytes that QUIC holds until they are acknowledged in order. How many of them wait to be sent is
/// the gauge's concern; this bounds the memory.
const SEND_WINDOW: u64 = 4 * 1024 * 1024;
/// Bytes of one answer that may be under way. A contact's stream is long; see [`RECEIVE_WINDOW`].
const STREAM_WINDOW: u32 = 1024 * 1024;
/// Bytes of all answers that may be under way, and so memory this connection may cost.
const RECEIVE_WINDOW: u32 = 4 * 1024 * 1024;

/// The priority of what is small and waited for.
pub(crate) const FIRST: i32 = i32::MAX;

type SendHalf = RequestStream<waystation_h3::SendStream, Bytes>;
type ReceiveHalf = RequestStream<waystation_h3::RecvStream, Bytes>;

/// An HTTP/3 connection. Closed when dropped.
pub(crate) struct H3 {
    requests: SendRequest<Opener, Bytes>,
    priority: tokio::sync::Mutex<Priority>,
    connection: quinn::Connection,
    gauge: Arc<Gauge>,
    authority: String,
    // Held so that they end with the connection. It asks as well after what may be lost unseen.
    _driver: AbortOnDropHandle<()>,
    socket: quinn::Endpoint,
}

/// A body on its way. Dropped before [`Sending::finish`] it is reset: quinn finishes a stream that
/// is dropped, which would make a body that broke off look whole.
pub(crate) struct Sending {
    half: SendHalf,
    gauge: Arc<Gauge>,
    finished: bool,
}

/// An answer on its way.
pub(crate) struct Receiving(ReceiveHalf);

/// An answer read as it comes.
pub(crate) struct H3Body {
    half: ReceiveHalf,
}

/// Tells whether the relay took what was sent before the handshake was complete.
pub(crate) type Early = quinn::ZeroRttAccepted;

impl H3 {
    /// Connects and completes the handshake.
    pub(crate) async fn connect(endpoint: &Endpoint, keep_alive: Duration) -> Result<Self, ConnectError> {
        Self::through(endpoint, Dialer::new(endpoint, keep_alive)?).await
    }

    /// The same with as few bytes as will do, over a link on which a large packet takes long.
    pub(crate) async fn connect_thinly(endpoint: &Endpoint) -> Result<Self, ConnectError> {
        let dialer = Dialer::new(endpoint, CAPTURE_KEEP_ALIVE)?;
        Self::through(endpoint, Dialer { thin: true, tries: Arc::new(Tries::once()), ..dialer }).await
    }

    async fn through(endpoint: &Endpoint, dialer: Dialer<'_>) -> Result<Self, ConnectError> {
        let addresses = endpoint.addresses().await?;
        let through = race::staggered(race::QUIC, |n| dialer.attempt(addresses[n % addresses.len()], n));
        let (socket, connection, gauge) = through.await?;
        Self::over(endpoint, socket, connection, gauge).await
    }

    /// The same, but requests may be made at once where the relay is known from before (0-RTT).
    /// The second value is there if the handshake is still under way.
    pub(crate) async fn connect_early(endpoint: &Endpoint) -> Result<(Self, Option<Early>), ConnectError> {
        let address = endpoint.addresses().await?[0];
        let begun = Dialer::new(endpoint, CAPTURE_KEEP_ALIVE)?.begin(address, 0)?;
        let Ok((connection, early)) = begun.connecting.into_0rtt() else {
            drop(begun.needed);
            return Ok((Self::connect(endpoint, CAPTURE_KEEP_ALIVE).await?, None));
        };
        begun.needed.for_good();
        let over = Self::over(endpoint, begun.socket, connection, begun.gauge);
        Ok((over.await?, Some(early)))
    }

    async fn over(
        endpoint: &Endpoint,
        socket: quinn::Endpoint,
        connection: quinn::Connection,
        gauge: Arc<Gauge>,
    ) -> Result<Self, ConnectError> {
        let quic = waystation_h3::Connection::new(connection.clone());
        let priority = tokio::sync::Mutex::new(quic.priority());
        let (mut driver, requests) = h3::client::builder()
            .max_field_section_size(waystation_h3::MAX_FRAME)
            .send_grease(false)
            .build(quic)
            .await
            .map_err(|_| ConnectError::Unreachable)?;
        let (asking, asked) = (Arc::clone(&gauge), connection.clone());
        let driver = tokio::spawn(async move {
            let mut driving = std::pin::pin!(driver.wait_idle());
            loop {
                tokio::select! {
                    _ = &mut driving => return,
                    () = asking.end() => congestion::ask_for_acknowledgement(&asked, RECEIVE_WINDOW),
                }
            }
        });
        let authority = endpoint.authority();
        Ok(Self { requests, priority, connection, gauge, authority, _driver: AbortOnDropHandle::new(driver), socket })
    }

    /// Waits until the connection is gone.
    pub(crate) async fn closed(&self) {
        let _ = self.connection.closed().await;
    }

    /// Bytes that this end put on the wire, with the headers of IP and UDP.
    pub(crate) fn wire_bytes(&self) -> u64 {
        let sent = self.connection.stats().udp_tx;
        let head = if self.connection.remote_address().is_ipv4() { 20 + 8 } else { 40 + 8 };
        sent.bytes + head * sent.datagrams
    }

    pub(crate) fn gauge(&self) -> &Gauge {
        &self.gauge
    }

    /// Sends something that asks for an acknowledgement now, though the window is full; if `write`, bytes
    /// with it: see [`Gauge::nudge`].
    pub(crate) fn nudge(&self, write: bool) {
        self.gauge.nudge(write);
        congestion::ask_for_acknowledgement(&self.connection, RECEIVE_WINDOW);
    }

    /// Goes on from another port, and so perhaps another network. The connection lives on.
    pub(crate) fn rebind(&self) {
        let bind = || {
            let socket = std::net::UdpSocket::bind((self.socket.local_addr()?.ip(), 0))?;
            let socket = quinn::TokioRuntime.wrap_udp_socket(socket)?;
            self.socket.rebind_abstract(Repeating::moved(socket, Arc::clone(&self.gauge)))
        };
        // A device without a network keeps the old one.
        let _ = bind();
    }

    /// Begins a request. The higher `priority` goes first, also with what was lost.
    pub(crate) async fn begin(&self, request: Request<()>, priority: i32) -> Result<(Sending, Receiving), Broken> {
        let (send, receive) = self.start(request, priority).await?;
        Ok((Sending { half: send, gauge: Arc::clone(&self.gauge), finished: false }, Receiving(receive)))
    }

    /// One request without a body, and its whole answer.
    pub(crate) async fn ask(&self, request: Request<()>) -> Result<Reply, Broken> {
        let (mut sending, receiving) = self.begin(request, FIRST).await?;
        sending.finish().await?;
        receiving.reply().await
    }

    /// One request without a body; the answer is read as it comes.
    pub(crate) async fn open(&self, request: Request<()>) -> Result<(Response<()>, H3Body), Broken> {
        let (mut send, mut half) = self.start(request, FIRST).await?;
        send.finish().await.map_err(|_| Broken)?;
        let answer = half.recv_response().await.map_err(|_| Broken)?;
        Ok((answer, H3Body { half }))
    }

    async fn start(&self, request: Request<()>, priority: i32) -> Result<(SendHalf, ReceiveHalf), Broken> {
        let (mut parts, ()) = request.into_parts();
        let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
        parts.uri = format!("https://{}{path}", self.authority).parse().map_err(|_| Broken)?;
        let head: usize = parts.headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
        let mut requests = self.requests.clone();
        // Held until the stream is open: the next one has another.
        let next = self.priority.lock().await;
        next.set(priority);
        let stream = requests.send_request(Request::from_parts(parts, ())).await.map_err(|_| Broken)?;
        self.gauge.written(head);
        Ok(stream.split())
    }
}

impl Sending {
    /// Hands over the next bytes. How many may be is the gauge's concern.
    pub(crate) async fn send(&mut self, piece: Bytes) -> Result<(), Broken> {
        self.gauge.written(piece.len());
        self.half.send_data(piece).await.map_err(|_| Broken)
    }

    /// That was all.
    pub(crate) async fn finish(&mut self) -> Result<(), Broken> {
        self.half.finish().await.map_err(|_| Broken)?;
        self.finished = true;
        Ok(())
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        if !self.finished {
            self.half.stop_stream(Code::H3_REQUEST_CANCELLED);
        }
    }
}

impl Receiving {
    /// The answer's body as it comes; an answer other than 200 is none.
    pub(crate) async fn body(self) -> Result<H3Body, Broken> {
        let mut half = self.0;
        let answer = half.recv_response().await.map_err(|_| Broken)?;
        if answer.status() == http::StatusCode::OK { Ok(H3Body { half }) } else { Err(Broken) }
    }

    /// The whole answer.
    pub(crate) async fn reply(self) -> Result<Reply, Broken> {
        let mut half = self.0;
        let answer = half.recv_response().await.map_err(|_| Broken)?;
        let mut out = BytesMut::new();
        while let Some(data) = half.recv_data().await.map_err(|_| Broken)? {
            gather(&mut out, data)?;
        }
        let (head, ()) = answer.into_parts();
        Ok(Reply { status: head.status, headers: head.headers, body: out.freeze() })
    }
}

impl H3Body {
    /// The next bytes; none at the end.
    pub(crate) async fn data(&mut self) -> Result<Option<Bytes>, Broken> {
        let Some(mut data) = self.half.recv_data().await.map_err(|_| Broken)? else { return Ok(None) };
        let length = data.remaining();
        Ok(Some(data.copy_to_bytes(length)))
    }
}

/// Begins handshakes.
struct Dialer<'a> {
    endpoint: &'a Endpoint,
    keep_alive: Duration,
    tls: Arc<QuicClientConfig>,
    tries: Arc<Tries>,
    /// No large packet is sent only to find out whether it passes.
    thin: bool,
}

/// A handshake that was begun. Dropped before it is complete, it says no more than a late farewell.
struct Begun {
    connecting: quinn::Connecting,
    socket: quinn::Endpoint,
    gauge: Arc<Gauge>,
    needed: Needed,
}

impl<'a> Dialer<'a> {
    fn new(endpoint: &'a Endpoint, keep_alive: Duration) -> Result<Self, ConnectError> {
        if !endpoint.tls() {
            return Err(ConnectError::NeedsTls);
        }
        let tls = QuicClientConfig::try_from(endpoint.trust().quic()).map_err(|_| ConnectError::Certificate)?;
        Ok(Self { endpoint, keep_alive, tls: Arc::new(tls), tries: Arc::default(), thin: false })
    }

    fn begin(&self, address: SocketAddr, which: usize) -> Result<Begun, ConnectError> {
        let gauge = Arc::new(Gauge::new());
        let any: SocketAddr =
            if address.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
        let (socket, needed) =
            bind(any, &gauge, Arc::clone(&self.tries), which).map_err(|_| ConnectError::Unreachable)?;
        let mut config = quinn::ClientConfig::new(self.tls.clone());
        let mut transport = transport(&gauge, self.keep_alive);
        if self.thin {
            transport.mtu_discovery_config(None);
        }
        config.transport_config(Arc::new(transport));
        let connecting = socket.connect_with(config, address, self.endpoint.host()).map_err(|_| ConnectError::Url)?;
        Ok(Begun { connecting, socket, gauge, needed })
    }

    async fn attempt(
        &self,
        address: SocketAddr,
        which: usize,
    ) -> Result<(quinn::Endpoint, quinn::Connection, Arc<Gauge>), ConnectError> {
        let Begun { connecting, socket, gauge, needed } = self.begin(address, which)?;
        match connecting.await {
            Ok(connection) => {
                needed.for_good();
                Ok((socket, connection, gauge))
            }
            Err(quinn::ConnectionError::TransportError(error)) if is_certificate(error.code) => {
                Err(ConnectError::Untrusted)
            }
            Err(_) => Err(ConnectError::Unreachable),
        }
    }
}

/// The socket of one of several tries. The packets of its handshake are sent twice.
fn bind(any: SocketAddr, gauge: &Arc<Gauge>, tries: Arc<Tries>, which: usize) -> io::Result<(quinn::Endpoint, Needed)> {
    let udp = Some(socket2::Protocol::UDP);
    let socket = socket2::Socket::new(socket2::Domain::for_address(any), socket2::Type::DGRAM, udp)?;
    if any.is_ipv6() {
        // Where it is refused, addresses of IPv4 are named as such.
        let _ = socket.set_only_v6(false);
    }
    socket.bind(&any.into())?;
    let runtime = Arc::new(quinn::TokioRuntime);
    let (socket, needed) = Repeating::new(runtime.wrap_udp_socket(socket.into())?, Arc::clone(gauge), tries, which);
    let config = quinn::EndpointConfig::default();
    Ok((quinn::Endpoint::new_with_abstract_socket(config, None, socket, runtime)?, needed))
}

/// TLS alerts about certificates are 42 to 48 (RFC 8446 §6.2), in QUIC at 0x100 (RFC 9001 §4.8).
fn is_certificate(code: quinn::TransportErrorCode) -> bool {
    (0x12a..=0x130).contains(&u64::from(code))
}

fn transport(gauge: &Arc<Gauge>, keep_alive: Duration) -> quinn::TransportConfig {
    let mut transport = quinn::TransportConfig::default();
    let mut sizes = quinn::MtuDiscoveryConfig::default();
    sizes.minimum_change(MTU_STEP);
    transport
        .mtu_discovery_config(Some(sizes))
        .max_idle_timeout(quinn::IdleTimeout::try_from(IDLE_LIMIT.min(IDLE_FACTOR * keep_alive)).ok())
        .keep_alive_interval(Some(keep_alive))
        .initial_rtt(INITIAL_RTT)
        .initial_mtu(INITIAL_MTU)
        .congestion_controller_factory(Arc::new(congestion::Factory::metered(Arc::clone(gauge))))
        .send_window(SEND_WINDOW)
        .stream_receive_window(STREAM_WINDOW.into())
        .receive_window(RECEIVE_WINDOW.into());
    transport
}
