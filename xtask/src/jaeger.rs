//! `cargo xtask jaeger`: a place for traces, for whoever wants to look at some.

use std::process::{Command, Stdio};

use nodestats_cluster as cluster;

use crate::process;

/// Where OTLP comes in over HTTP, and where its page is.
const OTLP: &str = "127.0.0.1:4318";
const PAGE: &str = "127.0.0.1:16686";

pub(crate) fn run() -> anyhow::Result<()> {
    let mut jaeger = Command::new(cluster::jaeger()?);
    jaeger
        .arg(format!("--collector.otlp.http.host-port={OTLP}"))
        .arg("--collector.otlp.grpc.host-port=127.0.0.1:4317")
        .arg(format!("--query.http-server.host-port={PAGE}"))
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    println!(
        "export OTEL_EXPORTER_OTLP_ENDPOINT=http://{OTLP} OTEL_METRICS_EXPORTER=none\n\
         traces are at http://{PAGE}; Ctrl-C ends it"
    );
    process::run(&mut jaeger)
}
