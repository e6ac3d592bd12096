//! Samples as an agent sends them.

use std::sync::Arc;
use std::time::Duration;

use nodestats_core::sample::cgroup::{self, Cpu, Disk, Kind};
use nodestats_core::sample::note::What;
use nodestats_core::sample::{
    Cgroup, CpuCounters, CpuTimes, DirectionCounters, DiskCounters, Filesystem, Host,
    InterfaceCounters, Memory, Note, Pressure, Process, Sample, Stall, StallLine,
};
use nodestats_core::{FrameId, frame};
use nodestats_wire::Timestamp;
use uuid::Uuid;

/// The frames of one start of an agent: a host with one busy process.
#[derive(Debug)]
pub struct Frames {
    agent_start: Uuid,
    begin: Timestamp,
    sequence: u64,
    pod: Option<(Arc<str>, Arc<str>)>,
    boot_id: String,
    interval: Option<Duration>,
    notes: Vec<What>,
    whole_host: bool,
}

impl Frames {
    /// The first one is of `begin`, each next one a second later.
    pub fn new(begin: Timestamp) -> Self {
        Self {
            agent_start: Uuid::new_v4(),
            begin,
            sequence: 0,
            pod: None,
            boot_id: "test".to_owned(),
            interval: None,
            notes: Vec::new(),
            whole_host: false,
        }
    }

    /// They have figures of each kind of their host.
    #[must_use]
    pub fn of_whole_host(mut self) -> Self {
        self.whole_host = true;
        self
    }

    /// They say that the next one is due after a second.
    #[must_use]
    pub fn punctual(mut self) -> Self {
        self.interval = Some(Duration::from_secs(1));
        self
    }

    /// They are of this boot.
    #[must_use]
    pub fn of_boot(mut self, boot_id: &str) -> Self {
        boot_id.clone_into(&mut self.boot_id);
        self
    }

    /// The next one tells of this too.
    pub fn note(&mut self, what: What) {
        self.notes.push(what);
    }

    /// So many are taken, and never sent.
    pub fn skip(&mut self, samples: u64) {
        self.sequence += samples;
    }

    /// No sample is taken for so many seconds.
    pub fn rest(&mut self, seconds: i64) {
        self.begin = self.begin.plus_micros(seconds * 1_000_000);
    }

    /// Its process is in this container of this pod from now on, which uses 200 millicores.
    #[must_use]
    pub fn in_pod(mut self, uid: &str, container_id: &str) -> Self {
        self.pod = Some((uid.into(), container_id.into()));
        self
    }

    fn groups(&self, n: u64) -> Option<Vec<Cgroup>> {
        let (uid, id) = self.pod.clone()?;
        let path = format!("/kubepods/pod{uid}");
        let group = |path: String, kind, members| Cgroup {
            path: path.into(),
            kind,
            cpu: Some(Cpu {
                usage_micros: n * 200_000,
                periods: n * 10,
                throttled_periods: n * 8,
                quota_micros: Some(20_000),
                period_micros: 100_000,
                ..Cpu::default()
            }),
            memory: Some(cgroup::Memory {
                current: 80 << 20,
                inactive_file: 16 << 20,
                limit: Some(128 << 20),
                ..cgroup::Memory::default()
            }),
            disks: Some(vec![Disk {
                device: "sda".to_owned(),
                written_bytes: n * 4096,
                writes: n,
                ..Disk::default()
            }]),
            members,
            ..Cgroup::default()
        };
        let counters = DirectionCounters {
            bytes: n * 1000,
            ..DirectionCounters::default()
        };
        let interface = InterfaceCounters {
            interface: "eth0".to_owned(),
            receive: counters,
            transmit: counters,
        };
        let pod = Cgroup {
            interfaces: Some(vec![interface]),
            ..group(path.clone(), Kind::Pod { uid: uid.clone() }, Vec::new())
        };
        let container = Kind::Container {
            id: id.clone(),
            pod_uid: Some(uid),
        };
        Some(vec![pod, group(format!("{path}/{id}"), container, vec![7])])
    }

    /// The time of the next frame.
    pub fn next_time(&self) -> Timestamp {
        self.begin.plus_micros(self.sequence as i64 * 1_000_000)
    }

    /// The next frame, encoded.
    pub fn next_frame(&mut self) -> Vec<u8> {
        let time = self.next_time();
        let n = self.sequence;
        let process = Process {
            pid: 7,
            ppid: 1,
            start_ticks: 50,
            name: "busy".into(),
            state: 'R',
            user_ticks: n * 100,
            threads: 1,
            pod_uid: self.pod.as_ref().map(|(uid, _)| uid.clone()),
            container_id: self.pod.as_ref().map(|(_, id)| id.clone()),
            ..Process::default()
        };
        let mut host = Host {
            boot_id: self.boot_id.clone(),
            uptime_micros: 1_000_000 * (n + 10),
            ticks_per_second: 100,
            boot_time_seconds: Some(1e9),
            load_average: Some([n as f64, 0.0, 0.0]),
            ..Host::default()
        };
        if self.whole_host {
            fill(&mut host, n);
        }
        self.sequence += 1;
        let id = FrameId {
            agent_start: self.agent_start,
            sequence: n,
        };
        let notes = self.notes.drain(..).map(|what| Note {
            time_micros: time.micros(),
            what,
        });
        let notes = notes.collect();
        frame::encode(
            time,
            id,
            self.interval,
            &Sample {
                host,
                processes: vec![process],
                cgroups: self.groups(n),
                notes,
            },
        )
    }
}

/// Figures of a host of two processors, as they move.
fn fill(host: &mut Host, n: u64) {
    let times = CpuTimes {
        user: n * 60,
        system: n * 20,
        idle: n * 120,
        ..CpuTimes::default()
    };
    let cpu = |cpu| CpuCounters {
        cpu,
        times,
        frequency_mhz: Some(2400.0),
    };
    let counters = DirectionCounters {
        bytes: n * 1500,
        packets: n,
        ..DirectionCounters::default()
    };
    let line = StallLine {
        averages: [0.5, 0.25, n as f64 / 8.0],
        total_micros: n * 10_000,
    };
    *host = Host {
        cpu_total: Some(times),
        cpus: vec![cpu(0), cpu(1)],
        memory: Some(Memory {
            total: 8 << 30,
            available: Some((4 << 30) - n * 4096),
            ..Memory::default()
        }),
        disks: Some(vec![DiskCounters {
            device: "sda".to_owned(),
            written_bytes: n * 4096,
            ..DiskCounters::default()
        }]),
        interfaces: Some(vec![InterfaceCounters {
            interface: "eth0".to_owned(),
            receive: counters,
            transmit: counters,
        }]),
        filesystems: Some(vec![Filesystem {
            mountpoint: "/".to_owned(),
            device: "/dev/sda1".to_owned(),
            kind: "ext4".to_owned(),
            total: 100 << 30,
            free: (50 << 30) - n * 4096,
            ..Filesystem::default()
        }]),
        pressure: Some(Pressure {
            io: Some(Stall {
                some: line,
                full: None,
            }),
            ..Pressure::default()
        }),
        process_count: Some(1),
        ..std::mem::take(host)
    };
}
