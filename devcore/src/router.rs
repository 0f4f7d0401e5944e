//! From a request to an answer: which route, what it counted as, and what a panic becomes.

use std::panic::AssertUnwindSafe;
use std::time::Instant;

use futures_util::FutureExt as _;
use http::{Method, Response};

use crate::answer::{Answer, AnswerBody, Stop};
use crate::call::Call;
use crate::refusal;
use crate::routes::{account, chunks, contact, control, grants, groups, keys, relay};

/// Answers a call; `None`: the connection is to be cut.
pub(crate) async fn serve(mut call: Call, method: Method, path: String) -> Option<Response<AnswerBody>> {
    let began = Instant::now();
    let segments: Vec<&str> = path.strip_prefix('/').unwrap_or_default().split('/').collect();
    let name = name(&method, &segments);
    let result = guarded(name, dispatch(&mut call, &method, &segments)).await;
    let (outcome, answer) = match result {
        Ok(answer) => (answer.status.to_string(), Some(answer)),
        Err(Stop::Refuse(refusal)) => {
            call.drain().await;
            (refusal.code.clone().into_owned(), Some(Answer::of_refusal(&refusal)))
        }
        Err(Stop::Cut) => ("cut".to_owned(), None),
    };
    call.core.stats.call(name, &outcome);
    let status = answer.as_ref().map(|answer| answer.status);
    tracing::debug!(route = name, status, outcome, duration_ms = began.elapsed().as_secs_f64() * 1000.0);
    let pages = called_by_pages(&segments);
    answer.map(|answer| if pages { contact::readable_by_pages(answer) } else { answer }.into_response())
}

/// Routes that a contact's page calls from another origin.
fn called_by_pages(segments: &[&str]) -> bool {
    matches!(segments, ["v1", "contact", ..] | ["v1", "relay", "jwks"])
}

/// A panic ends its call, not the core; what it says is not repeated anywhere.
async fn guarded(name: &'static str, call: impl Future<Output = Result<Answer, Stop>>) -> Result<Answer, Stop> {
    AssertUnwindSafe(call).catch_unwind().await.unwrap_or_else(|_| {
        tracing::error!(route = name, "a route panicked");
        Err(refusal::INTERNAL_ERROR.into())
    })
}

/// The route's name in counters and logs: never the path, which holds identifiers.
fn name(method: &Method, segments: &[&str]) -> &'static str {
    match (method.as_str(), segments) {
        ("POST", ["v1", "relay", "preflight"]) => "preflight",
        ("POST", ["v1", "relay", "commit"]) => "commit",
        ("POST", ["v1", "relay", "fanout-authorize"]) => "fanout_authorize",
        ("GET", ["v1", "relay", "jwks"]) => "jwks",
        ("GET", ["v1", "relay", "revocations"]) => "revocations",
        ("POST", ["v1", "relay", "revocations"]) => "revoke",
        ("POST", ["v1", "incidents", _, "streams", _, "relay-session"]) => "relay_session",
        ("POST", ["v1", "incidents", _, "chunks"]) => "direct_upload",
        ("POST", ["v1", "incidents", _, "chunks", "reconcile"]) => "reconcile",
        ("POST", ["v1", "incidents", _, "groups", _, "capabilities"]) => "capabilities",
        ("POST", ["v1", "incidents", _, "groups", _, "grants"]) => "grants",
        ("POST", ["v1", "incidents", _, "groups", _, "grants", _, "revoke"]) => "revoke_grant",
        ("POST", ["v1", "contact", "capability"]) => "contact_capability",
        ("GET", ["v1", "contact", "chunks"]) => "contact_chunks",
        ("GET", ["v1", "contact", "chunks", _]) => "contact_chunk",
        ("OPTIONS", segments) if called_by_pages(segments) => "page_preflight",
        (_, ["v1", "incidents", ..]) => "incidents",
        (_, ["devcore", ..]) => "devcore",
        _ => "unknown",
    }
}

async fn dispatch(call: &mut Call, method: &Method, segments: &[&str]) -> Result<Answer, Stop> {
    match (method.as_str(), segments) {
        ("POST", ["v1", "relay", "preflight"]) => relay::preflight(call).await,
        ("POST", ["v1", "relay", "commit"]) => relay::commit(call).await,
        ("POST", ["v1", "relay", "fanout-authorize"]) => relay::fanout_authorize(call).await,
        ("GET", ["v1", "relay", "jwks"]) => keys::jwks(call).await,
        ("GET", ["v1", "relay", "revocations"]) => keys::revocations(call).await,
        ("POST", ["v1", "relay", "revocations"]) => keys::revoke(call).await,
        ("POST", ["v1", "incidents"]) => account::new_incident(call).await,
        ("POST", ["v1", "incidents", incident, "close"]) => account::close_incident(call, incident).await,
        ("POST", ["v1", "incidents", incident, "streams"]) => account::new_stream(call, incident).await,
        ("POST", ["v1", "incidents", incident, "streams", stream, "relay-session"]) => {
            account::relay_session(call, incident, stream).await
        }
        ("POST", ["v1", "incidents", incident, "streams", stream, "complete"]) => {
            account::complete_stream(call, incident, stream).await
        }
        ("POST", ["v1", "incidents", incident, "streams", stream, "fail"]) => {
            account::fail_stream(call, incident, stream).await
        }
        ("POST", ["v1", "incidents", incident, "chunks"]) => chunks::upload(call, incident).await,
        ("GET", ["v1", "incidents", incident, "chunks"]) => chunks::list(call, incident).await,
        ("POST", ["v1", "incidents", incident, "chunks", "reconcile"]) => chunks::reconcile(call, incident).await,
        ("GET", ["v1", "incidents", incident, "chunks", stream, index]) => {
            chunks::bytes(call, incident, stream, index).await
        }
        ("POST", ["v1", "incidents", incident, "groups"]) => groups::new_group(call, incident).await,
        ("POST", ["v1", "incidents", incident, "groups", group, "streams"]) => {
            groups::new_stream(call, incident, group).await
        }
        ("POST", ["v1", "incidents", incident, "groups", group, "capabilities"]) => {
            groups::capabilities(call, incident, group).await
        }
        ("POST", ["v1", "incidents", incident, "groups", group, "grants"]) => {
            grants::new_grant(call, incident, group).await
        }
        ("POST", ["v1", "incidents", incident, "groups", group, "grants", id, "revoke"]) => {
            grants::revoke(call, incident, group, id).await
        }
        ("POST", ["v1", "contact", "capability"]) => contact::capability(call).await,
        ("GET", ["v1", "contact", "chunks"]) => contact::chunks(call).await,
        ("GET", ["v1", "contact", "chunks", name]) => contact::bytes(call, name).await,
        ("OPTIONS", segments) if called_by_pages(segments) => Ok(contact::preflight()),
        ("GET", ["devcore", "faults"]) => control::faults(call),
        ("PUT", ["devcore", "faults"]) => control::set_faults(call).await,
        ("GET", ["devcore", "stats"]) => control::stats(call).await,
        ("POST", ["devcore", "signing-keys"]) => control::rotate(call).await,
        ("PUT", ["devcore", "incidents", incident]) => control::set_incident(call, incident).await,
        _ => Err(refusal::NOT_FOUND.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_an_internal_error() {
        let result = guarded("test", async { panic!("on purpose") }).await;
        assert!(matches!(result, Err(Stop::Refuse(refusal)) if refusal == refusal::INTERNAL_ERROR));
    }
}
