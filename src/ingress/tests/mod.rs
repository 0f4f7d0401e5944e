//! Ingress on real sockets, as far as requests go without admission's answer.

pub(super) mod harness;
mod limits;
mod routes;
mod streams;
pub(super) mod watched;
mod websocket;
