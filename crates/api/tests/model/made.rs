//! Nodes and their histories, made of a seed, and what is plain to see of them: samples, and what grew between two.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use nodestats_core::sample::cgroup::{self, Kind};
use nodestats_core::sample::note::{Kill, KillSource, Note, What};
use nodestats_core::sample::{
    Cgroup, CpuTimes, DirectionCounters, DiskCounters, Filesystem, Host, InterfaceCounters, Memory,
    Process, Sample,
};
use nodestats_core::{FrameId, frame};
use nodestats_testkit::Random;
use nodestats_wire::Timestamp;
use serde_json::{Value, json};
use uuid::Uuid;

/// Samples of a node, 10 to 90 s after one another.
const SAMPLES: u64 = 150;
/// All begin in the middle of an hour.
pub(crate) const BEGIN: i64 = 1_772_368_200;
pub(crate) const TICKS: u64 = 100;
pub(crate) const NAMESPACE: &str = "team-a";
const UNIT: &str = "/system.slice/work.service";

/// A node, all its samples by their second, and the pods that were on it.
pub(crate) struct Node {
    pub(crate) uid: String,
    pub(crate) name: String,
    pub(crate) samples: BTreeMap<i64, Sample>,
    pub(crate) pods: Vec<Pod>,
}

/// A pod with one container at a time.
pub(crate) struct Pod {
    pub(crate) uid: Arc<str>,
    pub(crate) name: String,
    pub(crate) workload: String,
    begin: i64,
    end: Option<i64>,
    pub(crate) containers: Vec<Arc<str>>,
}

impl Pod {
    fn new(node: u64, number: usize, slot: usize, begin: i64) -> Self {
        Self {
            uid: format!("pod-uid-{node}-{number}").into(),
            name: format!("pod-{node}-{number}"),
            workload: format!("app-{slot}"),
            begin,
            end: None,
            containers: Vec::new(),
        }
    }

    /// As Kubernetes tells of it.
    fn told(&self, node: &Node) -> Value {
        let runs = self.containers.iter();
        let runs: Vec<Value> = runs.map(|id| json!({"container_id": &**id})).collect();
        json!({
            "uid": &*self.uid, "namespace": NAMESPACE, "name": self.name,
            "created_at": at(self.begin), "ended_at": self.end.map(at),
            "node": node.name, "node_uid": node.uid, "phase": "Running",
            "workload": {"kind": "Deployment", "name": self.workload},
            "containers": [{"name": "app", "image": "app:1", "runs": runs}],
        })
    }
}

/// A pod that lives: its number, and its group and its container's.
struct Living {
    number: usize,
    pod: Cgroup,
    container: Cgroup,
}

/// What a node is made with.
struct Maker<'a> {
    random: &'a mut Random,
    second: i64,
    /// Seconds since the sample before.
    later: i64,
    processes: Vec<Process>,
    slots: [Option<Living>; 2],
    unit: Cgroup,
    /// Groups that were made so far.
    groups: u64,
    containers: u64,
    times: CpuTimes,
    disks: [DiskCounters; 2],
    interface: InterfaceCounters,
}

impl Node {
    pub(crate) fn new(number: u64, random: &mut Random) -> Self {
        let mut node = Self {
            uid: format!("uid-{number}"),
            name: format!("node-{number}"),
            samples: BTreeMap::new(),
            pods: Vec::new(),
        };
        let disk = |name: &str| DiskCounters {
            device: name.to_owned(),
            ..DiskCounters::default()
        };
        let mut maker = Maker {
            second: BEGIN + random.below(60) as i64,
            later: 0,
            random,
            processes: Vec::new(),
            slots: [None, None],
            unit: Cgroup {
                path: UNIT.into(),
                id: 1,
                kind: Kind::Unit,
                ..Cgroup::default()
            },
            groups: 1,
            containers: 0,
            times: CpuTimes::default(),
            disks: [disk("sda"), disk("sdb")],
            interface: InterfaceCounters {
                interface: "eth0".to_owned(),
                ..InterfaceCounters::default()
            },
        };
        for _ in 0..SAMPLES {
            let sample = maker.next(number, &mut node.pods);
            node.samples.insert(maker.second, sample);
        }
        node
    }

    pub(crate) fn frames<'a>(&self, seconds: impl Iterator<Item = &'a i64>) -> Vec<u8> {
        let frame = |second: &i64| {
            let id = FrameId {
                agent_start: Uuid::from_u128(1),
                sequence: *second as u64,
            };
            let interval = Some(Duration::from_secs(20));
            frame::encode(at(*second), id, interval, &self.samples[second])
        };
        seconds.flat_map(frame).collect()
    }

    pub(crate) fn told_pods(&self) -> Vec<Value> {
        let told = |pod: &Pod| json!({"digest": "d", "pod": pod.told(self)});
        self.pods.iter().map(told).collect()
    }

    /// How a detail of a span is asked for.
    pub(crate) fn history(&self, detail: &str, from: i64, to: i64) -> String {
        let (from, to) = (asked(from), asked(to));
        format!("/nodes/{}/{detail}?from={from}&to={to}", self.uid)
    }

    /// The last sample at or before a second, and the one before that.
    pub(crate) fn last(&self, second: i64) -> Option<(Option<&Sample>, i64, &Sample)> {
        let mut before = self.samples.range(..=second).rev();
        let (time, sample) = before.next()?;
        Some((before.next().map(|(_, sample)| sample), *time, sample))
    }

    /// The same where somebody who was not heard of for five minutes is not there.
    pub(crate) fn lately(&self, second: i64) -> Option<(Option<&Sample>, &Sample)> {
        let mut within = self.samples.range(second - 300..=second).rev();
        let (_, now) = within.next()?;
        Some((within.next().map(|(_, before)| before), now))
    }

    /// Each sample of a span, with the one before it.
    pub(crate) fn pairs(
        &self,
        from: i64,
        to: i64,
    ) -> impl Iterator<Item = (i64, Option<&Sample>, &Sample)> {
        let within = self.samples.range(from..=to);
        within.map(|(second, sample)| {
            let before = self.samples.range(..*second).next_back();
            (*second, before.map(|(_, before)| before), sample)
        })
    }
}

impl Maker<'_> {
    fn next(&mut self, node: u64, pods: &mut Vec<Pod>) -> Sample {
        // Now and then it is away for longer than a minute, or than what counts as there.
        let away = match self.random.below(30) {
            0 => 700,
            1..4 => 90,
            _ => 0,
        };
        self.later = 10 + self.random.below(30) as i64 + away;
        self.second += self.later;
        self.pods(node, pods);
        self.processes();
        let host = self.host();
        let mut groups: Vec<Cgroup> = Vec::new();
        for slot in self.slots.iter().flatten() {
            groups.push(slot.pod.clone());
            groups.push(slot.container.clone());
        }
        groups.push(self.unit.clone());
        groups.sort_by(|a, b| a.path.cmp(&b.path));
        let mut sample = Sample {
            host,
            processes: self.processes.clone(),
            cgroups: Some(groups),
            notes: self.notes(),
        };
        sample.gather_members();
        sample
    }

    /// Some end, some begin, and containers are started anew.
    fn pods(&mut self, node: u64, pods: &mut Vec<Pod>) {
        for number in 0..self.slots.len() {
            let mut slot = self.slots[number].take();
            if let Some(living) = slot.take_if(|_| self.random.below(25) == 0) {
                pods[living.number].end = Some(self.second);
            }
            if slot.is_none() && self.random.below(3) > 0 {
                pods.push(Pod::new(node, pods.len(), number, self.second - self.later));
                let pod = pods.len() - 1;
                let uid = Arc::clone(&pods[pod].uid);
                let path = format!("/kubepods/pod{uid}");
                slot = Some(Living {
                    number: pod,
                    container: self.container(node, &mut pods[pod]),
                    pod: self.group(&path, Kind::Pod { uid }),
                });
            } else if let Some(living) = &mut slot {
                self.used(&mut living.pod);
                if self.random.below(20) == 0 {
                    living.container = self.container(node, &mut pods[living.number]);
                } else {
                    self.used(&mut living.container);
                }
            }
            self.slots[number] = slot;
        }
        let mut unit = self.unit.clone();
        self.used(&mut unit);
        self.unit = unit;
    }

    fn container(&mut self, node: u64, pod: &mut Pod) -> Cgroup {
        self.containers += 1;
        let id: Arc<str> = format!("{:032x}{:032x}", node + 1, self.containers).into();
        pod.containers.push(Arc::clone(&id));
        let path = format!("/kubepods/pod{}/{id}", pod.uid);
        let pod_uid = Some(Arc::clone(&pod.uid));
        self.group(&path, Kind::Container { id, pod_uid })
    }

    /// A group that was made since the sample before.
    fn group(&mut self, path: &str, kind: Kind) -> Cgroup {
        self.groups += 1;
        let mut group = Cgroup {
            path: path.into(),
            id: self.groups,
            kind,
            ..Cgroup::default()
        };
        self.used(&mut group);
        group
    }

    /// It has used more, and less than all of the time.
    fn used(&mut self, group: &mut Cgroup) {
        let micros = self.later as u64 * 1_000_000;
        let cpu = group.cpu.get_or_insert_default();
        cpu.usage_micros += self.random.below(micros);
        cpu.user_micros = cpu.usage_micros / 2;
        cpu.periods += 100;
        cpu.throttled_periods += self.random.below(100);
        cpu.throttled_micros += self.random.below(micros);
        (cpu.quota_micros, cpu.period_micros) = (Some(50_000), 100_000);
        let inactive_file = self.random.below(1 << 20);
        group.memory = Some(cgroup::Memory {
            current: inactive_file + self.random.below(1 << 30),
            inactive_file,
            limit: Some(1 << 31),
            ..cgroup::Memory::default()
        });
        let disks = group.disks.get_or_insert_default();
        if disks.is_empty() {
            disks.push(cgroup::Disk {
                device: "sda".to_owned(),
                ..cgroup::Disk::default()
            });
        }
        disks[0].read_bytes += self.random.below(1 << 30);
        disks[0].written_bytes += self.random.below(1 << 30);
    }

    fn processes(&mut self) {
        let containers: HashSet<Arc<str>> = self.slots.iter().flatten().map(id_of).collect();
        let random = &mut *self.random;
        self.processes.retain(|process| {
            let is_there = process.container_id.as_ref();
            is_there.is_none_or(|id| containers.contains(id)) && random.below(12) > 0
        });
        for process in &mut self.processes {
            // Most do nothing.
            if random.below(3) == 0 {
                process.user_ticks += random.below(self.later as u64 * TICKS / 2);
                process.resident_bytes = random.below(1 << 18) << 12;
                let bytes = process.read_bytes.unwrap_or_default();
                process.read_bytes = Some(bytes + random.below(1 << 30));
            }
        }
        while self.processes.len() < 3 + self.random.below(5) as usize {
            let born = self.born();
            self.processes.push(born);
        }
        self.processes.sort_by_key(|process| process.pid);
    }

    /// A process that began since the sample before; pids come again.
    fn born(&mut self) -> Process {
        let is_free = |pid: &u32| self.processes.iter().all(|other| other.pid != *pid);
        let mut pids = std::iter::repeat_with(|| 10 + self.random.below(20) as u32);
        let pid = pids.find(is_free).expect("few live");
        let uptime = self.uptime() * TICKS;
        let start_ticks = uptime - self.random.below(self.later as u64 * TICKS - 1);
        let place = self.random.below(3) as usize;
        let living = self.slots.get(place).and_then(Option::as_ref);
        let path = living.map_or(&self.unit.path, |living| &living.container.path);
        Process {
            pid,
            ppid: 1,
            start_ticks,
            name: format!("work-{}", self.random.below(4)).into(),
            state: 'S',
            user: Some(format!("user-{}", pid % 2).into()),
            user_ticks: self.random.below(200),
            resident_bytes: self.random.below(1 << 18) << 12,
            read_bytes: Some(self.random.below(1 << 20)),
            threads: 1,
            container_id: living.map(id_of),
            pod_uid: living.and_then(|living| pod_of(&living.pod)).cloned(),
            cgroup: Some(Arc::clone(path)),
            ..Process::default()
        }
    }

    fn uptime(&self) -> u64 {
        (self.second - BEGIN + 1000) as u64
    }

    fn host(&mut self) -> Host {
        let uptime_micros = self.uptime() * 1_000_000;
        let random = &mut *self.random;
        let later = self.later as u64;
        self.times.user += random.below(later * TICKS);
        self.times.idle += random.below(later * TICKS);
        for disk in &mut self.disks {
            disk.reads += random.below(1000);
            disk.read_bytes += random.below(1 << 30);
            disk.written_bytes += random.below(1 << 30);
            disk.busy_millis += random.below(later * 1000);
        }
        let grow = |direction: &mut DirectionCounters, random: &mut Random| {
            direction.bytes += random.below(1 << 30);
            direction.packets += random.below(1 << 20);
        };
        grow(&mut self.interface.receive, random);
        grow(&mut self.interface.transmit, random);
        let memory = Memory {
            total: 1 << 34,
            available: Some(random.below(1 << 34)),
            ..Memory::default()
        };
        let free = random.below(1 << 40);
        Host {
            boot_id: "a-boot".to_owned(),
            uptime_micros,
            ticks_per_second: TICKS as u32,
            boot_time_seconds: Some((BEGIN - 1000) as f64),
            load_average: Some([random.below(800) as f64 / 100.0, 1.0, 2.0]),
            cpu_total: Some(self.times),
            memory: Some(memory),
            disks: Some(self.disks.to_vec()),
            interfaces: Some(vec![self.interface.clone()]),
            filesystems: Some(vec![Filesystem {
                mountpoint: "/".to_owned(),
                total: 1 << 40,
                free,
                available: free,
                ..Filesystem::default()
            }]),
            ..Host::default()
        }
    }

    /// What happened since the sample before.
    fn notes(&mut self) -> Vec<Note> {
        let ago = self.random.below(self.later as u64 * 1_000_000) as i64;
        let what = match self.random.below(12) {
            0 => What::Paused,
            1 => What::ClockStep { micros: 3_000_000 },
            2 => What::Kill(Kill {
                source: KillSource::Log,
                count: 1,
                cgroup: Some(UNIT.to_owned()),
                pod_uid: None,
                container_id: None,
                victim: Some((self.random.below(1000) as u32, "work-1".to_owned())),
                memory_bytes: None,
                limit_bytes: None,
                within_micros: 0,
                log_read: true,
            }),
            _ => return Vec::new(),
        };
        let time_micros = self.second * 1_000_000 - ago;
        vec![Note { time_micros, what }]
    }
}

fn id_of(living: &Living) -> Arc<str> {
    match &living.container.kind {
        Kind::Container { id, .. } => Arc::clone(id),
        _ => unreachable!("it is made as one"),
    }
}

/// The pod whose group or whose container's it is.
pub(crate) fn pod_of(group: &Cgroup) -> Option<&Arc<str>> {
    match &group.kind {
        Kind::Pod { uid } => Some(uid),
        Kind::Container { pod_uid, .. } => pod_uid.as_ref(),
        _ => None,
    }
}

pub(crate) fn at(second: i64) -> Timestamp {
    Timestamp::from_micros(second * 1_000_000).expect("a time")
}

/// As it is asked for.
pub(crate) fn asked(second: i64) -> String {
    at(second).to_string().replace('+', "%2B")
}

pub(crate) fn round(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

pub(crate) fn seconds_between(before: &Sample, now: &Sample) -> f64 {
    (now.host.uptime_micros - before.host.uptime_micros) as f64 / 1e6
}

/// By how much a counter of a process grew; `None` where that cannot be known.
pub(crate) fn growth(
    before: Option<&Sample>,
    process: &Process,
    of: fn(&Process) -> u64,
) -> Option<u64> {
    let before = before?;
    let same =
        |other: &&Process| (other.pid, other.start_ticks) == (process.pid, process.start_ticks);
    match before.processes.iter().find(same) {
        Some(known) => Some(of(process) - of(known)),
        // All of them began since.
        None => Some(of(process)),
    }
}

/// The same of a group.
pub(crate) fn grown(
    before: Option<&Sample>,
    group: &Cgroup,
    of: fn(&Cgroup) -> u64,
) -> Option<u64> {
    let same = |other: &&Cgroup| (&other.path, other.id) == (&group.path, group.id);
    let known = before?.cgroups.iter().flatten().find(same);
    Some(of(group) - known.map_or(0, of))
}

pub(crate) fn usage(group: &Cgroup) -> u64 {
    group.cpu.expect("set").usage_micros
}

pub(crate) fn group_read(group: &Cgroup) -> u64 {
    group.disks.as_ref().expect("set")[0].read_bytes
}

pub(crate) fn group_written(group: &Cgroup) -> u64 {
    group.disks.as_ref().expect("set")[0].written_bytes
}

pub(crate) fn working_set(group: &Cgroup) -> u64 {
    group.memory.expect("set").working_set()
}

pub(crate) fn cpu_percent(before: Option<&Sample>, now: &Sample, process: &Process) -> Option<f64> {
    let ticks = growth(before, process, |process| process.user_ticks)?;
    let rate = ticks as f64 / seconds_between(before?, now);
    Some(round(rate * 100.0 / TICKS as f64))
}

pub(crate) fn read_bytes(process: &Process) -> u64 {
    process.read_bytes.unwrap_or_default()
}

pub(crate) fn read_rate(before: Option<&Sample>, now: &Sample, process: &Process) -> Option<f64> {
    let bytes = growth(before, process, read_bytes)?;
    Some(round(bytes as f64 / seconds_between(before?, now)))
}

/// Growth a second, as it is told.
pub(crate) fn rate(before: &Sample, now: &Sample, grown: u64) -> f64 {
    round(grown as f64 / seconds_between(before, now))
}

pub(crate) fn is_near(a: f64, b: f64, error: f64) -> bool {
    (a - b).abs() <= error
}
