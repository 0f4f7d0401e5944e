//! Chunks on disk: written as they come, hashed while written, `staged` once they are durable.
//!
//! [`layout`] states what the stored bytes must keep true, [`vault`] writes and reads them,
//! [`committer`] alone makes the value that says a chunk is durable, [`recover`] says what may be
//! believed after a crash. `docs/storage.md` tells the same to operators.

pub mod committer;
pub mod disk;
mod expiry;
mod fresh;
#[cfg(feature = "fuzzing")]
mod fuzzing;
mod gathered;
pub mod incoming;
pub mod layout;
pub mod meta;
pub mod part;
pub mod recover;
mod remover;
mod renewal;
pub mod seal;
mod seldom;
mod slot;
mod spares;
mod spool;
mod store;
mod tally;
mod tokens;
mod upload;
pub mod vault;
pub mod whole;
mod work;

#[cfg(test)]
mod crash_test;
#[cfg(test)]
mod fixture;
#[cfg(test)]
mod kill_test;
#[cfg(test)]
mod sim;

pub use committer::{CommitError, Committer, Durable};
pub use disk::{Disk, StdDisk};
pub use fresh::MAX_FRESH_BYTES;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub use fuzzing::fuzz_sealed;
pub use incoming::{Hashed, Incoming};
pub use meta::{Meta, StreamCapability};
pub use part::Part;
pub use recover::{Found, Recovered};
pub use remover::MAX_REMOVALS;
pub use seal::{KeyError, SealKey};
pub use spares::MAX_SPARES;
pub use spool::{Expected, Spooled, Spooling};
pub use store::{Change, Observer, Offered, OpenError, Staging, Standing};
pub use tally::Waiting;
pub use vault::{Reader, Vault};
pub use whole::Whole;
pub use work::{Job, JobBody};
