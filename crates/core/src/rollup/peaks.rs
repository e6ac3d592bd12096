//! The most that any process of a node had in each minute of an hour, and at each sample of it: who asks for
//! the highest of a thousand nodes at a moment looks at those nodes alone that have one, or can have one where
//! samples are gone.

use nodestats_wire::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Bucket, CPU_UNITS, MINUTE, Row, Together, process};
use crate::rates::{Pair, cpu_percent};
use crate::{block, pack};

/// The highest of a minute.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peak {
    /// Number of the minute in its hour.
    pub minute: u8,
    /// CPU of a process, in [`CPU_UNITS`].
    pub cpu: u64,
    /// Resident memory of a process in bytes.
    pub memory: u64,
    /// Bytes that a process read and wrote a second, or more.
    pub io: u64,
    /// What all processes had on the mean: CPU and memory in the same units, bytes read and bytes written a
    /// second.
    pub all: [u64; 4],
    /// How many processes there were.
    pub processes: u64,
}

/// Of those minutes of an hour that have samples, in the order of time.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peaks {
    /// How many samples of counters the rollup of the hour was made of.
    pub samples: u64,
    /// Each minute.
    pub minutes: Vec<Peak>,
}

impl Peaks {
    /// Of a minute's processes; `ticks` are those of the counters a second.
    pub(super) fn note<'a>(
        &mut self,
        (hour, bucket): (Timestamp, &Bucket),
        ticks: f64,
        rows: impl Iterator<Item = &'a Row>,
    ) {
        let minute = (bucket.begin.micros() - hour.micros()).div_euclid(MINUTE);
        let mut peak = Peak {
            minute: minute as u8,
            ..Peak::default()
        };
        let mut all = Together::default();
        for row in rows {
            all.add(row, bucket.covered);
            peak.processes += 1;
            let flow = |at: usize| row.flows.get(at).copied().flatten().unwrap_or_default().max;
            let level = row.levels.get(process::RESIDENT).copied().flatten();
            peak.cpu = peak.cpu.max(flow(process::CPU));
            peak.memory = peak.memory.max(level.unwrap_or_default().max);
            let io = flow(process::READ).saturating_add(flow(process::WRITTEN));
            peak.io = peak.io.max(io);
        }
        let all = all.row(bucket.covered);
        let rate = |at: usize, unit: f64| {
            let rate = all.mean_rate(at).unwrap_or_default();
            (rate / unit).round() as u64
        };
        let resident = all.levels.get(process::RESIDENT).copied().flatten();
        let io = [process::READ, process::WRITTEN].map(|at| rate(at, 1.0));
        let cpu = rate(process::CPU, ticks / CPU_UNITS);
        peak.all = [cpu, resident.unwrap_or_default().mean, io[0], io[1]];
        self.minutes.push(peak);
    }

    /// As it is kept.
    pub fn encode(&self) -> Vec<u8> {
        postcard::to_stdvec(self).expect("plain data")
    }

    /// What [`encode`](Self::encode) gave.
    pub fn decode(bytes: &[u8]) -> Result<Self, block::Error> {
        let peaks = postcard::from_bytes::<Self>(bytes).map_err(block::Error::Decode)?;
        if peaks.minutes.len() > 60 {
            return Err(block::Error::TooLarge);
        }
        Ok(peaks)
    }
}

/// The most that any process had at a sample, each as a table of processes tells it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct High {
    /// When the sample was taken.
    pub time: Timestamp,
    /// CPU of a process, in [`CPU_UNITS`].
    pub cpu: u64,
    /// Resident memory of a process in bytes.
    pub memory: u64,
    /// Bytes that a process read and wrote a second, in hundredths.
    pub io: u64,
}

/// Of the samples of an hour, in the order of time; kept as long as those are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Highs {
    /// Each sample of counters.
    pub samples: Vec<High>,
}

/// Most samples of an hour, and most bytes that they unpack to.
const SAMPLES: usize = 1 << 16;
const PLAIN: usize = SAMPLES * 40;

impl High {
    /// Counts what a process had at the later one of two samples.
    pub(super) fn note(&mut self, row: &Row, pair: Option<&Pair<'_>>, ticks_per_second: u32) {
        let rate = |at: usize| {
            let grown = row.flows.get(at).copied().flatten()?.total;
            pair.map(|pair| pair.span.monotonic_rate(0, grown))
        };
        let hundredths = |value: f64| (value * 100.0).round() as u64;
        let cpu = rate(process::CPU).map_or(0.0, |rate| cpu_percent(rate, ticks_per_second));
        let io = [process::READ, process::WRITTEN].map(|at| rate(at).map_or(0, hundredths));
        let memory = row.levels.get(process::RESIDENT).copied().flatten();
        self.cpu = self.cpu.max(hundredths(cpu));
        self.memory = self.memory.max(memory.unwrap_or_default().last);
        self.io = self.io.max(io[0].saturating_add(io[1]));
    }
}

impl Highs {
    /// As it is kept: a column after the other, times and memory as differences, and zstd.
    pub fn encode(&self) -> Vec<u8> {
        let mut columns: [Vec<i64>; 4] = Default::default();
        let (mut time, mut memory) = (0, 0);
        for high in &self.samples {
            columns[0].push(high.time.micros().wrapping_sub(time));
            columns[1].push(high.cpu as i64);
            columns[2].push((high.memory as i64).wrapping_sub(memory));
            columns[3].push(high.io as i64);
            (time, memory) = (high.time.micros(), high.memory as i64);
        }
        pack::pack(&postcard::to_stdvec(&columns).expect("plain data"))
    }

    /// What [`encode`](Self::encode) gave.
    pub fn decode(bytes: &[u8]) -> Result<Self, block::Error> {
        let plain = pack::unpack(bytes, PLAIN);
        let plain = plain.map_err(|error| block::Error::Unpack(error.kind()))?;
        let columns: [Vec<i64>; 4] = postcard::from_bytes(&plain).map_err(block::Error::Decode)?;
        let [times, cpu, memory, io] = columns;
        if times.len() > SAMPLES
            || [&cpu, &memory, &io]
                .iter()
                .any(|all| all.len() != times.len())
        {
            return Err(block::Error::Mismatch);
        }
        let (mut time, mut resident) = (0_i64, 0_i64);
        let rows = times.into_iter().zip(cpu).zip(memory.into_iter().zip(io));
        let rows = rows.map(|((later, cpu), (more, io))| {
            (time, resident) = (time.wrapping_add(later), resident.wrapping_add(more));
            Ok(High {
                time: Timestamp::from_micros(time).ok_or(block::Error::Mismatch)?,
                cpu: cpu as u64,
                memory: resident as u64,
                io: io as u64,
            })
        });
        let samples = rows.collect::<Result<_, block::Error>>()?;
        Ok(Self { samples })
    }

    /// Of the last sample at or before a moment.
    pub fn at(&self, moment: Timestamp) -> Option<&High> {
        let after = self.samples.partition_point(|high| high.time <= moment);
        self.samples[..after].last()
    }
}
