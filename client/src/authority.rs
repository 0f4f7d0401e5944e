//! Where streams and capabilities come from: the core, reached by the device itself. The relay
//! can neither mint nor prolong one.

mod devcore;
mod fixed;

use std::future::Future;
use std::pin::Pin;

use waystation_proto::id::StreamId;
use waystation_proto::{Media, Variant};

use crate::receipt::Jwks;
use crate::token::Token;

pub use devcore::{DevcoreAuthority, Wishes};
pub use fixed::{FixedAuthority, TokenForm};

/// What an authority answers, some time later.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, AuthorityError>> + Send + 'a>>;

/// Why an authority gave nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuthorityError {
    /// It does not answer, or asks to wait. Worth asking again.
    #[error("the core does not answer")]
    Away,
    /// It refused, or has nothing more to give. Asking again changes nothing.
    #[error("the core gives no more: {0}")]
    Refused(String),
}

/// Gives a recording its streams and capabilities. Every call may be repeated.
pub trait Authority: Send + Sync {
    /// Opens the next stream of a lane; `follows` is the one before it, none for the first.
    fn next_stream(&self, variant: Variant, media: Media, follows: Option<StreamId>) -> Answer<'_, StreamId>;

    /// A capability to upload to all of these streams, or one for each.
    fn upload_capability(&self, streams: Vec<StreamId>) -> Answer<'_, Vec<Token>>;

    /// A capability to watch the group.
    fn fanout_capability(&self) -> Answer<'_, Token>;

    /// The core's public keys, if it has any.
    fn jwks(&self) -> Answer<'_, Option<Jwks>>;
}
