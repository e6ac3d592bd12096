//! What a stored sample says about one detail of a node.

use std::sync::Arc;

use nodestats_core::rates::{
    Aggregate, host_reading, node_pods, node_units, pods, process_rows, process_rows_of,
    process_table, rolled_cpu, rolled_disk, rolled_filesystems, rolled_memory, rolled_network,
    rolled_pods, rolled_pressure, rolled_processes, rolled_summary, rolled_units, summary,
};
use nodestats_core::rollup::{Bucket, Figures, Part};
use nodestats_core::sample::Sample;
use nodestats_core::{Stored, Wanted, pod, stored};
use nodestats_wire::Timestamp;
use nodestats_wire::v1::{
    Cpu, Disk, Filesystems, GroupCpu, GroupDisk, GroupMemory, Memory, Network, NodePods, Pod,
    PodRecord, Pressure, Process, Processes, Reading, Stamped, Units,
};
use serde::Serialize;

use crate::ApiError;
use crate::access::PROCESSES;
use crate::query::{Sort, Table};

/// A detail of a node, or of a pod on it, that has a path of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Detail {
    /// The node itself.
    Summary,
    Cpu,
    Memory,
    Disk,
    Network,
    Filesystems,
    Pressure,
    /// What systemd runs, by control groups.
    Units,
    /// Pods, by control groups.
    Pods,
    /// The process table.
    Processes(Table),
    /// One process: of several that had the pid one after another the one that started then.
    Process(u32, Option<Timestamp>),
    /// A pod, or one container of it.
    Pod(Arc<PodRecord>, Option<String>, PodDetail),
}

/// A detail of a pod that has a path of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PodDetail {
    /// All of it.
    Summary,
    Cpu,
    Memory,
    Disk,
    Network,
    /// Its processes.
    Processes(Table),
}

impl PodDetail {
    /// The subresource by which rules name it.
    pub(crate) fn subresource(self) -> &'static str {
        match self {
            Self::Summary => "",
            Self::Cpu => "cpu",
            Self::Memory => "memory",
            Self::Disk => "disk",
            Self::Network => "network",
            Self::Processes(_) => PROCESSES,
        }
    }
}

impl Detail {
    /// What is missing, in words, where a sample has not got it.
    pub(crate) fn missing(&self) -> String {
        match self {
            Self::Pod(pod, None, _) => format!(
                "there is no sample with these figures of the pod {}/{} at that time",
                pod.namespace, pod.name
            ),
            Self::Pod(_, Some(container), _) => {
                format!("there is no sample of a container {container:?} of the pod at that time")
            }
            Self::Process(pid, None) => format!("no process has the pid {pid} at that time"),
            Self::Process(pid, Some(started)) => {
                format!("no process that started at {started} has the pid {pid} at that time")
            }
            Self::Processes(_) => "there is no sample with processes at that time".to_owned(),
            _ => "there is no sample with these figures at that time".to_owned(),
        }
    }

    /// The subresource by which rules name it.
    pub(crate) fn subresource(&self) -> &'static str {
        match self {
            Self::Pod(_, _, detail) => detail.subresource(),
            Self::Summary => "",
            Self::Cpu => "cpu",
            Self::Memory => "memory",
            Self::Disk => "disk",
            Self::Network => "network",
            Self::Filesystems => "filesystems",
            Self::Pressure => "pressure",
            Self::Units => "units",
            Self::Pods => "pods",
            Self::Processes(_) | Self::Process(..) => PROCESSES,
        }
    }

    pub(crate) fn wants_processes(&self) -> bool {
        matches!(
            self,
            Self::Processes(_) | Self::Process(..) | Self::Pod(_, _, PodDetail::Processes(_))
        )
    }

    /// What of a rollup it needs.
    pub(crate) fn figures(&self) -> Figures {
        match self {
            Self::Cpu => Figures::Cpu,
            Self::Memory => Figures::Memory,
            Self::Pressure => Figures::Pressure,
            Self::Disk => Figures::Disks,
            Self::Network => Figures::Interfaces,
            Self::Filesystems => Figures::Filesystems,
            _ if self.wants_processes() => Figures::All(Part::Processes),
            _ if self.wants_groups() => Figures::All(Part::Groups),
            _ => Figures::All(Part::Hosts),
        }
    }

    /// Whether quantiles of it are kept.
    pub(crate) fn has_quantiles(&self) -> bool {
        match self {
            Self::Cpu | Self::Memory | Self::Units | Self::Pods => true,
            Self::Pod(_, _, of_pod) => matches!(
                of_pod,
                PodDetail::Summary | PodDetail::Cpu | PodDetail::Memory
            ),
            _ => false,
        }
    }

    fn wants_groups(&self) -> bool {
        matches!(self, Self::Units | Self::Pods | Self::Pod(..))
    }

    /// What of a sample it needs.
    pub(crate) fn wanted(&self) -> Wanted {
        match self {
            Self::Cpu => Wanted::Cpu,
            Self::Process(pid, _) => Wanted::Process(*pid),
            Self::Processes(_) => Wanted::Processes,
            _ if self.wants_groups() => Wanted::All,
            _ => Wanted::Host,
        }
    }
}

/// The answer about one sample.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub(crate) enum Answer {
    Summary(Box<Reading>),
    Cpu(Cpu),
    Memory(Memory),
    Disk(Disk),
    Network(Network),
    Filesystems(Filesystems),
    Pressure(Pressure),
    Units(Units),
    Pods(NodePods),
    Pod(Box<Pod>),
    GroupCpu(Stamped<GroupCpu>),
    GroupMemory(Stamped<GroupMemory>),
    GroupDisk(Stamped<GroupDisk>),
    Pids(Vec<u32>),
    Processes(Processes),
    Process(Box<Process>),
}

impl Answer {
    /// Adds when its sample was taken, and how old that is.
    pub(crate) fn stamp(&mut self, sample_time: Timestamp, age: f64) {
        let (time, age_seconds) = match self {
            Self::Summary(answer) => (&mut answer.time, &mut answer.age_seconds),
            Self::Cpu(answer) => (&mut answer.time, &mut answer.age_seconds),
            Self::Memory(answer) => (&mut answer.time, &mut answer.age_seconds),
            Self::Disk(answer) => (&mut answer.time, &mut answer.age_seconds),
            Self::Network(answer) => (&mut answer.time, &mut answer.age_seconds),
            Self::Filesystems(answer) => (&mut answer.time, &mut answer.age_seconds),
            Self::Pressure(answer) => (&mut answer.time, &mut answer.age_seconds),
            Self::Units(answer) => (&mut answer.time, &mut answer.age_seconds),
            Self::Pods(answer) => (&mut answer.time, &mut answer.age_seconds),
            Self::Pod(answer) => (&mut answer.time, &mut answer.age_seconds),
            Self::GroupCpu(answer) => (&mut answer.time, &mut answer.age_seconds),
            Self::GroupMemory(answer) => (&mut answer.time, &mut answer.age_seconds),
            Self::GroupDisk(answer) => (&mut answer.time, &mut answer.age_seconds),
            Self::Processes(answer) => (&mut answer.time, &mut answer.age_seconds),
            Self::Process(answer) => (&mut answer.time, &mut answer.age_seconds),
            // A bare list; its time stands in a header.
            Self::Pids(_) => return,
        };
        *time = Some(sample_time);
        *age_seconds = Some(age);
    }
}

/// A sample unpacked as far as a detail needs it.
pub(crate) enum Unpacked {
    Counters(Box<Sample>),
    Gauges(Arc<Reading>),
}

/// Unpacks a stored sample for `detail`.
pub(crate) fn unpack(sample: &Stored, detail: &Detail) -> Result<Unpacked, ApiError> {
    let unpacked = match sample {
        Stored::Gauges(gauges) => gauges.reading().map(Unpacked::Gauges),
        Stored::Counters(counters) => {
            let sample = counters.sample(detail.wanted());
            sample.map(|sample| Unpacked::Counters(Box::new(sample)))
        }
    };
    unpacked.map_err(unreadable)
}

/// What a sample that cannot be read is answered by.
pub(crate) fn unreadable(error: stored::Error) -> ApiError {
    tracing::error!(%error, "a stored sample cannot be read");
    ApiError::unavailable("a stored sample cannot be read")
}

/// What is kept of a step says; `hosts` are the host's own rows where the bucket has processes. `None` where
/// it has not got the detail.
pub(crate) fn rolled_answer(
    detail: &Detail,
    bucket: &Bucket,
    hosts: Option<&Bucket>,
    aggregate: Aggregate,
) -> Option<Answer> {
    Some(match detail {
        Detail::Summary => Answer::Summary(Box::new(rolled_summary(bucket, aggregate)?)),
        Detail::Cpu => Answer::Cpu(rolled_cpu(bucket, aggregate)?),
        Detail::Memory => Answer::Memory(rolled_memory(bucket, aggregate)?),
        Detail::Disk => Answer::Disk(rolled_disk(bucket, aggregate)?),
        Detail::Network => Answer::Network(rolled_network(bucket, aggregate)?),
        Detail::Filesystems => Answer::Filesystems(rolled_filesystems(bucket, aggregate)?),
        Detail::Pressure => Answer::Pressure(rolled_pressure(bucket, aggregate)?),
        Detail::Units => {
            let units = rolled_units(bucket, aggregate);
            let units = (!units.is_empty()).then_some(units)?;
            Answer::Units(Units {
                units: Some(units),
                ..Units::default()
            })
        }
        Detail::Pods => {
            let pods = rolled_pods(bucket, aggregate);
            let pods = (!pods.is_empty()).then_some(pods)?;
            Answer::Pods(NodePods {
                pods: Some(pods),
                ..NodePods::default()
            })
        }
        Detail::Processes(table) => arrange(rolled_processes(bucket, hosts, aggregate), *table),
        Detail::Process(0, _) => {
            let mut idle = rolled_processes(bucket, hosts, aggregate).cpu?;
            Answer::Process(Box::new(Process {
                cpu_percent: idle.idle_percent.take(),
                ..Process::default()
            }))
        }
        Detail::Process(pid, started) => {
            let rows = rolled_processes(bucket, hosts, aggregate)
                .processes?
                .into_iter();
            // Of several that had the pid in the span the one that used most is told of.
            let of_pid = rows.filter(|row| is_meant(row, *pid, *started));
            let used = |row: &Process| row.span_cpu_seconds.unwrap_or_default();
            let row = of_pid.max_by(|a, b| used(a).total_cmp(&used(b)))?;
            Answer::Process(Box::new(row))
        }
        Detail::Pod(known, container, part) => {
            let container = container.as_deref();
            if let PodDetail::Processes(table) = part {
                let rows = rolled_processes(bucket, hosts, aggregate).processes?;
                rows_of_pod(known, container, rows, *table)?
            } else {
                let mut pods = rolled_pods(bucket, aggregate).into_iter();
                let figures = pods.find(|figures| pod::is_of(figures, known))?;
                figures_of_pod(known, container, *part, figures)?
            }
        }
    })
}

/// What `current` says, given the sample before it; `None` where it has not got the detail.
pub(crate) fn answer(
    detail: &Detail,
    previous: Option<&Unpacked>,
    current: &Unpacked,
) -> Option<Answer> {
    let previous = match previous {
        Some(Unpacked::Counters(sample)) => Some(&**sample),
        Some(Unpacked::Gauges(_)) | None => None,
    };
    if let &Detail::Processes(_) | &Detail::Process(..) = detail {
        let listed = || match current {
            Unpacked::Gauges(reading) => Some(Processes {
                processes: Some(reading.processes.clone()?),
                ..Processes::default()
            }),
            Unpacked::Counters(sample) => Some(process_table(previous, sample)),
        };
        return match (detail, current) {
            (Detail::Process(pid, started), Unpacked::Counters(sample)) => {
                let mut rows = process_rows_of(*pid, previous, sample).into_iter();
                let row = rows.find(|row| is_meant(row, *pid, *started))?;
                Some(Answer::Process(Box::new(row)))
            }
            (Detail::Process(pid, started), Unpacked::Gauges(reading)) => {
                let mut rows = reading.processes.iter().flatten();
                let row = rows.find(|row| is_meant(row, *pid, *started))?;
                Some(Answer::Process(Box::new(row.clone())))
            }
            (Detail::Processes(table), _) => Some(arrange(listed()?, *table)),
            _ => None,
        };
    }
    if detail.wants_groups() {
        // A third party says nothing of control groups.
        let Unpacked::Counters(sample) = current else {
            return None;
        };
        if let Detail::Pod(pod, container, part) = detail {
            return of_pod(pod, container.as_deref(), *part, previous, sample);
        }
        return if *detail == Detail::Units {
            Some(Answer::Units(node_units(previous, sample)?))
        } else {
            Some(Answer::Pods(node_pods(previous, sample)?))
        };
    }
    let reading = match current {
        Unpacked::Gauges(reading) => (**reading).clone(),
        Unpacked::Counters(sample) => {
            host_reading(previous.map(|sample| &sample.host), &sample.host)
        }
    };
    match detail {
        Detail::Summary => {
            // The time stands as the key of a history, and is stamped on an answer about now.
            Some(Answer::Summary(Box::new(Reading {
                time: None,
                ..summary(reading)
            })))
        }
        Detail::Cpu => reading.cpu.map(Answer::Cpu),
        Detail::Memory => reading.memory.map(Answer::Memory),
        Detail::Disk => reading.disk.map(Answer::Disk),
        Detail::Network => reading.network.map(Answer::Network),
        Detail::Filesystems => reading.filesystems.map(Answer::Filesystems),
        Detail::Pressure => reading.pressure.map(Answer::Pressure),
        // These have been answered above.
        Detail::Units
        | Detail::Pods
        | Detail::Pod(..)
        | Detail::Processes(_)
        | Detail::Process(..) => None,
    }
}

/// Whether a row is of the process of this pid that started then. Starts are counted in ticks from a boot
/// whose time is told in seconds.
fn is_meant(row: &Process, pid: u32, started: Option<Timestamp>) -> bool {
    let is_near = |started: Timestamp| {
        let of_row = row.started_at;
        of_row.is_some_and(|of_row| of_row.seconds_since(started).abs() < 1.0)
    };
    row.pid == pid && started.is_none_or(is_near)
}

/// What a sample says of a pod, or of one container of it.
fn of_pod(
    known: &PodRecord,
    container: Option<&str>,
    part: PodDetail,
    previous: Option<&Sample>,
    current: &Sample,
) -> Option<Answer> {
    if let PodDetail::Processes(table) = part {
        return rows_of_pod(known, container, process_rows(previous, current), table);
    }
    let figures = pods(previous, current)?
        .into_iter()
        .find(|figures| pod::is_of(figures, known))?;
    figures_of_pod(known, container, part, figures)
}

/// The rows that are of a pod, or of one container of it.
fn rows_of_pod(
    known: &PodRecord,
    container: Option<&str>,
    mut rows: Vec<Process>,
    table: Table,
) -> Option<Answer> {
    let is_of = |row: &Process| {
        let id = row.container_id.as_deref();
        let uid = row.pod_uid.as_deref();
        let of_pod = uid.is_some_and(|uid| known.owns(uid, id.into_iter()));
        let name = || known.container(id?).map(|found| &*found.name);
        of_pod && container.is_none_or(|container| name() == Some(container))
    };
    rows.retain(is_of);
    let is_there = !rows.is_empty();
    let listed = Processes {
        processes: Some(rows),
        ..Processes::default()
    };
    is_there.then(|| arrange(listed, table))
}

/// What the figures of a pod say of it, or of one container of it.
fn figures_of_pod(
    known: &PodRecord,
    container: Option<&str>,
    part: PodDetail,
    mut figures: Pod,
) -> Option<Answer> {
    pod::name(&mut figures, known);
    let (cpu, memory, disk) = match container {
        None => (
            figures.cpu.clone(),
            figures.memory.clone(),
            figures.disk.clone(),
        ),
        Some(name) => {
            let mut containers = figures.containers.iter().flatten();
            let found = containers.find(|found| found.name.as_deref() == Some(name))?;
            (found.cpu.clone(), found.memory.clone(), found.disk.clone())
        }
    };
    match part {
        PodDetail::Cpu => cpu.map(Stamped::new).map(Answer::GroupCpu),
        PodDetail::Memory => memory.map(Stamped::new).map(Answer::GroupMemory),
        PodDetail::Disk => disk.map(Stamped::new).map(Answer::GroupDisk),
        PodDetail::Network => figures.network.map(Answer::Network),
        PodDetail::Summary | PodDetail::Processes(_) => {
            let mut containers = figures.containers.iter().flatten();
            let is_work = containers.any(|container| container.name.is_some());
            let has_run = known
                .containers
                .iter()
                .any(|container| !container.runs.is_empty());
            // What holds its namespaces outlives its work by a moment, and is not what it did.
            let is_over = known.ended_at.is_some() && has_run && !is_work;
            (!is_over).then(|| Answer::Pod(Box::new(figures)))
        }
    }
}

fn arrange(listed: Processes, table: Table) -> Answer {
    let mut rows = listed.processes.unwrap_or_default();
    let total = rows.len();
    let key = |row: &Process| match table.sort {
        Sort::Pid => None,
        Sort::Cpu => row.cpu_percent,
        Sort::Memory => row.rss_bytes.map(|bytes| bytes as f64),
        Sort::Read => row.read_bytes_per_second,
        Sort::Write => row.write_bytes_per_second,
    };
    rows.sort_by(|a, b| {
        let unknown = f64::NEG_INFINITY;
        let descending = key(b)
            .unwrap_or(unknown)
            .total_cmp(&key(a).unwrap_or(unknown));
        // The idle task is no process that anybody looks for among the busiest.
        let idle_last = (a.pid == 0).cmp(&(b.pid == 0));
        let order = if table.sort == Sort::Pid {
            std::cmp::Ordering::Equal
        } else {
            idle_last
        };
        order.then(descending).then(a.pid.cmp(&b.pid))
    });
    rows.truncate(table.limit.unwrap_or(usize::MAX));
    if table.full {
        Answer::Processes(Processes {
            total: Some(total),
            processes: Some(rows),
            ..listed
        })
    } else {
        Answer::Pids(rows.into_iter().map(|row| row.pid).collect())
    }
}
