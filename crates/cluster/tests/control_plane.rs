//! A control plane starts, is found running, and leaves nothing behind: also after a crash.

use std::path::{Path, PathBuf};
use std::process::Command;

use nodestats_cluster::{Cluster, Config, Level, Owned, Version, down, sweep};

fn config(name: &str) -> Config {
    Config {
        name: format!("{name}{}", std::process::id() % 10_000),
        version: Version::V1_37,
        level: Level::ControlPlane,
        ..Config::default()
    }
}

/// The pids of processes that belong to the cluster in this folder.
fn processes(folder: &Path) -> Vec<PathBuf> {
    let mark = format!("NODESTATS_CLUSTER={}", folder.display());
    let entries = std::fs::read_dir("/proc").expect("proc(5)").flatten();
    let marked = |path: &PathBuf| {
        let environment = std::fs::read(path.join("environ")).unwrap_or_default();
        environment
            .split(|byte| *byte == 0)
            .any(|entry| entry == mark.as_bytes())
    };
    entries.map(|entry| entry.path()).filter(marked).collect()
}

#[test]
fn starting_twice_is_starting_once_and_down_leaves_nothing() {
    let config = config("twice");
    let first = Cluster::up(&config).expect("it starts");
    let folder = first.directory().to_owned();
    let before = processes(&folder);
    assert!(before.len() >= 2, "etcd and kube-apiserver: {before:?}");
    let second = Cluster::up(&config).expect("it runs");
    assert_eq!(second.kubeconfig(), first.kubeconfig());
    assert_eq!(processes(&folder), before);
    let version = second
        .kubectl(&["version", "-o", "json"])
        .expect("it answers");
    assert!(version.contains("v1.37.2"), "{version}");
    down(&config.name).expect("down");
    assert!(!folder.exists());
    assert!(processes(&folder).is_empty());
    down(&config.name).expect("down again is no error");
    assert!(Cluster::running(&config.name).is_err());
}

#[test]
fn what_a_crash_left_is_found_and_removed() {
    // In the middle of a start: a program runs, and nothing says so but its environment.
    let config = config("crash");
    let cluster = Owned::up(&config).expect("it starts");
    let folder = cluster.directory().to_owned();
    std::fs::remove_file(folder.join("complete")).expect("removed");
    std::fs::remove_dir_all(folder.join("pki")).expect("removed");
    std::mem::forget(cluster);
    // Its owner is gone: the next one to start a cluster sweeps it away.
    let mut ended = Command::new("true").spawn().expect("starts");
    ended.wait().expect("ends");
    std::fs::write(folder.join("owner"), ended.id().to_string()).expect("written");
    assert!(processes(&folder).len() >= 2);
    sweep().expect("swept");
    assert!(!folder.exists());
    assert!(processes(&folder).is_empty());
}
