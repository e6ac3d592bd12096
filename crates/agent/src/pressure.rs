//! Pressure conditions: from pressure stall information and filesystems, with hysteresis.

use nodestats_core::sample::{Filesystem, Host, Stall};
use nodestats_k8s::condition::agent::{CPU_PRESSURE, DISK_PRESSURE, IO_PRESSURE, MEMORY_PRESSURE};
use nodestats_k8s::condition::{Claim, Status};

/// Percent of time in which some task waits (`avg60` of `/proc/pressure`): pressure begins there,
/// and ends here.
struct Limits {
    begins: f64,
    ends: f64,
}

/// A busy CPU is the usual thing; that tasks wait half of the time is not.
const CPU: Limits = Limits {
    begins: 50.0,
    ends: 25.0,
};
const MEMORY: Limits = Limits {
    begins: 10.0,
    ends: 5.0,
};
const IO: Limits = Limits {
    begins: 30.0,
    ends: 15.0,
};
/// Percent of a filesystem in use; the kubelet evicts at 90 (`nodefs.available`).
const FILESYSTEM: Limits = Limits {
    begins: 95.0,
    ends: 90.0,
};

/// What a sample says that belongs into the node's status: it changes when something happens.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Observed {
    pub(crate) boot_id: String,
    pub(crate) boot_time_seconds: Option<f64>,
    pub(crate) cpus: usize,
    pub(crate) memory_bytes: Option<u64>,
    pub(crate) conditions: Vec<Claim>,
    /// Mount points of the filesystems that are nearly full.
    nearly_full: Vec<String>,
}

impl Observed {
    /// What `host` says, given what was said before.
    pub(crate) fn of(host: &Host, before: Option<&Self>) -> Self {
        // A collector that missed its deadline says nothing: what was said before stands.
        let known =
            before.filter(|before| host.boot_id.is_empty() || before.boot_id == host.boot_id);
        let full_before = before.map_or(&[][..], |before| &before.nearly_full);
        let nearly_full = match host.filesystems.as_deref() {
            Some(filesystems) => nearly_full(filesystems, full_before),
            None => full_before.to_vec(),
        };
        let claims_before = before.map_or(&[][..], |before| &before.conditions);
        Self {
            boot_id: match before {
                Some(before) if host.boot_id.is_empty() => before.boot_id.clone(),
                _ => host.boot_id.clone(),
            },
            // The kernel computes it anew from two clocks, and it moves by a second.
            boot_time_seconds: known
                .and_then(|known| known.boot_time_seconds)
                .or(host.boot_time_seconds),
            cpus: match known {
                Some(known) if host.cpus.is_empty() => known.cpus,
                _ => host.cpus.len(),
            },
            memory_bytes: host
                .memory
                .map(|memory| memory.total)
                .or_else(|| known.and_then(|known| known.memory_bytes)),
            conditions: conditions(host, &nearly_full, claims_before),
            nearly_full,
        }
    }
}

fn conditions(host: &Host, nearly_full: &[String], before: &[Claim]) -> Vec<Claim> {
    let was = |type_| {
        let before = before.iter().find(|claim| claim.type_ == type_);
        before.is_some_and(|claim| claim.status == Status::True)
    };
    let failed = |name: &str| {
        let run = host.collectors.iter().find(|run| run.collector == name);
        run.is_some_and(|run| !run.success)
    };
    let kept = |type_: &str| before.iter().find(|claim| claim.type_ == type_).cloned();
    let pressure = host.pressure.unwrap_or_default();
    let mut claims = Vec::with_capacity(4);
    for (type_, stall, limits, what) in [
        (CPU_PRESSURE, pressure.cpu, CPU, "CPUs"),
        (MEMORY_PRESSURE, pressure.memory, MEMORY, "memory"),
        (IO_PRESSURE, pressure.io, IO, "disks"),
    ] {
        let before = kept(type_).filter(|_| failed("pressure"));
        claims.push(before.unwrap_or_else(|| stalled(type_, stall, &limits, was(type_), what)));
    }
    let before = kept(DISK_PRESSURE).filter(|_| failed("filesystems"));
    claims.push(before.unwrap_or_else(|| full(host.filesystems.is_some(), nearly_full)));
    claims
}

fn stalled(
    type_: &'static str,
    stall: Option<Stall>,
    limits: &Limits,
    was: bool,
    what: &str,
) -> Claim {
    let (status, reason, message) = match stall.map(|stall| stall.some.averages[1]) {
        None => (
            Status::Unknown,
            "NoPSI",
            "The kernel gives no pressure stall information.".to_owned(),
        ),
        Some(waiting) if waiting >= limits.limit(was) => {
            (Status::True, "TasksWait", format!("Tasks wait for {what}."))
        }
        Some(_) => (
            Status::False,
            "TasksRun",
            format!("Tasks rarely wait for {what}."),
        ),
    };
    Claim {
        type_,
        status,
        reason,
        message,
    }
}

/// Those that ordinary users have filled, each by its own hysteresis.
fn nearly_full(filesystems: &[Filesystem], before: &[String]) -> Vec<String> {
    let percent = |filesystem: &Filesystem| {
        let used = filesystem.total.saturating_sub(filesystem.free) as f64;
        // As df does: of what ordinary users may fill.
        let size = used + filesystem.available as f64;
        100.0 * used / size.max(1.0)
    };
    let nearly = |filesystem: &&Filesystem| {
        let written = !filesystem.read_only && filesystem.total > 0;
        let was = before.contains(&filesystem.mountpoint);
        written && percent(filesystem) >= FILESYSTEM.limit(was)
    };
    let full = filesystems.iter().filter(nearly);
    full.map(|filesystem| filesystem.mountpoint.clone())
        .collect()
}

fn full(readable: bool, nearly_full: &[String]) -> Claim {
    let (status, reason, message) = match nearly_full.first() {
        _ if !readable => (
            Status::Unknown,
            "NoFilesystems",
            "The node's filesystems cannot be read.".to_owned(),
        ),
        Some(mountpoint) => (
            Status::True,
            "FilesystemNearlyFull",
            format!("{mountpoint} is nearly full."),
        ),
        None => (
            Status::False,
            "FilesystemsHaveSpace",
            "No filesystem is nearly full.".to_owned(),
        ),
    };
    Claim {
        type_: DISK_PRESSURE,
        status,
        reason,
        message,
    }
}

impl Limits {
    /// The limit that counts now.
    fn limit(&self, was: bool) -> f64 {
        if was { self.ends } else { self.begins }
    }
}

#[cfg(test)]
mod tests {
    use nodestats_core::sample::{Pressure, StallLine};

    use super::*;

    fn host(cpu: f64, available: u64) -> Host {
        let some = StallLine {
            averages: [0.0, cpu, 0.0],
            total_micros: 0,
        };
        let stall = Stall { some, full: None };
        let filesystem = Filesystem {
            mountpoint: "/data".to_owned(),
            total: 1000,
            free: available,
            available,
            ..Filesystem::default()
        };
        let image = Filesystem {
            total: 10,
            read_only: true,
            ..Filesystem::default()
        };
        Host {
            pressure: Some(Pressure {
                cpu: Some(stall),
                ..Pressure::default()
            }),
            filesystems: Some(vec![image, filesystem]),
            ..Host::default()
        }
    }

    fn statuses(hosts: &[Host], type_: &str) -> Vec<Status> {
        let mut observed: Option<Observed> = None;
        let mut statuses = Vec::new();
        for host in hosts {
            let next = Observed::of(host, observed.as_ref());
            let claim = next.conditions.iter().find(|claim| claim.type_ == type_);
            statuses.push(claim.expect("each type").status);
            observed = Some(next);
        }
        statuses
    }

    #[test]
    fn pressure_begins_at_one_limit_and_ends_at_another() {
        let hosts = [40.0, 51.0, 30.0, 24.0, 49.0].map(|cpu| host(cpu, 500));
        let (yes, no) = (Status::True, Status::False);
        assert_eq!(statuses(&hosts, CPU_PRESSURE), [no, yes, yes, no, no]);
        let disks = [500, 40, 80, 150].map(|available| host(0.0, available));
        assert_eq!(statuses(&disks, DISK_PRESSURE), [no, yes, yes, no]);
    }

    #[test]
    fn each_filesystem_has_a_hysteresis_of_its_own() {
        let both = |data: u64, logs: u64| {
            let mut host = host(0.0, data);
            let filesystems = host.filesystems.get_or_insert_default();
            let mut second = filesystems.last().cloned().unwrap_or_default();
            second.mountpoint = "/logs".to_owned();
            (second.free, second.available) = (logs, logs);
            filesystems.push(second);
            host
        };
        // While /data is full, and when it no longer is, /logs at 93 % is not.
        let first = Observed::of(&both(40, 70), None);
        let second = Observed::of(&both(200, 70), Some(&first));
        let message = |observed: &Observed| observed.conditions[3].message.clone();
        assert_eq!(message(&first), "/data is nearly full.");
        assert_eq!(message(&second), "No filesystem is nearly full.");
    }

    #[test]
    fn what_the_kernel_does_not_tell_is_unknown() {
        let observed = Observed::of(&Host::default(), None);
        let reasons: Vec<&str> = observed
            .conditions
            .iter()
            .map(|claim| claim.reason)
            .collect();
        assert_eq!(reasons, ["NoPSI", "NoPSI", "NoPSI", "NoFilesystems"]);
        assert!(
            observed
                .conditions
                .iter()
                .all(|claim| claim.status == Status::Unknown)
        );
    }

    #[test]
    fn a_collector_that_missed_its_deadline_changes_nothing() {
        let first = Observed::of(&host(60.0, 40), None);
        let missed = |name: &str| nodestats_core::sample::CollectorRun {
            collector: name.to_owned(),
            success: false,
            duration_micros: 0,
        };
        let late = Host {
            collectors: vec![missed("pressure"), missed("filesystems")],
            ..Host::default()
        };
        assert_eq!(Observed::of(&late, Some(&first)), first);
    }

    #[test]
    fn a_boot_time_that_wanders_is_no_change() {
        let at = |seconds| Host {
            boot_id: "a".to_owned(),
            boot_time_seconds: Some(seconds),
            ..Host::default()
        };
        let first = Observed::of(&at(100.0), None);
        assert_eq!(Observed::of(&at(101.0), Some(&first)), first);
        let other = Host {
            boot_id: "b".to_owned(),
            ..at(101.0)
        };
        assert_eq!(
            Observed::of(&other, Some(&first)).boot_time_seconds,
            Some(101.0)
        );
    }
}
