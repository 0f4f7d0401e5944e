//! HTTP/3 streams over quinn: an implementation of `h3::quic` that relay and client share. Why it
//! is our own is in `docs/decisions/0005-own-h3-adapter.md`.

mod adapter;
mod errors;
mod frames;
mod orders;
mod send;
mod sessions;

pub use adapter::{BidiStream, Connection, Opener, Priority, RecvStream};
pub use frames::MAX_FRAME;
pub use orders::Orders;
pub use send::SendStream;
pub use sessions::{SessionStream, SessionStreams};
