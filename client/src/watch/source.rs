//! One connection of a subscription, whichever transport: frames come in, a renewed capability
//! may go out.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use http::{HeaderValue, Request, header};
use http_body_util::BodyExt as _;
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Message;
use waystation_proto::frame::{self, Decoder, Frame, kind};
use waystation_proto::id::IncidentId;
use waystation_proto::message::{self, StartAt, StartWord};
use waystation_proto::{PROTOCOL, Variant, WATCH_SUBPROTOCOL};

use super::ahead::Ahead;
use crate::connect::{ConnectError, Endpoint, Transport};
use crate::h3link::{H3, H3Body, WATCH_KEEP_ALIVE};
use crate::http::{self as http_wire, Broken, Client, Progress, Upload};
use crate::token::Token;
use crate::wsio::{self, GREETING_LIMIT, PING_AFTER, SILENCE_LIMIT, Socket};

/// What a contact asks for, in a header.
const WATCH: &str = "waystation-watch";

/// What to ask for.
pub(crate) struct Wish<'a> {
    pub(crate) token: &'a Token,
    pub(crate) incident: &'a IncidentId,
    pub(crate) lanes: Option<&'a [Variant]>,
    pub(crate) from: StartWord,
    pub(crate) cursor: Option<&'a str>,
    /// Largest chunk taken, in bytes.
    pub(crate) max_chunk: u64,
}

/// One connection.
pub(crate) enum Source {
    Ws(Box<Ws>),
    H1(Box<Streaming<hyper::body::Incoming>>),
    H3(Box<Ahead>),
}

/// How a new capability was presented to the relay.
pub(crate) enum Presented {
    /// On the connection there is.
    Taken,
    /// Not on this transport: a streaming answer takes none. It is to be opened again.
    Never,
    /// The connection is gone.
    Broken,
}

pub(crate) struct Ws {
    socket: Socket,
    frames: VecDeque<Frame>,
    heard: Instant,
}

pub(crate) struct Streaming<B> {
    body: B,
    decoder: Decoder,
}

impl Source {
    pub(crate) async fn open(transport: Transport, relay: &Endpoint, wish: &Wish<'_>) -> Result<Self, ConnectError> {
        let opening = async {
            match transport {
                Transport::Auto | Transport::Ws | Transport::WsPlain => open_ws(relay, wish).await,
                Transport::H1 => open_h1(relay, wish).await,
                Transport::H3 => open_h3(relay, wish).await,
            }
        };
        tokio::time::timeout(GREETING_LIMIT, opening).await.map_err(|_| ConnectError::Unreachable)?
    }

    /// The next frame; an error when the connection is gone. Nothing is lost when it is dropped
    /// while it waits.
    pub(crate) async fn next(&mut self) -> Result<Frame, Broken> {
        match self {
            Self::Ws(ws) => ws.next().await,
            Self::H1(streaming) => streaming.next(h1_data).await,
            Self::H3(ahead) => ahead.next().await,
        }
    }

    /// Presents a new capability.
    pub(crate) async fn renew(&mut self, token: &Token) -> Presented {
        let Self::Ws(ws) = self else { return Presented::Never };
        let body = message::Capability { capability: token.as_str().into() };
        match ws.socket.send(wsio::binary(frame::encode_json(kind::RENEW, &body))).await {
            Ok(()) => Presented::Taken,
            Err(_) => Presented::Broken,
        }
    }
}

async fn open_ws(relay: &Endpoint, wish: &Wish<'_>) -> Result<Source, ConnectError> {
    let mut socket = wsio::open(relay, "/watch", WATCH_SUBPROTOCOL, false).await?.socket;
    let watch = message::Watch {
        protocol: PROTOCOL,
        capability: wish.token.as_str().into(),
        lanes: wish.lanes.map(<[Variant]>::to_vec),
        from: Some(StartAt::Word(wish.from)),
        cursor: wish.cursor.map(Into::into),
    };
    let first = wsio::binary(frame::encode_json(kind::WATCH, &watch));
    socket.send(first).await.map_err(|_| ConnectError::Unreachable)?;
    Ok(Source::Ws(Box::new(Ws { socket, frames: VecDeque::new(), heard: Instant::now() })))
}

async fn open_h1(relay: &Endpoint, wish: &Wish<'_>) -> Result<Source, ConnectError> {
    let client = Client::new(relay);
    let upload = Upload::new(Bytes::new(), std::sync::Arc::new(Progress::default()), None);
    let (head, body) = client.open(request(wish)?, upload).await.map_err(|Broken| ConnectError::Unreachable)?;
    let mut streaming = Streaming { body, decoder: Decoder::default() };
    if !head.status.is_success() {
        return Err(refusal(head.status, &head.headers, streaming.rest(h1_data).await));
    }
    Ok(Source::H1(Box::new(streaming)))
}

async fn open_h3(relay: &Endpoint, wish: &Wish<'_>) -> Result<Source, ConnectError> {
    let connection = H3::connect(relay, WATCH_KEEP_ALIVE).await?;
    let mut request = request(wish)?;
    let bearer = request.headers().get(header::AUTHORIZATION).cloned().ok_or(ConnectError::Url)?;
    let told = request.headers().get(WATCH).and_then(|told| told.to_str().ok()).unwrap_or_default();
    let bare = HeaderValue::try_from(format!("{told}, pieces=?0")).map_err(|_| ConnectError::Url)?;
    request.headers_mut().insert(WATCH, bare);
    let (answer, body) = connection.open(request).await.map_err(|Broken| ConnectError::Unreachable)?;
    let mut streaming = Streaming { body, decoder: Decoder::default() };
    if !answer.status().is_success() {
        return Err(refusal(answer.status(), answer.headers(), streaming.rest(h3_data).await));
    }
    let ahead = Ahead::new(connection, streaming, bearer, wish.incident.clone(), wish.max_chunk);
    Ok(Source::H3(Box::new(ahead)))
}

fn refusal(status: http::StatusCode, headers: &http::HeaderMap, body: Vec<u8>) -> ConnectError {
    let code = crate::wire::code_of(&http_wire::error_of(status, &body));
    ConnectError::Refused { code, retry_after_s: http_wire::retry_after(headers) }
}

fn request(wish: &Wish<'_>) -> Result<Request<()>, ConnectError> {
    let bearer = format!("Bearer {}", wish.token.as_str());
    let mut bearer = HeaderValue::try_from(bearer).map_err(|_| ConnectError::Url)?;
    bearer.set_sensitive(true);
    Request::get("/watch")
        .header(header::AUTHORIZATION, bearer)
        .header(WATCH, write_watch(wish.lanes, wish.from, wish.cursor))
        .body(())
        .map_err(|_| ConnectError::Url)
}

/// Writes `Waystation-Watch`. A cursor that no string can carry is left out.
fn write_watch(lanes: Option<&[Variant]>, from: StartWord, cursor: Option<&str>) -> String {
    let word = match from {
        StartWord::Live => "live",
        StartWord::Oldest => "oldest",
    };
    let mut out = format!("from=\"{word}\"");
    if let Some(lanes) = lanes {
        let names: Vec<String> = lanes.iter().map(|lane| format!("\"{lane}\"")).collect();
        out.push_str(&format!(", lanes=({})", names.join(" ")));
    }
    if let Some(cursor) = cursor.filter(|cursor| cursor.bytes().all(|b| (0x20..0x7f).contains(&b))) {
        out.push_str(&format!(", cursor=\"{}\"", cursor.replace('\\', "\\\\").replace('"', "\\\"")));
    }
    out
}

impl Ws {
    async fn next(&mut self) -> Result<Frame, Broken> {
        loop {
            if let Some(frame) = self.frames.pop_front() {
                return Ok(frame);
            }
            let wait = tokio::time::timeout(Duration::from_secs(1), self.socket.next()).await;
            let Ok(message) = wait else {
                self.check_silence().await?;
                continue;
            };
            self.heard = Instant::now();
            match message {
                Some(Ok(Message::Binary(bytes))) => {
                    self.frames = frame::split_message(bytes).map_err(|_| Broken)?.into();
                }
                Some(Ok(Message::Close(_)) | Err(_)) | None => return Err(Broken),
                Some(Ok(_)) => {}
            }
        }
    }

    async fn check_silence(&mut self) -> Result<(), Broken> {
        let silent = self.heard.elapsed();
        if silent > SILENCE_LIMIT {
            return Err(Broken);
        }
        if silent > PING_AFTER {
            self.socket.send(Message::Ping(Bytes::new())).await.map_err(|_| Broken)?;
        }
        Ok(())
    }
}

impl<B> Streaming<B> {
    pub(super) async fn next(
        &mut self,
        data: impl AsyncFn(&mut B) -> Result<Option<Bytes>, Broken>,
    ) -> Result<Frame, Broken> {
        loop {
            if let Some(frame) = self.decoder.next_frame().map_err(|_| Broken)? {
                return Ok(frame);
            }
            let bytes = data(&mut self.body).await?.ok_or(Broken)?;
            self.decoder.push(&bytes);
        }
    }

    /// The body of a refusal, up to a bound.
    async fn rest(&mut self, data: impl AsyncFn(&mut B) -> Result<Option<Bytes>, Broken>) -> Vec<u8> {
        let mut out = Vec::new();
        while let Ok(Some(bytes)) = data(&mut self.body).await {
            out.extend_from_slice(&bytes);
            if out.len() > 64 * 1024 {
                break;
            }
        }
        out
    }
}

async fn h1_data(body: &mut hyper::body::Incoming) -> Result<Option<Bytes>, Broken> {
    loop {
        match body.frame().await {
            None => return Ok(None),
            Some(Err(_)) => return Err(Broken),
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
        }
    }
}

pub(super) async fn h3_data(body: &mut H3Body) -> Result<Option<Bytes>, Broken> {
    body.data().await
}

#[cfg(test)]
mod tests {
    use super::*;
    use waystation_proto::dictionary::parse_watch;

    #[test]
    fn the_watch_header_is_read_as_it_is_written() {
        let lanes = [Variant::AudioPriority, Variant::LivePreview];
        let read = parse_watch(&write_watch(Some(&lanes), StartWord::Oldest, Some("a\"b\\c"))).unwrap();
        assert_eq!(read.lanes.as_deref(), Some(&lanes[..]));
        assert_eq!(read.from, Some(StartAt::Word(StartWord::Oldest)));
        assert_eq!(read.cursor.as_deref(), Some("a\"b\\c"));
        let read = parse_watch(&write_watch(None, StartWord::Live, Some("ü"))).unwrap();
        assert_eq!((read.lanes, read.cursor), (None, None));
    }
}
