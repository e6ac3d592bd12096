//! The nodes as Prometheus reads them, without one: names, labels, and who is silent.

mod server;

use nodestats_testkit::{Frames, Samples};
use nodestats_wire::{Timestamp, routes};
use serde_json::{Value, json};
use server::Server;

fn now() -> Timestamp {
    Timestamp::from_system(std::time::SystemTime::now())
}

/// A server with nodes that report, one that is silent, and one of a third party.
async fn nodes() -> Server {
    let server = Server::new().await;
    for (uid, ip, name) in [
        ("a", "192.168.2.10", "node-a"),
        ("b", "192.168.2.11", "node-b"),
        ("silent", "192.168.2.12", "silent"),
        ("third", "192.168.2.13", "third"),
        ("gone", "192.168.2.14", "gone"),
        ("new", "192.168.2.15", "new"),
    ] {
        let registration = json!({
            "ip": ip, "hostname": name, "uid": uid, "interval_seconds": 600,
        });
        let registered = server
            .call("POST", "/nodes", registration.to_string())
            .await;
        assert_eq!(registered.status, 201);
    }
    for uid in ["a", "b", "gone"] {
        let mut frames = Frames::new(now().plus_micros(-1_000_000));
        let two = [frames.next_frame(), frames.next_frame()].concat();
        assert_eq!(server.put_frames(uid, two).await.status, 204);
    }
    let mut frames = Frames::new(now().plus_micros(-7_200_000_000));
    let two = [frames.next_frame(), frames.next_frame()].concat();
    assert_eq!(server.put_frames("silent", two).await.status, 204);
    let reading = json!({"memory": {"total_bytes": 5, "used_bytes": 1}});
    assert_eq!(server.put("/nodes/third", &reading).await.status, 204);
    assert_eq!(server.call("DELETE", "/nodes/gone", "").await.status, 204);
    server
}

async fn text(server: &Server, path: &str) -> String {
    let answer = server.get(path).await;
    assert_eq!(answer.status, 200, "{path}");
    String::from_utf8(answer.body).expect("UTF-8")
}

#[tokio::test]
async fn a_silent_node_has_no_series_and_its_scrape_fails() {
    let server = nodes().await;
    let all = Samples::read(&text(&server, "/metrics/nodes").await);
    let instances: Vec<&str> = all
        .of("node_time_seconds")
        .map(|(series, _)| series)
        .collect();
    assert_eq!(
        instances,
        [
            "node_time_seconds{instance=\"node-a\"}",
            "node_time_seconds{instance=\"node-b\"}"
        ]
    );
    assert_eq!(all.types["node_boot_time_seconds"], "gauge");
    for (node, said) in [
        ("silent", "the last sample of silent is"),
        ("new", "has sent no sample yet"),
    ] {
        let answer = server.get(&format!("/metrics/nodes/{node}")).await;
        assert_eq!(answer.status, 503, "{node}");
        let detail = answer.json()["detail"].as_str().map(str::to_owned);
        assert!(
            detail.as_ref().is_some_and(|detail| detail.contains(said)),
            "{detail:?}"
        );
    }
    // A third party's figures are no counters: it is up, and has no series.
    assert_eq!(text(&server, "/metrics/nodes/third").await, "");
    assert_eq!(server.get("/metrics/nodes/nobody").await.status, 404);
    // One node's own has no instance: Prometheus says which target it is.
    let one = text(&server, "/metrics/nodes/192.168.2.10").await;
    assert!(one.contains("\nnode_load1 1\n"), "{one}");
    assert!(!one.contains("instance="), "{one}");
}

#[tokio::test]
async fn processes_are_shown_where_they_are_asked_for_and_so_many() {
    let server = nodes().await;
    let series = "nodestats_process_cpu_seconds_total{pid=\"7\",name=\"busy\",user=\"\"} 1";
    assert!(
        !text(&server, "/metrics/nodes/a")
            .await
            .contains("nodestats_process")
    );
    let shown = text(&server, "/metrics/nodes/a?processes=3").await;
    assert!(shown.lines().any(|line| line == series), "{shown}");
    for wrong in ["0", "101", "all", ""] {
        let path = format!("/metrics/nodes?processes={wrong}");
        assert_eq!(server.get(&path).await.status, 400, "{wrong}");
    }
}

#[tokio::test]
async fn each_node_is_a_target_where_the_list_was_asked_for() {
    let server = nodes().await;
    // Another host of the same name.
    server.register("192.168.2.99", "node-b", "b2").await;
    let answer = server.get("/metrics/targets").await;
    let targets = answer.json();
    let targets = targets.as_array().expect("a list");
    let label = |target: &Value, name: &str| target["labels"][name].as_str().map(str::to_owned);
    let mut instances: Vec<_> = targets
        .iter()
        .filter_map(|one| label(one, "instance"))
        .collect();
    instances.sort();
    assert_eq!(
        instances,
        [
            "new",
            "node-a",
            "node-b/192.168.2.11",
            "node-b/192.168.2.99",
            "silent",
            "third"
        ]
    );
    for target in targets {
        assert_eq!(target["targets"], json!(["localhost"]), "{target}");
        let path = label(target, "__metrics_path__").expect("a path");
        assert!(path.starts_with("/metrics/nodes/"), "{path}");
        assert_ne!(server.get(&path).await.status, 404, "{path}");
    }
}

#[tokio::test]
async fn openmetrics_are_given_to_who_asks_for_them() {
    let server = nodes().await;
    for path in ["/metrics", "/metrics/nodes", "/metrics/nodes/a"] {
        let request = http::Request::get(path).header(
            http::header::ACCEPT,
            "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5",
        );
        let request = request.body(axum::body::Body::empty()).expect("a request");
        let answer = server.ask(request).await;
        let kind = answer.header("content-type");
        assert!(
            kind.starts_with("application/openmetrics-text; version=1.0.0"),
            "{kind}"
        );
        assert!(answer.body.ends_with(b"# EOF\n"), "{path}");
        let kind = server.get(path).await;
        let kind = kind.header("content-type");
        assert!(kind.starts_with("text/plain; version=0.0.4"), "{kind}");
    }
}

#[tokio::test]
async fn what_a_clock_sent_before_it_was_set_back_is_not_the_newest() {
    let server = Server::new().await;
    server.register("192.168.2.10", "node-a", "a").await;
    let push = async |at: Timestamp| {
        let request = http::Request::put("/nodes/a")
            .header(http::header::CONTENT_TYPE, routes::FRAMES_MEDIA_TYPE)
            .header(routes::SENT_AT_HEADER, at.to_string());
        let frame = Frames::new(at).next_frame();
        let pushed = server
            .ask(request.body(frame.into()).expect("a request"))
            .await;
        assert_eq!(pushed.status, 204);
    };
    let time = async || {
        let samples = Samples::read(&text(&server, "/metrics/nodes/a").await);
        samples.values["node_time_seconds"]
    };
    let ahead = now().plus_micros(7_200_000_000);
    push(ahead).await;
    assert!((time().await - ahead.seconds()).abs() < 1.0);
    let right = now();
    push(right).await;
    assert!((time().await - right.seconds()).abs() < 1.0);
}
