//! The network of a full cluster: a bridge that is the gateway and carries the API server, a
//! network namespace and a cable for each node, and routes to the nodes' pods.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;

use anyhow::bail;

use crate::process::words;

/// The names and addresses of one cluster's network.
#[derive(Debug, Clone)]
pub(crate) struct Network {
    bridge: String,
    prefix: String,
    gateway: String,
    pods: String,
    cluster: String,
}

impl Network {
    /// For the nodes' network `prefix`, its first three numbers. Pods get `10.x`, where x follows
    /// from the third number, so that clusters of different networks have different pods too.
    pub(crate) fn new(cluster: &str, prefix: &str) -> anyhow::Result<Self> {
        let gateway = format!("{prefix}.1");
        let Ok(address) = gateway.parse::<Ipv4Addr>() else {
            bail!("{prefix:?} is no network: write its first three numbers, such as 192.168.2");
        };
        let third = address.octets()[2];
        Ok(Self {
            bridge: bridge(cluster),
            prefix: prefix.to_owned(),
            gateway,
            pods: format!("10.{}", 100 + u16::from(third) % 140),
            cluster: cluster.to_owned(),
        })
    }

    pub(crate) fn gateway(&self) -> &str {
        &self.gateway
    }

    /// The address of the node of this index: `.10`, `.11`, `.56`, and then `.12` and on.
    pub(crate) fn address(&self, index: usize) -> String {
        let last = match index {
            0 | 1 => 10 + index,
            2 => 56,
            // 12 to 55, and from 57 on.
            _ if index < 47 => 9 + index,
            _ => 10 + index,
        };
        format!("{}.{last}", self.prefix)
    }

    /// The addresses of a node's pods.
    pub(crate) fn pods_of(&self, index: usize) -> String {
        format!("{}.{index}.0/24", self.pods)
    }

    /// The addresses of all pods.
    pub(crate) fn pods(&self) -> String {
        format!("{}.0.0/16", self.pods)
    }

    pub(crate) fn create(&self) -> anyhow::Result<()> {
        let (bridge, gateway) = (&self.bridge, &self.gateway);
        words(&format!("ip link add {bridge} type bridge"))?;
        words(&format!("ip addr add {gateway}/24 dev {bridge}"))?;
        words(&format!("ip link set {bridge} up"))?;
        // For this bridge alone: the machine's own setting stays as it is.
        let forwarding = format!("/proc/sys/net/ipv4/conf/{bridge}/forwarding");
        Ok(fs::write(forwarding, "1")?)
    }

    /// Joins a node: its namespace, its cable, and the route to its pods.
    pub(crate) fn add_node(&self, node: &str, index: usize) -> anyhow::Result<()> {
        let (namespace, cable) = (namespace(&self.cluster, node), cable(&self.cluster, node));
        let (address, gateway, bridge) = (self.address(index), &self.gateway, &self.bridge);
        words(&format!("ip netns add {namespace}"))?;
        words(&format!(
            "ip link add {cable} type veth peer name eth0 netns {namespace}"
        ))?;
        words(&format!("ip link set {cable} master {bridge} up"))?;
        let inside = format!("ip -n {namespace}");
        words(&format!("{inside} link set lo up"))?;
        words(&format!("{inside} addr add {address}/24 dev eth0"))?;
        words(&format!("{inside} link set eth0 up"))?;
        words(&format!("{inside} route add default via {gateway}"))?;
        words(&format!(
            "nsenter --net=/run/netns/{namespace} sysctl -qw net.ipv4.ip_forward=1"
        ))?;
        words(&format!(
            "ip route add {} via {address}",
            self.pods_of(index)
        ))?;
        Ok(())
    }

    pub(crate) fn set_connected(&self, node: &str, connected: bool) -> anyhow::Result<()> {
        let state = if connected { "up" } else { "down" };
        words(&format!(
            "ip link set {} {state}",
            cable(&self.cluster, node)
        ))
        .map(drop)
    }

    pub(crate) fn remove_node(&self, node: &str, index: usize) -> anyhow::Result<()> {
        words(&format!("ip route del {}", self.pods_of(index)))?;
        remove_link(&cable(&self.cluster, node))?;
        remove_namespace(&namespace(&self.cluster, node))
    }

    /// Removes everything that is called after the cluster. Routes go with the bridge.
    pub(crate) fn remove(cluster: &str) -> anyhow::Result<()> {
        for entry in fs::read_dir("/run/netns").into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if belongs(cluster, &name) {
                let node = &name[cluster.len() + 1..];
                remove_link(&cable(cluster, node))?;
                remove_namespace(&name)?;
            }
        }
        remove_link(&bridge(cluster))
    }
}

fn bridge(cluster: &str) -> String {
    format!("b-{cluster}")
}

/// The name of a node's network namespace and cgroups.
pub(crate) fn namespace(cluster: &str, node: &str) -> String {
    format!("{cluster}-{node}")
}

/// Whether a namespace or cgroup is one of the cluster's nodes.
pub(crate) fn belongs(cluster: &str, name: &str) -> bool {
    let number = name
        .strip_prefix(cluster)
        .and_then(|rest| rest.strip_prefix("-node-"));
    number.is_some_and(|number| number.parse::<usize>().is_ok())
}

/// The host's end of a node's cable; 15 bytes at most (`IFNAMSIZ`).
fn cable(cluster: &str, node: &str) -> String {
    format!("v{}-{cluster}", node.trim_start_matches("node-"))
}

fn remove_link(name: &str) -> anyhow::Result<()> {
    let is_there = || Path::new("/sys/class/net").join(name).exists();
    if is_there()
        && let Err(error) = words(&format!("ip link del {name}"))
        // Somebody else may have been faster.
        && is_there()
    {
        return Err(error);
    }
    Ok(())
}

fn remove_namespace(name: &str) -> anyhow::Result<()> {
    let gone = || !Path::new("/run/netns").join(name).exists();
    match words(&format!("ip netns del {name}")) {
        Err(error) if !gone() => Err(error),
        _ => Ok(()),
    }
}

pub(crate) fn is_loopback(ip: &str) -> bool {
    ip.parse::<Ipv4Addr>().is_ok_and(|ip| ip.is_loopback())
}

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Namespaces and a kubelet need root; what they run must be installed.
pub(crate) fn require_root() -> anyhow::Result<()> {
    if !is_root() {
        bail!("a cluster with nodes needs root; --control-plane does not");
    }
    if let Some((program, package)) = missing_programs().first() {
        bail!("{program} is missing: apt-get install {package}");
    }
    Ok(())
}

/// What a node runs, and Debian's package of it.
const PROGRAMS: [(&str, &str); 12] = [
    ("ip", "iproute2"),
    ("sysctl", "procps"),
    ("pkill", "procps"),
    ("containerd", "containerd"),
    ("ctr", "containerd"),
    ("runc", "runc"),
    ("/usr/lib/cni/bridge", "containernetworking-plugins"),
    ("nft", "nftables"),
    ("iptables", "iptables"),
    ("conntrack", "conntrack"),
    ("buildah", "buildah"),
    ("nsenter", "util-linux"),
];

/// What a node runs and this machine has not got, with Debian's package of each.
pub fn missing_programs() -> Vec<(&'static str, &'static str)> {
    let missing = |(program, _): &(&str, &str)| words(&format!("which {program}")).is_err();
    PROGRAMS.into_iter().filter(missing).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_addresses_of_two_clusters_differ() {
        let first = Network::new("nodestats", "192.168.2").expect("a network");
        let second = Network::new("other", "192.168.3").expect("a network");
        let addresses: Vec<String> = (0..5).map(|index| first.address(index)).collect();
        assert_eq!(
            addresses,
            [
                "192.168.2.10",
                "192.168.2.11",
                "192.168.2.56",
                "192.168.2.12",
                "192.168.2.13"
            ]
        );
        let all: std::collections::BTreeSet<String> =
            (0..100).map(|index| first.address(index)).collect();
        assert_eq!(all.len(), 100, "no address twice");
        assert_ne!(first.pods(), second.pods());
        assert_ne!(first.bridge, second.bridge);
        assert!(cable("nodestats", "node-123").len() <= 15);
        assert!(Network::new("nodestats", "192.168").is_err());
    }

    #[test]
    fn a_name_that_begins_alike_is_another_clusters() {
        assert!(belongs("a", "a-node-1"));
        for other in ["a-node-node-1", "ab-node-1", "a-node-", "a-node-x"] {
            assert!(!belongs("a", other), "{other}");
        }
    }
}
