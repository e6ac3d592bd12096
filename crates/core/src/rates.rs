//! Counters to rates: what a sample says, given the one before it.
//!
//! Rates are computed when history is read, over the time since boot that passed between the two
//! samples, so neither a missed sample nor a step of the wall clock makes one wrong. What two
//! samples cannot tell (the first one, another boot, a counter that only one of them has) is
//! absent, never 0.

mod cgroup;
mod counter;
mod host;
mod process;

pub use cgroup::{node_pods, node_units, pods};
pub(crate) use counter::percent;
pub use host::{host_reading, summary};
pub use process::process_rows;

#[cfg(test)]
mod properties;
