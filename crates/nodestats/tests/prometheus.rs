//! Metrics with Debian's real Prometheus, promtool and `node_exporter`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nodestats_testkit::kubernetes::{ControlPlane, Version};
use nodestats_testkit::{
    Exporter, Program, Prometheus, Samples, eventually, free_port, free_ports, get, promtool,
};
use nodestats_wire::client::Client;

/// The repository's folder.
fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors()
        .nth(2)
        .expect("crates/nodestats")
        .to_owned()
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).expect("a file of the repository")
}

struct Site {
    folder: tempfile::TempDir,
    api: Program,
}

impl Site {
    fn start() -> Self {
        let folder = tempfile::tempdir().expect("temporary folder");
        let database = format!("surrealkv://{}", folder.path().join("data").display());
        Self {
            api: Program::serve(&["api", "--listen", "127.0.0.1:0", "--database", &database]),
            folder,
        }
    }

    /// An agent of this host as `web-1`, with its own metrics on this port.
    fn agent(&self, admin: u16) -> Program {
        let state = self.folder.path().join("agent").display().to_string();
        let admin = format!("127.0.0.1:{admin}");
        let mut arguments = vec!["--interval", "1s", "--state-dir", &state];
        arguments.extend(["--hostname", "web-1", "--node-ip", "192.0.2.7"]);
        arguments.extend(["--admin-listen", &admin]);
        Program::agent(self.api.url(), &arguments)
    }

    async fn node(&self, name: &str) -> Option<Samples> {
        let path = format!("/metrics/nodes/{name}");
        let text = self.api.client().get(&path, &[]).await.ok()?;
        Some(Samples::read(&String::from_utf8_lossy(&text)))
    }
}

/// Families that come and go from one moment to the next, or are of the exporter itself.
const NOT_COMPARED: [&str; 2] = [
    "node_time_seconds",
    "node_scrape_collector_duration_seconds",
];
/// Memory that comes and goes from one moment to the next, in bytes.
const MOVING: f64 = 256.0 * 1024.0 * 1024.0;

/// Labels of a series, of those that both sides write.
fn labels(series: &str) -> BTreeMap<String, String> {
    let inner = series
        .split_once('{')
        .map_or("", |(_, rest)| rest.trim_end_matches('}'));
    let pairs = inner.split("\",").filter_map(|pair| pair.split_once("=\""));
    let pair =
        |(name, value): (&str, &str)| (name.to_owned(), value.trim_end_matches('"').to_owned());
    pairs.map(pair).collect()
}

#[tokio::test]
async fn the_figures_are_those_of_node_exporter_by_name_type_and_value() {
    let site = Site::start();
    let _agent = site.agent(free_port());
    let exporter = Exporter::start(&["--collector.processes"]);
    let before = exporter.scrape().await;
    let since = before.values["node_time_seconds"];
    // A sample that was taken after that.
    let ours = eventually("a later sample", async || {
        let ours = site.node("web-1").await?;
        let time = ours.values.get("node_time_seconds")?;
        (*time > since).then_some(ours)
    })
    .await;
    let after = exporter.scrape().await;
    let total = before.values["node_memory_MemTotal_bytes"];
    let mut compared = BTreeSet::new();
    for (family, kind) in &ours.types {
        if NOT_COMPARED.contains(&family.as_str()) {
            continue;
        }
        assert_eq!(before.types.get(family), Some(kind), "the type of {family}");
        for (series, value) in ours.of(family) {
            if family == "node_uname_info" {
                let (ours, theirs) = (labels(series), before.of(family).next().expect("one").0);
                let theirs = labels(theirs);
                for name in ["machine", "release", "sysname"] {
                    assert_eq!(ours[name], theirs[name], "{name}");
                }
                compared.insert(family);
                continue;
            }
            let theirs = (before.values.get(series), after.values.get(series));
            let (Some(first), Some(last)) = theirs else {
                // node_exporter leaves out other interfaces and filesystems by default.
                let has_choice = [
                    "node_network",
                    "node_filesystem",
                    "node_disk",
                    "node_scrape",
                ];
                let may_lack = has_choice.iter().any(|prefix| family.starts_with(prefix));
                assert!(may_lack, "{series} is not there");
                continue;
            };
            let (low, high) = (first.min(*last), first.max(*last));
            // Counters lie between; what comes and goes is near.
            let slack = match family.as_str() {
                "node_memory_MemTotal_bytes" | "node_memory_SwapTotal_bytes" => 0.0,
                // Other tests run beside this one.
                _ if family.starts_with("node_memory") => MOVING.min(total / 8.0),
                "node_boot_time_seconds" => 2.0,
                "node_filesystem_size_bytes" | "node_filesystem_files" => 0.0,
                _ if family.starts_with("node_filesystem") => high / 50.0,
                _ if family.starts_with("node_load") => 1.0,
                "node_processes_pids" => 50.0,
                "node_disk_io_now" => 100.0,
                _ if kind == "counter" => (high - low).max(0.011),
                _ => 0.0,
            };
            assert!(
                (low - slack..=high + slack).contains(&value),
                "{series}: {value}, and node_exporter says {low} to {high}"
            );
            compared.insert(family);
        }
    }
    println!("{} families agree", compared.len());
    assert!(compared.len() >= 40, "{compared:?}");
    // Nothing that node_exporter has of these is missing here, but for what we leave out.
    for family in compared {
        let own = ours.of(family).count();
        assert!(own > 0, "{family}");
        if family.starts_with("node_cpu") || family.starts_with("node_memory") {
            assert_eq!(own, before.of(family).count(), "{family}");
        }
    }
}

/// A rule as people have it for `node_exporter`, by its names and its usual job.
const EXISTING: &str = r#"
groups:
  - name: node
    rules:
      - alert: FilesystemSpaceIsShort
        expr: >-
          (node_filesystem_avail_bytes{job="node",fstype!="",mountpoint="/"}
          / node_filesystem_size_bytes{job="node",fstype!="",mountpoint="/"} * 100 < 101
          and node_filesystem_readonly{job="node",fstype!="",mountpoint="/"} == 0)
        for: 2s
      - alert: CPUsAreThere
        expr: count by (instance) (count by (instance, cpu) (rate(node_cpu_seconds_total{job="node",mode="idle"}[10s]))) > 0
"#;

/// The rules of the chart, with waits that a test can wait for.
fn rules(name: &str) -> String {
    let text = read(&format!("charts/nodestats/files/rules/{name}.yaml"));
    let line = |line: &str| {
        if line.trim_start().starts_with("for: ") {
            "        for: 2s".to_owned()
        } else {
            line.to_owned()
        }
    };
    text.lines().map(line).collect::<Vec<_>>().join("\n")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prometheus_scrapes_everything_and_tells_of_an_agent_that_stops() {
    let plane = ControlPlane::with_nodestats(Version::ALL[0]);
    let site = Site::start();
    let [agent_port, controller_port] = free_ports();
    let agent = site.agent(agent_port);
    let listen = format!("127.0.0.1:{controller_port}");
    let kubeconfig = plane.credentials("nodestats-controller");
    let arguments = [
        "--identity",
        "one",
        "--poll",
        "1s",
        "--admin-listen",
        &listen,
    ];
    let _controller = Program::controller(site.api.url(), &kubeconfig, &arguments);
    let exporter = Exporter::start(&[]);
    let port = site.api.port();
    let targets = format!(
        "http_sd_configs: [{{url: 'http://127.0.0.1:{port}/metrics/targets', refresh_interval: 1s}}]"
    );
    let config = format!(
        "scrape_configs:\n\
         - job_name: nodestats\n  static_configs: [{{targets: ['127.0.0.1:{port}', '127.0.0.1:{agent_port}', '{listen}']}}]\n\
         - job_name: nodestats-nodes\n  {targets}\n\
         - job_name: node\n  {targets}\n  static_configs: [{{targets: ['{}']}}]\n",
        exporter.address()
    );
    let rules = [rules("nodestats"), rules("nodes"), EXISTING.to_owned()];
    let rules: Vec<&str> = rules.iter().map(String::as_str).collect();
    let prometheus = Prometheus::start(&config, &rules);
    let up = |instances: usize| {
        let prometheus = &prometheus;
        async move {
            let up = prometheus.query("up == 1").await;
            (up.len() == instances).then_some(())
        }
    };
    // API, agent, controller; the node in two jobs; node_exporter.
    eventually("all targets", async || up(6).await).await;
    // Some rounds of all of them.
    eventually("a while", async || {
        let rounds = prometheus.query("min(count_over_time(up[1m]))").await;
        (rounds.first()?.1 >= 8.0).then_some(())
    })
    .await;
    no_scrape_fails(&prometheus).await;
    every_rule_is_judged(&prometheus).await;
    every_panel_has_an_answer(&prometheus).await;
    promtool_has_nothing_to_say(&site, &[agent_port, controller_port]).await;
    // An alert that was written for node_exporter fires for both.
    for alert in ["FilesystemSpaceIsShort", "CPUsAreThere"] {
        eventually(alert, async || {
            let firing = prometheus.firing().await;
            let instances = firing.iter().filter(|one| one["alertname"] == alert);
            let instances: BTreeSet<String> =
                instances.map(|one| one["instance"].clone()).collect();
            instances.contains("web-1").then_some(())?;
            (instances.len() == 2).then_some(())
        })
        .await;
    }
    let missing = async || {
        let firing = prometheus.firing().await;
        let found = firing
            .iter()
            .find(|one| one["alertname"] == "NodestatsAgentMissing");
        found.map(|one| one["instance"].clone())
    };
    assert_eq!(missing().await, None);
    // Without a word: the node is not signed off.
    agent.kill();
    let named = eventually("the alert", missing).await;
    assert_eq!(named, "web-1");
    // Its figures are gone, and do not stand still.
    let last = prometheus.query("node_load1{instance=\"web-1\"}").await;
    assert_eq!(last, []);
    let _again = site.agent(agent_port);
    eventually("the end of the alert", async || {
        missing().await.is_none().then_some(())
    })
    .await;
}

/// Of all rounds so far, but for those in which a program was not up yet, or a busy machine took longer
/// than the second that a scrape has.
async fn no_scrape_fails(prometheus: &Prometheus) {
    eventually("scrapes without an error", async || {
        let found = prometheus.ask("/api/v1/targets", &[]).await?;
        let targets = found["activeTargets"].as_array()?.iter();
        let all = targets.fold(true, |all, target| {
            let error = target["lastError"].as_str().unwrap_or_default();
            let is_late = error.is_empty() || error.contains("deadline exceeded");
            assert!(is_late, "{target}");
            all && target["health"] == "up"
        });
        all.then_some(())
    })
    .await;
}

async fn every_rule_is_judged(prometheus: &Prometheus) {
    let found = prometheus.ask("/api/v1/rules", &[]).await.expect("rules");
    let groups = found["groups"].as_array().expect("groups");
    let rules: Vec<_> = groups
        .iter()
        .flat_map(|group| group["rules"].as_array().expect("rules"))
        .collect();
    assert!(rules.len() >= 25, "{}", rules.len());
    for rule in rules {
        assert_eq!(rule["health"], "ok", "{rule}");
    }
}

/// Each expression of the dashboard, and each metric that it names.
async fn every_panel_has_an_answer(prometheus: &Prometheus) {
    let dashboard = read("charts/nodestats/files/dashboard.json");
    let dashboard: serde_json::Value = serde_json::from_str(&dashboard).expect("JSON");
    let names = prometheus.ask("/api/v1/label/__name__/values", &[]).await;
    let names: BTreeSet<String> = serde_json::from_value(names.expect("names")).expect("texts");
    let panels = dashboard["panels"].as_array().expect("panels");
    let mut asked = 0;
    for target in panels
        .iter()
        .filter_map(|panel| panel["targets"].as_array())
        .flatten()
    {
        let expression = target["expr"].as_str().expect("a text");
        let expression = expression.replace("$__rate_interval", "1m");
        let query = [("query", expression.clone())];
        let answer = prometheus.ask("/api/v1/query", &query).await;
        assert!(answer.is_some(), "{expression}");
        let words =
            expression.split(|char: char| !(char.is_ascii_alphanumeric() || "_:".contains(char)));
        let prefixes = ["nodestats", "instance:", "http_server", "process_", "node_"];
        for word in words {
            let is_metric =
                prefixes.iter().any(|prefix| word.starts_with(prefix)) && word.len() > 10;
            // Where no controller or TLS is, there is no node of it and no certificate; bytes a value
            // are known after an hour; and one is a label.
            let later = [
                "nodestats_certificate",
                "nodestats:store_bytes_per_value",
                "nodestats_ip",
            ];
            let may_lack = later.iter().any(|prefix| word.starts_with(prefix));
            assert!(
                !is_metric || may_lack || names.contains(word),
                "{word} of {expression}"
            );
        }
        asked += 1;
    }
    assert!(asked >= 20, "{asked}");
}

async fn promtool_has_nothing_to_say(site: &Site, admin: &[u16]) {
    let mut texts = vec![("api".to_owned(), site.api.url().to_owned(), "/metrics")];
    texts.push((
        "nodes".to_owned(),
        site.api.url().to_owned(),
        "/metrics/nodes?processes=5",
    ));
    for port in admin {
        texts.push((
            format!("port {port}"),
            format!("http://127.0.0.1:{port}"),
            "/metrics",
        ));
    }
    for (name, url, path) in texts {
        let client = Client::new(&url, Duration::from_secs(10)).expect("a URL");
        let (path, query) = path.split_once('?').map_or((path, vec![]), |(path, pair)| {
            let (name, value) = pair.split_once('=').expect("a pair");
            (path, vec![(name, value.to_owned())])
        });
        let text = client.get(path, &query).await.expect("metrics");
        let file = site.folder.path().join("metrics.txt");
        std::fs::write(&file, &text).expect("written");
        let said = promtool(&["check", "metrics"], &file);
        let said = said.unwrap_or_else(|said| said);
        // node_exporter's names are what they are.
        let ours = said
            .lines()
            .filter(|line| !line.starts_with("node_memory_"));
        assert_eq!(ours.collect::<Vec<_>>(), Vec::<&str>::new(), "{name}");
    }
    assert!(get(&site.api.client(), "/metrics/targets").await.is_some());
}

#[test]
fn each_rule_has_a_test_that_passes_and_each_alert_a_paragraph() {
    let nothing = root().join("charts/nodestats/Chart.yaml");
    let manual = read("docs/alerts.md").to_lowercase();
    for name in ["nodestats", "nodes"] {
        let rules = root().join(format!("charts/nodestats/files/rules/{name}.yaml"));
        let tests = root().join(format!("crates/testkit/promtool/{name}.yaml"));
        let text = |path: &Path| path.display().to_string();
        let said = promtool(&["check", "rules", &text(&rules)], &nothing);
        assert!(said.is_ok(), "{said:?}");
        let said = promtool(&["test", "rules", &text(&tests)], &nothing);
        assert!(said.is_ok(), "{said:?}");
        let tested = read(&format!("crates/testkit/promtool/{name}.yaml"));
        for line in read(&format!("charts/nodestats/files/rules/{name}.yaml")).lines() {
            let line = line.trim();
            if let Some(alert) = line.strip_prefix("- alert: ") {
                assert!(tested.contains(&format!("alertname: {alert}")), "{alert}");
                let heading = format!("## {}\n", alert.to_lowercase());
                assert!(manual.contains(&heading), "{alert} has no paragraph");
            }
            if let Some(record) = line.strip_prefix("- record: ") {
                assert!(tested.contains(&format!("expr: {record}")), "{record}");
            }
            if let Some(url) = line.strip_prefix("runbook_url: ") {
                let (page, anchor) = url.split_once('#').expect("an anchor");
                assert!(page.ends_with("/docs/alerts.md"), "{url}");
                assert!(manual.contains(&format!("## {anchor}\n")), "{url}");
            }
        }
    }
}
