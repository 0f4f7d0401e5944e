//! devcore over real sockets, held to the contract row by row.

// Helpers of a test fail by panicking, as tests do.
#![allow(clippy::unwrap_used)]

mod account;
mod command;
mod commit;
mod contact;
mod fanout;
mod faults;
mod jwt;
mod page;
mod preflight;
mod restart;
mod support;
