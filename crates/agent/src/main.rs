//! The program `nodestats-agent`: arguments, and the loop of the library.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser;
use nodestats_agent::{Config, Membership, Server};
use nodestats_runtime::metrics::Registry;
use nodestats_runtime::telemetry::{Program, Protocols, Telemetry};
use nodestats_runtime::{Supervisor, directories, limits, logs};
use nodestats_wire::client::Fingerprint;

/// Samples this host and pushes what it sees to a nodestats server.
///
/// The node registers at its first push, and signs off when the agent is stopped; its history
/// stays on the server. While the server is away samples wait here, on disk too, and are sent, oldest
/// first, when it is back.
#[derive(Debug, Parser)]
#[command(
    name = "nodestats-agent",
    version,
    after_help = "Example, as nodestats token join prints it:\n  nodestats-agent --server https://192.168.2.1:8080 --fingerprint sha256:… --join nsj_…"
)]
struct Arguments {
    /// The server, such as `http://192.168.2.1:8080`.
    #[arg(long, env = "NODESTATS_SERVER", value_name = "URL")]
    server: String,

    /// PEM file of the authorities that sign the server's certificate [default: the system's].
    #[arg(long, env = "NODESTATS_CERTIFICATE_AUTHORITY", value_name = "FILE")]
    certificate_authority: Option<PathBuf>,

    /// Fingerprint of the server's certificate, as the server prints it where it has signed it itself:
    /// sha256:HEX. Who has that certificate is trusted, and nobody else.
    #[arg(
        long,
        env = "NODESTATS_FINGERPRINT",
        value_name = "FINGERPRINT",
        conflicts_with = "certificate_authority"
    )]
    fingerprint: Option<Fingerprint>,

    /// File of the token that the server knows this agent by; read again for each request.
    #[arg(long, env = "NODESTATS_SERVER_TOKEN_FILE", value_name = "FILE")]
    server_token_file: Option<PathBuf>,

    /// Token to join by, of `nodestats token join`: exchanged at the first start for one of this
    /// host's own, which is kept in the state directory and used from then on.
    #[arg(
        long,
        env = "NODESTATS_JOIN",
        value_name = "TOKEN",
        hide_env_values = true,
        conflicts_with = "server_token_file"
    )]
    join: Option<String>,

    /// Time between two samples, such as 10s or 1m.
    #[arg(long, env = "NODESTATS_INTERVAL", value_name = "TIME", default_value = "10s", value_parser = nodestats_agent::parse_interval)]
    interval: Duration,

    /// The node's address [default: the one that the route to the server uses].
    #[arg(long, env = "NODESTATS_NODE_IP", value_name = "IP")]
    node_ip: Option<IpAddr>,

    /// The node's name [default: the host's].
    #[arg(long, env = "NODESTATS_HOSTNAME", value_name = "NAME")]
    hostname: Option<String>,

    /// Where the host's / is mounted.
    #[arg(
        long,
        env = "NODESTATS_HOST_ROOT",
        value_name = "DIR",
        default_value = "/"
    )]
    host_root: PathBuf,

    /// Where the node's identity is kept [default: /var/lib/nodestats-agent as root, else nodestats-agent in
    /// the XDG state directory].
    #[arg(long, env = "NODESTATS_STATE_DIR", value_name = "DIR")]
    state_dir: Option<PathBuf>,

    /// Where samples wait on disk while the server is away [default: the state directory].
    #[arg(long, env = "NODESTATS_BUFFER_DIR", value_name = "DIR")]
    buffer_dir: Option<PathBuf>,

    /// MiB of samples that wait on disk while the server is away; the oldest are dropped beyond it. Without
    /// a disk at most 16 MiB wait, in memory.
    #[arg(
        long,
        env = "NODESTATS_BUFFER_MIB",
        value_name = "MIB",
        default_value_t = 64
    )]
    buffer_mib: u16,

    /// Keep the `MonitoredNode` of the Kubernetes node that this runs on; its spec says how the node
    /// is sampled [default: in a pod that is told its node's name].
    #[arg(long, env = "NODESTATS_KUBERNETES", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "true|false")]
    kubernetes: Option<bool>,

    /// In a cluster: the Node's name (`spec.nodeName`).
    #[arg(long, env = "NODESTATS_NODE_NAME", value_name = "NAME")]
    node_name: Option<String>,

    /// In a cluster: the Node's addresses (`status.hostIPs`).
    #[arg(
        long,
        env = "NODESTATS_NODE_IPS",
        value_name = "IP,…",
        value_delimiter = ','
    )]
    node_ips: Vec<IpAddr>,

    /// In a cluster: this pod, as NAMESPACE/NAME.
    #[arg(long, env = "NODESTATS_POD", value_name = "NAMESPACE/NAME")]
    pod: Option<String>,

    /// In a cluster: the service account's token, whose claims name the Node.
    #[arg(
        long,
        env = "NODESTATS_TOKEN_FILE",
        value_name = "FILE",
        default_value = "/var/run/secrets/kubernetes.io/serviceaccount/token"
    )]
    token_file: PathBuf,

    /// In a cluster: the `ConfigMap` whose `ca.crt` says whom to trust, as NAMESPACE/NAME.
    #[arg(
        long,
        env = "NODESTATS_CA_CONFIG_MAP",
        value_name = "NAMESPACE/NAME",
        conflicts_with = "certificate_authority"
    )]
    ca_config_map: Option<String>,

    /// Address of `/healthz`, `/readyz` and `/metrics` [default: none].
    #[arg(long, env = "NODESTATS_ADMIN_LISTEN", value_name = "ADDRESS")]
    admin_listen: Option<SocketAddr>,

    #[command(flatten)]
    logs: logs::Arguments,
}

impl Arguments {
    /// Which node of a cluster this is, where it is one.
    fn membership(&self) -> anyhow::Result<Option<Membership>> {
        let in_pod = std::env::var_os("KUBERNETES_SERVICE_HOST").is_some();
        let wanted = self
            .kubernetes
            .unwrap_or(in_pod && self.node_name.is_some());
        if !wanted {
            return Ok(None);
        }
        let node_name = self.node_name.clone();
        Ok(Some(Membership {
            node_name: node_name.context("in a cluster --node-name says which node this is")?,
            node_ips: self.node_ips.iter().map(ToString::to_string).collect(),
            pod: self.pod.clone(),
            token_file: self.token_file.clone(),
            ca_config_map: self.ca_config_map.clone(),
        }))
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    limits::raise_open_files();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    nodestats_runtime::exit(runtime.map_err(Into::into).and_then(|runtime| {
        runtime.block_on(async {
            let telemetry = Telemetry::start(Program {
                name: "nodestats-agent",
                protocols: Protocols::Http,
                logs: Some(arguments.logs.clone()),
                is_lasting: true,
                always_traced: false,
            });
            let result = run(arguments, &telemetry).await;
            telemetry.end().await;
            result
        })
    }))
}

async fn run(arguments: Arguments, telemetry: &Telemetry) -> anyhow::Result<()> {
    let shutdown = nodestats_runtime::shutdown_signal()?;
    let config = arguments.config(telemetry.registry().clone())?;
    let mut supervisor = Supervisor::default();
    let stop = supervisor.stop_token();
    supervisor.spawn("the agent", nodestats_agent::run(config, stop));
    supervisor.run(shutdown).await
}

impl Arguments {
    fn config(self, registry: Registry) -> anyhow::Result<Config> {
        let membership = self.membership()?;
        Ok(Config {
            server: Server::Url(self.server),
            certificate_authority: self.certificate_authority,
            fingerprint: self.fingerprint,
            server_token_file: self.server_token_file,
            join_token: self.join,
            interval: self.interval,
            node_ip: self.node_ip,
            hostname: self.hostname,
            host_root: self.host_root,
            state_dir: self
                .state_dir
                .unwrap_or_else(|| directories::state("nodestats-agent")),
            buffer_dir: self.buffer_dir,
            buffer_bytes: usize::from(self.buffer_mib) << 20,
            membership,
            admin: self.admin_listen,
            registry,
        })
    }
}
