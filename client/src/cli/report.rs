//! What a capture session says of itself, as JSON lines and as lines for people.

use std::collections::BTreeMap;

use serde_json::json;
use waystation_proto::{ChunkState, Variant};

use crate::capture::policy::Change;
use crate::capture::status::Status;
use crate::capture::{Event, Label, Summary};
use crate::clock;

fn label_json(event: &str, label: &Label) -> serde_json::Value {
    json!({"event": event, "variant": label.variant, "index": label.index, "stream_no": label.stream_no,
        "lane_seq": label.lane_seq, "started_ms": label.started_ms, "length": label.length,
        "at_ms": clock::unix_ms()})
}

/// An event.
pub(super) fn event(event: &Event) -> Option<serde_json::Value> {
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
        Event::Item { label, state, code } => {
            let mut value = label_json("item", label);
            value["state"] = json!(state);
            if let Some(code) = code {
                value["code"] = json!(code);
            }
            value
        }
        Event::EvidenceReady => json!({"event": "evidence_ready", "at_ms": at_ms}),
        Event::Named => json!({"event": "named", "at_ms": at_ms}),
        Event::Session(state) => json!({"event": "session", "state": state, "at_ms": at_ms}),
        Event::Held { variant, code } => {
            json!({"event": "held", "variant": variant, "code": code, "at_ms": at_ms})
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
        Event::Path(path) => {
            let rtt_ms = path.rtt.as_millis() as u64;
            json!({"event": "path", "rate": path.rate, "rtt_ms": rtt_ms, "loss_permille": path.loss_permille, "at_ms": at_ms})
        }
        Event::Hint(hint) => json!({"event": "hint", "hint": hint, "at_ms": at_ms}),
        Event::Advice(Change::Lanes(kept)) => json!({"event": "lanes", "kept": kept, "at_ms": at_ms}),
        Event::Advice(Change::ChunkLength(length)) => {
            json!({"event": "chunk_length", "chunk_ms": length, "at_ms": at_ms})
        }
    })
}

/// The last line.
pub(super) fn summary(summary: &Summary, refused: u64) -> serde_json::Value {
    json!({"event": "summary", "chunks": summary.chunks + refused, "confirmed": summary.confirmed,
        "unsettled": summary.unsettled, "rejected": summary.rejected, "expired": summary.expired,
        "pending": summary.pending, "failed": summary.failed, "lost": summary.lost + refused,
        "manifest": summary.manifest, "reconnects": summary.reconnects, "renewals": summary.renewals,
        "rolls": summary.rolls, "bytes": summary.bytes, "events_missed": summary.events_missed,
        "at_ms": clock::unix_ms()})
}

/// A queue at a glance.
pub(super) fn status(status: &Status) -> serde_json::Value {
    json!({"event": "status", "session": status.session, "evidence_ready": status.evidence_ready,
        "chunks": status.chunks, "complete": status.complete, "queued": status.queued,
        "uploading": status.uploading, "retrying": status.retrying, "failed": status.failed,
        "paused": status.paused, "lost": status.lost, "done_bytes": status.done_bytes,
        "total_bytes": status.total_bytes, "at_ms": clock::unix_ms()})
}

/// The same for people.
pub(super) fn status_lines(status: &Status) -> Vec<String> {
    let Status { chunks, complete, queued, uploading, retrying, failed, lost, .. } = status;
    let at_relay = if status.evidence_ready { "something reached a relay" } else { "nothing reached a relay yet" };
    vec![
        format!("{}: {complete} of {chunks} chunks confirmed, {at_relay}", status.session),
        format!("queued {queued}  uploading {uploading}  retrying {retrying}  failed {failed}  lost {lost}"),
        format!("{} of {} bytes at a relay or confirmed", status.done_bytes, status.total_bytes),
    ]
}

/// One line for each lane: how many chunks are in which state.
#[derive(Default)]
pub(super) struct Lines {
    lanes: BTreeMap<Variant, BTreeMap<u64, Option<ChunkState>>>,
    connected: bool,
}

impl Lines {
    /// Takes an event.
    pub(super) fn note(&mut self, event: &Event) {
        match event {
            Event::Cut(label) => self.set(label, None),
            Event::State { label, state, .. } => self.set(label, Some(*state)),
            Event::Connected { .. } => self.connected = true,
            Event::Disconnected { .. } => self.connected = false,
            _ => {}
        }
    }

    fn set(&mut self, label: &Label, state: Option<ChunkState>) {
        self.lanes.entry(label.variant).or_default().insert(label.lane_seq, state);
    }

    /// The lines as they are now.
    pub(super) fn draw(&self) -> Vec<String> {
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
            |(variant, chunks): (&Variant, &BTreeMap<_, _>)| format!("{:<17}{}{away}", variant.as_str(), count(chunks));
        self.lanes.iter().map(line).collect()
    }
}
