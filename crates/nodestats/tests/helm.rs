//! `helm install nodestats` on a real cluster, and what `kubectl nodestats` then says, beside what
//! each node's own `/proc` says.
//!
//! One test for both versions, since the machine takes one cluster at a time: each step leaves it as
//! the next one needs it.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use nodestats_testkit::jaeger::{Jaeger, Trace};
use nodestats_testkit::kubernetes::{FullCluster, Version};
use nodestats_testkit::{
    DatabaseServer, Frames, Program, eventually, eventually_within, sample_times,
};
use nodestats_wire::Timestamp;
use nodestats_wire::v1::Registration;
use serde_json::{Value, json};

const NODES: [&str; 3] = ["node-1", "node-2", "node-3"];
/// The chart with its default values, save what the test needs.
const VALUES: [&str; 3] = [
    "nodeDefaults={\"interval\": \"1s\"}",
    "api.persistence.size=\"1Gi\"",
    "api.portForward.processes=true",
];

/// What it is upgraded to.
const UPGRADED: [&str; 6] = [
    VALUES[0],
    VALUES[1],
    VALUES[2],
    "agent.processIo=true",
    // In the test's cluster each node has a folder of its own there.
    "agent.buffer.hostPath=\"/var/log/nodestats-agent\"",
    // The API's pod begins anew.
    "podAnnotations={\"upgraded\": \"yes\"}",
];

/// Between two samples of one node that misses none, in seconds. Keys are cut to the second.
const EVERY_SECOND: f64 = 2.5;

struct Scene {
    cluster: FullCluster,
}

impl Scene {
    fn kubectl(&self, arguments: &[&str]) -> String {
        self.cluster.kubectl(arguments).expect("kubectl")
    }

    /// What the plugin prints, with this kubeconfig and these words.
    fn ask(&self, words: &[&str]) -> Result<Value, String> {
        self.cluster.ask(words)
    }

    /// What the plugin finds on the way to the samples.
    fn doctor(&self) -> Result<String, String> {
        let kubeconfig = self.cluster.kubeconfig().display().to_string();
        let run = Program::run(
            "kubectl-nodestats",
            &["--kubeconfig", &kubeconfig, "doctor"],
        );
        if run.status.success() {
            Ok(run.stdout)
        } else {
            Err(run.stderr)
        }
    }

    /// A file of a node, read there.
    fn file(&self, node: &str, path: &str) -> String {
        let mut command = self.cluster.inside(node).expect("a node");
        let output = command.args(["cat", path]).output().expect("cat");
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    /// The rows of a pod's processes on a node.
    fn rows(&self, node: &str, pod_uid: &str) -> Option<Vec<Value>> {
        let table = self.ask(&[node, "--processes", "--sort", "cpu"]).ok()?;
        let rows = table["processes"].as_array()?.iter();
        let rows = rows.filter(|row| row["pod_uid"] == *pod_uid);
        Some(rows.cloned().collect())
    }

    /// Waits until what was upgraded runs, and what it took the place of has ended.
    async fn settled(&self) {
        for workload in [
            "statefulset/nodestats-api",
            "daemonset/nodestats-agent",
            "deployment/nodestats-controller",
        ] {
            let timeout = "--timeout=120s";
            self.kubectl(&["rollout", "status", "-n", "nodestats", workload, timeout]);
        }
        let ending = "jsonpath={.items[*].metadata.deletionTimestamp}";
        eventually("the old pods to end", async || {
            let ending = self.kubectl(&["get", "pods", "-n", "nodestats", "-o", ending]);
            ending.trim().is_empty().then_some(())
        })
        .await;
    }

    async fn until_answers(&self) {
        for node in NODES {
            let address = self.cluster.address(node).expect("a node");
            eventually(&format!("an answer for {address}"), async || {
                self.ask(&[address, "--cpu"]).ok()
            })
            .await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chart_is_installed_asked_upgraded_and_uninstalled() {
    for version in Version::ALL {
        println!("Kubernetes {}", version.as_str());
        on(version).await;
    }
}

async fn on(version: Version) {
    let scene = Scene {
        cluster: FullCluster::with_images(version, NODES.len()),
    };
    a_namespace_that_refuses_agents_is_mended_by_the_line_of_the_notes(&scene).await;
    uninstall_leaves_nothing(&scene).await;
    every_node_answers(&scene).await;
    helm_s_own_test_passes(&scene);
    a_pod_asks_by_rest(&scene).await;
    a_stolen_token_writes_one_node(&scene).await;
    the_plugin_says_what_proc_says(&scene);
    a_pod_s_work_is_seen_where_it_is(&scene).await;
    an_upgrade_keeps_history_and_opens_process_io(&scene).await;
    what_is_not_allowed_is_named(&scene);
    the_cluster_s_own_api_asks_rbac(&scene).await;
    one_trace_leads_through_the_cluster(&scene).await;
    certificates_are_made_anew_without_a_restart(&scene).await;
    if version == Version::ALL[0] {
        certificates_of_a_minute_and_another_authority_lose_nothing(&scene).await;
    }
    a_node_goes_and_another_one_comes(&scene).await;
    no_namespace_waits_for_an_api_that_is_away(&scene).await;
    uninstall_leaves_nothing(&scene).await;
    two_replicas_share_a_database_server(&scene).await;
    no_namespace_waits_when_ours_is_deleted(&scene).await;
}

async fn a_namespace_that_refuses_agents_is_mended_by_the_line_of_the_notes(scene: &Scene) {
    scene.kubectl(&["create", "namespace", "nodestats"]);
    let enforce = "pod-security.kubernetes.io/enforce";
    scene.kubectl(&["label", "ns", "nodestats", &format!("{enforce}=baseline")]);
    let said = scene.cluster.install_chart(&VALUES).expect("installed");
    let remedy = said
        .lines()
        .map(str::trim)
        .filter(|line| line.starts_with("kubectl label") || line.starts_with("kubectl rollout"));
    let remedy: Vec<Vec<String>> = remedy
        .map(|line| line.split_whitespace().skip(1).map(str::to_owned).collect())
        .collect();
    assert_eq!(remedy.len(), 2, "{said}");
    eventually("the refusal", async || {
        let events = scene.kubectl(&["get", "events", "-n", "nodestats", "-o", "json"]);
        let refused = events.contains("violates PodSecurity") && events.contains("nodestats-agent");
        refused.then_some(())
    })
    .await;
    assert!(scene.ask(&[NODES[0], "--cpu"]).is_err());
    // The doctor says the same line.
    let refused = scene.doctor().expect_err("no agent can run");
    assert!(
        refused.contains("hint: kubectl label namespace nodestats"),
        "{refused}"
    );
    for command in remedy {
        let words: Vec<&str> = command.iter().map(String::as_str).collect();
        scene.kubectl(&words);
    }
    scene.until_answers().await;
}

async fn every_node_answers(scene: &Scene) {
    let begin = Instant::now();
    scene.cluster.install_chart(&VALUES).expect("installed");
    scene.until_answers().await;
    println!(
        "install to first answer: {:.1} s",
        begin.elapsed().as_secs_f64()
    );
    let healthy = eventually("a good report", async || {
        let report = scene.doctor().ok()?;
        report
            .contains("v1alpha1.stats.nodestats.dev is available")
            .then_some(report)
    })
    .await;
    assert_eq!(healthy.lines().count(), 9, "{healthy}");
    assert!(
        healthy.contains("ok  agents        3 of 3 are ready"),
        "{healthy}"
    );
    let all = scene.ask(&[]).expect("all nodes");
    let names: Vec<&str> = all
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|node| node["hostname"].as_str())
        .collect();
    assert_eq!(names, NODES);
}

fn helm_s_own_test_passes(scene: &Scene) {
    let arguments = ["test", "nodestats", "-n", "nodestats"];
    let said = scene.cluster.helm(&arguments).expect("helm test");
    assert!(said.contains("Succeeded"), "{said}");
}

/// REST as any program in the cluster uses it.
async fn a_pod_asks_by_rest(scene: &Scene) {
    let authorities =
        scene.kubectl(&["get", "cm", "-n", "nodestats", "nodestats-ca", "-o", "json"]);
    let authorities: Value = serde_json::from_str(&authorities).expect("JSON");
    let map = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "nodestats-ca", "namespace": "default"}, "data": authorities["data"],
    });
    scene.cluster.apply(&map.to_string()).expect("a map");
    // An account that nobody gave any right, then one that may see everything but processes.
    scene.kubectl(&["create", "serviceaccount", "asks"]);
    let said = a_pod_says(scene, "/nodes/node-1/cpu").await;
    assert!(said.contains("allows get of nodes/cpu"), "{said}");
    assert_eq!(a_pod_says(scene, "/nodes").await.trim(), "[]");
    let bind = [
        "create",
        "clusterrolebinding",
        "asks",
        "--clusterrole=nodestats-viewer",
    ];
    scene.kubectl(&[&bind[..], &["--serviceaccount=default:asks"]].concat());
    eventually("the role to count", async || {
        let said = a_pod_says(scene, "/nodes/node-1/cpu").await;
        said.contains("usage_percent").then_some(())
    })
    .await;
    let said = a_pod_says(scene, "/nodes").await;
    let nodes: Vec<String> = serde_json::from_str(&said).expect("JSON");
    let address = |node| scene.cluster.address(node).expect("a node");
    assert_eq!(nodes, NODES.map(address));
    let said = a_pod_says(scene, "/nodes/node-1/proc").await;
    assert!(said.contains("allows get of nodes/proc"), "{said}");
    scene.kubectl(&[
        "delete",
        "cm/nodestats-ca",
        "sa/asks",
        "clusterrolebinding/asks",
    ]);
}

/// What a pod of the account `asks` prints when it asks for a path.
async fn a_pod_says(scene: &Scene, path: &str) -> String {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "asks", "namespace": "default"},
        "spec": {
            "restartPolicy": "Never", "serviceAccountName": "asks",
            "containers": [{
                "name": "asks", "image": "localhost/nodestats:latest", "imagePullPolicy": "Never",
                "args": ["ask", "--server=https://nodestats-api.nodestats.svc",
                         "--certificate-authority=/ca/ca.crt", "--token-file=/token/token", path],
                "volumeMounts": [
                    {"name": "ca", "mountPath": "/ca"}, {"name": "token", "mountPath": "/token"},
                ],
            }],
            "volumes": [
                {"name": "ca", "configMap": {"name": "nodestats-ca"}},
                {"name": "token", "projected": {"sources": [
                    {"serviceAccountToken": {"audience": "nodestats", "path": "token"}},
                ]}},
            ],
        },
    });
    scene.cluster.apply(&pod.to_string()).expect("a pod");
    let said = eventually("its answer", async || {
        let phase = ["get", "pod", "asks", "-o", "jsonpath={.status.phase}"];
        let ended = ["Succeeded", "Failed"].contains(&&*scene.kubectl(&phase));
        ended.then(|| scene.kubectl(&["logs", "asks"]))
    })
    .await;
    scene.kubectl(&["delete", "pod", "asks"]);
    said
}

/// The token of one node's agent, in the hands of somebody else.
async fn a_stolen_token_writes_one_node(scene: &Scene) {
    let path = "jsonpath={.items[*].metadata.name}";
    let on = "--field-selector=spec.nodeName=node-2";
    let label = "app.kubernetes.io/component=agent";
    let pod = scene.kubectl(&["get", "pod", "-n", "nodestats", "-l", label, on, "-o", path]);
    let thief = scene
        .cluster
        .api(&scene.cluster.token("nodestats-agent", Some(&pod)));
    let thief = thief.expect("a client");
    let begin = Timestamp::from_system(std::time::SystemTime::now());
    // Of an hour ago: nobody who asks about now sees them.
    let mut frames = Frames::new(begin.plus_micros(-3_600_000_000));
    for node in ["node-1", scene.cluster.address("node-1").expect("a node")] {
        let pushed = thief.push_frames(node, frames.next_frame()).await;
        assert_eq!(pushed.expect_err("forbidden").status(), Some(403), "{node}");
    }
    let taken = Registration::new(scene.cluster.address("node-1").expect("a node"), "node-2");
    let taken = thief.register(&taken).await;
    assert_eq!(taken.expect_err("forbidden").status(), Some(403));
    let read = thief.get("/nodes/node-2/proc", &[]).await;
    assert_eq!(read.expect_err("forbidden").status(), Some(403));
    thief
        .push_frames("node-2", frames.next_frame())
        .await
        .expect("its own");
    // By the custom resource it writes neither another node's object, nor another node's address.
    let thief = scene.cluster.credentials_of_pod("nodestats-agent", &pod);
    let thief = thief.to_str().expect("UTF-8");
    let address = scene.cluster.address("node-1").expect("a node");
    let claim = |node: &str| {
        let object = json!({
            "apiVersion": "nodestats.dev/v1alpha1", "kind": "MonitoredNode",
            "metadata": {"name": node}, "status": {"addresses": [address]},
        });
        let apply = [
            "apply",
            "--server-side",
            "--force-conflicts",
            "--subresource=status",
        ];
        let whose = [
            "--field-manager=thief",
            "--validate=false",
            "--kubeconfig",
            thief,
        ];
        let all = [&apply[..], &whose, &["-f", "-"]].concat();
        scene.cluster.kubectl_with(&all, &object.to_string())
    };
    let refused = claim("node-3").expect_err("another node's object");
    let refused = format!("{refused:#}");
    assert!(refused.contains("nodestats-own-node"), "{refused}");
    // It lies about itself, as it may until its agent says again what is so; that leads nobody to it.
    claim("node-2").expect("its own");
    let asked = scene.ask(&[address]).expect("an answer");
    assert_eq!(asked["hostname"], "node-1");
}

fn the_plugin_says_what_proc_says(scene: &Scene) {
    for node in NODES {
        let address = scene.cluster.address(node).expect("a node");
        let file = |path: &str| scene.file(node, path);
        // By address and by name it is the same.
        let cpu = scene.ask(&[address, "--cpu"]).expect("CPU");
        let by_name = scene.ask(&[node, "--cpu"]).expect("CPU");
        let stat = file("/proc/stat");
        let is_cpu = |line: &&str| {
            line.strip_prefix("cpu")
                .is_some_and(|rest| rest.starts_with(|first: char| first.is_ascii_digit()))
        };
        let count = stat.lines().filter(is_cpu).count();
        for answer in [&cpu, &by_name] {
            assert_eq!(
                answer["cpus"].as_array().map(Vec::len),
                Some(count),
                "{answer}"
            );
        }
        let memory = scene.ask(&[address, "--memory"]).expect("memory");
        let meminfo = file("/proc/meminfo");
        let kib = |field: &str| -> f64 {
            let line = meminfo.lines().find_map(|line| line.strip_prefix(field));
            let number = line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
            number.expect(field)
        };
        let total = kib("MemTotal") * 1024.0;
        assert_eq!(memory["total_bytes"].as_f64(), Some(total));
        let used = total - kib("MemAvailable") * 1024.0;
        let said = memory["used_bytes"].as_f64().expect("used");
        // Other work goes on in the second between the two looks.
        assert!((said - used).abs() < 0.05 * total, "{said} {used}");
        // Each node has processes of its own, and exactly these.
        let pids = scene.ask(&[address, "--processes"]).expect("processes");
        let pids: Vec<u64> = pids["processes"]
            .as_array()
            .expect("rows")
            .iter()
            .filter_map(|row| row["pid"].as_u64())
            .collect();
        let kubelet = |pid: &u64| file(&format!("/proc/{pid}/comm")).trim() == "kubelet";
        assert_eq!(
            pids.iter().filter(|pid| kubelet(pid)).count(),
            1,
            "{pids:?}"
        );
    }
}

/// An image with one static program made of `load.c`, in every node.
fn load_image(scene: &Scene) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/helm/load.c");
    scene.cluster.load_source(&source, "localhost/load:1");
}

fn load_pod() -> String {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "load", "namespace": "default"},
        "spec": {
            "nodeName": "node-2", "terminationGracePeriodSeconds": 0,
            "securityContext": {"runAsUser": 4242, "fsGroup": 4242},
            "containers": [{
                "name": "load", "image": "localhost/load:1", "imagePullPolicy": "Never",
                "volumeMounts": [{"name": "data", "mountPath": "/data"}],
            }],
            "volumes": [{"name": "data", "emptyDir": {}}],
        },
    })
    .to_string()
}

async fn a_pod_s_work_is_seen_where_it_is(scene: &Scene) {
    load_image(scene);
    scene.cluster.apply(&load_pod()).expect("a pod");
    let uid = pod_uid(scene);
    let row = eventually("its process", async || {
        let rows = scene.rows("node-2", &uid)?;
        let row = rows.into_iter().find(|row| row["name"] == "load")?;
        let (cpu, memory) = (row["cpu_percent"].as_f64()?, row["rss_bytes"].as_f64()?);
        // Two CPUs are shared by a whole cluster.
        (cpu > 20.0 && memory > f64::from(100 << 20)).then_some(row)
    })
    .await;
    assert!(
        row["rss_bytes"].as_f64() < Some(f64::from(120 << 20)),
        "{row}"
    );
    assert_eq!(row["user"], "4242", "{row}");
    // The agent is an ordinary user: what others read and write is not its to see.
    assert!(row.get("write_bytes_total").is_none(), "{row}");
    for other in ["node-1", "node-3"] {
        assert_eq!(scene.rows(other, &uid), Some(Vec::new()), "{other}");
    }
}

fn pod_uid(scene: &Scene) -> String {
    scene.kubectl(&["get", "pod", "load", "-o", "jsonpath={.metadata.uid}"])
}

/// Seconds since 1970 of the oldest sample that is kept of a node.
fn oldest(scene: &Scene, node: &str) -> Option<String> {
    let history = scene
        .ask(&[node, "--memory", "--from", "2020-01-01 00:00Z"])
        .ok()?;
    history.as_object()?.keys().next().cloned()
}

async fn an_upgrade_keeps_history_and_opens_process_io(scene: &Scene) {
    let before = oldest(scene, "node-2").expect("a history");
    let uid = pod_uid(scene);
    scene.cluster.install_chart(&UPGRADED).expect("upgraded");
    scene.settled().await;
    eventually("disk I/O of another user's process", async || {
        let rows = scene.rows("node-2", &uid)?;
        let row = rows.into_iter().find(|row| row["name"] == "load")?;
        (row["write_bytes_total"].as_f64()? > 0.0).then_some(())
    })
    .await;
    assert_eq!(oldest(scene, "node-2"), Some(before));
    scene.until_answers().await;
}

/// Jaeger is beside the cluster; who asks is nobody special, whose `traceparent` the API server
/// replaces by its own.
async fn one_trace_leads_through_the_cluster(scene: &Scene) {
    let jaeger = Jaeger::start_at(scene.cluster.gateway());
    let endpoint = format!("telemetry.otlp.endpoint=\"{}\"", jaeger.http());
    let values = [&UPGRADED[..], &[&endpoint]].concat();
    scene.cluster.install_chart(&values).expect("upgraded");
    scene.settled().await;
    scene.until_answers().await;
    // An agent's tick, to the disk.
    let store = "nodestats-agent: tick > push > PUT /nodes/{node} > nodestats-api: PUT /nodes/{node} \
                 > store > transaction > INSERT sample";
    let tick = eventually("a whole tick", async || {
        let traces = jaeger.traces("nodestats-agent").await;
        let whole = |trace: &Trace| trace.paths().contains(store) && trace.orphans().is_empty();
        traces.into_iter().find(whole)
    })
    .await;
    let request = tick
        .spans
        .iter()
        .find(|span| span.service == "nodestats-api" && span.name == "PUT /nodes/{node}");
    let node = &request.expect("the request").attributes["k8s.node.name"];
    assert!(NODES.iter().any(|name| node == name), "{node}");
    // A question of somebody who may read, by the cluster's own API.
    scene.cluster.let_read("traced", &["nodestats-viewer"]);
    let kubeconfig = scene.cluster.credentials("traced").display().to_string();
    let ask = || {
        let arguments = [
            "--kubeconfig",
            &kubeconfig,
            "--via",
            "aggregation",
            "--trace",
        ];
        let question = ["get", "node-1", "--cpu", "-o", "json"];
        let arguments = [&arguments[..], &question].concat();
        let run = Program::run_with("kubectl-nodestats", &arguments, &jaeger.variables(true));
        let id = run
            .stderr
            .lines()
            .find_map(|line| line.strip_prefix("trace "));
        let id = id.map(str::to_owned);
        run.status.success().then_some(id)?
    };
    let id = eventually("the role to count", async || ask()).await;
    let asked = "kubectl-nodestats: kubectl nodestats > \
                 GET /apis/stats.nodestats.dev/v1alpha1/nodes/{node}/cpu > \
                 nodestats-api: GET /nodes/{node}/cpu";
    let trace = eventually("the whole question", async || {
        let trace = jaeger.trace(&id).await?;
        let wanted = [
            format!("{asked} > SELECT sample"),
            format!("{asked} > decode"),
        ];
        let paths = trace.paths();
        wanted
            .iter()
            .all(|path| paths.contains(path))
            .then_some(trace)
    })
    .await;
    assert!(trace.orphans().is_empty(), "{:#?}", trace.orphans());
    // The API server's own trace, which took the place of ours on the way, is linked to.
    let request = trace
        .spans
        .iter()
        .find(|span| span.service == "nodestats-api" && span.name == "GET /nodes/{node}/cpu");
    let request = request.expect("the request");
    let parent = request.parent.as_ref().expect("a parent");
    let others = request.links.iter().filter(|link| *link != parent);
    assert!(others.count() > 0, "{request:?}");
    // The controller's part: what it looks at, and what it asks for.
    let interval = |value: &str| {
        let patch = format!("{{\"spec\":{{\"interval\":{value}}}}}");
        scene.kubectl(&["patch", "mn", "node-1", "--type=merge", "-p", &patch]);
    };
    interval("\"2s\"");
    let write = "nodestats-controller: reconcile > \
                 PATCH /apis/nodestats.dev/v1alpha1/monitorednodes/{name}/status";
    eventually("a reconcile", async || {
        let traces = jaeger.traces("nodestats-controller").await;
        let reconcile = |trace: &Trace| trace.paths().contains(write) && trace.orphans().is_empty();
        traces.into_iter().find(reconcile).map(drop)
    })
    .await;
    interval("\"1s\"");
    scene.kubectl(&["delete", "clusterrolebinding", "traced-nodestats-viewer"]);
    scene.kubectl(&["delete", "serviceaccount", "traced", "-n", "nodestats"]);
    scene.cluster.install_chart(&UPGRADED).expect("upgraded");
    scene.settled().await;
    scene.until_answers().await;
}

async fn a_node_goes_and_another_one_comes(scene: &Scene) {
    // Neither the API, whose volume is on its node, nor the pod that works.
    let place = "jsonpath={.spec.nodeName}";
    let busy = [["nodestats", "nodestats-api-0"], ["default", "load"]]
        .map(|[namespace, pod]| scene.kubectl(&["get", "pod", "-n", namespace, pod, "-o", place]));
    let node = NODES
        .iter()
        .find(|node| !busy.iter().any(|busy| busy == **node));
    let node = *node.expect("one of three");
    let address = scene.cluster.address(node).expect("a node");
    let uid = || scene.kubectl(&["get", "mn", node, "-o", "jsonpath={.status.nodeUID}"]);
    let before = uid();
    scene.cluster.remove_node(node).expect("removed");
    scene.kubectl(&["delete", "node", node]);
    eventually("the node to be gone", async || {
        scene.ask(&[node, "--cpu"]).err()
    })
    .await;
    let all = scene.ask(&[]).expect("the others");
    assert_eq!(all.as_array().map(Vec::len), Some(NODES.len() - 1));
    scene.cluster.add_node(node).expect("added");
    eventually("an answer for the new node", async || {
        scene.ask(&[address, "--cpu"]).ok()
    })
    .await;
    assert_ne!(uid(), before);
}

fn what_is_not_allowed_is_named(scene: &Scene) {
    let error = scene
        .ask(&["--via", "port-forward", "--as", "nobody", "node-1", "--cpu"])
        .expect_err("forbidden");
    assert!(
        error.contains("User \"nobody\" cannot list resource \"pods\""),
        "{error}"
    );
    assert!(error.contains("hint:"), "{error}");
    let error = scene.ask(&["node-11", "--cpu"]).expect_err("unknown");
    assert!(error.contains("hint: known names"), "{error}");
    let error = scene
        .ask(&[
            "--via",
            "port-forward",
            "--nodestats-namespace",
            "elsewhere",
            "node-1",
            "--cpu",
        ])
        .expect_err("not there");
    assert!(
        error.contains("no nodestats in the namespace elsewhere"),
        "{error}"
    );
}

/// Nothing is stuck, and nothing is left but the claim, as the values say.
async fn uninstall_leaves_nothing(scene: &Scene) {
    let arguments = ["uninstall", "nodestats", "-n", "nodestats", "--wait"];
    scene.cluster.helm(&arguments).expect("uninstalled");
    let nothing = async || {
        let kinds = "all,sa,cm,secret,pdb,netpol,role,rolebinding,pvc";
        let left = scene.kubectl(&["get", kinds, "-n", "nodestats", "-o", "name"]);
        let left: Vec<&str> = left
            .lines()
            .filter(|name| !["serviceaccount/default", "configmap/kube-root-ca.crt"].contains(name))
            .collect();
        (left == ["persistentvolumeclaim/data-nodestats-api-0"]).then_some(())
    };
    eventually("nothing to be left", nothing).await;
    let kinds = "crd,clusterrole,clusterrolebinding,apiservice,\
                 validatingadmissionpolicy,validatingadmissionpolicybinding";
    eventually("nothing to be left in the cluster", async || {
        let cluster_wide = scene.kubectl(&["get", kinds, "-o", "name"]);
        (!cluster_wide.contains("nodestats")).then_some(())
    })
    .await;
    for namespace in ["kube-system", "default"] {
        let left = scene.kubectl(&["get", "role,rolebinding", "-n", namespace, "-o", "name"]);
        assert!(!left.contains("nodestats"), "{left}");
    }
    // The next installation begins with a history of its own.
    scene.kubectl(&["delete", "pod", "load", "--ignore-not-found"]);
    scene.kubectl(&["delete", "namespace", "nodestats", "--timeout=60s"]);
}

async fn two_replicas_share_a_database_server(scene: &Scene) {
    let folder = tempfile::tempdir().expect("temporary folder");
    let database = DatabaseServer::start_with_tls(scene.cluster.gateway(), folder.path());
    let authority = std::fs::read_to_string(database.authority()).expect("a file");
    scene.kubectl(&["create", "namespace", "nodestats"]);
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret",
        "metadata": {"name": "database", "namespace": "nodestats"},
        "stringData": {
            "user": DatabaseServer::USER, "password": DatabaseServer::PASSWORD, "ca": authority,
        },
    });
    scene.cluster.apply(&secret.to_string()).expect("a secret");
    let url = format!("database.url={}", json!(database.url()));
    let mut values = VALUES.to_vec();
    values.extend([
        &*url,
        "database.existingSecret=\"database\"",
        "database.caKey=\"ca\"",
        "api.replicas=2",
    ]);
    scene.cluster.install_chart(&values).expect("installed");
    let deployment = [
        "rollout",
        "status",
        "-n",
        "nodestats",
        "deploy/nodestats-api",
    ];
    let wait = [&deployment[..], &["--timeout=60s"]].concat();
    scene.kubectl(&wait);
    scene.until_answers().await;
    let begin = Timestamp::from_system(std::time::SystemTime::now());
    let label = "app.kubernetes.io/component=api";
    let pods = scene.kubectl(&["get", "pods", "-n", "nodestats", "-l", label, "-o", "name"]);
    let pods: Vec<&str> = pods.lines().collect();
    assert_eq!(pods.len(), 2, "{pods:?}");
    for pod in pods {
        // Without any time to finish.
        scene.kubectl(&[
            "delete",
            "-n",
            "nodestats",
            pod,
            "--grace-period=0",
            "--force",
        ]);
        // The other one answers.
        scene.until_answers().await;
        scene.kubectl(&wait);
    }
    nothing_is_lost_since(scene, begin, EVERY_SECOND).await;
}

/// Each node has samples since `begin`, with no more than `gap` seconds between two of them.
async fn nothing_is_lost_since(scene: &Scene, begin: Timestamp, gap: f64) {
    for node in NODES {
        eventually(&format!("the whole history of {node}"), async || {
            let history = scene
                .ask(&[node, "--memory", "--from", &begin.to_string()])
                .ok()?;
            let times = sample_times(&history)?;
            let (first, last) = (*times.first()?, *times.last()?);
            let now = Timestamp::from_system(std::time::SystemTime::now()).seconds();
            let complete = times.windows(2).all(|pair| pair[1] - pair[0] < gap);
            (complete && first - begin.seconds() < 3.0 && now - last < 5.0).then_some(())
        })
        .await;
    }
}

/// Somebody empties the Secret: an authority that nobody has heard of signs from one moment to the
/// next, and all find to each other again.
async fn certificates_are_made_anew_without_a_restart(scene: &Scene) {
    let begin = Timestamp::from_system(std::time::SystemTime::now());
    let pods = || {
        let columns = "custom-columns=:metadata.uid,:status.containerStatuses[*].restartCount";
        scene.kubectl(&["get", "pods", "-n", "nodestats", "-o", columns])
    };
    let authorities = || {
        let path = "jsonpath={.data.ca\\.crt}";
        scene.kubectl(&["get", "cm", "-n", "nodestats", "nodestats-ca", "-o", path])
    };
    let (pods_before, before) = (pods(), authorities());
    assert!(
        before.starts_with("-----BEGIN CERTIFICATE-----"),
        "{before}"
    );
    let empty = r#"[{"op": "remove", "path": "/data"}]"#;
    let secret = ["patch", "secret", "-n", "nodestats", "nodestats-tls"];
    scene.kubectl(&[&secret[..], &["--type=json", "-p", empty]].concat());
    eventually("another authority", async || {
        let now = authorities();
        (now != before && now.starts_with("-----BEGIN")).then_some(())
    })
    .await;
    eventually("the cluster's API to know it", async || {
        scene.ask(&["node-1", "--cpu", "--via", "aggregation"]).ok()
    })
    .await;
    nothing_is_lost_since(scene, begin, EVERY_SECOND).await;
    assert_eq!(pods(), pods_before);
}

/// Certificates that are renewed every forty seconds, and an authority that another one replaces in
/// good order: published beside the old one first.
async fn certificates_of_a_minute_and_another_authority_lose_nothing(scene: &Scene) {
    let read = |kind: &str, name: &str, key: &str| {
        let path = format!("jsonpath={{.data.{}}}", key.replace('.', "\\."));
        scene.kubectl(&["get", kind, "-n", "nodestats", name, "-o", &path])
    };
    let authorities = || read("cm", "nodestats-ca", "ca.crt");
    let served = || read("secret", "nodestats-tls", "tls.crt");
    let begin = Timestamp::from_system(std::time::SystemTime::now());
    let old = authorities();
    let lifetimes = [
        ("CERTIFICATE_LIFETIME", "1m"),
        // Of the present one less than a tenth of this is left.
        ("AUTHORITY_LIFETIME", "40000d"),
        ("AUTHORITY_PUBLISHED", "15s"),
    ];
    let lifetimes = lifetimes.map(
        |(name, value)| serde_json::json!({"name": format!("NODESTATS_{name}"), "value": value}),
    );
    let lifetimes = format!("controller.extraEnv={}", Value::from(lifetimes.to_vec()));
    let values = [UPGRADED.as_slice(), &[&lifetimes]].concat();
    scene.cluster.install_chart(&values).expect("upgraded");
    eventually("both authorities", async || {
        let both = authorities();
        (both != old && both.ends_with(&old)).then_some(())
    })
    .await;
    let seen = std::cell::RefCell::new(BTreeSet::from([served()]));
    let three_more = eventually_within(
        Duration::from_mins(4),
        "three certificates more",
        async || {
            let mut seen = seen.borrow_mut();
            seen.insert(served());
            (seen.len() > 3).then_some(())
        },
    );
    three_more.await;
    nothing_is_lost_since(scene, begin, EVERY_SECOND).await;
    scene
        .ask(&["node-1", "--cpu", "--via", "aggregation"])
        .expect("the cluster's own API");
}

async fn the_cluster_s_own_api_asks_rbac(scene: &Scene) {
    let raw = "/apis/stats.nodestats.dev/v1alpha1/nodes";
    let nodes = eventually("the API's part of the cluster's API", async || {
        scene.cluster.kubectl(&["get", "--raw", raw]).ok()
    })
    .await;
    let address = |node| scene.cluster.address(node).expect("a node");
    let nodes: Vec<String> = serde_json::from_str(&nodes).expect("JSON");
    assert_eq!(nodes, NODES.map(address));
    let resources = [
        "api-resources",
        "--api-group=stats.nodestats.dev",
        "-o",
        "name",
    ];
    let listed = scene.kubectl(&resources);
    let listed: Vec<&str> = listed.lines().collect();
    assert_eq!(
        listed,
        [
            "events.stats.nodestats.dev",
            "nodes.stats.nodestats.dev",
            "pods.stats.nodestats.dev",
            "top.stats.nodestats.dev"
        ]
    );
    // Another group's events have not taken the name of Kubernetes' own.
    let own = scene.kubectl(&["get", "events", "-A", "-o", "json"]);
    assert!(own.contains("\"apiVersion\": \"v1\""), "{own}");
    let events = scene.cluster.events(&["--via", "aggregation"]);
    let events = events.expect("what happened on all nodes");
    let kinds: BTreeSet<&str> = events
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|event| event["kind"].as_str())
        .collect();
    for kind in [
        "agent_started",
        "container_started",
        "node_phase",
        "node_registered",
    ] {
        assert!(kinds.contains(kind), "{kinds:?}");
    }
    let of_node = scene.cluster.events(&[address(NODES[0]), "--kind", "boot"]);
    let of_node = of_node.expect("what happened on a node");
    assert!(of_node.as_array().is_some(), "{of_node}");
    for node in NODES {
        scene
            .ask(&[address(node), "--cpu", "--via", "aggregation"])
            .expect("an answer");
    }
    // Somebody who may see one node, and none of its processes.
    let role = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
        "metadata": {"name": "one-node"},
        "rules": [
            {"apiGroups": ["stats.nodestats.dev"], "resources": ["nodes", "nodes/cpu"],
             "resourceNames": ["node-1"], "verbs": ["get"]},
        ],
    });
    scene.cluster.apply(&role.to_string()).expect("a role");
    scene.kubectl(&[
        "create",
        "clusterrolebinding",
        "one-node",
        "--clusterrole=one-node",
        "--user=jane",
    ]);
    let jane = |words: &[&str]| {
        let as_jane = ["--as", "jane", "--via", "aggregation"];
        scene.ask(&[&as_jane[..], words].concat())
    };
    let by_name = async || jane(&["node-1", "--cpu"]).ok();
    eventually("the role to count", by_name).await;
    // RBAC sees the name: who may not look it up asks by it.
    let by_address = || jane(&[address("node-1"), "--cpu"]);
    let error = by_address().expect_err("forbidden");
    assert!(error.contains("hint: ask by the node's name"), "{error}");
    // Two lists say it, and either is enough.
    for resource in ["monitorednodes.nodestats.dev", "nodes.stats.nodestats.dev"] {
        let resource = format!("--resource={resource}");
        scene.kubectl(&["create", "clusterrole", "look-up", "--verb=list", &resource]);
        let bind = ["--clusterrole=look-up", "--user=jane"];
        scene.kubectl(&[&["create", "clusterrolebinding", "look-up"][..], &bind].concat());
        eventually("the list to count", async || by_address().ok()).await;
        scene.kubectl(&["delete", "clusterrolebinding,clusterrole", "look-up"]);
        eventually("the list to count no more", async || by_address().err()).await;
    }
    for (words, resource) in [
        (["node-1", "--processes"], "nodes/proc"),
        (["node-1", "--memory"], "nodes/memory"),
        (["node-2", "--cpu"], "nodes/cpu"),
    ] {
        let error = jane(&words).expect_err("forbidden");
        assert!(error.contains("\"jane\" cannot get resource"), "{error}");
        assert!(
            error.contains(&format!("allows get of {resource}")),
            "{error}"
        );
    }
    scene.kubectl(&["delete", "clusterrolebinding,clusterrole", "one-node"]);
    // Who may view the whole cluster sees everything but processes.
    let bind = ["create", "clusterrolebinding", "view-all"];
    scene.kubectl(&[&bind[..], &["--clusterrole=view", "--user=jane"]].concat());
    eventually("view to count", async || jane(&["node-2", "--memory"]).ok()).await;
    let error = jane(&["node-2", "--processes"]).expect_err("forbidden");
    assert!(error.contains("allows get of nodes/proc"), "{error}");
    scene.kubectl(&["delete", "clusterrolebinding", "view-all"]);
}

/// While an `APIService` is not available no namespace can be deleted: ours is taken away in time.
/// Agents that are replaced meanwhile lose nothing of what waits.
async fn no_namespace_waits_for_an_api_that_is_away(scene: &Scene) {
    let begin = Timestamp::from_system(std::time::SystemTime::now());
    let scale = |replicas: &str| {
        scene.kubectl(&["scale", "-n", "nodestats", "sts/nodestats-api", replicas]);
    };
    scene.kubectl(&["create", "namespace", "unrelated"]);
    scale("--replicas=0");
    scene.kubectl(&["delete", "namespace", "unrelated", "--timeout=90s"]);
    let agents = ["-n", "nodestats", "daemonset/nodestats-agent"];
    scene.kubectl(&[&["rollout", "restart"][..], &agents].concat());
    scene.kubectl(&[&["rollout", "status", "--timeout=120s"][..], &agents].concat());
    scale("--replicas=1");
    eventually("the API to be part of the cluster's again", async || {
        let raw = ["get", "--raw", "/apis/stats.nodestats.dev/v1alpha1/nodes"];
        scene.cluster.kubectl(&raw).ok()
    })
    .await;
    // While a pod is replaced nobody samples.
    nothing_is_lost_since(scene, begin, 15.0).await;
}

async fn no_namespace_waits_when_ours_is_deleted(scene: &Scene) {
    let get = ["get", "apiservice", "v1alpha1.stats.nodestats.dev"];
    eventually("the APIService", async || scene.cluster.kubectl(&get).ok()).await;
    scene.kubectl(&["create", "namespace", "unrelated"]);
    scene.kubectl(&[
        "delete",
        "namespace",
        "nodestats",
        "unrelated",
        "--timeout=90s",
    ]);
    assert!(scene.cluster.kubectl(&get).is_err());
    // What is left is the cluster's: helm knows nothing of it any more.
    let kinds = "clusterrole,clusterrolebinding,crd,\
                 validatingadmissionpolicy,validatingadmissionpolicybinding";
    let label = "app.kubernetes.io/part-of=nodestats";
    scene.kubectl(&["delete", kinds, "-l", label]);
}
