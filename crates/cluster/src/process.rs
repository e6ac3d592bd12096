//! Running programs: to their end, or on in the background under a mark by which `down` finds them
//! again, whatever happened to who started them.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process, setsid};

/// Longest wait for a condition of a cluster.
const PATIENCE: Duration = Duration::from_mins(2);
/// The variable in the environment of each program of a cluster; its value is the cluster's folder.
const MARK: &str = "NODESTATS_CLUSTER";

/// Runs a command to its end; its standard output, or an error with what it said.
pub(crate) fn output(command: &mut Command, input: &str) -> anyhow::Result<String> {
    let stdin = if input.is_empty() {
        Stdio::null()
    } else {
        Stdio::piped()
    };
    let mut child = command
        .stdin(stdin)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {command:?}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{command:?} failed ({}): {}", output.status, said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The same for words of one line, without blanks in them.
pub(crate) fn words(line: &str) -> anyhow::Result<String> {
    let mut words = line.split_whitespace();
    let program = words.next().context("a command has a name")?;
    output(Command::new(program).args(words), "")
}

/// Starts a program that outlives this one. Its output goes to `log`.
pub(crate) fn start(command: &mut Command, cluster: &Path, log: &Path) -> anyhow::Result<()> {
    let log = File::options().create(true).append(true).open(log)?;
    command
        .env(MARK, cluster)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    // Away from this terminal and its Ctrl-C. `setsid` is one system call, and allocates nothing.
    #[allow(unsafe_code)]
    // SAFETY: between fork and exec only `setsid(2)` is called, which is async-signal-safe.
    unsafe {
        command.pre_exec(|| setsid().map(drop).map_err(Into::into));
    }
    command
        .spawn()
        .with_context(|| format!("cannot start {command:?}"))?;
    Ok(())
}

/// What a start runs to its end, and what a start that is killed leaves behind without a mark.
const HELPERS: [&str; 3] = ["buildah", "ctr", "kubectl"];

/// Kills every process that carries the cluster's mark, and every helper that works in its folder,
/// and waits until none is left.
pub(crate) fn kill_all(cluster: &Path) -> anyhow::Result<()> {
    let mark = format!("{MARK}={}", cluster.display());
    let begin = Instant::now();
    loop {
        let mut left = marked(&mark)?;
        left.extend(helpers(cluster)?);
        if left.is_empty() {
            return Ok(());
        }
        for pid in left {
            let _ = kill_process(pid, Signal::KILL);
            // Where it is a child of this process.
            let _ = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::NOHANG);
        }
        if begin.elapsed() > PATIENCE {
            bail!("processes of {} do not end", cluster.display());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn helpers(cluster: &Path) -> anyhow::Result<Vec<Pid>> {
    let folder = format!("{}/", cluster.display());
    let works_here = |entry: &fs::DirEntry| {
        let read = |file| fs::read_to_string(entry.path().join(file)).unwrap_or_default();
        HELPERS.contains(&read("comm").trim()) && read("cmdline").contains(&folder)
    };
    processes(works_here)
}

/// The processes with this entry in their environment.
pub(crate) fn marked(mark: &str) -> anyhow::Result<Vec<Pid>> {
    processes(|entry| {
        // Empty for zombies, and unreadable for processes of others.
        let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
        environment
            .split(|byte| *byte == 0)
            .any(|entry| entry == mark.as_bytes())
    })
}

fn processes(wanted: impl Fn(&fs::DirEntry) -> bool) -> anyhow::Result<Vec<Pid>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.parse().ok());
        if let Some(pid) = pid.and_then(Pid::from_raw)
            && wanted(&entry)
        {
            found.push(pid);
        }
    }
    Ok(found)
}

/// Asks again and again until there is an answer.
pub(crate) fn wait_for<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> anyhow::Result<T> {
    let begin = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return Ok(answer);
        }
        if begin.elapsed() > PATIENCE {
            bail!("waited in vain for {what}");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
