//! What a rollup says, in the types that people read.

use std::collections::HashMap;

use nodestats_wire::{Timestamp, v1};

use super::counter::{percent, round};
use crate::rollup::{
    Bucket, CPU_UNITS, Flow, Group, Level, Row, Thing, core, disk, filesystem, group, host,
    interface, process, unaccounted,
};
use crate::sample::cgroup::Kind;

/// Which figure stands for a span of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Aggregate {
    /// Rates over all of the span, and gauges as they were last.
    #[default]
    Natural,
    /// Means, each sample for the time since the one before.
    Mean,
    /// The lowest between two samples, and of gauges.
    Min,
    /// The highest.
    Max,
    /// The last.
    Last,
    /// What so many of a hundred are not above, by a sketch ([`ERROR`](crate::rollup::ERROR)): of the CPU time
    /// between two samples and the memory of hosts and control groups.
    Quantile(u8),
}

/// A row with what it is asked for.
#[derive(Clone, Copy)]
struct View<'a> {
    row: &'a Row,
    aggregate: Aggregate,
}

impl View<'_> {
    fn flow(self, at: usize) -> Option<Flow> {
        self.row.flows.get(at).copied().flatten()
    }

    /// A counter a second; `unit` is what one unit of its kept rates is of the counter.
    fn rate(self, at: usize, unit: f64) -> Option<f64> {
        let flow = self.flow(at)?;
        let kept = |rate: u64| Some(rate as f64 * unit);
        match self.aggregate {
            Aggregate::Natural | Aggregate::Mean => self.row.mean_rate(at),
            Aggregate::Min => kept(flow.min),
            Aggregate::Max => kept(flow.max),
            Aggregate::Last => kept(flow.last),
            Aggregate::Quantile(share) => Some(self.quantile(0, at, share)? * unit),
        }
    }

    /// A quantile of what is sketched: the first flow, and the first level.
    fn quantile(self, sketch: usize, at: usize, share: u8) -> Option<f64> {
        let sketches = self.row.sketches.as_ref().filter(|_| at == 0)?;
        sketches[sketch].quantile(f64::from(share) / 100.0)
    }

    fn bytes(self, at: usize) -> Option<f64> {
        self.rate(at, 1.0).map(round)
    }

    fn total(self, at: usize) -> Option<u64> {
        self.row.totals.get(at).copied().flatten()
    }

    /// Growth of a counter a second, of which nothing but that is kept.
    fn mean_of_total(self, at: usize) -> Option<f64> {
        let total = self.total(at).filter(|_| self.is_mean())?;
        (self.row.covered > 0).then(|| round(total as f64 * 1e6 / self.row.covered as f64))
    }

    fn is_mean(self) -> bool {
        matches!(self.aggregate, Aggregate::Natural | Aggregate::Mean)
    }

    fn whole_level(self, at: usize) -> Option<Level> {
        self.row.levels.get(at).copied().flatten()
    }

    fn level(self, at: usize) -> Option<u64> {
        let level = self.whole_level(at)?;
        Some(match self.aggregate {
            Aggregate::Natural | Aggregate::Last => level.last,
            Aggregate::Mean => level.mean,
            Aggregate::Min => level.min,
            Aggregate::Max => level.max,
            Aggregate::Quantile(share) => self.quantile(1, at, share)?.round() as u64,
        })
    }

    fn hundredths(self, at: usize) -> Option<f64> {
        self.level(at).map(|value| round(value as f64 / 100.0))
    }
}

fn own(bucket: &Bucket, aggregate: Aggregate) -> Option<View<'_>> {
    let row = bucket.host(&Thing::Own)?;
    Some(View { row, aggregate })
}

fn things<'a, T: 'a>(
    bucket: &'a Bucket,
    aggregate: Aggregate,
    of: impl Fn(&'a Thing, View<'a>) -> Option<T> + 'a,
) -> impl Iterator<Item = T> + 'a {
    let all = bucket.hosts.iter();
    all.filter_map(move |(thing, row)| of(thing, View { row, aggregate }))
}

/// Ticks of the counters a second.
fn ticks(own: View<'_>) -> f64 {
    let ticks = own.whole_level(host::TICKS).map(|level| level.last);
    ticks.unwrap_or(100).max(1) as f64
}

/// What the CPUs did.
pub fn rolled_cpu(bucket: &Bucket, aggregate: Aggregate) -> Option<v1::Cpu> {
    let own = own(bucket, aggregate)?;
    let modes = (0..host::TOTALS).map(|mode| own.total(mode));
    let modes: Option<Vec<u64>> = modes.collect();
    let all: f64 = modes.iter().flatten().map(|ticks| *ticks as f64).sum();
    let share = |mode: usize| percent(modes.as_ref()?[mode] as f64, all);
    let modes = share(host::USER)
        .filter(|_| own.is_mean())
        .map(|user| v1::CpuModes {
            user: Some(user),
            nice: share(host::NICE),
            system: share(host::SYSTEM),
            idle: share(host::IDLE),
            iowait: share(host::IOWAIT),
            irq: share(host::IRQ),
            softirq: share(host::SOFTIRQ),
            steal: share(host::STEAL),
        });
    let cpus = own
        .whole_level(host::CPUS)
        .map_or(1, |level| level.last)
        .max(1) as f64;
    // Rates between two samples are in parts of one CPU, and ticks of all CPUs are all of the time.
    let usage = match aggregate {
        Aggregate::Natural | Aggregate::Mean => modes.as_ref().and_then(|modes| {
            let waiting = modes.idle? + modes.iowait?;
            Some(round((100.0 - waiting).clamp(0.0, 100.0)))
        }),
        _ => own
            .rate(host::BUSY, 100.0 / CPU_UNITS)
            .map(|percent| round((percent / cpus).clamp(0.0, 100.0))),
    };
    let load = host::LOAD.map(|at| own.hundredths(at));
    let cores = things(bucket, aggregate, |thing, view| {
        let Thing::Cpu(number) = thing else {
            return None;
        };
        let share = view.total(core::BUSY).zip(view.total(core::ALL));
        Some(v1::CpuCore {
            cpu: Some(*number),
            usage_percent: share
                .filter(|_| view.is_mean())
                .and_then(|(busy, all)| percent(busy as f64, all as f64)),
            ..v1::CpuCore::default()
        })
    });
    Some(v1::Cpu {
        usage_percent: usage,
        loadavg: match load {
            [Some(one), Some(five), Some(fifteen)] => Some([one, five, fifteen]),
            _ => None,
        },
        modes,
        cpus: Some(cores.collect()),
        ..v1::Cpu::default()
    })
}

/// Its memory.
pub fn rolled_memory(bucket: &Bucket, aggregate: Aggregate) -> Option<v1::Memory> {
    let own = own(bucket, aggregate)?;
    let total = own.whole_level(host::MEMORY_TOTAL)?.last;
    let used = own.level(host::MEMORY_USED);
    let swap_total = own.whole_level(host::SWAP_TOTAL).map(|level| level.last);
    let swap_used = own.level(host::SWAP_USED);
    Some(v1::Memory {
        total_bytes: Some(total),
        used_bytes: used,
        available_bytes: own.level(host::MEMORY_AVAILABLE),
        swap_total_bytes: swap_total,
        swap_used_bytes: swap_used,
        usage_percent: used.and_then(|used| percent(used as f64, total as f64)),
        swap_usage_percent: swap_used
            .zip(swap_total)
            .and_then(|(used, all)| percent(used as f64, all as f64)),
        ..v1::Memory::default()
    })
}

/// Its block devices.
pub fn rolled_disk(bucket: &Bucket, aggregate: Aggregate) -> Option<v1::Disk> {
    let devices = things(bucket, aggregate, |thing, view| {
        let Thing::Disk(device) = thing else {
            return None;
        };
        Some(v1::DiskDevice {
            device: Some(device.clone()),
            read_bytes_per_second: view.bytes(disk::READ),
            write_bytes_per_second: view.bytes(disk::WRITTEN),
            reads_per_second: view.mean_of_total(disk::READS),
            writes_per_second: view.mean_of_total(disk::WRITES),
            busy_percent: view
                .mean_of_total(disk::BUSY_MILLIS)
                .map(|millis| round(millis / 10.0).min(100.0)),
            ..v1::DiskDevice::default()
        })
    });
    let devices: Vec<_> = devices.collect();
    (!devices.is_empty()).then(|| v1::Disk {
        devices: Some(devices),
        ..v1::Disk::default()
    })
}

/// Its interfaces.
pub fn rolled_network(bucket: &Bucket, aggregate: Aggregate) -> Option<v1::Network> {
    let interfaces = things(bucket, aggregate, |thing, view| {
        let Thing::Interface(name) = thing else {
            return None;
        };
        Some(v1::NetworkInterface {
            interface: Some(name.clone()),
            receive_bytes_per_second: view.bytes(interface::BYTES[0]),
            transmit_bytes_per_second: view.bytes(interface::BYTES[1]),
            receive_packets_per_second: view.mean_of_total(interface::PACKETS[0]),
            transmit_packets_per_second: view.mean_of_total(interface::PACKETS[1]),
            receive_errors_per_second: view.mean_of_total(interface::ERRORS[0]),
            transmit_errors_per_second: view.mean_of_total(interface::ERRORS[1]),
            receive_dropped_per_second: view.mean_of_total(interface::DROPPED[0]),
            transmit_dropped_per_second: view.mean_of_total(interface::DROPPED[1]),
            ..v1::NetworkInterface::default()
        })
    });
    let interfaces: Vec<_> = interfaces.collect();
    (!interfaces.is_empty()).then(|| v1::Network {
        interfaces: Some(interfaces),
        ..v1::Network::default()
    })
}

/// Its filesystems.
pub fn rolled_filesystems(bucket: &Bucket, aggregate: Aggregate) -> Option<v1::Filesystems> {
    let filesystems = things(bucket, aggregate, |thing, view| {
        let Thing::Filesystem(mountpoint) = thing else {
            return None;
        };
        let used = view.level(filesystem::USED)?;
        let total = view.whole_level(filesystem::TOTAL).map(|level| level.last);
        // What is left is least where most is used.
        let available = match aggregate {
            Aggregate::Min => view
                .whole_level(filesystem::AVAILABLE)
                .map(|level| level.max),
            Aggregate::Max => view
                .whole_level(filesystem::AVAILABLE)
                .map(|level| level.min),
            _ => view.level(filesystem::AVAILABLE),
        };
        Some(v1::Filesystem {
            mountpoint: Some(mountpoint.clone()),
            total_bytes: total,
            used_bytes: Some(used),
            available_bytes: available,
            usage_percent: available
                .and_then(|left| percent(used as f64, used.saturating_add(left) as f64)),
            ..v1::Filesystem::default()
        })
    });
    let filesystems: Vec<_> = filesystems.collect();
    (!filesystems.is_empty()).then(|| v1::Filesystems {
        filesystems: Some(filesystems),
        ..v1::Filesystems::default()
    })
}

/// How its tasks stood still.
pub fn rolled_pressure(bucket: &Bucket, aggregate: Aggregate) -> Option<v1::Pressure> {
    let own = own(bucket, aggregate)?;
    let resource = |at: usize| {
        let avg10 = own.hundredths(host::PRESSURE[at])?;
        Some(v1::PressureResource {
            some: Some(v1::PressureLine {
                avg10_percent: Some(avg10),
                ..v1::PressureLine::default()
            }),
            full: None,
        })
    };
    let (cpu, memory, io) = (resource(0), resource(1), resource(2));
    (cpu.is_some() || memory.is_some() || io.is_some()).then(|| v1::Pressure {
        cpu,
        memory,
        io,
        ..v1::Pressure::default()
    })
}

/// The host in short.
pub fn rolled_summary(bucket: &Bucket, aggregate: Aggregate) -> Option<v1::Reading> {
    let own = own(bucket, aggregate)?;
    let cpu = rolled_cpu(bucket, aggregate)?;
    let cpus = cpu.cpus.iter().flatten().map(|cpu| cpu.usage_percent);
    let usage: Option<Vec<f64>> = cpus.collect();
    Some(v1::Reading {
        loadavg: cpu.loadavg,
        cpu_usage_percent: usage.filter(|all| !all.is_empty()),
        memory_usage_percent: rolled_memory(bucket, aggregate)
            .and_then(|memory| memory.usage_percent),
        process_count: own.level(host::PROCESSES),
        ..v1::Reading::default()
    })
}

fn group_cpu(view: View<'_>) -> Option<v1::GroupCpu> {
    let micros = view.rate(group::CPU, 1e6 / CPU_UNITS)?;
    let limit = view
        .level(group::CPU_LIMIT)
        .map(|limit| limit as f64 * 1000.0 / CPU_UNITS);
    let usage = micros / 1000.0;
    let periods = view
        .total(group::THROTTLED_PERIODS)
        .zip(view.total(group::PERIODS));
    Some(v1::GroupCpu {
        usage_millicores: Some(round(usage)),
        limit_millicores: limit.map(round),
        limit_percent: limit.and_then(|limit| percent(usage, limit)),
        throttled_percent: periods
            .filter(|_| view.is_mean())
            .and_then(|(part, all)| percent(part as f64, all as f64)),
        throttled_seconds_per_second: view
            .mean_of_total(group::THROTTLED)
            .map(|micros| round(micros / 1e6)),
        ..v1::GroupCpu::default()
    })
}

fn group_memory(view: View<'_>) -> Option<v1::GroupMemory> {
    let working_set = view.level(group::WORKING_SET)?;
    let limit = view
        .whole_level(group::MEMORY_LIMIT)
        .map(|level| level.last);
    Some(v1::GroupMemory {
        current_bytes: view.level(group::MEMORY),
        working_set_bytes: Some(working_set),
        anonymous_bytes: view.level(group::ANONYMOUS),
        limit_bytes: limit,
        limit_percent: limit.and_then(|limit| percent(working_set as f64, limit as f64)),
        oom_kills: view.total(group::OOM_KILLS),
        ..v1::GroupMemory::default()
    })
}

/// All devices together, which have no name.
fn group_disk(view: View<'_>) -> Option<v1::GroupDisk> {
    let (read, written) = (view.bytes(group::READ), view.bytes(group::WRITTEN));
    (read.is_some() || written.is_some()).then(|| v1::GroupDisk {
        devices: Some(vec![v1::GroupDevice {
            read_bytes_per_second: read,
            write_bytes_per_second: written,
            ..v1::GroupDevice::default()
        }]),
    })
}

/// All interfaces of a pod together, which have no name.
fn group_network(view: View<'_>) -> Option<v1::Network> {
    let (received, sent) = (view.bytes(group::RECEIVED), view.bytes(group::SENT));
    (received.is_some() || sent.is_some()).then(|| v1::Network {
        interfaces: Some(vec![v1::NetworkInterface {
            receive_bytes_per_second: received,
            transmit_bytes_per_second: sent,
            ..v1::NetworkInterface::default()
        }]),
        ..v1::Network::default()
    })
}

/// Its pods with their containers, by UID; without their names.
pub fn rolled_pods(bucket: &Bucket, aggregate: Aggregate) -> Vec<v1::Pod> {
    let mut containers: HashMap<&str, Vec<v1::Container>> = HashMap::new();
    for (group, row) in &bucket.groups {
        let view = View { row, aggregate };
        if let Kind::Container {
            id,
            pod_uid: Some(uid),
        } = &group.kind
        {
            containers.entry(uid).or_default().push(v1::Container {
                container_id: Some(id.to_string()),
                cpu: group_cpu(view),
                memory: group_memory(view),
                disk: group_disk(view),
                tasks: view.level(group::TASKS),
                ..v1::Container::default()
            });
        }
    }
    let pods = bucket.groups.iter().filter_map(|(group, row)| {
        let Kind::Pod { uid } = &group.kind else {
            return None;
        };
        let view = View { row, aggregate };
        Some(v1::Pod {
            uid: Some(uid.to_string()),
            cpu: group_cpu(view),
            memory: group_memory(view),
            disk: group_disk(view),
            network: group_network(view),
            tasks: view.level(group::TASKS),
            containers: Some(containers.remove(&**uid).unwrap_or_default()),
            ..v1::Pod::default()
        })
    });
    pods.collect()
}

/// Its systemd units, by path.
pub fn rolled_units(bucket: &Bucket, aggregate: Aggregate) -> Vec<v1::Unit> {
    let units = bucket.groups.iter().filter_map(|(group, row)| {
        let kind = match &group.kind {
            Kind::Unit => v1::UnitKind::Unit,
            Kind::Session => v1::UnitKind::Session,
            Kind::Slice => v1::UnitKind::Slice,
            Kind::Container { pod_uid: None, .. } => v1::UnitKind::Container,
            Kind::Container { .. } | Kind::Pod { .. } => return None,
        };
        let view = View { row, aggregate };
        Some(v1::Unit {
            unit: Some(name(group).to_owned()),
            kind: Some(kind),
            cgroup: Some(group.path.to_string()),
            cpu: group_cpu(view),
            memory: group_memory(view),
            disk: group_disk(view),
            tasks: view.level(group::TASKS),
            ..v1::Unit::default()
        })
    });
    units.collect()
}

/// The last part of its path.
fn name(group: &Group) -> &str {
    group.path.rsplit('/').next().unwrap_or_default()
}

/// A process, whose ticks a second are these.
fn row_of(
    process: &crate::rollup::Process,
    view: View<'_>,
    ticks: f64,
    memory: Option<u64>,
) -> v1::Process {
    let resident = view.level(process::RESIDENT);
    let cpu = view.rate(process::CPU, ticks / CPU_UNITS);
    let seconds = |ticks_used: u64| round(ticks_used as f64 / ticks);
    v1::Process {
        pid: process.pid,
        ppid: Some(process.ppid),
        name: Some(process.name.to_string()),
        user: process.user.as_deref().map(str::to_owned),
        cpu_percent: cpu.map(|used| round(used * 100.0 / ticks)),
        ended_children_cpu_percent: view
            .mean_of_total(process::ENDED_CHILDREN)
            .filter(|used| *used > 0.0)
            .map(|used| round(used * 100.0 / ticks)),
        span_cpu_seconds: view.flow(process::CPU).map(|flow| seconds(flow.total)),
        memory_percent: resident
            .zip(memory)
            .and_then(|(part, all)| percent(part as f64, all as f64)),
        rss_bytes: resident,
        threads: view.level(process::THREADS).map(|count| count as u32),
        open_files: view.level(process::OPEN_FILES),
        read_bytes_per_second: view.bytes(process::READ),
        write_bytes_per_second: view.bytes(process::WRITTEN),
        started_at: Timestamp::from_micros(process.started_at).filter(|_| process.started_at != 0),
        command_line: process.command_line.as_deref().map(str::to_owned),
        cgroup: process.cgroup.as_deref().map(str::to_owned),
        container_id: process.container_id.as_deref().map(str::to_owned),
        pod_uid: process.pod_uid.as_deref().map(str::to_owned),
        ..v1::Process::default()
    }
}

/// The processes that are kept, with a line for all others and the CPU books. The host's own rows are in
/// `hosts`.
pub fn rolled_processes(
    bucket: &Bucket,
    hosts: Option<&Bucket>,
    aggregate: Aggregate,
) -> v1::Processes {
    let own = hosts.and_then(|hosts| own(hosts, aggregate));
    let ticks = own.map_or(100.0, ticks);
    let memory = own.and_then(|own| Some(own.whole_level(host::MEMORY_TOTAL)?.last));
    let row = |(process, row): &(_, Row)| row_of(process, View { row, aggregate }, ticks, memory);
    let rows: Vec<v1::Process> = bucket.processes.iter().map(row).collect();
    let others = View {
        row: &bucket.others,
        aggregate: Aggregate::Mean,
    };
    let others = others
        .level(process::LEVELS)
        .map(|count| v1::OtherProcesses {
            processes: Some(count),
            cpu_percent: others
                .rate(process::CPU, 1.0)
                .map(|used| round(used * 100.0 / ticks)),
            rss_bytes: others.level(process::RESIDENT),
            read_bytes_per_second: others.bytes(process::READ),
            write_bytes_per_second: others.bytes(process::WRITTEN),
        });
    v1::Processes {
        cpu: hosts.and_then(|hosts| books(bucket, hosts, ticks)),
        processes: Some(rows),
        others,
        ..v1::Processes::default()
    }
}

/// Where the CPU went, of rows of the host and of processes that stand apart.
fn books(bucket: &Bucket, hosts: &Bucket, ticks: f64) -> Option<v1::CpuBooks> {
    let together = Bucket {
        hosts: hosts.hosts.clone(),
        ..bucket.clone()
    };
    let left = unaccounted(&together)?;
    let own = own(hosts, Aggregate::Mean)?;
    let seconds = own.row.covered as f64 / 1e6;
    if seconds <= 0.0 {
        return None;
    }
    let percent = |used: f64| Some(round(used * 100.0 / ticks / seconds));
    let rows = bucket.processes.iter().map(|(_, row)| row);
    let rows: Vec<&Row> = rows.chain([&bucket.others]).collect();
    let of = |figure: fn(&Row) -> Option<u64>| -> f64 {
        let all = rows.iter().filter_map(|row| figure(row));
        all.map(|ticks| ticks as f64).sum()
    };
    let processes = of(|row| Some((*row.flows.get(process::CPU)?)?.total));
    let ended = of(|row| *row.totals.get(process::ENDED_CHILDREN)?);
    let mode = |at: usize| own.total(at).unwrap_or_default() as f64;
    Some(v1::CpuBooks {
        busy_percent: percent(processes + ended + left as f64),
        processes_percent: percent(processes),
        ended_children_percent: percent(ended),
        unaccounted_percent: percent(left as f64),
        idle_percent: percent(mode(host::IDLE) + mode(host::IOWAIT)),
        steal_percent: percent(mode(host::STEAL)),
    })
}
