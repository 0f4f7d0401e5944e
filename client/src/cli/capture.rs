//! `waystation-client capture`.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::Instant;
use waystation_proto::{ChunkState, Variant};

use super::output::Output;
use super::{CaptureArgs, CliError};
use crate::capture::policy::Change;
use crate::capture::{Capture, ChunkError, Config, Event, Label, LaneSpec, Summary};
use crate::clock;
use crate::keys::{ClientKey, GroupKey};
use crate::playback::{PlaybackError, Recording};

/// Runs to the end. True if every chunk is confirmed.
pub(super) async fn run(args: CaptureArgs) -> Result<bool, CliError> {
    if !(args.speed.is_finite() && args.speed > 0.0) {
        return Err(CliError::Usage("--speed is a positive number"));
    }
    let recording = Recording::read(&args.recording)?;
    let client_key = args.client_key_file.as_deref().map(ClientKey::read).transpose()?;
    let source = args.core.source(client_key.clone(), true).await?;
    if let (Some(path), Some(session)) = (&args.session_out, &source.for_contact) {
        session.write(path)?;
    }
    let config = Config {
        relay: args.relay.endpoint()?,
        transport: args.relay.transport(),
        group_key: GroupKey::read(&args.group_key_file)?,
        incident: source.incident,
        group: source.group,
        lanes: recording.lanes.iter().map(|lane| LaneSpec { variant: lane.variant, media: lane.media }).collect(),
        client_key,
        spool: args.spool.clone(),
        wait_s: args.wait,
    };
    let variants: Vec<Variant> = config.lanes.iter().map(|lane| lane.variant).collect();
    let (capture, events) = Capture::start(config, source.authority).await?;
    let printing = tokio::spawn(print(events, Output::new(args.json), Lines::new(&variants)));
    let refused = play(&capture, &recording, &args).await?;
    let summary = capture.finish(Duration::from_secs(args.finish_timeout), "stopped").await;
    // The session is over, so its events are too; a printer that failed has nothing to add.
    if let Ok(output) = printing.await {
        output.line(&summary_json(&summary, refused));
    }
    let unsettled_is_fine = args.allow_unsettled && summary.confirmed + summary.unsettled == summary.chunks;
    Ok(refused == 0 && (summary.confirmed == summary.chunks || unsettled_is_fine))
}

/// Cuts the chunks at their times; returns how many could not be kept.
async fn play(capture: &Capture, recording: &Recording, args: &CaptureArgs) -> Result<u64, CliError> {
    let count = args.seconds.map_or(recording.chunks(), |s| (s * 1000).div_ceil(recording.chunk_ms));
    let (start, start_ms) = (Instant::now(), clock::unix_ms());
    let at = |k: u64| Duration::from_millis(k * recording.chunk_ms).div_f64(args.speed);
    let mut refused = 0;
    let mut stop = std::pin::pin!(super::stopped());
    for k in 0..count {
        tokio::select! {
            () = tokio::time::sleep_until(start + at(k + 1)) => {}
            () = &mut stop => break,
        }
        let (started, ended) = (start_ms + at(k).as_millis() as i64, start_ms + at(k + 1).as_millis() as i64);
        for lane in &recording.lanes {
            match cut(capture, lane, k, started, ended).await {
                Ok(()) => {}
                Err(Refused::Chunk) => refused += 1,
                Err(Refused::Playback(error)) => return Err(error.into()),
            }
        }
    }
    Ok(refused)
}

enum Refused {
    Chunk,
    Playback(PlaybackError),
}

async fn cut(
    capture: &Capture,
    lane: &crate::playback::RecordedLane,
    k: u64,
    started: i64,
    ended: i64,
) -> Result<(), Refused> {
    let bytes = lane.chunk(k).await.map_err(Refused::Playback)?;
    match capture.chunk(lane.variant, bytes, started, ended).await {
        Ok(_) => Ok(()),
        Err(ChunkError::NoLane | ChunkError::Invalid | ChunkError::Full | ChunkError::Over) => Err(Refused::Chunk),
    }
}

async fn print(mut events: mpsc::Receiver<Event>, mut output: Output, mut lines: Lines) -> Output {
    while let Some(event) = events.recv().await {
        if let Some(value) = event_json(&event) {
            output.line(&value);
        }
        lines.note(&event);
        output.draw(&lines.draw());
    }
    output
}

fn label_json(event: &str, label: &Label) -> serde_json::Value {
    json!({"event": event, "variant": label.variant, "index": label.index, "stream_no": label.stream_no,
        "lane_seq": label.lane_seq, "started_ms": label.started_ms, "length": label.length,
        "at_ms": clock::unix_ms()})
}

fn event_json(event: &Event) -> Option<serde_json::Value> {
    let at_ms = clock::unix_ms();
    Some(match event {
        Event::Cut(label) => label_json("cut", label),
        Event::Sent(label) => label_json("sent", label),
        Event::State { label, state, code, receipt } => {
            let mut value = label_json("state", label);
            value["state"] = json!(state);
            value["receipt"] = json!(super::proof_word(*receipt));
            if let Some(code) = code {
                value["code"] = json!(code);
            }
            value
        }
        Event::Lost { variant, lane_seq } => {
            json!({"event": "lost", "variant": variant, "lane_seq": lane_seq, "at_ms": at_ms})
        }
        Event::Connected { earlier } => json!({"event": "connected", "earlier": earlier, "at_ms": at_ms}),
        Event::Disconnected { code } => json!({"event": "disconnected", "code": code, "at_ms": at_ms}),
        Event::Renewed => json!({"event": "renewed", "at_ms": at_ms}),
        Event::Rolled { variant, stream_no } => {
            json!({"event": "rolled", "variant": variant, "stream_no": stream_no, "at_ms": at_ms})
        }
        Event::Authority { error } => json!({"event": "authority", "error": error, "at_ms": at_ms}),
        Event::Hint(hint) => json!({"event": "hint", "hint": hint, "at_ms": at_ms}),
        Event::Advice(Change::Lanes(kept)) => json!({"event": "lanes", "kept": kept, "at_ms": at_ms}),
        Event::Advice(Change::ChunkLength(length)) => {
            json!({"event": "chunk_length", "chunk_ms": length, "at_ms": at_ms})
        }
    })
}

fn summary_json(summary: &Summary, refused: u64) -> serde_json::Value {
    json!({"event": "summary", "chunks": summary.chunks + refused, "confirmed": summary.confirmed,
        "unsettled": summary.unsettled, "rejected": summary.rejected, "expired": summary.expired,
        "pending": summary.pending, "lost": summary.lost + refused, "reconnects": summary.reconnects,
        "renewals": summary.renewals, "rolls": summary.rolls, "bytes": summary.bytes,
        "events_missed": summary.events_missed, "at_ms": clock::unix_ms()})
}

/// One line for each lane: how many chunks are in which state.
struct Lines {
    lanes: Vec<(Variant, BTreeMap<u64, Option<ChunkState>>)>,
    connected: bool,
}

impl Lines {
    fn new(variants: &[Variant]) -> Self {
        Self { lanes: variants.iter().map(|variant| (*variant, BTreeMap::new())).collect(), connected: false }
    }

    fn note(&mut self, event: &Event) {
        match event {
            Event::Cut(label) => self.set(label, None),
            Event::State { label, state, .. } => self.set(label, Some(*state)),
            Event::Connected { .. } => self.connected = true,
            Event::Disconnected { .. } => self.connected = false,
            _ => {}
        }
    }

    fn set(&mut self, label: &Label, state: Option<ChunkState>) {
        for (_, chunks) in self.lanes.iter_mut().filter(|(variant, _)| *variant == label.variant) {
            chunks.insert(label.lane_seq, state);
        }
    }

    fn draw(&self) -> Vec<String> {
        let count = |chunks: &BTreeMap<u64, Option<ChunkState>>| {
            let mut out = String::new();
            let of = |wanted| chunks.values().filter(|state| **state == wanted).count();
            for (word, state) in std::iter::once(("waiting", None))
                .chain(ChunkState::ALL.iter().map(|state| (state.as_str(), Some(*state))))
            {
                match of(state) {
                    0 => {}
                    n => out.push_str(&format!("  {word} {n}")),
                }
            }
            out
        };
        let away = if self.connected { "" } else { "  (relay not reached)" };
        let line =
            |(variant, chunks): &(Variant, BTreeMap<_, _>)| format!("{:<17}{}{away}", variant.as_str(), count(chunks));
        self.lanes.iter().map(line).collect()
    }
}
