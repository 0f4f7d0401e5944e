//! What a contact asks for over plain HTTP/3 requests, and what it passes on. Pure: the relay's word, what is
//! heard of requests and the time come in; frames and orders go out. What is begun and not whole is bounded by
//! what the assembly takes; what is told of beyond that waits, in the order in which it is wanted.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;
use waystation_proto::frame::{self, Frame, kind};
use waystation_proto::id::{Digest, StreamId};
use waystation_proto::message::{
    ChunkBegins, Complete, ContactChunkState, Omitted, OmittedReason, Withdrawn, WithdrawnReason,
};
use waystation_proto::{ContactState, Offer, Variant};

use super::assembly::{MAX_ARRIVING, MAX_BYTES};
use super::speech::Speech;
use super::table::{Chunk, Class, Name, Table};
use crate::http::Broken;

mod requests;
#[cfg(test)]
mod tests;

/// Requests at once. A capability has 512 of them at a relay, and its last connection's may not be free yet.
const MAX_ASKED: usize = 24;
/// Of them so many are not for pictures.
const KEPT_FOR_SOUND: usize = 4;
// A chunk is passed on when it is asked for: what is asked for has room where it arrives.
const _: () = assert!(MAX_ASKED < MAX_ARRIVING);
/// Chunks that are told of and not done with: what a relay holds of two lanes. Beyond, one that waits is left
/// out, and named.
const MAX_TOLD: usize = 4096;
/// Longest `STATE` that waits with its chunk, in bytes; a longer one goes ahead of it.
const MAX_STATE: usize = 4096;
/// Chunks that were done with of late, to know them when the relay tells of them late.
const MAX_DONE: usize = 256;
/// A chunk that breaks off is asked for so often.
const MAX_TRIES: u32 = 5;
/// Pauses before a chunk is asked for again; the last one from then on.
const PAUSES_MS: [u64; 3] = [250, 500, 1000];
/// Longest pause that a relay gets by asking for it: a window is not much longer.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(10);
/// No chunk is asked for twice for so long after the relay refused that.
const ALONE: Duration = Duration::from_secs(10);
/// An answer that waited for this long for a chunk to begin did not fail.
const PATIENT: Duration = Duration::from_secs(5);
/// Packets lost of a thousand from which on sound is asked for twice: more than one of twenty chunks would
/// have to wait for one that is sent again. Taken for so many where nothing is known yet.
const TWICE_FROM: u64 = 10;
/// The same for three times: more than one of twenty would have to wait for one that is lost twice.
const THRICE_FROM: u64 = 80;

/// What happened to a request.
pub(super) enum News {
    /// What its answer says of it, and how many of a thousand packets are lost, where that is known.
    Begins(Box<Offer>, Option<u64>),
    Bytes(u64, Bytes),
    Whole,
    Failed(Failure),
}

/// Why a request brought no chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure {
    /// There is no such chunk now.
    Absent,
    /// The relay takes no more requests now, and may say for how long.
    Busy(Option<Duration>),
    /// It broke off, or its answer is none.
    Lost,
}

/// What is to be done about a request. Each has a number of its own, which never comes again.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Order {
    Ask(u64, Name),
    /// It is over, or not wanted any more.
    Drop(u64),
}

/// A subscription's chunks.
pub(super) struct Plan {
    table: Table,
    speech: Speech,
    orders: VecDeque<Order>,
    done: VecDeque<(Name, Digest)>,
    max_chunk: u64,
    next_request: u64,
    loss: u64,
    alone_until: Option<Instant>,
    /// The last word, which waits for what was told of before.
    ending: Option<Frame>,
    /// The relay said it, and nothing follows.
    over: bool,
    /// The relay ends the subscription before its chunks are here.
    short: bool,
}

impl Plan {
    pub(super) fn new(max_chunk: u64) -> Self {
        Self {
            table: Table::default(),
            speech: Speech::default(),
            orders: VecDeque::new(),
            done: VecDeque::new(),
            max_chunk,
            next_request: 0,
            loss: TWICE_FROM,
            alone_until: None,
            ending: None,
            over: false,
            short: false,
        }
    }

    /// The next frame to pass on.
    pub(super) fn frame(&mut self) -> Option<Frame> {
        let waits = !self.short && self.table.all().any(|(_, chunk)| chunk.told.is_some());
        self.speech.next().or_else(|| self.ending.take_if(|_| !waits))
    }

    /// The next order to carry out.
    pub(super) fn order(&mut self) -> Option<Order> {
        self.orders.pop_front()
    }

    /// Nothing more is told.
    pub(super) const fn over(&self) -> bool {
        self.over
    }

    /// When [`Plan::due`] is to be called.
    pub(super) fn due_at(&self) -> Option<Instant> {
        self.table.open().filter_map(|(_, chunk)| chunk.again_at).min()
    }

    /// Asks again where a pause is over.
    pub(super) fn due(&mut self, now: Instant) {
        let again = |(handle, chunk): (u64, &Chunk)| chunk.again_at.is_some_and(|at| at <= now).then_some(handle);
        let again: Vec<u64> = self.table.open().filter_map(again).collect();
        for handle in again {
            self.request(handle, now);
        }
        self.ask_more(now);
    }

    // === what the relay tells ===

    /// Takes a frame of the control stream.
    pub(super) fn told(&mut self, frame: Frame, now: Instant) -> Result<(), Broken> {
        match frame.kind {
            kind::CHUNK => self.told_of(read(&frame)?),
            kind::COMPLETE => {
                // Whole is what came whole here.
                if let Some(handle) = self.table.of_theirs(read::<Complete>(&frame)?.handle) {
                    self.table.link(handle, None);
                }
            }
            kind::WITHDRAWN => self.withdrawn(&read(&frame)?),
            kind::OMITTED => {
                let told = read(&frame)?;
                self.speech.pass(frame);
                self.left_out(&told);
            }
            kind::STATE => self.state(read(&frame)?, frame),
            // A relay that sends bytes here all the same: they come by request.
            kind::PIECE => {}
            // It counts what was told of before it, and is passed on when that is done with.
            kind::CURSOR => self.speech.cursor(self.table.next_turn(), frame),
            kind::ENDING => {
                self.over = true;
                self.ending = Some(frame);
            }
            _ => self.speech.pass(frame),
        }
        self.speech.done_before(self.table.first_turn());
        self.ask_more(now);
        Ok(())
    }

    fn told_of(&mut self, told: ChunkBegins) {
        let (name, theirs) = ((told.stream.clone(), told.index), told.handle);
        if self.done.iter().any(|(done, digest)| *done == name && *digest == told.sha256) {
            return self.late_state(name, told.state);
        }
        let known = self.table.named(&name);
        let digest = known.and_then(|handle| self.table.get(handle)?.told.as_ref()).map(|told| told.sha256);
        let handle = match known {
            Some(handle) if digest == Some(told.sha256) => {
                self.table.link(handle, Some(theirs));
                return self.late_state(name, told.state);
            }
            // Another attempt's bytes. What was begun here may be newer: then the next answer says so.
            Some(handle) if digest.is_some() => self.replaced(handle, None),
            Some(handle) => handle,
            None => self.take_in(name, told.variant),
        };
        self.table.link(handle, Some(theirs));
        self.begins(handle, told);
    }

    /// A chunk was told of before; how it stands since then.
    fn late_state(&mut self, (stream, index): Name, state: ContactState) {
        let waits = self.table.named(&(stream.clone(), index)).and_then(|handle| self.table.get_mut(handle));
        match waits.filter(|chunk| !chunk.said).and_then(|chunk| chunk.told.as_mut()) {
            Some(told) => told.state = state,
            None if state == ContactState::Arriving => {}
            None => {
                self.speech.say(kind::STATE, &serde_json::json!({ "stream": stream, "index": index, "state": state }))
            }
        }
    }

    /// How a chunk stands is passed on behind its `CHUNK`.
    fn state(&mut self, told: ContactChunkState, frame: Frame) {
        let chunk = self.table.named(&(told.stream, told.index)).and_then(|handle| self.table.get_mut(handle));
        match chunk.filter(|chunk| chunk.told.is_some() && !chunk.said && frame.body.len() <= MAX_STATE) {
            Some(chunk) => chunk.state = Some(frame),
            None => self.speech.pass(frame),
        }
    }

    fn withdrawn(&mut self, told: &Withdrawn) {
        let Some(handle) = self.table.of_theirs(told.handle) else { return };
        if self.table.get(handle).is_some_and(|chunk| chunk.said) {
            self.speech.say(kind::WITHDRAWN, &Withdrawn { handle, ..*told });
            self.forget(handle);
        } else {
            self.give_up(handle, OmittedReason::Withdrawn);
        }
    }

    fn left_out(&mut self, told: &Omitted) {
        let named = |chunk: &Chunk| chunk.name.0 == told.stream && (told.from..=told.to).contains(&chunk.name.1);
        let gone: Vec<u64> = self.table.all().filter(|(_, chunk)| named(chunk)).map(|(handle, _)| handle).collect();
        for handle in gone {
            let Some(chunk) = self.forget(handle) else { continue };
            self.speech.pass(chunk.state);
            if chunk.told.is_none() {
                self.ask_ahead(chunk.variant, told.stream.clone(), told.to);
            }
        }
    }

    // === chunks ===

    fn take_in(&mut self, name: Name, variant: Variant) -> u64 {
        let handle = self.table.new_handle();
        self.table.insert(handle, Chunk::new(name, variant));
        handle
    }

    /// A chunk is known: newer than every picture of which nothing came yet, and the next one will follow.
    fn begins(&mut self, handle: u64, told: ChunkBegins) {
        let told = ChunkBegins { handle, ..told };
        let (variant, stream, index) = (told.variant, told.stream.clone(), told.index);
        if told.length > self.max_chunk {
            // Whoever watches says that it is too large.
            self.speech.say(kind::CHUNK, &told);
            self.done_with(handle, told.sha256);
        } else {
            self.table.tell(handle, told);
            if let Some(chunk) = self.table.get_mut(handle) {
                chunk.since = self.next_request;
            }
            self.leave_out_before(handle);
            self.pass_on(handle);
        }
        self.ask_ahead(variant, stream, index);
        self.bound_told(handle);
    }

    /// Passes a chunk on that is asked for already. One that is not, or for which there is no room, waits.
    fn pass_on(&mut self, handle: u64) {
        let fits = self.table.get(handle).is_some_and(|chunk| self.fits(chunk));
        let Some(chunk) = self.table.get_mut(handle) else { return };
        if chunk.requests.is_empty() || !fits {
            self.orders.extend(chunk.requests.drain(..).map(Order::Drop));
            chunk.again_at = None;
            return self.table.set_waiting(handle);
        }
        let Some(told) = &chunk.told else { return };
        chunk.said = true;
        self.speech.say(kind::CHUNK, told);
        self.speech.pass(chunk.state.take());
    }

    /// Whether the assembly has room for a chunk, and pictures leave room for sound.
    fn fits(&self, chunk: &Chunk) -> bool {
        let (taken, room) = (self.table.taken(), MAX_BYTES.max(self.max_chunk));
        let length = chunk.told.as_ref().map_or(0, |told| told.length);
        let beside =
            !chunk.picture() || taken.bytes_of_pictures == 0 || taken.bytes_of_pictures + length <= room / 4 * 3;
        beside && taken.bytes + length <= room
    }

    /// Asks for the next chunk of a lane. Of one lane only one is asked for ahead: the lane is where its newest
    /// chunk is.
    fn ask_ahead(&mut self, variant: Variant, stream: StreamId, before: u64) {
        let Some(index) = before.checked_add(1) else { return };
        let next = (stream, index);
        if self.table.named(&next).is_some() || self.done.iter().any(|(done, _)| *done == next) {
            return;
        }
        let ahead = |chunk: &Chunk| chunk.told.is_none() && chunk.variant == variant;
        let old: Vec<u64> = self.table.all().filter(|(_, chunk)| ahead(chunk)).map(|(handle, _)| handle).collect();
        for handle in old {
            self.forget(handle);
        }
        self.take_in(next, variant);
    }

    /// Of pictures the newest wins: those of which nothing came are left out, and named.
    fn leave_out_before(&mut self, newest: u64) {
        let Some(new) = self.table.get(newest).filter(|chunk| chunk.class() == Class::Live) else { return };
        let older = |handle: u64, chunk: &Chunk| match chunk.name.0 == new.name.0 {
            true => chunk.name.1 < new.name.1,
            false => handle < newest,
        };
        let waits = |handle: u64, chunk: &Chunk| {
            chunk.class() == Class::Live && chunk.told.is_some() && chunk.passed == 0 && older(handle, chunk)
        };
        let live = self.table.waiting(Class::Live).chain(self.table.open());
        let old: Vec<u64> = live.filter(|(handle, chunk)| waits(*handle, chunk)).map(|(handle, _)| handle).collect();
        for handle in old {
            self.give_up(handle, OmittedReason::Slow);
        }
    }

    /// Of more than there may be the oldest picture is left out, or sound where there is none.
    fn bound_told(&mut self, but: u64) {
        while self.table.len() > MAX_TOLD {
            let told = |(handle, chunk): &(u64, &Chunk)| chunk.told.is_some() && *handle != but;
            let oldest = [Class::Replay, Class::Live, Class::Sound]
                .into_iter()
                .find_map(|class| self.table.waiting(class).find(told).map(|(handle, _)| handle));
            let Some(oldest) = oldest else { return };
            self.give_up(oldest, OmittedReason::Slow);
        }
    }

    fn give_up(&mut self, handle: u64, reason: OmittedReason) {
        let Some(chunk) = self.table.get_mut(handle) else { return };
        let ((stream, index), state) = (chunk.name.clone(), chunk.state.take());
        self.speech.say(kind::OMITTED, &Omitted { stream, from: index, to: index, reason });
        self.speech.pass(state);
        self.forget(handle);
    }

    /// Nothing more of a chunk is wanted. What is to be said of it was said.
    fn forget(&mut self, handle: u64) -> Option<Chunk> {
        let chunk = self.table.remove(handle)?;
        self.orders.extend(chunk.requests.iter().copied().map(Order::Drop));
        self.speech.done_before(self.table.first_turn());
        Some(chunk)
    }

    fn done_with(&mut self, handle: u64, digest: Digest) {
        let Some(chunk) = self.forget(handle) else { return };
        self.done.push_back((chunk.name, digest));
        if self.done.len() > MAX_DONE {
            self.done.pop_front();
        }
    }

    /// Other bytes take a chunk's place, under another handle; at most this request of it goes on.
    fn replaced(&mut self, handle: u64, by: Option<u64>) -> u64 {
        let new = self.table.new_handle();
        let Some((old, mut heir)) = self.table.heir(handle) else { return new };
        if old.said {
            self.speech.say(kind::WITHDRAWN, &Withdrawn { handle, reason: WithdrawnReason::Superseded });
        }
        self.orders.extend(old.requests.into_iter().filter(|request| Some(*request) != by).map(Order::Drop));
        heir.requests.extend(by);
        self.table.insert(new, heir);
        if by.is_some() {
            self.table.set_open(new);
        }
        new
    }
}

fn read<T: serde::de::DeserializeOwned>(frame: &Frame) -> Result<T, Broken> {
    frame::control(frame).map_err(|_| Broken)
}
