//! Metrics of connections and requests.

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::names::{self, Handshake, HandshakeFailure, RefusedConnection, Route, StatusClass, Transport};
use crate::proto::Code;

/// A stable code as a label, or `ok`: closed, since the error table is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CodeLabel(pub Option<Code>);

impl EncodeLabelValue for CodeLabel {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        self.0.map_or("ok", Code::name).encode(encoder)
    }
}

/// `{transport}`
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByTransport {
    /// How the client is connected.
    pub transport: Transport,
}

/// `{reason}`
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByRefusal {
    /// Why it was not served.
    pub reason: RefusedConnection,
}

/// `{handshake, class}`
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByHandshake {
    /// Which one.
    pub handshake: Handshake,
    /// Why it failed.
    pub class: HandshakeFailure,
}

/// `{route, status, code}`
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByOutcome {
    /// What was asked.
    pub route: Route,
    /// Class of the status.
    pub status: StatusClass,
    /// Stable code, or `ok`.
    pub code: CodeLabel,
}

/// `{route}`
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByRoute {
    /// What was asked.
    pub route: Route,
}

/// `{route, code}`
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByEnding {
    /// What was asked.
    pub route: Route,
    /// Why it ended, or `ok`.
    pub code: CodeLabel,
}

/// `{code}`
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByCode {
    /// A stable code.
    pub code: CodeLabel,
}

/// Connections and requests.
pub struct Ingress {
    /// Open connections.
    pub connections: Family<ByTransport, Gauge>,
    /// Connections not served, or no longer.
    pub connections_refused: Family<ByRefusal, Counter>,
    /// Handshakes that did not end in a connection.
    pub handshakes_failed: Family<ByHandshake, Counter>,
    /// Requests answered, or left by the asker.
    pub requests: Family<ByOutcome, Counter>,
    /// Open WebSocket sessions.
    pub websocket_sessions: Family<ByRoute, Gauge>,
    /// Ended WebSocket sessions.
    pub websocket_sessions_ended: Family<ByEnding, Counter>,
    /// Bytes of request bodies and of WebSocket messages.
    pub received_bytes: Family<ByTransport, Counter>,
    /// Bodies of refused requests that were too long to read to their end.
    pub bodies_dropped: Family<ByTransport, Counter>,
    /// Offers and capabilities refused on `/capture`.
    pub capture_refused: Family<ByCode, Counter>,
    /// Requests that named a capability in place of bringing it.
    pub capabilities_named: Family<ByCode, Counter>,
}

impl Ingress {
    pub(super) fn new(registry: &mut Registry) -> Self {
        let new = Self {
            connections: Family::default(),
            connections_refused: Family::default(),
            handshakes_failed: Family::default(),
            requests: Family::default(),
            websocket_sessions: Family::default(),
            websocket_sessions_ended: Family::default(),
            received_bytes: Family::default(),
            bodies_dropped: Family::default(),
            capture_refused: Family::default(),
            capabilities_named: Family::default(),
        };
        registry.register(names::CONNECTIONS, "Open connections", new.connections.clone());
        registry.register(
            names::CONNECTIONS_REFUSED,
            "Connections that were not served, or no longer",
            new.connections_refused.clone(),
        );
        registry.register(names::HANDSHAKES_FAILED, "Handshakes that failed", new.handshakes_failed.clone());
        registry.register(names::REQUESTS, "Requests by outcome", new.requests.clone());
        registry.register(names::WEBSOCKET_SESSIONS, "Open WebSocket sessions", new.websocket_sessions.clone());
        registry.register(
            names::WEBSOCKET_SESSIONS_ENDED,
            "WebSocket sessions by ending",
            new.websocket_sessions_ended.clone(),
        );
        registry.register(names::RECEIVED_BYTES, "Bytes of request bodies and messages", new.received_bytes.clone());
        registry.register(
            names::BODIES_DROPPED,
            "Bodies of refused requests that were not read to their end",
            new.bodies_dropped.clone(),
        );
        registry.register(
            names::CAPTURE_REFUSED,
            "Offers and capabilities refused on a capture connection, which goes on",
            new.capture_refused.clone(),
        );
        registry.register(
            names::CAPABILITIES_NAMED,
            "Requests that named a capability in place of bringing it",
            new.capabilities_named.clone(),
        );
        // What alerts watch begins at 0: an increase from nothing is none.
        for reason in RefusedConnection::ALL {
            drop(new.connections_refused.get_or_create(&ByRefusal { reason: *reason }));
        }
        new
    }

    /// A connection was refused or cut.
    pub fn refuse_connection(&self, reason: RefusedConnection) {
        self.connections_refused.get_or_create(&ByRefusal { reason }).inc();
    }

    /// An offer or a capability was refused on `/capture`.
    pub fn refuse_on_capture(&self, code: Code) {
        self.capture_refused.get_or_create(&ByCode { code: CodeLabel(Some(code)) }).inc();
    }

    /// A request named a capability, and its connection knew it or did not.
    pub fn name_capability(&self, unknown: Option<Code>) {
        self.capabilities_named.get_or_create(&ByCode { code: CodeLabel(unknown) }).inc();
    }

    /// A handshake failed.
    pub fn fail_handshake(&self, handshake: Handshake, class: HandshakeFailure) {
        self.handshakes_failed.get_or_create(&ByHandshake { handshake, class }).inc();
    }
}
