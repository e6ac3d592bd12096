//! Tables of pods, containers and units.

use nodestats_wire::v1::{
    ContainerRole, GroupCpu, GroupDisk, GroupMemory, NodePods, NodeState, Pod, PodRecord, PodView,
    Stamped, UnitKind, Units,
};

use super::{Row, Timed, is_history};
use crate::table::{Table, bytes, or_dash, percent};

/// What every group has, as headings and as cells.
const FIGURES: [&str; 6] = [
    "CPU",
    "CPU LIMIT",
    "THROTTLED%",
    "MEMORY",
    "MEMORY LIMIT",
    "TASKS",
];
const MORE: [&str; 6] = [
    "PEAK",
    "SWAP",
    "OOM KILLS",
    "READ/S",
    "WRITE/S",
    "REMAINDER",
];

/// Headings of a table that begins with these.
fn headings<'a>(first: &[&'a str], wide: bool) -> Vec<&'a str> {
    let more = wide.then_some(MORE).into_iter().flatten();
    first.iter().copied().chain(FIGURES).chain(more).collect()
}

/// The figures of one group.
struct Figures<'a> {
    cpu: Option<&'a GroupCpu>,
    memory: Option<&'a GroupMemory>,
    disk: Option<&'a GroupDisk>,
    tasks: Option<u64>,
}

impl Figures<'_> {
    fn cells(&self, wide: bool) -> Vec<String> {
        let cpu = |field: fn(&GroupCpu) -> Option<f64>| self.cpu.and_then(field);
        let memory = |field: fn(&GroupMemory) -> Option<u64>| {
            bytes(self.memory.and_then(field).map(|bytes| bytes as f64))
        };
        let mut cells = vec![
            millicores(cpu(|cpu| cpu.usage_millicores)),
            millicores(cpu(|cpu| cpu.limit_millicores)),
            percent(cpu(|cpu| cpu.throttled_percent)),
            memory(|memory| memory.working_set_bytes),
            memory(|memory| memory.limit_bytes),
            or_dash(self.tasks.map(|tasks| tasks.to_string())),
        ];
        if wide {
            let kills = self.memory.and_then(|memory| memory.oom_kills_total);
            let devices = || {
                self.disk
                    .iter()
                    .flat_map(|disk| disk.devices.iter().flatten())
            };
            let rate = |each: Vec<f64>| bytes((!each.is_empty()).then(|| each.iter().sum()));
            cells.extend([
                memory(|memory| memory.peak_bytes),
                memory(|memory| memory.swap_bytes),
                or_dash(kills.map(|kills| kills.to_string())),
                rate(
                    devices()
                        .filter_map(|device| device.read_bytes_per_second)
                        .collect(),
                ),
                rate(
                    devices()
                        .filter_map(|device| device.write_bytes_per_second)
                        .collect(),
                ),
                millicores(cpu(|cpu| cpu.remainder_millicores)),
            ]);
        }
        cells
    }
}

/// As Kubernetes writes it.
fn millicores(value: Option<f64>) -> String {
    or_dash(value.map(|value| format!("{value:.0}m")))
}

pub(super) fn units(rows: &[Row<Units>], wide: bool) -> Table {
    let mut table = Timed::new(is_history(rows), &headings(&["UNIT", "KIND"], wide));
    for (time, units) in rows {
        for unit in units.units.iter().flatten() {
            let kind = unit.kind.map(|kind| match kind {
                UnitKind::Unit => "unit",
                UnitKind::Session => "session",
                UnitKind::Slice => "slice",
                UnitKind::Container => "container",
            });
            let mut row = vec![or_dash(unit.unit.clone()), or_dash(kind.map(str::to_owned))];
            let figures = Figures {
                cpu: unit.cpu.as_ref(),
                memory: unit.memory.as_ref(),
                disk: unit.disk.as_ref(),
                tasks: unit.tasks,
            };
            row.extend(figures.cells(wide));
            table.row(time, row);
        }
    }
    table.table
}

/// A row for each pod as a whole, and below it one for each container.
pub(super) fn pods(rows: &[Row<NodePods>], wide: bool) -> Table {
    let mut table = Timed::new(is_history(rows), &headings(&["POD", "CONTAINER"], wide));
    for (time, pods) in rows {
        for pod in pods.pods.iter().flatten() {
            let name = name(pod);
            let mut row = vec![name.clone(), "all".to_owned()];
            let figures = Figures {
                cpu: pod.cpu.as_ref(),
                memory: pod.memory.as_ref(),
                disk: pod.disk.as_ref(),
                tasks: pod.tasks,
            };
            row.extend(figures.cells(wide));
            table.row(time, row);
            for container in pod.containers.iter().flatten() {
                let short = |id: &String| id.chars().take(12).collect();
                let id = || container.container_id.as_ref().map(short);
                let called = container.name.clone().or_else(id);
                let mut row = vec![name.clone(), or_dash(called)];
                let figures = Figures {
                    cpu: container.cpu.as_ref(),
                    memory: container.memory.as_ref(),
                    disk: container.disk.as_ref(),
                    tasks: container.tasks,
                };
                row.extend(figures.cells(wide));
                table.row(time, row);
            }
        }
    }
    table.table
}

/// What people call it, or its UID while nobody has told.
fn name(pod: &Pod) -> String {
    match (&pod.namespace, &pod.name) {
        (Some(namespace), Some(name)) => format!("{namespace}/{name}"),
        _ => or_dash(pod.uid.clone()),
    }
}

/// The state of a pod in one word.
fn status(view: &PodView) -> String {
    let pod = &view.pod;
    match (view.state, &pod.reason, &pod.phase) {
        (_, Some(reason), _) => reason.clone(),
        // It was deleted while it ran.
        (NodeState::Gone, None, Some(phase)) if phase == "Running" || phase == "Pending" => {
            "Deleted".to_owned()
        }
        (_, None, phase) => or_dash(phase.clone()),
    }
}

/// One row a pod, what is used beside what is kept and what is allowed.
pub(super) fn pod_list(views: &[PodView], wide: bool) -> Table {
    let mut headings = vec![
        "NAMESPACE",
        "NAME",
        "NODE",
        "STATUS",
        "RESTARTS",
        "CPU",
        "REQUEST",
        "LIMIT",
        "THROTTLED%",
        "MEMORY",
        "REQUEST",
        "LIMIT",
    ];
    if wide {
        headings.extend(["WORKLOAD", "CREATED", "ENDED", "UID"]);
    }
    let mut table = Table::new(&headings);
    for view in views {
        let pod = &view.pod;
        let usage = view.usage.as_ref();
        let cpu = usage.and_then(|usage| usage.cpu.as_ref());
        let memory = usage.and_then(|usage| usage.memory.as_ref());
        let of = |figure: Option<u64>| figure.map(|figure| figure as f64);
        let restarts: u32 = pod
            .containers
            .iter()
            .map(|container| container.restarts)
            .sum();
        let mut row = vec![
            pod.namespace.clone(),
            pod.name.clone(),
            or_dash(pod.node.clone()),
            status(view),
            restarts.to_string(),
            millicores(cpu.and_then(|cpu| cpu.usage_millicores)),
            millicores(of(pod.sum(|container| container.cpu_request_millicores))),
            millicores(of(pod.sum(|container| container.cpu_limit_millicores))),
            percent(cpu.and_then(|cpu| cpu.throttled_percent)),
            bytes(of(memory.and_then(|memory| memory.working_set_bytes))),
            bytes(of(pod.sum(|container| container.memory_request_bytes))),
            bytes(of(pod.sum(|container| container.memory_limit_bytes))),
        ];
        if wide {
            let workload = pod.workload.as_ref();
            row.extend([
                or_dash(workload.map(|one| format!("{}/{}", one.kind, one.name))),
                pod.created_at.to_string(),
                or_dash(pod.ended_at.map(|time| time.to_string())),
                pod.uid.clone(),
            ]);
        }
        table.row(row);
    }
    table
}

/// A pod: a row for each container, and of those that ended how.
pub(super) fn pod(view: &PodView, wide: bool) -> String {
    let pod = &view.pod;
    let workload = pod.workload.as_ref();
    let workload = workload.map(|one| format!(" of {} {}", one.kind, one.name));
    let head = format!(
        "{}/{}{} on {}: {}\n",
        pod.namespace,
        pod.name,
        workload.unwrap_or_default(),
        pod.node.as_deref().unwrap_or("no node"),
        status(view),
    );
    let mut table = Timed::new(false, &headings(&["CONTAINER", "STATE"], wide));
    let used = view
        .usage
        .as_ref()
        .and_then(|usage| usage.containers.as_ref());
    for container in &pod.containers {
        let usage = used
            .into_iter()
            .flatten()
            .find(|used| used.name.as_ref() == Some(&container.name));
        let role = match container.role {
            ContainerRole::Main => "",
            ContainerRole::Init => " (init)",
            ContainerRole::Sidecar => " (sidecar)",
            ContainerRole::Ephemeral => " (ephemeral)",
        };
        let figures = Figures {
            cpu: usage.and_then(|usage| usage.cpu.as_ref()),
            memory: usage.and_then(|usage| usage.memory.as_ref()),
            disk: usage.and_then(|usage| usage.disk.as_ref()),
            tasks: usage.and_then(|usage| usage.tasks),
        };
        let mut row = vec![
            format!("{}{role}", container.name),
            last_run(pod, &container.name),
        ];
        row.extend(figures.cells(wide));
        table.row("", row);
    }
    crate::table::plain_lines(&head) + &table.table.render()
}

fn last_run(pod: &PodRecord, name: &str) -> String {
    let container = pod
        .containers
        .iter()
        .find(|container| container.name == name);
    let Some(run) = container.and_then(|container| container.runs.last()) else {
        return "-".to_owned();
    };
    match (run.exit_code, &run.reason, run.ended_at) {
        (Some(code), Some(reason), _) => format!("{reason} ({code})"),
        (Some(code), None, _) => format!("exited ({code})"),
        (None, _, Some(_)) => "ended".to_owned(),
        (None, _, None) if pod.ended_at.is_some() => "deleted".to_owned(),
        (None, _, None) => "running".to_owned(),
    }
}

pub(super) fn cpu(rows: &[Row<Stamped<GroupCpu>>]) -> Table {
    let headings = [
        "CPU",
        "USER",
        "SYSTEM",
        "REQUEST",
        "LIMIT",
        "LIMIT%",
        "THROTTLED%",
        "THROTTLED S/S",
        "PROCESSES",
        "ENDED CHILDREN",
        "REMAINDER",
    ];
    let mut table = Timed::new(is_history(rows), &headings);
    for (time, cpu) in rows {
        let cpu = &cpu.figure;
        let throttled = cpu.throttled_seconds_per_second;
        table.row(
            time,
            vec![
                millicores(cpu.usage_millicores),
                millicores(cpu.user_millicores),
                millicores(cpu.system_millicores),
                millicores(cpu.request_millicores),
                millicores(cpu.limit_millicores),
                percent(cpu.limit_percent),
                percent(cpu.throttled_percent),
                or_dash(throttled.map(|seconds| format!("{seconds:.2}"))),
                millicores(cpu.processes_millicores),
                millicores(cpu.ended_children_millicores),
                millicores(cpu.remainder_millicores),
            ],
        );
    }
    table.table
}

pub(super) fn memory(rows: &[Row<Stamped<GroupMemory>>]) -> Table {
    let headings = [
        "WORKING SET",
        "REQUEST",
        "LIMIT",
        "LIMIT%",
        "CURRENT",
        "ANONYMOUS",
        "FILE",
        "PEAK",
        "SWAP",
        "OOM KILLS",
    ];
    let mut table = Timed::new(is_history(rows), &headings);
    for (time, memory) in rows {
        let memory = &memory.figure;
        let size = |value: Option<u64>| bytes(value.map(|value| value as f64));
        table.row(
            time,
            vec![
                size(memory.working_set_bytes),
                size(memory.request_bytes),
                size(memory.limit_bytes),
                percent(memory.limit_percent),
                size(memory.current_bytes),
                size(memory.anonymous_bytes),
                size(memory.file_bytes),
                size(memory.peak_bytes),
                size(memory.swap_bytes),
                or_dash(memory.oom_kills_total.map(|kills| kills.to_string())),
            ],
        );
    }
    table.table
}

pub(super) fn disk(rows: &[Row<Stamped<GroupDisk>>]) -> Table {
    let headings = [
        "DEVICE", "READ/S", "WRITE/S", "READS/S", "WRITES/S", "READ", "WRITTEN",
    ];
    let mut table = Timed::new(is_history(rows), &headings);
    for (time, disk) in rows {
        for device in disk.figure.devices.iter().flatten() {
            let total = |value: Option<u64>| bytes(value.map(|value| value as f64));
            table.row(
                time,
                vec![
                    or_dash(device.device.clone()),
                    bytes(device.read_bytes_per_second),
                    bytes(device.write_bytes_per_second),
                    percent(device.reads_per_second),
                    percent(device.writes_per_second),
                    total(device.read_bytes_total),
                    total(device.write_bytes_total),
                ],
            );
        }
    }
    table.table
}
