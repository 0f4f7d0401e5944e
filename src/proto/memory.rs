//! Who holds how much memory, and who gives way when it is full.
//!
//! One account for all windows of a relay: in all, and by session. Room is taken from the session
//! furthest over its share, oldest chunk first; of those over it, one that nobody watches goes
//! before one that somebody does. Who holds less than a fair share never gives way to who holds
//! more, watched or not. A chunk's bytes go before the record of a chunk whose bytes are gone. The account only counts: the caller lets go of what is named and says so
//! with [`Budget::release`] or [`Budget::close`], then asks again. So the bound holds at any time.

use std::collections::{BTreeSet, HashMap};

use crate::id::SessionId;

/// Sessions over their share that are looked at for one that nobody watches; beyond, the furthest
/// over it gives way.
const LOOK: usize = 64;

/// Which bound was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// All windows together.
    Memory,
    /// The session's own.
    Session,
}

/// There is no room: let go of `victim` and ask again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Full<P> {
    /// The slot to let go of and where it lies; `None`: the bound is smaller than what was asked.
    pub victim: Option<(u64, P)>,
    /// Which bound.
    pub bound: Bound,
}

/// The account. `P` says where a slot lies.
pub struct Budget<P> {
    limit: u64,
    per_session: u64,
    watched: fn(&P) -> bool,
    total: u64,
    last_slot: u64,
    slots: HashMap<u64, Slot<P>>,
    sessions: HashMap<SessionId, Session>,
    /// Sessions by bytes, so that the furthest over its share is the last.
    ranking: BTreeSet<(u64, SessionId)>,
}

struct Slot<P> {
    session: SessionId,
    place: P,
    record: u64,
    body: u64,
}

#[derive(Default)]
struct Session {
    bytes: u64,
    /// Slots with bytes, oldest first.
    bodies: BTreeSet<u64>,
    /// Slots without.
    records: BTreeSet<u64>,
}

impl<P: Clone> Budget<P> {
    /// An empty account of `limit` bytes in all and `per_session` bytes for each session. `watched`
    /// says whether anybody watches what lies at a place.
    #[must_use]
    pub fn new(limit: u64, per_session: u64, watched: fn(&P) -> bool) -> Self {
        Self {
            limit,
            per_session,
            watched,
            total: 0,
            last_slot: 0,
            slots: HashMap::new(),
            sessions: HashMap::new(),
            ranking: BTreeSet::new(),
        }
    }

    /// Bytes charged now.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.total
    }

    /// Opens a slot for a chunk's record of `bytes` bytes.
    ///
    /// # Errors
    /// [`Full`]; nothing was charged then.
    pub fn open(&mut self, session: &SessionId, place: P, bytes: u64) -> Result<u64, Full<P>> {
        self.room(session, bytes)?;
        self.last_slot += 1;
        let slot = Slot { session: session.clone(), place, record: bytes, body: 0 };
        self.slots.insert(self.last_slot, slot);
        self.count(session, bytes, 0);
        self.sessions.entry(session.clone()).or_default().records.insert(self.last_slot);
        Ok(self.last_slot)
    }

    /// Charges more bytes to a slot's chunk. An unknown slot costs nothing: it was closed.
    ///
    /// # Errors
    /// [`Full`]; nothing was charged then.
    pub fn charge(&mut self, slot: u64, bytes: u64) -> Result<(), Full<P>> {
        self.add(slot, bytes, true)
    }

    /// Charges more bytes to a slot's record, which stays when the chunk's bytes go.
    ///
    /// # Errors
    /// [`Full`]; nothing was charged then.
    pub fn charge_record(&mut self, slot: u64, bytes: u64) -> Result<(), Full<P>> {
        self.add(slot, bytes, false)
    }

    /// Gives back what [`Budget::charge_record`] charged and nobody used.
    pub fn refund_record(&mut self, slot: u64, bytes: u64) {
        let Some(entry) = self.slots.get_mut(&slot) else { return };
        let bytes = bytes.min(entry.record);
        entry.record -= bytes;
        let session = entry.session.clone();
        self.count(&session, 0, bytes);
    }

    /// The chunk's bytes are gone; its record stays.
    pub fn release(&mut self, slot: u64) {
        let Some(entry) = self.slots.get_mut(&slot) else { return };
        let (session, bytes) = (entry.session.clone(), std::mem::take(&mut entry.body));
        if let Some(uses) = self.sessions.get_mut(&session) {
            uses.bodies.remove(&slot);
            uses.records.insert(slot);
        }
        self.count(&session, 0, bytes);
    }

    /// The bytes of `from` belong to `to` from now on.
    pub fn carry(&mut self, from: u64, to: u64) {
        let Some(bytes) = self.slots.get(&from).map(|slot| slot.body) else { return };
        let Some(session) = self.slots.get(&to).map(|slot| slot.session.clone()) else { return };
        self.release(from);
        if let Some(slot) = self.slots.get_mut(&to) {
            slot.body += bytes;
        }
        if let Some(uses) = self.sessions.get_mut(&session) {
            uses.records.remove(&to);
            uses.bodies.insert(to);
        }
        self.count(&session, bytes, 0);
    }

    /// Nothing is left of the chunk.
    pub fn close(&mut self, slot: u64) {
        let Some(entry) = self.slots.remove(&slot) else { return };
        if let Some(uses) = self.sessions.get_mut(&entry.session) {
            uses.bodies.remove(&slot);
            uses.records.remove(&slot);
        }
        self.count(&entry.session, 0, entry.record + entry.body);
    }

    fn add(&mut self, slot: u64, bytes: u64, body: bool) -> Result<(), Full<P>> {
        let Some(session) = self.slots.get(&slot).map(|slot| slot.session.clone()) else { return Ok(()) };
        self.room(&session, bytes)?;
        if let Some(entry) = self.slots.get_mut(&slot) {
            *if body { &mut entry.body } else { &mut entry.record } += bytes;
        }
        if body && let Some(uses) = self.sessions.get_mut(&session) {
            uses.records.remove(&slot);
            uses.bodies.insert(slot);
        }
        self.count(&session, bytes, 0);
        Ok(())
    }

    fn room(&self, session: &SessionId, bytes: u64) -> Result<(), Full<P>> {
        let held = self.sessions.get(session).map_or(0, |uses| uses.bytes);
        if held.saturating_add(bytes) > self.per_session {
            return Err(Full { victim: self.oldest_of(session), bound: Bound::Session });
        }
        if self.total.saturating_add(bytes) > self.limit {
            return Err(Full { victim: self.victim(), bound: Bound::Memory });
        }
        Ok(())
    }

    /// The oldest of the session furthest over its share that nobody watches, or of the furthest.
    fn victim(&self) -> Option<(u64, P)> {
        let share = self.limit / (self.sessions.len() as u64).max(1);
        let over = self.ranking.iter().rev().take_while(|(bytes, _)| *bytes > share).take(LOOK);
        let mut oldest = over.filter_map(|(_, session)| self.oldest_of(session));
        let unwatched = oldest.find(|(_, place)| !(self.watched)(place));
        unwatched.or_else(|| self.oldest_of(&self.ranking.last()?.1))
    }

    fn oldest_of(&self, session: &SessionId) -> Option<(u64, P)> {
        let uses = self.sessions.get(session)?;
        let slot = *uses.bodies.first().or_else(|| uses.records.first())?;
        Some((slot, self.slots.get(&slot)?.place.clone()))
    }

    fn count(&mut self, session: &SessionId, more: u64, less: u64) {
        self.total = (self.total + more).saturating_sub(less);
        let uses = self.sessions.entry(session.clone()).or_default();
        self.ranking.remove(&(uses.bytes, session.clone()));
        uses.bytes = (uses.bytes + more).saturating_sub(less);
        if uses.bytes == 0 {
            self.sessions.remove(session);
        } else {
            self.ranking.insert((uses.bytes, session.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn session(name: &str) -> SessionId {
        SessionId::new(name).unwrap()
    }

    #[test]
    fn the_session_furthest_over_its_share_gives_way_oldest_first() {
        let mut budget = Budget::new(100, 80, |_| false);
        let (big, small) = (session("big"), session("small"));
        let first = budget.open(&big, "first", 1).unwrap();
        let second = budget.open(&big, "second", 1).unwrap();
        budget.charge(second, 30).unwrap();
        budget.charge(first, 30).unwrap();
        let third = budget.open(&small, "third", 1).unwrap();
        let full = budget.charge(third, 40).unwrap_err();
        assert_eq!(full, Full { victim: Some((first, "first")), bound: Bound::Memory });
        budget.release(first);
        budget.charge(third, 40).unwrap();
        assert_eq!(budget.total(), 73);
    }

    #[test]
    fn of_those_over_their_share_what_nobody_watches_goes_first() {
        // Places below 10 are watched.
        let mut budget = Budget::new(100, 90, |place: &u32| *place < 10);
        let hold = |budget: &mut Budget<u32>, who: &str, place: u32, bytes: u64| {
            let slot = budget.open(&session(who), place, 1).unwrap();
            budget.charge(slot, bytes - 1).unwrap();
            slot
        };
        let watched = hold(&mut budget, "watched", 1, 40);
        let unwatched = hold(&mut budget, "unwatched", 11, 36);
        let newer = hold(&mut budget, "unwatched", 12, 3);
        let little = hold(&mut budget, "little", 13, 21);
        let victim = |budget: &mut Budget<u32>| budget.charge(watched, 1).unwrap_err().victim.unwrap().0;
        assert_eq!(victim(&mut budget), unwatched, "not the one that holds most, nor the unwatched one with its share");
        budget.close(unwatched);
        budget.charge(watched, 36).unwrap();
        assert_eq!(victim(&mut budget), watched, "all others hold less than their share");
        budget.close(newer);
        budget.close(little);
        assert_eq!(budget.total(), 76);
    }

    #[test]
    fn bytes_go_before_records_and_nothing_larger_than_the_bound_is_waited_for() {
        let mut budget = Budget::new(100, 50, |_| false);
        let one = session("one");
        let record = budget.open(&one, 1, 10).unwrap();
        let held = budget.open(&one, 2, 10).unwrap();
        budget.charge(held, 20).unwrap();
        let full = budget.open(&one, 3, 20).unwrap_err();
        assert_eq!(full, Full { victim: Some((held, 2)), bound: Bound::Session });
        budget.release(held);
        assert_eq!(budget.open(&one, 3, 40).unwrap_err().victim, Some((record, 1)));
        budget.close(record);
        budget.close(held);
        assert_eq!(budget.open(&one, 3, 51).unwrap_err().victim, None);
        assert_eq!((budget.total(), budget.sessions.len(), budget.ranking.len()), (0, 0, 0));
    }

    proptest! {
        #[test]
        fn the_bound_holds_and_asking_again_ends(
            steps in prop::collection::vec((0u8..4, 0u8..4, 0u64..60), 1..80),
        ) {
            let mut budget = Budget::new(200, 120, |_| false);
            let mut slots = Vec::new();
            for (what, who, bytes) in steps {
                let who = session(&format!("s{who}"));
                for _ in 0..200 {
                    let done = match what {
                        0 => budget.open(&who, (), 5).map(|slot| slots.push(slot)),
                        1 => slots.get(bytes as usize).map_or(Ok(()), |slot| budget.charge(*slot, bytes)),
                        2 => slots.get(bytes as usize).map_or(Ok(()), |slot| budget.charge_record(*slot, 3)),
                        _ => { if let Some(slot) = slots.get(bytes as usize) { budget.close(*slot); } Ok(()) }
                    };
                    let Err(full) = done else { break };
                    let Some((slot, ())) = full.victim else { break };
                    if budget.slots[&slot].body > 0 { budget.release(slot) } else { budget.close(slot) }
                }
                prop_assert!(budget.total() <= 200);
                let sum: u64 = budget.slots.values().map(|slot| slot.record + slot.body).sum();
                prop_assert_eq!(budget.total(), sum);
                let by_session: u64 = budget.sessions.values().map(|uses| uses.bytes).sum();
                prop_assert_eq!(by_session, sum);
            }
        }
    }
}
