//! What machines say of a node: facts and pressure by its agent, the rest by the controller.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What is observed of the node. It changes when something happens, never with each sample.
#[derive(Debug, Clone, Default, PartialEq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MonitoredNodeStatus {
    /// Where the node is in its life, as the controller sees it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// The generation of the spec that the controller has seen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Addresses of the node, the one that people know it by first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<String>,
    /// Host name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// UID of the Node that this is about: the identity that history is kept under.
    #[serde(rename = "nodeUID", skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-kubernetes-validations" = [{
        "rule": "self == oldSelf",
        "message": "nodeUID never changes: another Node of the same name is another node, whose \
                    MonitoredNode is made when this one is gone",
    }]))]
    pub node_uid: Option<String>,
    /// Machine id, `/etc/machine-id`; clones of a machine share it.
    #[serde(rename = "machineID", skip_serializing_if = "Option::is_none")]
    pub machine_id: Option<String>,
    /// Identity of this boot of the kernel.
    #[serde(rename = "bootID", skip_serializing_if = "Option::is_none")]
    pub boot_id: Option<String>,
    /// When the node booted, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub boot_time: Option<String>,
    /// Kernel release, as `uname -r` prints it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    /// Operating system, as its `os-release` calls it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub os: Option<String>,
    /// Machine type, as `uname -m` prints it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub architecture: Option<String>,
    /// Number of CPUs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpus: Option<i32>,
    /// Memory, as a quantity such as 16029Mi.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<String>,
    /// The agent that samples the node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent: Option<AgentStatus>,
    /// What is true of the node, one entry a type.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// Where a node is in its life.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
pub enum Phase {
    /// No sample yet.
    Pending,
    /// Samples arrive.
    Ready,
    /// The last sample is older than three intervals.
    Stale,
    /// The last sample is older than five minutes and than six intervals.
    Lost,
    /// Its spec says that no samples are taken.
    Paused,
    /// Whether samples arrive cannot be told: the API does not answer.
    Unknown,
}

impl Phase {
    /// All of them, for a metric of each.
    pub const ALL: [Self; 6] = [
        Self::Pending,
        Self::Ready,
        Self::Stale,
        Self::Lost,
        Self::Paused,
        Self::Unknown,
    ];
}

/// The agent that samples a node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct AgentStatus {
    /// Its version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Its pod, `NAMESPACE/NAME`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// Whether it runs, or has said good-bye.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<AgentState>,
    /// The generation of the spec that it follows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}

/// What an agent last said of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum AgentState {
    /// It samples.
    Running,
    /// It was told to end: a rolling update, a drain, a deletion. What it had sampled was sent.
    Stopping,
}
