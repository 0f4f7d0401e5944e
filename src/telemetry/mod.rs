//! What the relay says about itself: metrics on the ops listener and the log. Names and labels
//! are in [`names`]; no label ever holds an identifier (promise 7).

use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;

pub mod capability;
pub mod core;
pub mod fanout;
pub mod ingress;
pub mod names;
pub mod staging;

/// Every metric of the process. Cheap to clone.
#[derive(Clone)]
pub struct Metrics(Arc<Families>);

/// The families, by subsystem.
pub struct Families {
    registry: Mutex<Registry>,
    /// Tokens and what they are checked with.
    pub capability: capability::Capability,
    /// Calls to the core.
    pub core: core::Core,
    /// Contacts and windows.
    pub fanout: fanout::Fanout,
    /// Connections and requests.
    pub ingress: ingress::Ingress,
    /// What is held.
    pub staging: staging::Staging,
}

impl Metrics {
    /// Registers every family.
    #[must_use]
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix(names::PREFIX);
        let capability = capability::Capability::new(&mut registry);
        let core = core::Core::new(&mut registry);
        let fanout = fanout::Fanout::new(&mut registry);
        let ingress = ingress::Ingress::new(&mut registry);
        let staging = staging::Staging::new(&mut registry);
        Self(Arc::new(Families { registry: Mutex::new(registry), capability, core, fanout, ingress, staging }))
    }

    /// OpenMetrics text.
    #[must_use]
    pub fn text(&self) -> String {
        let mut out = String::new();
        // Writing to a String can't fail.
        let _ = encode(&mut out, &self.0.registry.lock().unwrap_or_else(PoisonError::into_inner));
        out
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl std::ops::Deref for Metrics {
    type Target = Families;
    fn deref(&self) -> &Families {
        &self.0
    }
}
