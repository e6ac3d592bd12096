//! A month in fast motion on a real database: does deleted history give its disk back, and does memory
//! stay where it is? Nodes of three retentions (a day, four days, two years) have a block an hour, which
//! does not compress. Prints a line of each day, and one line of JSON.

use std::path::Path;
use std::time::{Duration, Instant};

use nodestats_core::{Life, NodeIdentity, Timestamp, life};
use nodestats_runtime::metrics::Registry;
use nodestats_store::{Location, MemoryBudget, NewSample, Options, Seen, Store};
use nodestats_wire::v1::{ClusterRegistration, DeletionPolicy, Process, Reading};
use serde_json::json;

const DAYS: i64 = 30;
const HOUR: i64 = 3_600_000_000;
const DAY: i64 = 24 * HOUR;
/// Retention where a node has none of its own.
const RETENTION_DAYS: u64 = 4;
/// Upkeep is a minute's work; of a month in fast motion each sixth hour is enough to delete in.
const RETAINED_EACH: i64 = 6;

/// Nodes that keep their history for so many days, and bytes of each of their hours.
const KINDS: [(usize, u64, usize); 3] = [
    (100, RETENTION_DAYS, 30_000),
    (60, 1, 30_000),
    (40, 730, 6000),
];

/// Numbers that nothing makes smaller (`SplitMix64`).
struct Noise(u64);

impl Noise {
    fn text(&mut self, bytes: usize) -> String {
        // Six bits a letter: of what is compressed well three quarters are left.
        let letters = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        let mut letter = || {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            char::from(letters[(mixed >> 58) as usize])
        };
        (0..bytes * 4 / 3).map(|_| letter()).collect()
    }
}

struct Node {
    uid: String,
    days: u64,
    bytes: usize,
}

async fn nodes(store: &Store, begin: Timestamp) -> Vec<Node> {
    let mut nodes = Vec::new();
    for (kind, (count, days, bytes)) in KINDS.into_iter().enumerate() {
        for number in 0..count {
            let uid = format!("node-{kind}-{number}");
            let registration = ClusterRegistration {
                hostname: uid.clone(),
                ip: format!("10.0.{kind}.{number}"),
                addresses: Vec::new(),
                kernel: None,
                os: None,
                architecture: None,
                agent_version: None,
                interval_seconds: 10,
                retention_seconds: days * 86_400,
                retention_minute_seconds: None,
                retention_hour_seconds: None,
                deletion_policy: DeletionPolicy::Retain,
            };
            let registration = life::identify_in_cluster(&uid, registration);
            let registration = registration.expect("well formed");
            let life = Life::new_in_cluster(uid.clone(), registration, begin);
            store.save_life(&life).await.expect("saved");
            nodes.push(Node { uid, days, bytes });
        }
    }
    nodes
}

/// Bytes of all files of a folder.
fn size(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let sizes = entries.map(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => size(&entry.path()),
        // One that was merged away meanwhile has none.
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    });
    sizes.sum()
}

/// A size of this process' memory, in MiB.
fn memory(which: &str) -> u64 {
    nodestats_testkit::memory_of(std::process::id(), which) >> 20
}

fn main() {
    // As `cargo test --benches` runs it, it does nothing: it takes minutes.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = builder.worker_threads(2).enable_all().build();
    runtime.expect("a runtime").block_on(month());
}

async fn month() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let registry = Registry::default();
    let options = Options {
        retention: Duration::from_secs(RETENTION_DAYS * 86_400),
        memory: MemoryBudget::from_limit(512 << 20),
        node_quota: None,
        retention_minute: Duration::from_hours(24 * 90),
        retention_hour: Duration::from_hours(24 * 730),
        max_size: None,
        meter: registry.meter("nodestats.store"),
    };
    let location = Location::Directory(folder.path().into());
    let store = Store::open(&location, &options).await.expect("opens");
    let begin: Timestamp = "2026-01-01 00:00:00Z".parse().expect("a time");
    let nodes = nodes(&store, begin).await;
    let mut noise = Noise(1);
    let (mut written, mut most, mut flat) = (0_u64, 0.0_f64, Vec::new());
    let started = Instant::now();
    for hour in 0..DAYS * 24 {
        let time = begin.plus_micros(hour * HOUR + HOUR / 2);
        // An hour is sealed when it is over.
        let now = begin.plus_micros((hour + 1) * HOUR + HOUR / 10);
        let seen = Seen {
            last_sample: time,
            fresh_at: time,
            clock_offset_micros: Some(0),
        };
        let appends = nodes.iter().map(|node| {
            let process = Process {
                pid: 1,
                command_line: Some(noise.text(node.bytes)),
                ..Process::default()
            };
            let reading = Reading {
                processes: Some(vec![process]),
                ..Reading::default()
            };
            written += node.bytes as u64;
            let sample = NewSample::from_reading(time, reading);
            let (store, identity) = (store.clone(), NodeIdentity::proved(&node.uid));
            async move { store.append(&identity, vec![sample], seen, now).await }
        });
        let appends: Vec<_> = appends.collect();
        for appended in futures_util::future::join_all(appends).await {
            appended.expect("kept");
        }
        store.seal(now).await.expect("sealed");
        if hour % RETAINED_EACH == 0 {
            store.retain(now).await.expect("retained");
        }
        if hour % 24 != 23 {
            continue;
        }
        let day = (hour + 1) / 24;
        let live: u64 = nodes
            .iter()
            .map(|node| day.min(node.days as i64) as u64 * 24 * node.bytes as u64)
            .sum();
        let files = size(folder.path());
        let times = files as f64 / live as f64;
        most = most.max(times);
        if day > DAYS / 2 {
            flat.push((files, live));
        }
        eprintln!(
            "day {day}: {} MB written, {} live, {} on disk ({times:.2} ×), {} MiB resident",
            written >> 20,
            live >> 20,
            files >> 20,
            memory("VmRSS:"),
        );
    }
    // Each has what its retention keeps, and nothing else.
    let end = begin.plus_micros(DAYS * DAY);
    for node in &nodes {
        let oldest = store.oldest(&node.uid).await.expect("read");
        let oldest = oldest.expect("a history");
        let hours = (end.seconds_since(oldest) / 3600.0) as i64;
        let wanted = (node.days as i64).min(DAYS) * 24;
        let slack = RETAINED_EACH + 1;
        assert!(
            (wanted - 1..=wanted + slack).contains(&hours),
            "{}: {hours} h",
            node.uid
        );
    }
    let (files, live) = flat.last().copied().unwrap_or_default();
    let figures = json!({
        "nodes": nodes.len(),
        "days": DAYS,
        "seconds": started.elapsed().as_secs(),
        "written_mb": written >> 20,
        "live_mb": live >> 20,
        "disk_mb": files >> 20,
        "disk_most_mb": flat.iter().map(|(files, _)| files >> 20).max(),
        "disk_times_live_most": most,
        "rss_mib": memory("VmRSS:"),
        "rss_peak_mib": memory("VmHWM:"),
    });
    store.close().await;
    println!("{figures}");
}
