//! The capabilities known of each stream beside the chunks' own, and those that the core refused.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use super::StreamCapability;
use crate::proto::Offer;
use crate::proto::ledger::StreamKey;

/// Streams whose capabilities are remembered. About 2 KiB for each capability.
const MAX_STREAMS: usize = 16_384;
/// Capabilities of one stream that are remembered: several only where each allows what the others
/// do not, as those of holders with keys of their own.
const MAX_OF_STREAM: usize = 4;
/// Refused capabilities of one stream that are remembered, as hashes of 8 bytes.
const MAX_REFUSED: usize = 8;

#[derive(Default)]
pub(super) struct Tokens {
    known: HashMap<StreamKey, Vec<Known>>,
    refused: HashMap<StreamKey, VecDeque<u64>>,
}

struct Known {
    record: Arc<StreamCapability>,
    /// The disk has it as it is here.
    kept: bool,
}

impl Tokens {
    /// Takes a capability in; `false` if it brings nothing: it ran out, it was refused (`hash` is
    /// its own), or what is known carries as much for as long.
    pub(super) fn learn(&mut self, key: StreamKey, mut record: StreamCapability, hash: u64, now: i64) -> bool {
        if record.grant.commit_exp <= now || self.is_refused(key, hash) {
            return false;
        }
        if self.known.len() >= MAX_STREAMS && !self.known.contains_key(&key) {
            self.known.retain(|_, known| known.iter().any(|one| one.record.grant.commit_exp > now));
            if self.known.len() >= MAX_STREAMS {
                return false;
            }
        }
        let known = self.known.entry(key).or_default();
        if known.iter().any(|one| one.record.capability == record.capability || one.record.makes_needless(&record)) {
            return false;
        }
        for one in known.iter() {
            record.take_over_sigs(&one.record);
        }
        known.retain(|one| one.record.grant.commit_exp > now && !record.makes_needless(&one.record));
        if known.len() >= MAX_OF_STREAM
            && let Some(first) = (0..known.len()).min_by_key(|at| known[*at].record.grant.commit_exp)
        {
            known.swap_remove(first);
        }
        let slots = || 0..MAX_OF_STREAM as u8;
        record.slot = slots().find(|slot| known.iter().all(|one| one.record.slot != *slot)).unwrap_or(0);
        known.push(Known { record: Arc::new(record), kept: false });
        true
    }

    /// One found on the disk at start.
    pub(super) fn recovered(&mut self, key: StreamKey, record: StreamCapability) {
        self.known.entry(key).or_default().push(Known { record: Arc::new(record), kept: true });
    }

    /// A known one.
    pub(super) fn get(&self, key: StreamKey, token: &str) -> Option<Arc<StreamCapability>> {
        self.find(key, token).map(|one| Arc::clone(&one.record))
    }

    /// A known one that the disk does not have yet.
    pub(super) fn unkept(&self, key: StreamKey, token: &str) -> Option<Arc<StreamCapability>> {
        self.find(key, token).filter(|one| !one.kept).map(|one| Arc::clone(&one.record))
    }

    /// The disk has it.
    pub(super) fn kept(&mut self, key: StreamKey, record: &Arc<StreamCapability>) {
        let mut known = self.known.get_mut(&key).into_iter().flatten();
        if let Some(one) = known.find(|one| Arc::ptr_eq(&one.record, record)) {
            one.kept = true;
        }
    }

    /// The holder of `client` signed a chunk. Returns the capability that may carry it now.
    pub(super) fn sign(&mut self, key: StreamKey, client: [u8; 32], index: u64, sig: &[u8; 64]) -> Option<String> {
        let mut known = self.known.get_mut(&key).into_iter().flatten();
        let one = known.find(|one| one.record.grant.client_key == Some(client))?;
        let mut record = (*one.record).clone();
        record.sign(index, sig).then(|| {
            let token = record.capability.clone();
            *one = Known { record: Arc::new(record), kept: false };
            token
        })
    }

    /// The capability that carries this chunk longest, and the chunk as it brings it.
    pub(super) fn best(&self, key: StreamKey, offer: &Offer, now: i64) -> Option<(Arc<StreamCapability>, Offer)> {
        let mut best: Option<(Arc<StreamCapability>, Offer)> = None;
        for one in self.known.get(&key).into_iter().flatten() {
            let expires = one.record.grant.commit_exp;
            let longer = best.as_ref().is_none_or(|(best, _)| best.grant.commit_exp < expires);
            if longer
                && expires > now
                && let Some(carried) = one.record.carries(offer)
            {
                best = Some((Arc::clone(&one.record), carried));
            }
        }
        best
    }

    /// Whether any is known.
    pub(super) fn any(&self, key: StreamKey) -> bool {
        self.known.get(&key).is_some_and(|known| !known.is_empty())
    }

    /// The core does not take this one.
    pub(super) fn refuse(&mut self, key: StreamKey, token: &str, hash: u64) {
        if let Some(known) = self.known.get_mut(&key) {
            known.retain(|one| one.record.capability != token);
        }
        if self.refused.len() >= MAX_STREAMS && !self.refused.contains_key(&key) {
            return;
        }
        let refused = self.refused.entry(key).or_default();
        if !refused.contains(&hash) {
            refused.push_back(hash);
            if refused.len() > MAX_REFUSED {
                refused.pop_front();
            }
        }
    }

    /// Whether the core refused it.
    pub(super) fn is_refused(&self, key: StreamKey, hash: u64) -> bool {
        self.refused.get(&key).is_some_and(|refused| refused.contains(&hash))
    }

    fn find(&self, key: StreamKey, token: &str) -> Option<&Known> {
        self.known.get(&key)?.iter().find(|one| one.record.capability == token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::StreamId;
    use crate::staging::fixture::{grant, meta};

    const KEY: StreamKey = StreamKey(7);

    fn one(token: &str, change: impl FnOnce(&mut crate::proto::claims::Grant)) -> StreamCapability {
        let mut grant = grant();
        change(&mut grant);
        StreamCapability::new(StreamId::new("stream-1").unwrap(), token.into(), grant)
    }

    fn best(tokens: &Tokens, index: u64) -> Option<String> {
        let offer = meta(index, b"bytes").offer;
        tokens.best(KEY, &offer, 0).map(|(record, _)| record.capability.clone())
    }

    #[test]
    fn a_narrower_one_is_kept_beside_and_carries_what_it_covers() {
        let mut tokens = Tokens::default();
        assert!(tokens.learn(KEY, one("wide", |_| ()), 1, 0));
        assert!(tokens.learn(KEY, one("narrow", |g| (g.commit_exp, g.lanes[0].max_chunks) = (100_000, 5)), 2, 0));
        assert_eq!(best(&tokens, 5).as_deref(), Some("narrow"));
        assert_eq!(best(&tokens, 6).as_deref(), Some("wide"));
        assert_eq!(tokens.get(KEY, "narrow").unwrap().slot, 1);
        assert!(!tokens.learn(KEY, one("less", |g| g.lanes[0].max_chunk_bytes = 3), 3, 0), "it brings nothing");
        assert!(tokens.learn(KEY, one("more", |g| g.commit_exp = 200_000), 4, 0));
        assert!(tokens.get(KEY, "wide").is_none() && tokens.get(KEY, "narrow").is_none());
        tokens.refuse(KEY, "more", 4);
        assert_eq!(best(&tokens, 1), None);
        assert!(!tokens.learn(KEY, one("more", |g| g.commit_exp = 200_000), 4, 0), "refused is refused");
    }

    #[test]
    fn a_bound_key_carries_what_it_signed() {
        use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
        let pair = Ed25519KeyPair::from_seed_unchecked(&[3; 32]).unwrap();
        let key: [u8; 32] = pair.public_key().as_ref().try_into().unwrap();
        let mut tokens = Tokens::default();
        assert!(tokens.learn(KEY, one("bound", |g| g.client_key = Some(key)), 1, 0));
        assert_eq!(best(&tokens, 1), None, "it signed nothing");
        let offer = meta(1, b"bytes").offer;
        let sig: [u8; 64] = pair.sign(&offer.signed_bytes()).as_ref().try_into().unwrap();
        assert_eq!(tokens.sign(KEY, key, 1, &sig).as_deref(), Some("bound"));
        assert_eq!(tokens.sign(KEY, key, 1, &sig), None, "nothing new");
        assert_eq!(tokens.sign(KEY, [9; 32], 1, &sig), None, "nobody's key");
        let (_, carried) = tokens.best(KEY, &offer, 0).unwrap();
        assert_eq!(carried.sig, Some(sig));
        assert_eq!(best(&tokens, 2), None, "another chunk needs another signature");
        tokens.sign(KEY, key, 2, &sig);
        assert_eq!(best(&tokens, 2), None, "not that of another chunk");
        assert!(tokens.learn(KEY, one("next", |g| (g.client_key, g.commit_exp) = (Some(key), 100_000)), 2, 0));
        assert!(tokens.get(KEY, "bound").is_none(), "its holder's next one takes its place, signatures and all");
        assert_eq!(best(&tokens, 1).as_deref(), Some("next"));
    }

    #[test]
    fn no_more_than_a_few_are_kept_of_a_stream() {
        let mut tokens = Tokens::default();
        for n in 0..20u8 {
            let change = |g: &mut crate::proto::claims::Grant| {
                (g.client_key, g.commit_exp) = (Some([n; 32]), 90_000 + i64::from(n));
            };
            assert!(tokens.learn(KEY, one(&n.to_string(), change), n.into(), 0));
            tokens.refuse(KEY, "x", 100 + u64::from(n));
        }
        let slots: Vec<_> = (16..20).map(|n: u8| tokens.get(KEY, &n.to_string()).unwrap().slot).collect();
        assert_eq!(slots.iter().collect::<std::collections::BTreeSet<_>>().len(), MAX_OF_STREAM);
        assert!(tokens.get(KEY, "15").is_none());
        assert_eq!(tokens.refused[&KEY].len(), MAX_REFUSED);
    }
}
