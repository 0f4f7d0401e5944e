//! Opening a WebSocket to a relay; shared by the capture client and the contact.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, header};
use tokio::time::Instant;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error as WsError, Message, handshake};
use waystation_proto::frame::MAX_PIECE_BYTES;
use waystation_proto::message::EARLY_BYTES;

use crate::connect::{ConnectError, Endpoint, Stream};
use crate::tcp::Watch;

/// The handshake and the first answer must come within this.
pub(crate) const GREETING_LIMIT: Duration = Duration::from_secs(10);
/// Nothing came for this long, not even an answer to a ping: the connection is dead.
pub(crate) const SILENCE_LIMIT: Duration = Duration::from_secs(8);
/// Silence after which a ping is sent.
pub(crate) const PING_AFTER: Duration = Duration::from_secs(3);

pub(crate) type Socket = WebSocketStream<Box<dyn Stream>>;

/// A WebSocket that is open.
pub(crate) struct Opened {
    pub(crate) socket: Socket,
    /// Bytes that the other end takes unasked ([`EARLY_BYTES`]).
    pub(crate) early: u64,
    /// What a round trip took while it was made, at most.
    pub(crate) round_trip: Duration,
    /// What makes the kernel end it when what is sent is not acknowledged.
    pub(crate) watch: Option<Watch>,
}

/// Connects and upgrades.
pub(crate) async fn open(
    endpoint: &Endpoint,
    path: &str,
    subprotocol: &'static str,
    bbr: bool,
) -> Result<Opened, ConnectError> {
    tokio::time::timeout(GREETING_LIMIT, upgrade(endpoint, path, subprotocol, bbr))
        .await
        .map_err(|_| ConnectError::Unreachable)?
}

async fn upgrade(
    endpoint: &Endpoint,
    path: &str,
    subprotocol: &'static str,
    bbr: bool,
) -> Result<Opened, ConnectError> {
    let begun = Instant::now();
    let stream = endpoint.stream(bbr).await?;
    // TCP has one and TLS another. What was lost on the way made one of the two figures longer, seldom both.
    let one = begun.elapsed() / if endpoint.tls() { 2 } else { 1 };
    let scheme = if endpoint.tls() { "wss" } else { "ws" };
    let request = Request::builder()
        .uri(format!("{scheme}://{}{path}", endpoint.authority()))
        .header(header::HOST, endpoint.authority())
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket")
        .header(header::SEC_WEBSOCKET_VERSION, "13")
        .header(header::SEC_WEBSOCKET_KEY, handshake::client::generate_key())
        .header(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(subprotocol))
        .body(())
        .map_err(|_| ConnectError::Url)?;
    let mut config = WebSocketConfig::default();
    config.read_buffer_size = 16 * 1024;
    config.write_buffer_size = 0;
    config.max_write_buffer_size = 2 * MAX_PIECE_BYTES;
    config.max_message_size = Some(4 * MAX_PIECE_BYTES);
    config.max_frame_size = Some(4 * MAX_PIECE_BYTES);
    let (watch, asked) = (stream.watch(), Instant::now());
    match tokio_tungstenite::client_async_with_config(request, stream, Some(config)).await {
        Ok((socket, answer)) => {
            let early = answer.headers().get(EARLY_BYTES).and_then(|bytes| bytes.to_str().ok()?.parse().ok());
            let round_trip = asked.elapsed().min(one);
            Ok(Opened { socket, early: early.unwrap_or_default(), round_trip, watch })
        }
        Err(WsError::Http(answer)) => Err(refusal(&answer)),
        Err(_) => Err(ConnectError::Unreachable),
    }
}

fn refusal(answer: &http::Response<Option<Vec<u8>>>) -> ConnectError {
    let body = answer.body().as_deref().unwrap_or_default();
    let code = crate::wire::code_of(&crate::http::error_of(answer.status(), body));
    ConnectError::Refused { code, retry_after_s: crate::http::retry_after(answer.headers()) }
}

/// One binary message.
pub(crate) const fn binary(bytes: Bytes) -> Message {
    Message::Binary(bytes)
}
