//! The real programs on a real kube-apiserver, in both versions that are supported: what the
//! definition accepts, who owns which field, what each service account may not do, and who leads.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use nodestats_testkit::kubernetes::{ControlPlane, Version};
use nodestats_testkit::{Program, eventually, free_port, get};
use serde_json::{Value, json};

/// Each test once for each version.
macro_rules! on_both_versions {
    ($($test:ident),* $(,)?) => {
        mod v1_34 {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                super::$test(super::Version::V1_34).await;
            })*
        }
        mod v1_37 {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                super::$test(super::Version::V1_37).await;
            })*
        }
    };
}

on_both_versions! {
    the_definition_defaults_and_rejects,
    a_person_the_agent_and_the_controller_never_fight,
    no_service_account_may_do_more_than_its_work,
    an_agent_writes_what_is_its_own_and_nothing_else,
    another_replica_leads_when_the_leader_is_killed,
    an_agent_without_definition_or_permission_says_so_and_goes_on,
    what_lists_tell_is_acted_on_and_plain_hosts_are_left_alone,
    a_node_that_is_made_anew_is_another_one,
    the_chart_is_taken_whatever_its_values,
}

fn node(name: &str, spec: Value) -> String {
    json!({
        "apiVersion": "nodestats.dev/v1alpha1", "kind": "MonitoredNode",
        "metadata": {"name": name}, "spec": spec,
    })
    .to_string()
}

async fn the_definition_defaults_and_rejects(version: Version) {
    let plane = ControlPlane::with_nodestats(version);
    let bare = json!({
        "apiVersion": "nodestats.dev/v1alpha1", "kind": "MonitoredNode",
        "metadata": {"name": "bare"},
    });
    for document in [bare.to_string(), node("empty", json!({}))] {
        plane.apply(&document).expect("an empty spec is valid");
    }
    let defaults = json!({
        "interval": "10s",
        "processes": {"enabled": true, "commandLine": "Redacted"},
        "retention": {"raw": "14d", "rollups": {"minute": "90d", "hour": "730d"}},
        "paused": false,
        "deletionPolicy": "Retain",
    });
    for name in ["bare", "empty"] {
        assert_eq!(plane.get("mn", name)["spec"], defaults, "{name}");
    }
    plane
        .apply(&node(
            "partial",
            json!({"processes": {"commandLine": "Off"}, "interval": "1h"}),
        ))
        .expect("valid");
    let partial = plane.get("mnode", "partial");
    // What the API server gives, our type reads and writes back as it was.
    let typed: nodestats_k8s::MonitoredNode =
        serde_json::from_value(partial.clone()).expect("read");
    let mut again = serde_json::to_value(&typed).expect("written");
    assert_eq!(again["spec"], partial["spec"]);
    again["metadata"] = json!({"name": "partial"});
    let applied = plane.apply(&again.to_string()).expect("taken");
    assert!(
        applied.contains("unchanged") || applied.contains("configured"),
        "{applied}"
    );
    assert_eq!(plane.get("mn", "partial")["spec"], partial["spec"]);
    assert_eq!(
        partial["spec"]["processes"],
        json!({"enabled": true, "commandLine": "Off"})
    );
    assert_eq!(partial["spec"]["retention"], defaults["retention"]);
    for (spec, said) in [
        (json!({"interval": "500ms"}), "spec.interval"),
        (json!({"interval": "0s"}), "spec.interval"),
        (json!({"interval": "2h"}), "interval is from 1s to 1h"),
        (json!({"interval": "61m"}), "interval is from 1s to 1h"),
        (json!({"interval": 10}), "spec.interval"),
        (
            json!({"processes": {"commandLine": "Plain"}}),
            "supported values",
        ),
        (
            json!({"retention": {"raw": "forever"}}),
            "spec.retention.raw",
        ),
        (json!({"deletionPolicy": "Keep"}), "supported values"),
        (json!({"paused": "yes"}), "spec.paused"),
    ] {
        let error = plane
            .apply(&node("wrong", spec.clone()))
            .expect_err("rejected");
        let error = format!("{error:#}");
        assert!(error.contains(said), "{spec}: {error}");
    }
    // A UID never changes.
    let status = |uid: &str| json!({"status": {"nodeUID": uid}}).to_string();
    let patch = |uid: &str| {
        let status = status(uid);
        plane.kubectl(&[
            "patch",
            "mn",
            "bare",
            "--subresource=status",
            "--type=merge",
            "-p",
            &status,
        ])
    };
    patch("first").expect("set once");
    let error = format!("{:#}", patch("second").expect_err("immutable"));
    assert!(error.contains("nodeUID never changes"), "{error}");
    let table = plane
        .kubectl(&["get", "mn", "-o", "wide"])
        .expect("a table");
    let header: Vec<&str> = table
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    let columns = [
        "NAME", "ADDRESS", "CPUS", "MEMORY", "PHASE", "AGENT", "AGE", "KERNEL", "REASON",
    ];
    assert_eq!(header, columns);
    let explained = plane
        .kubectl(&["explain", "monitorednode.spec.interval"])
        .expect("explained");
    assert!(
        explained.contains("Time between two samples"),
        "{explained}"
    );
}

/// An API in memory, and a controller for it.
struct Servers {
    api: Program,
    controller: Option<Program>,
    kubeconfig: PathBuf,
}

impl Servers {
    fn start(plane: &ControlPlane, defaults: &Value) -> Self {
        let api = Program::serve(&["api", "--listen", "127.0.0.1:0", "--database", "mem://"]);
        let mut servers = Self {
            api,
            controller: None,
            kubeconfig: plane.credentials("nodestats-controller"),
        };
        servers.start_controller(defaults);
        servers
    }

    fn start_controller(&mut self, defaults: &Value) {
        let (api, kubeconfig) = (self.api.url(), &self.kubeconfig);
        let controller = Program::quick_controller(api, kubeconfig, defaults, &[]);
        self.controller = Some(controller);
    }

    /// Ends the controller and starts it with other defaults.
    fn restart_with(&mut self, defaults: &Value) {
        if let Some(controller) = self.controller.take() {
            assert_eq!(controller.terminate().code(), Some(0));
        }
        self.start_controller(defaults);
    }
}

fn agent(plane: &ControlPlane, server: &str, node: &str, ip: &str) -> Program {
    agent_of_pod(plane, server, (node, ip), "nodestats/agent")
}

fn agent_of_pod(
    plane: &ControlPlane,
    server: &str,
    (node, ip): (&str, &str),
    pod: &str,
) -> Program {
    let (kubeconfig, token) = plane.agent_credentials(node);
    let arguments = [
        "--kubernetes",
        "--server",
        server,
        "--node-name",
        node,
        "--node-ips",
        ip,
        "--pod",
        pod,
        "--token-file",
        token.to_str().expect("UTF-8"),
    ];
    let kubeconfig = kubeconfig.display().to_string();
    Program::start(
        "nodestats-agent",
        &arguments,
        &[("KUBECONFIG", &kubeconfig)],
    )
}

fn phase(plane: &ControlPlane, node: &str) -> Option<String> {
    let said = plane
        .kubectl(&["get", "mn", node, "-o", "jsonpath={.status.phase}"])
        .ok()?;
    (!said.is_empty()).then_some(said)
}

async fn until_phase(plane: &ControlPlane, node: &str, wanted: &str) {
    eventually(&format!("{node} to be {wanted}"), async || {
        (phase(plane, node)? == wanted).then_some(())
    })
    .await;
}

/// Which manager owns which field of the spec or of the status.
fn owners(object: &Value, part: &str) -> Vec<(String, String)> {
    let mut owners = Vec::new();
    for entry in object["metadata"]["managedFields"]
        .as_array()
        .expect("fields")
    {
        for field in entry["fieldsV1"][part]
            .as_object()
            .into_iter()
            .flat_map(|fields| fields.keys())
        {
            let manager = entry["manager"].as_str().expect("a name").to_owned();
            owners.push((field.clone(), manager));
        }
    }
    owners.sort();
    owners.dedup();
    owners
}

/// Writes that the API server took of anything but Leases, tokens and the cluster's own objects.
fn writes(plane: &ControlPlane) -> u64 {
    let metrics = plane
        .kubectl(&["get", "--raw", "/metrics"])
        .expect("metrics");
    let ours = |line: &&str| {
        line.starts_with("apiserver_request_total")
            && (line.contains("resource=\"monitorednodes\"")
                || line.contains("resource=\"events\""))
            && ["POST", "PUT", "PATCH", "APPLY", "DELETE"]
                .iter()
                .any(|verb| line.contains(&format!("verb=\"{verb}\"")))
    };
    let count = |line: &str| {
        line.rsplit(' ')
            .next()
            .and_then(|count| count.parse::<f64>().ok())
    };
    metrics.lines().filter(ours).filter_map(count).sum::<f64>() as u64
}

async fn a_person_the_agent_and_the_controller_never_fight(version: Version) {
    let plane = ControlPlane::with_nodestats(version);
    let uid = plane.add_node("node-a", "192.168.2.10");
    let mut servers = Servers::start(
        &plane,
        &json!({"interval": "2s", "retention": {"raw": "7d"}}),
    );
    let agent = agent(&plane, servers.api.url(), "node-a", "192.168.2.10");
    until_phase(&plane, "node-a", "Ready").await;
    let spec = async |wanted: Value| {
        eventually(&format!("{wanted}"), async || {
            let spec = plane.get("mn", "node-a")["spec"].clone();
            (spec["interval"] == wanted["interval"] && spec["retention"]["raw"] == wanted["raw"])
                .then_some(())
        })
        .await;
    };
    spec(json!({"interval": "2s", "raw": "7d"})).await;
    let object = plane.get("mn", "node-a");
    assert_eq!(object["status"]["nodeUID"], json!(uid));
    assert_eq!(object["metadata"]["ownerReferences"][0]["uid"], json!(uid));
    assert_eq!(object["status"]["addresses"], json!(["192.168.2.10"]));
    for (field, manager) in [
        ("f:interval", "nodestats-defaults"),
        ("f:retention", "nodestats-defaults"),
    ] {
        let owner = (field.to_owned(), manager.to_owned());
        assert!(owners(&object, "f:spec").contains(&owner), "{object}");
    }
    for (field, manager) in [
        ("f:phase", "nodestats-controller"),
        ("f:bootID", "nodestats-agent"),
        ("f:agent", "nodestats-agent"),
        ("f:observedGeneration", "nodestats-controller"),
    ] {
        let owner = (field.to_owned(), manager.to_owned());
        let all = owners(&object, "f:status");
        assert!(all.contains(&owner), "{all:?}");
        assert_eq!(
            all.iter().filter(|(name, _)| name == field).count(),
            1,
            "{all:?}"
        );
    }
    // A person takes one field, by what people use: apply.
    plane
        .apply(&node("node-a", json!({"interval": "1s"})))
        .expect("the defaults yield");
    // The agent follows within seconds, without a restart.
    let client = servers.api.client();
    let fresh = async || {
        let nodes = client.freshness().await.ok()?;
        nodes.into_iter().find(|node| node.uid == uid)
    };
    eventually("the person's interval in the registration", async || {
        (fresh().await?.registration?.interval_seconds == 1).then_some(())
    })
    .await;
    // Another default reaches what nobody edited, and the person's field wins.
    servers.restart_with(&json!({"interval": "5s", "retention": {"raw": "3d"}}));
    spec(json!({"interval": "1s", "raw": "3d"})).await;
    nothing_is_written_for_a_minute(&plane).await;
    // Paused by a person: no samples, and no alarm.
    plane
        .apply(&node("node-a", json!({"interval": "1s", "paused": true})))
        .expect("valid");
    until_phase(&plane, "node-a", "Paused").await;
    let last = fresh().await.and_then(|node| node.last_sample);
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(
        fresh().await.and_then(|node| node.last_sample),
        last,
        "sampled while paused"
    );
    plane
        .apply(&node("node-a", json!({"interval": "1s"})))
        .expect("valid");
    until_phase(&plane, "node-a", "Ready").await;
    // A good-bye is a mark, and no node goes with it.
    assert_eq!(agent.terminate().code(), Some(0));
    assert_eq!(
        plane.get("mn", "node-a")["status"]["agent"]["state"],
        json!("Stopping")
    );
    assert_eq!(get(&client, "/nodes").await, Some(json!(["192.168.2.10"])));
    until_phase(&plane, "node-a", "Stale").await;
    let events = plane.kubectl(&["get", "events.events.k8s.io", "-n", "default", "-o", "json"]);
    let events: Value = serde_json::from_str(&events.expect("events")).expect("JSON");
    let reasons: Vec<&str> = events["items"]
        .as_array()
        .expect("a list")
        .iter()
        .filter(|event| event["regarding"]["kind"] == "MonitoredNode")
        .filter_map(|event| event["reason"].as_str())
        .collect();
    // At an interval of a second a node is stale after a few: a server that takes longer to come back is told of
    // as well, with the end of it. Nothing is told twice.
    let count = |reason: &str| reasons.iter().filter(|one| **one == reason).count();
    let silences = count("NodeStale");
    assert_eq!(count("NodePaused"), 1, "{reasons:?}");
    assert_eq!(count("NodeReports"), silences, "{reasons:?}");
    assert!((1..=2).contains(&silences), "{reasons:?}");
    // And the node's own history has them, when Kubernetes has forgotten.
    let phases = eventually("the phases in the history", async || {
        let events = get(&client, &format!("/nodes/{uid}/events?kind=node_phase")).await?;
        let phases = events.as_array()?.iter();
        let phases: Vec<String> = phases
            .filter_map(|event| event["phase"].as_str().map(str::to_owned))
            .collect();
        phases
            .last()
            .is_some_and(|phase| phase == "Stale")
            .then_some(phases)
    })
    .await;
    let kept = ["Ready", "Paused", "Ready", "Stale"];
    assert!(phases.ends_with(&kept.map(str::to_owned)), "{phases:?}");
    let told = get(
        &client,
        &format!("/nodes/{uid}/events?kind=paused,agent_stopped"),
    )
    .await;
    let told = told.expect("events");
    let told: Vec<&Value> = told
        .as_array()
        .expect("a list")
        .iter()
        .map(|event| &event["kind"])
        .collect();
    assert_eq!(told, ["paused", "agent_stopped"]);
    // The Node is deleted: the API retires the life, by comparing.
    plane
        .kubectl(&["delete", "node", "node-a"])
        .expect("deleted");
    eventually("the node to be retired", async || {
        (get(&client, "/nodes").await? == json!([])).then_some(())
    })
    .await;
}

/// At rest nothing is written but the Lease. Pressure on this machine may begin or end meanwhile,
/// which is worth a write: then another minute is looked at.
async fn nothing_is_written_for_a_minute(plane: &ControlPlane) {
    eventually("rest", async || {
        let before = writes(plane);
        tokio::time::sleep(Duration::from_secs(5)).await;
        (writes(plane) == before).then_some(())
    })
    .await;
    for _ in 0..5 {
        let object = || plane.get("mn", "node-a")["status"]["conditions"].clone();
        let (conditions, before) = (object(), writes(plane));
        tokio::time::sleep(Duration::from_mins(1)).await;
        let after = writes(plane);
        if object() == conditions {
            assert_eq!(after, before, "something is written at rest");
            return;
        }
    }
    panic!("the conditions of node-a changed in each of five minutes");
}

/// What the admission policy refuses, by the token of an agent's pod.
async fn an_agent_writes_what_is_its_own_and_nothing_else(version: Version) {
    let plane = ControlPlane::with_nodestats(version);
    let uid = plane.add_node("node-a", "192.168.2.10");
    let other = plane.add_node("node-b", "192.168.2.11");
    let agent = plane.agent_credentials("node-a").0.display().to_string();
    // Bound to no pod: of no node.
    let unbound = plane.credentials("nodestats-agent").display().to_string();
    let object = |name: &str, owner: &str, more: Value| {
        let mut object = json!({
            "apiVersion": "nodestats.dev/v1alpha1", "kind": "MonitoredNode",
            "metadata": {"name": name, "ownerReferences": [
                {"apiVersion": "v1", "kind": "Node", "name": name, "uid": owner},
            ]},
        });
        let fields = more.as_object().expect("fields").clone();
        for (key, value) in fields {
            match (key.as_str(), object["metadata"].as_object_mut()) {
                ("spec", _) => object["spec"] = value,
                (_, Some(metadata)) => drop(metadata.insert(key, value)),
                _ => unreachable!("an object has metadata"),
            }
        }
        object.to_string()
    };
    let apply = |kubeconfig: &str, document: &str| {
        let arguments = ["apply", "--server-side", "--field-manager=nodestats-agent"];
        let arguments = [&arguments[..], &["--kubeconfig", kubeconfig, "-f", "-"]].concat();
        plane.kubectl_with(&arguments, document)
    };
    let patch = |patch: &Value| {
        let patch = patch.to_string();
        let arguments = [
            "patch",
            "mn",
            "node-a",
            "--type=merge",
            "--kubeconfig",
            &agent,
        ];
        plane.kubectl(&[&arguments[..], &["-p", &patch]].concat())
    };
    let apply_status = |status: &Value| {
        let document = json!({
            "apiVersion": "nodestats.dev/v1alpha1", "kind": "MonitoredNode",
            "metadata": {"name": "node-a"}, "status": status,
        });
        let mut arguments = vec!["apply", "--server-side", "--subresource=status"];
        arguments.extend([
            "--field-manager=nodestats-agent",
            "--kubeconfig",
            &agent,
            "-f",
            "-",
        ]);
        plane.kubectl_with(&arguments, &document.to_string())
    };
    let refused = |answer: anyhow::Result<String>, why: &str| {
        let error = format!("{:#}", answer.expect_err(why));
        assert!(error.contains(why), "{error}");
    };
    let own = "an agent writes the MonitoredNode of its own Node";
    refused(apply(&agent, &object("node-b", &other, json!({}))), own);
    refused(apply(&unbound, &object("node-a", &uid, json!({}))), own);
    for owner in ["another", &other] {
        let document = object("node-a", owner, json!({}));
        refused(apply(&agent, &document), "is owned by its Node");
    }
    // Another owner beside it would keep the object when its Node goes.
    let owners = [("node-a", &uid), ("node-b", &other)];
    let owners = owners
        .map(|(name, uid)| json!({"apiVersion": "v1", "kind": "Node", "name": name, "uid": uid}));
    let owners = json!({"ownerReferences": owners});
    let document = object("node-a", &uid, owners.clone());
    refused(apply(&agent, &document), "by nobody else");
    for spec in [
        json!({"interval": "1s"}),
        json!({"processes": {"commandLine": "Full"}}),
        json!({"deletionPolicy": "Purge"}),
        json!({"retention": {"raw": "1d"}}),
    ] {
        let document = object("node-a", &uid, json!({"spec": spec}));
        refused(apply(&agent, &document), "does not write the spec");
    }
    let document = object(
        "node-a",
        &uid,
        json!({"finalizers": ["nodestats.dev/mine"]}),
    );
    refused(apply(&agent, &document), "holds up no deletion");
    let document = object("node-a", &uid, json!({}));
    apply(&agent, &document).expect("its own");
    // It is there: nothing of it becomes the agent's.
    let paused = json!({"spec": {"paused": true}});
    refused(patch(&paused), "does not write the spec");
    let owners = json!({"metadata": owners});
    refused(patch(&owners), "by nobody else");
    let finalizers = json!({"metadata": {"finalizers": ["nodestats.dev/mine"]}});
    refused(patch(&finalizers), "holds up no deletion");
    let condition = |kind: &str| {
        json!({"conditions": [{
            "type": kind, "status": "True", "reason": "Test", "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }]})
    };
    let controllers = "nothing that is the controller's";
    for theirs in [json!({"phase": "Ready"}), condition("Ready")] {
        refused(apply_status(&theirs), controllers);
    }
    apply_status(&json!({"kernel": "6.1"})).expect("a fact of the node");
    apply_status(&condition("CPUPressure")).expect("the pressure on it");
    // A person changes what is theirs, and the agent goes on.
    plane
        .kubectl(&[
            "patch",
            "mn",
            "node-a",
            "--type=merge",
            "-p",
            r#"{"spec": {"interval": "7s"}}"#,
        ])
        .expect("a person's");
    apply(&agent, &document).expect("its own");
    apply_status(&json!({"kernel": "6.2"})).expect("a fact of the node");
    assert_eq!(plane.get("mn", "node-a")["spec"]["interval"], "7s");
}

async fn no_service_account_may_do_more_than_its_work(version: Version) {
    let plane = ControlPlane::with_nodestats(version);
    let may = |account: &str, verb: &str, resource: &str, extra: &[&str]| {
        let who = format!("--as=system:serviceaccount:nodestats:{account}");
        let mut arguments = vec!["auth", "can-i", verb, resource, &who];
        arguments.extend(extra);
        // `kubectl auth can-i` answers no by failing, and says so.
        match plane.kubectl(&arguments) {
            Ok(answer) => answer.trim() == "yes",
            Err(error) => {
                let said = format!("{error:#}");
                assert!(said.contains("failed (exit status: 1)"), "{said}");
                false
            }
        }
    };
    let everywhere: &[&str] = &["--all-namespaces"];
    for account in ["nodestats-agent", "nodestats-controller", "nodestats-api"] {
        for (verb, resource) in [
            ("get", "secrets"),
            ("list", "secrets"),
            ("get", "pods"),
            ("delete", "pods"),
            ("get", "pods/log"),
            ("create", "pods/exec"),
            ("get", "nodes/proxy"),
            ("create", "pods"),
            ("update", "nodes"),
            ("delete", "monitorednodes.nodestats.dev"),
            ("delete", "nodes"),
            ("impersonate", "users"),
            ("create", "clusterrolebindings"),
            ("escalate", "clusterroles"),
            ("*", "*"),
            ("get", "configmaps"),
            ("create", "serviceaccounts/token"),
        ] {
            assert!(
                !may(account, verb, resource, everywhere),
                "{account} may {verb} {resource}"
            );
        }
    }
    // The controller alone tells what pods are called.
    for (account, may_list) in [
        ("nodestats-agent", false),
        ("nodestats-api", false),
        ("nodestats-controller", true),
    ] {
        assert_eq!(
            may(account, "list", "pods", everywhere),
            may_list,
            "{account}"
        );
    }
    for (verb, resource) in [
        ("list", "nodes"),
        ("get", "nodes"),
        ("watch", "nodes"),
        ("list", "monitorednodes.nodestats.dev"),
        ("update", "monitorednodes.nodestats.dev"),
        ("create", "events.events.k8s.io"),
        ("get", "leases.coordination.k8s.io"),
    ] {
        assert!(
            !may("nodestats-agent", verb, resource, everywhere),
            "an agent may {verb} {resource}"
        );
    }
    for (verb, resource) in [
        ("create", "monitorednodes.nodestats.dev"),
        ("get", "leases.coordination.k8s.io"),
        ("update", "monitorednodes.nodestats.dev"),
        ("patch", "nodes"),
    ] {
        assert!(
            !may("nodestats-controller", verb, resource, everywhere),
            "the controller may {verb} {resource}"
        );
    }
    assert!(!may(
        "nodestats-controller",
        "update",
        "leases.coordination.k8s.io/other",
        &["-n", "nodestats"]
    ));
    assert!(!may(
        "nodestats-api",
        "get",
        "monitorednodes.nodestats.dev",
        &[]
    ));
    // The certificate is the controller's to make, and the API's to show.
    let own: &[&str] = &["-n", "nodestats"];
    for (account, verb, resource, expected) in [
        (
            "nodestats-controller",
            "update",
            "secrets/nodestats-tls",
            true,
        ),
        ("nodestats-controller", "get", "secrets/other", false),
        ("nodestats-api", "watch", "secrets/nodestats-tls", true),
        ("nodestats-api", "update", "secrets/nodestats-tls", false),
        ("nodestats-agent", "watch", "secrets/nodestats-tls", false),
        ("nodestats-agent", "watch", "configmaps/nodestats-ca", true),
        ("nodestats-agent", "patch", "configmaps/nodestats-ca", false),
        (
            "nodestats-controller",
            "patch",
            "configmaps/nodestats-ca",
            true,
        ),
    ] {
        let is_allowed = may(account, verb, resource, own);
        assert_eq!(is_allowed, expected, "{account}: {verb} {resource}");
    }
    // And what they need, they may: the same question has two answers.
    for (account, verb, resource) in [
        ("nodestats-agent", "watch", "monitorednodes.nodestats.dev"),
        ("nodestats-agent", "patch", "monitorednodes.nodestats.dev"),
        ("nodestats-controller", "list", "nodes"),
        ("nodestats-controller", "create", "events.events.k8s.io"),
    ] {
        assert!(
            may(account, verb, resource, &[]),
            "{account} may not {verb} {resource}"
        );
    }
    // No rule of ours has a wildcard.
    for role in ["clusterroles", "roles"] {
        let roles = plane
            .kubectl(&["get", role, "-A", "-o", "json"])
            .expect("roles");
        let roles: Value = serde_json::from_str(&roles).expect("JSON");
        let ours = roles["items"]
            .as_array()
            .expect("a list")
            .iter()
            .filter(|role| {
                role["metadata"]["name"]
                    .as_str()
                    .is_some_and(|name| name.starts_with("nodestats"))
            });
        let mut count = 0;
        for role in ours {
            count += 1;
            assert!(!role["rules"].to_string().contains("\"*\""), "{role}");
        }
        assert!(count > 0, "there are no {role} of ours");
    }
}

async fn another_replica_leads_when_the_leader_is_killed(version: Version) {
    let plane = ControlPlane::with_nodestats(version);
    plane.add_node("node-a", "192.168.2.10");
    let api = Program::serve(&["api", "--listen", "127.0.0.1:0", "--database", "mem://"]);
    let kubeconfig = plane.credentials("nodestats-controller");
    let start = |identity: &str| {
        let arguments = ["--identity", identity, "--poll", "1s"];
        Program::controller(api.url(), &kubeconfig, &arguments)
    };
    let holder = || {
        let lease = [
            "get",
            "lease",
            "-n",
            "nodestats",
            "nodestats-controller",
            "-o",
        ];
        let arguments: Vec<&str> = lease
            .into_iter()
            .chain(["jsonpath={.spec.holderIdentity}"])
            .collect();
        plane.kubectl(&arguments).ok()
    };
    let first = start("first");
    eventually("a leader", async || (holder()? == "first").then_some(())).await;
    let second = start("second");
    // It stands by: the leader goes on to lead.
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(holder().as_deref(), Some("first"));
    let killed = Instant::now();
    first.kill();
    eventually("another leader", async || {
        (holder()? == "second").then_some(())
    })
    .await;
    assert!(
        killed.elapsed() < Duration::from_secs(15),
        "{:?}",
        killed.elapsed()
    );
    // It does the work.
    let _agent = agent(&plane, api.url(), "node-a", "192.168.2.10");
    until_phase(&plane, "node-a", "Ready").await;
    // One that ends in order gives the lease up: nobody waits until it expires.
    let third = start("third");
    let ended = Instant::now();
    assert_eq!(second.terminate().code(), Some(0));
    eventually("the third", async || (holder()? == "third").then_some(())).await;
    assert!(
        ended.elapsed() < Duration::from_secs(8),
        "{:?}",
        ended.elapsed()
    );
    drop(third);
}

async fn an_agent_without_definition_or_permission_says_so_and_goes_on(version: Version) {
    let plane = ControlPlane::with_nodestats(version);
    let uid = plane.add_node("node-a", "192.168.2.10");
    plane
        .kubectl(&["delete", "crd", "monitorednodes.nodestats.dev"])
        .expect("deleted");
    let api = Program::serve(&["api", "--listen", "127.0.0.1:0", "--database", "mem://"]);
    let (kubeconfig, token) = plane.agent_credentials("node-a");
    let kubeconfig = kubeconfig.display().to_string();
    let log = plane.file("agent.log");
    let listen = format!("127.0.0.1:{}", free_port());
    let arguments = [
        "--kubernetes",
        "--server",
        api.url(),
        "--node-name",
        "node-a",
        "--node-ips",
        "192.168.2.10",
        "--interval",
        "1s",
        "--token-file",
        token.to_str().expect("UTF-8"),
        "--admin-listen",
        &listen,
    ];
    let _agent = Program::start_logged(
        "nodestats-agent",
        &arguments,
        &[("KUBECONFIG", &kubeconfig)],
        &log,
    );
    let admin =
        nodestats_wire::client::Client::new(&format!("http://{listen}"), Duration::from_secs(5))
            .expect("a URL");
    let said = async |words: &str| {
        eventually(words, async || {
            std::fs::read_to_string(&log)
                .ok()?
                .contains(words)
                .then_some(())
        })
        .await;
    };
    said("its definition (crds/) is not installed").await;
    assert!(
        admin
            .get("/readyz", &[])
            .await
            .is_err_and(|error| error.status() == Some(503))
    );
    assert!(admin.get("/healthz", &[]).await.is_ok());
    // It samples and buffers all the while: what waits is there when the node is registered.
    let client = api.client();
    let registration = serde_json::from_value(json!({
        "hostname": "node-a", "ip": "192.168.2.10", "interval_seconds": 1,
        "retention_seconds": 86_400, "deletion_policy": "retain",
    }));
    client
        .register_in_cluster(&uid, &registration.expect("valid"))
        .await
        .expect("registered");
    eventually("samples", async || {
        let history = get(&client, "/192.168.2.10?from=0").await?;
        (history.as_object()?.len() >= 3).then_some(())
    })
    .await;
    // The definition is there, and the permission is not.
    plane
        .kubectl(&["delete", "clusterrolebinding", "nodestats-agent"])
        .expect("deleted");
    plane.reinstall_definition();
    said("service account may not do this").await;
    assert!(
        admin
            .get("/readyz", &[])
            .await
            .is_err_and(|error| error.status() == Some(503))
    );
    plane.reinstall();
    eventually("readiness", async || {
        admin.get("/readyz", &[]).await.ok().map(drop)
    })
    .await;
    assert_eq!(plane.get("mn", "node-a")["status"]["nodeUID"], json!(uid));
    let text = std::fs::read_to_string(&log).expect("a log");
    assert_eq!(
        text.matches("is not installed").count(),
        1,
        "one line, not one for each attempt: {text}"
    );
}

async fn what_lists_tell_is_acted_on_and_plain_hosts_are_left_alone(version: Version) {
    let plane = ControlPlane::with_nodestats(version);
    let (kept, purged) = (
        plane.add_node("kept", "192.168.2.10"),
        plane.add_node("purged", "192.168.2.11"),
    );
    plane.add_node("bare", "192.168.2.12");
    plane.add_node("windows", "192.168.2.13");
    plane
        .kubectl(&["label", "node", "windows", "kubernetes.io/os=windows"])
        .expect("labelled");
    let api = Program::serve(&["api", "--listen", "127.0.0.1:0", "--database", "mem://"]);
    let client = api.client();
    // A plain host of another origin, whose UID no Node has.
    let plain = nodestats_wire::v1::Registration::new("10.9.9.9", "plain");
    client.register(&plain).await.expect("registered");
    let kubeconfig = plane.credentials("nodestats-controller");
    let listen = format!("127.0.0.1:{}", free_port());
    let arguments = [
        "--identity",
        "one",
        "--poll",
        "1s",
        "--agent-patience",
        "3s",
        "--admin-listen",
        &listen,
    ];
    let _agents = [
        agent(&plane, api.url(), "kept", "192.168.2.10"),
        agent(&plane, api.url(), "purged", "192.168.2.11"),
    ];
    eventually("the agents' objects", async || {
        let both = ["get", "mn", "kept", "purged"];
        plane.kubectl(&both).ok().map(drop)
    })
    .await;
    let _controller = Program::controller(api.url(), &kubeconfig, &arguments);
    for node in ["kept", "purged"] {
        until_phase(&plane, node, "Ready").await;
    }
    plane
        .apply(&node("purged", json!({"deletionPolicy": "Purge"})))
        .expect("valid");
    eventually("the policy in the registration", async || {
        let nodes = client.freshness().await.ok()?;
        let node = nodes.into_iter().find(|node| node.uid == purged)?;
        (node.registration?.deletion_policy == nodestats_wire::v1::DeletionPolicy::Purge)
            .then_some(())
    })
    .await;
    // The Node without an agent is told about, once, and the one that has none by choice is not.
    let missing = || {
        let events = plane.kubectl(&["get", "events.events.k8s.io", "-A", "-o", "json"]);
        let events: Value = serde_json::from_str(&events.expect("events")).expect("JSON");
        let all = events["items"].as_array().expect("a list");
        let missing = all
            .iter()
            .filter(|event| event["reason"] == "NodestatsAgentMissing");
        let about = missing.map(|event| event["regarding"]["name"].as_str().map(str::to_owned));
        about.collect::<Vec<_>>()
    };
    let bare = vec![Some("bare".to_owned())];
    eventually("the Event", async || (!missing().is_empty()).then_some(())).await;
    let admin =
        nodestats_wire::client::Client::new(&format!("http://{listen}"), Duration::from_secs(5));
    let metrics = admin
        .expect("a URL")
        .get("/metrics", &[])
        .await
        .expect("metrics");
    let metrics = String::from_utf8(metrics).expect("UTF-8");
    assert!(
        metrics.contains("nodestats_controller_nodes_without_agent 1"),
        "{metrics}"
    );
    // Both Nodes go.
    plane
        .kubectl(&["delete", "node", "kept", "purged"])
        .expect("deleted");
    eventually("both to be retired", async || {
        (get(&client, "/nodes").await? == json!(["10.9.9.9"])).then_some(())
    })
    .await;
    let history = async |uid: &str| get(&client, &format!("/{uid}?from=0")).await;
    let samples = history(&kept)
        .await
        .and_then(|history| history.as_object().map(serde_json::Map::len));
    assert!(
        samples.is_some_and(|samples| samples > 0),
        "the history stays"
    );
    assert_eq!(history(&purged).await, None, "the history is removed");
    assert_eq!(missing(), bare);
}

async fn a_node_that_is_made_anew_is_another_one(version: Version) {
    let plane = ControlPlane::with_nodestats(version);
    let (name, ip) = ("node-a", "192.168.2.10");
    let first = plane.add_node(name, ip);
    let servers = Servers::start(&plane, &json!({"interval": "1s"}));
    let older = agent(&plane, servers.api.url(), name, ip);
    until_phase(&plane, name, "Ready").await;
    // Two agents on one node, as an update may have them: the later one has the status, and they
    // do not write against each other.
    let later = agent_of_pod(&plane, servers.api.url(), (name, ip), "nodestats/later");
    let pod = || plane.get("mn", name)["status"]["agent"]["pod"].clone();
    eventually("the later agent", async || {
        (pod() == "nodestats/later").then_some(())
    })
    .await;
    eventually("peace", async || {
        let before = writes(&plane);
        tokio::time::sleep(Duration::from_secs(3)).await;
        (writes(&plane) == before).then_some(())
    })
    .await;
    assert_eq!(older.terminate().code(), Some(0));
    assert_eq!(pod(), "nodestats/later");
    // The Node is deleted and made anew while the agent lives, and the kubelet writes the token
    // anew. What the garbage collector does is done by hand: there is none.
    plane.kubectl(&["delete", "node", name]).expect("deleted");
    let second = plane.add_node(name, ip);
    assert_ne!(first, second);
    plane.agent_credentials(name);
    plane.kubectl(&["delete", "mn", name]).expect("deleted");
    assert_eq!(later.wait().code(), Some(1), "it begins anew");
    // As the kubelet starts it anew.
    let _agent = agent(&plane, servers.api.url(), name, ip);
    until_phase(&plane, name, "Ready").await;
    assert_eq!(plane.get("mn", name)["status"]["nodeUID"], json!(second));
    let client = servers.api.client();
    let lives = async || {
        let lives = get(&client, "/nodes?state=all&view=full").await?;
        let lives = lives.as_array()?.iter().map(|life| {
            let text = |field: &str| life[field].as_str().unwrap_or_default().to_owned();
            (text("uid"), text("state"))
        });
        Some(lives.collect::<std::collections::BTreeMap<_, _>>())
    };
    eventually("both lives", async || {
        let lives = lives().await?;
        let state = |uid: &String| lives.get(uid).map(String::as_str);
        ((state(&first), state(&second)) == (Some("gone"), Some("live"))).then_some(())
    })
    .await;
}

/// What each value changes is said by the API server, not by this test: it refuses what is wrong.
async fn the_chart_is_taken_whatever_its_values(version: Version) {
    let plane = ControlPlane::with_nodestats(version);
    // What is new is tried, not whether it may be changed.
    let workloads = ["delete", "-n", "nodestats", "sts,deploy,ds", "--all"];
    plane.kubectl(&workloads).expect("deleted");
    // A trial makes no account, and the pod of `helm test` asks for one.
    let account = [
        "create",
        "serviceaccount",
        "nodestats-test",
        "-n",
        "nodestats",
    ];
    plane.kubectl(&account).expect("an account");
    let objects = |values: &[&str]| {
        let said = plane.try_chart(values);
        let said = said.unwrap_or_else(|error| panic!("{values:?}: {error:#}"));
        let names = said.lines().filter_map(|line| line.split(' ').next());
        names.map(str::to_owned).collect::<Vec<_>>()
    };
    let has = |objects: &[String], name: &str| objects.iter().any(|found| found == name);
    let default = objects(&[]);
    for name in [
        "customresourcedefinition.apiextensions.k8s.io/monitorednodes.nodestats.dev",
        "daemonset.apps/nodestats-agent",
        "statefulset.apps/nodestats-api",
        "deployment.apps/nodestats-controller",
        "poddisruptionbudget.policy/nodestats-controller",
    ] {
        assert!(has(&default, name), "{name} is not in {default:?}");
    }
    // One replica that may not be disrupted would hold up a drain for ever.
    assert!(!has(&default, "poddisruptionbudget.policy/nodestats-api"));
    assert!(!has(
        &objects(&["controller.replicas=1"]),
        "poddisruptionbudget.policy/nodestats-controller"
    ));
    let replicas = objects(&[
        "database.url=\"wss://database:8000\"",
        "database.existingSecret=\"database\"",
        "database.caKey=\"ca.crt\"",
        "api.replicas=2",
    ]);
    for name in [
        "deployment.apps/nodestats-api",
        "poddisruptionbudget.policy/nodestats-api",
    ] {
        assert!(has(&replicas, name), "{name} is not in {replicas:?}");
    }
    assert!(!has(&replicas, "statefulset.apps/nodestats-api"));
    let fenced =
        objects(&["networkPolicy={\"enabled\": true, \"from\": [{\"namespaceSelector\": {}}]}"]);
    assert!(has(
        &fenced,
        "networkpolicy.networking.k8s.io/nodestats-api"
    ));
    let without = objects(&["crds.install=false"]);
    assert!(
        !without
            .iter()
            .any(|name| name.starts_with("customresourcedefinition"))
    );
    for values in [
        &[
            "agent.processIo=true",
            "agent.buffer={\"mib\": 64, \"hostPath\": \"/var/lib/nodestats-agent\"}",
            "agent.seLinuxOptions={\"type\": \"spc_t\"}",
        ][..],
        &["agent.hostRoot={\"enabled\": false}"],
        &["agent.hostRoot.mount=\"RecursiveReadOnly\""],
        &[
            "agent.nodeSelector={\"pool\": \"a\"}",
            "agent.maxUnavailable=3",
        ],
        &["agent.priorityClassName=\"system-node-critical\""],
        &[
            "api.persistence.enabled=false",
            "api.portForward.enabled=false",
        ],
        &["api.persistence={\"storageClass\": \"fast\", \"whenDeleted\": \"Delete\"}"],
        &["nodeDefaults={\"interval\": \"30s\", \"retention\": {\"raw\": \"7d\"}}"],
        &[
            "image={\"registry\": \"registry.example/team\", \"pullSecrets\": [{\"name\": \"pull\"}]}",
        ],
        &[
            "api.image.digest=\"sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\"",
        ],
        &[
            "commonLabels={\"team\": \"a\"}",
            "podAnnotations={\"a\": \"b\"}",
            "crds.keep=true",
        ],
        &["agent.extraEnv=[{\"name\": \"RUST_LOG\", \"value\": \"debug\"}]"],
    ] {
        objects(values);
    }
}
