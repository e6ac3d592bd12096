//! Tables of processes, and what one of them did.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::History;
use super::made::{TICKS, asked, at, cpu_percent, growth, read_rate, seconds_between};
use super::minutes::{Figure, Seen};

impl History {
    pub(crate) async fn table_at(&mut self) {
        let (number, second) = (self.node(), self.second());
        let node = &self.nodes[number];
        let path = format!("/nodes/{}/proc?view=full&at={}", node.uid, asked(second));
        let answer = self.get(&path).await;
        let Some((before, time, now)) = node.last(second) else {
            assert_eq!(answer, None, "{}: {path}", self.stage);
            return;
        };
        let answer = answer.unwrap_or_else(|| panic!("{}: {path}", self.stage));
        assert_eq!(answer["time"], json!(at(time)), "{}: {path}", self.stage);
        let rows = answer["processes"].as_array().expect("rows").iter();
        let rows: Vec<&Value> = rows.filter(|row| row["pid"] != 0).collect();
        assert_eq!(rows.len(), now.processes.len(), "{}: {path}", self.stage);
        for (row, process) in rows.into_iter().zip(&now.processes) {
            let expected = json!([
                process.pid,
                process.name,
                process.resident_bytes,
                cpu_percent(before, now, process),
                read_rate(before, now, process),
            ]);
            let told = json!([
                row["pid"],
                row["name"],
                row["rss_bytes"],
                row["cpu_percent"],
                row["read_bytes_per_second"],
            ]);
            assert_eq!(told, expected, "{}: {path}", self.stage);
        }
    }

    pub(crate) async fn one_process(&mut self) {
        let (number, (from, to)) = (self.node(), self.span());
        let pid = 10 + self.random.below(20) as u32;
        let node = &self.nodes[number];
        let path = node.history(&format!("proc/{pid}"), from, to);
        let answer = self.get(&path).await.unwrap_or_else(|| json!({}));
        let told = Self::entries(&answer, "rss_bytes");
        let told: Vec<Value> = told
            .into_iter()
            .map(|(key, row)| json!([key, row["name"], row["rss_bytes"], row["cpu_percent"]]))
            .collect();
        let mut expected = Vec::new();
        for (second, before, now) in node.pairs(from, to) {
            if let Some(process) = now.processes.iter().find(|process| process.pid == pid) {
                let cpu = cpu_percent(before, now, process);
                let key = at(second).to_key();
                expected.push(json!([key, process.name, process.resident_bytes, cpu]));
            }
        }
        assert_eq!(told, expected, "{}: {path}", self.stage);
    }

    /// A life of a process by minutes. Rollups keep those that mattered in an hour, until they end.
    pub(crate) async fn process_by_minutes(&mut self) {
        let (number, (from, to)) = (self.node(), self.minutes());
        let node = &self.nodes[number];
        let lives: Vec<(u32, u64)> = node
            .pairs(from, to)
            .flat_map(|(.., now)| now.processes.iter())
            .map(|process| (process.pid, process.start_ticks))
            .collect();
        if lives.is_empty() {
            return;
        }
        let (pid, start_ticks) = lives[self.random.below(lives.len() as u64) as usize];
        // A start is told to a second, since the clock is: two of one pid within one are not told apart.
        let is_too_near = |other: &&(u32, u64)| {
            other.0 == pid && other.1 != start_ticks && other.1.abs_diff(start_ticks) <= TICKS
        };
        if lives.iter().any(|other| is_too_near(&other)) {
            return;
        }
        let (pointer, of_counter) = match self.random.below(2) {
            0 => ("/rss_bytes", false),
            _ => ("/cpu_percent", true),
        };
        let aggregate = self.aggregate(false);
        let node = &self.nodes[number];
        let mut seen: BTreeMap<i64, Vec<Seen>> = BTreeMap::new();
        let mut started = None;
        for (second, before, now) in node.pairs(from, to) {
            let same = |process: &&nodestats_core::sample::Process| {
                (process.pid, process.start_ticks) == (pid, start_ticks)
            };
            let Some(process) = now.processes.iter().find(same) else {
                continue;
            };
            let boot = now.host.boot_time_seconds.expect("set");
            started = Some(boot + start_ticks as f64 / TICKS as f64);
            let span = before.map(|before| seconds_between(before, now));
            let one = if of_counter {
                let ticks = growth(before, process, |process| process.user_ticks);
                ticks.zip(span).map(|(ticks, span)| {
                    Seen::new(ticks as f64 / span * 100.0 / TICKS as f64, Some(span))
                })
            } else {
                Some(Seen::new(process.resident_bytes as f64, span))
            };
            seen.entry(second / 60 * 60).or_default().extend(one);
        }
        let started = nodestats_wire::Timestamp::from_seconds(started.expect("it was seen"));
        let started = started.expect("a time").to_string().replace('+', "%2B");
        let path = node.history(&format!("proc/{pid}"), from, to);
        let figure = Figure {
            path: format!("{path}&started_at={started}"),
            pointer,
            seen,
            aggregate,
            error: if of_counter { 0.03 } else { 2.0 },
            is_whole: false,
        };
        self.by_minutes(figure).await;
    }
}
