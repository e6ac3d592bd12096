//! The `MonitoredNode` resource of nodestats: its fields, conditions, labels and field managers.
//!
//! Types and names only. Nothing here talks to an API server.

pub mod condition;
mod crd;
mod span;
mod spec;
mod status;

pub use crd::{crd, crd_yaml};
pub use span::Span;
pub use spec::{
    CommandLine, DeletionPolicy, MonitoredNode, MonitoredNodeSpec, Processes, Retention, Rollups,
};
pub use status::{AgentState, AgentStatus, MonitoredNodeStatus, Phase};

/// API group of the resource.
pub const GROUP: &str = "nodestats.dev";

/// Field managers of server-side apply (KEP-555): who owns which field.
pub mod manager {
    /// The agent: its node's facts, and the conditions that it alone can know.
    pub const AGENT: &str = "nodestats-agent";
    /// The controller: phase, and the conditions that follow from comparing.
    pub const CONTROLLER: &str = "nodestats-controller";
    /// The controller on behalf of the installation: the cluster's defaults in `spec`.
    pub const DEFAULTS: &str = "nodestats-defaults";
}

/// Labels and annotations.
pub mod label {
    /// On a Node, with the value `true`: it has no agent by choice, and nobody is told.
    pub const NO_AGENT: &str = "nodestats.dev/no-agent";
}
