//! What happened, as it is asked for; and where samples are missing, and why.

mod server;

use http::Request;
use nodestats_api::aggregated::aggregated_router;
use nodestats_core::sample::note::{Dropped, Kill, KillSource, KillSources, What};
use nodestats_testkit::Frames;
use nodestats_wire::{Timestamp, routes};
use serde_json::{Value, json};
use server::{Book, CONTROLLER, Server};

const UID: &str = "3c1f5a52-8e37-4c5e-9f5d-0a2b3c4d5e6f";
const CONTAINER: &str = "a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1";
const DAY: &str = "from=2026-03-01&to=2026-03-02";

fn time(text: &str) -> Timestamp {
    text.parse().expect("a time")
}

fn started(boot_id: &str, uptime_seconds: u64) -> What {
    What::Started {
        version: "1.2.3".to_owned(),
        kills: KillSources {
            cgroups: true,
            ..KillSources::default()
        },
        boot_id: boot_id.to_owned(),
        uptime_micros: uptime_seconds * 1_000_000,
    }
}

fn kill(pod_uid: Option<&str>) -> What {
    What::Kill(Kill {
        source: KillSource::Cgroup,
        count: 1,
        cgroup: Some("/kubepods/x".to_owned()),
        pod_uid: pod_uid.map(str::to_owned),
        container_id: None,
        victim: None,
        memory_bytes: Some(60 << 20),
        limit_bytes: None,
        within_micros: 1_000_000,
        log_read: false,
    })
}

async fn of_cluster() -> Server {
    let server = Server::new().await;
    let registration = json!({
        "hostname": "node-a", "ip": "192.168.2.10", "interval_seconds": 10,
        "retention_seconds": 3_000_000_000_u64, "deletion_policy": "retain",
    });
    let path = routes::registration("uid-a");
    assert_eq!(server.put(&path, &registration).await.status, 204);
    server
}

async fn push(server: &Server, node: &str, frames: &mut Frames, count: usize) {
    for _ in 0..count {
        let status = server.put_frames(node, frames.next_frame()).await.status;
        assert_eq!(status, 204);
    }
}

/// Kind and time of each.
fn told(events: &Value) -> Vec<(&str, &str)> {
    let events = events.as_array().expect("a list");
    let text = |event: &'_ Value, field: &str| event[field].as_str().expect("a text").len();
    assert!(events.iter().all(|event| text(event, "message") > 0));
    events
        .iter()
        .map(|event| {
            let (kind, time) = (&event["kind"], &event["time"]);
            (
                kind.as_str().expect("a kind"),
                time.as_str().expect("a time"),
            )
        })
        .collect()
}

#[tokio::test]
async fn boots_and_agents_are_told_with_how_those_before_them_ended() {
    let server = Server::new().await;
    server.register("10.0.0.1", "a", "x").await;
    let mut first = Frames::new(time("2026-03-01 13:00:00Z")).of_boot("one");
    first.note(started("one", 10));
    push(&server, "x", &mut first, 3).await;
    // Told to end, and started again.
    first.note(What::Stopping);
    push(&server, "x", &mut first, 1).await;
    let mut second = Frames::new(time("2026-03-01 13:00:10Z")).of_boot("one");
    second.note(started("one", 20));
    push(&server, "x", &mut second, 2).await;
    // The power went.
    let mut third = Frames::new(time("2026-03-01 14:00:00Z")).of_boot("two");
    third.note(started("two", 10));
    push(&server, "x", &mut third, 1).await;
    let path = format!("/nodes/a/events?{DAY}");
    let events = server.get(&path).await.json();
    assert_eq!(
        told(&events),
        [
            ("boot", "2026-03-01T12:59:50Z"),
            ("agent_started", "2026-03-01T13:00:00Z"),
            ("agent_stopped", "2026-03-01T13:00:03Z"),
            ("agent_started", "2026-03-01T13:00:10Z"),
            ("boot", "2026-03-01T13:59:50Z"),
            ("agent_started", "2026-03-01T14:00:00Z"),
        ]
    );
    let ends: Vec<(&Value, &Value)> = (0..6)
        .map(|at| (&events[at]["previous_end"], &events[at]["orderly"]))
        .collect();
    let nothing = (&Value::Null, &Value::Null);
    assert_eq!(ends[0], nothing);
    assert_eq!(ends[3], (&json!("2026-03-01T13:00:03Z"), &json!(true)));
    assert_eq!(ends[4], (&json!("2026-03-01T13:00:11Z"), &json!(false)));
    // The agent of a new boot is not one that was restarted.
    assert_eq!(ends[5], nothing);
    assert_eq!(events[4]["node"], "a");
    assert_eq!(
        events[4]["message"],
        "the node started; it went down in disorder after 2026-03-01T13:00:11Z"
    );
    // A sample that arrives late is the later end.
    push(&server, "x", &mut second, 1).await;
    let events = server
        .get(&format!("{path}&kind=boot&limit=1"))
        .await
        .json();
    assert_eq!(told(&events), [("boot", "2026-03-01T13:59:50Z")]);
    assert_eq!(events[0]["previous_end"], "2026-03-01T13:00:12Z");
    // What is pushed again is told once.
    let mut again = Frames::new(time("2026-03-01 15:00:00Z")).of_boot("two");
    again.note(What::ClockStep { micros: -2_500_000 });
    let frame = again.next_frame();
    for _ in 0..2 {
        assert_eq!(server.put_frames("x", frame.clone()).await.status, 204);
    }
    let steps = server.get(&format!("{path}&kind=clock_step")).await.json();
    assert_eq!(steps.as_array().map(Vec::len), Some(1));
    assert_eq!(steps[0]["step_seconds"], -2.5);
    assert_eq!(steps[0]["message"], "the clock was set back by 2.500 s");
    for (query, status) in [
        ("kind=oom", 400),
        ("at=0", 400),
        ("limit=0", 400),
        ("from=9&to=1", 400),
    ] {
        assert_eq!(
            server.get(&format!("/nodes/a/events?{query}")).await.status,
            status,
            "{query}"
        );
    }
    assert_eq!(server.get("/nodes/nobody/events").await.status, 404);
    // Two agents of one boot in one push, as after the server was away: the boot is told once.
    let mut both = Vec::new();
    for (begin, uptime) in [("2026-03-01 16:00:00Z", 10), ("2026-03-01 16:00:30Z", 40)] {
        let mut frames = Frames::new(time(begin)).of_boot("three");
        frames.note(started("three", uptime));
        both.extend(frames.next_frame());
    }
    assert_eq!(server.put_frames("x", both).await.status, 204);
    let boots = server.get(&format!("{path}&kind=boot")).await.json();
    let boots: Vec<&str> = told(&boots).into_iter().map(|(_, time)| time).collect();
    assert_eq!(boots.last(), Some(&"2026-03-01T15:59:50Z"));
    assert_eq!(boots.len(), 3);
    // Of an agent that took no samples nobody knows how it ended.
    let mut paused = Frames::new(time("2026-03-01 17:00:00Z")).of_boot("three");
    paused.note(What::Paused);
    push(&server, "x", &mut paused, 1).await;
    let mut next = Frames::new(time("2026-03-01 17:30:00Z")).of_boot("three");
    next.note(started("three", 5420));
    push(&server, "x", &mut next, 1).await;
    let last = server
        .get(&format!("{path}&kind=agent_started&limit=1"))
        .await
        .json();
    assert_eq!(last[0]["previous_end"], "2026-03-01T17:00:00Z");
    assert_eq!(last[0].get("orderly"), None);
    // More than an agent has to tell is refused.
    let mut many = Frames::new(time("2026-03-01 18:00:00Z"));
    let mut flood = Vec::new();
    for _ in 0..9 {
        (0..256).for_each(|_| many.note(What::Paused));
        flood.extend(many.next_frame());
    }
    assert_eq!(server.put_frames("x", flood).await.status, 413);
    // They are kept with the node's history, and go with it.
    assert_eq!(server.call("DELETE", "/nodes/a", "").await.status, 204);
    let gone = server
        .get("/nodes/x/events?kind=node_registered,node_gone")
        .await
        .json();
    let kinds: Vec<&str> = told(&gone).into_iter().map(|(kind, _)| kind).collect();
    assert_eq!(kinds, ["node_registered", "node_gone"]);
    assert_eq!(
        server
            .call("DELETE", "/nodes/x?purge=true", "")
            .await
            .status,
        204
    );
    assert_eq!(
        server.get(&format!("/events?{DAY}")).await.json(),
        json!([])
    );
}

#[tokio::test]
async fn a_kill_names_pod_container_and_limit_whoever_tells_of_it_first() {
    let pod = |runs: Value| {
        json!({"pods": [{"digest": "d", "pod": {
            "uid": UID, "namespace": "team-a", "name": "web", "created_at": "2026-03-01T12:00:00Z",
            "node": "node-a", "node_uid": "uid-a",
            "containers": [{"name": "app", "memory_limit_bytes": 64 << 20, "restarts": 1, "runs": runs}],
        }}]})
    };
    let running = pod(json!([{"container_id": CONTAINER, "started_at": "2026-03-01T12:00:01Z"}]));
    let killed = pod(json!([
        {
            "container_id": CONTAINER, "started_at": "2026-03-01T12:00:01Z",
            "ended_at": "2026-03-01T13:00:02Z", "exit_code": 137, "reason": "OOMKilled",
        },
        {"container_id": "b", "started_at": "2026-03-01T13:00:03Z"},
    ]));
    for node_is_first in [true, false] {
        let server = of_cluster().await;
        assert_eq!(server.put("/pods", &running).await.status, 204);
        let mut frames = Frames::new(time("2026-03-01 13:00:00Z")).in_pod(UID, CONTAINER);
        push(&server, "uid-a", &mut frames, 1).await;
        if !node_is_first {
            assert_eq!(server.put("/pods", &killed).await.status, 204);
        }
        frames.note(kill(Some(UID)));
        push(&server, "uid-a", &mut frames, 1).await;
        // Told by both, and told again.
        for _ in 0..2 {
            assert_eq!(server.put("/pods", &killed).await.status, 204);
        }
        let path = "/namespaces/team-a/pods/web/events";
        let events = server.get(path).await.json();
        let kinds: Vec<&str> = told(&events).into_iter().map(|(kind, _)| kind).collect();
        assert_eq!(
            kinds.iter().filter(|kind| **kind == "oom_kill").count(),
            1,
            "{events}"
        );
        assert_eq!(kinds.len(), 4, "{events}");
        let kills = server
            .get(&format!("{path}?{DAY}&kind=oom_kill"))
            .await
            .json();
        let kill = &kills[0];
        assert_eq!(
            (
                &kill["namespace"],
                &kill["pod"],
                &kill["container"],
                &kill["node"]
            ),
            (
                &json!("team-a"),
                &json!("web"),
                &json!("app"),
                &json!("node-a")
            )
        );
        assert_eq!(kill["limit_bytes"], 64 << 20);
        assert_eq!(kill["memory_bytes"], 60 << 20);
        assert_eq!(kill["sources"], json!(["cgroup", "kubernetes"]));
        assert_eq!(
            kill["message"],
            "a process of container app was killed for memory with 60.0 MiB, limit 64.0 MiB; the \
             kernel's log, which names who was killed, may not be read on this node"
        );
        let again = server
            .get(&format!("{path}?kind=container_restarted"))
            .await
            .json();
        assert_eq!(
            again[0]["message"],
            "container app started again, for the 1st time"
        );
        let ended = server
            .get(&format!("{path}?kind=container_ended"))
            .await
            .json();
        assert_eq!(
            (&ended[0]["exit_code"], &ended[0]["reason"]),
            (&json!(137), &json!("OOMKilled"))
        );
    }
    // Of one container, and of one that there is not.
    let server = of_cluster().await;
    assert_eq!(server.put("/pods", &killed).await.status, 204);
    let path = "/namespaces/team-a/pods/web/events";
    let of_app = server.get(&format!("{path}?container=app")).await.json();
    assert_eq!(of_app, server.get(path).await.json());
    assert_eq!(server.get(&format!("{path}?container=x")).await.status, 400);
    // Told by Kubernetes alone: what it had is what its last sample says.
    let server = of_cluster().await;
    let mut frames = Frames::new(time("2026-03-01 13:00:00Z")).in_pod(UID, CONTAINER);
    push(&server, "uid-a", &mut frames, 2).await;
    assert_eq!(server.put("/pods", &killed).await.status, 204);
    let kills = server
        .get("/namespaces/team-a/pods/web/events?kind=oom_kill")
        .await
        .json();
    assert_eq!(kills[0]["memory_bytes"], 80 << 20);
    // A node's claim about a pod of another node has no name.
    let mut liar = Frames::new(time("2026-03-01 14:00:00Z"));
    liar.note(kill(Some(UID)));
    server.register("10.0.0.9", "liar", "uid-l").await;
    push(&server, "uid-l", &mut liar, 1).await;
    let claimed = server
        .get(&format!("/nodes/liar/events?{DAY}&kind=oom_kill"))
        .await
        .json();
    assert_eq!(
        (&claimed[0]["pod"], &claimed[0]["pod_uid"]),
        (&Value::Null, &json!(UID))
    );
    let own = server
        .get("/namespaces/team-a/pods/web/events?kind=oom_kill")
        .await
        .json();
    assert_eq!(own.as_array().map(Vec::len), Some(1));
}

#[tokio::test]
async fn what_happened_on_all_nodes_is_one_list_of_those_that_one_may_read() {
    let server = of_cluster().await;
    server.register("10.0.0.1", "b", "uid-b").await;
    for (uid, begin) in [
        ("uid-a", "2026-03-01 13:00:00Z"),
        ("uid-b", "2026-03-01 12:00:00Z"),
    ] {
        let mut frames = Frames::new(time(begin));
        frames.note(What::Paused);
        push(&server, uid, &mut frames, 1).await;
    }
    let change = |uid: &str| {
        json!({
            "node_uid": uid, "time": "2026-03-01T14:00:00Z", "phase": "Lost", "reason": "NodeLost",
            "message": "The node has sent no samples for a long time.",
        })
    };
    let changes = json!({"changes": [change("uid-a"), change("uid-x")]}).to_string();
    let book = || {
        Book::default()
            .token("boss", CONTROLLER, &[])
            .token("jane", "jane", &[])
            .token("john", "john", &[])
            .rule("jane", "get nodes/events", "*")
            .rule("john", "get nodes/events", "node-a")
    };
    let asked = server.asking(book());
    let put = async |token| {
        asked
            .call_as(token, ("PUT", "/events"), changes.clone())
            .await
    };
    assert_eq!(put("jane").await.status, 403);
    for _ in 0..2 {
        assert_eq!(put("boss").await.json(), json!({"unknown": ["uid-x"]}));
    }
    let path = format!("/events?{DAY}");
    let get = async |token, path: &str| asked.call_as(token, ("GET", path), "").await;
    let all = get("jane", &path).await.json();
    assert_eq!(
        told(&all),
        [
            ("paused", "2026-03-01T12:00:00Z"),
            ("paused", "2026-03-01T13:00:00Z"),
            ("node_phase", "2026-03-01T14:00:00Z"),
        ]
    );
    assert_eq!(
        (&all[2]["phase"], &all[2]["reason"], &all[2]["message"]),
        (
            &json!("Lost"),
            &json!("NodeLost"),
            &json!("Lost: The node has sent no samples for a long time.")
        )
    );
    let newest = get("jane", &format!("{path}&limit=2")).await.json();
    assert_eq!(newest, json!([all[1], all[2]]));
    let own = get("john", &path).await.json();
    assert_eq!(own, json!([all[1], all[2]]));
    assert_eq!(get("john", "/nodes/node-a/events").await.status, 200);
    assert_eq!(get("john", "/nodes/b/events").await.status, 403);
    let stranger = server.asking(book().token("x", "x", &[]));
    for path in [
        "/events",
        "/nodes/node-a/events",
        "/namespaces/a/pods/b/events",
    ] {
        assert_eq!(
            stranger.call_as("x", ("GET", path), "").await.status,
            403,
            "{path}"
        );
    }
    // By way of the API server too, where they may list them.
    let request = Request::get(format!("{}/events?{DAY}", routes::AGGREGATED))
        .header("x-remote-user", "jane")
        .body(axum::body::Body::empty());
    let router = aggregated_router(asked.app.clone());
    let server = Server {
        store: asked.store.clone(),
        app: asked.app.clone(),
        router,
    };
    assert_eq!(server.ask(request.expect("a request")).await.json(), all);
}

#[tokio::test]
async fn who_was_killed_is_shown_to_who_may_see_processes() {
    let server = of_cluster().await;
    let mut frames = Frames::new(time("2026-03-01 13:00:00Z"));
    frames.note(What::Kill(Kill {
        source: KillSource::Log,
        count: 1,
        cgroup: Some("/x".to_owned()),
        pod_uid: None,
        container_id: None,
        victim: Some((4242, "payroll".to_owned())),
        memory_bytes: Some(1 << 20),
        limit_bytes: None,
        within_micros: 0,
        log_read: true,
    }));
    push(&server, "uid-a", &mut frames, 1).await;
    let book = Book::default()
        .token("jane", "jane", &[])
        .token("john", "john", &[])
        .rule("jane", "get nodes/events", "*")
        .rule("john", "get nodes/events", "*")
        .rule("john", "get nodes/proc", "*");
    let asked = server.asking(book);
    for path in [
        format!("/events?{DAY}"),
        format!("/nodes/node-a/events?{DAY}"),
    ] {
        let shown = async |token: &str| {
            let answer = asked.call_as(token, ("GET", &path), "").await;
            String::from_utf8_lossy(&answer.body).into_owned()
        };
        let (jane, john) = (shown("jane").await, shown("john").await);
        assert!(
            !jane.contains("payroll") && !jane.contains("4242"),
            "{jane}"
        );
        assert!(
            jane.contains("oom_kill") && jane.contains("may see processes"),
            "{jane}"
        );
        assert!(
            john.contains("process payroll (4242) of /x was killed"),
            "{john}"
        );
        for (processes, is_shown) in [(false, false), (true, true)] {
            let forwarded = server.forwarded(processes).get(&path).await;
            let text = String::from_utf8_lossy(&forwarded.body).into_owned();
            assert_eq!(text.contains("payroll"), is_shown, "{text}");
        }
    }
}

#[tokio::test]
async fn a_name_leads_to_who_has_it_or_had_it_then() {
    let server = Server::new().await;
    for uid in ["old", "new"] {
        assert_eq!(server.register("10.0.0.1", "a", uid).await.status, 201);
        if uid == "old" {
            assert_eq!(server.call("DELETE", "/nodes/a", "").await.status, 204);
        }
    }
    let uids = async |path: &str| {
        let events = server.get(path).await.json();
        let events = events.as_array().expect("a list").clone();
        let uid = |event: &Value| event["node_uid"].as_str().map(str::to_owned);
        events.iter().filter_map(uid).collect::<Vec<_>>()
    };
    assert_eq!(uids("/nodes/a/events").await, ["new"]);
    assert_eq!(uids("/nodes/old/events").await, ["old", "old"]);
    // Of a time in which both had it one has to say whom, as of histories.
    for path in [
        "/nodes/a/events?from=2026-03-01",
        "/nodes/a/cpu?from=2026-03-01",
    ] {
        let both = server.get(path).await;
        assert_eq!(both.status, 409, "{path}");
    }
    // And when nobody has it any more.
    assert_eq!(server.call("DELETE", "/nodes/new", "").await.status, 204);
    assert_eq!(server.get("/nodes/a/events").await.status, 409);
    assert_eq!(uids("/nodes/new/events").await, ["new", "new"]);
}

/// The gaps of a history: key, begin, end and reason.
fn gaps(history: &Value) -> Vec<(String, String, Option<String>, String)> {
    let entries = history.as_object().expect("keyed by time");
    let text = |value: &Value| value.as_str().map(str::to_owned);
    entries
        .iter()
        .filter_map(|(key, entry)| {
            let gap = entry.get("gap")?;
            let (from, reason) = (text(&gap["from"])?, text(&gap["reason"])?);
            Some((key.clone(), from, text(&gap["to"]), reason))
        })
        .collect()
}

#[tokio::test]
async fn a_history_says_where_samples_are_missing_and_why() {
    let server = Server::new().await;
    server.register("10.0.0.1", "a", "x").await;
    let at = |second: &str| time(&format!("2026-03-01 13:{second}Z"));
    let mut first = Frames::new(at("00:00")).punctual().of_boot("one");
    push(&server, "x", &mut first, 3).await;
    // 13:00:02 is followed by 13:00:13: eight samples were dropped.
    first.skip(10);
    first.note(What::Dropped(Dropped {
        samples: 10,
        first_micros: at("00:03").micros(),
        last_micros: at("00:12").micros(),
        refused: false,
    }));
    push(&server, "x", &mut first, 1).await;
    // Others are missing, and nobody knows why: 13:00:20.
    first.skip(6);
    first.note(What::Paused);
    push(&server, "x", &mut first, 1).await;
    // Paused for a minute: 13:01:21. One that is a little late is no gap.
    first.rest(60);
    push(&server, "x", &mut first, 1).await;
    first.rest(1);
    push(&server, "x", &mut first, 1).await;
    // Another agent, and another boot, which was told to end.
    let mut second = Frames::new(at("02:00")).punctual().of_boot("one");
    push(&server, "x", &mut second, 2).await;
    let mut third = Frames::new(at("03:00")).punctual().of_boot("two");
    push(&server, "x", &mut third, 2).await;
    third.note(What::Stopping);
    push(&server, "x", &mut third, 1).await;
    let path = format!("/nodes/a/proc?{DAY}");
    let history = server.get(&path).await.json();
    let gap = |key: &str, from: &str, to: Option<&str>, reason: &str| {
        let full = |second: &str| format!("2026-03-01T13:{second}Z");
        (
            format!("2026-03-01 13:{key}"),
            full(from),
            to.map(full),
            reason.to_owned(),
        )
    };
    let dropped = gap("00:03", "00:02", Some("00:13"), "dropped");
    let unknown = gap("00:14", "00:13", Some("00:20"), "unknown");
    let paused = gap("00:21", "00:20", Some("01:21"), "paused");
    let stopped = gap("01:24", "01:23", Some("02:00"), "agent_stopped");
    let off = gap("02:02", "02:01", Some("03:00"), "powered_off");
    let silent = gap("03:03", "03:02", None, "agent_stopped");
    assert_eq!(
        gaps(&history),
        [&dropped, &unknown, &paused, &stopped, &off, &silent].map(Clone::clone)
    );
    let entries = history.as_object().map(serde_json::Map::len);
    assert_eq!(entries, Some(12 + 6));
    // A span that begins and ends within gaps shows them from there on.
    let part = server
        .get("/nodes/a/proc?from=2026-03-01+13:01:00&to=2026-03-01+13:01:40")
        .await
        .json();
    let paused_from_there = gap("01:00", "00:20", Some("01:21"), "paused");
    assert_eq!(gaps(&part), [paused_from_there, stopped.clone()]);
    // Within a step no gap is seen.
    let steps = server.get(&format!("{path}&step=30s")).await.json();
    let keys: Vec<(String, String)> = gaps(&steps)
        .into_iter()
        .map(|(key, .., reason)| (key, reason))
        .collect();
    let entry = |key: &str, reason: &str| (format!("2026-03-01 13:{key}"), reason.to_owned());
    assert_eq!(
        keys,
        [
            entry("00:30", "paused"),
            entry("01:30", "agent_stopped"),
            entry("02:30", "powered_off"),
            entry("03:30", "agent_stopped"),
        ]
    );
    // Page by page the same, each once.
    for step in ["", "&step=30s"] {
        let whole = server.get(&format!("{path}{step}")).await.json();
        let mut paged = serde_json::Map::new();
        let mut next = Some(format!("{path}{step}&limit=2"));
        while let Some(path) = next {
            let page = server.get(&path).await;
            for (key, entry) in page.json().as_object().expect("keyed by time") {
                let before = paged.insert(key.clone(), entry.clone());
                assert_eq!(before, None, "{key}");
            }
            let link = page.header("link");
            next = link
                .strip_prefix('<')
                .and_then(|link| link.split('>').next())
                .map(str::to_owned);
        }
        assert_eq!(Value::from(paged), whole);
    }
}
