//! The core API as the relay calls it: three routes, its keys, its revocation list, and the
//! budget of calls.
//!
//! The service token goes with the three routes and nowhere else: requests are built from the
//! core's own base URL, and a redirect is an answer like any other, never followed (contract A.0).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderName};
use http::{HeaderValue, Method, Request, Uri};
use http_body::Body;
use secrecy::{ExposeSecret as _, SecretString};
use serde::Serialize;
use tokio::sync::watch;

use crate::clock::Clock;
use crate::config;
use crate::proto::Offer;
use crate::proto::budget::{Call, Limiter};
use crate::proto::outcome::{self, Answer, Asked, Doubt, Outcome, Route};
use crate::telemetry::Metrics;

mod body;
mod fetch;
mod gate;
mod http_client;
mod line;
mod multipart;

pub use fetch::{Fetch, FetchError};
pub use gate::{Permit, Reach};
pub use http_client::{BuildError, Client};

use body::Outgoing;
use gate::Gate;
use http_client::Failure;

/// Largest answer read, in bytes.
const MAX_ANSWER: usize = 64 * 1024;
const SERVICE_TOKEN: HeaderName = HeaderName::from_static("x-proofline-relay-service-token");

/// What the core is told of a chunk (contract A.2).
#[derive(Clone, Copy)]
pub struct ChunkFields<'a> {
    /// `relay_session_id`
    pub session: &'a str,
    /// The uploader's token, verbatim.
    pub capability: &'a str,
    /// Everything else.
    pub offer: &'a Offer,
}

/// What the core is asked for a contact (contract A.4).
#[derive(Clone, Copy)]
pub struct FanoutFields<'a> {
    /// `relay_session_id`
    pub session: &'a str,
    /// The contact's token, verbatim.
    pub capability: &'a str,
    /// `incident_id`
    pub incident: &'a str,
    /// `stream_id`
    pub stream: &'a str,
}

/// The core. Cheap to clone; clones share connections, budget and what is known of the core.
#[derive(Clone)]
pub struct CoreApi(Arc<Inner>);

struct Inner {
    client: Client,
    uris: [Uri; 3],
    service_token: SecretString,
    request_timeout: Duration,
    gate: Arc<Gate>,
    clock: Clock,
    metrics: Metrics,
}

impl CoreApi {
    /// The core of `[core]`, called with `client`.
    ///
    /// # Errors
    /// [`BuildError`] if `core.url` can't be called.
    pub fn new(config: &config::Core, client: &Client, clock: Clock, metrics: Metrics) -> Result<Self, BuildError> {
        let uri = |route: Route| client.uri(&format!("{}{}", config.url, route.path()));
        Ok(Self(Arc::new(Inner {
            client: client.clone(),
            uris: [uri(Route::Preflight)?, uri(Route::FanoutAuthorize)?, uri(Route::Commit)?],
            service_token: config.service_token.clone(),
            request_timeout: config.request_timeout,
            gate: Gate::new(config.max_requests_per_minute, clock.clone(), metrics.clone()),
            clock,
            metrics,
        })))
    }

    /// Waits for leave to make one call: for the budget of calls, and for the end of the back-off
    /// while the core is away. First come, first served for each kind of call. The permit is for
    /// a call that is made at once; dropped unused, it is given back.
    pub async fn permit(&self, call: Call) -> Permit {
        self.0.gate.permit(call, 0).await
    }

    /// As [`CoreApi::permit`], in the order of mercy: those of a lower rank go first, and the
    /// highest rank that waits still gets one call in twenty. For calls whose chunk is chosen before
    /// their permit, and for whoever shares a line with them.
    pub async fn permit_ranked(&self, call: Call, rank: u8) -> Permit {
        self.0.gate.permit(call, rank).await
    }

    /// How long the core has asked this class of calls to pause.
    #[must_use]
    pub fn limited_for(&self, limiter: Limiter) -> Option<Duration> {
        self.0.gate.limited_for(limiter)
    }

    /// While the core is away: how long until it is tried again (zero: now).
    #[must_use]
    pub fn away_for(&self) -> Option<Duration> {
        self.0.gate.away_for()
    }

    /// Whether commits wait because the core, or what answers in its place, does nothing for anybody
    /// although it can be reached.
    #[must_use]
    pub fn troubled(&self) -> bool {
        self.0.gate.troubled()
    }

    /// What the last call tells of the core, as it changes.
    #[must_use]
    pub fn reach(&self) -> watch::Receiver<Reach> {
        self.0.gate.reach()
    }

    /// May this chunk come? `Accepted` if so; it reserves nothing.
    pub async fn preflight(&self, permit: Permit, fields: ChunkFields<'_>) -> Outcome {
        let json = preflight_json(fields);
        self.call(permit, Asked::Preflight(fields.offer), "application/json", self.whole(json)).await
    }

    /// May this contact watch? `Accepted` if so.
    pub async fn fanout_authorize(&self, permit: Permit, fields: FanoutFields<'_>) -> Outcome {
        let json = fanout_json(fields);
        let asked = Asked::FanoutAuthorize { incident: fields.incident, stream: fields.stream };
        self.call(permit, asked, "application/json", self.whole(json)).await
    }

    /// Sends a chunk: `file` is its `offer.length` bytes, passed on as they come. `Confirmed` is
    /// the core's word for exactly this chunk.
    pub async fn commit<B>(&self, permit: Permit, fields: ChunkFields<'_>, file: B) -> Outcome
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let _under_way = self.0.metrics.core.commit_begins();
        let mut random = [0; 24];
        self.0.clock.fill_random(&mut random);
        let envelope = multipart::envelope(&fields, random);
        let body = Outgoing::around(envelope.before, file, fields.offer.length, envelope.after, &self.0.clock);
        self.call(permit, Asked::Commit(fields.offer), &envelope.content_type, body).await
    }

    fn whole(&self, bytes: Vec<u8>) -> Outgoing {
        Outgoing::whole(bytes.into(), &self.0.clock)
    }

    async fn call(&self, permit: Permit, asked: Asked<'_>, content_type: &str, body: Outgoing) -> Outcome {
        let inner = &*self.0;
        let route = route_of(asked);
        let call = permit.spend();
        let begun = inner.clock.now_ms();
        let outcome = match self.request(route, content_type, body) {
            Ok(request) => self.exchange(asked, request).await,
            // A token that can't be a header value: only the operator can mend it.
            Err(()) => Outcome::Operator(outcome::Refusal { status: 502, code: None, retry_after_s: None }),
        };
        inner.gate.settle(call, &outcome);
        inner.metrics.core.called(route, &outcome, inner.clock.now_ms().saturating_sub(begun));
        outcome
    }

    async fn exchange(&self, asked: Asked<'_>, request: Request<Outgoing>) -> Outcome {
        let inner = &*self.0;
        let progress = request.body().progress();
        match inner.client.exchange(request, &inner.clock, inner.request_timeout, MAX_ANSWER).await {
            Ok(reply) => outcome::read(
                asked,
                Answer { status: reply.status, retry_after: reply.retry_after.as_deref(), body: reply.body.as_deref() },
            ),
            Err(_) if progress.has_failed() => Outcome::Ambiguous(Doubt::Source),
            Err(Failure::Broken) if progress.is_whole() => Outcome::Ambiguous(Doubt::Lost),
            Err(_) => Outcome::Ambiguous(Doubt::NotSent),
        }
    }

    fn request(&self, route: Route, content_type: &str, body: Outgoing) -> Result<Request<Outgoing>, ()> {
        let mut token = HeaderValue::from_str(self.0.service_token.expose_secret()).map_err(|_| ())?;
        token.set_sensitive(true);
        Request::builder()
            .method(Method::POST)
            .uri(self.0.uris[route as usize].clone())
            .header(SERVICE_TOKEN, token)
            .header(CONTENT_TYPE, content_type)
            .body(body)
            .map_err(|_| ())
    }
}

fn route_of(asked: Asked<'_>) -> Route {
    match asked {
        Asked::Preflight(_) => Route::Preflight,
        Asked::FanoutAuthorize { .. } => Route::FanoutAuthorize,
        Asked::Commit(_) => Route::Commit,
    }
}

/// The core refuses unknown names here, so nothing of an offer but these may be sent (contract A.0).
fn preflight_json(fields: ChunkFields<'_>) -> Vec<u8> {
    #[derive(Serialize)]
    struct Body<'a> {
        relay_session_id: &'a str,
        capability: &'a str,
        incident_id: &'a str,
        stream_id: &'a str,
        chunk_index: u64,
        media_type: &'a str,
        started_at: &'a str,
        ended_at: &'a str,
        byte_size: u64,
        sha256_hex: &'a str,
        #[serde(skip_serializing_if = "str::is_empty")]
        original_filename: &'a str,
    }
    let offer = fields.offer;
    let body = Body {
        relay_session_id: fields.session,
        capability: fields.capability,
        incident_id: offer.incident.as_str(),
        stream_id: offer.stream.as_str(),
        chunk_index: offer.index,
        media_type: offer.media.as_str(),
        started_at: offer.started.as_str(),
        ended_at: offer.ended.as_str(),
        byte_size: offer.length,
        sha256_hex: &offer.sha256.to_hex(),
        original_filename: &offer.name,
    };
    // Texts and numbers always become JSON.
    serde_json::to_vec(&body).unwrap_or_default()
}

fn fanout_json(fields: FanoutFields<'_>) -> Vec<u8> {
    #[derive(Serialize)]
    struct Body<'a> {
        relay_session_id: &'a str,
        capability: &'a str,
        incident_id: &'a str,
        stream_id: &'a str,
    }
    let body = Body {
        relay_session_id: fields.session,
        capability: fields.capability,
        incident_id: fields.incident,
        stream_id: fields.stream,
    };
    serde_json::to_vec(&body).unwrap_or_default()
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
