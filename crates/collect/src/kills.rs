//! Processes that the kernel killed because there was no memory left, and containers that came and
//! went: what differs between two passes.
//!
//! Three sources tell of kills. Counters of control groups say how many, in which group; of a group
//! that went with its process the one above it says so (version 2). The kernel's log says who, where it
//! may be read (`/dev/kmsg`: `CAP_SYSLOG`, where `kernel.dmesg_restrict` is set). The node's own counter
//! (`oom_kill` of `/proc/vmstat`, Linux 4.13) says how many there were in all: what the others do not
//! say is told without a name, and never passed over.

mod log;

use std::collections::{BTreeMap, HashMap};
use std::mem;
use std::sync::Arc;

use nodestats_core::Sample;
use nodestats_core::sample::cgroup::Kind;
use nodestats_core::sample::note::{Container, Kill, KillSource, KillSources, NOTES, What};

use crate::collector::{Collector, Error};
use crate::root::HostRoot;
use log::Log;
pub(crate) use log::Logged;

/// Reads the kernel's log and its counter.
#[derive(Debug, Default)]
pub(crate) struct Kills {
    log: Log,
}

/// What one pass found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Kills since boot; `None` where the kernel does not count them.
    pub(crate) counter: Option<u64>,
    /// Kills by the log since the pass before; `None` where it cannot be read.
    pub(crate) logged: Option<Vec<Logged>>,
}

impl Collector for Kills {
    type Output = Seen;
    const NAME: &'static str = "kills";

    fn collect(&mut self, root: &HostRoot) -> Result<Seen, Error> {
        Ok(Seen {
            counter: root.read("proc/vmstat").ok().as_deref().and_then(counter),
            logged: self.log.read(root),
        })
    }
}

fn counter(vmstat: &str) -> Option<u64> {
    let mut lines = vmstat.lines();
    lines.find_map(|line| line.strip_prefix("oom_kill ")?.parse().ok())
}

/// A group as it was in the pass before.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Before {
    id: u64,
    kind: Kind,
    kills: u64,
    current: Option<u64>,
    limit: Option<u64>,
}

/// Compares passes.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    /// The groups of the pass before, by path; `None` before the first.
    groups: Option<HashMap<Arc<str>, Before>>,
    counter: Option<u64>,
    /// Kills by the counter that nothing else has told of yet: groups are read before the counter.
    untold: u64,
    /// Groups of kills that the log told of, and the counters of groups are to show in the next pass.
    ahead: Vec<String>,
}

impl Watch {
    /// Which sources there are, by the last pass.
    pub(crate) fn sources(&self, seen: Option<&Seen>) -> KillSources {
        KillSources {
            cgroups: self
                .groups
                .as_ref()
                .is_some_and(|groups| !groups.is_empty()),
            log: seen.is_some_and(|seen| seen.logged.is_some()),
            counter: seen.is_some_and(|seen| seen.counter.is_some()),
        }
    }

    /// What happened since the pass before. `seen` was read after the sample's groups were.
    pub(crate) fn compare(&mut self, sample: &Sample, seen: Option<&Seen>) -> Vec<What> {
        let mut told = Vec::new();
        // A pass without groups is one that has not seen them: the next is compared with the last.
        let Some(list) = &sample.cgroups else {
            return self.kills(&[], seen);
        };
        let groups: HashMap<Arc<str>, Before> = list
            .iter()
            .map(|group| {
                let memory = group.memory;
                let before = Before {
                    id: group.id,
                    kind: group.kind.clone(),
                    kills: memory.map_or(0, |memory| memory.events.oom_kill),
                    current: memory.map(|memory| memory.current),
                    limit: memory.and_then(|memory| memory.limit),
                };
                (group.path.clone(), before)
            })
            .collect();
        let own = match &self.groups {
            Some(before) => {
                containers(before, &groups, &mut told);
                own_kills(before, &groups)
            }
            None => Vec::new(),
        };
        let mut kills = self.kills(&own, seen);
        self.groups = Some(groups);
        kills.append(&mut told);
        kills.truncate(NOTES);
        kills
    }

    /// `own` are kills by groups, each counted in one group alone.
    fn kills(&mut self, own: &[(Arc<str>, u64)], seen: Option<&Seen>) -> Vec<What> {
        let mut own: BTreeMap<&str, u64> =
            own.iter().map(|(path, kills)| (&**path, *kills)).collect();
        for path in mem::take(&mut self.ahead) {
            take_one(&mut own, &path);
        }
        let logged = seen.and_then(|seen| seen.logged.as_deref());
        let mut told = Vec::new();
        // The log leaves out who is in which group where much is killed (it is rate-limited): those
        // last, when it is known which kills are left.
        let (placed, unplaced): (Vec<&Logged>, Vec<&Logged>) = logged
            .unwrap_or_default()
            .iter()
            .partition(|one| one.cgroup.is_some());
        for one in placed.into_iter().chain(unplaced) {
            let mut path = one.cgroup.clone();
            if path.is_none() {
                let mut left = own.iter().filter(|(_, kills)| **kills > 0);
                path = left.next().map(|(path, _)| (*path).to_owned());
                if left.next().is_some() {
                    // Its group tells of it, and not who it was.
                    continue;
                }
            }
            let path = path.as_deref();
            let counted = path.is_some_and(|path| take_one(&mut own, path));
            if let Some(path) = path.filter(|_| !counted) {
                self.ahead.push(path.to_owned());
            }
            told.push(What::Kill(Kill {
                source: KillSource::Log,
                count: 1,
                victim: Some((one.pid, one.name.clone())),
                memory_bytes: Some(one.bytes),
                ..self.kill_in(path, true)
            }));
        }
        let log_read = logged.is_some();
        for (path, count) in own.into_iter().filter(|(_, count)| *count > 0) {
            let kill = self.kill_in(Some(path), log_read);
            told.push(What::Kill(Kill { count, ..kill }));
        }
        told.extend(self.unnamed(seen, &told).map(|count| {
            What::Kill(Kill {
                source: KillSource::Counter,
                count,
                ..self.kill_in(None, log_read)
            })
        }));
        told
    }

    /// Kills that the node's counter knows alone. They wait for a pass: a group may still tell.
    fn unnamed(&mut self, seen: Option<&Seen>, told: &[What]) -> Option<u64> {
        let now = seen.and_then(|seen| seen.counter)?;
        let before = self.counter.replace(now)?;
        let named: u64 = told
            .iter()
            .map(|what| match what {
                What::Kill(kill) => kill.count,
                _ => 0,
            })
            .sum();
        let late = self.untold.saturating_sub(named);
        let rest = named.saturating_sub(self.untold);
        self.untold = now.saturating_sub(before).saturating_sub(rest);
        (late > 0).then_some(late)
    }

    /// A kill in a group, with what was known of it in the pass before.
    fn kill_in(&self, path: Option<&str>, log_read: bool) -> Kill {
        let groups = self.groups.as_ref();
        let group = path.and_then(|path| innermost(path, |path| groups?.get(path)));
        let (pod_uid, container_id) = match group.map(|group| &group.kind) {
            Some(Kind::Pod { uid }) => (Some(uid.to_string()), None),
            Some(Kind::Container { id, pod_uid }) => (
                pod_uid.as_ref().map(ToString::to_string),
                Some(id.to_string()),
            ),
            _ => (None, None),
        };
        Kill {
            source: KillSource::Cgroup,
            count: 1,
            cgroup: path.map(str::to_owned),
            pod_uid,
            container_id,
            victim: None,
            memory_bytes: group.and_then(|group| group.current),
            limit_bytes: group.and_then(|group| group.limit),
            log_read,
        }
    }
}

/// The innermost group that holds `path` of which `find` knows something.
fn innermost<T>(mut path: &str, find: impl Fn(&str) -> Option<T>) -> Option<T> {
    loop {
        if let Some(found) = find(path) {
            return Some(found);
        }
        (path, _) = path.rsplit_once('/')?;
    }
}

/// Takes a kill in `path` from what its group, or one above it, counts.
fn take_one(own: &mut BTreeMap<&str, u64>, path: &str) -> bool {
    let counts = |path: &str| own.get_key_value(path).filter(|(_, kills)| **kills > 0);
    let Some(path) = innermost(path, |path| counts(path).map(|(path, _)| *path)) else {
        return false;
    };
    if let Some(kills) = own.get_mut(path) {
        *kills -= 1;
    }
    true
}

/// Kills since the pass before, each in the innermost group that is listed and counts it: version 2
/// counts it in each one above too.
fn own_kills(
    before: &HashMap<Arc<str>, Before>,
    now: &HashMap<Arc<str>, Before>,
) -> Vec<(Arc<str>, u64)> {
    let grown = |path: &str, group: &Before| {
        let known = before.get(path).filter(|before| before.id == group.id);
        group
            .kills
            .saturating_sub(known.map_or(0, |known| known.kills))
    };
    let mut own: HashMap<&str, u64> = now
        .iter()
        .map(|(path, group)| (&**path, grown(path, group)))
        .filter(|(_, kills)| *kills > 0)
        .collect();
    // From the innermost up, so that what is taken from one above is the whole of what is below.
    let mut all: Vec<(&str, u64)> = own.iter().map(|(path, kills)| (*path, *kills)).collect();
    all.sort_by_key(|(path, _)| std::cmp::Reverse(path.len()));
    for (path, kills) in all {
        let above = path.rsplit_once('/').map(|(above, _)| above);
        let above = above.and_then(|above| {
            innermost(above, |path| {
                now.get_key_value(path).map(|(path, _)| &**path)
            })
        });
        if let Some(above) = above.and_then(|above| own.get_mut(above)) {
            *above = above.saturating_sub(kills);
        }
    }
    let own = own.into_iter().filter(|(_, kills)| *kills > 0);
    own.map(|(path, kills)| (path.into(), kills)).collect()
}

/// Containers that came and went between two passes.
fn containers(
    before: &HashMap<Arc<str>, Before>,
    now: &HashMap<Arc<str>, Before>,
    told: &mut Vec<What>,
) {
    let missing = |from: &HashMap<Arc<str>, Before>, path: &str, id| {
        from.get(path).is_none_or(|other| other.id != id)
    };
    let container = |path: &Arc<str>, group: &Before| match &group.kind {
        Kind::Container { id, pod_uid } => Some(Container {
            id: id.to_string(),
            cgroup: path.to_string(),
            pod_uid: pod_uid.as_ref().map(ToString::to_string),
        }),
        _ => None,
    };
    for (path, group) in before {
        if missing(now, path, group.id) {
            told.extend(container(path, group).map(What::ContainerEnded));
        }
    }
    for (path, group) in now {
        if missing(before, path, group.id) {
            told.extend(container(path, group).map(What::ContainerStarted));
        }
    }
}

#[cfg(test)]
mod tests {
    use nodestats_core::sample::Cgroup;
    use nodestats_core::sample::cgroup::{Memory, MemoryEvents};

    use super::*;

    const POD: &str = "/kubepods/podu";
    const APP: &str = "/kubepods/podu/a";

    fn group(path: &str, id: u64, oom_kill: u64) -> Cgroup {
        let kind = match path {
            POD => Kind::Pod { uid: "u".into() },
            APP => Kind::Container {
                id: "a".into(),
                pod_uid: Some("u".into()),
            },
            _ => Kind::Slice,
        };
        Cgroup {
            path: path.into(),
            id,
            kind,
            memory: Some(Memory {
                current: 50,
                limit: Some(64),
                events: MemoryEvents {
                    oom_kill,
                    ..MemoryEvents::default()
                },
                ..Memory::default()
            }),
            ..Cgroup::default()
        }
    }

    fn sample(groups: Vec<Cgroup>) -> Sample {
        Sample {
            cgroups: Some(groups),
            ..Sample::default()
        }
    }

    fn seen(counter: u64, logged: &[&str]) -> Seen {
        let one = |path: &&str| Logged {
            pid: 7,
            name: "hog".into(),
            bytes: 60,
            cgroup: Some((*path).to_owned()),
        };
        Seen {
            counter: Some(counter),
            logged: Some(logged.iter().map(one).collect()),
        }
    }

    fn blind(counter: u64) -> Seen {
        Seen {
            counter: Some(counter),
            logged: None,
        }
    }

    /// Each kill's source, group, container and count.
    fn kills(told: &[What]) -> Vec<(KillSource, Option<&str>, Option<&str>, u64)> {
        let mut kills = Vec::new();
        for what in told {
            if let What::Kill(kill) = what {
                let (group, container) = (kill.cgroup.as_deref(), kill.container_id.as_deref());
                kills.push((kill.source, group, container, kill.count));
            }
        }
        kills
    }

    #[test]
    fn a_kill_is_told_once_in_the_group_where_it_was() {
        let mut watch = Watch::default();
        let pass = |kills| {
            sample(vec![
                group("/kubepods", 1, kills),
                group(POD, 2, kills),
                group(APP, 3, kills),
            ])
        };
        // What was before the first pass is nobody's to date.
        assert_eq!(watch.compare(&pass(3), Some(&blind(9))), []);
        let told = watch.compare(&pass(4), Some(&blind(10)));
        assert_eq!(
            kills(&told),
            [(KillSource::Cgroup, Some(APP), Some("a"), 1)]
        );
        let What::Kill(kill) = &told[0] else {
            panic!("{told:?}")
        };
        assert_eq!(
            (
                kill.memory_bytes,
                kill.limit_bytes,
                kill.pod_uid.as_deref(),
                kill.log_read
            ),
            (Some(50), Some(64), Some("u"), false)
        );
        assert_eq!(watch.compare(&pass(4), Some(&blind(10))), []);
    }

    #[test]
    fn a_container_that_went_with_its_process_is_told_of_by_its_pod() {
        let mut watch = Watch::default();
        watch.compare(
            &sample(vec![group(POD, 2, 0), group(APP, 3, 0)]),
            Some(&blind(0)),
        );
        let told = watch.compare(&sample(vec![group(POD, 2, 1)]), Some(&blind(1)));
        assert_eq!(kills(&told), [(KillSource::Cgroup, Some(POD), None, 1)]);
        assert!(matches!(&told[1], What::ContainerEnded(ended) if ended.id == "a"));
    }

    #[test]
    fn the_log_names_who_and_no_counter_tells_it_again() {
        let mut watch = Watch::default();
        let pass = |kills| sample(vec![group(POD, 2, kills), group(APP, 3, kills)]);
        watch.compare(&pass(0), Some(&seen(0, &[])));
        let told = watch.compare(&pass(1), Some(&seen(1, &[APP])));
        assert_eq!(kills(&told), [(KillSource::Log, Some(APP), Some("a"), 1)]);
        // The groups were read before it happened, and show it in the next pass.
        let told = watch.compare(&pass(1), Some(&seen(2, &[APP])));
        assert_eq!(kills(&told).len(), 1);
        assert_eq!(watch.compare(&pass(2), Some(&seen(2, &[]))), []);
        // Version 1 counts it in a group that is gone.
        let told = watch.compare(&sample(vec![group(POD, 2, 2)]), Some(&seen(3, &[APP])));
        assert_eq!(kills(&told), [(KillSource::Log, Some(APP), Some("a"), 1)]);
        assert_eq!(
            watch.compare(&sample(vec![group(POD, 2, 2)]), Some(&seen(3, &[]))),
            []
        );
    }

    #[test]
    fn who_is_in_no_known_group_is_in_the_one_that_counts_a_kill() {
        let mut watch = Watch::default();
        let other = "/kubepods/podv";
        let pass = |kills, others| sample(vec![group(APP, 3, kills), group(other, 4, others)]);
        let unplaced = |counter| {
            let mut seen = seen(counter, &[APP]);
            seen.logged
                .iter_mut()
                .flatten()
                .for_each(|one| one.cgroup = None);
            seen
        };
        watch.compare(&pass(0, 0), Some(&seen(0, &[])));
        let told = watch.compare(&pass(1, 0), Some(&unplaced(1)));
        assert_eq!(kills(&told), [(KillSource::Log, Some(APP), Some("a"), 1)]);
        let told = watch.compare(&pass(2, 1), Some(&unplaced(3)));
        let two = [
            (KillSource::Cgroup, Some(APP), Some("a"), 1),
            (KillSource::Cgroup, Some(other), None, 1),
        ];
        assert_eq!(kills(&told), two);
        let told = watch.compare(&pass(2, 1), Some(&unplaced(4)));
        assert_eq!(kills(&told), [(KillSource::Log, None, None, 1)]);
    }

    #[test]
    fn what_only_the_node_counts_is_told_a_pass_later_without_a_name() {
        let mut watch = Watch::default();
        let none = sample(vec![group(POD, 2, 0)]);
        watch.compare(&none, Some(&blind(5)));
        assert_eq!(watch.compare(&none, Some(&blind(7))), []);
        let told = watch.compare(&none, Some(&blind(7)));
        assert_eq!(kills(&told), [(KillSource::Counter, None, None, 2)]);
        // One that a group tells of meanwhile is not told twice.
        assert_eq!(watch.compare(&none, Some(&blind(8))), []);
        let told = watch.compare(&sample(vec![group(POD, 2, 1)]), Some(&blind(8)));
        assert_eq!(kills(&told), [(KillSource::Cgroup, Some(POD), None, 1)]);
        assert_eq!(
            watch.compare(&sample(vec![group(POD, 2, 1)]), Some(&blind(8))),
            []
        );
    }

    #[test]
    fn containers_come_and_go_and_one_made_anew_is_another() {
        let mut watch = Watch::default();
        let told_of = |told: Vec<What>| {
            let one = |what| match what {
                What::ContainerStarted(_) => "started",
                What::ContainerEnded(_) => "ended",
                _ => "something else",
            };
            told.into_iter().map(one).collect::<Vec<_>>()
        };
        watch.compare(&sample(vec![group(APP, 3, 0)]), None);
        let again = watch.compare(&sample(vec![group(APP, 4, 0)]), None);
        assert_eq!(told_of(again), ["ended", "started"]);
        // A pass that could not read groups says nothing of them.
        assert_eq!(watch.compare(&Sample::default(), None), []);
        assert_eq!(watch.compare(&sample(vec![group(APP, 4, 0)]), None), []);
    }

    #[test]
    fn the_counter_is_found() {
        assert_eq!(
            counter("nr_free_pages 1\noom_kill 12\noom_kill_x 3\n"),
            Some(12)
        );
        assert_eq!(counter("nr_free_pages 1\n"), None);
    }
}
