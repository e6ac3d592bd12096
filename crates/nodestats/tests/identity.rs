//! Who may read and write, on a real kube-apiserver in both versions: by the tokens that it makes, and
//! by the roles of the chart.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use nodestats_testkit::kubernetes::{ControlPlane, Version};
use nodestats_testkit::logs::lines_of;
use nodestats_testkit::{Frames, Program, eventually, eventually_within, get, sample_times};
use nodestats_wire::Timestamp;
use nodestats_wire::client::Client;
use nodestats_wire::v1::Registration;
use serde_json::{Value, json};

const NODES: [(&str, &str); 2] = [("node-a", "192.168.2.10"), ("node-b", "192.168.2.11")];

/// The programs, each with a token of its own for the API.
struct Scene {
    plane: ControlPlane,
    api: Program,
    uids: [String; 2],
    _controller: Program,
    _agents: [Program; 2],
}

impl Scene {
    fn start(version: Version) -> Self {
        let plane = ControlPlane::with_nodestats(version);
        let uids = NODES.map(|(name, ip)| plane.add_node(name, ip));
        let api = ["api", "--listen", "127.0.0.1:0", "--database", "mem://"];
        let api = [&api[..], &["--kubernetes-auth", "nodestats"]].concat();
        let (kubeconfig, log) = (plane.credentials("nodestats-api"), plane.file("api.log"));
        let api = Program::serve_in(&api, &kubeconfig, &log);
        let token = plane.token("nodestats-controller", None);
        let kubeconfig = plane.credentials("nodestats-controller");
        let defaults = json!({"interval": "1s"});
        let token = ["--api-token-file", text(&token)];
        let controller = Program::quick_controller(api.url(), &kubeconfig, &defaults, &token);
        let agents = NODES.map(|node| agent(&plane, api.url(), node));
        Self {
            plane,
            api,
            uids,
            _controller: controller,
            _agents: agents,
        }
    }

    /// Who shows this token.
    fn client(&self, token: &Path) -> Client {
        self.api.client_with(token)
    }

    /// A file that holds this text as a token.
    fn token_file(&self, name: &str, text: &str) -> std::path::PathBuf {
        let file = self.plane.file(name);
        std::fs::write(&file, text).expect("written");
        file
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

fn agent(plane: &ControlPlane, server: &str, (name, ip): (&str, &str)) -> Program {
    let (kubeconfig, token) = plane.agent_credentials(name);
    let server_token = plane.token("nodestats-agent", Some(&format!("agent-{name}")));
    let arguments = [
        "--kubernetes",
        "--server",
        server,
        "--server-token-file",
        text(&server_token),
        "--node-name",
        name,
        "--node-ips",
        ip,
        "--pod",
        "nodestats/agent",
        "--token-file",
        text(&token),
    ];
    let environment = [("KUBECONFIG", text(&kubeconfig))];
    Program::start("nodestats-agent", &arguments, &environment)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_reads_or_writes_what_is_not_theirs() {
    for version in Version::ALL {
        let scene = Scene::start(version);
        each_account_may_what_the_table_says(&scene);
        what_pods_need_beyond_the_restricted_level_is_known(&scene);
        a_reader_sees_what_a_role_allows(&scene).await;
        a_stolen_token_writes_one_node(&scene).await;
        tokens_of_others_are_nobody_s(&scene, version).await;
        an_agent_that_is_not_let_in_loses_nothing(&scene).await;
        if version == Version::ALL[0] {
            an_agent_s_token_changes_and_no_push_is_lost(&scene).await;
        }
        who_read_processes_and_changed_the_registry_is_on_record(&scene);
    }
}

/// The table of `SECURITY.md`, line by line: account, where, resource, names and verbs.
fn table() -> BTreeSet<[String; 5]> {
    let text = include_str!("../../../SECURITY.md");
    let text = text.split_once("<!-- permissions -->").expect("a table").1;
    let text = text
        .split_once("<!-- end of permissions -->")
        .expect("a table")
        .0;
    let lines = text.lines().filter(|line| line.starts_with("| nodestats-"));
    let row = |line: &str| {
        let mut cells = line.trim_matches('|').split('|').map(str::trim);
        let mut next = || cells.next().expect("a cell").to_owned();
        let row = [next(), next(), next(), next(), next()];
        assert!(next().len() > 5, "{line} says not why");
        row
    };
    lines.map(row).collect()
}

/// What `kubectl auth can-i --list` says of an account in a namespace: resource, names and verbs.
fn may(scene: &Scene, account: &str, namespace: &str) -> BTreeSet<[String; 3]> {
    let user = format!("--as=system:serviceaccount:nodestats:{account}");
    let list = ["auth", "can-i", "--list", "-n", namespace, &user];
    let list = scene.plane.kubectl(&list).expect("a list");
    // Columns: resource, other URLs, names, verbs; the second is empty where the first is not.
    let row = |line: &str| {
        let (resource, rest) = line.split_once(' ')?;
        let mut lists = rest.split('[').skip(1);
        let mut list = || Some(lists.next()?.split(']').next()?.to_owned());
        let urls = list()?;
        let row = [resource.to_owned(), list()?, list()?];
        (!resource.is_empty() && urls.is_empty()).then_some(row)
    };
    list.lines().skip(1).filter_map(row).collect()
}

fn each_account_may_what_the_table_says(scene: &Scene) {
    const EVERYWHERE: &str = "kube-public";
    let mut found = BTreeSet::new();
    for account in ["nodestats-agent", "nodestats-controller", "nodestats-api"] {
        // What an account may that nobody gave anything is not of ours.
        let own = |namespace| {
            let bare = may(scene, "default", namespace);
            let all = may(scene, account, namespace);
            all.difference(&bare).cloned().collect::<BTreeSet<_>>()
        };
        let everywhere = own(EVERYWHERE);
        for namespace in [EVERYWHERE, "default", "kube-system", "nodestats"] {
            let (place, rows) = if namespace == EVERYWHERE {
                ("cluster", everywhere.clone())
            } else {
                let rows = own(namespace);
                (namespace, rows.difference(&everywhere).cloned().collect())
            };
            for [resource, names, verbs] in rows {
                found.insert([account.to_owned(), place.to_owned(), resource, names, verbs]);
            }
        }
    }
    let table = table();
    let more: Vec<_> = found.difference(&table).collect();
    let less: Vec<_> = table.difference(&found).collect();
    assert!(
        more.is_empty() && less.is_empty(),
        "not in the table: {more:#?}\nonly there: {less:#?}"
    );
}

/// The level `restricted` of Pod Security: what the API server says of each program's pod.
fn what_pods_need_beyond_the_restricted_level_is_known(scene: &Scene) {
    let namespace = json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": "strict", "labels": {"pod-security.kubernetes.io/enforce": "restricted"}},
    });
    scene
        .plane
        .apply(&namespace.to_string())
        .expect("a namespace");
    for (workload, account, beyond) in [
        ("statefulset/nodestats-api", "nodestats-api", None),
        (
            "deployment/nodestats-controller",
            "nodestats-controller",
            None,
        ),
        // It reads the host: nothing else.
        (
            "daemonset/nodestats-agent",
            "nodestats-agent",
            Some("(volume \"root\" uses restricted volume type \"hostPath\")"),
        ),
    ] {
        let create = ["create", "serviceaccount", account, "-n", "strict"];
        scene.plane.kubectl(&create).expect("an account");
        let get = ["get", workload, "-n", "nodestats", "-o", "json"];
        let workload = scene.plane.kubectl(&get).expect("a workload");
        let workload: Value = serde_json::from_str(&workload).expect("JSON");
        let mut spec = workload["spec"]["template"]["spec"].clone();
        if !workload["spec"]["volumeClaimTemplates"].is_null() {
            // As the StatefulSet's controller does.
            spec["volumes"] =
                json!([{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]);
        }
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": account, "namespace": "strict"},
            "spec": spec,
        });
        match (scene.plane.apply(&pod.to_string()), beyond) {
            (Ok(_), None) => {}
            (Err(error), Some(beyond)) => {
                let said = format!("{error:#}");
                let violations = said
                    .split("\"restricted:latest\": ")
                    .nth(1)
                    .expect("violations");
                assert_eq!(
                    violations.trim(),
                    format!("restricted volume types {beyond}")
                );
            }
            (outcome, _) => panic!("{account}: {outcome:?}"),
        }
    }
}

async fn a_reader_sees_what_a_role_allows(scene: &Scene) {
    scene.plane.let_read("reader", &[]);
    let reader = scene.client(&scene.plane.token("reader", None));
    let status = async |path: &str| match reader.get(path, &[]).await {
        Ok(_) => 200,
        Err(error) => error.status().expect("an answer"),
    };
    assert_eq!(get(&reader, "/nodes").await, Some(json!([])));
    assert_eq!(status("/nodes/node-a/cpu").await, 403);
    let bind = |role: &str| scene.plane.let_read("reader", &[role]);
    bind("nodestats-viewer");
    for (name, ip) in NODES {
        for asked in [name, ip] {
            eventually(&format!("the CPU of {asked}"), async || {
                get(&reader, &format!("/nodes/{asked}/cpu")).await
            })
            .await;
        }
        assert_eq!(status(&format!("/nodes/{name}/proc")).await, 403);
    }
    let all =
        async || (get(&reader, "/nodes").await? == json!(NODES.map(|(_, ip)| ip))).then_some(());
    eventually("both nodes", all).await;
    let refused = reader.get("/nodes/node-a/proc", &[]).await;
    let refused = refused.expect_err("forbidden").to_string();
    assert!(refused.contains("allows get of nodes/proc"), "{refused}");
    bind("nodestats-process-viewer");
    let rows = "/nodes/node-a/proc?view=full";
    eventually("processes", async || get(&reader, rows).await).await;
    // A role for one node, by its name.
    let role = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
        "metadata": {"name": "one"},
        "rules": [{
            "apiGroups": ["stats.nodestats.dev"], "resources": ["nodes", "nodes/memory"],
            "resourceNames": ["node-b"], "verbs": ["get"],
        }],
    });
    scene.plane.apply(&role.to_string()).expect("a role");
    let delete =
        "delete clusterrolebinding reader-nodestats-viewer reader-nodestats-process-viewer";
    let delete: Vec<&str> = delete.split(' ').collect();
    scene.plane.kubectl(&delete).expect("unbound");
    bind("one");
    let one = async || (get(&reader, "/nodes").await? == json!([NODES[1].1])).then_some(());
    eventually("one node", one).await;
    for (path, expected) in [
        ("/nodes/node-b/memory", 200),
        ("/nodes/192.168.2.11/memory", 200),
        ("/nodes/node-b/cpu", 403),
        ("/nodes/node-a/memory", 403),
        ("/nodes/192.168.2.10/memory", 403),
        ("/nodes/node-c/memory", 403),
    ] {
        assert_eq!(status(path).await, expected, "{path}");
    }
}

/// What somebody can do who has taken the token of the agent on node-a.
async fn a_stolen_token_writes_one_node(scene: &Scene) {
    let thief = scene.client(&scene.plane.token("nodestats-agent", Some("agent-node-a")));
    let mut frames = Frames::new(now());
    let mut push = async |node: &str| {
        let pushed = thief.push_frames(node, frames.next_frame()).await;
        let pushed = pushed.map(drop);
        pushed.map_err(|error| error.status().expect("an answer"))
    };
    assert_eq!(push(&scene.uids[0]).await, Ok(()));
    for other in [&*scene.uids[1], "node-b", "192.168.2.11", "node-c"] {
        assert_eq!(push(other).await, Err(403), "{other}");
    }
    // Nor does it take another node's address, read, or remove.
    let registration = Registration::new("192.168.2.11", "node-b");
    let registered = thief.register(&registration).await;
    assert_eq!(registered.expect_err("forbidden").status(), Some(403));
    let removed = thief.deregister(&scene.uids[0]).await;
    assert_eq!(removed.expect_err("forbidden").status(), Some(403));
    for path in ["/nodes", "/nodes/node-a", "/nodes/node-a/proc"] {
        let read = thief.get(path, &[]).await;
        assert_eq!(read.expect_err("forbidden").status(), Some(403), "{path}");
    }
    // An agent's token that is bound to no pod is no node's.
    let unbound = scene.client(&scene.plane.token("nodestats-agent", None));
    let pushed = unbound
        .push_frames(&scene.uids[0], Frames::new(now()).next_frame())
        .await;
    assert_eq!(pushed.expect_err("forbidden").status(), Some(403));
}

async fn tokens_of_others_are_nobody_s(scene: &Scene, version: Version) {
    // For the kube-apiserver itself.
    let own = scene.plane.agent_credentials("node-a").1;
    // Of a pod that is gone, though the token is good for an hour.
    scene.plane.add_agent_pod("ghost", "node-a");
    let ghost = scene.plane.token("nodestats-agent", Some("ghost"));
    let gone = [
        "delete",
        "pod",
        "-n",
        "nodestats",
        "ghost",
        "--force",
        "--grace-period=0",
    ];
    scene.plane.kubectl(&gone).expect("deleted");
    // Of another cluster.
    let other = ControlPlane::with_nodestats(version);
    other.add_node("node-a", "192.168.2.10");
    other.agent_credentials("node-a");
    let foreign = other.token("nodestats-agent", Some("agent-node-a"));
    let nonsense = scene.token_file("nonsense", "nonsense");
    for token in [&own, &ghost, &foreign, &nonsense] {
        let client = scene.client(token);
        let pushed = client
            .push_frames(&scene.uids[0], Frames::new(now()).next_frame())
            .await;
        assert_eq!(
            pushed.expect_err("unknown").status(),
            Some(401),
            "{}",
            token.display()
        );
        let read = client.get("/nodes", &[]).await;
        assert_eq!(
            read.expect_err("unknown").status(),
            Some(401),
            "{}",
            token.display()
        );
    }
    let nobody = scene.api.client().get("/nodes", &[]).await;
    assert_eq!(nobody.expect_err("unknown").status(), Some(401));
    // What says nothing of nodes is open.
    for path in ["/healthz", "/readyz", "/metrics"] {
        scene.api.client().get(path, &[]).await.expect("open");
    }
}

/// A token that does not do, as between two of which one is late: samples wait for the next.
async fn an_agent_that_is_not_let_in_loses_nothing(scene: &Scene) {
    let reader = scene.client(&scene.plane.token("nodestats-controller", None));
    scene.plane.let_read("reader", &["nodestats-viewer"]);
    let viewer = scene.client(&scene.plane.token("reader", None));
    let begin = now();
    let denied = async || {
        let metrics = reader.get("/metrics", &[]).await.ok()?;
        let metrics = String::from_utf8(metrics).ok()?;
        let mut lines = metrics.lines();
        lines.find_map(|line| {
            let count = line.strip_prefix("nodestats_denied_requests_total ")?;
            count.parse::<u64>().ok()
        })
    };
    let before = denied().await.expect("a counter");
    let token = scene.token_file("nodestats-agent.agent-node-a", "not yet");
    eventually("refusals", async || {
        (denied().await? >= before + 3).then_some(())
    })
    .await;
    drop(token);
    scene.plane.token("nodestats-agent", Some("agent-node-a"));
    let from = format!("/nodes/node-a/memory?from={}", begin.seconds());
    eventually("all samples", async || {
        let history: Value = get(&viewer, &from).await?;
        let times = sample_times(&history)?;
        let is_whole = times.windows(2).all(|pair| pair[1] - pair[0] < 2.5);
        let is_new = now().seconds() - times.last()? < 3.0;
        (is_whole && is_new && times.first()? - begin.seconds() < 3.0).then_some(())
    })
    .await;
}

/// The token of ten minutes is another one again and again, and what was before is good no more.
async fn an_agent_s_token_changes_and_no_push_is_lost(scene: &Scene) {
    scene.plane.let_read("reader", &["nodestats-viewer"]);
    let viewer = scene.client(&scene.plane.token("reader", None));
    let file = scene.plane.file("nodestats-agent.agent-node-a");
    let begin = now();
    for n in 0..3 {
        let pod = format!("agent-node-a-{n}");
        scene.plane.add_agent_pod(&pod, "node-a");
        let next = scene.plane.token("nodestats-agent", Some(&pod));
        let old = std::fs::read_to_string(&file).expect("a token");
        // As the kubelet does: one moment the old one, the next moment the new one.
        std::fs::rename(next, &file).expect("renamed");
        let used = format!("/nodes/node-a/memory?from={}", now().seconds());
        eventually("pushes by the new token", async || {
            let history: Value = get(&viewer, &used).await?;
            (history.as_object()?.len() >= 2).then_some(())
        })
        .await;
        // The one before it ends with its pod, once nobody remembers that it was good.
        if n > 0 {
            let before = format!("agent-node-a-{}", n - 1);
            let delete = ["delete", "pod", "-n", "nodestats", "--force", &before];
            scene.plane.kubectl(&delete).expect("deleted");
            let old = scene.client(&scene.token_file("old", &old));
            eventually_within(Duration::from_mins(2), "its end", async || {
                let pushed = old.get("/nodes", &[]).await;
                (pushed.err()?.status() == Some(401)).then_some(())
            })
            .await;
        }
    }
    let from = format!("/nodes/node-a/memory?from={}", begin.seconds());
    let history: Value = get(&viewer, &from).await.expect("a history");
    let times = sample_times(&history).expect("times");
    assert!(
        times.windows(2).all(|pair| pair[1] - pair[0] < 2.5),
        "{times:?}"
    );
}

fn who_read_processes_and_changed_the_registry_is_on_record(scene: &Scene) {
    let log = std::fs::read_to_string(scene.plane.file("api.log")).expect("a log");
    let audit = lines_of(&log, "nodestats::audit");
    let has = |parts: &[&str]| {
        let line = audit
            .iter()
            .find(|line| parts.iter().all(|part| line.contains(part)));
        assert!(line.is_some(), "{parts:?} are not in {audit:#?}");
    };
    has(&[
        "who=system:serviceaccount:nodestats:reader",
        "what=processes",
        "node=node-a",
        "query=view=full",
        "way=direct",
    ]);
    for (_, uid) in NODES.iter().zip(&scene.uids) {
        has(&["who=the controller", "what=registration", uid]);
    }
    // What was refused was not done.
    assert!(!audit.iter().any(|line| line.contains("what=purge")));
    // No token is in any line.
    assert!(!log.contains("eyJ"));
}

fn now() -> Timestamp {
    Timestamp::from_system(std::time::SystemTime::now())
}
