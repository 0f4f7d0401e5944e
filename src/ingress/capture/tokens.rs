//! The capabilities of one `/capture` connection. They are read beside its frames: while the
//! core's keys are fetched for one of them, only the offers wait that no other one reaches.

use std::sync::Arc;

use tokio::sync::watch;

use crate::admission::Refusal;
use crate::capability::Capability;
use crate::proto::{Code, Offer};

/// Capabilities one connection may hold: several lanes, each with the next one beside it. About
/// 20 KiB each, for the token and what it says.
pub(super) const MAX_CAPABILITIES: usize = 64;

/// What a connection may do. Cheap to clone; clones are the same.
#[derive(Clone, Default)]
pub(super) struct Tokens(watch::Sender<Held>);

#[derive(Default)]
struct Held {
    /// Those that were read, by their number: the newest last.
    good: Vec<(u64, Capability)>,
    /// Those that are being read.
    reading: Vec<Arc<str>>,
    /// Why the last bad one was, for the offers that needed it.
    bad: Option<Refusal>,
    /// What is not told yet.
    untold: Vec<(u64, Refusal)>,
    /// How many were presented.
    presented: u64,
}

impl Held {
    /// The newest capability that reaches the offer's stream and is not over; else the newest that
    /// reaches it.
    fn reaching(&self, offer: &Offer, now: i64) -> Option<&Capability> {
        let reaching = || {
            let all = self.good.iter().rev().map(|(_, one)| one);
            all.filter(|one| one.grant.incident == offer.incident && one.grant.lane(&offer.stream).is_some())
        };
        reaching().find(|one| !one.grant.expired(now)).or_else(|| reaching().next())
    }
}

impl Tokens {
    /// One more is presented: its number, counted from 0. `None`: it needs no reading, for it is
    /// held or being read already, or is refused since there is no room for it.
    pub(super) fn begin(&self, token: &str, now: i64) -> Option<u64> {
        let mut number = None;
        self.0.send_modify(|held| {
            let presented = held.presented;
            held.presented += 1;
            held.good.retain(|(_, one)| !one.grant.expired(now));
            let known = held.good.iter().any(|(_, one)| *one.token == *token);
            if known || held.reading.iter().any(|one| **one == *token) {
                return;
            }
            if held.good.len() + held.reading.len() >= MAX_CAPABILITIES {
                held.untold.push((presented, Code::TooManyCapabilities.into()));
                return;
            }
            held.reading.push(token.into());
            number = Some(presented);
        });
        number
    }

    /// What came out of reading one that [`Tokens::begin`] numbered.
    pub(super) fn read(&self, number: u64, token: &str, outcome: Result<Capability, Refusal>) {
        self.0.send_modify(|held| {
            held.reading.retain(|one| **one != *token);
            match outcome {
                Ok(capability) => {
                    held.good.push((number, capability));
                    held.good.sort_by_key(|(number, _)| *number);
                }
                Err(refusal) => {
                    held.bad = Some(refusal.clone());
                    held.untold.push((number, refusal));
                }
            }
        });
    }

    /// Waits for the first good one.
    ///
    /// # Errors
    /// All were bad: why the last one was.
    pub(super) async fn opened(&self) -> Result<(), Refusal> {
        let mut held = self.0.subscribe();
        // The sender is held by `self`.
        let Ok(held) = held.wait_for(|held| !held.good.is_empty() || held.reading.is_empty()).await else {
            return Err(Code::InternalError.into());
        };
        if held.good.is_empty() { Err(held.bad.clone().unwrap_or(Code::CapabilityMissing.into())) } else { Ok(()) }
    }

    /// The capability for an offer; waits only while one is being read that may be it. If none
    /// reaches the offer, the newest, so that admission says what is wrong with it.
    ///
    /// # Errors
    /// Why the last bad one was, if it may have been the one; `CapabilityMissing` without any.
    pub(super) async fn reaching(&self, offer: &Offer, now: i64) -> Result<Capability, Refusal> {
        let mut held = self.0.subscribe();
        let waited = held.wait_for(|held| held.reading.is_empty() || held.reaching(offer, now).is_some()).await;
        let Ok(held) = waited else { return Err(Code::InternalError.into()) };
        if let Some(capability) = held.reaching(offer, now) {
            return Ok(capability.clone());
        }
        match (&held.bad, held.good.last()) {
            (Some(refusal), _) => Err(refusal.clone()),
            (None, Some((_, newest))) => Ok(newest.clone()),
            (None, None) => Err(Code::CapabilityMissing.into()),
        }
    }

    /// The refusals that the client was not told yet.
    pub(super) fn untold(&self) -> Vec<(u64, Refusal)> {
        let mut untold = Vec::new();
        self.0.send_if_modified(|held| {
            untold = std::mem::take(&mut held.untold);
            false
        });
        untold
    }

    /// Each good one.
    pub(super) fn each(&self, mut with: impl FnMut(&Capability)) {
        self.0.borrow().good.iter().for_each(|(_, one)| with(one));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capability::Trust;
    use crate::proto::claims::{Format, Grant, LaneGrant, Use};
    use crate::proto::message::OfferBody;
    use crate::proto::{IncidentId, SessionId, StreamId};
    use serde_json::json;

    fn capability(token: &str, stream: &str, exp: i64) -> Capability {
        let stream = StreamId::new(stream).unwrap();
        let lane = LaneGrant { stream, variant: None, media: Vec::new(), max_chunk_bytes: 1, max_chunks: 1 };
        let grant = Grant {
            format: Format::Jwt,
            use_: Use::Upload,
            session: SessionId::new("s").unwrap(),
            incident: IncidentId::new("i").unwrap(),
            group: None,
            lanes: vec![lane],
            exp,
            commit_exp: exp,
            jti: None,
            client_key: None,
        };
        Capability { token: token.into(), grant: Arc::new(grant), trust: Trust::Verified }
    }

    fn offer(stream: &str) -> Offer {
        let body = json!({
            "handle": 7, "incident": "i", "stream": stream, "index": 1, "media": "audio", "length": 10,
            "started": "2026-06-10T12:00:00Z", "ended": "2026-06-10T12:00:02Z", "sha256": "0".repeat(64),
        });
        serde_json::from_value::<OfferBody>(body).unwrap().into_offer().unwrap()
    }

    fn good(tokens: &Tokens, token: &str, stream: &str, exp: i64) {
        let number = tokens.begin(token, 0).unwrap();
        tokens.read(number, token, Ok(capability(token, stream, exp)));
    }

    async fn token_for(tokens: &Tokens, stream: &str, now: i64) -> Result<String, Code> {
        let found = tokens.reaching(&offer(stream), now).await;
        found.map(|one| one.token.to_string()).map_err(|refusal| refusal.code)
    }

    #[tokio::test]
    async fn only_the_offers_that_need_it_wait_for_one_that_is_being_read() {
        let tokens = Tokens::default();
        good(&tokens, "a", "a", 10);
        let number = tokens.begin("b", 0).unwrap();
        assert_eq!(token_for(&tokens, "a", 0).await, Ok("a".into()), "this lane goes on");
        let (waiting, wants) = (tokens.clone(), tokio::sync::oneshot::channel());
        let task = tokio::spawn(async move {
            wants.0.send(()).unwrap();
            token_for(&waiting, "b", 0).await
        });
        wants.1.await.unwrap();
        assert!(!task.is_finished());
        tokens.read(number, "b", Ok(capability("b", "b", 10)));
        assert_eq!(task.await.unwrap(), Ok("b".into()));
    }

    #[tokio::test]
    async fn a_bad_one_concerns_nobody_but_those_who_need_it() {
        let tokens = Tokens::default();
        let number = tokens.begin("bad", 0).unwrap();
        tokens.read(number, "bad", Err(Code::CapabilityExpired.into()));
        assert_eq!(tokens.opened().await.unwrap_err().code, Code::CapabilityExpired, "there is no good one");
        good(&tokens, "a", "a", 10);
        assert!(tokens.opened().await.is_ok());
        assert_eq!(token_for(&tokens, "a", 0).await, Ok("a".into()));
        assert_eq!(token_for(&tokens, "b", 0).await, Err(Code::CapabilityExpired));
        let untold: Vec<_> = tokens.untold().into_iter().map(|(number, refusal)| (number, refusal.code)).collect();
        assert_eq!(untold, [(0, Code::CapabilityExpired)]);
        assert!(tokens.untold().is_empty(), "told once");
    }

    #[tokio::test]
    async fn the_newest_that_lives_is_taken_and_a_live_one_never_gives_way() {
        let tokens = Tokens::default();
        good(&tokens, "long", "a", 1_000);
        good(&tokens, "short", "a", 10);
        assert_eq!(token_for(&tokens, "a", 9).await, Ok("short".into()));
        assert_eq!(token_for(&tokens, "a", 10).await, Ok("long".into()));
        for at in 2..MAX_CAPABILITIES {
            good(&tokens, &format!("t{at}"), "b", 1_000);
        }
        // All are held; the short one is over by then and makes room.
        assert_eq!(tokens.begin("more", 9), None);
        assert_eq!(tokens.untold()[0].1.code, Code::TooManyCapabilities);
        assert_eq!(tokens.begin("t5", 9), None, "it is held");
        assert!(tokens.untold().is_empty());
        assert!(tokens.begin("more", 10).is_some());
        assert_eq!(tokens.begin("one more", 10), None, "one that is being read has its place");
        assert_eq!(token_for(&tokens, "a", 10).await, Ok("long".into()));
    }
}
