//! Load, fan-out, bad-link and demo scenarios.
//!
//! A scenario starts the real programs as child processes ([`rig`]), is their client ([`link`],
//! [`fanout`]), and ends in one [`report`]. What is lost is counted, and fails the run.

pub mod chunks;
pub mod demo;
pub mod disk;
pub mod fanout;
pub mod link;
pub mod network;
pub mod report;
pub mod rig;
pub mod upload;

use std::io;

/// Why a run came to no result.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    /// A program is not where this one is.
    #[error("{0} is not beside this program; build it: cargo build {1}-p waystation -p waystation-devcore")]
    NoProgram(&'static str, &'static str),
    /// A program ended, or said nothing that can be read.
    #[error("{0} did not start: {1}")]
    NotStarted(&'static str, String),
    /// Files, processes, sockets.
    #[error("{0}: {1}")]
    Io(&'static str, #[source] io::Error),
    /// There is no emulated link.
    #[error(transparent)]
    Link(#[from] waystation_netlab::Error),
    /// The relay, the core or this program broke the rules of the wire.
    #[error("{0}")]
    Wire(&'static str),
}

impl Failure {
    /// Names what was being done when the system refused.
    pub fn io(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |error| Self::Io(what, error)
    }
}
