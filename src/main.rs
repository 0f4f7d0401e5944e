//! `waystation`: the relay's command line.

use std::process::ExitCode;

use clap::Parser as _;

mod cli;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let command = cli::Command::parse();
    cli::hush_panics();
    match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(cli::run(command)),
        Err(_) => ExitCode::FAILURE,
    }
}
