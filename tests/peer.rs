//! A capture client on any transport, as raw as a test needs it.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use http::Method;
use tokio_tungstenite::tungstenite::Message;
use waystation_proto::frame::{self, Decoder, Frame, Piece, kind, split_message};
use waystation_proto::message::{Bye, CaptureState, Hello, Hint, OfferBody, Send as Go, Welcome};
use waystation_proto::{CAPTURE_SUBPROTOCOL, ChunkState, PROTOCOL};

use crate::Chunk;
use crate::http::{Answer, put};
use crate::wire::{Exchange, Http, Socket, Streaming, Ws, ask, soon, websocket};
use crate::world::World;

/// A way to bring a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// `PUT`.
    Http(Http),
    /// `/capture`, as a WebSocket.
    Ws(Ws),
    /// `/capture`, as a streaming `POST`.
    Post(Http),
}

/// What carries the frames of `/capture`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carrier {
    /// A WebSocket.
    Ws(Ws),
    /// The bodies of a `POST`.
    Post(Http),
}

impl Carrier {
    /// Every one.
    pub const ALL: [Self; 5] =
        [Self::Ws(Ws::H1), Self::Ws(Ws::H2), Self::Post(Http::H1), Self::Post(Http::H2), Self::Post(Http::H3)];
}

impl Carrier {
    /// The code of a close, where there is one: an answer of HTTP just ends, in order.
    pub const fn close(self, code: u16) -> u16 {
        match self {
            Self::Ws(_) => code,
            Self::Post(_) => 0,
        }
    }
}

impl From<Ws> for Carrier {
    fn from(ws: Ws) -> Self {
        Self::Ws(ws)
    }
}

impl Way {
    /// Every way.
    pub const ALL: [Self; 8] = [
        Self::Http(Http::H1),
        Self::Http(Http::H2),
        Self::Http(Http::H3),
        Self::Ws(Ws::H1),
        Self::Ws(Ws::H2),
        Self::Post(Http::H1),
        Self::Post(Http::H2),
        Self::Post(Http::H3),
    ];

    /// What carries the frames; `None` where there are none.
    pub const fn carrier(self) -> Option<Carrier> {
        match self {
            Self::Http(_) => None,
            Self::Ws(ws) => Some(Carrier::Ws(ws)),
            Self::Post(http) => Some(Carrier::Post(http)),
        }
    }
}

/// What the relay said of a chunk in the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// HTTP status; 0 on `/capture`.
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
    Frames(Box<Capture>, u64),
}

impl Upload {
    /// Offers a chunk; returns the offset from which its bytes are wanted.
    pub async fn begin(world: &World, way: Way, chunk: &Chunk, capability: &str) -> (Self, u64) {
        match (way, way.carrier()) {
            (Way::Http(http), _) => {
                let asked = ask(world, http, head(chunk, capability), "").await;
                let held =
                    asked.headers.get("upload-offset").map_or(0, |value| value.to_str().unwrap().parse().unwrap());
                let mut request = put(chunk, capability, 20).header("content-length", chunk.offer.length - held);
                if held > 0 {
                    request = request.header("upload-offset", held);
                }
                (Self::Http(Exchange::open(world, http, request.body(()).unwrap()).await), held)
            }
            (_, carrier) => {
                let mut capture = Capture::open(world, carrier.unwrap(), &[capability]).await;
                capture.offer(1, chunk).await;
                let go = capture.go(1).await;
                (Self::Frames(Box::new(capture), go.offset), go.offset)
            }
        }
    }

    /// Sends the next bytes.
    pub async fn send(&mut self, bytes: Bytes) {
        match self {
            Self::Http(exchange) => exchange.send(bytes).await,
            Self::Frames(capture, at) => {
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
            Self::Frames(mut capture, _) => capture.ended(1).await.into(),
        }
    }

    /// Nothing more is sent, and nothing is ended: what the relay says of that.
    pub async fn left(self) -> Told {
        match self {
            Self::Http(exchange) => exchange.answer().await.into(),
            Self::Frames(mut capture, _) => capture.told(1).await,
        }
    }

    /// The connection is gone, without a word.
    pub fn cut(self) {
        match self {
            Self::Http(exchange) => exchange.cut(),
            Self::Frames(capture, _) => drop(capture),
        }
    }
}

/// Brings a chunk on a connection of its own.
pub async fn bring(world: &World, way: Way, chunk: &Chunk, capability: &str) -> Told {
    match (way, way.carrier()) {
        (Way::Http(http), _) => {
            let request = put(chunk, capability, 20).header("content-length", chunk.offer.length);
            ask(world, http, request.body(()).unwrap(), chunk.bytes.clone()).await.into()
        }
        (_, carrier) => Capture::open(world, carrier.unwrap(), &[capability]).await.bring(1, chunk).await.into(),
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

/// Waits until the relay holds so many bytes of a chunk.
pub async fn until_offset(world: &World, chunk: &Chunk, capability: &str, offset: usize) {
    let waiting = async {
        loop {
            let answer = ask(world, Http::H1, head(chunk, capability), "").await;
            if answer.status == 200 && answer.headers["upload-offset"] == offset.to_string().as_str() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    soon("the offset", waiting).await;
}

/// Whether nothing follows a `STATE`: it refuses, or the chunk has ended. What waits for the core
/// or for a capability is neither.
fn is_last(said: &CaptureState) -> bool {
    const WAITS: [&str; 5] =
        ["core_unavailable", "core_limited", "core_refuses_relay", "account_quota", "awaiting_capability"];
    let refused = said.error.as_ref().is_some_and(|error| !WAITS.contains(&error.code.as_str()));
    refused || said.state.is_some_and(ChunkState::ended)
}

enum Line {
    Ws(Socket),
    Post(Streaming, Decoder),
}

/// The head of a `POST /capture`.
pub fn post() -> http::Request<()> {
    http::Request::post("/capture").header("host", "localhost").body(()).unwrap()
}

/// A `/capture` connection.
pub struct Capture {
    line: Line,
    waiting: VecDeque<Frame>,
    /// The last hint.
    pub hint: Hint,
    /// The close code, when it came; 0 for an answer of HTTP that ended in order.
    pub close: Option<u16>,
}

impl Capture {
    /// Connects, without a word.
    pub async fn raw(world: &World, carrier: impl Into<Carrier>) -> Self {
        let line = match carrier.into() {
            Carrier::Ws(ws) => Line::Ws(websocket(world, ws, "/capture", CAPTURE_SUBPROTOCOL).await),
            Carrier::Post(http) => {
                // The head of the answer comes before a byte of the request's body.
                return Self::over(Exchange::open(world, http, post()).await).await;
            }
        };
        Self::on(line)
    }

    fn on(line: Line) -> Self {
        Self { line, waiting: VecDeque::new(), hint: Hint::default(), close: None }
    }

    /// The same over a `POST` that is open.
    pub async fn over(exchange: Exchange) -> Self {
        let streaming = exchange.head().await;
        assert_eq!(streaming.status, 200);
        Self::on(Line::Post(streaming, Decoder::default()))
    }

    /// Connects and is welcomed.
    pub async fn open(world: &World, carrier: impl Into<Carrier>, capabilities: &[&str]) -> Self {
        let mut this = Self::raw(world, carrier).await;
        this.greet(capabilities).await;
        this
    }

    /// Sends `HELLO` and is welcomed.
    pub async fn greet(&mut self, capabilities: &[&str]) -> Welcome {
        self.hello(capabilities).await;
        let welcome = self.frame().await.expect("WELCOME");
        assert_eq!(welcome.kind, kind::WELCOME, "{:?}", welcome.body);
        frame::control(&welcome).unwrap()
    }

    /// Sends `HELLO`.
    pub async fn hello(&mut self, capabilities: &[&str]) {
        let capabilities = capabilities.iter().map(ToString::to_string).collect();
        let hello = Hello { protocol: PROTOCOL, capabilities, network: None };
        self.send(frame::encode_json(kind::HELLO, &hello)).await;
    }

    /// Sends one message.
    pub async fn send(&mut self, message: Bytes) {
        match &mut self.line {
            Line::Ws(_) => self.message(Message::Binary(message)).await,
            Line::Post(streaming, _) => streaming.send(message).await,
        }
    }

    /// Sends one message of any kind; a peer that is gone is no failure.
    pub async fn message(&mut self, message: Message) {
        let Line::Ws(socket) = &mut self.line else { panic!("messages are a WebSocket's") };
        let _ = soon("room for a message", socket.stream.send(message)).await;
    }

    /// Offers a chunk.
    pub async fn offer(&mut self, handle: u64, chunk: &Chunk) {
        self.send(frame::encode_json(kind::OFFER, &OfferBody::new(handle, &chunk.offer))).await;
    }

    /// Sends a `PIECE`.
    pub async fn piece(&mut self, handle: u64, offset: u64, bytes: &[u8]) {
        self.send(Piece::encode(kind::CAPTURE_PIECE, handle, offset, bytes)).await;
    }

    /// Ends it in order, as far as the client is concerned.
    pub async fn end(&mut self) {
        match &mut self.line {
            Line::Ws(_) => self.message(Message::Close(None)).await,
            Line::Post(streaming, _) => streaming.end().await,
        }
    }

    /// Writes bytes below the messages, as a thin link does: a part of one.
    pub async fn bytes(&mut self, bytes: &[u8]) {
        use tokio::io::AsyncWriteExt as _;
        let socket = match &mut self.line {
            Line::Ws(socket) => socket.stream.get_mut(),
            Line::Post(streaming, _) => return streaming.send(bytes.to_vec()).await,
        };
        let _ = soon("room", socket.write_all(bytes)).await;
        let _ = soon("room", socket.flush()).await;
    }

    /// Everything that still comes, below the messages: nothing is answered, no ping either.
    pub async fn rest(&mut self) -> Vec<u8> {
        use tokio::io::AsyncReadExt as _;
        let mut rest = Vec::new();
        match &mut self.line {
            Line::Ws(socket) => drop(soon("the end", socket.stream.get_mut().read_to_end(&mut rest)).await),
            Line::Post(streaming, _) => {
                while let Some(Ok(bytes)) = soon("the end", streaming.next()).await {
                    rest.extend_from_slice(&bytes);
                }
            }
        }
        rest
    }

    /// The next frame but for hints; `None` when the connection ended.
    pub async fn frame(&mut self) -> Option<Frame> {
        soon("a frame", self.next()).await
    }

    /// Waits for a hint that `is` it; what else comes is dropped.
    pub async fn until_hint(&mut self, is: impl Fn(&Hint) -> bool) {
        let waiting = async {
            while !is(&self.hint) {
                self.any().await.expect("a hint");
            }
        };
        soon("the hint", waiting).await;
    }

    async fn next(&mut self) -> Option<Frame> {
        loop {
            let frame = self.any().await?;
            if frame.kind != kind::HINT {
                return Some(frame);
            }
        }
    }

    async fn any(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.waiting.pop_front() {
                if frame.kind == kind::HINT {
                    self.hint = frame::control(&frame).unwrap();
                }
                return Some(frame);
            }
            match &mut self.line {
                Line::Ws(socket) => match socket.stream.next().await?.ok()? {
                    Message::Binary(bytes) => self.waiting.extend(split_message(bytes).unwrap()),
                    Message::Close(close) => {
                        self.close = close.map(|close| close.code.into());
                        return None;
                    }
                    _ => {}
                },
                Line::Post(streaming, decoder) => {
                    match streaming.next().await {
                        Some(Ok(bytes)) => decoder.push(&bytes),
                        Some(Err(())) => return None,
                        // What a close is on a WebSocket.
                        None => {
                            assert!(!decoder.pending(), "the answer ends inside a frame");
                            self.close = Some(0);
                            return None;
                        }
                    }
                    while let Some(frame) = decoder.next_frame().unwrap() {
                        self.waiting.push_back(frame);
                    }
                }
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

    /// Offers a chunk: the code with which it is refused, or nothing if its bytes are wanted.
    pub async fn go_or_refused(&mut self, handle: u64, chunk: &Chunk) -> String {
        self.offer(handle, chunk).await;
        loop {
            let frame = self.frame().await.expect("an answer to the offer");
            let body: serde_json::Value = serde_json::from_slice(&frame.body).unwrap();
            if body["handle"] == handle {
                return body["error"]["code"].as_str().unwrap_or_default().into();
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

    /// The last that is said of a handle, or of all of them: `BYE`.
    pub async fn told(&mut self, handle: u64) -> Told {
        loop {
            let frame = self.frame().await.expect("STATE or BYE");
            if frame.kind == kind::BYE {
                let bye: Bye = frame::control(&frame).unwrap();
                return Told { status: 0, state: None, code: bye.reason, receipt: None };
            }
            if frame.kind == kind::CAPTURE_STATE {
                let state: CaptureState = frame::control(&frame).unwrap();
                if state.handle == handle && is_last(&state) {
                    return state.into();
                }
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
        (reason, self.close.unwrap_or(u16::MAX))
    }
}
