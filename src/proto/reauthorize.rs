//! When the core is asked again about the capabilities that contacts watch with and that no
//! revocation list names. Pure: `now` is milliseconds of a monotonic clock, `random` any random
//! number. The budget of calls is elsewhere ([`crate::budget`]): this says who is next.
//!
//! **What holds.** A capability is due once within `every` of the last time the core said yes,
//! however many hold it, at a moment of its own, so that those who came together are not asked
//! together. The one that is due longest goes first; where the budget is too small for all, each
//! gets its turn and none is forgotten. Whoever is not held any more is not asked.

use std::collections::{BTreeSet, HashMap};

use crate::budget::{RETRY_LONGEST_MS, backoff_ms};

/// A capability's name: a keyed hash.
pub type Name = [u8; 32];

/// Who is held, and when each is due.
#[derive(Debug)]
pub struct Schedule {
    every_ms: u64,
    room: usize,
    held: HashMap<Name, Held>,
    due: BTreeSet<(u64, Name)>,
}

#[derive(Debug)]
struct Held {
    holders: usize,
    /// When it is due; `None`: it is being asked about.
    at: Option<u64>,
    /// When the core last said yes, as far as is known.
    yes: u64,
    failures: u32,
}

impl Schedule {
    /// Nobody is held; at most `room` will be.
    #[must_use]
    pub fn new(every_ms: u64, room: usize) -> Self {
        Self { every_ms, room, held: HashMap::new(), due: BTreeSet::new() }
    }

    /// One more subscription holds this capability, to which the core said yes at `yes` (`None`:
    /// not that this relay knows; then it is due at once). `false`: there is no room.
    #[must_use]
    pub fn hold(&mut self, name: Name, yes: Option<u64>, now: u64, random: u64) -> bool {
        if let Some(held) = self.held.get_mut(&name) {
            held.holders += 1;
            return true;
        }
        if self.held.len() >= self.room {
            return false;
        }
        let at = yes.map_or(now, |yes| self.turn(yes, random)).max(now);
        self.held.insert(name, Held { holders: 1, at: Some(at), yes: yes.unwrap_or(now), failures: 0 });
        self.due.insert((at, name));
        true
    }

    /// One subscription less; `true`: it was the last.
    pub fn release(&mut self, name: &Name) -> bool {
        let Some(held) = self.held.get_mut(name) else { return false };
        held.holders -= 1;
        if held.holders > 0 {
            return false;
        }
        self.forget(name);
        true
    }

    /// When the next one is due.
    #[must_use]
    pub fn next_at(&self) -> Option<u64> {
        self.due.first().map(|(at, _)| *at)
    }

    /// The one that is due longest; it is not due again before [`Schedule::answered`].
    pub fn take(&mut self, now: u64) -> Option<Name> {
        let (at, name) = *self.due.first()?;
        if at > now {
            return None;
        }
        self.due.remove(&(at, name));
        if let Some(held) = self.held.get_mut(&name) {
            held.at = None;
        }
        Some(name)
    }

    /// What the core said: yes, or nothing that counts; then it is asked again after a pause.
    pub fn answered(&mut self, name: &Name, yes: bool, now: u64, random: u64) {
        let turn = self.turn(now, random);
        // Let go of and taken up again meanwhile, it has its time already.
        let Some(held) = self.held.get_mut(name).filter(|held| held.at.is_none()) else { return };
        let at = if yes {
            (held.yes, held.failures) = (now, 0);
            turn
        } else {
            held.failures = held.failures.saturating_add(1);
            now + backoff_ms(held.failures, RETRY_LONGEST_MS.min(self.every_ms), random)
        };
        held.at = Some(at);
        self.due.insert((at, *name));
    }

    /// The core said no: it is not asked again.
    pub fn refused(&mut self, name: &Name) {
        self.forget(name);
    }

    /// How many capabilities are held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.held.len()
    }

    /// Nobody is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// How many have gone without a yes for longer than `every`: the core is away, or the budget
    /// is too small for so many.
    #[must_use]
    pub fn overdue(&self, now: u64) -> usize {
        self.held.values().filter(|held| now > held.yes.saturating_add(self.every_ms)).count()
    }

    /// Half of the interval and up to a tenth more: the rest is for all the calls of those who came
    /// together, one after the other.
    const fn turn(&self, yes: u64, random: u64) -> u64 {
        yes.saturating_add(self.every_ms / 2 + random % (self.every_ms / 10 + 1))
    }

    fn forget(&mut self, name: &Name) {
        if let Some(Held { at: Some(at), .. }) = self.held.remove(name) {
            self.due.remove(&(at, *name));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::{Budget, Call, Poll, WINDOW_MS};
    use proptest::prelude::*;

    fn name(number: usize) -> Name {
        let mut name = [0; 32];
        name[..8].copy_from_slice(&(number as u64).to_be_bytes());
        name
    }

    #[test]
    fn one_capability_is_asked_about_once_however_many_hold_it() {
        let mut schedule = Schedule::new(30_000, 8);
        for _ in 0..5 {
            assert!(schedule.hold(name(1), Some(0), 0, 7));
        }
        let at = schedule.next_at().unwrap();
        assert!((15_000..=18_000).contains(&at));
        assert_eq!(schedule.take(at - 1), None);
        assert_eq!((schedule.take(at), schedule.take(at)), (Some(name(1)), None));
        schedule.answered(&name(1), true, at, 3);
        assert!(schedule.next_at().unwrap() > at);
        assert!((0..4).all(|_| !schedule.release(&name(1))));
        assert!(schedule.release(&name(1)));
        assert!(schedule.is_empty() && schedule.next_at().is_none());
    }

    #[test]
    fn there_is_so_much_room_and_who_was_never_vouched_for_is_due_at_once() {
        let mut schedule = Schedule::new(30_000, 1);
        assert!(schedule.hold(name(1), None, 500, 9));
        assert!(!schedule.hold(name(2), None, 500, 9));
        assert!(schedule.hold(name(1), None, 500, 9), "another holder takes no room");
        assert_eq!(schedule.take(500), Some(name(1)));
        schedule.refused(&name(1));
        schedule.answered(&name(1), true, 600, 0);
        assert!(!schedule.release(&name(1)) && schedule.is_empty());
        assert!(schedule.hold(name(2), None, 700, 9));
    }

    #[test]
    fn a_core_that_says_nothing_is_asked_again_after_a_pause_that_grows() {
        let mut schedule = Schedule::new(60_000, 8);
        assert!(schedule.hold(name(1), None, 0, 0));
        let (mut now, mut last) = (0, 0);
        for round in 0..12 {
            assert_eq!(schedule.take(now), Some(name(1)));
            schedule.answered(&name(1), false, now, u64::MAX);
            let pause = schedule.next_at().unwrap() - now;
            assert!(pause >= last.min(RETRY_LONGEST_MS / 2) && pause <= RETRY_LONGEST_MS, "{round}: {pause}");
            (now, last) = (now + pause, pause);
        }
        assert_eq!(schedule.overdue(now), 1);
        assert_eq!(schedule.take(now), Some(name(1)));
        schedule.answered(&name(1), true, now, 0);
        assert_eq!(schedule.overdue(now), 0);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// Contacts come and go, the core is slow or says nothing: never more calls in any minute
        /// than a tenth of the budget, and where the tenth is enough, each within the interval.
        #[test]
        fn each_within_the_interval_and_never_more_than_the_budget(
            per_minute in 20u32..600,
            every_s in 20u64..120,
            load in 1u32..100,
            crowded in any::<bool>(),
            silent in 0u64..3,
            seed in any::<u64>(),
        ) {
            let tenth = u64::from(per_minute / 10);
            let sustained = (tenth - 1).max(1);
            // All due at once, each has its turn in what is left of the interval; or far more than that.
            let room = every_s * 1000 * 2 / 5;
            let fit = (sustained * room / WINDOW_MS).saturating_sub(1);
            let count = if crowded { fit * 5 + 2 } else { (fit * u64::from(load) / 100).max(1) };
            let enough = !crowded && silent == 0 && count <= fit;
            let mut random = seed;
            let mut roll = move || {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                random >> 33
            };
            let every = every_s * 1000;
            let (mut schedule, mut budget) = (Schedule::new(every, 4096), Budget::new(per_minute));
            let mut last = vec![0u64; count as usize];
            for number in 0..count as usize {
                prop_assert!(schedule.hold(name(number), Some(0), 0, roll()));
            }
            let (mut calls, mut now) = (Vec::new(), 0u64);
            let mut asked = vec![0u32; count as usize];
            while now < every * 6 {
                let Some(at) = schedule.next_at() else { break };
                if at > now {
                    now = at;
                    continue;
                }
                match budget.poll(now, Call::Reauthorize) {
                    Poll::WaitUntil(at) => now = at.max(now + 1),
                    Poll::Go => {
                        let taken = schedule.take(now).unwrap();
                        let number = u64::from_be_bytes(taken[..8].try_into().unwrap()) as usize;
                        calls.push(now);
                        asked[number] += 1;
                        if enough {
                            prop_assert!(now - last[number] <= every, "{number} after {} ms", now - last[number]);
                        }
                        let yes = silent == 0 || roll() % 3 >= silent;
                        if yes {
                            last[number] = now;
                        }
                        schedule.answered(&taken, yes, now, roll());
                    }
                }
            }
            for (at, call) in calls.iter().enumerate() {
                let within = calls[at..].iter().take_while(|later| **later < call + WINDOW_MS).count() as u64;
                prop_assert!(within <= tenth.max(1), "{within} calls in a minute, {tenth} allowed");
            }
            if silent == 0 {
                let (least, most) = (asked.iter().min().unwrap(), asked.iter().max().unwrap());
                prop_assert!(*least + 4 + most / 2 >= *most, "turns are shared: {asked:?}");
                prop_assert!(!enough || *least >= 5);
            }
        }
    }
}
