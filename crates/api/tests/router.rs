//! The router on a real in-memory database: each route by each status that its description
//! names, and what a third party puts and gets back.

mod server;

use std::collections::BTreeSet;
use std::time::Duration;

use axum::body::Body;
use http::{Request, header};
use nodestats_api::aggregated::aggregated_router;
use nodestats_api::{Exposure, Limits, Options, openapi_document, tokens};
use nodestats_testkit::Frames;
use nodestats_wire::v1::{Purpose, TokenRequest};
use nodestats_wire::{Timestamp, routes};
use serde_json::{Value, json};
use server::{Book, Server};

fn now() -> Timestamp {
    Timestamp::from_system(std::time::SystemTime::now())
}

/// A sample with every group, as a third party would put it.
fn full_sample() -> Value {
    json!({
        "boottime": 4_334_434_344.45, "loadavg": [0.0, 0.4, 0.2],
        "cpu_usage_percent": [12.4, 1.8, 8.7, 6.9], "memory_usage_percent": 32.0,
        "cpu": { "usage_percent": 7.5, "cpus": [{ "cpu": 0, "usage_percent": 12.4, "frequency_mhz": 2400.0, "modes": { "user": 10.0, "idle": 87.6 } }] },
        "memory": { "total_bytes": 1000, "used_bytes": 320, "swap_total_bytes": 0 },
        "disk": { "devices": [{ "device": "sda", "read_bytes_per_second": 5.5 }] },
        "network": { "interfaces": [{ "interface": "eth0", "receive_errors_per_second": 0.0 }] },
        "filesystems": { "filesystems": [{ "mountpoint": "/", "total_bytes": 5, "inodes_used_percent": 1.5 }] },
        "pressure": { "cpu": { "some": { "avg10_percent": 1.0 } } },
        "processes": [{ "pid": 0, "name": "System Idle process", "status": "running" }, { "pid": 7, "name": "<b>", "cpu_percent": 3.0 }],
    })
}

const DETAILS: [&str; 6] = [
    "cpu",
    "memory",
    "disk",
    "network",
    "filesystems",
    "pressure",
];

#[tokio::test]
async fn a_third_party_gets_back_what_it_put_now_and_from_the_past() {
    let server = Server::new().await;
    let created = server
        .register("192.168.2.51", "test-node.testnet.net", "x")
        .await;
    assert_eq!(
        (created.status, created.header("location")),
        (201, "/nodes/192.168.2.51")
    );
    assert_eq!(
        server
            .register("192.168.2.51", "test-node.testnet.net", "x")
            .await
            .status,
        200
    );
    let sample = full_sample();
    let mut past = sample.clone();
    past["time"] = json!("2022-03-01 13:45:00");
    let mut later = json!({ "time": "2022-03-01T13:47:00Z", "cpu": { "usage_percent": 50.0 } });
    assert_eq!(
        server
            .put("/nodes/192.168.2.51", &json!([past, later]))
            .await
            .status,
        204
    );
    assert_eq!(server.put("/nodes/192.168.2.51", &sample).await.status, 204);
    for node in [
        "/nodes/192.168.2.51",
        "/192.168.2.51",
        "/test-node.testnet.net",
        "/nodes/x",
    ] {
        for detail in DETAILS {
            let mut now = server.get(&format!("{node}/{detail}")).await.json();
            let stamps = now
                .as_object_mut()
                .map(|now| (now.remove("time"), now.remove("age_seconds")));
            assert!(matches!(stamps, Some((Some(_), Some(_)))), "{detail}");
            assert_eq!(now, sample[detail], "{node} {detail}");
        }
        let query = "from=2022-03-01+13:45:00&to=2022-03-28+00:00:00";
        let history = server.get(&format!("{node}/cpu?{query}")).await.json();
        let expected = json!({
            "2022-03-01 13:45:00": sample["cpu"], "2022-03-01 13:47:00": later["cpu"],
        });
        assert_eq!(history, expected);
        // A sample without the group is no entry of its history.
        let memory = server.get(&format!("{node}/memory?{query}")).await.json();
        assert_eq!(memory, json!({ "2022-03-01 13:45:00": sample["memory"] }));
        let at = server
            .get(&format!("{node}/cpu?at=2022-03-01+13:46:00"))
            .await
            .json();
        assert_eq!(
            (&at["usage_percent"], &at["age_seconds"]),
            (&json!(7.5), &json!(60.0))
        );
    }
    let node = server.get("/nodes/192.168.2.51").await.json();
    for key in [
        "boottime",
        "loadavg",
        "cpu_usage_percent",
        "memory_usage_percent",
    ] {
        assert_eq!(node[key], sample[key], "{key}");
    }
    assert_eq!(server.get("/nodes/x/proc").await.json(), json!([0, 7]));
    assert_eq!(server.get("/nodes/x/proc/7").await.json()["name"], "<b>");
    let first = server
        .get("/nodes/x/proc?view=full&sort=cpu&limit=1")
        .await
        .json();
    assert_eq!(
        (&first["processes"][0]["pid"], &first["total"]),
        (&json!(7), &json!(2))
    );
    let pids = server
        .get("/x/proc?from=2022-01-01&to=2023-01-01")
        .await
        .json();
    assert_eq!(pids, json!({ "2022-03-01 13:45:00": [0, 7] }));
    // What an answer gave can be put again as it stands, its time and age included.
    later = server.get("/nodes/x").await.json();
    later["cpu"] = server.get("/nodes/x/cpu").await.json();
    assert_eq!(server.put("/nodes/x", &later).await.status, 204);
    assert_eq!(
        server
            .call("DELETE", "/nodes/192.168.2.51", "")
            .await
            .status,
        204
    );
    assert_eq!(server.get("/nodes").await.json(), json!([]));
    assert_eq!(server.get("/nodes/192.168.2.51/cpu").await.status, 404);
    assert_eq!(
        server
            .get("/192.168.2.51/cpu?from=2022-01-01&to=2022-12-31")
            .await
            .status,
        200
    );
    assert_eq!(
        server.get("/nodes?view=full&state=gone").await.json()[0]["state"],
        "gone"
    );
    assert_eq!(
        server
            .call("DELETE", "/nodes/192.168.2.51?purge=true", "")
            .await
            .status,
        204
    );
    assert_eq!(
        server.get("/192.168.2.51/cpu?from=2022-01-01").await.status,
        404
    );
}

#[tokio::test]
async fn what_is_wrong_with_a_sample_is_named_and_nothing_of_it_is_kept() {
    let server = Server::new().await;
    server.register("10.0.0.1", "a", "x").await;
    for (body, field) in [
        (json!({ "nonsense": 1 }), "nonsense"),
        (json!({ "cpu": { "usage": 1 } }), "cpu.usage"),
        (
            json!({ "memory": { "total_bytes": "many" } }),
            "memory.total_bytes",
        ),
        (
            json!({ "processes": [{ "pid": 1 }, { "name": "x" }] }),
            "processes[1].pid",
        ),
        (json!({ "time": "yesterday" }), "time"),
        (json!({ "time": "2999-01-01 00:00:00" }), "time"),
        (json!({ "ip": "10.0.0.2" }), "ip"),
        (
            json!({ "time": "2022-01-01", "cpu": { "time": "2022-01-02" } }),
            "cpu.time",
        ),
        (
            json!([{ "time": "2022-01-01" }, { "nonsense": 1 }]),
            "[1].nonsense",
        ),
        (json!([{ "time": "2022-01-01" }, { "uid": "y" }]), "[1].uid"),
    ] {
        let answer = server.put("/nodes/a", &body).await;
        assert_eq!(
            (answer.status, answer.json()["field"].as_str()),
            (422, Some(field)),
            "{body}"
        );
    }
    assert_eq!(server.store.newest("x").await.expect("read"), None);
    assert!(
        server
            .put("/nodes/a", &json!({ "time": "1800-01-01" }))
            .await
            .status
            == 422
    );
    for (body, field) in [
        (json!({ "ip": "10.0.0.999", "hostname": "b" }), "ip"),
        (json!({ "ip": "10.0.0.9" }), "hostname"),
        (
            json!({ "ip": "10.0.0.9", "hostname": "b", "color": "red" }),
            "color",
        ),
    ] {
        let answer = server.call("POST", "/nodes", body.to_string()).await;
        assert_eq!(
            (answer.status, answer.json()["field"].as_str()),
            (422, Some(field)),
            "{body}"
        );
    }
}

#[tokio::test]
async fn pages_steps_and_fractions_of_a_history_are_complete() {
    let server = Server::new().await;
    server.register("10.0.0.1", "a", "x").await;
    let sample = |time: String, percent: u32| json!({ "time": time, "memory": { "usage_percent": percent } });
    let samples: Vec<Value> = (0..300)
        .map(|n| sample(format!("2022-03-01 00:{:02}:{:02}", n / 60, n % 60), n))
        .collect();
    assert_eq!(server.put("/nodes/a", &json!(samples)).await.status, 204);
    let whole = server.get("/a/memory?from=2022-03-01&to=2022-03-02").await;
    assert_eq!(
        whole.json().as_object().map(serde_json::Map::len),
        Some(300)
    );
    assert!(
        whole
            .header("nodestats-resolution")
            .starts_with("raw;from=\"2022-03-01T00:00:00Z\"")
    );
    // Oldest first, and in pages the same.
    let keys = |body: &[u8]| {
        let text = String::from_utf8_lossy(body).into_owned();
        text.split("\"2022")
            .skip(1)
            .map(|part| part[..15].to_owned())
            .collect::<Vec<_>>()
    };
    let expected = keys(&whole.body);
    assert!(expected.is_sorted() && expected.len() == 300);
    let mut paged = Vec::new();
    let mut next = Some("/a/memory?from=2022-03-01&to=2022-03-02&limit=128".to_owned());
    while let Some(path) = next {
        let page = server.get(&path).await;
        paged.extend(keys(&page.body));
        let link = page
            .header("link")
            .strip_prefix('<')
            .and_then(|link| link.split_once('>'));
        next = link.map(|(path, _)| path.to_owned());
    }
    assert_eq!(paged, expected);
    // A step answers its last sample, under its begin.
    let minutes = server
        .get("/a/memory?from=2022-03-01&to=2022-03-02&step=1m")
        .await
        .json();
    let last = minutes["2022-03-01 00:01:00"]["usage_percent"].as_f64();
    assert_eq!(
        (minutes.as_object().map(serde_json::Map::len), last),
        (Some(5), Some(119.0))
    );
    let page = server
        .get("/a/memory?from=2022-03-01&to=2022-03-02&step=1m&limit=2")
        .await;
    assert_eq!(page.json().as_object().map(serde_json::Map::len), Some(2));
    assert!(
        page.header("link")
            .contains("from=2022-03-01T00%3A02%3A00Z"),
        "{}",
        page.header("link")
    );
    // A fraction only where one second has more than one.
    let close = json!([
        sample("2022-04-01 00:00:00.25".into(), 1),
        sample("2022-04-01 00:00:00.5".into(), 2),
        sample("2022-04-01 00:00:01.5".into(), 3)
    ]);
    assert_eq!(server.put("/nodes/a", &close).await.status, 204);
    let body = server
        .get("/a/memory?from=2022-04-01&to=2022-04-02")
        .await
        .json();
    let found: Vec<&String> = body.as_object().expect("an object").keys().collect();
    assert_eq!(
        found,
        [
            "2022-04-01 00:00:00.250",
            "2022-04-01 00:00:00.500",
            "2022-04-01 00:00:01"
        ]
    );
    assert_eq!(
        server
            .get("/a/memory?from=2021-01-01&to=2021-01-02")
            .await
            .json(),
        json!({})
    );
}

#[tokio::test]
async fn frames_are_rates_when_read_and_count_once() {
    let server = Server::new().await;
    server.register("10.0.0.1", "a", "x").await;
    let mut frames = Frames::new("2022-03-01 00:00:00".parse::<Timestamp>().expect("a time"));
    let first = frames.next_frame();
    let second = [frames.next_frame(), frames.next_frame()].concat();
    for body in [&first, &second, &second, &first] {
        assert_eq!(server.put_frames("x", body.clone()).await.status, 204);
    }
    let history = server.get("/a/proc/7?from=2022-03-01").await.json();
    let cpu = |key: &str| history[key]["cpu_percent"].as_f64();
    assert_eq!(history.as_object().map(serde_json::Map::len), Some(3));
    assert_eq!(cpu("2022-03-01 00:00:00"), None);
    assert_eq!(
        (cpu("2022-03-01 00:00:01"), cpu("2022-03-01 00:00:02")),
        (Some(100.0), Some(100.0))
    );
    // The first entry of a span has its rate from the sample before it.
    let one = server
        .get("/a/proc/7?from=2022-03-01+00:00:02")
        .await
        .json();
    assert_eq!(one["2022-03-01 00:00:02"]["cpu_percent"], 100.0);
    for (body, status) in [
        (b"nonsense".to_vec(), 400),
        (Vec::new(), 400),
        (first[..first.len() - 1].to_vec(), 400),
    ] {
        assert_eq!(server.put_frames("x", body).await.status, status);
    }
}

#[tokio::test]
async fn names_lead_to_one_life_or_to_an_error_that_helps() {
    let server = Server::new().await;
    server.register("10.0.0.1", "web-1", "x").await;
    server.register("10.0.0.1", "web-2", "y").await;
    let ambiguous = server.get("/nodes/10.0.0.1").await;
    assert_eq!(
        (ambiguous.status, &ambiguous.json()["type"]),
        (409, &json!("ambiguous-node"))
    );
    let mut names: Vec<String> =
        serde_json::from_value(ambiguous.json()["names"].clone()).expect("names");
    names.sort();
    assert_eq!(names, ["x", "y"]);
    let unknown = server.get("/nodes/web-3").await;
    assert_eq!(unknown.status, 404);
    assert!(
        unknown.json()["names"]
            .as_array()
            .is_some_and(|names| names.contains(&json!("web-1")))
    );
    assert_eq!(server.get("/nodes/web-1").await.json()["uid"], "x");
    assert_eq!(server.get("/nodes/web-1/cpu").await.status, 404);
}

/// Requests that bring out each status of each kind of route; the path stands for `{node}`.
/// What a cluster's controller says of a node.
fn registration() -> Value {
    json!({
        "hostname": "node-1", "ip": "192.168.2.10", "addresses": ["fd00::a"],
        "kernel": "6.1.0", "agent_version": "0.1.0", "interval_seconds": 10,
        "retention_seconds": 3600, "deletion_policy": "purge",
    })
}

#[tokio::test]
async fn the_controllers_registration_names_a_node_and_its_freshness_is_one_answer() {
    let server = Server::new().await;
    let path = routes::registration("uid-1");
    let first = server.put(&path, &registration()).await;
    assert_eq!(
        first.status,
        204,
        "{}",
        String::from_utf8_lossy(&first.body)
    );
    assert_eq!(server.put(&path, &registration()).await.status, 204);
    server.register("10.0.0.1", "plain", "x").await;
    assert_eq!(
        server.get("/nodes").await.json(),
        json!(["10.0.0.1", "192.168.2.10"])
    );
    let freshness = async || server.get("/nodes?view=freshness").await.json();
    let before = freshness().await;
    let expected = json!({
        "uid": "uid-1", "origin": "kubernetes", "state": "live", "registration": registration(),
    });
    assert_eq!(before[1], expected);
    assert_eq!(
        before[0],
        json!({ "uid": "x", "origin": "rest", "state": "live" })
    );
    // A node whose clock is an hour behind: its samples are fresh all the same.
    let now = Timestamp::from_system(std::time::SystemTime::now());
    let clock = now.plus_micros(-3_600_000_000);
    let frame = Frames::new(clock.plus_micros(-2_000_000)).next_frame();
    let request = Request::put("/nodes/uid-1")
        .header(header::CONTENT_TYPE, routes::FRAMES_MEDIA_TYPE)
        .header(routes::SENT_AT_HEADER, clock.to_string());
    let pushed = server
        .ask(request.body(frame.into()).expect("a request"))
        .await;
    assert_eq!(
        pushed.status, 422,
        "older than this node's retention of an hour"
    );
    let mut longer = registration();
    longer["retention_seconds"] = json!(86_400);
    assert_eq!(server.put(&path, &longer).await.status, 204);
    let frame = Frames::new(clock.plus_micros(-2_000_000)).next_frame();
    let request = Request::put("/nodes/uid-1")
        .header(header::CONTENT_TYPE, routes::FRAMES_MEDIA_TYPE)
        .header(routes::SENT_AT_HEADER, clock.to_string());
    let pushed = server
        .ask(request.body(frame.into()).expect("a request"))
        .await;
    assert_eq!(pushed.status, 204);
    let after = freshness().await;
    let age = after[1]["age_seconds"].as_f64().expect("an age");
    assert!((2.0..60.0).contains(&age), "{after}");
    let offset = after[1]["clock_offset_seconds"]
        .as_f64()
        .expect("an offset");
    assert!((-3660.0..=-3600.0).contains(&offset), "{after}");
    // What the controller registered is found by each of its names.
    for name in ["uid-1", "node-1", "192.168.2.10", "fd00::a"] {
        assert_eq!(
            server.get(&format!("/nodes/{name}")).await.status,
            200,
            "{name}"
        );
    }
    assert_eq!(server.call("DELETE", "/nodes/uid-1", "").await.status, 204);
    let left = freshness().await;
    assert_eq!(left.as_array().map(Vec::len), Some(1), "{left}");
    assert_eq!(
        server
            .put(&path, &json!({ "hostname": "node-1" }))
            .await
            .status,
        422
    );
}

/// A path of the description about a node or a pod of this name.
fn filled(path: &str, name: &str) -> String {
    path.replace("{node}", name)
        .replace("{pid}", "7")
        .replace("{namespace}", "team-a")
        .replace("{pod}", name)
}

/// What is told of a pod on the node `counted`.
fn known_pod() -> Value {
    let pod = json!({
        "uid": POD, "namespace": "team-a", "name": "known", "node_uid": "c",
        "created_at": "2022-03-01T00:00:00Z",
    });
    json!({"pods": [{"digest": "d", "pod": pod}]})
}

fn phase_change() -> Value {
    json!({
        "node_uid": "k", "time": "2026-03-01T14:00:00Z", "phase": "Lost", "reason": "NodeLost",
        "message": "It is silent.",
    })
}

const POD: &str = "3c1f5a52-8e37-4c5e-9f5d-0a2b3c4d5e6f";

async fn provoke(server: &Server, method: &str, path: &str) -> BTreeSet<u16> {
    let fill = |name: &str| filled(path, name);
    let sample = full_sample().to_string();
    let body = match (method, path) {
        ("PUT", routes::PODS) => known_pod().to_string(),
        ("PUT", "/nodes/{node}/registration") => registration().to_string(),
        ("PUT", routes::EVENTS) => json!({ "changes": [phase_change()] }).to_string(),
        ("PUT", _) => sample,
        ("POST", _) => json!({ "ip": "10.0.0.7", "hostname": "seven" }).to_string(),
        _ => String::new(),
    };
    let mut seen = BTreeSet::new();
    // Twice: what exists the second time.
    for _ in 0..2 {
        seen.insert(
            server
                .call(method, &fill("known"), body.clone())
                .await
                .status,
        );
        if method == "DELETE" {
            server.register("10.0.0.1", "known", "k").await;
        }
    }
    seen.insert(
        server
            .call(
                method,
                &format!("{}?nonsense=1", fill("known")),
                body.clone(),
            )
            .await
            .status,
    );
    let foreign = Request::builder()
        .method(method)
        .uri(fill("known"))
        .header(header::HOST, "evil.example");
    seen.insert(
        server
            .ask(foreign.body(Body::empty()).expect("a request"))
            .await
            .status,
    );
    if method == "POST" {
        // A node that a cluster's controller speaks for.
        let path = routes::registration("in-cluster");
        server.put(&path, &registration()).await;
        let own = json!({ "ip": "10.0.0.7", "hostname": "seven", "uid": "in-cluster" });
        seen.insert(
            server
                .call(method, &fill("known"), own.to_string())
                .await
                .status,
        );
    }
    if path.contains("{node}") || path.contains("{pod}") {
        seen.insert(
            server
                .call(method, &fill("unknown"), body.clone())
                .await
                .status,
        );
        seen.insert(
            server
                .call(method, &fill("10.0.0.200"), body.clone())
                .await
                .status,
        );
    }
    if method == "PUT" || method == "POST" {
        seen.insert(
            server
                .call(method, &fill("known"), "{\"nonsense\":1}")
                .await
                .status,
        );
        seen.insert(
            server
                .call(method, &fill("known"), vec![b' '; 2 << 20])
                .await
                .status,
        );
        let never = Body::from_stream(futures_util::stream::pending::<
            Result<bytes::Bytes, std::io::Error>,
        >());
        seen.insert(server.call(method, &fill("known"), never).await.status);
    }
    seen
}

/// The same for the one route that takes a token of its own kind.
async fn provoke_join(server: &Server) -> BTreeSet<u16> {
    let wanted = TokenRequest {
        purpose: Purpose::Join { uses_left: 1 },
        ttl_seconds: None,
    };
    let issued = tokens::issue(&server.store, wanted).await;
    let token = issued.expect("a token").secret;
    let closed = server.asking(Book::default());
    let join = |hostname: &str| {
        let token = format!("nst_{}_{}", "0".repeat(16), "0".repeat(64));
        json!({"hostname": hostname, "token": token}).to_string()
    };
    let never = Body::from_stream(futures_util::stream::pending::<
        Result<bytes::Bytes, std::io::Error>,
    >());
    let mut seen = BTreeSet::new();
    for body in [
        join("known").into(),
        join("seven").into(),
        "nonsense".into(),
        "{\"nonsense\":1}".into(),
        vec![b' '; 2 << 20].into(),
        never,
    ] {
        let way = ("POST", routes::JOIN);
        seen.insert(closed.call_as(&token, way, body).await.status);
    }
    // By who has no join token.
    seen.insert(server.call("POST", routes::JOIN, join("x")).await.status);
    seen
}

#[tokio::test]
async fn every_route_and_every_status_in_the_description_is_real() {
    let document: Value = serde_json::from_str(openapi_document()).expect("JSON");
    assert_eq!(document["openapi"], "3.1.0");
    let paths = document["paths"].as_object().expect("paths");
    let mut operations = BTreeSet::new();
    for (path, methods) in paths {
        for (method, operation) in methods.as_object().expect("methods") {
            let server = Server::new().await;
            for (uid, ip, name) in [
                ("k", "10.0.0.1", "known"),
                ("s", "10.0.0.200", "one"),
                ("t", "10.0.0.200", "two"),
            ] {
                server.register(ip, name, uid).await;
            }
            server.put("/nodes/known", &full_sample()).await;
            server.register("10.0.0.3", "counted", "c").await;
            let mut frames = Frames::new(now().plus_micros(-2_000_000)).in_pod(POD, "a");
            for _ in 0..2 {
                server.put_frames("c", frames.next_frame()).await;
            }
            server.put(routes::PODS, &known_pod()).await;
            let mut seen = match &**path {
                routes::JOIN => provoke_join(&server).await,
                path => provoke(&server, &method.to_uppercase(), path).await,
            };
            // What a third party says nothing of.
            let of_agents = ["/metrics/nodes/{node}", "/{node}/units", "/{node}/pods"];
            if of_agents.iter().any(|end| path.ends_with(end)) {
                seen.insert(server.get(&filled(path, "counted")).await.status);
            }
            let closed = server.asking(Book::default());
            let nothing = Limits {
                in_flight: 0,
                ..Limits::default()
            };
            let busy = server.asking_within(Book::default().token("one", "one", &[]), nothing);
            let (method_name, known) = (method.to_uppercase(), filled(path, "known"));
            seen.insert(closed.call(&method_name, &known, "").await.status);
            let way = (&*method_name, &*known);
            seen.insert(busy.call_as("one", way, "").await.status);
            server.store.close().await;
            let gone = server
                .call(
                    &method.to_uppercase(),
                    &filled(path, "known"),
                    if path.ends_with("/registration") {
                        registration().to_string()
                    } else if path == routes::EVENTS {
                        json!({ "changes": [phase_change()] }).to_string()
                    } else if path == routes::PODS {
                        known_pod().to_string()
                    } else {
                        json!({ "ip": "10.0.0.8", "hostname": "eight" }).to_string()
                    },
                )
                .await;
            seen.insert(gone.status);
            if path == routes::JOIN {
                let token = format!("nst_{}_{}", "0".repeat(16), "0".repeat(64));
                seen.insert(closed.call_as(&token, way, "").await.status);
            }
            let responses = operation["responses"].as_object().expect("responses");
            let described: BTreeSet<u16> = responses
                .keys()
                .map(|status| status.parse().expect("a status"))
                .collect();
            assert_eq!(seen, described, "{method} {path}");
            assert!(
                operations.insert(operation["operationId"].as_str().expect("an id").to_owned())
            );
        }
    }
    // And nothing else answers.
    let server = Server::new().await;
    server.register("10.0.0.1", "known", "k").await;
    for path in [
        "/nonsense/x/y",
        "/nodes/known/nonsense",
        "/nodes/known/proc/1/2",
        "//",
    ] {
        assert_eq!(server.get(path).await.status, 404, "{path}");
    }
    for (method, path) in [
        ("PATCH", "/nodes"),
        ("POST", "/nodes/known"),
        ("DELETE", "/"),
        ("PUT", "/known/cpu"),
    ] {
        let answer = server.call(method, path, "").await;
        assert_eq!(answer.status, 405, "{method} {path}");
        assert!(!answer.header("allow").is_empty());
    }
    for path in [
        "/nodes/known/proc/seven",
        "/nodes/known/proc/-1",
        "/nodes/%ff/cpu",
    ] {
        assert_eq!(server.get(path).await.status, 400, "{path}");
    }
}

/// The description as a file that people can read and compare; `cargo xtask generate` writes it.
#[test]
fn the_golden_description_is_up_to_date() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/openapi.json");
    if std::env::var_os("NODESTATS_GENERATE").is_some() {
        std::fs::write(path, openapi_document()).expect("written");
    }
    let golden = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        golden == openapi_document(),
        "crates/api/openapi.json differs: cargo xtask generate"
    );
}

#[tokio::test]
async fn the_page_is_one_document_under_a_strict_policy() {
    let server = Server::new().await;
    let page = server.get("/").await;
    let policy = page.header("content-security-policy");
    assert!(
        policy.starts_with("default-src 'none'; script-src 'sha256-"),
        "{policy}"
    );
    assert!(!policy.contains("unsafe"), "{policy}");
    let text = String::from_utf8(page.body.clone()).expect("UTF-8");
    for outside in [
        "http://",
        "https://",
        "src=",
        "@import",
        "url(",
        "innerHTML",
    ] {
        assert!(!text.contains(outside), "{outside}");
    }
}

#[tokio::test]
async fn a_hundred_large_bodies_at_once_are_taken_within_the_budget() {
    let server = Server::with(Options {
        body_limit: 4 << 20,
        body_patience: Duration::from_mins(1),
        ..Options::default()
    })
    .await;
    server.register("10.0.0.1", "a", "x").await;
    let body = format!("[{}{{}}]", " ".repeat(3 << 20));
    // Who has no turn within seconds comes again.
    let mut left = 100;
    while left > 0 {
        let asks = (0..left).map(|_| server.call("PUT", "/nodes/a", body.clone()));
        let answers = futures_util::future::join_all(asks).await;
        let taken = answers.iter().filter(|answer| answer.status == 204).count();
        assert!(taken > 0);
        for refused in answers.iter().filter(|answer| answer.status != 204) {
            assert_eq!(refused.status, 429);
            assert!(refused.headers.contains_key(header::RETRY_AFTER));
        }
        left -= taken;
    }
}

#[tokio::test]
async fn a_port_forward_is_read_only_and_shows_processes_only_where_it_may() {
    let server = Server::with(Options {
        exposure: Exposure::Network,
        ..Options::default()
    })
    .await;
    // A node that is called like what is hidden is not hidden.
    let node = json!({"ip": "192.168.2.10", "hostname": "proc"});
    assert_eq!(
        server.call("POST", "/nodes", node.to_string()).await.status,
        201
    );
    let sample = json!({"memory": {"total_bytes": 1}, "processes": [{"pid": 1, "name": "init"}]});
    assert_eq!(server.put("/nodes/proc", &sample).await.status, 204);
    let closed = server.forwarded(false);
    let open = server.forwarded(true);
    for path in [
        "/nodes",
        "/nodes/proc",
        "/nodes/proc/memory",
        "/proc/memory",
    ] {
        for listener in [&closed, &open] {
            assert_eq!(listener.get(path).await.status, 200, "{path}");
        }
    }
    for path in [
        "/nodes/proc/proc",
        "/nodes/proc/proc/1",
        "/proc/proc",
        "/proc/proc/1?from=0",
    ] {
        assert_eq!(closed.get(path).await.status, 403, "{path}");
        assert_eq!(open.get(path).await.status, 200, "{path}");
    }
    for (method, path) in [
        ("POST", "/nodes"),
        ("PUT", "/nodes/proc"),
        ("PUT", "/nodes/uid/registration"),
        ("DELETE", "/nodes/proc"),
    ] {
        assert_eq!(
            open.call(method, path, sample.to_string()).await.status,
            405,
            "{method} {path}"
        );
    }
    // No page of another site may use it, wherever the other listener can be reached from.
    let request = Request::get("/nodes").header(header::HOST, "evil.example");
    let request = request.body(Body::empty()).expect("a request");
    assert_eq!(open.ask(request).await.status, 403);
}

#[tokio::test]
async fn the_cluster_s_api_server_finds_nodes_and_nothing_else() {
    let server = Server::with(Options {
        exposure: Exposure::Network,
        ..Options::default()
    })
    .await;
    let node = json!({"ip": "192.168.2.10", "hostname": "node-a"});
    assert_eq!(
        server.call("POST", "/nodes", node.to_string()).await.status,
        201
    );
    let sample = json!({"memory": {"total_bytes": 1}, "processes": [{"pid": 1, "name": "init"}]});
    assert_eq!(server.put("/nodes/node-a", &sample).await.status, 204);
    let behind = Server {
        store: server.store.clone(),
        app: server.app.clone(),
        router: aggregated_router(server.app.clone()),
    };
    let ask = async |method: &str, path: &str, accept: &str| {
        let request = Request::builder().method(method).uri(path);
        let request = request
            .header(header::HOST, "10.0.0.1:8443")
            .header(header::ACCEPT, accept)
            .header("x-remote-user", "jane");
        behind
            .ask(request.body(Body::empty()).expect("a request"))
            .await
    };
    let get = async |path: &str| ask("GET", path, "application/json").await;
    let base = routes::AGGREGATED;
    for (path, kind) in [
        ("/apis", "APIGroupList"),
        ("/apis/stats.nodestats.dev", "APIGroup"),
        (base, "APIResourceList"),
    ] {
        assert_eq!(get(path).await.json()["kind"], kind, "{path}");
    }
    let accept =
        "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";
    let discovered = ask("GET", "/apis", accept).await;
    assert_eq!(discovered.json()["kind"], "APIGroupDiscoveryList");
    assert!(
        discovered
            .header("content-type")
            .contains("as=APIGroupDiscoveryList")
    );
    // Nobody deletes what is said to be only read.
    for text in [get(base).await.json(), discovered.json()] {
        assert!(!text.to_string().contains("delete"), "{text}");
    }
    let index = get("/openapi/v3").await.json();
    let group = base.trim_start_matches('/');
    let url = index["paths"][group]["serverRelativeURL"]
        .as_str()
        .expect("a path");
    let described = get(url).await.json();
    assert!(described["paths"][format!("{base}/nodes/{{node}}/cpu")]["get"].is_object());
    assert_eq!(
        get(&format!("{base}/nodes")).await.json(),
        json!(["192.168.2.10"])
    );
    for part in ["", "/memory", "/proc", "/proc/1", "/memory?from=0"] {
        assert_eq!(
            get(&format!("{base}/nodes/node-a{part}")).await.status,
            200,
            "{part}"
        );
    }
    for path in [
        "",
        "/healthz",
        "/metrics",
        "/node-a/memory",
        "/openapi.json",
    ] {
        let path = format!("{base}/{}", path.trim_start_matches('/'));
        assert_eq!(get(&path).await.status, 404, "{path}");
    }
    for method in ["PUT", "DELETE"] {
        let path = format!("{base}/nodes/node-a");
        assert_eq!(ask(method, &path, "*/*").await.status, 405, "{method}");
    }
    // A page of history leads on to the next one by the same way.
    assert_eq!(server.put("/nodes/node-a", &sample).await.status, 204);
    let page = get(&format!("{base}/nodes/node-a/memory?from=0&limit=1")).await;
    let link = page.header("link");
    let next = link.strip_prefix('<').and_then(|link| link.split_once('>'));
    let next = next.expect("a link").0;
    assert!(next.starts_with(&format!("{base}/nodes/node-a/memory?")));
    assert_eq!(
        get(next).await.json().as_object().map(serde_json::Map::len),
        Some(1)
    );
    // The front proxy always says for whom it asks.
    assert_eq!(behind.get(&format!("{base}/nodes")).await.status, 401);
}
