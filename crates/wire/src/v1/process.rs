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
        /// In a rollup: all processes that are not listed, together.
        others: OtherProcesses,
        /// Where the CPU of the node went.
        cpu: CpuBooks,
        /// Where its memory is.
        memory: MemoryBooks,
    }
}

api_type! {
    /// Processes of which a rollup keeps nothing but what they used together.
    OtherProcesses {
        /// How many there were.
        processes: u64,
        /// Their CPU in percent, 100 = one CPU.
        cpu_percent: f64,
        /// Their resident memory in bytes.
        rss_bytes: u64,
        /// Bytes that they fetched from disks per second.
        read_bytes_per_second: f64,
        /// Bytes that they sent to disks per second.
        write_bytes_per_second: f64,
    }
}

api_type! {
    /// Where the CPU of a node went since the sample before, 100 = one CPU. Busy is processes, ended children
    /// and what is not accounted for; with idle and steal it is all of the time of all CPUs.
    CpuBooks {
        /// All that was worked: user, nice, system, irq and softirq of `/proc/stat`.
        busy_percent: f64,
        /// Of it by the processes that are there.
        processes_percent: f64,
        /// By their children that had ended, less what those showed themselves while they lived.
        ended_children_percent: f64,
        /// What remains: interrupts, which are no process's; processes that nobody waited for; and what
        /// the kernel counts at different moments, so that it may be negative.
        unaccounted_percent: f64,
        /// Idle, and waiting for disks: the CPU of pid 0.
        idle_percent: f64,
        /// Taken by the hypervisor.
        steal_percent: f64,
    }
}

api_type! {
    /// Where the memory of a node is. The parts and what is not accounted for are the total.
    MemoryBooks {
        /// All memory that the kernel manages (`MemTotal`).
        total_bytes: u64,
        /// Memory of no file, of all processes.
        anonymous_bytes: u64,
        /// Page cache, shared memory and buffers (`Cached` and `Buffers`).
        cache_bytes: u64,
        /// Kernel structures that can be given back (`SReclaimable`).
        kernel_bytes: u64,
        /// Not used for anything (`MemFree`).
        free_bytes: u64,
        /// What remains, such as other structures of the kernel and page tables, less what processes share
        /// with each other and is counted in each. It may be negative.
        unaccounted_bytes: i64,
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
    /// Of a span of time: CPU time used within it, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub span_cpu_seconds: Option<f64>,
    /// CPU time used by its ended children that it has waited for, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub children_cpu_seconds: Option<f64>,
    /// CPU of its children that ended since the sample before, in percent, 100 = one CPU, less what they
    /// showed themselves while they lived; absent where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_children_cpu_percent: Option<f64>,
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
