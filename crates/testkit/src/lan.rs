//! Hosts of one network: each a network namespace with an address of its own, on one bridge. Nothing
//! of it is named, and nothing of it is left when it is dropped.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::program::{Program, Run, Running, binary, isolated};

/// What a namespace is held by, once it is ready.
const HOLD: &str = "ip link set lo up && echo ready && exec sleep inf";

/// A network of hosts.
pub struct Lan {
    hosts: Vec<Host>,
    // The bridge's; goes last.
    _bridge: Running,
}

struct Host {
    name: &'static str,
    address: String,
    holder: Running,
}

fn hold(command: &mut Command) -> Running {
    command.args(["sh", "-c", HOLD]).stdout(Stdio::piped());
    let mut child = command.spawn().expect("util-linux is there");
    let stdout = child.stdout.take().expect("piped");
    let mut line = String::new();
    let read = BufReader::new(stdout).read_line(&mut line);
    read.expect("readable");
    assert_eq!(line, "ready\n", "no network namespace by {command:?}");
    Running(child)
}

/// A command of which the rest is run in the namespaces of a process.
fn enter(holder: &Running) -> Command {
    let mut command = isolated("nsenter");
    command.args(["--user", "--net", "--preserve-credentials", "--target"]);
    command.arg(holder.0.id().to_string());
    command
}

fn ip(holder: &Running, arguments: &str) {
    let mut command = enter(holder);
    command.arg("ip").args(arguments.split_whitespace());
    let status = command.status().expect("iproute2 is there");
    assert!(status.success(), "ip {arguments}: {status}");
}

impl Lan {
    /// One of these hosts.
    ///
    /// # Panics
    /// Where this user may not have network namespaces.
    pub fn new(names: &[&'static str]) -> Self {
        let mut unshare = isolated("unshare");
        let bridge = hold(unshare.args(["--user", "--map-root-user", "--net"]));
        ip(&bridge, "link add bridge type bridge");
        ip(&bridge, "link set bridge up");
        let hosts = names.iter().enumerate().map(|(index, name)| {
            let holder = hold(enter(&bridge).args(["unshare", "--net"]));
            let address = format!("10.77.0.{}", index + 1);
            let pid = holder.0.id();
            ip(
                &bridge,
                &format!("link add port{index} type veth peer name eth0 netns {pid}"),
            );
            ip(&bridge, &format!("link set port{index} master bridge up"));
            ip(&holder, &format!("address add {address}/24 dev eth0"));
            ip(&holder, "link set eth0 up");
            ip(&holder, "route add default dev eth0");
            Host {
                name,
                address,
                holder,
            }
        });
        Self {
            hosts: hosts.collect(),
            _bridge: bridge,
        }
    }

    fn host(&self, name: &str) -> &Host {
        let host = self.hosts.iter().find(|host| host.name == name);
        host.expect("a host of this network")
    }

    /// The address of a host.
    pub fn address(&self, name: &str) -> &str {
        &self.host(name).address
    }

    fn command(&self, host: &str, program: &str, arguments: &[&str]) -> Command {
        let mut command = enter(&self.host(host).holder);
        command.arg(binary(program)).args(arguments);
        command
    }

    /// Starts `nodestats` on a host, with its log in a file, and waits until it listens.
    ///
    /// # Panics
    /// Where it ends instead.
    pub fn serve(&self, host: &str, arguments: &[&str], log: &Path) -> Program {
        let mut command = self.command(host, "nodestats", arguments);
        command.stderr(std::fs::File::create(log).expect("created"));
        Program::serve_by(&mut command)
    }

    /// Starts a program on a host, with its log in a file.
    pub fn start(&self, host: &str, program: &str, arguments: &[&str], log: &Path) -> Program {
        Program::start_by(&mut self.command(host, program, arguments), log)
    }

    /// Runs a program on a host to its end.
    pub fn run(&self, host: &str, program: &str, arguments: &[&str]) -> Run {
        Run::of(&mut self.command(host, program, arguments))
    }
}
