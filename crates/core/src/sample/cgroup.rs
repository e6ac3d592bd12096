//! Control groups: what the kernel counts of containers, pods and systemd units.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{InterfaceCounters, Pressure};

/// A control group that people have a name for, since it was made.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Cgroup {
    /// Below the root of the hierarchy as the host sees it, such as
    /// `/system.slice/ssh.service`.
    pub path: Arc<str>,
    /// Inode of its directory: one that is made anew with the same path has another.
    pub id: u64,
    /// What it stands for.
    pub kind: Kind,
    /// `None` where the controller is not there.
    pub cpu: Option<Cpu>,
    /// `None` where the controller is not there.
    pub memory: Option<Memory>,
    /// Pressure stall information of its tasks; version 2 alone has it.
    pub pressure: Option<Pressure>,
    /// Block devices that it used; `None` where the controller is not there.
    pub disks: Option<Vec<Disk>>,
    /// Processes and threads now (`pids.current`).
    pub tasks: Option<u64>,
    /// Most of them that it may have (`pids.max`); `None` without a limit.
    pub tasks_limit: Option<u64>,
    /// Interfaces of a pod's own network namespace; `None` for everything else, and for a pod in
    /// the host's.
    pub interfaces: Option<Vec<InterfaceCounters>>,
    /// Pids of the processes in it and in no other of the list below it, ascending.
    pub members: Vec<u32>,
}

/// What a control group stands for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// A pod of Kubernetes, by its UID.
    Pod {
        /// As in the group's name: of a static pod it is a hash.
        uid: Arc<str>,
    },
    /// A container, by the id that its runtime gave it.
    Container {
        /// 64 hexadecimal digits.
        id: Arc<str>,
        /// The pod around it; `None` outside of Kubernetes.
        pod_uid: Option<Arc<str>>,
    },
    /// A unit of systemd: a service, a scope, a socket, a mount.
    #[default]
    Unit,
    /// A session of somebody who logged in, `session-*.scope`.
    Session,
    /// A slice of systemd: units are below it, and counted in it.
    Slice,
}

/// Most groups of a host that are kept, bytes of the path of one (`PATH_MAX`), and devices or
/// interfaces of one: what says more is no host.
pub const GROUPS: usize = 20_000;
/// See [`GROUPS`].
pub const PATH: usize = 4096;
/// See [`GROUPS`].
pub const DEVICES: usize = 256;

impl Cgroup {
    /// Whether a host could have it.
    pub fn is_plausible(&self) -> bool {
        self.path.len() <= PATH
            && self
                .disks
                .as_ref()
                .is_none_or(|disks| disks.len() <= DEVICES)
            && self
                .interfaces
                .as_ref()
                .is_none_or(|all| all.len() <= DEVICES)
    }

    /// The last part of its path, such as `ssh.service`.
    pub fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or_default()
    }
}

/// CPU of a control group (`cpu.stat`, `cpu.max`; version 1: `cpuacct`, `cpu`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cpu {
    /// CPU time in microseconds (`usage_usec`; `cpuacct.usage`).
    pub usage_micros: u64,
    /// Of it in programs (`user_usec`; `cpuacct.stat`).
    pub user_micros: u64,
    /// Of it in the kernel (`system_usec`; `cpuacct.stat`).
    pub system_micros: u64,
    /// Periods in which it had a limit and ran (`nr_periods`).
    pub periods: u64,
    /// Of them those in which it was held back (`nr_throttled`).
    pub throttled_periods: u64,
    /// How long its CPUs were held back, in microseconds (`throttled_usec`; `throttled_time`).
    pub throttled_micros: u64,
    /// CPU time that it may use a period, in microseconds; `None` without a limit.
    pub quota_micros: Option<u64>,
    /// A period in microseconds.
    pub period_micros: u64,
    /// Its share where CPUs are scarce, 1 to 10000 (`cpu.weight`; `cpu.shares` in the same terms).
    pub weight: Option<u64>,
}

/// Memory of a control group in bytes (`memory.*`), everything below it included.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// `memory.current`; `memory.usage_in_bytes`.
    pub current: u64,
    /// File pages that were not used lately: what the kernel takes back first (`inactive_file`).
    pub inactive_file: u64,
    /// Memory of no file (`anon`; `total_rss`).
    pub anonymous: Option<u64>,
    /// File pages, shared memory included (`file`; `total_cache`).
    pub file: Option<u64>,
    /// The most that it was (`memory.peak`, Linux 5.19; `memory.max_usage_in_bytes`).
    pub peak: Option<u64>,
    /// What it may be (`memory.max`); `None` without a limit.
    pub limit: Option<u64>,
    /// Swapped out (`memory.swap.current`; version 1: `memsw` less memory).
    pub swap: Option<u64>,
    /// What happened at its limits.
    pub events: MemoryEvents,
}

/// `memory.events`, counters since the group was made. Version 1 has `max` (`memory.failcnt`) and
/// `oom_kill` alone, and counts a kill in the victim's own group only.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryEvents {
    /// Memory was taken although it had less than it is guaranteed.
    pub low: u64,
    /// It was over `memory.high` and slowed down.
    pub high: u64,
    /// It reached its limit.
    pub max: u64,
    /// It needed memory, and there was none to be taken back.
    pub oom: u64,
    /// Processes killed for memory.
    pub oom_kill: u64,
}

impl Memory {
    /// What the kubelet and `kubectl top` call the working set: `current` less `inactive_file`.
    pub fn working_set(&self) -> u64 {
        self.current.saturating_sub(self.inactive_file)
    }
}

/// Use of one block device by a control group (`io.stat`; `blkio.throttle.*_recursive`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// The kernel's name of the device, or `major:minor` where it is not known.
    pub device: String,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Reads.
    pub reads: u64,
    /// Writes.
    pub writes: u64,
}
