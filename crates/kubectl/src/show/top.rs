//! What uses most.

use jiff::tz::TimeZone;
use nodestats_wire::v1::{Top, TopRow};

use super::{Row, Timed, is_history};
use crate::table::{Table, bytes, or_dash, percent};
use crate::times;

/// The rows of a ranking under the time that it is of, with a line for the rest.
pub(super) fn render(top: Top, by: &str, wide: bool, zone: &TimeZone) -> String {
    let local = |time| times::local(zone, time);
    let head = match (top.at, top.from, top.to) {
        (Some(at), ..) => format!("{} ({})\n", local(at), times::zone_name(zone, at)),
        (None, Some(from), Some(to)) => format!(
            "{} to {} ({})\n",
            local(from),
            local(to),
            times::zone_name(zone, from)
        ),
        _ => String::new(),
    };
    head + &table(&[(String::new(), top)], by, wide, zone).render()
}

/// The same of each step.
pub(super) fn table(rows: &[Row<Top>], by: &str, wide: bool, zone: &TimeZone) -> Table {
    let local = |time| times::local(zone, time);
    let names: &[&str] = match by {
        "process" => &["NODE", "PID", "NAME", "USER", "POD"],
        "name" => &["NAME", "NODES", "COUNT"],
        "user" => &["USER", "NODES", "COUNT"],
        "pod" => &["NAMESPACE", "POD", "NODE"],
        "container" => &["NAMESPACE", "POD", "CONTAINER", "NODE"],
        "workload" => &["NAMESPACE", "WORKLOAD", "NODES", "PODS"],
        _ => &["NODE"],
    };
    let with_time = is_history(rows);
    let is_span = with_time || rows.iter().any(|(_, top)| top.from.is_some());
    let figures: &[&str] = if is_span {
        &["CPU %", "CPU s", "MEMORY", "READ/s", "WRITE/s"]
    } else {
        &["CPU %", "MEMORY", "READ/s", "WRITE/s"]
    };
    let more: &[&str] = match (by, wide) {
        ("process", true) => &["STARTED", "COMMAND"],
        _ => &[],
    };
    let mut table = Timed::new(with_time, &[names, figures, more].concat());
    for (time, top) in rows {
        for row in top.rows.iter().flatten() {
            let mut cells = names_of(row, by);
            cells.extend(figures_of(row, is_span));
            if !more.is_empty() {
                cells.push(or_dash(row.started_at.map(local)));
                cells.push(or_dash(row.command_line.clone()));
            }
            table.row(time, cells);
        }
        if let Some(rest) = &top.rest {
            let count = rest.count.unwrap_or_default();
            let mut cells = vec![format!("{count} others")];
            cells.resize(names.len(), String::new());
            cells.extend(figures_of(rest, is_span));
            cells.extend(more.iter().map(|_| String::new()));
            table.row(time, cells);
        }
    }
    table.table
}

fn names_of(row: &TopRow, by: &str) -> Vec<String> {
    let text = |text: &Option<String>| or_dash(text.clone());
    let number = |number: Option<u64>| or_dash(number.map(|number| number.to_string()));
    let nodes = number(row.nodes.map(|nodes| nodes as u64));
    let pod = || match (&row.namespace, &row.pod) {
        (Some(namespace), Some(pod)) => format!("{namespace}/{pod}"),
        (None, pod) => text(pod),
        (Some(namespace), None) => namespace.clone(),
    };
    match by {
        "process" => vec![
            text(&row.node),
            number(row.pid.map(u64::from)),
            text(&row.name),
            text(&row.user),
            pod(),
        ],
        "name" => vec![text(&row.name), nodes, number(row.count)],
        "user" => vec![text(&row.user), nodes, number(row.count)],
        "pod" => vec![text(&row.namespace), text(&row.pod), text(&row.node)],
        "container" => vec![
            text(&row.namespace),
            text(&row.pod),
            text(&row.name),
            text(&row.node),
        ],
        "workload" => {
            let owner = row.workload.as_ref();
            let owner = owner.map(|owner| format!("{}/{}", owner.kind, owner.name));
            vec![
                text(&row.namespace),
                owner.unwrap_or_else(|| text(&row.pod)),
                nodes,
                number(row.count),
            ]
        }
        _ => vec![text(&row.node)],
    }
}

fn figures_of(row: &TopRow, is_span: bool) -> Vec<String> {
    let mut cells = vec![percent(row.cpu_percent)];
    if is_span {
        cells.push(or_dash(
            row.cpu_seconds.map(|seconds| format!("{seconds:.1}")),
        ));
    }
    cells.push(bytes(row.memory_bytes.map(|bytes| bytes as f64)));
    cells.push(bytes(row.read_bytes_per_second));
    cells.push(bytes(row.write_bytes_per_second));
    cells
}
