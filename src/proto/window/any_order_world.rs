//! A window as a relay drives it, for any interleaving: uploads that come, break off, fail and are taken back, states,
//! restarts, and the account of memory beside it.

use std::collections::HashSet;

use super::tests::meta;
use super::*;
use crate::memory::{Bound, Budget, Full};

/// Small, so that records have to give way too.
const LIMIT: u64 = 300_000;
const PER_SESSION: u64 = 250_000;

/// A chunk: stream and index.
pub(super) type Name = (String, u64);

/// Five streams of sound and three of pictures. Most of what happens is of the first three.
pub(super) const STREAMS: [&str; 8] = ["a1", "a2", "v1", "a3", "a4", "a5", "v2", "v3"];

/// The lane of a stream.
pub(super) fn lane(stream: &str) -> usize {
    usize::from(stream.starts_with('v'))
}

pub(super) fn name(meta: &ChunkMeta) -> Name {
    (meta.stream.as_str().to_owned(), meta.index)
}

/// A window with its account, driven as the hub drives it.
pub(super) struct World {
    /// Which process it is.
    pub(super) instance: u64,
    pub(super) window: Window,
    pub(super) budget: Budget<Place>,
    pub(super) attempts: Vec<Attempt>,
    pub(super) owners: u64,
    pub(super) confirmed: HashSet<Name>,
    /// Everything that began in this window, with its handle.
    pub(super) begun: Vec<(Place, Name, u64)>,
    pub(super) now: u64,
}

pub(super) struct Attempt {
    pub(super) meta: Arc<ChunkMeta>,
    pub(super) owner: u64,
    pub(super) at: u64,
    pub(super) place: Option<Place>,
}

/// The byte of a chunk at an offset: what must arrive.
pub(super) fn byte(stream: &str, index: u64, digest: u8, offset: u64) -> u8 {
    let seed = stream.bytes().fold(u64::from(digest), |seed, b| seed * 31 + u64::from(b));
    (seed + index * 7 + offset * 13 + offset / 251) as u8
}

impl World {
    pub(super) fn new() -> Self {
        Self {
            instance: 1,
            window: Self::window(1),
            budget: Budget::new(LIMIT, PER_SESSION, |_| false),
            attempts: Vec::new(),
            owners: 0,
            confirmed: HashSet::new(),
            begun: Vec::new(),
            now: 0,
        }
    }

    pub(super) fn window(instance: u64) -> Window {
        let rules = Rules {
            window_ms: 12_000,
            max_chunk: 200_000,
            silent_ms: 15_000,
            patience_ms: 30_000,
            node: "node".into(),
        };
        Window::new(rules, IncidentId::new("i").unwrap(), instance)
    }

    /// Another process: what the core did not confirm begins again, from its first byte.
    pub(super) fn restart(&mut self) {
        self.instance += 1;
        self.window = Self::window(self.instance);
        self.budget = Budget::new(LIMIT, PER_SESSION, |_| false);
        self.begun.clear();
        let confirmed = &self.confirmed;
        self.attempts.retain(|attempt| !confirmed.contains(&name(&attempt.meta)));
        for attempt in &mut self.attempts {
            (attempt.at, attempt.place) = (0, None);
        }
    }

    pub(super) fn settle(&mut self) {
        for effect in self.window.take_effects() {
            match effect {
                Effect::Release(slot) => self.budget.release(slot),
                Effect::Carry(from, to) => self.budget.carry(from, to),
                Effect::Close(slot) => self.budget.close(slot),
                Effect::Forget(_) | Effect::Evicted(_) | Effect::Withdrawn(_) => {}
            }
        }
        assert!(self.budget.total() <= LIMIT);
        let entries = || self.window.lanes.iter().flat_map(|lane| lane.entries().map(|(_, entry)| entry));
        let held: u64 = entries().filter_map(|entry| entry.body.as_ref()).map(|body| body.have()).sum();
        let charged: u64 = entries().map(|entry| RECORD_COST + entry.body.as_ref().map_or(0, |body| body.cost())).sum();
        assert!(held <= self.budget.total(), "what is held is charged");
        assert_eq!(self.budget.total(), charged, "what is gone is not");
    }

    pub(super) fn make_room(&mut self, full: Full<Place>) {
        let (slot, place) = full.victim.expect("one chunk always fits");
        let cause = if full.bound == Bound::Memory { Cause::Memory } else { Cause::Session };
        assert_eq!(self.window.slot(place), Some(slot));
        assert!(self.window.evict(place, cause));
        self.settle();
    }

    pub(super) fn publish(&mut self, stream: usize, index: u64, length: u64, digest: u8) {
        let mut meta = meta(STREAMS[stream], index, index as i64 * 2 + stream as i64, length);
        meta.sha256 = Digest([digest; 32]);
        meta.session = SessionId::new(if stream == 0 { "s1" } else { "s2" }).unwrap();
        if lane(STREAMS[stream]) == 1 {
            meta.variant = Variant::LivePreview;
        }
        self.owners += 1;
        let owner = self.owners;
        let place = match self.window.open(&meta, owner) {
            Opened::Here(place) => Some(place),
            Opened::Fresh | Opened::Stale => None,
        };
        self.settle();
        self.attempts.push(Attempt { meta: Arc::new(meta), owner, at: 0, place });
    }

    pub(super) fn push(&mut self, attempt: usize, len: u64, skip: u64) {
        let Some(attempt) = pick(self.attempts.len(), attempt) else { return };
        let (meta, owner, at) = {
            let a = &mut self.attempts[attempt];
            a.at = (a.at + skip).min(a.meta.length);
            let at = a.at;
            a.at = (at + len).min(a.meta.length);
            (a.meta.clone(), a.owner, at)
        };
        let len = len.min(meta.length - at);
        let digest = meta.sha256.0[0];
        let bytes: Vec<u8> = (at..at + len).map(|at| byte(meta.stream.as_str(), meta.index, digest, at)).collect();
        let Some(place) = self.begun(attempt, &meta, owner, at) else { return };
        loop {
            let price = self.window.price(place, at, bytes.len()).unwrap_or(0);
            let slot = self.window.slot(place).unwrap_or(0);
            match self.budget.charge(slot, price) {
                Ok(()) => break,
                Err(full) => self.make_room(full),
            }
        }
        self.window.push(place, at, &bytes, Some(self.now));
        self.settle();
    }

    pub(super) fn begun(&mut self, attempt: usize, meta: &Arc<ChunkMeta>, owner: u64, at: u64) -> Option<Place> {
        if let Some(place) = self.attempts[attempt].place {
            return Some(place);
        }
        let place = match self.window.open(meta, owner) {
            Opened::Here(place) => Some(place),
            Opened::Stale => None,
            Opened::Fresh => loop {
                let place = self.window.next_place(lane_of(meta.variant).unwrap());
                match self.budget.open(&meta.session, place, RECORD_COST) {
                    Ok(slot) => break self.window.begin(meta, owner, slot, at, Some(self.now)),
                    Err(full) => self.make_room(full),
                }
            },
        };
        self.settle();
        if let Some(place) = place
            && let Some(entry) = self.window.lanes[place.lane].entry(place.seq)
            && self.begun.iter().all(|begun| begun.0 != place)
        {
            self.begun.push((place, name(meta), entry.handle));
        }
        self.attempts[attempt].place = place;
        place
    }

    pub(super) fn complete(&mut self, attempt: usize) {
        let Some(attempt) = pick(self.attempts.len(), attempt) else { return };
        let (meta, owner, at) =
            (self.attempts[attempt].meta.clone(), self.attempts[attempt].owner, self.attempts[attempt].at);
        if at == meta.length
            && let Some(place) = self.begun(attempt, &meta, owner, at)
        {
            self.window.complete(place, Some(self.now));
            self.settle();
        }
    }

    pub(super) fn withdraw(&mut self, attempt: usize, reason: WithdrawnReason) {
        let Some(attempt) = pick(self.attempts.len(), attempt) else { return };
        if let Some(place) = self.attempts[attempt].place {
            self.window.withdraw(place, self.attempts[attempt].owner, reason);
            self.settle();
        }
    }

    pub(super) fn leave(&mut self, attempt: usize) {
        let Some(attempt) = pick(self.attempts.len(), attempt) else { return };
        if let Some(place) = self.attempts[attempt].place {
            self.window.leave(place, self.attempts[attempt].owner, self.now);
            self.settle();
        }
    }

    pub(super) fn drop_chunk(&mut self, attempt: usize) {
        let Some(attempt) = pick(self.attempts.len(), attempt) else { return };
        self.window.drop_chunk(self.attempts[attempt].meta.chunk);
        self.settle();
    }

    /// Nobody gave a sign for a day.
    pub(super) fn clear(&mut self) {
        self.window.clear(Cause::Linger);
        self.settle();
        assert_eq!(self.budget.total(), 0);
    }

    pub(super) fn state(&mut self, attempt: usize, state: ContactState) {
        let Some(attempt) = pick(self.attempts.len(), attempt) else { return };
        let meta = self.attempts[attempt].meta.clone();
        if state == ContactState::Confirmed {
            self.confirmed.insert(name(&meta));
        }
        self.window.set_state(meta.chunk, state, None, None);
        self.settle();
    }
}

pub(super) fn pick(len: usize, at: usize) -> Option<usize> {
    (len > 0).then(|| at % len)
}
