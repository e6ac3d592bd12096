//! A real Jaeger, to which programs send traces, and what it says of them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};

use nodestats_wire::client::Client;
use serde_json::Value;

use crate::program::Running;
use crate::{PATIENCE, free_ports, get, wait_for};

/// A Jaeger that runs, with all it knows in memory; gone when it is dropped.
pub struct Jaeger {
    _child: Running,
    address: String,
    query: u16,
    http: u16,
    grpc: u16,
    scheme: &'static str,
}

/// A span as Jaeger tells of it.
#[derive(Debug, Clone)]
pub struct Span {
    /// Its id.
    pub id: String,
    /// The span that it is a child of; `None` of a root.
    pub parent: Option<String>,
    /// Other spans that it names, of this trace or another.
    pub links: Vec<String>,
    /// Its name.
    pub name: String,
    /// Who sent it.
    pub service: String,
    /// Its attributes.
    pub attributes: BTreeMap<String, Value>,
}

/// A trace.
#[derive(Debug, Clone)]
pub struct Trace {
    /// Its id.
    pub id: String,
    /// All spans that are known of it.
    pub spans: Vec<Span>,
}

impl Jaeger {
    /// Starts one on loopback.
    ///
    /// # Panics
    /// Where it does not start.
    pub fn start() -> Self {
        Self::start_at("127.0.0.1")
    }

    /// Starts one on this address of this machine.
    ///
    /// # Panics
    /// Where it does not start.
    pub fn start_at(address: &str) -> Self {
        Self::start_by(address, &[], "http")
    }

    /// Starts one on loopback that takes spans by TLS alone, by this certificate and its key (PEM files).
    ///
    /// # Panics
    /// Where it does not start.
    pub fn start_with_tls(certificate: &Path, key: &Path) -> Self {
        let (certificate, key) = (certificate.display(), key.display());
        let flags = ["http", "grpc"].map(|protocol| {
            let flag = format!("--collector.otlp.{protocol}.tls");
            [
                format!("{flag}.enabled=true"),
                format!("{flag}.cert={certificate}"),
                format!("{flag}.key={key}"),
            ]
        });
        Self::start_by("127.0.0.1", &flags.concat(), "https")
    }

    fn start_by(address: &str, flags: &[String], scheme: &'static str) -> Self {
        // Somebody else may take a port between our look at it and Jaeger's.
        let started = (0..5).find_map(|_| Self::try_start(address, flags, scheme));
        started.expect("Jaeger runs")
    }

    /// `None` where it ended at once.
    fn try_start(address: &str, flags: &[String], scheme: &'static str) -> Option<Self> {
        let program = nodestats_cluster::jaeger().expect("Jaeger");
        let [query, http, grpc, other, spare, admin] = free_ports();
        let mut command = Command::new(program);
        for (flag, address, port) in [
            ("query.http-server", "127.0.0.1", query),
            ("query.grpc-server", "127.0.0.1", spare),
            ("collector.otlp.http", address, http),
            ("collector.otlp.grpc", address, grpc),
            ("collector.grpc-server", "127.0.0.1", other),
            ("collector.http-server", "127.0.0.1", 0),
            ("admin.http", "127.0.0.1", admin),
        ] {
            command.arg(format!("--{flag}.host-port={address}:{port}"));
        }
        command.args(flags);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let mut child = Running(command.stderr(Stdio::null()).spawn().expect("starts"));
        let runs = wait_for("Jaeger", || {
            if child.0.try_wait().expect("a child of ours").is_some() {
                return Some(false);
            }
            let asked = TcpStream::connect(("127.0.0.1", query));
            let told = TcpStream::connect((address, http));
            let told_too = TcpStream::connect((address, grpc));
            asked.and(told).and(told_too).ok().map(|_| true)
        });
        runs.then(|| Self {
            _child: child,
            address: address.to_owned(),
            query,
            http,
            grpc,
            scheme,
        })
    }

    /// Where OTLP comes in over HTTP.
    pub fn http(&self) -> String {
        format!("{}://{}:{}", self.scheme, self.address, self.http)
    }

    /// Where it comes in over gRPC.
    pub fn grpc(&self) -> String {
        format!("{}://{}:{}", self.scheme, self.address, self.grpc)
    }

    /// The variables by which a program sends its traces here at once.
    pub fn variables(&self, grpc: bool) -> Vec<(&'static str, String)> {
        let (protocol, endpoint) = if grpc {
            ("grpc", self.grpc())
        } else {
            ("http/protobuf", self.http())
        };
        vec![
            ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol.to_owned()),
            // Jaeger takes traces alone.
            ("OTEL_METRICS_EXPORTER", "none".to_owned()),
            ("OTEL_BSP_SCHEDULE_DELAY", "100".to_owned()),
        ]
    }

    fn client(&self) -> Client {
        let address = format!("http://127.0.0.1:{}", self.query);
        Client::new(&address, PATIENCE).expect("a URL")
    }

    /// The trace of this id; `None` where nothing is known of it yet.
    pub async fn trace(&self, id: &str) -> Option<Trace> {
        let found = get(&self.client(), &format!("/api/traces/{id}")).await?;
        found["data"].as_array()?.first().and_then(read)
    }

    /// The traces that this service has a part in.
    pub async fn traces(&self, service: &str) -> Vec<Trace> {
        let path = format!("/api/traces?service={service}&limit=500");
        let client = self.client();
        // A path with a query: the client escapes none of it.
        let (path, query) = path.split_once('?').expect("a query");
        let pairs: Vec<(&str, String)> = query
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .map(|(name, value)| (name, value.to_owned()))
            .collect();
        let Ok(body) = client.get(path, &pairs).await else {
            return Vec::new();
        };
        let found: Value = serde_json::from_slice(&body).unwrap_or_default();
        let traces = found["data"].as_array().cloned().unwrap_or_default();
        traces.iter().filter_map(read).collect()
    }
}

fn read(trace: &Value) -> Option<Trace> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let span = |span: &Value| {
        let references = span["references"].as_array()?;
        let of = |kind: &str| {
            let named = references.iter().filter(|one| one["refType"] == kind);
            let ids = named.filter_map(|one| text(&one["spanID"]));
            ids.collect::<Vec<_>>()
        };
        let attributes = span["tags"].as_array()?.iter();
        let attributes =
            attributes.filter_map(|tag| Some((text(&tag["key"])?, tag["value"].clone())));
        let process = span["processID"].as_str()?;
        Some(Span {
            id: text(&span["spanID"])?,
            parent: of("CHILD_OF").into_iter().next(),
            links: of("FOLLOWS_FROM"),
            name: text(&span["operationName"])?,
            service: text(&trace["processes"][process]["serviceName"])?,
            attributes: attributes.collect(),
        })
    };
    Some(Trace {
        id: text(&trace["traceID"])?,
        spans: trace["spans"].as_array()?.iter().filter_map(span).collect(),
    })
}

impl Trace {
    /// Spans whose parent is not there.
    pub fn orphans(&self) -> Vec<&Span> {
        let known: BTreeSet<&str> = self.spans.iter().map(|span| &*span.id).collect();
        let is_orphan =
            |span: &&Span| matches!(&span.parent, Some(parent) if !known.contains(&**parent));
        self.spans.iter().filter(is_orphan).collect()
    }

    /// The names from the root to each span, joined by `>`, each with its service's before the name
    /// where that changes.
    pub fn paths(&self) -> BTreeSet<String> {
        self.spans.iter().map(|span| self.path(span)).collect()
    }

    fn path(&self, span: &Span) -> String {
        let parent = span.parent.as_ref();
        let parent = parent.and_then(|id| self.spans.iter().find(|one| one.id == *id));
        match parent {
            Some(parent) if parent.service == span.service => {
                format!("{} > {}", self.path(parent), span.name)
            }
            Some(parent) => format!("{} > {}: {}", self.path(parent), span.service, span.name),
            None => format!("{}: {}", span.service, span.name),
        }
    }
}
