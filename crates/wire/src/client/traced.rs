//! What a request tells whoever traces: a span by OpenTelemetry's conventions for HTTP clients, and the
//! headers by which the server goes on with the trace.

use opentelemetry::propagation::Injector;
use opentelemetry::trace::TraceContextExt as _;
use opentelemetry::{Context, global};
use reqwest::Method;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use tracing::Span;
use tracing::field::Empty;

use crate::routes;

/// A request that is or was under way.
#[derive(Debug)]
pub struct Attempt(Span);

impl Attempt {
    /// Begins a span as a child of the one that we are in. `path` is of the API.
    pub fn new(method: &Method, path: &str, (host, port): (&str, u16)) -> Self {
        let attempt = Self::begin();
        if !attempt.0.is_disabled() {
            attempt.name(method.as_str(), &routes::template(path));
            attempt.0.record("server.address", host);
            attempt.0.record("server.port", port);
        }
        attempt
    }

    /// The same for a request to a cluster's API server; `template` holds no name.
    pub fn elsewhere(method: &'static str, template: &str) -> Self {
        let attempt = Self::begin();
        if !attempt.0.is_disabled() {
            attempt.name(method, template);
        }
        attempt
    }

    fn begin() -> Self {
        Self(tracing::info_span!(
            "request",
            "otel.kind" = "client",
            "otel.name" = Empty,
            "otel.status_code" = Empty,
            "http.request.method" = Empty,
            "url.template" = Empty,
            "server.address" = Empty,
            "server.port" = Empty,
            "http.response.status_code" = Empty,
            "error.type" = Empty,
        ))
    }

    fn name(&self, method: &str, template: &str) {
        self.0.record("otel.name", format!("{method} {template}"));
        self.0.record("http.request.method", method);
        self.0.record("url.template", template);
    }

    /// The span, to be within while the request is made.
    pub fn span(&self) -> Span {
        self.0.clone()
    }

    /// There was an answer. For a client every status from 400 on is an error.
    pub fn answered(&self, status: u16) {
        self.0.record("http.response.status_code", status);
        if status >= 400 {
            self.0.record("error.type", status.to_string());
            self.0.record("otel.status_code", "ERROR");
        }
    }

    /// There was none, for a reason out of few.
    pub fn failed(&self, reason: &'static str) {
        self.0.record("error.type", reason);
        self.0.record("otel.status_code", "ERROR");
    }
}

/// The headers by which a request goes on with the trace that we are in; none where we are in none.
pub fn trace_headers() -> HeaderMap {
    let mut headers = HeaderMap::new();
    let context = Context::current();
    if context.span().span_context().is_valid() {
        global::get_text_map_propagator(|propagator| {
            propagator.inject_context(&context, &mut Headers(&mut headers));
        });
        let parent = headers.get("traceparent").cloned();
        if let Some(parent) = parent {
            headers.insert(HeaderName::from_static(routes::TRACE_HEADER), parent);
        }
    }
    headers
}

struct Headers<'a>(&'a mut HeaderMap);

impl Injector for Headers<'_> {
    fn set(&mut self, key: &str, value: String) {
        let name = HeaderName::try_from(key);
        let value = HeaderValue::try_from(value);
        if let (Ok(name), Ok(value)) = (name, value) {
            self.0.insert(name, value);
        }
    }
}
