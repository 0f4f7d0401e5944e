//! Load, fan-out and demo scenarios.

fn main() {}
