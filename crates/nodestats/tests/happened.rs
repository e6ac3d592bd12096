//! What happened, on real parts: a process that the kernel kills, agents that are told to end and ones
//! that are killed, a boot, samples that are dropped. It needs root, as the tests on clusters do.

use std::fs;
use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

use nodestats_testkit::{
    ControlGroup, Limit, Program, Run, eventually, eventually_within, free_port, get, last_gap,
    sample_times,
};
use nodestats_wire::Timestamp;
use nodestats_wire::client::Client;
use serde_json::{Value, json};

const LIMIT: u64 = 32 << 20;
const FIRST_BOOT: &str = "00000000-0000-4000-8000-000000000001";

fn kinds(events: &Value) -> Vec<&str> {
    let events = events.as_array().expect("a list");
    let kind = |event: &'_ Value| event["kind"].as_str().expect("a kind").len();
    assert!(events.iter().all(|event| kind(event) > 0));
    events
        .iter()
        .filter_map(|event| event["kind"].as_str())
        .collect()
}

#[tokio::test]
async fn a_kill_for_memory_is_told_with_its_group_its_limit_and_its_victim() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let go = folder.path().join("go");
    // `tail` keeps what it reads, and there is no line end.
    let script = format!(
        "while [ ! -e {} ]; do sleep 0.1; done; tail /dev/zero; sleep 600",
        go.display()
    );
    let service = ControlGroup::start(&script, Limit::MemoryBytes(LIMIT));
    let data_dir = folder.path().join("data");
    let data_dir = data_dir.to_str().expect("UTF-8");
    let listen = "127.0.0.1:0";
    let server = Program::serve(&[
        "standalone",
        "--listen",
        listen,
        "--data-dir",
        data_dir,
        "--interval",
        "500ms",
    ]);
    let client = server.client();
    let node = eventually("two samples", async || {
        let nodes = get(&client, "/nodes?view=full").await?;
        let node = nodes[0]["hostname"].as_str()?.to_owned();
        let unit = get(&client, &format!("/nodes/{node}/units?from=0")).await?;
        (unit.as_object()?.len() > 2).then_some(node)
    })
    .await;
    fs::write(&go, "").expect("written");
    let path = format!("/nodes/{node}/events?kind=oom_kill");
    let kill = eventually("the kill", async || {
        let kills = get(&client, &path).await?;
        let kills = kills.as_array()?.iter();
        let mut own = kills.filter(|kill| kill["cgroup"] == *service.path());
        own.next().cloned()
    })
    .await;
    println!("{kill}");
    assert_eq!(kill["limit_bytes"], LIMIT);
    let memory = kill["memory_bytes"].as_u64().expect("its memory");
    let message = kill["message"].as_str().expect("a sentence");
    if fs::File::open("/dev/kmsg").is_ok() {
        assert_eq!(kill["sources"], json!(["kernel_log"]));
        assert_eq!(kill["victim"]["name"], "tail");
        // Pages of files that it shares with others are not the group's, and they are in its memory.
        assert!((LIMIT / 2..LIMIT * 3 / 2).contains(&memory), "{kill}");
        assert!(message.starts_with("process tail ("), "{kill}");
    } else {
        assert_eq!(kill["sources"], json!(["cgroup"]));
        assert!(message.ends_with("may not be read on this node"), "{kill}");
    }
    // It is told once, by the samples after it too, and the plugin shows it.
    let told = kill["time"].as_str().expect("a time");
    let later = format!("/nodes/{node}/memory?from={told}");
    eventually("four more samples", async || {
        let times = sample_times(&get(&client, &later).await?)?;
        (times.len() > 4).then_some(())
    })
    .await;
    let kills = get(&client, &path).await.expect("kills");
    let own = kills.as_array().expect("a list").iter();
    assert_eq!(
        own.filter(|kill| kill["cgroup"] == *service.path()).count(),
        1,
        "{kills}"
    );
    let words = [
        "--server",
        server.url(),
        "events",
        &node,
        "--kind",
        "oom_kill",
    ];
    let shown: Run = Program::run("kubectl-nodestats", &words);
    assert!(shown.stdout.contains(message), "{shown:?}");
    assert_eq!(server.terminate().code(), Some(0));
}

/// A host whose every file is ours: of this boot, with so many processes.
fn write_host(root: &Path, boot_id: &str, processes: u32) {
    let write = |path: &str, text: &str| {
        let path = root.join(path);
        fs::create_dir_all(path.parent().expect("below the root")).expect("made");
        fs::write(path, text).expect("written");
    };
    write(
        "proc/stat",
        "cpu  10 0 10 100 0 0 0 0 0 0\ncpu0 10 0 10 100 0 0 0 0 0 0\nbtime 1000\n",
    );
    write("proc/sys/kernel/random/boot_id", boot_id);
    for pid in 1..=processes {
        let stat = format!("{pid} (work) S 0 {pid} 0 0 0 0 1 0 0 0 1 1 0 0 20 0 1 0 50 4096 1\n");
        write(&format!("proc/{pid}/stat"), &stat);
        // What nothing compresses.
        let line: Vec<String> = (0..6).map(|_| uuid::Uuid::new_v4().to_string()).collect();
        write(&format!("proc/{pid}/cmdline"), &line.join("\0"));
    }
}

fn api(data_dir: &Path, port: u16) -> Program {
    let listen = format!("127.0.0.1:{port}");
    let database = format!("surrealkv://{}", data_dir.display());
    Program::serve(&["api", "--listen", &listen, "--database", &database])
}

fn agent_arguments(folder: &Path) -> Vec<String> {
    let (state, root) = (folder.join("state"), folder.join("host"));
    [
        "--state-dir",
        state.to_str().expect("UTF-8"),
        "--host-root",
        root.to_str().expect("UTF-8"),
        "--node-ip",
        "192.168.2.10",
        "--hostname",
        "test-node",
        "--interval",
        "200ms",
    ]
    .map(str::to_owned)
    .to_vec()
}

fn agent(server: &str, folder: &Path, more: &[&str]) -> Program {
    let arguments = agent_arguments(folder);
    let arguments: Vec<&str> = arguments
        .iter()
        .map(String::as_str)
        .chain(more.iter().copied())
        .collect();
    Program::agent(server, &arguments)
}

/// An agent on a host that was started a moment ago, by a time namespace
/// (`time_namespaces(7)`); killed
/// when it is dropped.
struct Rebooted(Child);

impl Rebooted {
    fn start(server: &str, folder: &Path) -> Self {
        let uptime = fs::read_to_string("/proc/uptime").expect("readable");
        let uptime: f64 = uptime
            .split(' ')
            .next()
            .and_then(|text| text.parse().ok())
            .expect("a number");
        let program = Path::new(env!("CARGO_BIN_EXE_nodestats")).with_file_name("nodestats-agent");
        let agent = Command::new("unshare")
            .args([
                "--time",
                "--boottime",
                &format!("-{:.0}", uptime.floor() - 1.0),
            ])
            .args(["--fork", "--kill-child=KILL"])
            .arg(program)
            .args(["--server", server])
            .args(agent_arguments(folder))
            .spawn();
        Self(agent.expect("unshare of util-linux"))
    }
}

impl Drop for Rebooted {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits until the history ends with a gap that began so many seconds ago, and returns it.
async fn until_silent(client: &Client, seconds: f64) -> Value {
    eventually("the silence", async || {
        let history = get(client, "/nodes/test-node?from=0").await?;
        let gap = last_gap(&history)?;
        let from: Timestamp = gap["from"].as_str()?.parse().ok()?;
        let now = Timestamp::from_system(std::time::SystemTime::now());
        (now.seconds_since(from) >= seconds).then_some(gap)
    })
    .await
}

/// Waits for so many samples after the last gap.
async fn until_sampled(client: &Client, samples: usize) {
    eventually("samples", async || {
        let history = get(client, "/nodes/test-node?from=0").await?;
        let entries = history.as_object()?.values().rev();
        let last = entries.take_while(|entry| entry.get("gap").is_none());
        (last.count() >= samples).then_some(())
    })
    .await;
}

/// The reasons of the gaps of the node's history that are closed, in their order.
async fn reasons(client: &Client) -> Option<Vec<String>> {
    let history = get(client, "/nodes/test-node?from=0").await?;
    let gaps = history
        .as_object()?
        .values()
        .filter_map(|entry| entry.get("gap"));
    let gaps = gaps.filter(|gap| gap.get("to").is_some());
    // A busy machine misses a tick now and then, and says that it does not know why.
    let reasons = gaps.filter_map(|gap| gap["reason"].as_str());
    let known = reasons.filter(|reason| *reason != "unknown");
    Some(known.map(str::to_owned).collect())
}

#[tokio::test]
async fn agents_and_boots_are_told_with_how_they_ended_and_so_are_gaps() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let host = folder.path().join("host");
    write_host(&host, FIRST_BOOT, 1);
    let server = api(&folder.path().join("data"), 0);
    let (url, client) = (server.url().to_owned(), server.client());
    let first = agent(&url, folder.path(), &[]);
    until_sampled(&client, 3).await;
    assert_eq!(first.terminate().code(), Some(0));
    until_silent(&client, 1.0).await;
    let second = agent(&url, folder.path(), &[]);
    until_sampled(&client, 3).await;
    // The power goes, and comes back: the host was started up to two seconds before its agent.
    second.kill();
    until_silent(&client, 2.5).await;
    write_host(&host, "00000000-0000-4000-8000-000000000002", 1);
    let third = Rebooted::start(&url, folder.path());
    until_sampled(&client, 3).await;
    let events = get(&client, "/nodes/test-node/events")
        .await
        .expect("events");
    let of_agents = |event: &&Value| {
        let kind = event["kind"].as_str().unwrap_or_default();
        // This machine's own boot may have been today.
        let is_first = event["boot_id"] == FIRST_BOOT;
        !(kind.starts_with("node_") || kind == "boot" && is_first)
    };
    let all = events.as_array().expect("a list").iter();
    let told: Vec<Value> = all.filter(of_agents).cloned().collect();
    let told = Value::from(told);
    let expected = [
        "agent_started",
        "oom_unseen",
        "agent_stopped",
        "agent_started",
        "oom_unseen",
        "boot",
        "agent_started",
        "oom_unseen",
    ];
    assert_eq!(kinds(&told), expected, "{events}");
    let of_node = kinds(&events).into_iter();
    let of_node = of_node.filter(|kind| kind.starts_with("node_"));
    let came_and_went = ["node_registered", "node_gone", "node_registered"];
    assert!(of_node.eq(came_and_went), "{events}");
    let (again, boot) = (&told[3], &told[5]);
    assert_eq!(
        (&again["orderly"], &boot["orderly"]),
        (&json!(true), &json!(false)),
        "{events}"
    );
    assert_eq!(again["previous_end"], told[2]["time"]);
    let time = |value: &Value| {
        value
            .as_str()
            .expect("a time")
            .parse::<Timestamp>()
            .expect("a time")
    };
    let down = time(&boot["time"]).seconds_since(time(&boot["previous_end"]));
    assert!((0.2..60.0).contains(&down), "{boot}");
    assert_eq!(boot["boot_id"], "00000000-0000-4000-8000-000000000002");
    let all = get(&client, "/nodes/test-node/events?from=0&kind=boot").await;
    let all = all.expect("events");
    assert_eq!(all.as_array().map(Vec::len), Some(2), "{all}");
    assert_eq!(all[0].get("previous_end"), None);
    assert_eq!(
        reasons(&client).await,
        Some(vec!["agent_stopped".to_owned(), "powered_off".to_owned()])
    );
    drop(third);
    // It says no more, and nobody knows why.
    let gap = until_silent(&client, 0.0).await;
    assert_eq!((gap.get("to"), &gap["reason"]), (None, &json!("unknown")));
    let words = ["--server", &url, "get", "test-node", "--from", "2020-01-01"];
    let shown = Program::run("kubectl-nodestats", &words).stdout;
    assert!(
        shown.contains(": powered off\n") && shown.contains(" on: unknown\n"),
        "{shown}"
    );
    assert_eq!(server.terminate().code(), Some(0));
}

#[tokio::test]
async fn samples_that_are_dropped_are_told_and_so_is_their_gap() {
    let folder = tempfile::tempdir().expect("temporary folder");
    write_host(
        &folder.path().join("host"),
        "00000000-0000-4000-8000-000000000003",
        400,
    );
    let data = folder.path().join("data");
    let server = api(&data, 0);
    let (url, port, client) = (server.url().to_owned(), server.port(), server.client());
    let admin = format!("127.0.0.1:{}", free_port());
    let arguments = ["--buffer-mib", "1", "--admin-listen", &admin];
    let agent = agent(&url, folder.path(), &arguments);
    until_sampled(&client, 3).await;
    assert_eq!(server.terminate().code(), Some(0));
    // A sample has some fifty kilobytes: a megabyte is full after four or five seconds.
    let admin = Client::new(&format!("http://{admin}"), Duration::from_secs(10)).expect("a URL");
    eventually("a full buffer", async || {
        let text = admin.get("/metrics", &[]).await.ok()?;
        let text = String::from_utf8(text).ok()?;
        let mut lines = text.lines();
        let dropped = lines.find_map(|line| {
            line.strip_prefix("nodestats_agent_samples_dropped_total ")?
                .parse::<f64>()
                .ok()
        })?;
        (dropped >= 10.0).then_some(())
    })
    .await;
    let server = api(&data, port);
    let client = server.client();
    let dropped = eventually_within(Duration::from_mins(1), "what was dropped", async || {
        let events = get(&client, "/nodes/test-node/events?kind=samples_dropped").await?;
        events.as_array()?.first()?.as_object()?;
        Some(events)
    })
    .await;
    println!("{dropped}");
    let one = &dropped[0];
    assert_eq!(one["dropped_because"], "buffer_full");
    assert!(one["samples"].as_u64().is_some_and(|samples| samples > 0));
    eventually("the gap with its reason", async || {
        let reasons = reasons(&client).await?;
        (reasons == ["dropped"]).then_some(())
    })
    .await;
    assert_eq!(agent.terminate().code(), Some(0));
    assert_eq!(server.terminate().code(), Some(0));
}
