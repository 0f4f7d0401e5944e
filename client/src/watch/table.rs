//! What is told of and not done with, and what is asked for ahead: found by name, by the relay's handle, by
//! request, and in the order in which it is wanted. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use tokio::time::Instant;
use waystation_proto::Variant;
use waystation_proto::frame::Frame;
use waystation_proto::id::StreamId;
use waystation_proto::message::ChunkBegins;

/// A chunk's name.
pub(super) type Name = (StreamId, u64);

/// What is wanted first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Class {
    Sound,
    /// A picture of now.
    Live,
    /// A picture that was there before the contact.
    Replay,
}

/// A chunk that is told of, or asked for ahead.
pub(super) struct Chunk {
    pub(super) name: Name,
    pub(super) variant: Variant,
    /// What is known of it; none: it is asked for ahead. The handle is this contact's own.
    pub(super) told: Option<ChunkBegins>,
    /// The relay's handle.
    pub(super) theirs: Option<u64>,
    /// The number of its telling, for cursors.
    turn: Option<u64>,
    /// What became of it while it waits to be passed on.
    pub(super) state: Option<Frame>,
    /// Its `CHUNK` is passed on.
    pub(super) said: bool,
    /// Bytes passed on, from its start.
    pub(super) passed: u64,
    pub(super) requests: Vec<u64>,
    /// From this request on they were made when it was told of.
    pub(super) since: u64,
    /// Answers that broke off, or told of nothing.
    pub(super) tries: u32,
    /// Answers that told to come later.
    pub(super) refused: u32,
    pub(super) asked_at: Option<Instant>,
    /// When it is asked for again.
    pub(super) again_at: Option<Instant>,
}

impl Chunk {
    pub(super) const fn new(name: Name, variant: Variant) -> Self {
        Self {
            name,
            variant,
            told: None,
            theirs: None,
            turn: None,
            state: None,
            said: false,
            passed: 0,
            requests: Vec::new(),
            since: 0,
            tries: 0,
            refused: 0,
            asked_at: None,
            again_at: None,
        }
    }

    pub(super) fn picture(&self) -> bool {
        self.variant != Variant::AudioPriority
    }

    pub(super) fn class(&self) -> Class {
        match &self.told {
            _ if !self.picture() => Class::Sound,
            Some(told) if told.replay => Class::Replay,
            _ => Class::Live,
        }
    }

    fn length(&self) -> u64 {
        self.told.as_ref().map_or(0, |told| told.length)
    }
}

/// What the open chunks take.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Taken {
    pub(super) requests: usize,
    pub(super) of_pictures: usize,
    /// Bytes of those that were passed on.
    pub(super) bytes: u64,
    pub(super) bytes_of_pictures: u64,
}

/// The chunks by handle. An open one has a request, or had one and gets another; the others wait.
#[derive(Default)]
pub(super) struct Table {
    chunks: BTreeMap<u64, Chunk>,
    names: HashMap<Name, u64>,
    theirs: HashMap<u64, u64>,
    waiting: BTreeSet<(Class, u64)>,
    open: BTreeSet<u64>,
    turns: BTreeSet<u64>,
    next_handle: u64,
    next_turn: u64,
}

impl Table {
    pub(super) const fn new_handle(&mut self) -> u64 {
        self.next_handle += 1;
        self.next_handle - 1
    }

    /// Takes a chunk in, which waits.
    pub(super) fn insert(&mut self, handle: u64, chunk: Chunk) {
        self.names.insert(chunk.name.clone(), handle);
        self.waiting.insert((chunk.class(), handle));
        self.turns.extend(chunk.turn);
        self.theirs.extend(chunk.theirs.map(|theirs| (theirs, handle)));
        self.chunks.insert(handle, chunk);
    }

    pub(super) fn remove(&mut self, handle: u64) -> Option<Chunk> {
        let chunk = self.chunks.remove(&handle)?;
        self.names.remove(&chunk.name);
        self.waiting.remove(&(chunk.class(), handle));
        self.open.remove(&handle);
        if let Some(turn) = chunk.turn {
            self.turns.remove(&turn);
        }
        if let Some(theirs) = chunk.theirs {
            self.theirs.remove(&theirs);
        }
        Some(chunk)
    }

    pub(super) fn get(&self, handle: u64) -> Option<&Chunk> {
        self.chunks.get(&handle)
    }

    /// To change it; what it is told of is [`Table::tell`]'s, its relay's handle [`Table::link`]'s.
    pub(super) fn get_mut(&mut self, handle: u64) -> Option<&mut Chunk> {
        self.chunks.get_mut(&handle)
    }

    pub(super) fn named(&self, name: &Name) -> Option<u64> {
        self.names.get(name).copied()
    }

    pub(super) fn of_theirs(&self, theirs: u64) -> Option<u64> {
        self.theirs.get(&theirs).copied()
    }

    pub(super) fn of_request(&self, request: u64) -> Option<u64> {
        self.open().find(|(_, chunk)| chunk.requests.contains(&request)).map(|(handle, _)| handle)
    }

    pub(super) fn all(&self) -> impl DoubleEndedIterator<Item = (u64, &Chunk)> {
        self.chunks.iter().map(|(handle, chunk)| (*handle, chunk))
    }

    pub(super) fn open(&self) -> impl Iterator<Item = (u64, &Chunk)> {
        self.open.iter().filter_map(|handle| Some((*handle, self.chunks.get(handle)?)))
    }

    /// Those that wait, the most wanted first.
    pub(super) fn waiting(&self, from: Class) -> impl Iterator<Item = (u64, &Chunk)> {
        self.waiting.range((from, 0)..).filter_map(|(_, handle)| Some((*handle, self.chunks.get(handle)?)))
    }

    /// What a chunk is, is known now.
    pub(super) fn tell(&mut self, handle: u64, told: ChunkBegins) {
        let turn = self.next_turn;
        let Some(chunk) = self.chunks.get_mut(&handle) else { return };
        let waits = self.waiting.remove(&(chunk.class(), handle));
        chunk.variant = told.variant;
        chunk.told = Some(told);
        if waits {
            self.waiting.insert((chunk.class(), handle));
        }
        if chunk.turn.is_none() {
            self.next_turn += 1;
            self.turns.insert(*chunk.turn.insert(turn));
        }
    }

    /// The relay calls a chunk by this handle, and by no other any more.
    pub(super) fn link(&mut self, handle: u64, theirs: Option<u64>) {
        let Some(chunk) = self.chunks.get_mut(&handle) else { return };
        if let Some(before) = std::mem::replace(&mut chunk.theirs, theirs) {
            self.theirs.remove(&before);
        }
        let taken = theirs.and_then(|theirs| self.theirs.insert(theirs, handle));
        if let Some(other) = taken.and_then(|other| self.chunks.get_mut(&other)) {
            other.theirs = None;
        }
    }

    /// Another chunk takes this one's place: cursors wait for it instead.
    pub(super) fn heir(&mut self, handle: u64) -> Option<(Chunk, Chunk)> {
        let old = self.remove(handle)?;
        let mut heir = Chunk::new(old.name.clone(), old.variant);
        heir.turn = old.turn;
        Some((old, heir))
    }

    pub(super) fn set_open(&mut self, handle: u64) {
        if let Some(chunk) = self.chunks.get(&handle) {
            self.waiting.remove(&(chunk.class(), handle));
            self.open.insert(handle);
        }
    }

    pub(super) fn set_waiting(&mut self, handle: u64) {
        if let Some(chunk) = self.chunks.get(&handle) {
            self.open.remove(&handle);
            self.waiting.insert((chunk.class(), handle));
        }
    }

    pub(super) fn taken(&self) -> Taken {
        let mut taken = Taken::default();
        for (_, chunk) in self.open() {
            // One that is asked for again in a moment keeps its place.
            let requests = chunk.requests.len().max(1);
            let bytes = if chunk.said { chunk.length() } else { 0 };
            taken.requests += requests;
            taken.bytes += bytes;
            if chunk.picture() {
                taken.of_pictures += requests;
                taken.bytes_of_pictures += bytes;
            }
        }
        taken
    }

    /// How many are told of, and those that are asked for ahead.
    pub(super) fn len(&self) -> usize {
        self.chunks.len()
    }

    /// Whether more pictures than this are told of.
    pub(super) fn pictures_told(&self, over: usize) -> bool {
        let told = |(_, chunk): &(u64, &Chunk)| chunk.picture() && chunk.told.is_some();
        self.waiting(Class::Live).chain(self.open()).filter(told).nth(over).is_some()
    }

    /// The first telling that is not done with; what was told before it is.
    pub(super) fn first_turn(&self) -> u64 {
        self.turns.first().copied().unwrap_or(self.next_turn)
    }

    /// What is told from now on has this number or a later one.
    pub(super) const fn next_turn(&self) -> u64 {
        self.next_turn
    }

    #[cfg(test)]
    pub(super) fn check(&self) {
        assert_eq!(self.chunks.len(), self.names.len());
        assert_eq!(self.chunks.len(), self.waiting.len() + self.open.len());
        for (handle, chunk) in &self.chunks {
            assert_eq!(self.names.get(&chunk.name), Some(handle));
            assert_ne!(self.waiting.contains(&(chunk.class(), *handle)), self.open.contains(handle));
            assert_eq!(
                chunk.said,
                chunk.told.is_some() && self.open.contains(handle),
                "passed on when it is asked for"
            );
            assert_eq!(chunk.told.is_some(), chunk.turn.is_some_and(|turn| self.turns.contains(&turn)));
        }
        assert_eq!(self.turns.len(), self.chunks.values().filter(|chunk| chunk.told.is_some()).count());
        let linked = self.chunks.iter().filter_map(|(handle, chunk)| Some((chunk.theirs?, *handle)));
        assert_eq!(linked.collect::<HashMap<_, _>>(), self.theirs);
    }
}
