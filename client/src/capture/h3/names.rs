//! The capabilities that the relay knows by name on one connection.

use std::sync::{Mutex, MutexGuard, PoisonError};

use http::StatusCode;
use waystation_proto::known::{CapabilityName, Known};

use crate::token::Token;

/// Empty until the relay says that it knows any.
#[derive(Default)]
pub(in crate::capture) struct Names(Mutex<Option<Known<()>>>);

impl Names {
    /// The relay knows these, and says so.
    pub(in crate::capture) fn welcome(&self, tokens: &[Token]) {
        let mut known = self.lock();
        let known = known.get_or_insert_default();
        tokens.iter().for_each(|token| known.learn(CapabilityName::of(token.as_str()), ()));
    }

    /// The relay answered a request with this capability.
    pub(in crate::capture) fn learn(&self, token: &Token, status: StatusCode) {
        if let Some(known) = self.lock().as_mut()
            && !matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)
            && !status.is_server_error()
        {
            known.learn(CapabilityName::of(token.as_str()), ());
        }
    }

    pub(in crate::capture) fn forget(&self, token: &Token) {
        if let Some(known) = self.lock().as_mut() {
            known.forget(CapabilityName::of(token.as_str()));
        }
    }

    /// Whether the next request may name it.
    pub(in crate::capture) fn has(&self, token: &Token) -> bool {
        self.lock().as_mut().is_some_and(|known| known.get(CapabilityName::of(token.as_str())).is_some())
    }

    fn lock(&self) -> MutexGuard<'_, Option<Known<()>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::token::tests::forge;

    #[test]
    fn nothing_is_named_before_the_relay_says_that_it_knows_names() {
        let token = Token::parse(&forge(&[("s", 64)], 0, 1000)).unwrap();
        let other = Token::parse(&forge(&[("t", 64)], 0, 1000)).unwrap();
        let names = Names::default();
        names.learn(&token, StatusCode::CREATED);
        assert!(!names.has(&token));
        names.welcome(std::slice::from_ref(&token));
        assert!(names.has(&token) && !names.has(&other));
        names.learn(&other, StatusCode::UNAUTHORIZED);
        assert!(!names.has(&other));
        names.learn(&other, StatusCode::CREATED);
        assert!(names.has(&other));
        names.forget(&other);
        assert!(!names.has(&other) && names.has(&token));
    }
}
