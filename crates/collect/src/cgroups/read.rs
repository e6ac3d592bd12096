//! The files of one group.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use nodestats_core::sample::cgroup::{Cpu, DEVICES, Disk, Memory, MemoryEvents};
use nodestats_core::sample::{Cgroup, Pressure};

use super::layout::{Hierarchy, Layout, Version};
use super::tree::Group;
use crate::pressure;
use crate::root::HostRoot;

/// `USER_HZ` in microseconds.
const TICK_MICROS: u64 = 10_000;
/// Version 1 says "no limit" by the largest number of whole pages.
const NO_LIMIT: u64 = 0x7fff_ffff_0000_0000;

/// Names of block devices by their numbers, `8:0`.
#[derive(Debug, Default)]
pub(super) struct Devices(HashMap<String, String>);

pub(super) struct Reader<'a> {
    root: &'a HostRoot,
    layout: &'a Layout,
    devices: &'a mut Devices,
    /// The names were looked up in this pass.
    looked_up: bool,
    text: String,
}

impl<'a> Reader<'a> {
    pub(super) fn new(root: &'a HostRoot, layout: &'a Layout, devices: &'a mut Devices) -> Self {
        Self {
            root,
            layout,
            devices,
            looked_up: false,
            text: String::new(),
        }
    }

    /// `None` where the group is gone by now.
    pub(super) fn read(&mut self, group: Group) -> Option<Cgroup> {
        let layout = self.layout;
        let path = &*group.path;
        let cpu = self.cpu(path);
        let memory = layout.memory.as_ref().and_then(|at| self.memory(at, path));
        let disks = layout.io.as_ref().and_then(|at| self.disks(at, path));
        let unified = layout.unified.as_ref();
        let pressure = unified.and_then(|at| self.pressure(at, path));
        let (tasks, tasks_limit) = match &layout.pids {
            Some(at) => (
                self.number(at, path, "pids.current"),
                self.number(at, path, "pids.max"),
            ),
            None => (None, None),
        };
        // What is gone has no figures, and an idle group has some.
        if cpu.is_none() && memory.is_none() && tasks.is_none() {
            return None;
        }
        Some(Cgroup {
            path: group.path.as_str().into(),
            id: group.id,
            kind: group.kind,
            cpu,
            memory,
            pressure,
            disks,
            tasks,
            tasks_limit,
            interfaces: None,
            members: Vec::new(),
        })
    }

    /// Reads a file of a group into the buffer.
    fn text(&mut self, at: &Hierarchy, path: &str, file: &str) -> Option<&str> {
        let path = at.directory.join(path.trim_start_matches('/')).join(file);
        self.file(&path)
    }

    fn file(&mut self, path: &Path) -> Option<&str> {
        self.text.clear();
        File::open(path).ok()?.read_to_string(&mut self.text).ok()?;
        Some(&self.text)
    }

    /// A file of one number; `None` for `max` and for `-1` too.
    fn number(&mut self, at: &Hierarchy, path: &str, file: &str) -> Option<u64> {
        self.text(at, path, file)?.trim().parse().ok()
    }

    fn cpu(&mut self, path: &str) -> Option<Cpu> {
        let layout = self.layout;
        let mut cpu = Cpu::default();
        let at = layout.cpuacct.as_ref()?;
        match at.version {
            Version::Two => {
                let field = fields(self.text(at, path, "cpu.stat")?);
                cpu.usage_micros = field("usage_usec")?;
                cpu.user_micros = field("user_usec").unwrap_or_default();
                cpu.system_micros = field("system_usec").unwrap_or_default();
            }
            Version::One => {
                cpu.usage_micros = self.number(at, path, "cpuacct.usage")? / 1000;
                let field = fields(self.text(at, path, "cpuacct.stat")?);
                let micros = |name| field(name).unwrap_or_default() * TICK_MICROS;
                (cpu.user_micros, cpu.system_micros) = (micros("user"), micros("system"));
            }
        }
        let Some(at) = &layout.cpu else {
            return Some(cpu);
        };
        if let Some(text) = self.text(at, path, "cpu.stat") {
            let field = fields(text);
            let count = |name| field(name).unwrap_or_default();
            cpu.periods = count("nr_periods");
            cpu.throttled_periods = count("nr_throttled");
            cpu.throttled_micros = match at.version {
                Version::Two => count("throttled_usec"),
                Version::One => count("throttled_time") / 1000,
            };
        }
        match at.version {
            Version::Two => {
                if let Some(text) = self.text(at, path, "cpu.max") {
                    let mut words = text.split_whitespace().map(str::parse);
                    cpu.quota_micros = words.next().and_then(Result::ok);
                    cpu.period_micros = words.next().and_then(Result::ok).unwrap_or_default();
                }
                cpu.weight = self.number(at, path, "cpu.weight");
            }
            Version::One => {
                cpu.quota_micros = self.number(at, path, "cpu.cfs_quota_us");
                let period = self.number(at, path, "cpu.cfs_period_us");
                cpu.period_micros = period.unwrap_or_default();
                cpu.weight = self.number(at, path, "cpu.shares").map(weight);
            }
        }
        Some(cpu)
    }

    fn memory(&mut self, at: &Hierarchy, path: &str) -> Option<Memory> {
        let mut memory = Memory::default();
        match at.version {
            Version::Two => {
                memory.current = self.number(at, path, "memory.current")?;
                if let Some(text) = self.text(at, path, "memory.stat") {
                    let field = fields(text);
                    memory.inactive_file = field("inactive_file").unwrap_or_default();
                    (memory.anonymous, memory.file) = (field("anon"), field("file"));
                }
                memory.peak = self.number(at, path, "memory.peak");
                memory.limit = self.number(at, path, "memory.max");
                memory.swap = self.number(at, path, "memory.swap.current");
                if let Some(text) = self.text(at, path, "memory.events") {
                    let field = fields(text);
                    let count = |name| field(name).unwrap_or_default();
                    memory.events = MemoryEvents {
                        low: count("low"),
                        high: count("high"),
                        max: count("max"),
                        oom: count("oom"),
                        oom_kill: count("oom_kill"),
                    };
                }
            }
            Version::One => {
                memory.current = self.number(at, path, "memory.usage_in_bytes")?;
                if let Some(text) = self.text(at, path, "memory.stat") {
                    let field = fields(text);
                    memory.inactive_file = field("total_inactive_file").unwrap_or_default();
                    memory.anonymous = field("total_rss");
                    memory.file = field("total_cache");
                }
                memory.peak = self.number(at, path, "memory.max_usage_in_bytes");
                let limit = self.number(at, path, "memory.limit_in_bytes");
                memory.limit = limit.filter(|limit| *limit < NO_LIMIT);
                let both = self.number(at, path, "memory.memsw.usage_in_bytes");
                memory.swap = both.map(|both| both.saturating_sub(memory.current));
                let failed = self.number(at, path, "memory.failcnt");
                memory.events.max = failed.unwrap_or_default();
                if let Some(text) = self.text(at, path, "memory.oom_control") {
                    memory.events.oom_kill = fields(text)("oom_kill").unwrap_or_default();
                }
            }
        }
        Some(memory)
    }

    fn pressure(&mut self, at: &Hierarchy, path: &str) -> Option<Pressure> {
        let mut resource = |file| pressure::parse(self.text(at, path, file)?);
        let figures = Pressure {
            cpu: resource("cpu.pressure"),
            memory: resource("memory.pressure"),
            io: resource("io.pressure"),
        };
        (figures != Pressure::default()).then_some(figures)
    }

    fn disks(&mut self, at: &Hierarchy, path: &str) -> Option<Vec<Disk>> {
        let mut disks = match at.version {
            Version::Two => io_stat(self.text(at, path, "io.stat")?),
            Version::One => {
                // The groups below are in the recursive form alone, which is not in every kernel.
                let bytes = self.throttle(at, path, "io_service_bytes")?;
                let mut disks: Vec<Disk> = Vec::new();
                for (device, kind, count) in &bytes {
                    let disk = entry(&mut disks, device);
                    match &**kind {
                        "Read" => disk.read_bytes = *count,
                        "Write" => disk.written_bytes = *count,
                        _ => {}
                    }
                }
                for (device, kind, count) in self.throttle(at, path, "io_serviced")? {
                    let disk = entry(&mut disks, &device);
                    match &*kind {
                        "Read" => disk.reads = count,
                        "Write" => disk.writes = count,
                        _ => {}
                    }
                }
                disks
            }
        };
        disks.retain(|disk| disk.read_bytes + disk.written_bytes + disk.reads + disk.writes > 0);
        for disk in &mut disks {
            self.name(disk);
        }
        disks.sort_by(|a, b| a.device.cmp(&b.device));
        disks.truncate(DEVICES);
        Some(disks)
    }

    /// Lines `8:0 Read 4096` of `blkio.throttle.<what>`, groups below it included where the kernel
    /// counts them together.
    fn throttle(
        &mut self,
        at: &Hierarchy,
        path: &str,
        what: &str,
    ) -> Option<Vec<(String, String, u64)>> {
        let recursive = format!("blkio.throttle.{what}_recursive");
        let text = match self.text(at, path, &recursive) {
            Some(_) => &*self.text,
            None => self.text(at, path, &format!("blkio.throttle.{what}"))?,
        };
        let line = |line: &str| {
            let mut words = line.split_whitespace();
            let (device, kind) = (words.next()?, words.next()?);
            Some((
                device.to_owned(),
                kind.to_owned(),
                words.next()?.parse().ok()?,
            ))
        };
        Some(text.lines().filter_map(line).collect())
    }

    fn name(&mut self, disk: &mut Disk) {
        if !self.devices.0.contains_key(&disk.device) && !self.looked_up {
            self.looked_up = true;
            if let Ok(text) = self.root.read("proc/diskstats") {
                self.devices.0 = names(&text);
            }
        }
        if let Some(name) = self.devices.0.get(&disk.device) {
            disk.device.clone_from(name);
        }
    }
}

/// `8:0` to `sda`, of all lines `8 0 sda …`.
fn names(diskstats: &str) -> HashMap<String, String> {
    let line = |line: &str| {
        let mut words = line.split_whitespace();
        let (major, minor) = (words.next()?, words.next()?);
        Some((format!("{major}:{minor}"), words.next()?.to_owned()))
    };
    diskstats.lines().filter_map(line).collect()
}

fn entry<'a>(disks: &'a mut Vec<Disk>, device: &str) -> &'a mut Disk {
    let at = disks.iter().position(|disk| disk.device == device);
    let at = at.unwrap_or_else(|| {
        disks.push(Disk {
            device: device.to_owned(),
            ..Disk::default()
        });
        disks.len() - 1
    });
    &mut disks[at]
}

/// `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6`, a line a device. Two devices without
/// figures may share a line (Linux before 5.17).
fn io_stat(text: &str) -> Vec<Disk> {
    let mut disks = Vec::new();
    for line in text.lines() {
        let mut disk = Disk::default();
        for word in line.split_whitespace() {
            let Some((key, value)) = word.split_once('=') else {
                word.clone_into(&mut disk.device);
                continue;
            };
            let value = value.parse().unwrap_or_default();
            match key {
                "rbytes" => disk.read_bytes = value,
                "wbytes" => disk.written_bytes = value,
                "rios" => disk.reads = value,
                "wios" => disk.writes = value,
                _ => {}
            }
        }
        disks.push(disk);
    }
    disks
}

/// Finds numbers in lines `name number`.
fn fields(text: &str) -> impl Fn(&str) -> Option<u64> {
    move |name| {
        text.lines().find_map(|line| {
            let rest = line.strip_prefix(name)?.strip_prefix(' ')?;
            rest.trim().parse().ok()
        })
    }
}

/// Shares of version 1 (2 to 262144) as a weight of version 2 (1 to 10000), as Kubernetes turns one
/// into the other (KEP-2254).
fn weight(shares: u64) -> u64 {
    let shares = shares.clamp(2, 262_144);
    1 + (shares - 2) * 9999 / 262_142
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_without_figures_hide_no_other() {
        let text = "7:0 7:1 8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n8:16 rbytes=x\n";
        let disks = io_stat(text);
        assert_eq!(disks.len(), 2);
        assert_eq!(
            (&*disks[0].device, disks[0].read_bytes, disks[0].writes),
            ("8:0", 1, 4)
        );
        assert_eq!((&*disks[1].device, disks[1].read_bytes), ("8:16", 0));
    }

    #[test]
    fn a_field_is_no_part_of_a_longer_one() {
        let field = fields("inactive_file 7\nfile 5\nfile_mapped 6\n");
        assert_eq!(
            (field("file"), field("inactive_file"), field("anon")),
            (Some(5), Some(7), None)
        );
    }

    #[test]
    fn shares_are_weights_as_kubernetes_has_them() {
        assert_eq!(
            [2, 102, 1024, 262_144, 0].map(weight),
            [1, 4, 39, 10_000, 1]
        );
    }
}
