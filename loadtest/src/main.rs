//! Load, fan-out and demo scenarios.

use std::process::ExitCode;

use clap::Parser as _;
use waystation_loadtest::demo;

/// Load, fan-out and demo scenarios of Waystation.
#[derive(clap::Parser)]
#[command(name = "waystation-loadtest", version, about)]
enum Command {
    /// The main job, end to end, with real processes and a real recording.
    Demo(demo::Args),
}

#[tokio::main]
async fn main() -> ExitCode {
    match Command::parse() {
        Command::Demo(args) => demo::run(args).await,
    }
}
