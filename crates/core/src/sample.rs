//! One reading of a host: raw counters and gauges as the kernel gives them.
//!
//! Counters stay counters here, so that a sample that is lost costs detail but no total. What is
//! not known is `None`. The order of fields is the encoded form ([`crate::frame`]): a change is
//! a new version of it.

pub mod cgroup;
pub mod note;
pub(crate) mod old;

use std::collections::HashMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use cgroup::Cgroup;
pub use note::Note;

/// A host at one moment: its own figures, its processes, and what groups them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// The host's own figures.
    pub host: Host,
    /// All processes, by pid.
    pub processes: Vec<Process>,
    /// Containers, pods and units, by path; `None` where they could not be read.
    pub cgroups: Option<Vec<Cgroup>>,
    /// What else the agent has to tell.
    pub notes: Vec<Note>,
}

/// Most processes of a host, and most elements of each of its lists: far more than any has, and few enough
/// for one sample to fit into a block.
pub(crate) const PROCESSES: usize = 1 << 18;
const LIST: usize = 1 << 16;

/// Figures of a process that are kept of each moment: what changes with time, and what it is known by.
const VALUES_OF_A_PROCESS: usize = 18;
/// Figures of a control group, without those of its devices and interfaces.
const VALUES_OF_A_CGROUP: usize = 22;

impl Sample {
    /// How many figures it has: what bytes are divided by to compare how densely they are kept.
    pub fn values(&self) -> u64 {
        let groups = self.cgroups.as_deref().unwrap_or_default();
        values(&self.host, self.processes.len(), groups)
    }
}

/// Of a host, so many processes, and groups.
pub(crate) fn values(host: &Host, processes: usize, groups: &[Cgroup]) -> u64 {
    let list = |length: Option<usize>, each: usize| length.unwrap_or_default() * each;
    let values = list(host.load_average.map(|load| load.len()), 1)
        + list(host.cpu_total.map(|_| 1), 8)
        + list(Some(host.cpus.len()), 8)
        + list(host.memory.map(|_| 1), 9)
        + list(host.disks.as_ref().map(Vec::len), 6)
        + list(host.interfaces.as_ref().map(Vec::len), 8)
        + list(host.filesystems.as_ref().map(Vec::len), 5)
        + list(host.pressure.map(|_| 3), 8)
        + processes * VALUES_OF_A_PROCESS
        + groups.iter().map(values_of).sum::<usize>();
    values as u64
}

impl Sample {
    /// Says of each group which processes are in it, by their paths: those of a group that is not
    /// listed are in the next one above it that is.
    pub fn gather_members(&mut self) {
        let groups = self.cgroups.as_deref_mut().unwrap_or_default();
        let index: HashMap<Arc<str>, usize> = groups
            .iter_mut()
            .enumerate()
            .map(|(at, group)| {
                group.members.clear();
                (group.path.clone(), at)
            })
            .collect();
        for process in &mut self.processes {
            let path = process.cgroup.take();
            let at = path.and_then(|path| listed(&index, &path));
            if let Some(at) = at {
                groups[at].members.push(process.pid);
                process.cgroup = Some(groups[at].path.clone());
            }
        }
    }

    /// Says of each process which group it is in, by the groups' members.
    pub fn place_processes(&mut self) {
        let groups = self.cgroups.iter().flatten();
        let of: HashMap<u32, &Arc<str>> = groups
            .flat_map(|group| group.members.iter().map(move |pid| (*pid, &group.path)))
            .collect();
        for process in &mut self.processes {
            process.cgroup = of.get(&process.pid).copied().cloned();
        }
    }
}

/// The innermost group that is listed and holds `path`.
fn listed(index: &HashMap<Arc<str>, usize>, mut path: &str) -> Option<usize> {
    loop {
        if let Some(at) = index.get(path) {
            return Some(*at);
        }
        (path, _) = path.rsplit_once('/')?;
    }
}

fn values_of(cgroup: &Cgroup) -> usize {
    let list = |length: Option<usize>, each: usize| length.unwrap_or_default() * each;
    VALUES_OF_A_CGROUP
        + list(cgroup.disks.as_ref().map(Vec::len), 4)
        + list(cgroup.interfaces.as_ref().map(Vec::len), 8)
}

/// The figures of the host as a whole.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Host {
    /// Identity of this boot (`/proc/sys/kernel/random/boot_id`); two samples of different boots
    /// have no counter in common. Empty where it is not known.
    pub boot_id: String,
    /// Time since boot including sleep, in microseconds (`CLOCK_BOOTTIME`): steps of the wall
    /// clock do not reach it, so rates are computed over it.
    pub uptime_micros: u64,
    /// When the host booted, seconds since 1970 (`btime` of `/proc/stat`).
    pub boot_time_seconds: Option<f64>,
    /// Ticks of the CPU counters a second (`USER_HZ`).
    pub ticks_per_second: u32,
    /// `/proc/loadavg`.
    pub load_average: Option<[f64; 3]>,
    /// All CPUs together, in ticks.
    pub cpu_total: Option<CpuTimes>,
    /// Each CPU.
    pub cpus: Vec<CpuCounters>,
    /// Memory gauges.
    pub memory: Option<Memory>,
    /// Whole block devices; `None` where they could not be read.
    pub disks: Option<Vec<DiskCounters>>,
    /// Interfaces; `None` where they could not be read.
    pub interfaces: Option<Vec<InterfaceCounters>>,
    /// Filesystems; `None` where they could not be read.
    pub filesystems: Option<Vec<Filesystem>>,
    /// Pressure stall information; `None` where the kernel has none.
    pub pressure: Option<Pressure>,
    /// Number of processes; `None` where they could not be read.
    pub process_count: Option<u32>,
    /// How each collector fared.
    pub collectors: Vec<CollectorRun>,
}

impl Host {
    /// Whether its lists are no longer than any host's are.
    pub(crate) fn is_plausible(&self) -> bool {
        let lists = [
            Some(self.cpus.len()),
            self.disks.as_ref().map(Vec::len),
            self.interfaces.as_ref().map(Vec::len),
            self.filesystems.as_ref().map(Vec::len),
            Some(self.collectors.len()),
        ];
        lists.into_iter().flatten().all(|length| length <= LIST)
    }
}

/// CPU time in ticks since boot, the columns of `/proc/stat`. Guest time is inside user and nice.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuTimes {
    /// Programs.
    pub user: u64,
    /// Programs with lowered priority.
    pub nice: u64,
    /// The kernel.
    pub system: u64,
    /// Nothing to do.
    pub idle: u64,
    /// Nothing to do while a disk request was under way.
    pub iowait: u64,
    /// Hardware interrupts.
    pub irq: u64,
    /// Deferred interrupt work.
    pub softirq: u64,
    /// Taken by the hypervisor.
    pub steal: u64,
}

impl CpuTimes {
    /// Each mode, in the order of `/proc/stat`.
    pub fn modes(&self) -> [u64; 8] {
        [
            self.user,
            self.nice,
            self.system,
            self.idle,
            self.iowait,
            self.irq,
            self.softirq,
            self.steal,
        ]
    }

    /// By how much each mode grew: one that is less than before is the kernel's own rounding (`iowait` is
    /// known for it), and did not.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        Self {
            user: self.user.saturating_sub(before.user),
            nice: self.nice.saturating_sub(before.nice),
            system: self.system.saturating_sub(before.system),
            idle: self.idle.saturating_sub(before.idle),
            iowait: self.iowait.saturating_sub(before.iowait),
            irq: self.irq.saturating_sub(before.irq),
            softirq: self.softirq.saturating_sub(before.softirq),
            steal: self.steal.saturating_sub(before.steal),
        }
    }

    /// What was worked: user, nice, system, irq and softirq; guest time is inside user and nice.
    pub fn busy(&self) -> u64 {
        let modes = [self.user, self.nice, self.system, self.irq, self.softirq];
        modes.into_iter().fold(0, u64::saturating_add)
    }
}

/// One CPU.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct CpuCounters {
    /// The kernel's number.
    pub cpu: u32,
    /// Its times.
    pub times: CpuTimes,
    /// Present frequency in MHz.
    pub frequency_mhz: Option<f64>,
}

/// `/proc/meminfo`, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// `MemTotal`.
    pub total: u64,
    /// `MemFree`.
    pub free: Option<u64>,
    /// `MemAvailable`, since Linux 3.14.
    pub available: Option<u64>,
    /// `Buffers`.
    pub buffers: Option<u64>,
    /// `Cached`.
    pub cached: Option<u64>,
    /// `Shmem`.
    pub shared: Option<u64>,
    /// `SReclaimable`.
    pub slab_reclaimable: Option<u64>,
    /// `SwapTotal`.
    pub swap_total: Option<u64>,
    /// `SwapFree`.
    pub swap_free: Option<u64>,
}

/// One block device since boot (`/proc/diskstats`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskCounters {
    /// The kernel's name.
    pub device: String,
    /// Reads finished (field 4).
    pub reads: u64,
    /// Bytes read (field 6 is in sectors of 512 bytes).
    pub read_bytes: u64,
    /// Writes finished (field 8).
    pub writes: u64,
    /// Bytes written (field 10).
    pub written_bytes: u64,
    /// Requests under way now (field 12).
    pub in_flight: u64,
    /// Milliseconds with at least one request under way (field 13).
    pub busy_millis: u64,
}

/// One interface since it came up (`/proc/net/dev`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceCounters {
    /// Its name.
    pub interface: String,
    /// Received.
    pub receive: DirectionCounters,
    /// Sent.
    pub transmit: DirectionCounters,
}

/// One direction of an interface.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirectionCounters {
    /// Bytes.
    pub bytes: u64,
    /// Packets.
    pub packets: u64,
    /// Errors.
    pub errors: u64,
    /// Packets dropped.
    pub dropped: u64,
}

/// One filesystem (`statvfs`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filesystem {
    /// Mount point as the host sees it.
    pub mountpoint: String,
    /// What is mounted.
    pub device: String,
    /// Kind.
    pub kind: String,
    /// Size in bytes.
    pub total: u64,
    /// Free for root, in bytes.
    pub free: u64,
    /// Free for ordinary users, in bytes.
    pub available: u64,
    /// Inodes; 0 where the filesystem has no fixed number.
    pub inodes: u64,
    /// Free inodes.
    pub inodes_free: u64,
    /// Mounted read-only.
    pub read_only: bool,
}

/// `/proc/pressure`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Pressure {
    /// `cpu`.
    pub cpu: Option<Stall>,
    /// `memory`.
    pub memory: Option<Stall>,
    /// `io`.
    pub io: Option<Stall>,
}

/// One file of `/proc/pressure`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Stall {
    /// Line `some`.
    pub some: StallLine,
    /// Line `full`; not for CPUs before Linux 5.13.
    pub full: Option<StallLine>,
}

/// One line: percent over 10, 60 and 300 seconds, and microseconds since boot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct StallLine {
    /// `avg10`, `avg60`, `avg300`.
    pub averages: [f64; 3],
    /// `total`, in microseconds.
    pub total_micros: u64,
}

/// How one collector fared.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CollectorRun {
    /// Its name.
    pub collector: String,
    /// It gave its figures before its deadline.
    pub success: bool,
    /// How long it took, in microseconds.
    pub duration_micros: u64,
}

/// One process. Its texts are shared, so that a process that did not change costs no copy; who only looks
/// whether it can be read borrows them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process<T = Arc<str>> {
    /// Process id.
    pub pid: u32,
    /// Parent (`stat` field 4).
    pub ppid: u32,
    /// Start after boot in ticks (`stat` field 22); with pid and boot the identity of a process.
    pub start_ticks: u64,
    /// Name, `stat` field 2; bytes that are no UTF-8 stand as U+FFFD.
    pub name: T,
    /// State letter, `stat` field 3.
    pub state: char,
    /// User-mode ticks (`stat` field 14).
    pub user_ticks: u64,
    /// Kernel-mode ticks (`stat` field 15).
    pub system_ticks: u64,
    /// User-mode ticks of ended, waited-for children (`stat` field 16).
    pub children_user_ticks: u64,
    /// Kernel-mode ticks of ended, waited-for children (`stat` field 17).
    pub children_system_ticks: u64,
    /// Page faults without disk access (`stat` field 10).
    pub minor_faults: u64,
    /// Page faults with disk access (`stat` field 12).
    pub major_faults: u64,
    /// Threads (`stat` field 20).
    pub threads: u32,
    /// Address space in bytes (`stat` field 23).
    pub virtual_bytes: u64,
    /// Resident memory in bytes (`stat` field 24 is in pages).
    pub resident_bytes: u64,
    /// Resident memory of files and shared memory (`statm` field 3), in bytes.
    pub shared_bytes: Option<u64>,
    /// Swapped-out memory in bytes (`VmSwap` of `status`).
    pub swapped_bytes: Option<u64>,
    /// Bytes fetched from disks (`io`: `read_bytes`).
    pub read_bytes: Option<u64>,
    /// Bytes sent to disks (`io`: `write_bytes`).
    pub written_bytes: Option<u64>,
    /// Open file descriptors.
    pub open_files: Option<u64>,
    /// Owner's name, or number.
    pub user: Option<T>,
    /// Arguments: where a host is read a NUL stands between two of them (`cmdline`), and what leaves
    /// the agent has a blank there. `None` for kernel threads and where it may not be read.
    pub command_line: Option<T>,
    /// Container by its cgroup.
    pub container_id: Option<T>,
    /// Pod by its cgroup.
    pub pod_uid: Option<T>,
    /// What it asked the kernel to read and write; `None` where `io` may not be read.
    pub calls: Option<IoCalls>,
    /// Control group below the root of the hierarchy as the host sees it. In a frame it stands once
    /// for all processes of a group ([`Cgroup::members`]), and not here.
    #[serde(skip)]
    pub cgroup: Option<T>,
}

/// What a process asked the kernel to read and write, wherever that went (`/proc/PID/io`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoCalls {
    /// Bytes that read calls gave (`rchar`).
    pub rchar: u64,
    /// Bytes that write calls took (`wchar`).
    pub wchar: u64,
    /// Read calls (`syscr`).
    pub syscr: u64,
    /// Write calls (`syscw`).
    pub syscw: u64,
}

impl<T> Process<T> {
    /// CPU time of the process itself, in ticks.
    pub fn cpu_ticks(&self) -> u64 {
        self.user_ticks.saturating_add(self.system_ticks)
    }

    /// CPU time of its ended children, in ticks.
    pub fn children_ticks(&self) -> u64 {
        self.children_user_ticks
            .saturating_add(self.children_system_ticks)
    }
}
