//! What is read of a host as a whole: CPU, memory, disks, interfaces, filesystems, pressure.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Timestamp;

/// Declares a type of the API: all its fields can be absent, and an unknown one is an error.
macro_rules! api_type {
    ($(#[$meta:meta])* $name:ident { $($(#[$field_meta:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
        #[serde(deny_unknown_fields)]
        pub struct $name {
            $(
                $(#[$field_meta])*
                #[serde(default, skip_serializing_if = "Option::is_none")]
                pub $field: Option<$type>,
            )*
        }
    };
}
pub(super) use api_type;

api_type! {
    /// The CPUs of a node over the time since the sample before.
    Cpu {
        /// When the sample was taken.
        time: Timestamp,
        /// How old the sample was when it was answered, in seconds.
        age_seconds: f64,
        /// Busy share of all CPUs together, 100 = all of them: 100 − idle − iowait.
        usage_percent: f64,
        /// Runnable and uninterruptible tasks, averaged over 1, 5 and 15 minutes (`/proc/loadavg`).
        loadavg: [f64; 3],
        /// Where the time of all CPUs went.
        modes: CpuModes,
        /// Each CPU that is online.
        cpus: Vec<CpuCore>,
    }
}

api_type! {
    /// One CPU.
    CpuCore {
        /// The kernel's number of this CPU.
        cpu: u32,
        /// Busy share of this CPU: 100 − idle − iowait.
        usage_percent: f64,
        /// Present clock frequency in MHz; absent where neither cpufreq nor `/proc/cpuinfo` has it.
        frequency_mhz: f64,
        /// Where the time of this CPU went.
        modes: CpuModes,
    }
}

api_type! {
    /// Shares of CPU time in percent, as `/proc/stat` names them; together 100.
    CpuModes {
        /// Programs, guests of virtual machines included.
        user: f64,
        /// Programs with lowered priority.
        nice: f64,
        /// The kernel on behalf of programs.
        system: f64,
        /// Nothing to do.
        idle: f64,
        /// Nothing to do while a disk request was under way.
        iowait: f64,
        /// Hardware interrupts.
        irq: f64,
        /// Deferred interrupt work.
        softirq: f64,
        /// Taken by the hypervisor for others.
        steal: f64,
    }
}

api_type! {
    /// Memory of a node (`/proc/meminfo`), in bytes.
    Memory {
        /// When the sample was taken.
        time: Timestamp,
        /// How old the sample was when it was answered, in seconds.
        age_seconds: f64,
        /// All memory that the kernel manages (`MemTotal`).
        total_bytes: u64,
        /// Total less available: what could not be had by a new program.
        used_bytes: u64,
        /// Not used for anything (`MemFree`).
        free_bytes: u64,
        /// What a new program could get without swapping (`MemAvailable`, Linux 3.14).
        available_bytes: u64,
        /// Block device buffers (`Buffers`).
        buffers_bytes: u64,
        /// Page cache (`Cached`).
        cached_bytes: u64,
        /// Shared memory and tmpfs (`Shmem`).
        shared_bytes: u64,
        /// Kernel structures that can be given back (`SReclaimable`).
        slab_reclaimable_bytes: u64,
        /// All swap (`SwapTotal`).
        swap_total_bytes: u64,
        /// Swap in use: `SwapTotal` − `SwapFree`.
        swap_used_bytes: u64,
        /// Used of total, in percent.
        usage_percent: f64,
        /// Used of all swap, in percent; absent without swap.
        swap_usage_percent: f64,
    }
}

api_type! {
    /// Block devices.
    Disk {
        /// When the sample was taken.
        time: Timestamp,
        /// How old the sample was when it was answered, in seconds.
        age_seconds: f64,
        /// Each whole device.
        devices: Vec<DiskDevice>,
    }
}

api_type! {
    /// One block device (`/proc/diskstats`); partitions are inside their device.
    DiskDevice {
        /// The kernel's name, such as `nvme0n1`.
        device: String,
        /// Bytes read per second.
        read_bytes_per_second: f64,
        /// Bytes written per second.
        write_bytes_per_second: f64,
        /// Read requests finished per second.
        reads_per_second: f64,
        /// Write requests finished per second.
        writes_per_second: f64,
        /// Share of time with at least one request under way.
        busy_percent: f64,
        /// Requests under way at the moment of the sample.
        requests_in_flight: u64,
        /// Bytes read since boot.
        read_bytes_total: u64,
        /// Bytes written since boot.
        write_bytes_total: u64,
    }
}

api_type! {
    /// Network interfaces of the host's own network namespace.
    Network {
        /// When the sample was taken.
        time: Timestamp,
        /// How old the sample was when it was answered, in seconds.
        age_seconds: f64,
        /// Each interface.
        interfaces: Vec<NetworkInterface>,
    }
}

api_type! {
    /// One network interface (`/proc/net/dev`).
    NetworkInterface {
        /// The interface's name, such as `eth0`.
        interface: String,
        /// Bytes received per second.
        receive_bytes_per_second: f64,
        /// Bytes sent per second.
        transmit_bytes_per_second: f64,
        /// Packets received per second.
        receive_packets_per_second: f64,
        /// Packets sent per second.
        transmit_packets_per_second: f64,
        /// Receive errors per second.
        receive_errors_per_second: f64,
        /// Transmit errors per second.
        transmit_errors_per_second: f64,
        /// Received packets dropped per second.
        receive_dropped_per_second: f64,
        /// Packets to send dropped per second.
        transmit_dropped_per_second: f64,
        /// Bytes received since the interface came up.
        receive_bytes_total: u64,
        /// Bytes sent since the interface came up.
        transmit_bytes_total: u64,
    }
}

api_type! {
    /// Mounted filesystems that hold data.
    Filesystems {
        /// When the sample was taken.
        time: Timestamp,
        /// How old the sample was when it was answered, in seconds.
        age_seconds: f64,
        /// Each filesystem once, at its shortest mount point.
        filesystems: Vec<Filesystem>,
    }
}

api_type! {
    /// One filesystem (`statvfs`).
    Filesystem {
        /// Where it is mounted.
        mountpoint: String,
        /// What is mounted, such as `/dev/sda1`.
        device: String,
        /// The kind, such as `ext4`.
        filesystem_type: String,
        /// Its size.
        total_bytes: u64,
        /// Total less free, the share reserved for root not counted as used.
        used_bytes: u64,
        /// What an ordinary user can still write.
        available_bytes: u64,
        /// Used of used plus available, in percent, as `df` shows it.
        usage_percent: f64,
        /// Inodes; absent where the filesystem has no fixed number.
        inodes_total: u64,
        /// Used inodes in percent; absent where the filesystem has no fixed number.
        inodes_used_percent: f64,
        /// Mounted read-only.
        read_only: bool,
    }
}

api_type! {
    /// Pressure stall information (`/proc/pressure`, Linux 4.20).
    Pressure {
        /// When the sample was taken.
        time: Timestamp,
        /// How old the sample was when it was answered, in seconds.
        age_seconds: f64,
        /// Waiting for a CPU.
        cpu: PressureResource,
        /// Waiting for memory.
        memory: PressureResource,
        /// Waiting for disks.
        io: PressureResource,
    }
}

api_type! {
    /// How much of the time tasks stood still for one resource.
    PressureResource {
        /// At least one task stood still.
        some: PressureLine,
        /// All tasks stood still; absent for CPUs before Linux 5.13.
        full: PressureLine,
    }
}

api_type! {
    /// Shares of time in percent.
    PressureLine {
        /// Over the last 10 seconds.
        avg10_percent: f64,
        /// Over the last 60 seconds.
        avg60_percent: f64,
        /// Over the last 300 seconds.
        avg300_percent: f64,
        /// Time stood still since boot, in seconds.
        total_seconds: f64,
    }
}
