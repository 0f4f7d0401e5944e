//! The near-live window and those who watch it.
//!
//! One [`Window`](crate::proto::window::Window) per capture group, behind one short lock; bytes
//! are kept once and handed out shared. Publishing waits for nobody: it takes the group's lock,
//! adds, and wakes those who watch. A contact takes the same lock to collect what is next and
//! never holds it while it waits. Locks are taken in the order groups → window → budget or names,
//! and none is held across an await.

mod bells;
mod cell;
mod group;
mod hub;
mod publication;
mod reader;
mod subscriber;
#[cfg(test)]
mod tests;
mod timer;
mod whole;

pub use crate::proto::window::ChunkMeta;
pub use group::GroupKey;
pub use hub::{Hub, MAX_GROUPS};
pub use publication::Publication;
pub use reader::ChunkReader;
pub use subscriber::{Step, Subscription, Wanted};
pub(crate) use timer::Timer;
pub use whole::{WholeEvent, WholeSubscription};
