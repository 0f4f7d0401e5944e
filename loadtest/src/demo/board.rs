//! What is known of every chunk while the recording goes on, from the clients' own words.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use waystation_client::playback::Recording;
use waystation_proto::{ChunkState, Variant};

use super::Error;
use super::event::{Line, Seen, Sent};
use super::output::Output;
use super::process::Process;

/// How often the lanes are drawn.
const DRAW_EVERY: Duration = Duration::from_millis(200);

/// All bytes went to the relay; it has said nothing of them yet.
const SENT: &str = "sent";

/// One chunk.
#[derive(Debug, Clone, Default)]
pub(super) struct Chunk {
    /// When it was cut, milliseconds since the Unix epoch.
    pub(super) cut_ms: i64,
    /// The last that the capture client heard of it.
    pub(super) state: Option<String>,
    /// When it came to the contact, if it did.
    pub(super) contact: Option<Came>,
}

/// A chunk at the contact, milliseconds since the Unix epoch.
#[derive(Debug, Clone, Copy)]
pub(super) struct Came {
    /// End of the recorded stretch: the moment it should have been cut.
    pub(super) ended: i64,
    pub(super) first_byte: i64,
    pub(super) last_byte: i64,
}

/// One lane: its chunks by running number.
pub(super) struct Lane {
    pub(super) variant: Variant,
    pub(super) chunks: BTreeMap<u64, Chunk>,
}

/// All lanes.
pub(super) struct Board {
    pub(super) lanes: Vec<Lane>,
    began: Instant,
    of: Option<u64>,
    cuts: watch::Sender<u64>,
    notice: watch::Receiver<String>,
}

/// How both clients ended.
#[derive(Clone, Copy)]
pub(super) struct Ended {
    pub(super) sent: Sent,
    pub(super) seen: Seen,
    pub(super) capture_ok: bool,
    pub(super) contact_ok: bool,
}

impl Board {
    /// An empty one for `of` chunks in each lane, if it has an end. `cuts` is told how many every lane has.
    pub(super) fn new(
        recording: &Recording,
        of: Option<u64>,
        cuts: watch::Sender<u64>,
        notice: watch::Receiver<String>,
    ) -> Self {
        let lane =
            |lane: &waystation_client::playback::RecordedLane| Lane { variant: lane.variant, chunks: BTreeMap::new() };
        Self { lanes: recording.lanes.iter().map(lane).collect(), began: Instant::now(), of, cuts, notice }
    }

    fn chunk(&mut self, line: &Line) -> Option<&mut Chunk> {
        let lane = self.lanes.iter_mut().find(|lane| Some(lane.variant) == line.variant)?;
        Some(lane.chunks.entry(line.lane_seq?).or_default())
    }

    fn captured(&mut self, line: Line) {
        match line.event.as_str() {
            "cut" => {
                if let Some(chunk) = self.chunk(&line) {
                    chunk.cut_ms = line.at_ms;
                }
                let least = self.lanes.iter().map(|lane| lane.chunks.len() as u64).min().unwrap_or(0);
                self.cuts.send_replace(least);
            }
            // Over HTTP the relay says nothing between the last byte and the verdict.
            "sent" => {
                if let Some(chunk) = self.chunk(&line)
                    && chunk.state.as_deref().is_none_or(|state| state == ChunkState::Receiving.as_str())
                {
                    chunk.state = Some(SENT.into());
                }
            }
            "state" => {
                if let Some(chunk) = self.chunk(&line) {
                    chunk.state = line.state;
                }
            }
            _ => {}
        }
    }

    fn watched(&mut self, line: &Line) {
        let (Some(ended), Some(first_byte), Some(last_byte)) = (line.ended_ms, line.first_byte_ms, line.last_byte_ms)
        else {
            return;
        };
        if line.event == "complete"
            && let Some(chunk) = self.chunk(line)
        {
            chunk.contact = Some(Came { ended, first_byte, last_byte });
        }
    }

    /// Every chunk that came to the contact.
    pub(super) fn came(&self) -> impl Iterator<Item = &Came> {
        self.lanes.iter().flat_map(|lane| lane.chunks.values()).filter_map(|chunk| chunk.contact.as_ref())
    }

    fn draw(&self) -> Vec<String> {
        let head = format!("{:>4} s   {}", self.began.elapsed().as_secs(), *self.notice.borrow()).trim_end().to_owned();
        std::iter::once(head).chain(self.lanes.iter().map(|lane| lane.draw(self.of))).collect()
    }
}

impl Lane {
    /// Whether the relay shows this lane to contacts.
    pub(super) fn is_near_live(&self) -> bool {
        is_near_live(self.variant)
    }

    fn draw(&self, of: Option<u64>) -> String {
        let (cut, of) = (self.chunks.len(), of.map_or(String::new(), |of| format!(" of {of}")));
        let width = of.len().saturating_sub(4).max(cut.to_string().len());
        let contact = match self.is_near_live() {
            true => format!("at the contact {:>width$}", self.chunks.values().filter(|c| c.contact.is_some()).count()),
            false => format!("{:width$}", "not shown live", width = width + 15),
        };
        let mut out = format!("{:<17} cut {cut:>width$}{of}   {contact} ", self.variant.as_str());
        let count = |state: Option<&str>| self.chunks.values().filter(|chunk| chunk.state.as_deref() == state).count();
        out.push_str(&format!("  confirmed {:>width$}", count(Some(ChunkState::Confirmed.as_str()))));
        let others = ChunkState::ALL.iter().filter(|state| **state != ChunkState::Confirmed);
        let own = [("waiting", None), (SENT, Some(SENT))];
        for (word, state) in own.into_iter().chain(others.map(|s| (s.as_str(), Some(s.as_str())))) {
            match count(state) {
                0 => {}
                n => out.push_str(&format!("  {word} {n}")),
            }
        }
        out
    }
}

/// The lanes that a relay shows to contacts.
pub(super) const fn is_near_live(variant: Variant) -> bool {
    matches!(variant, Variant::LivePreview | Variant::AudioPriority)
}

/// Reads both clients' lines until both have ended.
pub(super) async fn follow(
    board: &mut Board,
    capture: &mut Process,
    contact: &mut Process,
    output: &mut Output,
) -> Result<Ended, Error> {
    let (mut sent, mut seen) = (None, None);
    let (mut capturing, mut watching) = (true, true);
    let mut tick = tokio::time::interval(DRAW_EVERY);
    while capturing || watching {
        tokio::select! {
            line = capture.line(), if capturing => match line? {
                None => capturing = false,
                Some(text) if is_summary(&text) => sent = Some(serde_json::from_str::<Sent>(&text)?),
                Some(text) => board.captured(serde_json::from_str(&text)?),
            },
            line = contact.line(), if watching => match line? {
                None => watching = false,
                Some(text) if is_summary(&text) => seen = Some(serde_json::from_str::<Seen>(&text)?),
                Some(text) => board.watched(&serde_json::from_str(&text)?),
            },
            _ = tick.tick() => output.draw(&board.draw()),
        }
    }
    output.last(&board.draw());
    let (capture_ok, contact_ok) = (capture.ended().await?.success(), contact.ended().await?.success());
    let sent = sent.ok_or("the capture client ended before its time")?;
    let seen = seen.ok_or("the contact ended before its time")?;
    Ok(Ended { sent, seen, capture_ok, contact_ok })
}

fn is_summary(text: &str) -> bool {
    text.contains("\"event\":\"summary\"")
}
