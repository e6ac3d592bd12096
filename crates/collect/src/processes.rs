//! Processes: every one of them, each pass. This is the hot path of the agent.
//!
//! `stat` of all is read through descriptors that stay open, which costs a third of opening them
//! anew; `statm`, `io` and the count of open files only where a counter moved; what rarely
//! changes once a process. Everything is read again about once a minute, spread over the passes.
//! A process that did not change costs no allocation.

mod cgroup;
mod details;
mod directory;
mod stat;

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nodestats_core::sample::Process;
use rustix::io::Errno;

use crate::collector::{Collector, Error};
use crate::root::HostRoot;
use crate::users::Users;
use directory::ProcDirectory;
use stat::Stat;

/// After this long everything about a process is read again.
const REFRESH: Duration = Duration::from_mins(1);

/// Reads all processes, and remembers what it saw.
#[derive(Default)]
pub struct Processes {
    known: HashMap<u32, Known>,
    users: Users,
    directory: Option<ProcDirectory>,
    pids: Vec<u32>,
    pass: u64,
}

struct Known {
    /// `stat`, kept open; `None` beyond the limit of descriptors. It belongs to this one process:
    /// when that is gone, reading it fails, whoever has the pid then.
    stat: Option<OwnedFd>,
    last: Process,
    /// The pass that saw it last.
    seen: u64,
    refresh_at: Instant,
}

impl Collector for Processes {
    type Output = Vec<Process>;
    const NAME: &'static str = "processes";

    fn collect(&mut self, root: &HostRoot) -> Result<Vec<Process>, Error> {
        self.read(root)
    }
}

impl Processes {
    /// One pass over all processes below `root`, sorted by pid.
    pub fn read(&mut self, root: &HostRoot) -> Result<Vec<Process>, Error> {
        let now = Instant::now();
        self.pass += 1;
        self.users.refresh(root);
        let directory = match self.directory.take() {
            Some(directory) => directory,
            None => ProcDirectory::open(root).map_err(Error::read("proc"))?,
        };
        // Without swap in use nobody has any, and nobody's `status` need be read for it.
        let swap_in_use = details::swap_in_use(root);
        let mut pids = std::mem::take(&mut self.pids);
        directory.list(&mut pids).map_err(Error::read("proc"))?;
        let mut processes = Vec::with_capacity(pids.len());
        for &pid in &pids {
            processes.extend(self.read_one(&directory, pid, swap_in_use, now));
        }
        let pass = self.pass;
        self.known.retain(|_, known| known.seen == pass);
        self.pids = pids;
        self.directory = Some(directory);
        Ok(processes)
    }

    /// `None` where it ended before it could be read.
    fn read_one(
        &mut self,
        directory: &ProcDirectory,
        pid: u32,
        swap_in_use: bool,
        now: Instant,
    ) -> Option<Process> {
        let mut buffer = [0; stat::BUFFER];
        if let Some(known) = self.known.get_mut(&pid) {
            let read = match &known.stat {
                Some(file) => rustix::io::pread(file.as_fd(), &mut buffer, 0),
                None => directory.read(pid, "stat", &mut buffer),
            };
            let stat = read.ok().and_then(|length| Stat::parse(&buffer[..length]));
            if let Some(stat) = stat.filter(|stat| stat.start_ticks == known.last.start_ticks) {
                known.seen = self.pass;
                let renamed = stat.name != known.last.name.as_bytes()
                    && stat.name_lossy() != *known.last.name;
                let moved = stat.moved(&known.last);
                if renamed {
                    known.last.name = Arc::from(stat.name_lossy());
                }
                stat.copy_to(&mut known.last, directory.page_size());
                let refresh = renamed || now >= known.refresh_at;
                if refresh {
                    known.refresh_at = now + REFRESH;
                    details::refresh(directory, &mut known.last, &self.users);
                }
                if moved || refresh {
                    details::update(directory, &mut known.last, swap_in_use);
                }
                return Some(known.last.clone());
            }
            // It ended; the pid may be another's now.
            self.known.remove(&pid);
        }
        self.discover(directory, pid, swap_in_use, now)
    }

    fn discover(
        &mut self,
        directory: &ProcDirectory,
        pid: u32,
        swap_in_use: bool,
        now: Instant,
    ) -> Option<Process> {
        let mut buffer = [0; stat::BUFFER];
        let file = directory.open_file(pid, "stat").ok()?;
        let length = match rustix::io::pread(file.as_fd(), &mut buffer, 0) {
            Ok(length) => length,
            Err(Errno::SRCH | Errno::NOENT) => return None,
            Err(error) => {
                tracing::debug!(pid, %error, "a process cannot be read");
                return None;
            }
        };
        let stat = Stat::parse(&buffer[..length])?;
        let mut last = Process {
            pid,
            name: Arc::from(stat.name_lossy()),
            ..Process::default()
        };
        stat.copy_to(&mut last, directory.page_size());
        details::refresh(directory, &mut last, &self.users);
        details::update(directory, &mut last, swap_in_use);
        let keep_open = self.known.len() < directory.descriptor_limit();
        // Spread by pid, so that not all are refreshed in the same pass.
        let refresh_at = now + REFRESH / 2 + REFRESH * (pid % 64) / 64;
        let process = last.clone();
        let known = Known {
            stat: keep_open.then_some(file),
            last,
            seen: self.pass,
            refresh_at,
        };
        self.known.insert(pid, known);
        Some(process)
    }
}

#[cfg(test)]
mod tests;
