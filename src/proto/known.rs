//! The name of a capability on a connection that knows it (`docs/protocol.md`, 2.4): 22
//! characters in place of a token of a thousand, with every chunk on a link that is thin.

use std::collections::VecDeque;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest as _, Sha256};

use crate::id::InvalidId;

/// The scheme of `Authorization` beside `Bearer`.
pub const KNOWN_SCHEME: &str = "Waystation-Known";
/// Capabilities that a connection knows at once; the one that was named least lately is forgotten
/// first.
pub const MAX_KNOWN: usize = 4;

/// The first 16 bytes of SHA-256 over "waystation-known-v1" and the token, each preceded by its
/// length as 4 bytes, big-endian. Only who has the token can tell its name, and the name is worth
/// something only on a connection on which the whole token was taken.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct CapabilityName([u8; 16]);

impl CapabilityName {
    /// Names a token.
    #[must_use]
    pub fn of(token: &str) -> Self {
        let mut hash = Sha256::new();
        for part in ["waystation-known-v1", token] {
            hash.update(u32::try_from(part.len()).unwrap_or(u32::MAX).to_be_bytes());
            hash.update(part);
        }
        let mut out = [0; 16];
        out.copy_from_slice(&hash.finalize()[..16]);
        Self(out)
    }

    /// Reads the 22 characters of base64url without padding.
    ///
    /// # Errors
    /// [`InvalidId`] for anything else.
    pub fn parse(text: &str) -> Result<Self, InvalidId> {
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| InvalidId)?;
        bytes.try_into().map(Self).map_err(|_| InvalidId)
    }
}

impl fmt::Display for CapabilityName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&URL_SAFE_NO_PAD.encode(self.0))
    }
}

impl fmt::Debug for CapabilityName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CapabilityName(…)")
    }
}

/// What one end of a connection knows by name. Where the relay forgot more than the client, it
/// says so and the token goes whole.
pub struct Known<T>(VecDeque<(CapabilityName, T)>);

impl<T> Default for Known<T> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

impl<T> Known<T> {
    /// Takes a name in, or as the latest.
    pub fn learn(&mut self, name: CapabilityName, value: T) {
        self.forget(name);
        if self.0.len() >= MAX_KNOWN {
            self.0.pop_front();
        }
        self.0.push_back((name, value));
    }

    /// What is known by a name, which is the latest now.
    pub fn get(&mut self, name: CapabilityName) -> Option<&T> {
        let at = self.0.iter().position(|(one, _)| *one == name)?;
        let found = self.0.remove(at)?;
        self.0.push_back(found);
        self.0.back().map(|(_, value)| value)
    }

    /// Forgets a name.
    pub fn forget(&mut self, name: CapabilityName) {
        self.0.retain(|(one, _)| *one != name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_of_one_token_and_is_read_as_it_was_written() {
        let name = CapabilityName::of("a.b.c");
        assert_eq!(name.to_string(), "I9ccwjmhAo_OP3ET9dOeig");
        assert_eq!(CapabilityName::parse(&name.to_string()), Ok(name));
        assert_ne!(name, CapabilityName::of("a.b.d"));
        for bad in ["", "I9cc", "I9ccwjmhAo_OP3ET9dOeigAA", "I9ccwjmhAo_OP3ET9dOeig=="] {
            assert!(CapabilityName::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn so_many_are_known_and_the_one_named_least_lately_goes_first() {
        let names: Vec<_> = (0..=MAX_KNOWN).map(|n| CapabilityName::of(&n.to_string())).collect();
        let mut known = Known::default();
        for (at, name) in names[..MAX_KNOWN].iter().enumerate() {
            known.learn(*name, at);
        }
        assert_eq!(known.get(names[0]), Some(&0));
        known.learn(names[MAX_KNOWN], MAX_KNOWN);
        assert_eq!(known.get(names[1]), None);
        assert_eq!(known.get(names[0]), Some(&0));
        known.forget(names[0]);
        assert_eq!(known.get(names[0]), None);
    }
}
