//! Pods: what is told of them, what is answered about them, live and gone, and to whom.

mod server;

use http::Request;
use nodestats_api::aggregated::aggregated_router;
use nodestats_testkit::Frames;
use nodestats_wire::{Timestamp, routes};
use serde_json::{Value, json};
use server::{Book, CONTROLLER, Server};

const UID: &str = "3c1f5a52-8e37-4c5e-9f5d-0a2b3c4d5e6f";
const CONTAINER: &str = "a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1";

fn time(text: &str) -> Timestamp {
    text.parse().expect("a time")
}

/// What Kubernetes says of a pod.
fn pod(namespace: &str, name: &str, uid: &str, created: &str) -> Value {
    json!({
        "uid": uid, "namespace": namespace, "name": name, "created_at": created,
        "node": "node-a", "node_uid": "uid-a", "phase": "Running",
        "workload": {"kind": "Deployment", "name": "web"}, "labels": {"app": "web"},
        "containers": [{
            "name": "app", "image": "web:1", "cpu_request_millicores": 100,
            "memory_request_bytes": 67_108_864,
            "runs": [{"container_id": CONTAINER}],
        }],
    })
}

fn told(pods: &[Value]) -> Value {
    let told = |pod: &Value| json!({"digest": "d", "pod": pod});
    json!({"pods": pods.iter().map(told).collect::<Vec<_>>()})
}

/// A node with a pod `team-a/web` of which there are three samples, a second apart.
async fn with_pod() -> Server {
    let server = Server::new().await;
    let registration = json!({
        "hostname": "node-a", "ip": "192.168.2.10", "interval_seconds": 10,
        "retention_seconds": 3_000_000_000_u64, "deletion_policy": "retain",
    });
    let path = routes::registration("uid-a");
    assert_eq!(server.put(&path, &registration).await.status, 204);
    let mut frames = Frames::new(time("2026-03-01 13:45:00Z")).in_pod(UID, CONTAINER);
    for _ in 0..3 {
        assert_eq!(
            server.put_frames("uid-a", frames.next_frame()).await.status,
            204
        );
    }
    let pods = [
        pod("team-a", "web", UID, "2026-03-01T13:00:00Z"),
        pod("team-b", "other", "uid-of-other", "2026-03-01T12:00:00Z"),
    ];
    assert_eq!(server.put("/pods", &told(&pods)).await.status, 204);
    server
}

#[tokio::test]
async fn a_pod_is_answered_by_its_name_with_what_it_uses() {
    let server = with_pod().await;
    let view = server.get("/namespaces/team-a/pods/web").await.json();
    assert_eq!(
        (&view["uid"], &view["state"]),
        (&json!(UID), &json!("live"))
    );
    let usage = &view["usage"];
    assert_eq!(usage["cpu"]["usage_millicores"], 200.0);
    let container = &usage["containers"][0];
    assert_eq!(container["name"], "app");
    assert_eq!(container["cpu"]["limit_millicores"], 200.0);
    assert_eq!(container["cpu"]["request_percent"], 200.0);
    assert_eq!(container["cpu"]["throttled_percent"], 80.0);
    // The process used a whole CPU by its own counters: the books say so.
    assert_eq!(container["cpu"]["processes_millicores"], 1000.0);
    assert_eq!(container["cpu"]["remainder_millicores"], -800.0);
    assert_eq!(container["memory"]["working_set_bytes"], 64 << 20);
    assert_eq!(container["memory"]["request_percent"], 100.0);
    assert_eq!(container["memory"]["limit_percent"], 50.0);
    let cpu = server
        .get("/namespaces/team-a/pods/web/cpu?container=app")
        .await
        .json();
    assert_eq!(cpu["usage_millicores"], 200.0);
    assert_eq!(cpu["time"], "2026-03-01T13:45:02Z");
    let network = server
        .get("/namespaces/team-a/pods/web/network")
        .await
        .json();
    assert_eq!(network["interfaces"][0]["receive_bytes_per_second"], 1000.0);
    let pids = server.get("/namespaces/team-a/pods/web/proc").await.json();
    assert_eq!(pids, json!([7]));
    let rows = server
        .get("/namespaces/team-a/pods/web/proc?view=full&sort=cpu")
        .await
        .json();
    assert_eq!(
        rows["processes"][0]["cgroup"],
        format!("/kubepods/pod{UID}/{CONTAINER}")
    );
    // The past: each sample, and as it was.
    let path = "/namespaces/team-a/pods/web/memory?from=2026-03-01&to=2026-03-02";
    let history = server.get(path).await.json();
    // Three samples, and the silence after them.
    assert_eq!(history.as_object().map(serde_json::Map::len), Some(4));
    let at = server
        .get("/namespaces/team-a/pods/web/cpu?at=2026-03-01+13:45:01")
        .await
        .json();
    assert_eq!(at["usage_seconds_total"], 0.2);
    // What cannot be meant.
    for (path, status) in [
        ("/namespaces/team-a/pods/nobody", 404),
        ("/namespaces/team-b/pods/web/cpu", 404),
        ("/namespaces/team-b/pods/other/cpu", 404),
        ("/namespaces/team-a/pods/web/cpu?container=x", 400),
        ("/namespaces/team-a/pods/web/cpu?form=0", 400),
        ("/namespaces/team-a/pods/web?at=2026-01-01", 404),
        ("/pods?selector=(", 400),
        ("/pods?view=full&from=2026-03-01", 400),
        ("/pods?state=dead", 400),
        ("/namespaces/team-a/pods?namespace=team-b", 400),
    ] {
        assert_eq!(server.get(path).await.status, status, "{path}");
    }
}

#[tokio::test]
async fn a_node_s_pods_and_units_have_names() {
    let server = with_pod().await;
    let pods = server.get("/nodes/node-a/pods").await.json();
    assert_eq!(pods["pods"][0]["name"], "web");
    assert_eq!(pods["pods"][0]["workload"]["name"], "web");
    let history = server
        .get("/node-a/pods?from=2026-03-01&to=2026-03-02")
        .await
        .json();
    assert_eq!(
        history["2026-03-01 13:45:02"]["pods"][0]["namespace"],
        "team-a"
    );
    let units = server.get("/nodes/node-a/units").await.json();
    assert_eq!(units["units"], json!([]));
    // A third party says nothing of control groups.
    assert_eq!(server.register("10.0.0.1", "host", "h").await.status, 201);
    assert_eq!(
        server
            .put("/nodes/h", &json!({"memory": {"total_bytes": 1}}))
            .await
            .status,
        204
    );
    assert_eq!(server.get("/nodes/h/units").await.status, 404);
}

#[tokio::test]
async fn pods_are_found_by_what_they_are() {
    let server = with_pod().await;
    let names = async |query: &str| {
        let list = server.get(&format!("/pods{query}")).await.json();
        let list = list.as_array().expect("a list").clone();
        let name = |pod: &Value| pod["name"].as_str().expect("a name").to_owned();
        list.iter().map(name).collect::<Vec<_>>()
    };
    assert_eq!(names("").await, ["web", "other"]);
    for (query, expected) in [
        ("?namespace=team-b", &["other"][..]),
        ("?node=192.168.2.10", &["web", "other"]),
        ("?node=nowhere", &[]),
        ("?workload=Deployment/web", &["web", "other"]),
        ("?workload=api", &[]),
        ("?selector=app=web", &["web", "other"]),
        ("?selector=app!=web", &[]),
        ("?at=2026-03-01+12:30:00", &["other"]),
        ("?state=gone", &[]),
        ("?limit=1", &["web"]),
    ] {
        assert_eq!(names(query).await, expected, "{query}");
    }
    let full = server.get("/namespaces/team-a/pods?view=full").await.json();
    assert_eq!(full[0]["usage"]["cpu"]["usage_millicores"], 200.0);
}

#[tokio::test]
async fn a_name_outlives_its_pod_and_is_another_life_when_it_is_used_again() {
    let server = with_pod().await;
    let gone = json!({"gone": [{"uid": UID, "ended_at": "2026-03-01T14:00:00Z"}]});
    assert_eq!(server.put("/pods", &gone).await.status, 204);
    let digests = server.get("/pods?view=digests").await.json();
    assert_eq!(digests, json!([{"uid": "uid-of-other", "digest": "d"}]));
    let view = server.get("/namespaces/team-a/pods/web").await.json();
    assert_eq!(
        (&view["state"], &view["ended_at"]),
        (&json!("gone"), &json!("2026-03-01T14:00:00Z"))
    );
    assert_eq!(view["usage"]["cpu"]["usage_millicores"], 200.0);
    assert_eq!(server.get("/pods?state=gone").await.json()[0]["uid"], UID);
    // Another one takes the name.
    let again = pod("team-a", "web", "uid-of-next", "2026-03-02T10:00:00Z");
    assert_eq!(server.put("/pods", &told(&[again])).await.status, 204);
    let uid = async |query: &str| {
        let view = server
            .get(&format!("/namespaces/team-a/pods/web{query}"))
            .await;
        view.json()["uid"].clone()
    };
    assert_eq!(uid("").await, "uid-of-next");
    assert_eq!(uid("?at=2026-03-01+13:45:02").await, UID);
    let history = "/namespaces/team-a/pods/web/cpu?from=2026-03-01&to=2026-03-01+23:00:00";
    assert_eq!(
        server
            .get(history)
            .await
            .json()
            .as_object()
            .map(serde_json::Map::len),
        Some(4)
    );
    // What is told must name its pod.
    let nameless = pod("team-a", "", "u", "2026-03-02T10:00:00Z");
    let refused = server.put("/pods", &told(&[nameless])).await;
    assert_eq!(
        (refused.status, &refused.json()["field"]),
        (422, &json!("pods[0].pod.name"))
    );
}

#[tokio::test]
async fn a_team_sees_its_own_namespace_and_nothing_else() {
    let open = with_pod().await;
    let book = Book::default()
        .token("team", "team", &[])
        .token("controller", CONTROLLER, &[])
        .rule("team", "list pods", "team-a/*")
        .rule("team", "get pods", "team-a/*")
        .rule("team", "get pods/cpu", "team-a/*");
    let server = open.asking(book);
    let get = async |path: &str| server.call_as("team", ("GET", path), "").await;
    assert_eq!(get("/namespaces/team-a/pods/web/cpu").await.status, 200);
    let refused = get("/namespaces/team-a/pods/web/proc").await;
    assert_eq!(refused.status, 403);
    let detail = refused.json()["detail"].to_string();
    assert!(
        detail.contains("get of pods/proc") && detail.contains("team-a"),
        "{detail}"
    );
    // Whether there is such a pod elsewhere is not told.
    for name in ["other", "nobody"] {
        let refused = get(&format!("/namespaces/team-b/pods/{name}")).await;
        assert_eq!(refused.status, 403, "{name}");
    }
    assert_eq!(get("/nodes/node-a/pods").await.status, 403);
    assert_eq!(get("/namespaces/team-b/pods").await.status, 403);
    // A list of all is what they may see of it.
    let all = get("/pods").await.json();
    assert_eq!(all.as_array().map(Vec::len), Some(1));
    assert_eq!(all[0]["namespace"], "team-a");
    // A pod that is gone is asked about in the namespace that it had.
    let gone = json!({"gone": [{"uid": UID, "ended_at": "2026-03-01T14:00:00Z"}]}).to_string();
    assert_eq!(
        server
            .call_as("team", ("PUT", "/pods"), gone.clone())
            .await
            .status,
        403
    );
    assert_eq!(
        server
            .call_as("controller", ("PUT", "/pods"), gone)
            .await
            .status,
        204
    );
    assert_eq!(get("/namespaces/team-a/pods/web/cpu").await.status, 200);
    assert_eq!(get("/pods?view=digests").await.status, 403);
    // By the cluster's own API a list is all or nothing.
    let asked = async |path: &str| {
        let request = Request::get(format!("{}{path}", routes::AGGREGATED))
            .header("x-remote-user", "team")
            .body(axum::body::Body::empty())
            .expect("a request");
        let router = aggregated_router(server.app.clone());
        tower::ServiceExt::oneshot(router, request)
            .await
            .expect("never fails")
            .status()
            .as_u16()
    };
    assert_eq!(asked("/namespaces/team-a/pods").await, 200);
    assert_eq!(asked("/namespaces/team-a/pods/web").await, 200);
    assert_eq!(asked("/namespaces/team-b/pods").await, 403);
    assert_eq!(asked("/pods").await, 403);
}

/// The kubelet calls a pod that it has from a file by a hash, and the pod says which; so may a pod that
/// somebody else makes.
#[tokio::test]
async fn the_other_name_of_a_static_pod_leads_to_its_own_containers_alone() {
    const HASH: &str = "0123456789abcdef0123456789abcdef";
    let server = with_pod().await;
    let mut frames = Frames::new(time("2026-03-01 13:46:00Z")).in_pod(HASH, &"b2".repeat(32));
    for _ in 0..2 {
        let pushed = server.put_frames("uid-a", frames.next_frame()).await;
        assert_eq!(pushed.status, 204);
    }
    let named = |namespace: &str, name: &str, container: &str| {
        let mut pod = pod(
            namespace,
            name,
            &format!("uid-of-{name}"),
            "2026-03-01T13:00:00Z",
        );
        pod["static_uid"] = json!(HASH);
        pod["containers"][0]["runs"][0]["container_id"] = json!(container);
        pod
    };
    let own = named("kube-system", "etcd", &"b2".repeat(32));
    assert_eq!(server.put("/pods", &told(&[own])).await.status, 204);
    let cpu = server.get("/namespaces/kube-system/pods/etcd/cpu").await;
    assert_eq!(cpu.json()["usage_millicores"], 200.0);
    let name = async || server.get("/nodes/node-a/pods").await.json()["pods"][0]["name"].clone();
    assert_eq!(name().await, "etcd");
    let thief = named("team-a", "thief", &"c3".repeat(32));
    assert_eq!(server.put("/pods", &told(&[thief])).await.status, 204);
    for detail in ["cpu", "memory", "network", "proc"] {
        let path = format!("/namespaces/team-a/pods/thief/{detail}");
        assert_eq!(server.get(&path).await.status, 404, "{detail}");
    }
    let view = server.get("/namespaces/team-a/pods/thief").await.json();
    assert_eq!(view.get("usage"), None, "{view}");
    assert_ne!(name().await, "thief");
    assert_eq!(
        server
            .get("/namespaces/kube-system/pods/etcd/proc")
            .await
            .json(),
        json!([7])
    );
}
