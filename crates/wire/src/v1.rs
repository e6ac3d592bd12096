//! Version 1 of the API: what a node is and what is read of it.
//!
//! One shape serves both directions: what `GET` gives about a sample, `PUT` takes. So every field
//! can be absent; absent means *not known*, never zero, and an unknown field is refused.

mod cgroup;
mod event;
mod host;
mod node;
mod pod;
mod process;
mod token;
mod top;

pub use cgroup::{
    Container, GroupCpu, GroupDevice, GroupDisk, GroupMemory, NodeCpu, NodePods, Pod, Unit,
    UnitKind, Units,
};
pub use event::{
    DropReason, Event, EventKind, EventSource, Gap, GapEntry, GapReason, PhaseChange, PhaseChanges,
    ToldPhases, Victim,
};
pub use host::{
    Cpu, CpuCore, CpuModes, Disk, DiskDevice, Filesystem, Filesystems, Memory, Network,
    NetworkInterface, Pressure, PressureLine, PressureResource,
};
pub use node::{
    ClusterRegistration, CollectorReport, DeletionPolicy, Freshness, NodeState, NodeView, Origin,
    Reading, Registration,
};
pub use pod::{
    ContainerRecord, ContainerRole, ContainerRun, GonePod, Owner, PodChanges, PodDigest, PodRecord,
    PodView, Stamped, ToldPod,
};
pub use process::{CpuBooks, MemoryBooks, OtherProcesses, Process, Processes};
pub use token::{Issued, Join, Purpose, ServerAddress, Token, TokenRequest};
pub use top::{Top, TopRow};
