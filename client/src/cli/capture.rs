//! `waystation-client capture`.

use std::time::Duration;

use tokio::time::Instant;

use super::output;
use super::session::Begun;
use super::{CaptureArgs, CliError};
use crate::capture::{Capture, LaneSpec};
use crate::clock;
use crate::playback::{RecordedLane, Recording};

/// Runs to the end. True if every chunk is confirmed.
pub(super) async fn run(args: CaptureArgs) -> Result<bool, CliError> {
    if !(args.speed.is_finite() && args.speed > 0.0) {
        return Err(CliError::Usage("--speed is a positive number"));
    }
    let recording = Recording::read(&args.recording)?;
    let lanes = recording.lanes.iter().map(|lane| LaneSpec { variant: lane.variant, media: lane.media }).collect();
    match args.session.start(lanes).await? {
        Begun::Over(whole) => Ok(whole),
        Begun::Running(running) => {
            let refused = play(&running.capture, &recording, &args).await?;
            Ok(running.finish(&args.session, refused).await)
        }
    }
}

/// Cuts the chunks at their times, from where an earlier run of the queue stopped; returns how
/// many could not be kept.
async fn play(capture: &Capture, recording: &Recording, args: &CaptureArgs) -> Result<u64, CliError> {
    if capture.was_finished() {
        return Ok(0);
    }
    let count = args.seconds.map_or(recording.chunks(), |s| (s * 1000).div_ceil(recording.chunk_ms));
    let begin = recording.lanes.iter().map(|lane| capture.next_seq(lane.variant)).min().unwrap_or(0);
    let (start, start_ms) = (Instant::now(), clock::unix_ms());
    let at = |k: u64| Duration::from_millis((k - begin) * recording.chunk_ms).div_f64(args.speed);
    let mut refused = 0;
    let mut stop = std::pin::pin!(super::stopped());
    for k in begin..count {
        tokio::select! {
            () = tokio::time::sleep_until(start + at(k + 1)) => {}
            () = &mut stop => break,
        }
        let (started, ended) = (start_ms + at(k).as_millis() as i64, start_ms + at(k + 1).as_millis() as i64);
        for lane in recording.lanes.iter().filter(|lane| k >= capture.next_seq(lane.variant)) {
            refused += u64::from(!cut(capture, lane, k, started, ended).await?);
        }
    }
    Ok(refused)
}

/// True if the chunk is kept.
async fn cut(capture: &Capture, lane: &RecordedLane, k: u64, started: i64, ended: i64) -> Result<bool, CliError> {
    let bytes = lane.chunk(k).await?;
    let kept = capture.chunk(lane.variant, bytes, started, ended).await;
    if let Err(why) = kept {
        output::complain(&why);
    }
    Ok(kept.is_ok())
}
