//! What the agent counts of itself, in Prometheus text format.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use nodestats_runtime::admin::Admin;

use crate::queue::SharedQueue;

/// Counters of one process.
pub(crate) struct Metrics {
    queue: Arc<SharedQueue>,
    pushed: AtomicU64,
    push_failures: AtomicU64,
    dropped: AtomicU64,
    member_failures: AtomicU64,
    member_writes: AtomicU64,
    must_join: AtomicBool,
    /// Why the node's resource is not kept at the moment.
    obstacle: Mutex<Option<String>>,
}

impl Metrics {
    pub(crate) fn new(queue: Arc<SharedQueue>) -> Self {
        Self {
            queue,
            pushed: AtomicU64::new(0),
            push_failures: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            member_failures: AtomicU64::new(0),
            member_writes: AtomicU64::new(0),
            must_join: AtomicBool::new(false),
            obstacle: Mutex::new(None),
        }
    }

    pub(crate) fn pushed(&self, samples: usize) {
        self.pushed.fetch_add(samples as u64, Ordering::Relaxed);
    }

    pub(crate) fn push_failed(&self) {
        self.push_failures.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn dropped(&self, samples: u64) {
        self.dropped.fetch_add(samples, Ordering::Relaxed);
    }

    pub(crate) fn member_wrote(&self) {
        self.member_writes.fetch_add(1, Ordering::Relaxed);
    }

    /// The agent is in a cluster: it is ready when its node's resource is kept.
    pub(crate) fn must_join(&self) {
        self.must_join.store(true, Ordering::Relaxed);
    }

    pub(crate) fn joined(&self) {
        self.must_join.store(false, Ordering::Relaxed);
        *self.obstacle.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    pub(crate) fn hindered(&self, reason: &str) {
        self.member_failures.fetch_add(1, Ordering::Relaxed);
        *self.obstacle.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason.to_owned());
    }
}

impl Admin for Metrics {
    fn ready(&self) -> Result<(), String> {
        let obstacle = self.obstacle.lock().unwrap_or_else(PoisonError::into_inner);
        match &*obstacle {
            Some(reason) => Err(reason.clone()),
            None if self.must_join.load(Ordering::Relaxed) => {
                Err("the node's MonitoredNode is not applied yet".to_owned())
            }
            None => Ok(()),
        }
    }

    fn metrics(&self) -> String {
        let mut text = String::new();
        let (waiting, bytes) = self.queue.with(|queue| (queue.len(), queue.bytes()));
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        for (name, kind, help, value) in [
            (
                "samples_pushed_total",
                "counter",
                "Samples that the server stored.",
                load(&self.pushed),
            ),
            (
                "push_failures_total",
                "counter",
                "Pushes that the server did not take.",
                load(&self.push_failures),
            ),
            (
                "samples_dropped_total",
                "counter",
                "Samples dropped from a full buffer.",
                load(&self.dropped),
            ),
            (
                "buffer_samples",
                "gauge",
                "Samples that wait.",
                waiting as u64,
            ),
            ("buffer_bytes", "gauge", "Their bytes.", bytes as u64),
            (
                "monitorednode_writes_total",
                "counter",
                "Writes of the node's resource.",
                load(&self.member_writes),
            ),
            (
                "monitorednode_failures_total",
                "counter",
                "Attempts to keep it that failed.",
                load(&self.member_failures),
            ),
        ] {
            let name = format!("nodestats_agent_{name}");
            let _ = writeln!(
                text,
                "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}"
            );
        }
        text
    }
}
