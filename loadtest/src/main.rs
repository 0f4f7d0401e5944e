//! `waystation-loadtest`: measures a relay that it starts itself.

use std::process::ExitCode;

use clap::Parser as _;
use waystation_loadtest::{demo, disk, fanout, network, upload};

/// Measures a relay: the real programs, each in a process of its own
#[derive(clap::Parser)]
#[command(name = "waystation-loadtest", version)]
enum Command {
    /// Sessions that bring chunks until the core has confirmed them
    Upload(upload::Args),
    /// One session that is watched by many contacts
    Fanout(fanout::Args),
    /// The server that `fanout --ceiling` starts
    #[command(hide = true)]
    CeilingServer(fanout::ceiling::Args),
    /// What the disk below the staging directory can do by itself
    Disk(disk::Args),
    /// The real capture client over an emulated bad link; needs root, `ip` and /dev/net/tun
    Network(network::Args),
    /// The capture client that `network` starts
    #[command(hide = true)]
    Phone(network::phone::Args),
    /// The contact that `network` starts
    #[command(hide = true)]
    Viewer(network::viewer::Args),
    /// The main job, end to end, with real processes and a real recording
    Demo(demo::Args),
}

fn main() -> ExitCode {
    let command = Command::parse();
    if let Command::Fanout(args) = &command {
        fanout::prepare(args);
    }
    let mut threads = match &command {
        Command::CeilingServer(_) => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    match threads.enable_all().build() {
        Ok(runtime) => runtime.block_on(run(command)),
        Err(_) => ExitCode::FAILURE,
    }
}

async fn run(command: Command) -> ExitCode {
    match command {
        Command::Upload(args) => upload::main(args).await,
        Command::Fanout(args) => Box::pin(fanout::main(args)).await,
        Command::CeilingServer(args) => fanout::ceiling::main(args).await,
        Command::Disk(args) => disk::main(args).await,
        Command::Network(args) => network::main(args).await,
        Command::Phone(args) => network::phone::main(args).await,
        Command::Viewer(args) => network::viewer::main(args).await,
        Command::Demo(args) => demo::run(args).await,
    }
}
