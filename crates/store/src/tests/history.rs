//! Any history of pushes, readings, sealing, retention and questions answers like a map in memory.

use std::collections::BTreeMap;
use std::time::Duration;

use nodestats_core::rollup::{Bucket, Figures, MINUTE, Part, Roller, Row, process};
use nodestats_core::sample::Host;
use nodestats_core::{SampleKey, Stored, Wanted};
use nodestats_testkit::Random;

use super::*;

/// Histories whose seed once failed, and so many others; `NODESTATS_TEST_HISTORIES` says how many else.
const FAILED: [u64; 0] = [];
const HISTORIES: u64 = 400;
/// Steps of each.
const STEPS: u64 = 30;
const HOUR: i64 = 3600;

/// What a sample says, by which it is made again.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Content {
    Frame(u64),
    Reading(f64),
}

struct History {
    store: Store,
    random: Random,
    node: u64,
    /// Of which life of the name its samples are.
    life: u64,
    /// The server's clock, in seconds.
    now: i64,
    /// How far the node's clock is ahead.
    offset: i64,
    sequence: u64,
    /// What is kept, of each life.
    kept: BTreeMap<u64, BTreeMap<SampleKey, Content>>,
    /// What is older is past the retention.
    horizon: i64,
}

impl History {
    fn uid_of(&self, life: u64) -> String {
        format!("{}-{life}", self.node)
    }

    fn frame(&mut self, time: i64) -> (NewSample, SampleKey, Content) {
        self.sequence += 1;
        self.frame_again(time, self.sequence)
    }

    fn frame_again(&self, time: i64, sequence: u64) -> (NewSample, SampleKey, Content) {
        let id = FrameId {
            agent_start: Uuid::from_u128(u128::from(self.node % 3 + sequence / 100)),
            sequence,
        };
        let sample = made::sample(self.node, sequence);
        let bytes = frame::encode(at(time), id, Some(Duration::from_secs(10)), &sample);
        let new = NewSample::from_frame(at(time), id, &bytes, sample.values());
        let key = SampleKey {
            time: at(time),
            push: Some(id),
        };
        (new, key, Content::Frame(sequence))
    }

    async fn append(&mut self, samples: Vec<(NewSample, SampleKey, Content)>) {
        let heard = Seen {
            last_sample: at(self.now + self.offset),
            fresh_at: at(self.now),
            clock_offset_micros: Some(self.offset * 1_000_000),
        };
        let kept = self.kept.entry(self.life).or_default();
        let mut new = Vec::new();
        for (sample, key, content) in samples {
            if key.time >= at(self.horizon) {
                kept.insert(key, content);
                new.push(sample);
            }
        }
        let node = of(&self.uid_of(self.life));
        let appended = self.store.append(&node, new, heard, at(self.now));
        appended.await.expect("kept");
    }

    /// A time of the last hours, or a little of the future.
    fn any_time(&mut self) -> i64 {
        let (from, to) = (self.now - 4 * HOUR, self.now + 300);
        self.random.between(from, to)
    }

    async fn step(&mut self) {
        match self.random.below(16) {
            // Time passes as samples come.
            0..=3 => {
                let count = self.random.between(1, 20);
                let interval = self.random.between(1, 30) * 10;
                let mut samples = Vec::new();
                for _ in 0..count {
                    self.now += interval;
                    samples.push(self.frame(self.now + self.offset));
                }
                self.append(samples).await;
            }
            // What waited for the server comes late.
            4 | 5 => {
                let mut time = self.any_time();
                let mut samples = Vec::new();
                for _ in 0..self.random.between(1, 10) {
                    time += 30;
                    samples.push(self.frame(time));
                }
                self.append(samples).await;
            }
            6 => {
                let time = self.any_time();
                let memory = self.random.below(100) as f64;
                let key = SampleKey {
                    time: at(time),
                    push: None,
                };
                let sample = (reading(time, memory), key, Content::Reading(memory));
                self.append(vec![sample]).await;
            }
            // Something is sent or put again.
            7 | 8 => {
                let kept = &self.kept[&self.life];
                let nth = self.random.below(kept.len().max(1) as u64) as usize;
                let Some((key, content)) = kept.iter().nth(nth) else {
                    return;
                };
                let time = key.time.second();
                let again = match *content {
                    Content::Frame(sequence) => self.frame_again(time, sequence),
                    Content::Reading(memory) => {
                        let content = Content::Reading(memory + 0.5);
                        (reading(time, memory + 0.5), *key, content)
                    }
                };
                self.append(vec![again]).await;
            }
            9 => self.offset = self.random.between(-2 * HOUR, 2 * HOUR),
            10 => self.now += self.random.between(0, 2 * HOUR),
            // Another host has the name from here on.
            11 if self.random.below(4) == 0 => {
                self.life += 1;
                self.kept.entry(self.life).or_default();
            }
            12 if self.random.below(3) == 0 => {
                let horizon = self.random.between(self.now - 6 * HOUR, self.now - HOUR);
                self.horizon = self.horizon.max(horizon);
                for (life, kept) in &mut self.kept {
                    *kept = kept.split_off(&SampleKey {
                        time: at(self.horizon),
                        push: None,
                    });
                    let uid = format!("{}-{life}", self.node);
                    let deleted = self.store.delete_before(&uid, at(self.horizon));
                    deleted.await.expect("deleted");
                }
            }
            12..=14 => self.seal().await,
            _ => self.ask().await,
        }
    }

    async fn seal(&self) {
        let now = at(self.now);
        assert!(self.store.claim(now).await.expect("asked"));
        let settled = now.plus_micros(self.offset * 1_000_000 - 120_000_000);
        for life in self.kept.keys() {
            let (uid, clock) = (self.uid_of(*life), || now);
            let sealed = self.store.seal_node(&uid, settled, &clock);
            sealed.await.expect("sealed");
        }
    }

    async fn ask(&mut self) {
        let life = self.random.below(self.life + 1);
        let uid = self.uid_of(life);
        let (a, b) = (self.any_time(), self.any_time() + 2 * HOUR);
        let everything = self.random.below(3) == 0;
        let from = if everything { i64::MIN } else { a.min(b) };
        let range = (
            at(from.max(self.horizon)),
            if everything {
                Timestamp::MAX
            } else {
                at(a.max(b))
            },
        );
        let order = [Order::Ascending, Order::Descending][self.random.below(2) as usize];
        let wanted = [
            Wanted::Host,
            Wanted::Process(20),
            Wanted::Processes,
            Wanted::All,
            Wanted::Cpu,
            Wanted::Process(0),
        ][self.random.below(6) as usize];
        let kept = &self.kept[&life];
        let kept: Vec<(SampleKey, Content)> = kept
            .iter()
            .filter(|(key, _)| (range.0..=range.1).contains(&key.time))
            .map(|(key, content)| (*key, *content))
            .collect();
        // A few pages at least, and not hundreds.
        let page = 1 + kept.len() / (1 + self.random.below(5) as usize);
        let mut walk = self.store.walk(&uid, range, order, wanted);
        let mut read = Vec::new();
        loop {
            let page = walk.page(page).await.expect("read");
            if page.is_empty() {
                break;
            }
            read.extend(page);
        }
        if order == Order::Descending {
            read.reverse();
        }
        let keys = |read: &[Stored]| read.iter().map(Stored::key).collect::<Vec<_>>();
        let expected: Vec<SampleKey> = kept.iter().map(|(key, _)| *key).collect();
        assert_eq!(keys(&read), expected, "{range:?} {order:?} {wanted:?}");
        for (sample, (_, content)) in read.iter().zip(&kept) {
            self.check(sample, *content, wanted);
        }
        let n = self.random.below(kept.len() as u64 + 2) as usize;
        let nth = self.store.nth_time(&uid, range, n).await.expect("read");
        assert_eq!(nth, kept.get(n).map(|(key, _)| key.time), "number {n}");
        let newest = self.store.newest(&uid).await.expect("read");
        let last = self.kept[&life].last_key_value().map(|(key, _)| key.time);
        if last.is_some() {
            assert_eq!(newest, last);
        }
    }

    /// What is rolled up of the hours that are sealed is what follows from the samples that are kept, whatever
    /// way they came.
    async fn check_rollups(&self) {
        for (life, kept) in &self.kept {
            let uid = self.uid_of(*life);
            let frames = kept.iter().filter_map(|(key, content)| match content {
                Content::Frame(number) => Some((key.time, made::sample(self.node, *number))),
                Content::Reading(_) => None,
            });
            let frames: Vec<(Timestamp, Sample)> = frames.collect();
            let mut roller = Roller::new(MINUTE);
            for (time, sample) in &frames {
                roller.add(*time, sample.clone());
            }
            let all = roller.all();
            let settled = at(self.now + self.offset - 120).floor_to(HOUR * 1_000_000);
            let sealed = all.iter().filter(|bucket| bucket.begin < settled);
            let sealed: Vec<&Bucket> = sealed.collect();
            let range = (Timestamp::MIN, settled.plus_micros(-1));
            for part in Part::ALL {
                let figures = Figures::All(part);
                let read = self.store.buckets(&uid, (Level::Minute, figures), range);
                let read = read.await.expect("read");
                let begins = |bucket: &Bucket| bucket.begin;
                assert_eq!(
                    read.iter().map(begins).collect::<Vec<_>>(),
                    sealed.iter().map(|bucket| bucket.begin).collect::<Vec<_>>(),
                );
                for (read, made) in read.iter().zip(&sealed) {
                    assert_eq!(
                        (read.samples, read.covered / 1000),
                        (made.samples, made.covered / 1000)
                    );
                    match part {
                        Part::Hosts => assert_eq!(in_millis(&read.hosts), in_millis(&made.hosts)),
                        Part::Groups => {
                            assert_eq!(in_millis(&read.groups), in_millis(&made.groups));
                        }
                        // Those that are not kept are together: what they used is.
                        Part::Processes => assert_eq!(ticks(read), ticks(made)),
                    }
                }
            }
            let figures = Figures::All(Part::Processes);
            let hours = self.store.buckets(&uid, (Level::Hour, figures), range);
            let hours = hours.await.expect("read");
            let of_hours: u64 = hours.iter().map(ticks).sum();
            assert_eq!(
                of_hours,
                sealed.iter().map(|bucket| ticks(bucket)).sum::<u64>()
            );
        }
    }

    fn check(&self, sample: &Stored, content: Content, wanted: Wanted) {
        match (sample, content) {
            (Stored::Counters(counters), Content::Frame(number)) => {
                assert_eq!(counters.interval, Some(Duration::from_secs(10)));
                let read = counters.sample(wanted).expect("readable");
                let made = made::sample(self.node, number);
                let clock = |host: &Host| {
                    let boot = (host.boot_id.clone(), host.boot_time_seconds);
                    let memory = host.memory.map(|memory| memory.total);
                    (boot, host.uptime_micros, host.ticks_per_second, memory)
                };
                assert_eq!(clock(&read.host), clock(&made.host));
                if wanted != Wanted::Process(20) {
                    assert_eq!(read.host.cpu_total, made.host.cpu_total);
                    assert_eq!(read.host.cpus, made.host.cpus);
                    assert_eq!(read.host.load_average, made.host.load_average);
                    if wanted != Wanted::Cpu {
                        assert_eq!(read.host, made.host);
                    }
                }
                match wanted {
                    Wanted::Cpu | Wanted::Host => {}
                    Wanted::Process(pid) => {
                        let of_pid = made.processes.into_iter();
                        let of_pid: Vec<_> = of_pid.filter(|one| one.pid == pid).collect();
                        assert_eq!(read.processes, of_pid);
                    }
                    Wanted::Processes => assert_eq!(read.processes, made.processes),
                    Wanted::All => assert_eq!(read, made),
                }
            }
            (Stored::Gauges(gauges), Content::Reading(memory)) => {
                let reading = gauges.reading().expect("readable");
                assert_eq!(reading.memory_usage_percent, Some(memory));
            }
            (other, content) => panic!("{content:?} was read as {other:?}"),
        }
    }
}

/// Rows as they are kept: lengths of time to a millisecond.
fn in_millis<T: Clone>(rows: &[(T, Row)]) -> Vec<(T, Row)> {
    let mut rows = rows.to_vec();
    for (_, row) in &mut rows {
        row.covered -= row.covered % 1000;
    }
    rows
}

/// CPU time of all processes.
fn ticks(bucket: &Bucket) -> u64 {
    let rows = bucket.processes.iter().map(|(_, row)| row);
    let flows = rows.chain([&bucket.others]);
    let flows = flows.filter_map(|row| *row.flows.get(process::CPU)?);
    flows.map(|flow| flow.total).sum()
}

async fn history(store: Store, seed: u64) {
    let mut history = History {
        store,
        random: Random::new(seed),
        node: seed,
        life: 0,
        now: 1_700_000_000 + (seed % 3600) as i64,
        offset: 0,
        sequence: 0,
        kept: BTreeMap::from([(0, BTreeMap::new())]),
        horizon: 0,
    };
    for _ in 0..STEPS {
        history.step().await;
    }
    history.ask().await;
    history.seal().await;
    history.ask().await;
    if history.horizon == 0 {
        history.check_rollups().await;
    }
    for life in 0..=history.life {
        let uid = history.uid_of(life);
        history.store.purge(&uid).await.expect("purged");
        assert_eq!(count(&history.store, &uid).await, 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_history_answers_like_a_map_in_memory() {
    let asked = std::env::var(ON_SERVERS).or_else(|_| std::env::var("NODESTATS_TEST_HISTORIES"));
    let histories = asked.map_or(HISTORIES, |count| count.parse().expect("a number"));
    let seeds: Vec<u64> = FAILED.into_iter().chain(0..histories).collect();
    // One for each processor, beside each other: of each database one seals.
    let stores = [fresh().await, fresh().await];
    for pair in seeds.chunks(stores.len()) {
        let begin =
            |(seed, store): (&u64, &Store)| (*seed, tokio::spawn(history(store.clone(), *seed)));
        let both: Vec<_> = pair.iter().zip(&stores).map(begin).collect();
        for (seed, history) in both {
            let done = history.await;
            assert!(done.is_ok(), "the history of seed {seed} failed: {done:?}");
        }
    }
}
