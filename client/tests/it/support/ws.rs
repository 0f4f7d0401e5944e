//! The relay's WebSocket side.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};
use waystation_proto::frame::{self, Frame, Piece, kind};
use waystation_proto::message::{
    CaptureState, Credit, EARLY_BYTES, Hello, Limits, OfferBody, Send, Watch, Watching, Welcome,
};
use waystation_proto::{CAPTURE_SUBPROTOCOL, ChunkRef, ChunkState, Code, PROTOCOL, WATCH_SUBPROTOCOL};

use super::relay::{Open, Shared};
use super::web::advice;

type Socket = WebSocketStream<Box<dyn Stream>>;

pub trait Stream: AsyncRead + AsyncWrite + std::marker::Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + std::marker::Send + Unpin> Stream for T {}

pub async fn accept_tls(listener: TcpListener, tls: rustls::ServerConfig, shared: Arc<Shared>) {
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
    let mut running = tokio::task::JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let (acceptor, shared) = (acceptor.clone(), Arc::clone(&shared));
        running.spawn(async move {
            if let Ok(stream) = acceptor.accept(stream).await {
                capture(stream, &shared).await;
            }
        });
    }
}

pub async fn is_upgrade(stream: &TcpStream) -> bool {
    let mut head = [0; 2048];
    let read = stream.peek(&mut head).await.unwrap_or(0);
    String::from_utf8_lossy(&head[..read]).to_ascii_lowercase().contains("upgrade: websocket")
}

#[expect(clippy::result_large_err, reason = "the handshake's own type")]
async fn upgrade(stream: impl Stream + 'static, subprotocol: &'static str, early: u64) -> Option<Socket> {
    let answer = |request: &Request, mut response: Response| {
        assert_eq!(request.headers()["sec-websocket-protocol"], subprotocol);
        response.headers_mut().insert("sec-websocket-protocol", subprotocol.parse().unwrap());
        if early > 0 {
            response.headers_mut().insert(EARLY_BYTES, early.into());
        }
        Ok(response)
    };
    tokio_tungstenite::accept_hdr_async(Box::new(stream) as Box<dyn Stream>, answer).await.ok()
}

async fn next(socket: &mut Socket) -> Option<Vec<Frame>> {
    loop {
        match socket.next().await?.ok()? {
            Message::Binary(bytes) => return frame::split_message(bytes).ok(),
            Message::Close(_) => return None,
            _ => {}
        }
    }
}

async fn send(socket: &mut Socket, frame: Bytes) -> Option<()> {
    socket.send(Message::Binary(frame)).await.ok()
}

struct Session {
    handles: HashMap<u64, ChunkRef>,
    told: HashMap<u64, ChunkState>,
    /// Bytes of each chunk that may still come without a further `CREDIT`.
    credit: HashMap<u64, u64>,
}

pub async fn capture(stream: impl Stream + 'static, shared: &Arc<Shared>) {
    let Some(mut socket) = upgrade(stream, CAPTURE_SUBPROTOCOL, shared.with(|state| state.knobs.early)).await else {
        return;
    };
    let Some(mut behind) = next(&mut socket).await else { return };
    let first = behind.remove(0);
    let hello: Hello = frame::control(&first).unwrap();
    assert_eq!((first.kind, hello.protocol), (kind::HELLO, PROTOCOL));
    assert!(!hello.capabilities.is_empty());
    let mute = shared.with(|state| {
        state.hellos += 1;
        std::mem::take(&mut state.knobs.mute)
    });
    if mute {
        std::future::pending::<()>().await;
    }
    tokio::time::sleep(shared.with(|state| state.knobs.greets_after)).await;
    let (_open, mut told) = (Open::new(shared), 0);
    let limits = Limits { max_chunk: 1 << 24, max_piece: 8 * 1024, offers: 64, in_flight: 8, known: 0 };
    let welcome = Welcome { protocol: PROTOCOL, node: "n".into(), limits };
    send(&mut socket, frame::encode_json(kind::WELCOME, &welcome)).await;
    let mut session = Session { handles: HashMap::new(), told: HashMap::new(), credit: HashMap::new() };
    let mut changed = shared.changed.subscribe();
    if session.frames(behind, &mut socket, shared).await.is_none() {
        return;
    }
    loop {
        let hints = advice(&shared.state.lock().unwrap(), &mut told);
        for hint in hints {
            send(&mut socket, hint).await;
        }
        let going = tokio::select! {
            frames = next(&mut socket) => match frames {
                Some(frames) => session.frames(frames, &mut socket, shared).await,
                None => None,
            },
            _ = changed.changed() => session.states(&mut socket, shared).await,
        };
        if going.is_none() {
            return;
        }
    }
}

impl Session {
    async fn frames(&mut self, frames: Vec<Frame>, socket: &mut Socket, shared: &Shared) -> Option<()> {
        for frame in frames {
            match frame.kind {
                kind::OFFER => self.offer(frame::control(&frame).unwrap(), socket, shared).await?,
                kind::CAPTURE_PIECE => self.piece(Piece::decode(frame.body).unwrap(), socket, shared).await?,
                kind::CAPABILITY => shared.with(|state| state.capabilities += 1),
                kind::ALIVE => shared.with(|state| state.alive += 1),
                kind::END => shared.with(|state| state.ends += 1),
                other => panic!("frame {other}"),
            }
        }
        Some(())
    }

    async fn offer(&mut self, body: OfferBody, socket: &mut Socket, shared: &Shared) -> Option<()> {
        let handle = body.handle;
        let offer = body.into_offer().unwrap();
        let name = offer.chunk_ref();
        let answer = shared.with(|state| {
            let offset = state.offered(&offer)?;
            Ok::<_, Code>((offset, state.chunks[&name].state, state.knobs.credit))
        });
        match answer {
            Err(code) => {
                let retry_after_s = Some(1);
                let told = CaptureState {
                    handle,
                    chunk_ref: None,
                    state: None,
                    receipt: None,
                    error: Some(code.into()),
                    retry_after_s,
                };
                send(socket, frame::encode_json(kind::CAPTURE_STATE, &told)).await
            }
            Ok((offset, ChunkState::Receiving, credit)) => {
                self.handles.insert(handle, name);
                self.credit.insert(handle, credit);
                if shared.with(|state| state.knobs.quiet) {
                    return Some(());
                }
                send(socket, frame::encode_json(kind::SEND, &Send { handle, offset, credit })).await
            }
            Ok(_) => {
                self.handles.insert(handle, name);
                self.states(socket, shared).await
            }
        }
    }

    async fn piece(&mut self, piece: Piece, socket: &mut Socket, shared: &Shared) -> Option<()> {
        let name = self.handles[&piece.handle];
        let length = piece.bytes.len() as u64;
        // Before WELCOME nobody knows of a smaller one.
        let most = if shared.with(|state| state.knobs.early) > 0 { 16 * 1024 } else { 8 * 1024 };
        assert!(length <= most, "max_piece is kept");
        let left = self.credit.get_mut(&piece.handle).unwrap();
        *left = left.checked_sub(length).expect("credit is kept");
        let exhausted = *left == 0;
        let (cut, knobs) = shared.with(|state| {
            let cut = state.bytes(name, piece.offset, &piece.bytes);
            state.settle(name);
            (cut, (state.knobs.credit, state.knobs.credit_after))
        });
        if cut {
            return None;
        }
        if exhausted {
            tokio::time::sleep(knobs.1).await;
            *self.credit.get_mut(&piece.handle).unwrap() += knobs.0;
            let credit = Credit { handle: piece.handle, bytes: knobs.0 };
            send(socket, frame::encode_json(kind::CREDIT, &credit)).await?;
        }
        Some(())
    }

    /// Tells what is new of the chunks of this connection.
    async fn states(&mut self, socket: &mut Socket, shared: &Shared) -> Option<()> {
        for (handle, name) in self.handles.clone() {
            let (state, receipt) = shared.state.lock().unwrap().now(name);
            if state == ChunkState::Receiving || self.told.get(&handle) == Some(&state) {
                continue;
            }
            self.told.insert(handle, state);
            let receipt = receipt.filter(|_| state == ChunkState::Confirmed);
            let told = CaptureState {
                handle,
                chunk_ref: Some(name),
                state: Some(state),
                receipt,
                error: None,
                retry_after_s: None,
            };
            send(socket, frame::encode_json(kind::CAPTURE_STATE, &told)).await?;
        }
        Some(())
    }
}

impl super::relay::State {
    fn now(&self, name: ChunkRef) -> (ChunkState, Option<String>) {
        (self.chunks[&name].state, self.receipt(name))
    }
}

pub async fn watch(stream: TcpStream, shared: &Arc<Shared>) {
    let Some(mut socket) = upgrade(stream, WATCH_SUBPROTOCOL, 0).await else { return };
    let Some(first) = next(&mut socket).await else { return };
    let wish: Watch = frame::control(&first[0]).unwrap();
    assert_eq!(first[0].kind, kind::WATCH);
    shared.with(|state| state.watches.push(wish.cursor.clone().unwrap_or_default()));
    let watching = frame::encode_json(kind::WATCHING, &Watching { node: "n".into(), window_start: None });
    send(&mut socket, watching).await;
    let mut at: usize = wish.cursor.and_then(|cursor| cursor.parse().ok()).unwrap_or(0);
    let mut changed = shared.changed.subscribe();
    loop {
        let news: Vec<Bytes> = shared.state.lock().unwrap().log.get(at..).unwrap_or_default().to_vec();
        for frame in news {
            at += 1;
            if send(&mut socket, frame).await.is_none() {
                return;
            }
        }
        tokio::select! {
            frames = next(&mut socket) => match frames {
                Some(frames) => {
                    let renewals = frames.iter().filter(|frame| frame.kind == kind::RENEW).count();
                    shared.with(|state| state.renewals += renewals);
                }
                None => return,
            },
            _ = changed.changed() => {}
        }
    }
}
