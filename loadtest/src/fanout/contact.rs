//! One contact on a connection of its own.

use std::sync::Arc;
use std::time::Instant;

use bytes::Buf as _;
use futures_util::{SinkExt as _, StreamExt as _};
use http::{Request, header};
use tokio_tungstenite::tungstenite::Message;
use tokio_util::sync::CancellationToken;
use waystation_proto::frame::{self, Decoder, Frame, kind};
use waystation_proto::message::{StartAt, StartWord, Watch};
use waystation_proto::{PROTOCOL, WATCH_SUBPROTOCOL};

use super::Transport;
use super::follower::{Follower, Published};
use crate::Failure;
use crate::link::{self, H3Connection, ReceiveHalf, Socket};
use crate::rig::Rig;

const BROKEN: Failure = Failure::Wire("a contact's connection broke");

/// A contact whose subscription was accepted.
pub(super) struct Contact {
    source: Source,
    follower: Follower,
}

enum Source {
    Wss(Box<Socket>),
    H3(Box<Streaming>),
}

struct Streaming {
    receive: ReceiveHalf,
    decoder: Decoder,
    _connection: H3Connection,
}

impl Contact {
    pub(super) async fn connect(
        rig: &Rig,
        transport: Transport,
        token: &str,
        published: Arc<Published>,
    ) -> Result<Self, Failure> {
        let source = match transport {
            Transport::Wss => wss(rig, token).await?,
            Transport::H3 => h3(rig, token).await?,
        };
        let mut contact = Self { source, follower: Follower::new(published) };
        loop {
            let frames = contact.source.next().await?;
            let accepted = frames.iter().any(|frame| frame.kind == kind::WATCHING);
            if !contact.take(frames)? {
                return Err(Failure::Wire("the relay refused a contact"));
            }
            if accepted {
                return Ok(contact);
            }
        }
    }

    /// Receives until it is told to stop, or the relay ends it. Returns what came whole.
    pub(super) async fn run(mut self, stop: CancellationToken) -> Vec<(u64, Instant)> {
        let receiving = async {
            while let Ok(frames) = self.source.next().await {
                if !self.take(frames).unwrap_or(false) {
                    return;
                }
            }
        };
        // What is missing in the end is counted as lost, whatever ended it.
        stop.run_until_cancelled(receiving).await;
        self.follower.into_delivered()
    }

    fn take(&mut self, frames: Vec<Frame>) -> Result<bool, Failure> {
        for frame in frames {
            if !self.follower.frame(frame)? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

impl Source {
    async fn next(&mut self) -> Result<Vec<Frame>, Failure> {
        match self {
            Self::Wss(socket) => loop {
                match socket.next().await {
                    Some(Ok(Message::Binary(bytes))) => return frame::split_message(bytes).map_err(|_| BROKEN),
                    Some(Ok(Message::Close(_)) | Err(_)) | None => return Err(BROKEN),
                    Some(Ok(_)) => {}
                }
            },
            Self::H3(streaming) => {
                let Streaming { receive, decoder, .. } = &mut **streaming;
                let mut data = receive.recv_data().await.map_err(|_| BROKEN)?.ok_or(BROKEN)?;
                decoder.push(&data.copy_to_bytes(data.remaining()));
                let mut frames = Vec::new();
                while let Some(frame) = decoder.next_frame().map_err(|_| BROKEN)? {
                    frames.push(frame);
                }
                Ok(frames)
            }
        }
    }
}

async fn wss(rig: &Rig, token: &str) -> Result<Source, Failure> {
    let mut socket = link::open_ws(rig, "/watch", WATCH_SUBPROTOCOL).await?;
    let watch = Watch {
        protocol: PROTOCOL,
        capability: token.to_owned(),
        lanes: None,
        from: Some(StartAt::Word(StartWord::Live)),
        cursor: None,
    };
    socket.send(link::binary(frame::encode_json(kind::WATCH, &watch))).await.map_err(|_| BROKEN)?;
    Ok(Source::Wss(Box::new(socket)))
}

async fn h3(rig: &Rig, token: &str) -> Result<Source, Failure> {
    let mut connection = H3Connection::connect(rig).await?;
    let request = Request::builder().header(header::AUTHORIZATION, format!("Bearer {token}"));
    let request = request.header("waystation-watch", "from=\"live\"");
    let (answer, receive) = connection.get("/watch", request).await?;
    if !answer.status().is_success() {
        return Err(Failure::Wire("the relay refused a contact"));
    }
    Ok(Source::H3(Box::new(Streaming { receive, decoder: Decoder::default(), _connection: connection })))
}
