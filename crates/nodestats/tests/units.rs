//! A unit of a plain host, as systemd makes one, by a control group of this machine: its limit, its
//! throttled time, and what its processes used. It needs root, as the tests on clusters do.

use nodestats_testkit::{ControlGroup, Limit, Program, eventually, get};
use serde_json::Value;

fn number(value: &Value, field: &str) -> f64 {
    value[field]
        .as_f64()
        .unwrap_or_else(|| panic!("{field} is not in {value}"))
}

#[tokio::test]
async fn a_unit_is_shown_with_its_limit_and_its_books_close() {
    // Who wants a whole CPU, and may have a fifth of one.
    let service = ControlGroup::start("while :; do :; done", Limit::CpuPercent(20));
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
    let cgroup = service.path();
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
    // All units, this one among them, and a rest are the node's CPU.
    let (cpu, at) = (&now["cpu"], now["time"].as_str().expect("a time"));
    let (groups, rest) = (
        number(cpu, "groups_millicores"),
        number(cpu, "rest_millicores"),
    );
    let all = number(cpu, "used_millicores");
    println!("{groups:.0} + {rest:.0} = {all:.0} millicores");
    assert!((groups + rest - all).abs() < 0.03, "{cpu}");
    let host = get(&client, &format!("/nodes/{node}/cpu?at={at}")).await;
    let host = host.expect("the node's CPU");
    let modes =
        ["user", "nice", "system", "irq", "softirq"].map(|mode| number(&host["modes"], mode));
    let cpus = host["cpus"].as_array().expect("CPUs").len() as f64;
    let busy = modes.iter().sum::<f64>() * cpus * 10.0;
    // Shares of all ticks there, ticks of a span here, which is read a moment apart.
    assert!((busy - all).abs() < 50.0 * cpus, "{busy} {all}");
    let now = unit(&now).expect("it is listed");
    assert!(
        number(&now["cpu"], "usage_millicores") <= groups + 0.01,
        "{now} {groups}"
    );
    assert_eq!(
        (&now["unit"], &now["kind"]),
        (&"work.service".into(), &"unit".into())
    );
    assert_eq!(now["tasks"], 1);
    // The process says where it is.
    let pid = service.pid();
    let process = get(&client, &format!("/nodes/{node}/proc/{pid}")).await;
    assert_eq!(process.expect("its process")["cgroup"], *cgroup);
    // And the plugin shows it.
    let arguments = ["--server", server.url(), "get", &node, "--units"];
    let table = Program::run("kubectl-nodestats", &arguments).stdout;
    let mut rows = table
        .lines()
        .filter(|line| line.starts_with("work.service"));
    assert!(rows.any(|row| row.contains("200m")), "{table}");
    assert_eq!(server.terminate().code(), Some(0));
    // What is made anew with the same name counts from zero; what is gone is gone.
    drop(service);
}
