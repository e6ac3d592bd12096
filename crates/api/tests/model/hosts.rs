//! What hosts did: CPU, memory, disks and interfaces.

use std::collections::BTreeMap;

use nodestats_core::sample::Sample;
use serde_json::{Value, json};

use super::History;
use super::made::{TICKS, at, is_near, rate, round, seconds_between};
use super::minutes::{Figure, Seen};

impl History {
    pub(crate) async fn cpu(&mut self) {
        let (number, (from, to)) = (self.node(), self.span());
        let node = &self.nodes[number];
        let path = node.history("cpu", from, to);
        let answer = self.get(&path).await.unwrap_or_else(|| json!({}));
        let told = Self::entries(&answer, "usage_percent");
        let mut expected = Vec::new();
        for (second, before, now) in node.pairs(from, to) {
            let Some(before) = before else { continue };
            let of = |sample: &Sample| sample.host.cpu_total.expect("set");
            let user = of(now).user - of(before).user;
            let all = user + of(now).idle - of(before).idle;
            if all > 0 {
                let usage = round(user as f64 * 100.0 / all as f64);
                expected.push((at(second).to_key(), usage));
            }
        }
        assert_eq!(told.len(), expected.len(), "{}: {path}", self.stage);
        for ((key, entry), (expected_key, usage)) in told.into_iter().zip(expected) {
            assert_eq!(key, expected_key, "{}: {path}", self.stage);
            let told = entry["usage_percent"].as_f64().expect("a number");
            assert!(is_near(told, usage, 0.011), "{}: {path}: {key}", self.stage);
        }
    }

    /// Disks and interfaces, sample by sample.
    pub(crate) async fn devices(&mut self) {
        let (number, (from, to)) = (self.node(), self.span());
        let node = &self.nodes[number];
        for (detail, list) in [("disk", "devices"), ("network", "interfaces")] {
            let path = node.history(detail, from, to);
            let answer = self.get(&path).await.unwrap_or_else(|| json!({}));
            let told: Vec<Value> = Self::entries(&answer, list)
                .into_iter()
                .map(|(key, entry)| {
                    let one = &entry[list][usize::from(detail == "disk")];
                    let figures = match detail {
                        "disk" => ["read_bytes_per_second", "busy_percent"],
                        _ => ["receive_bytes_per_second", "transmit_packets_per_second"],
                    };
                    json!([key, one[figures[0]], one[figures[1]]])
                })
                .collect();
            let figures = |sample: &Sample| {
                if detail == "disk" {
                    let disk = &sample.host.disks.as_ref().expect("set")[1];
                    [disk.read_bytes, disk.busy_millis]
                } else {
                    let interface = &sample.host.interfaces.as_ref().expect("set")[0];
                    [interface.receive.bytes, interface.transmit.packets]
                }
            };
            let mut expected = Vec::new();
            for (second, before, now) in node.pairs(from, to) {
                let of = |at: usize| {
                    let before = before?;
                    Some(rate(before, now, figures(now)[at] - figures(before)[at]))
                };
                let second_of = match detail {
                    "disk" => of(1).map(|millis| round(millis / 10.0).min(100.0)),
                    _ => of(1),
                };
                expected.push(json!([at(second).to_key(), of(0), second_of]));
            }
            assert_eq!(told, expected, "{}: {path}", self.stage);
        }
    }

    /// A figure of a host by minutes.
    pub(crate) async fn host_by_minutes(&mut self) {
        type Of = fn(&Sample) -> u64;
        let (number, (from, to)) = (self.node(), self.minutes());
        let (detail, pointer, of, is_counter): (_, _, Of, _) = match self.random.below(6) {
            0 => (
                "cpu",
                "/usage_percent",
                |now| now.host.cpu_total.expect("set").user,
                true,
            ),
            1 => (
                "cpu",
                "/loadavg/0",
                |now| (now.host.load_average.expect("set")[0] * 100.0).round() as u64,
                false,
            ),
            2 => (
                "memory",
                "/used_bytes",
                |now| {
                    let memory = now.host.memory.expect("set");
                    memory.total - memory.available.expect("set")
                },
                false,
            ),
            3 => (
                "disk",
                "/devices/1/write_bytes_per_second",
                |now| now.host.disks.as_ref().expect("set")[1].written_bytes,
                true,
            ),
            4 => (
                "network",
                "/interfaces/0/transmit_bytes_per_second",
                |now| now.host.interfaces.as_ref().expect("set")[0].transmit.bytes,
                true,
            ),
            _ => (
                "filesystems",
                "/filesystems/0/used_bytes",
                |now| {
                    let filesystem = &now.host.filesystems.as_ref().expect("set")[0];
                    filesystem.total - filesystem.free
                },
                false,
            ),
        };
        let has_quantiles = matches!(pointer, "/usage_percent" | "/used_bytes");
        let has_quantiles = has_quantiles && detail != "filesystems";
        let aggregate = self.aggregate(has_quantiles);
        let (scale, error) = match pointer {
            "/usage_percent" => (100.0 / TICKS as f64, 0.03),
            "/loadavg/0" => (0.01, 0.011),
            _ => (1.0, 2.0),
        };
        let node = &self.nodes[number];
        let mut seen: BTreeMap<i64, Vec<Seen>> = BTreeMap::new();
        for (second, before, now) in node.pairs(from, to) {
            let span = before.map(|before| seconds_between(before, now));
            let minute = seen.entry(second / 60 * 60).or_default();
            if !is_counter {
                minute.push(Seen::new(of(now) as f64 * scale, span));
            } else if let Some((before, span)) = before.zip(span) {
                let grown = (of(now) - of(before)) as f64 * scale;
                if pointer == "/usage_percent" && aggregate == "mean" {
                    // Of the ticks that were counted.
                    let ticks = |sample: &Sample| sample.host.cpu_total.expect("set").idle;
                    let all = grown + (ticks(now) - ticks(before)) as f64 * scale;
                    if all > 0.0 {
                        minute.push(Seen::new(grown * 100.0 / all, Some(all)));
                    }
                } else {
                    let most = if pointer == "/usage_percent" {
                        100.0
                    } else {
                        f64::INFINITY
                    };
                    minute.push(Seen::new((grown / span).min(most), Some(span)));
                }
            }
        }
        let figure = Figure {
            path: node.history(detail, from, to),
            pointer,
            seen,
            aggregate,
            error,
            is_whole: true,
        };
        self.by_minutes(figure).await;
    }
}
