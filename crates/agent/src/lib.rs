//! The agent: registers its node, samples it on a steady schedule, buffers, and pushes.
//!
//! Sampling and pushing are two loops with a bounded queue between them, so a slow or absent
//! server never shifts a sample. Writes no node but its own.

mod address;
mod backoff;
mod identity;
mod push;
mod queue;
mod sampler;

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use nodestats_collect::{HostFacts, HostRoot, Reader};
use nodestats_wire::client::Client;
use nodestats_wire::time::parse_span;
use nodestats_wire::v1::Registration;
use tokio_util::sync::CancellationToken;

use crate::push::Pusher;
use crate::queue::SharedQueue;
use crate::sampler::Sampler;

/// What an agent is told.
#[derive(Debug, Clone)]
pub struct Config {
    /// The server's URL.
    pub server: String,
    /// Time between two samples.
    pub interval: Duration,
    /// The node's address; by default the one that the route to the server uses.
    pub node_ip: Option<IpAddr>,
    /// The node's name; by default the host's.
    pub hostname: Option<String>,
    /// Where the host's `/` is.
    pub host_root: PathBuf,
    /// Where the node's identity is kept.
    pub state_dir: PathBuf,
    /// Bytes of samples that wait while the server is away.
    pub buffer_bytes: usize,
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

/// Runs until `stop`, then pushes what is left and signs the node off.
pub async fn run(config: Config, stop: CancellationToken) -> anyhow::Result<()> {
    let client = Client::new(&config.server, REQUEST_PATIENCE)?;
    let identity = identity::Identity::open(
        &config.state_dir,
        config.node_ip,
        config.hostname.as_deref(),
    )?;
    let root = HostRoot::new(&config.host_root);
    let reader = Reader::open(&root)?;
    let registration = registration(&config, &client, &identity, &root).await?;
    tracing::info!(
        uid = identity.uid(),
        ip = registration.ip,
        hostname = registration.hostname,
        server = config.server,
        "the agent starts",
    );
    let queue = Arc::new(SharedQueue::new(config.buffer_bytes));
    let sampler = Sampler::new(reader, config.interval, Arc::clone(&queue));
    let pusher = Pusher::new(client, registration, identity.uid().to_owned(), queue);
    // Both end with `stop` only; the pusher ends last, when the queue is empty or time is up.
    let (outcome, ()) = tokio::join!(sampler.run(stop.clone()), pusher.run(stop));
    outcome.context("the host cannot be sampled")
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
