//! Tables of pods, containers and units.

use nodestats_wire::v1::{GroupCpu, GroupDisk, GroupMemory, NodePods, UnitKind, Units};

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
            let name = or_dash(pod.uid.clone());
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
                let id = container.container_id.as_ref();
                let id = id.map(|id| id.chars().take(12).collect());
                let mut row = vec![name.clone(), or_dash(id)];
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
