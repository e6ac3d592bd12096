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
use nodestats_core::sample::note::{Container, Kill, KillSource, KillSources, What};

use crate::root::HostRoot;
use log::Log;
pub(crate) use log::Logged;

/// Reads the kernel's log and its counter: neither can hang, so that what is read is never late.
#[derive(Debug, Default)]
pub(crate) struct Kills {
    log: Log,
}

/// What one pass found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Kills by the log since the pass before; `None` where it cannot be read.
    pub(crate) logged: Option<Vec<Logged>>,
    /// Kills since boot; `None` where the kernel does not count them.
    pub(crate) counter: Option<u64>,
}

impl Kills {
    /// The counter after the log: the kernel counts a kill before it logs it, so what is logged is
    /// counted.
    pub(crate) fn read(&mut self, root: &HostRoot) -> Seen {
        Seen {
            logged: self.log.read(root),
            counter: root.read("proc/vmstat").ok().as_deref().and_then(counter),
        }
    }
}

fn counter(vmstat: &str) -> Option<u64> {
    let mut lines = vmstat.lines();
    lines.find_map(|line| line.strip_prefix("oom_kill ")?.parse().ok())
}

/// Something that happened, so long ago.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) age_micros: u64,
    pub(crate) what: What,
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

type Groups = HashMap<Arc<str>, Before>;

/// Compares passes.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    /// The groups of the last pass that saw them, by path; `None` before the first.
    groups: Option<Groups>,
    counter: Option<u64>,
    /// Kills that the node has counted less those that were told. Groups are read before the counter:
    /// what it is ahead of them waits for a pass.
    balance: i64,
    /// Groups of kills that the log told of, and the counters of groups are to show in the next pass;
    /// `None` of one whose group is not known.
    ahead: Vec<Option<String>>,
    /// Kills by which groups below were ahead of the one above them: those are read later.
    debts: HashMap<Arc<str>, u64>,
    /// Time since boot of the pass that saw groups, and of the last two passes, in microseconds.
    grouped_at: u64,
    passes_at: [u64; 2],
}

impl Watch {
    /// Which sources there are, by the last pass.
    pub(crate) fn sources(&self, seen: &Seen) -> KillSources {
        let groups = self.groups.as_ref();
        KillSources {
            cgroups: groups.is_some_and(|groups| !groups.is_empty()),
            log: seen.logged.is_some(),
            counter: seen.counter.is_some(),
        }
    }

    /// What happened since the pass before. `seen` was read after the sample's groups were.
    pub(crate) fn compare(&mut self, sample: &Sample, seen: &Seen) -> Vec<Told> {
        let now = sample.host.uptime_micros;
        // A pass without groups is one that has not seen them: the next is compared with the last.
        let groups = sample.cgroups.as_ref().map(|_| self.groups_of(sample));
        let (mut own, mut changed) = (BTreeMap::new(), Vec::new());
        if let (Some(groups), Some(before)) = (&groups, &self.groups) {
            containers(before, groups, &mut changed);
            own = own_kills(before, groups, &mut self.debts);
        }
        let saw_groups = groups.is_some();
        if saw_groups {
            for path in mem::take(&mut self.ahead) {
                take_one(&mut own, path.as_deref());
            }
        }
        let mut told = self.logged(&mut own, seen, now);
        let log_read = seen.logged.is_some();
        for (path, count) in own.into_iter().filter(|(_, count)| *count > 0) {
            let kill = Kill {
                count,
                within_micros: now.saturating_sub(self.grouped_at),
                ..self.kill_in(Some(&path), log_read)
            };
            told.push(now_told(What::Kill(kill)));
        }
        if let Some(count) = self.unnamed(seen, &told, saw_groups) {
            let kill = Kill {
                source: KillSource::Counter,
                count,
                within_micros: now.saturating_sub(self.passes_at[1]),
                ..self.kill_in(None, log_read)
            };
            told.push(now_told(What::Kill(kill)));
        }
        told.extend(changed.into_iter().map(now_told));
        if let Some(groups) = groups {
            self.groups = Some(groups);
            self.grouped_at = now;
        }
        self.passes_at = [now, self.passes_at[0]];
        told
    }

    fn groups_of(&self, sample: &Sample) -> Groups {
        let before = |path: &str, id| {
            let before = self.groups.as_ref()?.get(path)?;
            (before.id == id).then_some(before)
        };
        let groups = sample.cgroups.iter().flatten().map(|group| {
            let (path, memory) = (group.path.clone(), group.memory);
            // Where it could not be read it is what it was.
            let known = before(&path, group.id).map_or(0, |before| before.kills);
            let group = Before {
                id: group.id,
                kind: group.kind.clone(),
                kills: memory.map_or(known, |memory| memory.events.oom_kill.max(known)),
                current: memory.map(|memory| memory.current),
                limit: memory.and_then(|memory| memory.limit),
            };
            (path, group)
        });
        groups.collect()
    }

    /// Kills by the log; what groups count of them is taken from `own`, each counted in one group
    /// alone.
    fn logged(&mut self, own: &mut BTreeMap<String, u64>, seen: &Seen, now: u64) -> Vec<Told> {
        // The log leaves out who is in which group where much is killed (it is rate-limited): those
        // last, when it is known which kills are left.
        let (placed, unplaced): (Vec<&Logged>, Vec<&Logged>) = seen
            .logged
            .iter()
            .flatten()
            .partition(|one| one.cgroup.is_some());
        let since = now.saturating_sub(self.passes_at[0]);
        let mut told = Vec::new();
        for one in placed.into_iter().chain(unplaced) {
            let mut path = one.cgroup.clone();
            if path.is_none() {
                let mut left = own.iter().filter(|(_, kills)| **kills > 0);
                path = left.next().map(|(path, _)| path.clone());
                if left.next().is_some() {
                    // Its group tells of it, and not who it was.
                    continue;
                }
            }
            if !take_one(own, path.as_deref()) {
                self.ahead.push(path.clone());
            }
            let kill = Kill {
                source: KillSource::Log,
                victim: Some((one.pid, one.name.clone())),
                memory_bytes: Some(one.bytes),
                ..self.kill_in(path.as_deref(), true)
            };
            told.push(Told {
                // Another clock than ours, and one that stands still in sleep.
                age_micros: one
                    .age_micros
                    .filter(|age| *age <= since)
                    .unwrap_or_default(),
                what: What::Kill(kill),
            });
        }
        told
    }

    /// Kills that the node's counter knows alone.
    fn unnamed(&mut self, seen: &Seen, told: &[Told], saw_groups: bool) -> Option<u64> {
        let now = seen.counter?;
        let before = self.counter.replace(now)?;
        let count = |told: &Told| match &told.what {
            What::Kill(kill) => kill.count,
            _ => 0,
        };
        let number = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        let named = number(told.iter().map(count).sum());
        let waiting = self.balance;
        let grown = number(now.saturating_sub(before));
        self.balance = waiting.saturating_add(grown).saturating_sub(named);
        if waiting < 0 && self.balance < 0 {
            // More was told than the node ever counts.
            self.balance = 0;
        }
        if !saw_groups {
            return None;
        }
        let late = (waiting - named).min(self.balance).max(0);
        self.balance -= late;
        u64::try_from(late).ok().filter(|late| *late > 0)
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
            within_micros: 0,
            log_read,
        }
    }
}

fn now_told(what: What) -> Told {
    Told {
        age_micros: 0,
        what,
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

/// Takes a kill in `path` from what its group, or one above it, counts; of one whose group is not known
/// from any.
fn take_one(own: &mut BTreeMap<String, u64>, path: Option<&str>) -> bool {
    let counts = |path: &str| own.get(path).is_some_and(|kills| *kills > 0);
    let found = match path {
        Some(path) => innermost(path, |path| counts(path).then(|| path.to_owned())),
        None => own.keys().find(|path| counts(path)).cloned(),
    };
    let Some(kills) = found.and_then(|path| own.get_mut(&path)) else {
        return false;
    };
    *kills -= 1;
    true
}

/// Kills since the pass before, each in the innermost group that is listed and counts it: version 2
/// counts it in each one above too. `debts` is what groups below were ahead then, and is so afterwards.
fn own_kills(
    before: &Groups,
    now: &Groups,
    debts: &mut HashMap<Arc<str>, u64>,
) -> BTreeMap<String, u64> {
    let grown = |path: &str, group: &Before| {
        let known = before.get(path).filter(|before| before.id == group.id);
        let known = known.map_or(0, |known| known.kills);
        group.kills.saturating_sub(known)
    };
    let mut below: HashMap<&Arc<str>, u64> = HashMap::new();
    let mut all = Vec::new();
    for (path, group) in now {
        let grown = grown(path, group);
        if grown == 0 {
            continue;
        }
        all.push((path, grown));
        let above = path.rsplit_once('/').map(|(above, _)| above);
        let above = above.and_then(|above| {
            innermost(above, |path| now.get_key_value(path).map(|(path, _)| path))
        });
        if let Some(above) = above {
            *below.entry(above).or_default() += grown;
        }
    }
    let owed = mem::take(debts);
    let mut own = BTreeMap::new();
    for (path, grown) in all {
        let of_others = below.remove(path).unwrap_or_default();
        let owed = owed.get(path).copied().unwrap_or_default();
        own.insert(
            path.to_string(),
            grown.saturating_sub(of_others).saturating_sub(owed),
        );
        if of_others > grown {
            debts.insert(path.clone(), of_others - grown);
        }
    }
    // Those that have not grown at all.
    debts.extend(below.into_iter().map(|(path, ahead)| (path.clone(), ahead)));
    own
}

/// Containers that came and went between two passes.
fn containers(before: &Groups, now: &Groups, told: &mut Vec<What>) {
    let missing = |from: &Groups, path: &str, id| from.get(path).is_none_or(|other| other.id != id);
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
            age_micros: None,
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
    fn kills(told: &[Told]) -> Vec<(KillSource, Option<&str>, Option<&str>, u64)> {
        let mut kills = Vec::new();
        for told in told {
            if let What::Kill(kill) = &told.what {
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
        assert_eq!(watch.compare(&pass(3), &blind(9)), []);
        let told = watch.compare(&pass(4), &blind(10));
        assert_eq!(
            kills(&told),
            [(KillSource::Cgroup, Some(APP), Some("a"), 1)]
        );
        let What::Kill(kill) = &told[0].what else {
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
        assert_eq!(watch.compare(&pass(4), &blind(10)), []);
    }

    #[test]
    fn a_container_that_went_with_its_process_is_told_of_by_its_pod() {
        let mut watch = Watch::default();
        watch.compare(&sample(vec![group(POD, 2, 0), group(APP, 3, 0)]), &blind(0));
        let told = watch.compare(&sample(vec![group(POD, 2, 1)]), &blind(1));
        assert_eq!(kills(&told), [(KillSource::Cgroup, Some(POD), None, 1)]);
        assert!(matches!(&told[1].what, What::ContainerEnded(ended) if ended.id == "a"));
    }

    #[test]
    fn the_log_names_who_and_no_counter_tells_it_again() {
        let mut watch = Watch::default();
        let pass = |kills| sample(vec![group(POD, 2, kills), group(APP, 3, kills)]);
        watch.compare(&pass(0), &seen(0, &[]));
        let told = watch.compare(&pass(1), &seen(1, &[APP]));
        assert_eq!(kills(&told), [(KillSource::Log, Some(APP), Some("a"), 1)]);
        // The groups were read before it happened, and show it in the next pass.
        let told = watch.compare(&pass(1), &seen(2, &[APP]));
        assert_eq!(kills(&told).len(), 1);
        assert_eq!(watch.compare(&pass(2), &seen(2, &[])), []);
        // Version 1 counts it in a group that is gone.
        let told = watch.compare(&sample(vec![group(POD, 2, 2)]), &seen(3, &[APP]));
        assert_eq!(kills(&told), [(KillSource::Log, Some(APP), Some("a"), 1)]);
        assert_eq!(
            watch.compare(&sample(vec![group(POD, 2, 2)]), &seen(3, &[])),
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
        watch.compare(&pass(0, 0), &seen(0, &[]));
        let told = watch.compare(&pass(1, 0), &unplaced(1));
        assert_eq!(kills(&told), [(KillSource::Log, Some(APP), Some("a"), 1)]);
        let told = watch.compare(&pass(2, 1), &unplaced(3));
        let two = [
            (KillSource::Cgroup, Some(APP), Some("a"), 1),
            (KillSource::Cgroup, Some(other), None, 1),
        ];
        assert_eq!(kills(&told), two);
        let told = watch.compare(&pass(2, 1), &unplaced(4));
        assert_eq!(kills(&told), [(KillSource::Log, None, None, 1)]);
    }

    #[test]
    fn passes_that_see_a_kill_from_different_moments_tell_it_once() {
        let mut watch = Watch::default();
        let pass = |slice, pods, apps| {
            let groups = vec![
                group("/kubepods", 1, slice),
                group(POD, 2, pods),
                group(APP, 3, apps),
            ];
            sample(groups)
        };
        watch.compare(&pass(0, 0, 0), &blind(0));
        // It was after the slice and before the container were read.
        let told = watch.compare(&pass(0, 0, 1), &blind(1));
        assert_eq!(
            kills(&told),
            [(KillSource::Cgroup, Some(APP), Some("a"), 1)]
        );
        assert_eq!(watch.compare(&pass(1, 1, 1), &blind(1)), []);
        // And what comes next is told again.
        let told = watch.compare(&pass(2, 2, 2), &blind(2));
        assert_eq!(kills(&told).len(), 1);
        // Groups that could not be read miss nothing and tell nothing twice.
        assert_eq!(watch.compare(&Sample::default(), &seen(3, &[APP])).len(), 1);
        assert_eq!(watch.compare(&Sample::default(), &seen(3, &[])), []);
        assert_eq!(watch.compare(&pass(3, 3, 3), &seen(3, &[])), []);
        assert_eq!(watch.compare(&Sample::default(), &blind(4)), []);
        assert_eq!(watch.compare(&Sample::default(), &blind(4)), []);
        let told = watch.compare(&pass(4, 4, 4), &blind(4));
        assert_eq!(
            kills(&told),
            [(KillSource::Cgroup, Some(APP), Some("a"), 1)]
        );
        assert_eq!(watch.compare(&pass(4, 4, 4), &blind(4)), []);
        // One group whose memory is not there for a moment has not begun anew.
        let mut unread = pass(4, 4, 4);
        unread.cgroups.as_mut().expect("groups")[2].memory = None;
        assert_eq!(watch.compare(&unread, &blind(4)), []);
        assert_eq!(watch.compare(&pass(4, 4, 4), &blind(4)), []);
        // A victim whose group nobody names, before its group counts it.
        let mut seen = seen(5, &[APP]);
        seen.logged
            .iter_mut()
            .flatten()
            .for_each(|one| one.cgroup = None);
        assert_eq!(watch.compare(&pass(4, 4, 4), &seen).len(), 1);
        assert_eq!(watch.compare(&pass(5, 5, 5), &blind(5)), []);
    }

    #[test]
    fn what_only_the_node_counts_is_told_a_pass_later_without_a_name() {
        let mut watch = Watch::default();
        let none = sample(vec![group(POD, 2, 0)]);
        watch.compare(&none, &blind(5));
        assert_eq!(watch.compare(&none, &blind(7)), []);
        let told = watch.compare(&none, &blind(7));
        assert_eq!(kills(&told), [(KillSource::Counter, None, None, 2)]);
        // One that a group tells of meanwhile is not told twice.
        assert_eq!(watch.compare(&none, &blind(8)), []);
        let told = watch.compare(&sample(vec![group(POD, 2, 1)]), &blind(8));
        assert_eq!(kills(&told), [(KillSource::Cgroup, Some(POD), None, 1)]);
        assert_eq!(
            watch.compare(&sample(vec![group(POD, 2, 1)]), &blind(8)),
            []
        );
    }

    #[test]
    fn containers_come_and_go_and_one_made_anew_is_another() {
        let mut watch = Watch::default();
        let told_of = |told: Vec<Told>| {
            let one = |told: Told| match told.what {
                What::ContainerStarted(_) => "started",
                What::ContainerEnded(_) => "ended",
                _ => "something else",
            };
            told.into_iter().map(one).collect::<Vec<_>>()
        };
        watch.compare(&sample(vec![group(APP, 3, 0)]), &Seen::default());
        let again = watch.compare(&sample(vec![group(APP, 4, 0)]), &Seen::default());
        assert_eq!(told_of(again), ["ended", "started"]);
        // A pass that could not read groups says nothing of them.
        assert_eq!(watch.compare(&Sample::default(), &Seen::default()), []);
        assert_eq!(
            watch.compare(&sample(vec![group(APP, 4, 0)]), &Seen::default()),
            []
        );
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
