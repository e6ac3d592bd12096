//! What is answered from rollups and by rankings: the same as from samples where those are there, and the best
//! that is kept where they are gone.

mod server;

use std::time::Duration;

use nodestats_core::sample::cgroup::{self, Kind};
use nodestats_core::sample::{Cgroup, Host, Process, Sample};
use nodestats_core::{FrameId, frame};
use nodestats_testkit::Frames;
use nodestats_wire::{Timestamp, routes};
use serde_json::{Value, json};
use server::Server;
use uuid::Uuid;

const POD: &str = "3c1f5a52-8e37-4c5e-9f5d-0a2b3c4d5e6f";
const CONTAINER: &str = "a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1";

/// Whenever the tests run, their samples are not too old to be taken.
const AGES: u64 = 3_000_000_000;
const DAY: u64 = 86_400;

fn time(text: &str) -> Timestamp {
    text.parse().expect("a time")
}

/// Registers a node whose samples, minutes and hours are kept for different times.
async fn register(server: &Server, node: u32, interval: u64) -> String {
    let uid = format!("uid-{node}");
    let registration = json!({
        "hostname": format!("node-{node}"), "ip": format!("192.168.2.{}", 10 + node),
        "interval_seconds": interval, "retention_seconds": AGES,
        "retention_minute_seconds": AGES + 10 * DAY, "retention_hour_seconds": AGES + 100 * DAY,
        "deletion_policy": "retain",
    });
    let path = routes::registration(&uid);
    assert_eq!(server.put(&path, &registration).await.status, 204);
    uid
}

/// Nodes with ten minutes of samples each second; the first one's process is in a pod.
async fn with_nodes(count: u32) -> Server {
    let server = Server::new().await;
    for node in 0..count {
        let uid = register(&server, node, 1).await;
        let mut frames = Frames::new(time("2026-03-01 12:00:00Z"))
            .punctual()
            .of_whole_host();
        if node == 0 {
            frames = frames.in_pod(POD, CONTAINER);
        }
        for _ in 0..10 {
            let mut body = Vec::new();
            for _ in 0..60 {
                body.extend(frames.next_frame());
            }
            assert_eq!(server.put_frames(&uid, body).await.status, 204);
        }
    }
    let pod = json!({
        "uid": POD, "namespace": "team-a", "name": "web-1", "created_at": "2026-03-01T11:00:00Z",
        "ended_at": "2026-03-01T13:00:00Z",
        "node": "node-0", "node_uid": "uid-0", "phase": "Running",
        "workload": {"kind": "Deployment", "name": "web"},
        "containers": [{
            "name": "app", "image": "web:1", "cpu_request_millicores": 400,
            "runs": [{"container_id": CONTAINER}],
        }],
    });
    let told = json!({"pods": [{"digest": "d", "pod": pod}]});
    assert_eq!(server.put("/pods", &told).await.status, 204);
    server
}

async fn seal(server: &Server) {
    let sealed = server.store.seal(time("2026-03-01 14:00:00Z")).await;
    sealed.expect("sealed");
}

/// What is answered to each question.
async fn ask_all(server: &Server, questions: &[String]) -> Vec<Value> {
    let mut answers = Vec::new();
    for question in questions {
        let answer = server.get(question).await;
        assert_eq!(answer.status, 200, "{question}");
        answers.push(answer.json());
    }
    answers
}

/// So many days later than samples are kept.
async fn retain(server: &Server, days: u64) {
    let later = i64::try_from(AGES + days * DAY).expect("small") * 1_000_000;
    let now = time("2026-03-01 13:00:00Z").plus_micros(later);
    server.store.retain(now).await.expect("done");
}

const SPAN: &str = "from=2026-03-01T12:00:00Z&to=2026-03-01T12:09:59Z";

#[tokio::test]
async fn a_step_of_minutes_says_the_same_of_samples_of_rollups_and_when_samples_are_gone() {
    let server = with_nodes(1).await;
    let mut questions = Vec::new();
    for detail in [
        "",
        "/cpu",
        "/memory",
        "/disk",
        "/network",
        "/filesystems",
        "/pressure",
        "/pods",
        "/proc?view=full&",
        "/proc/7",
    ] {
        let separator = if detail.ends_with('&') { "" } else { "?" };
        for more in [
            "step=60",
            "step=5m&aggregate=max",
            "step=1h",
            "step=2m&aggregate=min",
        ] {
            questions.push(format!("/nodes/uid-0{detail}{separator}{SPAN}&{more}"));
        }
    }
    for detail in ["/cpu", "/memory", "/proc?view=full&"] {
        let separator = if detail.ends_with('&') { "" } else { "?" };
        questions.push(format!(
            "/namespaces/team-a/pods/web-1{detail}{separator}{SPAN}&step=60"
        ));
    }
    for detail in ["cpu", "memory", "pods"] {
        let quantile = "step=5m&aggregate=p95";
        questions.push(format!("/nodes/uid-0/{detail}?{SPAN}&{quantile}"));
    }
    let ask = async || ask_all(&server, &questions).await;
    let of_samples = ask().await;
    // Of four tenths at each moment, within a twentieth of that.
    let quantiles = &of_samples[questions.len() - 3];
    for entry in quantiles.as_object().expect("entries").values() {
        let usage = entry["usage_percent"].as_f64().expect("a number");
        assert!((usage - 40.0).abs() <= 2.0, "{quantiles}");
    }
    let disk = format!("/nodes/uid-0/disk?{SPAN}&step=5m&aggregate=p95");
    assert_eq!(server.get(&disk).await.status, 400);
    for (question, answer) in questions.iter().zip(&of_samples) {
        let entries = answer.as_object().map_or(0, serde_json::Map::len);
        assert!(entries > 0, "{question}");
    }
    seal(&server).await;
    let of_rollups = ask().await;
    retain(&server, 1).await;
    assert_eq!(server.store.oldest("uid-0").await.expect("read"), None);
    let of_rollups_alone = ask().await;
    for (number, question) in questions.iter().enumerate() {
        assert_eq!(of_samples[number], of_rollups[number], "{question}");
        assert_eq!(of_samples[number], of_rollups_alone[number], "{question}");
    }
    // What a pod asked for is beside what it used, and its limit.
    let pod = format!("/namespaces/team-a/pods/web-1/cpu?{SPAN}&step=5m");
    let pod = server.get(&pod).await.json();
    let pod = &pod["2026-03-01 12:05:00"];
    assert_eq!(pod["request_millicores"], 400.0, "{pod}");
    assert_eq!(
        (&pod["request_percent"], &pod["limit_percent"]),
        (&json!(50.0), &json!(100.0))
    );
    let fine = server.get(&format!("/nodes/uid-0/cpu?{SPAN}")).await;
    let resolution = fine.header(routes::RESOLUTION_HEADER).to_owned();
    assert!(resolution.starts_with("minute;from="), "{resolution}");
    assert_eq!(fine.json().as_object().map(serde_json::Map::len), Some(10));
    // As it was, of the minute that is kept.
    let at = "at=2026-03-01T12:05:30Z";
    let table = server
        .get(&format!("/nodes/uid-0/proc?view=full&{at}"))
        .await;
    assert_eq!(table.status, 200);
    assert_eq!(table.json()["time"], "2026-03-01T12:05:00Z");
    assert_eq!(table.json()["processes"][0]["pid"], 7);
    assert_eq!(
        server.get(&format!("/nodes/uid-0/cpu?{at}")).await.status,
        200
    );
    // Minutes go in their turn, and the hour stays.
    retain(&server, 20).await;
    let hour = server
        .get(&format!("/nodes/uid-0/cpu?{SPAN}&step=60"))
        .await;
    let keys = hour.json();
    let keys: Vec<&String> = keys.as_object().expect("an object").keys().collect();
    assert_eq!(keys, ["2026-03-01 12:00:00"]);
    assert!(
        hour.header(routes::RESOLUTION_HEADER)
            .starts_with("hour;from=")
    );
    let last = server.get(&format!("/nodes/uid-0/cpu?{SPAN}")).await.json();
    assert_eq!(last.as_object().map(serde_json::Map::len), Some(1));
    retain(&server, 200).await;
    let gone = server.get(&format!("/nodes/uid-0/cpu?{SPAN}")).await;
    assert_eq!((gone.status, gone.json()), (200, json!({})));
}

#[tokio::test]
async fn an_automatic_step_has_some_five_hundred_points() {
    let server = with_nodes(1).await;
    let answer = server
        .get(&format!("/nodes/uid-0/cpu?{SPAN}&step=auto"))
        .await
        .json();
    // Ten minutes by two seconds.
    assert_eq!(answer.as_object().map(serde_json::Map::len), Some(300));
}

/// The rows of a ranking, by what tells them apart.
fn names(top: &Value, field: &str) -> Vec<String> {
    let rows = top["rows"].as_array().expect("rows").iter();
    rows.map(|row| row[field].as_str().unwrap_or_default().to_owned())
        .collect()
}

#[tokio::test]
async fn what_used_most_is_ranked_over_all_nodes_at_any_moment_and_in_any_span() {
    let server = with_nodes(3).await;
    let at = "at=2026-03-01T12:05:30Z";
    let mut questions = Vec::new();
    for by in [
        "process",
        "name",
        "user",
        "pod",
        "container",
        "workload",
        "node",
    ] {
        for sort in ["cpu", "memory", "io"] {
            questions.push(format!("/top?by={by}&sort={sort}&{at}"));
            questions.push(format!("/top?by={by}&sort={sort}&{SPAN}"));
        }
    }
    let ask = async || ask_all(&server, &questions).await;
    let before = ask().await;
    let of = |question: &str| {
        let place = questions
            .iter()
            .position(|asked| asked.starts_with(question));
        &before[place.expect("asked")]
    };
    let processes = of("/top?by=process&sort=cpu&at");
    assert_eq!(processes["nodes"], 3);
    assert_eq!(names(processes, "node"), ["node-0", "node-1", "node-2"]);
    assert_eq!(processes["rows"][0]["pod"], "web-1");
    let workloads = of("/top?by=workload&sort=cpu&from");
    assert_eq!(workloads["rows"][0]["workload"]["name"], "web");
    assert!(
        workloads["rows"][0]["cpu_seconds"]
            .as_f64()
            .is_some_and(|seconds| seconds > 0.0)
    );
    let containers = of("/top?by=container&sort=cpu&at");
    assert_eq!(names(containers, "name"), ["app"]);
    assert_eq!(of("/top?by=name&sort=cpu&at")["rows"][0]["nodes"], 3);
    seal(&server).await;
    assert_eq!(ask().await, before);
    // Where few are wanted, the others are not read and counted all the same.
    let one = server.get(&format!("/top?limit=1&{at}")).await.json();
    assert_eq!(names(&one, "node"), ["node-0"]);
    assert_eq!(
        (&one["nodes"], &one["total"]),
        (&processes["nodes"], &processes["total"])
    );
    // Samples are gone.
    retain(&server, 1).await;
    for question in &questions {
        let top = server.get(question).await;
        let rows = top.json()["rows"].as_array().map_or(0, Vec::len);
        let before = of(question)["rows"].as_array().map_or(0, Vec::len);
        assert_eq!(rows, before, "{question}");
    }
    for wrong in [
        "by=pid",
        "sort=name",
        "limit=0",
        "limit=1001",
        "at=0&from=0",
    ] {
        assert_eq!(
            server.get(&format!("/top?{wrong}")).await.status,
            400,
            "{wrong}"
        );
    }
    assert_eq!(server.get("/top?node=nobody").await.status, 400);
    // On one node.
    let ranked = server
        .get(&format!("/nodes/uid-1/proc?{SPAN}&sort=cpu&limit=5"))
        .await
        .json();
    assert_eq!(
        names(&ranked, "node").first().map(String::as_str),
        Some("node-1")
    );
    let grouped = server
        .get(&format!("/nodes/uid-1/proc?{SPAN}&group=user&sort=memory"))
        .await;
    assert_eq!(grouped.status, 200);
}

/// Hours of a workload that leaks: its process ends each hour, and the next one begins with what it had.
const LEAKING: u32 = 30;
const SAMPLES_AN_HOUR: u32 = 12;

/// After half of the hours a new pod takes the old one's place.
fn leaking_pod(hour: u32) -> &'static str {
    if hour < LEAKING / 2 { "old" } else { "new" }
}

fn of_a_leak(number: u32) -> Vec<u8> {
    let hour = number / SAMPLES_AN_HOUR;
    let time = time("2026-03-01 12:00:00Z").plus_micros(i64::from(number) * 300_000_000);
    let memory = u64::from(100 + number) << 20;
    let (pod, ticks) = (leaking_pod(hour), u64::from(number) * 30_000);
    let started = u64::from(hour) * 360_000;
    let process = Process {
        pid: 100 + hour,
        ppid: 1,
        start_ticks: started + 50,
        name: "leaky".into(),
        state: 'S',
        user_ticks: (ticks - started) / 10,
        resident_bytes: memory,
        pod_uid: Some(pod.into()),
        ..Process::default()
    };
    let group = Cgroup {
        path: format!("/kubepods/pod{pod}").into(),
        id: u64::from(hour / (LEAKING / 2)),
        kind: Kind::Pod { uid: pod.into() },
        cpu: Some(cgroup::Cpu {
            usage_micros: ticks * 1000,
            ..cgroup::Cpu::default()
        }),
        memory: Some(cgroup::Memory {
            current: memory,
            ..cgroup::Memory::default()
        }),
        ..Cgroup::default()
    };
    let host = Host {
        boot_id: "test".to_owned(),
        uptime_micros: (ticks + 100) * 10_000,
        ticks_per_second: 100,
        boot_time_seconds: Some(1e9),
        ..Host::default()
    };
    let id = FrameId {
        agent_start: Uuid::from_u128(1),
        sequence: number.into(),
    };
    let sample = Sample {
        host,
        processes: vec![process],
        cgroups: Some(vec![group]),
        notes: Vec::new(),
    };
    frame::encode(time, id, Some(Duration::from_mins(5)), &sample)
}

#[tokio::test]
async fn a_leak_shows_as_growth_of_its_workload_across_restarts_and_a_rollout() {
    let server = Server::new().await;
    let uid = register(&server, 0, 300).await;
    for hour in 0..LEAKING {
        let samples = hour * SAMPLES_AN_HOUR..(hour + 1) * SAMPLES_AN_HOUR;
        let body = samples.flat_map(of_a_leak).collect();
        assert_eq!(server.put_frames(&uid, body).await.status, 204);
    }
    for pod in ["old", "new"] {
        let pod = json!({
            "uid": pod, "namespace": "team-a", "name": format!("web-{pod}"),
            "created_at": "2026-03-01T11:00:00Z", "node": "node-0", "node_uid": uid,
            "phase": "Running", "workload": {"kind": "Deployment", "name": "web"},
        });
        let told = json!({"pods": [{"digest": "d", "pod": pod}]});
        assert_eq!(server.put("/pods", &told).await.status, 204);
    }
    let span = "from=2026-03-01T12:00:00Z&to=2026-03-02T17:59:59Z";
    let by = ["workload", "pod", "process", "name", "node"];
    let mut questions: Vec<String> = by
        .map(|by| format!("/top?by={by}&sort=memory&limit=100&{span}&step=1h"))
        .to_vec();
    questions.push(format!("/nodes/uid-0/proc?group=workload&{span}&step=1h"));
    questions.push(format!("/top?by=name&{span}&step=auto"));
    let answers = ask_all(&server, &questions).await;
    let is_a_leak = |answer: &Value| {
        let steps: Vec<&Value> = answer.as_object().expect("steps").values().collect();
        assert_eq!(steps.len(), LEAKING as usize);
        let memory: Vec<u64> = steps
            .iter()
            .map(|step| {
                let rows = step["rows"].as_array().expect("rows");
                assert_eq!(rows.len(), 1, "{step}");
                assert_eq!(rows[0]["workload"]["name"], "web");
                rows[0]["memory_bytes"].as_u64().expect("bytes")
            })
            .collect();
        // In the hour of the rollout what is between the last sample of the old pod and the first one of the
        // new counts for neither.
        for three in memory.windows(3) {
            assert!(three[0] < three[2], "{memory:?}");
        }
        assert!(memory[29] > 4 * memory[0], "{memory:?}");
    };
    is_a_leak(&answers[0]);
    is_a_leak(&answers[5]);
    // Each process lived for its hour.
    for step in answers[2].as_object().expect("steps").values() {
        assert_eq!(names(step, "name"), ["leaky"]);
        assert_eq!(step["rows"][0]["workload"]["name"], "web");
    }
    // What all steps used is what the span used.
    for (question, answer) in questions.iter().zip(&answers) {
        let whole = question.replace("&step=1h", "").replace("&step=auto", "");
        let whole = server.get(&whole).await.json();
        let seconds = |rows: &Value| -> f64 {
            let rows = rows["rows"].as_array().into_iter().flatten();
            rows.filter_map(|row| row["cpu_seconds"].as_f64()).sum()
        };
        let steps = answer.as_object().expect("steps").values();
        let (of_steps, of_span) = (steps.map(seconds).sum::<f64>(), seconds(&whole));
        assert!(
            (of_steps - of_span).abs() < 1.0,
            "{question}: {of_steps} {of_span}"
        );
    }
    server
        .store
        .seal(time("2026-03-03 00:00:00Z"))
        .await
        .expect("sealed");
    assert_eq!(ask_all(&server, &questions).await, answers);
    retain(&server, 3).await;
    is_a_leak(&ask_all(&server, &questions).await[0]);
    for wrong in ["step=1h", "from=0&step=1s&limit=1000", "at=0&step=1h"] {
        let answer = server.get(&format!("/top?{wrong}")).await;
        assert_eq!(answer.status, 400, "{wrong}");
    }
}

#[tokio::test]
async fn of_several_processes_that_had_a_pid_one_is_chosen_by_its_start() {
    let server = with_nodes(1).await;
    let at = "at=2026-03-01T12:05:30Z";
    let process = server
        .get(&format!("/nodes/uid-0/proc/7?{at}"))
        .await
        .json();
    let started = process["started_at"].as_str().expect("a time").to_owned();
    let path = format!("/nodes/uid-0/proc/7?{at}&started_at={started}");
    assert_eq!(server.get(&path).await.json(), process);
    let history = format!("/nodes/uid-0/proc/7?{SPAN}&step=60&started_at={started}");
    let entries = server.get(&history).await.json();
    assert_eq!(entries.as_object().map(serde_json::Map::len), Some(10));
    for other in ["2026-02-01T00:00:00Z", "x"] {
        let path = format!("/nodes/uid-0/proc/7?{at}&started_at={other}");
        assert!(
            [400, 404].contains(&server.get(&path).await.status),
            "{other}"
        );
    }
}

#[tokio::test]
async fn a_process_table_has_its_books() {
    let server = with_nodes(1).await;
    let table = server
        .get("/nodes/uid-0/proc?view=full&at=2026-03-01T12:05:30Z")
        .await
        .json();
    let cpu = &table["cpu"];
    let of = |name: &str| {
        cpu[name]
            .as_f64()
            .unwrap_or_else(|| panic!("{name} of {table}"))
    };
    let shown = of("processes_percent") + of("ended_children_percent") + of("unaccounted_percent");
    assert!((shown - of("busy_percent")).abs() < 0.05, "{cpu}");
}
