//! Where each controller is mounted, and in which version.

use std::path::PathBuf;

use crate::root::HostRoot;

const MOUNTS: &str = "sys/fs/cgroup";
/// Every cgroup of version 2 has this file.
const CONTROLLERS: &str = "cgroup.controllers";

/// Version of a hierarchy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    One,
    Two,
}

/// A controller's hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hierarchy {
    pub(super) version: Version,
    /// Its root, on this machine.
    pub(super) directory: PathBuf,
    /// The same hierarchy where this process itself sees it.
    pub(super) own: PathBuf,
    /// How `/proc/PID/cgroup` calls it; empty of version 2.
    pub(super) name: &'static str,
}

/// The hierarchies of a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) cpu: Option<Hierarchy>,
    /// CPU time; of version 2 it is `cpu` again.
    pub(super) cpuacct: Option<Hierarchy>,
    pub(super) memory: Option<Hierarchy>,
    pub(super) io: Option<Hierarchy>,
    pub(super) pids: Option<Hierarchy>,
    /// The hierarchy of version 2, whatever its controllers: pressure is there.
    pub(super) unified: Option<Hierarchy>,
}

impl Layout {
    /// `None` where no control groups are mounted.
    pub(super) fn find(root: &HostRoot) -> Option<Self> {
        let at = |folder: &str, version, name| Hierarchy {
            version,
            directory: root.path(format!("{MOUNTS}/{folder}")),
            own: PathBuf::from(format!("/{MOUNTS}/{folder}")),
            name,
        };
        let has = |hierarchy: &Hierarchy, file: &str| hierarchy.directory.join(file).exists();
        // Alone, or beside those of version 1 (systemd's "hybrid").
        let mut unified = ["", "unified"]
            .map(|folder| at(folder, Version::Two, ""))
            .into_iter();
        let unified = unified.find(|hierarchy| has(hierarchy, CONTROLLERS));
        let controllers = unified
            .as_ref()
            .and_then(|hierarchy| {
                std::fs::read_to_string(hierarchy.directory.join(CONTROLLERS)).ok()
            })
            .unwrap_or_default();
        let controller = |in_two: &str, file: &str, folders: &[&str], name| {
            let mut folders = folders.iter().map(|folder| at(folder, Version::One, name));
            let one = folders.find(|hierarchy| has(hierarchy, file));
            let two = || controllers.split_whitespace().any(|name| name == in_two);
            one.or_else(|| unified.clone().filter(|_| two()))
        };
        let both = ["cpu,cpuacct", "cpuacct,cpu"];
        let layout = Self {
            cpu: controller("cpu", "cpu.shares", &[both[0], both[1], "cpu"], "cpu"),
            cpuacct: controller(
                "cpu",
                "cpuacct.usage",
                &[both[0], both[1], "cpuacct"],
                "cpuacct",
            ),
            memory: controller("memory", "memory.usage_in_bytes", &["memory"], "memory"),
            io: controller("io", "blkio.reset_stats", &["blkio"], "blkio"),
            pids: controller("pids", "cgroup.procs", &["pids"], "pids"),
            unified,
        };
        // Of version 2 the time of CPUs is counted without any controller.
        let layout = Self {
            cpuacct: layout.cpuacct.or_else(|| layout.unified.clone()),
            ..layout
        };
        (!layout.trees().is_empty()).then_some(layout)
    }

    /// The different hierarchies in which groups are looked for, the one first by which processes
    /// are placed.
    pub(super) fn trees(&self) -> Vec<&Hierarchy> {
        let mut trees: Vec<&Hierarchy> = Vec::new();
        for hierarchy in [&self.cpuacct, &self.cpu, &self.memory]
            .into_iter()
            .flatten()
        {
            if !trees
                .iter()
                .any(|tree| tree.directory == hierarchy.directory)
            {
                trees.push(hierarchy);
            }
        }
        trees
    }
}
