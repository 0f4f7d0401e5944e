//! A bad link on one machine: two network namespaces with one TUN device in each, and a thread
//! between them that carries IPv4 packets as a bad network would.
//!
//! Each direction is a bounded byte queue that drops at its tail, then a token bucket, then outages,
//! then loss, then delay; a NAT may give the client another address on the way. Everything but
//! [`tun`], [`namespace`], [`trace`] and [`link`] is pure: time comes in, and chance comes from a seed. A seed
//! decides the fate of the n-th packet of a direction, whenever it comes.
//!
//! Needs root, `ip` (Debian: iproute2) and `/dev/net/tun`.

pub mod direction;
pub mod emulator;
pub mod link;
pub mod loss;
pub mod namespace;
pub mod nat;
pub mod profile;
pub mod rng;
pub mod stats;
pub mod trace;
pub mod tun;

use std::io;
use std::net::Ipv4Addr;

pub use link::{Link, Options};
pub use profile::Profile;
pub use stats::{LinkStats, Stats};

/// The client's address until a NAT gives it another.
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 2);
/// The server's address.
pub const SERVER: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);

/// An end of the link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// Where the capture client runs; what it sends goes up.
    Client,
    /// Where the relay runs.
    Server,
}

impl Side {
    /// The other end.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::Client => Self::Server,
            Self::Server => Self::Client,
        }
    }
}

/// Why there is no link.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Not root.
    #[error("an emulated link needs root: it makes network namespaces")]
    NotRoot,
    /// A tool or device is not there.
    #[error("an emulated link needs {0}")]
    Missing(&'static str),
    /// `ip` refused.
    #[error("ip {0}: {1}")]
    Ip(String, String),
    /// Files, devices, threads.
    #[error("{0}: {1}")]
    Io(&'static str, #[source] io::Error),
    /// No such profile.
    #[error("no profile is called {0}")]
    Profile(String),
}

impl Error {
    pub(crate) fn io(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |error| Self::Io(what, error)
    }
}
