//! The controller before an API server that fails in every way: it survives each, and says so in a
//! metric with closed labels.

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
    _controller: Program,
    _folder: tempfile::TempDir,
}

impl Scene {
    /// `prepare` may put objects and faults there before the controller begins.
    async fn start(prepare: impl FnOnce(&FakeApiServer)) -> Self {
        let folder = tempfile::tempdir().expect("temporary folder");
        let kubeconfig = folder.path().join("kubeconfig");
        let server = FakeApiServer::start().await;
        server.write_kubeconfig(&kubeconfig);
        prepare(&server);
        let api = Program::serve(&["api", "--listen", "127.0.0.1:0", "--database", "mem://"]);
        let listen = format!("127.0.0.1:{}", free_port());
        let arguments = [
            "controller",
            "--api",
            api.url(),
            "--namespace",
            "nodestats",
            "--identity",
            "test",
            "--poll",
            "500ms",
            "--admin-listen",
            &listen,
        ];
        let kubeconfig = kubeconfig.display().to_string();
        let controller = Program::start("nodestats", &arguments, &[("KUBECONFIG", &kubeconfig)]);
        let admin =
            Client::new(&format!("http://{listen}"), Duration::from_secs(5)).expect("a URL");
        Self {
            server,
            api,
            admin,
            _controller: controller,
            _folder: folder,
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
