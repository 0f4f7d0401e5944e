//! The contact: receives the near-live lanes of a recording while they arrive, checks and opens
//! every chunk, and says of each what the core said.
//!
//! [`Watch`] is a handle to a task that keeps the subscription: it comes back with the last cursor
//! after every break, and renews its capability ahead of its end. Whoever takes the events too
//! slowly slows the subscription, never the recording.

mod ahead;
mod asker;
pub mod assembly;
mod event;
mod plan;
mod source;
mod speech;
mod table;
mod task;

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;
use waystation_proto::Variant;
use waystation_proto::id::IncidentId;
use waystation_proto::message::StartWord;

use crate::authority::Authority;
use crate::connect::{Endpoint, Transport};
use crate::keys::GroupKey;

pub use event::{Bad, Event, Label, Whole};

/// Events that wait for their taker before the subscription itself waits.
const EVENTS: usize = 256;

/// What a contact needs to know.
#[derive(Debug, Clone)]
pub struct Config {
    /// The relay.
    pub relay: Endpoint,
    /// How to talk to it.
    pub transport: Transport,
    /// Opens the chunks.
    pub group_key: GroupKey,
    /// The incident: every envelope must name it.
    pub incident: IncidentId,
    /// Which variants; none: every lane the capability reaches.
    pub lanes: Option<Vec<Variant>>,
    /// Where to begin.
    pub from: StartWord,
    /// Largest chunk taken, in bytes.
    pub max_chunk: u64,
}

/// Largest chunk taken unless said otherwise, in bytes.
pub const MAX_CHUNK: u64 = 8 << 20;

/// A subscription. Dropping it ends it.
#[derive(Debug)]
pub struct Watch {
    events: mpsc::Receiver<Event>,
    _task: AbortOnDropHandle<()>,
}

impl Watch {
    /// Starts a subscription; capabilities come from `authority`.
    #[must_use]
    pub fn start(config: Config, authority: Arc<dyn Authority>) -> Self {
        let (events, out) = mpsc::channel(EVENTS);
        let task = AbortOnDropHandle::new(tokio::spawn(task::run(config, authority, events)));
        Self { events: out, _task: task }
    }

    /// The next event; none when the subscription is over for good, which [`Event::Ending`] says
    /// before.
    pub async fn next(&mut self) -> Option<Event> {
        self.events.recv().await
    }
}
