//! The real program on this host: first answer, restart, refusals, orderly end.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nodestats_testkit::{PATIENCE, Program, Run, eventually, get};
use nodestats_wire::client::Client;
use nodestats_wire::v1::{Reading, Registration};
use tokio::runtime::Handle;

fn standalone(data_dir: &Path) -> Program {
    let data_dir = data_dir.to_str().expect("UTF-8");
    Program::serve(&[
        "standalone",
        "--listen",
        "127.0.0.1:0",
        "--data-dir",
        data_dir,
        "--interval",
        "1s",
    ])
}

fn refused(run: &Run) -> &str {
    assert_eq!(run.status.code(), Some(1), "{run:?}");
    assert_eq!(run.stdout, "", "{run:?}");
    let lines: Vec<&str> = run.stderr.lines().collect();
    let [line] = lines[..] else {
        panic!("one sentence: {run:?}")
    };
    line.strip_prefix("error: ").expect("an error")
}

#[tokio::test]
async fn this_host_answers_with_rates_and_has_this_process() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let server = standalone(folder.path());
    let client = server.client();
    let address = eventually("the node", async || {
        get(&client, "/nodes")
            .await?
            .as_array()?
            .first()?
            .as_str()
            .map(str::to_owned)
    })
    .await;
    let cpu = eventually("rates", async || {
        let cpu = get(&client, &format!("/nodes/{address}/cpu")).await?;
        cpu["usage_percent"].is_number().then_some(cpu)
    })
    .await;
    assert!(
        cpu["cpus"].as_array().is_some_and(|cpus| !cpus.is_empty()),
        "{cpu}"
    );
    assert!(
        cpu["time"].is_string() && cpu["age_seconds"].is_number(),
        "{cpu}"
    );
    let own = std::process::id();
    let process = eventually("this process", async || {
        get(&client, &format!("/nodes/{address}/proc/{own}")).await
    })
    .await;
    assert_eq!(process["pid"], own);
    let command: Vec<String> = std::env::args().collect();
    assert_eq!(process["command_line"], command.join(" "));
    let node = get(&client, &format!("/nodes/{address}"))
        .await
        .expect("the node");
    for key in [
        "boottime",
        "loadavg",
        "cpu_usage_percent",
        "memory_usage_percent",
        "process_count",
    ] {
        assert!(!node[key].is_null(), "{key}: {node}");
    }
}

/// Compiles again and again until it is told to stop; each run is three processes of some milliseconds.
fn compile(folder: &Path, number: usize, stop: &AtomicBool, runs: &AtomicUsize) {
    let source = folder.join("work.c");
    let object = folder.join(format!("work-{number}.o"));
    while !stop.load(Ordering::Relaxed) {
        let mut compiler = Command::new("cc");
        compiler.args(["-O2", "-c", "-o"]).arg(&object).arg(&source);
        assert!(compiler.status().expect("a compiler").success());
        runs.fetch_add(1, Ordering::Relaxed);
    }
}

/// Busy, of ended children and unaccounted, each in percent of a CPU, of so many samples and until it is enough.
async fn books_of(
    client: &Client,
    samples: usize,
    enough: impl Fn() -> bool,
) -> BTreeMap<String, [f64; 3]> {
    let begin = Instant::now();
    let mut books = BTreeMap::new();
    while books.len() < samples || !enough() {
        assert!(begin.elapsed() < PATIENCE, "{books:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
        let nodes = get(client, "/nodes").await.unwrap_or_default();
        let path = format!(
            "/nodes/{}/proc?view=full",
            nodes[0].as_str().unwrap_or("none")
        );
        let Some(table) = get(client, &path).await else {
            continue;
        };
        let figures = [
            "busy_percent",
            "ended_children_percent",
            "unaccounted_percent",
        ];
        let figures = figures.map(|name| table["cpu"][name].as_f64());
        if let [Some(busy), Some(ended), Some(unaccounted)] = figures {
            books.insert(table["time"].to_string(), [busy, ended, unaccounted]);
        }
    }
    books
}

/// The books of this host while a parallel compiler run starts hundreds of processes that no sample sees:
/// `cargo test -p nodestats --test standalone books -- --nocapture`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_books_close_while_a_compiler_run_starts_hundreds_of_short_processes() {
    const SAMPLES: usize = 15;
    /// Each of three processes.
    const RUNS: usize = 100;
    let folder = tempfile::tempdir().expect("temporary folder");
    let functions = (0..40).map(|n| format!("int f{n}(int x) {{ return x * {n} + x / 7; }}\n"));
    std::fs::write(folder.path().join("work.c"), functions.collect::<String>()).expect("written");
    let data = folder.path().join("data");
    let server = standalone(&data);
    let client = server.client();
    let (stop, runs) = (AtomicBool::new(false), AtomicUsize::new(0));
    let books = std::thread::scope(|scope| {
        for number in 0..4 {
            let (stop, runs) = (&stop, &runs);
            let folder = folder.path();
            scope.spawn(move || compile(folder, number, stop, runs));
        }
        let enough = || runs.load(Ordering::Relaxed) >= RUNS;
        let asking = books_of(&client, SAMPLES, enough);
        let books = tokio::task::block_in_place(|| Handle::current().block_on(asking));
        stop.store(true, Ordering::Relaxed);
        books
    });
    let sum = |at: usize| books.values().map(|figures| figures[at]).sum::<f64>();
    let apart: f64 = books.values().map(|figures| figures[2].abs()).sum();
    let (busy, ended) = (sum(0), sum(1));
    println!(
        "{}",
        serde_json::json!({
            "compiler_runs": runs.load(Ordering::Relaxed),
            "ended_children_percent_of_busy": ended / busy * 100.0,
            "unaccounted_percent_of_busy": sum(2) / busy * 100.0,
            "unaccounted_percent_of_busy_by_sample": apart / busy * 100.0,
        })
    );
    assert!(ended > 0.0, "{books:?}");
    // Nothing is left over. It may be less than nothing: a guest whose processors are taken away counts fewer
    // ticks of them than its processes ran.
    let left = sum(2) / busy;
    assert!((-0.25..=0.05).contains(&left), "{left} {books:?}");
}

#[tokio::test]
async fn started_again_the_host_is_the_same_and_its_history_goes_on() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let mut uids = Vec::new();
    let mut entries = 0;
    for _ in 0..2 {
        let server = standalone(folder.path());
        let client = server.client();
        let uid = eventually("a node with new samples", async || {
            let nodes = get(&client, "/nodes?view=full").await?;
            let uid = nodes[0]["uid"].as_str()?.to_owned();
            let history = get(&client, &format!("/nodes/{uid}/memory?from=0")).await?;
            let count = history.as_object()?.len();
            (count >= entries + 2).then_some((uid, count))
        })
        .await;
        uids.push(uid.0);
        entries = uid.1;
        let begin = Instant::now();
        assert_eq!(server.terminate().code(), Some(0));
        // Part of what the program promises, with time to spare on a busy machine.
        assert!(
            begin.elapsed() < Duration::from_secs(5),
            "{:?}",
            begin.elapsed()
        );
    }
    assert_eq!(uids[0], uids[1]);
}

#[tokio::test]
async fn a_shorter_retention_deletes_what_is_older_and_refuses_it() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let database = format!("surrealkv://{}", folder.path().display());
    let serve = |retention| {
        let arguments = ["--database", &database, "--retention", retention];
        Program::serve(&[&["api", "--listen", "127.0.0.1:0"][..], &arguments].concat())
    };
    let server = serve("36500d");
    let client = server.client();
    let registration = Registration::new("192.168.2.10", "old");
    client.register(&registration).await.expect("registered");
    let reading = |time| {
        [Reading {
            time: Some(time),
            memory_usage_percent: Some(32.0),
            ..Reading::default()
        }]
    };
    let now = nodestats_wire::Timestamp::from_system(std::time::SystemTime::now());
    let hours = |hours: i64| now.plus_micros(-hours * 3_600_000_000);
    for time in [hours(30_000), hours(49), hours(1)] {
        let put = client.put_readings("old", &reading(time)).await;
        put.expect("stored");
    }
    let count = async |client| Some(get(client, "/old?from=0").await?.as_object()?.len());
    assert_eq!(count(&client).await, Some(3));
    assert_eq!(server.terminate().code(), Some(0));

    let server = serve("2d");
    let client = server.client();
    eventually("the deletion", async || {
        (count(&client).await? == 1).then_some(())
    })
    .await;
    let refused = client.put_readings("old", &reading(hours(49))).await;
    let refused = refused.expect_err("older than the retention");
    assert_eq!(refused.status(), Some(422));
    assert!(refused.to_string().contains("retention"), "{refused}");
}

#[tokio::test]
async fn a_data_directory_has_one_process_and_no_older_program() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let data_dir = folder.path().to_str().expect("UTF-8");
    let start = |dir: &str| {
        Program::run(
            "nodestats",
            &["standalone", "--listen", "127.0.0.1:0", "--data-dir", dir],
        )
    };
    let server = standalone(folder.path());
    let sentence = start(data_dir);
    assert!(refused(&sentence).contains("is in use by another nodestats process"));
    assert_eq!(server.terminate().code(), Some(0));

    let schema = folder.path().join("nodestats.schema");
    std::fs::write(&schema, "99\n").expect("written");
    let before = listing(folder.path());
    let sentence = start(data_dir);
    assert!(refused(&sentence).contains("has schema 99"));
    assert_eq!(listing(folder.path()), before);

    let sentence = start("/proc/nodestats");
    assert!(refused(&sentence).contains("cannot be written"));
}

/// Every file below, with its size and when it changed.
fn listing(folder: &Path) -> Vec<(std::path::PathBuf, u64, std::time::SystemTime)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).expect("readable").flatten() {
        let data = entry.metadata().expect("readable");
        found.push((entry.path(), data.len(), data.modified().expect("known")));
        if data.is_dir() {
            found.extend(listing(&entry.path()));
        }
    }
    found.sort();
    found
}

#[test]
fn an_address_that_others_reach_needs_a_word() {
    let run = Program::run(
        "nodestats",
        &["api", "--listen", "0.0.0.0:0", "--database", "mem://"],
    );
    assert!(refused(&run).contains("--insecure-no-auth"));
    drop(Program::serve(&[
        "api",
        "--listen",
        "0.0.0.0:0",
        "--database",
        "mem://",
        "--insecure-no-auth",
    ]));
}

#[test]
fn what_makes_no_sense_is_refused_before_anything_is_made() {
    for arguments in [
        &["standalone", "--interval", "0s"][..],
        &["standalone", "--interval", "fast"],
        &["standalone", "--retention", "1s"],
        &["standalone", "--listen", "8080"],
        &["api", "--database", "rocksdb:///tmp/x"],
        &["api"],
        &[],
    ] {
        let run = Program::run("nodestats", arguments);
        assert_eq!(run.status.code(), Some(2), "{arguments:?}: {run:?}");
    }
    for (name, arguments) in [
        ("nodestats", &["--version"][..]),
        ("nodestats", &["standalone", "--help"]),
        ("nodestats-agent", &["--help"]),
        ("kubectl-nodestats", &["get", "--help"]),
    ] {
        let run = Program::run(name, arguments);
        assert!(run.status.success() && !run.stdout.is_empty(), "{run:?}");
    }
}

#[tokio::test]
async fn a_line_of_the_log_is_an_object_off_a_terminal_and_text_where_that_is_wanted() {
    let folder = tempfile::tempdir().expect("temporary folder");
    for (arguments, is_json) in [
        (&["--log", "debug"][..], true),
        (&["--log", "info", "--log-format", "text"], false),
    ] {
        let log = folder.path().join(format!("{is_json}.log"));
        let api = ["api", "--listen", "127.0.0.1:0", "--database", "mem://"];
        let server = Program::serve_with(&[&api[..], arguments].concat(), &[], &log);
        let registration = Registration::new("192.0.2.5", "logged");
        server
            .client()
            .register(&registration)
            .await
            .expect("registered");
        assert!(server.terminate().success());
        let text = std::fs::read_to_string(&log).expect("a log");
        assert!(text.contains("a node registered"), "{text}");
        // The reason of the end.
        assert!(text.contains("SIGTERM"), "{text}");
        for line in text.lines() {
            let object = serde_json::from_str::<serde_json::Value>(line);
            assert_eq!(object.is_ok(), is_json, "{line}");
        }
        if is_json {
            let registered = text.lines().find(|line| line.contains("a node registered"));
            let registered: serde_json::Value =
                serde_json::from_str(registered.expect("a line")).expect("an object");
            assert_eq!(registered["level"], "INFO");
            assert_eq!(registered["ip"], "192.0.2.5");
            assert!(text.contains("\"DEBUG\""), "{text}");
        }
    }
    let wrong = Program::run(
        "nodestats",
        &["--log", "nodestats=loud", "api", "--database", "mem://"],
    );
    assert!(wrong.stderr.contains("--log"), "{wrong:?}");
    assert!(!wrong.status.success());
}
