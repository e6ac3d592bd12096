//! Places in a trace, and how a trace comes in: W3C Trace Context in the headers of requests.

use std::time::{Duration, SystemTime};

use http::HeaderMap;
use opentelemetry::propagation::Extractor;
use opentelemetry::trace::{Span as _, SpanContext, Status, TraceContextExt as _, Tracer as _};
use opentelemetry::{Context as OtelContext, KeyValue, global};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

/// A place in a trace, to be gone on from elsewhere: by another task, later. Nothing while nobody traces.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Context(Option<Box<SpanContext>>);

impl Context {
    /// Makes it the parent of a span that begins.
    pub fn adopt(&self, span: &Span) {
        if let Some(context) = &self.0 {
            let parent = OtelContext::new().with_remote_span_context((**context).clone());
            let _ = span.set_parent(parent);
        }
    }

    /// Names it in a span that has another parent.
    pub fn link(&self, span: &Span) {
        if let Some(context) = &self.0 {
            span.add_link((**context).clone());
        }
    }
}

/// Where we are.
pub fn here() -> Context {
    let context = OtelContext::current();
    let context = context.span().span_context().clone();
    Context(context.is_valid().then(|| Box::new(context)))
}

/// A span that is only of interest as a part of another: none where we are in none, as while a probe or
/// a scrape is answered.
pub fn part(make: impl FnOnce() -> Span) -> Span {
    if Span::current().is_none() {
        return Span::none();
    }
    make()
}

/// A child of the span that we are in, of something that was measured before it was told: `took` from
/// `begin` on.
pub fn past(
    name: &'static str,
    begin: SystemTime,
    took: Duration,
    attributes: impl IntoIterator<Item = KeyValue>,
    failure: Option<&'static str>,
) {
    let context = OtelContext::current();
    if !context.span().span_context().is_sampled() {
        return;
    }
    let tracer = global::tracer("nodestats");
    let builder = tracer.span_builder(name).with_start_time(begin);
    let mut span = builder
        .with_attributes(attributes)
        .start_with_context(&tracer, &context);
    if let Some(failure) = failure {
        span.set_attribute(KeyValue::new("error.type", failure));
        span.set_status(Status::error(""));
    }
    span.end_with_timestamp(begin + took);
}

/// The ids of the trace and the span that we are in, 32 and 16 hexadecimal digits (W3C Trace Context).
pub fn current_ids() -> Option<(String, String)> {
    let context = OtelContext::current();
    let span = context.span();
    let context = span.span_context();
    let ids = || {
        (
            context.trace_id().to_string(),
            context.span_id().to_string(),
        )
    };
    context.is_valid().then(ids)
}

/// Makes a request's sender the parent of `span`, where the sender says in which trace it is. What stands
/// in the header `own` counts before `traceparent`, to which the span is linked then: a proxy between may
/// have put its own there.
pub fn adopt(span: &Span, headers: &HeaderMap, own: &'static str) {
    if span.is_disabled() {
        return;
    }
    let extract = |headers: &dyn Extractor| {
        let context = global::get_text_map_propagator(|propagator| propagator.extract(headers));
        context.span().span_context().is_valid().then_some(context)
    };
    let forwarded = extract(&Headers(headers));
    match extract(&Own(headers, own)) {
        Some(ours) => {
            let is_other = |forwarded: &OtelContext| {
                forwarded.span().span_context().span_id() != ours.span().span_context().span_id()
            };
            if let Some(forwarded) = forwarded.filter(is_other) {
                span.add_link(forwarded.span().span_context().clone());
            }
            let _ = span.set_parent(ours);
        }
        None => {
            if let Some(forwarded) = forwarded {
                let _ = span.set_parent(forwarded);
            }
        }
    }
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}

/// The same by a header of one's own.
struct Own<'a>(&'a HeaderMap, &'static str);

impl Extractor for Own<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        let value = (key == "traceparent").then(|| self.0.get(self.1))??;
        value.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        vec!["traceparent"]
    }
}
