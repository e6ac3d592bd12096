//! The process table.

use hashbrown::HashMap;
use nodestats_wire::{Timestamp, v1};

use super::books::{self, Life, books_of, ended_children};
use super::counter::{Span, percent, round};
use crate::sample::{Host, Process, Sample};

/// The rows of `current`, by pid, the idle task first.
///
/// A process is the same one only with the same pid, start and boot; one that started after
/// `previous` was taken has counted from zero since.
pub fn process_rows(previous: Option<&Sample>, current: &Sample) -> Vec<v1::Process> {
    rows_of(|_| true, previous, current)
}

/// The rows of the processes that have a pid.
pub fn process_rows_of(pid: u32, previous: Option<&Sample>, current: &Sample) -> Vec<v1::Process> {
    rows_of(|other| other == pid, previous, current)
}

/// The rows of the pids that are meant.
fn rows_of(
    is_meant: impl Fn(u32) -> bool,
    previous: Option<&Sample>,
    current: &Sample,
) -> Vec<v1::Process> {
    let pair = Pair::new(previous, current);
    let ended = pair.as_ref().map(|pair| ended_children(pair, current));
    rows(pair.as_ref(), ended.as_ref(), current, is_meant)
}

/// The process table of `current` with its books; the rows are those of [`process_rows`].
pub fn process_table(previous: Option<&Sample>, current: &Sample) -> v1::Processes {
    let pair = Pair::new(previous, current);
    let ended = pair.as_ref().map(|pair| ended_children(pair, current));
    let books = pair.as_ref().zip(ended.as_ref()).and_then(|(pair, ended)| {
        let books = books_of(pair, current, ended)?;
        Some(books::cpu(&books, pair.span, &current.host))
    });
    v1::Processes {
        cpu: books,
        memory: books::memory(current),
        processes: Some(rows(pair.as_ref(), ended.as_ref(), current, |_| true)),
        ..v1::Processes::default()
    }
}

/// The same, of a pair whose ended children are known.
fn rows(
    pair: Option<&Pair<'_>>,
    ended: Option<&HashMap<Life, u64>>,
    current: &Sample,
    is_meant: impl Fn(u32) -> bool,
) -> Vec<v1::Process> {
    let row = |process: &Process| {
        let before = pair.and_then(|pair| pair.before(process));
        let mut row = row(before, process, &current.host);
        let of_ended = ended.and_then(|ended| ended.get(&(process.pid, process.start_ticks)));
        row.ended_children_cpu_percent = pair.zip(of_ended).map(|(pair, ticks)| {
            let ticks = pair.span.monotonic_rate(0, *ticks);
            cpu_percent(ticks, current.host.ticks_per_second)
        });
        row
    };
    let hosts = pair.map(|pair| (pair.span, &pair.previous.host));
    let idle = is_meant(0).then(|| idle_task(hosts, &current.host));
    let processes = current.processes.iter();
    let meant = processes.filter(|process| is_meant(process.pid)).map(row);
    idle.flatten().into_iter().chain(meant).collect()
}

/// Two samples of one boot.
pub(crate) struct Pair<'a> {
    pub(crate) span: Span,
    pub(crate) previous: &'a Sample,
    processes: HashMap<(u32, u64), &'a Process>,
}

impl<'a> Pair<'a> {
    /// `None` where they have no counter in common.
    pub(crate) fn new(previous: Option<&'a Sample>, current: &Sample) -> Option<Self> {
        let previous = previous?;
        let known = |process: &'a Process| ((process.pid, process.start_ticks), process);
        Some(Self {
            span: Span::between(&previous.host, &current.host)?,
            previous,
            processes: previous.processes.iter().map(known).collect(),
        })
    }

    /// Growth of a counter of a process; `None` where it cannot be known.
    pub(crate) fn growth(&self, process: &Process, field: fn(&Process) -> u64) -> Option<u64> {
        let before = match self.before(process)?.1 {
            Before::Counters(before) => field(before),
            Before::Unborn => 0,
        };
        Some(field(process).saturating_sub(before))
    }

    fn before(&self, process: &Process) -> Option<(Span, Before<'a>)> {
        let before = match self.processes.get(&(process.pid, process.start_ticks)) {
            Some(before) => Before::Counters(before),
            None if started_after(&self.previous.host, process) => Before::Unborn,
            None => return None,
        };
        Some((self.span, before))
    }

    /// CPU time of a process in ticks a second; `None` where it cannot be known.
    pub(super) fn cpu_ticks(&self, process: &Process) -> Option<f64> {
        let grown = self.growth(process, Process::cpu_ticks)?;
        Some(self.span.monotonic_rate(0, grown))
    }
}

/// Ticks a second in percent of one CPU.
pub(crate) fn cpu_percent(ticks: f64, ticks_per_second: u32) -> f64 {
    round(ticks * 100.0 / f64::from(ticks_per_second.max(1)))
}

/// What is known of a process at the sample before.
#[derive(Clone, Copy)]
enum Before<'a> {
    /// It was there.
    Counters(&'a Process),
    /// It was not there yet: all its counters were 0.
    Unborn,
}

fn started_after(previous: &Host, process: &Process) -> bool {
    let start = seconds(process.start_ticks, previous.ticks_per_second);
    // The start is rounded down to a tick.
    let tick = seconds(1, previous.ticks_per_second);
    start + tick >= previous.uptime_micros as f64 / 1e6
}

fn seconds(ticks: u64, ticks_per_second: u32) -> f64 {
    ticks as f64 / f64::from(ticks_per_second.max(1))
}

fn row(before: Option<(Span, Before)>, now: &Process, host: &Host) -> v1::Process {
    let growth = |field: fn(&Process) -> Option<u64>| {
        let (span, before) = before?;
        let before = match before {
            Before::Counters(before) => field(before)?,
            Before::Unborn => 0,
        };
        Some(span.monotonic_rate(before, field(now)?))
    };
    let cpu_ticks = growth(|process| Some(process.cpu_ticks()));
    v1::Process {
        pid: now.pid,
        ppid: Some(now.ppid),
        name: Some(now.name.to_string()),
        status: status(now.state).map(str::to_owned),
        user: now.user.as_deref().map(str::to_owned),
        cpu_percent: cpu_ticks.map(|ticks| cpu_percent(ticks, host.ticks_per_second)),
        cpu_seconds: Some(round(seconds(now.cpu_ticks(), host.ticks_per_second))),
        children_cpu_seconds: Some(round(seconds(now.children_ticks(), host.ticks_per_second))),
        memory_percent: host
            .memory
            .and_then(|memory| percent(now.resident_bytes as f64, memory.total as f64)),
        rss_bytes: Some(now.resident_bytes),
        anonymous_bytes: now
            .shared_bytes
            .map(|shared| now.resident_bytes.saturating_sub(shared)),
        shared_bytes: now.shared_bytes,
        swapped_bytes: now.swapped_bytes,
        virtual_bytes: Some(now.virtual_bytes),
        threads: Some(now.threads),
        open_files: now.open_files,
        minor_faults_per_second: growth(|process| Some(process.minor_faults)).map(round),
        major_faults_per_second: growth(|process| Some(process.major_faults)).map(round),
        read_bytes_per_second: growth(|process| process.read_bytes).map(round),
        write_bytes_per_second: growth(|process| process.written_bytes).map(round),
        read_bytes_total: now.read_bytes,
        write_bytes_total: now.written_bytes,
        rchar_bytes_per_second: growth(|process| Some(process.calls?.rchar)).map(round),
        wchar_bytes_per_second: growth(|process| Some(process.calls?.wchar)).map(round),
        syscr_per_second: growth(|process| Some(process.calls?.syscr)).map(round),
        syscw_per_second: growth(|process| Some(process.calls?.syscw)).map(round),
        rchar_bytes_total: now.calls.map(|calls| calls.rchar),
        wchar_bytes_total: now.calls.map(|calls| calls.wchar),
        syscr_total: now.calls.map(|calls| calls.syscr),
        syscw_total: now.calls.map(|calls| calls.syscw),
        started_at: host.boot_time_seconds.and_then(|boot| {
            Timestamp::from_seconds(boot + seconds(now.start_ticks, host.ticks_per_second))
        }),
        command_line: now.command_line.as_deref().map(str::to_owned),
        cgroup: now.cgroup.as_deref().map(str::to_owned),
        container_id: now.container_id.as_deref().map(str::to_owned),
        pod_uid: now.pod_uid.as_deref().map(str::to_owned),
        ..v1::Process::default()
    }
}

/// Pid 0 runs wherever nothing else does, also while a disk is waited for: its CPU is idle and
/// iowait of all CPUs, so that the table adds up. `/proc` has no entry for it.
fn idle_task(previous: Option<(Span, &Host)>, host: &Host) -> Option<v1::Process> {
    let total = host.cpu_total?;
    let idle = total.idle.saturating_add(total.iowait);
    let rate = previous.and_then(|(span, previous)| {
        let before = previous.cpu_total?;
        Some(span.monotonic_rate(before.idle.saturating_add(before.iowait), idle))
    });
    Some(v1::Process {
        pid: 0,
        ppid: Some(0),
        name: Some("System Idle process".to_owned()),
        status: Some("running".to_owned()),
        user: Some("root".to_owned()),
        cpu_percent: rate.map(|ticks| cpu_percent(ticks, host.ticks_per_second)),
        cpu_seconds: Some(round(seconds(idle, host.ticks_per_second))),
        threads: Some(host.cpus.len() as u32),
        started_at: host.boot_time_seconds.and_then(Timestamp::from_seconds),
        ..v1::Process::default()
    })
}

/// The state letters of `proc(5)` in words.
fn status(state: char) -> Option<&'static str> {
    Some(match state {
        'R' => "running",
        'S' => "sleeping",
        'D' => "disk-sleep",
        'T' => "stopped",
        't' => "tracing-stop",
        'Z' => "zombie",
        'X' | 'x' => "dead",
        'I' => "idle",
        'P' => "parked",
        'K' => "wake-kill",
        'W' => "waking",
        _ => return None,
    })
}
