//! `waystation-client import` and `waystation-client queue`.

use std::path::Path;

use super::output::Output;
use super::session::{self, Begun};
use super::{CliError, ImportArgs, QueueCommand, SessionArgs, report};
use crate::capture::status::Step;
use crate::capture::{Capture, LaneSpec};

/// Puts files into a queue, piece by piece, and brings them. A run that was interrupted goes on
/// behind the last piece that was kept.
pub(super) async fn import(args: ImportArgs) -> Result<bool, CliError> {
    let lane = LaneSpec { variant: args.variant, media: args.media };
    let running = match args.session.start(vec![lane]).await? {
        Begun::Over(whole) => return Ok(whole),
        Begun::Running(running) => running,
    };
    if !running.capture.was_finished() {
        let mut skip = running.capture.next_seq(lane.variant);
        for file in &args.files {
            put(&running.capture, &args, file, &mut skip).await?;
        }
    }
    Ok(running.finish(&args.session, 0).await)
}

async fn put(capture: &Capture, args: &ImportArgs, path: &Path, skip: &mut u64) -> Result<(), CliError> {
    use tokio::io::AsyncReadExt as _;
    let mut file = tokio::fs::File::open(path).await?;
    let since = file.metadata().await?.modified()?.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let at_ms = i64::try_from(since.as_millis()).unwrap_or(0);
    loop {
        let mut piece = Vec::new();
        let length = (&mut file).take(args.piece_bytes).read_to_end(&mut piece).await?;
        match length {
            0 => return Ok(()),
            _ if *skip > 0 => *skip -= 1,
            _ => drop(capture.chunk(args.variant, piece, at_ms, at_ms).await?),
        }
    }
}

/// Looks at a queue, or does something about it.
pub(super) async fn run(command: QueueCommand) -> Result<bool, CliError> {
    match command {
        QueueCommand::Status(args) => {
            let storage = session::directory(&args.queue, args.queue_key_file.as_deref());
            let status = storage.status()?.ok_or(CliError::Usage("there is no queue in this directory"))?;
            let mut output = Output::new(args.json);
            output.line(&report::status(&status));
            output.draw(&report::status_lines(&status));
            Ok(true)
        }
        QueueCommand::Retry(args) => retry(*args).await,
        QueueCommand::Pause(args) => step(&args, Step::Pause, false),
        QueueCommand::Resume(args) => step(&args, Step::Resume, false),
        QueueCommand::Cancel { at, discard } => step(&at, Step::Cancel, discard),
    }
}

async fn retry(args: SessionArgs) -> Result<bool, CliError> {
    let queue = args.queue.queue.as_ref().ok_or(CliError::Usage("give --queue"))?;
    if !queue.exists() {
        return Err(CliError::Usage("there is no queue in this directory"));
    }
    match args.start(Vec::new()).await? {
        Begun::Over(whole) => Ok(whole),
        Begun::Running(running) => Ok(running.finish(&args, 0).await),
    }
}

fn step(args: &super::QueueAt, step: Step, discard: bool) -> Result<bool, CliError> {
    let storage = session::directory(&args.queue, args.queue_key_file.as_deref());
    let done = storage.step(step, discard)?;
    if let Some(status) = storage.status()? {
        let mut output = Output::new(args.json);
        output.line(&report::status(&status));
        output.draw(&report::status_lines(&status));
    }
    Ok(done)
}
