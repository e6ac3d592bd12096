//! What used most, on one node or on all.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::host::api_type;
use super::pod::Owner;
use crate::Timestamp;

api_type! {
    /// What used most of a resource, the highest first.
    Top {
        /// The moment that is told of: each node's last sample before it.
        at: Timestamp,
        /// The begin of the span that is told of.
        from: Timestamp,
        /// Its end.
        to: Timestamp,
        /// How many nodes had samples then.
        nodes: usize,
        /// How many there are; the list may be shorter (`limit`).
        total: usize,
        /// The highest.
        rows: Vec<TopRow>,
        /// All others together.
        rest: TopRow,
    }
}

api_type! {
    /// What something used: a process, or all processes that have a name, a user, a pod, a container or a
    /// workload in common, or a node.
    TopRow {
        /// The node's name; absent where it is on several.
        node: String,
        /// How many nodes it is on.
        nodes: usize,
        /// Its name: of a process, a user, a container.
        name: String,
        /// The process id.
        pid: u32,
        /// When the process started.
        started_at: Timestamp,
        /// The process's owner.
        user: String,
        /// The process's arguments.
        command_line: String,
        /// The pod's namespace.
        namespace: String,
        /// The pod's name; its UID where Kubernetes has not told it.
        pod: String,
        /// What people deploy, such as a `Deployment`.
        workload: Owner,
        /// How many processes it was, or of pods how many pods.
        count: u64,
        /// CPU in percent over the span, or since the sample before the moment; 100 = one CPU.
        cpu_percent: f64,
        /// CPU time within the span, in seconds.
        cpu_seconds: f64,
        /// Memory in bytes: resident memory of processes, the working set of pods, memory in use of nodes. In
        /// a span the mean of it, what lived for a part of the span counting for that part, and of a
        /// single process the most.
        memory_bytes: u64,
        /// Bytes read from disks per second.
        read_bytes_per_second: f64,
        /// Bytes written to disks per second.
        write_bytes_per_second: f64,
    }
}
