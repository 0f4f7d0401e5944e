//! One contact on a connection of its own.

use std::io::Write as _;
use std::sync::Arc;
use std::time::Instant;

use bytes::{Buf as _, Bytes};
use futures_util::SinkExt as _;
use http::{Request, header};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_util::sync::CancellationToken;
use waystation_client::session::Session;
use waystation_proto::frame::{self, kind};
use waystation_proto::message::{StartAt, StartWord, Watch};
use waystation_proto::{PROTOCOL, WATCH_SUBPROTOCOL};

use super::Transport;
use super::asking::Asking;
use super::follower::{Follower, Published};
use super::session::Session as Wt;
use super::wire::{Came, Frames, Messages};
use crate::Failure;
use crate::link::{self, H3Connection, Reading, ReceiveHalf, Tls};
use crate::rig::Rig;

/// Bytes read at once.
const READ_BYTES: usize = 64 * 1024;

const BROKEN: Failure = Failure::Wire("a contact's connection broke");

/// A contact whose subscription was accepted.
pub(super) struct Contact {
    source: Source,
    follower: Follower,
}

enum Source {
    Wss(Box<Tls>, Messages),
    H3(Box<Streaming>),
    Asking(Box<Asking>),
    Wt(Box<Wt>),
}

struct Streaming {
    receive: ReceiveHalf,
    frames: Frames,
    _connection: H3Connection,
}

impl Contact {
    /// `compares`: it looks at every byte. `reading` concerns a WebSocket.
    pub(super) async fn connect(
        rig: &Rig,
        (transport, reading): (Transport, Reading),
        session: &Session,
        published: Arc<Published>,
        compares: bool,
    ) -> Result<Self, Failure> {
        let token = session.fanout_capability.as_deref().ok_or(Failure::Wire("a session without a capability"))?;
        let source = match transport {
            Transport::Wss => wss(rig, token, reading).await?,
            Transport::H3 => h3(rig, token).await?,
            Transport::H3Chunks => Source::Asking(Box::new(Asking::open(rig, session, token).await?)),
            Transport::Wt => Source::Wt(Box::new(Wt::open(rig, "/watch", &watch(token)).await?)),
        };
        let mut contact = Self { source, follower: Follower::new(published, compares) };
        let mut buffer = vec![0; 4096];
        while !contact.follower.accepted() {
            if !contact.step(&mut buffer).await? {
                return Err(Failure::Wire("the relay refused a contact"));
            }
        }
        Ok(contact)
    }

    /// The same at a pace: at most so many bytes a second of what TLS carries.
    pub(super) async fn run_slowly(mut self, rate: u32, stop: CancellationToken) -> Follower {
        let receiving = async {
            let mut buffer = vec![0; (rate / 8) as usize];
            let mut every = tokio::time::interval(std::time::Duration::from_millis(125));
            loop {
                every.tick().await;
                if !self.step(&mut buffer).await.unwrap_or(false) {
                    return;
                }
            }
        };
        stop.run_until_cancelled(receiving).await;
        self.follower
    }

    /// Reads nothing until it is told to stop.
    pub(super) async fn stand_still(self, stop: CancellationToken) {
        stop.cancelled().await;
    }

    /// Receives until it is told to stop, or the relay ends it. Returns what came whole.
    pub(super) async fn run(mut self, stop: CancellationToken) -> Vec<(u64, Instant)> {
        let receiving = async {
            let mut buffer = vec![0; READ_BYTES];
            loop {
                match self.step(&mut buffer).await {
                    Ok(true) => {}
                    Ok(false) => return,
                    Err(failure) => {
                        let _ = writeln!(std::io::stderr().lock(), "a contact ended: {failure}");
                        return;
                    }
                }
            }
        };
        // What is missing in the end is counted as lost, whatever ended it.
        stop.run_until_cancelled(receiving).await;
        self.follower.into_delivered()
    }

    /// Takes what is there. Returns whether the subscription goes on.
    async fn step(&mut self, buffer: &mut [u8]) -> Result<bool, Failure> {
        match &mut self.source {
            Source::Wss(stream, messages) => {
                let read = stream.read(buffer).await.map_err(|_| BROKEN)?;
                match messages.take(&buffer[..read], &mut self.follower)? {
                    Came::End => Ok(false),
                    Came::More => Ok(read > 0),
                    Came::Ping(payload) => {
                        stream.write_all(&masked(Frame::pong(payload))?).await.map_err(|_| BROKEN)?;
                        stream.flush().await.map_err(|_| BROKEN)?;
                        Ok(true)
                    }
                }
            }
            Source::H3(streaming) => {
                let Streaming { receive, frames, .. } = &mut **streaming;
                let mut data = receive.recv_data().await.map_err(|_| BROKEN)?.ok_or(BROKEN)?;
                while data.has_remaining() {
                    let bytes: Bytes = data.copy_to_bytes(data.chunk().len());
                    if !frames.take(&bytes, &mut self.follower)? {
                        return Ok(false);
                    }
                }
                Ok(true)
            }
            Source::Asking(asking) => asking.step(&mut self.follower).await,
            Source::Wt(session) => session.step(buffer, &mut self.follower).await,
        }
    }
}

/// A client's frame is masked; with zeros it is as it was.
fn masked(mut frame: Frame) -> Result<Vec<u8>, Failure> {
    frame.header_mut().mask = Some([0; 4]);
    let mut out = Vec::new();
    frame.format(&mut out).map_err(|_| BROKEN)?;
    Ok(out)
}

/// What it asks for.
fn watch(token: &str) -> Bytes {
    let from = Some(StartAt::Word(StartWord::Live));
    let watch = Watch { protocol: PROTOCOL, capability: token.to_owned(), lanes: None, from, cursor: None };
    frame::encode_json(kind::WATCH, &watch)
}

async fn wss(rig: &Rig, token: &str, reading: Reading) -> Result<Source, Failure> {
    let mut socket = link::open_ws(rig, "/watch", WATCH_SUBPROTOCOL, reading).await?;
    socket.send(link::binary(watch(token))).await.map_err(|_| BROKEN)?;
    // Nothing was read since the upgrade: what comes next is read here.
    Ok(Source::Wss(Box::new(socket.into_inner()), Messages::default()))
}

async fn h3(rig: &Rig, token: &str) -> Result<Source, Failure> {
    let mut connection = H3Connection::connect(rig).await?;
    let request = Request::builder().header(header::AUTHORIZATION, format!("Bearer {token}"));
    let request = request.header("waystation-watch", "from=\"live\"");
    let (answer, receive) = connection.get("/watch", request).await?;
    if !answer.status().is_success() {
        return Err(Failure::Wire("the relay refused a contact"));
    }
    Ok(Source::H3(Box::new(Streaming { receive, frames: Frames::default(), _connection: connection })))
}
