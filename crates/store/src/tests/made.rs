//! Samples that follow from a number: what was stored is known without having been kept.

use nodestats_core::sample::{Cgroup, CpuTimes, Host, Memory, Process, Sample};

/// The sample of a node at a number: two processes that always run, one that starts anew each ten
/// samples, and one group.
pub(crate) fn sample(node: u64, number: u64) -> Sample {
    let life = number / 10;
    let process = |pid: u32, start_ticks, name: &str, ticks: u64| Process {
        pid,
        start_ticks,
        name: name.into(),
        state: 'S',
        user_ticks: ticks,
        minor_faults: ticks * 3,
        threads: 1,
        virtual_bytes: 8 << 20,
        resident_bytes: (4 + number % 3) << 20,
        user: Some("root".into()),
        command_line: Some(format!("{name} --node {node}").into()),
        cgroup: (pid > 1).then(|| "/system.slice/work.service".into()),
        ..Process::default()
    };
    let mut sample = Sample {
        host: Host {
            boot_id: "a boot".into(),
            uptime_micros: number * 10_000_000,
            ticks_per_second: 100,
            load_average: Some([0.25, 0.5, number as f64 / 100.0]),
            cpu_total: Some(CpuTimes {
                user: number * (7 + node % 5),
                idle: number * 900,
                ..CpuTimes::default()
            }),
            memory: Some(Memory {
                total: 1 << 30,
                available: Some((1 << 29) + (number % 100) * 4096),
                ..Memory::default()
            }),
            ..Host::default()
        },
        processes: vec![
            process(1, 0, "init", number / 6),
            process(20, 5, "work", number * 3),
            process(30 + (life % 7) as u32, life * 1000, "short", number % 10),
        ],
        cgroups: Some(vec![Cgroup {
            path: "/system.slice/work.service".into(),
            id: 77,
            tasks: Some(2),
            ..Cgroup::default()
        }]),
        notes: Vec::new(),
    };
    sample.gather_members();
    sample
}
