//! What the relay says of itself in one word or one table: to probes, to the drop-in route, and
//! to `waystation status`.

use std::sync::{Arc, OnceLock};

use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::admin;
use crate::capability::Verifier;
use crate::config::Config;
use crate::core::{CoreApi, Reach};
use crate::ingress::Ready;
use crate::proto::ledger::Reason;
use crate::staging::Staging;
use crate::telemetry::Metrics;

/// From this share of the room on it counts as full: what is left is too little for many chunks,
/// and since none fits exactly, it is never used up.
const PRESSURE: f32 = 0.99;

/// What readiness looks at. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Readiness {
    switch: bool,
    identity: bool,
    region: bool,
    core: Option<CoreApi>,
    verifier: Verifier,
    staging: Staging,
    stopping: Arc<OnceLock<CancellationToken>>,
}

/// `/readyz`.
#[derive(Serialize)]
struct Ops {
    status: &'static str,
    relay: &'static str,
    core: &'static str,
    staging: &'static str,
    capabilities: &'static str,
}

/// `/status`.
#[derive(Serialize)]
struct Status {
    ready: Ops,
    #[serde(skip_serializing_if = "Option::is_none")]
    what_to_do: Option<&'static str>,
    waiting: Vec<Waiting>,
    next_expiry_seconds: Option<u64>,
}

#[derive(Serialize)]
struct Waiting {
    class: &'static str,
    reason: &'static str,
    chunks: u64,
    bytes: u64,
    oldest_seconds: u64,
    what_to_do: &'static str,
}

impl Readiness {
    pub(crate) fn new(config: &Config, core: Option<CoreApi>, verifier: Verifier, staging: Staging) -> Self {
        Self {
            switch: config.relay.ready,
            identity: !config.relay.id.is_empty(),
            region: !config.relay.region.is_empty(),
            core,
            verifier,
            staging,
            stopping: Arc::default(),
        }
    }

    /// From now on the relay may be ready, and from `shutdown` on it is not, whatever the rest says.
    /// Once; later calls change nothing.
    pub(crate) fn until(&self, shutdown: CancellationToken) {
        let _ = self.stopping.set(shutdown);
    }

    /// For the ops listener: "can take bytes". With the core away that is so when capabilities
    /// are verified here.
    pub(crate) fn ops(&self) -> admin::Readiness {
        let this = self.clone();
        Arc::new(move || {
            let ready = this.words();
            (ready.status != "not_ready", json(&ready))
        })
    }

    /// For `GET /health/ready` (contract B.2).
    pub(crate) fn drop_in(&self) -> Arc<dyn Fn() -> Ready + Send + Sync> {
        let this = self.clone();
        Arc::new(move || {
            let temp_staging = match this.disk() {
                "unusable" => "unavailable",
                "full" => "pressure",
                _ => "ok",
            };
            let uploads = match (temp_staging, this.core.is_some()) {
                ("unavailable", _) => "storage_unavailable",
                ("pressure", _) => "temp_staging_pressure",
                (_, false) => "core_unconfigured",
                _ => "ready",
            };
            Ready {
                uploads,
                core: if this.core.is_some() { "configured" } else { "unconfigured" },
                temp_staging,
                relay_identity_configured: this.identity,
                region_configured: this.region,
                ready: this.switch && uploads == "ready",
            }
        })
    }

    /// The metrics' text, with the gauges of what is held brought up to date.
    pub(crate) fn metrics(&self, metrics: Metrics) -> admin::Text {
        let staging = self.staging.clone();
        Arc::new(move || {
            staging.refresh_metrics();
            metrics.text()
        })
    }

    /// What waits, for `waystation status`.
    pub(crate) fn status(&self) -> admin::Text {
        let this = self.clone();
        Arc::new(move || {
            let waiting = this.staging.waiting().into_iter().map(|of| Waiting {
                class: of.class.as_str(),
                reason: of.reason.as_str(),
                chunks: of.chunks,
                bytes: of.bytes,
                oldest_seconds: of.oldest_s,
                what_to_do: what_to_do(of.reason),
            });
            let ready = this.words();
            json(&Status {
                what_to_do: mend(&ready),
                ready,
                waiting: waiting.collect(),
                next_expiry_seconds: this.staging.next_expiry_s(),
            })
        })
    }

    fn words(&self) -> Ops {
        let (relay, core, staging) = (self.relay(), self.core(), self.disk());
        let local = self.verifier.verifies_locally();
        let status = status(relay, core, staging, local);
        let capabilities = if local { "verified_here" } else { "asked_of_core" };
        Ops { status, relay, core: core.word(), staging, capabilities }
    }

    fn relay(&self) -> &'static str {
        let Some(stopping) = self.stopping.get() else { return "starting" };
        if stopping.is_cancelled() {
            "draining"
        } else if self.switch {
            "serving"
        } else {
            "switched_off"
        }
    }

    fn core(&self) -> Core {
        let Some(core) = &self.core else { return Core::Unconfigured };
        let reach = *core.reach().borrow();
        match reach {
            Reach::Answers => Core::Answers,
            Reach::Away { .. } if core.away_for().is_some_and(|time| !time.is_zero()) => Core::Away,
            Reach::Away { .. } => Core::MayBeBack,
            Reach::Unknown => Core::Unknown,
        }
    }

    fn disk(&self) -> &'static str {
        if !self.staging.usable() {
            "unusable"
        } else if self.staging.pressure()[0] >= PRESSURE {
            "full"
        } else {
            "ok"
        }
    }
}

/// What is known of the core.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Core {
    Unconfigured,
    Unknown,
    Answers,
    Away,
    /// It was away and the back-off is over: the next call tells.
    MayBeBack,
}

impl Core {
    const fn word(self) -> &'static str {
        match self {
            Self::Unconfigured => "unconfigured",
            Self::Unknown | Self::MayBeBack => "unknown",
            Self::Answers => "answers",
            Self::Away => "away",
        }
    }
}

/// Whether bytes can be taken. A relay that must ask the core is not ready while the core is away,
/// but as soon as the next call may go: without traffic nobody would find the core back.
fn status(relay: &str, core: Core, staging: &str, local: bool) -> &'static str {
    let takes = relay == "serving" && staging == "ok" && core != Core::Unconfigured && (core != Core::Away || local);
    match core {
        _ if !takes => "not_ready",
        Core::Away | Core::MayBeBack => "degraded",
        _ => "ready",
    }
}

/// What an operator does about a relay that is not ready, or not wholly.
fn mend(ready: &Ops) -> Option<&'static str> {
    Some(match (ready.relay, ready.staging, ready.core, ready.capabilities) {
        ("starting", ..) => "It shows again what was staged before. It passes by itself.",
        ("draining", ..) => "It stops. What is staged goes on at the next start.",
        (_, "unusable", ..) => "The staging disk takes no bytes. Check staging.directory: is it full, read-only, gone?",
        (_, "full", ..) => {
            "The room is full: offers are refused until the core takes chunks. See what waits below; else raise staging.quota."
        }
        (_, _, "unconfigured", _) => "No core is configured: set core.url and core.service_token_file.",
        ("switched_off", ..) => "relay.ready is false: probes keep traffic away until it is true.",
        (_, _, "away", "asked_of_core") => {
            "The core is away and must be asked about each capability: nothing is taken. capability.jwks_url or jwks_file lets the relay verify them itself."
        }
        _ => return None,
    })
}

/// What an operator does about chunks that wait for this reason.
const fn what_to_do(reason: Reason) -> &'static str {
    match reason {
        Reason::CoreUnreachable => {
            "Nothing is lost. Check the core and the way to it; chunks go out by themselves when it answers."
        }
        Reason::CoreLimited => {
            "The core limits this relay's calls. If it lasts, ask the core's operator for a larger limit."
        }
        Reason::ServiceToken => "The core does not accept this relay. Check core.service_token_file and core.url.",
        Reason::AwaitingCapability => {
            "Their capability ran out. Any new capability for their stream releases them; ask the recorder or the account's holder to reconnect."
        }
        Reason::AccountQuota => {
            "The account's storage at the core is full. It is tried every ten minutes; the account's holder must make room."
        }
        Reason::Unsettled => "The core may have them. Someone with the account's rights reconciles with the core.",
        Reason::Queued => "They wait for their turn. If it lasts, the link to the core is too thin for what comes in.",
    }
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relay_is_ready_when_it_can_take_bytes() {
        let of = |core, local| status("serving", core, "ok", local);
        assert_eq!((of(Core::Answers, false), of(Core::Unknown, false)), ("ready", "ready"));
        assert_eq!((of(Core::Away, true), of(Core::Away, false)), ("degraded", "not_ready"));
        assert_eq!((of(Core::MayBeBack, true), of(Core::MayBeBack, false)), ("degraded", "degraded"));
        assert_eq!(of(Core::Unconfigured, true), "not_ready");
        for (relay, staging) in
            [("draining", "ok"), ("switched_off", "ok"), ("serving", "full"), ("serving", "unusable")]
        {
            assert_eq!(status(relay, Core::Answers, staging, true), "not_ready", "{relay} {staging}");
        }
    }
}
