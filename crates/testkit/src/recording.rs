//! A recorded `/proc` history as samples: one JSON object a pass, compressed with zstd, each with the files
//! of all processes.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::sync::Arc;

use nodestats_core::block::{Entry, Series};
use nodestats_core::sample::{IoCalls, Process, Sample};
use nodestats_core::{FrameId, Timestamp};
use serde_json::Value;

/// Figures of a process. `stat`: state, CPU times, page faults, threads, address space, resident pages; `io`: six counters.
pub const COLUMNS: usize = 14;
const OF_STAT: [usize; 7] = [11, 12, 7, 9, 17, 20, 21];
const OF_IO: [&str; 6] = [
    "rchar",
    "wchar",
    "syscr",
    "syscw",
    "read_bytes",
    "write_bytes",
];
/// Passes of the recording that make one sample.
const EACH: usize = 2;

/// Name, start and pid: processes of one name stand beside each other.
type Life = (String, u64, u32);

/// Each second pass as samples of processes, as an agent takes them, and the series of the fourteen figures.
///
/// # Panics
/// Where the file is none of these.
pub fn read(corpus: &Path) -> (Vec<Entry>, Vec<Series>) {
    let file = std::fs::File::open(corpus).expect("a recording");
    let passes = BufReader::new(zstd::Decoder::new(file).expect("zstd"));
    let mut names: BTreeMap<(u32, u64), String> = BTreeMap::new();
    let mut lives: BTreeMap<Life, Series> = BTreeMap::new();
    let mut command_lines: BTreeMap<(u32, u64), Arc<str>> = BTreeMap::new();
    let (mut entries, mut samples) = (Vec::new(), 0);
    for line in passes.lines().step_by(EACH) {
        let pass: Value = serde_json::from_str(&line.expect("a line")).expect("JSON");
        let mut processes = Vec::new();
        for (pid, files) in pass["procs"].as_object().expect("processes") {
            let Some(((name, start, pid), row)) = process(pid, files) else {
                continue;
            };
            if let Some(line) = files["cmdline"].as_str() {
                command_lines.insert((pid, start), line.into());
            }
            let mut process = as_sampled(&name, start, pid, &row);
            process.command_line = command_lines.get(&(pid, start)).cloned();
            processes.push(process);
            // It may be called otherwise later on, and is the same.
            let name = names.entry((pid, start)).or_insert(name).clone();
            let life = (name, start, pid);
            lives.entry(life).or_default().push(samples, row);
        }
        processes.sort_by_key(|process| process.pid);
        entries.push(Entry {
            time: Timestamp::from_seconds(pass["t"].as_f64().expect("a time")).expect("a time"),
            id: FrameId {
                agent_start: uuid::Uuid::nil(),
                sequence: samples.into(),
            },
            interval: None,
            sample: Sample {
                processes,
                ..Sample::default()
            },
        });
        samples += 1;
    }
    (entries, lives.into_values().collect())
}

fn as_sampled(name: &str, start_ticks: u64, pid: u32, row: &[u64; COLUMNS]) -> Process {
    let &[
        state,
        user,
        system,
        minor,
        major,
        threads,
        virtual_,
        resident,
        ref calls @ ..,
        read,
        written,
    ] = row;
    Process {
        pid,
        start_ticks,
        name: name.into(),
        state: char::from(state as u8),
        user_ticks: user,
        system_ticks: system,
        minor_faults: minor,
        major_faults: major,
        threads: threads as u32,
        virtual_bytes: virtual_,
        resident_bytes: resident << 12,
        read_bytes: Some(read),
        written_bytes: Some(written),
        user: Some("root".into()),
        calls: Some(IoCalls {
            rchar: calls[0],
            wchar: calls[1],
            syscr: calls[2],
            syscw: calls[3],
        }),
        ..Process::default()
    }
}

fn process(pid: &str, files: &Value) -> Option<(Life, [u64; COLUMNS])> {
    let stat = files["stat"].as_str()?;
    let (name, rest) = stat.split_once('(')?.1.rsplit_once(") ")?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
    let mut row = [0; COLUMNS];
    row[0] = u64::from(*fields.first()?.as_bytes().first()?);
    for (at, field) in OF_STAT.into_iter().enumerate() {
        row[1 + at] = number(field)?;
    }
    let io = files["io"].as_str().unwrap_or_default();
    for (at, name) in OF_IO.into_iter().enumerate() {
        let mut lines = io.lines().filter_map(|line| line.split_once(": "));
        let found = lines.find(|(key, _)| *key == name);
        row[1 + OF_STAT.len() + at] = found
            .and_then(|(_, number)| number.parse().ok())
            .unwrap_or(0);
    }
    Some(((name.to_owned(), number(19)?, pid.parse().ok()?), row))
}
