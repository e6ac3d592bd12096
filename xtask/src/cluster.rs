//! `cargo xtask cluster`: a real Kubernetes cluster for whoever wants to try something.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use nodestats_cluster as cluster;
use nodestats_cluster::{Config, Level, Version};

use crate::{install, process};

#[derive(Debug, Subcommand)]
pub(crate) enum Cluster {
    /// Starts it; where it runs already, says so.
    Up(Up),
    /// Imports an image (a docker-archive) into every node.
    Load {
        /// The archive.
        image: PathBuf,
        /// The cluster's name.
        #[arg(long, default_value_t = Config::default().name)]
        name: String,
    },
    /// Ends it, and leaves nothing behind.
    Down {
        /// Its name.
        #[arg(long, default_value_t = Config::default().name)]
        name: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Up {
    #[command(flatten)]
    which: Which,

    /// Prints the kubeconfig's path on standard output, and nothing else.
    #[arg(long)]
    print_kubeconfig: bool,

    /// A cluster that exists (kind, k3s, …): it is checked, and nothing is started.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["control_plane", "version", "nodes", "name", "network"])]
    kubeconfig: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Which {
    /// etcd and kube-apiserver only: no nodes, no root.
    #[arg(long, conflicts_with = "nodes")]
    control_plane: bool,

    /// Version of Kubernetes: 1.37.2 or 1.34.3.
    #[arg(long, default_value = Config::default().version.as_str(), value_parser = |text: &str| text.parse::<Version>())]
    version: Version,

    /// How many nodes.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=100))]
    nodes: u8,

    /// Its name; two clusters of different names and networks do not disturb each other.
    #[arg(long, default_value_t = Config::default().name)]
    name: String,

    /// The first three numbers of the nodes' network.
    #[arg(long, default_value_t = Config::default().network)]
    network: String,
}

impl From<Which> for Config {
    fn from(which: Which) -> Self {
        let nodes = usize::from(which.nodes);
        let level = if which.control_plane {
            Level::ControlPlane
        } else {
            Level::Full { nodes }
        };
        Self {
            name: which.name,
            version: which.version,
            level,
            network: which.network,
            tracing: false,
        }
    }
}

pub(crate) fn run(command: Cluster) -> anyhow::Result<()> {
    match command {
        Cluster::Up(up) => start(up),
        Cluster::Load { image, name } => {
            cluster::Cluster::running(&name)?.load(&image)?;
            println!("{} is on every node", image.display());
            Ok(())
        }
        Cluster::Down { name } => cluster::down(&name),
    }
}

fn start(up: Up) -> anyhow::Result<()> {
    let kubeconfig = if let Some(kubeconfig) = up.kubeconfig {
        let mut kubectl = Command::new("kubectl");
        kubectl
            .arg("--kubeconfig")
            .arg(&kubeconfig)
            .args(["get", "--raw", "/readyz"]);
        process::run(kubectl.stdout(std::process::Stdio::null()))
            .context("the cluster of that kubeconfig is not ready")?;
        kubeconfig
    } else {
        let config = Config::from(up.which);
        if config.level != Level::ControlPlane {
            install::cluster()?;
        }
        cluster::Cluster::up(&config)?.kubeconfig()
    };
    if up.print_kubeconfig {
        println!("{}", kubeconfig.display());
    } else {
        println!("ready: export KUBECONFIG={}", kubeconfig.display());
    }
    Ok(())
}
