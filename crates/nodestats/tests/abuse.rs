//! Those who take more than their share, on the real program: others go on beside them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nodestats_testkit::{Frames, PATIENCE, Program, SmallDisk, eventually, get};
use nodestats_wire::Timestamp;
use nodestats_wire::client::Client;
use nodestats_wire::v1::{Reading, Registration};
use serde_json::Value;

/// Hosts that behave.
const QUIET: usize = 4;
/// Pushes of each of them.
const PUSHES: usize = 20;

fn now() -> Timestamp {
    Timestamp::from_system(std::time::SystemTime::now())
}

fn issue(data: &str, arguments: &[&str]) -> String {
    let arguments = [&["token", "issue", "--data-dir", data], arguments].concat();
    let run = Program::run("nodestats", &arguments);
    assert!(run.status.success(), "{run:?}");
    run.stdout.trim().to_owned()
}

/// A registered host with its own token.
async fn host(server: &Program, data: &str, number: usize) -> (Client, String) {
    let name = format!("host-{number}");
    let token = issue(data, &["--node", &name]);
    let client = server.client().with_token(&token).expect("loopback");
    let uid = format!("00000000-0000-4000-8000-{number:012}");
    let mut registration = Registration::new(format!("192.0.2.{number}"), name);
    registration.uid = Some(uid.clone());
    client.register(&registration).await.expect("registered");
    (client, uid)
}

/// Pushes of a host that behaves: none may fail. How long each took.
async fn behave(client: Client, uid: String) -> Vec<Duration> {
    let mut frames = Frames::new(now().plus_micros(-600_000_000));
    let mut took = Vec::with_capacity(PUSHES);
    for _ in 0..PUSHES {
        let begin = Instant::now();
        let pushed = client.push_frames(&uid, frames.next_frame()).await;
        pushed.expect("a host that behaves is taken at once");
        took.push(begin.elapsed());
        // As an agent: between two samples there is time.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    took
}

async fn all_behave(hosts: &[(Client, String)]) -> Vec<Duration> {
    let hosts: Vec<_> = hosts
        .iter()
        .cloned()
        .map(|(client, uid)| tokio::spawn(behave(client, uid)))
        .collect();
    let mut took = Vec::new();
    for host in hosts {
        took.extend(host.await.expect("no panic"));
    }
    took.sort_unstable();
    took
}

/// A push of many samples.
fn large() -> Vec<Reading> {
    let begin = now().plus_micros(-3_600_000_000);
    let reading = |n: i64| Reading {
        time: Some(begin.plus_micros(n * 1000)),
        memory_usage_percent: Some(n as f64 / 7.0),
        ..Reading::default()
    };
    (0..200).map(reading).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_and_a_reader_that_flood_delay_no_push_of_the_others() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let data = folder.path().join("data").display().to_string();
    let database = format!("surrealkv://{data}");
    let server = Program::serve(&[
        "api",
        "--listen",
        "127.0.0.1:0",
        "--database",
        &database,
        "--require-tokens",
    ]);
    let mut quiet = Vec::new();
    for number in 1..=QUIET {
        quiet.push(host(&server, &data, number).await);
    }
    let (flooding, flooded) = host(&server, &data, 9).await;
    let reader = issue(&data, &["--role", "process-viewer"]);
    let reader = server.client().with_token(&reader).expect("loopback");
    let alone = all_behave(&quiet).await;

    let go_on = Arc::new(AtomicBool::new(true));
    let counts: Arc<[AtomicU64; 4]> = Arc::default();
    let mut floods = Vec::new();
    for task in 0..40 {
        let (go_on, counts) = (Arc::clone(&go_on), Arc::clone(&counts));
        let (flooding, flooded, reader) = (flooding.clone(), flooded.clone(), reader.clone());
        floods.push(tokio::spawn(async move {
            let large = large();
            while go_on.load(Ordering::Relaxed) {
                let is_writer = task % 2 == 0;
                let done = if is_writer {
                    flooding.put_readings(&flooded, &large).await
                } else {
                    let path = format!("/nodes/{flooded}/memory?from=0");
                    reader.get(&path, &[]).await.map(drop)
                };
                let refused = match done {
                    Ok(()) => 0,
                    // Told before the body was sent, the connection may break in the middle of it.
                    Err(error) if matches!(error.status(), Some(429) | None) => 1,
                    Err(error) => panic!("{error:?}"),
                };
                if refused > 0 {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                counts[2 * usize::from(is_writer) + refused].fetch_add(1, Ordering::Relaxed);
            }
        }));
    }
    let beside = all_behave(&quiet).await;
    go_on.store(false, Ordering::Relaxed);
    for flood in floods {
        flood.await.expect("no panic");
    }
    let [read, reads_refused, written, writes_refused] =
        std::array::from_fn(|index| counts[index].load(Ordering::Relaxed));
    assert!(read > 0 && written > 0, "{read} {written}");
    assert!(
        reads_refused > 0 && writes_refused > 0,
        "both are held back"
    );
    let at = |took: &[Duration], part: usize| took[(took.len() - 1) * part / 100].as_secs_f64();
    let figures = serde_json::json!({
        "quiet_push_p50_ms": {"alone": at(&alone, 50) * 1e3, "beside_flood": at(&beside, 50) * 1e3},
        "quiet_push_p99_ms": {"alone": at(&alone, 99) * 1e3, "beside_flood": at(&beside, 99) * 1e3},
        "flood": {"written": written, "writes_refused": writes_refused, "read": read, "reads_refused": reads_refused},
    });
    println!("{figures}");
    let viewer = reader;
    for (_, uid) in &quiet {
        let history = eventually("its history", async || {
            get(&viewer, &format!("/nodes/{uid}/proc?from=0")).await
        });
        let history = history.await;
        // Both times the same seconds of the past, by two starts of an agent.
        assert!(entries(&history) >= PUSHES, "{}", entries(&history));
    }
    assert!(server.terminate().success());
}

fn entries(history: &Value) -> usize {
    history.as_object().map_or(0, serde_json::Map::len)
}

/// Bytes that no encoding makes smaller.
fn noise(seed: &mut u64, length: usize) -> String {
    let digit = |_| {
        *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        char::from(b'!' + ((*seed >> 40) % 90) as u8)
    };
    (0..length).map(digit).collect()
}

#[tokio::test]
async fn a_node_that_floods_uses_up_its_own_share_of_the_disk() {
    let disk = SmallDisk::new(96);
    let database = format!("surrealkv://{}", disk.path().join("data").display());
    let server = disk.serve(&["api", "--listen", "127.0.0.1:0", "--database", &database]);
    let client = Client::new(server.url(), PATIENCE).expect("a URL");
    for (ip, name) in [("192.0.2.1", "flood"), ("192.0.2.2", "quiet")] {
        let registration = Registration::new(ip, name);
        client.register(&registration).await.expect("registered");
    }
    let begin = now().plus_micros(-3_600_000_000);
    let put = async |node: &str, n: i64, user: Option<String>| {
        let process = nodestats_wire::v1::Process {
            pid: 1,
            command_line: user,
            ..Default::default()
        };
        let reading = Reading {
            time: Some(begin.plus_micros(n * 1_000_000)),
            memory_usage_percent: Some(1.0),
            processes: Some(vec![process]),
            ..Reading::default()
        };
        let put = client.put_readings(node, &[reading]).await;
        put.err().map(|error| error.status().expect("an answer"))
    };
    let mut seed = 7;
    let (mut flooded, mut quiet) = (0, 0);
    assert_eq!(put("quiet", quiet, None).await, None);
    quiet += 1;
    // Until it is told that it has enough; not that the disk is full.
    let refused = loop {
        assert!(flooded < 1000, "a GB on a disk of 96 MiB");
        match put("flood", flooded, Some(noise(&mut seed, 512 << 10))).await {
            None => flooded += 1,
            Some(status) => break status,
        }
    };
    assert_eq!(refused, 429, "after {flooded} pushes of half a MiB");
    assert!(flooded > 20, "{flooded}");
    // The other goes on.
    for _ in 0..300 {
        assert_eq!(
            put("quiet", quiet, Some(noise(&mut seed, 2000))).await,
            None
        );
        quiet += 1;
    }
    // Nobody's history was given up for it.
    for (node, count) in [("flood", flooded), ("quiet", quiet)] {
        let history = get(&client, &format!("/{node}?from=0")).await;
        assert_eq!(
            entries(&history.expect("a history")) as i64,
            count,
            "{node}"
        );
    }
    assert!(server.terminate().success());
}
