//! Counters to rates: what a sample says, given the one before it.
//!
//! Rates are computed when history is read, over the time since boot that passed between the two
//! samples, so neither a missed sample nor a step of the wall clock makes one wrong. What two
//! samples cannot tell (the first one, another boot, a counter that only one of them has) is
//! absent, never 0.

mod books;
mod cgroup;
mod counter;
mod host;
mod process;
mod rolled;

pub use books::{CpuBooks, cpu_books};
pub(crate) use books::{Life, ended_children};
pub use cgroup::{node_pods, node_units, pods};
pub(crate) use counter::percent;
pub use host::{host_reading, summary};
pub(crate) use process::{Pair, cpu_percent};
pub use process::{process_rows, process_rows_of, process_table};

pub use rolled::{
    Aggregate, rolled_cpu, rolled_disk, rolled_filesystems, rolled_memory, rolled_network,
    rolled_pods, rolled_pressure, rolled_processes, rolled_summary, rolled_units,
};

#[cfg(test)]
mod properties;
