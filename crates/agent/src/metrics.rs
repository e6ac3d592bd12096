//! What the agent counts of itself, and whether it is ready.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nodestats_runtime::admin::Admin;
use nodestats_runtime::metrics::{self, Registry, SECONDS};
use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Histogram};

use crate::queue::SharedQueue;

/// Instruments of one agent. All attributes are of closed sets.
pub(crate) struct Metrics {
    pushed: Counter<u64>,
    sent_bytes: Counter<u64>,
    push_failures: Counter<u64>,
    push_duration: Histogram<f64>,
    dropped: Counter<u64>,
    damaged: Counter<u64>,
    collect_duration: Histogram<f64>,
    collect_failures: Counter<u64>,
    member_failures: Counter<u64>,
    member_writes: Counter<u64>,
    must_join: AtomicBool,
    /// Why the node's resource is not kept at the moment.
    obstacle: Mutex<Option<String>>,
}

impl Metrics {
    pub(crate) fn new(registry: &Registry, queue: &Arc<SharedQueue>) -> Self {
        let meter = registry.meter("nodestats.agent");
        let count = |name, help| metrics::counter(&meter, name, help, &[&[]]);
        for (name, help, unit, figure) in [
            (
                "nodestats.agent.buffer.samples",
                "Samples that wait for the server.",
                "",
                (|queue| queue.with(|queue| queue.len())) as fn(&SharedQueue) -> usize,
            ),
            (
                "nodestats.agent.buffer",
                "Bytes of samples that wait for the server.",
                "By",
                |queue| queue.with(|queue| queue.bytes()),
            ),
            (
                "nodestats.agent.buffer.limit",
                "Bytes of samples that may wait.",
                "By",
                |queue| queue.with(|queue| queue.limit()),
            ),
        ] {
            // The instruments outlive an agent that ends before its program.
            let queue = Arc::downgrade(queue);
            meter
                .u64_observable_gauge(name)
                .with_description(help)
                .with_unit(unit)
                .with_callback(move |observer| {
                    if let Some(queue) = queue.upgrade() {
                        observer.observe(figure(&queue) as u64, &[]);
                    }
                })
                .build();
        }
        let seconds = |name, help| {
            let histogram = meter.f64_histogram(name).with_description(help);
            let histogram = histogram.with_unit("s").with_boundaries(SECONDS.to_vec());
            histogram.build()
        };
        Self {
            pushed: count(
                "nodestats.agent.samples.pushed",
                "Samples that the server stored.",
            ),
            sent_bytes: count(
                "nodestats.agent.sent.bytes",
                "Bytes of samples that the server stored, as they were sent.",
            ),
            push_failures: count(
                "nodestats.agent.push.failures",
                "Pushes, and registrations, that the server did not take.",
            ),
            push_duration: seconds(
                "nodestats.agent.push.duration",
                "From sending a push to its answer, by outcome.",
            ),
            dropped: count(
                "nodestats.agent.samples.dropped",
                "Samples dropped from a full buffer, and samples that the server refuses for good.",
            ),
            damaged: count(
                "nodestats.agent.buffer.damaged.bytes",
                "Bytes in the buffer's files that are no samples, such as what a crash left.",
            ),
            collect_duration: seconds(
                "nodestats.agent.collect.duration",
                "How long a collector took.",
            ),
            collect_failures: count(
                "nodestats.agent.collect.failures",
                "Collectors that had no figures in time.",
            ),
            member_failures: count(
                "nodestats.agent.monitorednode.failures",
                "Attempts to keep the node's resource that failed.",
            ),
            member_writes: count(
                "nodestats.agent.monitorednode.writes",
                "Writes of the node's resource.",
            ),
            must_join: AtomicBool::new(false),
            obstacle: Mutex::new(None),
        }
    }

    pub(crate) fn pushed(&self, samples: usize, bytes: usize) {
        self.pushed.add(samples as u64, &[]);
        self.sent_bytes.add(bytes as u64, &[]);
    }

    pub(crate) fn push_took(&self, took: Duration, success: bool) {
        let outcome = if success { "stored" } else { "failed" };
        let outcome = [KeyValue::new("outcome", outcome)];
        self.push_duration.record(took.as_secs_f64(), &outcome);
    }

    pub(crate) fn push_failed(&self) {
        self.push_failures.add(1, &[]);
    }

    pub(crate) fn dropped(&self, samples: u64) {
        self.dropped.add(samples, &[]);
    }

    pub(crate) fn damaged(&self, bytes: u64) {
        self.damaged.add(bytes, &[]);
    }

    pub(crate) fn collected(&self, collector: &str, took: Duration, success: bool) {
        let collector = [KeyValue::new("collector", collector.to_owned())];
        self.collect_duration.record(took.as_secs_f64(), &collector);
        self.collect_failures.add(u64::from(!success), &collector);
    }

    pub(crate) fn member_wrote(&self) {
        self.member_writes.add(1, &[]);
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
        self.member_failures.add(1, &[]);
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
}
