//! A node: how it is registered, how it is listed, and one sample of it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::host::{Cpu, Disk, Filesystems, Memory, Network, Pressure, api_type};
use super::process::Process;
use crate::Timestamp;

/// The body of `POST /nodes`: a node says that it exists.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Registration {
    /// The address that people know the node by, IPv4 or IPv6.
    pub ip: String,
    /// The node's host name.
    pub hostname: String,
    /// The identity that the node made at its first start and keeps, a UUID. Without it host name
    /// and address together are the identity. `id` is another name for this field.
    #[serde(default, alias = "id", skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// Kernel release, such as `6.1.0-18-amd64`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    /// Operating system, such as `Debian GNU/Linux 12 (bookworm)`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub os: Option<String>,
    /// Machine type as `uname -m` gives it, such as `x86_64`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub architecture: Option<String>,
    /// Version of the agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_version: Option<String>,
    /// Time between two samples, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval_seconds: Option<u32>,
}

impl Registration {
    /// A node of which its names are known and nothing else.
    pub fn new(ip: impl Into<String>, hostname: impl Into<String>) -> Self {
        Self {
            ip: ip.into(),
            hostname: hostname.into(),
            uid: None,
            kernel: None,
            os: None,
            architecture: None,
            agent_version: None,
            interval_seconds: None,
        }
    }
}

/// The body of `PUT /nodes/{uid}/registration`: what a cluster's controller says of a node. Names
/// and addresses are those of the Node object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ClusterRegistration {
    /// The node's name in the cluster.
    pub hostname: String,
    /// The address that people know the node by, IPv4 or IPv6.
    pub ip: String,
    /// Further addresses that the node answers to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<String>,
    /// Kernel release, such as `6.1.0-18-amd64`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    /// Operating system, such as `Debian GNU/Linux 12 (bookworm)`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub os: Option<String>,
    /// Machine type as Kubernetes calls it, such as `amd64`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub architecture: Option<String>,
    /// Version of the agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_version: Option<String>,
    /// Time between two samples, in seconds.
    pub interval_seconds: u32,
    /// How long samples are kept, by their own time, in seconds.
    pub retention_seconds: u64,
    /// How long rollups of minutes are kept, in seconds; without it as the server says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention_minute_seconds: Option<u64>,
    /// How long rollups of hours are kept, in seconds; without it as the server says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention_hour_seconds: Option<u64>,
    /// What the controller does when the node is deleted.
    pub deletion_policy: DeletionPolicy,
}

/// What becomes of the history of a node that is deleted from its cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DeletionPolicy {
    /// It stays until its retention ends.
    #[default]
    Retain,
    /// It goes with the node.
    Purge,
}

/// Who registered a node, and so who may retire it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// The node itself, or a third party, by `POST /nodes`.
    #[default]
    Rest,
    /// A cluster's controller.
    Kubernetes,
}

/// How fresh one node is, as `GET /nodes?view=freshness` lists it for all nodes at once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Freshness {
    /// The identity that history is kept under.
    pub uid: String,
    /// Who registered it.
    pub origin: Origin,
    /// Whether it is managed now.
    pub state: NodeState,
    /// When it was retired; absent while it is live.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gone_at: Option<Timestamp>,
    /// What the controller last registered; absent for other origins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registration: Option<ClusterRegistration>,
    /// Time of the newest sample by the node's own clock; absent where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_sample: Option<Timestamp>,
    /// Age of the newest sample in seconds, whatever the node's clock says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub age_seconds: Option<f64>,
    /// How far the node's clock is ahead of the server's, in seconds, at the last push; absent
    /// where no push said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock_offset_seconds: Option<f64>,
}

/// Whether a node is managed now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum NodeState {
    /// Registered.
    Live,
    /// It has signed off; its history stays until retention.
    Gone,
}

/// One life of a node, as `GET /nodes?view=full` lists it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct NodeView {
    /// The identity that history is kept under.
    pub uid: String,
    /// Host name.
    pub hostname: String,
    /// Address.
    pub ip: String,
    /// Further addresses that it answers to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<String>,
    /// Who registered it.
    pub origin: Origin,
    /// Whether it is managed now.
    pub state: NodeState,
    /// When it first registered.
    pub registered_at: Timestamp,
    /// When it signed off; absent while it is live.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gone_at: Option<Timestamp>,
    /// Time of the oldest sample that is kept; absent where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_sample: Option<Timestamp>,
    /// Time of the newest sample; absent where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_sample: Option<Timestamp>,
    /// Age of the newest sample in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub age_seconds: Option<f64>,
    /// Kernel release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    /// Operating system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub os: Option<String>,
    /// Machine type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub architecture: Option<String>,
    /// Version of the agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_version: Option<String>,
    /// Time between two samples, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval_seconds: Option<u32>,
}

api_type! {
    /// How one collector of the agent fared in this sample.
    CollectorReport {
        /// The collector's name, such as `filesystems`.
        collector: String,
        /// Whether it gave its figures before its deadline.
        success: bool,
        /// How long it took, in seconds.
        duration_seconds: f64,
    }
}

api_type! {
    /// One sample of a node. `GET /nodes/{node}` gives it without the groups `cpu` to
    /// `processes`, each of which has a path of its own; `PUT` takes any part of it.
    Reading {
        /// When the sample was taken. In a PUT, a `time` makes it a past sample.
        time: Timestamp,
        /// How old the sample was when it was answered, in seconds. In a PUT without `time` it
        /// says how long ago the sample was taken.
        age_seconds: f64,
        /// The node's identity. In a PUT it must be the identity of the node of the path.
        uid: String,
        /// Host name. In a PUT it must be the registered one.
        hostname: String,
        /// Address. In a PUT it must be the registered one.
        ip: String,
        /// When the node booted, in seconds since 1970.
        boottime: f64,
        /// Runnable and uninterruptible tasks, averaged over 1, 5 and 15 minutes.
        loadavg: [f64; 3],
        /// Busy share of each CPU in percent, in the order of their numbers.
        cpu_usage_percent: Vec<f64>,
        /// Used share of the memory in percent.
        memory_usage_percent: f64,
        /// Number of processes.
        process_count: u64,
        /// How the collectors fared.
        collectors: Vec<CollectorReport>,
        /// CPU in detail.
        cpu: Cpu,
        /// Memory in detail.
        memory: Memory,
        /// Block devices.
        disk: Disk,
        /// Network interfaces.
        network: Network,
        /// Filesystems.
        filesystems: Filesystems,
        /// Pressure stall information.
        pressure: Pressure,
        /// Processes.
        processes: Vec<Process>,
    }
}
