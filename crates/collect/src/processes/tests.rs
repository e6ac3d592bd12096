//! Processes of fixture trees, and of this machine.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use super::*;

fn stat_line(pid: u32, name: &[u8], start: u64, user_ticks: u64) -> Vec<u8> {
    let mut line = format!("{pid} (").into_bytes();
    line.extend_from_slice(name);
    line.extend_from_slice(
        format!(") S 1 1 1 0 -1 0 10 0 0 0 {user_ticks} 2 3 4 20 0 5 0 {start} 8192 2 0\n")
            .as_bytes(),
    );
    line
}

fn add_process(root: &Path, pid: u32, name: &[u8], start: u64, user_ticks: u64) {
    let folder = root.join(format!("proc/{pid}"));
    fs::create_dir_all(folder.join("fd")).expect("made");
    fs::write(folder.join("stat"), stat_line(pid, name, start, user_ticks)).expect("written");
    fs::write(folder.join("statm"), "100 50 25 1 0 10 0\n").expect("written");
    fs::write(
        folder.join("status"),
        "Name:\tx\nUid:\t0\t33\t0\t0\nVmSwap:\t  12 kB\n",
    )
    .expect("written");
    fs::write(folder.join("cmdline"), b"/bin/x\0--flag\0").expect("written");
    fs::write(
        folder.join("io"),
        "rchar: 1\nwchar: 2\nsyscr: 3\nsyscw: 4\nread_bytes: 4096\nwrite_bytes: 8192\n",
    )
    .expect("written");
    for descriptor in 0..3 {
        fs::write(folder.join(format!("fd/{descriptor}")), "").expect("written");
    }
}

fn fixture() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("temporary folder");
    fs::create_dir_all(folder.path().join("etc")).expect("made");
    fs::write(folder.path().join("etc/passwd"), "web:x:33:33::/:/bin/sh\n").expect("written");
    fs::create_dir_all(folder.path().join("proc/sys")).expect("made");
    fs::write(
        folder.path().join("proc/meminfo"),
        "SwapTotal: 100 kB\nSwapFree: 50 kB\n",
    )
    .expect("written");
    folder
}

#[test]
fn a_process_has_all_that_its_files_say() {
    let folder = fixture();
    add_process(folder.path(), 42, b"x", 1000, 7);
    let read = Processes::default()
        .read(&HostRoot::new(folder.path()))
        .expect("read");
    let [process] = &read[..] else {
        panic!("one process: {read:?}")
    };
    let page = rustix::param::page_size() as u64;
    assert_eq!(
        (process.pid, &*process.name, process.user_ticks),
        (42, "x", 7)
    );
    assert_eq!(process.user.as_deref(), Some("web"));
    assert_eq!(process.command_line.as_deref(), Some("/bin/x\0--flag"));
    assert_eq!(
        (process.read_bytes, process.written_bytes),
        (Some(4096), Some(8192))
    );
    let calls = process.calls.expect("readable");
    assert_eq!((calls.rchar, calls.syscw), (1, 4));
    assert_eq!(
        (process.shared_bytes, process.swapped_bytes),
        (Some(25 * page), Some(12 << 10))
    );
    assert_eq!(process.open_files, Some(3));
}

#[test]
fn without_swap_in_use_nobody_has_any() {
    let folder = fixture();
    add_process(folder.path(), 42, b"x", 1000, 7);
    fs::write(
        folder.path().join("proc/meminfo"),
        "SwapTotal: 0 kB\nSwapFree: 0 kB\n",
    )
    .expect("written");
    let read = Processes::default()
        .read(&HostRoot::new(folder.path()))
        .expect("read");
    assert_eq!(read[0].swapped_bytes, Some(0));
}

#[test]
fn hostile_names_are_kept_and_shift_nothing() {
    let folder = fixture();
    let names: [&[u8]; 5] = [
        b"a) R 1 (b",
        b"with space",
        b"new\nline",
        b"\xff\xfe",
        b"<script>",
    ];
    for (pid, name) in (1..).zip(names) {
        add_process(folder.path(), pid, name, 1000, 7);
    }
    let read = Processes::default()
        .read(&HostRoot::new(folder.path()))
        .expect("read");
    let found: Vec<&str> = read.iter().map(|process| &*process.name).collect();
    assert_eq!(
        found,
        [
            "a) R 1 (b",
            "with space",
            "new\nline",
            "\u{fffd}\u{fffd}",
            "<script>"
        ]
    );
    assert!(
        read.iter()
            .all(|process| process.start_ticks == 1000 && process.user_ticks == 7)
    );
}

#[test]
fn what_cannot_be_read_is_absent_and_the_rest_is_there() {
    let folder = fixture();
    add_process(folder.path(), 42, b"x", 1000, 7);
    for file in ["io", "statm", "status", "cmdline"] {
        fs::remove_file(folder.path().join("proc/42").join(file)).expect("removed");
    }
    fs::remove_dir_all(folder.path().join("proc/42/fd")).expect("removed");
    let read = Processes::default()
        .read(&HostRoot::new(folder.path()))
        .expect("read");
    let process = &read[0];
    assert_eq!(
        (process.read_bytes, process.shared_bytes, process.open_files),
        (None, None, None)
    );
    assert_eq!((&process.user, &process.command_line), (&None, &None));
    assert_eq!(process.user_ticks, 7);
}

#[test]
fn one_that_vanishes_in_mid_read_leaves_the_others() {
    let folder = fixture();
    add_process(folder.path(), 41, b"stays", 1000, 7);
    add_process(folder.path(), 42, b"goes", 1000, 7);
    fs::create_dir_all(folder.path().join("proc/43")).expect("made");
    fs::create_dir_all(folder.path().join("proc/44")).expect("made");
    fs::write(folder.path().join("proc/44/stat"), "44 (cut o").expect("written");
    let root = HostRoot::new(folder.path());
    let mut processes = Processes::default();
    let pids = |processes: &mut Processes| {
        let read = processes.read(&root).expect("read");
        read.iter().map(|process| process.pid).collect::<Vec<_>>()
    };
    assert_eq!(pids(&mut processes), [41, 42]);
    fs::remove_dir_all(folder.path().join("proc/42")).expect("removed");
    assert_eq!(pids(&mut processes), [41]);
    assert_eq!(
        processes
            .shards
            .iter()
            .map(|shard| shard.known.len())
            .sum::<usize>(),
        1
    );
}

#[test]
fn many_processes_are_all_there_and_in_order() {
    let folder = fixture();
    for pid in 1..=200 {
        add_process(folder.path(), pid, b"x", 1000, u64::from(pid));
    }
    let read = Processes::default()
        .read(&HostRoot::new(folder.path()))
        .expect("read");
    let found: Vec<(u32, u64)> = read
        .iter()
        .map(|process| (process.pid, process.user_ticks))
        .collect();
    assert_eq!(
        found,
        (1..=200)
            .map(|pid| (pid, u64::from(pid)))
            .collect::<Vec<_>>()
    );
}

#[test]
fn a_pid_that_is_used_again_is_another_process() {
    let folder = fixture();
    let root = HostRoot::new(folder.path());
    add_process(folder.path(), 42, b"first", 1000, 7);
    let mut processes = Processes::default();
    processes.read(&root).expect("read");
    add_process(folder.path(), 42, b"second", 2000, 1);
    fs::write(folder.path().join("proc/42/cmdline"), b"second\0").expect("written");
    let read = processes.read(&root).expect("read");
    assert_eq!((&*read[0].name, read[0].start_ticks), ("second", 2000));
    assert_eq!(read[0].command_line.as_deref(), Some("second"));
}

#[test]
fn one_that_becomes_another_program_has_the_new_command_line() {
    let folder = fixture();
    let root = HostRoot::new(folder.path());
    add_process(folder.path(), 42, b"sh", 1000, 7);
    let mut processes = Processes::default();
    processes.read(&root).expect("read");
    fs::write(
        folder.path().join("proc/42/stat"),
        stat_line(42, b"sleep", 1000, 8),
    )
    .expect("written");
    fs::write(folder.path().join("proc/42/cmdline"), b"sleep\x005\0").expect("written");
    let read = processes.read(&root).expect("read");
    assert_eq!(
        (&*read[0].name, read[0].command_line.as_deref()),
        ("sleep", Some("sleep\x005"))
    );
}

#[test]
fn io_is_read_again_only_where_a_counter_moved() {
    let folder = fixture();
    let root = HostRoot::new(folder.path());
    add_process(folder.path(), 42, b"x", 1000, 7);
    let mut processes = Processes::default();
    processes.read(&root).expect("read");
    fs::write(
        folder.path().join("proc/42/io"),
        "x\nread_bytes: 1\nwrite_bytes: 2\n",
    )
    .expect("written");
    assert_eq!(
        processes.read(&root).expect("read")[0].read_bytes,
        Some(4096)
    );
    fs::write(
        folder.path().join("proc/42/stat"),
        stat_line(42, b"x", 1000, 8),
    )
    .expect("written");
    assert_eq!(processes.read(&root).expect("read")[0].read_bytes, Some(1));
}

#[test]
fn this_machine_lists_this_very_process() {
    let read = Processes::default()
        .read(&HostRoot::new("/"))
        .expect("read");
    let own = std::process::id();
    let process = read
        .iter()
        .find(|process| process.pid == own)
        .expect("this process");
    let name = fs::read_to_string("/proc/self/comm").expect("readable");
    assert_eq!(*process.name, *name.trim_end());
    assert!(process.resident_bytes > 0 && process.threads > 0);
    assert!(process.open_files.is_some_and(|files| files > 0));
    assert!(
        process
            .command_line
            .as_deref()
            .is_some_and(|line| !line.is_empty())
    );
}

#[test]
fn a_file_without_permission_is_an_absent_field() {
    let folder = fixture();
    add_process(folder.path(), 42, b"x", 1000, 7);
    let io = folder.path().join("proc/42/io");
    fs::set_permissions(&io, fs::Permissions::from_mode(0o000)).expect("set");
    // Root reads it all the same, so the test holds for either.
    let readable = fs::read(&io).is_ok();
    let read = Processes::default()
        .read(&HostRoot::new(folder.path()))
        .expect("read");
    assert_eq!(read[0].read_bytes.is_some(), readable);
    assert_eq!(read[0].user_ticks, 7);
}
