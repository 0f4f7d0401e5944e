//! The capabilities that the relay knows by name on one connection.

use std::sync::{Mutex, MutexGuard, PoisonError};

use http::StatusCode;
use waystation_proto::known::{CapabilityName, Known};

use crate::token::Token;

/// None until the relay says that it knows any, and for good once it did not know one: then
/// something on the way gives one connection's requests to several.
#[derive(Default)]
pub(in crate::capture) struct Names(Mutex<State>);

#[derive(Default)]
enum State {
    #[default]
    Unsaid,
    On(Known<()>),
    Off,
}

impl Names {
    /// The relay knows names, and took at least one of these.
    pub(in crate::capture) fn welcome(&self, tokens: &[Token]) {
        let mut state = self.lock();
        if let State::Unsaid = *state {
            *state = State::On(Known::default());
        }
        if let (State::On(known), [token]) = (&mut *state, tokens) {
            known.learn(CapabilityName::of(token.as_str()), ());
        }
    }

    /// The relay answered a request with this capability.
    pub(in crate::capture) fn learn(&self, token: &Token, status: StatusCode) {
        if let State::On(known) = &mut *self.lock()
            && status.is_success()
        {
            known.learn(CapabilityName::of(token.as_str()), ());
        }
    }

    /// The relay did not know a name.
    pub(in crate::capture) fn end(&self) {
        *self.lock() = State::Off;
    }

    /// Whether the next request may name it.
    pub(in crate::capture) fn has(&self, token: &Token) -> bool {
        match &mut *self.lock() {
            State::On(known) => known.get(CapabilityName::of(token.as_str())).is_some(),
            State::Unsaid | State::Off => false,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
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
        names.learn(&other, StatusCode::TOO_MANY_REQUESTS);
        assert!(!names.has(&other));
        names.learn(&other, StatusCode::CREATED);
        assert!(names.has(&other));
        names.end();
        assert!(!names.has(&other) && !names.has(&token), "something on the way mixes connections");
        names.welcome(std::slice::from_ref(&token));
        names.learn(&token, StatusCode::CREATED);
        assert!(!names.has(&token));
        let names = Names::default();
        names.welcome(&[token.clone(), other.clone()]);
        assert!(!names.has(&token) && !names.has(&other), "which of them was taken is not said");
    }
}
