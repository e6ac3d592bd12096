//! The agent: registers its node, samples it on a steady schedule, buffers, and pushes.
//!
//! Sampling and pushing are two loops with a bounded queue between them, so a slow or absent
//! server never shifts a sample. In a cluster a third loop keeps the node's `MonitoredNode`. Writes
//! no node but its own.

mod address;
mod backoff;
mod deltas;
mod identity;
mod join;
mod kubernetes;
mod metrics;
mod pressure;
mod push;
mod queue;
mod sampler;
mod settings;
mod spool;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use nodestats_collect::{HostFacts, HostRoot, Reader};
use nodestats_runtime::metrics::Registry;
use nodestats_wire::client::{Client, Fingerprint};
use nodestats_wire::time::parse_span;
use nodestats_wire::v1::Registration;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use address::own_address;
pub use kubernetes::Membership;

use crate::metrics::Metrics;
use crate::push::{Joining, Pusher};
use crate::queue::SharedQueue;
use crate::sampler::Sampler;
use crate::settings::Settings;
use crate::spool::Keeper;

/// What an agent is told.
#[derive(Debug, Clone)]
pub struct Config {
    /// The server.
    pub server: Server,
    /// PEM file of the authorities that sign the server's certificate; by default the system's.
    pub certificate_authority: Option<PathBuf>,
    /// The fingerprint of the server's certificate, where no authority has signed it.
    pub fingerprint: Option<Fingerprint>,
    /// File of the token by which the server knows this agent; read again for each request. None where
    /// the server asks nobody.
    pub server_token_file: Option<PathBuf>,
    /// The token by which the agent joins at its first start; later it has one of its own.
    pub join_token: Option<String>,
    /// Time between two samples; in a cluster until the node's spec is known.
    pub interval: Duration,
    /// The node's address; by default the one that the route to the server uses.
    pub node_ip: Option<IpAddr>,
    /// The node's name; by default the host's.
    pub hostname: Option<String>,
    /// Where the host's `/` is.
    pub host_root: PathBuf,
    /// Where the node's identity is kept.
    pub state_dir: PathBuf,
    /// Where samples wait on disk; by default the state directory.
    pub buffer_dir: Option<PathBuf>,
    /// Bytes of samples that wait while the server is away.
    pub buffer_bytes: usize,
    /// Which node of a cluster this is; `None` outside of clusters.
    pub membership: Option<Membership>,
    /// Address of `/healthz`, `/readyz` and `/metrics`; none by default.
    pub admin: Option<SocketAddr>,
    /// Where it counts.
    pub registry: Registry,
}

/// How the server is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Server {
    /// By its URL.
    Url(String),
    /// By its own socket, on this machine.
    Socket(PathBuf),
}

impl Server {
    fn client(&self) -> Result<Client, nodestats_wire::client::Error> {
        match self {
            Self::Url(url) => Client::new(url, REQUEST_PATIENCE),
            Self::Socket(path) => Client::at_socket(path, REQUEST_PATIENCE),
        }
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Url(url) => f.write_str(url),
            Self::Socket(path) => write!(f, "{}", path.display()),
        }
    }
}

/// Reads the time between two samples, such as `10s`: from 200 ms, below which a pass over many
/// processes would not be done, to an hour. The error is a sentence for a person.
pub fn parse_interval(text: &str) -> Result<Duration, String> {
    let interval = parse_span(text).map_err(|error| error.to_string())?;
    let allowed = Duration::from_millis(200)..=Duration::from_hours(1);
    if allowed.contains(&interval) {
        Ok(interval)
    } else {
        Err("an interval is from 200ms to 1h".to_owned())
    }
}

/// How long one request to the server may take.
const REQUEST_PATIENCE: Duration = Duration::from_secs(10);

/// Runs until `stop`, then pushes what is left and says good-bye.
pub async fn run(config: Config, stop: CancellationToken) -> anyhow::Result<()> {
    let stop = stop.child_token();
    let client = config.server.client()?.with_files(
        config.certificate_authority.as_deref(),
        config.fingerprint,
        config.server_token_file.as_deref(),
    )?;
    let root = HostRoot::new(&config.host_root);
    let reader = Reader::open(&root)?;
    let queue = Arc::new(SharedQueue::new(config.buffer_bytes));
    let metrics = Arc::new(Metrics::new(&config.registry, &queue));
    let (settings_tx, settings) = watch::channel(Settings::new(config.interval));
    let (observed_tx, observed) = watch::channel(None);
    let sampler = Sampler::new(
        reader,
        settings,
        observed_tx,
        Arc::clone(&queue),
        Arc::clone(&metrics),
    );
    let admin = admin(&config, &metrics, &stop).await?;
    // The pusher ends after the sampler, so that a sample under way at the end is sent too.
    let no_more_samples = CancellationToken::new();
    let sampling = async {
        let outcome = sampler.run(stop.clone()).await;
        no_more_samples.cancel();
        outcome
    };
    let spooled = Arc::clone(&queue);
    let buffer_dir = config.buffer_dir.as_ref().unwrap_or(&config.state_dir);
    let keeper =
        async |uid: &str| Keeper::open(buffer_dir, uid, config.buffer_bytes, &spooled).await;
    let Some(membership) = config.membership.clone() else {
        let identity = identity::Identity::open(
            &config.state_dir,
            config.node_ip,
            config.hostname.as_deref(),
        )?;
        let registration = registration(&config, &client, &identity, &root).await?;
        tracing::info!(
            uid = identity.uid(),
            ip = registration.ip,
            hostname = registration.hostname,
            server = %config.server,
            "the agent starts",
        );
        let (client, joiner) = joined(&config, client, &registration.hostname)?;
        let joining = Joining::ByItself(Box::new(registration), joiner.map(Box::new));
        let uid = identity.uid().to_owned();
        let keeper = keeper(&uid).await;
        let pusher = Pusher::new(client, joining, uid, queue, keeper, metrics);
        // The pusher ends last, when the queue is empty or time is up.
        let (outcome, (), ()) = tokio::join!(sampling, pusher.run(no_more_samples.clone()), admin);
        return outcome.context("the host cannot be sampled");
    };
    metrics.must_join();
    let claims = membership.claims()?;
    tracing::info!(
        uid = claims.node_uid,
        node = membership.node_name,
        server = %config.server,
        "the agent starts",
    );
    let server = client.clone();
    let pusher = Pusher::new(
        client,
        Joining::ByController,
        claims.node_uid.clone(),
        queue,
        keeper(&claims.node_uid).await,
        Arc::clone(&metrics),
    );
    let facts = HostFacts::read(&root);
    let map = membership.ca_config_map.clone();
    // Until the last sample is sent.
    let trusting = async {
        if let Some(map) = map {
            Box::pin(kubernetes::trust::follow(
                &map,
                server,
                no_more_samples.clone(),
            ))
            .await;
        }
    };
    let member = kubernetes::Member::new(membership, claims, facts, settings_tx, observed, metrics);
    // Where the node became another one everything else ends as at a signal.
    let membership = async {
        let outcome = member.run(stop.clone()).await;
        stop.cancel();
        outcome
    };
    let (outcome, (), joined, (), ()) = tokio::join!(
        sampling,
        pusher.run(no_more_samples.clone()),
        membership,
        trusting,
        admin,
    );
    joined?;
    outcome.context("the host cannot be sampled")
}

/// The client with the agent's own token, where a join token brings it in or has brought it in before.
fn joined(
    config: &Config,
    client: Client,
    hostname: &str,
) -> anyhow::Result<(Client, Option<join::Joiner>)> {
    if config.server_token_file.is_some() {
        return Ok((client, None));
    }
    let name = identity::file_name("token", config.node_ip, config.hostname.as_deref());
    let kept = config.state_dir.join(name);
    let join_token = config.join_token.as_deref();
    Ok(
        match join::open(kept, client.clone(), join_token, hostname)? {
            Some((token, joiner)) => (client.with_token(&token)?, joiner),
            None => (client, None),
        },
    )
}

/// The listener for whoever operates this agent, where one is wanted.
async fn admin(
    config: &Config,
    metrics: &Arc<Metrics>,
    stop: &CancellationToken,
) -> anyhow::Result<impl Future<Output = ()> + use<>> {
    let listener = match config.admin {
        Some(address) => Some(
            TcpListener::bind(address)
                .await
                .with_context(|| format!("cannot listen on {address}"))?,
        ),
        None => None,
    };
    let (metrics, stop) = (Arc::clone(metrics), stop.clone());
    let registry = config.registry.clone();
    Ok(async move {
        if let Some(listener) = listener {
            nodestats_runtime::admin::serve(listener, metrics, registry, stop).await;
        }
    })
}

async fn registration(
    config: &Config,
    client: &Client,
    identity: &identity::Identity,
    root: &HostRoot,
) -> anyhow::Result<Registration> {
    let facts = HostFacts::read(root);
    let hostname = config.hostname.clone().unwrap_or(facts.hostname);
    let (server, port) = client.host_and_port();
    let ip = match config.node_ip {
        Some(ip) => ip,
        None => address::towards(&server, port).await,
    };
    Ok(Registration {
        ip: ip.to_string(),
        hostname,
        uid: Some(identity.uid().to_owned()),
        kernel: facts.kernel,
        os: facts.os,
        architecture: Some(facts.architecture),
        agent_version: Some(env!("CARGO_PKG_VERSION").to_owned()),
        interval_seconds: Some(config.interval.as_secs_f64().ceil() as u32),
    })
}
