//! What happened to nodes, pods and containers, and why there are no samples of some time.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::host::api_type;
use crate::Timestamp;

/// What happened.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// The node's kernel was started.
    Boot,
    /// An agent began to sample the node.
    AgentStarted,
    /// An agent was told to end, and did.
    AgentStopped,
    /// The agent was told to take no samples.
    Paused,
    /// The node's wall clock was set.
    ClockStep,
    /// Samples were taken, and never stored.
    SamplesDropped,
    /// The kernel killed a process because there was no memory left.
    OomKill,
    /// On this node such kills go unseen: neither control groups nor the kernel say anything of them.
    OomUnseen,
    /// A container began to run for the first time in its pod.
    ContainerStarted,
    /// A container began to run again.
    ContainerRestarted,
    /// A container ended.
    ContainerEnded,
    /// The node became known under its name and address.
    NodeRegistered,
    /// The node signed off, or was removed from its cluster.
    NodeGone,
    /// Its phase in the cluster changed.
    NodePhase,
}

impl EventKind {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::Boot,
        Self::AgentStarted,
        Self::AgentStopped,
        Self::Paused,
        Self::ClockStep,
        Self::SamplesDropped,
        Self::OomKill,
        Self::OomUnseen,
        Self::ContainerStarted,
        Self::ContainerRestarted,
        Self::ContainerEnded,
        Self::NodeRegistered,
        Self::NodeGone,
        Self::NodePhase,
    ];

    /// As it stands in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Boot => "boot",
            Self::AgentStarted => "agent_started",
            Self::AgentStopped => "agent_stopped",
            Self::Paused => "paused",
            Self::ClockStep => "clock_step",
            Self::SamplesDropped => "samples_dropped",
            Self::OomKill => "oom_kill",
            Self::OomUnseen => "oom_unseen",
            Self::ContainerStarted => "container_started",
            Self::ContainerRestarted => "container_restarted",
            Self::ContainerEnded => "container_ended",
            Self::NodeRegistered => "node_registered",
            Self::NodeGone => "node_gone",
            Self::NodePhase => "node_phase",
        }
    }

    /// The kind of this name.
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// From where something is known.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum EventSource {
    /// Counters of the node's control groups (`memory.events`; version 1: `memory.oom_control`).
    Cgroup,
    /// The kernel's log (`/dev/kmsg`).
    KernelLog,
    /// The kernel's counter of all kills of the node (`oom_kill` of `/proc/vmstat`).
    Vmstat,
    /// What the kubelet says of containers, by the API server.
    Kubernetes,
    /// The node's agent.
    Agent,
    /// This server.
    Server,
}

/// Why samples were dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DropReason {
    /// The server was away for longer than the agent's buffer lasts.
    BufferFull,
    /// The server refused them for good.
    Refused,
}

api_type! {
    /// Something that happened. What is not known, or says nothing of this kind, is absent.
    Event {
        /// When, by the clock of the node, or of Kubernetes for what it tells.
        time: Timestamp,
        /// What.
        kind: EventKind,
        /// In a sentence.
        message: String,
        /// The node's name.
        node: String,
        /// Its UID.
        node_uid: String,
        /// The namespace of the pod.
        namespace: String,
        /// The pod.
        pod: String,
        /// Its UID.
        pod_uid: String,
        /// The container's name in the pod.
        container: String,
        /// The id that its runtime gave it.
        container_id: String,
        /// The control group, such as `/system.slice/ssh.service`.
        cgroup: String,
        /// From where it is known, the surest first.
        sources: Vec<EventSource>,
        /// Of a boot and of the start of an agent: when the last sample before it was taken.
        previous_end: Timestamp,
        /// Whether the agent that took that sample had been told to end; else it, or all of the node,
        /// ended in disorder.
        orderly: bool,
        /// The kernel's id of the boot (`/proc/sys/kernel/random/boot_id`).
        boot_id: String,
        /// The agent's version.
        agent_version: String,
        /// The process that was killed.
        victim: Victim,
        /// Why nothing more is known of who was killed.
        victim_unknown: String,
        /// Processes that were killed together; absent for one.
        count: u64,
        /// Memory of the victim at the kill where the kernel's log says it, else of its group in the
        /// last sample before.
        memory_bytes: u64,
        /// What the group might use.
        limit_bytes: u64,
        /// It was seen in a counter: it happened at most so long before `time`, in seconds.
        within_seconds: f64,
        /// With which code a container ended.
        exit_code: i32,
        /// Why, in a word of Kubernetes' or the controller's own, such as `OOMKilled` or `NodeLost`.
        reason: String,
        /// How often the container was started anew.
        restarts: u32,
        /// How far the clock was set, in seconds: forward where positive.
        step_seconds: f64,
        /// Samples that were dropped.
        samples: u64,
        /// Time of the first of them.
        first_dropped: Timestamp,
        /// Time of the last of them.
        last_dropped: Timestamp,
        /// Why.
        dropped_because: DropReason,
        /// The node's phase from then on.
        phase: String,
    }
}

api_type! {
    /// A process that was killed.
    Victim {
        /// Its process id.
        pid: u32,
        /// Its name, as the kernel has it: at most 15 bytes.
        name: String,
    }
}

/// Why there are no samples of some time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum GapReason {
    /// The node's kernel was started anew meanwhile.
    PoweredOff,
    /// No agent ran.
    AgentStopped,
    /// The agent was told to take none.
    Paused,
    /// They were taken, and dropped on their way.
    Dropped,
    /// It is not known.
    Unknown,
}

impl GapReason {
    /// In words.
    pub fn words(self) -> &'static str {
        match self {
            Self::PoweredOff => "powered off",
            Self::AgentStopped => "agent stopped",
            Self::Paused => "paused",
            Self::Dropped => "dropped",
            Self::Unknown => "unknown",
        }
    }
}

/// An entry of a history that stands where samples are missing, under the time at which the first of
/// them was due.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GapEntry {
    /// What is missing.
    pub gap: Gap,
}

/// Time without samples.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Gap {
    /// The last sample before.
    pub from: Timestamp,
    /// The first sample after; absent where there is none yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<Timestamp>,
    /// Why.
    pub reason: GapReason,
}

/// The body of `PUT /events`: changes of phase that a cluster's controller has decided.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PhaseChanges {
    /// Each of them.
    pub changes: Vec<PhaseChange>,
}

/// A node's phase changed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PhaseChange {
    /// The node's UID.
    pub node_uid: String,
    /// When it was decided.
    pub time: Timestamp,
    /// The phase from then on.
    pub phase: String,
    /// Why, in a word.
    pub reason: String,
    /// For a person.
    pub message: String,
}

/// What became of changes of phase that were told.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ToldPhases {
    /// Nodes that are not known, of which nothing was kept.
    pub unknown: Vec<String>,
}
