//! What the store counts of itself.

use std::path::Path;
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Histogram, Meter};

use crate::MemoryBudget;
use crate::database::{self, Database};
use crate::directory;
use crate::usage::Usage;

/// Upper bounds of histograms of time, in seconds.
const SECONDS: [f64; 12] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0,
];
/// Upper bounds of histograms of rows and pushes.
const ROWS: [f64; 9] = [1.0, 2.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0];

/// Instruments of one store. Cloning is cheap.
#[derive(Clone)]
pub(crate) struct Metrics {
    batch_rows: Histogram<u64>,
    batch_pushes: Histogram<u64>,
    transaction: Histogram<f64>,
    bytes: Counter<u64>,
    values: Counter<u64>,
    retention: Histogram<f64>,
    sealing: Histogram<f64>,
    sealed: Counter<u64>,
    sealed_bytes: Counter<u64>,
    damaged: Counter<u64>,
    deleted_early: Counter<u64>,
}

impl Metrics {
    pub(crate) fn new(
        meter: &Meter,
        database: &Database,
        usage: &Usage,
        memory: &MemoryBudget,
    ) -> Self {
        observe(meter, database, usage, memory);
        let rows = |name, help| {
            let histogram = meter.u64_histogram(name).with_description(help);
            histogram.with_boundaries(ROWS.to_vec()).build()
        };
        let seconds = |name, help| {
            let histogram = meter.f64_histogram(name).with_description(help);
            let histogram = histogram.with_unit("s").with_boundaries(SECONDS.to_vec());
            histogram.build()
        };
        let counter = |name, help| {
            let counter = meter.u64_counter(name).with_description(help).build();
            counter.add(0, &[]);
            counter
        };
        Self {
            batch_rows: rows(
                "nodestats.store.batch.rows",
                "Rows of a transaction that stores samples.",
            ),
            batch_pushes: rows(
                "nodestats.store.batch.pushes",
                "Pushes that share a transaction.",
            ),
            transaction: seconds(
                "nodestats.store.transaction.duration",
                "From handing samples to the database until they are synced, by outcome.",
            ),
            bytes: counter(
                "nodestats.store.frame.bytes",
                "Bytes of agents' samples that were stored, as they are kept.",
            ),
            values: counter("nodestats.store.frame.values", "Figures in them."),
            retention: seconds(
                "nodestats.store.retention.duration",
                "One look at what is older than the retention, by outcome.",
            ),
            sealing: seconds(
                "nodestats.store.sealing.duration",
                "One look at what is to be sealed, by outcome.",
            ),
            sealed: counter(
                "nodestats.store.sealed",
                "Samples that were put into blocks.",
            ),
            sealed_bytes: counter(
                "nodestats.store.sealed.bytes",
                "Bytes of the blocks that they were put into.",
            ),
            deleted_early: counter(
                "nodestats.store.deleted.early.bytes",
                "Bytes of samples that went before their retention ended, because all were too large.",
            ),
            damaged: counter(
                "nodestats.store.damaged",
                "Stored samples and blocks that could not be read and were set aside.",
            ),
        }
    }

    /// A transaction ended.
    pub(crate) fn wrote(&self, pushes: usize, rows: usize, took: Duration, success: bool) {
        let outcome = if success { "stored" } else { "failed" };
        let outcome = [KeyValue::new("outcome", outcome)];
        self.transaction.record(took.as_secs_f64(), &outcome);
        if success {
            self.batch_rows.record(rows as u64, &[]);
            self.batch_pushes.record(pushes as u64, &[]);
        }
    }

    /// What an agent's samples took.
    pub(crate) fn stored(&self, bytes: u64, values: u64) {
        self.bytes.add(bytes, &[]);
        self.values.add(values, &[]);
    }

    /// Samples became blocks of so many bytes.
    pub(crate) fn sealed(&self, samples: u64, bytes: u64) {
        self.sealed.add(samples, &[]);
        self.sealed_bytes.add(bytes, &[]);
    }

    /// A look at what is to be sealed ended.
    pub(crate) fn looked_to_seal(&self, took: Duration, success: bool) {
        let outcome = if success { "done" } else { "failed" };
        let outcome = [KeyValue::new("outcome", outcome)];
        self.sealing.record(took.as_secs_f64(), &outcome);
    }

    /// So much went before its retention ended.
    pub(crate) fn deleted_early(&self, bytes: u64) {
        self.deleted_early.add(bytes, &[]);
    }

    /// Something stored cannot be read.
    pub(crate) fn damaged(&self) {
        self.damaged.add(1, &[]);
    }

    /// A look at the retention ended.
    pub(crate) fn retained(&self, took: Duration, success: bool) {
        let outcome = if success { "done" } else { "failed" };
        let outcome = [KeyValue::new("outcome", outcome)];
        self.retention.record(took.as_secs_f64(), &outcome);
    }
}

fn observe(meter: &Meter, database: &Database, usage: &Usage, memory: &MemoryBudget) {
    let counted = usage.clone();
    meter
        .u64_observable_gauge("nodestats.store.history")
        .with_description("Bytes of samples that are kept, of all nodes.")
        .with_unit("By")
        .with_callback(move |observer| observer.observe(counted.bytes(), &[]))
        .build();
    let counted = usage.clone();
    meter
        .u64_observable_gauge("nodestats.store.nodes")
        .with_description("Nodes that have a history.")
        .with_callback(move |observer| observer.observe(counted.nodes(), &[]))
        .build();
    for (name, help, unit, figure) in [
        (
            "nodestats.store.database.size",
            "Bytes of the database's folder.",
            "By",
            folder_bytes as fn(&Path) -> Option<u64>,
        ),
        (
            "nodestats.store.disk.available",
            "Bytes that the disk of the database's folder has left.",
            "By",
            database::available,
        ),
        (
            "nodestats.store.databases.set.aside",
            "Databases beside the present one that were damaged.",
            "",
            |database| directory::count_aside(database.parent()?).ok(),
        ),
    ] {
        // Not the database: it is closed when the last that has it is gone.
        let Some(folder) = database.folder().map(Path::to_owned) else {
            continue;
        };
        meter
            .u64_observable_gauge(name)
            .with_description(help)
            .with_unit(unit)
            .with_callback(move |observer| {
                if let Some(figure) = figure(&folder) {
                    observer.observe(figure, &[]);
                }
            })
            .build();
    }
    let budget = [
        ("blocks", memory.block_cache),
        ("memtable", memory.memtable),
    ];
    meter
        .u64_observable_gauge("nodestats.store.memory.limit")
        .with_description("Bytes that the database may take, by what for.")
        .with_unit("By")
        .with_callback(move |observer| {
            for (cache, bytes) in budget {
                observer.observe(bytes, &[KeyValue::new("cache", cache)]);
            }
        })
        .build();
}

/// Bytes of all files below a folder.
fn folder_bytes(folder: &Path) -> Option<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder).ok()?.flatten() {
        // A file may be merged away meanwhile.
        let Ok(known) = entry.metadata() else {
            continue;
        };
        bytes += if known.is_dir() {
            folder_bytes(&entry.path()).unwrap_or_default()
        } else {
            known.len()
        };
    }
    Some(bytes)
}
