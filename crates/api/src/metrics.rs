//! What the API counts of itself. All attributes are of closed sets.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use nodestats_runtime::metrics::{self, Registry, SECONDS};
use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Histogram};

/// Upper bounds of the push lag in seconds: from a push at once to a backfill of hours.
const LAG: [f64; 12] = [
    0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 21600.0,
];

/// Instruments of one process.
#[derive(Debug)]
pub struct Metrics {
    samples_stored: Counter<u64>,
    frames: Counter<u64>,
    frame_bytes: Counter<u64>,
    denied: Counter<u64>,
    limited: Counter<u64>,
    cache: Counter<u64>,
    requests: Histogram<f64>,
    lag: Histogram<f64>,
}

/// A cache of the API: the attribute `cache`.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Cached {
    Tokens,
    Decisions,
}

impl Cached {
    const ALL: [Self; 2] = [Self::Tokens, Self::Decisions];

    fn attributes(self, hit: bool) -> [KeyValue; 2] {
        let cache = match self {
            Self::Tokens => "tokens",
            Self::Decisions => "decisions",
        };
        let outcome = if hit { "hit" } else { "miss" };
        [
            KeyValue::new("cache", cache),
            KeyValue::new("outcome", outcome),
        ]
    }
}

/// How a frame came: the attribute `form`.
fn form(is_delta: bool) -> [KeyValue; 1] {
    [KeyValue::new(
        "form",
        if is_delta { "delta" } else { "whole" },
    )]
}

impl Metrics {
    pub(crate) fn new(registry: &Registry) -> Self {
        let meter = registry.meter("nodestats.api");
        let count = |name, help| metrics::counter(&meter, name, help, &[&[]]);
        let seconds = |name, help, bounds: &[f64]| {
            let histogram = meter.f64_histogram(name).with_description(help);
            let histogram = histogram.with_unit("s").with_boundaries(bounds.to_vec());
            histogram.build()
        };
        let lookups = Cached::ALL.into_iter();
        let lookups: Vec<_> = lookups
            .flat_map(|cache| [cache.attributes(true), cache.attributes(false)])
            .collect();
        let lookups: Vec<&[KeyValue]> = lookups.iter().map(<[_; 2]>::as_slice).collect();
        let forms = [form(false), form(true)];
        let forms: Vec<&[KeyValue]> = forms.iter().map(<[_; 1]>::as_slice).collect();
        Self {
            samples_stored: count(
                "nodestats.samples.stored",
                "Samples that were stored and acknowledged.",
            ),
            frames: metrics::counter(
                &meter,
                "nodestats.frames",
                "Samples of agents that were read, whole or as what differs from one before.",
                &forms,
            ),
            frame_bytes: metrics::counter(
                &meter,
                "nodestats.frames.received.bytes",
                "Bytes of them as they came.",
                &forms,
            ),
            denied: count(
                "nodestats.denied.requests",
                "Requests of unknown callers, and of such that may not.",
            ),
            limited: count(
                "nodestats.limited.requests",
                "Requests beyond what one caller may ask for.",
            ),
            cache: metrics::counter(
                &meter,
                "nodestats.cache.lookups",
                "Looks at what Kubernetes has said lately, by what was found.",
                &lookups,
            ),
            requests: seconds(
                "http.server.request.duration",
                "From a request to the head of its answer, by route and class of status.",
                &SECONDS,
            ),
            lag: seconds(
                "nodestats.push.lag",
                "Age of the newest sample of a push when it comes, by the sender's clock.",
                &LAG,
            ),
        }
    }

    pub(crate) fn stored(&self, samples: u64, lag: Duration) {
        self.samples_stored.add(samples, &[]);
        self.lag.record(lag.as_secs_f64(), &[]);
    }

    /// A frame of a push was read.
    pub(crate) fn came(&self, is_delta: bool, bytes: usize) {
        self.frames.add(1, &form(is_delta));
        self.frame_bytes.add(bytes as u64, &form(is_delta));
    }

    pub(crate) fn denied(&self) {
        self.denied.add(1, &[]);
    }

    pub(crate) fn limited(&self) {
        self.limited.add(1, &[]);
    }

    pub(crate) fn looked_up(&self, cache: Cached, hit: bool) {
        self.cache.add(1, &cache.attributes(hit));
    }

    /// A request was answered. `route` is of the table of routes.
    pub(crate) fn answered(&self, method: &'static str, route: &str, status: u16, took: Duration) {
        const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];
        let class = usize::from(status / 100).clamp(1, CLASSES.len()) - 1;
        let attributes = [
            KeyValue::new("http.request.method", method),
            KeyValue::new("http.route", route.to_owned()),
            KeyValue::new("status", CLASSES[class]),
        ];
        self.requests.record(took.as_secs_f64(), &attributes);
    }
}

/// When the certificate that is shown ends. Cloning is cheap; all clones are one.
#[derive(Debug, Clone, Default)]
pub struct CertificateEnd(std::sync::Arc<AtomicI64>);

/// There is to be a certificate, and none is there yet.
const AWAITED: i64 = i64::MIN;

impl CertificateEnd {
    /// There will be one; until then nobody can come in.
    pub fn awaited() -> Self {
        Self(std::sync::Arc::new(AtomicI64::new(AWAITED)))
    }

    /// It is known, in seconds since 1970.
    pub fn set(&self, seconds: i64) {
        self.0.store(seconds, Ordering::Relaxed);
    }

    /// When it ends; `None` where there is none.
    pub fn get(&self) -> Option<i64> {
        let end = self.0.load(Ordering::Relaxed);
        (end != 0 && end != AWAITED).then_some(end)
    }

    /// Why nobody can come in with TLS, where that is so.
    pub(crate) fn obstacle(&self, now_seconds: i64) -> Option<&'static str> {
        match self.0.load(Ordering::Relaxed) {
            0 => None,
            AWAITED => Some("there is no certificate yet"),
            end if end <= now_seconds => Some("the certificate has ended"),
            _ => None,
        }
    }

    /// Shows it among the metrics.
    pub fn observe(&self, registry: &Registry) {
        let end = self.clone();
        registry
            .meter("nodestats.api")
            .i64_observable_gauge("nodestats.certificate.not_after")
            .with_description("When the certificate that is shown ends, since 1970.")
            .with_unit("s")
            .with_callback(move |observer| {
                if let Some(end) = end.get() {
                    observer.observe(end, &[]);
                }
            })
            .build();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_that_is_not_there_or_has_ended_is_an_obstacle() {
        let none = CertificateEnd::default();
        assert_eq!((none.obstacle(5), none.get()), (None, None));
        let end = CertificateEnd::awaited();
        assert!(end.obstacle(5).is_some() && end.get().is_none());
        end.set(10);
        assert_eq!((end.obstacle(5), end.get()), (None, Some(10)));
        assert!(end.obstacle(10).is_some());
    }
}
