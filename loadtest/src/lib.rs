//! Load, fan-out and demo scenarios.
