//! The controller and very many pods: a real controller and a real API, and a fake API server, which
//! is all that is too large for this machine.
//!
//! `NODESTATS_TEST_PODS=150000 cargo test -p nodestats --test many_pods -- --nocapture` measures what
//! the largest clusters have; without it there are as many as tests have time for.

use std::time::{Duration, Instant};

use nodestats_testkit::fake_api_server::FakeApiServer;
use nodestats_testkit::{Program, eventually_within, get};
use serde_json::{Value, json};

const PODS: &str = "/api/v1/pods";
const PATIENCE: Duration = Duration::from_mins(10);

fn uid(index: usize) -> String {
    format!("00000000-0000-4000-8000-{index:012}")
}

fn path(index: usize) -> String {
    format!("{PODS}/pod-{index:06}")
}

/// A Pod of the size that real ones have: environment, volumes, managed fields.
fn pod(index: usize) -> Value {
    let environment = |n: usize| json!({"name": format!("SETTING_{n}"), "value": "x".repeat(40)});
    let managed = json!({
        "manager": "kubelet", "operation": "Update", "subresource": "status", "fieldsType": "FieldsV1",
        "fieldsV1": {"f:status": {"f:conditions": {"k:{\"type\":\"Ready\"}": {".": {}, "f:status": {}}}}},
    });
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": format!("pod-{index:06}"), "namespace": format!("team-{}", index % 500),
            "uid": uid(index), "creationTimestamp": "2026-03-01T13:00:00Z",
            "labels": {"app": "web", "pod-template-hash": "6d4cf56db6"},
            "managedFields": [managed.clone(), managed],
        },
        "spec": {
            "containers": [{
                "name": "app", "image": "registry.example/team/web:1",
                "env": (0..10).map(environment).collect::<Vec<_>>(),
                "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}},
            }],
            "volumes": [{"name": "token", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}}],
        },
        "status": {
            "phase": "Running",
            "containerStatuses": [{
                "name": "app", "image": "web", "imageID": format!("sha256:{index:064x}"), "ready": true,
                "restartCount": 0, "containerID": format!("containerd://{index:064x}"),
                "state": {"running": {"startedAt": "2026-03-01T13:00:02Z"}},
            }],
        },
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_are_told_once_and_those_that_went_unseen_are_found() {
    let count = std::env::var("NODESTATS_TEST_PODS").ok();
    let count = count.map_or(3000, |count| count.parse().expect("a number of pods"));
    let folder = tempfile::tempdir().expect("temporary folder");
    let kubeconfig = folder.path().join("kubeconfig");
    let server = FakeApiServer::start().await;
    server.write_kubeconfig(&kubeconfig);
    for index in 0..count {
        server.put(&path(index), pod(index));
    }
    let data = folder.path().join("data").display().to_string();
    let api = Program::serve(&[
        "api",
        "--listen",
        "127.0.0.1:0",
        "--database",
        &format!("surrealkv://{data}"),
    ]);
    let client = api.client();
    let live = async || {
        let digests = get(&client, "/pods?view=digests").await?;
        digests.as_array().map(Vec::len)
    };
    let begin = Instant::now();
    let start = || {
        Program::controller(
            api.url(),
            &kubeconfig,
            &["--identity", "test", "--poll", "5s", "--pods=app"],
        )
    };
    let controller = start();
    eventually_within(PATIENCE, "all pods to be told", async || {
        (live().await? == count).then_some(())
    })
    .await;
    let told = begin.elapsed();
    let memory = controller.peak_memory();
    // At rest nothing more is told.
    let one = get(&client, "/namespaces/team-7/pods/pod-000007")
        .await
        .expect("a pod");
    assert_eq!(
        (&one["uid"], &one["labels"]),
        (&json!(uid(7)), &json!({"app": "web"}))
    );
    assert_eq!(one["containers"][0]["cpu_request_millicores"], 100);
    // One goes while it is watched, one while nobody watches.
    server.remove(&path(1));
    eventually_within(PATIENCE, "one to be gone", async || {
        (live().await? == count - 1).then_some(())
    })
    .await;
    controller.terminate();
    server.remove(&path(2));
    let controller = start();
    eventually_within(PATIENCE, "the other to be found", async || {
        (live().await? == count - 2).then_some(())
    })
    .await;
    for index in [1, 2] {
        let path = format!("/namespaces/team-{index}/pods/pod-{index:06}");
        let gone = get(&client, &path).await.expect("its name stays");
        assert_eq!(
            (&gone["state"], &gone["uid"]),
            (&json!("gone"), &json!(uid(index)))
        );
    }
    let again = controller.peak_memory();
    let most = memory.max(again);
    println!(
        "{}",
        json!({
            "pods": count, "told_seconds": told.as_secs_f64(),
            "peak_memory_mib": memory >> 20, "peak_memory_of_the_next_mib": again >> 20,
        })
    );
    assert!(most < 160 << 20, "{} MiB", most >> 20);
}
