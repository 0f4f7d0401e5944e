//! Which bytes go next on one connection that carries several chunks: pieces are interleaved, so
//! a chunk of sound overtakes a master that is half sent. Pure.

use std::collections::BTreeMap;

use bytes::Bytes;
use waystation_proto::Class;

use super::queue::Rank;

/// Every so many pieces one goes to the lowest class that has bytes to send: its 5 %.
const SHARE: u32 = 20;

struct Body {
    rank: Rank,
    bytes: Bytes,
    offset: u64,
    /// First offset not covered by credit; without [`Plan::early`] nothing goes before the relay's
    /// `SEND`.
    until: u64,
    /// Bytes that go before it.
    early: u64,
    /// Its way is blocked; others go on.
    paused: bool,
    /// Some of it went.
    begun: bool,
}

/// The next piece.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Next {
    /// Which chunk.
    pub handle: u64,
    /// Where in it.
    pub offset: u64,
    /// The bytes.
    pub bytes: Bytes,
    /// They are its last.
    pub last: bool,
}

/// The chunks open on one connection.
pub struct Plan {
    bodies: BTreeMap<u64, Body>,
    turn: u32,
    most: usize,
}

impl Default for Plan {
    fn default() -> Self {
        Self { bodies: BTreeMap::new(), turn: 0, most: usize::MAX }
    }
}

impl Plan {
    /// An empty plan.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// From now on a chunk is begun only while fewer than `most` of its class and higher ones are begun and not
    /// all sent; a master always if no other is. At first as many as there are.
    pub const fn limit(&mut self, most: usize) {
        self.most = most;
    }

    /// Adds an offered chunk.
    pub fn offered(&mut self, handle: u64, rank: Rank, bytes: Bytes) {
        self.bodies.insert(handle, Body { rank, bytes, offset: 0, until: 0, early: 0, paused: false, begun: false });
    }

    /// So many bytes of a chunk that the relay can't hold yet need no `SEND`.
    pub fn early(&mut self, handle: u64, bytes: u64) {
        if let Some(body) = self.bodies.get_mut(&handle) {
            (body.until, body.early) = (bytes, bytes);
        }
    }

    /// The relay's `SEND`: go on from `offset`, or from where it was when the relay said so before
    /// the first bytes came. False if it asks for bytes beyond the end.
    pub fn send(&mut self, handle: u64, offset: u64, credit: u64) -> bool {
        let Some(body) = self.bodies.get_mut(&handle) else { return true };
        if offset > body.bytes.len() as u64 {
            return false;
        }
        let came = if std::mem::take(&mut body.early) > 0 { body.offset } else { 0 };
        body.offset = offset.max(came);
        body.until = offset.saturating_add(credit);
        true
    }

    /// The relay's `CREDIT`.
    pub fn credit(&mut self, handle: u64, bytes: u64) {
        if let Some(body) = self.bodies.get_mut(&handle) {
            body.until = body.until.saturating_add(bytes);
        }
    }

    /// Its way is blocked, or is free again: one chunk that is held up holds up no other.
    pub fn pause(&mut self, handle: u64, paused: bool) {
        if let Some(body) = self.bodies.get_mut(&handle) {
            body.paused = paused;
        }
    }

    /// Whether bytes of this chunk are still to go.
    #[must_use]
    pub fn holds(&self, handle: u64) -> bool {
        self.bodies.contains_key(&handle)
    }

    /// Nothing more of this chunk needs to go.
    pub fn forget(&mut self, handle: u64) {
        self.bodies.remove(&handle);
    }

    /// Takes the next piece, no longer than `max` bytes. A chunk whose last piece was taken leaves
    /// the plan.
    pub fn next_piece(&mut self, max: usize) -> Option<Next> {
        let ready = self.bodies.iter().filter(|(_, body)| body.ready() && (body.begun || self.may_begin(body)));
        let by_rank = ready.map(|(handle, body)| (body.rank, *handle));
        let (best, last) = by_rank.fold((None, None), |(best, last), item| {
            (
                Some(best.map_or(item, |b: (Rank, u64)| b.min(item))),
                Some(last.map_or(item, |l: (Rank, u64)| l.max(item))),
            )
        });
        let (mut chosen, last) = (best?, last?);
        if last.0.class() > chosen.0.class() {
            self.turn += 1;
            if self.turn >= SHARE {
                self.turn = 0;
                chosen = last;
            }
        }
        self.cut(chosen.1, max.max(1))
    }

    fn may_begin(&self, body: &Body) -> bool {
        let class = body.rank.class();
        let begun = self.bodies.values().filter(|other| other.begun).map(|other| other.rank.class());
        let (same, ahead) = begun.fold((0, 0), |(same, ahead), other| {
            (same + usize::from(other == class), ahead + usize::from(other <= class))
        });
        ahead < self.most || (class == Class::Master.rank() && same == 0)
    }

    fn cut(&mut self, handle: u64, max: usize) -> Option<Next> {
        let body = self.bodies.get_mut(&handle)?;
        body.begun = true;
        let end = body.until.min(body.bytes.len() as u64).min(body.offset + max as u64);
        let offset = body.offset;
        let bytes = body.bytes.slice(offset as usize..end as usize);
        body.offset = end;
        let last = end == body.bytes.len() as u64;
        if last {
            self.bodies.remove(&handle);
        }
        Some(Next { handle, offset, bytes, last })
    }
}

impl Body {
    fn ready(&self) -> bool {
        !self.paused && self.offset < self.until && self.offset < self.bytes.len() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::super::queue::{Waiting, rank};
    use super::*;
    use proptest::prelude::*;
    use waystation_proto::Class;

    fn of(class: Class, id: u64) -> Rank {
        rank(&Waiting { id, class, first: false, started_ms: 0, length: 1, held: false, begun: false, due_ms: 0 }, None)
    }

    #[test]
    fn sound_overtakes_a_half_sent_master_and_the_master_keeps_its_share() {
        let mut plan = Plan::new();
        plan.offered(1, of(Class::Master, 1), Bytes::from(vec![0; 1000]));
        assert_eq!(plan.next_piece(10), None, "nothing before SEND");
        assert!(plan.send(1, 500, 1000));
        assert_eq!(plan.next_piece(10).unwrap().offset, 500, "goes on where the relay says");
        plan.offered(2, of(Class::Audio, 2), Bytes::from(vec![1; 400]));
        assert!(plan.send(2, 0, 400));
        let handles: Vec<u64> = (0..42).map(|_| plan.next_piece(10).unwrap().handle).collect();
        assert_eq!(handles[0], 2);
        assert_eq!(handles[..40].iter().filter(|h| **h == 1).count(), 2, "5 % to the lowest class");
        assert_eq!(handles[..19], [2; 19]);
    }

    #[test]
    fn what_is_offered_ahead_waits_for_its_turn() {
        let mut plan = Plan::new();
        plan.limit(1);
        let classes = [Class::Preview, Class::Preview, Class::Master, Class::Master, Class::Audio];
        let offer = |plan: &mut Plan, n: usize| {
            plan.offered(n as u64, of(classes[n], n as u64), Bytes::from(vec![0; 40]));
            assert!(plan.send(n as u64, 0, 20));
        };
        (0..4).for_each(|n| offer(&mut plan, n));
        let go = |plan: &mut Plan, n: usize| -> Vec<u64> {
            (0..n).map_while(|_| plan.next_piece(10)).map(|next| next.handle).collect()
        };
        assert_eq!(go(&mut plan, 9), [0, 0, 2, 2], "a master has its place; no second of a class is begun");
        offer(&mut plan, 4);
        assert_eq!(go(&mut plan, 1), [4], "sound is begun beside one of a lower class");
        plan.credit(0, 20);
        assert_eq!(go(&mut plan, 9), [4, 0, 0], "what is begun goes on; the next waits for the sound too");
        plan.credit(4, 20);
        assert_eq!(go(&mut plan, 9), [4, 4, 1, 1]);
        plan.limit(9);
        assert_eq!(go(&mut plan, 9), [3, 3]);
    }

    #[test]
    fn what_went_early_does_not_go_again() {
        let mut plan = Plan::new();
        plan.offered(1, of(Class::Audio, 1), Bytes::from(vec![0; 100]));
        plan.early(1, 40);
        assert_eq!(plan.next_piece(30).unwrap().bytes.len(), 30);
        assert!(plan.send(1, 0, 60));
        let next = plan.next_piece(100).unwrap();
        assert_eq!((next.offset, next.bytes.len()), (30, 30), "credit counts from what SEND says");
        assert!(plan.send(1, 10, 100));
        assert_eq!(plan.next_piece(100).unwrap().offset, 10, "a second word is the relay's own");
        plan.offered(2, of(Class::Audio, 1), Bytes::from(vec![0; 100]));
        plan.early(2, 40);
        assert_eq!(plan.next_piece(30).unwrap().offset, 0);
        assert!(plan.send(2, 70, 30));
        assert_eq!(plan.next_piece(100).unwrap().offset, 70, "the relay holds more than went");
    }

    #[test]
    fn credit_bounds_what_goes() {
        let mut plan = Plan::new();
        plan.offered(1, of(Class::Audio, 1), Bytes::from(vec![0; 100]));
        assert!(plan.send(1, 0, 30));
        assert_eq!(plan.next_piece(64).unwrap().bytes.len(), 30);
        assert_eq!(plan.next_piece(64), None);
        plan.credit(1, 1000);
        assert_eq!(plan.next_piece(64).unwrap().bytes.len(), 64);
        assert!(plan.next_piece(64).unwrap().last);
        assert_eq!(plan.next_piece(64), None);
        plan.offered(2, of(Class::Audio, 1), Bytes::from_static(b"abc"));
        assert!(!plan.send(2, 4, 1), "beyond the end");
    }

    proptest! {
        #[test]
        fn every_byte_goes_exactly_once(
            chunks in prop::collection::vec((0usize..4, prop::collection::vec(any::<u8>(), 1..300), any::<prop::sample::Index>()), 1..8),
            piece in 1usize..64,
            credit in 1u64..100,
        ) {
            let mut plan = Plan::new();
            let mut got: Vec<Vec<u8>> = Vec::new();
            for (handle, (class, bytes, from)) in chunks.iter().enumerate() {
                let offset = from.index(bytes.len());
                plan.offered(handle as u64, of(Class::ALL[*class], handle as u64), Bytes::from(bytes.clone()));
                plan.send(handle as u64, offset as u64, credit);
                got.push(bytes[..offset].to_vec());
            }
            for _ in 0..10_000 {
                match plan.next_piece(piece) {
                    Some(next) => {
                        let out = &mut got[next.handle as usize];
                        prop_assert_eq!(out.len() as u64, next.offset);
                        out.extend_from_slice(&next.bytes);
                    }
                    None => (0..chunks.len() as u64).for_each(|handle| plan.credit(handle, credit)),
                }
            }
            for (got, (_, bytes, _)) in got.iter().zip(&chunks) {
                prop_assert_eq!(got, bytes);
            }
        }
    }
}
