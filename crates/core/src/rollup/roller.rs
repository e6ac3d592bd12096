//! Makes rollups of samples.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use hashbrown::HashMap;
use nodestats_wire::Timestamp;

use super::{
    Bucket, CPU_UNITS, Flow, Group, HOUR, High, Highs, Level, Peaks, Process, Rollup, Row, Sketch,
    Sum, Thing, Together, core, disk, filesystem, group, host, interface, process,
};
use crate::rates::{Life, Pair, ended_children};
use crate::sample::cgroup::Cpu;
use crate::sample::{self, Cgroup, CpuTimes, InterfaceCounters, Sample};

/// Of each kind of use so many processes matter most in an hour, and in a minute.
const OF_HOUR: usize = 15;
const OF_MINUTE: usize = 3;

/// Boot, pid and start of a process that was kept.
pub type Kept = (Arc<str>, u32, u64);

/// Samples of one node that become buckets; they come in the order of time.
#[derive(Debug)]
pub struct Roller {
    /// Length of a bucket in microseconds; 0 for one of all of it.
    step: i64,
    previous: Option<Sample>,
    buckets: BTreeMap<Timestamp, Filling>,
    highs: Highs,
    processes: HashMap<Kept, Process>,
    groups: HashMap<(Arc<str>, u64), Group>,
}

/// A bucket under way.
#[derive(Debug, Default)]
struct Filling {
    covered: u64,
    samples: u32,
    hosts: HashMap<Thing, Sum>,
    groups: HashMap<(Arc<str>, u64), Sum>,
    processes: HashMap<Kept, Sum>,
}

/// What one sample says of one thing.
struct Point {
    /// Time since the sample before in microseconds, where that is known of it.
    span: u64,
    row: Row,
}

impl Point {
    fn new(span: u64) -> Self {
        Self {
            span,
            row: Row {
                covered: span,
                ..Row::default()
            },
        }
    }

    fn total(&mut self, grown: Option<u64>) {
        self.row.totals.push(grown);
    }

    /// A counter of which `unit` are one unit of its rate.
    fn flow(&mut self, grown: Option<u64>, unit: f64) {
        let flow = grown.filter(|_| self.span > 0).map(|total| {
            let rate = (total as f64 * 1e6 / self.span as f64 / unit).round() as u64;
            Flow {
                total,
                min: rate,
                max: rate,
                last: rate,
            }
        });
        self.row.flows.push(flow);
    }

    fn level(&mut self, value: Option<u64>) {
        let level = value.map(|value| Level {
            mean: value,
            min: value,
            max: value,
            last: value,
        });
        self.row.levels.push(level);
    }

    /// Counts the first flow and the first level as values of a distribution.
    fn sketch(&mut self) {
        let mut sketches = [Sketch::default(), Sketch::default()];
        if let Some(Some(flow)) = self.row.flows.first() {
            sketches[0].add(flow.last);
        }
        if let Some(Some(level)) = self.row.levels.first() {
            sketches[1].add(level.last);
        }
        self.row.sketches = Some(sketches);
    }
}

/// Bytes a second.
const BYTES: f64 = 1.0;

impl Roller {
    /// For buckets of `step` microseconds, or one of all of it where that is 0.
    pub fn new(step: i64) -> Self {
        Self {
            step,
            previous: None,
            buckets: BTreeMap::new(),
            highs: Highs::default(),
            processes: HashMap::new(),
            groups: HashMap::new(),
        }
    }

    /// The sample before the first one: rates follow from it.
    pub fn begin_after(&mut self, sample: Sample) {
        self.previous = Some(sample);
    }

    /// Adds a sample.
    pub fn add(&mut self, time: Timestamp, sample: Sample) {
        let previous = self.previous.take();
        let pair = Pair::new(previous.as_ref(), &sample);
        let span = pair.as_ref().map_or(0, |pair| pair.span.micros() as u64);
        let begin = match self.step {
            0 => Timestamp::MIN,
            step => time.floor_to(step),
        };
        let mut bucket = self.buckets.remove(&begin).unwrap_or_default();
        bucket.samples += 1;
        bucket.covered += span;
        bucket.add_host(pair.as_ref(), &sample.host);
        self.add_groups(&mut bucket, pair.as_ref(), &sample);
        self.add_processes(&mut bucket, time, pair.as_ref(), &sample);
        self.buckets.insert(begin, bucket);
        self.previous = Some(sample);
    }

    fn add_groups(&mut self, bucket: &mut Filling, pair: Option<&Pair<'_>>, sample: &Sample) {
        let before = pair.and_then(|pair| pair.previous.cgroups.as_deref());
        let known = before.into_iter().flatten();
        let before_by_key: HashMap<(&str, u64), &Cgroup> = known
            .map(|group| ((&*group.path, group.id), group))
            .collect();
        for now in sample.cgroups.iter().flatten() {
            let before = before.and(pair).map(|pair| {
                let before = before_by_key.get(&(&*now.path, now.id)).copied();
                (pair.span.micros() as u64, before)
            });
            let cpus = sample.host.cpus.len();
            let key = (Arc::clone(&now.path), now.id);
            bucket
                .groups
                .entry(key.clone())
                .or_default()
                .add(&of_group(before, now, cpus));
            self.groups.entry(key).or_insert_with(|| Group {
                path: Arc::clone(&now.path),
                id: now.id,
                kind: now.kind.clone(),
            });
        }
    }

    fn add_processes(
        &mut self,
        bucket: &mut Filling,
        time: Timestamp,
        pair: Option<&Pair<'_>>,
        sample: &Sample,
    ) {
        let ended = pair.map(|pair| ended_children(pair, sample));
        let ended = ended.unwrap_or_default();
        let boot: Arc<str> = sample.host.boot_id.as_str().into();
        let ticks = ticks(&sample.host);
        let mut high = High {
            time,
            ..High::default()
        };
        for now in &sample.processes {
            let row = of_process(pair, now, &ended, ticks);
            high.note(&row, pair, sample.host.ticks_per_second);
            let key = (Arc::clone(&boot), now.pid, now.start_ticks);
            bucket.processes.entry(key.clone()).or_default().add(&row);
            let known = self.processes.get(&key);
            // Its name and what it was called with change where it executes another program.
            let is_known = known.is_some_and(|known| {
                known.ppid == now.ppid
                    && known.name == now.name
                    && known.user == now.user
                    && known.command_line == now.command_line
                    && known.cgroup == now.cgroup
            });
            if !is_known {
                let process = process_of(now, &boot, &sample.host);
                self.processes.insert(key, process);
            }
        }
        self.highs.samples.push(high);
    }

    /// All samples of one bucket as it is: of each process.
    pub fn all(self) -> Vec<Bucket> {
        self.finish_where(|_| true).0.buckets
    }

    /// The buckets, with those processes that matter and those that `kept` has, the peaks of the hour that
    /// begins at `hour`, and the highs of its samples.
    pub fn finish(mut self, hour: Timestamp, kept: &HashSet<Kept>) -> (Rollup, Peaks, Highs) {
        let matter = self.that_matter(kept);
        let highs = std::mem::take(&mut self.highs);
        let (rollup, rest) = self.finish_where(|life| matter.contains(life));
        let mut peaks = Peaks::default();
        for (bucket, others) in rollup.buckets.iter().zip(&rest) {
            let rows = bucket.processes.iter().map(|(_, row)| row);
            let own = bucket.host(&Thing::Own);
            let ticks = own.and_then(|own| own.levels.get(host::TICKS).copied().flatten());
            let ticks = ticks.map_or(100, |level| level.last.max(1)) as f64;
            peaks.note((hour, bucket), ticks, rows.chain(others));
        }
        (rollup, peaks, highs)
    }

    /// The processes that matter: of all of it those that used most CPU, memory and disks, and that grew
    /// most; of each minute those that used most CPU.
    fn that_matter(&self, kept: &HashSet<Kept>) -> HashSet<Kept> {
        let mut whole: HashMap<&Kept, (u64, u64, u64, u64, u64)> = HashMap::new();
        let mut matter = HashSet::new();
        for bucket in self.buckets.values() {
            let mut of_minute: Vec<(u64, &Kept)> = Vec::with_capacity(bucket.processes.len());
            for (life, sum) in &bucket.processes {
                let total = |at: usize| sum.flows.get(at).and_then(|flow| Some((*flow)?.total));
                let cpu = total(process::CPU).unwrap_or_default();
                let read = total(process::READ).unwrap_or_default();
                let written = total(process::WRITTEN).unwrap_or_default();
                let level = sum.levels.get(process::RESIDENT).copied().flatten();
                let resident = level.map(|(level, ..)| level).unwrap_or_default();
                let own = whole.entry(life).or_insert((0, 0, 0, resident.min, 0));
                own.0 += cpu;
                own.1 = own.1.max(resident.max);
                own.2 = own.2.saturating_add(read).saturating_add(written);
                own.4 = resident.last.saturating_sub(own.3);
                of_minute.push((cpu, life));
            }
            highest(of_minute, OF_MINUTE, &mut matter);
        }
        let of = |field: fn(&(u64, u64, u64, u64, u64)) -> u64| -> Vec<(u64, &Kept)> {
            let each = whole.iter();
            each.map(|(life, used)| (field(used), *life)).collect()
        };
        for field in [
            (|used| used.0) as fn(&(u64, u64, u64, u64, u64)) -> u64,
            |used| used.1,
            |used| used.2,
            |used| used.4,
        ] {
            highest(of(field), OF_HOUR, &mut matter);
        }
        let lives = whole.into_keys().filter(|life| kept.contains(*life));
        matter.extend(lives.cloned());
        matter
    }

    /// The buckets, and beside each the rows of the processes that are not in it.
    fn finish_where(self, is_kept: impl Fn(&Kept) -> bool) -> (Rollup, Vec<Vec<Row>>) {
        let Self {
            buckets,
            processes,
            groups,
            ..
        } = self;
        let mut rollup = Rollup::default();
        let mut rest = Vec::new();
        for (begin, filling) in buckets {
            let mut bucket = Bucket::new(begin);
            (bucket.covered, bucket.samples) = (filling.covered, filling.samples);
            let hosts = filling.hosts.into_iter();
            bucket.hosts = hosts.map(|(thing, sum)| (thing, sum.row())).collect();
            bucket.hosts.sort_by(|(a, _), (b, _)| a.cmp(b));
            for (key, sum) in filling.groups {
                if let Some(group) = groups.get(&key) {
                    bucket.groups.push((group.clone(), sum.row()));
                }
            }
            bucket
                .groups
                .sort_by(|(a, _), (b, _)| (&a.path, a.id).cmp(&(&b.path, b.id)));
            let (mut others, mut count) = (Together::default(), 0);
            let mut of_others = Vec::new();
            for (life, sum) in filling.processes {
                let row = sum.row();
                if is_kept(&life) {
                    if let Some(process) = processes.get(&life) {
                        bucket.processes.push((process.clone(), row));
                    }
                } else {
                    others.add(&row, bucket.covered);
                    count += 1;
                    of_others.push(row);
                }
            }
            bucket.processes.sort_by(|(a, _), (b, _)| order(a, b));
            bucket.others = others.row(bucket.covered);
            if count > 0 {
                let mut number = Point::new(0);
                number.level(Some(count));
                bucket.others.levels.append(&mut number.row.levels);
            }
            rollup.buckets.push(bucket);
            rest.push(of_others);
        }
        (rollup, rest)
    }
}

pub(super) fn order(a: &Process, b: &Process) -> std::cmp::Ordering {
    let key = |process: &Process| (process.start_ticks, process.pid);
    let names = a.name.cmp(&b.name);
    names.then(key(a).cmp(&key(b))).then(a.boot.cmp(&b.boot))
}

/// Adds the lives of those that have most of something, if they have any.
fn highest(mut all: Vec<(u64, &Kept)>, count: usize, found: &mut HashSet<Kept>) {
    all.retain(|(used, _)| *used > 0);
    if all.len() > count {
        all.select_nth_unstable_by(count - 1, |a, b| b.cmp(a));
        all.truncate(count);
    }
    found.extend(all.into_iter().map(|(_, life)| life.clone()));
}

/// Ticks of the counters a second.
fn ticks(host: &sample::Host) -> f64 {
    f64::from(host.ticks_per_second.max(1))
}

/// Ticks a second of which one is a unit of CPU.
fn unit_of_ticks(ticks: f64) -> f64 {
    ticks / CPU_UNITS
}

impl Filling {
    fn add(&mut self, thing: Thing, point: &Point) {
        self.hosts.entry(thing).or_default().add(&point.row);
    }

    fn add_host(&mut self, pair: Option<&Pair<'_>>, now: &sample::Host) {
        let before = pair.map(|pair| &pair.previous.host);
        let span = pair.map_or(0, |pair| pair.span.micros() as u64);
        let mut own = own(before, now, span);
        own.sketch();
        self.add(Thing::Own, &own);
        for cpu in &now.cpus {
            let times = before.and_then(|before| {
                let found = before.cpus.iter().find(|known| known.cpu == cpu.cpu);
                Some(cpu.times.since(&found?.times).modes())
            });
            let mut point = Point::new(times.map_or(0, |_| span));
            point.total(times.map(|times| worked(&times)));
            point.total(times.map(|times| times.iter().sum()));
            debug_assert_eq!(point.row.totals.len(), core::TOTALS);
            self.add(Thing::Cpu(cpu.cpu), &point);
        }
        for disk in now.disks.iter().flatten() {
            let known = before.and_then(|before| before.disks.as_ref());
            let known = known.and_then(|all| all.iter().find(|known| known.device == disk.device));
            let grown =
                |field: fn(&sample::DiskCounters) -> u64| Some(since(field(known?), field(disk)));
            let mut point = Point::new(known.map_or(0, |_| span));
            point.total(grown(|disk| disk.reads));
            point.total(grown(|disk| disk.writes));
            point.total(grown(|disk| disk.busy_millis));
            point.flow(grown(|disk| disk.read_bytes), BYTES);
            point.flow(grown(|disk| disk.written_bytes), BYTES);
            debug_assert_eq!(
                (point.row.totals.len(), point.row.flows.len()),
                (disk::TOTALS, disk::FLOWS)
            );
            self.add(Thing::Disk(disk.device.clone()), &point);
        }
        for now in now.interfaces.iter().flatten() {
            let known = before.and_then(|before| before.interfaces.as_ref());
            let known =
                known.and_then(|all| all.iter().find(|known| known.interface == now.interface));
            let grown =
                |field: fn(&InterfaceCounters) -> u64| Some(since(field(known?), field(now)));
            let mut point = Point::new(known.map_or(0, |_| span));
            point.total(grown(|both| both.receive.packets));
            point.total(grown(|both| both.transmit.packets));
            point.total(grown(|both| both.receive.errors));
            point.total(grown(|both| both.transmit.errors));
            point.total(grown(|both| both.receive.dropped));
            point.total(grown(|both| both.transmit.dropped));
            point.flow(grown(|both| both.receive.bytes), BYTES);
            point.flow(grown(|both| both.transmit.bytes), BYTES);
            debug_assert_eq!(point.row.totals.len(), interface::TOTALS);
            self.add(Thing::Interface(now.interface.clone()), &point);
        }
        for now in now.filesystems.iter().flatten() {
            let mut point = Point::new(span);
            point.level(Some(now.total.saturating_sub(now.free)));
            point.level(Some(now.total));
            point.level(Some(now.available));
            debug_assert_eq!(point.row.levels.len(), filesystem::LEVELS);
            self.add(Thing::Filesystem(now.mountpoint.clone()), &point);
        }
    }
}

/// All ticks of modes but idle and iowait.
fn worked(modes: &[u64; 8]) -> u64 {
    let all: u64 = modes.iter().sum();
    all - modes[host::IDLE] - modes[host::IOWAIT]
}

/// Growth of a counter that may have begun anew.
fn since(before: u64, now: u64) -> u64 {
    now.checked_sub(before).unwrap_or(now)
}

fn own(before: Option<&sample::Host>, now: &sample::Host, span: u64) -> Point {
    let mut point = Point::new(span);
    let modes = before.and_then(|before| Some(now.cpu_total?.since(&before.cpu_total?).modes()));
    for mode in 0..host::TOTALS {
        point.total(modes.map(|modes| modes[mode]));
    }
    let unit = unit_of_ticks(ticks(now));
    point.flow(modes.map(|modes| worked(&modes)), unit);
    let memory = now.memory;
    let used = memory.and_then(|memory| Some(memory.total.saturating_sub(memory.available?)));
    point.level(used);
    point.level(memory.map(|memory| memory.total));
    point.level(memory.and_then(|memory| memory.available));
    let swap = memory.and_then(|memory| Some(memory.swap_total?.saturating_sub(memory.swap_free?)));
    point.level(swap);
    point.level(memory.and_then(|memory| memory.swap_total));
    let hundredths = |value: f64| (value.max(0.0) * 100.0).round() as u64;
    for at in 0..3 {
        point.level(now.load_average.map(|load| hundredths(load[at])));
    }
    point.level(now.process_count.map(u64::from));
    let pressure = now.pressure;
    for stall in [
        pressure.and_then(|pressure| pressure.cpu),
        pressure.and_then(|pressure| pressure.memory),
        pressure.and_then(|pressure| pressure.io),
    ] {
        point.level(stall.map(|stall| hundredths(stall.some.averages[0])));
    }
    point.level(Some(now.cpus.len() as u64));
    point.level(Some(now.ticks_per_second.into()));
    debug_assert_eq!(point.row.levels.len(), host::LEVELS);
    debug_assert_eq!(point.row.flows.len(), host::FLOWS);
    point
}

/// A group that was not there before was made since, unless it has used more than can be.
fn of_group(before: Option<(u64, Option<&Cgroup>)>, now: &Cgroup, cpus: usize) -> Row {
    let used = now.cpu.map_or(0, |cpu| cpu.usage_micros) as f64;
    let before = before.filter(|(span, before)| {
        before.is_some() || used <= *span as f64 * cpus.max(1) as f64 * 1.1
    });
    let mut point = Point::new(before.map_or(0, |(span, _)| span));
    let cpu_before = before.and_then(|(_, before)| match before {
        Some(before) => before.cpu,
        None => Some(Cpu::default()),
    });
    let of_cpu = |field: fn(&Cpu) -> u64| {
        Some(field(now.cpu.as_ref()?).saturating_sub(field(cpu_before.as_ref()?)))
    };
    point.total(of_cpu(|cpu| cpu.throttled_micros));
    point.total(of_cpu(|cpu| cpu.periods));
    point.total(of_cpu(|cpu| cpu.throttled_periods));
    let kills = |group: &Cgroup| Some(group.memory.as_ref()?.events.oom_kill);
    let kills_before = before.and_then(|(_, before)| before.map_or(Some(0), kills));
    point.total(
        kills(now)
            .zip(kills_before)
            .map(|(now, before)| now.saturating_sub(before)),
    );
    point.flow(of_cpu(|cpu| cpu.usage_micros), 1e6 / CPU_UNITS);
    let of_disks = |field: fn(&sample::cgroup::Disk) -> u64| {
        let (_, before) = before?;
        let known = match before {
            Some(before) => before.disks.as_deref()?,
            None => &[],
        };
        let growth = |now: &sample::cgroup::Disk| {
            let known = known.iter().find(|known| known.device == now.device);
            since(known.map_or(0, field), field(now))
        };
        Some(
            now.disks
                .as_ref()?
                .iter()
                .map(growth)
                .fold(0, u64::saturating_add),
        )
    };
    point.flow(of_disks(|disk| disk.read_bytes), BYTES);
    point.flow(of_disks(|disk| disk.written_bytes), BYTES);
    let of_interfaces = |field: fn(&InterfaceCounters) -> u64| {
        let known = before?.1?.interfaces.as_deref()?;
        let growth = |now: &InterfaceCounters| {
            let known = known.iter().find(|known| known.interface == now.interface);
            known.map_or(0, |known| since(field(known), field(now)))
        };
        let interfaces = now.interfaces.as_ref()?.iter();
        // What it says to itself goes nowhere.
        let outer = interfaces.filter(|now| now.interface != "lo");
        Some(outer.map(growth).fold(0, u64::saturating_add))
    };
    point.flow(of_interfaces(|both| both.receive.bytes), BYTES);
    point.flow(of_interfaces(|both| both.transmit.bytes), BYTES);
    let memory = now.memory.as_ref();
    point.level(memory.map(sample::cgroup::Memory::working_set));
    point.level(memory.map(|memory| memory.current));
    point.level(memory.and_then(|memory| memory.anonymous));
    point.level(now.tasks);
    let limit = now.cpu.and_then(|cpu| {
        let quota = cpu.quota_micros.filter(|_| cpu.period_micros > 0)?;
        Some((quota as f64 * CPU_UNITS / cpu.period_micros as f64).round() as u64)
    });
    point.level(limit);
    point.level(memory.and_then(|memory| memory.limit));
    debug_assert_eq!(point.row.totals.len(), group::TOTALS);
    debug_assert_eq!(point.row.flows.len(), group::FLOWS);
    debug_assert_eq!(point.row.levels.len(), group::LEVELS);
    point.sketch();
    point.row
}

fn of_process(
    pair: Option<&Pair<'_>>,
    now: &sample::Process,
    ended: &HashMap<Life, u64>,
    ticks: f64,
) -> Row {
    let cpu = pair.and_then(|pair| pair.growth(now, sample::Process::cpu_ticks));
    let span = pair.filter(|_| cpu.is_some());
    let mut point = Point::new(span.map_or(0, |pair| pair.span.micros() as u64));
    let of_ended = ended.get(&(now.pid, now.start_ticks)).copied();
    point.total(cpu.map(|_| of_ended.unwrap_or_default()));
    point.flow(cpu, unit_of_ticks(ticks));
    let bytes = |known: Option<u64>, field: fn(&sample::Process) -> u64| {
        known.and(pair).and_then(|pair| pair.growth(now, field))
    };
    let read = bytes(now.read_bytes, |process| {
        process.read_bytes.unwrap_or_default()
    });
    let written = bytes(now.written_bytes, |process| {
        process.written_bytes.unwrap_or_default()
    });
    point.flow(read, BYTES);
    point.flow(written, BYTES);
    point.level(Some(now.resident_bytes));
    point.level(Some(now.threads.into()));
    point.level(now.open_files);
    debug_assert_eq!(point.row.totals.len(), process::TOTALS);
    debug_assert_eq!(point.row.flows.len(), process::FLOWS);
    debug_assert_eq!(point.row.levels.len(), process::LEVELS);
    point.row
}

fn process_of(now: &sample::Process, boot: &Arc<str>, host: &sample::Host) -> Process {
    let started = host
        .boot_time_seconds
        .and_then(|boot| Timestamp::from_seconds(boot + now.start_ticks as f64 / ticks(host)));
    Process {
        pid: now.pid,
        start_ticks: now.start_ticks,
        boot: Arc::clone(boot),
        started_at: started.map_or(0, Timestamp::micros),
        ppid: now.ppid,
        name: Arc::clone(&now.name),
        user: now.user.clone(),
        command_line: now.command_line.clone(),
        cgroup: now.cgroup.clone(),
        container_id: now.container_id.clone(),
        pod_uid: now.pod_uid.clone(),
    }
}

impl Rollup {
    /// All of an hour's minutes as one bucket.
    pub fn whole(&self, hour: Timestamp) -> Bucket {
        let mut filling = Filling::default();
        let (mut processes, mut groups) = (HashMap::new(), HashMap::new());
        let mut others = Sum::default();
        for bucket in &self.buckets {
            filling.covered += bucket.covered;
            filling.samples += bucket.samples;
            for (thing, row) in &bucket.hosts {
                filling.hosts.entry(thing.clone()).or_default().add(row);
            }
            for (group, row) in &bucket.groups {
                let key = (Arc::clone(&group.path), group.id);
                filling.groups.entry(key.clone()).or_default().add(row);
                groups.insert(key, group.clone());
            }
            for (process, row) in &bucket.processes {
                let key = process.life();
                filling.processes.entry(key.clone()).or_default().add(row);
                processes.insert(key, process.clone());
            }
            others.add(&bucket.others);
        }
        let roller = Roller {
            step: HOUR,
            previous: None,
            buckets: BTreeMap::from([(hour, filling)]),
            highs: Highs::default(),
            processes,
            groups,
        };
        let mut whole = roller.finish_where(|_| true).0.buckets;
        let mut whole = whole.pop().unwrap_or_else(|| Bucket::new(hour));
        whole.others = others.row();
        whole
    }
}

impl Process {
    /// What makes it one process.
    pub fn life(&self) -> Kept {
        (Arc::clone(&self.boot), self.pid, self.start_ticks)
    }
}

/// What of a node's CPU was worked without being any process's, in ticks; see
/// [`CpuBooks`](crate::rates::CpuBooks).
pub fn unaccounted(bucket: &Bucket) -> Option<i64> {
    let own = bucket.host(&Thing::Own)?;
    let total = |row: &Row, at: usize| row.totals.get(at).copied().flatten();
    let times = CpuTimes {
        user: total(own, host::USER)?,
        nice: total(own, host::NICE)?,
        system: total(own, host::SYSTEM)?,
        irq: total(own, host::IRQ)?,
        softirq: total(own, host::SOFTIRQ)?,
        ..CpuTimes::default()
    };
    let of = |row: &Row| {
        let cpu = row.flows.get(process::CPU).copied().flatten();
        let ended = total(row, process::ENDED_CHILDREN).unwrap_or_default();
        cpu.map_or(0, |flow| flow.total).saturating_add(ended)
    };
    let rows = bucket.processes.iter().map(|(_, row)| row);
    let shown = rows.chain([&bucket.others]).map(of);
    let shown = shown.fold(0, u64::saturating_add);
    Some((times.busy() as i64).wrapping_sub(shown as i64))
}
