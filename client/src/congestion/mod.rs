//! Congestion control of the capture client's QUIC connections: [`model`] says how many bytes may
//! be in flight, this module is its place in quinn. quinn paces at 1.25 × window / round trip by
//! itself. `docs/congestion.md` has the model in words.

mod model;
mod peak;
#[cfg(test)]
mod sim;
#[cfg(test)]
mod tests;

use std::any::Any;
use std::sync::Arc;
use std::time::Instant;

use quinn::congestion::{Controller, ControllerFactory};
use quinn_proto::RttEstimator;

use model::{Micros, Model};

/// Makes a controller for each new path.
#[derive(Debug, Default)]
pub(crate) struct Factory;

impl ControllerFactory for Factory {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        Box::new(PathController { born: now, model: Model::new(current_mtu.into()) })
    }
}

/// The model with quinn's clock.
#[derive(Clone)]
struct PathController {
    born: Instant,
    model: Model,
}

impl PathController {
    fn micros(&self, at: Instant) -> Micros {
        at.saturating_duration_since(self.born).as_micros() as Micros
    }
}

impl Controller for PathController {
    fn on_ack(&mut self, _now: Instant, sent: Instant, bytes: u64, _app_limited: bool, _rtt: &RttEstimator) {
        let sent = self.micros(sent);
        self.model.handle_acked(sent, bytes);
    }

    fn on_end_acks(&mut self, now: Instant, _in_flight: u64, app_limited: bool, _largest: Option<u64>) {
        let now = self.micros(now);
        self.model.handle_batch_end(now, app_limited);
    }

    /// A loss says what share has to be made up for, not that the path is full.
    fn on_congestion_event(&mut self, _now: Instant, _sent: Instant, _persistent: bool, lost_bytes: u64) {
        self.model.handle_lost(lost_bytes);
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.model.handle_mtu(new_mtu.into());
    }

    fn window(&self) -> u64 {
        self.model.window()
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
