//! Raw clients of every version of HTTP, and the sockets under a WebSocket. Bodies go out piece
//! by piece and can be left in the middle; answers come in as they come.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use futures_util::Stream;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt as _, Empty, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls_pki_types::UnixTime;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_util::task::AbortOnDropHandle;
use waystation::clock::Clock;

use crate::http::Answer;
use crate::world::{PATIENCE, World};

/// A version of HTTP, over TLS or QUIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Http {
    /// HTTP/1.1.
    H1,
    /// HTTP/2.
    H2,
    /// HTTP/3.
    H3,
}

/// What a WebSocket was opened with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ws {
    /// The upgrade of HTTP/1.1.
    H1,
    /// Extended CONNECT of HTTP/2.
    H2,
}

impl Http {
    /// Every one.
    pub const ALL: [Self; 3] = [Self::H1, Self::H2, Self::H3];
}

impl Ws {
    /// Every one.
    pub const ALL: [Self; 2] = [Self::H1, Self::H2];
}

/// What must come, comes within [`PATIENCE`].
pub async fn soon<F: Future>(what: &str, future: F) -> F::Output {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("{what} never came"))
}

/// The relay's time: its certificate is made by it.
struct RelayTime(Clock);

impl std::fmt::Debug for RelayTime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RelayTime")
    }
}

impl rustls::time_provider::TimeProvider for RelayTime {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs(self.0.unix_s().unsigned_abs())))
    }
}

/// A TLS configuration that trusts the relay's certificate.
pub fn tls_config(world: &World, alpn: &[u8]) -> rustls::ClientConfig {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(world.certificate()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_details(provider, Arc::new(RelayTime(world.clock.clone())))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![alpn.to_vec()];
    config
}

/// A TLS connection to the public listener.
pub async fn tls(world: &World, alpn: &[u8]) -> io::Result<TlsStream<TcpStream>> {
    let tcp = TcpStream::connect(world.public()).await?;
    tcp.set_nodelay(true)?;
    let name = "localhost".try_into().unwrap();
    tokio_rustls::TlsConnector::from(Arc::new(tls_config(world, alpn))).connect(name, tcp).await
}

/// A QUIC connection to the public listener.
pub async fn quic(world: &World) -> Result<quinn::Connection, quinn::ConnectionError> {
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(tls_config(world, b"h3")).unwrap();
    let mut endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    endpoint.set_default_client_config(quinn::ClientConfig::new(Arc::new(crypto)));
    endpoint.connect(world.public(), "localhost").unwrap().await
}

/// The same, for a test that is not about places: a relay that is slow to see earlier connections
/// end may refuse one, and is asked again.
pub async fn admitted(world: &World) -> quinn::Connection {
    loop {
        match quic(world).await {
            Ok(connection) => return connection,
            Err(quinn::ConnectionError::ConnectionClosed(_)) => tokio::time::sleep(Duration::from_millis(20)).await,
            Err(error) => panic!("{error}"),
        }
    }
}

type Pieces = StreamBody<Pin<Box<dyn Stream<Item = io::Result<Frame<Bytes>>> + Send>>>;
type H3Send = h3::client::RequestStream<waystation_h3::SendStream, Bytes>;
type H3Recv = h3::client::RequestStream<waystation_h3::RecvStream, Bytes>;

/// The pieces of a request's body; without an end sent, the body breaks off.
fn pieces() -> (mpsc::Sender<Option<Bytes>>, Pieces) {
    let (tx, rx) = mpsc::channel::<Option<Bytes>>(1);
    let stream = futures_util::stream::unfold(Some(rx), |rx| async move {
        let mut rx = rx?;
        match rx.recv().await {
            Some(Some(bytes)) => Some((Ok(Frame::data(bytes)), Some(rx))),
            Some(None) => None,
            None => Some((Err(io::ErrorKind::BrokenPipe.into()), None)),
        }
    });
    (tx, StreamBody::new(Box::pin(stream)))
}

/// What keeps a connection open; dropping it ends the connection.
enum Line {
    Tcp {
        _driver: AbortOnDropHandle<()>,
    },
    Quic {
        connection: quinn::Connection,
        _driver: AbortOnDropHandle<()>,
        _requests: Requests,
    },
    /// One of several requests.
    Shared {
        _line: Arc<Line>,
    },
}

/// A connection for several requests at once.
pub struct Joint {
    line: Arc<Line>,
    requests: JointRequests,
}

enum JointRequests {
    H2(hyper::client::conn::http2::SendRequest<Pieces>),
    H3(Requests),
}

impl Joint {
    /// Connects, by HTTP/2 or HTTP/3.
    pub async fn open(world: &World, http: Http) -> Self {
        soon("a connection", async {
            match http {
                Http::H1 => panic!("HTTP/1.1 has one request at a time"),
                Http::H2 => {
                    let io = TokioIo::new(tls(world, b"h2").await.unwrap());
                    let (send, driver) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
                    let line = Arc::new(Line::Tcp { _driver: driven(driver) });
                    Self { line, requests: JointRequests::H2(send) }
                }
                Http::H3 => {
                    let (line, requests) = h3_line(admitted(world).await).await;
                    Self { line: Arc::new(line), requests: JointRequests::H3(requests) }
                }
            }
        })
        .await
    }

    /// Begins a request on it.
    pub async fn ask(&mut self, request: Request<()>) -> Exchange {
        let request = absolute(request);
        let line = Line::Shared { _line: Arc::clone(&self.line) };
        match &mut self.requests {
            JointRequests::H2(send) => {
                let (tx, body) = pieces();
                let answer = send.send_request(request.map(|()| body));
                let answer = tokio::spawn(async move { hyper_answer(answer.await) });
                Exchange { out: Some(Out::Hyper(tx)), answer, interim: mpsc::unbounded_channel().1, line }
            }
            JointRequests::H3(requests) => h3_exchange(requests, request, line).await,
        }
    }
}

/// Its target as HTTP/2 and HTTP/3 have it.
fn absolute(mut request: Request<()>) -> Request<()> {
    let path = request.uri().path_and_query().unwrap().clone();
    *request.uri_mut() = format!("https://localhost{path}").parse().unwrap();
    request.headers_mut().remove("host");
    request
}

async fn h3_line(connection: quinn::Connection) -> (Line, Requests) {
    let (mut driver, requests) = h3::client::new(waystation_h3::Connection::new(connection.clone())).await.unwrap();
    let driver = AbortOnDropHandle::new(tokio::spawn(async move {
        let _ = driver.wait_idle().await;
    }));
    (Line::Quic { connection, _driver: driver, _requests: requests.clone() }, requests)
}

async fn h3_exchange(requests: &mut Requests, request: Request<()>, line: Line) -> Exchange {
    let (send, mut recv) = requests.send_request(request).await.unwrap().split();
    let (interims, interim) = mpsc::unbounded_channel();
    let answer = tokio::spawn(async move {
        let parts = loop {
            let (parts, ()) = recv.recv_response().await.ok()?.into_parts();
            if !parts.status.is_informational() {
                break parts;
            }
            assert_eq!(parts.status, 104);
            let _ = interims.send(parts.headers);
        };
        let inflow = Inflow::H3(Box::new(recv));
        Some(Streaming { status: parts.status, headers: parts.headers, inflow, kept: None })
    });
    Exchange { out: Some(Out::H3(Box::new(send))), answer, interim, line }
}

/// h3 closes a connection whose last one of these is gone.
type Requests = h3::client::SendRequest<waystation_h3::Opener, Bytes>;

impl Drop for Line {
    fn drop(&mut self) {
        if let Self::Quic { connection, .. } = self {
            connection.close(0x100u32.into(), b"");
        }
    }
}

enum Out {
    Hyper(mpsc::Sender<Option<Bytes>>),
    H3(Box<H3Send>),
}

/// One request on a connection of its own.
pub struct Exchange {
    out: Option<Out>,
    answer: JoinHandle<Option<Streaming>>,
    interim: mpsc::UnboundedReceiver<HeaderMap>,
    line: Line,
}

/// An answer whose body comes as it comes.
pub struct Streaming {
    /// Status.
    pub status: StatusCode,
    /// Headers.
    pub headers: HeaderMap,
    inflow: Inflow,
    kept: Option<(Line, Option<Out>)>,
}

enum Inflow {
    Hyper(Incoming),
    H3(Box<H3Recv>),
}

impl Exchange {
    /// Connects and sends the head.
    pub async fn open(world: &World, http: Http, request: Request<()>) -> Self {
        soon("a connection", Self::connect(world, http, request)).await
    }

    async fn connect(world: &World, http: Http, mut request: Request<()>) -> Self {
        if http != Http::H1 {
            request = absolute(request);
        }
        match http {
            Http::H1 => {
                let io = TokioIo::new(tls(world, b"http/1.1").await.unwrap());
                let (mut send, driver) = hyper::client::conn::http1::handshake(io).await.unwrap();
                let line = Line::Tcp { _driver: driven(driver) };
                let (tx, body) = pieces();
                let answer = tokio::spawn(async move { hyper_answer(send.send_request(request.map(|()| body)).await) });
                Self { out: Some(Out::Hyper(tx)), answer, interim: mpsc::unbounded_channel().1, line }
            }
            Http::H2 => {
                let io = TokioIo::new(tls(world, b"h2").await.unwrap());
                let (mut send, driver) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
                let line = Line::Tcp { _driver: driven(driver) };
                let (tx, body) = pieces();
                let answer = tokio::spawn(async move { hyper_answer(send.send_request(request.map(|()| body)).await) });
                Self { out: Some(Out::Hyper(tx)), answer, interim: mpsc::unbounded_channel().1, line }
            }
            Http::H3 => {
                let (line, mut requests) = h3_line(admitted(world).await).await;
                h3_exchange(&mut requests, request, line).await
            }
        }
    }

    /// Sends bytes of the body; a peer that wants no more is no failure.
    pub async fn send(&mut self, bytes: impl Into<Bytes>) {
        let bytes = bytes.into();
        let sending = async {
            match &mut self.out {
                Some(Out::Hyper(tx)) => drop(tx.send(Some(bytes)).await),
                Some(Out::H3(send)) => drop(send.send_data(bytes).await),
                None => {}
            }
        };
        soon("room for a piece", sending).await;
    }

    /// Ends the body in order.
    pub async fn end(&mut self) {
        match self.out.take() {
            Some(Out::Hyper(tx)) => drop(tx.send(None).await),
            Some(Out::H3(mut send)) => drop(send.finish().await),
            None => {}
        }
    }

    /// The head of the next `104`; `None` where none comes before the answer.
    pub async fn interim(&mut self) -> Option<HeaderMap> {
        soon("an interim answer", self.interim.recv()).await
    }

    /// The answer's head, as soon as it is here.
    pub async fn head(mut self) -> Streaming {
        let mut streaming = soon("an answer", self.answer).await.unwrap().expect("an answer");
        // A body that is not ended stays open while its answer is read.
        streaming.kept = Some((self.line, self.out.take()));
        streaming
    }

    /// The whole answer.
    pub async fn answer(self) -> Answer {
        self.head().await.whole().await
    }

    /// The connection is gone, without a word.
    pub fn cut(self) {
        drop(self.line);
        self.answer.abort();
    }
}

impl Streaming {
    /// The next bytes; `None` at the end, an error where the answer was cut off.
    pub async fn next(&mut self) -> Option<Result<Bytes, ()>> {
        match &mut self.inflow {
            Inflow::Hyper(incoming) => loop {
                match incoming.frame().await? {
                    Err(_) => return Some(Err(())),
                    Ok(frame) => {
                        if let Ok(data) = frame.into_data() {
                            return Some(Ok(data));
                        }
                    }
                }
            },
            Inflow::H3(recv) => match recv.recv_data().await {
                Err(_) => Some(Err(())),
                Ok(None) => None,
                Ok(Some(mut data)) => Some(Ok(data.copy_to_bytes(data.remaining()))),
            },
        }
    }

    /// Sends bytes of the request's body, which goes on while its answer is read; a peer that wants
    /// no more is no failure.
    pub async fn send(&mut self, bytes: impl Into<Bytes>) {
        let bytes = bytes.into();
        let sending = async {
            match &mut self.kept {
                Some((_, Some(Out::Hyper(tx)))) => drop(tx.send(Some(bytes)).await),
                Some((_, Some(Out::H3(send)))) => drop(send.send_data(bytes).await),
                _ => {}
            }
        };
        soon("room for a piece", sending).await;
    }

    /// Ends the request's body in order.
    pub async fn end(&mut self) {
        match self.kept.as_mut().and_then(|(_, out)| out.take()) {
            Some(Out::Hyper(tx)) => drop(tx.send(None).await),
            Some(Out::H3(mut send)) => drop(send.finish().await),
            None => {}
        }
    }

    /// Everything.
    pub async fn whole(mut self) -> Answer {
        let mut body = Vec::new();
        while let Some(Ok(bytes)) = soon("the answer's end", self.next()).await {
            body.extend_from_slice(&bytes);
        }
        Answer { status: self.status, headers: std::mem::take(&mut self.headers), body: body.into() }
    }
}

fn driven<E>(driver: impl Future<Output = Result<(), E>> + Send + 'static) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(tokio::spawn(async move {
        let _ = driver.await;
    }))
}

fn hyper_answer(answer: hyper::Result<http::Response<Incoming>>) -> Option<Streaming> {
    let (parts, body) = answer.ok()?.into_parts();
    Some(Streaming { status: parts.status, headers: parts.headers, inflow: Inflow::Hyper(body), kept: None })
}

/// One request with a whole body, and its whole answer.
pub async fn ask(world: &World, http: Http, request: Request<()>, body: impl Into<Bytes>) -> Answer {
    let mut exchange = Exchange::open(world, http, request).await;
    let body = body.into();
    if !body.is_empty() {
        exchange.send(body).await;
    }
    exchange.end().await;
    exchange.answer().await
}

/// Bytes both ways.
pub trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// A WebSocket on either version of HTTP.
pub struct Socket {
    /// The socket.
    pub stream: WebSocketStream<Box<dyn Io>>,
    _driver: Option<AbortOnDropHandle<()>>,
}

/// Opens a WebSocket.
pub async fn websocket(world: &World, ws: Ws, path: &str, subprotocol: &str) -> Socket {
    match ws {
        Ws::H1 => {
            let mut request = format!("wss://localhost{path}").into_client_request().unwrap();
            request.headers_mut().insert("sec-websocket-protocol", subprotocol.parse().unwrap());
            let io: Box<dyn Io> = Box::new(tls(world, b"http/1.1").await.unwrap());
            let (stream, answer) = soon("an upgrade", tokio_tungstenite::client_async(request, io)).await.unwrap();
            assert_eq!(answer.status(), 101);
            Socket { stream, _driver: None }
        }
        Ws::H2 => soon("an upgrade", extended_connect(world, path, subprotocol)).await,
    }
}

async fn extended_connect(world: &World, path: &str, subprotocol: &str) -> Socket {
    let io = TokioIo::new(tls(world, b"h2").await.unwrap());
    let (mut send, driver) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
    let driver = driven(driver);
    loop {
        send.ready().await.unwrap();
        let request = Request::connect(format!("https://localhost{path}"))
            .extension(hyper::ext::Protocol::from_static("websocket"))
            .header("sec-websocket-version", "13")
            .header("sec-websocket-protocol", subprotocol)
            .body(Empty::<Bytes>::new())
            .unwrap();
        match send.send_request(request).await {
            Ok(answer) => {
                assert_eq!(answer.status(), 200);
                let io: Box<dyn Io> = Box::new(TokioIo::new(hyper::upgrade::on(answer).await.unwrap()));
                let stream = WebSocketStream::from_raw_socket(io, Role::Client, None).await;
                return Socket { stream, _driver: Some(driver) };
            }
            // The relay's SETTINGS, which allow extended CONNECT, are not here yet.
            Err(_) => tokio::task::yield_now().await,
        }
    }
}
