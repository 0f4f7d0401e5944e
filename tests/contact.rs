//! A contact on any transport.

use std::collections::{HashMap, VecDeque};

use futures_util::{SinkExt as _, StreamExt as _};
use tokio_tungstenite::tungstenite::Message;
use waystation_proto::frame::{self, Decoder, Frame, Piece, kind, split_message};
use waystation_proto::message::{ChunkBegins, ContactChunkState, Ending, StartAt, StartWord, Watch};
use waystation_proto::{PROTOCOL, Variant, WATCH_SUBPROTOCOL};

use crate::session::Session;
use crate::wire::{Exchange, Http, Socket, Streaming, Ws, soon, websocket};
use crate::world::World;

/// A way to watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Eye {
    /// `/watch` as a WebSocket.
    Ws(Ws),
    /// Streaming `GET /watch`.
    Get(Http),
    /// `/watch` over WebTransport.
    Wt,
}

impl Eye {
    /// Every way.
    pub const ALL: [Self; 6] =
        [Self::Ws(Ws::H1), Self::Ws(Ws::H2), Self::Get(Http::H1), Self::Get(Http::H2), Self::Get(Http::H3), Self::Wt];
}

enum Link {
    Ws(Box<Socket>),
    Get(Box<Streaming>, Decoder),
    Wt(Box<Session>),
}

/// Where a contact begins.
struct From {
    start: Option<StartAt>,
    cursor: Option<String>,
}

/// A contact, and everything it holds.
pub struct Contact {
    link: Link,
    waiting: VecDeque<Frame>,
    /// Every chunk that began, by handle.
    pub chunks: HashMap<u64, ChunkBegins>,
    /// Bytes of each chunk, by handle.
    pub bytes: HashMap<u64, Vec<u8>>,
    /// The newest state of each chunk, by stream and index.
    pub states: HashMap<(String, u64), ContactChunkState>,
}

/// What a `GET /watch` asks for.
pub fn get_watch(capability: &str, wanted: &str) -> http::Request<()> {
    http::Request::get("/watch")
        .header("host", "localhost")
        .header("authorization", format!("Bearer {capability}"))
        .header("waystation-watch", wanted)
        .body(())
        .unwrap()
}

impl Contact {
    /// Watches every lane from the oldest chunk of the window, and is welcomed.
    pub async fn open(world: &World, eye: Eye, capability: &str) -> Self {
        Self::with(world, eye, capability, None).await
    }

    /// The same with these lanes alone.
    pub async fn with(world: &World, eye: Eye, capability: &str, lanes: Option<Vec<Variant>>) -> Self {
        Self::begin(world, eye, capability, lanes).await.welcomed().await
    }

    /// Goes on where a cursor says that another connection was, and is welcomed.
    pub async fn resume(world: &World, eye: Eye, capability: &str, cursor: &str) -> Self {
        let from = From { start: None, cursor: Some(cursor.to_owned()) };
        Self::ask(world, eye, capability, None, from).await.welcomed().await
    }

    async fn welcomed(mut self) -> Self {
        let first = self.frame().await.expect("WATCHING");
        assert_eq!(first.kind, kind::WATCHING, "{:?}", first.body);
        self
    }

    /// Asks, without hearing the answer.
    pub async fn begin(world: &World, eye: Eye, capability: &str, lanes: Option<Vec<Variant>>) -> Self {
        let from = From { start: Some(StartAt::Word(StartWord::Oldest)), cursor: None };
        Self::ask(world, eye, capability, lanes, from).await
    }

    async fn ask(world: &World, eye: Eye, capability: &str, lanes: Option<Vec<Variant>>, from: From) -> Self {
        let From { start, cursor } = from;
        let watch = || {
            let (lanes, from, cursor) = (lanes.clone(), start.clone(), cursor.clone());
            let watch = Watch { protocol: PROTOCOL, capability: capability.into(), lanes, from, cursor };
            frame::encode_json(kind::WATCH, &watch)
        };
        let link = match eye {
            Eye::Ws(ws) => {
                let mut socket = websocket(world, ws, "/watch", WATCH_SUBPROTOCOL).await;
                socket.stream.send(Message::Binary(watch())).await.unwrap();
                Link::Ws(Box::new(socket))
            }
            Eye::Wt => {
                let mut session = Session::open(world, "/watch", http::HeaderMap::new()).await.unwrap();
                session.send(&watch()).await;
                Link::Wt(Box::new(session))
            }
            Eye::Get(http) => {
                let lanes = lanes.as_ref().map(|lanes| {
                    let names: Vec<_> = lanes.iter().map(|lane| format!("\"{}\"", lane.as_str())).collect();
                    format!("lanes=({})", names.join(" "))
                });
                let start = start.is_some().then(|| "from=\"oldest\"".to_owned());
                let cursor = cursor.map(|cursor| format!("cursor=\"{cursor}\""));
                let wanted: Vec<String> = [lanes, start, cursor].into_iter().flatten().collect();
                let mut exchange = Exchange::open(world, http, get_watch(capability, &wanted.join(", "))).await;
                exchange.end().await;
                let streaming = exchange.head().await;
                assert_eq!(streaming.status, 200);
                Link::Get(Box::new(streaming), Decoder::default())
            }
        };
        let (chunks, bytes, states) = (HashMap::new(), HashMap::new(), HashMap::new());
        Self { link, waiting: VecDeque::new(), chunks, bytes, states }
    }

    /// Sends a frame; not on a streaming `GET`.
    pub async fn send(&mut self, frame: bytes::Bytes) {
        match &mut self.link {
            Link::Ws(socket) => socket.stream.send(Message::Binary(frame)).await.unwrap(),
            Link::Wt(session) => session.send(&frame).await,
            Link::Get(..) => panic!("a streaming GET says nothing"),
        }
    }

    /// Its session.
    pub fn session(&mut self) -> &mut Session {
        let Link::Wt(session) = &mut self.link else { panic!("no session") };
        session
    }

    /// The next frame; `None` at the end of the connection or the body.
    pub async fn frame(&mut self) -> Option<Frame> {
        let frame = soon("a frame", self.next()).await?;
        match frame.kind {
            kind::CHUNK => {
                let begins: ChunkBegins = frame::control(&frame).unwrap();
                self.bytes.insert(begins.handle, Vec::new());
                self.chunks.insert(begins.handle, begins);
            }
            kind::PIECE => {
                let piece = Piece::decode(frame.body.clone()).unwrap();
                let held = self.bytes.get_mut(&piece.handle).expect("a piece of a chunk that began");
                assert_eq!(piece.offset, held.len() as u64, "pieces follow each other");
                held.extend_from_slice(&piece.bytes);
            }
            kind::STATE => {
                let state: ContactChunkState = frame::control(&frame).unwrap();
                self.states.insert((state.stream.as_str().into(), state.index), state);
            }
            _ => {}
        }
        Some(frame)
    }

    async fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.waiting.pop_front() {
                return Some(frame);
            }
            match &mut self.link {
                Link::Ws(socket) => match socket.stream.next().await?.ok()? {
                    Message::Binary(bytes) => self.waiting.extend(split_message(bytes).unwrap()),
                    Message::Close(_) => return None,
                    _ => {}
                },
                Link::Wt(session) => return session.next().await,
                Link::Get(streaming, decoder) => {
                    decoder.push(&streaming.next().await?.ok()?);
                    while let Some(frame) = decoder.next_frame().unwrap() {
                        self.waiting.push_back(frame);
                    }
                }
            }
        }
    }

    /// Reads on to the next frame of a kind.
    pub async fn until(&mut self, kind: u64) -> Frame {
        loop {
            let frame = self.frame().await.unwrap_or_else(|| panic!("frame {kind:#x} before the end"));
            if frame.kind == kind {
                return frame;
            }
        }
    }

    /// Reads on until `done`.
    pub async fn until_so(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        while !done(self) {
            assert!(self.frame().await.is_some(), "the end came before {what}");
        }
    }

    /// The next chunk that begins.
    pub async fn begins(&mut self) -> ChunkBegins {
        frame::control(&self.until(kind::CHUNK).await).unwrap()
    }

    /// The reason with which it ends; nothing may follow.
    pub async fn ending(&mut self) -> String {
        let ending: Ending = frame::control(&self.until(kind::ENDING).await).unwrap();
        assert!(self.frame().await.is_none(), "ENDING is the last frame");
        ending.reason
    }

    /// Bytes held of the chunk that began last.
    pub fn held(&self, handle: u64) -> usize {
        self.bytes.get(&handle).map_or(0, Vec::len)
    }
}
