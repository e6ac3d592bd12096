//! What a program counts of itself: instruments of OpenTelemetry, read by whoever scrapes and, where
//! that is wanted, sent by OTLP. One set of instruments serves both.

mod exposition;
mod process;

use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use opentelemetry::metrics::{Counter, Meter, MeterProvider as _};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::metrics::data::ResourceMetrics;
use opentelemetry_sdk::metrics::reader::MetricReader;
use opentelemetry_sdk::metrics::{
    InstrumentKind, ManualReader, MeterProviderBuilder, Pipeline, SdkMeterProvider, Temporality,
};

pub use exposition::{Exposition, Format, Kind};

/// Upper bounds of histograms of time, in seconds: from a small read out of memory to what a caller
/// gives up.
pub const SECONDS: [f64; 14] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
];

/// The instruments of one process. Cloning is cheap; all clones are one.
#[derive(Clone)]
pub struct Registry {
    provider: SdkMeterProvider,
    scrape: Scrape,
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Registry")
    }
}

impl Default for Registry {
    /// Instruments that are scraped and not sent.
    fn default() -> Self {
        Self::build(|builder| builder)
    }
}

impl Registry {
    pub(crate) fn build(with: impl FnOnce(MeterProviderBuilder) -> MeterProviderBuilder) -> Self {
        let scrape = Scrape(Arc::new(ManualReader::default()));
        let builder = SdkMeterProvider::builder()
            .with_resource(Resource::builder_empty().build())
            .with_reader(scrape.clone());
        Self {
            provider: with(builder).build(),
            scrape,
        }
    }

    /// Where a room makes its instruments. Names are those of OpenTelemetry, `nodestats.samples.stored`;
    /// a scrape shows them as Prometheus has them, `nodestats_samples_stored_total`.
    pub fn meter(&self, room: &'static str) -> Meter {
        let scope = InstrumentationScope::builder(room).with_version(env!("CARGO_PKG_VERSION"));
        self.provider.meter_with_scope(scope.build())
    }

    /// What the process itself takes, and which version it is of which program.
    pub fn watch_process(&self, program: &'static str) {
        process::register(&self.meter("nodestats.runtime"), program);
    }

    /// All instruments as they are now.
    pub fn render(&self, format: Format) -> String {
        let mut metrics = ResourceMetrics::default();
        let mut exposition = Exposition::new(format);
        match self.scrape.collect(&mut metrics) {
            Ok(()) => exposition::write(&metrics, &mut exposition),
            Err(error) => tracing::warn!(%error, "the metrics cannot be read"),
        }
        exposition.finish()
    }

    pub(crate) fn provider(&self) -> &SdkMeterProvider {
        &self.provider
    }
}

/// A counter whose every attribute is there from the begin: a rule that asks for growth sees the first
/// one too.
pub fn counter(
    meter: &Meter,
    name: &'static str,
    help: &'static str,
    attributes: &[&[KeyValue]],
) -> Counter<u64> {
    let counter = meter.u64_counter(name).with_description(help).build();
    for attributes in attributes {
        counter.add(0, attributes);
    }
    counter
}

/// The reader behind a scrape, shared between the provider and who asks.
#[derive(Debug, Clone)]
struct Scrape(Arc<ManualReader>);

impl MetricReader for Scrape {
    fn register_pipeline(&self, pipeline: Weak<Pipeline>) {
        self.0.register_pipeline(pipeline);
    }

    fn collect(&self, metrics: &mut ResourceMetrics) -> OTelSdkResult {
        self.0.collect(metrics)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.0.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.0.shutdown_with_timeout(timeout)
    }

    fn temporality(&self, kind: InstrumentKind) -> Temporality {
        self.0.temporality(kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_units_are_those_of_prometheus() {
        let registry = Registry::default();
        let meter = registry.meter("test");
        let stored = counter(
            &meter,
            "nodestats.samples.stored",
            "Samples.",
            &[&[], &[KeyValue::new("error.type", "a\"b\nc")]],
        );
        stored.add(3, &[]);
        let lag = meter.f64_histogram("lag").with_unit("s");
        let lag = lag.with_boundaries(vec![0.5, 1.0]).build();
        lag.record(0.7, &[]);
        lag.record(9.0, &[]);
        let _bytes = meter
            .u64_observable_gauge("held")
            .with_unit("By")
            .with_callback(|observer| observer.observe(5, &[]))
            .build();
        let text = registry.render(Format::Text);
        for line in [
            "# HELP nodestats_samples_stored_total Samples.",
            "# TYPE nodestats_samples_stored_total counter",
            "nodestats_samples_stored_total 3",
            "nodestats_samples_stored_total{error_type=\"a\\\"b\\nc\"} 0",
            "# TYPE lag_seconds histogram",
            "lag_seconds_bucket{le=\"0.5\"} 0",
            "lag_seconds_bucket{le=\"1\"} 1",
            "lag_seconds_bucket{le=\"+Inf\"} 2",
            "lag_seconds_sum 9.7",
            "lag_seconds_count 2",
            "held_bytes 5",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in {text}");
        }
        let open = registry.render(Format::OpenMetrics);
        for line in [
            "# TYPE nodestats_samples_stored counter",
            "nodestats_samples_stored_total 3",
            "# UNIT lag_seconds seconds",
        ] {
            assert!(open.lines().any(|found| found == line), "{line} in {open}");
        }
        assert!(open.ends_with("\n# EOF\n"), "{open}");
    }

    #[test]
    fn a_process_knows_what_it_takes() {
        let registry = Registry::default();
        registry.watch_process("test");
        let text = registry.render(Format::Text);
        let value = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|value| value.trim().parse::<f64>().ok())
        };
        assert!(
            value("process_resident_memory_bytes").is_some_and(|bytes| bytes > 1e5),
            "{text}"
        );
        assert!(value("process_cpu_seconds_total").is_some(), "{text}");
        assert!(
            value("process_open_fds").is_some_and(|open| open > 0.0),
            "{text}"
        );
        assert!(
            value("process_start_time_seconds").is_some_and(|start| start > 1e9),
            "{text}"
        );
        assert!(
            text.contains("nodestats_build_info{program=\"test\",version="),
            "{text}"
        );
    }
}
