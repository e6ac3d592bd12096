//! The controller before an API server that fails in every way: it survives each, and says so in a
//! metric with closed labels.

use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper::Method;
use nodestats_testkit::fake_api_server::{FakeApiServer, Fault};
use nodestats_testkit::{Frames, Program, eventually, free_port};
use nodestats_wire::Timestamp;
use nodestats_wire::client::Client;
use serde_json::{Value, json};

const NODES: &str = "/api/v1/nodes";
const OBJECTS: &str = "/apis/nodestats.dev/v1alpha1/monitorednodes";

/// A fake API server, a real API, and a controller between them.
struct Scene {
    server: FakeApiServer,
    api: Program,
    admin: Client,
    controller: Program,
    kubeconfig: PathBuf,
    listen: String,
    folder: tempfile::TempDir,
}

impl Scene {
    /// `prepare` may put objects and faults there before the controller begins.
    async fn start(prepare: impl FnOnce(&FakeApiServer)) -> Self {
        let folder = tempfile::tempdir().expect("temporary folder");
        let kubeconfig = folder.path().join("kubeconfig");
        let server = FakeApiServer::start().await;
        server.write_kubeconfig(&kubeconfig);
        prepare(&server);
        let api = start_api(&folder, free_port());
        let listen = format!("127.0.0.1:{}", free_port());
        let controller = start_controller(api.url(), &kubeconfig, &listen);
        let admin =
            Client::new(&format!("http://{listen}"), Duration::from_secs(5)).expect("a URL");
        Self {
            server,
            api,
            admin,
            controller,
            kubeconfig,
            listen,
            folder,
        }
    }

    fn add(&self, name: &str) {
        add(&self.server, name);
    }

    fn phase(&self, name: &str) -> Option<String> {
        let object = self.server.get(&format!("{OBJECTS}/{name}"))?;
        object["status"]["phase"].as_str().map(str::to_owned)
    }

    async fn until(&self, name: &str, phase: &str) {
        let what = format!("{name} to be {phase}");
        eventually(&what, async || (self.phase(name)? == phase).then_some(())).await;
    }

    /// One sample of the node, as its agent sends it.
    async fn push(&self, name: &str) {
        let client = self.api.client();
        let now = Timestamp::from_system(std::time::SystemTime::now());
        let frame = Frames::new(now).next_frame();
        eventually("the registration", async || {
            client.push_frames(&uid(name), frame.clone()).await.ok()
        })
        .await;
    }

    async fn metric(&self, line: &str) -> f64 {
        let text = self.admin.get("/metrics", &[]).await.expect("metrics");
        let text = String::from_utf8(text).expect("UTF-8");
        let value = text
            .lines()
            .find_map(|found| found.strip_prefix(line)?.trim().parse().ok());
        value.unwrap_or_else(|| panic!("{line} is not in {text}"))
    }

    async fn until_counted(&self, family: &str, reason: &str) {
        let line = format!("nodestats_controller_{family}_failures_total{{reason=\"{reason}\"}}");
        eventually(&line, async || {
            (self.metric(&line).await >= 1.0).then_some(())
        })
        .await;
    }
}

fn start_api(folder: &tempfile::TempDir, port: u16) -> Program {
    let listen = format!("127.0.0.1:{port}");
    let database = format!("surrealkv://{}", folder.path().join("data").display());
    Program::serve(&["api", "--listen", &listen, "--database", &database])
}

fn start_controller(api: &str, kubeconfig: &Path, listen: &str) -> Program {
    let arguments = [
        "--identity",
        "test",
        "--poll",
        "500ms",
        "--admin-listen",
        listen,
    ];
    Program::controller(api, kubeconfig, &arguments)
}

fn uid(name: &str) -> String {
    format!("uid-{name}")
}

fn object(name: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "nodestats.dev/v1alpha1", "kind": "MonitoredNode",
        "metadata": {
            "name": name, "uid": format!("object-{name}"), "generation": 1,
            "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": name, "uid": uid(name)}],
        },
        "spec": spec,
    })
}

fn add(server: &FakeApiServer, name: &str) {
    let node = json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "uid": uid(name)},
        "status": {
            "addresses": [{"type": "InternalIP", "address": "192.168.2.10"}],
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    });
    server.put(&format!("{NODES}/{name}"), node);
    server.put(&format!("{OBJECTS}/{name}"), object(name, json!({})));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conflicts_throttling_and_errors_are_tried_again() {
    let scene = Scene::start(|_| {}).await;
    for (name, fault, times, reason) in [
        ("conflict", Fault::Status(409), 2, "conflict"),
        ("busy", Fault::TooManyRequests, 2, "too_many_requests"),
        ("broken", Fault::Status(500), 3, "server_error"),
        ("away", Fault::Status(503), 1, "server_error"),
        ("forbidden", Fault::Status(403), 1, "forbidden"),
    ] {
        scene
            .server
            .fail(Method::PATCH, &format!("/{name}/status"), times, fault);
        scene.add(name);
        scene.until(name, "Pending").await;
        scene.push(name).await;
        scene.until(name, "Ready").await;
        assert_eq!(scene.server.faults_left(), 0, "{name}");
        scene.until_counted("request", reason).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_hangs_holds_up_no_other_node() {
    let scene = Scene::start(|_| {}).await;
    scene
        .server
        .fail(Method::PATCH, "/hangs/status", 1, Fault::Hang);
    scene.add("hangs");
    scene.add("other");
    scene.until("other", "Pending").await;
    assert_eq!(scene.phase("hangs"), None);
    scene.push("other").await;
    scene.until("other", "Ready").await;
    // It is given up, counted, and tried again.
    scene.until("hangs", "Pending").await;
    scene.until_counted("request", "timeout").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_whose_version_is_forgotten_begins_anew() {
    let scene = Scene::start(|_| {}).await;
    scene.add("first");
    scene.until("first", "Pending").await;
    for collection in [OBJECTS, NODES] {
        let before = scene.server.requests("GET", collection);
        scene.server.forget_versions(collection);
        eventually("another list", async || {
            (scene.server.requests("GET", collection) > before).then_some(())
        })
        .await;
    }
    scene.add("second");
    scene.until("second", "Pending").await;
    scene.until_counted("watch", "gone").await;
    // Lists that fail are tried again too.
    scene
        .server
        .fail(Method::GET, "/monitorednodes", 2, Fault::Status(500));
    scene.server.forget_versions(OBJECTS);
    scene.add("third");
    scene.until("third", "Pending").await;
    scene.until_counted("watch", "server_error").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_object_that_cannot_be_read_hides_no_other() {
    let scene = Scene::start(|server| {
        add(server, "good");
        let nonsense = object("bad", json!({"interval": {"not": "a span"}}));
        server.put(&format!("{OBJECTS}/bad"), nonsense);
        let node = json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": "odd", "uid": "uid-odd"},
            "status": {"addresses": "none"},
        });
        server.put(&format!("{NODES}/odd"), node);
    })
    .await;
    scene.until("good", "Pending").await;
    scene.until_counted("watch", "unparsable").await;
    scene.add("later");
    scene.until("later", "Pending").await;
    assert_eq!(scene.phase("bad"), None);
    // A Node that cannot be read is there all the same, and another one is not.
    let client = scene.api.client();
    for (uid, name) in [("uid-odd", "odd"), ("uid-gone", "gone")] {
        let registration = serde_json::from_value(json!({
            "hostname": name, "ip": "192.168.2.30", "interval_seconds": 10,
            "retention_seconds": 86_400, "deletion_policy": "retain",
        }));
        let registration = registration.expect("valid");
        let taken = client.register_in_cluster(uid, &registration).await;
        taken.expect("registered");
    }
    let live = async |uid: &str| {
        let lives = client.freshness().await.ok()?;
        Some(lives.iter().any(|life| life.uid == uid))
    };
    eventually("a Node that is gone to be retired", async || {
        (!live("uid-gone").await?).then_some(())
    })
    .await;
    assert_eq!(live("uid-odd").await, Some(true));
    // It is mended, and goes on like any other.
    let node = json!({
        "metadata": {"name": "bad", "uid": uid("bad")},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.168.2.11"}]},
    });
    scene.server.put(&format!("{NODES}/bad"), node);
    scene
        .server
        .put(&format!("{OBJECTS}/bad"), object("bad", json!({})));
    scene.until("bad", "Pending").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_happened_is_told_once_whoever_leads() {
    let mut scene = Scene::start(|_| {}).await;
    let often = object("quiet", json!({"interval": "1s"}));
    scene.add("quiet");
    scene.server.put(&format!("{OBJECTS}/quiet"), often);
    scene.push("quiet").await;
    scene.until("quiet", "Stale").await;
    let told = |server: &FakeApiServer, namespace: &str, reason: &str| {
        let events = format!("/apis/events.k8s.io/v1/namespaces/{namespace}/events");
        server.count(&events, |event| event["reason"] == reason)
    };
    let server = scene.server.clone();
    let told = |namespace: &str, reason: &str| told(&server, namespace, reason);
    eventually("the Event", async || {
        (told("default", "NodeStale") == 1).then_some(())
    })
    .await;
    let port = scene.api.port();
    assert_eq!(scene.api.terminate().code(), Some(0));
    eventually("the API's absence", async || {
        let object = server.get(&format!("{OBJECTS}/quiet"))?;
        (object["status"]["phase"] == "Unknown").then_some(())
    })
    .await;
    // It is told behind the phase.
    eventually("the Event of the API", async || {
        (told("nodestats", "ApiUnavailable") == 1).then_some(())
    })
    .await;
    // Another replica leads, and finds the API away for as long as it takes to say so.
    assert_eq!(scene.controller.terminate().code(), Some(0));
    let api = format!("http://127.0.0.1:{port}");
    scene.controller = start_controller(&api, &scene.kubeconfig, &scene.listen);
    eventually("it to be sure", async || {
        let text = scene.admin.get("/metrics", &[]).await.ok()?;
        let text = String::from_utf8(text).ok()?;
        let failed = text.lines().find_map(|line| {
            let count = line.strip_prefix("nodestats_controller_poll_failures_total ")?;
            count.parse::<u32>().ok()
        });
        (failed? > 25).then_some(())
    })
    .await;
    assert_eq!(told("nodestats", "ApiUnavailable"), 1);
    // A third one finds it back, and the node as silent as before.
    assert_eq!(scene.controller.terminate().code(), Some(0));
    scene.api = start_api(&scene.folder, port);
    scene.controller = start_controller(&api, &scene.kubeconfig, &scene.listen);
    scene.until("quiet", "Stale").await;
    eventually("the API's return", async || {
        (told("nodestats", "ApiAvailable") == 1).then_some(())
    })
    .await;
    assert_eq!(told("nodestats", "ApiUnavailable"), 1);
    assert_eq!(told("default", "NodeStale"), 1);
    assert_eq!(told("default", "NodeReports"), 1);
}
