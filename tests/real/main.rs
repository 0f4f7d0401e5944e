//! Clients that are not ours, against a relay: each knows it only from `docs/protocol.md`.
//!
//! `./test install` sets them up; a test whose client is missing fails and says so.

mod aioquic;
mod away;
mod chromium;
mod curl;
mod page;
mod program;
mod resumable;
mod sse;
mod thin;
mod websockets;
