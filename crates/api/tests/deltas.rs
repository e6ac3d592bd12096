//! Frames that say only what differs from one before: stored as if they had come whole, by whichever replica
//! takes them, and refused by one that cannot know what they differ from.

mod server;

use nodestats_core::frame::delta;
use nodestats_testkit::Frames;
use nodestats_wire::{Timestamp, routes};
use server::Server;

const RANGE: &str = "from=2026-03-01T11:00:00Z&to=2026-03-01T15:00:00Z";
const PATHS: [&str; 5] = ["", "/cpu", "/proc", "/proc/7", "/units"];

fn frames(count: usize) -> Vec<Vec<u8>> {
    let begin: Timestamp = "2026-03-01 11:59:30Z".parse().expect("a time");
    let frames = Frames::new(begin).punctual().of_whole_host();
    let mut frames = frames.in_pod("3c1f5a52-8e37-4c5e-9f5d-0a2b3c4d5e6f", &"a1".repeat(32));
    (0..count).map(|_| frames.next_frame()).collect()
}

fn delta(frame: &[u8], key: &[u8]) -> Vec<u8> {
    let delta = delta::encode(frame, key).expect("frames");
    delta.expect("of one agent")
}

async fn with_nodes(names: &[&str]) -> Server {
    let server = Server::new().await;
    for (number, name) in names.iter().enumerate() {
        let address = format!("192.0.2.{number}");
        assert_eq!(server.register(&address, name, name).await.status, 201);
    }
    server
}

async fn answers(server: &Server, node: &str) -> Vec<String> {
    let mut answers = Vec::new();
    for path in PATHS {
        let answer = server.get(&format!("/nodes/{node}{path}?{RANGE}")).await;
        assert_eq!(answer.status, 200, "{path}");
        let text = String::from_utf8(answer.body).expect("text");
        assert!(text.contains("2026-03-01T12:00"), "{path}: {text}");
        // Nodes differ by name and address.
        answers.push(text.replace(&format!("\"{node}\""), "\"node\""));
    }
    answers
}

/// How many samples a node has.
async fn samples(server: &Server, node: &str) -> usize {
    let minute = "from=2026-03-01T11:59:00Z&to=2026-03-01T12:00:00Z";
    let path = format!("/nodes/{node}/proc/7?{minute}");
    let history = server.get(&path).await.json();
    let entries = history.as_object().expect("keyed by time").values();
    entries.filter(|entry| entry["pid"] == 7).count()
}

#[tokio::test]
async fn a_delta_is_stored_as_its_frame_is() {
    let server = with_nodes(&["whole", "delta", "past"]).await;
    let frames = frames(60);
    let mut past = Vec::new();
    for (number, frame) in frames.iter().enumerate() {
        let key = &frames[number / 12 * 12];
        let is_key = number % 12 == 0;
        let sent = if is_key {
            frame.clone()
        } else {
            delta(frame, key)
        };
        let whole = server.put_frames("whole", frame.clone()).await;
        assert_eq!(
            (whole.status, whole.header(routes::DELTAS_HEADER)),
            (204, "1")
        );
        past.extend(&sent);
        // Sent again it counts once.
        for _ in 0..=number % 2 {
            let answer = server.put_frames("delta", sent.clone()).await;
            assert_eq!(answer.status, 204, "{number}");
        }
    }
    // In one body with the frames they differ from.
    assert_eq!(server.put_frames("past", past).await.status, 204);
    let whole = answers(&server, "whole").await;
    for node in ["delta", "past"] {
        let of_node = answers(&server, node).await;
        for ((path, whole), answer) in PATHS.iter().zip(&whole).zip(of_node) {
            let same_address = answer.replace("192.0.2.1", "192.0.2.0");
            assert_eq!(
                *whole,
                same_address.replace("192.0.2.2", "192.0.2.0"),
                "{path}"
            );
        }
    }
    let metrics = String::from_utf8(server.get("/metrics").await.body).expect("text");
    for line in [
        "nodestats_frames_total{form=\"delta\"} 140",
        "nodestats_frames_total{form=\"whole\"} 70",
    ] {
        assert!(metrics.contains(line), "{line}\n{metrics}");
    }
}

#[tokio::test]
async fn any_replica_takes_a_delta_and_none_guesses() {
    let server = with_nodes(&["one", "two"]).await;
    let frames = frames(4);
    let later = delta(&frames[1], &frames[0]);
    let refused = |answer: server::Answer| {
        assert_eq!(answer.status, 409);
        assert_eq!(answer.json()["type"], routes::MISSING_KEY_FRAME);
    };
    refused(server.put_frames("one", later.clone()).await);
    assert_eq!(
        server.put_frames("one", frames[0].clone()).await.status,
        204
    );
    // Another replica on the same database has not seen it.
    let stored = server.replica().put_frames("one", later.clone()).await;
    assert_eq!(stored.status, 204);
    // What another node has sent is nothing to this one.
    refused(server.put_frames("two", later.clone()).await);
    // Nor is a frame of the same number with another content.
    let begin: Timestamp = "2026-03-01 11:59:30Z".parse().expect("a time");
    let mut strange = Frames::new(begin).of_boot("another").next_frame();
    strange[13..29].copy_from_slice(&frames[0][13..29]);
    assert_eq!(strange[5..37], frames[0][5..37]);
    assert_eq!(server.put_frames("two", strange).await.status, 204);
    refused(server.put_frames("two", later).await);
    // All or nothing: of a body that needs what is not there nothing is stored.
    let body = [frames[2].clone(), delta(&frames[3], &frames[1])].concat();
    let mut lost = body.clone();
    lost.truncate(body.len() - 3);
    assert_eq!(server.put_frames("one", lost).await.status, 400);
    assert_eq!(server.put_frames("one", body).await.status, 204);
    assert_eq!(samples(&server, "one").await, 4);
}

#[tokio::test]
async fn a_key_frame_that_is_sealed_is_to_be_sent_again() {
    let server = with_nodes(&["one"]).await;
    let frames = frames(3);
    assert_eq!(
        server.put_frames("one", frames[0].clone()).await.status,
        204
    );
    let now = Timestamp::from_system(std::time::SystemTime::now());
    server.store.seal(now).await.expect("sealed");
    // The replica that took it has it still, and another one has not.
    let other = server.replica();
    let later = delta(&frames[1], &frames[0]);
    assert_eq!(other.put_frames("one", later.clone()).await.status, 409);
    assert_eq!(server.put_frames("one", later.clone()).await.status, 204);
    let again = [frames[0].clone(), delta(&frames[2], &frames[0])].concat();
    assert_eq!(other.put_frames("one", again).await.status, 204);
    assert_eq!(samples(&server, "one").await, 3);
}
