//! What is told of each request: a span by OpenTelemetry's conventions for HTTP servers, which goes on with
//! the sender's trace, and its time by route.

use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::Response;
use http::Method;
use nodestats_runtime::telemetry;
use nodestats_wire::routes;
use tracing::field::Empty;
use tracing::{Instrument as _, Span};

use crate::App;

/// Most bytes of a path that a span carries; what is longer is nobody's who asks for something here.
const PATH_LIMIT: usize = 512;
/// A path that is in no table.
const ELSEWHERE: &str = "/{path}";

pub(crate) async fn observe(State(app): State<App>, request: Request, next: Next) -> Response {
    let begin = Instant::now();
    let route = request.extensions().get::<MatchedPath>().cloned();
    let route = route.as_ref().map_or(ELSEWHERE, MatchedPath::as_str);
    let method = method(request.method());
    let span = span(&request, method, route);
    let response = next.run(request).instrument(span.clone()).await;
    let status = response.status().as_u16();
    span.record("http.response.status_code", status);
    // For a server what the caller did wrong is no error of its own, nor that a node is silent.
    if status >= 500 && !is_scrape(route) {
        span.record("error.type", status.to_string());
        span.record("otel.status_code", "ERROR");
    }
    app.metrics.answered(method, route, status, begin.elapsed());
    response
}

fn span(request: &Request, method: &'static str, route: &str) -> Span {
    // Probes and scrapes would be most of all traces.
    if [routes::HEALTHZ, routes::READYZ].contains(&route) || is_scrape(route) {
        return Span::none();
    }
    let span = tracing::info_span!(
        "request",
        "otel.kind" = "server",
        "otel.name" = Empty,
        "otel.status_code" = Empty,
        "http.request.method" = method,
        "http.route" = Empty,
        "url.path" = Empty,
        "url.scheme" = Empty,
        "http.response.status_code" = Empty,
        "error.type" = Empty,
        "k8s.node.name" = Empty,
        "host.name" = Empty,
    );
    if !span.is_disabled() {
        span.record("otel.name", format!("{method} {route}"));
        span.record("http.route", route);
        let path = request.uri().path();
        let end = path.len().min(PATH_LIMIT);
        span.record("url.path", path.get(..end).unwrap_or_default());
        span.record("url.scheme", request.uri().scheme_str().unwrap_or("http"));
        telemetry::adopt(&span, request.headers(), routes::TRACE_HEADER);
    }
    span
}

/// What Prometheus asks for again and again.
fn is_scrape(route: &str) -> bool {
    route.starts_with(routes::METRICS)
}

/// A method as it is counted: whoever invents one makes no series.
fn method(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        Method::PATCH => "PATCH",
        _ => "_OTHER",
    }
}
