//! devcore: the reference core API on SQLite and files, for trying, testing and load.
//!
//! It speaks the public core's contract (preflight, commit, fan-out authorisation, relay sessions, direct
//! uploads, reconciling) in the contract's order of checks, and what our clients need beside it: capture
//! groups, JWT capabilities with their JWKS and revocation list, signed receipts. It fails on request.
//!
//! Tests start it in-process:
//!
//! ```no_run
//! # async fn example() -> Result<(), waystation_devcore::StartError> {
//! let core = waystation_devcore::Devcore::start(waystation_devcore::Options::new("/tmp/core")).await?;
//! println!("{}", core.url());
//! core.stop().await;
//! # Ok(())
//! # }
//! ```
//!
//! Inside: `routes` read calls in the contract's order; `fields`, `envelope`, `json`, `capability`,
//! `multipart` and `limiter` are its rules, pure; `store` keeps; `answer` writes; `server` listens; `page`
//! is the static host of the contact's page, which knows nothing of a core.

mod answer;
mod call;
mod capability;
mod clock;
mod core;
mod envelope;
mod faults;
mod fields;
mod http_client;
mod json;
mod keys;
mod limiter;
mod multipart;
mod options;
mod page;
mod refusal;
mod router;
mod routes;
mod running;
mod server;
pub mod session;
mod stats;
mod store;
mod tls;
#[cfg(test)]
mod vectors;

pub use clock::Clock;
pub use faults::{Effect, Fault, FaultRoute, Faults};
pub use options::{Options, Secret};
pub use page::PageHost;
pub use running::{Devcore, Running, StartError};
pub use stats::{Commit, Snapshot};
