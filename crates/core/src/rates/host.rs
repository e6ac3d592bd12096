//! The figures of the host as a whole.

use nodestats_wire::v1::{
    CollectorReport, Cpu, CpuCore, CpuModes, Disk, DiskDevice, Filesystem, Filesystems, Memory,
    Network, NetworkInterface, Pressure, PressureLine, PressureResource, Reading,
};

use super::counter::{Span, percent, round};
use crate::sample::{self, CpuTimes, DirectionCounters, Host};

/// What `current` says of the host, all groups but the processes; without its time.
pub fn host_reading(previous: Option<&Host>, current: &Host) -> Reading {
    let span = previous.and_then(|previous| Some((Span::between(previous, current)?, previous)));
    let cpu = cpu(span.map(|(_, previous)| previous), current);
    let mut reading = Reading {
        boottime: current.boot_time_seconds,
        loadavg: current.load_average,
        process_count: current.process_count.map(u64::from),
        collectors: Some(current.collectors.iter().map(collector).collect()),
        memory: current.memory.as_ref().map(memory),
        disk: current.disks.as_ref().map(|disks| disk(span, disks)),
        network: current.interfaces.as_ref().map(|interfaces| {
            let before =
                span.and_then(|(span, previous)| Some((span, previous.interfaces.as_deref()?)));
            network(before, interfaces)
        }),
        filesystems: current.filesystems.as_ref().map(|list| Filesystems {
            filesystems: Some(list.iter().map(filesystem).collect()),
            ..Filesystems::default()
        }),
        pressure: current.pressure.as_ref().map(pressure),
        cpu,
        ..Reading::default()
    };
    fill_summary(&mut reading);
    reading
}

/// The reading of a third party as `GET /nodes/{node}` shows it: the groups that have a path of
/// their own are left out, and what they alone say of the summary is filled in.
pub fn summary(mut reading: Reading) -> Reading {
    fill_summary(&mut reading);
    if let Some(processes) = &reading.processes {
        reading.process_count.get_or_insert(processes.len() as u64);
    }
    Reading {
        cpu: None,
        memory: None,
        disk: None,
        network: None,
        filesystems: None,
        pressure: None,
        processes: None,
        ..reading
    }
}

fn fill_summary(reading: &mut Reading) {
    if let Some(cpu) = &reading.cpu {
        reading.loadavg = reading.loadavg.or(cpu.loadavg);
        if reading.cpu_usage_percent.is_none() {
            let cpus = cpu.cpus.iter().flatten();
            reading.cpu_usage_percent = cpus
                .map(|cpu| cpu.usage_percent)
                .collect::<Option<Vec<_>>>()
                .filter(|all| !all.is_empty());
        }
    }
    let memory = reading
        .memory
        .as_ref()
        .and_then(|memory| memory.usage_percent);
    reading.memory_usage_percent = reading.memory_usage_percent.or(memory);
}

fn collector(run: &sample::CollectorRun) -> CollectorReport {
    CollectorReport {
        collector: Some(run.collector.clone()),
        success: Some(run.success),
        duration_seconds: Some(run.duration_micros as f64 / 1e6),
    }
}

fn cpu(previous: Option<&Host>, current: &Host) -> Option<Cpu> {
    if current.cpu_total.is_none() && current.cpus.is_empty() {
        return None;
    }
    let total = previous.and_then(|previous| shares(&previous.cpu_total?, &current.cpu_total?));
    let cpus = current.cpus.iter().map(|cpu| {
        let before =
            previous.and_then(|previous| previous.cpus.iter().find(|before| before.cpu == cpu.cpu));
        let modes = before.and_then(|before| shares(&before.times, &cpu.times));
        CpuCore {
            cpu: Some(cpu.cpu),
            usage_percent: modes.as_ref().map(usage),
            frequency_mhz: cpu.frequency_mhz.map(round),
            modes,
        }
    });
    Some(Cpu {
        usage_percent: total.as_ref().map(usage),
        loadavg: current.load_average,
        cpus: Some(cpus.collect()),
        modes: total,
        ..Cpu::default()
    })
}

/// Shares of the ticks that passed; `None` where none did.
fn shares(previous: &CpuTimes, current: &CpuTimes) -> Option<CpuModes> {
    let ticks = current.since(previous).modes().map(|ticks| ticks as f64);
    let all: f64 = ticks.iter().sum();
    let [user, nice, system, idle, iowait, irq, softirq, steal] =
        ticks.map(|ticks| percent(ticks, all));
    user.is_some().then_some(CpuModes {
        user,
        nice,
        system,
        idle,
        iowait,
        irq,
        softirq,
        steal,
    })
}

fn usage(modes: &CpuModes) -> f64 {
    let waiting = modes.idle.unwrap_or_default() + modes.iowait.unwrap_or_default();
    round((100.0 - waiting).clamp(0.0, 100.0))
}

fn memory(memory: &sample::Memory) -> Memory {
    let total = memory.total as f64;
    let used = memory
        .available
        .map(|available| memory.total.saturating_sub(available));
    let swap_used = memory
        .swap_total
        .zip(memory.swap_free)
        .map(|(all, free)| all.saturating_sub(free));
    Memory {
        total_bytes: Some(memory.total),
        used_bytes: used,
        free_bytes: memory.free,
        available_bytes: memory.available,
        buffers_bytes: memory.buffers,
        cached_bytes: memory.cached,
        shared_bytes: memory.shared,
        slab_reclaimable_bytes: memory.slab_reclaimable,
        swap_total_bytes: memory.swap_total,
        swap_used_bytes: swap_used,
        usage_percent: used.and_then(|used| percent(used as f64, total)),
        swap_usage_percent: swap_used
            .zip(memory.swap_total)
            .and_then(|(used, all)| percent(used as f64, all as f64)),
        ..Memory::default()
    }
}

fn disk(span: Option<(Span, &Host)>, disks: &[sample::DiskCounters]) -> Disk {
    let device = |now: &sample::DiskCounters| {
        let before = span.and_then(|(span, previous)| {
            let mut disks = previous.disks.iter().flatten();
            Some((span, disks.find(|before| before.device == now.device)?))
        });
        let rate = |field: fn(&sample::DiskCounters) -> u64| {
            before.map(|(span, before)| span.rate(field(before), field(now)))
        };
        DiskDevice {
            device: Some(now.device.clone()),
            read_bytes_per_second: rate(|disk| disk.read_bytes),
            write_bytes_per_second: rate(|disk| disk.written_bytes),
            reads_per_second: rate(|disk| disk.reads),
            writes_per_second: rate(|disk| disk.writes),
            // Milliseconds busy a second are tenths of a percent; the kernel rounds up a little.
            busy_percent: rate(|disk| disk.busy_millis)
                .map(|millis| round(millis / 10.0).min(100.0)),
            requests_in_flight: Some(now.in_flight),
            read_bytes_total: Some(now.read_bytes),
            write_bytes_total: Some(now.written_bytes),
        }
    };
    Disk {
        devices: Some(disks.iter().map(device).collect()),
        ..Disk::default()
    }
}

/// Interfaces of one network namespace; `previous` are the same ones at the sample before.
pub(super) fn network(
    previous: Option<(Span, &[sample::InterfaceCounters])>,
    interfaces: &[sample::InterfaceCounters],
) -> Network {
    let interface = |now: &sample::InterfaceCounters| {
        let before = previous.and_then(|(span, previous)| {
            let mut interfaces = previous.iter();
            let before = interfaces.find(|before| before.interface == now.interface)?;
            Some((span, before))
        });
        let receive = |field: fn(&DirectionCounters) -> u64| {
            before.map(|(span, before)| span.rate(field(&before.receive), field(&now.receive)))
        };
        let transmit = |field: fn(&DirectionCounters) -> u64| {
            before.map(|(span, before)| span.rate(field(&before.transmit), field(&now.transmit)))
        };
        NetworkInterface {
            interface: Some(now.interface.clone()),
            receive_bytes_per_second: receive(|counters| counters.bytes),
            transmit_bytes_per_second: transmit(|counters| counters.bytes),
            receive_packets_per_second: receive(|counters| counters.packets),
            transmit_packets_per_second: transmit(|counters| counters.packets),
            receive_errors_per_second: receive(|counters| counters.errors),
            transmit_errors_per_second: transmit(|counters| counters.errors),
            receive_dropped_per_second: receive(|counters| counters.dropped),
            transmit_dropped_per_second: transmit(|counters| counters.dropped),
            receive_bytes_total: Some(now.receive.bytes),
            transmit_bytes_total: Some(now.transmit.bytes),
        }
    };
    Network {
        interfaces: Some(interfaces.iter().map(interface).collect()),
        ..Network::default()
    }
}

fn filesystem(filesystem: &sample::Filesystem) -> Filesystem {
    let used = filesystem.total.saturating_sub(filesystem.free);
    let inodes_used = filesystem.inodes.saturating_sub(filesystem.inodes_free);
    Filesystem {
        mountpoint: Some(filesystem.mountpoint.clone()),
        device: Some(filesystem.device.clone()),
        filesystem_type: Some(filesystem.kind.clone()),
        total_bytes: Some(filesystem.total),
        used_bytes: Some(used),
        available_bytes: Some(filesystem.available),
        usage_percent: percent(
            used as f64,
            used.saturating_add(filesystem.available) as f64,
        ),
        inodes_total: (filesystem.inodes > 0).then_some(filesystem.inodes),
        inodes_used_percent: percent(inodes_used as f64, filesystem.inodes as f64),
        read_only: Some(filesystem.read_only),
    }
}

pub(super) fn pressure(pressure: &sample::Pressure) -> Pressure {
    let line = |line: sample::StallLine| {
        let [avg10, avg60, avg300] = line.averages.map(Some);
        PressureLine {
            avg10_percent: avg10,
            avg60_percent: avg60,
            avg300_percent: avg300,
            total_seconds: Some(line.total_micros as f64 / 1e6),
        }
    };
    let resource = |stall: Option<sample::Stall>| {
        stall.map(|stall| PressureResource {
            some: Some(line(stall.some)),
            full: stall.full.map(line),
        })
    };
    Pressure {
        cpu: resource(pressure.cpu),
        memory: resource(pressure.memory),
        io: resource(pressure.io),
        ..Pressure::default()
    }
}
