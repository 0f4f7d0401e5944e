//! The capture client: a recording's chunks, from the moment they are cut until the core has confirmed them.
//!
//! [`Capture`] is a handle to a task of its own, so recording never waits for the network. It
//! begins with nothing but lanes and keys: each chunk is kept in a durable queue (`store`) as it is
//! cut, sealed once when the recording has its names and streams ([`lane`]), and kept until it is
//! confirmed. The order is that of mercy ([`queue`]), the manifest last (`manifest`); what fails is
//! tried again by fixed rules (`retry`, `book`). Connections come and go below; capabilities and
//! streams are renewed ahead of their end.

mod book;
mod bundle;
mod control;
mod ear;
mod engine;
mod event;
mod h3;
pub mod lane;
mod link;
pub mod local;
mod manifest;
mod native;
pub mod plan;
pub mod policy;
mod put;
pub mod queue;
mod rate;
mod retry;
mod seal;
mod sign;
pub mod status;
mod store;
mod wallet;
mod ws;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::task::AbortOnDropHandle;
use waystation_proto::{Media, Variant};
use zeroize::Zeroizing;

use self::local::{LocalKey, LocalKeys};
use self::status::{Item, Network, SessionState, Status};
use self::store::disk::{Directory, Memory};
use self::store::{Store, record};
use crate::authority::Authority;
use crate::clock;
use crate::connect::{Endpoint, Transport};
use crate::keys::{ClientKey, GroupKey, KeyError};

pub use event::{Event, Label, Path, Summary};
pub(crate) use seal::lane_seq;
pub use store::{MAX_QUEUE_BYTES, OpenError};

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

/// Where a session's queue is.
#[derive(Clone)]
pub enum Storage {
    /// In memory, at most 512 MiB; gone with the process.
    Memory,
    /// In a directory, for one recording: what an earlier run left there goes on.
    Directory {
        /// The directory; made if it is not there.
        path: PathBuf,
        /// Where the key comes from under which it rests.
        keys: Arc<dyn LocalKeys>,
        /// Bytes that chunks may take there; [`MAX_QUEUE_BYTES`] is a choice.
        max_bytes: u64,
    },
}

/// What a session needs to know. What the recording is called comes from its [`Authority`].
#[derive(Debug, Clone)]
pub struct Config {
    /// The relays, nearest first: the next one is tried when one can't be reached.
    pub relays: Vec<Endpoint>,
    /// How to talk to them.
    pub transport: Transport,
    /// Seals the chunks.
    pub group_key: GroupKey,
    /// The lanes, in any order; those of an earlier run are there anyway.
    pub lanes: Vec<LaneSpec>,
    /// Signs offers; needed if the capabilities are bound to it (`cnf`).
    pub client_key: Option<ClientKey>,
    /// Where chunks wait.
    pub storage: Storage,
    /// Whether the recording ends with a manifest, where the core gives its lane a stream.
    pub manifest: bool,
    /// Seconds that the relay may take before it answers a `PUT` (`Prefer: wait`).
    pub wait_s: u64,
}

/// Why a session can't begin. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The queue can't be opened.
    #[error("{0}")]
    Queue(#[from] OpenError),
    /// There is no local key.
    #[error("{0}")]
    Key(#[from] KeyError),
    /// The queue's session is over.
    #[error("the session is {}", .0.session)]
    Over(Box<Status>),
    /// No relay is named.
    #[error("no relay is named")]
    NoRelay,
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
    /// No more can be kept: the queue is full of unconfirmed chunks.
    #[error("too much waits unconfirmed")]
    Full,
    /// The disk failed or is full; a later chunk may be kept.
    #[error("the disk did not keep it")]
    Disk,
    /// The session is over, or was finished.
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
    Network(Network),
    Pause,
    Resume,
    Retry,
    Cancel { discard: bool, done: oneshot::Sender<()> },
    Items(oneshot::Sender<Vec<Item>>),
    Close(oneshot::Sender<()>),
}

/// A capture session. Dropping it ends the session where it is, without `END`; a queue in a
/// directory can be gone on with.
#[derive(Debug)]
pub struct Capture {
    control: Control,
    next: Vec<(Variant, u64)>,
    finished: bool,
    _task: AbortOnDropHandle<()>,
}

/// What can be asked of a running session by whoever does not record: cheap to clone.
#[derive(Debug, Clone)]
pub struct Control {
    commands: mpsc::Sender<Command>,
    status: watch::Receiver<Status>,
}

impl Capture {
    /// Starts a session, or goes on with the one in the directory: then chunks that wait there are
    /// uploaded, and lanes are numbered on. It works without relay and core at first: chunks wait.
    /// Events come out of the second value; they are dropped and counted while nobody takes them.
    ///
    /// # Errors
    /// [`StartError`]
    pub async fn start(
        config: Config,
        authority: Arc<dyn Authority>,
    ) -> Result<(Self, mpsc::Receiver<Event>), StartError> {
        if config.relays.is_empty() {
            return Err(StartError::NoRelay);
        }
        let (storage, check) = (config.storage.clone(), config.group_key.check().ok_or(KeyError::Refused)?);
        let opened = tokio::task::spawn_blocking(move || storage.open(&check)).await;
        let store = opened.map_err(|_| std::io::Error::other("the process is ending")).map_err(OpenError::Disk)??;
        if store.state().session.is_over() {
            return Err(StartError::Over(Box::new(engine::status_of(store.state(), true))));
        }
        let (commands, inbox) = mpsc::channel(COMMANDS);
        let (events, out) = mpsc::channel(EVENTS);
        let (shows, status) = watch::channel(engine::status_of(store.state(), true));
        let next = store.state().lanes.iter().map(|lane| (lane.variant, lane.next_seq)).collect();
        let finished = store.state().closing;
        let engine = engine::Engine::new(config, authority, store, inbox, events, shows);
        let task = AbortOnDropHandle::new(tokio::spawn(engine.run()));
        Ok((Self { control: Control { commands, status }, next, finished, _task: task }, out))
    }

    /// How many chunks earlier runs cut for a lane: the next one's running number when the session
    /// started.
    #[must_use]
    pub fn next_seq(&self, variant: Variant) -> u64 {
        self.next.iter().find(|(lane, _)| *lane == variant).map_or(0, |(_, next)| *next)
    }

    /// Whether an earlier run ended the recording: it takes no further chunks, and is to be
    /// finished again.
    #[must_use]
    pub const fn was_finished(&self) -> bool {
        self.finished
    }

    /// For whoever does not record.
    #[must_use]
    pub fn control(&self) -> Control {
        self.control.clone()
    }

    /// Takes a chunk as it is cut. Times are milliseconds since the Unix epoch. Returns the
    /// chunk's running number in its lane, from 0, as soon as it is kept: in a directory it then
    /// outlives the process and a power cut.
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
        let cut = Cut { variant, plaintext, started_ms, ended_ms };
        self.control.ask(|reply| Command::Chunk(cut, reply)).await.unwrap_or(Err(ChunkError::Over))
    }

    /// Ends the recording: nothing more is cut but the manifest. Waits until every chunk is
    /// confirmed, rejected or unsettled, or until `limit` is over; then says `END` and closes.
    /// What is not confirmed then stays in the queue's directory, to be gone on with. `reason` is
    /// advice to the relay ("stopped", "battery").
    pub async fn finish(self, limit: Duration, reason: &str) -> Summary {
        self.control.ask(|reply| Command::Finish(limit, reason.into(), reply)).await.unwrap_or_default()
    }

    /// Lets go of the queue without ending the recording, and without `END`: an app that is
    /// suspended goes on later.
    pub async fn close(self) {
        self.control.ask(Command::Close).await;
    }
}

impl Control {
    /// The session at a glance, as it was within the last tenth of a second or so.
    #[must_use]
    pub fn status(&self) -> Status {
        *self.status.borrow()
    }

    /// The same, to wait for changes of; it ends with the session.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }

    /// The network or battery changed: to be called by the platform. Any change to a usable
    /// network tries everything again at once, also what failed.
    pub async fn network(&self, network: Network) {
        self.tell(Command::Network(network)).await;
    }

    /// Stops sending; recording goes on, and so does the pause over a restart.
    pub async fn pause(&self) {
        self.tell(Command::Pause).await;
    }

    /// Sends again.
    pub async fn resume(&self) {
        self.tell(Command::Resume).await;
    }

    /// Tries again what failed.
    pub async fn retry(&self) {
        self.tell(Command::Retry).await;
    }

    /// Stops for good, and tells the relay so. Deletes nothing elsewhere; here only if `discard`.
    pub async fn cancel(&self, discard: bool) {
        self.ask(|done| Command::Cancel { discard, done }).await;
    }

    /// Every chunk that is not confirmed.
    pub async fn items(&self) -> Vec<Item> {
        self.ask(Command::Items).await.unwrap_or_default()
    }

    async fn tell(&self, command: Command) {
        // A session that is over has nothing to change.
        let _ = self.commands.send(command).await;
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.ok()?;
        answer.await.ok()
    }
}

impl Storage {
    /// A directory with a key file.
    #[must_use]
    pub fn directory(path: impl Into<PathBuf>, keys: Arc<dyn LocalKeys>) -> Self {
        Self::Directory { path: path.into(), keys, max_bytes: MAX_QUEUE_BYTES }
    }

    fn open(&self, group_key: &str) -> Result<Store, StartError> {
        let no_dice = || OpenError::Disk(std::io::Error::other("no randomness"));
        match self {
            Self::Memory => {
                let key = LocalKey::random().ok_or_else(no_dice)?;
                let disk = Box::new(Memory::default());
                Ok(Store::open(disk, key, Box::new(clock::fill), store::MAX_MEMORY_BYTES, group_key)?)
            }
            Self::Directory { path, keys, max_bytes } => {
                let disk = Directory::take(path, store::LOCK_FILE).map_err(|error| match error.kind() {
                    std::io::ErrorKind::WouldBlock => OpenError::Busy,
                    _ => OpenError::Disk(error),
                })?;
                let key = keys.local_key(!path.join(store::QUEUE_FILE).exists())?;
                Ok(Store::open(Box::new(disk), key, Box::new(clock::fill), *max_bytes, group_key)?)
            }
        }
    }

    /// What a queue's directory says of itself, also while a session has it. None if there is no
    /// queue. Nothing in it is changed.
    ///
    /// # Errors
    /// [`StartError`]
    pub fn status(&self) -> Result<Option<Status>, StartError> {
        let Self::Directory { path, keys, .. } = self else { return Ok(None) };
        if !path.join(store::QUEUE_FILE).exists() {
            return Ok(None);
        }
        let bytes = std::fs::read(path.join(store::QUEUE_FILE)).map_err(OpenError::Disk)?;
        Ok(Some(engine::status_of(&store::read(&keys.local_key(false)?, &bytes)?, true)))
    }

    /// Changes the session in a queue's directory that no session has: pauses, resumes or cancels
    /// it. True if that could be done from where it was.
    ///
    /// # Errors
    /// [`StartError`]
    pub fn step(&self, step: status::Step, discard: bool) -> Result<bool, StartError> {
        let Self::Directory { path, keys, max_bytes } = self else { return Ok(false) };
        if !path.join(store::QUEUE_FILE).exists() {
            return Ok(false);
        }
        let disk = Directory::take(path, store::LOCK_FILE).map_err(|error| match error.kind() {
            std::io::ErrorKind::WouldBlock => OpenError::Busy,
            _ => OpenError::Disk(error),
        })?;
        let bytes = std::fs::read(path.join(store::QUEUE_FILE)).map_err(OpenError::Disk)?;
        let key = keys.local_key(false)?;
        let before = store::read(&key, &bytes)?;
        let Some(state) = before.session.after(step) else { return Ok(false) };
        let mut store = Store::open(Box::new(disk), key, Box::new(clock::fill), *max_bytes, &before.group_key)?;
        store.add(record::Record::Session { state });
        let failed = |_| OpenError::Disk(std::io::Error::other("the queue's file can't be written"));
        store.commit().map_err(failed)?;
        if discard && state == SessionState::Canceled {
            store.discard().map_err(failed)?;
        }
        Ok(true)
    }
}

impl std::fmt::Debug for Storage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Memory => "Memory",
            Self::Directory { .. } => "Directory(…)",
        })
    }
}
