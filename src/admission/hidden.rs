//! Chunks of lanes that no contact sees, so that one who asks for such a chunk hears
//! `not_watchable` at once and does not wait for what never comes.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::names::{Name, Names};
use crate::fanout::GroupKey;
use crate::proto::ChunkRef;

/// Chunks remembered, at about 64 bytes each; the oldest is forgotten first, and then waited for.
const MAX_HIDDEN: usize = 32_768;

/// Chunks that are never shown, and in which group.
#[derive(Default)]
pub(super) struct Hidden {
    names: Names,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    groups: HashMap<ChunkRef, Name>,
    order: VecDeque<ChunkRef>,
}

impl Hidden {
    /// This chunk is of a lane that is not shown.
    pub(super) fn remember(&self, chunk: ChunkRef, group: &GroupKey) {
        let group = self.names.of(group);
        let mut known = self.known();
        if known.groups.insert(chunk, group).is_none() {
            known.order.push_back(chunk);
        }
        if known.order.len() > MAX_HIDDEN
            && let Some(oldest) = known.order.pop_front()
        {
            known.groups.remove(&oldest);
        }
    }

    /// Whether this chunk is one of the group that is not shown. Of other groups nothing is told.
    pub(super) fn holds(&self, chunk: ChunkRef, group: &GroupKey) -> bool {
        self.known().groups.get(&chunk).is_some_and(|known| *known == self.names.of(group))
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{GroupId, IncidentId};

    #[test]
    fn a_group_learns_of_its_own_chunks_alone_and_the_oldest_is_forgotten() {
        let hidden = Hidden::default();
        let group = |name: &str| GroupKey::Group(IncidentId::new("i").unwrap(), GroupId::new(name).unwrap());
        let chunk = |at: usize| {
            let mut name = [0; 16];
            name[..8].copy_from_slice(&at.to_be_bytes());
            ChunkRef(name)
        };
        (0..MAX_HIDDEN).for_each(|at| hidden.remember(chunk(at), &group("a")));
        hidden.remember(chunk(0), &group("a"));
        assert!(hidden.holds(chunk(0), &group("a")) && !hidden.holds(chunk(0), &group("b")));
        hidden.remember(chunk(MAX_HIDDEN), &group("a"));
        assert!(!hidden.holds(chunk(0), &group("a")) && hidden.holds(chunk(1), &group("a")));
    }
}
