//! Any question about any history is answered as a map in memory answers it: at once, when a part is sealed, and
//! when all is. Histories are made of a seed; `NODESTATS_TEST_HISTORIES` says how many of them.

mod server;

use std::collections::BTreeMap;
use std::time::Duration;

use nodestats_core::sample::{CpuTimes, Host, Memory, Process, Sample};
use nodestats_core::{FrameId, frame};
use nodestats_testkit::Random;
use nodestats_wire::{Timestamp, routes};
use serde_json::{Value, json};
use server::Server;
use uuid::Uuid;

/// Histories whose seed once failed, and so many others.
const FAILED: [u64; 0] = [];
const HISTORIES: u64 = 16;
/// Questions of each kind at each stage of a history.
const QUESTIONS: usize = 6;
/// Samples of a node, 10 to 90 s after one another.
const SAMPLES: u64 = 150;
/// All begin in the middle of an hour.
const BEGIN: i64 = 1_772_368_200;
const TICKS: u64 = 100;
/// Whenever the tests run, their samples are not too old to be taken.
const AGES: u64 = 3_000_000_000;

/// A node, and all its samples by their second.
struct Node {
    uid: String,
    name: String,
    samples: BTreeMap<i64, Sample>,
}

/// How many rows of a ranking are compared, and by what they are ranked.
type Ranking = (usize, &'static str);

impl Node {
    fn new(number: u64, random: &mut Random) -> Self {
        let mut node = Self {
            uid: format!("uid-{number}"),
            name: format!("node-{number}"),
            samples: BTreeMap::new(),
        };
        let mut second = BEGIN + random.below(60) as i64;
        let mut living: Vec<Process> = Vec::new();
        let mut times = CpuTimes::default();
        for _ in 0..SAMPLES {
            // Now and then it is away for longer than a minute, or than what counts as there.
            let away = match random.below(30) {
                0 => 700,
                1..4 => 90,
                _ => 0,
            };
            let later = 10 + random.below(30) as i64 + away;
            second += later;
            living.retain(|_| random.below(12) > 0);
            for process in &mut living {
                // Most do nothing.
                if random.below(3) == 0 {
                    process.user_ticks += random.below(later as u64 * TICKS / 2);
                    process.resident_bytes = random.below(1 << 18) << 12;
                    let bytes = process.read_bytes.unwrap_or_default();
                    process.read_bytes = Some(bytes + random.below(1 << 30));
                }
            }
            while living.len() < 3 + random.below(5) as usize {
                living.push(born(random, second, later, &living));
            }
            living.sort_by_key(|process| process.pid);
            times.user += random.below(later as u64 * TICKS);
            times.idle += random.below(later as u64 * TICKS);
            let memory = Memory {
                total: 1 << 34,
                available: Some(random.below(1 << 34)),
                ..Memory::default()
            };
            let host = Host {
                boot_id: "a-boot".to_owned(),
                uptime_micros: (second - BEGIN + 1000) as u64 * 1_000_000,
                ticks_per_second: TICKS as u32,
                boot_time_seconds: Some((BEGIN - 1000) as f64),
                cpu_total: Some(times),
                memory: Some(memory),
                ..Host::default()
            };
            let sample = Sample {
                host,
                processes: living.clone(),
                ..Sample::default()
            };
            node.samples.insert(second, sample);
        }
        node
    }

    fn frames<'a>(&self, seconds: impl Iterator<Item = &'a i64>) -> Vec<u8> {
        let frame = |second: &i64| {
            let id = FrameId {
                agent_start: Uuid::from_u128(1),
                sequence: *second as u64,
            };
            let interval = Some(Duration::from_secs(20));
            frame::encode(at(*second), id, interval, &self.samples[second])
        };
        seconds.flat_map(frame).collect()
    }

    /// How a detail of a span is asked for.
    fn history(&self, detail: &str, from: i64, to: i64) -> String {
        let (from, to) = (asked(from), asked(to));
        format!("/nodes/{}/{detail}?from={from}&to={to}", self.uid)
    }

    /// The last sample at or before a second, and the one before that.
    fn last(&self, second: i64) -> Option<(Option<&Sample>, i64, &Sample)> {
        let mut before = self.samples.range(..=second).rev();
        let (time, sample) = before.next()?;
        Some((before.next().map(|(_, sample)| sample), *time, sample))
    }

    /// Each sample of a span, with the one before it.
    fn pairs(&self, from: i64, to: i64) -> impl Iterator<Item = (i64, Option<&Sample>, &Sample)> {
        let within = self.samples.range(from..=to);
        within.map(|(second, sample)| {
            let before = self.samples.range(..*second).next_back();
            (*second, before.map(|(_, before)| before), sample)
        })
    }
}

/// A process that began since the sample before; pids come again.
fn born(random: &mut Random, second: i64, later: i64, living: &[Process]) -> Process {
    let is_free = |pid: &u32| living.iter().all(|other| other.pid != *pid);
    let mut pids = std::iter::repeat_with(|| 10 + random.below(20) as u32);
    let pid = pids.find(is_free).expect("few live");
    let uptime = (second - BEGIN + 1000) as u64 * TICKS;
    let start_ticks = uptime - random.below(later as u64 * TICKS - 1);
    Process {
        pid,
        ppid: 1,
        start_ticks,
        name: format!("work-{}", random.below(4)).into(),
        state: 'S',
        user: Some(format!("user-{}", pid % 2).into()),
        user_ticks: random.below(200),
        resident_bytes: random.below(1 << 18) << 12,
        read_bytes: Some(random.below(1 << 20)),
        threads: 1,
        ..Process::default()
    }
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_micros(second * 1_000_000).expect("a time")
}

/// As it is asked for.
fn asked(second: i64) -> String {
    at(second).to_string().replace('+', "%2B")
}

fn round(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

fn seconds_between(before: &Sample, now: &Sample) -> f64 {
    (now.host.uptime_micros - before.host.uptime_micros) as f64 / 1e6
}

/// By how much a counter of a process grew; `None` where that cannot be known.
fn growth(before: Option<&Sample>, process: &Process, of: fn(&Process) -> u64) -> Option<u64> {
    let before = before?;
    let same =
        |other: &&Process| (other.pid, other.start_ticks) == (process.pid, process.start_ticks);
    match before.processes.iter().find(same) {
        Some(known) => Some(of(process) - of(known)),
        // All of them began since.
        None => Some(of(process)),
    }
}

fn cpu_percent(before: Option<&Sample>, now: &Sample, process: &Process) -> Option<f64> {
    let ticks = growth(before, process, |process| process.user_ticks)?;
    let rate = ticks as f64 / seconds_between(before?, now);
    Some(round(rate * 100.0 / TICKS as f64))
}

fn read_rate(before: Option<&Sample>, now: &Sample, process: &Process) -> Option<f64> {
    let bytes = growth(before, process, |process| {
        process.read_bytes.unwrap_or_default()
    })?;
    Some(round(bytes as f64 / seconds_between(before?, now)))
}

fn is_near(a: f64, b: f64, error: f64) -> bool {
    (a - b).abs() <= error
}

/// A server, and what it has been told.
struct History {
    server: Server,
    nodes: Vec<Node>,
    random: Random,
    /// What it is, for whoever reads of a failure.
    stage: &'static str,
}

impl History {
    async fn new(seed: u64) -> Self {
        let server = Server::new().await;
        let mut random = Random::new(seed);
        let count = 1 + random.below(4);
        let nodes: Vec<Node> = (0..count)
            .map(|number| Node::new(number, &mut random))
            .collect();
        for (number, node) in nodes.iter().enumerate() {
            let registration = json!({
                "hostname": node.name, "ip": format!("192.168.2.{}", 10 + number),
                "interval_seconds": 20, "retention_seconds": AGES, "deletion_policy": "retain",
            });
            let path = routes::registration(&node.uid);
            assert_eq!(server.put(&path, &registration).await.status, 204);
        }
        Self {
            server,
            nodes,
            random,
            stage: "",
        }
    }

    async fn push(&self, node: &Node, seconds: &[i64]) {
        for some in seconds.chunks(40) {
            let body = node.frames(some.iter());
            let answer = self.server.put_frames(&node.uid, body).await;
            assert_eq!(answer.status, 204, "{}", node.uid);
        }
    }

    async fn seal(&self, until: i64) {
        self.server.store.seal(at(until)).await.expect("sealed");
    }

    async fn get(&self, path: &str) -> Option<Value> {
        let answer = self.server.get(path).await;
        match answer.status {
            200 => Some(answer.json()),
            404 => None,
            status => panic!("{path}: {status}"),
        }
    }

    fn node(&mut self) -> usize {
        self.random.below(self.nodes.len() as u64) as usize
    }

    /// A second of the history, or a little before or behind it.
    fn second(&mut self) -> i64 {
        BEGIN - 60 + self.random.below(5500) as i64
    }

    fn span(&mut self) -> (i64, i64) {
        let from = self.second();
        (from, from + self.random.below(4000) as i64)
    }

    async fn ask(&mut self, stage: &'static str, is_settled: bool) {
        self.stage = stage;
        for _ in 0..QUESTIONS {
            self.table_at().await;
            self.one_process().await;
            self.cpu().await;
            self.top_at().await;
            self.top_within().await;
            // What comes late is in rollups once it is sealed.
            if is_settled {
                self.memory_by_minutes().await;
                self.top_by_hours().await;
            }
        }
    }

    async fn table_at(&mut self) {
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

    /// Entries that have a figure, by time.
    fn entries<'a>(answer: &'a Value, figure: &str) -> Vec<(&'a str, &'a Value)> {
        let all = answer.as_object().expect("entries").iter();
        let has = all.filter(|(_, entry)| !entry[figure].is_null());
        has.map(|(key, entry)| (key.as_str(), entry)).collect()
    }

    async fn one_process(&mut self) {
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

    async fn cpu(&mut self) {
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

    async fn memory_by_minutes(&mut self) {
        let (number, (from, to)) = (self.node(), self.span());
        let (from, to) = (from / 60 * 60, to / 60 * 60 + 59);
        let aggregate = ["mean", "max", "min", "last"][self.random.below(4) as usize];
        let node = &self.nodes[number];
        let path = node.history("memory", from, to) + "&step=60&aggregate=" + aggregate;
        let answer = self.get(&path).await.unwrap_or_else(|| json!({}));
        let told = Self::entries(&answer, "used_bytes");
        let mut minutes: BTreeMap<i64, Vec<(f64, f64)>> = BTreeMap::new();
        for (second, before, now) in node.pairs(from, to) {
            let memory = now.host.memory.expect("set");
            let used = (memory.total - memory.available.expect("set")) as f64;
            // What was seen and not watched counts next to nothing.
            let weight = before.map_or(1e-6, |before| seconds_between(before, now));
            minutes
                .entry(second / 60 * 60)
                .or_default()
                .push((used, weight));
        }
        let keys = |times: Vec<i64>| -> Vec<String> {
            times
                .into_iter()
                .map(|minute| at(minute).to_key())
                .collect()
        };
        let told_keys: Vec<&str> = told.iter().map(|(key, _)| *key).collect();
        let expected_keys = keys(minutes.keys().copied().collect());
        assert_eq!(told_keys, expected_keys, "{}: {path}", self.stage);
        for ((key, entry), (minute, all)) in told.into_iter().zip(minutes) {
            assert_eq!(key, at(minute).to_key(), "{}: {path}", self.stage);
            let mut used = all.iter().map(|(used, _)| *used);
            let expected = match aggregate {
                "max" => used.fold(0.0, f64::max),
                "min" => used.fold(f64::INFINITY, f64::min),
                "last" => used.next_back().expect("one"),
                _ => {
                    let sum: f64 = all.iter().map(|(used, weight)| used * weight).sum();
                    sum / all.iter().map(|(_, weight)| weight).sum::<f64>()
                }
            };
            let told = entry["used_bytes"].as_f64().expect("a number");
            assert!(
                is_near(told, expected, 2.0),
                "{}: {path}: {key}: {told} {expected}",
                self.stage
            );
        }
    }

    fn ranking(&mut self) -> Ranking {
        let sort = ["cpu", "memory", "io"][self.random.below(3) as usize];
        (1 + self.random.below(12) as usize, sort)
    }

    async fn top_at(&mut self) {
        let (second, (limit, sort)) = (self.second(), self.ranking());
        let path = format!(
            "/top?by=process&sort={sort}&limit={limit}&at={}",
            asked(second)
        );
        let answer = self.get(&path).await.expect("an answer");
        let mut expected = Vec::new();
        for node in &self.nodes {
            // Who was not heard of for five minutes is not there.
            let mut within = node.samples.range(second - 300..=second).rev();
            let Some((_, now)) = within.next() else {
                continue;
            };
            let before = within.next().map(|(_, before)| before);
            for process in &now.processes {
                let value = match sort {
                    "cpu" => cpu_percent(before, now, process).unwrap_or_default(),
                    "memory" => process.resident_bytes as f64,
                    _ => read_rate(before, now, process).unwrap_or_default(),
                };
                expected.push((value, &node.name, &process.name, process.pid));
            }
        }
        let key = |row: &(f64, &String, &std::sync::Arc<str>, u32)| {
            (row.1.clone(), row.2.to_string(), row.3)
        };
        expected.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| key(a).cmp(&key(b))));
        expected.truncate(limit);
        let expected: Vec<Value> = expected
            .into_iter()
            .map(|(value, node, name, pid)| json!([value, node, name, pid]))
            .collect();
        let figure = match sort {
            "cpu" => "cpu_percent",
            "memory" => "memory_bytes",
            _ => "read_bytes_per_second",
        };
        let value = |row: &Value| row[figure].as_f64().unwrap_or_default();
        let rows = answer["rows"].as_array().into_iter().flatten();
        let told: Vec<Value> = rows
            .map(|row| json!([value(row), row["node"], row["name"], row["pid"]]))
            .collect();
        assert_eq!(told, expected, "{}: {path}", self.stage);
    }

    /// CPU seconds of all processes in a span, by what they have in common.
    fn used(&self, (from, to): (i64, i64), key: fn(&Process) -> String) -> BTreeMap<String, f64> {
        let mut used: BTreeMap<String, f64> = BTreeMap::new();
        for node in &self.nodes {
            for (_, before, now) in node.pairs(from, to) {
                for process in &now.processes {
                    let ticks = growth(before, process, |process| process.user_ticks);
                    let of = used.entry(key(process)).or_default();
                    *of += ticks.unwrap_or_default() as f64 / TICKS as f64;
                }
            }
        }
        used
    }

    async fn top_within(&mut self) {
        let (from, to) = self.span();
        let (by, key): (_, fn(&Process) -> String) = match self.random.below(2) {
            0 => ("name", |process| process.name.to_string()),
            _ => ("user", |process| {
                process.user.as_deref().unwrap_or_default().to_owned()
            }),
        };
        let path = format!("/top?by={by}&from={}&to={}", asked(from), asked(to));
        let answer = self.get(&path).await.expect("an answer");
        let rows = answer["rows"].as_array().into_iter().flatten();
        let told = rows.map(|row| {
            let seconds = row["cpu_seconds"].as_f64().unwrap_or_default();
            (row[by].as_str().expect("a name").to_owned(), seconds)
        });
        let told: BTreeMap<String, f64> = told.collect();
        let expected = self.used((from, to), key);
        assert_eq!(
            told.keys().collect::<Vec<_>>(),
            expected.keys().collect::<Vec<_>>(),
            "{}: {path}",
            self.stage
        );
        for (name, seconds) in &told {
            assert!(
                is_near(*seconds, expected[name], 0.02),
                "{}: {path}: {name}: {seconds} {}",
                self.stage,
                expected[name]
            );
        }
    }

    /// Of rollups, which keep those that matter apart and all others together: sums are true.
    async fn top_by_hours(&mut self) {
        let from = self.second() / 3600 * 3600;
        let to = from + 3600 * (1 + self.random.below(2) as i64) - 1;
        let path = format!(
            "/top?by=name&limit=100&step=1h&from={}&to={}",
            asked(from),
            asked(to)
        );
        let answer = self.get(&path).await.expect("an answer");
        for hour in (from..to).step_by(3600) {
            let expected: f64 = self
                .used((hour, hour + 3599), |_| String::new())
                .values()
                .sum();
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

async fn run(seed: u64) {
    println!("history {seed}");
    let mut history = History::new(seed).await;
    let end = BEGIN + 3 * 3600 + 24 * 3600;
    // Some come late, and some later than they were sealed.
    let mut late: Vec<Vec<i64>> = Vec::new();
    for number in 0..history.nodes.len() {
        let seconds: Vec<i64> = history.nodes[number].samples.keys().copied().collect();
        let (mut now, mut later) = (Vec::new(), Vec::new());
        let mut is_late = false;
        for second in seconds {
            if history.random.below(25) == 0 {
                is_late = !is_late && history.random.below(2) == 0;
            }
            if is_late { &mut later } else { &mut now }.push(second);
        }
        history.push(&history.nodes[number], &now).await;
        late.push(later);
    }
    // One hour or all of them are sealed without what is late.
    let is_one_sealed = history.random.below(2) == 0;
    let are_all_sealed = history.random.below(4) == 0;
    if is_one_sealed {
        history.seal(BEGIN / 3600 * 3600 + 3600 + 180).await;
    }
    if are_all_sealed {
        history.seal(end).await;
    }
    for (number, later) in late.iter().enumerate() {
        history.push(&history.nodes[number], later).await;
    }
    let is_settled = !is_one_sealed && !are_all_sealed;
    history.ask("as it was pushed", is_settled).await;
    history.seal(BEGIN / 3600 * 3600 + 3600 + 180).await;
    history.ask("with an hour sealed", !are_all_sealed).await;
    history.seal(end).await;
    history.ask("sealed", true).await;
    history.server.store.close().await;
}

#[tokio::test]
async fn any_question_about_any_history_is_answered_as_a_map_answers_it() {
    let count = std::env::var("NODESTATS_TEST_HISTORIES");
    let count = count.map_or(HISTORIES, |count| count.parse().expect("a number"));
    let seeds = FAILED.into_iter().chain(1..=count);
    for seed in seeds {
        run(seed).await;
    }
}
