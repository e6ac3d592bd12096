//! A real Kubernetes cluster on one Linux machine, without Docker and without an image registry.
//!
//! Two levels: the *control plane* (etcd and kube-apiserver on loopback, no root), and the *full
//! cluster*, in which each node is a network, PID, mount and UTS namespace with a containerd, a
//! kubelet and a kube-proxy of its own. Contributors start one with `cargo xtask cluster`, tests
//! with [`Cluster`]; nothing here ships. `NetworkPolicy` objects are accepted and not enforced: the
//! bridge CNI plugin knows nothing of them.

mod addons;
mod binaries;
mod certificates;
mod control_plane;
mod images;
mod network;
mod nodes;
mod process;
mod state;

use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context as _, bail};

pub use binaries::{Binaries, helm, jaeger};
pub use images::{Image, build_image};
pub use network::missing_programs;
pub use state::{down, sweep};

use crate::control_plane::Endpoint;
use crate::network::Network;
use crate::state::State;

/// A version of Kubernetes that can be built here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Version {
    /// 1.34.3, the oldest that is supported.
    V1_34,
    /// 1.37.2.
    V1_37,
}

impl Version {
    /// All of them, the newest first.
    pub const ALL: [Self; 2] = [Self::V1_37, Self::V1_34];

    /// Without the leading `v`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V1_34 => "1.34.3",
            Self::V1_37 => "1.37.2",
        }
    }
}

impl FromStr for Version {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|version| version.as_str() == text)
            .ok_or_else(|| format!("{text:?} is not a version that is built here: 1.37.2, 1.34.3"))
    }
}

/// How much of a cluster there is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// etcd and kube-apiserver.
    ControlPlane,
    /// Everything, with so many nodes.
    Full {
        /// How many nodes.
        nodes: usize,
    },
}

/// What cluster is wanted. Two clusters of different names and networks do not disturb each other.
#[derive(Debug, Clone)]
pub struct Config {
    /// Its name, at most nine lowercase letters, digits and dashes: interfaces, namespaces and
    /// cgroups are called after it.
    pub name: String,
    /// The version of Kubernetes.
    pub version: Version,
    /// How much of it.
    pub level: Level,
    /// The first three numbers of the nodes' network of 256 addresses, such as `192.168.2`.
    pub network: String,
    /// The API server traces requests, as one in production may: it puts its own `traceparent` in the
    /// place of whoever's request it forwards, and samples none of its own.
    pub tracing: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            name: "nodestats".to_owned(),
            version: Version::V1_37,
            level: Level::Full { nodes: 3 },
            network: "192.168.2".to_owned(),
            tracing: false,
        }
    }
}

impl Config {
    /// What makes two clusters of one name differ: version, nodes, network.
    fn to_text(&self) -> String {
        let nodes = match self.level {
            Level::ControlPlane => 0,
            Level::Full { nodes } => nodes,
        };
        format!("{} {nodes} {}", self.version.as_str(), self.network)
    }

    fn parse(name: &str, text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let version = words.next()?.parse().ok()?;
        let level = match words.next()?.parse().ok()? {
            0 => Level::ControlPlane,
            nodes => Level::Full { nodes },
        };
        Some(Self {
            name: name.to_owned(),
            version,
            level,
            network: words.next()?.to_owned(),
            tracing: false,
        })
    }
}

/// A cluster that runs. Dropping the value leaves it running; [`Owned`] takes it down.
#[derive(Debug)]
pub struct Cluster {
    state: State,
    binaries: Binaries,
    network: Network,
    nodes: Vec<nodes::Node>,
    tracing: bool,
}

impl Cluster {
    /// Starts what is not running yet of the cluster that `config` describes, and waits until it
    /// is ready. Where one of this name runs already it is used as it is.
    pub fn up(config: &Config) -> anyhow::Result<Self> {
        Self::up_for(config, false)
    }

    /// The cluster of this name, where it runs.
    pub fn running(name: &str) -> anyhow::Result<Self> {
        let started = State::open(name)?.completed();
        let config = started.and_then(|text| Config::parse(name, &text));
        let config =
            config.with_context(|| format!("no cluster {name} runs: cargo xtask cluster up"))?;
        Self::plan(&config)
    }

    /// Whether it runs as `config` says; an error where another one of this name does.
    fn is_up(&self, config: &Config) -> anyhow::Result<bool> {
        let Some(started) = self.state.completed() else {
            return Ok(false);
        };
        // One answer that fails is no reason to take a cluster down.
        let ready = (0..5).any(|_| self.kubectl(&["get", "--raw", "/readyz"]).is_ok());
        if ready && started != config.to_text() {
            bail!(
                "a cluster {} runs that is another one ({started}): take it down first",
                config.name
            );
        }
        Ok(ready)
    }

    fn plan(config: &Config) -> anyhow::Result<Self> {
        let network = Network::new(&config.name, &config.network)?;
        let count = match config.level {
            Level::ControlPlane => 0,
            Level::Full { nodes } => nodes,
        };
        let state = State::open(&config.name)?;
        let binaries = Binaries::find(config.version, count > 0)?;
        let nodes = nodes::plan(&config.name, &network, count);
        Ok(Self {
            state,
            binaries,
            network,
            nodes,
            tracing: config.tracing,
        })
    }

    fn up_for(config: &Config, owned: bool) -> anyhow::Result<Self> {
        let cluster = Self::plan(config)?;
        if cluster.is_up(config)? {
            return Ok(cluster);
        }
        state::down(&config.name)?;
        cluster.state.create()?;
        if owned {
            cluster.state.claim()?;
        }
        if let Err(error) = cluster.start() {
            let logs = cluster.state.last_lines();
            state::down(&config.name)?;
            return Err(error.context(logs));
        }
        cluster.state.complete(&config.to_text())?;
        Ok(cluster)
    }

    fn start(&self) -> anyhow::Result<()> {
        if self.nodes.is_empty() {
            return control_plane::start(
                &self.state,
                &self.binaries,
                &Endpoint::loopback()?,
                self.tracing,
            );
        }
        network::require_root()?;
        self.network.create()?;
        let endpoint = Endpoint::at(self.network.gateway());
        control_plane::start(&self.state, &self.binaries, &endpoint, self.tracing)?;
        control_plane::start_controllers(&self.state, &self.binaries)?;
        let images = images::base(&self.state)?;
        let all: Vec<&nodes::Node> = self.nodes.iter().collect();
        self.add(&all, &images)?;
        addons::apply(self)
    }

    /// Starts nodes that are new to the cluster, and waits until they are ready.
    fn add(&self, nodes: &[&nodes::Node], images: &[PathBuf]) -> anyhow::Result<()> {
        for node in nodes {
            node.create(&self.state, &self.network)?;
            node.start(&self.state, &self.binaries, &self.network)?;
        }
        for node in nodes {
            node.wait_for_containerd(&self.state)?;
            for image in images {
                node.load(&self.state, image)?;
            }
        }
        for node in nodes {
            let name = format!("node/{}", node.name);
            process::wait_for(&format!("{name} to be there"), || {
                self.kubectl(&["get", &name]).is_ok().then_some(())
            })?;
            self.kubectl(&["wait", "--for=condition=Ready", &name, "--timeout=60s"])?;
        }
        Ok(())
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.state.path("admin.kubeconfig")
    }

    /// The folder of the cluster's files: logs, certificates, the nodes' own.
    pub fn directory(&self) -> &Path {
        self.state.directory()
    }

    /// Runs helm as the cluster's administrator, and returns its standard output.
    pub fn helm(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let mut command = std::process::Command::new(helm()?);
        command.env("KUBECONFIG", self.kubeconfig());
        // What helm remembers goes with the cluster.
        for folder in ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"] {
            command.env(folder, self.state.path("helm"));
        }
        process::output(command.args(arguments), "")
    }

    /// Runs the cluster's own `kubectl` as its administrator, and returns its standard output.
    pub fn kubectl(&self, arguments: &[&str]) -> anyhow::Result<String> {
        self.kubectl_with(arguments, "")
    }

    /// The same with `input` on standard input, for `apply -f -`.
    pub fn kubectl_with(&self, arguments: &[&str], input: &str) -> anyhow::Result<String> {
        let mut command = self.binaries.command("kubectl");
        command.arg("--kubeconfig").arg(self.kubeconfig());
        // What kubectl remembers of a cluster goes with it.
        command.env("KUBECACHEDIR", self.state.path("cache"));
        process::output(command.args(arguments), input)
    }

    /// The names of the nodes, in the order of their addresses.
    pub fn nodes(&self) -> Vec<&str> {
        self.nodes.iter().map(|node| &*node.name).collect()
    }

    /// The address of a node.
    pub fn address(&self, node: &str) -> anyhow::Result<&str> {
        Ok(&self.node(node)?.address)
    }

    /// The address by which nodes and pods reach this machine.
    pub fn gateway(&self) -> &str {
        self.network.gateway()
    }

    /// The command that runs inside a node's namespaces, with its processes, mounts and network.
    pub fn inside(&self, node: &str) -> anyhow::Result<std::process::Command> {
        self.node(node)?.inside()
    }

    /// Makes an image of one static program, and imports it into every node.
    pub fn load_program(&self, program: &Path, reference: &str) -> anyhow::Result<()> {
        let folder = self.state.path("images");
        std::fs::create_dir_all(&folder)?;
        self.load(&images::single(&folder, reference, program)?)
    }

    /// Imports an image (a docker-archive) into every node.
    pub fn load(&self, image: &Path) -> anyhow::Result<()> {
        if self.nodes.is_empty() {
            bail!("a control plane alone runs no containers");
        }
        for node in &self.nodes {
            node.load(&self.state, image)?;
        }
        Ok(())
    }

    /// Imports an image into one node.
    pub fn load_into(&self, node: &str, image: &Path) -> anyhow::Result<()> {
        self.node(node)?.load(&self.state, image)
    }

    /// Ends all processes of a node at once, as a power cut does.
    pub fn stop_node(&self, node: &str) -> anyhow::Result<()> {
        self.node(node)?.stop()
    }

    /// Starts a node again, as a boot does: with another boot id, on the same disk.
    pub fn start_node(&self, node: &str) -> anyhow::Result<()> {
        let node = self.node(node)?;
        node.start(&self.state, &self.binaries, &self.network)?;
        node.wait_for_containerd(&self.state)
    }

    /// Ends the node's kubelet, and keeps it from being started again. Its containers run on.
    pub fn stop_kubelet(&self, node: &str) -> anyhow::Result<()> {
        self.node(node)?.stop_kubelet(&self.state)
    }

    /// Starts the node's kubelet again.
    pub fn start_kubelet(&self, node: &str) -> anyhow::Result<()> {
        self.node(node)?.start_kubelet(&self.state)
    }

    /// Cuts the node off from the network, or joins it again.
    pub fn set_connected(&self, node: &str, connected: bool) -> anyhow::Result<()> {
        self.network
            .set_connected(&self.node(node)?.name, connected)
    }

    /// Stops a node and removes what it left on this machine. Its Node object stays until somebody
    /// deletes it.
    pub fn remove_node(&self, node: &str) -> anyhow::Result<()> {
        self.node(node)?.remove(&self.state, &self.network)
    }

    /// Adds a node that was removed, as a new machine with the old one's name and address.
    pub fn add_node(&self, node: &str) -> anyhow::Result<()> {
        self.add(&[self.node(node)?], &images::base(&self.state)?)
    }

    fn node(&self, name: &str) -> anyhow::Result<&nodes::Node> {
        let node = self.nodes.iter().find(|node| node.name == name);
        node.with_context(|| format!("{name} is no node of {}", self.nodes().join(", ")))
    }
}

/// A cluster that is taken down when the value is dropped.
#[derive(Debug)]
pub struct Owned {
    cluster: Cluster,
    name: String,
}

impl Owned {
    /// Starts a cluster for this process alone, after removing what processes that ended left.
    pub fn up(config: &Config) -> anyhow::Result<Self> {
        state::sweep()?;
        let cluster = Cluster::up_for(config, true)?;
        Ok(Self {
            cluster,
            name: config.name.clone(),
        })
    }
}

impl std::ops::Deref for Owned {
    type Target = Cluster;

    fn deref(&self) -> &Cluster {
        &self.cluster
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        if let Err(error) = state::down(&self.name) {
            eprintln!(
                "the cluster {} could not be taken down: {error:#}",
                self.name
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_versions_that_can_be_built_are_taken() {
        assert_eq!("1.34.3".parse(), Ok(Version::V1_34));
        assert_eq!("1.37.2".parse(), Ok(Version::V1_37));
        assert!("1.36.0".parse::<Version>().is_err());
    }

    #[test]
    fn what_was_started_is_read_back() {
        for level in [Level::ControlPlane, Level::Full { nodes: 5 }] {
            let config = Config {
                level,
                ..Config::default()
            };
            let read = Config::parse(&config.name, &config.to_text()).expect("reads back");
            assert_eq!(read.to_text(), config.to_text());
        }
        assert!(Config::parse("a", "").is_none());
    }
}
