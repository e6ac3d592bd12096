//! What is asked before an hour is sealed is answered alike after it.

mod server;

use nodestats_testkit::Frames;
use nodestats_wire::{Timestamp, routes};
use serde_json::json;
use server::Server;

const POD: &str = "3c1f5a52-8e37-4c5e-9f5d-0a2b3c4d5e6f";
const CONTAINER: &str = "a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1";

fn time(text: &str) -> Timestamp {
    text.parse().expect("a time")
}

/// A node with a pod, four times a minute of samples within three hours, and one with a third party's
/// readings.
async fn with_hours() -> Server {
    let server = Server::new().await;
    let registration = json!({
        "hostname": "node-a", "ip": "192.168.2.10", "interval_seconds": 1,
        "retention_seconds": 3_000_000_000_u64, "deletion_policy": "retain",
    });
    let path = routes::registration("uid-a");
    assert_eq!(server.put(&path, &registration).await.status, 204);
    let mut frames = Frames::new(time("2026-03-01 11:59:30Z"))
        .punctual()
        .of_whole_host()
        .in_pod(POD, CONTAINER);
    for _ in 0..4 {
        let mut body = Vec::new();
        for _ in 0..60 {
            body.extend(frames.next_frame());
        }
        assert_eq!(server.put_frames("uid-a", body).await.status, 204);
        frames.rest(2400);
    }
    let pod = json!({
        "uid": POD, "namespace": "team-a", "name": "web", "created_at": "2026-03-01T11:00:00Z",
        "node": "node-a", "node_uid": "uid-a", "phase": "Running",
        "containers": [{"name": "app", "image": "web:1", "runs": [{"container_id": CONTAINER}]}],
    });
    let told = json!({"pods": [{"digest": "d", "pod": pod}]});
    assert_eq!(server.put("/pods", &told).await.status, 204);
    server.register("10.0.0.9", "third", "uid-t").await;
    for minute in 0..90 {
        let second = 60 * minute;
        let reading = json!({
            "time": time("2026-03-01 11:30:00Z").plus_micros(second * 1_000_000),
            "memory_usage_percent": minute,
            "processes": [{"pid": 5, "name": "theirs", "status": "sleeping", "cpu_percent": 1.5}],
        });
        assert_eq!(server.put("/nodes/uid-t", &reading).await.status, 204);
    }
    server
}

#[tokio::test]
async fn every_question_is_answered_alike_before_and_after_sealing() {
    let server = with_hours().await;
    let mut questions: Vec<String> = Vec::new();
    let range = "from=2026-03-01T11:00:00Z&to=2026-03-01T15:00:00Z";
    let within = "from=2026-03-01T11:59:50Z&to=2026-03-01T12:40:10Z";
    for detail in [
        "",
        "/cpu",
        "/memory",
        "/disk",
        "/network",
        "/filesystems",
        "/pressure",
        "/units",
        "/pods",
        "/proc",
        "/proc/7",
    ] {
        for node in ["uid-a", "uid-t"] {
            let path = format!("/nodes/{node}{detail}");
            questions.push(format!("{path}?at=2026-03-01T12:00:10Z"));
            questions.push(format!("{path}?at=2026-03-01T14:30:00Z"));
            for span in [range, within] {
                questions.push(format!("{path}?{span}"));
                questions.push(format!("{path}?{span}&step=60"));
                questions.push(format!("{path}?{span}&limit=7"));
                questions.push(format!("{path}?{span}&limit=2&step=600"));
            }
        }
    }
    for detail in ["", "/cpu", "/memory", "/proc"] {
        let path = format!("/namespaces/team-a/pods/web{detail}");
        questions.push(format!("{path}?at=2026-03-01T12:00:10Z"));
        questions.push(format!("{path}?{range}"));
        questions.push(format!("{path}?{within}&container=app"));
    }
    questions
        .push("/nodes/uid-t/proc/5?from=2026-03-01T11:00:00Z&to=2026-03-01T15:00:00Z".to_owned());
    questions.push("/nodes/uid-a/proc?view=full&at=2026-03-01T12:00:10Z".to_owned());
    let ask = async || {
        let mut answers = Vec::new();
        for question in &questions {
            let answer = server.get(question).await;
            let link = answer.header("link").to_owned();
            let sampled = answer.header(routes::SAMPLE_TIME_HEADER).to_owned();
            let body = String::from_utf8(answer.body).expect("text");
            answers.push((answer.status, link, sampled, body));
        }
        answers
    };
    let before = ask().await;
    let with_figures = before
        .iter()
        .filter(|answer| answer.0 == 200 && answer.3.len() > 20);
    let with_figures = with_figures.count();
    assert!(
        with_figures > questions.len() / 3,
        "{with_figures} of {}",
        questions.len()
    );
    server
        .store
        .seal(time("2026-03-02 00:00:00Z"))
        .await
        .expect("sealed");
    let after = ask().await;
    for (question, (before, after)) in questions.iter().zip(before.iter().zip(&after)) {
        assert_eq!(before, after, "{question}");
    }
    let metrics = String::from_utf8(server.get("/metrics").await.body).expect("text");
    let sealed = metrics
        .lines()
        .find(|line| line.starts_with("nodestats_store_sealed_total"));
    assert!(
        sealed.is_some_and(|line| line.ends_with(" 330")),
        "{sealed:?}\n{metrics}"
    );
}
