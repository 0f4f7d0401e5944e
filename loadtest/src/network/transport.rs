//! How the capture client is told to talk to the relay: the one place that knows.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// Transports that bars are set for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Transport {
    /// HTTP/3
    H3,
    /// WebSocket over TCP with the kernel's BBR
    Ws,
    /// WebSocket over TCP with cubic: what a phone without BBR gets
    WsCubic,
}

impl Transport {
    /// Its name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::H3 => "h3",
            Self::Ws => "ws",
            Self::WsCubic => "ws-cubic",
        }
    }

    /// The client's own name for it.
    #[must_use]
    pub const fn client(self) -> waystation_client::Transport {
        match self {
            Self::H3 => waystation_client::Transport::H3,
            Self::Ws => waystation_client::Transport::Ws,
            Self::WsCubic => waystation_client::Transport::WsPlain,
        }
    }

    /// TCP's congestion controller in both namespaces, by route. A client that asks its socket for
    /// another one gets that.
    #[must_use]
    pub const fn congestion(self) -> Option<&'static str> {
        match self {
            Self::H3 => None,
            Self::Ws => Some("bbr"),
            Self::WsCubic => Some("cubic"),
        }
    }
}
