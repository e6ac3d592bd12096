//! Processes: every one of them, each pass. This is the hot path of the agent.
//!
//! `stat` of all is read through descriptors that stay open, which costs a third of opening them
//! anew; `statm`, `io` and the count of open files only where a counter moved; what rarely
//! changes once a process. Everything is read again about once a minute, spread over the passes.
//! A process that did not change costs no allocation. Two threads share the work of a pass.

mod details;
mod directory;
mod stat;

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread;
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
    users: Users,
    directory: Option<ProcDirectory>,
    pids: Vec<u32>,
    shards: [Shard; SHARDS],
}

/// The processes are read by so many threads, so that a sample is closer to one moment.
const SHARDS: usize = 2;
/// Fewer processes than this are not worth a thread.
const SHARD_MINIMUM: usize = 64;

/// Every second process, by pid.
#[derive(Default)]
struct Shard {
    known: HashMap<u32, Known>,
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
        self.users.refresh(root);
        let directory = match self.directory.take() {
            Some(directory) => directory,
            None => ProcDirectory::open(root).map_err(Error::read("proc"))?,
        };
        let mut pids = std::mem::take(&mut self.pids);
        directory.list(&mut pids).map_err(Error::read("proc"))?;
        let pass = Pass {
            directory: &directory,
            users: &self.users,
            pids: &pids,
            // Without swap in use nobody has any, and nobody's `status` need be read for it.
            swap_in_use: details::swap_in_use(root),
            now: Instant::now(),
        };
        let [even, odd] = &mut self.shards;
        let mut processes = if pids.len() < SHARD_MINIMUM {
            let mut processes = even.read(&pass, 0);
            processes.extend(odd.read(&pass, 1));
            processes
        } else {
            thread::scope(|scope| {
                let second = scope.spawn(|| odd.read(&pass, 1));
                let mut processes = even.read(&pass, 0);
                // A panic there is a panic here: the collector's thread ends, and it is reported.
                processes.extend(second.join().expect("reading does not panic"));
                processes
            })
        };
        processes.sort_unstable_by_key(|process| process.pid);
        self.pids = pids;
        self.directory = Some(directory);
        Ok(processes)
    }
}

/// What the threads of one pass share.
struct Pass<'a> {
    directory: &'a ProcDirectory,
    users: &'a Users,
    pids: &'a [u32],
    swap_in_use: bool,
    now: Instant,
}

impl Shard {
    fn read(&mut self, pass: &Pass, number: u32) -> Vec<Process> {
        self.pass += 1;
        let own = pass
            .pids
            .iter()
            .filter(|pid| *pid % SHARDS as u32 == number);
        let mut processes = Vec::with_capacity(pass.pids.len());
        processes.extend(own.filter_map(|&pid| self.read_one(pass, pid)));
        let this_pass = self.pass;
        self.known.retain(|_, known| known.seen == this_pass);
        processes
    }

    /// `None` where it ended before it could be read.
    fn read_one(&mut self, pass: &Pass, pid: u32) -> Option<Process> {
        let &Pass {
            directory,
            swap_in_use,
            now,
            ..
        } = pass;
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
                    details::refresh(directory, &mut known.last, pass.users);
                }
                if moved || refresh {
                    details::update(directory, &mut known.last, swap_in_use);
                }
                return Some(known.last.clone());
            }
            // It ended; the pid may be another's now.
            self.known.remove(&pid);
        }
        self.discover(pass, pid)
    }

    fn discover(&mut self, pass: &Pass, pid: u32) -> Option<Process> {
        let &Pass {
            directory,
            swap_in_use,
            now,
            ..
        } = pass;
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
        details::refresh(directory, &mut last, pass.users);
        details::update(directory, &mut last, swap_in_use);
        let keep_open = self.known.len() < directory.descriptor_limit() / SHARDS;
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
