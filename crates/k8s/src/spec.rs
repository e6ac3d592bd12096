//! What people say of a node.

// Each column of the table has a name, a type and a path.
#![allow(clippy::duplicated_attributes)]

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Span;
use crate::status::MonitoredNodeStatus;

/// How one node is sampled, and how long its history is kept. An empty spec is valid: every field
/// has a default. The node's agent follows a change within seconds.
#[derive(Debug, Clone, PartialEq, Eq, CustomResource, JsonSchema, Serialize, Deserialize)]
#[kube(
    group = "nodestats.dev",
    version = "v1alpha1",
    kind = "MonitoredNode",
    plural = "monitorednodes",
    shortname = "mn",
    shortname = "mnode",
    category = "nodestats",
    status = "MonitoredNodeStatus",
    derive = "PartialEq",
    doc = "A node whose statistics nodestats keeps. It is named like its Node, is made by the \
           node's agent, and goes when the Node is deleted.",
    printcolumn(name = "Address", type_ = "string", json_path = ".status.addresses[0]"),
    printcolumn(name = "CPUs", type_ = "integer", json_path = ".status.cpus"),
    printcolumn(name = "Memory", type_ = "string", json_path = ".status.memory"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Agent", type_ = "string", json_path = ".status.agent.version"),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    ),
    printcolumn(
        name = "Kernel",
        type_ = "string",
        json_path = ".status.kernel",
        priority = 1
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].reason"#,
        priority = 1
    )
)]
#[serde(rename_all = "camelCase", default)]
pub struct MonitoredNodeSpec {
    /// Time between two samples, from 1s to 1h, such as 10s or 1m.
    #[schemars(schema_with = "interval_schema")]
    pub interval: Span,
    /// What is recorded of processes.
    pub processes: Processes,
    /// How long history is kept.
    pub retention: Retention,
    /// The agent takes no samples while this is true. The history stays.
    pub paused: bool,
    /// What becomes of the history when the Node is deleted: Retain keeps it until its retention
    /// ends, Purge removes it.
    pub deletion_policy: DeletionPolicy,
}

/// CEL's `duration` knows no days, and no interval is a day.
fn interval_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "string",
        "maxLength": 8,
        "pattern": "^[1-9][0-9]{0,5}(s|m|h)$",
        "x-kubernetes-validations": [{
            "rule": "duration(self) >= duration('1s') && duration(self) <= duration('1h')",
            "message": "interval is from 1s to 1h, such as 10s or 1m",
        }],
    })
}

/// What is recorded of processes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Processes {
    /// Whether processes are recorded at all.
    pub enabled: bool,
    /// How command lines are recorded: Redacted hides what looks like a secret, Full records them
    /// as they are, Off records none.
    pub command_line: CommandLine,
}

/// How command lines are recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum CommandLine {
    /// What looks like a secret is hidden before it leaves the node.
    #[default]
    Redacted,
    /// As they are.
    Full,
    /// Not at all.
    Off,
}

/// How long history is kept, by the samples' own time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Retention {
    /// Samples as they were taken, such as 36h or 14d.
    pub raw: Span,
    /// Summaries of samples.
    pub rollups: Rollups,
}

/// How long summaries of samples are kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Rollups {
    /// Summaries of each minute.
    pub minute: Span,
    /// Summaries of each hour.
    pub hour: Span,
}

/// What becomes of the history of a node that is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum DeletionPolicy {
    /// It stays until its retention ends.
    #[default]
    Retain,
    /// It goes with the node.
    Purge,
}

impl Default for MonitoredNodeSpec {
    fn default() -> Self {
        Self {
            interval: Span::from_secs(10),
            processes: Processes::default(),
            retention: Retention::default(),
            paused: false,
            deletion_policy: DeletionPolicy::default(),
        }
    }
}

impl Default for Processes {
    fn default() -> Self {
        Self {
            enabled: true,
            command_line: CommandLine::default(),
        }
    }
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            raw: Span::from_days(14),
            rollups: Rollups::default(),
        }
    }
}

impl Default for Rollups {
    fn default() -> Self {
        Self {
            minute: Span::from_days(90),
            hour: Span::from_days(730),
        }
    }
}
