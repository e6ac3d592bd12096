//! OpenTelemetry of a program: spans and metrics to a collector by OTLP, where the standard variables name
//! one, and nothing at all where they do not.
//!
//! Spans are those of `tracing`; they are made only while somebody takes them, so that without a
//! collector a span costs a look at one flag. What is exported waits in a queue of fixed size that nobody
//! waits for: when it is full spans are dropped and counted.

mod export;
mod trace;

use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::global;
use opentelemetry::propagation::{TextMapCompositePropagator, TextMapPropagator};
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::PeriodicReader;
use opentelemetry_sdk::propagation::{BaggagePropagator, TraceContextPropagator};
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracerProvider,
};

pub use trace::{Context, adopt, current_ids, here, part, past};

use crate::logs;
use crate::metrics::Registry;

/// Spans that wait for the collector, where `OTEL_BSP_MAX_QUEUE_SIZE` does not say otherwise: the queue's
/// memory is taken at once.
const QUEUE: usize = 512;
/// At the end what waits has this long to get to the collector.
const FLUSH_PATIENCE: Duration = Duration::from_secs(3);

/// How a program sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocols {
    /// OTLP over HTTP alone; gRPC would add more than a tenth to a small program.
    Http,
    /// Over gRPC too.
    HttpAndGrpc,
}

/// Which program it is.
#[derive(Debug, Clone)]
pub struct Program {
    /// `service.name` where `OTEL_SERVICE_NAME` says nothing.
    pub name: &'static str,
    /// How it may send.
    pub protocols: Protocols,
    /// How it logs; `None` where standard error is for a person.
    pub logs: Option<logs::Arguments>,
    /// It runs until it is told to end: its metrics are worth sending.
    pub is_lasting: bool,
    /// Spans are made, and each is sampled, also where nobody collects them: somebody wants to know the
    /// trace's id.
    pub always_traced: bool,
}

/// The telemetry of a running program.
#[derive(Debug)]
pub struct Telemetry {
    registry: Registry,
    tracer: Option<SdkTracerProvider>,
}

impl Telemetry {
    /// Sets everything up, logs included; within the runtime that exports will use. What is wrong with the
    /// variables is told in the log and leaves that part off: no program ends for its telemetry.
    pub fn start(program: Program) -> Self {
        let mut wrong = Vec::new();
        let signals = Signals::read(program.protocols, &mut wrong);
        let resource = resource(program.name);
        let metrics = signals.metrics.filter(|_| program.is_lasting);
        let metrics = metrics.and_then(|protocol| {
            export::metrics(protocol)
                .map_err(|error| wrong.push(format!("metrics are not exported: {error:#}")))
                .ok()
        });
        let registry = Registry::build(|builder| match metrics {
            Some(exporter) => {
                let reader = PeriodicReader::builder(exporter).build();
                builder.with_resource(resource.clone()).with_reader(reader)
            }
            None => builder,
        });
        // The SDK counts what it drops by this one.
        global::set_meter_provider(registry.provider().clone());
        registry.watch_process(program.name);
        let spans = signals.traces.and_then(|protocol| {
            export::spans(protocol, &registry)
                .map_err(|error| wrong.push(format!("traces are not exported: {error:#}")))
                .ok()
        });
        let tracer = (spans.is_some() || program.always_traced).then(|| {
            let mut builder = SdkTracerProvider::builder().with_resource(resource);
            if program.always_traced {
                builder = builder.with_sampler(Sampler::AlwaysOn);
            }
            if let Some(exporter) = spans {
                let mut config = BatchConfigBuilder::default();
                if std::env::var_os("OTEL_BSP_MAX_QUEUE_SIZE").is_none() {
                    config = config.with_max_queue_size(QUEUE);
                }
                let processor = BatchSpanProcessor::builder(exporter);
                let processor = processor.with_batch_config(config.build());
                builder = builder.with_span_processor(processor.build());
            }
            builder.build()
        });
        if let Some(tracer) = &tracer {
            global::set_text_map_propagator(propagator(&mut wrong));
            global::set_tracer_provider(tracer.clone());
        }
        let spans = tracer.as_ref().map(|tracer| tracer.tracer("nodestats"));
        logs::init(program.logs.as_ref(), spans);
        for wrong in wrong {
            tracing::warn!("{wrong}");
        }
        Self { registry, tracer }
    }

    /// The program's instruments.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Sends what waits, as far as there is time for it.
    pub async fn end(self) {
        // Side by side, on threads that nobody waits for: the SDK waits for longer than it is told.
        let Self { registry, tracer } = self;
        let spans = aside(move || {
            if let Some(tracer) = tracer {
                let _ = tracer.shutdown_with_timeout(FLUSH_PATIENCE);
            }
        });
        let metrics = aside(move || {
            let _ = registry.provider().shutdown_with_timeout(FLUSH_PATIENCE);
        });
        let both = async { tokio::join!(spans, metrics) };
        let _ = tokio::time::timeout(FLUSH_PATIENCE, both).await;
    }
}

/// Runs what blocks on a thread of its own.
async fn aside(work: impl FnOnce() + Send + 'static) {
    let (done, ended) = tokio::sync::oneshot::channel();
    let started = std::thread::Builder::new()
        .name("telemetry-end".to_owned())
        .spawn(move || {
            work();
            let _ = done.send(());
        });
    if started.is_ok() {
        let _ = ended.await;
    }
}

/// What is exported, and how.
struct Signals {
    traces: Option<export::Protocol>,
    metrics: Option<export::Protocol>,
}

impl Signals {
    /// Reads the variables of the OpenTelemetry specification ("Environment Variable Specification").
    fn read(protocols: Protocols, wrong: &mut Vec<String>) -> Self {
        if variable("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
            return Self {
                traces: None,
                metrics: None,
            };
        }
        let mut signal = |name: &str| {
            let of_signal = |suffix: &str| variable(&format!("OTEL_EXPORTER_OTLP_{name}_{suffix}"));
            let of_all = |suffix: &str| variable(&format!("OTEL_EXPORTER_OTLP_{suffix}"));
            of_signal("ENDPOINT").or_else(|| of_all("ENDPOINT"))?;
            let exporter = variable(&format!("OTEL_{name}_EXPORTER"));
            match exporter.as_deref() {
                None | Some("otlp") => {}
                Some("none") => return None,
                Some(other) => {
                    wrong.push(format!(
                        "OTEL_{name}_EXPORTER is otlp or none, not {other:?}"
                    ));
                    return None;
                }
            }
            let protocol = of_signal("PROTOCOL").or_else(|| of_all("PROTOCOL"));
            match (protocol.as_deref(), protocols) {
                (None | Some("http/protobuf"), _) => Some(export::Protocol::Http),
                (Some("grpc"), Protocols::HttpAndGrpc) => Some(export::Protocol::Grpc),
                (Some("grpc"), Protocols::Http) => {
                    wrong.push(
                        "OTEL_EXPORTER_OTLP_PROTOCOL: this program sends http/protobuf alone"
                            .to_owned(),
                    );
                    None
                }
                (Some(other), _) => {
                    wrong.push(format!(
                        "OTEL_EXPORTER_OTLP_PROTOCOL is grpc or http/protobuf, not {other:?}"
                    ));
                    None
                }
            }
        };
        let traces = signal("TRACES");
        let metrics = signal("METRICS");
        wrong.dedup();
        if traces.is_some() {
            check_sampler(wrong);
        }
        Self { traces, metrics }
    }
}

/// The SDK takes a sampler that it does not know for one that keeps everything.
fn check_sampler(wrong: &mut Vec<String>) {
    let Some(sampler) = variable("OTEL_TRACES_SAMPLER") else {
        return;
    };
    let (ratio, known) = match &*sampler {
        "traceidratio" | "parentbased_traceidratio" => (true, true),
        "always_on" | "always_off" | "parentbased_always_on" | "parentbased_always_off" => {
            (false, true)
        }
        _ => (false, false),
    };
    if !known {
        wrong.push(format!(
            "OTEL_TRACES_SAMPLER is no sampler that there is: {sampler:?}; all traces are kept"
        ));
    }
    let argument = variable("OTEL_TRACES_SAMPLER_ARG").unwrap_or_default();
    let part = argument.parse::<f64>().ok();
    if ratio && !part.is_some_and(|part| (0.0..=1.0).contains(&part)) {
        wrong.push(format!(
            "OTEL_TRACES_SAMPLER_ARG is a number from 0 to 1, and not {argument:?}; all traces are kept"
        ));
    }
}

/// An empty variable is none (as the specification has it).
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Who sends: what we know, and over it what `OTEL_RESOURCE_ATTRIBUTES` and `OTEL_SERVICE_NAME` say.
fn resource(name: &'static str) -> Resource {
    use opentelemetry_sdk::resource::{EnvResourceDetector, TelemetryResourceDetector};
    let instance = format!("{}-{}", crate::hostname(), std::process::id());
    let mut builder = Resource::builder_empty()
        .with_attributes([
            KeyValue::new("service.name", name),
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            KeyValue::new("service.instance.id", instance),
        ])
        .with_detectors(&[
            Box::new(TelemetryResourceDetector),
            Box::new(EnvResourceDetector::new()),
        ]);
    if let Some(name) = variable("OTEL_SERVICE_NAME") {
        builder = builder.with_service_name(name);
    }
    builder.build()
}

/// How a trace goes on in another program (`OTEL_PROPAGATORS`).
fn propagator(wrong: &mut Vec<String>) -> TextMapCompositePropagator {
    let names = variable("OTEL_PROPAGATORS").unwrap_or_else(|| "tracecontext,baggage".to_owned());
    let mut propagators: Vec<Box<dyn TextMapPropagator + Send + Sync>> = Vec::new();
    for name in names.split(',').map(str::trim) {
        match name {
            "tracecontext" => propagators.push(Box::new(TraceContextPropagator::new())),
            "baggage" => propagators.push(Box::new(BaggagePropagator::new())),
            "none" => {}
            other => wrong.push(format!(
                "OTEL_PROPAGATORS names {other:?}; there are tracecontext, baggage and none"
            )),
        }
    }
    TextMapCompositePropagator::new(propagators)
}
