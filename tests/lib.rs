//! A whole small world for end-to-end tests: a core, a relay on port 0 with TLS, sessions, sealed
//! chunks. Everything is real: sockets, TLS, QUIC, SQLite, disk.

pub mod chunk;
pub mod contact;
pub mod http;
pub mod peer;
pub mod session;
pub mod wire;
pub mod world;

pub use chunk::Chunk;
pub use world::{Setup, World};
