//! A whole pass over a host: all collectors at once, each with the same deadline.

use std::io;
use std::time::{Duration, Instant, SystemTime};

use nodestats_core::Timestamp;
use nodestats_core::sample::note::KillSources;
use nodestats_core::sample::{Host, Note, Sample};

use crate::cgroups::{Cgroups, PodProcesses};
use crate::collector::Worker;
use crate::cpu::Cpu;
use crate::disk::Disk;
use crate::filesystems::Filesystems;
use crate::kills::{Kills, Told, Watch};
use crate::load::Load;
use crate::memory::Memory;
use crate::network::Network;
use crate::pressure::Pressure;
use crate::processes::Processes;
use crate::root::HostRoot;
use crate::sysinfo_reader::SysinfoReader;

/// `USER_HZ`: what `/proc` counts CPU time in, whatever the kernel's own tick is.
const TICKS_PER_SECOND: u32 = 100;

/// Why a host cannot be read at all.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is no `/proc` below a root that is not this machine's own.
    #[error("{root} has no proc/stat: --host-root names the place where a host's / is mounted")]
    NoProc {
        /// The root.
        root: String,
    },
    /// No thread could be started.
    #[error("cannot start a collector")]
    Thread(#[source] io::Error),
    /// There is no `/proc`, and sysinfo does not know this system either.
    #[error("this system cannot be read")]
    Sysinfo(#[source] sysinfo::Error),
}

/// What a host is, asked once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostFacts {
    /// Host name; empty where the host has none.
    pub hostname: String,
    /// Kernel release.
    pub kernel: Option<String>,
    /// Operating system, as `/etc/os-release` calls it.
    pub os: Option<String>,
    /// Machine type as `uname -m` gives it.
    pub architecture: String,
    /// `/etc/machine-id` (machine-id(5)); clones of a machine share it.
    pub machine_id: Option<String>,
}

/// Reads a host again and again.
pub struct Reader(Inner);

enum Inner {
    Linux(Box<Collectors>),
    Other(Box<SysinfoReader>),
}

struct Collectors {
    root: HostRoot,
    cpu: Worker<Cpu>,
    load: Worker<Load>,
    memory: Worker<Memory>,
    disk: Worker<Disk>,
    network: Worker<Network>,
    filesystems: Worker<Filesystems>,
    pressure: Worker<Pressure>,
    processes: Worker<Processes>,
    cgroups: Worker<Cgroups>,
    kills: Kills,
    pods: PodProcesses,
    watch: Watch,
    sources: KillSources,
}

impl Reader {
    /// For the host at `root`. Where that has no `/proc`, sysinfo reads this machine.
    pub fn open(root: &HostRoot) -> Result<Self, OpenError> {
        if !root.path("proc/stat").exists() {
            if !root.is_own() {
                return Err(OpenError::NoProc {
                    root: root.path("").display().to_string(),
                });
            }
            let reader = SysinfoReader::new().map_err(OpenError::Sysinfo)?;
            return Ok(Self(Inner::Other(Box::new(reader))));
        }
        let collectors = Collectors::start(root).map_err(OpenError::Thread)?;
        Ok(Self(Inner::Linux(Box::new(collectors))))
    }

    /// One pass, done within `patience`: what is not read by then is absent. Returns the wall
    /// clock's time at its begin, and the sample.
    pub fn read(&mut self, patience: Duration) -> (Timestamp, Sample) {
        let time = Timestamp::from_system(SystemTime::now());
        match &mut self.0 {
            Inner::Linux(collectors) => (time, collectors.read(time, patience)),
            Inner::Other(reader) => (time, reader.read()),
        }
    }

    /// Which sources told of kills for memory in the last pass.
    pub fn kill_sources(&self) -> KillSources {
        match &self.0 {
            Inner::Linux(collectors) => collectors.sources,
            Inner::Other(_) => KillSources::default(),
        }
    }
}

impl Collectors {
    fn start(root: &HostRoot) -> io::Result<Self> {
        let pods = PodProcesses::default();
        Ok(Self {
            cpu: Worker::start(Cpu::default(), root)?,
            load: Worker::start(Load, root)?,
            memory: Worker::start(Memory, root)?,
            disk: Worker::start(Disk, root)?,
            network: Worker::start(Network, root)?,
            filesystems: Worker::start(Filesystems::default(), root)?,
            pressure: Worker::start(Pressure, root)?,
            processes: Worker::start(Processes::default(), root)?,
            cgroups: Worker::start(Cgroups::new(pods.clone()), root)?,
            kills: Kills::default(),
            pods,
            watch: Watch::default(),
            sources: KillSources::default(),
            root: root.clone(),
        })
    }

    fn read(&mut self, time: Timestamp, patience: Duration) -> Sample {
        let uptime_micros = uptime_micros();
        let deadline = Instant::now() + patience;
        self.cpu.begin();
        self.processes.begin();
        self.cgroups.begin();
        self.load.begin();
        self.memory.begin();
        self.disk.begin();
        self.network.begin();
        self.filesystems.begin();
        self.pressure.begin();
        let (cpu, cpu_run) = self.cpu.finish(deadline);
        let (load_average, load_run) = self.load.finish(deadline);
        let (memory, memory_run) = self.memory.finish(deadline);
        let (disks, disk_run) = self.disk.finish(deadline);
        let (interfaces, network_run) = self.network.finish(deadline);
        let (pressure, pressure_run) = self.pressure.finish(deadline);
        let (processes, processes_run) = self.processes.finish(deadline);
        let (cgroups, cgroups_run) = self.cgroups.finish(deadline);
        // After the groups: what they count is in the log by then.
        let kills = self.kills.read(&self.root);
        let (filesystems, filesystems_run) = self.filesystems.finish(deadline);
        let (cpu_total, cpus, boot_time_seconds) = match cpu {
            Some(cpu) => (Some(cpu.total), cpu.cpus, cpu.boot_time_seconds),
            None => (None, Vec::new(), None),
        };
        let boot_id = self
            .root
            .read("proc/sys/kernel/random/boot_id")
            .unwrap_or_default();
        let host = Host {
            boot_id: boot_id.trim().to_owned(),
            uptime_micros,
            boot_time_seconds,
            ticks_per_second: TICKS_PER_SECOND,
            load_average,
            cpu_total,
            cpus,
            memory,
            disks,
            interfaces,
            filesystems,
            pressure: pressure.flatten(),
            process_count: processes.as_ref().map(|processes| processes.len() as u32),
            collectors: vec![
                cpu_run,
                load_run,
                memory_run,
                disk_run,
                network_run,
                filesystems_run,
                pressure_run,
                processes_run,
                cgroups_run,
            ],
        };
        let mut sample = Sample {
            host,
            processes: processes.unwrap_or_default(),
            cgroups: None,
            notes: Vec::new(),
        };
        self.pods.remember(&sample);
        match cgroups.flatten() {
            Some(groups) => groups.join(&mut sample),
            // What nobody lists nobody is in.
            None => sample.gather_members(),
        }
        let happened = self.watch.compare(&sample, &kills);
        self.sources = self.watch.sources(&kills);
        let note = |told: Told| {
            let age = i64::try_from(told.age_micros).unwrap_or_default();
            Note {
                time_micros: time.micros().saturating_sub(age),
                what: told.what,
            }
        };
        sample.notes = happened.into_iter().map(note).collect();
        sample
    }
}

/// `CLOCK_BOOTTIME`: it goes on in sleep, and nobody sets it.
pub(crate) fn uptime_micros() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    seconds * 1_000_000 + u64::try_from(time.tv_nsec).unwrap_or_default() / 1000
}

impl HostFacts {
    /// Asks the host at `root`.
    pub fn read(root: &HostRoot) -> Self {
        let uname = rustix::system::uname();
        let own_name = || uname.nodename().to_string_lossy().into_owned();
        let hostname = if root.is_own() {
            own_name()
        } else {
            // The kernel's answer is that of the reader's own namespace.
            root.read("etc/hostname")
                .or_else(|_| root.read("proc/sys/kernel/hostname"))
                .map_or_else(|_| own_name(), |name| name.trim().to_owned())
        };
        let os = root.read("etc/os-release").ok().and_then(|text| {
            let name = text
                .lines()
                .find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
            Some(name.trim_matches(['"', '\'']).to_owned())
        });
        let kernel = root.read("proc/sys/kernel/osrelease").ok();
        Self {
            hostname,
            kernel: kernel
                .map(|release| release.trim().to_owned())
                .or_else(|| Some(uname.release().to_string_lossy().into_owned())),
            os: os.or_else(|| sysinfo::System::long_os_version().ok()),
            architecture: uname.machine().to_string_lossy().into_owned(),
            machine_id: root
                .read("etc/machine-id")
                .ok()
                .map(|id| id.trim().to_owned())
                .filter(|id| !id.is_empty()),
        }
    }
}

#[cfg(test)]
mod tests;
