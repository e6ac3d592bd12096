//! Containers, pods and units.

use std::collections::{HashMap, HashSet};

use nodestats_wire::v1::{
    Container, GroupCpu, GroupDevice, GroupDisk, GroupMemory, NodeCpu, NodePods, Pod, Unit,
    UnitKind, Units,
};

use super::books::ended_children;
use super::counter::{Span, percent, round};
use super::host::{network, pressure};
use super::process::Pair;
use crate::sample::cgroup::{Cpu, Disk, Kind, Memory};
use crate::sample::{Cgroup, Host, InterfaceCounters, Process, Sample};

/// The systemd units of `current`, and containers that are of no pod, by path, and the node's CPU beside
/// theirs; `None` where control groups are not known.
pub fn node_units(previous: Option<&Sample>, current: &Sample) -> Option<Units> {
    let groups = Groups::new(previous, current)?;
    let units = units_of(&groups);
    // One within another is counted there.
    let paths: HashSet<&str> = units
        .iter()
        .filter_map(|unit| unit.cgroup.as_deref())
        .collect();
    let is_within = |unit: &&Unit| {
        let mut path = unit.cgroup.as_deref().unwrap_or_default();
        while let Some((above, _)) = path.rsplit_once('/') {
            if paths.contains(above) {
                return true;
            }
            path = above;
        }
        false
    };
    let outer = units.iter().filter(|unit| !is_within(unit));
    let used = outer
        .filter_map(|unit| unit.cpu.as_ref()?.usage_millicores)
        .sum();
    Some(Units {
        cpu: node_cpu(groups.pair.as_ref(), previous, current, used),
        units: Some(units),
        ..Units::default()
    })
}

fn units_of(groups: &Groups<'_>) -> Vec<Unit> {
    let unit = |group: &Cgroup| {
        let kind = match &group.kind {
            Kind::Unit => UnitKind::Unit,
            Kind::Session => UnitKind::Session,
            Kind::Slice => UnitKind::Slice,
            Kind::Container { pod_uid: None, .. } => UnitKind::Container,
            Kind::Container { .. } | Kind::Pod { .. } => return None,
        };
        Some(Unit {
            unit: Some(group.name().to_owned()),
            kind: Some(kind),
            cgroup: Some(group.path.to_string()),
            cpu: groups.cpu(group),
            memory: group.memory.as_ref().map(memory),
            disk: groups.disk(group),
            pressure: group.pressure.as_ref().map(pressure),
            tasks: group.tasks,
            tasks_limit: group.tasks_limit,
            ..Unit::default()
        })
    };
    groups.list.iter().filter_map(unit).collect()
}

/// The pods of `current`, by path, and the node's CPU beside theirs; `None` where control groups are
/// not known.
pub fn node_pods(previous: Option<&Sample>, current: &Sample) -> Option<NodePods> {
    let groups = Groups::new(previous, current)?;
    let pods = pods_of(&groups);
    let used = pods
        .iter()
        .filter_map(|pod| pod.cpu.as_ref()?.usage_millicores);
    Some(NodePods {
        cpu: node_cpu(groups.pair.as_ref(), previous, current, used.sum()),
        pods: Some(pods),
        ..NodePods::default()
    })
}

/// The pods of `current`, by path; `None` where control groups are not known.
pub fn pods(previous: Option<&Sample>, current: &Sample) -> Option<Vec<Pod>> {
    Some(pods_of(&Groups::new(previous, current)?))
}

fn node_cpu(
    pair: Option<&Pair<'_>>,
    previous: Option<&Sample>,
    current: &Sample,
    of_groups: f64,
) -> Option<NodeCpu> {
    let used = |host: &Host| Some(host.cpu_total?.busy());
    let ticks = used(&current.host)?.checked_sub(used(&previous?.host)?)?;
    let seconds = ticks as f64 / f64::from(current.host.ticks_per_second.max(1));
    let used = seconds * 1e9 / pair?.span.micros();
    Some(NodeCpu {
        used_millicores: Some(round(used)),
        groups_millicores: Some(round(of_groups)),
        rest_millicores: Some(round(used - of_groups)),
    })
}

fn pods_of(groups: &Groups<'_>) -> Vec<Pod> {
    let pod = |group: &Cgroup| {
        let Kind::Pod { uid } = &group.kind else {
            return None;
        };
        let containers = groups.containers.get(&**uid).into_iter().flatten();
        Some(Pod {
            uid: Some(uid.to_string()),
            cpu: groups.cpu(group),
            memory: group.memory.as_ref().map(memory),
            disk: groups.disk(group),
            network: group.interfaces.as_ref().map(|interfaces| {
                let before = |(span, before)| Some((span, interfaces_of(before)?));
                network(groups.before(group).and_then(before), interfaces)
            }),
            pressure: group.pressure.as_ref().map(pressure),
            tasks: group.tasks,
            tasks_limit: group.tasks_limit,
            containers: Some(containers.map(|group| groups.container(group)).collect()),
            ..Pod::default()
        })
    };
    groups.list.iter().filter_map(pod).collect()
}

/// What a group was at the sample before.
#[derive(Clone, Copy)]
enum Before<'a> {
    /// It was there.
    Counters(&'a Cgroup),
    /// It was made since: all its counters were 0.
    Unborn,
}

fn interfaces_of(before: Before<'_>) -> Option<&[InterfaceCounters]> {
    match before {
        Before::Counters(before) => before.interfaces.as_deref(),
        Before::Unborn => None,
    }
}

/// The groups of a sample beside those of the one before.
struct Groups<'a> {
    list: &'a [Cgroup],
    pair: Option<Pair<'a>>,
    previous: HashMap<(&'a str, u64), &'a Cgroup>,
    /// By the UID of their pod.
    containers: HashMap<&'a str, Vec<&'a Cgroup>>,
    /// CPU of the processes that are in a group or below it, by its path; `None` where that cannot be
    /// known.
    processes: Option<HashMap<&'a str, OfProcesses>>,
    ticks_per_second: f64,
    cpus: f64,
}

impl<'a> Groups<'a> {
    fn new(previous: Option<&'a Sample>, current: &'a Sample) -> Option<Self> {
        let list = current.cgroups.as_deref()?;
        let known = |group: &'a Cgroup| ((&*group.path, group.id), group);
        let previous = previous.filter(|previous| previous.cgroups.is_some());
        let of_previous = previous.and_then(|previous| previous.cgroups.as_ref());
        let pair = Pair::new(previous, current);
        let mut containers: HashMap<&str, Vec<&Cgroup>> = HashMap::new();
        for group in list {
            if let Kind::Container {
                pod_uid: Some(uid), ..
            } = &group.kind
            {
                containers.entry(uid).or_default().push(group);
            }
        }
        Some(Self {
            list,
            processes: pair
                .as_ref()
                .and_then(|pair| processes(pair, list, current)),
            pair,
            previous: of_previous.into_iter().flatten().map(known).collect(),
            containers,
            ticks_per_second: f64::from(current.host.ticks_per_second.max(1)),
            cpus: current.host.cpus.len().max(1) as f64,
        })
    }

    fn before(&self, group: &Cgroup) -> Option<(Span, Before<'a>)> {
        let pair = self.pair.as_ref()?;
        let before = self.previous.get(&(&*group.path, group.id));
        // One that was missed in the sample before has used more since it was made than a span has.
        let used = group.cpu.map_or(0, |cpu| cpu.usage_micros) as f64;
        if before.is_none() && used > pair.span.micros() * self.cpus * 1.1 {
            return None;
        }
        Some((
            pair.span,
            before.map_or(Before::Unborn, |before| Before::Counters(before)),
        ))
    }

    fn container(&self, group: &Cgroup) -> Container {
        let id = match &group.kind {
            Kind::Container { id, .. } => Some(id.to_string()),
            _ => None,
        };
        Container {
            name: None,
            container_id: id,
            cpu: self.cpu(group),
            memory: group.memory.as_ref().map(memory),
            disk: self.disk(group),
            pressure: group.pressure.as_ref().map(pressure),
            tasks: group.tasks,
            tasks_limit: group.tasks_limit,
        }
    }

    fn cpu(&self, group: &Cgroup) -> Option<GroupCpu> {
        let now = group.cpu.as_ref()?;
        let before = self.before(group).and_then(|(span, before)| match before {
            Before::Counters(before) => Some((span, before.cpu?)),
            Before::Unborn => Some((span, Cpu::default())),
        });
        let growth = |field: fn(&Cpu) -> u64| {
            before.map(|(span, before)| span.monotonic_rate(field(&before), field(now)))
        };
        // Microseconds a second are thousandths of a millicore.
        let millicores = |micros: f64| micros / 1000.0;
        let usage = growth(|cpu| cpu.usage_micros).map(millicores);
        let known = self.processes.as_ref();
        let known = known.map(|known| known.get(&*group.path).copied().unwrap_or_default());
        let of_ticks = |ticks: f64| round(ticks * 1000.0 / self.ticks_per_second);
        let processes = known.map(|known| of_ticks(known.living));
        let ended = known.map(|known| of_ticks(known.ended_children));
        let limit = now
            .quota_micros
            .filter(|_| now.period_micros > 0)
            .map(|quota| quota as f64 * 1000.0 / now.period_micros as f64);
        let periods = growth(|cpu| cpu.periods);
        let throttled = growth(|cpu| cpu.throttled_periods);
        Some(GroupCpu {
            usage_millicores: usage.map(round),
            user_millicores: growth(|cpu| cpu.user_micros).map(millicores).map(round),
            system_millicores: growth(|cpu| cpu.system_micros).map(millicores).map(round),
            processes_millicores: processes,
            ended_children_millicores: ended,
            remainder_millicores: usage
                .zip(processes.zip(ended))
                .map(|(all, (living, ended))| round(round(all) - living - ended)),
            request_millicores: None,
            request_percent: None,
            limit_millicores: limit.map(round),
            limit_percent: usage
                .zip(limit)
                .and_then(|(usage, limit)| percent(usage, limit)),
            weight: now.weight,
            throttled_percent: throttled
                .zip(periods)
                .and_then(|(part, all)| percent(part, all)),
            throttled_seconds_per_second: growth(|cpu| cpu.throttled_micros)
                .map(|micros| round(micros / 1e6)),
            usage_seconds_total: Some(round(now.usage_micros as f64 / 1e6)),
            throttled_seconds_total: Some(round(now.throttled_micros as f64 / 1e6)),
            periods_total: Some(now.periods),
            throttled_periods_total: Some(now.throttled_periods),
        })
    }

    fn disk(&self, group: &Cgroup) -> Option<GroupDisk> {
        let before = self.before(group);
        let device = |now: &Disk| {
            let before = before.and_then(|(span, before)| match before {
                Before::Counters(before) => {
                    let mut disks = before.disks.as_ref()?.iter();
                    // A device that it had not used yet has no line.
                    let disk = disks.find(|before| before.device == now.device);
                    Some((span, disk.cloned().unwrap_or_default()))
                }
                Before::Unborn => Some((span, Disk::default())),
            });
            let rate = |field: fn(&Disk) -> u64| {
                before
                    .as_ref()
                    .map(|(span, before)| span.rate(field(before), field(now)))
            };
            GroupDevice {
                device: Some(now.device.clone()),
                read_bytes_per_second: rate(|disk| disk.read_bytes),
                write_bytes_per_second: rate(|disk| disk.written_bytes),
                reads_per_second: rate(|disk| disk.reads),
                writes_per_second: rate(|disk| disk.writes),
                read_bytes_total: Some(now.read_bytes),
                write_bytes_total: Some(now.written_bytes),
            }
        };
        let disks = group.disks.as_ref()?;
        Some(GroupDisk {
            devices: Some(disks.iter().map(device).collect()),
        })
    }
}

/// CPU of processes in ticks a second.
#[derive(Debug, Clone, Copy, Default)]
struct OfProcesses {
    living: f64,
    /// Of children of those that live.
    ended_children: f64,
}

/// What the processes of each group used, and of all groups below it; `None` where processes are not
/// sampled.
fn processes<'a>(
    pair: &Pair,
    list: &'a [Cgroup],
    current: &Sample,
) -> Option<HashMap<&'a str, OfProcesses>> {
    if current.processes.is_empty() || pair.previous.processes.is_empty() {
        return None;
    }
    let ended = ended_children(pair, current);
    let used = |process: &Process| {
        let ended = ended.get(&(process.pid, process.start_ticks));
        let ended = ended.map_or(0.0, |ticks| *ticks as f64 * 1e6 / pair.span.micros());
        Some(OfProcesses {
            living: pair.cpu_ticks(process)?,
            ended_children: ended,
        })
    };
    let used: HashMap<u32, OfProcesses> = current
        .processes
        .iter()
        .filter_map(|process| Some((process.pid, used(process)?)))
        .collect();
    let mut all: HashMap<&str, OfProcesses> = HashMap::new();
    for group in list {
        let members = group.members.iter().filter_map(|pid| used.get(pid));
        let own = members.fold(OfProcesses::default(), |sum, one| OfProcesses {
            living: sum.living + one.living,
            ended_children: sum.ended_children + one.ended_children,
        });
        let mut path: &'a str = &group.path;
        while own.living + own.ended_children > 0.0 && !path.is_empty() {
            let sum = all.entry(path).or_default();
            sum.living += own.living;
            sum.ended_children += own.ended_children;
            path = path.rsplit_once('/').map_or("", |(above, _)| above);
        }
    }
    Some(all)
}

fn memory(memory: &Memory) -> GroupMemory {
    let working_set = memory.working_set();
    GroupMemory {
        current_bytes: Some(memory.current),
        working_set_bytes: Some(working_set),
        anonymous_bytes: memory.anonymous,
        file_bytes: memory.file,
        peak_bytes: memory.peak,
        request_bytes: None,
        request_percent: None,
        limit_bytes: memory.limit,
        limit_percent: memory
            .limit
            .and_then(|limit| percent(working_set as f64, limit as f64)),
        swap_bytes: memory.swap,
        limit_reached_total: Some(memory.events.max),
        oom_kills: None,
        oom_kills_total: Some(memory.events.oom_kill),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::sample::{CpuTimes, Process};

    /// Growth of a process's ticks and of its group's microseconds.
    type Grown = Vec<(u64, u64)>;

    /// A pod of so many containers with a process each, at `seconds`.
    fn sample(seconds: u64, grown: &Grown, times: u64) -> Sample {
        let path = |number: usize| format!("/pod/{number}");
        let cpu = |usage_micros| Cpu {
            usage_micros: 1_000_000 + usage_micros * times,
            periods: 10 * times,
            throttled_periods: 4 * times,
            quota_micros: Some(20_000),
            period_micros: 100_000,
            ..Cpu::default()
        };
        let uid: std::sync::Arc<str> = "u".into();
        let container = |(number, (_, micros)): (usize, &(u64, u64))| Cgroup {
            path: path(number).into(),
            kind: Kind::Container {
                id: number.to_string().into(),
                pod_uid: Some(uid.clone()),
            },
            cpu: Some(cpu(*micros)),
            members: vec![number as u32],
            ..Cgroup::default()
        };
        let pod = Cgroup {
            path: "/pod".into(),
            kind: Kind::Pod { uid: uid.clone() },
            cpu: Some(cpu(grown.iter().map(|(_, micros)| micros).sum())),
            ..Cgroup::default()
        };
        let process = |(number, (ticks, _)): (usize, &(u64, u64))| Process {
            pid: number as u32,
            user_ticks: 100 + ticks * times,
            ..Process::default()
        };
        Sample {
            host: Host {
                boot_id: "a".into(),
                uptime_micros: seconds * 1_000_000,
                ticks_per_second: 100,
                ..Host::default()
            },
            processes: grown.iter().enumerate().map(process).collect(),
            cgroups: Some(
                std::iter::once(pod)
                    .chain(grown.iter().enumerate().map(container))
                    .collect(),
            ),
            notes: Vec::new(),
        }
    }

    #[test]
    fn what_is_within_a_slice_is_counted_in_it_alone() {
        let unit = |path: &str, kind, usage_micros| Cgroup {
            path: path.into(),
            kind,
            cpu: Some(Cpu {
                usage_micros,
                ..Cpu::default()
            }),
            ..Cgroup::default()
        };
        let sample = |seconds: u64| {
            let mut sample = sample(seconds, &vec![], 0);
            sample.host.cpu_total = Some(CpuTimes {
                user: seconds * 50,
                ..CpuTimes::default()
            });
            let micros = seconds * 100_000;
            sample.cgroups = Some(vec![
                unit("/system.slice", Kind::Slice, micros * 3),
                unit("/system.slice/a.service", Kind::Unit, micros * 2),
                unit("/user.slice", Kind::Slice, micros),
            ]);
            sample
        };
        let units = node_units(Some(&sample(10)), &sample(20)).expect("groups");
        let cpu = units.cpu.expect("CPU");
        assert_eq!(
            (
                cpu.used_millicores,
                cpu.groups_millicores,
                cpu.rest_millicores
            ),
            (Some(500.0), Some(400.0), Some(100.0))
        );
        assert_eq!(units.units.map(|units| units.len()), Some(3));
    }

    proptest! {
        #[test]
        fn processes_and_a_remainder_are_a_group_s_cpu(
            grown in prop::collection::vec((0u64..1000, 0u64..20_000_000), 1..6),
        ) {
            let (before, now) = (sample(10, &grown, 0), sample(20, &grown, 1));
            let pod = pods(Some(&before), &now).expect("groups").remove(0);
            let containers = pod.containers.expect("containers");
            let groups = containers.iter().map(|container| container.cpu.as_ref());
            for cpu in groups.chain([pod.cpu.as_ref()]) {
                let cpu = cpu.expect("CPU");
                let (all, known) = (cpu.usage_millicores, cpu.processes_millicores);
                let ended = cpu.ended_children_millicores.expect("children");
                let sum =
                    known.expect("processes") + ended + cpu.remainder_millicores.expect("a rest");
                prop_assert!((sum - all.expect("use")).abs() < 0.011, "{cpu:?}");
            }
            // And the containers are the pod.
            let sum = |field: fn(&GroupCpu) -> Option<f64>| -> f64 {
                let groups = containers.iter().filter_map(|container| container.cpu.as_ref());
                groups.filter_map(field).sum()
            };
            let all = pod.cpu.expect("CPU");
            let off = sum(|cpu| cpu.processes_millicores) - all.processes_millicores.expect("known");
            prop_assert!(off.abs() < 0.05);
        }

        #[test]
        fn pods_and_the_rest_are_a_node_s_cpu(
            grown in prop::collection::vec((0u64..1000, 0u64..20_000_000), 1..6),
            busy in prop::array::uniform8(0u64..1000),
        ) {
            let times = |[user, nice, system, idle, iowait, irq, softirq, steal]: [u64; 8]| CpuTimes {
                user, nice, system, idle, iowait, irq, softirq, steal,
            };
            let mut before = sample(10, &grown, 0);
            before.host.cpu_total = Some(times([7; 8]));
            let mut now = sample(20, &grown, 1);
            now.host.cpu_total = Some(times(busy.map(|ticks| 7 + ticks)));
            let books = node_pods(Some(&before), &now).expect("groups");
            let cpu = books.cpu.expect("CPU");
            let (used, of_pods) = (cpu.used_millicores.expect("use"), cpu.groups_millicores.expect("use"));
            // Ticks of ten milliseconds over ten seconds: a tick is a millicore.
            let ticks = busy.iter().sum::<u64>() - busy[3] - busy[4] - busy[7];
            prop_assert!((used - ticks as f64).abs() < 0.011);
            let pod = books.pods.expect("pods").remove(0).cpu.expect("CPU");
            prop_assert_eq!(Some(of_pods), pod.usage_millicores);
            prop_assert!((of_pods + cpu.rest_millicores.expect("a rest") - used).abs() < 0.011);
        }
    }

    #[test]
    fn what_two_samples_cannot_tell_is_absent() {
        let grown = vec![(200, 2_000_000)];
        let (before, now) = (sample(10, &grown, 0), sample(20, &grown, 1));
        let cpu_of = |previous: Option<&Sample>, now: &Sample| {
            let pod = pods(previous, now).expect("groups").remove(0);
            pod.cpu.expect("CPU")
        };
        let known = cpu_of(Some(&before), &now);
        assert_eq!(known.usage_millicores, Some(200.0));
        assert_eq!(
            (known.limit_millicores, known.limit_percent),
            (Some(200.0), Some(100.0))
        );
        assert_eq!(known.throttled_percent, Some(40.0));
        let first = cpu_of(None, &now);
        assert_eq!(
            (first.usage_millicores, first.throttled_percent),
            (None, None)
        );
        assert_eq!(first.usage_seconds_total, Some(3.0));
        // Before that sample there were none that are known: an agent of an older version.
        let older = Sample {
            cgroups: None,
            ..before.clone()
        };
        assert_eq!(cpu_of(Some(&older), &now).usage_millicores, None);
        // The same path made anew counts from zero; a container that was not there did so too.
        let mut anew = before.clone();
        for group in anew.cgroups.iter_mut().flatten() {
            group.id = 7;
        }
        assert_eq!(cpu_of(Some(&anew), &now).usage_millicores, Some(300.0));
        // A compiler that its parent waited for is shown, and is no remainder.
        let mut parent = now.clone();
        parent.processes[0].children_user_ticks += 50;
        let cpu = cpu_of(Some(&before), &parent);
        assert_eq!(cpu.ended_children_millicores, Some(50.0));
        let remainder = known.remainder_millicores.expect("a rest");
        assert_eq!(cpu.remainder_millicores, Some(remainder - 50.0));
        // Nobody samples processes: there is no remainder either.
        let hidden = Sample {
            processes: Vec::new(),
            ..now
        };
        let cpu = cpu_of(Some(&before), &hidden);
        assert_eq!(
            (cpu.processes_millicores, cpu.remainder_millicores),
            (None, None)
        );
    }
}
