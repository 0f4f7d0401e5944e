//! `waystation`: the relay's command line.

use std::process::ExitCode;

use clap::Parser as _;

mod cli;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// After so many turns of tasks the runtime looks for what has arrived. A turn that hands a contact its share
/// takes up to 0.2 ms, and an upload beside a thousand of them waits for its next bytes no longer than this.
const LOOK_EVERY: u32 = 8;

fn main() -> ExitCode {
    let command = cli::Command::parse();
    cli::hush_panics();
    match tokio::runtime::Builder::new_multi_thread().enable_all().event_interval(LOOK_EVERY).build() {
        Ok(runtime) => runtime.block_on(cli::run(command)),
        Err(_) => ExitCode::FAILURE,
    }
}
