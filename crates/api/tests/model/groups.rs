//! What pods, their containers, and units did.

use std::collections::BTreeMap;

use nodestats_core::sample::cgroup::Kind;
use nodestats_core::sample::{Cgroup, Sample};
use serde_json::{Value, json};

use super::History;
use super::made::{
    NAMESPACE, Node, Pod, asked, at, group_read, grown, pod_of, rate, round, seconds_between,
    usage, working_set,
};
use super::minutes::{Figure, Seen};

/// Thousandths of a CPU, as they are told.
fn millicores(before: Option<&Sample>, now: &Sample, group: &Cgroup) -> Option<f64> {
    let micros = grown(before, group, usage)?;
    Some(round(
        micros as f64 / seconds_between(before?, now) / 1000.0,
    ))
}

fn groups(sample: &Sample) -> &[Cgroup] {
    sample.cgroups.as_deref().expect("set")
}

impl Pod {
    /// Its own group, where it was there.
    fn group<'a>(&self, sample: &'a Sample) -> Option<&'a Cgroup> {
        let mut all = groups(sample).iter();
        all.find(|group| matches!(&group.kind, Kind::Pod { uid } if *uid == self.uid))
    }
}

impl Node {
    fn pod_name(&self, uid: &str) -> Option<&str> {
        let pod = self.pods.iter().find(|pod| &*pod.uid == uid);
        pod.map(|pod| pod.name.as_str())
    }
}

impl History {
    /// Pods with their containers as they were.
    pub(crate) async fn pods_at(&mut self) {
        let (number, second) = (self.node(), self.second());
        let node = &self.nodes[number];
        let path = format!("/nodes/{}/pods?at={}", node.uid, asked(second));
        let answer = self.get(&path).await;
        let Some((before, time, now)) = node.last(second) else {
            assert_eq!(answer, None, "{}: {path}", self.stage);
            return;
        };
        let answer = answer.unwrap_or_else(|| panic!("{}: {path}", self.stage));
        assert_eq!(answer["time"], json!(at(time)), "{}: {path}", self.stage);
        let pods = answer["pods"].as_array().expect("pods").iter();
        let told: BTreeMap<String, Value> = pods
            .map(|pod| {
                let container = &pod["containers"][0];
                let told = json!([
                    pod["name"],
                    pod["cpu"]["usage_millicores"],
                    pod["memory"]["working_set_bytes"],
                    pod["disk"]["devices"][0]["read_bytes_per_second"],
                    container["container_id"],
                    container["name"],
                    container["cpu"]["usage_millicores"],
                    container["memory"]["working_set_bytes"],
                ]);
                (pod["uid"].as_str().expect("a UID").to_owned(), told)
            })
            .collect();
        let mut expected = BTreeMap::new();
        for group in groups(now) {
            let Kind::Pod { uid } = &group.kind else {
                continue;
            };
            let mut inner = groups(now).iter();
            let container = inner
                .find(|other| other.path != group.path && pod_of(other) == Some(uid))
                .expect("one");
            let id = container.path.rsplit('/').next();
            let read = grown(before, group, group_read);
            let read = read.map(|bytes| rate(before.expect("before"), now, bytes));
            let row = json!([
                node.pod_name(uid),
                millicores(before, now, group),
                working_set(group),
                read,
                id,
                "app",
                millicores(before, now, container),
                working_set(container),
            ]);
            expected.insert(uid.to_string(), row);
        }
        assert_eq!(told, expected, "{}: {path}", self.stage);
    }

    pub(crate) async fn units_at(&mut self) {
        let (number, second) = (self.node(), self.second());
        let node = &self.nodes[number];
        let path = format!("/nodes/{}/units?at={}", node.uid, asked(second));
        let answer = self.get(&path).await;
        let Some((before, _, now)) = node.last(second) else {
            assert_eq!(answer, None, "{}: {path}", self.stage);
            return;
        };
        let answer = answer.unwrap_or_else(|| panic!("{}: {path}", self.stage));
        let units = answer["units"].as_array().expect("units").iter();
        let told: Vec<Value> = units
            .map(|unit| {
                json!([
                    unit["unit"],
                    unit["cpu"]["usage_millicores"],
                    unit["memory"]["working_set_bytes"],
                ])
            })
            .collect();
        let units = groups(now).iter().filter(|group| group.kind == Kind::Unit);
        let expected: Vec<Value> = units
            .map(|unit| {
                json!([
                    unit.name(),
                    millicores(before, now, unit),
                    working_set(unit)
                ])
            })
            .collect();
        assert_eq!(told, expected, "{}: {path}", self.stage);
    }

    /// A pod, and how it is asked about.
    fn pod(&mut self) -> Option<(usize, usize, String)> {
        let number = self.node();
        let count = self.nodes[number].pods.len() as u64;
        let pod = (count > 0).then(|| self.random.below(count) as usize)?;
        let name = &self.nodes[number].pods[pod].name;
        Some((number, pod, format!("/namespaces/{NAMESPACE}/pods/{name}")))
    }

    /// A pod sample by sample, one that is gone too.
    pub(crate) async fn one_pod(&mut self) {
        let Some((number, pod, path)) = self.pod() else {
            return;
        };
        let (from, to) = self.span();
        let node = &self.nodes[number];
        let pod = &node.pods[pod];
        let range = format!("from={}&to={}", asked(from), asked(to));
        for detail in ["cpu", "memory"] {
            let path = format!("{path}/{detail}?{range}");
            let answer = self.get(&path).await.unwrap_or_else(|| json!({}));
            let (known, figure) = match detail {
                "cpu" => ("usage_seconds_total", "usage_millicores"),
                _ => ("working_set_bytes", "working_set_bytes"),
            };
            let told: Vec<Value> = Self::entries(&answer, known)
                .into_iter()
                .map(|(key, entry)| json!([key, entry[figure]]))
                .collect();
            let mut expected = Vec::new();
            for (second, before, now) in node.pairs(from, to) {
                if let Some(group) = pod.group(now) {
                    let figure = match detail {
                        "cpu" => json!(millicores(before, now, group)),
                        _ => json!(working_set(group)),
                    };
                    expected.push(json!([at(second).to_key(), figure]));
                }
            }
            assert_eq!(told, expected, "{}: {path}", self.stage);
        }
    }

    /// The same by minutes.
    pub(crate) async fn pod_by_minutes(&mut self) {
        let Some((number, pod, path)) = self.pod() else {
            return;
        };
        let (from, to) = self.minutes();
        let aggregate = self.aggregate(true);
        let is_cpu = self.random.below(2) == 0;
        let node = &self.nodes[number];
        let pod = &node.pods[pod];
        let mut seen: BTreeMap<i64, Vec<Seen>> = BTreeMap::new();
        for (second, before, now) in node.pairs(from, to) {
            let Some(group) = pod.group(now) else {
                continue;
            };
            let span = before.map(|before| seconds_between(before, now));
            let one = if is_cpu {
                let micros = grown(before, group, usage);
                let of = |(micros, span): (u64, f64)| {
                    Seen::new(micros as f64 / span / 1000.0, Some(span))
                };
                micros.zip(span).map(of)
            } else {
                Some(Seen::new(working_set(group) as f64, span))
            };
            seen.entry(second / 60 * 60).or_default().extend(one);
        }
        let (detail, pointer, error) = if is_cpu {
            ("cpu", "/usage_millicores", 0.11)
        } else {
            ("memory", "/working_set_bytes", 2.0)
        };
        let figure = Figure {
            path: format!("{path}/{detail}?from={}&to={}", asked(from), asked(to)),
            pointer,
            seen,
            aggregate,
            error,
            is_whole: true,
        };
        self.by_minutes(figure).await;
    }
}
