//! The session's connection: which relay, when, and what it brings.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use waystation_proto::ChunkState;

use super::{Engine, Told};
use crate::capture::book::Effect;
use crate::capture::ear::Takes;
use crate::capture::event::Event;
use crate::capture::h3::EARLY_LIMIT;
use crate::capture::link::{Dial, FromLink, Link};
use crate::capture::policy::Change;
use crate::capture::store::record::Record;
use crate::clock;
use crate::connect::ConnectError;

/// A connection that lasted this long was a good one: longer than one lasts whose handshake, begun
/// together with the first requests, never ends.
const STEADY: Duration = EARLY_LIMIT.saturating_add(Duration::from_secs(1));
/// Delays before tries to connect: at once, then these, then every second.
const RECONNECT_MS: [u64; 4] = [0, 250, 500, 1000];
/// What a connection tells at once is written down together, so many things at most.
const MAX_NEWS: usize = 64;

impl Engine {
    pub(super) fn connect(&mut self) {
        let tokens = self.wallet.live(clock::unix_ms());
        let busy = self.link.is_some() || self.connecting || self.is_idle();
        if busy || tokens.is_empty() || self.connect_at > Instant::now() {
            return;
        }
        self.connecting = true;
        let Some(relay) = self.config.relays.get(self.relay).cloned() else { return };
        let (transport, wait_s) = (self.config.transport, self.config.wait_s);
        let (written, takes, recording) = (Arc::default(), Takes::default(), Arc::clone(&self.recording));
        let dial = Dial { transport, relay, tokens, wait_s, written, takes, recording };
        let early = std::mem::take(&mut self.early);
        self.tasks.spawn(async move { Told::Connected(dial.connect(early).await) });
    }

    pub(super) fn connected(&mut self, result: Result<Link, ConnectError>) {
        self.connecting = false;
        match result {
            Ok(_) if self.is_idle() => {}
            Ok(link) => {
                self.link = Some(link);
                let changes = self.policy.connected();
                self.advised(changes);
                self.connected_at = Instant::now();
                self.book.at_relay(self.relay, self.now_ms());
                self.emit(Event::Connected { earlier: self.connections });
                self.summary.reconnects += u64::from(self.connections > 0);
                self.connections += 1;
            }
            Err(error) => {
                let (code, wait) = match error {
                    ConnectError::Refused { code, retry_after_s } => (Some(code), retry_after_s),
                    ConnectError::Unreachable => (None, None),
                    other => (Some(other.to_string()), None),
                };
                self.disconnected(code, wait);
            }
        }
    }

    pub(super) fn disconnected(&mut self, code: Option<String>, retry_after_s: Option<u64>) {
        let about_capability =
            code.as_deref().is_some_and(|code| code.starts_with("capability_") || code == "http_401");
        if about_capability {
            self.wallet.want();
        }
        let was_connected = self.link.is_some();
        self.let_go();
        // A relay that accepts and closes again must not be called without a pause.
        if self.early {
            self.failures = 0;
        }
        // One that broke off holds parts of chunks and is called again first; one that can't be
        // reached, or goes away, lets the next of the list have its turn.
        let moved = !about_capability && (!was_connected || code.is_some()) && self.config.relays.len() > 1;
        if moved {
            self.relay = (self.relay + 1) % self.config.relays.len();
        }
        let asked = if moved { 0 } else { retry_after_s.map_or(0, crate::http::bounded) * 1000 };
        let pause = RECONNECT_MS[self.failures.min(RECONNECT_MS.len() - 1)].max(asked);
        self.failures += 1;
        self.connect_at = Instant::now() + Duration::from_millis(pause);
        let now_ms = self.now_ms();
        self.book.disconnected(now_ms);
        self.emit(Event::Disconnected { code });
    }

    /// Drops the connection. What is sent early may be lost as a whole, so only the first try after
    /// a good one begins so.
    pub(super) fn let_go(&mut self) {
        self.early = self.link.take().is_some() && self.connected_at.elapsed() > STEADY;
    }

    /// Takes what the connection told, and what else it has to tell.
    pub(super) fn heard_all(&mut self, first: Option<FromLink>) {
        self.heard(first);
        for _ in 1..MAX_NEWS {
            let Some(Ok(news)) = self.link.as_mut().map(|link| link.news.try_recv()) else { return };
            self.heard(Some(news));
        }
    }

    fn heard(&mut self, news: Option<FromLink>) {
        let now_ms = self.now_ms();
        match news {
            Some(FromLink::Sent { id, attempt }) => {
                if let Some(label) = self.book.sent(id, attempt, now_ms) {
                    self.emit(Event::Sent(label));
                }
            }
            Some(FromLink::Verdict { id, attempt, verdict }) => {
                let effects = self.book.verdict(id, attempt, verdict, now_ms);
                self.act(effects);
            }
            Some(FromLink::Moves { id, attempt }) => self.book.moves(id, attempt, now_ms),
            Some(FromLink::Offset { id, attempt, offset }) => {
                let effect = self.book.offset(id, attempt, offset, now_ms);
                self.act(effect.into_iter().collect());
            }
            Some(FromLink::Broken { id, attempt }) => {
                self.summary.reconnects += 1;
                self.book.broken(id, attempt, now_ms);
            }
            Some(FromLink::Hint(hint)) => {
                let changes = self.policy.heard(&hint, now_ms);
                self.emit(Event::Hint(hint));
                self.advised(changes);
            }
            Some(FromLink::Path(path)) => self.emit(Event::Path(path)),
            Some(FromLink::Bodies(bodies)) => {
                if let Some(link) = &mut self.link {
                    link.allow(bodies);
                }
            }
            Some(FromLink::Better(link)) => {
                self.disconnected(None, None);
                self.connected(Ok(*link));
            }
            // Whoever looks after several does not pass this on.
            Some(FromLink::Stalls | FromLink::Flows) => {}
            Some(FromLink::Closed { code, retry_after_s }) => self.disconnected(code, retry_after_s),
            None => self.disconnected(None, None),
        }
    }

    /// Tells the recorder what follows from the relay's advice.
    fn advised(&mut self, changes: Vec<Change>) {
        for change in changes {
            self.emit(Event::Advice(change));
        }
    }

    pub(super) fn act(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::State { label, state, code, receipt, .. } => {
                    self.emit(Event::State { label, state, code, receipt });
                    if state.held() || state == ChunkState::Confirmed {
                        self.evidence_is_ready();
                    }
                }
                Effect::Item { label, state, code } => self.emit(Event::Item { label, state, code }),
                Effect::Note { id, note } => self.records.push(Record::Noted { id, note }),
                Effect::Free { id } => self.records.push(Record::Confirmed { id }),
                Effect::Renew => self.wallet.want(),
                Effect::Reconcile { id } => self.reconcile(id),
                Effect::Signs => self.records.push(Record::Signs),
                Effect::FetchKeys => self.fetch_keys_again(),
            }
        }
    }

    /// Said at once, and never waited for.
    fn evidence_is_ready(&mut self) {
        if !self.ready {
            self.ready = true;
            self.emit(Event::EvidenceReady);
            self.records.push(Record::Ready);
        }
    }
}
