//! Pods on a real cluster: what limits do to them, what ended and how, names that stay, and the
//! kubelet's own figures beside ours.
//!
//! One test, since the cluster is one.

use std::path::Path;
use std::time::Duration;

use nodestats_testkit::kubernetes::{FullCluster, Version};
use nodestats_testkit::{eventually, eventually_within};
use nodestats_wire::{Timestamp, routes};
use serde_json::{Value, json};

const NODES: usize = 2;
const VALUES: [&str; 3] = [
    "nodeDefaults={\"interval\": \"1s\"}",
    "api.persistence.size=\"1Gi\"",
    "api.portForward.processes=true",
];

struct Scene {
    cluster: FullCluster,
}

impl Scene {
    fn kubectl(&self, arguments: &[&str]) -> String {
        self.cluster.kubectl(arguments).expect("kubectl")
    }

    /// What the plugin answers with these words.
    fn ask(&self, words: &[&str]) -> Result<Value, String> {
        self.cluster.ask(words)
    }

    /// A pod of `work.c`.
    fn run(&self, name: &str, work: &[&str], limits: &Value, restart: &str) {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": "shop", "labels": {"app": name, "other": "x"}},
            "spec": {
                "restartPolicy": restart, "terminationGracePeriodSeconds": 0,
                "nodeName": "node-2",
                "containers": [{
                    "name": "work", "image": "localhost/work:1", "imagePullPolicy": "Never",
                    "args": work, "resources": {"limits": limits},
                }],
            },
        });
        self.cluster.apply(&pod.to_string()).expect("a pod");
    }

    fn pod(&self, name: &str) -> Option<Value> {
        self.ask(&["pod", name, "-n", "shop"]).ok()
    }
}

fn number(value: &Value) -> f64 {
    value
        .as_f64()
        .unwrap_or_else(|| panic!("{value} is no number"))
}

/// Lets this machine's program into every node.
fn load_image(scene: &Scene) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/pod_life/work.c");
    scene.cluster.load_source(&source, "localhost/work:1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_are_named_limited_killed_and_remembered() {
    let scene = Scene {
        cluster: FullCluster::with_images(Version::V1_37, NODES),
    };
    load_image(&scene);
    scene.cluster.install_chart(&VALUES).expect("installed");
    scene.kubectl(&["create", "namespace", "shop"]);
    a_limit_is_shown_with_the_time_that_it_takes(&scene).await;
    figures_are_those_of_the_kubelet(&scene).await;
    a_node_lists_its_own_pods_and_no_other(&scene).await;
    containers_and_the_rest_are_a_node(&scene).await;
    a_kill_for_memory_names_its_container(&scene).await;
    a_job_of_three_seconds_is_remembered(&scene).await;
    a_team_sees_its_own_namespace(&scene).await;
    a_pod_that_is_deleted_keeps_its_name_and_its_figures(&scene).await;
}

/// 200 millicores for whoever wants a whole CPU.
async fn a_limit_is_shown_with_the_time_that_it_takes(scene: &Scene) {
    scene.run("limited", &["burn"], &json!({"cpu": "200m"}), "Always");
    let begin = eventually("its use", async || {
        let pod = scene.pod("limited")?;
        let cpu = &pod["usage"]["containers"][0]["cpu"];
        cpu["usage_millicores"]
            .is_number()
            .then(|| Timestamp::from_system(std::time::SystemTime::now()))
    })
    .await;
    let history = eventually("twenty seconds of it", async || {
        let words = [
            "pod", "limited", "-n", "shop", "--cpu", "-c", "work", "--from",
        ];
        let history = scene
            .ask(&[&words[..], &[&begin.to_string()]].concat())
            .ok()?;
        let entries = history.as_object()?.len();
        (entries > 20).then_some(history)
    })
    .await;
    let entries: Vec<(&String, &Value)> = history.as_object().expect("entries").iter().collect();
    let (first, last) = (entries[0], entries[entries.len() - 1]);
    let time = |key: &str| key.parse::<Timestamp>().expect("a time").seconds();
    let grown = |field: &str| number(&last.1[field]) - number(&first.1[field]);
    // Keys are cut to the second, and so is the span: a second in twenty is five in a hundred. The
    // rates between samples are exact.
    let rates: Vec<f64> = entries[1..]
        .iter()
        .map(|(_, cpu)| number(&cpu["usage_millicores"]))
        .collect();
    let mean = rates.iter().sum::<f64>() / rates.len() as f64;
    println!(
        "200m: {mean:.1} millicores over {} s",
        time(last.0) - time(first.0)
    );
    assert!((mean - 200.0).abs() < 4.0, "{mean} {rates:?}");
    // For each of the four fifths of its time that one CPU, or a part of one, was held back.
    assert!(grown("throttled_seconds_total") > 2.0, "{first:?} {last:?}");
    assert!(
        grown("throttled_periods_total") > 100.0,
        "{first:?} {last:?}"
    );
    assert_eq!(last.1["limit_millicores"], 200.0);
    // In most periods, and not in all: one that begins on another CPU may get through (74 to 99 in a
    // hundred were seen, and any share in a single second, which has ten of them).
    let throttled = grown("throttled_periods_total") / grown("periods_total") * 100.0;
    assert!(throttled > 50.0, "{throttled} {first:?} {last:?}");
    assert!(last.1["throttled_percent"].is_number(), "{last:?}");
    // Its one process is all that it used.
    let remainder: f64 = entries[1..]
        .iter()
        .map(|(_, cpu)| number(&cpu["remainder_millicores"]))
        .sum();
    assert!((remainder / rates.len() as f64).abs() < 10.0, "{remainder}");
}

/// The same moment is not the same for both: what is compared changes slowly, or is a sum.
async fn figures_are_those_of_the_kubelet(scene: &Scene) {
    scene.run(
        "holding",
        &["hold", "40"],
        &json!({"memory": "128Mi"}),
        "Always",
    );
    eventually("its memory", async || {
        let pod = scene.pod("holding")?;
        let bytes = pod["usage"]["memory"]["working_set_bytes"].as_f64()?;
        (bytes > f64::from(40 << 20)).then_some(())
    })
    .await;
    let compared = eventually("the kubelet to say the same", async || {
        let mut compared = 0;
        for node in ["node-1", "node-2"] {
            let raw = format!("/api/v1/nodes/{node}/proxy/stats/summary");
            let summary: Value =
                serde_json::from_str(&scene.kubectl(&["get", "--raw", &raw])).ok()?;
            for pod in summary["pods"].as_array()? {
                let (name, namespace) = (&pod["podRef"]["name"], &pod["podRef"]["namespace"]);
                let words = ["pod", name.as_str()?, "-n", namespace.as_str()?];
                let ours = scene.ask(&words).ok()?;
                for theirs in pod["containers"].as_array()? {
                    if !is_as_the_kubelet_has_it(&ours, theirs)? {
                        return None;
                    }
                    compared += 1;
                }
            }
        }
        // The two of this test, nodestats' own on both nodes, and the cluster's names.
        (compared >= 6).then_some(compared)
    })
    .await;
    println!("{compared} containers as the kubelet has them");
}

/// Within what changes in the fifteen seconds that the kubelet's figures may be old: an eighth of the
/// memory and 2 MiB, four seconds of CPU.
fn is_as_the_kubelet_has_it(ours: &Value, theirs: &Value) -> Option<bool> {
    let used = ours["usage"]["containers"].as_array()?;
    let ours = used
        .iter()
        .find(|container| container["name"] == theirs["name"])?;
    let memory = ours["memory"]["working_set_bytes"].as_f64()?;
    let theirs_memory = theirs["memory"]["workingSetBytes"].as_f64()?;
    let cpu = ours["cpu"]["usage_seconds_total"].as_f64()?;
    let theirs_cpu = theirs["cpu"]["usageCoreNanoSeconds"].as_f64()? / 1e9;
    let memory_is = (memory - theirs_memory).abs() < f64::from(2 << 20) + theirs_memory / 8.0;
    Some(memory_is && (cpu - theirs_cpu).abs() < 4.0)
}

async fn a_node_lists_its_own_pods_and_no_other(scene: &Scene) {
    let names = |node: &str| {
        let pods = scene.ask(&[node, "--pods"]).expect("pods");
        let pods = pods["pods"].as_array().expect("a list").clone();
        let name = |pod: &Value| pod["name"].as_str().map(str::to_owned);
        pods.iter().filter_map(name).collect::<Vec<_>>()
    };
    let (first, second) = (names("node-1"), names("node-2"));
    assert!(second.contains(&"limited".to_owned()), "{second:?}");
    assert!(!first.contains(&"limited".to_owned()), "{first:?}");
    assert!(
        first
            .iter()
            .any(|name| name.starts_with("nodestats-agent-")),
        "{first:?}"
    );
    let network = eventually("its interfaces", async || {
        scene
            .ask(&["pod", "limited", "-n", "shop", "--network"])
            .ok()
    })
    .await;
    let interfaces = network["interfaces"].as_array().expect("interfaces");
    assert!(
        interfaces.iter().any(|one| one["interface"] == "eth0"),
        "{network}"
    );
    let processes = scene
        .ask(&["pod", "limited", "-n", "shop", "--processes"])
        .expect("rows");
    let rows = processes["processes"].as_array().expect("rows");
    assert!(rows.iter().any(|row| row["name"] == "work"), "{processes}");
    // What its workload is called.
    let list = scene.ask(&["pods", "-n", "nodestats"]).expect("a list");
    let workloads: Vec<String> = list
        .as_array()
        .expect("a list")
        .iter()
        .map(|pod| format!("{}/{}", pod["workload"]["kind"], pod["workload"]["name"]))
        .collect();
    for workload in [
        "\"Deployment\"/\"nodestats-controller\"",
        "\"StatefulSet\"/\"nodestats-api\"",
        "\"DaemonSet\"/\"nodestats-agent\"",
    ] {
        assert!(workloads.iter().any(|one| one == workload), "{workloads:?}");
    }
    let labelled = scene
        .ask(&["pods", "-A", "-l", "app=limited", "--node", "node-2"])
        .expect("a list");
    assert_eq!(labelled.as_array().map(Vec::len), Some(1));
    // Only labels that are to be kept are.
    assert_eq!(labelled[0]["labels"], json!({"app": "limited"}));
}

async fn a_kill_for_memory_names_its_container(scene: &Scene) {
    scene.run(
        "greedy",
        &["hold", "100"],
        &json!({"memory": "48Mi"}),
        "Never",
    );
    let pod = eventually("the kill", async || {
        let pod = scene.pod("greedy")?;
        (pod["state"] == "gone").then_some(pod)
    })
    .await;
    let container = &pod["containers"][0];
    assert_eq!(container["runs"][0]["reason"], "OOMKilled", "{pod}");
    assert_eq!(
        (&container["name"], &container["memory_limit_bytes"]),
        (&json!("work"), &json!(48 << 20))
    );
    let words = ["--pod", "greedy", "-n", "shop", "--kind", "oom_kill"];
    let kills = eventually("the event of both sources", async || {
        let kills = scene.cluster.events(&words).ok()?;
        // Kubernetes knows it, and the node saw it by its group or its counter.
        (kills[0]["sources"].as_array()?.len() >= 2).then_some(kills)
    })
    .await;
    println!("{kills}");
    assert_eq!(kills.as_array().map(Vec::len), Some(1), "{kills}");
    let kill = &kills[0];
    assert_eq!(
        (
            &kill["namespace"],
            &kill["pod"],
            &kill["container"],
            &kill["node"]
        ),
        (
            &json!("shop"),
            &json!("greedy"),
            &json!("work"),
            &json!("node-2")
        )
    );
    assert_eq!(kill["limit_bytes"], 48 << 20);
    // As it was sampled last, a second before at most: it takes a megabyte each twentieth of one.
    let memory = number(&kill["memory_bytes"]) / f64::from(1 << 20);
    assert!((1.0..=48.5).contains(&memory), "{kill}");
    // An agent of the chart may not read the kernel's log, and that is said.
    assert!(kill["victim_unknown"].is_string(), "{kill}");
    let of_node = scene.cluster.events(&["node-2", "--kind", "oom_kill"]);
    let of_node = of_node.expect("events");
    let of_node = of_node.as_array().expect("a list").iter();
    assert_eq!(of_node.filter(|kill| kill["pod"] == "greedy").count(), 1);
}

/// On a node Σ containers and a rest are its CPU, and the rest is at least what its processes outside
/// of pods used: this machine's other processes are not in the node's own table.
async fn containers_and_the_rest_are_a_node(scene: &Scene) {
    let sum =
        |values: &mut dyn Iterator<Item = &Value>| values.filter_map(Value::as_f64).sum::<f64>();
    let mut seen = 0;
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let books = scene.ask(&["node-2", "--pods"]).expect("pods");
        let at = books["time"].as_str().expect("a time").to_owned();
        let ask = |path: &str| {
            let path = format!("{}/nodes/node-2/{path}at={at}", routes::AGGREGATED);
            serde_json::from_str::<Value>(&scene.kubectl(&["get", "--raw", &path])).expect("JSON")
        };
        let (cpu, rows) = (ask("cpu?"), ask("proc?view=full&"));
        let pods = books["pods"].as_array().expect("pods");
        let containers: Vec<&Value> = pods
            .iter()
            .flat_map(|pod| pod["containers"].as_array().expect("containers"))
            .collect();
        let mut used = containers.iter().map(|one| &one["cpu"]["usage_millicores"]);
        let of_containers = sum(&mut used);
        let (node, rest) = (
            number(&books["cpu"]["used_millicores"]),
            number(&books["cpu"]["rest_millicores"]),
        );
        // The kernel counts a container's time in its pod too; one is read a moment after the other.
        assert!((of_containers + rest - node).abs() < 30.0, "{books}");
        let cpus = cpu["cpus"].as_array().expect("CPUs").len() as f64;
        let modes = &cpu["modes"];
        let busy = ["user", "nice", "system", "irq", "softirq"].map(|mode| number(&modes[mode]));
        let busy = busy.iter().sum::<f64>() * cpus * 10.0;
        // Shares of all ticks there, ticks of a span here, which is read a moment apart.
        assert!((busy - node).abs() < 50.0 * cpus, "{busy} {node}");
        let processes = rows["processes"].as_array().expect("rows").iter();
        let outside = processes.filter(|row| row["pod_uid"].is_null() && row["pid"] != 0);
        let mut outside = outside.map(|row| &row["cpu_percent"]);
        let outside = sum(&mut outside) * 10.0;
        // Of each process a tick of ten milliseconds more or less, in a second.
        assert!(rest > outside - 100.0, "{rest} {outside}");
        println!(
            "{of_containers:.0} + {rest:.0} = {node:.0} millicores, {outside:.0} of known processes outside"
        );
        seen += 1;
    }
    assert_eq!(seen, 10);
}

async fn a_job_of_three_seconds_is_remembered(scene: &Scene) {
    let job = json!({
        "apiVersion": "batch/v1", "kind": "Job",
        "metadata": {"name": "brief", "namespace": "shop"},
        "spec": {
            "backoffLimit": 0, "ttlSecondsAfterFinished": 0,
            "template": {"spec": {
                "restartPolicy": "Never", "nodeName": "node-2",
                "containers": [{
                    "name": "work", "image": "localhost/work:1", "imagePullPolicy": "Never",
                    "args": ["brief", "3", "7"],
                }],
            }},
        },
    });
    scene.cluster.apply(&job.to_string()).expect("a job");
    eventually("it to be gone", async || {
        let pods = scene.kubectl(&[
            "get",
            "pods",
            "-n",
            "shop",
            "-o",
            "name",
            "-l",
            "job-name=brief",
        ]);
        let jobs = scene.kubectl(&["get", "jobs", "-n", "shop", "-o", "name"]);
        let known = scene.ask(&["pods", "-n", "shop", "--state", "gone"]).ok()?;
        let known = known
            .as_array()?
            .iter()
            .any(|pod| pod["workload"]["name"] == "brief");
        (pods.trim().is_empty() && jobs.trim().is_empty() && known).then_some(())
    })
    .await;
    let gone = scene
        .ask(&["pods", "-n", "shop", "--state", "gone"])
        .expect("a list");
    let gone = gone.as_array().expect("a list");
    let pod = gone
        .iter()
        .find(|pod| pod["workload"]["name"] == "brief")
        .expect("it is listed");
    assert_eq!(pod["workload"]["kind"], "Job");
    let run = &pod["containers"][0]["runs"][0];
    assert_eq!(
        (&run["exit_code"], &run["reason"]),
        (&json!(7), &json!("Error")),
        "{pod}"
    );
    let cpu = number(&pod["usage"]["cpu"]["usage_seconds_total"]);
    println!("a job of three seconds: {cpu} s of CPU");
    // The last sample before its end is up to a second and a collection older.
    assert!((0.5..4.5).contains(&cpu), "{pod}");
    let name = pod["name"].as_str().expect("a name");
    // At once; `NODESTATS_TEST_AGO` says how many seconds later.
    if let Ok(ago) = std::env::var("NODESTATS_TEST_AGO") {
        let ago = Duration::from_secs(ago.parse().expect("seconds"));
        tokio::time::sleep(ago).await;
    }
    it_is_found_by_its_time(scene, name, run);
    let events = scene.cluster.events(&["--pod", name, "-n", "shop"]);
    let events = events.expect("events");
    let told: Vec<(&Value, &Value)> = events
        .as_array()
        .expect("a list")
        .iter()
        .map(|event| (&event["kind"], &event["message"]))
        .collect();
    let said = [
        ("container_started", "container work started"),
        (
            "container_ended",
            "container work ended with exit code 7 (Error)",
        ),
    ];
    let said = said.map(|(kind, message)| (json!(kind), json!(message)));
    assert_eq!(told, said.each_ref().map(|(kind, message)| (kind, message)));
}

/// Whoever knows no more than when finds what ran, and what it was part of.
fn it_is_found_by_its_time(scene: &Scene, name: &str, run: &Value) {
    let time = |field: &str| -> Timestamp {
        let text = run[field].as_str().expect("a time");
        text.parse().expect("a time")
    };
    let (from, to) = (time("started_at"), time("ended_at").plus_micros(999_999));
    let (from_text, to_text) = (from.to_string(), to.to_string());
    let span = ["--from", &from_text, "--to", &to_text];
    let is_of_job = |row: &Value| row["pod"] == name && row["namespace"] == "shop";
    let find = |what: &str| {
        let top = scene.cluster.top(&[&[what][..], &span].concat());
        let top = top.expect("a ranking");
        let rows = top["rows"].as_array().expect("rows");
        let found = rows.iter().find(|row| is_of_job(row)).cloned();
        found.unwrap_or_else(|| panic!("{what}: {top}"))
    };
    let process = find("processes");
    assert_eq!(
        (&process["name"], &process["node"]),
        (&json!("work"), &json!("node-2"))
    );
    println!("found by its time: {process}");
    assert_eq!(find("pods")["node"], "node-2");
    let moment = from.plus_micros(2_000_000).to_string();
    let table = scene.ask(&["node-2", "--processes", "--at", &moment]);
    let table = table.expect("the table as it was");
    let pid = &process["pid"];
    let rows = table["processes"].as_array().expect("rows");
    assert!(rows.iter().any(|row| row["pid"] == *pid), "{table}");
    let cpu = &table["cpu"];
    let of = |name: &str| number(&cpu[name]);
    let shown = of("processes_percent") + of("ended_children_percent");
    assert!(
        (shown + of("unaccounted_percent") - of("busy_percent")).abs() < 0.05,
        "{cpu}"
    );
}

/// Ordinary RBAC of one namespace.
async fn a_team_sees_its_own_namespace(scene: &Scene) {
    let bind = ["create", "rolebinding", "jane", "-n", "shop", "--user=jane"];
    scene.kubectl(&[&bind[..], &["--clusterrole=view"]].concat());
    let jane = |words: &[&str]| {
        scene.ask(&[&["--as", "jane", "--via", "aggregation"][..], words].concat())
    };
    eventually("the role to count", async || {
        jane(&["pod", "limited", "-n", "shop", "--cpu"]).ok()
    })
    .await;
    let list = jane(&["pods", "-n", "shop"]).expect("her own");
    assert!(
        list.as_array().is_some_and(|pods| pods.len() == 2),
        "{list}"
    );
    let refused = jane(&["pod", "limited", "-n", "shop", "--processes"]).expect_err("forbidden");
    assert!(refused.contains("pods/proc"), "{refused}");
    let raw = |path: &str| {
        let path = format!("{}{path}", routes::AGGREGATED);
        scene
            .cluster
            .kubectl(&["get", "--raw", &path, "--as", "jane"])
    };
    let own = raw("/namespaces/shop/pods/limited/events").expect("her own");
    assert!(own.contains("container_started"), "{own}");
    assert!(raw("/namespaces/nodestats/pods/nodestats-api-0/events").is_err());
    assert!(raw("/nodes/node-2/events").is_err());
    assert!(raw("/events").is_err());
    let refused = jane(&["pods", "-n", "nodestats"]).expect_err("forbidden");
    assert!(refused.contains("list of pods"), "{refused}");
    assert!(jane(&["pods", "-A"]).is_err());
    assert!(jane(&["node-2", "--pods"]).is_err());
}

async fn a_pod_that_is_deleted_keeps_its_name_and_its_figures(scene: &Scene) {
    let uid = scene.pod("limited").expect("a pod")["uid"].clone();
    scene.kubectl(&["delete", "pod", "-n", "shop", "limited"]);
    let pod = eventually_within(Duration::from_mins(1), "the end", async || {
        scene.pod("limited").filter(|pod| pod["state"] == "gone")
    })
    .await;
    assert_eq!(pod["uid"], uid);
    assert_eq!(pod["usage"]["containers"][0]["name"], "work", "{pod}");
    let history = scene
        .ask(&[
            "pod",
            "limited",
            "-n",
            "shop",
            "--cpu",
            "--from",
            "2020-01-01 00:00Z",
        ])
        .expect("a history");
    assert!(
        history
            .as_object()
            .is_some_and(|entries| entries.len() > 20)
    );
    // Another pod takes the name, and is another life.
    scene.run("limited", &["burn"], &json!({"cpu": "100m"}), "Always");
    eventually("the next one", async || {
        let pod = scene.pod("limited")?;
        (pod["uid"] != uid && pod["state"] == "live").then_some(())
    })
    .await;
}
