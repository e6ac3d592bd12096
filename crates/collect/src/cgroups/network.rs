//! Interfaces of pods: the kernel counts them for a network namespace, and any process in it shows
//! them.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::sync::{Arc, Mutex, PoisonError};

use nodestats_core::Sample;
use nodestats_core::sample::Cgroup;
use nodestats_core::sample::cgroup::{DEVICES, Kind};

use crate::network;
use crate::root::HostRoot;

/// One process of each pod, as the last pass found them.
#[derive(Debug, Clone, Default)]
pub(crate) struct PodProcesses(Arc<Mutex<HashMap<Arc<str>, u32>>>);

impl PodProcesses {
    /// Remembers the processes of a sample.
    pub(crate) fn remember(&self, sample: &Sample) {
        let mut pods = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pods.clear();
        for process in &sample.processes {
            if let Some(uid) = &process.pod_uid {
                // The lowest pid is the pod's first: it holds the namespace, and lives longest.
                pods.entry(uid.clone()).or_insert(process.pid);
            }
        }
    }

    /// Adds the interfaces of each pod that has a network namespace of its own.
    pub(super) fn read_interfaces(&self, root: &HostRoot, groups: &mut [Cgroup]) {
        let pods = self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let Some(host) = namespace(root, 1) else {
            return;
        };
        for group in groups {
            if let Kind::Pod { uid } = &group.kind
                && let Some(&pid) = pods.get(uid)
                && namespace(root, pid).is_some_and(|own| own != host)
                && let Ok(text) = root.read(format!("proc/{pid}/net/dev"))
                // It is still the pod's.
                && is_of_pod(root, pid, uid)
            {
                group.interfaces = network::parse(&text).map(|mut all| {
                    all.truncate(DEVICES);
                    all
                });
            }
        }
    }
}

/// Each namespace has files of its own. `/proc/PID/ns` says the same to those who may trace.
fn namespace(root: &HostRoot, pid: u32) -> Option<(u64, u64)> {
    let file = fs::metadata(root.path(format!("proc/{pid}/net/dev"))).ok()?;
    Some((file.dev(), file.ino()))
}

fn is_of_pod(root: &HostRoot, pid: u32, uid: &Arc<str>) -> bool {
    root.read(format!("proc/{pid}/cgroup"))
        .is_ok_and(|text| super::of_process(&text).pod_uid.as_deref() == Some(uid))
}
