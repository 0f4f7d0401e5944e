//! Where streams and capabilities come from: the core, reached by the device itself. The relay
//! can neither mint nor prolong one.

mod contact;
mod devcore;
mod fixed;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use waystation_proto::id::{GroupId, IncidentId, SessionId, StreamId};
use waystation_proto::{Media, Offer, Variant};

use crate::receipt::Jwks;
use crate::token::Token;

pub use contact::ContactAuthority;
pub use devcore::{DevcoreAuthority, Grant, Wishes};
pub use fixed::{FixedAuthority, TokenForm};

/// Pauses between tries to get the core's keys: this, then twice as long each time.
const KEYS_FIRST_PAUSE: Duration = Duration::from_secs(1);
const KEYS_LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// What an authority answers, some time later.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, AuthorityError>> + Send + 'a>>;

/// Why an authority gave nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuthorityError {
    /// It does not answer, or asks to wait. Worth asking again.
    #[error("the core does not answer")]
    Away,
    /// It refuses for now: the account's login ran out, or something on the way there speaks in its
    /// place. Worth asking again, slowly.
    #[error("the core gives nothing now: {0}")]
    NotNow(String),
    /// It refused, or has nothing more to give. Asking again changes nothing by itself.
    #[error("the core gives no more: {0}")]
    Refused(String),
}

/// What a recording is called at the core.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ids {
    /// Incident.
    pub incident: IncidentId,
    /// Capture group.
    pub group: GroupId,
    /// Relay session, once there is a capability that names one: a relay shows a chunk's offset
    /// only to the session that offered it, so it is kept over restarts.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub sid: Option<SessionId>,
}

/// What the core has of a chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reconciled {
    /// These bytes, with a receipt if it signs them: confirmed.
    Stored {
        /// The receipt.
        receipt: Option<String>,
    },
    /// Other bytes under this identity.
    Conflict,
    /// Nothing.
    Missing,
    /// There is nobody to ask.
    Untold,
}

/// Gives a recording its names, streams and capabilities. Every call may be repeated.
pub trait Authority: Send + Sync {
    /// What the recording is called. `kept` is what an earlier run of it was told: the authority
    /// speaks for that from then on, and refuses if it can't.
    fn ids(&self, kept: Option<Ids>) -> Answer<'_, Ids>;

    /// Opens the next stream of a lane; `follows` is the one before it, none for the first.
    fn next_stream(&self, variant: Variant, media: Media, follows: Option<StreamId>) -> Answer<'_, StreamId>;

    /// A capability to upload to all of these streams, or one for each.
    fn upload_capability(&self, streams: Vec<StreamId>) -> Answer<'_, Vec<Token>>;

    /// A capability to watch the group.
    fn fanout_capability(&self) -> Answer<'_, Token>;

    /// What the core has under a chunk's identity: asked where a relay can't tell whether the core
    /// stored it, or says so without the receipt that proves it.
    fn reconcile(&self, _offer: Offer) -> Answer<'_, Reconciled> {
        Box::pin(async { Ok(Reconciled::Untold) })
    }

    /// The core's public keys, if it has any.
    fn jwks(&self) -> Answer<'_, Option<Jwks>>;
}

/// The core's keys after a pause, asked for until there is an answer: whoever gave up would take
/// receipts unchecked from then on.
pub(crate) async fn keys(authority: Arc<dyn Authority>, after: Duration) -> Option<Jwks> {
    tokio::time::sleep(after).await;
    let mut pause = KEYS_FIRST_PAUSE;
    loop {
        match authority.jwks().await {
            Ok(jwks) => return jwks,
            Err(AuthorityError::Refused(_)) => return None,
            Err(AuthorityError::Away | AuthorityError::NotNow(_)) => tokio::time::sleep(pause).await,
        }
        pause = (pause * 2).min(KEYS_LONGEST_PAUSE);
    }
}

impl std::fmt::Debug for Ids {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ids(…)")
    }
}
