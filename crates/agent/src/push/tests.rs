//! Thousands of agents' pushers against a real server that comes back after they have lost it.

use std::net::{IpAddr, Ipv4Addr};

use nodestats_core::sample::{Process, Sample};
use nodestats_core::{FrameId, Timestamp, frame};
use nodestats_runtime::metrics::Registry;
use nodestats_testkit::{Program, eventually_within};
use tokio::task::JoinSet;

use super::*;

/// As many as come back, unless this variable says otherwise: a database that was built for tests takes
/// minutes for thousands.
const AGENTS: u32 = 300;
const AGENTS_VARIABLE: &str = "NODESTATS_TEST_AGENTS";
/// Samples that wait with each.
const WAITING: u64 = 4;
/// Resident memory of a server that was built for tests, with all of them connected.
const MEMORY: u64 = 600 << 20;

/// A sample of this host, before `age`.
fn sample(agent_start: uuid::Uuid, sequence: u64, age: Duration) -> Vec<u8> {
    let process = |pid: u32| Process {
        pid,
        name: format!("worker-{pid}").into(),
        user_ticks: u64::from(pid) * sequence,
        ..Process::default()
    };
    let sample = Sample {
        processes: (1..20).map(process).collect(),
        ..Sample::default()
    };
    let now = Timestamp::from_system(std::time::SystemTime::now());
    let time = now.plus_micros(-(age.as_micros() as i64));
    let id = FrameId {
        agent_start,
        sequence,
    };
    frame::encode(time, id, Some(Duration::from_secs(10)), &sample)
}

/// The address of an agent; each is a host of its own.
fn address(number: u32) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from(0x7f01_0000 + number))
}

fn agent(url: &str, number: u32) -> (Arc<SharedQueue>, Pusher) {
    let client = Client::new(url, Duration::from_secs(10)).expect("a URL");
    let client = client.leaving_from(address(number)).expect("a client");
    let uid = uuid::Uuid::from_u128(u128::from(number) + 1);
    let queue = Arc::new(SharedQueue::new(1 << 20));
    for sequence in 0..WAITING {
        let age = Duration::from_secs((WAITING - sequence) * 10);
        queue.push(sample(uid, sequence, age));
    }
    let registration = Registration {
        uid: Some(uid.to_string()),
        ..Registration::new(address(number).to_string(), format!("node-{number}"))
    };
    let metrics = Arc::new(Metrics::new(&Registry::default(), &queue));
    let pusher = Pusher::new(
        client,
        Joining::ByItself(Box::new(registration), None),
        uid.to_string(),
        Arc::clone(&queue),
        Keeper::without_disk(&queue),
        metrics,
    );
    (queue, pusher)
}

#[tokio::test]
async fn agents_that_come_back_at_once_lose_nothing_and_leave_the_server_standing() {
    let agents = std::env::var(AGENTS_VARIABLE)
        .map_or(AGENTS, |agents| agents.parse().expect("a number of agents"));
    nodestats_runtime::limits::raise_open_files();
    let folder = tempfile::tempdir().expect("temporary folder");
    let data = format!("surrealkv://{}", folder.path().display());
    let server = Program::serve(&["api", "--listen", "127.0.0.1:0", "--database", &data]);
    let stop = CancellationToken::new();
    let (mut queues, mut pushers) = (Vec::new(), JoinSet::new());
    let begin = Instant::now();
    for number in 0..agents {
        let (queue, pusher) = agent(server.url(), number);
        queues.push(queue);
        pushers.spawn(pusher.run(stop.clone()));
    }
    // Who asks meanwhile is answered.
    let client = server.client();
    let slowest = std::cell::Cell::new(Duration::ZERO);
    let all = u64::from(agents) * WAITING;
    eventually_within(Duration::from_mins(10), "all samples", || async {
        let asked = Instant::now();
        let metrics = client.get("/metrics", &[]).await;
        let metrics = String::from_utf8(metrics.expect("the server answers")).expect("text");
        slowest.set(slowest.get().max(asked.elapsed()));
        let mut lines = metrics.lines();
        let stored = lines.find_map(|line| line.strip_prefix("nodestats_samples_stored_total "));
        let stored: f64 = stored?.parse().expect("a number");
        (stored >= all as f64).then_some(())
    })
    .await;
    println!(
        "{all} samples in {:?}; the slowest answer took {:?}, {} MiB resident at the peak",
        begin.elapsed(),
        slowest.get(),
        server.peak_memory() >> 20,
    );
    let dropped: u64 = queues
        .iter()
        .map(|queue| queue.with(|queue| queue.take_dropped()))
        .sum();
    assert_eq!(dropped, 0);
    assert!(server.peak_memory() < MEMORY, "{}", server.peak_memory());
    pushers.abort_all();
}
