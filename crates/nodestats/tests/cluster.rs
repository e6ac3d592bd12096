//! The images of `cargo xtask image` on a real cluster of three nodes: a node's whole life.
//!
//! One test, since the cluster is one: each step leaves it as the next one needs it.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nodestats_testkit::kubernetes::{FullCluster, Version, sweep};
use nodestats_testkit::{eventually, get, sample_times};
use nodestats_wire::client::Client;
use serde_json::{Value, json};

/// Faster than an installation is, so that the test is.
const VALUES: [&str; 4] = [
    "nodeDefaults={\"interval\": \"1s\"}",
    "controller.poll=\"1s\"",
    // Longer than an agent waits before it asks an API again that was away (30 s).
    "controller.lostAfter=\"45s\"",
    "api.persistence.size=\"1Gi\"",
];
const NODES: [&str; 3] = ["node-1", "node-2", "node-3"];

struct Scene {
    cluster: FullCluster,
}

impl Scene {
    /// The nodes' addresses, as `GET /nodes` lists them.
    fn addresses(&self) -> Vec<&str> {
        let address = |node| self.cluster.address(node).expect("a node");
        NODES.map(address).to_vec()
    }

    fn field(&self, node: &str, path: &str) -> String {
        let path = format!("jsonpath={{.{path}}}");
        self.cluster
            .kubectl(&["get", "mn", node, "-o", &path])
            .unwrap_or_default()
    }

    fn phase(&self, node: &str) -> String {
        self.field(node, "status.phase")
    }

    async fn until(&self, node: &str, phase: &str) {
        let what = format!("{node} to be {phase}");
        eventually(&what, async || (self.phase(node) == phase).then_some(())).await;
    }

    async fn until_all(&self, phase: &str) {
        for node in NODES {
            self.until(node, phase).await;
        }
    }

    /// A client for the API, as somebody who may read everything.
    async fn api(&self) -> Client {
        self.cluster
            .let_read("reader", &["nodestats-viewer", "nodestats-process-viewer"]);
        let token = self.cluster.token("reader", None);
        eventually("the API", async || {
            let client = self.cluster.api(&token).ok()?;
            get(&client, "/nodes").await.map(|_| client)
        })
        .await
    }

    /// A node that neither the API, which cannot move, nor the cluster's DNS is on.
    fn quiet_node(&self) -> usize {
        let arguments = [
            "get",
            "pods",
            "-A",
            "-l",
            "app.kubernetes.io/component=api",
            "-o",
            "jsonpath={.items[*].spec.nodeName}",
        ];
        let api = self.cluster.kubectl(&arguments).expect("placed");
        let arguments = [
            "get",
            "pods",
            "-A",
            "-l",
            "k8s-app=kube-dns",
            "-o",
            "jsonpath={.items[*].spec.nodeName}",
        ];
        let dns = self.cluster.kubectl(&arguments).expect("placed");
        let quiet = |node: &str| !api.contains(node) && !dns.contains(node);
        NODES
            .iter()
            .position(|node| quiet(node))
            .expect("three nodes")
    }

    /// Times of the samples of a node since `from`, in seconds.
    async fn times(&self, node: &str, from: f64) -> Vec<f64> {
        let client = self.api().await;
        let history = get(&client, &format!("/{node}?from={from}"))
            .await
            .unwrap_or_default();
        sample_times(&history).unwrap_or_default()
    }

    /// Every sample that the node's agent has taken since it started is stored, once.
    async fn every_sample_is_stored(&self, node: &str) {
        let selector = format!("--field-selector=spec.nodeName={node}");
        let arguments = [
            "get",
            "pods",
            "-n",
            "nodestats",
            "-l",
            "app.kubernetes.io/component=agent",
            &selector,
            "-o",
            "jsonpath={.items[0].status.podIP} {.items[0].status.containerStatuses[0].state.running.startedAt}",
        ];
        let said = self.cluster.kubectl(&arguments).expect("the agent's pod");
        let (ip, started) = said.split_once(' ').expect("an address and a time");
        let admin =
            Client::new(&format!("http://{ip}:9090"), Duration::from_secs(5)).expect("a URL");
        let metric = async |name: &str| {
            let text = admin.get("/metrics", &[]).await.expect("metrics");
            let text = String::from_utf8(text).expect("UTF-8");
            let name = format!("nodestats_agent_{name} ");
            let value = text
                .lines()
                .find_map(|line| line.strip_prefix(&*name)?.parse::<usize>().ok());
            value.unwrap_or_else(|| panic!("{name} is not in {text}"))
        };
        let started: nodestats_wire::Timestamp = started.parse().expect("a time");
        let before = metric("samples_pushed_total").await;
        let stored = self.times(node, started.seconds()).await.len();
        let after = metric("samples_pushed_total").await;
        // One may be stored whose acknowledgement is on its way.
        assert!(
            (before..=after + 1).contains(&stored),
            "{node}: {before} {stored} {after}"
        );
        assert_eq!(metric("samples_dropped_total").await, 0, "{node}");
    }

    /// Waits until the history of a node from `from` to now has no hole.
    async fn until_complete(&self, node: &str, from: f64) {
        eventually(&format!("the whole history of {node}"), async || {
            let times = self.times(node, from).await;
            let until = *times.last()?;
            // A sample each second; keys are cut to it.
            let complete = times.windows(2).all(|pair| pair[1] - pair[0] < 2.5);
            let spans = times.first().is_some_and(|first| first - from < 3.0);
            (complete && spans && seconds() - until < 5.0).then_some(())
        })
        .await;
    }
}

fn seconds() -> f64 {
    nodestats_wire::Timestamp::from_system(std::time::SystemTime::now()).seconds()
}

fn step(name: &str) {
    eprintln!("== {name}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_of_three_nodes_through_its_life() {
    step("start");
    // What a test that was killed has left would go in the middle of this one.
    sweep().expect("swept");
    let before = machine();
    let scene = Scene {
        cluster: FullCluster::with_images(Version::V1_37, NODES.len()),
    };
    assert_eq!(scene.cluster.nodes(), NODES);
    install(&scene).await;
    each_node_sees_its_own_processes(&scene).await;
    a_killed_agent_makes_its_node_stale_then_lost(&scene).await;
    a_stopped_kubelet_makes_no_node_lost(&scene).await;
    nothing_is_lost_while_the_api_is_away(&scene).await;
    a_node_that_was_cut_off_sends_what_it_sampled(&scene).await;
    a_rolling_update_hides_nobody(&scene).await;
    a_reboot_is_the_same_node(&scene).await;
    a_node_made_anew_is_another_node(&scene).await;
    step("down");
    drop(scene);
    assert_eq!(machine(), before, "something is left");
}

/// What a cluster changes of the machine: namespaces, interfaces, routes, cgroups, settings.
fn machine() -> Vec<String> {
    let mut found = Vec::new();
    let below = |folder: &Path| {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect::<Vec<_>>()
    };
    let mut folders = vec![PathBuf::from("/run/netns"), PathBuf::from("/sys/class/net")];
    folders.extend(below(Path::new("/sys/fs/cgroup")));
    for folder in &folders {
        let is_folder = |path: &PathBuf| path.is_dir() || folder.ends_with("netns");
        let paths = below(folder).into_iter().filter(is_folder);
        found.extend(paths.map(|path| path.display().to_string()));
    }
    for setting in [
        "vm/overcommit_memory",
        "kernel/panic",
        "net/ipv4/ip_forward",
    ] {
        let value = std::fs::read_to_string(format!("/proc/sys/{setting}")).unwrap_or_default();
        found.push(format!("{setting} {}", value.trim()));
    }
    let routes = std::process::Command::new("ip")
        .arg("route")
        .output()
        .expect("iproute2");
    let routes = String::from_utf8_lossy(&routes.stdout).into_owned();
    found.extend(routes.lines().map(str::to_owned));
    found.sort();
    found
}

async fn install(scene: &Scene) {
    let begin = Instant::now();
    scene.cluster.install_chart(&VALUES).expect("installed");
    scene.until_all("Ready").await;
    println!("install to Ready: {:.1} s", begin.elapsed().as_secs_f64());
    let api = scene.api().await;
    assert_eq!(get(&api, "/nodes").await, Some(json!(scene.addresses())));
    for (node, address) in NODES.iter().zip(scene.addresses()) {
        assert_eq!(scene.field(node, "status.addresses[0]"), address);
        assert_eq!(scene.field(node, "status.agent.state"), "Running");
        assert!(!scene.field(node, "status.machineID").is_empty());
        assert_eq!(scene.field(node, "spec.interval"), "1s");
    }
    let boots: std::collections::BTreeSet<String> = NODES
        .iter()
        .map(|node| scene.field(node, "status.bootID"))
        .collect();
    assert_eq!(boots.len(), 3, "each node has a boot of its own: {boots:?}");
}

async fn each_node_sees_its_own_processes(scene: &Scene) {
    step("processes");
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "placed"},
        "spec": {
            "nodeName": "node-2", "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "placed", "image": "localhost/pause:1", "imagePullPolicy": "Never"}],
        },
    });
    scene.cluster.apply(&pod.to_string()).expect("a pod");
    let uid = scene
        .cluster
        .kubectl(&["get", "pod", "placed", "-o", "jsonpath={.metadata.uid}"]);
    let uid = uid.expect("a UID");
    let api = scene.api().await;
    let has = async |node: &str| {
        let table = get(&api, &format!("/nodes/{node}/proc?view=full")).await?;
        let rows = table["processes"].as_array()?.clone();
        Some(rows.iter().any(|row| row["pod_uid"] == json!(uid)))
    };
    eventually("the pod's processes", async || {
        has("node-2").await.filter(|has| *has)
    })
    .await;
    for other in ["node-1", "node-3"] {
        assert_eq!(has(other).await, Some(false), "{other}");
    }
    scene
        .cluster
        .kubectl(&["delete", "pod", "placed"])
        .expect("deleted");
}

async fn a_killed_agent_makes_its_node_stale_then_lost(scene: &Scene) {
    step("a killed agent");
    let killed = NODES[scene.quiet_node()];
    // Without its kubelet nobody starts it again.
    scene.cluster.stop_kubelet(killed).expect("stopped");
    scene
        .cluster
        .kill_inside(killed, "nodestats-agent")
        .expect("killed");
    scene.until(killed, "Stale").await;
    scene.until(killed, "Lost").await;
    let condition = |type_: &str| {
        scene.field(
            killed,
            &format!("status.conditions[?(@.type==\"{type_}\")].status"),
        )
    };
    assert_eq!(
        (condition("Reporting"), condition("CPUPressure")),
        ("False".into(), "Unknown".into())
    );
    scene.cluster.start_kubelet(killed).expect("started");
    scene.until(killed, "Ready").await;
    eventually("its pressure", async || {
        (condition("CPUPressure") != "Unknown").then_some(())
    })
    .await;
    for other in NODES.iter().filter(|node| **node != killed) {
        assert_eq!(scene.phase(other), "Ready", "{other}");
    }
}

async fn a_stopped_kubelet_makes_no_node_lost(scene: &Scene) {
    step("a stopped kubelet");
    let node = NODES[scene.quiet_node()];
    scene.cluster.stop_kubelet(node).expect("stopped");
    let ready = || scene.field(node, "status.conditions[?(@.type==\"Ready\")].reason");
    eventually("Kubernetes to miss it", async || {
        (ready() == "NodeNotReady").then_some(())
    })
    .await;
    assert_eq!(scene.phase(node), "Ready");
    scene.cluster.start_kubelet(node).expect("started");
    eventually("it is back", async || {
        (ready() == "SamplesArrive").then_some(())
    })
    .await;
}

async fn nothing_is_lost_while_the_api_is_away(scene: &Scene) {
    step("the API is away for a minute");
    let begin = seconds();
    let scale = |replicas: &str| {
        scene.cluster.kubectl(&[
            "scale",
            "-n",
            "nodestats",
            "statefulset/nodestats-api",
            replicas,
        ])
    };
    scale("--replicas=0").expect("scaled");
    let away = Instant::now();
    scene.until_all("Unknown").await;
    let reason = "status.conditions[?(@.type==\"Reporting\")].reason";
    assert_eq!(scene.field("node-1", reason), "ApiUnavailable");
    eventually("a minute", async || {
        (away.elapsed() > Duration::from_mins(1)).then_some(())
    })
    .await;
    scale("--replicas=1").expect("scaled");
    scene.until_all("Ready").await;
    for node in NODES {
        scene.until_complete(node, begin).await;
        scene.every_sample_is_stored(node).await;
    }
    let events = scene
        .cluster
        .kubectl(&["get", "events.events.k8s.io", "-A", "-o", "json"]);
    let events: Value = serde_json::from_str(&events.expect("events")).expect("JSON");
    let count = |reason: &str| {
        let all = events["items"].as_array().expect("a list");
        all.iter()
            .filter(|event| event["reason"] == json!(reason))
            .count()
    };
    // One each time that it is away, and not one a node; a machine that builds beside it may leave it without
    // an answer for ten seconds once more.
    let (away, back) = (count("ApiUnavailable"), count("ApiAvailable"));
    assert_eq!(away, back, "one for the whole thing");
    assert!((1..NODES.len()).contains(&away), "{away}");
    // One agent was killed before; nobody else was called lost.
    assert_eq!(count("NodeLost"), 1);
}

async fn a_node_that_was_cut_off_sends_what_it_sampled(scene: &Scene) {
    step("a node without network");
    let node = NODES[scene.quiet_node()];
    let begin = seconds();
    scene.cluster.set_connected(node, false).expect("cut off");
    scene.until(node, "Stale").await;
    scene.cluster.set_connected(node, true).expect("joined");
    scene.until(node, "Ready").await;
    scene.until_complete(node, begin).await;
}

async fn a_rolling_update_hides_nobody(scene: &Scene) {
    step("a rolling update of the agents");
    let api = scene.api().await;
    scene
        .cluster
        .kubectl(&[
            "rollout",
            "restart",
            "-n",
            "nodestats",
            "ds/nodestats-agent",
        ])
        .expect("begun");
    eventually("the rollout", async || {
        assert_eq!(get(&api, "/nodes").await, Some(json!(scene.addresses())));
        for node in NODES {
            assert_ne!(scene.phase(node), "Lost", "{node}");
        }
        let status = [
            "rollout",
            "status",
            "-n",
            "nodestats",
            "ds/nodestats-agent",
            "--timeout=1s",
        ];
        scene.cluster.kubectl(&status).ok()
    })
    .await;
    scene.until_all("Ready").await;
}

async fn a_reboot_is_the_same_node(scene: &Scene) {
    step("a reboot");
    let rebooted = NODES[scene.quiet_node()];
    let before = (
        scene.field(rebooted, "status.nodeUID"),
        scene.field(rebooted, "status.bootID"),
    );
    scene.cluster.stop_node(rebooted).expect("stopped");
    scene.until(rebooted, "Stale").await;
    scene.cluster.start_node(rebooted).expect("started");
    eventually("the other boot", async || {
        let boot = scene.field(rebooted, "status.bootID");
        (!boot.is_empty() && boot != before.1).then_some(())
    })
    .await;
    scene.until(rebooted, "Ready").await;
    assert_eq!(scene.field(rebooted, "status.nodeUID"), before.0);
    let api = scene.api().await;
    assert_eq!(get(&api, "/nodes").await, Some(json!(scene.addresses())));
    eventually("the Event", async || {
        let events = [
            "get",
            "events.events.k8s.io",
            "-o",
            "jsonpath={.items[*].reason}",
        ];
        scene
            .cluster
            .kubectl(&events)
            .ok()?
            .contains("NodeRebooted")
            .then_some(())
    })
    .await;
}

async fn a_node_made_anew_is_another_node(scene: &Scene) {
    step("a Node is deleted, and made anew");
    let index = scene.quiet_node();
    let (node, address) = (NODES[index], scene.addresses()[index]);
    let old = scene.field(node, "status.nodeUID");
    scene.cluster.stop_node(node).expect("stopped");
    scene
        .cluster
        .kubectl(&["delete", "node", node])
        .expect("deleted");
    eventually("its object to go with it", async || {
        scene
            .cluster
            .kubectl(&["get", "mn", node])
            .is_err()
            .then_some(())
    })
    .await;
    let api = scene.api().await;
    eventually("the API to retire it", async || {
        let nodes = get(&api, "/nodes").await?;
        (!nodes.as_array()?.contains(&json!(address))).then_some(())
    })
    .await;
    // Its history stays.
    let history = get(&api, &format!("/{old}?from=0"))
        .await
        .expect("a history");
    let samples = history.as_object().map(serde_json::Map::len);
    assert!(samples.is_some_and(|samples| samples > 10), "{samples:?}");
    scene.cluster.start_node(node).expect("started");
    scene.until(node, "Ready").await;
    let new = scene.field(node, "status.nodeUID");
    assert_ne!(new, old);
    let lives = get(&api, "/nodes?view=full&state=all")
        .await
        .expect("lives");
    let of_node: Vec<&Value> = lives
        .as_array()
        .expect("a list")
        .iter()
        .filter(|life| life["hostname"] == json!(node))
        .collect();
    let states: Vec<(&Value, &Value)> = of_node
        .iter()
        .map(|life| (&life["uid"], &life["state"]))
        .collect();
    assert_eq!(states.len(), 2, "{states:?}");
    assert!(
        states.contains(&(&json!(old), &json!("gone")))
            && states.contains(&(&json!(new), &json!("live")))
    );
    // Now the name means the new one.
    assert_eq!(
        get(&api, &format!("/nodes/{node}"))
            .await
            .map(|now| now["uid"].clone()),
        Some(json!(new))
    );
    // And it goes for good, machine and all.
    scene.cluster.remove_node(node).expect("removed");
    scene
        .cluster
        .kubectl(&["delete", "node", node])
        .expect("deleted");
    eventually("the API to retire the new one too", async || {
        let nodes = get(&api, "/nodes").await?;
        (nodes.as_array()?.len() == 2).then_some(())
    })
    .await;
}
