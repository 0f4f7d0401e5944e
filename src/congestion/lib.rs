//! Congestion control of QUIC connections, of the client's and of the relay's: `model` says how many bytes may
//! be in flight, this module is its place in quinn. quinn paces at 1.25 × window / round trip by
//! itself. `docs/congestion.md` has the model in words.

mod again;
mod flights;
mod gauge;
mod model;
mod peak;
mod pulse;
#[cfg(test)]
mod sim;
mod tail;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod wire_test;

use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn::congestion::{Controller, ControllerFactory};
use quinn_proto::RttEstimator;

pub use flights::Flights;
pub use gauge::{Gauge, Path};
use model::{Micros, Model};
pub use pulse::{Beat, Owes, Pulse};

/// Makes the controller of each path of one connection. They keep one gauge.
#[derive(Debug)]
pub struct Factory {
    gauge: Arc<Gauge>,
    model: fn(u64) -> Model,
}

impl Factory {
    /// For an end that writes as its gauge says.
    #[must_use]
    pub fn metered(gauge: Arc<Gauge>) -> Self {
        Self { gauge, model: Model::new }
    }

    /// For an end that writes whatever its streams take.
    #[must_use]
    pub fn unmetered(gauge: Arc<Gauge>) -> Self {
        Self { gauge, model: Model::unmetered }
    }
}

impl ControllerFactory for Factory {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        let model = (self.model)(current_mtu.into());
        self.gauge.started(now, model.window(), current_mtu.into());
        Box::new(PathController { born: now, model, gauge: Arc::clone(&self.gauge) })
    }
}

/// Sends a small packet that asks for an acknowledgement. quinn has no call for it; what it sends is
/// MAX_DATA, with a limit one byte higher each time. `window`: what the connection's
/// [`quinn::TransportConfig::receive_window`] is.
pub fn ask_for_acknowledgement(connection: &quinn::Connection, window: u32) {
    connection.set_receive_window(window.into());
    connection.set_receive_window((window + 1).into());
}

/// The model with quinn's clock.
#[derive(Clone)]
struct PathController {
    born: Instant,
    model: Model,
    gauge: Arc<Gauge>,
}

impl PathController {
    fn path(&self) -> Path {
        Path {
            rate: self.model.rate() as u64,
            rtt: Duration::from_micros(self.model.recent_rtt()),
            loss_permille: (self.model.loss() * 1000.0) as u64,
        }
    }

    fn micros(&self, at: Instant) -> Micros {
        at.saturating_duration_since(self.born).as_micros() as Micros
    }
}

impl Controller for PathController {
    fn on_sent(&mut self, now: Instant, bytes: u64, _last: u64) {
        self.gauge.sent(now, bytes);
    }

    fn on_ack(&mut self, _now: Instant, sent: Instant, bytes: u64, _app_limited: bool, _rtt: &RttEstimator) {
        self.model.handle_acked(self.micros(sent), bytes);
        self.gauge.packet(sent, bytes);
    }

    fn on_end_acks(&mut self, now: Instant, in_flight: u64, app_limited: bool, _largest: Option<u64>) {
        self.model.handle_batch_end(self.micros(now), app_limited);
        self.gauge.acknowledged(now, self.model.window(), in_flight, app_limited, self.path());
    }

    /// A loss says what share has to be made up for, not that the path is full.
    fn on_congestion_event(&mut self, now: Instant, sent: Instant, _persistent: bool, lost_bytes: u64) {
        self.model.handle_lost(lost_bytes);
        self.gauge.lost(now, sent, lost_bytes);
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.model.handle_mtu(new_mtu.into());
        self.gauge.mtu(new_mtu.into());
    }

    fn window(&self) -> u64 {
        self.model.window() + self.gauge.beyond()
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(self.clone())
    }

    fn initial_window(&self) -> u64 {
        self.model.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}
