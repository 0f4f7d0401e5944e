//! The checks: what was promised, whether it held, and the figures that say so.

use waystation_client::playback::Recording;
use waystation_proto::Variant;

use super::board::{Board, Ended};
use super::contact::Watched;
use super::faults::{Plan, Witnessed};
use super::held::Held;
use super::media;
use super::place::Place;
use super::{Error, board};

/// A hole in a file's timeline that nobody sees or hears, in seconds.
const MAX_HOLE: f64 = 0.1;
/// By how much a file may differ from the recorded time: a frame of sound is no divisor of a chunk.
const MAX_DRIFT: f64 = 0.5;

/// Everything that is known at the end.
pub(super) struct Evidence<'a> {
    pub(super) board: &'a Board,
    pub(super) ended: Ended,
    pub(super) witnessed: Witnessed,
    pub(super) waiting: u64,
    pub(super) held: Held,
    pub(super) watched: Watched,
    pub(super) recording: &'a Recording,
    pub(super) plan: &'a Plan,
    pub(super) renewing: bool,
}

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Passed,
    Failed,
    Skipped,
}

/// One promise.
pub(super) struct Check {
    pub(super) what: &'static str,
    pub(super) verdict: Verdict,
    pub(super) detail: String,
}

impl Check {
    fn of(what: &'static str, holds: bool, detail: String) -> Self {
        Self { what, verdict: if holds { Verdict::Passed } else { Verdict::Failed }, detail }
    }
}

/// Checks everything.
pub(super) async fn checks(e: &Evidence<'_>, place: &Place) -> Result<Vec<Check>, Error> {
    let mut checks = e.chunks();
    checks.push(e.first_second());
    checks.extend(e.subscription());
    checks.extend(e.core_away());
    checks.extend(e.relay_killed());
    checks.extend(e.renewals());
    if media::is_there().await {
        checks.push(alone(e.recording, e.plan.chunks, place).await?);
        checks.push(e.timeline(place).await?);
    } else {
        for what in ["every chunk decodes alone", "the contact's files play, unbroken"] {
            checks.push(Check { what, verdict: Verdict::Skipped, detail: "ffprobe is not installed".into() });
        }
    }
    Ok(checks)
}

impl Evidence<'_> {
    /// Chunks that were cut.
    pub(super) fn cut(&self) -> u64 {
        self.plan.chunks * self.recording.lanes.len() as u64
    }

    /// Chunks of which the core has no equal copy.
    pub(super) fn lost(&self) -> u64 {
        self.cut() - (self.held.equal.len() as u64).min(self.cut())
    }

    fn chunks(&self) -> Vec<Check> {
        let (sent, seen, watched) = (&self.ended.sent, &self.ended.seen, &self.watched);
        let bad = sent.unsettled + sent.rejected + sent.expired + sent.pending + sent.lost;
        vec![
            Check::of(
                "the capture client knows every chunk confirmed",
                self.ended.capture_ok && sent.chunks == self.cut() && sent.confirmed == sent.chunks && bad == 0,
                format!("{} of {}", sent.confirmed, self.cut()),
            ),
            Check::of(
                "the core's bytes are what was recorded",
                self.lost() == 0 && self.held.other == 0,
                format!("{} of {} equal", self.held.equal.len(), self.cut()),
            ),
            Check::of(
                "the contact's plaintext is what was recorded",
                watched.equal == watched.wanted && watched.different + seen.bad + seen.withdrawn + seen.omitted == 0,
                format!("{} of {} equal", watched.equal, watched.wanted),
            ),
            Check::of(
                "the contact knows every chunk it saw confirmed",
                self.ended.contact_ok && seen.confirmed == watched.wanted && seen.unsettled == 0,
                format!("{} of {}", seen.confirmed, watched.wanted),
            ),
            Check::of("nothing waits at the relay", self.waiting == 0, format!("{} chunks wait", self.waiting)),
        ]
    }

    /// Picture and sound of the first chunk are at the contact before any third chunk is cut.
    fn first_second(&self) -> Check {
        let what = "the contact can play before the third chunk is cut";
        let lanes = &self.board.lanes;
        let third = lanes.iter().filter_map(|lane| lane.chunks.get(&2)).map(|chunk| chunk.cut_ms).min();
        let first = |lane: &board::Lane| Some(lane.chunks.get(&0)?.contact?.last_byte);
        let playable: Option<Vec<i64>> = lanes.iter().filter(|lane| lane.is_near_live()).map(first).collect();
        match (third, playable.and_then(|times| times.into_iter().max())) {
            (Some(third), Some(playable)) => {
                Check::of(what, playable < third, format!("{} ms ahead of it", third - playable))
            }
            _ => Check::of(what, false, "it never came to that".into()),
        }
    }

    fn subscription(&self) -> Option<Check> {
        let seen = &self.ended.seen;
        let detail = format!("{} renewals", seen.renewals);
        let what = "the contact's subscription never broke";
        (!self.plan.relay_restart).then(|| Check::of(what, seen.reconnects == 0, detail))
    }

    fn core_away(&self) -> Option<Check> {
        self.plan.core_down?;
        let came = self
            .witnessed
            .core_away_ms
            .map_or(0, |(from, to)| self.board.came().filter(|came| (from..to).contains(&came.last_byte)).count());
        let detail = format!("{came} chunks came to the contact");
        Some(Check::of("the relay goes on while the core is away", came > 0, detail))
    }

    fn relay_killed(&self) -> Option<Check> {
        let killed = self.witnessed.relay_killed_ms.filter(|_| self.plan.relay_restart)?;
        let back = self.board.came().filter(|came| came.ended > killed).map(|came| came.last_byte).min();
        let breaks = self.ended.seen.reconnects;
        let detail = match back {
            Some(back) => format!("next chunk {} ms after the kill", back - killed),
            None => "no chunk after it".into(),
        };
        Some(Check::of("the contact goes on after the relay was killed", back.is_some() && breaks > 0, detail))
    }

    fn renewals(&self) -> Option<Check> {
        let sent = &self.ended.sent;
        let detail = format!("{} new streams, {} new capabilities", sent.rolls, sent.renewals);
        self.renewing.then(|| {
            let holds = sent.rolls > 0 && sent.renewals > 0 && self.ended.seen.renewals > 0;
            Check::of("streams and capabilities are renewed on the way", holds, detail)
        })
    }

    async fn timeline(&self, place: &Place) -> Result<Check, Error> {
        let what = "the contact's files play, unbroken";
        let seconds = (self.plan.chunks * self.recording.chunk_ms) as f64 / 1000.0;
        let mut detail = Vec::new();
        let mut holds = self.ended.seen.gaps == 0;
        for lane in self.recording.lanes.iter().filter(|lane| board::is_near_live(lane.variant)) {
            let file = place.joined(lane.variant);
            if let Some(complaint) = media::complaint(&file).await? {
                return Ok(Check::of(what, false, format!("{}: {complaint}", lane.variant)));
            }
            let line = media::timeline(&file).await?;
            holds &= line.hole <= MAX_HOLE && (line.length - seconds).abs() <= MAX_DRIFT;
            detail.push(format!("{} {:.1} s, holes up to {:.0} ms", lane.variant, line.length, line.hole * 1000.0));
        }
        Ok(Check::of(what, holds, detail.join("; ")))
    }
}

/// Decodes every chunk of the recording's first pass by itself: those that contacts see as the
/// contact wrote them, the others as the core holds them. Later passes are equal bytes.
async fn alone(recording: &Recording, chunks: u64, place: &Place) -> Result<Check, Error> {
    let what = "every chunk decodes alone";
    let mut decoded = 0;
    for lane in &recording.lanes {
        let dir = match lane.variant {
            Variant::LivePreview | Variant::AudioPriority => place.contact().join(lane.variant.as_str()),
            Variant::EvidenceMaster => place.at_core(lane.variant),
            _ => continue,
        };
        for seq in 0..recording.chunks().min(chunks) {
            if let Some(complaint) = media::complaint(&dir.join(format!("{seq:06}.mp4"))).await? {
                return Ok(Check::of(what, false, format!("{} {}: {complaint}", lane.variant, seq + 1)));
            }
            decoded += 1;
        }
    }
    Ok(Check::of(what, decoded > 0, format!("{decoded} chunks of picture and sound")))
}
