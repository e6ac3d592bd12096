//! A unit of a plain host, as systemd makes one, by a control group of this machine: its limit, its
//! throttled time, and what its processes used. It needs root, as the tests on clusters do.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nodestats_testkit::{Program, eventually, get};
use serde_json::Value;

/// A service's group in every hierarchy, gone when it is dropped.
struct Service {
    slice: String,
    groups: Vec<PathBuf>,
    process: Child,
}

impl Service {
    /// One with a process that wants a whole CPU, and may have a fifth of one.
    fn start() -> Self {
        let slice = format!("nodestatstest{}.slice", std::process::id());
        let root = Path::new("/sys/fs/cgroup");
        let groups: Vec<PathBuf> = if root.join("cgroup.controllers").exists() {
            vec![root.join(&slice).join("work.service")]
        } else {
            ["cpu,cpuacct", "cpu", "cpuacct", "memory", "pids", "blkio"]
                .iter()
                .map(|hierarchy| root.join(hierarchy))
                .filter(|hierarchy| hierarchy.exists())
                .map(|hierarchy| hierarchy.join(&slice).join("work.service"))
                .collect()
        };
        let process = Command::new("sh")
            .args(["-c", "read go; while :; do :; done"])
            .stdin(Stdio::piped())
            .spawn()
            .expect("a shell");
        for group in &groups {
            fs::create_dir_all(group).expect("a control group: this test needs root");
            let controllers = group
                .parent()
                .expect("a slice")
                .join("cgroup.subtree_control");
            if controllers.exists() {
                for folder in [root, controllers.parent().expect("a slice")] {
                    let _ = fs::write(folder.join("cgroup.subtree_control"), "+cpu +memory +pids");
                }
                fs::write(group.join("cpu.max"), "20000 100000").expect("a limit");
            }
            let quota = group.join("cpu.cfs_quota_us");
            if quota.exists() {
                fs::write(group.join("cpu.cfs_period_us"), "100000").expect("a period");
                fs::write(quota, "20000").expect("a limit");
            }
            let pid = process.id().to_string();
            fs::write(group.join("cgroup.procs"), pid).expect("moved");
        }
        let mut service = Self {
            slice,
            groups,
            process,
        };
        // It begins where it is to be.
        drop(service.process.stdin.take());
        service
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        for group in &self.groups {
            let _ = fs::remove_dir(group);
            let _ = fs::remove_dir(group.parent().expect("a slice"));
        }
    }
}

fn number(value: &Value, field: &str) -> f64 {
    value[field]
        .as_f64()
        .unwrap_or_else(|| panic!("{field} is not in {value}"))
}

#[tokio::test]
async fn a_unit_is_shown_with_its_limit_and_its_books_close() {
    let service = Service::start();
    let folder = tempfile::tempdir().expect("temporary folder");
    let data_dir = folder.path().to_str().expect("UTF-8");
    let server = Program::serve(&[
        "standalone",
        "--listen",
        "127.0.0.1:0",
        "--data-dir",
        data_dir,
        "--interval",
        "1s",
    ]);
    let client = server.client();
    let node = eventually("the node", async || {
        let nodes = get(&client, "/nodes").await?;
        nodes[0].as_str().map(str::to_owned)
    })
    .await;
    let cgroup = format!("/{}/work.service", service.slice);
    let unit = |units: &Value| {
        let units = units["units"].as_array()?;
        units.iter().find(|unit| unit["cgroup"] == *cgroup).cloned()
    };
    let path = format!("/nodes/{node}/units?from=0");
    let rates = eventually("ten seconds of it", async || {
        let history = get(&client, &path).await?;
        let units = history.as_object()?.values().filter_map(unit);
        let rates: Vec<Value> = units
            .map(|unit| unit["cpu"].clone())
            .filter(|cpu| cpu["usage_millicores"].is_number())
            .collect();
        (rates.len() > 10).then_some(rates)
    })
    .await;
    let mean =
        |field: &str| rates.iter().map(|cpu| number(cpu, field)).sum::<f64>() / rates.len() as f64;
    let used = mean("usage_millicores");
    println!(
        "{used:.1} of 200 millicores, remainder {:.1}",
        mean("remainder_millicores")
    );
    // Beside other work it may get less, and never more.
    assert!(used < 204.0 && used > 100.0, "{used}");
    assert!(mean("throttled_seconds_per_second") > 0.1, "{rates:?}");
    assert!(mean("remainder_millicores").abs() < 10.0, "{rates:?}");
    let last = rates.last().expect("ten of them");
    assert_eq!(last["limit_millicores"], 200.0);
    let now = get(&client, &format!("/nodes/{node}/units"))
        .await
        .expect("units");
    let now = unit(&now).expect("it is listed");
    assert_eq!(
        (&now["unit"], &now["kind"]),
        (&"work.service".into(), &"unit".into())
    );
    assert_eq!(now["tasks"], 1);
    // The process says where it is.
    let pid = service.process.id();
    let process = get(&client, &format!("/nodes/{node}/proc/{pid}")).await;
    assert_eq!(process.expect("its process")["cgroup"], *cgroup);
    // And the plugin shows it.
    let arguments = ["--server", server.url(), "get", &node, "--units"];
    let table = Program::run("kubectl-nodestats", &arguments).stdout;
    let row = table.lines().find(|line| line.starts_with("work.service"));
    assert!(row.is_some_and(|row| row.contains("200m")), "{table}");
    assert_eq!(server.terminate().code(), Some(0));
    // What is made anew with the same name counts from zero; what is gone is gone.
    drop(service);
}
