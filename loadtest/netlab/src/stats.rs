//! What was sent, lost and delivered, in whole IPv4 packets.

use serde::Serialize;

/// One direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// Packets that the sender put on the link.
    pub sent_packets: u64,
    /// Their bytes: what the sender pays for.
    pub sent_bytes: u64,
    /// Packets for which the queue had no room.
    pub tail_packets: u64,
    /// Their bytes.
    pub tail_bytes: u64,
    /// Packets lost on the air.
    pub lost_packets: u64,
    /// Their bytes.
    pub lost_bytes: u64,
    /// Packets sent into an outage, or into a link that was cut.
    pub outage_packets: u64,
    /// Their bytes.
    pub outage_bytes: u64,
    /// Packets of flows that the NAT no longer knows.
    pub stale_packets: u64,
    /// Packets handed to the other end.
    pub delivered_packets: u64,
    /// Their bytes.
    pub delivered_bytes: u64,
    /// Most bytes that ever waited for their turn.
    pub most_queued_bytes: u64,
    /// Packets that the other end's device refused.
    pub refused_packets: u64,
}

/// Both directions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct LinkStats {
    /// From the client to the server.
    pub up: Stats,
    /// From the server to the client.
    pub down: Stats,
}
