//! The client against a small relay and core of its own, over real sockets.

// Helpers of tests may unwrap: a panic here is a failed test.
#![allow(clippy::unwrap_used, unreachable_pub)]

mod bundle;
mod capture;
mod cli;
mod core;
mod queue;
mod support;
mod udp;
mod watch;
