//! What one node tells of what was used.

use std::collections::BTreeMap;

use nodestats_core::rates::{host_reading, pods, process_rows};
use nodestats_core::rollup::{
    self, Bucket, Figures, Flow, HOUR, MINUTE, Part, Row, Thing, disk, group, host, process,
};
use nodestats_core::sample::Sample;
use nodestats_core::sample::cgroup::Kind;
use nodestats_core::{Life, Stored, Wanted};
use nodestats_store::Order;
use nodestats_wire::Timestamp;
use nodestats_wire::v1::{GroupCpu, GroupDevice, GroupDisk, GroupMemory, Process, TopRow};

use super::LOOK_BACK;
use super::fold::Sum;
use crate::answer::unreadable;
use crate::history::buckets::{Levels, Source, roll, together};
use crate::query::By;
use crate::{ApiError, App};

/// Of samples alone.
const OF_SAMPLES: Levels = Levels {
    samples: true,
    minutes: false,
    hours: false,
};

/// A row of one node, and what it adds to what it is part of.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) row: TopRow,
    pub(super) sum: Sum,
}

/// All that a node tells.
#[derive(Debug, Default)]
pub(super) struct Told {
    pub(super) entries: Vec<Entry>,
    /// What is known of no one in particular.
    pub(super) others: Sum,
    pub(super) levels: Levels,
}

/// Reads one node.
pub(super) struct Reader {
    app: App,
    life: Life,
    by: By,
}

impl Reader {
    pub(super) fn new(app: &App, life: Life, by: By) -> Self {
        Self {
            app: app.clone(),
            life,
            by,
        }
    }

    /// What of samples, and which part of rollups, has what is ranked.
    fn wanted(&self) -> (Wanted, Part) {
        match self.by {
            By::Process | By::Name | By::User => (Wanted::Processes, Part::Processes),
            By::Pod | By::Container | By::Workload => (Wanted::All, Part::Groups),
            By::Node => (Wanted::Host, Part::Hosts),
        }
    }

    fn row(&self) -> TopRow {
        TopRow {
            node: Some(self.life.registration.hostname.clone()),
            ..TopRow::default()
        }
    }

    /// At a moment: by the node's last sample at or before it, or its newest, and the one before that.
    pub(super) async fn at(&self, moment: Option<Timestamp>) -> Result<Option<Told>, ApiError> {
        let _turn = self.app.reading.acquire().await;
        let store = &self.app.store;
        let until = if let Some(moment) = moment {
            moment
        } else {
            // By the node's own clock.
            let seen = store.seen_of(&self.life.uid).await?;
            let offset = seen.and_then(|seen| seen.clock_offset_micros);
            App::now().plus_micros(offset.unwrap_or_default() + MINUTE)
        };
        let range = (until.plus_micros(-LOOK_BACK), until);
        let (wanted, _) = self.wanted();
        let samples = store.samples(&self.life.uid, range, Order::Descending, wanted, 2);
        let samples = samples.await?;
        let unpack = |stored: &Stored| match stored {
            Stored::Counters(counters) => counters.sample(wanted).map(Some).map_err(unreadable),
            Stored::Gauges(_) => Ok(None),
        };
        let Some(current) = samples.first() else {
            return match moment {
                Some(moment) => self.rolled_at(moment).await,
                None => Ok(None),
            };
        };
        let previous = samples.get(1).map(unpack).transpose()?.flatten();
        let Some(current) = unpack(current)? else {
            return Ok(None);
        };
        let entries = match self.by {
            By::Process | By::Name | By::User => self.processes(previous.as_ref(), &current),
            By::Pod | By::Container | By::Workload => self.pods(previous.as_ref(), &current),
            By::Node => vec![self.host(previous.as_ref(), &current)],
        };
        Ok(Some(Told {
            entries,
            levels: OF_SAMPLES,
            ..Told::default()
        }))
    }

    fn processes(&self, previous: Option<&Sample>, current: &Sample) -> Vec<Entry> {
        let rows = process_rows(previous, current).into_iter();
        let entry = |process: Process| Entry {
            sum: Sum {
                count: 1,
                cpu_percent: process.cpu_percent.unwrap_or_default(),
                cpu_seconds: None,
                memory: process.rss_bytes.unwrap_or_default() as f64,
                read: process.read_bytes_per_second,
                written: process.write_bytes_per_second,
            },
            row: TopRow {
                name: process.name,
                pid: Some(process.pid),
                started_at: process.started_at,
                user: process.user,
                command_line: process.command_line,
                pod: process.pod_uid,
                ..self.row()
            },
        };
        // The idle task uses nothing.
        rows.filter(|row| row.pid != 0).map(entry).collect()
    }

    fn pods(&self, previous: Option<&Sample>, current: &Sample) -> Vec<Entry> {
        let mut entries = Vec::new();
        for pod in pods(previous, current).unwrap_or_default() {
            let row = TopRow {
                pod: pod.uid,
                ..self.row()
            };
            if self.by == By::Container {
                for container in pod.containers.into_iter().flatten() {
                    let row = TopRow {
                        name: container.container_id,
                        ..row.clone()
                    };
                    let sum = sum_of_group(container.cpu, container.memory, container.disk);
                    entries.push(Entry { row, sum });
                }
            } else {
                let sum = sum_of_group(pod.cpu, pod.memory, pod.disk);
                entries.push(Entry { row, sum });
            }
        }
        entries
    }

    fn host(&self, previous: Option<&Sample>, current: &Sample) -> Entry {
        let reading = host_reading(previous.map(|sample| &sample.host), &current.host);
        let cpus = current.host.cpus.len().max(1) as f64;
        let usage = reading.cpu.and_then(|cpu| cpu.usage_percent);
        let devices = reading.disk.and_then(|disk| disk.devices);
        let devices = devices.iter().flatten();
        let used = reading.memory.and_then(|memory| memory.used_bytes);
        let sum = Sum {
            count: 1,
            cpu_percent: usage.unwrap_or_default() * cpus,
            cpu_seconds: None,
            memory: used.unwrap_or_default() as f64,
            read: devices
                .clone()
                .filter_map(|device| device.read_bytes_per_second)
                .reduce(|a, b| a + b),
            written: devices
                .filter_map(|device| device.write_bytes_per_second)
                .reduce(|a, b| a + b),
        };
        Entry {
            row: self.row(),
            sum,
        }
    }

    fn source(&self, range: (Timestamp, Timestamp), step: i64) -> Source {
        let (_, part) = self.wanted();
        Source::new(
            &self.app,
            &self.life.uid,
            Figures::All(part),
            range,
            Some(step),
        )
    }

    /// At a moment whose samples are gone: the means of its minute, or of its hour.
    async fn rolled_at(&self, moment: Timestamp) -> Result<Option<Told>, ApiError> {
        let (store, uid) = (&self.app.store, &self.life.uid);
        if let Some(oldest) = store.oldest(uid).await?
            && (oldest <= moment || !store.is_rolled_before(uid, oldest).await?)
        {
            return Ok(None);
        }
        let mut source = self.source((moment, moment), MINUTE).of_rollups();
        let mut hosts = source.hosts_beside();
        let (page, of_hosts) = (source.page(1).await?, hosts.page(1).await?);
        let Some(bucket) = page.and_then(|page| page.into_iter().next_back()) else {
            return Ok(None);
        };
        let host = of_hosts.and_then(|page| page.into_iter().next_back());
        let mut told = self.told(&bucket, host.as_ref());
        told.levels = source.levels();
        Ok(Some(told))
    }

    /// In a span: by samples where it is short, else by rollups wherever there are some.
    pub(super) async fn within(
        &self,
        (from, to): (Timestamp, Timestamp),
        is_short: bool,
    ) -> Result<Option<Told>, ApiError> {
        let _turn = self.app.reading.acquire().await;
        let uid = &self.life.uid;
        let oldest = self.app.store.oldest(uid).await?;
        // Where samples are gone of what is asked for, rollups have more.
        if let Some(oldest) = oldest
            && (is_short || oldest > to)
            && (oldest <= from || !self.app.store.is_rolled_before(uid, oldest).await?)
        {
            if oldest > to {
                return Ok(None);
            }
            let (wanted, _) = self.wanted();
            let all = roll(&self.app, uid, (from, to), (0, wanted)).await?;
            let bucket = all.into_iter().next();
            return Ok(bucket.map(|bucket| {
                let mut told = self.told(&bucket, Some(&bucket));
                told.levels = OF_SAMPLES;
                told
            }));
        }
        let mut source = self.source((from, to), HOUR);
        let mut hosts = source.hosts_beside();
        let hours = source.hours();
        let (mut whole, mut of_hosts): (Vec<Bucket>, Vec<Bucket>) = (Vec::new(), Vec::new());
        while let Some(mut page) = source.page(hours).await? {
            whole.append(&mut page);
            of_hosts.extend(hosts.page(hours).await?.unwrap_or_default());
            hold_one(from, [&mut whole, &mut of_hosts]);
        }
        Ok(whole.pop().map(|bucket| Told {
            levels: source.levels(),
            ..self.told(&bucket, of_hosts.first())
        }))
    }

    /// A span step by step.
    pub(super) fn steps(self, range: (Timestamp, Timestamp), step: i64) -> StepWalk {
        let source = self.source(range, step);
        let hosts = source.hosts_beside();
        StepWalk {
            reader: self,
            step,
            source,
            hosts,
            open: BTreeMap::new(),
        }
    }

    /// What a bucket tells.
    fn told(&self, bucket: &Bucket, hosts: Option<&Bucket>) -> Told {
        let own = hosts.and_then(|hosts| hosts.host(&Thing::Own));
        let ticks = own.and_then(|own| own.levels.get(host::TICKS).copied().flatten());
        let ticks = ticks.map_or(100, |level| level.last.max(1)) as f64;
        let covered = bucket.covered;
        let mut told = Told::default();
        match self.by {
            By::Process | By::Name | By::User => {
                let of = |row: &Row| {
                    let disks = (process::READ, process::WRITTEN);
                    sum(row, covered, (process::CPU, ticks), disks)
                };
                for (known, row) in &bucket.processes {
                    let mut sum = of(row);
                    // Of one process: the most that it had.
                    if let (By::Process, Some(Some(level))) =
                        (self.by, row.levels.get(process::RESIDENT))
                    {
                        sum.memory = level.max as f64;
                    }
                    let row = self.row_of(known);
                    told.entries.push(Entry { row, sum });
                }
                let count = bucket.others.levels.get(process::LEVELS).copied().flatten();
                told.others = of(&bucket.others);
                told.others.count = count.map_or(0, |level| level.mean);
            }
            By::Pod | By::Container | By::Workload => {
                for (known, row) in &bucket.groups {
                    let (pod, container) = match &known.kind {
                        Kind::Pod { uid } => (uid, None),
                        Kind::Container {
                            id,
                            pod_uid: Some(uid),
                        } => (uid, Some(id)),
                        _ => continue,
                    };
                    if container.is_some() != (self.by == By::Container) {
                        continue;
                    }
                    let disks = (group::READ, group::WRITTEN);
                    told.entries.push(Entry {
                        sum: sum(row, covered, (group::CPU, 1e6), disks),
                        row: TopRow {
                            pod: Some(pod.to_string()),
                            name: container.map(ToString::to_string),
                            ..self.row()
                        },
                    });
                }
            }
            By::Node => {
                let Some(row) = bucket.host(&Thing::Own) else {
                    return told;
                };
                let none = (usize::MAX, usize::MAX);
                let mut all = sum(row, covered, (host::BUSY, ticks), none);
                for (thing, row) in &bucket.hosts {
                    if matches!(thing, Thing::Disk(_)) {
                        all.add(&Sum {
                            read: rate(row, disk::READ, covered),
                            written: rate(row, disk::WRITTEN, covered),
                            ..Sum::default()
                        });
                    }
                }
                let row = self.row();
                told.entries.push(Entry { row, sum: all });
            }
        }
        told
    }

    fn row_of(&self, process: &rollup::Process) -> TopRow {
        let text = |text: &Option<std::sync::Arc<str>>| text.as_deref().map(str::to_owned);
        TopRow {
            name: Some(process.name.to_string()),
            pid: Some(process.pid),
            started_at: Timestamp::from_micros(process.started_at)
                .filter(|_| process.started_at != 0),
            user: text(&process.user),
            command_line: text(&process.command_line),
            pod: text(&process.pod_uid),
            ..self.row()
        }
    }
}

/// A walk through the steps of a span of one node.
pub(super) struct StepWalk {
    reader: Reader,
    step: i64,
    source: Source,
    hosts: Source,
    /// Steps whose end was not read yet, with the host's own buckets beside.
    open: BTreeMap<Timestamp, (Vec<Bucket>, Vec<Bucket>)>,
}

impl StepWalk {
    /// What the node tells of the next steps; `None` at the end. There may be none in between.
    pub(super) async fn page(&mut self) -> Result<Option<Vec<(Timestamp, Told)>>, ApiError> {
        let _turn = self.reader.app.reading.acquire().await;
        let hours = self.source.hours();
        let Some(page) = self.source.page(hours).await? else {
            let last = std::mem::take(&mut self.open);
            return Ok((!last.is_empty()).then(|| self.tell(last)));
        };
        for bucket in page {
            let step = bucket.begin.floor_to(self.step);
            self.open.entry(step).or_default().0.push(bucket);
        }
        for bucket in self.hosts.page(hours).await?.unwrap_or_default() {
            let step = bucket.begin.floor_to(self.step);
            self.open.entry(step).or_default().1.push(bucket);
        }
        let under_way = self.source.position().floor_to(self.step);
        let under_way = self.open.split_off(&under_way);
        let done = std::mem::replace(&mut self.open, under_way);
        for (begin, (buckets, hosts)) in &mut self.open {
            hold_one(*begin, [buckets, hosts]);
        }
        Ok(Some(self.tell(done)))
    }

    fn tell(
        &self,
        steps: BTreeMap<Timestamp, (Vec<Bucket>, Vec<Bucket>)>,
    ) -> Vec<(Timestamp, Told)> {
        let tell = |(begin, (buckets, hosts)): (Timestamp, (Vec<Bucket>, Vec<Bucket>))| {
            if buckets.is_empty() {
                return None;
            }
            let bucket = together(begin, buckets);
            let hosts = (!hosts.is_empty()).then(|| together(begin, hosts));
            Some((
                begin,
                Told {
                    levels: self.source.levels(),
                    ..self.reader.told(&bucket, hosts.as_ref())
                },
            ))
        };
        steps.into_iter().filter_map(tell).collect()
    }
}

/// One bucket is all that is held of what was read.
fn hold_one(begin: Timestamp, of: [&mut Vec<Bucket>; 2]) {
    for all in of {
        if all.len() > 1 {
            *all = vec![together(begin, std::mem::take(all))];
        }
    }
}

fn sum_of_group(
    cpu: Option<GroupCpu>,
    memory: Option<GroupMemory>,
    disk: Option<GroupDisk>,
) -> Sum {
    let devices = disk.and_then(|disk| disk.devices);
    let of = |field: fn(&GroupDevice) -> Option<f64>| {
        let devices = devices.iter().flatten();
        devices.filter_map(field).reduce(|a, b| a + b)
    };
    let usage = cpu.and_then(|cpu| cpu.usage_millicores);
    let working_set = memory.and_then(|memory| memory.working_set_bytes);
    Sum {
        count: 1,
        cpu_percent: usage.unwrap_or_default() / 10.0,
        cpu_seconds: None,
        memory: working_set.unwrap_or_default() as f64,
        read: of(|device| device.read_bytes_per_second),
        written: of(|device| device.write_bytes_per_second),
    }
}

fn flow(row: &Row, at: usize) -> Option<Flow> {
    row.flows.get(at).copied().flatten()
}

/// Growth a second of all of the time that was watched.
fn rate(row: &Row, at: usize, covered: u64) -> Option<f64> {
    let total = flow(row, at)?.total as f64;
    (covered > 0).then(|| total * 1e6 / covered as f64)
}

/// What a row adds; `cpu` is the place of its CPU time, and how much of that is a second.
fn sum(row: &Row, covered: u64, cpu: (usize, f64), disks: (usize, usize)) -> Sum {
    let share = row.covered.min(covered).max(1) as f64 / covered.max(1) as f64;
    let memory = row.levels.first().copied().flatten();
    Sum {
        count: 1,
        cpu_percent: rate(row, cpu.0, covered).unwrap_or_default() * 100.0 / cpu.1,
        cpu_seconds: flow(row, cpu.0).map(|flow| flow.total as f64 / cpu.1),
        memory: memory.map_or(0.0, |level| level.mean as f64 * share),
        read: rate(row, disks.0, covered),
        written: rate(row, disks.1, covered),
    }
}
