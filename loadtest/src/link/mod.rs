//! One connection that brings chunks, over any of the relay's ways in. No pooling, no resuming:
//! what breaks here is lost and fails the run.

mod h3;
mod http;
mod ws;

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use ::http::{Method, Request, StatusCode, header};
use clap::ValueEnum;
use waystation_proto::dictionary;
use waystation_proto::message::Answer;

pub use h3::{Connection as H3Connection, ReceiveHalf, quic};
pub use http::Reading;
pub use http::{Tls, get_over, plain_get, tls_to};
pub use ws::{Socket, binary, open as open_ws};

use crate::Failure;
use crate::chunks::Chunk;
use crate::rig::Rig;

/// Which way in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Transport {
    /// `PUT` over TLS and HTTP/1.1
    H1,
    /// `PUT` over TLS and HTTP/2
    H2,
    /// `PUT` over HTTP/3
    H3,
    /// `/capture` over a WebSocket and TLS
    Ws,
}

impl Transport {
    /// Its name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::H1 => "h1",
            Self::H2 => "h2",
            Self::H3 => "h3",
            Self::Ws => "ws",
        }
    }
}

/// How a chunk went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// When the connection took the last byte to send.
    pub sent: Instant,
    /// Whether the core has confirmed it.
    pub confirmed: bool,
    /// Why not: the relay's code, or the status.
    pub refusal: Option<String>,
}

/// One connection.
pub enum Link {
    /// HTTP/1.1 or 2.
    Http(http::Connection),
    /// HTTP/3.
    H3(Box<h3::Connection>),
    /// WebSocket.
    Ws(Box<ws::Capture>),
}

impl Link {
    /// Connects, and on a WebSocket presents the capability.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn connect(rig: &Rig, transport: Transport, token: &str) -> Result<Self, Failure> {
        Ok(match transport {
            Transport::H1 => Self::Http(http::Connection::h1(rig).await?),
            Transport::H2 => Self::Http(http::Connection::h2(rig).await?),
            Transport::H3 => Self::H3(Box::new(h3::Connection::connect(rig).await?)),
            Transport::Ws => Self::Ws(Box::new(ws::Capture::connect(rig, token).await?)),
        })
    }

    /// Brings a chunk, and waits for its end.
    ///
    /// # Errors
    /// [`Failure::Wire`] if the connection breaks.
    pub async fn put(&mut self, chunk: &Chunk, token: &str) -> Result<Verdict, Failure> {
        match self {
            Self::Http(connection) => connection.put(chunk, token).await,
            Self::H3(connection) => connection.put(chunk, token).await,
            Self::Ws(capture) => capture.put(chunk).await,
        }
    }
}

/// The request that brings a chunk; path alone.
fn request(chunk: &Chunk, token: &str) -> ::http::request::Builder {
    Request::builder()
        .method(Method::PUT)
        .header(header::AUTHORIZATION, format!("Bearer {token}"))
        .header(header::CONTENT_LENGTH, chunk.bytes.len())
        .header("prefer", "wait=120")
        .header("repr-digest", dictionary::write_digest(&chunk.offer.sha256))
        .header("waystation-chunk", dictionary::write_offer(&chunk.offer))
}

fn path(chunk: &Chunk) -> String {
    format!("/chunks/{}", chunk.offer.chunk_ref())
}

fn verdict(sent: Instant, status: StatusCode, body: &[u8]) -> Verdict {
    let confirmed = status == StatusCode::CREATED;
    let code = || serde_json::from_slice::<Answer>(body).ok()?.error.map(|error| error.code);
    let refusal = (!confirmed).then(|| code().unwrap_or_else(|| status.to_string()));
    Verdict { sent, confirmed, refusal }
}

/// When the last byte of a body was taken.
#[derive(Clone, Default)]
struct Sent(Arc<OnceLock<Instant>>);

impl Sent {
    fn now(&self) {
        // Only the first time counts.
        let _ = self.0.set(Instant::now());
    }

    fn at(&self) -> Instant {
        self.0.get().copied().unwrap_or_else(Instant::now)
    }
}
