//! The controller: observes Nodes, `MonitoredNode`s and what the API knows, decides what is true of
//! each node, and applies it. Keeps no samples, and adds no finalizer.
//!
//! One of several replicas acts, the one that holds the Lease. Freshness comes from the API in one
//! call for all nodes, never from heartbeats in objects; at rest nothing but the Lease is written.

mod apply;
mod compare;
mod decide;
mod defaults;
mod events;
mod freshness;
mod lead;
mod lease;
mod metrics;
mod observe;
mod pods;
mod serving;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use kube::Client;
use nodestats_runtime::metrics::Registry;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use metrics::Metrics;
pub use serving::{Lifetimes, Serving};

/// What a controller is told.
#[derive(Debug, Clone)]
pub struct Config {
    /// URL of the API.
    pub api: String,
    /// File of the token by which the API knows the controller; none where nobody is asked.
    pub api_token_file: Option<PathBuf>,
    /// The namespace of the Lease, where this program runs.
    pub namespace: String,
    /// Who this replica is: its pod's name.
    pub identity: String,
    /// Between two questions to the API.
    pub poll: Duration,
    /// A node whose last sample is older than this, and than six of its intervals, is Lost.
    pub lost_after: Duration,
    /// A Node that has had no agent for so long is told about.
    pub agent_patience: Duration,
    /// The cluster's defaults: part of a spec.
    pub defaults: serde_json::Value,
    /// Labels of the Nodes that are to have an agent; all, where there are none.
    pub agent_nodes: BTreeMap<String, String>,
    /// Labels of pods that the API is told with the pods; `None` where it is told of no pods. A name
    /// that ends with `*` is a beginning.
    pub pod_labels: Option<Vec<String>>,
    /// How the API is reached in the cluster; `None` where that is no affair of the controller.
    pub serving: Option<Serving>,
    /// Where `/healthz`, `/readyz` and `/metrics` are.
    pub admin: std::net::SocketAddr,
    /// Where it counts.
    pub registry: Registry,
}

/// How long one request to either API may take. Watches are not requests of this kind.
const REQUEST_PATIENCE: Duration = Duration::from_secs(10);

/// Runs until `stop`, or until the Lease is lost, which is an error: who acts must hold it.
pub async fn run(mut config: Config, stop: CancellationToken) -> anyhow::Result<()> {
    let client = client().await?;
    config.defaults = defaults::canonical(&config.defaults)?;
    let metrics = Arc::new(Metrics::new(&config.registry));
    let listener = TcpListener::bind(config.admin)
        .await
        .with_context(|| format!("cannot listen on {}", config.admin))?;
    let admin_stop = CancellationToken::new();
    let admin = nodestats_runtime::admin::serve(
        listener,
        Arc::clone(&metrics) as Arc<dyn nodestats_runtime::admin::Admin>,
        config.registry.clone(),
        admin_stop.clone(),
    );
    // Probes are answered until the lease is given up.
    let work = async {
        let outcome = work(client, config, metrics, stop).await;
        admin_stop.cancel();
        outcome
    };
    let (outcome, ()) = tokio::join!(work, admin);
    outcome
}

/// A watch begins anew after this many seconds, so that one that hangs is found soon.
const WATCH_SECONDS: u32 = 55;

async fn client() -> anyhow::Result<Client> {
    nodestats_runtime::tls::use_ring();
    let mut config = kube::Config::infer()
        .await
        .context("no cluster: neither a pod's service account nor a kubeconfig was found")?;
    // Failures are counted and tried again here, not hidden in the client.
    config.default_retry = false;
    config.connect_timeout = Some(REQUEST_PATIENCE);
    config.read_timeout = Some(Duration::from_secs(u64::from(WATCH_SECONDS) + 10));
    Ok(Client::try_from(config)?)
}

async fn work(
    client: Client,
    config: Config,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let mut lease = lease::Lease::new(client.clone(), &config.namespace, &config.identity);
    tokio::select! {
        acquired = lease.acquire(&metrics) => acquired,
        () = stop.cancelled() => return Ok(()),
    }
    metrics.set_leader();
    tracing::info!(identity = config.identity, "leading");
    let lead = lead::run(client, &config, &metrics, stop.clone());
    let outcome = tokio::select! {
        result = lead => result,
        error = lease.hold(&metrics) => Err(error),
    };
    // Whoever waits need not wait for it to expire.
    lease.release().await;
    outcome
}
