//! A contact over plain HTTP/3 requests: what happens is told on one, and each chunk is asked for by
//! another, the next one before it begins.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::{Buf as _, Bytes};
use http::{Request, StatusCode, header};
use waystation_client::session::Session;
use waystation_proto::{ChunkRef, Media};

use super::follower::{Follower, Published, key};
use super::wire::Frames;
use crate::Failure;
use crate::link::{H3Connection, ReceiveHalf};
use crate::rig::Rig;

const BROKEN: Failure = Failure::Wire("a contact's connection broke");
/// How long the relay shall wait for a chunk to begin, in seconds: the most it grants.
const WAIT: &str = "wait=120";

/// A contact that follows the first stream of a session, which is of pictures.
pub(super) struct Asking {
    connection: H3Connection,
    session: Session,
    bearer: String,
    control: ReceiveHalf,
    frames: Frames,
    /// Of what is told: no chunk comes that way.
    told: Follower,
    asked: VecDeque<Asked>,
    next: u64,
}

/// A request that is not over.
struct Asked {
    index: u64,
    answer: ReceiveHalf,
    begun: bool,
}

enum Came {
    Told(Bytes),
    Begun,
    Nothing,
    Bytes(Bytes),
    Whole,
}

impl Asking {
    /// Subscribes, and asks for the first chunk.
    pub(super) async fn open(rig: &Rig, session: &Session, token: &str) -> Result<Self, Failure> {
        let mut connection = H3Connection::connect(rig).await?;
        let bearer = format!("Bearer {token}");
        let request = Request::builder().header(header::AUTHORIZATION, &bearer);
        let request = request.header("waystation-watch", "from=\"live\", pieces=?0");
        let (answer, control) = connection.get("/watch", request).await?;
        if !answer.status().is_success() {
            return Err(Failure::Wire("the relay refused a contact"));
        }
        let told = Follower::new(Arc::new(Published::default()), false);
        let session = session.clone();
        let frames = Frames::default();
        Ok(Self { connection, session, bearer, control, frames, told, asked: VecDeque::new(), next: 1 })
    }

    /// Takes what is there. Returns whether the subscription goes on.
    pub(super) async fn step(&mut self, follower: &mut Follower) -> Result<bool, Failure> {
        if self.asked.iter().all(|asked| asked.begun) {
            self.ask().await?;
        }
        let first = self.asked.front_mut().ok_or(BROKEN)?;
        let index = first.index;
        let came = tokio::select! {
            told = data(&mut self.control) => Came::Told(told?.ok_or(BROKEN)?),
            came = first.next() => came?,
        };
        match came {
            Came::Told(bytes) => {
                let on = self.frames.take(&bytes, &mut self.told)?;
                if self.told.accepted() {
                    follower.accept();
                }
                return Ok(on);
            }
            Came::Begun => {
                follower.begin(index, key(Media::Video, index));
            }
            // It did not begin in time: it is asked for again.
            Came::Nothing => {
                self.asked.pop_front();
                self.next = index;
            }
            Came::Bytes(bytes) => follower.bytes(index, &bytes),
            Came::Whole => {
                follower.end(index);
                self.asked.pop_front();
            }
        }
        Ok(true)
    }

    async fn ask(&mut self) -> Result<(), Failure> {
        let stream = &self.session.streams.first().ok_or(Failure::Wire("a session without a stream"))?.stream;
        let chunk = ChunkRef::of(&self.session.incident, stream, self.next);
        let request = Request::builder().header(header::AUTHORIZATION, &self.bearer).header("prefer", WAIT);
        let answer = self.connection.ask(&format!("/chunks/{chunk}"), request).await?;
        self.asked.push_back(Asked { index: self.next, answer, begun: false });
        self.next += 1;
        Ok(())
    }
}

impl Asked {
    async fn next(&mut self) -> Result<Came, Failure> {
        if self.begun {
            return Ok(data(&mut self.answer).await?.map_or(Came::Whole, Came::Bytes));
        }
        let answer = self.answer.recv_response().await.map_err(|_| BROKEN)?;
        if answer.status() == StatusCode::NOT_FOUND {
            return Ok(Came::Nothing);
        }
        if !answer.status().is_success() {
            return Err(Failure::Wire("the relay refused a chunk"));
        }
        self.begun = true;
        Ok(Came::Begun)
    }
}

/// The next bytes of an answer; `None` at its end.
async fn data(answer: &mut ReceiveHalf) -> Result<Option<Bytes>, Failure> {
    let data = answer.recv_data().await.map_err(|_| BROKEN)?;
    Ok(data.map(|mut data| data.copy_to_bytes(data.remaining())))
}
