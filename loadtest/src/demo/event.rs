//! The clients' JSON lines, as far as the demo reads them.

use serde::Deserialize;
use waystation_proto::Variant;

/// One line of `waystation-client --json`.
#[derive(Debug, Deserialize)]
pub(super) struct Line {
    pub(super) event: String,
    pub(super) at_ms: i64,
    #[serde(default)]
    pub(super) variant: Option<Variant>,
    #[serde(default)]
    pub(super) lane_seq: Option<u64>,
    #[serde(default)]
    pub(super) state: Option<String>,
    #[serde(default)]
    pub(super) ended_ms: Option<i64>,
    #[serde(default)]
    pub(super) first_byte_ms: Option<i64>,
    #[serde(default)]
    pub(super) last_byte_ms: Option<i64>,
}

/// The last line of the capture client.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
pub(super) struct Sent {
    pub(super) chunks: u64,
    pub(super) confirmed: u64,
    pub(super) unsettled: u64,
    pub(super) rejected: u64,
    pub(super) expired: u64,
    pub(super) pending: u64,
    pub(super) lost: u64,
    pub(super) renewals: u64,
    pub(super) rolls: u64,
}

/// The last line of the contact.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
pub(super) struct Seen {
    pub(super) complete: u64,
    pub(super) confirmed: u64,
    pub(super) unsettled: u64,
    pub(super) withdrawn: u64,
    pub(super) omitted: u64,
    pub(super) bad: u64,
    pub(super) gaps: u64,
    pub(super) reconnects: u64,
    pub(super) renewals: u64,
}
