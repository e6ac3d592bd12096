//! The whole reader where there is no `/proc`: sysinfo, of the machine it runs on.
//!
//! It gives less: no pressure, no open files, no shares of CPU modes beyond busy and idle.

use std::sync::Arc;

use nodestats_core::sample::{
    CpuCounters, CpuTimes, DirectionCounters, Filesystem, Host, InterfaceCounters, Memory, Process,
    Sample,
};
use sysinfo::{
    Disks, Networks, ProcessRefreshKind, ProcessStatus, ProcessesToUpdate, System, UpdateKind,
};

use crate::host::uptime_micros;

/// sysinfo gives CPU time in milliseconds.
const TICKS_PER_SECOND: u32 = 1000;

/// Reads this machine through sysinfo.
pub struct SysinfoReader {
    system: System,
    networks: Networks,
    disks: Disks,
    cpus: Vec<CpuTimes>,
    last_micros: u64,
}

impl SysinfoReader {
    /// For the machine it runs on; an error where sysinfo does not know its kind.
    pub fn new() -> Result<Self, sysinfo::Error> {
        Ok(Self {
            system: System::new()?,
            networks: Networks::new()?,
            disks: Disks::new()?,
            cpus: Vec::new(),
            last_micros: uptime_micros(),
        })
    }

    /// One pass.
    pub fn read(&mut self) -> Sample {
        let uptime_micros = uptime_micros();
        let boot_time = System::boot_time().ok();
        self.system.refresh_cpu_all();
        self.system.refresh_memory();
        let what = ProcessRefreshKind::nothing()
            .with_cpu()
            .with_memory()
            .with_disk_usage()
            .with_user(UpdateKind::OnlyIfNotSet)
            .with_cmd(UpdateKind::OnlyIfNotSet)
            .without_tasks();
        self.system
            .refresh_processes_specifics(ProcessesToUpdate::All, true, what);
        self.networks.refresh(true);
        self.disks.refresh(true);
        self.integrate_cpus(uptime_micros);
        let load = System::load_average().ok();
        let host = Host {
            // sysinfo knows no boot id; the time of boot is as good where clocks are not set.
            boot_id: boot_time.map(|boot| boot.to_string()).unwrap_or_default(),
            uptime_micros,
            boot_time_seconds: boot_time.map(|boot| boot as f64),
            ticks_per_second: TICKS_PER_SECOND,
            load_average: load.map(|load| [load.one, load.five, load.fifteen]),
            cpu_total: Some(
                self.cpus
                    .iter()
                    .fold(CpuTimes::default(), |sum, cpu| CpuTimes {
                        user: sum.user + cpu.user,
                        idle: sum.idle + cpu.idle,
                        ..sum
                    }),
            ),
            cpus: self.cpus(),
            memory: Some(self.memory()),
            interfaces: Some(self.interfaces()),
            filesystems: Some(self.filesystems()),
            process_count: Some(self.system.processes().len() as u32),
            ..Host::default()
        };
        Sample {
            cgroups: None,
            host,
            processes: self.processes(boot_time.unwrap_or_default()),
            notes: Vec::new(),
        }
    }

    /// sysinfo gives the share of time since the last look, not a counter: its sum is one.
    fn integrate_cpus(&mut self, uptime_micros: u64) {
        let millis = uptime_micros.saturating_sub(self.last_micros) / 1000;
        self.last_micros = uptime_micros;
        self.cpus
            .resize(self.system.cpus().len(), CpuTimes::default());
        for (times, cpu) in self.cpus.iter_mut().zip(self.system.cpus()) {
            let busy = (f64::from(cpu.usage()) / 100.0 * millis as f64).round() as u64;
            times.user += busy.min(millis);
            times.idle += millis - busy.min(millis);
        }
    }

    fn cpus(&self) -> Vec<CpuCounters> {
        let cpu = |(number, (times, cpu)): (u32, (&CpuTimes, &sysinfo::Cpu))| CpuCounters {
            cpu: number,
            times: *times,
            frequency_mhz: (cpu.frequency() > 0).then(|| cpu.frequency() as f64),
        };
        (0..)
            .zip(self.cpus.iter().zip(self.system.cpus()))
            .map(cpu)
            .collect()
    }

    fn memory(&self) -> Memory {
        Memory {
            total: self.system.total_memory(),
            free: Some(self.system.free_memory()),
            available: Some(self.system.available_memory()),
            swap_total: Some(self.system.total_swap()),
            swap_free: Some(self.system.free_swap()),
            ..Memory::default()
        }
    }

    fn interfaces(&self) -> Vec<InterfaceCounters> {
        let interface =
            |(name, data): (&std::ffi::OsString, &sysinfo::NetworkData)| InterfaceCounters {
                interface: name.to_string_lossy().into_owned(),
                receive: DirectionCounters {
                    bytes: data.total_received(),
                    packets: data.total_packets_received(),
                    errors: data.total_errors_on_received(),
                    dropped: 0,
                },
                transmit: DirectionCounters {
                    bytes: data.total_transmitted(),
                    packets: data.total_packets_transmitted(),
                    errors: data.total_errors_on_transmitted(),
                    dropped: 0,
                },
            };
        self.networks.iter().map(interface).collect()
    }

    fn filesystems(&self) -> Vec<Filesystem> {
        let filesystem = |disk: &sysinfo::Disk| Filesystem {
            mountpoint: disk.mount_point().to_string_lossy().into_owned(),
            device: disk.name().to_string_lossy().into_owned(),
            kind: disk.file_system().to_string_lossy().into_owned(),
            total: disk.total_space(),
            free: disk.available_space(),
            available: disk.available_space(),
            read_only: disk.is_read_only(),
            ..Filesystem::default()
        };
        self.disks.iter().map(filesystem).collect()
    }

    fn processes(&self, boot_time: u64) -> Vec<Process> {
        let mut processes: Vec<Process> = self
            .system
            .processes()
            .values()
            .map(|process| process_of(process, boot_time))
            .collect();
        processes.sort_unstable_by_key(|process| process.pid);
        processes
    }
}

fn process_of(process: &sysinfo::Process, boot_time: u64) -> Process {
    let disk = process.disk_usage();
    let arguments: Vec<_> = process
        .cmd()
        .iter()
        .map(|argument| argument.to_string_lossy())
        .collect();
    Process {
        pid: process.pid().as_u32(),
        ppid: process.parent().map_or(0, sysinfo::Pid::as_u32),
        start_ticks: process.start_time().saturating_sub(boot_time) * u64::from(TICKS_PER_SECOND),
        name: Arc::from(process.name().to_string_lossy()),
        state: match process.status() {
            ProcessStatus::Run => 'R',
            ProcessStatus::Sleep => 'S',
            ProcessStatus::Idle => 'I',
            ProcessStatus::Stop => 'T',
            ProcessStatus::Zombie => 'Z',
            ProcessStatus::Tracing => 't',
            ProcessStatus::Dead => 'X',
            ProcessStatus::Parked => 'P',
            ProcessStatus::UninterruptibleDiskSleep => 'D',
            _ => '?',
        },
        user_ticks: process.accumulated_cpu_time(),
        virtual_bytes: process.virtual_memory(),
        resident_bytes: process.memory(),
        read_bytes: Some(disk.total_read_bytes),
        written_bytes: Some(disk.total_written_bytes),
        user: process.user_id().map(|user| Arc::from(user.to_string())),
        command_line: (!arguments.is_empty()).then(|| Arc::from(arguments.join("\0"))),
        ..Process::default()
    }
}
