//! `waystation-client`: capture client and contact on the command line.

use std::process::ExitCode;

use clap::Parser as _;
use waystation_client::cli::{Cli, run};

#[tokio::main]
async fn main() -> ExitCode {
    run(Cli::parse()).await
}
