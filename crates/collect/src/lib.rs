//! Reads a host: what the kernel counts, as a [`Sample`](nodestats_core::Sample) of raw counters.
//!
//! Everything is read below one explicit host root, so that fixtures and a mounted host work.
//! Each collector is a file here, runs on a thread of its own, has a deadline, and reports how it
//! fared. Knows nothing of where samples go.

mod cgroups;
mod collector;
mod cpu;
mod disk;
mod filesystems;
mod host;
mod kills;
mod load;
mod memory;
mod network;
mod pressure;
mod processes;
mod root;
mod sysinfo_reader;
mod users;

pub use collector::Error;
pub use host::{HostFacts, OpenError, Reader};
pub use processes::Processes;
pub use root::HostRoot;
pub use sysinfo_reader::SysinfoReader;
