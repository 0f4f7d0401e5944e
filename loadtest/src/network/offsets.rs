//! How much of each chunk the relay has, as it tells whoever may upload: `HEAD`, over one
//! connection to its listener for proxies, beside it.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{Request, header};
use http_body_util::Empty;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use waystation_client::session::Session;
use waystation_proto::Variant;
use waystation_proto::id::ChunkRef;

use crate::Failure;

/// Chunks that are not whole and are asked about: more are never on their way at once.
const UNFINISHED: usize = 16;

const BROKEN: Failure = Failure::Wire("the relay did not tell its offsets");

/// A connection that asks.
pub(super) struct Offsets {
    sender: SendRequest<Empty<Bytes>>,
    authority: String,
    token: String,
    refs: Vec<ChunkRef>,
    /// Bytes of each chunk, sealed, that is whole.
    whole: Vec<Option<u64>>,
}

impl Offsets {
    /// Of the first `chunks` of a lane.
    pub(super) async fn of(
        stream: TcpStream,
        at: SocketAddr,
        session: &Session,
        lane: Variant,
        chunks: u64,
    ) -> Result<Self, Failure> {
        let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(|_| BROKEN)?;
        tokio::spawn(connection);
        let stream = session.streams.iter().find(|stream| stream.variant == lane).ok_or(BROKEN)?;
        let refs = (1..=chunks).map(|index| ChunkRef::of(&session.incident, &stream.stream, index));
        Ok(Self {
            sender,
            authority: at.to_string(),
            token: crate::upload::upload_capability(session)?,
            refs: refs.collect(),
            whole: vec![None; chunks as usize],
        })
    }

    /// Bytes of all chunks together. Chunks are brought in their order, so that only the first ones
    /// that are not whole are asked about.
    pub(super) async fn sum(&mut self) -> Result<u64, Failure> {
        let (mut sum, mut unfinished) = (0, 0);
        for at in 0..self.refs.len() {
            if let Some(whole) = self.whole[at] {
                sum += whole;
                continue;
            }
            if unfinished == UNFINISHED {
                break;
            }
            sum += self.ask(at).await?;
            unfinished += usize::from(self.whole[at].is_none());
        }
        Ok(sum)
    }

    async fn ask(&mut self, at: usize) -> Result<u64, Failure> {
        let request = Request::head(format!("/chunks/{}", self.refs[at]))
            .header(header::HOST, &self.authority)
            .header(header::AUTHORIZATION, format!("Bearer {}", self.token))
            .body(Empty::new())
            .map_err(|_| BROKEN)?;
        self.sender.ready().await.map_err(|_| BROKEN)?;
        let answer = self.sender.send_request(request).await.map_err(|_| BROKEN)?;
        let text = |name: &str| answer.headers().get(name).and_then(|value| value.to_str().ok());
        // Nothing of it has come.
        let Some(offset) = text("upload-offset").and_then(|offset| offset.parse().ok()) else { return Ok(0) };
        if text("waystation-state").is_some_and(|state| state != "receiving") {
            self.whole[at] = Some(offset);
        }
        Ok(offset)
    }
}
