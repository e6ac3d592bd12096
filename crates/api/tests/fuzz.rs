//! The fuzz targets of `fuzz/`, for some seconds each, without the toolchain that `cargo fuzz` wants: valid
//! input that is changed here and there. A failure prints the input.

use std::fmt::Write as _;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use nodestats_core::block::{Entry, Sealer};
use nodestats_core::frame::delta;
use nodestats_core::{Frame, fuzz};
use nodestats_testkit::Frames;
use nodestats_wire::Timestamp;

/// How long each target runs, in seconds, unless `NODESTATS_TEST_FUZZ_SECONDS` says so.
const SECONDS: u64 = 4;
/// One input takes milliseconds; the largest memory that any may take is some hundred MiB.
const PATIENCE: Duration = Duration::from_secs(30);
const MEMORY: u64 = 3 << 30;

/// One target at a time has all of the time and the memory.
static TURN: Mutex<()> = Mutex::new(());

struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        // Knuth's MMIX generator: the upper bits are good enough for places.
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005);
        self.0 = self.0.wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % limit.max(1)
    }

    /// An input that is nearly one of the seeds.
    fn change(&mut self, seeds: &[Vec<u8>]) -> Vec<u8> {
        let mut data = seeds[self.below(seeds.len())].clone();
        for _ in 0..=self.below(6) {
            let at = self.below(data.len());
            match self.below(7) {
                0 if !data.is_empty() => data[at] ^= 1 << self.below(8),
                1 if !data.is_empty() => data[at] = self.below(256) as u8,
                2 => data.truncate(at),
                3 => data.insert(at, self.below(256) as u8),
                4 if !data.is_empty() => drop(data.remove(at)),
                // A piece of another one.
                5 => {
                    let other = &seeds[self.below(seeds.len())];
                    let from = self.below(other.len());
                    let to = from + self.below(other.len() - from + 1);
                    let piece = other[from..to].iter().copied();
                    data.splice(at..at, piece);
                }
                // A length, as large as it can be.
                _ if data.len() >= 4 => {
                    let at = self.below(data.len() - 3);
                    data[at..at + 4].fill(0xff);
                }
                _ => {}
            }
        }
        data
    }
}

fn run(name: &str, seeds: &[Vec<u8>], target: fn(&[u8])) {
    let _turn = TURN
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    // More is an abort, and not a machine without memory.
    let limit = rustix::process::Rlimit {
        current: Some(MEMORY),
        maximum: Some(MEMORY),
    };
    rustix::process::setrlimit(rustix::process::Resource::As, limit).expect("a limit");
    let asked = std::env::var("NODESTATS_TEST_FUZZ_SECONDS");
    let seconds = asked.map_or(SECONDS, |seconds| seconds.parse().expect("seconds"));
    for seed in seeds {
        target(seed);
    }
    let begin = Instant::now();
    let mut random = Random(begin.elapsed().as_nanos() as u64 ^ 0x5eed);
    let mut inputs = 0_u64;
    while begin.elapsed() < Duration::from_secs(seconds) {
        let data = random.change(seeds);
        let started = Instant::now();
        let done = std::panic::catch_unwind(|| target(&data));
        assert!(done.is_ok(), "{name} panics at {}", hex(&data));
        assert!(
            started.elapsed() < PATIENCE,
            "{name} hangs at {}",
            hex(&data)
        );
        inputs += 1;
    }
    println!("{name}: {inputs} inputs");
    assert!(inputs > 100, "{name} has seen {inputs} inputs alone");
}

fn hex(data: &[u8]) -> String {
    let mut text = String::new();
    for byte in data {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

fn pushes() -> Vec<Vec<u8>> {
    let begin: Timestamp = "2026-03-01 13:00:00Z".parse().expect("a time");
    let mut plain = Frames::new(begin);
    let mut of_pod = Frames::new(begin).punctual().in_pod("a-pod", "a-container");
    (0..6)
        .map(|number| {
            let frames = if number % 2 == 0 {
                &mut plain
            } else {
                &mut of_pod
            };
            let mut body = frames.next_frame();
            if number > 3 {
                let key = body.clone();
                let next = frames.next_frame();
                let delta = delta::encode(&next, &key).expect("frames");
                body.extend(delta.expect("of one agent"));
                body.extend(next);
            }
            body
        })
        .collect()
}

#[test]
fn frames() {
    run("frames", &pushes(), fuzz::frames);
}

#[test]
fn blocks() {
    let mut seeds = Vec::new();
    for count in [1, 3, 6] {
        let mut sealer = Sealer::default();
        for push in pushes().iter().take(count) {
            let (frame, ..) = Frame::split_first(push).expect("a frame");
            sealer.add(&Entry {
                time: frame.time,
                id: frame.id,
                interval: frame.interval,
                sample: frame.sample().expect("a sample"),
            });
        }
        let time = "2026-03-01 14:00:00Z".parse().expect("a time");
        sealer.add_reading(time, r#"{"memory_usage_percent": 3}"#.to_owned());
        seeds.push(fuzz::of_parts(&sealer.finish().expect("a block")));
    }
    run("blocks", &seeds, fuzz::block);
}

#[test]
fn json_bodies() {
    let seeds = [
        r#"{"ip": "192.168.2.10", "hostname": "a", "uid": "x", "interval_seconds": 10}"#,
        r#"[{"time": "2026-03-01T13:00:00Z", "loadavg": [0.1, 0.2, 0.3], "cpu_usage_percent": [1, 2.5]}]"#,
        r#"{"cpu": {"cpus": [{"cpu": 0, "usage_percent": 1}]}, "processes": [{"pid": 1, "name": "init"}]}"#,
        r#"{"disk": {"devices": [{"device": "sda"}]}, "time": 1772370000.25, "memory": {"used_bytes": 5}}"#,
    ];
    let seeds = seeds.map(|seed| seed.as_bytes().to_vec());
    run("json_bodies", &seeds, nodestats_api::fuzz::json_body);
}

#[test]
fn query_strings() {
    let seeds = [
        "from=2026-03-01T13:00:00Z&to=2026-03-01%2014:00:00&step=60&limit=500",
        "at=1772370000.5&view=full&sort=cpu&limit=20",
        "kind=oom_kill&from=-1h&container=app",
        "step=1m30s&from=2026-03-01+13:00:00&to=now",
    ];
    let seeds = seeds.map(|seed| seed.as_bytes().to_vec());
    run("query_strings", &seeds, nodestats_api::fuzz::query_string);
}
