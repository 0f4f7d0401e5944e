//! HTTP/1.1 and HTTP/2: one connection each, over TLS; and a plain one to the core.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response, header};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls_pki_types::ServerName;
use tokio::io::BufReader;
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::client::TlsStream;
use waystation_client::connect::Trust;

use super::{Sent, Verdict};
use crate::Failure;
use crate::chunks::Chunk;
use crate::rig::Rig;

/// Bytes handed to the connection at once.
const PIECE_BYTES: usize = 64 * 1024;
/// Buffer of an HTTP/1.1 connection: this program shall not be what is slow.
const BUFFER_BYTES: usize = 256 * 1024;

/// Bytes read from the kernel at once.
const READ_BYTES: usize = 64 * 1024;
/// The same of one who reads late.
const LATE_BYTES: usize = 4 * 1024;

const BROKEN: Failure = Failure::Wire("the connection broke");

/// A connection that takes requests.
pub struct Connection {
    sender: Sender,
    authority: String,
}

enum Sender {
    H1(http1::SendRequest<Pieces>),
    H2(http2::SendRequest<Pieces>),
}

impl Connection {
    pub(super) async fn h1(rig: &Rig) -> Result<Self, Failure> {
        let io = TokioIo::new(tls(rig, b"http/1.1").await?);
        let builder = http1::Builder::new().max_buf_size(BUFFER_BYTES).to_owned();
        let (sender, connection) = builder.handshake(io).await.map_err(|_| BROKEN)?;
        tokio::spawn(connection);
        Ok(Self { sender: Sender::H1(sender), authority: rig.public.to_string() })
    }

    pub(super) async fn h2(rig: &Rig) -> Result<Self, Failure> {
        let io = TokioIo::new(tls(rig, b"h2").await?);
        let (sender, connection) = http2::Builder::new(TokioExecutor::new()).handshake(io).await.map_err(|_| BROKEN)?;
        tokio::spawn(connection);
        Ok(Self { sender: Sender::H2(sender), authority: rig.public.to_string() })
    }

    pub(super) async fn put(&mut self, chunk: &Chunk, token: &str) -> Result<Verdict, Failure> {
        let sent = Sent::default();
        let body = Pieces { left: chunk.bytes.clone(), sent: sent.clone() };
        let path = super::path(chunk);
        let request = match &self.sender {
            Sender::H1(_) => super::request(chunk, token).uri(path).header(header::HOST, &self.authority),
            Sender::H2(_) => super::request(chunk, token).uri(format!("https://{}{path}", self.authority)),
        };
        let answer = self.send(request.body(body).map_err(|_| BROKEN)?).await.map_err(|_| BROKEN)?;
        let status = answer.status();
        let body = answer.into_body().collect().await.map_err(|_| BROKEN)?.to_bytes();
        Ok(super::verdict(sent.at(), status, &body))
    }

    async fn send(&mut self, request: Request<Pieces>) -> hyper::Result<Response<Incoming>> {
        match &mut self.sender {
            Sender::H1(sender) => {
                sender.ready().await?;
                sender.send_request(request).await
            }
            Sender::H2(sender) => {
                sender.ready().await?;
                sender.send_request(request).await
            }
        }
    }
}

/// One `GET` without TLS, with a bearer token.
///
/// # Errors
/// [`Failure`].
pub async fn plain_get(url: &str, path: &str, token: &str) -> Result<Bytes, Failure> {
    let authority = url.strip_prefix("http://").ok_or(Failure::Wire("not http"))?;
    let stream = TcpStream::connect(authority).await.map_err(Failure::io("the core"))?;
    get_over(stream, authority, path, token).await
}

/// The same over a connection that is there.
///
/// # Errors
/// [`Failure`].
pub async fn get_over(stream: TcpStream, authority: &str, path: &str, token: &str) -> Result<Bytes, Failure> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|_| BROKEN)?;
    tokio::spawn(connection);
    let request = Request::get(path).header(header::HOST, authority);
    let request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
    let request = request.body(Empty::<Bytes>::new()).map_err(|_| BROKEN)?;
    let answer = sender.send_request(request).await.map_err(|_| BROKEN)?;
    if !answer.status().is_success() {
        return Err(Failure::Wire("a program refused to answer"));
    }
    Ok(answer.into_body().collect().await.map_err(|_| BROKEN)?.to_bytes())
}

/// TLS over TCP. Read in large steps: TLS by itself asks the kernel several times for each record.
pub type Tls = TlsStream<BufReader<TcpStream>>;

/// Connects over TCP and TLS.
pub(super) async fn tls(rig: &Rig, protocol: &[u8]) -> Result<Tls, Failure> {
    tls_reading(rig, protocol, Reading::Ahead).await
}

/// How much of what comes may wait to be read.
#[derive(Debug, Clone, Copy)]
pub enum Reading {
    /// As much as is quick.
    Ahead,
    /// Little, so that reading slowly is a slow link and no long queue.
    Late,
}

pub(super) async fn tls_reading(rig: &Rig, protocol: &[u8], reading: Reading) -> Result<Tls, Failure> {
    let (ahead, kernel) = match reading {
        Reading::Ahead => (READ_BYTES, None),
        Reading::Late => (LATE_BYTES, Some(LATE_BYTES as u32)),
    };
    let socket = if rig.public.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
    let socket = socket.map_err(Failure::io("a socket"))?;
    if let Some(bytes) = kernel {
        socket.set_recv_buffer_size(bytes).map_err(Failure::io("a socket"))?;
    }
    let stream = socket.connect(rig.public).await.map_err(Failure::io("the relay"))?;
    over(stream, ahead, &rig.trust, &[protocol]).await
}

/// Connects over TCP and TLS to what is no relay.
///
/// # Errors
/// [`Failure::Io`]
pub async fn tls_to(address: SocketAddr, trust: &Trust) -> Result<Tls, Failure> {
    let stream = TcpStream::connect(address).await.map_err(Failure::io("a server"))?;
    over(stream, READ_BYTES, trust, &[]).await
}

async fn over(stream: TcpStream, ahead: usize, trust: &Trust, protocols: &[&[u8]]) -> Result<Tls, Failure> {
    let address = stream.peer_addr().map_err(Failure::io("the relay"))?;
    stream.set_nodelay(true).map_err(Failure::io("the relay"))?;
    let connector = tokio_rustls::TlsConnector::from(Arc::new(trust.tls(protocols)));
    let stream = BufReader::with_capacity(ahead, stream);
    connector.connect(ServerName::from(address.ip()), stream).await.map_err(Failure::io("TLS with the relay"))
}

/// A body of known length that notes when its last piece is taken.
pub(super) struct Pieces {
    left: Bytes,
    sent: Sent,
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = self.get_mut();
        if this.left.is_empty() {
            return Poll::Ready(None);
        }
        let piece = this.left.split_to(this.left.len().min(PIECE_BYTES));
        if this.left.is_empty() {
            this.sent.now();
        }
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.left.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left.len() as u64)
    }
}
