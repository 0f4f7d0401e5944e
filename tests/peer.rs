//! A capture client on any transport, as raw as a test needs it.

use std::collections::VecDeque;

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use http::Method;
use tokio_tungstenite::tungstenite::Message;
use waystation_proto::frame::{self, Frame, Piece, kind, split_message};
use waystation_proto::message::{CaptureState, Hello, OfferBody, Send as Go};
use waystation_proto::{CAPTURE_SUBPROTOCOL, ChunkState, PROTOCOL};

use crate::Chunk;
use crate::http::{Answer, put};
use crate::wire::{Exchange, Http, Socket, Ws, ask, soon, websocket};
use crate::world::World;

/// A way to bring a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// `PUT`.
    Http(Http),
    /// `/capture`.
    Ws(Ws),
}

impl Way {
    /// Every way.
    pub const ALL: [Self; 5] =
        [Self::Http(Http::H1), Self::Http(Http::H2), Self::Http(Http::H3), Self::Ws(Ws::H1), Self::Ws(Ws::H2)];
}

/// What the relay said of a chunk in the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// HTTP status; 0 on a WebSocket.
    pub status: u16,
    /// The chunk's state, if it was named.
    pub state: Option<ChunkState>,
    /// The error's code; empty without one.
    pub code: String,
    /// The core's receipt.
    pub receipt: Option<String>,
}

impl From<Answer> for Told {
    fn from(answer: Answer) -> Self {
        let chunk = serde_json::from_slice::<waystation_proto::message::Answer>(&answer.body).unwrap_or_else(|_| {
            panic!("{} {}", answer.status, String::from_utf8_lossy(&answer.body));
        });
        let code = answer.code();
        let (state, receipt) = chunk.chunk.map_or((None, None), |chunk| (Some(chunk.state), chunk.receipt));
        Self { status: answer.status.as_u16(), state, code, receipt }
    }
}

impl From<CaptureState> for Told {
    fn from(said: CaptureState) -> Self {
        let code = said.error.map_or_else(String::new, |error| error.code);
        Self { status: 0, state: said.state, code, receipt: said.receipt }
    }
}

/// One chunk on its way.
pub enum Upload {
    /// As the body of a `PUT`.
    Http(Exchange),
    /// As pieces; the offset that comes next.
    Ws(Box<Capture>, u64),
}

impl Upload {
    /// Offers a chunk; returns the offset from which its bytes are wanted.
    pub async fn begin(world: &World, way: Way, chunk: &Chunk, capability: &str) -> (Self, u64) {
        match way {
            Way::Http(http) => {
                let asked = ask(world, http, head(chunk, capability), "").await;
                let held =
                    asked.headers.get("upload-offset").map_or(0, |value| value.to_str().unwrap().parse().unwrap());
                let mut request = put(chunk, capability, 20).header("content-length", chunk.offer.length - held);
                if held > 0 {
                    request = request.header("upload-offset", held);
                }
                (Self::Http(Exchange::open(world, http, request.body(()).unwrap()).await), held)
            }
            Way::Ws(ws) => {
                let mut capture = Capture::open(world, ws, &[capability]).await;
                capture.offer(1, chunk).await;
                let go = capture.go(1).await;
                (Self::Ws(Box::new(capture), go.offset), go.offset)
            }
        }
    }

    /// Sends the next bytes.
    pub async fn send(&mut self, bytes: Bytes) {
        match self {
            Self::Http(exchange) => exchange.send(bytes).await,
            Self::Ws(capture, at) => {
                for piece in bytes.chunks(64 * 1024) {
                    capture.piece(1, *at, piece).await;
                    *at += piece.len() as u64;
                }
            }
        }
    }

    /// Everything was sent: what the relay says in the end.
    pub async fn told(self) -> Told {
        match self {
            Self::Http(mut exchange) => {
                exchange.end().await;
                exchange.answer().await.into()
            }
            Self::Ws(mut capture, _) => capture.ended(1).await.into(),
        }
    }

    /// Nothing more is sent, and nothing is ended: what the relay says of that.
    pub async fn left(self) -> Told {
        match self {
            Self::Http(exchange) => exchange.answer().await.into(),
            Self::Ws(mut capture, _) => capture.ended(1).await.into(),
        }
    }

    /// The connection is gone, without a word.
    pub fn cut(self) {
        match self {
            Self::Http(exchange) => exchange.cut(),
            Self::Ws(capture, _) => drop(capture),
        }
    }
}

/// Brings a chunk on a connection of its own.
pub async fn bring(world: &World, way: Way, chunk: &Chunk, capability: &str) -> Told {
    match way {
        Way::Http(http) => {
            let request = put(chunk, capability, 20).header("content-length", chunk.offer.length);
            ask(world, http, request.body(()).unwrap(), chunk.bytes.clone()).await.into()
        }
        Way::Ws(ws) => Capture::open(world, ws, &[capability]).await.bring(1, chunk).await.into(),
    }
}

/// `HEAD` of a chunk.
pub fn head(chunk: &Chunk, capability: &str) -> http::Request<()> {
    request(Method::HEAD, chunk, capability)
}

/// A request about a chunk.
pub fn request(method: Method, chunk: &Chunk, capability: &str) -> http::Request<()> {
    http::Request::builder()
        .method(method)
        .uri(format!("/chunks/{}", chunk.chunk_ref()))
        .header("host", "localhost")
        .header("authorization", format!("Bearer {capability}"))
        .body(())
        .unwrap()
}

/// Whether nothing follows a `STATE`: it refuses, or the chunk has ended. What waits for the core
/// or for a capability is neither.
fn is_last(said: &CaptureState) -> bool {
    const WAITS: [&str; 5] =
        ["core_unavailable", "core_limited", "core_refuses_relay", "account_quota", "awaiting_capability"];
    let refused = said.error.as_ref().is_some_and(|error| !WAITS.contains(&error.code.as_str()));
    refused || said.state.is_some_and(ChunkState::ended)
}

/// A `/capture` connection.
pub struct Capture {
    socket: Socket,
    waiting: VecDeque<Frame>,
    /// The close code, when it came.
    pub close: Option<u16>,
}

impl Capture {
    /// Connects, without a word.
    pub async fn raw(world: &World, ws: Ws) -> Self {
        let socket = websocket(world, ws, "/capture", CAPTURE_SUBPROTOCOL).await;
        Self { socket, waiting: VecDeque::new(), close: None }
    }

    /// Connects and is welcomed.
    pub async fn open(world: &World, ws: Ws, capabilities: &[&str]) -> Self {
        let mut this = Self::raw(world, ws).await;
        this.hello(capabilities).await;
        let welcome = this.frame().await.expect("WELCOME");
        assert_eq!(welcome.kind, kind::WELCOME, "{:?}", welcome.body);
        this
    }

    /// Sends `HELLO`.
    pub async fn hello(&mut self, capabilities: &[&str]) {
        let capabilities = capabilities.iter().map(ToString::to_string).collect();
        let hello = Hello { protocol: PROTOCOL, capabilities, network: None };
        self.send(frame::encode_json(kind::HELLO, &hello)).await;
    }

    /// Sends one message.
    pub async fn send(&mut self, message: Bytes) {
        self.message(Message::Binary(message)).await;
    }

    /// Sends one message of any kind; a peer that is gone is no failure.
    pub async fn message(&mut self, message: Message) {
        let _ = soon("room for a message", self.socket.stream.send(message)).await;
    }

    /// Offers a chunk.
    pub async fn offer(&mut self, handle: u64, chunk: &Chunk) {
        self.send(frame::encode_json(kind::OFFER, &OfferBody::new(handle, &chunk.offer))).await;
    }

    /// Sends a `PIECE`.
    pub async fn piece(&mut self, handle: u64, offset: u64, bytes: &[u8]) {
        self.send(Piece::encode(kind::CAPTURE_PIECE, handle, offset, bytes)).await;
    }

    /// Writes bytes below the WebSocket, as a thin link does: a part of a message.
    pub async fn bytes(&mut self, bytes: &[u8]) {
        use tokio::io::AsyncWriteExt as _;
        let socket = self.socket.stream.get_mut();
        let _ = soon("room", socket.write_all(bytes)).await;
        let _ = soon("room", socket.flush()).await;
    }

    /// Everything that still comes, below the WebSocket: nothing is answered, no ping either.
    pub async fn rest(&mut self) -> Vec<u8> {
        use tokio::io::AsyncReadExt as _;
        let mut rest = Vec::new();
        let _ = soon("the end", self.socket.stream.get_mut().read_to_end(&mut rest)).await;
        rest
    }

    /// The next frame but for hints; `None` when the connection ended.
    pub async fn frame(&mut self) -> Option<Frame> {
        soon("a frame", self.next()).await
    }

    async fn next(&mut self) -> Option<Frame> {
        loop {
            while let Some(frame) = self.waiting.pop_front() {
                if frame.kind != kind::HINT {
                    return Some(frame);
                }
            }
            match self.socket.stream.next().await?.ok()? {
                Message::Binary(bytes) => self.waiting.extend(split_message(bytes).unwrap()),
                Message::Close(close) => {
                    self.close = close.map(|close| close.code.into());
                    return None;
                }
                _ => {}
            }
        }
    }

    /// The next `SEND` of a handle.
    pub async fn go(&mut self, handle: u64) -> Go {
        loop {
            let frame = self.frame().await.expect("SEND");
            match frame.kind {
                kind::SEND => {
                    let go: Go = frame::control(&frame).unwrap();
                    if go.handle == handle {
                        return go;
                    }
                }
                kind::CAPTURE_STATE => {
                    let state: CaptureState = frame::control(&frame).unwrap();
                    assert_ne!(state.handle, handle, "{state:?}");
                }
                _ => {}
            }
        }
    }

    /// The next `STATE` of a handle.
    pub async fn state(&mut self, handle: u64) -> CaptureState {
        loop {
            let frame = self.frame().await.expect("STATE");
            if frame.kind == kind::CAPTURE_STATE {
                let state: CaptureState = frame::control(&frame).unwrap();
                if state.handle == handle {
                    return state;
                }
            }
        }
    }

    /// The `STATE` with which a handle ends: a refusal, or a state that is the last.
    pub async fn ended(&mut self, handle: u64) -> CaptureState {
        loop {
            let state = self.state(handle).await;
            if is_last(&state) {
                return state;
            }
        }
    }

    /// Offers a chunk, brings what is wanted as credit allows, and waits for the end.
    pub async fn bring(&mut self, handle: u64, chunk: &Chunk) -> CaptureState {
        self.offer(handle, chunk).await;
        let (mut at, mut granted) = (0, 0);
        loop {
            let frame = self.frame().await.expect("an answer to the offer");
            let body: serde_json::Value = serde_json::from_slice(&frame.body).unwrap();
            if body["handle"] != handle {
                continue;
            }
            match frame.kind {
                kind::SEND => {
                    at = body["offset"].as_u64().unwrap();
                    granted = at + body["credit"].as_u64().unwrap();
                }
                kind::CREDIT => granted += body["bytes"].as_u64().unwrap(),
                kind::CAPTURE_STATE => {
                    let state: CaptureState = frame::control(&frame).unwrap();
                    if is_last(&state) {
                        return state;
                    }
                }
                _ => {}
            }
            while at < granted {
                let to = (at + 64 * 1024).min(granted);
                self.piece(handle, at, &chunk.bytes[at as usize..to as usize]).await;
                at = to;
            }
        }
    }

    /// The reason of `BYE`, and the close code behind it.
    pub async fn bye(&mut self) -> (String, u16) {
        let mut reason = String::new();
        while let Some(frame) = self.frame().await {
            if frame.kind == kind::BYE {
                let body: serde_json::Value = serde_json::from_slice(&frame.body).unwrap();
                reason = body["reason"].as_str().unwrap().into();
            }
        }
        (reason, self.close.unwrap_or(0))
    }
}
