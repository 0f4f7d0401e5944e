//! Room on the staging disk: reserved at the offer, with head-room by class and shared by
//! session (design, promises 4 and 5).
//!
//! Each class may fill the room only up to its own mark, so that a disk full of masters still
//! takes sound. Within a class's mark a session may hold at most [`ALPHA`] times what is still
//! free (the dynamic threshold of Choudhury and Hahne, 1998): one session alone gets two thirds,
//! many sessions share, and there is always room for one more.

use std::collections::HashMap;
use std::hash::Hash;

use crate::code::Code;
use crate::media::Class;

/// What a chunk costs beside its bytes: header, sealed metadata, directory entry, block rounding.
pub const OVERHEAD: u64 = 8 * 1024;
/// A session may hold this many times what is free.
pub const ALPHA: u64 = 2;

/// The share of the room that a class may fill, in percent.
#[must_use]
pub const fn mark(class: Class) -> u64 {
    match class {
        Class::Audio => 100,
        Class::Preview => 96,
        Class::Context => 92,
        Class::Master => 85,
    }
}

/// The room and who holds it.
#[derive(Debug)]
pub struct Quota<S> {
    total: u64,
    used: u64,
    held: HashMap<S, u64>,
}

impl<S: Copy + Eq + Hash> Quota<S> {
    /// Room of `total` bytes.
    #[must_use]
    pub fn new(total: u64) -> Self {
        Self { total, used: 0, held: HashMap::new() }
    }

    /// Reserves room for a chunk of `length` bytes.
    ///
    /// # Errors
    /// [`Code::StagingFull`] over the class's mark, [`Code::SessionQuota`] over the session's share.
    pub fn reserve(&mut self, session: S, class: Class, length: u64) -> Result<(), Code> {
        let need = length.saturating_add(OVERHEAD);
        let mark = self.total / 100 * mark(class);
        let free = mark.saturating_sub(self.used);
        if need > free {
            return Err(Code::StagingFull);
        }
        let holds = self.held.get(&session).copied().unwrap_or(0);
        if holds.saturating_add(need) > ALPHA.saturating_mul(free) {
            return Err(Code::SessionQuota);
        }
        self.hold(session, need);
        Ok(())
    }

    /// Takes what is on the disk already into account, whatever the marks say.
    pub fn recovered(&mut self, session: S, length: u64) {
        self.hold(session, length.saturating_add(OVERHEAD));
    }

    /// Gives a chunk's room back.
    pub fn release(&mut self, session: S, length: u64) {
        let need = length.saturating_add(OVERHEAD);
        self.used = self.used.saturating_sub(need);
        if let Some(holds) = self.held.get_mut(&session) {
            *holds = holds.saturating_sub(need);
            if *holds == 0 {
                self.held.remove(&session);
            }
        }
    }

    /// Bytes reserved.
    #[must_use]
    pub const fn used(&self) -> u64 {
        self.used
    }

    /// How full a class's room is, 0 to 1.
    #[must_use]
    pub fn pressure(&self, class: Class) -> f32 {
        let mark = self.total / 100 * mark(class);
        if mark == 0 { 1.0 } else { (self.used as f32 / mark as f32).min(1.0) }
    }

    fn hold(&mut self, session: S, need: u64) {
        self.used = self.used.saturating_add(need);
        *self.held.entry(session).or_default() += need;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn masters_leave_room_for_sound() {
        let mut quota = Quota::new(100 << 20);
        let mut session = 0;
        while quota.reserve(session, Class::Master, 1 << 20) != Err(Code::StagingFull) {
            session += 1;
        }
        assert!(quota.reserve(session, Class::Audio, 1 << 20).is_ok());
    }

    #[test]
    fn one_session_cannot_take_all() {
        let mut quota = Quota::new(100 << 20);
        while quota.reserve(1, Class::Audio, 1 << 20).is_ok() {}
        assert_eq!(quota.reserve(1, Class::Audio, 1 << 20), Err(Code::SessionQuota));
        assert!(quota.used() >= 60 << 20, "alone it gets about two thirds");
        assert!(quota.reserve(2, Class::Audio, 1 << 20).is_ok());
    }

    proptest! {
        #[test]
        fn what_is_reserved_and_released_adds_up(ops in prop::collection::vec((0u8..4, 0usize..4, 1u64..1 << 20, any::<bool>()), 0..200)) {
            let mut quota = Quota::new(16 << 20);
            let mut held = Vec::new();
            for (session, class, length, release) in ops {
                if release && !held.is_empty() {
                    let (session, length) = held.swap_remove(held.len() / 2);
                    quota.release(session, length);
                } else if quota.reserve(session, Class::ALL[class], length).is_ok() {
                    held.push((session, length));
                }
                prop_assert_eq!(quota.used(), held.iter().map(|(_, length)| length + OVERHEAD).sum::<u64>());
                prop_assert!(quota.used() <= 16 << 20);
            }
            for (session, length) in held {
                quota.release(session, length);
            }
            prop_assert_eq!(quota.used(), 0);
            prop_assert!(quota.held.is_empty());
        }
    }
}
