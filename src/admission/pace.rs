//! How fast each session's bytes come, for the hints it gets.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::Admission;
use super::names::{Name, Names};
use crate::capability::{Capability, Trust};
use crate::clock::Clock;
use crate::proto::claims::Use;
use crate::proto::hint::Pace;
use crate::proto::message::Hint;
use crate::proto::{Offer, SessionId, Variant};

/// Sessions whose pace is known at once, at about 400 bytes each. Beyond, those that were quiet for
/// [`QUIET_MS`] are forgotten; while there are none, new ones get hints without a rate.
const MAX_PACES: usize = 16_384;
/// A session without an offer for so long may be forgotten.
const QUIET_MS: u64 = 600_000;

/// Every session's pace.
pub(super) struct Paces {
    names: Names,
    clock: Clock,
    known: Mutex<HashMap<Name, Known>>,
}

struct Known {
    pace: Arc<Mutex<Pace>>,
    seen_ms: u64,
}

impl Paces {
    pub(super) fn new(clock: &Clock) -> Self {
        Self { names: Names::default(), clock: clock.clone(), known: Mutex::default() }
    }

    fn name(&self, session: &SessionId) -> Name {
        self.names.of(("session", session.as_str()))
    }

    /// One more chunk of a session begins to come.
    pub(super) fn begin(&self, session: &SessionId, chunk: Stretch) -> Option<Coming> {
        let (now, unix_ms) = (self.clock.now_ms(), self.clock.unix_ms());
        let pace = {
            let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            if known.len() >= MAX_PACES {
                known.retain(|_, one| now.saturating_sub(one.seen_ms) < QUIET_MS);
            }
            let name = self.name(session);
            if known.len() >= MAX_PACES && !known.contains_key(&name) {
                return None;
            }
            let one = known.entry(name).or_insert_with(|| Known { pace: Arc::default(), seen_ms: now });
            one.seen_ms = now;
            Arc::clone(&one.pace)
        };
        {
            let recorded_ms = u64::try_from(chunk.ended_ms.saturating_sub(chunk.started_ms)).unwrap_or(0);
            let lag_ms = unix_ms.saturating_sub(chunk.ended_ms);
            let mut pace = pace.lock().unwrap_or_else(PoisonError::into_inner);
            pace.offered(now, chunk.variant, chunk.length, recorded_ms, lag_ms);
            pace.opened();
        }
        Some(Coming { pace, clock: self.clock.clone() })
    }

    fn of(&self, session: &SessionId) -> Option<Arc<Mutex<Pace>>> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(&self.name(session)).map(|one| Arc::clone(&one.pace))
    }
}

/// What a chunk says of its lane.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stretch {
    variant: Variant,
    length: u64,
    started_ms: i64,
    ended_ms: i64,
}

impl Stretch {
    pub(super) const fn of(offer: &Offer, variant: Variant) -> Self {
        let (started_ms, ended_ms) = (offer.started.unix_ms(), offer.ended.unix_ms());
        Self { variant, length: offer.length, started_ms, ended_ms }
    }
}

/// A chunk whose bytes are awaited, until it is dropped.
pub(super) struct Coming {
    pace: Arc<Mutex<Pace>>,
    clock: Clock,
}

impl Coming {
    /// Some of them came.
    pub(super) fn came(&self, bytes: usize) {
        let now = self.clock.now_ms();
        self.pace.lock().unwrap_or_else(PoisonError::into_inner).came(now, bytes as u64);
    }
}

impl Drop for Coming {
    fn drop(&mut self) {
        self.pace.lock().unwrap_or_else(PoisonError::into_inner).closed();
    }
}

impl Admission {
    /// The session whose hints a bearer may have: that of a sound upload capability.
    #[must_use]
    pub fn hinted(&self, capability: &Capability) -> Option<SessionId> {
        let trusted = self.0.vouched.apply(capability.clone(), self.0.parts.clock.unix_s()).trust == Trust::Verified;
        (trusted && capability.grant.use_ == Use::Upload).then(|| capability.grant.session.clone())
    }

    /// What a capture client should know now, for its session too if it has one.
    #[must_use]
    pub fn hint(&self, session: Option<&SessionId>) -> Hint {
        let mut hint = self.hint_for_all();
        let Some(pace) = session.and_then(|session| self.0.paces.of(session)) else { return hint };
        let (now, pressure) = (self.0.parts.clock.now_ms(), hint.pressure.unwrap_or_default());
        let limited = hint.core_limited_s.is_some();
        let advice = pace.lock().unwrap_or_else(PoisonError::into_inner).advise(now, pressure, limited);
        (hint.rate, hint.lanes, hint.chunk_ms) = (advice.rate, advice.lanes, advice.chunk_ms);
        hint
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const SOUND: Stretch = Stretch { variant: Variant::AudioPriority, length: 1_000, started_ms: -2_000, ended_ms: 0 };

    #[test]
    fn no_more_sessions_are_known_than_there_is_room_for() {
        let clock = Clock::at_unix_ms(0);
        let paces = Paces::new(&clock);
        let session = |at: usize| SessionId::new(&format!("s{at}")).unwrap();
        let begin = |at| paces.begin(&session(at), SOUND).is_some();
        assert!((0..MAX_PACES).all(begin));
        assert!(!begin(MAX_PACES), "all of them are at it");
        assert!(begin(0));
        clock.advance(Duration::from_millis(QUIET_MS));
        assert!(begin(MAX_PACES), "quiet ones give way");
        assert_eq!(paces.known.lock().unwrap().len(), 1);
    }

    #[test]
    fn a_session_has_its_own_rate_and_all_its_chunks_count() {
        let clock = Clock::at_unix_ms(0);
        let paces = Paces::new(&clock);
        let session = SessionId::new("s").unwrap();
        let audio = paces.begin(&session, SOUND).unwrap();
        let preview = paces.begin(&session, Stretch { variant: Variant::LivePreview, ..SOUND }).unwrap();
        for _ in 0..=10 {
            audio.came(1_000);
            preview.came(1_000);
            clock.advance(Duration::from_millis(100));
        }
        let rate = paces.of(&session).unwrap().lock().unwrap().rate().unwrap();
        assert!((18_000..=21_000).contains(&rate), "{rate}");
        assert!(paces.of(&SessionId::new("other").unwrap()).is_none());
        drop((audio, preview));
        let pace = paces.of(&session).unwrap();
        clock.advance(Duration::from_secs(1));
        let again = paces.begin(&session, SOUND).unwrap();
        again.came(1_000_000);
        assert_eq!(pace.lock().unwrap().rate(), Some(rate), "the pause before it took a time that nobody knows");
    }
}
