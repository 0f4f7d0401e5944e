//! The rules and wire formats of Waystation, apart from all I/O.
//!
//! **The purity contract.** Nothing below this module opens a socket or a file, reads a clock,
//! draws a random number, takes a lock or knows an async runtime. Time is an argument
//! (milliseconds of a monotonic clock, or Unix seconds where a capability says so), randomness
//! is an argument, and what comes out is a value that the caller acts on. `tests/rules/layers.rs`
//! keeps it so.
//!
//! The relay, the client, devcore and the load generator share these formats; the book's
//! `docs/protocol.md` says the same in prose, and `docs/protocol/*.json` in vectors.

pub mod budget;
pub mod capability;
pub mod capsule;
pub mod claims;
pub mod code;
pub mod cursor;
pub mod dictionary;
pub mod frame;
pub mod hint;
pub mod id;
pub mod known;
pub mod ledger;
pub mod media;
pub mod memory;
pub mod mercy;
pub mod message;
pub mod offer;
pub mod outcome;
pub mod quota;
pub mod reauthorize;
pub mod receipt;
pub mod state;
pub mod tus;
pub mod varint;
pub mod window;

pub use code::{Code, Fault, Retry};
pub use id::{ChunkRef, Digest, GroupId, IncidentId, SessionId, StreamId};
pub use media::{Class, Media, Variant};
pub use offer::Offer;
pub use state::{ChunkState, ContactState};

/// The protocol version spoken here (`HELLO.protocol`, `WATCH.protocol`).
pub const PROTOCOL: u32 = 1;
/// WebSocket subprotocol of the capture side.
pub const CAPTURE_SUBPROTOCOL: &str = "waystation.capture.v1";
/// WebSocket subprotocol of the watching side.
pub const WATCH_SUBPROTOCOL: &str = "waystation.watch.v1";
