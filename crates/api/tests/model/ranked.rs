//! What used most, over all nodes.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use nodestats_core::sample::cgroup::Kind;
use nodestats_core::sample::{Cgroup, Process, Sample};
use serde_json::{Value, json};

use super::History;
use super::made::{
    Node, TICKS, asked, at, cpu_percent, group_read, group_written, grown, growth, is_near, pod_of,
    read_bytes, read_rate, seconds_between, usage, working_set,
};
use super::minutes::number;

/// How many rows of a ranking are compared, and by what they are ranked.
type Ranking = (usize, &'static str);

/// What something used between two samples.
#[derive(Debug, Clone, Copy, Default)]
struct Used {
    cpu_seconds: f64,
    memory: f64,
    /// Bytes read and written, where that is known.
    bytes: [Option<f64>; 2],
}

/// By what things are put together.
#[derive(Debug, Clone, Copy, PartialEq)]
enum By {
    Name,
    User,
    Pod,
    Container,
    Workload,
    Node,
}

impl By {
    const ALL: [Self; 6] = [
        Self::Name,
        Self::User,
        Self::Pod,
        Self::Container,
        Self::Workload,
        Self::Node,
    ];

    fn asked(self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::User => "user",
            Self::Pod => "pod",
            Self::Container => "container",
            Self::Workload => "workload",
            Self::Node => "node",
        }
    }

    /// What a row is told of.
    fn key(self, row: &Value) -> String {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        match self {
            Self::Name => text(&row["name"]),
            Self::User => text(&row["user"]),
            Self::Pod => text(&row["pod"]),
            Self::Container => format!("{}/{}", text(&row["pod"]), text(&row["name"])),
            Self::Workload => text(&row["workload"]["name"]),
            Self::Node => text(&row["node"]),
        }
    }

    /// All there was at a sample of a node, each by what it is put together with.
    fn used(self, node: &Node, before: Option<&Sample>, now: &Sample) -> Vec<(String, Used)> {
        match self {
            Self::Name | Self::User => {
                let used = |process: &Process| {
                    let key = match self {
                        Self::Name => process.name.to_string(),
                        _ => process.user.as_deref().unwrap_or_default().to_owned(),
                    };
                    let ticks = growth(before, process, |process| process.user_ticks);
                    let read = growth(before, process, read_bytes);
                    let used = Used {
                        cpu_seconds: ticks.unwrap_or_default() as f64 / TICKS as f64,
                        memory: process.resident_bytes as f64,
                        bytes: [read.map(|bytes| bytes as f64), None],
                    };
                    (key, used)
                };
                now.processes.iter().map(used).collect()
            }
            Self::Pod | Self::Container | Self::Workload => {
                let used = |group: &Cgroup| {
                    let uid = pod_of(group)?;
                    let is_container = matches!(group.kind, Kind::Container { .. });
                    let pod = node.pods.iter().find(|pod| pod.uid == *uid)?;
                    let key = match self {
                        Self::Pod => pod.name.clone(),
                        Self::Container => format!("{}/app", pod.name),
                        _ => pod.workload.clone(),
                    };
                    let bytes = |of| grown(before, group, of).map(|bytes| bytes as f64);
                    let micros = grown(before, group, usage).unwrap_or_default();
                    let used = Used {
                        cpu_seconds: micros as f64 / 1e6,
                        memory: working_set(group) as f64,
                        bytes: [bytes(group_read), bytes(group_written)],
                    };
                    (is_container == (self == Self::Container)).then_some((key, used))
                };
                now.cgroups.iter().flatten().filter_map(used).collect()
            }
            Self::Node => {
                let total = |sample: &Sample| sample.host.cpu_total.expect("set");
                let ticks = before.map_or(0, |before| total(now).user - total(before).user);
                let memory = now.host.memory.expect("set");
                let bytes = |of: fn(&nodestats_core::sample::DiskCounters) -> u64| {
                    let sum = |sample: &Sample| -> u64 {
                        sample.host.disks.iter().flatten().map(of).sum()
                    };
                    before.map(|before| (sum(now) - sum(before)) as f64)
                };
                let used = Used {
                    cpu_seconds: ticks as f64 / TICKS as f64,
                    memory: (memory.total - memory.available.expect("set")) as f64,
                    bytes: [
                        bytes(|disk| disk.read_bytes),
                        bytes(|disk| disk.written_bytes),
                    ],
                };
                vec![(node.name.clone(), used)]
            }
        }
    }
}

impl History {
    fn ranking(&mut self) -> Ranking {
        let sort = ["cpu", "memory", "io"][self.random.below(3) as usize];
        (1 + self.random.below(12) as usize, sort)
    }

    pub(crate) async fn top_at(&mut self) {
        let (second, (limit, sort)) = (self.second(), self.ranking());
        let path = format!(
            "/top?by=process&sort={sort}&limit={limit}&at={}",
            asked(second)
        );
        let answer = self.get(&path).await.expect("an answer");
        let pods = self.nodes.iter().flat_map(|node| &node.pods);
        let pods: HashMap<&Arc<str>, &str> =
            pods.map(|pod| (&pod.uid, pod.name.as_str())).collect();
        let mut expected = Vec::new();
        for node in &self.nodes {
            let Some((before, now)) = node.lately(second) else {
                continue;
            };
            for process in &now.processes {
                let value = match sort {
                    "cpu" => cpu_percent(before, now, process).unwrap_or_default(),
                    "memory" => process.resident_bytes as f64,
                    _ => read_rate(before, now, process).unwrap_or_default(),
                };
                let key = (&node.name, &process.pod_uid, &process.name, process.pid);
                expected.push((value, key));
            }
        }
        expected.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        expected.truncate(limit);
        let expected: Vec<Value> = expected
            .into_iter()
            .map(|(value, (node, pod, name, pid))| {
                let pod = pod.as_ref().and_then(|uid| pods.get(uid));
                json!([value, node, &**name, pid, pod])
            })
            .collect();
        let figure = match sort {
            "cpu" => "cpu_percent",
            "memory" => "memory_bytes",
            _ => "read_bytes_per_second",
        };
        let value = |row: &Value| row[figure].as_f64().unwrap_or_default();
        let rows = answer["rows"].as_array().into_iter().flatten();
        let told: Vec<Value> = rows
            .map(|row| json!([value(row), row["node"], row["name"], row["pid"], row["pod"]]))
            .collect();
        assert_eq!(told, expected, "{}: {path}", self.stage);
    }

    fn by(&mut self) -> By {
        By::ALL[self.random.below(By::ALL.len() as u64) as usize]
    }

    /// What has something in common at a moment.
    pub(crate) async fn groups_at(&mut self) {
        let (second, by, (_, sort)) = (self.second(), self.by(), self.ranking());
        let path = format!(
            "/top?by={}&sort={sort}&limit=1000&at={}",
            by.asked(),
            asked(second)
        );
        let answer = self.get(&path).await.expect("an answer");
        let mut expected: BTreeMap<String, (f64, [f64; 4])> = BTreeMap::new();
        for node in &self.nodes {
            let Some((before, now)) = node.lately(second) else {
                continue;
            };
            for (key, used) in by.used(node, before, now) {
                let of_second = |value: f64| match before {
                    Some(before) => value / seconds_between(before, now),
                    None => 0.0,
                };
                let (count, all) = expected.entry(key).or_default();
                *count += 1.0;
                // A host's CPU is of the ticks that were counted.
                let cpu = match (by, before) {
                    (By::Node, Some(before)) => host_usage(before, now),
                    _ => of_second(used.cpu_seconds) * 100.0,
                };
                let bytes = used.bytes.map(|bytes| of_second(bytes.unwrap_or_default()));
                for (all, one) in all.iter_mut().zip([cpu, used.memory, bytes[0], bytes[1]]) {
                    *all += one;
                }
            }
        }
        let rows = answer["rows"].as_array().into_iter().flatten();
        let mut order = Vec::new();
        for row in rows {
            let key = by.key(row);
            let Some((count, all)) = expected.remove(&key) else {
                panic!("{}: {path}: {key}: {answer}", self.stage);
            };
            let told = [
                number(&row["cpu_percent"]),
                number(&row["memory_bytes"]),
                number(&row["read_bytes_per_second"]),
                number(&row["write_bytes_per_second"]),
            ];
            for (told, all) in told.into_iter().zip(all) {
                assert!(
                    is_near(told, all, 0.011 * count + 0.001),
                    "{}: {path}: {key}: {told} {all}",
                    self.stage
                );
            }
            order.push(match sort {
                "cpu" => told[0],
                "memory" => told[1],
                _ => told[2] + told[3],
            });
        }
        assert!(expected.is_empty(), "{}: {path}: {expected:?}", self.stage);
        assert!(
            order.is_sorted_by(|a, b| *a >= *b - 0.011),
            "{}: {path}: {order:?}",
            self.stage
        );
    }

    /// The same in a span.
    pub(crate) async fn groups_within(&mut self) {
        let ((from, to), by) = (self.span(), self.by());
        let path = format!(
            "/top?by={}&limit=1000&from={}&to={}",
            by.asked(),
            asked(from),
            asked(to)
        );
        let answer = self.get(&path).await.expect("an answer");
        let mut expected: BTreeMap<String, (f64, f64)> = BTreeMap::new();
        for node in &self.nodes {
            // What was seen and not watched counts next to nothing.
            let weight = |before: Option<&Sample>, now: &Sample| {
                before.map_or(1e-6, |before| seconds_between(before, now))
            };
            let all = node.pairs(from, to);
            let all: f64 = all.map(|(_, before, now)| weight(before, now)).sum();
            for (_, before, now) in node.pairs(from, to) {
                for (key, used) in by.used(node, before, now) {
                    let (cpu, memory) = expected.entry(key).or_default();
                    *cpu += used.cpu_seconds;
                    *memory += used.memory * weight(before, now) / all;
                }
            }
        }
        let rows = answer["rows"].as_array().into_iter().flatten();
        for row in rows {
            let key = by.key(row);
            let Some((cpu, memory)) = expected.remove(&key) else {
                panic!("{}: {path}: {key}: {answer}", self.stage);
            };
            let told = (number(&row["cpu_seconds"]), number(&row["memory_bytes"]));
            assert!(
                is_near(told.0, cpu, 0.011) && is_near(told.1, memory, memory * 1e-5 + 100.0),
                "{}: {path}: {key}: {told:?} {cpu} {memory}",
                self.stage
            );
        }
        assert!(expected.is_empty(), "{}: {path}: {expected:?}", self.stage);
    }

    /// CPU seconds of all processes in a span.
    fn used(&self, from: i64, to: i64) -> f64 {
        let of_node = |node: &Node| -> f64 {
            let pairs = node.pairs(from, to);
            let used = pairs.flat_map(|(_, before, now)| By::Name.used(node, before, now));
            used.map(|(_, used)| used.cpu_seconds).sum()
        };
        self.nodes.iter().map(of_node).sum()
    }

    /// Of rollups, which keep those that matter apart and all others together: sums are true.
    pub(crate) async fn top_by_hours(&mut self) {
        let from = self.second() / 3600 * 3600;
        let to = from + 3600 * (1 + self.random.below(2) as i64) - 1;
        let path = format!(
            "/top?by=name&limit=100&step=1h&from={}&to={}",
            asked(from),
            asked(to)
        );
        let answer = self.get(&path).await.expect("an answer");
        for hour in (from..to).step_by(3600) {
            let expected = self.used(hour, hour + 3599);
            let step = &answer[at(hour).to_key()];
            let rows = step["rows"].as_array().into_iter().flatten();
            let all = rows.chain([&step["rest"]]);
            let told: f64 = all.filter_map(|row| row["cpu_seconds"].as_f64()).sum();
            assert!(
                is_near(told, expected, 0.1),
                "{}: {path}: {told} {expected}",
                self.stage
            );
        }
    }
}

/// How busy a host was, in percent of the ticks that were counted.
fn host_usage(before: &Sample, now: &Sample) -> f64 {
    let total = |sample: &Sample| sample.host.cpu_total.expect("set");
    let user = (total(now).user - total(before).user) as f64;
    let all = user + (total(now).idle - total(before).idle) as f64;
    if all > 0.0 { user * 100.0 / all } else { 0.0 }
}
