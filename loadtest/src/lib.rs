//! Load, fan-out and demo scenarios.

pub mod demo;
