//! Memory, CPU and the first answer of the release programs on this host, in fast motion.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use crate::{image, process};

/// Killed when it is dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `cargo xtask measure`.
pub(crate) fn run(json: bool, seconds: u64) -> anyhow::Result<()> {
    process::run(process::cargo().args([
        "build",
        "--quiet",
        "--release",
        "--package",
        "nodestats",
    ]))?;
    let static_programs = image::static_programs("release", &["nodestats-agent"])?;
    let folder = process::target_dir("xtask-measure")?;
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    fs::create_dir_all(&folder)?;
    let path = |name: &str| folder.join(name).display().to_string();

    let mut command = Command::new(process::target_dir("release")?.join("nodestats"));
    command.args([
        "standalone",
        "--listen",
        "127.0.0.1:0",
        "--interval",
        "1s",
        "--data-dir",
        &path("standalone"),
    ]);
    let mut standalone = Running(
        command
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?,
    );
    let mut line = String::new();
    BufReader::new(standalone.0.stdout.take().context("piped")?).read_line(&mut line)?;
    let listening = Instant::now();
    let address = line
        .trim()
        .strip_prefix("listening on http://")
        .context("it did not start")?
        .to_owned();
    let hostname = fs::read_to_string("/proc/sys/kernel/hostname")?
        .trim()
        .to_owned();
    while !get(&address, &format!("/nodes/{hostname}/cpu"))?.contains("\"usage_percent\"") {
        if listening.elapsed() > Duration::from_mins(1) {
            bail!("no first answer within a minute");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let first_answer = listening.elapsed();

    let mut command = Command::new(static_programs.join("nodestats-agent"));
    command.args([
        "--interval",
        "1s",
        "--node-ip",
        "192.168.2.10",
        "--hostname",
        "measured",
    ]);
    command.args([
        "--server",
        &format!("http://{address}"),
        "--state-dir",
        &path("agent"),
    ]);
    let agent = Running(command.stderr(Stdio::null()).spawn()?);
    let begin = Instant::now();
    let (mut standalone_rss, mut agent_rss) = (0, 0);
    while begin.elapsed() < Duration::from_secs(seconds) {
        std::thread::sleep(Duration::from_secs(1));
        standalone_rss = standalone_rss.max(rss_kib(standalone.0.id())?);
        agent_rss = agent_rss.max(rss_kib(agent.0.id())?);
    }
    let agent_cpu = cpu_seconds(agent.0.id())? / begin.elapsed().as_secs_f64();
    let processes = fs::read_dir("/proc")?
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().parse::<u32>().is_ok())
        .count();
    let round = |value: f64| (value * 100.0).round() / 100.0;
    let figures = serde_json::json!({
        "standalone_rss_mib": round(standalone_rss as f64 / 1024.0),
        "agent_rss_mib": round(agent_rss as f64 / 1024.0),
        "agent_cpu_millicores": round(agent_cpu * 1000.0),
        "first_answer_seconds": round(first_answer.as_secs_f64()),
        "processes": processes,
    });
    drop((agent, standalone));
    fs::remove_dir_all(&folder)?;
    if json {
        println!("{figures}");
    } else {
        println!("{figures:#}");
    }
    Ok(())
}

/// The body of a GET, by the smallest client there is; an empty text where there is no answer.
fn get(address: &str, path: &str) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(if answer.starts_with("HTTP/1.1 200") {
        answer
    } else {
        String::new()
    })
}

/// `VmRSS` of a process, in KiB.
fn rss_kib(pid: u32) -> anyhow::Result<u64> {
    let status = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("status"))?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .context("it ended")?;
    Ok(line.trim().trim_end_matches("kB").trim().parse()?)
}

/// User and system time of a process (`/proc/PID/stat` fields 14 and 15, in ticks of 10 ms).
fn cpu_seconds(pid: u32) -> anyhow::Result<f64> {
    let stat = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat"))?;
    let fields = stat.rsplit_once(')').context("a name in parentheses")?.1;
    let ticks = fields
        .split_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|field| field.parse::<f64>().ok());
    Ok(ticks.sum::<f64>() / 100.0)
}
