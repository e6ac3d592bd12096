//! What the controller counts of itself, and whether it is ready. All attributes are of closed sets.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use kube::runtime::watcher;
use nodestats_k8s::Phase;
use nodestats_runtime::admin::Admin;
use nodestats_runtime::metrics::{self, Registry, SECONDS};
use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Histogram, Meter};

/// Why a request to the API server failed: the label `reason`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    Conflict,
    Gone,
    TooManyRequests,
    Forbidden,
    ServerError,
    Timeout,
    Unparsable,
    Network,
    Other,
}

impl Failure {
    const ALL: [(Self, &str); 9] = [
        (Self::Conflict, "conflict"),
        (Self::Gone, "gone"),
        (Self::TooManyRequests, "too_many_requests"),
        (Self::Forbidden, "forbidden"),
        (Self::ServerError, "server_error"),
        (Self::Timeout, "timeout"),
        (Self::Unparsable, "unparsable"),
        (Self::Network, "network"),
        (Self::Other, "other"),
    ];

    fn attributes(self) -> [KeyValue; 1] {
        let label = Self::ALL.iter().find(|(one, _)| *one == self);
        let label = label.map_or("other", |(_, label)| *label);
        [KeyValue::new("reason", label)]
    }

    fn of_code(code: u16) -> Self {
        match code {
            401 | 403 => Self::Forbidden,
            409 => Self::Conflict,
            410 => Self::Gone,
            429 => Self::TooManyRequests,
            500.. => Self::ServerError,
            _ => Self::Other,
        }
    }

    fn of(error: &kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => Self::of_code(status.code),
            kube::Error::SerdeError(_) => Self::Unparsable,
            kube::Error::HyperError(_) | kube::Error::Service(_) | kube::Error::ReadEvents(_) => {
                Self::Network
            }
            _ => Self::Other,
        }
    }

    fn of_watch(error: &watcher::Error) -> Self {
        match error {
            watcher::Error::InitialListFailed(error)
            | watcher::Error::WatchStartFailed(error)
            | watcher::Error::WatchFailed(error) => Self::of(error),
            watcher::Error::WatchError(status) => Self::of_code(status.code),
            watcher::Error::NoResourceVersion => Self::Other,
        }
    }
}

/// Whether this replica acts.
const STARTING: u8 = 0;
const STANDBY: u8 = 1;
const LEADER: u8 = 2;

/// Instruments of one process, and whether it is ready.
#[derive(Debug)]
pub struct Metrics {
    known: Arc<Known>,
    reconciled: Counter<u64>,
    reconcile_duration: Histogram<f64>,
    requests_failed: Counter<u64>,
    watches_failed: Counter<u64>,
    writes: Counter<u64>,
    registrations: Counter<u64>,
    departures: Counter<u64>,
    events: Counter<u64>,
    polls_failed: Counter<u64>,
    pods_told: Counter<u64>,
    pods_failed: Counter<u64>,
}

/// What is as it is now.
#[derive(Debug, Default)]
struct Known {
    role: AtomicU8,
    api_up: AtomicU8,
    phases: [AtomicU64; Phase::ALL.len()],
    without_agent: AtomicU64,
    pods: AtomicU64,
}

/// How a reconcile ended: the attribute `result`.
const RESULTS: [&str; 2] = ["success", "error"];
/// The part of an object that was written: the attribute `field`.
const FIELDS: [&str; 2] = ["status", "spec"];

impl Default for Metrics {
    /// Instruments that nobody reads.
    fn default() -> Self {
        Self::new(&Registry::default())
    }
}

impl Metrics {
    /// Makes the instruments.
    pub fn new(registry: &Registry) -> Self {
        let meter = registry.meter("nodestats.controller");
        let known = Arc::new(Known::default());
        known.observe(&meter);
        let count = |name, help| metrics::counter(&meter, name, help, &[&[]]);
        let by = |name, help, label: &'static str, values: &[&'static str]| {
            let each: Vec<_> = values
                .iter()
                .map(|value| [KeyValue::new(label, *value)])
                .collect();
            let each: Vec<&[KeyValue]> = each.iter().map(<[_; 1]>::as_slice).collect();
            metrics::counter(&meter, name, help, &each)
        };
        let reasons = Failure::ALL.map(|(_, label)| label);
        Self {
            reconciled: by(
                "nodestats.controller.reconciles",
                "Nodes looked at, by result.",
                "result",
                &RESULTS,
            ),
            reconcile_duration: meter
                .f64_histogram("nodestats.controller.reconcile.duration")
                .with_description("How long it took to look at one node.")
                .with_unit("s")
                .with_boundaries(SECONDS.to_vec())
                .build(),
            requests_failed: by(
                "nodestats.controller.request.failures",
                "Requests to the API server that failed.",
                "reason",
                &reasons,
            ),
            watches_failed: by(
                "nodestats.controller.watch.failures",
                "Failures of watches and objects that cannot be read.",
                "reason",
                &reasons,
            ),
            writes: by(
                "nodestats.controller.writes",
                "Writes of MonitoredNodes.",
                "field",
                &FIELDS,
            ),
            registrations: count(
                "nodestats.controller.registrations",
                "Registrations that the API took.",
            ),
            departures: count(
                "nodestats.controller.departures",
                "Nodes retired or purged.",
            ),
            events: count("nodestats.controller.events", "Events published."),
            polls_failed: count(
                "nodestats.controller.poll.failures",
                "Questions that the API did not answer.",
            ),
            pods_told: count(
                "nodestats.controller.pods.told",
                "States of pods that the API was told.",
            ),
            pods_failed: count(
                "nodestats.controller.pods.failures",
                "Times that telling of pods began anew after a failure.",
            ),
            known,
        }
    }

    pub(crate) fn reconciled(&self, took: Duration, success: bool) {
        let result = [KeyValue::new("result", RESULTS[usize::from(!success)])];
        self.reconciled.add(1, &result);
        self.reconcile_duration.record(took.as_secs_f64(), &[]);
    }

    pub(crate) fn status_written(&self) {
        self.writes.add(1, &[KeyValue::new("field", FIELDS[0])]);
    }

    pub(crate) fn spec_written(&self) {
        self.writes.add(1, &[KeyValue::new("field", FIELDS[1])]);
    }

    pub(crate) fn registered(&self) {
        self.registrations.add(1, &[]);
    }

    pub(crate) fn departed(&self) {
        self.departures.add(1, &[]);
    }

    pub(crate) fn event_published(&self) {
        self.events.add(1, &[]);
    }

    pub(crate) fn poll_failed(&self) {
        self.polls_failed.add(1, &[]);
    }

    pub(crate) fn pods_told(&self, count: usize) {
        self.pods_told.add(count as u64, &[]);
    }

    pub(crate) fn pods_failed(&self) {
        self.pods_failed.add(1, &[]);
    }

    /// So many pods live, as far as was told.
    pub(crate) fn set_pods(&self, count: usize) {
        self.known.pods.store(count as u64, Ordering::Relaxed);
    }

    pub(crate) fn request_failed(&self, error: &kube::Error) {
        self.requests_failed
            .add(1, &Failure::of(error).attributes());
    }

    pub(crate) fn request_timed_out(&self) {
        self.requests_failed.add(1, &Failure::Timeout.attributes());
    }

    pub(crate) fn unparsable(&self) {
        self.watches_failed
            .add(1, &Failure::Unparsable.attributes());
    }

    pub(crate) fn watch_failed(&self, error: &watcher::Error) {
        self.watches_failed
            .add(1, &Failure::of_watch(error).attributes());
    }

    pub(crate) fn set_leader(&self) {
        self.known.role.store(LEADER, Ordering::Relaxed);
    }

    pub(crate) fn set_standby(&self) {
        self.known.role.store(STANDBY, Ordering::Relaxed);
    }

    pub(crate) fn set_api_up(&self, up: bool) {
        self.known.api_up.store(u8::from(up), Ordering::Relaxed);
    }

    pub(crate) fn set_nodes(&self, phases: impl Iterator<Item = Phase>, without_agent: usize) {
        let mut counts = [0; Phase::ALL.len()];
        for phase in phases {
            if let Some(index) = Phase::ALL.iter().position(|one| *one == phase) {
                counts[index] += 1;
            }
        }
        for (gauge, count) in self.known.phases.iter().zip(counts) {
            gauge.store(count, Ordering::Relaxed);
        }
        let gauge = &self.known.without_agent;
        gauge.store(without_agent as u64, Ordering::Relaxed);
    }
}

impl Known {
    fn observe(self: &Arc<Self>, meter: &Meter) {
        for (name, help, figure) in [
            (
                "nodestats.controller.leader",
                "1 where this replica acts.",
                (|known| u64::from(known.role.load(Ordering::Relaxed) == LEADER))
                    as fn(&Self) -> u64,
            ),
            (
                "nodestats.controller.api.up",
                "1 while the API answers.",
                |known| u64::from(known.api_up.load(Ordering::Relaxed)),
            ),
            (
                "nodestats.controller.nodes_without_agent",
                "Nodes that lack an agent for too long.",
                |known| known.without_agent.load(Ordering::Relaxed),
            ),
            (
                "nodestats.controller.pods",
                "Pods that live, as the API was told.",
                |known| known.pods.load(Ordering::Relaxed),
            ),
        ] {
            let known = Arc::clone(self);
            meter
                .u64_observable_gauge(name)
                .with_description(help)
                .with_callback(move |observer| observer.observe(figure(&known), &[]))
                .build();
        }
        let known = Arc::clone(self);
        meter
            .u64_observable_gauge("nodestats.controller.nodes")
            .with_description("MonitoredNodes by phase.")
            .with_callback(move |observer| {
                for (phase, count) in Phase::ALL.iter().zip(&known.phases) {
                    let phase = KeyValue::new("phase", format!("{phase:?}"));
                    observer.observe(count.load(Ordering::Relaxed), &[phase]);
                }
            })
            .build();
    }
}

impl Admin for Metrics {
    fn ready(&self) -> Result<(), String> {
        match self.known.role.load(Ordering::Relaxed) {
            STARTING => Err("neither leader nor standby: the lease cannot be read".to_owned()),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use nodestats_runtime::metrics::Format;

    use super::*;

    #[test]
    fn every_line_is_of_a_family_and_labels_are_closed() {
        let registry = Registry::default();
        let metrics = Metrics::new(&registry);
        assert!(metrics.ready().is_err());
        metrics.set_standby();
        assert!(metrics.ready().is_ok());
        metrics.set_nodes([Phase::Lost, Phase::Lost, Phase::Ready].into_iter(), 2);
        metrics.request_timed_out();
        metrics.reconciled(Duration::from_millis(3), false);
        let text = registry.render(Format::Text);
        for line in [
            "nodestats_controller_nodes{phase=\"Lost\"} 2",
            "nodestats_controller_nodes_without_agent 2",
            "nodestats_controller_request_failures_total{reason=\"timeout\"} 1",
            "nodestats_controller_watch_failures_total{reason=\"gone\"} 0",
            "nodestats_controller_reconciles_total{result=\"error\"} 1",
            "nodestats_controller_reconciles_total{result=\"success\"} 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in {text}");
        }
        assert_eq!(Failure::of_code(503), Failure::ServerError);
    }
}
