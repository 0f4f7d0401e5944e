//! One HTTP/3 connection to a relay: requests in parallel, each with its own stream.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use h3::client::{RequestStream, SendRequest};
use h3::error::Code;
use h3_quinn::OpenStreams;
use http::{Request, Response};
use quinn::crypto::rustls::QuicClientConfig;

use crate::congestion;
use crate::connect::{ConnectError, Endpoint};
use crate::http::{Broken, Reply, Upload, gather};

const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// A connection on which nothing comes back for this long is dead.
const IDLE_LIMIT: Duration = Duration::from_secs(6);
const KEEP_ALIVE: Duration = Duration::from_secs(2);
/// Bytes that wait in QUIC's own buffers: what lies there can't be overtaken.
const SEND_WINDOW: u64 = 256 * 1024;
/// Bytes of one answer that may be under way. A contact's stream is long; see [`RECEIVE_WINDOW`].
const STREAM_WINDOW: u32 = 1024 * 1024;
/// Bytes of all answers that may be under way, and so memory this connection may cost.
const RECEIVE_WINDOW: u32 = 4 * 1024 * 1024;

type SendHalf = RequestStream<h3_quinn::SendStream<Bytes>, Bytes>;
type ReceiveHalf = RequestStream<h3_quinn::RecvStream, Bytes>;

/// An HTTP/3 connection. Closed when dropped.
pub(crate) struct H3 {
    requests: SendRequest<OpenStreams, Bytes>,
    connection: quinn::Connection,
    authority: String,
    // Held so that they end with the connection.
    _driver: tokio_util::task::AbortOnDropHandle<()>,
    _endpoint: quinn::Endpoint,
}

/// An answer read as it comes.
pub(crate) struct H3Body {
    half: ReceiveHalf,
}

impl H3 {
    /// Connects and completes the handshake.
    pub(crate) async fn connect(endpoint: &Endpoint) -> Result<Self, ConnectError> {
        if !endpoint.tls() {
            return Err(ConnectError::NeedsTls);
        }
        tokio::time::timeout(CONNECT_LIMIT, Self::dial(endpoint)).await.map_err(|_| ConnectError::Unreachable)?
    }

    async fn dial(endpoint: &Endpoint) -> Result<Self, ConnectError> {
        let mut last = ConnectError::Unreachable;
        for address in endpoint.addresses().await? {
            match quic(endpoint, address).await {
                Ok((socket, connection)) => return Self::over(endpoint, socket, connection).await,
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    async fn over(e: &Endpoint, socket: quinn::Endpoint, connection: quinn::Connection) -> Result<Self, ConnectError> {
        let (mut driver, requests) = h3::client::builder()
            .max_field_section_size(64 * 1024)
            .send_grease(false)
            .build(h3_quinn::Connection::new(connection.clone()))
            .await
            .map_err(|_| ConnectError::Unreachable)?;
        let driver = tokio::spawn(async move {
            let _ = driver.wait_idle().await;
        });
        Ok(Self {
            requests,
            connection,
            authority: e.authority(),
            _driver: tokio_util::task::AbortOnDropHandle::new(driver),
            _endpoint: socket,
        })
    }

    /// Waits until the connection is gone.
    pub(crate) async fn closed(&self) {
        let _ = self.connection.closed().await;
    }

    /// One request whose body tells how it goes, and its whole answer. An early answer ends the
    /// body with a reset.
    pub(crate) async fn exchange(&self, request: Request<()>, body: Upload) -> Result<Reply, Broken> {
        let (send, mut half) = self.start(request).await?;
        let mut send = ResetUnlessFinished { half: send, finished: false };
        let mut body = body;
        let sending = async {
            while let Some(piece) = body.next_piece() {
                send.half.send_data(piece).await.map_err(|_| Broken)?;
            }
            send.half.finish().await.map_err(|_| Broken)?;
            send.finished = true;
            Ok::<(), Broken>(())
        };
        let receiving = async {
            let answer = half.recv_response().await.map_err(|_| Broken)?;
            let mut out = BytesMut::new();
            while let Some(data) = half.recv_data().await.map_err(|_| Broken)? {
                gather(&mut out, data)?;
            }
            let (head, ()) = answer.into_parts();
            Ok(Reply { status: head.status, headers: head.headers, body: out.freeze() })
        };
        let (mut sending, mut receiving) = (pin!(sending), pin!(receiving));
        let mut ended = false;
        loop {
            tokio::select! {
                reply = &mut receiving => return reply,
                // A relay that refuses stops the body and answers: the answer is what counts.
                _ = &mut sending, if !ended => ended = true,
            }
        }
    }

    /// One request without a body; the answer is read as it comes.
    pub(crate) async fn open(&self, request: Request<()>) -> Result<(Response<()>, H3Body), Broken> {
        let (mut send, mut half) = self.start(request).await?;
        send.finish().await.map_err(|_| Broken)?;
        let answer = half.recv_response().await.map_err(|_| Broken)?;
        Ok((answer, H3Body { half }))
    }

    async fn start(&self, request: Request<()>) -> Result<(SendHalf, ReceiveHalf), Broken> {
        let (mut parts, ()) = request.into_parts();
        let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
        parts.uri = format!("https://{}{path}", self.authority).parse().map_err(|_| Broken)?;
        let mut requests = self.requests.clone();
        let stream = requests.send_request(Request::from_parts(parts, ())).await.map_err(|_| Broken)?;
        Ok(stream.split())
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

/// quinn finishes a stream that is dropped, which would make a body that broke off look whole.
struct ResetUnlessFinished {
    half: SendHalf,
    finished: bool,
}

impl Drop for ResetUnlessFinished {
    fn drop(&mut self) {
        if !self.finished {
            self.half.stop_stream(Code::H3_REQUEST_CANCELLED);
        }
    }
}

async fn quic(endpoint: &Endpoint, address: SocketAddr) -> Result<(quinn::Endpoint, quinn::Connection), ConnectError> {
    let any: SocketAddr =
        if address.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
    let mut socket = quinn::Endpoint::client(any).map_err(|_| ConnectError::Unreachable)?;
    socket.set_default_client_config(config(endpoint)?);
    let connecting = socket.connect(address, endpoint.host()).map_err(|_| ConnectError::Url)?;
    match connecting.await {
        Ok(connection) => Ok((socket, connection)),
        Err(quinn::ConnectionError::TransportError(error)) if is_certificate(error.code) => {
            Err(ConnectError::Untrusted)
        }
        Err(_) => Err(ConnectError::Unreachable),
    }
}

/// TLS alerts about certificates are 42 to 48 (RFC 8446 §6.2), in QUIC at 0x100 (RFC 9001 §4.8).
fn is_certificate(code: quinn::TransportErrorCode) -> bool {
    (0x12a..=0x130).contains(&u64::from(code))
}

fn config(endpoint: &Endpoint) -> Result<quinn::ClientConfig, ConnectError> {
    let tls = QuicClientConfig::try_from(endpoint.trust().tls(&[b"h3"])).map_err(|_| ConnectError::Certificate)?;
    let mut transport = quinn::TransportConfig::default();
    transport
        .max_idle_timeout(quinn::IdleTimeout::try_from(IDLE_LIMIT).ok())
        .keep_alive_interval(Some(KEEP_ALIVE))
        .congestion_controller_factory(Arc::new(congestion::Factory))
        .send_window(SEND_WINDOW)
        .stream_receive_window(STREAM_WINDOW.into())
        .receive_window(RECEIVE_WINDOW.into());
    let mut config = quinn::ClientConfig::new(Arc::new(tls));
    config.transport_config(Arc::new(transport));
    Ok(config)
}
