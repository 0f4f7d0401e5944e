//! Bringing the beginning of a chunk, and later its rest, over each transport.

use std::convert::Infallible;

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _, stream};
use http::StatusCode;
use http_body_util::{Full, StreamBody};
use hyper::body::Frame as BodyFrame;
use hyper_util::rt::TokioIo;
use quinn::crypto::rustls::QuicClientConfig;
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_util::task::AbortOnDropHandle;
use waystation_client::connect::Trust;
use waystation_proto::frame::{self, Frame, Piece, kind};
use waystation_proto::message::{CaptureState, Credit, Hello, OfferBody, Send};
use waystation_proto::{CAPTURE_SUBPROTOCOL, ChunkState, PROTOCOL};
use waystation_tests::{Chunk, http as plain};

use super::process::Rig;

/// Pieces of this many bytes.
const PIECE: usize = 48 * 1024;

/// A transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    H1,
    Ws,
    H3,
}

/// A client that brought the beginning of a chunk, and then nothing more.
pub struct Stuck {
    _client: AbortOnDropHandle<()>,
}

impl Way {
    pub const ALL: [Self; 3] = [Self::H1, Self::Ws, Self::H3];

    /// Brings the first `end` bytes and waits until the relay has them.
    pub async fn begin(self, rig: &Rig, chunk: &Chunk, capability: &str, end: usize) -> Stuck {
        let client = match self {
            Self::H1 => tokio::spawn(h1(rig.plain, chunk.clone(), capability.to_owned(), end)),
            Self::Ws => tokio::spawn(ws_begin(rig.plain, chunk.clone(), capability.to_owned(), end)),
            Self::H3 => {
                let relay = H3::connect(rig).await;
                tokio::spawn(relay.begin(chunk.clone(), capability.to_owned(), end))
            }
        };
        rig.until_standing(chunk, capability, "receiving", end as u64).await;
        Stuck { _client: AbortOnDropHandle::new(client) }
    }

    /// Brings the rest from where the relay says, which must be `from`; waits for the core's word.
    pub async fn complete(self, rig: &Rig, chunk: &Chunk, capability: &str, from: u64) {
        match self {
            Self::H1 => {
                let rest = Full::new(chunk.bytes.slice(from as usize..));
                let request = plain::put(chunk, capability, 30).header("upload-offset", from);
                let answer = plain::send(rig.plain, request.body(rest).unwrap()).await;
                assert_eq!(answer.status, StatusCode::CREATED, "{:?}", answer.body);
            }
            Self::Ws => {
                let mut socket = Socket::open(rig.plain, capability).await;
                let (offset, credit) = socket.offer(chunk).await;
                assert_eq!(offset, from);
                socket.bring(chunk, offset as usize, chunk.bytes.len(), credit).await;
                socket.until_confirmed().await;
            }
            Self::H3 => {
                let status = H3::connect(rig).await.complete(chunk, capability, from).await;
                assert_eq!(status, StatusCode::CREATED);
            }
        }
    }
}

async fn h1(at: std::net::SocketAddr, chunk: Chunk, capability: String, end: usize) {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(TcpStream::connect(at).await.unwrap())).await.unwrap();
    let _connection = AbortOnDropHandle::new(tokio::spawn(async move {
        let _ = connection.await;
    }));
    let pieces = pieces(&chunk, 0, end).into_iter().map(|(_, piece)| Ok::<_, Infallible>(BodyFrame::data(piece)));
    let body = StreamBody::new(stream::iter(pieces.collect::<Vec<_>>()).chain(stream::pending()));
    let request = plain::put(&chunk, &capability, 30).header("content-length", chunk.bytes.len());
    let _ = sender.send_request(request.body(body).unwrap()).await;
}

async fn ws_begin(at: std::net::SocketAddr, chunk: Chunk, capability: String, end: usize) {
    let mut socket = Socket::open(at, &capability).await;
    let (offset, credit) = socket.offer(&chunk).await;
    socket.bring(&chunk, offset as usize, end, credit).await;
    while socket.next().await.is_some() {}
}

fn pieces(chunk: &Chunk, from: usize, end: usize) -> Vec<(usize, Bytes)> {
    (from..end).step_by(PIECE).map(|at| (at, chunk.bytes.slice(at..end.min(at + PIECE)))).collect()
}

/// A capture client's WebSocket with one chunk, handle 1.
struct Socket {
    socket: WebSocketStream<TcpStream>,
    waiting: Vec<Frame>,
}

impl Socket {
    async fn open(at: std::net::SocketAddr, capability: &str) -> Self {
        let mut request = format!("ws://{at}/capture").into_client_request().unwrap();
        request.headers_mut().insert("sec-websocket-protocol", CAPTURE_SUBPROTOCOL.parse().unwrap());
        let stream = TcpStream::connect(at).await.unwrap();
        let (socket, _) = tokio_tungstenite::client_async(request, stream).await.unwrap();
        let mut this = Self { socket, waiting: Vec::new() };
        let hello = Hello { protocol: PROTOCOL, capabilities: vec![capability.to_owned()], network: None };
        this.send(frame::encode_json(kind::HELLO, &hello)).await;
        this.until(kind::WELCOME).await;
        this
    }

    async fn send(&mut self, frame: Bytes) {
        self.socket.send(Message::Binary(frame)).await.unwrap();
    }

    async fn next(&mut self) -> Option<Frame> {
        while self.waiting.is_empty() {
            match self.socket.next().await?.ok()? {
                Message::Binary(bytes) => self.waiting = frame::split_message(bytes).unwrap(),
                Message::Close(_) => return None,
                _ => {}
            }
        }
        Some(self.waiting.remove(0))
    }

    async fn until(&mut self, kind: u64) -> Frame {
        loop {
            let frame = self.next().await.expect("the relay left");
            if frame.kind == kind {
                return frame;
            }
        }
    }

    /// Where to go on, and how many bytes may come.
    async fn offer(&mut self, chunk: &Chunk) -> (u64, u64) {
        self.send(frame::encode_json(kind::OFFER, &OfferBody::new(1, &chunk.offer))).await;
        let send: Send = frame::control(&self.until(kind::SEND).await).unwrap();
        (send.offset, send.credit)
    }

    async fn bring(&mut self, chunk: &Chunk, from: usize, end: usize, mut credit: u64) {
        for (at, piece) in pieces(chunk, from, end) {
            while credit < piece.len() as u64 {
                let more: Credit = frame::control(&self.until(kind::CREDIT).await).unwrap();
                credit += more.bytes;
            }
            credit -= piece.len() as u64;
            self.send(Piece::encode(kind::CAPTURE_PIECE, 1, at as u64, &piece)).await;
        }
    }

    async fn until_confirmed(&mut self) {
        loop {
            let state: CaptureState = frame::control(&self.until(kind::CAPTURE_STATE).await).unwrap();
            match state.state {
                Some(ChunkState::Confirmed) => return,
                Some(state) if !state.ended() => {}
                _ => panic!("{:?}", state.error),
            }
        }
    }
}

/// An HTTP/3 connection.
struct H3 {
    requests: h3::client::SendRequest<waystation_h3::Opener, Bytes>,
    authority: String,
    _driver: AbortOnDropHandle<()>,
    _socket: quinn::Endpoint,
}

impl H3 {
    async fn connect(rig: &Rig) -> Self {
        let trust = Trust::certificates(vec![rig.certificate()]).unwrap();
        let tls = QuicClientConfig::try_from(trust.tls(&[b"h3"])).unwrap();
        let mut socket = quinn::Endpoint::client(std::net::SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        socket.set_default_client_config(quinn::ClientConfig::new(std::sync::Arc::new(tls)));
        let connection = socket.connect(rig.public, "localhost").unwrap().await.unwrap();
        let (mut driver, requests) =
            h3::client::builder().build(waystation_h3::Connection::new(connection)).await.unwrap();
        let driver = AbortOnDropHandle::new(tokio::spawn(async move {
            let _ = driver.wait_idle().await;
        }));
        Self { requests, authority: format!("localhost:{}", rig.public.port()), _driver: driver, _socket: socket }
    }

    fn put(&self, chunk: &Chunk, capability: &str) -> http::request::Builder {
        let mut request =
            plain::put(chunk, capability, 30).uri(format!("https://{}/chunks/{}", self.authority, chunk.chunk_ref()));
        request.headers_mut().unwrap().remove("host");
        request
    }

    async fn begin(mut self, chunk: Chunk, capability: String, end: usize) {
        let request = self.put(&chunk, &capability).header("content-length", chunk.bytes.len());
        let mut stream = self.requests.send_request(request.body(()).unwrap()).await.unwrap();
        for (_, piece) in pieces(&chunk, 0, end) {
            stream.send_data(piece).await.unwrap();
        }
        let _ = stream.recv_response().await;
    }

    async fn complete(mut self, chunk: &Chunk, capability: &str, from: u64) -> StatusCode {
        let request = self.put(chunk, capability).header("upload-offset", from);
        let mut stream = self.requests.send_request(request.body(()).unwrap()).await.unwrap();
        stream.send_data(chunk.bytes.slice(from as usize..)).await.unwrap();
        stream.finish().await.unwrap();
        stream.recv_response().await.unwrap().status()
    }
}
