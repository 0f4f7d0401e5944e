//! What an answer of the relay means for the queue, and when a chunk is tried again. Pure: the
//! jitter is of a seed.
//!
//! Only a *failure* counts: a relay was reached, answered, holds nothing of this try and took no
//! new byte. Five are tried again after 5, 15, 45, 120 and 120 seconds, each ± 20 %; the sixth
//! ends the trying. Everything else is the transport's, or a matter of waiting, and counts nothing.

use waystation_proto::message::Error;
use waystation_proto::{Code, Fault, Retry};

/// Delays before a failed chunk is tried again.
const DELAYS_MS: [u64; 5] = [5_000, 15_000, 45_000, 120_000, 120_000];
/// Jitter either way, of a thousand.
const JITTER: u64 = 200;
/// Pauses after a broken way or an answer that kept what came: none, then these, then the last.
const QUICK_MS: [u64; 4] = [0, 250, 500, 1000];

/// What an error means for a chunk that the relay does not hold whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Meaning {
    /// Nothing of this try was kept. Counts.
    Failure,
    /// What came was kept, or another connection of ours is still at it: on from there.
    GoOn,
    /// Not now: the core is away, the relay asks for fewer requests, or it goes and another connection follows.
    Wait,
    /// No relay said so, but something on the way: a portal, a proxy without its relay. It decides
    /// nothing and counts nothing.
    Between,
    /// A new capability is needed first.
    Renew,
    /// The core may have it: only asking the core tells.
    Reconcile,
    /// Never, unchanged.
    Refused,
}

/// Reads an error. What the core itself said comes first: it has three refusals that end nothing.
pub(crate) fn meaning(error: &Error) -> Meaning {
    match error.core_code.as_deref() {
        Some("upload_in_progress") => return Meaning::Wait,
        Some("relay_capability_expired") => return Meaning::Renew,
        Some("duplicate_chunk") => return Meaning::Reconcile,
        _ => {}
    }
    let code = Code::parse(&error.code);
    match (code, error.retry) {
        (Some(Code::BodyStalled | Code::BodyIncomplete | Code::OffsetMismatch), _) => Meaning::GoOn,
        (Some(Code::AttemptSuperseded), _) => Meaning::GoOn,
        (None, Retry::Never | Retry::Now | Retry::Later)
            if error.code.starts_with("http_") && error.core_code.is_none() =>
        {
            Meaning::Between
        }
        (_, Retry::Renew) => Meaning::Renew,
        (_, Retry::Reconcile) => Meaning::Reconcile,
        (_, Retry::Never) => Meaning::Refused,
        (Some(Code::Draining), _) => Meaning::Wait,
        (Some(code), _) if code.spec().fault == Fault::Core || code.spec().status == 429 => Meaning::Wait,
        (_, Retry::Now | Retry::Later) => Meaning::Failure,
    }
}

/// Delay before try number `retries` after a failure, from 1; none if there is no further one.
/// `dice` is any random number.
pub(crate) fn delay_ms(retries: u32, dice: u64) -> Option<u64> {
    let delay = DELAYS_MS.get(usize::try_from(retries).ok()?.checked_sub(1)?)?;
    Some(delay * (1000 - JITTER + dice % (2 * JITTER + 1)) / 1000)
}

/// Pause before a try that counts nothing; `before` is how many there were in a row.
pub(crate) fn quick_ms(before: u32) -> u64 {
    QUICK_MS[(before as usize).min(QUICK_MS.len() - 1)]
}

/// Random numbers of a seed (SplitMix64): good enough to spread clients, and the same each time.
#[derive(Debug, Clone)]
pub(crate) struct Jitter(u64);

impl Jitter {
    /// Begins with a seed.
    pub(crate) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub(crate) const fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// Pauses after tries that came to nothing: each twice as long as the last, up to a bound, and at
/// least as long as was asked for.
pub(super) struct Pause {
    first_ms: u64,
    most_ms: u64,
    next_ms: u64,
    not_before_ms: u64,
}

impl Pause {
    /// Before a connection is made once more in the place of one that stalls: the link may come back at any time.
    pub(super) const fn beside() -> Self {
        Self::new(500, 4_000)
    }

    pub(super) const fn new(first_ms: u64, most_ms: u64) -> Self {
        Self { first_ms, most_ms, next_ms: first_ms, not_before_ms: 0 }
    }

    pub(super) fn failed(&mut self, now_ms: u64, asked_s: Option<u64>) {
        let asked_ms = asked_s.map_or(0, crate::http::bounded) * 1000;
        // Another that failed meanwhile does not shorten it.
        self.not_before_ms = self.not_before_ms.max(now_ms + self.next_ms.max(asked_ms));
        self.next_ms = (2 * self.next_ms).min(self.most_ms);
    }

    pub(super) const fn is_over(&self, now_ms: u64) -> bool {
        now_ms >= self.not_before_ms
    }

    /// None is needed now: the next that fails is the first again. What was asked for stands.
    pub(super) const fn eased(&mut self) {
        self.next_ms = self.first_ms;
    }

    /// One came to something.
    pub(super) const fn over(&mut self) {
        (self.next_ms, self.not_before_ms) = (self.first_ms, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_code_has_its_meaning() {
        use Code::*;
        for code in Code::ALL {
            let is = meaning(&Error::from(*code));
            let expected = match code {
                BodyStalled | BodyIncomplete | OffsetMismatch | AttemptSuperseded => Meaning::GoOn,
                CapabilityMissing | CapabilityExpired | CapabilityLimitExceeded | AwaitingCapability => Meaning::Renew,
                ChunkConflict | ChunkUnsettled | DuplicateChunk => Meaning::Reconcile,
                CapabilityUnverifiable
                | CoreUnavailable
                | CoreLimited
                | CoreRefusesRelay
                | AccountQuota
                | InFlightPerSession
                | InFlightPerClient
                | TooManyRequests
                | TooManyContacts
                | Draining => Meaning::Wait,
                HashMismatch | ChunkExpired | ConfirmationPending | StagingFull | SessionQuota | StagingFailed
                | ReceivingFull | TooManyConnections | HeaderTimeout | NotReady | InternalError => Meaning::Failure,
                // What is said of a connection or a contact, never of a chunk.
                other if other.spec().retry != Retry::Never => continue,
                _ => Meaning::Refused,
            };
            assert_eq!(is, expected, "{}", code.spec().name);
        }
        let core = |name: &str| Error { core_code: Some(name.into()), ..Error::from(CoreRejected) };
        assert_eq!(meaning(&core("upload_in_progress")), Meaning::Wait);
        assert_eq!(meaning(&core("relay_capability_expired")), Meaning::Renew);
        assert_eq!(meaning(&core("duplicate_chunk")), Meaning::Reconcile);
        assert_eq!(meaning(&core("stream_not_open")), Meaning::Refused);
        let http = |code: &str, retry| Error { code: code.into(), message: String::new(), retry, core_code: None };
        for code in ["http_408", "http_429", "http_502"] {
            assert_eq!(meaning(&http(code, Retry::Later)), Meaning::Between, "{code} is none of the relay's");
        }
        for code in ["http_302", "http_403", "http_404", "http_413"] {
            assert_eq!(meaning(&http(code, Retry::Never)), Meaning::Between, "{code} is none of the relay's");
        }
        assert_eq!(meaning(&http("http_401", Retry::Renew)), Meaning::Renew);
        assert_eq!(meaning(&http("code_of_a_newer_relay", Retry::Never)), Meaning::Refused);
    }

    #[test]
    fn five_delays_and_no_sixth() {
        let middle: Vec<_> = (0..8).map(|n| delay_ms(n, JITTER)).collect();
        let s = |seconds: u64| Some(seconds * 1000);
        assert_eq!(middle, [None, s(5), s(15), s(45), s(120), s(120), None, None]);
        assert_eq!([0, 1, 2, 3, 4, 99].map(quick_ms), [0, 250, 500, 1000, 1000, 1000]);
    }

    proptest! {
        #[test]
        fn jitter_stays_within_a_fifth(n in 1u32..=5, seed in any::<u64>()) {
            let delay = delay_ms(n, Jitter::new(seed).roll()).unwrap();
            let middle = DELAYS_MS[n as usize - 1];
            prop_assert!(delay * 10 >= middle * 8 && delay * 10 <= middle * 12, "{delay} of {middle}");
        }
    }

    proptest::proptest! {
        #[test]
        fn a_pause_doubles_up_to_its_bound(first in 1u64..5_000, fails in 1u32..40) {
            let (mut pause, mut now) = (Pause::new(first, 16 * first), 0);
            for n in 0..fails {
                pause.failed(now, None);
                let length = first * (1 << n.min(4));
                proptest::prop_assert!(!pause.is_over(now + length - 1) && pause.is_over(now + length));
                now += length;
            }
            pause.over();
            proptest::prop_assert!(pause.is_over(now));
        }
    }
}
