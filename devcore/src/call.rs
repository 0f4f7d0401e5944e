//! One call on its way through the core.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::body::Incoming;

use crate::answer::{Answer, Stop};
use crate::core::Core;
use crate::faults::{Effect, FaultRoute, Subject};
use crate::json::{Kind, Object};
use crate::refusal::{self, Refusal};

/// Largest JSON body, as at the core.
const MAX_JSON_BYTES: usize = 64 * 1024;
/// A sender that sends nothing for so long is gone.
const SILENCE: Duration = Duration::from_secs(120);
/// Unread bytes taken in before a refusal, so that the refusal reaches a sender in the middle of its body.
const DRAIN_BYTES: usize = 1024 * 1024;
/// And for how long.
const DRAIN_TIME: Duration = Duration::from_secs(2);

/// A call.
pub(crate) struct Call {
    pub(crate) core: Arc<Core>,
    pub(crate) host: IpAddr,
    pub(crate) headers: HeaderMap,
    /// What follows the path, undecoded; it is never logged.
    pub(crate) query: String,
    pub(crate) body: Incoming,
    /// Its place in the order of calls.
    pub(crate) arrival: u64,
    pub(crate) arrived_ms: i64,
}

/// What a fault leaves to be done after the work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum After {
    Cut,
    Unreadable,
}

impl After {
    /// Does it.
    pub(crate) fn apply(after: Option<Self>, answer: Answer) -> Result<Answer, Stop> {
        match after {
            None => Ok(answer),
            Some(Self::Cut) => Err(Stop::Cut),
            Some(Self::Unreadable) => Ok(answer.unreadable()),
        }
    }
}

impl Call {
    /// Lets the faults for this route hit.
    pub(crate) async fn strike(&self, route: FaultRoute, subject: Subject<'_>) -> Result<Option<After>, Stop> {
        let hit = self.core.faults.take(route, subject);
        if hit.delay_ms > 0 {
            tokio::time::sleep(Duration::from_millis(hit.delay_ms)).await;
        }
        match hit.effect {
            None | Some(Effect::Delay { .. }) => Ok(None),
            Some(Effect::Refuse { status, code, retry_after_s }) => {
                Err(Refusal::on_request(status, code, retry_after_s).into())
            }
            Some(Effect::Cut) => Err(Stop::Cut),
            Some(Effect::CutAfterCommit) => Ok(Some(After::Cut)),
            Some(Effect::InvalidResponse) => Ok(Some(After::Unreadable)),
        }
    }

    /// Reads a JSON body as the core does.
    pub(crate) async fn object(&mut self, members: &'static [(&'static str, Kind)]) -> Result<Object, Refusal> {
        let body = self.json_bytes().await?;
        Object::request(&body, members).map_err(|_| refusal::INVALID_JSON)
    }

    pub(crate) async fn json_bytes(&mut self) -> Result<Bytes, Refusal> {
        let read = Limited::new(&mut self.body, MAX_JSON_BYTES).collect();
        match tokio::time::timeout(SILENCE, read).await {
            Ok(Ok(body)) => Ok(body.to_bytes()),
            Ok(Err(error)) if error.is::<LengthLimitError>() => Err(refusal::REQUEST_TOO_LARGE),
            Ok(Err(_)) | Err(_) => Err(refusal::INVALID_JSON),
        }
    }

    /// The account's session.
    pub(crate) fn account(&self) -> Result<(), Refusal> {
        self.core.account(&self.headers)
    }

    /// Takes in what is left of the body, within bounds.
    pub(crate) async fn drain(&mut self) {
        if http_body::Body::is_end_stream(&self.body) || self.headers.contains_key(http::header::EXPECT) {
            return;
        }
        let read = Limited::new(&mut self.body, DRAIN_BYTES).collect();
        drop(tokio::time::timeout(DRAIN_TIME, read).await);
    }
}
