//! The capture client: a recording's chunks, from the moment they are cut until the core has
//! confirmed them.
//!
//! [`Capture`] is a handle to a task of its own, so recording never waits for the network. Each
//! chunk is sealed once and kept until it is confirmed; the order is that of mercy
//! ([`queue`]); several chunks are on their way at once, and on a WebSocket their pieces are
//! interleaved ([`plan`]). Connections come and go below; capabilities and streams are renewed
//! ahead of their end ([`lane`]).

mod book;
mod bundle;
mod control;
mod ear;
mod engine;
mod event;
mod h3;
pub mod lane;
mod link;
mod native;
pub mod plan;
pub mod policy;
mod put;
pub mod queue;
mod rate;
mod seal;
mod store;
mod wallet;
mod ws;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio_util::task::AbortOnDropHandle;
use waystation_proto::id::{GroupId, IncidentId};
use waystation_proto::{Media, Variant};
use zeroize::Zeroizing;

use crate::authority::Authority;
use crate::connect::{Endpoint, Transport};
use crate::keys::{ClientKey, GroupKey};

pub use event::{Event, Label, Summary};
pub(crate) use seal::lane_seq;

/// Events that wait for their taker at most; later ones are counted and dropped.
const EVENTS: usize = 4096;
/// Commands that wait for the session's task.
const COMMANDS: usize = 64;

/// A lane of the recording.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LaneSpec {
    /// Its variant; one lane for each.
    pub variant: Variant,
    /// Its media type.
    pub media: Media,
}

/// What a session needs to know.
#[derive(Debug, Clone)]
pub struct Config {
    /// The relay.
    pub relay: Endpoint,
    /// How to talk to it.
    pub transport: Transport,
    /// Seals the chunks.
    pub group_key: GroupKey,
    /// The incident.
    pub incident: IncidentId,
    /// The capture group.
    pub group: GroupId,
    /// The lanes, in any order.
    pub lanes: Vec<LaneSpec>,
    /// Signs offers; needed if the capabilities are bound to it (`cnf`).
    pub client_key: Option<ClientKey>,
    /// Directory for sealed bytes that wait; none: in memory, at most 512 MiB.
    pub spool: Option<PathBuf>,
    /// Seconds that the relay may take before it answers a `PUT` (`Prefer: wait`).
    pub wait_s: u64,
}

/// Why a chunk was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChunkError {
    /// The session has no such lane.
    #[error("the session has no such lane")]
    NoLane,
    /// The chunk is empty, or its end precedes its start.
    #[error("the chunk is empty, or ends before it starts")]
    Invalid,
    /// No more can be kept: memory or spool are full of unconfirmed chunks.
    #[error("too much waits unconfirmed")]
    Full,
    /// The session is over.
    #[error("the session is over")]
    Over,
}

/// A plaintext chunk on its way into the session. Wiped when dropped.
struct Cut {
    variant: Variant,
    plaintext: Zeroizing<Vec<u8>>,
    started_ms: i64,
    ended_ms: i64,
}

enum Command {
    Chunk(Cut, oneshot::Sender<Result<u64, ChunkError>>),
    Finish(Duration, String, oneshot::Sender<Summary>),
}

/// A capture session. Dropping it ends the session where it is, without `END`.
#[derive(Debug)]
pub struct Capture {
    commands: mpsc::Sender<Command>,
    _task: AbortOnDropHandle<()>,
}

impl Capture {
    /// Starts a session. It works without relay and core at first: chunks wait. Events come out
    /// of the second value; they are dropped and counted while nobody takes them.
    ///
    /// # Errors
    /// The spool directory can't be made.
    pub async fn start(
        config: Config,
        authority: Arc<dyn Authority>,
    ) -> std::io::Result<(Self, mpsc::Receiver<Event>)> {
        let (commands, inbox) = mpsc::channel(COMMANDS);
        let (events, out) = mpsc::channel(EVENTS);
        let store = store::Store::new(config.spool.clone()).await?;
        let engine = engine::Engine::new(config, authority, store, inbox, events);
        let task = AbortOnDropHandle::new(tokio::spawn(engine.run()));
        Ok((Self { commands, _task: task }, out))
    }

    /// Takes a chunk as it is cut. Times are milliseconds since the Unix epoch. Returns the
    /// chunk's running number in its lane, from 0, as soon as it is kept.
    ///
    /// # Errors
    /// [`ChunkError`]
    pub async fn chunk(
        &self,
        variant: Variant,
        plaintext: Vec<u8>,
        started_ms: i64,
        ended_ms: i64,
    ) -> Result<u64, ChunkError> {
        let plaintext = Zeroizing::new(plaintext);
        if plaintext.is_empty() || ended_ms < started_ms {
            return Err(ChunkError::Invalid);
        }
        let (reply, answer) = oneshot::channel();
        let cut = Cut { variant, plaintext, started_ms, ended_ms };
        self.commands.send(Command::Chunk(cut, reply)).await.map_err(|_| ChunkError::Over)?;
        answer.await.map_err(|_| ChunkError::Over)?
    }

    /// Ends the session: waits until every chunk is confirmed, rejected, expired or unsettled,
    /// or until `limit` is over; then says `END` and closes. `reason` is advice to the relay
    /// ("stopped", "battery").
    pub async fn finish(self, limit: Duration, reason: &str) -> Summary {
        let (reply, answer) = oneshot::channel();
        if self.commands.send(Command::Finish(limit, reason.into(), reply)).await.is_err() {
            return Summary::default();
        }
        answer.await.unwrap_or_default()
    }
}
