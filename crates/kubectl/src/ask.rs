//! What is asked of the server.

use jiff::tz::TimeZone;
use nodestats_wire::{routes, time};

use crate::{Get, Sort, times};

/// Which shape the answer has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Nodes,
    Node,
    Cpu,
    Memory,
    Disk,
    Network,
    Units,
    Pods,
    Processes,
    Process,
}

/// One request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Question {
    pub(crate) kind: Kind,
    pub(crate) path: String,
    pub(crate) query: Vec<(&'static str, String)>,
    /// The answer is keyed by time.
    pub(crate) history: bool,
}

impl Question {
    /// What `get` means to a person in `zone`.
    pub(crate) fn new(get: &Get, zone: &TimeZone) -> anyhow::Result<Self> {
        let full = ("view", "full".to_owned());
        let Some(node) = &get.node else {
            let (kind, path) = (Kind::Nodes, routes::NODES.to_owned());
            return Ok(Self {
                kind,
                path,
                query: vec![full],
                history: false,
            });
        };
        let (kind, suffix) = match get {
            Get { cpu: true, .. } => (Kind::Cpu, "/cpu".to_owned()),
            Get { memory: true, .. } => (Kind::Memory, "/memory".to_owned()),
            Get { disk: true, .. } => (Kind::Disk, "/disk".to_owned()),
            Get { network: true, .. } => (Kind::Network, "/network".to_owned()),
            Get { units: true, .. } => (Kind::Units, "/units".to_owned()),
            Get { pods: true, .. } => (Kind::Pods, "/pods".to_owned()),
            Get {
                processes: true, ..
            } => (Kind::Processes, "/proc".to_owned()),
            Get { pid: Some(pid), .. } => (Kind::Process, format!("/proc/{pid}")),
            _ => (Kind::Node, String::new()),
        };
        let mut query = Vec::new();
        for (name, text) in [("from", &get.from), ("to", &get.to)] {
            if let Some(text) = text {
                query.push((name, times::parse(text, zone)?.to_string()));
            }
        }
        let history = !query.is_empty();
        if let Some(step) = &get.step {
            time::parse_span(step)?;
            anyhow::ensure!(history, "--step goes with --from or --to");
            query.push(("step", step.clone()));
        }
        if kind == Kind::Processes {
            let sort = match get.sort.unwrap_or(Sort::Cpu) {
                Sort::Pid => "pid",
                Sort::Cpu => "cpu",
                Sort::Memory => "memory",
                Sort::Read => "read",
                Sort::Write => "write",
            };
            query.extend([full, ("sort", sort.to_owned())]);
            query.extend(get.limit.map(|limit| ("limit", limit.to_string())));
        }
        Ok(Self {
            kind,
            path: format!("{}{suffix}", routes::node(node)),
            query,
            history,
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::{Arguments, Command};

    fn question(line: &str) -> Question {
        let words = ["kubectl-nodestats", "get"]
            .into_iter()
            .chain(line.split(' '));
        let Command::Get(get) = Arguments::try_parse_from(words).expect(line).command else {
            panic!("{line} is no get");
        };
        Question::new(&get, &TimeZone::fixed(jiff::tz::offset(2))).expect(line)
    }

    #[test]
    fn flags_become_paths_and_times_become_utc() {
        let cpu = question("192.168.2.10 --cpu --from 2026-03-01T13:45 --step 5m");
        assert_eq!(cpu.path, "/nodes/192.168.2.10/cpu");
        assert_eq!(cpu.query[0], ("from", "2026-03-01T11:45:00Z".to_owned()));
        assert!(cpu.history);
        let processes = question("a --processes --limit 5");
        assert_eq!(processes.path, "/nodes/a/proc");
        assert!(processes.query.contains(&("sort", "cpu".to_owned())));
        assert_eq!(question("a --pid 0").path, "/nodes/a/proc/0");
        assert_eq!(question("a --units").path, "/nodes/a/units");
        assert_eq!(question("a --pods").path, "/nodes/a/pods");
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        for line in [
            "--cpu",
            "a --cpu --memory",
            "a --sort cpu",
            "a --limit 5",
            "a --processes --limit 0",
        ] {
            let words = ["kubectl-nodestats", "get"]
                .into_iter()
                .chain(line.split(' '));
            assert!(Arguments::try_parse_from(words).is_err(), "{line}");
        }
    }
}
