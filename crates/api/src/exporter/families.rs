//! The table of `node_exporter`'s names for the figures that we have, and of what only we have.

use nodestats_core::sample::{CpuTimes, DirectionCounters, DiskCounters, Filesystem, StallLine};
use nodestats_runtime::metrics::{Exposition, Kind};

use super::Scraped;

/// Takes a sample of a family: its labels and its value.
type Emit<'a> = &'a mut dyn FnMut(&[(&str, &str)], f64);

/// One family.
struct Family {
    name: &'static str,
    kind: Kind,
    help: &'static str,
    figures: fn(&Scraped, Emit),
}

const fn gauge(name: &'static str, help: &'static str, figures: fn(&Scraped, Emit)) -> Family {
    Family {
        name,
        kind: Kind::Gauge,
        help,
        figures,
    }
}

const fn counter(name: &'static str, help: &'static str, figures: fn(&Scraped, Emit)) -> Family {
    Family {
        name,
        kind: Kind::Counter,
        help,
        figures,
    }
}

/// Writes what these nodes have, family by family, each node with its `instance` where one is given.
pub(super) fn write(nodes: &[(Option<&str>, &Scraped)], to: &mut Exposition) {
    for family in FAMILIES {
        let mut begun = false;
        for (instance, node) in nodes {
            let instance = instance.map(|instance| ("instance", instance));
            (family.figures)(node, &mut |labels, value| {
                if !begun {
                    begun = true;
                    to.family(family.name, family.kind, family.help);
                }
                let labels = instance.into_iter().chain(labels.iter().copied());
                to.sample(family.name, labels, value);
            });
        }
    }
}

/// The modes of `node_cpu_seconds_total`; guest time is inside user, as the kernel has it.
fn cpu_modes(times: &CpuTimes) -> [(&'static str, u64); 8] {
    [
        ("idle", times.idle),
        ("iowait", times.iowait),
        ("irq", times.irq),
        ("nice", times.nice),
        ("softirq", times.softirq),
        ("steal", times.steal),
        ("system", times.system),
        ("user", times.user),
    ]
}

fn disks(node: &Scraped, emit: Emit, figure: fn(&DiskCounters) -> f64) {
    for disk in node.host.disks.iter().flatten() {
        emit(&[("device", &disk.device)], figure(disk));
    }
}

fn filesystems(node: &Scraped, emit: Emit, figure: fn(&Filesystem) -> f64) {
    for one in node.host.filesystems.iter().flatten() {
        let labels = [
            ("device", &*one.device),
            ("fstype", &*one.kind),
            ("mountpoint", &*one.mountpoint),
        ];
        emit(&labels, figure(one));
    }
}

fn received(node: &Scraped, emit: Emit, figure: fn(&DirectionCounters) -> u64) {
    for one in node.host.interfaces.iter().flatten() {
        emit(&[("device", &one.interface)], figure(&one.receive) as f64);
    }
}

fn sent(node: &Scraped, emit: Emit, figure: fn(&DirectionCounters) -> u64) {
    for one in node.host.interfaces.iter().flatten() {
        emit(&[("device", &one.interface)], figure(&one.transmit) as f64);
    }
}

fn one(emit: Emit, value: Option<u64>) {
    if let Some(value) = value {
        emit(&[], value as f64);
    }
}

fn stalled(emit: Emit, line: Option<StallLine>) {
    if let Some(line) = line {
        emit(&[], line.total_micros as f64 / 1e6);
    }
}

fn load(node: &Scraped, emit: Emit, index: usize) {
    if let Some(load) = node.host.load_average {
        emit(&[], load[index]);
    }
}

/// What `node_exporter` calls a collector.
fn collector(name: &str) -> &str {
    match name {
        "disk" => "diskstats",
        "filesystems" => "filesystem",
        "load" => "loadavg",
        "memory" => "meminfo",
        "network" => "netdev",
        other => other,
    }
}

/// A process by what makes it one, and what a reader knows it by.
fn processes(
    node: &Scraped,
    emit: Emit,
    figure: fn(&Scraped, &nodestats_core::sample::Process) -> Option<f64>,
) {
    for process in &node.processes {
        if let Some(value) = figure(node, process) {
            let pid = process.pid.to_string();
            let labels = [
                ("pid", &*pid),
                ("name", &*process.name),
                ("user", process.user.as_deref().unwrap_or_default()),
            ];
            emit(&labels, value);
        }
    }
}

const FAMILIES: &[Family] = &[
    gauge(
        "node_boot_time_seconds",
        "When the host booted, since 1970.",
        |node, emit| {
            if let Some(time) = node.host.boot_time_seconds {
                emit(&[], time);
            }
        },
    ),
    gauge(
        "node_time_seconds",
        "The host's clock when these figures were taken, since 1970.",
        |node, emit| emit(&[], node.time.seconds()),
    ),
    gauge("node_uname_info", "What the host runs.", |node, emit| {
        let registration = &node.life.registration;
        let labels = [
            (
                "machine",
                registration.architecture.as_deref().unwrap_or_default(),
            ),
            ("nodename", &*registration.hostname),
            (
                "release",
                registration.kernel.as_deref().unwrap_or_default(),
            ),
            ("sysname", "Linux"),
        ];
        emit(&labels, 1.0);
    }),
    counter(
        "node_cpu_seconds_total",
        "Time of each CPU by what it was spent on.",
        |node, emit| {
            let ticks = f64::from(node.host.ticks_per_second.max(1));
            for cpu in &node.host.cpus {
                let number = cpu.cpu.to_string();
                for (mode, time) in cpu_modes(&cpu.times) {
                    emit(&[("cpu", &*number), ("mode", mode)], time as f64 / ticks);
                }
            }
        },
    ),
    gauge("node_load1", "Load average over a minute.", |node, emit| {
        load(node, emit, 0);
    }),
    gauge(
        "node_load5",
        "Load average over five minutes.",
        |node, emit| load(node, emit, 1),
    ),
    gauge(
        "node_load15",
        "Load average over a quarter of an hour.",
        |node, emit| {
            load(node, emit, 2);
        },
    ),
    gauge("node_memory_MemTotal_bytes", "Memory.", |node, emit| {
        one(emit, node.host.memory.map(|memory| memory.total));
    }),
    gauge(
        "node_memory_MemFree_bytes",
        "Memory that nothing is in.",
        |node, emit| {
            one(emit, node.host.memory.and_then(|memory| memory.free));
        },
    ),
    gauge(
        "node_memory_MemAvailable_bytes",
        "Memory that programs can have without swapping.",
        |node, emit| one(emit, node.host.memory.and_then(|memory| memory.available)),
    ),
    gauge(
        "node_memory_Buffers_bytes",
        "Buffers of block devices.",
        |node, emit| {
            one(emit, node.host.memory.and_then(|memory| memory.buffers));
        },
    ),
    gauge(
        "node_memory_Cached_bytes",
        "Pages of files.",
        |node, emit| {
            one(emit, node.host.memory.and_then(|memory| memory.cached));
        },
    ),
    gauge(
        "node_memory_Shmem_bytes",
        "Shared memory and tmpfs.",
        |node, emit| {
            one(emit, node.host.memory.and_then(|memory| memory.shared));
        },
    ),
    gauge(
        "node_memory_SReclaimable_bytes",
        "The kernel's memory that it can give back.",
        |node, emit| {
            one(
                emit,
                node.host.memory.and_then(|memory| memory.slab_reclaimable),
            );
        },
    ),
    gauge(
        "node_memory_SwapTotal_bytes",
        "Swap space.",
        |node, emit| {
            one(emit, node.host.memory.and_then(|memory| memory.swap_total));
        },
    ),
    gauge(
        "node_memory_SwapFree_bytes",
        "Swap space that nothing is in.",
        |node, emit| {
            one(emit, node.host.memory.and_then(|memory| memory.swap_free));
        },
    ),
    counter("node_disk_reads_completed_total", "Reads.", |node, emit| {
        disks(node, emit, |disk| disk.reads as f64);
    }),
    counter("node_disk_read_bytes_total", "Bytes read.", |node, emit| {
        disks(node, emit, |disk| disk.read_bytes as f64);
    }),
    counter(
        "node_disk_writes_completed_total",
        "Writes.",
        |node, emit| {
            disks(node, emit, |disk| disk.writes as f64);
        },
    ),
    counter(
        "node_disk_written_bytes_total",
        "Bytes written.",
        |node, emit| {
            disks(node, emit, |disk| disk.written_bytes as f64);
        },
    ),
    gauge("node_disk_io_now", "Requests under way.", |node, emit| {
        disks(node, emit, |disk| disk.in_flight as f64);
    }),
    counter(
        "node_disk_io_time_seconds_total",
        "Time with at least one request under way.",
        |node, emit| disks(node, emit, |disk| disk.busy_millis as f64 / 1000.0),
    ),
    gauge("node_filesystem_size_bytes", "Size.", |node, emit| {
        filesystems(node, emit, |one| one.total as f64);
    }),
    gauge(
        "node_filesystem_free_bytes",
        "Free for root.",
        |node, emit| {
            filesystems(node, emit, |one| one.free as f64);
        },
    ),
    gauge(
        "node_filesystem_avail_bytes",
        "Free for ordinary users.",
        |node, emit| {
            filesystems(node, emit, |one| one.available as f64);
        },
    ),
    gauge("node_filesystem_files", "Inodes.", |node, emit| {
        filesystems(node, emit, |one| one.inodes as f64);
    }),
    gauge(
        "node_filesystem_files_free",
        "Free inodes.",
        |node, emit| {
            filesystems(node, emit, |one| one.inodes_free as f64);
        },
    ),
    gauge(
        "node_filesystem_readonly",
        "1 where it is mounted read-only.",
        |node, emit| {
            filesystems(node, emit, |one| f64::from(one.read_only));
        },
    ),
    counter(
        "node_network_receive_bytes_total",
        "Bytes received.",
        |node, emit| {
            received(node, emit, |counters| counters.bytes);
        },
    ),
    counter(
        "node_network_receive_packets_total",
        "Packets received.",
        |node, emit| {
            received(node, emit, |counters| counters.packets);
        },
    ),
    counter(
        "node_network_receive_errs_total",
        "Packets received in error.",
        |node, emit| {
            received(node, emit, |counters| counters.errors);
        },
    ),
    counter(
        "node_network_receive_drop_total",
        "Packets received and dropped.",
        |node, emit| {
            received(node, emit, |counters| counters.dropped);
        },
    ),
    counter(
        "node_network_transmit_bytes_total",
        "Bytes sent.",
        |node, emit| {
            sent(node, emit, |counters| counters.bytes);
        },
    ),
    counter(
        "node_network_transmit_packets_total",
        "Packets sent.",
        |node, emit| {
            sent(node, emit, |counters| counters.packets);
        },
    ),
    counter(
        "node_network_transmit_errs_total",
        "Packets not sent for an error.",
        |node, emit| {
            sent(node, emit, |counters| counters.errors);
        },
    ),
    counter(
        "node_network_transmit_drop_total",
        "Packets dropped before they were sent.",
        |node, emit| {
            sent(node, emit, |counters| counters.dropped);
        },
    ),
    counter(
        "node_pressure_cpu_waiting_seconds_total",
        "Time in which something waited for a CPU.",
        |node, emit| {
            let stall = node.host.pressure.and_then(|pressure| pressure.cpu);
            stalled(emit, stall.map(|stall| stall.some));
        },
    ),
    counter(
        "node_pressure_io_waiting_seconds_total",
        "Time in which something waited for disks.",
        |node, emit| {
            let stall = node.host.pressure.and_then(|pressure| pressure.io);
            stalled(emit, stall.map(|stall| stall.some));
        },
    ),
    counter(
        "node_pressure_io_stalled_seconds_total",
        "Time in which everything waited for disks.",
        |node, emit| {
            let stall = node.host.pressure.and_then(|pressure| pressure.io);
            stalled(emit, stall.and_then(|stall| stall.full));
        },
    ),
    counter(
        "node_pressure_memory_waiting_seconds_total",
        "Time in which something waited for memory.",
        |node, emit| {
            let stall = node.host.pressure.and_then(|pressure| pressure.memory);
            stalled(emit, stall.map(|stall| stall.some));
        },
    ),
    counter(
        "node_pressure_memory_stalled_seconds_total",
        "Time in which everything waited for memory.",
        |node, emit| {
            let stall = node.host.pressure.and_then(|pressure| pressure.memory);
            stalled(emit, stall.and_then(|stall| stall.full));
        },
    ),
    gauge("node_processes_pids", "Processes.", |node, emit| {
        one(emit, node.host.process_count.map(u64::from));
    }),
    gauge(
        "node_scrape_collector_success",
        "1 where the collector had its figures in time.",
        |node, emit| {
            for run in &node.host.collectors {
                let labels = [("collector", collector(&run.collector))];
                emit(&labels, f64::from(run.success));
            }
        },
    ),
    gauge(
        "node_scrape_collector_duration_seconds",
        "How long the collector took.",
        |node, emit| {
            for run in &node.host.collectors {
                let labels = [("collector", collector(&run.collector))];
                emit(&labels, run.duration_micros as f64 / 1e6);
            }
        },
    ),
    counter(
        "nodestats_process_cpu_seconds_total",
        "CPU time of the processes that used most.",
        |node, emit| {
            processes(node, emit, |node, process| {
                let ticks = f64::from(node.host.ticks_per_second.max(1));
                Some(process.cpu_ticks() as f64 / ticks)
            });
        },
    ),
    gauge(
        "nodestats_process_resident_memory_bytes",
        "Their resident memory.",
        |node, emit| processes(node, emit, |_, process| Some(process.resident_bytes as f64)),
    ),
    gauge(
        "nodestats_process_threads",
        "Their threads.",
        |node, emit| {
            processes(node, emit, |_, process| Some(f64::from(process.threads)));
        },
    ),
    counter(
        "nodestats_process_read_bytes_total",
        "Bytes that they fetched from disks.",
        |node, emit| {
            processes(node, emit, |_, process| {
                process.read_bytes.map(|bytes| bytes as f64)
            });
        },
    ),
    counter(
        "nodestats_process_written_bytes_total",
        "Bytes that they sent to disks.",
        |node, emit| {
            processes(node, emit, |_, process| {
                process.written_bytes.map(|bytes| bytes as f64)
            });
        },
    ),
];
