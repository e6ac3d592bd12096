//! What must hold of rates for any two samples.

use proptest::prelude::*;

use nodestats_wire::Timestamp;

use super::*;
use crate::sample::{
    CpuCounters, CpuTimes, DirectionCounters, DiskCounters, Host, InterfaceCounters, Memory,
    Process, Sample,
};

fn times() -> impl Strategy<Value = CpuTimes> {
    prop::array::uniform8(0u64..1 << 40).prop_map(
        |[user, nice, system, idle, iowait, irq, softirq, steal]| CpuTimes {
            user,
            nice,
            system,
            idle,
            iowait,
            irq,
            softirq,
            steal,
        },
    )
}

fn direction() -> impl Strategy<Value = DirectionCounters> {
    any::<[u64; 4]>().prop_map(|[bytes, packets, errors, dropped]| DirectionCounters {
        bytes,
        packets,
        errors,
        dropped,
    })
}

fn process() -> impl Strategy<Value = Process> {
    (0u32..6, 0u64..4, any::<[u64; 4]>(), any::<Option<u64>>()).prop_map(
        |(pid, start_ticks, [user, system, children, resident], read_bytes)| Process {
            pid: pid + 1,
            start_ticks,
            state: 'S',
            user_ticks: user,
            system_ticks: system,
            children_user_ticks: children,
            resident_bytes: resident,
            read_bytes,
            ..Process::default()
        },
    )
}

prop_compose! {
    fn sample()(
        boot in 0u8..3,
        uptime_micros in 0u64..10_000_000,
        total in times(),
        cpus in prop::collection::vec(times(), 0..4),
        disk in any::<[u64; 3]>(),
        receive in direction(),
        transmit in direction(),
        processes in prop::collection::vec(process(), 0..8),
        memory in any::<[u64; 2]>(),
    ) -> Sample {
        Sample {
            host: Host {
                boot_id: ["", "a", "b"][usize::from(boot)].to_owned(),
                uptime_micros,
                ticks_per_second: 100,
                boot_time_seconds: Some(1e9),
                cpu_total: Some(total),
                cpus: (0..).zip(cpus)
                    .map(|(cpu, times)| CpuCounters { cpu, times, frequency_mhz: None })
                    .collect(),
                memory: Some(Memory {
                    total: memory[0],
                    available: Some(memory[1]),
                    ..Memory::default()
                }),
                disks: Some(vec![DiskCounters {
                    device: "sda".into(),
                    read_bytes: disk[0],
                    written_bytes: disk[1],
                    busy_millis: disk[2],
                    ..DiskCounters::default()
                }]),
                interfaces: Some(vec![InterfaceCounters { interface: "eth0".into(), receive, transmit }]),
                ..Host::default()
            },
            processes,
            ..Sample::default()
        }
    }
}

proptest! {
    #[test]
    fn no_two_samples_give_a_negative_or_broken_figure(previous in sample(), current in sample()) {
        let reading = host_reading(Some(&previous.host), &current.host);
        let json = serde_json::to_string(&reading).expect("plain data");
        // NaN and infinity are null in JSON, and a negative figure has a minus after a colon.
        prop_assert!(!json.contains("null") && !json.contains(":-"), "{json}");
        for usage in reading.cpu_usage_percent.into_iter().flatten() {
            prop_assert!((0.0..=100.0).contains(&usage));
        }
        let rows = process_rows(Some(&previous), &current);
        let json = serde_json::to_string(&rows).expect("plain data");
        prop_assert!(!json.contains("null") && !json.contains(":-"), "{json}");
    }

    #[test]
    fn a_reboot_has_no_rates(previous in sample(), mut current in sample()) {
        current.host.boot_id = format!("after {}", previous.host.boot_id);
        let reading = host_reading(Some(&previous.host), &current.host);
        prop_assert_eq!(reading.cpu_usage_percent, None);
        let disk = reading.disk.and_then(|disk| disk.devices).expect("a disk was read");
        prop_assert_eq!(disk[0].read_bytes_per_second, None);
        for row in process_rows(Some(&previous), &current) {
            prop_assert_eq!(row.cpu_percent, None);
        }
    }

    #[test]
    fn a_missed_sample_loses_no_total(
        start in 0u64..1 << 40, first in 0u64..1 << 30, second in 0u64..1 << 30,
    ) {
        let at = |seconds: u64, bytes: u64| {
            let disk = DiskCounters { device: "sda".into(), read_bytes: bytes, ..DiskCounters::default() };
            Host {
                boot_id: "a".into(),
                uptime_micros: seconds * 1_000_000,
                disks: Some(vec![disk]),
                ..Host::default()
            }
        };
        let rate = |previous: &Host, current: &Host| {
            let disk = host_reading(Some(previous), current).disk.expect("disk");
            disk.devices.expect("devices")[0].read_bytes_per_second.expect("a rate")
        };
        let samples = [at(10, start), at(20, start + first), at(30, start + first + second)];
        let each = rate(&samples[0], &samples[1]) * 10.0 + rate(&samples[1], &samples[2]) * 10.0;
        let over_the_gap = rate(&samples[0], &samples[2]) * 20.0;
        prop_assert!((each - over_the_gap).abs() < 1.0);
    }

    #[test]
    fn a_reset_counter_counts_from_zero(before in 1_000_000u64..1 << 40, after in 0u64..1_000_000) {
        let at = |seconds: u64, bytes: u64| {
            let receive = DirectionCounters { bytes, ..DirectionCounters::default() };
            Host {
                boot_id: "a".into(),
                uptime_micros: seconds * 1_000_000,
                interfaces: Some(vec![InterfaceCounters {
                    interface: "eth0".into(),
                    receive,
                    transmit: receive,
                }]),
                ..Host::default()
            }
        };
        let network = host_reading(Some(&at(10, before)), &at(20, after)).network.expect("network");
        let rate = network.interfaces.expect("interfaces")[0].receive_bytes_per_second;
        prop_assert!((rate.expect("a rate") - after as f64 / 10.0).abs() < 0.01);
    }

    #[test]
    fn cpu_modes_add_up_to_a_hundred(previous in times(), grown in times()) {
        let later = CpuTimes {
            user: previous.user + grown.user,
            nice: previous.nice + grown.nice,
            system: previous.system + grown.system,
            idle: previous.idle + grown.idle,
            iowait: previous.iowait + grown.iowait,
            irq: previous.irq + grown.irq,
            softirq: previous.softirq + grown.softirq,
            steal: previous.steal + grown.steal,
        };
        prop_assume!(later != previous);
        let host = |uptime_micros, times| Host {
            boot_id: "a".into(), uptime_micros, cpu_total: Some(times), ..Host::default()
        };
        let reading = host_reading(Some(&host(0, previous)), &host(1_000_000, later));
        let modes = reading.cpu.and_then(|cpu| cpu.modes).expect("modes");
        let sum: f64 = [
            modes.user, modes.nice, modes.system, modes.idle, modes.iowait, modes.irq,
            modes.softirq, modes.steal,
        ].into_iter().flatten().sum();
        prop_assert!((sum - 100.0).abs() < 0.1, "{sum}");
    }
}

fn process_at(uptime_seconds: u64, process: Process) -> Sample {
    Sample {
        host: Host {
            boot_id: "a".into(),
            uptime_micros: uptime_seconds * 1_000_000,
            ticks_per_second: 100,
            boot_time_seconds: Some(1000.0),
            ..Host::default()
        },
        processes: vec![process],
        ..Sample::default()
    }
}

#[test]
fn a_process_is_itself_only_with_its_start_time() {
    let process = |start_ticks, user_ticks| Process {
        pid: 7,
        start_ticks,
        user_ticks,
        state: 'R',
        read_bytes: Some(user_ticks),
        ..Process::default()
    };
    let cpu = |before: Process, after: Process| {
        process_rows(Some(&process_at(100, before)), &process_at(110, after))[0].clone()
    };
    // One CPU busy for half of ten seconds.
    let same = cpu(process(50, 1000), process(50, 1500));
    assert_eq!(
        (same.cpu_percent, same.read_bytes_per_second),
        (Some(50.0), Some(50.0))
    );
    assert_eq!(same.started_at.map(Timestamp::seconds), Some(1000.5));
    // The pid was used again: the new process started at 105 s and has counted from zero.
    let reused = cpu(process(50, 1000), process(10_500, 200));
    assert_eq!(
        (reused.cpu_percent, reused.read_bytes_per_second),
        (Some(20.0), Some(20.0))
    );
    // It started long before, but the sample before has not got it: not known.
    let unseen = cpu(process(50, 1000), process(60, 200));
    assert_eq!(
        (unseen.cpu_percent, unseen.read_bytes_per_second),
        (None, None)
    );
}

#[test]
fn io_that_one_sample_could_not_read_has_no_rate() {
    let process = |read_bytes| Process {
        pid: 7,
        start_ticks: 50,
        state: 'S',
        read_bytes,
        ..Process::default()
    };
    let rows = process_rows(
        Some(&process_at(100, process(None))),
        &process_at(110, process(Some(5000))),
    );
    assert_eq!(rows[0].read_bytes_per_second, None);
    assert_eq!(rows[0].read_bytes_total, Some(5000));
}

#[test]
fn the_idle_task_makes_the_table_add_up() {
    let at = |uptime: u64, idle, iowait, user_ticks| {
        let mut sample = process_at(
            uptime,
            Process {
                pid: 7,
                start_ticks: 50,
                state: 'R',
                user_ticks,
                ..Process::default()
            },
        );
        sample.host.cpu_total = Some(CpuTimes {
            idle,
            iowait,
            user: user_ticks,
            ..CpuTimes::default()
        });
        sample
    };
    let rows = process_rows(Some(&at(100, 1000, 100, 0)), &at(110, 1600, 200, 1300));
    assert_eq!(rows[0].pid, 0);
    assert_eq!(rows[0].name.as_deref(), Some("System Idle process"));
    // Two CPUs for ten seconds: 70 % idle or waiting, 130 % the one process.
    let all: f64 = rows.iter().filter_map(|row| row.cpu_percent).sum();
    assert!((all - 200.0).abs() < 0.1, "{all}");
}
