//! The relay put together: what starts in which order, and why; what ends in which order.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::admin::{Ops, Shows};
use crate::admission::{Admission, Parts};
use crate::capability::{self, Verifier};
use crate::clock::Clock;
use crate::config::Config;
use crate::core::{BuildError, Client, CoreApi, Fetch};
use crate::fanout::Hub;
use crate::forwarding::Forwarding;
use crate::ingress::{BindError, Bound, Ingress, Shared};
use crate::readiness::Readiness;
use crate::staging::{self, KeyError, SealKey, Staging, StdDisk};
use crate::telemetry::Metrics;

/// How long what is in flight may take to finish when the relay stops.
pub const DRAIN: Duration = Duration::from_secs(10);

/// Why the relay can't start. No text holds a path, an address or a secret (contract C10).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The seal key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The staging directory.
    #[error(transparent)]
    Staging(#[from] staging::OpenError),
    /// The core's address or trust anchors.
    #[error(transparent)]
    Core(#[from] BuildError),
    /// Keys for capabilities.
    #[error(transparent)]
    Capability(#[from] capability::SetupError),
    /// The public listeners.
    #[error(transparent)]
    Ingress(#[from] BindError),
    /// The ops listener.
    #[error("listen.ops can't be bound: {}", .0.kind())]
    Ops(io::Error),
}

/// Where a relay listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Addresses {
    /// `listen.public`: TCP and UDP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub public: Option<SocketAddr>,
    /// `listen.plain`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plain: Option<SocketAddr>,
    /// `listen.ops`.
    pub ops: SocketAddr,
}

/// How a relay ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// Connections and sessions cut at the drain's deadline.
    pub cut: usize,
}

/// A relay that is bound and not yet running.
pub struct Relay {
    addresses: Addresses,
    ingress: Bound,
    ops: Ops,
    forwarding: Option<Forwarding>,
    staging: Staging,
    hub: Hub,
    admission: Admission,
    verifier: Verifier,
    readiness: Readiness,
    recovered: Vec<staging::Meta>,
    config: Config,
}

impl Relay {
    /// Binds everything. The order matters:
    ///
    /// 1. staging first: what the disk holds decides whether there is a relay at all;
    /// 2. the core and the keys: nothing is fetched yet, a core that is away stops no start;
    /// 3. fan-out and admission, which join the two;
    /// 4. listeners last, so that nobody is let in before there is somebody to answer.
    ///
    /// # Errors
    /// [`StartError`]; nothing is left running then.
    pub async fn bind(config: Config, clock: Clock) -> Result<Self, StartError> {
        let metrics = Metrics::new();
        let directory = config.staging.directory.clone();
        let disk = StdDisk::open(&directory).map_err(staging::OpenError::Disk)?;
        let key = SealKey::load_or_create(&config.staging.seal_key_file, &directory, &clock)?;
        let (staging, recovered) =
            Staging::open(Arc::new(disk), &key, &config.staging, &config.limits, clock.clone(), metrics.clone())?;
        if !recovered.is_empty() {
            tracing::info!(component = "staging", chunks = recovered.len(), "going on with what was staged before");
        }

        let client = Client::new(config.core.as_ref().and_then(|core| core.ca_file.as_deref()))?;
        let core = match &config.core {
            Some(core) => Some(CoreApi::new(core, &client, clock.clone(), metrics.clone())?),
            None => None,
        };
        let fetch = Fetch::new(&client, config.core.as_ref(), &config.capability, clock.clone())?;
        let verifier = Verifier::new(&config.capability, fetch, clock.clone(), metrics.clone())?;

        let node = key.node();
        let hub = Hub::new(&config.fanout, &config.limits, &node, clock.clone(), metrics.clone());
        let parts = Parts {
            verifier: verifier.clone(),
            core: core.clone(),
            staging: staging.clone(),
            hub,
            clock: clock.clone(),
            metrics: metrics.clone(),
        };
        let (hub, admission) = (parts.hub.clone(), Admission::new(parts, &config));
        let readiness = Readiness::new(&config, core.clone(), verifier.clone(), staging.clone());

        let shared = Shared {
            admission: admission.clone(),
            node: node.into(),
            clock: clock.clone(),
            metrics: metrics.clone(),
            ready: readiness.drop_in(),
            core_configured: core.is_some(),
            max_chunk: config.staging.max_chunk,
            reset_key: key.reset_key()?,
        };
        let ingress = Ingress::bind(&config.listen, &config.tls, &config.limits, shared)?;
        let shows = Shows { metrics: readiness.metrics(metrics), status: readiness.status(), ready: readiness.ops() };
        let ops = Ops::bind(config.listen.ops, shows).await.map_err(StartError::Ops)?;
        let addresses =
            Addresses { public: ingress.public, plain: ingress.plain, ops: ops.local_addr().map_err(StartError::Ops)? };
        let forwarding = core.map(|core| Forwarding::new(core, staging.clone(), clock));
        Ok(Self {
            addresses,
            ingress,
            ops,
            forwarding,
            staging,
            hub,
            admission,
            verifier,
            readiness,
            recovered,
            config,
        })
    }

    /// Where it listens: what port 0 became.
    #[must_use]
    pub const fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// Runs until `shutdown`. Then: no new work, what is in flight gets [`DRAIN`], forwarding goes
    /// on meanwhile, the ops listener ends last.
    pub async fn run(self, shutdown: CancellationToken) -> Outcome {
        // Ends with this function: nothing outlives it.
        let mut background = JoinSet::new();
        let (ops_end, forwarding_end) = (CancellationToken::new(), CancellationToken::new());
        // Before a full disk is read: who asks hears that the relay lives and is starting.
        background.spawn(self.ops.serve(ops_end.clone()));
        self.admission.show_again(&self.recovered, &self.config.fanout).await;
        drop(self.recovered);
        self.readiness.until(shutdown.clone());
        background.spawn(self.staging.clone().expire());
        background.spawn(self.hub.let_go_of_quiet());
        let within = self.config.fanout.reauthorize_every;
        let verifier = self.verifier;
        background.spawn(async move { verifier.poll_revocations(within).await });
        let admission = self.admission;
        background.spawn(async move { admission.reauthorize().await });
        let forwarding = self.forwarding.map(|forwarding| tokio::spawn(forwarding.run(forwarding_end.clone())));

        let drained = self.ingress.serve(shutdown, DRAIN).await;
        // What ended attempts had in memory goes to the disk, or their clients would send it again.
        let _ = tokio::time::timeout(DRAIN, self.staging.flushed()).await;
        forwarding_end.cancel();
        if let Some(forwarding) = forwarding {
            let stop = forwarding.abort_handle();
            if tokio::time::timeout(DRAIN, forwarding).await.is_err() {
                // Its chunks are staged; the next start goes on with them.
                stop.abort();
            }
        }
        ops_end.cancel();
        background.shutdown().await;
        Outcome { cut: drained.cut }
    }
}
