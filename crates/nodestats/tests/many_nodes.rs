//! The controller at 5,000 nodes: a real controller and a real API, and a fake API server, which is
//! all that is too large for this machine.
//!
//! Counts are asserted, and memory; times are printed: `cargo test -p nodestats --test many_nodes --
//! --nocapture`.

use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use nodestats_testkit::fake_api_server::FakeApiServer;
use nodestats_testkit::{Frames, Program, eventually_within};
use nodestats_wire::Timestamp;
use nodestats_wire::client::Client;
use serde_json::{Value, json};

const COUNT: usize = 5000;
const SILENT: usize = 500;
const NODES: &str = "/api/v1/nodes";
const OBJECTS: &str = "/apis/nodestats.dev/v1alpha1/monitorednodes";
/// Stale after three of them and a poll: 125 s.
const INTERVAL: &str = "40s";
/// Nobody is silent for longer than it was listened to: so long it is listened to first.
const LISTENED: Duration = Duration::from_secs(130);
const POLL: &str = "5s";
/// The silent ones sampled so long ago: they are stale some time after the others are Ready.
const SILENT_AGE_SECONDS: i64 = 40;
const PATIENCE: Duration = Duration::from_mins(15);

fn name(index: usize) -> String {
    format!("node-{index:04}")
}

fn uid(index: usize) -> String {
    format!("00000000-0000-4000-8000-{index:012}")
}

/// A Node of the size that real ones have: images, managed fields, annotations.
fn node(index: usize) -> Value {
    let image = |n: usize| {
        json!({
            "names": [format!("registry.example/team/service-{n}@sha256:{n:064}"), format!("registry.example/team/service-{n}:v1.{n}")],
            "sizeBytes": 123_456_789,
        })
    };
    let managed = |n: usize| {
        json!({
            "manager": format!("manager-{n}"), "operation": "Update", "apiVersion": "v1", "fieldsType": "FieldsV1",
            "fieldsV1": {"f:metadata": {"f:annotations": {".": {}, "f:a": {}}, "f:labels": {".": {}, "f:b": {}}}, "f:status": {"f:conditions": {"k:{\"type\":\"Ready\"}": {"f:lastHeartbeatTime": {}}}}},
        })
    };
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {
            "name": name(index), "uid": uid(index),
            "labels": {"kubernetes.io/os": "linux", "kubernetes.io/hostname": name(index)},
            "annotations": {"note": "x".repeat(500)},
            "managedFields": (0..4).map(managed).collect::<Vec<_>>(),
        },
        "status": {
            "addresses": [{"type": "InternalIP", "address": format!("10.{}.{}.1", index / 250, index % 250)}],
            "conditions": [{"type": "Ready", "status": "True"}, {"type": "MemoryPressure", "status": "False"}],
            "images": (0..50).map(image).collect::<Vec<_>>(),
        },
    })
}

fn object(index: usize) -> Value {
    let managed = json!([
        {"manager": "nodestats-agent", "operation": "Apply", "fieldsType": "FieldsV1", "fieldsV1": {"f:metadata": {"f:ownerReferences": {"k:{\"uid\":\"x\"}": {}}}}},
        {"manager": "nodestats-agent", "operation": "Apply", "subresource": "status", "fieldsType": "FieldsV1", "fieldsV1": {"f:status": {"f:addresses": {}, "f:agent": {"f:pod": {}, "f:state": {}, "f:version": {}}, "f:bootID": {}, "f:cpus": {}, "f:hostname": {}, "f:kernel": {}, "f:memory": {}, "f:nodeUID": {}}}},
        {"manager": "nodestats-controller", "operation": "Apply", "subresource": "status", "fieldsType": "FieldsV1", "fieldsV1": {"f:status": {"f:phase": {}, "f:observedGeneration": {}, "f:conditions": {"k:{\"type\":\"Ready\"}": {".": {}, "f:lastTransitionTime": {}, "f:message": {}, "f:reason": {}, "f:status": {}, "f:type": {}}}}}},
    ]);
    json!({
        "apiVersion": "nodestats.dev/v1alpha1", "kind": "MonitoredNode",
        "metadata": {
            "name": name(index), "uid": format!("object-{index}"), "generation": 1, "managedFields": managed,
            "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": name(index), "uid": uid(index)}],
        },
        "spec": {"interval": INTERVAL},
        "status": {"agent": {"version": "0.1.0", "state": "Running", "pod": format!("nodestats/agent-{index}")}, "nodeUID": uid(index)},
    })
}

/// How many objects have this phase.
fn in_phase(server: &FakeApiServer, phase: &str) -> usize {
    server.count(OBJECTS, |object| object["status"]["phase"] == phase)
}

async fn push(client: &Client, index: usize, now: Timestamp) {
    let age = if index < SILENT {
        SILENT_AGE_SECONDS
    } else {
        0
    };
    let frame = Frames::new(now.plus_micros(-age * 1_000_000)).next_frame();
    // Without the header by which an agent says what its clock shows: these are samples of then.
    client
        .push_old_frames(&uid(index), frame)
        .await
        .expect("stored");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_thousand_nodes_are_settled_with_one_write_each() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let kubeconfig = folder.path().join("kubeconfig");
    let server = FakeApiServer::start().await;
    server.write_kubeconfig(&kubeconfig);
    for index in 0..COUNT {
        server.put(&format!("{NODES}/{}", name(index)), node(index));
        server.put(&format!("{OBJECTS}/{}", name(index)), object(index));
    }
    let api = Program::serve(&["api", "--listen", "127.0.0.1:0", "--database", "mem://"]);
    let arguments = ["--identity", "test", "--poll", POLL];
    let begin = Instant::now();
    let controller = Program::controller(api.url(), &kubeconfig, &arguments);
    let until = async |phase: &str, count: usize| {
        eventually_within(
            PATIENCE,
            &format!("{count} nodes to be {phase}"),
            async || (in_phase(&server, phase) == count).then_some(()),
        )
        .await;
    };
    until("Pending", COUNT).await;
    let started = begin.elapsed();
    assert_eq!(
        server.requests("PATCH", "/status"),
        COUNT,
        "one write each to begin with"
    );

    // At rest nothing is written, and polls go on.
    let writes = || server.requests("PATCH", "") + server.requests("POST", "");
    let before = writes();
    tokio::time::sleep(
        LISTENED
            .saturating_sub(begin.elapsed())
            .max(Duration::from_secs(15)),
    )
    .await;
    assert_eq!(writes(), before, "something is written at rest");

    let client = api.client();
    let now = Timestamp::from_system(std::time::SystemTime::now());
    futures_util::stream::iter(0..COUNT)
        .for_each_concurrent(64, |index| push(&client, index, now))
        .await;
    until("Ready", COUNT).await;
    let ready = server.requests("PATCH", "/status");
    assert_eq!(ready, 2 * COUNT, "one write each to be Ready");

    // They are all stale at the same moment.
    eventually_within(PATIENCE, "the first stale node", async || {
        (in_phase(&server, "Stale") > 0).then_some(())
    })
    .await;
    let first = Instant::now();
    until("Stale", SILENT).await;
    assert_eq!(in_phase(&server, "Ready"), COUNT - SILENT);
    let settled = first.elapsed();
    assert_eq!(
        server.requests("PATCH", "/status"),
        ready + SILENT,
        "one write each to be Stale"
    );
    let memory = controller.peak_memory();
    assert!(memory < 200 << 20, "{} MiB", memory >> 20);
    println!(
        "{}",
        json!({
            "nodes": COUNT,
            "start_seconds": started.as_secs_f64(),
            "stale_settled_seconds": settled.as_secs_f64(),
            "peak_memory_mib": memory >> 20,
        })
    );
}
