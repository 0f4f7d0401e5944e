//! `waystation-devcore`: the reference core on the command line.

mod cli;

use std::process::ExitCode;

use clap::Parser as _;

#[tokio::main]
async fn main() -> ExitCode {
    let command = cli::Command::parse();
    cli::log();
    // The message of a panic may hold what must not be logged.
    std::panic::set_hook(Box::new(|_| tracing::error!("a panic")));
    match command.run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}
