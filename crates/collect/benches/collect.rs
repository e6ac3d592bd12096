//! One pass over all processes of this machine: our reader beside sysinfo and the procfs crate
//! reading the same fields. Prints medians of one run as a JSON object; the ratios mean more than
//! the figures, since all three ran on the same machine at the same time.

use std::time::{Duration, Instant};

use nodestats_collect::{HostRoot, Processes};
use sysinfo::{ProcessRefreshKind, ProcessesToUpdate, System, UpdateKind};

/// Blocks of passes of each reader, the readers in turn, so that a slow spell of the machine hits
/// all of them.
///
/// Within a block the caches are warm. With the readers in turn pass by pass our pass took half as
/// long again: figures of the two layouts cannot be compared.
const BLOCKS: usize = 6;
/// Passes of a block.
const PASSES: usize = 20;

fn main() {
    let root = HostRoot::new("/");
    let mut own = Processes::default();
    let mut system = System::new().expect("a known system");
    let mut processes = 0;
    let (mut ours, mut sysinfos, mut procfses) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..BLOCKS {
        time_block(&mut ours, || {
            processes = own.read(&root).expect("this machine has /proc").len();
        });
        time_block(&mut sysinfos, || refresh(&mut system));
        time_block(&mut procfses, || {
            std::hint::black_box(procfs_pass());
        });
    }
    println!(
        "{{\"processes\": {processes}, \"pass_micros\": {}, \"sysinfo_micros\": {}, \"procfs_micros\": {}}}",
        median(ours),
        median(sysinfos),
        median(procfses),
    );
}

/// The first pass of a block is not counted: in the first block it opens and learns everything,
/// in later ones it finds its caches used by another reader.
fn time_block(times: &mut Vec<Duration>, mut pass: impl FnMut()) {
    pass();
    for _ in 0..PASSES {
        let begin = Instant::now();
        pass();
        times.push(begin.elapsed());
    }
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
