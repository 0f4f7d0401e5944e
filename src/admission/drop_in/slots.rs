//! Drop-in uploads in flight, and the answers remembered for a resend.

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Map, Value};

use crate::admission::names::{Name, Names};
use crate::config::Limits;
use crate::proto::{ChunkRef, Class, Code, Digest, Offer};

/// Confirmed uploads whose answer is remembered for a resend. About 1 KiB each.
const MAX_REMEMBERED: usize = 4096;

/// Uploads in flight, and answers remembered.
pub(in crate::admission) struct InProgress {
    state: Arc<Mutex<State>>,
    /// Sessions and addresses are known by keyed hashes only.
    names: Names,
    per_session: usize,
    per_client: usize,
    /// Whose turn it is to wait for a commit, by class; first come, first served.
    turns: [tokio::sync::Mutex<()>; Class::COUNT],
}

#[derive(Default)]
struct State {
    chunks: HashSet<Name>,
    sessions: HashMap<Name, usize>,
    clients: HashMap<Name, usize>,
    answers: HashMap<ChunkRef, (Digest, u64, Map<String, Value>)>,
    order: VecDeque<ChunkRef>,
}

/// A slot for one chunk; given back when dropped.
pub(super) struct Slot {
    state: Arc<Mutex<State>>,
    chunk: Name,
    session: Name,
    client: Name,
}

impl InProgress {
    pub(in crate::admission) fn new(limits: &Limits) -> Self {
        Self {
            state: Arc::default(),
            names: Names::default(),
            per_session: limits.in_flight_per_session,
            per_client: limits.in_flight_per_client,
            turns: Default::default(),
        }
    }

    /// Waits for the turn of a chunk of this class; the turn is over when it is dropped.
    pub(super) async fn turn(&self, class: Class) -> tokio::sync::MutexGuard<'_, ()> {
        self.turns[class.rank()].lock().await
    }

    /// Takes a slot, in the contract's order: the chunk, its session, its client.
    pub(super) fn slot(&self, session: &str, index: u64, client: IpAddr) -> Result<Slot, Code> {
        let chunk = self.names.of(("chunk", session, index));
        let client = self.names.client(client);
        let session = self.names.of(("session", session));
        let mut state = lock(&self.state);
        if state.chunks.contains(&chunk) {
            return Err(Code::RelayChunkInProgress);
        }
        if state.sessions.get(&session).is_some_and(|count| *count >= self.per_session) {
            return Err(Code::RelaySessionInFlight);
        }
        if state.clients.get(&client).is_some_and(|count| *count >= self.per_client) {
            return Err(Code::RelayClientInFlight);
        }
        state.chunks.insert(chunk);
        *state.sessions.entry(session).or_default() += 1;
        *state.clients.entry(client).or_default() += 1;
        Ok(Slot { state: Arc::clone(&self.state), chunk, session, client })
    }

    /// The core confirmed these bytes.
    pub(super) fn remember(&self, offer: &Offer, answer: &Map<String, Value>) {
        let mut state = lock(&self.state);
        let chunk = offer.chunk_ref();
        if state.answers.insert(chunk, (offer.sha256, offer.length, answer.clone())).is_none() {
            state.order.push_back(chunk);
        }
        if state.order.len() > MAX_REMEMBERED
            && let Some(oldest) = state.order.pop_front()
        {
            state.answers.remove(&oldest);
        }
    }

    /// What the core said of the very same bytes before.
    pub(super) fn answer(&self, offer: &Offer) -> Option<Map<String, Value>> {
        let state = lock(&self.state);
        let (digest, length, answer) = state.answers.get(&offer.chunk_ref())?;
        (*digest == offer.sha256 && *length == offer.length).then(|| answer.clone())
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut state = lock(&self.state);
        leave(&mut state.sessions, self.session);
        leave(&mut state.clients, self.client);
        state.chunks.remove(&self.chunk);
    }
}

fn leave<K: Hash + Eq>(counts: &mut HashMap<K, usize>, key: K) {
    if let Some(count) = counts.get_mut(&key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(&key);
        }
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_counted_in_the_contracts_order_and_given_back() {
        let limits = Limits { in_flight_per_session: 2, in_flight_per_client: 3, ..Limits::default() };
        let slots = InProgress::new(&limits);
        let (a, b) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let first = slots.slot("one", 1, a).ok().unwrap();
        let second = slots.slot("one", 2, a).ok().unwrap();
        assert_eq!(slots.slot("one", 1, b).err(), Some(Code::RelayChunkInProgress));
        assert_eq!(slots.slot("one", 3, b).err(), Some(Code::RelaySessionInFlight));
        let third = slots.slot("two", 1, a).ok().unwrap();
        assert_eq!(slots.slot("three", 1, a).err(), Some(Code::RelayClientInFlight));
        assert!(slots.slot("three", 1, b).is_ok(), "another address is not concerned");
        drop((first, second, third));
        let state = lock(&slots.state);
        assert!(state.chunks.is_empty() && state.sessions.is_empty() && state.clients.is_empty());
    }
}
