//! `cargo xtask record`: what the files of all processes said, pass after pass, for the benchmark of
//! histories.
//!
//! One JSON object a pass, a line each, the whole compressed with zstd: `t` is the time in seconds since
//! 1970, and `procs` has of each pid the texts of `/proc/PID/stat` and `/proc/PID/io`, and of `cmdline`
//! when it is new. Of a command line only the program is recorded: arguments hold what is nobody else's.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context as _;
use serde_json::{Map, Value, json};

/// What was recorded of a process before: its start, and its program.
type Known = BTreeMap<u32, (String, String)>;

/// Records so many passes into a file, which must not be there yet.
pub(crate) fn run(passes: u32, interval: Duration, file: &Path) -> anyhow::Result<()> {
    let out = File::create_new(file).with_context(|| format!("cannot make {}", file.display()))?;
    let mut out = zstd::Encoder::new(out, 19)?;
    let mut known = Known::new();
    let begin = Instant::now();
    for number in 0..passes {
        let due = begin + interval * number;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
        let pass = json!({"t": time.as_secs_f64(), "procs": processes(&mut known)?});
        writeln!(out, "{pass}")?;
    }
    out.finish()?.sync_all()?;
    Ok(())
}

fn processes(known: &mut Known) -> anyhow::Result<Map<String, Value>> {
    let mut processes = Map::new();
    let mut seen = Known::new();
    for entry in std::fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        // One that ends meanwhile has no figures.
        let text = |file: &str| {
            let bytes = std::fs::read(format!("/proc/{pid}/{file}")).ok()?;
            Some(String::from_utf8_lossy(&bytes).into_owned())
        };
        let Some(stat) = text("stat") else { continue };
        let line = text("cmdline").unwrap_or_default();
        // Some say in one text what they are about.
        let mut words = line.split(|c: char| c == '\0' || c.is_whitespace());
        let program = words.next().unwrap_or_default().to_owned();
        // The 22nd field is when it began, the 20th behind the name.
        let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        let began = rest
            .split_whitespace()
            .nth(19)
            .unwrap_or_default()
            .to_owned();
        let mut files = Map::new();
        if let Some(io) = text("io") {
            files.insert("io".to_owned(), io.into());
        }
        let is_known = known
            .get(&pid)
            .is_some_and(|before| *before == (began.clone(), program.clone()));
        if !is_known && !program.is_empty() {
            files.insert("cmdline".to_owned(), program.clone().into());
        }
        files.insert("stat".to_owned(), stat.into());
        seen.insert(pid, (began, program));
        processes.insert(pid.to_string(), files.into());
    }
    *known = seen;
    Ok(processes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_recorded_can_be_read_and_holds_no_arguments() {
        let folder = std::env::temp_dir().join(format!("recording-{}", std::process::id()));
        let secret = "an-argument-that-is-nobody-elses";
        let mut child = std::process::Command::new("sh")
            .args(["-c", "sleep 60; exit", secret])
            .spawn()
            .expect("started");
        run(4, Duration::from_millis(50), &folder).expect("recorded");
        let again = run(1, Duration::ZERO, &folder);
        let bytes = std::fs::read(&folder).expect("written");
        let (entries, series) = nodestats_testkit::recording::read(&folder);
        let _ = std::fs::remove_file(&folder);
        let _ = child.kill();
        let _ = child.wait();
        assert!(again.is_err(), "a recording is never written over");
        // Each second pass is a sample.
        assert_eq!(entries.len(), 2);
        for entry in &entries {
            let own = std::process::id();
            let processes = &entry.sample.processes;
            let found = processes.iter().find(|process| process.pid == own);
            let found = found.expect("this process");
            assert!(found.resident_bytes > 0 && found.threads > 0);
            let child = processes.iter().find(|process| process.pid == child.id());
            assert_eq!(
                child.and_then(|child| child.command_line.as_deref()),
                Some("sh")
            );
        }
        assert!(!series.is_empty());
        let plain = zstd::decode_all(&*bytes).expect("zstd");
        assert!(!String::from_utf8_lossy(&plain).contains(secret));
    }
}
