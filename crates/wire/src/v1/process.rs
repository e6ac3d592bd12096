//! What is read of one process.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::host::api_type;
use crate::Timestamp;

api_type! {
    /// The process table of a node.
    Processes {
        /// When the sample was taken.
        time: Timestamp,
        /// How old the sample was when it was answered, in seconds.
        age_seconds: f64,
        /// How many processes the sample has; the list may be shorter (`limit`).
        total: usize,
        /// The processes, in the order asked for.
        processes: Vec<Process>,
    }
}

/// One process. Rates are over the time since the sample before.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Process {
    /// When the sample was taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<Timestamp>,
    /// How old the sample was when it was answered, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub age_seconds: Option<f64>,
    /// The process id; 0 is the idle task, whose CPU is the idle time of all CPUs.
    pub pid: u32,
    /// The parent's process id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ppid: Option<u32>,
    /// The kernel's name of it, at most 15 bytes (`/proc/PID/stat` field 2).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What it does: `running`, `sleeping`, `disk-sleep`, `stopped`, `tracing-stop`, `zombie`,
    /// `dead`, `idle`, `parked`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    /// The owner's name, or the number where the host knows no name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// CPU in percent, 100 = one CPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_percent: Option<f64>,
    /// CPU time used since it started, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_seconds: Option<f64>,
    /// CPU time used by its ended children that it has waited for, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub children_cpu_seconds: Option<f64>,
    /// Resident memory of the node's total, in percent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_percent: Option<f64>,
    /// Resident memory in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rss_bytes: Option<u64>,
    /// Resident memory that is backed by no file and shared with nobody by design, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub anonymous_bytes: Option<u64>,
    /// Resident memory of files and shared memory, in bytes (`/proc/PID/statm` field 3).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shared_bytes: Option<u64>,
    /// Memory that was swapped out, in bytes (`VmSwap`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub swapped_bytes: Option<u64>,
    /// Address space in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub virtual_bytes: Option<u64>,
    /// Threads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threads: Option<u32>,
    /// Open file descriptors; absent where they may not be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open_files: Option<u64>,
    /// Page faults answered from memory, per second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minor_faults_per_second: Option<f64>,
    /// Page faults that waited for a disk, per second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub major_faults_per_second: Option<f64>,
    /// Bytes fetched from disks per second; absent where `/proc/PID/io` may not be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_bytes_per_second: Option<f64>,
    /// Bytes sent to disks per second; absent where `/proc/PID/io` may not be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub write_bytes_per_second: Option<f64>,
    /// Bytes fetched from disks since it started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_bytes_total: Option<u64>,
    /// Bytes sent to disks since it started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub write_bytes_total: Option<u64>,
    /// Bytes a second that read calls gave it, from disks, caches, pipes and sockets (`rchar` of
    /// `/proc/PID/io`); absent where that may not be read. It is read where a process used CPU time or
    /// faulted pages in, and of all each minute: one that hardly runs shows the rest of it then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rchar_bytes_per_second: Option<f64>,
    /// Bytes a second that write calls took from it (`wchar`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wchar_bytes_per_second: Option<f64>,
    /// Read calls per second (`syscr`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub syscr_per_second: Option<f64>,
    /// Write calls per second (`syscw`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub syscw_per_second: Option<f64>,
    /// Bytes that read calls gave it since it started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rchar_bytes_total: Option<u64>,
    /// Bytes that write calls took from it since it started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wchar_bytes_total: Option<u64>,
    /// Read calls since it started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub syscr_total: Option<u64>,
    /// Write calls since it started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub syscw_total: Option<u64>,
    /// When it started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// Its command line, arguments joined by spaces; absent for the kernel's own threads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command_line: Option<String>,
    /// The control group it is in, such as `/system.slice/ssh.service`: the innermost one that people
    /// have a name for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<String>,
    /// The container it runs in, by its cgroup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container_id: Option<String>,
    /// The UID of the pod it runs in, by its cgroup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_uid: Option<String>,
}
