//! What the controller counts of itself, in Prometheus text format. All labels are from closed sets.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use kube::runtime::watcher;
use nodestats_k8s::Phase;
use nodestats_runtime::admin::Admin;

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

/// Counters and gauges of one process.
#[derive(Debug, Default)]
pub struct Metrics {
    role: AtomicU8,
    api_up: AtomicU8,
    reconciled: AtomicU64,
    requests_failed: [AtomicU64; Failure::ALL.len()],
    watches_failed: [AtomicU64; Failure::ALL.len()],
    status_writes: AtomicU64,
    spec_writes: AtomicU64,
    registrations: AtomicU64,
    departures: AtomicU64,
    events: AtomicU64,
    polls_failed: AtomicU64,
    phases: [AtomicU64; Phase::ALL.len()],
    without_agent: AtomicU64,
}

macro_rules! count {
    ($($name:ident => $field:ident),* $(,)?) => {
        $(pub(crate) fn $name(&self) {
            self.$field.fetch_add(1, Ordering::Relaxed);
        })*
    };
}

impl Metrics {
    count! {
        reconciled => reconciled,
        status_written => status_writes,
        spec_written => spec_writes,
        registered => registrations,
        departed => departures,
        event_published => events,
        poll_failed => polls_failed,
    }

    pub(crate) fn request_failed(&self, error: &kube::Error) {
        count_failure(&self.requests_failed, Failure::of(error));
    }

    pub(crate) fn request_timed_out(&self) {
        count_failure(&self.requests_failed, Failure::Timeout);
    }

    pub(crate) fn unparsable(&self) {
        count_failure(&self.watches_failed, Failure::Unparsable);
    }

    pub(crate) fn watch_failed(&self, error: &watcher::Error) {
        count_failure(&self.watches_failed, Failure::of_watch(error));
    }

    pub(crate) fn set_leader(&self) {
        self.role.store(LEADER, Ordering::Relaxed);
    }

    pub(crate) fn set_standby(&self) {
        self.role.store(STANDBY, Ordering::Relaxed);
    }

    pub(crate) fn set_api_up(&self, up: bool) {
        self.api_up.store(u8::from(up), Ordering::Relaxed);
    }

    pub(crate) fn set_nodes(&self, phases: impl Iterator<Item = Phase>, without_agent: usize) {
        let mut counts = [0; Phase::ALL.len()];
        for phase in phases {
            if let Some(index) = Phase::ALL.iter().position(|one| *one == phase) {
                counts[index] += 1;
            }
        }
        for (gauge, count) in self.phases.iter().zip(counts) {
            gauge.store(count, Ordering::Relaxed);
        }
        self.without_agent
            .store(without_agent as u64, Ordering::Relaxed);
    }
}

fn count_failure(counters: &[AtomicU64; Failure::ALL.len()], failure: Failure) {
    for ((one, _), counter) in Failure::ALL.iter().zip(counters) {
        counter.fetch_add(u64::from(*one == failure), Ordering::Relaxed);
    }
}

impl Admin for Metrics {
    fn ready(&self) -> Result<(), String> {
        match self.role.load(Ordering::Relaxed) {
            STARTING => Err("neither leader nor standby: the lease cannot be read".to_owned()),
            _ => Ok(()),
        }
    }

    fn metrics(&self) -> String {
        let mut text = String::new();
        let mut family = |name: &str, kind: &str, help: &str, rows: &[(String, u64)]| {
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
            for (labels, value) in rows {
                let _ = writeln!(text, "{name}{labels} {value}");
            }
        };
        let one = |value: &AtomicU64| [(String::new(), value.load(Ordering::Relaxed))];
        let version = format!("{{version=\"{}\"}}", env!("CARGO_PKG_VERSION"));
        family(
            "nodestats_build_info",
            "gauge",
            "The version of this program.",
            &[(version, 1)],
        );
        let leader = u64::from(self.role.load(Ordering::Relaxed) == LEADER);
        family(
            "nodestats_controller_leader",
            "gauge",
            "1 where this replica acts.",
            &[(String::new(), leader)],
        );
        let up = u64::from(self.api_up.load(Ordering::Relaxed));
        family(
            "nodestats_controller_api_up",
            "gauge",
            "1 while the API answers.",
            &[(String::new(), up)],
        );
        family(
            "nodestats_controller_reconciles_total",
            "counter",
            "Nodes looked at.",
            &one(&self.reconciled),
        );
        for (name, help, counters) in [
            (
                "nodestats_controller_request_failures_total",
                "Requests to the API server that failed.",
                &self.requests_failed,
            ),
            (
                "nodestats_controller_watch_failures_total",
                "Failures of watches and objects that cannot be read.",
                &self.watches_failed,
            ),
        ] {
            let row = |((_, label), value): (&(Failure, &str), &AtomicU64)| {
                (
                    format!("{{reason=\"{label}\"}}"),
                    value.load(Ordering::Relaxed),
                )
            };
            let rows: Vec<_> = Failure::ALL.iter().zip(counters).map(row).collect();
            family(name, "counter", help, &rows);
        }
        let writes = [
            (
                "{field=\"status\"}".to_owned(),
                self.status_writes.load(Ordering::Relaxed),
            ),
            (
                "{field=\"spec\"}".to_owned(),
                self.spec_writes.load(Ordering::Relaxed),
            ),
        ];
        family(
            "nodestats_controller_writes_total",
            "counter",
            "Writes of MonitoredNodes.",
            &writes,
        );
        family(
            "nodestats_controller_registrations_total",
            "counter",
            "Registrations that the API took.",
            &one(&self.registrations),
        );
        family(
            "nodestats_controller_departures_total",
            "counter",
            "Nodes retired or purged.",
            &one(&self.departures),
        );
        family(
            "nodestats_controller_events_total",
            "counter",
            "Events published.",
            &one(&self.events),
        );
        family(
            "nodestats_controller_poll_failures_total",
            "counter",
            "Questions that the API did not answer.",
            &one(&self.polls_failed),
        );
        let row = |(phase, value): (&Phase, &AtomicU64)| {
            (
                format!("{{phase=\"{phase:?}\"}}"),
                value.load(Ordering::Relaxed),
            )
        };
        let rows: Vec<_> = Phase::ALL.iter().zip(&self.phases).map(row).collect();
        family(
            "nodestats_controller_nodes",
            "gauge",
            "MonitoredNodes by phase.",
            &rows,
        );
        family(
            "nodestats_controller_nodes_without_agent",
            "gauge",
            "Nodes that lack an agent for too long.",
            &one(&self.without_agent),
        );
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_of_a_family_and_labels_are_closed() {
        let metrics = Metrics::default();
        assert!(metrics.ready().is_err());
        metrics.set_standby();
        assert!(metrics.ready().is_ok());
        metrics.set_nodes([Phase::Lost, Phase::Lost, Phase::Ready].into_iter(), 2);
        metrics.request_timed_out();
        let text = metrics.metrics();
        for line in [
            "nodestats_controller_nodes{phase=\"Lost\"} 2",
            "nodestats_controller_nodes_without_agent 2",
            "nodestats_controller_request_failures_total{reason=\"timeout\"} 1",
            "nodestats_controller_watch_failures_total{reason=\"gone\"} 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in {text}");
        }
        assert_eq!(Failure::of_code(503), Failure::ServerError);
    }
}
