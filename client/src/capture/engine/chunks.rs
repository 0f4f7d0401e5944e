//! Chunks on their way through the session: kept, placed and sealed, given to the connection.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use tokio::sync::oneshot;
use waystation_proto::Offer;
use zeroize::Zeroizing;

use super::waiting::{LaneQueue, Unsealed};
use super::{Engine, PAUSE_MS};
use crate::capture::book::New;
use crate::capture::event::{Event, Label};
use crate::capture::lane::{Lane, Place};
use crate::capture::link::{Job, ToLink};
use crate::capture::seal;
use crate::capture::status::Step;
use crate::capture::store::record::{Manifest, Record};
use crate::capture::store::{NotKept, Store, Unread};
use crate::capture::{ChunkError, Command, Cut, manifest};
use crate::clock;
use crate::token::Token;

/// Chunks that are kept with one sync.
const MAX_TOGETHER: usize = 16;
/// Chunks that are sealed before the connection gets its turn again.
const MAX_SEALED: usize = 8;
/// Why chunks are held: the core gives their lane no further stream.
const NO_STREAM: &str = "no_stream";
/// The same: the disk does not give their files.
const UNREADABLE: &str = "file_unreadable";
/// The pause after a chunk could not be read doubles so often, to half a minute.
const UNREAD_DOUBLINGS: u32 = 5;

/// A chunk to be sealed, and what was read of it.
type Subject = (u64, Place, seal::About);
type Plain = Result<Zeroizing<Vec<u8>>, Unread>;
type Reply = oneshot::Sender<Result<u64, ChunkError>>;

/// A chunk that was given a place, and what it is sealed from.
struct Placed {
    lane: usize,
    chunk: Unsealed,
    place: Place,
}

impl Engine {
    // === kept ===

    /// Keeps a chunk, and those that wait behind it.
    pub(super) async fn accept(&mut self, cut: Cut, reply: Reply) {
        let mut cuts = vec![(cut, reply)];
        while cuts.len() < MAX_TOGETHER {
            match self.commands.try_recv() {
                Ok(Command::Chunk(cut, reply)) => cuts.push((cut, reply)),
                Ok(other) => {
                    self.later = Some(other);
                    break;
                }
                Err(_) => break,
            }
        }
        let mut kept = Vec::with_capacity(cuts.len());
        let mut replies = Vec::with_capacity(cuts.len());
        for (cut, reply) in cuts {
            match self.lanes.iter().position(|queue| queue.lane.variant == cut.variant) {
                _ if self.closing => drop(reply.send(Err(ChunkError::Over))),
                None => drop(reply.send(Err(ChunkError::NoLane))),
                Some(lane) => {
                    kept.push((lane, cut));
                    replies.push(reply);
                }
            }
        }
        let results = self.keep(kept, false).await;
        if results.iter().any(Result::is_ok) {
            self.recorded = true;
            self.recording.store(true, Ordering::Relaxed);
        }
        for (reply, result) in replies.into_iter().zip(results) {
            // Nobody waits for the answer: the chunk is kept all the same.
            let _ = reply.send(result);
        }
    }

    /// `manifest`: the last of them is the manifest.
    async fn keep(&mut self, cuts: Vec<(usize, Cut)>, manifest: bool) -> Vec<Result<u64, ChunkError>> {
        self.write_down().await;
        if !self.records.is_empty() {
            // A lane that is not written down has no chunks.
            return cuts.iter().map(|_| Err(ChunkError::Disk)).collect();
        }
        let mut seqs: Vec<u64> = self.lanes.iter().map(|queue| queue.next_seq).collect();
        let (mut id, count) = (self.next_id, cuts.len());
        let mut taken = Vec::with_capacity(count);
        let work = move |store: &mut Store| {
            for (lane, cut) in cuts {
                let file = store.file(&cut.plaintext);
                taken.push(file.map(|(file, size)| {
                    let Cut { variant, started_ms, ended_ms, .. } = cut;
                    let unsealed = Unsealed::new(id, seqs[lane], started_ms, ended_ms);
                    let lane_seq = unsealed.lane_seq;
                    store.add(Record::Kept { id, variant, lane_seq, file, size, started_ms, ended_ms });
                    id += 1;
                    seqs[lane] += 1;
                    (lane, unsealed)
                }));
            }
            if manifest && taken.iter().all(Result::is_ok) {
                store.add(Record::Manifest { id: id.checked_sub(1) });
            }
            store.commit()?;
            Ok(taken)
        };
        match self.store.work(work).await {
            Ok(taken) => taken.into_iter().map(|taken| self.took(taken)).collect(),
            Err(why) => (0..count).map(|_| Err(why.into())).collect(),
        }
    }

    fn took(&mut self, taken: Result<(usize, Unsealed), NotKept>) -> Result<u64, ChunkError> {
        let (lane, unsealed) = taken?;
        let queue = &mut self.lanes[lane];
        queue.next_seq = unsealed.lane_seq + 1;
        queue.unsealed.push_back(unsealed);
        self.next_id = unsealed.id + 1;
        if self.session == crate::capture::SessionState::Initiated {
            self.step(Step::Resume);
        }
        Ok(unsealed.lane_seq)
    }

    // === sealed ===

    pub(super) fn can_seal_more(&self) -> bool {
        let now_ms = clock::unix_ms();
        self.may_seal(now_ms) && self.lanes.iter().any(|queue| queue.is_ready(now_ms))
    }

    /// A stream's record stands before those of its chunks: while changes wait to be written down
    /// nothing is sealed.
    fn may_seal(&self, now_ms: i64) -> bool {
        self.ids.is_some() && now_ms >= self.not_before_ms.sealing && self.records.is_empty()
    }

    /// Seals some chunks whose lanes have a place for them, in the order of mercy.
    pub(super) async fn seal_some(&mut self) {
        let now_ms = clock::unix_ms();
        if !self.may_seal(now_ms) {
            return;
        }
        self.tell_of_held();
        let mut placed = Vec::new();
        while placed.len() < MAX_SEALED
            && let Some(lane) = self.next_lane(now_ms)
        {
            let queue = &mut self.lanes[lane];
            let (Some(at), Some(place)) = (queue.due(now_ms), queue.lane.place()) else { break };
            let Some(chunk) = queue.unsealed.remove(at) else { break };
            placed.push(Placed { lane, chunk, place });
        }
        if !placed.is_empty() {
            self.seal(placed).await;
            self.ask_for_streams();
        }
    }

    /// The lane whose oldest chunk goes first.
    fn next_lane(&self, now_ms: i64) -> Option<usize> {
        let ready = self.lanes.iter().enumerate().filter(|(_, queue)| queue.is_ready(now_ms));
        let ranked = ready.filter_map(|(n, queue)| Some((queue.rank(now_ms)?, n)));
        ranked.min().map(|(_, n)| n)
    }

    async fn seal(&mut self, placed: Vec<Placed>) {
        let chunks: Vec<_> = placed.iter().map(|placed| self.subject(placed)).collect();
        let (config, Some(ids)) = (self.config.clone(), self.ids.clone()) else { return };
        let work = move |store: &mut Store| {
            let reads: Vec<_> = chunks.iter().map(|(id, ..)| store.read(*id)).collect();
            let unread = |(chunk, read): (&Subject, &Plain)| Some((chunk.0, *read.as_ref().err()?));
            let unread: Vec<(u64, Unread)> = chunks.iter().zip(&reads).filter_map(unread).collect();
            let mut sealed = Vec::with_capacity(chunks.len());
            for ((id, place, about), plaintext) in chunks.into_iter().zip(reads.into_iter().flatten()) {
                if unread.is_empty() {
                    let nonce = clock::random().ok_or(NotKept::Disk)?;
                    let subject = about.of(&plaintext);
                    let (frame, offer) = seal::seal(&config, &ids, &place, &subject, nonce).ok_or(NotKept::Disk)?;
                    let (file, size) = store.envelope_file(&frame)?;
                    store.add(Record::sealed(id, file, size, &offer, place.stream_no));
                    sealed.push(offer);
                }
            }
            for (id, why) in unread.iter().filter(|(_, why)| *why != Unread::Disk) {
                store.lose(*id, *why)?;
            }
            store.commit()?;
            Ok((sealed, unread))
        };
        match self.store.work(work).await {
            Ok((sealed, unread)) if unread.is_empty() => {
                placed.into_iter().zip(sealed).for_each(|(placed, offer)| self.sealed(placed, offer));
            }
            Ok((_, unread)) => {
                self.not_sealed(placed);
                self.not_read(&unread);
            }
            Err(_) => {
                self.not_before_ms.sealing = clock::unix_ms() + PAUSE_MS;
                self.not_sealed(placed);
            }
        }
    }

    fn subject(&self, placed: &Placed) -> Subject {
        let lane = &self.lanes[placed.lane].lane;
        let Unsealed { id, lane_seq, started_ms, ended_ms, .. } = placed.chunk;
        let (variant, media) = (lane.variant, lane.media);
        let about = seal::About { variant, media, lane_seq, sequence: id + 1, started_ms, ended_ms };
        (id, placed.place.clone(), about)
    }

    fn sealed(&mut self, placed: Placed, offer: Offer) {
        let Placed { lane, chunk, place } = placed;
        let variant = self.lanes[lane].lane.variant;
        let label = Label {
            variant,
            lane_seq: chunk.lane_seq,
            stream_no: place.stream_no,
            index: place.index,
            started_ms: chunk.started_ms,
            length: offer.length,
        };
        let manifest = self.store.look(|state| state.is_manifest(chunk.id));
        self.book.add(chunk.id, New { label, offer, manifest, note: Default::default() }, self.now_ms());
        if place.rolled {
            self.summary.rolls += 1;
            self.emit(Event::Rolled { variant, stream_no: place.stream_no });
        }
        self.emit(Event::Cut(label));
    }

    /// Their places are given again, so that no index is left out.
    fn not_sealed(&mut self, placed: Vec<Placed>) {
        for placed in placed.into_iter().rev() {
            let queue = &mut self.lanes[placed.lane];
            queue.lane.take_back();
            queue.put_back(placed.chunk);
        }
    }

    /// These could not be read: what is gone or does not open is lost, and what the disk does not
    /// give now is tried again, later each time, while the others go before it.
    fn not_read(&mut self, unread: &[(u64, Unread)]) {
        let now_ms = clock::unix_ms();
        let mut events = Vec::new();
        for queue in &mut self.lanes {
            let variant = queue.lane.variant;
            queue.unsealed.retain_mut(|chunk| {
                let why = unread.iter().find(|(id, _)| *id == chunk.id).map(|(_, why)| *why);
                if why == Some(Unread::Disk) {
                    chunk.not_before_ms = now_ms + (PAUSE_MS << chunk.unread.min(UNREAD_DOUBLINGS));
                    chunk.unread += 1;
                    if !std::mem::replace(&mut queue.told_unread, true) {
                        events.push(Event::Held { variant, code: UNREADABLE.into() });
                    }
                } else if why.is_some() {
                    events.push(Event::Lost { variant, lane_seq: chunk.lane_seq });
                }
                why.is_none_or(|why| why == Unread::Disk)
            });
        }
        events.into_iter().for_each(|event| self.emit(event));
    }

    /// Chunks of a lane without a further stream stay here until there is one: told once.
    fn tell_of_held(&mut self) {
        let stuck = self.lanes.iter_mut().filter(|queue| queue.is_stuck() && !queue.told);
        let told: Vec<_> = stuck.map(|queue| (queue.told = true, queue.lane.variant).1).collect();
        told.into_iter().for_each(|variant| self.emit(Event::Held { variant, code: NO_STREAM.into() }));
    }

    /// Whether a lane's chunks wait for a stream that nobody gives now.
    pub(super) fn some_are_held(&self) -> bool {
        self.lanes.iter().any(LaneQueue::is_stuck)
    }

    // === the manifest ===

    /// Whether the recording is over and its manifest is not cut.
    pub(super) fn manifest_is_due(&self) -> bool {
        let due = || self.store.look(|state| state.manifest == Manifest::Due && state.totals.chunks > 0);
        self.config.manifest && self.closing && self.ids.is_some() && due()
    }

    /// Cuts the manifest once everything else is sealed and its lane has a stream.
    pub(super) async fn cut_manifest(&mut self) {
        let sealed = self.lanes.iter().all(|queue| queue.unsealed.is_empty());
        if !sealed || clock::unix_ms() < self.not_before_ms.sealing || !self.manifest_is_due() {
            return;
        }
        let (variant, media) = manifest::LANE;
        let Some(lane) = self.lanes.iter().position(|queue| queue.lane.variant == variant) else {
            let queue = LaneQueue::new(Lane::new(variant, media), 0);
            self.records.push(queue.record());
            self.lanes.push(queue);
            return self.ask_for_streams();
        };
        if self.lanes[lane].lane.is_over() {
            // Nobody gives it a stream: the recording is what it is.
            return self.records.push(Record::Manifest { id: None });
        }
        if self.lanes[lane].lane.streams().next().is_none() {
            return;
        }
        let plaintext = Zeroizing::new(self.store.look(manifest::write));
        let now_ms = clock::unix_ms();
        let cut = Cut { variant, plaintext, started_ms: now_ms, ended_ms: now_ms };
        if !matches!(self.keep(vec![(lane, cut)], true).await.pop(), Some(Ok(_))) {
            self.not_before_ms.sealing = now_ms + PAUSE_MS;
        }
    }

    // === given ===

    /// Gives the connection what it has room for.
    pub(super) async fn give(&mut self) {
        if self.is_idle() {
            return;
        }
        let now_ms = self.now_ms();
        while let Some(room) = self.link.as_ref().filter(|link| link.jobs.capacity() > 1).map(|link| link.room) {
            self.book.hold(self.policy.turns(now_ms));
            let Some(next) = self.book.take(now_ms, room.at_most(self.network.bodies())) else { return };
            let id = next.id;
            let live = |token: &&Token| !token.expired(clock::unix_ms());
            let token = self.wallet.covering(&next.offer.stream).filter(live).cloned();
            let Some(token) = token else {
                self.wallet.want();
                self.book.give_back(id, now_ms + 1000);
                continue;
            };
            let Ok(bytes) = self.store.work(move |store| store.read(id).map_err(|_| NotKept::Disk)).await else {
                let effect = self.book.unreadable(id, now_ms);
                self.act(effect.into_iter().collect());
                continue;
            };
            // A process that is killed after the offer must know of it, so as not to send again what
            // the relay holds.
            let effect = self.book.given(id);
            self.act(effect.into_iter().collect());
            self.write_down().await;
            let bytes = Bytes::from_owner(bytes);
            let (rank, resume, held) = (next.rank, next.resume, next.held);
            let most = self.network.bodies();
            let job = Job { id, rank, offer: next.offer, bytes, most, token, resume, held };
            let given = self.link.as_ref().is_some_and(|link| link.jobs.try_send(ToLink::Job(Box::new(job))).is_ok());
            if !given {
                self.book.give_back(id, now_ms);
                return;
            }
        }
    }
}

impl From<NotKept> for ChunkError {
    fn from(why: NotKept) -> Self {
        match why {
            NotKept::Full => Self::Full,
            NotKept::Disk => Self::Disk,
        }
    }
}
