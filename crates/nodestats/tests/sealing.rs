//! The programs seal hours that are over, before their own database and before a real server, and what is
//! asked is answered as before.

use std::time::{Duration, SystemTime};

use nodestats_testkit::{DatabaseServer, Frames, Program, eventually, get};
use nodestats_wire::Timestamp;
use nodestats_wire::client::Client;
use nodestats_wire::v1::Registration;
use serde_json::Value;

/// Hours with samples, and how many there are in each.
const HOURS: i64 = 3;
const SAMPLES: usize = 200;

const QUESTIONS: [&str; 4] = [
    "/nodes/a-node?from=0",
    "/nodes/a-node/cpu?from=0&step=60",
    "/nodes/a-node/proc?from=0&limit=450",
    "/nodes/a-node/proc/7?from=0",
];

/// Registers a node, and pushes hours that are over.
async fn push(client: &Client) {
    let registration = Registration::new("192.168.2.10", "a-node");
    assert!(client.register(&registration).await.expect("new"));
    let now = Timestamp::from_system(SystemTime::now());
    let hour = 3600 * 1_000_000;
    let begin = now.floor_to(hour).plus_micros(-(HOURS + 1) * hour);
    let mut frames = Frames::new(begin);
    for _ in 0..HOURS {
        let bodies = std::iter::repeat_with(|| frames.next_frame());
        let body: Vec<u8> = bodies.take(SAMPLES).flatten().collect();
        client.push_frames("a-node", body).await.expect("stored");
        frames.rest(3600 - SAMPLES as i64);
    }
}

async fn ask(client: &Client) -> Vec<Value> {
    let mut answers = Vec::new();
    for question in QUESTIONS {
        answers.push(get(client, question).await.expect("a history"));
    }
    answers
}

/// A figure of a program's metrics.
async fn figure(client: &Client, name: &str) -> f64 {
    let metrics = client.get("/metrics", &[]).await.expect("metrics");
    let text = String::from_utf8(metrics).expect("text");
    let mut lines = text.lines().filter_map(|line| line.rsplit_once(' '));
    let number = lines.find_map(|(series, number)| (series == name).then_some(number));
    number.map_or(0.0, |number| number.parse().expect("a number"))
}

/// How many samples this program has sealed since it was started.
async fn sealed(client: &Client) -> u64 {
    figure(client, "nodestats_store_sealed_total").await as u64
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_embedded_database_is_sealed_in_spite_of_kills() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let database = format!("surrealkv://{}", folder.path().display());
    let serve = || Program::serve(&["api", "--listen", "127.0.0.1:0", "--database", &database]);
    let server = serve();
    push(&server.client()).await;
    let before = ask(&server.client()).await;
    let history = before[0].as_object().expect("keyed by time");
    assert_eq!(history.len(), HOURS as usize * SAMPLES);
    drop(server);
    for millis in [0, 20, 60] {
        let server = serve();
        tokio::time::sleep(Duration::from_millis(millis)).await;
        drop(server);
        let server = serve();
        assert_eq!(ask(&server.client()).await, before);
        drop(server);
    }
    let server = serve();
    let client = server.client();
    eventually("sealing", async || {
        let metrics = client.get("/metrics", &[]).await.ok()?;
        let text = String::from_utf8(metrics).ok()?;
        let looked = r#"nodestats_store_sealing_duration_seconds_count{outcome="done"} 1"#;
        text.lines().any(|line| line == looked).then_some(())
    })
    .await;
    assert_eq!(ask(&client).await, before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_two_replicas_seals_and_both_read() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let database = DatabaseServer::start(folder.path());
    let url = database.url();
    let serve = || {
        let database = ["--database", &url, "--database-user", DatabaseServer::USER];
        let password = ["--database-password", DatabaseServer::PASSWORD];
        let arguments = ["api", "--listen", "127.0.0.1:0"];
        let arguments: Vec<&str> = arguments
            .into_iter()
            .chain(database)
            .chain(password)
            .collect();
        Program::serve(&arguments)
    };
    let first = serve();
    push(&first.client()).await;
    let before = ask(&first.client()).await;
    assert_eq!(first.terminate().code(), Some(0));
    let servers = [serve(), serve()];
    let clients = servers.each_ref().map(Program::client);
    let all = eventually("sealing", async || {
        let counts = [sealed(&clients[0]).await, sealed(&clients[1]).await];
        (counts[0] + counts[1] >= (HOURS as u64) * SAMPLES as u64).then_some(counts)
    })
    .await;
    assert!(all.contains(&0), "both have sealed: {all:?}");
    assert_eq!(all[0] + all[1], (HOURS as u64) * SAMPLES as u64);
    for client in &clients {
        assert_eq!(ask(client).await, before);
    }
}
