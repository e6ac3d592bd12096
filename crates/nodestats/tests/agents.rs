//! Real agents and a real server: register, push, buffer, backfill, sign off.

use std::path::Path;
use std::time::{Duration, Instant};

use nodestats_core::Frame;
use nodestats_testkit::{Program, eventually, get, last_gap, sample_times};
use nodestats_wire::client::Client;

fn api(data_dir: &Path, port: u16) -> Program {
    let listen = format!("127.0.0.1:{port}");
    let database = format!("surrealkv://{}", data_dir.display());
    Program::serve(&["api", "--listen", &listen, "--database", &database])
}

fn agent(server: &str, state_dir: &Path, ip: &str) -> Program {
    let state_dir = state_dir.to_str().expect("UTF-8");
    Program::agent(
        server,
        &[
            "--state-dir",
            state_dir,
            "--node-ip",
            ip,
            "--hostname",
            "test-node",
            "--interval",
            "200ms",
        ],
    )
}

/// Times of all samples of a node, oldest first, in seconds.
async fn times(client: &Client, node: &str) -> Option<Vec<f64>> {
    let history = get(client, &format!("/{node}?from=0")).await?;
    sample_times(&history)
}

#[tokio::test]
async fn an_agent_registers_pushes_and_signs_off() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let server = api(&folder.path().join("data"), 0);
    let client = server.client();
    let agent = agent(server.url(), &folder.path().join("state"), "192.168.2.10");
    eventually("rates", async || {
        get(&client, "/nodes/192.168.2.10/cpu").await?["usage_percent"].as_f64()
    })
    .await;
    assert_eq!(
        get(&client, "/nodes").await,
        Some(serde_json::json!(["192.168.2.10"]))
    );
    assert_eq!(agent.terminate().code(), Some(0));
    assert_eq!(get(&client, "/nodes").await, Some(serde_json::json!([])));
    assert!(
        client
            .get("/nodes/192.168.2.10", &[])
            .await
            .is_err_and(|error| error.status() == Some(404))
    );
    assert!(
        times(&client, "192.168.2.10")
            .await
            .is_some_and(|times| times.len() >= 2)
    );
}

/// A server that is too busy for whoever comes leaves it at that: it answers 429, and when it is to be
/// asked again. Returns its URL, and when it was asked.
fn busy_server(seconds: u64) -> (String, std::sync::mpsc::Receiver<Instant>) {
    use std::io::{Read as _, Write as _};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    let (asked, times) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut request = [0; 4096];
            let _ = stream.read(&mut request);
            let answer = format!(
                "HTTP/1.1 429 Too Many Requests\r\nRetry-After: {seconds}\r\nContent-Length: 0\r\n\
                 Connection: close\r\n\r\n"
            );
            let _ = stream.write_all(answer.as_bytes());
            if asked.send(Instant::now()).is_err() {
                return;
            }
        }
    });
    (url, times)
}

#[tokio::test]
async fn a_busy_server_is_left_alone_for_as_long_as_it_asks() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let (url, times) = busy_server(3);
    let agent = agent(&url, folder.path(), "192.168.2.10");
    let wait = || times.recv_timeout(Duration::from_mins(1)).expect("asked");
    let mut before = wait();
    for _ in 0..2 {
        let next = wait();
        let passed = next - before;
        assert!(passed >= Duration::from_millis(2900), "{passed:?}");
        before = next;
    }
    agent.kill();
}

#[tokio::test]
async fn what_was_sampled_while_the_server_was_away_is_not_lost() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let (data, state) = (folder.path().join("data"), folder.path().join("state"));
    let server = api(&data, 0);
    let (url, port, client) = (server.url().to_owned(), server.port(), server.client());
    let agent = agent(&url, &state, "192.168.2.10");
    let before = eventually("samples", async || {
        times(&client, "192.168.2.10")
            .await
            .filter(|times| times.len() >= 3)
    })
    .await;
    server.kill();
    // As many intervals pass without a server as there were samples.
    let away = std::time::Instant::now();
    eventually("an outage", async || {
        (away.elapsed().as_secs_f64() > 2.0).then_some(())
    })
    .await;
    let server = api(&data, port);
    let back = nodestats_wire::Timestamp::from_system(std::time::SystemTime::now()).seconds();
    let after = eventually("the past and the present", async || {
        let times = times(&client, "192.168.2.10").await?;
        // The outage took more than two seconds; the key of a second's only sample is cut to it.
        let complete = times.windows(2).all(|pair| pair[1] - pair[0] < 1.5);
        (complete && *times.last()? > back).then_some(times)
    })
    .await;
    // A sample that was alone in its second when it was asked for had a key without a fraction.
    let same = |(before, after): (&f64, &f64)| [*after, after.floor()].contains(before);
    assert!(before.iter().zip(&after).all(same), "{before:?} {after:?}");
    assert!(after.len() > before.len() + 5, "{before:?} {after:?}");
    // Most of them came as what differs from one before.
    let metrics = client.get("/metrics", &[]).await.expect("metrics");
    let metrics = String::from_utf8(metrics).expect("text");
    let count = |form: &str| {
        let series = format!("nodestats_frames_total{{form=\"{form}\"}} ");
        let mut lines = metrics.lines();
        let count = lines.find_map(|line| line.strip_prefix(&series)?.parse::<u32>().ok());
        count.expect("a count")
    };
    assert!(count("delta") > count("whole"), "{metrics}");
    assert_eq!(agent.terminate().code(), Some(0));
    drop(server);
}

/// Times of the samples that wait in an agent's state directory, in seconds.
fn times_on_disk(state: &Path) -> Vec<f64> {
    let files = std::fs::read_dir(state).expect("the state's folder");
    let names = files.map(|file| file.expect("a file").path());
    let waiting = |path: &std::path::PathBuf| path.to_string_lossy().contains("/waiting-");
    let mut times = Vec::new();
    for path in names.filter(waiting) {
        let bytes = std::fs::read(path).expect("a file");
        let mut rest = bytes.as_slice();
        while let Ok((frame, _, after)) = Frame::split_first(rest) {
            times.push(frame.time.seconds());
            // Behind the CRC-32 of the frame.
            rest = &after[4..];
        }
    }
    times
}

#[tokio::test]
async fn what_an_agent_could_not_send_the_next_one_sends() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let (data, state) = (folder.path().join("data"), folder.path().join("state"));
    let server = api(&data, 0);
    let (url, port, client) = (server.url().to_owned(), server.port(), server.client());
    let first = agent(&url, &state, "192.168.2.10");
    eventually("samples", async || {
        times(&client, "192.168.2.10")
            .await
            .filter(|times| times.len() >= 3)
    })
    .await;
    server.kill();
    // One agent is killed while samples wait, and another one is stopped.
    let waiting = || times_on_disk(&state);
    let several = async |agent: &str| {
        let before = waiting().len();
        let more = async || (waiting().len() >= before + 5).then_some(());
        eventually(agent, more).await;
    };
    several("samples of the first").await;
    first.kill();
    let second = agent(&url, &state, "192.168.2.10");
    several("samples of the second").await;
    assert_eq!(second.terminate().code(), Some(0));
    let kept = waiting();
    assert!(kept.len() >= 10);
    let server = api(&data, port);
    let third = agent(&url, &state, "192.168.2.10");
    eventually("what was kept", async || {
        let times = times(&client, "192.168.2.10").await?;
        // A second's only sample has a key that is cut to it.
        let is_there = |time: &f64| times.contains(time) || times.contains(&time.floor());
        kept.iter().all(is_there).then_some(())
    })
    .await;
    // What is sent waits no more.
    eventually("an empty disk", async || waiting().is_empty().then_some(())).await;
    assert_eq!(third.terminate().code(), Some(0));
    drop(server);
}

#[tokio::test]
async fn an_agent_that_the_server_forgot_registers_again() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let server = api(&folder.path().join("data"), 0);
    let client = server.client();
    let _agent = agent(server.url(), &folder.path().join("state"), "192.168.2.10");
    let uid = async || {
        get(&client, "/nodes?view=full").await?[0]["uid"]
            .as_str()
            .map(str::to_owned)
    };
    let first = eventually("a sample", async || {
        times(&client, "192.168.2.10")
            .await
            .filter(|times| !times.is_empty())?;
        uid().await
    })
    .await;
    client.deregister(&first).await.expect("signed off");
    eventually("the node is back", async || {
        let live = get(&client, "/nodes").await? == serde_json::json!(["192.168.2.10"]);
        live.then_some(())
    })
    .await;
    assert_eq!(uid().await, Some(first));
}

#[tokio::test]
async fn two_agents_on_one_machine_are_two_nodes() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let server = api(&folder.path().join("data"), 0);
    let client = server.client();
    let state = folder.path().join("state");
    let _agents = [
        agent(server.url(), &state, "192.168.2.10"),
        agent(server.url(), &state, "192.168.2.56"),
    ];
    eventually("both", async || {
        let both =
            get(&client, "/nodes").await? == serde_json::json!(["192.168.2.10", "192.168.2.56"]);
        both.then_some(())
    })
    .await;
    // They share a name: it is answered with both identities, never with a guess.
    let error = client
        .get("/nodes/test-node/cpu", &[])
        .await
        .expect_err("ambiguous");
    assert_eq!(error.status(), Some(409));
    let state_dir = state.to_str().expect("UTF-8");
    let third = Program::run(
        "nodestats-agent",
        &[
            "--server",
            server.url(),
            "--state-dir",
            state_dir,
            "--node-ip",
            "192.168.2.10",
            "--hostname",
            "test-node",
        ],
    );
    assert_eq!(third.status.code(), Some(1), "{third:?}");
    assert!(third.stderr.contains("is this node already"), "{third:?}");
}

#[tokio::test]
async fn the_plugin_shows_tables_to_people_and_the_apis_bytes_to_programs() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let server = api(&folder.path().join("data"), 0);
    let client = server.client();
    let agent = agent(server.url(), &folder.path().join("state"), "192.168.2.10");
    eventually("rates", async || {
        get(&client, "/nodes/192.168.2.10/cpu").await?["usage_percent"].as_f64()
    })
    .await;
    let plugin = |arguments: &[&str]| {
        let all: Vec<&str> = ["--server", server.url(), "get"]
            .iter()
            .chain(arguments)
            .copied()
            .collect();
        Program::run("kubectl-nodestats", &all)
    };
    for (arguments, expected) in [
        (&[][..], "192.168.2.10   test-node   live"),
        (&["192.168.2.10"], "MEMORY%"),
        (&["192.168.2.10", "--cpu"], "USAGE%"),
        (&["192.168.2.10", "--memory"], "AVAILABLE"),
        (&["192.168.2.10", "--disk"], "BUSY%"),
        (&["test-node", "--network", "-o", "wide"], "RX ERRORS/S"),
        (
            &[
                "test-node",
                "--processes",
                "--sort",
                "memory",
                "--limit",
                "5",
            ],
            "COMMAND",
        ),
        (&["test-node", "--pid", "0"], "System Idle process"),
        (
            &["test-node", "--cpu", "--from", "2026-01-01", "--step", "1s"],
            "TIME",
        ),
        (&["test-node", "--cpu", "-o", "yaml"], "usage_percent:"),
    ] {
        let run = plugin(arguments);
        assert!(
            run.status.success() && run.stdout.contains(expected),
            "{arguments:?}: {run:?}"
        );
    }
    assert_eq!(
        plugin(&["test-node", "--processes", "--limit", "5"])
            .stdout
            .lines()
            .count(),
        7
    );
    // Once the agent is gone nothing changes any more.
    assert_eq!(agent.terminate().code(), Some(0));
    eventually("the silence", async || {
        let history = get(&client, "/nodes/test-node/memory?from=2026-01-01").await?;
        last_gap(&history)
    })
    .await;
    let run = plugin(&[
        "test-node",
        "--memory",
        "--from",
        "2026-01-01",
        "--to",
        "2036-01-01",
        "-o",
        "json",
    ]);
    let query = [
        ("from", "2026-01-01".to_owned()),
        ("to", "2036-01-01".to_owned()),
    ];
    let body = client
        .get("/nodes/test-node/memory", &query)
        .await
        .expect("answered");
    assert_eq!(run.stdout.as_bytes(), body);
    let unknown = plugin(&["192.168.2.11", "--cpu"]);
    assert_eq!(unknown.status.code(), Some(1));
    assert!(unknown.stderr.contains("no node is named"), "{unknown:?}");
}
