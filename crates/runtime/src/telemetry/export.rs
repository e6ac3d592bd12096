//! The exporters: OTLP over HTTP by our own TLS and runtime, or over gRPC, and a count of what came of it.

use std::fmt;
use std::time::Duration;

use anyhow::Context as _;
use async_trait::async_trait;
use opentelemetry::KeyValue;
use opentelemetry::metrics::Counter;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{
    MetricExporter, SpanExporter, WithExportConfig as _, WithHttpConfig as _,
};
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::SpanData;
use opentelemetry_sdk::{Resource, trace};

use super::variable;
use crate::metrics::Registry;

/// Longest answer of a collector that is read.
const ANSWER_LIMIT: usize = 64 << 10;

/// How something is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    Http,
    Grpc,
}

pub(super) fn spans(protocol: Protocol, registry: &Registry) -> anyhow::Result<Counted> {
    let exporter = match protocol {
        Protocol::Http => SpanExporter::builder()
            .with_http()
            .with_http_client(Http::new("TRACES")?)
            .with_protocol(opentelemetry_otlp::Protocol::HttpBinary)
            .build()?,
        Protocol::Grpc => grpc::spans()?,
    };
    Ok(Counted::new(exporter, registry))
}

pub(super) fn metrics(protocol: Protocol) -> anyhow::Result<MetricExporter> {
    match protocol {
        Protocol::Http => Ok(MetricExporter::builder()
            .with_http()
            .with_http_client(Http::new("METRICS")?)
            .with_protocol(opentelemetry_otlp::Protocol::HttpBinary)
            .build()?),
        Protocol::Grpc => grpc::metrics(),
    }
}

/// The PEM file of the authorities that sign the collector's certificate, where one is named.
fn authorities(signal: &str) -> anyhow::Result<Option<Vec<u8>>> {
    let path = variable(&format!("OTEL_EXPORTER_OTLP_{signal}_CERTIFICATE"))
        .or_else(|| variable("OTEL_EXPORTER_OTLP_CERTIFICATE"));
    let Some(path) = path else { return Ok(None) };
    let pem = std::fs::read(&path).with_context(|| format!("cannot read {path}"))?;
    Ok(Some(pem))
}

/// How long one request may take, in milliseconds by the specification; ten seconds by default.
fn patience(signal: &str) -> Duration {
    let given = variable(&format!("OTEL_EXPORTER_OTLP_{signal}_TIMEOUT"))
        .or_else(|| variable("OTEL_EXPORTER_OTLP_TIMEOUT"));
    let millis = given.and_then(|given| given.trim().parse().ok());
    Duration::from_millis(millis.unwrap_or(10_000))
}

/// Sends from the SDK's own threads by the program's runtime.
#[derive(Debug, Clone)]
struct Http {
    client: reqwest::Client,
    runtime: tokio::runtime::Handle,
}

impl Http {
    fn new(signal: &str) -> anyhow::Result<Self> {
        crate::tls::use_ring();
        let mut builder = reqwest::Client::builder()
            .timeout(patience(signal))
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("nodestats/", env!("CARGO_PKG_VERSION")));
        if let Some(pem) = authorities(signal)? {
            builder = builder.tls_built_in_root_certs(false);
            for authority in reqwest::Certificate::from_pem_bundle(&pem)? {
                builder = builder.add_root_certificate(authority);
            }
        }
        Ok(Self {
            client: builder.build()?,
            runtime: tokio::runtime::Handle::current(),
        })
    }
}

#[async_trait]
impl HttpClient for Http {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let client = self.client.clone();
        let answer = self.runtime.spawn(async move {
            let mut response = client.execute(request.try_into()?).await?;
            let mut body = Vec::new();
            while let Some(chunk) = response.chunk().await? {
                if body.len() + chunk.len() > ANSWER_LIMIT {
                    return Err("the collector's answer has no end".into());
                }
                body.extend_from_slice(&chunk);
            }
            let mut answer = Response::new(Bytes::from(body));
            *answer.status_mut() = response.status();
            *answer.headers_mut() = std::mem::take(response.headers_mut());
            Ok::<_, HttpError>(answer)
        });
        answer.await?
    }
}

/// An exporter whose spans are counted by what became of them.
pub(super) struct Counted {
    exporter: SpanExporter,
    exported: Counter<u64>,
}

impl fmt::Debug for Counted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.exporter.fmt(f)
    }
}

/// `error.type` of spans that did not get to the collector; the exporter does not say why.
const FAILED: &str = "failed";

impl Counted {
    fn new(exporter: SpanExporter, registry: &Registry) -> Self {
        let failure = [KeyValue::new("error.type", FAILED)];
        let counter = crate::metrics::counter(
            &registry.meter("nodestats.runtime"),
            "otel.sdk.exporter.span.exported",
            "Spans that were sent to the collector, and with error_type those that did not get there.",
            &[&[], &failure],
        );
        Self {
            exporter,
            exported: counter,
        }
    }
}

impl trace::SpanExporter for Counted {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len() as u64;
        let result = self.exporter.export(batch).await;
        let failure = [KeyValue::new("error.type", FAILED)];
        let outcome: &[KeyValue] = if result.is_ok() { &[] } else { &failure };
        self.exported.add(spans, outcome);
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

#[cfg(feature = "grpc")]
mod grpc {
    use opentelemetry_otlp::tonic_types::transport::{Certificate, ClientTlsConfig};
    use opentelemetry_otlp::{MetricExporter, SpanExporter, WithTonicConfig as _};

    use super::authorities;

    fn tls(signal: &str) -> anyhow::Result<ClientTlsConfig> {
        crate::tls::use_ring();
        Ok(match authorities(signal)? {
            Some(pem) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem)),
            None => ClientTlsConfig::new().with_native_roots(),
        })
    }

    pub(super) fn spans() -> anyhow::Result<SpanExporter> {
        let builder = SpanExporter::builder().with_tonic();
        Ok(builder.with_tls_config(tls("TRACES")?).build()?)
    }

    pub(super) fn metrics() -> anyhow::Result<MetricExporter> {
        let builder = MetricExporter::builder().with_tonic();
        Ok(builder.with_tls_config(tls("METRICS")?).build()?)
    }
}

#[cfg(not(feature = "grpc"))]
mod grpc {
    use opentelemetry_otlp::{MetricExporter, SpanExporter};

    pub(super) fn spans() -> anyhow::Result<SpanExporter> {
        anyhow::bail!("this program is built without gRPC")
    }

    pub(super) fn metrics() -> anyhow::Result<MetricExporter> {
        anyhow::bail!("this program is built without gRPC")
    }
}
