//! The upload capabilities in use, and when the next is to be asked for. Pure; times are
//! milliseconds since the Unix epoch.

use std::collections::HashSet;

use waystation_proto::id::StreamId;

use crate::token::Token;

/// Capabilities kept at most: the newest.
const MAX_TOKENS: usize = 64;
/// Bytes of capabilities in one `HELLO`: it fits a control frame.
const MAX_HELLO_BYTES: usize = 48 * 1024;
/// Not asked for more often than this.
const LEAST_MS: i64 = 500;

/// The capabilities.
#[derive(Default)]
pub(crate) struct Wallet {
    tokens: Vec<Token>,
    asking: bool,
    asked_ms: i64,
    /// Someone refused the ones there are, or a stream is not covered.
    wanted: bool,
    not_before_ms: i64,
}

impl Wallet {
    /// Takes new ones in place of those that are expired.
    pub(crate) fn add(&mut self, tokens: &[Token], now_ms: i64) {
        self.asking = false;
        self.wanted = false;
        self.tokens.retain(|token| !token.expired(now_ms));
        self.tokens.extend_from_slice(tokens);
        let surplus = self.tokens.len().saturating_sub(MAX_TOKENS);
        self.tokens.drain(..surplus);
    }

    /// The longest-lived one that covers a stream.
    pub(crate) fn covering(&self, stream: &StreamId) -> Option<&Token> {
        self.tokens.iter().filter(|token| token.max_chunks(stream).is_some()).max_by_key(|token| token.expires)
    }

    /// Those that are not expired and reach a stream that no longer-lived one does; few enough
    /// for one `HELLO`.
    pub(crate) fn live(&self, now_ms: i64) -> Vec<Token> {
        let mut tokens: Vec<&Token> = self.tokens.iter().filter(|token| !token.expired(now_ms)).collect();
        tokens.sort_by_key(|token| std::cmp::Reverse(token.expires));
        let (mut covered, mut bytes, mut out) = (HashSet::new(), 0, Vec::new());
        for token in tokens {
            let news = token.streams().filter(|stream| covered.insert(*stream)).count() > 0;
            bytes += if news { token.as_str().len() } else { 0 };
            if news && bytes <= MAX_HELLO_BYTES {
                out.push(token.clone());
            }
        }
        out
    }

    /// Whether one that is not expired reaches a stream.
    pub(crate) fn covers(&self, stream: &StreamId, now_ms: i64) -> bool {
        self.covering(stream).is_some_and(|token| !token.expired(now_ms))
    }

    /// A new one is needed now, whatever the life of those there are.
    pub(crate) const fn want(&mut self) {
        self.wanted = true;
    }

    /// Asking failed; not again before `not_before_ms`.
    pub(crate) const fn failed(&mut self, not_before_ms: i64) {
        self.asking = false;
        self.not_before_ms = not_before_ms;
    }

    /// Somebody asks for it: whatever refused is asked at once.
    pub(crate) const fn retry(&mut self) {
        self.not_before_ms = 0;
    }

    /// When to ask, if not already asking: in the past means now.
    pub(crate) fn ask_at(&self) -> Option<i64> {
        if self.asking {
            return None;
        }
        let floor = self.not_before_ms.max(self.asked_ms + LEAST_MS);
        if self.wanted {
            return Some(floor);
        }
        Some(self.tokens.iter().map(Token::renew_at_ms).max()?.max(floor))
    }

    /// Notes that one is being asked for.
    pub(crate) const fn asked(&mut self, now_ms: i64) {
        self.asking = true;
        self.asked_ms = now_ms;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::token::tests::forge;

    #[test]
    fn a_capability_is_renewed_at_two_thirds_of_its_life() {
        let mut wallet = Wallet::default();
        assert_eq!(wallet.ask_at(), None, "nothing to renew");
        wallet.want();
        assert!(wallet.ask_at().unwrap() <= 1_000_000);
        wallet.asked(1_000_000);
        assert_eq!(wallet.ask_at(), None);
        let old = Token::parse(&forge(&[("a", 4)], 1000, 1030)).unwrap();
        wallet.add(&[old], 1_000_000);
        assert_eq!(wallet.ask_at(), Some(1_020_000));
        wallet.want();
        assert_eq!(wallet.ask_at(), Some(1_000_500), "not more often than twice a second");
        let new = Token::parse(&forge(&[("a", 4), ("b", 9)], 1020, 1050)).unwrap();
        wallet.add(&[new], 1_029_999);
        assert_eq!(wallet.tokens.len(), 2);
        assert_eq!(wallet.live(1_029_999).len(), 1, "the newer one reaches all that the older does");
        assert!(wallet.covers(&StreamId::new("a").unwrap(), 1_049_999));
        assert!(!wallet.covers(&StreamId::new("a").unwrap(), 1_050_000));
        assert_eq!(wallet.covering(&StreamId::new("a").unwrap()).unwrap().expires, 1050);
        assert!(wallet.covering(&StreamId::new("c").unwrap()).is_none());
    }
}
