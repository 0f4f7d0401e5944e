//! HTTP/3 streams over quinn: an implementation of `h3::quic` that relay and client share. Why it
//! is our own is in `docs/decisions/0005-own-h3-adapter.md`.

mod adapter;
mod frames;

pub use adapter::{BidiStream, Connection, Opener, Priority, RecvStream, SendStream};
pub use frames::MAX_FRAME;
