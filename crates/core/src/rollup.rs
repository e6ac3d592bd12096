//! Rollups: what is kept of a minute or an hour when its samples are gone, of the host, of each control group
//! and of the processes that mattered.
//!
//! A [`Bucket`] has a [`Row`] for each thing: how much its counters grew (totals; of the most telling ones
//! the lowest, highest and last rate between two samples too, a [`Flow`]), and what its gauges were (mean,
//! lowest, highest and last, a [`Level`]). Totals are exact, and add up over any number of buckets; a mean is
//! rounded to a unit each time buckets are merged. A mean counts each sample for the time since the one
//! before.
//!
//! A rollup of several buckets has three parts, which are kept and read apart as those of a block are
//! (`crate::block`), and is coded as they are.

mod coded;
mod peaks;
mod roller;
mod sketch;

use std::collections::HashSet;
use std::sync::Arc;

use nodestats_wire::Timestamp;
use serde::{Deserialize, Serialize};

use crate::sample::cgroup::Kind;
pub use coded::{Figures, Part, decode, encode};
pub use peaks::{High, Highs, Peak, Peaks};
pub use roller::{Kept, Roller, unaccounted};
pub use sketch::{ERROR, Sketch};

/// A minute, in microseconds.
pub const MINUTE: i64 = 60_000_000;
/// An hour, in microseconds.
pub const HOUR: i64 = 3_600_000_000;
/// Rates of CPU have this unit: 1 in 10,000 of a CPU.
pub const CPU_UNITS: f64 = 10_000.0;

/// A counter over a bucket.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flow {
    /// By how much it grew.
    pub total: u64,
    /// The lowest rate between two samples: a second, or in [`CPU_UNITS`].
    pub min: u64,
    /// The highest.
    pub max: u64,
    /// The last.
    pub last: u64,
}

/// A gauge over a bucket.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Level {
    /// Over the time for which it was known.
    pub mean: u64,
    /// The lowest.
    pub min: u64,
    /// The highest.
    pub max: u64,
    /// The last.
    pub last: u64,
}

/// What is kept of one thing over a bucket. What could not be known of it is `None`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Row {
    /// For how long its counters were watched, in microseconds, to a millisecond.
    pub covered: u64,
    /// Counters of which the growth alone is kept.
    pub totals: Vec<Option<u64>>,
    /// Counters.
    pub flows: Vec<Option<Flow>>,
    /// Gauges.
    pub levels: Vec<Option<Level>>,
    /// How the first flow and the first level were distributed, where that is kept.
    pub sketches: Option<[Sketch; 2]>,
}

/// Something of a host that has a row; rows begin with the place of the variant.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Thing {
    /// The host itself: see [`host`].
    Own,
    /// A CPU, by the kernel's number: see [`core`].
    Cpu(u32),
    /// A block device, by name: see [`disk`].
    Disk(String),
    /// An interface, by name: see [`interface`].
    Interface(String),
    /// A filesystem, by mount point: see [`filesystem`].
    Filesystem(String),
}

/// Places of the figures of a host.
pub mod host {
    /// Totals: ticks of each mode of `/proc/stat`.
    pub const USER: usize = 0;
    /// See [`USER`].
    pub const NICE: usize = 1;
    /// See [`USER`].
    pub const SYSTEM: usize = 2;
    /// See [`USER`].
    pub const IDLE: usize = 3;
    /// See [`USER`].
    pub const IOWAIT: usize = 4;
    /// See [`USER`].
    pub const IRQ: usize = 5;
    /// See [`USER`].
    pub const SOFTIRQ: usize = 6;
    /// See [`USER`].
    pub const STEAL: usize = 7;
    /// How many.
    pub const TOTALS: usize = 8;
    /// Flow: all ticks but idle and iowait.
    pub const BUSY: usize = 0;
    /// How many.
    pub const FLOWS: usize = 1;
    /// Level: memory in use, in bytes.
    pub const MEMORY_USED: usize = 0;
    /// `MemTotal`, in bytes.
    pub const MEMORY_TOTAL: usize = 1;
    /// `MemAvailable`, in bytes.
    pub const MEMORY_AVAILABLE: usize = 2;
    /// Swap in use, in bytes.
    pub const SWAP_USED: usize = 3;
    /// All swap, in bytes.
    pub const SWAP_TOTAL: usize = 4;
    /// Load averages, in hundredths.
    pub const LOAD: [usize; 3] = [5, 6, 7];
    /// Number of processes.
    pub const PROCESSES: usize = 8;
    /// Pressure on CPU, memory and I/O over ten seconds, in hundredths of a percent.
    pub const PRESSURE: [usize; 3] = [9, 10, 11];
    /// CPUs, and ticks of the counters a second.
    pub const CPUS: usize = 12;
    /// See [`CPUS`].
    pub const TICKS: usize = 13;
    /// How many.
    pub const LEVELS: usize = 14;
}

/// Places of the figures of a CPU.
pub mod core {
    /// Total: all ticks but idle and iowait.
    pub const BUSY: usize = 0;
    /// Total: all ticks.
    pub const ALL: usize = 1;
    /// How many.
    pub const TOTALS: usize = 2;
}

/// Places of the figures of a block device.
pub mod disk {
    /// Total: reads.
    pub const READS: usize = 0;
    /// Total: writes.
    pub const WRITES: usize = 1;
    /// Total: milliseconds with a request under way.
    pub const BUSY_MILLIS: usize = 2;
    /// How many.
    pub const TOTALS: usize = 3;
    /// Flow: bytes read.
    pub const READ: usize = 0;
    /// Flow: bytes written.
    pub const WRITTEN: usize = 1;
    /// How many.
    pub const FLOWS: usize = 2;
}

/// Places of the figures of an interface.
pub mod interface {
    /// Totals: packets, errors and dropped packets, received and sent.
    pub const PACKETS: [usize; 2] = [0, 1];
    /// See [`PACKETS`].
    pub const ERRORS: [usize; 2] = [2, 3];
    /// See [`PACKETS`].
    pub const DROPPED: [usize; 2] = [4, 5];
    /// How many.
    pub const TOTALS: usize = 6;
    /// Flows: bytes, received and sent.
    pub const BYTES: [usize; 2] = [0, 1];
    /// How many.
    pub const FLOWS: usize = 2;
}

/// Places of the figures of a filesystem.
pub mod filesystem {
    /// Level: bytes in use.
    pub const USED: usize = 0;
    /// Level: its size in bytes.
    pub const TOTAL: usize = 1;
    /// Level: bytes that ordinary users may have.
    pub const AVAILABLE: usize = 2;
    /// How many.
    pub const LEVELS: usize = 3;
}

/// Places of the figures of a control group.
pub mod group {
    /// Total: microseconds for which its CPUs were held back.
    pub const THROTTLED: usize = 0;
    /// Totals: periods in which it ran with a limit, and those in which it was held back.
    pub const PERIODS: usize = 1;
    /// See [`PERIODS`].
    pub const THROTTLED_PERIODS: usize = 2;
    /// Total: processes killed for memory.
    pub const OOM_KILLS: usize = 3;
    /// How many.
    pub const TOTALS: usize = 4;
    /// Flow: CPU time in microseconds.
    pub const CPU: usize = 0;
    /// Flow: bytes read.
    pub const READ: usize = 1;
    /// Flow: bytes written.
    pub const WRITTEN: usize = 2;
    /// Flow: bytes received, of a pod.
    pub const RECEIVED: usize = 3;
    /// Flow: bytes sent, of a pod.
    pub const SENT: usize = 4;
    /// How many.
    pub const FLOWS: usize = 5;
    /// Level: the working set in bytes.
    pub const WORKING_SET: usize = 0;
    /// Level: all its memory in bytes.
    pub const MEMORY: usize = 1;
    /// Level: memory of no file in bytes.
    pub const ANONYMOUS: usize = 2;
    /// Level: processes and threads.
    pub const TASKS: usize = 3;
    /// Level: the CPU that it may use, in [`CPU_UNITS`](super::CPU_UNITS); unknown without a limit.
    pub const CPU_LIMIT: usize = 4;
    /// Level: the memory that it may have, in bytes; unknown without a limit.
    pub const MEMORY_LIMIT: usize = 5;
    /// How many.
    pub const LEVELS: usize = 6;
}

/// Places of the figures of a process.
pub mod process {
    /// Total: ticks of its children that ended, less what those showed themselves.
    pub const ENDED_CHILDREN: usize = 0;
    /// How many.
    pub const TOTALS: usize = 1;
    /// Flow: ticks.
    pub const CPU: usize = 0;
    /// Flow: bytes fetched from disks.
    pub const READ: usize = 1;
    /// Flow: bytes sent to disks.
    pub const WRITTEN: usize = 2;
    /// How many.
    pub const FLOWS: usize = 3;
    /// Level: resident memory in bytes.
    pub const RESIDENT: usize = 0;
    /// Level: threads.
    pub const THREADS: usize = 1;
    /// Level: open files.
    pub const OPEN_FILES: usize = 2;
    /// How many; of the others together the next one says how many there were.
    pub const LEVELS: usize = 3;
}

/// Which control group a row is of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// Its path.
    pub path: Arc<str>,
    /// Inode of its directory.
    pub id: u64,
    /// What it stands for.
    pub kind: Kind,
}

/// Which process a row is of, as it was last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its pid.
    pub pid: u32,
    /// Start after boot in ticks.
    pub start_ticks: u64,
    /// Identity of the boot.
    pub boot: Arc<str>,
    /// When it started, in microseconds since 1970; 0 where it is not known.
    pub started_at: i64,
    /// Its parent.
    pub ppid: u32,
    /// Its name.
    pub name: Arc<str>,
    /// Owner.
    pub user: Option<Arc<str>>,
    /// Arguments.
    pub command_line: Option<Arc<str>>,
    /// Control group.
    pub cgroup: Option<Arc<str>>,
    /// Container.
    pub container_id: Option<Arc<str>>,
    /// Pod.
    pub pod_uid: Option<Arc<str>>,
}

/// All that is kept of a minute or an hour.
#[derive(Debug, Clone, PartialEq)]
pub struct Bucket {
    /// When it begins.
    pub begin: Timestamp,
    /// For how long counters of the host were watched, in microseconds, to a millisecond.
    pub covered: u64,
    /// How many samples of counters it had.
    pub samples: u32,
    /// The host.
    pub hosts: Vec<(Thing, Row)>,
    /// Control groups, by path.
    pub groups: Vec<(Group, Row)>,
    /// Processes that mattered, by name.
    pub processes: Vec<(Process, Row)>,
    /// All others together: of these totals and means count alone.
    pub others: Row,
}

impl Bucket {
    /// An empty one.
    pub fn new(begin: Timestamp) -> Self {
        Self {
            begin,
            covered: 0,
            samples: 0,
            hosts: Vec::new(),
            groups: Vec::new(),
            processes: Vec::new(),
            others: Row::default(),
        }
    }

    /// The row of something of the host.
    pub fn host(&self, thing: &Thing) -> Option<&Row> {
        let found = self.hosts.iter().find(|(known, _)| known == thing);
        found.map(|(_, row)| row)
    }
}

/// Buckets of one length, in the order of time.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Rollup {
    /// Not all lengths of time have a bucket.
    pub buckets: Vec<Bucket>,
}

impl Row {
    /// The growth of a counter a second, in the unit of the counter; `None` where it was not watched.
    pub fn mean_rate(&self, flow: usize) -> Option<f64> {
        let flow = self.flows.get(flow).copied().flatten()?;
        (self.covered > 0).then(|| flow.total as f64 * 1e6 / self.covered as f64)
    }
}

/// Which processes were kept, as it is stored.
pub fn encode_kept(kept: &[Kept]) -> Vec<u8> {
    postcard::to_stdvec(kept).expect("plain data")
}

/// What [`encode_kept`] gave; of anything else none.
pub fn decode_kept(bytes: &[u8]) -> HashSet<Kept> {
    let kept = postcard::from_bytes::<Vec<Kept>>(bytes);
    kept.into_iter().flatten().collect()
}

/// Rows of one thing, one after the other, as one row: exact until it is made.
#[derive(Debug, Clone, Default)]
pub struct Sum {
    covered: u64,
    totals: Vec<Option<u64>>,
    flows: Vec<Option<Flow>>,
    levels: Vec<Option<(Level, u128, u64)>>,
    sketches: Option<[Sketch; 2]>,
}

impl Sum {
    /// Adds a row that is later than those before it.
    pub fn add(&mut self, row: &Row) {
        merge(
            &mut self.totals,
            &row.totals,
            |total| *total,
            |own, later| {
                *own = own.saturating_add(*later);
            },
        );
        merge(
            &mut self.flows,
            &row.flows,
            |flow| *flow,
            |own, later| {
                *own = Flow {
                    total: own.total.saturating_add(later.total),
                    min: own.min.min(later.min),
                    max: own.max.max(later.max),
                    last: later.last,
                };
            },
        );
        // What was seen once, and not watched, has a mean too.
        let weight = row.covered.max(1);
        let first = |level: &Level| (*level, u128::from(level.mean) * u128::from(weight), weight);
        merge(&mut self.levels, &row.levels, first, |own, later| {
            own.0.min = own.0.min.min(later.min);
            own.0.max = own.0.max.max(later.max);
            own.0.last = later.last;
            own.1 += u128::from(later.mean) * u128::from(weight);
            own.2 += weight;
        });
        if let Some(later) = &row.sketches {
            let own = self.sketches.get_or_insert_default();
            for (own, later) in own.iter_mut().zip(later) {
                own.merge(later);
            }
        }
        self.covered += row.covered;
    }

    /// All of them as one.
    pub fn row(self) -> Row {
        let level = |(level, sum, weight): (Level, u128, u64)| {
            let weight = u128::from(weight);
            let mean = ((sum + weight / 2) / weight) as u64;
            Level { mean, ..level }
        };
        let levels = self.levels.into_iter();
        Row {
            covered: self.covered,
            totals: self.totals,
            flows: self.flows,
            levels: levels.map(|known| known.map(level)).collect(),
            sketches: self.sketches,
        }
    }
}

fn merge<T, U>(
    own: &mut Vec<Option<T>>,
    later: &[Option<U>],
    first: impl Fn(&U) -> T,
    both: impl Fn(&mut T, &U),
) {
    if own.len() < later.len() {
        own.resize_with(later.len(), || None);
    }
    for (own, later) in own.iter_mut().zip(later) {
        let Some(later) = later else { continue };
        match own {
            Some(own) => both(own, later),
            None => *own = Some(first(later)),
        }
    }
}

/// Rows of several things over the same time as one row, in which totals and means alone count.
#[derive(Debug, Clone, Default)]
pub struct Together {
    totals: Vec<Option<u64>>,
    flows: Vec<Option<u64>>,
    levels: Vec<Option<f64>>,
}

impl Together {
    /// Adds a row, of a time of which `covered` was watched.
    pub fn add(&mut self, row: &Row, covered: u64) {
        let sum = |own: &mut u64, more: &u64| *own = own.saturating_add(*more);
        merge(&mut self.totals, &row.totals, |total| *total, sum);
        merge(
            &mut self.flows,
            &row.flows,
            |flow| flow.total,
            |own, more| {
                *own = own.saturating_add(more.total);
            },
        );
        // What was there for a part of the time had less on the whole.
        let share = row.covered.min(covered).max(1) as f64 / covered.max(1) as f64;
        let part = |level: &Level| level.mean as f64 * share;
        merge(&mut self.levels, &row.levels, part, |own, more| {
            *own += part(more);
        });
    }

    /// All of them as one.
    pub fn row(self, covered: u64) -> Row {
        let flow = |total| Flow {
            total,
            ..Flow::default()
        };
        let level = |mean: f64| {
            let mean = mean.round() as u64;
            Level {
                mean,
                min: mean,
                max: mean,
                last: mean,
            }
        };
        Row {
            covered,
            totals: self.totals,
            flows: self
                .flows
                .into_iter()
                .map(|total| total.map(flow))
                .collect(),
            levels: self
                .levels
                .into_iter()
                .map(|mean| mean.map(level))
                .collect(),
            sketches: None,
        }
    }
}

#[cfg(test)]
mod tests;
