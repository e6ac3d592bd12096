//! The program `nodestats-agent`: arguments, and the loop of the library.

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use nodestats_agent::Config;
use nodestats_runtime::{Supervisor, directories, limits, logs};

/// Samples this host and pushes what it sees to a nodestats server.
///
/// The node registers at its first push, and signs off when the agent is stopped; its history
/// stays on the server. While the server is away samples wait in memory and are sent, oldest
/// first, when it is back.
#[derive(Debug, Parser)]
#[command(
    name = "nodestats-agent",
    version,
    after_help = "Example:\n  nodestats-agent --server http://192.168.2.1:8080"
)]
struct Arguments {
    /// The server, such as `http://192.168.2.1:8080`.
    #[arg(long, env = "NODESTATS_SERVER", value_name = "URL")]
    server: String,

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

    /// Where the node's identity is kept [default: /var/lib/nodestats-agent as root, else
    /// nodestats-agent in the XDG state directory].
    #[arg(long, env = "NODESTATS_STATE_DIR", value_name = "DIR")]
    state_dir: Option<PathBuf>,

    /// MiB of samples that wait while the server is away; the oldest are dropped beyond it.
    #[arg(
        long,
        env = "NODESTATS_BUFFER_MIB",
        value_name = "MIB",
        default_value_t = 16
    )]
    buffer_mib: u16,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    logs::init();
    limits::raise_open_files();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    nodestats_runtime::exit(runtime.map_err(Into::into).and_then(|runtime| {
        runtime.block_on(async {
            let mut supervisor = Supervisor::default();
            let stop = supervisor.stop_token();
            supervisor.spawn("the agent", nodestats_agent::run(arguments.into(), stop));
            supervisor.run(nodestats_runtime::shutdown_signal()).await
        })
    }))
}

impl From<Arguments> for Config {
    fn from(arguments: Arguments) -> Self {
        Self {
            server: arguments.server,
            interval: arguments.interval,
            node_ip: arguments.node_ip,
            hostname: arguments.hostname,
            host_root: arguments.host_root,
            state_dir: arguments
                .state_dir
                .unwrap_or_else(|| directories::state("nodestats-agent")),
            buffer_bytes: usize::from(arguments.buffer_mib) << 20,
        }
    }
}
