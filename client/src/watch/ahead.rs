//! A subscription over plain HTTP/3 requests: the relay tells on one stream what there is, and each
//! chunk is asked for by itself, the next one of each lane before it begins. So a lost packet of a
//! picture holds up that picture alone. Where the relay says that much is lost, sound is asked for
//! twice, and whatever comes first is taken.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use http::HeaderValue;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;
use waystation_proto::frame::{self, Frame, kind};
use waystation_proto::id::IncidentId;
use waystation_proto::message::{ChunkBegins, Complete, Omitted, OmittedReason, Withdrawn};
use waystation_proto::varint;
use waystation_proto::{ContactState, Offer, Variant};

use super::asker::{Asker, Name, News};
use super::source::Streaming;
use crate::h3link::{H3, H3Body};
use crate::http::Broken;

/// Chunks asked for and not whole; further ones wait their turn.
const MAX_ASKED: usize = 24;
/// What is heard of requests and not looked at.
const MAX_NEWS: usize = 32;
/// Chunks that were whole of late, to know them when the relay tells of them late.
const MAX_WHOLE: usize = 256;
/// Cursors that wait for what they count; beyond, the newest takes the place of the one before.
const MAX_CURSORS: usize = 16;
/// A chunk that breaks off is asked for so often.
const MAX_TRIES: u32 = 5;
/// Packets lost of a thousand from which on sound is asked for twice: more than one of twenty chunks would
/// have to wait for one that is sent again. Taken for so many where nothing is known yet.
const TWICE_FROM: u64 = 10;
/// The same for three times: more than one of twenty would have to wait for one that is lost twice.
const THRICE_FROM: u64 = 80;

/// A chunk that is asked for.
struct Asked {
    name: Name,
    variant: Variant,
    /// It was told of.
    begun: Option<ChunkBegins>,
    /// The contact came to it: it is history.
    replay: bool,
    /// Bytes passed on, from its start.
    passed: u64,
    requests: Vec<AbortOnDropHandle<()>>,
    failed: usize,
    tries: u32,
}

/// A subscription and its requests.
pub(crate) struct Ahead {
    control: Streaming<H3Body>,
    asker: Asker,
    news: mpsc::Receiver<(u64, News)>,
    /// In the order in which they are wanted.
    asked: std::collections::BTreeMap<u64, Asked>,
    names: HashMap<Name, u64>,
    /// The relay's handles.
    theirs: HashMap<u64, Name>,
    whole: VecDeque<Name>,
    next: u64,
    loss: u64,
    out: VecDeque<Frame>,
    cursors: VecDeque<(Vec<u64>, Frame)>,
    /// The last word, which waits for what was told of before.
    ending: Option<Frame>,
}

impl Ahead {
    pub(crate) fn new(connection: H3, control: Streaming<H3Body>, bearer: HeaderValue, incident: IncidentId) -> Self {
        let (tell, news) = mpsc::channel(MAX_NEWS);
        let asker = Asker { connection: Arc::new(connection), bearer, incident, tell };
        Self {
            control,
            asker,
            news,
            asked: std::collections::BTreeMap::new(),
            names: HashMap::new(),
            theirs: HashMap::new(),
            whole: VecDeque::new(),
            next: 0,
            loss: TWICE_FROM,
            out: VecDeque::new(),
            cursors: VecDeque::new(),
            ending: None,
        }
    }

    /// The next frame, as if all of them had come on one stream. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Result<Frame, Broken> {
        loop {
            if let Some(frame) = self.out.pop_front() {
                return Ok(frame);
            }
            if self.ending.is_some() && !self.awaits() {
                return self.ending.take().ok_or(Broken);
            }
            tokio::select! {
                frame = self.control.next(super::source::h3_data), if self.ending.is_none() => self.told(frame?)?,
                Some((handle, news)) = self.news.recv() => self.heard(handle, news)?,
            }
        }
    }

    /// Something that was told of is still to come.
    fn awaits(&self) -> bool {
        self.asked.values().any(|asked| asked.begun.is_some())
    }

    // === what the relay tells ===

    fn told(&mut self, frame: Frame) -> Result<(), Broken> {
        match frame.kind {
            kind::CHUNK => self.told_of(frame::control(&frame).map_err(|_| Broken)?),
            // Whole is what came whole here.
            kind::COMPLETE => {
                let Complete { handle } = frame::control(&frame).map_err(|_| Broken)?;
                self.theirs.remove(&handle);
            }
            kind::WITHDRAWN => {
                let told: Withdrawn = frame::control(&frame).map_err(|_| Broken)?;
                let own = self.theirs.remove(&told.handle).and_then(|name| self.names.get(&name).copied());
                if let Some(handle) = own {
                    self.forget(handle);
                    self.say(kind::WITHDRAWN, &Withdrawn { handle, ..told });
                }
            }
            kind::OMITTED => {
                let told: Omitted = frame::control(&frame).map_err(|_| Broken)?;
                self.left_out(&told);
                self.out.push_back(frame);
            }
            // A relay that sends bytes here all the same: they come by request.
            kind::PIECE => {}
            kind::CURSOR => self.cursor(frame),
            kind::ENDING => self.ending = Some(frame),
            _ => self.out.push_back(frame),
        }
        Ok(())
    }

    fn told_of(&mut self, told: ChunkBegins) {
        let name = (told.stream.clone(), told.index);
        self.theirs.insert(told.handle, name.clone());
        let state = told.state;
        if self.whole.contains(&name) {
            return self.late_state(name, state);
        }
        let handle = self.ask(name.clone(), told.variant, told.replay);
        let Some(asked) = self.asked.get_mut(&handle) else { return };
        match &asked.begun {
            Some(begun) if begun.sha256 == told.sha256 => self.late_state(name, state),
            _ => {
                asked.passed = 0;
                self.begin(ChunkBegins { handle, ..told });
            }
        }
    }

    /// A chunk was told of by its answer before; how it stands since then.
    fn late_state(&mut self, (stream, index): Name, state: ContactState) {
        if state != ContactState::Arriving {
            self.say(kind::STATE, &serde_json::json!({ "stream": stream, "index": index, "state": state }));
        }
    }

    /// A chunk begins: newer than every picture of which nothing came yet, and the next one will follow.
    fn begin(&mut self, begins: ChunkBegins) {
        let (handle, variant, replay) = (begins.handle, begins.variant, begins.replay);
        let next = (begins.stream.clone(), begins.index + 1);
        self.say(kind::CHUNK, &begins);
        if variant == Variant::LivePreview && !replay {
            self.leave_out_before(handle);
        }
        if let Some(asked) = self.asked.get_mut(&handle) {
            (asked.begun, asked.replay) = (Some(begins), replay);
        }
        if !self.names.contains_key(&next) && !self.whole.contains(&next) {
            // Of one lane only one chunk is asked for ahead: the lane is where its newest chunk is.
            self.forget_ahead(variant, &next);
            self.ask(next, variant, false);
        }
    }

    fn forget_ahead(&mut self, variant: Variant, but: &Name) {
        let ahead = |asked: &Asked| asked.begun.is_none() && asked.variant == variant && asked.name != *but;
        let old: Vec<u64> = self.asked.iter().filter(|(_, asked)| ahead(asked)).map(|(handle, _)| *handle).collect();
        for handle in old {
            self.forget(handle);
        }
    }

    /// Of pictures the newest wins: those of which nothing came are left out, and named.
    fn leave_out_before(&mut self, newest: u64) {
        let waits = |asked: &&Asked| {
            asked.variant == Variant::LivePreview && asked.begun.is_some() && !asked.replay && asked.passed == 0
        };
        let old: Vec<_> =
            self.asked.range(..newest).filter(|(_, asked)| waits(asked)).map(|(handle, _)| *handle).collect();
        for handle in old {
            self.give_up(handle, OmittedReason::Slow);
        }
    }

    fn give_up(&mut self, handle: u64, reason: OmittedReason) {
        let Some(Asked { name: (stream, index), .. }) = self.forget(handle) else { return };
        self.say(kind::OMITTED, &Omitted { stream, from: index, to: index, reason });
    }

    fn left_out(&mut self, told: &Omitted) {
        let named = |asked: &Asked| asked.name.0 == told.stream && (told.from..=told.to).contains(&asked.name.1);
        let gone: Vec<_> = self.asked.iter().filter(|(_, asked)| named(asked)).map(|(handle, _)| *handle).collect();
        for handle in gone {
            let Some(asked) = self.forget(handle) else { continue };
            if asked.begun.is_none() {
                self.ask((told.stream.clone(), told.to + 1), asked.variant, false);
            }
        }
    }

    /// A cursor counts what was told of before it: it is passed on when that is here.
    fn cursor(&mut self, frame: Frame) {
        let open = self.asked.iter().filter(|(_, asked)| asked.begun.is_some()).map(|(handle, _)| *handle).collect();
        if self.cursors.len() >= MAX_CURSORS {
            self.cursors.pop_back();
        }
        self.cursors.push_back((open, frame));
        self.release_cursors();
    }

    fn release_cursors(&mut self) {
        while let Some((open, _)) = self.cursors.front() {
            if open.iter().any(|handle| self.asked.contains_key(handle)) {
                return;
            }
            self.out.extend(self.cursors.pop_front().map(|(_, frame)| frame));
        }
    }

    // === requests ===

    /// Asks for a chunk, unless it is asked for; its handle.
    fn ask(&mut self, name: Name, variant: Variant, replay: bool) -> u64 {
        if let Some(handle) = self.names.get(&name) {
            return *handle;
        }
        let handle = self.next;
        self.next += 1;
        self.names.insert(name.clone(), handle);
        let asked = Asked { name, variant, begun: None, replay, passed: 0, requests: Vec::new(), failed: 0, tries: 0 };
        self.asked.insert(handle, asked);
        self.request_more();
        handle
    }

    /// Makes the requests that may be made.
    fn request_more(&mut self) {
        let copies = self.copies();
        let mut free = MAX_ASKED.saturating_sub(self.asked.values().filter(|a| !a.requests.is_empty()).count());
        for (handle, asked) in self.asked.iter_mut().filter(|(_, asked)| asked.requests.is_empty()) {
            if free == 0 {
                return;
            }
            free -= 1;
            let copies = if asked.variant == Variant::AudioPriority { copies } else { 1 };
            asked.requests = (0..copies).map(|_| self.asker.ask(*handle, &asked.name)).collect();
            asked.failed = 0;
        }
    }

    /// How often sound is asked for. A link that takes less than there is takes nothing twice.
    fn copies(&self) -> u32 {
        let pictures = |asked: &&Asked| asked.variant == Variant::LivePreview && asked.begun.is_some();
        let behind = self.asked.values().filter(pictures).count() > 1;
        match self.loss {
            THRICE_FROM.. if !behind => 3,
            TWICE_FROM.. if !behind => 2,
            _ => 1,
        }
    }

    fn forget(&mut self, handle: u64) -> Option<Asked> {
        let asked = self.asked.remove(&handle)?;
        self.names.remove(&asked.name);
        self.release_cursors();
        self.request_more();
        Some(asked)
    }

    fn heard(&mut self, handle: u64, news: News) -> Result<(), Broken> {
        // One that is not wanted any more may have said something before it ended.
        let Some(asked) = self.asked.get_mut(&handle) else { return Ok(()) };
        match news {
            News::Begins(offer, loss) => {
                self.loss = loss.unwrap_or(TWICE_FROM);
                match &asked.begun {
                    None => {
                        let begins = begins(handle, *offer, asked.variant);
                        self.begin(begins);
                    }
                    // Another attempt's bytes: this one's will be withdrawn.
                    Some(begun) if begun.sha256 != offer.sha256 => asked.requests.clear(),
                    Some(_) => {}
                }
            }
            News::Bytes(offset, bytes) => {
                let end = offset + bytes.len() as u64;
                if offset <= asked.passed && end > asked.passed {
                    asked.passed = end;
                    self.out.push_back(piece(handle, offset, &bytes));
                }
            }
            News::Whole => {
                if let Some(asked) = self.forget(handle) {
                    self.whole.push_back(asked.name);
                    if self.whole.len() > MAX_WHOLE {
                        self.whole.pop_front();
                    }
                }
                // In front of a cursor that counts it.
                self.say_first(kind::COMPLETE, &Complete { handle });
            }
            News::Failed(absent) => return self.failed(handle, absent),
        }
        Ok(())
    }

    fn failed(&mut self, handle: u64, absent: bool) -> Result<(), Broken> {
        let Some(asked) = self.asked.get_mut(&handle) else { return Ok(()) };
        asked.failed += 1;
        if asked.failed < asked.requests.len() {
            return Ok(());
        }
        asked.requests.clear();
        asked.tries += 1;
        match (&asked.begun, absent) {
            // It did not begin in time: asked for again as long as the lane is there.
            (None, true) => asked.tries = 0,
            (Some(_), true) => {
                self.give_up(handle, OmittedReason::Evicted);
                return Ok(());
            }
            (_, false) if asked.tries >= MAX_TRIES => return Err(Broken),
            (_, false) => {}
        }
        self.request_more();
        Ok(())
    }

    fn say(&mut self, kind: u64, body: &impl serde::Serialize) {
        self.out.push_back(control(kind, body));
    }

    fn say_first(&mut self, kind: u64, body: &impl serde::Serialize) {
        // Cursors that were released by it stand behind it, and nothing else came since.
        let behind = self.out.iter().rposition(|frame| frame.kind != kind::CURSOR).map_or(0, |at| at + 1);
        self.out.insert(behind, control(kind, body));
    }
}

/// What a chunk's own answer tells of it.
fn begins(handle: u64, offer: Offer, variant: Variant) -> ChunkBegins {
    ChunkBegins {
        handle,
        variant: offer.role.unwrap_or(variant),
        stream: offer.stream,
        media: offer.media,
        index: offer.index,
        length: offer.length,
        sha256: offer.sha256,
        started: offer.started,
        ended: offer.ended,
        state: ContactState::Arriving,
        replay: false,
    }
}

fn control(kind: u64, body: &impl serde::Serialize) -> Frame {
    // What these types hold is written without an error.
    Frame { kind, body: serde_json::to_vec(body).unwrap_or_default().into() }
}

fn piece(handle: u64, offset: u64, bytes: &[u8]) -> Frame {
    let mut body = bytes::BytesMut::with_capacity(bytes.len() + 16);
    varint::put(&mut body, handle);
    varint::put(&mut body, offset);
    body.extend_from_slice(bytes);
    Frame { kind: kind::PIECE, body: body.freeze() }
}
