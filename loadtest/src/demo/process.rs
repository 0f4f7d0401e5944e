//! Child processes: started in a group of their own, so that Ctrl-C comes to the demo alone, and
//! killed when their handle is dropped.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::signal::unix::{SignalKind, signal};

use super::Error;

/// Time for a program to say where it listens.
const START_LIMIT: Duration = Duration::from_secs(30);
/// A program that can't start, because the one before still holds its address, is tried so often.
const START_TRIES: u32 = 40;
const START_PAUSE: Duration = Duration::from_millis(100);

/// A running program, and what it prints.
pub(super) struct Process {
    name: &'static str,
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Process {
    /// Starts a program; its stderr goes to the end of `log`.
    pub(super) fn start(name: &'static str, command: &mut Command, log: &Path) -> Result<Self, Error> {
        let log = std::fs::File::options().create(true).append(true).open(log)?;
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| format!("{name} can't be started: {error}"))?;
        let out = child.stdout.take().ok_or("a child without stdout")?;
        Ok(Self { name, child, lines: BufReader::new(out).lines() })
    }

    /// The next line; none when the program closed its output.
    pub(super) async fn line(&mut self) -> Result<Option<String>, Error> {
        Ok(self.lines.next_line().await?)
    }

    /// Kills it (`kill -9`) and waits until it is gone.
    pub(super) async fn kill(&mut self) -> Result<(), Error> {
        Ok(self.child.kill().await?)
    }

    pub(super) async fn ended(&mut self) -> Result<ExitStatus, Error> {
        Ok(self.child.wait().await?)
    }

    async fn first_line(&mut self) -> Result<serde_json::Value, Error> {
        let line = tokio::time::timeout(START_LIMIT, self.line()).await;
        let line = line.map_err(|_| format!("{} did not start in time", self.name))??;
        let line = line.ok_or_else(|| format!("{} ended instead of starting", self.name))?;
        Ok(serde_json::from_str(&line)?)
    }
}

/// Starts a server; its first line says where it listens. An address that it had before may be
/// held by the kernel for a moment longer.
pub(super) async fn serve(
    name: &'static str,
    command: &mut Command,
    log: &Path,
) -> Result<(Process, serde_json::Value), Error> {
    let mut tries = 0;
    loop {
        let mut process = Process::start(name, command, log)?;
        match process.first_line().await {
            Ok(line) => return Ok((process, line)),
            Err(error) if tries == START_TRIES => return Err(error),
            Err(_) => tries += 1,
        }
        tokio::time::sleep(START_PAUSE).await;
    }
}

/// An address in a server's first line.
pub(super) fn address(line: &serde_json::Value, key: &str) -> Result<SocketAddr, Error> {
    let text = line[key].as_str().ok_or_else(|| format!("no address {key} in a first line"))?;
    Ok(text.parse()?)
}

/// Ctrl-C, or the signal that ends a job.
pub(crate) async fn stopped() {
    let (interrupt, terminate) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()));
    match (interrupt, terminate) {
        (Ok(mut interrupt), Ok(mut terminate)) => tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        },
        _ => std::future::pending().await,
    }
}
