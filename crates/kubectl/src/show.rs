//! Answers as tables, or as they came.

mod events;
mod groups;
mod top;

use std::io::{IsTerminal as _, Write as _};

use anyhow::Context as _;
use jiff::tz::TimeZone;
use nodestats_wire::Timestamp;
use nodestats_wire::v1::{
    Cpu, CpuCore, Disk, Gap, GapEntry, Memory, Network, NodePods, NodeState, NodeView, PodView,
    Process, Processes, Reading, Stamped, Top, Units,
};
use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, MapAccess, Visitor};

use crate::ask::{Kind, Question};
use crate::table::{Table, bytes, or_dash, percent};
use crate::{Output, times};

/// Prints an answer in the form that was asked for.
pub(crate) fn print(
    output: Output,
    question: &Question,
    body: &[u8],
    zone: &TimeZone,
) -> anyhow::Result<()> {
    let text = match output {
        Output::Json => {
            let mut body = body.to_vec();
            // A program gets the API's bytes and none of ours.
            body.extend(std::io::stdout().is_terminal().then_some(b'\n'));
            body
        }
        Output::Yaml => {
            let value: serde_json::Value = serde_json::from_slice(body).context(FOREIGN)?;
            serde_saphyr::to_string(&value)?.into_bytes()
        }
        Output::Table | Output::Wide => {
            let wide = output == Output::Wide;
            render(question, body, wide, zone)
                .context(FOREIGN)?
                .into_bytes()
        }
    };
    match std::io::stdout().write_all(&text) {
        // Whoever reads has seen enough.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        written => Ok(written?),
    }
}

const FOREIGN: &str = "the server's answer is not of this version of nodestats";

fn render(question: &Question, body: &[u8], wide: bool, zone: &TimeZone) -> anyhow::Result<String> {
    Ok(match question.kind {
        Kind::Nodes => nodes(&serde_json::from_slice::<Vec<NodeView>>(body)?, wide),
        Kind::Node => details::<Reading>(question, body, zone, |reading| reading.time, node_table)?,
        Kind::Cpu => details::<Cpu>(
            question,
            body,
            zone,
            |cpu| cpu.time,
            |rows| cpu_table(rows, wide),
        )?,
        Kind::Memory => details::<Memory>(
            question,
            body,
            zone,
            |memory| memory.time,
            |rows| memory_table(rows, wide),
        )?,
        Kind::Disk => details::<Disk>(
            question,
            body,
            zone,
            |disk| disk.time,
            |rows| disk_table(rows, wide),
        )?,
        Kind::Network => details::<Network>(
            question,
            body,
            zone,
            |network| network.time,
            |rows| network_table(rows, wide),
        )?,
        Kind::Units => details::<Units>(
            question,
            body,
            zone,
            |units| units.time,
            |rows| groups::units(rows, wide),
        )?,
        Kind::Pods => details::<NodePods>(
            question,
            body,
            zone,
            |pods| pods.time,
            |rows| groups::pods(rows, wide),
        )?,
        Kind::Events => events::render(&serde_json::from_slice::<Vec<_>>(body)?, wide, zone),
        Kind::Top => {
            let by = question.query.iter().find(|(name, _)| *name == "by");
            let by = by.map_or("process", |(_, by)| by);
            if question.history {
                let table = |rows: &[Row<Top>]| top::table(rows, by, wide, zone);
                details::<Top>(question, body, zone, |top| top.at, table)?
            } else {
                top::render(serde_json::from_slice(body)?, by, wide, zone)
            }
        }
        Kind::PodList => {
            groups::pod_list(&serde_json::from_slice::<Vec<PodView>>(body)?, wide).render()
        }
        Kind::Pod => groups::pod(&serde_json::from_slice::<PodView>(body)?, wide),
        Kind::PodCpu => details::<Stamped<_>>(question, body, zone, |cpu| cpu.time, groups::cpu)?,
        Kind::PodMemory => {
            details::<Stamped<_>>(question, body, zone, |memory| memory.time, groups::memory)?
        }
        Kind::PodDisk => {
            details::<Stamped<_>>(question, body, zone, |disk| disk.time, groups::disk)?
        }
        Kind::Processes => details::<Processes>(
            question,
            body,
            zone,
            |table| table.time,
            |rows| {
                let each = rows.iter().flat_map(|(time, table)| {
                    table
                        .processes
                        .iter()
                        .flatten()
                        .map(|process| (time.clone(), process))
                });
                process_table(each, wide)
            },
        )?,
        Kind::Process => details::<Process>(
            question,
            body,
            zone,
            |process| process.time,
            |rows| {
                process_table(
                    rows.iter().map(|(time, process)| (time.clone(), process)),
                    wide,
                )
            },
        )?,
    })
}

/// The time of an entry as it is shown; empty for one moment, which stands above the table.
type Row<T> = (String, T);

fn details<T: DeserializeOwned>(
    question: &Question,
    body: &[u8],
    zone: &TimeZone,
    time_of: impl Fn(&T) -> Option<Timestamp>,
    table: impl Fn(&[Row<T>]) -> Table,
) -> anyhow::Result<String> {
    if !question.history {
        let value: T = serde_json::from_slice(body)?;
        let head = time_of(&value).map_or_else(String::new, |time| {
            format!(
                "{} ({})\n",
                times::local(zone, time),
                times::zone_name(zone, time)
            )
        });
        return Ok(head + &table(&[(String::new(), value)]).render());
    }
    let all = serde_json::from_slice::<Ordered<Entry<T>>>(body)?.0;
    let Some(first) = all.first().and_then(|(key, _)| times::key(key)) else {
        return Ok("no samples in this span\n".to_owned());
    };
    let (mut entries, mut gaps) = (Vec::new(), Vec::new());
    for (key, entry) in all {
        match entry {
            Entry::Figures(figures) => entries.push((key, figures)),
            Entry::Gap(entry) => gaps.push(entry.gap),
        }
    }
    let row = |(key, value): (String, T)| {
        let time = times::key(&key).map(|time| {
            let fraction = key.split_once('.').map_or("", |(_, fraction)| fraction);
            let dot = if fraction.is_empty() { "" } else { "." };
            format!("{}{dot}{fraction}", times::local(zone, time))
        });
        (time.unwrap_or(key), value)
    };
    let rows: Vec<Row<T>> = entries.into_iter().map(row).collect();
    let gaps: String = gaps.iter().map(|gap| gap_line(gap, zone)).collect();
    let table = if rows.is_empty() {
        String::new()
    } else {
        table(&rows).render()
    };
    Ok(format!(
        "times are {}\n{table}{gaps}",
        times::zone_name(zone, first),
    ))
}

/// An entry of a history: figures, or why there are none.
#[derive(Deserialize)]
#[serde(untagged)]
enum Entry<T> {
    Gap(GapEntry),
    Figures(T),
}

fn gap_line(gap: &Gap, zone: &TimeZone) -> String {
    let to = gap.to.map_or_else(
        || "on".to_owned(),
        |to| format!("to {}", times::local(zone, to)),
    );
    format!(
        "no samples from {} {to}: {}\n",
        times::local(zone, gap.from),
        gap.reason.words()
    )
}

/// An object whose entries keep the order in which they came.
struct Ordered<T>(Vec<(String, T)>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Ordered<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries<T>(std::marker::PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Entries<T> {
            type Value = Ordered<T>;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object keyed by time")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Ordered<T>, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Ordered(entries))
            }
        }
        deserializer.deserialize_map(Entries(std::marker::PhantomData))
    }
}

/// A table whose rows begin with a time where there is a history.
struct Timed {
    table: Table,
    with_time: bool,
}

impl Timed {
    fn new(with_time: bool, headings: &[&str]) -> Self {
        let headings: Vec<&str> = with_time
            .then_some("TIME")
            .into_iter()
            .chain(headings.iter().copied())
            .collect();
        Self {
            table: Table::new(&headings),
            with_time,
        }
    }

    fn row(&mut self, time: &str, cells: Vec<String>) {
        let time = self.with_time.then(|| time.to_owned());
        self.table.row(time.into_iter().chain(cells).collect());
    }
}

fn is_history<T>(rows: &[Row<T>]) -> bool {
    rows.iter().any(|(time, _)| !time.is_empty())
}

fn nodes(nodes: &[NodeView], wide: bool) -> String {
    if nodes.is_empty() {
        return "no node has registered yet\n".to_owned();
    }
    let mut headings = vec!["ADDRESS", "NAME", "STATE", "LAST SAMPLE"];
    if wide {
        headings.extend(["KERNEL", "OS", "ARCHITECTURE", "AGENT", "UID"]);
    }
    let mut table = Table::new(&headings);
    for node in nodes {
        let state = match node.state {
            NodeState::Live => "live",
            NodeState::Gone => "gone",
        };
        let age = node.age_seconds.map(|age| format!("{age:.0}s ago"));
        let mut row = vec![
            node.ip.clone(),
            node.hostname.clone(),
            state.to_owned(),
            or_dash(age),
        ];
        if wide {
            let facts = [
                &node.kernel,
                &node.os,
                &node.architecture,
                &node.agent_version,
            ];
            row.extend(facts.map(|fact| or_dash(fact.clone())));
            row.push(node.uid.clone());
        }
        table.row(row);
    }
    table.render()
}

fn node_table(rows: &[Row<Reading>]) -> Table {
    let mut table = Timed::new(
        is_history(rows),
        &["CPU%", "MEMORY%", "LOAD1", "LOAD5", "LOAD15", "PROCESSES"],
    );
    for (time, reading) in rows {
        let cpus = reading
            .cpu_usage_percent
            .as_ref()
            .filter(|cpus| !cpus.is_empty());
        let mean = cpus.map(|cpus| cpus.iter().sum::<f64>() / cpus.len() as f64);
        let load =
            |index: usize| or_dash(reading.loadavg.map(|load| format!("{:.2}", load[index])));
        table.row(
            time,
            vec![
                percent(mean),
                percent(reading.memory_usage_percent),
                load(0),
                load(1),
                load(2),
                or_dash(reading.process_count.map(|count| count.to_string())),
            ],
        );
    }
    table.table
}

fn cpu_table(rows: &[Row<Cpu>], wide: bool) -> Table {
    let mut headings = vec![
        "CPU", "USAGE%", "USER%", "SYSTEM%", "IOWAIT%", "STEAL%", "MHZ",
    ];
    if wide {
        headings.extend(["NICE%", "IRQ%", "SOFTIRQ%", "IDLE%"]);
    }
    let mut table = Timed::new(is_history(rows), &headings);
    for (time, cpu) in rows {
        let all = CpuCore {
            usage_percent: cpu.usage_percent,
            modes: cpu.modes.clone(),
            ..CpuCore::default()
        };
        for core in std::iter::once(&all).chain(cpu.cpus.iter().flatten()) {
            let modes = core.modes.clone().unwrap_or_default();
            let name = core
                .cpu
                .map_or_else(|| "all".to_owned(), |number| number.to_string());
            let mhz = core.frequency_mhz.map(|mhz| format!("{mhz:.0}"));
            let shares = [
                core.usage_percent,
                modes.user,
                modes.system,
                modes.iowait,
                modes.steal,
            ];
            let mut row = vec![name];
            row.extend(shares.map(percent));
            row.push(or_dash(mhz));
            if wide {
                row.extend([modes.nice, modes.irq, modes.softirq, modes.idle].map(percent));
            }
            table.row(time, row);
        }
    }
    table.table
}

fn memory_table(rows: &[Row<Memory>], wide: bool) -> Table {
    let mut headings = vec![
        "TOTAL",
        "USED",
        "USED%",
        "FREE",
        "AVAILABLE",
        "SWAP",
        "SWAP USED",
    ];
    if wide {
        headings.extend(["BUFFERS", "CACHED", "SHARED", "RECLAIMABLE"]);
    }
    let mut table = Timed::new(is_history(rows), &headings);
    let size = |value: Option<u64>| bytes(value.map(|value| value as f64));
    for (time, memory) in rows {
        let mut row = vec![
            size(memory.total_bytes),
            size(memory.used_bytes),
            percent(memory.usage_percent),
            size(memory.free_bytes),
            size(memory.available_bytes),
            size(memory.swap_total_bytes),
            size(memory.swap_used_bytes),
        ];
        if wide {
            let more = [
                memory.buffers_bytes,
                memory.cached_bytes,
                memory.shared_bytes,
                memory.slab_reclaimable_bytes,
            ];
            row.extend(more.map(size));
        }
        table.row(time, row);
    }
    table.table
}

fn disk_table(rows: &[Row<Disk>], wide: bool) -> Table {
    let mut headings = vec![
        "DEVICE", "READ/S", "WRITE/S", "READS/S", "WRITES/S", "BUSY%",
    ];
    if wide {
        headings.extend(["IN FLIGHT", "READ", "WRITTEN"]);
    }
    let mut table = Timed::new(is_history(rows), &headings);
    for (time, disk) in rows {
        for device in disk.devices.iter().flatten() {
            let mut row = vec![
                or_dash(device.device.clone()),
                bytes(device.read_bytes_per_second),
                bytes(device.write_bytes_per_second),
                percent(device.reads_per_second),
                percent(device.writes_per_second),
                percent(device.busy_percent),
            ];
            if wide {
                row.push(or_dash(
                    device.requests_in_flight.map(|count| count.to_string()),
                ));
                let totals = [device.read_bytes_total, device.write_bytes_total];
                row.extend(totals.map(|total| bytes(total.map(|total| total as f64))));
            }
            table.row(time, row);
        }
    }
    table.table
}

fn network_table(rows: &[Row<Network>], wide: bool) -> Table {
    let mut headings = vec![
        "INTERFACE",
        "RECEIVE/S",
        "TRANSMIT/S",
        "RX PACKETS/S",
        "TX PACKETS/S",
    ];
    if wide {
        headings.extend(["RX ERRORS/S", "TX ERRORS/S", "RX DROPPED/S", "TX DROPPED/S"]);
    }
    let mut table = Timed::new(is_history(rows), &headings);
    for (time, network) in rows {
        for interface in network.interfaces.iter().flatten() {
            let mut row = vec![
                or_dash(interface.interface.clone()),
                bytes(interface.receive_bytes_per_second),
                bytes(interface.transmit_bytes_per_second),
                percent(interface.receive_packets_per_second),
                percent(interface.transmit_packets_per_second),
            ];
            if wide {
                let more = [
                    interface.receive_errors_per_second,
                    interface.transmit_errors_per_second,
                    interface.receive_dropped_per_second,
                    interface.transmit_dropped_per_second,
                ];
                row.extend(more.map(percent));
            }
            table.row(time, row);
        }
    }
    table.table
}

fn process_table<'a>(rows: impl Iterator<Item = (String, &'a Process)>, wide: bool) -> Table {
    let rows: Vec<_> = rows.collect();
    let mut headings = vec![
        "PID", "NAME", "USER", "CPU%", "MEMORY", "READ/S", "WRITE/S", "STATUS", "COMMAND",
    ];
    if wide {
        headings.extend([
            "PPID",
            "THREADS",
            "FILES",
            "CPU SECONDS",
            "VIRTUAL",
            "STARTED",
            "CONTAINER",
            "POD",
        ]);
    }
    let mut table = Timed::new(rows.iter().any(|(time, _)| !time.is_empty()), &headings);
    let longest = if wide { 400 } else { 60 };
    for (time, process) in &rows {
        let text = |text: &Option<String>| or_dash(text.clone());
        let command: String = text(&process.command_line).chars().take(longest).collect();
        let mut row = vec![
            process.pid.to_string(),
            text(&process.name),
            text(&process.user),
            percent(process.cpu_percent),
            bytes(process.rss_bytes.map(|bytes| bytes as f64)),
            bytes(process.read_bytes_per_second),
            bytes(process.write_bytes_per_second),
            text(&process.status),
            command,
        ];
        if wide {
            row.extend([
                or_dash(process.ppid.map(|pid| pid.to_string())),
                or_dash(process.threads.map(|threads| threads.to_string())),
                or_dash(process.open_files.map(|files| files.to_string())),
                percent(process.cpu_seconds),
                bytes(process.virtual_bytes.map(|bytes| bytes as f64)),
                or_dash(process.started_at.map(|time| time.to_string())),
                or_dash(
                    process
                        .container_id
                        .as_ref()
                        .map(|id| id.chars().take(12).collect()),
                ),
                text(&process.pod_uid),
            ]);
        }
        table.row(time, row);
    }
    table.table
}

#[cfg(test)]
mod tests {
    use nodestats_wire::v1::GapReason;

    use super::*;

    #[test]
    fn a_gap_is_said_below_the_figures() {
        let question = Question {
            kind: Kind::Memory,
            path: String::new(),
            query: Vec::new(),
            history: true,
        };
        let gap = |to| Gap {
            from: "2026-03-01 13:45:00".parse().expect("a time"),
            to,
            reason: GapReason::PoweredOff,
        };
        let end = "2026-03-01 13:50:00".parse().ok();
        let body = serde_json::json!({
            "2026-03-01 13:45:00": {"total_bytes": 1024},
            "2026-03-01 13:45:10": {"gap": gap(end)},
            "2026-03-01 13:50:10": {"gap": gap(None)},
        });
        let shown = render(
            &question,
            body.to_string().as_bytes(),
            false,
            &TimeZone::UTC,
        );
        let shown = shown.expect("a history");
        assert!(shown.contains("2026-03-01 13:45:00   1.0Ki"), "{shown}");
        let lines: Vec<&str> = shown.lines().skip(3).collect();
        assert_eq!(
            lines,
            [
                "no samples from 2026-03-01 13:45:00 to 2026-03-01 13:50:00: powered off",
                "no samples from 2026-03-01 13:45:00 on: powered off",
            ]
        );
    }
}
