//! What a queue remembers, and the records that change it. Pure: a state is what its records, one
//! after the other, make of it; an image of a state is a list of records that makes it anew.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use waystation_proto::id::{Digest, StreamId};
use waystation_proto::{ChunkState, Media, Offer, Variant, dictionary};

use crate::authority::Ids;
use crate::capture::status::{self, ItemState, SessionState};

/// One change. What is not named in a file of an older program has its default.
#[derive(Clone, Serialize, Deserialize)]
#[serde(tag = "r", rename_all = "snake_case")]
pub(crate) enum Record {
    /// The queue was opened: attempts of chunks count on from its number.
    Opened { epoch: u64, group_key: String },
    /// The recording has its names.
    Ids { ids: Ids },
    /// A lane, as it stands.
    Lane { lane: LaneState },
    /// A lane goes on with a stream.
    Stream { variant: Variant, stream: StreamId },
    /// A chunk was cut; its plaintext rests in a file.
    Kept { id: u64, variant: Variant, lane_seq: u64, file: String, size: u64, started_ms: i64, ended_ms: i64 },
    /// A chunk was sealed; its envelope rests in a file, in place of the plaintext.
    Sealed { id: u64, file: String, size: u64, offer: String, sha256: String, stream_no: u64 },
    /// How far a chunk is.
    Noted { id: u64, note: Note },
    /// The core confirmed a chunk.
    Confirmed { id: u64 },
    /// A chunk's file is gone or does not open.
    Lost { id: u64 },
    /// The session changed its state.
    Session { state: SessionState },
    /// Nothing more will be cut but the manifest.
    Closing,
    /// The manifest is chunk `id`; none: there will be none.
    Manifest { id: Option<u64> },
    /// The relay holds something whole, for the first time.
    Ready,
    /// The core signs receipts.
    Signs,
    /// The number of the next chunk.
    NextId { id: u64 },
    /// Sums of what is over, in place of what the records before make of them.
    Totals { totals: Totals },
    /// The image ends; changes follow.
    ImageEnd,
}

/// A lane: how many chunks were cut for it, and how far its streams are used.
#[derive(Clone, Serialize, Deserialize, PartialEq, Eq)]
pub(crate) struct LaneState {
    pub(crate) variant: Variant,
    pub(crate) media: Media,
    #[serde(default)]
    pub(crate) next_seq: u64,
    #[serde(default)]
    pub(crate) streams: Vec<StreamState>,
    /// SHA-256 over the digest so far and the SHA-256 of each sealed chunk, in the lane's order.
    #[serde(default)]
    pub(crate) chain: String,
}

/// A stream of a lane, and its highest index used.
#[derive(Clone, Serialize, Deserialize, PartialEq, Eq)]
pub(crate) struct StreamState {
    pub(crate) stream: StreamId,
    pub(crate) used: u64,
}

/// How far a chunk is, as far as that outlives the process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Note {
    /// Bytes that a relay was seen to hold, at the highest.
    #[serde(default)]
    pub(crate) done: u64,
    /// Tries that failed and count.
    #[serde(default)]
    pub(crate) retries: u32,
    /// No further try before somebody asks for it.
    #[serde(default)]
    pub(crate) failed: bool,
    /// What the relay said last.
    #[serde(default)]
    pub(crate) state: Option<ChunkState>,
    /// It was offered: a relay may hold part of it.
    #[serde(default)]
    pub(crate) offered: bool,
}

/// Sums over the whole session.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Totals {
    /// Chunks cut, without the manifest.
    pub(crate) chunks: u64,
    /// Of those, confirmed.
    pub(crate) confirmed: u64,
    /// Of those, gone from the device unsent.
    pub(crate) lost: u64,
    /// Bytes of all envelopes.
    pub(crate) bytes: u64,
    /// Of those, confirmed.
    pub(crate) confirmed_bytes: u64,
}

/// One chunk that is not confirmed.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Item {
    pub(crate) variant: Variant,
    pub(crate) lane_seq: u64,
    pub(crate) file: String,
    /// Bytes on disk.
    pub(crate) size: u64,
    pub(crate) started_ms: i64,
    pub(crate) ended_ms: i64,
    pub(crate) sealed: Option<Sealed>,
    pub(crate) note: Note,
}

/// What a sealed chunk is offered as.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Sealed {
    pub(crate) offer: Offer,
    pub(crate) stream_no: u64,
}

/// What is to be done for the manifest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Manifest {
    /// It was not cut yet.
    #[default]
    Due,
    /// It is this chunk.
    Cut(u64),
    /// There will be none.
    None,
}

/// Everything a queue remembers.
#[derive(Clone, PartialEq, Eq, Default)]
pub(crate) struct State {
    pub(crate) epoch: u64,
    /// Tells whether the group key is that of the queue.
    pub(crate) group_key: String,
    pub(crate) ids: Option<Ids>,
    pub(crate) lanes: Vec<LaneState>,
    pub(crate) items: BTreeMap<u64, Item>,
    pub(crate) next_id: u64,
    pub(crate) session: SessionState,
    pub(crate) closing: bool,
    pub(crate) manifest: Manifest,
    pub(crate) ready: bool,
    /// A receipt of the core was seen.
    pub(crate) signs: bool,
    pub(crate) totals: Totals,
}

impl State {
    /// What a list of records makes.
    pub(crate) fn of(records: Vec<Record>) -> Self {
        let mut state = Self::default();
        records.into_iter().for_each(|record| state.apply(record));
        state
    }

    /// Bytes on disk.
    pub(crate) fn size(&self) -> u64 {
        self.items.values().map(|item| item.size).sum()
    }

    /// A lane.
    pub(crate) fn lane(&self, variant: Variant) -> Option<&LaneState> {
        self.lanes.iter().find(|lane| lane.variant == variant)
    }

    /// Whether a chunk is the manifest.
    pub(crate) fn is_manifest(&self, id: u64) -> bool {
        self.manifest == Manifest::Cut(id)
    }

    /// Makes a change. One that speaks of what is not there changes nothing.
    pub(crate) fn apply(&mut self, record: Record) {
        match record {
            Record::Opened { epoch, group_key } => (self.epoch, self.group_key) = (epoch, group_key),
            Record::Ids { ids } => self.ids = Some(ids),
            Record::Lane { lane } => match self.lanes.iter_mut().find(|known| known.variant == lane.variant) {
                Some(known) => *known = lane,
                None => self.lanes.push(lane),
            },
            Record::Stream { variant, stream } => self.stream(variant, stream),
            Record::Kept { id, variant, lane_seq, file, size, started_ms, ended_ms } => {
                let note = Note::default();
                let item = Item { variant, lane_seq, file, size, started_ms, ended_ms, sealed: None, note };
                self.kept(id, item);
            }
            Record::Sealed { id, file, size, offer, sha256, stream_no } => {
                if let Some(offer) = read_offer(&offer, &sha256) {
                    self.sealed(id, file, size, Sealed { offer, stream_no });
                }
            }
            Record::Noted { id, note } => {
                if let Some(item) = self.items.get_mut(&id) {
                    item.note = note;
                }
            }
            Record::Confirmed { id } => self.over(id, true),
            Record::Lost { id } => self.over(id, false),
            Record::Session { state } => self.session = state,
            Record::Closing => self.closing = true,
            Record::Manifest { id } => self.manifest(id),
            Record::Ready => self.ready = true,
            Record::Signs => self.signs = true,
            Record::NextId { id } => self.next_id = id,
            Record::Totals { totals } => self.totals = totals,
            Record::ImageEnd => {}
        }
    }

    /// Records that make this state.
    pub(crate) fn image(&self) -> Vec<Record> {
        let mut out = vec![Record::Opened { epoch: self.epoch, group_key: self.group_key.clone() }];
        out.extend(self.ids.clone().map(|ids| Record::Ids { ids }));
        out.extend(self.items.iter().flat_map(|(id, item)| item.image(*id)));
        // These stand as they are, whatever the chunks before made of them.
        out.extend(self.lanes.iter().map(|lane| Record::Lane { lane: lane.clone() }));
        match self.manifest {
            Manifest::Due => {}
            Manifest::Cut(id) => out.push(Record::Manifest { id: Some(id) }),
            Manifest::None => out.push(Record::Manifest { id: None }),
        }
        out.push(Record::Totals { totals: self.totals });
        out.push(Record::Session { state: self.session });
        out.extend(self.closing.then_some(Record::Closing));
        out.extend(self.ready.then_some(Record::Ready));
        out.extend(self.signs.then_some(Record::Signs));
        out.push(Record::NextId { id: self.next_id });
        out.push(Record::ImageEnd);
        out
    }

    fn stream(&mut self, variant: Variant, stream: StreamId) {
        if let Some(lane) = self.lanes.iter_mut().find(|lane| lane.variant == variant) {
            lane.streams.push(StreamState { stream, used: 0 });
        }
    }

    fn kept(&mut self, id: u64, item: Item) {
        if let Some(lane) = self.lanes.iter_mut().find(|lane| lane.variant == item.variant) {
            lane.next_seq = lane.next_seq.max(item.lane_seq + 1);
        }
        self.next_id = self.next_id.max(id + 1);
        self.totals.chunks += 1;
        self.items.insert(id, item);
    }

    fn sealed(&mut self, id: u64, file: String, size: u64, sealed: Sealed) {
        let Some(item) = self.items.get_mut(&id) else { return };
        if let Some(lane) = self.lanes.iter_mut().find(|lane| lane.variant == item.variant) {
            for stream in lane.streams.iter_mut().filter(|stream| stream.stream == sealed.offer.stream) {
                stream.used = stream.used.max(sealed.offer.index);
            }
            lane.chain = chain(&lane.chain, &sealed.offer.sha256);
        }
        self.totals.bytes += sealed.offer.length;
        (item.file, item.size, item.sealed) = (file, size, Some(sealed));
    }

    fn over(&mut self, id: u64, confirmed: bool) {
        let Some(item) = self.items.remove(&id) else { return };
        let length = item.sealed.map_or(0, |sealed| sealed.offer.length);
        let counts = u64::from(!self.is_manifest(id));
        if confirmed {
            self.totals.confirmed += counts;
            self.totals.confirmed_bytes += length;
        } else {
            self.totals.lost += counts;
            self.totals.bytes -= length.min(self.totals.bytes);
            if self.is_manifest(id) {
                // It can be written again.
                self.manifest = Manifest::Due;
            }
        }
    }

    fn manifest(&mut self, id: Option<u64>) {
        self.manifest = id.map_or(Manifest::None, Manifest::Cut);
        // It was counted as a chunk when it was kept.
        self.totals.chunks -= u64::from(id.is_some()).min(self.totals.chunks);
    }
}

impl Item {
    /// Bytes to be sent, or those of the plaintext while it is not sealed.
    pub(crate) fn length(&self) -> u64 {
        self.sealed.as_ref().map_or(self.size, |sealed| sealed.offer.length)
    }

    /// For its owner, by what is remembered alone; `open` is its state if nothing says more.
    pub(crate) fn shown(&self, open: ItemState) -> status::Item {
        let refused = self.note.state == Some(ChunkState::Rejected);
        let state = match self.note {
            note if note.failed || refused => ItemState::Failed,
            note if note.state.is_some_and(ChunkState::held) => ItemState::Uploading,
            note if note.retries > 0 => ItemState::Retrying,
            _ => open,
        };
        let (variant, lane_seq, retries) = (self.variant, self.lane_seq, self.note.retries);
        status::Item { variant, lane_seq, state, done: self.note.done, total: self.length(), retries }
    }

    fn image(&self, id: u64) -> Vec<Record> {
        let Self { variant, lane_seq, file, size, started_ms, ended_ms, sealed, note } = self.clone();
        let kept = Record::Kept { id, variant, lane_seq, file: file.clone(), size, started_ms, ended_ms };
        let sealed = sealed.map(|sealed| Record::sealed(id, file, size, &sealed.offer, sealed.stream_no));
        let noted = (note != Note::default()).then_some(Record::Noted { id, note });
        [Some(kept), sealed, noted].into_iter().flatten().collect()
    }
}

impl Record {
    /// Others rely on it: it is synced before anybody acts on it.
    pub(crate) const fn is_waited_for(&self) -> bool {
        !matches!(self, Self::Noted { .. } | Self::Ready)
    }

    /// A chunk is sealed.
    pub(crate) fn sealed(id: u64, file: String, size: u64, offer: &Offer, stream_no: u64) -> Self {
        let sha256 = offer.sha256.to_hex();
        Self::Sealed { id, file, size, offer: dictionary::write_offer(offer), sha256, stream_no }
    }
}

/// The offer as it stands on the wire, and back.
fn read_offer(text: &str, sha256: &str) -> Option<Offer> {
    dictionary::parse_offer(text, Digest::from_hex(sha256).ok()?, None).ok()
}

/// The digest over a lane's sealed chunks, one further.
pub(crate) fn chain(before: &str, sha256: &Digest) -> String {
    let bytes = [before.as_bytes(), &sha256.0].concat();
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &bytes);
    digest.as_ref().try_into().map(|bytes| Digest(bytes).to_hex()).unwrap_or_default()
}
