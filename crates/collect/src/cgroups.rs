//! Control groups of containers, pods and systemd units, of version 1, version 2, or both at once
//! (Documentation/admin-guide/cgroup-v2.rst and cgroup-v1).
//!
//! The trees are walked each pass; of what is found, groups that people have a name for are read.
//! A group that vanishes meanwhile is left out. Which process is in which group is known from the
//! processes' own files, since `cgroup.procs` shows pids of the reader's namespace.

mod layout;
mod network;
mod place;
mod read;
mod tree;

use std::collections::HashMap;

use nodestats_core::Sample;
use nodestats_core::sample::{Cgroup, cgroup::Kind};

use crate::collector::{Collector, Error};
use crate::root::HostRoot;
use layout::Layout;
pub(crate) use network::PodProcesses;
pub(crate) use place::of_process;
use read::Devices;

/// Reads control groups, and remembers where they are.
pub(crate) struct Cgroups {
    devices: Devices,
    pods: PodProcesses,
}

/// What one pass found.
pub(crate) struct Groups {
    list: Vec<Cgroup>,
    /// What `/` means in the paths that the kernel shows this process: the group at which its cgroup
    /// namespace begins.
    own_root: String,
}

impl Cgroups {
    /// `pods` says whose interfaces are a pod's.
    pub(crate) fn new(pods: PodProcesses) -> Self {
        Self {
            devices: Devices::default(),
            pods,
        }
    }
}

impl Collector for Cgroups {
    /// `None` where no control groups are mounted.
    type Output = Option<Groups>;
    const NAME: &'static str = "cgroups";

    fn collect(&mut self, root: &HostRoot) -> Result<Option<Groups>, Error> {
        let Some(layout) = Layout::find(root) else {
            return Ok(None);
        };
        let found = tree::walk(&layout)?;
        let own_root = found.own_root.unwrap_or_else(|| "/".to_owned());
        let mut reader = read::Reader::new(root, &layout, &mut self.devices);
        let mut list: Vec<Cgroup> = found
            .groups
            .into_iter()
            .filter_map(|group| reader.read(group))
            .collect();
        self.pods.read_interfaces(root, &mut list);
        Ok(Some(Groups { list, own_root }))
    }
}

impl Groups {
    /// Puts the groups into a sample, and its processes into the groups.
    pub(crate) fn join(self, sample: &mut Sample) {
        let Self { list, own_root } = self;
        for process in &mut sample.processes {
            if let Some(path) = &process.cgroup
                && let Some(absolute) = place::absolute(&own_root, path)
            {
                process.cgroup = Some(absolute.into());
            }
        }
        // Where it is not known at which group this namespace begins, paths that lead out of it
        // are not known either, and the names in them are.
        let by_name: HashMap<&str, &Cgroup> = list
            .iter()
            .filter_map(|group| match &group.kind {
                Kind::Container { id, .. } => Some((&**id, group)),
                Kind::Pod { uid } => Some((&**uid, group)),
                _ => None,
            })
            .collect();
        for process in &mut sample.processes {
            let is_known = process.cgroup.as_ref();
            if is_known.is_some_and(|path| !path.starts_with("/..")) {
                continue;
            }
            let names = [&process.container_id, &process.pod_uid];
            let mut groups = names
                .into_iter()
                .flatten()
                .filter_map(|name| by_name.get(&**name));
            process.cgroup = groups.next().map(|group| group.path.clone());
        }
        drop(by_name);
        sample.cgroups = Some(list);
        sample.gather_members();
    }
}

#[cfg(test)]
mod tests;
