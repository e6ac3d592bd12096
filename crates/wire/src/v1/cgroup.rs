//! What the kernel counts of containers, pods and systemd units.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::host::{Network, Pressure, api_type};
use super::pod::Owner;
use crate::Timestamp;

api_type! {
    /// The systemd units of a node that has any.
    Units {
        /// When the sample was taken.
        time: Timestamp,
        /// How old the sample was when it was answered, in seconds.
        age_seconds: f64,
        /// The node's CPU, and what of it its units used.
        cpu: NodeCpu,
        /// Services, scopes, sessions and slices, by their control groups. A slice counts everything
        /// below it too.
        units: Vec<Unit>,
    }
}

api_type! {
    /// A systemd unit: a service, a session of somebody who logged in, a slice.
    Unit {
        /// When the sample was taken.
        time: Timestamp,
        /// How old the sample was when it was answered, in seconds.
        age_seconds: f64,
        /// Its name, such as `ssh.service`.
        unit: String,
        /// What it is.
        kind: UnitKind,
        /// Its control group, such as `/system.slice/ssh.service`.
        cgroup: String,
        /// Its CPU.
        cpu: GroupCpu,
        /// Its memory.
        memory: GroupMemory,
        /// Block devices that it used.
        disk: GroupDisk,
        /// Pressure stall information of its tasks (cgroup version 2).
        pressure: Pressure,
        /// Processes and threads.
        tasks: u64,
        /// Most of them that it may have; absent without a limit.
        tasks_limit: u64,
    }
}

/// What a unit is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum UnitKind {
    /// A service, a scope, a socket, a mount.
    Unit,
    /// A session of somebody who logged in.
    Session,
    /// Units are below it, and counted in it.
    Slice,
    /// A container that is of no pod.
    Container,
}

api_type! {
    /// The pods of a node.
    NodePods {
        /// When the sample was taken.
        time: Timestamp,
        /// How old the sample was when it was answered, in seconds.
        age_seconds: f64,
        /// Its CPU, and what of it its pods used.
        cpu: NodeCpu,
        /// Its pods, by UID.
        pods: Vec<Pod>,
    }
}

api_type! {
    /// CPU of a node by whose it is, in millicores. The rest is what makes the sum true.
    NodeCpu {
        /// All that was used: user, nice, system, irq and softirq of `/proc/stat`.
        used_millicores: f64,
        /// By all pods together, or by all units: those of a slice are counted in it.
        groups_millicores: f64,
        /// By everything else, such as kernel threads. Negative where the two are counted at different
        /// moments.
        rest_millicores: f64,
    }
}

api_type! {
    /// A pod on a node.
    Pod {
        /// When the sample was taken.
        time: Timestamp,
        /// How old the sample was when it was answered, in seconds.
        age_seconds: f64,
        /// Its UID; of a static pod that Kubernetes has not told of, the hash by which its node calls
        /// it.
        uid: String,
        /// Its namespace; absent while Kubernetes has not told it.
        namespace: String,
        /// Its name; absent while Kubernetes has not told it.
        name: String,
        /// What people deploy, such as a `Deployment`, that it is part of.
        workload: Owner,
        /// CPU of all its containers.
        cpu: GroupCpu,
        /// Memory of all its containers.
        memory: GroupMemory,
        /// Block devices that its containers used.
        disk: GroupDisk,
        /// The interfaces of its network namespace; absent for a pod in the node's own.
        network: Network,
        /// Pressure stall information of its tasks (cgroup version 2).
        pressure: Pressure,
        /// Processes and threads.
        tasks: u64,
        /// Most of them that it may have; absent without a limit.
        tasks_limit: u64,
        /// Its containers that run, the one that holds its namespaces among them.
        containers: Vec<Container>,
    }
}

api_type! {
    /// A container.
    Container {
        /// Its name in the pod; absent for what is no container of its spec, such as the one that
        /// holds its namespaces, and while Kubernetes has not told it.
        name: String,
        /// The id that its runtime gave it.
        container_id: String,
        /// Its CPU.
        cpu: GroupCpu,
        /// Its memory.
        memory: GroupMemory,
        /// Block devices that it used.
        disk: GroupDisk,
        /// Pressure stall information of its tasks (cgroup version 2).
        pressure: Pressure,
        /// Processes and threads.
        tasks: u64,
        /// Most of them that it may have; absent without a limit.
        tasks_limit: u64,
    }
}

api_type! {
    /// CPU of a control group. 1000 millicores are one CPU.
    GroupCpu {
        /// CPU in millicores.
        usage_millicores: f64,
        /// Of it in programs.
        user_millicores: f64,
        /// Of it in the kernel.
        system_millicores: f64,
        /// What its processes that are listed used, in millicores.
        processes_millicores: f64,
        /// What children used that had ended, in millicores: by their parents' `cutime` and `cstime`, less
        /// what was counted for them while they lived.
        ended_children_millicores: f64,
        /// What is left of its use: processes that nobody waited for, less what is counted at another
        /// moment. It may be negative.
        remainder_millicores: f64,
        /// CPU that Kubernetes keeps for it, in millicores.
        request_millicores: f64,
        /// Use of what is kept for it, in percent.
        request_percent: f64,
        /// CPU that it may use (`cpu.max`), in millicores; absent without a limit.
        limit_millicores: f64,
        /// Use of its limit in percent.
        limit_percent: f64,
        /// Its share where CPUs are scarce, 1 to 10000 (`cpu.weight`).
        weight: u64,
        /// Periods in which it was held back, of those in which it ran, in percent.
        throttled_percent: f64,
        /// How long its CPUs were held back, in seconds a second.
        throttled_seconds_per_second: f64,
        /// CPU time since it was made, in seconds.
        usage_seconds_total: f64,
        /// How long its CPUs were held back since it was made, in seconds.
        throttled_seconds_total: f64,
        /// Periods in which it ran with a limit, since it was made.
        periods_total: u64,
        /// Of them those in which it was held back.
        throttled_periods_total: u64,
    }
}

api_type! {
    /// Memory of a control group, everything below it included.
    GroupMemory {
        /// Memory of its processes, of the files that they used, and of the kernel for them
        /// (`memory.current`).
        current_bytes: u64,
        /// `current` less file pages that were not used lately: what `kubectl top` shows.
        working_set_bytes: u64,
        /// Memory of no file.
        anonymous_bytes: u64,
        /// File pages, shared memory included.
        file_bytes: u64,
        /// The most that it was since it was made.
        peak_bytes: u64,
        /// Memory that Kubernetes keeps for it.
        request_bytes: u64,
        /// The working set of what is kept for it, in percent.
        request_percent: f64,
        /// What it may be (`memory.max`); absent without a limit.
        limit_bytes: u64,
        /// The working set of its limit, in percent.
        limit_percent: f64,
        /// Swapped out.
        swap_bytes: u64,
        /// How often it reached its limit since it was made.
        limit_reached_total: u64,
        /// Of a span of time: processes killed for memory within it.
        oom_kills: u64,
        /// Processes killed for memory since it was made. Cgroup version 1 counts them in the
        /// container alone, where they go with it.
        oom_kills_total: u64,
    }
}

api_type! {
    /// Block devices that a control group used.
    GroupDisk {
        /// Each device.
        devices: Vec<GroupDevice>,
    }
}

api_type! {
    /// Use of one block device by a control group.
    GroupDevice {
        /// The kernel's name of it.
        device: String,
        /// Bytes read a second.
        read_bytes_per_second: f64,
        /// Bytes written a second.
        write_bytes_per_second: f64,
        /// Reads a second.
        reads_per_second: f64,
        /// Writes a second.
        writes_per_second: f64,
        /// Bytes read since it was made.
        read_bytes_total: u64,
        /// Bytes written since it was made.
        write_bytes_total: u64,
    }
}
