//! A unit of a plain host, as systemd makes one, by control groups of this machine. It needs root.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::wait_for;

/// A process in a group of its own in every hierarchy; both are gone when it is dropped.
#[derive(Debug)]
pub struct ControlGroup {
    slice: String,
    groups: Vec<PathBuf>,
    process: Child,
}

/// What a group may use.
#[derive(Debug, Clone, Copy)]
pub enum Limit {
    /// So many hundredths of one CPU.
    CpuPercent(u32),
    /// So many bytes of memory, and no swap.
    MemoryBytes(u64),
}

impl ControlGroup {
    /// A service `work.service` in a slice of its own, whose one process is a shell that runs `script`
    /// once it is there.
    ///
    /// # Panics
    /// Where no group can be made.
    pub fn start(script: &str, limit: Limit) -> Self {
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
            .args(["-c", &format!("read go; {script}")])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("a shell");
        for group in &groups {
            fs::create_dir_all(group).expect("a control group: this test needs root");
            let above = group.parent().expect("a slice");
            if above.join("cgroup.subtree_control").exists() {
                for folder in [root, above] {
                    let _ = fs::write(folder.join("cgroup.subtree_control"), "+cpu +memory +pids");
                }
            }
            limit.set(group);
            let pid = process.id().to_string();
            fs::write(group.join("cgroup.procs"), pid).expect("moved");
        }
        let mut group = Self {
            slice,
            groups,
            process,
        };
        // It begins where it is to be.
        drop(group.process.stdin.take());
        group
    }

    /// Its group below the root of the hierarchy.
    pub fn path(&self) -> String {
        format!("/{}/work.service", self.slice)
    }

    /// The shell's process id.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }
}

impl Limit {
    fn set(self, group: &Path) {
        let write = |file: &str, text: String| {
            let file = group.join(file);
            if file.exists() {
                fs::write(file, text).expect("a limit");
            }
        };
        match self {
            Self::CpuPercent(percent) => {
                write("cpu.max", format!("{} 100000", percent * 1000));
                write("cpu.cfs_period_us", "100000".to_owned());
                write("cpu.cfs_quota_us", (percent * 1000).to_string());
            }
            Self::MemoryBytes(bytes) => {
                write("memory.max", bytes.to_string());
                write("memory.swap.max", "0".to_owned());
                write("memory.limit_in_bytes", bytes.to_string());
                write("memory.memsw.limit_in_bytes", bytes.to_string());
            }
        }
    }
}

impl Drop for ControlGroup {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        // And what the shell has started.
        let is_empty = || {
            let mut empty = true;
            for group in &self.groups {
                let pids = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
                for pid in pids
                    .lines()
                    .filter_map(|pid| Pid::from_raw(pid.parse().ok()?))
                {
                    let _ = kill_process(pid, Signal::KILL);
                    empty = false;
                }
            }
            empty.then_some(())
        };
        wait_for("the group's processes to end", is_empty);
        for group in &self.groups {
            let _ = fs::remove_dir(group);
            let _ = fs::remove_dir(group.parent().expect("a slice"));
        }
    }
}
