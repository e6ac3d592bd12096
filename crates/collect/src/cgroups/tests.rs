//! Each layout as a tree of files, and this machine's own.

use std::fs;
use std::path::Path;

use nodestats_core::rates::{node_units, pods};
use nodestats_core::sample::cgroup::{Cpu, MemoryEvents};
use tempfile::TempDir;

use super::*;
use crate::processes::Processes;

const UID: &str = "3c1f5a52-8e37-4c5e-9f5d-0a2b3c4d5e6f";

/// A host of `fixtures/cgroups/NAME.txt`: a line `@ path`, then what that file holds.
fn unpack(name: &str) -> TempDir {
    let folder = tempfile::tempdir().expect("temporary folder");
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/cgroups");
    let text = fs::read_to_string(fixture.join(format!("{name}.txt"))).expect("a fixture");
    for part in text.split("@ ").skip(1) {
        let (path, content) = part.split_once('\n').expect("a path and a line");
        let path = folder.path().join(path);
        fs::create_dir_all(path.parent().expect("below the folder")).expect("made");
        fs::write(path, content).expect("written");
    }
    folder
}

/// Two passes, so that the interfaces of pods are there.
fn read(root: &HostRoot, own_root: Option<&str>) -> Sample {
    let pod_processes = PodProcesses::default();
    let mut collector = Cgroups::new(pod_processes.clone());
    let mut processes = Processes::default();
    let mut pass = || {
        let mut sample = Sample {
            processes: processes.read(root).expect("processes"),
            ..Sample::default()
        };
        sample.host.ticks_per_second = 100;
        pod_processes.remember(&sample);
        let groups = collector.collect(root).expect("groups");
        let mut groups = groups.expect("control groups are mounted");
        if let Some(own_root) = own_root {
            own_root.clone_into(&mut groups.own_root);
        }
        groups.join(&mut sample);
        sample
    };
    pass();
    pass()
}

fn group<'a>(sample: &'a Sample, end: &str) -> &'a Cgroup {
    let groups = sample.cgroups.as_ref().expect("groups");
    let found = groups.iter().find(|group| group.path.ends_with(end));
    found.unwrap_or_else(|| panic!("no group ends with {end}"))
}

fn id(pair: &str) -> String {
    pair.repeat(32)
}

#[test]
fn version_2_by_systemd() {
    let folder = unpack("v2-systemd");
    let sample = read(&HostRoot::new(folder.path()), None);
    let container = group(&sample, &format!("cri-containerd-{}.scope", id("a1")));
    assert_eq!(
        container.kind,
        Kind::Container {
            id: id("a1").into(),
            pod_uid: Some(UID.into())
        }
    );
    assert_eq!(
        container.cpu,
        Some(Cpu {
            usage_micros: 4_000_000,
            user_micros: 3_500_000,
            system_micros: 500_000,
            periods: 50,
            throttled_periods: 40,
            throttled_micros: 3_000_000,
            quota_micros: Some(20_000),
            period_micros: 100_000,
            weight: Some(39),
        })
    );
    let memory = container.memory.expect("memory");
    assert_eq!(
        (memory.working_set(), memory.limit),
        (15_000_000, Some(64 << 20))
    );
    assert_eq!(container.members, [30]);
    let pressure = container.pressure.expect("pressure").cpu.expect("CPU");
    assert!((pressure.some.averages[0] - 1.5).abs() < f64::EPSILON);
    // The kill is counted in the pod, where the container's own group begins anew.
    let pod = group(&sample, &format!("pod{}.slice", UID.replace('-', "_")));
    let events = pod.memory.expect("memory").events;
    assert_eq!(
        events,
        MemoryEvents {
            max: 7,
            oom: 1,
            oom_kill: 1,
            ..MemoryEvents::default()
        }
    );
    let interfaces = pod.interfaces.as_ref().expect("a namespace of its own");
    assert_eq!(interfaces[1].receive.bytes, 700);
    // A unit, with what it makes below itself.
    let service = group(&sample, "/ssh.service");
    assert_eq!(
        (&service.kind, &*service.members),
        (&Kind::Unit, &[20, 21][..])
    );
    assert_eq!(service.memory.expect("memory").peak, Some(2_000_000));
    let disks = service.disks.as_ref().expect("disks");
    assert_eq!(
        (disks.len(), &*disks[0].device, disks[0].writes),
        (1, "sda", 2)
    );
    assert_eq!(group(&sample, "/session-3.scope").kind, Kind::Session);
    assert_eq!(group(&sample, "/system.slice").kind, Kind::Slice);
    assert_eq!(group(&sample, "/init.scope").members, [1]);
    // Who asks sees pods apart from units.
    let pods = pods(None, &sample).expect("pods");
    assert_eq!(pods.len(), 1);
    assert_eq!(pods[0].containers.as_ref().map(Vec::len), Some(2));
    let units = node_units(None, &sample).and_then(|units| units.units);
    let units = units.expect("units");
    let names: Vec<&str> = units
        .iter()
        .filter_map(|unit| unit.unit.as_deref())
        .collect();
    assert!(
        names.contains(&"ssh.service") && names.contains(&"session-3.scope"),
        "{names:?}"
    );
    assert!(
        !names.iter().any(|name| name.contains("cri-containerd")),
        "{names:?}"
    );
}

#[test]
fn version_2_by_cgroupfs_from_a_private_namespace() {
    let folder = unpack("v2-cgroupfs-private");
    let container = format!("/kubepods/burstable/pod{UID}/{}", id("a1"));
    // The agent is in a container of the same pod.
    let own = format!("/kubepods/burstable/pod{UID}/{}", id("c3"));
    let root = HostRoot::new(folder.path());
    let sample = read(&root, Some(&own));
    assert_eq!(group(&sample, &container).members, [30]);
    // Where it is not known where the namespace begins, containers have names all the same.
    let sample = read(&root, Some("/"));
    assert_eq!(group(&sample, &container).members, [30]);
    assert_eq!(
        sample
            .processes
            .iter()
            .filter(|process| process.cgroup.is_some())
            .count(),
        1
    );
    // No pressure, no limit; a static pod.
    let group = group(&sample, &container);
    assert_eq!(
        (group.pressure, group.memory.expect("memory").limit),
        (None, None)
    );
    let pods = pods(None, &sample).expect("pods");
    let uids: Vec<&str> = pods.iter().filter_map(|pod| pod.uid.as_deref()).collect();
    assert_eq!(uids, ["0123456789abcdef0123456789abcdef", UID]);
}

#[test]
fn version_1_with_controllers_apart() {
    let folder = unpack("v1-cgroupfs");
    let sample = read(&HostRoot::new(folder.path()), None);
    let container = group(&sample, &id("a1"));
    assert_eq!(
        container.cpu,
        Some(Cpu {
            usage_micros: 4_000_000,
            user_micros: 3_000_000,
            system_micros: 1_000_000,
            periods: 50,
            throttled_periods: 40,
            throttled_micros: 3_000_000,
            quota_micros: Some(20_000),
            period_micros: 100_000,
            weight: Some(4),
        })
    );
    let memory = container.memory.expect("memory");
    assert_eq!(
        (memory.working_set(), memory.limit, memory.swap, memory.peak),
        (
            15_000_000,
            Some(64 << 20),
            Some(1_000_000),
            Some(30_000_000)
        )
    );
    assert_eq!((memory.events.max, memory.events.oom_kill), (7, 1));
    let disks = container.disks.as_ref().expect("disks");
    assert_eq!(
        (
            disks[0].read_bytes,
            disks[0].written_bytes,
            disks[0].reads,
            disks[0].writes
        ),
        (4096, 8192, 1, 2)
    );
    assert_eq!(container.members, [30]);
    let pod = group(&sample, &format!("pod{UID}"));
    assert_eq!(
        (
            pod.cpu.expect("CPU").quota_micros,
            pod.memory.expect("memory").limit
        ),
        (None, None)
    );
}

#[test]
fn both_versions_at_once() {
    let folder = unpack("hybrid-systemd");
    let sample = read(&HostRoot::new(folder.path()), None);
    let container = group(&sample, &format!("/crio-{}.scope", id("a1")));
    assert_eq!(container.members, [30]);
    assert_eq!(container.cpu.expect("CPU").quota_micros, None);
    let pod = group(&sample, &format!("pod{}.slice", UID.replace('-', "_")));
    assert!(pod.pressure.expect("of version 2").cpu.is_some());
    let pods = pods(None, &sample).expect("pods");
    let containers = pods[0].containers.as_ref().expect("containers");
    // What watches it is no container.
    assert_eq!(containers.len(), 1);
}

#[test]
fn a_group_that_vanishes_is_left_out() {
    let folder = unpack("v2-systemd");
    let root = HostRoot::new(folder.path());
    let layout = Layout::find(&root).expect("control groups");
    let found = tree::walk(&layout).expect("walked");
    fs::remove_dir_all(folder.path().join("sys/fs/cgroup/system.slice/ssh.service")).expect("gone");
    // One file is gone, the others are not yet.
    fs::remove_file(
        folder
            .path()
            .join("sys/fs/cgroup/init.scope/memory.current"),
    )
    .expect("gone");
    let mut devices = Devices::default();
    let mut reader = read::Reader::new(&root, &layout, &mut devices);
    let groups: Vec<Cgroup> = found
        .groups
        .into_iter()
        .filter_map(|group| reader.read(group))
        .collect();
    assert!(
        !groups
            .iter()
            .any(|group| group.path.ends_with("ssh.service"))
    );
    let rest = groups
        .iter()
        .find(|group| group.path.ends_with("init.scope"))
        .expect("there");
    assert!(rest.memory.is_none() && rest.cpu.is_some());
}

#[test]
fn no_control_groups_are_no_failure() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let mut collector = Cgroups::new(PodProcesses::default());
    let groups = collector
        .collect(&HostRoot::new(folder.path()))
        .expect("nothing to read");
    assert!(groups.is_none());
}
