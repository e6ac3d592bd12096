//! A real Prometheus and a real `node_exporter`, of Debian, and what they say.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};

use nodestats_wire::client::Client;
use serde_json::Value;
use tempfile::TempDir;

use crate::program::Running;
use crate::{PATIENCE, free_port, wait_for};

/// A Prometheus that runs; gone when it is dropped.
pub struct Prometheus {
    child: Running,
    port: u16,
    _folder: TempDir,
}

impl Prometheus {
    /// Starts one that scrapes and judges each second; `config` begins with `scrape_configs:`, and
    /// `rules` are whole files of rules.
    ///
    /// # Panics
    /// Where it does not start.
    pub fn start(config: &str, rules: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("temporary folder");
        let mut text = String::from(
            "global: {scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}\n",
        );
        text.push_str("rule_files:\n");
        for (number, rules) in rules.iter().enumerate() {
            let file = folder.path().join(format!("rules-{number}.yaml"));
            fs::write(&file, rules).expect("written");
            let _ = writeln!(text, "- {}", file.display());
        }
        text.push_str(config);
        let file = folder.path().join("prometheus.yaml");
        fs::write(&file, text).expect("written");
        let port = free_port();
        let mut command = Command::new("prometheus");
        command.arg(format!("--config.file={}", file.display()));
        let data = folder.path().join("data");
        command.arg(format!("--storage.tsdb.path={}", data.display()));
        command.arg(format!("--web.listen-address=127.0.0.1:{port}"));
        let started = Self {
            child: Running(quiet(&mut command).spawn().expect("starts")),
            port,
            _folder: folder,
        };
        started.until_ready()
    }

    fn until_ready(mut self) -> Self {
        wait_for("Prometheus", || {
            let ended = self.child.0.try_wait().expect("a child of ours");
            assert!(ended.is_none(), "Prometheus ended: {ended:?}");
            TcpStream::connect(("127.0.0.1", self.port)).ok()
        });
        self
    }

    /// What a path of its API answers under `data`.
    pub async fn ask(&self, path: &str, query: &[(&str, String)]) -> Option<Value> {
        let address = format!("http://127.0.0.1:{}", self.port);
        let client = Client::new(&address, PATIENCE).expect("a URL");
        let body = client.get(path, query).await.ok()?;
        let answer: Value = serde_json::from_slice(&body).ok()?;
        (answer["status"] == "success").then(|| answer["data"].clone())
    }

    /// The values that an expression has now, with their labels.
    pub async fn query(&self, expression: &str) -> Vec<(BTreeMap<String, String>, f64)> {
        let query = [("query", expression.to_owned())];
        let found = self.ask("/api/v1/query", &query).await.unwrap_or_default();
        let series = found["result"].as_array().cloned().unwrap_or_default();
        let read = |one: &Value| {
            let labels = serde_json::from_value(one["metric"].clone()).ok()?;
            Some((labels, one["value"][1].as_str()?.parse().ok()?))
        };
        series.iter().filter_map(read).collect()
    }

    /// The alerts that fire now, by name and labels.
    pub async fn firing(&self) -> Vec<BTreeMap<String, String>> {
        let found = self.ask("/api/v1/alerts", &[]).await.unwrap_or_default();
        let alerts = found["alerts"].as_array().cloned().unwrap_or_default();
        let firing = alerts.iter().filter(|alert| alert["state"] == "firing");
        let labels =
            firing.filter_map(|alert| serde_json::from_value(alert["labels"].clone()).ok());
        labels.collect()
    }
}

/// A `node_exporter` that runs; gone when it is dropped.
pub struct Exporter {
    _child: Running,
    port: u16,
}

impl Exporter {
    /// Starts one of this host.
    ///
    /// # Panics
    /// Where it does not start.
    pub fn start(arguments: &[&str]) -> Self {
        let port = free_port();
        let mut command = Command::new("prometheus-node-exporter");
        command.arg(format!("--web.listen-address=127.0.0.1:{port}"));
        command.args(arguments);
        let child = Running(quiet(&mut command).spawn().expect("starts"));
        wait_for("node_exporter", || {
            TcpStream::connect(("127.0.0.1", port)).ok()
        });
        Self {
            _child: child,
            port,
        }
    }

    /// Where it listens.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// What it says now.
    ///
    /// # Panics
    /// Where it says nothing.
    pub async fn scrape(&self) -> Samples {
        let address = format!("http://127.0.0.1:{}", self.port);
        let client = Client::new(&address, PATIENCE).expect("a URL");
        let body = client.get("/metrics", &[]).await.expect("metrics");
        Samples::read(&String::from_utf8_lossy(&body))
    }
}

/// Metrics in Prometheus' text form, read.
#[derive(Debug, Clone, Default)]
pub struct Samples {
    /// The type of each family.
    pub types: BTreeMap<String, String>,
    /// Each series as it is written, with its labels in order, and its value.
    pub values: BTreeMap<String, f64>,
}

impl Samples {
    /// Reads a text; lines that are none of that form are left out.
    pub fn read(text: &str) -> Self {
        let mut samples = Self::default();
        for line in text.lines() {
            if let Some(described) = line.strip_prefix("# TYPE ") {
                if let Some((name, kind)) = described.split_once(' ') {
                    samples.types.insert(name.to_owned(), kind.to_owned());
                }
            } else if !line.starts_with('#')
                && let Some((series, value)) = line.rsplit_once(' ')
                && let Ok(value) = value.parse()
            {
                samples.values.insert(series.to_owned(), value);
            }
        }
        samples
    }

    /// The series of this family.
    pub fn of<'a>(&'a self, family: &'a str) -> impl Iterator<Item = (&'a str, f64)> {
        let is_of = move |series: &str| series.split('{').next() == Some(family);
        let values = self.values.iter();
        values
            .filter(move |(series, _)| is_of(series))
            .map(|(series, value)| (&**series, *value))
    }
}

/// What `promtool` says of `input`, with these arguments; the error is its output.
pub fn promtool(arguments: &[&str], input: &Path) -> Result<String, String> {
    let file = fs::File::open(input).expect("a file");
    let mut command = Command::new("promtool");
    let output = command.args(arguments).stdin(file).output();
    let output = output.expect("promtool");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    if output.status.success() {
        Ok(said)
    } else {
        Err(said)
    }
}

fn quiet(command: &mut Command) -> &mut Command {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
}
