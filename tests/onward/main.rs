//! The way onward: what the core says and does, and what everybody is told of it. The relay and
//! the core run in this process, between them real sockets.

mod away;
mod budget;
mod capture;
mod contact;
mod fake;
mod holders;
mod order;
mod preflight;
mod refusals;
mod retries;
mod rig;
mod wire;
