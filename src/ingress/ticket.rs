//! What is written down of a request: one log line and one count, when its last part is done.

use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::conn::{Busy, Conn};
use crate::proto::{Code, SessionId};
use crate::telemetry::ingress::{ByOutcome, CodeLabel};
use crate::telemetry::names::{Route, StatusClass, Transport};

/// One request from its head to the end of its answer or session.
pub(super) struct Ticket {
    conn: Arc<Conn>,
    pub(super) route: Route,
    transport: Transport,
    started_ms: u64,
    status: AtomicU16,
    code: Mutex<Option<Code>>,
    /// Whose hints the answer carries.
    hinted: OnceLock<SessionId>,
    _busy: Busy,
}

impl Ticket {
    pub(super) fn open(conn: &Arc<Conn>, route: Route, transport: Transport) -> Arc<Self> {
        Arc::new(Self {
            route,
            transport,
            started_ms: conn.service.shared.clock.now_ms(),
            status: AtomicU16::new(0),
            code: Mutex::new(None),
            hinted: OnceLock::new(),
            _busy: conn.busy(),
            conn: Arc::clone(conn),
        })
    }

    /// The answer's head is decided.
    pub(super) fn answered(&self, status: u16, code: Option<Code>) {
        self.status.store(status, Ordering::Relaxed);
        self.ended(code);
    }

    /// A streamed answer or a session ended for this reason. The first one counts.
    pub(super) fn ended(&self, code: Option<Code>) {
        let mut held = self.code.lock().unwrap_or_else(PoisonError::into_inner);
        *held = held.or(code);
    }

    /// The bearer is this session's capture client: the answer carries its hints.
    pub(super) fn hint_to(&self, session: SessionId) {
        // One request has one bearer.
        let _ = self.hinted.set(session);
    }

    /// Whose hints the answer carries.
    pub(super) fn hinted(&self) -> Option<&SessionId> {
        self.hinted.get()
    }

    /// Why it ended so far.
    pub(super) fn code(&self) -> Option<Code> {
        *self.code.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let shared = &self.conn.service.shared;
        let (status, code) = (self.status.load(Ordering::Relaxed), self.code());
        let class = match status / 100 {
            0 => StatusClass::Gone,
            1 => StatusClass::Upgraded,
            2 => StatusClass::Success,
            3 => StatusClass::Redirect,
            4 => StatusClass::Client,
            _ => StatusClass::Server,
        };
        let outcome = ByOutcome { route: self.route, status: class, code: CodeLabel(code) };
        shared.metrics.ingress.requests.get_or_create(&outcome).inc();
        // One line for each request costs as much as a small chunk: the counter above tells the rest.
        tracing::debug!(
            component = "ingress",
            route_class = self.route.as_str(),
            transport = self.transport.as_str(),
            status,
            code = code.map_or("ok", Code::name),
            duration_ms = shared.clock.now_ms().saturating_sub(self.started_ms),
            "request"
        );
    }
}
