//! What this process takes of its host, by the names that all clients of Prometheus use.

use std::fs;

use opentelemetry::KeyValue;
use opentelemetry::metrics::Meter;
use rustix::param::{clock_ticks_per_second, page_size};

/// What `/proc/self` says.
struct Own {
    /// `stat` fields 14 and 15, in seconds.
    cpu_seconds: f64,
    /// `stat` field 22, in seconds after boot.
    started_seconds: f64,
    /// `stat` field 24, in bytes.
    resident_bytes: u64,
    /// `stat` field 23, in bytes.
    virtual_bytes: u64,
    /// `stat` field 20.
    threads: u64,
}

impl Own {
    fn read() -> Option<Self> {
        let stat = fs::read_to_string("/proc/self/stat").ok()?;
        // The name may hold blanks and brackets; the state is field 3.
        let (_, rest) = stat.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        let ticks = clock_ticks_per_second() as f64;
        Some(Self {
            cpu_seconds: (field(14)? + field(15)?) as f64 / ticks,
            started_seconds: field(22)? as f64 / ticks,
            resident_bytes: field(24)? * page_size() as u64,
            virtual_bytes: field(23)?,
            threads: field(20)?,
        })
    }
}

/// Seconds since 1970 at which this host booted (`btime`).
fn boot_time() -> Option<f64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    let line = stat.lines().find_map(|line| line.strip_prefix("btime "))?;
    line.trim().parse().ok()
}

fn open_files() -> Option<u64> {
    Some(fs::read_dir("/proc/self/fd").ok()?.count() as u64)
}

pub(super) fn register(meter: &Meter, program: &'static str) {
    let build = [
        KeyValue::new("program", program),
        KeyValue::new("version", env!("CARGO_PKG_VERSION")),
    ];
    meter
        .u64_observable_gauge("nodestats.build.info")
        .with_description("The program and its version.")
        .with_callback(move |observer| observer.observe(1, &build))
        .build();
    let started = Own::read().zip(boot_time());
    let started = started.map(|(own, boot)| boot + own.started_seconds);
    if let Some(started) = started {
        meter
            .f64_observable_gauge("process.start.time")
            .with_description("When the process started, since 1970.")
            .with_unit("s")
            .with_callback(move |observer| observer.observe(started, &[]))
            .build();
    }
    meter
        .f64_observable_counter("process.cpu")
        .with_description("CPU time of the process, of its user and system parts together.")
        .with_unit("s")
        .with_callback(|observer| {
            if let Some(own) = Own::read() {
                observer.observe(own.cpu_seconds, &[]);
            }
        })
        .build();
    for (name, help, figure) in [
        (
            "process.resident.memory",
            "Resident memory of the process.",
            (|own| own.resident_bytes) as fn(&Own) -> u64,
        ),
        (
            "process.virtual.memory",
            "Address space of the process.",
            |own| own.virtual_bytes,
        ),
    ] {
        meter
            .u64_observable_gauge(name)
            .with_description(help)
            .with_unit("By")
            .with_callback(move |observer| {
                if let Some(own) = Own::read() {
                    observer.observe(figure(&own), &[]);
                }
            })
            .build();
    }
    meter
        .u64_observable_gauge("process.threads")
        .with_description("Threads of the process.")
        .with_callback(|observer| {
            if let Some(own) = Own::read() {
                observer.observe(own.threads, &[]);
            }
        })
        .build();
    meter
        .u64_observable_gauge("process.open.fds")
        .with_description("Open file descriptors of the process.")
        .with_callback(|observer| {
            if let Some(open) = open_files() {
                observer.observe(open, &[]);
            }
        })
        .build();
}
