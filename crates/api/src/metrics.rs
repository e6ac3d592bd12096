//! What the API counts of itself, in Prometheus text format.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;

use crate::App;

/// Counters of one process.
#[derive(Debug, Default)]
pub struct Metrics {
    samples_stored: AtomicU64,
    denied: AtomicU64,
    limited: AtomicU64,
    /// Answers by the first digit of their status.
    answers: [AtomicU64; 6],
}

impl Metrics {
    pub(crate) fn stored(&self, samples: u64) {
        self.samples_stored.fetch_add(samples, Ordering::Relaxed);
    }

    pub(crate) fn denied(&self) {
        self.denied.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn limited(&self) {
        self.limited.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn render(&self) -> String {
        let mut text = String::new();
        let mut line = |line: &str| {
            let _ = writeln!(text, "{line}");
        };
        line("# HELP nodestats_build_info The version of this program.");
        line("# TYPE nodestats_build_info gauge");
        line(concat!(
            "nodestats_build_info{version=\"",
            env!("CARGO_PKG_VERSION"),
            "\"} 1"
        ));
        line("# HELP nodestats_samples_stored_total Samples that were stored and acknowledged.");
        line("# TYPE nodestats_samples_stored_total counter");
        line(&format!(
            "nodestats_samples_stored_total {}",
            self.samples_stored.load(Ordering::Relaxed)
        ));
        line(
            "# HELP nodestats_denied_requests_total Requests of unknown callers, and of such that may not.",
        );
        line("# TYPE nodestats_denied_requests_total counter");
        line(&format!(
            "nodestats_denied_requests_total {}",
            self.denied.load(Ordering::Relaxed)
        ));
        line(
            "# HELP nodestats_limited_requests_total Requests beyond what one caller may ask for.",
        );
        line("# TYPE nodestats_limited_requests_total counter");
        line(&format!(
            "nodestats_limited_requests_total {}",
            self.limited.load(Ordering::Relaxed)
        ));
        line("# HELP nodestats_http_responses_total Answers by class of status.");
        line("# TYPE nodestats_http_responses_total counter");
        for (class, count) in self.answers.iter().enumerate().skip(1) {
            let count = count.load(Ordering::Relaxed);
            line(&format!(
                "nodestats_http_responses_total{{status=\"{class}xx\"}} {count}"
            ));
        }
        text
    }
}

pub(crate) async fn count(State(app): State<App>, request: Request, next: Next) -> Response {
    let response = next.run(request).await;
    let class = usize::from(response.status().as_u16() / 100).min(5);
    app.metrics.answers[class].fetch_add(1, Ordering::Relaxed);
    response
}
