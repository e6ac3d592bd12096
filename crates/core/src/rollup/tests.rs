//! Rollups of made histories.

use std::collections::HashSet;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::rates::{
    Aggregate, cpu_books, rolled_cpu, rolled_disk, rolled_filesystems, rolled_memory,
    rolled_network, rolled_pressure,
};
use crate::sample::{self, CpuCounters, CpuTimes, Sample};

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_micros(seconds * 1_000_000).expect("a time")
}

/// What a process does each ten seconds: ticks, bytes of memory, and whether it is there.
type Doing = Vec<(u64, u64, bool)>;

/// A host of two CPUs, on which processes do what is said, and a group with all of them.
fn history(doing: &[Doing]) -> Vec<(Timestamp, Sample)> {
    let length = doing.iter().map(Vec::len).max().unwrap_or(0);
    let mut ticks = vec![0_u64; doing.len()];
    let mut busy = 0;
    let mut samples = Vec::new();
    for step in 0..length {
        let mut processes = Vec::new();
        for (number, all) in doing.iter().enumerate() {
            let Some((grown, resident_bytes, true)) = all.get(step).copied() else {
                continue;
            };
            ticks[number] += grown;
            busy += grown;
            processes.push(sample::Process {
                pid: number as u32 + 1,
                start_ticks: 7,
                name: format!("p{}", number % 3).into(),
                user_ticks: ticks[number],
                resident_bytes,
                threads: 1,
                ..sample::Process::default()
            });
        }
        let times = CpuTimes {
            user: busy,
            irq: step as u64,
            idle: step as u64 * 1000,
            ..CpuTimes::default()
        };
        let sample = Sample {
            host: sample::Host {
                boot_id: "a".to_owned(),
                uptime_micros: 1_000_000_000 + step as u64 * 10_000_000,
                ticks_per_second: 100,
                boot_time_seconds: Some(1e9),
                cpu_total: Some(times),
                cpus: vec![CpuCounters {
                    cpu: 0,
                    times,
                    frequency_mhz: None,
                }],
                memory: Some(sample::Memory {
                    total: 1 << 34,
                    available: Some((1 << 33) + busy * 4096),
                    ..sample::Memory::default()
                }),
                load_average: Some([busy as f64, 1.25, 0.5]),
                process_count: Some(processes.len() as u32),
                pressure: Some(sample::Pressure {
                    io: Some(sample::Stall::default()),
                    ..sample::Pressure::default()
                }),
                disks: Some(vec![sample::DiskCounters {
                    device: "a".to_owned(),
                    written_bytes: busy * 512,
                    ..sample::DiskCounters::default()
                }]),
                interfaces: Some(vec![sample::InterfaceCounters {
                    interface: "b".to_owned(),
                    ..sample::InterfaceCounters::default()
                }]),
                filesystems: Some(vec![sample::Filesystem {
                    mountpoint: "/".to_owned(),
                    total: 1 << 40,
                    free: 1 << 39,
                    available: (1 << 39) - busy,
                    ..sample::Filesystem::default()
                }]),
                ..sample::Host::default()
            },
            processes,
            cgroups: Some(vec![sample::Cgroup {
                path: "/all".into(),
                cpu: Some(sample::cgroup::Cpu {
                    usage_micros: busy * 10_000,
                    ..sample::cgroup::Cpu::default()
                }),
                ..sample::Cgroup::default()
            }]),
            notes: Vec::new(),
        };
        samples.push((at(1_000_000_800 + step as i64 * 10), sample));
    }
    samples
}

fn doing() -> impl Strategy<Value = Vec<Doing>> {
    let one = (
        prop_oneof![3 => Just(0_u64), 1 => 0_u64..900],
        prop_oneof![3 => Just(1_u64 << 20), 1 => 0_u64..1 << 40],
        prop::bool::weighted(0.9),
    );
    prop::collection::vec(prop::collection::vec(one, 1..40), 1..60)
}

fn roll(samples: &[(Timestamp, Sample)], step: i64) -> (Rollup, Peaks, Highs) {
    let mut roller = Roller::new(step);
    for (time, sample) in samples {
        roller.add(*time, sample.clone());
    }
    let hour = samples.first().map_or(Timestamp::MIN, |(time, _)| *time);
    roller.finish(hour.floor_to(HOUR), &HashSet::new())
}

/// An answer as text.
type Told = fn(&Bucket, Aggregate) -> String;

/// What is read for answers, and those.
const ANSWERS: [(Figures, Told); 6] = [
    (Figures::Cpu, |bucket, how| {
        format!("{:?}", rolled_cpu(bucket, how))
    }),
    (Figures::Memory, |bucket, how| {
        format!("{:?}", rolled_memory(bucket, how))
    }),
    (Figures::Pressure, |bucket, how| {
        format!("{:?}", rolled_pressure(bucket, how))
    }),
    (Figures::Disks, |bucket, how| {
        format!("{:?}", rolled_disk(bucket, how))
    }),
    (Figures::Interfaces, |bucket, how| {
        format!("{:?}", rolled_network(bucket, how))
    }),
    (Figures::Filesystems, |bucket, how| {
        format!("{:?}", rolled_filesystems(bucket, how))
    }),
];

fn cpu(row: &Row) -> u64 {
    row.flows
        .first()
        .copied()
        .flatten()
        .map_or(0, |flow| flow.total)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_is_kept_reads_back_as_it_was(doing in doing()) {
        let (rollup, peaks, highs) = roll(&history(&doing), MINUTE);
        for part in Part::ALL {
            let bytes = encode(&rollup, part).expect("small");
            let read = decode(&bytes, Figures::All(part)).expect("well formed");
            prop_assert_eq!(read.buckets.len(), rollup.buckets.len());
            for (read, kept) in read.buckets.iter().zip(&rollup.buckets) {
                prop_assert_eq!((read.begin, read.covered, read.samples), (kept.begin, kept.covered, kept.samples));
                match part {
                    Part::Hosts => prop_assert_eq!(&read.hosts, &kept.hosts),
                    Part::Groups => prop_assert_eq!(&read.groups, &kept.groups),
                    Part::Processes => {
                        prop_assert_eq!(&read.processes, &kept.processes);
                        prop_assert_eq!(&read.others, &kept.others);
                    }
                }
            }
        }
        let bytes = encode(&rollup, Part::Hosts).expect("small");
        for (figures, answer) in ANSWERS {
            let read = decode(&bytes, figures).expect("well formed");
            for (read, kept) in read.buckets.iter().zip(&rollup.buckets) {
                for aggregate in [
                    Aggregate::Natural,
                    Aggregate::Mean,
                    Aggregate::Min,
                    Aggregate::Max,
                    Aggregate::Last,
                    Aggregate::Quantile(95),
                ] {
                    prop_assert_eq!(answer(read, aggregate), answer(kept, aggregate));
                }
                let own = |bucket: &Bucket| bucket.host(&Thing::Own).and_then(|own| own.levels[host::PROCESSES]);
                // What was not asked for was not read.
                prop_assert_eq!(own(read), own(kept).filter(|_| figures == Figures::Pressure));
            }
        }
        prop_assert_eq!(Peaks::decode(&peaks.encode()).expect("well formed"), peaks);
        prop_assert_eq!(Highs::decode(&highs.encode()).expect("well formed"), highs);
    }

    #[test]
    fn sums_stay_true_and_the_books_close(doing in doing()) {
        let samples = history(&doing);
        let (minutes, ..) = roll(&samples, MINUTE);
        let hour = minutes.whole(samples[0].0.floor_to(HOUR));
        let books: Vec<_> = samples
            .windows(2)
            .filter_map(|pair| cpu_books(&pair[0].1, &pair[1].1))
            .collect();
        let expected: u64 = books.iter().map(|books| books.processes + books.ended_children).sum();
        let of = |bucket: &Bucket| {
            let rows = bucket.processes.iter().map(|(_, row)| row);
            rows.chain([&bucket.others]).map(cpu).sum::<u64>()
        };
        prop_assert_eq!(minutes.buckets.iter().map(of).sum::<u64>(), expected);
        prop_assert_eq!(of(&hour), expected);
        let unaccounted_of = |bucket| unaccounted(bucket).unwrap_or_default();
        let left: i64 = books.iter().map(|books| books.unaccounted).sum();
        prop_assert_eq!(minutes.buckets.iter().map(unaccounted_of).sum::<i64>(), left);
        if samples.len() > 1 {
            prop_assert_eq!(unaccounted(&hour), Some(left));
        }
        // Any two ways from samples to an hour give the same, but for what a mean is rounded by.
        let (at_once, ..) = roll(&samples, HOUR);
        for (thing, row) in &at_once.whole(hour.begin).hosts {
            let own = hour.host(thing).expect("the same things");
            prop_assert_eq!((&row.totals, &row.flows), (&own.totals, &own.flows));
            prop_assert_eq!(&row.sketches, &own.sketches);
            for (one, other) in row.levels.iter().zip(&own.levels) {
                let mean = |level: &Option<Level>| level.map_or(0, |level| level.mean);
                prop_assert!(mean(one).abs_diff(mean(other)) <= 1);
            }
        }
    }

    #[test]
    fn no_process_has_more_than_the_peaks_say(doing in doing()) {
        let samples = history(&doing);
        let (minutes, peaks, highs) = roll(&samples, MINUTE);
        prop_assert_eq!(highs.samples.len(), samples.len());
        prop_assert_eq!(minutes.buckets.len(), peaks.minutes.len());
        for pair in samples.windows(2) {
            let minute = (pair[1].0.micros() % HOUR / MINUTE) as u8;
            let peak = peaks.minutes.iter().find(|peak| peak.minute == minute).expect("a minute with samples");
            let mut most = High { time: pair[1].0, ..High::default() };
            let hundredths = |value: f64| (value * 100.0).round() as u64;
            for row in crate::rates::process_rows(Some(&pair[0].1), &pair[1].1) {
                let percent = row.cpu_percent.filter(|_| row.pid > 0).unwrap_or_default();
                prop_assert!(percent * CPU_UNITS / 100.0 <= peak.cpu as f64 + 0.51, "{row:?}");
                prop_assert!(row.rss_bytes.unwrap_or_default() <= peak.memory);
                let io = [row.read_bytes_per_second, row.write_bytes_per_second];
                let io: u64 = io.into_iter().flatten().map(hundredths).sum();
                most.cpu = most.cpu.max(hundredths(percent));
                most.memory = most.memory.max(row.rss_bytes.unwrap_or_default());
                most.io = most.io.max(io);
            }
            let high = highs.at(pair[1].0.plus_micros(1)).expect("a sample");
            prop_assert_eq!(*high, most);
        }
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), at in any::<prop::sample::Index>()) {
        let (rollup, ..) = roll(&history(&[vec![(5, 5, true); 20]]), MINUTE);
        for part in Part::ALL {
            let _ = decode(&bytes.clone().into(), Figures::All(part));
            let all = ANSWERS.map(|(figures, _)| figures);
            // Also where the checksum is right.
            let mut whole = encode(&rollup, part).expect("small").to_vec();
            let place = at.index(whole.len());
            whole[place] ^= bytes.first().copied().unwrap_or(1) | 1;
            let whole = crate::block::with_checksum(whole).into();
            for figures in all.into_iter().chain([Figures::All(part)]) {
                let _ = decode(&whole, figures);
            }
            let _ = (Peaks::decode(&bytes), Highs::decode(&bytes));
        }
    }
}

/// `fixtures/rollup-2` has the parts of a rollup as version 2 wrote them, in postcard.
#[test]
fn the_version_before_reads_as_it_was_rolled_up() {
    let doing = (0..3).map(|one| {
        let step = |step| (step * one, one << 20, step % 7 > one);
        (0..40).map(step).collect()
    });
    let (rollup, ..) = roll(&history(&doing.collect::<Vec<Doing>>()), MINUTE);
    let bytes = include_bytes!("../../fixtures/rollup-2");
    let parts: [Vec<u8>; 3] = postcard::from_bytes(bytes).expect("parts");
    let [hosts, groups, processes] = parts.map(Bytes::from);
    assert_eq!(hosts[0], 2);
    let read = |bytes: &Bytes, figures| decode(bytes, figures).expect("well formed").buckets;
    let (groups, processes) = (
        read(&groups, Figures::All(Part::Groups)),
        read(&processes, Figures::All(Part::Processes)),
    );
    for (number, kept) in rollup.buckets.iter().enumerate() {
        assert_eq!(groups[number].groups, kept.groups);
        assert_eq!(processes[number].processes, kept.processes);
        for (figures, answer) in ANSWERS {
            let read = &read(&hosts, figures)[number];
            assert_eq!(answer(read, Aggregate::Max), answer(kept, Aggregate::Max));
        }
    }
}

#[test]
fn what_was_kept_stays_until_it_ends_and_what_mattered_is_kept() {
    // Sixty that idle, one that works, one that has most memory, one that grows, one that works once.
    let mut doing: Vec<Doing> = vec![vec![(0, 4096, true); 30]; 60];
    doing.push(vec![(500, 4096, true); 30]);
    doing.push(vec![(0, 1 << 40, true); 30]);
    doing.push((0..30).map(|step| (0, 4096 + step * 8192, true)).collect());
    doing.push(
        (0..30)
            .map(|step| (u64::from(step == 11) * 3, 4096, (9..13).contains(&step)))
            .collect(),
    );
    let samples = history(&doing);
    let mut roller = Roller::new(MINUTE);
    for (time, sample) in &samples {
        roller.add(*time, sample.clone());
    }
    let kept = HashSet::from([("a".into(), 5, 7), ("a".into(), 999, 7)]);
    let (rollup, ..) = roller.finish(samples[0].0.floor_to(HOUR), &kept);
    let first = &rollup.buckets[2];
    let pids: HashSet<u32> = first
        .processes
        .iter()
        .map(|(process, _)| process.pid)
        .collect();
    for pid in [5, 61, 62, 63, 64] {
        assert!(pids.contains(&pid), "{pid} of {pids:?}");
    }
    assert!(!pids.contains(&999));
    let count = first.others.levels[process::LEVELS].map(|level| level.mean);
    assert_eq!(count.unwrap_or_default() + pids.len() as u64, 64);
    let row = &first
        .processes
        .iter()
        .find(|(process, _)| process.pid == 61)
        .expect("it works")
        .1;
    assert_eq!(row.mean_rate(process::CPU), Some(50.0));
    assert_eq!(row.flows[process::CPU].map(|flow| flow.max), Some(5000));
}
