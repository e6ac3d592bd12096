//! How the node is sampled: what the command line says, and in a cluster what its spec says.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use nodestats_core::redact::{self, redact};
use nodestats_core::sample::{Process, Sample};
use nodestats_k8s::{CommandLine, MonitoredNodeSpec};

/// How the node is sampled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) interval: Duration,
    pub(crate) paused: bool,
    pub(crate) processes: bool,
    pub(crate) command_line: CommandLine,
}

impl Settings {
    pub(crate) fn new(interval: Duration) -> Self {
        Self {
            interval,
            paused: false,
            processes: true,
            command_line: CommandLine::Redacted,
        }
    }
}

impl From<&MonitoredNodeSpec> for Settings {
    fn from(spec: &MonitoredNodeSpec) -> Self {
        Self {
            interval: spec.interval.0,
            paused: spec.paused,
            processes: spec.processes.enabled,
            command_line: spec.processes.command_line,
        }
    }
}

/// Takes from samples what is not to leave the node, and joins arguments. It remembers what it made
/// of each command line, since a process keeps its own.
#[derive(Debug, Default)]
pub(crate) struct Censor {
    known: HashMap<(u32, u64), Known>,
    pass: u64,
}

#[derive(Debug)]
struct Known {
    line: Arc<str>,
    /// What leaves the node.
    shown: Arc<str>,
    is_full: bool,
    pass: u64,
}

impl Censor {
    pub(crate) fn apply(&mut self, settings: Settings, sample: &mut Sample) {
        if !settings.processes {
            sample.processes = Vec::new();
            sample.gather_members();
        }
        if settings.command_line == CommandLine::Off {
            for process in &mut sample.processes {
                process.command_line = None;
            }
            return;
        }
        let is_full = settings.command_line == CommandLine::Full;
        self.pass += 1;
        for process in &mut sample.processes {
            self.show(process, is_full);
        }
        let pass = self.pass;
        self.known.retain(|_, known| known.pass == pass);
    }

    fn show(&mut self, process: &mut Process, is_full: bool) {
        let Some(line) = &process.command_line else {
            return;
        };
        let pass = self.pass;
        let key = (process.pid, process.start_ticks);
        let new = || Known::new(line, is_full);
        let known = self.known.entry(key).or_insert_with(new);
        if !Arc::ptr_eq(&known.line, line) || known.is_full != is_full {
            *known = new();
        }
        known.pass = pass;
        process.command_line = Some(Arc::clone(&known.shown));
    }
}

impl Known {
    fn new(line: &Arc<str>, is_full: bool) -> Self {
        let redacted = if is_full { None } else { redact(line) };
        let shown = redact::joined(redacted.as_deref().unwrap_or(line));
        Self {
            line: Arc::clone(line),
            shown: Arc::from(shown),
            is_full,
            pass: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(lines: &[&str]) -> Sample {
        let process = |(pid, line): (usize, &&str)| Process {
            pid: pid as u32,
            command_line: Some(Arc::from(*line)),
            ..Process::default()
        };
        Sample {
            processes: lines.iter().enumerate().map(process).collect(),
            ..Sample::default()
        }
    }

    fn lines(settings: Settings, sample: &mut Sample, censor: &mut Censor) -> Vec<Option<String>> {
        censor.apply(settings, sample);
        let line = |process: &Process| process.command_line.as_deref().map(str::to_owned);
        sample.processes.iter().map(line).collect()
    }

    #[test]
    fn what_is_not_to_leave_the_node_does_not() {
        let mut censor = Censor::default();
        let redacted = Settings::new(Duration::from_secs(1));
        let off = Settings {
            command_line: CommandLine::Off,
            ..redacted
        };
        let full = Settings {
            command_line: CommandLine::Full,
            ..redacted
        };
        let none = Settings {
            processes: false,
            ..redacted
        };
        let text = ["app\0--token\0abc", "sleep\x001"];
        let whole = ["app --token abc", "sleep 1"];
        let owned = |lines: [&str; 2]| lines.map(|line| Some(line.to_owned())).to_vec();
        let hidden = owned(["app --token ***", "sleep 1"]);
        assert_eq!(lines(redacted, &mut sample(&text), &mut censor), hidden);
        assert_eq!(lines(redacted, &mut sample(&text), &mut censor), hidden);
        assert_eq!(censor.known.len(), 2);
        assert_eq!(lines(full, &mut sample(&text), &mut censor), owned(whole));
        assert_eq!(lines(off, &mut sample(&text), &mut censor), [None, None]);
        assert!(lines(none, &mut sample(&text), &mut censor).is_empty());
        // What ended is forgotten.
        lines(redacted, &mut sample(&text[..1]), &mut censor);
        assert_eq!(censor.known.len(), 1);
    }
}
