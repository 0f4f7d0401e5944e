//! Capture client and contact for Waystation: the only place with encryption.
//!
//! - [`capture::Capture`] takes plaintext chunks as they are cut, keeps them in a durable queue,
//!   seals each once and brings the sealed bytes to a relay until the core has confirmed them.
//! - [`watch::Watch`] receives the near-live lanes of a recording, checks and opens each chunk.
//! - [`authority`] is where streams and capabilities come from: the core, never the relay.
//!
//! Of the relay this crate uses the wire formats only (`waystation-proto`). Rules stand apart from
//! I/O: `capture::{book, lane, manifest, plan, queue, retry, status}`, `capture::store::{log, record}`,
//! `watch::assembly` and `mp4` read no clock and open nothing.

pub mod authority;
pub mod capture;
pub mod cli;
pub mod connect;
pub mod envelope;
pub mod keys;
pub mod link;
pub mod mp4;
pub mod playback;
pub mod receipt;
pub mod session;
pub mod token;
pub mod watch;

mod clock;
mod h3link;
mod http;
mod race;
mod repeat;
mod tcp;
mod wire;
mod wsio;

pub use capture::Capture;
pub use connect::{Endpoint, Transport};
pub use keys::{ClientKey, GroupKey};
pub use link::Link;
pub use watch::Watch;
