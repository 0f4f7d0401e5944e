//! A bearer's capability as a value: the token, what it says, and who vouches for that.

use std::sync::Arc;

use crate::claims::Grant;

/// Whether this relay could check the signature itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Trust {
    /// The signature verified here.
    Verified,
    /// Only read: good for refusing early, never for accepting. The core must be asked.
    Claimed,
}

/// A bearer's capability: the token as it came, and what it says.
#[derive(Clone)]
pub struct Capability {
    /// The token, verbatim, for the core.
    pub token: Arc<str>,
    /// What it says.
    pub grant: Arc<Grant>,
    /// Who vouches for that.
    pub trust: Trust,
}

impl std::fmt::Debug for Capability {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Capability").field("trust", &self.trust).finish_non_exhaustive()
    }
}
