//! What traces cost a push: the whole way from the router to the database in memory, without a collector,
//! with one in a hundred traces kept, and with all of them. Each is a process of its own, in turn, since a
//! process sets up its telemetry once; figures of one run compare, and no others.
//!
//! Prints one JSON object: medians in microseconds of CPU time and of the clock for one push, and what a span
//! costs that nobody takes, in nanoseconds.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use axum::body::Body;
use http::{Request, header};
use nodestats_api::{App, Options, router};
use nodestats_runtime::logs;
use nodestats_runtime::telemetry::{Program, Protocols, Telemetry};
use nodestats_store::{Location, MemoryBudget, Store};
use nodestats_testkit::Frames;
use nodestats_wire::{Timestamp, routes};
use rustix::time::{ClockId, clock_gettime};
use tower::ServiceExt as _;

/// Which of them a process measures.
const MODE: &str = "NODESTATS_BENCH_MODE";
const MODES: [&str; 3] = ["off", "one_percent", "all"];
/// Processes of each.
const ROUNDS: usize = 7;
/// Pushes that are not measured, and pushes that are.
const WARM: usize = 300;
const PUSHES: usize = 2000;

fn main() {
    if std::env::var_os(MODE).is_some() {
        child();
        return;
    }
    let endpoint = sink();
    let mut figures = MODES.map(|_| Vec::new());
    for _ in 0..ROUNDS {
        for (mode, figures) in MODES.iter().zip(&mut figures) {
            figures.push(run(mode, &endpoint));
        }
    }
    let median = |values: &[(f64, f64)], which: fn(&(f64, f64)) -> f64| {
        let mut values: Vec<f64> = values.iter().map(which).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let mut object = serde_json::Map::new();
    object.insert("span_off_nanos".to_owned(), span_off_nanos().into());
    for (mode, figures) in MODES.iter().zip(&figures) {
        for (what, which) in [
            ("cpu_micros", (|figure| figure.0) as fn(&(f64, f64)) -> f64),
            ("clock_micros", |figure| figure.1),
        ] {
            let value = (median(figures, which) * 10.0).round() / 10.0;
            object.insert(format!("{mode}_{what}"), value.into());
        }
    }
    println!("{}", serde_json::Value::Object(object));
}

/// What a span costs in a process that collects none, rounded to tenths.
fn span_off_nanos() -> f64 {
    const SPANS: u32 = 10_000_000;
    let begin = Instant::now();
    for number in 0..SPANS {
        std::hint::black_box(tracing::info_span!("off", "nodestats.samples" = number));
    }
    let each = begin.elapsed().as_secs_f64() * 1e9 / f64::from(SPANS);
    (each * 10.0).round() / 10.0
}

/// A collector that takes everything at once, so that it costs nothing but the sending.
fn sink() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
    let address = format!("http://{}", listener.local_addr().expect("bound"));
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || swallow(stream));
        }
    });
    address
}

/// Reads requests by their Content-Length, and answers each.
fn swallow(mut stream: TcpStream) {
    let mut read = Vec::new();
    let mut chunk = [0; 16 << 10];
    loop {
        while let Some(head) = read.windows(4).position(|four| four == b"\r\n\r\n") {
            let text = String::from_utf8_lossy(&read[..head]).to_lowercase();
            let length = text
                .lines()
                .find_map(|line| line.strip_prefix("content-length:"));
            let length: usize = length
                .and_then(|text| text.trim().parse().ok())
                .unwrap_or(0);
            if read.len() < head + 4 + length {
                break;
            }
            read.drain(..head + 4 + length);
            let answer = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nContent-Type: application/x-protobuf\r\n\r\n";
            if stream.write_all(answer.as_bytes()).is_err() {
                return;
            }
        }
        match stream.read(&mut chunk) {
            Ok(0) | Err(_) => return,
            Ok(count) => read.extend_from_slice(&chunk[..count]),
        }
    }
}

/// Microseconds of CPU time and of the clock for one push.
fn run(mode: &str, endpoint: &str) -> (f64, f64) {
    let mut command = Command::new(std::env::current_exe().expect("a program"));
    command.env(MODE, mode);
    if mode != "off" {
        let ratio = if mode == "all" { "1" } else { "0.01" };
        command.env("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint);
        command.env("OTEL_METRICS_EXPORTER", "none");
        command.env("OTEL_TRACES_SAMPLER", "parentbased_traceidratio");
        command.env("OTEL_TRACES_SAMPLER_ARG", ratio);
    }
    let output = command.output().expect("runs");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let mut figures = text
        .split_whitespace()
        .map(|figure| figure.parse().expect("a figure"));
    (figures.next().expect("two"), figures.next().expect("two"))
}

fn child() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let telemetry = Telemetry::start(Program {
            name: "bench",
            protocols: Protocols::Http,
            // As a server has it: what is logged decides what is looked at.
            logs: Some(logs::Arguments::default()),
            is_lasting: true,
            always_traced: false,
        });
        let options = nodestats_store::Options {
            retention: Duration::from_hours(876_000),
            memory: MemoryBudget::from_limit(0),
            node_quota: None,
            retention_minute: Duration::from_hours(24 * 90),
            retention_hour: Duration::from_hours(24 * 730),
            max_size: None,
            meter: telemetry.registry().meter("nodestats.store"),
        };
        let store = Store::open(&Location::Memory, &options)
            .await
            .expect("opens");
        let options = Options {
            registry: telemetry.registry().clone(),
            ..Options::default()
        };
        let router = router(App::new(store, options));
        let ask = async |request: http::request::Builder, body: Vec<u8>| {
            let request = request.header(header::HOST, "localhost");
            let request = request.body(Body::from(body)).expect("a request");
            let answer = router.clone().oneshot(request).await.expect("an answer");
            assert!(answer.status().is_success(), "{}", answer.status());
        };
        let json = r#"{"ip": "192.0.2.1", "hostname": "bench"}"#;
        let register = Request::post("/nodes").header(header::CONTENT_TYPE, "application/json");
        ask(register, json.into()).await;
        let mut frames =
            Frames::new(Timestamp::from_system(SystemTime::now()).plus_micros(-3_600_000_000));
        let mut push = async || {
            let request = Request::put("/nodes/bench");
            let request = request.header(header::CONTENT_TYPE, routes::FRAMES_MEDIA_TYPE);
            ask(request, frames.next_frame()).await;
        };
        for _ in 0..WARM {
            push().await;
        }
        let (cpu, clock) = (cpu_time(), Instant::now());
        for _ in 0..PUSHES {
            push().await;
        }
        let each = |time: Duration| time.as_secs_f64() * 1e6 / PUSHES as f64;
        println!(
            "{} {}",
            each(cpu_time().saturating_sub(cpu)),
            each(clock.elapsed())
        );
        telemetry.end().await;
    });
}

/// CPU time of this process so far.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(
        time.tv_sec.unsigned_abs(),
        u32::try_from(time.tv_nsec).unwrap_or_default(),
    )
}
