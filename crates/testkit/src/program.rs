//! The real programs as processes.

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use nodestats_wire::client::Client;
use rustix::process::{Pid, Signal, kill_process};

use crate::{PATIENCE, wait_for};

/// A program that runs; killed when it is dropped.
pub struct Program {
    child: Running,
    address: String,
}

/// A program that ended by itself.
#[derive(Debug)]
pub struct Run {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

/// A size of a process' memory in bytes, by its line in `/proc/PID/status`: `VmRSS:` now, `VmHWM:` at its peak.
///
/// # Panics
/// Where there is no such process.
pub fn memory_of(pid: u32, line: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let size = status.lines().find_map(|one| one.strip_prefix(line));
    let kib = size.and_then(|size| size.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.expect("in kB") * 1024
}

/// The path of a program of this workspace, beside the running test.
pub(crate) fn binary(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a test is a program");
    let folder = test
        .ancestors()
        .nth(2)
        .expect("tests are in deps/ of the folder of programs");
    let path = folder.join(name);
    assert!(
        path.exists(),
        "{} is missing: cargo xtask programs makes it",
        path.display()
    );
    path
}

/// Where cargo builds: above the folder of programs.
pub(crate) fn target_folder() -> PathBuf {
    let test = std::env::current_exe().expect("a test is a program");
    let folder = test.ancestors().nth(3);
    folder.expect("target/PROFILE/deps").to_owned()
}

pub(crate) fn command(name: &str, arguments: &[&str]) -> Command {
    let mut command = isolated(binary(name));
    command.args(arguments);
    command
}

/// What a person has typed or set must not reach a test.
pub(crate) fn isolated(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.stdin(Stdio::null());
    for (variable, _) in std::env::vars() {
        if variable.starts_with("NODESTATS_") || variable.starts_with("OTEL_") {
            command.env_remove(variable);
        }
    }
    command
}

impl Run {
    pub(crate) fn of(command: &mut Command) -> Self {
        let output = command.output().expect("starts");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self {
            status: output.status,
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
        }
    }
}

impl Program {
    /// Starts `nodestats` and waits until it listens.
    ///
    /// # Panics
    /// Where it ends instead.
    pub fn serve(arguments: &[&str]) -> Self {
        Self::serve_by(&mut command("nodestats", arguments))
    }

    /// The same with these variables, and its log in a file.
    ///
    /// # Panics
    /// Where it ends instead.
    pub fn serve_with(arguments: &[&str], environment: &[(&str, String)], log: &Path) -> Self {
        let mut command = command("nodestats", arguments);
        command.stderr(std::fs::File::create(log).expect("created"));
        Self::serve_by(command.envs(environment.iter().cloned()))
    }

    /// The same in the cluster of a kubeconfig, with its log in a file.
    ///
    /// # Panics
    /// Where it ends instead.
    pub fn serve_in(arguments: &[&str], kubeconfig: &Path, log: &Path) -> Self {
        let mut command = command("nodestats", arguments);
        command.stderr(std::fs::File::create(log).expect("created"));
        Self::serve_by(command.env("KUBECONFIG", kubeconfig))
    }

    /// Runs `command`, which becomes `nodestats`, and waits until it listens.
    pub(crate) fn serve_by(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().expect("starts");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("piped");
        BufReader::new(stdout)
            .read_line(&mut line)
            .expect("readable");
        let address = line.trim().strip_prefix("listening on ").map(str::to_owned);
        let address = address.unwrap_or_else(|| panic!("{command:?} printed {line:?}"));
        Self {
            child: Running(child),
            address,
        }
    }

    /// Starts an agent for the server at `server`.
    pub fn agent(server: &str, arguments: &[&str]) -> Self {
        let all: Vec<&str> = ["--server", server]
            .iter()
            .chain(arguments)
            .copied()
            .collect();
        let child = command("nodestats-agent", &all).spawn().expect("starts");
        Self {
            child: Running(child),
            address: server.to_owned(),
        }
    }

    /// Starts a controller of the namespace `nodestats` for the API at `api`, on a port of its own
    /// unless `arguments` name one.
    pub fn controller(api: &str, kubeconfig: &Path, arguments: &[&str]) -> Self {
        let mut all = vec!["controller", "--api", api, "--namespace", "nodestats"];
        if !arguments.contains(&"--admin-listen") {
            all.extend(["--admin-listen", "127.0.0.1:0"]);
        }
        all.extend(arguments);
        let kubeconfig = kubeconfig.display().to_string();
        Self::start("nodestats", &all, &[("KUBECONFIG", &kubeconfig)])
    }

    /// The same that asks each second, as the replica `one`, with the cluster's defaults.
    pub fn quick_controller(
        api: &str,
        kubeconfig: &Path,
        defaults: &serde_json::Value,
        more: &[&str],
    ) -> Self {
        let defaults = defaults.to_string();
        let mut arguments = vec!["--identity", "one", "--poll", "1s"];
        arguments.extend(["--node-defaults", &defaults]);
        arguments.extend(more);
        Self::controller(api, kubeconfig, &arguments)
    }

    /// Starts a program that says nothing on standard output, with these variables.
    pub fn start(name: &str, arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        let mut command = command(name, arguments);
        command.envs(environment.iter().copied());
        Self {
            child: Running(command.spawn().expect("starts")),
            address: String::new(),
        }
    }

    /// The same with its log in a file.
    pub fn start_logged(
        name: &str,
        arguments: &[&str],
        environment: &[(&str, &str)],
        log: &Path,
    ) -> Self {
        let mut command = command(name, arguments);
        command.envs(environment.iter().copied());
        Self::start_by(&mut command, log)
    }

    pub(crate) fn start_by(command: &mut Command, log: &Path) -> Self {
        command.stderr(std::fs::File::create(log).expect("created"));
        Self {
            child: Running(command.spawn().expect("starts")),
            address: String::new(),
        }
    }

    /// Runs a program to its end, with these variables.
    pub fn run_with(name: &str, arguments: &[&str], environment: &[(&str, String)]) -> Run {
        Run::of(command(name, arguments).envs(environment.iter().cloned()))
    }

    /// Runs a program to its end.
    pub fn run(name: &str, arguments: &[&str]) -> Run {
        Run::of(&mut command(name, arguments))
    }

    /// The same as the user who owns nothing; only root can.
    pub fn run_as_nobody(name: &str, arguments: &[&str]) -> Run {
        // Where that user may get to, whatever is above the folder of programs.
        let folder = tempfile::tempdir().expect("temporary folder");
        let open = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(folder.path(), open).expect("ours");
        let (program, reachable) = (binary(name), folder.path().join(name));
        std::fs::hard_link(&program, &reachable)
            .or_else(|_| std::fs::copy(&program, &reachable).map(drop))
            .expect("there is room for it");
        let mut command = isolated(reachable);
        Run::of(command.args(arguments).uid(65534).gid(65534))
    }

    /// The most memory that it had resident so far, in bytes (`VmHWM` of proc(5)).
    pub fn peak_memory(&self) -> u64 {
        memory_of(self.child.0.id(), "VmHWM:")
    }

    /// The server's URL.
    pub fn url(&self) -> &str {
        &self.address
    }

    /// The server's port.
    pub fn port(&self) -> u16 {
        self.address
            .rsplit(':')
            .next()
            .and_then(|port| port.parse().ok())
            .expect("a port")
    }

    /// A client for the server.
    pub fn client(&self) -> Client {
        Client::new(&self.address, PATIENCE).expect("a URL")
    }

    /// A client for the server that shows the token in this file.
    pub fn client_with(&self, token: &Path) -> Client {
        let client = self.client().with_token_file(token.to_owned());
        client.expect("a server of this machine")
    }

    /// Waits until it ends by itself.
    ///
    /// # Panics
    /// Where it has not ended within [`PATIENCE`].
    pub fn wait(mut self) -> ExitStatus {
        wait_for("its end", || {
            self.child.0.try_wait().expect("a child of ours")
        })
    }

    /// Kills it without a chance to do anything (SIGKILL).
    pub fn kill(mut self) {
        self.child.0.kill().expect("it runs");
    }

    /// Asks it to end (SIGTERM), and waits until it did.
    ///
    /// # Panics
    /// Where it has not ended within [`PATIENCE`].
    pub fn terminate(self) -> ExitStatus {
        let pid = i32::try_from(self.child.0.id()).expect("a pid");
        kill_process(Pid::from_raw(pid).expect("a pid"), Signal::TERM).expect("it runs");
        self.wait()
    }
}

/// A process that is killed (SIGKILL) when this is dropped.
pub(crate) struct Running(pub(crate) Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
