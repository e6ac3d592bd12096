//! One pass over all processes of this machine: our reader beside sysinfo and the procfs crate
//! reading the same fields. Prints medians of one run as a JSON object; the ratios mean more than
//! the figures, since all three ran on the same machine at the same time.

use std::time::{Duration, Instant};

use nodestats_collect::{HostRoot, Processes};
use sysinfo::{ProcessRefreshKind, ProcessesToUpdate, System, UpdateKind};

/// Passes of each reader, in turn.
const ROUNDS: usize = 101;

fn main() {
    let root = HostRoot::new("/");
    let mut own = Processes::default();
    let mut system = System::new().expect("a known system");
    let mut counts = Vec::new();
    let (mut ours, mut sysinfos, mut procfses) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let begin = Instant::now();
        let processes = own.read(&root).expect("this machine has /proc");
        let pass = begin.elapsed();
        counts.push(processes.len());

        let begin = Instant::now();
        refresh(&mut system);
        let sysinfo_pass = begin.elapsed();

        let begin = Instant::now();
        std::hint::black_box(procfs_pass());
        let procfs_pass = begin.elapsed();
        // The first pass opens and learns everything; it is not what a node pays each interval.
        if round > 0 {
            ours.push(pass);
            sysinfos.push(sysinfo_pass);
            procfses.push(procfs_pass);
        }
    }
    counts.sort_unstable();
    println!(
        "{{\"processes\": {}, \"pass_micros\": {}, \"sysinfo_micros\": {}, \"procfs_micros\": {}}}",
        counts[counts.len() / 2],
        median(ours),
        median(sysinfos),
        median(procfses),
    );
}

fn refresh(system: &mut System) {
    let what = ProcessRefreshKind::nothing()
        .with_cpu()
        .with_memory()
        .with_disk_usage()
        .with_user(UpdateKind::OnlyIfNotSet)
        .with_cmd(UpdateKind::OnlyIfNotSet)
        .without_tasks();
    system.refresh_processes_specifics(ProcessesToUpdate::All, true, what);
}

/// The fields that change, of each process: `stat`, `statm`, `io`, open files.
fn procfs_pass() -> usize {
    let Ok(processes) = procfs::process::all_processes() else {
        return 0;
    };
    processes
        .flatten()
        .filter(|process| {
            let read = (
                process.stat(),
                process.statm(),
                process.io(),
                process.fd_count(),
            );
            std::hint::black_box(&read);
            read.0.is_ok()
        })
        .count()
}

fn median(mut times: Vec<Duration>) -> u128 {
    times.sort_unstable();
    times[times.len() / 2].as_micros()
}
