//! Where the CPU and the memory of a node went, so that the books close: whatever is not shown anywhere else
//! is a line of its own.

use hashbrown::HashMap;
use nodestats_wire::v1;

use super::counter::{Span, round};
use super::process::Pair;
use crate::sample::{Host, Process, Sample};

/// Pid and start of a process.
pub(crate) type Life = (u32, u64);

/// CPU time of a node between two samples, in ticks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CpuBooks {
    /// All that was worked: user, nice, system, irq and softirq of `/proc/stat`.
    pub busy: u64,
    /// Idle and iowait: what pid 0 shows.
    pub idle: u64,
    /// Taken by the hypervisor.
    pub steal: u64,
    /// Of processes that are there at the end.
    pub processes: u64,
    /// Of children that had ended, less what was counted for them while they lived.
    pub ended_children: u64,
    /// `busy` less processes and ended children: interrupts, which are no process's; processes that nobody
    /// waited for; and what ticks and the scheduler count at different moments, so that it may be negative.
    pub unaccounted: i64,
}

/// The books between two samples; `None` where they have no counter in common.
pub fn cpu_books(previous: &Sample, current: &Sample) -> Option<CpuBooks> {
    let pair = Pair::new(Some(previous), current)?;
    books_of(&pair, current, &ended_children(&pair, current))
}

pub(super) fn books_of(
    pair: &Pair<'_>,
    current: &Sample,
    ended: &HashMap<Life, u64>,
) -> Option<CpuBooks> {
    let (before, now) = (pair.previous.host.cpu_total?, current.host.cpu_total?);
    let grown = now.since(&before);
    let busy = grown.busy();
    let growths = current
        .processes
        .iter()
        .filter_map(|process| pair.growth(process, Process::cpu_ticks));
    let processes = growths.fold(0, u64::saturating_add);
    let ended_children = ended.values().copied().fold(0, u64::saturating_add);
    let shown = processes.saturating_add(ended_children);
    Some(CpuBooks {
        busy,
        idle: grown.idle.saturating_add(grown.iowait),
        steal: grown.steal,
        processes,
        ended_children,
        unaccounted: (busy as i64).wrapping_sub(shown as i64),
    })
}

/// CPU time of children that ended between two samples, in ticks, by the nearest parent that lives: what
/// `cutime` and `cstime` (`/proc/PID/stat` fields 16 and 17) grew by, less what was counted for those
/// children while they lived. Of a process without any nothing is said.
pub(crate) fn ended_children(pair: &Pair<'_>, current: &Sample) -> HashMap<Life, u64> {
    let waited = current.processes.iter().filter_map(|process| {
        let grown = pair.growth(process, Process::children_ticks)?;
        (grown > 0).then_some(((process.pid, process.start_ticks), grown))
    });
    let mut waited: HashMap<Life, u64> = waited.collect();
    if waited.is_empty() {
        return waited;
    }
    let living: HashMap<u32, u64> = current
        .processes
        .iter()
        .map(|process| (process.pid, process.start_ticks))
        .collect();
    let lives = |process: &Process| living.get(&process.pid) == Some(&process.start_ticks);
    let before = &pair.previous.processes;
    let by_pid: HashMap<u32, &Process> = before.iter().map(|known| (known.pid, known)).collect();
    for ended in before.iter().filter(|process| !lives(process)) {
        let mut above = ended;
        // Parents of parents are no more than there are processes, whatever a sample says.
        for _ in 0..before.len() {
            let Some(parent) = by_pid.get(&above.ppid) else {
                break;
            };
            above = parent;
            if !lives(above) {
                continue;
            }
            if let Some(grown) = waited.get_mut(&(above.pid, above.start_ticks)) {
                let counted = ended.cpu_ticks().saturating_add(ended.children_ticks());
                *grown = grown.saturating_sub(counted);
            }
            break;
        }
    }
    waited.retain(|_, grown| *grown > 0);
    waited
}

/// The CPU books as people read them, 100 percent a CPU.
pub(super) fn cpu(books: &CpuBooks, span: Span, host: &Host) -> v1::CpuBooks {
    let percent = |ticks: f64| {
        let a_second = ticks * 1e6 / span.micros();
        Some(round(
            a_second * 100.0 / f64::from(host.ticks_per_second.max(1)),
        ))
    };
    v1::CpuBooks {
        busy_percent: percent(books.busy as f64),
        processes_percent: percent(books.processes as f64),
        ended_children_percent: percent(books.ended_children as f64),
        unaccounted_percent: percent(books.unaccounted as f64),
        idle_percent: percent(books.idle as f64),
        steal_percent: percent(books.steal as f64),
    }
}

/// Where the memory of a node is: that of no file by its processes, caches, the kernel's, what is free, and
/// the rest. `None` where a part cannot be known.
pub(super) fn memory(sample: &Sample) -> Option<v1::MemoryBooks> {
    let memory = sample.host.memory?;
    let mut anonymous = 0_u64;
    for process in &sample.processes {
        // The kernel's own threads have no memory of their own.
        let shared = process
            .shared_bytes
            .or((process.resident_bytes == 0).then_some(0))?;
        anonymous = anonymous.saturating_add(process.resident_bytes.saturating_sub(shared));
    }
    let cache = memory.cached?.saturating_add(memory.buffers?);
    let (kernel, free) = (memory.slab_reclaimable?, memory.free?);
    let shown = [anonymous, cache, kernel, free];
    let shown = shown.into_iter().fold(0, u64::saturating_add);
    Some(v1::MemoryBooks {
        total_bytes: Some(memory.total),
        anonymous_bytes: Some(anonymous),
        cache_bytes: Some(cache),
        kernel_bytes: Some(kernel),
        free_bytes: Some(free),
        unaccounted_bytes: Some((memory.total as i64).wrapping_sub(shown as i64)),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::sample::CpuTimes;

    fn process(pid: u32, parent: u32, ticks: u64, children: u64) -> Process {
        Process {
            pid,
            ppid: parent,
            start_ticks: u64::from(pid),
            user_ticks: ticks,
            children_user_ticks: children,
            ..Process::default()
        }
    }

    fn sample(seconds: u64, busy: u64, processes: Vec<Process>) -> Sample {
        Sample {
            host: Host {
                boot_id: "a".into(),
                uptime_micros: seconds * 1_000_000,
                ticks_per_second: 100,
                cpu_total: Some(CpuTimes {
                    user: busy,
                    idle: seconds * 100,
                    ..CpuTimes::default()
                }),
                ..Host::default()
            },
            processes,
            ..Sample::default()
        }
    }

    #[test]
    fn ended_children_are_shown_once_on_the_nearest_parent_that_lives() {
        // make (2) runs sh (3), which runs cc (4), which was seen with 30 ticks; both end, cc at 200 and sh
        // at 5, and another compiler that no sample has seen, with 100.
        let before = sample(
            10,
            1000,
            vec![
                process(2, 1, 7, 0),
                process(3, 2, 5, 0),
                process(4, 3, 30, 0),
            ],
        );
        let after = sample(20, 1400, vec![process(2, 1, 9, 305)]);
        let books = cpu_books(&before, &after).expect("one boot");
        assert_eq!((books.processes, books.ended_children), (2, 270));
        assert_eq!((books.busy, books.unaccounted), (400, 128));
        let pair = Pair::new(Some(&before), &after).expect("one boot");
        let ended = ended_children(&pair, &after);
        assert_eq!(ended, HashMap::from([((2, 2), 270)]));
        // A parent that waits for nobody has no ended children, and what they used is not taken from others.
        let alone = sample(20, 1400, vec![process(2, 1, 9, 0)]);
        let books = cpu_books(&before, &alone).expect("one boot");
        assert_eq!((books.ended_children, books.unaccounted), (0, 398));
    }

    fn processes() -> impl Strategy<Value = Vec<Process>> {
        let one = (1_u32..8, 0_u32..8, 0_u64..1000, 0_u64..1000);
        prop::collection::vec(one, 0..8).prop_map(|all| {
            let mut made: Vec<Process> = all
                .into_iter()
                .map(|(pid, parent, ticks, children)| process(pid, parent, ticks, children))
                .collect();
            made.sort_by_key(|process| process.pid);
            made.dedup_by_key(|process| process.pid);
            made
        })
    }

    proptest! {
        #[test]
        fn the_books_close_on_raw_counters(
            before in processes(),
            after in processes(),
            first in prop::array::uniform8(0_u64..1000),
            grown in prop::array::uniform8(0_u64..1000),
        ) {
            let times = |[user, nice, system, idle, iowait, irq, softirq, steal]: [u64; 8]| CpuTimes {
                user, nice, system, idle, iowait, irq, softirq, steal,
            };
            let mut before = sample(10, 0, before);
            before.host.cpu_total = Some(times(first));
            let mut after = sample(20, 0, after);
            after.host.cpu_total = Some(times(std::array::from_fn(|at| first[at] + grown[at])));
            let books = cpu_books(&before, &after).expect("one boot");
            let shown = books.processes + books.ended_children;
            let all = (shown + books.idle + books.steal) as i64 + books.unaccounted;
            prop_assert_eq!(all, grown.iter().sum::<u64>() as i64);
        }

        #[test]
        fn memory_closes(
            resident in prop::collection::vec((0_u64..1 << 40, 0_u64..1 << 40), 0..6),
            [total, free, buffers, cached, slab] in prop::array::uniform5(0_u64..1 << 45),
        ) {
            let mut sample = sample(1, 0, Vec::new());
            sample.host.memory = Some(crate::sample::Memory {
                total,
                free: Some(free),
                buffers: Some(buffers),
                cached: Some(cached),
                slab_reclaimable: Some(slab),
                ..crate::sample::Memory::default()
            });
            sample.processes = resident.into_iter().map(|(resident_bytes, shared)| Process {
                resident_bytes,
                shared_bytes: Some(shared),
                ..Process::default()
            }).collect();
            let books = memory(&sample).expect("all is known");
            let parts = [books.anonymous_bytes, books.cache_bytes, books.kernel_bytes, books.free_bytes];
            let parts: u64 = parts.into_iter().flatten().sum();
            prop_assert_eq!(parts as i64 + books.unaccounted_bytes.expect("a rest"), total as i64);
        }
    }
}
