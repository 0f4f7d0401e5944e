//! `waystation-client watch`.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use secrecy::ExposeSecret as _;
use serde_json::json;
use tokio::time::Instant;
use waystation_proto::id::IncidentId;
use waystation_proto::message::{CaptureWord, StartWord};
use waystation_proto::{ContactState, Variant};

use super::output::Output;
use super::{CliError, FromArg, WatchArgs};
use crate::authority::{Authority, AuthorityError, ContactAuthority};
use crate::clock;
use crate::connect::Endpoint;
use crate::keys::GroupKey;
use crate::link::Link;
use crate::mp4::Joiner;
use crate::watch::{Config, Event, Label, MAX_CHUNK, Watch, Whole};

/// After the device said that it ended, the relay may still tell states for this long.
const AFTER_END: Duration = Duration::from_secs(3);
/// Pause between tries to learn from the core what a link shows.
const CORE_PAUSE: Duration = Duration::from_secs(1);

/// Runs to the end. True if every chunk that began was opened.
pub(super) async fn run(args: WatchArgs) -> Result<bool, CliError> {
    let (config, authority) = match &args.link {
        Some(file) => args.of_link(file).await?,
        None => args.of_session()?,
    };
    tokio::fs::create_dir_all(&args.out).await?;
    let mut viewer = Viewer::new(args.out.clone(), Output::new(args.json));
    let mut watch = Watch::start(config, authority);
    let mut stop = std::pin::pin!(super::stopped());
    let mut idle_from = Instant::now();
    let mut ended_at = None;
    loop {
        let idle = args.idle.map(|seconds| idle_from + Duration::from_secs(seconds));
        let until = ended_at.map(|at: Instant| at + AFTER_END).into_iter().chain(idle).min();
        let event = tokio::select! {
            event = watch.next() => event,
            () = sleep_until(until) => None,
            () = &mut stop => None,
        };
        let Some(event) = event else { break };
        if !matches!(event, Event::Disconnected { .. } | Event::Cursor(_) | Event::Renewed) {
            idle_from = Instant::now();
        }
        match event {
            Event::Capture { event: CaptureWord::Ended, .. } => ended_at = ended_at.or(Some(Instant::now())),
            Event::Capture { event: CaptureWord::Back, .. } => ended_at = None,
            _ => {}
        }
        viewer.take(event).await?;
        if args.until_confirmed.is_some_and(|wanted| viewer.is_complete(wanted)) {
            break;
        }
    }
    drop(watch);
    viewer.finish().await
}

impl WatchArgs {
    fn of_session(&self) -> Result<(Config, Arc<dyn Authority>), CliError> {
        let source = self.core.source(None, false)?;
        let incident = source.incident.ok_or(CliError::Usage("give --session-file to know what to watch"))?;
        let key = self.group_key_file.as_deref().ok_or(CliError::Usage("give --group-key-file"))?;
        Ok((self.config(self.relay.endpoint()?, GroupKey::read(key)?, incident), source.authority))
    }

    /// What a link holds; the core is asked which incident it is of.
    async fn of_link(&self, file: &Path) -> Result<(Config, Arc<dyn Authority>), CliError> {
        let link = Link::parse(super::link::read(file)?.expose_secret())?;
        let relay = super::endpoint(&link.relay, self.relay.ca_file.as_deref())?;
        let core = super::endpoint(&link.core, self.core.core_ca_file.as_deref())?;
        let authority = Arc::new(ContactAuthority::new(&core, link.grant));
        let ids = loop {
            match authority.ids(None).await {
                Err(AuthorityError::Away) => tokio::time::sleep(CORE_PAUSE).await,
                answered => break answered?,
            }
        };
        Ok((self.config(relay, link.key, ids.incident), authority))
    }

    fn config(&self, relay: Endpoint, group_key: GroupKey, incident: IncidentId) -> Config {
        Config {
            relay,
            transport: self.relay.transport(),
            group_key,
            incident,
            lanes: (!self.lanes.is_empty()).then(|| self.lanes.clone()),
            from: match self.from {
                FromArg::Live => StartWord::Live,
                FromArg::Oldest => StartWord::Oldest,
            },
            max_chunk: MAX_CHUNK,
        }
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// A chunk that was written.
struct Written {
    started_ms: i64,
    ended_ms: i64,
}

/// Writes chunks, counts, prints.
struct Viewer {
    out: PathBuf,
    output: Output,
    written: BTreeMap<Variant, BTreeMap<u64, Written>>,
    began: HashSet<Key>,
    lane_seqs: HashMap<Key, u64>,
    opened: HashSet<Key>,
    confirmed: HashSet<Key>,
    unsettled: HashSet<Key>,
    withdrawn: u64,
    omitted: u64,
    bad: u64,
    reconnects: u64,
    renewals: u64,
    streams: u64,
    first_byte_ms: Option<i64>,
    /// From the cut of a chunk to its last byte here, in milliseconds.
    delays: Vec<i64>,
}

type Key = (Variant, u64, u64);

const fn key(label: &Label) -> Key {
    (label.variant, label.stream_no, label.index)
}

impl Viewer {
    fn new(out: PathBuf, output: Output) -> Self {
        Self {
            out,
            output,
            written: BTreeMap::new(),
            began: HashSet::new(),
            lane_seqs: HashMap::new(),
            opened: HashSet::new(),
            confirmed: HashSet::new(),
            unsettled: HashSet::new(),
            withdrawn: 0,
            omitted: 0,
            bad: 0,
            reconnects: 0,
            renewals: 0,
            streams: 0,
            first_byte_ms: None,
            delays: Vec::new(),
        }
    }

    async fn take(&mut self, event: Event) -> Result<(), CliError> {
        self.count(&event);
        match event {
            Event::Complete(whole) => self.write(whole).await?,
            Event::Progress { label, lane_seq: Some(seq), .. } => self.first_byte(&label, seq),
            event => {
                if let Some(mut value) = event_json(&event) {
                    if let Some(seq) = label_of(&event).and_then(|label| self.lane_seqs.get(&key(label))) {
                        value["lane_seq"] = json!(seq);
                    }
                    self.output.line(&value);
                }
            }
        }
        let lines = self.lines();
        self.output.draw(&lines);
        Ok(())
    }

    fn count(&mut self, event: &Event) {
        match event {
            Event::Begins { label, state, .. } => {
                self.began.insert(key(label));
                self.note_state(label, *state);
            }
            Event::Progress { .. } => {
                self.first_byte_ms.get_or_insert_with(clock::unix_ms);
            }
            Event::State { label: Some(label), state, .. } => self.note_state(label, *state),
            Event::Withdrawn { label, .. } => {
                self.withdrawn += 1;
                self.began.remove(&key(label));
            }
            Event::Omitted { count, .. } => self.omitted += count,
            Event::Bad { .. } => self.bad += 1,
            Event::Disconnected { .. } => self.reconnects += 1,
            Event::Renewed => self.renewals += 1,
            Event::Stream { .. } => self.streams += 1,
            _ => {}
        }
    }

    /// Tells of a chunk's first bytes once, as soon as its header is among them.
    fn first_byte(&mut self, label: &Label, lane_seq: u64) {
        if self.lane_seqs.insert(key(label), lane_seq).is_none() {
            let mut value = label_json("first_byte", label);
            value["lane_seq"] = json!(lane_seq);
            self.output.line(&value);
        }
    }

    /// Whether so many chunks are confirmed, and none is still arriving: the core may be quicker
    /// than the way here.
    fn is_complete(&self, confirmed: u64) -> bool {
        self.confirmed.len() as u64 >= confirmed && self.began.is_subset(&self.opened)
    }

    fn note_state(&mut self, label: &Label, state: ContactState) {
        let key = key(label);
        match state {
            ContactState::Confirmed => {
                self.unsettled.remove(&key);
                self.confirmed.insert(key);
            }
            ContactState::Unsettled => {
                self.unsettled.insert(key);
            }
            _ => {}
        }
    }

    async fn write(&mut self, whole: Whole) -> Result<(), CliError> {
        let label = whole.label;
        self.opened.insert(key(&label));
        let lane = self.written.entry(label.variant).or_default();
        let seq = whole.lane_seq.unwrap_or_else(|| lane.last_key_value().map_or(0, |(last, _)| last + 1));
        lane.insert(seq, Written { started_ms: label.started_ms, ended_ms: label.ended_ms });
        self.delays.push(whole.last_byte_ms - label.ended_ms);
        let path = chunk_path(&self.out, label.variant, seq);
        if let Some(directory) = path.parent() {
            tokio::fs::create_dir_all(directory).await?;
        }
        let mut value = label_json("complete", &label);
        value["lane_seq"] = json!(seq);
        value["first_byte_ms"] = json!(whole.first_byte_ms);
        value["last_byte_ms"] = json!(whole.last_byte_ms);
        tokio::fs::write(path, &whole.plaintext).await?;
        self.output.line(&value);
        Ok(())
    }

    fn lines(&self) -> Vec<String> {
        let line = |(variant, chunks): (&Variant, &BTreeMap<u64, Written>)| {
            let confirmed = self.confirmed.iter().filter(|key| key.0 == *variant).count();
            format!("{:<17}  seen {}  confirmed {confirmed}", variant.as_str(), chunks.len())
        };
        self.written.iter().map(line).collect()
    }

    /// Joins each lane and prints the summary. True if everything that began was opened.
    async fn finish(mut self) -> Result<bool, CliError> {
        let mut gaps = 0;
        for (variant, chunks) in &self.written {
            gaps += join(&self.out, *variant, chunks).await?;
        }
        self.delays.sort_unstable();
        let at = |share: f64| self.delays.get((self.delays.len() as f64 * share) as usize).or(self.delays.last());
        let unopened = self.began.difference(&self.opened).count();
        self.output.line(&json!({"event": "summary", "seen": self.began.len(), "complete": self.opened.len(),
            "confirmed": self.confirmed.len(), "unsettled": self.unsettled.len(), "withdrawn": self.withdrawn,
            "omitted": self.omitted, "bad": self.bad, "unopened": unopened, "gaps": gaps,
            "reconnects": self.reconnects, "renewals": self.renewals, "streams": self.streams,
            "first_byte_ms": self.first_byte_ms, "delay_p50_ms": at(0.5), "delay_p99_ms": at(0.99),
            "at_ms": clock::unix_ms()}));
        Ok(unopened == 0 && self.bad == 0 && !self.opened.is_empty())
    }
}

fn chunk_path(out: &Path, variant: Variant, seq: u64) -> PathBuf {
    out.join(variant.as_str()).join(format!("{seq:06}.mp4"))
}

/// Writes one file for a lane; returns how many chunks are missing in it. What can't be joined,
/// because it is no fragmented MP4, is left as single chunks.
async fn join(out: &Path, variant: Variant, chunks: &BTreeMap<u64, Written>) -> Result<u64, CliError> {
    let mut joiner = Joiner::default();
    let (mut file, mut gaps) = (Vec::new(), 0);
    let mut before: Option<(u64, i64)> = None;
    for (seq, written) in chunks {
        let (missing, gap_ms) = match before {
            Some((last, ended)) if *seq > last + 1 => (seq - last - 1, (written.started_ms - ended).max(0)),
            _ => (0, 0),
        };
        gaps += missing;
        let bytes = tokio::fs::read(chunk_path(out, variant, *seq)).await?;
        if let Ok(bytes) = joiner.append(&bytes, gap_ms.unsigned_abs()) {
            file.extend_from_slice(&bytes);
        }
        before = Some((*seq, written.ended_ms));
    }
    if !file.is_empty() {
        tokio::fs::write(out.join(format!("{variant}.mp4")), file).await?;
    }
    Ok(gaps)
}

fn label_json(event: &str, label: &Label) -> serde_json::Value {
    json!({"event": event, "variant": label.variant, "index": label.index, "stream_no": label.stream_no,
        "started_ms": label.started_ms, "ended_ms": label.ended_ms, "length": label.length,
        "at_ms": clock::unix_ms()})
}

const fn label_of(event: &Event) -> Option<&Label> {
    match event {
        Event::Begins { label, .. } | Event::Bad { label, .. } | Event::Withdrawn { label, .. } => Some(label),
        Event::State { label, .. } => label.as_ref(),
        _ => None,
    }
}

fn event_json(event: &Event) -> Option<serde_json::Value> {
    let at_ms = clock::unix_ms();
    Some(match event {
        // One line for each piece would drown the rest.
        Event::Progress { .. } | Event::Cursor(_) | Event::Complete(_) => return None,
        Event::Watching { window_start_ms, earlier } => {
            json!({"event": "watching", "window_start_ms": window_start_ms, "earlier": earlier, "at_ms": at_ms})
        }
        Event::Begins { label, state, replay } => {
            let mut value = label_json("begins", label);
            value["state"] = json!(state);
            value["replay"] = json!(replay);
            value
        }
        Event::Bad { label, why } => {
            let mut value = label_json("bad", label);
            value["why"] = json!(format!("{why:?}").to_lowercase());
            value
        }
        Event::State { label, state, code, receipt } => {
            let mut value = match label {
                Some(label) => label_json("state", label),
                None => json!({"event": "state", "at_ms": at_ms}),
            };
            value["state"] = json!(state);
            value["code"] = json!(code);
            value["receipt"] = json!(super::proof_word(*receipt));
            value
        }
        Event::Withdrawn { label, reason } => {
            let mut value = label_json("withdrawn", label);
            value["reason"] = json!(reason);
            value
        }
        Event::Omitted { variant, count, reason } => {
            json!({"event": "omitted", "variant": variant, "count": count, "reason": reason, "at_ms": at_ms})
        }
        Event::Stream { variant, stream_no } => {
            json!({"event": "stream", "variant": variant, "stream_no": stream_no, "at_ms": at_ms})
        }
        Event::Capture { event, last_sign_s } => {
            json!({"event": "capture", "capture": event, "last_sign_s": last_sign_s, "at_ms": at_ms})
        }
        Event::Sign { last_sign_s } => json!({"event": "sign", "last_sign_s": last_sign_s, "at_ms": at_ms}),
        Event::Disconnected { code } => json!({"event": "disconnected", "code": code, "at_ms": at_ms}),
        Event::Renewed => json!({"event": "renewed", "at_ms": at_ms}),
        Event::Ending { reason } => json!({"event": "ending", "reason": reason, "at_ms": at_ms}),
    })
}
