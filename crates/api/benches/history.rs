//! History as it is kept: how densely and how fast, from the codec alone to the whole way of a server with
//! its database on the disk, asked by HTTP. `--corpus FILE` is a recording of `/proc` of 25 minutes, of which
//! a day is made; `--nodes N` are as many that have that day, and `--others N` as many that push its last two
//! hours. With `--copies N` all is asked again where as many more have that day, after the server was killed.
//! `--times N` makes each process so many. `--shared` keeps all in a `SurrealDB` server, whose own CPU and memory
//! count nowhere. `--codec` leaves the server out. Prints one line of JSON.

use std::collections::{BTreeMap, HashSet};
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use futures_util::StreamExt as _;
use nodestats_api::{App, Limits, Options, router};
use nodestats_core::block::{self, Block, Entry, Parts, Reader, Sealer, Series};
use nodestats_core::frame::{self, Pushed, delta};
use nodestats_core::rates::cpu_books;
use nodestats_core::rollup::{self, Figures, Part, Roller, Rollup};
use nodestats_core::{FrameId, Sample, Timestamp, Wanted};
use nodestats_runtime::metrics::Registry;
use nodestats_store::{Credentials, Location, MemoryBudget, Store};
use nodestats_testkit::recording::{self, COLUMNS};
use nodestats_testkit::{DatabaseServer, memory_of};
use nodestats_wire::client::Client;
use nodestats_wire::v1::Registration;
use serde_json::{Map, Value, json};
use tokio_util::sync::CancellationToken;

/// The database of the server that this process is.
const SERVER: &str = "NODESTATS_BENCH_SERVER";
/// How many copies of the first node's day this process makes there, instead of serving.
const COPIES: &str = "NODESTATS_BENCH_COPIES";
/// Times of the codec are the best of so many.
const TURNS: usize = 5;
/// Samples of a day, one each 10 s.
const DAY: usize = 8640;
const INTERVAL: i64 = 10_000_000;
/// Frames of a body while days are pushed.
const BODY: usize = 120;
/// Samples of each other node, and frames of its bodies.
const OTHERS: usize = 720;
const BODY_OF_OTHERS: usize = 30;
/// Connections that push one frame at a time, and for how long.
const CONNECTIONS: usize = 64;
const LIVE: Duration = Duration::from_secs(10);
/// Frames of which one is whole and the others say what differs from it, as agents send them.
const GROUP: usize = 13;
/// Between two looks at what is to be sealed and deleted, as the program has it.
const UPKEEP: Duration = Duration::from_mins(1);
/// Questions of each kind.
const QUESTIONS: usize = 200;

fn main() {
    if let Ok(location) = std::env::var(SERVER) {
        nodestats_runtime::limits::share_heaps();
        let location = with_credentials(location.parse().expect("a database"));
        match std::env::var(COPIES) {
            Ok(copies) => {
                let copies = copies.parse().expect("a number");
                runtime().block_on(copy(&location, copies));
            }
            Err(_) => runtime().block_on(serve(&location)),
        }
        return;
    }
    let arguments: Vec<String> = std::env::args().collect();
    let after = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name)?;
        arguments.get(at + 1)
    };
    let Some(corpus) = after("--corpus") else {
        // As `cargo test --benches` runs it.
        println!("--corpus FILE names the recording");
        return;
    };
    let number = |name: &str, usual| after(name).map_or(usual, |n| n.parse().expect("a number"));
    let (mut entries, mut series) = recording::read(Path::new(corpus));
    let times = number("--times", 1);
    multiply(&mut entries, &mut series, times);
    let mut figures = Map::new();
    codec(&mut figures, &entries, &series);
    figures.insert("times".to_owned(), json!(times));
    rollups(&mut figures, &entries);
    if arguments.iter().any(|argument| argument == "--codec") {
        println!("{}", Value::Object(figures));
        return;
    }
    let load = Load {
        nodes: number("--nodes", 20),
        others: number("--others", 0),
        copies: number("--copies", 0),
        is_shared: arguments.iter().any(|argument| argument == "--shared"),
    };
    runtime().block_on(whole_way(&mut figures, &entries, load));
    println!("{}", Value::Object(figures));
}

/// Who pushes, and what is there besides.
#[derive(Debug, Clone, Copy)]
struct Load {
    nodes: usize,
    others: usize,
    copies: usize,
    /// Whether all is kept in a server of its own.
    is_shared: bool,
}

/// Each process so many times, by numbers and names of their own.
fn multiply(entries: &mut [Entry], series: &mut Vec<Series>, times: usize) {
    for entry in entries {
        let processes = &mut entry.sample.processes;
        let one = processes.clone();
        for turn in 1..times as u32 {
            processes.extend(one.iter().cloned().map(|mut process| {
                process.pid += turn * 1_000_000;
                process.name = format!("{}{turn}", process.name).into();
                // They do not move together.
                process.user_ticks = process.user_ticks * u64::from(turn + 1) / 2;
                process.resident_bytes /= u64::from(turn + 1);
                process
            }));
        }
    }
    let one = series.clone();
    for _ in 1..times {
        series.extend(one.iter().cloned());
    }
}

fn runtime() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = builder.worker_threads(2).enable_all().build();
    runtime.expect("a runtime")
}

/// What work takes at best, in microseconds.
fn micros_of(work: &dyn Fn()) -> f64 {
    let turns = (0..TURNS).map(|_| {
        let begin = Instant::now();
        work();
        begin.elapsed().as_secs_f64() * 1e6
    });
    turns.fold(f64::INFINITY, f64::min)
}

/// The codec alone.
fn codec(figures: &mut Map<String, Value>, entries: &[Entry], series: &[Series]) {
    let samples = entries.len();
    let rows = series.iter().map(|series| series.rows.len() / COLUMNS);
    let rows: usize = rows.sum();
    let values = (rows * COLUMNS) as f64;
    let coded = block::encode(COLUMNS, series);
    let reader = Reader::open(coded.clone().into()).expect("as it was written");
    assert_eq!(reader.all().expect("as it was written"), series);
    let encode = micros_of(&|| drop(block::encode(COLUMNS, series)));
    let read_all = micros_of(&|| drop(reader.all()));
    let read_each = micros_of(&|| {
        for number in 0..reader.len() {
            drop(reader.one(number));
        }
    });
    let block = seal(entries);
    read_block(&block, entries);
    let seal = micros_of(&|| drop(seal(entries)));
    let unseal = micros_of(&|| read_block(&block, entries));
    let frames = encode_frames(entries);
    wire(figures, &frames);
    let each = |total: f64| total / samples as f64;
    for (name, figure) in [
        ("samples", json!(samples)),
        ("series", json!(series.len())),
        ("rows", json!(rows)),
        ("codec_bytes_per_value", json!(coded.len() as f64 / values)),
        (
            "floor_bytes_per_value",
            json!(floor(series) as f64 / values),
        ),
        ("encode_micros_per_sample", json!(each(encode))),
        ("read_micros_per_sample", json!(each(read_all))),
        ("read_one_micros", json!(read_each / series.len() as f64)),
        (
            "frame_bytes",
            json!(each(frames.iter().map(Vec::len).sum::<usize>() as f64)),
        ),
        ("block_bytes_per_sample", json!(each(block.len() as f64))),
        ("bytes_per_value", json!(block.len() as f64 / values)),
        ("seal_micros_per_sample", json!(each(seal))),
        ("unseal_micros_per_sample", json!(each(unseal))),
    ] {
        figures.insert(name.to_owned(), figure);
    }
}

/// What is kept of a day when its samples are gone, and how the books close.
fn rollups(figures: &mut Map<String, Value>, entries: &[Entry]) {
    const HOUR: usize = DAY / 24;
    let end = Timestamp::from_micros(1_700_000_000_000_000).expect("a time");
    let all: Vec<Entry> = day(entries, end.floor_to(24 * rollup::HOUR)).collect();
    let begin = Instant::now();
    let (mut minutes, mut peaks, mut highs) = (0, 0, 0);
    let mut hours = Rollup::default();
    let mut kept = HashSet::new();
    let mut hosts = Vec::new();
    let mut before: Option<&Entry> = None;
    for of_hour in all.chunks(HOUR) {
        let hour = of_hour[0].time.floor_to(rollup::HOUR);
        let mut roller = Roller::new(rollup::MINUTE);
        if let Some(before) = before {
            roller.begin_after(before.sample.clone());
        }
        for entry in of_hour {
            roller.add(entry.time, entry.sample.clone());
        }
        let (of_minutes, of_peaks, of_highs) = roller.finish(hour, &kept);
        let last = of_minutes.buckets.last().expect("a minute");
        kept = last.processes.iter().map(|(one, _)| one.life()).collect();
        let parts = Part::ALL.map(|part| rollup::encode(&of_minutes, part).expect("small"));
        minutes += parts.iter().map(Bytes::len).sum::<usize>();
        hosts.extend(parts.into_iter().next());
        peaks += of_peaks.encode().len();
        highs += of_highs.encode().len();
        hours.buckets.push(of_minutes.whole(hour));
        before = of_hour.last();
    }
    let hours = Part::ALL.map(|part| rollup::encode(&hours, part).expect("small").len());
    let hours: usize = hours.iter().sum();
    let micros = begin.elapsed().as_secs_f64() * 1e6 / all.len() as f64;
    let read_cpu = micros_of(&|| {
        for bytes in &hosts {
            drop(rollup::decode(bytes, Figures::Cpu));
        }
    });
    let pairs = entries.windows(2);
    let books = pairs.filter_map(|pair| cpu_books(&pair[0].sample, &pair[1].sample));
    let (busy, left) = books.fold((0, 0), |(busy, left), books| {
        (busy + books.busy, left + books.unaccounted)
    });
    for (name, figure) in [
        ("rollup_bytes_per_node_day", json!(minutes + peaks + hours)),
        ("rollup_minute_bytes_per_node_day", json!(minutes)),
        ("rollup_hour_bytes_per_node_day", json!(hours)),
        ("high_bytes_per_node_day", json!(highs)),
        ("roll_micros_per_sample", json!(micros)),
        ("read_cpu_day_micros", json!(read_cpu)),
        (
            "unaccounted_percent",
            json!(left as f64 * 100.0 / busy.max(1) as f64),
        ),
    ] {
        figures.insert(name.to_owned(), figure);
    }
}

/// Frames as they go over the wire.
fn wire(figures: &mut Map<String, Value>, frames: &[Vec<u8>]) {
    let pairs = || {
        let groups = frames.chunks(GROUP);
        groups.flat_map(|group| group[1..].iter().map(|frame| (frame, &group[0])))
    };
    let encode = |frame: &[u8], key: &[u8]| {
        let delta = delta::encode(frame, key).expect("frames");
        delta.expect("of one agent")
    };
    let deltas: Vec<_> = pairs()
        .map(|(frame, key)| (encode(frame, key), key, frame))
        .collect();
    let restore = |bytes: &[u8], key: &[u8]| match Pushed::split_first(bytes) {
        Ok((Pushed::Delta(delta), ..)) => {
            let key = delta::Key::unpack(key).expect("a frame");
            delta.restore(&key).expect("its key").frame
        }
        _ => panic!("no delta"),
    };
    for (bytes, key, frame) in &deltas {
        assert_eq!(restore(bytes, key), **frame);
    }
    let bytes: usize = deltas.iter().map(|(bytes, ..)| bytes.len()).sum();
    let keys: usize = frames.chunks(GROUP).map(|group| group[0].len()).sum();
    let count = deltas.len() as f64;
    let encoding = micros_of(&|| pairs().for_each(|(frame, key)| drop(encode(frame, key))));
    let restoring = micros_of(&|| {
        for (bytes, key, _) in &deltas {
            drop(restore(bytes, key));
        }
    });
    for (name, figure) in [
        ("delta_bytes", json!(bytes as f64 / count)),
        (
            "sent_bytes_per_sample",
            json!((bytes + keys) as f64 / frames.len() as f64),
        ),
        ("delta_micros", json!(encoding / count)),
        ("restore_micros", json!(restoring / count)),
    ] {
        figures.insert(name.to_owned(), figure);
    }
}

fn seal(entries: &[Entry]) -> Parts {
    let mut sealer = Sealer::default();
    for entry in entries {
        sealer.add(entry);
    }
    sealer.finish().expect("not too many")
}

fn read_block(parts: &Parts, entries: &[Entry]) {
    let block = Block::open(parts).expect("as it was written");
    for (number, entry) in entries.iter().enumerate() {
        let sample = block.sample(number, Wanted::All);
        assert_eq!(sample.as_ref(), Ok(&entry.sample));
    }
}

fn encode_frames(entries: &[Entry]) -> Vec<Vec<u8>> {
    let encode = |entry: &Entry| frame::encode(entry.time, entry.id, entry.interval, &entry.sample);
    entries.iter().map(encode).collect()
}

/// Bytes of what is usual: differences as LEB128, a column after the other, zstd at its highest level.
fn floor(series: &[Series]) -> usize {
    let mut plain = Vec::new();
    for column in 0..COLUMNS {
        for series in series {
            let mut before = 0_u64;
            for row in series.rows.chunks_exact(COLUMNS) {
                let change = row[column].wrapping_sub(before) as i64;
                before = row[column];
                let mut rest = (change << 1 ^ change >> 63) as u64;
                while rest >= 0x80 {
                    plain.push(rest as u8 | 0x80);
                    rest >>= 7;
                }
                plain.push(rest as u8);
            }
        }
    }
    zstd::bulk::compress(&plain, 19)
        .expect("compressing into memory cannot fail")
        .len()
}

/// Samples of a day that ends at `end`: the recording again and again. Processes that are there from its
/// begin to its end go on, others are started anew each time.
fn day(entries: &[Entry], end: Timestamp) -> impl Iterator<Item = Entry> {
    let of = |entry: &Entry| -> BTreeMap<(u32, u64), nodestats_core::sample::Process> {
        let processes = entry.sample.processes.iter().cloned();
        processes
            .map(|process| ((process.pid, process.start_ticks), process))
            .collect()
    };
    let (first, last) = (of(&entries[0]), of(&entries[entries.len() - 1]));
    let begin = end.plus_micros(-(DAY as i64) * INTERVAL);
    (0..DAY).map(move |number| {
        let turn = (number / entries.len()) as u64;
        let mut sample = entries[number % entries.len()].sample.clone();
        for process in &mut sample.processes {
            let life = (process.pid, process.start_ticks);
            let (Some(first), Some(last)) = (first.get(&life), last.get(&life)) else {
                process.start_ticks += turn * 150_000;
                continue;
            };
            let grown = |first: u64, last: u64| last.saturating_sub(first) * turn;
            process.user_ticks += grown(first.user_ticks, last.user_ticks);
            process.system_ticks += grown(first.system_ticks, last.system_ticks);
            process.minor_faults += grown(first.minor_faults, last.minor_faults);
            let bytes = |first: Option<u64>, last: Option<u64>| {
                grown(first.unwrap_or_default(), last.unwrap_or_default())
            };
            let read = bytes(first.read_bytes, last.read_bytes);
            process.read_bytes = process.read_bytes.map(|bytes| bytes + read);
            let written = bytes(first.written_bytes, last.written_bytes);
            process.written_bytes = process.written_bytes.map(|bytes| bytes + written);
        }
        host(&mut sample, number as u64);
        Entry {
            time: begin.plus_micros(number as i64 * INTERVAL),
            id: FrameId {
                agent_start: uuid::Uuid::from_u128(7),
                sequence: number as u64,
            },
            interval: Some(Duration::from_micros(INTERVAL as u64)),
            sample,
        }
    })
}

/// Figures of a host of four processors, as they move.
fn host(sample: &mut Sample, number: u64) {
    use nodestats_core::sample::{CpuCounters, CpuTimes, Memory};
    let mixed = (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
    let times = |share: u64| CpuTimes {
        user: number * 100 * share + mixed % 97,
        system: number * 30 * share + mixed % 31,
        idle: number * 800 * share + mixed % 89,
        softirq: number * share + mixed % 3,
        ..CpuTimes::default()
    };
    "a-boot".clone_into(&mut sample.host.boot_id);
    sample.host.uptime_micros = number * INTERVAL as u64;
    sample.host.ticks_per_second = 100;
    sample.host.load_average = Some([0.01 * (mixed % 400) as f64, 1.25, 0.75]);
    sample.host.cpu_total = Some(times(4));
    sample.host.cpus = (0..4)
        .map(|cpu| CpuCounters {
            cpu,
            times: times(1 + u64::from(cpu) % 2),
            frequency_mhz: None,
        })
        .collect();
    sample.host.memory = Some(Memory {
        total: 8 << 30,
        free: Some((1 << 30) + (mixed % 5000) * 4096),
        available: Some((4 << 30) + (mixed % 9000) * 4096),
        cached: Some(2 << 30),
        ..Memory::default()
    });
}

/// A server in a process of its own.
struct Server {
    process: Child,
    client: Client,
    is_shared: bool,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Server {
    fn start(location: &Location) -> Self {
        let mut process = Command::new(std::env::current_exe().expect("this program"))
            .env(SERVER, location.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .expect("started");
        let mut line = String::new();
        let stdout = process.stdout.take().expect("piped");
        BufReader::new(stdout).read_line(&mut line).expect("a line");
        let client = Client::new(line.trim(), Duration::from_mins(10)).expect("a client");
        Self {
            process,
            client,
            is_shared: matches!(location, Location::Remote { .. }),
        }
    }

    /// CPU time that it has taken.
    fn cpu(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.process.id()));
        let stat = stat.expect("running");
        let (_, fields) = stat.rsplit_once(") ").expect("a name");
        let fields = fields.split_whitespace().skip(11).take(2);
        let ticks: u64 = fields
            .map(|ticks| ticks.parse::<u64>().expect("ticks"))
            .sum();
        Duration::from_millis(ticks * 10)
    }

    /// A size of its memory now or at its peak, in MiB.
    fn memory(&self, which: &str) -> f64 {
        memory_of(self.process.id(), which) as f64 / f64::from(1 << 20)
    }

    async fn register(&self, name: &str, number: usize) {
        let registration = Registration {
            interval_seconds: Some(10),
            uid: Some(name.to_owned()),
            ..Registration::new(address(number), name)
        };
        let registered = self.client.register(&registration).await;
        registered.expect("registered");
    }

    /// Bytes of its folder when its files are merged, which is done in the background; those of a database server
    /// are not its own.
    async fn settled(&self) -> Option<f64> {
        if self.is_shared {
            return None;
        }
        let (mut bytes, mut quiet) = (0.0, 0);
        while quiet < 5 {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let next = self.figure("nodestats_store_database_size_bytes").await;
            quiet = if (next - bytes).abs() < 1e5 {
                quiet + 1
            } else {
                0
            };
            bytes = next;
        }
        Some(bytes)
    }

    async fn figure(&self, name: &str) -> f64 {
        let metrics = self.client.get("/metrics", &[]).await.expect("metrics");
        let text = String::from_utf8(metrics).expect("text");
        let mut lines = text.lines().filter_map(|line| line.rsplit_once(' '));
        let found = lines.find_map(|(series, number)| (series == name).then_some(number));
        found.map_or(0.0, |number| number.parse().expect("a number"))
    }
}

/// The number of the first node that has a day.
const FIRST: usize = 1000;

fn address(number: usize) -> String {
    format!("10.0.{}.{}", number / 250, number % 250)
}

/// A server that testkit starts asks who calls.
fn with_credentials(location: Location) -> Location {
    match location {
        Location::Remote {
            tls,
            authority,
            authorities,
            ..
        } => Location::Remote {
            tls,
            authority,
            credentials: Some(Credentials {
                user: DatabaseServer::USER.to_owned(),
                password: DatabaseServer::PASSWORD.to_owned(),
            }),
            authorities,
        },
        own => own,
    }
}

async fn open(location: &Location, registry: &Registry) -> Store {
    let options = nodestats_store::Options {
        retention: Duration::from_hours(24 * 14),
        memory: MemoryBudget::from_limit(512 << 20),
        node_quota: None,
        retention_minute: Duration::from_hours(24 * 90),
        retention_hour: Duration::from_hours(24 * 730),
        max_size: None,
        meter: registry.meter("nodestats.store"),
    };
    let store = Store::open(location, &options).await;
    store.expect("opens")
}

async fn copy(location: &Location, copies: usize) {
    let store = open(location, &Registry::default()).await;
    let names: Vec<String> = (0..copies).map(|copy| format!("copy-{copy}")).collect();
    let done = store.copy_blocks("node-0", &names).await;
    done.expect("copied");
    store.close().await;
}

/// What the program `nodestats api` does, without its arguments.
async fn serve(location: &Location) {
    let registry = Registry::default();
    let store = open(location, &registry).await;
    let app = App::new(
        store.clone(),
        Options {
            registry,
            limits: Limits {
                in_flight: 10_000,
                per_second: 1e6,
                burst: 1e6,
            },
            ..Options::default()
        },
    );
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await;
    let listener = listener.expect("loopback");
    println!("http://{}", listener.local_addr().expect("bound"));
    let upkeep = async {
        loop {
            let now = Timestamp::from_system(SystemTime::now());
            store.retain(now).await.expect("retained");
            store.seal(now).await.expect("sealed");
            tokio::time::sleep(UPKEEP).await;
        }
    };
    let stop = CancellationToken::new();
    tokio::join!(nodestats_api::serve(listener, router(app), stop), upkeep);
}

/// From pushes over HTTP to answers over HTTP.
async fn whole_way(figures: &mut Map<String, Value>, entries: &[Entry], load: Load) {
    let Load {
        nodes,
        others,
        copies,
        is_shared,
    } = load;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let database = is_shared.then(|| DatabaseServer::start(folder.path()));
    let location = match &database {
        Some(database) => database.url().parse().expect("a database"),
        None => Location::Directory(folder.path().into()),
    };
    let server = Server::start(&location);
    live(figures, entries, &server).await;
    // The present hour is not sealed: the day ends before it.
    let now = Timestamp::from_system(SystemTime::now());
    let end = now.floor_to(3_600_000_000);
    let frames: Vec<Vec<u8>> = day(entries, end)
        .map(|entry| frame::encode(entry.time, entry.id, entry.interval, &entry.sample))
        .collect();
    for node in 0..nodes + others {
        server.register(&format!("node-{node}"), FIRST + node).await;
    }
    let (before, begin) = (server.cpu(), Instant::now());
    let mut resident = Vec::new();
    fill(&server, 0..nodes, frames.chunks(BODY), &mut resident).await;
    let last = frames[DAY - OTHERS..].chunks(BODY_OF_OTHERS);
    fill(&server, nodes..nodes + others, last, &mut resident).await;
    let pushed = begin.elapsed();
    let all = (nodes * DAY + others * OTHERS) as f64;
    while server.figure("nodestats_store_sealed_total").await < all {
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let cpu = server.cpu().saturating_sub(before).as_secs_f64() * 1e6 / all;
    let bytes = server.settled().await;
    let sealed = server.figure("nodestats_store_sealed_bytes_total").await;
    for (name, figure) in [
        ("nodes", json!(nodes)),
        ("fill_seconds", json!(pushed.as_secs_f64())),
        ("store_cpu_micros_per_push", json!(cpu)),
        ("sealed_bytes_per_sample", json!(sealed / all)),
        ("others", json!(others)),
        ("shared", json!(is_shared)),
        (
            "node_day_bytes",
            json!(bytes.map(|bytes| bytes / all * DAY as f64)),
        ),
        (
            "rss_while_filling_mib",
            json!(
                resident
                    .iter()
                    .step_by(1 + resident.len() / 16)
                    .collect::<Vec<_>>()
            ),
        ),
    ] {
        figures.insert(name.to_owned(), figure);
    }
    ask(figures, "", &server, entries, (end, nodes)).await;
    if copies == 0 {
        return;
    }
    // The database is found as a kill has left it.
    drop(server);
    let begin = Instant::now();
    let status = Command::new(std::env::current_exe().expect("this program"))
        .env(SERVER, location.to_string())
        .env(COPIES, copies.to_string())
        .status();
    assert!(status.expect("started").success());
    let copying = begin.elapsed().as_secs_f64();
    let server = Server::start(&location);
    live(&mut Map::new(), entries, &server).await;
    drop(server);
    let begin = Instant::now();
    let server = Server::start(&location);
    let starting = begin.elapsed().as_secs_f64() * 1e3;
    let bytes = server.settled().await;
    for (name, figure) in [
        ("copies", json!(copies)),
        ("copy_seconds", json!(copying)),
        ("start_after_kill_ms", json!(starting)),
        ("filled_bytes", json!(bytes)),
    ] {
        figures.insert(name.to_owned(), figure);
    }
    let mut again = Map::new();
    live(&mut again, entries, &server).await;
    for (name, figure) in again {
        figures.insert(format!("filled_{name}"), figure);
    }
    ask(figures, "filled_", &server, entries, (end, nodes)).await;
}

/// Asks, and says how long answers take, and what the server takes by then.
async fn ask(
    figures: &mut Map<String, Value>,
    prefix: &str,
    server: &Server,
    entries: &[Entry],
    (end, nodes): (Timestamp, usize),
) {
    let from = end.plus_micros(-(DAY as i64) * INTERVAL);
    let range = format!("from={from}&to={}", end.plus_micros(-1)).replace('+', "%2B");
    let long_lived = entries[0]
        .sample
        .processes
        .iter()
        .map(|process| process.pid);
    let pids: Vec<u32> = long_lived.collect();
    let p99_of = async |questions: usize, path: &dyn Fn(usize) -> String| {
        let mut times = Vec::new();
        for number in 0..questions {
            let path = path(number);
            let begin = Instant::now();
            let answer = server.client.get(&path, &[]).await.expect("an answer");
            times.push(begin.elapsed().as_secs_f64() * 1e3);
            assert!(
                answer.len() > 1000,
                "{path}: {}",
                String::from_utf8_lossy(&answer)
            );
        }
        times.sort_by(f64::total_cmp);
        times[questions * 99 / 100]
    };
    let p99 = async |path: &dyn Fn(usize) -> String| p99_of(QUESTIONS, path).await;
    // As people call them: by name or address, and not by UID.
    let node = |number: usize| address(FIRST + number * 7 % nodes);
    let cpu_day = p99(&|number| format!("/nodes/{}/cpu?{range}&step=60", node(number))).await;
    let process_day = p99(&|number| {
        let pid = pids[number * 13 % pids.len()];
        format!("/nodes/{}/proc/{pid}?{range}", node(number))
    })
    .await;
    // Moments all over the day.
    let table = p99(&|number| {
        let at = from.plus_micros((1 + number * 997 % (DAY - 1)) as i64 * INTERVAL);
        format!("/nodes/{}/proc?view=full&at={at}", node(number))
    })
    .await;
    // Moments when all nodes were there, and that are sealed.
    let top = |number: usize| {
        let at = end.plus_micros(-rollup::HOUR * 3 / 2 + number as i64 * INTERVAL);
        format!("/top?limit=10&at={at}")
    };
    let cluster = p99_of(QUESTIONS / 10, &top).await;
    for (name, figure) in [
        ("cluster_top_at_p99_ms", json!(cluster)),
        ("cpu_day_p99_ms", json!(cpu_day)),
        ("process_day_p99_ms", json!(process_day)),
        ("table_at_p99_ms", json!(table)),
        ("api_rss_mib", json!(server.memory("VmRSS:"))),
        ("api_rss_peak_mib", json!(server.memory("VmHWM:"))),
    ] {
        figures.insert(format!("{prefix}{name}"), figure);
    }
}

/// Frames from each of these nodes, a body after the other, and what is resident after each body of all.
async fn fill(
    server: &Server,
    nodes: std::ops::Range<usize>,
    bodies: std::slice::Chunks<'_, Vec<u8>>,
    resident: &mut Vec<f64>,
) {
    for frames in bodies {
        let body = Bytes::from(frames.concat());
        let pushes = nodes.clone().map(|node| {
            let (client, body) = (server.client.clone(), body.clone());
            async move {
                let node = format!("node-{node}");
                let pushed = client.push_frames(&node, body.to_vec()).await;
                pushed.expect("stored");
            }
        });
        let pushes = futures_util::stream::iter(pushes);
        pushes.for_each_concurrent(CONNECTIONS, |push| push).await;
        resident.push(server.memory("VmRSS:"));
    }
}

/// Pushes as they come from agents, one frame each, acknowledged when it is synced.
async fn live(figures: &mut Map<String, Value>, entries: &[Entry], server: &Server) {
    for connection in 0..CONNECTIONS {
        server
            .register(&format!("live-{connection}"), connection)
            .await;
    }
    let until = Instant::now() + LIVE;
    let (before, begin) = (server.cpu(), Instant::now());
    let sending = (0..CONNECTIONS).map(|connection| {
        let client = server.client.clone();
        let entries = entries.to_vec();
        tokio::spawn(async move {
            // Encoded before, since that is the agents' work.
            let frames: Vec<Vec<u8>> = entries
                .iter()
                .take(20)
                .map(|entry| frame::encode(entry.time, entry.id, entry.interval, &entry.sample))
                .collect();
            let mut sequence = 0_u64;
            let mut waits = Vec::new();
            while Instant::now() < until {
                let mut frame = frames[sequence as usize % frames.len()].clone();
                let now = Timestamp::from_system(SystemTime::now());
                // Time, agent start, and sequence stand behind length and version.
                frame[5..13].copy_from_slice(&now.micros().to_le_bytes());
                frame[29..37].copy_from_slice(&sequence.to_le_bytes());
                let node = format!("live-{connection}");
                let begin = Instant::now();
                client.push_frames(&node, frame).await.expect("stored");
                waits.push(begin.elapsed().as_secs_f64() * 1e3);
                sequence += 1;
            }
            waits
        })
    });
    let mut waits: Vec<f64> = Vec::new();
    for connection in sending.collect::<Vec<_>>() {
        waits.append(&mut connection.await.expect("pushed"));
    }
    waits.sort_by(f64::total_cmp);
    let pushed = waits.len() as f64;
    let cpu = server.cpu().saturating_sub(before).as_secs_f64() * 1e6;
    let per_second = pushed / begin.elapsed().as_secs_f64();
    figures.insert("pushes_per_second".to_owned(), json!(per_second));
    figures.insert("server_cpu_micros_per_push".to_owned(), json!(cpu / pushed));
    let p99 = waits[waits.len() * 99 / 100];
    figures.insert("push_p99_ms".to_owned(), json!(p99));
    figures.insert("push_longest_ms".to_owned(), json!(waits.last()));
}
