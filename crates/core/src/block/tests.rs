//! What was sealed is what is read.

use std::sync::Arc;

use nodestats_wire::v1::Reading;
use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::sample::cgroup::{Cpu, Kind, Memory};
use crate::sample::note::{KillSources, What};
use crate::sample::{Cgroup, CpuCounters, CpuTimes, Host, InterfaceCounters, Note, Process};
use crate::stored::{self, Stored, Wanted, of_block};

/// Numbers that grow with time, and such as jump.
fn process(pid: u32, time: u64, seed: u64) -> Process {
    let text = |text: &str| -> Option<Arc<str>> { Some(text.into()) };
    Process {
        pid,
        ppid: pid / 2,
        start_ticks: u64::from(pid) * 7 + seed % 3,
        name: format!("work-{}", pid % 5).into(),
        state: if (time + u64::from(pid)).is_multiple_of(7) {
            'R'
        } else {
            'S'
        },
        user_ticks: time * (seed % 5) * u64::from(pid.is_multiple_of(3)),
        system_ticks: time,
        minor_faults: time * seed % 1000,
        threads: 1 + pid % 4,
        virtual_bytes: (seed % 100) << 20,
        resident_bytes: ((time * seed) % 512) << 12,
        swapped_bytes: (pid.is_multiple_of(2)).then_some(0),
        read_bytes: (!pid.is_multiple_of(4)).then_some(time * 4096),
        user: text("root"),
        command_line: (!pid.is_multiple_of(3)).then(|| format!("work {pid} {}", seed % 2).into()),
        pod_uid: (pid.is_multiple_of(5)).then(|| "pod".into()),
        cgroup: (pid.is_multiple_of(2)).then(|| "/a".into()),
        ..Process::default()
    }
}

fn entry(number: u64, seeds: &[u64]) -> Entry {
    let seed = seeds[number as usize % seeds.len()];
    // Each comes, goes, and comes again.
    let pids = (1..40_u32).filter(|pid| !(number + u64::from(*pid)).is_multiple_of(2 + seed % 9));
    let group = |path: &str, id| Cgroup {
        path: path.into(),
        id,
        kind: Kind::Container {
            id: "c".into(),
            pod_uid: None,
        },
        cpu: Some(Cpu {
            usage_micros: number * seed % 10_000,
            ..Cpu::default()
        }),
        memory: (!seed.is_multiple_of(4)).then(|| Memory {
            current: number << 12,
            anonymous: (seed.is_multiple_of(3)).then_some(5),
            ..Memory::default()
        }),
        interfaces: (seed.is_multiple_of(2)).then(|| {
            let names = 0..seed % 40;
            let interface = |name: u64| InterfaceCounters {
                interface: name.to_string(),
                ..InterfaceCounters::default()
            };
            names.map(interface).collect()
        }),
        ..Cgroup::default()
    };
    let mut sample = Sample {
        host: Host {
            boot_id: format!("boot-{}", seed % 2),
            uptime_micros: number * 10_000_000,
            boot_time_seconds: Some(1.7e9 + 0.123_456),
            ticks_per_second: 100,
            load_average: Some([0.01 * number as f64, f64::NAN.max(2.5), 1.0 / 3.0]),
            cpus: (0..=(seed as u32 % 3))
                .map(|cpu| CpuCounters {
                    cpu,
                    times: CpuTimes {
                        user: number,
                        ..CpuTimes::default()
                    },
                    frequency_mhz: (!(u64::from(cpu) + seed).is_multiple_of(2)).then_some(2400.125),
                })
                .collect(),
            disks: (!seed.is_multiple_of(3)).then(Vec::new),
            interfaces: None,
            ..Host::default()
        },
        processes: pids.map(|pid| process(pid, number, seed)).collect(),
        cgroups: (!seed.is_multiple_of(5)).then(|| vec![group("/a", 1 + seed % 2), group("/b", 2)]),
        notes: Vec::new(),
    };
    if sample.cgroups.is_none() {
        sample
            .processes
            .iter_mut()
            .for_each(|process| process.cgroup = None);
    }
    sample.gather_members();
    if seed.is_multiple_of(3) {
        sample.notes.push(Note {
            time_micros: 5,
            what: What::Stopping,
        });
    }
    Entry {
        time: Timestamp::from_micros(number as i64 * 10_000_000 + seed as i64).expect("a time"),
        id: FrameId {
            agent_start: Uuid::from_u128(u128::from(seed % 2)),
            sequence: number,
        },
        interval: (!seed.is_multiple_of(4)).then(|| Duration::from_secs(10)),
        sample,
    }
}

fn seal(entries: &[Entry]) -> Result<Parts, Error> {
    let mut sealer = Sealer::default();
    for entry in entries {
        sealer.add(entry);
    }
    sealer.finish()
}

fn open(parts: &Parts) -> Arc<Block> {
    Arc::new(Block::open(parts).expect("well formed"))
}

/// What is read of a block by one who wants so much of it.
fn read(parts: &Parts, wanted: Wanted) -> Vec<Entry> {
    let block = open(&Parts {
        processes: parts.processes.clone().filter(|_| wanted != Wanted::Host),
        groups: parts.groups.clone().filter(|_| wanted == Wanted::All),
        ..parts.clone()
    });
    let entry = |number| {
        let Some(Stored::Counters(counters)) = of_block(&block, number) else {
            panic!("no counters");
        };
        Entry {
            time: counters.time,
            id: counters.id,
            interval: counters.interval,
            sample: counters.sample(wanted).expect("well formed"),
        }
    };
    (0..block.len()).map(entry).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn a_block_holds_what_was_sealed(
        seeds in prop::collection::vec(any::<u64>().prop_map(|seed| seed % 100_000), 1..6),
        count in 0_u64..60,
    ) {
        let entries: Vec<Entry> = (0..count).map(|number| entry(number, &seeds)).collect();
        let parts = seal(&entries).expect("not too many");
        prop_assert_eq!(&read(&parts, Wanted::All), &entries);
        let less = |wanted| {
            let mut entries = entries.clone();
            for Entry { sample, .. } in &mut entries {
                sample.cgroups = None;
                sample.notes.clear();
                let memory = |memory: crate::sample::Memory| crate::sample::Memory {
                    total: memory.total,
                    ..crate::sample::Memory::default()
                };
                let clock = Host {
                    memory: sample.host.memory.map(memory),
                    boot_id: sample.host.boot_id.clone(),
                    uptime_micros: sample.host.uptime_micros,
                    boot_time_seconds: sample.host.boot_time_seconds,
                    ticks_per_second: sample.host.ticks_per_second,
                    ..Host::default()
                };
                match wanted {
                    Wanted::Cpu => {
                        let Host { cpu_total, load_average, ref cpus, .. } = sample.host;
                        let cpus = cpus.clone();
                        sample.host = Host { load_average, cpu_total, cpus, ..clock };
                        sample.processes.clear();
                    }
                    Wanted::Host => sample.processes.clear(),
                    Wanted::Process(pid) => {
                        sample.processes.retain(|process| process.pid == pid);
                        if pid > 0 {
                            sample.host = clock;
                        }
                    }
                    Wanted::Processes | Wanted::All => {}
                }
            }
            entries
        };
        let pids = [0, 7, 999].map(Wanted::Process);
        for wanted in [Wanted::Cpu, Wanted::Host, Wanted::Processes].into_iter().chain(pids) {
            prop_assert_eq!(read(&parts, wanted), less(wanted), "{:?}", wanted);
        }
    }

    #[test]
    fn a_flipped_bit_is_found(at: prop::sample::Index, bit in 0_u8..8, which in 0..3) {
        let entries: Vec<Entry> = (0..5).map(|number| entry(number, &[7, 12])).collect();
        let mut parts = seal(&entries).expect("not too many");
        let part = match which {
            0 => &mut parts.hosts,
            1 => parts.processes.as_mut().expect("there"),
            _ => parts.groups.as_mut().expect("there"),
        };
        let mut bytes = part.to_vec();
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        *part = bytes.into();
        prop_assert!(matches!(Block::open(&parts), Err(Error::Checksum | Error::Version(_))));
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 9..400), count in 0_usize..5) {
        let entries: Vec<Entry> = (0..count).map(|number| entry(number as u64, &[7])).collect();
        let parts = seal(&entries).expect("not too many");
        // With a checksum that is right.
        let mut bytes = bytes;
        bytes[0] = VERSION;
        let bytes = Bytes::from(with_checksum(bytes));
        for parts in [
            Parts { hosts: bytes.clone(), ..parts.clone() },
            Parts { processes: Some(bytes.clone()), ..parts.clone() },
            Parts { groups: Some(bytes.clone()), ..parts.clone() },
        ] {
            if let Ok(block) = Block::open(&parts) {
                for number in 0..block.len() {
                    let _ = block.sample(number, Wanted::All);
                }
            }
        }
    }
}

#[test]
fn readings_stand_among_counters_as_they_were_put() {
    let reading = |seconds: i64| Reading {
        time: Timestamp::from_micros(seconds * 1_000_000),
        memory_usage_percent: Some(seconds as f64),
        ..Reading::default()
    };
    let mut sealer = Sealer::default();
    let put = [reading(1), reading(40)];
    let mut add = |reading: &Reading| {
        let bytes = stored::from_reading(reading).into();
        let stored = stored::read(&bytes).expect("well formed");
        stored.seal(&mut sealer).expect("plain data");
    };
    add(&put[0]);
    add(&put[1]);
    sealer.add(&entry(6, &[5]));
    let block = open(&sealer.finish().expect("not too many"));
    let mut all = (0..3).filter_map(|number| of_block(&block, number));
    for expected in [Some(&put[0]), Some(&put[1]), None] {
        match (all.next().expect("a sample"), expected) {
            (Stored::Gauges(gauges), Some(expected)) => {
                assert_eq!(Some(gauges.time), expected.time);
                assert_eq!(*gauges.reading().expect("well formed"), *expected);
            }
            (Stored::Counters(counters), None) => assert_eq!(counters.id.sequence, 6),
            (other, _) => panic!("{other:?}"),
        }
    }
    assert!(of_block(&block, 3).is_none());
}

#[test]
fn cut_off_anywhere_is_an_error() {
    let whole = seal(&[entry(1, &[5])]).expect("not too many");
    for end in 0..whole.hosts.len() {
        let hosts = whole.hosts.slice(..end);
        assert!(
            Block::open(&Parts {
                hosts,
                ..whole.clone()
            })
            .is_err(),
            "{end}"
        );
    }
}

#[test]
fn what_was_not_given_is_missing_and_not_empty() {
    let whole = seal(&[entry(1, &[5])]).expect("not too many");
    let hosts_alone = Parts {
        processes: None,
        groups: None,
        ..whole
    };
    let block = Block::open(&hosts_alone).expect("well formed");
    assert_eq!(block.sample(0, Wanted::Processes), Err(Error::Missing));
}

#[test]
fn an_hour_of_a_quiet_host_takes_kilobytes() {
    let entries: Vec<Entry> = (0..360)
        .map(|number| {
            let mut one = entry(1, &[5]);
            one.time = one.time.plus_micros(number * 10_000_000);
            one.id.sequence = number as u64;
            one
        })
        .collect();
    let length = seal(&entries).expect("not too many").len();
    assert!(length < 5000, "{length}");
}

#[test]
fn more_than_a_block_may_have_is_refused_before_it_is_written() {
    let mut large = entry(1, &[5]);
    large.sample.processes[0].command_line = Some("x".repeat(PLAIN_LIMIT + 1).into());
    assert!(matches!(seal(&[large]), Err(Error::TooLarge)));
    let mut largest = entry(1, &[5]);
    largest.sample.processes[0].command_line = Some("x".repeat(PLAIN_LIMIT / 4).into());
    let parts = seal(&[largest.clone()]).expect("not too many");
    assert_eq!(read(&parts, Wanted::All), [largest]);
}

#[test]
fn what_takes_memory_has_weight() {
    let weight = |change: &dyn Fn(&mut Sample)| {
        let mut sealer = Sealer::default();
        let mut one = entry(1, &[5]);
        change(&mut one.sample);
        sealer.add(&one);
        sealer.weight()
    };
    let usual = weight(&|_| {});
    let text =
        weight(&|sample| sample.processes[0].command_line = Some("x".repeat(1 << 20).into()));
    assert!(text > usual + 4000, "{text}");
    let note = weight(&|sample| {
        let what = What::Started {
            version: "y".repeat(1 << 16),
            kills: KillSources {
                cgroups: true,
                log: false,
                counter: false,
            },
            boot_id: String::new(),
            uptime_micros: 0,
        };
        sample.notes.push(Note {
            time_micros: 1,
            what,
        });
    });
    assert!(note > usual + 200, "{note}");
}

/// `fixtures/block-N` has the parts of a block as version N wrote them, in postcard.
#[test]
fn the_versions_before_read_as_they_were_sealed() {
    let entries: Vec<Entry> = (0..150).map(|number| entry(number, &[7, 12])).collect();
    let versions: [(u8, &[u8]); 2] = [
        (1, include_bytes!("../../fixtures/block-1")),
        (2, include_bytes!("../../fixtures/block-2")),
    ];
    for (version, bytes) in versions {
        let [hosts, processes, groups]: [Vec<u8>; 3] = postcard::from_bytes(bytes).expect("parts");
        assert_eq!(hosts[0], version);
        let block = open(&Parts {
            hosts: hosts.into(),
            processes: Some(processes.into()),
            groups: Some(groups.into()),
        });
        for (number, entry) in entries.iter().enumerate() {
            let sample = block.sample(number, Wanted::All);
            assert_eq!(sample.as_ref(), Ok(&entry.sample));
        }
    }
}
