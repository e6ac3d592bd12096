//! What was sealed is what is read.

use proptest::prelude::*;

use super::*;
use crate::sample::cgroup::{Cpu, Kind, Memory};
use crate::sample::note::What;
use crate::sample::{CpuCounters, CpuTimes, InterfaceCounters};

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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn a_block_holds_what_was_sealed(
        seeds in prop::collection::vec(any::<u64>().prop_map(|seed| seed % 100_000), 1..6),
        count in 0_u64..60,
    ) {
        let entries: Vec<Entry> = (0..count).map(|number| entry(number, &seeds)).collect();
        let bytes = seal(&entries).expect("not too many");
        let block = Block::open(&bytes).expect("well formed");
        prop_assert_eq!(block.len(), entries.len());
        let hosts = block.hosts().expect("well formed");
        let same = |(read, entry): (&Entry, &Entry)| {
            let header = (read.time, read.id) == (entry.time, entry.id);
            header && read.sample.host == entry.sample.host
        };
        prop_assert!(hosts.iter().zip(&entries).all(same));
        prop_assert_eq!(block.entries().expect("well formed"), entries);
    }

    #[test]
    fn a_flipped_bit_is_found(at: prop::sample::Index, bit in 0_u8..8) {
        let entries: Vec<Entry> = (0..5).map(|number| entry(number, &[7, 12])).collect();
        let mut bytes = seal(&entries).expect("not too many");
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        prop_assert!(matches!(Block::open(&bytes), Err(Error::Checksum | Error::Version(_))));
    }

    #[test]
    fn no_bytes_make_it_panic(mut bytes in prop::collection::vec(any::<u8>(), 9..400)) {
        // With a checksum that is right.
        bytes[0] = VERSION;
        let sum = checksum(&bytes[9..]);
        bytes[1..9].copy_from_slice(&sum);
        if let Ok(block) = Block::open(&bytes) {
            let _ = block.entries();
        }
    }
}

#[test]
fn cut_off_anywhere_is_an_error() {
    let bytes = seal(&[entry(1, &[5])]).expect("not too many");
    for end in 0..bytes.len() {
        assert!(Block::open(&bytes[..end]).is_err(), "{end}");
    }
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
    largest.sample.processes[0].command_line = Some("x".repeat(PLAIN_LIMIT / 2).into());
    let bytes = seal(&[largest.clone()]).expect("not too many");
    let block = Block::open(&bytes).expect("well formed");
    assert_eq!(block.entries().expect("well formed"), [largest]);
}
