//! Waystation: a relay near a capture device. It takes encrypted chunks, stages them until the
//! core has answered, shows the near-live lanes to trusted contacts, and forwards everything.
//!
//! Who may import whom (kept by `tests/rules/layers.rs`):
//!
//! ```text
//! main → relay ─┬→ ingress → admission ─┬→ fanout ─────┐
//!               │                       ├→ capability ─┤
//!               │                       ├→ staging ────┼→ { core, telemetry, config, clock, rare } → proto
//!               ├→ forwarding ──────────┴→ staging ────┘
//!               └→ admin ──────→ telemetry
//! ```

pub use waystation_proto as proto;

pub mod admin;
pub mod admission;
pub mod capability;
pub mod clock;
pub mod config;
pub mod core;
pub mod fanout;
pub mod forwarding;
pub mod ingress;
mod rare;
mod readiness;
pub mod relay;
pub mod staging;
pub mod telemetry;
