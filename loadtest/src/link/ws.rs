//! WebSocket over TLS: opening one, and bringing chunks by `/capture`.

use std::collections::VecDeque;
use std::time::Instant;

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use http::{HeaderValue, Request, header};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Message, handshake};
use waystation_proto::frame::{self, Frame, MAX_PIECE_BYTES, Piece, kind};
use waystation_proto::message::{CaptureState, Credit, Hello, OfferBody, Send, Welcome};
use waystation_proto::{CAPTURE_SUBPROTOCOL, ChunkState, PROTOCOL};

use super::Verdict;
use super::http::{Reading, tls_reading};
use crate::Failure;
use crate::chunks::Chunk;
use crate::rig::Rig;

/// Bytes of one piece, unless the relay takes less.
const PIECE_BYTES: usize = 64 * 1024;
/// Bytes read from the connection at once.
const READ_BYTES: usize = 64 * 1024;

const BROKEN: Failure = Failure::Wire("the WebSocket broke");

/// A WebSocket over TLS.
pub type Socket = WebSocketStream<super::http::Tls>;

/// Connects and upgrades.
///
/// # Errors
/// [`Failure`].
pub async fn open(rig: &Rig, path: &str, subprotocol: &'static str, reading: Reading) -> Result<Socket, Failure> {
    let stream = tls_reading(rig, b"http/1.1", reading).await?;
    let request = Request::builder()
        .uri(format!("wss://{}{path}", rig.public))
        .header(header::HOST, rig.public.to_string())
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket")
        .header(header::SEC_WEBSOCKET_VERSION, "13")
        .header(header::SEC_WEBSOCKET_KEY, handshake::client::generate_key())
        .header(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(subprotocol))
        .body(())
        .map_err(|_| BROKEN)?;
    let mut config = WebSocketConfig::default();
    config.read_buffer_size = READ_BYTES;
    config.write_buffer_size = 0;
    config.max_message_size = Some(4 * MAX_PIECE_BYTES);
    let upgraded = tokio_tungstenite::client_async_with_config(request, stream, Some(config)).await;
    upgraded.map(|(socket, _)| socket).map_err(|_| Failure::Wire("the relay refused the WebSocket"))
}

/// One binary message.
#[must_use]
pub const fn binary(bytes: Bytes) -> Message {
    Message::Binary(bytes)
}

/// `/capture`, one chunk at a time.
pub struct Capture {
    socket: Socket,
    frames: VecDeque<Frame>,
    handle: u64,
    max_piece: usize,
}

impl Capture {
    pub(super) async fn connect(rig: &Rig, token: &str) -> Result<Self, Failure> {
        let socket = open(rig, "/capture", CAPTURE_SUBPROTOCOL, Reading::Ahead).await?;
        let mut this = Self { socket, frames: VecDeque::new(), handle: 0, max_piece: PIECE_BYTES };
        let hello = Hello { protocol: PROTOCOL, capabilities: vec![token.to_owned()], network: None };
        this.send(frame::encode_json(kind::HELLO, &hello)).await?;
        loop {
            let frame = this.next().await?;
            match frame.kind {
                kind::WELCOME => {
                    let welcome: Welcome = frame::control(&frame).map_err(|_| BROKEN)?;
                    this.max_piece = PIECE_BYTES.min(usize::try_from(welcome.limits.max_piece).unwrap_or(PIECE_BYTES));
                    return Ok(this);
                }
                kind::BYE => return Err(Failure::Wire("the relay refused the capture session")),
                _ => {}
            }
        }
    }

    pub(super) async fn put(&mut self, chunk: &Chunk) -> Result<Verdict, Failure> {
        self.handle += 1;
        let handle = self.handle;
        self.send(frame::encode_json(kind::OFFER, &OfferBody::new(handle, &chunk.offer))).await?;
        let (mut at, mut credit, mut sent) = (0, 0, Instant::now());
        loop {
            let frame = self.next().await?;
            match frame.kind {
                kind::SEND => {
                    let send: Send = frame::control(&frame).map_err(|_| BROKEN)?;
                    (at, credit) = (usize::try_from(send.offset).map_err(|_| BROKEN)?, send.credit);
                }
                kind::CREDIT => credit += frame::control::<Credit>(&frame).map_err(|_| BROKEN)?.bytes,
                kind::CAPTURE_STATE => {
                    let told: CaptureState = frame::control(&frame).map_err(|_| BROKEN)?;
                    if told.handle == handle && last(&told) {
                        let confirmed = told.state == Some(ChunkState::Confirmed);
                        return Ok(Verdict { sent, confirmed, refusal: told.error.map(|error| error.code) });
                    }
                }
                kind::BYE => return Err(Failure::Wire("the relay ended the capture session")),
                _ => {}
            }
            while credit > 0 && at < chunk.bytes.len() {
                let most = self.max_piece.min(usize::try_from(credit).unwrap_or(self.max_piece));
                let piece = chunk.bytes.slice(at..chunk.bytes.len().min(at + most));
                self.send(Piece::encode(kind::CAPTURE_PIECE, handle, at as u64, &piece)).await?;
                (at, credit) = (at + piece.len(), credit - piece.len() as u64);
                sent = Instant::now();
            }
        }
    }

    async fn send(&mut self, frame: Bytes) -> Result<(), Failure> {
        self.socket.send(binary(frame)).await.map_err(|_| BROKEN)
    }

    async fn next(&mut self) -> Result<Frame, Failure> {
        loop {
            if let Some(frame) = self.frames.pop_front() {
                return Ok(frame);
            }
            match self.socket.next().await {
                Some(Ok(Message::Binary(bytes))) => {
                    self.frames = frame::split_message(bytes).map_err(|_| BROKEN)?.into()
                }
                Some(Ok(Message::Close(_)) | Err(_)) | None => return Err(BROKEN),
                Some(Ok(_)) => {}
            }
        }
    }
}

/// Whether no more is to come for this chunk.
fn last(told: &CaptureState) -> bool {
    let ended = told.state.is_some_and(|state| state.ended() || state == ChunkState::Unsettled);
    ended || (told.error.is_some() && !told.state.is_some_and(ChunkState::held))
}
