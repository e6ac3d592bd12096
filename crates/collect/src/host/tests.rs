//! Whole hosts: fixture trees of several kernels, broken ones, and this machine by both readers.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use nodestats_core::rates::{host_reading, process_rows};

use super::*;

const PATIENCE: Duration = Duration::from_secs(30);

fn fixture(name: &str) -> HostRoot {
    HostRoot::new(
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("fixtures")
            .join(name),
    )
}

fn read(root: &HostRoot) -> Sample {
    Reader::open(root).expect("opens").read(PATIENCE).1
}

fn failed(sample: &Sample) -> Vec<&str> {
    let failed = sample.host.collectors.iter().filter(|run| !run.success);
    failed.map(|run| run.collector.as_str()).collect()
}

#[test]
fn linux_6_18_of_a_virtual_machine() {
    let sample = read(&fixture("linux-6.18"));
    let host = &sample.host;
    assert_eq!(failed(&sample), [""; 0]);
    assert_eq!(host.cpus.len(), 2);
    assert!(
        host.cpus
            .iter()
            .all(|cpu| cpu.frequency_mhz.is_some_and(|mhz| mhz > 1000.0))
    );
    assert!(host.boot_time_seconds.is_some_and(|boot| boot > 1.7e9));
    let memory = host.memory.expect("memory");
    assert!(
        memory
            .available
            .is_some_and(|available| available <= memory.total)
    );
    assert!(
        host.pressure
            .is_some_and(|pressure| pressure.cpu.is_some_and(|cpu| cpu.full.is_some()))
    );
    let disks = host.disks.as_ref().expect("disks");
    assert!(
        disks
            .iter()
            .any(|disk| disk.device == "vda" && disk.written_bytes > 0)
    );
    let interfaces = host.interfaces.as_ref().expect("interfaces");
    assert!(
        interfaces
            .iter()
            .any(|interface| interface.interface == "lo")
    );
    assert!(
        sample
            .processes
            .iter()
            .any(|process| process.pid == 1 && process.command_line.is_some())
    );
}

/// What is known of a recorded kernel: its disk, its odd process, its busy one, and whether it
/// has pressure stall information, for CPUs also the line `full`.
type Recorded = (&'static str, &'static str, u32, u32, Option<bool>);

#[test]
fn recorded_kernels_are_read_whole() {
    let recorded: [Recorded; 3] = [
        ("linux-4.4", "vda", 129, 130, None),
        ("linux-5.4", "sda", 202, 203, Some(false)),
        ("linux-6.1", "vda", 114, 115, Some(true)),
    ];
    for (folder, device, odd, busy, pressure) in recorded {
        let sample = read(&fixture(folder));
        let host = &sample.host;
        assert_eq!(failed(&sample), [""; 0], "{folder}");
        assert_eq!(host.cpus.len(), 2, "{folder}");
        assert!(!host.boot_id.is_empty() && host.load_average.is_some());
        let memory = host.memory.expect("memory");
        assert!(memory.total > 480_000 * 1024 && memory.total < 512 << 20);
        assert!(memory.available.is_some_and(|bytes| bytes < memory.total));
        let disks = host.disks.iter().flatten();
        let used: Vec<_> = disks.filter(|disk| disk.writes > 0).collect();
        assert_eq!(used.len(), 1, "{folder}");
        assert_eq!(used[0].device, device);
        assert_eq!(used[0].written_bytes, 2596 * 512);
        let full = host
            .pressure
            .map(|pressure| pressure.cpu.expect("pressure of CPUs").full.is_some());
        assert_eq!(full, pressure, "{folder}");
        let process = |pid| {
            let found = sample.processes.iter().find(|process| process.pid == pid);
            found.expect("it was recorded")
        };
        assert_eq!(&*process(odd).name, "a) (b\n\u{FFFD}", "{folder}");
        assert_eq!(process(odd).command_line.as_deref(), Some("sleep\x001000"));
        assert_eq!(process(odd).user.as_deref(), Some("root"));
        assert!(process(busy).user_ticks > 300 && process(busy).state == 'R');
        for pid in [odd, busy] {
            let process = process(pid);
            assert!(process.read_bytes.is_some() && process.shared_bytes.is_some());
            assert!(process.resident_bytes > 0 && process.threads == 1);
        }
        // A kernel thread has no command line.
        assert_eq!(process(2).command_line, None);
    }
}

#[test]
fn partitions_and_unused_loop_devices_are_no_disks() {
    let sample = read(&fixture("written-nvme"));
    let host = &sample.host;
    assert_eq!(failed(&sample), [""; 0]);
    let devices: Vec<&str> = host
        .disks
        .iter()
        .flatten()
        .map(|disk| disk.device.as_str())
        .collect();
    // No /sys/block of partitions, and no loop device that nobody uses.
    assert_eq!(devices, ["nvme0n1"]);
    // Before 5.13 the CPU has no line "full".
    let cpu = host
        .pressure
        .and_then(|pressure| pressure.cpu)
        .expect("pressure of CPUs");
    assert_eq!(cpu.full, None);
    assert_eq!(host.cpus[1].frequency_mhz, Some(2200.5));
}

#[test]
fn a_kernel_without_available_memory_and_pressure() {
    let sample = read(&fixture("written-3.10"));
    let reading = host_reading(None, &sample.host);
    assert_eq!(failed(&sample), [""; 0]);
    let memory = reading.memory.expect("memory");
    assert_eq!(memory.total_bytes, Some(16_268_000 * 1024));
    assert_eq!(
        (
            memory.available_bytes,
            memory.used_bytes,
            memory.usage_percent
        ),
        (None, None, None)
    );
    assert_eq!(reading.pressure, None);
    assert!(
        sample
            .host
            .disks
            .is_some_and(|disks| disks.iter().any(|disk| disk.device == "sda"))
    );
}

#[test]
fn a_broken_host_gives_what_can_be_read_and_names_the_rest() {
    let sample = read(&fixture("broken"));
    assert_eq!(
        failed(&sample),
        ["memory", "disk", "network", "filesystems"]
    );
    let host = &sample.host;
    assert!(host.cpu_total.is_some() && host.load_average.is_some());
    assert_eq!(
        (host.memory, &host.disks, &host.interfaces),
        (None, &None, &None)
    );
    let json = serde_json::to_value(host_reading(None, host)).expect("plain data");
    assert_eq!(json.get("memory"), None);
}

#[test]
fn a_root_that_is_no_host_is_refused() {
    let folder = tempfile::tempdir().expect("temporary folder");
    assert!(matches!(
        Reader::open(&HostRoot::new(folder.path())),
        Err(OpenError::NoProc { .. })
    ));
}

#[test]
fn facts_of_a_mounted_host_are_its_own() {
    let folder = tempfile::tempdir().expect("temporary folder");
    fs::create_dir_all(folder.path().join("etc")).expect("made");
    fs::write(folder.path().join("etc/hostname"), "elsewhere\n").expect("written");
    fs::write(
        folder.path().join("etc/os-release"),
        "NAME=x\nPRETTY_NAME=\"X 1\"\n",
    )
    .expect("written");
    let facts = HostFacts::read(&HostRoot::new(folder.path()));
    assert_eq!(
        (facts.hostname.as_str(), facts.os.as_deref()),
        ("elsewhere", Some("X 1"))
    );
}

#[test]
fn both_readers_agree_on_this_machine() {
    let root = HostRoot::new("/");
    let mut own = Reader::open(&root).expect("opens");
    let mut other = SysinfoReader::new().expect("Linux");
    other.read();
    let (_, first) = own.read(PATIENCE);
    let second = other.read();
    assert_eq!(failed(&first), [""; 0]);
    let (a, b) = (
        first.host.memory.expect("memory"),
        second.host.memory.expect("memory"),
    );
    assert_eq!((a.total, a.swap_total), (b.total, b.swap_total));
    let apart = |a: Option<u64>, b: Option<u64>| a.expect("read").abs_diff(b.expect("read"));
    assert!(
        apart(a.available, b.available) < a.total / 20,
        "{a:?} {b:?}"
    );
    assert_eq!(first.host.cpus.len(), second.host.cpus.len());
    let boot = |sample: &Sample| sample.host.boot_time_seconds.expect("known");
    assert!((boot(&first) - boot(&second)).abs() <= 1.0);
    let load = |sample: &Sample| sample.host.load_average.expect("known")[2];
    assert!((load(&first) - load(&second)).abs() < 0.5);

    let by_pid: HashMap<u32, _> = second
        .processes
        .iter()
        .map(|process| (process.pid, process))
        .collect();
    let both: Vec<_> = first
        .processes
        .iter()
        .filter_map(|process| Some((process, *by_pid.get(&process.pid)?)))
        .collect();
    assert!(
        both.len() * 10 >= first.processes.len() * 9,
        "a process in ten may start or end"
    );
    let own_pid = std::process::id();
    let (a, b) = both
        .iter()
        .find(|(process, _)| process.pid == own_pid)
        .expect("this process");
    assert_eq!((a.ppid, &*a.name), (b.ppid, &*b.name));
    assert_eq!(a.command_line, b.command_line);
    // Other tests of this process allocate meanwhile.
    assert!(a.virtual_bytes.abs_diff(b.virtual_bytes) < 512 << 20);
    assert!(a.resident_bytes.abs_diff(b.resident_bytes) < 16 << 20);
    // Ticks of 10 ms there, milliseconds here.
    assert!((a.cpu_ticks() * 10).abs_diff(b.cpu_ticks()) < 1000);
    for (a, b) in &both {
        let start = |process: &nodestats_core::sample::Process, hz| process.start_ticks as f64 / hz;
        assert!(
            (start(a, 100.0) - start(b, 1000.0)).abs() < 2.0,
            "{a:?} {b:?}"
        );
    }
}

#[test]
fn two_passes_give_rates_and_the_books_add_up() {
    let mut reader = Reader::open(&HostRoot::new("/")).expect("opens");
    let (_, first) = reader.read(PATIENCE);
    // Work until the kernel has counted some of it.
    let second = loop {
        let mut product = 1u64;
        for factor in 1..2_000_000u64 {
            product = std::hint::black_box(product.wrapping_mul(factor | 1));
        }
        let (_, second) = reader.read(PATIENCE);
        if second.host.uptime_micros - first.host.uptime_micros > 300_000 {
            break second;
        }
    };
    let reading = host_reading(Some(&first.host), &second.host);
    let cpus = reading.cpu_usage_percent.expect("rates");
    assert_eq!(cpus.len(), second.host.cpus.len());
    let rows = process_rows(Some(&first), &second);
    assert_eq!(rows[0].pid, 0);
    let own = rows
        .iter()
        .find(|row| row.pid == std::process::id())
        .expect("this process");
    assert!(own.cpu_percent.is_some_and(|cpu| cpu > 0.0), "{own:?}");
    assert!(
        rows.iter()
            .all(|row| row.cpu_percent.is_none_or(|cpu| cpu >= 0.0))
    );
}
