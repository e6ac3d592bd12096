//! Samples as earlier versions of the frame have them.

use std::sync::Arc;

use serde::Deserialize;

use super::Process;

/// A process of versions 1 and 2: without what it asked the kernel to read and write.
#[derive(Debug, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
pub(crate) struct ProcessBefore3 {
    pid: u32,
    ppid: u32,
    start_ticks: u64,
    name: Arc<str>,
    state: char,
    user_ticks: u64,
    system_ticks: u64,
    children_user_ticks: u64,
    children_system_ticks: u64,
    minor_faults: u64,
    major_faults: u64,
    threads: u32,
    virtual_bytes: u64,
    resident_bytes: u64,
    shared_bytes: Option<u64>,
    swapped_bytes: Option<u64>,
    read_bytes: Option<u64>,
    written_bytes: Option<u64>,
    open_files: Option<u64>,
    user: Option<Arc<str>>,
    command_line: Option<Arc<str>>,
    container_id: Option<Arc<str>>,
    pod_uid: Option<Arc<str>>,
}

impl From<ProcessBefore3> for Process {
    fn from(old: ProcessBefore3) -> Self {
        Self {
            pid: old.pid,
            ppid: old.ppid,
            start_ticks: old.start_ticks,
            name: old.name,
            state: old.state,
            user_ticks: old.user_ticks,
            system_ticks: old.system_ticks,
            children_user_ticks: old.children_user_ticks,
            children_system_ticks: old.children_system_ticks,
            minor_faults: old.minor_faults,
            major_faults: old.major_faults,
            threads: old.threads,
            virtual_bytes: old.virtual_bytes,
            resident_bytes: old.resident_bytes,
            shared_bytes: old.shared_bytes,
            swapped_bytes: old.swapped_bytes,
            read_bytes: old.read_bytes,
            written_bytes: old.written_bytes,
            open_files: old.open_files,
            user: old.user,
            command_line: old.command_line,
            container_id: old.container_id,
            pod_uid: old.pod_uid,
            calls: None,
            cgroup: None,
        }
    }
}

#[cfg(test)]
impl From<&Process> for ProcessBefore3 {
    fn from(new: &Process) -> Self {
        let new = new.clone();
        Self {
            pid: new.pid,
            ppid: new.ppid,
            start_ticks: new.start_ticks,
            name: new.name,
            state: new.state,
            user_ticks: new.user_ticks,
            system_ticks: new.system_ticks,
            children_user_ticks: new.children_user_ticks,
            children_system_ticks: new.children_system_ticks,
            minor_faults: new.minor_faults,
            major_faults: new.major_faults,
            threads: new.threads,
            virtual_bytes: new.virtual_bytes,
            resident_bytes: new.resident_bytes,
            shared_bytes: new.shared_bytes,
            swapped_bytes: new.swapped_bytes,
            read_bytes: new.read_bytes,
            written_bytes: new.written_bytes,
            open_files: new.open_files,
            user: new.user,
            command_line: new.command_line,
            container_id: new.container_id,
            pod_uid: new.pod_uid,
        }
    }
}
