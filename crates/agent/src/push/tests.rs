//! Thousands of agents' pushers against a real server that comes back after they have lost it.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicBool, Ordering};

use nodestats_core::sample::{Process, Sample};
use nodestats_core::{Frame, FrameId, Timestamp, frame};
use nodestats_runtime::metrics::Registry;
use nodestats_testkit::{Program, eventually_within};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
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

fn uid(number: u32) -> uuid::Uuid {
    uuid::Uuid::from_u128(u128::from(number) + 1)
}

/// An agent with so many samples that wait.
fn agent(url: &str, number: u32, waiting: u64) -> (Arc<SharedQueue>, Pusher) {
    let client = Client::new(url, Duration::from_secs(10)).expect("a URL");
    let client = client.leaving_from(address(number)).expect("a client");
    let uid = uid(number);
    let queue = Arc::new(SharedQueue::new(1 << 20));
    for sequence in 0..waiting {
        let age = Duration::from_secs((waiting - sequence) * 10);
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

/// A server that has no room for bodies of more than `most` bytes until it is told so; the sequences that it
/// took, as they came.
async fn busy(
    most: usize,
    has_room: Arc<AtomicBool>,
) -> (String, mpsc::UnboundedReceiver<Vec<u64>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    let (taken_tx, taken) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (taken_tx, has_room) = (taken_tx.clone(), Arc::clone(&has_room));
            tokio::spawn(async move {
                let mut stream = BufReader::new(stream);
                loop {
                    let (mut line, mut length) = (String::new(), 0);
                    while stream.read_line(&mut line).await.is_ok_and(|read| read > 2) {
                        let header = line.to_ascii_lowercase();
                        if let Some(value) = header.strip_prefix("content-length:") {
                            length = value.trim().parse().expect("a length");
                        }
                        line.clear();
                    }
                    let mut body = vec![0; length];
                    if line.is_empty() || stream.read_exact(&mut body).await.is_err() {
                        return;
                    }
                    let answer = if length > most && !has_room.load(Ordering::Relaxed) {
                        "429 Too Many Requests\r\nretry-after: 1\r\ncontent-length: 0\r\n\r\n"
                    } else {
                        let (mut rest, mut sequences) = (&*body, Vec::new());
                        while let Ok((frame, _, after)) = Frame::split_first(rest) {
                            sequences.push(frame.id.sequence);
                            rest = after;
                        }
                        let _ = taken_tx.send(sequences);
                        "204 No Content\r\n\r\n"
                    };
                    let answer = format!("HTTP/1.1 {answer}");
                    if stream.write_all(answer.as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    (url, taken)
}

#[tokio::test]
async fn where_the_server_has_no_room_for_the_past_that_waits_and_the_present_goes_on() {
    let one = sample(uid(0), 0, Duration::ZERO).len();
    let has_room = Arc::new(AtomicBool::new(false));
    let (url, mut taken) = busy(one * 3 / 2, Arc::clone(&has_room)).await;
    let (queue, mut pusher) = agent(&url, 0, 10);
    pusher.joining = Joining::ByController;
    let stop = CancellationToken::new();
    let pushing = tokio::spawn(pusher.run(stop.clone()));
    queue.push(sample(uid(0), 10, Duration::ZERO));
    for newest in 10..15 {
        assert_eq!(taken.recv().await, Some(vec![newest]));
        queue.push(sample(uid(0), newest + 1, Duration::ZERO));
    }
    assert_eq!(taken.recv().await, Some(vec![15]));
    assert_eq!(queue.with(|queue| queue.len()), 10);
    has_room.store(true, Ordering::Relaxed);
    assert_eq!(taken.recv().await, Some((0..10).collect()));
    stop.cancel();
    pushing.await.expect("ends");
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
        let (queue, pusher) = agent(server.url(), number, WAITING);
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
        .map(|queue| queue.with(crate::queue::Queue::take_dropped))
        .sum();
    assert_eq!(dropped, 0);
    assert!(server.peak_memory() < MEMORY, "{}", server.peak_memory());
    pushers.abort_all();
}
