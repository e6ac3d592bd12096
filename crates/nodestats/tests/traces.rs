//! Traces through the whole path, in a real Jaeger; and collectors that hang, refuse, and talk nonsense.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use nodestats_testkit::jaeger::{Jaeger, Trace};
use nodestats_testkit::logs::lines_of;
use nodestats_testkit::{Authority, Frames, Program, Samples, eventually, free_ports, get};
use nodestats_wire::Timestamp;
use nodestats_wire::client::Client;
use nodestats_wire::v1::Registration;

/// What spans are called and may carry; the names and attributes are those of OpenTelemetry's semantic
/// conventions 1.37 (HTTP, database, general), and ours begin with `nodestats.`.
const SPANS: &[(&str, &[&str])] = &[
    ("tick", &[]),
    ("collect", &[]),
    ("collector", &["nodestats.collector"]),
    ("encode", &[]),
    ("push", &["nodestats.samples"]),
    ("reconcile", &["k8s.node.name"]),
    ("kubectl nodestats", &[]),
    ("authenticate", &[]),
    ("authorise", &[]),
    ("decode", &[]),
    ("store", &["nodestats.samples"]),
    ("queue", &[]),
    ("transaction", &["nodestats.pushes"]),
    ("piece", &[]),
    ("retention", &[]),
];
/// Attributes of each kind of span.
const OF_HTTP_CLIENTS: &[&str] = &[
    "http.request.method",
    "http.response.status_code",
    "server.address",
    "server.port",
    "url.template",
];
const OF_HTTP_SERVERS: &[&str] = &[
    "host.name",
    "http.request.method",
    "http.response.status_code",
    "http.route",
    "k8s.node.name",
    "url.path",
    "url.scheme",
];
const OF_DATABASES: &[&str] = &[
    "db.collection.name",
    "db.namespace",
    "db.operation.name",
    "db.response.returned_rows",
    "db.system.name",
];
/// What the SDK and Jaeger add, and what any span may have that failed.
const OF_ALL: &[&str] = &[
    "error",
    "error.type",
    "otel.scope.name",
    "otel.scope.version",
    "otel.status_code",
    "span.kind",
];

/// Each span by the table.
fn check_names(trace: &Trace) {
    for span in &trace.spans {
        let kind = span
            .attributes
            .get("span.kind")
            .and_then(|kind| kind.as_str());
        let is_query = span.attributes.contains_key("db.system.name");
        let allowed: &[&str] = match kind {
            Some("client") if is_query => {
                assert_eq!(span.attributes["db.system.name"], "surrealdb");
                let operation = span.attributes["db.operation.name"]
                    .as_str()
                    .expect("a text");
                assert!(span.name.starts_with(operation), "{span:?}");
                OF_DATABASES
            }
            Some("client") => OF_HTTP_CLIENTS,
            Some("server") => OF_HTTP_SERVERS,
            _ => {
                let row = SPANS.iter().find(|(name, _)| *name == span.name);
                row.unwrap_or_else(|| panic!("{span:?} is in no table")).1
            }
        };
        for name in span.attributes.keys() {
            let known = allowed.contains(&&**name) || OF_ALL.contains(&&**name);
            assert!(known, "{name} of {span:?}");
        }
        // A name is one of few.
        let is_clean = |char: char| char.is_ascii_alphabetic() || " /{}_.".contains(char);
        assert!(span.name.chars().all(is_clean), "{:?}", span.name);
    }
}

/// The trace, once it has all of these paths, by whoever sends them.
async fn whole(jaeger: &Jaeger, id: &str, wanted: &[&str]) -> Trace {
    let mut last = BTreeSet::new();
    let begin = Instant::now();
    loop {
        if let Some(trace) = jaeger.trace(id).await {
            last = trace.paths();
            if wanted.iter().all(|path| last.contains(*path)) {
                return trace;
            }
        }
        assert!(
            begin.elapsed() < Duration::from_mins(1),
            "{wanted:#?} in {last:#?}"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

struct Site {
    folder: tempfile::TempDir,
    jaeger: Jaeger,
    api: Program,
}

impl Site {
    /// An API that sends by one protocol; agents send by HTTP always.
    fn start(grpc: bool) -> Self {
        let folder = tempfile::tempdir().expect("temporary folder");
        let jaeger = Jaeger::start();
        let log = folder.path().join("api.log");
        let arguments = ["api", "--listen", "127.0.0.1:0", "--database", "mem://"];
        let api = Program::serve_with(&arguments, &jaeger.variables(grpc), &log);
        Self {
            folder,
            jaeger,
            api,
        }
    }

    fn agent(&self) -> Program {
        let state = self.folder.path().join("agent").display().to_string();
        let arguments = [
            "--server",
            self.api.url(),
            "--interval",
            "1s",
            "--state-dir",
            &state,
        ];
        let arguments = [
            &arguments[..],
            &["--hostname", "traced", "--node-ip", "192.0.2.7"],
        ];
        let variables = self.jaeger.variables(false);
        let variables: Vec<(&str, &str)> = variables
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        let log = self.folder.path().join("agent.log");
        Program::start_logged("nodestats-agent", &arguments.concat(), &variables, &log)
    }

    /// Asks by the plugin, and returns the id of the trace.
    fn ask(&self, arguments: &[&str], grpc: bool) -> String {
        let all = [&["--server", self.api.url(), "--trace"], arguments].concat();
        let run = Program::run_with("kubectl-nodestats", &all, &self.jaeger.variables(grpc));
        assert!(run.status.success(), "{run:?}");
        let line = run
            .stderr
            .lines()
            .find_map(|line| line.strip_prefix("trace "));
        line.expect("the trace's id").to_owned()
    }
}

#[tokio::test]
async fn one_trace_leads_from_a_tick_to_the_transaction_and_one_from_a_question_to_its_rows() {
    for grpc in [false, true] {
        let site = Site::start(grpc);
        let agent = site.agent();
        let client = site.api.client();
        eventually("two samples", async || {
            let history = get(&client, "/nodes/traced/cpu").await?;
            history["usage_percent"].as_f64()
        })
        .await;
        let push =
            "nodestats-agent: tick > push > PUT /nodes/{node} > nodestats-api: PUT /nodes/{node}";
        let wanted = [
            "nodestats-agent: tick".to_owned(),
            "nodestats-agent: tick > collect > collector".to_owned(),
            "nodestats-agent: tick > encode".to_owned(),
            format!("{push} > authenticate"),
            format!("{push} > authorise"),
            format!("{push} > decode"),
            format!("{push} > store > queue"),
            format!("{push} > store > transaction > INSERT sample"),
        ];
        let wanted: Vec<&str> = wanted.iter().map(String::as_str).collect();
        let tick = eventually("a tick", async || {
            let traces = site.jaeger.traces("nodestats-agent").await;
            let tick = traces
                .into_iter()
                .find(|trace| trace.paths().contains(wanted[wanted.len() - 1]));
            tick.map(|trace| trace.id)
        })
        .await;
        let tick = whole(&site.jaeger, &tick, &wanted).await;
        assert!(tick.orphans().is_empty(), "{:#?}", tick.orphans());
        check_names(&tick);
        // Each collector once.
        let collectors: Vec<_> = tick
            .spans
            .iter()
            .filter_map(|span| span.attributes.get("nodestats.collector"))
            .collect();
        assert!(collectors.len() >= 7, "{collectors:?}");
        let asked = "kubectl-nodestats: kubectl nodestats > GET /nodes/{node}/cpu > \
                     nodestats-api: GET /nodes/{node}/cpu";
        let history = site.ask(&["get", "traced", "--cpu", "--from", "2020-01-01"], grpc);
        let wanted = [
            format!("{asked} > authenticate"),
            format!("{asked} > SELECT sample"),
            format!("{asked} > piece > SELECT sample"),
            format!("{asked} > piece > decode"),
        ];
        let wanted: Vec<&str> = wanted.iter().map(String::as_str).collect();
        let history = whole(&site.jaeger, &history, &wanted).await;
        assert!(history.orphans().is_empty(), "{:#?}", history.orphans());
        check_names(&history);
        let now = site.ask(&["get", "traced", "--cpu"], grpc);
        let decode = format!("{asked} > decode");
        let now = whole(&site.jaeger, &now, &[&decode]).await;
        assert!(now.orphans().is_empty());
        // The end of the agent is told too, before it is gone.
        assert!(agent.terminate().success());
        eventually("the agent's good-bye", async || {
            let traces = site.jaeger.traces("nodestats-agent").await;
            let spans = traces.iter().flat_map(|trace| &trace.spans);
            spans
                .into_iter()
                .find(|span| span.name == "DELETE /nodes/{node}")
                .map(drop)
        })
        .await;
        // Retention is a trace of its own.
        eventually("a look at the retention", async || {
            let traces = site.jaeger.traces("nodestats-api").await;
            let of_retention = |trace: &&Trace| {
                trace
                    .paths()
                    .contains("nodestats-api: retention > SELECT seen")
            };
            traces.iter().find(of_retention).map(check_names)
        })
        .await;
        // A line of the log within a request names its trace.
        let log = site.folder.path().join("api.log");
        let log = std::fs::read_to_string(log).expect("a log");
        let registered = lines_of(&log, "nodestats_api::nodes").into_iter();
        let registered: Vec<String> = registered
            .filter(|line| line.contains("a node registered"))
            .collect();
        assert!(registered[0].contains("trace_id="), "{registered:?}");
    }
}

#[tokio::test]
async fn a_push_of_samples_that_waited_is_linked_to_their_ticks() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let jaeger = Jaeger::start();
    let [port, admin] = free_ports();
    let (server, admin) = (
        format!("http://127.0.0.1:{port}"),
        format!("127.0.0.1:{admin}"),
    );
    let state = folder.path().join("agent").display().to_string();
    let mut arguments = vec![
        "--server",
        &server,
        "--interval",
        "1s",
        "--state-dir",
        &state,
    ];
    arguments.extend(["--admin-listen", &admin]);
    let variables = jaeger.variables(false);
    let variables: Vec<(&str, &str)> = variables
        .iter()
        .map(|(name, value)| (*name, value.as_str()))
        .collect();
    let log = folder.path().join("agent.log");
    let _agent = Program::start_logged("nodestats-agent", &arguments, &variables, &log);
    let own = Client::new(&format!("http://{admin}"), Duration::from_secs(5)).expect("a URL");
    eventually("samples that wait", async || {
        let text = own.get("/metrics", &[]).await.ok()?;
        let samples = Samples::read(&String::from_utf8_lossy(&text));
        let waiting = *samples.values.get("nodestats_agent_buffer_samples")?;
        (waiting >= 4.0).then_some(())
    })
    .await;
    let listen = format!("127.0.0.1:{port}");
    let _api = Program::serve(&["api", "--listen", &listen, "--database", "mem://"]);
    eventually("a push with links", async || {
        let traces = jaeger.traces("nodestats-agent").await;
        let spans: Vec<_> = traces.iter().flat_map(|trace| &trace.spans).collect();
        let push = spans
            .iter()
            .find(|span| span.name == "push" && !span.links.is_empty())?;
        // Each is a tick that is known.
        let is_tick = |id: &String| {
            spans
                .iter()
                .any(|span| span.id == *id && span.name == "tick")
        };
        push.links.iter().all(is_tick).then_some(())
    })
    .await;
}

#[tokio::test]
async fn what_our_own_header_says_counts_before_that_of_a_proxy() {
    let site = Site::start(false);
    let client = reqwest(&site);
    let ids = [
        "0af7651916cd43dd8448eb211c80319c",
        "11111111111111111111111111111111",
    ];
    let parents = ["b7ad6b7169203331", "2222222222222222"];
    let value = |index: usize| format!("00-{}-{}-01", ids[index], parents[index]);
    client(
        "/nodes",
        &[
            ("nodestats-traceparent", value(0)),
            ("traceparent", value(1)),
        ],
    );
    client("/nodes", &[("traceparent", value(1))]);
    for (id, parent) in ids.iter().zip(parents) {
        let trace = eventually("the request", async || site.jaeger.trace(id).await).await;
        let request = trace.spans.iter().find(|span| span.name == "GET /nodes");
        let request = request.expect("the request");
        // Its parent is nobody whom Jaeger has heard of.
        assert_eq!(trace.orphans().len(), 1);
        assert!(request.attributes["span.kind"] == "server");
        let linked = request.links.iter().any(|link| link == "2222222222222222");
        assert_eq!(linked, *id == ids[0], "{request:?}");
        assert_eq!(request.parent.as_deref(), Some(parent));
    }
    // What is no trace context is none.
    client("/nodes", &[("traceparent", "00-zz-b7-01".to_owned())]);
}

/// Asks by hand: the typed client has headers of its own.
fn reqwest(site: &Site) -> impl Fn(&str, &[(&str, String)]) + use<> {
    let port = site.api.port();
    move |path, headers| {
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).expect("listens");
        let mut text = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n");
        for (name, value) in headers {
            text = format!("{text}{name}: {value}\r\n");
        }
        stream
            .write_all(format!("{text}\r\n").as_bytes())
            .expect("written");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
}

#[tokio::test]
async fn a_collector_is_known_by_its_authority() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let authority = Authority::new();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).expect("written");
        path
    };
    let [certificate, key] = authority.leaf("collector", "127.0.0.1");
    let jaeger = Jaeger::start_with_tls(&file("tls.crt", &certificate), &file("tls.key", &key));
    let right = file("ca.crt", authority.pem()).display().to_string();
    let wrong = file("other.crt", Authority::new().pem())
        .display()
        .to_string();
    for grpc in [false, true] {
        for (trusted, name) in [(&wrong, "stranger"), (&right, "friend")] {
            let mut variables = jaeger.variables(grpc);
            variables.push(("OTEL_EXPORTER_OTLP_CERTIFICATE", trusted.clone()));
            variables.push(("OTEL_SERVICE_NAME", format!("{name}-{grpc}")));
            let api = ["api", "--listen", "127.0.0.1:0", "--database", "mem://"];
            let log = folder.path().join("api.log");
            let api = Program::serve_with(&api, &variables, &log);
            api.client().get("/nodes", &[]).await.expect("an answer");
            let end = api.terminate();
            let log = std::fs::read_to_string(log).expect("a log");
            assert!(end.success(), "{end}: {log}");
        }
        let friend = format!("friend-{grpc}");
        eventually("the trace of who trusts it", async || {
            (!jaeger.traces(&friend).await.is_empty()).then_some(())
        })
        .await;
        assert!(jaeger.traces(&format!("stranger-{grpc}")).await.is_empty());
    }
}

/// What came to a collector of metrics, which answers each request.
fn metrics_sink() -> (String, Arc<Mutex<Vec<u8>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
    let address = format!("http://{}", listener.local_addr().expect("bound"));
    let seen = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&seen);
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let kept = Arc::clone(&kept);
            std::thread::spawn(move || {
                let mut chunk = vec![0; 64 << 10];
                while let Ok(count @ 1..) = stream.read(&mut chunk) {
                    let mut all = kept.lock().expect("not poisoned");
                    all.extend_from_slice(&chunk[..count]);
                    drop(all);
                    // One answer a chunk: whoever sends larger ones is answered early.
                    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
                    let _ = stream.write_all(answer);
                }
            });
        }
    });
    (address, seen)
}

#[tokio::test]
async fn metrics_go_to_the_collector_too_with_the_headers_asked_for() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let (endpoint, seen) = metrics_sink();
    let variables = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint),
        ("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=a%20b".to_owned()),
        ("OTEL_TRACES_EXPORTER", "none".to_owned()),
        ("OTEL_METRIC_EXPORT_INTERVAL", "200".to_owned()),
        (
            "OTEL_RESOURCE_ATTRIBUTES",
            "deployment.environment.name=test".to_owned(),
        ),
    ];
    let api = ["api", "--listen", "127.0.0.1:0", "--database", "mem://"];
    let api = Program::serve_with(&api, &variables, &folder.path().join("api.log"));
    api.client().get("/nodes", &[]).await.expect("an answer");
    let wanted = [
        "POST /v1/metrics",
        "x-tenant: a b",
        "nodestats-api",
        "deployment.environment.name",
        "http.server.request.duration",
        "nodestats.samples.stored",
        "process.resident.memory",
    ];
    eventually("all of them", async || {
        let seen = seen.lock().expect("not poisoned").clone();
        let text = String::from_utf8_lossy(&seen);
        wanted.iter().all(|one| text.contains(one)).then_some(())
    })
    .await;
    let seen = seen.lock().expect("not poisoned").clone();
    assert!(!String::from_utf8_lossy(&seen).contains("/v1/traces"));
}

/// How a collector behaves that does not do what it should.
#[derive(Debug, Clone, Copy)]
enum Collector {
    /// Takes connections and says nothing.
    Hangs,
    /// Nobody listens.
    Refuses,
    /// Says something that is no answer.
    Garbage,
}

impl Collector {
    /// Starts it for as long as this test runs, and returns its address.
    fn start(self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
        let address = format!("http://{}", listener.local_addr().expect("bound"));
        match self {
            Self::Refuses => drop(listener),
            Self::Hangs | Self::Garbage => {
                std::thread::spawn(move || {
                    let mut held = Vec::new();
                    for stream in listener.incoming().map_while(Result::ok) {
                        let mut stream = stream;
                        if let Self::Garbage = self {
                            let _ = stream.write_all(b"\x00\xff\x13 no HTTP at all\r\n\r\n");
                        }
                        held.push(stream);
                    }
                });
            }
        }
        address
    }
}

/// How long pushes take, sorted.
async fn pushes(api: &Program, count: usize) -> Vec<Duration> {
    let client = api.client();
    let mut frames = Frames::new(Timestamp::from_system(SystemTime::now()));
    let registration = Registration::new("192.0.2.8", "pushing");
    client.register(&registration).await.expect("registered");
    let mut took = Vec::with_capacity(count);
    for _ in 0..count {
        let frame = frames.next_frame();
        let begin = Instant::now();
        client.push_frames("pushing", frame).await.expect("stored");
        took.push(begin.elapsed());
    }
    took.sort();
    took
}

#[tokio::test]
async fn a_collector_that_does_not_work_changes_nothing() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let serve = |endpoint: Option<&str>, name: &str| {
        let mut variables = vec![
            ("OTEL_METRICS_EXPORTER", "none".to_owned()),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "64".to_owned()),
            ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "32".to_owned()),
            ("OTEL_BSP_SCHEDULE_DELAY", "100".to_owned()),
        ];
        variables.extend(endpoint.map(|at| ("OTEL_EXPORTER_OTLP_ENDPOINT", at.to_owned())));
        let arguments = ["api", "--listen", "127.0.0.1:0", "--database", "mem://"];
        Program::serve_with(&arguments, &variables, &folder.path().join(name))
    };
    let without = serve(None, "off.log");
    let usual = pushes(&without, 200).await;
    let memory = without.peak_memory();
    for collector in [Collector::Hangs, Collector::Refuses, Collector::Garbage] {
        let log = format!("{collector:?}.log");
        let started = Instant::now();
        let api = serve(Some(&collector.start()), &log);
        let took = pushes(&api, 200).await;
        // Nobody waits for a collector: a request to this one takes ten seconds.
        let slowest = took[took.len() - 1];
        assert!(
            slowest < Duration::from_secs(5),
            "{collector:?}: {slowest:?}"
        );
        println!(
            "{collector:?}: median {:?}, slowest {slowest:?}; without a collector {:?}, {:?}",
            took[took.len() / 2],
            usual[usual.len() / 2],
            usual[usual.len() - 1]
        );
        let lost = eventually("what was lost is counted", async || {
            let text = api.client().get("/metrics", &[]).await.ok()?;
            let samples = Samples::read(&String::from_utf8_lossy(&text));
            let processed = "otel_sdk_processor_span_processed_total";
            let exported = "otel_sdk_exporter_span_exported_total";
            let sum = |family| {
                let failed = |(series, _): &(&str, f64)| series.contains("error_type=");
                samples
                    .of(family)
                    .filter(failed)
                    .map(|(_, value)| value)
                    .sum::<f64>()
            };
            let (dropped, failed) = (sum(processed), sum(exported));
            // More than the queue holds was made, so that some are dropped where nothing moves on.
            let enough = match collector {
                Collector::Hangs => dropped > 0.0,
                Collector::Refuses | Collector::Garbage => failed + dropped > 0.0,
            };
            enough.then_some((dropped, failed))
        })
        .await;
        println!("{collector:?}: (dropped, failed) = {lost:?}");
        // The queue is as long as it is.
        let more = api.peak_memory().saturating_sub(memory);
        println!("{collector:?}: {} KiB more", more >> 10);
        assert!(more < 24 << 20, "{collector:?}: {more} bytes");
        let begin = Instant::now();
        assert!(api.terminate().success(), "{collector:?}");
        assert!(
            begin.elapsed() < Duration::from_secs(10),
            "{:?}",
            begin.elapsed()
        );
        // What goes wrong again and again is told thirty times a minute at most.
        let log = std::fs::read_to_string(folder.path().join(&log)).expect("a log");
        let mut told: BTreeMap<(String, String), u32> = BTreeMap::new();
        for line in log.lines() {
            let line: serde_json::Value = serde_json::from_str(line).expect("an object");
            let place = (line["target"].to_string(), line["name"].to_string());
            *told.entry(place).or_default() += 1;
        }
        let minutes = 1 + u32::try_from(started.elapsed().as_secs() / 60).expect("short");
        let most = told.values().max().copied().unwrap_or_default();
        assert!(most <= 30 * (minutes + 1), "{told:?}");
    }
}

#[tokio::test]
async fn wrong_variables_are_told_and_stop_nothing() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let state = folder.path().join("agent").display().to_string();
    let api = Program::serve(&["api", "--listen", "127.0.0.1:0", "--database", "mem://"]);
    let client = api.client();
    for (variables, said) in [
        (
            "ENDPOINT=http://127.0.0.1:4317 PROTOCOL=grpc",
            "this program sends http/protobuf alone",
        ),
        (
            "ENDPOINT=http://127.0.0.1:4318 PROTOCOL=smoke",
            "grpc or http/protobuf",
        ),
        (
            "ENDPOINT=https://127.0.0.1:4318 CERTIFICATE=/nowhere.pem",
            "cannot read /nowhere.pem",
        ),
        (
            "ENDPOINT=http://127.0.0.1:4318 OTEL_PROPAGATORS=b3",
            "tracecontext, baggage and none",
        ),
        (
            "ENDPOINT=http://127.0.0.1:4318 OTEL_TRACES_SAMPLER=traceidratio OTEL_TRACES_SAMPLER_ARG=1%",
            "a number from 0 to 1",
        ),
        (
            "ENDPOINT=http://127.0.0.1:4318 OTEL_TRACES_SAMPLER=sometimes",
            "no sampler that there is",
        ),
    ] {
        let named = |pair: &str| {
            let (name, value) = pair.split_once('=').expect("NAME=VALUE");
            let begin = if name.starts_with("OTEL_") {
                ""
            } else {
                "OTEL_EXPORTER_OTLP_"
            };
            (format!("{begin}{name}"), value.to_owned())
        };
        let variables: Vec<(String, String)> = variables.split(' ').map(named).collect();
        let variables: Vec<(&str, &str)> = variables
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        let log = folder.path().join("agent.log");
        let arguments = [
            "--server",
            api.url(),
            "--interval",
            "1s",
            "--state-dir",
            &state,
        ];
        let agent = Program::start_logged("nodestats-agent", &arguments, &variables, &log);
        eventually("a word about it", async || {
            let text = std::fs::read_to_string(&log).ok()?;
            text.contains(said).then_some(())
        })
        .await;
        eventually("a node", async || {
            let nodes = get(&client, "/nodes").await?;
            nodes.as_array().filter(|nodes| !nodes.is_empty()).map(drop)
        })
        .await;
        assert!(agent.terminate().success());
    }
}

#[tokio::test]
async fn what_is_off_sends_nothing() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let jaeger = Jaeger::start();
    for (name, off) in [
        ("disabled", ("OTEL_SDK_DISABLED", "true")),
        ("unsampled", ("OTEL_TRACES_SAMPLER", "always_off")),
        ("without", ("OTEL_TRACES_EXPORTER", "none")),
        ("on", ("OTEL_SDK_DISABLED", "false")),
    ] {
        let mut variables = jaeger.variables(false);
        variables.push(("OTEL_SERVICE_NAME", name.to_owned()));
        variables.push((off.0, off.1.to_owned()));
        let api = ["api", "--listen", "127.0.0.1:0", "--database", "mem://"];
        let api = Program::serve_with(&api, &variables, &folder.path().join("api.log"));
        api.client().get("/nodes", &[]).await.expect("an answer");
        // What there was to send is sent at the end.
        assert!(api.terminate().success());
    }
    eventually("the one that is on", async || {
        (!jaeger.traces("on").await.is_empty()).then_some(())
    })
    .await;
    for name in ["disabled", "unsampled", "without"] {
        assert!(jaeger.traces(name).await.is_empty(), "{name}");
    }
}
