//! What one request and one caller may take, each limit with its status: sizes of bodies, packed and
//! unpacked, depth of JSON, requests at once and a second, results.
//!
//! Heads of requests and connections are `serve.rs`'s own tests, slow bodies stand in `router.rs`.

mod server;

use std::time::Duration;

use axum::body::Body;
use futures_util::future::join_all;
use http_body_util::BodyExt as _;
use nodestats_api::{Limits, Options};
use nodestats_core::FrameId;
use nodestats_core::frame::{self, delta};
use nodestats_core::sample::{Process, Sample};
use nodestats_testkit::Frames;
use nodestats_wire::Timestamp;
use server::{AGENT, Book, Server};
use tower::ServiceExt as _;
use uuid::Uuid;

fn now() -> Timestamp {
    Timestamp::from_system(std::time::SystemTime::now())
}

/// A frame that is small and unpacks to so many MiB.
fn bomb(mib: usize) -> Vec<u8> {
    let process = Process {
        pid: 1,
        command_line: Some("0".repeat(mib << 20).into()),
        ..Process::default()
    };
    let sample = Sample {
        processes: vec![process],
        ..Sample::default()
    };
    let id = FrameId {
        agent_start: Uuid::new_v4(),
        sequence: 0,
    };
    let bytes = frame::encode(now(), id, None, &sample);
    assert!(bytes.len() < 10_000 * mib, "{}", bytes.len());
    bytes
}

async fn with_node() -> Server {
    let server = Server::new().await;
    assert_eq!(server.register("192.0.2.1", "web-1", "1").await.status, 201);
    server
}

#[tokio::test]
async fn a_body_is_bounded_as_it_comes_and_as_it_unpacks() {
    let server = with_node().await;
    // As it comes: a MiB here.
    let large = vec![b' '; (1 << 20) + 1];
    assert_eq!(server.call("PUT", "/nodes/1", large).await.status, 413);
    // What brings no samples is small.
    let padded = format!(
        r#"{{"ip": "192.0.2.2", "hostname": "web-2"{}}}"#,
        " ".repeat(64 << 10)
    );
    assert_eq!(server.call("POST", "/nodes", padded).await.status, 413);
    // As one part unpacks, and as all of them do.
    assert_eq!(server.put_frames("1", bomb(17)).await.status, 400);
    assert_eq!(server.put_frames("1", bomb(15)).await.status, 204);
    let many: Vec<u8> = (0..5).flat_map(|_| bomb(15)).collect();
    assert!(many.len() < 1 << 20);
    assert_eq!(server.put_frames("1", many).await.status, 413);
    // What differs from large ones is small, and counts as what it comes to.
    let large = bomb(15);
    let deltas: Vec<u8> = (0..5)
        .flat_map(|_| {
            delta::encode(&large, &large)
                .expect("frames")
                .expect("a delta")
        })
        .collect();
    assert!(deltas.len() < 10_000);
    assert_eq!(server.put_frames("1", large.clone()).await.status, 204);
    assert_eq!(server.put_frames("1", deltas).await.status, 413);
    // So are the frames that they may differ from.
    let mut others = Frames::new(now().plus_micros(-7_200_000_000));
    let deltas: Vec<u8> = (0..9)
        .flat_map(|_| {
            let frame = others.next_frame();
            delta::encode(&frame, &frame)
                .expect("frames")
                .expect("a delta")
        })
        .collect();
    assert_eq!(server.put_frames("1", deltas).await.status, 413);
    // Thousands of usual ones are fine.
    let mut usual = Frames::new(now().plus_micros(-3_600_000_000));
    let usual: Vec<u8> = (0..2000).flat_map(|_| usual.next_frame()).collect();
    assert_eq!(server.put_frames("1", usual).await.status, 204);
}

#[tokio::test]
async fn json_is_bounded_in_depth() {
    let server = with_node().await;
    for text in ["[".repeat(100_000), r#"{"cpu":"#.repeat(100_000)] {
        let answer = server.call("PUT", "/nodes/1", text).await;
        assert!(matches!(answer.status, 400 | 422), "{}", answer.status);
    }
}

#[tokio::test]
async fn a_caller_has_so_many_requests_a_second_and_others_do_not_notice() {
    let limits = Limits {
        in_flight: 4,
        per_second: 0.2,
        burst: 5.0,
    };
    let server = asked_by_two(limits).await;
    let ask = |token: &'static str| server.call_as(token, ("GET", "/nodes"), "");
    for _ in 0..5 {
        assert_eq!(ask("one").await.status, 200);
    }
    let refused = ask("one").await;
    assert_eq!(refused.status, 429);
    let wait: u32 = refused.header("retry-after").parse().expect("seconds");
    assert!((1..=5).contains(&wait), "{wait}");
    assert_eq!(ask("two").await.status, 200);
    let metrics = server.get("/metrics").await;
    let metrics = String::from_utf8(metrics.body).expect("text");
    assert!(
        metrics.contains("nodestats_limited_requests_total 1\n"),
        "{metrics}"
    );
    nodestats_testkit::eventually("its turn", async || {
        (ask("one").await.status == 200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_caller_has_so_many_requests_at_once_until_the_answers_are_read() {
    let limits = Limits {
        in_flight: 4,
        per_second: 1000.0,
        burst: 1000.0,
    };
    let server = asked_by_two(limits).await;
    let request = |token: &str| {
        http::Request::get("/nodes/web-1/memory?from=0")
            .header("host", "localhost")
            .header("authorization", format!("Bearer {token}"))
            .body(Body::empty())
            .expect("a request")
    };
    let ask = |token: &str| server.router.clone().oneshot(request(token));
    // Four answers that nobody reads.
    let unread = join_all((0..4).map(|_| ask("one"))).await;
    for answer in &unread {
        assert_eq!(answer.as_ref().expect("never fails").status(), 200);
    }
    assert_eq!(ask("one").await.expect("never fails").status(), 429);
    assert_eq!(ask("two").await.expect("never fails").status(), 200);
    // One is read, one is given up: two places.
    let mut unread = unread
        .into_iter()
        .map(|answer| answer.expect("never fails"));
    let read = unread.next().expect("four").into_body().collect().await;
    assert!(!read.expect("whole").to_bytes().is_empty());
    drop(unread.next());
    let mut places = Vec::new();
    for status in [200, 200, 429] {
        let answer = ask("one").await.expect("never fails");
        assert_eq!(answer.status(), status);
        places.push(answer);
    }
}

/// A node with a history, and two people who may read it.
async fn asked_by_two(limits: Limits) -> Server {
    let open = with_node().await;
    let mut frames = Frames::new(now().plus_micros(-60_000_000));
    let frames: Vec<u8> = (0..50).flat_map(|_| frames.next_frame()).collect();
    assert_eq!(open.put_frames("1", frames).await.status, 204);
    let mut book = Book::default();
    for name in ["one", "two"] {
        book = book
            .token(name, name, &[])
            .rule(name, "list nodes", "*")
            .rule(name, "get nodes/memory", "*");
    }
    open.asking_within(book, limits)
}

#[tokio::test]
async fn a_result_that_is_asked_for_in_pages_is_bounded() {
    let server = with_node().await;
    for query in [
        "/nodes/1/memory?from=0&limit=10001",
        "/nodes/1/proc?view=full&limit=10001",
    ] {
        assert_eq!(server.get(query).await.status, 400, "{query}");
    }
}

#[tokio::test]
async fn agents_are_callers_too() {
    let limits = Limits {
        in_flight: 4,
        per_second: 0.01,
        burst: 3.0,
    };
    let open = Server::with(Options::default()).await;
    for uid in ["uid-a", "uid-b"] {
        let name = uid.replace("uid", "node");
        assert_eq!(open.register("192.0.2.1", &name, uid).await.status, 201);
    }
    let claims = |uid: &'static str| {
        [
            ("authentication.kubernetes.io/node-name", "node"),
            ("authentication.kubernetes.io/node-uid", uid),
        ]
    };
    let book =
        Book::default()
            .token("a", AGENT, &claims("uid-a"))
            .token("b", AGENT, &claims("uid-b"));
    let server = open.asking_within(book, limits);
    let push = async |token: &str, node: &str| {
        let way = ("PUT", node);
        let sample = r#"{"memory": {"total_bytes": 1}}"#;
        server.call_as(token, way, sample).await.status
    };
    let mut statuses = Vec::new();
    for _ in 0..5 {
        statuses.push(push("a", "/nodes/uid-a").await);
    }
    assert_eq!(statuses, [204, 204, 204, 429, 429]);
    assert_eq!(push("b", "/nodes/uid-b").await, 204);
    tokio::time::timeout(Duration::from_secs(1), push("b", "/nodes/uid-b"))
        .await
        .expect("nobody waits for the other");
}
