//! One of the real programs as a child process.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

use crate::Failure;

/// A program says where it listens within this, or it does not start.
const START_LIMIT: Duration = Duration::from_secs(60);

/// A running program. Killed when dropped.
#[derive(Debug)]
pub struct Program {
    child: Child,
}

impl Program {
    /// Starts `name args… last`, and reads its first line as JSON. What it logs goes to a file in
    /// `dir`.
    ///
    /// # Errors
    /// [`Failure::NoProgram`], [`Failure::NotStarted`], [`Failure::Io`].
    pub async fn start(name: &'static str, args: &[&str], last: &Path, dir: &Path) -> Result<(Self, Value), Failure> {
        let mut command = Command::new(path(name)?);
        command.args(args).arg(last);
        Self::launch(name, command, dir).await
    }

    /// Starts the program `name` by a command made elsewhere. What it logs goes to the end of a
    /// file in `dir`.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn launch(name: &'static str, mut command: Command, dir: &Path) -> Result<(Self, Value), Failure> {
        let log = dir.join(format!("{name}.log"));
        let errors = std::fs::File::options().create(true).append(true).open(&log);
        let errors = errors.map_err(Failure::io("a log file"))?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(errors).kill_on_drop(true);
        let mut child = command.spawn().map_err(Failure::io(name))?;
        let mut line = String::new();
        if let Some(out) = child.stdout.take() {
            let mut out = BufReader::new(out);
            // Silence and the end are the same: what there is then is no JSON.
            let _ = tokio::time::timeout(START_LIMIT, out.read_line(&mut line)).await;
        }
        match serde_json::from_str(&line) {
            Ok(said) => Ok((Self { child }, said)),
            Err(_) => {
                let said = std::fs::read_to_string(&log).unwrap_or_default();
                Err(Failure::NotStarted(name, said.lines().last().unwrap_or("it said nothing").to_owned()))
            }
        }
    }

    /// Runs `name args… last` to its end, and returns what it printed.
    ///
    /// # Errors
    /// [`Failure::NoProgram`], [`Failure::NotStarted`], [`Failure::Io`].
    pub async fn ask(name: &'static str, args: &[&str], last: &Path) -> Result<String, Failure> {
        let mut command = Command::new(path(name)?);
        command.args(args).arg(last);
        Self::finish(name, command).await
    }

    /// Runs a command made elsewhere to its end, and returns what it printed.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub async fn finish(name: &'static str, mut command: Command) -> Result<String, Failure> {
        command.stdin(Stdio::null()).kill_on_drop(true);
        let output = command.output().await.map_err(Failure::io(name))?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() {
            Ok(text(&output.stdout))
        } else {
            Err(Failure::NotStarted(name, text(&output.stderr)))
        }
    }

    /// Its process id; 0 once it has ended.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id().unwrap_or(0)
    }

    /// Kills it (`kill -9`), and waits until it is gone.
    ///
    /// # Errors
    /// [`Failure::Io`]
    pub async fn kill(&mut self) -> Result<(), Failure> {
        self.child.kill().await.map_err(Failure::io("a program that is to end"))
    }
}

/// The program `name` beside this one, or in the directory above: tests lie one deeper.
///
/// # Errors
/// [`Failure::NoProgram`]
pub fn path(name: &'static str) -> Result<PathBuf, Failure> {
    let own = std::env::current_exe().map_err(Failure::io("this program's own path"))?;
    let beside = own.ancestors().skip(1).take(2).map(|dir| dir.join(name)).find(|path| path.is_file());
    let flag = if cfg!(debug_assertions) { "" } else { "--release " };
    beside.ok_or(Failure::NoProgram(name, flag))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_program_that_is_not_there_is_named_with_the_command_that_builds_it() {
        let dir = tempfile::tempdir().unwrap();
        let failure = Program::start("waystation-of-another-town", &[], dir.path(), dir.path()).await.unwrap_err();
        let text = failure.to_string();
        assert!(text.starts_with("waystation-of-another-town is not beside this program"), "{text}");
        assert!(text.ends_with("-p waystation -p waystation-devcore"), "{text}");
    }
}
