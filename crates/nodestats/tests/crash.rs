//! The server is killed or stopped at any moment under load: what it acknowledged is there, once.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use nodestats_testkit::{Frames, Program};
use nodestats_wire::Timestamp;
use nodestats_wire::client::Client;
use nodestats_wire::v1::Registration;
use serde_json::Value;

/// How often it ends; each time after another while, and every fourth time in order.
const ENDS: u64 = 16;
const NODES: usize = 4;

fn api(data_dir: &Path) -> Program {
    let database = format!("surrealkv://{}", data_dir.display());
    Program::serve(&["api", "--listen", "127.0.0.1:0", "--database", &database])
}

async fn register(client: &Client, node: usize) {
    let registration = Registration {
        uid: Some(format!("uid-{node}")),
        ..Registration::new(format!("10.0.0.{node}"), format!("node-{node}"))
    };
    client.register(&registration).await.expect("registered");
}

/// Pushes until the server is gone. Returns the generator with a frame that was not acknowledged,
/// which is sent again first: that must not count twice.
async fn push(
    client: Client,
    node: usize,
    mut frames: Frames,
    mut unsure: Option<(Timestamp, Vec<u8>)>,
    acknowledged: Arc<AtomicU64>,
) -> (Frames, Option<(Timestamp, Vec<u8>)>, Vec<Timestamp>) {
    let mut done = Vec::new();
    loop {
        let (time, frame) = unsure
            .take()
            .unwrap_or_else(|| (frames.next_time(), frames.next_frame()));
        match client
            .push_frames(&format!("uid-{node}"), frame.clone())
            .await
        {
            Ok(_) => {
                done.push(time);
                acknowledged.fetch_add(1, Ordering::Relaxed);
            }
            Err(_) => return (frames, Some((time, frame)), done),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_any_end_and_counts_once() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let begin = Timestamp::from_system(SystemTime::now()).plus_micros(-12 * 3600 * 1_000_000);
    let begin = begin.floor_to(1_000_000);
    let mut kept: Vec<Vec<Timestamp>> = vec![Vec::new(); NODES];
    let mut state: Vec<_> = (0..NODES)
        .map(|_| Some((Frames::new(begin), None)))
        .collect();
    for round in 0..ENDS {
        let server = api(folder.path());
        let client = server.client();
        for node in 0..NODES {
            register(&client, node).await;
        }
        let acknowledged = Arc::new(AtomicU64::new(0));
        let mut pushing = Vec::new();
        for (node, state) in state.iter_mut().enumerate() {
            let (frames, unsure) = state.take().expect("given back");
            let acknowledged = Arc::clone(&acknowledged);
            pushing.push(tokio::spawn(push(
                client.clone(),
                node,
                frames,
                unsure,
                acknowledged,
            )));
        }
        // From in the midst of the first pushes to some way into the flow.
        while acknowledged.load(Ordering::Relaxed) < round * 7 {
            tokio::task::yield_now().await;
        }
        tokio::time::sleep(Duration::from_micros(700 * round)).await;
        if round % 4 == 3 {
            let begin = Instant::now();
            assert_eq!(server.terminate().code(), Some(0));
            // What the program promises, under load too.
            assert!(begin.elapsed() < Duration::from_secs(5));
        } else {
            server.kill();
        }
        for (node, pushing) in pushing.into_iter().enumerate() {
            let (frames, unsure, done) = pushing.await.expect("no panic");
            kept[node].extend(done);
            state[node] = Some((frames, unsure));
        }
    }
    let server = api(folder.path());
    let client = server.client();
    let total: usize = kept.iter().map(Vec::len).sum();
    assert!(total as u64 > ENDS, "{total} pushes");
    for (node, kept) in kept.iter().enumerate() {
        let body = client
            .get(&format!("/node-{node}?from=0"), &[])
            .await
            .expect("answered");
        let history: Value = serde_json::from_slice(&body).expect("JSON");
        let found: Vec<&String> = history.as_object().expect("an object").keys().collect();
        // One frame a second: two of one time would show as keys with a fraction.
        assert!(found.iter().all(|key| !key.contains('.')), "{found:?}");
        for time in kept {
            assert!(found.contains(&&time.to_key()), "node {node} lost {time}");
        }
        // Each push under way at an end may have been stored too, and no other.
        assert!(
            found.len() <= kept.len() + 1,
            "{} of {}",
            found.len(),
            kept.len()
        );
    }
}
